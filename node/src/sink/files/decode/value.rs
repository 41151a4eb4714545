//! From texts, as `encode` writes values, to the values.

use std::sync::Arc;

use chrono::{NaiveDate, NaiveDateTime};
use datafusion::arrow::array::types::{
    ArrowTimestampType, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Date32Array, PrimitiveArray, StringArray, new_null_array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Date32Type, TimeUnit};
use datafusion::arrow::error::ArrowError;

/// Values, and the rows whose text is none of the type.
pub(in super::super) struct Parsed {
    pub(in super::super) array: ArrayRef,
    /// Row and text.
    pub(in super::super) unfit: Vec<(usize, String)>,
}

impl Parsed {
    pub(super) fn whole(array: ArrayRef) -> Self {
        Self {
            array,
            unfit: Vec::new(),
        }
    }
}

/// The values of texts, as a stored type.
pub(in super::super) fn parsed(texts: &StringArray, data_type: &DataType) -> Result<Parsed, ArrowError> {
    let array: ArrayRef = match data_type {
        DataType::Utf8 => Arc::new(texts.clone()),
        DataType::Binary => Arc::new(bytes(texts)),
        DataType::Boolean => {
            let value = |text| match text {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            };
            let values = texts.iter().map(|text| text.and_then(value));
            Arc::new(values.collect::<datafusion::arrow::array::BooleanArray>())
        }
        DataType::Decimal128(_, scale) => {
            // The cast rounds what has more digits than were ever written.
            let exact = |text: &str| digits_after_the_point(text) <= usize::try_from(*scale).unwrap_or_default();
            let exact: StringArray = texts.iter().map(|text| text.filter(|text| exact(text))).collect();
            cast(&exact, data_type)?
        }
        DataType::Date32 => days(texts)?,
        DataType::Timestamp(TimeUnit::Millisecond, _) => instants::<TimestampMillisecondType>(texts, data_type)?,
        DataType::Timestamp(TimeUnit::Microsecond, _) => instants::<TimestampMicrosecondType>(texts, data_type)?,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => instants::<TimestampNanosecondType>(texts, data_type)?,
        _ if texts.null_count() == texts.len() => new_null_array(data_type, texts.len()),
        _ => cast(texts, data_type)?,
    };
    let unfit = (0..texts.len()).filter(|row| array.is_null(*row) && texts.is_valid(*row));
    let unfit = unfit.map(|row| (row, texts.value(row).to_owned())).collect();
    Ok(Parsed { array, unfit })
}

fn bytes(texts: &StringArray) -> datafusion::arrow::array::BinaryArray {
    let mut values = BinaryBuilder::new();
    for text in texts {
        match text.and_then(hex) {
            Some(bytes) => values.append_value(bytes),
            None => values.append_null(),
        }
    }
    values.finish()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| u8::try_from(digit(&pair[0])? * 16 + digit(&pair[1])?).ok())
        .collect()
}

fn digits_after_the_point(text: &str) -> usize {
    let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
    fraction.trim_end_matches('0').len()
}

/// Dates. The cast knows years of four digits; others are written with a sign.
fn days(texts: &StringArray) -> Result<ArrayRef, ArrowError> {
    let array = cast(texts, &DataType::Date32)?;
    let known = array.as_primitive::<Date32Type>();
    if known.null_count() == texts.null_count() {
        return Ok(array);
    }
    let value = |row: usize| {
        if known.is_valid(row) || texts.is_null(row) {
            return known.is_valid(row).then(|| known.value(row));
        }
        let date: NaiveDate = texts.value(row).parse().ok()?;
        Some(Date32Type::from_naive_date(date))
    };
    let all: Date32Array = (0..texts.len()).map(value).collect();
    Ok(Arc::new(all))
}

/// Timestamps, likewise.
fn instants<T: ArrowTimestampType>(texts: &StringArray, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let array = cast(texts, data_type)?;
    let known = array.as_primitive::<T>();
    if known.null_count() == texts.null_count() {
        return Ok(array);
    }
    let value = |row: usize| {
        if known.is_valid(row) || texts.is_null(row) {
            return known.is_valid(row).then(|| known.value(row));
        }
        // In UTC, or in no zone.
        let text = texts.value(row);
        let text = text.strip_suffix('Z').unwrap_or(text);
        let instant: NaiveDateTime = text.parse().ok()?;
        T::from_naive_datetime(instant, None)
    };
    let all: PrimitiveArray<T> = (0..texts.len()).map(value).collect();
    Ok(Arc::new(all.with_data_type(data_type.clone())))
}
