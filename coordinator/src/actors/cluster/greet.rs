//! Finding nodes: every agent that joins the process group is greeted, and again after each new session, until it is
//! known which node it is and what it holds.

use haulage_core::ids::{Millis, NodeName};
use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::link::message::{Hello, HelloReply};
use haulage_proto::link::protocol::Speaks;
use ractor::ActorId;

use super::{AGAIN_MS, Agent, ClusterMessage, ClusterState, Greeting, REFUSED_MS};
use crate::actors::calls::{CallError, call};
use crate::actors::run::RunMessage;
use crate::actors::{assignment, tell};
use crate::clock;
use crate::complaints::Kind;

/// Agents at once, those that haven't been greeted among them: more than any cluster has nodes.
const AGENTS_AT_MOST: usize = 2048;

impl ClusterState {
    pub(super) fn look_for_agents(&mut self) {
        let now = clock::steady();
        let members = ractor::pg::get_members(&AGENTS.to_owned());
        let gone: Vec<ActorId> = self
            .agents
            .keys()
            .filter(|id| !members.iter().any(|cell| cell.get_id() == **id))
            .copied()
            .collect();
        for id in gone {
            self.agents.remove(&id);
            if let Some(node) = self.nodes.unreachable(id) {
                if self.nodes.has_left(&node, &self.board) {
                    tracing::info!(%node, "the node has left");
                } else {
                    tracing::warn!(%node, "the node's session has ended; it keeps its work until its lease runs out");
                }
            }
        }
        for cell in members {
            // A session may claim any number of agents.
            if self.agents.len() >= AGENTS_AT_MOST {
                let what = format!("there are {AGENTS_AT_MOST} agents of nodes already; more are left alone");
                self.shared.complaints.about(Kind::Node, &cell.get_id(), &what);
                break;
            }
            let fresh = || Agent {
                actor: cell.clone().into(),
                greeting: Greeting::Again(now),
            };
            self.agents.entry(cell.get_id()).or_insert_with(fresh);
        }
        let due: Vec<ActorId> = self
            .agents
            .iter()
            .filter(|(_, agent)| matches!(agent.greeting, Greeting::Again(at) if at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.greet(id, now);
        }
    }

    fn greet(&mut self, id: ActorId, asked: Millis) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.greeting = Greeting::Asked;
        let actor = agent.actor.clone();
        let myself = self.myself.clone();
        let settings = self.shared.settings;
        let hello = Hello {
            lease_ms: settings.lease_ms,
            heartbeat_ms: settings.heartbeat_ms,
            speaks: Speaks::ours(),
        };
        let meta = self.shared.meta();
        tokio::spawn(async move {
            let reply = call(&actor, &meta, &hello, AgentMessage::Hello).await;
            tell(
                &myself,
                ClusterMessage::Greeted {
                    agent: id,
                    asked,
                    reply,
                },
            );
        });
    }

    /// The node under this name sent a heartbeat that belongs to no greeting.
    pub(super) fn greet_again(&mut self, node: &NodeName) {
        let now = clock::steady();
        for agent in self.agents.values_mut() {
            if agent.greeting == Greeting::Known(node.clone()) {
                agent.greeting = Greeting::Again(now);
            }
        }
        self.look_for_agents();
    }

    pub(super) fn greeted(&mut self, id: ActorId, asked: Millis, reply: Result<HelloReply, CallError>) {
        let now = clock::steady();
        let Some(agent) = self.agents.get_mut(&id) else { return };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                let wait = match error {
                    CallError::Silent => AGAIN_MS,
                    CallError::Unreadable(_) => REFUSED_MS,
                };
                let what = format!("a node could not be greeted: {error}");
                self.shared.complaints.about(Kind::Node, &id, &what);
                agent.greeting = Greeting::Again(now.plus(wait));
                return;
            }
        };
        let release = Speaks {
            release: reply.version.clone(),
            ..reply.speaks.clone()
        };
        let protocol = match Speaks::ours().agree("node", &release) {
            Ok(protocol) => protocol,
            Err(unsuited) => {
                tracing::warn!(node = %reply.node, "the node is refused: {unsuited}");
                agent.greeting = Greeting::Refused;
                return;
            }
        };
        let greeted = self.nodes.greeted(id, &reply, &self.board, asked, now);
        if greeted.contested {
            agent.greeting = Greeting::Again(now.plus(AGAIN_MS));
            return;
        }
        if greeted.superseded {
            // Its next heartbeat is answered with why.
            agent.greeting = Greeting::Again(now.plus(REFUSED_MS));
            return;
        }
        agent.greeting = Greeting::Known(reply.node.clone());
        tracing::info!(
            node = %reply.node, slots = reply.slots, holds = reply.running.len(), protocol, release = reply.version,
            "a node is here"
        );
        if let Some(silent_ms) = greeted.lost_boot {
            self.lose(&reply.node, silent_ms);
        }
        for key in &greeted.missing {
            self.tell_run(&key.run, RunMessage::Input(assignment::dropped(key, &reply.node)));
        }
    }
}
