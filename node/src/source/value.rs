//! From a field's text to a value. Strict on purpose: what is not plainly a value of the declared type goes to
//! quarantine, and white space around a number is part of the text.
//!
//! | type        | texts                                                                                           |
//! |-------------|-------------------------------------------------------------------------------------------------|
//! | integers    | `12`, `-3`, `+4`; not `1.0`                                                                     |
//! | floats      | `1`, `-.5`, `6.02e23`, `nan`, `inf`, `-infinity`                                                |
//! | `decimal`   | `12.50`, `-3`; `1.25e1`; digits after the declared scale only if they are 0                     |
//! | `bool`      | `true`/`t`/`yes`/`y`/`on`/`1` and `false`/`f`/`no`/`n`/`off`/`0`, in any case                   |
//! | `date`      | `2013-01-31` or `2013/01/31`                                                                    |
//! | `timestamp` | `2013-01-31 05:00:00`, with `T`, without seconds, with a fraction (cut after microseconds), with `Z`; or a date |
//! | `timestamptz` | the same, also with an offset (`-05:00`, `-0500`, `-05`) or a zone's name; without one it is UTC |

use haulage_plan::moment::{self, Wrong};

/// Why a text is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It doesn't read as the type.
    Bad,
    /// It does, and the type can't hold it.
    Range,
    /// A point in time with an offset, for a column that has no time zone.
    Offset,
    /// More digits after the point than the type has.
    Scale,
}

/// Digits that always fit an i64.
const SAFE_DIGITS: usize = 18;

/// An integer of any width.
#[inline]
pub(super) fn int<T: TryFrom<i64>>(text: &[u8]) -> Result<T, Why> {
    let (negative, digits) = signed(text);
    if digits.is_empty() {
        return Err(Why::Bad);
    }
    if digits.len() > SAFE_DIGITS {
        return long_int(negative, digits).and_then(|value| T::try_from(value).map_err(|_| Why::Range));
    }
    let mut value = 0i64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(Why::Bad);
        }
        value = value * 10 + i64::from(digit);
    }
    T::try_from(if negative { -value } else { value }).map_err(|_| Why::Range)
}

#[cold]
fn long_int(negative: bool, digits: &[u8]) -> Result<i64, Why> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(Why::Bad);
    }
    let mut value = 0i64;
    for &byte in digits {
        let digit = i64::from(byte - b'0');
        let digit = if negative { -digit } else { digit };
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(digit))
            .ok_or(Why::Range)?;
    }
    Ok(value)
}

#[inline]
fn signed(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    }
}

/// A float, of the nearest value; too large for the type, or so small that it would be 0, is [`Why::Range`].
pub(super) fn float<T>(text: &[u8]) -> Result<T, Why>
where
    T: fast_float2::FastFloat + Into<f64>,
{
    let value: T = fast_float2::parse(text).map_err(|_| Why::Bad)?;
    let wide: f64 = value.into();
    let is_lost = if wide == 0.0 {
        let digits = text
            .split(|byte| matches!(byte, b'e' | b'E'))
            .next()
            .unwrap_or_default();
        digits.iter().any(|byte| matches!(byte, b'1'..=b'9'))
    } else {
        wide.is_infinite() && text.iter().any(u8::is_ascii_digit)
    };
    if is_lost { Err(Why::Range) } else { Ok(value) }
}

/// Yes or no.
pub(super) fn boolean(text: &[u8]) -> Result<bool, Why> {
    const TRUE: [&str; 6] = ["true", "t", "1", "yes", "y", "on"];
    const FALSE: [&str; 6] = ["false", "f", "0", "no", "n", "off"];
    let among = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word.as_bytes()));
    if among(&TRUE) {
        Ok(true)
    } else if among(&FALSE) {
        Ok(false)
    } else {
        Err(Why::Bad)
    }
}

/// A decimal of `precision` digits, `scale` of them after the point, as an integer of its last digit.
pub(super) fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, Why> {
    let (negative, digits) = signed(text);
    let point = digits.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &[][..]),
    };
    if whole.is_empty() && fraction.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => decimal_of_exponent(&text[..at], &text[at + 1..], precision, scale),
            None => Err(Why::Bad),
        };
    }
    let scale = usize::try_from(scale).unwrap_or_default();
    let (kept, beyond) = fraction.split_at(fraction.len().min(scale));
    if beyond.iter().any(|byte| *byte != b'0') {
        return Err(Why::Scale);
    }
    let zeros = std::iter::repeat_n(&b'0', scale - kept.len());
    let mut value = 0i128;
    for byte in whole.iter().chain(kept).chain(zeros) {
        let digit = i128::from(byte - b'0');
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(digit))
            .ok_or(Why::Range)?;
    }
    if value >= 10i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX) {
        return Err(Why::Range);
    }
    Ok(if negative { -value } else { value })
}

/// Any decimal has its point moved by less than this.
const MOVES: i64 = 80;

/// Such as `1.25e1`, which programs write for large and small numbers.
#[cold]
fn decimal_of_exponent(mantissa: &[u8], exponent: &[u8], precision: u8, scale: i8) -> Result<i128, Why> {
    // No second exponent, and no zeros beyond number.
    if mantissa.len() > 400
        || !mantissa
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'+' | b'-'))
    {
        return Err(Why::Bad);
    }
    let (negative, digits) = signed(mantissa);
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &[][..]),
    };
    let digits = [whole, fraction].concat();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Why::Bad);
    }
    let exponent = match int::<i64>(exponent) {
        Ok(exponent) => exponent,
        Err(Why::Range) if exponent.first() == Some(&b'-') => i64::MIN,
        Err(Why::Range) => i64::MAX,
        Err(why) => return Err(why),
    };
    if digits.iter().all(|byte| *byte == b'0') {
        return Ok(0);
    }
    let significant = digits.len() as i64;
    match exponent {
        _ if exponent > MOVES + significant => return Err(Why::Range),
        _ if exponent < -MOVES - significant => return Err(Why::Scale),
        _ => {}
    }
    let point = whole.len() as i64 + exponent;
    let before = usize::try_from(-point).unwrap_or_default();
    let after = usize::try_from(point - significant).unwrap_or_default();
    let mut plain = [vec![b'0'; before], digits, vec![b'0'; after]].concat();
    plain.insert(usize::try_from(point).unwrap_or_default(), b'.');
    if negative {
        plain.insert(0, b'-');
    }
    decimal(&plain, precision, scale)
}

/// Days since 1970-01-01.
#[inline]
pub(super) fn date(text: &[u8]) -> Result<i32, Why> {
    moment::date(text).map_err(Why::from)
}

/// Microseconds since 1970-01-01 00:00:00, UTC for a column with a time zone (`zoned`), without one else.
#[inline]
pub(super) fn timestamp(text: &[u8], zoned: bool) -> Result<i64, Why> {
    moment::timestamp(text, zoned).map_err(Why::from)
}

impl From<Wrong> for Why {
    #[inline]
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Bad => Self::Bad,
            Wrong::Offset => Self::Offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use chrono::{Datelike, NaiveDate};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers() {
        let table: &[(&str, Result<i16, Why>)] = &[
            ("0", Ok(0)),
            ("-32768", Ok(i16::MIN)),
            ("+7", Ok(7)),
            ("007", Ok(7)),
            ("32768", Err(Why::Range)),
            ("99999999999999999999999", Err(Why::Range)),
            ("0000000000000000000000012", Ok(12)),
            ("9999999999999999999999x", Err(Why::Bad)),
            ("1.0", Err(Why::Bad)),
            (" 1", Err(Why::Bad)),
            ("1e3", Err(Why::Bad)),
            ("-", Err(Why::Bad)),
            ("+-1", Err(Why::Bad)),
            ("", Err(Why::Bad)),
            ("١", Err(Why::Bad)),
        ];
        for (text, expected) in table {
            assert_eq!(int::<i16>(text.as_bytes()), *expected, "{text:?}");
        }
        assert_eq!(int(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(int::<i64>(b"9223372036854775808"), Err(Why::Range));
    }

    #[test]
    fn floats_and_booleans() {
        assert_eq!(float(b"-.5"), Ok(-0.5f64));
        assert_eq!(float(b"6.02e23"), Ok(6.02e23f64));
        assert_eq!(float(b"-inf"), Ok(f64::NEG_INFINITY));
        assert!(float::<f64>(b"NaN").is_ok_and(f64::is_nan));
        assert_eq!(float::<f32>(b"1e39"), Err(Why::Range));
        assert_eq!(float::<f64>(b"1e999"), Err(Why::Range));
        for bad in ["", "1,5", "0x10", "1.0 ", "."] {
            assert_eq!(float::<f64>(bad.as_bytes()), Err(Why::Bad), "{bad:?}");
        }
        for (text, expected) in [
            ("TRUE", Ok(true)),
            ("0", Ok(false)),
            ("No", Ok(false)),
            ("2", Err(Why::Bad)),
        ] {
            assert_eq!(boolean(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn decimals_lose_nothing() {
        let table: &[(&str, Result<i128, Why>)] = &[
            ("12.5", Ok(1250)),
            ("-12.50", Ok(-1250)),
            ("+.05", Ok(5)),
            ("3.", Ok(300)),
            ("999.99", Ok(99_999)),
            ("1000", Err(Why::Range)),
            ("1.2300", Ok(123)),
            ("1.239", Err(Why::Scale)),
            ("1e2", Ok(10_000)),
            ("-1.25E+1", Ok(-1250)),
            ("125e-2", Ok(125)),
            (".5e-1", Ok(5)),
            ("5e-03", Err(Why::Scale)),
            ("1e3", Err(Why::Range)),
            ("00012.5e0", Ok(1250)),
            ("0.0000000125e9", Ok(1250)),
            ("1e99999999999999999999", Err(Why::Range)),
            ("1e-99999999999999999999", Err(Why::Scale)),
            ("-0e99999999999999999999", Ok(0)),
            ("1e", Err(Why::Bad)),
            ("e1", Err(Why::Bad)),
            (".e1", Err(Why::Bad)),
            ("1e1e1", Err(Why::Bad)),
            ("1e1.5", Err(Why::Bad)),
            ("1-2e1", Err(Why::Bad)),
            ("1.2.3e1", Err(Why::Bad)),
            (".", Err(Why::Bad)),
            ("1.2.3", Err(Why::Bad)),
            ("99999999999999999999999999999999999999999", Err(Why::Range)),
        ];
        for (text, expected) in table {
            assert_eq!(decimal(text.as_bytes(), 5, 2), *expected, "{text:?}");
        }
        assert_eq!(
            decimal(b"99999999999999999999999999999999999999", 38, 0),
            Ok(10i128.pow(38) - 1)
        );
    }

    proptest! {
        #[test]
        fn dates_are_chronos(year in 0..=9999i32, month in 0..=13u32, day in 0..=32u32) {
            let text = format!("{year:04}-{month:02}-{day:02}");
            let expected = NaiveDate::from_ymd_opt(year, month, day)
                .map(|date| date.num_days_from_ce() - 719_163)
                .ok_or(Why::Bad);
            prop_assert_eq!(date(text.as_bytes()), expected);
            prop_assert_eq!(date(text.replace('-', "/").as_bytes()), expected);
            prop_assert_eq!(date(text.replacen('-', "/", 1).as_bytes()), Err(Why::Bad));
        }

        #[test]
        fn integers_are_what_rust_takes_them_for(text in "[-+]{0,2}[0-9a]{0,21}") {
            prop_assert_eq!(int::<i32>(text.as_bytes()).ok(), text.parse().ok());
            prop_assert_eq!(int::<i64>(text.as_bytes()).ok(), text.parse().ok());
        }

        #[test]
        fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..40), zoned: bool) {
            black_box(&(int::<i32>(&text), float::<f64>(&text), decimal(&text, 38, 10), date(&text)));
            black_box(&(timestamp(&text, zoned), boolean(&text)));
        }

        #[test]
        fn nearly_timestamps_never_panic(text in "[0-9]{4}-[0-1][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-5][0-9]:[0-6][0-9][.0-9Z+: -]{0,20}", zoned: bool) {
            black_box(&timestamp(text.as_bytes(), zoned));
        }
    }
}
