//! Plans the steps one after the other, each over the columns of those before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DataFusionError, ParamValues, Result, TableReference};
use datafusion::logical_expr::{Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, SubqueryAlias};
use datafusion::optimizer::OptimizerContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};

use super::bounds::{self, Size};
use super::carry::{self, in_order};
use super::context::{Context, PlanTable, TableKind, with_row};
use super::errors::{self, Found};
use super::feed::{Analysis, Feed, volatile_function};
use super::inspect::{failing_expr, left_subquery, place_of_type_error};
use super::statement::{self, Parsed};
use super::{RejectPlan, StepPlan, moments, place};
use crate::ROW_COLUMN;
use crate::definition::{Definition, Place, Sql, Step};
use crate::diagnostics::{Report, did_you_mean};
use crate::parse::Gaps;

/// What is known of a table, source or step, once it is planned.
pub(crate) struct Known {
    pub(crate) schema: Arc<Schema>,
    pub(crate) feed: Feed,
    /// How large its plan is, with everything it reads put in.
    pub(crate) size: Size,
    /// The lookups that it reads, by itself or by what it reads.
    pub(crate) lookups: BTreeSet<String>,
    /// The steps with reject rules on the way to it, itself included.
    pub(crate) rejects: BTreeSet<String>,
    /// A plan of its rows under its own name, with the row column last if it is chunked.
    pub(crate) plan: Option<LogicalPlan>,
}

/// Plans steps and keeps what is known of every table.
pub(crate) struct Planner<'d> {
    pub(crate) definition: &'d Definition,
    pub(crate) context: Context,
    pub(crate) known: HashMap<String, Known>,
    pub(crate) rejects: BTreeMap<String, RejectPlan>,
    pub(crate) report: Report,
    /// Set where only a part of the definition is to be checked.
    pub(crate) gaps: Option<&'d Gaps>,
}

impl<'d> Planner<'d> {
    pub(crate) fn new(definition: &'d Definition) -> Self {
        Self {
            definition,
            context: Context::new(),
            known: HashMap::new(),
            rejects: BTreeMap::new(),
            report: Report::new(&definition.file, Arc::clone(&definition.text)),
            gaps: None,
        }
    }

    /// Plans a step whose tables are all planned. What is wrong goes to the report; then nothing is known of the step.
    pub(crate) fn plan(&mut self, step: &Step, parsed: &Parsed) -> Option<StepPlan> {
        let before = self.report.len();
        let (plan, size) = match self.logical(&step.query.text, parsed) {
            Ok(planned) => planned,
            Err(found) => {
                self.report_all(&step.query, step.query.place, found, Some(parsed));
                return None;
            }
        };
        let schema = Arc::clone(plan.schema().inner());
        self.check_names(step, &schema);
        let feed = match self.feed(step, &plan) {
            Ok(feed) => feed,
            Err(error) => {
                self.report_all(&step.query, step.query.place, errors::explain(&error), Some(parsed));
                return None;
            }
        };
        let rules = self.rules(step, &schema, &size);
        if self.report.len() > before {
            // Later steps are still checked against its columns, but no plan is made of it.
            self.know(step, parsed, Arc::clone(&schema), Feed::Refused, size, None);
            return None;
        }
        let plan = match self.carried(step, plan, &feed, rules) {
            Ok(plan) => {
                let size = if self.rejects.contains_key(&step.name) {
                    size.divided()
                } else {
                    size
                };
                self.know(
                    step,
                    parsed,
                    Arc::clone(&schema),
                    feed.clone(),
                    size,
                    Some(plan.clone()),
                );
                plan
            }
            Err(error) => {
                self.report_all(&step.query, step.query.place, errors::explain(&error), Some(parsed));
                return None;
            }
        };
        let reads = parsed.reads.iter().map(|(name, _)| name.clone()).collect();
        let source = match feed {
            Feed::Chunked(source) => Some(source),
            Feed::Broadcast | Feed::Refused => None,
        };
        Some(StepPlan {
            reads,
            source,
            schema,
            rules: step.reject.keys().cloned().collect(),
            plan,
        })
    }

    fn know(
        &mut self,
        step: &Step,
        parsed: &Parsed,
        schema: Arc<Schema>,
        feed: Feed,
        size: Size,
        plan: Option<LogicalPlan>,
    ) {
        let mut lookups = BTreeSet::new();
        let mut rejects = BTreeSet::new();
        for known in parsed.reads.iter().filter_map(|(name, _)| self.known.get(name)) {
            lookups.extend(known.lookups.iter().cloned());
            rejects.extend(known.rejects.iter().cloned());
        }
        if !step.reject.is_empty() {
            rejects.insert(step.name.clone());
        }
        self.context.add(&step.name, TableKind::Step, Arc::clone(&schema));
        self.known.insert(
            step.name.clone(),
            Known {
                schema,
                feed,
                size,
                lookups,
                rejects,
                plan,
            },
        );
    }

    /// SQL to an analyzed plan over the tables of the context, parameters bound as typed values.
    fn logical(&self, sql: &str, parsed: &Parsed) -> Result<(LogicalPlan, Size), Vec<Found>> {
        let planner = self.sql_planner();
        let mut context = self.planner_context();
        let plan = planner
            .sql_statement_to_plan_with_context(parsed.statement.clone(), &mut context)
            .and_then(|plan| self.bind(plan))
            .and_then(moments::exact)
            .map_err(|error| errors::explain(&error))?;
        let size = self.size(&plan)?;
        let options = self.context.state.config_options();
        let analyzer = self.context.state.analyzer();
        let analyzed = analyzer
            .execute_and_check(plan.clone(), options, |_, _| {})
            .map_err(|error| {
                let mut found = errors::explain(&error);
                if let [only] = found.as_mut_slice() {
                    only.place = only.place.or_else(|| place_of_type_error(&plan));
                }
                found
            })?;
        // The optimizer evaluates what is constant: a CAST that can't succeed shows here and not in the middle of a run.
        let config = OptimizerContext::new_with_config_options(Arc::clone(options));
        let optimized = self
            .context
            .state
            .optimizer()
            .optimize(analyzed.clone(), &config, |_, _| {});
        let optimized = optimized.map_err(|error| errors::explain(&error))?;
        match left_subquery(&optimized).map_err(|error| errors::explain(&error))? {
            Some(kind) => Err(vec![Found::new(
                place::words(sql, &[kind]).first().copied(),
                format!("{} with a subquery can't be used in this place", kind.to_uppercase()),
                "use it in WHERE, or a LEFT JOIN and IS NOT NULL",
            )]),
            None => Ok((analyzed, size)),
        }
    }

    /// The size of a plan with everything put in that it reads. `Err` if that is too large to be optimized.
    fn size(&self, plan: &LogicalPlan) -> Result<Size, Vec<Found>> {
        let known = |name: &str| self.known.get(name).map(|known| known.size.clone());
        let size = bounds::measure(plan, &known).map_err(|error| errors::explain(&error))?;
        size.check().map_err(|found| vec![found])?;
        Ok(size)
    }

    fn sql_planner(&self) -> SqlToRel<'_, Context> {
        let options = ParserOptions::new()
            .with_collect_spans(true)
            .with_map_string_types_to_utf8view(false);
        SqlToRel::new_with_options(&self.context, options)
    }

    fn planner_context(&self) -> PlannerContext {
        // Named parameters become positions of this list; the order of the map is the order of the positions.
        let fields = self.definition.params.iter();
        let fields = fields
            .map(|(name, value)| Some(Arc::new(Field::new(name, value.data_type(), false))))
            .collect();
        PlannerContext::new().with_prepare_param_data_types(fields)
    }

    /// Puts the values of the parameters in. Where one has none, they all stay what they are, typed but without a value:
    /// a NULL in its place would be judged by what SQL makes of NULL.
    fn bind(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let params = &self.definition.params;
        if params.values().any(ScalarValue::is_null) {
            return Ok(plan);
        }
        plan.with_param_values(ParamValues::from(params.values().cloned().collect::<Vec<_>>()))
    }

    fn check_names(&mut self, step: &Step, schema: &Schema) {
        let mut seen = BTreeSet::new();
        for field in schema.fields() {
            let name = field.name();
            if !seen.insert(name.as_str()) {
                let message = format!("step `{}` has two columns called `{name}`", step.name);
                self.report.help(
                    step.query.place,
                    message,
                    format!("name the columns one by one, and one `AS {name}_2`"),
                );
            } else if name == ROW_COLUMN {
                let message = format!("`{name}` is a name that Haulage keeps for itself");
                self.report
                    .help(step.query.place, message, "give the column another name");
            }
        }
    }

    fn feed(&mut self, step: &Step, plan: &LogicalPlan) -> Result<Feed> {
        let known = &self.known;
        let feed_of = |name: &str| known.get(name).map_or(Feed::Refused, |known| known.feed.clone());
        let mut analysis = Analysis::new(&feed_of);
        let feed = analysis.feed(plan)?;
        for refusal in analysis.refusals {
            let near = refusal.near.map(|span| (span.start.line, span.start.column));
            let at = nearest(&place::words(&step.query.text, refusal.words), near).or(near);
            let place = self.place(&step.query, at);
            self.report.help(
                place,
                format!("step `{}`: {}", step.name, refusal.message),
                refusal.advice,
            );
        }
        Ok(feed)
    }

    /// The typed conditions of a step's reject rules, over its own columns.
    fn rules(&mut self, step: &Step, schema: &Arc<Schema>, size: &Size) -> Vec<(String, Expr)> {
        let mut rules = Vec::new();
        for (name, sql) in &step.reject {
            match self.rule(&step.name, name, sql, schema, size) {
                Ok(expr) => rules.push((name.clone(), expr)),
                Err(found) => self.report_all(sql, sql.place, found, None),
            }
        }
        rules
    }

    fn rule(&self, step: &str, name: &str, sql: &Sql, schema: &Arc<Schema>, size: &Size) -> Result<Expr, Vec<Found>> {
        let parsed = statement::parse_rule(&sql.text, &self.definition.params)?;
        let explain = |error: DataFusionError| errors::explain(&error);
        let table = Arc::new(PlanTable {
            name: step.to_owned(),
            kind: TableKind::Step,
            schema: Arc::clone(schema),
        });
        let scan = LogicalPlanBuilder::scan(step, table, None)
            .and_then(LogicalPlanBuilder::build)
            .map_err(explain)?;
        let expr = self
            .sql_planner()
            .sql_to_expr(parsed, scan.schema(), &mut self.planner_context())
            .and_then(|expr| moments::exact_expr(expr, scan.schema()))
            .map_err(explain)?
            .data;
        if expr
            .exists(|e| Ok(matches!(e, Expr::AggregateFunction(_) | Expr::WindowFunction(_))))
            .map_err(explain)?
        {
            let help = "a rule looks at one row; compare with a lookup, or check totals after the load";
            return Err(vec![Found::new(
                None,
                format!("the rule `{name}` needs more than its own row"),
                help,
            )]);
        }
        if let Some(function) = volatile_function(&expr).map_err(explain)? {
            let message =
                format!("`{function}()` gives another answer each time, so a repeated chunk would reject other rows");
            return Err(vec![Found::new(None, message, "decide by the row's own columns")]);
        }
        match expr.get_type(scan.schema()) {
            Ok(DataType::Boolean | DataType::Null) => {}
            Ok(other) => {
                let message = format!(
                    "the rule `{name}` is no condition: it is of type {}",
                    crate::types::name(&other)
                );
                let help = "write what is true of a row to reject: `delay > 1000`";
                return Err(vec![Found::new(None, message, help)]);
            }
            Err(error) => {
                let mut found = errors::explain(&error);
                let place = failing_expr(&expr, scan.schema());
                found.iter_mut().for_each(|found| found.place = found.place.or(place));
                return Err(found);
            }
        }
        let filter = Filter::try_new(expr, Arc::new(scan)).map_err(explain)?;
        let plan = self.bind(LogicalPlan::Filter(filter)).map_err(explain)?;
        let judged = bounds::measure(&plan, &|_| Some(size.clone())).map_err(explain)?;
        judged.check().map_err(|found| vec![found])?;
        let options = self.context.state.config_options();
        let place = place_of_type_error(&plan);
        let analyzed = self
            .context
            .state
            .analyzer()
            .execute_and_check(plan, options, |_, _| {})
            .map_err(|error| {
                let mut found = errors::explain(&error);
                found.iter_mut().for_each(|found| found.place = found.place.or(place));
                found
            })?;
        match analyzed {
            LogicalPlan::Filter(filter) => Ok(filter.predicate),
            other => Err(vec![Found::new(
                None,
                format!("the rule can't be planned: {}", other.display()),
                "simplify it",
            )]),
        }
    }

    /// The plan of the step's rows under its own name. With reject rules, it is a scan of what they let pass, and the
    /// rows to judge stand in [`RejectPlan`]: so no rule of the optimizer can move anything across.
    fn carried(
        &mut self,
        step: &Step,
        plan: LogicalPlan,
        feed: &Feed,
        rules: Vec<(String, Expr)>,
    ) -> Result<LogicalPlan> {
        let schema = Arc::clone(plan.schema());
        let known = &self.known;
        let carried = carry::carry(plan, &|table, name| resolve(known, table, name))?;
        let ordered = Arc::new(in_order(Arc::new(carried), &schema)?);
        let named = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(
            ordered,
            TableReference::bare(step.name.clone()),
        )?);
        if rules.is_empty() {
            return Ok(named);
        }
        if !matches!(feed, Feed::Chunked(_)) {
            // Nobody counts the rows of a lookup, so its rules are a filter: true rejects, false and NULL pass.
            let keep = rules.into_iter().map(|(_, rule)| rule.is_not_true()).reduce(Expr::and);
            let filter =
                LogicalPlanBuilder::from(named).filter(keep.unwrap_or_else(|| datafusion::prelude::lit(true)))?;
            return filter.build();
        }
        let table = PlanTable {
            name: step.name.clone(),
            kind: TableKind::Passed,
            schema: with_row(schema.as_arrow()),
        };
        let scan = LogicalPlanBuilder::scan(step.name.as_str(), Arc::new(table), None)?.build()?;
        self.rejects
            .insert(step.name.clone(), RejectPlan { input: named, rules });
        Ok(scan)
    }

    pub(crate) fn report_all(&mut self, sql: &Sql, fallback: Place, found: Vec<Found>, parsed: Option<&Parsed>) {
        for Found {
            place,
            message,
            suggestion,
        } in found
        {
            let at = place.or_else(|| {
                // Some errors name a function or a column without saying where it stands.
                let quoted = message.split(['\'', '`']).nth(1)?;
                let word = quoted
                    .split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.')))
                    .next()?;
                let word = word.rsplit('.').next()?;
                let named = parsed.and_then(|parsed| statement::where_named(&parsed.statement, word));
                named.or_else(|| place::words(&sql.text, &[word]).first().copied())
            });
            // A value is found by itself: no identifier is written like this.
            let at = at.or_else(|| place::literal(&sql.text, message.split('\'').nth(1)?));
            let place = if at.is_some() { self.place(sql, at) } else { fallback };
            let suggestion = suggestion.map(|help| match text_in_double_quotes(&sql.text, at, &message) {
                Some(better) if help.starts_with("there is") => better,
                _ => help,
            });
            self.report.maybe(place, message, suggestion);
        }
    }

    pub(crate) fn place(&self, sql: &Sql, at: Option<(u64, u64)>) -> Place {
        at.map_or(sql.place, |(line, column)| {
            place::in_file(self.report.text(), sql, line, column)
        })
    }

    /// Reports tables that are neither sources nor steps. True if there are none.
    pub(crate) fn check_reads(&mut self, step: &Step, parsed: &Parsed) -> bool {
        let definition = self.definition;
        let gaps = self.gaps;
        let names = || {
            let read = definition.sources.keys().chain(definition.steps.keys());
            let standing = gaps.into_iter().flat_map(|gaps| &gaps.names);
            // With gaps, their list holds all of them.
            read.filter(move |_| gaps.is_none()).chain(standing).map(String::as_str)
        };
        let mut all_known = true;
        for (table, at) in &parsed.reads {
            if !names().any(|name| name == table) {
                let place = self.place(&step.query, *at);
                let message = format!(
                    "step `{}` reads `{table}`, which is neither a source nor a step",
                    step.name
                );
                self.report.maybe(
                    place,
                    message,
                    did_you_mean(table, names().filter(|name| *name != step.name)),
                );
                all_known = false;
            }
        }
        all_known
    }
}

/// The plan behind a table, under the name that the SQL calls it by.
fn resolve(known: &HashMap<String, Known>, table: &PlanTable, name: &TableReference) -> Result<LogicalPlan> {
    let plan = known.get(&table.name).and_then(|known| known.plan.clone());
    let Some(plan) = plan else {
        return Err(DataFusionError::Plan(format!("`{}` has no plan", table.name)));
    };
    if plan.schema().iter().all(|(qualifier, _)| qualifier == Some(name)) {
        return Ok(plan);
    }
    Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(
        Arc::new(plan),
        name.clone(),
    )?))
}

/// The word that most likely stands for a node: the last before its columns, or else the first.
fn nearest(words: &[(u64, u64)], near: Option<(u64, u64)>) -> Option<(u64, u64)> {
    let before = near.and_then(|near| words.iter().rev().find(|word| **word < near));
    before.or(words.first()).copied()
}

/// A text in double quotes is a name to SQL: what to say of a name that is unknown.
fn text_in_double_quotes(sql: &str, at: Option<(u64, u64)>, message: &str) -> Option<String> {
    let name = message.strip_prefix("unknown column `")?.split('`').next()?;
    let at = at?;
    (place::literal(sql, &format!("\"{name}\"")) == Some(at)).then(|| format!("text stands in single quotes: '{name}'"))
}
