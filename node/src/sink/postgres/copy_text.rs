//! Values in the text format of COPY, for loads of which a column's type has to read texts itself: an `inet`, an array, an
//! interval. The format is one for all columns, so the others are written as the texts that their types read back exactly.
//!
//! ```text
//! row: values with tabs between them, \N is NULL, and a line end; \b \f \n \r \t \v and \\ stand for what they are called
//! ```

use std::fmt::Display;
use std::io::Write as _;

use chrono::{DateTime, Datelike, NaiveDate, Timelike};
use datafusion::arrow::array::Array;

use super::encode::{Values, uuid};

/// Appends a value.
pub(super) fn put(values: &Values, row: usize, buffer: &mut Vec<u8>) -> Result<(), String> {
    match values {
        Values::Bool(array) if array.is_valid(row) => buffer.push(if array.value(row) { b't' } else { b'f' }),
        Values::Int2(array) if array.is_valid(row) => written(buffer, array.value(row)),
        Values::Int4(array) if array.is_valid(row) => written(buffer, array.value(row)),
        Values::Int8(array) if array.is_valid(row) => written(buffer, array.value(row)),
        // The fewest digits that are read as the same number.
        Values::Float4(array) if array.is_valid(row) => written(buffer, format_args!("{:e}", array.value(row))),
        Values::Float8(array) if array.is_valid(row) => written(buffer, format_args!("{:e}", array.value(row))),
        Values::Numeric(array, _) if array.is_valid(row) => written(buffer, array.value_as_string(row)),
        Values::Text(array) if array.is_valid(row) => text(buffer, array.value(row)),
        Values::LargeText(array) if array.is_valid(row) => text(buffer, array.value(row)),
        Values::TextView(array) if array.is_valid(row) => text(buffer, array.value(row)),
        Values::Jsonb(array) if array.is_valid(row) => text(buffer, array.value(row)),
        Values::Uuid(array) if array.is_valid(row) => {
            let value = u128::from_be_bytes(uuid(array.value(row))?);
            written(buffer, format_args!("{value:032x}"));
        }
        Values::Bytea(array) if array.is_valid(row) => {
            buffer.extend_from_slice(br"\\x");
            array
                .value(row)
                .iter()
                .for_each(|byte| written(buffer, format_args!("{byte:02x}")));
        }
        Values::Date(array) if array.is_valid(row) => {
            let days = array.value(row);
            let day = NaiveDate::from_epoch_days(days)
                .ok_or_else(|| format!("the date {days} days from 1970 is out of range"))?;
            date(buffer, day, "");
        }
        Values::Time(array) if array.is_valid(row) => {
            let micros = array.value(row);
            let seconds = micros.div_euclid(1_000_000);
            let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let fraction = micros.rem_euclid(1_000_000);
            written(
                buffer,
                format_args!("{hours:02}:{minutes:02}:{seconds:02}.{fraction:06}"),
            );
        }
        Values::Timestamp(array) if array.is_valid(row) => {
            let micros = array.value(row);
            let moment = DateTime::from_timestamp_micros(micros)
                .ok_or_else(|| format!("the time {micros} microseconds from 1970 is out of range"))?
                .naive_utc();
            let (hours, minutes, seconds) = (moment.hour(), moment.minute(), moment.second());
            let fraction = moment.and_utc().timestamp_subsec_micros();
            // A column without a zone leaves it alone.
            let time = format!(" {hours:02}:{minutes:02}:{seconds:02}.{fraction:06}+00");
            date(buffer, moment.date(), &time);
        }
        // Every guard above failed, so the value is NULL.
        _ => buffer.extend_from_slice(br"\N"),
    }
    Ok(())
}

fn written(buffer: &mut Vec<u8>, value: impl Display) {
    // A vector takes whatever is written.
    let _taken: std::io::Result<()> = write!(buffer, "{value}");
}

/// The year before the first is the first before Christ.
fn date(buffer: &mut Vec<u8>, day: NaiveDate, time: &str) {
    let (year, month, day) = (day.year(), day.month(), day.day());
    match year > 0 {
        true => written(buffer, format_args!("{year:04}-{month:02}-{day:02}{time}")),
        false => written(buffer, format_args!("{:04}-{month:02}-{day:02}{time} BC", 1 - year)),
    }
}

fn text(buffer: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        let escaped = match byte {
            8 => b'b',
            9 => b't',
            10 => b'n',
            11 => b'v',
            12 => b'f',
            13 => b'r',
            b'\\' => b'\\',
            byte => {
                buffer.push(byte);
                continue;
            }
        };
        buffer.extend_from_slice(&[b'\\', escaped]);
    }
}
