//! CSV files as a source: listing, cutting, and reading in segments.
//!
//! * A chunk is a range of a plain file on record boundaries, or a whole compressed file.
//! * Declared columns are found in each file's header by name, so files may differ in the order of their columns; a
//!   declared column that a file lacks is a permanent failure, and further columns are left out.
//! * A column that has no name in its header is `column_N`, counted from 1.
//! * A byte order mark is skipped, blank lines are no rows, and white space is never trimmed.
//! * A field without text is no value, and so is one of the source's `null` texts. Quoted text is always text: `""` is
//!   the empty text and `"NA"` two letters. For other types quotes make no difference.
//! * A file of 0 bytes has no header and is a permanent failure; a source without headers takes it as no rows.
//! * Text in quarantine and messages shows bytes that are no UTF-8 as `\xNN`; messages escape control characters too.

use async_trait::async_trait;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, Compression, CsvSource};

use self::column::NullTexts;
use self::header::Head;
use self::reader::{CsvReader, Shape};
use self::record::{Dialect, is_line_end};
use super::contract::{Found, Own};
use super::files::{Files, Format, Part};
use super::input::{self, Input};
use super::object::{self, Object};
use super::{Binding, KeptRow, Misdeclared, Reread, SegmentReader};
use crate::store::S3Settings;

pub(in crate::source) mod column;
mod cut;
mod header;
mod reader;
pub(in crate::source) mod record;
mod spare;
#[cfg(test)]
mod tests;

/// CSV files, as a source of a pipeline declares them.
pub(super) struct Csv {
    source: CsvSource,
    dialect: Dialect,
    checkpoint_rows: u64,
    spare: spare::Shared,
}

/// The source. Permanent failure if its settings can't be read by.
pub(super) fn files(name: &str, source: &CsvSource, binding: Binding) -> Result<Files<Csv>, Failure> {
    let CsvSource {
        delimiter,
        quote,
        quoted_newlines,
        ..
    } = *source;
    if delimiter == quote || is_line_end(delimiter) || is_line_end(quote) {
        return Err(Failure::permanent(format!(
            "source {name}: `delimiter` and `quote` have to differ, and neither can be a line end"
        )));
    }
    if source.columns.is_empty() && !source.header {
        return Err(Failure::permanent(format!(
            "source {name} has no header; declare its columns"
        )));
    }
    let format = Csv {
        source: source.clone(),
        dialect: Dialect {
            delimiter,
            quote,
            quoted_newlines,
        },
        checkpoint_rows: binding.checkpoint_rows.max(1),
        spare: spare::Shared::default(),
    };
    Ok(Files::new(name, &source.path, &source.columns, binding, format))
}

#[async_trait]
impl Format for Csv {
    async fn columns(&self, objects: &[Object]) -> Result<Vec<Column>, Failure> {
        let Some(first) = objects.first() else {
            return Ok(Vec::new());
        };
        header::columns(&header::read(first, &self.source, self.dialect).await?, &first.address)
    }

    async fn found(&self, object: &Object) -> Result<Option<Vec<Found>>, Failure> {
        let names = header::read(object, &self.source, self.dialect).await?.names;
        Ok(names.map(|names| names.iter().map(|name| Found::new(name, Own::Text)).collect()))
    }

    async fn check(&self, object: &Object, columns: &[Column]) -> Result<(), Misdeclared> {
        let head = header::read(object, &self.source, self.dialect).await?;
        header::layout(&head, columns, &object.address).map(drop)
    }

    async fn start(&self, object: &Object) -> Result<Position, Failure> {
        Ok(header::read(object, &self.source, self.dialect).await?.start)
    }

    async fn cut(&self, object: &Object, columns: &[Column]) -> Result<Vec<Part>, Failure> {
        let head = header::read(object, &self.source, self.dialect).await?;
        header::layout(&head, columns, &object.address)?;
        if !matches!(
            input::resolve(self.source.compression, &object.address),
            Compression::None
        ) {
            return Ok(vec![Part {
                start: head.start,
                end: None,
                bytes: object.size,
            }]);
        }
        let places = cut::places(object, self.dialect, head.start, self.source.chunk_bytes).await?;
        Ok(Part::between(&places, object.size))
    }

    async fn open(
        &self,
        object: &Object,
        columns: &[Column],
        from: Position,
        end: Option<u64>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let head = header::read(object, &self.source, self.dialect).await?;
        let shape = self.shape(&object.address, &head, columns)?;
        let input = Input::open(object, self.source.compression, from.offset, end).await?;
        Ok(Box::new(CsvReader::new(shape, input, from, self.spare.get())))
    }

    async fn reread(&self, columns: &[Column], rows: &[KeptRow<'_>], s3: &S3Settings) -> Result<Reread, Failure> {
        // Rows of one object come one after the other, so there are few of these.
        let mut reread = Reread::default();
        let mut done = 0;
        for alike in rows.chunk_by(|one, other| one.columns == other.columns && one.file == other.file) {
            let Some(first) = alike.first() else { continue };
            let head = match first.columns {
                _ if !self.source.header => Head::without_names(),
                Some([]) => {
                    return Err(Failure::permanent(format!(
                        "rows of {} were read without a header, so their columns have no names; write `header: false`",
                        first.file
                    )));
                }
                Some(names) => Head::of_names(names),
                None => self.head_of_earlier(first.file, s3).await?,
            };
            let shape = self.shape(first.file, &head, columns)?;
            reread.take(done, reader::read_rows(&shape, alike)?)?;
            done += alike.len() as u64;
        }
        Ok(reread)
    }
}

impl Csv {
    fn shape(&self, address: &str, head: &Head, columns: &[Column]) -> Result<Shape, Misdeclared> {
        Ok(Shape {
            address: address.to_owned(),
            dialect: self.dialect,
            layout: header::layout(head, columns, address)?,
            names: head.names.clone().unwrap_or_default().into(),
            schema: super::schema(columns),
            columns: columns.to_vec(),
            nulls: NullTexts::new(&self.source.null),
            checkpoint_rows: self.checkpoint_rows,
        })
    }

    /// The header of a file whose rows an earlier release put into quarantine, which did not keep it.
    async fn head_of_earlier(&self, file: &str, s3: &S3Settings) -> Result<Head, Failure> {
        let reading = async {
            let object = object::find(file, s3).await?;
            header::read(&object, &self.source, self.dialect).await
        };
        reading.await.map_err(|failure| Failure {
            message: format!(
                "an earlier release put rows of {file} into quarantine without its header, and that can't be read there: {}; \
                 put the file back, or the rows can't be replayed",
                failure.message
            ),
            ..failure
        })
    }
}
