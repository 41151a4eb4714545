//! What goes to nodes: assignments until they are accepted, drops until they are answered, grants for free slots.

use std::sync::Arc;

use haulage_core::ids::{Millis, NodeName};
use haulage_proto::link::message::{AssignmentReply, AttemptKey};

use super::{AGAIN_MS, Action, Dispatch, REFUSALS, ToRun};
use crate::deciding::nodes::Sent;
use crate::deciding::{CALL_TIMEOUT_MS, assignment};

impl Dispatch {
    /// What an assignment was answered with; `None` if it wasn't.
    pub fn assigned(
        &mut self,
        node: &NodeName,
        boot: &str,
        key: &AttemptKey,
        refused: u32,
        reply: Option<AssignmentReply>,
        now: Millis,
    ) {
        let others = self.nodes.seats(now).iter().any(|seat| seat.node != *node);
        let Some(member) = self.nodes.same_boot(node, boot) else {
            return;
        };
        if !member.sent.contains_key(key) {
            return;
        }
        let again = Sent::Again {
            at: now.plus(AGAIN_MS),
            refused,
        };
        match reply {
            Some(AssignmentReply::Accepted) => {
                member.sent.insert(key.clone(), Sent::Held { since: now, missed: 0 });
            }
            Some(AssignmentReply::Full) => {
                if member.refuse(key, refused, now) >= REFUSALS && others {
                    member.miss(std::slice::from_ref(key), now);
                    self.tell_dropped(key, node);
                }
            }
            Some(AssignmentReply::Leaving) => {
                member.drains(node);
                member.miss(std::slice::from_ref(key), now);
                self.tell_run(key.run.clone(), ToRun::Input(assignment::declined(key, node)));
            }
            Some(AssignmentReply::StaleEpoch) => {
                member.sent.insert(key.clone(), again);
                self.actions.push(Action::LookAtEpoch);
            }
            None => {
                member.sent.insert(key.clone(), again);
            }
        }
    }

    /// Whether a node has answered that it dropped an attempt.
    pub fn dropped(&mut self, node: &NodeName, boot: &str, key: &AttemptKey, answered: bool, now: Millis) {
        if let Some(member) = self.nodes.same_boot(node, boot) {
            // Also after an answer: if the run doesn't take note (it may be starting), the node is asked again.
            member.dropping.insert(key.clone(), now.plus(AGAIN_MS));
            if answered {
                self.tell_dropped(key, node);
            }
        }
    }

    /// What is to be done by now. `now` measures silence and never steps, `wall` is what runs and the ledger see.
    pub fn due(&mut self, now: Millis, wall: Millis) -> Vec<Action> {
        self.nodes.prune(&self.board);
        self.send_assignments(now);
        self.send_drops(now);
        let seats = if self.hands_over {
            Vec::new()
        } else {
            self.nodes.seats(now)
        };
        for grant in self.board.grant(wall, &seats) {
            let (number, work, node) = (grant.number, grant.work, grant.node);
            self.tell_run(grant.run, ToRun::Grant { number, work, node });
        }
        std::mem::take(&mut self.actions)
    }

    fn send_assignments(&mut self, now: Millis) {
        for (key, awaited, trace) in self.board.awaited() {
            let Some(member) = self.nodes.members.get_mut(&awaited.node).filter(|member| !member.lost) else {
                continue;
            };
            let Some(agent) = member.agent.filter(|agent| self.agents.contains_key(agent)) else {
                continue;
            };
            let refused = match member.sent.get(key) {
                None => 0,
                Some(Sent::Again { at, refused }) if *at <= now => *refused,
                Some(Sent::Missing { again }) if *again <= now => {
                    member.miss(std::slice::from_ref(key), now);
                    self.actions.push(Action::TellRun {
                        run: key.run.clone(),
                        news: ToRun::Input(assignment::dropped(key, &awaited.node)),
                    });
                    continue;
                }
                Some(Sent::Again { .. } | Sent::OnTheWay | Sent::Held { .. } | Sent::Missing { .. }) => continue,
            };
            member.sent.insert(key.clone(), Sent::OnTheWay);
            self.actions.push(Action::Assign {
                agent,
                node: awaited.node.clone(),
                boot: member.boot.clone(),
                refused,
                trace: Arc::clone(trace),
                assignment: Arc::clone(&awaited.assignment),
            });
        }
    }

    fn send_drops(&mut self, now: Millis) {
        for (key, node) in self.board.drops() {
            let Some(member) = self.nodes.members.get_mut(node).filter(|member| !member.lost) else {
                continue;
            };
            let Some(agent) = member.agent.filter(|agent| self.agents.contains_key(agent)) else {
                continue;
            };
            if member.dropping.get(key).is_some_and(|again| *again > now) {
                continue;
            }
            // The answer sets a nearer time; without one the call's own timeout has passed by then.
            member.dropping.insert(key.clone(), now.plus(2 * CALL_TIMEOUT_MS));
            self.actions.push(Action::Drop {
                agent,
                node: node.clone(),
                boot: member.boot.clone(),
                key: key.clone(),
            });
        }
    }
}
