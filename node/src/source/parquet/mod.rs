//! Parquet files as a source: read page by page and column by column, never whole.
//!
//! * A position is a row: its number in the file, from 0 as offset and from 1 as line. A chunk is a range of rows, which
//!   holds whole row groups, as many as stay within the chunk size and at least one.
//! * Of a row group only the columns of the source are read, by ranges. A checkpoint within one passes over the pages
//!   before it without decoding them.
//! * A row group of which the loads need no row, as its bounds tell, is passed over unread; its rows count as if they had
//!   been read and left out by the WHERE.
//! * Columns that are declared are found by name, and the file's types have to fit into the declared ones without loss.
//!   Without a declaration they are the file's own, which all files then have to have.
//! * A row without a value in a required column is rejected, as is text that is no UTF-8, holds a NUL, or a moment that
//!   doesn't fit. Everything else that can't be read is damage, and a permanent failure.

use ::parquet::arrow::ProjectionMask;
use async_trait::async_trait;
use datafusion::arrow::datatypes::FieldRef;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, ParquetSource};
use tokio::sync::OnceCell;

use self::footer::Footer;
use self::reader::{Opened, ParquetReader, Shape, position};
use super::contract::{Found, Own};
use super::files::{Files, Format, Part};
use super::object::Object;
use super::{Binding, KeptRow, Misdeclared, Reread, SegmentReader, json};
use crate::store::S3Settings;

mod convert;
mod fetch;
mod footer;
mod prune;
mod raw;
mod reader;
mod schema;
#[cfg(test)]
mod tests;

/// Parquet files, as a source of a pipeline declares them.
pub(super) struct Parquet {
    source: ParquetSource,
    checkpoint_rows: u64,
    /// The file that the columns are taken from, and its columns, if none are declared.
    first: OnceCell<(String, Vec<Column>)>,
}

/// The source.
pub(super) fn files(name: &str, source: &ParquetSource, binding: Binding) -> Files<Parquet> {
    let format = Parquet {
        source: source.clone(),
        checkpoint_rows: binding.checkpoint_rows.max(1),
        first: OnceCell::new(),
    };
    Files::new(name, &source.path, &source.columns, binding, format)
}

impl Parquet {
    /// The footer, and the places of the columns, after all that can be wrong with them.
    async fn footer(&self, object: &Object, columns: &[Column]) -> Result<(Footer, Vec<usize>), Misdeclared> {
        let footer = Footer::read(object).await?;
        if let Some((first, theirs)) = self.first.get() {
            let own = schema::columns(&footer.schema, &object.address)?;
            if let Some(what) = schema::difference(theirs, &own) {
                return Err(Failure::permanent(format!(
                    "{} has not the columns of {first}: {what}; write the files alike, or declare the columns that you \
                     need",
                    object.address
                ))
                .into());
            }
        }
        let places = schema::places(&footer.schema, columns, &object.address)?;
        let descriptor = footer.metadata.file_metadata().schema_descr();
        let mask = ProjectionMask::roots(descriptor, places.iter().copied());
        footer.unpackable(&mask, &object.address)?;
        Ok((footer, places))
    }
}

#[async_trait]
impl Format for Parquet {
    async fn columns(&self, objects: &[Object]) -> Result<Vec<Column>, Failure> {
        let Some(first) = objects.first() else {
            return Ok(Vec::new());
        };
        let columns = schema::columns(&Footer::read(first).await?.schema, &first.address)?;
        let (_, columns) = self
            .first
            .get_or_init(|| async { (first.address.clone(), columns) })
            .await;
        Ok(columns.clone())
    }

    async fn found(&self, object: &Object) -> Result<Option<Vec<Found>>, Failure> {
        let schema = Footer::read(object).await?.schema;
        let found = |field: &FieldRef| {
            let own = schema::own(field.data_type());
            Found::new(field.name(), own.map_or_else(Own::Unusable, Own::Typed))
        };
        Ok(Some(schema.fields().iter().map(found).collect()))
    }

    fn keeps_values(&self) -> bool {
        true
    }

    async fn check(&self, object: &Object, columns: &[Column]) -> Result<(), Misdeclared> {
        self.footer(object, columns).await.map(drop)
    }

    async fn start(&self, _: &Object) -> Result<Position, Failure> {
        Ok(position(0))
    }

    async fn cut(&self, object: &Object, columns: &[Column]) -> Result<Vec<Part>, Failure> {
        let (footer, places) = self.footer(object, columns).await?;
        let descriptor = footer.metadata.file_metadata().schema_descr();
        let mask = ProjectionMask::roots(descriptor, places);
        let mut parts: Vec<Part> = Vec::new();
        let mut row = 0;
        for (group, rows) in footer.metadata.row_groups().iter().zip(footer.rows()) {
            let columns = group.columns().iter().enumerate();
            let read = columns.filter(|(leaf, _)| mask.leaf_included(*leaf));
            let bytes = read
                .map(|(_, column)| column.compressed_size().unsigned_abs())
                .sum::<u64>();
            row += rows;
            match parts.last_mut() {
                Some(part) if part.bytes.saturating_add(bytes) <= self.source.chunk_bytes => {
                    part.end = Some(row);
                    part.bytes += bytes;
                }
                _ => parts.push(Part {
                    start: position(row - rows),
                    end: Some(row),
                    bytes,
                }),
            }
        }
        if parts.is_empty() {
            parts.push(Part {
                start: position(0),
                end: Some(0),
                bytes: 0,
            });
        }
        Ok(parts)
    }

    async fn open(
        &self,
        object: &Object,
        columns: &[Column],
        from: Position,
        end: Option<u64>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let (footer, places) = self.footer(object, columns).await?;
        let rows = footer.rows().sum::<u64>();
        let end = end.unwrap_or(rows);
        if from.offset > end || end > rows {
            return Err(Failure::permanent(format!(
                "{} has {rows} rows, and the chunk goes from {} to {end}; leave sources alone while a run reads them, and \
                 run again",
                object.address, from.offset
            )));
        }
        let shape = Shape {
            address: object.address.clone(),
            schema: super::schema(columns),
            names: footer
                .schema
                .fields()
                .iter()
                .map(|field| field.name().clone())
                .collect(),
            columns: columns.to_vec(),
            checkpoint_rows: self.checkpoint_rows,
        };
        Ok(Box::new(ParquetReader::new(Opened {
            shape,
            object: object.clone(),
            footer,
            places,
            row: from.offset,
            end,
        })?))
    }

    async fn reread(&self, columns: &[Column], rows: &[KeptRow<'_>], _: &S3Settings) -> Result<Reread, Failure> {
        // They are kept as JSON, see `raw`.
        json::read_whole_objects(columns, rows)
    }
}
