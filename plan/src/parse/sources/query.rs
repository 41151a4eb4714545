//! The text of a query in a database's own SQL, taken apart where it names a parameter (`$name`), so that the value can be
//! bound. Text in quotes, quoted names and comments name none. Whether the rest is SQL is for the database to say.
//!
//! How MySQL reads quotes hangs on its SQL mode, which nobody knows here: under NO_BACKSLASH_ESCAPES a backslash is a letter,
//! and under ANSI_QUOTES it is one between double quotes. What would name other parameters in another mode is refused.

use datafusion::arrow::util::display::array_value_to_string;
use datafusion::scalar::ScalarValue;

use super::Declared;
use crate::definition::{DatabaseKind, Place, QueryPart};
use crate::diagnostics::{Report, did_you_mean};
use crate::parse::draft::Gaps;

/// The pieces of a query. A parameter that isn't declared is reported; one without a value is a gap.
pub(super) fn parts(
    report: &mut Report,
    kind: DatabaseKind,
    text: &str,
    place: Place,
    declared: &Declared<'_>,
    gaps: &mut Gaps,
) -> Vec<QueryPart> {
    let text = text.trim_end().trim_end_matches(';').trim_end();
    let mut parts = Vec::new();
    let mut begin = 0;
    let [readings @ .., found] = READINGS.map(|reading| names(kind, reading, text));
    if let Some(other) = readings.iter().find(|other| **other != found) {
        let odd = found
            .iter()
            .chain(other)
            .find(|range| !(found.contains(range) && other.contains(range)));
        let name = odd.map_or("", |range| &text[range.clone()]);
        report.help(
            place,
            format!("whether `{name}` stands in quotes in the query of {} hangs on the server's SQL mode", declared.what),
            "write a quote within quotes twice, as in 'it''s', and no backslash before a quote; or give the text as a parameter",
        );
    }
    for found in found {
        let name = &text[found.start + 1..found.end];
        match declared.params.values.get(name) {
            Some(value) => {
                parts.push(QueryPart::Text(text[begin..found.start].to_owned()));
                parts.push(QueryPart::Param {
                    name: name.to_owned(),
                    data_type: value.data_type(),
                    value: written(value),
                });
                begin = found.end;
                if value.is_null() {
                    gaps.pathless.insert(declared.key.text.clone());
                }
            }
            None => {
                let known = declared.params.values.keys().map(String::as_str);
                let help = did_you_mean(name, known).unwrap_or_else(|| {
                    format!("declare it: `params: {{{name}: {{type: text}}}}`, and write `${name}`")
                });
                let message = format!("the query of {} names an unknown parameter `${name}`", declared.what);
                report.help(place, message, help);
            }
        }
    }
    parts.push(QueryPart::Text(text[begin..].to_owned()));
    parts
}

/// A value as databases read it: a time as `2013-01-31T05:00:00`, with `Z` where it is UTC.
pub(super) fn written(value: &ScalarValue) -> String {
    let array = value.to_array().ok();
    let text = array.and_then(|array| array_value_to_string(&array, 0).ok());
    text.unwrap_or_default()
}

/// What a backslash does in MySQL between single quotes, and between double ones: whether it takes the next letter's meaning.
/// The last is that of a server that nobody has changed.
const READINGS: [(bool, bool); 3] = [(false, false), (true, false), (true, true)];

/// Every `$name`, with its dollar sign.
fn names(kind: DatabaseKind, reading: (bool, bool), text: &str) -> Vec<std::ops::Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(range) = next(kind, reading, text, at) {
        at = range.end;
        found.push(range);
    }
    found
}

/// The next `$name` from byte `at` on, with its dollar sign.
fn next(
    kind: DatabaseKind,
    (single, double): (bool, bool),
    text: &str,
    mut at: usize,
) -> Option<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    while at < bytes.len() {
        let rest = &text[at..];
        // Behind a letter a dollar sign is a part of a name.
        let inside = at > 0 && word(&bytes[at - 1]);
        at += match bytes[at] {
            quote @ (b'\'' | b'"' | b'`') => {
                let escapes = match kind {
                    DatabaseKind::Postgres | DatabaseKind::Sqlite => {
                        quote == b'\'' && at > 0 && matches!(bytes[at - 1], b'e' | b'E')
                    }
                    DatabaseKind::Mysql => (quote == b'\'' && single) || (quote == b'"' && double),
                };
                quoted(rest.as_bytes(), quote, escapes)
            }
            b'-' if rest.starts_with("--") && (kind != DatabaseKind::Mysql || is_dashed(rest)) => {
                rest.find('\n').unwrap_or(rest.len())
            }
            b'#' if kind == DatabaseKind::Mysql => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => comment(rest.as_bytes(), kind == DatabaseKind::Postgres),
            b'$' if !inside => {
                let name = rest.bytes().skip(1).take_while(word).count();
                let tag = &rest[..rest.len().min(name + 2)];
                if kind == DatabaseKind::Postgres && tag.len() > 1 && tag.ends_with('$') {
                    // `$tag$ ... $tag$` is PostgreSQL's other way to quote a text.
                    let close = rest[tag.len()..].find(tag);
                    close.map_or(rest.len(), |close| close + 2 * tag.len())
                } else if name > 0 {
                    return Some(at..at + 1 + name);
                } else {
                    1
                }
            }
            _ => 1,
        };
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    None
}

/// Whether two dashes begin a comment of MySQL: with a space behind them, and not in `5--2`.
fn is_dashed(rest: &str) -> bool {
    rest.as_bytes()
        .get(2)
        .is_none_or(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
}

/// Bytes of the quoted text at the start; all of them if it isn't closed.
fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 1,
            byte if byte == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Bytes of the comment at the start; all of them if it isn't closed.
fn comment(bytes: &[u8], nested: bool) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"*/" => {
                at += 2;
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            b"/*" if nested => {
                at += 2;
                depth += 1;
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(kind: DatabaseKind, text: &str) -> Vec<&str> {
        let [.., reading] = READINGS;
        let found = super::names(kind, reading, text);
        found.into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn what_hangs_on_the_mode_is_told_from_what_does_not() {
        for (text, clear) in [
            ("SELECT 'it''s $no', \"a \"\" $no\", $yes", true),
            ("SELECT 'a\\nb', \"c\\d\", $yes", true),
            ("SELECT 'it\\'s $no', $yes", false),
            ("SELECT 'ends in \\', $what", false),
            ("SELECT \"ends in \\\", $what, \"", false),
            ("SELECT '\\\\', $yes", true),
            ("SELECT 'no parameter \\' at all'", true),
        ] {
            let [first, rest @ ..] = READINGS.map(|reading| super::names(DatabaseKind::Mysql, reading, text));
            assert_eq!(rest.iter().all(|found| *found == first), clear, "{text}");
        }
    }

    #[test]
    fn parameters_are_found_where_they_are_sql() {
        for (text, expected) in [
            ("SELECT * FROM t WHERE at >= $since AND id<$top", vec!["$since", "$top"]),
            ("$a$b", vec![]),
            ("SELECT '$no', \"$no\", 'it''s $no', $yes", vec!["$yes"]),
            (
                "SELECT 1 -- $no\n, $yes /* $no /* $no */ $no */ , $two",
                vec!["$yes", "$two"],
            ),
            ("SELECT E'\\'$no', $yes", vec!["$yes"]),
            ("SELECT $$ $no $$, $q$ $no $q$, $yes", vec!["$yes"]),
            ("SELECT a$no FROM ü$no WHERE $é = 'ü' AND $x", vec!["$é", "$x"]),
            ("SELECT 'open $no", vec![]),
            ("SELECT '\\', $yes", vec!["$yes"]),
            ("$", vec![]),
        ] {
            assert_eq!(names(DatabaseKind::Postgres, text), expected, "{text}");
        }
        for (text, expected) in [
            ("SELECT `a$no`, '\\'$no', \"\\\"$no\", $yes", vec!["$yes"]),
            ("SELECT `\\`, $yes", vec!["$yes"]),
            ("SELECT 1 # $no\n, 5--$yes -- $no\n, $two --\t$no", vec!["$yes", "$two"]),
            ("SELECT /* /* $no */ $yes, $$no", vec!["$yes", "$no"]),
            ("SELECT E'\\\\', $yes", vec!["$yes"]),
        ] {
            assert_eq!(names(DatabaseKind::Mysql, text), expected, "{text}");
        }
        assert_eq!(names(DatabaseKind::Sqlite, "$a$b"), ["$a"]);
        assert_eq!(names(DatabaseKind::Sqlite, "/* /* */ $a"), ["$a"]);
    }
}
