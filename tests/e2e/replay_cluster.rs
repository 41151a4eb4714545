//! A replay on a cluster: rejected rows of a PostgreSQL table go into a PostgreSQL table although a node is killed in the
//! middle of it, each of them once; then they are pruned through the coordinator.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::PgPool;

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::postgres::Postgres;
use super::support::process::until;

const ROWS: i64 = 4_000;
const MINUTE: Duration = Duration::from_secs(60);

/// Every third row is out of range for the first file, and every twelfth for the second.
fn write(folder: &Path, file: &str, modulus: u32) -> Result<()> {
    let text = format!(
        "pipeline: things\ncheckpoint_rows: 100\nsources:\n  things: {{postgres: crm, table: things, chunk_size: 64KiB, columns: \
         {{id: bigint!, name: text}}}}\nsteps:\n  some:\n    sql: SELECT * FROM things\n    reject: {{odd: id % {modulus} = 0}}\n\
         loads:\n  things: {{from: some, to: warehouse, table: things, mode: merge, key: [id]}}\n"
    );
    Ok(std::fs::write(folder.join(file), text)?)
}

/// Rows, different keys, and the sum of keys.
async fn held(warehouse: &PgPool) -> Result<(i64, i64, i64)> {
    let sql =
        "SELECT count(*), count(DISTINCT id), coalesce(sum(id), 0)::bigint FROM things WHERE name = 'thing ' || id";
    Ok(sqlx::query_as(sql).fetch_one(warehouse).await?)
}

/// The same of those numbers up to [`ROWS`] that pass.
fn expected(modulus: i64) -> (i64, i64, i64) {
    let passing: Vec<i64> = (1..=ROWS).filter(|id| id % modulus != 0).collect();
    let number = passing.len() as i64;
    (number, number, passing.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_outlives_a_node_that_is_killed_in_its_middle() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create("ledger").await?;
    let warehouse = postgres.create("warehouse").await?;
    let make = format!(
        "CREATE TABLE things (id bigint PRIMARY KEY, name text);
         INSERT INTO things SELECT id, 'thing ' || id FROM generate_series(1, {ROWS}) id"
    );
    postgres.execute("postgres", &make).await?;
    let folder = tempfile::tempdir()?;
    let settings = Settings {
        ledger: postgres.url("ledger"),
        warehouse: postgres.url("warehouse"),
        store: folder.path().join("store").display().to_string(),
        nodes: 2,
        envs: vec![("HAULAGE_SOURCE_CRM".to_owned(), postgres.url("postgres"))],
        faults: Some("slow@segment:150ms".to_owned()),
    };
    let mut cluster = Cluster::start(folder.path(), settings).await?;
    write(folder.path(), "things.yaml", 3)?;
    write(folder.path(), "mended.yaml", 12)?;
    let (first, _) = cluster.submit(&folder.path().join("things.yaml"), &[]).await?;
    check_state(&cluster.until_rest(&first).await?, "published")?;
    ensure!(held(&warehouse).await? == expected(3), "{:?}", held(&warehouse).await?);

    let client = cluster
        .client()
        .args(["replay", &first, "mended.yaml", "--output", "json"]);
    let client = tokio::spawn(async move { client.output().await });
    let replay = until("the replay is there", MINUTE, async || {
        let runs = cluster
            .client()
            .args(["runs", "--output", "json"])
            .output()
            .await?
            .json_lines()?;
        let newest = runs.first().and_then(|run| run["run_id"].as_str());
        Ok(newest.filter(|run| *run != first).map(str::to_owned))
    })
    .await?;
    // In its middle: some chunks are staged, and the node that goes has one in its hands.
    let in_the_middle = |shown: &Value| {
        let staged = events(shown, "chunk_staged");
        let is_staged = |work: &Value| staged.iter().any(|event| event["event"]["work"] == *work);
        let held = events(shown, "assigned").into_iter().any(|event| {
            let (node, work) = (&event["event"]["node"], &event["event"]["work"]);
            *node == "node-2" && work["chunk"].is_object() && !is_staged(work)
        });
        staged.len() >= 2 && held
    };
    cluster
        .until_run(&replay, "the replay is in its middle", MINUTE, in_the_middle)
        .await?;
    cluster.kill("node-2").await?;
    let shown = cluster.until_rest(&replay).await?;
    check_state(&shown, "published")?;
    let lost = events(&shown, "attempt_failed");
    ensure!(
        lost.iter()
            .any(|event| event["event"]["node"] == "node-2" && event["event"]["node_lost_after_ms"].is_u64()),
        "the node was killed in the middle of nothing: {lost:?}"
    );
    client.await.context("the client")??.success()?;
    let counts = run_of(&shown)["counts"].clone();
    ensure!(
        counts["read"] == ROWS / 3 && counts["rejected"] == ROWS / 12,
        "{counts}"
    );
    ensure!(held(&warehouse).await? == expected(12), "{:?}", held(&warehouse).await?);

    // Once more is nothing; and taken back, it can be done again by the node that is left.
    let args = ["replay", &first, "mended.yaml"];
    let again = cluster.client().args(args).output().await?.success()?;
    ensure!(
        format!("{}{}", again.stdout, again.stderr).contains("replayed already"),
        "{again:?}"
    );
    cluster
        .client()
        .args(["revert", &replay, "--watch"])
        .output()
        .await?
        .success()?;
    ensure!(held(&warehouse).await? == expected(3), "{:?}", held(&warehouse).await?);
    cluster.client().args(args).output().await?.success()?;
    ensure!(held(&warehouse).await? == expected(12), "{:?}", held(&warehouse).await?);

    // Pruned through the coordinator, by a node.
    let prune = ["prune", "--older-than", "0s", "--by", "ann", "--output", "json"];
    let pruned = cluster.client().args(prune).output().await?.success()?.json_lines()?;
    let rejected: Vec<i64> = pruned.iter().filter_map(|run| run["rejected"].as_i64()).collect();
    let all = ROWS / 3 + 2 * (ROWS / 12);
    ensure!(rejected.len() == 3 && rejected.iter().sum::<i64>() == all, "{pruned:?}");
    let left = std::fs::read_dir(folder.path().join("store/runs"))?.count();
    ensure!(left == 0, "{left} runs have something left");
    cluster
        .client()
        .args(["rejects", &first])
        .output()
        .await?
        .failure(&["were pruned on 20", "by ann"])?;
    cluster
        .client()
        .args(["replay", &first, "things.yaml"])
        .output()
        .await?
        .failure(&["were pruned by ann"])?;
    Ok(())
}
