//! `Cluster`: the shell around [`Dispatch`]. It finds agents in their process group, tells it what nodes and runs say,
//! and after every message carries out what is due.
//!
//! It never waits: every call to a node is made by a task that comes back with a message, so one silent node can't
//! hold up the heartbeat of another.

mod drain;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::{Millis, NodeName, RunId};
use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::link::message::{
    Assignment, AssignmentReply, AttemptKey, Drop as DropMessage, Heartbeat, Hello, HelloReply,
};
use haulage_proto::link::wire::Meta;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::calls::{CallError, call};
use super::run::RunMessage;
use super::{Answer, Shared, tell};
use crate::clock;
use crate::complaints::Kind;
use crate::deciding::{Action, AgentId, Carrier, Dispatch, DrainError, NodeView, Post, ToRun, Ungreeted};

/// See the module.
pub(crate) struct Cluster;

#[derive(RactorMessage)]
pub(crate) enum ClusterMessage {
    /// From the gateway.
    Heartbeat(Heartbeat, Answer),
    /// A hello that was sent at `asked` has been answered, or not.
    Greeted {
        agent: AgentId,
        asked: Millis,
        reply: Result<HelloReply, Ungreeted>,
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
    /// Give nothing more away, and answer when all that has been has reached its node.
    HandOver(RpcReplyPort<()>),
    /// Time has passed.
    Tick,
    /// The nodes, by name.
    List(RpcReplyPort<Vec<NodeView>>),
    /// Agents of nodes that are alive.
    Agents(RpcReplyPort<Vec<ActorRef<AgentMessage>>>),
}

pub(crate) struct ClusterState {
    shared: Arc<Shared>,
    myself: ActorRef<ClusterMessage>,
    dispatch: Dispatch,
    // Who waits until everything that was given away has reached its node.
    hands_over: Option<RpcReplyPort<()>>,
    // How to reach those that were here at the last look.
    agents: HashMap<AgentId, ActorRef<AgentMessage>>,
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
        let dispatch = Dispatch::new(shared.settings);
        Ok(ClusterState {
            shared,
            myself,
            dispatch,
            hands_over: None,
            agents: HashMap::new(),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let now = clock::steady();
        match message {
            ClusterMessage::Heartbeat(heartbeat, answer) => state.heartbeat(heartbeat, answer),
            ClusterMessage::Greeted { agent, asked, reply } => state.dispatch.greeted(agent, asked, reply, now),
            ClusterMessage::Assigned {
                node,
                boot,
                key,
                refused,
                reply,
            } => state.dispatch.assigned(&node, &boot, &key, refused, reply, now),
            ClusterMessage::Dropped {
                node,
                boot,
                key,
                answered,
            } => state.dispatch.dropped(&node, &boot, &key, answered, now),
            ClusterMessage::Post(post) => state.dispatch.post(post, now),
            ClusterMessage::AtRest(run) => state.dispatch.at_rest(&run, now),
            ClusterMessage::Forget(run) => state.dispatch.forget(&run),
            ClusterMessage::Recovered => state.shared.table.set_complete(),
            ClusterMessage::Drain(node, port) => state.drain(node, port),
            ClusterMessage::Draining { node, boot } => state.dispatch.draining(&node, &boot),
            ClusterMessage::HandOver(port) => {
                state.dispatch.hand_over();
                state.hands_over = Some(port);
            }
            ClusterMessage::Tick => {
                state.dispatch.tick(now);
                state.look_for_agents();
            }
            ClusterMessage::List(port) => drop(port.send(state.list(now))),
            ClusterMessage::Agents(port) => drop(port.send(state.alive_agents(now))),
        }
        state.carry_out_due();
        state.show();
        if state.hands_over.is_some()
            && state.dispatch.has_settled()
            && let Some(port) = state.hands_over.take()
        {
            drop(port.send(()));
        }
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
            state.carry_out_due();
        }
        Ok(())
    }
}

impl ClusterState {
    fn heartbeat(&mut self, heartbeat: Heartbeat, answer: Answer) {
        let table = &self.shared.table;
        // While runs are still being recovered, nobody knows about theirs.
        let complete = table.is_complete();
        let nobody_leads = |run: &RunId| complete && table.actor(run).is_none();
        let beat = self
            .dispatch
            .heartbeat(heartbeat, clock::steady(), complete, nobody_leads);
        answer.send(&beat.grant);
        if beat.look {
            self.look_for_agents();
        }
    }

    fn look_for_agents(&mut self) {
        let members = ractor::pg::get_members(&AGENTS.to_owned());
        self.agents = members
            .into_iter()
            .map(|cell| (agent_id(cell.get_id()), cell.into()))
            .collect();
        let present: Vec<AgentId> = self.agents.keys().copied().collect();
        self.dispatch.agents(&present, clock::steady());
    }

    /// A leader whose lease may have run out says nothing to nodes; what is due stays due until a renewal succeeds.
    fn carry_out_due(&mut self) {
        if !self.shared.leadership.holds() {
            return;
        }
        for action in self.dispatch.due(clock::steady(), clock::wall()) {
            self.carry_out(action);
        }
    }

    fn carry_out(&self, action: Action) {
        match action {
            Action::Hello { agent, asked, hello } => self.greet(agent, asked, hello),
            Action::Assign {
                agent,
                node,
                boot,
                refused,
                trace,
                assignment,
            } => self.assign(agent, (node, boot, refused), &trace, assignment),
            Action::Drop { agent, node, boot, key } => self.drop_attempt(agent, node, boot, key),
            Action::Release { agent, run } => self.release(agent, run),
            Action::TellRun { run, news } => {
                // A run whose actor is being started misses it, and finds out when it posts what it awaits.
                if let Some(actor) = self.shared.table.actor(&run) {
                    tell(&actor, news.into());
                }
            }
            Action::Complain { peer, what } => self.shared.complaints.about(Kind::Node, &peer, &what),
            Action::LookAtEpoch => {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move { shared.leadership.look(shared.ledger.as_ref()).await });
            }
        }
    }

    fn greet(&self, agent: AgentId, asked: Millis, hello: Hello) {
        let Some(actor) = self.agents.get(&agent).cloned() else {
            return;
        };
        let (myself, meta) = (self.myself.clone(), self.shared.meta());
        tokio::spawn(async move {
            let reply = call(&actor, &meta, &hello, AgentMessage::Hello).await;
            let reply = reply.map_err(|error| match error {
                CallError::Silent => Ungreeted::Silent(error.to_string()),
                CallError::Unreadable(_) => Ungreeted::Unreadable(error.to_string()),
            });
            tell(&myself, ClusterMessage::Greeted { agent, asked, reply });
        });
    }

    fn assign(
        &self,
        agent: AgentId,
        (node, boot, refused): (NodeName, String, u32),
        trace: &Carrier,
        assignment: Arc<Assignment>,
    ) {
        let Some(actor) = self.agents.get(&agent).cloned() else {
            return;
        };
        let meta = Meta {
            epoch: self.shared.epoch(),
            trace: trace.clone(),
        };
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let reply = call(&actor, &meta, assignment.as_ref(), AgentMessage::Assign)
                .await
                .ok();
            let assigned = ClusterMessage::Assigned {
                node,
                boot,
                key: assignment.key.clone(),
                refused,
                reply,
            };
            tell(&myself, assigned);
        });
    }

    fn drop_attempt(&self, agent: AgentId, node: NodeName, boot: String, key: AttemptKey) {
        let Some(actor) = self.agents.get(&agent).cloned() else {
            return;
        };
        let (myself, meta) = (self.myself.clone(), self.shared.meta());
        tokio::spawn(async move {
            let body = DropMessage {
                attempts: vec![key.clone()],
                runs: Vec::new(),
            };
            let answered = call::<_, ()>(&actor, &meta, &body, AgentMessage::Drop).await.is_ok();
            let dropped = ClusterMessage::Dropped {
                node,
                boot,
                key,
                answered,
            };
            tell(&myself, dropped);
        });
    }

    fn release(&self, agent: AgentId, run: RunId) {
        let Some(actor) = self.agents.get(&agent).cloned() else {
            return;
        };
        let meta = self.shared.meta();
        tokio::spawn(async move {
            let body = DropMessage {
                attempts: Vec::new(),
                runs: vec![run],
            };
            drop(call::<_, ()>(&actor, &meta, &body, AgentMessage::Drop).await);
        });
    }

    /// Tells those who wait for nodes how things stand.
    fn show(&self) {
        let now = clock::steady();
        let alive = self.dispatch.alive(now);
        let misplaced = self.dispatch.misplaced(now);
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

    fn alive_agents(&self, now: Millis) -> Vec<ActorRef<AgentMessage>> {
        let alive = self.dispatch.alive_agents(now).into_iter();
        alive.filter_map(|agent| self.agents.get(&agent).cloned()).collect()
    }

    fn list(&self, now: Millis) -> Vec<NodeView> {
        let mut nodes = self.dispatch.list(now);
        for node in &mut nodes {
            node.last_heartbeat = clock::wall_of(node.last_heartbeat);
        }
        nodes
    }
}

fn agent_id(actor: ActorId) -> AgentId {
    match actor {
        ActorId::Local(number) => AgentId { session: None, number },
        ActorId::Remote { node_id, pid } => AgentId {
            session: Some(node_id),
            number: pid,
        },
    }
}

impl From<ToRun> for RunMessage {
    fn from(news: ToRun) -> Self {
        match news {
            ToRun::Input(input) => Self::Input(input),
            ToRun::Grant { number, work, node } => Self::Grant { number, work, node },
            ToRun::Progress(progress) => Self::Progress(progress),
        }
    }
}
