//! What a value's bytes are: its text, or one of the binary forms in which PostgreSQL sends values. The text of each is the
//! one that the server writes, in the settings of a reading transaction.
//!
//! Numbers are big-endian, dates count days and times microseconds, from midnight or from 2000-01-01. Nothing here trusts
//! a length: a value of another size than its form has is none, and neither panics nor is it read further.

use super::numeric::Numeric;

/// What a value's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Its text, as the database writes it.
    Text,
    /// One byte.
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Date,
    /// Of a day, without a zone.
    Time,
    /// A point in time without a zone.
    Timestamp,
    /// One with a zone, in UTC; its text names that.
    Zoned,
    Uuid,
}

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const DAY: i64 = 86_400_000_000;
/// Days since 1970-01-01 of 0001-01-01 and 9999-12-31, the first and the last that columns here can hold.
const FIRST_DAY: i64 = -719_162;
const LAST_DAY: i64 = 2_932_896;

impl Form {
    /// What a value takes of a row's bound: its bytes, or its text where that may be far longer.
    pub(super) fn weighs(self, bytes: &[u8]) -> usize {
        match self {
            Self::Numeric => Numeric::parse(bytes)
                .map_or(0, |numeric| numeric.text_length())
                .max(bytes.len()),
            _ => bytes.len(),
        }
    }

    /// Appends the text of a value; `None` if the bytes are none of this form.
    pub(super) fn write(self, bytes: &[u8], to: &mut Vec<u8>) -> Option<()> {
        let text = match self {
            Self::Text => {
                to.extend_from_slice(bytes);
                return Some(());
            }
            Self::Numeric => {
                Numeric::parse(bytes)?.write(to);
                return Some(());
            }
            Self::Bool => boolean(bytes)?.to_string(),
            Self::Int2 | Self::Int4 | Self::Int8 => integer(bytes, self)?.to_string(),
            Self::Float4 => {
                let value = float4(bytes)?;
                let text = even(format!("{value:e}"), ryu::Buffer::new().format(value));
                let parts = (
                    u64::from(value.to_bits() & 0x7f_ffff),
                    i32::from((value.to_bits() >> 23) as u8) - 150,
                );
                let text = inside(text, (parts.0 | 1 << 23, parts.1), |more| format!("{value:.more$e}"));
                float_text(&text, 6)
            }
            Self::Float8 => {
                let value = float8(bytes)?;
                let text = even(format!("{value:e}"), ryu::Buffer::new().format(value));
                let parts = (
                    value.to_bits() & 0xf_ffff_ffff_ffff,
                    (value.to_bits() >> 52 & 0x7ff) as i32 - 1_075,
                );
                let text = inside(text, (parts.0 | 1 << 52, parts.1), |more| format!("{value:.more$e}"));
                float_text(&text, 15)
            }
            Self::Date => match i32::from_be_bytes(bytes.try_into().ok()?) {
                i32::MAX => "infinity".to_owned(),
                i32::MIN => "-infinity".to_owned(),
                days => {
                    let (date, era) = date_text(i64::from(days) + EPOCH_DAYS);
                    date + era
                }
            },
            Self::Time => clock_text(i64::from_be_bytes(bytes.try_into().ok()?)),
            Self::Timestamp => moment_text(i64::from_be_bytes(bytes.try_into().ok()?), ""),
            Self::Zoned => moment_text(i64::from_be_bytes(bytes.try_into().ok()?), "+00"),
            Self::Uuid => uuid_text(bytes.try_into().ok()?),
        };
        to.extend_from_slice(text.as_bytes());
        Some(())
    }
}

pub(super) fn boolean(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

/// An integer of the width that the form has.
#[inline]
pub(super) fn integer(bytes: &[u8], form: Form) -> Option<i64> {
    Some(match form {
        Form::Int2 => i16::from_be_bytes(bytes.try_into().ok()?).into(),
        Form::Int4 => i32::from_be_bytes(bytes.try_into().ok()?).into(),
        Form::Int8 => i64::from_be_bytes(bytes.try_into().ok()?),
        _ => return None,
    })
}

/// NaN is always the same one, as it is when it is read from its text.
pub(super) fn float4(bytes: &[u8]) -> Option<f32> {
    let value = f32::from_be_bytes(bytes.try_into().ok()?);
    Some(if value.is_nan() { f32::NAN } else { value })
}

/// The same of double precision.
pub(super) fn float8(bytes: &[u8]) -> Option<f64> {
    let value = f64::from_be_bytes(bytes.try_into().ok()?);
    Some(if value.is_nan() { f64::NAN } else { value })
}

/// Days since 1970-01-01, of a date from 0001-01-01 to 9999-12-31.
pub(super) fn date(bytes: &[u8]) -> Option<i32> {
    let days = i64::from(i32::from_be_bytes(bytes.try_into().ok()?)) + EPOCH_DAYS;
    (FIRST_DAY..=LAST_DAY).contains(&days).then_some(days as i32)
}

/// Microseconds since 1970-01-01, of a moment in the years from 1 to 9999.
#[inline]
pub(super) fn moment(bytes: &[u8]) -> Option<i64> {
    let micros = i64::from_be_bytes(bytes.try_into().ok()?).checked_add(EPOCH_DAYS * DAY)?;
    (FIRST_DAY * DAY..(LAST_DAY + 1) * DAY)
        .contains(&micros)
        .then_some(micros)
}

/// The shortest text of a float, such as `1.5e20`. Of one that lies in the middle between two such texts the server writes
/// that with an even digit at its end, as Ryu does, which is its algorithm; the standard library rounds up.
fn even(shortest: String, ryu: &str) -> String {
    let digits_of = |mantissa: &str| mantissa.chars().filter(char::is_ascii_digit).collect::<String>();
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        return shortest;
    };
    let own = digits_of(mantissa);
    let theirs = digits_of(ryu.split('e').next().unwrap_or_default());
    let theirs = theirs.trim_start_matches('0').trim_end_matches('0');
    if theirs.len() != own.len() || theirs == own {
        return shortest;
    }
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    match theirs.split_at(1) {
        (first, "") => format!("{sign}{first}e{exponent}"),
        (first, rest) => format!("{sign}{first}.{rest}e{exponent}"),
    }
}

/// The text, or a longer one if it lies exactly in the middle between the float and one beside it: that would be read as the
/// float by who rounds to even, as the standard library does, and the server writes none that depends on it.
///
/// The float is the mantissa times two to the power; `longer` gives it with so many digits behind the point.
fn inside(mut text: String, (mantissa, power): (u64, i32), longer: impl Fn(usize) -> String) -> String {
    // Others have middles of more digits than any shortest text.
    if power < 1 {
        return text;
    }
    loop {
        let Some((digits, exponent)) = text.split_once('e') else {
            return text;
        };
        let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
        let (Ok(whole), Ok(exponent)) = (digits.parse::<u64>(), exponent.parse::<i32>()) else {
            return text;
        };
        let Ok(tens) = u32::try_from(exponent + 1 - digits.len() as i32) else {
            return text;
        };
        // `whole` times ten to `tens` is an odd number times two to one less than the power: what is odd in both is compared.
        let odd = 5u64
            .checked_pow(tens)
            .and_then(|fives| (whole >> whole.trailing_zeros()).checked_mul(fives));
        let is_middle = (whole.trailing_zeros() + tens) as i32 == power - 1
            && odd.is_some_and(|odd| odd == 2 * mantissa - 1 || odd == 2 * mantissa + 1);
        if !is_middle {
            return text;
        }
        text = longer(digits.len());
    }
}

/// A float as the server writes it: its shortest digits (as `1.5e20`), without an exponent from `1e-4` up to as many digits
/// as the type holds for certain.
fn float_text(shortest: &str, digits: i32) -> String {
    let Some((mantissa, exponent)) = shortest.split_once('e') else {
        let (sign, rest) = shortest.strip_prefix('-').map_or(("", shortest), |rest| ("-", rest));
        return match rest {
            "inf" => format!("{sign}Infinity"),
            // NaN has no sign.
            _ => rest.to_owned(),
        };
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..digits).contains(&exponent) {
        let (sign, size) = (if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs());
        return format!("{mantissa}e{sign}{size:02}");
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    if exponent < 0 {
        let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
        return format!("{sign}0.{zeros}{digits}");
    }
    let whole = exponent as usize + 1;
    match digits.get(whole..) {
        Some("") => format!("{sign}{digits}"),
        Some(fraction) => format!("{sign}{}.{fraction}", &digits[..whole]),
        None => format!("{sign}{digits:0<whole$}"),
    }
}

/// A day as year, month and day, and what follows if it is one before the first year.
fn date_text(days: i64) -> (String, &'static str) {
    // Eras of 400 years that start in March, so that the leap day comes last.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    match year {
        1.. => (format!("{year:04}-{month:02}-{day:02}"), ""),
        // There is no year 0.
        _ => (format!("{:04}-{month:02}-{day:02}", 1 - year), " BC"),
    }
}

fn clock_text(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = format!("{hour:02}:{minute:02}:{second:02}");
    match fraction {
        0 => text,
        _ => text + format!(".{fraction:06}").trim_end_matches('0'),
    }
}

fn moment_text(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        _ => {
            let (date, era) = date_text(micros.div_euclid(DAY) + EPOCH_DAYS);
            format!("{date} {}{zone}{era}", clock_text(micros.rem_euclid(DAY)))
        }
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMS: [Form; 13] = [
        Form::Text,
        Form::Bool,
        Form::Int2,
        Form::Int4,
        Form::Int8,
        Form::Float4,
        Form::Float8,
        Form::Numeric,
        Form::Date,
        Form::Time,
        Form::Timestamp,
        Form::Zoned,
        Form::Uuid,
    ];

    fn text(form: Form, bytes: &[u8]) -> Option<String> {
        let mut text = Vec::new();
        form.write(bytes, &mut text)?;
        Some(String::from_utf8(text).unwrap())
    }

    #[test]
    fn values_are_written_as_the_server_writes_them() {
        let float4 = |value: f32| text(Form::Float4, &value.to_be_bytes()).unwrap();
        // Between two texts of as many digits.
        assert_eq!(float4(9_597_249.0 / 4.0), "2.3993122e+06");
        assert_eq!(float4(-9_597_251.0 / 4.0), "-2.3993128e+06");
        assert_eq!(
            (float4(-0.0), float4(100.0), float4(1.5)),
            ("-0".into(), "100".into(), "1.5".into())
        );
        // In the middle between two floats, and read as this one by who rounds to even.
        assert_eq!(float4(-463_873_216.0), "-4.6387322e+08");
        let float8 = |value: f64| text(Form::Float8, &value.to_be_bytes()).unwrap();
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (-1234.5, "-1234.5"),
            (0.0001, "0.0001"),
            (-0.00012, "-0.00012"),
            (0.00001, "1e-05"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
            (-f64::NAN, "NaN"),
        ] {
            assert_eq!(float8(value), expected);
        }
        assert_eq!(text(Form::Float4, &1e6f32.to_be_bytes()).unwrap(), "1e+06");
        assert_eq!(text(Form::Float4, &123_456f32.to_be_bytes()).unwrap(), "123456");
        let day = |days: i32| text(Form::Date, &days.to_be_bytes()).unwrap();
        assert_eq!(day(0), "2000-01-01");
        assert_eq!(day(59), "2000-02-29");
        assert_eq!(day((FIRST_DAY - EPOCH_DAYS) as i32), "0001-01-01");
        assert_eq!(day((FIRST_DAY - EPOCH_DAYS) as i32 - 1), "0001-12-31 BC");
        assert_eq!(day((LAST_DAY - EPOCH_DAYS) as i32 + 1), "10000-01-01");
        assert_eq!((day(i32::MAX), day(i32::MIN)), ("infinity".into(), "-infinity".into()));
        let at = |form, micros: i64| text(form, &micros.to_be_bytes()).unwrap();
        assert_eq!(at(Form::Timestamp, 500_000), "2000-01-01 00:00:00.5");
        assert_eq!(at(Form::Zoned, -1), "1999-12-31 23:59:59.999999+00");
        assert_eq!(
            at(Form::Zoned, (FIRST_DAY - EPOCH_DAYS) * DAY - DAY),
            "0001-12-31 00:00:00+00 BC"
        );
        assert_eq!(at(Form::Zoned, i64::MAX), "infinity");
        assert_eq!(at(Form::Time, DAY), "24:00:00");
        assert_eq!(
            text(
                Form::Uuid,
                &0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes()
            )
            .unwrap(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
    }

    #[test]
    fn only_years_that_columns_hold_are_read() {
        let first = ((FIRST_DAY - EPOCH_DAYS) as i32, (LAST_DAY - EPOCH_DAYS) as i32);
        for (days, expected) in [
            (first.0, Some(FIRST_DAY as i32)),
            (first.0 - 1, None),
            (first.1, Some(LAST_DAY as i32)),
            (first.1 + 1, None),
            (i32::MAX, None),
            (i32::MIN, None),
        ] {
            assert_eq!(date(&days.to_be_bytes()), expected, "{days}");
        }
        let (start, end) = ((FIRST_DAY - EPOCH_DAYS) * DAY, (LAST_DAY + 1 - EPOCH_DAYS) * DAY);
        for (micros, inside) in [(start, true), (start - 1, false), (end - 1, true), (end, false)] {
            assert_eq!(moment(&micros.to_be_bytes()).is_some(), inside, "{micros}");
        }
        assert_eq!(
            (moment(&i64::MAX.to_be_bytes()), moment(&i64::MIN.to_be_bytes())),
            (None, None)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_none(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            for form in FORMS {
                let mut text = Vec::new();
                let written = form.write(&bytes, &mut text);
                prop_assert!(written.is_some() || text.is_empty());
                // What a row's bound is held against is no less than what the text takes, but for a few bytes a value.
                prop_assert!(text.len() <= form.weighs(&bytes) + 40, "{form:?}");
            }
            let all = (boolean(&bytes), integer(&bytes, Form::Int4), float4(&bytes), date(&bytes), moment(&bytes));
            prop_assert!(bytes.len() < 9 || all == (None, None, None, None, None));
        }

        #[test]
        fn days_are_chronos(days in FIRST_DAY..=LAST_DAY) {
            let written = text(Form::Date, &((days - EPOCH_DAYS) as i32).to_be_bytes()).unwrap();
            let chrono = chrono::NaiveDate::from_epoch_days(days as i32).unwrap();
            prop_assert_eq!(written, chrono.format("%Y-%m-%d").to_string());
        }
    }
}
