//! What somebody wants of one run: the run's actor is found, asked, and its answer turned into a status.

use std::time::Duration;

use haulage_core::ids::{RunId, Seq};
use haulage_core::run::{Input, Phase};
use ractor::ActorRef;
use ractor::rpc::CallResult;
use tonic::Status;

use super::role::Leader;
use super::{Api, status};
use crate::actors::run::{AskError, RunMessage};
use crate::actors::table::Place;

/// An answer waits for the ledger, so it may take as long as that does.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest reason or name that a log keeps for ever, in characters.
const LONGEST: usize = 2_000;

/// Gives the run an input and waits until what comes of it stands; returns up to where it does. `to_do` is what there must be for it: "cancel".
pub(super) async fn ask(api: &Api, leader: &Leader, run: &RunId, input: Input, to_do: &str) -> Result<Seq, Status> {
    let actor = actor(api, leader, run, to_do).await?;
    let answer = actor.call(|port| RunMessage::Ask { input, port }, Some(TIMEOUT)).await;
    // An actor ends when its run is at rest; who asks in that moment is told so, as everybody after it.
    if matches!(answer, Ok(CallResult::SenderError) | Err(_))
        && let Some(over) = over(api, run, to_do).await?
    {
        return Err(over);
    }
    match status::answered(answer)? {
        Ok(seq) => Ok(seq),
        Err(error @ AskError::Refused(_)) => Err(Status::failed_precondition(format!("run {run}: {error}"))),
        Err(error @ AskError::Ledger) => Err(Status::unavailable(error.to_string())),
    }
}

async fn actor(api: &Api, leader: &Leader, run: &RunId, to_do: &str) -> Result<ActorRef<RunMessage>, Status> {
    match leader.shared.table.place(run) {
        Some(Place::Live(actor)) => Ok(actor),
        Some(Place::Starting) => Err(recovering(run)),
        Some(Place::SetAside(reason)) => Err(Status::data_loss(format!("run {run} can't be recovered: {reason}"))),
        None => Err(over(api, run, to_do).await?.unwrap_or_else(|| recovering(run))),
    }
}

/// What to tell somebody who asks something of a run that is at rest; `None` if it isn't.
async fn over(api: &Api, run: &RunId, to_do: &str) -> Result<Option<Status>, Status> {
    Ok(match api.read(run).await?.state.phase() {
        Phase::AtRest(_) => Some(Status::failed_precondition(format!(
            "run {run} is at rest: there is nothing to {to_do}"
        ))),
        Phase::Empty
        | Phase::Discovering
        | Phase::Loading
        | Phase::Verifying
        | Phase::Publishing
        | Phase::Cleaning
        | Phase::Recalling
        | Phase::RollingBack
        | Phase::Stuck => None,
    })
}

/// A text of a user that goes into the log, trimmed; what is too long for it is refused.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
pub(super) fn words(name: &str, text: &str) -> Result<String, Status> {
    let text = text.trim();
    if text.chars().count() > LONGEST {
        return Err(Status::invalid_argument(format!(
            "`{name}` is longer than {LONGEST} characters; the run's log keeps it for ever, so say it in fewer"
        )));
    }
    Ok(text.to_owned())
}

pub(super) fn recovering(run: &RunId) -> Status {
    Status::unavailable(format!("run {run} is being recovered; try again"))
}
