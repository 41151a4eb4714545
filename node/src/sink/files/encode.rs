//! A partition's rows as the bytes of a file.
//!
//! CSV is written here rather than by a library because no value and an empty text have to stay two things, as Haulage's
//! own CSV source reads them: nothing, and `""`. JSON has no number for NaN and the infinities, so they are texts there, with
//! the names that JavaScript has for them: left to the library, they would be no value.
//!
//! What is written here is read back by `decode`, value by value: the two change together.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, Float32Array, Float64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{LineDelimited, NullableEncoder};
use datafusion::arrow::json::{Encoder, EncoderFactory, EncoderOptions, WriterBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use haulage_plan::definition::{FileCompression, FileFormat};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use twox_hash::XxHash64;

/// Files' format and compression, with what isn't said filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) format: FileFormat,
    pub(super) compression: FileCompression,
}

/// The encoding of rows while they are staged.
pub(super) const TWIN: Encoding = Encoding {
    format: FileFormat::Parquet,
    compression: FileCompression::Zstd,
};

/// A digest of a file's bytes, in hex. Never changes for files that are there.
pub(super) fn digest(data: &[u8]) -> String {
    format!("{:016x}", XxHash64::oneshot(0, data))
}

/// Why rows could not be encoded. The bytes go to memory, so it is never a disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Compression(#[from] std::io::Error),
}

impl Encoding {
    pub(super) fn new(format: Option<FileFormat>, compression: Option<FileCompression>) -> Self {
        let format = format.unwrap_or_default();
        let usual = match format {
            FileFormat::Parquet => FileCompression::Zstd,
            FileFormat::Csv | FileFormat::Jsonl => FileCompression::None,
        };
        Self {
            format,
            compression: compression.unwrap_or(usual),
        }
    }

    /// How a file's name ends.
    pub(super) fn ending(self) -> &'static str {
        match (self.format, self.compression) {
            (FileFormat::Parquet, _) => "parquet",
            (FileFormat::Csv, FileCompression::Gzip) => "csv.gz",
            (FileFormat::Csv, FileCompression::Zstd) => "csv.zst",
            (FileFormat::Csv, FileCompression::None | FileCompression::Snappy) => "csv",
            (FileFormat::Jsonl, FileCompression::Gzip) => "jsonl.gz",
            (FileFormat::Jsonl, FileCompression::Zstd) => "jsonl.zst",
            (FileFormat::Jsonl, FileCompression::None | FileCompression::Snappy) => "jsonl",
        }
    }

    /// The whole file.
    pub(super) fn encode(self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, Error> {
        match self.format {
            FileFormat::Parquet => self.parquet(schema, batches),
            FileFormat::Csv => self.compressed(csv(schema, batches)?),
            FileFormat::Jsonl => self.compressed(jsonl(batches)?),
        }
    }

    fn parquet(self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, Error> {
        let compression = match self.compression {
            FileCompression::None => Compression::UNCOMPRESSED,
            FileCompression::Gzip => Compression::GZIP(GzipLevel::default()),
            FileCompression::Snappy => Compression::SNAPPY,
            FileCompression::Zstd => Compression::ZSTD(ZstdLevel::default()),
        };
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
        for batch in batches {
            writer.write(batch)?;
        }
        Ok(writer.into_inner()?)
    }

    fn compressed(self, plain: Vec<u8>) -> Result<Vec<u8>, Error> {
        Ok(match self.compression {
            FileCompression::None | FileCompression::Snappy => plain,
            FileCompression::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                writer.write_all(&plain)?;
                writer.finish()?
            }
            FileCompression::Zstd => zstd::encode_all(plain.as_slice(), 0)?,
        })
    }
}

fn csv(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for (n, field) in schema.fields().iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        field_of(&mut out, field.name(), false);
    }
    out.push(b'\n');
    let options = FormatOptions::new();
    for batch in batches {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            columns.push((column, ArrayFormatter::try_new(column, &options)?));
        }
        for row in 0..batch.num_rows() {
            for (n, (column, formatter)) in columns.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                if column.is_valid(row) {
                    let text = formatter.value(row).try_to_string()?;
                    let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::Binary);
                    field_of(&mut out, &text, is_text);
                } else if columns.len() == 1 {
                    // A line of nothing is no record to many readers. Haulage reads it as an empty text.
                    out.extend_from_slice(b"\"\"");
                }
            }
            out.push(b'\n');
        }
    }
    Ok(out)
}

fn field_of(out: &mut Vec<u8>, text: &str, is_text: bool) {
    let odd = text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    let spaced = text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace);
    if odd || spaced || is_text && text.is_empty() {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

fn jsonl(batches: &[RecordBatch]) -> Result<Vec<u8>, Error> {
    let builder = WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(Floats));
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    Ok(writer.into_inner())
}

/// Floating point in JSON, with names for what isn't a number there.
#[derive(Debug)]
struct Floats;

impl EncoderFactory for Floats {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Float64 => Box::new(Wide(array.as_primitive())),
            DataType::Float32 => Box::new(Narrow(array.as_primitive())),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Wide<'a>(&'a Float64Array);
struct Narrow<'a>(&'a Float32Array);

impl Encoder for Wide<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0.value(row);
        named(value, &value, out);
    }
}

impl Encoder for Narrow<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0.value(row);
        named(value.into(), &value, out);
    }
}

/// `value` is shown by the fewest digits that lead back to it, which are others for a narrow one than for a wide one.
fn named(value: f64, shown: &dyn std::fmt::Debug, out: &mut Vec<u8>) {
    let name = match value {
        value if value.is_nan() => "\"NaN\"",
        f64::INFINITY => "\"Infinity\"",
        f64::NEG_INFINITY => "\"-Infinity\"",
        // Memory takes all of it.
        _ => return drop(write!(out, "{shown:?}")),
    };
    out.extend_from_slice(name.as_bytes());
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{BinaryArray, Decimal128Array, StringArray, TimestampMicrosecondArray};
    use datafusion::arrow::datatypes::{Field, Schema};

    use super::*;

    fn batch() -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            (
                "t",
                Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), Some(""), None])) as _,
                true,
            ),
            (
                "f",
                Arc::new(Float64Array::from(vec![Some(0.1), Some(1e300), None])) as _,
                true,
            ),
            (
                "d",
                Arc::new(
                    Decimal128Array::from(vec![Some(-12_345), Some(10), None])
                        .with_precision_and_scale(7, 2)
                        .unwrap(),
                ) as _,
                true,
            ),
            (
                "m",
                Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), Some(0), None]).with_timezone("UTC")) as _,
                true,
            ),
            (
                "b",
                Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None])) as _,
                true,
            ),
        ])
        .unwrap()
    }

    #[test]
    fn csv_tells_no_value_from_an_empty_text() {
        let batch = batch();
        let encoding = Encoding::new(Some(FileFormat::Csv), None);
        let bytes = encoding.encode(&batch.schema(), &[batch]).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "t,f,d,m,b\n\"a,\"\"b\"\"\nc\",0.1,-123.45,1969-12-31T23:59:59.999999Z,00ff\n\"\",1e300,0.10,1970-01-01T00:00:00Z,\"\"\n,,,,\n"
        );
        let one = RecordBatch::try_from_iter([("t", Arc::new(StringArray::from(vec![None, Some("x")])) as _)]).unwrap();
        assert_eq!(
            encoding.encode(&one.schema(), std::slice::from_ref(&one)).unwrap(),
            b"t\n\"\"\nx\n"
        );
        assert_eq!(
            Arc::new(Schema::new(vec![Field::new("t", DataType::Utf8, true)])),
            one.schema()
        );
    }

    #[test]
    fn json_lines_name_every_column() {
        let batch = batch();
        let bytes = Encoding::new(Some(FileFormat::Jsonl), None)
            .encode(&batch.schema(), &[batch])
            .unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["t"], "a,\"b\"\nc");
        assert_eq!(lines[0]["m"], "1969-12-31T23:59:59.999999Z");
        assert_eq!(lines[1]["f"], 1e300);
        assert_eq!(
            lines[2],
            serde_json::json!({"t": null, "f": null, "d": null, "m": null, "b": null})
        );
    }

    #[test]
    fn each_compression_is_what_its_name_says() {
        let batch = batch();
        let plain = csv(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
        for (compression, ending) in [
            (FileCompression::None, "csv"),
            (FileCompression::Gzip, "csv.gz"),
            (FileCompression::Zstd, "csv.zst"),
        ] {
            let encoding = Encoding::new(Some(FileFormat::Csv), Some(compression));
            assert_eq!(encoding.ending(), ending);
            let bytes = encoding.encode(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
            let mut back = Vec::new();
            match compression {
                FileCompression::Gzip => {
                    std::io::copy(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut back).unwrap();
                }
                FileCompression::Zstd => back = zstd::decode_all(bytes.as_slice()).unwrap(),
                FileCompression::None | FileCompression::Snappy => back = bytes,
            }
            assert_eq!(back, plain);
        }
        for compression in [
            FileCompression::None,
            FileCompression::Gzip,
            FileCompression::Snappy,
            FileCompression::Zstd,
        ] {
            let encoding = Encoding::new(None, Some(compression));
            let bytes = encoding.encode(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes));
            let back: Vec<RecordBatch> = reader.unwrap().build().unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(back, std::slice::from_ref(&batch));
        }
    }
}
