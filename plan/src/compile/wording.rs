//! DataFusion's sentences, said again in the words of a pipeline file: types by the names that files use, no plumbing, and
//! what to do. A sentence that is not known here is passed on as it is, first line only.

use super::errors::{Found, lower_first};
use crate::diagnostics::{closest, did_you_mean};
use crate::types;

type Place = Option<(u64, u64)>;

/// How DataFusion and Arrow call the types, and how files do. Longer names first.
const TYPES: [(&str, &str); 22] = [
    ("Interval(MonthDayNano)", "interval"),
    ("Timestamp(µs, \"UTC\")", "timestamptz"),
    ("Timestamp(µs)", "timestamp"),
    ("Timestamp(ns)", "timestamp"),
    ("Timestamp(s)", "timestamp"),
    ("LargeUtf8", "text"),
    ("Utf8View", "text"),
    ("Utf8", "text"),
    ("String", "text"),
    ("Boolean", "bool"),
    ("Float16", "float"),
    ("Float32", "float"),
    ("Float64", "double"),
    ("UInt64", "bigint"),
    ("Int8", "tinyint"),
    ("Int16", "smallint"),
    ("Int32", "int"),
    ("Int64", "bigint"),
    ("Date32", "date"),
    ("Numeric", "a number"),
    ("Integer", "a whole number"),
    ("Decimal128", "decimal"),
];

/// Functions over several rows that a user may write without OVER.
const WINDOW: [&str; 11] = [
    "row_number",
    "rank",
    "dense_rank",
    "percent_rank",
    "cume_dist",
    "ntile",
    "lag",
    "lead",
    "first_value",
    "last_value",
    "nth_value",
];

const SINGLE: &str = "every column holds single values: give each its own column";

const CAST: &str = "make the types equal with CAST(column AS type)";

/// What a sentence says. `fault` if DataFusion blames itself.
pub(crate) fn found(text: &str, place: Place, fault: bool) -> Found {
    let translated = function(text)
        .or_else(|| value(text))
        .or_else(|| types_apart(text))
        .or_else(|| query(text));
    if let Some((message, suggestion)) = translated {
        return Found {
            place,
            message,
            suggestion,
        };
    }
    let first = text.lines().next().unwrap_or(text).trim().trim_end_matches('.');
    let first = named_types(first);
    if fault {
        let message = format!("the SQL engine can't plan this: {}", lower_first(&first));
        return Found::new(place, message, "write it in another way");
    }
    let suggestion = (text.contains("oerc") || text.contains("common argument type")).then(|| CAST.to_owned());
    Found {
        place,
        message: lower_first(&first),
        suggestion,
    }
}

/// What the parser says, and what to do where that is known.
pub(crate) fn syntax(text: &str) -> (String, Option<&'static str>) {
    if text.starts_with("Unterminated string literal") {
        return (
            "the text that starts here is never closed".to_owned(),
            Some("close it with a single quote"),
        );
    }
    if text.starts_with("Expected close delimiter") {
        return (
            "the name that starts here is never closed".to_owned(),
            Some("close it with a double quote"),
        );
    }
    let text = text.trim_end_matches('.');
    if let Some(expected) = text
        .strip_prefix("Expected: ")
        .and_then(|rest| rest.strip_suffix(", found: EOF"))
    {
        return (format!("it ends too early: {expected} is missing"), None);
    }
    let help = text.ends_with("found: {").then_some("parameters are written `$name`");
    (lower_first(text), help)
}

type Said = Option<(String, Option<String>)>;

fn say(message: String, help: &str) -> Said {
    Some((message, Some(help.to_owned())))
}

/// A function that is unknown, or called with what it doesn't take.
fn function(text: &str) -> Said {
    if let Some(name) = between(text, "Invalid function '", "'") {
        if WINDOW.contains(&name.to_lowercase().as_str()) {
            let message = format!("`{name}` is a window function: it needs all rows, and a chunk sees only its own");
            return say(message, "do it in the warehouse after the load, or over a lookup");
        }
        let near = between(text, "Did you mean '", "'").and_then(|near| closest(name, [near]));
        let near = near.map(|near| format!("did you mean `{near}`?"));
        return Some((format!("unknown function `{name}`"), near));
    }
    if let Some(name) = between(text, "'", "' does not support zero arguments") {
        return say(format!("`{name}` is called with nothing"), "give it its arguments");
    }
    let (name, rest) = text.strip_prefix("Function '")?.split_once('\'')?;
    let wrong = format!("`{name}` can't be called like this");
    if rest.contains("user-defined coercion failed") {
        return say(format!("{wrong}: the types of its arguments don't go together"), CAST);
    }
    let mut reasons: Vec<String> = Vec::new();
    for part in rest.split(&format!("Function '{name}'")[..]) {
        if let Some(reason) = arguments(part)
            && !reasons.contains(&reason)
        {
            reasons.push(reason);
        }
    }
    if reasons.is_empty() {
        return None;
    }
    // The number of arguments is named only where nothing better is: it may be that of another form of the function.
    let by_type: Vec<&String> = reasons.iter().filter(|reason| !reason.contains("argument")).collect();
    let reason = match by_type.first() {
        Some(first) => (*first).clone(),
        None => reasons.join(", or "),
    };
    say(
        format!("{wrong}: {reason}"),
        "see DataFusion's list of functions for what it takes, or use CAST",
    )
}

fn arguments(part: &str) -> Option<String> {
    let part = part
        .split(",Error")
        .next()?
        .split(" No function matches")
        .next()?
        .trim()
        .trim_end_matches(['.', ',']);
    if let Some((wanted, got)) = part
        .strip_prefix("expects ")
        .and_then(|rest| rest.split_once(" arguments but received "))
    {
        let s = if wanted == "1" { "" } else { "s" };
        return Some(format!("it takes {wanted} argument{s}, and is given {got}"));
    }
    let (wanted, got) = part
        .strip_prefix("expects ")
        .and_then(|rest| rest.split_once(" but received "))
        .or_else(|| part.strip_prefix("requires ")?.split_once(", but received "))?;
    let got = between(got, "(DataType: ", ")").unwrap_or(got);
    Some(format!(
        "it takes {}, and is given {}",
        named_types(wanted),
        named_types(got)
    ))
}

/// A value that is not of the type it is used as.
fn value(text: &str) -> Said {
    if let Some((value, rest)) = text
        .strip_prefix("Cannot cast string '")
        .and_then(|rest| rest.split_once("' to value of "))
    {
        let wanted = named_types(rest.trim_end_matches(" type"));
        return say(format!("'{value}' is no {wanted}"), written_as(&wanted));
    }
    if let Some((value, rest)) = text
        .strip_prefix("Can't cast value ")
        .and_then(|rest| rest.split_once(" to type "))
    {
        return say(
            format!("'{value}' doesn't fit into {}", named_types(rest)),
            "use a larger type",
        );
    }
    if let Some(value) = between(text, "Error parsing timestamp from '", "'") {
        return say(format!("'{value}' is no timestamp"), written_as("timestamp"));
    }
    if let Some(value) = between(text, "Invalid input syntax for type interval: \"", "\"") {
        return say(
            format!("'{value}' is no interval"),
            "write it as INTERVAL '14 days', '3 months', '2 hours'",
        );
    }
    if let Some(name) = text.strip_prefix("Unsupported SQL type ") {
        let name = name.split_whitespace().next().unwrap_or(name).to_lowercase();
        let help = did_you_mean(&name, types::NAMES);
        return Some((format!("there is no type `{name}` here"), help));
    }
    if let Some(name) = between(text, "Unsupported type '", "'") {
        return say(format!("'{name}' is no Arrow type"), "write CAST(x AS type)");
    }
    if text.starts_with("Decimal(precision") {
        return say("a decimal has at most 38 digits".to_owned(), "write decimal(38,9)");
    }
    if text.starts_with("regex parse error") {
        let reason = text
            .rsplit("error: ")
            .next()
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default();
        return say(
            format!("a regular expression can't be read: {reason}"),
            "put a \\ before a sign that means itself",
        );
    }
    None
}

fn written_as(wanted: &str) -> &'static str {
    match wanted {
        "date" => "write it as '2013-01-31'",
        "timestamp" | "timestamptz" => "write it as '2013-01-31 12:30:00'",
        "bool" => "write true or false",
        _ => "write a number, or CAST the other side to text",
    }
}

/// Types that don't go together.
fn types_apart(text: &str) -> Said {
    let pair = |rest: &str, between: &str| {
        let (left, right) = rest.split_once(between)?;
        Some((named_types(left), named_types(right)))
    };
    if let Some(rest) = text.strip_prefix("There isn't a common type to coerce ") {
        let (types, what) = rest.split_once(" in ")?;
        let (left, right) = pair(types, " and ")?;
        let what = what.trim_end_matches(" expression");
        return say(
            format!("`{what}` needs two texts, and is given {left} and {right}"),
            CAST,
        );
    }
    if let Some(rest) = text.strip_prefix("Cannot infer common argument type for comparison operation ") {
        let (left, right) = [" = ", " != ", " < ", " > ", " <= ", " >= "]
            .iter()
            .find_map(|op| pair(rest, op))?;
        return say(format!("{left} and {right} can't be compared"), CAST);
    }
    if let Some(rest) = text.strip_prefix("Cannot automatically convert ") {
        let (left, right) = pair(rest, " to ")?;
        return say(format!("{left} and {right} can't be used together"), CAST);
    }
    if let Some(rest) = text.strip_prefix("Incompatible inputs for Union: Previous inputs were of type ") {
        let (types, column) = rest.split_once(" on column '")?;
        let (before, now) = pair(types, ", but got incompatible type ")?;
        let column = column.trim_end_matches('\'');
        return say(
            format!("the column `{column}` of this UNION is {now} here and {before} before"),
            CAST,
        );
    }
    None
}

/// The shape of a query.
fn query(text: &str) -> Said {
    if text.starts_with("Projections require unique expression names") {
        let name = between(text, "the expression \"", "\" at position")?;
        let name = name.rsplit('.').next().unwrap_or(name).trim_matches('"');
        let help = format!("leave one out, or give it another name: `AS {name}_2`");
        return Some((format!("two columns are called `{name}`"), Some(help)));
    }
    if text.starts_with("Column in SELECT must be in GROUP BY") {
        let name = between(text, "column \"", "\"")?;
        let help = "over a lookup, add it to GROUP BY; over the rows of a chunk there are no aggregates";
        return say(
            format!("`{name}` stands beside an aggregate and is not in GROUP BY"),
            help,
        );
    }
    if text.starts_with("Aggregate functions are not allowed in the WHERE") {
        let help = "compare with a subquery over a lookup: `x > (SELECT max(y) FROM lookup)`";
        return say("WHERE looks at one row, and an aggregate at many".to_owned(), help);
    }
    if let Some(columns) = text.strip_prefix("Too many columns! The subquery should only return one column: ") {
        let many = columns.split(',').count();
        return say(
            format!("a subquery gives {many} columns where one value is needed"),
            "leave one column in its SELECT",
        );
    }
    if text.starts_with("UNION queries have different number of columns") {
        return say(
            "the parts of this `UNION` have different numbers of columns".to_owned(),
            "name the same columns in each",
        );
    }
    if let Some(rest) = text.strip_prefix("Order by column out of bounds, specified: ") {
        let (wanted, there) = rest.split_once(", max: ")?;
        return say(
            format!("ORDER BY {wanted} names a column that is not there; there are {there}"),
            "name the column",
        );
    }
    if let Some(rest) = text.strip_prefix("Source table contains ") {
        let (has, named) = rest.split_once(" columns but only ")?;
        let named = named.split(' ').next()?;
        return say(
            format!("the table has {has} columns, and its alias names {named}"),
            "name all, or none",
        );
    }
    if let Some((predicate, wrong)) = text
        .strip_prefix("Cannot create filter with non-boolean predicate '")
        .and_then(|rest| rest.rsplit_once("' returning "))
    {
        let message = format!(
            "WHERE needs a condition, and `{predicate}` is of type {}",
            named_types(wrong)
        );
        return say(message, "compare it with something");
    }
    // Columns of a load are single values, so the engine is built without lists, maps and structs.
    if text.starts_with("Could not plan array literal") {
        return say("an ARRAY can't be used in a step".to_owned(), SINGLE);
    }
    if let Some((what, _)) = text.split_once(" not supported by ExprPlanner") {
        let what = what.to_uppercase();
        return say(format!("{what} can't be used in a step"), SINGLE);
    }
    if let Some(node) = text.strip_prefix("Unsupported ast node ") {
        let node = node.split([' ', '{', '(']).next().unwrap_or(node);
        return say(
            format!("{} can't be used in a step", node.to_uppercase()),
            "write it in another way",
        );
    }
    None
}

fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inner, _)| inner)
}

/// A text with the names of types as files write them.
fn named_types(text: &str) -> String {
    let mut named = text.to_owned();
    for (theirs, ours) in TYPES {
        named = replace_word(&named, theirs, ours);
    }
    named
}

/// Replaces whole words only: no part of a column's name.
fn replace_word(text: &str, word: &str, with: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, found) = rest.split_at(at);
        let after = &found[word.len()..];
        let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '`' | '\'' | '"' | '.');
        let whole = !before.ends_with(inside) && !after.starts_with(inside);
        replaced.push_str(before);
        replaced.push_str(if whole { with } else { word });
        rest = after;
    }
    replaced.push_str(rest);
    replaced
}
