//! Reads a chunk in segments: bytes into records, records into batches, and the records' places for quarantine.
//!
//! A segment ends after `checkpoint_rows` records, or before the first record that starts [`SEGMENT_BYTES`] after its
//! own start, so that its memory has a bound whatever the rows are. Blank lines after its last record belong to it. None
//! of this depends on how the bytes arrive, so segment `n` of a chunk is the same in every attempt.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use super::column::{ColumnBuilder, Fields, Misfit, NullTexts};
use super::header::Layout;
use super::record::{Cursor, Dialect, MAX_RECORD, Odd, Records, RowPlace, Span, Stop, read_records};
use super::spare::Spare;
use crate::source::input::Input;
use crate::source::sift::Sift;
use crate::source::{KeptRow, RawRows, Reread, Segment, SegmentReader, Unreadable};

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;
/// Records that are split into fields before a column of them is read: few enough to stay in a processor's cache.
const PASS_ROWS: usize = 1024;
/// Bytes that are fetched at a time; so few in tests that records, quotes and line ends fall on every boundary.
const BLOCK: usize = if cfg!(test) { 37 } else { 1 << 20 };
/// A segment holds no record that starts so far after its own start. Each slot of a node has two segments in memory, as
/// text and as columns, so this is what wide rows are held to.
const SEGMENT_BYTES: usize = 8 << 20;

/// What stays the same for all segments of a chunk.
pub(super) struct Shape {
    /// The object, for messages.
    pub(super) address: String,
    /// How records read.
    pub(super) dialect: Dialect,
    /// The declared columns.
    pub(super) columns: Vec<Column>,
    /// Where they are in this file.
    pub(super) layout: Layout,
    /// All columns of this file, if it has a header.
    pub(super) names: Arc<[String]>,
    /// The columns and the row column.
    pub(super) schema: SchemaRef,
    /// Texts without a value.
    pub(super) nulls: NullTexts,
    /// Rows of a segment, at least 1.
    pub(super) checkpoint_rows: u64,
}

/// The segments of a chunk, or of what is left of it.
pub(super) struct CsvReader {
    shape: Shape,
    input: Input,
    /// Bytes that were fetched and belong to no segment yet.
    data: Vec<u8>,
    /// Where `data` starts.
    at: Position,
    /// Whether the input has ended.
    ended: bool,
    done: bool,
    spare: Arc<Spare>,
}

impl CsvReader {
    /// `input` starts at `at`.
    pub(super) fn new(shape: Shape, input: Input, at: Position, spare: Arc<Spare>) -> Self {
        Self {
            shape,
            input,
            data: spare.take(0),
            at,
            ended: false,
            done: false,
            spare,
        }
    }

    /// Finds and reads the records of one segment at the start of `self.data`, fetching as it goes.
    async fn read(&mut self) -> Result<(Batches, Vec<RowPlace>, Cursor, bool), Failure> {
        let mut batches = Batches::new(&self.shape, self.at.line)?;
        let mut places: Vec<RowPlace> = Vec::new();
        let mut cursor = Cursor::default();
        loop {
            let left = self.shape.checkpoint_rows.saturating_sub(places.len() as u64);
            let most = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(PASS_ROWS)
                .min(batches.room());
            let bounds = (most, SEGMENT_BYTES);
            let records = &mut batches.records;
            records.clear();
            let dialect = self.shape.dialect;
            let stop = read_records(
                dialect,
                &self.data,
                self.ended,
                bounds,
                &mut cursor,
                records,
                &mut places,
            );
            let found = batches.records.count;
            batches.take(&self.shape, &self.data, &places)?;
            match stop {
                Stop::TooLong => return Err(self.too_long(cursor)),
                Stop::Ended => return Ok((batches, places, cursor, true)),
                // Nothing more may be read, and another record begins here.
                Stop::Full if found == 0 => return Ok((batches, places, cursor, false)),
                Stop::Full => {}
                Stop::Hungry => {
                    // As much again as the record that has begun, so that a long one is not looked at too often.
                    let begun = self.data.len() - cursor.at;
                    let want = begun.clamp(BLOCK, MAX_RECORD);
                    self.ended = self.input.fill(&mut self.data, want).await? == 0;
                }
            }
        }
    }

    fn too_long(&self, cursor: Cursor) -> Failure {
        Failure::permanent(format!(
            "{} line {}: the record that starts here is longer than {} MiB; look for a quote that is not closed, or for \
             the wrong `quote` or `delimiter`",
            self.shape.address,
            self.at.line + u64::from(cursor.lines),
            MAX_RECORD >> 20
        ))
    }
}

#[async_trait]
impl SegmentReader for CsvReader {
    fn passed_over(&self) -> u64 {
        self.input.passed_over
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        if self.done {
            return Ok(None);
        }
        let (mut batches, places, cursor, last) = self.read().await?;
        batches.finish(&self.shape)?;
        let begin = self.at;
        let mut rest = Vec::new();
        if !last {
            // The next segment will be about as large: room for it at once, instead of growing towards it.
            rest = self.spare.take(cursor.at + BLOCK);
            rest.extend_from_slice(&self.data[cursor.at..]);
        }
        self.data.truncate(cursor.at);
        let data = std::mem::replace(&mut self.data, rest);
        self.at.offset += cursor.at as u64;
        self.at.line += u64::from(cursor.lines);
        self.done = last;
        Ok(Some(Segment {
            batches: batches.sift.batches,
            unreadable: batches.sift.unreadable,
            rows: places.len() as u64,
            bytes: cursor.at as u64,
            next: self.at,
            cursor: None,
            last,
            raw: Box::new(Raw {
                data,
                places,
                line: begin.line,
                names: Arc::clone(&self.shape.names),
                spare: Arc::clone(&self.spare),
            }),
        }))
    }
}

/// Reads rows that were taken out of their files: each is a record of its own, whatever the others hold.
pub(super) fn read_rows(shape: &Shape, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
    let mut data = Vec::new();
    let mut bounds = Vec::with_capacity(rows.len());
    for row in rows {
        let start = data.len();
        data.extend_from_slice(row.bytes);
        bounds.push(start..data.len());
    }
    let mut batches = Batches::new(shape, 1)?;
    let mut places = Vec::with_capacity(rows.len());
    for (row, bounds) in rows.iter().zip(bounds) {
        batches.alone(shape, row.line, &data[..bounds.end], bounds.start, &mut places);
        let most = PASS_ROWS.min(batches.room());
        if batches.records.count == most {
            batches.take(shape, &data, &places)?;
            batches.records.clear();
        }
    }
    batches.take(shape, &data, &places)?;
    batches.finish(shape)?;
    Ok(Reread {
        batches: batches.sift.batches,
        unreadable: batches.sift.unreadable,
    })
}

/// The batches of a segment while they are filled.
struct Batches {
    records: Records,
    builders: Vec<ColumnBuilder>,
    misfits: Vec<Misfit>,
    /// Rows in the builders.
    rows: usize,
    /// The line on which the segment starts.
    line: u64,
    sift: Sift,
}

impl Batches {
    fn new(shape: &Shape, line: u64) -> Result<Self, Failure> {
        let rows = usize::try_from(shape.checkpoint_rows)
            .unwrap_or(BATCH_ROWS)
            .min(BATCH_ROWS);
        let builders = shape.columns.iter().zip(&shape.layout.places);
        let builders = builders.map(|(column, place)| ColumnBuilder::new(column, *place, rows));
        Ok(Self {
            records: Records::new(shape.layout.fields),
            builders: builders.collect::<Result<_, _>>()?,
            misfits: Vec::new(),
            rows: 0,
            line,
            sift: Sift::new(Arc::clone(&shape.schema)),
        })
    }

    /// Adds the record that is all of `data` from `start` on, as if a file ended with it.
    fn alone(&mut self, shape: &Shape, line: u64, data: &[u8], start: usize, places: &mut Vec<RowPlace>) {
        let line = u32::try_from(line.saturating_sub(1)).unwrap_or(u32::MAX);
        let mut cursor = Cursor { at: start, lines: line };
        let row = self.records.count;
        let bounds = (row + 1, usize::MAX);
        let stop = read_records(
            shape.dialect,
            data,
            true,
            bounds,
            &mut cursor,
            &mut self.records,
            places,
        );
        let reason = match stop {
            Stop::Ended if self.records.count > row => return,
            Stop::Full => (
                "several_rows",
                "read by `quote` and `delimiter` as they are now, it is more than one row",
            ),
            Stop::TooLong => ("too_long", "it is longer than a record may be"),
            Stop::Ended | Stop::Hungry => ("no_row", "it holds nothing"),
        };
        if self.records.count == row {
            let fields = self.records.fields;
            self.records
                .spans
                .resize(((row + 1) * fields).max(self.records.spans.len()), Span::default());
            self.records.spans[row * fields..(row + 1) * fields].fill(Span::default());
            self.records.count += 1;
            places.push(RowPlace {
                start: start as u32,
                end: data.len() as u32,
                line,
            });
        }
        self.misfits.push(Misfit {
            row: self.rows + row,
            field: ROW_ITSELF,
            reason: reason.0,
            detail: reason.1.to_owned(),
        });
    }

    fn room(&self) -> usize {
        BATCH_ROWS - self.rows
    }

    /// Takes the records over into the builders; the last of `places` are theirs.
    fn take(&mut self, shape: &Shape, data: &[u8], places: &[RowPlace]) -> Result<(), Failure> {
        let count = self.records.count;
        if count == 0 {
            return Ok(());
        }
        let places = &places[places.len() - count..];
        for odd in &self.records.odd {
            let line = self.line + u64::from(places[odd.row].line);
            let (reason, detail) = why_odd(odd, line, shape.layout.fields);
            self.misfits.push(Misfit {
                row: self.rows + odd.row,
                field: ROW_ITSELF,
                reason,
                detail,
            });
        }
        let fields = Fields {
            data,
            records: &self.records,
            first_row: self.rows,
            nulls: &shape.nulls,
        };
        for builder in &mut self.builders {
            builder.append(&fields, &mut self.misfits);
        }
        self.rows += count;
        if self.rows == BATCH_ROWS {
            self.finish(shape)
        } else {
            Ok(())
        }
    }

    /// Makes a batch of the rows in the builders, without those that can't be read.
    fn finish(&mut self, shape: &Shape) -> Result<(), Failure> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut arrays = Vec::with_capacity(self.builders.len() + 1);
        for builder in &mut self.builders {
            arrays.push(builder.finish(BATCH_ROWS.min(self.rows))?);
        }
        let bad = self.blame(shape);
        self.sift
            .take(&shape.address, std::mem::take(&mut self.rows), arrays, bad)
    }

    /// The rows that can't be read, each with the first of its reasons.
    fn blame(&mut self, shape: &Shape) -> Vec<Unreadable> {
        self.misfits
            .sort_by_key(|misfit| (misfit.row, misfit.field != ROW_ITSELF, misfit.field));
        self.misfits.dedup_by_key(|misfit| misfit.row);
        let unreadable = self.misfits.drain(..).map(|misfit| {
            let column = shape.layout.places.iter().position(|place| *place == misfit.field);
            Unreadable {
                row: misfit.row as u64,
                column: column.map(|column| shape.columns[column].name.clone()),
                reason: misfit.reason,
                detail: misfit.detail,
            }
        });
        unreadable.collect()
    }
}

/// Reason and detail of a record that starts on `line` and is no row.
fn why_odd(odd: &Odd, line: u64, fields: usize) -> (&'static str, String) {
    let (reason, mut detail) = match odd.unclosed {
        Some(before) => (
            "unclosed_quote",
            format!(
                "the quote that opens at line {} is never closed",
                line + u64::from(before)
            ),
        ),
        None => ("ragged", format!("expected {fields} fields, found {}", odd.fields)),
    };
    if odd.lines > 1 {
        detail.push_str(&format!(
            "; {} lines of the file, from line {line} on, are in this one row",
            odd.lines
        ));
    }
    // A reason of its own, so that whoever only reads the summary sees that more than a row is gone.
    let reason = if odd.lines > MANY_LINES {
        SWALLOWED_LINES
    } else {
        reason
    };
    (reason, detail)
}

/// A row that can't be read and covers more lines than this has swallowed others: somebody has to look.
const MANY_LINES: u32 = 100;
/// The reason of such a row. The closing summary looks for it.
const SWALLOWED_LINES: &str = "swallowed_lines";

/// The place of no column: the record as a whole is to blame.
const ROW_ITSELF: usize = usize::MAX;

/// The segment's bytes, and where its rows are in them.
struct Raw {
    data: Vec<u8>,
    places: Vec<RowPlace>,
    /// The line on which `data` starts.
    line: u64,
    names: Arc<[String]>,
    spare: Arc<Spare>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.spare.give(std::mem::take(&mut self.data));
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let place = self.places.get(usize::try_from(row).ok()?)?;
        let bytes = self.data.get(place.start as usize..place.end as usize)?;
        Some((self.line + u64::from(place.line), bytes))
    }

    fn columns(&self) -> &[String] {
        &self.names
    }
}
