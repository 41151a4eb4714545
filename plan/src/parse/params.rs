//! Parameters: declared with a type and perhaps a default, given as text, bound as typed values.
//!
//! In SQL a parameter is `$name` and never becomes text again; in a path it is `{{ name }}`.

use std::collections::BTreeMap;

use datafusion::scalar::ScalarValue;

use super::fields::{self, Fields};
use crate::definition::Place;
use crate::diagnostics::{Report, did_you_mean};
use crate::types;
use crate::yaml::{Node, Value};

/// Parameters that could be bound, and the names of all that are declared.
#[derive(Default)]
pub(super) struct Params {
    pub(super) values: BTreeMap<String, ScalarValue>,
    declared: Vec<String>,
}

pub(super) fn read(report: &mut Report, node: Option<&Node>, given: &BTreeMap<String, String>) -> Params {
    let mut params = Params::default();
    let entries = node
        .and_then(|node| fields::entries(report, node, "params"))
        .unwrap_or_default();
    for (key, node) in entries {
        params.declared.push(key.text.clone());
        fields::name(report, "parameter's name", &key.text, key.place, 63, false);
        if let Some(value) = one(report, &key.text, key.place, node, given.get(&key.text)) {
            params.values.insert(key.text.clone(), value);
        }
    }
    let place = node.map_or(Place { line: 1, column: 1 }, |node| node.place);
    for name in given.keys().filter(|name| !params.declared.contains(name)) {
        let help = did_you_mean(name, params.declared.iter().map(String::as_str))
            .unwrap_or_else(|| format!("declare it: `params: {{{name}: {{type: text}}}}`, or leave it out"));
        report.help(place, format!("the pipeline has no parameter `{name}`"), help);
    }
    params
}

fn one(report: &mut Report, name: &str, place: Place, node: &Node, given: Option<&String>) -> Option<ScalarValue> {
    // `day: date` is short for `day: {type: date}`.
    let (type_node, default) = match &node.value {
        Value::Scalar { .. } => (Some(node), None),
        Value::Map(_) | Value::List(_) => {
            let fields = Fields::read(report, node, &format!("parameter `{name}`"), &["type", "default"])?;
            (fields.get("type"), fields.get("default"))
        }
    };
    let Some(type_node) = type_node else {
        report.help(
            place,
            format!("the parameter `{name}` has no type"),
            "write `{type: date}`",
        );
        return None;
    };
    let (type_name, type_place) = fields::text(report, type_node, &format!("the type of `{name}`"))?;
    let data_type = match types::parse(type_name) {
        Ok(data_type) => data_type,
        Err(unknown) => {
            report.help(type_place, unknown.message, unknown.suggestion);
            return None;
        }
    };
    let fallback = match default {
        Some(default) => {
            let (text, place) = match &default.value {
                Value::Scalar { text, content, .. } if !default.is_null() => (text.as_str(), *content),
                _ => fields::text(report, default, &format!("the default of `{name}`"))?,
            };
            match types::value(&data_type, text) {
                Ok(value) => Some(value),
                Err(help) => {
                    report.help(
                        place,
                        format!("the default of `{name}` is not {}: `{text}`", with_article(type_name)),
                        help,
                    );
                    return None;
                }
            }
        }
        None => None,
    };
    match (given, fallback) {
        (Some(text), _) => match types::value(&data_type, text) {
            Ok(value) => Some(value),
            Err(help) => {
                report.help(
                    place,
                    format!("the parameter `{name}` is not {}: `{text}`", with_article(type_name)),
                    help,
                );
                None
            }
        },
        (None, Some(value)) => Some(value),
        (None, None) => {
            let help = format!("give it with `--param {name}=VALUE`, or declare a default");
            report.help(place, format!("the parameter `{name}` has no value"), help);
            None
        }
    }
}

impl Params {
    /// Fills `{{ name }}` into a text. What can't be filled in is reported and left as it is.
    pub(super) fn fill(&self, report: &mut Report, text: &str, place: Place) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            filled.push_str(&rest[..start]);
            let after = &rest[start + 2..];
            let Some(end) = after.find("}}") else {
                report.help(
                    self.inside(text, rest, start, place),
                    "`{{` without `}}`",
                    "write `{{ name }}`",
                );
                return text.to_owned();
            };
            let name = after[..end].trim();
            match self.values.get(name) {
                Some(value) => filled.push_str(&types::text(value)),
                // Declared but not bound: why stands in the report already.
                None if self.declared.iter().any(|declared| declared == name) => {}
                None => {
                    let help = did_you_mean(name, self.declared.iter().map(String::as_str))
                        .unwrap_or_else(|| format!("declare it: `params: {{{name}: {{type: text}}}}`"));
                    let place = self.inside(text, rest, start, place);
                    report.help(place, format!("the path names an unknown parameter `{name}`"), help);
                }
            }
            rest = &after[end + 2..];
        }
        filled.push_str(rest);
        filled
    }

    fn inside(&self, text: &str, rest: &str, start: usize, place: Place) -> Place {
        let before = &text[..text.len() - rest.len() + start];
        Place {
            column: place.column + before.chars().count() as u64,
            ..place
        }
    }
}

/// `a date`, `an int`.
fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {type_name}")
}
