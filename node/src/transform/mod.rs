//! Runs a stage's SQL over the rows of a segment: one DataFusion pass per load, memory-bounded.
//!
//! A [`StagePass`] is built once for a chunk and then run segment by segment. Everything that doesn't change between
//! segments is done once: optimizing, physical planning, and the hash tables of the lookups, which live in the physical
//! plan and are shared by all its runs. The rows of a run, and what its reject rules find, travel in the run's own task
//! context (`segment::RunInput`), so the plan itself holds neither.
//!
//! It decides nothing about what happens to the rows: staging, quarantine and checkpoints are the chunk actor's.

mod accounts;
mod blame;
mod failure;
mod probe;
mod reject;
mod segment;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_blame;
#[cfg(test)]
mod tests_of_wanted;
mod wanted;

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use chrono::{DateTime, Utc};
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::SessionState;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::{ExecutionPlan, RecordBatchStream, SendableRecordBatchStream, execute_stream};
use futures::{Stream, StreamExt, ready};
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, Millis, StageId};
use haulage_plan::Compiled;
use haulage_plan::compile::{session as plan_session, with_row};
use haulage_plan::definition::SourceKind;

pub use accounts::RowTally;
pub use blame::{Blame, Part};
pub use failure::{PassError, SqlError};
pub use reject::Rejected;

use crate::source::Wanted;
use reject::Draining;
use segment::{Bindings, RunInput, chunk_reads};

/// The whole of each lookup of a stage, by its name.
pub type Lookups = Arc<HashMap<String, Vec<RecordBatch>>>;

/// A stage's SQL, planned and ready for its segments.
pub struct StagePass {
    loads: HashMap<LoadName, LoadPass>,
    chunk: SchemaRef,
    state: SessionState,
    /// Which rows the loads can need, if a reader can do something with it.
    wanted: Option<Wanted>,
    /// Every step's place in the pipeline: the first of a row's rejects is the one that counts.
    step_order: Arc<HashMap<String, usize>>,
}

struct LoadPass {
    plan: LogicalPlan,
    schema: SchemaRef,
    /// Shared by all runs, unless a join of it would keep rows of a run.
    physical: Option<Arc<dyn ExecutionPlan>>,
}

impl StagePass {
    /// Plans every load of a stage. `started` is the moment that `now()` means in all of the run. `memory` bounds what
    /// the lookups' hash tables and buffers take; `spill` is a folder for what may be put on disk, if anything may.
    ///
    /// Permanent failure if the stage, a lookup or its columns are not what the plan was made of.
    pub async fn new(
        compiled: &Compiled,
        stage: StageId,
        lookups: Lookups,
        started: Millis,
        memory: Arc<dyn MemoryPool>,
        spill: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let Some(stage) = compiled.stage(stage) else {
            return Err(Failure::permanent(format!("the pipeline has no stage {stage}")));
        };
        let Some(chunk) = compiled.chunk_schema(&stage.source) else {
            return Err(Failure::permanent(format!(
                "the columns of source {} are not known",
                stage.source
            )));
        };
        let started = i64::try_from(started.0)
            .ok()
            .and_then(DateTime::from_timestamp_millis)
            .unwrap_or_default();
        let state = session(memory, spill, started).map_err(|error| failure::of("the session", &error))?;
        let bindings = Bindings {
            compiled,
            lookups: &lookups,
            started,
        };
        let mut loads = HashMap::new();
        for name in &stage.loads {
            let Some(load) = compiled.loads.get(name) else { continue };
            let fail = |error: DataFusionError| failure::of(&format!("load {name}"), &error);
            let plan = bindings.bind(load.plan.clone()).map_err(fail)?;
            let physical = Box::pin(state.create_physical_plan(&plan)).await.map_err(fail)?;
            let physical = probe::reusable(&physical).then_some(physical);
            loads.insert(
                name.clone(),
                LoadPass {
                    plan,
                    schema: with_row(&load.schema),
                    physical,
                },
            );
        }
        let declared = compiled.definition.sources.get(&stage.source);
        let wanted = declared
            .filter(|source| matches!(source.kind, SourceKind::Parquet(_)))
            .and_then(|_| wanted::wanted(compiled, stage, &state));
        let step_order = compiled
            .steps
            .keys()
            .enumerate()
            .map(|(place, step)| (step.clone(), place))
            .collect();
        Ok(Self {
            loads,
            chunk,
            state,
            wanted,
            step_order: Arc::new(step_order),
        })
    }

    /// Which rows the loads can need, if that is known and helps.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// Starts the pass of one load over the rows of one segment. Each batch has the source's columns and, last, the row
    /// column, as [`crate::source::Segment`] gives them. Passes may run at the same time.
    pub async fn run(&self, load: &LoadName, batches: Vec<RecordBatch>) -> Result<PassRun, Failure> {
        let Some(pass) = self.loads.get(load) else {
            return Err(Failure::permanent(format!("load {load} is not fed by this stage")));
        };
        let fail = |error: DataFusionError| failure::of(&format!("load {load}"), &error);
        let physical = match &pass.physical {
            Some(physical) => Arc::clone(physical),
            None => Box::pin(self.state.create_physical_plan(&pass.plan))
                .await
                .map_err(fail)?,
        };
        self.execute(load, physical, Arc::clone(&pass.schema), batches)
            .map_err(fail)
    }

    fn execute(
        &self,
        load: &LoadName,
        physical: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> DfResult<PassRun> {
        let batches = batches
            .into_iter()
            .map(|batch| conform(&self.chunk, batch))
            .collect::<DfResult<Vec<_>>>()?;
        let input = Arc::new(RunInput::new(batches, chunk_reads(&physical)));
        let stream = execute_stream(physical, self.task(Arc::clone(&input)))?;
        let output = Output {
            stream: Some(stream),
            schema,
            input: Arc::clone(&input),
            draining: None,
        };
        Ok(PassRun {
            stream: Box::pin(output),
            load: load.clone(),
            input,
            step_order: Arc::clone(&self.step_order),
        })
    }

    /// The columns that a load's batches have: those of the load, and the row column last.
    pub fn schema(&self, load: &LoadName) -> Option<SchemaRef> {
        self.loads.get(load).map(|pass| Arc::clone(&pass.schema))
    }

    fn task(&self, input: Arc<RunInput>) -> Arc<TaskContext> {
        let config = self.state.config().clone().with_extension(input);
        Arc::new(TaskContext::from(&self.state).with_session_config(config))
    }
}

fn session(memory: Arc<dyn MemoryPool>, spill: Option<PathBuf>, started: DateTime<Utc>) -> DfResult<SessionState> {
    let disk = match spill {
        Some(folder) => DiskManagerMode::Directories(vec![folder]),
        None => DiskManagerMode::Disabled,
    };
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(memory)
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disk))
        .build_arc()?;
    let mut rules = PhysicalOptimizer::new().rules;
    let after = rules
        .iter()
        .position(|rule| rule.name() == "join_selection")
        .map_or(0, |place| place + 1);
    rules.insert(after, Arc::new(probe::ChunkProbes));
    let mut state = plan_session(|builder| builder.with_runtime_env(runtime).with_physical_optimizer_rules(rules));
    state.execution_props_mut().query_execution_start_time = Some(started);
    Ok(state)
}

/// The pass of one load over one segment.
pub struct PassRun {
    /// The load's rows; the last column is the row column. Poll it to its end: only then are all rejects known.
    pub stream: SendableRecordBatchStream,
    load: LoadName,
    input: Arc<RunInput>,
    step_order: Arc<HashMap<String, usize>>,
}

impl PassRun {
    /// The next batch, with errors that name the load.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, PassError>> {
        let next = self.stream.next().await?;
        Some(next.map_err(|error| failure::of_pass(&self.load, &error)))
    }

    /// The rows that reject rules named, by row, each once: the first step of the pipeline that rejected it, by its
    /// first rule. All of them once [`PassRun::stream`] has ended. A row that a join multiplied can be in here and in
    /// the stream as well; [`RowTally`] counts it as rejected.
    pub fn rejects(&self) -> Vec<Rejected> {
        let place = |step: &str| self.step_order.get(step).copied().unwrap_or(usize::MAX);
        let mut found = self.input.rejects();
        found.sort_by_key(|reject| (reject.row, place(&reject.step), reject.rule));
        found.dedup_by_key(|reject| reject.row);
        found
    }
}

/// The stream of a pass: batches in the load's own types, and at the end the rest of what reject rules have to see.
struct Output {
    stream: Option<SendableRecordBatchStream>,
    schema: SchemaRef,
    input: Arc<RunInput>,
    draining: Option<Draining>,
}

impl Stream for Output {
    type Item = DfResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(stream) = &mut this.stream {
            match ready!(stream.poll_next_unpin(cx)) {
                Some(Ok(batch)) => return Poll::Ready(Some(conform(&this.schema, batch))),
                Some(Err(error)) => {
                    this.stream = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.stream = None;
                    // A join with an empty lookup ends without reading the chunk: its rows have still to be judged.
                    this.draining = Some(Draining::new(this.input.judges()));
                }
            }
        }
        let Some(draining) = &mut this.draining else {
            return Poll::Ready(None);
        };
        let end = ready!(draining.poll(cx));
        this.draining = None;
        match end {
            Ok(()) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl RecordBatchStream for Output {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// A batch in exactly the given columns: types that only differ in their encoding (views) are cast, nothing is copied
/// where they are equal.
fn conform(schema: &SchemaRef, batch: RecordBatch) -> DfResult<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    if batch.num_columns() != schema.fields().len() {
        return Err(DataFusionError::Execution(format!(
            "a batch has {} columns where the plan has {}",
            batch.num_columns(),
            schema.fields().len()
        )));
    }
    let typed = |(column, field): (&ArrayRef, &Arc<datafusion::arrow::datatypes::Field>)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            cast(column, field.data_type())
        }
    };
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(typed)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}
