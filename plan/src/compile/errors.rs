//! DataFusion's errors, said in the words of a pipeline file, with their place in the SQL where it is known.

use datafusion::common::{Column, DataFusionError, Diagnostic, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;

use super::wording;
use crate::diagnostics::did_you_mean;

/// One thing that is wrong with a SQL text. The place is a line and column of that text, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) place: Option<(u64, u64)>,
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
}

impl Found {
    pub(crate) fn new(place: Option<(u64, u64)>, message: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Self {
            place,
            message: message.into(),
            suggestion: Some(suggestion.into()),
        }
    }
}

/// What an error says, one entry for each thing that is wrong.
pub(crate) fn explain(error: &DataFusionError) -> Vec<Found> {
    let mut found = Vec::new();
    collect(error, None, &mut found);
    found
}

fn collect(error: &DataFusionError, diagnostic: Option<&Diagnostic>, found: &mut Vec<Found>) {
    match error {
        DataFusionError::Diagnostic(diagnostic, inner) => collect(inner, Some(diagnostic), found),
        DataFusionError::Context(_, inner) => collect(inner, diagnostic, found),
        DataFusionError::Shared(inner) => collect(inner, diagnostic, found),
        DataFusionError::Collection(errors) => {
            for error in errors {
                collect(error, None, found);
            }
        }
        DataFusionError::SQL(error, _) => found.push(syntax(error)),
        DataFusionError::SchemaError(error, _) => found.push(schema(error, diagnostic)),
        other => {
            let place = diagnostic
                .and_then(|diagnostic| diagnostic.span)
                .map(|span| (span.start.line, span.start.column));
            let fault = matches!(other, DataFusionError::Internal(_));
            found.push(wording::found(&message(other), place, fault));
        }
    }
}

/// The first line of an error without DataFusion's prefixes.
pub(crate) fn message(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let mut text = text.trim();
    for prefix in [
        "Error during planning: ",
        "This feature is not implemented: ",
        "Schema error: ",
        "Execution error: ",
        "Arrow error: ",
        "External error: ",
        "Parser error: ",
        "Cast error: ",
        "Optimizer rule ",
        "Invalid or Unsupported Configuration: ",
    ] {
        text = text.strip_prefix(prefix).unwrap_or(text);
    }
    let text = text.split("\n\nbacktrace").next().unwrap_or(text);
    let text = text.strip_prefix("Internal error: ").unwrap_or(text);
    text.split(".\nThis issue was likely caused by a bug")
        .next()
        .unwrap_or(text)
        .trim_end_matches('.')
        .to_owned()
}

fn syntax(error: &ParserError) -> Found {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => "the SQL is nested too deep",
    };
    let (message, place) = split_place(text);
    // At the end of the text, wherever that is.
    let place = place.or(message.ends_with("found: EOF").then_some((u64::MAX, 1)));
    let (said, suggestion) = wording::syntax(message);
    Found {
        place,
        message: format!("the SQL can't be read: {said}"),
        suggestion: suggestion.map(str::to_owned),
    }
}

/// Takes " at Line: 1, Column: 8" off a message.
fn split_place(text: &str) -> (&str, Option<(u64, u64)>) {
    let Some((message, rest)) = text.rsplit_once(" at Line: ") else {
        return (text, None);
    };
    let Some((line, column)) = rest.split_once(", Column: ") else {
        return (text, None);
    };
    let column = column.trim_end_matches(|c: char| !c.is_ascii_digit());
    match (line.trim().parse(), column.trim().parse()) {
        (Ok(line), Ok(column)) if line > 0 => (message, Some((line, column))),
        _ => (message, None),
    }
}

fn schema(error: &SchemaError, diagnostic: Option<&Diagnostic>) -> Found {
    let span = diagnostic.and_then(|diagnostic| diagnostic.span);
    let of = |column: &Column| {
        column
            .spans
            .first()
            .or(span)
            .map(|span| (span.start.line, span.start.column))
    };
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let message = match &field.relation {
                Some(relation) => format!("unknown column `{}` of `{relation}`", field.name),
                None => format!("unknown column `{}`", field.name),
            };
            Found {
                place: of(field),
                message,
                suggestion: if valid_fields.is_empty() {
                    Some("there is no FROM: write `SELECT ... FROM table`".to_owned())
                } else {
                    suggest_column(field, valid_fields)
                },
            }
        }
        SchemaError::AmbiguousReference { field } => {
            let name = &field.name;
            let message = format!("the column `{name}` is in more than one table, or is there twice");
            let help = format!("say which: `table.{name}`; of two with one name, rename one: `AS {name}_2`");
            Found::new(of(field), message, help)
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            let place = span.map(|span| (span.start.line, span.start.column));
            Found::new(
                place,
                format!("two columns are called `{name}`"),
                format!("rename one: `AS {name}_2`"),
            )
        }
    }
}

fn suggest_column(field: &Column, valid: &[Column]) -> Option<String> {
    let mut names: Vec<&str> = valid
        .iter()
        .filter(|valid| field.relation.is_none() || valid.relation == field.relation)
        .map(|valid| valid.name.as_str())
        .collect();
    if names.is_empty() {
        // The table of the column is unknown, so say which there are.
        let mut tables: Vec<String> = valid
            .iter()
            .filter_map(|v| v.relation.as_ref().map(ToString::to_string))
            .collect();
        tables.sort();
        tables.dedup();
        let relation = field.relation.as_ref()?.to_string();
        return did_you_mean(&relation, tables.iter().map(String::as_str));
    }
    names.dedup();
    if let Some(cased) = names
        .iter()
        .find(|name| name.eq_ignore_ascii_case(&field.name) && **name != field.name)
    {
        return Some(format!(
            "names without quotes are read in lower case: write `\"{cased}\"`"
        ));
    }
    did_you_mean(&field.name, names)
}

pub(crate) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        // "SQL" and "NULL" stay as they are.
        (Some(first), second) if !second.is_some_and(char::is_uppercase) => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
