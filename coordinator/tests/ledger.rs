//! One suite for the ledger, run over both databases. Each test is a guarantee that recovery or fencing leans on.

mod support;

#[path = "ledger/group.rs"]
mod group;
#[path = "ledger/leader.rs"]
mod leader;
#[path = "ledger/places.rs"]
mod places;
#[path = "ledger/replay.rs"]
mod replay;
#[path = "ledger/retention.rs"]
mod retention;
#[path = "ledger/revert.rs"]
mod revert;
#[path = "ledger/submit.rs"]
mod submit;

use std::collections::BTreeSet;

use haulage_coordinator::ledger::{Appended, Error};
use haulage_core::event::Outcome;
use haulage_core::ids::{Epoch, Seq};
use support::{NOW, Place, append, claim, event, finish, finished, log, start, submission};

/// Runs each test over both databases.
#[macro_export]
macro_rules! over_both {
    ($($test:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Place::postgres().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::Place::sqlite().await).await;
            })*
        }
    };
}

over_both!(
    places_in_a_log_have_no_gap,
    a_conflict_concerns_one_run,
    appends_of_one_run_are_judged_one_after_the_other,
    nothing_stands_after_finished,
    a_failing_append_leaves_nothing,
    a_lost_answer_is_given_again,
    only_the_newest_epoch_writes,
    claims_never_share_an_epoch,
    an_unreadable_event_concerns_one_run,
    lists_tell_open_from_finished,
);

async fn places_in_a_log_have_no_gap(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let answers = ledger
        .append(epoch, &[append(&run, 1, vec![event(1), event(2)])])
        .await
        .expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(3))]);
    // More rows than SQLite takes in one statement.
    let many: Vec<_> = (3..2503).map(event).collect();
    let answers = other.append(epoch, &[append(&run, 3, many)]).await.expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(2503))]);

    let events = log(&*other, &run).await;
    assert_eq!(events.len(), 2503);
    assert_eq!(events[1..], (1..2503).map(event).collect::<Vec<_>>());
    let rest = ledger.read(&run, Seq(2502)).await.expect("a readable log");
    assert_eq!(rest, [(Seq(2503), event(2502))]);
    assert_eq!(ledger.read(&run, Seq(2503)).await.expect("a readable log"), []);
    assert_eq!(ledger.read(&"nobody".into(), Seq(0)).await.expect("a readable log"), []);
}

async fn a_conflict_concerns_one_run(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let (a, b, c) = (
        start(&*ledger, epoch, 1).await,
        start(&*ledger, epoch, 2).await,
        start(&*ledger, epoch, 3).await,
    );
    let appends = [
        append(&a, 1, vec![event(1)]),
        append(&b, 0, vec![event(1)]),
        append(&"nobody".into(), 0, vec![event(1)]),
        append(&b, 2, vec![event(1)]),
        append(&c, 1, vec![event(1), event(2)]),
        append(&c, 2, vec![]),
    ];
    let answers = ledger.append(epoch, &appends).await.expect("an answer");
    let conflict = Appended::Conflict;
    assert_eq!(
        answers,
        [
            Appended::At(Seq(2)),
            conflict,
            conflict,
            conflict,
            Appended::At(Seq(3)),
            conflict
        ]
    );
    assert_eq!(log(&*ledger, &a).await.len(), 2);
    assert_eq!(log(&*ledger, &b).await.len(), 1);
    assert_eq!(log(&*ledger, &c).await.len(), 3);
    assert_eq!(ledger.read(&"nobody".into(), Seq(0)).await.expect("a readable log"), []);
    // The refused one goes on from where it really is.
    let answers = ledger
        .append(epoch, &[append(&b, 1, vec![event(1)])])
        .await
        .expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(2))]);
}

async fn appends_of_one_run_are_judged_one_after_the_other(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let appends = [
        append(&run, 1, vec![event(1)]),
        append(&run, 1, vec![event(9)]),
        append(&run, 2, vec![event(2), event(3)]),
        append(&run, 4, vec![finished(Outcome::Failed)]),
        append(&run, 5, vec![event(9)]),
    ];
    let answers = ledger.append(epoch, &appends).await.expect("an answer");
    let at = |seq| Appended::At(Seq(seq));
    assert_eq!(answers, [at(2), Appended::Conflict, at(4), at(5), Appended::Conflict]);
    let events = log(&*ledger, &run).await;
    assert_eq!(events[1..], [event(1), event(2), event(3), finished(Outcome::Failed)]);
    assert_eq!(ledger.open_runs().await.expect("open runs"), []);
}

async fn nothing_stands_after_finished(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let answers = ledger
        .append(epoch, &[append(&run, 2, vec![event(1)])])
        .await
        .expect("an answer");
    assert_eq!(answers, [Appended::Conflict]);
    assert_eq!(log(&*ledger, &run).await.len(), 2);
}

/// Many runs, one transaction: a database that refuses the last row keeps none of the others, and no head moves.
async fn a_failing_append_leaves_nothing(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let mut runs = Vec::new();
    for n in 0..20 {
        runs.push(start(&*ledger, epoch, n).await);
    }
    let last = runs.iter().max().expect("a last run");
    let forbidden = format!("run = '{last}' AND seq = 2");
    place
        .execute(match place {
            Place::Postgres { .. } => {
                format!("ALTER TABLE haulage_ledger.events ADD CONSTRAINT grudge CHECK (NOT ({forbidden}))")
            }
            Place::Sqlite { .. } => format!(
                "CREATE TRIGGER grudge BEFORE UPDATE ON runs WHEN new.run = '{last}'
                 BEGIN SELECT RAISE(ABORT, 'grudge'); END"
            ),
        })
        .await;
    let appends: Vec<_> = runs.iter().map(|run| append(run, 1, vec![event(1)])).collect();
    let refused = ledger.append(epoch, &appends).await.expect_err("the database refuses");
    assert!(
        matches!(refused, Error::Database(_)) && !refused.is_transient(),
        "{refused}"
    );
    for run in &runs {
        assert_eq!(log(&*ledger, run).await.len(), 1);
    }
    let others: Vec<_> = appends.into_iter().filter(|append| append.run != *last).collect();
    let answers = ledger.append(epoch, &others).await.expect("an answer");
    assert!(
        answers.iter().all(|answer| *answer == Appended::At(Seq(2))),
        "{answers:?}"
    );
}

async fn a_lost_answer_is_given_again(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let (run, ended) = (start(&*ledger, epoch, 1).await, start(&*ledger, epoch, 2).await);
    let appends = [
        append(&run, 1, vec![event(1), event(2)]),
        append(&ended, 1, vec![finished(Outcome::Cancelled)]),
    ];
    let first = ledger.append(epoch, &appends).await.expect("an answer");
    assert_eq!(first, [Appended::At(Seq(3)), Appended::At(Seq(2))]);
    assert_eq!(other.append(epoch, &appends).await.expect("an answer"), first);
    // Also when the log has gone on since.
    ledger
        .append(epoch, &[append(&run, 3, vec![event(3)])])
        .await
        .expect("an answer");
    assert_eq!(ledger.append(epoch, &appends).await.expect("an answer"), first);
    assert_eq!(log(&*ledger, &run).await.len(), 4);

    // What looks alike but isn't the same is a conflict: other content, part of it, another place, nothing at all.
    let others = [
        append(&run, 1, vec![event(1), event(9)]),
        append(&run, 1, vec![event(1), event(2), event(3), event(4)]),
        append(&run, 2, vec![event(1)]),
        append(&run, 0, vec![]),
    ];
    let answers = ledger.append(epoch, &others).await.expect("an answer");
    assert_eq!(answers, [Appended::Conflict; 4]);
    // So is the same content by another leader.
    let next = claim(&*other, "another").await.expect("an epoch");
    assert_eq!(
        other.append(next, &appends).await.expect("an answer"),
        [Appended::Conflict; 2]
    );
    assert_eq!(log(&*ledger, &run).await.len(), 4);
}

async fn only_the_newest_epoch_writes(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    assert_eq!(ledger.epoch().await.expect("an epoch"), Epoch(0));
    let nobody = ledger.submit(Epoch(0), &submission(1), false, NOW).await;
    assert!(matches!(nobody, Err(Error::Deposed { .. })), "{nobody:?}");

    let old = claim(&*ledger, "old").await.expect("an epoch");
    let run = start(&*ledger, old, 1).await;
    let new = claim(&*other, "new").await.expect("an epoch");
    assert!(new > old);
    assert_eq!(ledger.epoch().await.expect("an epoch"), new);
    for stale in [old, new_after(new)] {
        let appended = ledger.append(stale, &[append(&run, 1, vec![event(1)])]).await;
        assert!(
            matches!(appended, Err(Error::Deposed { theirs, ours }) if theirs == new && ours == stale),
            "{appended:?}"
        );
        let submitted = ledger.submit(stale, &submission(2), false, NOW).await;
        assert!(matches!(submitted, Err(Error::Deposed { .. })), "{submitted:?}");
        // Not even an answer that needs no writing.
        let attached = ledger.submit(stale, &submission(1), false, NOW).await;
        assert!(matches!(attached, Err(Error::Deposed { .. })), "{attached:?}");
    }
    assert_eq!(log(&*other, &run).await.len(), 1);
    assert_eq!(other.open_runs().await.expect("open runs"), std::slice::from_ref(&run));
    let answers = ledger
        .append(new, &[append(&run, 1, vec![event(1)])])
        .await
        .expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(2))]);
}

fn new_after(epoch: Epoch) -> Epoch {
    Epoch(epoch.0 + 1)
}

async fn claims_never_share_an_epoch(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    let mut claims = Vec::new();
    for n in 0..20 {
        let ledger = if n % 2 == 0 { ledger.clone() } else { other.clone() };
        claims.push(tokio::spawn(
            async move { claim(&*ledger, &format!("leader {n}")).await },
        ));
    }
    let mut epochs = BTreeSet::new();
    for claim in claims {
        epochs.insert(claim.await.expect("a claim that ends").expect("an epoch").0);
    }
    assert_eq!(epochs, (1..=20).collect());
    assert_eq!(other.epoch().await.expect("an epoch"), Epoch(20));
}

async fn an_unreadable_event_concerns_one_run(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let (broken, holed, sound) = (
        start(&*ledger, epoch, 1).await,
        start(&*ledger, epoch, 2).await,
        start(&*ledger, epoch, 3).await,
    );
    for run in [&broken, &holed, &sound] {
        ledger
            .append(epoch, &[append(run, 1, vec![event(1), event(2)])])
            .await
            .expect("an answer");
    }
    let events = place.table("events");
    let body = r#"{"kind":"of another release"}"#;
    place
        .execute(format!(
            "UPDATE {events} SET body = '{body}' WHERE run = '{broken}' AND seq = 2"
        ))
        .await;
    place
        .execute(format!("DELETE FROM {events} WHERE run = '{holed}' AND seq = 2"))
        .await;
    for run in [&broken, &holed] {
        let read = ledger.read(run, Seq(0)).await;
        assert!(
            matches!(&read, Err(Error::Unreadable { run: named, seq: Seq(2), .. }) if named == run),
            "{read:?}"
        );
    }
    assert_eq!(log(&*ledger, &sound).await.len(), 3);
    assert_eq!(ledger.open_runs().await.expect("open runs").len(), 3);
    assert_eq!(ledger.list(None, 10).await.expect("a list").len(), 3);
    start(&*ledger, epoch, 4).await;
}

async fn lists_tell_open_from_finished(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let (a, b, c) = (
        start(&*ledger, epoch, 1).await,
        start(&*ledger, epoch, 2).await,
        start(&*ledger, epoch, 3).await,
    );
    let mut elsewhere = submission(1);
    elsewhere.pipeline = "trains".to_owned();
    let trains = ledger
        .submit(epoch, &elsewhere, false, NOW.plus(1))
        .await
        .expect("a run")
        .run;
    finish(&*ledger, epoch, &b, Outcome::Failed).await;

    assert_eq!(
        other.open_runs().await.expect("open runs"),
        [a.clone(), c.clone(), trains.clone()]
    );
    let all = other.list(None, 10).await.expect("a list");
    let names: Vec<_> = all.iter().map(|row| row.run.clone()).collect();
    assert_eq!(names, [trains.clone(), c.clone(), b.clone(), a.clone()]);
    let ends: Vec<_> = all.iter().map(|row| row.finished).collect();
    assert_eq!(ends, [None, None, Some((NOW.plus(7), Outcome::Failed)), None]);
    assert_eq!((all[0].pipeline.as_str(), all[0].submitted_at), ("trains", NOW.plus(1)));
    assert_eq!(other.list(Some("trains"), 10).await.expect("a list").len(), 1);
    let newest = other.list(Some("flights"), 2).await.expect("a list");
    assert_eq!(newest.iter().map(|row| &row.run).collect::<Vec<_>>(), [&c, &b]);
}
