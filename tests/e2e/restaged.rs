//! A database server that crashes in the middle of a load empties what is staged there unlogged. The run notices, stages it
//! again, and the result is exact.

use anyhow::{Result, ensure};
use haulage_test_support::PATIENCE;
use serde_json::Value;

use super::support::cluster::{check_state, events, run_of};
use super::support::numbers::{Numbers, ROWS};

const LOADS: [&str; 4] = [
    "added: {from: some, to: warehouse, table: added, mode: append}",
    "merged: {from: some, to: warehouse, table: merged, mode: merge, key: [id]}",
    "swapped: {from: some, to: warehouse, table: swapped, mode: replace, key: [id]}",
    "beside: {from: some, to: side, table: beside, mode: append}",
];

async fn check_exact(numbers: &Numbers) -> Result<()> {
    for (table, rows) in [("added", ROWS), ("merged", ROWS + 1), ("swapped", ROWS)] {
        let found: (i64, i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE name = 'somebody with number ' || id) FROM {table}"
        )))
        .fetch_one(&numbers.pool)
        .await?;
        ensure!(found == (rows, rows, ROWS), "{table}: {found:?}");
    }
    let contents = numbers.contents().await?;
    let beside = &contents["side beside rows"];
    let mut distinct = beside.clone();
    distinct.dedup();
    ensure!(
        beside.len() == ROWS as usize && distinct.len() == beside.len(),
        "{} rows beside, {} different ones",
        beside.len(),
        distinct.len()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_database_costs_a_second_staging_and_no_row() -> Result<()> {
    let made = "CREATE TABLE merged (id integer PRIMARY KEY, name text);
        INSERT INTO merged VALUES (-1, 'old'), (7, 'seven');
        CREATE TABLE swapped (id integer PRIMARY KEY, name text); INSERT INTO swapped VALUES (-1, 'old');";
    let numbers = Numbers::start(2, "slow@segment:400ms", made, "").await?;
    let run = numbers.submit(&LOADS, &[]).await?;
    let staged = |shown: &Value| events(shown, "chunk_staged").len() >= 2;
    let shown = numbers
        .cluster
        .until_run(&run, "chunks are staged", PATIENCE, staged)
        .await?;
    check_state(&shown, "loading")?;
    numbers.postgres.stop();
    numbers.postgres.start_again().await?;

    let shown = numbers.cluster.until_rest(&run).await?;
    check_state(&shown, "published")?;
    let restaged = events(&shown, "restaged");
    ensure!(
        restaged.len() == 1 && restaged[0]["event"]["loads"] == serde_json::json!(["added", "merged"]),
        "{restaged:#?}"
    );
    ensure!(run_of(&shown)["error"].is_null(), "{shown:#}");
    let said = numbers.cluster.show_to_people(&run).await?;
    ensure!(said.contains("what was staged for added, merged is gone"), "{said}");
    check_exact(&numbers).await
}
