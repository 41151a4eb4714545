//! Dates and points in time as texts: one parser for the fields of files, the values of databases, parameters and checks.
//! README lists the forms.

use std::borrow::Cow;

use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;

/// Why a text is no date and no point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It doesn't read as one.
    Bad,
    /// It has an offset, for a type that has no time zone.
    Offset,
}

/// Days since 1970-01-01. Error if it is no date as `2013-01-31` or `2013/01/31`.
#[inline]
pub fn date(text: &[u8]) -> Result<i32, Wrong> {
    let text: &[u8; 10] = text.try_into().map_err(|_| Wrong::Bad)?;
    if !matches!((text[4], text[7]), (b'-', b'-') | (b'/', b'/')) {
        return Err(Wrong::Bad);
    }
    let year = i32::from(two(text, 0)?) * 100 + i32::from(two(text, 2)?);
    let (month, day) = (two(text, 5)?, two(text, 8)?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in(year, month) {
        return Err(Wrong::Bad);
    }
    Ok(days_from_civil(year, i32::from(month), i32::from(day)))
}

const SECOND: i64 = 1_000_000;

/// Microseconds since 1970-01-01 00:00:00, UTC of a type with a time zone (`zoned`), without one else. Error
/// if it is no such moment.
#[inline]
pub fn timestamp(text: &[u8], zoned: bool) -> Result<i64, Wrong> {
    // What nearly all of them look like, read at the cost of an integer.
    if let [date_part @ .., b' ' | b'T', h1, h2, b':', m1, m2, b':', s1, s2]
    | [date_part @ .., b' ' | b'T', h1, h2, b':', m1, m2, b':', s1, s2, b'Z'] = text
        && date_part.len() == 10
    {
        let clock = [*h1, *h2, *m1, *m2, *s1, *s2];
        let (hour, minute, second) = (two(&clock, 0)?, two(&clock, 2)?, two(&clock, 4)?);
        if hour < 24 && minute < 60 && second < 60 {
            let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
            return Ok((i64::from(date(date_part)?) * 86_400 + seconds) * SECOND);
        }
    }
    any_timestamp(text, zoned)
}

fn any_timestamp(text: &[u8], zoned: bool) -> Result<i64, Wrong> {
    if !text.is_ascii() {
        return Err(Wrong::Bad);
    }
    let mut text = Cow::Borrowed(std::str::from_utf8(text).map_err(|_| Wrong::Bad)?);
    if matches!(text.as_bytes(), [_, _, _, _, b'/', _, _, b'/', ..]) {
        text = Cow::Owned(text.replacen('/', "-", 2));
    }
    let text = with_seconds(&text);
    let value = string_to_datetime(&chrono::Utc, &text).map_err(|_| Wrong::Bad)?;
    // Behind the `T`. What else has a letter, other than `Z` alone, is a zone's name.
    let clock = text.get(11..).unwrap_or_default();
    let clock = clock.strip_suffix(['Z', 'z']).unwrap_or(clock);
    if !zoned && clock.contains(|letter: char| matches!(letter, '+' | '-') || letter.is_ascii_alphabetic()) {
        return Err(Wrong::Offset);
    }
    Ok(value.timestamp_micros())
}

/// `2013-01-31 05:00` and what may follow, with the seconds that the parser wants to see.
fn with_seconds(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let ends = matches!(bytes.get(16), None | Some(b'Z' | b'z' | b'+' | b'-' | b' '));
    if bytes.len() >= 16 && bytes[13] == b':' && ends {
        Cow::Owned(format!("{}:00{}", &text[..16], &text[16..]))
    } else {
        Cow::Borrowed(text)
    }
}

#[inline]
fn two(text: &[u8], at: usize) -> Result<u8, Wrong> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    if tens > 9 || ones > 9 {
        Err(Wrong::Bad)
    } else {
        Ok(tens * 10 + ones)
    }
}

fn days_in(year: i32, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar since 1970-01-01, counted in eras of 400 years that start in March, so that
/// the leap day comes last.
fn days_from_civil(year: i32, month: i32, day: i32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time() {
        let noon = 1_359_633_600 * SECOND + 5 * 3600 * SECOND - 5 * 3600 * SECOND + 5;
        let table: &[(&str, bool, Result<i64, Wrong>)] = &[
            ("2013-01-31 12:00:00", false, Ok(noon - 5)),
            ("2013-01-31T12:00:00Z", true, Ok(noon - 5)),
            ("2013-01-31T12:00:00Z", false, Ok(noon - 5)),
            ("2013-01-31 12:00:00.000005", false, Ok(noon)),
            ("2013-01-31 12:00:00.0000059", true, Ok(noon)),
            ("2013-01-31T07:00:00-05:00", true, Ok(noon - 5)),
            ("2013-01-31T07:00:00-05:00", false, Err(Wrong::Offset)),
            ("2013-01-31", false, Ok(noon - 5 - 12 * 3600 * SECOND)),
            ("2013-01-31T07:00:00-0500", true, Ok(noon - 5)),
            ("2013-01-31 07:00:00-05", true, Ok(noon - 5)),
            ("2013-01-31 07:00:00 -05", true, Ok(noon - 5)),
            ("2013-01-31T13:00:00.000005+01", true, Ok(noon)),
            ("2013-01-31T13:00:00+01", false, Err(Wrong::Offset)),
            ("2013-01-31T12:00", false, Ok(noon - 5)),
            ("2013-01-31 12:00", true, Ok(noon - 5)),
            ("2013-01-31T12:00Z", true, Ok(noon - 5)),
            ("2013-01-31 07:00-05", true, Ok(noon - 5)),
            ("2013-01-31T07:00 -05:00", true, Ok(noon - 5)),
            ("2013-01-31T07:00-05:00", false, Err(Wrong::Offset)),
            ("2013-01-31 13:00:00 Europe/Berlin", true, Ok(noon - 5)),
            ("2013-01-31 13:00:00 Europe/Berlin", false, Err(Wrong::Offset)),
            ("2013-01-31 12:00:00 UTC", false, Err(Wrong::Offset)),
            ("2013-01-31T12:00:00z", false, Ok(noon - 5)),
            ("2013/01/31 12:00:00", false, Ok(noon - 5)),
            ("2013/01/31 12:00", false, Ok(noon - 5)),
            ("2013/01/31T13:00:00.000005+01", true, Ok(noon)),
            ("2013/01/31 13:00:00 Europe/Berlin", true, Ok(noon - 5)),
            ("2013/01/31", true, Ok(noon - 5 - 12 * 3600 * SECOND)),
            ("2013/01-31 12:00:00", false, Err(Wrong::Bad)),
            ("2013-01/31 12:00", false, Err(Wrong::Bad)),
            ("2013-01-31 12:0", false, Err(Wrong::Bad)),
            ("2013-01-31 12", false, Err(Wrong::Bad)),
            ("2013-01-31 12:00:", false, Err(Wrong::Bad)),
            ("2013-01-31 12:00.5", false, Err(Wrong::Bad)),
            ("2013-01-31 12-00", false, Err(Wrong::Bad)),
            ("2013-01-31 12:00:00+5", true, Err(Wrong::Bad)),
            ("2013-01-31 24:00", false, Err(Wrong::Bad)),
            ("2013-01-31 24:00:00", false, Err(Wrong::Bad)),
            ("2013-02-29 12:00:00", false, Err(Wrong::Bad)),
            ("2013-01-31 12:00:60", false, Ok(noon - 5 + 60 * SECOND)),
            ("2013-01-31_12:00:00", false, Err(Wrong::Bad)),
            ("13-01-31 12:00:00", false, Err(Wrong::Bad)),
            ("2013-01-31 12:00:0é", false, Err(Wrong::Bad)),
            ("", false, Err(Wrong::Bad)),
        ];
        for (text, zoned, expected) in table {
            assert_eq!(timestamp(text.as_bytes(), *zoned), *expected, "{text:?} zoned {zoned}");
        }
    }
}
