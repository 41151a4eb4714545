//! Which row made a pass fail, and in which step and column. Looked for when it has failed, by running the SQL again on
//! ever fewer rows, so that a pass which succeeds pays nothing for it.
//!
//! Halves are tried until one row is left: that reads no more than twice the rows of the segment. Some rows only fail
//! together, because the SQL engine evaluates the two sides of an AND for a whole batch; then the range is named.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, UInt64Array};
use datafusion::common::{Column, DataFusionError, Result as DfResult};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_plan::{Compiled, ROW_COLUMN};

use super::failure::{PassError, SqlError};
use super::segment::Bindings;
use super::{Lookups, PassRun, StagePass};

/// Where SQL failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// The first row that fails, by its place in the segment.
    pub first: u64,
    /// The same, unless rows only fail together with others.
    pub last: u64,
    /// The step whose SQL it is, if a step's own rows already fail.
    pub step: Option<String>,
    /// Its column, or its reject rule, that can't be computed.
    pub part: Option<Part>,
    /// What the SQL engine says of these rows alone.
    pub error: SqlError,
}

/// The part of a step that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A column of its SELECT.
    Column(String),
    /// A reject rule.
    Rule(String),
}

impl StagePass {
    /// Finds the first row of a segment on which the pass of a load fails. `None` if none of them is to blame: it fails
    /// without rows, or not again. `batches` are those of [`StagePass::run`].
    pub async fn blame(
        &self,
        compiled: &Compiled,
        lookups: &Lookups,
        load: &LoadName,
        batches: Vec<RecordBatch>,
    ) -> Result<Option<Blame>, Failure> {
        if outcome(self.run(load, Vec::new()).await?).await?.is_some() {
            return Ok(None);
        }
        let Some(mut error) = outcome(self.run(load, batches.clone()).await?).await? else {
            return Ok(None);
        };
        let mut rows = batches;
        while count(&rows) > 1 {
            let (left, right) = halves(&rows);
            if let Some(found) = outcome(self.run(load, left.clone()).await?).await? {
                (rows, error) = (left, found);
            } else if let Some(found) = outcome(self.run(load, right.clone()).await?).await? {
                (rows, error) = (right, found);
            } else {
                break;
            }
        }
        let Some((first, last)) = ends(&rows) else {
            return Ok(None);
        };
        let bindings = Bindings {
            compiled,
            lookups,
            started: self
                .state
                .execution_props()
                .query_execution_start_time
                .unwrap_or_default(),
        };
        let probe = Probe {
            pass: self,
            bindings,
            load,
            rows: &rows,
        };
        // Without the step the row is still worth telling.
        let (step, part) = match Box::pin(probe.step()).await {
            Ok(Some((step, part))) => (Some(step), part),
            Ok(None) | Err(_) => (None, None),
        };
        Ok(Some(Blame {
            first,
            last,
            step,
            part,
            error,
        }))
    }
}

/// Runs a pass to its end; what it fails with, if it does.
async fn outcome(mut run: PassRun) -> Result<Option<SqlError>, Failure> {
    while let Some(batch) = run.next().await {
        match batch {
            Ok(_) => {}
            Err(PassError::Rows(error)) => return Ok(Some(error)),
            Err(PassError::Other(failure)) => return Err(failure),
        }
    }
    Ok(None)
}

fn count(rows: &[RecordBatch]) -> usize {
    rows.iter().map(RecordBatch::num_rows).sum()
}

fn halves(rows: &[RecordBatch]) -> (Vec<RecordBatch>, Vec<RecordBatch>) {
    let mut room = count(rows) / 2;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for batch in rows {
        let here = room.min(batch.num_rows());
        room -= here;
        if here > 0 {
            left.push(batch.slice(0, here));
        }
        if here < batch.num_rows() {
            right.push(batch.slice(here, batch.num_rows() - here));
        }
    }
    (left, right)
}

/// The places in the segment of the first and the last of these rows.
fn ends(rows: &[RecordBatch]) -> Option<(u64, u64)> {
    let place = |batch: &RecordBatch, at: usize| {
        let rows = batch.columns().last()?.as_any().downcast_ref::<UInt64Array>()?;
        rows.values().get(at).copied()
    };
    let last = rows.iter().rfind(|batch| batch.num_rows() > 0)?;
    let first = rows.iter().find(|batch| batch.num_rows() > 0)?;
    Some((place(first, 0)?, place(last, last.num_rows() - 1)?))
}

/// Runs parts of the SQL of a load on rows that fail.
struct Probe<'p> {
    pass: &'p StagePass,
    bindings: Bindings<'p>,
    load: &'p LoadName,
    rows: &'p [RecordBatch],
}

impl Probe<'_> {
    /// The first step on the way to the load that fails.
    async fn step(&self) -> DfResult<Option<(String, Option<Part>)>> {
        let compiled = self.bindings.compiled;
        let wanted = on_the_way(compiled, self.load);
        for (name, step) in compiled.steps.iter().filter(|(name, _)| wanted.contains(name.as_str())) {
            if step.source.is_none() || !self.fails(step.plan.clone()).await? {
                continue;
            }
            let part = match compiled.rejects.get(name) {
                Some(reject) if !self.fails(reject.input.clone()).await? => self.rule(reject).await?.map(Part::Rule),
                Some(reject) => self.column(&reject.input).await?.map(Part::Column),
                None => self.column(&step.plan).await?.map(Part::Column),
            };
            return Ok(Some((name.clone(), part)));
        }
        Ok(None)
    }

    async fn rule(&self, reject: &haulage_plan::compile::RejectPlan) -> DfResult<Option<String>> {
        for (name, rule) in &reject.rules {
            let rule = rule.clone().alias(name);
            if self.fails(project(vec![rule], &reject.input)?).await? {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// The column of a plan that fails when it is asked for alone. The optimizer drops what nobody asks for.
    async fn column(&self, plan: &LogicalPlan) -> DfResult<Option<String>> {
        let all = plan.schema().iter();
        let (row, mut columns): (Vec<Column>, Vec<Column>) =
            all.map(Column::from).partition(|column| column.name() == ROW_COLUMN);
        let of = |columns: &[Column]| project(columns.iter().cloned().map(Expr::Column).collect(), plan);
        // A WHERE or a join fails whatever is asked for.
        if self.fails(of(&row)?).await? {
            return Ok(None);
        }
        while columns.len() > 1 {
            let right = columns.split_off(columns.len() / 2);
            if !self.fails(of(&columns)?).await? {
                columns = right;
            }
        }
        Ok(columns.pop().map(|column| column.name))
    }

    async fn fails(&self, plan: LogicalPlan) -> DfResult<bool> {
        let plan = self.bindings.bind(plan)?;
        let physical = Box::pin(self.pass.state.create_physical_plan(&plan)).await?;
        let schema = physical.schema();
        let run = self.pass.execute(self.load, physical, schema, self.rows.to_vec())?;
        let failed = outcome(run).await;
        failed
            .map(|error| error.is_some())
            .map_err(|failure| DataFusionError::External(Box::new(failure)))
    }
}

fn project(exprs: Vec<Expr>, plan: &LogicalPlan) -> DfResult<LogicalPlan> {
    Ok(LogicalPlan::Projection(Projection::try_new(
        exprs,
        Arc::new(plan.clone()),
    )?))
}

/// The names of the steps that a load reads, directly or not.
fn on_the_way<'c>(compiled: &'c Compiled, load: &LoadName) -> BTreeSet<&'c str> {
    let mut found = BTreeSet::new();
    let from = compiled.definition.loads.get(load).map(|load| load.from.as_str());
    let mut open: Vec<&str> = from.into_iter().collect();
    while let Some(name) = open.pop() {
        if let Some(step) = compiled.steps.get(name)
            && found.insert(name)
        {
            open.extend(step.reads.iter().map(String::as_str));
        }
    }
    found
}
