//! `RunActor`: the shell around one run's log. Nothing here knows what a run is about: it drains its mailbox, asks
//! `decide`, appends, and posts what is outstanding; recovery is the same path with an empty memory.
//!
//! ```text
//!   mailbox ─► pending ─► decide, apply ─► append ──stands──► answer, post, publish
//!                                            │conflict, or the ledger fails
//!                                            └──► forget the memory, fold it from the ledger, decide again
//! ```
//!
//! Nothing is answered, posted or shown before the append stands. So memory may run ahead of the ledger inside one
//! flush, and is thrown away if the append doesn't stand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use haulage_core::checkpoint::Counts;
use haulage_core::event::Event;
use haulage_core::ids::{Attempt, ChunkId, Millis, NodeName, RunId, Seq, Work};
use haulage_core::run::{Effect, Input, Phase, Refused, State, decide};
use haulage_proto::link::message::{Assignment, AttemptKey, Done, DoneReply};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;

use super::board::{Awaited, Post, Waiting};
use super::cluster::ClusterMessage;
use super::runs::RunsMessage;
use super::table::{Snapshot, View};
use super::{Answer, Shared, assignment, tell};
use crate::clock;
use crate::ledger::{Append, Appended, Error as LedgerError, group};
use crate::trace::{self, Carrier};

/// Dispatches that a run posts at most: more than any cluster has free slots at one moment.
const WINDOW: usize = 1024;
/// Snapshots are at least this far apart, but for a change of phase.
const SHOW_EVERY_MS: u64 = 250;
/// First wait after the ledger failed; doubles with each failure.
const LEDGER_BACKOFF: Duration = Duration::from_millis(250);
/// Doublings of it, at most.
const LEDGER_BACKOFF_STEPS: u32 = 5;

/// See the module.
pub(crate) struct RunActor;

#[derive(RactorMessage)]
pub(crate) enum RunMessage {
    /// Something happened that nobody waits for an answer to.
    Input(Input),
    /// A node has a slot.
    Grant { number: u64, work: Work, node: NodeName },
    /// An attempt has ended; the node repeats it until it is acknowledged.
    Done(Done, Answer),
    /// Somebody wants something of the run, and waits to hear whether it stands.
    Ask {
        input: Input,
        port: RpcReplyPort<Result<Seq, AskError>>,
    },
    /// What running attempts have counted so far.
    Progress(Vec<(Work, Attempt, Counts)>),
    /// Work off what has gathered. Sent by the actor to itself, so that it comes after whatever is in the mailbox.
    Flush,
    /// Show the run to watchers.
    Show,
}

/// Why the run does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("the ledger can't be written at the moment; ask again")]
    Ledger,
}

/// Why a run's actor gives up. Concerns this run, never another.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The log can't be folded: starting again would find the same.
    #[error("{0}")]
    Unreadable(String),
}

/// What a run's actor is started with.
pub(crate) struct RunArguments {
    pub(crate) run: RunId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster: ActorRef<ClusterMessage>,
    pub(crate) supervisor: ActorRef<RunsMessage>,
    pub(crate) view: View,
}

struct Pending {
    input: Input,
    reply: Reply,
}

enum Reply {
    Nobody,
    Grant(u64),
    Done(Answer),
    Ask(RpcReplyPort<Result<Seq, AskError>>),
}

/// The fold of the log up to `seq`.
struct Log {
    state: Arc<State>,
    seq: Seq,
}

pub(crate) struct RunState {
    myself: ActorRef<RunMessage>,
    args: RunArguments,
    // None until it is folded, and after an append that didn't stand.
    log: Option<Log>,
    pending: Vec<Pending>,
    flush_asked: bool,
    ledger_failures: u32,
    grants_seen: u64,
    assignments: HashMap<AttemptKey, Arc<Assignment>>,
    live: BTreeMap<ChunkId, (Attempt, Counts)>,
    shown: Option<(Millis, Phase)>,
    show_asked: bool,
    // The run's span, open as long as this actor leads the run, and its context for nodes.
    span: Option<(tracing::Span, Arc<Carrier>)>,
}

impl Actor for RunActor {
    type Msg = RunMessage;
    type State = RunState;
    type Arguments = RunArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut state = RunState {
            myself,
            args,
            log: None,
            pending: Vec::new(),
            flush_asked: false,
            ledger_failures: 0,
            grants_seen: 0,
            assignments: HashMap::new(),
            live: BTreeMap::new(),
            shown: None,
            show_asked: false,
            span: None,
        };
        // The log is read by the first flush and not here: a slow ledger must not hold up the supervisor.
        state.ask_flush(Duration::ZERO);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunMessage::Input(input) => state.take(input, Reply::Nobody),
            RunMessage::Grant { number, work, node } => {
                state.take(Input::Grant { work, node }, Reply::Grant(number));
            }
            RunMessage::Done(done, answer) => state.take(assignment::input(done), Reply::Done(answer)),
            RunMessage::Ask { input, port } => state.take(input, Reply::Ask(port)),
            RunMessage::Progress(progress) => state.progress(progress),
            RunMessage::Flush => state.flush().await?,
            RunMessage::Show => {
                state.show_asked = false;
                state.show();
            }
        }
        Ok(())
    }
}

impl RunState {
    fn take(&mut self, input: Input, reply: Reply) {
        self.pending.push(Pending { input, reply });
        self.ask_flush(Duration::ZERO);
    }

    fn ask_flush(&mut self, after: Duration) {
        if self.flush_asked {
            return;
        }
        self.flush_asked = true;
        if after.is_zero() {
            tell(&self.myself, RunMessage::Flush);
        } else {
            drop(self.myself.send_after(after, || RunMessage::Flush));
        }
    }

    /// Works off what has gathered: see the picture above.
    async fn flush(&mut self) -> Result<(), Fault> {
        self.flush_asked = false;
        let mut log = match self.log.take() {
            Some(log) => log,
            None => match self.fold().await {
                Ok(log) => log,
                Err(error) => return self.ledger_failed(&error),
            },
        };
        let (events, refusals) = self.decide_all(Arc::make_mut(&mut log.state));
        if !events.is_empty() {
            let append = Append {
                run: self.args.run.clone(),
                expected: log.seq,
                events,
            };
            match self.args.shared.writer.append(append).await {
                Ok(Appended::At(seq)) => log.seq = seq,
                Ok(Appended::Conflict) => {
                    tracing::warn!(run = %self.args.run, "somebody else wrote to the run's log; folding it again");
                    self.ask_flush(Duration::ZERO);
                    return Ok(());
                }
                Err(error) => return self.append_failed(&error),
            }
        }
        self.ledger_failures = 0;
        self.log = Some(log);
        self.answer(refusals);
        self.carry_on();
        Ok(())
    }

    /// Reads the log and folds it.
    async fn fold(&mut self) -> Result<Log, LedgerErrorOrFault> {
        let run = self.args.run.clone();
        let rows = self.args.shared.ledger.read(&run, Seq(0)).await?;
        let mut seq = Seq(0);
        let mut state = State::default();
        for (place, event) in rows {
            if place != seq.next() {
                return Err(Fault::Unreadable(format!("its log has no event {}", seq.next())).into());
            }
            if matches!(event, Event::Submitted { .. }) != (seq == Seq(0)) {
                return Err(Fault::Unreadable(format!("its log has {} as event {place}", event.kind())).into());
            }
            state.apply(&event);
            seq = place;
        }
        if state.run() != Some(&run) {
            return Err(Fault::Unreadable("its log is empty or belongs to another run".to_owned()).into());
        }
        if self.span.is_none() {
            self.open_span(&state);
            tell(&self.args.supervisor, RunsMessage::Ready(run));
        }
        Ok(Log {
            state: Arc::new(state),
            seq,
        })
    }

    fn open_span(&mut self, state: &State) {
        let submission = state.submission();
        let traceparent = submission
            .map(|submission| submission.traceparent.as_str())
            .unwrap_or_default();
        let pipeline = submission
            .map(|submission| submission.pipeline.as_str())
            .unwrap_or_default();
        let span = tracing::info_span!(parent: None, "run", run = %self.args.run, pipeline);
        trace::follow(&span, &trace::carrier(traceparent));
        let carrier = trace::context(&span, traceparent);
        self.span = Some((span, Arc::new(carrier)));
    }

    /// Decides about everything that is pending, and about whatever follows from that alone. What `decide` refuses
    /// comes back by its place in `pending`.
    fn decide_all(&self, state: &mut State) -> (Vec<Event>, HashMap<usize, Refused>) {
        let now = clock::wall();
        let mut events = Vec::new();
        let mut refusals = HashMap::new();
        for (place, pending) in self.pending.iter().enumerate() {
            match decide(state, &pending.input, now) {
                Ok(new) => {
                    new.iter().for_each(|event| state.apply(event));
                    events.extend(new);
                }
                Err(refused) => {
                    refusals.insert(place, refused);
                }
            }
        }
        while state.outstanding_within(1, now).contains(&Effect::Settle) {
            // Settling is never refused; and when it makes nothing, something else is outstanding first.
            let new = decide(state, &Input::Settle, now).unwrap_or_default();
            if new.is_empty() {
                break;
            }
            new.iter().for_each(|event| state.apply(event));
            events.extend(new);
        }
        (events, refusals)
    }

    /// What was pending stands: says so to whoever waits.
    fn answer(&mut self, mut refusals: HashMap<usize, Refused>) {
        let seq = self.log.as_ref().map_or(Seq(0), |log| log.seq);
        for (place, pending) in self.pending.drain(..).enumerate() {
            let refused = refusals.remove(&place);
            match pending.reply {
                Reply::Nobody => {}
                Reply::Grant(number) => self.grants_seen = self.grants_seen.max(number),
                // A refused or stale outcome is acknowledged too: nobody will ever want it.
                Reply::Done(answer) => answer.send(&DoneReply { acknowledged: true }),
                Reply::Ask(port) => drop(port.send(refused.map_or(Ok(seq), |refused| Err(refused.into())))),
            }
        }
    }

    fn append_failed(&mut self, error: &group::Error) -> Result<(), Fault> {
        match error {
            group::Error::Deposed { .. } => {
                self.args.shared.leadership.end(error.to_string());
                self.myself.stop(Some("deposed".to_owned()));
                Ok(())
            }
            group::Error::Stopped => {
                self.myself.stop(Some("stopping".to_owned()));
                Ok(())
            }
            group::Error::Ledger(error) => self.wait_for_ledger(error),
        }
    }

    fn ledger_failed(&mut self, error: &LedgerErrorOrFault) -> Result<(), Fault> {
        match error {
            LedgerErrorOrFault::Fault(Fault::Unreadable(reason)) => Err(Fault::Unreadable(reason.clone())),
            LedgerErrorOrFault::Ledger(error @ LedgerError::Unreadable { .. }) => {
                Err(Fault::Unreadable(error.to_string()))
            }
            LedgerErrorOrFault::Ledger(error) => self.wait_for_ledger(error),
        }
    }

    /// The ledger doesn't answer: comes back later, and keeps of what is pending only what nobody would say again.
    fn wait_for_ledger(&mut self, error: &LedgerError) -> Result<(), Fault> {
        self.args.shared.leadership.heed(error);
        let wait = LEDGER_BACKOFF * 2_u32.pow(self.ledger_failures.min(LEDGER_BACKOFF_STEPS));
        self.ledger_failures = self.ledger_failures.saturating_add(1);
        tracing::warn!(run = %self.args.run, %error, wait_ms = wait.as_millis(), "the run waits for the ledger");
        let mut kept: Vec<Pending> = Vec::new();
        for pending in self.pending.drain(..) {
            match pending.reply {
                Reply::Nobody => {
                    if !kept.iter().any(|known| known.input == pending.input) {
                        kept.push(pending);
                    }
                }
                Reply::Grant(number) => self.grants_seen = self.grants_seen.max(number),
                Reply::Done(answer) => answer.send(&DoneReply { acknowledged: false }),
                Reply::Ask(port) => drop(port.send(Err(AskError::Ledger))),
            }
        }
        self.pending = kept;
        self.ask_flush(wait);
        Ok(())
    }

    /// The append stands: posts what is outstanding, shows the run, and ends with it.
    fn carry_on(&mut self) {
        let Some(log) = &self.log else { return };
        let phase = log.state.phase();
        if let Phase::AtRest(outcome) = phase {
            self.show();
            tracing::info!(run = %self.args.run, ?outcome, "the run is at rest");
            tell(&self.args.cluster, ClusterMessage::AtRest(self.args.run.clone()));
            self.myself.stop(Some("at rest".to_owned()));
            return;
        }
        let post = self.outstanding();
        tell(&self.args.cluster, ClusterMessage::Post(post));
        let now = clock::steady();
        match self.shown {
            Some((at, before)) if before == phase && now.since(at) < SHOW_EVERY_MS => {
                self.ask_show(SHOW_EVERY_MS - now.since(at));
            }
            Some(_) | None => self.show(),
        }
    }

    fn outstanding(&mut self) -> Post {
        let run = self.args.run.clone();
        let trace = self
            .span
            .as_ref()
            .map(|(_, trace)| Arc::clone(trace))
            .unwrap_or_default();
        let mut post = Post {
            run: run.clone(),
            life: self.myself.get_id().pid(),
            grants_seen: self.grants_seen,
            places: Arc::default(),
            waiting: Vec::new(),
            awaited: BTreeMap::new(),
            drops: BTreeMap::new(),
            trace,
        };
        let Some(log) = &self.log else { return post };
        if let Some(submission) = log.state.submission() {
            post.places = Arc::new(submission.places.clone());
        }
        let mut assignments = std::mem::take(&mut self.assignments);
        let now = clock::wall();
        for effect in log.state.outstanding_within(WINDOW, now) {
            match effect {
                Effect::Dispatch {
                    work,
                    not_before,
                    avoid,
                } => post.waiting.push(Waiting {
                    work,
                    not_before,
                    avoid,
                }),
                Effect::Await { work, attempt, node } => {
                    let key = AttemptKey {
                        run: run.clone(),
                        work,
                        attempt,
                    };
                    let known = assignments.remove(&key);
                    let made = || assignment::of(&log.state, &key.work, attempt).map(Arc::new);
                    if let Some(assignment) = known.or_else(made) {
                        self.assignments.insert(key.clone(), Arc::clone(&assignment));
                        post.awaited.insert(key, Awaited { node, assignment });
                    }
                }
                Effect::Drop { work, attempt, node } => {
                    post.drops.insert(
                        AttemptKey {
                            run: run.clone(),
                            work,
                            attempt,
                        },
                        node,
                    );
                }
                Effect::Settle => {}
            }
        }
        // What waits for a backoff must not take the window from what could run now.
        post.waiting.sort_by_key(|waiting| {
            if waiting.not_before <= now {
                Millis(0)
            } else {
                waiting.not_before
            }
        });
        post.waiting.truncate(WINDOW);
        post
    }

    fn progress(&mut self, progress: Vec<(Work, Attempt, Counts)>) {
        for (work, attempt, counts) in progress {
            if let Work::Chunk(chunk) = work {
                self.live.insert(chunk, (attempt, counts));
            }
        }
        let since = self.shown.map_or(SHOW_EVERY_MS, |(at, _)| clock::steady().since(at));
        self.ask_show(SHOW_EVERY_MS.saturating_sub(since));
    }

    fn ask_show(&mut self, after_ms: u64) {
        if !self.show_asked {
            self.show_asked = true;
            drop(
                self.myself
                    .send_after(Duration::from_millis(after_ms), || RunMessage::Show),
            );
        }
    }

    fn show(&mut self) {
        let Some(log) = &self.log else { return };
        let in_flight: HashSet<(&Work, Attempt)> = log
            .state
            .in_flight()
            .map(|(work, attempt, _)| (work, attempt))
            .collect();
        self.live
            .retain(|chunk, (attempt, _)| in_flight.contains(&(&Work::Chunk(*chunk), *attempt)));
        let live = self
            .live
            .iter()
            .map(|(chunk, (_, counts))| (*chunk, counts.clone()))
            .collect();
        self.shown = Some((clock::steady(), log.state.phase()));
        self.args.view.send_replace(Arc::new(Snapshot {
            state: Arc::clone(&log.state),
            seq: log.seq,
            live,
        }));
    }
}

/// Why a fold did not succeed.
#[derive(Debug, thiserror::Error)]
enum LedgerErrorOrFault {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Fault(#[from] Fault),
}
