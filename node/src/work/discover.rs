//! Discover: what the sources hold, cut into chunks, and whether the plan fits what is there. Everything that would
//! make a run fail for good is looked for here, before a row has moved: unreadable sources and lookups, SQL that
//! doesn't fit the columns, destinations that can't be reached or can't take the rows. Touches nothing.

use haulage_core::event::PlannedStage;
use haulage_core::failure::Failure;

use super::run::RunContext;
use super::{Order, Toolbox};

/// Finds the stages and their chunks.
pub(crate) async fn run(tools: &Toolbox, order: &Order) -> Result<Vec<PlannedStage>, Failure> {
    let context = tools.context(order).await?;
    context.lookups().await?;
    for name in context.definition().loads.keys() {
        let load = context.load(order, name)?;
        let inspection = tools
            .destination(context.definition(), name)
            .await?
            .inspect(&load)
            .await?;
        if !inspection.misfits.is_empty() {
            return Err(Failure::permanent(format!(
                "load {name} doesn't fit {}: {}",
                load.table,
                inspection.misfits.join("; ")
            )));
        }
    }
    stages(&context).await
}

/// Cuts every chunked source of every stage.
pub(crate) async fn stages(context: &RunContext) -> Result<Vec<PlannedStage>, Failure> {
    let mut stages = Vec::new();
    for stage in context.stages() {
        let chunks = context.source(&stage.source)?.discover(stage.stage).await?;
        stages.push(PlannedStage {
            chunks,
            ..stage.clone()
        });
    }
    Ok(stages)
}
