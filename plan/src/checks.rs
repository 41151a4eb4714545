//! Checks: what must hold of the rows that a load has staged before any of it is published.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use haulage_core::ids::LoadName;

use crate::definition::{Place, Sql};

/// What is looked at, and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The load whose staged rows it looks at.
    pub load: LoadName,
    /// What must hold.
    pub rule: Rule,
    /// What it means if it doesn't.
    pub on_fail: OnFail,
    /// What a person calls it: its `name`, or the rule in words.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
}

/// What a check that doesn't hold means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFail {
    /// Nothing is published: the run fails, and what it staged is dropped.
    #[default]
    Fail,
    /// It is said, and the run goes on.
    Warn,
    /// The rows that it names are set aside as rejected rows of the run, and the others are published. Only of a rule that
    /// [names rows](Rule::names_rows).
    Quarantine,
}

/// What must hold of the staged rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// These columns have a value in every row.
    NotNull(Vec<String>),
    /// No two rows have the same values here. Rows with a NULL among them are left out, as of a unique constraint.
    Unique(Vec<String>),
    /// How many rows there are.
    RowCount(Bound),
    /// How many rows there are beside the newest published runs of the table: not further from their mean than a share of
    /// it. Holds while there is none.
    RowCountNear {
        /// The share of the mean, in percent.
        percent: f64,
        /// How many runs.
        runs: u32,
    },
    /// How many of the source rows went to quarantine on the way to the load; with `%`, of those that were read.
    Rejects(Bound),
    /// Every value of the column is one of these; NULL passes.
    Accepted {
        /// The column.
        column: String,
        /// As texts.
        values: Vec<String>,
    },
    /// Every value of the column lies between the two, which are values themselves; NULL passes.
    Range {
        /// The column.
        column: String,
        /// As text.
        min: Option<String>,
        /// As text.
        max: Option<String>,
    },
    /// The newest value of a column of times is not older than this when the check runs.
    Fresh {
        /// The column.
        column: String,
        /// How old it may be.
        within: Duration,
    },
    /// Every value of the column stands in a column of something else; NULL passes.
    References {
        /// The column.
        column: String,
        /// What it refers to.
        of: Referred,
        /// The column there.
        to: String,
    },
    /// How many values lie unusually far from the rest. With `%`, of the rows that have a value.
    Outliers {
        /// The column, of numbers.
        column: String,
        /// What is unusual.
        method: Method,
        /// How far is too far, in the method's own measure.
        beyond: f64,
        /// How many may be.
        allowed: Bound,
    },
    /// A query in the destination's SQL over `staged`, where `$name` is a parameter; its first value must be so. NULL never
    /// is.
    Sql {
        /// The query.
        query: Sql,
        /// What its value must be.
        expect: Bound,
    },
}

/// What a column refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Referred {
    /// A table of the destination: `table` or `schema.table`.
    Table(String),
    /// A lookup of the pipeline.
    Lookup(String),
}

/// How far a value is from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// In standard deviations from the mean.
    ZScore,
    /// In interquartile ranges below the first or above the third quartile.
    Iqr,
    /// In median absolute deviations from the median, times 1.4826, so that it compares with standard deviations.
    Mad,
}

/// A bound of a number: `>= 1000`, `< 1%`, `= 0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// How the number compares.
    pub comparison: Comparison,
    /// With what; of a share `1%` is 0.01.
    pub value: f64,
    /// Whether it is a share.
    pub is_share: bool,
}

/// How a number compares with a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `=`
    Equal,
    /// `>=`
    AtLeast,
    /// `>`
    More,
}

impl Comparison {
    /// Longest first, so that `<=` isn't read as `<`.
    const ALL: [(&'static str, Self); 5] = [
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("<", Self::Less),
        (">", Self::More),
        ("=", Self::Equal),
    ];
}

impl Bound {
    /// How many may be at most, all in all: none, unless a file says otherwise.
    pub const NONE: Self = Self {
        comparison: Comparison::Equal,
        value: 0.0,
        is_share: false,
    };

    /// Reads one. `None` if the text isn't one.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (sign, comparison) = Comparison::ALL.into_iter().find(|(sign, _)| text.starts_with(sign))?;
        let number = text[sign.len()..].trim();
        let (number, is_share) = match number.strip_suffix('%') {
            Some(number) => (number.trim(), true),
            None => (number, false),
        };
        // Divided by 100, 0.7 would be a little less than the nearest number to 0.007, which is what 7 of 1000 are.
        let exponent = if is_share && !number.contains(['e', 'E']) {
            "e-2"
        } else {
            ""
        };
        let value: f64 = format!("{}{exponent}", number.replace('_', "")).parse().ok()?;
        value.is_finite().then_some(Self {
            comparison,
            value,
            is_share,
        })
    }

    /// Whether a number is so.
    pub fn holds(&self, number: f64) -> bool {
        match self.comparison {
            Comparison::Less => number < self.value,
            Comparison::AtMost => number <= self.value,
            Comparison::Equal => number == self.value,
            Comparison::AtLeast => number >= self.value,
            Comparison::More => number > self.value,
        }
    }

    /// Whether so many of all are so: their number, or their share if the bound is one. Of nothing the share is 0.
    pub fn holds_of(&self, part: u64, all: u64) -> bool {
        let (part, all) = (part as f64, all as f64);
        match (self.is_share, all > 0.0) {
            (true, true) => self.holds(part / all),
            (true, false) => self.holds(0.0),
            (false, _) => self.holds(part),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Comparison::ALL
            .iter()
            .find(|(_, comparison)| *comparison == self.comparison);
        let sign = sign.map_or("", |(sign, _)| sign);
        if self.is_share {
            // Rounded, since 0.07 * 100 is a little more than 7.
            write!(f, "{sign} {}%", (self.value * 1e8).round() / 1e6)
        } else {
            write!(f, "{sign} {}", self.value)
        }
    }
}

impl Rule {
    /// The key of the pipeline file that makes it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotNull(_) => "not_null",
            Self::Unique(_) => "unique",
            Self::RowCount(_) | Self::RowCountNear { .. } => "row_count",
            Self::Rejects(_) => "rejects",
            Self::Accepted { .. } => "accepted",
            Self::Range { .. } => "range",
            Self::Fresh { .. } => "fresh",
            Self::References { .. } => "references",
            Self::Outliers { .. } => "outliers",
            Self::Sql { .. } => "sql",
        }
    }

    /// Whether it says of each row by itself whether it fails, so that rows can be set aside.
    pub fn names_rows(&self) -> bool {
        match self {
            Self::NotNull(_)
            | Self::Unique(_)
            | Self::Accepted { .. }
            | Self::Range { .. }
            | Self::References { .. }
            | Self::Outliers { .. } => true,
            Self::RowCount(_)
            | Self::RowCountNear { .. }
            | Self::Rejects(_)
            | Self::Fresh { .. }
            | Self::Sql { .. } => false,
        }
    }

    /// The columns of the load that it names.
    pub fn columns(&self) -> &[String] {
        match self {
            Self::NotNull(columns) | Self::Unique(columns) => columns,
            Self::Accepted { column, .. }
            | Self::Range { column, .. }
            | Self::Fresh { column, .. }
            | Self::References { column, .. }
            | Self::Outliers { column, .. } => std::slice::from_ref(column),
            Self::RowCount(_) | Self::RowCountNear { .. } | Self::Rejects(_) | Self::Sql { .. } => &[],
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.word())?;
        match self {
            Self::NotNull(columns) | Self::Unique(columns) => f.write_str(&columns.join(", ")),
            Self::RowCount(bound) | Self::Rejects(bound) => write!(f, "{bound}"),
            Self::RowCountNear { percent, runs } => write!(f, "within {percent}% of the last {runs} runs"),
            Self::Accepted { column, .. } => write!(f, "{column}"),
            Self::Range { column, min, max } => write!(
                f,
                "{column} {}..{}",
                min.as_deref().unwrap_or_default(),
                max.as_deref().unwrap_or_default()
            ),
            Self::Fresh { column, within } => write!(f, "{column} within {}", humantime::format_duration(*within)),
            Self::References { column, of, to } => match of {
                Referred::Table(table) => write!(f, "{column} in {table}.{to}"),
                Referred::Lookup(name) => write!(f, "{column} in lookup {name}.{to}"),
            },
            Self::Outliers {
                column, method, beyond, ..
            } => write!(f, "{column} {} {beyond}", method.word()),
            Self::Sql { expect, .. } => write!(f, "{expect}"),
        }
    }
}

impl Check {
    /// The reason that rows have which it sets aside.
    pub fn reason(&self) -> String {
        format!("check:{}", self.name)
    }
}

/// Where a query names parameters: the bytes of each `$name`, in order. Text in quotes, quoted names and comments name none.
/// `Err` says why it can't be read.
pub fn placeholders(query: &str) -> Result<Vec<(Range<usize>, String)>, String> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, query).tokenize_with_location();
    let tokens = tokens.map_err(|error| error.message)?;
    // A location is a line and a place among its characters, both from 1.
    let lines: Vec<usize> = std::iter::once(0)
        .chain(query.match_indices('\n').map(|(at, _)| at + 1))
        .collect();
    let byte = |line: u64, column: u64| {
        let start = *lines.get(usize::try_from(line).ok()?.checked_sub(1)?)?;
        let nth = usize::try_from(column).ok()?.checked_sub(1)?;
        let rest = query.get(start..)?;
        Some(rest.char_indices().nth(nth).map_or(query.len(), |(at, _)| start + at))
    };
    let mut found = Vec::new();
    for token in tokens {
        let Token::Placeholder(name) = &token.token else {
            continue;
        };
        let start = byte(token.span.start.line, token.span.start.column);
        let range = start.map(|start| start..start + name.len());
        match range {
            Some(range) if query.get(range.clone()) == Some(name.as_str()) => found.push((range, name.clone())),
            Some(_) | None => return Err(format!("names `{name}` at a place that can't be told")),
        }
    }
    Ok(found)
}

impl Method {
    /// As the pipeline file calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::ZScore => "zscore",
            Self::Iqr => "iqr",
            Self::Mad => "mad",
        }
    }

    /// How far is too far, unless a file says otherwise: what textbooks say.
    pub fn usual(self) -> f64 {
        match self {
            Self::ZScore => 3.0,
            Self::Iqr => 1.5,
            Self::Mad => 3.5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_where_they_are_and_nowhere_else() {
        let query = "SELECT '$no', \"$no\" -- $no\n, 'ü' || $day /* $no */\nFROM staged WHERE é = $n1 AND b=$day";
        let found = placeholders(query).expect("readable");
        let texts: Vec<&str> = found.iter().map(|(range, _)| &query[range.clone()]).collect();
        assert_eq!(texts, ["$day", "$n1", "$day"]);
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, texts);
    }

    #[test]
    fn bounds_are_read_and_written_and_hold_at_their_edges() {
        for (text, below, at, above) in [
            ("< 5", true, false, false),
            ("<=5", true, true, false),
            ("= 5", false, true, false),
            (">= 5", false, true, true),
            ("> 5", false, false, true),
        ] {
            let bound = Bound::parse(text).expect("it is a bound");
            assert_eq!([4, 5, 6].map(|n| bound.holds_of(n, 9)), [below, at, above], "{text}");
            assert_eq!(Bound::parse(&bound.to_string()), Some(bound));
        }
        let share = Bound::parse("<= 7%").expect("it is a share");
        assert_eq!(share.to_string(), "<= 7%");
        assert!(share.holds_of(7, 100) && !share.holds_of(8, 100));
        assert!(share.holds_of(0, 0), "of nothing, nothing is too much");
        for tenths in 1..1_000 {
            let at = Bound::parse(&format!("<= {}.{}%", tenths / 10, tenths % 10)).expect("it is a share");
            assert!(at.holds_of(tenths, 1_000) && !at.holds_of(tenths + 1, 1_000), "{at}");
        }
        assert_eq!(Bound::parse("1_000"), None);
        assert_eq!(Bound::parse(">= 1_000").map(|bound| bound.value), Some(1000.0));
        for wrong in ["", "5", "< ", "< x", "< %", "=> 5", "< inf", "< NaN"] {
            assert_eq!(Bound::parse(wrong), None, "{wrong}");
        }
    }
}
