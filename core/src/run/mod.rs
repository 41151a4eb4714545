//! A run, folded from its log.
//!
//! ```text
//!                                 ┌── staging lost ◄──┬───────────┐
//!                                 ▼                   │           │ of the first publish
//!   submitted ─► discovering ─► preparing ─► loading ─► verifying ─► publishing ─► cleaning ─► published
//!                     └────────────┴────────────┴───────────┴───────────┘             refused ▲ │ revert, later
//!                     a failure for good, or a cancel before publishing began                 │ ▼
//!                                           ▼                                           recalling
//!                                     rolling back ◄──────────────────────────────────────────┘
//!                                       │  │   ▲
//!                                       │  ▼   │ retry | abandon
//!                                       │ stuck
//!                                       ▼
//!                                     failed | cancelled | reverted
//! ```
//!
//! [`State::apply`] only records; [`decide`] makes events of inputs and never changes a state; [`State::outstanding`]
//! says what is owed. Nothing here trusts the log to be one that `decide` made: any sequence of events folds.

mod checks;
mod decide;
mod outstanding;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use checks::Judged;
pub use decide::{Completion, Input, Refused, decide, submitted};
pub use outstanding::Effect;

use crate::checkpoint::{ChunkReport, Counts};
use crate::event::{CheckResult, Event, Outcome, PlannedStage, StepReport, StuckDecision};
use crate::failure::{Class, Failure};
use crate::ids::{Attempt, ChunkId, LoadName, Millis, NodeName, RunId, StageId, StepId, StepKind, Work};
use crate::quarantine::SetAside;
use crate::saga::Saga;
use crate::submission::Submission;

/// Failures of one piece of work before the run gives it up. With the waits between them a warehouse may be away for a
/// minute, as while it is restarted or fails over.
pub const MAX_FAILURES: u32 = 8;
/// The same for discovery: nothing is lost yet, and somebody who mistyped an address waits in front of it.
pub const MAX_DISCOVER_FAILURES: u32 = 5;
/// Nodes that may be lost over one piece of work before it counts as poison.
pub const MAX_LOST: u32 = 3;

/// Chunks that took nodes down and are set aside while the rest goes on, before the run is given up all the same: what
/// takes down one node after the other is hardly the fault of a few rows.
pub const MAX_SET_ASIDE: usize = 16;
/// How often a run stages again what a destination has lost. A server that crashes more often than that needs its operator.
pub const MAX_RESTAGED: u32 = 3;

/// Where a run is, coarsely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The log is empty.
    Empty,
    /// Sources are listed and cut.
    Discovering,
    /// Staging areas are made; chunks are read, transformed and staged.
    Loading,
    /// What is staged is held against what was read.
    Verifying,
    /// Loads are made visible.
    Publishing,
    /// Published; leftovers are removed.
    Cleaning,
    /// Published, and to be taken back: whether that is possible is asked at every destination.
    Recalling,
    /// Everything started is undone.
    RollingBack,
    /// Undoing keeps failing; an operator has to decide.
    Stuck,
    /// Nothing is owed any more.
    AtRest(Outcome),
}

/// What a load's chunks reported in total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    /// Rows in the staging area.
    pub rows: u64,
    /// Segments, each with a marker.
    pub segments: u64,
}

/// How often a piece of work was tried, and where it is.
#[derive(Debug, Clone, Default)]
struct Tries {
    attempt: Attempt,
    running_on: Option<NodeName>,
    failures: u32,
    lost: u32,
    not_before: Millis,
    avoid: Option<NodeName>,
    // Set when no further attempt makes sense.
    given_up: Option<Failure>,
}

/// A run's state: only ever the fold of its events.
#[derive(Debug, Clone, Default)]
pub struct State {
    run: Option<RunId>,
    submission: Option<Submission>,
    replaces: Option<RunId>,
    submitted_at: Millis,
    planned: bool,
    stages: Vec<PlannedStage>,
    reports: BTreeMap<ChunkId, ChunkReport>,
    chunks: usize,
    tries: BTreeMap<Work, Tries>,
    // Indexes into the above, so that a run of many chunks costs no more for each than a run of few: planned chunks
    // without a report, work with `running_on`, work with `given_up`.
    open: BTreeSet<ChunkId>,
    running: BTreeSet<Work>,
    given_up: BTreeSet<Work>,
    saga: Saga,
    checks: BTreeMap<LoadName, Vec<CheckResult>>,
    set_aside: BTreeMap<LoadName, SetAside>,
    cancel: Option<String>,
    rollback: Option<Failure>,
    rollback_by_cancel: bool,
    stuck: Option<(StepId, Failure)>,
    undoing_waits: Option<(StepId, Failure)>,
    // Loads whose staging area holds less than was staged; what the destination said.
    lost: BTreeMap<LoadName, Failure>,
    restaged: u32,
    // Why the published run is to be taken back.
    revert: Option<String>,
    reverts: u32,
    refused: Option<Failure>,
    finished: Option<(Outcome, Millis)>,
    pruned: Option<(String, Millis)>,
    retries: u32,
    restarts: u32,
    bytes_read_again: u64,
}

impl State {
    /// Folds a log, or a prefix of one.
    pub fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut state = Self::default();
        for event in events {
            state.apply(event);
        }
        state
    }

    /// Records an event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Submitted {
                run,
                submission,
                replaces,
                at,
            } => {
                self.saga = Saga::new(submission.loads.iter().map(|load| load.name.clone()).collect());
                self.run = Some(run.clone());
                self.submission = Some(submission.as_ref().clone());
                self.replaces.clone_from(replaces);
                self.submitted_at = *at;
            }
            Event::Assigned {
                work, attempt, node, ..
            } => {
                let tries = self.tries.entry(work.clone()).or_default();
                tries.attempt = *attempt;
                tries.running_on = Some(node.clone());
                self.running.insert(work.clone());
                if let Work::Step(step) = work {
                    self.saga.start(step);
                }
            }
            Event::Planned { stages, .. } => {
                self.settle_attempt(&Work::Discover);
                self.planned = true;
                self.stages.clone_from(stages);
                self.chunks = stages.iter().map(|stage| stage.chunks.len()).sum();
                let chunks = stages.iter().flat_map(|stage| &stage.chunks).map(|spec| spec.chunk);
                self.open = chunks.filter(|chunk| !self.reports.contains_key(chunk)).collect();
            }
            Event::ChunkStaged { work, report, .. } => {
                self.settle_attempt(work);
                if let Work::Chunk(chunk) = work {
                    self.restarts = self.restarts.saturating_add(report.restarted());
                    self.bytes_read_again = self.bytes_read_again.saturating_add(report.bytes_read_again);
                    self.reports.insert(*chunk, report.clone());
                    self.open.remove(chunk);
                }
            }
            Event::StepDone { step, report, .. } => {
                self.settle_attempt(&Work::Step(step.clone()));
                self.saga.finish(step, report.clone());
                if step.kind == StepKind::Verify {
                    self.checks.insert(step.load.clone(), report.checks.clone());
                    match &report.set_aside {
                        Some(rows) => self.set_aside.insert(step.load.clone(), (**rows).clone()),
                        None => self.set_aside.remove(&step.load),
                    };
                }
            }
            Event::Compensated { step, .. } => {
                self.settle_attempt(&Work::Compensate(step.clone()));
                self.saga.compensate(step);
                self.undoing_waits = self.undoing_waits.take().filter(|(waits, _)| waits != step);
            }
            Event::AttemptFailed {
                work,
                node,
                failure,
                node_lost_after_ms,
                restarts,
                bytes_read_again,
                went_forward,
                not_before,
                ..
            } => {
                self.restarts = self.restarts.saturating_add(*restarts);
                self.bytes_read_again = self.bytes_read_again.saturating_add(*bytes_read_again);
                if *went_forward {
                    let tries = self.tries.entry(work.clone()).or_default();
                    (tries.failures, tries.lost) = (0, 0);
                }
                self.record_failure(work, node, failure, node_lost_after_ms.is_some(), *not_before);
            }
            Event::Restaged { stages, round, .. } => self.restage(stages, *round),
            Event::HandedBack {
                work,
                node,
                restarts,
                bytes_read_again,
                ..
            } => {
                self.restarts = self.restarts.saturating_add(*restarts);
                self.bytes_read_again = self.bytes_read_again.saturating_add(*bytes_read_again);
                self.settle_attempt(work);
                self.tries.entry(work.clone()).or_default().avoid = Some(node.clone());
            }
            Event::CancelRequested { reason, .. } => self.cancel = Some(reason.clone()),
            Event::RollbackStarted { failure, .. } => {
                self.rollback_by_cancel = self.cancel.is_some();
                self.rollback = Some(failure.clone());
            }
            Event::Stuck { step, failure, .. } => {
                self.stuck = Some((step.clone(), failure.clone()));
                self.undoing_waits = None;
            }
            Event::Unstuck { decision, .. } => self.unstick(*decision),
            Event::Abandoned { step, .. } => {
                self.saga.abandon(step);
                self.undoing_waits = None;
            }
            Event::RevertRequested { reason, .. } => self.request_revert(reason),
            Event::RevertRefused { failure, .. } => {
                self.revert = None;
                self.undoing_waits = None;
                self.refused = Some(failure.clone());
            }
            Event::RejectsPruned { by, at } => self.pruned = Some((by.clone(), *at)),
            Event::Finished { outcome, at } => self.finished = Some((*outcome, *at)),
        }
    }

    /// Bounds every wait for a next attempt by the longest there is, from `now` on: the log's times are by the clock of the
    /// leader that wrote them, which may have been ahead.
    pub fn bound_waits(&mut self, now: Millis) {
        let longest = now.plus(decide::BACKOFF_MAX_MS * 5 / 4);
        for tries in self.tries.values_mut() {
            tries.not_before = tries.not_before.min(longest);
        }
    }

    fn settle_attempt(&mut self, work: &Work) {
        self.tries.entry(work.clone()).or_default().running_on = None;
        self.running.remove(work);
    }

    fn record_failure(&mut self, work: &Work, node: &NodeName, failure: &Failure, lost: bool, not_before: Millis) {
        let tries = self.tries.entry(work.clone()).or_default();
        self.running.remove(work);
        tries.running_on = None;
        tries.not_before = not_before;
        tries.avoid = Some(node.clone());
        if lost {
            tries.lost += 1;
        } else {
            tries.failures += 1;
        }
        tries.given_up = given_up(work, tries, failure);
        if tries.given_up.is_some() {
            self.given_up.insert(work.clone());
        } else {
            self.given_up.remove(work);
        }
        if let (Work::Step(step), Class::StagingLost, None) = (work, failure.class, &tries.given_up) {
            self.lost.insert(step.load.clone(), failure.clone());
        }
        // One that was abandoned while a node had it may still fail, and nobody waits for it any more.
        let given_up = tries.given_up.is_some();
        let undone_next = match work {
            Work::Compensate(step) if self.wanted().contains(work) => Some(step.clone()),
            Work::Discover | Work::Chunk(_) | Work::Step(_) | Work::Compensate(_) => None,
        };
        // What is given up, or dropped because the run rolls back, isn't tried again.
        if !given_up && (self.rollback.is_none() || undone_next.is_some()) {
            self.retries += 1;
        }
        if let (Some(step), false, false) = (undone_next, given_up, lost) {
            self.undoing_waits = Some((step, failure.clone()));
        }
    }

    /// The stages' chunks are open again, and whatever stood on their rows has to be done again.
    fn restage(&mut self, stages: &[StageId], round: u32) {
        self.restaged = round;
        self.lost.clear();
        let planned = std::mem::take(&mut self.stages);
        for stage in planned.iter().filter(|planned| stages.contains(&planned.stage)) {
            for spec in &stage.chunks {
                self.reports.remove(&spec.chunk);
                self.open.insert(spec.chunk);
                self.forgive(&Work::Chunk(spec.chunk));
            }
            for load in &stage.loads {
                // They are staged again, with all others.
                self.set_aside.remove(load);
                for kind in [StepKind::Prepare, StepKind::Verify, StepKind::Publish] {
                    let step = StepId {
                        kind,
                        load: load.clone(),
                    };
                    if kind != StepKind::Publish {
                        self.saga.reopen(&step);
                    }
                    self.forgive(&Work::Step(step));
                }
            }
        }
        self.stages = planned;
    }

    /// Earlier failures say nothing about what is tried now.
    fn forgive(&mut self, work: &Work) {
        self.given_up.remove(work);
        if let Some(tries) = self.tries.get_mut(work) {
            tries.failures = 0;
            tries.given_up = None;
            tries.not_before = Millis(0);
        }
    }

    fn request_revert(&mut self, reason: &str) {
        if !matches!(self.finished, Some((Outcome::Published, _))) {
            return;
        }
        self.finished = None;
        self.refused = None;
        self.reverts += 1;
        self.revert = Some(reason.to_owned());
        for load in self.saga.loads().to_vec() {
            self.saga.ask_again(&load);
            let step = StepId {
                kind: StepKind::Recall,
                load,
            };
            for work in [Work::Step(step.clone()), Work::Compensate(step)] {
                self.forgive(&work);
                if let Some(tries) = self.tries.get_mut(&work) {
                    tries.lost = 0;
                }
            }
        }
    }

    fn unstick(&mut self, decision: StuckDecision) {
        let Some((step, _)) = self.stuck.take() else { return };
        match decision {
            StuckDecision::Retry => {
                let work = Work::Compensate(step);
                self.forgive(&work);
                if let Some(tries) = self.tries.get_mut(&work) {
                    tries.lost = 0;
                }
            }
            StuckDecision::Abandon => self.saga.abandon(&step),
        }
    }

    /// The run's id; `None` while the log is empty.
    pub fn run(&self) -> Option<&RunId> {
        self.run.as_ref()
    }

    /// What was asked for.
    pub fn submission(&self) -> Option<&Submission> {
        self.submission.as_ref()
    }

    /// The published run that this one replaces.
    pub fn replaces(&self) -> Option<&RunId> {
        self.replaces.as_ref()
    }

    /// When it was submitted.
    pub fn submitted_at(&self) -> Millis {
        self.submitted_at
    }

    /// How and when it came to rest.
    pub fn finished(&self) -> Option<(Outcome, Millis)> {
        self.finished
    }

    /// The stages that discovery planned.
    pub fn stages(&self) -> &[PlannedStage] {
        &self.stages
    }

    /// What a staged chunk reported.
    pub fn chunk_report(&self, chunk: ChunkId) -> Option<&ChunkReport> {
        self.reports.get(&chunk)
    }

    /// What every staged chunk reported, in order.
    pub fn chunk_reports(&self) -> impl Iterator<Item = (ChunkId, &ChunkReport)> {
        self.reports.iter().map(|(chunk, report)| (*chunk, report))
    }

    /// Who had the rejected rows deleted, and when, if that has happened.
    pub fn pruned(&self) -> Option<(&str, Millis)> {
        self.pruned.as_ref().map(|(by, at)| (by.as_str(), *at))
    }

    /// What a finished step reported.
    pub fn step_report(&self, kind: StepKind, load: &LoadName) -> Option<&StepReport> {
        self.saga.report(&StepId {
            kind,
            load: load.clone(),
        })
    }

    /// The sum over every staged chunk, with the rows that checks have set aside among the rejected ones.
    pub fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for report in self.reports.values() {
            total += &report.counts;
        }
        for (reason, rows) in self.set_aside.values().flat_map(|aside| &aside.reasons) {
            *total.rejected.entry(reason.clone()).or_default() += rows;
        }
        total
    }

    /// What verify and publish must find in a load's staging area.
    pub fn expected(&self, load: &LoadName) -> Expected {
        let mut expected = Expected::default();
        for report in self.reports.values() {
            if let Some(counts) = report.counts.loads.get(load.as_str()) {
                expected.rows += counts.loaded;
                expected.segments += u64::from(report.segments);
            }
        }
        expected
    }

    /// Why the run rolls back or has failed, or why it could not be reverted.
    pub fn failure(&self) -> Option<&Failure> {
        self.rollback.as_ref().or(self.refused.as_ref())
    }

    /// How often what was staged was lost and staged again. Steps and chunks of an earlier round have no effect.
    pub fn round(&self) -> u32 {
        self.restaged
    }

    /// How often it was asked to be reverted. What a destination was told of an earlier time has no effect.
    pub fn reverts(&self) -> u32 {
        self.reverts
    }

    /// The step that can't be undone, and why.
    pub fn stuck(&self) -> Option<&(StepId, Failure)> {
        self.stuck.as_ref()
    }

    /// The step whose undoing failed and is tried until it succeeds or is abandoned, and why it failed last: as a rule its
    /// destination is away.
    pub fn undoing_waits(&self) -> Option<&(StepId, Failure)> {
        self.undoing_waits.as_ref()
    }

    /// Steps that an operator left as they are, in the order of their start.
    pub fn abandoned(&self) -> impl Iterator<Item = &StepId> {
        self.saga.abandoned()
    }

    /// Attempts that failed or were lost and had to be made again.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// How often work on a chunk went on from a checkpoint after a failure or a loss, in attempts that failed too.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Bytes of the sources that were read more than once because work was interrupted between two checkpoints. Of a lost
    /// node it is what its last heartbeat said.
    pub fn bytes_read_again(&self) -> u64 {
        self.bytes_read_again
    }

    /// Attempts that a node has, as far as the log knows.
    pub fn in_flight(&self) -> impl Iterator<Item = (&Work, Attempt, &NodeName)> {
        self.running.iter().filter_map(|work| {
            let tries = self.tries.get(work)?;
            Some((work, tries.attempt, tries.running_on.as_ref()?))
        })
    }

    /// Where the run is.
    pub fn phase(&self) -> Phase {
        if let Some((outcome, _)) = self.finished {
            Phase::AtRest(outcome)
        } else if self.run.is_none() {
            Phase::Empty
        } else if self.stuck.is_some() {
            Phase::Stuck
        } else if self.rollback.is_some() {
            Phase::RollingBack
        } else if self.revert.is_some() {
            Phase::Recalling
        } else if !self.planned {
            Phase::Discovering
        } else if self.reports.len() < self.chunks || !self.saga.all_done(StepKind::Prepare) {
            Phase::Loading
        } else if !self.saga.all_done(StepKind::Verify) {
            Phase::Verifying
        } else if !self.saga.all_done(StepKind::Publish) {
            Phase::Publishing
        } else {
            Phase::Cleaning
        }
    }
}

/// Whether, after a failure, another attempt makes sense; if not, what to tell the user.
fn given_up(work: &Work, tries: &Tries, failure: &Failure) -> Option<Failure> {
    // A destination that is away for a while must not leave a run half undone: undoing waits until it is back.
    let may_pass = matches!(failure.class, Class::Transient | Class::Fenced);
    if may_pass && matches!(work, Work::Compensate(_)) {
        return None;
    }
    // Given up, it would keep its target from everybody, and nobody would know. A person may say that it is to be.
    if matches!(work, Work::Compensate(step) if step.kind == StepKind::Recall) {
        return None;
    }
    if tries.lost >= MAX_LOST && !matches!(work, Work::Compensate(_)) {
        return Some(Failure {
            class: Class::Poison,
            message: format!(
                "{work} took down {} nodes, the last after: {}; look at those nodes' logs and memory before running again",
                tries.lost, failure.message
            ),
        });
    }
    let most = match work {
        Work::Discover => MAX_DISCOVER_FAILURES,
        Work::Chunk(_) | Work::Step(_) | Work::Compensate(_) => MAX_FAILURES,
    };
    match failure.class {
        Class::Permanent | Class::Poison => Some(failure.clone()),
        Class::StagingLost => match work {
            // The run stages again, or not: that is decided for all loads together.
            Work::Step(step) if matches!(step.kind, StepKind::Verify | StepKind::Publish) => None,
            Work::Discover | Work::Chunk(_) | Work::Step(_) | Work::Compensate(_) => Some(failure.clone()),
        },
        Class::Transient | Class::Fenced if tries.failures >= most => Some(Failure {
            class: Class::Permanent,
            message: format!(
                "{work} failed {} times, the last with: {}",
                tries.failures, failure.message
            ),
        }),
        Class::Transient | Class::Fenced => None,
    }
}
