//! Submitting twice changes nothing; running again is a decision. See `Ledger::submit`.

use haulage_coordinator::ledger::{Disposition, Ledger, Submitted};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, RunId, Seq};

use crate::support::{NOW, Place, finish, log, start, submission};

crate::over_both!(
    the_same_submission_attaches,
    one_run_for_callers_at_once,
    a_published_one_is_not_run_again,
    after_a_failure_the_next_number_starts,
    a_rerun_replaces_what_is_published,
    two_keys_that_share_ten_digits_get_two_runs,
);

async fn submit(ledger: &dyn Ledger, epoch: Epoch, rerun: bool) -> Submitted {
    ledger.submit(epoch, &submission(1), rerun, NOW).await.expect("a run")
}

async fn replaced_by(ledger: &dyn Ledger, run: &RunId) -> Option<RunId> {
    match log(ledger, run).await.into_iter().next() {
        Some(Event::Submitted {
            run: named,
            submission: kept,
            replaces,
            at,
        }) => {
            assert_eq!((&named, *kept, at), (run, submission(1), NOW));
            replaces
        }
        other => panic!("{other:?}"),
    }
}

async fn the_same_submission_attaches(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let mark = ledger.mark().await.expect("a mark");
    let run = start(&*ledger, epoch, 1).await;
    assert_eq!(run, submission(1).run_id(&mark, 1));
    assert_eq!(replaced_by(&*other, &run).await, None);
    for rerun in [false, true] {
        let again = submit(&*other, epoch, rerun).await;
        assert_eq!(
            again,
            Submitted {
                run: run.clone(),
                disposition: Disposition::Attached
            }
        );
    }
    assert_ne!(start(&*ledger, epoch, 2).await, run);
    assert_eq!(ledger.list(None, 10).await.expect("a list").len(), 2);
}

async fn one_run_for_callers_at_once(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let mark = ledger.mark().await.expect("a mark");
    for n in 0..5 {
        let mut callers = Vec::new();
        for caller in 0..12 {
            let ledger = if caller % 2 == 0 { ledger.clone() } else { other.clone() };
            callers.push(tokio::spawn(async move {
                ledger.submit(epoch, &submission(n), false, NOW).await
            }));
        }
        let mut started = 0;
        for caller in callers {
            let submitted = caller.await.expect("a caller that ends").expect("a run");
            assert_eq!(submitted.run, submission(n).run_id(&mark, 1));
            started += u32::from(submitted.disposition == Disposition::Started);
        }
        assert_eq!(started, 1);
        assert_eq!(log(&*ledger, &submission(n).run_id(&mark, 1)).await.len(), 1);
    }
}

async fn a_published_one_is_not_run_again(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &run, Outcome::Published).await;
    let again = submit(&*ledger, epoch, false).await;
    assert_eq!(
        again,
        Submitted {
            run,
            disposition: Disposition::AlreadyPublished
        }
    );
    assert_eq!(ledger.open_runs().await.expect("open runs"), []);
}

async fn after_a_failure_the_next_number_starts(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let mark = ledger.mark().await.expect("a mark");
    for (number, outcome) in [(1, Outcome::Failed), (2, Outcome::Cancelled), (3, Outcome::Published)] {
        let submitted = submit(&*ledger, epoch, number == 2).await;
        assert_eq!(submitted.disposition, Disposition::Started);
        assert_eq!(submitted.run, submission(1).run_id(&mark, number));
        assert_eq!(replaced_by(&*ledger, &submitted.run).await, None);
        finish(&*ledger, epoch, &submitted.run, outcome).await;
    }
}

async fn a_rerun_replaces_what_is_published(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let mark = ledger.mark().await.expect("a mark");
    let first = start(&*ledger, epoch, 1).await;
    finish(&*ledger, epoch, &first, Outcome::Published).await;

    let second = submit(&*ledger, epoch, true).await;
    assert_eq!(
        second,
        Submitted {
            run: submission(1).run_id(&mark, 2),
            disposition: Disposition::Started
        }
    );
    assert_eq!(replaced_by(&*ledger, &second.run).await, Some(first.clone()));
    finish(&*ledger, epoch, &second.run, Outcome::Failed).await;

    // The rerun was rolled back, so the first stands: to load it once more would double its rows.
    let asked = submit(&*ledger, epoch, false).await;
    assert_eq!(
        asked,
        Submitted {
            run: first.clone(),
            disposition: Disposition::AlreadyPublished
        }
    );
    let third = submit(&*ledger, epoch, true).await;
    assert_eq!(third.run, submission(1).run_id(&mark, 3));
    assert_eq!(replaced_by(&*ledger, &third.run).await, Some(first));
    finish(&*ledger, epoch, &third.run, Outcome::Published).await;

    let fourth = submit(&*ledger, epoch, true).await;
    assert_eq!(replaced_by(&*ledger, &fourth.run).await, Some(third.run));
}

/// A run's id shows ten digits of the key. These two share them, and were searched for.
async fn two_keys_that_share_ten_digits_get_two_runs(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let mark = ledger.mark().await.expect("a mark");
    let (one, two) = (submission(1_077_000), submission(1_237_535));
    assert_ne!(one.key(), two.key());
    assert_eq!(one.run_id(&mark, 1), two.run_id(&mark, 1));
    for (given, number) in [(&one, 1), (&two, 2)] {
        let submitted = ledger.submit(epoch, given, false, NOW).await.expect("a run");
        assert_eq!(
            submitted,
            Submitted {
                run: one.run_id(&mark, number),
                disposition: Disposition::Started
            }
        );
        let again = ledger.submit(epoch, given, false, NOW).await.expect("a run");
        assert_eq!(
            again,
            Submitted {
                run: one.run_id(&mark, number),
                disposition: Disposition::Attached
            }
        );
    }
    finish(&*ledger, epoch, &one.run_id(&mark, 1), Outcome::Failed).await;
    let third = ledger.submit(epoch, &one, false, NOW).await.expect("a run");
    assert_eq!(third.run, one.run_id(&mark, 3));
    assert_eq!(ledger.read(&third.run, Seq(0)).await.expect("a readable log").len(), 1);
}
