//! What checks look at beside the staged rows: what earlier runs have published, and what the load's table holds. A replay
//! stages a few rows of a run, and an increment may stage none: what such rows are is seen beside the others.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::scalar::ScalarValue;
use haulage_core::failure::Failure;
use haulage_core::watermark::Form;
use haulage_plan::definition::Mode;
use haulage_plan::{PROVENANCE, types};

use super::questions::{Asker, text};
use crate::sink::Dialect;
use crate::sink::files::RECORDS;
use crate::sink::name::{TableName, quote, quote_all};

/// The staged rows, in SQL.
pub(super) const STAGED: &str = "staged";

/// The newest value that there is already.
pub(super) enum Newest {
    /// So many seconds old; where it stands.
    Age(f64, String),
    /// There is none.
    None,
    /// It can't be looked for.
    Untold,
}

/// The load's table, as far as checks may look at it.
enum Table {
    /// It isn't there, or lacks a column.
    Missing,
    /// Nobody may look, or its destination can't be asked.
    Closed,
    /// It can be asked under this name, in SQL.
    Open(String),
}

impl Table {
    fn open(self) -> Option<String> {
        match self {
            Self::Open(table) => Some(table),
            Self::Missing | Self::Closed => None,
        }
    }
}

impl Asker<'_> {
    /// Whether the rows are some of those that another run has read.
    pub(super) fn is_replay(&self) -> bool {
        self.load.origin.is_some()
    }

    /// Whether the rows come to those of earlier runs that have read the source up to where this one began.
    pub(super) fn is_increment(&self) -> bool {
        !self.load.advances.is_empty() && self.load.mode != Mode::Replace
    }

    /// Where the destination's records are, in SQL, and how their names of tables compare.
    fn records(&self) -> (&'static str, &'static str) {
        match self.dialect() {
            Dialect::Postgres => ("haulage.loads", ""),
            Dialect::Sqlite => ("_haulage_loads", "COLLATE NOCASE"),
            Dialect::DataFusion => (RECORDS, ""),
        }
    }

    /// The published records of the load's table, as a condition in SQL.
    fn of_this_table(&self) -> String {
        let (records, collate) = self.records();
        let (run, load) = (text(self.load.run.as_str()), text(self.load.load.as_str()));
        format!(
            "state = 'published' AND run <> {run}
             AND target = (SELECT target FROM {records} WHERE run = {run} AND load = {load}) {collate}"
        )
    }

    /// The run that has read the rows first, and the replays of it, as a condition on records.
    fn of_this_run(&self) -> String {
        let origin = text(self.load.origin.as_ref().map_or("", |origin| origin.as_str()));
        format!("(run = {origin} OR origin = {origin})")
    }

    /// How many of the newest published runs of the table there are, up to so many, and the sum of their rows. A replay is
    /// none: it has a few rows of a run. Nor is an increment without a row.
    pub(super) async fn earlier_runs(&self, runs: u32) -> Result<(u64, f64), Failure> {
        let (records, _) = self.records();
        // What was replaced says nothing about how many there should be, least of all to what replaces it.
        let replaced = text(self.load.replaces.as_ref().map_or("", |run| run.as_str()));
        let mut but = format!(
            "origin IS NULL AND run <> {replaced}
             AND run NOT IN (SELECT replaces FROM {records} WHERE state = 'published' AND replaces IS NOT NULL)"
        );
        if self.is_replay() {
            but.push_str(&format!(" AND NOT {}", self.of_this_run()));
        }
        if self.is_increment() {
            but.push_str(" AND rows > 0");
        }
        let rest = format!(
            "FROM (SELECT rows AS n FROM {records} WHERE {} AND {but} ORDER BY sequence DESC LIMIT {runs}) AS earlier",
            self.of_this_table()
        );
        let [found, sum] = self.numbers(["count(*)", "sum(n)"], rest).await?;
        Ok((found as u64, sum))
    }

    /// Of a replay: how many rows of the run the table was given before.
    pub(super) async fn published_before(&self) -> Result<u64, Failure> {
        let (records, _) = self.records();
        let rest = format!(
            "FROM (SELECT rows AS n FROM {records} WHERE {} AND {}) AS earlier",
            self.of_this_table(),
            self.of_this_run()
        );
        let [rows] = self.numbers(["sum(n)"], rest).await?;
        Ok(rows as u64)
    }

    /// The load's table, for these columns.
    async fn table_with(&self, columns: &[String]) -> Result<Table, Failure> {
        let named = TableName::parse(&self.load.table)?;
        let bare = quote(&named.table);
        let names: Vec<String> = columns.iter().map(|column| text(column)).collect();
        let names = names.join(", ");
        let (table, may, has) = match self.dialect() {
            Dialect::DataFusion => return Ok(Table::Closed),
            Dialect::Postgres => {
                let schema = named.schema.map(|schema| format!("{}.", quote(&schema)));
                let table = format!("{}{bare}", schema.unwrap_or_default());
                let has = format!(
                    "FROM pg_attribute WHERE attrelid = to_regclass({}) AND NOT attisdropped AND attname IN ({names})",
                    text(&table)
                );
                (table, "has_column_privilege(attrelid, attnum, 'SELECT')", has)
            }
            Dialect::Sqlite => {
                let has = format!(
                    "FROM pragma_table_info({}) WHERE name COLLATE NOCASE IN ({names})",
                    text(&named.table)
                );
                (format!("main.{bare}"), "1 = 1", has)
            }
        };
        let may = format!("sum(CASE WHEN {may} THEN 1 ELSE 0 END)");
        let [found, open] = self.numbers(["count(*)", &may], has).await?;
        Ok(match columns.len() {
            all if (found as usize) < all => Table::Missing,
            all if (open as usize) < all => Table::Closed,
            _ => Table::Open(table),
        })
    }

    /// The staged rows with all that the table holds of a column, in SQL; `None` if it can't be asked.
    pub(super) async fn with_table(&self, column: &str) -> Result<Option<String>, Failure> {
        let name = quote(column);
        let table = self.table_with(&[column.to_owned()]).await?;
        Ok(table
            .open()
            .map(|table| format!("(SELECT {name} FROM {STAGED} UNION ALL SELECT {name} FROM {table}) AS {STAGED}")))
    }

    /// The rows among which these columns are to be unique, in SQL. Of rows with one key `newest` leaves one. Replayed rows
    /// that are appended come to those of their run, as far as these say that they are.
    pub(super) async fn unique_among(&self, columns: &[String]) -> Result<String, Failure> {
        if let (true, Mode::Merge, Some(newest)) = (self.before_newest, self.load.mode, &self.load.newest) {
            return Ok(format!(
                "(SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {} ORDER BY {} DESC NULLS LAST) AS __haulage_nth \
                 FROM {STAGED}) AS n WHERE __haulage_nth = 1) AS {STAGED}",
                quote_all(&self.load.key),
                quote(newest)
            ));
        }
        if !self.is_replay() || self.load.mode != Mode::Append {
            return Ok(STAGED.to_owned());
        }
        let [run, ..] = PROVENANCE;
        let needed: Vec<String> = columns.iter().cloned().chain([run.to_owned()]).collect();
        let Some(table) = self.table_with(&needed).await?.open() else {
            return Ok(STAGED.to_owned());
        };
        let (names, (records, _)) = (quote_all(columns), self.records());
        Ok(format!(
            "(SELECT {names} FROM {STAGED} UNION ALL SELECT {names} FROM {table} WHERE {run} IN (SELECT run FROM {records} \
             WHERE {} AND {})) AS {STAGED}",
            self.of_this_table(),
            self.of_this_run()
        ))
    }

    /// The newest value of a column of times that the table holds; of files, where it is the column by which the source is
    /// read on: up to where that was read.
    pub(super) async fn newest_there(&self, column: &str) -> Result<Newest, Failure> {
        let table = &self.load.table;
        if self.dialect() != Dialect::DataFusion {
            return Ok(match self.table_with(&[column.to_owned()]).await? {
                Table::Missing => Newest::None,
                Table::Closed => Newest::Untold,
                Table::Open(sql) => {
                    let age = self.age(column, &sql).await?;
                    age.map_or(Newest::None, |age| Newest::Age(age, format!(" in {table}")))
                }
            });
        }
        let mut newest = None;
        let mut told = false;
        for advance in self.load.advances.iter().filter(|advance| advance.column == column) {
            told = true;
            let Some(mark) = advance.to.as_ref().or(advance.found.as_ref()) else {
                continue;
            };
            match moment(mark) {
                Some(moment) => newest = newest.max(Some(moment)),
                None => return Ok(Newest::Untold),
            }
        }
        let Some(newest) = newest else {
            return Ok(if told { Newest::None } else { Newest::Untold });
        };
        let age = format!("CAST(extract(epoch FROM now()) AS double) - {:e}", newest as f64 / 1e6);
        let [age] = self.numbers([&age], "").await?;
        Ok(Newest::Age(age, ", up to which the source was read".to_owned()))
    }
}

/// A watermark as microseconds from 1970; `None` if it is no time.
fn moment(mark: &str) -> Option<i64> {
    let (plain, offset) = match Form::of(mark)? {
        Form::Number => return None,
        Form::Date => (mark, 0),
        Form::Time { plain, offset } => (plain, offset.unwrap_or_default()),
    };
    match types::value(&DataType::Timestamp(TimeUnit::Microsecond, None), plain).ok()? {
        ScalarValue::TimestampMicrosecond(moment, _) => moment?.checked_sub(i64::from(offset) * 1_000_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_a_moment() {
        for (mark, seconds) in [
            ("1970-01-02", Some(86_400)),
            ("1970-01-01 01:00:00.000000", Some(3_600)),
            ("1970-01-01 01:00:00+00", Some(3_600)),
            ("1970-01-01 01:00:00+01:30", Some(-1_800)),
            ("1970-01-01 01:00:00-02", Some(10_800)),
            ("42", None),
        ] {
            assert_eq!(moment(mark), seconds.map(|seconds: i64| seconds * 1_000_000), "{mark}");
        }
    }
}
