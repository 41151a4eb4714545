//! What Haulage keeps in a SQLite file, in tables named `_haulage_...`: the record of each load, fences and markers.
//!
//! The states are those of the PostgreSQL destination: staged, sealed, published, reverted, discarded. Everything here
//! runs inside a `BEGIN IMMEDIATE` transaction, which is alone in the file.

use haulage_core::failure::Failure;
use haulage_plan::definition::Mode;
use sqlx::Row;

use super::file::Writer;
use crate::sink::aside::{self, Aside};
use crate::sink::fence::Dealt;
use crate::sink::name::area;
use crate::sink::{ColumnChange, LoadContext};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS _haulage_loads (
    run TEXT NOT NULL, load TEXT NOT NULL, pipeline TEXT NOT NULL, target TEXT NOT NULL, mode TEXT NOT NULL,
    state TEXT NOT NULL, epoch INTEGER NOT NULL, area TEXT NOT NULL, method TEXT, created INTEGER NOT NULL DEFAULT 0,
    rows INTEGER, detail TEXT, sequence INTEGER, replaces TEXT, prepared_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    published_at TEXT, ended_at TEXT, cleaned_at TEXT, settled_at TEXT, round INTEGER NOT NULL DEFAULT 0,
    recalled INTEGER, let_go INTEGER NOT NULL DEFAULT 0, attempts TEXT NOT NULL DEFAULT '{}',
    advances TEXT NOT NULL DEFAULT '[]',
    evolved TEXT NOT NULL DEFAULT '[]',
    origin TEXT, provenance INTEGER NOT NULL DEFAULT 0,
    older INTEGER NOT NULL DEFAULT 0,
    set_aside TEXT,
    PRIMARY KEY (run, load)
);
CREATE TABLE IF NOT EXISTS _haulage_fences (
    run TEXT NOT NULL, load TEXT NOT NULL, stage INTEGER NOT NULL, chunk INTEGER NOT NULL, attempt INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, load, stage, chunk)
);
CREATE TABLE IF NOT EXISTS _haulage_markers (
    run TEXT NOT NULL, load TEXT NOT NULL, stage INTEGER NOT NULL, chunk INTEGER NOT NULL, segment INTEGER NOT NULL,
    attempt INTEGER NOT NULL, rows INTEGER NOT NULL, manifest TEXT NOT NULL,
    PRIMARY KEY (run, load, stage, chunk, segment)
);
CREATE TABLE IF NOT EXISTS _haulage_watermarks (
    pipeline TEXT NOT NULL, target TEXT NOT NULL COLLATE NOCASE, source TEXT NOT NULL, watermark_column TEXT NOT NULL,
    value TEXT, run TEXT NOT NULL, set_by TEXT NOT NULL, changed_at TEXT NOT NULL, read_of TEXT NOT NULL,
    replaced_by TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (pipeline, target, source)
);";

/// Columns that later releases have added, and to which table.
const MORE: [(&str, &str, &str); 12] = [
    ("_haulage_loads", "settled_at", "TEXT"),
    ("_haulage_loads", "round", "INTEGER NOT NULL DEFAULT 0"),
    ("_haulage_loads", "recalled", "INTEGER"),
    ("_haulage_loads", "let_go", "INTEGER NOT NULL DEFAULT 0"),
    ("_haulage_loads", "attempts", "TEXT NOT NULL DEFAULT '{}'"),
    ("_haulage_loads", "advances", "TEXT NOT NULL DEFAULT '[]'"),
    ("_haulage_loads", "evolved", "TEXT NOT NULL DEFAULT '[]'"),
    ("_haulage_loads", "origin", "TEXT"),
    ("_haulage_loads", "provenance", "INTEGER NOT NULL DEFAULT 0"),
    ("_haulage_loads", "older", "INTEGER NOT NULL DEFAULT 0"),
    ("_haulage_loads", "set_aside", "TEXT"),
    ("_haulage_fences", "epoch", "INTEGER NOT NULL DEFAULT 0"),
];

/// How a load was published, and so how it is reverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Staging became the target, which did not exist.
    Rename,
    /// Old rows are in `before`.
    Rewrite,
    /// Rows carry their run; those of a replaced run are in `before`.
    Append,
    /// Keys of added rows are in `keys`.
    AppendByKey,
    /// Old rows are in `before`, keys of added rows in `keys`.
    Merge,
}

impl Method {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "rename" => Self::Rename,
            "rewrite" => Self::Rewrite,
            "append" => Self::Append,
            "append_by_key" => Self::AppendByKey,
            "merge" => Self::Merge,
            _ => return None,
        })
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Rename => "rename",
            Self::Rewrite => "rewrite",
            Self::Append => "append",
            Self::AppendByKey => "append_by_key",
            Self::Merge => "merge",
        }
    }
}

/// The record of a load of a run. `state` is one of the five words.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) state: String,
    dealt: Dealt,
    pub(super) method: Option<Method>,
    pub(super) created: bool,
    pub(super) rows: u64,
    pub(super) detail: String,
    pub(super) sequence: i64,
    pub(super) cleaned: bool,
    /// How often the run had staged again what was lost, when this load was prepared last.
    pub(super) round: u32,
    /// What publishing has made of the columns of a target that stayed.
    pub(super) evolved: Vec<ColumnChange>,
    /// What checks have set aside of the staged rows.
    pub(super) set_aside: Option<Aside>,
    /// Rows that newer ones with their keys have kept from the table, of the run as of others.
    pub(super) older: u64,
}

/// The tables of a load's staging area.
#[derive(Debug, Clone)]
pub(super) struct Area {
    pub(super) stage: String,
    /// Which rows checks have named, until they are set aside.
    pub(super) aside: String,
    pub(super) before: String,
    pub(super) keys: String,
}

impl Area {
    pub(super) fn of(load: &LoadContext) -> Self {
        Self::named(&area(&load.run, &load.load))
    }

    /// The area with this suffix, as the record has it.
    pub(super) fn named(id: &str) -> Self {
        Self {
            stage: format!("_haulage_stage_{id}"),
            aside: format!("_haulage_aside_{id}"),
            before: format!("_haulage_before_{id}"),
            keys: format!("_haulage_keys_{id}"),
        }
    }
}

/// Opens a transaction that is alone in the file, and makes the tables if they are missing.
pub(super) async fn begin(writer: &mut Writer<'_>, doing: &str) -> Result<(), Failure> {
    writer.must(doing, "BEGIN IMMEDIATE").await?;
    // The last of the tables; earlier releases have made the others.
    let there: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_haulage_watermarks')")
            .fetch_one(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    if !there {
        writer.must(doing, TABLES).await?;
    }
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT '_haulage_loads', name FROM pragma_table_info('_haulage_loads')
         UNION ALL SELECT '_haulage_fences', name FROM pragma_table_info('_haulage_fences')",
    )
    .fetch_all(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    for (table, column, kind) in MORE {
        if !columns
            .iter()
            .any(|there| (there.0.as_str(), there.1.as_str()) == (table, column))
        {
            let sql = format!("ALTER TABLE {table} ADD COLUMN {column} {kind}");
            writer.must(doing, sql).await?;
        }
    }
    Ok(())
}

/// Reads the record, and enters the caller's epoch and its attempt of this step. `None` if there is none. `Fenced` if a
/// later leader, or a later attempt of the step, has already dealt with this load.
pub(super) async fn hold(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    step: &str,
    doing: &str,
) -> Result<Option<Record>, Failure> {
    let Some(mut record) = read(writer, load).await.map_err(|error| writer.failure(doing, error))? else {
        return Ok(None);
    };
    if record.dealt.deal(load, step)? {
        sqlx::query("UPDATE _haulage_loads SET epoch = $3, attempts = $4 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(record.dealt.epoch())
            .bind(record.dealt.attempts())
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(Some(record))
}

/// Reads the record.
pub(super) async fn read(writer: &mut Writer<'_>, load: &LoadContext) -> Result<Option<Record>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT state, epoch, method, created, coalesce(rows, 0), coalesce(detail, ''), coalesce(sequence, 0),
                cleaned_at IS NOT NULL, round, attempts, evolved, set_aside, older
         FROM _haulage_loads WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .fetch_optional(writer.connection())
    .await?;
    row.map(|row| {
        let method: Option<String> = row.try_get(2)?;
        Ok(Record {
            state: row.try_get(0)?,
            dealt: Dealt::read(row.try_get(1)?, row.try_get(9)?)?,
            method: method.as_deref().and_then(Method::parse),
            created: row.try_get(3)?,
            rows: row.try_get::<i64, _>(4)? as u64,
            detail: row.try_get(5)?,
            sequence: row.try_get(6)?,
            cleaned: row.try_get(7)?,
            round: row.try_get::<i64, _>(8)? as u32,
            evolved: serde_json::from_str(row.try_get(10)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
            set_aside: aside::read(row.try_get(11)?)?,
            older: row.try_get::<i64, _>(12)? as u64,
        })
    })
    .transpose()
}

/// Makes the record in state `fresh` if there is none, and [holds](hold) it.
pub(super) async fn claim(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    step: &str,
    target: &str,
    fresh: &str,
    doing: &str,
) -> Result<Record, Failure> {
    let mode = match load.mode {
        Mode::Append => "append",
        Mode::Replace => "replace",
        Mode::Merge => "merge",
    };
    sqlx::query(
        "INSERT INTO _haulage_loads (run, load, pipeline, target, mode, state, epoch, area, replaces, origin)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(&load.pipeline)
    .bind(target)
    .bind(mode)
    .bind(fresh)
    .bind(load.epoch.0 as i64)
    .bind(area(&load.run, &load.load))
    .bind(load.replaces.as_ref().map(|run| run.as_str()))
    .bind(load.origin.as_ref().map(|run| run.as_str()))
    .execute(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    match hold(writer, load, step, doing).await? {
        Some(record) => Ok(record),
        None => Err(Failure::transient(format!(
            "the record of load {} vanished while it was opened",
            load.load
        ))),
    }
}

/// Moves the record to a state.
pub(super) async fn set_state(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    state: &str,
    doing: &str,
) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE _haulage_loads SET state = $3,
             ended_at = CASE WHEN $3 IN ('reverted', 'discarded') THEN CURRENT_TIMESTAMP ELSE ended_at END
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(state)
    .execute(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    Ok(())
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

/// What a chunk or step of a load that has ended is told.
pub(super) fn ended(load: &LoadContext, state: &str) -> Failure {
    Failure::fenced(format!(
        "load {} of run {} is {state}; its staging area is gone",
        load.load, load.run
    ))
}

/// Refuses, as `Fenced`, if the load takes no more chunks.
pub(super) fn must_be_staged(load: &LoadContext, record: Option<&Record>) -> Result<(), Failure> {
    match record.map(|record| record.state.as_str()) {
        Some("staged") => Ok(()),
        Some(other) => Err(ended(load, other)),
        None => Err(ended(load, "not prepared")),
    }
}
