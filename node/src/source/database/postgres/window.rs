//! The window of an incremental source: rows above its watermark, less the lag, and up to the highest value of a row of the
//! run's snapshot that doesn't lie in the future. Both ends are found once, at discovery, so that every chunk and every
//! attempt reads the same. A window that is open has no upper end: what it reads is read again, and the watermark stays.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::watermark::{Form, Window, is_sound};
use haulage_plan::definition::{Column, Incremental, Lag};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::rows::bound;
use super::{Lie, PostgresRows, Server};
use crate::sink::name::quote;
use crate::sink::postgres::connect::Lease;
use crate::source::database::incremental::{self, Found, HELD_BACK, Values};

/// An increment of at most so many chunks' bytes is one chunk, which the server finds by an index if there is one.
const SMALL: u64 = 4;
/// Bytes of a row where the server knows no better.
const ROW_BYTES: u64 = 256;

/// In which zone the server and its sessions write times without one: that of the database, of the configuration where it
/// may be seen, or of the server's log, which is set together with it. This session's own is another.
const ZONE: &str = "SELECT coalesce(
    (SELECT split_part(setting, '=', 2) FROM pg_db_role_setting, unnest(setconfig) AS setting WHERE setrole = 0
        AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND lower(setting) LIKE 'timezone=%' LIMIT 1),
    current_setting('log_timezone'))";
const MAY_SEE: &str = "has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
        AND has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
        AND NOT EXISTS (SELECT FROM pg_db_role_setting, unnest(setconfig) AS setting WHERE setrole = 0
        AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND lower(setting) LIKE 'timezone=%')";
const CONFIGURED: &str =
    "SELECT (SELECT setting FROM pg_catalog.pg_file_settings WHERE lower(name) = 'timezone' AND applied
    ORDER BY seqno DESC LIMIT 1)";

/// How the server calls a type whose values can be a watermark, and what they are.
#[derive(Debug, Clone, Copy)]
struct Kind {
    sql: &'static str,
    values: Values,
}

fn kind(data_type: &DataType) -> Option<Kind> {
    let (sql, values) = match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => ("bigint", Values::Numbers(19)),
        DataType::Date32 => ("date", Values::Dates),
        DataType::Timestamp(_, None) => ("timestamp", Values::Times),
        DataType::Timestamp(_, Some(_)) => ("timestamptz", Values::Moments),
        _ => return None,
    };
    Some(Kind { sql, values })
}

/// A watermark as a value in SQL.
fn value(of: &str, column: &str, kind: Kind) -> Result<String, Failure> {
    kind.values.read(of, column)?;
    Ok(format!("'{of}'::{}", kind.sql))
}

/// The conditions that hold for the rows of the window: none of them if it is all.
pub(super) fn conditions(window: &Window, found: &[Column]) -> Result<Vec<String>, Failure> {
    let kind = kind_of(&window.column, found)?;
    let column = quote(&window.column);
    let mut all = Vec::new();
    if let Some(after) = &window.after {
        all.push(format!("{column} > {}", value(after, &window.column, kind)?));
    }
    match &window.up_to {
        _ if window.open => {}
        Some(up_to) => all.push(format!("{column} <= {}", value(up_to, &window.column, kind)?)),
        None => all.push("false".to_owned()),
    }
    Ok(all)
}

fn kind_of(name: &str, found: &[Column]) -> Result<Kind, Failure> {
    let Some(column) = found.iter().find(|column| column.name == name) else {
        return Err(incremental::missing(name, found));
    };
    kind(&column.data_type).ok_or_else(|| incremental::unfit(name))
}

impl PostgresRows {
    /// The window after `low`, and how many rows it leaves out because they lie in the future. Permanent failure if the
    /// column can't be a watermark, or a row has no value there.
    pub(super) async fn window(
        &self,
        server: &Server,
        session: &mut Lease,
        how: &Incremental,
        (low, open): (Option<&str>, bool),
    ) -> Result<Found, Failure> {
        let kind = kind_of(&how.column, self.found(server).await?)?;
        let (column, sql_kind, from) = (quote(&how.column), kind.sql, &self.from);
        let (times, dates) = (kind.values.are_times(), kind.values == Values::Dates);
        let low_value = match low {
            Some(low) => value(low, &how.column, kind)?,
            None => format!("NULL::{sql_kind}"),
        };
        incremental::fits(&how.column, how.lag, times, dates)?;
        let lagging = match how.lag {
            _ if low.is_none() => low_value.clone(),
            Lag::None => low_value.clone(),
            Lag::Count(count) => format!("greatest({low_value}::numeric - {count}, -9223372036854775808)::bigint"),
            // In whole units: a date less some hours is a date.
            Lag::Seconds(seconds) => format!("({low_value} - interval '{seconds} seconds')::{sql_kind}"),
        };
        let now = match kind.values {
            Values::Numbers(_) => None,
            Values::Moments => self.text(server, session, "SELECT now()::text").await?,
            Values::Times | Values::Dates => self.local_time(server, session, sql_kind).await?,
        };
        let ahead = match &now {
            Some(now) => format!("coalesce(most > '{now}'::{sql_kind}, false)"),
            None => "false".to_owned(),
        };
        let sql = format!(
            "SELECT ({lagging})::text, most::text, {ahead}, EXISTS (SELECT FROM {from} WHERE {column} IS NULL),
                    coalesce(most < ({lagging}), false)
             FROM (SELECT max({column})::{sql_kind} AS most FROM {from}) AS found"
        );
        let row = self.ask(server, session, sql).await?;
        let wrong = |error| server.failure("looking for what is new", error);
        let after: Option<String> = row.try_get(0).map_err(wrong)?;
        let mut highest: Option<String> = row.try_get(1).map_err(wrong)?;
        let (ahead, has_null): (bool, bool) = (row.try_get(2).map_err(wrong)?, row.try_get(3).map_err(wrong)?);
        let below = highest.clone().filter(|_| row.try_get(4).unwrap_or(false));
        if has_null {
            return Err(incremental::without_value(&how.column));
        }
        if let Some(odd) = highest.as_deref().filter(|value| Form::of(value).is_none()) {
            return Err(incremental::endless(&how.column, odd));
        }
        // What lies in the future waits for its time: a watermark there would leave out all that comes before. It is always
        // the value of a row: one of the clock would leave out what is committed late, under an earlier time.
        let mut held_back = 0;
        let highest_where = |which: String| format!("SELECT max({column})::{sql_kind}::text FROM {from} WHERE {which}");
        if let Some(now) = &now {
            if ahead {
                let future = format!("{column} > '{now}'::{sql_kind}");
                if !open {
                    let sql =
                        format!("SELECT count(*) FROM (SELECT FROM {from} WHERE {future} LIMIT {HELD_BACK}) AS held");
                    let row = self.ask(server, session, sql).await?;
                    held_back = row.try_get::<i64, _>(0).map_err(wrong)?.max(0) as u64;
                }
                let sql = highest_where(format!("{column} <= '{now}'::{sql_kind}"));
                highest = self.ask(server, session, sql).await?.try_get(0).map_err(wrong)?;
            }
            // Rows of this very second may still come, under the same time: they are the next run's, with those that are there.
            if let Some(edge) = highest
                .as_deref()
                .filter(|highest| !dates && incremental::is_open(highest, now))
            {
                let sql = highest_where(format!("{column} < '{edge}'::{sql_kind}"));
                highest = self.ask(server, session, sql).await?.try_get(0).map_err(wrong)?;
            }
        }
        if let Some(odd) = highest.as_deref().filter(|value| !is_sound(value)) {
            return Err(incremental::endless(&how.column, odd));
        }
        // Never back, though rows may have gone.
        let up_to = match &highest {
            Some(highest) => {
                let sql = format!("SELECT greatest({low_value}, '{highest}'::{sql_kind})::text");
                self.text(server, session, &sql).await?
            }
            None => low.map(str::to_owned),
        };
        let window = Window {
            column: how.column.clone(),
            after,
            up_to,
            open,
        };
        Ok(Found {
            window: Some(window),
            held_back,
            below,
        })
    }

    /// What the clock shows where times have no zone.
    async fn local_time(&self, server: &Server, session: &mut Lease, kind: &str) -> Result<Option<String>, Failure> {
        let mut zone = self.text(server, session, ZONE).await?;
        let may_see = self.text(server, session, &format!("SELECT ({MAY_SEE})::text")).await?;
        if may_see.as_deref() == Some("true")
            && let Some(configured) = self.text(server, session, CONFIGURED).await?
        {
            zone = Some(configured);
        }
        let sql = format!("SELECT (now() AT TIME ZONE $1)::{kind}::text");
        let asking = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false);
        let asking = asking
            .bind(zone.unwrap_or("UTC".to_owned()))
            .fetch_one(session.connection());
        server.soon("asking for the time", asking).await
    }

    /// One text, of what the server knows by itself.
    async fn text(&self, server: &Server, session: &mut Lease, sql: &str) -> Result<Option<String>, Failure> {
        let asking = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).persistent(false);
        server
            .soon("looking for what is new", asking.fetch_one(session.connection()))
            .await
    }

    /// One row, over all rows of the source.
    async fn ask(&self, server: &Server, session: &mut Lease, sql: String) -> Result<PgRow, Failure> {
        // A query's parameters may stand in it twice, under the same numbers.
        let asking = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), self.params());
        let pid = server.pid(session).await?;
        let asking = asking.fetch_one(session.connection());
        server.patiently("looking for what is new", pid, asking).await
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
        let mut which = conditions(window, self.found(server).await?)?.join(" AND ");
        if which.is_empty() {
            "true".clone_into(&mut which);
        }
        let sql = format!(
            "SELECT count(*) FROM (SELECT FROM {} WHERE {which} LIMIT {few}) AS new",
            self.from
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
            open: false,
        };
        let sql = |window| {
            conditions(&window, &found)
                .map(|all| all.join(" AND "))
                .map_err(|failure| failure.message)
        };
        let open = Window {
            open: true,
            ..window("at", Some("2013-01-31"), None)
        };
        assert_eq!(sql(open).unwrap(), r#""at" > '2013-01-31'::timestamp"#);
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
                .contains("can't be the watermark")
        );
        assert!(
            sql(window("name", None, None))
                .unwrap_err()
                .contains("no integer, date or time")
        );
        assert!(sql(window("nam", None, None)).unwrap_err().contains("`name`"));
    }
}
