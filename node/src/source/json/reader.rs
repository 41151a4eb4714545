//! Reads a chunk in segments: bytes into lines, lines into batches, and the lines' places for quarantine.
//!
//! A segment ends after `checkpoint_rows` rows, or before the first line that starts [`SEGMENT_BYTES`] after its own
//! start, so that its memory has a bound whatever the rows are. White space after its last row belongs to it. None of this
//! depends on how the bytes arrive, so segment `n` of a chunk is the same in every attempt.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, Paths};
use memchr::memchr;

use super::MAX_LINE;
use super::column::ColumnBuilder;
use super::row::{Keys, Odd};
use super::rows::{BATCH_ROWS, Rows};
use crate::source::input::Input;
use crate::source::lines;
use crate::source::sift::Sift;
use crate::source::{KeptRow, RawRows, Reread, Segment, SegmentReader, schema};

/// Bytes that are fetched at a time; so few in tests that line ends fall on every boundary.
const BLOCK: usize = if cfg!(test) { 37 } else { LARGE_BLOCK };
/// Bytes that are fetched at a time of a line that is long already.
const LARGE_BLOCK: usize = 1 << 20;
/// A segment holds no row that starts so far after its own start. Each slot of a node has two segments in memory.
const SEGMENT_BYTES: u64 = 8 << 20;
/// What is kept of a line that is too long: more than quarantine shows.
const KEPT: usize = 256 << 10;

/// What stays the same for all segments of a chunk.
pub(super) struct Shape {
    /// The object, for messages.
    pub(super) address: String,
    /// The columns.
    pub(super) columns: Vec<Column>,
    /// The columns and the row column.
    pub(super) schema: SchemaRef,
    /// Where columns are that don't stand at their own name.
    pub(super) paths: Paths,
    /// Whether a row with a key that is no column is rejected.
    pub(super) strict: bool,
    /// Rows of a segment, at least 1.
    pub(super) checkpoint_rows: u64,
}

/// The segments of a chunk, or of what is left of it.
pub(super) struct JsonReader {
    shape: Shape,
    input: Input,
    /// Bytes that were fetched and belong to no segment yet.
    data: Vec<u8>,
    /// Where `data` starts.
    at: Position,
    /// Whether the input has ended.
    ended: bool,
    done: bool,
    keys: Keys,
    builders: Vec<ColumnBuilder>,
}

/// Where a row stands in its segment's data.
struct RowPlace {
    start: usize,
    /// One past its last byte, without white space.
    end: usize,
    /// Lines before it in the segment.
    line: u64,
}

/// A line of the data.
struct Line {
    end: usize,
    /// Past its line end.
    next: usize,
    /// Bytes of it that are not in the data, since it is too long.
    left_out: u64,
}

/// How far a segment's data has been read.
#[derive(Default)]
struct Cursor {
    /// Where the next line starts.
    at: usize,
    lines: u64,
    /// Bytes before it that are not in the data.
    left_out: u64,
}

impl JsonReader {
    /// `input` starts at `at`. Permanent failure for a type that JSON can't hold.
    pub(super) fn new(shape: Shape, input: Input, at: Position) -> Result<Self, Failure> {
        let rows = usize::try_from(shape.checkpoint_rows)
            .unwrap_or(BATCH_ROWS)
            .min(BATCH_ROWS);
        let builders = shape.columns.iter().map(|column| ColumnBuilder::new(column, rows));
        Ok(Self {
            builders: builders.collect::<Result<_, _>>()?,
            keys: Keys::new(&shape.columns, &shape.paths, shape.strict),
            shape,
            input,
            data: Vec::new(),
            at,
            ended: false,
            done: false,
        })
    }

    /// The line from `start` on, where the data doesn't end, fetching as it goes.
    async fn line(&mut self, start: usize) -> Result<Line, Failure> {
        let mut seen = start;
        loop {
            if let Some(found) = memchr(b'\n', &self.data[seen..]) {
                let end = seen + found;
                return Ok(self.kept(start, end, end + 1));
            }
            seen = self.data.len();
            if self.ended {
                return Ok(self.kept(start, seen, seen));
            }
            if seen - start > MAX_LINE {
                return self.long_line(start).await;
            }
            // As much again as the line that has begun, so that a long one takes few turns.
            let want = (seen - start).clamp(BLOCK, LARGE_BLOCK);
            self.ended = self.input.fill(&mut self.data, want).await? == 0;
        }
    }

    /// The line, of which only a part is kept if it is too long.
    fn kept(&mut self, start: usize, end: usize, next: usize) -> Line {
        let left_out = if end - start > MAX_LINE { end - start - KEPT } else { 0 };
        if left_out > 0 {
            self.data.drain(start + KEPT..end);
        }
        Line {
            end: end - left_out,
            next: next - left_out,
            left_out: left_out as u64,
        }
    }

    /// Goes on to the end of a line that is too long already, and keeps its start.
    async fn long_line(&mut self, start: usize) -> Result<Line, Failure> {
        let end = start + KEPT;
        let mut left_out = (self.data.len() - end) as u64;
        self.data.truncate(end);
        loop {
            if self.input.fill(&mut self.data, LARGE_BLOCK).await? == 0 {
                self.ended = true;
                return Ok(Line {
                    end,
                    next: end,
                    left_out,
                });
            }
            if let Some(found) = memchr(b'\n', &self.data[end..]) {
                self.data.drain(end..end + found);
                left_out += found as u64;
                return Ok(Line {
                    end,
                    next: end + 1,
                    left_out,
                });
            }
            left_out += (self.data.len() - end) as u64;
            self.data.truncate(end);
        }
    }

    /// Passes over white space, and says whether nothing else follows.
    async fn is_at_end(&mut self, cursor: &mut Cursor) -> Result<bool, Failure> {
        let begin = cursor.at;
        loop {
            let rest = &self.data[cursor.at..];
            let blank = rest.len() - rest.trim_ascii_start().len();
            cursor.lines += lines::count(&rest[..blank]);
            cursor.at += blank;
            if self.data.len() > cursor.at {
                return Ok(false);
            }
            if self.ended {
                return Ok(true);
            }
            // There may be more white space than memory.
            cursor.left_out += (cursor.at - begin) as u64;
            self.data.truncate(begin);
            let want = (cursor.at - begin).clamp(BLOCK, LARGE_BLOCK);
            cursor.at = begin;
            self.ended = self.input.fill(&mut self.data, want).await? == 0;
        }
    }

    /// Finds and reads the rows of one segment at the start of `self.data`.
    async fn read(&mut self) -> Result<(Sift, Vec<RowPlace>, Cursor, bool), Failure> {
        let mut rows = Rows::new(&self.shape.address, Arc::clone(&self.shape.schema));
        let mut places: Vec<RowPlace> = Vec::new();
        let mut cursor = Cursor::default();
        let last = loop {
            if self.is_at_end(&mut cursor).await? {
                break true;
            }
            let bytes = cursor.at as u64 + cursor.left_out;
            if places.len() as u64 == self.shape.checkpoint_rows || bytes >= SEGMENT_BYTES {
                break false;
            }
            let start = cursor.at;
            let line = self.line(start).await?;
            let end = start + self.data[start..line.end].trim_ascii_end().len();
            let odd = (line.left_out > 0).then(|| too_long(line.end - start, line.left_out));
            rows.take(&self.data[start..end], odd, &mut self.keys, &mut self.builders);
            if rows.count == BATCH_ROWS {
                rows.finish(&mut self.builders)?;
            }
            places.push(RowPlace {
                start,
                end,
                line: cursor.lines,
            });
            cursor.lines += u64::from(line.next > line.end);
            cursor.left_out += line.left_out;
            cursor.at = line.next;
        };
        rows.finish(&mut self.builders)?;
        Ok((rows.sift, places, cursor, last))
    }
}

/// Reads rows that were taken out of their files.
pub(super) fn read_rows(
    columns: &[Column],
    paths: &Paths,
    strict: bool,
    rows: &[KeptRow<'_>],
) -> Result<Reread, Failure> {
    let mut keys = Keys::new(columns, paths, strict);
    let builder = |column| ColumnBuilder::new(column, rows.len().min(BATCH_ROWS));
    let mut builders: Vec<_> = columns.iter().map(builder).collect::<Result<_, _>>()?;
    let mut read = Rows::new(rows.first().map_or("", |row| row.file), schema(columns));
    for row in rows {
        read.take(row.bytes.trim_ascii(), None, &mut keys, &mut builders);
        if read.count == BATCH_ROWS {
            read.finish(&mut builders)?;
        }
    }
    read.finish(&mut builders)?;
    Ok(Reread {
        batches: read.sift.batches,
        unreadable: read.sift.unreadable,
    })
}

fn too_long(kept: usize, left_out: u64) -> Odd {
    Odd {
        reason: "too_long",
        detail: format!(
            "the line has {} bytes, more than {} MiB",
            kept as u64 + left_out,
            MAX_LINE >> 20
        ),
    }
}

#[async_trait]
impl SegmentReader for JsonReader {
    fn passed_over(&self) -> u64 {
        self.input.passed_over
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        if self.done {
            return Ok(None);
        }
        let (sift, places, cursor, last) = self.read().await?;
        let rest = self.data.split_off(cursor.at);
        let data = std::mem::replace(&mut self.data, rest);
        let begin = self.at;
        let bytes = cursor.at as u64 + cursor.left_out;
        self.at.offset += bytes;
        self.at.line += cursor.lines;
        self.done = last;
        Ok(Some(Segment {
            batches: sift.batches,
            unreadable: sift.unreadable,
            rows: places.len() as u64,
            bytes,
            next: self.at,
            cursor: None,
            last,
            raw: Box::new(Raw {
                data,
                places,
                line: begin.line,
            }),
        }))
    }
}

/// The segment's bytes, and where its rows are in them.
struct Raw {
    data: Vec<u8>,
    places: Vec<RowPlace>,
    /// The line on which `data` starts.
    line: u64,
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let place = self.places.get(usize::try_from(row).ok()?)?;
        Some((self.line + place.line, self.data.get(place.start..place.end)?))
    }
}
