//! A compiled pipeline for people and for machines: what `haulage plan` shows of it.
//!
//! What only a node knows, chunks and what a destination would change, is added by the command.

use std::fmt::{self, Write};

use haulage_core::ids::LoadName;
use haulage_core::words::counted;
use serde::Serialize;

use crate::checks::{Check, OnFail};
use crate::compile::{Compiled, source_schema};
use crate::definition::{Definition, Mode};
use crate::types;

/// A compiled pipeline in a form that serializes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// Parameters by name, as text.
    pub params: Vec<(String, String)>,
    /// Source rows between two checkpoints.
    pub checkpoint_rows: u64,
    /// Sources, in the order of the file.
    pub sources: Vec<SourceNode>,
    /// Steps, each after what it reads.
    pub steps: Vec<StepNode>,
    /// Loads, in the order in which they publish.
    pub loads: Vec<LoadNode>,
    /// Stages, one for each chunked source.
    pub stages: Vec<StageNode>,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceNode {
    /// Its name.
    pub name: String,
    /// What it is: `csv`.
    pub kind: &'static str,
    /// The path or glob, parameters filled in.
    pub path: String,
    /// Whether it is read whole on every node.
    pub lookup: bool,
    /// Its columns.
    pub columns: Vec<ColumnNode>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnNode {
    /// Its name.
    pub name: String,
    /// Its type, as a pipeline file names it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Whether it may be without a value.
    pub nullable: bool,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepNode {
    /// Its name.
    pub name: String,
    /// The sources and steps it reads.
    pub reads: Vec<String>,
    /// The chunked source that feeds it, unless only lookups do.
    pub source: Option<String>,
    /// Its reject rules.
    pub rejects: Vec<String>,
    /// Its columns.
    pub columns: Vec<ColumnNode>,
}

/// A load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadNode {
    /// Its name.
    pub name: LoadName,
    /// The step or source whose rows it takes.
    pub from: String,
    /// The destination's name.
    pub to: String,
    /// The table there.
    pub table: String,
    /// What publishing does to the rows that are there.
    pub mode: Mode,
    /// Key columns.
    pub key: Vec<String>,
    /// The stage that feeds it.
    pub stage: u32,
    /// The columns of its rows.
    pub columns: Vec<ColumnNode>,
    /// What is checked before it is published.
    pub checks: Vec<CheckNode>,
}

/// A check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckNode {
    /// Its name, or its rule in words.
    pub name: String,
    /// Its rule: `unique`.
    pub rule: &'static str,
    /// Whether the run fails if it doesn't hold.
    pub blocks: bool,
    /// Whether rows that it names are set aside.
    pub sets_aside: bool,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageNode {
    /// Its number.
    pub stage: u32,
    /// The chunked source it reads.
    pub source: String,
    /// The lookups it reads whole.
    pub lookups: Vec<String>,
    /// The steps it runs in one pass.
    pub steps: Vec<String>,
    /// The loads it feeds.
    pub loads: Vec<LoadName>,
}

/// Describes a compiled pipeline.
pub fn plan(compiled: &Compiled) -> Plan {
    let definition = &compiled.definition;
    let sources = definition.sources.values().map(|source| {
        let columns = compiled
            .columns
            .get(&source.name)
            .map(|columns| columns_of(&source_schema(columns)));
        SourceNode {
            name: source.name.clone(),
            kind: source.kind.word(),
            path: source.kind.location().to_owned(),
            lookup: source.lookup,
            columns: columns.unwrap_or_default(),
        }
    });
    let steps = compiled.steps.iter().map(|(name, step)| StepNode {
        name: name.clone(),
        reads: step.reads.clone(),
        source: step.source.clone(),
        rejects: step.rules.clone(),
        columns: columns_of(&step.schema),
    });
    let loads = compiled.loads.iter().filter_map(|(name, plan)| {
        let load = definition.loads.get(name)?;
        Some(LoadNode {
            name: name.clone(),
            from: load.from.clone(),
            to: load.to.clone(),
            table: load.table.clone(),
            mode: load.mode,
            key: load.key.clone(),
            stage: plan.stage.0,
            columns: columns_of(&plan.schema),
            checks: checks_of(definition, name),
        })
    });
    let stages = compiled.stages.iter().map(|stage| StageNode {
        stage: stage.id.0,
        source: stage.source.clone(),
        lookups: stage.lookups.iter().cloned().collect(),
        steps: stage.steps.clone(),
        loads: stage.loads.clone(),
    });
    Plan {
        pipeline: definition.pipeline.clone(),
        params: definition
            .params
            .iter()
            .map(|(name, value)| (name.clone(), types::text(value)))
            .collect(),
        checkpoint_rows: definition.checkpoint_rows,
        sources: sources.collect(),
        steps: steps.collect(),
        loads: loads.collect(),
        stages: stages.collect(),
    }
}

fn checks_of(definition: &Definition, load: &LoadName) -> Vec<CheckNode> {
    let checks = definition.checks.iter().filter(|check| check.load == *load);
    let node = |check: &Check| CheckNode {
        name: check.name.clone(),
        rule: check.rule.word(),
        blocks: check.on_fail == OnFail::Fail,
        sets_aside: check.on_fail == OnFail::Quarantine,
    };
    checks.map(node).collect()
}

fn columns_of(schema: &datafusion::arrow::datatypes::Schema) -> Vec<ColumnNode> {
    let column = |field: &std::sync::Arc<datafusion::arrow::datatypes::Field>| ColumnNode {
        name: field.name().clone(),
        type_name: types::name(field.data_type()),
        nullable: field.is_nullable(),
    };
    schema.fields().iter().map(column).collect()
}

/// The graph as text: sources, then steps with what they read, then loads, stage by stage.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pipeline {}", self.pipeline)?;
        for (name, value) in &self.params {
            writeln!(f, "  param {name} = {value}")?;
        }
        for stage in &self.stages {
            writeln!(
                f,
                "\nstage {}: one pass over every chunk of {}",
                stage.stage, stage.source
            )?;
            for source in self
                .sources
                .iter()
                .filter(|s| s.name == stage.source || stage.lookups.contains(&s.name))
            {
                let lookup = if source.lookup { "lookup" } else { "source" };
                writeln!(
                    f,
                    "  {lookup} {}  {} {}  ({})",
                    source.name,
                    source.kind,
                    source.path,
                    counted(source.columns.len() as u64, "column")
                )?;
            }
            for step in self.steps.iter().filter(|step| stage.steps.contains(&step.name)) {
                let mut line = format!(
                    "  step {} <- {}  ({})",
                    step.name,
                    step.reads.join(", "),
                    counted(step.columns.len() as u64, "column")
                );
                if !step.rejects.is_empty() {
                    write!(line, "  rejects: {}", step.rejects.join(", "))?;
                }
                writeln!(f, "{line}")?;
            }
            for load in self.loads.iter().filter(|load| load.stage == stage.stage) {
                let mode = match load.mode {
                    Mode::Append => "append",
                    Mode::Replace => "replace",
                    Mode::Merge => "merge",
                };
                let mut line = format!(
                    "  load {} <- {}  => {} {}  {mode}",
                    load.name, load.from, load.to, load.table
                );
                if !load.key.is_empty() {
                    write!(line, " by {}", load.key.join(", "))?;
                }
                writeln!(f, "{line}")?;
                for column in &load.columns {
                    let null = if column.nullable { "" } else { " not null" };
                    writeln!(f, "      {} {}{null}", column.name, column.type_name)?;
                }
                for check in &load.checks {
                    let warns = match (check.blocks, check.sets_aside) {
                        (true, _) => "",
                        (false, true) => "  (sets rows aside)",
                        (false, false) => "  (warns)",
                    };
                    writeln!(f, "      check {}{warns}", check.name)?;
                }
            }
        }
        Ok(())
    }
}
