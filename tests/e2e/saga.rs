//! A run with three loads in two databases, whose last publish fails for good after two have published: every destination
//! is as it was before, byte for byte. Also when the leader is killed in the middle of the undoing, and also when every
//! compensation is done twice.

use anyhow::{Result, ensure};
use haulage_test_support::PATIENCE;
use serde_json::Value;

use super::support::cluster::{check_state, events, run_of};
use super::support::numbers::Numbers;

const LOADS: [&str; 3] = [
    "first: {from: some, to: warehouse, table: swapped, mode: replace, key: [id]}",
    "second: {from: some, to: warehouse, table: merged, mode: merge, key: [id]}",
    "third: {from: some, to: side, table: last, mode: append}",
];
const WAREHOUSE: &str = "
    CREATE TABLE swapped (id integer PRIMARY KEY, name text); CREATE INDEX by_name ON swapped (name);
    INSERT INTO swapped VALUES (-1, 'old'), (3, 'three');
    CREATE TABLE merged (id integer PRIMARY KEY, name text, note text DEFAULT 'n');
    INSERT INTO merged VALUES (-1, 'old', 'x'), (3, 'three', NULL), (4, 'somebody with number 4', 'y');";
/// The publish inserts row 5,000 too, and so it fails: after all the others have published.
const SIDE: &str = "
    CREATE TABLE last (id INTEGER, name TEXT, _haulage_run TEXT); INSERT INTO last VALUES (-1, 'old', NULL);
    CREATE TRIGGER no_more BEFORE INSERT ON last WHEN NEW.id = 5000
        BEGIN SELECT RAISE(ABORT, 'number 5000 is not wanted here'); END;";

async fn undone(faults: &str, kill_leader: bool) -> Result<Value> {
    let mut numbers = Numbers::start(2, faults, WAREHOUSE, SIDE).await?;
    let before = numbers.contents().await?;
    let run = numbers.submit(&LOADS, &[]).await?;
    if kill_leader {
        let middle = |shown: &Value| !events(shown, "compensated").is_empty();
        let shown = numbers
            .cluster
            .until_run(&run, "a step is undone", PATIENCE, middle)
            .await?;
        check_state(&shown, "rolling_back")?;
        numbers.cluster.restart_coordinator().await?;
    }
    let shown = numbers.cluster.until_rest(&run).await?;
    check_state(&shown, "failed")?;
    let error = run_of(&shown)["error"].as_str().unwrap_or_default();
    ensure!(error.contains("number 5000 is not wanted here"), "{error}");
    let published: Vec<&Value> = events(&shown, "step_done")
        .into_iter()
        .filter(|event| event["event"]["step"]["kind"] == "publish")
        .collect();
    ensure!(published.len() == 2, "two loads were published before: {published:?}");
    let undone: Vec<String> = events(&shown, "compensated")
        .iter()
        .map(|event| {
            let step = &event["event"]["step"];
            format!(
                "{} {}",
                step["kind"].as_str().unwrap_or_default(),
                step["load"].as_str().unwrap_or_default()
            )
        })
        .collect();
    ensure!(
        undone[..3] == ["publish third", "publish second", "publish first"] && undone.len() == 6,
        "{undone:?}"
    );
    numbers.check_contents(&before).await?;
    numbers.check_nothing_left().await?;
    Ok(shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_publish_that_fails_leaves_every_destination_as_it_was() -> Result<()> {
    undone("", false).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_the_leader_dies_in_the_middle_of_undoing() -> Result<()> {
    undone("slow@compensation:900ms", true).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_every_compensation_is_done_twice() -> Result<()> {
    let shown = undone("again@compensation", false).await?;
    let lost: Vec<&Value> = events(&shown, "attempt_failed")
        .into_iter()
        .filter(|event| event["event"]["work"]["compensate"].is_object())
        .collect();
    ensure!(lost.len() >= 6, "every answer was lost once: {lost:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_both_happen() -> Result<()> {
    undone("again@compensation,slow@compensation:500ms", true)
        .await
        .map(drop)
}
