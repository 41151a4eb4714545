//! Segments of a database's rows. A segment ends after `checkpoint_rows` rows, or with the row that brings it to
//! [`SEGMENT_BYTES`]; nothing of it depends on how the rows arrive, so it is the same in every attempt.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::filter;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use super::feed::{Cell, NONE, Packet, Row, Rows};
use super::form::Form;
use super::raw::Raw;
use super::typed;
use crate::source::csv::column::{ColumnBuilder, Fields, Misfit, NullTexts};
use crate::source::csv::record::{QUOTED, Records, Span};
use crate::source::{KeptRow, NOT_REPLAYABLE, Reread, Segment, SegmentReader, Unreadable, not_kept, schema};

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;
/// Bytes after which a segment ends.
const SEGMENT_BYTES: usize = 8 << 20;

/// What a checkpoint of these rows is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Each row has a place, and they come in its order: [`Position::offset`] is the place from which to go on.
    Places,
    /// Likewise, and rows may have changed since: [`Position::line`] is what all before it sum up to.
    Keys,
    /// Rows are counted: [`Position::offset`] says how many there were, and [`Position::line`] what they sum up to.
    Counted,
    /// The same, and the rows before are not read again: they begin behind the key of the last one.
    Behind,
}

/// What stays the same for all segments of a chunk.
pub(super) struct Shape {
    /// What errors call the rows.
    pub(super) object: String,
    pub(super) columns: Vec<Column>,
    /// What their values are; empty if all of them are text.
    pub(super) forms: Arc<[Form]>,
    pub(super) checkpoint_rows: u64,
    pub(super) order: Order,
    /// What the user should know a row by: its place, if that is a number to them, else its count in the chunk.
    pub(super) line: Option<fn(u64) -> u64>,
}

/// The segments of a chunk, or of what is left of it.
pub(super) struct Reader {
    shape: Shape,
    schema: SchemaRef,
    rows: Rows,
    packet: Packet,
    /// Rows of `packet` that are used up.
    used: usize,
    at: Position,
    /// Rows of the chunk before `at`.
    before: u64,
    passed_over: u64,
    /// The key of the row before, if rows have one.
    key: Option<String>,
    done: bool,
}

impl Reader {
    /// `rows` begin where `from` says for rows with places or keys, and at the first for others: they are passed over here.
    /// Permanent failure if these are not the rows that were there before.
    pub(super) async fn open(shape: Shape, rows: Rows, from: Position) -> Result<Self, Failure> {
        let schema = schema(&shape.columns);
        let (at, before) = match shape.order {
            Order::Places => (from, from.line.saturating_sub(1)),
            Order::Keys => (from, 0),
            Order::Counted => (Position::default(), 0),
            Order::Behind => (from, from.offset),
        };
        let mut reader = Self {
            shape,
            schema,
            rows,
            packet: Packet::default(),
            used: 0,
            at,
            before,
            passed_over: 0,
            key: None,
            done: false,
        };
        if reader.shape.order == Order::Counted {
            reader.pass_over(from).await?;
        }
        Ok(reader)
    }

    async fn pass_over(&mut self, to: Position) -> Result<(), Failure> {
        while self.at.offset < to.offset {
            let Some(row) = self.peek().await? else { break };
            self.passed_over += u64::from(row.end - row.start);
            self.advance(&row)?;
        }
        if self.at != to {
            return Err(Failure::permanent(format!(
                "{}: the first {} rows are not those that were read before, or in another order, so the run can't go on \
                 after them; a table with a primary key goes on behind it, and a query with an ORDER BY over a unique \
                 key finds the same rows while nobody changes them; run again",
                self.shape.object, to.offset
            )));
        }
        Ok(())
    }

    /// The row to come; `None` after the last.
    async fn peek(&mut self) -> Result<Option<Row>, Failure> {
        if self.used == self.packet.rows.len() {
            match self.rows.next().await? {
                Some(packet) => (self.packet, self.used) = (packet, 0),
                None => return Ok(None),
            }
        }
        Ok(self.packet.rows.get(self.used).copied())
    }

    /// Goes on behind the row.
    fn advance(&mut self, row: &Row) -> Result<(), Failure> {
        match self.packet.key(self.used) {
            Some(key) => key.clone_into(self.key.get_or_insert_default()),
            None => self.key = None,
        }
        self.used += 1;
        self.before += 1;
        match self.shape.order {
            Order::Places | Order::Keys if row.place < self.at.offset => Err(Failure::permanent(format!(
                "{}: its rows don't come in the order of their places, so a checkpoint would lose some; read it by a \
                 `query`",
                self.shape.object
            ))),
            Order::Places => {
                self.at.offset = row.place.saturating_add(1);
                self.at.line += 1;
                Ok(())
            }
            Order::Keys => {
                self.at.line = self.summed(row);
                self.at.offset = row.place.saturating_add(1);
                Ok(())
            }
            Order::Counted | Order::Behind => {
                self.at.line = self.summed(row);
                self.at.offset += 1;
                Ok(())
            }
        }
    }

    /// What all rows come to with this one.
    fn summed(&self, row: &Row) -> u64 {
        let mut sum = Sum(self.at.line);
        for cell in self.packet.cells(row, self.shape.columns.len()) {
            sum.add(u64::from(cell.end - cell.start) << 1 | u64::from(cell.is_null));
            sum.add_bytes(&self.packet.data[cell.start as usize..cell.end as usize]);
        }
        sum.0
    }
}

#[async_trait]
impl SegmentReader for Reader {
    fn passed_over(&self) -> u64 {
        self.passed_over
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        if self.done {
            return Ok(None);
        }
        let mut filling = Filling::new(&self.shape)?;
        while filling.raw.rows.len() < usize::try_from(self.shape.checkpoint_rows).unwrap_or(usize::MAX)
            && filling.weight < SEGMENT_BYTES
            && let Some(row) = self.peek().await?
        {
            self.advance(&row)?;
            let line = self.shape.line.map_or(self.before, |line| line(row.place));
            filling.push(&self.packet, &row, line);
            if filling.records.count == BATCH_ROWS {
                filling.finish(&self.shape, &self.schema)?;
            }
        }
        filling.finish(&self.shape, &self.schema)?;
        self.done = self.peek().await?.is_none();
        Ok(Some(Segment {
            batches: filling.done,
            unreadable: filling.unreadable,
            rows: filling.raw.rows.len() as u64,
            bytes: filling.raw.data.len() as u64,
            next: self.at,
            cursor: self.key.clone(),
            last: self.done,
            raw: Box::new(filling.raw),
        }))
    }
}

/// Reads rows again that a run has put into quarantine. Permanent failure if one lacks a column.
pub(super) fn read_rows(columns: &[Column], rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
    let shape = Shape {
        object: rows.first().map_or("", |row| row.file).to_owned(),
        columns: columns.to_vec(),
        forms: Arc::default(),
        checkpoint_rows: rows.len() as u64,
        order: Order::Counted,
        line: None,
    };
    let schema = schema(columns);
    let mut filling = Filling::new(&shape)?;
    let mut lost = Vec::new();
    for (number, row) in (0..).zip(rows) {
        match values_of(row, columns)? {
            Some(values) => filling.push_values(values.into_iter(), row.line),
            None => {
                lost.push(number);
                filling.push_values(columns.iter().map(|_| None), row.line);
            }
        }
        if filling.records.count == BATCH_ROWS {
            filling.finish(&shape, &schema)?;
        }
    }
    filling.finish(&shape, &schema)?;
    let mut reread = Reread {
        batches: filling.done,
        unreadable: filling.unreadable,
    };
    for row in lost {
        reread.reject(Unreadable {
            row,
            column: None,
            reason: NOT_REPLAYABLE,
            detail: "an earlier release kept it without the names of its columns".to_owned(),
        })?;
    }
    Ok(reread)
}

/// The values of the columns; `None` if the row doesn't tell which they are.
fn values_of<'k>(row: &KeptRow<'k>, columns: &[Column]) -> Result<Option<Vec<Option<&'k [u8]>>>, Failure> {
    let Some(names) = row.columns else { return Ok(None) };
    let all: Vec<Option<&[u8]>> = match row.values {
        Some(values) => values.iter().map(|value| value.as_deref().map(str::as_bytes)).collect(),
        None => {
            let values = row.bytes.split(|byte| *byte == b'\t');
            values.map(|value| (value != NONE).then_some(value)).collect()
        }
    };
    if all.len() != names.len() {
        return Ok(None);
    }
    let mut chosen = Vec::with_capacity(columns.len());
    for column in columns {
        match names.iter().position(|name| *name == column.name) {
            Some(place) => chosen.push(all[place]),
            None => return Err(not_kept(row, &column.name)),
        }
    }
    Ok(Some(chosen))
}

/// A sum over rows that depends on their order: 64 bits, for rows that nobody has made up to fit.
struct Sum(u64);

impl Sum {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
}

/// How a column's array is made.
enum Builder {
    /// Of texts, like a field of a CSV file.
    Fields(ColumnBuilder),
    /// Of values in a binary form.
    Forms(Form),
}

/// A segment while it is filled.
struct Filling {
    raw: Raw,
    /// The rows that are in no batch yet.
    records: Records,
    /// What the rows take of the segment's bound.
    weight: usize,
    builders: Vec<Builder>,
    nulls: NullTexts,
    done: Vec<RecordBatch>,
    unreadable: Vec<Unreadable>,
}

impl Filling {
    fn new(shape: &Shape) -> Result<Self, Failure> {
        let builders = (0..).zip(&shape.columns);
        let builders = builders.map(|(place, column)| match shape.forms.get(place) {
            None | Some(Form::Text) => Ok(Builder::Fields(ColumnBuilder::new(column, place, 0)?)),
            Some(form) => Ok(Builder::Forms(*form)),
        });
        Ok(Self {
            raw: Raw::new(&shape.columns, &shape.forms),
            records: Records::new(shape.columns.len()),
            weight: 0,
            builders: builders.collect::<Result<_, Failure>>()?,
            nulls: NullTexts::new(&[]),
            done: Vec::new(),
            unreadable: Vec::new(),
        })
    }

    /// Adds a row by its values.
    fn push_values<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>>, line: u64) {
        let begin = self.raw.data.len();
        self.raw.rows.push((begin as u32, line));
        for value in values {
            let start = self.raw.data.len();
            self.raw.data.extend_from_slice(value.unwrap_or_default());
            self.records.spans.push(match value {
                None => Span::new(start, start, 0),
                Some(_) => Span::new(start, self.raw.data.len(), QUOTED),
            });
        }
        self.records.count += 1;
    }

    fn push(&mut self, packet: &Packet, row: &Row, line: u64) {
        let begin = self.raw.data.len();
        let cells = packet.cells(row, self.records.fields);
        let value = |cell: &Cell| (!cell.is_null).then(|| &packet.data[cell.start as usize..cell.end as usize]);
        let bytes = &packet.data[row.start as usize..row.end as usize];
        self.raw.push(bytes, line, cells.iter().map(value));
        for cell in cells {
            let (start, end) = (
                begin + (cell.start - row.start) as usize,
                begin + (cell.end - row.start) as usize,
            );
            self.records.spans.push(match cell.is_null {
                true => Span::new(start, start, 0),
                false => Span::new(start, end, QUOTED),
            });
        }
        self.records.count += 1;
        self.weight += row.weight as usize;
    }

    /// Makes a batch of the rows that are in none yet, without those that can't be read.
    fn finish(&mut self, shape: &Shape, schema: &SchemaRef) -> Result<(), Failure> {
        let count = self.records.count;
        if count == 0 {
            return Ok(());
        }
        let before = (self.raw.rows.len() - count) as u64;
        let mut misfits: Vec<Misfit> = Vec::new();
        let fields = Fields {
            data: &self.raw.data,
            records: &self.records,
            first_row: 0,
            nulls: &self.nulls,
        };
        let mut arrays = Vec::with_capacity(self.builders.len() + 1);
        for (place, builder) in self.builders.iter_mut().enumerate() {
            arrays.push(match builder {
                Builder::Fields(builder) => {
                    builder.append(&fields, &mut misfits);
                    builder.finish(0)?
                }
                Builder::Forms(form) => {
                    let column = &shape.columns[place];
                    let made = typed::array(*form, column, place, fields.values(place), &mut misfits);
                    made.ok_or_else(|| {
                        Failure::transient(format!(
                            "{}: the server has sent a value of column {} that is none of its type",
                            shape.object, column.name
                        ))
                    })?
                }
            });
        }
        let rows: ArrayRef = Arc::new(UInt64Array::from_iter_values(before..before + count as u64));
        arrays.push(rows);
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::permanent(format!("{}: a batch can't be made: {error}", shape.object))
        };
        if !misfits.is_empty() {
            misfits.sort_by_key(|misfit| (misfit.row, misfit.field));
            misfits.dedup_by_key(|misfit| misfit.row);
            let mut kept = vec![true; count];
            for misfit in misfits {
                kept[misfit.row] = false;
                self.unreadable.push(Unreadable {
                    row: before + misfit.row as u64,
                    column: shape.columns.get(misfit.field).map(|column| column.name.clone()),
                    reason: misfit.reason,
                    detail: misfit.detail,
                });
            }
            let kept = BooleanArray::from(kept);
            for array in &mut arrays {
                *array = filter(array, &kept).map_err(|error| wrong(&error))?;
            }
        }
        let batch = RecordBatch::try_new(Arc::clone(schema), arrays).map_err(|error| wrong(&error))?;
        if batch.num_rows() > 0 {
            self.done.push(batch);
        }
        self.records.spans.clear();
        self.records.clear();
        Ok(())
    }
}
