//! A node that leaves: it takes nothing new, and what it can't finish in time it hands back, so that another node goes
//! on behind the last segment that stands. And one that can't work for its coordinator, which ends by itself.

#[allow(dead_code, reason = "shared by several test files")]
#[path = "support/leader.rs"]
mod leader;

use std::path::Path;
use std::time::Duration;

use haulage_core::checkpoint::{ChunkReport, ChunkSpec};
use haulage_core::ids::{Epoch, StepKind, Work};
use haulage_proto::link::message::{AssignmentReply, Done, Outcome, Task};
use haulage_proto::link::protocol::Speaks;
use haulage_test_support::wait_for;
use leader::Leader;

const EPOCH: Epoch = Epoch(7);
const ROWS: u64 = 100;

const PIPELINE: &str = "
pipeline: p
sources:
  raw: {csv: data.csv, columns: {id: int!}}
steps:
  all: SELECT * FROM raw
loads:
  out: {from: all, to: warehouse, table: out, mode: append, key: [id]}
checkpoint_rows: 10
";

async fn prepared(name: &str, folder: &Path, fault: &str) -> (Leader, ChunkSpec) {
    let rows: String = (100..100 + ROWS).map(|id| format!("{id}\n")).collect();
    std::fs::write(folder.join("data.csv"), format!("id\n{rows}")).expect("written");
    let leader = Leader::start(name, folder, PIPELINE, fault).await;
    let Ok(Outcome::Discovered { stages }) = leader.perform(Work::Discover, Task::Discover).await else {
        panic!("the plan is sound")
    };
    leader.step(StepKind::Prepare, 0, 0).await.expect("prepared");
    (leader, stages[0].chunks[0].clone())
}

/// Begins the chunk, waits until it has read something of it, and lets the node leave within `limit`; what it says at the
/// end of the attempt.
async fn left_in_the_middle(leader: &Leader, spec: &ChunkSpec, limit: Duration) -> Done {
    let (work, task) = (Work::Chunk(spec.chunk), Task::Chunk { spec: spec.clone() });
    assert_eq!(
        leader.assign(EPOCH, &work, 1, task.clone()).await,
        AssignmentReply::Accepted
    );
    let declined = async {
        wait_for("the node to say that it drains", || {
            leader.heard.lock().expect("sound").draining.then_some(())
        })
        .await;
        leader.assign(EPOCH, &Work::Discover, 2, Task::Discover).await
    };
    let (drained, declined) = tokio::join!(leader.node.drain(limit), declined);
    assert!(drained, "it came to an end within {limit:?}");
    assert_eq!(declined, AssignmentReply::Leaving);
    let key = leader.key(&work, 1);
    let heard = leader.heard.lock().expect("sound");
    heard
        .done
        .iter()
        .find(|done| done.key == key)
        .cloned()
        .expect("it was told")
}

/// Another node goes on with the next attempt.
async fn goes_on(name: &str, folder: &Path, spec: &ChunkSpec) -> ChunkReport {
    let leader = Leader::start(name, folder, PIPELINE, "").await;
    let done = leader
        .done(Work::Chunk(spec.chunk), 2, Task::Chunk { spec: spec.clone() })
        .await;
    let Ok(Outcome::Staged { report }) = done.result else {
        panic!("{done:?}")
    };
    leader.step(StepKind::Verify, ROWS, 10).await.expect("verified");
    leader.node.shutdown().await;
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_takes_too_long_commits_its_segment_and_is_handed_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (leader, spec) = prepared("leaving", folder.path(), "slow@segment:300ms").await;
    let done = left_in_the_middle(&leader, &spec, Duration::from_secs(3)).await;
    assert!(matches!(done.result, Ok(Outcome::HandedBack)), "{done:?}");
    // Only the segment that was read ahead is read again: ten rows of four bytes.
    assert!([0, 40].contains(&done.bytes_read_again), "{done:?}");
    leader.node.shutdown().await;

    let report = goes_on("leaving", folder.path(), &spec).await;
    assert!((1..10).contains(&report.resumed) && report.continued, "{report:?}");
    assert_eq!((report.counts.read, report.segments), (ROWS, 10));
    assert_eq!(report.bytes_read_again, 0, "nothing that stands is read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_does_not_end_in_time_is_cut_off_and_handed_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (leader, spec) = prepared("cutting", folder.path(), "slow@segment:60000ms").await;
    let done = left_in_the_middle(&leader, &spec, Duration::from_secs(2)).await;
    assert!(matches!(done.result, Ok(Outcome::HandedBack)), "{done:?}");
    leader.node.shutdown().await;
    let report = goes_on("cutting", folder.path(), &spec).await;
    assert_eq!((report.resumed, report.counts.read), (0, ROWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_nothing_to_do_leaves_at_once_when_it_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (leader, _) = prepared("idle", folder.path(), "").await;
    let asked = leader.node.asked_to_leave();
    leader.leave().await;
    asked.await;
    assert!(leader.node.drain(Duration::from_secs(20)).await);
    leader.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_a_common_protocol_is_answered_and_the_node_ends_with_what_to_upgrade() {
    let ours = Speaks::ours().release;
    let future = Speaks {
        protocol: 99,
        oldest: 99,
        release: "9.9.9".to_owned(),
    };
    for (name, speaks, runs, way_out) in [
        (
            "older",
            Speaks::default(),
            "the coordinator runs an early release (protocol 1), this node runs release",
            format!("upgrade the coordinator to release {ours}"),
        ),
        (
            "unsuited",
            future,
            "the coordinator runs release 9.9.9 (protocol 99), this node runs release",
            "upgrade this node to release 9.9.9".to_owned(),
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut leader, _) = prepared(name, folder.path(), "").await;
        let reply = leader.hello_from(EPOCH, speaks).await.expect("it is answered");
        assert_eq!(reply.speaks, Speaks::ours());
        let error = tokio::time::timeout(Duration::from_secs(20), leader.node.crashed())
            .await
            .expect("it ends by itself")
            .to_string();
        assert!(error.contains(runs) && error.ends_with(&way_out), "{error}");
    }
}
