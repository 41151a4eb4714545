//! Checks of what is staged, before any of it is published.
//!
//! They are asked of the destination in its own SQL, over the rows exactly as they would become visible: what spans chunks
//! (uniqueness, quantiles) takes no memory here, and nothing is checked that isn't published. A run whose rows changed
//! between the check and the publish can't exist, since a verified staging area takes no rows.
//!
//! Checks that set rows aside come first, see [`aside`]: all of them are asked of the same rows, so their order says nothing.
//! The others are then asked of the rows that are left, which are those to be visible.

pub(crate) mod aside;
mod keys;
mod questions;

use std::time::Duration;

use haulage_core::event::CheckResult;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::LoadName;
use haulage_core::run::Judged;
use haulage_core::words::counted;
use haulage_plan::checks::{Check, Method, OnFail, Referred, Rule};
use haulage_plan::definition::{Definition, Place};

use crate::sink::{Aside, Destination, Dialect, Expected, LoadContext, Question};
use crate::work::run::RunContext;
use questions::Asker;

/// What one check found.
struct Found {
    holds: bool,
    words: String,
    /// Which rows fail, where it names some.
    rows: Option<Question>,
}

impl Found {
    /// About the whole load.
    fn of_all(holds: bool, words: String) -> Self {
        Self {
            holds,
            words,
            rows: None,
        }
    }

    /// Of so many rows, none may be.
    fn none(rows: u64, what: &str, which: Question) -> Self {
        Self {
            holds: rows == 0,
            words: format!("{} {what}", counted(rows, "row")),
            rows: Some(which),
        }
    }
}

/// The load whose checks are made.
pub(crate) struct Checking<'a> {
    pub(crate) context: &'a RunContext,
    pub(crate) destination: &'a dyn Destination,
    pub(crate) load: &'a LoadContext,
    /// What its chunks reported.
    pub(crate) expected: Expected,
    pub(crate) judged: Option<Judged>,
}

/// Checks of a load that its destination can't answer at all, each with its place: to be said before a row moves.
pub(crate) fn unanswerable(definition: &Definition, load: &LoadName, dialect: Dialect) -> Vec<(Place, String)> {
    let of_a_table = |check: &&Check| {
        let of = match &check.rule {
            Rule::References { of, .. } => Some(of),
            _ => None,
        };
        matches!(of, Some(Referred::Table(_)))
    };
    let refused = match dialect {
        Dialect::Postgres | Dialect::Sqlite => return Vec::new(),
        Dialect::DataFusion => definition.checks.iter().filter(of_a_table),
    };
    refused
        .filter(|check| check.load == *load && check.on_fail != OnFail::Warn)
        .map(|check| (check.place, questions::no_references(load)))
        .collect()
}

/// Makes the checks of a load that is verified, of the rows that are left of it. What they find is no failure; that one
/// can't be made is.
pub(crate) async fn check(checking: &Checking<'_>, aside: Option<&Aside>) -> Result<Vec<CheckResult>, Failure> {
    let checks = checking.checks();
    if checks.is_empty() {
        return Ok(Vec::new());
    }
    let Some(mut judged) = checking.judged else {
        return Err(Failure::transient(
            "the leader is of a release that would publish whatever checks find; upgrade every coordinator",
        ));
    };
    let gone = aside.map_or(0, |aside| aside.set.rows);
    judged.rejected += gone;
    let asker = checking.asker(checking.expected.rows.saturating_sub(gone));
    let mut results = Vec::new();
    let mut made = aside.map(|aside| aside.checks.as_slice()).unwrap_or_default().iter();
    for check in checks {
        if check.on_fail == OnFail::Quarantine {
            results.extend(made.next().cloned());
            continue;
        }
        let found = match one(&asker, check, judged).await {
            Ok(found) => found,
            // Whoever only wants to be warned wants the rows all the same.
            Err(failure) if failure.class == Class::Permanent && check.on_fail == OnFail::Warn => {
                Found::of_all(false, format!("it can't be made: {}", failure.message))
            }
            Err(failure) => return Err(of(check, failure)),
        };
        results.push(CheckResult {
            name: check.name.clone(),
            holds: found.holds,
            blocks: check.on_fail == OnFail::Fail,
            found: found.words,
            set_aside: 0,
        });
    }
    Ok(results)
}

impl Checking<'_> {
    /// The load's checks, in the order of the file.
    fn checks(&self) -> Vec<&Check> {
        let checks = self.context.definition().checks.iter();
        checks.filter(|check| check.load == self.load.load).collect()
    }

    /// Who asks about so many rows.
    fn asker(&self, rows: u64) -> Asker<'_> {
        Asker {
            context: self.context,
            destination: self.destination,
            load: self.load,
            expected: self.expected,
            rows,
        }
    }
}

/// A failure that says which check could not be made, if that is what is wrong.
fn of(check: &Check, failure: Failure) -> Failure {
    match failure.class {
        Class::Permanent => Failure::permanent(format!(
            "load {}: the check `{}` can't be made: {}",
            check.load, check.name, failure.message
        )),
        Class::Transient | Class::Poison | Class::Fenced | Class::StagingLost => failure,
    }
}

async fn one(asker: &Asker<'_>, check: &Check, judged: Judged) -> Result<Found, Failure> {
    Ok(match &check.rule {
        Rule::NotNull(columns) => {
            let which = asker.without_value(columns);
            Found::none(asker.count(&which).await?, "without a value there", which)
        }
        Rule::Unique(columns) => {
            let (groups, rows, example) = asker.doubles(columns).await?;
            let words = match example {
                None => "no value is there twice".to_owned(),
                Some(example) => format!(
                    "{} share {}, such as {example}",
                    counted(rows, "row"),
                    counted(groups, "value")
                ),
            };
            Found {
                holds: groups == 0,
                words,
                rows: Some(asker.shared(columns)),
            }
        }
        Rule::RowCount(bound) => Found::of_all(bound.holds(asker.rows as f64), counted(asker.rows, "row")),
        Rule::RowCountNear { percent, runs } => row_count_near(asker, *percent, *runs).await?,
        Rule::Rejects(bound) => Found::of_all(
            bound.holds_of(judged.rejected, judged.read),
            format!("{} of {} rejected", judged.rejected, counted(judged.read, "row")),
        ),
        Rule::Accepted { column, values } => {
            let which = asker.accepted(column, values)?;
            let (rows, examples) = asker.outside(column, &which).await?;
            Found::none(rows, &format!("with another value{examples}"), which)
        }
        Rule::Range { column, min, max } => {
            let which = asker.out_of_range(column, min.as_deref(), max.as_deref())?;
            let (rows, examples) = asker.outside(column, &which).await?;
            Found::none(rows, &format!("out of range{examples}"), which)
        }
        Rule::Fresh { column, within } => match asker.age(column).await? {
            None => Found::of_all(false, "there is no value".to_owned()),
            Some(age) => {
                let whole = Duration::try_from_secs_f64(age.max(0.0).floor()).unwrap_or(Duration::MAX);
                Found::of_all(
                    age <= within.as_secs_f64(),
                    format!("the newest is {} old", humantime::format_duration(whole)),
                )
            }
        },
        Rule::References { column, of, to } => {
            let which = match of {
                Referred::Table(table) => asker.dangling(column, table, to)?,
                Referred::Lookup(name) => asker.unknown(column, keys::of(asker, name, to, column).await?),
            };
            let (rows, examples) = asker.outside(column, &which).await?;
            Found::none(rows, &format!("whose value isn't there{examples}"), which)
        }
        Rule::Outliers {
            column,
            method,
            beyond,
            allowed,
        } => {
            let Some((low, high, all)) = fences(asker, column, *method, *beyond).await? else {
                return Ok(Found::of_all(true, "too few values to tell".to_owned()));
            };
            if !(low.is_finite() && high.is_finite()) {
                return Ok(Found {
                    holds: false,
                    words: "there are infinite values".to_owned(),
                    rows: Some(asker.infinite(column)),
                });
            }
            let which = asker.beyond(column, low, high);
            let (rows, examples) = asker.outside(column, &which).await?;
            Found {
                holds: allowed.holds_of(rows, all),
                words: format!(
                    "{} of {all} outside {low:.4}..{high:.4}{examples}",
                    counted(rows, "value")
                ),
                rows: Some(which),
            }
        }
        Rule::Sql { query, expect } => match asker.custom(&query.text, &asker.context.definition().params).await? {
            None => Found::of_all(false, "the query gave NULL".to_owned()),
            Some(text) => match text.trim().parse::<f64>() {
                Ok(value) => Found::of_all(expect.holds(value), format!("the query gave {}", text.trim())),
                Err(_) => {
                    let shown: String = text.chars().take(40).collect();
                    return Err(Failure::permanent(format!(
                        "its query gave `{shown}`, which is no number; write SELECT count(*) FROM staged WHERE ..."
                    )));
                }
            },
        },
    })
}

async fn row_count_near(asker: &Asker<'_>, percent: f64, runs: u32) -> Result<Found, Failure> {
    let rows = asker.rows as f64;
    Ok(match asker.mean_of_earlier_runs(runs).await? {
        (0, _) => Found::of_all(true, format!("{}, and no earlier run", counted(asker.rows, "row"))),
        (found, mean) => Found::of_all(
            100.0 * (rows - mean).abs() <= percent * mean,
            format!(
                "{} beside {mean:.1} in the mean of {}",
                counted(asker.rows, "row"),
                counted(found, "earlier run")
            ),
        ),
    })
}

/// Between which values nothing is unusual, and how many values there are. `None` where there are too few to tell.
async fn fences(
    asker: &Asker<'_>,
    column: &str,
    method: Method,
    beyond: f64,
) -> Result<Option<(f64, f64, u64)>, Failure> {
    let (all, mean) = asker.mean(column).await?;
    if all < 3 {
        return Ok(None);
    }
    // Arithmetic with infinity has no end that could be written as SQL.
    if !mean.is_finite() {
        return Ok(Some((f64::NEG_INFINITY, f64::INFINITY, all)));
    }
    let around = |middle: f64, spread: f64| Some((middle - beyond * spread, middle + beyond * spread, all));
    Ok(match method {
        Method::ZScore => {
            let squares = asker.sum_of_squares(column, mean).await?;
            around(mean, (squares / (all as f64 - 1.0)).sqrt())
        }
        Method::Iqr => {
            let first = asker.quantile(column, None, 0.25).await?;
            let third = asker.quantile(column, None, 0.75).await?;
            Some((first - beyond * (third - first), third + beyond * (third - first), all))
        }
        Method::Mad => {
            let median = asker.quantile(column, None, 0.5).await?;
            let deviation = asker.quantile(column, Some(median), 0.5).await?;
            // More than half of the values are the same: then the mean deviation stands in, as Iglewicz and Hoaglin have it.
            let spread = if deviation > 0.0 {
                1.4826 * deviation
            } else {
                1.2533 * asker.mean_deviation(column, median).await?
            };
            around(median, spread)
        }
    })
}
