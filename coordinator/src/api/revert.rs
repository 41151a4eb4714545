//! Revert: what a published run has made visible is taken back.
//!
//! A published run is at rest and has no actor. Its log is opened once more, in the ledger and under the same condition as
//! every append; then the run is started like one that an earlier leader left open.

use haulage_core::ids::RunId;
use haulage_core::run::{Input, Phase, decide};
use haulage_proto::v1::{RevertRequest, RevertResponse};
use tonic::Status;

use super::cancel::NO_REASON;
use super::role::Leader;
use super::{Api, ask, status};
use crate::actors::runs::RunsMessage;
use crate::actors::tell;
use crate::clock;
use crate::ledger::{Append, Appended, group};

pub(super) async fn revert(api: &Api, leader: &Leader, request: RevertRequest) -> Result<RevertResponse, Status> {
    let run = RunId::new(request.run_id);
    let by = ask::words("by", &request.by)?;
    let reason = match ask::words("reason", &request.reason)? {
        none if none.is_empty() => NO_REASON.to_owned(),
        reason => reason,
    };
    let replaying = leader.shared.ledger.replaying(&run).await;
    if let Some(replay) = replaying.map_err(|error| status::ledger(&error))? {
        // The ledger refuses it too; here it is said why.
        let (replay, first) = match replay.published {
            true => (replay.run, "revert that run first"),
            false => (replay.run, "cancel that run first, or wait for it and revert it"),
        };
        return Err(Status::failed_precondition(format!(
            "run {run}: its rejected rows were given to {replay}, which adds to what it published; {first}"
        )));
    }
    let input = Input::Revert { reason, by };
    if leader.shared.table.place(&run).is_some() {
        match ask::ask(api, leader, &run, input.clone(), "revert").await {
            Ok(seq) => return Ok(RevertResponse { seq: seq.0 }),
            // Its actor ends with the run: who asks in that moment asks the log instead.
            Err(_) if matches!(api.read(&run).await?.state.phase(), Phase::AtRest(_)) => {}
            Err(status) => return Err(status),
        }
    }
    let log = api.read(&run).await?;
    if !matches!(log.state.phase(), Phase::AtRest(_)) {
        // Opened before, by somebody who didn't come to start it. Harmless if it runs.
        tell(&leader.runs, RunsMessage::Start(run.clone()));
    }
    let events = decide(&log.state, &input, clock::wall())
        .map_err(|refused| Status::failed_precondition(format!("run {run}: {refused}")))?;
    if events.is_empty() {
        return Ok(RevertResponse { seq: log.seq.0 });
    }
    let append = Append {
        run: run.clone(),
        expected: log.seq,
        events,
    };
    match leader.shared.writer.append(append).await {
        Ok(Appended::At(seq)) => {
            tell(&leader.runs, RunsMessage::Start(run.clone()));
            tracing::info!(%run, "to be reverted");
            Ok(RevertResponse { seq: seq.0 })
        }
        Ok(Appended::Conflict) => Err(Status::unavailable(format!(
            "somebody else asked something of run {run} at the same moment; try again"
        ))),
        Err(error @ group::Error::Deposed { .. }) => Err(status::deposed(&error.to_string())),
        Err(error @ group::Error::Stopped) => Err(Status::unavailable(error.to_string())),
        Err(group::Error::Ledger(error)) => Err(status::ledger(&error)),
    }
}
