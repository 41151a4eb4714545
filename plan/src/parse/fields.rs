//! Looking into a YAML tree: every wrong shape, unknown key and repeated key is reported, and reading goes on.

use std::collections::HashSet;
use std::time::Duration;

use crate::definition::Place;
use crate::diagnostics::{Report, did_you_mean};
use crate::yaml::{Key, Node, Value};

/// The values of a mapping whose keys are known.
pub(super) struct Fields<'n> {
    entries: Vec<(&'n Key, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// Reads a mapping that may hold only the `known` keys. `None` if it is none.
    pub(super) fn read(report: &mut Report, node: &'n Node, what: &str, known: &[&str]) -> Option<Self> {
        let entries = entries(report, node, what)?;
        for (key, _) in &entries {
            if !known.contains(&key.text.as_str()) {
                let message = format!("unknown key `{}` in {what}", key.text);
                report.maybe(key.place, message, did_you_mean(&key.text, known.iter().copied()));
            }
        }
        Some(Self { entries })
    }

    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries
            .iter()
            .find(|(found, _)| found.text == key)
            .map(|(_, node)| *node)
    }

    pub(super) fn key(&self, key: &str) -> Option<&'n Key> {
        self.entries
            .iter()
            .find(|(found, _)| found.text == key)
            .map(|(key, _)| *key)
    }
}

/// The entries of a mapping, each key once. `None`, with a report, if it is no mapping.
pub(super) fn entries<'n>(report: &mut Report, node: &'n Node, what: &str) -> Option<Vec<(&'n Key, &'n Node)>> {
    let Value::Map(entries) = &node.value else {
        report.error(
            node.place,
            format!("{what} must be a mapping of names to values, not {}", node.describe()),
        );
        return None;
    };
    let mut seen = HashSet::new();
    let mut unique = Vec::new();
    for (key, value) in entries {
        if seen.insert(key.text.as_str()) {
            unique.push((key, value));
        } else {
            let help = "keep one of the two, or rename one";
            report.help(
                key.place,
                format!("the key `{}` stands twice in {what}", key.text),
                help,
            );
        }
    }
    Some(unique)
}

/// A single value's text, and where its first character stands.
pub(super) fn text<'n>(report: &mut Report, node: &'n Node, what: &str) -> Option<(&'n str, Place)> {
    match &node.value {
        Value::Scalar { text, content, .. } if !node.is_null() && !text.trim().is_empty() => Some((text, *content)),
        _ => {
            report.error(node.place, format!("{what} must be a text, not {}", shape(node)));
            None
        }
    }
}

pub(super) fn boolean(report: &mut Report, node: &Node, what: &str) -> Option<bool> {
    match &node.value {
        Value::Scalar { text, plain: true, .. } if text == "true" => Some(true),
        Value::Scalar { text, plain: true, .. } if text == "false" => Some(false),
        _ => {
            report.error(node.place, format!("{what} must be true or false"));
            None
        }
    }
}

/// A list of texts; a single text stands for a list of one. Each comes with its place.
pub(super) fn texts(report: &mut Report, node: &Node, what: &str) -> Option<Vec<(String, Place)>> {
    match &node.value {
        Value::Scalar { text, content, .. } if !node.is_null() => Some(vec![(text.clone(), *content)]),
        Value::List(items) => {
            let mut found = Vec::new();
            for item in items {
                match &item.value {
                    // An empty plain item is YAML's null; quoted, it is the empty text.
                    Value::Scalar { text, plain, content } if !(*plain && text.is_empty()) => {
                        found.push((text.clone(), *content));
                    }
                    _ => report.error(item.place, format!("{what} must hold texts, not {}", shape(item))),
                }
            }
            Some(found)
        }
        _ => {
            report.help(
                node.place,
                format!("{what} must be a list, not {}", shape(node)),
                "write [a, b]",
            );
            None
        }
    }
}

/// A number of bytes: `8MiB`, `500kB`, `65536`.
pub(super) fn bytes(report: &mut Report, node: &Node, what: &str) -> Option<u64> {
    let (text, place) = text(report, node, what)?;
    let digits = text
        .trim()
        .trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text.trim()[digits.len()..].trim() {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let size = unit.and_then(|unit| digits.parse::<u64>().ok()?.checked_mul(unit));
    if size.is_none() {
        report.help(
            place,
            format!("{what} must be a size, not `{text}`"),
            "write a size such as 16MiB, 500kB or 65536",
        );
    }
    size
}

pub(super) fn count(report: &mut Report, node: &Node, what: &str) -> Option<u64> {
    let (text, place) = text(report, node, what)?;
    let number = text.trim().replace('_', "").parse::<u64>().ok();
    if number.is_none() {
        report.error(place, format!("{what} must be a whole number, not `{text}`"));
    }
    number
}

/// A length of time, not 0: `90min`, `6h`.
pub(super) fn duration(report: &mut Report, node: &Node, what: &str) -> Option<Duration> {
    let (text, place) = text(report, node, what)?;
    let found = humantime::parse_duration(text.trim())
        .ok()
        .filter(|found| !found.is_zero());
    if found.is_none() {
        let help = "write a time such as 90min, 6h or 2 days";
        report.help(place, format!("{what} must be a length of time, not `{text}`"), help);
    }
    found
}

/// One ASCII character, for delimiters and quotes. `\t` is a tab.
pub(super) fn character(report: &mut Report, node: &Node, what: &str) -> Option<u8> {
    if let Value::Scalar { text, .. } = &node.value {
        match text.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => return Some(*byte),
            b"\\t" => return Some(b'\t'),
            _ => {}
        }
    }
    report.help(
        node.place,
        format!("{what} must be one ASCII character"),
        "write it in quotes, such as \";\" or \"\\t\"",
    );
    None
}

/// Checks a name that becomes part of SQL: `[a-z][a-z0-9_]*`, at most `limit` characters.
pub(super) fn name(report: &mut Report, what: &str, text: &str, place: Place, limit: usize, hyphen: bool) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || (hyphen && c == '-');
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
    if starts && text.chars().all(allowed) && text.len() <= limit {
        return true;
    }
    if text.len() > limit {
        report.error(place, format!("the {what} `{text}` is longer than {limit} characters"));
        return false;
    }
    let mut fixed: String = text
        .to_lowercase()
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    if !fixed.starts_with(|c: char| c.is_ascii_lowercase()) {
        fixed.insert_str(0, &what[..1]);
    }
    let signs = if hyphen { "`_` and `-`" } else { "and `_`" };
    let message = format!("`{text}` can't be a {what}: it starts with a letter and holds a-z, 0-9 {signs}");
    report.help(place, message, format!("`{fixed}` would do"));
    false
}

fn shape(node: &Node) -> &'static str {
    match &node.value {
        Value::Scalar { text, .. } if text.trim().is_empty() => "nothing",
        _ => node.describe(),
    }
}
