//! Rows of a statement, as text with the place of each; and what of SQL that takes: parameters, types, places.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use futures::TryStreamExt as _;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, QueryPart};
use sqlx::postgres::{PgArguments, PgColumn, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _, ValueRef as _};
use tokio::time::sleep;

use super::server::{BELIEVED, LOOK, Server};
use crate::sink::postgres::connect::Lease;
use crate::source::database::feed::Feed;

/// A place is a page's number and a row's number on the page, which has 16 bits.
pub(super) const PAGE: u64 = 1 << 16;

/// Puts all rows of a statement into the feed, in a transaction that is open on `lease`.
pub(super) async fn read(
    server: Arc<Server>,
    mut lease: Lease,
    sql: String,
    params: Vec<QueryPart>,
    has_place: bool,
    mut feed: Feed,
) -> Result<Feed, Failure> {
    let doing = "reading rows";
    let pid = server.pid(&mut lease).await?;
    // Not kept: a statement of one chunk is no use to another.
    let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &params);
    let mut rows = query.fetch(lease.connection());
    let mut idle = 0;
    loop {
        let row = tokio::select! {
            biased;
            row = rows.try_next() => row.map_err(|error| server.failure(doing, error))?,
            () = sleep(LOOK) => {
                // A connection may be half open, and then nothing ever comes.
                idle = if server.is_at_work(pid).await { 0 } else { idle + 1 };
                if idle < BELIEVED {
                    continue;
                }
                return Err(Failure::transient(format!(
                    "{}: the server is not at work, and no rows come; the connection is given up",
                    server.place()
                )));
            }
        };
        let Some(row) = row else { break };
        idle = 0;
        put(&server, &row, has_place, &mut feed)?;
        feed.end().await?;
    }
    drop(rows);
    Ok(feed)
}

fn put(server: &Server, row: &PgRow, has_place: bool, feed: &mut Feed) -> Result<(), Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::transient(format!("{}: a row makes no sense: {error}", server.place()))
    };
    let mut first = 0;
    let mut place = 0;
    if has_place {
        let text: &str = row.try_get(0).map_err(|error| wrong(&error))?;
        place = place_of(text).ok_or_else(|| wrong(&format!("{text} is no place")))?;
        first = 1;
    }
    feed.begin(place);
    for at in first..row.len() {
        let value = row.try_get_raw(at).map_err(|error| wrong(&error))?;
        if value.is_null() {
            feed.value(None)?;
        } else {
            feed.value(Some(value.as_bytes().map_err(|error| wrong(&error))?))?;
        }
    }
    Ok(())
}

/// The query with a placeholder for each parameter. It is a text there, which the server reads as a value of its type.
pub(super) fn text(parts: &[QueryPart]) -> String {
    let mut number = 0;
    let mut sql = String::new();
    for part in parts {
        match part {
            QueryPart::Text(text) => sql.push_str(text),
            QueryPart::Param { data_type, .. } => {
                number += 1;
                let data_type = match data_type {
                    DataType::Int16 => "smallint".to_owned(),
                    DataType::Int32 => "integer".to_owned(),
                    DataType::Int64 => "bigint".to_owned(),
                    DataType::Float32 => "real".to_owned(),
                    DataType::Float64 => "double precision".to_owned(),
                    DataType::Boolean => "boolean".to_owned(),
                    DataType::Date32 => "date".to_owned(),
                    DataType::Timestamp(_, None) => "timestamp".to_owned(),
                    DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
                    DataType::Decimal128(precision, scale) => format!("numeric({precision},{scale})"),
                    _ => "text".to_owned(),
                };
                sql.push_str(&format!("(${number}::text::{data_type})"));
            }
        }
    }
    sql
}

/// Binds the parameters' values.
pub(super) fn bound<'q>(
    mut query: Query<'q, Postgres, PgArguments>,
    params: &[QueryPart],
) -> Query<'q, Postgres, PgArguments> {
    for part in params {
        if let QueryPart::Param { value, .. } = part {
            query = query.bind(value.clone());
        }
    }
    query
}

/// A column by the type that its values have here; what isn't one of the pipeline file's types is text.
pub(super) fn column(column: &PgColumn) -> Column {
    Column {
        name: column.name().to_owned(),
        data_type: match column.type_info().name() {
            "INT2" => DataType::Int16,
            "INT4" => DataType::Int32,
            "INT8" => DataType::Int64,
            "FLOAT4" => DataType::Float32,
            "FLOAT8" => DataType::Float64,
            "BOOL" => DataType::Boolean,
            "DATE" => DataType::Date32,
            "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "TIMESTAMPTZ" => haulage_plan::types::timestamptz(),
            _ => DataType::Utf8,
        },
        required: false,
    }
}

/// A place as PostgreSQL writes it.
pub(super) fn tid(place: u64) -> String {
    format!("({},{})", place / PAGE, place % PAGE)
}

fn place_of(tid: &str) -> Option<u64> {
    let (page, row) = tid.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(u64::from(page.parse::<u32>().ok()?) * PAGE + u64::from(row.parse::<u16>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_and_read() {
        for (place, text) in [
            (0, "(0,0)"),
            (7, "(0,7)"),
            (3 * PAGE + 1, "(3,1)"),
            (u64::from(u32::MAX) * PAGE, "(4294967295,0)"),
        ] {
            assert_eq!(tid(place), text);
            assert_eq!(place_of(text), Some(place));
        }
        for wrong in ["", "(1)", "(1,2", "(1,70000)", "(-1,2)"] {
            assert_eq!(place_of(wrong), None, "{wrong}");
        }
    }
}
