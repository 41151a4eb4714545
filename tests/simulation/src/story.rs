//! A run as its log tells it, folded by the simulation itself: invariants must not trust the code that they judge.

use std::collections::{BTreeMap, BTreeSet};

use haulage_core::event::{Event, Outcome, StuckDecision};
use haulage_core::ids::{Attempt, ChunkId, NodeName, StepId, StepKind, Work};

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// Events that were folded.
    pub(crate) seen: usize,
    pub(crate) assigned: BTreeMap<(Work, Attempt), NodeName>,
    /// The last attempt of each work, and whether it is still under way.
    latest: BTreeMap<Work, (Attempt, bool)>,
    pub(crate) planned: bool,
    pub(crate) staged: BTreeSet<ChunkId>,
    pub(crate) done: BTreeSet<StepId>,
    /// Steps with an effect, in the order of their first start.
    pub(crate) started: Vec<StepId>,
    pub(crate) undone: BTreeSet<StepId>,
    pub(crate) abandoned: BTreeSet<StepId>,
    /// Those that were abandoned while undoing them was still tried: it may have succeeded, or still do so.
    pub(crate) left: BTreeSet<StepId>,
    pub(crate) rolls_back: bool,
    pub(crate) stuck: Option<StepId>,
    pub(crate) finished: Option<Outcome>,
    /// It was published, and is to be taken back.
    pub(crate) reverting: bool,
    /// Loads that were asked whether they can be taken back, and since then not let go.
    pub(crate) asked: BTreeSet<StepId>,
    /// One of them has refused, so that all are let go.
    letting_go: bool,
}

impl Story {
    /// The step that has to be undone next.
    fn next_to_undo(&self) -> Option<&StepId> {
        let open = |step: &&StepId| !self.undone.contains(*step) && !self.abandoned.contains(*step);
        self.started.iter().rev().find(open)
    }

    /// An event counts for the attempt that is under way, and for no other. An error is a stale one.
    pub(crate) fn attempt(&mut self, event: &Event) -> Result<(), String> {
        let (work, attempt) = match event {
            Event::Assigned { work, attempt, .. } => {
                let (before, under_way) = self.latest.get(work).copied().unwrap_or_default();
                if under_way || *attempt != before.next() {
                    return Err(format!("{work} is given away as attempt {attempt} after {before}"));
                }
                self.latest.insert(work.clone(), (*attempt, true));
                return Ok(());
            }
            Event::Planned { attempt, .. } => (Work::Discover, attempt),
            Event::ChunkStaged { work, attempt, .. }
            | Event::AttemptFailed { work, attempt, .. }
            | Event::HandedBack { work, attempt, .. } => (work.clone(), attempt),
            Event::StepDone { step, attempt, .. } => (Work::Step(step.clone()), attempt),
            Event::Compensated { step, attempt, .. } => (Work::Compensate(step.clone()), attempt),
            Event::Submitted { .. }
            | Event::CancelRequested { .. }
            | Event::Restaged { .. }
            | Event::RevertRequested { .. }
            | Event::RevertRefused { .. }
            | Event::RejectsPruned { .. }
            | Event::RollbackStarted { .. }
            | Event::Stuck { .. }
            | Event::Unstuck { .. }
            | Event::Abandoned { .. }
            | Event::Finished { .. } => return Ok(()),
        };
        match self.latest.insert(work.clone(), (*attempt, false)) {
            Some((latest, true)) if latest == *attempt => Ok(()),
            other => Err(format!("attempt {attempt} of {work} counts, after {other:?}")),
        }
    }

    /// Folds one event. An error is a break of the saga's order.
    pub(crate) fn fold(&mut self, event: &Event) -> Result<(), String> {
        self.seen += 1;
        let again = matches!(event, Event::RevertRequested { .. }) && self.finished == Some(Outcome::Published);
        if self.finished.is_some() && !again {
            return Err(format!("`{}` comes after the end", event.text()));
        }
        match event {
            Event::Assigned {
                work, attempt, node, ..
            } => {
                self.assigned.insert((work.clone(), *attempt), node.clone());
                self.may_start(work)?;
            }
            Event::Planned { .. } => self.planned = true,
            Event::ChunkStaged { work, .. } => {
                if let Work::Chunk(chunk) = work {
                    self.staged.insert(*chunk);
                }
            }
            Event::StepDone { step, .. } => {
                self.done.insert(step.clone());
            }
            Event::Compensated { step, .. } if step.kind == StepKind::Recall => {
                if !self.letting_go || self.rolls_back {
                    return Err(format!("{step} is undone, and nothing has refused the revert"));
                }
                self.asked.remove(step);
            }
            Event::Compensated { step, .. } => {
                if !self.rolls_back {
                    return Err(format!("{step} is undone, and the run doesn't roll back"));
                }
                let all_the_same = self.left.contains(step) && self.abandoned.remove(step);
                if !all_the_same && self.next_to_undo() != Some(step) {
                    return Err(format!("{step} is undone, {:?} comes first", self.next_to_undo()));
                }
                self.undone.insert(step.clone());
            }
            Event::Restaged { loads, stages, .. } => {
                self.staged.retain(|chunk| !stages.contains(&chunk.stage));
                let again = |step: &StepId| loads.contains(&step.load) && step.kind != StepKind::Publish;
                self.done.retain(|step| !again(step));
            }
            Event::RevertRequested { .. } => {
                self.finished = None;
                self.reverting = true;
                self.done.retain(|step| step.kind != StepKind::Recall);
                self.left.retain(|step| step.kind != StepKind::Recall);
                self.asked.clear();
            }
            Event::RevertRefused { .. } => {
                if !self.reverting || self.rolls_back || !self.letting_go || !self.asked.is_empty() {
                    return Err(format!("the revert is refused, and kept for it are {:?}", self.asked));
                }
                (self.reverting, self.letting_go) = (false, false);
            }
            Event::RollbackStarted { .. } => {
                let recalled = self.done.iter().filter(|step| step.kind == StepKind::Recall).count();
                let loads = self.done.iter().filter(|step| step.kind == StepKind::Publish).count();
                if self.reverting && (self.letting_go || recalled != loads) {
                    return Err(format!("it is undone, and {recalled} of {loads} loads can be"));
                }
                self.rolls_back = true;
            }
            Event::Stuck { step, .. } => self.stuck = Some(step.clone()),
            Event::Unstuck { decision, .. } => {
                if let (Some(step), StuckDecision::Abandon) = (self.stuck.take(), decision) {
                    self.abandoned.insert(step);
                }
            }
            Event::Abandoned { step, .. } if step.kind == StepKind::Recall => {
                if !self.letting_go || !self.asked.remove(step) {
                    return Err(format!("{step} is abandoned, and was not to be let go"));
                }
                self.left.insert(step.clone());
            }
            Event::Abandoned { step, .. } => {
                if !self.rolls_back || self.next_to_undo() != Some(step) {
                    return Err(format!(
                        "{step} is abandoned, and {:?} is to be undone",
                        self.next_to_undo()
                    ));
                }
                self.abandoned.insert(step.clone());
                self.left.insert(step.clone());
            }
            Event::Finished { outcome, .. } => self.finish(*outcome)?,
            Event::Submitted { .. }
            | Event::AttemptFailed { .. }
            | Event::HandedBack { .. }
            | Event::CancelRequested { .. }
            | Event::RejectsPruned { .. } => {}
        }
        Ok(())
    }

    fn may_start(&mut self, work: &Work) -> Result<(), String> {
        match work {
            Work::Step(step) if step.kind == StepKind::Recall => {
                if !self.reverting || self.rolls_back || self.letting_go {
                    return Err(format!("{work} starts, and nobody asks for that now"));
                }
                self.asked.insert(step.clone());
            }
            Work::Compensate(step) if step.kind == StepKind::Recall => {
                if !self.reverting || self.rolls_back || !self.asked.contains(step) {
                    return Err(format!("{work} starts, and it is not kept"));
                }
                self.letting_go = true;
            }
            Work::Compensate(step) if !self.rolls_back => {
                return Err(format!("{step} is to be undone, and the run doesn't roll back"));
            }
            Work::Compensate(_) => {}
            Work::Discover | Work::Chunk(_) | Work::Step(_) if self.rolls_back => {
                return Err(format!("{work} starts while the run rolls back"));
            }
            Work::Step(step) => {
                let effect = matches!(step.kind, StepKind::Prepare | StepKind::Publish);
                if effect && !self.started.contains(step) {
                    self.started.push(step.clone());
                }
            }
            Work::Discover | Work::Chunk(_) => {}
        }
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome) -> Result<(), String> {
        self.finished = Some(outcome);
        match outcome {
            Outcome::Published if self.rolls_back => Err("it is published and rolled back".to_owned()),
            Outcome::Failed | Outcome::Cancelled | Outcome::Reverted if !self.rolls_back => {
                Err("it has failed, and was never rolled back".to_owned())
            }
            Outcome::Reverted if !self.reverting => Err("it is reverted, and nobody asked for that".to_owned()),
            Outcome::Failed | Outcome::Cancelled if self.reverting => {
                Err("it was to be reverted, and is something else".to_owned())
            }
            Outcome::Failed | Outcome::Cancelled | Outcome::Reverted => match self.next_to_undo() {
                Some(step) => Err(format!("it is over, and {step} was never undone")),
                None => Ok(()),
            },
            Outcome::Published if self.reverting => Err("it is published, and to be reverted".to_owned()),
            Outcome::Published => Ok(()),
        }
    }
}
