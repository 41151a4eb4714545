//! From the JSON text of a value to a place in an Arrow array.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use datafusion::arrow::array::{ArrayRef, BooleanBuilder, PrimitiveBuilder, StringBuilder};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use crate::source::misfit::{self, NULL_IN_REQUIRED, bad, shown, word};
use crate::source::value::{self, Why};

/// Reason and detail of a value that doesn't fit its column.
pub(in crate::source) type Misfit = (&'static str, String);

/// One column while a batch is filled.
pub(in crate::source) struct ColumnBuilder {
    required: bool,
    data_type: DataType,
    values: Values,
}

enum Values {
    Int16(PrimitiveBuilder<Int16Type>),
    Int32(PrimitiveBuilder<Int32Type>),
    Int64(PrimitiveBuilder<Int64Type>),
    Float32(PrimitiveBuilder<Float32Type>),
    Float64(PrimitiveBuilder<Float64Type>),
    Bool(BooleanBuilder),
    Date(PrimitiveBuilder<Date32Type>),
    Timestamp(PrimitiveBuilder<TimestampMicrosecondType>, bool),
    Decimal(PrimitiveBuilder<Decimal128Type>, u8, i8),
    Text(StringBuilder),
}

/// A value by what JSON calls it.
enum Found<'v> {
    Null,
    Bool(bool),
    Number(&'v str),
    /// With its quotes, and escapes as they stand.
    Text(&'v str),
    Nested(&'v str),
}

/// What a value is, for a person.
pub(super) fn what(json: &str) -> String {
    Found::of(json).what()
}

impl<'v> Found<'v> {
    fn of(json: &'v str) -> Self {
        match json.as_bytes().first() {
            Some(b'n') | None => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => Self::Text(json),
            Some(b'{' | b'[') => Self::Nested(json),
            Some(_) => Self::Number(json),
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Null => "no value".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(number) => format!("the number {}", crate::source::excerpt(number.as_bytes(), 60)),
            Self::Text(text) => {
                let text = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
                format!("the text {}", shown(text.as_bytes()))
            }
            Self::Nested(json) if json.starts_with('{') => "an object".to_owned(),
            Self::Nested(_) => "an array".to_owned(),
        }
    }
}

impl ColumnBuilder {
    /// Permanent failure for a type that JSON can't hold.
    pub(in crate::source) fn new(column: &Column, rows: usize) -> Result<Self, Failure> {
        let data_type = column.data_type.clone();
        let values = match &data_type {
            DataType::Int16 => Values::Int16(PrimitiveBuilder::with_capacity(rows)),
            DataType::Int32 => Values::Int32(PrimitiveBuilder::with_capacity(rows)),
            DataType::Int64 => Values::Int64(PrimitiveBuilder::with_capacity(rows)),
            DataType::Float32 => Values::Float32(PrimitiveBuilder::with_capacity(rows)),
            DataType::Float64 => Values::Float64(PrimitiveBuilder::with_capacity(rows)),
            DataType::Boolean => Values::Bool(BooleanBuilder::with_capacity(rows)),
            DataType::Date32 => Values::Date(PrimitiveBuilder::with_capacity(rows)),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let builder = PrimitiveBuilder::with_capacity(rows).with_data_type(data_type.clone());
                Values::Timestamp(builder, zone.is_some())
            }
            DataType::Decimal128(precision, scale) => {
                let builder = PrimitiveBuilder::with_capacity(rows).with_data_type(data_type.clone());
                Values::Decimal(builder, *precision, *scale)
            }
            DataType::Utf8 => Values::Text(StringBuilder::with_capacity(rows, rows * 8)),
            _ => {
                return Err(Failure::permanent(format!(
                    "column {} can't be read from JSON as {}; declare it as another type",
                    column.name, column.data_type
                )));
            }
        };
        Ok(Self {
            required: column.required,
            data_type,
            values,
        })
    }

    /// Appends the value that this JSON text is. If it doesn't fit, nothing is appended.
    pub(super) fn append(&mut self, json: &str) -> Result<(), Misfit> {
        let found = Found::of(json);
        let data_type = &self.data_type;
        match (&mut self.values, found) {
            (_, Found::Null) => self.append_null(),
            (Values::Int16(values), Found::Number(text)) => push(values, data_type, text, value::int),
            (Values::Int32(values), Found::Number(text)) => push(values, data_type, text, value::int),
            (Values::Int64(values), Found::Number(text)) => push(values, data_type, text, value::int),
            (Values::Float32(values), Found::Number(text)) => push(values, data_type, text, value::float),
            (Values::Float64(values), Found::Number(text)) => push(values, data_type, text, value::float),
            // JSON has no numbers for these. So files are written that Haulage writes.
            (Values::Float32(values), Found::Text(text)) if is_no_number(text) => {
                push(values, data_type, text.trim_matches('"'), value::float)
            }
            (Values::Float64(values), Found::Text(text)) if is_no_number(text) => {
                push(values, data_type, text.trim_matches('"'), value::float)
            }
            (Values::Decimal(values, precision, scale), Found::Number(text)) => {
                let (precision, scale) = (*precision, *scale);
                push(values, data_type, text, |text| value::decimal(text, precision, scale))
            }
            (Values::Bool(values), Found::Bool(value)) => {
                values.append_value(value);
                Ok(())
            }
            (Values::Date(values), Found::Text(text)) => {
                push(values, data_type, &unescaped(data_type, text)?, value::date)
            }
            (Values::Timestamp(values, zoned), Found::Text(text)) => {
                let zoned = *zoned;
                let text = unescaped(data_type, text)?;
                push(values, data_type, &text, |text| value::timestamp(text, zoned))
            }
            (Values::Text(values), Found::Text(text)) => {
                values.append_value(&self::text(text)?);
                Ok(())
            }
            // Whatever else it is, its JSON is a text.
            (Values::Text(values), Found::Nested(_) | Found::Number(_) | Found::Bool(_)) => {
                values.append_value(json);
                Ok(())
            }
            (_, other) => Err((
                bad(data_type),
                format!("expected {}, found {}", word(data_type), other.what()),
            )),
        }
    }

    /// Appends no value. If the column has to have one, that is a misfit, and nothing is appended.
    pub(super) fn append_null(&mut self) -> Result<(), Misfit> {
        if self.required {
            return Err((NULL_IN_REQUIRED, misfit::no_value(&self.data_type)));
        }
        self.append_gap();
        Ok(())
    }

    /// Holds the place of a row that is left out later.
    pub(super) fn append_gap(&mut self) {
        match &mut self.values {
            Values::Int16(values) => values.append_null(),
            Values::Int32(values) => values.append_null(),
            Values::Int64(values) => values.append_null(),
            Values::Float32(values) => values.append_null(),
            Values::Float64(values) => values.append_null(),
            Values::Bool(values) => values.append_null(),
            Values::Date(values) => values.append_null(),
            Values::Timestamp(values, _) => values.append_null(),
            Values::Decimal(values, _, _) => values.append_null(),
            Values::Text(values) => values.append_null(),
        }
    }

    /// Rows appended since the last [`ColumnBuilder::finish`].
    pub(super) fn rows(&self) -> usize {
        use datafusion::arrow::array::ArrayBuilder as _;
        match &self.values {
            Values::Int16(values) => values.len(),
            Values::Int32(values) => values.len(),
            Values::Int64(values) => values.len(),
            Values::Float32(values) => values.len(),
            Values::Float64(values) => values.len(),
            Values::Bool(values) => values.len(),
            Values::Date(values) => values.len(),
            Values::Timestamp(values, _) => values.len(),
            Values::Decimal(values, _, _) => values.len(),
            Values::Text(values) => values.len(),
        }
    }

    /// The array of the rows appended so far; the builder is empty after it.
    pub(super) fn finish(&mut self) -> ArrayRef {
        match &mut self.values {
            Values::Int16(values) => Arc::new(values.finish()),
            Values::Int32(values) => Arc::new(values.finish()),
            Values::Int64(values) => Arc::new(values.finish()),
            Values::Float32(values) => Arc::new(values.finish()),
            Values::Float64(values) => Arc::new(values.finish()),
            Values::Bool(values) => Arc::new(values.finish()),
            Values::Date(values) => Arc::new(values.finish()),
            Values::Timestamp(values, _) => Arc::new(values.finish()),
            Values::Decimal(values, _, _) => Arc::new(values.finish()),
            Values::Text(values) => Arc::new(values.finish()),
        }
    }
}

fn push<T: ArrowPrimitiveType>(
    values: &mut PrimitiveBuilder<T>,
    data_type: &DataType,
    text: &str,
    parse: impl Fn(&[u8]) -> Result<T::Native, Why>,
) -> Result<(), Misfit> {
    let value = parse(text.as_bytes()).map_err(|why| misfit::of_text(data_type, text.as_bytes(), why))?;
    values.append_value(value);
    Ok(())
}

/// The text that a JSON string stands for in a column of texts.
pub(in crate::source) fn text(json: &str) -> Result<Cow<'_, str>, Misfit> {
    let text = unescaped(&DataType::Utf8, json)?;
    match misfit::unsound(text.as_bytes()) {
        Some(reason) => Err((reason, format!("found {}", shown(text.as_bytes())))),
        None => Ok(text),
    }
}

fn is_no_number(json: &str) -> bool {
    matches!(json, "\"NaN\"" | "\"Infinity\"" | "\"-Infinity\"")
}

/// The text that a JSON string stands for.
fn unescaped<'v>(data_type: &DataType, json: &'v str) -> Result<Cow<'v, str>, Misfit> {
    let inner = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        // Half of a surrogate pair is valid JSON and no character.
        _ => serde_json::from_str::<String>(json).map(Cow::Owned).map_err(|_| {
            let detail = format!(
                "expected {}, found a text with an escape that is no character: {}",
                word(data_type),
                shown(json.as_bytes())
            );
            (bad(data_type), detail)
        }),
    }
}
