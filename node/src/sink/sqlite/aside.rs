//! Sets aside what checks name, see [`crate::sink::aside`]. Rows are known by their `rowid`, by whichever of its names no
//! column has.

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit};
use datafusion::scalar::ScalarValue;
use haulage_core::failure::Failure;
use sqlx::AssertSqlSafe;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite as Driver, SqliteArguments};

use super::Sqlite;
use super::bookkeeping::{Area, Record, begin, ended, hold, same_round, set_state};
use super::file::Writer;
use super::rows::moment;
use super::stage::exists;
use super::verify::{count, marked, staged};
use crate::sink::aside::{self, Aside};
use crate::sink::name::{quote, quote_all, quote_all_of};
use crate::sink::question::{Question, Value, texts, written};
use crate::sink::{Expected, LoadContext};

/// What SQLite calls a row's number.
const ROWID: [&str; 3] = ["rowid", "_rowid_", "oid"];

impl Sqlite {
    pub(super) async fn seal_load(&self, load: &LoadContext, expected: Expected) -> Result<Option<Aside>, Failure> {
        let doing = format!("sealing load {}", load.load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let Some(record) = hold(&mut writer, load, "verify", &doing).await? else {
            return Err(ended(load, "not prepared"));
        };
        same_round(load, &record)?;
        match record.state.as_str() {
            "staged" => {
                marked(&mut writer, load, expected, &doing).await?;
                set_state(&mut writer, load, "sealed", &doing).await?;
            }
            "sealed" | "published" => {}
            other => return Err(ended(load, other)),
        }
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(record.set_aside)
    }

    /// Notes which rows each condition names, in a table of its own.
    pub(super) async fn name_staged(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        let doing = format!("naming rows of load {}", load.load);
        let area = Area::of(load);
        let rowid = rowid(load)?;
        let mut writer = self.file.writer().await?;
        let record = sealed(&mut writer, load, &area, expected, &doing).await?;
        let rows = count(&mut writer, &area.stage, &doing).await?;
        // An earlier attempt may have got further.
        let left = Expected {
            rows: expected.rows.saturating_sub(record.older),
            ..expected
        };
        staged(load, left).counted(rows)?;
        let make = format!(
            "DROP TABLE IF EXISTS {0}; CREATE TABLE {0} (id INTEGER NOT NULL, nr INTEGER NOT NULL)",
            area.aside
        );
        writer.must(&doing, make).await?;
        let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let names = quote_all(&names);
        let mut named = Vec::with_capacity(conditions.len());
        for (nr, condition) in conditions.iter().enumerate() {
            let sql = format!(
                "WITH staged AS NOT MATERIALIZED (SELECT {rowid} AS __haulage_id, {names} FROM {})
                 INSERT INTO {} (id, nr) SELECT __haulage_id, {nr} FROM staged WHERE {}",
                quote(&area.stage),
                area.aside,
                condition.sql
            );
            let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &condition.values);
            let done = query.execute(writer.connection()).await;
            let done = done.map_err(|error| writer.failure(&doing, error))?;
            named.push(done.rows_affected());
        }
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(named)
    }

    pub(super) async fn set_rows_aside(
        &self,
        load: &LoadContext,
        expected: Expected,
        what: &Aside,
    ) -> Result<Aside, Failure> {
        let doing = format!("setting rows of load {} aside", load.load);
        let area = Area::of(load);
        let rowid = rowid(load)?;
        let mut writer = self.file.writer().await?;
        let record = sealed(&mut writer, load, &area, expected, &doing).await?;
        if let Some(done) = record.set_aside {
            writer.must(&doing, "COMMIT").await?;
            writer.keep();
            return Ok(done);
        }
        let sql = format!(
            "DELETE FROM {} WHERE {rowid} IN (SELECT id FROM {})",
            quote(&area.stage),
            area.aside
        );
        let gone = writer.must(&doing, sql).await?;
        if gone != what.set.rows {
            return Err(Failure::transient(format!(
                "load {}: {} rows were to be set aside, and {gone} are there; they are named again",
                load.load, what.set.rows
            )));
        }
        sqlx::query("UPDATE _haulage_loads SET set_aside = $3 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(aside::text(what))
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(&doing, error))?;
        writer.must(&doing, format!("DROP TABLE {}", area.aside)).await?;
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(what.clone())
    }
}

/// The rows that were named, each once, with the numbers of the conditions that name it as the last column.
pub(super) fn named_rows(load: &LoadContext, why: &str) -> Result<String, Failure> {
    let area = Area::of(load);
    let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
    Ok(format!(
        "SELECT {}, a.why AS {why} FROM {} AS s
         JOIN (SELECT id, group_concat(nr) AS why FROM (SELECT id, nr FROM {} ORDER BY id, nr) GROUP BY id) AS a
         ON s.{} = a.id",
        quote_all_of("s", &names),
        quote(&area.stage),
        area.aside,
        rowid(load)?
    ))
}

/// Opens a transaction over the sealed staging area, as it was when the chunks ended.
async fn sealed(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    expected: Expected,
    doing: &str,
) -> Result<Record, Failure> {
    begin(writer, doing).await?;
    let record = match hold(writer, load, "verify", doing).await? {
        Some(record) if record.state == "sealed" => record,
        Some(record) => return Err(ended(load, &record.state)),
        None => return Err(ended(load, "not prepared")),
    };
    same_round(load, &record)?;
    marked(writer, load, expected, doing).await?;
    if !exists(writer, &area.stage, doing).await? {
        return Err(staged(load, expected).gone(&area.stage, "rows were staged"));
    }
    Ok(record)
}

fn rowid(load: &LoadContext) -> Result<&'static str, Failure> {
    let is_column = |name: &str| {
        load.schema
            .fields()
            .iter()
            .any(|field| field.name().eq_ignore_ascii_case(name))
    };
    let free = ROWID.into_iter().find(|name| !is_column(name));
    free.ok_or_else(|| {
        Failure::permanent(format!(
            "load {}: its columns have all the names that SQLite has for a row's number ({}), so no row can be set aside; \
             give one another name in the step",
            load.load,
            ROWID.join(", ")
        ))
    })
}

/// Binds values as SQLite keeps them: times as text, decimals as numbers, what a column may hold as a list in JSON.
pub(super) fn bound<'q>(
    mut query: Query<'q, Driver, SqliteArguments>,
    values: &[Value],
) -> Query<'q, Driver, SqliteArguments> {
    for value in values {
        query = match value {
            Value::Keys(keys) => query.bind(list(keys)),
            Value::Param(_, value) => match value {
                ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
                    query.bind(moment(*micros, zone.is_some()).ok())
                }
                ScalarValue::Boolean(truth) => query.bind(*truth),
                other => match other.data_type() {
                    DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                        query.bind(written(other).and_then(|text| text.parse::<i64>().ok()))
                    }
                    DataType::Float32 | DataType::Float64 | DataType::Decimal128(..) => {
                        query.bind(written(other).and_then(|text| text.parse::<f64>().ok()))
                    }
                    _ => query.bind(written(other)),
                },
            },
        };
    }
    query
}

/// Values of a column as a list in JSON, each as it is kept in a column of that type.
fn list(keys: &ArrayRef) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let items: Vec<String> = match keys.data_type() {
        DataType::Float32 | DataType::Float64 => {
            let wide = cast(keys, &DataType::Float64);
            let wide = wide.map(|wide| wide.as_primitive::<Float64Type>().iter().flatten().collect::<Vec<_>>());
            let item = |value: f64| match value {
                value if value.is_nan() => quoted("NaN"),
                f64::INFINITY => "9e999".to_owned(),
                f64::NEG_INFINITY => "-9e999".to_owned(),
                value => format!("{value:e}"),
            };
            wide.unwrap_or_default().into_iter().map(item).collect()
        }
        DataType::Boolean => {
            let truths = keys.as_boolean().iter().flatten();
            truths.map(|truth| u8::from(truth).to_string()).collect()
        }
        DataType::Timestamp(_, zone) => {
            let zoned = zone.is_some();
            let micros = cast(keys, &DataType::Timestamp(TimeUnit::Microsecond, None))
                .and_then(|times| cast(&times, &DataType::Int64));
            let micros = micros.map(|micros| {
                let micros = micros.as_primitive::<Int64Type>();
                micros.iter().flatten().collect::<Vec<_>>()
            });
            let texts = micros.unwrap_or_default().into_iter();
            texts
                .filter_map(|micros| moment(micros, zoned).ok())
                .map(|text| quoted(&text))
                .collect()
        }
        kind => {
            let is_number = kind.is_integer();
            let item = |text: String| if is_number { text } else { quoted(&text) };
            texts(keys).into_iter().flatten().map(item).collect()
        }
    };
    format!("[{}]", items.join(","))
}
