//! A leader for tests of the node: says hello, gives assignments, answers heartbeats and hears what is done, as the
//! coordinator's actors do, in the same process. It answers only its own node: process groups are process-wide, and
//! the tests of one file run side by side.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, Epoch, LoadName, Millis, NodeName, RunId, StepId, StepKind, Work};
use haulage_core::run::Judged;
use haulage_core::submission::Submission;
use haulage_node::{Node, NodeConfig};
use haulage_proto::link::actor::{AgentMessage, GATEWAYS, GatewayMessage};
use haulage_proto::link::message::{
    Assignment, AssignmentReply, AttemptKey, Done, DoneReply, Heartbeat, Hello, HelloReply, LeaseGrant, Leave, Outcome,
    Task,
};
use haulage_proto::link::protocol::Speaks;
use haulage_proto::link::wire::{self, Meta, Wire};
use haulage_test_support::wait_for;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the gateway has heard, and how it answers.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) beats: u32,
    /// What the node said it holds, in its last heartbeat.
    pub(crate) holds: Vec<AttemptKey>,
    /// And of each, how many bytes it has read and not committed.
    pub(crate) ahead: Vec<u64>,
    pub(crate) done: Vec<Done>,
    /// It says that it is about to leave.
    pub(crate) draining: bool,
    /// Heartbeats are not answered.
    pub(crate) silent: bool,
    /// So many results are not acknowledged.
    pub(crate) refuse: u32,
}

struct Gateway;

impl Actor for Gateway {
    type Msg = GatewayMessage;
    type State = (NodeName, Arc<Mutex<Heard>>);
    type Arguments = Self::State;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, state: Self::State) -> Result<Self::State, ActorProcessingErr> {
        ractor::pg::join(GATEWAYS.to_owned(), vec![me.get_cell()]);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: GatewayMessage,
        (node, heard): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let mut heard = heard.lock().expect("no test panics with it");
        match message {
            GatewayMessage::Heartbeat(wire, reply) => {
                let (_, beat): (_, Heartbeat) = wire::decode(&wire)?;
                if beat.node == *node {
                    heard.beats += 1;
                    heard.draining = beat.draining;
                    // As the coordinator: once it knows, and nothing is held any more.
                    let may_leave = beat.draining && beat.progress.is_empty();
                    heard.ahead = beat.ahead;
                    heard.holds = beat.progress.into_iter().map(|(key, _)| key).collect();
                    if !heard.silent {
                        answer(
                            reply,
                            &LeaseGrant {
                                lease_ms: LEASE.0,
                                unwanted: Vec::new(),
                                unknown: false,
                                name_taken: false,
                                may_leave,
                            },
                        )?;
                    }
                }
            }
            GatewayMessage::Done(wire, reply) => {
                let (_, done): (_, Done) = wire::decode(&wire)?;
                if done.node == *node {
                    heard.done.push(done);
                    let acknowledged = heard.refuse == 0;
                    heard.refuse = heard.refuse.saturating_sub(1);
                    answer(reply, &DoneReply { acknowledged })?;
                }
            }
        }
        Ok(())
    }
}

fn answer<T: Serialize>(reply: RpcReplyPort<Wire>, body: &T) -> Result<(), ActorProcessingErr> {
    drop(reply.send(wire::encode(
        &Meta {
            epoch: EPOCH,
            ..Meta::default()
        },
        body,
    )?));
    Ok(())
}

const EPOCH: Epoch = Epoch(7);
/// Lease and heartbeat, in milliseconds.
const LEASE: (u64, u64) = (1_000, 100);

/// See the module.
pub(crate) struct Leader {
    pub(crate) node: Node,
    pub(crate) heard: Arc<Mutex<Heard>>,
    run: RunId,
    submission: Submission,
}

impl Leader {
    /// Starts the node, with a SQLite warehouse and checkpoints in `folder`, and greets it.
    pub(crate) async fn start(name: &str, folder: &Path, pipeline: &str, fault: &str) -> Self {
        let mut config = NodeConfig::new(name, folder.join("checkpoints").to_str().expect("UTF-8"));
        config.slots = 2;
        config
            .destinations
            .insert("warehouse".into(), format!("sqlite:{}", warehouse(folder)));
        config.fault = haulage_node::fault::Fault::parse(fault).expect("a fault");
        Self::start_with(config, folder, pipeline).await
    }

    /// Starts a node with these settings, and greets it.
    pub(crate) async fn start_with(config: NodeConfig, folder: &Path, pipeline: &str) -> Self {
        let run = RunId::new(format!("p-{}", config.name));
        let heard = Arc::new(Mutex::new(Heard::default()));
        Actor::spawn(None, Gateway, (config.name.clone(), heard.clone()))
            .await
            .expect("the gateway starts");
        let node = haulage_node::start(config).await.expect("the node starts");
        let submission = Submission {
            pipeline: "p".into(),
            definition: pipeline.into(),
            file: "p.yaml".into(),
            base: folder.to_str().expect("UTF-8").into(),
            params: BTreeMap::new(),
            loads: Vec::new(),
            places: BTreeMap::new(),
            incremental: false,
            traceparent: String::new(),
            replay: None,
        };
        let leader = Self {
            node,
            heard,
            run,
            submission,
        };
        leader.hello(EPOCH).await.expect("the node answers");
        leader
    }

    pub(crate) async fn hello(&self, epoch: Epoch) -> Option<HelloReply> {
        self.hello_from(epoch, Speaks::ours()).await
    }

    /// A hello of a coordinator of any release.
    pub(crate) async fn hello_from(&self, epoch: Epoch, speaks: Speaks) -> Option<HelloReply> {
        let hello = Hello {
            lease_ms: LEASE.0,
            heartbeat_ms: LEASE.1,
            speaks,
        };
        self.call(epoch, &hello, AgentMessage::Hello).await
    }

    /// Asks the node to leave.
    pub(crate) async fn leave(&self) {
        self.call::<()>(EPOCH, &Leave {}, AgentMessage::Leave)
            .await
            .expect("the node answers");
    }

    pub(crate) fn key(&self, work: &Work, attempt: u32) -> AttemptKey {
        AttemptKey {
            run: self.run.clone(),
            work: work.clone(),
            attempt: Attempt(attempt),
        }
    }

    pub(crate) async fn assign(&self, epoch: Epoch, work: &Work, attempt: u32, task: Task) -> AssignmentReply {
        let key = self.key(work, attempt);
        let assignment = Assignment {
            key,
            submission: self.submission.clone(),
            submitted_at: Millis(1_700_000_000_000),
            replaces: None,
            columns: Default::default(),
            task,
        };
        self.call(epoch, &assignment, AgentMessage::Assign)
            .await
            .expect("an assignment is answered")
    }

    /// Assigns it and waits for its end.
    pub(crate) async fn perform(&self, work: Work, task: Task) -> Result<Outcome, Failure> {
        self.done(work, 1, task).await.result
    }

    /// Assigns this attempt and waits for what the node says at its end.
    pub(crate) async fn done(&self, work: Work, attempt: u32, task: Task) -> Done {
        assert_eq!(
            self.assign(EPOCH, &work, attempt, task).await,
            AssignmentReply::Accepted,
            "{work}"
        );
        let key = self.key(&work, attempt);
        let heard = self.heard.clone();
        let ended = move || {
            heard
                .lock()
                .expect("sound")
                .done
                .iter()
                .find(|done| done.key == key)
                .cloned()
        };
        wait_for("the end of the attempt", ended).await
    }

    /// One step of the load `out`.
    pub(crate) async fn step(&self, kind: StepKind, rows: u64, segments: u64) -> Result<Outcome, Failure> {
        self.step_of("out", kind, rows, segments).await
    }

    /// One step of a load.
    pub(crate) async fn step_of(
        &self,
        load: &str,
        kind: StepKind,
        rows: u64,
        segments: u64,
    ) -> Result<Outcome, Failure> {
        let load = LoadName::from(load);
        let task = Task::Step {
            expected_rows: rows,
            expected_segments: segments,
            judged: Some(Judged::default()),
            advances: Vec::new(),
            load: load.clone(),
            round: 0,
        };
        self.perform(Work::Step(StepId { kind, load }), task).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        epoch: Epoch,
        body: &impl Serialize,
        call: fn(Wire, RpcReplyPort<Wire>) -> AgentMessage,
    ) -> Option<T> {
        let message = wire::encode(
            &Meta {
                epoch,
                ..Meta::default()
            },
            body,
        )
        .expect("encodes");
        match self
            .node
            .agent()
            .call(|reply| call(message, reply), Some(PATIENCE))
            .await
        {
            Ok(CallResult::Success(answer)) => Some(wire::decode(&answer).expect("decodes").1),
            _ => None,
        }
    }
}

/// The warehouse of a test.
pub(crate) fn warehouse(folder: &Path) -> String {
    folder.join("warehouse.db").to_str().expect("UTF-8").to_owned()
}
