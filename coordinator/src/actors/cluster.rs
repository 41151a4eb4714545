//! `Cluster`: which nodes there are, and what is sent to them. A shell around [`Nodes`] and [`Board`]: it finds agents
//! in their process group, greets them, answers heartbeats, and after every message sends what is due.
//!
//! It never waits: every call to a node is made by a task that comes back with a message, so one silent node can't
//! hold up the heartbeat of another.

mod drain;
mod greet;
mod send;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Attempt, Millis, NodeName, RunId, Work};
use haulage_core::lease::Standing;
use haulage_core::run::Input;
use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::link::message::{AssignmentReply, AttemptKey, Heartbeat, HelloReply, LeaseGrant};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::board::{Board, Post};
use super::calls::CallError;
use super::nodes::{Member, Nodes, Sender, Summary};
use super::run::RunMessage;
use super::{Answer, Shared, assignment, tell};
use crate::clock;
use crate::complaints::Kind;
pub(crate) use drain::DrainError;

/// After how long something that failed on its way to a node is tried again.
const AGAIN_MS: u64 = 500;
/// After how long a node that could not be greeted for good is asked again.
const REFUSED_MS: u64 = 10_000;
/// How often a node may say that it has no free slot before the attempt goes to another.
const REFUSALS: u32 = 5;

/// See the module.
pub(crate) struct Cluster;

#[derive(RactorMessage)]
pub(crate) enum ClusterMessage {
    /// From the gateway.
    Heartbeat(Heartbeat, Answer),
    /// A hello that was sent at `asked` has been answered, or not.
    Greeted {
        agent: ActorId,
        asked: Millis,
        reply: Result<HelloReply, CallError>,
    },
    /// What an assignment was answered with; `None` if it wasn't.
    Assigned {
        node: NodeName,
        boot: String,
        key: AttemptKey,
        refused: u32,
        reply: Option<AssignmentReply>,
    },
    /// Whether a node has dropped an attempt.
    Dropped {
        node: NodeName,
        boot: String,
        key: AttemptKey,
        answered: bool,
    },
    /// What a run has outstanding now.
    Post(Post),
    /// A run is at rest: nodes may forget what they keep for it.
    AtRest(RunId),
    /// A run can't be recovered: nothing of it is wanted.
    Forget(RunId),
    /// Every open run has been looked at: what no run asked for by now is unwanted.
    Recovered,
    /// A user wants a node to leave.
    Drain(NodeName, RpcReplyPort<Result<(), DrainError>>),
    /// The node has taken note of that.
    Draining { node: NodeName, boot: String },
    /// Time has passed.
    Tick,
    /// The nodes, by name.
    List(RpcReplyPort<Vec<NodeView>>),
    /// Agents of nodes that are alive.
    Agents(RpcReplyPort<Vec<ActorRef<AgentMessage>>>),
}

/// A node, for a person.
#[derive(Debug, Clone)]
pub(crate) struct NodeView {
    pub(crate) name: NodeName,
    pub(crate) standing: Standing,
    pub(crate) draining: bool,
    pub(crate) rhythm: Summary,
    pub(crate) slots: u32,
    pub(crate) version: String,
    pub(crate) last_heartbeat: Millis,
    pub(crate) places: BTreeMap<String, String>,
    pub(crate) work: Vec<String>,
}

struct Agent {
    actor: ActorRef<AgentMessage>,
    greeting: Greeting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Greeting {
    Asked,
    Again(Millis),
    Known(NodeName),
    /// It speaks no protocol that this release does; it ends by itself.
    Refused,
}

pub(crate) struct ClusterState {
    shared: Arc<Shared>,
    myself: ActorRef<ClusterMessage>,
    nodes: Nodes,
    board: Board,
    agents: HashMap<ActorId, Agent>,
}

impl Actor for Cluster {
    type Msg = ClusterMessage;
    type State = ClusterState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        shared: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        ractor::pg::monitor(AGENTS.to_owned(), myself.get_cell());
        let tick = Duration::from_millis((shared.settings.lease_ms / 50).clamp(10, 100));
        drop(myself.send_interval(tick, || ClusterMessage::Tick));
        let nodes = Nodes::new(shared.settings);
        Ok(ClusterState {
            shared,
            myself,
            nodes,
            board: Board::default(),
            agents: HashMap::new(),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ClusterMessage::Heartbeat(heartbeat, answer) => state.heartbeat(heartbeat, answer),
            ClusterMessage::Greeted { agent, asked, reply } => state.greeted(agent, asked, reply),
            ClusterMessage::Assigned {
                node,
                boot,
                key,
                refused,
                reply,
            } => {
                state.assigned(&node, &boot, &key, refused, reply);
            }
            ClusterMessage::Dropped {
                node,
                boot,
                key,
                answered,
            } => state.dropped(&node, &boot, &key, answered),
            ClusterMessage::Post(post) => state.post(post),
            ClusterMessage::AtRest(run) => {
                state.board.remove(&run);
                state.tell_at_rest(&run);
            }
            ClusterMessage::Forget(run) => state.board.remove(&run),
            ClusterMessage::Recovered => state.shared.table.set_complete(),
            ClusterMessage::Drain(node, port) => state.drain(node, port),
            ClusterMessage::Draining { node, boot } => state.draining(&node, &boot),
            ClusterMessage::Tick => state.tick(),
            ClusterMessage::List(port) => drop(port.send(state.list())),
            ClusterMessage::Agents(port) => drop(port.send(state.alive_agents())),
        }
        state.pump();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Other events would be about children, and there are none: agents are monitored, never linked.
        if let SupervisionEvent::ProcessGroupChanged(_) = event {
            state.look_for_agents();
        }
        Ok(())
    }
}

impl ClusterState {
    fn heartbeat(&mut self, heartbeat: Heartbeat, answer: Answer) {
        let now = clock::steady();
        let lease_ms = self.shared.settings.lease_ms;
        let beat = match self.nodes.heartbeat(&heartbeat, now) {
            Sender::Known(beat) => beat,
            Sender::Stranger => {
                // No lease before it is known what it holds; and none is taken from it either.
                answer.send(&LeaseGrant {
                    lease_ms: 0,
                    unwanted: Vec::new(),
                    unknown: false,
                    name_taken: false,
                    may_leave: false,
                });
                return self.look_for_agents();
            }
            Sender::Outcast => {
                answer.send(&LeaseGrant {
                    lease_ms,
                    unwanted: Vec::new(),
                    unknown: true,
                    name_taken: false,
                    may_leave: false,
                });
                return self.greet_again(&heartbeat.node);
            }
            Sender::Rival => {
                // Said with every heartbeat of one that doesn't listen.
                let what =
                    "a second process runs under this node's name and is told to end; give it another with --name";
                self.shared.complaints.about(Kind::Node, &heartbeat.node, &what);
                return answer.send(&LeaseGrant {
                    lease_ms: 0,
                    unwanted: Vec::new(),
                    unknown: false,
                    name_taken: true,
                    may_leave: false,
                });
            }
        };
        let unwanted = heartbeat
            .progress
            .iter()
            .map(|(key, _)| key)
            .filter(|key| self.is_unwanted(key, &heartbeat.node));
        answer.send(&LeaseGrant {
            lease_ms,
            unwanted: unwanted.cloned().collect(),
            unknown: false,
            name_taken: false,
            // While runs are being recovered, nobody knows what they await.
            may_leave: self.shared.table.is_complete() && self.nodes.may_leave(&heartbeat.node, &self.board),
        });
        if beat.has_rival {
            tracing::warn!(node = %heartbeat.node, "two processes run under this node's name; the later one is refused");
        }
        if beat.recovered {
            tracing::info!(node = %heartbeat.node, "the node answers again");
        }
        for key in &beat.missing {
            self.tell_run(&key.run, RunMessage::Input(assignment::dropped(key, &heartbeat.node)));
        }
        self.forward_progress(heartbeat);
    }

    fn forward_progress(&self, heartbeat: Heartbeat) {
        let mut by_run: BTreeMap<RunId, Vec<(Work, Attempt, Counts)>> = BTreeMap::new();
        for (key, counts) in heartbeat.progress {
            if self.board.awaits(&key) == Some(&heartbeat.node) {
                by_run.entry(key.run).or_default().push((key.work, key.attempt, counts));
            }
        }
        for (run, progress) in by_run {
            self.tell_run(&run, RunMessage::Progress(progress));
        }
    }

    /// Whether nobody asked for what a node holds. While runs are still being recovered, nobody knows about theirs.
    fn is_unwanted(&self, key: &AttemptKey, node: &NodeName) -> bool {
        if self.board.knows(&key.run) {
            return self.board.awaits(key) != Some(node);
        }
        // A run that is started again hasn't posted yet, and will.
        self.shared.table.is_complete() && self.shared.table.actor(&key.run).is_none()
    }

    fn post(&mut self, post: Post) {
        let run = post.run.clone();
        if !self.board.post(post) {
            return;
        }
        let now = clock::steady();
        let here = self.board.awaited().filter(|(key, _, _)| key.run == run);
        let here: Vec<(AttemptKey, NodeName)> = here
            .map(|(key, awaited, _)| (key.clone(), awaited.node.clone()))
            .collect();
        for (key, node) in here {
            if self.nodes.adopt(&node, &key, now) {
                self.tell_run(&run, RunMessage::Input(assignment::dropped(&key, &node)));
            }
        }
    }

    fn tick(&mut self) {
        let now = clock::steady();
        for (node, silent_ms) in self.nodes.lost(&self.board, now) {
            self.lose(&node, silent_ms);
        }
        self.look_for_agents();
    }

    fn lose(&self, node: &NodeName, silent_ms: u64) {
        let runs = self.board.runs_at(node);
        tracing::warn!(%node, silent_ms, runs = runs.len(), "the node is lost; what it had runs elsewhere");
        for run in runs {
            self.tell_run(
                &run,
                RunMessage::Input(Input::NodeLost {
                    node: node.clone(),
                    silent_ms,
                }),
            );
        }
    }

    fn tell_run(&self, run: &RunId, message: RunMessage) {
        tell_run(&self.shared, run, message);
    }

    fn alive_agents(&self) -> Vec<ActorRef<AgentMessage>> {
        let now = clock::steady();
        let alive = self
            .nodes
            .members
            .values()
            .filter(|member| self.nodes.standing(member, now) == Standing::Alive);
        alive
            .filter_map(|member| Some(self.agents.get(&member.agent?)?.actor.clone()))
            .collect()
    }

    fn list(&self) -> Vec<NodeView> {
        let now = clock::steady();
        let view = |(name, member): (&NodeName, &Member)| NodeView {
            name: name.clone(),
            standing: self.nodes.standing(member, now),
            draining: member.draining,
            rhythm: member.rhythm.summary(),
            slots: member.slots,
            version: member.version.clone(),
            last_heartbeat: clock::wall_of(member.lease.last_heartbeat()),
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
}

/// A run whose actor is being started misses it, and finds out when it posts what it awaits.
fn tell_run(shared: &Shared, run: &RunId, message: RunMessage) {
    if let Some(actor) = shared.table.actor(run) {
        tell(&actor, message);
    }
}
