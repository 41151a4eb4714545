//! The work of a node, apart from the actors that own it: `discover`, one chunk, one step. Everything here runs on the
//! data runtime, may be cancelled at every await, and can be done again: what has an effect commits with a marker or
//! tolerates its own trace.

mod blame;
pub(crate) mod chunk;
pub(crate) mod discover;
pub(crate) mod listing;
mod provenance;
pub(crate) mod quarantine;
pub(crate) mod read;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod segment;
pub(crate) mod step;
mod told;
mod toolbox;
mod watermarks;

use std::sync::Arc;

use haulage_core::failure::Failure;
use haulage_core::ids::{Epoch, StepId, StepKind, Work};
use haulage_proto::link::message::{Assignment, Outcome, Task};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::actors::shared::Progress;
use crate::sink::Expected;
use crate::trace::{self, Carrier};
pub(crate) use toolbox::Toolbox;

/// An assignment as it came in its envelope.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) assignment: Assignment,
    /// The leader's term.
    pub(crate) epoch: Epoch,
    /// The context under which the spans of this work belong.
    pub(crate) trace: Carrier,
}

/// Does what was ordered, once.
pub(crate) async fn perform(tools: &Toolbox, order: &Order, progress: &Arc<Progress>) -> Result<Outcome, Failure> {
    let span = span(tools, order);
    trace::follow(&span, &order.trace);
    let done = async {
        match (&order.assignment.key.work, &order.assignment.task) {
            (Work::Discover, Task::Discover) => Ok(Outcome::Discovered {
                stages: discover::run(tools, order).await?,
            }),
            (Work::Chunk(_), Task::Chunk { spec }) => Ok(match chunk::run(tools, order, spec, progress).await? {
                Some(report) => Outcome::Staged { report },
                None => Outcome::HandedBack,
            }),
            (
                Work::Step(step),
                Task::Step {
                    expected_rows,
                    expected_segments,
                    judged,
                    ..
                },
            ) => {
                let expected = Expected {
                    rows: *expected_rows,
                    segments: *expected_segments,
                };
                Ok(Outcome::Stepped {
                    report: step::run(tools, order, step, expected, *judged).await?,
                })
            }
            (Work::Compensate(step), Task::Step { .. }) => Ok(Outcome::Stepped {
                report: step::compensate(tools, order, step).await?,
            }),
            (work, Task::Discover | Task::Chunk { .. } | Task::Step { .. }) => Err(Failure::permanent(format!(
                "the coordinator asked for {work} and described something else; run the same release on both"
            ))),
        }
    };
    let result = Box::pin(done).instrument(span.clone()).await;
    let result = told::without_secrets(tools.config(), order, result);
    match &result {
        Ok(Outcome::Staged { report }) => drop(span.record("rows", report.counts.read)),
        Ok(Outcome::Stepped { report }) => drop(span.record("rows", report.rows)),
        Ok(Outcome::Discovered { .. } | Outcome::HandedBack) => {}
        Err(failure) => {
            span.record("error", failure.message.as_str());
            // The status that viewers of traces show red.
            span.record("otel.status_description", failure.message.as_str());
        }
    }
    result
}

fn span(tools: &Toolbox, order: &Order) -> Span {
    let key = &order.assignment.key;
    let (run, attempt, node) = (&key.run, key.attempt.0, &tools.config().name);
    let step = |name: &str, step: &StepId| info_span!("step", otel.name = name, %run, load = %step.load, attempt, %node, rows = Empty, error = Empty, otel.status_description = Empty);
    match &key.work {
        Work::Discover => {
            info_span!("discover", %run, attempt, %node, error = Empty, otel.status_description = Empty)
        }
        Work::Chunk(chunk) => {
            let (stage, chunk) = (chunk.stage.0, chunk.index);
            info_span!("chunk", %run, stage, chunk, attempt, %node, rows = Empty, error = Empty, otel.status_description = Empty)
        }
        Work::Step(id) => step(
            match id.kind {
                StepKind::Prepare => "step prepare",
                StepKind::Verify => "step verify",
                StepKind::Publish => "step publish",
                StepKind::Cleanup => "step cleanup",
                StepKind::Recall => "step recall",
            },
            id,
        ),
        Work::Compensate(id) => step("step compensate", id),
    }
}
