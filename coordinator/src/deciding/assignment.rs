//! From a run's state to the assignment of one attempt, and from what a node answers to an input of the run.

use haulage_core::ids::{Attempt, NodeName, StepKind, Work};
use haulage_core::run::{Completion, Input, State};
use haulage_proto::link::message::{Assignment, AttemptKey, Done, Outcome, Task};

/// The assignment of an attempt; `None` if the state doesn't hold what it needs, which a sound log never does.
pub(crate) fn of(state: &State, work: &Work, attempt: Attempt) -> Option<Assignment> {
    let task = match work {
        Work::Discover => Task::Discover,
        Work::Chunk(chunk) => {
            let mut specs = state.stages().iter().flat_map(|stage| &stage.chunks);
            Task::Chunk {
                spec: specs.find(|spec| spec.chunk == *chunk)?.clone(),
            }
        }
        Work::Step(step) | Work::Compensate(step) => {
            let expected = state.expected(&step.load);
            Task::Step {
                expected_rows: expected.rows,
                expected_segments: expected.segments,
                judged: Some(state.judged(&step.load)),
                advances: state.advances(&step.load),
                load: step.load.clone(),
                round: match step.kind {
                    StepKind::Prepare | StepKind::Verify | StepKind::Publish | StepKind::Cleanup => state.round(),
                    StepKind::Recall => state.reverts(),
                },
            }
        }
    };
    Some(Assignment {
        key: AttemptKey {
            run: state.run()?.clone(),
            work: work.clone(),
            attempt,
        },
        submission: match work {
            Work::Discover => state.submission()?.clone(),
            Work::Step(step) if step.kind == StepKind::Publish => {
                let chunks = state.stages().iter().flat_map(|stage| &stage.chunks);
                state.submission()?.to_publish(state.run()?, chunks)
            }
            Work::Chunk(_) | Work::Step(_) | Work::Compensate(_) => state.submission()?.without_objects(),
        },
        submitted_at: state.submitted_at(),
        replaces: state.replaces().cloned(),
        columns: state.stages().iter().flat_map(|stage| stage.columns.clone()).collect(),
        task,
    })
}

/// What the end of an attempt means to its run.
pub fn input(done: Done) -> Input {
    let result = done.result.map(|outcome| match outcome {
        Outcome::Discovered { stages } => Completion::Discovered(stages),
        Outcome::Staged { report } => Completion::Staged(report),
        Outcome::Stepped { report } => Completion::Stepped(report),
        Outcome::HandedBack => Completion::HandedBack,
    });
    Input::Done {
        work: done.key.work,
        attempt: done.key.attempt,
        node: done.node,
        result,
        restarts: done.restarts,
        bytes_read_again: done.bytes_read_again,
    }
}

/// A node that leaves didn't take this attempt.
pub(crate) fn declined(key: &AttemptKey, node: &NodeName) -> Input {
    Input::Declined {
        work: key.work.clone(),
        attempt: key.attempt,
        node: node.clone(),
    }
}

/// A node doesn't hold this attempt.
pub(crate) fn dropped(key: &AttemptKey, node: &NodeName) -> Input {
    Input::Dropped {
        work: key.work.clone(),
        attempt: key.attempt,
        node: node.clone(),
    }
}
