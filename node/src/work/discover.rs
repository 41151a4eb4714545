//! Discover: what the sources hold, cut into chunks, and whether the plan fits what is there. Everything that would
//! make a run fail for good is looked for here, before a row has moved: unreadable sources and lookups, SQL that
//! doesn't fit the columns, destinations that can't be reached or can't take the rows. Touches nothing.

use std::collections::HashMap;

use haulage_core::event::PlannedStage;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_core::submission::Replay;
use haulage_plan::Diagnostics;
use haulage_plan::definition::Definition;

use super::run::RunContext;
use super::toolbox::unknown_load;
use super::{Order, Toolbox};
use crate::sink::Identity;
use crate::source;

/// Finds the stages and their chunks.
pub(crate) async fn run(tools: &Toolbox, order: &Order) -> Result<Vec<PlannedStage>, Failure> {
    let context = tools.context(order).await?;
    context.lookups().await?;
    let mut targets = Targets::default();
    for name in context.definition().loads.keys() {
        let load = context.load(order, name)?;
        let inspection = tools
            .destination(context.definition(), name)
            .await?
            .inspect(&load)
            .await?;
        targets.take(context.definition(), name, &inspection.identity)?;
        if !inspection.misfits.is_empty() {
            return Err(Failure::permanent(format!(
                "load {name} doesn't fit {}: {}",
                load.table,
                inspection.misfits.join("; ")
            )));
        }
    }
    match &order.assignment.submission.replay {
        Some(replay) => replayed(tools, &context, replay).await,
        None => stages(&context).await,
    }
}

/// The stages of a replay: their chunks are the objects of rejected rows.
async fn replayed(tools: &Toolbox, context: &RunContext, replay: &Replay) -> Result<Vec<PlannedStage>, Failure> {
    let store = tools.store().await?;
    if let Some(source) = replay
        .objects
        .keys()
        .find(|source| !context.stages().iter().any(|stage| stage.source == **source))
    {
        return Err(Failure::permanent(format!(
            "run {} rejected rows of the source {source}, which feeds no load of this pipeline; let it feed one as it did, \
             and replay again",
            replay.run
        )));
    }
    let mut stages = Vec::new();
    for stage in context.stages() {
        let objects = replay.objects.get(&stage.source).map(Vec::as_slice).unwrap_or_default();
        let chunks = source::replay::chunks(store.as_ref(), stage.stage, &stage.source, objects);
        let chunks = chunks.await.map_err(|failure| Failure {
            message: format!(
                "the rejected rows of run {} can't be read: {}",
                replay.run, failure.message
            ),
            ..failure
        })?;
        stages.push(PlannedStage {
            chunks,
            ..stage.clone()
        });
    }
    Ok(stages)
}

/// The tables that loads of a run publish to, each by one of them: of two that come after each other in one table, the
/// second would replace, unseen, what the first has published, and neither could be reverted alone.
#[derive(Default)]
pub(crate) struct Targets(HashMap<Identity, LoadName>);

impl Targets {
    /// Takes the table for this load. Permanent failure with the load's place in the file if another one has it.
    pub(crate) fn take(
        &mut self,
        definition: &Definition,
        name: &LoadName,
        identity: &Identity,
    ) -> Result<(), Failure> {
        let Some(other) = self.0.insert(identity.clone(), name.clone()) else {
            return Ok(());
        };
        let load = definition.loads.get(name).ok_or_else(|| unknown_load(name))?;
        let first = definition.loads.get(&other).ok_or_else(|| unknown_load(&other))?;
        let wrong = format!(
            "the loads `{other}` and `{name}` publish to the same table: `{}` in {} and `{}` in {} are one; put the rows \
             together with UNION ALL in a step, or name another table",
            first.table, first.to, load.table, load.to
        );
        Err(Failure::permanent(
            Diagnostics::of(definition, [(load.place, wrong)]).to_string(),
        ))
    }
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
