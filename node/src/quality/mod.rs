//! Checks of what is staged, before any of it is published.
//!
//! They are asked of the destination in its own SQL, over the rows exactly as they would become visible: what spans chunks
//! (uniqueness, quantiles) takes no memory here, and nothing is checked that isn't published. A run whose rows changed
//! between the check and the publish can't exist, since a verified staging area takes no rows.

mod questions;

use std::time::Duration;

use haulage_core::event::CheckResult;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::LoadName;
use haulage_core::run::Judged;
use haulage_core::words::counted;
use haulage_plan::checks::{Check, Method, OnFail, Rule};
use haulage_plan::definition::{Definition, Place};

use crate::sink::{Destination, Dialect, Expected, LoadContext};
use questions::Asker;

/// What one check found.
struct Found {
    holds: bool,
    words: String,
}

impl Found {
    /// Of so many rows, none may be.
    fn none(rows: u64, what: &str) -> Self {
        Self {
            holds: rows == 0,
            words: format!("{} {what}", counted(rows, "row")),
        }
    }
}

/// Checks of a load that its destination can't answer at all, each with its place: to be said before a row moves.
pub(crate) fn unanswerable(definition: &Definition, load: &LoadName, dialect: Dialect) -> Vec<(Place, String)> {
    let references = |check: &&Check| matches!(check.rule, Rule::References { .. });
    let refused = match dialect {
        Dialect::Postgres | Dialect::Sqlite => return Vec::new(),
        Dialect::DataFusion => definition.checks.iter().filter(references),
    };
    refused
        .filter(|check| check.load == *load && check.on_fail == OnFail::Fail)
        .map(|check| (check.place, questions::no_references(load)))
        .collect()
}

/// Makes the checks of a load that is verified. What they find is no failure; that one can't be made is.
pub(crate) async fn check(
    definition: &Definition,
    destination: &dyn Destination,
    load: &LoadContext,
    expected: Expected,
    judged: Option<Judged>,
) -> Result<Vec<CheckResult>, Failure> {
    let of_load = |check: &&Check| check.load == load.load;
    let checks: Vec<&Check> = definition.checks.iter().filter(of_load).collect();
    if checks.is_empty() {
        return Ok(Vec::new());
    }
    let Some(judged) = judged else {
        return Err(Failure::transient(
            "the leader is of a release that would publish whatever checks find; upgrade every coordinator",
        ));
    };
    let asker = Asker {
        destination,
        load,
        expected,
    };
    let mut results = Vec::new();
    for check in checks {
        let found = match one(&asker, check, judged).await {
            Ok(found) => found,
            // Whoever only wants to be warned wants the rows all the same.
            Err(failure) if failure.class == Class::Permanent && check.on_fail == OnFail::Warn => Found {
                holds: false,
                words: format!("it can't be made: {}", failure.message),
            },
            Err(failure) => return Err(of(check, failure)),
        };
        results.push(CheckResult {
            name: check.name.clone(),
            holds: found.holds,
            blocks: check.on_fail == OnFail::Fail,
            found: found.words,
        });
    }
    Ok(results)
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
            let rows = asker.without_value(columns).await?;
            Found::none(rows, "without a value there")
        }
        Rule::Unique(columns) => {
            let (groups, rows, example) = asker.doubles(columns).await?;
            match example {
                None => Found {
                    holds: true,
                    words: "no value is there twice".to_owned(),
                },
                Some(example) => Found {
                    holds: groups == 0,
                    words: format!(
                        "{} share {}, such as {example}",
                        counted(rows, "row"),
                        counted(groups, "value")
                    ),
                },
            }
        }
        Rule::RowCount(bound) => Found {
            holds: bound.holds(asker.expected.rows as f64),
            words: counted(asker.expected.rows, "row"),
        },
        Rule::RowCountNear { percent, runs } => row_count_near(asker, *percent, *runs).await?,
        Rule::Rejects(bound) => Found {
            holds: bound.holds_of(judged.rejected, judged.read),
            words: format!("{} of {} rejected", judged.rejected, counted(judged.read, "row")),
        },
        Rule::Accepted { column, values } => {
            let (rows, examples) = asker.outside(column, &asker.accepted(column, values)?).await?;
            Found::none(rows, &format!("with another value{examples}"))
        }
        Rule::Range { column, min, max } => {
            let outside = asker.out_of_range(column, min.as_deref(), max.as_deref())?;
            let (rows, examples) = asker.outside(column, &outside).await?;
            Found::none(rows, &format!("out of range{examples}"))
        }
        Rule::Fresh { column, within } => match asker.age(column).await? {
            None => Found {
                holds: false,
                words: "there is no value".to_owned(),
            },
            Some(age) => {
                let whole = Duration::try_from_secs_f64(age.max(0.0).floor()).unwrap_or(Duration::MAX);
                Found {
                    holds: age <= within.as_secs_f64(),
                    words: format!("the newest is {} old", humantime::format_duration(whole)),
                }
            }
        },
        Rule::References { column, table, to } => {
            let (rows, examples) = asker.outside(column, &asker.dangling(column, table, to)?).await?;
            Found::none(rows, &format!("whose value isn't there{examples}"))
        }
        Rule::Outliers {
            column,
            method,
            beyond,
            allowed,
        } => {
            let Some((low, high, all)) = fences(asker, column, *method, *beyond).await? else {
                return Ok(Found {
                    holds: true,
                    words: "too few values to tell".to_owned(),
                });
            };
            if !(low.is_finite() && high.is_finite()) {
                return Ok(Found {
                    holds: false,
                    words: "there are infinite values".to_owned(),
                });
            }
            let (rows, examples) = asker.outside(column, &asker.beyond(column, low, high)).await?;
            Found {
                holds: allowed.holds_of(rows, all),
                words: format!(
                    "{} of {all} outside {low:.4}..{high:.4}{examples}",
                    counted(rows, "value")
                ),
            }
        }
        Rule::Sql { query, expect } => match asker.custom(&query.text).await? {
            None => Found {
                holds: false,
                words: "the query gave NULL".to_owned(),
            },
            Some(text) => match text.trim().parse::<f64>() {
                Ok(value) => Found {
                    holds: expect.holds(value),
                    words: format!("the query gave {}", text.trim()),
                },
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
    let rows = asker.expected.rows as f64;
    Ok(match asker.mean_of_earlier_runs(runs).await? {
        (0, _) => Found {
            holds: true,
            words: format!("{}, and no earlier run", counted(asker.expected.rows, "row")),
        },
        (found, mean) => Found {
            holds: 100.0 * (rows - mean).abs() <= percent * mean,
            words: format!(
                "{} beside {mean:.1} in the mean of {}",
                counted(asker.expected.rows, "row"),
                counted(found, "earlier run")
            ),
        },
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
