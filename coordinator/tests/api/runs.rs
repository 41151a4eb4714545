//! Submitting, watching, listing and cancelling.

use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{CancelRequest, ListRejectsRequest, ListRunsRequest, RunState, SubmitRequest};
use tonic::Code;

use super::agent::{Act, FakeNode, Manner, outcome};
use super::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_through_every_stage_and_the_stream_ends_with_it() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", Manner::quick(3)).await;

    let first = submit(&mut client, request("2024-01-01")).await;
    assert_eq!(first.disposition(), Disposition::Started);
    let (run, events) = finished(&mut client, &first.run_id).await;

    assert_eq!(state(&run), RunState::Published, "{}", run.error);
    let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(
        seqs,
        (1..=run.seq).collect::<Vec<_>>(),
        "no event is missing and none comes twice"
    );
    assert_eq!(kinds(&events).first(), Some(&"submitted"));
    assert_eq!(kinds(&events).last(), Some(&"finished"));
    // Within a phase they go out together, so only the phases have an order.
    let mut works = node.works();
    for phase in [1..3, 3..6, 6..8, 10..12] {
        works[phase].sort();
    }
    assert_eq!(
        works,
        [
            "discover",
            "prepare one",
            "prepare two",
            "chunk 0.0",
            "chunk 0.1",
            "chunk 0.2",
            "verify one",
            "verify two",
            "publish one",
            "publish two",
            "cleanup one",
            "cleanup two",
        ]
    );
    let counts = run.counts.expect("counts");
    assert_eq!((counts.read, counts.loaded, counts.filtered), (30, 48, 12));
    assert_eq!(
        run.loads.iter().map(|load| load.published).collect::<Vec<_>>(),
        [24, 24]
    );
    assert_eq!(run.loads[0].detail, "publish one is done");
    assert_eq!(
        (
            run.stages[0].chunks,
            run.stages[0].chunks_done,
            run.stages[0].chunks_running
        ),
        (3, 3, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_submission_attaches_is_known_as_published_and_runs_again_on_purpose() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;

    let started = submit(&mut client, request("2024-01-01")).await;
    let attached = submit(&mut client, request("2024-01-01")).await;
    assert_eq!(attached.disposition(), Disposition::Attached);
    assert_eq!(attached.run_id, started.run_id);
    let other = submit(&mut client, request("2024-01-02")).await;
    assert_eq!(other.disposition(), Disposition::Started);

    let _node = FakeNode::start("n1", Manner::quick(1)).await;
    finished(&mut client, &started.run_id).await;
    finished(&mut client, &other.run_id).await;

    let known = submit(&mut client, request("2024-01-01")).await;
    assert_eq!(
        (known.disposition(), &known.run_id),
        (Disposition::AlreadyPublished, &started.run_id)
    );
    let again = submit(
        &mut client,
        SubmitRequest {
            rerun: true,
            ..request("2024-01-01")
        },
    )
    .await;
    assert_eq!(again.disposition(), Disposition::Started);
    let (run, events) = finished(&mut client, &again.run_id).await;
    assert_eq!(state(&run), RunState::Published);
    assert!(
        events[0].text.contains(&started.run_id),
        "it says what it replaces: {}",
        events[0].text
    );

    let listed = client
        .list_runs(ListRunsRequest {
            limit: 2,
            ..Default::default()
        })
        .await
        .expect("lists")
        .into_inner();
    let ids: Vec<&str> = listed.runs.iter().map(|run| run.run_id.as_str()).collect();
    assert_eq!(ids, [again.run_id.as_str(), other.run_id.as_str()]);
    let none = ListRunsRequest {
        pipeline: "other".to_owned(),
        limit: 0,
    };
    assert!(
        client
            .list_runs(none)
            .await
            .expect("lists")
            .into_inner()
            .runs
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unsound_is_refused_with_its_place() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let broken = PIPELINE.replace("SELECT id, name", "SELECT id, nam");
    for (request, code, part) in [
        (
            SubmitRequest {
                definition: broken,
                ..request("2024-01-01")
            },
            Code::InvalidArgument,
            "small.yaml:7:",
        ),
        (request("yesterday"), Code::InvalidArgument, "day"),
        (
            SubmitRequest {
                base: String::new(),
                ..request("2024-01-01")
            },
            Code::InvalidArgument,
            "base",
        ),
    ] {
        let status = client.submit(request).await.expect_err(part);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{part:?} in {:?}", status.message());
    }
    let listed = client
        .list_runs(ListRunsRequest::default())
        .await
        .expect("lists")
        .into_inner();
    assert!(listed.runs.is_empty());
    let status = get(&mut client, "nothing").await.expect_err("no such run");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_node_and_says_so() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let run = submitted(&mut client).await;
    until_waiting(&mut client, &run, "waiting for a node").await;

    let _node = FakeNode::start("n1", Manner::quick(1)).await;
    let (run, _) = finished(&mut client, &run).await;
    assert_eq!(state(&run), RunState::Published);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_of_running_chunks_reaches_watchers() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding_chunks(2)).await;
    let run = submitted(&mut client).await;
    until("both chunks", || node.chunks().len() == 2).await;
    let keys = node.chunks();
    node.count(&keys[0], 4);
    node.count(&keys[1], 3);

    let mut stream = watch(&mut client, &run, 0).await;
    let seen = async {
        while let Some(message) = stream.message().await.expect("no error") {
            let stage = message.run.as_ref().and_then(|run| run.stages.first());
            if stage.is_some_and(|stage| stage.rows_read == 7 && stage.chunks_running == 2) {
                return true;
            }
        }
        false
    };
    assert!(within("seven rows", seen).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let _node = FakeNode::start("n1", Manner::quick(2)).await;
    let run = submitted(&mut client).await;
    let (_, events) = finished(&mut client, &run).await;
    let mut stream = watch(&mut client, &run, 5).await;
    let mut rest = Vec::new();
    while let Some(message) = stream.message().await.expect("no error") {
        rest.extend(message.events.iter().map(|event| event.seq));
    }
    assert_eq!(
        rest,
        events
            .iter()
            .map(|event| event.seq)
            .filter(|seq| *seq > 5)
            .collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_drops_its_chunks_and_undoes_in_reverse() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding_chunks(2)).await;
    let run = submitted(&mut client).await;
    until("both chunks", || node.chunks().len() == 2).await;

    let cancel = |reason: &str| CancelRequest {
        run_id: run.clone(),
        reason: reason.to_owned(),
    };
    client.cancel(cancel("wrong day")).await.expect("cancels");
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Cancelled);
    assert!(ended.error.contains("wrong day"), "{}", ended.error);
    assert_eq!(node.works()[5..], ["compensate prepare two", "compensate prepare one"]);
    let dropped: Vec<String> = node.dropped().iter().map(|key| key.work.to_string()).collect();
    assert!(
        dropped.contains(&"chunk 0.0".to_owned()) && dropped.contains(&"chunk 0.1".to_owned()),
        "{dropped:?}"
    );
    let order = kinds(&events);
    let last_failed = order.iter().rposition(|kind| *kind == "attempt_failed");
    let first_undone = order.iter().position(|kind| *kind == "compensated");
    assert!(
        last_failed < first_undone,
        "nothing is undone while something may still be written: {order:?}"
    );

    let status = client.cancel(cancel("again")).await.expect_err("it is at rest");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let unknown = CancelRequest {
        run_id: "nothing".to_owned(),
        reason: String::new(),
    };
    assert_eq!(
        client.cancel(unknown).await.expect_err("no such run").code(),
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_refused_once_publishing_has_begun() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", holding("publish two", 1)).await;
    let run = submitted(&mut client).await;
    until("publish two", || node.works().contains(&"publish two".to_owned())).await;
    let request = CancelRequest {
        run_id: run.clone(),
        reason: String::new(),
    };
    let status = client.cancel(request).await.expect_err("too late");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("publishing has begun"),
        "{}",
        status.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_are_read_by_a_node_page_by_page() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    rejects_of(&mut client, Manner::quick(2)).await;
}

/// It leaves choosing by reason to whoever asks, and an empty page is its end.
#[tokio::test(flavor = "multi_thread")]
async fn rejects_are_read_by_a_node_of_an_earlier_release() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    rejects_of(&mut client, Manner::quick(2).older()).await;
}

async fn rejects_of(client: &mut Client, manner: Manner) {
    let node = FakeNode::start("n1", manner).await;
    let run = submitted(client).await;
    finished(client, &run).await;

    let all = rejects(client, &run, "").await.expect("a node reads them");
    let expected: Vec<(String, u64)> = ["rejects/0.0", "rejects/0.1"]
        .iter()
        .flat_map(|key| (1..=3).map(|line| ((*key).to_owned(), line)))
        .collect();
    assert_eq!(all, expected);
    let ragged = rejects(client, &run, "ragged").await.expect("a node reads them");
    assert_eq!(ragged, [("rejects/0.0".to_owned(), 2), ("rejects/0.1".to_owned(), 2)]);

    drop(node);
    let status = until_err(client, &run).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("haulage node"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_rejects_goes_on_when_its_node_is_lost() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let nodes = [
        FakeNode::start("n1", Manner::quick(100)).await,
        FakeNode::start("n2", Manner::quick(100)).await,
    ];
    let run = submitted(&mut client).await;
    finished(&mut client, &run).await;

    // Whichever of them it is that reads: first one is lost, then both, and then one of them is there again.
    for lost in [&nodes[..1], &nodes[1..], &nodes[..]] {
        let request = ListRejectsRequest {
            run_id: run.clone(),
            reason: String::new(),
        };
        let mut stream = client.list_rejects(request).await.expect("a listing").into_inner();
        let mut rows = Vec::new();
        let first = stream.message().await.expect("a node reads them").expect("a row");
        rows.push((first.file, first.line));
        lost.iter().for_each(FakeNode::pause);
        let rest = async {
            while let Some(row) = within("the next row", stream.message()).await.expect("it goes on") {
                rows.push((row.file, row.line));
            }
        };
        let back = async {
            if let [one, other] = lost {
                until("both were asked", || one.pages_owed() > 0 && other.pages_owed() > 0).await;
                other.resume();
            }
        };
        tokio::join!(rest, back);
        lost.iter().for_each(FakeNode::resume);
        let expected = (0..100).flat_map(|chunk| (1..=3).map(move |line| (format!("rejects/0.{chunk}"), line)));
        assert_eq!(rows, expected.collect::<Vec<_>>());
    }
}

async fn until_err(client: &mut Client, run: &str) -> tonic::Status {
    within("the node to be gone", async {
        loop {
            if let Err(status) = rejects(client, run, "").await {
                return status;
            }
        }
    })
    .await
}

async fn rejects(client: &mut Client, run: &str, reason: &str) -> Result<Vec<(String, u64)>, tonic::Status> {
    let request = ListRejectsRequest {
        run_id: run.to_owned(),
        reason: reason.to_owned(),
    };
    let mut stream = client.list_rejects(request).await?.into_inner();
    let mut rows = Vec::new();
    while let Some(reject) = stream.message().await? {
        rows.push((reject.file, reject.line));
    }
    Ok(rows)
}

/// Everything ends at once but chunks, which go on.
pub(crate) fn holding_chunks(chunks: u32) -> Manner {
    holding("chunk", chunks)
}

/// Everything ends at once but work whose name begins with `prefix`.
pub(crate) fn holding(prefix: &'static str, chunks: u32) -> Manner {
    Manner::scripted(
        move |assignment| match assignment.key.work.to_string().starts_with(prefix) {
            true => Act::Hold,
            false => Act::End(Ok(outcome(assignment, chunks))),
        },
    )
}
