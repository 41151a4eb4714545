//! What a run would do, found without starting one: for `haulage plan` and `haulage validate`. It looks at sources and
//! destinations as `discover` does, and touches nothing.

use std::collections::BTreeMap;

use haulage_core::event::PlannedStage;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, Epoch, LoadName, Millis, RunId};
use haulage_plan::definition::{Column, Definition};
use haulage_plan::{Compiled, Diagnostics, Draft};

use crate::config::NodeConfig;
use crate::sink::{Inspection, LoadContext};
use crate::source::database::Databases;
use crate::source::{self, Binding, Drift, Misdeclared};
use crate::store::S3Settings;
use crate::work::discover::Targets;
use crate::work::run::{Request, RunContext};
use crate::work::{Toolbox, discover};

/// What a run would do.
pub struct Preview {
    /// The pipeline with its parameters bound, and its plan.
    pub compiled: Compiled,
    /// The stages with the chunks that the sources are cut into now.
    pub stages: Vec<PlannedStage>,
    /// Every load, in the order in which they publish.
    pub loads: Vec<LoadPreview>,
    /// How the sources differ from what they declare, by source.
    pub drift: Vec<(String, Vec<Drift>)>,
    /// What else is to be said of the sources.
    pub warnings: Vec<String>,
}

/// What publishing a load would do.
pub struct LoadPreview {
    /// The load as its destination sees it.
    pub load: LoadContext,
    /// The destination's name.
    pub destination: String,
    /// Where it is, without credentials; `None` if its address can't be read.
    pub place: Option<String>,
    /// What the destination says; a failure if it can't be reached.
    pub inspection: Result<Inspection, Failure>,
}

/// Plans a pipeline as a node with these settings would. `params` are texts by name, `base` is what relative paths are
/// relative to. Permanent failure with everything that is wrong with the file, or with what can't be read; what is
/// wrong with a destination stands in its [`LoadPreview`].
pub async fn plan(
    config: NodeConfig,
    definition: &str,
    file: &str,
    base: &str,
    params: &BTreeMap<String, String>,
) -> Result<Preview, Failure> {
    let tools = Toolbox::new(config);
    let context = RunContext::new(
        tools.config(),
        Request {
            definition,
            file,
            base,
            params,
            started: Millis(0),
            columns: None,
            replay: None,
            only: None,
        },
    )
    .await?;
    // First, because its errors point into the file.
    sources(tools.config(), context.definition(), base)
        .await
        .map_err(|wrong| Failure::permanent(wrong.to_string()))?;
    context.lookups().await?;
    // No run exists: nothing that a destination looks at by these is ever there.
    let load = |name: &LoadName| context.load_as(name, &RunId::from("plan"), (Epoch(0), Attempt(0)), None);
    let stages = discover::stages(&tools, &context, load).await?;
    let mut loads = Vec::new();
    let mut targets = Targets::default();
    for name in context.definition().loads.keys() {
        let preview = preview(&tools, &context, name).await?;
        if let Ok(found) = &preview.inspection {
            targets.take(context.definition(), name, &found.identity)?;
        }
        loads.push(preview);
    }
    let mut drift = Vec::new();
    for name in context.definition().sources.keys() {
        drift.push((name.clone(), context.source(name)?.drift().await?));
    }
    let advances = stages.iter().flat_map(|stage| &stage.advances);
    let advances: Vec<_> = advances.cloned().collect();
    let warnings = discover::warnings(context.definition(), &advances);
    Ok(Preview {
        warnings,
        compiled: context.compiled,
        stages,
        loads,
        drift,
    })
}

async fn preview(tools: &Toolbox, context: &RunContext, name: &LoadName) -> Result<LoadPreview, Failure> {
    // No run exists: nothing that a destination looks at by these is ever there.
    let load = context.load_as(name, &RunId::from("plan"), (Epoch(0), Attempt(0)), None)?;
    let destination = context
        .definition()
        .loads
        .get(name)
        .map(|load| load.to.clone())
        .unwrap_or_default();
    let inspection = match tools.destination(context.definition(), name).await {
        Ok(destination) => destination.inspect(&load).await,
        Err(failure) => Err(failure),
    };
    let place = tools.config().places().remove(&destination);
    Ok(LoadPreview {
        load,
        destination,
        place,
        inspection,
    })
}

/// Looks at the sources of a pipeline as a run would, and at its SQL over the columns that they have: what is missing,
/// empty or otherwise no such file is found before a run exists. What may pass by itself, such as a store that doesn't
/// answer, is left to the run, which tries again. Opens no destination.
pub async fn sources(config: &NodeConfig, definition: &Definition, base: &str) -> Result<(), Diagnostics> {
    let mut columns = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut unknown = false;
    let databases = Databases::of(config);
    for (name, declared) in &definition.sources {
        let binding = Binding {
            base: base.to_owned(),
            s3: config.s3.clone(),
            checkpoint_rows: definition.checkpoint_rows,
            databases: databases.clone(),
        };
        match looked_at(declared, binding).await {
            Ok(found) => {
                columns.insert(name.clone(), found);
            }
            Err(Misdeclared { failure, column }) if failure.class == Class::Permanent => {
                let column = column.and_then(|column| definition.place_of_column(name, &column));
                wrong.push((column.unwrap_or(declared.place), failure.message));
            }
            Err(Misdeclared { failure, .. }) => {
                tracing::debug!(source = %name, %failure, "not checked before the run");
                unknown = true;
            }
        }
    }
    if !wrong.is_empty() {
        return Err(Diagnostics::of(definition, wrong));
    }
    if unknown {
        // Their SQL was looked at when the file was read, as far as columns are declared.
        return Ok(());
    }
    haulage_plan::compile(definition, &columns).map(drop)
}

async fn looked_at(declared: &haulage_plan::definition::Source, binding: Binding) -> Result<Vec<Column>, Misdeclared> {
    let source = source::bind(declared, binding)?;
    source.check().await?;
    Ok(source.columns().await?)
}

/// The columns of the draft's sources for a check that reads as little as it can: the header's of a local file, where
/// they are not declared. What is wrong with such a file is noted in the draft. The names of the sources whose columns
/// can only be known where they are read are left out.
pub async fn columns_for_validate(draft: &mut Draft, base: &str) -> BTreeMap<String, Vec<Column>> {
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for declared in draft.sources() {
        if !declared.kind.is_local(base) || !declared.kind.columns().is_empty() {
            continue;
        }
        match header(declared, base, draft.checkpoint_rows()).await {
            Ok(columns) => {
                found.insert(declared.name.clone(), columns);
            }
            Err(failure) => wrong.push((declared.name.clone(), declared.place, failure.message)),
        }
    }
    for (source, place, why) in wrong {
        draft.wrong(&source, place, why);
    }
    found
}

async fn header(
    declared: &haulage_plan::definition::Source,
    base: &str,
    checkpoint_rows: u64,
) -> Result<Vec<Column>, Failure> {
    let binding = Binding {
        base: base.to_owned(),
        s3: S3Settings::default(),
        checkpoint_rows,
        databases: Databases::default(),
    };
    source::bind(declared, binding)?.columns().await
}
