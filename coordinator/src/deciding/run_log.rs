//! `RunLog`: one run's log in a leader's memory. Nothing here knows what a run is about: it gathers inputs, asks
//! `decide`, says what to append, and what follows from each of the outcomes; recovery is the same path with an empty
//! memory.
//!
//! ```text
//!   take ─► pending ─► decide, apply ─► Append ──stands──► Answer, Post, AtRest
//!                                         │conflict, or the ledger fails
//!                                         └──► forget the memory, read the log again, decide again
//! ```
//!
//! Nothing is answered or posted before the append stands. So memory may run ahead of the ledger between `decide` and
//! the append's answer, and is thrown away if the append doesn't stand. Whoever waits for an answer is a `W` here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Millis, NodeName, RunId, Seq, Work};
use haulage_core::run::{Effect, Input, Phase, Refused, State, decide};
use haulage_proto::link::message::{Assignment, AttemptKey};

use super::board::{Awaited, Post, Waiting};
use super::reached::Reached;
use super::{Carrier, Heard, assignment};
use crate::ledger::{Append, Appended};

/// Dispatches that a run posts at most: more than any cluster has free slots at one moment.
const WINDOW: usize = 1024;
/// First wait after the ledger failed; doubles with each failure.
const LEDGER_BACKOFF_MS: u64 = 250;
/// Doublings of it, at most.
const LEDGER_BACKOFF_STEPS: u32 = 5;

/// What is to be done after a decision.
#[derive(Debug)]
pub enum Next<W> {
    /// Append this, and say what came of it: [`RunLog::appended`] or [`RunLog::failed`].
    Append(Append),
    /// Nothing has changed; carry these out.
    Act(Vec<RunAction<W>>),
}

/// What is to be done for a run, in the order in which it comes.
#[derive(Debug)]
pub enum RunAction<W> {
    /// Somebody waits for this.
    Answer {
        /// Who.
        to: W,
        /// What they are told.
        answer: Answer,
    },
    /// What the run has outstanding, for the dispatch.
    Post(Post),
    /// The run is over.
    AtRest(Outcome),
}

/// What came of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its events stand, or it changed nothing.
    Stands,
    /// It was refused.
    Refused(Refused),
    /// The ledger can't be written: it has to be said again.
    NotNow,
}

/// The ledger doesn't answer.
#[derive(Debug)]
pub struct Waits<W> {
    /// What to carry out now.
    pub actions: Vec<RunAction<W>>,
    /// When to decide again.
    pub wait_ms: u64,
}

/// A log that can't be folded: reading it again would find the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub String);

#[derive(Debug)]
struct Pending<W> {
    input: Input,
    asked: Asked<W>,
}

#[derive(Debug)]
enum Asked<W> {
    Nobody,
    Grant(u64),
    By(W),
}

/// The fold of the log up to `seq`.
#[derive(Debug)]
struct Log {
    state: Arc<State>,
    seq: Seq,
}

#[derive(Debug)]
enum Memory {
    /// Not folded yet, or thrown away after an append that didn't stand.
    None,
    /// It holds events that don't stand yet.
    Ahead(Log),
    Stands(Log),
}

/// See the module.
#[derive(Debug)]
pub struct RunLog<W> {
    run: RunId,
    life: u64,
    trace: Arc<Carrier>,
    memory: Memory,
    pending: Vec<Pending<W>>,
    // What the last decision refused, by place in `pending`.
    refusals: HashMap<usize, Refused>,
    ledger_failures: u32,
    grants_seen: u64,
    assignments: HashMap<AttemptKey, Arc<Assignment>>,
    reached: Reached,
    // Whether waits were taken over from another leader's clock since the log was read.
    waits_are_ours: bool,
}

impl<W> RunLog<W> {
    /// With an empty memory. `life` tells this leader's actors of the run apart: another one has seen none of the
    /// grants.
    pub fn new(run: RunId, life: u64) -> Self {
        Self {
            run,
            life,
            trace: Arc::default(),
            memory: Memory::None,
            pending: Vec::new(),
            refusals: HashMap::new(),
            ledger_failures: 0,
            grants_seen: 0,
            assignments: HashMap::new(),
            reached: Reached::default(),
            waits_are_ours: false,
        }
    }

    /// How far an attempt of a chunk has come, as a heartbeat says.
    pub fn heard(&mut self, heard: &Heard) {
        self.reached.heard(heard);
    }

    /// The trace context that the run's assignments travel with.
    pub fn set_trace(&mut self, trace: Arc<Carrier>) {
        self.trace = trace;
    }

    /// Something happened that nobody waits for an answer to.
    pub fn take(&mut self, input: Input) {
        let asked = Asked::Nobody;
        self.pending.push(Pending { input, asked });
    }

    /// A node has a slot.
    pub fn grant(&mut self, number: u64, work: Work, node: NodeName) {
        self.pending.push(Pending {
            input: Input::Grant { work, node },
            asked: Asked::Grant(number),
        });
    }

    /// Something happened, and somebody waits for an answer.
    pub fn ask(&mut self, input: Input, asker: W) {
        let asked = Asked::By(asker);
        self.pending.push(Pending { input, asked });
    }

    /// Whether the log has to be read ([`RunLog::read`]) before anything can be decided.
    pub fn is_forgotten(&self) -> bool {
        matches!(self.memory, Memory::None)
    }

    /// Throws the memory away: the log is read again.
    pub fn forget(&mut self) {
        self.memory = Memory::None;
    }

    /// What stands, as far as it is known.
    pub fn state(&self) -> Option<(&Arc<State>, Seq)> {
        match &self.memory {
            Memory::Stands(log) => Some((&log.state, log.seq)),
            Memory::None | Memory::Ahead(_) => None,
        }
    }

    /// Folds the log as it stands in the ledger.
    pub fn read(&mut self, rows: &[(Seq, Event)]) -> Result<(), Unreadable> {
        let mut seq = Seq(0);
        let mut state = State::default();
        for (place, event) in rows {
            if *place != seq.next() {
                return Err(Unreadable(format!("its log has no event {}", seq.next())));
            }
            if matches!(event, Event::Submitted { .. }) != (seq == Seq(0)) {
                return Err(Unreadable(format!("its log has {} as event {place}", event.kind())));
            }
            state.apply(event);
            seq = *place;
        }
        if state.run() != Some(&self.run) {
            return Err(Unreadable("its log is empty or belongs to another run".to_owned()));
        }
        self.memory = Memory::Stands(Log {
            state: Arc::new(state),
            seq,
        });
        self.waits_are_ours = false;
        Ok(())
    }

    /// Decides about everything that is pending, and about whatever follows from that alone.
    pub fn decide(&mut self, now: Millis) -> Next<W> {
        let Memory::Stands(mut log) = std::mem::replace(&mut self.memory, Memory::None) else {
            return Next::Act(Vec::new());
        };
        if !std::mem::replace(&mut self.waits_are_ours, true) {
            Arc::make_mut(&mut log.state).bound_waits(now);
        }
        let events = self.decide_all(Arc::make_mut(&mut log.state), now);
        if events.is_empty() {
            return Next::Act(self.stands(log, now));
        }
        let append = Append {
            run: self.run.clone(),
            expected: log.seq,
            events,
        };
        self.memory = Memory::Ahead(log);
        Next::Append(append)
    }

    fn decide_all(&mut self, state: &mut State, now: Millis) -> Vec<Event> {
        let mut events = Vec::new();
        self.refusals.clear();
        for (place, pending) in self.pending.iter().enumerate() {
            match decide(state, &pending.input, now) {
                Ok(mut new) => {
                    for event in &mut new {
                        if let Event::AttemptFailed {
                            work,
                            attempt,
                            went_forward,
                            bytes_read_again,
                            ..
                        } = event
                        {
                            *went_forward = self.reached.went_forward(work, *attempt);
                            // Who can't be asked any more has said it while it could.
                            if !matches!(pending.input, Input::Done { .. }) {
                                *bytes_read_again = self.reached.ahead(work, *attempt);
                            }
                        }
                    }
                    new.iter().for_each(|event| state.apply(event));
                    events.extend(new);
                }
                Err(refused) => {
                    self.refusals.insert(place, refused);
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
        events
    }

    /// The append was answered. `None`: somebody else wrote to the log, which has to be read again.
    pub fn appended(&mut self, answer: Appended, now: Millis) -> Option<Vec<RunAction<W>>> {
        match (answer, std::mem::replace(&mut self.memory, Memory::None)) {
            (Appended::At(seq), Memory::Ahead(log)) => Some(self.stands(Log { seq, ..log }, now)),
            (Appended::Conflict | Appended::At(_), _) => None,
        }
    }

    /// The ledger could not be read or written, and whether an append stands is unknown: forgets the memory, and keeps of
    /// what is pending only what nobody would say again.
    pub fn failed(&mut self) -> Waits<W> {
        self.memory = Memory::None;
        let wait_ms = LEDGER_BACKOFF_MS << self.ledger_failures.min(LEDGER_BACKOFF_STEPS);
        self.ledger_failures = self.ledger_failures.saturating_add(1);
        let mut actions = Vec::new();
        let mut kept: Vec<Pending<W>> = Vec::new();
        for pending in self.pending.drain(..) {
            match pending.asked {
                Asked::Nobody => {
                    if !kept.iter().any(|known| known.input == pending.input) {
                        kept.push(pending);
                    }
                }
                Asked::Grant(number) => self.grants_seen = self.grants_seen.max(number),
                Asked::By(to) => actions.push(RunAction::Answer {
                    to,
                    answer: Answer::NotNow,
                }),
            }
        }
        self.pending = kept;
        Waits { actions, wait_ms }
    }

    /// What was decided stands: says so to whoever waits, and what is outstanding.
    fn stands(&mut self, log: Log, now: Millis) -> Vec<RunAction<W>> {
        self.ledger_failures = 0;
        let mut refusals = std::mem::take(&mut self.refusals);
        let mut actions = Vec::new();
        for (place, pending) in self.pending.drain(..).enumerate() {
            let refused = refusals.remove(&place);
            match pending.asked {
                Asked::Nobody => {}
                Asked::Grant(number) => self.grants_seen = self.grants_seen.max(number),
                Asked::By(to) => {
                    let answer = refused.map_or(Answer::Stands, Answer::Refused);
                    actions.push(RunAction::Answer { to, answer });
                }
            }
        }
        actions.push(match log.state.phase() {
            Phase::AtRest(outcome) => RunAction::AtRest(outcome),
            Phase::Empty
            | Phase::Discovering
            | Phase::Loading
            | Phase::Verifying
            | Phase::Publishing
            | Phase::Cleaning
            | Phase::Recalling
            | Phase::RollingBack
            | Phase::Stuck => RunAction::Post(self.outstanding(&log.state, now)),
        });
        self.memory = Memory::Stands(log);
        actions
    }

    fn outstanding(&mut self, state: &State, now: Millis) -> Post {
        let key = |work, attempt| AttemptKey {
            run: self.run.clone(),
            work,
            attempt,
        };
        let mut post = Post {
            run: self.run.clone(),
            life: self.life,
            grants_seen: self.grants_seen,
            places: Arc::default(),
            waiting: Vec::new(),
            awaited: BTreeMap::new(),
            drops: BTreeMap::new(),
            trace: Arc::clone(&self.trace),
        };
        if let Some(submission) = state.submission() {
            post.places = Arc::new(submission.places.clone());
        }
        let mut known = std::mem::take(&mut self.assignments);
        let mut assignments = HashMap::new();
        for effect in state.outstanding_within(WINDOW, now) {
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
                    let key = key(work, attempt);
                    let made = || assignment::of(state, &key.work, attempt).map(Arc::new);
                    if let Some(assignment) = known.remove(&key).or_else(made) {
                        assignments.insert(key.clone(), Arc::clone(&assignment));
                        post.awaited.insert(key, Awaited { node, assignment });
                    }
                }
                Effect::Drop { work, attempt, node } => {
                    post.drops.insert(key(work, attempt), node);
                }
                Effect::Settle => {}
            }
        }
        self.assignments = assignments;
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
}
