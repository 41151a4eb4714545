//! Rows of a COPY with the place of each; and what of SQL that takes: parameters, types and their forms, places.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use futures::TryStreamExt as _;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, QueryPart};
use sqlx::postgres::{PgArguments, PgColumn, Postgres};
use sqlx::query::Query;
use sqlx::{Column as _, TypeInfo as _};
use tokio::time::sleep;

use super::copied::{Copied, Wrong};
use super::server::{BELIEVED, LOOK, Server};
use crate::sink::postgres::connect::Lease;
use crate::source::database::feed::Feed;
use crate::source::database::form::Form;

/// A place is a page's number and a row's number on the page, which has 16 bits.
pub(super) const PAGE: u64 = 1 << 16;

/// Puts all rows of a binary COPY into the feed, in a transaction that is open on `lease`. Its rows have `columns` values,
/// and their place in front of them if they have one.
pub(super) async fn read(
    server: Arc<Server>,
    mut lease: Lease,
    sql: String,
    has_place: bool,
    columns: usize,
    mut feed: Feed,
) -> Result<Feed, Failure> {
    let doing = "reading rows";
    let wrong = |what: &str| Failure::transient(format!("{}: the rows make no sense: {what}", server.place()));
    if sql.contains('\0') {
        // The statement would end there.
        return Err(Failure::permanent(
            "a NUL byte can't stand in a query or in a parameter",
        ));
    }
    let pid = server.pid(&mut lease).await?;
    let copying = lease.connection().copy_out_raw(&sql);
    let mut rows = server.patiently(doing, pid, copying).await?;
    let mut copied = Copied::new(columns + usize::from(has_place));
    let mut idle = 0;
    loop {
        let bytes = tokio::select! {
            biased;
            bytes = rows.try_next() => bytes.map_err(|error| server.failure(doing, error))?,
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
        idle = 0;
        let Some(bytes) = bytes else { break };
        copied.push(&bytes);
        loop {
            let mut values = match copied.next() {
                Ok(Some(values)) => values,
                Ok(None) => break,
                Err(Wrong::Long) => return Err(feed.too_long()),
                Err(Wrong::Odd(what)) => return Err(wrong(what)),
            };
            let place = match has_place {
                true => values.next().flatten().and_then(place_of),
                false => Some(0),
            };
            feed.begin(place.ok_or_else(|| wrong("a row has no place"))?);
            for value in values {
                feed.value(value)?;
            }
            feed.end().await?;
        }
    }
    match copied.finish() {
        Ok(()) => {}
        Err(Wrong::Long) => return Err(feed.too_long()),
        Err(Wrong::Odd(what)) => return Err(wrong(what)),
    }
    drop(rows);
    Ok(feed)
}

/// In which form values of a type are asked for, by the number that the type has on every server, if they go to a column of
/// `declared`; what has no form here comes as text. Of floats the text has digits that a float of another width would lose.
/// `whole` says whether times are whole microseconds, which a server before version 10 may have been built without.
pub(super) fn form_of(number: u32, declared: &DataType, whole: bool) -> Form {
    match number {
        16 => Form::Bool,
        20 => Form::Int8,
        21 => Form::Int2,
        23 => Form::Int4,
        700 if *declared == DataType::Float32 => Form::Float4,
        701 if *declared == DataType::Float64 => Form::Float8,
        1082 => Form::Date,
        1083 if whole => Form::Time,
        1114 if whole => Form::Timestamp,
        1184 if whole => Form::Zoned,
        1700 => Form::Numeric,
        2950 => Form::Uuid,
        _ => Form::Text,
    }
}

/// The query with a placeholder for each parameter.
pub(super) fn text(parts: &[QueryPart]) -> String {
    written(parts, |number, _| format!("${number}"))
}

/// The query with the values of its parameters in it: a COPY takes none.
pub(super) fn literal(parts: &[QueryPart]) -> String {
    // This way of writing a text means the same in every setting of a server.
    written(parts, |_, value| {
        format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
    })
}

/// The query with something for each parameter, by its number and value. It is a text there, which the server reads as a
/// value of its type.
fn written(parts: &[QueryPart], mut put: impl FnMut(usize, &str) -> String) -> String {
    let mut number = 0;
    let mut sql = String::new();
    for part in parts {
        match part {
            QueryPart::Text(text) => sql.push_str(text),
            QueryPart::Param { data_type, value, .. } => {
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
                sql.push_str(&format!("({}::text::{data_type})", put(number, value)));
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

/// Of a page, 4 bytes, and a row on it.
fn place_of(tid: &[u8]) -> Option<u64> {
    let (page, row) = tid.split_first_chunk::<4>()?;
    let row = u16::from_be_bytes(row.try_into().ok()?);
    Some(u64::from(u32::from_be_bytes(*page)) * PAGE + u64::from(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_and_read() {
        for (place, text, bytes) in [
            (0, "(0,0)", [0, 0, 0, 0, 0, 0]),
            (7, "(0,7)", [0, 0, 0, 0, 0, 7]),
            (3 * PAGE + 258, "(3,258)", [0, 0, 0, 3, 1, 2]),
            (u64::from(u32::MAX) * PAGE, "(4294967295,0)", [255, 255, 255, 255, 0, 0]),
        ] {
            assert_eq!(tid(place), text);
            assert_eq!(place_of(&bytes), Some(place));
            assert_eq!(place_of(&bytes[..5]), None);
        }
    }

    #[test]
    fn values_of_parameters_are_texts_in_any_setting() {
        let param = |data_type, value: &str| QueryPart::Param {
            name: "p".into(),
            data_type,
            value: value.into(),
        };
        let parts = [
            QueryPart::Text("SELECT ".into()),
            param(DataType::Int32, "5"),
            QueryPart::Text(", ".into()),
            param(DataType::Utf8, "\\'; DROP TABLE t; --"),
        ];
        assert_eq!(text(&parts), "SELECT ($1::text::integer), ($2::text::text)");
        assert_eq!(
            literal(&parts),
            r"SELECT (E'5'::text::integer), (E'\\''; DROP TABLE t; --'::text::text)"
        );
    }
}
