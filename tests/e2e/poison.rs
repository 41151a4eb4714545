//! A chunk that takes down every node it is given to: it is set aside, the rest of the run is worked off meanwhile, and the
//! run ends with a clear error and leaves nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::cluster::{check_state, events, run_of};
use super::support::numbers::Numbers;
use super::support::process::until;

const LOADS: [&str; 2] = [
    "kept: {from: some, to: warehouse, table: kept, mode: replace, key: [id]}",
    "added: {from: some, to: side, table: added, mode: append}",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_take_nodes_down_are_named_while_the_rest_is_staged() -> Result<()> {
    let made = "CREATE TABLE kept (id integer PRIMARY KEY, name text); INSERT INTO kept VALUES (-1, 'old')";
    let mut numbers = Numbers::start(2, "abort@chunk:0.1,abort@chunk:0.3", made, "").await?;
    let before = numbers.contents().await?;
    let run = numbers.submit(&LOADS, &[]).await?;
    // Somebody starts nodes again whenever they have died, as a service manager does.
    let mut died = 0;
    let cluster = &mut numbers.cluster;
    let shown = until("the run is at rest", Duration::from_secs(150), async || {
        died += cluster.revive_nodes()?;
        let shown = cluster.show(&run).await?;
        Ok(run_of(&shown)["finished_at"].is_u64().then_some(shown))
    })
    .await?;
    check_state(&shown, "failed")?;
    let error = run_of(&shown)["error"].as_str().unwrap_or_default();
    for part in [
        "2 chunks were set aside",
        "chunk 0.1 took down 3 nodes",
        "chunk 0.3 took down 3 nodes",
        "numbers.csv, from line",
        "to byte",
    ] {
        ensure!(error.contains(part), "{part:?} is not in: {error}");
    }
    ensure!(died >= 6, "nodes died {died} times");
    let chunks = shown["stages"][0]["chunks"].as_u64().unwrap_or_default();
    let staged: BTreeSet<u64> = events(&shown, "chunk_staged")
        .iter()
        .filter_map(|event| event["event"]["work"]["chunk"]["index"].as_u64())
        .collect();
    let others: BTreeSet<u64> = (0..chunks).filter(|index| ![1, 3].contains(index)).collect();
    ensure!(
        chunks > 4 && staged == others,
        "of {chunks} chunks were staged: {staged:?}"
    );
    numbers.check_contents(&before).await?;
    numbers.check_nothing_left().await
}
