//! Names at a destination: a target as the pipeline file writes it, quoting, and the staging area's own name.
//!
//! Names are taken as they are written: `Flights` is not folded to `flights`. A part that holds a dot stands in double
//! quotes (`"odd.schema".t`).

use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use sha2::{Digest, Sha256};

/// A target: `table`, or `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableName {
    /// The schema, if the pipeline file names one.
    pub(crate) schema: Option<String>,
    /// The table.
    pub(crate) table: String,
}

impl TableName {
    /// Reads a target. Permanent failure if it has more than two parts, an empty one, or a quote that isn't closed.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let parts = split(text).filter(|parts| parts.iter().all(|part| !part.is_empty() && !part.contains('\0')));
        match parts.as_deref() {
            Some([table]) => Ok(Self {
                schema: None,
                table: table.clone(),
            }),
            Some([schema, table]) => Ok(Self {
                schema: Some(schema.clone()),
                table: table.clone(),
            }),
            _ => Err(Failure::permanent(format!(
                "table `{text}` is no table name; write `table` or `schema.table`, a part with a dot in double quotes"
            ))),
        }
    }
}

/// The parts between dots outside of double quotes; `None` if a quote isn't closed or text follows it.
fn split(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let part;
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut name = String::new();
            loop {
                let end = quoted.find('"')?;
                name.push_str(&quoted[..end]);
                quoted = &quoted[end + 1..];
                match quoted.strip_prefix('"') {
                    Some(more) => {
                        name.push('"');
                        quoted = more;
                    }
                    None => break,
                }
            }
            part = name;
            rest = quoted;
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            part = rest[..end].to_owned();
            rest = &rest[end..];
        }
        parts.push(part);
        if rest.is_empty() {
            return Some(parts);
        }
        rest = rest.strip_prefix('.')?;
    }
}

/// A name as an SQL identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names as a list of SQL identifiers.
pub(crate) fn quote_all<S: AsRef<str>>(names: &[S]) -> String {
    names
        .iter()
        .map(|name| quote(name.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Identifiers behind an alias: `s."a", s."b"`.
pub(crate) fn quote_all_of<S: AsRef<str>>(alias: &str, names: &[S]) -> String {
    names
        .iter()
        .map(|name| format!("{alias}.{}", quote(name.as_ref())))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `a."x" = b."x" AND ...` over the key columns.
pub(crate) fn same_key<S: AsRef<str>>(a: &str, b: &str, key: &[S]) -> String {
    key.iter()
        .map(|name| {
            let name = quote(name.as_ref());
            format!("{a}.{name} = {b}.{name}")
        })
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// The suffix of everything that belongs to this load of this run: 20 hex digits, the same in every attempt.
pub(crate) fn area(run: &RunId, load: &LoadName) -> String {
    let mut hash = Sha256::new();
    hash.update(run.as_str());
    hash.update([0]);
    hash.update(load.as_str());
    hash.finalize()
        .iter()
        .take(10)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// `name` cut at a character so that `suffix` still fits into `limit` bytes.
pub(crate) fn with_suffix(name: &str, suffix: &str, limit: usize) -> String {
    let mut end = name.len().min(limit.saturating_sub(suffix.len()));
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_targets() {
        for (text, expected) in [
            ("flights", Some((None, "flights"))),
            ("public.flights", Some((Some("public"), "flights"))),
            ("Odd Table", Some((None, "Odd Table"))),
            (r#""a.b"."c""d""#, Some((Some("a.b"), "c\"d"))),
            ("a.b.c", None),
            ("", None),
            ("a.", None),
            (r#""open"#, None),
            (r#""a"b"#, None),
        ] {
            let name = TableName::parse(text).ok();
            let parts = name.as_ref().map(|name| (name.schema.as_deref(), name.table.as_str()));
            assert_eq!(parts, expected, "{text}");
        }
    }

    #[test]
    fn a_suffix_never_splits_a_character() {
        assert_eq!(with_suffix("tabé", "_key", 8), "tab_key");
        assert_eq!(with_suffix("tab", "_key", 63), "tab_key");
    }
}
