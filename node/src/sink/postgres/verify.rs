//! Verify: nothing more is staged, what is staged is what the chunks reported, and the key is a key.
//!
//! The record is sealed first, in a transaction of its own, so that a chunk attempt which wakes up late is fenced before
//! anything is counted. Indexes are built here, once, over all rows, so that the publish only renames them. Building
//! one reads every row and notes how many there are: a load with a key is counted by that, and not read a second time.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::definition::Mode;
use sqlx::{AssertSqlSafe, Row};

use super::Postgres;
use super::bookkeeping::{self, Area, Method, Record, State, ended, hold, same_round, set_state};
use super::connect::{BEGIN_BRIEFLY, Lease};
use super::failure::{code, detail};
use super::fit::{Fit, fit};
use super::newest;
use super::snapshots::note;
use super::stage::{alone, exists, misfit};
use super::target::{Target, describe};
use crate::sink::aside::{left, words};
use crate::sink::name::{quote, quote_all};
use crate::sink::older::left_out;
use crate::sink::staged::Staged;
use crate::sink::{Expected, LoadContext};

/// The catalog has a table's rows as a 4 byte float, which holds every whole number below this.
const EXACT: u64 = 1 << 24;

/// What may have made staging less than it was.
pub(super) const LOST_BY: &str = "a crash of the database server empties unlogged staging";

/// Sorting an index in the server's default of 64 MB spills; a load may take this much, or what the server gives anyway.
const INDEX_MEMORY: &str = "SELECT set_config('maintenance_work_mem', greatest(setting::bigint, 262144) || 'kB', true)
    FROM pg_settings WHERE name = 'maintenance_work_mem'";

impl Postgres {
    pub(super) async fn verify_load(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        let doing = format!("verifying load {}", load.load);
        let area = Area::of(load);
        if let Some(report) = seal(&mut lease, load, &doing).await? {
            lease.give_back();
            return Ok(report);
        }
        let mut staged = Staged {
            load,
            expected,
            lost_by: LOST_BY,
        };
        for table in [&area.stage, &area.marks] {
            let there = exists(&mut lease, table).await;
            if !there.map_err(|error| lease.place().failure(&doing, error))? {
                return Err(staged.gone(table, "rows were staged"));
            }
        }
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", area.stage);
        alone(&mut lease, &area, &lock, &doing).await?;
        let record = match hold(&mut lease, load, "verify").await? {
            Some(record) if record.state == State::Sealed => record,
            Some(_) | None => return Err(ended(load, "no longer sealed")),
        };
        marked(&mut lease, load, &area, expected, &doing).await?;
        let mut expected = left(expected, record.set_aside.as_ref());
        let (target, fit, method) = plan(&mut lease, load, &record).await?;
        if record.method == Some(Method::Swap) {
            note(&mut lease, load, &doing).await?;
        }
        let older = newest::choose(&mut lease, load, &area, &record, &doing).await?;
        expected.rows = expected.rows.saturating_sub(older);
        staged.expected = expected;
        lease.must(&doing, INDEX_MEMORY).await?;
        let before = catalogued(&mut lease, &area, &doing).await?;
        let proof = index(&mut lease, load, &area, &target, &fit, method, &doing).await?;
        // Believed only where it comes from an index that was built just now, under the lock, and is exact; a server from
        // 18 on doesn't note it for a table without autovacuum. Otherwise, and before anything is called wrong, count.
        let mut rows = catalogued(&mut lease, &area, &doing).await?;
        if before > 0 || expected.rows >= EXACT || rows as u64 != expected.rows {
            rows = count(&mut lease, &area, &doing).await?;
        }
        staged.counted(rows as u64)?;
        if let Some(proof) = proof {
            lease.must(&doing, format!("DROP INDEX haulage.{proof}")).await?;
        }
        lease.must(&doing, "COMMIT").await?;
        lease.give_back();
        Ok(StepReport {
            rows: expected.rows,
            detail: format!(
                "{} staged for {}{}{}",
                counted(rows as u64, "row"),
                target.text(),
                words(record.set_aside.as_ref()),
                left_out(older)
            ),
            ..StepReport::default()
        })
    }
}

/// Seals the record. A report if the load is already published.
pub(super) async fn seal(lease: &mut Lease, load: &LoadContext, doing: &str) -> Result<Option<StepReport>, Failure> {
    lease.must(doing, BEGIN_BRIEFLY).await?;
    let Some(record) = hold(lease, load, "verify").await? else {
        return Err(ended(load, "not prepared"));
    };
    same_round(load, &record)?;
    match record.state {
        State::Staged => set_state(lease, load, State::Sealed).await?,
        State::Sealed => {}
        State::Published => {
            lease.must(doing, "COMMIT").await?;
            return Ok(Some(StepReport {
                rows: record.rows as u64,
                detail: "already published".to_owned(),
                ..StepReport::default()
            }));
        }
        State::Reverted => return Err(ended(load, "reverted")),
        State::Discarded => return Err(ended(load, "discarded")),
    }
    lease.must(doing, "COMMIT").await?;
    Ok(None)
}

/// Holds the markers against what the chunks reported. A crash of the server truncates unlogged markers with their rows.
pub(super) async fn marked(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    expected: Expected,
    doing: &str,
) -> Result<(), Failure> {
    let staged = Staged {
        load,
        expected,
        lost_by: LOST_BY,
    };
    let sql = format!("SELECT count(*), coalesce(sum(rows), 0)::bigint FROM {}", area.marks);
    let marked = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(lease.connection())
        .await
        .and_then(|row| Ok((row.try_get::<i64, _>(0)? as u64, row.try_get::<i64, _>(1)? as u64)));
    let (segments, rows) = match marked {
        Ok(marked) => marked,
        Err(error) if code(&error) == Some("42P01") => return Err(staged.gone(&area.marks, "segments were marked")),
        Err(error) => return Err(lease.place().failure(doing, error)),
    };
    staged.marked(Expected { rows, segments })
}

/// How the load will be published, as things are now: a swap only if staging was made for one, and the target is still
/// what it was then.
pub(super) async fn plan(
    lease: &mut Lease,
    load: &LoadContext,
    record: &Record,
) -> Result<(Target, Fit, Method), Failure> {
    let target = describe(lease, &load.table).await?;
    let fit = match fit(load, &target) {
        Ok(fit) => fit,
        Err(misfits) => return Err(misfit(load, &target, &misfits)),
    };
    let same = target.existing.as_ref().map(|existing| existing.shape.as_str()) == record.shape.as_deref();
    let method = match (load.mode, fit.method) {
        (Mode::Replace, Method::Swap) if same && record.method == Some(Method::Swap) => Method::Swap,
        (Mode::Replace, _) => Method::Rewrite,
        (_, method) => method,
    };
    Ok((target, fit, method))
}

/// The name of the staged index that takes the place of the target's `n`-th.
pub(super) fn staged_index(area: &Area, n: usize) -> String {
    format!("ix_{}_{n}", area.id)
}

/// The name of the staged index on the load's key.
pub(super) fn staged_key(area: &Area) -> String {
    format!("key_{}", area.id)
}

/// The rows that the server's catalog has for the staging table: none until an index is built, which counts the living.
async fn catalogued(lease: &mut Lease, area: &Area, doing: &str) -> Result<i64, Failure> {
    sqlx::query_scalar("SELECT reltuples::float8::bigint FROM pg_class WHERE oid = to_regclass($1)::oid")
        .bind(&area.stage)
        .fetch_one(lease.connection())
        .await
        .map_err(|error| lease.place().failure(doing, error))
}

pub(super) async fn count(lease: &mut Lease, area: &Area, doing: &str) -> Result<i64, Failure> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {}", area.stage)))
        .persistent(false)
        .fetch_one(lease.connection())
        .await
        .map_err(|error| lease.place().failure(doing, error))
}

/// Builds what is missing. Returns the name of an index that was only the proof that the key is one: the target has no
/// such index, and gets none behind its owner's back.
async fn index(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    fit: &Fit,
    method: Method,
    doing: &str,
) -> Result<Option<String>, Failure> {
    let mut covered = load.key.is_empty();
    if let (Method::Swap, Some(existing)) = (method, &target.existing) {
        covered = covered || existing.has_unique(&load.key);
        for (n, index) in existing.indexes.iter().enumerate() {
            let sql = format!(
                "CREATE {}INDEX IF NOT EXISTS {} ON {} USING {}",
                if index.unique { "UNIQUE " } else { "" },
                staged_index(area, n),
                area.stage,
                index.method_and_columns
            );
            build(lease, load, doing, sql).await?;
        }
    }
    if !load.key.is_empty() {
        no_empty_key(lease, load, area, fit, doing).await?;
    }
    if covered {
        return Ok(None);
    }
    let key = staged_key(area);
    let sql = format!(
        "CREATE UNIQUE INDEX IF NOT EXISTS {key} ON {} ({})",
        area.stage,
        quote_all(&load.key)
    );
    build(lease, load, doing, sql).await?;
    Ok((method == Method::Swap && target.existing.is_some()).then_some(key))
}

async fn build(lease: &mut Lease, load: &LoadContext, doing: &str, sql: String) -> Result<(), Failure> {
    match lease.run(sql).await {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some("23505") => Err(Failure::permanent(format!(
            "load {}: {} among the staged rows; make the step's rows unique by key, or reject what is double",
            load.load,
            detail(&error).unwrap_or_else(|| "a key is duplicated".to_owned())
        ))),
        Err(error) => Err(lease.place().failure(doing, error)),
    }
}

/// A unique index lets NULL pass any number of times. Staging made by us refuses them already in COPY.
async fn no_empty_key(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    fit: &Fit,
    doing: &str,
) -> Result<(), Failure> {
    let nullable: Vec<&String> = load
        .key
        .iter()
        .filter(|key| load.schema.field_with_name(key).is_ok_and(|field| field.is_nullable()))
        .filter(|key| fit.columns.iter().any(|column| column.name == **key))
        .collect();
    for key in nullable {
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE {} IS NULL)",
            area.stage,
            quote(key)
        );
        let empty: bool = sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_one(lease.connection())
            .await
            .map_err(|error| lease.place().failure(doing, error))?;
        if empty {
            return Err(Failure::permanent(format!(
                "load {}: key column {key} has no value in some staged rows; reject such rows in the step",
                load.load
            )));
        }
    }
    Ok(())
}
