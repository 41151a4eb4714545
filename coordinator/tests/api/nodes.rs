//! Nodes that fall silent, come back, are started again, or are full; and who gets which work.

use std::time::Duration;

use haulage_core::ids::Attempt;
use haulage_core::lease;
use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{ListNodesRequest, Node, RunState, SubmitRequest};

use super::agent::{FakeNode, Manner, ahead_of};
use super::fixture::*;
use super::runs::holding_chunks;

const SHORT: lease::Settings = lease::Settings {
    lease_ms: 600,
    heartbeat_ms: 50,
    suspect_ms: 300,
};

async fn nodes(client: &mut Client) -> Vec<Node> {
    let listed = client.list_nodes(ListNodesRequest {}).await;
    listed.expect("lists").into_inner().nodes
}

pub(crate) async fn node_states(client: &mut Client) -> Vec<(String, String)> {
    let nodes = nodes(client).await;
    nodes.into_iter().map(|node| (node.name, node.state)).collect()
}

pub(crate) async fn until_state(client: &mut Client, name: &str, state: &str) {
    within(&format!("{name} to be {state}"), async {
        while !node_states(client).await.contains(&(name.to_owned(), state.to_owned())) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_node_has_runs_elsewhere_after_its_lease() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.lease = SHORT;
    let (_coordinator, mut client) = stage.coordinator_with(config).await;
    let silent = FakeNode::start("n1", holding_chunks(2)).await;
    let run = submitted(&mut client).await;
    until("both chunks", || silent.chunks().len() == 2).await;
    // It says how far it is.
    tokio::time::sleep(Duration::from_millis(4 * SHORT.heartbeat_ms)).await;
    silent.pause();
    let since = tokio::time::Instant::now();
    let other = FakeNode::start("n2", Manner::quick(2)).await;
    let (ended, events) = finished(&mut client, &run).await;

    assert_eq!((state(&ended), ended.retries), (RunState::Published, 2));
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "noticed after {:?}",
        since.elapsed()
    );
    let lost = events.iter().filter(|event| event.kind == "attempt_failed");
    for event in lost.clone() {
        let event: serde_json::Value = serde_json::from_str(&event.json).expect("an event is JSON");
        let after = event["node_lost_after_ms"].as_u64().expect("the node was lost");
        assert!((600..2_000).contains(&after), "lost after {after} ms");
        let work = serde_json::from_value(event["work"].clone()).expect("some work");
        assert_eq!(event["bytes_read_again"], ahead_of(&work), "as its last heartbeat said");
    }
    assert_eq!(lost.count(), 2);
    let again: Vec<Attempt> = other
        .assigned()
        .iter()
        .filter(|key| key.work.to_string().starts_with("chunk"))
        .map(|key| key.attempt)
        .collect();
    assert_eq!(again, [Attempt(2), Attempt(2)]);
    assert!(
        node_states(&mut client)
            .await
            .contains(&("n1".to_owned(), "lost".to_owned()))
    );

    // It wakes up late: it is told to forget everything, and is a node like any other again.
    silent.resume();
    until("n1 to forget", || silent.held().is_empty()).await;
    until_state(&mut client, "n1", "alive").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_again_loses_its_attempts_at_once() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let first = FakeNode::start("n1", holding_chunks(1)).await;
    let run = submitted(&mut client).await;
    until("the chunk", || first.chunks().len() == 1).await;
    let since = tokio::time::Instant::now();
    drop(first);
    let second = FakeNode::start("n1", Manner::quick(1).boot("2")).await;
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!((state(&ended), ended.retries), (RunState::Published, 1));
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "no lease was waited for: {:?}",
        since.elapsed()
    );
    assert!(events.iter().any(|event| event.kind == "attempt_failed"));
    assert_eq!(second.assigned()[0].attempt, Attempt(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_reconnects_keeps_what_it_runs() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding_chunks(1)).await;
    let run = submitted(&mut client).await;
    until("the chunk", || node.chunks().len() == 1).await;
    let key = node.chunks().remove(0);
    let node = node.reconnect().await;
    until_state(&mut client, "n1", "alive").await;
    node.end(&key, Ok(super::agent::chunk_outcome()));
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!(
        (state(&ended), ended.retries),
        (RunState::Published, 0),
        "nothing was tried again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_to_the_node_whose_destination_is_where_it_publishes() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let placed = |place: &str| SubmitRequest {
        destinations: [
            ("warehouse".to_owned(), place.to_owned()),
            ("of another pipeline".to_owned(), "sqlite:/x.db".to_owned()),
        ]
        .into(),
        ..request("2024-01-01")
    };
    let leak = client.submit(placed("postgres://loader:secret@db:5432/dw")).await;
    let leak = leak.expect_err("a password would be kept for ever");
    assert_eq!(leak.code(), tonic::Code::InvalidArgument);
    assert!(!leak.message().contains("secret"), "{leak}");

    let elsewhere = FakeNode::start("elsewhere", Manner::quick(2).at("warehouse", "sqlite:/b.db")).await;
    let first = submit(&mut client, placed("sqlite:/a.db")).await;
    until_waiting(
        &mut client,
        &first.run_id,
        "`warehouse` is sqlite:/a.db; here it is sqlite:/b.db",
    )
    .await;
    assert!(elsewhere.works().is_empty());
    // The same pipeline for the other place is another submission, and goes on meanwhile.
    let other = submit(&mut client, placed("sqlite:/b.db")).await;
    assert_ne!(first.run_id, other.run_id);
    finished(&mut client, &other.run_id).await;
    let done_elsewhere = elsewhere.works().len();

    let here = FakeNode::start("here", Manner::quick(2).at("warehouse", "sqlite:/a.db")).await;
    let (run, _) = finished(&mut client, &first.run_id).await;
    assert_eq!(state(&run), RunState::Published, "{}", run.error);
    assert_eq!(elsewhere.works().len(), done_elsewhere);
    assert_eq!(here.works().len(), done_elsewhere);
    let again = submit(&mut client, placed("sqlite:/a.db")).await;
    assert_eq!(
        (again.disposition(), again.run_id),
        (Disposition::AlreadyPublished, first.run_id)
    );

    let nodes = nodes(&mut client).await;
    let node = nodes.iter().find(|node| node.name == "here").expect("it is here");
    assert_eq!(node.destinations["warehouse"], "sqlite:/a.db");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_gets_more_chunks_than_it_has_slots() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding_chunks(9).slots(2)).await;
    let run = submitted(&mut client).await;
    let mut ended = 0;
    while ended < 9 {
        until("chunks", || !node.chunks().is_empty()).await;
        for key in node.chunks() {
            node.end(&key, Ok(super::agent::chunk_outcome()));
            ended += 1;
            until("the end of a chunk", || !node.held().contains(&key)).await;
        }
    }
    let (run, _) = finished(&mut client, &run).await;
    assert_eq!(state(&run), RunState::Published);
    assert_eq!(node.most_chunks_at_once(), 2);
}
