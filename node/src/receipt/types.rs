//! In which type a column's values come back from where they were written.

use datafusion::arrow::datatypes::{DataType, TimeUnit};

/// How a column of a target is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Back {
    /// As this type, which gives the values that were written.
    As(DataType),
    /// Not at all: the column keeps its values otherwise than they were written, or they can't be read as text. Why.
    LeftOut(String),
    /// The column is no longer one that such values go to, or is gone. What it is now.
    Changed(String),
}

/// A type as it stands in the log; [`std::str::FromStr`] of [`DataType`] reads it.
pub(crate) fn name_of(data_type: &DataType) -> String {
    data_type.to_string()
}

/// The type in which values of `arrow` are read from their text, if there is one.
pub(crate) fn read_as_text(arrow: &DataType) -> Option<DataType> {
    Some(match arrow {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Boolean
        | DataType::Date32
        | DataType::Decimal128(_, _) => arrow.clone(),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => haulage_plan::types::timestamptz(),
        DataType::Dictionary(_, values) => return read_as_text(values),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_in_the_log_is_read_again() {
        let types = [
            DataType::Int32,
            DataType::Utf8View,
            DataType::Decimal128(12, 2),
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            haulage_plan::types::timestamptz(),
            DataType::Date32,
            DataType::Boolean,
            DataType::Time64(TimeUnit::Microsecond),
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        ];
        for written in types {
            assert_eq!(crate::receipt::type_of(&name_of(&written)), Some(written));
        }
        assert_eq!(crate::receipt::type_of("no type"), None);
    }
}
