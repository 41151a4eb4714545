//! Watermarks in a SQLite file: `_haulage_watermarks`, by the rules of the PostgreSQL destination.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::Sqlite;
use super::bookkeeping::begin;
use super::file::Writer;
use super::target::table_name;
use crate::sink::LoadContext;
use crate::sink::watermark::{moved_on, unknown_watermark, unreadable_advances};

const DOING: &str = "reading watermarks";

fn read(row: &SqliteRow) -> Result<Watermark, sqlx::Error> {
    Ok(Watermark {
        destination: String::new(),
        pipeline: row.try_get(0)?,
        table: row.try_get(1)?,
        source: row.try_get(2)?,
        column: row.try_get(3)?,
        value: row.try_get(4)?,
        run: row.try_get(5)?,
        by: row.try_get(6)?,
        at: row.try_get(7)?,
    })
}

impl Sqlite {
    /// Those of a pipeline, and of them those of a target; `None` is all.
    pub(super) async fn read_watermarks(
        &self,
        pipeline: Option<&str>,
        table: Option<&str>,
    ) -> Result<Vec<Watermark>, Failure> {
        let table = table.map(table_name).transpose()?;
        let Some(mut connection) = self.there().await? else {
            return Ok(Vec::new());
        };
        let rows = sqlx::query(
            "SELECT pipeline, target, source, watermark_column, value, run, set_by, changed_at FROM _haulage_watermarks
             WHERE ($1 IS NULL OR pipeline = $1) AND ($2 IS NULL OR target = $2 COLLATE NOCASE)
             ORDER BY pipeline, target, source",
        )
        .bind(pipeline)
        .bind(table)
        .fetch_all(&mut connection)
        .await;
        let marks = rows.and_then(|rows| rows.iter().map(read).collect());
        marks.map_err(|error| self.file.failure(DOING, error))
    }

    pub(super) async fn read_advances(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        let Some(mut connection) = self.there().await? else {
            return Ok(Vec::new());
        };
        let found = advances_of(&mut connection, run, load).await;
        found.map_err(|error| self.file.failure(DOING, error))
    }

    /// A connection, if there is a file with watermarks.
    async fn there(&self) -> Result<Option<SqliteConnection>, Failure> {
        let Some(mut connection) = self.file.reader().await? else {
            return Ok(None);
        };
        let there: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_haulage_watermarks')")
                .fetch_one(&mut connection)
                .await
                .map_err(|error| self.file.failure(DOING, error))?;
        Ok(there.then_some(connection))
    }

    pub(super) async fn write_watermark(&self, mark: &Watermark) -> Result<(), Failure> {
        let doing = "setting a watermark";
        if self.there().await?.is_none() {
            return Err(unknown_watermark(mark));
        }
        let table = table_name(&mark.table)?;
        let mut writer = self.file.writer().await?;
        begin(&mut writer, doing).await?;
        let set = sqlx::query(
            "UPDATE _haulage_watermarks SET value = $4, run = '', set_by = $5, changed_at = CURRENT_TIMESTAMP
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3",
        )
        .bind(&mark.pipeline)
        .bind(&table)
        .bind(&mark.source)
        .bind(&mark.value)
        .bind(&mark.by)
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
        if set.rows_affected() == 0 {
            return Err(unknown_watermark(mark));
        }
        writer.must(doing, "COMMIT").await?;
        writer.keep();
        Ok(())
    }
}

async fn advances_of(
    connection: &mut SqliteConnection,
    run: &RunId,
    load: &LoadContext,
) -> Result<Vec<Advance>, sqlx::Error> {
    let text: Option<String> =
        sqlx::query_scalar("SELECT advances FROM _haulage_loads WHERE run = $1 AND load = $2 AND state = 'published'")
            .bind(run.as_str())
            .bind(load.load.as_str())
            .fetch_optional(connection)
            .await?;
    text.map_or(Ok(Vec::new()), |text| {
        serde_json::from_str(&text).map_err(unreadable_advances)
    })
}

/// Moves the load's watermarks in the transaction that publishes it. Permanent failure if one stands elsewhere than the run
/// found it.
pub(super) async fn advance(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    doing: &str,
) -> Result<(), Failure> {
    for advance in &load.advances {
        let row = sqlx::query(
            "SELECT value, run FROM _haulage_watermarks
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .fetch_optional(writer.connection())
        .await;
        let stands = row.and_then(|row| match row {
            Some(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
            None => Ok((None::<String>, String::new())),
        });
        let (value, run) = stands.map_err(|error| writer.failure(doing, error))?;
        if value != advance.found {
            return Err(moved_on(load, advance, value.as_deref(), &run));
        }
        sqlx::query(
            "INSERT INTO _haulage_watermarks (pipeline, target, source, watermark_column, value, run, set_by, changed_at)
             VALUES ($1, $2, $3, $4, $5, $6, '', CURRENT_TIMESTAMP)
             ON CONFLICT (pipeline, target, source) DO UPDATE SET watermark_column = excluded.watermark_column,
                 value = excluded.value, run = excluded.run, set_by = '', changed_at = excluded.changed_at",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .bind(&advance.column)
        .bind(&advance.to)
        .bind(load.run.as_str())
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    }
    if !load.advances.is_empty() {
        let text = serde_json::to_string(&load.advances).map_err(|error| Failure::permanent(error.to_string()))?;
        sqlx::query("UPDATE _haulage_loads SET advances = $3 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(text)
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(())
}

/// Puts the watermarks back that the load's publish has moved, in the transaction that undoes it. One that somebody has set
/// to another value since stays.
pub(super) async fn put_back(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    doing: &str,
) -> Result<(), Failure> {
    let made = advances_of(writer.connection(), &load.run, load).await;
    for advance in made.map_err(|error| writer.failure(doing, error))? {
        sqlx::query(
            "UPDATE _haulage_watermarks SET value = $5, run = '', set_by = $6, changed_at = CURRENT_TIMESTAMP
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3 AND value IS $4",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .bind(&advance.to)
        .bind(&advance.found)
        .bind(format!("revert of {}", load.run))
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(())
}

/// The published runs that have read on from where this one has stopped, newest first, if there are any.
pub(super) async fn built_on(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    sequence: i64,
    table: &str,
    doing: &str,
) -> Result<Option<String>, Failure> {
    sqlx::query_scalar(
        "SELECT group_concat(run, ', ') FROM (SELECT later.run FROM _haulage_loads later, _haulage_loads mine
         WHERE mine.run = $1 AND mine.load = $2 AND mine.advances <> '[]' AND later.state = 'published'
             AND later.target = $4 COLLATE NOCASE AND later.pipeline = mine.pipeline AND later.advances <> '[]'
             AND later.sequence > $3 ORDER BY later.sequence DESC)",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(sequence)
    .bind(table)
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))
}
