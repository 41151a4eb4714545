//! Staging, fences and markers: what a chunk can rely on.

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, Epoch};
use haulage_core::words::counted;
use haulage_node::sink::{Expected, LoadContext};
use haulage_plan::definition::Mode;

use super::later::asked;
use super::load::{CHUNK, batch, load, marker};
use super::world::World;

crate::on_all!(
    prepare_twice_and_begin_again,
    a_stale_attempt_is_fenced,
    a_segment_commits_once,
    a_writer_that_is_dropped_leaves_nothing,
    verify_counts,
    what_comes_after_verify_is_fenced,
    late_work_after_discard_is_fenced,
    an_older_epoch_is_fenced,
    a_chunk_of_an_older_epoch_is_fenced_whatever_its_attempt,
    an_earlier_attempt_of_a_step_is_fenced,
    an_empty_load_publishes_an_empty_table,
);

crate::on_files!(
    prepare_twice_and_begin_again,
    a_stale_attempt_is_fenced,
    a_segment_commits_once,
    a_writer_that_is_dropped_leaves_nothing,
    verify_counts,
    what_comes_after_verify_is_fenced,
    late_work_after_discard_is_fenced,
    an_older_epoch_is_fenced,
    a_chunk_of_an_older_epoch_is_fenced_whatever_its_attempt,
    an_earlier_attempt_of_a_step_is_fenced,
    an_empty_load_publishes_an_empty_table,
);

const FIRST: Attempt = Attempt(1);
const SECOND: Attempt = Attempt(2);

async fn prepare_twice_and_begin_again(world: &World) {
    let load = load("r1", Mode::Replace, &["id"]);
    let first = world.destination.prepare(&load).await.expect("prepared");
    assert_eq!(world.destination.prepare(&load).await.expect("prepared again"), first);
    assert_eq!(world.destination.begin(&load, CHUNK, FIRST).await.expect("begun"), []);
    let committed = world
        .segment(&load, 0, FIRST, &[(1, Some("a"), 0.5)])
        .await
        .expect("staged");
    assert!(
        committed.fresh && committed.bytes > 0 && committed.marker.rows == 1,
        "{committed:?}"
    );
    // A restart within the attempt, and a later attempt, both find it.
    for attempt in [FIRST, SECOND] {
        let standing = world
            .destination
            .begin(&load, CHUNK, attempt)
            .await
            .expect("begun again");
        assert_eq!(standing, std::slice::from_ref(&committed.marker));
    }
    // Preparing again does not empty the area.
    world.destination.prepare(&load).await.expect("prepared");
    assert_eq!(
        world
            .destination
            .begin(&load, CHUNK, SECOND)
            .await
            .expect("begun")
            .len(),
        1
    );
}

async fn a_stale_attempt_is_fenced(world: &World) {
    let load = load("r1", Mode::Append, &[]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, FIRST).await.expect("begun");
    let mut paused = world.destination.segment(&load, CHUNK, FIRST).await.expect("a writer");
    paused.write(&batch(&load, &[(1, None, 0.5)])).await.expect("taken");
    world.destination.begin(&load, CHUNK, SECOND).await.expect("begun");
    let woken = paused
        .commit(marker(CHUNK, 0, FIRST))
        .await
        .expect_err("it woke up too late");
    assert_eq!(Failure::from(woken.clone()).class, Class::Fenced, "{woken}");
    let again = world
        .destination
        .begin(&load, CHUNK, FIRST)
        .await
        .expect_err("an earlier attempt");
    assert_eq!(again.class, Class::Fenced, "{again}");
    assert_eq!(world.destination.begin(&load, CHUNK, SECOND).await.expect("begun"), []);
}

async fn a_segment_commits_once(world: &World) {
    let load = load("r1", Mode::Append, &[]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, FIRST).await.expect("begun");
    let first = world
        .segment(&load, 0, FIRST, &[(1, None, 0.5), (2, None, 0.5)])
        .await
        .expect("staged");
    world.destination.begin(&load, CHUNK, SECOND).await.expect("begun");
    let second = world
        .segment(&load, 0, SECOND, &[(1, None, 0.5), (2, None, 0.5)])
        .await
        .expect("it stands already");
    assert!(!second.fresh);
    assert_eq!(second.marker, first.marker);
    let expected = Expected { rows: 2, segments: 1 };
    world.destination.verify(&load, expected).await.expect("two rows");
    world.destination.publish(&load, expected).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table"), ["1 ~ 0.5", "2 ~ 0.5"]);
}

async fn a_writer_that_is_dropped_leaves_nothing(world: &World) {
    let load = load("r1", Mode::Replace, &[]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, FIRST).await.expect("begun");
    let mut writer = world.destination.segment(&load, CHUNK, FIRST).await.expect("a writer");
    writer
        .write(&batch(&load, &[(7, Some("lost"), 0.5)]))
        .await
        .expect("taken");
    drop(writer);
    assert_eq!(world.destination.begin(&load, CHUNK, FIRST).await.expect("begun"), []);
    world
        .segment(&load, 0, FIRST, &[(1, Some("kept"), 0.5)])
        .await
        .expect("staged");
    let expected = Expected { rows: 1, segments: 1 };
    world.destination.verify(&load, expected).await.expect("one row");
    world.destination.publish(&load, expected).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table"), ["1 kept 0.5"]);
}

async fn verify_counts(world: &World) {
    for (n, (rows, segments)) in [(1, 2), (3, 2), (2, 1), (2, 3)].into_iter().enumerate() {
        let load = load(&format!("r{n}"), Mode::Replace, &[]);
        world
            .stage(&load, &[(1, None, 0.5), (2, None, 0.5)])
            .await
            .expect("staged");
        let failure = world
            .destination
            .verify(&load, Expected { rows, segments })
            .await
            .expect_err("another number");
        // Less than was staged can be staged again; more is somebody else's.
        let lost = rows > 2 || segments > 2;
        let class = if lost { Class::StagingLost } else { Class::Permanent };
        assert_eq!(failure.class, class, "{failure}");
        assert!(
            failure.message.contains(&format!(
                "reported {} in {}",
                counted(rows, "row"),
                counted(segments, "segment")
            )),
            "{failure}"
        );
        world.destination.discard(&load).await.expect("discarded");
    }
    assert_eq!(world.rows("things").await, None);
    assert!(world.left_over().await.is_empty());
}

async fn what_comes_after_verify_is_fenced(world: &World) {
    let load = load("r1", Mode::Replace, &["id"]);
    let expected = world
        .stage(&load, &[(1, None, 0.5), (2, None, 0.5)])
        .await
        .expect("staged");
    let failure = world
        .destination
        .publish(&load, expected)
        .await
        .expect_err("not verified");
    assert!(failure.message.contains("not verified"), "{failure}");
    world.destination.verify(&load, expected).await.expect("verified");
    world.destination.verify(&load, expected).await.expect("verified again");
    let late = world
        .destination
        .begin(&load, CHUNK, SECOND)
        .await
        .expect_err("it is sealed");
    assert_eq!(late.class, Class::Fenced, "{late}");
    let late = world
        .segment(&load, 2, FIRST, &[(3, None, 0.5)])
        .await
        .expect_err("it is sealed");
    assert_eq!(late.class, Class::Fenced, "{late}");
    world.destination.publish(&load, expected).await.expect("published");
}

async fn late_work_after_discard_is_fenced(world: &World) {
    let load = load("r1", Mode::Replace, &["id"]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, FIRST).await.expect("begun");
    let mut paused = world.destination.segment(&load, CHUNK, FIRST).await.expect("a writer");
    paused.write(&batch(&load, &[(1, None, 0.5)])).await.expect("taken");
    // The open segment must not hold it up.
    world.destination.discard(&load).await.expect("discarded");
    world.destination.discard(&load).await.expect("discarded again");
    assert!(paused.commit(marker(CHUNK, 0, FIRST)).await.is_err());
    for failure in [
        world.destination.prepare(&load).await.expect_err("discarded"),
        world
            .destination
            .begin(&load, CHUNK, SECOND)
            .await
            .expect_err("discarded"),
        world
            .segment(&load, 0, FIRST, &[(1, None, 0.5)])
            .await
            .expect_err("discarded"),
        world
            .destination
            .publish(&load, Expected { rows: 0, segments: 0 })
            .await
            .expect_err("discarded"),
    ] {
        assert_eq!(failure.class, Class::Fenced, "{failure}");
    }
    assert!(world.left_over().await.is_empty());
    // A run that was never prepared here is fenced by its discard, too.
    let never = super::load::load("r2", Mode::Replace, &["id"]);
    world.destination.discard(&never).await.expect("nothing to discard");
    assert_eq!(
        world.destination.prepare(&never).await.expect_err("discarded").class,
        Class::Fenced
    );
}

async fn an_older_epoch_is_fenced(world: &World) {
    let mut load = load("r1", Mode::Replace, &["id"]);
    load.epoch = Epoch(5);
    let expected = world.stage(&load, &[(1, None, 0.5)]).await.expect("staged");
    let mut older = load.clone();
    older.epoch = Epoch(4);
    for failure in [
        world
            .destination
            .verify(&older, expected)
            .await
            .expect_err("an older leader"),
        world.destination.revert(&older).await.expect_err("an older leader"),
        world.destination.discard(&older).await.expect_err("an older leader"),
    ] {
        assert_eq!(failure.class, Class::Fenced, "{failure}");
    }
    world.destination.verify(&load, expected).await.expect("the leader");
}

async fn a_chunk_of_an_older_epoch_is_fenced_whatever_its_attempt(world: &World) {
    let old = load("r1", Mode::Append, &[]);
    let new = LoadContext {
        epoch: Epoch(old.epoch.0 + 1),
        ..old.clone()
    };
    world.destination.prepare(&new).await.expect("prepared");
    world.destination.begin(&old, CHUNK, FIRST).await.expect("begun");
    // A later leader took it over; one and the same number is not enough to pass for what it began.
    let mut paused = world.destination.segment(&old, CHUNK, FIRST).await.expect("a writer");
    paused.write(&batch(&old, &[(1, None, 0.5)])).await.expect("taken");
    world.destination.begin(&new, CHUNK, FIRST).await.expect("begun");
    let woken = paused.commit(marker(CHUNK, 0, FIRST)).await;
    let woken = Failure::from(woken.expect_err("a later leader is here"));
    assert_eq!(woken.class, Class::Fenced, "{woken}");
    for attempt in [FIRST, SECOND] {
        let late = world.destination.begin(&old, CHUNK, attempt).await;
        let late = late.expect_err("a later leader is here");
        assert_eq!(late.class, Class::Fenced, "{late}");
    }
    let written = world.segment(&new, 0, FIRST, &[(2, None, 0.5)]).await;
    assert_eq!(written.expect("the leader's").marker.rows, 1);
}

async fn an_earlier_attempt_of_a_step_is_fenced(world: &World) {
    let late = load("r1", Mode::Merge, &["id"]);
    let now = LoadContext {
        attempt: SECOND,
        ..late.clone()
    };
    let expected = world.stage(&now, &[(1, None, 0.5)]).await.expect("staged");
    let destination = &world.destination;
    let fenced = |failure: Failure| assert_eq!(failure.class, Class::Fenced, "{failure}");
    fenced(destination.prepare(&late).await.expect_err("one began later"));
    destination.verify(&now, expected).await.expect("verified");
    fenced(destination.verify(&late, expected).await.expect_err("one began later"));
    // Each step counts for itself, and so does its undoing.
    destination.publish(&late, expected).await.expect("published");
    destination.publish(&now, expected).await.expect("published already");
    fenced(destination.publish(&late, expected).await.expect_err("one began later"));
    destination.recall(&asked(&now, 1)).await.expect("it can be");
    fenced(destination.recall(&asked(&late, 1)).await.expect_err("one began later"));
    destination.release(&asked(&now, 1)).await.expect("let go");
    fenced(
        destination
            .release(&asked(&late, 1))
            .await
            .expect_err("one began later"),
    );
    destination.cleanup(&now).await.expect("cleaned");
    fenced(destination.cleanup(&late).await.expect_err("one began later"));
    let other = load("r2", Mode::Merge, &["id"]);
    let again = LoadContext {
        attempt: SECOND,
        ..other.clone()
    };
    world.publish(&other, &[(1, None, 1.5)]).await.expect("published");
    destination.revert(&again).await.expect("undone");
    fenced(destination.revert(&other).await.expect_err("one began later"));
    destination.discard(&again).await.expect("discarded");
    fenced(destination.discard(&other).await.expect_err("one began later"));
}

async fn an_empty_load_publishes_an_empty_table(world: &World) {
    let load = load("r1", Mode::Replace, &["id"]);
    world.publish(&load, &[]).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table"), [""; 0]);
}
