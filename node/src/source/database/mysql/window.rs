//! The window of an incremental source: rows above its watermark, less the lag, and up to the highest value of a row that
//! there is at discovery and doesn't lie in the future. Chunks read in snapshots of their own, all of them later: a row that
//! is written meanwhile under a higher value is the next run's, and one that is committed late under a lower one needs a lag,
//! as anywhere. A row that was there and is changed meanwhile goes above the window, which only a window that is open reads
//! nevertheless: the rows of a load that replaces everything are all that there are.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::watermark::{Form, Window};
use haulage_plan::definition::{Column, Incremental, Lag};
use sqlx::AssertSqlSafe;

use super::server::{Server, Session};
use super::values::{bound, named};
use super::{MysqlRows, quote};
use crate::source::database::incremental::{self, Found, HELD_BACK, Values};

/// What the server casts a text to that is a value of a column, and what its values are.
#[derive(Debug, Clone, Copy)]
struct Kind {
    sql: &'static str,
    values: Values,
}

/// `None` of what can't be a watermark.
fn kind(data_type: &DataType) -> Option<Kind> {
    let (sql, values) = match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => ("SIGNED", Values::Numbers(19)),
        DataType::Decimal128(_, 0) => ("DECIMAL(38,0)", Values::Numbers(38)),
        DataType::Date32 => ("DATE", Values::Dates),
        DataType::Timestamp(_, None) => ("DATETIME(6)", Values::Times),
        DataType::Timestamp(_, Some(_)) => ("DATETIME(6)", Values::Moments),
        _ => return None,
    };
    Some(Kind { sql, values })
}

fn kind_of(name: &str, found: &[Column]) -> Result<Kind, Failure> {
    let Some(column) = found.iter().find(|column| column.name == name) else {
        return Err(incremental::missing(name, found));
    };
    kind(&column.data_type).ok_or_else(|| incremental::unfit(name))
}

/// A watermark as a value in SQL. Sessions are in UTC, and the server would take an offset for something else.
fn value(of: &str, column: &str, kind: Kind) -> Result<String, Failure> {
    let sql = kind.sql;
    Ok(match kind.values.read(of, column)? {
        Form::Time {
            plain,
            offset: Some(offset),
        } => format!("CAST(CAST('{plain}' AS {sql}) - INTERVAL {offset} SECOND AS {sql})"),
        Form::Time { plain, offset: None } => format!("CAST('{plain}' AS {sql})"),
        Form::Number | Form::Date => format!("CAST('{of}' AS {sql})"),
    })
}

/// The conditions that hold for the rows of the window.
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
        None => all.push("1 = 0".to_owned()),
    }
    Ok(all)
}

impl MysqlRows {
    /// The window after `low`, and how many rows it leaves out because they lie in the future. Permanent failure if the
    /// column can't be a watermark, or a row has no value there.
    pub(super) async fn window(
        &self,
        server: &Server,
        session: &mut Session,
        found: &[Column],
        how: &Incremental,
        (low, open): (Option<&str>, bool),
    ) -> Result<Found, Failure> {
        let kind = kind_of(&how.column, found)?;
        let (sql_kind, dates) = (kind.sql, kind.values == Values::Dates);
        incremental::fits(&how.column, how.lag, kind.values.are_times(), dates)?;
        let (column, from) = (quote(&how.column), self.rows());
        let low_value = low.map_or(Ok("NULL".to_owned()), |low| value(low, &how.column, kind))?;
        let after = match how.lag {
            Lag::None => low_value.clone(),
            Lag::Count(count) => format!("CAST({low_value} AS DECIMAL(38,0)) - {count}"),
            Lag::Seconds(seconds) => format!("CAST({low_value} - INTERVAL {seconds} SECOND AS {sql_kind})"),
        };
        // A date that is none sorts below all others.
        let none = match kind.values.are_times() {
            true => format!("{column} IS NULL OR {column} = 0"),
            false => format!("{column} IS NULL"),
        };
        // What the clock shows where such values are written; in UTC if the server doesn't know its own zone.
        let now = match kind.values {
            Values::Numbers(_) => "NULL".to_owned(),
            Values::Moments => "UTC_TIMESTAMP(6)".to_owned(),
            Values::Times | Values::Dates => format!(
                "CAST(coalesce(CONVERT_TZ(UTC_TIMESTAMP(6), '+00:00', @@GLOBAL.time_zone), UTC_TIMESTAMP(6)) AS {sql_kind})"
            ),
        };
        let sql = format!(
            "SELECT CAST({after} AS CHAR) AS after_value, CAST(found.highest AS CHAR) AS highest, CAST({now} AS CHAR) AS now_value,
                    CAST(coalesce(found.highest > {now}, 0) AS CHAR) AS ahead,
                    CAST(EXISTS (SELECT 1 FROM {from} WHERE {none}) AS CHAR) AS has_none,
                    CAST(coalesce(found.highest < {after}, 0) AS CHAR) AS is_below
             FROM (SELECT CAST(max({column}) AS {sql_kind}) AS highest FROM {from}) AS found"
        );
        let [after, mut highest, now, ahead, has_none, is_below] = self
            .ask(
                server,
                session,
                (sql, 2),
                ["after_value", "highest", "now_value", "ahead", "has_none", "is_below"],
            )
            .await?;
        let below = highest.clone().filter(|_| is_below.as_deref() == Some("1"));
        if has_none.as_deref() != Some("0") {
            return Err(incremental::without_value(&how.column));
        }
        // What lies in the future waits for its time: a watermark there would leave out all that comes before. It is always
        // the value of a row: one of the clock would leave out what is committed late, under an earlier time.
        let mut held_back = 0;
        let highest_where = |which: String| {
            format!("SELECT CAST(CAST(max({column}) AS {sql_kind}) AS CHAR) AS highest FROM {from} WHERE {which}")
        };
        if let Some(now) = &now {
            if ahead.as_deref() == Some("1") {
                let future = format!("{column} > CAST('{now}' AS {sql_kind})");
                if !open {
                    let sql = format!(
                        "SELECT CAST(count(*) AS CHAR) AS held FROM (SELECT 1 FROM {from} WHERE {future} LIMIT {HELD_BACK}) AS h"
                    );
                    let [held] = self.ask(server, session, (sql, 1), ["held"]).await?;
                    held_back = held.and_then(|held| held.parse().ok()).unwrap_or(0);
                }
                let sql = highest_where(format!("{column} <= CAST('{now}' AS {sql_kind})"));
                [highest] = self.ask(server, session, (sql, 1), ["highest"]).await?;
            }
            // Rows of this very second may still come, under the same time: they are the next run's, with those that are there.
            if let Some(edge) = highest
                .as_deref()
                .filter(|highest| !dates && incremental::is_open(highest, now))
            {
                let sql = highest_where(format!("{column} < CAST('{edge}' AS {sql_kind})"));
                [highest] = self.ask(server, session, (sql, 1), ["highest"]).await?;
            }
        }
        if let Some(odd) = highest.as_deref().filter(|value| Form::of(value).is_none()) {
            return Err(incremental::endless(&how.column, odd));
        }
        // Never back, though rows may have gone.
        let up_to = match &highest {
            Some(highest) => {
                let highest = format!("CAST('{highest}' AS {sql_kind})");
                let sql =
                    format!("SELECT CAST(greatest(coalesce({low_value}, {highest}), {highest}) AS CHAR) AS up_to");
                let [up_to] = self.ask(server, session, (sql, 0), ["up_to"]).await?;
                up_to
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

    /// What one row says, by the names of its columns; the query of the source, with its parameters, stands in it `times`.
    async fn ask<const N: usize>(
        &self,
        server: &Server,
        session: &mut Session,
        (sql, times): (String, usize),
        names: [&str; N],
    ) -> Result<[Option<String>; N], Failure> {
        let binds: Vec<_> = std::iter::repeat_n(&self.binds, times).flatten().cloned().collect();
        let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &binds);
        let asking = query.fetch_one(&mut session.connection);
        let row = named(&server.patiently(session.id, "looking for what is new", asking).await?);
        Ok(names.map(|name| {
            let value = row.iter().find(|(found, _)| found == name);
            value.and_then(|(_, value)| value.clone())
        }))
    }

    /// The rows in SQL: the table's name, or the query in brackets.
    fn rows(&self) -> String {
        match self.table {
            Some(_) => self.sql.clone(),
            None => format!("(\n{}\n) AS q", self.sql),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_in_sql_is_a_value_of_its_column() {
        let moments = kind(&haulage_plan::types::timestamptz()).unwrap();
        let times = kind(&DataType::Timestamp(
            datafusion::arrow::datatypes::TimeUnit::Microsecond,
            None,
        ))
        .unwrap();
        assert_eq!(
            value("2013-01-31 05:17:00+05:30", "at", moments).unwrap(),
            "CAST(CAST('2013-01-31 05:17:00' AS DATETIME(6)) - INTERVAL 19800 SECOND AS DATETIME(6))"
        );
        assert_eq!(
            value("2013-01-31 05:17:00", "at", times).unwrap(),
            "CAST('2013-01-31 05:17:00' AS DATETIME(6))"
        );
        for (text, kind) in [
            ("2013-01-31 05:17:00+05:30", times),
            ("2026-13-45", times),
            ("7", times),
            ("2013-01-31", kind(&DataType::Int32).unwrap()),
        ] {
            let refused = value(text, "at", kind).unwrap_err();
            assert!(
                refused.message.contains("can't be the watermark of column `at`"),
                "{refused}"
            );
        }
    }
}
