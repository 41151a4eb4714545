//! Which rows a plan is fed by, and what a chunk can't answer alone.
//!
//! A chunk sees its own rows and every lookup whole. So a node fed by lookups alone is right on every node, and a node
//! fed by a chunked source is right only if each row can be judged without the others. What needs them all, GROUP BY,
//! DISTINCT, windows, ORDER BY ... LIMIT, or a second chunked source to join with, would be answered once per chunk and
//! wrongly: it is refused here, from the logical plan and not from the words of the SQL.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, Span};
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, Volatility};

use super::context::PlanTable;

/// What feeds a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Feed {
    /// Lookups, whole on every node; none of them for constants.
    Broadcast,
    /// The chunks of a source.
    Chunked(String),
    /// It can't be said, because something below was refused already.
    Refused,
}

/// A node that a chunk can't answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Words of the SQL that stand for the node; one of them is where the refusal points.
    pub(crate) words: &'static [&'static str],
    /// Where columns of the node stand, to tell apart several of these words.
    pub(crate) near: Option<Span>,
    pub(crate) message: String,
    pub(crate) advice: &'static str,
}

const MAKE_LOOKUP: &str = "if the source is small, declare it with `lookup: true`: then every chunk sees it whole";

/// Looks at one step's plan. `feed_of` says what feeds the tables it names.
pub(crate) struct Analysis<'f> {
    feed_of: &'f dyn Fn(&str) -> Feed,
    pub(crate) refusals: Vec<Refusal>,
}

impl<'f> Analysis<'f> {
    pub(crate) fn new(feed_of: &'f dyn Fn(&str) -> Feed) -> Self {
        Self {
            feed_of,
            refusals: Vec::new(),
        }
    }

    pub(crate) fn feed(&mut self, plan: &LogicalPlan) -> Result<Feed> {
        let mut inputs = Vec::new();
        for input in plan.inputs() {
            inputs.push(self.feed(input)?);
        }
        self.subqueries(plan)?;
        let feed = match plan {
            LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<PlanTable>() {
                Some(table) => (self.feed_of)(&table.name),
                None => Feed::Broadcast, // The work table of a recursive CTE.
            },
            LogicalPlan::Join(join) => self.join(plan, join.join_type, &inputs),
            LogicalPlan::Union(_) => self.union(plan, &inputs),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Subquery(_) => first(inputs),
            other => match only(&inputs) {
                Feed::Chunked(source) => self.stateful(other, &source),
                feed => feed,
            },
        };
        if let Feed::Chunked(_) = feed {
            self.volatile(plan)?;
        }
        Ok(feed)
    }

    fn refuse(
        &mut self,
        plan: &LogicalPlan,
        words: &'static [&'static str],
        message: String,
        advice: &'static str,
    ) -> Feed {
        self.refusals.push(Refusal {
            words,
            near: span_of(plan),
            message,
            advice,
        });
        Feed::Refused
    }

    fn stateful(&mut self, plan: &LogicalPlan, source: &str) -> Feed {
        let of = |what: &str| format!("{what} needs all rows of `{source}`, and a chunk sees only its own");
        let in_sql = "do it in the warehouse after the load, or over a lookup";
        match plan {
            LogicalPlan::Aggregate(_) => {
                let words = &["group", "count", "sum", "avg", "min", "max", "having", "distinct"];
                self.refuse(plan, words, of("a GROUP BY or an aggregate"), in_sql)
            }
            LogicalPlan::Distinct(_) => {
                let advice =
                    "remove duplicates where the file is made, or read the loaded table through a view with DISTINCT";
                self.refuse(
                    plan,
                    &["distinct", "union", "intersect", "except"],
                    of("DISTINCT"),
                    advice,
                )
            }
            LogicalPlan::Window(_) => self.refuse(plan, &["over"], of("a window function"), in_sql),
            LogicalPlan::Sort(_) => {
                let advice = "leave it out: a table has no order, and readers say ORDER BY themselves";
                self.refuse(plan, &["order"], of("ORDER BY"), advice)
            }
            LogicalPlan::Limit(_) => {
                let advice = "leave it out; to try a pipeline on less, give a smaller file or glob";
                self.refuse(plan, &["limit", "offset", "fetch"], of("LIMIT"), advice)
            }
            LogicalPlan::RecursiveQuery(_) => self.refuse(
                plan,
                &["recursive"],
                of("a recursive query"),
                "a recursive query works over lookups alone",
            ),
            other => {
                let message = format!("a step over a chunked source can't hold this: {}", other.display());
                self.refuse(
                    other,
                    &["unnest"],
                    message,
                    "SELECT, WHERE, joins with lookups and UNION ALL can be used",
                )
            }
        }
    }

    fn join(&mut self, plan: &LogicalPlan, join_type: JoinType, inputs: &[Feed]) -> Feed {
        let [left, right] = inputs else { return Feed::Broadcast };
        match (left, right) {
            (Feed::Refused, _) | (_, Feed::Refused) => Feed::Refused,
            (Feed::Broadcast, Feed::Broadcast) => Feed::Broadcast,
            (Feed::Chunked(left), Feed::Chunked(right)) => {
                let message = if left == right {
                    format!("a join of `{left}` with itself would miss the pairs whose rows are in different chunks")
                } else {
                    format!(
                        "a join of `{left}` with `{right}` would need both sides whole, and both are cut into chunks"
                    )
                };
                self.refuse(plan, &["join", "from"], message, MAKE_LOOKUP)
            }
            (Feed::Chunked(source), Feed::Broadcast) => {
                let kept = matches!(
                    join_type,
                    JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark
                );
                self.one_sided(plan, join_type, source, kept)
            }
            (Feed::Broadcast, Feed::Chunked(source)) => {
                let kept = matches!(
                    join_type,
                    JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
                );
                self.one_sided(plan, join_type, source, kept)
            }
        }
    }

    fn one_sided(&mut self, plan: &LogicalPlan, join_type: JoinType, source: &str, kept: bool) -> Feed {
        if kept {
            return Feed::Chunked(source.to_owned());
        }
        let message = format!(
            "this {} JOIN keeps rows of the lookup that no row of `{source}` matches, and a chunk can't know that no \
             other chunk has a match",
            join_type.to_string().to_uppercase()
        );
        let advice = "keep the rows of the chunked source instead: put it on the left of a LEFT JOIN, or use JOIN";
        self.refuse(plan, &["join"], message, advice)
    }

    fn union(&mut self, plan: &LogicalPlan, inputs: &[Feed]) -> Feed {
        if inputs.contains(&Feed::Refused) {
            return Feed::Refused;
        }
        let sources: BTreeSet<&str> = inputs
            .iter()
            .filter_map(|feed| match feed {
                Feed::Chunked(source) => Some(source.as_str()),
                Feed::Broadcast | Feed::Refused => None,
            })
            .collect();
        let mut names = sources.iter();
        match (names.next(), names.next()) {
            (None, _) => Feed::Broadcast,
            (Some(_), None) if inputs.contains(&Feed::Broadcast) => {
                let message = "this UNION adds rows of a lookup to chunked rows, so each chunk would add them again";
                self.refuse(
                    plan,
                    &["union"],
                    message.to_owned(),
                    "load the lookup's rows with a load of their own",
                )
            }
            (Some(source), None) => Feed::Chunked((*source).to_owned()),
            (Some(one), Some(other)) => {
                let message = format!("this UNION puts the chunked sources `{one}` and `{other}` into one step");
                let advice = "if their files have the same columns, read them as one source with a glob; else give each its own load";
                self.refuse(plan, &["union"], message, advice)
            }
        }
    }

    /// Subqueries in expressions are fine over lookups, whatever the outer query reads.
    fn subqueries(&mut self, plan: &LogicalPlan) -> Result<()> {
        let mut refused = Vec::new();
        plan.apply_subqueries(|subquery| {
            if let Feed::Chunked(source) = self.feed(subquery)? {
                let mut near = None;
                subquery.apply_with_subqueries(|node| {
                    near = [near, span_of(node)]
                        .into_iter()
                        .flatten()
                        .min_by_key(|span| span.start);
                    Ok(TreeNodeRecursion::Continue)
                })?;
                refused.push((source, near));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        for (source, near) in refused {
            let message = format!("a subquery over `{source}` needs all its rows, and a chunk sees only its own");
            self.refusals.push(Refusal {
                words: &["select"],
                near,
                message,
                advice: MAKE_LOOKUP,
            });
        }
        Ok(())
    }

    /// Every attempt of a chunk has to make the same rows, and every load of a stage has to see the same rejects.
    fn volatile(&mut self, plan: &LogicalPlan) -> Result<()> {
        let mut name = None;
        plan.apply_expressions(|expr| {
            name = name.take().or(volatile_function(expr)?);
            Ok(TreeNodeRecursion::Continue)
        })?;
        if let Some(name) = name {
            let message =
                format!("`{name}()` gives another answer each time, so a repeated chunk would make other rows");
            let words: &'static [&'static str] = match name.as_str() {
                "uuid" => &["uuid"],
                "random" => &["random", "rand"],
                _ => &[],
            };
            self.refuse(
                plan,
                words,
                message,
                "derive it from the row's own columns, such as md5(concat(a, b))",
            );
        }
        Ok(())
    }
}

/// The name of a function in an expression that gives another answer each time.
pub(crate) fn volatile_function(expr: &Expr) -> Result<Option<String>> {
    let mut name = None;
    expr.apply(|expr| {
        if let Expr::ScalarFunction(function) = expr
            && function.func.signature().volatility == Volatility::Volatile
        {
            name = Some(function.func.name().to_owned());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(name)
}

fn first(inputs: Vec<Feed>) -> Feed {
    inputs.into_iter().next().unwrap_or(Feed::Broadcast)
}

/// The feed of a node that treats its inputs alike.
fn only(inputs: &[Feed]) -> Feed {
    let chunked = inputs.iter().find(|feed| matches!(feed, Feed::Chunked(_)));
    let refused = inputs.iter().find(|feed| matches!(feed, Feed::Refused));
    refused.or(chunked).cloned().unwrap_or(Feed::Broadcast)
}

/// Where the first column of a node's expressions stands.
fn span_of(plan: &LogicalPlan) -> Option<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let visited = plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            if let Expr::Column(column) = expr {
                spans.extend(column.spans.first());
            }
            Ok(TreeNodeRecursion::Continue)
        })
    });
    visited.ok()?;
    spans.into_iter().min_by_key(|span| span.start)
}
