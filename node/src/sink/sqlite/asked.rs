//! A value as somebody asks for it, as it may stand in a SQLite file: a truth is 1 there, 1.1 may be 1.10, and a moment is
//! in UTC.
//!
//! What a column declares says only whether it holds numbers. Of texts the first form is the text itself, and the others
//! are looked for where that isn't found.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::rows::moment;

/// Digits that a decimal has behind its point at most.
const SCALES: usize = 38;

/// A value as SQLite keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    Integer(i64),
    Real(f64),
    Text(String),
}

/// The forms in which a column that is declared so may hold a value; the first is the nearest. `Err` says what the column
/// takes.
pub(super) fn forms(declared: &str, value: &str) -> Result<Vec<Form>, String> {
    let upper = declared.to_ascii_uppercase();
    let has = |part: &str| upper.contains(part);
    let number = number(value.trim());
    if has("INT") {
        return match number {
            Some(number) => Ok(vec![number]),
            None => Err(format!("`{value}` is no number")),
        };
    }
    let is_text = has("CHAR") || has("CLOB") || has("TEXT");
    if !is_text && !has("BLOB") && (has("REAL") || has("FLOA") || has("DOUB")) {
        return real(value.trim()).ok_or_else(|| format!("`{value}` is no number"));
    }
    let mut forms = vec![Form::Text(value.to_owned())];
    if is_text {
        forms.extend(decimals(value.trim()).into_iter().map(Form::Text));
    } else {
        forms.extend(number);
        forms.extend(real(value.trim()).into_iter().flatten());
    }
    forms.extend(moments(value.trim()).into_iter().map(Form::Text));
    forms.dedup();
    Ok(forms)
}

/// A number of any kind, or a truth.
fn number(value: &str) -> Option<Form> {
    match value {
        "true" => return Some(Form::Integer(1)),
        "false" => return Some(Form::Integer(0)),
        _ => {}
    }
    if let Ok(whole) = value.parse() {
        return Some(Form::Integer(whole));
    }
    let number: f64 = value.parse().ok()?;
    number.is_finite().then_some(Form::Real(number))
}

/// A double, and the one that a single of the same text is.
fn real(value: &str) -> Option<Vec<Form>> {
    if let "true" | "false" = value {
        return Some(vec![Form::Real(f64::from(u8::from(value == "true")))]);
    }
    let double: f64 = value.parse().ok()?;
    if double.is_nan() {
        return Some(vec![Form::Text("NaN".to_owned())]);
    }
    let mut forms = vec![Form::Real(double)];
    if let Ok(single) = value.parse::<f32>() {
        forms.push(Form::Real(f64::from(single)));
    }
    Some(forms)
}

/// A number as decimals of every scale that has room for it write it.
fn decimals(value: &str) -> Vec<String> {
    let (sign, digits) = match value.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", value.strip_prefix('+').unwrap_or(value)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Vec::new();
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let fraction = fraction.trim_end_matches('0');
    let sign = if whole == "0" && fraction.is_empty() { "" } else { sign };
    let written = (fraction.len()..=SCALES).map(|scale| match scale {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction:0<scale$}"),
    });
    written.collect()
}

/// A date or time as it is kept.
fn moments(value: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(date) = NaiveDate::parse_from_str(value, "%Y-%m-%d") {
        found.push(date.to_string());
        found.push(format!("{date} 00:00:00"));
    }
    let spaced = value.replacen(['T', 't'], " ", 1);
    let spaced = match spaced.strip_suffix(['Z', 'z']) {
        Some(moment) => format!("{moment}+00:00"),
        None => spaced,
    };
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(&spaced, format) {
            found.extend(moment(time.and_utc().timestamp_micros(), false).ok());
        }
        for zone in ["%#z", " %#z"] {
            if let Ok(time) = DateTime::parse_from_str(&spaced, &format!("{format}{zone}")) {
                found.extend(moment(time.timestamp_micros(), true).ok());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_in_each_form_that_it_may_have() {
        let text = |text: &str| Form::Text(text.to_owned());
        for (declared, asked, form) in [
            ("INTEGER", "7", Form::Integer(7)),
            ("INTEGER", "true", Form::Integer(1)),
            ("INTEGER", "false", Form::Integer(0)),
            ("INTEGER", "1.0", Form::Real(1.0)),
            ("BOOLEAN", "true", Form::Integer(1)),
            ("REAL", "0.1", Form::Real(0.1)),
            ("REAL", "0.1", Form::Real(f64::from(0.1_f32))),
            ("REAL", "-Infinity", Form::Real(f64::NEG_INFINITY)),
            ("REAL", "nan", text("NaN")),
            ("TEXT", "1.1", text("1.10")),
            ("TEXT", "1.100", text("1.1")),
            ("TEXT", "0", text("0.00")),
            ("TEXT", "-0.0", text("0.00")),
            ("TEXT", "-007.50", text("-7.5")),
            ("TEXT", ".5", text("0.50")),
            ("TEXT", "2020-1-1", text("2020-01-01")),
            ("TEXT", "2020-01-01T00:00:00.5", text("2020-01-01 00:00:00.500")),
            ("TEXT", "2020-06-01 00:00:00+02:00", text("2020-05-31 22:00:00+00:00")),
            ("TEXT", "2020-06-01T00:00:00Z", text("2020-06-01 00:00:00+00:00")),
            ("", "7", Form::Integer(7)),
            ("varchar(3)", "a.b", text("a.b")),
        ] {
            let forms = forms(declared, asked).expect("a value of the column");
            assert!(
                forms.contains(&form),
                "{declared} {asked}: {form:?} is not in {forms:?}"
            );
        }
        for asked in ["a", ".", "-", "1.2.3", "", "1e5", "2020-13-01"] {
            assert_eq!(forms("TEXT", asked), Ok(vec![text(asked)]), "{asked}");
        }
        for (declared, asked) in [("INTEGER", "seven"), ("REAL", "abc"), ("INT", "NaN"), ("DOUBLE", "")] {
            assert!(forms(declared, asked).is_err(), "{declared} {asked}");
        }
    }
}
