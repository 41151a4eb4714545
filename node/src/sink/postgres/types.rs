//! From Arrow types to PostgreSQL's: what a new table gets, and what an existing column can take.
//!
//! A conversion is listed only if no value changes by it. Narrowing of integers is listed because a value that doesn't
//! fit is an error that names it, never a wrong number. A text goes into the columns of types that no step could CAST to,
//! such as `inet` or an array: the server reads it while it is staged, and refuses what is none. Everything else is a misfit that the user answers with a CAST in
//! the step's SQL, where it can be seen.

use datafusion::arrow::datatypes::{DataType, TimeUnit};

/// Digits of a second that PostgreSQL keeps at most.
pub(super) const MICROSECONDS: u8 = 6;

/// What a PostgreSQL column holds, as far as the binary format cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// Precision and scale; `None` holds any number.
    Numeric(Option<(i32, i32)>),
    /// text, varchar, char, citext and enums: all read their text.
    Text,
    /// varchar of so many characters at most.
    Varchar(u32),
    Json,
    Jsonb,
    Uuid,
    Bytea,
    Date,
    /// With so many digits of a second, at most six. So are the next two.
    Time(u8),
    Timestamp(u8),
    Timestamptz(u8),
    /// Anything else that reads a text: intervals, networks, arrays, ranges, ...
    Input,
    /// What would round or cut a text that it reads: `interval(0)`, `time(3)[]`, `name`.
    Other,
}

impl Kind {
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Varchar(_))
    }
}

/// How one column's values are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoding {
    /// The Arrow type that a batch's column is cast to first, all at once and checked.
    pub(super) arrow: DataType,
    /// What is written for each of its values.
    pub(super) wire: Wire,
}

/// The binary form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Null,
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Text,
    /// A text for the type's input function: all of the load is written as texts then.
    Input,
    /// Text of so many characters; blanks behind them would be cut.
    Varchar(u32),
    Jsonb,
    Uuid,
    Bytea,
    Date,
    Time,
    Timestamp,
}

/// The type of a column in a new table. `None` if PostgreSQL has no type that fits.
pub(crate) fn column_type(arrow: &DataType) -> Option<String> {
    let name = match arrow {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric(20,0)",
        DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytea",
        DataType::Date32 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 && i16::from(*scale) <= i16::from(*precision) =>
        {
            return Some(format!("numeric({precision},{scale})"));
        }
        DataType::Dictionary(_, values) => return column_type(values),
        _ => return None,
    };
    Some(name.to_owned())
}

/// What a PostgreSQL base type holds, from its name in `pg_type` and the column's type modifier.
pub(super) fn kind(base: &str, is_enum: bool, modifier: i32) -> Kind {
    match base {
        _ if is_enum => Kind::Text,
        "bool" => Kind::Bool,
        "int2" => Kind::Int2,
        "int4" => Kind::Int4,
        "int8" => Kind::Int8,
        "float4" => Kind::Float4,
        "float8" => Kind::Float8,
        // The modifier is (precision << 16 | scale) + 4; the scale has 11 bits and a sign since version 15.
        "numeric" if modifier >= 4 => {
            let packed = modifier - 4;
            let scale = ((packed & 0x7ff) ^ 1024) - 1024;
            Kind::Numeric(Some(((packed >> 16) & 0xffff, scale)))
        }
        "numeric" => Kind::Numeric(None),
        "varchar" if modifier >= 4 => Kind::Varchar((modifier - 4) as u32),
        "text" | "varchar" | "bpchar" | "citext" => Kind::Text,
        "json" => Kind::Json,
        "jsonb" => Kind::Jsonb,
        "uuid" => Kind::Uuid,
        "bytea" => Kind::Bytea,
        "date" => Kind::Date,
        "time" => Kind::Time(second_digits(modifier)),
        "timestamp" => Kind::Timestamp(second_digits(modifier)),
        "timestamptz" => Kind::Timestamptz(second_digits(modifier)),
        // They cut what is too long.
        "name" | "char" | "_name" | "_char" => Kind::Other,
        other if modifier >= 0 && ROUNDED.contains(&other.trim_start_matches('_')) => Kind::Other,
        _ => Kind::Input,
    }
}

/// Types, also of an array's elements, that round to the digits which a column keeps.
const ROUNDED: [&str; 6] = ["numeric", "time", "timetz", "interval", "timestamp", "timestamptz"];

/// The digits of a second that a column keeps; others are rounded.
fn second_digits(modifier: i32) -> u8 {
    u8::try_from(modifier).unwrap_or(MICROSECONDS).min(MICROSECONDS)
}

/// The digits of a second that values have. Nanoseconds are cut to the microseconds that PostgreSQL keeps.
fn digits_of(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond | TimeUnit::Nanosecond => MICROSECONDS,
    }
}

/// How values of an Arrow type are written into a column of this kind. `None` is a misfit.
pub(super) fn encoding(arrow: &DataType, kind: Kind) -> Option<Encoding> {
    let encoding = |arrow: DataType, wire: Wire| Some(Encoding { arrow, wire });
    match arrow {
        DataType::Dictionary(_, values) => self::encoding(values, kind),
        DataType::Null if kind != Kind::Other => encoding(DataType::Null, Wire::Null),
        DataType::Boolean if kind == Kind::Bool => encoding(DataType::Boolean, Wire::Bool),
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64 => integer(arrow, kind),
        DataType::Float32 => match kind {
            Kind::Float4 => encoding(DataType::Float32, Wire::Float4),
            Kind::Float8 => encoding(DataType::Float64, Wire::Float8),
            _ => None,
        },
        DataType::Float64 if kind == Kind::Float8 => encoding(DataType::Float64, Wire::Float8),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => decimal(*precision, *scale, kind),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => match kind {
            Kind::Text | Kind::Json => encoding(arrow.clone(), Wire::Text),
            Kind::Varchar(most) => encoding(arrow.clone(), Wire::Varchar(most)),
            Kind::Jsonb => encoding(arrow.clone(), Wire::Jsonb),
            Kind::Uuid => encoding(arrow.clone(), Wire::Uuid),
            Kind::Input | Kind::Bytea | Kind::Numeric(None) | Kind::Time(MICROSECONDS) => {
                encoding(arrow.clone(), Wire::Input)
            }
            _ => None,
        },
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView if kind == Kind::Bytea => {
            encoding(DataType::Binary, Wire::Bytea)
        }
        DataType::Date32 => match kind {
            Kind::Date => encoding(DataType::Date32, Wire::Date),
            Kind::Timestamp(_) => encoding(DataType::Timestamp(TimeUnit::Microsecond, None), Wire::Timestamp),
            _ => None,
        },
        // Fewer digits than values may have would round them without a word.
        DataType::Time32(unit) | DataType::Time64(unit) => match kind {
            Kind::Time(digits) if digits >= digits_of(*unit) => {
                encoding(DataType::Time64(TimeUnit::Microsecond), Wire::Time)
            }
            _ => None,
        },
        DataType::Timestamp(unit, zone) => match (kind, zone) {
            (Kind::Timestamp(digits), None) | (Kind::Timestamptz(digits), Some(_)) if digits >= digits_of(*unit) => {
                encoding(
                    DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
                    Wire::Timestamp,
                )
            }
            _ => None,
        },
        _ => None,
    }
}

fn integer(arrow: &DataType, kind: Kind) -> Option<Encoding> {
    let narrow = matches!(
        arrow,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16
    );
    let middle = matches!(arrow, DataType::Int32 | DataType::UInt32);
    let (arrow, wire) = match kind {
        Kind::Int2 => (DataType::Int16, Wire::Int2),
        Kind::Int4 => (DataType::Int32, Wire::Int4),
        Kind::Int8 => (DataType::Int64, Wire::Int8),
        // Every integer of these widths has an exact floating point number.
        Kind::Float4 if narrow => (DataType::Float32, Wire::Float4),
        Kind::Float8 if narrow || middle => (DataType::Float64, Wire::Float8),
        Kind::Numeric(None) => (DataType::Decimal128(20, 0), Wire::Numeric),
        // One with a negative scale keeps tens or hundreds, and would round without a word.
        Kind::Numeric(Some((_, digits))) if digits >= 0 => (DataType::Decimal128(20, 0), Wire::Numeric),
        _ => return None,
    };
    Some(Encoding { arrow, wire })
}

fn decimal(precision: u8, scale: i8, kind: Kind) -> Option<Encoding> {
    if scale < 0 {
        return None;
    }
    let (arrow, wire) = match kind {
        Kind::Numeric(None) => (DataType::Decimal128(precision, scale), Wire::Numeric),
        // A smaller scale would round without a word.
        Kind::Numeric(Some((_, digits))) if digits >= i32::from(scale) => {
            (DataType::Decimal128(precision, scale), Wire::Numeric)
        }
        Kind::Int2 if scale == 0 => (DataType::Int16, Wire::Int2),
        Kind::Int4 if scale == 0 => (DataType::Int32, Wire::Int4),
        Kind::Int8 if scale == 0 => (DataType::Int64, Wire::Int8),
        _ => return None,
    };
    Some(Encoding { arrow, wire })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_conversions_that_keep_every_value() {
        let tz = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for (arrow, kind, fits) in [
            (DataType::Int32, Kind::Int8, true),
            (DataType::Int64, Kind::Int4, true),
            (DataType::Int32, Kind::Float4, false),
            (DataType::Int64, Kind::Float8, false),
            (DataType::UInt64, Kind::Numeric(None), true),
            (DataType::Int32, Kind::Text, false),
            (DataType::Float64, Kind::Float4, false),
            (DataType::Float64, Kind::Numeric(None), false),
            (DataType::Decimal128(10, 2), Kind::Numeric(Some((8, 2))), true),
            (DataType::Decimal128(10, 3), Kind::Numeric(Some((12, 2))), false),
            (DataType::Utf8View, Kind::Jsonb, true),
            (DataType::Utf8, Kind::Int4, false),
            (DataType::Utf8, Kind::Numeric(None), true),
            (DataType::Utf8, Kind::Numeric(Some((5, 2))), false),
            (DataType::Utf8, Kind::Time(6), true),
            (DataType::Utf8, Kind::Time(0), false),
            (DataType::Utf8View, Kind::Input, true),
            (DataType::Int64, Kind::Input, false),
            (DataType::Utf8, Kind::Other, false),
            (DataType::Decimal128(38, 10), Kind::Numeric(None), true),
            (DataType::Int64, Kind::Numeric(Some((5, 0))), true),
            (DataType::Int64, Kind::Numeric(Some((5, -1))), false),
            (DataType::Decimal128(5, 0), Kind::Numeric(Some((5, -1))), false),
            (DataType::Date32, Kind::Timestamp(6), true),
            (DataType::Date32, Kind::Timestamp(0), true),
            (DataType::Date32, Kind::Timestamptz(6), false),
            (
                DataType::Timestamp(TimeUnit::Nanosecond, None),
                Kind::Timestamp(6),
                true,
            ),
            (
                DataType::Timestamp(TimeUnit::Microsecond, None),
                Kind::Timestamp(5),
                false,
            ),
            (
                DataType::Timestamp(TimeUnit::Millisecond, None),
                Kind::Timestamp(3),
                true,
            ),
            (
                DataType::Timestamp(TimeUnit::Millisecond, None),
                Kind::Timestamp(2),
                false,
            ),
            (DataType::Timestamp(TimeUnit::Second, None), Kind::Timestamp(0), true),
            (tz.clone(), Kind::Timestamp(6), false),
            (tz.clone(), Kind::Timestamptz(6), true),
            (tz, Kind::Timestamptz(0), false),
            (DataType::Time64(TimeUnit::Microsecond), Kind::Time(6), true),
            (DataType::Time64(TimeUnit::Microsecond), Kind::Time(0), false),
            (DataType::Time32(TimeUnit::Second), Kind::Time(0), true),
            (DataType::Utf8View, Kind::Varchar(3), true),
            (DataType::Null, Kind::Date, true),
        ] {
            assert_eq!(encoding(&arrow, kind).is_some(), fits, "{arrow} into {kind:?}");
        }
    }

    #[test]
    fn reads_modifiers() {
        for (base, modifier, expected) in [
            ("timestamp", -1, Kind::Timestamp(6)),
            ("timestamp", 0, Kind::Timestamp(0)),
            ("timestamptz", 3, Kind::Timestamptz(3)),
            ("time", 6, Kind::Time(6)),
            ("varchar", -1, Kind::Text),
            ("varchar", 7, Kind::Varchar(3)),
            ("bpchar", 7, Kind::Text),
            ("interval", -1, Kind::Input),
            ("interval", 0, Kind::Other),
            ("_numeric", -1, Kind::Input),
            ("_numeric", 655_366, Kind::Other),
            ("_varchar", 7, Kind::Input),
            ("bit", 8, Kind::Input),
            ("name", -1, Kind::Other),
        ] {
            assert_eq!(kind(base, false, modifier), expected, "{base} {modifier}");
        }
        assert_eq!(
            kind("numeric", false, ((20 << 16) | 3) + 4),
            Kind::Numeric(Some((20, 3)))
        );
        assert_eq!(
            kind("numeric", false, ((5 << 16) | (-2 & 0x7ff)) + 4),
            Kind::Numeric(Some((5, -2)))
        );
        assert_eq!(kind("numeric", false, -1), Kind::Numeric(None));
    }
}
