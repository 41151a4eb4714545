//! The saga of a run: which step comes next, and in which order started steps are undone.
//!
//! ```text
//!            prepare ─► (chunks) ─► verify ─► publish ─► cleanup ─► at rest ─► recall
//!               ▲ ▲          staging lost│        │pivot                          │on purpose, later
//!               │ └──────────────────────┘        ▼                               ▼
//!   rollback:   └◄── discard ◄────────────────  revert  ◄─────────────────────────┤
//!                                                            a load refuses: let go of all ─► at rest
//!                                       in reverse order of the start, one at a time
//! ```
//!
//! Steps run at least once and are idempotent. Every *started* step that has an effect is compensated, also one that
//! failed or whose outcome is unknown; a compensation tolerates that there is nothing to undo. Publish is the pivot of
//! each load: loads publish one after the other in file order, so that when a later one fails for good the earlier ones
//! are reverted in reverse order. Steps are coarse: discarding a staging area compensates all its chunks.
//!
//! The saga has no log of its own: it is folded from the run's events, because two logs drift apart.

use std::collections::BTreeMap;

use crate::event::StepReport;
use crate::ids::{LoadName, StepId, StepKind};

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It was given to a node at least once; its outcome may be unknown.
    Started,
    /// It is done.
    Done(StepReport),
    /// It was done, or may have been, and is undone.
    Compensated,
    /// An operator left it as it is.
    Abandoned,
}

/// The saga of one run, folded from its events.
#[derive(Debug, Clone, Default)]
pub struct Saga {
    loads: Vec<LoadName>,
    steps: BTreeMap<StepId, Progress>,
    // Compensation goes through this backwards.
    order: Vec<StepId>,
}

impl Saga {
    /// The saga of a run with these loads, in publishing order.
    pub fn new(loads: Vec<LoadName>) -> Self {
        Self {
            loads,
            steps: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    /// The loads, in publishing order.
    pub fn loads(&self) -> &[LoadName] {
        &self.loads
    }

    /// A step was given to a node.
    pub fn start(&mut self, step: &StepId) {
        if !self.steps.contains_key(step) {
            self.steps.insert(step.clone(), Progress::Started);
            self.order.push(step.clone());
        }
    }

    /// A step is done. A step that was compensated meanwhile stays compensated.
    pub fn finish(&mut self, step: &StepId, report: StepReport) {
        self.start(step);
        if let Some(progress @ (Progress::Started | Progress::Done(_))) = self.steps.get_mut(step) {
            *progress = Progress::Done(report);
        }
    }

    /// A step is undone; also one that was abandoned while a node was at it.
    pub fn compensate(&mut self, step: &StepId) {
        self.start(step);
        self.steps.insert(step.clone(), Progress::Compensated);
    }

    /// An operator leaves a step as it is.
    pub fn abandon(&mut self, step: &StepId) {
        self.start(step);
        self.steps.insert(step.clone(), Progress::Abandoned);
    }

    /// A step that was done has to be done again: what it made is gone. It stays in its place of the order.
    pub fn reopen(&mut self, step: &StepId) {
        if let Some(progress @ Progress::Done(_)) = self.steps.get_mut(step) {
            *progress = Progress::Started;
        }
    }

    /// A load is asked anew whether it can be taken back: an earlier answer was about an earlier moment.
    pub fn ask_again(&mut self, load: &LoadName) {
        self.steps.remove(&recall(load));
        self.order.retain(|step| *step != recall(load));
    }

    /// The loads that were not asked yet whether they can be taken back, or have not answered.
    pub fn unasked(&self) -> impl Iterator<Item = StepId> {
        self.loads
            .iter()
            .map(recall)
            .filter(|step| matches!(self.steps.get(step), None | Some(Progress::Started)))
    }

    /// The loads that were asked whether they can be taken back and may be kept for it since, the last one first.
    pub fn recalled(&self) -> impl Iterator<Item = &StepId> {
        self.order.iter().rev().filter(|step| {
            step.kind == StepKind::Recall
                && matches!(self.steps.get(*step), Some(Progress::Started | Progress::Done(_)))
        })
    }

    /// Where a step stands; `None` if it never started.
    pub fn progress(&self, step: &StepId) -> Option<&Progress> {
        self.steps.get(step)
    }

    /// What a finished step reported.
    pub fn report(&self, step: &StepId) -> Option<&StepReport> {
        match self.steps.get(step) {
            Some(Progress::Done(report)) => Some(report),
            Some(Progress::Started | Progress::Compensated | Progress::Abandoned) | None => None,
        }
    }

    /// Whether the step of this kind is done for every load.
    pub fn all_done(&self, kind: StepKind) -> bool {
        self.loads.iter().all(|load| self.is_done(kind, load))
    }

    /// Whether the first publish has been given to a node: from then on a user's cancel is refused.
    pub fn publish_begun(&self) -> bool {
        self.order.iter().any(|step| step.kind == StepKind::Publish)
    }

    /// The steps of this kind that are not done, in load order.
    pub fn open(&self, kind: StepKind) -> Vec<StepId> {
        self.loads
            .iter()
            .filter(|load| !self.is_done(kind, load))
            .map(|load| StepId {
                kind,
                load: load.clone(),
            })
            .collect()
    }

    /// The next publish: one at a time, in load order, since each is the pivot of its load.
    pub fn next_publish(&self) -> Option<StepId> {
        self.open(StepKind::Publish).into_iter().next()
    }

    /// What has to be undone next: the latest started step that has an effect and isn't undone.
    pub fn next_compensation(&self) -> Option<&StepId> {
        self.order.iter().rev().find(|step| {
            has_effect(step.kind) && matches!(self.steps.get(step), Some(Progress::Started | Progress::Done(_)))
        })
    }

    /// The steps that were left as they are, in the order of their start.
    pub fn abandoned(&self) -> impl Iterator<Item = &StepId> {
        self.order
            .iter()
            .filter(|step| self.steps.get(*step) == Some(&Progress::Abandoned))
    }

    fn is_done(&self, kind: StepKind, load: &LoadName) -> bool {
        let step = StepId {
            kind,
            load: load.clone(),
        };
        matches!(self.steps.get(&step), Some(Progress::Done(_)))
    }
}

fn recall(load: &LoadName) -> StepId {
    StepId {
        kind: StepKind::Recall,
        load: load.clone(),
    }
}

/// Whether a step leaves something behind that a rollback must undo. What verify builds lies in the staging area and
/// goes with it; cleanup runs after the last pivot and only removes. That a load is kept for its revert ends with the
/// revert; only when that is refused it has to be let go, and nothing else is undone then.
fn has_effect(kind: StepKind) -> bool {
    match kind {
        StepKind::Prepare | StepKind::Publish => true,
        StepKind::Verify | StepKind::Cleanup | StepKind::Recall => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: StepKind, load: &str) -> StepId {
        StepId {
            kind,
            load: LoadName::from(load),
        }
    }

    #[test]
    fn compensation_goes_backwards_over_started_steps() {
        let mut saga = Saga::new(vec!["a".into(), "b".into()]);
        for started in [
            step(StepKind::Prepare, "a"),
            step(StepKind::Prepare, "b"),
            step(StepKind::Verify, "a"),
        ] {
            saga.start(&started);
        }
        saga.finish(&step(StepKind::Publish, "a"), StepReport::default());
        // Started, and nobody knows how it ended.
        saga.start(&step(StepKind::Publish, "b"));

        let mut undone = Vec::new();
        while let Some(next) = saga.next_compensation().cloned() {
            saga.compensate(&next);
            undone.push(next.to_string());
        }
        assert_eq!(undone, ["publish b", "publish a", "prepare b", "prepare a"]);
    }

    #[test]
    fn publishes_one_after_the_other_in_load_order() {
        let mut saga = Saga::new(vec!["z".into(), "a".into()]);
        assert_eq!(saga.next_publish(), Some(step(StepKind::Publish, "z")));
        saga.start(&step(StepKind::Publish, "z"));
        assert_eq!(saga.next_publish(), Some(step(StepKind::Publish, "z")));
        saga.finish(&step(StepKind::Publish, "z"), StepReport::default());
        assert_eq!(saga.next_publish(), Some(step(StepKind::Publish, "a")));
    }

    #[test]
    fn a_late_success_does_not_undo_a_compensation() {
        let mut saga = Saga::new(vec!["a".into()]);
        saga.start(&step(StepKind::Publish, "a"));
        saga.compensate(&step(StepKind::Publish, "a"));
        saga.finish(&step(StepKind::Publish, "a"), StepReport::default());
        assert_eq!(
            saga.progress(&step(StepKind::Publish, "a")),
            Some(&Progress::Compensated)
        );
        assert_eq!(saga.next_compensation(), None);
    }

    #[test]
    fn an_abandoned_step_is_passed_over() {
        let mut saga = Saga::new(vec!["a".into()]);
        saga.start(&step(StepKind::Prepare, "a"));
        saga.start(&step(StepKind::Publish, "a"));
        saga.abandon(&step(StepKind::Publish, "a"));
        assert_eq!(saga.next_compensation(), Some(&step(StepKind::Prepare, "a")));
    }
}
