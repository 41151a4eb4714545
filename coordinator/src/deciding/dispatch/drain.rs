//! A node is asked to leave.

use haulage_core::ids::{Millis, NodeName};
use haulage_core::lease::Standing;
use haulage_proto::link::protocol;

use super::Dispatch;
use crate::deciding::AgentId;

/// Why a node could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainError {
    /// There is none of that name, but these.
    Unknown(Vec<String>),
    /// It can't be reached; what the leader thinks of it.
    Unreachable(Standing),
    /// Its release doesn't know the question.
    TooOld(String),
    /// It was asked and didn't answer.
    Silent,
    /// Who was asked doesn't hold the lead at this moment.
    Leaderless,
}

impl Dispatch {
    /// Whom to ask, and the boot that it belongs to. Once it has taken note, [`Dispatch::draining`] is to be told.
    pub fn to_be_asked(&self, node: &NodeName, now: Millis) -> Result<(AgentId, String), DrainError> {
        let Some(member) = self.nodes.members.get(node) else {
            let known = self.nodes.members.keys().map(|name| name.0.clone());
            return Err(DrainError::Unknown(known.collect()));
        };
        let agent = member.agent.filter(|agent| self.agents.contains_key(agent));
        let Some(agent) = agent.filter(|_| !member.lost) else {
            return Err(DrainError::Unreachable(self.nodes.standing(member, now)));
        };
        if member.protocol < protocol::LEAVING {
            return Err(DrainError::TooOld(member.version.clone()));
        }
        Ok((agent, member.boot.clone()))
    }

    /// The node will leave.
    pub fn draining(&mut self, node: &NodeName, boot: &str) {
        if let Some(member) = self.nodes.same_boot(node, boot) {
            member.drains(node);
        }
    }
}
