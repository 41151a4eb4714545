//! Steps of the saga, and their compensations: each is one call of the load's destination, which makes it repeatable.

use std::sync::Arc;

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, StepId, StepKind};
use haulage_core::run::Judged;
use haulage_core::watermark::Advance;

use super::run::RunContext;
use super::{Order, Toolbox, watermarks};
use haulage_proto::link::message::Task;

use crate::quality::{self, Checking};
use crate::receipt;
use crate::sink::{Destination, Expected, LoadContext};

/// Does the step.
pub(crate) async fn run(
    tools: &Toolbox,
    order: &Order,
    step: &StepId,
    expected: Expected,
    judged: Option<Judged>,
) -> Result<StepReport, Failure> {
    if step.kind == StepKind::Recall {
        let (destination, mut load) = target(tools, order, &step.load).await?;
        load.round = round(order);
        return destination.recall(&load).await;
    }
    let context = tools.context(order).await?;
    let mut load = context.load(order, &step.load)?;
    load.round = round(order);
    load.advances = advances(order);
    // Unless the leader says that none was.
    load.rejects = judged.is_none_or(|judged| judged.rejected > 0);
    if matches!(step.kind, StepKind::Verify | StepKind::Publish) {
        watermarks::complete(&context, &load)?;
    }
    let destination = tools.destination(context.definition(), &step.load).await?;
    match step.kind {
        StepKind::Prepare => destination.prepare(&load).await,
        StepKind::Verify => {
            let checking = Checking {
                context: &context,
                destination: destination.as_ref(),
                load: &load,
                expected,
                judged,
            };
            // First: what is set aside needn't be a key, and is no part of what is counted.
            let aside = quality::aside::set(tools, &checking).await?;
            let mut report = destination.verify(&load, expected).await?;
            report.checks = quality::check(&checking, aside.as_ref(), report.rows).await?;
            report.set_aside = aside.map(|aside| aside.set).filter(|set| set.rows > 0).map(Box::new);
            Ok(report)
        }
        StepKind::Publish => {
            if !context.is_replay() {
                context.end_snapshots().await;
            }
            let mut report = destination.publish(&load, expected).await?;
            report.columns = receipt::columns(&load);
            report.detail.push_str(&watermarks::held_back(&load.advances));
            Ok(report)
        }
        StepKind::Cleanup => destination.cleanup(&load).await,
        StepKind::Recall => destination.recall(&load).await,
    }
}

/// Which one it is of the times that the run has staged again what was lost, or was asked to be reverted.
fn round(order: &Order) -> u32 {
    match &order.assignment.task {
        Task::Step { round, .. } => *round,
        Task::Discover | Task::Chunk { .. } => 0,
    }
}

/// What a publish makes of watermarks.
fn advances(order: &Order) -> Vec<Advance> {
    match &order.assignment.task {
        Task::Step { advances, .. } => advances.clone(),
        Task::Discover | Task::Chunk { .. } => Vec::new(),
    }
}

/// Undoes the step, also one of which nothing ever happened.
pub(crate) async fn compensate(tools: &Toolbox, order: &Order, step: &StepId) -> Result<StepReport, Failure> {
    let (destination, mut load) = target(tools, order, &step.load).await?;
    load.round = round(order);
    let fault = &tools.config().fault;
    fault.before_compensation().await;
    let report = match step.kind {
        StepKind::Prepare => destination.discard(&load).await?,
        StepKind::Publish => destination.revert(&load).await?,
        StepKind::Recall => destination.release(&load).await?,
        StepKind::Verify | StepKind::Cleanup => StepReport {
            rows: 0,
            detail: format!("{step} left nothing to undo"),
            ..StepReport::default()
        },
    };
    fault.after_compensation(&order.assignment.key.run, step)?;
    Ok(report)
}

/// Undoing must not depend on what may have been the reason for it: when a source is gone and the plan can't be made
/// any more, the load is described without its columns, which no compensation needs.
async fn target(
    tools: &Toolbox,
    order: &Order,
    name: &LoadName,
) -> Result<(Arc<dyn Destination>, LoadContext), Failure> {
    if let Ok(context) = tools.context(order).await {
        return Ok((
            tools.destination(context.definition(), name).await?,
            context.load(order, name)?,
        ));
    }
    let definition = RunContext::parse(order.into())?;
    let load = RunContext::bare_load(&definition, order, name)?;
    Ok((tools.destination(&definition, name).await?, load))
}
