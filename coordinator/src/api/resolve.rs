//! Resolve: somebody decides about a run that is stuck, or that waits for a destination which won't come back.

use haulage_core::event::StuckDecision;
use haulage_core::ids::RunId;
use haulage_core::run::Input;
use haulage_proto::v1::resolve_request::Decision;
use haulage_proto::v1::{ResolveRequest, ResolveResponse};
use tonic::Status;

use super::cancel::NO_REASON;
use super::role::Leader;
use super::{Api, ask};

pub(super) async fn resolve(api: &Api, leader: &Leader, request: ResolveRequest) -> Result<ResolveResponse, Status> {
    let decision = match request.decision() {
        Decision::Retry => StuckDecision::Retry,
        Decision::Abandon => StuckDecision::Abandon,
        Decision::Unspecified => {
            return Err(Status::invalid_argument("`decision` is missing: RETRY or ABANDON"));
        }
    };
    let by = ask::words("by", &request.by)?;
    let mut reason = ask::words("reason", &request.reason)?;
    if reason.is_empty() {
        if decision == StuckDecision::Abandon {
            return Err(Status::invalid_argument(
                "`reason` is empty: something of the run stays where it is, so say why, for whoever finds it later",
            ));
        }
        reason = NO_REASON.to_owned();
    }
    let run = RunId::new(request.run_id);
    let step = ask::words("step", &request.step)?;
    let input = Input::Decide {
        decision,
        step: Some(step).filter(|step| !step.is_empty()),
        reason,
        by,
    };
    let seq = ask::ask(api, leader, &run, input, "decide").await?;
    Ok(ResolveResponse { seq: seq.0 })
}
