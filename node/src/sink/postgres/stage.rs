//! The staging area of a load: made by prepare, entered by chunks through `begin`, emptied of stragglers before it is
//! counted or dropped.
//!
//! What replaces a table is staged into a logged table of the same shape, which becomes the target. What is inserted into
//! one is staged unlogged, without the write-ahead log's cost, and its markers are unlogged too: a crash of the server
//! truncates both, so a marker never stands for rows that are gone.

use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, StageId};
use haulage_plan::contract::Evolution;
use haulage_plan::definition::Mode;
use sqlx::{AssertSqlSafe, Row};

use super::Postgres;
use super::bookkeeping::{self, Area, Lock, Method, State, claim, ended, record, set_state};
use super::connect::{BEGIN, BEGIN_BRIEFLY, Lease};
use super::evolve;
use super::fit::{Fit, fit};
use super::older;
use super::publish::{LOCK_TIMEOUT, LOCK_TRIES};
use super::target::{Target, describe, describe_staging};
use crate::sink::LoadContext;
use crate::sink::fence::too_late;

impl Postgres {
    pub(super) async fn make_staging(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        let doing = format!("preparing load {}", load.load);
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        let target = describe(&mut lease, &load.table).await?;
        let record = claim(&mut lease, load, "prepare", &target.text(), State::Staged).await?;
        let area = Area::of(load);
        let again = load.round > record.round;
        match record.state {
            State::Staged => {}
            State::Sealed if again => set_state(&mut lease, load, State::Staged).await?,
            State::Sealed | State::Published => {
                lease.must(&doing, "ROLLBACK").await?;
                lease.give_back();
                return Ok(report(&area, &target));
            }
            State::Reverted => return Err(ended(load, "reverted")),
            State::Discarded => return Err(ended(load, "discarded")),
        }
        if let Err(trouble) = older::judged(&mut lease, load, &target).await {
            let busy = || Failure::transient(format!("{doing}: {} is in use", load.table));
            return Err(trouble.into_failure(lease.place(), &doing).unwrap_or_else(busy));
        }
        if again {
            open_again(&mut lease, load, &area, &doing).await?;
        }
        if exists(&mut lease, &area.stage)
            .await
            .map_err(|error| lease.place().failure(&doing, error))?
        {
            lease.must(&doing, "COMMIT").await?;
            lease.give_back();
            return Ok(report(&area, &target));
        }
        let fit = match fit(load, &target) {
            Ok(fit) => fit,
            Err(misfits) => {
                lease.must(&doing, "ROLLBACK").await?;
                lease.give_back();
                return Err(misfit(load, &target, &misfits));
            }
        };
        lease.must(&doing, statements(load, &area, &target, &fit)).await?;
        sqlx::query("UPDATE haulage.loads SET shape = $3, method = $4 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(target.existing.as_ref().map(|existing| existing.shape.as_str()))
            .bind(fit.method.text())
            .execute(lease.connection())
            .await
            .map_err(|error| lease.place().failure(&doing, error))?;
        lease.must(&doing, "COMMIT").await?;
        lease.give_back();
        Ok(report(&area, &target))
    }

    pub(super) async fn begin_chunk(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Vec<Marker>, Failure> {
        let mut lease = self.lease().await?;
        // Another release may have prepared the load.
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        let doing = format!("beginning chunk {chunk} of load {}", load.load);
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        staged(&mut lease, load, &doing, Lock::Share).await?;
        // Waits for a commit of an earlier attempt that is under way, so that the markers read below are all there will be.
        let raised = sqlx::query(
            "INSERT INTO haulage.fences AS f (run, load, stage, chunk, attempt, epoch) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (run, load, stage, chunk) DO UPDATE SET attempt = EXCLUDED.attempt, epoch = EXCLUDED.epoch
             WHERE f.attempt <= EXCLUDED.attempt AND f.epoch <= EXCLUDED.epoch RETURNING attempt",
        )
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .bind(i64::from(chunk.stage.0))
        .bind(i64::from(chunk.index))
        .bind(i64::from(attempt.0))
        .bind(load.epoch.0 as i64)
        .fetch_optional(lease.connection())
        .await
        .map_err(|error| lease.place().failure(&doing, error))?;
        if raised.is_none() {
            lease.must(&doing, "ROLLBACK").await?;
            lease.give_back();
            return Err(too_late(load, chunk, attempt));
        }
        lease.must(&doing, "COMMIT").await?;
        let markers = markers(&mut lease, &Area::of(load), chunk)
            .await
            .map_err(|error| lease.place().failure(&doing, error))?;
        lease.give_back();
        Ok(markers)
    }
}

/// Takes the area into a later round. Where markers and rows don't agree, neither is of any use.
async fn open_again(lease: &mut Lease, load: &LoadContext, area: &Area, doing: &str) -> Result<(), Failure> {
    let raised = sqlx::query(
        "UPDATE haulage.loads SET round = $3, set_aside = NULL, older = 0, staged_until = NULL WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(load.round as i32)
    .execute(lease.connection())
    .await;
    raised.map_err(|error| lease.place().failure(doing, error))?;
    lease
        .must(doing, format!("DROP TABLE IF EXISTS {}", area.aside))
        .await?;
    let agree = agree(lease, area).await;
    if !agree.map_err(|error| lease.place().failure(doing, error))? {
        end_stragglers(lease, area).await?;
        let sql = format!("DROP TABLE IF EXISTS {}, {}", area.stage, area.marks);
        lease.must(doing, sql).await?;
    }
    Ok(())
}

async fn agree(lease: &mut Lease, area: &Area) -> Result<bool, sqlx::Error> {
    if !exists(lease, &area.stage).await? || !exists(lease, &area.marks).await? {
        return Ok(false);
    }
    let sql = format!(
        "SELECT (SELECT count(*) FROM {}) = (SELECT coalesce(sum(rows), 0) FROM {})",
        area.stage, area.marks
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(lease.connection())
        .await
}

/// The columns of a load as they are written into its staging area, which exists.
pub(super) async fn writing(lease: &mut Lease, load: &LoadContext) -> Result<Fit, Failure> {
    // The staging table is what COPY writes to: its columns decide, whatever became of the target since.
    let staged = describe_staging(lease, &Area::of(load)).await?;
    if staged.existing.is_none() {
        return Err(ended(load, "without its staging table"));
    }
    // Keys and modes are the target's matter.
    let columns = LoadContext {
        mode: Mode::Replace,
        key: Vec::new(),
        replaces: None,
        evolution: Evolution::default(),
        ..load.clone()
    };
    fit(&columns, &staged).map_err(|misfits| misfit(load, &staged, &misfits))
}

/// Permanent failure that lists what doesn't fit.
pub(super) fn misfit(load: &LoadContext, target: &Target, misfits: &[String]) -> Failure {
    Failure::permanent(format!(
        "load {} does not fit {}: {}",
        load.load,
        target.text(),
        misfits.join("; ")
    ))
}

/// Locks the record and refuses, as `Fenced`, if the load takes no more chunks.
pub(super) async fn staged(lease: &mut Lease, load: &LoadContext, doing: &str, lock: Lock) -> Result<(), Failure> {
    let found = match record(lease, load, lock).await {
        Ok(found) => found,
        // Nobody has prepared anything in this database yet.
        Err(error) if super::failure::code(&error) == Some("42P01") => None,
        Err(error) => return Err(lease.place().failure(doing, error)),
    };
    match found.map(|record| record.state) {
        Some(State::Staged) => Ok(()),
        Some(State::Sealed) => Err(ended(load, "sealed")),
        Some(State::Published) => Err(ended(load, "published")),
        Some(State::Reverted) => Err(ended(load, "reverted")),
        Some(State::Discarded) => Err(ended(load, "discarded")),
        None => Err(ended(load, "not prepared")),
    }
}

fn statements(load: &LoadContext, area: &Area, target: &Target, fit: &Fit) -> String {
    let swap = fit.method == Method::Swap;
    let persistence = if swap { "" } else { "UNLOGGED " };
    // Nothing is vacuumed or analysed in the middle of a load; a swap takes the setting back.
    let quiet = "WITH (autovacuum_enabled = false)";
    let stage = if swap && target.existing.is_some() {
        let evolve: String = evolve::statements(&area.stage, &fit.evolve)
            .iter()
            .map(|statement| format!("\n         {statement};"))
            .collect();
        format!(
            "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY) {quiet};{evolve}",
            area.stage,
            target.sql()
        )
    } else {
        format!(
            "CREATE {persistence}TABLE {} ({}) {quiet};",
            area.stage,
            fit.definitions()
        )
    };
    let words = format!("staging of load {} of run {}", load.load, load.run).replace('\'', "''");
    format!(
        "{stage}
         COMMENT ON TABLE {0} IS '{words}';
         CREATE {persistence}TABLE {1} (stage bigint, chunk bigint, segment bigint, attempt bigint NOT NULL,
             rows bigint NOT NULL, manifest text NOT NULL, PRIMARY KEY (stage, chunk, segment));",
        area.stage, area.marks
    )
}

/// Whether a table of ours exists.
pub(super) async fn exists(lease: &mut Lease, table: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(lease.connection())
        .await
}

async fn markers(lease: &mut Lease, area: &Area, chunk: ChunkId) -> Result<Vec<Marker>, sqlx::Error> {
    let sql = format!(
        "SELECT segment, attempt, rows, manifest FROM {} WHERE stage = $1 AND chunk = $2 ORDER BY segment",
        area.marks
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(i64::from(chunk.stage.0))
        .bind(i64::from(chunk.index))
        .fetch_all(lease.connection())
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Marker {
                chunk: ChunkId {
                    stage: StageId(chunk.stage.0),
                    index: chunk.index,
                },
                segment: row.try_get::<i64, _>(0)? as u32,
                attempt: Attempt(row.try_get::<i64, _>(1)? as u32),
                rows: row.try_get::<i64, _>(2)? as u64,
                manifest: row.try_get(3)?,
            })
        })
        .collect()
}

/// Ends the sessions that still write into a staging area which takes no more rows: a node that was paused in the middle
/// of a segment holds a lock there, and would hold up the publish or the drop for as long as it sleeps. Refused for
/// sessions of another role; then the lock is waited for.
pub(super) async fn end_stragglers(lease: &mut Lease, area: &Area) -> Result<(), Failure> {
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks
         WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND relation = to_regclass($1)::oid AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()",
    )
    .bind(&area.stage)
    .execute(lease.connection())
    .await;
    match ended {
        Err(error) if super::failure::code(&error) != Some("42501") => {
            Err(lease.place().failure("ending late writers", error))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Opens a transaction with `statement`, which needs the staging area to itself. A writer that looked at the record just
/// before it was closed may start its COPY only now: it is ended in turn, until none is left. An autovacuum of it is
/// cancelled by the server, for who waits for longer than a second.
pub(super) async fn alone(lease: &mut Lease, area: &Area, statement: &str, doing: &str) -> Result<(), Failure> {
    let sql = format!(
        "{BEGIN}; SET LOCAL client_min_messages = warning; {LOCK_TIMEOUT}; {statement}; \
         SET LOCAL lock_timeout = 0"
    );
    let mut tries = LOCK_TRIES;
    loop {
        end_stragglers(lease, area).await?;
        match lease.run(sql.as_str()).await {
            Ok(_) => return Ok(()),
            Err(error) if tries > 0 && super::failure::code(&error) == Some("55P03") => {
                lease.must(doing, "ROLLBACK").await?;
                tries -= 1;
            }
            Err(error) => return Err(lease.place().failure(doing, error)),
        }
    }
}

fn report(area: &Area, target: &Target) -> StepReport {
    StepReport {
        rows: 0,
        detail: format!("staging in {} for {}", area.stage, target.text()),
        ..StepReport::default()
    }
}
