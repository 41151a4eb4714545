//! What Haulage keeps in schema `haulage` of a warehouse: a record for each load of each run, the fences of its chunks,
//! and a row for each target that publishes queue on.
//!
//! ```text
//! staged --verify--> sealed --publish--> published --revert--> reverted
//!    \                  \                                         |
//!     +------discard-----+---------------> discarded <--discard---+   (a published load stays published)
//! ```
//!
//! A prepare of a later round, after a crash has emptied unlogged staging, opens a sealed record again.
//!
//! Only `staged` takes chunks; `sealed` may be published; `reverted` and `discarded` are tombstones that fence every late
//! writer of that run. Staging itself is three tables a load, named by [`area`](crate::sink::name::area): `stage_` the
//! rows, `marks_` the markers, with the same persistence as the rows so that a crash which truncates one truncates the
//! other, `aside_` while checks set rows aside, and
//! after a publish `prev_` or `before_` and `keys_` for a revert. `settled_at` says that the whole run is
//! published, so that nothing but a revert on purpose needs them any more; `cleaned_at` that they are gone. `recalled` says
//! that a revert on purpose has begun, and the how many-th. Of a record that is not settled or is recalled the publish may
//! still be taken back, and other runs' publishes wait. `let_go` is the last revert that was refused after all. `epoch` and
//! `attempts` say who has dealt with the record last: see [`Dealt`]. Of a replay `origin` is the run whose rejected rows it
//! reads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_plan::definition::Mode;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::time::sleep;

use super::connect::{BEGIN, Lease};
use super::failure::code;
use crate::sink::aside::{self, Aside};
use crate::sink::fence::Dealt;
use crate::sink::name::area;
use crate::sink::{ColumnChange, LoadContext};

/// Serializes the creation of the schema between all nodes.
const SCHEMA_LOCK: i64 = 0x6861_756c_6167_6531;
/// A column is added under a lock that a publish which goes on stands in the way of, and whoever waits for it holds up all
/// others. So it is waited for briefly, as often as a minute has room for.
const SCHEMA_TRIES: u32 = 14;
/// Between two of them.
const SCHEMA_PAUSE: Duration = Duration::from_millis(500);

const SCHEMA: &str = "
CREATE SCHEMA IF NOT EXISTS haulage;
CREATE TABLE IF NOT EXISTS haulage.targets (target text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS haulage.loads (
    run text NOT NULL,
    load text NOT NULL,
    pipeline text NOT NULL,
    target text NOT NULL,
    mode text NOT NULL,
    state text NOT NULL CHECK (state IN ('staged', 'sealed', 'published', 'reverted', 'discarded')),
    epoch bigint NOT NULL,
    area text NOT NULL,
    shape text,
    staged_until bigint,
    method text,
    created boolean NOT NULL DEFAULT false,
    names text[] NOT NULL DEFAULT '{}',
    rows bigint,
    detail text,
    sequence bigint,
    replaces text,
    prepared_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    ended_at timestamptz,
    cleaned_at timestamptz,
    settled_at timestamptz,
    round integer NOT NULL DEFAULT 0,
    recalled integer,
    let_go integer NOT NULL DEFAULT 0,
    attempts jsonb NOT NULL DEFAULT '{}',
    advances jsonb NOT NULL DEFAULT '[]',
    evolved text NOT NULL DEFAULT '[]',
    origin text,
    provenance boolean NOT NULL DEFAULT false,
    older bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (run, load)
);
ALTER TABLE haulage.loads ADD COLUMN IF NOT EXISTS settled_at timestamptz,
    ADD COLUMN IF NOT EXISTS round integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS recalled integer,
    ADD COLUMN IF NOT EXISTS let_go integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS attempts jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS advances jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS evolved text NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS origin text,
    ADD COLUMN IF NOT EXISTS provenance boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS older bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS set_aside text;
CREATE TABLE IF NOT EXISTS haulage.fences (
    run text NOT NULL,
    load text NOT NULL,
    stage bigint NOT NULL,
    chunk bigint NOT NULL,
    attempt bigint NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (run, load, stage, chunk)
);
ALTER TABLE haulage.fences ADD COLUMN IF NOT EXISTS epoch bigint NOT NULL DEFAULT 0;
CREATE SEQUENCE IF NOT EXISTS haulage.published;
CREATE TABLE IF NOT EXISTS haulage.watermarks (
    pipeline text NOT NULL,
    target text NOT NULL,
    source text NOT NULL,
    watermark_column text NOT NULL,
    value text,
    run text NOT NULL,
    set_by text NOT NULL,
    changed_at timestamptz NOT NULL,
    read_of text NOT NULL,
    replaced_by text NOT NULL DEFAULT '',
    PRIMARY KEY (pipeline, target, source)
);
";

/// Where a load stands at this destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Staged,
    Sealed,
    Published,
    Reverted,
    Discarded,
}

impl State {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "staged" => Self::Staged,
            "sealed" => Self::Sealed,
            "published" => Self::Published,
            "reverted" => Self::Reverted,
            "discarded" => Self::Discarded,
            _ => return None,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Sealed => "sealed",
            Self::Published => "published",
            Self::Reverted => "reverted",
            Self::Discarded => "discarded",
        }
    }
}

/// How a load was published, and so how it is reverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Staging became the target; the old table is `prev_`.
    Swap,
    /// The target's rows were deleted and the staged ones inserted; the old rows are in `before_`.
    Rewrite,
    /// Rows were added and carry the run in `_haulage_run`; rows of a replaced run are in `before_`.
    Append,
    /// Rows were added; their keys are in `keys_`.
    AppendByKey,
    /// Rows were updated (old ones in `before_`) and added (keys in `keys_`).
    Merge,
}

impl Method {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "swap" => Self::Swap,
            "rewrite" => Self::Rewrite,
            "append" => Self::Append,
            "append_by_key" => Self::AppendByKey,
            "merge" => Self::Merge,
            _ => return None,
        })
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Swap => "swap",
            Self::Rewrite => "rewrite",
            Self::Append => "append",
            Self::AppendByKey => "append_by_key",
            Self::Merge => "merge",
        }
    }
}

/// The record of a load of a run.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) state: State,
    dealt: Dealt,
    /// The target's signature when staging was made; `None` if it did not exist.
    pub(super) shape: Option<String>,
    pub(super) method: Option<Method>,
    /// Whether publishing made the target.
    pub(super) created: bool,
    /// Names that the old table's indexes had, in order.
    pub(super) names: Vec<String>,
    pub(super) rows: i64,
    pub(super) detail: String,
    pub(super) sequence: Option<i64>,
    pub(super) cleaned: bool,
    /// The first transaction id after those of the staged rows, once they are verified.
    pub(super) staged_until: Option<i64>,
    /// How often the run had staged again what was lost, when this load was prepared last.
    pub(super) round: u32,
    /// What publishing has made of the columns of a target that stayed.
    pub(super) evolved: Vec<ColumnChange>,
    /// Rows that newer ones with their keys have kept from the table, of the run as of others.
    pub(super) older: u64,
    /// What checks have set aside of the staged rows.
    pub(super) set_aside: Option<Aside>,
}

/// The tables of a load's staging area.
#[derive(Debug, Clone)]
pub(super) struct Area {
    /// The suffix of them all.
    pub(super) id: String,
    pub(super) stage: String,
    pub(super) marks: String,
    pub(super) aside: String,
    pub(super) prev: String,
    pub(super) before: String,
    pub(super) keys: String,
}

impl Area {
    pub(super) fn of(load: &LoadContext) -> Self {
        Self::named(area(&load.run, &load.load))
    }

    /// The area with this suffix, as the record has it.
    pub(super) fn named(id: String) -> Self {
        Self {
            stage: format!("haulage.stage_{id}"),
            marks: format!("haulage.marks_{id}"),
            aside: format!("haulage.aside_{id}"),
            prev: format!("haulage.prev_{id}"),
            before: format!("haulage.before_{id}"),
            keys: format!("haulage.keys_{id}"),
            id,
        }
    }
}

/// The mode as it stands in the record.
pub(super) fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Append => "append",
        Mode::Replace => "replace",
        Mode::Merge => "merge",
    }
}

/// Makes the schema if it isn't there. `known` remembers that it is.
pub(super) async fn ensure(lease: &mut Lease, known: &AtomicBool) -> Result<(), Failure> {
    if known.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut tries = SCHEMA_TRIES;
    while !is_current(lease).await? {
        let sql = format!(
            "{BEGIN}; SET LOCAL lock_timeout = '3s'; SET LOCAL client_min_messages = warning; \
             SELECT pg_advisory_xact_lock({SCHEMA_LOCK}); {SCHEMA} COMMIT"
        );
        let doing = "creating schema haulage";
        let Err(error) = lease.run(sql).await else { break };
        // The connection is asked again by who can do without the schema.
        lease.must(doing, "ROLLBACK").await?;
        if tries == 0 || code(&error) != Some("55P03") {
            return Err(lease.place().failure(doing, error));
        }
        tries -= 1;
        sleep(SCHEMA_PAUSE).await;
    }
    known.store(true, Ordering::Relaxed);
    Ok(())
}

/// Makes the schema for an undoing, where it leaves a record against late writers. False if the schema isn't there and
/// may not be made either: then nothing was ever staged or published, and there is nothing to undo.
pub(super) async fn ensure_to_undo(lease: &mut Lease, known: &AtomicBool) -> Result<bool, Failure> {
    match ensure(lease, known).await {
        Ok(()) => Ok(true),
        Err(failure) if failure.class == Class::Permanent && !is_there(lease).await? => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Whether the schema is there, as this release makes it.
async fn is_current(lease: &mut Lease) -> Result<bool, Failure> {
    sqlx::query_scalar(
        "SELECT to_regclass('haulage.watermarks') IS NOT NULL AND (SELECT count(*) = 4 FROM pg_attribute
         WHERE attrelid = to_regclass('haulage.loads') AND attname IN ('advances', 'evolved', 'older', 'set_aside') AND NOT attisdropped)",
    )
    .fetch_one(lease.connection())
    .await
    .map_err(|error| lease.place().failure("looking for schema haulage", error))
}

pub(super) async fn is_there(lease: &mut Lease) -> Result<bool, Failure> {
    sqlx::query_scalar("SELECT to_regclass('haulage.fences') IS NOT NULL")
        .fetch_one(lease.connection())
        .await
        .map_err(|error| lease.place().failure("looking for schema haulage", error))
}

/// How a record is locked while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    None,
    /// With other chunks, but against steps.
    Share,
    /// Alone.
    Update,
}

/// Reads and locks the record of a load.
pub(super) async fn record(lease: &mut Lease, load: &LoadContext, lock: Lock) -> Result<Option<Record>, sqlx::Error> {
    let sql = match lock {
        Lock::None => concat!(
            "SELECT state, epoch, shape, method, created, names, rows, detail, sequence, cleaned_at IS NOT NULL, staged_until, round, attempts::text, evolved, older, set_aside ",
            "FROM haulage.loads WHERE run = $1 AND load = $2"
        ),
        Lock::Share => concat!(
            "SELECT state, epoch, shape, method, created, names, rows, detail, sequence, cleaned_at IS NOT NULL, staged_until, round, attempts::text, evolved, older, set_aside ",
            "FROM haulage.loads WHERE run = $1 AND load = $2 FOR SHARE"
        ),
        Lock::Update => concat!(
            "SELECT state, epoch, shape, method, created, names, rows, detail, sequence, cleaned_at IS NOT NULL, staged_until, round, attempts::text, evolved, older, set_aside ",
            "FROM haulage.loads WHERE run = $1 AND load = $2 FOR UPDATE"
        ),
    };
    let row = sqlx::query(sql)
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .fetch_optional(lease.connection())
        .await?;
    row.map(|row| read(&row)).transpose()
}

fn read(row: &PgRow) -> Result<Record, sqlx::Error> {
    let state: String = row.try_get(0)?;
    let method: Option<String> = row.try_get(3)?;
    Ok(Record {
        state: State::parse(&state).ok_or_else(|| sqlx::Error::Decode(format!("no state `{state}`").into()))?,
        dealt: Dealt::read(row.try_get(1)?, row.try_get(12)?)?,
        shape: row.try_get(2)?,
        method: method.as_deref().and_then(Method::parse),
        created: row.try_get(4)?,
        names: row.try_get(5)?,
        rows: row.try_get::<Option<i64>, _>(6)?.unwrap_or(0),
        detail: row.try_get::<Option<String>, _>(7)?.unwrap_or_default(),
        sequence: row.try_get(8)?,
        cleaned: row.try_get(9)?,
        staged_until: row.try_get(10)?,
        round: row.try_get::<i32, _>(11)? as u32,
        evolved: serde_json::from_str(row.try_get(13)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
        older: row.try_get::<i64, _>(14)? as u64,
        set_aside: aside::read(row.try_get(15)?)?,
    })
}

/// Makes the record if there is none, and [holds](hold) it.
pub(super) async fn claim(
    lease: &mut Lease,
    load: &LoadContext,
    step: &str,
    target: &str,
    fresh: State,
) -> Result<Record, Failure> {
    let doing = format!("opening the record of load {}", load.load);
    let area = Area::of(load);
    let made = sqlx::query(
        "INSERT INTO haulage.loads (run, load, pipeline, target, mode, state, epoch, area, replaces, origin)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (run, load) DO NOTHING",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(&load.pipeline)
    .bind(target)
    .bind(mode_text(load.mode))
    .bind(fresh.text())
    .bind(load.epoch.0 as i64)
    .bind(&area.id)
    .bind(load.replaces.as_ref().map(|run| run.as_str()))
    .bind(load.origin.as_ref().map(|run| run.as_str()))
    .execute(lease.connection())
    .await;
    if let Err(error) = made {
        return Err(lease.place().failure(&doing, error));
    }
    match hold(lease, load, step).await? {
        Some(record) => Ok(record),
        None => Err(Failure::transient(format!(
            "{}: the record of load {} vanished while it was opened",
            lease.place(),
            load.load
        ))),
    }
}

/// Locks the record against chunks and other steps, and enters the caller's epoch and its attempt of this step. `None` if
/// there is none. `Fenced` if a later leader, or a later attempt of the step, has already dealt with this load.
pub(super) async fn hold(lease: &mut Lease, load: &LoadContext, step: &str) -> Result<Option<Record>, Failure> {
    let doing = format!("opening the record of load {}", load.load);
    let mut found = match record(lease, load, Lock::Update).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        Err(error) => return Err(lease.place().failure(&doing, error)),
    };
    if found.dealt.deal(load, step)? {
        sqlx::query("UPDATE haulage.loads SET epoch = $3, attempts = $4::jsonb WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(found.dealt.epoch())
            .bind(found.dealt.attempts())
            .execute(lease.connection())
            .await
            .map_err(|error| lease.place().failure(&doing, error))?;
    }
    Ok(Some(found))
}

/// Enters the caller in the record, and lets it go again: what comes after this may wait, and wait again, and an earlier
/// attempt that wakes up meanwhile is to find it there. Waits for whoever holds the record, as long as that takes.
pub(super) async fn enter(lease: &mut Lease, load: &LoadContext, step: &str) -> Result<(), Failure> {
    let doing = format!("opening the record of load {}", load.load);
    lease.must(&doing, BEGIN).await?;
    hold(lease, load, step).await?;
    lease.must(&doing, "COMMIT").await?;
    Ok(())
}

/// Moves a locked record to a state. The time of an end is kept.
pub(super) async fn set_state(lease: &mut Lease, load: &LoadContext, state: State) -> Result<(), Failure> {
    let done = sqlx::query(
        "UPDATE haulage.loads SET state = $3,
             ended_at = CASE WHEN $3 IN ('reverted', 'discarded') THEN now() ELSE ended_at END
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(state.text())
    .execute(lease.connection())
    .await;
    match done {
        Ok(_) => Ok(()),
        Err(error) => Err(lease
            .place()
            .failure(&format!("marking load {} as {}", load.load, state.text()), error)),
    }
}

/// Refuses, as `Fenced`, a step of an earlier round: what it was to verify or publish is being staged again.
pub(super) fn same_round(load: &LoadContext, record: &Record) -> Result<(), Failure> {
    if record.round > load.round {
        return Err(Failure::fenced(format!(
            "load {} of run {} has been opened again for round {}, this is round {}",
            load.load, load.run, record.round, load.round
        )));
    }
    Ok(())
}

/// Queues on the target: two runs publish to one table one after the other.
pub(super) async fn queue_on(lease: &mut Lease, target: &str) -> Result<(), Failure> {
    let doing = format!("queueing on {target}");
    let made = sqlx::query("INSERT INTO haulage.targets (target) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(target)
        .execute(lease.connection())
        .await;
    if let Err(error) = made {
        return Err(lease.place().failure(&doing, error));
    }
    let locked = sqlx::query("SELECT 1 FROM haulage.targets WHERE target = $1 FOR UPDATE")
        .bind(target)
        .execute(lease.connection())
        .await;
    match locked {
        Ok(_) => Ok(()),
        Err(error) => Err(lease.place().failure(&doing, error)),
    }
}

/// What a chunk or step of a load that has ended is told.
pub(super) fn ended(load: &LoadContext, state: &str) -> Failure {
    Failure::fenced(format!(
        "load {} of run {} is {state}; its staging area is gone",
        load.load, load.run
    ))
}
