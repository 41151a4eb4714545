//! `incremental:` of a source: `incremental: updated_at`, or `{column: updated_at, lag: 10m}`.

use super::Declared;
use crate::definition::{Incremental, Lag};
use crate::diagnostics::Report;
use crate::parse::fields::{self, Fields};
use crate::yaml::{Node, Value};

const KEYS: &[&str] = &["column", "lag"];

pub(super) fn read(report: &mut Report, node: &Node, declared: &Declared<'_>) -> Option<Incremental> {
    let what = format!("`incremental` of {}", declared.what);
    if let Some(lookup) = declared.fields.get("lookup")
        && fields::boolean(report, lookup, "`lookup`") == Some(true)
    {
        report.help(
            node.place,
            format!("{} is a lookup, which is read whole by every run", declared.what),
            "leave out `incremental`, or `lookup`",
        );
    }
    if !matches!(node.value, Value::Map(_)) {
        let (column, place) = fields::text(report, node, &what)?;
        return Some(Incremental {
            column: column.to_owned(),
            lag: Lag::None,
            place,
        });
    }
    let keys = Fields::read(report, node, &what, KEYS)?;
    let lag = keys.get("lag").map_or(Lag::None, |node| lag(report, node, &what));
    let Some(column) = keys.get("column") else {
        report.help(
            node.place,
            format!("{what} names no column"),
            "name the one whose values only grow: `incremental: {column: updated_at, lag: 10m}`",
        );
        return None;
    };
    let (column, place) = fields::text(report, column, &format!("`column` of {what}"))?;
    Some(Incremental {
        column: column.to_owned(),
        lag,
        place,
    })
}

fn lag(report: &mut Report, node: &Node, what: &str) -> Lag {
    let Some((text, place)) = fields::text(report, node, &format!("`lag` of {what}")) else {
        return Lag::None;
    };
    if let Ok(count) = text.trim().replace('_', "").parse::<u64>() {
        return if count == 0 { Lag::None } else { Lag::Count(count) };
    }
    match humantime::parse_duration(text.trim()) {
        Ok(lag) if lag.is_zero() => Lag::None,
        Ok(lag) if lag.subsec_nanos() == 0 => Lag::Seconds(lag.as_secs()),
        Ok(_) | Err(_) => {
            report.help(
                place,
                format!("`{text}` is no lag"),
                "write a time in whole seconds (`90s`, `10m`, `2days`) for a date or time column, or a number for an \
                 integer column",
            );
            Lag::None
        }
    }
}
