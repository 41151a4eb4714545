//! Sources: where rows are read from. Listing and cutting ([`Source::discover`]) and reading a chunk in segments
//! ([`Source::open`]).
//!
//! A row is either parsed and typed, or rejected with its line, column, reason and raw text. Nothing else happens to it.
//! The cut is on row boundaries, and the segments of a chunk are the same in every attempt.
//!
//! A new kind of source is one file or folder here, its place in [`SourceKind`], one line in [`bind`], and one in the suite
//! that every kind passes (`node/tests/sources`). A new kind of file is a `files::Format`.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::{Column, Source as Declared, SourceKind};

use crate::store::S3Settings;

mod csv;
pub mod database;
mod files;
pub mod infer;
mod input;
mod json;
mod lines;
mod misfit;
mod object;
mod parquet;
mod sift;
#[cfg(test)]
mod testing;
mod value;

/// A row that could not be parsed or typed. `row` counts from 0 in its segment, in file order, over all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its place in the segment.
    pub row: u64,
    /// The column to blame, if one is.
    pub column: Option<String>,
    /// A short stable word: `ragged`, `bad_utf8`, `nul_byte`, `bad_int`, `null_in_required`, ...
    pub reason: &'static str,
    /// What exactly did not fit.
    pub detail: String,
}

/// What is wrong with a source as it is declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct Misdeclared {
    /// What is wrong.
    pub failure: Failure,
    /// The declared column that it is about, if it is one.
    pub column: Option<String>,
}

impl From<Failure> for Misdeclared {
    fn from(failure: Failure) -> Self {
        Self { failure, column: None }
    }
}

impl From<Misdeclared> for Failure {
    fn from(wrong: Misdeclared) -> Self {
        wrong.failure
    }
}

/// At most `checkpoint_rows` rows of a chunk.
pub struct Segment {
    /// The rows that could be read, in file order; the last column is [`haulage_plan::ROW_COLUMN`] (UInt64, not null):
    /// the row's place in this segment, counted over all rows, readable or not.
    pub batches: Vec<RecordBatch>,
    /// The rows that could not.
    pub unreadable: Vec<Unreadable>,
    /// All rows of the segment.
    pub rows: u64,
    /// Bytes of the segment, after decompression.
    pub bytes: u64,
    /// Where the next segment starts.
    pub next: Position,
    /// Whether the chunk ends here.
    pub last: bool,
    /// The text of any of its rows, for quarantine.
    pub raw: Box<dyn RawRows>,
}

/// The rows of a segment as they stood in the file; as JSON, where a file has no text of a row.
pub trait RawRows: Send + Sync {
    /// The line on which the row's record starts, or the row's number in its file (from 1), and its bytes without the line
    /// end.
    fn row(&self, row: u64) -> Option<(u64, &[u8])>;

    /// That line or number alone, where it costs less.
    fn line(&self, row: u64) -> Option<u64> {
        self.row(row).map(|(line, _)| line)
    }
}

/// Reads a chunk, segment by segment.
#[async_trait]
pub trait SegmentReader: Send {
    /// The next segment; `None` after the last. A chunk without rows yields one empty segment.
    async fn next(&mut self) -> Result<Option<Segment>, Failure>;

    /// Bytes that had to be read to get to where it was opened: of an object that can't be entered in its middle.
    fn passed_over(&self) -> u64 {
        0
    }
}

/// A source as the pipeline file declares it, bound to where its objects are.
#[async_trait]
pub trait Source: Send + Sync {
    /// The columns in the order of the batches, without the row column: those declared, or the first object's own.
    async fn columns(&self) -> Result<Vec<Column>, Failure>;

    /// Looks whether the objects are there and are what was declared, without reading rows: their headers, and of many
    /// objects only the first. Permanent failure naming the path, as of [`Source::discover`], which looks at all.
    async fn check(&self) -> Result<(), Misdeclared>;

    /// Lists the objects and cuts them into chunks, in a stable order, indexes from 0 in `stage`.
    /// Permanent failure naming the path if nothing matches, or a header lacks a declared column.
    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure>;

    /// Opens a chunk at `from` (its start, or a checkpoint's position).
    /// Permanent failure if the object is no longer the one that was discovered.
    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure>;

    /// Reads the whole source, for a lookup. Any unreadable row is a permanent failure with file, line and column.
    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure>;
}

/// What a source needs to know beside its declaration.
#[derive(Debug, Clone)]
pub struct Binding {
    /// What relative paths are taken from: a folder or an `s3://bucket/prefix`.
    pub base: String,
    /// How S3 is reached.
    pub s3: S3Settings,
    /// Rows of a segment; the same for every attempt of a run.
    pub checkpoint_rows: u64,
    /// The databases that the node knows; shared by all sources of a run.
    pub databases: database::Databases,
}

/// The source that a pipeline declares. Touches nothing; permanent failure if its settings contradict each other.
pub fn bind(source: &Declared, binding: Binding) -> Result<Box<dyn Source>, Failure> {
    match &source.kind {
        SourceKind::Csv(csv) => Ok(Box::new(csv::files(&source.name, csv, binding)?)),
        SourceKind::Json(json) => Ok(Box::new(json::files(&source.name, json, binding))),
        SourceKind::Parquet(parquet) => Ok(Box::new(parquet::files(&source.name, parquet, binding))),
        SourceKind::Database(declared) => database::bind(source, declared, binding),
    }
}

/// The schema of a source's batches: its columns, not null where required, and the row column.
pub fn schema(columns: &[Column]) -> SchemaRef {
    let field = |column: &Column| Field::new(&column.name, column.data_type.clone(), !column.required);
    let mut fields: Vec<_> = columns.iter().map(field).collect();
    fields.push(Field::new(ROW_COLUMN, DataType::UInt64, false));
    Arc::new(Schema::new(fields))
}

/// Bytes as a person can read them and every store can hold them: bytes that are no UTF-8, and NUL, as `\xNN`.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for (number, piece) in part.valid().split('\0').enumerate() {
            text.push_str(if number > 0 { "\\x00" } else { "" });
            text.push_str(piece);
        }
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Bytes as part of an error: like [`printable`], with control characters escaped, and cut after `most` characters. What
/// stands in a file must not steer a terminal, nor push an error out of sight.
pub fn excerpt(bytes: &[u8], most: usize) -> String {
    // Of a long value only the start is looked at; four bytes are the longest character.
    let start = bytes.get(..4 * most + 4).unwrap_or(bytes);
    let mut text = String::new();
    for (shown, letter) in printable(start).chars().enumerate() {
        if shown == most {
            text.push_str("...");
            return text;
        }
        if letter.is_control() {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    if start.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

/// Characters of a value or a name that an error shows.
pub const EXCERPT: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_steers_no_terminal() {
        for (bytes, most, text) in [
            (&b"plain"[..], 60, "plain"),
            (b"\x1b[31mred\x07\n", 60, "\\u{1b}[31mred\\u{7}\\n"),
            (b"\xff\x1b", 60, "\\xff\\u{1b}"),
            (b"abcdef", 3, "abc..."),
            ("äöü".as_bytes(), 3, "äöü"),
            (&[b'x'; 100], 4, "xxxx..."),
        ] {
            assert_eq!(excerpt(bytes, most), text, "{bytes:?}");
        }
    }

    #[test]
    fn bytes_are_shown_without_loss() {
        assert_eq!(printable("a,\"ü\"".as_bytes()), "a,\"ü\"");
        assert_eq!(printable(b"a\xff\0b\xc3"), "a\\xff\\x00b\\xc3");
        assert_eq!(printable(b""), "");
    }
}
