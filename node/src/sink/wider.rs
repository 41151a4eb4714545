//! What "wider" means, in one place for all destinations: which type holds what is there and what a load brings.
//!
//! A destination says what its column holds, and gets what the column has to hold; how that is called is its own matter.

use datafusion::arrow::datatypes::DataType;

/// Decimal digits of the largest values of integers.
const SMALL_DIGITS: i32 = 5;
const INT_DIGITS: i32 = 10;
const BIG_DIGITS: i32 = 19;
const UNSIGNED_BIG_DIGITS: i32 = 20;

/// What a column holds, of what can become wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Integers of 16 bits.
    Small,
    /// Of 32.
    Int,
    /// Of 64.
    Big,
    /// Decimal numbers with so many digits before and behind the point.
    Digits(i32, i32),
    Float,
    Double,
    Date,
    /// Moments without a zone.
    Timestamp,
}

/// What holds all that a column holds and all that a load of type `arrow` brings; `None` if the column does already, or if
/// nothing does.
pub(super) fn wider(there: Held, arrow: &DataType) -> Option<Held> {
    match (there, arrow) {
        (_, DataType::Dictionary(_, values)) => wider(there, values),
        (Held::Small | Held::Int | Held::Big | Held::Digits(..), _) if digits(arrow).is_some() => exact(there, arrow),
        (Held::Small, DataType::Float32) => Some(Held::Float),
        (Held::Small | Held::Int | Held::Float, DataType::Float64) => Some(Held::Double),
        (Held::Date, DataType::Timestamp(_, None)) => Some(Held::Timestamp),
        _ => None,
    }
}

/// Digits before and behind the point.
fn digits(arrow: &DataType) -> Option<(i32, i32)> {
    Some(match arrow {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => (SMALL_DIGITS, 0),
        DataType::Int32 | DataType::UInt16 => (INT_DIGITS, 0),
        DataType::Int64 | DataType::UInt32 => (BIG_DIGITS, 0),
        DataType::UInt64 => (UNSIGNED_BIG_DIGITS, 0),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            (i32::from(*precision) - i32::from(*scale), i32::from(*scale))
        }
        _ => return None,
    })
}

/// The exact numbers that hold both.
fn exact(there: Held, arrow: &DataType) -> Option<Held> {
    let (whole, fraction) = digits(arrow)?;
    let (has_whole, has_fraction) = match there {
        Held::Small => (SMALL_DIGITS, 0),
        Held::Int => (INT_DIGITS, 0),
        Held::Big => (BIG_DIGITS, 0),
        Held::Digits(whole, fraction) => (whole, fraction),
        Held::Float | Held::Double | Held::Date | Held::Timestamp => return None,
    };
    if whole <= has_whole && fraction <= has_fraction {
        return None;
    }
    let decimal = Held::Digits(whole.max(has_whole), fraction.max(has_fraction));
    Some(match (there, arrow) {
        (Held::Digits(..), _) => decimal,
        (_, DataType::Int8 | DataType::Int16 | DataType::UInt8) => Held::Small,
        (_, DataType::Int32 | DataType::UInt16) => Held::Int,
        (_, DataType::Int64 | DataType::UInt32) => Held::Big,
        _ => decimal,
    })
}
