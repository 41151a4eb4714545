//! Calls to a node's agent. Every call ends, with an answer or after a timeout: a cast would report success for a message
//! that was lost.

use std::time::Duration;

use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::rpc::CallResult;
use ractor::{ActorRef, RpcReplyPort};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::deciding::CALL_TIMEOUT_MS;

/// How long a node may take to answer a call before it is made again.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(CALL_TIMEOUT_MS);

/// Why a call to a node brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It may answer the next time.
    #[error("no answer")]
    Silent,
    /// It will say the same again.
    #[error(transparent)]
    Unreadable(#[from] wire::Error),
}

/// Calls an agent. Every call ends: with an answer, or after [`CALL_TIMEOUT`].
pub(crate) async fn call<B: Serialize, R: DeserializeOwned>(
    agent: &ActorRef<AgentMessage>,
    meta: &Meta,
    body: &B,
    message: impl FnOnce(Wire, RpcReplyPort<Wire>) -> AgentMessage,
) -> Result<R, CallError> {
    call_within(CALL_TIMEOUT, agent, meta, body, message).await
}

/// [`call`] with a timeout of its own.
pub(crate) async fn call_within<B: Serialize, R: DeserializeOwned>(
    timeout: Duration,
    agent: &ActorRef<AgentMessage>,
    meta: &Meta,
    body: &B,
    message: impl FnOnce(Wire, RpcReplyPort<Wire>) -> AgentMessage,
) -> Result<R, CallError> {
    let wire = wire::encode(meta, body)?;
    match agent.call(|port| message(wire, port), Some(timeout)).await {
        Ok(CallResult::Success(reply)) => Ok(wire::decode(&reply)?.1),
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(CallError::Silent),
    }
}
