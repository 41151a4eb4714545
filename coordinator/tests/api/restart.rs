//! Coordinators that come and go over one ledger.

use haulage_coordinator::ledger;
use haulage_core::ids::Attempt;
use haulage_proto::v1::haulage_client::HaulageClient;
use haulage_proto::v1::{ListRunsRequest, RunState};
use sqlx::Connection as _;
use tonic::Code;

use super::agent::{FakeNode, Manner, chunk_outcome};
use super::fixture::*;
use super::runs::holding_chunks;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_deposes_the_first_and_adopts_what_runs() {
    let stage = Stage::set().await;
    let (first, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding_chunks(2)).await;
    let run = submitted(&mut client).await;
    until("both chunks", || node.chunks().len() == 2).await;

    let (second, mut client) = stage.coordinator().await;
    assert!(second.epoch() > first.epoch());
    let told = within("the first to notice", first.deposed()).await;
    assert!(told.contains("another coordinator has claimed the ledger"), "{told}");
    let mut old = HaulageClient::new(first.channel());
    let status = old.submit(request("2024-02-02")).await.expect_err("it no longer leads");
    assert_eq!(status.code(), Code::Unavailable);

    for key in node.chunks() {
        assert_eq!(key.attempt, Attempt(1));
        node.end(&key, Ok(chunk_outcome()));
    }
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(
        (state(&ended), ended.retries),
        (RunState::Published, 0),
        "{:?}",
        kinds(&events)
    );
    assert_eq!(
        node.works().iter().filter(|work| work.starts_with("chunk")).count(),
        2,
        "no chunk was sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_gives_up_a_node_that_does_not_come_back() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.lease.lease_ms = 500;
    config.lease.suspect_ms = 300;
    let (first, mut client) = stage.coordinator_with(config.clone()).await;
    let gone = FakeNode::start("gone", holding_chunks(1)).await;
    let run = submitted(&mut client).await;
    until("the chunk", || gone.chunks().len() == 1).await;
    first.stop().await;
    drop(gone);

    let (_second, mut client) = stage.coordinator_with(config).await;
    let _node = FakeNode::start("n2", Manner::quick(1)).await;
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!((state(&ended), ended.retries), (RunState::Published, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_can_not_be_recovered_blocks_no_other() {
    let stage = Stage::set().await;
    let (first, mut client) = stage.coordinator().await;
    let broken = submitted(&mut client).await;
    let sound = submit(&mut client, request("2024-01-02")).await.run_id;
    first.stop().await;
    let mut connection = sqlx::SqliteConnection::connect(&stage.ledger())
        .await
        .expect("the ledger is a SQLite file");
    sqlx::query("UPDATE events SET body = '{\"kind\":\"from the future\"}' WHERE run = ?")
        .bind(&broken)
        .execute(&mut connection)
        .await
        .expect("breaks the log");
    connection.close().await.expect("closes");

    let (_second, mut client) = stage.coordinator().await;
    let _node = FakeNode::start("n1", Manner::quick(1)).await;
    let (ended, _) = finished(&mut client, &sound).await;
    assert_eq!(state(&ended), RunState::Published);
    for status in [
        get(&mut client, &broken).await.map(drop).expect_err("it can't be read"),
        client
            .submit(request("2024-01-01"))
            .await
            .map(drop)
            .expect_err("it would be this run"),
    ] {
        assert_eq!(status.code(), Code::DataLoss, "{status}");
        assert!(status.message().contains(&broken), "{}", status.message());
    }
    let listed = client
        .list_runs(ListRunsRequest::default())
        .await
        .expect("lists")
        .into_inner()
        .runs;
    let errors: Vec<(&str, bool)> = listed
        .iter()
        .map(|run| (run.run_id.as_str(), run.error.is_empty()))
        .collect();
    assert_eq!(errors, [(sound.as_str(), true), (broken.as_str(), false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_what_stands_and_disturbs_nobody() {
    let stage = Stage::set().await;
    let (coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", Manner::quick(1)).await;
    let run = submitted(&mut client).await;
    finished(&mut client, &run).await;

    let reader = haulage_coordinator::open_readonly(&stage.ledger())
        .await
        .expect("opens");
    let mut reading = HaulageClient::new(reader.channel());
    let (seen, events) = finished(&mut reading, &run).await;
    assert_eq!(state(&seen), RunState::Published);
    assert_eq!(get(&mut reading, &run).await.expect("reads").1, events);
    let status = reading.submit(request("2024-01-02")).await.expect_err("it only reads");
    assert_eq!(status.code(), Code::FailedPrecondition);
    drop(node);

    let epoch = ledger::open_read_only(&stage.ledger())
        .await
        .expect("opens")
        .epoch()
        .await
        .expect("reads");
    assert_eq!(Some(epoch), coordinator.epoch(), "nobody claimed it");
}
