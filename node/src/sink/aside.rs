//! Staged rows that checks set aside before a load is published.
//!
//! A load that is sealed takes no rows, so which rows its checks name doesn't change any more, whoever asks. They are named
//! once, in a table of the destination beside the staging area; they are read from there and written to the checkpoint store
//! under keys of this attempt; and one transaction takes them out of the staging area and writes into the load's record how
//! many there were and where they are. What stands in the record has happened, and only once: an attempt that finds it there
//! has nothing to do, and objects that no record names count for nothing.

use haulage_core::event::CheckResult;
use haulage_core::quarantine::SetAside;
use serde::{Deserialize, Serialize};

use super::Expected;

/// What was set aside from a load, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Aside {
    /// The rows.
    pub set: SetAside,
    /// What the checks that may set rows aside have found, in the order of the file.
    pub checks: Vec<CheckResult>,
}

/// What is left of a load, for verify and publish, once rows have been set aside.
pub(super) fn left(expected: Expected, aside: Option<&Aside>) -> Expected {
    Expected {
        rows: expected.rows.saturating_sub(aside.map_or(0, |aside| aside.set.rows)),
        ..expected
    }
}

/// How many rows were set aside, behind what a verify says of the others.
pub(super) fn words(aside: Option<&Aside>) -> String {
    match aside.map_or(0, |aside| aside.set.rows) {
        0 => String::new(),
        rows => format!(", {rows} set aside by checks"),
    }
}

/// As it stands in a record. It is plain data, which serde_json has no reason to refuse.
pub(super) fn text(aside: &Aside) -> String {
    serde_json::to_string(aside).unwrap_or_default()
}

/// From a record.
pub(super) fn read(text: Option<String>) -> Result<Option<Aside>, sqlx::Error> {
    let read = |text: String| serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()));
    text.map(read).transpose()
}
