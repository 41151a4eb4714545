//! The table that files make up, and whether a load's rows fit it.
//!
//! An append has the format and the partitions that are there, and their columns as far as it doesn't say otherwise. A
//! replace brings its own: a table of files is what its newest version says.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::definition::{FileCompression, FileFormat, Mode};
use haulage_plan::types;

use super::Files;
use super::encode::Encoding;
use super::evolve;
use super::place::TablePlace;
use super::rows::stored_type;
use super::state::{Head, Shape};
use crate::sink::{ColumnChange, Identity, Inspection, LoadContext};

/// What becomes of the table's columns; or why the load can't go into it, a line each.
pub(super) fn fit(load: &LoadContext, head: Option<&Head>) -> Result<Vec<ColumnChange>, Vec<String>> {
    let mut misfits = Vec::new();
    let mut changes = Vec::new();
    match load.mode {
        Mode::Merge => misfits.push(
            "files can't be merged into, a row of them is not found by its key; use mode append or replace, or load into a \
             database"
                .to_owned(),
        ),
        Mode::Append if !load.key.is_empty() => misfits.push(
            "files have no index that keeps a key unique over several appends; leave `key` out (a `unique` check looks at the \
             run's rows), or use mode replace"
                .to_owned(),
        ),
        Mode::Append | Mode::Replace => {}
    }
    if load.schema.fields().is_empty() {
        misfits.push(format!("load {} has no columns", load.load));
    }
    for key in &load.key {
        if load.schema.field_with_name(key).is_err() {
            misfits.push(format!(
                "key column {key} is not among the load's columns; add it to its step, or correct `key`"
            ));
        }
    }
    for field in load.schema.fields() {
        if stored_type(field.data_type()).is_none() {
            misfits.push(format!(
                "column {}: files have no place for {}; CAST it in the step's SQL",
                field.name(),
                types::name(field.data_type())
            ));
        }
    }
    for column in &load.layout.partition_by {
        match load.schema.field_with_name(column) {
            Err(_) => misfits.push(format!(
                "partition column {column} is not among the load's columns; add it to its step, or correct `partition_by`"
            )),
            Ok(field) if !names_folders(field.data_type()) => misfits.push(format!(
                "partition column {column} is {}, which makes no folder's name; CAST it to text or date in the step's SQL",
                types::name(field.data_type())
            )),
            Ok(_) => {}
        }
    }
    if !load.schema.fields().is_empty() && load.layout.partition_by.len() >= load.schema.fields().len() {
        misfits.push("`partition_by` names all columns, which leaves none for the files; leave one out".to_owned());
    }
    if let (Mode::Append, Some(head)) = (load.mode, head) {
        changes = evolve::changes(load, head, &mut misfits);
        differences(load, &head.shape, &mut misfits);
    }
    if misfits.is_empty() { Ok(changes) } else { Err(misfits) }
}

fn names_folders(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            stored_type(data_type),
            Some(DataType::Utf8 | DataType::Boolean | DataType::Date32)
        )
}

/// In what files that are to be appended differ from those that are there; their columns are [`evolve`]'s.
fn differences(load: &LoadContext, there: &Shape, misfits: &mut Vec<String>) {
    let ours = Shape::of(load);
    let table = &load.table;
    if ours.format != there.format {
        misfits.push(format!(
            "{table} is of {} files, and the load's are {}; write `format: {}`",
            word(there.format),
            word(ours.format),
            word(there.format)
        ));
    }
    if ours.partition_by != there.partition_by {
        misfits.push(format!(
            "{table} is partitioned by [{}], and the load by [{}]; no append adds or changes partitions, so write the same \
             `partition_by`, or replace the table once",
            there.partition_by.join(", "),
            ours.partition_by.join(", ")
        ));
    }
}

fn word(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Parquet => "parquet",
        FileFormat::Csv => "csv",
        FileFormat::Jsonl => "jsonl",
    }
}

/// Permanent failure that lists what doesn't fit.
pub(super) fn misfit(load: &LoadContext, misfits: &[String]) -> Failure {
    Failure::permanent(format!(
        "load {} does not fit {}: {}",
        load.load,
        load.table,
        misfits.join("; ")
    ))
}

impl Files {
    pub(super) async fn look(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        let place = TablePlace::parse(&load.table)?;
        self.objects.check().await?;
        let table = self.table(&place).await?.value;
        let rows = table
            .head
            .as_ref()
            .map(|head| head.parts.iter().map(|part| part.rows).sum());
        let mut inspection = Inspection {
            identity: Identity::new(format!("files {} {}", self.objects.identity().await, place.folder)),
            exists: table.head.is_some(),
            rows,
            ddl: Vec::new(),
            changes: Vec::new(),
            columns: Vec::new(),
            misfits: Vec::new(),
        };
        match fit(load, table.head.as_ref()) {
            Ok(columns) => {
                inspection.changes.push(change(load, table.head.as_ref(), rows));
                inspection.columns = columns;
            }
            Err(misfits) => inspection.misfits = misfits,
        }
        Ok(inspection)
    }
}

fn change(load: &LoadContext, head: Option<&Head>, rows: Option<u64>) -> String {
    let table = &load.table;
    let there = counted(rows.unwrap_or_default(), "row");
    let files = described(load);
    match (head, load.mode) {
        (None, _) => format!("creates {table} with the run's rows, as {files}"),
        (Some(head), Mode::Replace) if head.shape != Shape::of(load) => {
            format!(
                "replaces the {there} of {table} in one version, with other columns, format or partitions than it has now: \
                 {files}"
            )
        }
        (Some(_), Mode::Replace) => format!("replaces the {there} of {table} in one version, by {files}"),
        (Some(_), Mode::Append | Mode::Merge) => format!("adds rows to the {there} of {table}, as {files}"),
    }
}

/// The files that the load writes: `csv files (gzip) in folders by day, region`.
fn described(load: &LoadContext) -> String {
    let encoding = Encoding::new(load.layout.format, load.layout.compression);
    let compression = match encoding.compression {
        FileCompression::None => "not compressed",
        FileCompression::Gzip => "gzip",
        FileCompression::Snappy => "snappy",
        FileCompression::Zstd => "zstd",
    };
    let folders = match load.layout.partition_by.as_slice() {
        [] => String::new(),
        by => format!(" in folders by {}", by.join(", ")),
    };
    format!("{} files ({compression}){folders}", word(encoding.format))
}
