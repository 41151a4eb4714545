//! A listing of rejected rows outlives the node that reads them.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::super::support::cluster::{Cluster, Settings, check_state};
use super::super::support::postgres::Postgres;
use super::super::support::process::{HAULAGE, PATIENCE};

/// Far more text than pipes, sockets and the coordinator hold between a node and a client that doesn't read.
const ROWS: u64 = 30_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_at_another_node() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create("ledger").await?;
    postgres.create("warehouse").await?;
    let folder = tempfile::tempdir()?;
    let filler = "x".repeat(300);
    let rows: String = (0..ROWS)
        .map(|number| format!("{},{filler}\n", if number % 3 == 0 { "" } else { "bad" }))
        .collect();
    std::fs::write(folder.path().join("rows.csv"), format!("id,name\n{rows}"))?;
    let file = folder.path().join("rows.yaml");
    std::fs::write(
        &file,
        "pipeline: rows\nsources:\n  raw: {csv: rows.csv, columns: {id: int!, name: text}}\nloads:\n  out: {from: raw, to: \
         warehouse, table: out, mode: append}\n",
    )?;
    let settings = Settings {
        ledger: postgres.url("ledger"),
        warehouse: postgres.url("warehouse"),
        store: folder.path().join("store").display().to_string(),
        nodes: 1,
        envs: Vec::new(),
        faults: None,
    };
    let mut cluster = Cluster::start(folder.path(), settings).await?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    check_state(&cluster.until_rest(&run).await?, "published")?;

    let mut client = Command::new(HAULAGE)
        .args(["rejects", &run, "--output", "json"])
        .current_dir(folder.path())
        .env("HAULAGE_COORDINATOR", &cluster.address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(client.stdout.take().context("a pipe")?).lines();
    lines.next_line().await?.context("a row")?;
    cluster.kill("node-1").await?;
    cluster.add_node("node-2")?;
    let mut listed = 1;
    let rest = async {
        while let Some(line) = lines.next_line().await? {
            listed += 1;
            let row: Value = serde_json::from_str(&line)?;
            ensure!(row["line"] == listed + 1, "row {listed} is {line}");
        }
        Ok(client.wait_with_output().await?)
    };
    let ended = tokio::time::timeout(PATIENCE, rest).await.context("the listing")??;
    ensure!(
        ended.status.success() && listed == ROWS,
        "{listed} rows: {}",
        String::from_utf8_lossy(&ended.stderr)
    );

    // What has another reason isn't sent.
    let args = ["rejects", &run, "--reason", "null_in_required", "--output", "json"];
    let some = cluster.client().args(args).output().await?.success()?;
    ensure!(some.stdout.lines().count() as u64 == ROWS / 3);
    Ok(())
}
