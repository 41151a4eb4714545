//! The types a pipeline file can name, and the values a parameter can have.
//!
//! There is exactly one name for each type, so that two files never say the same thing in two ways; what other systems
//! call it is answered with the name to use.

use std::sync::Arc;

use datafusion::arrow::compute::kernels::cast_utils::parse_decimal;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, TimeUnit};
use datafusion::scalar::ScalarValue;

use crate::moment;

/// The types a file may name.
pub const NAMES: [&str; 11] = [
    "text",
    "smallint",
    "int",
    "bigint",
    "float",
    "double",
    "bool",
    "date",
    "timestamp",
    "timestamptz",
    "decimal(p,s)",
];

/// Decimal digits of the largest values of integers.
const INT16_DIGITS: u8 = 5;
const INT32_DIGITS: u8 = 10;
const INT64_DIGITS: u8 = 19;

/// A type's name that can't be used, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) message: String,
    pub(crate) suggestion: String,
}

/// The type of `timestamptz`: microseconds in UTC.
pub fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

/// The type that [`name`] has given a name to; `None` of one that a file can't name.
pub fn named(name: &str) -> Option<DataType> {
    parse(name).ok()
}

/// The type that a name stands for.
pub(crate) fn parse(name: &str) -> Result<DataType, Unknown> {
    let name = name.trim();
    Ok(match name {
        "text" => DataType::Utf8,
        "smallint" => DataType::Int16,
        "int" => DataType::Int32,
        "bigint" => DataType::Int64,
        "float" => DataType::Float32,
        "double" => DataType::Float64,
        "bool" => DataType::Boolean,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamptz" => timestamptz(),
        other => match other.strip_prefix("decimal") {
            Some(rest) => return decimal(other, rest.trim()),
            None => return Err(unknown(other)),
        },
    })
}

fn decimal(name: &str, rest: &str) -> Result<DataType, Unknown> {
    let bad = |suggestion: &str| Unknown {
        message: format!("`{name}` is not a decimal type"),
        suggestion: suggestion.to_owned(),
    };
    if rest.starts_with('(') && !rest.ends_with(')') {
        return Err(bad(
            "inside { } the comma splits it: put it in quotes, \"decimal(10,2)\"",
        ));
    }
    let inner = rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let Some((precision, scale)) = inner.and_then(|inner| inner.split_once(',')) else {
        return Err(bad("write digits in all and digits after the point: decimal(10,2)"));
    };
    match (precision.trim().parse::<u8>(), scale.trim().parse::<u8>()) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision => {
            Ok(DataType::Decimal128(precision, i8::try_from(scale).unwrap_or(38)))
        }
        _ => Err(bad(
            "digits in all are 1 to 38, digits after the point 0 to that number: decimal(10,2)",
        )),
    }
}

fn unknown(name: &str) -> Unknown {
    let lower = name.to_lowercase();
    let base = lower.split('(').next().unwrap_or(&lower).trim();
    let meant = match base {
        "string" | "str" | "varchar" | "char" | "character varying" | "utf8" | "object" | "uuid" | "json" => "text",
        "int2" | "int16" | "short" | "tinyint" | "int8_t" => "smallint",
        "integer" | "int4" | "int32" => "int",
        "int8" | "int64" | "long" | "biginteger" | "bigserial" => "bigint",
        "real" | "float4" | "float32" => "float",
        "float8" | "float64" | "double precision" | "number" => "double",
        "boolean" => "bool",
        "date32" => "date",
        "datetime" | "datetime64" | "timestamp without time zone" => "timestamp",
        "timestamp with time zone" | "timestamp_tz" | "datetimetz" => "timestamptz",
        "numeric" | "dec" | "money" => "decimal(p,s)",
        _ => {
            let known = NAMES.iter().copied();
            let near = NAMES
                .contains(&base)
                .then_some(base)
                .or_else(|| crate::diagnostics::closest(base, known));
            return Unknown {
                message: format!("unknown type `{name}`"),
                suggestion: match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the types are: {}", NAMES.join(", ")),
                },
            };
        }
    };
    Unknown {
        message: format!("unknown type `{name}`"),
        suggestion: format!("write `{meant}`"),
    }
}

/// What a file calls a type, or what Arrow calls one that a file can't name.
pub fn name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Int16 => "smallint".to_owned(),
        DataType::Int32 => "int".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        // What `->` finds in a JSON text.
        DataType::Union(_, _) => "JSON value".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// Whether every value of type `narrow` is a value of type `wide`, of the types that a file can name.
pub fn holds(wide: &DataType, narrow: &DataType) -> bool {
    let digits = match narrow {
        DataType::Int16 => Some((INT16_DIGITS, 0)),
        DataType::Int32 => Some((INT32_DIGITS, 0)),
        DataType::Int64 => Some((INT64_DIGITS, 0)),
        DataType::Decimal128(precision, scale) => Some((*precision, *scale)),
        _ => None,
    };
    match (narrow, wide) {
        (narrow, wide) if narrow == wide => true,
        (DataType::Int16, DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64)
        | (DataType::Int32, DataType::Int64 | DataType::Float64)
        | (DataType::Float32, DataType::Float64)
        | (DataType::Date32, DataType::Timestamp(_, None))
        // As everywhere: without a zone it is UTC.
        | (DataType::Timestamp(_, None), DataType::Timestamp(_, Some(_))) => true,
        (_, DataType::Decimal128(precision, scale)) => digits.is_some_and(|(whole, fraction)| {
            *scale >= fraction && precision.saturating_sub(scale.unsigned_abs()) >= whole - fraction.unsigned_abs()
        }),
        _ => false,
    }
}

/// The value that a text stands for; `Err` says how one is written.
pub fn value(data_type: &DataType, text: &str) -> Result<ScalarValue, String> {
    let trimmed = text.trim();
    let number = |what: &str| format!("write a whole number from {what}");
    match data_type {
        DataType::Utf8 => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
        DataType::Int16 => trimmed
            .parse()
            .map(|v| ScalarValue::Int16(Some(v)))
            .map_err(|_| number("-32768 to 32767")),
        DataType::Int32 => trimmed
            .parse()
            .map(|v| ScalarValue::Int32(Some(v)))
            .map_err(|_| number("-2147483648 to 2147483647")),
        DataType::Int64 => trimmed
            .parse()
            .map(|v| ScalarValue::Int64(Some(v)))
            .map_err(|_| number("-2^63 to 2^63 - 1")),
        DataType::Float32 => match trimmed.parse::<f32>() {
            Ok(v) if v.is_finite() => Ok(ScalarValue::Float32(Some(v))),
            _ => Err("write a number such as 1.5".to_owned()),
        },
        DataType::Float64 => match trimmed.parse::<f64>() {
            Ok(v) if v.is_finite() => Ok(ScalarValue::Float64(Some(v))),
            _ => Err("write a number such as 1.5".to_owned()),
        },
        DataType::Boolean => match trimmed {
            "true" => Ok(ScalarValue::Boolean(Some(true))),
            "false" => Ok(ScalarValue::Boolean(Some(false))),
            _ => Err("write true or false".to_owned()),
        },
        DataType::Date32 => moment::date(trimmed.as_bytes())
            .map(|days| ScalarValue::Date32(Some(days)))
            .map_err(|_| "write a date as YYYY-MM-DD".to_owned()),
        DataType::Timestamp(_, zone) => timestamp(trimmed, zone.clone()),
        DataType::Decimal128(precision, scale) => {
            let fits = trimmed
                .split_once('.')
                .is_none_or(|(_, digits)| digits.len() <= usize::from(scale.unsigned_abs()));
            let plain = trimmed
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+'));
            match parse_decimal::<Decimal128Type>(trimmed, *precision, *scale) {
                Ok(value) if fits && plain && !trimmed.is_empty() => {
                    Ok(ScalarValue::Decimal128(Some(value), *precision, *scale))
                }
                _ => Err(format!(
                    "write at most {precision} digits, {scale} of them after the point"
                )),
            }
        }
        other => Err(format!("parameters can't be of type {}", name(other))),
    }
}

fn timestamp(text: &str, zone: Option<Arc<str>>) -> Result<ScalarValue, String> {
    let micros = moment::timestamp(text.as_bytes(), zone.is_some()).map_err(|_| match zone {
        None => "write a moment as YYYY-MM-DDTHH:MM:SS, without a zone".to_owned(),
        Some(_) => {
            "write a moment as YYYY-MM-DDTHH:MM:SS, with Z or an offset as +02:00; without one it is UTC".to_owned()
        }
    })?;
    Ok(ScalarValue::TimestampMicrosecond(Some(micros), zone))
}

/// A value as a text for paths: `2013-01-01`, `42`, `true`.
pub(crate) fn text(value: &ScalarValue) -> String {
    match value {
        ScalarValue::Utf8(Some(text)) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_per_type_and_the_name_for_others() {
        assert_eq!(parse("decimal(10, 2)"), Ok(DataType::Decimal128(10, 2)));
        for known in NAMES.iter().filter(|known| **known != "decimal(p,s)") {
            assert_eq!(name(&parse(known).expect(known)), *known);
        }
        for (other, meant) in [
            ("string", "write `text`"),
            ("VARCHAR(20)", "write `text`"),
            ("integer", "write `int`"),
            ("float64", "write `double`"),
            ("datetime", "write `timestamp`"),
            ("numeric(10,2)", "write `decimal(p,s)`"),
            ("INT", "did you mean `int`?"),
            ("txet", "did you mean `text`?"),
            (
                "decimal",
                "write digits in all and digits after the point: decimal(10,2)",
            ),
            (
                "decimal(10",
                "inside { } the comma splits it: put it in quotes, \"decimal(10,2)\"",
            ),
            (
                "decimal(50,2)",
                "digits in all are 1 to 38, digits after the point 0 to that number: decimal(10,2)",
            ),
        ] {
            assert_eq!(parse(other).expect_err(other).suggestion, meant, "{other}");
        }
    }

    #[test]
    fn a_wider_type_holds_every_value_of_a_narrower_one() {
        for (wide, narrow, holds_it) in [
            ("bigint", "int", true),
            ("int", "bigint", false),
            ("int", "int", true),
            ("double", "int", true),
            ("float", "int", false),
            ("double", "bigint", false),
            ("decimal(12,2)", "int", true),
            ("decimal(11,2)", "int", false),
            ("decimal(10,2)", "decimal(8,2)", true),
            ("decimal(10,4)", "decimal(8,2)", true),
            ("decimal(10,4)", "decimal(9,2)", false),
            ("timestamp", "date", true),
            ("date", "timestamp", false),
            ("timestamptz", "timestamp", true),
            ("text", "int", false),
            ("int", "text", false),
        ] {
            let (wide, narrow) = (parse(wide).expect(wide), parse(narrow).expect(narrow));
            assert_eq!(holds(&wide, &narrow), holds_it, "{wide} {narrow}");
        }
    }

    #[test]
    fn values_are_typed_strictly() {
        let ok = |type_name: &str, value_text: &str| {
            text(&value(&parse(type_name).expect("type"), value_text).expect("value"))
        };
        assert_eq!(ok("date", "2013-01-31"), "2013-01-31");
        assert_eq!(ok("int", "-7"), "-7");
        assert_eq!(ok("bool", "true"), "true");
        assert_eq!(ok("text", " a'b "), " a'b ");
        assert_eq!(
            value(&DataType::Decimal128(6, 2), "12.5"),
            Ok(ScalarValue::Decimal128(Some(1250), 6, 2))
        );
        assert_eq!(
            value(&timestamptz(), "1970-01-01T01:00:00+01:00"),
            Ok(ScalarValue::TimestampMicrosecond(Some(0), Some("UTC".into())))
        );
        // As in files.
        for (moment, seconds) in [
            ("1970-01-01", 0),
            ("1970-01-01T00:00:10", 10),
            ("1970/01/01 00:01", 60),
            ("1970-01-01 01:00:00+01", 0),
            ("1970-01-01 00:00:00+00", 0),
            ("1970-01-01 01:00:00+0100", 0),
            ("1970-01-01 01:00:00 Europe/Berlin", 0),
        ] {
            assert_eq!(
                value(&timestamptz(), moment),
                Ok(ScalarValue::TimestampMicrosecond(
                    Some(seconds * 1_000_000),
                    Some("UTC".into())
                )),
                "{moment}"
            );
        }
        assert_eq!(value(&DataType::Date32, "1970/01/02"), Ok(ScalarValue::Date32(Some(1))));
        for (type_name, bad) in [
            ("date", "2013-1-1"),
            ("date", "2013-02-30"),
            ("int", "3000000000"),
            ("smallint", "1.0"),
            ("double", "NaN"),
            ("bool", "yes"),
            ("timestamp", "yesterday"),
            ("timestamp", "2013-01-01T00:00:00+01"),
            ("timestamptz", "2013-01-01 00:00:00+5"),
            ("decimal(4,2)", "1.234"),
            ("decimal(4,2)", "123.4"),
            ("decimal(4,2)", ""),
        ] {
            assert!(
                value(&parse(type_name).expect("type"), bad).is_err(),
                "{type_name} {bad:?}"
            );
        }
    }
}
