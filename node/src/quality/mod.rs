//! Checks of what is staged, before any of it is published.
//!
//! They are asked of the destination in its own SQL, over the rows exactly as they would become visible: what spans chunks
//! (uniqueness, quantiles) takes no memory here, and nothing is checked that isn't published. A run whose rows changed
//! between the check and the publish can't exist, since a verified staging area takes no rows.
//!
//! Checks that set rows aside come first, see [`aside`]: all of them are asked of the same rows, so their order says nothing.
//! The others are then asked of the rows that are left, which are those to be visible.

pub(crate) mod aside;
mod beside;
mod decimal;
mod keys;
mod questions;
mod spread;

use std::time::Duration;

use haulage_core::event::CheckResult;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::LoadName;
use haulage_core::run::Judged;
use haulage_core::words::counted;
use haulage_plan::checks::{Check, OnFail, Referred, Rule};
use haulage_plan::definition::{Definition, Place};

use crate::sink::{Aside, Destination, Dialect, Expected, LoadContext, Question};
use crate::work::run::RunContext;
use beside::{Newest, STAGED};
use questions::Asker;
use spread::outliers;

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

/// Makes the checks of a load that is verified, of the rows that are `left` of it. What they find is no failure; that one
/// can't be made is.
pub(crate) async fn check(
    checking: &Checking<'_>,
    aside: Option<&Aside>,
    left: u64,
) -> Result<Vec<CheckResult>, Failure> {
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
    let mut asker = checking.asker(checking.expected.rows.saturating_sub(gone));
    asker.rows = left;
    // Of a replay in which none of the rows passes, nothing is published: nothing is to be said of it.
    let is_idle = asker.is_replay() && asker.rows == 0;
    let mut results = Vec::new();
    let mut made_before = aside.map(|aside| aside.checks.as_slice()).unwrap_or_default().iter();
    for check in checks {
        if check.on_fail == OnFail::Quarantine {
            results.extend(made_before.next().cloned());
            continue;
        }
        let made = match is_idle {
            true => Ok(Found::of_all(
                true,
                "no replayed row passes, so none is looked at".to_owned(),
            )),
            false => one(&asker, check, judged).await,
        };
        let found = match made {
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
            brought: rows,
            before_newest: false,
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
        Rule::Unique(columns) => unique(asker, columns).await?,
        Rule::RowCount(bound) => {
            let (rows, words) = rows_of_the_run(asker, asker.rows).await?;
            Found::of_all(bound.holds(rows as f64), words)
        }
        Rule::RowCountNear { .. } if is_nothing_new(asker, judged) => {
            Found::of_all(true, "nothing new was read".to_owned())
        }
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
        Rule::Fresh { column, within } => fresh(asker, column, *within).await?,
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
            let named = outliers(asker, column, (*method, *beyond), allowed).await?;
            named.unwrap_or_else(|why| Found::of_all(true, why.to_owned()))
        }
        Rule::Sql { query, expect } => match asker.custom(&query.text, &asker.context.definition().params).await? {
            // As a sum or a mean of no rows is.
            None if is_nothing_new(asker, judged) => {
                Found::of_all(true, "the query gave NULL, and nothing new was read".to_owned())
            }
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

/// Whether no row was there since the last run read the source.
fn is_nothing_new(asker: &Asker<'_>, judged: Judged) -> bool {
    asker.is_increment() && judged.read == 0
}

async fn unique(asker: &Asker<'_>, columns: &[String]) -> Result<Found, Failure> {
    let among = asker.unique_among(columns).await?;
    let shared = asker.shared(columns, &among);
    let (groups, rows, example) = asker.doubles(columns, &among).await?;
    // Of a replay, what it doesn't share in is no matter of it.
    let holds = groups == 0 || (asker.is_replay() && asker.count(&shared).await? == 0);
    let words = match example.filter(|_| !holds) {
        None => "no value is there twice".to_owned(),
        Some(example) => format!(
            "{} share {}, such as {example}",
            counted(rows, "row"),
            counted(groups, "value")
        ),
    };
    Ok(Found {
        holds,
        words,
        rows: Some(shared),
    })
}

/// So many rows, in words; of a replay with those that the run had published which is replayed.
async fn rows_of_the_run(asker: &Asker<'_>, rows: u64) -> Result<(u64, String), Failure> {
    if !asker.is_replay() {
        return Ok((rows, counted(rows, "row")));
    }
    let all = rows + asker.published_before().await?;
    Ok((all, format!("{}, {rows} of them replayed", counted(all, "row"))))
}

async fn row_count_near(asker: &Asker<'_>, percent: f64, runs: u32) -> Result<Found, Failure> {
    // As records of earlier runs count them.
    let (rows, words) = rows_of_the_run(asker, asker.brought).await?;
    Ok(match asker.earlier_runs(runs).await? {
        (0, _) => Found::of_all(true, format!("{words}, and no earlier run")),
        (found, sum) => Found::of_all(
            is_near(rows as f64, found as f64, sum, percent),
            format!(
                "{words} beside {:.1} in the mean of {}",
                sum / found as f64,
                counted(found, "earlier run")
            ),
        ),
    })
}

/// Whether a number is within so many percent of the mean of some that have a sum. Nothing is divided but whole numbers, so
/// that a share that is met exactly is the nearest number to what was written.
fn is_near(rows: f64, count: f64, sum: f64, percent: f64) -> bool {
    let share = format!("{percent}e-2").parse().unwrap_or(percent / 100.0);
    let apart = (rows * count - sum).abs();
    if sum > 0.0 { apart / sum <= share } else { apart == 0.0 }
}

/// Whether the newest value is new enough. An increment may have none: then it is that of the table. Rows of a replay are as old
/// as their run.
async fn fresh(asker: &Asker<'_>, column: &str, within: Duration) -> Result<Found, Failure> {
    let ahead = asker.ahead(column);
    let none = || Found::of_all(false, "there is no value".to_owned());
    Ok(match asker.age(column, STAGED).await? {
        Some(age) if asker.is_replay() => how_old(age, Duration::MAX, ahead),
        None if asker.is_replay() => Found::of_all(true, "there is no value among the replayed rows".to_owned()),
        Some(age) => how_old(age, within, ahead),
        None if asker.is_increment() => match asker.newest_there(column).await? {
            Newest::Age(age, place) => {
                let found = how_old(age, within, ahead);
                Found::of_all(found.holds, format!("no new value, and {}{place}", found.words))
            }
            Newest::None => none(),
            Newest::Untold => Found::of_all(
                true,
                "no new value, and those that are there can't be looked at".to_owned(),
            ),
        },
        None => none(),
    })
}

/// What the age of the newest value says, in seconds. One that lies ahead would make the check hold for as long as that.
fn how_old(age: f64, within: Duration, ahead: Duration) -> Found {
    let whole = Duration::try_from_secs_f64(age.abs().floor()).unwrap_or(Duration::MAX);
    let whole = humantime::format_duration(whole);
    if -age > ahead.as_secs_f64() {
        return Found::of_all(false, format!("the newest lies {whole} ahead"));
    }
    let words = match age < 0.0 {
        true => "the newest is 0s old".to_owned(),
        false => format!("the newest is {whole} old"),
    };
    Found::of_all(age <= within.as_secs_f64(), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_mean_holds_at_its_exact_edge() {
        for hundredths in 1..2_000_u32 {
            let percent: f64 = format!("{}.{:02}", hundredths / 100, hundredths % 100)
                .parse()
                .expect("it is a number");
            let (rows, more) = (10_000 - hundredths, 9_999 - hundredths);
            // Of one run, and of three whose mean that is.
            for (count, sum) in [(1.0, 10_000.0), (3.0, 30_000.0)] {
                assert!(is_near(rows.into(), count, sum, percent), "{percent}");
                assert!(!is_near(more.into(), count, sum, percent), "{percent}");
            }
        }
        assert!(is_near(0.0, 2.0, 0.0, 5.0) && !is_near(1.0, 2.0, 0.0, 5.0));
    }

    #[test]
    fn what_lies_ahead_is_not_fresh() {
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        for (age, holds, words) in [
            (3600.0, true, "the newest is 1h old"),
            (3600.5, false, "the newest is 1h old"),
            (-59.0, true, "the newest is 0s old"),
            (-61.0, false, "the newest lies 1m 1s ahead"),
            (f64::NEG_INFINITY, false, "ahead"),
        ] {
            let found = how_old(age, hour, minute);
            assert!(
                found.holds == holds && found.words.contains(words),
                "{age}: {}",
                found.words
            );
        }
    }
}
