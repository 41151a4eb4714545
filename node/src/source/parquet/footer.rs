//! The end of a file, where its columns and row groups stand.

use std::panic::catch_unwind;
use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use ::parquet::basic::Compression;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::Failure;

use super::fetch::whole;
use crate::source::object::Object;
use crate::source::{EXCERPT, excerpt};

/// The end of a file that is fetched at once: mostly it holds all of the footer.
const USUAL: u64 = 64 << 10;
/// A footer larger than this is refused: memory has a bound.
const LARGEST: u64 = 32 << 20;
/// The length of the footer and the magic bytes, at the very end.
const END: u64 = 8;
const MAGIC: &[u8] = b"PAR1";

/// What a file says of itself.
#[derive(Clone)]
pub(super) struct Footer {
    /// Row groups and columns.
    pub(super) metadata: Arc<ParquetMetaData>,
    /// The columns as Arrow has them.
    pub(super) schema: SchemaRef,
}

/// What the bytes of a footer say. Its crates panic at some damage: they ask for more than the format promises, for
/// instance of the Arrow schema that many writers put into the footer beside Parquet's own.
fn decoded(footer: &[u8]) -> Result<Footer, String> {
    let decode = || {
        let metadata = Arc::new(ParquetMetaDataReader::decode_metadata(footer)?);
        let arrow = ArrowReaderMetadata::try_new(Arc::clone(&metadata), ArrowReaderOptions::new())?;
        Ok(Footer {
            metadata,
            schema: Arc::clone(arrow.schema()),
        })
    };
    match catch_unwind(decode) {
        Ok(read) => read.map_err(|error: ParquetError| error.to_string()),
        Err(_) => Err("what it says makes no sense".to_owned()),
    }
}

impl Footer {
    /// Permanent failure naming the file if it is no Parquet file, or damaged.
    pub(super) async fn read(object: &Object) -> Result<Self, Failure> {
        let address = &object.address;
        let wrong = |what: &str| Failure::permanent(format!("{address} {what}"));
        if object.size < END + MAGIC.len() as u64 {
            return Err(wrong(if object.size == 0 {
                "is empty: a Parquet file without rows has a footer still; remove the file, or write it again"
            } else {
                "is no Parquet file: it is too short for one; replace the file"
            }));
        }
        let tail = whole(object, object.size.saturating_sub(USUAL)..object.size).await?;
        let (_, end) = tail.split_at(tail.len() - END as usize);
        let (length, magic) = end.split_at(4);
        if magic == b"PARE" {
            return Err(wrong("is encrypted, which can't be read; write it without encryption"));
        }
        if magic != MAGIC {
            let start = whole(object, 0..MAGIC.len() as u64).await?;
            return Err(wrong(if start == MAGIC {
                "is cut off: it starts as Parquet files do, and doesn't end so; replace the file"
            } else {
                "is no Parquet file: it neither starts nor ends as one; replace the file, or declare the source as what \
                 the file is"
            }));
        }
        let length = length.try_into().map(u32::from_le_bytes).unwrap_or_default();
        let length = u64::from(length);
        if length > LARGEST || length + END > object.size {
            return Err(wrong(&format!(
                "is damaged, or too large to be read: its footer has {length} bytes of {}, and at most {} MiB are read",
                object.size,
                LARGEST >> 20
            )));
        }
        let from = object.size - END - length;
        let footer = if length + END <= tail.len() as u64 {
            tail.slice(tail.len() - (length + END) as usize..tail.len() - END as usize)
        } else {
            whole(object, from..object.size - END).await?
        };
        let damaged = |error: &dyn std::fmt::Display| wrong(&format!("is damaged: its footer can't be read: {error}"));
        let footer = decoded(&footer).map_err(|why| damaged(&why))?;
        footer.sound(object).map_err(|what| damaged(&what))?;
        Ok(footer)
    }

    /// What the footer says has to lie within the file, and to add up.
    fn sound(&self, object: &Object) -> Result<(), String> {
        let mut rows = 0i64;
        for (number, group) in self.metadata.row_groups().iter().enumerate() {
            rows = rows
                .checked_add(group.num_rows())
                .filter(|_| group.num_rows() >= 0)
                .ok_or_else(|| format!("row group {number} has {} rows", group.num_rows()))?;
            for column in group.columns() {
                let start = column
                    .dictionary_page_offset()
                    .unwrap_or(column.data_page_offset())
                    .min(column.data_page_offset());
                let end = start.checked_add(column.compressed_size());
                let within =
                    start >= 0 && column.compressed_size() >= 0 && end.is_some_and(|end| end as u64 <= object.size);
                if !within {
                    return Err(format!(
                        "column {} of row group {number} lies outside of the file",
                        column.column_path()
                    ));
                }
            }
        }
        let all = self.metadata.file_metadata().num_rows();
        if rows != all {
            return Err(format!("its row groups have {rows} rows, and the file {all}"));
        }
        Ok(())
    }

    /// Permanent failure if one of the columns that are read is packed in a way that this build can't unpack.
    pub(super) fn unpackable(&self, mask: &ProjectionMask, address: &str) -> Result<(), Failure> {
        for group in self.metadata.row_groups() {
            for (leaf, column) in group.columns().iter().enumerate() {
                let known = match column.compression() {
                    Compression::UNCOMPRESSED
                    | Compression::SNAPPY
                    | Compression::GZIP(_)
                    | Compression::LZ4
                    | Compression::LZ4_RAW
                    | Compression::ZSTD(_) => true,
                    Compression::BROTLI(_) | Compression::LZO => false,
                };
                if mask.leaf_included(leaf) && !known {
                    return Err(Failure::permanent(format!(
                        "{address}: column \"{}\" is packed with {}, which can't be read; write it with zstd, snappy, gzip \
                         or lz4",
                        excerpt(column.column_path().string().as_bytes(), EXCERPT),
                        column.compression()
                    )));
                }
            }
        }
        Ok(())
    }

    /// The rows of each row group.
    pub(super) fn rows(&self) -> impl Iterator<Item = u64> {
        self.metadata
            .row_groups()
            .iter()
            .map(|group| group.num_rows().unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use ::parquet::arrow::ArrowWriter;
    use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};

    use super::*;

    #[test]
    fn no_byte_of_a_footer_is_a_panic_that_gets_out() {
        let columns = [
            ("n", Arc::new(Int32Array::from(vec![1])) as ArrayRef),
            ("t", Arc::new(StringArray::from(vec!["a"]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut data = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut data, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let length = u32::from_le_bytes(data[data.len() - 8..][..4].try_into().unwrap()) as usize;
        let footer = &data[data.len() - 8 - length..data.len() - 8];
        assert!(decoded(footer).is_ok());
        let mut senseless = 0;
        for place in 0..footer.len() {
            // Letters, because the Arrow schema stands there as text.
            for byte in *b"\0\x7f\xffAQgw/" {
                let mut damaged = footer.to_vec();
                damaged[place] = byte;
                senseless += usize::from(decoded(&damaged).is_err_and(|why| why.ends_with("makes no sense")));
            }
        }
        assert!(senseless > 0, "its crates have learned to return errors");
    }
}
