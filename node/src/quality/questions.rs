//! What is asked of a destination: one query over `staged` each, in SQL that both understand but for the few words of a
//! [`Dialect`].

use std::collections::BTreeMap;
use std::time::Duration;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_plan::checks::placeholders;
use haulage_plan::types;

use super::beside::STAGED;
use super::decimal;
use crate::sink::name::{TableName, quote, quote_all, same_key};
use crate::sink::question::{KEYS, Value};
use crate::sink::sqlite::moment;
use crate::sink::{Destination, Dialect, Expected, LoadContext, Question, postgres};
use crate::work::run::RunContext;

/// Values that a result names as examples, and how long each may be.
const EXAMPLES: usize = 3;
const EXAMPLE: usize = 40;

/// Who asks, of which rows.
pub(super) struct Asker<'a> {
    pub(super) context: &'a RunContext,
    pub(super) destination: &'a dyn Destination,
    pub(super) load: &'a LoadContext,
    /// What the chunks reported.
    pub(super) expected: Expected,
    /// How many of these rows are staged now.
    pub(super) rows: u64,
    /// The same with those that newer ones of the run have kept from being there.
    pub(super) brought: u64,
    /// Whether there may still be several of one key among them, of which the newest is to stand.
    pub(super) before_newest: bool,
}

impl Asker<'_> {
    pub(super) fn dialect(&self) -> Dialect {
        self.destination.dialect()
    }

    /// Asks for some values of one row, of which each is cast to text.
    async fn ask(&self, values: &[&str], rest: &str) -> Result<Vec<Option<String>>, Failure> {
        let question = select(values, rest, |value| format!("CAST({value} AS text)"));
        self.put(question.into()).await
    }

    async fn put(&self, question: Question) -> Result<Vec<Option<String>>, Failure> {
        self.destination.ask(self.load, self.expected, &question).await
    }

    /// The same, where every value is a number; none is 0.
    pub(super) async fn numbers<const N: usize>(
        &self,
        values: [&str; N],
        rest: impl Into<Question>,
    ) -> Result<[f64; N], Failure> {
        let rest: Question = rest.into();
        let (sql, bound, as_numbers) = (rest.sql, rest.values, rest.as_numbers);
        let rest = sql.as_str();
        let question = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => select(&values, rest, |value| format!("CAST({value} AS text)")),
            // Its cast cuts a number after 15 digits, which is another number.
            Dialect::Sqlite => select(&values, rest, |value| format!("printf('%!.17g', {value})")),
        };
        let question = Question {
            sql: question,
            values: bound,
            as_numbers,
        };
        let found = self.put(question).await?;
        let mut numbers = [0.0; N];
        for (number, text) in numbers.iter_mut().zip(found) {
            let Some(text) = text else { continue };
            *number = text
                .parse()
                .map_err(|_| Failure::permanent(format!("the destination gave `{text}` for a number")))?;
        }
        Ok(numbers)
    }

    /// Rows for which a condition is true.
    pub(super) async fn count(&self, condition: &Question) -> Result<u64, Failure> {
        self.count_among(condition, STAGED).await
    }

    /// The same of other rows, in SQL.
    pub(super) async fn count_among(&self, condition: &Question, among: &str) -> Result<u64, Failure> {
        let rest = with(condition, |condition| format!("FROM {among} WHERE {condition}"));
        let [rows] = self.numbers(["count(*)"], rest).await?;
        Ok(rows as u64)
    }

    /// Of rows without a value.
    pub(super) fn without_value(&self, columns: &[String]) -> Question {
        let null = columns.iter().map(|column| format!("{} IS NULL", quote(column)));
        null.collect::<Vec<_>>().join(" OR ").into()
    }

    /// Of rows whose values here are those of another one `among` these, too.
    pub(super) fn shared(&self, columns: &[String], among: &str) -> Question {
        let names = quote_all(columns);
        let some = columns.iter().map(|column| format!("{} IS NOT NULL", quote(column)));
        let some = some.collect::<Vec<_>>().join(" AND ");
        let shared = format!("SELECT {names} FROM {among} WHERE {some} GROUP BY {names} HAVING count(*) > 1");
        let condition = match (self.dialect(), columns) {
            (_, [_]) => format!("{names} IN ({shared})"),
            (Dialect::Postgres | Dialect::Sqlite, _) => format!("({names}) IN ({shared})"),
            // It compares no rows of values.
            (Dialect::DataFusion, _) => format!(
                "EXISTS (SELECT 1 FROM ({shared}) AS other WHERE {})",
                same_key("other", "staged", columns)
            ),
        };
        condition.into()
    }

    /// Values that are there more than once `among` these rows, the rows that have them, and one of the values.
    pub(super) async fn doubles(&self, columns: &[String], among: &str) -> Result<(u64, u64, Option<String>), Failure> {
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
            "FROM (SELECT count(*) AS n, min({}) AS example FROM {among} WHERE {} GROUP BY {names} HAVING count(*) > 1) AS d",
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
    pub(super) async fn outside(&self, column: &str, condition: &Question) -> Result<(u64, String), Failure> {
        let rows = self.count(condition).await?;
        if rows == 0 {
            return Ok((0, String::new()));
        }
        let together = match self.dialect() {
            Dialect::Postgres | Dialect::DataFusion => "string_agg",
            Dialect::Sqlite => "group_concat",
        };
        // By value first, and then as texts: 10 comes behind 9.
        let rest = |condition: &str| {
            let rest = format!(
                "FROM (SELECT substr(CAST(v AS text), 1, {EXAMPLE} + 1) AS shown
                       FROM (SELECT DISTINCT {} AS v FROM staged WHERE {condition} ORDER BY v LIMIT {EXAMPLES}) AS e) AS s",
                quote(column)
            );
            select(&[&format!("{together}(shown, '\n')")], &rest, |value| {
                format!("CAST({value} AS text)")
            })
        };
        let examples = self.put(with(condition, rest)).await?;
        let examples = examples.into_iter().next().flatten().unwrap_or_default();
        let examples: Vec<String> = examples.lines().take(EXAMPLES).map(shorten).collect();
        Ok((rows, format!(": {}", examples.join(", "))))
    }

    pub(super) fn accepted(&self, column: &str, values: &[String]) -> Result<Question, Failure> {
        let values: Result<Vec<String>, Failure> = values.iter().map(|value| self.literal(column, value)).collect();
        Ok(format!("{} NOT IN ({})", quote(column), values?.join(", ")).into())
    }

    pub(super) fn out_of_range(&self, column: &str, min: Option<&str>, max: Option<&str>) -> Result<Question, Failure> {
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
        Ok(outside.join(" OR ").into())
    }

    pub(super) fn dangling(&self, column: &str, table: &str, to: &str) -> Result<Question, Failure> {
        let named = TableName::parse(table)?;
        let (name, to, bare) = (quote(column), quote(to), quote(&named.table));
        let condition = match (self.dialect(), named.schema.as_deref()) {
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
                // Of an empty table also NULL is no member. A name in quotes that is no column's is a text there, unless it
                // says whose column it would be.
                format!(
                    "{name} IS NOT NULL AND {name} NOT IN (SELECT other.{to} FROM main.{bare} AS other WHERE other.{to} IS \
                     NOT NULL)"
                )
            }
            (Dialect::Sqlite, Some(schema)) => {
                return Err(Failure::permanent(format!(
                    "SQLite has no schema {schema}; write {} alone",
                    named.table
                )));
            }
        };
        Ok(condition.into())
    }

    /// Of rows whose value is none of these, which are of the column's type.
    pub(super) fn unknown(&self, column: &str, keys: ArrayRef) -> Question {
        let name = quote(column);
        let kind = self.type_of(column).cloned().unwrap_or(DataType::Utf8);
        let sql = match self.dialect() {
            Dialect::Postgres => {
                let there = postgres::column_type(&kind).unwrap_or_else(|| "text".to_owned());
                // Whatever the target keeps texts as, they compare as texts.
                let value = match there.as_str() {
                    "text" => format!("CAST(staged.{name} AS text)"),
                    _ => format!("staged.{name}"),
                };
                format!(
                    "{name} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM unnest(CAST($1 AS text[])) AS other(k) WHERE \
                     CAST(other.k AS {there}) = {value})"
                )
            }
            Dialect::Sqlite => match kind {
                // They are kept as text, unless the target's column makes numbers of them.
                DataType::Decimal128(..) => format!(
                    "{name} IS NOT NULL AND CASE typeof({name}) WHEN 'text' THEN {name} NOT IN (SELECT value FROM \
                     json_each($1)) ELSE {name} NOT IN (SELECT CAST(value AS REAL) FROM json_each($1)) END"
                ),
                _ => format!("{name} IS NOT NULL AND {name} NOT IN (SELECT value FROM json_each($1))"),
            },
            Dialect::DataFusion => format!(
                "{name} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {KEYS} AS other WHERE other.k = staged.{name})"
            ),
        };
        Question {
            sql,
            values: vec![Value::Keys(keys)],
            as_numbers: false,
        }
    }

    pub(super) fn beyond(&self, column: &str, low: f64, high: f64) -> Question {
        let value = self.number(column);
        let known = self.is_number(column);
        format!("{known} AND ({value} < {low:e} OR {value} > {high:e})").into()
    }

    /// How old the newest value of a column of times is in some rows, in seconds by the destination's clock. A time without a
    /// zone is taken for one in UTC.
    pub(super) async fn age(&self, column: &str, of: &str) -> Result<Option<f64>, Failure> {
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
        let found = self
            .ask(&[&age], &format!("FROM {of}"))
            .await?
            .into_iter()
            .next()
            .flatten();
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

    /// What a user's own query gives.
    pub(super) async fn custom(
        &self,
        query: &str,
        params: &BTreeMap<String, ScalarValue>,
    ) -> Result<Option<String>, Failure> {
        let mut query = self.written(query.trim().trim_end_matches(';'), params)?;
        query.as_numbers = true;
        if self.dialect() == Dialect::DataFusion {
            // As it stands: `staged` is a table there, and one row is seen to.
            let values = self.put(query).await?;
            return match <[Option<String>; 1]>::try_from(values) {
                Ok([value]) => Ok(value),
                Err(values) => Err(Failure::permanent(format!(
                    "its query gives {} columns; it has to give one value",
                    values.len()
                ))),
            };
        }
        // On lines of its own, so that a comment at its end ends.
        let query = with(&query, |query| format!("(\n{query}\n)"));
        if self.dialect() == Dialect::Sqlite {
            // It would take the first row of several without a word.
            let rest = with(&query, |query| format!("FROM {query} AS q"));
            let [rows] = self.numbers(["count(*)"], rest).await?;
            if rows > 1.0 {
                return Err(Failure::permanent(format!(
                    "its query gives {rows} rows; it has to give one value"
                )));
            }
        }
        let question = with(&query, |query| format!("SELECT CAST({query} AS text)"));
        Ok(self.put(question).await?.into_iter().next().flatten())
    }

    /// A query with a placeholder for each parameter that it names, and their values.
    fn written(&self, query: &str, params: &BTreeMap<String, ScalarValue>) -> Result<Question, Failure> {
        let mut question = Question::default();
        let mut names: Vec<&str> = Vec::new();
        let mut from = 0;
        let found = placeholders(query).map_err(|why| Failure::permanent(format!("its query {why}")))?;
        for (place, written) in &found {
            let name = written.trim_start_matches('$');
            let Some(value) = params.get(name) else {
                return Err(Failure::permanent(format!(
                    "its query names the unknown parameter `{written}`"
                )));
            };
            let number = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                question.values.push(Value::Param(name.to_owned(), value.clone()));
                names.len() - 1
            });
            question.sql.push_str(&query[from..place.start]);
            let kind = postgres::column_type(&value.data_type()).unwrap_or_else(|| "text".to_owned());
            question.sql.push_str(&match self.dialect() {
                // A text there, which the server reads as a value of its type.
                Dialect::Postgres => format!("(CAST(CAST(${} AS text) AS {kind}))", number + 1),
                Dialect::Sqlite => format!("${}", number + 1),
                // It knows the types by the same names, and wants to know the parameter's.
                Dialect::DataFusion => format!("CAST({written} AS {kind})"),
            });
            from = place.end;
        }
        question.sql.push_str(&query[from..]);
        Ok(question)
    }

    pub(super) fn type_of(&self, column: &str) -> Option<&DataType> {
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
    pub(super) fn number(&self, column: &str) -> String {
        match self.dialect() {
            Dialect::Postgres => format!("{}::double precision", quote(column)),
            Dialect::DataFusion => format!("CAST({} AS double)", quote(column)),
            Dialect::Sqlite => format!("CAST({} AS REAL)", quote(column)),
        }
    }

    /// Whether it has a value that is a number: NaN is none.
    pub(super) fn is_number(&self, column: &str) -> String {
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

/// Another question with the same values.
fn with(question: &Question, sql: impl Fn(&str) -> String) -> Question {
    Question {
        sql: sql(&question.sql),
        values: question.values.clone(),
        as_numbers: question.as_numbers,
    }
}

fn select(values: &[&str], rest: &str, shown: impl Fn(&str) -> String) -> String {
    let values: Vec<String> = values.iter().map(|value| shown(value)).collect();
    format!("SELECT {} {rest}", values.join(", "))
}

/// A text of SQL.
pub(super) fn text(value: &str) -> String {
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
