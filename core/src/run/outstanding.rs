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

impl State {
    /// What is owed now. Empty exactly when the log is empty, the run is at rest, or it is stuck.
    pub fn outstanding(&self) -> Vec<Effect> {
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
        let mut given_up = false;
        for work in wanted {
            let tries = self.tries.get(&work);
            if tries.is_some_and(|tries| tries.given_up.is_some()) {
                given_up = true;
            } else if !hold_back && tries.is_none_or(|tries| tries.running_on.is_none()) {
                effects.push(dispatch(work, tries));
            }
        }
        if given_up || (self.cancel.is_some() && self.rollback.is_none()) || effects.is_empty() {
            effects.push(Effect::Settle);
        }
        effects
    }

    /// Whether `outstanding` has a dispatch of this work, without deriving all the rest: a run of many chunks is granted
    /// one by one.
    pub(super) fn is_waiting(&self, work: &Work) -> bool {
        let tries = self.tries.get(work);
        let at_rest = self.run.is_none() || self.finished.is_some() || self.stuck.is_some();
        if at_rest || tries.is_some_and(|tries| tries.running_on.is_some() || tries.given_up.is_some()) {
            return false;
        }
        if self.rollback.is_some() {
            let wanted = self.wanted();
            return wanted.contains(work) && self.in_flight().all(|(held, _, _)| wanted.contains(held));
        }
        match work {
            Work::Chunk(chunk) => {
                self.planned
                    && !self.reports.contains_key(chunk)
                    && self.is_planned(*chunk)
                    && self.saga.all_done(StepKind::Prepare)
            }
            Work::Discover | Work::Step(_) | Work::Compensate(_) => self.wanted().contains(work),
        }
    }

    // By position first: discovery numbers chunks from 0, and only a strange log does otherwise.
    fn is_planned(&self, chunk: ChunkId) -> bool {
        let same = |spec: &crate::checkpoint::ChunkSpec| spec.chunk == chunk;
        self.stages
            .iter()
            .any(|stage| stage.chunks.get(chunk.index as usize).is_some_and(same) || stage.chunks.iter().any(same))
    }

    /// The work that moves the run on, whether or not a node already has it.
    pub(super) fn wanted(&self) -> BTreeSet<Work> {
        if self.rollback.is_some() {
            return self
                .saga
                .next_compensation()
                .map(|step| Work::Compensate(step.clone()))
                .into_iter()
                .collect();
        }
        if !self.planned {
            return BTreeSet::from([Work::Discover]);
        }
        let prepare = self.saga.open(StepKind::Prepare);
        if !prepare.is_empty() {
            return prepare.into_iter().map(Work::Step).collect();
        }
        let chunks: BTreeSet<Work> = self.open_chunks().map(Work::Chunk).collect();
        if !chunks.is_empty() {
            return chunks;
        }
        let verify = self.saga.open(StepKind::Verify);
        if !verify.is_empty() {
            return verify.into_iter().map(Work::Step).collect();
        }
        if let Some(publish) = self.saga.next_publish() {
            return BTreeSet::from([Work::Step(publish)]);
        }
        // A cleanup that was given up leaves garbage behind, and no reason to undo a published run.
        self.saga
            .open(StepKind::Cleanup)
            .into_iter()
            .map(Work::Step)
            .filter(|work| self.tries.get(work).is_none_or(|tries| tries.given_up.is_none()))
            .collect()
    }

    fn open_chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.stages
            .iter()
            .flat_map(|stage| &stage.chunks)
            .map(|spec| spec.chunk)
            .filter(|chunk| !self.reports.contains_key(chunk))
    }
}

fn dispatch(work: Work, tries: Option<&Tries>) -> Effect {
    Effect::Dispatch {
        work,
        not_before: tries.map(|tries| tries.not_before).unwrap_or_default(),
        avoid: tries.and_then(|tries| tries.avoid.clone()),
    }
}
