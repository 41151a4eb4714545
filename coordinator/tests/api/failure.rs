//! Attempts that fail, and outcomes that are told more than once.

use haulage_core::failure::Failure;
use haulage_core::ids::Attempt;
use haulage_proto::v1::RunState;

use super::agent::{Act, FakeNode, Manner, outcome};
use super::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_fails_for_good_reverts_the_ones_before_it() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let manner = Manner::scripted(|assignment| match assignment.key.work.to_string().as_str() {
        "publish two" => Act::End(Err(Failure::permanent("column id is text there, and int here"))),
        _ => Act::End(Ok(outcome(assignment, 1))),
    });
    let node = FakeNode::start("n1", manner).await;
    let run = submitted(&mut client).await;
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Failed);
    assert!(ended.error.contains("column id is text"), "{}", ended.error);
    let works = node.works();
    let undone: Vec<&String> = works.iter().filter(|work| work.starts_with("compensate")).collect();
    assert_eq!(
        undone,
        [
            "compensate publish two",
            "compensate publish one",
            "compensate prepare two",
            "compensate prepare one"
        ]
    );
    assert!(
        ended.loads.iter().all(|load| load.published == 0),
        "nothing counts as published: {:?}",
        ended.loads
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_failure_is_tried_again_on_another_node() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let manner = || {
        Manner::scripted(
            |assignment| match (assignment.key.work.to_string().as_str(), assignment.key.attempt) {
                ("chunk 0.0", Attempt(1)) => Act::End(Err(Failure::transient("the server hung up"))),
                _ => Act::End(Ok(outcome(assignment, 1))),
            },
        )
    };
    let nodes = [
        FakeNode::start("n1", manner()).await,
        FakeNode::start("n2", manner()).await,
    ];
    let run = submitted(&mut client).await;
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!((state(&ended), ended.retries), (RunState::Published, 1));
    let tries = |node: &FakeNode| node.works().iter().filter(|work| *work == "chunk 0.0").count();
    assert_eq!(nodes.each_ref().map(tries), [1, 1], "the second attempt went elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_told_five_times_counts_once() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", Manner::quick(4).repeats(5)).await;
    let run = submitted(&mut client).await;
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Published);
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "chunk_staged").count(), 4);
    assert_eq!(ended.counts.expect("counts").read, 40);
    assert!(!kinds(&events).contains(&"attempt_failed"), "{events:?}");
    // Also what is told after the end is acknowledged, so that the node may forget it.
    until("every acknowledgement", || node.held().is_empty()).await;
}
