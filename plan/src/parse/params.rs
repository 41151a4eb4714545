//! Parameters: declared with a type and perhaps a default, given as text, bound as typed values.
//!
//! In SQL a parameter is `$name` and never becomes text again; in a path it is `{{ name }}`.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;

use super::fields::{self, Fields};
use crate::definition::Place;
use crate::diagnostics::{Report, did_you_mean};
use crate::types;
use crate::yaml::{Node, Value};

/// The parameters that are declared.
#[derive(Default)]
pub(super) struct Params {
    /// Every one of them with its typed value: NULL, of its type where that is known, if it has none.
    pub(super) values: BTreeMap<String, ScalarValue>,
    /// Those that were given no value and have no default, and where they are declared.
    pub(super) open: BTreeMap<String, Place>,
    declared: Vec<String>,
}

/// What one declaration came to.
enum Bound {
    Value(ScalarValue),
    /// Sound, but without a value.
    Open(DataType),
    /// Why stands in the report.
    Broken(DataType),
}

pub(super) fn read(report: &mut Report, node: Option<&Node>, given: &BTreeMap<String, String>) -> Params {
    let mut params = Params::default();
    let entries = node
        .and_then(|node| fields::entries(report, node, "params"))
        .unwrap_or_default();
    for (key, node) in entries {
        params.declared.push(key.text.clone());
        fields::name(report, "parameter's name", &key.text, key.place, 63, false);
        let value = match one(report, &key.text, key.place, node, given.get(&key.text)) {
            Bound::Value(value) => value,
            Bound::Open(data_type) => {
                params.open.insert(key.text.clone(), key.place);
                null(&data_type)
            }
            Bound::Broken(data_type) => null(&data_type),
        };
        params.values.insert(key.text.clone(), value);
    }
    let place = node.map_or(Place { line: 1, column: 1 }, |node| node.place);
    for name in given.keys().filter(|name| !params.declared.contains(name)) {
        let help = did_you_mean(name, params.declared.iter().map(String::as_str))
            .unwrap_or_else(|| format!("declare it: `params: {{{name}: {{type: text}}}}`, or leave it out"));
        report.help(place, format!("the pipeline has no parameter `{name}`"), help);
    }
    params
}

fn null(data_type: &DataType) -> ScalarValue {
    ScalarValue::try_from(data_type).unwrap_or(ScalarValue::Null)
}

/// An error for each parameter without a value.
pub(super) fn report_open(report: &mut Report, open: &BTreeMap<String, Place>) {
    for (name, place) in open {
        let help = format!("give it with `--param {name}=VALUE`, or declare a default");
        report.help(*place, format!("the parameter `{name}` has no value"), help);
    }
}

fn one(report: &mut Report, name: &str, place: Place, node: &Node, given: Option<&String>) -> Bound {
    let Some((data_type, type_name, default)) = declared(report, name, place, node) else {
        return Bound::Broken(DataType::Null);
    };
    // A default is looked at also where a value is given: a wrong one would wait for the day without.
    let fallback = match default {
        None => None,
        Some(default) => match fallback(report, name, type_name, &data_type, default) {
            Some(value) => Some(value),
            None => return Bound::Broken(data_type),
        },
    };
    match given.map(|text| (text, types::value(&data_type, text))) {
        Some((_, Ok(value))) => Bound::Value(value),
        Some((text, Err(help))) => {
            let message = format!("the parameter `{name}` is not {}: `{text}`", with_article(type_name));
            report.help(place, message, help);
            Bound::Broken(data_type)
        }
        None => fallback.map_or(Bound::Open(data_type), Bound::Value),
    }
}

/// The declared type, what the file calls it, and the default.
fn declared<'n>(
    report: &mut Report,
    name: &str,
    place: Place,
    node: &'n Node,
) -> Option<(DataType, &'n str, Option<&'n Node>)> {
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
    match types::parse(type_name) {
        Ok(data_type) => Some((data_type, type_name, default)),
        Err(unknown) => {
            report.help(type_place, unknown.message, unknown.suggestion);
            None
        }
    }
}

fn fallback(
    report: &mut Report,
    name: &str,
    type_name: &str,
    data_type: &DataType,
    default: &Node,
) -> Option<ScalarValue> {
    let (text, place) = match &default.value {
        Value::Scalar { text, content, .. } if !default.is_null() => (text.as_str(), *content),
        _ => fields::text(report, default, &format!("the default of `{name}`"))?,
    };
    match types::value(data_type, text) {
        Ok(value) => Some(value),
        Err(help) => {
            let message = format!("the default of `{name}` is not {}: `{text}`", with_article(type_name));
            report.help(place, message, help);
            None
        }
    }
}

/// A path with its parameters filled in.
pub(super) struct Filled {
    pub(super) text: String,
    /// Whether every parameter that it names has a value.
    pub(super) whole: bool,
}

impl Params {
    /// Fills `{{ name }}` into a text. What can't be filled in is left as it is, and reported unless it is a parameter
    /// that only has no value.
    pub(super) fn fill(&self, report: &mut Report, text: &str, place: Place) -> Filled {
        self.fill_as(report, "path", text, place, types::text)
    }

    /// The same with a value written by `write`; `what` is what the text is, for messages.
    pub(super) fn fill_as(
        &self,
        report: &mut Report,
        what: &str,
        text: &str,
        place: Place,
        write: impl Fn(&ScalarValue) -> String,
    ) -> Filled {
        let mut filled = String::new();
        let mut whole = true;
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
                return Filled {
                    text: text.to_owned(),
                    whole: false,
                };
            };
            let name = after[..end].trim();
            match self.values.get(name) {
                Some(value) if !value.is_null() => filled.push_str(&write(value)),
                Some(_) => {
                    filled.push_str(&rest[start..start + 2 + end + 2]);
                    whole = false;
                }
                None => {
                    whole = false;
                    let help = did_you_mean(name, self.declared.iter().map(String::as_str))
                        .unwrap_or_else(|| format!("declare it: `params: {{{name}: {{type: text}}}}`"));
                    let place = self.inside(text, rest, start, place);
                    report.help(place, format!("the {what} names an unknown parameter `{name}`"), help);
                }
            }
            rest = &after[end + 2..];
        }
        filled.push_str(rest);
        Filled { text: filled, whole }
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
