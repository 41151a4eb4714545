//! Targets whose columns change with a load: added and widened in the transaction that publishes, as the inspection said,
//! and taken back by a revert as far as nothing is lost by it.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use haulage_core::failure::Class;
use haulage_node::sink::{Change, Expected, Inspection, LoadContext};
use haulage_plan::contract::{Evolution, WiderType};
use haulage_plan::definition::Mode;

use super::later::{take_back, whole};
use super::load::{TestRow, load};
use super::world::World;

const ROWS: &[TestRow] = &[(1, Some("one"), 1.5), (7, None, -0.25)];
const ADDING: Evolution = Evolution {
    adds_columns: true,
    on_wider_type: None,
};
const WIDENING: Evolution = Evolution {
    adds_columns: false,
    on_wider_type: Some(WiderType::Widen),
};

crate::on_all!(
    a_column_is_added_in_every_mode_and_taken_back,
    a_column_that_others_have_filled_stays,
    a_column_that_others_have_built_on_stays,
    without_leave_nothing_is_changed,
    a_run_that_waited_finds_the_column_there,
);

fn evolving(run: &str, mode: Mode, evolution: Evolution) -> LoadContext {
    LoadContext {
        evolution,
        keep_previous: 3,
        ..load(run, mode, if mode == Mode::Append { &[] } else { &["id"] })
    }
}

/// The columns and the rows of `things`, as the database has them.
async fn all_of(world: &World) -> Vec<String> {
    let (columns, rows) = if world.is_postgres() {
        (
            "SELECT format('%s %s %s', attname, format_type(atttypid, atttypmod), attnotnull) FROM pg_attribute
             WHERE attrelid = to_regclass('things') AND attnum > 0 AND NOT attisdropped",
            "SELECT to_jsonb(things)::text FROM things",
        )
    } else {
        (
            "SELECT name || ' ' || type || ' ' || \"notnull\" FROM pragma_table_info('things')",
            "SELECT quote(id) || quote(name) FROM things",
        )
    };
    let mut all = world.texts(columns).await.expect("a catalog");
    all.extend(world.texts(rows).await.expect("a table"));
    all
}

async fn inspected(world: &World, load: &LoadContext) -> Inspection {
    world.destination.inspect(load).await.expect("an inspection")
}

/// `things` as it is without column `amount`.
async fn narrow(world: &World) {
    let key = if world.is_postgres() {
        "integer PRIMARY KEY"
    } else {
        "INTEGER PRIMARY KEY"
    };
    world
        .run(&format!(
            "CREATE TABLE things (id {key}, name text, _haulage_run text); INSERT INTO things VALUES (1, 'old', NULL), (2, \
             'two', NULL)"
        ))
        .await;
}

async fn amounts(world: &World) -> Vec<String> {
    let sql = "SELECT CAST(id AS TEXT) || ' ' || coalesce(CAST(amount AS TEXT), '~') FROM things";
    world.texts(sql).await.expect("a column amount")
}

async fn a_column_is_added_in_every_mode_and_taken_back(world: &World) {
    for (mode, expected) in [
        (Mode::Replace, vec!["1 1.5", "7 -0.25"]),
        (Mode::Merge, vec!["1 1.5", "2 ~", "7 -0.25"]),
        (Mode::Append, vec!["1 ~", "2 ~", "7 -0.25", "8 4.0"]),
    ] {
        narrow(world).await;
        let before = all_of(world).await;
        let load = evolving(&format!("run {mode:?}"), mode, ADDING);
        let found = inspected(world, &load).await;
        assert_eq!((found.ddl.len(), found.misfits.len()), (1, 0), "{found:?}");
        assert!(
            found.ddl[0].contains("ADD COLUMN") && found.columns[0].change == Change::Added,
            "{found:?}"
        );
        assert_eq!(all_of(world).await, before, "looking changes nothing");
        let rows = if mode == Mode::Append {
            &[(7, None, -0.25), (8, None, 4.0)]
        } else {
            ROWS
        };
        let expected_rows = world.stage(&load, rows).await.expect("staged");
        world.destination.verify(&load, expected_rows).await.expect("verified");
        assert_eq!(all_of(world).await, before, "staging changes nothing");
        let report = world
            .destination
            .publish(&load, expected_rows)
            .await
            .expect("published");
        assert!(report.detail.contains("adds column amount"), "{}", report.detail);
        let again = world.destination.publish(&load, expected_rows).await.expect("again");
        assert_eq!(again.detail, report.detail);
        let mut there = amounts(world).await;
        there
            .iter_mut()
            .for_each(|row| *row = row.replace(" 4", " 4.0").replace("4.0.0", "4.0"));
        assert_eq!(there, expected, "{mode:?}");
        world.destination.cleanup(&load).await.expect("cleaned");
        take_back(world, &load).await;
        assert_eq!(all_of(world).await, before, "{mode:?}");
        assert_eq!(world.left_over().await, Vec::<String>::new());
        world.run("DROP TABLE things").await;
    }
}

async fn a_column_that_others_have_filled_stays(world: &World) {
    narrow(world).await;
    let load = evolving("r", Mode::Merge, ADDING);
    whole(world, &load, ROWS).await;
    world.run("UPDATE things SET amount = 9 WHERE id = 2").await;
    let report = world.destination.revert(&load).await.expect("reverted");
    assert!(report.detail.contains("column amount stays"), "{}", report.detail);
    assert_eq!(amounts(world).await.len(), 2);
    let names = world.texts("SELECT name FROM things").await;
    assert_eq!(names, Some(vec!["old".to_owned(), "two".to_owned()]));
}

async fn a_column_that_others_have_built_on_stays(world: &World) {
    let mut built = vec![
        "CREATE VIEW dear AS SELECT id, amount FROM things",
        "CREATE INDEX dear ON things (name, amount)",
    ];
    if world.is_postgres() {
        built.push("ALTER TABLE things ADD CHECK (id > 0 OR amount IS NOT NULL)");
        built.push("ALTER TABLE things ADD UNIQUE (name, amount)");
        built.push("CREATE STATISTICS dear ON name, amount FROM things");
    } else {
        built.push(
            "CREATE TRIGGER dear AFTER DELETE ON things BEGIN UPDATE things SET amount = 1 WHERE id = OLD.id; END",
        );
    }
    for built in built {
        narrow(world).await;
        let load = evolving(built, Mode::Merge, ADDING);
        whole(world, &load, ROWS).await;
        world.run(built).await;
        let report = world.destination.revert(&load).await.expect("reverted");
        assert!(
            report.detail.contains("column amount stays"),
            "{built}: {}",
            report.detail
        );
        assert_eq!(amounts(world).await, ["1 ~", "2 ~"], "{built}");
        if world.is_postgres() {
            world.run("DROP TABLE things CASCADE").await;
        } else {
            world.run("DROP VIEW IF EXISTS dear; DROP TABLE things").await;
        }
    }
}

async fn without_leave_nothing_is_changed(world: &World) {
    narrow(world).await;
    let before = all_of(world).await;
    for mode in [Mode::Replace, Mode::Merge, Mode::Append] {
        let load = evolving("r", mode, WIDENING);
        let found = inspected(world, &load).await;
        assert!(
            found.misfits[0].contains("`on_new_column: add` for load out"),
            "{found:?}"
        );
        let failure = world.destination.prepare(&load).await.expect_err("it doesn't fit");
        assert_eq!(failure.class, Class::Permanent);
        assert_eq!(all_of(world).await, before);
    }
}

async fn a_run_that_waited_finds_the_column_there(world: &World) {
    narrow(world).await;
    let (first, second) = (evolving("a", Mode::Merge, ADDING), evolving("b", Mode::Merge, ADDING));
    let of_second = world.stage(&second, &[(9, None, 9.5)]).await.expect("staged");
    world.destination.verify(&second, of_second).await.expect("verified");
    whole(world, &first, ROWS).await;
    let report = world.destination.publish(&second, of_second).await.expect("published");
    assert!(!report.detail.contains("adds"), "{}", report.detail);
    assert_eq!(amounts(world).await, ["1 1.5", "2 ~", "7 -0.25", "9 9.5"]);
    // It has added nothing, and takes nothing away; the first one takes its column with it.
    world.destination.cleanup(&second).await.expect("cleaned");
    take_back(world, &second).await;
    assert_eq!(amounts(world).await, ["1 1.5", "2 ~", "7 -0.25"]);
    take_back(world, &first).await;
    assert!(
        world.texts("SELECT CAST(amount AS TEXT) FROM things").await.is_none(),
        "the column is gone"
    );
}

/// A target whose columns are all narrower than the load's, and where each would do.
const NARROWER: &str = "CREATE TABLE things (id smallint PRIMARY KEY, name varchar(3), amount real, _haulage_run text);
    INSERT INTO things VALUES (1, 'old', 0.5), (2, 'two', NULL)";

#[tokio::test]
async fn types_are_widened_in_every_mode_and_taken_back() {
    let world = World::postgres().await;
    for mode in [Mode::Replace, Mode::Merge, Mode::Append] {
        world.run(NARROWER).await;
        let before = all_of(&world).await;
        let load = evolving(&format!("run {mode:?}"), mode, WIDENING);
        let found = inspected(&world, &load).await;
        let told: Vec<String> = found.columns.iter().map(ToString::to_string).collect();
        assert_eq!(
            told[..3],
            [
                "widens column id from smallint to integer",
                "widens column name from character varying(3) to text",
                "widens column amount from real to double precision"
            ]
        );
        assert_eq!(found.ddl.len(), 3, "{:?}", found.ddl);
        let rows = &[(100_000, Some("a longer name"), 0.1)];
        whole(&world, &load, rows).await;
        let rows = world.rows("things").await.expect("a table");
        assert!(rows.contains(&"100000 a longer name 0.1".to_owned()), "{rows:?}");
        let columns = all_of(&world).await;
        for column in ["id integer t", "name text f", "amount double precision f"] {
            assert!(
                columns.iter().any(|found| found == column),
                "{column} is not in {columns:?}"
            );
        }
        take_back(&world, &load).await;
        assert_eq!(all_of(&world).await, before, "{mode:?}");
        world.run("DROP TABLE things").await;
    }
}

#[tokio::test]
async fn a_type_that_a_value_of_others_needs_stays() {
    let world = World::postgres().await;
    world.run(NARROWER).await;
    let load = evolving("r", Mode::Merge, WIDENING);
    whole(&world, &load, ROWS).await;
    world.run("UPDATE things SET name = 'longer' WHERE id = 2").await;
    let report = world.destination.revert(&load).await.expect("reverted");
    assert!(
        report.detail.contains("column name stays as it is"),
        "{}",
        report.detail
    );
    let columns = all_of(&world).await;
    assert!(
        columns.contains(&"name text f".to_owned()) && columns.contains(&"id smallint t".to_owned()),
        "{columns:?}"
    );
}

/// Where the server would not refuse, but round or cut.
#[tokio::test]
async fn a_type_that_a_value_of_others_would_lose_something_by_stays() {
    let world = World::postgres().await;
    for (narrower, wider, arrow, value) in [
        ("integer", "double precision", DataType::Float64, "1.5"),
        ("real", "double precision", DataType::Float64, "0.1"),
        (
            "date",
            "timestamp without time zone",
            DataType::Timestamp(TimeUnit::Microsecond, None),
            "'2024-01-03 12:34:56'",
        ),
        ("numeric(10,2)", "numeric(12,4)", DataType::Decimal128(12, 4), "7.1234"),
        ("character varying(3)", "text", DataType::Utf8, "'abc  '"),
    ] {
        world
            .run(&format!(
                "CREATE TABLE things (id integer PRIMARY KEY, v {narrower}, _haulage_run text)"
            ))
            .await;
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int32, false),
            Field::new("v", arrow, true),
        ]);
        for lossy in [false, true] {
            let load = LoadContext {
                schema: Arc::new(schema.clone()),
                ..evolving(&format!("{narrower} {lossy}"), Mode::Merge, WIDENING)
            };
            world.destination.prepare(&load).await.expect("prepared");
            let nothing = Expected { rows: 0, segments: 0 };
            world.destination.verify(&load, nothing).await.expect("verified");
            world.destination.publish(&load, nothing).await.expect("published");
            let type_of = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                WHERE attrelid = to_regclass('things') AND attname = 'v'";
            assert_eq!(world.texts(type_of).await, Some(vec![wider.to_owned()]));
            let fits = if narrower == "date" { "'2024-01-03'" } else { "1" };
            let value = if lossy { value } else { fits };
            world.run(&format!("INSERT INTO things VALUES (3, {value})")).await;
            let before = world.texts("SELECT v::text FROM things").await;
            let report = world.destination.revert(&load).await.expect("reverted");
            let stays = if lossy { wider } else { narrower };
            assert_eq!(
                world.texts(type_of).await,
                Some(vec![stays.to_owned()]),
                "{}",
                report.detail
            );
            assert_eq!(lossy, report.detail.contains("column v stays"), "{}", report.detail);
            if lossy {
                assert_eq!(world.texts("SELECT v::text FROM things").await, before);
            }
            world.run("DELETE FROM things").await;
        }
        world.run("DROP TABLE things").await;
    }
}

#[tokio::test]
async fn what_uses_a_column_is_named_before_anything_is_done() {
    let world = World::postgres().await;
    world
        .run(&format!(
            "{NARROWER}; CREATE VIEW dear AS SELECT amount FROM things WHERE amount > 1"
        ))
        .await;
    let before = all_of(&world).await;
    for mode in [Mode::Replace, Mode::Merge] {
        let load = evolving("r", mode, WIDENING);
        let found = inspected(&world, &load).await;
        assert_eq!(found.misfits.len(), 1, "{found:?}");
        for part in ["column amount", "from real to double precision", "view dear", "CAST"] {
            assert!(found.misfits[0].contains(part), "{part} is not in {}", found.misfits[0]);
        }
        world.destination.prepare(&load).await.expect_err("it doesn't fit");
    }
    assert_eq!(all_of(&world).await, before);
    // A view that was made while the run was under way is met by the publish, which does nothing then.
    world.run("DROP VIEW dear").await;
    let load = evolving("s", Mode::Merge, WIDENING);
    let expected = world.stage(&load, ROWS).await.expect("staged");
    world.destination.verify(&load, expected).await.expect("verified");
    world.run("CREATE VIEW dear AS SELECT amount FROM things").await;
    let failure = world
        .destination
        .publish(&load, expected)
        .await
        .expect_err("a view is in the way");
    assert!(
        failure.class == Class::Permanent && failure.message.contains("view dear"),
        "{failure}"
    );
    assert_eq!(all_of(&world).await, before);
}

#[tokio::test]
async fn wider_integers_are_tried_unless_they_are_refused() {
    let world = World::postgres().await;
    world.run("CREATE TABLE things (id integer PRIMARY KEY)").await;
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    for (on_wider_type, misfits) in [(None, 0), (Some(WiderType::Fail), 1), (Some(WiderType::Widen), 0)] {
        let load = LoadContext {
            schema: Arc::clone(&schema),
            ..evolving(
                "r",
                Mode::Merge,
                Evolution {
                    adds_columns: false,
                    on_wider_type,
                },
            )
        };
        let found = inspected(&world, &load).await;
        assert_eq!(found.misfits.len(), misfits, "{found:?}");
        assert_eq!(
            found.ddl.len(),
            usize::from(on_wider_type == Some(WiderType::Widen)),
            "{found:?}"
        );
    }
}

/// A swap is refused by nothing that a wider table would break: the new table has the types.
#[tokio::test]
async fn a_table_that_is_swapped_for_a_wider_one_keeps_what_it_wears() {
    let world = World::postgres().await;
    world
        .run(&format!(
            "{NARROWER}; CREATE INDEX by_name ON things (name); ALTER TABLE things ALTER name SET DEFAULT 'x'"
        ))
        .await;
    let load = LoadContext {
        evolution: Evolution {
            adds_columns: true,
            on_wider_type: Some(WiderType::Widen),
        },
        ..evolving("r", Mode::Replace, ADDING)
    };
    let report = world.publish(&load, ROWS).await.expect("published");
    assert!(
        report.detail.contains("by a swap of tables") && report.detail.contains("widens column id"),
        "{}",
        report.detail
    );
    let indexes = world
        .texts("SELECT indexname::text FROM pg_indexes WHERE tablename = 'things'")
        .await;
    assert_eq!(indexes, Some(vec!["by_name".to_owned(), "things_pkey".to_owned()]));
    assert!(all_of(&world).await.contains(&"name text f".to_owned()));
}

/// A column may be added under a view; the rows are then replaced by DELETE and INSERT, and put back as they were.
#[tokio::test]
async fn a_table_that_can_not_be_swapped_gets_its_column_where_it_is() {
    let world = World::postgres().await;
    narrow(&world).await;
    world.run("CREATE VIEW dear AS SELECT name FROM things").await;
    let before = all_of(&world).await;
    let load = evolving("r", Mode::Replace, ADDING);
    let found = inspected(&world, &load).await;
    assert!(
        found.changes[0].contains("by DELETE and INSERT") && found.ddl.len() == 1,
        "{found:?}"
    );
    whole(&world, &load, ROWS).await;
    assert_eq!(amounts(&world).await, ["1 1.5", "7 -0.25"]);
    take_back(&world, &load).await;
    assert_eq!(all_of(&world).await, before);
}
