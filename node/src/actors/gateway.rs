//! How a node finds its coordinators and asks them: through the process group that their gateways join, local in the
//! embedded mode and over the session otherwise.
//!
//! A gateway here may be the shadow of one whose session is about to end, so a call always has a timeout, and whoever
//! calls asks the newest session first.

use std::time::Duration;

use haulage_proto::link::actor::{GATEWAYS, GatewayMessage};
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::rpc::CallResult;
use ractor::{ActorId, ActorRef, RpcReplyPort};
use serde::de::DeserializeOwned;

/// Every gateway that can be reached, the newest session first.
pub(crate) fn gateways() -> Vec<ActorRef<GatewayMessage>> {
    let mut members = ractor::pg::get_members(&GATEWAYS.to_owned());
    members.sort_by_key(|member| match member.get_id() {
        ActorId::Local(pid) => std::cmp::Reverse((u64::MAX, pid)),
        ActorId::Remote { node_id, pid } => std::cmp::Reverse((node_id, pid)),
    });
    members.into_iter().map(ActorRef::from).collect()
}

/// Asks one gateway. The error is for a log: what to do about it is always to ask again.
pub(crate) async fn ask<T: DeserializeOwned>(
    gateway: &ActorRef<GatewayMessage>,
    call: fn(Wire, RpcReplyPort<Wire>) -> GatewayMessage,
    message: Wire,
    timeout: Duration,
) -> Result<(Meta, T), String> {
    match gateway.call(|reply| call(message, reply), Some(timeout)).await {
        Ok(CallResult::Success(answer)) => wire::decode(&answer).map_err(|error| error.to_string()),
        Ok(CallResult::Timeout) => Err(format!("no answer within {} ms", timeout.as_millis())),
        Ok(CallResult::SenderError) => Err("the coordinator dropped the call".to_owned()),
        Err(_) => Err("the session has ended".to_owned()),
    }
}
