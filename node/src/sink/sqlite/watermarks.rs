//! Watermarks in a SQLite file: `_haulage_watermarks`, by the rules of the PostgreSQL destination.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::Mode;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::Sqlite;
use super::bookkeeping::begin;
use super::file::Writer;
use super::target::table_name;
use crate::sink::watermark::{Found, goes_on, stands_elsewhere, unknown_watermark, unreadable_advances};
use crate::sink::{LoadContext, runs_of};

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
        of: row.try_get(8)?,
        replaced_by: row.try_get(9)?,
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
            "SELECT pipeline, target, source, watermark_column, value, run, set_by, changed_at, read_of,
                 replaced_by FROM _haulage_watermarks
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

    /// See [`crate::sink::Destination::published_before`].
    pub(super) async fn read_publisher(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        let table = table_name(&load.table)?;
        let Some(mut connection) = self.there().await? else {
            return Ok(None);
        };
        let sql = "SELECT run FROM _haulage_loads WHERE target = $1 COLLATE NOCASE AND state = 'published'
            AND substr(run, 1, length($2)) = $2 ORDER BY sequence DESC LIMIT 1";
        let run = sqlx::query_scalar(sql)
            .bind(table)
            .bind(runs_of(load))
            .fetch_optional(&mut connection)
            .await;
        run.map_err(|error| self.file.failure(DOING, error))
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

    pub(super) async fn write_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        let doing = "setting a watermark";
        let there = self.there().await?.is_some();
        if !there && mark.column.is_empty() {
            return Err(unknown_watermark(mark));
        }
        let table = table_name(&mark.table)?;
        let mut writer = self.file.writer().await?;
        begin(&mut writer, doing).await?;
        let set = sqlx::query(
            "UPDATE _haulage_watermarks
             SET value = $4, run = '', set_by = $5, changed_at = CURRENT_TIMESTAMP, replaced_by = '', read_of = '',
                 watermark_column = coalesce(nullif($7, ''), watermark_column)
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3 AND value IS $6",
        )
        .bind(&mark.pipeline)
        .bind(&table)
        .bind(&mark.source)
        .bind(&mark.value)
        .bind(&mark.by)
        .bind(was)
        .bind(&mark.column)
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
        let mut set = set.rows_affected();
        if set == 0 && !mark.column.is_empty() {
            let made = sqlx::query(
                "INSERT INTO _haulage_watermarks
                     (pipeline, target, source, watermark_column, value, run, set_by, changed_at, read_of)
                 VALUES ($1, $2, $3, $4, $5, '', $6, CURRENT_TIMESTAMP, '') ON CONFLICT DO NOTHING",
            )
            .bind(&mark.pipeline)
            .bind(&table)
            .bind(&mark.source)
            .bind(&mark.column)
            .bind(&mark.value)
            .bind(&mark.by)
            .execute(writer.connection())
            .await;
            set = made.map_err(|error| writer.failure(doing, error))?.rows_affected();
            if set == 0 {
                return Err(stands_elsewhere(mark));
            }
        }
        if set == 0 {
            let known = sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT 1 FROM _haulage_watermarks
                 WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3)",
            )
            .bind(&mark.pipeline)
            .bind(&table)
            .bind(&mark.source)
            .fetch_one(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
            return Err(if known {
                stands_elsewhere(mark)
            } else {
                unknown_watermark(mark)
            });
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

/// Moves the load's watermarks in the transaction that publishes it; other watermarks of a table that it replaces say
/// nothing any more. Permanent failure if one stands elsewhere than the run found it, or the table had to be made anew.
pub(super) async fn advance(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    created: bool,
    doing: &str,
) -> Result<(), Failure> {
    for advance in &load.advances {
        let row = sqlx::query(
            "SELECT value, run, set_by FROM _haulage_watermarks
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .fetch_optional(writer.connection())
        .await;
        let found = row.and_then(|row| match row {
            Some(row) => Ok(Found {
                value: row.try_get(0)?,
                run: row.try_get(1)?,
                by: row.try_get(2)?,
            }),
            None => Ok(Found::default()),
        });
        let found = found.map_err(|error| writer.failure(doing, error))?;
        goes_on(load, advance, &found, created)?;
        sqlx::query(
            "INSERT INTO _haulage_watermarks
                 (pipeline, target, source, watermark_column, value, run, set_by, changed_at, read_of)
             VALUES ($1, $2, $3, $4, $5, $6, '', CURRENT_TIMESTAMP, $7)
             ON CONFLICT (pipeline, target, source) DO UPDATE SET watermark_column = excluded.watermark_column,
                 value = excluded.value, run = excluded.run, set_by = '', changed_at = excluded.changed_at,
                 read_of = excluded.read_of, replaced_by = ''",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .bind(&advance.column)
        .bind(&advance.to)
        .bind(load.run.as_str())
        .bind(&advance.of)
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    }
    if load.mode == Mode::Replace {
        let sources: Vec<&str> = load.advances.iter().map(|advance| advance.source.as_str()).collect();
        let sources = serde_json::to_string(&sources).map_err(|error| Failure::permanent(error.to_string()))?;
        sqlx::query(
            "UPDATE _haulage_watermarks SET replaced_by = $3
             WHERE target = $2 COLLATE NOCASE AND value IS NOT NULL AND replaced_by = ''
                 AND NOT (pipeline = $1 AND source IN (SELECT value FROM json_each($4)))",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(load.run.as_str())
        .bind(sources)
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

/// Puts the watermarks back that the load's publish has moved, in the transaction that undoes it: also one that somebody has
/// set since, or the rows that go would never be read again.
pub(super) async fn put_back(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    doing: &str,
) -> Result<(), Failure> {
    let made = advances_of(writer.connection(), &load.run, load).await;
    for advance in made.map_err(|error| writer.failure(doing, error))? {
        sqlx::query(
            "UPDATE _haulage_watermarks SET value = $4, run = '', set_by = $5, changed_at = CURRENT_TIMESTAMP
             WHERE pipeline = $1 AND target = $2 COLLATE NOCASE AND source = $3",
        )
        .bind(&load.pipeline)
        .bind(table)
        .bind(&advance.source)
        .bind(&advance.found)
        .bind(format!("revert of {}", load.run))
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    }
    let cleared =
        "UPDATE _haulage_watermarks SET replaced_by = '' WHERE target = $1 COLLATE NOCASE AND replaced_by = $2";
    sqlx::query(cleared)
        .bind(table)
        .bind(load.run.as_str())
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
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
