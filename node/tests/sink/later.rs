//! What comes later: a revert on purpose, long after the publish, and staging that is opened again because it was lost.

use haulage_core::failure::Class;
use haulage_core::ids::Attempt;
use haulage_node::sink::{Expected, LoadContext};
use haulage_plan::definition::Mode;

use super::load::{CHUNK, TestRow, load};
use super::world::World;

crate::on_all!(
    every_mode_goes_back_after_the_run_is_over,
    a_table_that_the_run_made_goes,
    only_the_newest_runs_are_kept,
    later_runs_go_first,
    appended_rows_go_from_among_later_ones,
    appended_rows_stay_under_what_has_built_on_them,
    a_rerun_goes_before_what_it_replaced,
    records_of_an_earlier_release_are_brought_up_to_date,
    a_later_round_opens_what_was_verified,
    an_area_that_lost_its_rows_is_made_anew,
);

crate::on_files!(
    every_mode_goes_back_after_the_run_is_over,
    a_table_that_the_run_made_goes,
    only_the_newest_runs_are_kept,
    later_runs_go_first,
    appended_rows_go_from_among_later_ones,
    appended_rows_stay_under_what_has_built_on_them,
    a_rerun_goes_before_what_it_replaced,
    a_later_round_opens_what_was_verified,
    an_area_that_lost_its_rows_is_made_anew,
);

const ROWS: &[TestRow] = &[(2, Some("two"), 2.5), (3, None, 3.5), (4, Some("it's"), 4.5)];

/// A table with two rows, a key, an index, and a column that the load doesn't have.
pub(super) async fn existing(world: &World) {
    if world.is_files() {
        let base = kept("base", Mode::Replace, &["id"], 0);
        return whole(world, &base, &[(1, Some("one"), 1.5), (2, Some("old"), 0.5)]).await;
    }
    world
        .run(
            "CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision, note text DEFAULT 'n',
                 _haulage_run text);
             CREATE INDEX by_name ON things (name);
             INSERT INTO things (id, name, amount, note) VALUES (1, 'one', 1.5, 'x'), (2, 'old', 0.5, 'y');",
        )
        .await;
}

/// Every row with every column, the columns, and the indexes; nothing if there is no table.
pub(super) async fn all_of(world: &World) -> Vec<String> {
    if world.is_files() {
        return super::files::all_of(&world.lake(), "things");
    }
    let queries: [&str; 3] = if world.is_postgres() {
        [
            "SELECT things::text FROM things",
            "SELECT format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, attnum)
             FROM pg_attribute WHERE attrelid = to_regclass('things') AND attnum > 0",
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'things' AND schemaname = 'public'",
        ]
    } else {
        [
            "SELECT quote(id) || quote(name) || quote(amount) || quote(note) || quote(_haulage_run) FROM things",
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'things'",
            "SELECT coalesce(sql, name) FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'things'",
        ]
    };
    let mut all = Vec::new();
    for query in queries {
        all.extend(world.texts(query).await.unwrap_or_default());
    }
    all
}

pub(super) fn kept(run: &str, mode: Mode, key: &[&str], keep_previous: u32) -> LoadContext {
    LoadContext {
        keep_previous,
        ..load(run, mode, key)
    }
}

/// The load as it is when its run is asked to be reverted for the nth time.
pub(super) fn asked(load: &LoadContext, nth: u32) -> LoadContext {
    LoadContext {
        round: nth,
        ..load.clone()
    }
}

/// Publishes and cleans up, as a whole run does.
pub(super) async fn whole(world: &World, load: &LoadContext, rows: &[TestRow]) {
    world.publish(load, rows).await.expect("published");
    for _ in 0..2 {
        world.destination.cleanup(load).await.expect("cleaned");
    }
}

/// Asks, reverts and discards, each twice.
pub(super) async fn take_back(world: &World, load: &LoadContext) {
    for _ in 0..2 {
        world.destination.recall(&asked(load, 1)).await.expect("it can be");
    }
    for _ in 0..2 {
        world.destination.revert(load).await.expect("reverted");
    }
    for _ in 0..2 {
        world.destination.discard(load).await.expect("discarded");
    }
    world
        .destination
        .recall(&asked(load, 1))
        .await
        .expect("nothing is published");
}

async fn refused(world: &World, load: &LoadContext, parts: &[&str]) {
    let before = all_of(world).await;
    for failure in [
        world
            .destination
            .recall(&asked(load, 1))
            .await
            .expect_err("it can't be"),
        world.destination.revert(load).await.expect_err("nor is it"),
    ] {
        assert_eq!(failure.class, Class::Permanent);
        for part in parts {
            assert!(failure.message.contains(part), "{part:?} is not in {failure}");
        }
    }
    assert_eq!(all_of(world).await, before, "a refusal changes nothing");
}

async fn every_mode_goes_back_after_the_run_is_over(world: &World) {
    existing(world).await;
    let before = all_of(world).await;
    for (run, mode, key) in [
        ("a", Mode::Merge, &["id"][..]),
        ("b", Mode::Replace, &["id"]),
        ("c", Mode::Append, &[]),
    ] {
        let load = kept(run, mode, key, 1);
        let rows = if mode == Mode::Append { &ROWS[1..] } else { ROWS };
        whole(world, &load, rows).await;
        assert_ne!(all_of(world).await, before, "{mode:?}");
        take_back(world, &load).await;
        assert_eq!(all_of(world).await, before, "{mode:?}");
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
}

async fn a_table_that_the_run_made_goes(world: &World) {
    for (run, mode) in [("a", Mode::Append), ("b", Mode::Replace), ("c", Mode::Merge)] {
        let load = kept(run, mode, &["id"], 0);
        whole(world, &load, ROWS).await;
        take_back(world, &load).await;
        assert_eq!(world.rows("things").await, None, "{mode:?}");
        assert!(world.left_over().await.is_empty());
    }
}

async fn only_the_newest_runs_are_kept(world: &World) {
    existing(world).await;
    for (mode, runs) in [(Mode::Replace, ["a", "b", "c"]), (Mode::Merge, ["d", "e", "f"])] {
        let mut before = Vec::new();
        let loads = runs.map(|run| kept(run, mode, &["id"], 2));
        for (n, load) in loads.iter().enumerate() {
            before.push(all_of(world).await);
            whole(world, load, &ROWS[n..]).await;
        }
        assert!(!world.left_over().await.is_empty());
        for n in [2, 1] {
            take_back(world, &loads[n]).await;
            assert_eq!(all_of(world).await, before[n], "{mode:?} {n}");
        }
        // Of the third last nothing was kept.
        refused(world, &loads[0], &["no longer kept", "keep_previous"]).await;
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
    let none = kept("g", Mode::Replace, &["id"], 0);
    whole(world, &none, ROWS).await;
    assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    refused(world, &none, &["no longer kept"]).await;
}

async fn later_runs_go_first(world: &World) {
    existing(world).await;
    let before = all_of(world).await;
    let loads = ["a", "b", "c"].map(|run| kept(run, Mode::Merge, &["id"], 5));
    for (n, load) in loads.iter().enumerate() {
        whole(world, load, &ROWS[n..]).await;
    }
    refused(world, &loads[0], &["run c, b has published to", "revert that first"]).await;
    for load in loads.iter().rev() {
        take_back(world, load).await;
    }
    assert_eq!(all_of(world).await, before);
}

async fn appended_rows_go_from_among_later_ones(world: &World) {
    let first = kept("a", Mode::Append, &[], 1);
    whole(world, &first, ROWS).await;
    let second = kept("b", Mode::Append, &[], 1);
    whole(world, &second, &[(9, None, 9.5)]).await;
    // It made the table, and others have used it since: its own rows go, and no more.
    take_back(world, &first).await;
    assert_eq!(world.rows("things").await.expect("a table"), ["9 ~ 9.5"]);
    take_back(world, &second).await;
    assert_eq!(world.rows("things").await.expect("a table"), Vec::<String>::new());
}

/// What comes after an append and isn't one has its rows in what it keeps, or has changed them.
async fn appended_rows_stay_under_what_has_built_on_them(world: &World) {
    existing(world).await;
    let start = all_of(world).await;
    let first = kept("a", Mode::Append, &[], 5);
    whole(world, &first, &[(101, Some("first"), 1.5), (102, None, 2.5)]).await;
    let appended = all_of(world).await;
    for (run, mode) in [("b", Mode::Merge), ("c", Mode::Replace)] {
        let later = kept(run, mode, &["id"], 5);
        whole(world, &later, &[(101, Some("later"), 9.5), (103, None, 3.5)]).await;
        let third = kept(&format!("{run}-2"), Mode::Append, &[], 5);
        whole(world, &third, &[(104, None, 4.5)]).await;
        refused(
            world,
            &first,
            &[&format!("run {run} has published to"), "revert that first"],
        )
        .await;
        take_back(world, &third).await;
        take_back(world, &later).await;
        assert_eq!(all_of(world).await, appended, "after {run}");
    }
    take_back(world, &first).await;
    assert_eq!(all_of(world).await, start);
}

async fn a_rerun_goes_before_what_it_replaced(world: &World) {
    existing(world).await;
    let start = all_of(world).await;
    let first = kept("a", Mode::Append, &[], 1);
    whole(world, &first, &ROWS[1..]).await;
    let before = all_of(world).await;
    let mut again = kept("a-2", Mode::Append, &[], 1);
    again.replaces = Some("a".into());
    whole(world, &again, &ROWS[2..]).await;
    refused(world, &first, &["run a-2 has replaced it"]).await;
    take_back(world, &again).await;
    assert_eq!(all_of(world).await, before);
    take_back(world, &first).await;
    assert_eq!(all_of(world).await, start);
}

async fn records_of_an_earlier_release_are_brought_up_to_date(world: &World) {
    existing(world).await;
    let before = all_of(world).await;
    let load = kept("a", Mode::Merge, &["id"], 1);
    let (records, fences) = if world.is_postgres() {
        ("haulage.loads", "haulage.fences")
    } else {
        ("_haulage_loads", "_haulage_fences")
    };
    let forget = async || {
        for column in [
            "settled_at",
            "round",
            "recalled",
            "let_go",
            "attempts",
            "evolved",
            "origin",
            "provenance",
            "older",
            "advances",
            "set_aside",
        ] {
            world.run(&format!("ALTER TABLE {records} DROP COLUMN {column}")).await;
        }
        world.run(&format!("ALTER TABLE {fences} DROP COLUMN epoch")).await;
        world.reopened().await
    };
    world.destination.prepare(&load).await.expect("prepared");
    let destination = forget().await;
    destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let expected = world.stage(&load, ROWS).await.expect("staged");
    let destination = forget().await;
    destination.verify(&load, expected).await.expect("verified");
    let destination = forget().await;
    destination.publish(&load, expected).await.expect("published");
    let destination = forget().await;
    destination.recall(&asked(&load, 1)).await.expect("it can be");
    destination.cleanup(&load).await.expect("cleaned");
    destination.revert(&load).await.expect("reverted");
    assert_eq!(all_of(world).await, before);
}

async fn a_later_round_opens_what_was_verified(world: &World) {
    let load = load("a", Mode::Replace, &["id"]);
    let expected = world.stage(&load, ROWS).await.expect("staged");
    world.destination.verify(&load, expected).await.expect("verified");
    // A prepare that comes late opens nothing.
    world.destination.prepare(&load).await.expect("prepared");
    world
        .destination
        .begin(&load, CHUNK, Attempt(2))
        .await
        .expect_err("it is sealed");
    let later = LoadContext {
        round: 1,
        ..load.clone()
    };
    for _ in 0..2 {
        world.destination.prepare(&later).await.expect("opened");
    }
    let standing = world.destination.begin(&load, CHUNK, Attempt(2)).await.expect("open");
    assert_eq!(standing.len(), 2, "what was staged stands");
    // Steps of the round before have no effect any more.
    for fenced in [
        world.destination.verify(&load, expected).await,
        world.destination.publish(&load, expected).await,
    ] {
        assert_eq!(fenced.expect_err("an earlier round").class, Class::Fenced);
    }
    world.destination.verify(&later, expected).await.expect("verified");
    world.destination.publish(&later, expected).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table").len(), 3);
    world.destination.revert(&load).await.expect("reverted");
}

async fn an_area_that_lost_its_rows_is_made_anew(world: &World) {
    for (run, mode, harm) in [
        ("a", Mode::Append, "DELETE FROM"),
        ("b", Mode::Merge, "DROP TABLE"),
        ("c", Mode::Replace, "DROP TABLE"),
    ] {
        let load = load(run, mode, &["id"]);
        let expected = world.stage(&load, ROWS).await.expect("staged");
        let staging = world.left_over().await;
        if world.is_files() {
            super::files::lose_a_file(&world.lake(), "things");
        } else {
            let stage = staging.iter().find(|name| name.contains("stage_")).expect("an area");
            let schema = if world.is_postgres() { "haulage." } else { "" };
            world.run(&format!("{harm} {schema}{stage}")).await;
        }
        let lost = world
            .destination
            .verify(&load, expected)
            .await
            .expect_err("rows are gone");
        assert_eq!(lost.class, Class::StagingLost, "{lost}");
        let later = LoadContext {
            round: 1,
            ..load.clone()
        };
        world.destination.prepare(&later).await.expect("opened");
        let standing = world.destination.begin(&later, CHUNK, Attempt(2)).await.expect("open");
        assert_eq!(standing, [], "no marker stands for rows that are gone");
        for (n, rows) in [&ROWS[..1], &ROWS[1..]].into_iter().enumerate() {
            world
                .segment(&later, n as u32, Attempt(2), rows)
                .await
                .expect("staged again");
        }
        let expected = Expected { rows: 3, segments: 2 };
        world.destination.verify(&later, expected).await.expect("verified");
        world.destination.publish(&later, expected).await.expect("published");
        assert_eq!(world.rows("things").await.expect("a table").len(), 3, "{mode:?}");
        world.destination.revert(&later).await.expect("reverted");
        world.destination.discard(&later).await.expect("discarded");
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
}
