//! The window of an incremental source: rows above its watermark, less the lag, and up to the highest value that the
//! run's snapshot holds. Both ends are found once, at discovery, so that every chunk and every attempt reads the same.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::watermark::{Window, is_sound};
use haulage_plan::definition::{Column, Incremental, Lag, QueryPart};
use sqlx::AssertSqlSafe;

use super::{Lie, PostgresRows, Server, of_source};
use crate::sink::name::quote;
use crate::sink::postgres::connect::Lease;
use crate::source::database::incremental;

/// An increment of at most so many chunks' bytes is one chunk, which the server finds by an index if there is one.
const SMALL: u64 = 4;
/// Bytes of a row where the server knows no better.
const ROW_BYTES: u64 = 256;

/// How the server calls a type whose values can be a watermark.
fn kind(data_type: &DataType) -> Option<&'static str> {
    Some(match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => "bigint",
        DataType::Date32 => "date",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        _ => return None,
    })
}

/// A watermark as a value in SQL.
fn value(of: &str, kind: &str) -> Result<String, Failure> {
    match is_sound(of) {
        true => Ok(format!("'{of}'::{kind}")),
        false => Err(incremental::unsound(of)),
    }
}

/// The condition that holds for the rows of the window, if it isn't all of them.
pub(super) fn condition(window: &Window, found: &[Column]) -> Result<String, Failure> {
    let kind = kind_of(&window.column, found)?;
    let column = quote(&window.column);
    let mut all = Vec::new();
    if let Some(after) = &window.after {
        all.push(format!("{column} > {}", value(after, kind)?));
    }
    match &window.up_to {
        Some(up_to) => all.push(format!("{column} <= {}", value(up_to, kind)?)),
        None => all.push("false".to_owned()),
    }
    Ok(all.join(" AND "))
}

fn kind_of(name: &str, found: &[Column]) -> Result<&'static str, Failure> {
    let Some(column) = found.iter().find(|column| column.name == name) else {
        return Err(incremental::missing(name, found));
    };
    kind(&column.data_type).ok_or_else(|| incremental::unfit(name))
}

impl PostgresRows {
    /// The window after `low`. Permanent failure if the column can't be a watermark, or a row has no value there.
    pub(super) async fn window(
        &self,
        server: &Server,
        session: &mut Lease,
        how: &Incremental,
        low: Option<&str>,
    ) -> Result<Window, Failure> {
        let named = |failure| of_source(&self.name, failure);
        let found = self.found(server).await?;
        let kind = kind_of(&how.column, found).map_err(named)?;
        let column = quote(&how.column);
        let doing = "looking for what is new";
        let low_value = match low {
            Some(low) => value(low, kind).map_err(named)?,
            None => format!("NULL::{kind}"),
        };
        incremental::fits(&how.column, how.lag, kind != "bigint", kind == "date").map_err(named)?;
        let lagging = match how.lag {
            _ if low.is_none() => low_value.clone(),
            Lag::None => low_value.clone(),
            Lag::Count(count) => format!("greatest({low_value}::numeric - {count}, -9223372036854775808)::bigint"),
            // In whole units: a date less some hours is a date.
            Lag::Seconds(seconds) => format!("({low_value} - interval '{seconds} seconds')::{kind}"),
        };
        // What lies in the future waits for its time: a watermark there would leave out all that comes before.
        let most = match kind {
            "bigint" => "most".to_owned(),
            _ => format!("least(most, now()::{kind})"),
        };
        let sql = format!(
            "SELECT ({lagging})::text, greatest({low_value}, {most})::text, most::text,
                    EXISTS (SELECT FROM {from} WHERE {column} IS NULL)
             FROM (SELECT max({column})::{kind} AS most FROM {from}) AS found",
            from = self.from
        );
        // A query's parameters stand in it twice, under the same numbers.
        let asking = sqlx::query_as::<_, (Option<String>, Option<String>, Option<String>, bool)>(AssertSqlSafe(sql));
        let asking = self
            .params()
            .iter()
            .fold(asking.persistent(false), |asking, part| match part {
                QueryPart::Param { value, .. } => asking.bind(value.clone()),
                QueryPart::Text(_) => asking,
            });
        let pid = server.pid(session).await.map_err(named)?;
        let (after, up_to, most, has_null) = server
            .patiently(doing, pid, asking.fetch_one(session.connection()))
            .await
            .map_err(named)?;
        if has_null {
            return Err(named(incremental::without_value(&how.column)));
        }
        if let Some(odd) = most.as_deref().filter(|value| !is_sound(value)) {
            return Err(named(incremental::endless(&how.column, odd)));
        }
        Ok(Window {
            column: how.column.clone(),
            after,
            up_to,
        })
    }

    /// Whether what is new is so little of the table that one chunk reads it, and its bytes, as far as they can be told.
    pub(super) async fn is_small(
        &self,
        server: &Server,
        session: &mut Lease,
        window: &Window,
        lie: &Lie,
    ) -> Result<(bool, u64), Failure> {
        if window.after.is_none() {
            return Ok((false, lie.bytes));
        }
        let asking = sqlx::query_scalar("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass($1)");
        let asking = asking.bind(&self.from).fetch_one(session.connection());
        let of: i64 = server.soon("looking at its size", asking).await?;
        let row = if of > 0 {
            (lie.bytes / of as u64).max(1)
        } else {
            ROW_BYTES
        };
        // Counted no further than to where it is much.
        let few = SMALL.saturating_mul(self.declared.chunk_bytes) / row + 1;
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM {} WHERE {} LIMIT {few}) AS new",
            self.from,
            condition(window, self.found(server).await?)?
        );
        let asking = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).persistent(false);
        let pid = server.pid(session).await?;
        let asking = asking.fetch_one(session.connection());
        let rows = server.patiently("counting what is new", pid, asking).await?.max(0) as u64;
        if rows >= few {
            return Ok((false, lie.bytes));
        }
        let bytes = rows.saturating_mul(row);
        Ok((true, bytes))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::TimeUnit;

    use super::*;

    fn column(name: &str, data_type: DataType) -> Column {
        Column {
            name: name.to_owned(),
            data_type,
            required: false,
        }
    }

    #[test]
    fn a_window_in_sql_holds_nothing_but_values() {
        let found = [
            column("i\"d", DataType::Int32),
            column("at", DataType::Timestamp(TimeUnit::Microsecond, None)),
            column("name", DataType::Utf8),
        ];
        let window = |column: &str, after: Option<&str>, up_to: Option<&str>| Window {
            column: column.to_owned(),
            after: after.map(str::to_owned),
            up_to: up_to.map(str::to_owned),
        };
        let sql = |window| condition(&window, &found).map_err(|failure| failure.message);
        assert_eq!(
            sql(window("i\"d", Some("7"), Some("9"))).unwrap(),
            r#""i""d" > '7'::bigint AND "i""d" <= '9'::bigint"#
        );
        assert_eq!(
            sql(window("at", None, Some("2013-01-31 00:00:00"))).unwrap(),
            r#""at" <= '2013-01-31 00:00:00'::timestamp"#
        );
        assert_eq!(sql(window("at", None, None)).unwrap(), "false");
        assert!(
            sql(window("at", Some("x' OR '1"), None))
                .unwrap_err()
                .contains("can't be a watermark")
        );
        assert!(
            sql(window("name", None, None))
                .unwrap_err()
                .contains("no integer, date or time")
        );
        assert!(sql(window("nam", None, None)).unwrap_err().contains("`name`"));
    }
}
