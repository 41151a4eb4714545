//! Nodes that leave, asked or by themselves; and nodes of other releases.

use haulage_proto::link::message::Outcome;
use haulage_proto::link::protocol::Speaks;
use haulage_proto::v1::{DrainNodeRequest, RunState};
use tonic::Code;

use super::agent::{FakeNode, Manner};
use super::fixture::*;
use super::nodes::{node_states, until_state};
use super::runs::holding_chunks;

fn drain(node: &str) -> DrainNodeRequest {
    DrainNodeRequest { node: node.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_gets_nothing_new_and_what_it_hands_back_is_no_failure() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let leaving = FakeNode::start("leaving", holding_chunks(3).slots(2)).await;
    let run = submitted(&mut client).await;
    until("two chunks", || leaving.chunks().len() == 2).await;

    let unknown = client.drain_node(drain("leavin")).await.expect_err("no such node");
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(
        unknown.message().contains("known are: leaving); did you mean leaving?"),
        "{unknown}"
    );
    client.drain_node(drain("leaving")).await.expect("asked");
    assert_eq!(
        node_states(&mut client).await,
        [("leaving".to_owned(), "draining".to_owned())]
    );

    // One chunk ends there, one comes back; neither its slot nor the third chunk are given to it.
    let chunks = leaving.chunks();
    leaving.end(&chunks[0], Ok(super::agent::chunk_outcome()));
    leaving.end(&chunks[1], Ok(Outcome::HandedBack));
    until("nothing to be left there", || leaving.held().is_empty()).await;
    let before = leaving.assigned().len();
    let other = FakeNode::start("other", Manner::quick(3)).await;
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(
        (state(&ended), ended.retries),
        (RunState::Published, 0),
        "{}",
        ended.error
    );
    assert_eq!(leaving.assigned().len(), before);
    assert_eq!(other.works().iter().filter(|work| work.starts_with("chunk")).count(), 2);
    let kinds = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!((kinds("handed_back"), kinds("attempt_failed")), (1, 0));

    // Its session ends: it has left, and is no loss.
    drop(leaving);
    within("the node to be gone", async {
        while node_states(&mut client).await.len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_leaving_node_declines_goes_elsewhere_without_a_failure() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let leaving = FakeNode::start("leaving", Manner::quick(3)).await;
    until_state(&mut client, "leaving", "alive").await;
    // The leader hears of it first from an assignment.
    leaving.decline();
    let run = submitted(&mut client).await;
    until_state(&mut client, "leaving", "draining").await;
    let _other = FakeNode::start("other", Manner::quick(3)).await;
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!((state(&ended), ended.retries), (RunState::Published, 0));
    assert!(events.iter().all(|event| event.kind != "attempt_failed"));
    assert!(leaving.assigned().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_common_protocol_is_refused_and_one_that_has_a_common_one_served() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let speaks = |oldest, protocol| Speaks {
        protocol,
        oldest,
        release: "9.9.9".to_owned(),
    };
    let newer = FakeNode::start("newer", Manner::quick(2).speaks(speaks(99, 99))).await;
    let older = FakeNode::start("older", Manner::quick(2).speaks(Speaks::default())).await;
    let suited = FakeNode::start("suited", Manner::quick(2).speaks(speaks(2, 99))).await;
    until_state(&mut client, "suited", "alive").await;
    let run = submitted(&mut client).await;
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Published);
    assert!(!suited.assigned().is_empty() && older.assigned().is_empty() && newer.assigned().is_empty());
    assert_eq!(
        node_states(&mut client).await,
        [("suited".to_owned(), "alive".to_owned())]
    );
    client.drain_node(drain("suited")).await.expect("asked");
}
