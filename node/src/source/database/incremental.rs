//! What can be wrong with an incremental source of any database.

use haulage_core::failure::Failure;
use haulage_core::watermark::Window;
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

/// What stands at the destination is no value.
pub(super) fn unsound(value: &str) -> Failure {
    Failure::permanent(format!(
        "`{value}` can't be a watermark; set another with `haulage state set`"
    ))
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
