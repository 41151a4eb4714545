//! The node's actors with real data: a CSV file, a folder of checkpoints and a SQLite warehouse, driven by a leader in
//! the test. What is guarded: a crashed chunk actor goes on from its checkpoint, a repeated assignment runs once, and a
//! node without a lease has no effects.

#[allow(dead_code, reason = "shared by several test files")]
#[path = "support/leader.rs"]
mod leader;

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use haulage_core::checkpoint::{ChunkReport, ChunkSpec};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Epoch, StepKind, Work};
use haulage_node::NodeConfig;
use haulage_node::fault::Fault;
use haulage_proto::link::message::{AssignmentReply, Outcome, Task};
use haulage_test_support::postgres::Postgres;
use haulage_test_support::wait_for;
use leader::{Leader, warehouse};
use sqlx::{Connection, Row};
use tempfile::TempDir;

const EPOCH: Epoch = Epoch(7);

const PIPELINE: &str = "
pipeline: p
sources:
  raw: {csv: data.csv, columns: {id: int!, word: text}}
  words: {csv: words.csv, lookup: true, columns: {word: text!, length: int!}}
steps:
  kept: SELECT * FROM raw WHERE id <> 3
  valid: {from: kept, reject: {too_big: id > 90}}
  joined: SELECT v.*, w.length FROM valid v LEFT JOIN words w ON w.word = v.word
loads:
  out: {from: joined, to: warehouse, table: out, mode: append, key: [id]}
checkpoint_rows: 10
";

/// 95 rows of which one can't be read, one is left out by the WHERE and five are rejected by a rule.
fn write_data(folder: &Path) {
    let mut data = "id,word\n".to_owned();
    for id in 1..=95 {
        let word = ["one", "two", ""][id % 3];
        data += &if id == 50 {
            "fifty,x\n".to_owned()
        } else {
            format!("{id},{word}\n")
        };
    }
    std::fs::write(folder.join("data.csv"), data).expect("written");
    std::fs::write(folder.join("words.csv"), "word,length\none,3\ntwo,3\n").expect("written");
}

/// The bytes of one segment of ten rows.
fn segment_bytes(folder: &Path, segment: usize) -> u64 {
    let data = std::fs::read_to_string(folder.join("data.csv")).expect("written before");
    let rows = data.split_inclusive('\n').skip(1 + segment * 10).take(10);
    rows.map(|row| row.len() as u64).sum()
}

async fn discovered(leader: &Leader) -> ChunkSpec {
    let outcome = leader
        .perform(Work::Discover, Task::Discover)
        .await
        .expect("the plan is sound");
    let Outcome::Discovered { stages } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((stages.len(), stages[0].chunks.len()), (1, 1));
    stages[0].chunks[0].clone()
}

/// A node with a fault, over good data, after the steps before the first chunk.
async fn prepared(name: &str, fault: &str) -> (TempDir, Leader, ChunkSpec) {
    let folder = tempfile::tempdir().expect("a folder");
    write_data(folder.path());
    let leader = Leader::start(name, folder.path(), PIPELINE, fault).await;
    let spec = discovered(&leader).await;
    leader.step(StepKind::Prepare, 0, 0).await.expect("prepared");
    (folder, leader, spec)
}

async fn staged(leader: &Leader, spec: &ChunkSpec) -> Result<ChunkReport, Failure> {
    let outcome = leader
        .perform(Work::Chunk(spec.chunk), Task::Chunk { spec: spec.clone() })
        .await?;
    let Outcome::Staged { report } = outcome else {
        panic!("{outcome:?}")
    };
    Ok(report)
}

async fn count(folder: &Path, sql: &'static str) -> i64 {
    let url = format!("sqlite://{}", warehouse(folder));
    let mut connection = sqlx::SqliteConnection::connect(&url)
        .await
        .expect("the warehouse is there");
    sqlx::query(sql)
        .fetch_one(&mut connection)
        .await
        .expect("a count")
        .get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_crashes_goes_on_from_its_checkpoint_and_its_rows_stand_once() {
    let (folder, leader, spec) = prepared("crashing", "panic@chunk:0.0:segment:4").await;
    let report = staged(&leader, &spec).await.expect("staged in the end");
    // The restarted actor found the four segments before the crash standing, and neither read nor wrote them again.
    assert_eq!((report.restarts, report.segments, report.resumed), (1, 10, 4));
    // Read again is what was read and did not stand: the segment in work, and the one ahead if it was already there.
    let (in_work, ahead) = (segment_bytes(folder.path(), 4), segment_bytes(folder.path(), 5));
    assert!(
        [in_work, in_work + ahead].contains(&report.bytes_read_again),
        "{} bytes were read again, of segments of {in_work} and {ahead}",
        report.bytes_read_again
    );
    assert_eq!((report.counts.read, report.counts.rejected_total()), (95, 6));
    assert_eq!(report.counts.rejected["too_big"], 5);
    let out = report.counts.loads["out"];
    assert_eq!((out.loaded, out.filtered, out.rejected, out.multiplied), (88, 1, 6, 0));
    assert_eq!(
        report.rejects.len(),
        2,
        "segments with rejected rows: {:?}",
        report.rejects
    );

    assert!(!report.continued, "its segments are its own");
    let task = Task::Chunk { spec: spec.clone() };
    let done = leader.done(Work::Chunk(spec.chunk), 2, task).await;
    let Ok(Outcome::Staged { report }) = done.result else {
        panic!("{done:?}")
    };
    assert_eq!((report.restarts, report.resumed, report.continued), (0, 10, true));

    leader.step(StepKind::Verify, 88, 10).await.expect("verified");
    leader.step(StepKind::Publish, 88, 10).await.expect("published");
    leader.step(StepKind::Cleanup, 88, 10).await.expect("cleaned up");
    assert_eq!(count(folder.path(), "SELECT count(*) FROM out").await, 88);
    assert_eq!(
        count(folder.path(), "SELECT count(DISTINCT id) FROM out WHERE length = 3").await,
        59
    );
    leader.node.shutdown().await;
}

const TOO_MUCH: &str = "
pipeline: p
sources:
  raw: {csv: 'ids.csv', columns: {id: int!}}
steps:
  all: SELECT id, 100 / (id - 35) AS share FROM raw
loads:
  out: {from: all, to: warehouse, table: a, mode: replace, key: [id]}
checkpoint_rows: 10
";

/// Restarts are told whether the attempt succeeds or not, and so is a beginning where an earlier attempt had stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_tells_how_often_it_went_on_from_a_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids: String = (0..60).map(|id| format!("{id}\n")).collect();
    std::fs::write(folder.path().join("ids.csv"), format!("id\n{ids}")).expect("written");
    let leader = Leader::start("failing", folder.path(), TOO_MUCH, "panic@chunk:0.0:segment:1").await;
    let spec = discovered(&leader).await;
    leader.step(StepKind::Prepare, 0, 0).await.expect("prepared");
    let mut told = Vec::new();
    for attempt in [1, 2] {
        let task = Task::Chunk { spec: spec.clone() };
        let done = leader.done(Work::Chunk(spec.chunk), attempt, task).await;
        let failure = done.result.expect_err("a division by zero");
        assert_eq!(failure.class, Class::Permanent, "{failure}");
        told.push(done.restarts);
    }
    // The first was restarted once after the panic; the second was not, but found the segments of the first.
    assert_eq!(told, [1, 1]);
    leader.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_assignment_runs_once_and_is_reported_until_it_is_acknowledged() {
    let (_folder, leader, spec) = prepared("repeated", "slow@segment:20ms").await;
    leader.heard.lock().expect("sound").refuse = 2;
    let work = Work::Chunk(spec.chunk);
    for _ in 0..3 {
        let task = Task::Chunk { spec: spec.clone() };
        assert_eq!(leader.assign(EPOCH, &work, 1, task).await, AssignmentReply::Accepted);
    }
    // Reported twice without being acknowledged: it is held, and asked for again it is not started again.
    let key = leader.key(&work, 1);
    let reports = || {
        leader
            .heard
            .lock()
            .expect("sound")
            .done
            .iter()
            .filter(|done| done.key == key)
            .count()
    };
    wait_for("the first report", || (reports() >= 1).then_some(())).await;
    let again = leader.assign(EPOCH, &work, 1, Task::Chunk { spec: spec.clone() }).await;
    assert_eq!(again, AssignmentReply::Accepted);
    wait_for("the last report", || (reports() >= 3).then_some(())).await;
    wait_for("the node to let go", || {
        let heard = leader.heard.lock().expect("sound");
        heard.holds.is_empty().then_some(())
    })
    .await;
    assert_eq!(reports(), 3);
    let verified = leader.step(StepKind::Verify, 88, 10).await;
    assert!(verified.is_ok(), "{verified:?}");
    leader.node.shutdown().await;
}

/// What a node that is killed had read in vain is known from its heartbeats alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_says_how_far_an_attempt_is_ahead_of_its_checkpoint() {
    let (folder, leader, spec) = prepared("ahead", "slow@segment:700ms").await;
    let task = Task::Chunk { spec: spec.clone() };
    let work = Work::Chunk(spec.chunk);
    assert_eq!(leader.assign(EPOCH, &work, 1, task).await, AssignmentReply::Accepted);
    let (in_work, ahead) = (segment_bytes(folder.path(), 0), segment_bytes(folder.path(), 1));
    wait_for("the first segment to be in work", || {
        let said = leader.heard.lock().expect("sound").ahead.clone();
        [vec![in_work], vec![in_work + ahead]].contains(&said).then_some(())
    })
    .await;
    leader.node.shutdown().await;
}

/// Gives the node the chunk, and answers no heartbeat any more once it works on it. What is returned looks whether it does.
async fn left_alone(leader: &Leader, spec: &ChunkSpec) -> impl Fn(bool) -> Option<()> + use<> {
    let work = Work::Chunk(spec.chunk);
    let task = Task::Chunk { spec: spec.clone() };
    assert_eq!(leader.assign(EPOCH, &work, 1, task).await, AssignmentReply::Accepted);
    let key = leader.key(&work, 1);
    let heard = leader.heard.clone();
    let holds = move |wanted: bool| {
        let heard = heard.lock().expect("sound");
        (heard.holds.contains(&key) == wanted).then_some(())
    };
    wait_for("the chunk to run", || holds(true)).await;
    leader.heard.lock().expect("sound").silent = true;
    holds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_lease_cancels_its_work_and_takes_none() {
    let (_folder, leader, spec) = prepared("fenced", "slow@segment:3000ms").await;
    let work = Work::Chunk(spec.chunk);
    let task = || Task::Chunk { spec: spec.clone() };
    let holds = left_alone(&leader, &spec).await;
    wait_for("the node to fence itself", || holds(false)).await;
    assert_eq!(leader.assign(EPOCH, &work, 2, task()).await, AssignmentReply::Full);
    // A deposed leader can't take the node over; the leader can, and the node is empty and takes work again.
    assert!(leader.hello(Epoch(6)).await.is_none());
    assert_eq!(
        leader.assign(Epoch(6), &work, 2, task()).await,
        AssignmentReply::StaleEpoch
    );
    leader.heard.lock().expect("sound").silent = false;
    let reply = leader.hello(EPOCH).await.expect("greeted again");
    assert_eq!(reply.running, []);
    assert_eq!(leader.assign(EPOCH, &work, 2, task()).await, AssignmentReply::Accepted);
    assert_eq!(
        leader
            .heard
            .lock()
            .expect("sound")
            .done
            .iter()
            .filter(|done| done.key.work == work)
            .count(),
        0
    );
    leader.node.shutdown().await;
}

/// Nobody knows how long a greeting was on its way: only heartbeats that are answered keep a lease.
#[tokio::test(flavor = "multi_thread")]
async fn greetings_prolong_no_lease() {
    let (_folder, leader, spec) = prepared("greeted", "slow@segment:60000ms").await;
    let holds = left_alone(&leader, &spec).await;
    let greetings = async {
        loop {
            leader.hello(EPOCH).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = wait_for("the node to fence itself", || holds(false)) => {}
        () = greetings => {}
    }
    leader.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_found_by_discover() {
    let folder = tempfile::tempdir().expect("a folder");
    let leader = Leader::start("wrong", folder.path(), PIPELINE, "").await;
    let failure = leader
        .perform(Work::Discover, Task::Discover)
        .await
        .expect_err("there is no data");
    assert_eq!(failure.class, Class::Permanent, "{failure}");
    assert!(failure.message.contains(".csv"), "{failure}");
    leader.node.shutdown().await;
}

const FAN: &str = "
pipeline: p
sources:
  raw: {csv: 'part-*.csv', columns: {id: int!}}
steps:
  all: SELECT * FROM raw
loads:
  out: {from: all, to: warehouse, table: a, mode: replace, key: [id]}
  more: {from: all, to: warehouse, table: b, mode: append, key: [id]}
  most: {from: all, to: warehouse, table: c, mode: merge, key: [id]}
checkpoint_rows: 10
";

/// Three chunks at once, each with three loads at one destination: neither two connections, which are fewer than one chunk
/// needs, nor four, which are fewer than two need, make them wait for each other for ever.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_with_more_loads_than_connections_come_through() {
    for connections in [2, 4] {
        let folder = tempfile::tempdir().expect("a folder");
        for part in 0..3 {
            let ids: String = (0..30).map(|id| format!("{}\n", part * 30 + id)).collect();
            std::fs::write(folder.path().join(format!("part-{part}.csv")), format!("id\n{ids}")).expect("written");
        }
        let server = Postgres::shared().await.expect("PostgreSQL");
        let url = server.url(&server.database().await.expect("a database"));
        let store = folder.path().join("checkpoints").to_str().expect("UTF-8").to_owned();
        let mut config = NodeConfig::new(format!("narrow-{connections}"), store);
        (config.slots, config.connections) = (3, connections);
        config.destinations.insert("warehouse".into(), url.clone());
        // Long enough for each chunk to hold what it could get when the others ask for more.
        config.fault = Fault::parse("slow@segment:20ms").expect("a fault");
        let leader = Leader::start_with(config, folder.path(), FAN).await;

        let Ok(Outcome::Discovered { stages }) = leader.perform(Work::Discover, Task::Discover).await else {
            panic!("the plan is sound")
        };
        let loads = ["out", "more", "most"];
        for load in loads {
            leader.step_of(load, StepKind::Prepare, 0, 0).await.expect("prepared");
        }
        let chunks = &stages[0].chunks;
        assert_eq!(chunks.len(), 3);
        for report in join_all(chunks.iter().map(|spec| staged(&leader, spec))).await {
            assert_eq!(report.expect("staged").restarts, 0);
        }
        for load in loads {
            leader.step_of(load, StepKind::Verify, 90, 9).await.expect("verified");
            leader.step_of(load, StepKind::Publish, 90, 9).await.expect("published");
        }
        let mut database = sqlx::PgConnection::connect(&url).await.expect("it answers");
        let sql = "SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b) + (SELECT count(*) FROM c)";
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut database).await.expect("a count");
        assert_eq!(rows, 270, "with {connections} connections");
        leader.node.shutdown().await;
    }
}
