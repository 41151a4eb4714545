//! Reads a chunk in segments, page by page: pages into arrays that point at their texts, and of these as many rows as a
//! segment takes.
//!
//! A segment ends after `checkpoint_rows` rows, or before the first row that starts [`SEGMENT_BYTES`] after its own start,
//! as rows take room in memory. None of this depends on how the pages lie, so segment `n` of a chunk is the same in every
//! attempt. Row groups that hold no row which is needed are gaps: their rows are counted, and nothing else. Decoding happens on a thread that may wait, and ends when nobody wants the rows any more.

use std::ops::Range;
use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;
use tokio_util::sync::CancellationToken;

use super::convert::{convert, sizes};
use super::fetch::{Fetch, Stretch};
use super::footer::Footer;
use super::prune::{self, MOST_ROWS};
use super::raw::Raw;
use super::schema::viewed;
use crate::source::object::Object;
use crate::source::sift::Sift;
use crate::source::{Segment, SegmentReader, Wanted};

/// Rows that are decoded at a time, at most.
const BATCH_ROWS: u64 = 4096;
/// Bytes that are decoded at a time, by the average of the file.
const BATCH_BYTES: u64 = 2 << 20;
/// A segment holds no row that starts so far after its own start. Each slot of a node has two segments in memory.
const SEGMENT_BYTES: u64 = 8 << 20;
/// A row that takes more is refused: memory has a bound.
const MAX_ROW: u64 = 16 << 20;

/// The place of a row: its number in the file from 0, and from 1 where a person reads it.
pub(super) fn position(row: u64) -> Position {
    Position {
        offset: row,
        line: row + 1,
    }
}

/// What is read, and how.
#[derive(Clone)]
pub(super) struct Shape {
    /// The object, for messages.
    pub(super) address: String,
    /// The columns in their order.
    pub(super) columns: Vec<Column>,
    /// The columns and the row column.
    pub(super) schema: SchemaRef,
    /// The names of all columns of the file.
    pub(super) names: Arc<[String]>,
    /// Rows of a segment, at least 1.
    pub(super) checkpoint_rows: u64,
}

/// The segments of a chunk, or of what is left of it.
pub(super) struct ParquetReader {
    opened: Opened,
    /// None while a thread works with it, and for good if that was given up.
    work: Option<Work>,
    stop: CancellationToken,
}

/// What is read of which object.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) shape: Shape,
    pub(super) object: Object,
    pub(super) footer: Footer,
    /// The columns' places in the file.
    pub(super) places: Vec<usize>,
    /// The first row, and the one past the last.
    pub(super) row: u64,
    pub(super) end: u64,
}

struct Work {
    shape: Shape,
    /// For each column, its place in what is decoded.
    places: Vec<usize>,
    fetch: Fetch,
    decoder: ParquetRecordBatchReader,
    /// Rows that were decoded and belong to no segment yet.
    decoded: Option<RecordBatch>,
    /// Rows that are passed over, in their order.
    gaps: Vec<Range<u64>>,
    /// The next row, and the one past the last.
    row: u64,
    end: u64,
    done: bool,
}

impl ParquetReader {
    pub(super) fn new(opened: Opened) -> Result<Self, Failure> {
        let stop = CancellationToken::new();
        let work = Work::new(&opened, &[], &stop)?;
        Ok(Self {
            opened,
            work: Some(work),
            stop,
        })
    }
}

impl Work {
    /// Passes over the row groups that are `needless`.
    fn new(opened: &Opened, needless: &[bool], stop: &CancellationToken) -> Result<Self, Failure> {
        let Opened {
            shape,
            object,
            footer,
            places,
            row,
            end,
        } = opened;
        let (row, end) = (*row, *end);
        let damaged = |error: &dyn std::fmt::Display| damaged(&object.address, error);
        let descriptor = footer.metadata.file_metadata().schema_descr();
        let mask = ProjectionMask::roots(descriptor, places.iter().copied());
        let leaves: Vec<usize> = (0..descriptor.num_columns())
            .filter(|leaf| mask.leaf_included(*leaf))
            .collect();
        let (mut groups, mut before, mut stretches, mut bytes) = (Vec::new(), 0, Vec::new(), 0u64);
        let (mut offset, mut rows) = (0, 0);
        let mut gaps: Vec<Range<u64>> = Vec::new();
        for (number, count) in footer.rows().enumerate() {
            let (first, past) = (before, before + count);
            before = past;
            if past <= row || first >= end {
                continue;
            }
            if needless.get(number) == Some(&true) {
                match gaps.last_mut() {
                    Some(gap) if gap.end == first && past - gap.start <= MOST_ROWS => gap.end = past.min(end),
                    _ => gaps.push(first..past.min(end)),
                }
                continue;
            }
            if groups.is_empty() {
                offset = row.saturating_sub(first);
            }
            rows += past.min(end) - first.max(row);
            groups.push(number);
            for (column, leaf) in leaves.iter().enumerate() {
                let found = footer.metadata.row_group(number).column(*leaf);
                let (start, length) = found.byte_range();
                stretches.push(Stretch {
                    bytes: start..start + length,
                    column,
                });
                bytes += found.uncompressed_size().unsigned_abs();
            }
        }
        let average = (bytes / rows.max(1)).max(1);
        let fetch = Fetch::new(object.clone(), stretches, leaves.len(), stop.clone());
        let options = ArrowReaderOptions::new().with_schema(viewed(&footer.schema));
        let metadata =
            ArrowReaderMetadata::try_new(Arc::clone(&footer.metadata), options).map_err(|error| damaged(&error))?;
        let count = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
        let decoder = ParquetRecordBatchReaderBuilder::new_with_metadata(fetch.clone(), metadata)
            .with_row_groups(groups)
            .with_projection(mask)
            .with_batch_size(count((BATCH_BYTES / average).clamp(1, BATCH_ROWS)))
            .with_offset(count(offset))
            .with_limit(count(rows))
            .build()
            .map_err(|error| damaged(&error))?;
        // What is decoded stands in the order of the file.
        let mut sorted = places.clone();
        sorted.sort_unstable();
        Ok(Self {
            shape: shape.clone(),
            places: places
                .iter()
                .map(|place| sorted.partition_point(|other| other < place))
                .collect(),
            fetch,
            decoder,
            decoded: None,
            gaps,
            row,
            end,
            done: false,
        })
    }
}

impl Drop for ParquetReader {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn damaged(address: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(format!("{address} can't be read: {error}; replace the damaged file"))
}

#[async_trait]
impl SegmentReader for ParquetReader {
    fn only(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        let opened = &self.opened;
        let needless = prune::needless(&opened.footer, &opened.shape.columns, wanted);
        if needless.contains(&true) {
            self.work = Some(Work::new(opened, &needless, &self.stop)?);
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        let Some(mut work) = self.work.take() else {
            return Err(Failure::transient("reading was given up"));
        };
        if work.done {
            self.work = Some(work);
            return Ok(None);
        }
        // Whoever lets go of this future lets go of the thread too.
        let given_up = self.stop.clone().drop_guard();
        let address = work.shape.address.clone();
        let read = tokio::task::spawn_blocking(move || {
            let segment = work.segment();
            (work, segment)
        });
        match read.await {
            Ok((work, segment)) => {
                given_up.disarm();
                self.work = Some(work);
                segment.map(Some)
            }
            Err(error) if error.is_panic() => Err(damaged(&address, &"its data makes no sense")),
            Err(_) => Err(Failure::transient("reading was abandoned because the node is stopping")),
        }
    }
}

impl Work {
    fn segment(&mut self) -> Result<Segment, Failure> {
        let begin = self.row;
        let mut sift = Sift::new(Arc::clone(&self.shape.schema));
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while self.row < self.end && sift.rows < self.shape.checkpoint_rows && bytes < SEGMENT_BYTES {
            let gap = self.gaps.iter().find(|gap| gap.end > self.row);
            let until = match gap {
                Some(gap) if gap.start <= self.row => {
                    // They are no more in memory than this number of them.
                    sift.rows += gap.end - self.row;
                    self.row = gap.end;
                    continue;
                }
                Some(gap) => gap.start,
                None => self.end,
            };
            let most = (self.shape.checkpoint_rows - sift.rows).min(until - self.row);
            let batch = match self.decoded.take() {
                Some(batch) => batch,
                None => self.decode()?,
            };
            let (taken, size) = self.fitting(&batch, most, bytes)?;
            bytes = size;
            self.row += taken as u64;
            if taken < batch.num_rows() {
                self.decoded = Some(batch.slice(taken, batch.num_rows() - taken));
            }
            let piece = batch.slice(0, taken);
            pieces.push((sift.rows, piece.clone()));
            self.sift(&piece, &mut sift)?;
        }
        self.done = self.row == self.end;
        Ok(Segment {
            rows: sift.rows,
            batches: sift.batches,
            unreadable: sift.unreadable,
            bytes,
            next: position(self.row),
            cursor: None,
            last: self.done,
            raw: Box::new(Raw::new(begin + 1, Arc::clone(&self.shape.names), pieces)),
        })
    }

    fn decode(&mut self) -> Result<RecordBatch, Failure> {
        let address = &self.shape.address;
        match self.decoder.next() {
            Some(Ok(batch)) if batch.num_rows() > 0 => Ok(batch),
            Some(Err(error)) => Err(self.fetch.failure().unwrap_or_else(|| damaged(address, &error))),
            Some(Ok(_)) | None => {
                let (row, end) = (self.row, self.end);
                Err(damaged(
                    address,
                    &format!("it ends after row {row}, and should have {end}"),
                ))
            }
        }
    }

    /// How many of the rows still fit a segment that has room for `most` rows and holds `bytes` already, and what it holds
    /// with them.
    fn fitting(&self, batch: &RecordBatch, most: u64, mut bytes: u64) -> Result<(usize, u64), Failure> {
        let mut taken = 0;
        for size in sizes(batch.columns()) {
            if taken as u64 == most || bytes >= SEGMENT_BYTES {
                break;
            }
            if size > MAX_ROW {
                return Err(Failure::permanent(format!(
                    "{} row {}: the row takes {size} bytes, more than {} MiB; leave the column out that is so large",
                    self.shape.address,
                    self.row + taken as u64 + 1,
                    MAX_ROW >> 20
                )));
            }
            bytes += size;
            taken += 1;
        }
        Ok((taken, bytes))
    }

    fn sift(&self, piece: &RecordBatch, sift: &mut Sift) -> Result<(), Failure> {
        let (mut arrays, mut bad) = (Vec::with_capacity(self.places.len() + 1), Vec::new());
        for (column, place) in self.shape.columns.iter().zip(&self.places) {
            arrays.push(convert(column, piece.column(*place), &mut bad)?);
        }
        // Of several reasons, the first column's is told.
        bad.sort_by_key(|bad| bad.row);
        bad.dedup_by_key(|bad| bad.row);
        sift.take(&self.shape.address, piece.num_rows(), arrays, bad)
    }
}
