//! A node is asked to leave: it takes note, drains, and ends by itself. From then on it gets nothing new here.

use haulage_core::ids::NodeName;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::Leave;
use ractor::{ActorRef, RpcReplyPort};

use super::{ClusterMessage, ClusterState};
use crate::actors::calls::call;
use crate::actors::tell;
use crate::clock;
use crate::deciding::DrainError;

impl ClusterState {
    pub(super) fn drain(&self, node: NodeName, port: RpcReplyPort<Result<(), DrainError>>) {
        let (actor, boot) = match self.to_be_asked(&node) {
            Ok(found) => found,
            Err(error) => return drop(port.send(Err(error))),
        };
        let (myself, meta) = (self.myself.clone(), self.shared.meta());
        tokio::spawn(async move {
            let asked = call::<_, ()>(&actor, &meta, &Leave {}, AgentMessage::Leave).await;
            // Told before the answer, so that whoever asks for the nodes next sees it.
            if asked.is_ok() {
                tell(&myself, ClusterMessage::Draining { node, boot });
            }
            drop(port.send(asked.map_err(|_| DrainError::Silent)));
        });
    }

    /// The node's ear, and the boot that it belongs to.
    fn to_be_asked(&self, node: &NodeName) -> Result<(ActorRef<AgentMessage>, String), DrainError> {
        // Another one may lead by now, and the node may not know yet.
        if !self.shared.leadership.holds() {
            return Err(DrainError::Leaderless);
        }
        let (agent, boot) = self.dispatch.to_be_asked(node, clock::steady())?;
        let actor = self.agents.get(&agent).ok_or(DrainError::Silent)?;
        Ok((actor.clone(), boot))
    }
}
