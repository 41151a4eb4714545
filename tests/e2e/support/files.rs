//! Files of a lake, read by what shares nothing with Haulage's writers.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use datafusion::arrow::array::{Array, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv::ReaderBuilder;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

/// The text of a folder's name, as Hive writes it.
pub(crate) fn unescaped(text: &str) -> String {
    if text == "__HIVE_DEFAULT_PARTITION__" {
        return "~".to_owned();
    }
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(&after[..2], 16).expect("hex digits"));
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).expect("UTF-8")
}

/// A row by its columns' names, as texts; no value is `~`.
pub(crate) type Found = BTreeMap<String, String>;

fn of_batch(batch: &RecordBatch) -> Result<Vec<Found>> {
    let mut rows = vec![Found::new(); batch.num_rows()];
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let texts = cast(column, &DataType::Utf8)?;
        let texts = texts.as_any().downcast_ref::<StringArray>().context("text")?;
        for (row, found) in rows.iter_mut().enumerate() {
            let text = if texts.is_null(row) { "~" } else { texts.value(row) };
            let text = match (field.name().as_str(), text.parse::<f64>()) {
                ("amount", Ok(amount)) => format!("{amount}"),
                _ => text.to_owned(),
            };
            found.insert(field.name().clone(), text);
        }
    }
    Ok(rows)
}

fn of_parquet(path: &Path) -> Result<Vec<Found>> {
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path)?)?.build()? {
        rows.extend(of_batch(&batch?)?);
    }
    Ok(rows)
}

fn of_csv(data: Vec<u8>) -> Result<Vec<Found>> {
    let header = String::from_utf8_lossy(&data)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let fields: Vec<Field> = header
        .split(',')
        .map(|name| Field::new(name, DataType::Utf8, true))
        .collect();
    let reader = ReaderBuilder::new(std::sync::Arc::new(Schema::new(fields))).with_header(true);
    let mut rows = Vec::new();
    for batch in reader.build(Cursor::new(data))? {
        rows.extend(of_batch(&batch?)?);
    }
    Ok(rows)
}

fn of_jsonl(data: &[u8]) -> Result<Vec<Found>> {
    let text = std::str::from_utf8(data)?;
    let mut rows = Vec::new();
    for line in text.lines() {
        let object: BTreeMap<String, Value> = serde_json::from_str(line)?;
        let text = |value: Value| match value {
            Value::Null => "~".to_owned(),
            Value::String(text) => text,
            Value::Number(number) => number.as_f64().map_or(number.to_string(), |number| format!("{number}")),
            other => other.to_string(),
        };
        rows.push(object.into_iter().map(|(name, value)| (name, text(value))).collect());
    }
    Ok(rows)
}

/// The rows of a file, by the ending of its name.
pub(crate) fn of_file(path: &Path) -> Result<Vec<Found>> {
    match path.extension().and_then(OsStr::to_str) {
        Some("parquet") => of_parquet(path),
        Some("csv") => of_csv(std::fs::read(path)?),
        Some("jsonl") => of_jsonl(&std::fs::read(path)?),
        Some("gz") => of_jsonl(&Command::new("gzip").arg("-dc").arg(path).output()?.stdout),
        other => anyhow::bail!("{} ends in {other:?}", path.display()),
    }
}
