//! What is the same for incremental sources of all databases: which values can be a watermark, where a window ends, and
//! what can be wrong.

use haulage_core::failure::Failure;
use haulage_core::watermark::{Form, Window};
use haulage_plan::definition::{Column, Incremental, Lag};

/// A chunk of an incremental source has a window.
pub(super) fn guarded(how: Option<&Incremental>, window: Option<&Window>) -> Result<(), Failure> {
    match (how, window) {
        (Some(_), None) => Err(Failure::permanent(
            "the run's log doesn't say which rows are new: a coordinator of an earlier release led it; upgrade every \
             coordinator, and submit again",
        )),
        (Some(_), Some(_)) | (None, _) => Ok(()),
    }
}

/// The window that was found, and what is to be said of it.
#[derive(Default)]
pub(super) struct Found {
    pub(super) window: Option<Window>,
    /// As [`Increment`](crate::source::Increment) has it.
    pub(super) held_back: u64,
    /// As [`Increment`](crate::source::Increment) has it.
    pub(super) below: Option<String>,
}

/// There is no such column.
pub(super) fn missing(name: &str, found: &[Column]) -> Failure {
    let known = found.iter().map(|column| column.name.as_str());
    let help = haulage_plan::did_you_mean(name, known).unwrap_or_else(|| "name one that is there".to_owned());
    Failure::permanent(format!("it has no column `{name}` to read incrementally by; {help}"))
}

/// Its values have no order that only grows.
pub(super) fn unfit(name: &str) -> Failure {
    Failure::permanent(format!(
        "column `{name}` can't be a watermark: it is no integer, date or time, whose values only grow; name another column, \
         or cast it in a `query`"
    ))
}

/// What the values of a watermark column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    /// Whole numbers of at most so many digits.
    Numbers(usize),
    Dates,
    /// Times without a zone.
    Times,
    /// Times with one.
    Moments,
}

impl Values {
    pub(super) fn are_times(self) -> bool {
        !matches!(self, Self::Numbers(_))
    }

    /// A watermark by its form. Permanent failure if it is none of such a column: a database would make another value of
    /// it, or none, which reads everything again.
    pub(super) fn read<'v>(self, value: &'v str, column: &str) -> Result<Form<'v>, Failure> {
        let wrong = |what: &str| {
            Failure::permanent(format!(
                "`{value}` can't be the watermark of column `{column}`, {what}; set another with `haulage state set`"
            ))
        };
        let form = Form::of(value).ok_or_else(|| wrong("it is no number, and no date or time that there is"))?;
        match (self, form) {
            (Self::Numbers(digits), Form::Number) => {
                let number: Option<i128> = value.parse().ok();
                let least = i128::from(i64::MIN);
                let most = match digits {
                    38 => 10i128.pow(38) - 1,
                    _ => i128::from(i64::MAX),
                };
                match number.is_some_and(|number| (least..=most).contains(&number)) {
                    true => Ok(form),
                    false => Err(wrong("which has no numbers as large as that")),
                }
            }
            (Self::Dates, Form::Date) | (Self::Times | Self::Moments, Form::Date) => Ok(form),
            (Self::Times, Form::Time { offset: None, .. }) | (Self::Moments, Form::Time { .. }) => Ok(form),
            (Self::Times, Form::Time { .. }) => Err(wrong("which has no zone: leave the offset out")),
            (Self::Numbers(_), _) => Err(wrong("which is an integer")),
            (Self::Dates, _) => Err(wrong("which is a date")),
            (Self::Times | Self::Moments, Form::Number) => Err(wrong("which is a time")),
        }
    }
}

/// Rows that lie in the future are counted up to so many.
pub(crate) const HELD_BACK: u64 = 100_000;

/// Whether rows with a value may still come when `now` is the time of its database: one of whole seconds while the second
/// lasts, one of whole milliseconds while that does. `highest` is not above `now`, and both are as the database writes them,
/// in UTC or without a zone.
pub(super) fn is_open(highest: &str, now: &str) -> bool {
    let parts = |text: &str| -> Option<(String, u32)> {
        let text = text.strip_suffix("+00").unwrap_or(text);
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
        Some((seconds.to_owned(), format!("{fraction:0<6}").parse().ok()?))
    };
    let (Some((second, micros)), Some((now, now_micros))) = (parts(highest), parts(now)) else {
        return false;
    };
    let milli = micros % 1000 == 0 && micros / 1000 == now_micros / 1000;
    second == now && (micros == 0 || milli || micros >= now_micros)
}

/// Seconds of a day.
const DAY: u64 = 86_400;

/// Permanent failure if the lag is a time and the column none, or the other way round.
pub(super) fn fits(column: &str, lag: Lag, is_moment: bool, is_date: bool) -> Result<(), Failure> {
    let advice = match (lag, is_moment) {
        (Lag::None, _) | (Lag::Seconds(..DAY), true) if is_date => {
            "is a date, of which rows are still to come when the day's first are read; read a day again, with \
             `lag: 1day` and mode merge"
        }
        (Lag::None, _) | (Lag::Count(_), false) | (Lag::Seconds(_), true) => return Ok(()),
        (Lag::Seconds(_), false) => "is an integer, and `lag` is a time; write a number, as in `lag: 1000`",
        (Lag::Count(_), true) => "is a date or a time, and `lag` is a number; write a time, as in `lag: 10m`",
    };
    Err(Failure::permanent(format!("column `{column}` {advice}")))
}

/// Rows that no run would ever come to.
pub(super) fn without_value(column: &str) -> Failure {
    Failure::permanent(format!(
        "rows without a value in `{column}` would never be read; give them one, or leave them out with a `query`"
    ))
}

/// A value above all others.
pub(super) fn endless(column: &str, value: &str) -> Failure {
    Failure::permanent(format!(
        "the highest value of `{column}` is {value}, after which nothing could come; correct that row, or leave it out with \
         a `query`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_before_what_may_still_come() {
        let now = "2024-02-01 10:00:05.123456+00";
        for (highest, open) in [
            ("2024-02-01 10:00:05+00", true),
            ("2024-02-01 10:00:04+00", false),
            ("2024-02-01 10:00:05.123+00", true),
            ("2024-02-01 10:00:05.122+00", false),
            ("2024-02-01 10:00:05.1224+00", false),
            ("2024-02-01 10:00:05.123456+00", true),
            ("2024-02-01 10:00:05.123455+00", false),
            ("2024-02-01 10:00:05.120000", false),
            ("2024-02-01 10:00:05.000000", true),
        ] {
            assert_eq!(is_open(highest, now), open, "{highest}");
        }
    }

    #[test]
    fn a_watermark_is_a_value_of_its_column() {
        for (values, text, refused) in [
            (Values::Numbers(19), "42", ""),
            (Values::Numbers(19), "9223372036854775808", "as large"),
            (Values::Numbers(38), "18446744073709551615", ""),
            (Values::Numbers(19), "2013-01-31", "is an integer"),
            (Values::Dates, "2013-01-31", ""),
            (Values::Dates, "2013", "is a date"),
            (Values::Dates, "2013-01-31 05:00:00", "is a date"),
            (Values::Times, "2013-01-31", ""),
            (Values::Times, "2013-01-31 05:00:00.5", ""),
            (Values::Times, "2013-01-31 05:00:00+01", "leave the offset out"),
            (Values::Moments, "2013-01-31 05:00:00+01", ""),
            (Values::Moments, "2013", "is a time"),
            (Values::Moments, "2026-13-45", "that there is"),
            (Values::Moments, "now()", "that there is"),
        ] {
            match values.read(text, "at") {
                Ok(_) => assert_eq!(refused, "", "{text}"),
                Err(failure) => assert!(
                    !refused.is_empty() && failure.message.contains(refused) && failure.message.contains("`at`"),
                    "{text}: {failure}"
                ),
            }
        }
    }
}
