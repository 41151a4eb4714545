//! A run with three loads in two databases, whose last publish fails for good after two have published: every destination
//! is as it was before, byte for byte. Also when the leader is killed in the middle of the undoing, and also when every
//! compensation is done twice. And what an operator decides about a run in a home.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use haulage_test_support::PATIENCE;
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

use super::support::cluster::{check_state, events, run_of};
use super::support::numbers::{Numbers, pipeline};
use super::support::process::{Verb, newest_run};

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

/// What becomes of the leader in the middle of undoing.
#[derive(Clone, Copy, PartialEq)]
enum Leader {
    Stays,
    /// It is killed, and started again.
    Restarts,
    /// It is killed for good, and there is a standby.
    IsReplaced,
}

async fn undone(faults: &str, leader: Leader) -> Result<Value> {
    let coordinators: &[&str] = if leader == Leader::IsReplaced {
        &["c1", "c2"]
    } else {
        &["c1"]
    };
    let mut numbers = Numbers::start_led_by(coordinators, 2, faults, WAREHOUSE, SIDE).await?;
    let before = numbers.contents().await?;
    let run = numbers.submit(&LOADS, &[]).await?;
    if leader != Leader::Stays {
        let middle = |shown: &Value| !events(shown, "compensated").is_empty();
        let shown = numbers
            .cluster
            .until_run(&run, "a step is undone", PATIENCE, middle)
            .await?;
        check_state(&shown, "rolling_back")?;
        match leader {
            Leader::Stays => {}
            Leader::Restarts => numbers.cluster.restart_coordinator().await?,
            Leader::IsReplaced => numbers.cluster.coordinator.kill().await?,
        }
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
    undone("", Leader::Stays).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_the_leader_dies_in_the_middle_of_undoing() -> Result<()> {
    undone("slow@compensation:900ms", Leader::Restarts).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_every_compensation_is_done_twice() -> Result<()> {
    let shown = undone("again@compensation", Leader::Stays).await?;
    let lost: Vec<&Value> = events(&shown, "attempt_failed")
        .into_iter()
        .filter(|event| event["event"]["work"]["compensate"].is_object())
        .collect();
    ensure!(lost.len() >= 6, "every answer was lost once: {lost:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_both_happen() -> Result<()> {
    undone("again@compensation,slow@compensation:500ms", Leader::Restarts)
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_when_a_standby_has_to_go_on_with_undoing() -> Result<()> {
    let faults = "again@compensation,slow@compensation:900ms";
    undone(faults, Leader::IsReplaced).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_run_of_a_home_is_decided_only_where_its_destination_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let verb = |args: &[&str]| Verb::new(folder.path()).args(args.iter().map(OsString::from));
    let file = folder.path().join("numbers.yaml").display().to_string();
    std::fs::write(
        &file,
        pipeline(&["a: {from: some, to: warehouse, table: added, mode: append}"]),
    )?;
    std::fs::write(folder.path().join("numbers.csv"), "id,name\n1,one\n")?;
    let warehouse = folder.path().join(".haulage/warehouse.db");
    let execute = async |sql: &'static str| -> Result<()> {
        let mut connection = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", warehouse.display())).await?;
        sqlx::raw_sql(sql).execute(&mut connection).await?;
        Ok(connection.close().await?)
    };
    std::fs::create_dir(folder.path().join(".haulage"))?;
    execute("CREATE TABLE added (id INTEGER, name TEXT, _haulage_run TEXT)").await?;
    verb(&["run", &file]).output().await?.success()?;
    let run = newest_run(folder.path()).await?;
    execute("CREATE TRIGGER keep BEFORE DELETE ON added BEGIN SELECT RAISE(ABORT, 'nothing is deleted here'); END")
        .await?;
    let stuck = verb(&["revert", &run]).output().await?;
    stuck.failure(&["the run is stuck", "nothing is deleted here", "haulage saga retry"])?;

    let elsewhere = format!("warehouse=sqlite:{}", folder.path().join("other.db").display());
    let retry = ["saga", "retry", &run];
    let abandon = ["saga", "abandon", &run, "--reason", "it is elsewhere"];
    let show = verb(&["show", &run, "--output", "json"]);
    for (decision, hint) in [
        (&retry[..], format!("haulage saga retry {run} --destination warehouse=")),
        (
            &abandon[..],
            format!("haulage saga abandon {run} --reason TEXT --destination warehouse="),
        ),
    ] {
        let refused = verb(decision).args(["--destination", &elsewhere]).output().await?;
        let refused = refused.failure(&["`warehouse`", "warehouse.db", "other.db", &hint])?;
        ensure!(refused.code == 2, "{refused:?}");
        let shown = show.output().await?.success()?.json()?;
        check_state(&shown, "stuck")?;
        ensure!(events(&shown, "unstuck").is_empty(), "{shown:#}");
    }

    execute("DROP TRIGGER keep").await?;
    verb(&retry).output().await?.success()?;
    check_state(&show.output().await?.success()?.json()?, "reverted")
}
