//! A published run's log goes on with one event only, and is open again until it ends once more.

use haulage_coordinator::ledger::{Appended, Disposition};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::Seq;

use super::support::{NOW, Place, append, event, finish, start, submission};
use crate::over_both;

over_both!(
    only_a_published_log_goes_on_and_only_with_a_request,
    a_reverted_submission_runs_anew,
);

fn requested() -> Event {
    Event::RevertRequested {
        reason: "the wrong month".into(),
        by: "ops".into(),
        at: NOW,
    }
}

fn finished(outcome: Outcome) -> Event {
    Event::Finished { outcome, at: NOW }
}

async fn only_a_published_log_goes_on_and_only_with_a_request(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    for (n, outcome) in [
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::Reverted,
        Outcome::Published,
    ]
    .into_iter()
    .enumerate()
    {
        let run = start(&*ledger, epoch, n as u32).await;
        let appended = async |expected: u64, events: Vec<Event>| {
            let answers = ledger.append(epoch, &[append(&run, expected, events)]).await;
            answers.expect("an answer")[0]
        };
        assert_eq!(appended(1, vec![finished(outcome)]).await, Appended::At(Seq(2)));
        assert_eq!(appended(2, vec![event(1)]).await, Appended::Conflict);
        assert_eq!(appended(2, vec![event(1), requested()]).await, Appended::Conflict);
        let answer = appended(2, vec![requested()]).await;
        if outcome != Outcome::Published {
            assert_eq!(answer, Appended::Conflict, "{outcome:?}");
            continue;
        }
        assert_eq!(answer, Appended::At(Seq(3)));
        // The answer was lost.
        assert_eq!(appended(2, vec![requested()]).await, Appended::At(Seq(3)));
        assert_eq!(ledger.open_runs().await.expect("runs"), std::slice::from_ref(&run));
        assert_eq!(
            appended(3, vec![event(2), finished(Outcome::Reverted)]).await,
            Appended::At(Seq(5))
        );
        assert_eq!(ledger.open_runs().await.expect("runs"), []);
        assert_eq!(appended(5, vec![requested()]).await, Appended::Conflict);
        let listed = ledger.list(None, 1).await.expect("runs");
        assert_eq!(listed[0].finished, Some((NOW, Outcome::Reverted)));
    }
}

async fn a_reverted_submission_runs_anew(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let submission = submission(7);
    let submit = async |rerun| ledger.submit(epoch, &submission, rerun, NOW).await.expect("an answer");
    let first = submit(false).await;
    finish(&*ledger, epoch, &first.run, Outcome::Published).await;
    let second = submit(true).await;
    finish(&*ledger, epoch, &second.run, Outcome::Published).await;

    // While it is being reverted it answers for the submission; then the run that it had replaced does.
    let run = &second.run;
    ledger
        .append(epoch, &[append(run, 2, vec![requested()])])
        .await
        .expect("an answer");
    let attached = submit(true).await;
    assert_eq!((attached.disposition, &attached.run), (Disposition::Attached, run));
    let reverted = vec![finished(Outcome::Reverted)];
    ledger
        .append(epoch, &[append(run, 3, reverted.clone())])
        .await
        .expect("an answer");
    let known = submit(false).await;
    assert_eq!(
        (known.disposition, &known.run),
        (Disposition::AlreadyPublished, &first.run)
    );

    let run = &first.run;
    ledger
        .append(epoch, &[append(run, 2, vec![requested()])])
        .await
        .expect("an answer");
    ledger
        .append(epoch, &[append(run, 3, reverted)])
        .await
        .expect("an answer");
    let anew = submit(false).await;
    assert_eq!(anew.disposition, Disposition::Started);
    let log = ledger.read(&anew.run, Seq(0)).await.expect("a log");
    assert!(matches!(&log[0].1, Event::Submitted { replaces: None, .. }), "{log:?}");
}
