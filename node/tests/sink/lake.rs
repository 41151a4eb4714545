//! What only files have: manifests that are torn or contended, files without a marker, stores that don't honour conditions.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, ChunkId, StageId};
use haulage_core::watermark::Watermark;
use haulage_node::sink::{Destination, Expected, LoadContext, registry};
use haulage_plan::definition::{FileFormat, Layout, Mode};
use haulage_test_support::s3::{Conditions, S3, SECRET_KEY};

use super::files;
use super::inside::{is_inside, run, settings};
use super::later::whole;
use super::load::{CHUNK, TestRow, batch, load, marker};
use super::world::World;

crate::on_files!(
    inspect_touches_nothing,
    what_files_do_not_take_is_said,
    two_who_publish_at_once_make_two_versions,
    a_manifest_that_nothing_names_is_none,
    a_state_that_can_not_be_read_is_never_an_empty_table,
    a_file_without_a_marker_is_no_row,
    a_commit_that_meets_a_verify_is_counted_or_fenced,
    one_table_under_all_its_names,
    questions_read_and_write_nothing,
    readers_see_a_version_or_the_next,
);

const ROWS: &[TestRow] = &[(1, Some("one"), 1.5), (2, None, 2.5)];

fn append(run: &str) -> LoadContext {
    load(run, Mode::Append, &[])
}

async fn inspect_touches_nothing(world: &World) {
    let replace = load("a", Mode::Replace, &["id"]);
    let found = world.destination.inspect(&replace).await.expect("an inspection");
    assert!(!found.exists && found.rows.is_none() && found.misfits.is_empty() && found.ddl.is_empty());
    assert!(found.changes[0].contains("creates things"), "{:?}", found.changes);
    assert_eq!(files::all_files(&world.lake()), Vec::<std::path::PathBuf>::new());
    whole(world, &replace, ROWS).await;
    let before = files::all_files(&world.lake());
    let found = world.destination.inspect(&append("b")).await.expect("an inspection");
    assert_eq!((found.exists, found.rows), (true, Some(2)));
    assert!(
        found.changes[0].contains("adds rows to the 2 rows"),
        "{:?}",
        found.changes
    );
    assert_eq!(files::all_files(&world.lake()), before);
}

async fn what_files_do_not_take_is_said(world: &World) {
    let plain = files::plain(&world.kind).await;
    whole(world, &append("base"), ROWS).await;
    let list = DataType::new_list(DataType::Int32, true);
    let other = |fields: Vec<Field>| LoadContext {
        schema: Arc::new(Schema::new(fields)),
        ..append("c")
    };
    let divided = |by: &[&str]| LoadContext {
        layout: Layout {
            partition_by: by.iter().map(|name| (*name).to_owned()).collect(),
            ..Layout::default()
        },
        ..load("d", Mode::Replace, &[])
    };
    let csv = LoadContext {
        layout: Layout {
            format: Some(FileFormat::Csv),
            ..Layout::default()
        },
        ..append("e")
    };
    for (n, (load, words)) in [
        (load("a", Mode::Merge, &["id"]), &["can't be merged into"][..]),
        (
            load("b", Mode::Append, &["id"]),
            &["keeps a key unique", "leave `key` out"],
        ),
        (
            other(vec![
                Field::new("id", DataType::Int64, false),
                Field::new("more", list, true),
            ]),
            &[
                "column id is bigint in the load and int in things",
                "column more: files have no place for",
                "column name (text) of things is not among the load's columns",
            ],
        ),
        (
            other(vec![
                Field::new("name", DataType::Utf8, true),
                Field::new("id", DataType::Int32, false),
                Field::new("amount", DataType::Float64, true),
            ]),
            &["in another order: id, name, amount"],
        ),
        (divided(&["nothing"]), &["partition column nothing is not among"]),
        (divided(&["amount"]), &["partition column amount is double"]),
        (divided(&["id", "name", "amount"]), &["names all columns"]),
        (csv, &["things is of parquet files, and the load's are csv"]),
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("x{n}").as_str().into();
        let load = LoadContext { run, ..load };
        let found = plain.inspect(&load).await.expect("an inspection").misfits.join("; ");
        let failure = plain.prepare(&load).await.expect_err("it doesn't fit");
        assert_eq!(failure.class, Class::Permanent);
        for word in words {
            assert!(
                found.contains(word) && failure.message.contains(word),
                "{word}: {found}: {failure}"
            );
        }
        plain.discard(&load).await.expect("nothing to discard");
    }
    for table in ["../things", "/etc/things", "a/_haulage", ""] {
        let load = LoadContext {
            table: table.to_owned(),
            ..append("f")
        };
        let failure = plain.prepare(&load).await.expect_err("no table");
        assert!(failure.message.contains("no path of a table"), "{failure}");
        plain.discard(&load).await.expect("nothing to discard");
    }
}

async fn sealed(destination: &Arc<dyn Destination>, load: &LoadContext, rows: &[TestRow]) -> Result<Expected, Failure> {
    destination.prepare(load).await?;
    destination.begin(load, CHUNK, Attempt(1)).await?;
    let mut writer = destination.segment(load, CHUNK, Attempt(1)).await?;
    writer.write(&batch(load, rows)).await?;
    let committed = writer.commit(marker(CHUNK, 0, Attempt(1))).await?;
    let expected = Expected {
        rows: committed.marker.rows,
        segments: 1,
    };
    destination.verify(load, expected).await?;
    Ok(expected)
}

/// Several nodes, each with a client of its own, append at once: nobody's rows go, and every version is made once.
async fn two_who_publish_at_once_make_two_versions(world: &World) {
    const RUNS: i32 = 6;
    let mut publishing = Vec::new();
    for n in 0..RUNS {
        let destination = world.reopened().await;
        let load = append(&format!("r{n}"));
        let expected = sealed(&destination, &load, &[(n, Some("row"), 0.5)])
            .await
            .expect("sealed");
        publishing.push(async move {
            let report = destination.publish(&load, expected).await.expect("published");
            destination.cleanup(&load).await.expect("its run is over");
            report.detail
        });
    }
    let publishing: Vec<_> = publishing.into_iter().map(tokio::spawn).collect();
    let mut versions = BTreeSet::new();
    for publish in publishing {
        let detail = publish.await.expect("no panic");
        let (_, version) = detail.rsplit_once("version ").expect("a version");
        versions.insert(version.parse::<u64>().expect("a number"));
    }
    assert_eq!(versions, (1..=6).collect());
    let rows: Vec<String> = (0..RUNS).map(|n| format!("{n} row 0.5")).collect();
    assert_eq!(world.rows("things").await, Some(rows));
    assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
}

/// A publisher that dies between its manifest and the state leaves a manifest, whole or torn, that is of no version.
async fn a_manifest_that_nothing_names_is_none(world: &World) {
    whole(world, &append("a"), ROWS).await;
    let versions = world.lake().join("things/_haulage/versions");
    for torn in ["0000000002-0123456789abcdef.json", "0000000009-0123456789abcdef.json"] {
        std::fs::write(versions.join(torn), "{\"version\": 2, \"files\": [").expect("written");
    }
    assert_eq!(world.rows("things").await.expect("a table").len(), 2);
    whole(world, &append("b"), &[(3, None, 3.5)]).await;
    assert_eq!(world.rows("things").await.expect("a table").len(), 3);
    world.destination.revert(&append("b")).await.expect("reverted");
    assert_eq!(world.rows("things").await.expect("a table").len(), 2);
    // A damaged state is nobody's guess.
    std::fs::write(world.lake().join("things/_haulage/table.json"), "{\"format\": 1, ").expect("written");
    let failure = world.reopened().await.prepare(&append("c")).await.expect_err("damaged");
    assert_eq!(failure.class, Class::Permanent);
    assert!(failure.message.contains("table.json is damaged"), "{failure}");
}

/// Cut off, not JSON, of a later release, or gone: whoever looks is told which object it is, and nobody writes over it.
async fn a_state_that_can_not_be_read_is_never_an_empty_table(world: &World) {
    let (first, second) = (append("a"), append("b"));
    whole(world, &first, ROWS).await;
    let ready = sealed(&world.destination, &second, ROWS).await.expect("verified");
    let path = world.lake().join("things/_haulage/table.json");
    let good = std::fs::read(&path).expect("a state");
    let damaged = ["table.json is damaged", "put back a copy"];
    let later = [
        "table.json is of a later release",
        "its format is 9",
        "upgrade this node",
    ];
    let cut = String::from_utf8_lossy(&good[..good.len() / 2]).into_owned();
    for (text, words) in [
        (Some(""), &damaged[..]),
        (Some(cut.as_str()), &damaged),
        (Some("<Error><Code>InternalError</Code></Error>"), &damaged),
        (Some("null"), &damaged),
        (Some("[]"), &damaged),
        (Some("{}"), &damaged),
        (Some("{\"format\": 1}"), &damaged),
        (Some("{\"format\": 9, \"version\": \"seven\"}"), &later),
        (None, &["table.json is gone", "was not dropped", "put back a copy"]),
    ] {
        match text {
            Some(text) => std::fs::write(&path, text).expect("written"),
            None => std::fs::remove_file(&path).expect("removed"),
        }
        let there = world.reopened().await;
        let mark = Watermark {
            destination: "lake".to_owned(),
            pipeline: "p".to_owned(),
            source: "s".to_owned(),
            table: "things".to_owned(),
            column: "at".to_owned(),
            value: Some("1".to_owned()),
            run: String::new(),
            by: String::new(),
            at: String::new(),
            of: String::new(),
            replaced_by: String::new(),
        };
        let key = [("id".to_owned(), "1".to_owned())];
        for (what, failure) in [
            ("inspect", there.inspect(&first).await.err()),
            ("prepare", there.prepare(&append("c")).await.err()),
            ("begin", there.begin(&second, CHUNK, Attempt(2)).await.err()),
            ("verify", there.verify(&second, ready).await.err()),
            ("ask", there.ask(&second, ready, &"SELECT '1'".into()).await.err()),
            ("publish", there.publish(&second, ready).await.err()),
            ("recall", there.recall(&first).await.err()),
            ("release", there.release(&first).await.err()),
            ("revert", there.revert(&first).await.err()),
            ("discard", there.discard(&second).await.err()),
            ("cleanup", there.cleanup(&first).await.err()),
            ("standing", there.standing(&first).await.err()),
            ("look_up", there.look_up("things", &key, 1).await.err()),
            ("watermarks", there.watermarks_of(&first).await.err()),
            ("set", there.set_watermark(&mark, None).await.err()),
        ] {
            let failure = failure.unwrap_or_else(|| panic!("{what} takes {text:?} for a state"));
            assert_eq!(failure.class, Class::Permanent, "{what} of {text:?}: {failure}");
            for word in words {
                assert!(failure.message.contains(word), "{what} of {text:?}: {word}: {failure}");
            }
        }
        assert_eq!(
            std::fs::read_to_string(&path).ok().as_deref(),
            text,
            "it is written over"
        );
    }
    std::fs::write(&path, good).expect("written");
    let published = world.reopened().await.publish(&second, ready).await;
    published.expect("nothing is lost");
    assert_eq!(world.rows("things").await.expect("a table").len(), 4);
}

/// A node that dies between its files and the marker: the files are there, and are no rows.
async fn a_file_without_a_marker_is_no_row(world: &World) {
    let load = append("a");
    let expected = world.stage(&load, ROWS).await.expect("staged");
    let staged = files::all_files(&world.lake().join("things/data"));
    let orphan = staged[0].with_file_name("0-0-9-a1-0123456789abcdef.parquet");
    std::fs::copy(&staged[0], &orphan).expect("copied");
    world.destination.verify(&load, expected).await.expect("verified");
    world.destination.publish(&load, expected).await.expect("published");
    assert_eq!(world.rows("things").await.expect("a table"), ["1 one 1.5", "2 ~ 2.5"]);
    assert!(orphan.exists());
    world.destination.cleanup(&load).await.expect("cleaned");
    assert!(!orphan.exists(), "it is collected");
    assert_eq!(world.rows("things").await.expect("a table").len(), 2);
}

/// A verify comes into the middle of commits, from another node: whatever it counts is what is published.
async fn a_commit_that_meets_a_verify_is_counted_or_fenced(world: &World) {
    for round in 0..3 {
        let load = append(&format!("r{round}"));
        world.destination.prepare(&load).await.expect("prepared");
        let mut writers = Vec::new();
        for index in 0..8 {
            let chunk = ChunkId {
                stage: StageId(0),
                index,
            };
            world.destination.begin(&load, chunk, Attempt(1)).await.expect("begun");
            let mut writer = world
                .destination
                .segment(&load, chunk, Attempt(1))
                .await
                .expect("a writer");
            writer.write(&batch(&load, &[(1, None, 0.5)])).await.expect("taken");
            writers.push(tokio::spawn(writer.commit(marker(chunk, 0, Attempt(1)))));
        }
        let verifier = world.reopened().await;
        let all = Expected { rows: 8, segments: 8 };
        let verified = verifier.verify(&load, all).await;
        let mut committed = 0;
        for writer in writers {
            match writer.await.expect("no panic") {
                Ok(done) => committed += done.marker.rows,
                Err(refused) => assert_eq!(Failure::from(refused).class, Class::Fenced),
            }
        }
        match verified {
            Ok(report) => assert_eq!((report.rows, committed), (8, 8)),
            Err(failure) => {
                assert_eq!(failure.class, Class::StagingLost, "{failure}");
                assert!(
                    failure.message.contains(&format!("with {committed} row")),
                    "{committed}: {failure}"
                );
            }
        }
        world.destination.discard(&load).await.expect("discarded");
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
}

async fn one_table_under_all_its_names(world: &World) {
    let identity = async |destination: &Arc<dyn Destination>, table: &str| {
        let load = LoadContext {
            table: table.to_owned(),
            ..append("a")
        };
        destination.inspect(&load).await.expect("an inspection").identity
    };
    let things = identity(&world.destination, "things").await;
    assert_eq!(identity(&world.reopened().await, "things").await, things);
    assert_ne!(identity(&world.destination, "others").await, things);
    let elsewhere = World::folder().await;
    assert_ne!(identity(&elsewhere.destination, "things").await, things);
}

async fn questions_read_and_write_nothing(world: &World) {
    whole(world, &append("earlier"), ROWS).await;
    let load = append("a");
    let expected = sealed(
        &world.destination,
        &load,
        &[(1, Some("x"), 0.5), (2, None, 1.5), (3, Some("y"), 2.5)],
    )
    .await
    .expect("sealed");
    let ask = async |question: &str| world.destination.ask(&load, expected, &question.into()).await;
    let answer = ask("SELECT CAST(count(*) AS text), CAST(sum(amount) AS text), min(name), NULL FROM staged").await;
    let texts = |values: &[Option<&str>]| Ok(values.iter().map(|value| value.map(str::to_owned)).collect::<Vec<_>>());
    assert_eq!(answer, texts(&[Some("3"), Some("4.5"), Some("x"), None]));
    let earlier = ask("SELECT sum(rows) FROM _haulage_loads WHERE state = 'published'").await;
    assert_eq!(earlier, texts(&[Some("2")]));
    assert_eq!(ask("SELECT name FROM staged WHERE id = 99").await, texts(&[None]));
    let before = files::all_files(&world.lake());
    for question in [
        "CREATE TABLE evil AS SELECT 1",
        "COPY staged TO '/tmp/haulage-evil.csv'",
        "DROP TABLE staged",
        "SET datafusion.execution.batch_size = 1",
        "SELECT id FROM staged",
        "SELECT * FROM '/etc/passwd'",
        "nonsense",
    ] {
        let failure = ask(question).await.expect_err(question);
        assert_eq!(failure.class, Class::Permanent, "{failure}");
    }
    assert!(!Path::new("/tmp/haulage-evil.csv").exists());
    assert_eq!(files::all_files(&world.lake()), before);
    files::lose_a_file(&world.lake(), "things");
    let lost = ask("SELECT CAST(sum(amount) AS text) FROM staged")
        .await
        .expect_err("its file is gone");
    assert_eq!(lost.class, Class::StagingLost, "{lost}");
}

/// Who reads while runs replace the table sees one of them whole.
async fn readers_see_a_version_or_the_next(world: &World) {
    let rows = |run: i32| {
        (0..20)
            .map(|id| (id, Some("row"), f64::from(run)))
            .collect::<Vec<TestRow>>()
    };
    let kept = |run: i32| LoadContext {
        keep_previous: 1,
        ..load(&format!("r{run}"), Mode::Replace, &["id"])
    };
    whole(world, &kept(0), &rows(0)).await;
    let lake = world.lake();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let reader = tokio::task::spawn_blocking(move || {
        let mut looks = 0;
        while stopped.try_recv().is_err() {
            let rows = files::rows(&lake, "things").expect("a table");
            let of: BTreeSet<&str> = rows.iter().filter_map(|row| row.rsplit(' ').next()).collect();
            assert_eq!((rows.len(), of.len()), (20, 1), "{rows:?}");
            looks += 1;
        }
        looks
    });
    for run in 1..4 {
        let load = kept(run);
        world.publish(&load, &rows(run)).await.expect("published");
        // What a reader may be reading is kept for a revert.
        world.destination.cleanup(&load).await.expect("cleaned");
    }
    stop.send(()).expect("the reader is there");
    assert!(reader.await.expect("a reader that ended well") > 0);
}

/// A server that takes the condition and ignores it would let one node overwrite another's marker.
#[test]
fn a_store_that_ignores_conditions_is_refused() {
    if !is_inside("lake::a_store_that_ignores_conditions_is_refused", SECRET_KEY) {
        return;
    }
    run(async {
        let server = S3::start_with(&["lake"], Conditions::Ignored).await.expect("a server");
        let settings = settings(&server.endpoint());
        let lake = registry::open_with("lake", "s3://lake/deep/er", 4, None, &settings).await;
        let failure = lake
            .expect("opening asks nothing")
            .prepare(&append("a"))
            .await
            .expect_err("unsafe");
        assert_eq!(failure.class, Class::Permanent);
        assert!(
            failure.message.contains("destination lake") && failure.message.contains("If-None-Match"),
            "{failure}"
        );
        assert_eq!(
            files::all_files(&server.folder("lake")),
            Vec::<std::path::PathBuf>::new()
        );
        let missing = registry::open_with("lake", "s3://nowhere/x", 4, None, &settings).await;
        let missing = missing.expect("opening asks nothing");
        let failure = missing.inspect(&append("a")).await.expect_err("no bucket");
        assert!(failure.message.contains("bucket nowhere does not exist"), "{failure}");
        missing.revert(&append("a")).await.expect("nothing to revert");
        missing.discard(&append("a")).await.expect("nothing to discard");
    });
}

#[tokio::test]
async fn a_folder_that_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}", folder.path().join("missing").display());
    let lake = registry::open("lake", &url).await.expect("opening touches nothing");
    for failure in [
        lake.inspect(&append("a")).await.map(drop).expect_err("no folder"),
        lake.prepare(&append("a")).await.map(drop).expect_err("no folder"),
    ] {
        assert_eq!(failure.class, Class::Permanent);
        assert!(failure.message.contains("there is no folder"), "{failure}");
    }
    lake.revert(&append("a")).await.expect("nothing to revert");
    lake.discard(&append("a")).await.expect("nothing to discard");
    assert!(!folder.path().join("missing").exists());
}

/// The keys of a load that only files have, at a database.
#[tokio::test]
async fn a_database_refuses_what_is_said_of_files() {
    for world in [World::sqlite().await, World::postgres().await] {
        let layout = Layout {
            format: Some(FileFormat::Csv),
            ..Layout::default()
        };
        let load = LoadContext {
            table: "sales/orders".into(),
            layout,
            ..append("a")
        };
        let misfits = world
            .destination
            .inspect(&load)
            .await
            .expect("an inspection")
            .misfits
            .join("; ");
        for words in ["`format` is for files", "table sales/orders is a path"] {
            assert!(misfits.contains(words), "{misfits}");
        }
        world.destination.prepare(&load).await.expect_err("it doesn't fit");
    }
}
