//! The `steps` and `loads` of a pipeline file.

use std::collections::HashMap;

use haulage_core::ids::LoadName;
use indexmap::IndexMap;

use super::contract;
use super::fields::{self, Fields};
use super::layout;
use crate::definition::{Load, Mode, Place, Source, Sql, Step};
use crate::diagnostics::{Report, did_you_mean};
use crate::yaml::{Key, Node, Value};

/// Bounds against files that no person has written.
const MAX_STEPS: usize = 1_000;
const MAX_RULES: usize = 200;

/// `names` are all that sources and steps have in the file, also those that could not be read.
pub(super) fn read(
    report: &mut Report,
    node: &Node,
    sources: &IndexMap<String, Source>,
    names: &[String],
) -> IndexMap<String, Step> {
    let mut steps = IndexMap::new();
    let entries = fields::entries(report, node, "steps").unwrap_or_default();
    if let Some((key, _)) = entries.get(MAX_STEPS) {
        let message = format!(
            "the file has {} steps; at most {MAX_STEPS} can be planned",
            entries.len()
        );
        report.help(key.place, message, "divide it into several pipelines");
        return steps;
    }
    for (key, node) in &entries {
        fields::name(report, "step's name", &key.text, key.place, 63, false);
        if let Some(source) = sources.get(&key.text) {
            let message = format!(
                "the step `{}` has the name of the source in line {}",
                key.text, source.place.line
            );
            report.help(key.place, message, "steps and sources share their names: rename one");
        }
        if let Some(step) = one(report, key, node, names) {
            steps.insert(key.text.clone(), step);
        }
    }
    steps
}

fn one(report: &mut Report, key: &Key, node: &Node, names: &[String]) -> Option<Step> {
    let what = format!("step `{}`", key.text);
    if let Value::Scalar { .. } = &node.value {
        let (text, place) = fields::text(report, node, &what)?;
        let query = Sql {
            text: text.to_owned(),
            place,
        };
        return Some(Step {
            name: key.text.clone(),
            query,
            reject: IndexMap::new(),
            place: key.place,
        });
    }
    let fields = Fields::read(report, node, &what, &["sql", "from", "reject"])?;
    let mut reject = IndexMap::new();
    if let Some(node) = fields.get("reject") {
        let rules = fields::entries(report, node, &format!("`reject` of {what}")).unwrap_or_default();
        if let Some((rule, _)) = rules.get(MAX_RULES) {
            let message = format!("{what} has {} rules; at most {MAX_RULES} can be checked", rules.len());
            report.help(rule.place, message, "check the rest in the next step");
            return None;
        }
        for (rule, node) in rules {
            fields::name(report, "rule's name", &rule.text, rule.place, 63, false);
            if let Some((text, place)) = fields::text(report, node, &format!("the rule `{}`", rule.text)) {
                reject.insert(
                    rule.text.clone(),
                    Sql {
                        text: text.to_owned(),
                        place,
                    },
                );
            }
        }
    }
    let query = match (fields.get("sql"), fields.get("from")) {
        (Some(sql), None) => {
            let (text, place) = fields::text(report, sql, &format!("the SQL of {what}"))?;
            Sql {
                text: text.to_owned(),
                place,
            }
        }
        (None, Some(from)) => {
            let (text, place) = fields::text(report, from, &format!("`from` of {what}"))?;
            if !names.iter().any(|name| name == text) {
                unknown_from(
                    report,
                    &what,
                    text,
                    place,
                    names.iter().map(String::as_str).filter(|name| *name != key.text),
                );
                return None;
            }
            // Quoted, so that a name which is also a word of SQL stays a name.
            Sql {
                text: format!("SELECT * FROM \"{text}\""),
                place,
            }
        }
        (Some(_), Some(from)) => {
            report.help(
                from.place,
                format!("{what} has both `sql` and `from`"),
                "keep one: `from: x` is `SELECT * FROM x`",
            );
            return None;
        }
        (None, None) => {
            report.help(
                key.place,
                format!("{what} has no rows to work on"),
                "write `from: STEP` or `sql: SELECT ...`",
            );
            return None;
        }
    };
    Some(Step {
        name: key.text.clone(),
        query,
        reject,
        place: key.place,
    })
}

fn unknown_from<'a>(report: &mut Report, what: &str, name: &str, place: Place, names: impl Iterator<Item = &'a str>) {
    let message = if name.split_whitespace().count() > 1 {
        report.help(place, format!("`from` of {what} is not a name"), "put SQL under `sql`");
        return;
    } else {
        format!("{what} reads `{name}`, which is neither a source nor a step")
    };
    report.maybe(place, message, did_you_mean(name, names));
}

/// Published runs of a table that stay revertible, unless the load says otherwise: the newest.
const KEPT: u32 = 1;
/// And at most.
const MAX_KEPT: u32 = 100;

pub(super) fn loads(report: &mut Report, node: &Node, names: &[String]) -> IndexMap<LoadName, Load> {
    let mut loads: IndexMap<LoadName, Load> = IndexMap::new();
    let mut targets: HashMap<(String, String), String> = HashMap::new();
    for (key, node) in fields::entries(report, node, "loads").unwrap_or_default() {
        fields::name(report, "load's name", &key.text, key.place, 48, false);
        let Some(load) = load(report, key, node, names) else {
            continue;
        };
        let target = (load.to.clone(), load.table.to_lowercase());
        if let Some(other) = targets.insert(target, key.text.clone()) {
            let message = format!(
                "the loads `{other}` and `{}` have the same table `{}`",
                key.text, load.table
            );
            report.help(
                key.place,
                message,
                "put the rows together with UNION ALL in a step, or name another table",
            );
        }
        loads.insert(load.name.clone(), load);
    }
    loads
}

fn load(report: &mut Report, key: &Key, node: &Node, names: &[String]) -> Option<Load> {
    let what = format!("load `{}`", key.text);
    let fields = Fields::read(
        report,
        node,
        &what,
        &[
            "from",
            "to",
            "table",
            "mode",
            "key",
            "newest",
            "keep_previous",
            "provenance",
            "on_new_column",
            "on_wider_type",
            "format",
            "partition_by",
            "compression",
        ],
    )?;
    let mut need = |field: &str, help: &str| match fields.get(field) {
        Some(node) => fields::text(report, node, &format!("`{field}` of {what}")),
        None => {
            report.help(key.place, format!("{what} has no `{field}`"), help);
            None
        }
    };
    let from = need("from", "name the step or source whose rows it takes");
    let to = need("to", "name the destination, such as `to: warehouse`");
    let table = need("table", "name the table, such as `table: public.flights`");
    let mode = need(
        "mode",
        "say what happens to the rows that are there: append, replace or merge",
    );
    if let Some((from, place)) = from
        && !names.iter().any(|name| name == from)
    {
        let message = format!("{what} takes rows from `{from}`, which is neither a source nor a step");
        report.maybe(place, message, did_you_mean(from, names.iter().map(String::as_str)));
    }
    if let Some((to, place)) = to {
        if to.contains("://") {
            let help = "name a destination here and give its address to the node: --destination warehouse=...";
            report.help(place, format!("`to` of {what} is an address"), help);
        } else {
            fields::name(report, "destination's name", to, place, 63, true);
        }
    }
    if let Some((table, place)) = table {
        if table.contains('/') {
            layout::check_path(report, &what, table, place);
        } else {
            check_table(report, &what, table, place);
        }
    }
    let mode = mode.and_then(|(text, place)| read_mode(report, &what, text, place));
    let key_columns = fields
        .get("key")
        .and_then(|node| fields::texts(report, node, &format!("`key` of {what}")));
    let key_columns = check_key(report, &what, key_columns.unwrap_or_default());
    if mode == Some(Mode::Merge) && key_columns.is_empty() {
        let place = fields.key("mode").map_or(key.place, |key| key.place);
        report.help(
            place,
            format!("{what} merges without a key"),
            "say which columns tell rows apart: `key: [id]`",
        );
    }
    let newest = fields
        .get("newest")
        .and_then(|node| fields::text(report, node, &format!("`newest` of {what}")));
    if newest.is_some() && (mode == Some(Mode::Append) || key_columns.is_empty()) {
        let place = fields.key("newest").map_or(key.place, |key| key.place);
        report.help(
            place,
            format!("{what} says which of two rows with one key is newer, and doesn't update rows by a key"),
            "write `mode: merge` and a `key`, or leave `newest` out",
        );
    }
    let keep_previous = fields.get("keep_previous").and_then(|node| {
        let what = format!("`keep_previous` of {what}");
        let runs = fields::count(report, node, &what)?;
        match u32::try_from(runs) {
            Ok(runs) if runs <= MAX_KEPT => Some(runs),
            Ok(_) | Err(_) => {
                let help = "each keeps what a run replaced or changed: of `replace`, a whole table";
                report.help(node.place, format!("{what} must be 0 to {MAX_KEPT}"), help);
                None
            }
        }
    });
    let provenance = fields
        .get("provenance")
        .and_then(|node| fields::boolean(report, node, &format!("`provenance` of {what}")));
    let evolution = contract::evolution(report, &fields, &what);
    let layout = layout::read(report, &fields, &what);
    if mode == Some(Mode::Merge) {
        let path = table
            .is_some_and(|(table, _)| table.contains('/'))
            .then_some("a path as `table`");
        let said = layout
            .said()
            .first()
            .map(|key| format!("`{key}`"))
            .or(path.map(str::to_owned));
        if let Some(said) = said {
            let place = fields.key("mode").map_or(key.place, |key| key.place);
            report.help(
                place,
                format!("{what} merges, and has {said}, which only files have"),
                "files can't be merged into: write `mode: append` or `mode: replace`",
            );
        }
    }
    Some(Load {
        name: LoadName::new(key.text.clone()),
        from: from?.0.to_owned(),
        to: to?.0.to_owned(),
        table: table?.0.to_owned(),
        mode: mode?,
        key: key_columns,
        newest: newest.map(|(column, _)| column.to_owned()),
        keep_previous: keep_previous.unwrap_or(KEPT),
        provenance: provenance.unwrap_or(false),
        evolution,
        layout,
        place: key.place,
    })
}

fn read_mode(report: &mut Report, what: &str, text: &str, place: Place) -> Option<Mode> {
    match text {
        "append" => Some(Mode::Append),
        "replace" => Some(Mode::Replace),
        "merge" => Some(Mode::Merge),
        other => {
            let help = match other {
                "upsert" | "update" => Some("write `merge`".to_owned()),
                "overwrite" | "truncate" | "full" => Some("write `replace`".to_owned()),
                "insert" | "add" => Some("write `append`".to_owned()),
                _ => did_you_mean(other, ["append", "replace", "merge"]),
            };
            report.maybe(place, format!("unknown mode `{other}` of {what}"), help);
            None
        }
    }
}

pub(super) fn check_table(report: &mut Report, what: &str, table: &str, place: Place) {
    let parts: Vec<&str> = table.split('.').collect();
    let word = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && part.len() <= 63
    };
    if parts.len() > 2 || !parts.iter().all(word) {
        let help = "write `table` or `schema.table`, of letters, digits and `_`, at most 63 characters each";
        report.help(place, format!("`{table}` of {what} is not a table's name"), help);
    }
}

fn check_key(report: &mut Report, what: &str, columns: Vec<(String, Place)>) -> Vec<String> {
    let mut key: Vec<String> = Vec::new();
    for (column, place) in columns {
        if key.contains(&column) {
            report.error(place, format!("the key of {what} names `{column}` twice"));
        } else {
            key.push(column);
        }
    }
    key
}
