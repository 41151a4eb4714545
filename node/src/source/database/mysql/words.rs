//! What a chunk's version says of a MySQL source, for a person: by which key its table is cut, and which values of it are the
//! chunk's. The version itself is for the reader of the chunk alone.

use super::Version;
use super::table::{Cut, Kind};
use crate::source::{EXCERPT, excerpt};

/// It in words; `None` if it is a version of another kind of source.
pub(in crate::source) fn in_words(version: &str) -> Option<String> {
    let Version { key, cut, from, to } = serde_json::from_str(version).ok()?;
    let mut words = match key.as_slice() {
        [] => "without a key".to_owned(),
        key => format!("by the key ({})", key.join(", ")),
    };
    if let Cut::Ranges(kind) = cut {
        let column = key.first().map(String::as_str).unwrap_or_default();
        let (from, to) = (
            from.map(|bound| shown(&kind, &bound)),
            to.map(|bound| shown(&kind, &bound)),
        );
        words.push_str(&match (from, to) {
            (None, None) => String::new(),
            (Some(from), None) => format!(", {column} from {from} on"),
            (None, Some(to)) => format!(", {column} below {to}"),
            (Some(from), Some(to)) => format!(", {column} from {from} to below {to}"),
        });
    }
    Some(words)
}

/// A bound as the table has it: texts and bytes are kept as hex digits.
fn shown(kind: &Kind, bound: &str) -> String {
    let bytes = || -> Option<Vec<u8>> {
        let pairs = bound.as_bytes().chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect()
    };
    match kind {
        Kind::Text { charset, .. } if charset.starts_with("utf8") || charset == "ascii" => match bytes() {
            Some(text) => format!("\"{}\"", excerpt(&text, EXCERPT)),
            None => bound.to_owned(),
        },
        Kind::Text { .. } | Kind::Bytes => format!("\\x{}", excerpt(bound.as_bytes(), EXCERPT)),
        Kind::Signed | Kind::Unsigned | Kind::Decimal(..) | Kind::Date | Kind::Datetime | Kind::Time => {
            bound.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_by_its_key_and_what_of_it_is_read() {
        let text = Kind::Text {
            charset: "utf8mb4".to_owned(),
            collation: "utf8mb4_bin".to_owned(),
        };
        let version = |key: &[&str], cut, from: Option<&str>, to: Option<&str>| Version {
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            cut,
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        for (version, words) in [
            (
                version(&["id"], Cut::Places { unsigned: true }, None, None),
                "by the key (id)",
            ),
            (version(&[], Cut::Whole, None, None), "without a key"),
            (
                version(&["day", "n"], Cut::Ranges(Kind::Date), None, Some("2024-01-01")),
                "by the key (day, n), day below 2024-01-01",
            ),
            (
                version(&["name"], Cut::Ranges(text), Some("C3A4"), Some("62")),
                "by the key (name), name from \"ä\" to below \"b\"",
            ),
            (
                version(&["b"], Cut::Ranges(Kind::Bytes), Some("00FF"), None),
                "by the key (b), b from \\x00FF on",
            ),
        ] {
            assert_eq!(in_words(&version.to_string()).as_deref(), Some(words));
        }
        for other in ["", "5", "\"abc\"", "0000-1 ab ctid", "sha256:00"] {
            assert_eq!(in_words(other), None, "{other}");
        }
    }
}
