//! Looks into a plan for where something is wrong with it.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};

/// A subquery that the optimizer could not make a join of, by its word: DataFusion has no way to run it.
pub(crate) fn left_subquery(plan: &LogicalPlan) -> Result<Option<&'static str>> {
    let mut kind = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                kind = match expr {
                    Expr::Exists(_) => Some("exists"),
                    Expr::InSubquery(_) => Some("in"),
                    Expr::SetComparison(_) => Some("any"),
                    Expr::ScalarSubquery(query) if !query.outer_ref_columns.is_empty() => Some("select"),
                    _ => kind,
                };
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(kind)
}

/// Where the innermost expression stands whose types don't fit.
pub(crate) fn place_of_type_error(plan: &LogicalPlan) -> Option<(u64, u64)> {
    let mut place = None;
    let visited = plan.apply_with_subqueries(|node| {
        let mut schema = DFSchema::empty();
        for input in node.inputs() {
            schema.merge(input.schema());
        }
        node.apply_expressions(|expr| {
            place = place.or(failing_expr(expr, &schema));
            Ok(TreeNodeRecursion::Continue)
        })
    });
    visited.ok()?;
    place
}

pub(crate) fn failing_expr(expr: &Expr, schema: &DFSchema) -> Option<(u64, u64)> {
    let mut innermost: Option<&Expr> = None;
    let visited = expr.apply(|expr| {
        if expr.get_type(schema).is_err() {
            innermost = Some(expr);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.ok()?;
    let mut spans = Vec::new();
    let visited = innermost?.apply(|expr| {
        if let Expr::Column(column) = expr {
            spans.extend(column.spans.first());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.ok()?;
    spans.into_iter().map(|span| (span.start.line, span.start.column)).min()
}
