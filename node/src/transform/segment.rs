//! Puts rows behind the tables of a plan: those of a segment, of a lookup, or what reject rules let pass.
//!
//! A plan is made once and run for many segments, so the scan of a chunk holds no rows: it takes them from the task
//! context of the run that executes it.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, exec_err, internal_err, plan_err, project_schema};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::stream;
use haulage_plan::compile::{Compiled, PlanTable, TableKind};

use super::reject::{Judge, PassedTable, Rejected};
use super::{Lookups, conform};

/// What one run of a plan reads, and what its reject rules find.
pub(super) struct RunInput {
    batches: Mutex<Vec<Option<RecordBatch>>>,
    /// Whether the plan reads them only once: then each is freed as soon as it is worked off.
    once: bool,
    read: AtomicBool,
    rejects: Mutex<Vec<Rejected>>,
    judges: Mutex<Vec<Arc<Judge>>>,
}

impl RunInput {
    /// `reads` is how often the plan reads the segment.
    pub(super) fn new(batches: Vec<RecordBatch>, reads: usize) -> Self {
        Self {
            batches: Mutex::new(batches.into_iter().map(Some).collect()),
            once: reads == 1,
            read: AtomicBool::new(false),
            rejects: Mutex::default(),
            judges: Mutex::default(),
        }
    }

    pub(super) fn of(context: &TaskContext) -> Result<Arc<Self>> {
        match context.session_config().get_extension::<Self>() {
            Some(input) => Ok(input),
            None => internal_err!("a chunk's plan was executed without the rows of a segment"),
        }
    }

    /// The batch at this place; `None` after the last.
    fn batch(&self, place: usize) -> Option<RecordBatch> {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.get_mut(place)?;
        if self.once { batch.take() } else { batch.clone() }
    }

    pub(super) fn reject(&self, rows: &mut Vec<Rejected>) {
        self.rejects.lock().unwrap_or_else(PoisonError::into_inner).append(rows);
    }

    pub(super) fn rejects(&self) -> Vec<Rejected> {
        self.rejects.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_judge(&self, judge: Arc<Judge>) {
        self.judges.lock().unwrap_or_else(PoisonError::into_inner).push(judge);
    }

    pub(super) fn judges(&self) -> Vec<Arc<Judge>> {
        self.judges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the tables of a compiled plan stand for on this node.
pub(super) struct Bindings<'b> {
    pub(super) compiled: &'b Compiled,
    pub(super) lookups: &'b Lookups,
    pub(super) started: DateTime<Utc>,
}

impl Bindings<'_> {
    /// Replaces every table of a plan by one that has rows.
    pub(super) fn bind(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let bound = plan.transform_down_with_subqueries(|node| match node {
            LogicalPlan::TableScan(mut scan) => match scan.source.downcast_ref::<PlanTable>() {
                Some(table) => {
                    scan.source = provider_as_source(self.table(table)?);
                    Ok(Transformed::new(
                        LogicalPlan::TableScan(scan),
                        true,
                        TreeNodeRecursion::Continue,
                    ))
                }
                None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
            },
            other => Ok(Transformed::no(other)),
        })?;
        Ok(bound.data)
    }

    fn table(&self, table: &PlanTable) -> Result<Arc<dyn TableProvider>> {
        match table.kind {
            TableKind::Chunk => Ok(Arc::new(ChunkTable {
                schema: Arc::clone(&table.schema),
            })),
            TableKind::Lookup => {
                let Some(batches) = self.lookups.get(&table.name) else {
                    return plan_err!("the lookup {} was not read", table.name);
                };
                let columns: Vec<usize> = (0..table.schema.fields().len()).collect();
                let mut rows = Vec::with_capacity(batches.len());
                for batch in batches {
                    if batch.num_columns() < columns.len() {
                        return exec_err!("the lookup {} has other columns than the plan", table.name);
                    }
                    // Sources may add the row column to a lookup as well; no plan asks for it.
                    rows.push(conform(&table.schema, batch.project(&columns)?)?);
                }
                Ok(Arc::new(MemTable::try_new(Arc::clone(&table.schema), vec![rows])?))
            }
            TableKind::Passed => {
                let Some(reject) = self.compiled.rejects.get(&table.name) else {
                    return plan_err!("the rules of step {} are not known", table.name);
                };
                let input = self.bind(reject.input.clone())?;
                let schema = Arc::clone(&table.schema);
                Ok(Arc::new(PassedTable::new(
                    &table.name,
                    schema,
                    input,
                    reject.rules.clone(),
                    self.started,
                )))
            }
            TableKind::Step => plan_err!("step {} was not planned", table.name),
        }
    }
}

/// The rows of whichever segment is run.
#[derive(Debug)]
struct ChunkTable {
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for ChunkTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(SegmentExec::new(
            project_schema(&self.schema, projection)?,
            projection.cloned(),
        )))
    }
}

/// Reads the rows of the run's segment.
#[derive(Debug)]
pub(super) struct SegmentExec {
    schema: SchemaRef,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl SegmentExec {
    fn new(schema: SchemaRef, projection: Option<Vec<usize>>) -> Self {
        let properties = Arc::new(one_partition(Arc::clone(&schema)));
        Self {
            schema,
            projection,
            properties,
        }
    }
}

/// Properties of a node that gives one bounded stream in no order.
pub(super) fn one_partition(schema: SchemaRef) -> PlanProperties {
    PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    )
}

impl DisplayAs for SegmentExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentExec: columns={}", self.schema.fields().len())
    }
}

impl ExecutionPlan for SegmentExec {
    fn name(&self) -> &'static str {
        "SegmentExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = RunInput::of(&context)?;
        // Reading it again would find nothing, and nobody would miss the rows.
        if input.read.swap(true, Ordering::Relaxed) && input.once {
            return internal_err!("a plan that reads a segment once has read it again");
        }
        let projection = self.projection.clone();
        let schema = Arc::clone(&self.schema);
        let mut next = 0;
        let batches = std::iter::from_fn(move || {
            let batch = input.batch(next)?;
            next += 1;
            Some(match &projection {
                Some(columns) => batch.project(columns).map_err(DataFusionError::from),
                None => Ok(batch),
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }
}

/// How often a plan reads the chunk, itself and below.
pub(super) fn chunk_reads(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let below: usize = plan.children().into_iter().map(chunk_reads).sum();
    below + usize::from((plan.as_ref() as &dyn Any).is::<SegmentExec>())
}

/// Whether a plan reads the chunk, itself or below.
pub(super) fn reads_chunk(plan: &Arc<dyn ExecutionPlan>) -> bool {
    chunk_reads(plan) > 0
}
