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
    /// The watermark after the run, which is the value of a row, or that before it. Rows with more than this value are left
    /// for the next run, unless it is `open`; `None` if there are no rows up to now.
    pub up_to: Option<String>,
    /// Rows above it are read as well: every load takes a row a second time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
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
    /// Rows that lay in the future at discovery, and wait for their time; counted up to a bound.
    #[serde(default, skip_serializing_if = "is_none")]
    pub held_back: u64,
    /// The highest value of the source at discovery, if it lies below where the rows are read from: what has been refilled
    /// since is passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
}

impl Advance {
    /// What is to be said where a source seems to have been emptied and refilled below its watermark; `None` if it doesn't.
    /// `pipeline`, `table` and `to`, the destination, are those of the load.
    pub fn warning(&self, pipeline: &str, table: &str, to: &str) -> Option<String> {
        let (below, low) = (self.below.as_ref()?, self.low.as_ref()?);
        let (source, column) = (&self.source, &self.column);
        let which = format!("{pipeline} {source} {table}");
        let more = format!("--to {to} --column {column}");
        Some(format!(
            "source {source}: its highest `{column}` is {below}, below the watermark {low}, so no row of it is read; if it was \
             emptied and filled again, or restored from an older state, read everything again: haulage state forget {which} \
             {more}; or say from where on: haulage state set {which} VALUE {more}"
        ))
    }
}

fn is_none(rows: &u64) -> bool {
    *rows == 0
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

/// What a text is that can be a watermark: what databases themselves don't always ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'v> {
    /// A whole number.
    Number,
    /// A day that there is.
    Date,
    /// A day and a time that there are.
    Time {
        /// Without the offset.
        plain: &'v str,
        /// The offset from UTC that stands behind it, in seconds.
        offset: Option<i32>,
    },
}

impl<'v> Form<'v> {
    /// Reads `42`, `2013-01-31`, `2013-01-31 05:17:00.5` or `2013-01-31 05:17:00+01`; `None` of anything else, also of a
    /// 30th of February.
    pub fn of(value: &'v str) -> Option<Self> {
        if !is_sound(value) {
            return None;
        }
        if is_number(value) {
            return Some(Self::Number);
        }
        let Some((date, time)) = value.split_once(' ') else {
            return is_date(value).then_some(Self::Date);
        };
        let clock = time.split(['+', '-']).next().unwrap_or_default();
        let offset = match time.get(clock.len()..) {
            None | Some("") => None,
            Some(text) => Some(offset(text)?),
        };
        let plain = value.get(..date.len() + 1 + clock.len())?;
        (is_date(date) && is_clock(clock)).then_some(Self::Time { plain, offset })
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    (all && digits.contains(&text.len()))
        .then(|| text.parse().ok())
        .flatten()
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(year), Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (Some(year), Some(month), Some(day)) = (number(year, 4..=6), number(month, 2..=2), number(day, 2..=2)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    };
    year > 0 && (1..=12).contains(&month) && (1..=days).contains(&day)
}

fn is_clock(text: &str) -> bool {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let parts: Option<Vec<u32>> = clock.split(':').map(|part| number(part, 2..=2)).collect();
    let fits = match parts.as_deref() {
        Some([hour, minute]) => *hour < 24 && *minute < 60 && !text.contains('.'),
        Some([hour, minute, second]) => *hour < 24 && *minute < 60 && *second < 60,
        _ => false,
    };
    fits && number(fraction, 1..=6).is_some()
}

/// Seconds of `+01`, `-03:30` or `+01:02:03`.
fn offset(text: &str) -> Option<i32> {
    let parts: Option<Vec<u32>> = text.get(1..)?.split(':').map(|part| number(part, 2..=2)).collect();
    let seconds = match parts?.as_slice() {
        [hours] => hours * 3600,
        [hours, minutes] if *minutes < 60 => hours * 3600 + minutes * 60,
        [hours, minutes, seconds] if *minutes < 60 && *seconds < 60 => hours * 3600 + minutes * 60 + seconds,
        _ => return None,
    };
    let seconds = i32::try_from(seconds).ok().filter(|seconds| *seconds < 86_400)?;
    Some(if text.starts_with('-') { -seconds } else { seconds })
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

    #[test]
    fn only_what_there_is_has_a_form() {
        let time = |plain, offset| Some(Form::Time { plain, offset });
        for (text, expected) in [
            ("42", Some(Form::Number)),
            ("-42", Some(Form::Number)),
            ("2013", Some(Form::Number)),
            ("2013-01-31", Some(Form::Date)),
            ("2012-02-29", Some(Form::Date)),
            ("2013-02-29", None),
            ("1900-02-29", None),
            ("2026-13-45", None),
            ("2013-1-31", None),
            ("0000-01-01", None),
            ("2013-01-31 05:17", time("2013-01-31 05:17", None)),
            ("2013-01-31 05:17:00.5", time("2013-01-31 05:17:00.5", None)),
            (
                "2013-01-31 05:17:00.123456+00",
                time("2013-01-31 05:17:00.123456", Some(0)),
            ),
            ("2013-01-31 05:17:00-03:30", time("2013-01-31 05:17:00", Some(-12_600))),
            ("2013-01-31 24:00:00", None),
            ("2013-01-31 05:60:00", None),
            ("2013-01-31 05:17:00 +01", None),
            ("2013-01-31 05:17:00+1", None),
            ("2013-01-31 5:17", None),
            ("2013-01-31 05:17:00.1234567", None),
            ("4.2", None),
            ("1-2", None),
            ("infinity", None),
        ] {
            assert_eq!(Form::of(text), expected, "{text}");
        }
    }
}
