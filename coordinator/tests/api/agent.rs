//! A node as the coordinator sees one: an actor in the agents' process group that answers, sends heartbeats and repeats
//! what has ended until it is acknowledged. It touches no data; what each piece of work brings is scripted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use haulage_core::checkpoint::{ChunkReport, ChunkSpec, Counts, LoadCounts, Position};
use haulage_core::event::{PlannedStage, StepReport};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, Epoch, LoadName, NodeName, RunId, StageId, StepKind, Work};
use haulage_core::quarantine::Reject;
use haulage_proto::link::actor::{AGENTS, AgentMessage, GATEWAYS, GatewayMessage};
use haulage_proto::link::message::{
    Assignment, AssignmentReply, AttemptKey, Done, DoneReply, Drop as DropMessage, FetchRejects, Heartbeat, Hello,
    HelloReply, LeaseGrant, Leave, Outcome, RejectsPage, Watermarks, WatermarksReply,
};
use haulage_proto::link::protocol::Speaks;
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

const TIMEOUT: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// What becomes of an assignment.
pub(crate) enum Act {
    /// It ends at once.
    End(Result<Outcome, Failure>),
    /// It goes on until the test ends it.
    Hold,
}

type Script = Box<dyn Fn(&Assignment) -> Act + Send + Sync>;

/// A node under a test's control. Dropping it kills it.
pub(crate) struct FakeNode {
    inner: Arc<Inner>,
    actor: ActorRef<AgentMessage>,
    heart: tokio::task::JoinHandle<()>,
}

struct Inner {
    name: NodeName,
    boot: String,
    slots: u32,
    places: BTreeMap<String, String>,
    script: Script,
    /// How often every outcome is told, acknowledged or not.
    repeats: u32,
    older: bool,
    silent: AtomicBool,
    /// Pages of rejects that it was asked for and did not bring.
    pages_owed: AtomicU64,
    dead: AtomicBool,
    /// It was asked to leave: it takes nothing more.
    leaving: AtomicBool,
    speaks: Speaks,
    epoch: AtomicU64,
    beat: Notify,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    held: BTreeMap<AttemptKey, Counts>,
    assigned: Vec<AttemptKey>,
    dropped: Vec<AttemptKey>,
    most_chunks_at_once: usize,
    heartbeat: Option<Duration>,
}

/// How a fake node is to behave.
pub(crate) struct Manner {
    pub(crate) boot: &'static str,
    pub(crate) slots: u32,
    pub(crate) places: BTreeMap<String, String>,
    pub(crate) repeats: u32,
    /// Answers as a release before this one, where it may.
    pub(crate) older: bool,
    pub(crate) speaks: Speaks,
    pub(crate) script: Script,
}

impl Manner {
    /// Ends everything at once, with `chunks` chunks of ten rows.
    pub(crate) fn quick(chunks: u32) -> Self {
        Self::scripted(move |assignment| Act::End(Ok(outcome(assignment, chunks))))
    }

    pub(crate) fn scripted(script: impl Fn(&Assignment) -> Act + Send + Sync + 'static) -> Self {
        Self {
            boot: "1",
            slots: 4,
            places: BTreeMap::new(),
            repeats: 1,
            older: false,
            speaks: Speaks::ours(),
            script: Box::new(script),
        }
    }

    pub(crate) fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    pub(crate) fn at(mut self, destination: &str, place: &str) -> Self {
        self.places.insert(destination.to_owned(), place.to_owned());
        self
    }

    pub(crate) fn boot(mut self, boot: &'static str) -> Self {
        self.boot = boot;
        self
    }

    pub(crate) fn speaks(mut self, speaks: Speaks) -> Self {
        self.speaks = speaks;
        self
    }

    pub(crate) fn older(mut self) -> Self {
        self.older = true;
        self
    }

    pub(crate) fn repeats(mut self, repeats: u32) -> Self {
        self.repeats = repeats;
        self
    }
}

impl FakeNode {
    pub(crate) async fn start(name: &str, manner: Manner) -> Self {
        let inner = Arc::new(Inner {
            name: NodeName::from(name),
            boot: manner.boot.to_owned(),
            slots: manner.slots,
            places: manner.places,
            script: manner.script,
            repeats: manner.repeats,
            older: manner.older,
            silent: AtomicBool::new(false),
            pages_owed: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            speaks: manner.speaks,
            epoch: AtomicU64::new(0),
            beat: Notify::new(),
            book: Mutex::default(),
        });
        let (actor, _) = Actor::spawn(None, FakeAgent, Arc::clone(&inner))
            .await
            .expect("spawn a fake agent");
        let heart = tokio::spawn(heart(Arc::clone(&inner)));
        Self { inner, actor, heart }
    }

    /// Stops talking, but stays attached: like a process that is paused.
    pub(crate) fn pause(&self) {
        self.inner.silent.store(true, Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.inner.silent.store(false, Ordering::SeqCst);
    }

    /// Pages of rejects that it was asked for while it was paused.
    pub(crate) fn pages_owed(&self) -> u64 {
        self.inner.pages_owed.load(Ordering::SeqCst)
    }

    /// Attempts in the order in which they came.
    pub(crate) fn assigned(&self) -> Vec<AttemptKey> {
        self.inner.book().assigned.clone()
    }

    pub(crate) fn works(&self) -> Vec<String> {
        self.assigned().iter().map(|key| key.work.to_string()).collect()
    }

    pub(crate) fn dropped(&self) -> Vec<AttemptKey> {
        self.inner.book().dropped.clone()
    }

    pub(crate) fn held(&self) -> Vec<AttemptKey> {
        self.inner.book().held.keys().cloned().collect()
    }

    /// The chunks that it holds.
    pub(crate) fn chunks(&self) -> Vec<AttemptKey> {
        self.held()
            .into_iter()
            .filter(|key| matches!(key.work, Work::Chunk(_)))
            .collect()
    }

    /// The most chunks it has ever held at the same time.
    pub(crate) fn most_chunks_at_once(&self) -> usize {
        self.inner.book().most_chunks_at_once
    }

    /// Sets what a held attempt has counted so far.
    pub(crate) fn count(&self, key: &AttemptKey, read: u64) {
        self.inner.book().held.insert(key.clone(), counts(read));
    }

    /// Loses its session and comes back with a new one: the same process, another actor at the coordinator.
    pub(crate) async fn reconnect(mut self) -> Self {
        self.actor.stop_and_wait(None, None).await.expect("stops");
        let (actor, _) = Actor::spawn(None, FakeAgent, Arc::clone(&self.inner))
            .await
            .expect("spawn a fake agent");
        self.actor = actor;
        self
    }

    /// Takes nothing more, without having told anybody so far.
    pub(crate) fn decline(&self) {
        self.inner.leaving.store(true, Ordering::SeqCst);
    }

    /// Ends a held attempt.
    pub(crate) fn end(&self, key: &AttemptKey, result: Result<Outcome, Failure>) {
        tokio::spawn(tell_done(Arc::clone(&self.inner), key.clone(), result));
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.inner.dead.store(true, Ordering::SeqCst);
        self.heart.abort();
        self.actor.kill();
    }
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no test panics while it writes here")
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst) || self.dead.load(Ordering::SeqCst)
    }
}

struct FakeAgent;

impl Actor for FakeAgent {
    type Msg = AgentMessage;
    type State = Arc<Inner>;
    type Arguments = Arc<Inner>;

    async fn pre_start(
        &self,
        myself: ActorRef<AgentMessage>,
        inner: Arc<Inner>,
    ) -> Result<Arc<Inner>, ActorProcessingErr> {
        ractor::pg::join(AGENTS.to_owned(), vec![myself.get_cell()]);
        Ok(inner)
    }

    async fn handle(
        &self,
        _: ActorRef<AgentMessage>,
        message: AgentMessage,
        inner: &mut Arc<Inner>,
    ) -> Result<(), ActorProcessingErr> {
        if inner.is_silent() {
            if matches!(message, AgentMessage::FetchRejects(..)) {
                inner.pages_owed.fetch_add(1, Ordering::SeqCst);
            }
            return Ok(());
        }
        match message {
            AgentMessage::Hello(wire, port) => {
                let (meta, hello) = open::<Hello>(&wire);
                inner.epoch.fetch_max(meta.epoch.0, Ordering::SeqCst);
                inner.book().heartbeat = Some(Duration::from_millis(hello.heartbeat_ms));
                let running = inner.book().held.keys().cloned().collect();
                let reply = HelloReply {
                    node: inner.name.clone(),
                    boot: inner.boot.clone(),
                    version: "test".to_owned(),
                    slots: inner.slots,
                    places: inner.places.clone(),
                    running,
                    speaks: inner.speaks.clone(),
                    draining: inner.leaving.load(Ordering::SeqCst),
                };
                inner.beat.notify_one();
                answer(port, &reply);
            }
            AgentMessage::Assign(wire, port) => {
                let (meta, assignment) = open::<Assignment>(&wire);
                answer(port, &assign(inner, meta.epoch, assignment));
            }
            AgentMessage::Drop(wire, port) => {
                let (_, body) = open::<DropMessage>(&wire);
                for key in body.attempts {
                    inner.book().held.remove(&key);
                    inner.book().dropped.push(key);
                }
                answer(port, &());
            }
            AgentMessage::Leave(wire, port) => {
                open::<Leave>(&wire);
                inner.leaving.store(true, Ordering::SeqCst);
                answer(port, &());
            }
            // Nothing is published here.
            AgentMessage::Examine(_, port) => drop(port),
            AgentMessage::Watermarks(wire, port) => {
                let marks = match open::<Watermarks>(&wire).1 {
                    Watermarks::List { .. } => Ok(Vec::new()),
                    Watermarks::Set { .. } => Err(Failure::permanent("there is none")),
                };
                answer(port, &WatermarksReply { marks });
            }
            // No store.
            AgentMessage::Prune(_, port) => drop(port),
            AgentMessage::FetchRejects(wire, port) => {
                let (_, body) = open::<FetchRejects>(&wire);
                answer(port, &rejects(&body, inner.older));
            }
        }
        Ok(())
    }
}

fn assign(inner: &Arc<Inner>, epoch: Epoch, assignment: Assignment) -> AssignmentReply {
    if epoch.0 < inner.epoch.load(Ordering::SeqCst) {
        return AssignmentReply::StaleEpoch;
    }
    let key = assignment.key.clone();
    if inner.leaving.load(Ordering::SeqCst) {
        return AssignmentReply::Leaving;
    }
    {
        let mut book = inner.book();
        if book.assigned.contains(&key) {
            return AssignmentReply::Accepted;
        }
        book.assigned.push(key.clone());
        book.held.insert(key.clone(), Counts::default());
        let chunks = book
            .held
            .keys()
            .filter(|key| matches!(key.work, Work::Chunk(_)))
            .count();
        book.most_chunks_at_once = book.most_chunks_at_once.max(chunks);
    }
    match (inner.script)(&assignment) {
        Act::End(result) => drop(tokio::spawn(tell_done(Arc::clone(inner), key, result))),
        Act::Hold => {}
    }
    AssignmentReply::Accepted
}

/// Says that an attempt has ended until the leader acknowledges it, and then `repeats` times in all.
async fn tell_done(inner: Arc<Inner>, key: AttemptKey, result: Result<Outcome, Failure>) {
    let mut told = 0;
    while !inner.dead.load(Ordering::SeqCst) && inner.book().held.contains_key(&key) {
        let done = Done {
            node: inner.name.clone(),
            key: key.clone(),
            result: result.clone(),
            restarts: 0,
            bytes_read_again: 0,
        };
        if !inner.is_silent()
            && let Some(DoneReply { acknowledged: true }) = to_leader(&inner, &done, GatewayMessage::Done).await
        {
            told += 1;
            if told >= inner.repeats {
                inner.book().held.remove(&key);
                return;
            }
            continue;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Bytes that a node says it has read and not committed of some work.
pub(crate) fn ahead_of(work: &Work) -> u64 {
    match work {
        Work::Chunk(chunk) => 1_000 + u64::from(chunk.index),
        Work::Discover | Work::Step(_) | Work::Compensate(_) => 0,
    }
}

async fn heart(inner: Arc<Inner>) {
    loop {
        let pause = inner.book().heartbeat;
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => inner.beat.notified().await,
        }
        if inner.is_silent() {
            continue;
        }
        let held = inner.book().held.clone();
        let ahead = held.keys().map(|key| ahead_of(&key.work)).collect();
        let progress = held.into_iter().collect();
        let body = Heartbeat {
            node: inner.name.clone(),
            boot: inner.boot.clone(),
            progress,
            ahead,
            draining: inner.leaving.load(Ordering::SeqCst),
        };
        if let Some(grant) = to_leader::<_, LeaseGrant>(&inner, &body, GatewayMessage::Heartbeat).await {
            let mut book = inner.book();
            if grant.unknown {
                book.held.clear();
            }
            for key in grant.unwanted {
                book.held.remove(&key);
                book.dropped.push(key);
            }
        }
    }
}

/// Asks every gateway, and believes the one with the highest epoch.
async fn to_leader<B: Serialize, R: DeserializeOwned>(
    inner: &Inner,
    body: &B,
    message: impl Fn(Wire, RpcReplyPort<Wire>) -> GatewayMessage,
) -> Option<R> {
    let meta = Meta {
        epoch: Epoch(inner.epoch.load(Ordering::SeqCst)),
        ..Meta::default()
    };
    let mut best: Option<(Epoch, R)> = None;
    for cell in ractor::pg::get_members(&GATEWAYS.to_owned()) {
        let gateway: ActorRef<GatewayMessage> = cell.into();
        let wire = wire::encode(&meta, body).expect("encodes");
        let reply = gateway.call(|port| message(wire, port), Some(TIMEOUT)).await;
        if let Ok(CallResult::Success(reply)) = reply {
            let (meta, reply) = wire::decode::<R>(&reply).expect("decodes");
            if best.as_ref().is_none_or(|(epoch, _)| meta.epoch > *epoch) {
                best = Some((meta.epoch, reply));
            }
        }
    }
    let seen = inner.epoch.load(Ordering::SeqCst);
    best.filter(|(epoch, _)| epoch.0 >= seen).map(|(_, reply)| reply)
}

fn open<T: DeserializeOwned>(wire: &Wire) -> (Meta, T) {
    wire::decode(wire).expect("the coordinator sends what it says it sends")
}

fn answer<T: Serialize>(port: RpcReplyPort<Wire>, body: &T) {
    drop(port.send(wire::encode(&Meta::default(), body).expect("encodes")));
}

/// Three rows in every object, on pages of two; as an earlier release says it, or as this one does.
fn rejects(body: &FetchRejects, is_older: bool) -> RejectsPage {
    let row = |line: u64| Reject {
        kept: None,
        pipeline: "p".into(),
        run: RunId::from("r"),
        source: "raw".into(),
        file: body.key.clone(),
        line,
        column: None,
        step: None,
        reason: if line == 2 { "ragged".into() } else { "bad_int".into() },
        detail: String::new(),
        // So many that not all of them are on their way before anybody has read the first.
        raw: "x".repeat(4096),
    };
    let rows = (body.skip + 1..=3).take(2).map(row);
    if is_older {
        return RejectsPage {
            rows: Ok(rows.collect()),
            next: None,
            last: false,
        };
    }
    let next = (body.skip + 2).min(3);
    RejectsPage {
        rows: Ok(rows
            .filter(|row| body.reason.is_empty() || row.reason == body.reason)
            .collect()),
        next: Some(next),
        last: next == 3,
    }
}

/// Ten rows read, eight loaded into each of `one` and `two`.
pub(crate) fn counts(read: u64) -> Counts {
    let load = LoadCounts {
        loaded: 8,
        passed: 8,
        filtered: 2,
        ..LoadCounts::default()
    };
    Counts {
        read,
        bytes: read * 10,
        loads: ["one", "two"].map(|name| (name.to_owned(), load)).into(),
        ..Counts::default()
    }
}

/// What an assignment brings when all goes well.
pub(crate) fn outcome(assignment: &Assignment, chunks: u32) -> Outcome {
    match &assignment.key.work {
        Work::Discover => Outcome::Discovered {
            stages: vec![stage(chunks)],
        },
        Work::Chunk(chunk) => Outcome::Staged {
            report: ChunkReport {
                counts: counts(10),
                segments: 1,
                resumed: 0,
                rejects: vec![format!("rejects/{chunk}")],
                restarts: 0,
                continued: false,
                bytes_read_again: 0,
            },
        },
        Work::Step(step) => {
            let rows = if step.kind == StepKind::Publish {
                u64::from(chunks) * 8
            } else {
                0
            };
            Outcome::Stepped {
                report: StepReport {
                    rows,
                    detail: format!("{step} is done"),
                    ..StepReport::default()
                },
            }
        }
        Work::Compensate(step) => Outcome::Stepped {
            report: StepReport {
                rows: 0,
                detail: format!("{step} is undone"),
                ..StepReport::default()
            },
        },
    }
}

/// What a chunk brings when all goes well.
pub(crate) fn chunk_outcome() -> Outcome {
    let report = ChunkReport {
        counts: counts(10),
        segments: 1,
        resumed: 0,
        rejects: Vec::new(),
        restarts: 0,
        continued: false,
        bytes_read_again: 0,
    };
    Outcome::Staged { report }
}

fn stage(chunks: u32) -> PlannedStage {
    let spec = |index| ChunkSpec {
        chunk: ChunkId {
            stage: StageId(0),
            index,
        },
        source: "raw".into(),
        object: "raw.csv".into(),
        version: "1".into(),
        start: Position::default(),
        end: None,
        bytes: 100,
        window: None,
    };
    PlannedStage {
        stage: StageId(0),
        source: "raw".into(),
        steps: vec!["clean".into()],
        loads: vec![LoadName::from("one"), LoadName::from("two")],
        chunks: (0..chunks).map(spec).collect(),
        advances: Vec::new(),
        columns: Default::default(),
    }
}
