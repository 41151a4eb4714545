//! The node's supervisor: gives every assignment a worker, restarts a chunk's worker from its last checkpoint when it
//! fails, and hands what ended to the reporter.
//!
//! ```text
//!              ┌─────────── panic, transient failure (chunks, at most RESTARTS times) ──► waiting ─┐
//!   assign ─► running ◄──────────────────────────── backoff ──────────────────────────────────────┘
//!              └── done, permanent, fenced, no restart left ──► finished ──acknowledged──► gone
//!   drop, a lapsed lease: gone from anywhere (a lapsed lease keeps what is finished: it has no effect any more)
//!   drain: nothing new; soon chunks end after the segment they work on, later all work is cut off, and both are
//!   finished as handed back
//! ```
//!
//! Accepting is idempotent by the attempt's key: a repeated assignment meets the one that runs, or that has finished
//! and is not acknowledged. Whatever happens to a run besides is the leader's decision, not this one's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{RunId, Work};
use haulage_proto::link::message::{Assignment, AssignmentReply, AttemptKey, Outcome};
use haulage_proto::link::protocol;
use haulage_proto::link::wire::{Meta, Wire};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::reporter::{Reporter, ReporterMessage};
use super::shared::{Progress, Shared};
use super::worker::{Job, Worker, WorkerMessage};
use crate::chance::Backoff;
use crate::work::{Order, Toolbox};

/// How often a chunk's worker is restarted within one attempt.
const RESTARTS: u32 = 3;
/// The first and the longest wait before a restart.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Discover and steps run beside the chunks, so that a publish never waits for another run's chunks.
const BESIDE: usize = 4;
/// Results that may wait for their acknowledgement before the node takes nothing new.
const UNACKNOWLEDGED: usize = 64;

/// See the module.
pub(crate) struct Supervisor;

/// What the supervisor is told.
#[derive(ractor_cluster::RactorMessage)]
pub(crate) enum SupervisorMessage {
    /// The leader wants this done. Answered with an [`AssignmentReply`].
    Assign {
        meta: Meta,
        assignment: Box<Assignment>,
        reply: RpcReplyPort<Wire>,
    },
    /// Nobody wants these any more.
    Drop {
        attempts: Vec<AttemptKey>,
        runs: Vec<RunId>,
        reply: Option<RpcReplyPort<Wire>>,
    },
    /// A worker's attempt has ended.
    Ended {
        key: AttemptKey,
        serial: u64,
        result: Result<Outcome, Failure>,
    },
    /// The wait before a restart is over.
    Restart { key: AttemptKey, serial: u64 },
    /// A coordinator has the result.
    Acknowledged { key: AttemptKey },
    /// The node holds a lease.
    Leased,
    /// It holds none any more.
    Lapsed { reason: String },
    /// Take nothing new, and say so once nothing is held any more and the leader lets the node go. Chunks may end until
    /// `finish` is over, other work until `cut`.
    Drain {
        finish: Duration,
        cut: Duration,
        reply: RpcReplyPort<()>,
    },
    /// Chunks end after the segment that they work on.
    HandBack,
    /// All work ends where it is.
    Cut,
    /// The leader knows that the node drains, and awaits nothing of it any more.
    MayLeave,
}

/// What a supervisor is given.
pub(crate) struct Setup {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tools: Arc<Toolbox>,
    /// The runtime on which data is touched.
    pub(crate) data: Handle,
}

enum Phase {
    Running(ActorRef<WorkerMessage>),
    Waiting,
    Finished,
}

struct Entry {
    order: Arc<Order>,
    progress: Arc<Progress>,
    /// Ends the work at its next await, wherever it is.
    cancel: CancellationToken,
    backoff: Backoff,
    restarts: u32,
    /// Which worker of this node is its last: an end that another one reports is of no interest any more.
    serial: u64,
    phase: Phase,
}

/// What it remembers.
pub(crate) struct State {
    with: Setup,
    reporter: ActorRef<ReporterMessage>,
    entries: HashMap<AttemptKey, Entry>,
    /// Of running workers: whose crash it is when one fails.
    workers: HashMap<ActorId, (AttemptKey, u64)>,
    serials: u64,
    leased: bool,
    draining: Vec<RpcReplyPort<()>>,
    drain: Drain,
    may_leave: bool,
}

/// How far the node is with leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Drain {
    /// It stays.
    No,
    /// It works off what it has.
    Finishing,
    /// What would take longer is handed back.
    HandingBack,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = State;
    type Arguments = Setup;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, with: Setup) -> Result<State, ActorProcessingErr> {
        let arguments = (with.shared.clone(), myself.clone());
        let (reporter, _) = Actor::spawn_linked(None, Reporter, arguments, myself.get_cell()).await?;
        Ok(State {
            with,
            reporter,
            entries: HashMap::new(),
            workers: HashMap::new(),
            serials: 0,
            leased: false,
            draining: Vec::new(),
            drain: Drain::No,
            may_leave: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: SupervisorMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Assign {
                meta,
                assignment,
                reply,
            } => {
                let answer = state.assign(&myself, meta, *assignment).await?;
                state.with.shared.answer(reply, &answer);
            }
            SupervisorMessage::Drop { attempts, runs, reply } => {
                state.drop_attempts(&attempts, &runs)?;
                if let Some(reply) = reply {
                    state.with.shared.answer(reply, &());
                }
            }
            SupervisorMessage::Ended { key, serial, result } => state.ended(&myself, key, serial, result)?,
            SupervisorMessage::Restart { key, serial } => state.restart(&myself, key, serial).await?,
            SupervisorMessage::Acknowledged { key } => drop(state.forget(&key)),
            SupervisorMessage::Leased => state.leased = true,
            SupervisorMessage::Lapsed { reason } => state.lapsed(&reason)?,
            SupervisorMessage::Drain { finish, cut, reply } => {
                state.drain = state.drain.max(Drain::Finishing);
                state.draining.push(reply);
                myself.send_after(finish, || SupervisorMessage::HandBack);
                myself.send_after(cut, || SupervisorMessage::Cut);
            }
            SupervisorMessage::HandBack => state.hand_back()?,
            SupervisorMessage::Cut => state.cut()?,
            SupervisorMessage::MayLeave => state.may_leave = true,
        }
        state.drained();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => {
                let Some((key, serial)) = state.workers.remove(&who.get_id()) else {
                    // The reporter, the heartbeater or the agent: a node without one of them is no node.
                    return Err(format!("a part of the node has failed: {error}").into());
                };
                let failure = Failure::transient(format!("{} crashed: {error}", key.work));
                state.ended(&myself, key, serial, Err(failure))?;
                state.drained();
            }
            // A worker that stops has sent its result before, or was stopped from here.
            SupervisionEvent::ActorTerminated(who, _, _) => drop(state.workers.remove(&who.get_id())),
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

impl State {
    async fn assign(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        meta: Meta,
        assignment: Assignment,
    ) -> Result<AssignmentReply, ActorProcessingErr> {
        let key = assignment.key.clone();
        if self.entries.contains_key(&key) {
            return Ok(AssignmentReply::Accepted);
        }
        if self.drain != Drain::No && self.with.shared.protocol() >= protocol::LEAVING {
            return Ok(AssignmentReply::Leaving);
        }
        // An older attempt of the same work is fenced by this one: it can only lose, so its slot is free.
        let older: Vec<AttemptKey> = self
            .entries
            .keys()
            .filter(|held| held.run == key.run && held.work == key.work)
            .cloned()
            .collect();
        for held in older {
            if held.attempt > key.attempt {
                return Ok(AssignmentReply::Full);
            }
            self.cancel(&held)?;
        }
        if !self.has_room(&key.work) {
            return Ok(AssignmentReply::Full);
        }
        let progress = Arc::new(Progress::default());
        self.with.shared.hold(key.clone(), progress.clone());
        let entry = Entry {
            order: Arc::new(Order {
                assignment,
                epoch: meta.epoch,
                trace: meta.trace,
            }),
            progress,
            cancel: CancellationToken::new(),
            backoff: Backoff::new(WAIT.0, WAIT.1),
            restarts: 0,
            serial: 0,
            phase: Phase::Waiting,
        };
        self.entries.insert(key.clone(), entry);
        self.start(myself, &key).await?;
        Ok(AssignmentReply::Accepted)
    }

    fn has_room(&self, work: &Work) -> bool {
        let is_chunk = |work: &Work| matches!(work, Work::Chunk(_));
        let (mut chunks, mut beside, mut finished) = (0, 0, 0);
        for (key, entry) in &self.entries {
            match entry.phase {
                Phase::Finished => finished += 1,
                Phase::Running(_) | Phase::Waiting if is_chunk(&key.work) => chunks += 1,
                Phase::Running(_) | Phase::Waiting => beside += 1,
            }
        }
        let slots = usize::try_from(self.with.shared.slots).unwrap_or(usize::MAX);
        let free = if is_chunk(work) {
            chunks < slots
        } else {
            beside < BESIDE
        };
        self.leased && self.drain == Drain::No && free && finished < UNACKNOWLEDGED
    }

    async fn start(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        key: &AttemptKey,
    ) -> Result<(), ActorProcessingErr> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Ok(());
        };
        self.serials += 1;
        entry.serial = self.serials;
        let job = Job {
            order: entry.order.clone(),
            serial: entry.serial,
            progress: entry.progress.clone(),
            cancel: entry.cancel.clone(),
            tools: self.with.tools.clone(),
            data: self.with.data.clone(),
            supervisor: myself.clone(),
        };
        let (worker, _) = Actor::spawn_linked(None, Worker, job, myself.get_cell()).await?;
        self.workers.insert(worker.get_id(), (key.clone(), entry.serial));
        entry.phase = Phase::Running(worker);
        Ok(())
    }

    fn ended(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        key: AttemptKey,
        serial: u64,
        result: Result<Outcome, Failure>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(entry) = self.entries.get_mut(&key) else {
            if let Err(failure) = result {
                tracing::info!(run = %key.run, attempt = key.attempt.0, "{} that was cancelled has ended: {failure}", key.work);
            }
            return Ok(());
        };
        // Of a worker that was replaced, or said twice: what stands is already known.
        if entry.serial != serial || !matches!(entry.phase, Phase::Running(_)) {
            return Ok(());
        }
        let result = match result {
            Ok(Outcome::Staged { mut report }) => {
                report.restarts = entry.restarts;
                report.bytes_read_again = entry.progress.bytes_read_again();
                Ok(Outcome::Staged { report })
            }
            Ok(outcome) => Ok(outcome),
            Err(failure) => {
                let again = failure.class == Class::Transient
                    && matches!(key.work, Work::Chunk(_))
                    && entry.restarts < RESTARTS;
                // Its token is only cancelled while it is still held when the node leaves.
                let cut = failure.class == Class::Transient && entry.cancel.is_cancelled();
                if cut || (again && self.drain == Drain::HandingBack) {
                    return self.finish(&key, Ok(Outcome::HandedBack));
                }
                if again {
                    entry.restarts += 1;
                    entry.phase = Phase::Waiting;
                    let wait = entry.backoff.wait();
                    tracing::warn!(
                        run = %key.run, restart = entry.restarts, wait_ms = wait.as_millis() as u64,
                        "{} goes on from its last checkpoint: {failure}", key.work
                    );
                    myself.send_after(wait, move || SupervisorMessage::Restart { key, serial });
                    return Ok(());
                }
                Err(escalated(failure, entry.restarts, self.with.shared.name.as_str()))
            }
        };
        self.finish(&key, result)
    }

    /// An attempt is over, and its leader is told.
    fn finish(&mut self, key: &AttemptKey, result: Result<Outcome, Failure>) -> Result<(), ActorProcessingErr> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Ok(());
        };
        entry.phase = Phase::Finished;
        let result = match result {
            Ok(Outcome::HandedBack) if self.with.shared.protocol() < protocol::LEAVING => {
                Err(Failure::transient(format!("node {} leaves", self.with.shared.name)))
            }
            result => result,
        };
        if let Ok(Outcome::HandedBack) = &result {
            tracing::info!(run = %key.run, attempt = key.attempt.0, "{} is handed back", key.work);
        }
        let (restarts, bytes_read_again) = match &result {
            Ok(Outcome::HandedBack) | Err(_) => (
                entry.restarts + u32::from(entry.progress.continued()),
                entry.progress.bytes_read_again(),
            ),
            Ok(_) => (0, 0),
        };
        self.reporter.cast(ReporterMessage::Report {
            key: key.clone(),
            result,
            restarts,
            bytes_read_again,
            trace: entry.order.trace.clone(),
        })?;
        Ok(())
    }

    /// Chunks that haven't ended by now go on elsewhere. One that waits for a restart has no segment to end first.
    fn hand_back(&mut self) -> Result<(), ActorProcessingErr> {
        self.drain = Drain::HandingBack;
        let chunks = self
            .entries
            .iter()
            .filter(|(key, _)| matches!(key.work, Work::Chunk(_)));
        let mut idle = Vec::new();
        for (key, entry) in chunks {
            entry.progress.want_back();
            if let Phase::Waiting = entry.phase {
                idle.push(key.clone());
            }
        }
        idle.iter()
            .try_for_each(|key| self.finish(key, Ok(Outcome::HandedBack)))
    }

    /// What still runs is cancelled at its next await, and handed back when it has ended: what it had not committed rolls
    /// back, and a step whose outcome nobody knows finds its own trace elsewhere.
    fn cut(&mut self) -> Result<(), ActorProcessingErr> {
        self.hand_back()?;
        for (key, entry) in &self.entries {
            if let Phase::Running(_) = entry.phase {
                tracing::warn!(run = %key.run, attempt = key.attempt.0, "{} is cut off: the node leaves", key.work);
                entry.cancel.cancel();
            }
        }
        Ok(())
    }

    async fn restart(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        key: AttemptKey,
        serial: u64,
    ) -> Result<(), ActorProcessingErr> {
        let waits = |entry: &&Entry| entry.serial == serial && matches!(entry.phase, Phase::Waiting);
        let Some(entry) = self.entries.get(&key).filter(waits) else {
            // It was dropped during the wait.
            return Ok(());
        };
        tracing::info!(run = %key.run, restart = entry.restarts, "{} is worked on again", key.work);
        self.start(myself, &key).await
    }

    fn drop_attempts(&mut self, attempts: &[AttemptKey], runs: &[RunId]) -> Result<(), ActorProcessingErr> {
        for key in attempts {
            self.cancel(key)?;
        }
        let of_runs: Vec<AttemptKey> = self
            .entries
            .keys()
            .filter(|key| runs.contains(&key.run))
            .cloned()
            .collect();
        for key in of_runs {
            self.cancel(&key)?;
        }
        for run in runs {
            self.with.tools.forget(run);
        }
        Ok(())
    }

    fn lapsed(&mut self, reason: &str) -> Result<(), ActorProcessingErr> {
        self.leased = false;
        let running: Vec<AttemptKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| !matches!(entry.phase, Phase::Finished))
            .map(|(key, _)| key.clone())
            .collect();
        for key in running {
            tracing::warn!(run = %key.run, attempt = key.attempt.0, "{} is cancelled: {reason}", key.work);
            self.cancel(&key)?;
        }
        Ok(())
    }

    fn cancel(&mut self, key: &AttemptKey) -> Result<(), ActorProcessingErr> {
        let Some(entry) = self.forget(key) else { return Ok(()) };
        if self.with.tools.config().fault.is_deaf() {
            return Ok(());
        }
        entry.cancel.cancel();
        match entry.phase {
            Phase::Running(worker) => worker.stop(Some("nobody wants its attempt any more".to_owned())),
            Phase::Waiting => {}
            Phase::Finished => self.reporter.cast(ReporterMessage::Forget { key: key.clone() })?,
        }
        Ok(())
    }

    fn forget(&mut self, key: &AttemptKey) -> Option<Entry> {
        self.with.shared.release(key);
        self.entries.remove(key)
    }

    /// Tells who waits for it that nothing is held any more, and nothing more is to come: what the leader had given to
    /// this node before it knew is declined first. A node without a leader, or with one that doesn't know of leaving,
    /// just goes.
    fn drained(&mut self) {
        let free = self.may_leave || !self.leased || self.with.shared.protocol() < protocol::LEAVING;
        if self.entries.is_empty() && free {
            for waiting in self.draining.drain(..) {
                // An error means that the caller gave up waiting.
                drop(waiting.send(()));
            }
        }
    }
}

/// What the leader is told after the restarts on this node.
fn escalated(failure: Failure, restarts: u32, node: &str) -> Failure {
    if restarts == 0 {
        return failure;
    }
    let times = if restarts == 1 {
        "once".to_owned()
    } else {
        format!("{restarts} times")
    };
    Failure {
        class: failure.class,
        message: format!("{} (after being restarted {times} on node {node})", failure.message),
    }
}
