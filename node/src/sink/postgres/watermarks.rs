//! Watermarks in a warehouse: `haulage.watermarks`, a row for each pipeline, target and source. They move in the transaction
//! that publishes, under the target's lock, and back in the one that reverts; `haulage.loads.advances` keeps what a publish
//! has made of them.

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::Mode;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::Postgres;
use super::bookkeeping;
use super::connect::{BEGIN_BRIEFLY, Lease};
use super::publish::Trouble;
use super::target::describe;
use crate::sink::watermark::{Found, goes_on, stands_elsewhere, unknown_watermark, unreadable_advances};
use crate::sink::{LoadContext, runs_of};

const ALL: &str = "SELECT pipeline, target, source, watermark_column, value, run, set_by,
    to_char(changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), read_of, replaced_by FROM haulage.watermarks
    WHERE ($1::text IS NULL OR pipeline = $1) AND ($2::text IS NULL OR target = $2) ORDER BY pipeline, target, source";

fn read(row: &PgRow) -> Result<Watermark, sqlx::Error> {
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

impl Postgres {
    /// Those of a pipeline, and of them those of a target; `None` is all.
    pub(super) async fn read_watermarks(
        &self,
        pipeline: Option<&str>,
        table: Option<&str>,
    ) -> Result<Vec<Watermark>, Failure> {
        let mut lease = self.lease().await?;
        if !is_there(&mut lease).await? {
            return Ok(Vec::new());
        }
        let target = match table {
            Some(table) => Some(describe(&mut lease, table).await?.text()),
            None => None,
        };
        let rows = sqlx::query(ALL)
            .bind(pipeline)
            .bind(target)
            .fetch_all(lease.connection())
            .await;
        let marks = rows.and_then(|rows| rows.iter().map(read).collect());
        let marks = marks.map_err(|error| lease.place().failure("reading watermarks", error))?;
        lease.give_back();
        Ok(marks)
    }

    /// See [`crate::sink::Destination::published_before`].
    pub(super) async fn read_publisher(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        let mut lease = self.lease().await?;
        if !is_there(&mut lease).await? {
            return Ok(None);
        }
        let target = describe(&mut lease, &load.table).await?.text();
        let sql = "SELECT run FROM haulage.loads WHERE target = $1 AND state = 'published' AND starts_with(run, $2)
            ORDER BY sequence DESC LIMIT 1";
        let asking = sqlx::query_scalar(sql)
            .bind(target)
            .bind(runs_of(load))
            .fetch_optional(lease.connection());
        let run = asking.await;
        let run = run.map_err(|error| lease.place().failure("looking who has published", error))?;
        lease.give_back();
        Ok(run)
    }

    pub(super) async fn read_advances(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        let mut lease = self.lease().await?;
        if !is_there(&mut lease).await? {
            return Ok(Vec::new());
        }
        let found = advances_of(&mut lease, run, load).await;
        let found = found.map_err(|error| {
            lease
                .place()
                .failure("reading what a run has made of watermarks", error)
        })?;
        lease.give_back();
        Ok(found)
    }

    pub(super) async fn write_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        let mut lease = self.lease().await?;
        let doing = "setting a watermark";
        if !is_there(&mut lease).await? && mark.column.is_empty() {
            return Err(unknown_watermark(mark));
        }
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        let target = describe(&mut lease, &mark.table).await?.text();
        lease.must(doing, BEGIN_BRIEFLY).await?;
        let set = sqlx::query(
            "UPDATE haulage.watermarks SET value = $4, run = '', set_by = $5, changed_at = now(), replaced_by = '',
                 read_of = '', watermark_column = coalesce(nullif($7, ''), watermark_column)
             WHERE pipeline = $1 AND target = $2 AND source = $3 AND value IS NOT DISTINCT FROM $6",
        )
        .bind(&mark.pipeline)
        .bind(&target)
        .bind(&mark.source)
        .bind(&mark.value)
        .bind(&mark.by)
        .bind(was)
        .bind(&mark.column)
        .execute(lease.connection())
        .await;
        let mut set = set
            .map_err(|error| lease.place().failure(doing, error))?
            .rows_affected();
        if set == 0 && !mark.column.is_empty() {
            let made = sqlx::query(
                "INSERT INTO haulage.watermarks
                     (pipeline, target, source, watermark_column, value, run, set_by, changed_at, read_of)
                 VALUES ($1, $2, $3, $4, $5, '', $6, now(), '') ON CONFLICT DO NOTHING",
            )
            .bind(&mark.pipeline)
            .bind(&target)
            .bind(&mark.source)
            .bind(&mark.column)
            .bind(&mark.value)
            .bind(&mark.by)
            .execute(lease.connection())
            .await;
            set = made
                .map_err(|error| lease.place().failure(doing, error))?
                .rows_affected();
            if set == 0 {
                return Err(stands_elsewhere(mark));
            }
        }
        if set == 0 {
            let known = sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT FROM haulage.watermarks WHERE pipeline = $1 AND target = $2 AND source = $3)",
            )
            .bind(&mark.pipeline)
            .bind(&target)
            .bind(&mark.source)
            .fetch_one(lease.connection())
            .await
            .map_err(|error| lease.place().failure(doing, error))?;
            return Err(if known {
                stands_elsewhere(mark)
            } else {
                unknown_watermark(mark)
            });
        }
        lease.must(doing, "COMMIT").await?;
        lease.give_back();
        Ok(())
    }
}

async fn is_there(lease: &mut Lease) -> Result<bool, Failure> {
    sqlx::query_scalar("SELECT to_regclass('haulage.watermarks') IS NOT NULL")
        .fetch_one(lease.connection())
        .await
        .map_err(|error| lease.place().failure("looking for watermarks", error))
}

async fn advances_of(lease: &mut Lease, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, sqlx::Error> {
    let text: Option<String> = sqlx::query_scalar(
        "SELECT advances::text FROM haulage.loads WHERE run = $1 AND load = $2 AND state = 'published'",
    )
    .bind(run.as_str())
    .bind(load.load.as_str())
    .fetch_optional(lease.connection())
    .await?;
    text.map_or(Ok(Vec::new()), |text| {
        serde_json::from_str(&text).map_err(unreadable_advances)
    })
}

/// Moves the load's watermarks in the transaction that publishes it, whose target nobody else publishes to meanwhile; other
/// watermarks of a table that it replaces say nothing any more. Permanent failure if one stands elsewhere than the run found
/// it, or the table had to be made anew.
pub(super) async fn advance(lease: &mut Lease, load: &LoadContext, target: &str, created: bool) -> Result<(), Trouble> {
    for advance in &load.advances {
        let row = sqlx::query(
            "SELECT value, run, set_by FROM haulage.watermarks
             WHERE pipeline = $1 AND target = $2 AND source = $3 FOR UPDATE",
        )
        .bind(&load.pipeline)
        .bind(target)
        .bind(&advance.source)
        .fetch_optional(lease.connection())
        .await?;
        let found = match row {
            Some(row) => Found {
                value: row.try_get(0)?,
                run: row.try_get(1)?,
                by: row.try_get(2)?,
            },
            None => Found::default(),
        };
        goes_on(load, advance, &found, created)?;
        sqlx::query(
            "INSERT INTO haulage.watermarks
                 (pipeline, target, source, watermark_column, value, run, set_by, changed_at, read_of)
             VALUES ($1, $2, $3, $4, $5, $6, '', clock_timestamp(), $7)
             ON CONFLICT (pipeline, target, source) DO UPDATE SET watermark_column = excluded.watermark_column,
                 value = excluded.value, run = excluded.run, set_by = '', changed_at = excluded.changed_at,
                 read_of = excluded.read_of, replaced_by = ''",
        )
        .bind(&load.pipeline)
        .bind(target)
        .bind(&advance.source)
        .bind(&advance.column)
        .bind(&advance.to)
        .bind(load.run.as_str())
        .bind(&advance.of)
        .execute(lease.connection())
        .await?;
    }
    if load.mode == Mode::Replace {
        let sources: Vec<&str> = load.advances.iter().map(|advance| advance.source.as_str()).collect();
        sqlx::query(
            "UPDATE haulage.watermarks SET replaced_by = $3
             WHERE target = $2 AND value IS NOT NULL AND replaced_by = '' AND NOT (pipeline = $1 AND source = ANY ($4))",
        )
        .bind(&load.pipeline)
        .bind(target)
        .bind(load.run.as_str())
        .bind(sources)
        .execute(lease.connection())
        .await?;
    }
    if !load.advances.is_empty() {
        let text = serde_json::to_string(&load.advances).map_err(|error| Failure::permanent(error.to_string()))?;
        sqlx::query("UPDATE haulage.loads SET advances = $3::jsonb WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(text)
            .execute(lease.connection())
            .await?;
    }
    Ok(())
}

/// Puts the watermarks back that the load's publish has moved, in the transaction that undoes it: also one that somebody has
/// set since, or the rows that go would never be read again.
pub(super) async fn put_back(lease: &mut Lease, load: &LoadContext, target: &str) -> Result<(), Trouble> {
    for advance in advances_of(lease, &load.run, load).await? {
        sqlx::query(
            "UPDATE haulage.watermarks SET value = $4, run = '', set_by = $5, changed_at = clock_timestamp()
             WHERE pipeline = $1 AND target = $2 AND source = $3",
        )
        .bind(&load.pipeline)
        .bind(target)
        .bind(&advance.source)
        .bind(&advance.found)
        .bind(format!("revert of {}", load.run))
        .execute(lease.connection())
        .await?;
    }
    sqlx::query("UPDATE haulage.watermarks SET replaced_by = '' WHERE target = $1 AND replaced_by = $2")
        .bind(target)
        .bind(load.run.as_str())
        .execute(lease.connection())
        .await?;
    Ok(())
}

/// The published runs that have read on from where this one has stopped, newest first, if there are any.
pub(super) async fn built_on(
    lease: &mut Lease,
    load: &LoadContext,
    sequence: Option<i64>,
    target: &str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT string_agg(later.run, ', ' ORDER BY later.sequence DESC) FROM haulage.loads later, haulage.loads mine
         WHERE mine.run = $1 AND mine.load = $2 AND mine.advances <> '[]' AND later.state = 'published'
             AND later.target = $4 AND later.pipeline = mine.pipeline AND later.advances <> '[]' AND later.sequence > $3",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(sequence)
    .bind(target)
    .fetch_one(lease.connection())
    .await
}
