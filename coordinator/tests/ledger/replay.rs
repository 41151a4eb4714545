//! Replays: of each run at most one stands, whoever asks at the same moment, and nothing is taken from under it. See
//! `Ledger::submit`.

use haulage_coordinator::ledger::admit::Unreplayable;
use haulage_coordinator::ledger::{Appended, Disposition, Error, Ledger, Submitted};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, RunId, Seq};
use haulage_core::submission::{Replay, Submission};

use crate::support::{NOW, Place, append, finish, log, start, submission};

crate::over_both!(
    only_one_of_two_callers_replays_a_run,
    what_one_replay_has_loaded_is_not_read_again,
    only_what_stands_can_be_replayed,
    a_run_that_was_replayed_is_neither_reverted_nor_run_again,
    rows_that_were_pruned_meanwhile_are_not_replayed,
    increments_stand_beside_each_other,
    a_ledger_of_an_earlier_release_knows_what_was_run_again,
);

/// A replay of `run` by the definition `n`.
fn replay(run: &RunId, n: u32) -> Submission {
    Submission {
        replay: Some(Replay {
            run: run.clone(),
            origin: None,
            objects: Default::default(),
            parts: Default::default(),
            read: Default::default(),
            loads: None,
        }),
        ..submission(n)
    }
}

async fn ask(ledger: &dyn Ledger, epoch: Epoch, run: &RunId, n: u32) -> Result<Submitted, Unreplayable> {
    match ledger.submit(epoch, &replay(run, n), false, NOW).await {
        Ok(submitted) => Ok(submitted),
        Err(Error::Unreplayable(why)) => Err(why),
        Err(error) => panic!("{error}"),
    }
}

async fn only_one_of_two_callers_replays_a_run(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let mut callers = Vec::new();
    for caller in 0..12 {
        let ledger = if caller % 2 == 0 { ledger.clone() } else { other.clone() };
        let run = run.clone();
        callers.push(tokio::spawn(async move {
            ask(&*ledger, epoch, &run, 10 + caller % 3).await
        }));
    }
    let (mut started, mut attached, mut refused) = (Vec::new(), 0, 0);
    for caller in callers {
        match caller.await.expect("a caller that ends") {
            Ok(submitted) if submitted.disposition == Disposition::Started => started.push(submitted.run),
            Ok(submitted) => {
                assert_eq!(submitted.disposition, Disposition::Attached);
                attached += 1;
            }
            Err(Unreplayable::Running(of, _)) => {
                assert_eq!(of, run);
                refused += 1;
            }
            Err(why) => panic!("{why}"),
        }
    }
    assert_eq!((started.len(), attached, refused), (1, 3, 8));
    let replaying = ledger.replaying(&run).await.expect("an answer").expect("a replay");
    assert_eq!((&replaying.run, replaying.published), (&started[0], false));
}

async fn what_one_replay_has_loaded_is_not_read_again(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let first = ask(&*ledger, epoch, &run, 2).await.expect("a run").run;
    finish(&*ledger, epoch, &first, Outcome::Published).await;
    let again = ask(&*ledger, epoch, &run, 2).await.expect("a run");
    assert_eq!((&again.run, again.disposition), (&first, Disposition::AlreadyPublished));
    assert_eq!(
        ask(&*ledger, epoch, &run, 3).await,
        Err(Unreplayable::Moved(run.clone(), first.clone()))
    );
    let second = ask(&*ledger, epoch, &first, 3).await.expect("a run").run;
    finish(&*ledger, epoch, &second, Outcome::Failed).await;
    // It has left nothing behind, so another may read the same.
    let third = ask(&*ledger, epoch, &first, 4).await.expect("a run");
    assert_eq!(third.disposition, Disposition::Started);
}

async fn only_what_stands_can_be_replayed(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let none = RunId::from("none");
    assert_eq!(ask(&*ledger, epoch, &none, 2).await, Err(Unreplayable::Unknown(none)));
    let run = start(&*ledger, epoch, 1).await;
    assert_eq!(
        ask(&*ledger, epoch, &run, 2).await,
        Err(Unreplayable::NotPublished(run.clone(), None))
    );
    finish(&*ledger, epoch, &run, Outcome::Failed).await;
    assert_eq!(
        ask(&*ledger, epoch, &run, 2).await,
        Err(Unreplayable::NotPublished(run.clone(), Some(Outcome::Failed)))
    );
    let second = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &second, Outcome::Published).await;
    let rerun = ledger
        .submit(epoch, &submission(1), true, NOW)
        .await
        .expect("a run")
        .run;
    // While it is not known which of the two stands, and when the later one does.
    for outcome in [None, Some(Outcome::Published)] {
        if let Some(outcome) = outcome {
            finish(&*ledger, epoch, &rerun, outcome).await;
        }
        assert_eq!(
            ask(&*ledger, epoch, &second, 2).await,
            Err(Unreplayable::Replaced(second.clone(), rerun.clone()))
        );
    }
    assert_eq!(
        ask(&*ledger, epoch, &rerun, 2).await.expect("a run").disposition,
        Disposition::Started
    );
}

async fn a_run_that_was_replayed_is_neither_reverted_nor_run_again(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let replay = ask(&*ledger, epoch, &run, 2).await.expect("a run").run;
    let revert = |run: &RunId, last: u64| {
        let event = Event::RevertRequested {
            reason: String::new(),
            by: String::new(),
            at: NOW,
        };
        append(run, last, vec![event])
    };
    for outcome in [None, Some(Outcome::Published)] {
        if let Some(outcome) = outcome {
            finish(&*ledger, epoch, &replay, outcome).await;
        }
        let answers = ledger.append(epoch, &[revert(&run, 2)]).await.expect("an answer");
        assert_eq!(answers, [Appended::Conflict]);
        match ledger.submit(epoch, &submission(1), true, NOW).await {
            Err(Error::Unreplayable(why)) => assert_eq!(why, Unreplayable::BuiltOn(run.clone(), replay.clone())),
            other => panic!("{other:?}"),
        }
    }
    // The replay itself may be reverted; then its run may be, and is not replayed meanwhile.
    let answers = ledger.append(epoch, &[revert(&replay, 2)]).await.expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(3))]);
    assert_eq!(
        ask(&*ledger, epoch, &run, 3).await,
        Err(Unreplayable::Running(run.clone(), replay.clone()))
    );
    finish(&*ledger, epoch, &replay, Outcome::Reverted).await;
    let again = ask(&*ledger, epoch, &run, 2).await.expect("a run");
    assert_eq!(again.disposition, Disposition::Started);
    assert_ne!(again.run, replay);
    finish(&*ledger, epoch, &again.run, Outcome::Cancelled).await;
    let answers = ledger.append(epoch, &[revert(&run, 2)]).await.expect("an answer");
    assert_eq!(answers, [Appended::At(Seq(3))]);
    assert_eq!(log(&*ledger, &run).await.len(), 3);
    assert_eq!(
        ask(&*ledger, epoch, &run, 3).await,
        Err(Unreplayable::NotPublished(run.clone(), None))
    );
}

/// Whoever asks has looked before, when the rows were there.
async fn rows_that_were_pruned_meanwhile_are_not_replayed(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let outcome = Outcome::Published;
    let events = vec![
        Event::RejectsPruned {
            by: "ann".to_owned(),
            at: NOW,
        },
        Event::Finished { outcome, at: NOW },
    ];
    let answers = ledger.append(epoch, &[append(&run, 2, events)]).await;
    assert_eq!(answers.expect("an answer"), [Appended::At(Seq(4))]);
    assert_eq!(ask(&*ledger, epoch, &run, 2).await, Err(Unreplayable::Pruned(run)));
}

/// Runs what is new, or the newest again.
async fn increment(ledger: &dyn Ledger, epoch: Epoch, rerun: bool) -> RunId {
    let submission = Submission {
        incremental: true,
        ..submission(1)
    };
    let submitted = ledger.submit(epoch, &submission, rerun, NOW).await.expect("a run");
    assert_eq!(submitted.disposition, Disposition::Started);
    submitted.run
}

async fn increments_stand_beside_each_other(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let monday = increment(&*ledger, epoch, false).await;
    finish(&*ledger, epoch, &monday, Outcome::Published).await;
    let tuesday = increment(&*ledger, epoch, false).await;
    // While the next one is under way, and when it is published.
    let early = ask(&*ledger, epoch, &monday, 2).await.expect("a run").run;
    finish(&*ledger, epoch, &early, Outcome::Failed).await;
    finish(&*ledger, epoch, &tuesday, Outcome::Published).await;
    let late = ask(&*ledger, epoch, &monday, 2).await.expect("a run");
    assert_eq!(late.disposition, Disposition::Started);
    finish(&*ledger, epoch, &late.run, Outcome::Published).await;

    // Tuesday is run again, which says nothing about Monday, whose replay stands.
    let again = increment(&*ledger, epoch, true).await;
    for outcome in [None, Some(Outcome::Published)] {
        if let Some(outcome) = outcome {
            finish(&*ledger, epoch, &again, outcome).await;
        }
        assert_eq!(
            ask(&*ledger, epoch, &tuesday, 2).await,
            Err(Unreplayable::Replaced(tuesday.clone(), again.clone()))
        );
    }
    let next = ask(&*ledger, epoch, &late.run, 3).await.expect("a run");
    assert_eq!(next.disposition, Disposition::Started);
    assert_eq!(
        ask(&*ledger, epoch, &again, 2).await.expect("a run").disposition,
        Disposition::Started
    );
    // And it can't be once more, while that one replays what it rejected.
    let once_more = Submission {
        incremental: true,
        ..submission(1)
    };
    let refused = ledger.submit(epoch, &once_more, true, NOW);
    assert!(matches!(
        refused.await,
        Err(Error::Unreplayable(Unreplayable::BuiltOn(run, _))) if run == again
    ));
}

async fn a_ledger_of_an_earlier_release_knows_what_was_run_again(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let first = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &first, Outcome::Published).await;
    let again = ledger
        .submit(epoch, &submission(1), true, NOW)
        .await
        .expect("a run")
        .run;
    finish(&*ledger, epoch, &again, Outcome::Published).await;
    drop(ledger);
    let (runs, migrations) = (place.table("runs"), place.table("_sqlx_migrations"));
    let (replaced, unpruned) = (place.table("runs_by_replaced"), place.table("runs_unpruned"));
    place
        .execute(format!(
            "DROP INDEX {replaced}; DROP INDEX {unpruned}; ALTER TABLE {runs} DROP COLUMN replaces;
             ALTER TABLE {runs} DROP COLUMN emptied; DELETE FROM {migrations} WHERE version > 4"
        ))
        .await;
    let ledger = place.open().await;
    assert_eq!(
        ask(&*ledger, epoch, &first, 2).await,
        Err(Unreplayable::Replaced(first.clone(), again.clone()))
    );
    let due = ledger.unpruned(NOW.plus(1_000), None, 10).await.expect("runs");
    assert_eq!(due.len(), 2, "{due:?}");
}
