//! One segment of a chunk: rows are gathered and written as files whenever they are many, and made to count all at once by
//! one conditional write of the chunk's document, which holds its fence.
//!
//! A segment has at most `checkpoint_rows` source rows, of which a step may make any number: what is kept in memory is
//! bounded here. The files have names that no other attempt gives. A segment that is refused, or given up, takes them away
//! again; what a crash leaves is named by nothing, and goes with the area.

use async_trait::async_trait;
use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::checkpoint::Marker;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, ChunkId};

use super::Files;
use super::place::{Area, TablePlace};
use super::rows;
use super::state::{self, File, State, ended};
use super::work::{Work, unwritable};
use crate::chance;
use crate::sink::fence::admit;
use crate::sink::{Committed, LoadContext, Refused, SegmentWriter};

/// Rows that are kept until they are written as files, and their bytes in memory.
const KEPT_BYTES: usize = 32 << 20;
const KEPT_ROWS: usize = 1 << 20;

impl Files {
    pub(super) fn open_segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        Ok(Box::new(Segment {
            files: self.clone(),
            place: TablePlace::parse(&load.table)?,
            load: load.clone(),
            stored: rows::stored(&load.schema),
            chunk,
            attempt,
            // Nobody else writes under this name, whatever attempt it takes itself for.
            name: format!("{chunk}-a{attempt}-{}", chance::boot()),
            times: 0,
            rows: 0,
            kept: Vec::new(),
            kept_rows: 0,
            kept_bytes: 0,
            written: Vec::new(),
        }))
    }
}

struct Segment {
    files: Files,
    place: TablePlace,
    load: LoadContext,
    stored: SchemaRef,
    chunk: ChunkId,
    attempt: Attempt,
    /// How the files' names begin.
    name: String,
    /// How often rows were written as files.
    times: u32,
    rows: u64,
    /// The last of them, which are in no file yet, as they are stored.
    kept: Vec<RecordBatch>,
    kept_rows: usize,
    kept_bytes: usize,
    /// Files that are there, or may be, and don't count.
    written: Vec<File>,
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
        for (field, column) in self.load.schema.fields().iter().zip(batch.columns()) {
            let required = !field.is_nullable() || self.load.key.contains(field.name());
            if required && column.logical_null_count() > 0 {
                let row = (0..column.len()).find(|row| column.is_null(*row)).unwrap_or_default();
                return Err(self.load.without_value(field.name(), self.rows + row as u64).into());
            }
        }
        let stored = rows::to_stored(batch, &self.stored).map_err(|error| unwritable(&self.load, &error))?;
        self.rows += stored.num_rows() as u64;
        self.kept_rows += stored.num_rows();
        self.kept_bytes += bytes_of(&stored).map_err(|error| unwritable(&self.load, &error))?;
        self.kept.push(stored);
        if self.kept_bytes >= KEPT_BYTES || self.kept_rows >= KEPT_ROWS {
            // Whoever may not commit writes nothing more.
            self.may_commit(&self.document().await?)?;
            self.write_kept().await?;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, marker: Marker) -> Result<Committed, Refused> {
        let standing = match self.ready(&marker).await {
            Ok(standing) => standing,
            Err(refused) => {
                self.take_away().await;
                return Err(refused);
            }
        };
        if let Some(marker) = standing {
            self.take_away().await;
            return Ok(Committed {
                marker,
                bytes: 0,
                fresh: false,
            });
        }
        // From here on they may count, also if nobody waits for the answer any more.
        let files = std::mem::take(&mut self.written);
        let counted = self.mark(&marker, &files).await;
        let fresh = matches!(&counted, Ok((_, true)));
        // Of an answer that was lost nobody knows whether the files count.
        let unknown = matches!(&counted, Err(failure) if failure.class == Class::Transient);
        if !fresh && !unknown {
            self.files.take_away(&self.place, &self.load, &files).await;
        }
        let (marker, fresh) = counted?;
        Ok(Committed {
            marker,
            bytes: files.iter().map(|file| file.bytes).filter(|_| fresh).sum(),
            fresh,
        })
    }
}

impl Segment {
    /// Where the chunk's document is.
    fn key(&self) -> String {
        self.place.key(&Area::of(&self.load).chunk(self.chunk))
    }

    /// The chunk as it is, if its load takes segments.
    async fn document(&self) -> Result<state::Chunk, Failure> {
        self.files.staged_round(&self.load, &self.place).await?;
        Ok(self.files.document(&self.key()).await?.value)
    }

    /// `Fenced` if this attempt may not commit.
    fn may_commit(&self, chunk: &state::Chunk) -> Result<(), Failure> {
        if chunk.sealed.is_some() {
            return Err(ended(&self.load, State::Sealed.word()));
        }
        admit(&self.load, self.chunk, self.attempt, chunk.begun())
    }

    /// The segment's marker, if it stands already. `Fenced` if this attempt may not commit.
    fn standing(&self, chunk: &state::Chunk, marker: &Marker) -> Result<Option<Marker>, Failure> {
        self.may_commit(chunk)?;
        let found = chunk.segments.iter().find(|segment| segment.segment == marker.segment);
        Ok(found.map(|segment| segment.marker(self.chunk)))
    }

    /// Writes what is in no file yet, unless the marker stands already: then it is that.
    async fn ready(&mut self, marker: &Marker) -> Result<Option<Marker>, Refused> {
        let standing = self.standing(&self.document().await?, marker)?;
        if standing.is_none() {
            self.write_kept().await?;
        }
        Ok(standing)
    }

    /// Rows, files and marker are there from here on, or not at all. Says whether they are these.
    async fn mark(&self, marker: &Marker, files: &[File]) -> Result<(Marker, bool), Failure> {
        let segment = state::Segment {
            segment: marker.segment,
            attempt: self.attempt.0,
            rows: self.rows,
            manifest: marker.manifest.clone(),
            files: files.to_vec(),
        };
        self.files
            .change_chunk(&self.key(), |chunk| {
                if let Some(standing) = self.standing(chunk, marker)? {
                    // After a lost answer the next look finds one's own.
                    return Ok((standing, chunk.segments.contains(&segment)));
                }
                chunk.segments.push(segment.clone());
                Ok((segment.marker(self.chunk), true))
            })
            .await
    }

    /// Writes the rows that are kept as files, which don't count yet.
    async fn write_kept(&mut self) -> Result<(), Refused> {
        let work = Work {
            load: self.load.clone(),
            batches: std::mem::take(&mut self.kept),
            name: format!("{}-{}", self.name, self.times),
            before: self.rows - self.kept_rows as u64,
        };
        self.times += 1;
        (self.kept_rows, self.kept_bytes) = (0, 0);
        self.files.write_files(&self.place, work, &mut self.written).await
    }

    async fn take_away(&mut self) {
        let files = std::mem::take(&mut self.written);
        self.files.take_away(&self.place, &self.load, &files).await;
    }
}

impl Drop for Segment {
    /// Of a segment that is given up before its commit, such as for a row that is to blame, the files go too.
    fn drop(&mut self) {
        let written = std::mem::take(&mut self.written);
        if written.is_empty() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (files, place, load) = (self.files.clone(), self.place.clone(), self.load.clone());
            drop(runtime.spawn(async move { files.take_away(&place, &load, &written).await }));
        }
    }
}

/// What a batch takes of memory: its own rows, also where it is a part of a larger one.
fn bytes_of(batch: &RecordBatch) -> Result<usize, datafusion::arrow::error::ArrowError> {
    let columns = batch.columns().iter();
    columns.map(|column| column.to_data().get_slice_memory_size()).sum()
}
