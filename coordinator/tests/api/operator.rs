//! What an operator decides: about a run that is stuck, and about one that was published and should not have been.

use haulage_coordinator::ledger::{self, Append, Appended};
use haulage_core::event::Event;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, Millis, RunId, Seq, StepKind, Work};
use haulage_proto::v1::resolve_request::Decision;
use haulage_proto::v1::{CancelRequest, ResolveRequest, RevertRequest, RunState, SubmitRequest};
use tonic::Code;

use super::agent::{Act, FakeNode, Manner, outcome};
use super::fixture::*;

fn resolve(run: &str, decision: Decision, reason: &str) -> ResolveRequest {
    ResolveRequest {
        run_id: run.to_owned(),
        decision: decision.into(),
        reason: reason.to_owned(),
        by: "ops".to_owned(),
        step: String::new(),
    }
}

fn revert(run: &str) -> RevertRequest {
    RevertRequest {
        run_id: run.to_owned(),
        reason: "the wrong month".to_owned(),
        by: "ops".to_owned(),
    }
}

/// Watches until the run has been stuck so often.
async fn until_stuck(client: &mut Client, run: &str, times: usize) {
    let mut stream = watch(client, run, 0).await;
    let mut seen = 0;
    let stuck = async {
        while let Some(message) = stream.message().await.expect("no error") {
            seen += message.events.iter().filter(|event| event.kind == "stuck").count();
            if seen >= times {
                return;
            }
        }
        panic!("the run ended without being stuck");
    };
    within("the run to be stuck", stuck).await;
}

/// Fails every publish of `two`, and for so many attempts the undoing of `one`.
fn unlucky(undoings: u32) -> Manner {
    Manner::scripted(move |assignment| {
        let failed = match &assignment.key.work {
            Work::Step(step) => step.kind == StepKind::Publish && step.load.as_str() == "two",
            Work::Compensate(step) => {
                step.kind == StepKind::Publish
                    && step.load.as_str() == "one"
                    && assignment.key.attempt <= Attempt(undoings)
            }
            Work::Discover | Work::Chunk(_) => false,
        };
        Act::End(if failed {
            Err(Failure::permanent("permission denied"))
        } else {
            Ok(outcome(assignment, 1))
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_run_is_retried_and_abandoned_with_a_reason_that_stays() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let _node = FakeNode::start("n1", unlucky(9)).await;
    let run = submitted(&mut client).await;
    for times in 1..=2 {
        until_stuck(&mut client, &run, times).await;
        let asked = client.resolve(resolve(&run, Decision::Retry, "")).await;
        assert!(asked.expect("tries again").into_inner().seq > 0);
    }
    until_stuck(&mut client, &run, 3).await;
    let stuck = get(&mut client, &run).await.expect("a run").0;
    for part in [
        "haulage saga retry",
        "haulage saga abandon",
        run.as_str(),
        "permission denied",
    ] {
        assert!(stuck.error.contains(part), "{part:?} is not in {}", stuck.error);
    }
    for (wrong, code) in [
        (resolve(&run, Decision::Abandon, " "), Code::InvalidArgument),
        (
            resolve(&run, Decision::Abandon, &"x".repeat(3_000)),
            Code::InvalidArgument,
        ),
        (resolve(&run, Decision::Unspecified, "x"), Code::InvalidArgument),
        (resolve("nobody", Decision::Retry, "x"), Code::NotFound),
    ] {
        assert_eq!(client.resolve(wrong).await.expect_err("refused").code(), code);
    }
    client
        .resolve(resolve(&run, Decision::Abandon, "restored by hand"))
        .await
        .expect("goes on");
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Failed);
    let said: Vec<&str> = events
        .iter()
        .filter(|event| event.kind == "unstuck")
        .map(|event| event.text.as_str())
        .collect();
    assert_eq!(
        said,
        [
            "ops says retry: no reason given",
            "ops says retry: no reason given",
            "ops says abandon: restored by hand"
        ]
    );
    let late = client.resolve(resolve(&run, Decision::Retry, "x")).await;
    assert_eq!(late.expect_err("over").code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_well_is_not_stuck() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let run = submitted(&mut client).await;
    // Right after the submission nobody may answer for the run yet.
    let code = within("an answer about the run", async {
        loop {
            let refused = client.resolve(resolve(&run, Decision::Retry, "x")).await;
            let code = refused.expect_err("it has only begun").code();
            if code != Code::Unavailable {
                return code;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(code, Code::FailedPrecondition);
    let refused = client.revert(revert(&run)).await.expect_err("it has only begun");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_run_is_reverted_by_its_own_steps_also_over_a_restart() {
    let stage = Stage::set().await;
    let (coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n1", Manner::quick(1)).await;
    let run = submitted(&mut client).await;
    finished(&mut client, &run).await;
    let before = node.works().len();
    drop(node);
    // Nobody is there to do it, and the coordinator ends: it is in the log.
    client.revert(revert(&run)).await.expect("asked");
    client.revert(revert(&run)).await.expect("asked twice");
    let cancel = CancelRequest {
        run_id: run.clone(),
        reason: String::new(),
    };
    let refused = client.cancel(cancel).await.expect_err("it was published");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("being reverted"), "{}", refused.message());
    assert_eq!(
        get(&mut client, &run).await.expect("a run").0.state(),
        RunState::Reverting
    );
    coordinator.stop().await;

    let (_coordinator, mut client) = stage.coordinator().await;
    let node = FakeNode::start("n2", Manner::quick(1)).await;
    let (ended, events) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Reverted);
    assert!(before > 0 && ended.loads.iter().all(|load| load.published == 0));
    let mut works = node.works();
    works[..2].sort();
    assert_eq!(
        works,
        [
            "recall one",
            "recall two",
            "compensate publish two",
            "compensate publish one",
            "compensate prepare two",
            "compensate prepare one",
        ]
    );
    let asked = events.iter().filter(|event| event.kind == "revert_requested");
    assert_eq!(asked.count(), 1);
    let seq = client.revert(revert(&run)).await.expect("once more").into_inner().seq;
    assert_eq!(seq, ended.seq, "nothing happens to what is reverted");
    let again = submit(&mut client, request("2024-01-01")).await;
    assert_ne!(again.run_id, run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_can_not_go_back_leaves_the_run_published() {
    let stage = Stage::set().await;
    let (_coordinator, mut client) = stage.coordinator().await;
    let manner = Manner::scripted(|assignment| {
        Act::End(match &assignment.key.work {
            Work::Step(step) if step.kind == StepKind::Recall && step.load.as_str() == "two" => {
                Err(Failure::permanent("run x has published since"))
            }
            Work::Discover | Work::Chunk(_) | Work::Step(_) | Work::Compensate(_) => Ok(outcome(assignment, 1)),
        })
    });
    let node = FakeNode::start("n1", manner).await;
    let run = submitted(&mut client).await;
    finished(&mut client, &run).await;
    for _ in 0..2 {
        client.revert(revert(&run)).await.expect("asked");
        let (ended, _) = finished(&mut client, &run).await;
        assert_eq!(state(&ended), RunState::Published);
        assert!(ended.error.contains("run x has published since"), "{}", ended.error);
        assert!(ended.loads.iter().all(|load| load.published > 0));
    }
    let undone: Vec<String> = node
        .works()
        .into_iter()
        .filter(|work| work.starts_with("compensate"))
        .collect();
    let let_go = ["compensate recall two", "compensate recall one"];
    let mut sorted = [let_go, let_go].concat();
    sorted.sort_unstable();
    let mut all = undone.clone();
    all.sort();
    assert_eq!(all, sorted, "nothing is undone but the asking: {undone:?}");
    let known = submit(
        &mut client,
        SubmitRequest {
            rerun: false,
            ..request("2024-01-01")
        },
    )
    .await;
    assert_eq!(known.run_id, run);
    let nobody = client.revert(revert("nobody")).await.expect_err("no such run");
    assert_eq!(nobody.code(), Code::NotFound);
}

/// Whoever opened it hung up, or died, before it was started.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_open_in_the_ledger_and_that_nobody_works_on_is_found() {
    let stage = Stage::set().await;
    let (coordinator, mut client) = stage.coordinator().await;
    let _node = FakeNode::start("n1", Manner::quick(1)).await;
    let run = submitted(&mut client).await;
    let (published, _) = finished(&mut client, &run).await;
    assert_eq!(state(&published), RunState::Published);
    let ledger = ledger::open(&stage.ledger()).await.expect("the ledger");
    let reopen = Append {
        run: RunId::new(run.clone()),
        expected: Seq(published.seq),
        events: vec![Event::RevertRequested {
            reason: "the wrong month".to_owned(),
            by: "somebody who is gone".to_owned(),
            at: Millis(1),
        }],
    };
    let epoch = coordinator.epoch().expect("it leads");
    let opened = ledger.append(epoch, &[reopen]).await.expect("it stands");
    assert_eq!(opened, [Appended::At(Seq(published.seq + 1))]);
    let (ended, _) = finished(&mut client, &run).await;
    assert_eq!(state(&ended), RunState::Reverted);
}
