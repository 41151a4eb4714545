//! Decimals against a bound, exactly, in a dialect that keeps them as text.
//!
//! All values of a column have its scale, and so has the bound. Without their signs, and filled up with zeros in front to
//! one length, they are then ordered as texts as they are as numbers.

use datafusion::arrow::datatypes::{Decimal128Type, DecimalType as _};

/// Longer than any decimal: 38 digits, a sign, a point, and a zero before it.
const WIDTH: usize = 42;

/// As rows are written.
pub(super) fn written(value: i128, precision: u8, scale: i8) -> String {
    Decimal128Type::format_decimal(value, precision, scale)
}

/// Where a column is less than the bound, or more.
pub(super) fn beyond(column: &str, sign: &str, bound: &str) -> String {
    let zeros = "0".repeat(WIDTH);
    let size = format!("substr('{zeros}' || ltrim({column}, '-'), -{WIDTH})");
    let negative = format!("substr({column}, 1, 1) = '-'");
    let bound_is_negative = bound.starts_with('-');
    let digits = bound.trim_start_matches('-');
    let bound = format!("'{digits:0>WIDTH$}'");
    match (sign, bound_is_negative) {
        ("<", false) => format!("({negative} OR {size} < {bound})"),
        ("<", true) => format!("({negative} AND {size} > {bound})"),
        (_, false) => format!("(NOT {negative} AND {size} > {bound})"),
        (_, true) => format!("(NOT {negative} OR {size} < {bound})"),
    }
}
