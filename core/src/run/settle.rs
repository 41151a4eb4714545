//! What follows from a run's state alone: the end of a run, the beginning of its rollback, and staging again what is lost.

use super::outstanding::Wanted;
use super::{MAX_RESTAGED, MAX_SET_ASIDE, Phase, State};
use crate::event::{Event, Outcome, PlannedStage};
use crate::failure::{Class, Failure};
use crate::ids::{ChunkId, Millis, StepId, StepKind, Work};

/// What follows from the state alone.
pub(super) fn settle(state: &State, now: Millis) -> Vec<Event> {
    match state.phase() {
        Phase::Empty | Phase::AtRest(_) | Phase::Stuck => Vec::new(),
        Phase::RollingBack => settle_rollback(state, now),
        Phase::Recalling => settle_recall(state, now),
        Phase::Discovering | Phase::Loading | Phase::Verifying | Phase::Publishing | Phase::Cleaning => {
            let wanted = state.wanted();
            if let Some(failure) = state.reason_to_roll_back(&wanted) {
                return vec![Event::RollbackStarted { failure, at: now }];
            }
            if !wanted.is_empty() || !state.planned {
                return Vec::new();
            }
            if !state.lost.is_empty() {
                return vec![restage(state, now)];
            }
            if state.saga.all_done(StepKind::Publish) {
                vec![Event::Finished {
                    outcome: Outcome::Published,
                    at: now,
                }]
            } else {
                Vec::new()
            }
        }
    }
}

impl State {
    /// Why the run can't go on, unless it rolls back already. A chunk that takes nodes down is no reason while others can
    /// still be worked off: so one run finds all of them.
    pub(super) fn reason_to_roll_back(&self, wanted: &Wanted<'_>) -> Option<Failure> {
        if let Some(reason) = &self.cancel {
            return Some(Failure::permanent(format!("cancelled: {reason}")));
        }
        if let Some(failure) = self.failed_checks() {
            return Some(failure);
        }
        let mut set_aside = Vec::new();
        for work in self.given_up.iter().filter(|work| wanted.contains(work)) {
            let Some(failure) = self.tries.get(work).and_then(|tries| tries.given_up.as_ref()) else {
                continue;
            };
            match (work, failure.class) {
                (Work::Chunk(chunk), Class::Poison) => set_aside.push((*chunk, failure)),
                (
                    Work::Discover | Work::Chunk(_) | Work::Step(_) | Work::Compensate(_),
                    Class::Transient | Class::Permanent | Class::Poison | Class::Fenced | Class::StagingLost,
                ) => return Some(failure.clone()),
            }
        }
        if set_aside.is_empty() || (set_aside.len() < self.open.len() && set_aside.len() < MAX_SET_ASIDE) {
            return None;
        }
        Some(self.poisoned(&set_aside))
    }

    /// Names every chunk that was set aside, by what a person can look at.
    fn poisoned(&self, set_aside: &[(ChunkId, &Failure)]) -> Failure {
        let specs = || self.stages.iter().flat_map(|stage| &stage.chunks);
        let name = |(chunk, failure): &(ChunkId, &Failure)| {
            let place = specs()
                .find(|spec| spec.chunk == *chunk)
                .map_or_else(String::new, |spec| {
                    let end = spec
                        .end
                        .map_or_else(|| "its end".to_owned(), |end| format!("byte {end}"));
                    format!(
                        " ({}, from line {} at byte {} to {end})",
                        spec.object, spec.start.line, spec.start.offset
                    )
                });
            format!("{failure}{place}")
        };
        let named: Vec<String> = set_aside.iter().map(name).collect();
        let chunks = if named.len() == 1 { "chunk was" } else { "chunks were" };
        Failure::poison(format!("{} {chunks} set aside: {}", named.len(), named.join("; ")))
    }
}

/// Stages again what is lost; or not, when rows of the run may be visible already, or when it has happened too often.
fn restage(state: &State, now: Millis) -> Event {
    let said: Vec<&str> = state.lost.values().map(|failure| failure.message.as_str()).collect();
    let said = said.join("; ");
    let published = state.saga.loads().iter().any(|load| {
        let step = StepId {
            kind: StepKind::Publish,
            load: load.clone(),
        };
        state.saga.report(&step).is_some()
    });
    let reason = if published {
        Some(format!(
            "{said}; another load of the run is published already, so it is not staged again: run the pipeline again"
        ))
    } else if state.restaged >= MAX_RESTAGED {
        Some(format!(
            "{said}; that has happened {} times in this run: look at the log of the database server",
            state.restaged + 1
        ))
    } else {
        None
    };
    if let Some(reason) = reason {
        return Event::RollbackStarted {
            failure: Failure::permanent(reason),
            at: now,
        };
    }
    let feeds = |stage: &&PlannedStage| stage.loads.iter().any(|load| state.lost.contains_key(load));
    Event::Restaged {
        loads: state.lost.keys().cloned().collect(),
        stages: state.stages.iter().filter(feeds).map(|stage| stage.stage).collect(),
        round: state.restaged + 1,
        at: now,
    }
}

/// Every destination has said whether its load can be taken back.
fn settle_recall(state: &State, now: Millis) -> Vec<Event> {
    if !state.wanted().is_empty() {
        return Vec::new();
    }
    if state.saga.all_done(StepKind::Recall) {
        let reason = state.revert.as_deref().unwrap_or_default();
        let failure = Failure::permanent(format!("reverted: {reason}"));
        return vec![Event::RollbackStarted { failure, at: now }];
    }
    let refusals: Vec<&str> = state
        .given_up
        .iter()
        .filter(|work| matches!(work, Work::Step(step) if step.kind == StepKind::Recall))
        .filter_map(|work| state.tries.get(work)?.given_up.as_ref())
        .map(|failure| failure.message.as_str())
        .collect();
    let failure = Failure::permanent(format!("can't be reverted: {}", refusals.join("; ")));
    vec![
        Event::RevertRefused { failure, at: now },
        Event::Finished {
            outcome: Outcome::Published,
            at: now,
        },
    ]
}

fn settle_rollback(state: &State, now: Millis) -> Vec<Event> {
    let Some(step) = state.saga.next_compensation() else {
        if state.in_flight().next().is_some() {
            return Vec::new();
        }
        let outcome = if state.revert.is_some() {
            Outcome::Reverted
        } else if state.rollback_by_cancel {
            Outcome::Cancelled
        } else {
            Outcome::Failed
        };
        return vec![Event::Finished { outcome, at: now }];
    };
    let tries = state.tries.get(&Work::Compensate(step.clone()));
    match tries.and_then(|tries| tries.given_up.clone()) {
        Some(failure) => vec![Event::Stuck {
            step: step.clone(),
            failure,
            at: now,
        }],
        None => Vec::new(),
    }
}
