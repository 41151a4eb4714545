//! Rows become files: they are divided by their partitions, encoded one file after another, and put while the next is
//! encoded.
//!
//! Of memory this takes the rows, 8 bytes more for each of them, and the bytes of a few files, however many partitions
//! there are.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::failure::Failure;
use haulage_plan::definition::{FileFormat, Mode};
use tokio::sync::mpsc;

use super::Files;
use super::encode::{self, Encoding, TWIN, digest};
use super::objects::{AT_ONCE, remove_all};
use super::place::{Area, TablePlace};
use super::rows::{self, Division, Partition, Unfit, gathered};
use super::state::{File, Twin};
use crate::chance;
use crate::sink::{LoadContext, Refused};

/// Files of one segment. The chunk's document names each of them, and is written anew with every segment.
const MAX_FILES: usize = 10_000;

/// Rows to be written as files.
pub(super) struct Work {
    pub(super) load: LoadContext,
    /// In the types in which they are stored.
    pub(super) batches: Vec<RecordBatch>,
    /// How the files' names begin.
    pub(super) name: String,
    /// Rows of the segment that were written before.
    pub(super) before: u64,
}

/// A file that is yet to be written, and its staged twin.
struct Encoded {
    file: File,
    data: Bytes,
    twin: Option<Bytes>,
}

impl Files {
    /// Writes rows as files. They are added to `files` before they are written, so that whoever fails can take them away.
    pub(super) async fn write_files(
        &self,
        place: &TablePlace,
        work: Work,
        files: &mut Vec<File>,
    ) -> Result<(), Refused> {
        let (sender, receiver) = mpsc::channel(1);
        let already = files.len();
        // On a thread of its own: it is work for a processor.
        let encoding = tokio::task::spawn_blocking(move || {
            work.run(already, &mut |encoded| sender.blocking_send(encoded).is_ok())
        });
        let encoded = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|encoded| (encoded, receiver))
        });
        let puts = encoded.map(|encoded| {
            files.push(encoded.file.clone());
            self.put_encoded(place, encoded)
        });
        let put: Result<(), Failure> = puts.buffer_unordered(AT_ONCE).try_collect().await;
        match encoding.await {
            Ok(encoded) => encoded?,
            Err(_) => return Err(Failure::transient("the segment was abandoned because the node is stopping").into()),
        }
        Ok(put?)
    }

    async fn put_encoded(&self, place: &TablePlace, encoded: Encoded) -> Result<(), Failure> {
        if let (Some(twin), Some(data)) = (&encoded.file.twin, encoded.twin) {
            self.objects.put(&place.key(&twin.path), data).await?;
        }
        self.objects.put(&place.key(&encoded.file.path), encoded.data).await
    }

    /// Removes files that don't count. Those that stay are named by nothing, and go with the area.
    pub(super) async fn take_away(&self, place: &TablePlace, load: &LoadContext, files: &[File]) {
        let twins = files.iter().filter_map(|file| file.twin.as_ref());
        let paths = files.iter().map(|file| &file.path).chain(twins.map(|twin| &twin.path));
        let keys = paths.map(|path| place.key(path)).collect();
        if let Err(failure) = remove_all(self.objects.as_ref(), keys).await {
            tracing::debug!(load = %load.load, %failure, "files of a segment that doesn't count are left");
        }
    }

    /// The files of a load: one with the columns and no row, if it has none and would make a version that has none. Of an
    /// empty list a reader learns no columns.
    pub(super) async fn with_columns(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        files: Vec<File>,
    ) -> Result<Vec<File>, Failure> {
        let adds = load.mode == Mode::Append && self.table(place).await?.value.head.is_some();
        if !files.is_empty() || adds {
            return Ok(files);
        }
        let work = Work {
            load: load.clone(),
            batches: Vec::new(),
            name: format!("columns-a{}-{}", load.attempt, chance::boot()),
            before: 0,
        };
        let encoded = work.columns().map_err(|error| work.failed(&error))?;
        let file = encoded.file.clone();
        self.put_encoded(place, encoded).await?;
        Ok(vec![file])
    }
}

impl Work {
    /// Gives the files one after another, until `give` says false.
    fn run(&self, already: usize, give: &mut dyn FnMut(Encoded) -> bool) -> Result<(), Refused> {
        let form = Form::new(&self.load);
        let rows: usize = self.batches.iter().map(RecordBatch::num_rows).sum();
        if rows == 0 {
            return Ok(());
        }
        if self.load.layout.partition_by.is_empty() {
            let encoded = self.one(&form, 0, Partition::new(), &self.batches);
            give(encoded.map_err(|error| self.failed(&error))?);
            return Ok(());
        }
        let parts = form.division.divide(&self.batches).map_err(|error| match error {
            rows::Error::Unfit(Unfit { row, column, why }) => {
                let at = self.before + row as u64;
                Refused::Row(self.load.bad_row(at, Some(&column), why))
            }
            rows::Error::Arrow(error) => self.failed(&error).into(),
        })?;
        if already + parts.len() > MAX_FILES {
            return Err(Failure::permanent(format!(
                "load {}: the rows of one segment go into more than {MAX_FILES} files, because `partition_by` has so many \
                 values; partition by fewer or coarser columns (a lower `checkpoint_rows` has fewer values in a segment, and \
                 even smaller files)",
                self.load.load
            ))
            .into());
        }
        for (n, (partition, rows)) in parts.into_iter().enumerate() {
            let gathered = gathered(&self.batches, &rows).map_err(|error| self.failed(&error))?;
            let encoded = self.one(&form, n, partition, &[gathered]);
            if !give(encoded.map_err(|error| self.failed(&error))?) {
                break;
            }
        }
        Ok(())
    }

    /// A file with no row, where rows without a value would be.
    fn columns(&self) -> Result<Encoded, encode::Error> {
        let partition = vec![None; self.load.layout.partition_by.len()];
        self.one(&Form::new(&self.load), 0, partition, &[])
    }

    fn one(&self, form: &Form, n: usize, partition: Partition, rows: &[RecordBatch]) -> Result<Encoded, encode::Error> {
        let area = Area::of(&self.load);
        let in_file: Result<Vec<RecordBatch>, _> = rows.iter().map(|batch| batch.project(&form.rest)).collect();
        let in_file = in_file?;
        let file_schema = Arc::new(form.schema.project(&form.rest)?);
        let data = Bytes::from(form.encoding.encode(&file_schema, &in_file)?);
        let twin = match form.encoding.format {
            FileFormat::Parquet => None,
            FileFormat::Csv | FileFormat::Jsonl => Some(Bytes::from(TWIN.encode(&form.schema, rows)?)),
        };
        let path = form.division.path(&partition);
        let file = File {
            path: format!("{}{path}{}.{}", area.data(), self.name, form.encoding.ending()),
            rows: rows.iter().map(|batch| batch.num_rows() as u64).sum(),
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

    fn failed(&self, error: &dyn std::fmt::Display) -> Failure {
        unwritable(&self.load, error)
    }
}

pub(super) fn unwritable(load: &LoadContext, error: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(format!(
        "load {}: its rows can't be written as files: {error}",
        load.load
    ))
}

/// What all files of a load have in common.
struct Form {
    schema: SchemaRef,
    division: Division,
    /// The columns that stay in the files.
    rest: Vec<usize>,
    encoding: Encoding,
}

impl Form {
    fn new(load: &LoadContext) -> Self {
        let schema = rows::stored(&load.schema);
        let division = Division::new(&schema, &load.layout.partition_by);
        Self {
            rest: division.rest(&schema),
            encoding: Encoding::new(load.layout.format, load.layout.compression),
            division,
            schema,
        }
    }
}
