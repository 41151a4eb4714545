//! Rows as files have them: the types that every reader knows, and rows divided by the values of columns.
//!
//! Partitions are written as Hive does: `day=2024-01-01/region=north`. Whatever a path may not have is `%`-escaped, no value
//! is `__HIVE_DEFAULT_PARTITION__`, and the columns are left out of the files.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{cast, interleave_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::error::ArrowError;
use indexmap::IndexMap;

use crate::source::folders::NO_VALUE;

/// A folder's name has at most 255 bytes.
const MAX_NAME: usize = 255;

/// The type in which a column is stored: one of those that the readers of files share.
pub(super) fn stored_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        // Parquet has no seconds.
        DataType::Timestamp(TimeUnit::Second, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone.clone()),
        DataType::Time32(TimeUnit::Second) => DataType::Time32(TimeUnit::Millisecond),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Dictionary(_, values) => return stored_type(values),
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(_, _)
        | DataType::Decimal128(_, _) => data_type.clone(),
        _ => return None,
    })
}

/// The columns as they are stored; those of a type that isn't stay what they are, and are refused elsewhere.
pub(super) fn stored(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| {
        let data_type = stored_type(field.data_type()).unwrap_or_else(|| field.data_type().clone());
        Field::new(field.name(), data_type, true)
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// A batch with its columns as they are stored.
pub(super) fn to_stored(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns: Result<Vec<ArrayRef>, ArrowError> = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| cast(column, field.data_type()))
        .collect();
    RecordBatch::try_new(schema.clone(), columns?)
}

/// Columns by whose values rows are divided.
pub(super) struct Division {
    /// Their places among the columns.
    columns: Vec<usize>,
    names: Vec<String>,
}

/// A value that can't name a folder: row, column, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) row: usize,
    pub(super) column: String,
    pub(super) why: String,
}

/// The values of one partition, in the order of the columns.
pub(super) type Partition = Vec<Option<String>>;

/// A row of several batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    batch: u32,
    row: u32,
}

/// These rows of several batches, as one.
pub(super) fn gathered(batches: &[RecordBatch], rows: &[At]) -> Result<RecordBatch, ArrowError> {
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    let rows: Vec<(usize, usize)> = rows.iter().map(|at| (at.batch as usize, at.row as usize)).collect();
    interleave_record_batch(&batches, &rows)
}

impl Division {
    /// `names` are among the columns.
    pub(super) fn new(schema: &Schema, names: &[String]) -> Self {
        Self {
            columns: names.iter().filter_map(|name| schema.index_of(name).ok()).collect(),
            names: names.to_vec(),
        }
    }

    /// The columns that stay in the files.
    pub(super) fn rest(&self, schema: &Schema) -> Vec<usize> {
        (0..schema.fields().len())
            .filter(|place| !self.columns.contains(place))
            .collect()
    }

    /// Divides rows; partitions come in the order of their first rows. `Unfit` counts rows over all batches.
    pub(super) fn divide(&self, batches: &[RecordBatch]) -> Result<IndexMap<Partition, Vec<At>>, Error> {
        let mut parts: IndexMap<Partition, Vec<At>> = IndexMap::new();
        let mut before = 0;
        for (place, batch) in batches.iter().enumerate() {
            let mut texts: Vec<StringArray> = Vec::new();
            for column in &self.columns {
                let text = cast(batch.column(*column), &DataType::Utf8)?;
                texts.push(text.as_string::<i32>().clone());
            }
            for row in 0..batch.num_rows() {
                let value = |text: &StringArray| text.is_valid(row).then(|| text.value(row).to_owned());
                let partition: Partition = texts.iter().map(value).collect();
                let at = At {
                    batch: u32::try_from(place).unwrap_or(u32::MAX),
                    row: u32::try_from(row).unwrap_or(u32::MAX),
                };
                match parts.get_mut(&partition) {
                    Some(rows) => rows.push(at),
                    None => {
                        self.fits(&partition, before + row)?;
                        parts.insert(partition, vec![at]);
                    }
                }
            }
            before += batch.num_rows();
        }
        Ok(parts)
    }

    /// Whether a partition's values can name folders.
    fn fits(&self, partition: &[Option<String>], row: usize) -> Result<(), Error> {
        for (name, value) in self.names.iter().zip(partition) {
            if folder(name, value.as_deref()).len() > MAX_NAME {
                return Err(Error::Unfit(Unfit {
                    row,
                    column: name.clone(),
                    why: "it is too long for a folder's name; partition by another column, or reject such rows in the step"
                        .to_owned(),
                }));
            }
        }
        Ok(())
    }

    /// A partition's folders, with a slash at the end; empty where nothing is divided.
    pub(super) fn path(&self, partition: &[Option<String>]) -> String {
        let folders = self.names.iter().zip(partition);
        folders
            .map(|(name, value)| folder(name, value.as_deref()) + "/")
            .collect()
    }
}

/// Why rows could not be divided.
#[derive(Debug)]
pub(super) enum Error {
    Unfit(Unfit),
    Arrow(ArrowError),
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

fn folder(name: &str, value: Option<&str>) -> String {
    let value = match value {
        None => NO_VALUE.to_owned(),
        // A text that reads like no value.
        Some(NO_VALUE) => escaped(NO_VALUE).replacen('_', "%5F", 1),
        // To DuckDB such a folder has no value, unless a letter of it is escaped.
        Some(null) if null.eq_ignore_ascii_case("null") => format!("%{:02X}{}", null.as_bytes()[0], &null[1..]),
        Some(value) => escaped(value),
    };
    format!("{}={value}", escaped(name))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b' ' | b',' | b'+' | b'@') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A partition's value as a column of so many rows.
pub(super) fn constant(value: Option<&str>, data_type: &DataType, rows: usize) -> Result<ArrayRef, ArrowError> {
    let text = StringArray::from(vec![value; rows]);
    cast(&text, data_type)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Date32Array, Int64Array};
    use datafusion::arrow::compute::concat_batches;

    use super::*;
    use crate::source::folders::of_path;

    #[test]
    fn rows_are_divided_by_values_as_hive_writes_them() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("day", DataType::Date32, true),
            Field::new("n", DataType::Int64, true),
            Field::new("the region", DataType::Utf8, true),
        ]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(Date32Array::from(vec![Some(0), Some(1), Some(0), None])),
                Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
                Arc::new(StringArray::from(vec![
                    Some("a/b=ü"),
                    Some("a/b=ü"),
                    Some("a/b=ü"),
                    Some(NO_VALUE),
                ])),
            ],
        )
        .unwrap();
        let division = Division::new(&schema, &["day".to_owned(), "the region".to_owned()]);
        // In two batches: a partition has rows of both.
        let batches = [batch.slice(0, 1), batch.slice(1, 3)];
        let parts = division.divide(&batches).unwrap();
        let parts: Vec<(Partition, RecordBatch)> = parts
            .into_iter()
            .map(|(partition, rows)| (partition, gathered(&batches, &rows).unwrap()))
            .collect();
        let paths: Vec<String> = parts.iter().map(|(partition, _)| division.path(partition)).collect();
        assert_eq!(
            paths,
            [
                "day=1970-01-01/the region=a%2Fb%3D%C3%BC/",
                "day=1970-01-02/the region=a%2Fb%3D%C3%BC/",
                "day=__HIVE_DEFAULT_PARTITION__/the region=%5F_HIVE_DEFAULT_PARTITION__/",
            ]
        );
        for (path, (partition, _)) in paths.iter().zip(&parts) {
            let back = of_path(&format!("data/0a/{path}0.0-1.parquet"));
            assert_eq!((&back["day"], &back["the region"]), (&partition[0], &partition[1]));
        }
        assert_eq!(
            parts[0].1,
            concat_batches(&schema, [&batch.slice(0, 1), &batch.slice(2, 1)]).unwrap()
        );
        assert_eq!(division.rest(&schema), [1]);
        for (partition, rows) in &parts {
            let back = constant(partition[0].as_deref(), &DataType::Date32, rows.num_rows()).unwrap();
            assert_eq!(&back, rows.column(0), "a value comes back from its folder's name");
        }
        let long = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(Date32Array::from(vec![0])),
                Arc::new(Int64Array::from(vec![1])),
                Arc::new(StringArray::from(vec!["x".repeat(300)])),
            ],
        )
        .unwrap();
        assert!(
            matches!(division.divide(&[batch, long]), Err(Error::Unfit(Unfit { row: 4, column, .. })) if column == "the region")
        );
    }

    #[test]
    fn a_text_that_reads_like_no_value_is_escaped_and_comes_back() {
        for (text, name) in [
            ("NULL", "c=%4EULL"),
            ("null", "c=%6Eull"),
            ("nuLL", "c=%6EuLL"),
            ("nulls", "c=nulls"),
            (NO_VALUE, "c=%5F_HIVE_DEFAULT_PARTITION__"),
            ("", "c="),
        ] {
            assert_eq!(folder("c", Some(text)), name);
            assert_eq!(
                of_path(&format!("data/0a/{name}/f.parquet"))["c"].as_deref(),
                Some(text)
            );
        }
    }
}
