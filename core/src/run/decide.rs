//! What an input means for a run: new events, or a refusal that tells a person why.

use super::settle::settle;
use super::{Phase, State};
use crate::checkpoint::ChunkReport;
use crate::event::{Event, Outcome, PlannedStage, StepReport, StuckDecision};
use crate::failure::Failure;
use crate::ids::{Attempt, Millis, NodeName, RunId, Work};
use crate::submission::Submission;

/// First wait after a failure; doubles with each.
const BACKOFF_BASE_MS: u64 = 500;
/// Longest wait.
pub(super) const BACKOFF_MAX_MS: u64 = 30_000;

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A node has a slot for work that is outstanding.
    Grant {
        /// The work.
        work: Work,
        /// The node.
        node: NodeName,
    },
    /// An attempt has ended. A stale or repeated one changes nothing.
    Done {
        /// The work.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// The node that says so.
        node: NodeName,
        /// How it ended.
        result: Result<Completion, Failure>,
        /// Unless it succeeded: how often its work went on from a checkpoint.
        restarts: u32,
        /// Unless it succeeded: bytes of the source that it had read and not committed.
        bytes_read_again: u64,
    },
    /// A node doesn't hold an attempt that the log says it has: it dropped it as told, refused it, or was restarted.
    Dropped {
        /// The work.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// The node.
        node: NodeName,
    },
    /// A node that leaves didn't take an attempt that was meant for it.
    Declined {
        /// The work.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// The node.
        node: NodeName,
    },
    /// A node's lease has run out.
    NodeLost {
        /// The node.
        node: NodeName,
        /// How long it was silent.
        silent_ms: u64,
    },
    /// A user wants the run to end.
    Cancel {
        /// Why.
        reason: String,
    },
    /// An operator decides about a run that is stuck, or about the step whose undoing waits.
    Decide {
        /// What.
        decision: StuckDecision,
        /// The step that is meant, as it is displayed; `None` for whichever can't be undone.
        step: Option<String>,
        /// Why.
        reason: String,
        /// Who.
        by: String,
    },
    /// Somebody wants what the run has published to be taken back.
    Revert {
        /// Why.
        reason: String,
        /// Who.
        by: String,
    },
    /// `Effect::Settle` is outstanding.
    Settle,
}

/// What an attempt brings that didn't fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// Of `discover`.
    Discovered(Vec<PlannedStage>),
    /// Of a chunk.
    Staged(ChunkReport),
    /// Of a step or a compensation.
    Stepped(StepReport),
    /// Of whatever a leaving node gave back before its end.
    HandedBack,
}

/// Why an input is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to cancel or decide.
    #[error("the run is at rest")]
    AtRest,
    /// Some of it may already be visible.
    #[error("publishing has begun and can't be cancelled any more; wait for it to end")]
    PublishBegun,
    /// There is no compensation that waits for a decision.
    #[error("the run isn't stuck")]
    NotStuck,
    /// The run rolls back, and nothing speaks against that.
    #[error(
        "the run is being undone, and nothing of that has failed yet; a step can be abandoned once undoing it has failed"
    )]
    NotYetFailed,
    /// What was meant is undone, or decided about, by now.
    #[error("another step is what can't be undone by now; look at the run again")]
    AnotherStep,
    /// It is published, and on its way back already.
    #[error("the run is published and being reverted: there is nothing to cancel")]
    BeingReverted,
    /// It isn't over, or has left nothing behind.
    #[error("only a published run can be reverted; one that is not over can be cancelled")]
    NotPublished,
    /// A grant for work that isn't waiting for a node.
    #[error("that work isn't waiting for a node")]
    NotOutstanding,
}

/// The first event of a run.
pub fn submitted(run: RunId, submission: Submission, replaces: Option<RunId>, at: Millis) -> Event {
    Event::Submitted {
        run,
        submission: Box::new(submission),
        replaces,
        at,
    }
}

/// The events that an input makes, to be appended and then applied. None: it changes nothing.
pub fn decide(state: &State, input: &Input, now: Millis) -> Result<Vec<Event>, Refused> {
    match input {
        Input::Grant { work, node } => grant(state, work, node, now),
        Input::Done {
            work,
            attempt,
            node,
            result,
            restarts,
            bytes_read_again,
        } => {
            let cost = (*restarts, *bytes_read_again);
            Ok(done(state, work, *attempt, node, result, cost, now))
        }
        Input::Dropped { work, attempt, node } => Ok(dropped(state, work, *attempt, node, now)),
        Input::Declined { work, attempt, node } => Ok(declined(state, work, *attempt, node, now)),
        Input::NodeLost { node, silent_ms } => Ok(node_lost(state, node, *silent_ms, now)),
        Input::Cancel { reason } => cancel(state, reason, now),
        Input::Decide {
            decision,
            step,
            reason,
            by,
        } => {
            if let (Some(meant), Some((step, _))) = (step, state.stuck().or(state.undoing_waits()))
                && *meant != step.to_string()
            {
                return Err(Refused::AnotherStep);
            }
            operate(state, *decision, reason, by, now)
        }
        Input::Revert { reason, by } => revert(state, reason, by, now),
        Input::Settle => Ok(settle(state, now)),
    }
}

fn grant(state: &State, work: &Work, node: &NodeName, now: Millis) -> Result<Vec<Event>, Refused> {
    let waiting = state.is_waiting(work);
    if !waiting {
        return Err(Refused::NotOutstanding);
    }
    let attempt = state
        .tries
        .get(work)
        .map(|tries| tries.attempt)
        .unwrap_or_default()
        .next();
    Ok(vec![Event::Assigned {
        work: work.clone(),
        attempt,
        node: node.clone(),
        at: now,
    }])
}

fn holds(state: &State, work: &Work, attempt: Attempt) -> bool {
    state
        .tries
        .get(work)
        .is_some_and(|tries| tries.attempt == attempt && tries.running_on.is_some())
}

fn done(
    state: &State,
    work: &Work,
    attempt: Attempt,
    node: &NodeName,
    result: &Result<Completion, Failure>,
    cost: (u32, u64),
    now: Millis,
) -> Vec<Event> {
    if !holds(state, work, attempt) {
        return Vec::new();
    }
    let event = match (work, result) {
        (_, Err(failure)) => with_cost(failed(state, work, attempt, node, failure.clone(), None, now), cost),
        (_, Ok(Completion::HandedBack)) => with_cost(handed_back(work, attempt, node, now), cost),
        (Work::Discover, Ok(Completion::Discovered(stages))) => Event::Planned {
            attempt,
            stages: stages.clone(),
            at: now,
        },
        (Work::Chunk(_), Ok(Completion::Staged(report))) => Event::ChunkStaged {
            work: work.clone(),
            attempt,
            report: report.clone(),
            at: now,
        },
        (Work::Step(step), Ok(Completion::Stepped(report))) => Event::StepDone {
            step: step.clone(),
            attempt,
            report: report.clone(),
            at: now,
        },
        (Work::Compensate(step), Ok(Completion::Stepped(report))) => Event::Compensated {
            step: step.clone(),
            attempt,
            detail: report.detail.clone(),
            at: now,
        },
        (
            Work::Discover | Work::Chunk(_) | Work::Step(_) | Work::Compensate(_),
            Ok(Completion::Discovered(_) | Completion::Staged(_) | Completion::Stepped(_)),
        ) => {
            let failure = Failure::permanent(format!(
                "node {node} answered {work} with the result of other work; run the same release on every node"
            ));
            failed(state, work, attempt, node, failure, None, now)
        }
    };
    vec![event]
}

/// The end of an attempt whose node told how often the work had gone on from a checkpoint, and what is read again. Of a
/// lost one the leader knows what its heartbeats said.
fn with_cost(mut ended: Event, (times, bytes): (u32, u64)) -> Event {
    if let Event::AttemptFailed {
        restarts,
        bytes_read_again,
        ..
    }
    | Event::HandedBack {
        restarts,
        bytes_read_again,
        ..
    } = &mut ended
    {
        (*restarts, *bytes_read_again) = (times, bytes);
    }
    ended
}

fn handed_back(work: &Work, attempt: Attempt, node: &NodeName, now: Millis) -> Event {
    Event::HandedBack {
        work: work.clone(),
        attempt,
        node: node.clone(),
        restarts: 0,
        bytes_read_again: 0,
        at: now,
    }
}

fn declined(state: &State, work: &Work, attempt: Attempt, node: &NodeName, now: Millis) -> Vec<Event> {
    if !holds(state, work, attempt) {
        return Vec::new();
    }
    vec![handed_back(work, attempt, node, now)]
}

fn dropped(state: &State, work: &Work, attempt: Attempt, node: &NodeName, now: Millis) -> Vec<Event> {
    if !holds(state, work, attempt) {
        return Vec::new();
    }
    let failure = Failure::transient(format!("node {node} no longer holds {work}, attempt {attempt}"));
    vec![failed(state, work, attempt, node, failure, None, now)]
}

fn node_lost(state: &State, node: &NodeName, silent_ms: u64, now: Millis) -> Vec<Event> {
    let lost = state.in_flight().filter(|(_, _, on)| *on == node);
    lost.map(|(work, attempt, _)| {
        let failure = Failure::transient(format!(
            "node {node} was lost after {:.1} s of silence",
            silent_ms as f64 / 1000.0
        ));
        failed(state, work, attempt, node, failure, Some(silent_ms), now)
    })
    .collect()
}

fn failed(
    state: &State,
    work: &Work,
    attempt: Attempt,
    node: &NodeName,
    failure: Failure,
    node_lost_after_ms: Option<u64>,
    now: Millis,
) -> Event {
    // A lost node says nothing against the work: it goes to another one at once.
    let wait = if node_lost_after_ms.is_some() {
        0
    } else {
        backoff_ms(state, work, attempt)
    };
    Event::AttemptFailed {
        work: work.clone(),
        attempt,
        node: node.clone(),
        failure,
        node_lost_after_ms,
        restarts: 0,
        bytes_read_again: 0,
        went_forward: false,
        not_before: now.plus(wait),
        at: now,
    }
}

/// Exponential, with a jitter of a quarter in either direction that derives from ids: many chunks that fail together
/// don't come back together, and a replay waits as long as the original.
fn backoff_ms(state: &State, work: &Work, attempt: Attempt) -> u64 {
    let failures = state.tries.get(work).map_or(0, |tries| tries.failures).min(16);
    let full = BACKOFF_BASE_MS.saturating_mul(1 << failures).min(BACKOFF_MAX_MS);
    let run = state.run.as_ref().map_or("", RunId::as_str);
    // FNV-1a: a spread, not a secret.
    let hash = format!("{run}/{work}/{attempt}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    full * 3 / 4 + hash % (full / 2 + 1)
}

fn cancel(state: &State, reason: &str, now: Millis) -> Result<Vec<Event>, Refused> {
    match state.phase() {
        Phase::Empty | Phase::AtRest(_) => Err(Refused::AtRest),
        Phase::Recalling => Err(Refused::BeingReverted),
        Phase::RollingBack | Phase::Stuck if state.revert.is_some() => Err(Refused::BeingReverted),
        Phase::RollingBack | Phase::Stuck => Ok(Vec::new()),
        Phase::Discovering | Phase::Loading | Phase::Verifying | Phase::Publishing | Phase::Cleaning => {
            if state.saga.publish_begun() {
                Err(Refused::PublishBegun)
            } else if state.cancel.is_some() {
                Ok(Vec::new())
            } else {
                Ok(vec![Event::CancelRequested {
                    reason: reason.to_owned(),
                    at: now,
                }])
            }
        }
    }
}

fn operate(state: &State, decision: StuckDecision, reason: &str, by: &str, now: Millis) -> Result<Vec<Event>, Refused> {
    match (state.phase(), decision) {
        (Phase::Stuck, _) => Ok(vec![Event::Unstuck {
            decision,
            reason: reason.to_owned(),
            by: by.to_owned(),
            at: now,
        }]),
        // A destination that is away may be back in a minute or never: only a person knows.
        (Phase::RollingBack | Phase::Recalling, StuckDecision::Abandon) => match state.undoing_waits() {
            Some((step, _)) => Ok(vec![Event::Abandoned {
                step: step.clone(),
                reason: reason.to_owned(),
                by: by.to_owned(),
                at: now,
            }]),
            None => Err(Refused::NotYetFailed),
        },
        (
            Phase::Empty
            | Phase::Discovering
            | Phase::Loading
            | Phase::Verifying
            | Phase::Publishing
            | Phase::Cleaning
            | Phase::AtRest(_),
            StuckDecision::Retry | StuckDecision::Abandon,
        )
        | (Phase::RollingBack | Phase::Recalling, StuckDecision::Retry) => Err(Refused::NotStuck),
    }
}

fn revert(state: &State, reason: &str, by: &str, now: Millis) -> Result<Vec<Event>, Refused> {
    match state.phase() {
        Phase::AtRest(Outcome::Published) => Ok(vec![Event::RevertRequested {
            reason: reason.to_owned(),
            by: by.to_owned(),
            at: now,
        }]),
        // Asking twice is harmless.
        Phase::AtRest(Outcome::Reverted) | Phase::Recalling => Ok(Vec::new()),
        Phase::RollingBack | Phase::Stuck if state.revert.is_some() => Ok(Vec::new()),
        Phase::Empty
        | Phase::Discovering
        | Phase::Loading
        | Phase::Verifying
        | Phase::Publishing
        | Phase::Cleaning
        | Phase::RollingBack
        | Phase::Stuck
        | Phase::AtRest(Outcome::Failed | Outcome::Cancelled) => Err(Refused::NotPublished),
    }
}
