//! Quarantine: a row that did not make it, with everything needed to find out why.

use serde::{Deserialize, Serialize};

use crate::ids::RunId;

/// One rejected row, as it is kept in the checkpoint store (one JSON object a line).
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
}
