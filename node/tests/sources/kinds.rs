//! The kinds of sources: how each is declared, and how its files are written.

use std::io::Write as _;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Float32Array, ListArray, RecordBatch, StringArray, TimestampSecondArray, UInt32Array,
};
use datafusion::arrow::datatypes::{DataType, Int32Type, TimeUnit};
use haulage_plan::definition::{Column, Compression, CsvSource, JsonSource, ParquetSource, SourceKind};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// A row that every kind can hold. Without an `id`, which is required, it can't be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) id: Option<i64>,
    pub(crate) word: Option<String>,
    pub(crate) amount: f64,
    /// Seconds since 1970.
    pub(crate) at: i64,
}

/// A kind of source, for the suite.
pub(crate) struct Kind {
    /// The ending of its files.
    pub(crate) ending: &'static str,
    /// Declares such files at a path, with these columns, cut into chunks of about so many bytes.
    pub(crate) declare: fn(String, Vec<Column>, u64) -> SourceKind,
    /// A file with these rows.
    pub(crate) file: fn(&[Record]) -> Vec<u8>,
    /// Whether one file makes several chunks.
    pub(crate) splits: bool,
    /// Data that is no such file, and what is said about it.
    pub(crate) foreign: (&'static [u8], &'static str),
    /// What is said about a file of 0 bytes; nothing if it has no rows.
    pub(crate) empty: Option<&'static str>,
    /// What is said about a file of which the end is missing; nothing if that can't be seen.
    pub(crate) cut_off: Option<&'static str>,
}

/// The columns of the records.
pub(crate) fn columns() -> Vec<Column> {
    let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    [
        ("id", DataType::Int64),
        ("word", DataType::Utf8),
        ("amount", DataType::Float64),
        ("at", zoned),
    ]
    .map(|(name, data_type)| Column {
        name: name.to_owned(),
        data_type,
        required: name == "id",
    })
    .into()
}

const GZIP_DATA: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x4b\x04\0";
const TEXT: &[u8] = b"Dear reader,\nthis is a letter.\n";

pub(crate) const CSV: Kind = Kind {
    ending: "csv",
    declare: csv,
    file: csv_text,
    splits: true,
    foreign: (GZIP_DATA, "is gzip data without saying so"),
    empty: Some("is empty: expected a header"),
    cut_off: None,
};

pub(crate) const CSV_GZIP: Kind = Kind {
    ending: "csv.gz",
    file: |records| gzip(&csv_text(records)),
    splits: false,
    foreign: (TEXT, "is no gzip data"),
    empty: Some("is cut off"),
    cut_off: Some("is cut off"),
    ..CSV
};

pub(crate) const JSON: Kind = Kind {
    ending: "jsonl",
    declare: json,
    file: json_text,
    splits: true,
    foreign: (TEXT, "is no JSON lines"),
    empty: None,
    cut_off: None,
};

pub(crate) const JSON_GZIP: Kind = Kind {
    ending: "jsonl.gz",
    file: |records| gzip(&json_text(records)),
    splits: false,
    foreign: (TEXT, "is no gzip data"),
    empty: Some("is cut off"),
    cut_off: Some("is cut off"),
    ..JSON
};

pub(crate) const JSON_ZSTD: Kind = Kind {
    ending: "jsonl.zst",
    file: |records| zstd::encode_all(&json_text(records)[..], 1).unwrap(),
    foreign: (TEXT, "is no zstd data"),
    ..JSON_GZIP
};

pub(crate) const PARQUET: Kind = Kind {
    ending: "parquet",
    declare: parquet,
    file: parquet_file,
    splits: true,
    foreign: (TEXT, "is no Parquet file"),
    empty: Some("is empty"),
    cut_off: Some("is cut off"),
};

fn csv(path: String, columns: Vec<Column>, chunk_bytes: u64) -> SourceKind {
    SourceKind::Csv(CsvSource {
        path,
        columns,
        null: Vec::new(),
        delimiter: b',',
        quote: b'"',
        header: true,
        compression: Compression::Auto,
        chunk_bytes,
        quoted_newlines: true,
    })
}

fn csv_text(records: &[Record]) -> Vec<u8> {
    let mut text = b"amount,id,word,at\n".to_vec();
    for Record { id, word, amount, at } in records {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let word = word.as_ref().map(|word| format!("\"{word}\"")).unwrap_or_default();
        writeln!(text, "{amount},{id},{word},{}", moment(*at)).unwrap();
    }
    text
}

fn json(path: String, columns: Vec<Column>, chunk_bytes: u64) -> SourceKind {
    SourceKind::Json(JsonSource {
        path,
        paths: Default::default(),
        columns,
        compression: Compression::Auto,
        chunk_bytes,
    })
}

fn json_text(records: &[Record]) -> Vec<u8> {
    let mut text = Vec::new();
    for Record { id, word, amount, at } in records {
        let object = serde_json::json!({"id": id, "word": word, "amount": amount, "at": moment(*at), "more": [1]});
        writeln!(text, "{object}").unwrap();
    }
    text
}

fn parquet(path: String, columns: Vec<Column>, chunk_bytes: u64) -> SourceKind {
    SourceKind::Parquet(ParquetSource {
        path,
        columns,
        chunk_bytes,
    })
}

/// In another order of columns, with one more, and with types that have to be cast.
fn parquet_file(records: &[Record]) -> Vec<u8> {
    let list = |item: i32| Some(vec![Some(item)]);
    let more = ListArray::from_iter_primitive::<Int32Type, _, _>((0..).take(records.len()).map(list));
    let columns: [(&str, ArrayRef); 5] = [
        (
            "at",
            Arc::new(TimestampSecondArray::from_iter_values(
                records.iter().map(|record| record.at),
            )),
        ),
        ("more", Arc::new(more)),
        (
            "word",
            Arc::new(
                records
                    .iter()
                    .map(|record| record.word.as_deref())
                    .collect::<StringArray>(),
            ),
        ),
        (
            "amount",
            Arc::new(Float32Array::from_iter_values(
                records.iter().map(|record| record.amount as f32),
            )),
        ),
        (
            "id",
            Arc::new(
                records
                    .iter()
                    .map(|record| record.id.map(|id| id as u32))
                    .collect::<UInt32Array>(),
            ),
        ),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(512))
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(50)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file
}

fn moment(at: i64) -> String {
    chrono::DateTime::from_timestamp(at, 0).unwrap().to_rfc3339()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(data).unwrap();
    packer.finish().unwrap()
}
