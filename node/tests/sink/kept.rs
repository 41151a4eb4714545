//! A target is kept for a run that may still take back what it has published there: others wait, and nobody for ever.

use std::time::Duration;

use haulage_core::event::StepReport;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, Epoch};
use haulage_node::sink::{Expected, LoadContext};
use haulage_plan::definition::Mode;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::later::{all_of, asked, existing, kept, take_back, whole};
use super::load::TestRow;
use super::world::World;

crate::on_all!(
    what_is_recalled_is_kept_until_it_is_taken_back,
    what_is_let_go_is_kept_no_longer,
    a_run_keeps_its_targets_until_it_is_over,
    a_run_keeps_its_targets_until_it_takes_them_back,
    a_run_that_is_not_over_for_an_hour_keeps_nothing,
    a_revert_that_is_abandoned_keeps_nothing,
    appends_pass_each_other,
    what_is_recalled_is_not_cleaned_away,
    what_comes_late_of_an_earlier_revert_has_no_effect,
    an_older_leader_recalls_releases_and_cleans_nothing,
    who_waits_goes_before_an_earlier_attempt,
    one_table_of_sqlite_is_kept_under_all_its_names,
);

crate::on_files!(
    what_is_recalled_is_kept_until_it_is_taken_back,
    what_is_let_go_is_kept_no_longer,
    a_run_keeps_its_targets_until_it_is_over,
    a_run_keeps_its_targets_until_it_takes_them_back,
    a_run_that_is_not_over_for_an_hour_keeps_nothing,
    a_revert_that_is_abandoned_keeps_nothing,
    appends_pass_each_other,
    what_is_recalled_is_not_cleaned_away,
    what_comes_late_of_an_earlier_revert_has_no_effect,
    an_older_leader_recalls_releases_and_cleans_nothing,
    who_waits_goes_before_an_earlier_attempt,
);

const FIRST: &[TestRow] = &[(2, Some("two"), 2.5), (3, None, 3.5)];
const SECOND: &[TestRow] = &[(2, Some("later"), 9.5), (5, None, 5.5)];

/// Longer than a publish takes that waits for nobody.
const A_WHILE: Duration = Duration::from_secs(4);

struct Waiting {
    load: LoadContext,
    publish: JoinHandle<Result<StepReport, Failure>>,
}

impl Waiting {
    /// Stages and verifies a load, and begins to publish it: it has to wait.
    async fn start(world: &World, load: LoadContext, rows: &[TestRow]) -> Self {
        let before = all_of(world).await;
        let expected = sealed(world, &load, rows).await;
        let destination = world.destination.clone();
        let publishes = load.clone();
        let mut publish = tokio::spawn(async move { destination.publish(&publishes, expected).await });
        let early = timeout(A_WHILE, &mut publish).await;
        assert!(early.is_err(), "it doesn't wait: {early:?}");
        assert_eq!(all_of(world).await, before);
        Self { load, publish }
    }

    async fn ends(self) {
        let published = timeout(A_WHILE, self.publish).await;
        let published = published.unwrap_or_else(|_| panic!("{} still waits", self.load.run));
        published.expect("no panic").expect("it publishes");
    }
}

async fn sealed(world: &World, load: &LoadContext, rows: &[TestRow]) -> Expected {
    let expected = world.stage(load, rows).await.expect("staged");
    world.destination.verify(load, expected).await.expect("verified");
    expected
}

async fn at_once(world: &World, load: &LoadContext, rows: &[TestRow]) {
    let expected = sealed(world, load, rows).await;
    let published = timeout(A_WHILE, world.destination.publish(load, expected)).await;
    published.expect("nobody is waited for").expect("published");
}

async fn what_is_recalled_is_kept_until_it_is_taken_back(world: &World) {
    existing(world).await;
    for (n, (theirs, ours)) in [
        (Mode::Merge, Mode::Merge),
        (Mode::Replace, Mode::Append),
        (Mode::Append, Mode::Replace),
    ]
    .into_iter()
    .enumerate()
    {
        let start = all_of(world).await;
        let first = kept(&format!("a{n}"), theirs, &["id"], 5);
        let rows = if theirs == Mode::Append { &SECOND[1..] } else { FIRST };
        whole(world, &first, rows).await;
        world.destination.recall(&asked(&first, 1)).await.expect("it can be");
        let second = kept(&format!("b{n}"), ours, &["id"], 5);
        let rows = if ours == Mode::Append { &SECOND[1..] } else { SECOND };
        let waiting = Waiting::start(world, second.clone(), rows).await;
        take_back(world, &first).await;
        waiting.ends().await;
        take_back(world, &second).await;
        assert_eq!(
            all_of(world).await,
            start,
            "nothing of {theirs:?} is in what {ours:?} has kept"
        );
    }
}

async fn what_is_let_go_is_kept_no_longer(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    whole(world, &first, FIRST).await;
    world.destination.recall(&asked(&first, 1)).await.expect("it can be");
    let waiting = Waiting::start(world, kept("b", Mode::Merge, &["id"], 5), SECOND).await;
    for _ in 0..2 {
        world.destination.release(&asked(&first, 1)).await.expect("let go");
    }
    waiting.ends().await;
    let refused = world
        .destination
        .recall(&asked(&first, 2))
        .await
        .expect_err("b stands on it");
    assert!(refused.message.contains("run b has published"), "{refused}");
    let nobody = kept("nobody", Mode::Merge, &["id"], 5);
    world
        .destination
        .release(&asked(&nobody, 1))
        .await
        .expect("nothing to let go");
}

async fn a_run_keeps_its_targets_until_it_is_over(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Replace, &["id"], 5);
    world.publish(&first, FIRST).await.expect("published");
    let waiting = Waiting::start(world, kept("b", Mode::Merge, &["id"], 5), SECOND).await;
    // It isn't in its own way.
    let again = Expected { rows: 2, segments: 2 };
    world.destination.publish(&first, again).await.expect("once more");
    world.destination.cleanup(&first).await.expect("its run is over");
    waiting.ends().await;
}

async fn a_run_keeps_its_targets_until_it_takes_them_back(world: &World) {
    existing(world).await;
    let start = all_of(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    world.publish(&first, FIRST).await.expect("published");
    let second = kept("b", Mode::Replace, &["id"], 5);
    let waiting = Waiting::start(world, second.clone(), SECOND).await;
    world.destination.revert(&first).await.expect("reverted");
    waiting.ends().await;
    take_back(world, &second).await;
    assert_eq!(all_of(world).await, start);
}

async fn a_run_that_is_not_over_for_an_hour_keeps_nothing(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    world.publish(&first, FIRST).await.expect("published");
    if world.is_files() {
        super::files::an_hour_later(&world.lake(), "things");
        return at_once(world, &kept("b", Mode::Merge, &["id"], 5), SECOND).await;
    }
    world
        .run(if world.is_postgres() {
            "UPDATE haulage.loads SET published_at = published_at - interval '61 minutes'"
        } else {
            "UPDATE _haulage_loads SET published_at = datetime(published_at, '-61 minutes')"
        })
        .await;
    at_once(world, &kept("b", Mode::Merge, &["id"], 5), SECOND).await;
}

async fn a_revert_that_is_abandoned_keeps_nothing(world: &World) {
    existing(world).await;
    for (run, later) in [("a", "b"), ("c", "d")] {
        let load = kept(run, Mode::Merge, &["id"], 5);
        world.publish(&load, FIRST).await.expect("published");
        if run == "a" {
            world.destination.recall(&asked(&load, 1)).await.expect("it can be");
        }
        // The publish is left as it is; the staging area goes.
        world.destination.discard(&load).await.expect("discarded");
        let later = kept(later, Mode::Merge, &["id"], 5);
        at_once(world, &later, SECOND).await;
        world.destination.cleanup(&later).await.expect("its run is over");
    }
}

async fn appends_pass_each_other(world: &World) {
    existing(world).await;
    let start = all_of(world).await;
    let first = kept("a", Mode::Append, &[], 5);
    world.publish(&first, FIRST.split_at(1).1).await.expect("published");
    world.destination.recall(&asked(&first, 1)).await.expect("it can be");
    let second = kept("b", Mode::Append, &[], 5);
    at_once(world, &second, &SECOND[1..]).await;
    // But what replaces it on a rerun, and what merges into it, has to wait.
    let again = LoadContext {
        replaces: Some("a".into()),
        ..kept("a-2", Mode::Append, &[], 5)
    };
    let waiting = Waiting::start(world, again.clone(), FIRST.split_at(1).1).await;
    take_back(world, &first).await;
    waiting.ends().await;
    take_back(world, &again).await;
    take_back(world, &second).await;
    assert_eq!(all_of(world).await, start);
}

async fn what_is_recalled_is_not_cleaned_away(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Append, &[], 1);
    whole(world, &first, &FIRST[1..]).await;
    let before = all_of(world).await;
    let again = LoadContext {
        replaces: Some("a".into()),
        ..kept("a-2", Mode::Append, &[], 1)
    };
    whole(world, &again, &SECOND[1..]).await;
    world.destination.recall(&asked(&again, 1)).await.expect("it can be");
    let last = kept("b", Mode::Append, &[], 0);
    whole(world, &last, &[(7, None, 7.5)]).await;
    take_back(world, &again).await;
    take_back(world, &last).await;
    assert_eq!(all_of(world).await, before);
}

async fn an_older_leader_recalls_releases_and_cleans_nothing(world: &World) {
    existing(world).await;
    let old = kept("a", Mode::Merge, &["id"], 5);
    let new = LoadContext {
        epoch: Epoch(old.epoch.0 + 1),
        ..old.clone()
    };
    world.publish(&new, FIRST).await.expect("published");
    world.destination.recall(&asked(&new, 1)).await.expect("it can be");
    for stale in [
        world.destination.recall(&asked(&old, 1)).await,
        world.destination.release(&asked(&old, 1)).await,
        world.destination.cleanup(&old).await,
    ] {
        assert_eq!(stale.expect_err("a newer leader is here").class, Class::Fenced);
    }
    let waiting = Waiting::start(world, kept("b", Mode::Merge, &["id"], 5), SECOND).await;
    take_back(world, &new).await;
    waiting.ends().await;
}

/// SQLite doesn't tell `things` from `Things`; PostgreSQL does.
async fn one_table_of_sqlite_is_kept_under_all_its_names(world: &World) {
    if world.is_postgres() {
        return;
    }
    existing(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    whole(world, &first, FIRST).await;
    world.destination.recall(&asked(&first, 1)).await.expect("it can be");
    let second = LoadContext {
        table: "THINGS".into(),
        ..kept("b", Mode::Merge, &["id"], 5)
    };
    let waiting = Waiting::start(world, second.clone(), SECOND).await;
    take_back(world, &first).await;
    waiting.ends().await;
    world.destination.cleanup(&second).await.expect("its run is over");
    // What was published under one name goes back before what was under the other.
    let third = kept("c", Mode::Merge, &["id"], 5);
    whole(world, &third, &[(7, None, 7.5)]).await;
    let refused = world.destination.recall(&asked(&second, 1)).await;
    assert_eq!(
        refused.expect_err("another has published since").class,
        Class::Permanent
    );
}

/// A node that stood still in the middle of waiting must not publish when it wakes up, while another waits in its place.
async fn who_waits_goes_before_an_earlier_attempt(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    world.publish(&first, FIRST).await.expect("published");
    let second = LoadContext {
        attempt: Attempt(2),
        ..kept("b", Mode::Merge, &["id"], 5)
    };
    let waiting = Waiting::start(world, second.clone(), SECOND).await;
    let earlier = LoadContext {
        attempt: Attempt(1),
        ..second.clone()
    };
    let expected = Expected {
        rows: SECOND.len() as u64,
        segments: 2,
    };
    let woken = world.destination.publish(&earlier, expected).await;
    let woken = woken.expect_err("a later attempt waits");
    assert_eq!(woken.class, Class::Fenced, "{woken}");
    world.destination.cleanup(&first).await.expect("its run is over");
    waiting.ends().await;
}

async fn what_comes_late_of_an_earlier_revert_has_no_effect(world: &World) {
    existing(world).await;
    let first = kept("a", Mode::Merge, &["id"], 5);
    whole(world, &first, FIRST).await;
    let recall = async |nth| world.destination.recall(&asked(&first, nth)).await;
    recall(1).await.expect("it can be");
    world.destination.release(&asked(&first, 1)).await.expect("let go");
    let late = recall(1).await.expect_err("that revert is over");
    assert_eq!(late.class, Class::Fenced, "{late}");
    let second = kept("b", Mode::Merge, &["id"], 5);
    at_once(world, &second, SECOND).await;
    take_back(world, &second).await;

    recall(2).await.expect("it can be");
    world
        .destination
        .release(&asked(&first, 1))
        .await
        .expect("nothing of that time is kept");
    let waiting = Waiting::start(world, kept("c", Mode::Merge, &["id"], 5), SECOND).await;
    world.destination.release(&asked(&first, 2)).await.expect("let go");
    waiting.ends().await;
}
