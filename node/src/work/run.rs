//! What a node keeps of a run: its bound definition, the compiled plan, the sources, and the lookups, which are read
//! once per node and run. Made when the first assignment of the run needs it, forgotten when the run is at rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use haulage_core::event::PlannedStage;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, Epoch, LoadName, Millis, RunId, StageId};
use haulage_plan::Compiled;
use haulage_plan::definition::Definition;
use indexmap::IndexMap;
use tokio::sync::OnceCell;

use super::toolbox::{Toolbox, unknown_load};
use super::{Order, provenance};
use crate::config::NodeConfig;
use crate::sink::LoadContext;
use crate::source::database::Databases;
use crate::source::{self, Binding, Source};
use crate::transform::{Lookups, StagePass};

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) definition: &'a str,
    pub(crate) file: &'a str,
    pub(crate) base: &'a str,
    pub(crate) params: &'a BTreeMap<String, String>,
    /// What `now()` means.
    pub(crate) started: Millis,
}

impl<'a> From<&'a Order> for Request<'a> {
    fn from(order: &'a Order) -> Self {
        let submission = &order.assignment.submission;
        Self {
            definition: &submission.definition,
            file: &submission.file,
            base: &submission.base,
            params: &submission.params,
            started: order.assignment.submitted_at,
        }
    }
}

/// See the module.
pub(crate) struct RunContext {
    pub(crate) compiled: Compiled,
    started: Millis,
    stages: Vec<PlannedStage>,
    sources: IndexMap<String, Box<dyn Source>>,
    lookups: OnceCell<Lookups>,
    passes: BTreeMap<StageId, OnceCell<Arc<StagePass>>>,
}

impl RunContext {
    /// Binds, looks at the headers of sources that don't declare their columns, and compiles.
    /// Permanent failure with the text of everything that is wrong with the file.
    pub(crate) async fn new(config: &NodeConfig, request: Request<'_>) -> Result<Self, Failure> {
        let definition = Self::parse(request)?;
        let mut sources = IndexMap::new();
        let databases = Databases::of(config);
        for (name, declared) in &definition.sources {
            let binding = Binding {
                base: request.base.to_owned(),
                s3: config.s3.clone(),
                checkpoint_rows: definition.checkpoint_rows,
                databases: databases.clone(),
            };
            sources.insert(name.clone(), source::bind(declared, binding)?);
        }
        let mut columns = BTreeMap::new();
        for (name, source) in &sources {
            columns.insert(name.clone(), source.columns().await?);
        }
        let compiled =
            haulage_plan::compile(&definition, &columns).map_err(|wrong| Failure::permanent(wrong.to_string()))?;
        let stages: Vec<PlannedStage> = compiled
            .stages
            .iter()
            .map(|stage| PlannedStage {
                stage: stage.id,
                source: stage.source.clone(),
                steps: stage.steps.clone(),
                loads: stage.loads.clone(),
                chunks: Vec::new(),
            })
            .collect();
        let passes = stages.iter().map(|stage| (stage.stage, OnceCell::new())).collect();
        Ok(Self {
            compiled,
            started: request.started,
            stages,
            sources,
            lookups: OnceCell::new(),
            passes,
        })
    }

    /// The definition alone, which needs no source.
    pub(crate) fn parse(request: Request<'_>) -> Result<Definition, Failure> {
        haulage_plan::parse_and_bind(request.definition, request.file, request.params)
            .map_err(|wrong| Failure::permanent(wrong.to_string()))
    }

    /// The pipeline with its parameters bound.
    pub(crate) fn definition(&self) -> &Definition {
        &self.compiled.definition
    }

    /// The pipeline's plan.
    pub(crate) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The stages in order, without their chunks.
    pub(crate) fn stages(&self) -> &[PlannedStage] {
        &self.stages
    }

    /// One stage, without its chunks.
    pub(crate) fn stage(&self, stage: StageId) -> Result<&PlannedStage, Failure> {
        self.stages
            .iter()
            .find(|planned| planned.stage == stage)
            .ok_or_else(|| unknown_stage(stage))
    }

    /// A source by its name.
    pub(crate) fn source(&self, name: &str) -> Result<&dyn Source, Failure> {
        self.sources.get(name).map(AsRef::as_ref).ok_or_else(|| {
            Failure::permanent(format!(
                "the pipeline has no source {name}; run the same release on coordinator and nodes"
            ))
        })
    }

    /// Every lookup, read whole the first time.
    pub(crate) async fn lookups(&self) -> Result<&Lookups, Failure> {
        self.lookups
            .get_or_try_init(|| async {
                let mut lookups = HashMap::new();
                for (name, declared) in self.definition().sources.iter().filter(|(_, declared)| declared.lookup) {
                    let rows = self.source(name)?.read_all().await?;
                    tracing::debug!(lookup = %declared.name, rows = rows.iter().map(RecordBatch::num_rows).sum::<usize>(), "read");
                    lookups.insert(name.clone(), rows);
                }
                Ok(Arc::new(lookups))
            })
            .await
    }

    /// The pass of a stage: its SQL over the lookups, ready for segments.
    pub(crate) async fn pass(&self, tools: &Toolbox, stage: StageId) -> Result<Arc<StagePass>, Failure> {
        let cell = self.passes.get(&stage).ok_or_else(|| unknown_stage(stage))?;
        cell.get_or_try_init(|| async {
            let lookups = Arc::clone(self.lookups().await?);
            let pass = StagePass::new(&self.compiled, stage, lookups, self.started, tools.memory(), None);
            Ok(Arc::new(Box::pin(pass).await?))
        })
        .await
        .cloned()
    }

    /// What a destination has to know about a load of the order's run.
    pub(crate) fn load(&self, order: &Order, name: &LoadName) -> Result<LoadContext, Failure> {
        let key = &order.assignment.key;
        self.load_as(
            name,
            &key.run,
            (order.epoch, key.attempt),
            order.assignment.replaces.clone(),
        )
    }

    pub(crate) fn load_as(
        &self,
        name: &LoadName,
        run: &RunId,
        by: (Epoch, Attempt),
        replaces: Option<RunId>,
    ) -> Result<LoadContext, Failure> {
        let mut load = bare(self.definition(), name, run, by, replaces)?;
        load.schema = self
            .compiled
            .loads
            .get(name)
            .ok_or_else(|| unknown_load(name))?
            .schema
            .clone();
        if load.provenance {
            load.schema = provenance::with_columns(&load.schema);
        }
        Ok(load)
    }

    /// The same without the columns, for when the plan can't be made.
    pub(crate) fn bare_load(definition: &Definition, order: &Order, name: &LoadName) -> Result<LoadContext, Failure> {
        bare(
            definition,
            name,
            &order.assignment.key.run,
            (order.epoch, order.assignment.key.attempt),
            order.assignment.replaces.clone(),
        )
    }
}

pub(crate) fn bare(
    definition: &Definition,
    name: &LoadName,
    run: &RunId,
    (epoch, attempt): (Epoch, Attempt),
    replaces: Option<RunId>,
) -> Result<LoadContext, Failure> {
    let load = definition.loads.get(name).ok_or_else(|| unknown_load(name))?;
    Ok(LoadContext {
        pipeline: definition.pipeline.clone(),
        run: run.clone(),
        epoch,
        attempt,
        load: name.clone(),
        table: load.table.clone(),
        mode: load.mode,
        key: load.key.clone(),
        schema: Arc::new(Schema::empty()),
        replaces,
        keep_previous: load.keep_previous,
        provenance: load.provenance,
        round: 0,
    })
}

fn unknown_stage(stage: StageId) -> Failure {
    Failure::permanent(format!(
        "the pipeline has no stage {stage}; run the same release on coordinator and nodes"
    ))
}
