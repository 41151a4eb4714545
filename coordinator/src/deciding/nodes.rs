//! The nodes that the leader knows: their leases, and what each one is believed to hold. Pure: time is an argument, and
//! an agent is only an id here.
//!
//! A node is known by its name and by the boot of its process. A heartbeat renews the lease of that boot alone; another
//! boot under the same name means that the process was started again and that what the old one held is lost.

mod rhythm;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use haulage_core::ids::{Millis, NodeName};
use haulage_core::lease::{NodeLease, Settings, Standing};
use haulage_proto::link::message::{AttemptKey, Heartbeat, HelloReply};
use haulage_proto::link::protocol::PROTOCOL;

use super::AgentId;
use super::board::{Board, Places, Seat};
use rhythm::Rhythm;
pub use rhythm::Summary;

/// How many heartbeats in a row may lack an attempt before the node is believed not to hold it. More than one, because
/// a heartbeat and an assignment may pass each other on the way.
const MISSES: u32 = 5;
/// How long a lost node stays in the list.
const FORGET_MS: u64 = 600_000;
/// How long a node gets no new work after it said that it has no free slot.
const FULL_MS: u64 = 1_000;
/// After how long a run is told again that a node doesn't hold an attempt, if it still awaits it there.
const TELL_AGAIN_MS: u64 = 1_000;
/// Heartbeats of a node after another process came up under its name that prove that both live. More than one, because
/// the last one of a process that was killed may still be on its way.
const PROOF: u32 = 2;
/// Boots that a name is remembered to have had.
const BOOTS: usize = 32;

/// How far an assignment is on its way to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The call hasn't been answered yet.
    OnTheWay,
    /// The node has it.
    Held {
        /// Since when the leader knows that.
        since: Millis,
        /// Heartbeats in a row that didn't name it.
        missed: u32,
    },
    /// To be sent again.
    Again {
        /// When.
        at: Millis,
        /// How often the node said that it has no free slot.
        refused: u32,
    },
    /// The node doesn't hold it and doesn't get it: the run has been told, and makes another attempt.
    Missing {
        /// When the run is told again, if it still awaits this one.
        again: Millis,
    },
}

/// A node.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) boot: String,
    pub(crate) version: String,
    pub(crate) slots: u32,
    /// Where its destinations are.
    pub(crate) places: Places,
    pub(crate) lease: NodeLease,
    pub(crate) lost: bool,
    /// It is about to leave: it works off what it has, and gets nothing new.
    pub(crate) draining: bool,
    /// What was agreed with it.
    pub(crate) protocol: u32,
    pub(crate) rhythm: Rhythm,
    /// Where to reach it; `None` while its session is down.
    pub(crate) agent: Option<AgentId>,
    pub(crate) sent: BTreeMap<AttemptKey, Sent>,
    /// Drops that were sent and aren't settled, and when to send each again.
    pub(crate) dropping: HashMap<AttemptKey, Millis>,
    full_until: Millis,
    /// What it said it held when this boot was greeted.
    said: HashSet<AttemptKey>,
    superseded: Vec<String>,
}

/// Who sent a heartbeat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A node whose lease it renews.
    Known(Beat),
    /// A process that this leader hasn't greeted yet: it keeps the lease it has from an earlier leader, and gets none.
    Stranger,
    /// A process that was given up: whatever it holds is another's by now.
    Outcast,
    /// A process whose name another one has that lives: it has to end.
    Rival,
}

/// What a heartbeat means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beat {
    /// The node was taken for suspect until now.
    pub(crate) recovered: bool,
    /// Attempts that the node should hold and evidently doesn't.
    pub(crate) missing: Vec<AttemptKey>,
    /// It has just shown that it lives beside another process under its name, which is refused from here on.
    pub(crate) has_rival: bool,
}

/// What a greeting means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeted {
    /// Another process has the name, or has had it since: this one's agent is left alone.
    pub(crate) superseded: bool,
    /// The process that has the name may still live: which of them stays shows soon.
    pub(crate) contested: bool,
    /// The process was started again, and what it held before is lost, after so many milliseconds of silence.
    pub(crate) lost_boot: Option<u64>,
    /// Attempts that the log says it has and it doesn't.
    pub(crate) missing: Vec<AttemptKey>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Nodes {
    settings: Settings,
    pub(crate) members: BTreeMap<NodeName, Member>,
    // Nodes that the log says have work and nobody has seen, and since when.
    absent: HashMap<NodeName, Millis>,
    rivals: HashMap<NodeName, Rival>,
}

/// A process that came up under the name of one whose session stands.
#[derive(Debug)]
struct Rival {
    boot: String,
    /// Heartbeats of the other since.
    beats: u32,
}

impl Nodes {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            members: BTreeMap::new(),
            absent: HashMap::new(),
            rivals: HashMap::new(),
        }
    }

    /// A heartbeat.
    pub(crate) fn heartbeat(&mut self, beat: &Heartbeat, now: Millis) -> Sender {
        let settings = self.settings;
        let member = match self.members.get_mut(&beat.node) {
            Some(member) if member.boot == beat.boot && !member.lost => member,
            Some(member) if member.boot == beat.boot => return Sender::Outcast,
            Some(member) if member.superseded.contains(&beat.boot) => return Sender::Rival,
            Some(member)
                if !member.lost
                    && self
                        .rivals
                        .get(&beat.node)
                        .is_some_and(|rival| rival.lost_to(&beat.boot)) =>
            {
                return Sender::Rival;
            }
            Some(_) | None => return Sender::Stranger,
        };
        let recovered = member.lease.standing(now, &settings) != Standing::Alive;
        member.lease.renew(now);
        member.rhythm.beat(now);
        if beat.draining {
            member.drains(&beat.node);
        }
        let held: HashSet<&AttemptKey> = beat.progress.iter().map(|(key, _)| key).collect();
        let mut missing = Vec::new();
        for (key, sent) in &mut member.sent {
            if held.contains(key) {
                *sent = Sent::Held { since: now, missed: 0 };
            } else if let Sent::Held { missed, .. } = sent {
                *missed += 1;
                if *missed >= MISSES {
                    missing.push(key.clone());
                }
            }
        }
        member.miss(&missing, now);
        let has_rival = self.rivals.get_mut(&beat.node).is_some_and(|rival| {
            rival.beats = rival.beats.saturating_add(1);
            rival.beats == PROOF
        });
        Sender::Known(Beat {
            recovered,
            missing,
            has_rival,
        })
    }

    /// A node has answered a hello that was sent at `asked`.
    pub(crate) fn greeted(
        &mut self,
        agent: AgentId,
        reply: &HelloReply,
        board: &Board,
        asked: Millis,
        now: Millis,
    ) -> Greeted {
        let running: HashSet<AttemptKey> = reply.running.iter().cloned().collect();
        let mut greeted = Greeted::default();
        let mut superseded = Vec::new();
        match self.members.get_mut(&reply.node) {
            Some(member) if member.boot == reply.boot && !member.lost => {
                member.reconnect(agent, &running, asked, now, &mut greeted);
                member.draining |= reply.draining;
                return greeted;
            }
            Some(member) if member.superseded.contains(&reply.boot) => {
                return Greeted {
                    superseded: true,
                    ..Greeted::default()
                };
            }
            // A killed process ends its session, or falls silent; one that does neither keeps its name and its work.
            Some(member)
                if member.boot != reply.boot
                    && !member.lost
                    && member.agent.is_some()
                    && member.lease.standing(now, &self.settings) == Standing::Alive =>
            {
                let fresh = || Rival {
                    boot: reply.boot.clone(),
                    beats: 0,
                };
                let rival = self.rivals.entry(reply.node.clone()).or_insert_with(fresh);
                if rival.boot != reply.boot {
                    *rival = fresh();
                }
                return Greeted {
                    contested: true,
                    ..Greeted::default()
                };
            }
            Some(member) => {
                superseded = std::mem::take(&mut member.superseded);
                if member.boot != reply.boot {
                    greeted.lost_boot = (!member.lost).then(|| member.lease.silence_ms(now));
                    superseded.push(member.boot.clone());
                    let surplus = superseded.len().saturating_sub(BOOTS);
                    superseded.drain(..surplus);
                }
            }
            None => {}
        }
        let mut member = Member {
            boot: reply.boot.clone(),
            version: reply.version.clone(),
            slots: reply.slots,
            places: reply.places.clone(),
            lease: NodeLease::new(now),
            lost: false,
            draining: reply.draining,
            protocol: reply.speaks.protocol.min(PROTOCOL),
            rhythm: Rhythm::default(),
            agent: Some(agent),
            sent: BTreeMap::new(),
            dropping: HashMap::new(),
            full_until: Millis(0),
            said: running,
            superseded,
        };
        let here = board.awaited().filter(|(_, awaited, _)| awaited.node == reply.node);
        for (key, _, _) in here {
            if member.said.contains(key) {
                member.sent.insert(key.clone(), Sent::Held { since: now, missed: 0 });
                continue;
            }
            // Never the same attempt to another process: the old one may still live, and no fence is between them.
            member.miss(std::slice::from_ref(key), now);
            if greeted.lost_boot.is_none() {
                greeted.missing.push(key.clone());
            }
        }
        self.absent.remove(&reply.node);
        self.rivals.remove(&reply.node);
        self.members.insert(reply.node.clone(), member);
        greeted
    }

    /// A recovered run awaits this attempt on a node, and this leader has never sent it there. True if the node
    /// doesn't hold it; false if it does, or isn't here to say.
    pub(crate) fn adopt(&mut self, node: &NodeName, key: &AttemptKey, now: Millis) -> bool {
        let Some(member) = self.members.get_mut(node) else {
            return false;
        };
        if member.lost || member.sent.contains_key(key) {
            return false;
        }
        if member.said.contains(key) {
            member.sent.insert(key.clone(), Sent::Held { since: now, missed: 0 });
            return false;
        }
        member.miss(std::slice::from_ref(key), now);
        true
    }

    /// Nodes whose lease has run out just now, with the milliseconds of silence, and nodes that the log says have work
    /// and that haven't appeared for as long as a lease. What each has is lost.
    pub(crate) fn lost(&mut self, board: &Board, now: Millis) -> Vec<(NodeName, u64)> {
        let mut lost = Vec::new();
        for (name, member) in &mut self.members {
            if !member.lost && member.lease.standing(now, &self.settings) == Standing::Lost {
                member.lost = true;
                member.sent.clear();
                member.dropping.clear();
                member.said.clear();
                lost.push((name.clone(), member.lease.silence_ms(now)));
            }
        }
        let load = board.load();
        self.members
            .retain(|name, member| !member.lost || load.contains_key(name) || member.lease.silence_ms(now) < FORGET_MS);
        let is_here = |name: &NodeName| self.members.get(name).is_some_and(|member| !member.lost);
        self.absent.retain(|name, _| load.contains_key(name) && !is_here(name));
        for name in load.keys().filter(|name| !is_here(name)) {
            let since = self.absent.entry(name.clone()).or_insert(now);
            let silence = now.since(*since);
            if silence >= self.settings.lease_ms {
                *since = now;
                lost.push((name.clone(), silence));
            }
        }
        lost
    }

    /// Forgets what was sent and is no longer asked for.
    pub(crate) fn prune(&mut self, board: &Board) {
        for (name, member) in &mut self.members {
            member.sent.retain(|key, _| board.awaits(key) == Some(name));
            member.dropping.retain(|key, _| board.is_drop(key));
        }
    }

    /// Nodes that may be given new work.
    pub(crate) fn seats(&self, now: Millis) -> Vec<Seat> {
        let free = |member: &Member| {
            member.agent.is_some()
                && !member.lost
                && !member.draining
                && member.full_until <= now
                && member.lease.standing(now, &self.settings) == Standing::Alive
        };
        let members = self.members.iter().filter(|(_, member)| free(member));
        members
            .map(|(name, member)| Seat {
                node: name.clone(),
                slots: member.slots,
                places: member.places.clone(),
            })
            .collect()
    }

    /// What the leader thinks of a node. One that can't be reached is suspect, whatever its lease says.
    pub(crate) fn standing(&self, member: &Member, now: Millis) -> Standing {
        match member.lease.standing(now, &self.settings) {
            _ if member.lost => Standing::Lost,
            Standing::Alive if member.agent.is_none() => Standing::Suspect,
            standing @ (Standing::Alive | Standing::Suspect | Standing::Lost) => standing,
        }
    }

    /// The nodes that are alive and stay: where the destinations of each are.
    pub(crate) fn alive(&self, now: Millis) -> Vec<&Places> {
        self.members
            .values()
            .filter(|member| !member.draining && self.standing(member, now) == Standing::Alive)
            .map(|member| &member.places)
            .collect()
    }

    /// The member, if it is still the boot that was talked to.
    pub(crate) fn same_boot(&mut self, node: &NodeName, boot: &str) -> Option<&mut Member> {
        self.members
            .get_mut(node)
            .filter(|member| member.boot == boot && !member.lost)
    }

    /// Whether a node is about to leave, and nothing is awaited of it any more.
    pub(crate) fn may_leave(&self, node: &NodeName, board: &Board) -> bool {
        self.members.get(node).is_some_and(|member| member.draining) && board.runs_at(node).is_empty()
    }

    /// Forgets a node that was about to leave and has gone. False if it wasn't, or something is still awaited of it.
    pub(crate) fn has_left(&mut self, node: &NodeName, board: &Board) -> bool {
        let left = self.may_leave(node, board);
        if left {
            self.members.remove(node);
        }
        left
    }

    /// The session with this agent has ended. True if that leaves a node without one.
    pub(crate) fn unreachable(&mut self, agent: AgentId) -> Option<NodeName> {
        let (name, member) = self
            .members
            .iter_mut()
            .find(|(_, member)| member.agent == Some(agent))?;
        member.agent = None;
        Some(name.clone())
    }
}

impl Rival {
    /// Whether it is this process, and the other has shown that it lives.
    fn lost_to(&self, boot: &str) -> bool {
        self.boot == boot && self.beats >= PROOF
    }
}

impl Member {
    /// The same process over a new session: what it was sent on the old one may be lost on the way.
    fn reconnect(
        &mut self,
        agent: AgentId,
        running: &HashSet<AttemptKey>,
        asked: Millis,
        now: Millis,
        greeted: &mut Greeted,
    ) {
        self.agent = Some(agent);
        self.lease.renew(now);
        self.dropping.clear();
        for (key, sent) in &mut self.sent {
            let known = running.contains(key);
            match sent {
                _ if known => *sent = Sent::Held { since: now, missed: 0 },
                // Accepted after the hello was asked: the answer may be older than the assignment.
                Sent::Held { since, .. } if *since < asked => greeted.missing.push(key.clone()),
                Sent::Held { .. } | Sent::OnTheWay => *sent = Sent::Again { at: now, refused: 0 },
                Sent::Again { .. } | Sent::Missing { .. } => {}
            }
        }
        self.miss(&greeted.missing, now);
    }

    /// It says that it is about to leave.
    pub(crate) fn drains(&mut self, node: &NodeName) {
        if !std::mem::replace(&mut self.draining, true) {
            tracing::info!(%node, "the node is about to leave and gets nothing new");
        }
    }

    /// The node doesn't hold these, and their run is being told.
    pub(crate) fn miss(&mut self, keys: &[AttemptKey], now: Millis) {
        let again = now.plus(TELL_AGAIN_MS);
        self.sent
            .extend(keys.iter().map(|key| (key.clone(), Sent::Missing { again })));
    }

    /// The node has no free slot: it gets nothing new for a while, and this attempt again then. Returns how often it
    /// has refused it.
    pub(crate) fn refuse(&mut self, key: &AttemptKey, refused: u32, now: Millis) -> u32 {
        self.full_until = now.plus(FULL_MS);
        self.sent.insert(
            key.clone(),
            Sent::Again {
                at: self.full_until,
                refused: refused + 1,
            },
        );
        refused + 1
    }
}
