//! Carries the hidden row column from the scan of a chunk through every node to the top of a plan, as its last column.
//!
//! Only what [`super::feed`] lets pass over chunked rows can hold it, so there are few nodes to know: those that keep
//! rows, rename, filter, join or append. Everything else is over lookups and stays as it is.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, Result, TableReference, internal_err};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, Projection, SubqueryAlias, Union};

use super::context::PlanTable;
use crate::ROW_COLUMN;

/// Gives the plan that stands for a table under the name that the SQL calls it by.
pub(crate) type Resolve<'r> = dyn Fn(&PlanTable, &TableReference) -> Result<LogicalPlan> + 'r;

/// Rewrites a checked plan: tables become what they stand for, and the row column is carried up.
pub(crate) fn carry(plan: LogicalPlan, resolve: &Resolve<'_>) -> Result<LogicalPlan> {
    let plan = plan
        .map_subqueries(|subquery| Ok(Transformed::yes(carry(subquery, resolve)?)))?
        .data;
    if let LogicalPlan::TableScan(scan) = &plan {
        return match scan.source.downcast_ref::<PlanTable>() {
            Some(table) => resolve(table, &scan.table_name),
            None => Ok(plan),
        };
    }
    let mut inputs = Vec::new();
    for input in plan.inputs() {
        inputs.push(carry(input.clone(), resolve)?);
    }
    if !inputs.iter().any(|input| row_of(input.schema()).is_some()) {
        // Also of nodes without inputs, whose expressions may have changed with their subqueries.
        return plan.with_new_exprs(plan.expressions(), inputs);
    }
    let mut inputs = inputs.into_iter().map(Arc::new);
    match (plan, inputs.next(), inputs.next()) {
        (LogicalPlan::Projection(projection), Some(input), None) => {
            let mut exprs = projection.expr;
            exprs.extend(row_of(input.schema()).map(Expr::Column));
            Ok(LogicalPlan::Projection(Projection::try_new(exprs, input)?))
        }
        (LogicalPlan::Filter(filter), Some(input), None) => {
            Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate, input)?))
        }
        (LogicalPlan::SubqueryAlias(alias), Some(input), None) => {
            Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias)?))
        }
        (LogicalPlan::Subquery(subquery), Some(input), None) => Ok(LogicalPlan::Subquery(subquery.with_plan(input))),
        (LogicalPlan::Join(join), Some(left), Some(right)) => Ok(LogicalPlan::Join(Join::try_new(
            left,
            right,
            join.on,
            join.filter,
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?)),
        (LogicalPlan::Union(union), Some(first), second) => {
            // A union goes by position, so in every branch the row column has to be the last.
            let branches = std::iter::once(first).chain(second).chain(inputs);
            let mut rewritten = Vec::new();
            for (branch, original) in branches.zip(&union.inputs) {
                rewritten.push(Arc::new(in_order(branch, original.schema())?));
            }
            Ok(LogicalPlan::Union(Union::try_new(rewritten)?))
        }
        (other, _, _) => internal_err!(
            "a chunked plan was let through with a node that can't carry rows: {}",
            other.display()
        ),
    }
}

/// The columns of `schema`, in its order, and then the row column if the plan has one.
pub(crate) fn in_order(plan: Arc<LogicalPlan>, schema: &DFSchema) -> Result<LogicalPlan> {
    let columns = schema
        .iter()
        .map(|(qualifier, field)| Expr::Column(Column::from((qualifier, field.as_ref()))));
    let exprs = columns.chain(row_of(plan.schema()).map(Expr::Column)).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, plan)?))
}

/// The row column of a schema, as it has to be named there.
pub(crate) fn row_of(schema: &DFSchema) -> Option<Column> {
    schema
        .iter()
        .find(|(_, field)| field.name() == ROW_COLUMN)
        .map(|(qualifier, field)| Column::from((qualifier, field.as_ref())))
}
