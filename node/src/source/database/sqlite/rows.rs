//! Rows of a statement, each value as text, whatever type SQLite has it in.

use datafusion::arrow::datatypes::DataType;
use futures::TryStreamExt as _;
use haulage_core::failure::Failure;
use haulage_plan::definition::QueryPart;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use crate::source::database::feed::Feed;

/// Row ids as places: in the same order, from 0.
const LOWEST: u64 = 1 << 63;

/// The query with `?N` for its parameters.
pub(super) fn query(parts: &[QueryPart]) -> String {
    let mut number = 0;
    let text = parts.iter().map(|part| match part {
        QueryPart::Text(text) => text.clone(),
        QueryPart::Param { .. } => {
            number += 1;
            format!("?{number}")
        }
    });
    text.collect()
}

/// Why rows don't come any more.
pub(super) enum Stopped {
    Failure(Failure),
    Sqlite(sqlx::Error),
}

/// Puts all rows of a statement into the feed, in a transaction that is open on `connection`.
pub(super) async fn read(
    mut connection: SqliteConnection,
    sql: String,
    bounds: &[i64],
    params: &[QueryPart],
    has_place: bool,
    mut feed: Feed,
) -> Result<Feed, Stopped> {
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for bound in bounds {
        query = query.bind(*bound);
    }
    for part in params {
        let QueryPart::Param { data_type, value, .. } = part else {
            continue;
        };
        query = match data_type {
            DataType::Int16 | DataType::Int32 | DataType::Int64 => query.bind(value.parse::<i64>().ok()),
            DataType::Float32 | DataType::Float64 => query.bind(value.parse::<f64>().ok()),
            DataType::Boolean => query.bind(value == "true"),
            // As SQLite's own functions write a time.
            DataType::Timestamp(_, _) => query.bind(value.replace('T', " ").replace('Z', "")),
            _ => query.bind(value.clone()),
        };
    }
    let mut rows = query.fetch(&mut connection);
    while let Some(row) = rows.try_next().await.map_err(Stopped::Sqlite)? {
        put(&row, has_place, &mut feed)?;
        feed.end().await.map_err(Stopped::Failure)?;
    }
    drop(rows);
    Ok(feed)
}

fn put(row: &SqliteRow, has_place: bool, feed: &mut Feed) -> Result<(), Stopped> {
    let mut first = 0;
    let mut place = 0;
    if has_place {
        place = place_of(row.try_get_unchecked::<i64, _>(0).map_err(Stopped::Sqlite)?);
        first = 1;
    }
    feed.begin(place);
    for at in first..row.len() {
        let value = row.try_get_raw(at).map_err(Stopped::Sqlite)?;
        let kind = if value.is_null() {
            "NULL".into()
        } else {
            value.type_info().name().to_owned()
        };
        let put = match kind.as_str() {
            "NULL" => feed.value(None),
            "INTEGER" => {
                let value: i64 = row.try_get_unchecked(at).map_err(Stopped::Sqlite)?;
                feed.value(Some(value.to_string().as_bytes()))
            }
            "REAL" => {
                let value: f64 = row.try_get_unchecked(at).map_err(Stopped::Sqlite)?;
                // The shortest text that reads back as the same number; SQLite's own has 15 digits.
                feed.value(Some(format!("{value:?}").as_bytes()))
            }
            "BLOB" => {
                let value: Vec<u8> = row.try_get_unchecked(at).map_err(Stopped::Sqlite)?;
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                feed.value(Some(format!("\\x{hex}").as_bytes()))
            }
            // As bytes: SQLite takes what is no UTF-8 as text, and quarantine shows it.
            _ => {
                let value: Vec<u8> = row.try_get_unchecked(at).map_err(Stopped::Sqlite)?;
                feed.value(Some(&value))
            }
        };
        put.map_err(Stopped::Failure)?;
    }
    Ok(())
}

/// The place of a row.
pub(super) fn place_of(row_id: i64) -> u64 {
    row_id as u64 ^ LOWEST
}

/// The row id of a place.
pub(super) fn row_id_of(place: u64) -> i64 {
    (place ^ LOWEST) as i64
}

/// A row is known by its id; there is no line below 0.
pub(super) fn line_of(place: u64) -> u64 {
    u64::try_from(row_id_of(place)).unwrap_or(0)
}
