//! The message types of the two remotable actors. Everything else that is an actor stays local to its process.

use ractor::RpcReplyPort;
use ractor_cluster::RactorClusterMessage;

use super::wire::Wire;

/// Process group of every `NodeAgent`. Remote members are found here; a remotable actor is never named.
pub const AGENTS: &str = "haulage.agents";
/// Process group of every `ClusterGateway`.
pub const GATEWAYS: &str = "haulage.gateways";

/// What a coordinator says to a node.
#[derive(RactorClusterMessage, Debug)]
pub enum AgentMessage {
    /// [`super::message::Hello`], answered with [`super::message::HelloReply`].
    #[rpc]
    Hello(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Assignment`], answered with [`super::message::AssignmentReply`].
    #[rpc]
    Assign(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Drop`], answered with `()`.
    #[rpc]
    Drop(Wire, RpcReplyPort<Wire>),
    /// [`super::message::FetchRejects`], answered with [`super::message::RejectsPage`].
    #[rpc]
    FetchRejects(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Watermarks`], answered with [`super::message::WatermarksReply`]. Nodes of earlier releases don't
    /// answer.
    #[rpc]
    Watermarks(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Leave`], answered with `()`. From protocol 2 on.
    #[rpc]
    Leave(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Examine`], answered with [`super::message::Examined`]. From protocol 4 on.
    #[rpc]
    Examine(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Prune`], answered with [`super::message::Pruned`]. From protocol 4 on.
    #[rpc]
    Prune(Wire, RpcReplyPort<Wire>),
}

/// What a node says to the coordinator.
#[derive(RactorClusterMessage, Debug)]
pub enum GatewayMessage {
    /// [`super::message::Heartbeat`], answered with [`super::message::LeaseGrant`].
    #[rpc]
    Heartbeat(Wire, RpcReplyPort<Wire>),
    /// [`super::message::Done`], answered with [`super::message::DoneReply`].
    #[rpc]
    Done(Wire, RpcReplyPort<Wire>),
}
