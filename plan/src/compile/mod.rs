//! From a [`Definition`] to plans that nodes run: SQL is planned by DataFusion, looked at for what a chunk can't answer,
//! and rewritten so that every row carries its place in the segment.
//!
//! A plan's tables are [`PlanTable`]s, names and columns without rows: a node puts the rows of a segment, a lookup, or
//! what reject rules let pass behind them. Steps are put into one another, so that a load is one pass over a segment.
//! Reject rules divide that pass: the rows to judge are a plan of their own ([`RejectPlan`]), and what reads them scans
//! a table. So the optimizer, which works on one plan at a time, can't move a later WHERE below a rule.

mod appends;
mod arithmetic;
mod bounds;
mod carry;
mod checks;
mod context;
mod depth;
mod dialect;
mod errors;
mod feed;
mod inspect;
mod moments;
mod order;
mod output;
mod place;
mod refuse;
mod stages;
mod statement;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_appends;
#[cfg(test)]
mod tests_of_checks;
#[cfg(test)]
mod tests_of_depth;
#[cfg(test)]
mod tests_of_gaps;
#[cfg(test)]
mod tests_of_messages;
#[cfg(test)]
mod tests_of_moments;
#[cfg(test)]
mod tests_of_newest;
mod wording;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::OptimizerContext;
use haulage_core::ids::{LoadName, StageId};
use indexmap::IndexMap;

pub use context::{PlanTable, TableKind, session, session_config, source_schema, with_row};

use crate::definition::{Column, Definition, Place, Source};
use crate::diagnostics::{Diagnostics, Report};
use crate::parse::Gaps;
use crate::{PROVENANCE, ROW_COLUMN};
use bounds::Size;
use feed::Feed;
use steps::{Known, Planner};

/// Columns of a source: more than any destination's table can have.
const MAX_COLUMNS: usize = 4_000;

/// A checked pipeline, ready to be run by a node.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The pipeline file.
    pub definition: Definition,
    /// The columns of every source, declared or found.
    pub columns: BTreeMap<String, Vec<Column>>,
    /// One stage for each chunked source that feeds a load, in the order of the file.
    pub stages: Vec<Stage>,
    /// Every load, in the order of the file.
    pub loads: IndexMap<LoadName, LoadPlan>,
    /// Every step, in the order in which one reads another.
    pub steps: IndexMap<String, StepPlan>,
    /// The rows that reject rules judge, by step.
    pub rejects: BTreeMap<String, RejectPlan>,
}

/// The work on the chunks of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its number.
    pub id: StageId,
    /// The chunked source it reads.
    pub source: String,
    /// The steps of its loads, in the order in which one reads another.
    pub steps: Vec<String>,
    /// The loads it feeds, in the order of the file.
    pub loads: Vec<LoadName>,
    /// The lookups it needs.
    pub lookups: BTreeSet<String>,
}

/// What one load's rows come from.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The stage that feeds it.
    pub stage: StageId,
    /// The columns of its rows at the destination: without the row column, texts always Utf8.
    pub schema: SchemaRef,
    /// A plan of its rows, not yet optimized. Its columns are those of `schema`, then the row column.
    pub plan: LogicalPlan,
    /// The lookups it reads.
    pub lookups: BTreeSet<String>,
    /// The steps with reject rules on the way to it; their rules stand in [`Compiled::rejects`].
    pub rejects: BTreeSet<String>,
}

/// What is known of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// The sources and steps it reads, in the order in which it names them.
    pub reads: Vec<String>,
    /// The chunked source that feeds it, unless only lookups do.
    pub source: Option<String>,
    /// Its columns, without the row column.
    pub schema: SchemaRef,
    /// Its reject rules, in order.
    pub rules: Vec<String>,
    /// A plan of the rows that it gives, behind its rules, not yet optimized; the last column is the row column if a
    /// chunked source feeds it.
    pub plan: LogicalPlan,
}

/// The rows that a step's reject rules judge, and the rules.
#[derive(Debug, Clone)]
pub struct RejectPlan {
    /// A plan of the rows, under the step's name, not yet optimized; the last column is the row column.
    pub input: LogicalPlan,
    /// Conditions over those columns, in order. A row is rejected by the first that is true.
    pub rules: Vec<(String, Expr)>,
}

impl Compiled {
    /// The stage with a number.
    pub fn stage(&self, id: StageId) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.id == id)
    }

    /// The columns of a source's batches: declared or found, and the row column last.
    pub fn chunk_schema(&self, source: &str) -> Option<SchemaRef> {
        self.columns
            .get(source)
            .map(|columns| with_row(&source_schema(columns)))
    }
}

/// Checks and plans a pipeline. `columns` holds the columns of sources that don't declare them (and may hold others).
/// Everything that is wrong is reported at once, as far as one error doesn't hide another.
pub fn compile(definition: &Definition, columns: &BTreeMap<String, Vec<Column>>) -> Result<Compiled, Diagnostics> {
    deep(definition, || compile_here(definition, columns))
}

/// Runs what parses or plans SQL on a deep stack. That it broke down there is an error of the file like any other: a
/// submission must not end a coordinator or a node.
fn deep<T: Send>(
    definition: &Definition,
    work: impl FnOnce() -> Result<T, Diagnostics> + Send,
) -> Result<T, Diagnostics> {
    crate::deep::run(work).unwrap_or_else(|why| {
        let mut report = Report::new(&definition.file, Arc::clone(&definition.text));
        let help = "write the SQL of its steps in a simpler way, one step at a time, and report what broke it";
        report.help(Place::default(), format!("the pipeline can't be planned: {why}"), help);
        Err(report.finish())
    })
}

fn compile_here(definition: &Definition, columns: &BTreeMap<String, Vec<Column>>) -> Result<Compiled, Diagnostics> {
    let mut planner = Planner::new(definition);
    let columns = sources(&mut planner, columns);
    let steps = all_steps(&mut planner);
    let loads = loads(&mut planner, &steps);
    if !planner.report.is_empty() {
        return Err(planner.report.finish());
    }
    let (stages, loads) = stages::stages(definition, &planner, &steps, loads);
    Ok(Compiled {
        definition: definition.clone(),
        columns,
        stages,
        loads,
        steps,
        rejects: planner.rejects,
    })
}

/// Checks what can be checked of a definition that has gaps, and of sources whose columns are not known: the SQL's
/// syntax, what steps read and that they don't read in a circle, and, of what is fed by known columns alone, all that
/// [`compile`] checks. The sources whose columns are not known.
pub(crate) fn check_known(
    definition: &Definition,
    columns: &BTreeMap<String, Vec<Column>>,
    gaps: &Gaps,
    report: &mut Report,
) -> Vec<String> {
    let check = || {
        let mut planner = Planner::new(definition);
        planner.gaps = Some(gaps);
        let known = sources(&mut planner, columns);
        let steps = all_steps(&mut planner);
        loads(&mut planner, &steps);
        let unchecked = definition.sources.keys().filter(|name| !known.contains_key(*name));
        Ok((planner.report, unchecked.cloned().collect()))
    };
    match deep(definition, check) {
        Ok((found, unchecked)) => {
            report.take(found);
            unchecked
        }
        Err(broken) => {
            report.take_all(broken);
            Vec::new()
        }
    }
}

fn sources(planner: &mut Planner<'_>, found: &BTreeMap<String, Vec<Column>>) -> BTreeMap<String, Vec<Column>> {
    let mut all = BTreeMap::new();
    for source in planner.definition.sources.values() {
        appends::lag(&mut planner.report, source);
        let broken = planner.gaps.is_some_and(|gaps| gaps.broken.contains(&source.name));
        let columns = match found.get(&source.name) {
            // What was found counts where the contract lets it be other than what is declared.
            Some(columns) if source.contract.finds_columns() && !columns.is_empty() && !broken => columns.clone(),
            _ if !source.kind.columns().is_empty() && !broken => source.columns(),
            Some(columns) if !columns.is_empty() && !broken => columns.clone(),
            _ if planner.gaps.is_some() => {
                planner.known.insert(source.name.clone(), unknown());
                continue;
            }
            _ => {
                let message = format!("the columns of source `{}` are not known", source.name);
                planner.report.help(
                    source.place,
                    message,
                    "declare them: `columns: {year: int, carrier: text}`",
                );
                planner.known.insert(source.name.clone(), unknown());
                continue;
            }
        };
        if let Err(error) = one_source(planner, source, &columns) {
            let message = format!(
                "the columns of source `{}` can't be used: {}",
                source.name,
                errors::message(&error)
            );
            planner.report.error(source.place, message);
        }
        all.insert(source.name.clone(), columns);
    }
    all
}

fn one_source(planner: &mut Planner<'_>, source: &Source, columns: &[Column]) -> Result<()> {
    if columns.len() > MAX_COLUMNS {
        let message = format!(
            "source `{}` has {} columns; at most {MAX_COLUMNS} can be planned",
            source.name,
            columns.len()
        );
        planner
            .report
            .help(source.place, message, "declare those that you need");
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    for column in columns {
        if !seen.insert(&column.name) || column.name == ROW_COLUMN {
            let message = format!("source `{}` has two columns called `{}`", source.name, column.name);
            planner
                .report
                .help(source.place, message, "rename one in the file's header");
        }
    }
    let schema = source_schema(columns);
    let (kind, feed, scanned) = if source.lookup {
        (TableKind::Lookup, Feed::Broadcast, Arc::clone(&schema))
    } else {
        (TableKind::Chunk, Feed::Chunked(source.name.clone()), with_row(&schema))
    };
    let table = PlanTable {
        name: source.name.clone(),
        kind,
        schema: scanned,
    };
    let plan = LogicalPlanBuilder::scan(source.name.as_str(), Arc::new(table), None)?.build()?;
    planner.context.add(&source.name, kind, Arc::clone(&schema));
    let lookups = if source.lookup {
        BTreeSet::from([source.name.clone()])
    } else {
        BTreeSet::new()
    };
    let known = Known {
        size: Size::table(schema.fields().len()),
        schema,
        feed,
        lookups,
        rejects: BTreeSet::new(),
        plan: Some(plan),
    };
    planner.known.insert(source.name.clone(), known);
    Ok(())
}

/// A table of which too little is known to check what reads it.
fn unknown() -> Known {
    let schema = Arc::new(datafusion::arrow::datatypes::Schema::empty());
    Known {
        size: Size::table(0),
        schema,
        feed: Feed::Refused,
        lookups: BTreeSet::new(),
        rejects: BTreeSet::new(),
        plan: None,
    }
}

fn all_steps(planner: &mut Planner<'_>) -> IndexMap<String, StepPlan> {
    let mut steps = IndexMap::new();
    for (name, parsed) in order::order(planner) {
        let definition = planner.definition;
        let Some(step) = definition.steps.get(&name) else {
            continue;
        };
        // A step whose table could not be planned is not looked at: its errors would only repeat that one.
        if parsed
            .reads
            .iter()
            .all(|(table, _)| planner.context.tables.contains_key(table))
            && let Some(plan) = planner.plan(step, &parsed)
        {
            steps.insert(name, plan);
        }
    }
    steps
}

/// A checked load: its plan, and the chunked source that feeds it.
struct Loaded {
    source: String,
    schema: SchemaRef,
    plan: LogicalPlan,
}

fn loads(planner: &mut Planner<'_>, steps: &IndexMap<String, StepPlan>) -> IndexMap<LoadName, Loaded> {
    let mut loads = IndexMap::new();
    let lookups = planner.definition.sources.iter().filter(|(_, source)| source.lookup);
    let lookups = lookups.filter_map(|(name, _)| {
        let known = planner.known.get(name)?;
        // Of one that is refused, or that nobody has looked at yet, the columns are not known.
        let is_known = !matches!(known.feed, Feed::Refused);
        is_known.then(|| (name.clone(), Arc::clone(&known.schema)))
    });
    let lookups = lookups.collect();
    let mut fed = Vec::new();
    for load in planner.definition.loads.values() {
        let Some(known) = planner.known.get(&load.from) else {
            continue;
        };
        if !steps.contains_key(&load.from) && !planner.definition.sources.contains_key(&load.from) {
            continue; // The step has an error of its own.
        }
        let (feed, from) = (known.feed.clone(), known.plan.clone());
        let known_schema = Arc::clone(&known.schema);
        let Some(from) = from else { continue };
        let schema = output::check(&mut planner.report, planner.definition, load, &known_schema);
        let source = match feed {
            Feed::Chunked(source) => source,
            Feed::Refused => continue,
            Feed::Broadcast => {
                let message = format!(
                    "load `{}` is fed by lookups alone, so no chunk would carry its rows",
                    load.name
                );
                let help = "declare the source a second time without `lookup: true`, and load from that one";
                planner.report.help(load.place, message, help);
                continue;
            }
        };
        appends::check(&mut planner.report, planner.definition, load, &source);
        fed.push((load, source.clone()));
        let Some(schema) = schema else { continue };
        if load.provenance
            && let Some(taken) = PROVENANCE.iter().find(|name| schema.field_with_name(name).is_ok())
        {
            let message = format!("load `{}` has a column `{taken}`, which `provenance` adds", load.name);
            let help = "give the column another name in its step, or leave `provenance` out";
            planner.report.help(load.place, message, help);
            continue;
        }
        let facts = checks::Facts {
            definition: planner.definition,
            schema: &schema,
            lookups: &lookups,
        };
        checks::check(&mut planner.report, load, &facts);
        match output::plan(from, &schema).and_then(|plan| trial(planner, plan)) {
            Ok(plan) => {
                loads.insert(load.name.clone(), Loaded { source, schema, plan });
            }
            Err(error) => {
                let message = format!("load `{}` can't be planned: {}", load.name, errors::message(&error));
                planner.report.error(load.place, message);
            }
        }
    }
    appends::together(&mut planner.report, planner.definition, &fed);
    loads
}

/// Optimizes a plan as a node will, so that what would fail there fails here.
fn trial(planner: &Planner<'_>, plan: LogicalPlan) -> Result<LogicalPlan> {
    let state = &planner.context.state;
    let analyzed = state
        .analyzer()
        .execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
    let config = OptimizerContext::new_with_config_options(Arc::clone(state.config_options()));
    state.optimizer().optimize(analyzed, &config, |_, _| {})?;
    Ok(plan)
}
