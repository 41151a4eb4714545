//! Campaigns, renewals and resignations: who may lead, and for how long. Where there are no leases (SQLite) every
//! campaign is won; what else is promised holds for both databases.

use std::time::Duration;

use haulage_coordinator::ledger::{Appended, Campaign, Error, Led};
use haulage_core::ids::{Epoch, Seq};
use haulage_test_support::until;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::support::{NOW, Place, append, campaign, claim, event, log, start};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// Runs out while a test waits for it.
const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(30);

crate::over_both!(
    a_lease_keeps_others_away_until_it_ends,
    nobody_leads_a_new_ledger,
    of_many_candidates_one_wins,
    a_lease_that_has_run_out_is_renewed_unless_somebody_led_since,
    a_leader_of_another_epoch_resigns_nobody,
);

async fn a_lease_keeps_others_away_until_it_ends(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    let first = won(campaign(&*ledger, "a", SHORT).await);
    ledger.renew(first, LONG).await.expect("renewed");
    let led = other.leader().await.expect("an answer").expect("a leader");
    assert_eq!((led.epoch, led.name.as_str(), led.since), (first, "a", NOW));

    let second = campaign(&*other, "b", LONG).await.expect("an answer");
    if !ledger.is_leased() {
        assert_eq!(second, Campaign::Won(Epoch(first.0 + 1)));
        return;
    }
    let Campaign::Lost(Led {
        epoch,
        name,
        address,
        left: Some(left),
        ..
    }) = second
    else {
        panic!("{second:?}");
    };
    assert_eq!(
        (epoch, name.as_str(), address.as_str()),
        (first, "a", "http://a:7400"),
        "the refusal says who leads, and where"
    );
    assert!(left > LONG / 2 && left <= LONG, "{left:?}");
    assert_eq!(
        other.epoch().await.expect("an epoch"),
        first,
        "a refusal changes nothing"
    );

    ledger.resign(first).await.expect("resigned");
    assert_eq!(other.leader().await.expect("an answer"), None);
    let second = won(campaign(&*other, "b", SHORT).await);
    assert!(second > first);
    // Nobody renews this one: it runs out by the database's clock.
    let third = until("the lease to run out", PATIENCE, async || {
        Ok(match campaign(&*ledger, "a", LONG).await? {
            Campaign::Won(epoch) => Some(epoch),
            Campaign::Lost(_) => None,
        })
    })
    .await
    .expect("a third term");
    assert_eq!(third, Epoch(second.0 + 1));
}

async fn nobody_leads_a_new_ledger(place: Place) {
    let ledger = place.open().await;
    assert_eq!(ledger.leader().await.expect("an answer"), None);
}

async fn of_many_candidates_one_wins(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    let mut campaigns = Vec::new();
    for n in 0..20 {
        let ledger = if n % 2 == 0 { ledger.clone() } else { other.clone() };
        campaigns.push(tokio::spawn(async move {
            campaign(&*ledger, &format!("candidate {n}"), LONG).await
        }));
    }
    let mut winners = Vec::new();
    for campaign in campaigns {
        if let Campaign::Won(epoch) = campaign.await.expect("a campaign that ends").expect("an answer") {
            winners.push(epoch);
        }
    }
    winners.sort_unstable();
    let expected = if ledger.is_leased() { 1 } else { 20 };
    assert_eq!(winners, (1..=expected).map(Epoch).collect::<Vec<_>>());
    assert_eq!(ledger.epoch().await.expect("an epoch"), Epoch(expected));
}

async fn a_lease_that_has_run_out_is_renewed_unless_somebody_led_since(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    let first = won(campaign(&*ledger, "a", Duration::ZERO).await);
    let run = start(&*ledger, first, 1).await;
    ledger.renew(first, LONG).await.expect("nobody has led since");
    ledger.renew(first, Duration::ZERO).await.expect("renewed");

    let second = claim(&*other, "b").await.expect("an epoch");
    let refused = ledger.renew(first, LONG).await;
    assert!(
        matches!(refused, Err(Error::Deposed { theirs, ours }) if theirs == second && ours == first),
        "{refused:?}"
    );
    let appended = ledger.append(first, &[append(&run, 1, vec![event(1)])]).await;
    assert!(matches!(appended, Err(Error::Deposed { .. })), "{appended:?}");
    let appended = other.append(second, &[append(&run, 1, vec![event(1)])]).await;
    assert_eq!(appended.expect("an answer"), [Appended::At(Seq(2))]);
    assert_eq!(log(&*other, &run).await.len(), 2);
}

async fn a_leader_of_another_epoch_resigns_nobody(place: Place) {
    let (ledger, other) = (place.open().await, place.open().await);
    let first = claim(&*ledger, "a").await.expect("an epoch");
    let second = won(campaign(&*other, "b", LONG).await);
    ledger.resign(first).await.expect("without effect");
    let led = ledger.leader().await.expect("an answer").expect("a leader");
    assert_eq!(led.epoch, second);
}

/// A renewal waits for no append, and no append for a renewal: only a campaign waits, for appends that are going on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_waits_for_appends_and_a_renewal_does_not() {
    let place = Place::postgres().await;
    let ledger = place.open().await;
    let epoch = claim(&*ledger, "a").await.expect("an epoch");
    let mut appending = PgConnection::connect(&place.url()).await.expect("a connection");
    let lock = "BEGIN; SELECT epoch FROM haulage_ledger.leader FOR KEY SHARE";
    appending.execute(lock).await.expect("an append that goes on");
    ledger.renew(epoch, Duration::ZERO).await.expect("it doesn't wait");

    let standby = place.open().await;
    let mut claiming = tokio::spawn(async move { claim(&*standby, "b").await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut claiming).await;
    assert!(early.is_err(), "the append has not ended: {early:?}");
    appending.execute("COMMIT").await.expect("the end of the append");
    let second = claiming.await.expect("a campaign that ends").expect("an epoch");
    assert!(second > epoch);
}

fn won(campaign: Result<Campaign, Error>) -> Epoch {
    match campaign.expect("an answer") {
        Campaign::Won(epoch) => epoch,
        Campaign::Lost(led) => panic!("lost to {led:?}"),
    }
}
