//! Rows that a pipeline which reads on would append a second time, or that none of its runs could read: what every run, or the
//! second one, would end with is refused when the file is read.

use datafusion::arrow::datatypes::DataType;

use crate::definition::{Definition, Incremental, Lag, Load, Mode, Source};
use crate::diagnostics::Report;

/// Seconds of a day.
const DAY: u64 = 86_400;

fn is_incremental(source: &Source) -> bool {
    source.kind.incremental().is_some()
}

/// Looks at a load and the source that feeds it.
pub(super) fn check(report: &mut Report, definition: &Definition, load: &Load, source: &str) {
    let Some(source) = definition.sources.get(source) else {
        return;
    };
    let appends = load.mode == Mode::Append;
    match source.kind.incremental() {
        Some(how) if appends => read_again(report, how, load, source),
        Some(_) => {}
        None => {
            let other = definition.sources.values().find(|source| is_incremental(source));
            if let Some(other) = other.filter(|_| appends) {
                let message = format!(
                    "load `{}` appends the rows of `{}`, which is not `incremental` as `{}` is: every run would append them again",
                    load.name, source.name, other.name
                );
                let help = "write `mode: merge` with a `key`, or `replace`, or give it a pipeline of its own";
                report.help(load.place, message, help);
            }
        }
    }
}

/// What is read a second time can't be appended. A watermark of dates has to be, and so nothing by dates can.
fn read_again(report: &mut Report, how: &Incremental, load: &Load, source: &Source) {
    let (column, name) = (&how.column, &source.name);
    // Without such a lag it is refused anyway.
    if is_date(source, how) && matches!(how.lag, Lag::Seconds(DAY..)) {
        let message = format!(
            "`{column}` of source `{name}` is a date, of which rows are still to come when the day's first are read, and load \
             `{}` appends, so it can't read that day again",
            load.name
        );
        report.help(
            how.place,
            message,
            "use mode merge, with `lag: 1day`, or read by a column of times or integers",
        );
    } else if how.lag != Lag::None {
        let message = format!(
            "source `{name}` has a `lag`, which reads rows a second time, and load `{}` appends",
            load.name
        );
        let help = format!("use mode merge, or leave the lag out where rows are committed in the order of `{column}`");
        report.help(how.place, message, help);
    }
}

fn is_date(source: &Source, how: &Incremental) -> bool {
    let columns = source.kind.columns().iter();
    let mut by = columns.filter(|column| column.name == how.column);
    by.any(|column| column.data_type == DataType::Date32)
}

/// Looks at a source by itself: whether its lag is one of its column, as far as that is declared.
pub(super) fn lag(report: &mut Report, source: &Source) {
    let Some(how) = source.kind.incremental() else {
        return;
    };
    let declared = source.kind.columns().iter().find(|column| column.name == how.column);
    let Some(declared) = declared else { return };
    let is_time = match declared.data_type {
        DataType::Date32 | DataType::Timestamp(_, _) => true,
        DataType::Int16 | DataType::Int32 | DataType::Int64 => false,
        // What it is in the database counts.
        _ => return,
    };
    let (what, help) = match (how.lag, is_time) {
        (Lag::Seconds(_), false) => (
            "is an integer, and `lag` is a time",
            "write a number, as in `lag: 1000`",
        ),
        (Lag::Count(_), true) => (
            "is a date or a time, and `lag` is a number",
            "write a time, as in `lag: 10m`",
        ),
        (Lag::None | Lag::Seconds(..DAY), true) if declared.data_type == DataType::Date32 => (
            "is a date, of which rows are still to come when the day's first are read",
            "read a day again, with `lag: 1day` and mode merge",
        ),
        (Lag::None, _) | (Lag::Count(_), false) | (Lag::Seconds(_), true) => return,
    };
    report.help(
        how.place,
        format!("`{}` of source `{}` {what}", how.column, source.name),
        help,
    );
}

/// Looks at all loads with their sources: a load that replaces reads everything, so what reads along with it can't append.
pub(super) fn together(report: &mut Report, definition: &Definition, fed: &[(&Load, String)]) {
    for (load, source) in fed.iter().filter(|(load, _)| load.mode == Mode::Append) {
        let with = fed
            .iter()
            .find(|(other, by)| by == source && other.mode == Mode::Replace);
        let (Some((other, _)), true) = (with, definition.sources.get(source).is_some_and(is_incremental)) else {
            continue;
        };
        let message = format!(
            "load `{}` appends the rows of `{source}` that are new, and load `{}` replaces, which reads all of them: they \
             would be appended again",
            load.name, other.name
        );
        let help = "use mode merge there, or read the source a second time under another name";
        report.help(load.place, message, help);
    }
}
