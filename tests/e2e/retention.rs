//! Rejected rows are kept for as long as somebody has said, and then they go by themselves: never while a replay reads
//! them, and whoever leads.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::support::cluster::{Cluster, Settings, events, run_of};
use super::support::postgres::Postgres;
use super::support::process::{Verb, newest_run, until};

const KEEP: &str = "HAULAGE_KEEP_REJECTS";
const MINUTE: Duration = Duration::from_secs(60);

/// A pipeline that rejects odd numbers into a table of its own, or none of them.
fn write(folder: &Path, file: &str, table: &str, reject: &str) -> Result<()> {
    std::fs::write(folder.join("numbers.csv"), "id\n1\n2\n3\n4\n")?;
    let text = format!(
        "pipeline: {table}\nsources:\n  raw: {{csv: numbers.csv, columns: {{id: int!}}}}\nsteps:\n  some:\n    sql: SELECT * FROM \
         raw\n    reject: {{odd: {reject}}}\nloads:\n  out: {{from: some, to: warehouse, table: {table}, mode: append}}\n"
    );
    Ok(std::fs::write(folder.join(file), text)?)
}

const ODD: &str = "id % 2 = 1";
const ONE: &str = "id = 1";

/// How many objects of rejected rows a run has in a store.
fn kept(store: &Path, run: &str) -> Result<usize> {
    let mut found = 0;
    let mut folders = vec![store.join("runs").join(run)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(".rejects.jsonl.zst") {
                found += 1;
            }
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_keeps_them_for_as_long_as_a_run_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join(".haulage/checkpoints");
    let verb = |args: &[&str]| Verb::new(folder.path()).args(args.iter().copied());
    write(folder.path(), "first.yaml", "first", ODD)?;
    verb(&["run", "first.yaml"]).output().await?.success()?;
    let first = newest_run(folder.path()).await?;
    ensure!(kept(&store, &first)? == 1);

    // Long enough: nothing goes. Also by the variable, which every run of the machine has.
    write(folder.path(), "second.yaml", "second", ODD)?;
    verb(&["run", "second.yaml", "--keep-rejects", "90d"])
        .output()
        .await?
        .success()?;
    let second = newest_run(folder.path()).await?;
    verb(&["run", "second.yaml"])
        .env(KEEP, "12h")
        .output()
        .await?
        .success()?;
    ensure!(kept(&store, &first)? == 1 && kept(&store, &second)? == 1);

    // Not long any more: what every run has rejected goes, that of this one included.
    write(folder.path(), "third.yaml", "third", ODD)?;
    let said = verb(&["run", "third.yaml", "--keep-rejects", "0s"])
        .output()
        .await?
        .success()?;
    ensure!(
        said.stderr.contains("deleted the rejected rows of 3 runs"),
        "{}",
        said.stderr
    );
    let third = newest_run(folder.path()).await?;
    for run in [&first, &second, &third] {
        ensure!(kept(&store, run)? == 0, "{run}");
        let page = verb(&["show", run]).output().await?.success()?.stdout;
        ensure!(page.contains("the retention of 0s pruned the rejected rows"), "{page}");
        let shown = verb(&["show", run, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()?;
        ensure!(
            run_of(&shown)["state"] == "published" && run_of(&shown)["counts"]["rejected"] == 2,
            "{shown}"
        );
        verb(&["rejects", run])
            .output()
            .await?
            .failure(&["were pruned on 20", "by the retention of 0s"])?;
    }
    // There is nothing left to do, and a run is as it was.
    let said = verb(&["run", "third.yaml", "--keep-rejects", "0s"])
        .output()
        .await?
        .success()?;
    ensure!(!said.stderr.contains("deleted the rejected rows"), "{}", said.stderr);
    verb(&["revert", &third]).output().await?.success()?;
    verb(&["run", "third.yaml", "--keep-rejects", "soon"])
        .output()
        .await?
        .failure(&["--keep-rejects", "such as 30d"])?;
    Ok(())
}

/// Whether the log says that the retention has taken a run's rejected rows, once.
fn is_pruned(shown: &Value) -> bool {
    let pruned = events(shown, "rejects_pruned");
    pruned.len() == 1 && pruned[0]["event"]["by"] == "the retention of 1s"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_prunes_by_itself_but_not_under_a_replay() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create("ledger").await?;
    postgres.create("warehouse").await?;
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("store");
    let settings = Settings {
        ledger: postgres.url("ledger"),
        warehouse: postgres.url("warehouse"),
        store: store.display().to_string(),
        nodes: 2,
        envs: Vec::new(),
        faults: None,
    };
    let mut cluster = Cluster::start(folder.path(), settings).await?;
    write(folder.path(), "older.yaml", "older", ODD)?;
    write(folder.path(), "newer.yaml", "newer", ODD)?;
    let (older, _) = cluster.submit(&folder.path().join("older.yaml"), &[]).await?;
    cluster.until_rest(&older).await?;
    let (newer, _) = cluster.submit(&folder.path().join("newer.yaml"), &[]).await?;
    cluster.until_rest(&newer).await?;
    ensure!(kept(&store, &older)? == 1 && kept(&store, &newer)? == 1);

    // A replay of the older run that can't end: somebody holds its table.
    let mut holder = PgConnection::connect(&postgres.url("warehouse")).await?;
    holder.execute("BEGIN; LOCK TABLE older IN SHARE MODE").await?;
    write(folder.path(), "mended.yaml", "older", ONE)?;
    let replaying = cluster.client().args(["replay", &older, "mended.yaml"]);
    let replaying = tokio::spawn(async move { replaying.output().await });
    let replay = until("the replay publishes", MINUTE, async || {
        let runs = cluster
            .client()
            .args(["runs", "--output", "json"])
            .output()
            .await?
            .json_lines()?;
        let at_it = |run: &&Value| run["pipeline"] == "older" && run["state"] == "publishing";
        let found = runs.iter().find(at_it).and_then(|run| run["run_id"].as_str());
        Ok(found.filter(|run| *run != older).map(str::to_owned))
    })
    .await?;

    // The next leader is told to keep nothing for long; and the one after it, which finds the setting's work half done.
    cluster.set_env(KEEP, "1s");
    cluster.restart_coordinator().await?;
    cluster
        .until_run(&newer, "the newer run is pruned", MINUTE, is_pruned)
        .await?;
    cluster.restart_coordinator().await?;
    until("nothing of it is left", MINUTE, async || {
        Ok((kept(&store, &newer)? == 0).then_some(()))
    })
    .await?;
    // The older one was due first, and is spared: it is being replayed.
    let shown = cluster.show(&older).await?;
    ensure!(
        events(&shown, "rejects_pruned").is_empty() && kept(&store, &older)? == 1,
        "{shown}"
    );

    holder.execute("COMMIT").await?;
    let shown = cluster.until_rest(&replay).await?;
    ensure!(run_of(&shown)["state"] == "published", "{shown}");
    // Whatever the client made of the leaders' ends.
    drop(replaying.await.context("the replay's client")?);
    let rows: Vec<i32> = sqlx::query_scalar("SELECT id FROM older ORDER BY id")
        .fetch_all(&mut holder)
        .await?;
    ensure!(rows == [2, 3, 4], "{rows:?}");
    for run in [&older, &replay] {
        cluster.until_run(run, "it is pruned", MINUTE, is_pruned).await?;
        until("nothing of it is left", MINUTE, async || {
            Ok((kept(&store, run)? == 0).then_some(()))
        })
        .await?;
    }
    let page = cluster.show_to_people(&older).await?;
    ensure!(page.contains("the retention of 1s pruned the rejected rows"), "{page}");
    cluster
        .client()
        .args(["replay", &older, "older.yaml"])
        .output()
        .await?
        .failure(&["were pruned by the retention of 1s"])?;
    Ok(())
}
