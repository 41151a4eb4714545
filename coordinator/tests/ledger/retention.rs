//! Which runs may still have something in the checkpoint store, by their age. See `Ledger::unpruned`.

use haulage_coordinator::ledger::{Error, Ledger};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, Millis, RunId};

use crate::support::{NOW, Place, append, claim, finish, log, start};

crate::over_both!(runs_are_due_by_their_age_and_once, a_run_that_is_open_again_is_not_due);

async fn due(
    ledger: &dyn Ledger,
    until: Millis,
    after: Option<(Millis, u64)>,
    limit: u32,
) -> Vec<(RunId, (Millis, u64))> {
    let due = ledger.unpruned(until, after, limit).await.expect("runs");
    due.into_iter().map(|due| (due.run, due.place)).collect()
}

async fn at_rest(ledger: &dyn Ledger, epoch: Epoch, n: u32, at: Millis) -> RunId {
    let run = start(ledger, epoch, n).await;
    let last = log(ledger, &run).await.len() as u64;
    let end = Event::Finished {
        outcome: Outcome::Published,
        at,
    };
    ledger
        .append(epoch, &[append(&run, last, vec![end])])
        .await
        .expect("an end");
    run
}

async fn runs_are_due_by_their_age_and_once(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    start(&*ledger, epoch, 1).await;
    let late = at_rest(&*ledger, epoch, 2, NOW.plus(50)).await;
    let mut early = Vec::new();
    for n in 3..6 {
        early.push(at_rest(&*ledger, epoch, n, NOW.plus(10)).await);
    }
    assert_eq!(due(&*other, NOW.plus(9), None, 10).await, []);
    let first = due(&*other, NOW.plus(10), None, 2).await;
    assert_eq!(
        first.iter().map(|(run, _)| run).collect::<Vec<_>>(),
        [&early[0], &early[1]]
    );
    let rest = due(&*other, NOW.plus(60), first.last().map(|(_, place)| *place), 10).await;
    assert_eq!(rest.iter().map(|(run, _)| run).collect::<Vec<_>>(), [&early[2], &late]);

    // What is done with is not looked at again; who no longer leads has no say.
    ledger.emptied(epoch, &early[1]).await.expect("noted");
    ledger.emptied(epoch, &early[1]).await.expect("and again");
    let next = claim(&*other, "next").await.expect("an epoch");
    assert!(matches!(
        ledger.emptied(epoch, &early[0]).await,
        Err(Error::Deposed { .. })
    ));
    let left: Vec<_> = due(&*other, NOW.plus(10), None, 10)
        .await
        .into_iter()
        .map(|(run, _)| run)
        .collect();
    assert_eq!(left, [early[0].clone(), early[2].clone()]);
    other.emptied(next, &early[0]).await.expect("noted");
    assert_eq!(due(&*other, NOW.plus(10), None, 10).await.len(), 1);
}

async fn a_run_that_is_open_again_is_not_due(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = at_rest(&*ledger, epoch, 1, NOW).await;
    let revert = Event::RevertRequested {
        reason: String::new(),
        by: String::new(),
        at: NOW,
    };
    ledger
        .append(epoch, &[append(&run, 2, vec![revert])])
        .await
        .expect("reverting");
    assert_eq!(due(&*ledger, NOW.plus(1_000), None, 10).await, []);
    ledger.emptied(epoch, &run).await.expect("nothing to note");
    finish(&*ledger, epoch, &run, Outcome::Reverted).await;
    assert_eq!(due(&*ledger, NOW.plus(1_000), None, 10).await.len(), 1);
}
