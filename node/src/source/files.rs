//! What all kinds of files have in common as a source: their objects are listed, pinned by version, and cut into chunks
//! one by one. A kind of file is a [`Format`], which knows a single object.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::definition::Column;
use tokio::sync::OnceCell;

use super::object::{self, Object};
use super::{Binding, EXCERPT, KeptRow, Misdeclared, Reread, SegmentReader, Source, Unreadable, excerpt};
use crate::store::S3Settings;
use crate::store::s3_client::changed;

/// Objects that are looked at in parallel.
const PARALLEL: usize = 4;
/// Objects that are looked at before a run exists. Each costs a request at S3, and somebody waits.
const CHECKED: usize = 100;

/// A part of an object that becomes a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where its first row starts.
    pub(super) start: Position,
    /// One past its end, in the format's own measure; `None` is the end of the object.
    pub(super) end: Option<u64>,
    /// Its size in bytes, as far as it is known without reading it.
    pub(super) bytes: u64,
}

impl Part {
    /// The parts of a plain object that start at these places, of which the last ends with the object.
    pub(super) fn between(places: &[Position], size: u64) -> Vec<Self> {
        let ends = places.iter().skip(1).map(|place| Some(place.offset)).chain([None]);
        let part = |(start, end): (&Position, Option<u64>)| Self {
            start: *start,
            end,
            bytes: end.unwrap_or(size).saturating_sub(start.offset),
        };
        places.iter().zip(ends).map(part).collect()
    }
}

/// A kind of file, and how the pipeline wants it read.
#[async_trait]
pub(super) trait Format: Send + Sync {
    /// The columns of a source that declares none. The objects are at least one.
    async fn columns(&self, objects: &[Object]) -> Result<Vec<Column>, Failure>;

    /// Looks whether the object is such a file and has the columns, without reading its rows.
    async fn check(&self, object: &Object, columns: &[Column]) -> Result<(), Misdeclared>;

    /// Where the first row of the object starts.
    async fn start(&self, object: &Object) -> Result<Position, Failure>;

    /// The parts of the object, at least one, after the look of [`Format::check`].
    async fn cut(&self, object: &Object, columns: &[Column]) -> Result<Vec<Part>, Failure>;

    /// Reads the object from a start or a checkpoint on, up to the end of a part.
    async fn open(
        &self,
        object: &Object,
        columns: &[Column],
        from: Position,
        end: Option<u64>,
    ) -> Result<Box<dyn SegmentReader>, Failure>;

    /// Reads rows of such files again, as [`Source::reread`].
    async fn reread(&self, columns: &[Column], rows: &[KeptRow<'_>], s3: &S3Settings) -> Result<Reread, Failure>;
}

/// The files of one kind that a source's path names.
pub(super) struct Files<F> {
    name: String,
    path: String,
    declared: Vec<Column>,
    binding: Binding,
    format: F,
    columns: OnceCell<Vec<Column>>,
}

impl<F: Format> Files<F> {
    /// The source called `name` with the files at `path`; `declared` is empty if it declares no columns.
    pub(super) fn new(name: &str, path: &str, declared: &[Column], binding: Binding, format: F) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            declared: declared.to_vec(),
            binding,
            format,
            columns: OnceCell::new(),
        }
    }

    async fn objects(&self) -> Result<Vec<Object>, Failure> {
        let Binding { base, s3, .. } = &self.binding;
        let named = |failure: Failure| Failure {
            message: format!("source {}: {}", self.name, failure.message),
            ..failure
        };
        object::list(&self.path, base, s3).await.map_err(named)
    }

    async fn resolved(&self) -> Result<&Vec<Column>, Failure> {
        let resolve = || async {
            if !self.declared.is_empty() {
                return Ok(self.declared.clone());
            }
            let objects = self.objects().await?;
            if objects.is_empty() {
                return Err(Failure::permanent(format!(
                    "source {}: {} matches nothing",
                    self.name, self.path
                )));
            }
            self.format.columns(&objects).await
        };
        self.columns.get_or_try_init(resolve).await
    }

    async fn read_object(&self, object: &Object, columns: &[Column]) -> Result<Vec<RecordBatch>, Failure> {
        let start = self.format.start(object).await?;
        let mut reader = self.format.open(object, columns, start, None).await?;
        let mut batches = Vec::new();
        while let Some(segment) = reader.next().await? {
            if let Some(first) = segment.unreadable.first() {
                let line = segment.raw.row(first.row).map_or(start.line, |(line, _)| line);
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
impl<F: Format> Source for Files<F> {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.resolved().await.cloned()
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let looks: Vec<_> = objects
            .iter()
            .take(CHECKED)
            .map(|object| self.format.check(object, columns))
            .collect();
        stream::iter(looks).buffered(PARALLEL).try_collect().await
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let cuts: Vec<_> = objects.iter().map(|object| self.format.cut(object, columns)).collect();
        let parts: Vec<_> = stream::iter(cuts).buffered(PARALLEL).try_collect().await?;
        let parts = objects
            .iter()
            .zip(parts)
            .flat_map(|(object, parts)| parts.into_iter().map(move |part| (object, part)));
        let mut chunks = Vec::new();
        for (index, (object, part)) in (0..).zip(parts) {
            chunks.push(ChunkSpec {
                chunk: ChunkId { stage, index },
                source: self.name.clone(),
                object: object.address.clone(),
                version: object.version.clone(),
                start: part.start,
                end: part.end,
                bytes: part.bytes,
            });
        }
        Ok(chunks)
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let columns = self.resolved().await?;
        let object = object::find(&chunk.object, &self.binding.s3).await?;
        if object.version != chunk.version {
            return Err(changed(&chunk.object));
        }
        self.format.open(&object, columns, from, chunk.end).await
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        let columns = self.resolved().await?;
        self.format.reread(columns, rows, &self.binding.s3).await
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let mut batches = Vec::new();
        for object in &objects {
            batches.extend(self.read_object(object, columns).await?);
        }
        Ok(batches)
    }
}

/// What to say about a column that a file lacks, which has those of these names.
pub(super) fn suggestion(wanted: &str, names: &[String]) -> String {
    let distance = |name: &String| strsim::damerau_levenshtein(&wanted.to_lowercase(), &name.trim().to_lowercase());
    let nearest = names.iter().map(|name| (distance(name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + wanted.chars().count() / 4 => {
            format!("did you mean \"{}\"?", excerpt(name.as_bytes(), EXCERPT))
        }
        _ => {
            let list = names.iter().take(30).map(|name| excerpt(name.as_bytes(), EXCERPT));
            let list: Vec<_> = list.collect();
            let more = if names.len() > list.len() { ", ..." } else { "" };
            format!("it has {}{more}", list.join(", "))
        }
    }
}
