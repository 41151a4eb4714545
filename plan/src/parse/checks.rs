//! The `checks` of a pipeline file.

use haulage_core::ids::LoadName;
use indexmap::IndexMap;

use super::fields::{self, Fields};
use super::steps::check_table;
use crate::checks::{Bound, Check, Method, OnFail, Referred, Rule};
use crate::definition::{Load, Place, Source, Sql};
use crate::diagnostics::{Report, did_you_mean};
use crate::yaml::{Node, Value};

/// Bound against files that no person has written.
const MAX_CHECKS: usize = 500;
/// Runs that a number of rows is held against, at most.
const MAX_RUNS: u64 = 100;

/// What a check may hold.
const RULES: [&str; 10] = [
    "not_null",
    "unique",
    "row_count",
    "rejects",
    "accepted",
    "range",
    "fresh",
    "references",
    "outliers",
    "sql",
];
/// Beside its rule.
const MORE: [&str; 5] = ["load", "on_fail", "name", "expect", "lookup"];

/// What else people call them.
const OTHERS: [(&str, &str); 10] = [
    ("notnull", "not_null"),
    ("rows", "row_count"),
    ("accepted_values", "accepted"),
    ("in", "accepted"),
    ("between", "range"),
    ("freshness", "fresh"),
    ("relationships", "references"),
    ("foreign_key", "references"),
    ("zscore", "outliers"),
    ("custom", "sql"),
];

const BOUND: &str = "write a bound such as \">= 1000\", \"< 1%\" or \"= 0\"";

/// What checks may name: loads, and sources.
pub(super) struct Known<'k> {
    pub(super) loads: &'k IndexMap<LoadName, Load>,
    /// All keys of `loads`, also of those that could not be read.
    pub(super) load_names: &'k [String],
    pub(super) sources: &'k IndexMap<String, Source>,
    /// All keys of `sources` and `steps`.
    pub(super) names: &'k [String],
}

/// Reads the checks.
pub(super) fn read(report: &mut Report, node: &Node, known: &Known<'_>) -> Vec<Check> {
    let Value::List(items) = &node.value else {
        let help = "write a list: `checks: [{unique: id}, {row_count: \">= 1\"}]`";
        report.help(
            node.place,
            format!("`checks` must be a list, not {}", node.describe()),
            help,
        );
        return Vec::new();
    };
    if let Some(item) = items.get(MAX_CHECKS) {
        let message = format!("the file has {} checks; at most {MAX_CHECKS} are made", items.len());
        report.error(item.place, message);
        return Vec::new();
    }
    let mut checks: Vec<Check> = Vec::new();
    for item in items {
        let Some(check) = one(report, item, known) else {
            continue;
        };
        if checks
            .iter()
            .any(|other| other.name == check.name && other.load == check.load)
        {
            let message = format!("two checks of load `{}` are called `{}`", check.load, check.name);
            report.help(check.place, message, "drop one, or tell them apart: `name: ...`");
        }
        checks.push(check);
    }
    checks
}

fn one(report: &mut Report, item: &Node, names: &Known<'_>) -> Option<Check> {
    let known: Vec<&str> = RULES.iter().chain(&MORE).copied().collect();
    let entries = fields::entries(report, item, "a check")?;
    for (key, _) in &entries {
        if !known.contains(&key.text.as_str()) {
            let other = OTHERS.iter().find(|(other, _)| *other == key.text);
            let help = other.map(|(_, word)| format!("write `{word}`"));
            let help = help.or_else(|| did_you_mean(&key.text, known.iter().copied()));
            report.maybe(key.place, format!("unknown key `{}` in a check", key.text), help);
            return None;
        }
    }
    let rules: Vec<_> = entries
        .iter()
        .filter(|(key, _)| RULES.contains(&key.text.as_str()))
        .collect();
    let &[(key, node)] = rules.as_slice() else {
        let message = match rules.len() {
            0 => "the check doesn't say what must hold".to_owned(),
            _ => format!("the check has {} rules", rules.len()),
        };
        report.help(item.place, message, format!("give it one of: {}", RULES.join(", ")));
        return None;
    };
    let fields = Fields::read(report, item, "a check", &known)?;
    let load = load(report, &fields, item.place, names.loads, names.load_names);
    let on_fail = match fields.get("on_fail") {
        None => Some(OnFail::Fail),
        Some(node) => on_fail(report, node),
    };
    let rule = rule(report, &key.text, node, &fields, names);
    if let Some(key) = fields.key("expect")
        && fields.get("sql").is_none()
    {
        report.help(key.place, "`expect` goes with `sql` alone", "drop it");
    }
    if let Some(key) = fields.key("lookup")
        && fields.get("references").is_none()
    {
        report.help(key.place, "`lookup` goes with `references` alone", "drop it");
    }
    let name = match fields.get("name") {
        Some(node) => {
            let (name, place) = fields::text(report, node, "`name` of a check")?;
            if name.chars().count() > 120 || name.chars().any(char::is_control) {
                report.error(place, "`name` of a check must be one line of at most 120 characters");
            }
            Some(name.to_owned())
        }
        None => None,
    };
    let rule = rule?;
    let load = load?;
    if on_fail == Some(OnFail::Quarantine) {
        let place = fields.get("on_fail").map_or(item.place, |node| node.place);
        may_set_aside(report, place, &rule, names.loads.get(&load))?;
    }
    Some(Check {
        load,
        name: name.unwrap_or_else(|| rule.to_string()),
        rule,
        on_fail: on_fail?,
        place: item.place,
    })
}

/// The load that it is about: the one that it names, or the only one.
fn load(
    report: &mut Report,
    fields: &Fields<'_>,
    place: Place,
    loads: &IndexMap<LoadName, Load>,
    names: &[String],
) -> Option<LoadName> {
    match fields.get("load") {
        Some(node) => {
            let (name, place) = fields::text(report, node, "`load` of a check")?;
            if !names.iter().any(|known| known == name) {
                let help = did_you_mean(name, names.iter().map(String::as_str));
                report.maybe(place, format!("the check is about `{name}`, which is no load"), help);
                return None;
            }
            Some(LoadName::from(name))
        }
        None => match names {
            // A load that could not be read has its own error.
            [only] => loads.get(&LoadName::from(only.as_str())).map(|load| load.name.clone()),
            [] => None,
            [first, ..] => {
                let message = format!("the file has {} loads, and the check doesn't say which", names.len());
                report.help(place, message, format!("write `load: {first}`"));
                None
            }
        },
    }
}

/// Refuses to set rows aside where a rule names none, or where they don't get as far as that.
fn may_set_aside(report: &mut Report, place: Place, rule: &Rule, load: Option<&Load>) -> Option<()> {
    let word = rule.word();
    if !rule.names_rows() {
        let help = match rule {
            Rule::Sql { .. } => {
                "write `fail` or `warn`; rows that an expression names go to quarantine by a `reject` rule of a step"
            }
            _ => "write `fail` or `warn`",
        };
        let message =
            format!("`on_fail: quarantine` sets rows aside, and `{word}` is about a whole load and names none");
        report.help(place, message, help);
        return None;
    }
    if let (Rule::NotNull(columns), Some(load)) = (rule, load)
        && let Some(column) = columns.iter().find(|column| load.key.contains(column))
    {
        let message = format!(
            "`on_fail: quarantine` can't set aside rows without `{column}`: it is a key column of load `{}`, and such rows \
             can't be staged",
            load.name
        );
        let help = format!("put them into quarantine by a rule of a step: `reject: {{no_{column}: {column} IS NULL}}`");
        report.help(place, message, help);
        return None;
    }
    Some(())
}

fn on_fail(report: &mut Report, node: &Node) -> Option<OnFail> {
    let (text, place) = fields::text(report, node, "`on_fail` of a check")?;
    match text {
        "fail" => Some(OnFail::Fail),
        "warn" => Some(OnFail::Warn),
        "quarantine" => Some(OnFail::Quarantine),
        other => {
            let help = match other {
                "reject" | "set_aside" => Some("write `quarantine`".to_owned()),
                "error" | "block" => Some("write `fail`".to_owned()),
                "warning" | "continue" => Some("write `warn`".to_owned()),
                _ => did_you_mean(other, ["fail", "warn", "quarantine"]),
            };
            report.maybe(place, format!("unknown `on_fail: {other}`"), help);
            None
        }
    }
}

fn rule(report: &mut Report, word: &str, node: &Node, fields: &Fields<'_>, names: &Known<'_>) -> Option<Rule> {
    let what = format!("`{word}` of a check");
    match word {
        "not_null" => columns(report, node, &what).map(Rule::NotNull),
        "unique" => columns(report, node, &what).map(Rule::Unique),
        "row_count" => row_count(report, node, &what),
        "rejects" => bound(report, node, &what).map(Rule::Rejects),
        "accepted" => {
            let (column, node) = of_column(report, node, &what, "{carrier: [AA, UA]}")?;
            let values = fields::texts(report, node, &what)?;
            if values.is_empty() {
                report.error(node.place, format!("{what} accepts nothing"));
            }
            let values = values.into_iter().map(|(value, _)| value).collect();
            Some(Rule::Accepted { column, values })
        }
        "range" => {
            let (column, node) = of_column(report, node, &what, "{delay: [-120, 1500]}")?;
            let (min, max) = range(report, node, &what)?;
            Some(Rule::Range { column, min, max })
        }
        "fresh" => {
            let (column, node) = of_column(report, node, &what, "{loaded_at: 2 days}")?;
            let within = fields::duration(report, node, &what)?;
            Some(Rule::Fresh { column, within })
        }
        "references" => {
            let (column, node) = of_column(report, node, &what, "{carrier: public.airlines.carrier}")?;
            let (text, place) = fields::text(report, node, &what)?;
            if let Some(node) = fields.get("lookup") {
                let of = Referred::Lookup(lookup(report, node, names)?);
                let to = text.to_owned();
                return Some(Rule::References { column, of, to });
            }
            let Some((table, to)) = text
                .rsplit_once('.')
                .filter(|(table, to)| !table.is_empty() && !to.is_empty())
            else {
                let help = "name a table of the destination and its column: `airlines.carrier`";
                report.help(
                    place,
                    format!("{what} must be a table and a column, not `{text}`"),
                    help,
                );
                return None;
            };
            check_table(report, "a check", table, place);
            let (of, to) = (Referred::Table(table.to_owned()), to.to_owned());
            Some(Rule::References { column, of, to })
        }
        "outliers" => outliers(report, node, &what),
        _ => {
            let (text, place) = fields::text(report, node, &what)?;
            let expect = match fields.get("expect") {
                Some(node) => bound(report, node, "`expect` of a check")?,
                None => Bound::NONE,
            };
            if expect.is_share {
                report.error(place, "`expect` of a check must be a number, not a share");
            }
            let query = Sql {
                text: text.to_owned(),
                place,
            };
            Some(Rule::Sql { query, expect })
        }
    }
}

/// The lookup that a check names.
fn lookup(report: &mut Report, node: &Node, names: &Known<'_>) -> Option<String> {
    let (name, place) = fields::text(report, node, "`lookup` of a check")?;
    match names.sources.get(name) {
        Some(source) if source.lookup => Some(name.to_owned()),
        Some(_) => {
            let help = "if the source is small, declare it with `lookup: true`";
            report.help(place, format!("the check names `{name}`, which is no lookup"), help);
            None
        }
        // It has an error of its own.
        None if names.names.iter().any(|known| known == name) => None,
        None => {
            let lookups = names.sources.iter().filter(|(_, source)| source.lookup);
            let help = did_you_mean(name, lookups.map(|(name, _)| name.as_str()));
            report.maybe(
                place,
                format!("the check names the lookup `{name}`, which is no source"),
                help,
            );
            None
        }
    }
}

fn columns(report: &mut Report, node: &Node, what: &str) -> Option<Vec<String>> {
    let columns = fields::texts(report, node, what)?;
    if columns.is_empty() {
        report.help(node.place, format!("{what} names no column"), "write [a, b]");
        return None;
    }
    Some(columns.into_iter().map(|(column, _)| column).collect())
}

/// `{column: ...}`, of one column.
fn of_column<'n>(report: &mut Report, node: &'n Node, what: &str, example: &str) -> Option<(String, &'n Node)> {
    if let Value::Map(entries) = &node.value
        && let [(key, value)] = entries.as_slice()
    {
        return Some((key.text.clone(), value));
    }
    report.help(
        node.place,
        format!("{what} must name one column"),
        format!("write {example}, and one check for each column"),
    );
    None
}

fn bound(report: &mut Report, node: &Node, what: &str) -> Option<Bound> {
    let (text, place) = fields::text(report, node, what)?;
    let bound = Bound::parse(text);
    if bound.is_none() {
        report.help(place, format!("{what} must be a bound, not `{text}`"), BOUND);
    }
    bound
}

fn row_count(report: &mut Report, node: &Node, what: &str) -> Option<Rule> {
    if let Value::Scalar { .. } = &node.value {
        let found = bound(report, node, what)?;
        if found.is_share {
            let help = "of the last runs: {within: 20%, of_last: 5}";
            report.help(node.place, format!("{what} must be a number, not a share"), help);
        }
        return Some(Rule::RowCount(found));
    }
    let fields = Fields::read(report, node, what, &["within", "of_last"])?;
    let (Some(within), Some(of_last)) = (fields.get("within"), fields.get("of_last")) else {
        let help = "write {within: 20%, of_last: 5}, or a bound such as \">= 1000\"";
        report.help(node.place, format!("{what} needs `within` and `of_last`"), help);
        return None;
    };
    let (text, place) = fields::text(report, within, "`within` of a check")?;
    let percent = text
        .trim()
        .strip_suffix('%')
        .and_then(|number| number.trim().parse::<f64>().ok());
    let percent = percent.filter(|percent| percent.is_finite() && *percent >= 0.0);
    if percent.is_none() {
        report.help(
            place,
            format!("`within` of a check must be a share, not `{text}`"),
            "write 20%",
        );
    }
    let runs = fields::count(report, of_last, "`of_last` of a check")?;
    if !(1..=MAX_RUNS).contains(&runs) {
        report.error(of_last.place, format!("`of_last` of a check must be 1 to {MAX_RUNS}"));
    }
    Some(Rule::RowCountNear {
        percent: percent?,
        runs: u32::try_from(runs).ok()?,
    })
}

fn range(report: &mut Report, node: &Node, what: &str) -> Option<(Option<String>, Option<String>)> {
    let end = |node: &Node| match &node.value {
        Value::Scalar { .. } if node.is_null() => Some(None),
        Value::Scalar { text, .. } => Some(Some(text.clone())),
        Value::Map(_) | Value::List(_) => None,
    };
    if let Value::List(items) = &node.value
        && let [min, max] = items.as_slice()
        && let (Some(min), Some(max)) = (end(min), end(max))
        && (min.is_some() || max.is_some())
    {
        return Some((min, max));
    }
    let help = "write [0, 100]; `null` for no end";
    report.help(node.place, format!("{what} must have two ends"), help);
    None
}

fn outliers(report: &mut Report, node: &Node, what: &str) -> Option<Rule> {
    let fields = Fields::read(report, node, what, &["column", "method", "beyond", "allowed"])?;
    let Some(column) = fields.get("column") else {
        let help = "write {column: delay, method: mad, allowed: \"< 1%\"}";
        report.help(node.place, format!("{what} names no column"), help);
        return None;
    };
    let (column, _) = fields::text(report, column, "`column` of a check")?;
    let method = match fields.get("method") {
        None => Method::Mad,
        Some(node) => {
            let (text, place) = fields::text(report, node, "`method` of a check")?;
            let methods = [Method::ZScore, Method::Iqr, Method::Mad];
            match methods.into_iter().find(|method| method.word() == text) {
                Some(method) => method,
                None => {
                    let help = did_you_mean(text, methods.map(Method::word));
                    let help = help.or(Some("the methods are: zscore, iqr, mad".to_owned()));
                    report.maybe(place, format!("unknown method `{text}`"), help);
                    return None;
                }
            }
        }
    };
    let beyond = match fields.get("beyond") {
        None => method.usual(),
        Some(node) => {
            let (text, place) = fields::text(report, node, "`beyond` of a check")?;
            match text.trim().parse::<f64>() {
                Ok(beyond) if beyond.is_finite() && beyond > 0.0 => beyond,
                _ => {
                    report.error(
                        place,
                        format!("`beyond` of a check must be a positive number, not `{text}`"),
                    );
                    return None;
                }
            }
        }
    };
    let allowed = match fields.get("allowed") {
        Some(node) => bound(report, node, "`allowed` of a check")?,
        None => Bound::NONE,
    };
    Some(Rule::Outliers {
        column: column.to_owned(),
        method,
        beyond,
        allowed,
    })
}
