//! Which rows of a chunk can reach a load or a reject rule at all: what the WHEREs say that stand over nothing but the
//! source. All of them are asked, since one load may leave out what another needs.

use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableSource};
use haulage_plan::ROW_COLUMN;
use haulage_plan::compile::{Compiled, PlanTable, Stage, TableKind};

use crate::source::Wanted;

/// `None` if all rows are needed, or it can't be told.
pub(super) fn wanted(compiled: &Compiled, stage: &Stage, state: &SessionState) -> Option<Wanted> {
    let mut conditions = Vec::new();
    for name in &stage.loads {
        let load = compiled.loads.get(name)?;
        let rules = load.rejects.iter().map(|step| compiled.rejects.get(step));
        let judged = rules.map(|rule| Some(&rule?.input));
        for plan in [Some(&load.plan)].into_iter().chain(judged) {
            for scan in scans(plan?, state).ok()? {
                // A scan without a condition needs every row.
                conditions.push(conjunction(scan)?);
            }
        }
    }
    let condition = disjunction(conditions)?;
    let columns = compiled.chunk_schema(&stage.source)?;
    let schema = DFSchema::try_from(Arc::clone(&columns)).ok()?;
    let condition = state.create_physical_expr(condition, &schema).ok()?;
    Wanted::new(condition, columns)
}

/// The conditions of every scan of the source in a plan, as the optimizer has moved them there.
fn scans(plan: &LogicalPlan, state: &SessionState) -> Result<Vec<Vec<Expr>>> {
    let marked = plan.clone().transform_down_with_subqueries(|node| match node {
        LogicalPlan::TableScan(mut scan) => match scan.source.downcast_ref::<PlanTable>() {
            Some(table) if table.kind == TableKind::Chunk => {
                scan.source = Arc::new(Chunk(Arc::clone(&table.schema)));
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            }
            _ => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
        },
        other => Ok(Transformed::no(other)),
    });
    let optimized = state.optimize(&marked.data()?)?;
    let mut found = Vec::new();
    optimized.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.source.downcast_ref::<Chunk>().is_some()
        {
            let filters = scan.filters.iter().cloned().map(unqualified);
            found.push(filters.collect::<Result<Vec<_>>>()?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// An expression whose columns are the source's by their bare names.
fn unqualified(filter: Expr) -> Result<Expr> {
    let bare = |expression| match expression {
        Expr::Column(mut column) => {
            column.relation = None;
            Ok(Transformed::yes(Expr::Column(column)))
        }
        other => Ok(Transformed::no(other)),
    };
    filter.transform(bare).data()
}

/// The table of a chunk, which takes conditions without answering for them.
struct Chunk(SchemaRef);

impl TableSource for Chunk {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let of_rows = |filter: &&Expr| filter.column_refs().iter().any(|column| column.name == ROW_COLUMN);
        let taken = |filter| match of_rows(filter) {
            true => TableProviderFilterPushDown::Unsupported,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(taken).collect())
    }
}
