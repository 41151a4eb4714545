//! Arrow batches as arguments of SQLite's statements, and the multi-row INSERT that takes them.

use chrono::DateTime;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, LargeStringArray, PrimitiveArray, RecordBatch,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe};

use super::file::Writer;
use super::target::{Class, class};
use crate::sink::name::{quote, quote_all};

/// SQLite's limit for the parameters of one statement.
const PARAMETERS: usize = 32_766;
/// More rows in one statement save nothing.
const ROWS: usize = 256;

/// Why rows did not go in.
#[derive(Debug)]
pub(super) struct Error {
    /// The row of the batch, if one is to blame.
    pub(super) row: Option<u64>,
    pub(super) cause: Cause,
}

/// What is wrong.
#[derive(Debug)]
pub(super) enum Cause {
    /// A value that has no place in its column.
    Unfit(String, String),
    /// What SQLite said.
    Said(sqlx::Error),
}

enum Values {
    Null,
    Integer(Int64Array),
    Real(Float64Array),
    Text(LargeStringArray),
    Moment(PrimitiveArray<TimestampMicrosecondType>, bool),
    Blob(BinaryArray),
}

/// Inserts a batch; returns the rows and bytes that went in.
pub(super) async fn insert(writer: &mut Writer<'_>, table: &str, batch: &RecordBatch) -> Result<(u64, u64), Error> {
    let schema = batch.schema();
    let unfit = |row: Option<usize>, name: &str, why| Error {
        row: row.map(|row| row as u64),
        cause: Cause::Unfit(name.to_owned(), why),
    };
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let values = Values::new(array).map_err(|why| {
            // A column is cast as a whole; which of its values it was is looked for only now.
            let row = (0..array.len()).find(|row| Values::new(&array.slice(*row, 1)).is_err());
            unfit(row, field.name(), why)
        })?;
        columns.push(values);
    }
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let together = (PARAMETERS / names.len().max(1)).clamp(1, ROWS);
    let (mut rows, mut bytes) = (0, 0);
    let mut at = 0;
    while at < batch.num_rows() {
        let until = (at + together).min(batch.num_rows());
        let mut arguments = SqliteArguments::default();
        arguments.reserve((until - at) * columns.len(), 0);
        for row in at..until {
            for (column, name) in columns.iter().zip(&names) {
                bytes += column
                    .put(row, &mut arguments)
                    .map_err(|why| unfit(Some(row), name, why))?;
            }
        }
        let sql = statement(table, &names, until - at);
        let done = sqlx::query_with(AssertSqlSafe(sql), arguments)
            // Only the statement that comes again is worth keeping.
            .persistent(until - at == together)
            .execute(writer.connection())
            .await;
        match done {
            Ok(done) => rows += done.rows_affected(),
            Err(error) => return Err(one_by_one(writer, table, &names, &columns, at..until, error).await),
        }
        at = until;
    }
    Ok((rows, bytes))
}

/// Finds the row that a statement of several failed on, by inserting them one by one. What goes in is rolled back: the
/// statement's error ends the transaction.
async fn one_by_one(
    writer: &mut Writer<'_>,
    table: &str,
    names: &[&str],
    columns: &[Values],
    rows: std::ops::Range<usize>,
    error: sqlx::Error,
) -> Error {
    let whole = Error {
        row: None,
        cause: Cause::Said(error),
    };
    if !matches!(&whole.cause, Cause::Said(error) if of_a_row(error)) {
        return whole;
    }
    let sql = statement(table, names, 1);
    for row in rows {
        let mut arguments = SqliteArguments::default();
        if columns.iter().any(|column| column.put(row, &mut arguments).is_err()) {
            return whole;
        }
        let query = sqlx::query_with(AssertSqlSafe(sql.clone()), arguments);
        if let Err(error) = query.execute(writer.connection()).await {
            return Error {
                row: of_a_row(&error).then_some(row as u64),
                cause: Cause::Said(error),
            };
        }
    }
    whole
}

/// Whether SQLite blames a row: it is too large, breaks a constraint, or is of another type.
fn of_a_row(error: &sqlx::Error) -> bool {
    const TOO_BIG: u32 = 18;
    const CONSTRAINT: u32 = 19;
    const MISMATCH: u32 = 20;
    let sqlx::Error::Database(said) = error else {
        return false;
    };
    // The low byte is the code; the others say more exactly which.
    let code = said
        .code()
        .and_then(|code| code.parse::<u32>().ok())
        .map(|code| code & 0xff);
    matches!(code, Some(TOO_BIG | CONSTRAINT | MISMATCH))
}

fn statement(table: &str, names: &[&str], rows: usize) -> String {
    let row = format!("({})", vec!["?"; names.len()].join(","));
    format!(
        "INSERT INTO {} ({}) VALUES {}",
        quote(table),
        quote_all(names),
        vec![row; rows].join(",")
    )
}

impl Values {
    fn new(array: &ArrayRef) -> Result<Self, String> {
        let arrow = array.data_type();
        let Some(class) = class(arrow) else {
            return Err(format!("{arrow} has no place in SQLite"));
        };
        let zoned = match arrow {
            DataType::Timestamp(_, zone) => Some(zone.is_some()),
            _ => None,
        };
        let wanted = match (class, zoned) {
            (Class::Null, _) => return Ok(Self::Null),
            (Class::Integer { .. }, _) => DataType::Int64,
            (Class::Real, _) => DataType::Float64,
            (Class::Moment, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, None),
            (Class::Text | Class::Moment | Class::Decimal, _) => DataType::LargeUtf8,
            (Class::Blob, _) => DataType::Binary,
        };
        // A zone is only a label: the instant is kept in UTC, and casting it away would shift the clock.
        let array = match (arrow, zoned) {
            (DataType::Timestamp(unit, _), Some(true)) => cast(array, &DataType::Timestamp(*unit, Some("UTC".into())))?,
            _ => array.clone(),
        };
        let array = cast(&array, &wanted)?;
        Ok(match wanted {
            DataType::Int64 => Self::Integer(array.as_primitive().clone()),
            DataType::Float64 => Self::Real(array.as_primitive().clone()),
            DataType::Timestamp(_, _) => Self::Moment(array.as_primitive().clone(), zoned == Some(true)),
            DataType::Binary => Self::Blob(array.as_binary().clone()),
            _ => Self::Text(array.as_string().clone()),
        })
    }

    /// Adds one value; returns its size in bytes.
    fn put(&self, row: usize, arguments: &mut SqliteArguments) -> Result<u64, String> {
        let added = match self {
            Self::Integer(array) if array.is_valid(row) => arguments.add(array.value(row)).map(|()| 8),
            Self::Real(array) if array.is_valid(row) => {
                let value = array.value(row);
                // SQLite would store NULL.
                if value.is_nan() {
                    arguments.add("NaN").map(|()| 3)
                } else {
                    arguments.add(value).map(|()| 8)
                }
            }
            Self::Text(array) if array.is_valid(row) => {
                let value = array.value(row);
                arguments.add(value).map(|()| value.len() as u64)
            }
            Self::Moment(array, zoned) if array.is_valid(row) => {
                let text = moment(array.value(row), *zoned)?;
                let size = text.len() as u64;
                arguments.add(text).map(|()| size)
            }
            Self::Blob(array) if array.is_valid(row) => {
                let value = array.value(row);
                arguments.add(value).map(|()| value.len() as u64)
            }
            // Every guard above failed, so the value is NULL.
            _ => arguments.add(None::<i64>).map(|()| 1),
        };
        added.map_err(|error| error.to_string())
    }
}

fn cast(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, String> {
    if array.data_type() == wanted {
        return Ok(array.clone());
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(array, wanted, &options)
        .map_err(|error| format!("a value of type {} does not fit: {error}", array.data_type()))
}

/// An instant as text that sorts as time, in UTC. PostgreSQL reads it, too.
pub(crate) fn moment(microseconds: i64, zoned: bool) -> Result<String, String> {
    match DateTime::from_timestamp_micros(microseconds) {
        Some(time) => {
            let zone = if zoned { "+00:00" } else { "" };
            Ok(format!("{}{zone}", time.naive_utc().format("%Y-%m-%d %H:%M:%S%.f")))
        }
        None => Err(format!(
            "the time {microseconds} microseconds from 1970 is out of range"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_sort_as_time() {
        let times = [-1, 0, 250_000, 500_000, 500_001, 1_000_000];
        for zoned in [false, true] {
            let texts: Vec<String> = times
                .iter()
                .map(|time| moment(*time, zoned).expect("in range"))
                .collect();
            assert!(texts.is_sorted(), "{texts:?}");
        }
        assert_eq!(moment(0, true).as_deref(), Ok("1970-01-01 00:00:00+00:00"));
        assert_eq!(moment(-1, false).as_deref(), Ok("1969-12-31 23:59:59.999999"));
    }
}
