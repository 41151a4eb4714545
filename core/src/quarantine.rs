//! Quarantine: a row that did not make it, with everything needed to find out why.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;
use crate::ids::{LoadName, RunId};

/// The reason of a row that a replay could not read again as it was: it stays rejected, for the loads that it was rejected for.
pub const NOT_REPLAYABLE: &str = "not_replayable";

/// One rejected row. In the checkpoint store it is a line, a JSON object; columns that it has in common with others stand
/// there once, before them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The pipeline's name.
    pub pipeline: String,
    /// The run that rejected it.
    pub run: RunId,
    /// The source, as its key in the pipeline file.
    pub source: String,
    /// The object it was read from.
    pub file: String,
    /// The line its record starts on, from 1.
    pub line: u64,
    /// The column that could not be read, where one is to blame.
    pub column: Option<String>,
    /// The step whose rule named it, where one did.
    pub step: Option<String>,
    /// A short stable word: the rule's name, or `ragged`, `bad_utf8`, `nul_byte`, `bad_int`, `null_in_required`, ...
    pub reason: String,
    /// What exactly did not fit.
    pub detail: String,
    /// The record as it stood in the file, without its line end; bytes that are no UTF-8 as `\xNN`.
    pub raw: String,
    /// What a replay needs beside `raw`; `None` where an earlier release wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What makes a rejected row one that can be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The loads that it was rejected for: others may have it.
    pub loads: Vec<LoadName>,
    /// Those of `loads` that other rows have reached which a join made of it. Loaded again, these would be there twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached: Vec<LoadName>,
    /// The columns in the order of its fields; empty where a row names them itself, or where nobody does. `None` of a row
    /// that an earlier release put there and a replay has rejected again: the header of its file has them.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    pub columns: Option<Arc<[String]>>,
    /// Whether its text is that of a row of a database: its values with a tab between them, and `\N` for none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tabbed: bool,
    /// How it is kept.
    pub form: Form,
}

/// Many rows have the same columns, so in memory they share them.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(columns: &Option<Arc<[String]>>, into: S) -> Result<S::Ok, S::Error> {
        columns.as_deref().serialize(into)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Arc<[String]>>, D::Error> {
        Ok(Option::<Vec<String>>::deserialize(from)?.map(Arc::from))
    }
}

impl Reject {
    /// The values of a row whose text doesn't say by itself where one ends, in the order of its columns: of a database, or
    /// of a load. `None` of every other, and of one that isn't kept whole or as text.
    pub fn values(&self) -> Option<Vec<Option<String>>> {
        let kept = self.kept.as_ref()?;
        let value = |value: &str| (value != "\\N").then(|| value.to_owned());
        match &kept.form {
            Form::Values(values) => Some(values.clone()),
            Form::Raw if kept.tabbed => Some(self.raw.split('\t').map(value).collect()),
            Form::Raw | Form::Hex(_) | Form::Partly(_) => None,
        }
    }
}

/// The rows of a load that its checks have set aside before it was published: rejected rows of the run, which were staged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetAside {
    /// How many.
    pub rows: u64,
    /// By reason, `check:NAME`: that of the first check of the file that names the row. Together they are `rows`.
    pub reasons: BTreeMap<String, u64>,
    /// What the keys of their objects in the checkpoint store begin with.
    pub prefix: String,
    /// How many objects there are.
    pub objects: u32,
    /// What the rows come to, as they were when they were staged; `None` if some of them can't be read as their types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

impl SetAside {
    /// The keys of their objects in the checkpoint store, in order.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        (0..self.objects).map(|number| Self::key(&self.prefix, number))
    }

    /// The key of an object.
    pub fn key(prefix: &str, number: u32) -> String {
        format!("{prefix}{number}.rejects.jsonl.zst")
    }
}

/// How a row is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As `raw`, which holds exactly its bytes.
    Raw,
    /// As its bytes in hex, since `raw` shows some that are no text.
    Hex(String),
    /// As its values, of which `null` is none, since `raw` doesn't tell where one ends.
    Values(Vec<Option<String>>),
    /// Not all of it: why, for a person.
    Partly(String),
}

impl Form {
    /// Bytes as hex.
    pub fn hex(bytes: &[u8]) -> Self {
        Self::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The bytes of a row that is kept in hex; `None` if it is no hex.
    pub fn bytes_of(hex: &str) -> Option<Vec<u8>> {
        let digits = hex.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        digits
            .chunks_exact(2)
            .map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_hex() {
        let bytes: Vec<u8> = (0..=255).collect();
        let Form::Hex(hex) = Form::hex(&bytes) else {
            panic!("hex")
        };
        assert_eq!(Form::bytes_of(&hex), Some(bytes));
        for wrong in ["0", "0g", "é0"] {
            assert_eq!(Form::bytes_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rows_of_earlier_releases_are_read() {
        let text = r#"{"pipeline":"p","run":"r","source":"s","file":"a.csv","line":2,"column":null,"step":null,
            "reason":"ragged","detail":"","raw":"1,2"}"#;
        let reject: Reject = serde_json::from_str(text).expect("readable");
        assert_eq!(reject.kept, None);
        assert!(!serde_json::to_string(&reject).expect("plain data").contains("kept"));
    }
}
