//! What a run owes: derived from the state alone, so that a recovered leader owes exactly what the old one did.

use std::collections::BTreeSet;

use super::{State, Tries};
use crate::ids::{Attempt, ChunkId, Millis, NodeName, StepKind, Work};

/// Something that has to be done for the run to move on. Carrying one out twice is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Find a node with a free slot, and bring back `Input::Grant`.
    Dispatch {
        /// What is to be done.
        work: Work,
        /// Not before this moment: the backoff after a failure.
        not_before: Millis,
        /// The node on which it failed last; another one is preferred.
        avoid: Option<NodeName>,
    },
    /// A node has it: send the assignment there, again after a reconnect, and wait for `Input::Done`.
    Await {
        /// What is being done.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// Where.
        node: NodeName,
    },
    /// A node has it and nobody wants it any more: tell it to drop it, and bring back `Input::Dropped`.
    Drop {
        /// What is being done.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// Where.
        node: NodeName,
    },
    /// Nothing outside is needed: bring `Input::Settle`, and the log goes on.
    Settle,
}

/// The work that moves a run on. Chunks are not copied: there may be many.
pub(super) enum Wanted<'a> {
    Chunks(&'a BTreeSet<ChunkId>),
    Works(BTreeSet<Work>),
}

impl Wanted<'_> {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Chunks(chunks) => chunks.is_empty(),
            Self::Works(works) => works.is_empty(),
        }
    }

    pub(super) fn contains(&self, work: &Work) -> bool {
        match (self, work) {
            (Self::Chunks(chunks), Work::Chunk(chunk)) => chunks.contains(chunk),
            (Self::Chunks(_), Work::Discover | Work::Step(_) | Work::Compensate(_)) => false,
            (Self::Works(works), _) => works.contains(work),
        }
    }

    fn works(&self) -> Box<dyn Iterator<Item = Work> + '_> {
        match self {
            Self::Chunks(chunks) => Box::new(chunks.iter().copied().map(Work::Chunk)),
            Self::Works(works) => Box::new(works.iter().cloned()),
        }
    }
}

impl State {
    /// What is owed now. Empty exactly when the log is empty, the run is at rest, or it is stuck.
    pub fn outstanding(&self) -> Vec<Effect> {
        self.outstanding_within(usize::MAX, Millis(u64::MAX))
    }

    /// The same with at most `window` dispatches that may go out at `now`, and at most as many that wait for a backoff:
    /// what it costs doesn't grow with the chunks that are still to come.
    pub fn outstanding_within(&self, window: usize, now: Millis) -> Vec<Effect> {
        if self.run.is_none() || self.finished.is_some() || self.stuck.is_some() {
            return Vec::new();
        }
        let wanted = self.wanted();
        let mut effects = Vec::new();
        for (work, attempt, node) in self.in_flight() {
            let (work, node) = (work.clone(), node.clone());
            effects.push(if wanted.contains(&work) {
                Effect::Await { work, attempt, node }
            } else {
                Effect::Drop { work, attempt, node }
            });
        }
        // A compensation waits until nothing that it undoes can still be written: a node answers a drop or is lost.
        let hold_back = self.rollback.is_some() && effects.iter().any(|effect| matches!(effect, Effect::Drop { .. }));
        if !hold_back {
            self.add_dispatches(&wanted, window, now, &mut effects);
        }
        let ends = if self.rollback.is_some() {
            self.given_up.iter().any(|work| wanted.contains(work))
        } else {
            self.reason_to_roll_back(&wanted).is_some()
        };
        if ends || effects.is_empty() {
            effects.push(Effect::Settle);
        }
        effects
    }

    fn add_dispatches(&self, wanted: &Wanted<'_>, window: usize, now: Millis, effects: &mut Vec<Effect>) {
        let (mut ready, mut backing_off) = (0, 0);
        for work in wanted.works() {
            let tries = self.tries.get(&work);
            if tries.is_some_and(|tries| tries.given_up.is_some() || tries.running_on.is_some()) {
                continue;
            }
            let count = match tries {
                Some(tries) if tries.not_before > now => &mut backing_off,
                Some(_) | None => &mut ready,
            };
            *count += 1;
            if *count <= window {
                effects.push(dispatch(work, tries));
            } else if ready > window {
                return;
            }
        }
    }

    /// Whether `outstanding` has a dispatch of this work, without deriving all the rest: a run of many chunks is granted
    /// one by one.
    pub(super) fn is_waiting(&self, work: &Work) -> bool {
        let at_rest = self.run.is_none() || self.finished.is_some() || self.stuck.is_some();
        if at_rest || self.running.contains(work) || self.given_up.contains(work) {
            return false;
        }
        let wanted = self.wanted();
        let held_back = self.rollback.is_some() && self.running.iter().any(|held| !wanted.contains(held));
        wanted.contains(work) && !held_back
    }

    /// The work that moves the run on, whether or not a node already has it.
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let steps = |kind| -> BTreeSet<Work> { self.saga.open(kind).into_iter().map(Work::Step).collect() };
        if self.rollback.is_some() {
            let next = self.saga.next_compensation();
            return Wanted::Works(next.map(|step| Work::Compensate(step.clone())).into_iter().collect());
        }
        if self.revert.is_some() {
            // Every load is asked, so that a refusal names everything that is in the way.
            let unasked = self.saga.unasked().map(Work::Step);
            let asking: BTreeSet<Work> = unasked.filter(|work| !self.given_up.contains(work)).collect();
            if !asking.is_empty() || self.saga.all_done(StepKind::Recall) {
                return Wanted::Works(asking);
            }
            // One has refused. Letting go of the others is no undoing and has no order: none waits for a destination that
            // is away because another one does.
            let kept = self.saga.recalled();
            return Wanted::Works(kept.map(|step| Work::Compensate(step.clone())).collect());
        }
        if !self.planned {
            return Wanted::Works(BTreeSet::from([Work::Discover]));
        }
        let prepare = steps(StepKind::Prepare);
        if !prepare.is_empty() {
            return Wanted::Works(prepare);
        }
        if !self.open.is_empty() {
            return Wanted::Chunks(&self.open);
        }
        // All of them answer before anything is staged again: one crash of a server is one round for the run.
        let mut verify = steps(StepKind::Verify);
        verify.retain(|work| !matches!(work, Work::Step(step) if self.lost.contains_key(&step.load)));
        if !verify.is_empty() || !self.lost.is_empty() {
            return Wanted::Works(verify);
        }
        if self.failed_checks().is_some() {
            return Wanted::Works(BTreeSet::new());
        }
        if let Some(publish) = self.saga.next_publish() {
            return Wanted::Works(BTreeSet::from([Work::Step(publish)]));
        }
        // A cleanup that was given up leaves garbage behind, and no reason to undo a published run.
        let mut cleanup = steps(StepKind::Cleanup);
        cleanup.retain(|work| !self.given_up.contains(work));
        Wanted::Works(cleanup)
    }
}

fn dispatch(work: Work, tries: Option<&Tries>) -> Effect {
    Effect::Dispatch {
        work,
        not_before: tries.map(|tries| tries.not_before).unwrap_or_default(),
        avoid: tries.and_then(|tries| tries.avoid.clone()),
    }
}
