//! Reject rules: rows for which one is true leave the pass and are noted down; the others go on.
//!
//! The rows to judge are a plan of their own below a table ([`PassedTable`]), so the optimizer sees a table and can't
//! move a later filter below the rules. What can still keep them from being asked is a join that ends early, because
//! its lookup is empty: so the run holds every [`Judge`] too, and asks it to the end ([`Draining`]).

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::arrow::array::{Array, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, DFSchema, Result, internal_err, project_schema};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, TableType};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::{Distribution, PhysicalExpr};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, RecordBatchStream, SendableRecordBatchStream,
};
use futures::{Stream, StreamExt, ready};

use super::segment::{RunInput, one_partition};
use haulage_plan::ROW_COLUMN;

/// A row that a rule named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its place in the segment.
    pub row: u64,
    /// The step whose rule it was.
    pub step: Arc<str>,
    /// The rule's name.
    pub reason: Arc<str>,
    /// The rule's place among those of the step.
    pub(super) rule: usize,
}

/// What the rules of a step let pass, as a table.
#[derive(Debug)]
pub(super) struct PassedTable {
    step: Arc<str>,
    schema: SchemaRef,
    input: LogicalPlan,
    rules: Vec<(String, Expr)>,
    started: DateTime<Utc>,
}

impl PassedTable {
    pub(super) fn new(
        step: &str,
        schema: SchemaRef,
        input: LogicalPlan,
        rules: Vec<(String, Expr)>,
        started: DateTime<Utc>,
    ) -> Self {
        Self {
            step: Arc::from(step),
            schema,
            input,
            rules,
            started,
        }
    }

    /// The columns of the input that are needed: what is read, what the rules look at, and the row column, in order.
    fn needed(&self, wanted: &[usize]) -> Result<Vec<usize>> {
        let schema = self.input.schema();
        let mut needed = wanted.to_vec();
        for (_, rule) in &self.rules {
            for column in rule.column_refs() {
                needed.push(schema.index_of_column(column)?);
            }
        }
        needed.push(schema.fields().len() - 1);
        needed.sort_unstable();
        needed.dedup();
        Ok(needed)
    }
}

#[async_trait]
impl TableProvider for PassedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all);
        let needed = self.needed(wanted)?;
        let schema = self.input.schema();
        let columns = needed
            .iter()
            .map(|index| Expr::Column(Column::from(schema.qualified_field(*index))))
            .collect();
        let input = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(self.input.clone()))?);
        let mut rules = Vec::new();
        for (name, rule) in &self.rules {
            let rule = simplify(rule.clone(), input.schema(), state, self.started)?;
            rules.push((
                Arc::from(name.as_str()),
                state.create_physical_expr(rule, input.schema())?,
            ));
        }
        let keep = wanted
            .iter()
            .filter_map(|index| needed.binary_search(index).ok())
            .collect();
        let physical = Box::pin(state.create_physical_plan(&input)).await?;
        let schema = project_schema(&self.schema, projection)?;
        Ok(Arc::new(RejectExec::new(
            physical,
            Rules {
                step: Arc::clone(&self.step),
                rules,
                keep,
            },
            schema,
        )))
    }
}

/// Evaluates what is constant, `now()` among it: it means the same moment in all of a run.
fn simplify(rule: Expr, schema: &Arc<DFSchema>, state: &dyn Session, started: DateTime<Utc>) -> Result<Expr> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(schema))
        .with_config_options(Arc::new(state.config_options().clone()))
        .with_query_execution_start_time(Some(started))
        .build();
    ExprSimplifier::new(context).simplify(rule)
}

/// Rules over the columns of an input, and which of these go on.
#[derive(Debug, Clone)]
struct Rules {
    step: Arc<str>,
    rules: Vec<(Arc<str>, Arc<dyn PhysicalExpr>)>,
    keep: Vec<usize>,
}

/// The physical node of a step's rules.
#[derive(Debug)]
pub(super) struct RejectExec {
    input: Arc<dyn ExecutionPlan>,
    rules: Rules,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl RejectExec {
    fn new(input: Arc<dyn ExecutionPlan>, rules: Rules, schema: SchemaRef) -> Self {
        let properties = Arc::new(one_partition(Arc::clone(&schema)));
        Self {
            input,
            rules,
            schema,
            properties,
        }
    }
}

impl DisplayAs for RejectExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RejectExec: step={}, rules=[", self.rules.step)?;
        for (index, (name, rule)) in self.rules.rules.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name}: {rule}")?;
        }
        f.write_str("]")
    }
}

impl ExecutionPlan for RejectExec {
    fn name(&self) -> &'static str {
        "RejectExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    // A UNION below has a stream for each branch; without this only the first would be judged.
    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for (_, rule) in &self.rules.rules {
            if f(rule)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self::new(input, self.rules.clone(), Arc::clone(&self.schema)))),
            Err(children) => internal_err!("reject rules have one input, not {}", children.len()),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 || self.input.properties().output_partitioning().partition_count() != 1 {
            return internal_err!("reject rules have to see all rows in one stream");
        }
        let run = RunInput::of(&context)?;
        let stream = self.input.execute(0, context)?;
        let work = Work {
            stream,
            rules: self.rules.clone(),
            run: Arc::downgrade(&run),
            schema: Arc::clone(&self.schema),
        };
        let judge = Arc::new(Judge {
            work: Mutex::new(Some(work)),
        });
        run.add_judge(Arc::clone(&judge));
        Ok(Box::pin(Judged {
            judge,
            schema: Arc::clone(&self.schema),
        }))
    }
}

/// The rules of one step at work in one run. Both the stream of the pass and the run hold it; whoever polls, it goes on.
pub(super) struct Judge {
    work: Mutex<Option<Work>>,
}

struct Work {
    stream: SendableRecordBatchStream,
    rules: Rules,
    // Weak, because the run holds its judges.
    run: std::sync::Weak<RunInput>,
    schema: SchemaRef,
}

impl Judge {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        let mut slot = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(work) = slot.as_mut() else {
            return Poll::Ready(None);
        };
        let next = match ready!(work.stream.poll_next_unpin(cx)) {
            Some(Ok(batch)) => Some(work.judge(&batch)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        // Done or failed: nobody may poll the input again.
        if !matches!(next, Some(Ok(_))) {
            *slot = None;
        }
        Poll::Ready(next)
    }
}

impl Work {
    fn judge(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let mut rejected: Option<BooleanBuffer> = None;
        let mut found = Vec::new();
        for (index, (name, rule)) in self.rules.rules.iter().enumerate() {
            // A rule is asked only about rows that those before it let pass: an early rule may guard a later one.
            let answer = match &rejected {
                None => rule.evaluate(batch)?,
                Some(rejected) => rule.evaluate_selection(batch, &BooleanArray::new(!rejected, None))?,
            };
            let answer = answer.into_array(rows)?;
            let Some(answer) = answer.as_any().downcast_ref::<BooleanArray>() else {
                if answer.null_count() == rows {
                    continue;
                }
                return internal_err!("the rule {name} gave {}", answer.data_type());
            };
            let mut hits = answer.values().clone();
            if let Some(nulls) = answer.nulls() {
                hits = &hits & nulls.inner();
            }
            if let Some(rejected) = &rejected {
                hits = &hits & &!rejected;
            }
            if hits.count_set_bits() == 0 {
                continue;
            }
            self.note(batch, &hits, index, name, &mut found)?;
            rejected = Some(match rejected {
                Some(rejected) => &rejected | &hits,
                None => hits,
            });
        }
        if let Some(run) = self.run.upgrade()
            && !found.is_empty()
        {
            run.reject(&mut found);
        }
        let kept = batch.project(&self.rules.keep)?;
        let kept = match rejected {
            Some(rejected) => filter_record_batch(&kept, &BooleanArray::new(!&rejected, None))?,
            None => kept,
        };
        super::conform(&self.schema, kept)
    }

    fn note(
        &self,
        batch: &RecordBatch,
        hits: &BooleanBuffer,
        rule: usize,
        name: &Arc<str>,
        found: &mut Vec<Rejected>,
    ) -> Result<()> {
        let rows = batch
            .column_by_name(ROW_COLUMN)
            .and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
        let Some(rows) = rows else {
            return internal_err!("rows to reject without a row column");
        };
        let reject = |at: usize| Rejected {
            row: rows.value(at),
            step: Arc::clone(&self.rules.step),
            reason: Arc::clone(name),
            rule,
        };
        found.extend(hits.set_indices().map(reject));
        Ok(())
    }
}

/// The rows that pass, as the pass sees them.
struct Judged {
    judge: Arc<Judge>,
    schema: SchemaRef,
}

impl Stream for Judged {
    type Item = Result<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.judge.poll(cx)
    }
}

impl RecordBatchStream for Judged {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// Asks every judge of a run to the end; what passes has nowhere to go.
pub(super) struct Draining {
    judges: Vec<Arc<Judge>>,
}

impl Draining {
    pub(super) fn new(judges: Vec<Arc<Judge>>) -> Self {
        Self { judges }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while let Some(judge) = self.judges.last() {
            match ready!(judge.poll(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    self.judges.pop();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
