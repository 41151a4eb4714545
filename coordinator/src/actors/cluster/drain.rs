//! A node is asked to leave: it takes note, drains, and ends by itself. From then on it gets nothing new here.

use haulage_core::ids::NodeName;
use haulage_core::lease::Standing;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::Leave;
use haulage_proto::link::protocol;
use ractor::{ActorRef, RpcReplyPort};

use super::{ClusterMessage, ClusterState};
use crate::actors::calls::call;
use crate::actors::tell;
use crate::clock;

/// Why a node could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DrainError {
    /// There is none of that name, but these.
    Unknown(Vec<String>),
    /// It can't be reached; what the leader thinks of it.
    Unreachable(Standing),
    /// Its release doesn't know the question.
    TooOld(String),
    /// It was asked and didn't answer.
    Silent,
}

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
        let Some(member) = self.nodes.members.get(node) else {
            let known = self.nodes.members.keys().map(|name| name.0.clone());
            return Err(DrainError::Unknown(known.collect()));
        };
        let agent = member.agent.and_then(|id| self.agents.get(&id));
        let Some(agent) = agent.filter(|_| !member.lost) else {
            let standing = self.nodes.standing(member, clock::steady());
            return Err(DrainError::Unreachable(standing));
        };
        if member.protocol < protocol::LEAVING {
            return Err(DrainError::TooOld(member.version.clone()));
        }
        Ok((agent.actor.clone(), member.boot.clone()))
    }

    /// The node will leave.
    pub(super) fn draining(&mut self, node: &NodeName, boot: &str) {
        if let Some(member) = self.nodes.same_boot(node, boot) {
            member.drains(node);
        }
    }
}
