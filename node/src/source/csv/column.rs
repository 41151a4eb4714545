//! From fields to Arrow arrays, a column at a time: a tight loop per column instead of a choice of type per field.
//!
//! A row with a field that can't be read keeps its place in every column until the batch ends, and is filtered out there;
//! so the usual batch, in which every row can be read, pays nothing for the others.

use std::sync::Arc;

use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, NullBufferBuilder, PrimitiveArray, StringArray,
};
use datafusion::arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use super::record::{Records, Span};
use crate::source::misfit::{self, NULL_IN_REQUIRED, shown, unsound};
use crate::source::value::{self, Why};

/// A field that kept its row from being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Misfit {
    /// The row's place in the batch.
    pub(in crate::source) row: usize,
    /// The column's place in the file; the first one to blame is the one that is named.
    pub(in crate::source) field: usize,
    /// The short stable word.
    pub(in crate::source) reason: &'static str,
    /// What exactly did not fit.
    pub(in crate::source) detail: String,
}

/// The texts that mean "no value". The empty text always does.
#[derive(Debug, Clone)]
pub(in crate::source) struct NullTexts {
    /// A bit for each length that such a text has, the last for all longer ones: most fields are told by it alone.
    lengths: u64,
    texts: Vec<Vec<u8>>,
}

impl NullTexts {
    pub(in crate::source) fn new(texts: &[String]) -> Self {
        let texts: Vec<_> = texts.iter().map(|text| text.clone().into_bytes()).collect();
        let lengths = texts.iter().fold(1, |lengths, text| lengths | 1 << text.len().min(63));
        Self { lengths, texts }
    }

    #[inline]
    fn has(&self, text: &[u8]) -> bool {
        self.lengths >> text.len().min(63) & 1 == 1
            && (text.is_empty() || self.texts.iter().any(|null| null.as_slice() == text))
    }
}

/// One declared column while a batch is filled.
pub(in crate::source) struct ColumnBuilder {
    /// Its place in the file.
    field: usize,
    required: bool,
    data_type: DataType,
    values: Values,
    valid: NullBufferBuilder,
}

enum Values {
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Bool(BooleanBufferBuilder),
    Date(Vec<i32>),
    Timestamp {
        values: Vec<i64>,
        zoned: bool,
    },
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Text {
        bytes: Vec<u8>,
        offsets: Vec<i32>,
    },
}

impl Values {
    fn new(data_type: &DataType, rows: usize) -> Option<Self> {
        Some(match data_type {
            DataType::Int16 => Self::Int16(Vec::with_capacity(rows)),
            DataType::Int32 => Self::Int32(Vec::with_capacity(rows)),
            DataType::Int64 => Self::Int64(Vec::with_capacity(rows)),
            DataType::Float32 => Self::Float32(Vec::with_capacity(rows)),
            DataType::Float64 => Self::Float64(Vec::with_capacity(rows)),
            DataType::Boolean => Self::Bool(BooleanBufferBuilder::new(rows)),
            DataType::Date32 => Self::Date(Vec::with_capacity(rows)),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Self::Timestamp {
                values: Vec::with_capacity(rows),
                zoned: zone.is_some(),
            },
            DataType::Decimal128(precision, scale) => Self::Decimal {
                values: Vec::with_capacity(rows),
                precision: *precision,
                scale: *scale,
            },
            DataType::Utf8 => {
                let mut offsets = Vec::with_capacity(rows + 1);
                offsets.push(0);
                Self::Text {
                    bytes: Vec::with_capacity(rows * 8),
                    offsets,
                }
            }
            _ => return None,
        })
    }
}

/// What one pass of records offers a column.
pub(in crate::source) struct Fields<'a> {
    /// The segment's bytes.
    pub(in crate::source) data: &'a [u8],
    /// The records.
    pub(in crate::source) records: &'a Records,
    /// The place in the batch of the first of them.
    pub(in crate::source) first_row: usize,
    /// Texts without a value.
    pub(in crate::source) nulls: &'a NullTexts,
}

impl<'a> Fields<'a> {
    /// The values of a field whose bytes are no text, where a quote says that there is one.
    pub(in crate::source) fn values(&self, field: usize) -> impl Iterator<Item = Option<&'a [u8]>> {
        self.of(field).map(|(span, bytes)| span.is_quoted().then_some(bytes))
    }

    #[inline]
    fn of(&self, field: usize) -> impl Iterator<Item = (Span, &'a [u8])> {
        let Records {
            fields,
            count,
            spans,
            scratch,
            ..
        } = self.records;
        let data = self.data;
        let spans = spans[..count * fields].iter().skip(field).step_by(*fields);
        spans.map(move |span| (*span, span.of(data, scratch)))
    }
}

impl ColumnBuilder {
    /// For a column that is the file's `field`-th, with room for `rows`. Permanent failure for a type CSV can't hold.
    pub(in crate::source) fn new(column: &Column, field: usize, rows: usize) -> Result<Self, Failure> {
        let values = Values::new(&column.data_type, rows).ok_or_else(|| {
            Failure::permanent(format!(
                "column {} can't be read from CSV as {}; declare it as another type",
                column.name, column.data_type
            ))
        })?;
        Ok(Self {
            field,
            required: column.required,
            data_type: column.data_type.clone(),
            values,
            valid: NullBufferBuilder::new(rows),
        })
    }

    /// Appends a value, or none, for every record of a pass.
    pub(in crate::source) fn append(&mut self, from: &Fields<'_>, misfits: &mut Vec<Misfit>) {
        let mut cells = Cells {
            from,
            field: self.field,
            required: self.required,
            data_type: &self.data_type,
            valid: &mut self.valid,
            misfits,
        };
        match &mut self.values {
            Values::Int16(values) => cells.each(value::int, |value| values.push(value)),
            Values::Int32(values) => cells.each(value::int, |value| values.push(value)),
            Values::Int64(values) => cells.each(value::int, |value| values.push(value)),
            Values::Float32(values) => cells.each(value::float, |value| values.push(value)),
            Values::Float64(values) => cells.each(value::float, |value| values.push(value)),
            Values::Bool(values) => cells.each(value::boolean, |value| values.append(value)),
            Values::Date(values) => cells.each(value::date, |value| values.push(value)),
            Values::Timestamp { values, zoned } => {
                let zoned = *zoned;
                cells.each(|text| value::timestamp(text, zoned), |value| values.push(value));
            }
            Values::Decimal {
                values,
                precision,
                scale,
            } => {
                let (precision, scale) = (*precision, *scale);
                cells.each(
                    |text| value::decimal(text, precision, scale),
                    |value| values.push(value),
                );
            }
            Values::Text { bytes, offsets } => cells.texts(bytes, offsets),
        }
    }

    /// The array of the rows appended so far; the builder is empty after it.
    pub(in crate::source) fn finish(&mut self, rows: usize) -> Result<ArrayRef, Failure> {
        let valid = self.valid.finish();
        self.valid = NullBufferBuilder::new(rows);
        let Some(next) = Values::new(&self.data_type, rows) else {
            return Err(Failure::permanent(format!(
                "no array of {} can be made",
                self.data_type
            )));
        };
        Ok(match std::mem::replace(&mut self.values, next) {
            Values::Int16(values) => primitive::<Int16Type>(values, valid, &self.data_type),
            Values::Int32(values) => primitive::<Int32Type>(values, valid, &self.data_type),
            Values::Int64(values) => primitive::<Int64Type>(values, valid, &self.data_type),
            Values::Float32(values) => primitive::<Float32Type>(values, valid, &self.data_type),
            Values::Float64(values) => primitive::<Float64Type>(values, valid, &self.data_type),
            Values::Bool(mut values) => Arc::new(BooleanArray::new(values.finish(), valid)),
            Values::Date(values) => primitive::<Date32Type>(values, valid, &self.data_type),
            Values::Timestamp { values, .. } => primitive::<TimestampMicrosecondType>(values, valid, &self.data_type),
            Values::Decimal { values, .. } => primitive::<Decimal128Type>(values, valid, &self.data_type),
            Values::Text { bytes, offsets } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let array = StringArray::try_new(offsets, Buffer::from_vec(bytes), valid)
                    .map_err(|error| Failure::permanent(format!("a column of text can't be made: {error}")))?;
                Arc::new(array)
            }
        })
    }
}

fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    valid: Option<NullBuffer>,
    data_type: &DataType,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), valid).with_data_type(data_type.clone()))
}

/// One column's fields of one pass, on their way into its builder.
struct Cells<'a, 'b> {
    from: &'a Fields<'a>,
    field: usize,
    required: bool,
    data_type: &'a DataType,
    valid: &'b mut NullBufferBuilder,
    misfits: &'b mut Vec<Misfit>,
}

impl Cells<'_, '_> {
    #[inline]
    fn each<T: Default>(&mut self, parse: impl Fn(&[u8]) -> Result<T, Why>, mut push: impl FnMut(T)) {
        for (row, (_, text)) in self.from.of(self.field).enumerate() {
            // Quoted or not: files that quote every number write a missing one as `""`.
            if self.from.nulls.has(text) {
                push(T::default());
                self.null(row);
                continue;
            }
            match parse(text) {
                Ok(value) => {
                    push(value);
                    self.valid.append_non_null();
                }
                Err(why) => {
                    push(T::default());
                    self.valid.append_null();
                    self.misfit(row, text, why);
                }
            }
        }
    }

    fn texts(&mut self, bytes: &mut Vec<u8>, offsets: &mut Vec<i32>) {
        let (begin, first) = (bytes.len(), offsets.len());
        for (row, (span, text)) in self.from.of(self.field).enumerate() {
            // A quoted text is what it says, also `""` and `"NA"`.
            if !span.is_quoted() && self.from.nulls.has(text) {
                self.null(row);
            } else {
                bytes.extend_from_slice(text);
                self.valid.append_non_null();
            }
            offsets.push(bytes.len() as i32);
        }
        // One look at all of them; only if something is wrong, one at each.
        let added = &bytes[begin..];
        if memchr::memchr(0, added).is_none() && is_sound(added, &offsets[first - 1..], begin) {
            return;
        }
        bytes.truncate(begin);
        offsets.truncate(first);
        for (row, (span, text)) in self.from.of(self.field).enumerate() {
            let is_null = !span.is_quoted() && self.from.nulls.has(text);
            match unsound(text) {
                Some(reason) if !is_null => self.blame(row, reason, format!("found {}", shown(text))),
                _ if !is_null => bytes.extend_from_slice(text),
                _ => {}
            }
            offsets.push(bytes.len() as i32);
        }
    }

    fn null(&mut self, row: usize) {
        self.valid.append_null();
        if self.required {
            self.blame(row, NULL_IN_REQUIRED, misfit::no_value(self.data_type));
        }
    }

    #[cold]
    fn misfit(&mut self, row: usize, text: &[u8], why: Why) {
        let (reason, detail) = misfit::of_text(self.data_type, text, why);
        self.blame(row, reason, detail);
    }

    fn blame(&mut self, row: usize, reason: &'static str, detail: String) {
        self.misfits.push(Misfit {
            row: self.from.first_row + row,
            field: self.field,
            reason,
            detail,
        });
    }
}

/// Whether all texts are UTF-8, which the bytes of all together may be while a cut between two goes through a character.
fn is_sound(bytes: &[u8], offsets: &[i32], begin: usize) -> bool {
    if bytes.is_ascii() {
        return true;
    }
    std::str::from_utf8(bytes).is_ok_and(|text| {
        offsets
            .iter()
            .all(|offset| text.is_char_boundary(*offset as usize - begin))
    })
}
