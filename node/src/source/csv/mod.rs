//! CSV files as a source: listing, cutting, and reading in segments.
//!
//! * A chunk is a range of a plain file on record boundaries, or a whole compressed file.
//! * Declared columns are found in each file's header by name, so files may differ in the order of their columns; a
//!   declared column that a file lacks is a permanent failure, and further columns are left out.
//! * A byte order mark is skipped, blank lines are no rows, and white space is never trimmed.
//! * A field without text is no value, and so is one of the source's `null` texts. Quoted text is always text: `""` is
//!   the empty text and `"NA"` two letters. For other types quotes make no difference.
//! * A file of 0 bytes has no header and is a permanent failure; a source without headers takes it as no rows.
//! * Text in quarantine and messages shows bytes that are no UTF-8 as `\xNN`; messages escape control characters too.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::definition::{Column, Compression, CsvSource};
use tokio::sync::OnceCell;

use self::column::NullTexts;
use self::reader::{CsvReader, Shape};
use self::record::{Dialect, is_line_end};
use super::input::{self, Input};
use super::object::{self, Object};
use super::{Binding, Misdeclared, SegmentReader, Source, Unreadable};
use crate::store::s3_client::changed;

pub(in crate::source) mod column;
mod cut;
mod header;
mod reader;
pub(in crate::source) mod record;
mod spare;
#[cfg(test)]
mod tests;
mod value;

/// Files that are looked at in parallel.
const PARALLEL: usize = 4;
/// Objects whose headers are looked at before a run exists. Each costs a request at S3, and somebody waits.
const CHECKED: usize = 100;

/// A CSV source of a pipeline.
pub(super) struct CsvFiles {
    name: String,
    source: CsvSource,
    binding: Binding,
    dialect: Dialect,
    columns: OnceCell<Vec<Column>>,
    spare: spare::Shared,
}

impl CsvFiles {
    /// Permanent failure if the source's settings can't be read by.
    pub(super) fn new(name: &str, source: &CsvSource, binding: Binding) -> Result<Self, Failure> {
        let CsvSource {
            delimiter,
            quote,
            quoted_newlines,
            ..
        } = *source;
        if delimiter == quote || is_line_end(delimiter) || is_line_end(quote) {
            return Err(Failure::permanent(format!(
                "source {name}: `delimiter` and `quote` have to differ, and neither can be a line end"
            )));
        }
        if source.columns.is_empty() && !source.header {
            return Err(Failure::permanent(format!(
                "source {name} has no header; declare its columns"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            source: source.clone(),
            binding,
            dialect: Dialect {
                delimiter,
                quote,
                quoted_newlines,
            },
            columns: OnceCell::new(),
            spare: spare::Shared::default(),
        })
    }

    async fn objects(&self) -> Result<Vec<Object>, Failure> {
        let Binding { base, s3, .. } = &self.binding;
        let named = |failure: Failure| Failure {
            message: format!("source {}: {}", self.name, failure.message),
            ..failure
        };
        object::list(&self.source.path, base, s3).await.map_err(named)
    }

    async fn resolved(&self) -> Result<&Vec<Column>, Failure> {
        let resolve = || async {
            if !self.source.columns.is_empty() {
                return Ok(self.source.columns.clone());
            }
            let objects = self.objects().await?;
            let Some(first) = objects.first() else {
                return Err(Failure::permanent(format!(
                    "source {}: {} matches nothing",
                    self.name, self.source.path
                )));
            };
            header::columns(&header::read(first, &self.source, self.dialect).await?, &first.address)
        };
        self.columns.get_or_try_init(resolve).await
    }

    /// Whether the header of an object has the columns.
    async fn head(&self, object: &Object, columns: &[Column]) -> Result<(), Misdeclared> {
        let head = header::read(object, &self.source, self.dialect).await?;
        header::layout(&head, columns, &object.address).map(drop)
    }

    /// The parts of one object: where each starts and ends, and its bytes.
    async fn cut(&self, object: &Object) -> Result<Vec<(Position, Option<u64>, u64)>, Failure> {
        let head = header::read(object, &self.source, self.dialect).await?;
        header::layout(&head, self.resolved().await?, &object.address)?;
        if !matches!(
            input::resolve(self.source.compression, &object.address),
            Compression::None
        ) {
            return Ok(vec![(head.start, None, object.size)]);
        }
        let places = cut::places(object, self.dialect, head.start, self.source.chunk_bytes).await?;
        let ends = places.iter().skip(1).map(|place| Some(place.offset)).chain([None]);
        let part = |(start, end): (&Position, Option<u64>)| {
            (*start, end, end.unwrap_or(object.size).saturating_sub(start.offset))
        };
        Ok(places.iter().zip(ends).map(part).collect())
    }

    async fn reader(&self, object: &Object, from: Position, end: Option<u64>) -> Result<CsvReader, Failure> {
        let columns = self.resolved().await?.clone();
        let head = header::read(object, &self.source, self.dialect).await?;
        let shape = Shape {
            address: object.address.clone(),
            dialect: self.dialect,
            layout: header::layout(&head, &columns, &object.address)?,
            schema: super::schema(&columns),
            columns,
            nulls: NullTexts::new(&self.source.null),
            checkpoint_rows: self.binding.checkpoint_rows.max(1),
        };
        let input = Input::open(object, self.source.compression, from.offset, end).await?;
        Ok(CsvReader::new(shape, input, from, self.spare.get()))
    }

    async fn read_object(&self, object: &Object) -> Result<Vec<RecordBatch>, Failure> {
        let head = header::read(object, &self.source, self.dialect).await?;
        let mut reader = self.reader(object, head.start, None).await?;
        let mut batches = Vec::new();
        while let Some(segment) = reader.next().await? {
            if let Some(first) = segment.unreadable.first() {
                let line = segment.raw.row(first.row).map_or(head.start.line, |(line, _)| line);
                return Err(self.unreadable(object, line, first));
            }
            batches.extend(segment.batches);
        }
        Ok(batches)
    }

    fn unreadable(&self, object: &Object, line: u64, row: &Unreadable) -> Failure {
        let Unreadable {
            column, reason, detail, ..
        } = row;
        let column = column
            .as_ref()
            .map(|column| format!(", column {column}"))
            .unwrap_or_default();
        Failure::permanent(format!(
            "source {}: {} line {line}{column}: {reason}: {detail}; a lookup has to be read whole: correct the file, \
             or declare the column as another type",
            self.name, object.address
        ))
    }
}

#[async_trait]
impl Source for CsvFiles {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.resolved().await.cloned()
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let heads: Vec<_> = objects
            .iter()
            .take(CHECKED)
            .map(|object| self.head(object, columns))
            .collect();
        stream::iter(heads).buffered(PARALLEL).try_collect().await
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        let objects = self.objects().await?;
        let cuts: Vec<_> = objects.iter().map(|object| self.cut(object)).collect();
        let parts: Vec<_> = stream::iter(cuts).buffered(PARALLEL).try_collect().await?;
        let parts = objects
            .iter()
            .zip(parts)
            .flat_map(|(object, parts)| parts.into_iter().map(move |part| (object, part)));
        let mut chunks = Vec::new();
        for (index, (object, (start, end, bytes))) in (0..).zip(parts) {
            chunks.push(ChunkSpec {
                chunk: ChunkId { stage, index },
                source: self.name.clone(),
                object: object.address.clone(),
                version: object.version.clone(),
                start,
                end,
                bytes,
            });
        }
        Ok(chunks)
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let object = object::find(&chunk.object, &self.binding.s3).await?;
        if object.version != chunk.version {
            return Err(changed(&chunk.object));
        }
        Ok(Box::new(self.reader(&object, from, chunk.end).await?))
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        let objects = self.objects().await?;
        let mut batches = Vec::new();
        for object in &objects {
            batches.extend(self.read_object(object).await?);
        }
        Ok(batches)
    }
}
