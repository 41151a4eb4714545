//! Errors as gRPC statuses. The code says whether trying again makes sense, the text says what to do.

use haulage_proto::link::transport::LEADER;
use ractor::MessagingErr;
use ractor::rpc::CallResult;
use tonic::Status;

use crate::ledger::admit::Unreplayable;
use crate::ledger::{Error, Led};

/// What the ledger said.
pub(super) fn ledger(error: &Error) -> Status {
    match error {
        Error::Deposed { .. } => deposed(&error.to_string()),
        Error::Unreadable { .. } => Status::data_loss(error.to_string()),
        Error::Unreplayable(why @ Unreplayable::Unknown(_)) => {
            Status::not_found(format!("{why}; `haulage runs` lists those that are"))
        }
        Error::Unreplayable(why) => Status::failed_precondition(why.to_string()),
        _ if error.is_transient() => Status::unavailable(format!("{error}; try again")),
        _ => Status::internal(error.to_string()),
    }
}

/// This coordinator no longer leads.
pub(super) fn deposed(reason: &str) -> Status {
    Status::unavailable(format!("{reason}; connect to the coordinator that leads now"))
}

/// This coordinator doesn't lead. `LEADER` in the metadata says who does, for those who can go there.
pub(super) fn standby(led: Option<&Led>) -> Status {
    let Some(led) = led else {
        return Status::unavailable("no coordinator leads at the moment; one takes over within seconds, try again");
    };
    let mut status = Status::unavailable(format!(
        "this coordinator stands by; {} leads, at {}",
        led.name, led.address
    ));
    // Without it if the address isn't text that fits there.
    if let Ok(address) = led.address.parse() {
        status.metadata_mut().insert(LEADER, address);
    }
    status
}

/// This process is going down.
pub(super) fn closing() -> Status {
    Status::unavailable("the coordinator is shutting down; its runs go on when one is started again")
}

/// What an actor of this process answered.
pub(super) fn answered<T, M>(result: Result<CallResult<T>, MessagingErr<M>>) -> Result<T, Status> {
    match result {
        Ok(CallResult::Success(answer)) => Ok(answer),
        Ok(CallResult::Timeout) => Err(Status::deadline_exceeded("the coordinator is busy; try again")),
        Ok(CallResult::SenderError) | Err(_) => Err(Status::unavailable(
            "the coordinator is restarting that part; try again",
        )),
    }
}
