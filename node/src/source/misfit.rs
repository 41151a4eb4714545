//! Why a value is none of its column's type, in words that all kinds of sources share.

use datafusion::arrow::datatypes::DataType;

use super::value::Why;
use super::{EXCERPT, excerpt};

/// The reason of a row without a value where one is required.
pub(super) const NULL_IN_REQUIRED: &str = "null_in_required";

/// What such a row is told.
pub(super) fn no_value(data_type: &DataType) -> String {
    format!("expected {}, found no value", word(data_type))
}

/// The reason why bytes can't be stored as text.
pub(super) fn unsound(text: &[u8]) -> Option<&'static str> {
    if std::str::from_utf8(text).is_err() {
        Some("bad_utf8")
    } else if text.contains(&0) {
        // PostgreSQL can't hold it.
        Some("nul_byte")
    } else {
        None
    }
}

/// A value as part of a message.
pub(super) fn shown(text: &[u8]) -> String {
    let shown = excerpt(text, EXCERPT);
    if text.len() > EXCERPT && shown.ends_with("...") {
        format!("\"{shown}\" ({} bytes)", text.len())
    } else {
        format!("\"{shown}\"")
    }
}

/// The reason of a value that doesn't read as the type.
pub(super) fn bad(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => "bad_int",
        DataType::Float32 | DataType::Float64 => "bad_float",
        DataType::Boolean => "bad_bool",
        DataType::Date32 => "bad_date",
        DataType::Timestamp(_, _) => "bad_timestamp",
        DataType::Decimal128(_, _) => "bad_decimal",
        _ => "bad_text",
    }
}

/// The type as the pipeline file calls it.
pub(super) fn word(data_type: &DataType) -> String {
    haulage_plan::types::name(data_type)
}

/// Reason and detail of a text that is no value of the type.
pub(super) fn of_text(data_type: &DataType, text: &[u8], why: Why) -> (&'static str, String) {
    let expected = word(data_type);
    match (unsound(text), why) {
        (Some(reason), _) => (reason, format!("expected {expected}, found {}", shown(text))),
        (None, Why::Range) => ("out_of_range", format!("{} does not fit {expected}", shown(text))),
        (None, Why::Bad) => (bad(data_type), format!("expected {expected}, found {}", shown(text))),
        (None, Why::Offset) => (
            bad(data_type),
            format!(
                "{} names an offset or a time zone; declare the column timestamptz",
                shown(text)
            ),
        ),
        (None, Why::Scale) => (
            bad(data_type),
            format!("{} has more digits after the point than {expected}", shown(text)),
        ),
    }
}
