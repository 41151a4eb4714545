//! The end of a file, where its columns and row groups stand.

use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use ::parquet::basic::Compression;
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
        let metadata = ParquetMetaDataReader::decode_metadata(&footer).map_err(|error| damaged(&error))?;
        let metadata = Arc::new(metadata);
        let options = ArrowReaderOptions::new();
        let arrow = ArrowReaderMetadata::try_new(Arc::clone(&metadata), options).map_err(|error| damaged(&error))?;
        let footer = Self {
            metadata,
            schema: Arc::clone(arrow.schema()),
        };
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
