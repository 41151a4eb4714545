//! One segment of a chunk: batches are gathered (a segment has at most `checkpoint_rows` source rows) and written in one
//! transaction with the marker, so that the file is held for as short as it goes.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::checkpoint::Marker;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId};

use super::Sqlite;
use super::bookkeeping::{Area, begin, must_be_staged, read};
use super::file::Writer;
use super::rows::{Cause, Error, insert};
use super::stage::markers;
use crate::sink::fence::admit;
use crate::sink::{BadRow, Committed, LoadContext, Refused, SegmentWriter};
use crate::source::{EXCERPT, excerpt};

impl Sqlite {
    pub(super) async fn open_segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        Ok(Box::new(Segment {
            sqlite: self.clone(),
            load: load.clone(),
            chunk,
            attempt,
            batches: Vec::new(),
        }))
    }
}

struct Segment {
    sqlite: Sqlite,
    load: LoadContext,
    chunk: ChunkId,
    attempt: Attempt,
    batches: Vec<RecordBatch>,
}

#[async_trait]
impl SegmentWriter for Segment {
    async fn write(&mut self, batch: &RecordBatch) -> Result<(), Refused> {
        if batch.num_columns() != self.load.schema.fields().len() {
            return Err(Failure::permanent(format!(
                "load {}: the batch has {} columns, the load {}",
                self.load.load,
                batch.num_columns(),
                self.load.schema.fields().len()
            ))
            .into());
        }
        self.batches.push(batch.clone());
        Ok(())
    }

    async fn commit(self: Box<Self>, marker: Marker) -> Result<Committed, Refused> {
        let doing = format!("staging chunk {} of load {}", self.chunk, self.load.load);
        let mut writer = self.sqlite.file.writer().await?;
        // Leaving early drops the writer, which rolls back.
        begin(&mut writer, &doing).await?;
        let record = read(&mut writer, &self.load)
            .await
            .map_err(|error| writer.failure(&doing, error))?;
        must_be_staged(&self.load, record.as_ref())?;
        self.check_fence(&mut writer, &doing).await?;
        let standing = markers(&mut writer, &self.load, self.chunk).await;
        let standing = standing.map_err(|error| writer.failure(&doing, error))?;
        if let Some(marker) = standing.into_iter().find(|standing| standing.segment == marker.segment) {
            writer.must(&doing, "ROLLBACK").await?;
            writer.keep();
            return Ok(Committed {
                marker,
                bytes: 0,
                fresh: false,
            });
        }
        let table = Area::of(&self.load).stage;
        let (mut rows, mut bytes) = (0, 0);
        for batch in &self.batches {
            let done = insert(&mut writer, &table, batch).await;
            let (more_rows, more_bytes) = done.map_err(|error| self.refused(&writer, &doing, rows, error))?;
            rows += more_rows;
            bytes += more_bytes;
        }
        let marker = Marker {
            chunk: self.chunk,
            attempt: self.attempt,
            rows,
            ..marker
        };
        self.mark(&mut writer, &marker, &doing).await?;
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(Committed {
            marker,
            bytes,
            fresh: true,
        })
    }
}

impl Segment {
    async fn check_fence(&self, writer: &mut Writer<'_>, doing: &str) -> Result<(), Failure> {
        let begun: Option<(i64, i64)> = sqlx::query_as(
            "SELECT epoch, attempt FROM _haulage_fences WHERE run = $1 AND load = $2 AND stage = $3 AND chunk = $4",
        )
        .bind(self.load.run.as_str())
        .bind(self.load.load.as_str())
        .bind(i64::from(self.chunk.stage.0))
        .bind(i64::from(self.chunk.index))
        .fetch_optional(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
        admit(&self.load, self.chunk, self.attempt, begun)
    }

    async fn mark(&self, writer: &mut Writer<'_>, marker: &Marker, doing: &str) -> Result<(), Failure> {
        sqlx::query(
            "INSERT INTO _haulage_markers (run, load, stage, chunk, segment, attempt, rows, manifest)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(self.load.run.as_str())
        .bind(self.load.load.as_str())
        .bind(i64::from(self.chunk.stage.0))
        .bind(i64::from(self.chunk.index))
        .bind(i64::from(marker.segment))
        .bind(i64::from(marker.attempt.0))
        .bind(marker.rows as i64)
        .bind(&marker.manifest)
        .execute(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
        Ok(())
    }

    /// `before` rows have gone in before the batch that the error counts in.
    fn refused(&self, writer: &Writer<'_>, doing: &str, before: u64, error: Error) -> Refused {
        let Error { row, cause } = error;
        let at = row.map(|row| before + row);
        match (cause, at) {
            (Cause::Unfit(column, why), Some(at)) => {
                let why = format!("{why}; CAST it in the step's SQL, or name such rows in a `reject` rule");
                BadRow {
                    says_value: true,
                    ..self.load.bad_row(at, Some(&column), why)
                }
                .into()
            }
            (Cause::Unfit(column, why), None) => Failure::permanent(format!(
                "load {}: column {column}: {why}; CAST or filter it in the step's SQL",
                self.load.load
            ))
            .into(),
            (Cause::Said(sqlx::Error::Database(said)), Some(at)) => {
                if matches!(said.kind(), sqlx::error::ErrorKind::NotNullViolation) {
                    // "NOT NULL constraint failed: table.column"
                    let column = said.message().rsplit('.').next().unwrap_or("?");
                    return self.load.without_value(column, at).into();
                }
                let why = format!(
                    "{} doesn't take it: {}; name such rows in a `reject` rule of the step, or CAST the value there",
                    self.load.table,
                    excerpt(said.message().as_bytes(), 4 * EXCERPT)
                );
                self.load.bad_row(at, None, why).into()
            }
            (Cause::Said(error), _) => writer.failure(doing, error).into(),
        }
    }
}
