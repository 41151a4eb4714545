//! What a node keeps of a run: its bound definition, the compiled plan, the sources, and the lookups, which are read
//! once per node and run. Made when the first assignment of the run needs it, forgotten when the run is at rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use haulage_core::event::{PlannedStage, SourceColumn};
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, Epoch, LoadName, Millis, RunId, StageId};
use haulage_core::submission::LoadOutline;
use haulage_plan::definition::{Column, Definition, Mode};
use haulage_plan::{Compiled, types};
use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use super::toolbox::{Toolbox, unknown_load};
use super::{Order, provenance};
use crate::config::NodeConfig;
use crate::sink::LoadContext;
use crate::source::database::{self, Databases};
use crate::source::replay::{Replayed, Routes};
use crate::source::{self, Binding, Source};
use crate::store::Store;
use crate::transform::{Lookups, StagePass};

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) definition: &'a str,
    pub(crate) file: &'a str,
    pub(crate) base: &'a str,
    pub(crate) params: &'a BTreeMap<String, String>,
    /// What `now()` means.
    pub(crate) started: Millis,
    /// The columns by which the run was planned, by source; empty before it is.
    pub(crate) columns: Option<&'a Planned>,
    /// Where rejected rows are, if they are read instead of the chunked sources.
    pub(crate) replay: Option<&'a Arc<dyn Store>>,
    /// The loads of the run, if they are not all of the definition's.
    pub(crate) only: Option<&'a [LoadOutline]>,
}

/// Columns of sources that may have others than they declare, by source.
pub(crate) type Planned = BTreeMap<String, Vec<SourceColumn>>;

impl<'a> From<&'a Order> for Request<'a> {
    fn from(order: &'a Order) -> Self {
        let submission = &order.assignment.submission;
        Self {
            definition: &submission.definition,
            file: &submission.file,
            base: &submission.base,
            params: &submission.params,
            started: order.assignment.submitted_at,
            columns: Some(&order.assignment.columns),
            replay: None,
            only: None,
        }
    }
}

impl<'a> Request<'a> {
    /// Of an order, with what it reads; `store` is the checkpoint store.
    pub(crate) fn of(order: &'a Order, store: &'a Arc<dyn Store>) -> Self {
        let submission = &order.assignment.submission;
        let is_replay = submission.replay.is_some();
        Self {
            replay: is_replay.then_some(store),
            only: is_replay.then_some(submission.loads.as_slice()),
            ..Self::from(order)
        }
    }
}

/// See the module.
pub(crate) struct RunContext {
    pub(crate) compiled: Compiled,
    started: Millis,
    is_replay: bool,
    stages: Vec<PlannedStage>,
    sources: IndexMap<String, Arc<dyn Source>>,
    databases: Databases,
    ended: OnceCell<()>,
    lookups: OnceCell<Lookups>,
    passes: BTreeMap<StageId, OnceCell<Arc<StagePass>>>,
}

impl RunContext {
    /// Binds, looks at the headers of sources that don't declare their columns, and compiles.
    /// Permanent failure with the text of everything that is wrong with the file.
    pub(crate) async fn new(config: &NodeConfig, request: Request<'_>) -> Result<Self, Failure> {
        let mut definition = Self::parse(request)?;
        if let Some(only) = request.only {
            let has = |name: &LoadName| only.iter().any(|outline| outline.name == *name);
            definition.loads.retain(|name, _| has(name));
            definition.checks.retain(|check| has(&check.load));
        }
        for (name, columns) in request.columns.into_iter().flatten() {
            if let Some(source) = definition.sources.get_mut(name) {
                source.planned = Some(columns.iter().map(column).collect::<Result<_, _>>()?);
            }
        }
        let mut sources: IndexMap<String, Arc<dyn Source>> = IndexMap::new();
        let databases = Databases::of_run(config, number(request));
        for (name, declared) in &definition.sources {
            let binding = Binding {
                base: request.base.to_owned(),
                s3: config.s3.clone(),
                checkpoint_rows: definition.checkpoint_rows,
                databases: databases.clone(),
            };
            sources.insert(name.clone(), source::bind(declared, binding)?.into());
        }
        let mut columns = BTreeMap::new();
        for (name, source) in &sources {
            columns.insert(name.clone(), source.columns().await?);
        }
        let compiled =
            haulage_plan::compile(&definition, &columns).map_err(|wrong| Failure::permanent(wrong.to_string()))?;
        if let Some(store) = request.replay {
            for (name, source) in &mut sources {
                if !definition.sources[name].lookup {
                    let routes = Routes::of(&compiled, name);
                    let rows = definition.checkpoint_rows;
                    let contract = definition.sources[name].contract;
                    let rows = Replayed::new(Arc::clone(source), Arc::clone(store), routes, rows, contract);
                    *source = Arc::new(rows);
                }
            }
        }
        let stages: Vec<PlannedStage> = compiled
            .stages
            .iter()
            .map(|stage| PlannedStage {
                stage: stage.id,
                source: stage.source.clone(),
                steps: stage.steps.clone(),
                loads: stage.loads.clone(),
                chunks: Vec::new(),
                advances: Vec::new(),
                columns: [&stage.source]
                    .into_iter()
                    .chain(&stage.lookups)
                    .filter(|name| compiled.definition.sources[*name].contract.finds_columns())
                    .map(|name| (name.clone(), compiled.columns[name].iter().map(planned).collect()))
                    .collect(),
            })
            .collect();
        let passes = stages.iter().map(|stage| (stage.stage, OnceCell::new())).collect();
        Ok(Self {
            compiled,
            started: request.started,
            is_replay: request.replay.is_some(),
            stages,
            sources,
            databases,
            ended: OnceCell::new(),
            lookups: OnceCell::new(),
            passes,
        })
    }

    /// The definition alone, which needs no source.
    pub(crate) fn parse(request: Request<'_>) -> Result<Definition, Failure> {
        haulage_plan::parse_and_bind(request.definition, request.file, request.params)
            .map_err(|wrong| Failure::permanent(wrong.to_string()))
    }

    /// Whether the run reads rejected rows instead of its chunked sources.
    pub(crate) fn is_replay(&self) -> bool {
        self.is_replay
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

    /// The columns of the sources that may have others than they declare.
    pub(crate) fn planned(&self) -> Planned {
        self.stages.iter().flat_map(|stage| stage.columns.clone()).collect()
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

    /// Every row is staged: the snapshots in which they were read end. They would hold up a publish to what was read.
    pub(crate) async fn end_snapshots(&self) {
        let sources = self.definition().sources.values();
        let end = || database::end_snapshots(&self.databases, sources);
        self.ended.get_or_init(end).await;
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
        let by = (order.epoch, key.attempt);
        let mut load = self.load_as(name, &key.run, by, order.assignment.replaces.clone())?;
        let replay = order.assignment.submission.replay.as_ref();
        load.origin = replay.map(|replay| replay.origin().clone());
        load.read = Arc::new(replay.map(|replay| replay.read.clone()).unwrap_or_default());
        Ok(load)
    }

    pub(crate) fn load_as(
        &self,
        name: &LoadName,
        run: &RunId,
        by: (Epoch, Attempt),
        replaces: Option<RunId>,
    ) -> Result<LoadContext, Failure> {
        let mut load = bare(self.definition(), name, run, by, replaces)?;
        load.mode = mode(&load, self.is_replay);
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
        let mut load = bare(
            definition,
            name,
            &order.assignment.key.run,
            (order.epoch, order.assignment.key.attempt),
            order.assignment.replaces.clone(),
        )?;
        let replay = order.assignment.submission.replay.as_ref();
        load.origin = replay.map(|replay| replay.origin().clone());
        load.mode = mode(&load, replay.is_some());
        Ok(load)
    }
}

/// A number of the run that is the same on all nodes. Two runs hardly share one, and if they do, one of them has to be run
/// again.
fn number(request: Request<'_>) -> i32 {
    let mut hash = Sha256::new();
    for text in [
        request.definition,
        request.file,
        request.base,
        &format!("{:?}", request.params),
    ] {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(request.started.0.to_be_bytes());
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
    i32::from_be_bytes([a, b, c, d])
}

/// How a load publishes. What a replay brings is added to what stands, whatever the mode: by key, if there is one.
pub(crate) fn mode(load: &LoadContext, is_replay: bool) -> Mode {
    match load.mode {
        Mode::Replace if is_replay && load.key.is_empty() => Mode::Append,
        Mode::Replace if is_replay => Mode::Merge,
        mode => mode,
    }
}

fn planned(column: &Column) -> SourceColumn {
    SourceColumn {
        name: column.name.clone(),
        type_name: types::name(&column.data_type),
        required: column.required,
    }
}

fn column(planned: &SourceColumn) -> Result<Column, Failure> {
    let data_type = types::named(&planned.type_name).ok_or_else(|| {
        Failure::permanent(format!(
            "column {} has the unknown type {}; run the same release on coordinator and nodes",
            planned.name, planned.type_name
        ))
    })?;
    Ok(Column {
        name: planned.name.clone(),
        data_type,
        required: planned.required,
    })
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
        evolution: load.evolution,
        layout: load.layout.clone(),
        round: 0,
        advances: Vec::new(),
        newest: load.newest.clone(),
        origin: None,
        read: Arc::default(),
        rejects: false,
    })
}

fn unknown_stage(stage: StageId) -> Failure {
    Failure::permanent(format!(
        "the pipeline has no stage {stage}; run the same release on coordinator and nodes"
    ))
}
