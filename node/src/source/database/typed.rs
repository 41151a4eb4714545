//! Columns of values that came in a binary form. What such a form plainly holds becomes a value of the column's type at
//! once; everything else is written as text and read by the parser of fields, so that it is a value, or a misfit with the
//! same words, whatever form it came in.

use std::sync::Arc;

use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use datafusion::arrow::array::{ArrayRef, BooleanBuilder, PrimitiveBuilder, StringBuilder};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use haulage_plan::definition::Column;

use super::form::{self, Form};
use super::numeric::Numeric;
use crate::source::csv::column::Misfit;
use crate::source::misfit::{self, NULL_IN_REQUIRED};
use crate::source::value::{self, Why};

/// The array of a column's values, `None` for NULL; rows that don't fit are empty in it, and named in `misfits`. `place` is
/// the column's, counted from 0. `None` if a value's bytes are none of its form, or there is no such array.
pub(super) fn array<'v>(
    form: Form,
    column: &Column,
    place: usize,
    values: impl Iterator<Item = Option<&'v [u8]>>,
    misfits: &mut Vec<Misfit>,
) -> Option<ArrayRef> {
    let mut cells = Cells {
        form,
        column,
        place,
        misfits,
        text: Vec::new(),
    };
    match &column.data_type {
        DataType::Int16 => cells.numbers::<Int16Type>(values, |v| integer(v, form), value::int),
        DataType::Int32 => cells.numbers::<Int32Type>(values, |v| integer(v, form), value::int),
        DataType::Int64 => cells.numbers::<Int64Type>(values, |v| integer(v, form), value::int),
        DataType::Float32 => {
            let read = |bytes: &[u8]| (form == Form::Float4).then(|| form::float4(bytes)).flatten();
            cells.numbers::<Float32Type>(values, read, value::float)
        }
        DataType::Float64 => {
            let read = |bytes: &[u8]| (form == Form::Float8).then(|| form::float8(bytes)).flatten();
            cells.numbers::<Float64Type>(values, read, value::float)
        }
        DataType::Date32 => {
            let read = |bytes: &[u8]| (form == Form::Date).then(|| form::date(bytes)).flatten();
            cells.numbers::<Date32Type>(values, read, value::date)
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let zoned = zone.is_some();
            let is_moment = match form {
                Form::Timestamp => true,
                Form::Zoned => zoned,
                _ => false,
            };
            let read = |bytes: &[u8]| is_moment.then(|| form::moment(bytes)).flatten();
            cells.numbers::<TimestampMicrosecondType>(values, read, |text| value::timestamp(text, zoned))
        }
        DataType::Decimal128(precision, scale) => {
            let (precision, scale) = (*precision, *scale);
            let read = |bytes: &[u8]| match form {
                Form::Numeric => Numeric::parse(bytes)?.unscaled(precision, scale),
                _ => None,
            };
            let parse = |text: &[u8]| value::decimal(text, precision, scale);
            cells.numbers::<Decimal128Type>(values, read, parse)
        }
        DataType::Boolean => {
            let mut builder = BooleanBuilder::new();
            let read = |bytes: &[u8]| (form == Form::Bool).then(|| form::boolean(bytes)).flatten();
            cells.each(values, read, value::boolean, |value| builder.append_option(value))?;
            Some(Arc::new(builder.finish()))
        }
        DataType::Utf8 => cells.texts(values),
        _ => None,
    }
}

#[inline]
fn integer<T: TryFrom<i64>>(bytes: &[u8], form: Form) -> Option<T> {
    T::try_from(form::integer(bytes, form)?).ok()
}

struct Cells<'a> {
    form: Form,
    column: &'a Column,
    place: usize,
    misfits: &'a mut Vec<Misfit>,
    /// The text of the value that is looked at.
    text: Vec<u8>,
}

impl Cells<'_> {
    fn numbers<'v, T: ArrowPrimitiveType>(
        &mut self,
        values: impl Iterator<Item = Option<&'v [u8]>>,
        read: impl Fn(&[u8]) -> Option<T::Native>,
        parse: impl Fn(&[u8]) -> Result<T::Native, Why>,
    ) -> Option<ArrayRef> {
        let mut builder = PrimitiveBuilder::<T>::new().with_data_type(self.column.data_type.clone());
        self.each(values, read, parse, |value| builder.append_option(value))?;
        Some(Arc::new(builder.finish()))
    }

    /// A value, or none, for every row: by `read` if the form holds it plainly, else by `parse` from its text.
    #[inline]
    fn each<'v, T>(
        &mut self,
        values: impl Iterator<Item = Option<&'v [u8]>>,
        read: impl Fn(&[u8]) -> Option<T>,
        parse: impl Fn(&[u8]) -> Result<T, Why>,
        mut push: impl FnMut(Option<T>),
    ) -> Option<()> {
        for (row, bytes) in values.enumerate() {
            let Some(bytes) = bytes else {
                push(None);
                self.null(row);
                continue;
            };
            let value = match read(bytes) {
                Some(value) => Some(value),
                None => self.parsed(row, bytes, &parse)?,
            };
            push(value);
        }
        Some(())
    }

    #[cold]
    fn parsed<T>(&mut self, row: usize, bytes: &[u8], parse: &impl Fn(&[u8]) -> Result<T, Why>) -> Option<Option<T>> {
        self.text.clear();
        self.form.write(bytes, &mut self.text)?;
        let why = match parse(&self.text) {
            Ok(value) => return Some(Some(value)),
            Err(why) => why,
        };
        let (reason, detail) = misfit::of_text(&self.column.data_type, &self.text, why);
        self.blame(row, reason, detail);
        Some(None)
    }

    /// Every form but text has a text without NUL and in UTF-8.
    fn texts<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>>) -> Option<ArrayRef> {
        let mut builder = StringBuilder::new();
        for (row, bytes) in values.enumerate() {
            let Some(bytes) = bytes else {
                builder.append_null();
                self.null(row);
                continue;
            };
            self.text.clear();
            self.form.write(bytes, &mut self.text)?;
            builder.append_value(std::str::from_utf8(&self.text).ok()?);
        }
        Some(Arc::new(builder.finish()))
    }

    fn null(&mut self, row: usize) {
        if self.column.required {
            self.blame(row, NULL_IN_REQUIRED, misfit::no_value(&self.column.data_type));
        }
    }

    fn blame(&mut self, row: usize, reason: &'static str, detail: String) {
        self.misfits.push(Misfit {
            row,
            field: self.place,
            reason,
            detail,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(data_type: DataType, required: bool) -> Column {
        Column {
            name: "c".into(),
            data_type,
            required,
        }
    }

    #[test]
    fn what_does_not_fit_is_said_as_of_its_text() {
        let mut misfits = Vec::new();
        let values = [Some(70_000i32.to_be_bytes()), None, Some(7i32.to_be_bytes())];
        let values = || values.iter().map(|value| value.as_ref().map(<[u8; 4]>::as_slice));
        let small = column(DataType::Int16, true);
        let array = array(Form::Int4, &small, 3, values(), &mut misfits).unwrap();
        assert_eq!((array.len(), array.null_count()), (3, 2));
        let said: Vec<_> = misfits
            .iter()
            .map(|m| (m.row, m.field, m.reason, m.detail.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                (0, 3, "out_of_range", "\"70000\" does not fit smallint"),
                (1, 3, "null_in_required", "expected smallint, found no value"),
            ]
        );
    }

    #[test]
    fn bytes_of_another_size_are_no_value_of_any_type() {
        for data_type in [
            DataType::Int16,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Boolean,
            DataType::Date32,
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Decimal128(38, 2),
            DataType::Utf8,
        ] {
            for form in [
                Form::Bool,
                Form::Int4,
                Form::Float8,
                Form::Numeric,
                Form::Date,
                Form::Zoned,
                Form::Uuid,
            ] {
                let mut misfits = Vec::new();
                let values = [Some(&[1u8, 2, 3][..])];
                let column = column(data_type.clone(), false);
                assert!(
                    array(form, &column, 0, values.into_iter(), &mut misfits).is_none(),
                    "{form:?}"
                );
                assert!(misfits.is_empty());
            }
        }
    }
}
