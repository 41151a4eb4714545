//! The staging area in a SQLite file: a table, and the markers and fences of its chunks.

use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId};
use sqlx::Row;

use super::Sqlite;
use super::bookkeeping::{Area, begin, claim, ended, must_be_staged, read, set_state};
use super::file::Writer;
use super::older;
use super::target::{describe, fit, misfit, table_name};
use super::verify::{count, standing};
use crate::sink::LoadContext;
use crate::sink::fence::too_late;

impl Sqlite {
    pub(super) async fn make_staging(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("preparing load {}", load.load);
        let area = Area::of(load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let record = claim(&mut writer, load, "prepare", &table, "staged", &doing).await?;
        if matches!(record.state.as_str(), "reverted" | "discarded") {
            return Err(ended(load, &record.state));
        }
        older::judged(&mut writer, load, &table, &doing).await?;
        let mut staged = record.state == "staged";
        if load.round > record.round && record.state != "published" {
            open_again(&mut writer, load, &area, &doing).await?;
            staged = true;
        }
        if staged && !exists(&mut writer, &area.stage, &doing).await? {
            let target = describe(writer.connection(), &table)
                .await
                .map_err(|error| writer.failure(&doing, error))?;
            let fit = match fit(load, &target) {
                Ok(fit) => fit,
                Err(misfits) => {
                    writer.must(&doing, "ROLLBACK").await?;
                    writer.keep();
                    return Err(misfit(load, &target, &misfits));
                }
            };
            writer
                .must(&doing, format!("CREATE TABLE {} ({})", area.stage, fit.definitions))
                .await?;
        }
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(StepReport {
            rows: 0,
            detail: format!("staging in {} for {table}", area.stage),
            ..StepReport::default()
        })
    }

    pub(super) async fn begin_chunk(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Vec<Marker>, Failure> {
        let doing = format!("beginning chunk {chunk} of load {}", load.load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let record = read(&mut writer, load)
            .await
            .map_err(|error| writer.failure(&doing, error))?;
        must_be_staged(load, record.as_ref())?;
        let raised = sqlx::query(
            "INSERT INTO _haulage_fences (run, load, stage, chunk, attempt, epoch) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (run, load, stage, chunk) DO UPDATE SET attempt = excluded.attempt, epoch = excluded.epoch
             WHERE attempt <= excluded.attempt AND epoch <= excluded.epoch",
        )
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .bind(i64::from(chunk.stage.0))
        .bind(i64::from(chunk.index))
        .bind(i64::from(attempt.0))
        .bind(load.epoch.0 as i64)
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(&doing, error))?;
        if raised.rows_affected() == 0 {
            return Err(too_late(load, chunk, attempt));
        }
        let markers = markers(&mut writer, load, chunk)
            .await
            .map_err(|error| writer.failure(&doing, error))?;
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(markers)
    }
}

/// Takes the area into a later round, and opens it if it was sealed. Where markers and rows don't agree, neither is of any
/// use.
async fn open_again(writer: &mut Writer<'_>, load: &LoadContext, area: &Area, doing: &str) -> Result<(), Failure> {
    set_state(writer, load, "staged", doing).await?;
    writer
        .must(doing, format!("DROP TABLE IF EXISTS {}", area.aside))
        .await?;
    sqlx::query("UPDATE _haulage_loads SET round = $3, set_aside = NULL, older = 0 WHERE run = $1 AND load = $2")
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .bind(i64::from(load.round))
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    let agree = if exists(writer, &area.stage, doing).await? {
        let rows = count(writer, &area.stage, doing).await?;
        rows == standing(writer, load, doing).await?.rows
    } else {
        false
    };
    if !agree {
        writer
            .must(doing, format!("DROP TABLE IF EXISTS {}", area.stage))
            .await?;
        sqlx::query("DELETE FROM _haulage_markers WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(())
}

/// Whether a table of ours exists.
pub(super) async fn exists(writer: &mut Writer<'_>, table: &str, doing: &str) -> Result<bool, Failure> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = $1)")
        .bind(table)
        .fetch_one(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))
}

/// The markers of a chunk, by segment.
pub(super) async fn markers(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    chunk: ChunkId,
) -> Result<Vec<Marker>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT segment, attempt, rows, manifest FROM _haulage_markers
         WHERE run = $1 AND load = $2 AND stage = $3 AND chunk = $4 ORDER BY segment",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(i64::from(chunk.stage.0))
    .bind(i64::from(chunk.index))
    .fetch_all(writer.connection())
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Marker {
                chunk,
                segment: row.try_get::<i64, _>(0)? as u32,
                attempt: Attempt(row.try_get::<i64, _>(1)? as u32),
                rows: row.try_get::<i64, _>(2)? as u64,
                manifest: row.try_get(3)?,
            })
        })
        .collect()
}
