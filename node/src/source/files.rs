//! What all kinds of files have in common as a source: their objects are listed, pinned by version, and cut into chunks
//! one by one. A kind of file is a [`Format`], which knows a single object.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::contract::{Contract, NewColumn};
use haulage_plan::definition::{Column, Paths, Source as Declared};
use tokio::sync::OnceCell;

use super::contract::{Drift, Found, NO_PATHS, Own, Terms};
use super::folders::{self, Folders};
use super::held::Held;
use super::object::{self, Object};
use super::{Binding, EXCERPT, KeptRow, Misdeclared, Reread, SegmentReader, Source, Unreadable, excerpt, schema};
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

    /// The columns that the object has by itself; `None` if it doesn't say, and then it is taken to have all.
    async fn found(&self, object: &Object) -> Result<Option<Vec<Found>>, Failure>;

    /// Whether every row names its columns.
    fn by_row(&self) -> bool {
        false
    }

    /// Where declared columns are that don't stand at their own name.
    fn paths(&self) -> &Paths {
        &NO_PATHS
    }

    /// Whether a rejected row is kept by the values that are read of it, and not as it stands in the object.
    fn keeps_values(&self) -> bool {
        false
    }

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
    contract: Contract,
    /// The columns that the run was planned with.
    planned: Option<Vec<Column>>,
    binding: Binding,
    format: F,
    folders: Folders,
    /// The columns of the files; those of the folders come behind them.
    columns: OnceCell<Vec<Column>>,
}

impl<F: Format> Files<F> {
    /// The source called `name` with the files at `path`; `declared` is empty if it declares no columns.
    pub(super) fn new(name: &str, path: &str, declared: &[Column], binding: Binding, format: F) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            declared: declared.to_vec(),
            contract: Contract::default(),
            planned: None,
            binding,
            format,
            folders: Folders::default(),
            columns: OnceCell::new(),
        }
    }

    /// Under the contract that a pipeline has for them.
    pub(super) fn under(mut self, source: &Declared) -> Self {
        self.contract = source.contract;
        self.folders = Folders::new(&source.partitions);
        self.planned = source.planned.as_ref().map(|planned| self.folders.without(planned));
        self
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            declared: &self.declared,
            contract: self.contract,
            paths: self.format.paths(),
            by_row: self.format.by_row(),
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

    /// The objects; permanent failure if there is none.
    async fn some_objects(&self) -> Result<Vec<Object>, Failure> {
        let objects = self.objects().await?;
        if objects.is_empty() {
            return Err(Failure::permanent(format!(
                "source {}: {} matches nothing",
                self.name, self.path
            )));
        }
        Ok(objects)
    }

    async fn resolved(&self) -> Result<&Vec<Column>, Failure> {
        let resolve = || async {
            if let Some(planned) = &self.planned {
                return Ok(planned.clone());
            }
            if !self.declared.is_empty() && !self.contract.finds_columns() {
                return Ok(self.declared.clone());
            }
            let objects = self.some_objects().await?;
            let columns = match self.declared.is_empty() {
                true => self.format.columns(&objects).await?,
                false => self.terms().settle(&self.found(&objects).await?)?,
            };
            let names = columns.iter().map(|column| column.name.as_str());
            self.folders.check(names, &self.path, !self.declared.is_empty())?;
            Ok(columns)
        };
        self.columns.get_or_try_init(resolve).await
    }

    /// The address of each object, and the columns that it has by itself; without those that don't say so. Permanent failure
    /// if there is no object.
    pub(super) async fn each(&self) -> Result<Vec<(String, Vec<Found>)>, Failure> {
        self.found(&self.some_objects().await?).await
    }

    /// What columns each object has, of those that say so.
    async fn found(&self, objects: &[Object]) -> Result<Vec<(String, Vec<Found>)>, Failure> {
        let looks: Vec<_> = objects.iter().map(|object| self.format.found(object)).collect();
        let found: Vec<_> = stream::iter(looks).buffered(PARALLEL).try_collect().await?;
        let named = objects.iter().map(|object| object.address.clone()).zip(found);
        Ok(named.filter_map(|(address, found)| Some((address, found?))).collect())
    }

    /// What of the run's columns is read of the object.
    async fn held(&self, object: &Object, columns: &[Column]) -> Result<Held, Misdeclared> {
        let as_declared = self.contract.is_plain() && self.planned.is_none();
        if as_declared || self.declared.is_empty() {
            return Ok(Held::whole(columns));
        }
        match self.format.found(object).await? {
            Some(found) => {
                let names = || found.iter().map(|found| found.name.as_str());
                if self.contract.on_new_column == NewColumn::Fail {
                    self.folders.check(names(), &object.address, true)?;
                }
                let mut held = self.terms().hold(columns, &found, &object.address)?;
                if let (Some(new), Some(clash)) = (&mut held.new, self.folders.clash(names(), true)) {
                    new.detail = format!("{} {clash}", object.address);
                }
                Ok(if self.format.keeps_values() {
                    held.keeping()
                } else {
                    held
                })
            }
            None => Ok(Held::whole(columns)),
        }
    }

    /// The same of the object that a row was read from, by the columns that it had then.
    fn held_of(&self, row: &KeptRow<'_>, columns: &[Column]) -> Result<Held, Failure> {
        let as_declared = self.contract.is_plain() && self.planned.is_none();
        match row.columns {
            Some(names) if !names.is_empty() && !as_declared && !self.declared.is_empty() => {
                let found: Vec<_> = names.iter().map(|name| Found::new(name, Own::Text)).collect();
                Ok(self.terms().hold(columns, &found, row.file)?)
            }
            _ => Ok(Held::whole(columns)),
        }
    }

    async fn check_object(&self, object: &Object, columns: &[Column]) -> Result<(), Misdeclared> {
        self.folders.values(&object.address)?;
        let held = self.held(object, columns).await?;
        self.format.check(object, &held.present).await
    }

    async fn cut(&self, object: &Object, columns: &[Column]) -> Result<Vec<Part>, Failure> {
        self.folders.values(&object.address)?;
        let held = self.held(object, columns).await?;
        self.format.cut(object, &held.present).await
    }

    async fn reader(
        &self,
        object: &Object,
        columns: &[Column],
        from: Position,
        end: Option<u64>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let held = self.held(object, columns).await?;
        let reader = self.format.open(object, &held.present, from, end).await?;
        let reader = held.reader(reader, columns);
        self.folders.reader(reader, columns, &object.address)
    }

    async fn read_object(&self, object: &Object, columns: &[Column]) -> Result<Vec<RecordBatch>, Failure> {
        let start = self.format.start(object).await?;
        let mut reader = self.reader(object, columns, start, None).await?;
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
        Ok(self.folders.with(self.resolved().await?))
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let looks: Vec<_> = objects
            .iter()
            .take(CHECKED)
            .map(|object| self.check_object(object, columns))
            .collect();
        stream::iter(looks).buffered(PARALLEL).try_collect().await
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        let columns = self.resolved().await?;
        let objects = self.objects().await?;
        let cuts: Vec<_> = objects.iter().map(|object| self.cut(object, columns)).collect();
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
                window: None,
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
        self.reader(&object, columns, from, chunk.end).await
    }

    async fn drift(&self) -> Result<Vec<Drift>, Failure> {
        if self.declared.is_empty() {
            return Ok(Vec::new());
        }
        let columns = self.resolved().await?;
        let found = self.found(&self.objects().await?).await?;
        Ok(self.terms().drifts(columns, &found))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        let columns = self.resolved().await?;
        let (own, all) = (schema(columns), schema(&self.folders.with(columns)));
        let (mut reread, mut done) = (Reread::default(), 0);
        // Rows of one object come one after the other, so there are few of these.
        for alike in rows.chunk_by(|one, other| one.columns == other.columns && one.file == other.file) {
            let Some(first) = alike.first() else { continue };
            let held = self.held_of(first, columns)?;
            let mut read = match held.rejected(alike.len() as u64) {
                Some(rejected) => rejected,
                None => {
                    let read = self.format.reread(&held.present, alike, &self.binding.s3).await?;
                    held.reread(read, &own)?
                }
            };
            let values = self.folders.values(first.file)?;
            for batch in &mut read.batches {
                *batch = folders::beside(batch, &values, &all)?;
            }
            reread.take(done, read)?;
            done += alike.len() as u64;
        }
        Ok(reread)
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

/// What else may be done about a declared column that a file lacks.
pub(super) fn or_null(column: &Column) -> &'static str {
    if column.required {
        ""
    } else {
        ", or write `on_missing_column: null` for the source"
    }
}
