//! `Dispatch`: which nodes there are, what each is to be sent, and what it is answered: [`Nodes`] and [`Board`] together.
//!
//! ```text
//!   heartbeat ──► answered at once: lease, or unknown, or what is unwanted
//!   agents, tick ──► Hello ──► greeted ─┐
//!   post ───────────────────────────────┼──► due: Assign, Drop, TellRun (grant, dropped, node lost)
//!   assigned, dropped ──────────────────┘
//! ```
//!
//! Every call says what happened; [`Dispatch::due`] then has what follows from it, in order. Whatever is sent to a node
//! comes back as [`Dispatch::greeted`], [`Dispatch::assigned`] or [`Dispatch::dropped`], with an answer or without one.

mod drain;
mod greet;
mod hand_over;
mod send;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Attempt, Millis, NodeName, RunId, Work};
use haulage_core::lease::{Settings, Standing};
use haulage_core::run::Input;
use haulage_proto::link::message::{Assignment, AttemptKey, Heartbeat, Hello, LeaseGrant};

use super::board::{Board, Post};
use super::nodes::{Member, Nodes, Sender, Summary};
use super::{AgentId, Carrier, assignment};
pub use drain::DrainError;

/// After how long something that failed on its way to a node is tried again.
const AGAIN_MS: u64 = 500;
/// After how long a node that could not be greeted for good is asked again.
const REFUSED_MS: u64 = 10_000;
/// How often a node may say that it has no free slot before the attempt goes to another.
const REFUSALS: u32 = 5;
/// Agents at once, those that haven't been greeted among them: more than any cluster has nodes.
const AGENTS_AT_MOST: usize = 2048;

/// What is to be done, in the order in which it comes.
#[derive(Debug, Clone)]
pub enum Action {
    /// Ask an agent which node it is. What comes of it goes to [`Dispatch::greeted`].
    Hello {
        /// Whom.
        agent: AgentId,
        /// When it is asked.
        asked: Millis,
        /// With what.
        hello: Hello,
    },
    /// Give an attempt to a node. What comes of it goes to [`Dispatch::assigned`].
    Assign {
        /// Whom.
        agent: AgentId,
        /// Which node that is.
        node: NodeName,
        /// Which start of it.
        boot: String,
        /// How often it has refused this attempt.
        refused: u32,
        /// The run's trace.
        trace: Arc<Carrier>,
        /// What.
        assignment: Arc<Assignment>,
    },
    /// Tell a node that nobody wants an attempt any more. What comes of it goes to [`Dispatch::dropped`].
    Drop {
        /// Whom.
        agent: AgentId,
        /// Which node that is.
        node: NodeName,
        /// Which start of it.
        boot: String,
        /// What.
        key: AttemptKey,
    },
    /// Tell a node that a run is over. Best effort: a node that misses it keeps a little memory until it is told about
    /// attempts that are unwanted.
    Release {
        /// Whom.
        agent: AgentId,
        /// What.
        run: RunId,
    },
    /// Tell a run something, if it has an actor: one that is being started finds out when it posts what it awaits.
    TellRun {
        /// Whom.
        run: RunId,
        /// What.
        news: ToRun,
    },
    /// A node refused this leader's epoch: see whether it still leads.
    LookAtEpoch,
    /// Say what is wrong with a node, unless much of the kind was said just now.
    Complain {
        /// Whom it is about.
        peer: String,
        /// What.
        what: String,
    },
}

/// What a run is told.
#[derive(Debug, Clone)]
pub enum ToRun {
    /// Something that happened.
    Input(Input),
    /// A node has a slot for some work of it.
    Grant {
        /// Which grant, so that the run can say that it has seen it.
        number: u64,
        /// The work.
        work: Work,
        /// The node.
        node: NodeName,
    },
    /// What running attempts have counted so far.
    Progress(Vec<Heard>),
}

/// How far a running attempt says that it is.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Of what.
    pub work: Work,
    /// Which try.
    pub attempt: Attempt,
    /// What stands of it.
    pub counts: Counts,
    /// Bytes of the source that it has read beyond that.
    pub ahead: u64,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone)]
pub struct Beat {
    /// What the node is told.
    pub grant: LeaseGrant,
    /// Whether to look for agents now ([`Dispatch::agents`]): there may be one to greet.
    pub look: bool,
}

/// Why a node was not greeted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ungreeted {
    /// It may answer the next time.
    Silent(String),
    /// It will say the same again.
    Unreadable(String),
}

/// A node, for a person.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// What the leader thinks of it.
    pub standing: Standing,
    /// Whether it is about to leave.
    pub draining: bool,
    /// How far apart its heartbeats came.
    pub rhythm: Summary,
    /// How many chunks it works on at once.
    pub slots: u32,
    /// Of its binary.
    pub version: String,
    /// When it was heard last, on the clock of the caller.
    pub last_heartbeat: Millis,
    /// Where its destinations are.
    pub places: BTreeMap<String, String>,
    /// What it has, in words.
    pub work: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Greeting {
    Asked,
    Again(Millis),
    Known(NodeName),
    /// It speaks no protocol that this release does; it ends by itself.
    Refused,
}

/// See the module.
#[derive(Debug)]
pub struct Dispatch {
    settings: Settings,
    nodes: Nodes,
    board: Board,
    agents: BTreeMap<AgentId, Greeting>,
    actions: Vec<Action>,
    // Nothing more is given away: another leader is to take over.
    hands_over: bool,
}

impl Dispatch {
    /// Of a leader that knows no node and no run yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            nodes: Nodes::new(settings),
            board: Board::default(),
            agents: BTreeMap::new(),
            actions: Vec::new(),
            hands_over: false,
        }
    }

    /// A heartbeat, received at `now`. `nobody_leads` says whether a run that has posted nothing is known to have no
    /// actor: what a node holds of such a run is unwanted. `complete` says whether every open run has been looked at:
    /// before that nobody knows what is awaited of a node that wants to leave.
    pub fn heartbeat(
        &mut self,
        heartbeat: Heartbeat,
        now: Millis,
        complete: bool,
        nobody_leads: impl Fn(&RunId) -> bool,
    ) -> Beat {
        let lease_ms = self.settings.lease_ms;
        let nothing = LeaseGrant {
            lease_ms: 0,
            unwanted: Vec::new(),
            unknown: false,
            name_taken: false,
            may_leave: false,
        };
        let beat = match self.nodes.heartbeat(&heartbeat, now) {
            Sender::Known(beat) => beat,
            // No lease before it is known what it holds; and none is taken from it either.
            Sender::Stranger => {
                return Beat {
                    grant: nothing,
                    look: true,
                };
            }
            Sender::Outcast => {
                self.greet_again(&heartbeat.node, now);
                return Beat {
                    grant: LeaseGrant {
                        lease_ms,
                        unknown: true,
                        ..nothing
                    },
                    look: true,
                };
            }
            Sender::Rival => {
                // Said with every heartbeat of one that doesn't listen.
                let what =
                    "a second process runs under this node's name and is told to end; give it another with --name";
                self.complain(&heartbeat.node, what);
                return Beat {
                    grant: LeaseGrant {
                        name_taken: true,
                        ..nothing
                    },
                    look: false,
                };
            }
        };
        let held = heartbeat.progress.iter().map(|(key, _)| key);
        let unwanted = held.filter(|key| self.is_unwanted(key, &heartbeat.node, &nobody_leads));
        let grant = LeaseGrant {
            lease_ms,
            unwanted: unwanted.cloned().collect(),
            may_leave: complete && self.nodes.may_leave(&heartbeat.node, &self.board),
            ..nothing
        };
        if beat.has_rival {
            tracing::warn!(node = %heartbeat.node, "two processes run under this node's name; the later one is refused");
        }
        if beat.recovered {
            tracing::info!(node = %heartbeat.node, "the node answers again");
        }
        for key in &beat.missing {
            self.tell_dropped(key, &heartbeat.node);
        }
        self.forward_progress(heartbeat);
        Beat { grant, look: false }
    }

    /// What a run has outstanding now.
    pub fn post(&mut self, post: Post, now: Millis) {
        let run = post.run.clone();
        if !self.board.post(post) {
            return;
        }
        let here = self.board.awaited().filter(|(key, _, _)| key.run == run);
        let here: Vec<(AttemptKey, NodeName)> = here
            .map(|(key, awaited, _)| (key.clone(), awaited.node.clone()))
            .collect();
        for (key, node) in here {
            if self.nodes.adopt(&node, &key, now) {
                self.tell_dropped(&key, &node);
            }
        }
    }

    /// A run is at rest: nodes may forget what they keep for it.
    pub fn at_rest(&mut self, run: &RunId, now: Millis) {
        self.board.remove(run);
        for agent in self.alive_agents(now) {
            self.actions.push(Action::Release {
                agent,
                run: run.clone(),
            });
        }
    }

    /// A run can't be recovered: nothing of it is wanted.
    pub fn forget(&mut self, run: &RunId) {
        self.board.remove(run);
    }

    /// Time has passed: whose lease has run out is lost.
    pub fn tick(&mut self, now: Millis) {
        for (node, silent_ms) in self.nodes.lost(&self.board, now) {
            self.lose(&node, silent_ms);
        }
    }

    /// Agents of nodes that are alive.
    pub fn alive_agents(&self, now: Millis) -> Vec<AgentId> {
        let alive = self
            .nodes
            .members
            .values()
            .filter(|member| self.nodes.standing(member, now) == Standing::Alive);
        alive
            .filter_map(|member| member.agent)
            .filter(|agent| self.agents.contains_key(agent))
            .collect()
    }

    /// How many nodes are alive.
    pub fn alive(&self, now: Millis) -> usize {
        self.nodes.alive(now).len()
    }

    /// Runs that no node which is alive may work on, each with what has to change.
    pub fn misplaced(&self, now: Millis) -> BTreeMap<RunId, String> {
        self.board.misplaced(&self.nodes.alive(now))
    }

    /// The nodes, by name.
    pub fn list(&self, now: Millis) -> Vec<NodeView> {
        let view = |(name, member): (&NodeName, &Member)| NodeView {
            name: name.clone(),
            standing: self.nodes.standing(member, now),
            draining: member.draining,
            rhythm: member.rhythm.summary(),
            slots: member.slots,
            version: member.version.clone(),
            last_heartbeat: member.lease.last_heartbeat(),
            places: member.places.clone(),
            work: self
                .board
                .awaited()
                .filter(|(_, awaited, _)| awaited.node == *name)
                .map(|(key, _, _)| format!("{} {}", key.run, key.work))
                .collect(),
        };
        self.nodes.members.iter().map(view).collect()
    }

    fn forward_progress(&mut self, heartbeat: Heartbeat) {
        let mut by_run: BTreeMap<RunId, Vec<Heard>> = BTreeMap::new();
        let ahead = heartbeat.ahead.into_iter().chain(std::iter::repeat(0));
        for ((key, counts), ahead) in heartbeat.progress.into_iter().zip(ahead) {
            if self.board.awaits(&key) == Some(&heartbeat.node) {
                by_run.entry(key.run).or_default().push(Heard {
                    work: key.work,
                    attempt: key.attempt,
                    counts,
                    ahead,
                });
            }
        }
        for (run, progress) in by_run {
            self.tell_run(run, ToRun::Progress(progress));
        }
    }

    /// Whether nobody asked for what a node holds.
    fn is_unwanted(&self, key: &AttemptKey, node: &NodeName, nobody_leads: impl Fn(&RunId) -> bool) -> bool {
        if self.board.knows(&key.run) {
            return self.board.awaits(key) != Some(node);
        }
        nobody_leads(&key.run)
    }

    fn lose(&mut self, node: &NodeName, silent_ms: u64) {
        let runs = self.board.runs_at(node);
        tracing::warn!(%node, silent_ms, runs = runs.len(), "the node is lost; what it had runs elsewhere");
        for run in runs {
            let node = node.clone();
            self.tell_run(run, ToRun::Input(Input::NodeLost { node, silent_ms }));
        }
    }

    fn tell_dropped(&mut self, key: &AttemptKey, node: &NodeName) {
        self.tell_run(key.run.clone(), ToRun::Input(assignment::dropped(key, node)));
    }

    fn complain(&mut self, peer: &dyn std::fmt::Display, what: impl Into<String>) {
        self.actions.push(Action::Complain {
            peer: peer.to_string(),
            what: what.into(),
        });
    }

    fn tell_run(&mut self, run: RunId, news: ToRun) {
        self.actions.push(Action::TellRun { run, news });
    }
}
