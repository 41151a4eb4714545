//! The window of an incremental source: rows above its watermark, less the lag, and up to the highest value that there is
//! at discovery. Chunks read in snapshots of their own, all of them later: a row that is written meanwhile under a higher
//! value is the next run's, and one that is committed late under a lower one needs a lag, as anywhere.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::watermark::{Window, is_sound};
use haulage_plan::definition::{Column, Incremental, Lag};
use sqlx::AssertSqlSafe;

use super::server::{Server, Session};
use super::values::{bound, named};
use super::{MysqlRows, quote};
use crate::source::database::incremental;

/// What the server casts a text to that is a value of such a column; `None` of what can't be a watermark.
fn kind(data_type: &DataType) -> Option<&'static str> {
    Some(match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => "SIGNED",
        DataType::Decimal128(_, 0) => "DECIMAL(38,0)",
        DataType::Date32 => "DATE",
        DataType::Timestamp(_, _) => "DATETIME(6)",
        _ => return None,
    })
}

fn is_moment(kind: &str) -> bool {
    kind.starts_with("DATE")
}

fn kind_of(name: &str, found: &[Column]) -> Result<&'static str, Failure> {
    let Some(column) = found.iter().find(|column| column.name == name) else {
        return Err(incremental::missing(name, found));
    };
    kind(&column.data_type).ok_or_else(|| incremental::unfit(name))
}

/// A watermark as a value in SQL.
fn value(of: &str, kind: &str) -> Result<String, Failure> {
    match is_sound(of) {
        true => Ok(format!("CAST('{of}' AS {kind})")),
        false => Err(incremental::unsound(of)),
    }
}

/// The conditions that hold for the rows of the window.
pub(super) fn conditions(window: &Window, found: &[Column]) -> Result<Vec<String>, Failure> {
    let kind = kind_of(&window.column, found)?;
    let column = quote(&window.column);
    let mut all = Vec::new();
    if let Some(after) = &window.after {
        all.push(format!("{column} > {}", value(after, kind)?));
    }
    all.push(match &window.up_to {
        Some(up_to) => format!("{column} <= {}", value(up_to, kind)?),
        None => "false".to_owned(),
    });
    Ok(all)
}

impl MysqlRows {
    /// The window after `low`. Permanent failure if the column can't be a watermark, or a row has no value there.
    pub(super) async fn window(
        &self,
        server: &Server,
        session: &mut Session,
        found: &[Column],
        how: &Incremental,
        low: Option<&str>,
    ) -> Result<Window, Failure> {
        let kind = kind_of(&how.column, found)?;
        incremental::fits(&how.column, how.lag, is_moment(kind), kind == "DATE")?;
        let column = quote(&how.column);
        let low_value = low.map_or(Ok("NULL".to_owned()), |low| value(low, kind))?;
        let after = match how.lag {
            Lag::None => low_value.clone(),
            Lag::Count(count) => format!("CAST(CAST({low_value} AS DECIMAL(38,0)) - {count} AS CHAR)"),
            Lag::Seconds(seconds) => format!("CAST({low_value} - INTERVAL {seconds} SECOND AS {kind})"),
        };
        // A date that is none sorts below all others.
        let none = match is_moment(kind) {
            true => format!("{column} IS NULL OR {column} = 0"),
            false => format!("{column} IS NULL"),
        };
        let from = self.rows();
        // What lies in the future waits for its time: a watermark there would leave out all that comes before.
        let most = match is_moment(kind) {
            true => format!("least(max({column}), CAST(UTC_TIMESTAMP(6) AS {kind}))"),
            false => format!("max({column})"),
        };
        let sql = format!(
            "SELECT CAST({after} AS CHAR) AS after_value,
                    CAST(greatest(coalesce({low_value}, found.most), coalesce(found.most, {low_value})) AS CHAR) AS up_to,
                    CAST(EXISTS (SELECT 1 FROM {from} WHERE {none}) AS CHAR) AS has_none
             FROM (SELECT {most} AS most FROM {from}) AS found"
        );
        // A query's parameters stand in it twice.
        let binds: Vec<_> = self.binds.iter().chain(&self.binds).cloned().collect();
        let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &binds);
        let asking = query.fetch_one(&mut session.connection);
        let row = named(&server.patiently(session.id, "looking for what is new", asking).await?);
        let text = |name: &str| {
            let value = row.iter().find(|(found, _)| found == name);
            value.and_then(|(_, value)| value.clone())
        };
        if text("has_none").as_deref() != Some("0") {
            return Err(incremental::without_value(&how.column));
        }
        let up_to = text("up_to");
        if let Some(odd) = up_to.as_deref().filter(|value| !is_sound(value)) {
            return Err(incremental::endless(&how.column, odd));
        }
        Ok(Window {
            column: how.column.clone(),
            after: text("after_value"),
            up_to,
        })
    }

    /// The rows in SQL: the table's name, or the query in brackets.
    fn rows(&self) -> String {
        match self.table {
            Some(_) => self.sql.clone(),
            None => format!("(\n{}\n) AS q", self.sql),
        }
    }
}
