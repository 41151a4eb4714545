//! Finding nodes: every agent that appears is greeted, and again after each new session, until it is known which node it
//! is and what it holds.

use haulage_core::ids::{Millis, NodeName};
use haulage_proto::link::message::{Hello, HelloReply};
use haulage_proto::link::protocol::{Role, Speaks};

use super::{AGAIN_MS, AGENTS_AT_MOST, Action, Dispatch, Greeting, REFUSED_MS, Ungreeted};
use crate::deciding::AgentId;

impl Dispatch {
    /// The agents that there are now. Who is new is greeted, and who is due again.
    pub fn agents(&mut self, present: &[AgentId], now: Millis) {
        let gone: Vec<AgentId> = self
            .agents
            .keys()
            .filter(|agent| !present.contains(agent))
            .copied()
            .collect();
        for agent in gone {
            self.agents.remove(&agent);
            if let Some(node) = self.nodes.unreachable(agent) {
                if self.nodes.has_left(&node, &self.board) {
                    tracing::info!(%node, "the node has left");
                } else {
                    tracing::warn!(%node, "the node's session has ended; it keeps its work until its lease runs out");
                }
                // It may be here over another session: an answer over the old one that came late made us talk to that.
                // Its heartbeats come all the same, so it would never be lost, and never hear of anything again.
                self.greet_again(&node, now);
            }
        }
        for agent in present {
            // A session may claim any number of agents.
            if self.agents.len() >= AGENTS_AT_MOST && !self.agents.contains_key(agent) {
                let what = format!("there are {AGENTS_AT_MOST} agents of nodes already; more are left alone");
                self.complain(agent, what);
                break;
            }
            self.agents.entry(*agent).or_insert(Greeting::Again(now));
        }
        for (agent, greeting) in &mut self.agents {
            if !matches!(greeting, Greeting::Again(at) if *at <= now) {
                continue;
            }
            *greeting = Greeting::Asked;
            self.actions.push(Action::Hello {
                agent: *agent,
                asked: now,
                hello: Hello {
                    lease_ms: self.settings.lease_ms,
                    heartbeat_ms: self.settings.heartbeat_ms,
                    speaks: Speaks::ours(),
                },
            });
        }
    }

    /// The node under this name sent a heartbeat that belongs to no greeting.
    pub(super) fn greet_again(&mut self, node: &NodeName, now: Millis) {
        for greeting in self.agents.values_mut() {
            if matches!(greeting, Greeting::Known(known) if known == node) {
                *greeting = Greeting::Again(now);
            }
        }
    }

    /// A hello that was sent at `asked` has been answered, or not.
    pub fn greeted(&mut self, agent: AgentId, asked: Millis, reply: Result<HelloReply, Ungreeted>, now: Millis) {
        let Some(greeting) = self.agents.get_mut(&agent) else {
            return;
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                let (wait, error) = match error {
                    Ungreeted::Silent(error) => (AGAIN_MS, error),
                    Ungreeted::Unreadable(error) => (REFUSED_MS, error),
                };
                *greeting = Greeting::Again(now.plus(wait));
                return self.complain(&agent, format!("a node could not be greeted: {error}"));
            }
        };
        let release = Speaks {
            release: reply.version.clone(),
            ..reply.speaks.clone()
        };
        let protocol = match Speaks::ours().agree(Role::Node, &release) {
            Ok(protocol) => protocol,
            Err(unsuited) => {
                tracing::warn!(node = %reply.node, "the node is refused: {unsuited}");
                *greeting = Greeting::Refused;
                return;
            }
        };
        let greeted = self.nodes.greeted(agent, &reply, &self.board, asked, now);
        if greeted.contested {
            *greeting = Greeting::Again(now.plus(AGAIN_MS));
            return;
        }
        if greeted.superseded {
            // Its next heartbeat is answered with why.
            *greeting = Greeting::Again(now.plus(REFUSED_MS));
            return;
        }
        *greeting = Greeting::Known(reply.node.clone());
        tracing::info!(
            node = %reply.node, slots = reply.slots, holds = reply.running.len(), protocol, release = reply.version,
            "a node is here"
        );
        if let Some(silent_ms) = greeted.lost_boot {
            self.lose(&reply.node, silent_ms);
        }
        for key in &greeted.missing {
            self.tell_dropped(key, &reply.node);
        }
    }
}
