//! JSON lines as a source: one object a line, the columns by their keys.
//!
//! * A chunk is a range of a plain file on line ends, which are always row ends since JSON text has none inside a string;
//!   or a whole compressed file. A byte order mark is skipped, and lines of white space are no rows.
//! * Keys that are no column are left out, unless the source's contract says otherwise: then the keys of the first objects
//!   become columns, as text of whatever is there, or a row that has one is rejected as `new_column`.
//! * An absent key is no value, as `null` is.
//! * Values are typed strictly: numbers for numeric columns, `true` and `false` for `bool`, strings for the others, in the
//!   forms that CSV has. A `text` column takes everything: a string is itself, anything else its JSON text.
//! * A column may have a path: keys that lead to its value from the outside. If one of them is absent or `null`, it has no
//!   value; what else is no object there is a row that can't be read.
//! * A source that declares no columns has the keys of its first object as text.
//! * Every line that is no such row is rejected by itself, also one that is longer than [`MAX_LINE`] or nests deeper than
//!   [`MAX_DEPTH`]. A file whose first lines hold no object at all is no JSON lines, and a permanent failure.
//! * An empty file has no rows; without declared columns it says nothing about the columns either.

use async_trait::async_trait;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::contract::{Contract, NewColumn};
use haulage_plan::definition::{Column, Compression, JsonSource, Paths};
use memchr::memchr;

use self::head::Head;
use self::reader::{JsonReader, Shape};
use super::contract::{Found, misplaced};
use super::files::{Files, Format, Part};
use super::input::{self, Input};
use super::object::Object;
use super::{Binding, KeptRow, Misdeclared, Reread, SegmentReader, lines, not_kept};
use crate::store::S3Settings;

pub(in crate::source) mod column;
pub(in crate::source) mod head;
mod reader;
pub(in crate::source) mod row;
pub(in crate::source) mod rows;
#[cfg(test)]
mod tests;

/// Reads rows again that were kept as objects in which every column has a key. Permanent failure if one lacks a column.
pub(super) fn read_whole_objects(columns: &[Column], rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
    for row in rows {
        // What is no object is told by reading it.
        let Ok(keys) = row::keys(row.bytes) else { continue };
        if let Some(column) = columns.iter().find(|column| !keys.contains(&column.name)) {
            return Err(not_kept(row, &column.name));
        }
    }
    reader::read_rows(columns, &Paths::new(), false, rows)
}

/// Reads objects again that were kept as they came.
pub(super) fn read_objects(
    columns: &[Column],
    paths: &Paths,
    strict: bool,
    rows: &[KeptRow<'_>],
) -> Result<Reread, Failure> {
    reader::read_rows(columns, paths, strict, rows)
}

/// A line longer than this is rejected as `too_long`: memory has a bound.
pub(in crate::source) const MAX_LINE: usize = 16 << 20;
/// A value nested deeper than this in its row is rejected as `too_deep`: few readers of JSON can take it.
const MAX_DEPTH: usize = 128;

/// JSON lines, as a source of a pipeline declares them.
pub(super) struct Json {
    source: JsonSource,
    /// Whether a row with a key that is no column is rejected.
    strict: bool,
    checkpoint_rows: u64,
}

/// The source.
pub(super) fn files(name: &str, source: &JsonSource, contract: Contract, binding: Binding) -> Files<Json> {
    let format = Json {
        source: source.clone(),
        strict: contract.on_new_column != NewColumn::Ignore,
        checkpoint_rows: binding.checkpoint_rows.max(1),
    };
    Files::new(name, &source.path, &source.columns, binding, format)
}

impl Json {
    /// The start of an object that is such a file, and has no key that a column's name only seems to lead to.
    async fn checked(&self, object: &Object) -> Result<Head, Misdeclared> {
        let head = Head::read(object, self.source.compression).await?;
        head.check()?;
        let JsonSource { columns, paths, .. } = &self.source;
        if let Some(found) = head.found(columns, paths) {
            misplaced(columns, &found, &object.address)?;
        }
        Ok(head)
    }
}

#[async_trait]
impl Format for Json {
    async fn columns(&self, objects: &[Object]) -> Result<Vec<Column>, Failure> {
        for object in objects {
            if let Some(columns) = Head::read(object, self.source.compression).await?.columns()? {
                return Ok(columns);
            }
        }
        let first = objects.first().map_or(&self.source.path, |object| &object.address);
        Err(Failure::permanent(format!(
            "{first} is empty: expected an object whose keys are the columns; declare the source's columns, or remove the \
             file"
        )))
    }

    async fn found(&self, object: &Object) -> Result<Option<Vec<Found>>, Failure> {
        let JsonSource {
            columns,
            paths,
            compression,
            ..
        } = &self.source;
        Ok(Head::read(object, *compression).await?.found(columns, paths))
    }

    fn by_row(&self) -> bool {
        true
    }

    fn paths(&self) -> &Paths {
        &self.source.paths
    }

    async fn check(&self, object: &Object, _: &[Column]) -> Result<(), Misdeclared> {
        self.checked(object).await.map(drop)
    }

    async fn start(&self, object: &Object) -> Result<Position, Failure> {
        let head = Head::read(object, self.source.compression).await?;
        head.check()?;
        Ok(head.start())
    }

    async fn cut(&self, object: &Object, _: &[Column]) -> Result<Vec<Part>, Failure> {
        let start = self.checked(object).await?.start();
        if !matches!(
            input::resolve(self.source.compression, &object.address),
            Compression::None
        ) {
            return Ok(vec![Part {
                start,
                end: None,
                bytes: object.size,
            }]);
        }
        let targets = lines::targets(start.offset, object.size, self.source.chunk_bytes);
        let mut places = vec![start];
        if !targets.is_empty() {
            let found = lines::places(object, start, &targets, |data| memchr(b'\n', data)).await?;
            // A chunk after the last line end would have no rows.
            places.extend(found.into_iter().filter(|place| place.offset < object.size));
        }
        Ok(Part::between(&places, object.size))
    }

    async fn open(
        &self,
        object: &Object,
        columns: &[Column],
        from: Position,
        end: Option<u64>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let shape = Shape {
            address: object.address.clone(),
            schema: super::schema(columns),
            columns: columns.to_vec(),
            paths: self.source.paths.clone(),
            strict: self.strict,
            checkpoint_rows: self.checkpoint_rows,
        };
        let input = Input::open(object, self.source.compression, from.offset, end).await?;
        Ok(Box::new(JsonReader::new(shape, input, from)?))
    }

    async fn reread(&self, columns: &[Column], rows: &[KeptRow<'_>], _: &S3Settings) -> Result<Reread, Failure> {
        reader::read_rows(columns, &self.source.paths, self.strict, rows)
    }
}
