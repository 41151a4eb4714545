//! Sets aside what checks name, see [`crate::sink::aside`]. Rows of a sealed staging table are known by their `ctid`: nobody
//! writes to it any more, and nothing vacuums it.

use haulage_core::failure::Failure;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgArguments, Postgres as Driver};
use sqlx::query::Query;

use super::Postgres;
use super::bookkeeping::{self, Area, Lock, Record, State, ended, hold, record};
use super::connect::Lease;
use super::stage::{alone, exists};
use super::verify::{LOST_BY, count, marked, seal};
use crate::sink::aside::{self, Aside};
use crate::sink::name::{quote_all, quote_all_of};
use crate::sink::question::{Question, Value, written};
use crate::sink::staged::Staged;
use crate::sink::{Expected, LoadContext};

impl Postgres {
    pub(super) async fn seal_load(&self, load: &LoadContext) -> Result<Option<Aside>, Failure> {
        let mut lease = self.lease().await?;
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        let doing = format!("sealing load {}", load.load);
        // One that is published already has what it needs in its record, too.
        seal(&mut lease, load, &doing).await?;
        let found = record(&mut lease, load, Lock::None).await;
        let found = found.map_err(|error| lease.place().failure(&doing, error))?;
        lease.give_back();
        Ok(found.and_then(|record| record.set_aside))
    }

    /// Notes which rows each condition names, in a table of its own.
    pub(super) async fn name_staged(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("naming rows of load {}", load.load);
        let area = Area::of(load);
        let record = open(&mut lease, load, &area, expected, &doing).await?;
        let rows = count(&mut lease, &area, &doing).await?;
        let staged = Staged {
            load,
            // An earlier attempt may have got further.
            expected: Expected {
                rows: expected.rows.saturating_sub(record.older),
                ..expected
            },
            lost_by: LOST_BY,
        };
        staged.counted(rows as u64)?;
        let make = format!(
            "DROP TABLE IF EXISTS {0};
             CREATE UNLOGGED TABLE {0} (id tid NOT NULL, nr integer NOT NULL) WITH (autovacuum_enabled = false)",
            area.aside
        );
        lease.must(&doing, make).await?;
        let names = columns(load);
        let mut named = Vec::with_capacity(conditions.len());
        for (nr, condition) in conditions.iter().enumerate() {
            let sql = format!(
                "WITH staged AS NOT MATERIALIZED (SELECT ctid AS __haulage_id, {names} FROM {})
                 INSERT INTO {} (id, nr) SELECT __haulage_id, {nr} FROM staged WHERE {}",
                area.stage, area.aside, condition.sql
            );
            let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &condition.values);
            let done = query.execute(lease.connection()).await;
            let done = done.map_err(|error| lease.place().failure(&doing, error))?;
            named.push(done.rows_affected());
        }
        lease.must(&doing, "COMMIT").await?;
        lease.give_back();
        Ok(named)
    }

    pub(super) async fn set_rows_aside(
        &self,
        load: &LoadContext,
        expected: Expected,
        what: &Aside,
    ) -> Result<Aside, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("setting rows of load {} aside", load.load);
        let area = Area::of(load);
        let record = open(&mut lease, load, &area, expected, &doing).await?;
        if let Some(done) = record.set_aside {
            lease.must(&doing, "COMMIT").await?;
            lease.give_back();
            return Ok(done);
        }
        let sql = format!(
            "DELETE FROM {} WHERE ctid IN (SELECT id FROM {})",
            area.stage, area.aside
        );
        let gone = lease.must(&doing, sql).await?;
        if gone != what.set.rows {
            return Err(Failure::transient(format!(
                "load {}: {} rows were to be set aside, and {gone} are there; they are named again",
                load.load, what.set.rows
            )));
        }
        sqlx::query("UPDATE haulage.loads SET set_aside = $3 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(aside::text(what))
            .execute(lease.connection())
            .await
            .map_err(|error| lease.place().failure(&doing, error))?;
        lease.must(&doing, format!("DROP TABLE {}", area.aside)).await?;
        lease.must(&doing, "COMMIT").await?;
        lease.give_back();
        Ok(what.clone())
    }
}

/// The rows that were named, each once, with the numbers of the conditions that name it as the last column.
pub(super) fn named_rows(load: &LoadContext, why: &str) -> String {
    let area = Area::of(load);
    let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
    format!(
        "SELECT {}, a.why AS {why} FROM {} AS s
         JOIN (SELECT id, string_agg(nr::text, ',' ORDER BY nr) AS why FROM {} GROUP BY id) AS a ON s.ctid = a.id",
        quote_all_of("s", &names),
        area.stage,
        area.aside
    )
}

/// Opens a transaction that has the sealed staging area to itself, as it was when the chunks ended.
async fn open(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    expected: Expected,
    doing: &str,
) -> Result<Record, Failure> {
    let staged = Staged {
        load,
        expected,
        lost_by: LOST_BY,
    };
    for table in [&area.stage, &area.marks] {
        let there = exists(lease, table).await;
        if !there.map_err(|error| lease.place().failure(doing, error))? {
            return Err(staged.gone(table, "rows were staged"));
        }
    }
    let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", area.stage);
    alone(lease, area, &lock, doing).await?;
    let record = match hold(lease, load, "verify").await? {
        Some(record) if record.state == State::Sealed => record,
        Some(_) | None => return Err(ended(load, "no longer sealed")),
    };
    marked(lease, load, area, expected, doing).await?;
    Ok(record)
}

fn columns(load: &LoadContext) -> String {
    let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
    quote_all(&names)
}

/// Binds values: each is a text, or an array of texts, which the SQL casts to its type.
pub(super) fn bound<'q>(mut query: Query<'q, Driver, PgArguments>, values: &[Value]) -> Query<'q, Driver, PgArguments> {
    for value in values {
        query = match value {
            Value::Param(_, value) => query.bind(written(value)),
            Value::Keys(keys) => query.bind(crate::sink::question::texts(keys)),
        };
    }
    query
}
