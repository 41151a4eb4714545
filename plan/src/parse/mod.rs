//! From the text of a pipeline file to a [`Definition`]: shapes, names, types, parameters. No SQL is looked at here.

mod checks;
mod contract;
mod draft;
mod fields;
mod layout;
mod params;
mod sources;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_columns;
#[cfg(test)]
mod tests_of_contract;
#[cfg(test)]
mod tests_of_rest;

use std::collections::BTreeMap;
use std::sync::Arc;

use haulage_core::submission::LoadOutline;
use indexmap::IndexMap;

pub(crate) use draft::Gaps;
pub use draft::{Draft, Sound};

use crate::definition::{Definition, Place};
use crate::diagnostics::{Diagnostics, Report};
use crate::yaml;
use fields::Fields;

/// Source rows between two checkpoints, unless the file says otherwise.
const CHECKPOINT_ROWS: u64 = 100_000;
/// A segment is held in memory, so there is a limit to it.
const MAX_CHECKPOINT_ROWS: u64 = 10_000_000;

const KEYS: [&str; 7] = [
    "pipeline",
    "params",
    "sources",
    "steps",
    "loads",
    "checks",
    "checkpoint_rows",
];

/// Parses a pipeline file and binds its parameters, given as text. `file` is what errors call it.
/// Everything that is wrong is reported at once.
pub fn parse_and_bind(text: &str, file: &str, params: &BTreeMap<String, String>) -> Result<Definition, Diagnostics> {
    Draft::of(text, file, params).require_values().definition_alone()
}

/// The definition as far as there is one, with what is missing from it in `gaps`.
fn definition(
    report: &mut Report,
    text: &Arc<str>,
    file: &str,
    given: &BTreeMap<String, String>,
    gaps: &mut Gaps,
) -> Option<Definition> {
    let root = yaml::read(text, report)?;
    let top = Fields::read(report, &root, "a pipeline file", &KEYS)?;
    let start = Place { line: 1, column: 1 };

    let pipeline = match top.get("pipeline") {
        Some(node) => fields::text(report, node, "`pipeline`").map(|(name, place)| {
            fields::name(report, "pipeline's name", name, place, 48, true);
            name.to_owned()
        }),
        None => {
            report.help(
                start,
                "the file has no `pipeline`",
                "give it a name: `pipeline: flights`",
            );
            None
        }
    };
    let checkpoint_rows = top.get("checkpoint_rows").and_then(|node| {
        let rows = fields::count(report, node, "`checkpoint_rows`")?;
        if rows == 0 || rows > MAX_CHECKPOINT_ROWS {
            report.error(
                node.place,
                format!("`checkpoint_rows` must be 1 to {MAX_CHECKPOINT_ROWS}"),
            );
        }
        Some(rows)
    });
    let params = params::read(report, top.get("params"), given);
    let sources = match top.get("sources") {
        Some(node) => sources::read(report, node, &params, gaps),
        None => {
            report.help(
                start,
                "the file has no `sources`",
                "say where rows are read: `sources: {raw: {csv: \"data/*.csv\"}}`",
            );
            IndexMap::new()
        }
    };
    // Names that are there but broken count as known, so that one mistake isn't reported twice.
    for section in ["sources", "steps"] {
        if let Some(yaml::Value::Map(entries)) = top.get(section).map(|node| &node.value) {
            gaps.names.extend(entries.iter().map(|(key, _)| key.text.clone()));
        }
    }
    let steps = top
        .get("steps")
        .map(|node| steps::read(report, node, &sources, &gaps.names))
        .unwrap_or_default();
    gaps.open = params.open;
    let loads = match top.get("loads") {
        Some(node) => {
            let loads = steps::loads(report, node, &gaps.names);
            if loads.is_empty() && report.is_empty() {
                report.error(node.place, "`loads` is empty: there is nothing to do");
            }
            loads
        }
        None => {
            let help =
                "say where rows go: `loads: {flights: {from: raw, to: warehouse, table: flights, mode: append}}`";
            report.help(start, "the file has no `loads`: there is nothing to do", help);
            IndexMap::new()
        }
    };
    let load_names = match top.get("loads").map(|node| &node.value) {
        Some(yaml::Value::Map(entries)) => entries.iter().map(|(key, _)| key.text.clone()).collect(),
        Some(_) | None => Vec::new(),
    };
    let checks = top
        .get("checks")
        .map(|node| {
            let known = checks::Known {
                loads: &loads,
                load_names: &load_names,
                sources: &sources,
                names: &gaps.names,
            };
            checks::read(report, node, &known)
        })
        .unwrap_or_default();
    Some(Definition {
        pipeline: pipeline.unwrap_or_default(),
        file: file.to_owned(),
        text: Arc::clone(text),
        params: params.values,
        sources,
        steps,
        loads,
        checks,
        checkpoint_rows: checkpoint_rows.unwrap_or(CHECKPOINT_ROWS),
    })
}

/// What decisions need to know of the loads, in the order in which they publish.
pub fn outline(definition: &Definition) -> Vec<LoadOutline> {
    let outline = |load: &crate::definition::Load| LoadOutline {
        name: load.name.clone(),
        destination: load.to.clone(),
        table: load.table.clone(),
    };
    definition.loads.values().map(outline).collect()
}
