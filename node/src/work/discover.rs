//! Discover: what the sources hold, cut into chunks, and whether the plan fits what is there. Everything that would
//! make a run fail for good is looked for here, before a row has moved: unreadable sources and lookups, SQL that
//! doesn't fit the columns, destinations that can't be reached or can't take the rows. Touches nothing.

use std::collections::HashMap;

use haulage_core::event::PlannedStage;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_core::submission::Replay;
use haulage_core::watermark::Advance;
use haulage_plan::Diagnostics;
use haulage_plan::definition::{Definition, Mode};

use super::run::RunContext;
use super::toolbox::unknown_load;
use super::watermarks;
use super::{Order, Toolbox};
use crate::quality;
use crate::sink::{Identity, LoadContext};
use crate::source;

/// Finds the stages and their chunks.
pub(crate) async fn run(tools: &Toolbox, order: &Order) -> Result<Vec<PlannedStage>, Failure> {
    let context = tools.context(order).await?;
    context.lookups().await?;
    let mut targets = Targets::default();
    for name in context.definition().loads.keys() {
        let load = context.load(order, name)?;
        let destination = tools.destination(context.definition(), name).await?;
        let inspection = destination.inspect(&load).await?;
        targets.take(context.definition(), name, &inspection.identity)?;
        if !inspection.misfits.is_empty() {
            let wrong = format!(
                "load {name} doesn't fit {}: {}",
                load.table,
                inspection.misfits.join("; ")
            );
            let place = context.definition().loads.get(name).map(|load| load.place);
            return Err(Failure::permanent(
                Diagnostics::of(context.definition(), [(place.unwrap_or_default(), wrong)]).to_string(),
            ));
        }
        let unanswerable = quality::unanswerable(context.definition(), name, destination.dialect());
        if !unanswerable.is_empty() {
            let wrong = Diagnostics::of(context.definition(), unanswerable);
            return Err(Failure::permanent(wrong.to_string()));
        }
    }
    match &order.assignment.submission.replay {
        Some(replay) => replayed(tools, &context, replay).await,
        None => stages(tools, &context, |name| context.load(order, name)).await,
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

/// What is to be said of sources that seem to have been emptied and filled again.
pub(crate) fn warnings(definition: &Definition, advances: &[Advance]) -> Vec<String> {
    let said = |advance: &Advance| {
        let load = definition.loads.get(&advance.load)?;
        advance.warning(&definition.pipeline, &load.table, &load.to)
    };
    advances.iter().filter_map(said).collect()
}

/// Cuts every chunked source of every stage; of an incremental one, what is new.
pub(crate) async fn stages(
    tools: &Toolbox,
    context: &RunContext,
    load: impl Fn(&LoadName) -> Result<LoadContext, Failure>,
) -> Result<Vec<PlannedStage>, Failure> {
    let mut stages = Vec::new();
    for stage in context.stages() {
        let source = context.source(&stage.source)?;
        let declared = context.definition().sources.get(&stage.source);
        let (chunks, advances) = match declared.and_then(|declared| declared.kind.incremental()) {
            None => (source.discover(stage.stage).await?, Vec::new()),
            Some(how) => {
                let loads = stage.loads.iter().map(&load).collect::<Result<Vec<_>, _>>()?;
                let mut read = watermarks::read_from(tools, context.definition(), stage, how, &loads).await?;
                // What is read before its time, or again, is a row twice where it is appended, and nothing elsewhere.
                let open = loads.iter().all(|load| load.mode != Mode::Append);
                let increment = source.discover_after(stage.stage, read.low.as_deref(), open).await?;
                for advance in &mut read.advances {
                    advance.to.clone_from(&increment.to);
                    advance.held_back = increment.held_back;
                    advance.below.clone_from(&increment.below);
                }
                for warning in warnings(context.definition(), &read.advances) {
                    tracing::warn!(source = %stage.source, "{warning}");
                }
                (increment.chunks, read.advances)
            }
        };
        stages.push(PlannedStage {
            chunks,
            advances,
            ..stage.clone()
        });
    }
    Ok(stages)
}
