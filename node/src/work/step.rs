//! Steps of the saga, and their compensations: each is one call of the load's destination, which makes it repeatable.

use std::sync::Arc;

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, StepId, StepKind};

use super::run::RunContext;
use super::{Order, Toolbox};
use crate::sink::{Destination, Expected, LoadContext};

/// Does the step.
pub(crate) async fn run(
    tools: &Toolbox,
    order: &Order,
    step: &StepId,
    expected: Expected,
) -> Result<StepReport, Failure> {
    let context = tools.context(order).await?;
    let load = context.load(order, &step.load)?;
    let destination = tools.destination(context.definition(), &step.load).await?;
    match step.kind {
        StepKind::Prepare => destination.prepare(&load).await,
        StepKind::Verify => destination.verify(&load, expected).await,
        StepKind::Publish => destination.publish(&load, expected).await,
        StepKind::Cleanup => destination.cleanup(&load).await,
    }
}

/// Undoes the step, also one of which nothing ever happened.
pub(crate) async fn compensate(tools: &Toolbox, order: &Order, step: &StepId) -> Result<StepReport, Failure> {
    let (destination, load) = target(tools, order, &step.load).await?;
    match step.kind {
        StepKind::Prepare => destination.discard(&load).await,
        StepKind::Publish => destination.revert(&load).await,
        StepKind::Verify | StepKind::Cleanup => Ok(StepReport {
            rows: 0,
            detail: format!("{step} left nothing to undo"),
        }),
    }
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
