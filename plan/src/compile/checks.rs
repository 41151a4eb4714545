//! Whether the checks of a load fit its columns.

use std::collections::BTreeMap;

use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::checks::{self, Check, Referred, Rule};
use crate::definition::{Definition, Load};
use crate::diagnostics::{Report, did_you_mean};
use crate::types;

/// What the rules of checks are held against.
pub(crate) struct Facts<'f> {
    pub(crate) definition: &'f Definition,
    /// The load's.
    pub(crate) schema: &'f Schema,
    /// The columns of the lookups that could be read.
    pub(crate) lookups: &'f BTreeMap<String, SchemaRef>,
}

/// Reports what is wrong with the checks of a load.
pub(crate) fn check(report: &mut Report, load: &Load, facts: &Facts<'_>) {
    for check in facts.definition.checks.iter().filter(|check| check.load == load.name) {
        one(report, check, facts);
    }
}

fn one(report: &mut Report, check: &Check, facts: &Facts<'_>) {
    let schema = facts.schema;
    let (place, word) = (check.place, check.rule.word());
    let mut known = true;
    for column in check.rule.columns() {
        if schema.field_with_name(column).is_err() {
            known = false;
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let message = format!("`{word}` names `{column}`, which load `{}` doesn't have", check.load);
            report.maybe(place, message, did_you_mean(column, names));
        }
    }
    let type_of = |column: &str| schema.field_with_name(column).map(|field| field.data_type().clone());
    if !known {
        return;
    }
    match &check.rule {
        Rule::Accepted { column, values } => {
            let Ok(data_type) = type_of(column) else { return };
            for text in values {
                value(report, check, column, &data_type, text);
            }
        }
        Rule::Range { column, min, max } => {
            let Ok(data_type) = type_of(column) else { return };
            if matches!(data_type, DataType::Utf8 | DataType::Boolean) {
                let message = format!("`{word}` is about `{column}`, which is {}", types::name(&data_type));
                return report.help(
                    place,
                    message,
                    "a range has an order: take numbers or times, or `accepted`",
                );
            }
            let ends = [min, max].map(|end| end.as_ref().map(|end| value(report, check, column, &data_type, end)));
            if let [Some(Some(min)), Some(Some(max))] = ends
                && min.partial_cmp(&max) == Some(std::cmp::Ordering::Greater)
            {
                report.help(
                    place,
                    format!("`{word}` of `{column}` ends before it begins"),
                    "swap the two ends",
                );
            }
        }
        Rule::Fresh { column, .. } => {
            let Ok(data_type) = type_of(column) else { return };
            if !matches!(data_type, DataType::Date32 | DataType::Timestamp(..)) {
                let message = format!("`{word}` is about `{column}`, which is {}", types::name(&data_type));
                report.help(place, message, "name a date, timestamp or timestamptz");
            }
        }
        Rule::Outliers { column, .. } => {
            let Ok(data_type) = type_of(column) else { return };
            if !data_type.is_numeric() {
                let message = format!("`{word}` is about `{column}`, which is {}", types::name(&data_type));
                report.help(place, message, "name a column of numbers");
            }
        }
        Rule::Sql { query, .. } => {
            if let Err(why) = one_query(&query.text).and_then(|()| known_params(&query.text, facts.definition)) {
                let help = "write one SELECT in the destination's SQL; `staged` are the rows: SELECT count(*) FROM staged \
                            WHERE ...";
                report.help(query.place, format!("`sql` of a check {why}"), help);
            }
        }
        Rule::References {
            of: Referred::Table(table),
            ..
        } if table == "staged" => {
            let help = "the staged rows have that name in checks: write it with its schema, `public.staged.id`";
            report.help(place, format!("`{word}` is about a table called `staged`"), help);
        }
        Rule::References {
            column,
            of: Referred::Lookup(name),
            to,
        } => {
            let (Ok(data_type), Some(lookup)) = (type_of(column), facts.lookups.get(name)) else {
                return;
            };
            let Ok(there) = lookup.field_with_name(to) else {
                let names = lookup.fields().iter().map(|field| field.name().as_str());
                let message = format!("`{word}` names `{to}`, which the lookup `{name}` doesn't have");
                return report.maybe(place, message, did_you_mean(to, names));
            };
            if !compare(there.data_type(), &data_type) {
                let message = format!(
                    "`{word}` compares `{column}`, which is {}, with `{to}` of `{name}`, which is {}",
                    types::name(&data_type),
                    types::name(there.data_type())
                );
                report.help(
                    place,
                    message,
                    "name columns that compare, or CAST one of them in a step",
                );
            }
        }
        Rule::NotNull(_)
        | Rule::Unique(_)
        | Rule::RowCount(_)
        | Rule::RowCountNear { .. }
        | Rule::Rejects(_)
        | Rule::References { .. } => {}
    }
}

/// A value of a column as a check writes it; what is wrong with it goes to the report.
fn value(report: &mut Report, check: &Check, column: &str, data_type: &DataType, text: &str) -> Option<ScalarValue> {
    // Types that no file can name come from SQL; their values are written like those of the next that one can.
    let written = match data_type {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Timestamp(_, None) => types::parse("timestamp").ok()?,
        DataType::Timestamp(_, Some(_)) => types::timestamptz(),
        other => other.clone(),
    };
    match types::value(&written, text) {
        Ok(value) => Some(value),
        Err(help) => {
            let message = format!(
                "`{}` of `{column}` names `{text}`, which is not {}",
                check.rule.word(),
                types::name(data_type)
            );
            report.help(check.place, message, help);
            None
        }
    }
}

/// Whether values of the two types say the same things: a text is read as the other. What Arrow casts beyond that has another
/// meaning there, such as a number that is taken for a time.
fn compare(there: &DataType, here: &DataType) -> bool {
    let is_text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let is_time = |kind: &DataType| matches!(kind, DataType::Date32 | DataType::Timestamp(..));
    let alike = is_text(there)
        || is_text(here)
        || there.is_numeric() && here.is_numeric()
        || is_time(there) && is_time(here)
        || there == here;
    alike && can_cast_types(there, here)
}

/// Whether every `$name` is a parameter.
fn known_params(text: &str, definition: &Definition) -> Result<(), String> {
    for (_, written) in checks::placeholders(text)? {
        let declared = &definition.params;
        if written
            .strip_prefix('$')
            .is_some_and(|name| declared.contains_key(name))
        {
            continue;
        }
        let bare = written.trim_start_matches(['$', '?', ':', '@']);
        let near = did_you_mean(bare, declared.keys().map(String::as_str));
        let near = near.unwrap_or_else(|| "write `$name`, and declare it in `params`".to_owned());
        return Err(format!("names the unknown parameter `{written}`: {near}"));
    }
    Ok(())
}

/// Whether a text is one query, in whichever SQL: what it means is for the destination to say, but it has to stay within
/// the brackets that are put around it.
fn one_query(text: &str) -> Result<(), String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize();
    let tokens = tokens.map_err(|error| format!("can't be read: {}", error.message))?;
    let mut tokens: Vec<Token> = tokens
        .into_iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .collect();
    if tokens.pop_if(|last| *last == Token::SemiColon).is_some() && !text.trim_end().ends_with(';') {
        return Err("ends with a semicolon and a comment; leave the semicolon out".to_owned());
    }
    match tokens.first() {
        Some(Token::Word(word)) if matches!(word.keyword, Keyword::SELECT | Keyword::WITH) => {}
        Some(_) | None => return Err("is no query".to_owned()),
    }
    let mut open = 0_u32;
    for token in tokens {
        match token {
            Token::LParen => open += 1,
            Token::RParen if open == 0 => return Err("closes a bracket that it doesn't open".to_owned()),
            Token::RParen => open -= 1,
            Token::SemiColon => return Err("is more than one statement".to_owned()),
            _ => {}
        }
    }
    if open > 0 {
        return Err("opens a bracket that it doesn't close".to_owned());
    }
    Ok(())
}
