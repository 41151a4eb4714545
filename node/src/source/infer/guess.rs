//! What type a column has, by the texts that stand in it.
//!
//! A type is only guessed where every value is plainly one of it: what is guessed too narrow sends rows to quarantine, and
//! what is guessed too wide loses something (a zip code its zeros). In doubt it is text.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use haulage_plan::types;

use super::super::value;

/// Texts that people write where there is no value. They only count as that in a column that is something else but for
/// them.
const NULLS: [&str; 13] = [
    "NA", "N/A", "n/a", "na", "NULL", "null", "None", "none", "NaN", "nan", "\\N", "#N/A", ".",
];
/// Scales at which all values of a column having the same one means amounts, and not measured values.
const AMOUNTS: std::ops::RangeInclusive<usize> = 2..=4;
/// Digits of a decimal, unless more are needed.
const DIGITS: usize = 18;
const MOST_DIGITS: usize = 38;
/// Digits by which a double is written out in full. Of more, it would lose some.
const DOUBLE_DIGITS: usize = 17;

/// What the values of a column have been so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Guess {
    /// Values, without those that are none.
    values: u64,
    /// Fields without a text.
    pub(super) empty: u64,
    /// Texts that may mean "no value".
    pub(super) nulls: BTreeMap<&'static str, u64>,
    not: Not,
    /// Digits before the point, at most.
    whole: usize,
    /// Digits after it, at least and at most.
    fraction: Option<(usize, usize)>,
    /// Digits of a number without the zeros before it, at most.
    significant: usize,
    /// Values such as `12E5`, which are codes if all are like that.
    coded: u64,
    /// A time with an offset or a zone.
    zoned: bool,
}

/// What some value is not.
#[derive(Debug, Clone, Copy, Default)]
struct Not {
    int: bool,
    bigint: bool,
    decimal: bool,
    double: bool,
    boolean: bool,
    date: bool,
    timestamp: bool,
}

/// What a column is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guessed {
    pub(super) data_type: DataType,
    /// Whether the texts in [`Guess::nulls`] mean "no value" here.
    pub(super) takes_nulls: bool,
}

impl Guess {
    /// Looks at a field; an empty one has no value.
    pub(super) fn look(&mut self, text: &str) {
        if text.is_empty() {
            self.empty += 1;
            return;
        }
        if let Some(word) = NULLS.iter().find(|word| **word == text) {
            *self.nulls.entry(word).or_default() += 1;
            return;
        }
        self.values += 1;
        self.number(text);
        let bytes = text.as_bytes();
        let words = ["true", "false", "yes", "no"];
        self.not.boolean |= !words.iter().any(|word| text.eq_ignore_ascii_case(word));
        self.not.date |= value::date(bytes).is_err();
        self.not.timestamp |= value::timestamp(bytes, true).is_err();
        if !self.not.timestamp {
            let zone = text.get(10..).unwrap_or_default();
            self.zoned |= zone.ends_with(['Z', 'z']) || value::timestamp(bytes, false).is_err();
        }
    }

    fn number(&mut self, text: &str) {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        // What begins with a zero or a plus is a name: a zip code, a telephone number.
        let named = (whole.len() > 1 && whole.starts_with('0'))
            || !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let bytes = text.as_bytes();
        self.not.int |= named || value::int::<i32>(bytes).is_err();
        self.not.bigint |= named || value::int::<i64>(bytes).is_err();
        self.not.double |= named || value::float::<f64>(bytes).is_err();
        let some = !whole.is_empty() || !fraction.is_empty();
        let plain = some
            && [whole, fraction]
                .iter()
                .all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        self.not.decimal |= named || !plain;
        let (mantissa, exponent) = digits
            .split_once(['e', 'E'])
            .map_or((digits, false), |(mantissa, _)| (mantissa, true));
        let significant = mantissa
            .bytes()
            .filter(u8::is_ascii_digit)
            .skip_while(|digit| *digit == b'0');
        self.significant = self.significant.max(significant.count());
        self.coded += u64::from(exponent && !mantissa.contains('.'));
        self.whole = self.whole.max(whole.len());
        let (least, most) = self.fraction.unwrap_or((fraction.len(), fraction.len()));
        self.fraction = Some((least.min(fraction.len()), most.max(fraction.len())));
    }

    /// What the column is, by all that was looked at.
    pub(super) fn guessed(&self) -> Guessed {
        let data_type = self.data_type();
        // A column of nothing but "NA" may be anything.
        let takes_nulls = !self.nulls.is_empty() && data_type != DataType::Utf8;
        Guessed { data_type, takes_nulls }
    }

    fn data_type(&self) -> DataType {
        let not = self.not;
        if self.values == 0 {
            return DataType::Utf8;
        }
        if !not.int {
            return DataType::Int32;
        }
        if !not.bigint {
            return DataType::Int64;
        }
        if !not.decimal
            && let Some((least, most)) = self.fraction
        {
            let needed = self.whole + most;
            let amounts = least == most && AMOUNTS.contains(&most) && needed <= MOST_DIGITS;
            // What no bigint holds, or has more digits than a double: that would change it.
            let long = (most == 0 || self.significant > DOUBLE_DIGITS) && needed <= MOST_DIGITS;
            if amounts || long {
                let precision = if needed <= DIGITS { DIGITS } else { MOST_DIGITS };
                return decimal(precision, most);
            }
        }
        if !not.double && self.significant <= DOUBLE_DIGITS && self.coded < self.values {
            return DataType::Float64;
        }
        if !not.boolean {
            return DataType::Boolean;
        }
        if !not.date {
            return DataType::Date32;
        }
        if !not.timestamp {
            return if self.zoned {
                types::timestamptz()
            } else {
                DataType::Timestamp(TimeUnit::Microsecond, None)
            };
        }
        DataType::Utf8
    }

    /// Whether there was a value in every field.
    pub(super) fn is_full(&self, guessed: &Guessed) -> bool {
        self.empty == 0 && self.values > 0 && !guessed.takes_nulls
    }
}

fn decimal(precision: usize, scale: usize) -> DataType {
    DataType::Decimal128(u8::try_from(precision).unwrap_or(38), i8::try_from(scale).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> (Guess, String) {
        let mut guess = Guess::default();
        texts.iter().for_each(|text| guess.look(text));
        let name = types::name(&guess.guessed().data_type);
        (guess, name)
    }

    #[test]
    fn a_type_is_what_every_value_plainly_is() {
        for (texts, expected) in [
            (&["1", "-2", "0"][..], "int"),
            (&["1", "2147483648"], "bigint"),
            (&["1", "9223372036854775808"], "decimal(38,0)"),
            (&["1", "99999999999999999999999999999999999999999"], "text"),
            (&["0.5", "123456789012345678.5"], "decimal(38,1)"),
            (&["0.12345678901234567", "0.1"], "double"),
            (&["0.00012345678901234567", "0.30000000000000004"], "double"),
            (&["0.12345678901234567890", "0.1"], "decimal(38,20)"),
            (&["1.5e300", "123456789012345678.5"], "text"),
            (&["12E5", "45e10", "77E3"], "text"),
            (&["12E5", "1.5"], "double"),
            (&["1", ""], "int"),
            (&["1", "1.5"], "double"),
            (&["1.0", "2.0"], "double"),
            (&["1.50", "2.25", "1000.00"], "decimal(18,2)"),
            (&["1.50", "2.255"], "double"),
            (&["1e5", "2.5"], "double"),
            (&["01234", "98765"], "text"),
            (&["+4917", "1"], "text"),
            (&["0.5", "0"], "double"),
            (&["-0.50", "-1.25"], "decimal(18,2)"),
            (&["1", "-.", "3"], "text"),
            (&["5.0E-4", "0.0015"], "double"),
            (&["12345678901234567890.12"], "decimal(38,2)"),
            (&["true", "FALSE"], "bool"),
            (&["yes", "no"], "bool"),
            (&["t", "f"], "text"),
            (&["1", "true"], "text"),
            (&["2024-01-31", "2024-02-29"], "date"),
            (&["2024-01-31", "2023-02-29"], "text"),
            (&["2024-01-31", "2024-01-31 05:00:00"], "timestamp"),
            (&["2024-01-31T05:00:00"], "timestamp"),
            (&["2024-01-31T05:00:00Z"], "timestamptz"),
            (&["2024-01-31 05:00:00", "2024-01-31 05:00:00-05:00"], "timestamptz"),
            (&["31.01.2024"], "text"),
            (&["2024"], "int"),
            (&["inf", "1.5"], "text"),
            (&["a"], "text"),
            (&[], "text"),
            (&["", ""], "text"),
        ] {
            assert_eq!(of(texts).1, expected, "{texts:?}");
        }
    }

    #[test]
    fn words_for_no_value_count_where_the_rest_is_no_text() {
        for (texts, type_name, takes, full) in [
            (&["1", "NA", "2"][..], "int", true, false),
            (&["NA", "DE"], "text", false, true),
            (&["NA", "NA"], "text", false, false),
            (&["2024-01-31", "NULL"], "date", true, false),
            (&["1", "2"], "int", false, true),
            (&["1", ""], "int", false, false),
        ] {
            let (guess, name) = of(texts);
            let guessed = guess.guessed();
            assert_eq!((name.as_str(), guessed.takes_nulls), (type_name, takes), "{texts:?}");
            assert_eq!(guess.is_full(&guessed), full, "{texts:?}");
        }
    }
}
