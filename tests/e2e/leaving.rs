//! Graceful paths: nodes and coordinators that are restarted one after the other under load, nodes that are asked to
//! leave, and nodes of other releases.

use std::time::Duration;

use anyhow::{Result, ensure};
use haulage_test_support::until;
use serde_json::{Value, json};

use super::faults::Stage;
use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::figures::Numbers;
use super::support::peer::Peer;

const MINUTE: Duration = Duration::from_secs(60);

/// Nodes leave within this many seconds: chunks have 40 % of it to end.
const LEAVE_WITHIN: (&str, &str) = ("HAULAGE_DRAIN_TIMEOUT", "10");

/// The nodes as `nodes --output json` lists them.
async fn nodes(cluster: &Cluster) -> Result<Vec<Value>> {
    let listed = cluster.client().args(["nodes", "--output", "json"]).output().await?;
    let mut lines = listed.success()?.json_lines()?;
    // The first says who leads.
    lines.retain(|line| line["state"].is_string());
    Ok(lines)
}

async fn until_state(cluster: &Cluster, name: &str, state: &str) -> Result<()> {
    until(&format!("{name} is {state}"), MINUTE, async || {
        let nodes = nodes(cluster).await?;
        Ok(nodes
            .iter()
            .any(|node| node["name"] == name && node["state"] == state)
            .then_some(()))
    })
    .await
}

fn check_nothing_failed(shown: &Value) -> Result<()> {
    let failed = events(shown, "attempt_failed");
    ensure!(failed.is_empty(), "attempts failed: {failed:#?}");
    ensure!(run_of(shown)["retries"] == 0, "{:#}", run_of(shown));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_and_the_coordinator_are_restarted_under_load_and_nothing_fails() -> Result<()> {
    let envs = vec![(LEAVE_WITHIN.0.to_owned(), LEAVE_WITHIN.1.to_owned())];
    let mut stage = Stage::start_with(3, "slow@segment:3000ms", envs).await?;
    let cluster = &mut stage.cluster;
    let loading = |shown: &Value| run_of(shown)["state"] == "loading" && !events(shown, "assigned").is_empty();
    cluster.until_run(&stage.run, "it is loading", MINUTE, loading).await?;
    for (number, name) in ["node-1", "node-2", "node-3"].into_iter().enumerate() {
        cluster.restart_node(name).await?;
        if number == 0 {
            cluster.restart_coordinator_gently().await?;
        }
        cluster.until_alive(3).await?;
        let shown = cluster.show(&stage.run).await?;
        ensure!(
            run_of(&shown)["finished_at"].is_null(),
            "the run was over before {name} was restarted"
        );
    }
    cluster.until_rest(&stage.run).await?;
    let shown = stage.check_exact().await?;
    check_nothing_failed(&shown)?;
    let handed_back = events(&shown, "handed_back");
    ensure!(!handed_back.is_empty(), "no chunk was handed back: {shown:#}");
    println!(
        "{} attempts handed back, {} bytes read again",
        handed_back.len(),
        run_of(&shown)["bytes_read_again"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_to_leave_is_draining_hands_back_and_ends_well() -> Result<()> {
    let numbers = Numbers::new(6_000, 65_536, 500, "SELECT * FROM raw")?;
    let settings = Settings {
        faults: Some("slow@segment:1500ms".into()),
        envs: vec![(LEAVE_WITHIN.0.to_owned(), LEAVE_WITHIN.1.to_owned())],
        ..numbers.settings(2)
    };
    let mut cluster = Cluster::start(numbers.folder(), settings).await?;
    let (run, _) = cluster.submit(&numbers.pipeline(), &[]).await?;
    let busy = |shown: &Value| {
        let assigned = events(shown, "assigned");
        assigned
            .iter()
            .any(|event| event["event"]["node"] == "node-1" && event["event"]["work"]["chunk"].is_object())
    };
    cluster.until_run(&run, "node-1 has a chunk", MINUTE, busy).await?;

    let drain = |name: &'static str| cluster.client().args(["drain", name]);
    drain("node-3")
        .output()
        .await?
        .failure(&["there is no node node-3 (known are: node-1, node-2); did you mean node-"])?;
    drain("node-1").output().await?.success()?;
    until_state(&cluster, "node-1", "draining").await?;
    let waited = drain("node-1").args(["--wait"]).output().await?.success()?;
    ensure!(waited.stdout.contains("node-1 has left"), "{}", waited.stdout);
    let code = cluster.node("node-1")?.wait().await?;
    ensure!(code == 0, "it ended with {code}: {}", cluster.node("node-1")?.log());
    let listed = nodes(&cluster).await?;
    ensure!(listed.iter().all(|node| node["name"] != "node-1"), "{listed:#?}");

    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    check_nothing_failed(&shown)?;
    numbers.check_exact().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_common_protocol_is_refused_in_one_line_that_says_which_side_to_upgrade() -> Result<()> {
    let numbers = Numbers::new(100, 65_536, 500, "SELECT * FROM raw")?;
    let cluster = Cluster::start(numbers.folder(), numbers.settings(0)).await?;
    let ours = env!("CARGO_PKG_VERSION");
    for (name, speaks, parts) in [
        // As the first release said it: no number.
        (
            "older",
            Value::Null,
            [
                "the node runs release 9.9.9 (protocol 1)".to_owned(),
                format!("upgrade the node to release {ours}"),
            ],
        ),
        (
            "previous",
            json!({"protocol": 2, "oldest": 2, "release": "9.9.9"}),
            [
                "the node runs release 9.9.9 (protocol 2)".to_owned(),
                format!("upgrade the node to release {ours}"),
            ],
        ),
        (
            "future",
            json!({"protocol": 99, "oldest": 99, "release": "9.9.9"}),
            [
                "the node runs release 9.9.9 (protocol 99)".to_owned(),
                "upgrade this coordinator to release 9.9.9".to_owned(),
            ],
        ),
    ] {
        let mut reply = json!({"node": name, "boot": "1", "version": "9.9.9", "slots": 1, "running": []});
        if !speaks.is_null() {
            reply["speaks"] = speaks;
        }
        // Two sessions of one process would each bring both agents, so each lives for one turn.
        let peer = Peer::attach(&cluster.address, name, cluster.cookie(), reply).await?;
        let hello = peer.hello().await?;
        ensure!(
            hello["speaks"]["protocol"] == 4 && hello["speaks"]["oldest"] == 4 && hello["speaks"]["release"] == ours,
            "{hello}"
        );
        let refusal = |log: &str| -> Vec<String> {
            let lines = log
                .lines()
                .filter(|line| line.contains("is refused") && line.contains(name));
            lines.map(str::to_owned).collect()
        };
        let said = until("the refusal is logged", MINUTE, async || {
            let said = refusal(&cluster.coordinator.log());
            Ok((!said.is_empty()).then_some(said))
        })
        .await?;
        ensure!(said.len() == 1, "said {} times", said.len());
        for part in parts {
            ensure!(said[0].contains(&part), "{part:?} is missing in {:?}", said[0]);
        }
    }
    let listed = nodes(&cluster).await?;
    ensure!(listed.is_empty(), "{listed:#?}");
    let unknown = cluster.client().args(["drain", "older"]).output().await?;
    unknown.failure(&["there is no node older"])?;
    let lines = cluster.coordinator.log().matches("is refused").count();
    ensure!(lines == 3, "said {lines} times");
    Ok(())
}
