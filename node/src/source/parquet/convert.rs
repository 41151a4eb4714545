//! From the file's arrays to the declared types, and which rows can't be taken over.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use crate::source::Unreadable;
use crate::source::misfit::{self, NULL_IN_REQUIRED, shown, unsound, word};

/// The values of a column in its declared type, with no value where one can't be taken over; such rows are noted in
/// `bad`, with their place in the array.
pub(super) fn convert(column: &Column, values: &ArrayRef, bad: &mut Vec<Unreadable>) -> Result<ArrayRef, Failure> {
    let mut note = |row: usize, reason: &'static str, detail: String| {
        bad.push(Unreadable {
            row: row as u64,
            column: Some(column.name.clone()),
            reason,
            detail,
        });
    };
    let converted = match values.data_type() {
        DataType::BinaryView => texts(values.as_binary_view(), &mut note),
        DataType::Utf8View => {
            let all = values.as_string_view().clone().to_binary_view();
            texts(&all, &mut note)
        }
        _ => {
            let converted = cast(values, &column.data_type).map_err(|error| {
                Failure::permanent(format!(
                    "column {} can't be read as {}: {error}",
                    column.name,
                    word(&column.data_type)
                ))
            })?;
            // What the declared type can't hold became no value: a moment too far away.
            if converted.null_count() > values.null_count() {
                for row in (0..values.len()).filter(|row| converted.is_null(*row) && values.is_valid(*row)) {
                    let detail = format!("a value does not fit {}", word(&column.data_type));
                    note(row, "out_of_range", detail);
                }
            }
            converted
        }
    };
    if column.required && values.null_count() > 0 {
        for row in (0..values.len()).filter(|row| values.is_null(*row)) {
            note(row, NULL_IN_REQUIRED, misfit::no_value(&column.data_type));
        }
    }
    Ok(converted)
}

fn texts(values: &BinaryViewArray, note: &mut impl FnMut(usize, &'static str, String)) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(values.len(), values.iter().flatten().map(<[u8]>::len).sum());
    for (row, value) in values.iter().enumerate() {
        let text = value.and_then(|bytes| match unsound(bytes) {
            None => std::str::from_utf8(bytes).ok(),
            Some(reason) => {
                note(row, reason, format!("found {}", shown(bytes)));
                None
            }
        });
        builder.append_option(text);
    }
    Arc::new(builder.finish())
}

/// Bytes that each row takes in memory, by which segments are bounded: the same for the same rows, however they are read.
pub(super) fn sizes(arrays: &[ArrayRef]) -> Vec<u64> {
    let rows = arrays.first().map_or(0, |array| array.len());
    let mut sizes = vec![0u64; rows];
    for array in arrays {
        let views = match array.data_type() {
            DataType::Utf8View => array.as_string_view().views(),
            DataType::BinaryView => array.as_binary_view().views(),
            other => {
                let width = other.primitive_width().unwrap_or(1) as u64;
                sizes.iter_mut().for_each(|size| *size += width);
                continue;
            }
        };
        for (row, (size, view)) in sizes.iter_mut().zip(views).enumerate() {
            // The length of a view is its lowest 32 bits. Where there is no value, they are whatever was there before.
            if array.is_valid(row) {
                *size += u64::from(*view as u32);
            }
        }
    }
    sizes
}
