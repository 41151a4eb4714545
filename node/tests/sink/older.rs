//! A row that comes late doesn't overwrite one that is newer, and nobody is overwritten unseen: by a column that says so,
//! or in the order of the runs that read the rows first.

use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, ChunkId, RunId, StageId};
use haulage_core::submission::Part;
use haulage_node::sink::{Expected, LoadContext, Rows};
use haulage_plan::definition::Mode;

use super::later::{all_of, asked, existing, kept, take_back, whole};
use super::load::{CHUNK, TestRow, marker};
use super::world::World;

crate::on_all!(
    the_newer_of_two_rows_stands,
    the_newest_of_a_run_stands_however_often_it_is_verified,
    a_replayed_row_of_an_unknown_age_overwrites_nobody,
    replays_are_of_the_time_of_their_origin,
    rows_that_name_their_run_say_which_is_newer,
    of_two_rows_of_one_object_the_later_stands,
    what_the_origin_has_written_is_overwritten_by_nobody_unseen,
    what_was_replaced_is_not_replayed,
);

fn by_amount(run: &str) -> LoadContext {
    LoadContext {
        newest: Some("amount".into()),
        ..kept(run, Mode::Merge, &["id"], 9)
    }
}

fn merges(run: &str, origin: Option<&str>) -> LoadContext {
    LoadContext {
        origin: origin.map(RunId::from),
        ..kept(run, Mode::Merge, &["id"], 9)
    }
}

async fn things(world: &World) -> Vec<String> {
    let sql = "SELECT id || ' ' || coalesce(name, '-') FROM things ORDER BY 1";
    world.texts(sql).await.expect("rows")
}

async fn the_newer_of_two_rows_stands(world: &World) {
    // There: (1, 'one', 1.5), (2, 'old', 0.5). An amount is a time here.
    existing(world).await;
    world
        .run("INSERT INTO things (id, name, amount) VALUES (5, 'timeless', NULL)")
        .await;
    let before = all_of(world).await;
    let rows: &[TestRow] = &[
        (1, Some("older"), 1.0),
        (2, Some("newer"), 0.75),
        (3, Some("new"), 0.1),
        (5, Some("timed"), 0.0),
    ];
    let load = by_amount("a");
    let done = world.publish(&load, rows).await.expect("published");
    assert!(
        done.rows == 4
            && done
                .detail
                .contains("1 row of them older than what stands there, which stays"),
        "{done:?}"
    );
    assert_eq!(
        world
            .destination
            .publish(&load, expected(4))
            .await
            .expect("again")
            .detail,
        done.detail
    );
    world.destination.cleanup(&load).await.expect("cleaned");
    assert_eq!(things(world).await, ["1 one", "2 newer", "3 new", "5 timed"]);
    // As new is new enough.
    whole(world, &by_amount("b"), &[(1, Some("same"), 1.5), (2, None, 0.75)]).await;
    assert_eq!(things(world).await, ["1 same", "2 -", "3 new", "5 timed"]);
    take_back(world, &by_amount("b")).await;
    take_back(world, &load).await;
    assert_eq!(all_of(world).await, before);
}

async fn the_newest_of_a_run_stands_however_often_it_is_verified(world: &World) {
    // There: (1, 'one', 1.5), (2, 'old', 0.5).
    existing(world).await;
    let before = all_of(world).await;
    let rows: &[TestRow] = &[
        (1, Some("beaten"), 1.0),
        (1, Some("older"), 1.25),
        (2, Some("newest"), 2.0),
        (2, Some("beaten"), 1.0),
        (3, Some("same"), 1.0),
        (3, Some("same"), 1.0),
    ];
    // In a later round all of them are staged again, and chosen from.
    let round = |round| LoadContext {
        round,
        attempt: Attempt(1 + round),
        ..by_amount("a")
    };
    for load in [round(0), round(1)] {
        let staged = world.stage(&load, rows).await.expect("staged");
        for _ in 0..2 {
            let report = world.destination.verify(&load, staged).await.expect("verified");
            assert_eq!(report.rows, 3);
            assert!(
                report.detail.contains("3 rows staged")
                    && report.detail.contains("3 older than others of their keys left out"),
                "{report:?}"
            );
        }
        // An attempt that comes after one which has got so far may still name rows.
        let named = world
            .destination
            .name_rows(&load, staged, &["id < 3".to_owned().into()])
            .await;
        assert_eq!(named, Ok(vec![2]));
    }
    let (load, staged) = (round(1), expected(6));
    for _ in 0..2 {
        let done = world.destination.publish(&load, staged).await.expect("published");
        // One more is older than what stands.
        assert!(
            done.rows == 6 && done.detail.contains("4 rows of them older"),
            "{done:?}"
        );
    }
    world.destination.cleanup(&load).await.expect("cleaned");
    assert_eq!(things(world).await, ["1 one", "2 newest", "3 same"]);
    take_back(world, &load).await;
    assert_eq!(all_of(world).await, before);
    let tied = by_amount("b");
    let refused = world
        .publish(&tied, &[(7, Some("one"), 1.0), (7, Some("two"), 1.0)])
        .await;
    let refused = refused.expect_err("nobody knows which is newer");
    assert!(
        refused.class == Class::Permanent && refused.message.contains("key (id)=(7)"),
        "{refused}"
    );
    world.destination.discard(&tied).await.expect("nothing is left");
    assert_eq!(all_of(world).await, before);
}

fn expected(rows: u64) -> Expected {
    Expected { rows, segments: 2 }
}

async fn a_replayed_row_of_an_unknown_age_overwrites_nobody(world: &World) {
    existing(world).await;
    whole(world, &merges("a", None), &[(3, Some("a"), 1.0)]).await;
    // Nobody has published since: what is there is older.
    whole(world, &merges("ra", Some("a")), &[(2, Some("ra"), 1.0)]).await;
    assert_eq!(things(world).await, ["1 one", "2 ra", "3 a"]);
    whole(world, &merges("b", None), &[(4, Some("b"), 1.0)]).await;
    let before = all_of(world).await;
    let late = merges("rra", Some("a"));
    let refused = world
        .publish(&late, &[(1, Some("late"), 1.0), (7, Some("late"), 1.0)])
        .await;
    let refused = refused.expect_err("whether b has written the row isn't known");
    for part in [
        "key (id)=(1)",
        "already in things",
        "run b has published",
        "run a read them",
        "`newest:",
    ] {
        assert!(
            refused.class == Class::Permanent && refused.message.contains(part),
            "{part}: {refused}"
        );
    }
    world.destination.revert(&late).await.expect("nothing to undo");
    assert_eq!(all_of(world).await, before);
    // Keys that nobody has are added all the same, and a column that tells is believed.
    whole(world, &merges("r3", Some("a")), &[(7, Some("late"), 1.0)]).await;
    let told = LoadContext {
        origin: Some(RunId::from("a")),
        ..by_amount("r4")
    };
    whole(world, &told, &[(4, Some("late"), 0.5), (3, Some("later"), 2.0)]).await;
    assert_eq!(things(world).await, ["1 one", "2 ra", "3 later", "4 b", "7 late"]);
    // What was reverted has not published.
    for run in [told, merges("r3", Some("a")), merges("b", None)] {
        take_back(world, &run).await;
    }
    whole(world, &merges("r5", Some("a")), &[(1, Some("late"), 1.0)]).await;
    assert_eq!(things(world).await, ["1 late", "2 ra", "3 a"]);
}

async fn replays_are_of_the_time_of_their_origin(world: &World) {
    existing(world).await;
    whole(world, &merges("a", None), &[(3, Some("a"), 1.0)]).await;
    whole(world, &merges("b", None), &[(4, Some("b"), 1.0)]).await;
    whole(world, &merges("ra", Some("a")), &[(5, Some("ra"), 1.0)]).await;
    // The replay of `a` was published after `b`, and is older.
    whole(
        world,
        &merges("rb", Some("b")),
        &[(5, Some("rb"), 1.0), (6, Some("rb"), 1.0)],
    )
    .await;
    assert_eq!(things(world).await, ["1 one", "2 old", "3 a", "4 b", "5 rb", "6 rb"]);
    let refused = world.publish(&merges("rra", Some("a")), &[(6, Some("rra"), 1.0)]).await;
    let refused = refused.expect_err("the replay of `b` is newer");
    assert!(refused.message.contains("run rb, b has published"), "{refused}");
}

/// A load of two columns and those of provenance.
fn named(run: &str, origin: Option<&str>) -> LoadContext {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    LoadContext {
        table: "named".into(),
        provenance: true,
        schema: Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            text("name"),
            text("_haulage_run"),
            text("_haulage_chunk"),
            Field::new("_haulage_line", DataType::Int64, true),
        ])),
        ..merges(run, origin)
    }
}

async fn publish_named(world: &World, load: &LoadContext, ids: &[i64]) -> Result<String, Failure> {
    let rows: Vec<_> = ids.iter().map(|id| (*id, "0.0", *id)).collect();
    publish_lines(world, load, &rows).await
}

/// Publishes rows by id, chunk and line.
async fn publish_lines(world: &World, load: &LoadContext, rows: &[(i64, &str, i64)]) -> Result<String, Failure> {
    let all = |text: &str| Arc::new(StringArray::from(vec![text; rows.len()]));
    let run = load.run.as_str();
    let batch = RecordBatch::try_new(
        load.schema.clone(),
        vec![
            Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
            all(run),
            all(run),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()),
        ],
    )
    .expect("a batch of the load's schema");
    let destination = &world.destination;
    destination.prepare(load).await.expect("prepared");
    destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = destination.segment(load, CHUNK, Attempt(1)).await.expect("a segment");
    writer.write(&batch).await.expect("written");
    writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let expected = Expected {
        rows: rows.len() as u64,
        segments: 1,
    };
    destination.verify(load, expected).await.expect("verified");
    let done = destination.publish(load, expected).await?;
    destination.cleanup(load).await.expect("cleaned");
    Ok(done.detail)
}

async fn rows_that_name_their_run_say_which_is_newer(world: &World) {
    for (run, origin, ids) in [
        ("z", None, &[1_i64, 2, 3] as &[i64]),
        ("a", None, &[3]),
        ("b", None, &[2, 4]),
    ] {
        publish_named(world, &named(run, origin), ids).await.expect("published");
    }
    let late = named("ra", Some("a"));
    let said = publish_named(world, &late, &[1, 2, 5]).await.expect("published");
    assert!(said.contains("1 row of them older"), "{said}");
    let sql = "SELECT id || ' ' || name || ' ' || _haulage_run FROM named ORDER BY 1";
    assert_eq!(
        world.texts(sql).await.expect("rows"),
        ["1 ra ra", "2 b b", "3 a a", "4 b b", "5 ra ra"]
    );
    let standing = world.destination.standing(&late).await.expect("an answer");
    assert!(
        matches!(&standing.rows, Rows::Untold(why) if why.starts_with("1 of its rows were older")),
        "{standing:?}"
    );
    // One that published without saying whose rows are whose leaves it open.
    let mut silent = named("c", None);
    silent.provenance = false;
    publish_named(world, &silent, &[9]).await.expect("published");
    let unknown = named("r2", Some("a"));
    let refused = publish_named(world, &unknown, &[3])
        .await
        .expect_err("of c nobody knows");
    assert!(refused.message.contains("key (id)=(3)"), "{refused}");
    world.destination.revert(&unknown).await.expect("nothing to undo");
    take_back(world, &silent).await;
    take_back(world, &late).await;
    let rows = world.texts(sql).await.expect("rows");
    assert_eq!(rows, ["1 z z", "2 b b", "3 a a", "4 b b"]);
}

/// A replay that knows what chunks of `a` and of its replays have read: 0.0 and 0.1 parts of one object, 0.2 another one.
fn in_order(run: &str) -> LoadContext {
    let chunk = |index| ChunkId {
        stage: StageId(0),
        index,
    };
    let all = [(0, 0, 0), (1, 0, 100), (2, 1, 0)];
    let all = all.map(|(index, object, start)| (chunk(index), Part { object, start }));
    let runs = ["a", "ra", "rra", run];
    LoadContext {
        read: Arc::new(runs.map(|run| (RunId::from(run), all.to_vec())).into()),
        ..named(run, Some("a"))
    }
}

async fn of_two_rows_of_one_object_the_later_stands(world: &World) {
    let sql = "SELECT id || ' ' || name || ' ' || _haulage_line FROM named ORDER BY 1";
    let origin = [(1, "0.0", 9), (2, "0.0", 2), (3, "0.1", 101), (4, "0.2", 1)];
    publish_lines(world, &named("a", None), &origin)
        .await
        .expect("published");
    let before = world.texts(sql).await.expect("rows");
    assert_eq!(before, ["1 a 9", "2 a 2", "3 a 101", "4 a 1"]);
    // Behind 1 and the part before that of 3; 2 stands before its row.
    let late = in_order("ra");
    let rows = [(1, "0.0", 5), (2, "0.0", 5), (3, "0.0", 200), (6, "0.0", 7)];
    let said = publish_lines(world, &late, &rows).await.expect("published");
    assert!(said.contains("2 rows of them older than what stands there"), "{said}");
    let after = ["1 a 9", "2 ra 5", "3 a 101", "4 a 1", "6 ra 7"];
    assert_eq!(world.texts(sql).await.expect("rows"), after);
    // Another replay is of the same time.
    let later = in_order("rra");
    let said = publish_lines(world, &later, &[(2, "0.0", 3), (6, "0.1", 8)])
        .await
        .expect("published");
    assert!(said.contains("1 row of them older"), "{said}");
    let after = ["1 a 9", "2 ra 5", "3 a 101", "4 a 1", "6 rra 8"];
    assert_eq!(world.texts(sql).await.expect("rows"), after);
    // Of another object, of the very same line, and where nobody knows what a chunk has read.
    for (run, row) in [("x", (4, "0.0", 9)), ("y", (2, "0.0", 5)), ("z", (1, "0.7", 20))] {
        let load = in_order(run);
        let refused = publish_lines(world, &load, &[(9, "0.0", 90), row]).await;
        let refused = refused.expect_err("which is later isn't known");
        for part in [format!("key (id)=({})", row.0).as_str(), "run a, which", "`newest:"] {
            assert!(
                refused.class == Class::Permanent && refused.message.contains(part),
                "{part}: {refused}"
            );
        }
        world.destination.revert(&load).await.expect("nothing to undo");
        assert_eq!(world.texts(sql).await.expect("rows"), after);
    }
    take_back(world, &later).await;
    take_back(world, &late).await;
    assert_eq!(world.texts(sql).await.expect("rows"), before);
}

async fn what_the_origin_has_written_is_overwritten_by_nobody_unseen(world: &World) {
    existing(world).await;
    whole(world, &merges("a", None), &[(2, Some("a"), 1.0), (3, Some("a"), 1.0)]).await;
    let after = ["1 one", "2 a", "3 a"];
    assert_eq!(things(world).await, after);
    let refuse = async |load: &LoadContext, id: i32| {
        let refused = world
            .publish(load, &[(9, Some("late"), 1.0), (id, Some("late"), 1.0)])
            .await;
        let refused = refused.expect_err("which row is later isn't known");
        for part in [
            &format!("key (id)=({id})"),
            "run a, which",
            "`newest:",
            "provenance: true",
        ] {
            assert!(
                refused.class == Class::Permanent && refused.message.contains(part),
                "{part}: {refused}"
            );
        }
        world.destination.revert(load).await.expect("nothing to undo");
    };
    // One that it has changed, and one that it has added.
    refuse(&merges("x", Some("a")), 2).await;
    refuse(&merges("y", Some("a")), 3).await;
    assert_eq!(things(world).await, after);
    // What was there before it is older than its rows.
    let replay = merges("ra", Some("a"));
    whole(world, &replay, &[(1, Some("ra"), 1.0), (7, Some("ra"), 1.0)]).await;
    assert_eq!(things(world).await, ["1 ra", "2 a", "3 a", "7 ra"]);
    refuse(&merges("z", Some("a")), 7).await;
    take_back(world, &replay).await;

    // A row that it has found just as it was, too, if rows were rejected beside it.
    let rejecting = LoadContext {
        rejects: true,
        ..merges("e", None)
    };
    let before = all_of(world).await;
    whole(world, &rejecting, &[(1, Some("one"), 1.5), (8, Some("e"), 1.0)]).await;
    let refused = world
        .publish(&merges("re", Some("e")), &[(1, Some("late"), 1.0), (10, None, 1.0)])
        .await;
    let refused = refused.expect_err("which row is later isn't known");
    assert!(refused.message.contains("key (id)=(1)"), "{refused}");
    world
        .destination
        .revert(&merges("re", Some("e")))
        .await
        .expect("nothing to undo");
    let others = merges("re2", Some("e"));
    whole(world, &others, &[(2, Some("late"), 1.0), (10, None, 1.0)]).await;
    take_back(world, &others).await;
    take_back(world, &rejecting).await;
    assert_eq!(all_of(world).await, before);

    // Of a table that it has made, every row is its own; and where a revert isn't possible any more, any may be.
    let made = |load: LoadContext| LoadContext {
        table: "made".into(),
        ..load
    };
    whole(world, &made(merges("a2", None)), &[(1, Some("a"), 1.0), (2, None, 1.0)]).await;
    let refused = world
        .publish(&made(merges("r2", Some("a2"))), &[(2, None, 2.0), (3, None, 2.0)])
        .await;
    let refused = refused.expect_err("which row is later isn't known");
    assert!(refused.message.contains("key (id)=(2)"), "{refused}");
    world
        .destination
        .revert(&made(merges("r2", Some("a2"))))
        .await
        .expect("nothing to undo");
    whole(
        world,
        &made(merges("r3", Some("a2"))),
        &[(3, None, 2.0), (4, None, 2.0)],
    )
    .await;
    let cleaned = LoadContext {
        keep_previous: 0,
        ..merges("a3", None)
    };
    whole(world, &cleaned, &[(3, Some("a3"), 1.0), (4, Some("a3"), 1.0)]).await;
    let late = merges("r4", Some("a3"));
    let refused = world.publish(&late, &[(1, None, 2.0), (5, None, 2.0)]).await;
    let refused = refused.expect_err("what it has written isn't known");
    assert!(refused.message.contains("key (id)=(1)"), "{refused}");
}

async fn what_was_replaced_is_not_replayed(world: &World) {
    existing(world).await;
    whole(world, &merges("a", None), &[(3, Some("a"), 1.0)]).await;
    let late = merges("ra", Some("a"));
    world
        .stage(&late, &[(5, Some("late"), 1.0), (6, None, 1.0)])
        .await
        .expect("staged");
    world.destination.verify(&late, expected(2)).await.expect("verified");
    let all = kept("all", Mode::Replace, &["id"], 9);
    whole(world, &all, &[(1, Some("all"), 1.0), (2, None, 1.0)]).await;
    let before = all_of(world).await;
    // By whoever was staged already, and by whoever begins now; also where rows are only added.
    let added = LoadContext {
        mode: Mode::Append,
        key: Vec::new(),
        ..merges("r2", Some("a"))
    };
    let refused = [
        world.destination.publish(&late, expected(2)).await,
        world.destination.prepare(&added).await,
    ];
    for refused in refused {
        let refused = refused.expect_err("what it adds to is gone");
        assert!(
            refused.class == Class::Permanent
                && refused
                    .message
                    .contains("run all has replaced what run a had published"),
            "{refused}"
        );
    }
    world.destination.revert(&late).await.expect("nothing to undo");
    assert_eq!(all_of(world).await, before);
    world.destination.recall(&asked(&all, 1)).await.expect("it can be");
    take_back(world, &all).await;
    whole(world, &merges("r3", Some("a")), &[(5, Some("late"), 1.0)]).await;
    assert_eq!(things(world).await, ["1 one", "2 old", "3 a", "5 late"]);
}
