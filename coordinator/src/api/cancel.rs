//! Cancel: a run is asked to end and roll back.

use haulage_core::ids::RunId;
use haulage_core::run::Input;
use haulage_proto::v1::{CancelRequest, CancelResponse};
use tonic::Status;

use super::role::Leader;
use super::{Api, ask};

/// What stands in the log for somebody who gave no reason.
pub(super) const NO_REASON: &str = "no reason given";

pub(super) async fn cancel(api: &Api, leader: &Leader, request: CancelRequest) -> Result<CancelResponse, Status> {
    let run = RunId::new(request.run_id);
    let reason = match ask::words("reason", &request.reason)? {
        none if none.is_empty() => NO_REASON.to_owned(),
        reason => reason,
    };
    ask::ask(api, leader, &run, Input::Cancel { reason }, "cancel").await?;
    Ok(CancelResponse {})
}
