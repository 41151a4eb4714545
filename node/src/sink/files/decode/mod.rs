//! Files of a table, read back as they were written: batches of some of their columns, in whatever format they are.
//!
//! It is the other half of `encode`, and no reader of other people's files: what `encode` doesn't write is an error here.
//! Partition columns come from the path. One file is in memory, and of its rows a batch.

mod text;
mod value;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::compute::{cast, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use haulage_plan::definition::FileFormat;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::mpsc;

use self::text::Texts;
use self::value::Parsed;
pub(super) use self::value::parsed;
use super::rows::stored_type;
use super::state::{Column, Shape};

/// Rows of a batch, and bytes of text after which it ends anyhow.
const BATCH_ROWS: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;
/// Batches that wait for whoever takes them.
const WAITING: usize = 2;

/// What is wanted of files that have one shape.
pub(super) struct Wanted {
    format: FileFormat,
    /// The columns in the files, in order, with the types in which they are stored.
    in_file: Vec<Column>,
    /// Those that are in their paths.
    partition_by: Vec<String>,
    /// What batches have.
    schema: SchemaRef,
}

/// Some rows of a file.
#[derive(Debug)]
pub(super) struct Rows {
    /// Those that could be read.
    pub(super) batch: RecordBatch,
    /// How many could not.
    pub(super) unreadable: u64,
    /// What is wrong with the first of them.
    pub(super) first: Option<String>,
}

impl Wanted {
    /// `columns` are in stored types, which hold those of the files. One that the files don't have is without a value.
    pub(super) fn new(shape: &Shape, columns: &[(String, DataType)]) -> Self {
        let in_file = shape.columns.iter().cloned();
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, data_type)| Field::new(name, data_type.clone(), true))
            .collect();
        Self {
            format: shape.format,
            in_file: in_file
                .filter(|column| !shape.partition_by.contains(&column.name))
                .collect(),
            partition_by: shape.partition_by.clone(),
            schema: Arc::new(Schema::new(fields)),
        }
    }

    /// Whether the files have a value of this column.
    pub(super) fn has(&self, name: &str) -> bool {
        self.place(name).is_some() || self.partition_by.iter().any(|by| by == name)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.in_file.iter().position(|column| column.name == name)
    }

    fn names(&self) -> Vec<String> {
        self.in_file.iter().map(|column| column.name.clone()).collect()
    }

    /// A column that is not in the file: from its path, or without a value.
    fn outside(
        &self,
        field: &Field,
        partition: &BTreeMap<String, Option<String>>,
        rows: usize,
    ) -> Result<Parsed, String> {
        match self.has(field.name()) {
            true => of_path(field, partition, rows),
            false => Ok(Parsed::whole(new_null_array(field.data_type(), rows))),
        }
    }

    /// Decodes a file on a thread of its own. After the last batch comes nothing, or what is wrong with the file.
    pub(super) fn read(
        self: &Arc<Self>,
        path: &str,
        data: Bytes,
        partition: BTreeMap<String, Option<String>>,
    ) -> mpsc::Receiver<Result<Rows, String>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (wanted, path) = (Arc::clone(self), path.to_owned());
        // Whoever no longer waits for batches ends it.
        drop(tokio::task::spawn_blocking(move || {
            let mut send = |rows: Rows| sender.blocking_send(Ok(rows)).is_ok();
            if let Err(why) = wanted.decode(&path, data, &partition, &mut send) {
                drop(sender.blocking_send(Err(why)));
            }
        }));
        receiver
    }

    /// Gives every batch to `take`, until that says false.
    fn decode(
        &self,
        path: &str,
        data: Bytes,
        partition: &BTreeMap<String, Option<String>>,
        take: &mut dyn FnMut(Rows) -> bool,
    ) -> Result<(), String> {
        match self.format {
            FileFormat::Parquet => self.parquet(data, partition, take),
            FileFormat::Csv | FileFormat::Jsonl => self.texts(path, data, partition, take),
        }
    }

    fn parquet(
        &self,
        data: Bytes,
        partition: &BTreeMap<String, Option<String>>,
        take: &mut dyn FnMut(Rows) -> bool,
    ) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| format!("it is no sound Parquet ({error})");
        let reader = ParquetRecordBatchReaderBuilder::try_new(data).map_err(|error| said(&error))?;
        self.same_columns(reader.schema().fields().iter().map(|field| field.name().as_str()))?;
        let places = self.schema.fields().iter();
        let places = places.filter_map(|field| self.place(field.name()));
        let mask = ProjectionMask::roots(reader.parquet_schema(), places);
        let reader = reader.with_batch_size(BATCH_ROWS).with_projection(mask);
        for batch in reader.build().map_err(|error| said(&error))? {
            let batch = batch.map_err(|error| said(&error))?;
            let column = |field: &Field| match batch.column_by_name(field.name()) {
                Some(column) => cast(column, field.data_type()).map(Parsed::whole).map_err(|error| {
                    format!(
                        "column {} can't be read as {}: {error}",
                        field.name(),
                        field.data_type()
                    )
                }),
                None => self.outside(field, partition, batch.num_rows()),
            };
            if !take(self.rows(batch.num_rows(), column)?) {
                break;
            }
        }
        Ok(())
    }

    fn texts(
        &self,
        path: &str,
        data: Bytes,
        partition: &BTreeMap<String, Option<String>>,
        take: &mut dyn FnMut(Rows) -> bool,
    ) -> Result<(), String> {
        let mut texts = Texts::open(self.format, path, data, &self.names())?;
        loop {
            let (columns, rows, odd) = texts.next(BATCH_ROWS, BATCH_BYTES)?;
            if rows == 0 && odd.is_empty() {
                return Ok(());
            }
            let column = |field: &Field| match self.place(field.name()) {
                Some(place) => self
                    .of_texts(&columns[place], place, field)
                    .map_err(|error| format!("column {} can't be read: {error}", field.name())),
                None => self.outside(field, partition, rows),
            };
            let mut rows = self.rows(rows, column)?;
            rows.unreadable += odd.len() as u64;
            rows.first = odd.into_iter().next().or(rows.first);
            if !take(rows) {
                return Ok(());
            }
        }
    }

    /// The values of texts. As what they were written first: a date is none of the texts of a moment.
    fn of_texts(&self, texts: &StringArray, place: usize, field: &Field) -> Result<Parsed, ArrowError> {
        let written = &self.in_file[place].type_name;
        let written = (*written != haulage_plan::types::name(field.data_type()))
            .then(|| type_of(written))
            .flatten();
        let Some(written) = written else {
            return parsed(texts, field.data_type());
        };
        let values = parsed(texts, &written)?;
        Ok(Parsed {
            array: cast(&values.array, field.data_type())?,
            unfit: values.unfit,
        })
    }

    /// A batch of these columns, without the rows of which a value can't be read.
    fn rows(&self, rows: usize, column: impl Fn(&Field) -> Result<Parsed, String>) -> Result<Rows, String> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let mut good = vec![true; rows];
        let mut first: Option<(usize, String)> = None;
        for field in self.schema.fields() {
            let parsed = column(field)?;
            for (row, text) in parsed.unfit {
                good[row] = false;
                if first.as_ref().is_none_or(|(before, _)| row < *before) {
                    let text: String = text.chars().take(60).collect();
                    first = Some((
                        row,
                        format!("column {}: `{text}` is no {}", field.name(), field.data_type()),
                    ));
                }
            }
            arrays.push(parsed.array);
        }
        let failed = |error: ArrowError| error.to_string();
        let batch = RecordBatch::try_new(self.schema.clone(), arrays).map_err(failed)?;
        let unreadable = good.iter().filter(|good| !**good).count() as u64;
        let batch = match unreadable {
            0 => batch,
            _ => filter_record_batch(&batch, &good.into()).map_err(failed)?,
        };
        Ok(Rows {
            batch,
            unreadable,
            first: first.map(|(_, why)| why),
        })
    }

    fn same_columns<'c>(&self, found: impl Iterator<Item = &'c str>) -> Result<(), String> {
        let found: Vec<&str> = found.collect();
        let names = self.names();
        if names.iter().map(String::as_str).eq(found.iter().copied()) {
            return Ok(());
        }
        Err(format!(
            "its columns are {}, and {} were written",
            found.join(", "),
            names.join(", ")
        ))
    }
}

/// A partition column, from the path.
fn of_path(field: &Field, partition: &BTreeMap<String, Option<String>>, rows: usize) -> Result<Parsed, String> {
    let Some(value) = partition.get(field.name()) else {
        return Err(format!("its path has no value of column {}", field.name()));
    };
    let texts = StringArray::from(vec![value.as_deref(); rows]);
    let parsed = parsed(&texts, field.data_type()).map_err(|error| error.to_string())?;
    match (parsed.unfit.first(), value) {
        (Some(_), Some(value)) => Err(format!(
            "its path has `{value}` as column {}, which is no {}",
            field.name(),
            field.data_type()
        )),
        _ => Ok(parsed),
    }
}

/// The type in which a version's column is stored; `None` if this release doesn't know it.
pub(super) fn type_of(name: &str) -> Option<DataType> {
    let named = haulage_plan::types::named(name).or_else(|| crate::receipt::type_of(name));
    named.as_ref().and_then(stored_type)
}

#[cfg(test)]
mod tests;
