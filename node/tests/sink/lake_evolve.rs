//! Tables of files whose columns change with their appends: added, widened and left without a value as the inspection said,
//! and back by reverts in any order, since what a table's columns are follows from the files that are there.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use haulage_core::failure::Class;
use haulage_core::ids::Attempt;
use haulage_node::sink::{Change, Destination, Expected, LoadContext};
use haulage_plan::contract::{Evolution, WiderType};
use haulage_plan::definition::{Layout, Mode};

use super::files;
use super::later::asked;
use super::load::{CHUNK, load, marker};
use super::world::World;

crate::on_files!(
    an_append_adds_columns_and_leaves_others_without_a_value,
    a_type_becomes_wider_and_a_narrower_one_is_taken,
    what_an_append_may_not_do_is_said_with_its_setting,
    reverts_in_any_order_leave_what_the_rest_has_brought,
    appends_at_once_all_add_their_columns,
    what_was_taken_out_comes_back_with_its_columns,
    a_state_of_an_earlier_release_is_read_and_told_apart,
    a_run_that_waited_is_judged_by_what_is_there_then,
);

const NOTHING: Evolution = Evolution {
    adds_columns: false,
    on_wider_type: None,
};
const ADDING: Evolution = Evolution {
    adds_columns: true,
    on_wider_type: None,
};
const WIDENING: Evolution = Evolution {
    adds_columns: false,
    on_wider_type: Some(WiderType::Widen),
};
const BOTH: Evolution = Evolution {
    adds_columns: true,
    on_wider_type: Some(WiderType::Widen),
};

fn data_type(name: &str) -> DataType {
    match name {
        "int" => DataType::Int32,
        "bigint" => DataType::Int64,
        "double" => DataType::Float64,
        "text" => DataType::Utf8View,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        other => panic!("no type {other}"),
    }
}

/// An append of columns that are given as `id int, name text`.
fn append(run: &str, columns: &str, evolution: Evolution) -> LoadContext {
    let field = |column: &str| {
        let (name, type_name) = column.split_once(' ').expect("a name and a type");
        Field::new(name, data_type(type_name), true)
    };
    LoadContext {
        schema: Arc::new(Schema::new(columns.split(", ").map(field).collect::<Vec<_>>())),
        evolution,
        keep_previous: 9,
        ..load(run, Mode::Append, &[])
    }
}

/// Rows that are given as `1, one`; no value is `~`.
fn batch(load: &LoadContext, rows: &[&str]) -> RecordBatch {
    let rows: Vec<Vec<&str>> = rows.iter().map(|row| row.split(", ").collect()).collect();
    let column = |(place, field): (usize, &Arc<Field>)| -> ArrayRef {
        let texts = rows.iter().map(|row| Some(row[place]).filter(|text| *text != "~"));
        let texts: StringArray = texts.collect();
        let values = cast(&texts, field.data_type()).expect("values");
        assert_eq!(values.null_count(), texts.null_count(), "{texts:?}");
        values
    };
    let columns = load.schema.fields().iter().enumerate().map(column).collect();
    RecordBatch::try_new(load.schema.clone(), columns).expect("a batch")
}

async fn sealed(destination: &dyn Destination, load: &LoadContext, rows: &[&str]) -> Expected {
    destination.prepare(load).await.expect("prepared");
    destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    let writer = destination.segment(load, CHUNK, Attempt(1)).await;
    let mut writer = writer.expect("a writer");
    writer.write(&batch(load, rows)).await.expect("taken");
    let committed = writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let expected = Expected {
        rows: committed.marker.rows,
        segments: 1,
    };
    destination.verify(load, expected).await.expect("verified");
    expected
}

/// A whole run; what its publish said.
async fn whole(world: &World, load: &LoadContext, rows: &[&str]) -> String {
    let expected = sealed(world.destination.as_ref(), load, rows).await;
    let report = world.destination.publish(load, expected).await.expect("published");
    let again = world.destination.publish(load, expected).await.expect("again");
    assert_eq!(again, report, "it says so again");
    world.destination.cleanup(load).await.expect("cleaned");
    report.detail
}

async fn take_back(world: &World, load: &LoadContext) {
    for _ in 0..2 {
        world.destination.recall(&asked(load, 1)).await.expect("it can be");
    }
    for _ in 0..2 {
        world.destination.revert(load).await.expect("reverted");
    }
    world.destination.discard(load).await.expect("discarded");
}

/// The table's columns as its manifest has them, and its rows in those, sorted.
fn seen(world: &World) -> (String, Vec<String>) {
    let manifest = files::manifest(&world.lake(), "things").expect("a table");
    let columns: Vec<(&str, &str)> = manifest["columns"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|column| {
            let word = |key: &str| column[key].as_str().expect("a text");
            (word("name"), word("type"))
        })
        .collect();
    let mut rows = Vec::new();
    for (path, _) in files::files(&world.lake(), "things").expect("a table") {
        for batch in files::parquet(&path) {
            for field in batch.schema().fields() {
                assert!(
                    columns.iter().any(|(name, _)| name == field.name()),
                    "{}: {field}",
                    path.display()
                );
            }
            let text = |(name, type_name): &(&str, &str)| {
                // By way of the table's type, which has to hold it.
                let values = batch.column_by_name(name)?;
                let wide = cast(values, &data_type(type_name)).expect("values of the table's type");
                assert_eq!(wide.null_count(), values.null_count());
                Some(cast(&wide, &DataType::Utf8).expect("texts"))
            };
            let texts: Vec<Option<ArrayRef>> = columns.iter().map(text).collect();
            for row in 0..batch.num_rows() {
                let value = |texts: &Option<ArrayRef>| match texts {
                    Some(texts) if texts.is_valid(row) => texts.as_string::<i32>().value(row).to_owned(),
                    Some(_) | None => "~".to_owned(),
                };
                rows.push(texts.iter().map(value).collect::<Vec<_>>().join(", "));
            }
        }
    }
    rows.sort();
    let columns: Vec<String> = columns
        .iter()
        .map(|(name, type_name)| format!("{name} {type_name}"))
        .collect();
    (columns.join(", "), rows)
}

fn check(world: &World, columns: &str, rows: &[&str]) {
    let (found, found_rows) = seen(world);
    assert_eq!(
        (found.as_str(), found_rows),
        (columns, rows.iter().map(|row| (*row).to_owned()).collect())
    );
}

fn format(world: &World) -> serde_json::Value {
    files::state(&world.lake(), "things").expect("a state")["format"].clone()
}

async fn found(world: &World, column: &str, value: &str) -> Vec<String> {
    let key = [(column.to_owned(), value.to_owned())];
    let looked = world.destination.look_up("things", &key, 9).await.expect("an answer");
    let runs = looked
        .rows
        .into_iter()
        .map(|row| row.run.expect("a run").as_str().to_owned());
    runs.collect()
}

/// `columns` of an inspection, in words; it has to fit.
async fn inspected(world: &World, load: &LoadContext) -> Vec<String> {
    let found = world.destination.inspect(load).await.expect("an inspection");
    assert_eq!((found.misfits, found.ddl), (Vec::new(), Vec::new()));
    found.columns.iter().map(ToString::to_string).collect()
}

async fn an_append_adds_columns_and_leaves_others_without_a_value(world: &World) {
    let base = append("base", "id int, name text", ADDING);
    assert_eq!(inspected(world, &base).await, Vec::<String>::new());
    assert!(!whole(world, &base, &["1, one", "2, ~"]).await.contains("column"));
    let before = seen(world);
    let more = append("more", "x text, id int", ADDING);
    let found_columns = world.destination.inspect(&more).await.expect("an inspection").columns;
    assert_eq!(found_columns[0].change, Change::Added);
    assert_eq!(
        inspected(world, &more).await,
        ["adds column x text", "has nothing for column name text"]
    );
    let said = whole(world, &more, &["new, 3"]).await;
    assert_eq!(said, "1 row appended to things, adds column x text, version 2");
    check(
        world,
        "id int, name text, x text",
        &["1, one, ~", "2, ~, ~", "3, ~, new"],
    );
    assert_eq!(format(world), 3);
    for (column, value, run) in [
        ("id", "1", &["base"][..]),
        ("id", "3", &["more"]),
        ("name", "one", &["base"]),
        ("x", "new", &["more"]),
        ("x", "old", &[]),
    ] {
        assert_eq!(found(world, column, value).await, run, "{column} = {value}");
    }
    // Names alone count: what the table has by now is nothing new, in whatever order.
    let third = append("third", "name text, x text, id int", ADDING);
    assert_eq!(inspected(world, &third).await, Vec::<String>::new());
    assert!(!whole(world, &third, &["four, y, 4"]).await.contains("column"));
    check(
        world,
        "id int, name text, x text",
        &["1, one, ~", "2, ~, ~", "3, ~, new", "4, four, y"],
    );
    take_back(world, &third).await;
    take_back(world, &more).await;
    assert_eq!(seen(world), before);
    assert_eq!(
        format(world),
        1,
        "a release that knows nothing of it reads the table again"
    );
    assert!(world.left_over().await.is_empty());
}

async fn a_type_becomes_wider_and_a_narrower_one_is_taken(world: &World) {
    let base = append("base", "id int, at date", NOTHING);
    whole(world, &base, &["1, 2024-02-29"]).await;
    let wide = append("wide", "id bigint, at timestamp", WIDENING);
    let words = [
        "widens column id from int to bigint",
        "widens column at from date to timestamp",
    ];
    assert_eq!(inspected(world, &wide).await, words);
    let said = whole(world, &wide, &["3000000000, 2024-03-01T12:30:00"]).await;
    for word in words {
        assert!(said.contains(word), "{said}");
    }
    // Nothing has to be said for what the table holds already.
    let narrow = append("narrow", "id int, at timestamp", NOTHING);
    assert_eq!(inspected(world, &narrow).await, Vec::<String>::new());
    whole(world, &narrow, &["7, ~"]).await;
    let rows = ["1, 2024-02-29T00:00:00", "3000000000, 2024-03-01T12:30:00", "7, ~"];
    check(world, "id bigint, at timestamp", &rows);
    for (column, value, run) in [
        ("id", "1", "base"),
        ("id", "3000000000", "wide"),
        ("id", "7", "narrow"),
        ("at", "2024-02-29T00:00:00", "base"),
        ("at", "2024-03-01T12:30:00", "wide"),
    ] {
        assert_eq!(found(world, column, value).await, [run], "{column} = {value}");
    }
    take_back(world, &wide).await;
    check(world, "id int, at timestamp", &["1, 2024-02-29T00:00:00", "7, ~"]);
    take_back(world, &narrow).await;
    check(world, "id int, at date", &["1, 2024-02-29"]);
    assert_eq!(format(world), 1);
}

async fn what_an_append_may_not_do_is_said_with_its_setting(world: &World) {
    let by_day = |load: LoadContext, by: &[&str]| LoadContext {
        layout: Layout {
            partition_by: by.iter().map(|name| (*name).to_owned()).collect(),
            ..Layout::default()
        },
        ..load
    };
    let columns = "id int, day date, at timestamp, note text";
    let base = by_day(append("base", columns, NOTHING), &["day"]);
    whole(world, &base, &["1, 2024-02-29, ~, one"]).await;
    let before = seen(world);
    let failing = Evolution {
        adds_columns: true,
        on_wider_type: Some(WiderType::Fail),
    };
    let wide = columns.replace("id int", "id bigint");
    for (n, (columns, evolution, by, words)) in [
        (
            &*columns.replace("note text", "note text, x int"),
            WIDENING,
            &["day"][..],
            &["column x (int) is not in things", "`on_new_column: add` for load out"][..],
        ),
        (
            &columns.replace(", note text", ""),
            WIDENING,
            &["day"],
            &[
                "column note (text) of things is not among",
                "`on_new_column: add` for load out",
            ],
        ),
        (
            "day date, id int, at timestamp, note text",
            WIDENING,
            &["day"],
            &[
                "in another order: id, day, at, note",
                "`on_new_column: add` for load out",
            ],
        ),
        (
            &wide,
            ADDING,
            &["day"],
            &[
                "column id is bigint in the load and int in things",
                "`on_wider_type: widen` for load out",
            ],
        ),
        (&wide, failing, &["day"], &["`on_wider_type: widen` for load out"]),
        (
            &columns.replace("id int", "id text"),
            BOTH,
            &["day"],
            &["column id is text in the load and int in things; CAST it"],
        ),
        (
            &columns.replace("at timestamp", "at timestamptz"),
            BOTH,
            &["day"],
            &["column at is timestamptz in the load and timestamp in things; CAST it"],
        ),
        (
            &columns.replace("note text", "note text, NOTE text"),
            BOTH,
            &["day"],
            &["column NOTE is not in things, which has note"],
        ),
        (
            &columns.replace("day date", "day text"),
            BOTH,
            &["day"],
            &["column day is text in the load and date in things, which is partitioned by it"],
        ),
        (
            &columns.replace("note text", "note text, place text"),
            BOTH,
            &["day", "place"],
            &[
                "column place (text) is not in things, and `partition_by` names it",
                "things is partitioned by [day], and the load by [day, place]",
            ],
        ),
        (
            &columns.replace("day date, ", ""),
            BOTH,
            &[],
            &["column day (date) of things is not among", "partitioned by it"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let load = by_day(append(&format!("r{n}"), columns, evolution), by);
        let misfits = world
            .destination
            .inspect(&load)
            .await
            .expect("an inspection")
            .misfits
            .join("; ");
        let failure = world.destination.prepare(&load).await.expect_err("it doesn't fit");
        assert_eq!(failure.class, Class::Permanent);
        for word in words {
            assert!(
                misfits.contains(word) && failure.message.contains(word),
                "{word}: {misfits}: {failure}"
            );
        }
        world.destination.discard(&load).await.expect("nothing to discard");
    }
    assert_eq!(seen(world), before);
}

async fn reverts_in_any_order_leave_what_the_rest_has_brought(world: &World) {
    let runs = [
        append("0", "id int", BOTH),
        append("1", "id bigint, x text", BOTH),
        append("2", "id int, y int, x text", BOTH),
    ];
    let rows = ["1", "3000000000, x", "2, 5, z"];
    for order in [[1, 2, 0], [2, 1, 0], [0, 1, 2]] {
        let named: Vec<LoadContext> = runs
            .iter()
            .map(|load| LoadContext {
                run: format!("{order:?} {}", load.run).as_str().into(),
                ..load.clone()
            })
            .collect();
        for (load, row) in named.iter().zip(rows) {
            whole(world, load, &[row]).await;
        }
        check(
            world,
            "id bigint, x text, y int",
            &["1, ~, ~", "2, z, 5", "3000000000, x, ~"],
        );
        take_back(world, &named[order[0]]).await;
        match order[0] {
            0 => check(world, "id bigint, x text, y int", &["2, z, 5", "3000000000, x, ~"]),
            1 => check(world, "id int, y int, x text", &["1, ~, ~", "2, 5, z"]),
            _ => check(world, "id bigint, x text", &["1, ~", "3000000000, x"]),
        }
        take_back(world, &named[order[1]]).await;
        match order[2] {
            0 => check(world, "id int", &["1"]),
            1 => check(world, "id bigint, x text", &["3000000000, x"]),
            _ => check(world, "id int, y int, x text", &["2, 5, z"]),
        }
        assert_eq!(format(world), 1);
        take_back(world, &named[order[2]]).await;
        if let Some(manifest) = files::manifest(&world.lake(), "things") {
            assert_eq!(manifest["rows"], 0);
        }
    }
}

/// Several nodes, each with a client of its own and a column of its own.
async fn appends_at_once_all_add_their_columns(world: &World) {
    const RUNS: usize = 5;
    whole(world, &append("base", "id int", NOTHING), &["0"]).await;
    let mut publishing = Vec::new();
    for n in 1..=RUNS {
        let destination = world.reopened().await;
        let load = append(&format!("r{n}"), &format!("id int, x{n} text"), ADDING);
        let expected = sealed(destination.as_ref(), &load, &[&format!("{n}, a")]).await;
        publishing.push(async move { destination.publish(&load, expected).await.expect("published").detail });
    }
    let publishing: Vec<_> = publishing.into_iter().map(tokio::spawn).collect();
    for (n, publish) in publishing.into_iter().enumerate() {
        let said = publish.await.expect("no panic");
        assert!(said.contains(&format!("adds column x{} text", n + 1)), "{said}");
    }
    let (columns, rows) = seen(world);
    for n in 1..=RUNS {
        assert!(columns.contains(&format!("x{n} text")), "{columns}");
    }
    assert_eq!(rows.len(), RUNS + 1);
    assert!(rows[1..].iter().all(|row| row.matches('a').count() == 1), "{rows:?}");
}

/// A rerun takes the rows of the run that it replaces, and its columns with them, until it is taken back itself.
async fn what_was_taken_out_comes_back_with_its_columns(world: &World) {
    whole(world, &append("a", "id int", ADDING), &["1"]).await;
    let second = append("b", "id int", ADDING);
    whole(world, &second, &["2"]).await;
    let again = LoadContext {
        replaces: Some("b".into()),
        ..append("again", "id int", ADDING)
    };
    // Nothing is told apart yet when it takes the rows.
    whole(world, &again, &["3"]).await;
    assert_eq!(format(world), 1);
    let wide = append("wide", "id bigint, x text", BOTH);
    whole(world, &wide, &["3000000000, x"]).await;
    take_back(world, &again).await;
    check(world, "id bigint, x text", &["1, ~", "2, ~", "3000000000, x"]);
    for (id, run) in [("1", "a"), ("2", "b"), ("3000000000", "wide")] {
        assert_eq!(found(world, "id", id).await, [run]);
    }
    // One that has brought columns takes them along, and back among the others where it was.
    let instead = LoadContext {
        replaces: Some("wide".into()),
        ..append("instead", "id int, y text", ADDING)
    };
    whole(world, &instead, &["5, y"]).await;
    check(world, "id int, y text", &["1, ~", "2, ~", "5, y"]);
    whole(world, &append("last", "z text, id int", ADDING), &["z, 6"]).await;
    take_back(world, &instead).await;
    check(
        world,
        "id bigint, x text, z text",
        &["1, ~, ~", "2, ~, ~", "3000000000, x, ~", "6, ~, z"],
    );
    assert_eq!(found(world, "id", "6").await, ["last"]);
}

/// As earlier releases leave a table: no part says what its columns are.
async fn a_state_of_an_earlier_release_is_read_and_told_apart(world: &World) {
    let (first, second) = (
        append("a", "id int, name text", ADDING),
        append("b", "id int, name text", ADDING),
    );
    whole(world, &first, &["1, one"]).await;
    whole(world, &second, &["2, two"]).await;
    let state = files::state(&world.lake(), "things").expect("a state");
    let parts = state["head"]["parts"].as_array().expect("parts");
    assert!(state["format"] == 1 && parts.len() == 2 && parts.iter().all(|part| part.get("columns").is_none()));
    let third = append("c", "id bigint, x text", BOTH);
    whole(world, &third, &["3000000000, x"]).await;
    let state = files::state(&world.lake(), "things").expect("a state");
    assert_eq!(state["format"], 3, "an earlier release would drop what it doesn't know");
    let own: Vec<usize> = state["head"]["parts"]
        .as_array()
        .expect("parts")
        .iter()
        .map(|part| part["columns"].as_array().map_or(0, Vec::len))
        .collect();
    assert_eq!(own, [2, 2, 2]);
    check(
        world,
        "id bigint, name text, x text",
        &["1, one, ~", "2, two, ~", "3000000000, ~, x"],
    );
    // A replace begins anew, and going back from it goes back to all of them.
    let replace = LoadContext {
        mode: Mode::Replace,
        ..append("d", "other text", NOTHING)
    };
    whole(world, &replace, &["o"]).await;
    check(world, "other text", &["o"]);
    take_back(world, &replace).await;
    take_back(world, &first).await;
    check(
        world,
        "id bigint, name text, x text",
        &["2, two, ~", "3000000000, ~, x"],
    );
    take_back(world, &third).await;
    check(world, "id int, name text", &["2, two"]);
}

async fn a_run_that_waited_is_judged_by_what_is_there_then(world: &World) {
    whole(world, &append("base", "id int", NOTHING), &["1"]).await;
    let (same, strict) = (
        append("same", "id int, x text", ADDING),
        append("strict", "id int", NOTHING),
    );
    let of_same = sealed(world.destination.as_ref(), &same, &["2, b"]).await;
    let of_strict = sealed(world.destination.as_ref(), &strict, &["3"]).await;
    whole(world, &append("first", "id int, x text", ADDING), &["4, a"]).await;
    let report = world.destination.publish(&same, of_same).await.expect("published");
    assert!(!report.detail.contains("adds"), "{}", report.detail);
    let failure = world
        .destination
        .publish(&strict, of_strict)
        .await
        .expect_err("x is there");
    assert!(
        failure.message.contains("column x (text) of things is not among"),
        "{failure}"
    );
    check(world, "id int, x text", &["1, ~", "2, b", "4, a"]);
}
