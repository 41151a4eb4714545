//! What goes to nodes: assignments until they are accepted, drops until they are answered, grants for free slots. Each
//! call is made by a task of its own and comes back as a message.

use std::sync::Arc;

use haulage_core::ids::{Millis, NodeName, RunId};
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::{AssignmentReply, AttemptKey, Drop as DropMessage};
use haulage_proto::link::wire::Meta;

use super::{AGAIN_MS, ClusterMessage, ClusterState, REFUSALS, tell_run};
use crate::actors::calls::{CALL_TIMEOUT, call};
use crate::actors::nodes::Sent;
use crate::actors::run::RunMessage;
use crate::actors::{assignment, tell};
use crate::clock;

impl ClusterState {
    pub(super) fn assigned(
        &mut self,
        node: &NodeName,
        boot: &str,
        key: &AttemptKey,
        refused: u32,
        reply: Option<AssignmentReply>,
    ) {
        let now = clock::steady();
        let others = self.nodes.seats(now).iter().any(|seat| seat.node != *node);
        let Some(member) = self.nodes.same_boot(node, boot) else {
            return;
        };
        if !member.sent.contains_key(key) {
            return;
        }
        match reply {
            Some(AssignmentReply::Accepted) => {
                member.sent.insert(key.clone(), Sent::Held { since: now, missed: 0 });
            }
            Some(AssignmentReply::Full) => {
                if member.refuse(key, refused, now) >= REFUSALS && others {
                    member.miss(std::slice::from_ref(key), now);
                    self.tell_run(&key.run, RunMessage::Input(assignment::dropped(key, node)));
                }
            }
            Some(AssignmentReply::Leaving) => {
                member.drains(node);
                member.miss(std::slice::from_ref(key), now);
                self.tell_run(&key.run, RunMessage::Input(assignment::declined(key, node)));
            }
            Some(AssignmentReply::StaleEpoch) => {
                member.sent.insert(
                    key.clone(),
                    Sent::Again {
                        at: now.plus(AGAIN_MS),
                        refused,
                    },
                );
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move { shared.leadership.look(shared.ledger.as_ref()).await });
            }
            None => {
                member.sent.insert(
                    key.clone(),
                    Sent::Again {
                        at: now.plus(AGAIN_MS),
                        refused,
                    },
                );
            }
        }
    }

    pub(super) fn dropped(&mut self, node: &NodeName, boot: &str, key: &AttemptKey, answered: bool) {
        let now = clock::steady();
        if let Some(member) = self.nodes.same_boot(node, boot) {
            // Also after an answer: if the run doesn't take note (it may be starting), the node is asked again.
            member.dropping.insert(key.clone(), now.plus(AGAIN_MS));
            if answered {
                self.tell_run(&key.run, RunMessage::Input(assignment::dropped(key, node)));
            }
        }
    }

    pub(super) fn pump(&mut self) {
        let now = clock::steady();
        self.nodes.prune(&self.board);
        self.send_assignments(now);
        self.send_drops(now);
        for grant in self.board.grant(clock::wall(), &self.nodes.seats(now)) {
            let (number, work, node) = (grant.number, grant.work, grant.node);
            self.tell_run(&grant.run, RunMessage::Grant { number, work, node });
        }
        let places = self.nodes.alive(now);
        let alive = places.len();
        let misplaced = self.board.misplaced(&places);
        self.shared
            .alive
            .send_if_modified(|before| std::mem::replace(before, alive) != alive);
        self.shared.misplaced.send_if_modified(|before| {
            for (run, reason) in &misplaced {
                if !before.contains_key(run) {
                    tracing::warn!(%run, "{reason}");
                }
            }
            let changed = *before != misplaced;
            *before = misplaced;
            changed
        });
    }

    fn send_assignments(&mut self, now: Millis) {
        for (key, awaited, trace) in self.board.awaited() {
            let Some(member) = self.nodes.members.get_mut(&awaited.node).filter(|member| !member.lost) else {
                continue;
            };
            let Some(agent) = member.agent.and_then(|id| self.agents.get(&id)) else {
                continue;
            };
            let refused = match member.sent.get(key) {
                None => 0,
                Some(Sent::Again { at, refused }) if *at <= now => *refused,
                Some(Sent::Missing { again }) if *again <= now => {
                    member.miss(std::slice::from_ref(key), now);
                    tell_run(
                        &self.shared,
                        &key.run,
                        RunMessage::Input(assignment::dropped(key, &awaited.node)),
                    );
                    continue;
                }
                Some(Sent::Again { .. } | Sent::OnTheWay | Sent::Held { .. } | Sent::Missing { .. }) => continue,
            };
            member.sent.insert(key.clone(), Sent::OnTheWay);
            let (actor, myself) = (agent.actor.clone(), self.myself.clone());
            let meta = Meta {
                epoch: self.shared.epoch(),
                trace: trace.as_ref().clone(),
            };
            let assignment = Arc::clone(&awaited.assignment);
            let (node, boot, key) = (awaited.node.clone(), member.boot.clone(), key.clone());
            tokio::spawn(async move {
                let reply = call(&actor, &meta, assignment.as_ref(), AgentMessage::Assign)
                    .await
                    .ok();
                tell(
                    &myself,
                    ClusterMessage::Assigned {
                        node,
                        boot,
                        key,
                        refused,
                        reply,
                    },
                );
            });
        }
    }

    fn send_drops(&mut self, now: Millis) {
        for (key, node) in self.board.drops() {
            let Some(member) = self.nodes.members.get_mut(node).filter(|member| !member.lost) else {
                continue;
            };
            let Some(agent) = member.agent.and_then(|id| self.agents.get(&id)) else {
                continue;
            };
            if member.dropping.get(key).is_some_and(|again| *again > now) {
                continue;
            }
            // The answer sets a nearer time; without one the call's own timeout has passed by then.
            member.dropping.insert(
                key.clone(),
                now.plus(2 * u64::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(AGAIN_MS)),
            );
            let (actor, myself, meta) = (agent.actor.clone(), self.myself.clone(), self.shared.meta());
            let (node, boot, key) = (node.clone(), member.boot.clone(), key.clone());
            tokio::spawn(async move {
                let body = DropMessage {
                    attempts: vec![key.clone()],
                    runs: Vec::new(),
                };
                let answered = call::<_, ()>(&actor, &meta, &body, AgentMessage::Drop).await.is_ok();
                tell(
                    &myself,
                    ClusterMessage::Dropped {
                        node,
                        boot,
                        key,
                        answered,
                    },
                );
            });
        }
    }

    /// Best effort: a node that misses it keeps a little memory until it is told about attempts that are unwanted.
    pub(super) fn tell_at_rest(&self, run: &RunId) {
        for actor in self.alive_agents() {
            let (meta, run) = (self.shared.meta(), run.clone());
            tokio::spawn(async move {
                let body = DropMessage {
                    attempts: Vec::new(),
                    runs: vec![run],
                };
                drop(call::<_, ()>(&actor, &meta, &body, AgentMessage::Drop).await);
            });
        }
    }
}
