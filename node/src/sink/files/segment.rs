//! One segment of a chunk: batches are gathered (a segment has at most `checkpoint_rows` source rows), written as one file
//! a partition, and made to count by one conditional write of the chunk's document, which holds its fence.
//!
//! The files have names that no other attempt gives. A segment that is refused takes them away again; what a crash leaves
//! is named by nothing, and goes with the area.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::Marker;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId};
use haulage_plan::definition::FileFormat;
use indexmap::IndexMap;

use super::Files;
use super::encode::{self, Encoding, TWIN, digest};
use super::objects::{AT_ONCE, remove_all};
use super::place::{Area, TablePlace};
use super::rows::{self, Division, Partition, Unfit};
use super::state::{self, File, State, Twin, ended, must_be_staged};
use crate::chance;
use crate::sink::fence::admit;
use crate::sink::{Committed, LoadContext, Refused, SegmentWriter};

/// Files of one segment. More of them are smaller than any reader likes.
const MAX_PARTITIONS: usize = 256;

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
            chunk,
            attempt,
            rows: 0,
            batches: Vec::new(),
        }))
    }
}

struct Segment {
    files: Files,
    place: TablePlace,
    load: LoadContext,
    chunk: ChunkId,
    attempt: Attempt,
    rows: u64,
    batches: Vec<RecordBatch>,
}

/// A file that is yet to be written, and its staged twin.
pub(super) struct Encoded {
    pub(super) file: File,
    data: Bytes,
    twin: Option<Bytes>,
}

impl Files {
    pub(super) async fn put_encoded(&self, place: &TablePlace, encoded: Encoded) -> Result<(), Failure> {
        if let (Some(twin), Some(data)) = (&encoded.file.twin, encoded.twin) {
            self.objects.put(&place.key(&twin.path), data).await?;
        }
        self.objects.put(&place.key(&encoded.file.path), encoded.data).await
    }
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
        self.rows += batch.num_rows() as u64;
        self.batches.push(batch.clone());
        Ok(())
    }

    async fn commit(self: Box<Self>, marker: Marker) -> Result<Committed, Refused> {
        let table = self.files.table(&self.place).await?;
        must_be_staged(&self.load, &table.value)?;
        let key = self.place.key(&Area::of(&self.load).chunk(self.chunk));
        let chunk: state::Chunk = self.files.document(&key).await?.value;
        if let Some(marker) = self.standing(&chunk, &marker)? {
            return Ok(Committed {
                marker,
                bytes: 0,
                fresh: false,
            });
        }
        let encoded = self.encoded(marker.segment).await?;
        let files: Vec<File> = encoded.iter().map(|encoded| encoded.file.clone()).collect();
        let bytes = files.iter().map(|file| file.bytes).sum();
        let counted = self.put(encoded).await;
        let made = match counted {
            Ok(()) => self.mark(&key, &marker, &files).await,
            Err(failure) => Err(failure),
        };
        match made {
            Ok((marker, true)) => Ok(Committed {
                marker,
                bytes,
                fresh: true,
            }),
            Ok((marker, false)) => {
                self.take_away(&files).await;
                Ok(Committed {
                    marker,
                    bytes: 0,
                    fresh: false,
                })
            }
            Err(failure) => {
                // Of an answer that was lost nobody knows whether the files count.
                if failure.class != haulage_core::failure::Class::Transient {
                    self.take_away(&files).await;
                }
                Err(failure.into())
            }
        }
    }
}

impl Segment {
    /// The segment's marker, if it stands already. `Fenced` if this attempt may not commit.
    fn standing(&self, chunk: &state::Chunk, marker: &Marker) -> Result<Option<Marker>, Failure> {
        if chunk.sealed.is_some() {
            return Err(ended(&self.load, State::Sealed.word()));
        }
        admit(&self.load, self.chunk, self.attempt, chunk.begun())?;
        let found = chunk.segments.iter().find(|segment| segment.segment == marker.segment);
        Ok(found.map(|segment| segment.marker(self.chunk)))
    }

    /// Rows, files and marker are there from here on, or not at all. Says whether they are these.
    async fn mark(&self, key: &str, marker: &Marker, files: &[File]) -> Result<(Marker, bool), Failure> {
        let segment = state::Segment {
            segment: marker.segment,
            attempt: self.attempt.0,
            rows: self.rows,
            manifest: marker.manifest.clone(),
            files: files.to_vec(),
        };
        self.files
            .change_chunk(key, |chunk| {
                if let Some(standing) = self.standing(chunk, marker)? {
                    // After a lost answer the next look finds one's own.
                    return Ok((standing, chunk.segments.contains(&segment)));
                }
                chunk.segments.push(segment.clone());
                Ok((segment.marker(self.chunk), true))
            })
            .await
    }

    async fn put(&self, encoded: Vec<Encoded>) -> Result<(), Failure> {
        let puts = encoded
            .into_iter()
            .map(|encoded| self.files.put_encoded(&self.place, encoded));
        let puts: Vec<_> = puts.collect();
        stream::iter(puts).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn take_away(&self, files: &[File]) {
        let twins = files
            .iter()
            .filter_map(|file| file.twin.as_ref())
            .map(|twin| &twin.path);
        let paths = files.iter().map(|file| &file.path).chain(twins);
        let keys = paths.map(|path| self.place.key(path)).collect();
        if let Err(failure) = remove_all(self.files.objects.as_ref(), keys).await {
            tracing::debug!(load = %self.load.load, %failure, "files of a segment that doesn't count are left");
        }
    }

    /// Encodes on a thread of its own: it is work for a processor.
    async fn encoded(&self, segment: u32) -> Result<Vec<Encoded>, Refused> {
        let work = Work {
            load: self.load.clone(),
            batches: self.batches.clone(),
            // Nobody else writes under this name, whatever attempt it takes itself for.
            name: format!("{}-{segment}-a{}-{}", self.chunk, self.attempt, chance::boot()),
        };
        match tokio::task::spawn_blocking(move || work.run()).await {
            Ok(result) => result,
            Err(_) => Err(Failure::transient("the segment was abandoned because the node is stopping").into()),
        }
    }
}

/// Rows to be encoded as files.
pub(super) struct Work {
    pub(super) load: LoadContext,
    pub(super) batches: Vec<RecordBatch>,
    /// How the files' names begin.
    pub(super) name: String,
}

impl Work {
    pub(super) fn run(&self) -> Result<Vec<Encoded>, Refused> {
        let load = &self.load;
        let failed = |error: &dyn std::fmt::Display| {
            Failure::permanent(format!(
                "load {}: its rows can't be written as files: {error}",
                load.load
            ))
        };
        let schema = rows::stored(&load.schema);
        let division = Division::new(&schema, &load.layout.partition_by);
        let mut parts: IndexMap<Partition, Vec<RecordBatch>> = IndexMap::new();
        let mut before = 0;
        for batch in &self.batches {
            let stored = rows::to_stored(batch, &schema).map_err(|error| failed(&error))?;
            let divided = division.divide(&stored).map_err(|error| match error {
                rows::Error::Unfit(Unfit { row, column, why }) => {
                    let at = before + row as u64;
                    Refused::Row(load.bad_row(at, Some(&column), why))
                }
                rows::Error::Arrow(error) => failed(&error).into(),
            })?;
            for (partition, rows) in divided {
                parts.entry(partition).or_default().push(rows);
            }
            before += batch.num_rows() as u64;
            if parts.len() > MAX_PARTITIONS {
                return Err(Failure::permanent(format!(
                    "load {}: one segment has rows for more than {MAX_PARTITIONS} folders of `partition_by`, each of which would \
                     be a tiny file; partition by fewer or coarser columns, or raise `checkpoint_rows`",
                    load.load
                ))
                .into());
            }
        }
        parts.retain(|_, rows| rows.iter().any(|batch| batch.num_rows() > 0));
        let rest = division.rest(&schema);
        let encoding = Encoding::new(load.layout.format, load.layout.compression);
        let mut encoded = Vec::with_capacity(parts.len());
        for (n, (partition, batches)) in parts.into_iter().enumerate() {
            let one = self.one(n, &division, partition, &batches, &schema, &rest, encoding);
            encoded.push(one.map_err(|error| failed(&error))?);
        }
        Ok(encoded)
    }

    #[expect(clippy::too_many_arguments, reason = "what all files of a segment share")]
    fn one(
        &self,
        n: usize,
        division: &Division,
        partition: Partition,
        batches: &[RecordBatch],
        schema: &SchemaRef,
        rest: &[usize],
        encoding: Encoding,
    ) -> Result<Encoded, encode::Error> {
        let area = Area::of(&self.load);
        let in_file: Result<Vec<RecordBatch>, _> = batches.iter().map(|batch| batch.project(rest)).collect();
        let in_file = in_file?;
        let file_schema = Arc::new(schema.project(rest)?);
        let data = Bytes::from(encoding.encode(&file_schema, &in_file)?);
        let twin = match encoding.format {
            FileFormat::Parquet => None,
            FileFormat::Csv | FileFormat::Jsonl => Some(Bytes::from(TWIN.encode(schema, batches)?)),
        };
        let path = division.path(&partition);
        let file = File {
            path: format!("{}{path}{}.{}", area.data(), self.name, encoding.ending()),
            rows: batches.iter().map(|batch| batch.num_rows() as u64).sum(),
            bytes: data.len() as u64,
            sum: digest(&data),
            partition,
            twin: twin.as_ref().map(|data| Twin {
                path: format!("{}rows/{}-{n}.parquet", area.staging(), self.name),
                bytes: data.len() as u64,
            }),
        };
        Ok(Encoded { file, data, twin })
    }
}
