//! Watermarks: how far an incremental source has been read, so that the next run reads what is new since then.
//!
//! A watermark is a value of the source's watermark column, as text: `42`, `2013-01-31`, `2013-01-31 05:17:00`. It belongs
//! to a pipeline, a source and a target, and stands where the target is: it moves in the transaction that publishes the
//! rows, and back in the one that takes them back. So no run skips or repeats what another one has read.

use serde::{Deserialize, Serialize};

use crate::ids::LoadName;

/// The rows of an incremental source that a run reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The watermark column.
    pub column: String,
    /// Rows with this value and less are left out; `None` reads from the first on.
    pub after: Option<String>,
    /// Rows with more than this value are left for the next run; `None` if there are no rows.
    pub up_to: Option<String>,
}

/// What a publish makes of a watermark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// The load whose target it belongs to.
    pub load: LoadName,
    /// The source.
    pub source: String,
    /// The watermark column.
    pub column: String,
    /// What stood when the run was discovered, and what a revert puts back. Something else at the publish is an error:
    /// another run has read on from there.
    pub found: Option<String>,
    /// From where on this run has read. Another one than `found` if it replaces a published run: then it is that run's.
    pub low: Option<String>,
    /// What stands after the publish.
    pub to: Option<String>,
    /// What is read, as a short digest: connection, table or query with its parameters, column. A watermark of one thing
    /// says nothing about another.
    #[serde(default)]
    pub of: String,
}

/// A watermark as it stands at a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The destination's name; empty where it is the destination that says so.
    pub destination: String,
    /// The pipeline.
    pub pipeline: String,
    /// The source.
    pub source: String,
    /// The target.
    pub table: String,
    /// The watermark column.
    pub column: String,
    /// The value; `None` if nothing has been read.
    pub value: Option<String>,
    /// What was read, as in [`Advance::of`]; empty if it was set before anything was.
    #[serde(default)]
    pub of: String,
    /// The run that has replaced the table since without this source; empty if none has.
    #[serde(default)]
    pub replaced_by: String,
    /// The run that has published it; empty if somebody has set it, or a revert has put it back.
    pub run: String,
    /// Who has set it, if somebody has.
    pub by: String,
    /// When, as the destination writes a time.
    pub at: String,
}

/// Whether a text can be the value of a watermark: digits and the signs of numbers, dates and times. What passes can stand
/// between quotes in any SQL.
pub fn is_sound(value: &str) -> bool {
    let sign = |letter: char| letter.is_ascii_digit() || matches!(letter, '-' | '+' | ':' | '.' | ' ');
    !value.is_empty() && value.len() <= 64 && value.chars().all(sign) && value.chars().any(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_number_a_date_or_a_time() {
        for sound in [
            "0",
            "-42",
            "2013-01-31",
            "2013-01-31 05:17:00.123456",
            "2013-01-31 05:17:00+00",
        ] {
            assert!(is_sound(sound), "{sound}");
        }
        for not in [
            "",
            "infinity",
            "1' OR '1",
            "now()",
            "1;2",
            "--",
            "2013-01-31T05:17:00",
            "\u{661}",
        ] {
            assert!(!is_sound(not), "{not}");
        }
    }
}
