//! Rounds of each workload, as in every run of all tests; and the judges themselves, held against what is wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::support::process::until;
use super::report::Report;
use super::round::Story;
use super::workload::{Difference, Target, Workload, source};

/// Rounds of each test.
const ROUNDS: u64 = 10;

/// Rounds of one workload; the seed is the test's own unless `HAULAGE_CHAOS_SEED` says another one.
async fn rounds(workload: Workload, seed: u64) -> Result<()> {
    let seed = number("HAULAGE_CHAOS_SEED")?.unwrap_or(seed);
    let rounds = number("HAULAGE_CHAOS_ROUNDS")?.unwrap_or(ROUNDS);
    eprintln!("seed {seed}");
    let mut story = Story::begin(seed, Report::default()).await?;
    for _ in 0..rounds {
        story.round(workload).await.with_context(|| format!("seed {seed}"))?;
    }
    let report = &story.report;
    eprintln!("{report}");
    ensure!(
        report.rounds == rounds && report.published * 2 >= rounds,
        "hardly anything was published"
    );
    // As many as a test has rounds, at least: seeds decide which, and the four tests have different ones.
    ensure!(
        report.kinds_met() as u64 >= rounds.min(ROUNDS),
        "hardly any kind of fault has met a run"
    );
    Ok(())
}

/// A whole number from the environment.
fn number(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{name}={text}")),
        Err(_) => Ok(None),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_stay_exact() -> Result<()> {
    rounds(Workload::Append, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_stay_exact() -> Result<()> {
    rounds(Workload::Merge, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacements_stay_exact() -> Result<()> {
    rounds(Workload::Replace, 3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_destinations_stay_exact_together() -> Result<()> {
    rounds(Workload::TwoDestinations, 4).await
}

/// The judges themselves: a row that is gone, one that is there twice, and a state in between are each seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_seen() -> Result<()> {
    let mut story = Story::begin(1, Report::default()).await?;
    let (world, readers) = (&story.world, &story.readers);
    let source = source(&mut story.rng, 0);
    let before = story.model.clone();
    story.model.publish(Workload::Merge, &source);
    let sights = vec![before.sight(Target::Book), story.model.sight(Target::Book)];
    readers.allow(Target::Book, sights);
    let values = source
        .rows
        .iter()
        .map(|(id, value, note)| format!("({id}, {value}, '{note}')"));
    let made = format!(
        "CREATE TABLE made (id bigint, value bigint, note text); INSERT INTO made VALUES {};
         ALTER TABLE made RENAME TO book",
        values.collect::<Vec<_>>().join(", ")
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(made)).execute(&world.pool).await?;
    let compare = async || story.model.compare(Target::Book, world).await;
    ensure!(
        compare().await? == Difference::default(),
        "what is right is called wrong"
    );
    let reads = readers.reads();
    let looked_again = async || Ok((readers.reads() > reads + 8).then_some(()));
    until("readers have looked again", Duration::from_secs(60), looked_again).await?;
    ensure!(readers.wrong().is_empty(), "readers call wrong what is right");

    let first = &source.rows[0].0;
    let damage = format!(
        "DELETE FROM book WHERE id = {first}; INSERT INTO book SELECT * FROM book WHERE id = {}",
        source.rows[1].0
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(damage)).execute(&world.pool).await?;
    let found = compare().await?;
    ensure!(found == Difference { lost: 1, duplicated: 1 }, "{found:?}");
    let seen = async || Ok(Some(readers.wrong()).filter(|wrong| !wrong.is_empty()));
    let wrong = until("a reader sees it", Duration::from_secs(60), seen).await?;
    ensure!(wrong[0].starts_with("book: Some(("), "{wrong:?}");
    Ok(())
}
