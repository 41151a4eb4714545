//! Heartbeats of a node all of whose slots compute.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use haulage_test_support::until;
use serde_json::Value;

use super::support::cluster::{Cluster, check_state, run_of};
use super::support::figures::Numbers;

/// More than the cores of a small machine.
const SLOTS: usize = 4;
/// Late is what comes further apart.
const LATE_MS: u64 = 1_500;

/// A filter that keeps every row after it has made many hashes of it: nothing but work for the processor.
fn hashes(count: usize) -> String {
    let hash = |number| format!("sha512(encode(sha512(concat(name, '{number}')), 'hex')) IS NOT NULL");
    let all: Vec<String> = (0..count).map(hash).collect();
    format!("SELECT * FROM raw WHERE {}", all.join(" AND "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_stay_on_time_while_every_slot_computes() -> Result<()> {
    let numbers = Numbers::new(20_000, 65_536, 1_000, &hashes(16))?;
    let mut cluster = Cluster::start(numbers.folder(), numbers.settings(0)).await?;
    cluster.add_node_with_slots("node-1", SLOTS)?;
    cluster.until_alive(1).await?;
    let (run, _) = cluster.submit(&numbers.pipeline(), &[]).await?;
    let (mut looks, mut busy, mut last) = (0, 0, Value::Null);
    until("the run is at rest", Duration::from_secs(120), async || {
        let listed = cluster.client().args(["nodes", "--output", "json"]).output().await?;
        let node = listed
            .success()?
            .json_lines()?
            .into_iter()
            .find(|line| line["state"].is_string())
            .context("the node is listed")?;
        ensure!(node["state"] == "alive", "the node fell silent: {node:#}");
        looks += 1;
        busy += usize::from(node["running"] == SLOTS);
        last = node;
        let shown = cluster.show(&run).await?;
        Ok(run_of(&shown)["finished_at"].is_u64().then_some(()))
    })
    .await?;
    check_state(&cluster.show(&run).await?, "published")?;
    let beats = &last["heartbeats"];
    println!("heartbeats while {SLOTS} slots computed ({busy} of {looks} looks saw all of them busy): {beats}");
    ensure!(busy * 2 > looks, "all slots were busy in only {busy} of {looks} looks");
    ensure!(
        beats["count"].as_u64() >= Some(5),
        "too few heartbeats to tell: {beats}"
    );
    let p99 = beats["p99_ms"].as_u64().context("a number")?;
    ensure!(p99 < LATE_MS, "heartbeats came {p99} ms apart: {beats}");
    numbers.check_exact().await
}
