//! What is asked of a destination: one query over `staged` each, in SQL that both understand but for the few words of a
//! [`Dialect`].

use std::time::Duration;

use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_plan::types;

use super::decimal;
use crate::sink::files::RECORDS;
use crate::sink::name::{TableName, quote, quote_all};
use crate::sink::sqlite::moment;
use crate::sink::{Destination, Dialect, Expected, LoadContext};

/// Values that a result names as examples, and how long each may be.
const EXAMPLES: usize = 3;
const EXAMPLE: usize = 40;

/// The square of this has room in double precision, and so has that of its inverse.
const LARGE: f64 = 1e100;

/// The numbers of a column, for arithmetic.
pub(super) struct Spread {
    /// How many there are. NaN is none.
    pub(super) all: u64,
    /// Of these, how many are finite.
    pub(super) count: u64,
    /// A number divided by `scale`, in SQL. Of numbers that are far apart the small ones are 0.
    number: String,
    /// A number divided by `fine`, in SQL, for distances between two: no number is lost.
    single: String,
    /// Where there is one that is finite, in SQL.
    finite: String,
    /// 1, unless arithmetic with the numbers as they are would leave double precision.
    pub(super) scale: f64,
    /// The same, for a distance between two of them.
    pub(super) fine: f64,
}

/// Who asks, of which rows.
pub(super) struct Asker<'a> {
    pub(super) destination: &'a dyn Destination,
    pub(super) load: &'a LoadContext,
    pub(super) expected: Expected,
}

impl Asker<'_> {
    fn dialect(&self) -> Dialect {
        self.destination.dialect()
    }

    /// Asks for some values of one row, of which each is cast to text.
    async fn ask(&self, values: &[&str], rest: &str) -> Result<Vec<Option<String>>, Failure> {
        let question = select(values, rest, |value| format!("CAST({value} AS text)"));
        self.destination.ask(self.load, self.expected, &question).await
    }

    /// The same, where every value is a number; none is 0.
    async fn numbers<const N: usize>(&self, values: [&str; N], rest: &str) -> Result<[f64; N], Failure> {
        let question = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => select(&values, rest, |value| format!("CAST({value} AS text)")),
            // Its cast cuts a number after 15 digits, which is another number.
            Dialect::Sqlite => select(&values, rest, |value| format!("printf('%!.17g', {value})")),
        };
        let found = self.destination.ask(self.load, self.expected, &question).await?;
        let mut numbers = [0.0; N];
        for (number, text) in numbers.iter_mut().zip(found) {
            let Some(text) = text else { continue };
            *number = text
                .parse()
                .map_err(|_| Failure::permanent(format!("the destination gave `{text}` for a number")))?;
        }
        Ok(numbers)
    }

    pub(super) async fn without_value(&self, columns: &[String]) -> Result<u64, Failure> {
        let null: Vec<String> = columns
            .iter()
            .map(|column| format!("{} IS NULL", quote(column)))
            .collect();
        let rest = format!("FROM staged WHERE {}", null.join(" OR "));
        let [rows] = self.numbers(["count(*)"], &rest).await?;
        Ok(rows as u64)
    }

    /// Values that are there more than once, the rows that have them, and one of the values.
    pub(super) async fn doubles(&self, columns: &[String]) -> Result<(u64, u64, Option<String>), Failure> {
        let names = quote_all(columns);
        let some: Vec<String> = columns
            .iter()
            .map(|column| format!("{} IS NOT NULL", quote(column)))
            .collect();
        let shown: Vec<String> = columns
            .iter()
            .map(|column| format!("CAST({} AS text)", quote(column)))
            .collect();
        let rest = format!(
            "FROM (SELECT count(*) AS n, min({}) AS example FROM staged WHERE {} GROUP BY {names} HAVING count(*) > 1) AS d",
            shown.join(" || ', ' || "),
            some.join(" AND "),
        );
        let found = self.ask(&["count(*)", "sum(n)", "min(example)"], &rest).await?;
        let number = |at: usize| {
            found
                .get(at)
                .cloned()
                .flatten()
                .and_then(|text| text.parse::<u64>().ok())
        };
        let example = found.get(2).cloned().flatten();
        Ok((
            number(0).unwrap_or_default(),
            number(1).unwrap_or_default(),
            example.as_deref().map(shorten),
        ))
    }

    /// Rows for which a condition is true, and some of the values of a column there, to go behind a word.
    pub(super) async fn outside(&self, column: &str, condition: &str) -> Result<(u64, String), Failure> {
        let [rows] = self
            .numbers(["count(*)"], &format!("FROM staged WHERE {condition}"))
            .await?;
        if rows == 0.0 {
            return Ok((0, String::new()));
        }
        let together = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => "string_agg",
            Dialect::Sqlite => "group_concat",
        };
        // By value first, and then as texts: 10 comes behind 9.
        let rest = format!(
            "FROM (SELECT substr(CAST(v AS text), 1, {EXAMPLE} + 1) AS shown
                   FROM (SELECT DISTINCT {} AS v FROM staged WHERE {condition} ORDER BY v LIMIT {EXAMPLES}) AS e) AS s",
            quote(column)
        );
        let examples = self.ask(&[&format!("{together}(shown, '\n')")], &rest).await?;
        let examples = examples.into_iter().next().flatten().unwrap_or_default();
        let examples: Vec<String> = examples.lines().take(EXAMPLES).map(shorten).collect();
        Ok((rows as u64, format!(": {}", examples.join(", "))))
    }

    pub(super) fn accepted(&self, column: &str, values: &[String]) -> Result<String, Failure> {
        let values: Result<Vec<String>, Failure> = values.iter().map(|value| self.literal(column, value)).collect();
        Ok(format!("{} NOT IN ({})", quote(column), values?.join(", ")))
    }

    pub(super) fn out_of_range(&self, column: &str, min: Option<&str>, max: Option<&str>) -> Result<String, Failure> {
        let mut outside = Vec::new();
        for (end, sign) in [(min, "<"), (max, ">")] {
            let Some(end) = end else { continue };
            outside.push(match (self.dialect(), self.decimal(column, end)?) {
                (Dialect::Sqlite, Some(end)) => decimal::beyond(&quote(column), sign, &end),
                _ => format!("{} {sign} {}", quote(column), self.literal(column, end)?),
            });
        }
        // It has no place between any two numbers, and dialects put it at either end.
        outside.extend(self.is_nan(column));
        Ok(outside.join(" OR "))
    }

    pub(super) fn dangling(&self, column: &str, table: &str, to: &str) -> Result<String, Failure> {
        let named = TableName::parse(table)?;
        let (name, to, bare) = (quote(column), quote(to), quote(&named.table));
        Ok(match (self.dialect(), named.schema.as_deref()) {
            (Dialect::Postgres, schema) => {
                let schema = schema.map_or_else(String::new, |schema| format!("{}.", quote(schema)));
                format!(
                    "{name} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {schema}{bare} AS other WHERE other.{to} = \
                     staged.{name})"
                )
            }
            (Dialect::DataFusion, _) => {
                return Err(Failure::permanent(no_references(&self.load.load)));
            }
            // As a target may be written. It builds one index for IN, and none for EXISTS.
            (Dialect::Sqlite, None | Some("main" | "public")) => {
                // A name in quotes that is no column's is a text there, unless it says whose column it would be.
                format!("{name} NOT IN (SELECT other.{to} FROM main.{bare} AS other WHERE other.{to} IS NOT NULL)")
            }
            (Dialect::Sqlite, Some(schema)) => {
                return Err(Failure::permanent(format!(
                    "SQLite has no schema {schema}; write {} alone",
                    named.table
                )));
            }
        })
    }

    pub(super) fn beyond(&self, column: &str, low: f64, high: f64) -> String {
        let value = self.number(column);
        let known = self.is_number(column);
        format!("{known} AND ({value} < {low:e} OR {value} > {high:e})")
    }

    /// How old the newest value of a column of times is, in seconds by the destination's clock. A time without a zone is
    /// taken for one in UTC.
    pub(super) async fn age(&self, column: &str) -> Result<Option<f64>, Failure> {
        let newest = format!("max({})", quote(column));
        let age = match self.dialect() {
            Dialect::Postgres => format!("(extract(epoch FROM now()) - extract(epoch FROM {newest}))"),
            Dialect::DataFusion => {
                let epoch = |moment: &str| format!("CAST(extract(epoch FROM {moment}) AS double)");
                let newest = format!("CAST({newest} AS timestamp)");
                format!("({} - {})", epoch("now()"), epoch(&newest))
            }
            Dialect::Sqlite => format!("((julianday('now') - julianday({newest})) * 86400.0)"),
        };
        let found = self.ask(&[&age], "FROM staged").await?.into_iter().next().flatten();
        Ok(found.and_then(|seconds| seconds.parse().ok()))
    }

    /// How far ahead of the destination's clock a column's newest value may be: as far as clocks are apart, or zones, where
    /// a value has none.
    pub(super) fn ahead(&self, column: &str) -> Duration {
        match self.type_of(column) {
            Some(DataType::Timestamp(_, Some(_))) => Duration::from_secs(5 * 60),
            _ => Duration::from_secs(24 * 3600),
        }
    }

    /// How many of the newest published runs of the table there are, up to so many, and the sum of their rows. A replay is
    /// none: it has a few rows of a run.
    pub(super) async fn earlier_runs(&self, runs: u32) -> Result<(u64, f64), Failure> {
        let (records, collate) = match self.dialect() {
            Dialect::Postgres => ("haulage.loads", ""),
            Dialect::Sqlite => ("_haulage_loads", "COLLATE NOCASE"),
            Dialect::DataFusion => (RECORDS, ""),
        };
        let (run, load) = (text(self.load.run.as_str()), text(self.load.load.as_str()));
        // What was replaced says nothing about how many there should be, least of all to what replaces it.
        let replaced = text(self.load.replaces.as_ref().map_or("", |run| run.as_str()));
        let rest = format!(
            "FROM (SELECT rows AS n FROM {records} WHERE state = 'published' AND origin IS NULL AND run <> {run}
                   AND run <> {replaced}
                   AND run NOT IN (SELECT replaces FROM {records} WHERE state = 'published' AND replaces IS NOT NULL)
                   AND target = (SELECT target FROM {records} WHERE run = {run} AND load = {load}) {collate}
                   ORDER BY sequence DESC LIMIT {runs}) AS earlier"
        );
        let [found, sum] = self.numbers(["count(*)", "sum(n)"], &rest).await?;
        Ok((found as u64, sum))
    }

    /// The numbers of a column.
    pub(super) async fn spread(&self, column: &str) -> Result<Spread, Failure> {
        let (number, known) = (self.number(column), self.is_number(column));
        // Neither infinite nor NaN, whichever end that stands at.
        let finite = format!("{known} AND {number} BETWEEN {:e} AND {:e}", f64::MIN, f64::MAX);
        let [all] = self
            .numbers(["count(*)"], &format!("FROM staged WHERE {known}"))
            .await?;
        let largest = format!("max(abs({number}))");
        let rest = format!("FROM staged WHERE {finite}");
        let [count, largest] = self.numbers(["count(*)", &largest], &rest).await?;
        let (mut single, mut fine) = (number.clone(), 1.0);
        // Half of the way between the largest number and the smallest is one again.
        if largest > LARGE {
            fine = 4.0;
            single = format!("(CASE WHEN abs({number}) < 1e-300 THEN 0.0 ELSE {number} / {fine:e} END)");
        }
        let (mut number, mut scale) = (number, 1.0);
        // Squares and sums of such numbers are none any more.
        if largest > LARGE || (largest > 0.0 && largest < 1.0 / LARGE) {
            scale = largest;
            let least = largest / LARGE;
            number = format!("(CASE WHEN abs({number}) < {least:e} THEN 0.0 ELSE {number} / {scale:e} END)");
        }
        Ok(Spread {
            all: all as u64,
            count: count as u64,
            number,
            single,
            finite,
            scale,
            fine,
        })
    }

    /// The mean of a column of numbers.
    pub(super) async fn mean(&self, of: &Spread) -> Result<f64, Failure> {
        let rest = format!("FROM staged WHERE {}", of.finite);
        let [mean] = self.numbers([&format!("avg({})", of.number)], &rest).await?;
        Ok(mean)
    }

    /// The sum of the squares of the distances from a value.
    pub(super) async fn sum_of_squares(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let distance = format!("({} - {from:e})", of.number);
        // A distance whose square has no place is none.
        let square = format!("CASE WHEN abs({distance}) < 1e-150 THEN 0.0 ELSE {distance} * {distance} END");
        let rest = format!("FROM staged WHERE {}", of.finite);
        let [sum] = self.numbers([&format!("sum({square})")], &rest).await?;
        Ok(sum)
    }

    /// The mean of the distances from a value.
    pub(super) async fn mean_deviation(&self, of: &Spread, from: f64) -> Result<f64, Failure> {
        let rest = format!("FROM staged WHERE {}", of.finite);
        let mean = format!("avg(abs({} - {from:e}))", of.number);
        let [mean] = self.numbers([&mean], &rest).await?;
        Ok(mean)
    }

    /// A quantile of a column of numbers, or of their distances from a value, divided by `fine`; between two neighbours it is
    /// interpolated.
    pub(super) async fn quantile(&self, of: &Spread, from: Option<f64>, at: f64) -> Result<f64, Failure> {
        let (number, known) = (&of.single, &of.finite);
        let value = from.map_or_else(|| number.clone(), |from| format!("abs({number} - {from:e})"));
        let [quantile] = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => {
                let quantile = format!("percentile_cont({at}) WITHIN GROUP (ORDER BY {value})");
                self.numbers([&quantile], &format!("FROM staged WHERE {known}")).await?
            }
            // It has no such function: the value at a place between two counts as much as it is near.
            Dialect::Sqlite => {
                let rest = format!(
                    "FROM (SELECT {value} AS v, row_number() OVER (ORDER BY {value}) - 1 AS i, count(*) OVER () AS n
                           FROM staged WHERE {known}) AS o"
                );
                let nearness = format!("sum(v * max(0.0, 1.0 - abs(i - {at} * (n - 1))))");
                self.numbers([&nearness], &rest).await?
            }
        };
        Ok(quantile)
    }

    /// What a user's own query gives.
    pub(super) async fn custom(&self, query: &str) -> Result<Option<String>, Failure> {
        if self.dialect() == Dialect::DataFusion {
            // As it stands: `staged` is a table there, and one row is seen to.
            let query = query.trim().trim_end_matches(';');
            let values = self.destination.ask(self.load, self.expected, query).await?;
            return match <[Option<String>; 1]>::try_from(values) {
                Ok([value]) => Ok(value),
                Err(values) => Err(Failure::permanent(format!(
                    "its query gives {} columns; it has to give one value",
                    values.len()
                ))),
            };
        }
        // On lines of its own, so that a comment at its end ends.
        let query = format!("(\n{}\n)", query.trim().trim_end_matches(';'));
        if self.dialect() == Dialect::Sqlite {
            // It would take the first row of several without a word.
            let [rows] = self.numbers(["count(*)"], &format!("FROM {query} AS q")).await?;
            if rows > 1.0 {
                return Err(Failure::permanent(format!(
                    "its query gives {rows} rows; it has to give one value"
                )));
            }
        }
        Ok(self.ask(&[&query], "").await?.into_iter().next().flatten())
    }

    fn type_of(&self, column: &str) -> Option<&DataType> {
        self.load
            .schema
            .field_with_name(column)
            .ok()
            .map(|field| field.data_type())
    }

    /// A value of a column of decimals, with all its digits; `None` if the column is another.
    fn decimal(&self, column: &str, written: &str) -> Result<Option<String>, Failure> {
        let Some(data_type @ DataType::Decimal128(precision, scale)) = self.type_of(column) else {
            return Ok(None);
        };
        match types::value(data_type, written) {
            Ok(ScalarValue::Decimal128(Some(value), ..)) => Ok(Some(decimal::written(value, *precision, *scale))),
            Ok(_) => Ok(None),
            Err(why) => Err(Failure::permanent(format!(
                "`{written}` is no value of {column}: {why}"
            ))),
        }
    }

    /// Whether a value is NaN, if the column is one that may have it.
    fn is_nan(&self, column: &str) -> Option<String> {
        match self.type_of(column) {
            Some(DataType::Float32 | DataType::Float64) if self.dialect() == Dialect::DataFusion => {
                Some(format!("isnan({})", quote(column)))
            }
            Some(DataType::Float32 | DataType::Float64) => Some(format!("{} = 'NaN'", quote(column))),
            _ => None,
        }
    }

    /// A column of numbers, for arithmetic.
    fn number(&self, column: &str) -> String {
        match self.dialect() {
            Dialect::Postgres => format!("{}::double precision", quote(column)),
            Dialect::DataFusion => format!("CAST({} AS double)", quote(column)),
            Dialect::Sqlite => format!("CAST({} AS REAL)", quote(column)),
        }
    }

    /// Whether it has a value that is a number: NaN is none.
    fn is_number(&self, column: &str) -> String {
        let name = quote(column);
        match self.type_of(column) {
            Some(DataType::Float32 | DataType::Float64) if self.dialect() == Dialect::DataFusion => {
                format!("{name} IS NOT NULL AND NOT isnan({name})")
            }
            Some(DataType::Float32 | DataType::Float64) => format!("{name} IS NOT NULL AND {name} <> 'NaN'"),
            _ => format!("{name} IS NOT NULL"),
        }
    }

    /// A value of a column, as SQL.
    fn literal(&self, column: &str, written: &str) -> Result<String, Failure> {
        let data_type = self.type_of(column).cloned().unwrap_or(DataType::Utf8);
        Ok(match &data_type {
            DataType::Utf8 => text(written),
            DataType::Date32 | DataType::Timestamp(..) => {
                let unfit = |why: String| Failure::permanent(format!("`{written}` is no value of {column}: {why}"));
                let value = match &data_type {
                    DataType::Timestamp(_, Some(_)) => types::value(&types::timestamptz(), written),
                    other => types::value(other, written),
                };
                // As rows are written there.
                text(&match value.map_err(unfit)? {
                    ScalarValue::TimestampMicrosecond(Some(microseconds), zone) => {
                        moment(microseconds, zone.is_some()).map_err(unfit)?
                    }
                    date => date.to_string(),
                })
            }
            // The nearest number of this type, which is another one in double precision.
            DataType::Float32 => match written.trim().parse::<f32>() {
                Ok(value) => format!("({:e})", f64::from(value)),
                Err(_) => format!("({})", written.trim()),
            },
            DataType::Decimal128(precision, scale) => match (self.dialect(), self.decimal(column, written)?) {
                // Kept as text.
                (Dialect::Sqlite, Some(value)) => text(&value),
                // Any literal with a point is a double there.
                (Dialect::DataFusion, Some(value)) => format!("CAST('{value}' AS decimal({precision},{scale}))"),
                (_, value) => format!("({})", value.as_deref().unwrap_or(written).trim()),
            },
            // What the plan has taken for a number or a truth.
            _ => format!("({})", written.trim()),
        })
    }
}

/// Why files can't be asked for what another table has.
pub(super) fn no_references(load: &LoadName) -> String {
    format!(
        "`references` can't be made of load {load}: its destination is one of files, where no other table can be asked; join \
         that table's source as a lookup in a step, and reject what has no partner"
    )
}

fn select(values: &[&str], rest: &str, shown: impl Fn(&str) -> String) -> String {
    let values: Vec<String> = values.iter().map(|value| shown(value)).collect();
    format!("SELECT {} {rest}", values.join(", "))
}

/// A text of SQL.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// An example on one line.
fn shorten(value: &str) -> String {
    let mut shown: String = value
        .chars()
        .take(EXAMPLE)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if value.chars().count() > EXAMPLE {
        shown.push('…');
    }
    shown
}
