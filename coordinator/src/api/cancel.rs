//! Cancel: a run is asked to end and roll back.

use std::time::Duration;

use haulage_core::ids::RunId;
use haulage_core::run::Phase;
use haulage_proto::v1::{CancelRequest, CancelResponse};
use tonic::Status;

use super::role::Leader;
use super::{Api, status};
use crate::actors::run::{CancelError, RunMessage};
use crate::actors::table::Place;

/// A cancel waits for the ledger, so it may take as long as that does.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What stands in the log for somebody who gave no reason.
const NO_REASON: &str = "no reason given";

pub(super) async fn cancel(api: &Api, leader: &Leader, request: CancelRequest) -> Result<CancelResponse, Status> {
    let run = RunId::new(request.run_id);
    let actor = match leader.shared.table.place(&run) {
        Some(Place::Live(actor)) => actor,
        Some(Place::Starting) => return Err(Status::unavailable(format!("run {run} is being recovered; try again"))),
        Some(Place::SetAside(reason)) => {
            return Err(Status::data_loss(format!("run {run} can't be recovered: {reason}")));
        }
        None => {
            return Err(match api.read(&run).await?.state.phase() {
                Phase::AtRest(_) => {
                    Status::failed_precondition(format!("run {run} is at rest: there is nothing to cancel"))
                }
                _ => Status::unavailable(format!("run {run} is being recovered; try again")),
            });
        }
    };
    let reason = match request.reason.trim() {
        "" => NO_REASON.to_owned(),
        reason => reason.to_owned(),
    };
    let answer = actor
        .call(|port| RunMessage::Cancel { reason, port }, Some(TIMEOUT))
        .await;
    match status::answered(answer)? {
        Ok(()) => Ok(CancelResponse {}),
        Err(error @ CancelError::Refused(_)) => Err(Status::failed_precondition(format!("run {run}: {error}"))),
        Err(error @ CancelError::Ledger) => Err(Status::unavailable(error.to_string())),
    }
}
