//! How large a plan becomes once everything that it reads is put into it.
//!
//! Steps are put into one another, and the optimizer puts the expression behind a column wherever a later step names it.
//! Each step may be small and the whole still enormous: thirty steps of `SELECT a + a AS a` make a condition on the last
//! one 2^30 terms. So each step's size is computed from the sizes of what it reads, and refused before DataFusion sees it.

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::context::PlanTable;
use super::errors::Found;

/// Levels of a plan. A step is three or four.
const PLAN_DEPTH: u32 = 400;
/// Nodes of a plan.
const PLAN_NODES: u64 = 4_000;
/// Levels of an expression with the steps before it put in.
const EXPR_DEPTH: u32 = 400;
/// Terms of all expressions of a plan, with the steps before put in, and conditions on a UNION in each of its branches:
/// so DataFusion moves them, and what it takes to plan grows with them. Some seconds of a release build at this.
const TERMS: u64 = 100_000;

/// How large an expression is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    nodes: u64,
    depth: u32,
}

const LEAF: Weight = Weight { nodes: 1, depth: 1 };

impl Weight {
    fn largest(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.max(other.nodes),
            depth: self.depth.max(other.depth),
        }
    }
}

/// How large a plan is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    nodes: u64,
    depth: u32,
    /// What stands behind each column.
    columns: Vec<Weight>,
    /// Levels of the deepest expression.
    deepest: u32,
    /// Terms of all expressions.
    terms: u64,
    /// Branches of UNIONs that a condition on it goes into.
    branches: u64,
}

impl Size {
    /// A table that is read as it is.
    pub(crate) fn table(columns: usize) -> Self {
        Self {
            nodes: 1,
            depth: 1,
            columns: vec![LEAF; columns],
            deepest: 1,
            terms: 0,
            branches: 1,
        }
    }

    /// The same rows behind reject rules, which divide a plan: what reads them sees columns, and no expressions.
    pub(crate) fn divided(self) -> Self {
        Self {
            columns: vec![LEAF; self.columns.len()],
            branches: 1,
            ..self
        }
    }

    /// Refuses what is too large.
    pub(crate) fn check(&self) -> Result<(), Found> {
        let help = "load what an earlier step makes, and read that in a pipeline of its own; or merge steps";
        let found = |message: String| Err(Found::new(None, message, help));
        if self.depth > PLAN_DEPTH || self.nodes > PLAN_NODES {
            return found(format!(
                "with everything it reads put in, this step is a plan of {} parts, {} levels deep; at most {PLAN_NODES} \
                 parts and {PLAN_DEPTH} levels can be planned",
                self.nodes, self.depth
            ));
        }
        if self.deepest > EXPR_DEPTH || self.terms > TERMS {
            return found(format!(
                "with the steps before it put in, the expressions of this step have {} terms, the deepest {} levels; at \
                 most {TERMS} terms and {EXPR_DEPTH} levels can be planned",
                self.terms, self.deepest
            ));
        }
        Ok(())
    }
}

/// The size of a plan whose tables have the sizes that `known` gives them.
pub(crate) fn measure(plan: &LogicalPlan, known: &dyn Fn(&str) -> Option<Size>) -> Result<Size> {
    let fields = plan.schema().fields().len();
    if let LogicalPlan::TableScan(scan) = plan {
        let table = scan.source.downcast_ref::<PlanTable>();
        return Ok(table
            .and_then(|table| known(&table.name))
            .filter(|size| size.columns.len() == fields)
            .unwrap_or_else(|| Size::table(fields)));
    }
    let mut inputs = Vec::new();
    for input in plan.inputs() {
        inputs.push((input, measure(input, known)?));
    }
    let mut weighing = Weighing {
        inputs: &inputs,
        known,
        nodes: 0,
        depth: 0,
    };
    let mut exprs = Vec::new();
    let mut terms = 0_u64;
    plan.apply_expressions(|expr| {
        let weight = weighing.weigh(expr)?;
        // A column that is only passed on stands for nothing new.
        terms = terms.saturating_add(if passed_on(expr) { 1 } else { weight.nodes });
        exprs.push(weight);
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Weighing { nodes, depth, .. } = weighing;
    let sizes = || inputs.iter().map(|(_, size)| size);
    let add = |sum: u64, more: u64| sum.saturating_add(more);
    let branches = match plan {
        LogicalPlan::Union(_) => sizes().map(|size| size.branches).fold(0, add),
        _ => sizes().map(|size| size.branches).fold(1, u64::max),
    };
    if let LogicalPlan::Filter(_) = plan {
        terms = terms.saturating_mul(branches);
    }
    let deepest = exprs.iter().map(|weight| weight.depth);
    Ok(Size {
        nodes: sizes().map(|size| size.nodes).fold(add(nodes, 1), add),
        depth: sizes().map(|size| size.depth).fold(depth, u32::max).saturating_add(1),
        columns: columns(plan, fields, &exprs, &inputs),
        deepest: sizes().map(|size| size.deepest).chain(deepest).fold(1, u32::max),
        terms: sizes().map(|size| size.terms).fold(terms, add),
        branches,
    })
}

fn passed_on(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => matches!(*alias.expr, Expr::Column(_)),
        other => matches!(other, Expr::Column(_)),
    }
}

fn columns(plan: &LogicalPlan, fields: usize, exprs: &[Weight], inputs: &[(&LogicalPlan, Size)]) -> Vec<Weight> {
    match plan {
        LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) if exprs.len() == fields => return exprs.to_vec(),
        LogicalPlan::Union(_) => {
            // A condition on a union goes into each of its branches.
            let mut columns = vec![LEAF; fields];
            for (_, branch) in inputs {
                for (column, other) in columns.iter_mut().zip(&branch.columns) {
                    *column = column.largest(*other);
                }
            }
            return columns;
        }
        _ => {}
    }
    let all: Vec<Weight> = inputs.iter().flat_map(|(_, size)| &size.columns).copied().collect();
    if all.len() == fields {
        return all;
    }
    // A join that keeps the columns of one side, or something rarer: as large as anything in it.
    match inputs.first() {
        Some((_, first)) if first.columns.len() == fields => first.columns.clone(),
        _ => {
            let largest = all
                .iter()
                .chain(exprs)
                .fold(LEAF, |largest, other| largest.largest(*other));
            vec![largest; fields]
        }
    }
}

struct Weighing<'w> {
    inputs: &'w [(&'w LogicalPlan, Size)],
    known: &'w dyn Fn(&str) -> Option<Size>,
    /// Of the subqueries.
    nodes: u64,
    depth: u32,
}

impl Weighing<'_> {
    /// An expression with what stands behind its columns. Recursive: the SQL's own depth is bounded.
    fn weigh(&mut self, expr: &Expr) -> Result<Weight> {
        if let Expr::Column(column) = expr {
            let found = self.inputs.iter().find_map(|(input, size)| {
                let index = input.schema().maybe_index_of_column(column)?;
                size.columns.get(index).copied()
            });
            return Ok(found.unwrap_or(LEAF));
        }
        match expr {
            Expr::ScalarSubquery(subquery) => self.subquery(&subquery.subquery)?,
            Expr::Exists(exists) => self.subquery(&exists.subquery.subquery)?,
            Expr::InSubquery(within) => self.subquery(&within.subquery.subquery)?,
            Expr::SetComparison(comparison) => self.subquery(&comparison.subquery.subquery)?,
            _ => {}
        }
        let mut whole = Weight { nodes: 1, depth: 0 };
        expr.apply_children(|child| {
            let Weight { nodes, depth } = self.weigh(child)?;
            whole.nodes = whole.nodes.saturating_add(nodes);
            whole.depth = whole.depth.max(depth);
            Ok(TreeNodeRecursion::Continue)
        })?;
        whole.depth = whole.depth.saturating_add(1);
        Ok(whole)
    }

    fn subquery(&mut self, plan: &LogicalPlan) -> Result<()> {
        let size = measure(plan, self.known)?;
        self.nodes = self.nodes.saturating_add(size.nodes);
        self.depth = self.depth.max(size.depth);
        Ok(())
    }
}
