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
use haulage_core::ids::{LoadName, StageId};
use haulage_core::quarantine::Reject;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::{Column, Source as Declared, SourceKind};

use crate::store::S3Settings;
pub use contract::Drift;
pub(crate) use contract::NEW_COLUMN;
pub(crate) use haulage_core::quarantine::NOT_REPLAYABLE;
pub(crate) use rest::{Secrets, secrets};
pub use wanted::Wanted;

mod contract;
mod contracted;
mod csv;
pub mod database;
mod files;
pub(crate) mod folders;
mod held;
pub mod infer;
mod input;
mod json;
mod lines;
mod misfit;
mod object;
mod parquet;
pub(crate) mod replay;
mod rest;
mod sift;
#[cfg(test)]
mod testing;
mod value;
mod wanted;

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
    /// The name of that place, if the position alone doesn't lead there. It is kept with checkpoints, so it is no secret.
    pub cursor: Option<String>,
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

    /// What all of them sum up to, if reading them again may give others.
    fn digest(&self) -> Option<String> {
        None
    }

    /// The columns in the order of the fields of its rows, where rows don't name them; else those that the object has, read
    /// or not.
    fn columns(&self) -> &[String] {
        &[]
    }

    /// Whether the bytes of its rows are their values with a tab between them, and `\N` for none.
    fn is_tabbed(&self) -> bool {
        false
    }

    /// The row's values, if its bytes don't tell where one ends.
    fn values(&self, _row: u64) -> Option<Vec<Option<&[u8]>>> {
        None
    }

    /// Whether the row's bytes are all that is to know of it.
    fn is_whole(&self, _row: u64) -> bool {
        true
    }

    /// What is missing of a row whose bytes are not all, in words that follow its name.
    fn gap(&self) -> &'static str {
        "it holds bytes that are no text"
    }

    /// Of a replayed row: how it was rejected before.
    fn rejected(&self, _row: u64) -> Option<&Reject> {
        None
    }

    /// The loads that the row may go to; `None` is all of them. Of a replayed row others may have it.
    fn loads(&self, _row: u64) -> Option<&[LoadName]> {
        None
    }

    /// Of a replayed row that goes to other loads: those for which it stays rejected, since they have a part of it.
    fn held_back(&self, _row: u64) -> Option<&[LoadName]> {
        None
    }
}

/// A row that a run has put into quarantine, to be read again by itself.
#[derive(Debug, Clone, Copy)]
pub struct KeptRow<'k> {
    /// The object that it was read from.
    pub file: &'k str,
    /// Where it starts there.
    pub line: u64,
    /// The columns in the order of its fields, or of its object; empty if there is no such order, `None` if it isn't known.
    pub columns: Option<&'k [String]>,
    /// Its bytes.
    pub bytes: &'k [u8],
    /// Its values, if the bytes don't tell them.
    pub values: Option<&'k [Option<String>]>,
}

/// Rows that were read again. The row column counts them in their order.
#[derive(Debug, Default)]
pub struct Reread {
    /// Those that can be read, as in [`Segment::batches`].
    pub batches: Vec<RecordBatch>,
    /// The others.
    pub unreadable: Vec<Unreadable>,
}

impl Reread {
    /// Takes a row out of those that can be read.
    fn reject(&mut self, unreadable: Unreadable) -> Result<(), Failure> {
        for batch in &mut self.batches {
            *batch = replay::only(batch, |row| row != unreadable.row)?;
        }
        self.batches.retain(|batch| batch.num_rows() > 0);
        self.unreadable.retain(|other| other.row != unreadable.row);
        self.unreadable.push(unreadable);
        Ok(())
    }

    /// Adds rows that come after `before` others. Permanent failure if their batches can't be numbered anew.
    fn take(&mut self, before: u64, more: Self) -> Result<(), Failure> {
        for batch in more.batches {
            self.batches.push(replay::renumbered(&batch, |row| before + row)?);
        }
        let shifted = more.unreadable.into_iter().map(|unreadable| Unreadable {
            row: before + unreadable.row,
            ..unreadable
        });
        self.unreadable.extend(shifted);
        Ok(())
    }
}

/// What to say if a row was kept without a column that is declared now.
fn not_kept(row: &KeptRow<'_>, column: &str) -> Failure {
    Failure::permanent(format!(
        "{} row {}: it was put into quarantine without the column {}, which the pipeline did not read then; leave the column \
         out to replay the rejected rows, or run the pipeline again",
        row.file,
        row.line,
        excerpt(column.as_bytes(), EXCERPT)
    ))
}

/// Reads a chunk, segment by segment.
#[async_trait]
pub trait SegmentReader: Send {
    /// The next segment; `None` after the last. A chunk without rows yields one empty segment.
    async fn next(&mut self) -> Result<Option<Segment>, Failure>;

    /// Tells, before the first segment, which rows are needed. Others may be passed over unread, and count among the rows of
    /// their segment. Permanent failure if the reader can't be set up so.
    fn only(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        let _ = wanted;
        Ok(())
    }

    /// Bytes that had to be read to get to where it was opened: of an object that can't be entered in its middle.
    fn passed_over(&self) -> u64 {
        0
    }
}

/// What the version of a chunk says of how its object is read, in words; `None` where it names a version of the object.
pub fn version_in_words(version: &str) -> Option<String> {
    database::in_words(version)
}

/// What is new in an incremental source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    /// Its chunks, at least one, each with its window.
    pub chunks: Vec<ChunkSpec>,
    /// The watermark once they are published; never below the one before.
    pub to: Option<String>,
    /// Rows that lie in the future and are left for a later run, as far as they are counted.
    pub held_back: u64,
    /// Its highest value, if that lies below where it is read from; of an empty source there is none.
    pub below: Option<String>,
}

/// A source as the pipeline file declares it, bound to where its objects are.
#[async_trait]
pub trait Source: Send + Sync {
    /// The columns in the order of the batches, without the row column: those declared, or the first object's own.
    async fn columns(&self) -> Result<Vec<Column>, Failure>;

    /// The columns as well as they can be told without reading rows, to be declared: of a database's table also which of
    /// them always have a value, and how many digits.
    async fn described(&self) -> Result<Vec<Column>, Failure> {
        self.columns().await
    }

    /// Looks whether the objects are there and are what was declared, without reading rows: their headers, and of many
    /// objects only the first. Permanent failure naming the path, as of [`Source::discover`], which looks at all.
    async fn check(&self) -> Result<(), Misdeclared>;

    /// Lists the objects and cuts them into chunks, in a stable order, indexes from 0 in `stage`.
    /// Permanent failure naming the path if nothing matches, or a header lacks a declared column.
    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure>;

    /// The same of an incremental source: what is new after the watermark `low`, or everything. `open`: also what lies above
    /// the watermark to come, which the next run reads again. Permanent failure if the source can't be read so.
    async fn discover_after(&self, stage: StageId, low: Option<&str>, open: bool) -> Result<Increment, Failure> {
        let _ = (stage, low, open);
        Err(Failure::permanent("this kind of source can't be read incrementally"))
    }

    /// Opens a chunk at `from` (its start, or a checkpoint's position).
    /// Permanent failure if the object is no longer the one that was discovered.
    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure>;

    /// How what is there differs from what is declared, and what becomes of it; nothing of a source that declares no
    /// columns.
    async fn drift(&self) -> Result<Vec<Drift>, Failure> {
        Ok(Vec::new())
    }

    /// The same, of a checkpoint that names its place ([`Segment::cursor`]).
    async fn open_at(
        &self,
        chunk: &ChunkSpec,
        from: Position,
        cursor: Option<&str>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        if cursor.is_some() {
            return Err(Failure::permanent(format!(
                "the checkpoint of chunk {} is one of another kind of source; run the same release on all nodes",
                chunk.chunk
            )));
        }
        self.open(chunk, from).await
    }
    /// Reads rows again that this source gave once, by the columns as they are declared now: each is a row, or unreadable.
    /// Permanent failure if they lack a column, or can't be read at all.
    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure>;

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
        SourceKind::Csv(csv) => Ok(Box::new(csv::files(&source.name, csv, binding)?.under(source))),
        SourceKind::Json(json) => {
            let files = json::files(&source.name, json, source.contract, binding);
            Ok(Box::new(files.under(source)))
        }
        SourceKind::Parquet(parquet) => Ok(Box::new(parquet::files(&source.name, parquet, binding).under(source))),
        SourceKind::Database(declared) => database::bind(source, declared, binding),
        SourceKind::Rest(rest) => Ok(Box::new(rest::RestRows::new(source, rest, binding)?)),
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
