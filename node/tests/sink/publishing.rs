//! Publish, revert and cleanup in every mode, over tables that exist and tables that don't.

use haulage_core::failure::Class;
use haulage_node::sink::LoadContext;
use haulage_plan::definition::Mode;
use sqlx::{Connection, PgConnection};

use super::load::{TestRow, load};
use super::world::World;

crate::on_all!(
    every_mode_into_a_new_table,
    every_mode_over_rows,
    publish_twice_says_the_same,
    revert_of_what_was_not_published,
    cleanup_leaves_nothing,
    two_runs_one_after_the_other,
    a_run_that_replaces_another,
    a_double_key_is_named,
    an_appended_key_that_exists_is_named,
    append_without_run_column,
    names_that_need_quotes,
    inspect_touches_nothing,
);

crate::on_files!(
    every_mode_into_a_new_table,
    publish_twice_says_the_same,
    revert_of_what_was_not_published,
    cleanup_leaves_nothing,
    two_runs_one_after_the_other,
    a_run_that_replaces_another,
    a_double_key_is_named,
);

const ROWS: &[TestRow] = &[(2, Some("two"), 2.5), (3, None, 3.5), (4, Some("it's"), 4.5)];
const NEW: &[&str] = &["2 two 2.5", "3 ~ 3.5", "4 it's 4.5"];

/// A table with rows 1 and 2, a key, and a column that the load doesn't have.
async fn existing(world: &World, run_column: bool) {
    if world.is_files() {
        return super::later::existing(world).await;
    }
    let run = if run_column { ", _haulage_run text" } else { "" };
    world
        .run(&format!(
            "CREATE TABLE things (id integer PRIMARY KEY, name text, amount double precision, note text DEFAULT 'n'{run});
             CREATE INDEX by_name ON things (name);
             INSERT INTO things (id, name, amount, note) VALUES (1, 'one', 1.5, 'x'), (2, 'old', 0.5, 'y');"
        ))
        .await;
}

async fn notes(world: &World) -> Vec<String> {
    world
        .texts("SELECT CAST(id AS TEXT) || coalesce(note, '~') FROM things")
        .await
        .expect("a table with notes")
}

async fn indexes(world: &World) -> Vec<String> {
    if world.is_files() {
        // They have none: a key is proven for each run.
        return vec![String::new()];
    }
    let sql = if world.is_postgres() {
        "SELECT indexdef::text FROM pg_indexes WHERE tablename = 'things'"
    } else {
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'things'"
    };
    world.texts(sql).await.expect("a catalog")
}

async fn revert_twice(world: &World, load: &LoadContext) {
    for _ in 0..2 {
        world.destination.revert(load).await.expect("reverted");
    }
    let late = world.destination.prepare(load).await.expect_err("reverted");
    assert_eq!(late.class, Class::Fenced, "{late}");
    world.destination.discard(load).await.expect("discarded");
    assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
}

async fn every_mode_into_a_new_table(world: &World) {
    for (run, mode) in [("a", Mode::Append), ("b", Mode::Replace), ("c", Mode::Merge)] {
        let load = load(run, mode, &["id"]);
        let report = world.publish(&load, ROWS).await.expect("published");
        assert_eq!(report.rows, 3);
        assert!(report.detail.contains("things"), "{}", report.detail);
        assert_eq!(world.rows("things").await.expect("a table"), NEW, "{mode:?}");
        assert_eq!(indexes(world).await.len(), 1, "the key is unique");
        revert_twice(world, &load).await;
        assert_eq!(world.rows("things").await, None, "{mode:?}: the table is gone again");
    }
}

async fn every_mode_over_rows(world: &World) {
    existing(world, true).await;
    let (rows, notes_before, indexes_before) = (world.rows("things").await, notes(world).await, indexes(world).await);
    for (run, mode, published, notes_after) in [
        (
            "a",
            Mode::Replace,
            vec!["2 two 2.5", "3 ~ 3.5", "4 it's 4.5"],
            ["2n", "3n", "4n"].as_slice(),
        ),
        (
            "b",
            Mode::Merge,
            vec!["1 one 1.5", "2 two 2.5", "3 ~ 3.5", "4 it's 4.5"],
            &["1x", "2y", "3n", "4n"],
        ),
    ] {
        let load = load(run, mode, &["id"]);
        world.publish(&load, ROWS).await.expect("published");
        assert_eq!(world.rows("things").await.expect("a table"), published, "{mode:?}");
        assert_eq!(notes(world).await, notes_after, "{mode:?}");
        assert_eq!(indexes(world).await, indexes_before, "{mode:?}");
        revert_twice(world, &load).await;
        assert_eq!(world.rows("things").await, rows, "{mode:?}");
        assert_eq!(notes(world).await, notes_before, "{mode:?}");
        assert_eq!(indexes(world).await, indexes_before, "{mode:?}");
    }
    let load = load("c", Mode::Append, &[]);
    world.publish(&load, &ROWS[1..]).await.expect("published");
    assert_eq!(
        world.rows("things").await.expect("a table"),
        ["1 one 1.5", "2 old 0.5", "3 ~ 3.5", "4 it's 4.5"]
    );
    assert_eq!(
        world
            .texts("SELECT DISTINCT _haulage_run FROM things WHERE id > 2")
            .await
            .expect("runs"),
        ["c"]
    );
    revert_twice(world, &load).await;
    assert_eq!(world.rows("things").await, rows);
    assert_eq!(notes(world).await, notes_before);
}

async fn publish_twice_says_the_same(world: &World) {
    for (run, mode) in [("a", Mode::Replace), ("b", Mode::Append), ("c", Mode::Merge)] {
        let mut load = load(run, mode, &["id"]);
        load.table = format!("things_{run}");
        let expected = world.stage(&load, ROWS).await.expect("staged");
        world.destination.verify(&load, expected).await.expect("verified");
        let first = world.destination.publish(&load, expected).await.expect("published");
        assert_eq!(world.destination.publish(&load, expected).await.expect("found"), first);
        world
            .destination
            .verify(&load, expected)
            .await
            .expect("a repeated verify is harmless");
        assert_eq!(world.rows(&load.table).await.expect("a table"), NEW);
        world.destination.cleanup(&load).await.expect("cleaned");
        assert_eq!(world.destination.publish(&load, expected).await.expect("found"), first);
    }
}

async fn revert_of_what_was_not_published(world: &World) {
    existing(world, false).await;
    let before = world.rows("things").await;
    let never = load("never", Mode::Replace, &["id"]);
    revert_twice(world, &never).await;
    let staged = load("staged", Mode::Replace, &["id"]);
    let expected = world.stage(&staged, ROWS).await.expect("staged");
    world.destination.verify(&staged, expected).await.expect("verified");
    world.destination.revert(&staged).await.expect("nothing to revert");
    let late = world
        .destination
        .publish(&staged, expected)
        .await
        .expect_err("reverted");
    assert_eq!(late.class, Class::Fenced, "{late}");
    world.destination.discard(&staged).await.expect("discarded");
    assert_eq!(world.rows("things").await, before);
    assert!(world.left_over().await.is_empty());
}

async fn cleanup_leaves_nothing(world: &World) {
    existing(world, true).await;
    for (run, mode, key) in [
        ("a", Mode::Merge, &["id"][..]),
        ("b", Mode::Replace, &["id"]),
        ("c", Mode::Append, &[]),
    ] {
        let load = load(run, mode, key);
        let rows: &[TestRow] = if mode == Mode::Append { &[(9, None, 9.5)] } else { ROWS };
        world.publish(&load, rows).await.expect("published");
        for _ in 0..2 {
            world.destination.cleanup(&load).await.expect("cleaned");
        }
        assert!(
            world.left_over().await.is_empty(),
            "{mode:?}: {:?}",
            world.left_over().await
        );
    }
    // An operator who abandons a revert goes on with the discard: what is published stays.
    world
        .destination
        .discard(&load("c", Mode::Append, &[]))
        .await
        .expect("discarded");
    assert_eq!(world.rows("things").await.expect("a table").len(), 4);
}

async fn two_runs_one_after_the_other(world: &World) {
    let both_kept = |run| LoadContext {
        keep_previous: 2,
        ..load(run, Mode::Replace, &["id"])
    };
    let (first, second) = (both_kept("a"), both_kept("b"));
    let staged_first = world.stage(&first, ROWS).await.expect("staged");
    let staged_second = world.stage(&second, &ROWS[..2]).await.expect("staged");
    world.destination.verify(&first, staged_first).await.expect("verified");
    world
        .destination
        .verify(&second, staged_second)
        .await
        .expect("verified");
    // The one that comes second waits until the run of the other is over.
    let whole = async |load: &LoadContext, staged| {
        world.destination.publish(load, staged).await.expect("published");
        world.destination.cleanup(load).await.expect("cleaned");
    };
    tokio::join!(whole(&first, staged_first), whole(&second, staged_second));
    let rows = world.rows("things").await.expect("a table");
    // Whoever came last, the table holds the rows of one run, with one key.
    let last = if rows.len() == 3 { &first } else { &second };
    assert_eq!(rows, &NEW[..rows.len()]);
    assert_eq!(indexes(world).await.len(), 1);
    let earlier = if rows.len() == 3 { &second } else { &first };
    let failure = world
        .destination
        .revert(earlier)
        .await
        .expect_err("the later run would be undone, too");
    assert!(failure.message.contains("has published to"), "{failure}");
    world.destination.revert(last).await.expect("reverted");
    world.destination.revert(earlier).await.expect("reverted");
    assert_eq!(world.rows("things").await, None);
}

async fn a_run_that_replaces_another(world: &World) {
    let first = load("a", Mode::Append, &["id"]);
    world.publish(&first, ROWS).await.expect("published");
    world.destination.cleanup(&first).await.expect("cleaned");
    let other = load("other", Mode::Append, &["id"]);
    world.publish(&other, &[(50, None, 5.5)]).await.expect("published");
    world.destination.cleanup(&other).await.expect("cleaned");
    let before = world.rows("things").await;

    let mut again = load("a-2", Mode::Append, &["id"]);
    again.replaces = Some("a".into());
    world.publish(&again, &ROWS[1..]).await.expect("published");
    assert_eq!(
        world.rows("things").await.expect("a table"),
        ["3 ~ 3.5", "4 it's 4.5", "50 ~ 5.5"]
    );
    revert_twice(world, &again).await;
    assert_eq!(world.rows("things").await, before);
}

async fn a_double_key_is_named(world: &World) {
    let rows: &[TestRow] = &[
        (1, Some("a"), 0.5),
        (7, Some("b"), 0.5),
        (2, None, 0.5),
        (7, Some("c"), 0.5),
    ];
    for (run, mode) in [("a", Mode::Replace), ("b", Mode::Append), ("c", Mode::Merge)] {
        if world.is_files() && mode == Mode::Append {
            continue;
        }
        let load = load(run, mode, &["id"]);
        let expected = world.stage(&load, rows).await.expect("staged");
        let failure = world
            .destination
            .verify(&load, expected)
            .await
            .expect_err("7 is there twice");
        assert_eq!(failure.class, Class::Permanent);
        assert!(failure.message.contains("(id)=(7)"), "{mode:?}: {failure}");
        world.destination.discard(&load).await.expect("discarded");
    }
    // A key without a value is refused when it is staged or when it is verified.
    let load = load("n", Mode::Replace, &["name"]);
    let failure = world
        .publish(&load, &[(1, Some("a"), 0.5), (2, None, 0.5)])
        .await
        .expect_err("no name");
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure.message.contains("column name") && failure.message.contains("key column"),
        "{failure}"
    );
    world.destination.discard(&load).await.expect("discarded");
    assert_eq!(world.rows("things").await, None);
    assert!(world.left_over().await.is_empty());
}

async fn an_appended_key_that_exists_is_named(world: &World) {
    existing(world, true).await;
    let before = world.rows("things").await;
    for (run, key) in [("a", "id"), ("b", "name")] {
        let load = load(run, Mode::Append, &[key]);
        let rows: &[TestRow] = if key == "id" {
            &[(8, None, 0.5), (2, None, 0.5)]
        } else {
            &[(8, Some("old"), 0.5)]
        };
        let rows: Vec<TestRow> = rows.iter().map(|row| (row.0, row.1.or(Some("z")), row.2)).collect();
        let failure = world.publish(&load, &rows).await.expect_err("it is there");
        assert_eq!(failure.class, Class::Permanent);
        let named = if key == "id" { "(id)=(2)" } else { "(name)=(old)" };
        assert!(
            failure.message.contains(named) && failure.message.contains("already"),
            "{failure}"
        );
        assert_eq!(world.rows("things").await, before);
        revert_twice(world, &load).await;
    }
}

async fn append_without_run_column(world: &World) {
    existing(world, false).await;
    let before = world.rows("things").await;
    let without = load("a", Mode::Append, &[]);
    let failure = world
        .destination
        .prepare(&without)
        .await
        .expect_err("its rows could not be found again");
    assert!(failure.message.contains("ADD COLUMN _haulage_run"), "{failure}");
    let keyed = load("b", Mode::Append, &["id"]);
    world.publish(&keyed, &ROWS[1..]).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table").len(), 4);
    revert_twice(world, &keyed).await;
    assert_eq!(world.rows("things").await, before);
}

async fn names_that_need_quotes(world: &World) {
    for (run, table, sql) in [
        ("a", "order", "\"order\""),
        ("b", "Odd Table; DROP", "\"Odd Table; DROP\""),
        ("c", "quo\"te'", "\"quo\"\"te'\""),
        ("d", "public.select", "\"select\""),
    ] {
        for (n, mode) in [Mode::Replace, Mode::Merge, Mode::Append, Mode::Replace]
            .into_iter()
            .enumerate()
        {
            let mut load = load(&format!("{run}'{n}"), mode, &["id"]);
            load.table = table.to_owned();
            let id = 10 * i32::try_from(n).expect("a small number");
            world.publish(&load, &[(id, None, 0.5)]).await.expect("published");
            world.destination.cleanup(&load).await.expect("cleaned");
        }
        assert_eq!(world.rows(sql).await.expect("a table"), ["30 ~ 0.5"], "{table}");
    }
}

async fn inspect_touches_nothing(world: &World) {
    let replace = load("a", Mode::Replace, &["id"]);
    let inspection = world.destination.inspect(&replace).await.expect("an inspection");
    assert!(!inspection.exists && inspection.rows.is_none() && inspection.misfits.is_empty());
    assert!(inspection.ddl[0].starts_with("CREATE TABLE"), "{:?}", inspection.ddl);
    match &world.kind {
        super::world::Kind::Sqlite { folder } => {
            let mut there = std::fs::read_dir(folder.path().join("new")).expect("a folder");
            assert!(there.next().is_none(), "it made something");
        }
        super::world::Kind::Files { .. } => panic!("not of files"),
        super::world::Kind::Postgres { .. } => {
            let schemas = world
                .texts("SELECT nspname::text FROM pg_namespace WHERE nspname = 'haulage'")
                .await;
            assert_eq!(schemas, Some(vec![]));
        }
    }
    existing(world, false).await;
    let inspection = world.destination.inspect(&replace).await.expect("an inspection");
    assert_eq!((inspection.exists, inspection.rows), (true, Some(2)));
    assert!(
        inspection.changes[0].contains("replaces the 2 rows"),
        "{:?}",
        inspection.changes
    );
    let append = load("b", Mode::Append, &[]);
    assert_eq!(
        world
            .destination
            .inspect(&append)
            .await
            .expect("an inspection")
            .misfits
            .len(),
        1
    );
}

/// The markers stand, and a row is gone: not for everybody, so that an index which is built now still has it.
#[tokio::test]
async fn a_row_that_is_missing_is_missed() {
    for key in [&[][..], &["id"]] {
        let world = World::postgres().await;
        let load = load("r1", Mode::Replace, key);
        let expected = world.stage(&load, ROWS).await.expect("staged");
        let (_, url) = world.server();
        let mut older = PgConnection::connect(url).await.expect("a connection");
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
            .execute(&mut older)
            .await
            .expect("a snapshot");
        world
            .run(
                "DO $$ DECLARE stage regclass; BEGIN
                     SELECT oid INTO STRICT stage FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r';
                     EXECUTE 'DELETE FROM ' || stage || ' WHERE id = 3';
                 END $$",
            )
            .await;
        let verified = world.destination.verify(&load, expected).await;
        let failure = verified.expect_err("a row is gone");
        assert!(failure.message.contains("holds 2 rows"), "{key:?}: {failure}");
    }
}
