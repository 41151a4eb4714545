//! Questions about what is staged, for checks and keys: DataFusion reads the staged files one after the other. Its memory is
//! bounded, and what doesn't fit goes to a temporary folder.
//!
//! It can't write, whatever the question holds: nothing that isn't a query is planned, and there is nothing to write to.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::failure::Failure;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Files;
use super::place::TablePlace;
use super::rows::{constant, stored};
use super::state::{File, State, Table, ended};
use super::verify::sealed;
use crate::sink::question::{KEYS, Question, Value};
use crate::sink::{Expected, LoadContext};

/// What questions know the records as.
pub(crate) const RECORDS: &str = "_haulage_loads";

impl Files {
    pub(super) async fn ask_load(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let table = self.table(&place).await?.value;
        let Some(record) = table.record(load) else {
            return Err(ended(load, "not prepared"));
        };
        if matches!(record.state, State::Reverted | State::Discarded) {
            return Err(ended(load, record.state.word()));
        }
        let part = sealed(load, record, expected)?.clone();
        let files = self.files_of(load, &place, &part, expected).await?;
        match self.question(load, &place, &files, question).await? {
            Some(values) => Ok(values),
            None => Ok(vec![None]),
        }
    }

    /// The only row of a query, if it has one.
    pub(super) async fn question(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        files: &[File],
        question: &Question,
    ) -> Result<Option<Vec<Option<String>>>, Failure> {
        let mut batches = self.asked(load, place, files, question, None).await?;
        let mut row = None;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| said(load, &error))?;
            if batch.num_rows() == 0 {
                continue;
            }
            if batch.num_rows() > 1 || row.is_some() {
                return Err(Failure::permanent(
                    "its query gives several rows; it has to give one value",
                ));
            }
            row = Some(texts(&batch).map_err(|error| said(load, &error.into()))?);
        }
        Ok(row)
    }

    /// What a query gives. `number` is a column of `staged` with the number of each row, from 0, in the order of the files.
    pub(super) async fn asked(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        files: &[File],
        question: &Question,
        number: Option<&str>,
    ) -> Result<SendableRecordBatchStream, Failure> {
        let table = self.table(place).await?.value;
        let wrong = |error: DataFusionError| said(load, &error);
        // One after the other: what comes first stays first.
        let config = SessionConfig::new()
            .with_target_partitions(1)
            .with_information_schema(false);
        let context = SessionContext::new_with_config_rt(config, self.runtime.clone());
        let rows = stored(&load.schema);
        let mut fields: Vec<Field> = rows.fields().iter().map(|field| field.as_ref().clone()).collect();
        fields.extend(number.map(|name| Field::new(name, DataType::UInt64, false)));
        let schema = Arc::new(Schema::new(fields));
        let staged = Scan {
            files: self.clone(),
            place: place.clone(),
            load: load.clone(),
            rows,
            schema: schema.clone(),
            list: files.to_vec().into(),
        };
        let staged = StreamingTable::try_new(schema, vec![Arc::new(staged)]).map_err(wrong)?;
        context.register_table("staged", Arc::new(staged)).map_err(wrong)?;
        let records = records(load, &table).map_err(|error| wrong(error.into()))?;
        let records = MemTable::try_new(records.schema(), vec![vec![records]]).map_err(wrong)?;
        context.register_table(RECORDS, Arc::new(records)).map_err(wrong)?;
        let mut params = Vec::new();
        for value in &question.values {
            match value {
                Value::Param(name, value) => params.push((name.clone(), value.clone())),
                Value::Keys(keys) => {
                    let keys = RecordBatch::try_from_iter([("k", Arc::clone(keys))]);
                    let keys = keys.map_err(|error| wrong(error.into()))?;
                    let keys = MemTable::try_new(keys.schema(), vec![vec![keys]]).map_err(wrong)?;
                    context.register_table(KEYS, Arc::new(keys)).map_err(wrong)?;
                }
            }
        }
        let only_reads = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let mut answer = context
            .sql_with_options(&question.sql, only_reads)
            .await
            .map_err(wrong)?;
        if !params.is_empty() {
            answer = answer.with_param_values(params).map_err(wrong)?;
        }
        answer.execute_stream().await.map_err(wrong)
    }
}

fn texts(batch: &RecordBatch) -> Result<Vec<Option<String>>, datafusion::arrow::error::ArrowError> {
    let text = |column: &ArrayRef| {
        let column = cast(column, &DataType::Utf8)?;
        Ok(column.as_string::<i32>().iter().next().flatten().map(str::to_owned))
    };
    batch.columns().iter().map(text).collect()
}

/// The records of the table, as questions about earlier runs want them.
fn records(load: &LoadContext, table: &Table) -> Result<RecordBatch, datafusion::arrow::error::ArrowError> {
    let records = || table.records.iter();
    let texts = |values: Vec<Option<String>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let rows = records().map(|record| record.part.as_ref().map(|part| part.rows as i64));
    RecordBatch::try_from_iter_with_nullable([
        (
            "run",
            texts(records().map(|record| Some(record.run.clone())).collect()),
            true,
        ),
        (
            "load",
            texts(records().map(|record| Some(record.load.clone())).collect()),
            true,
        ),
        (
            "target",
            texts(records().map(|_| Some(load.table.clone())).collect()),
            true,
        ),
        (
            "state",
            texts(records().map(|record| Some(record.state.word().to_owned())).collect()),
            true,
        ),
        (
            "replaces",
            texts(records().map(|record| record.replaces.clone()).collect()),
            true,
        ),
        (
            "origin",
            texts(records().map(|record| record.origin.clone()).collect()),
            true,
        ),
        ("rows", Arc::new(rows.collect::<Int64Array>()) as ArrayRef, true),
        (
            "sequence",
            Arc::new(
                records()
                    .map(|record| Some(record.sequence as i64))
                    .collect::<Int64Array>(),
            ) as ArrayRef,
            true,
        ),
    ])
}

/// What DataFusion says, or what a file's read has failed with.
pub(super) fn said(load: &LoadContext, error: &DataFusionError) -> Failure {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref::<Failure>() {
            Some(failure) => failure.clone(),
            None => Failure::permanent(format!("load {}: {inner}", load.load)),
        },
        DataFusionError::ResourcesExhausted(_) => Failure::permanent(format!(
            "load {}: the question takes more memory than a node gives it; ask a simpler one",
            load.load
        )),
        DataFusionError::IoError(error) => Failure::transient(format!("load {}: {error}", load.load)),
        other => {
            // Its first line says it; the rest is for who works on DataFusion.
            let text = other.to_string();
            Failure::permanent(text.lines().next().unwrap_or_default().to_owned())
        }
    }
}

/// Staged files, read one after the other.
struct Scan {
    files: Files,
    place: TablePlace,
    load: LoadContext,
    /// The columns of the rows.
    rows: SchemaRef,
    /// The same, perhaps with each row's number behind them.
    schema: SchemaRef,
    list: Arc<[File]>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scan({} files)", self.list.len())
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (files, place, load, schema) = (
            self.files.clone(),
            self.place.clone(),
            self.load.clone(),
            self.rows.clone(),
        );
        let list = Arc::clone(&self.list);
        let numbered = (self.schema.fields().len() > self.rows.fields().len()).then(|| self.schema.clone());
        let mut first = 0;
        let batches = stream::iter(0..list.len())
            .then(move |n| {
                let (files, place, load, schema) = (files.clone(), place.clone(), load.clone(), schema.clone());
                let file = list[n].clone();
                async move {
                    let batches = files.read(&place, &load, &schema, &file).await;
                    batches.map_err(|failure| DataFusionError::External(Box::new(failure)))
                }
            })
            .map_ok(|batches| stream::iter(batches.into_iter().map(Ok)))
            .try_flatten()
            .map(move |batch: Result<RecordBatch, DataFusionError>| {
                let batch = batch?;
                let Some(schema) = &numbered else { return Ok(batch) };
                let numbers = UInt64Array::from_iter_values(first..first + batch.num_rows() as u64);
                first += batch.num_rows() as u64;
                let mut columns = batch.columns().to_vec();
                columns.push(Arc::new(numbers));
                Ok(RecordBatch::try_new(schema.clone(), columns)?)
            });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
    }
}

impl Files {
    /// The rows of a staged file, with all columns. A segment has few.
    pub(super) async fn read(
        &self,
        place: &TablePlace,
        load: &LoadContext,
        schema: &SchemaRef,
        file: &File,
    ) -> Result<Vec<RecordBatch>, Failure> {
        let (path, whole) = match &file.twin {
            Some(twin) => (&twin.path, true),
            None => (&file.path, false),
        };
        let key = place.key(path);
        let address = self.objects.address(&key);
        let Some((data, _)) = self.objects.get(&key).await? else {
            return Err(Failure::staging_lost(format!(
                "load {}: {address}, where its rows were staged, is gone",
                load.load
            )));
        };
        let (schema, file, by) = (schema.clone(), file.clone(), load.layout.partition_by.clone());
        let decoded = tokio::task::spawn_blocking(move || decode(data, &schema, &file, if whole { &[] } else { &by }));
        match decoded.await {
            Ok(Ok(batches)) => Ok(batches),
            Ok(Err(error)) => Err(Failure::staging_lost(format!(
                "load {}: {address}, where its rows were staged, is damaged: {error}",
                load.load
            ))),
            Err(_) => Err(Failure::transient("the node is stopping")),
        }
    }
}

fn decode(
    data: Bytes,
    schema: &SchemaRef,
    file: &File,
    partition_by: &[String],
) -> Result<Vec<RecordBatch>, parquet::errors::ParquetError> {
    let mut batches = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(data)?.build()? {
        let batch = batch?;
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            columns.push(column(&batch, field, file, partition_by)?);
        }
        batches.push(RecordBatch::try_new(schema.clone(), columns)?);
    }
    Ok(batches)
}

fn column(
    batch: &RecordBatch,
    field: &Field,
    file: &File,
    partition_by: &[String],
) -> Result<ArrayRef, datafusion::arrow::error::ArrowError> {
    if let Some(place) = partition_by.iter().position(|name| name == field.name()) {
        let value = file.partition.get(place).and_then(Option::as_deref);
        return constant(value, field.data_type(), batch.num_rows());
    }
    let place = Schema::index_of(&batch.schema(), field.name())?;
    cast(batch.column(place), field.data_type())
}
