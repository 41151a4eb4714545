//! Segments of files that are larger than what is kept of them in memory: written little by little, they count whole or not
//! at all, and of one that doesn't count nothing stays.

use std::path::PathBuf;
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::Attempt;
use haulage_node::sink::{Expected, LoadContext, Refused, SegmentWriter};
use haulage_plan::definition::{FileFormat, Layout, Mode};

use super::files;
use super::load::{CHUNK, TestRow, batch, load, marker};
use super::world::World;

crate::on_files!(
    more_rows_than_are_kept_become_several_files,
    a_segment_that_stands_is_not_there_twice,
    an_earlier_attempt_leaves_nothing,
    a_segment_that_is_given_up_leaves_nothing,
    a_segment_has_hundreds_of_partitions,
    too_many_partitions_are_refused,
    no_row_is_still_a_table,
);

const BATCH: i32 = 100;
/// So many batches of so large texts are more than a segment keeps.
const BATCHES: i32 = 6;
const TEXT: usize = 64 << 10;

fn large() -> &'static str {
    static LARGE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    LARGE.get_or_init(|| "x".repeat(TEXT))
}

fn of(load: LoadContext, format: FileFormat, by: &[&str]) -> LoadContext {
    let layout = Layout {
        format: Some(format),
        partition_by: by.iter().map(|name| (*name).to_owned()).collect(),
        ..Layout::default()
    };
    LoadContext { layout, ..load }
}

fn append(run: &str) -> LoadContext {
    of(load(run, Mode::Append, &[]), FileFormat::Csv, &[])
}

async fn write_more(writer: &mut Box<dyn SegmentWriter>, load: &LoadContext, batches: i32) -> Result<(), Refused> {
    for n in 0..batches {
        let rows: Vec<TestRow> = (0..BATCH).map(|row| (n * BATCH + row, Some(large()), 0.5)).collect();
        writer.write(&batch(load, &rows)).await?;
    }
    Ok(())
}

/// Begun by an attempt, with a segment of which files are written.
async fn begun(world: &World, load: &LoadContext, attempt: Attempt) -> Box<dyn SegmentWriter> {
    world.destination.prepare(load).await.expect("prepared");
    world.destination.begin(load, CHUNK, attempt).await.expect("begun");
    let mut writer = world.destination.segment(load, CHUNK, attempt).await.expect("a writer");
    let before = written(world).len();
    write_more(&mut writer, load, BATCHES).await.expect("taken");
    assert_eq!(
        written(world).len(),
        before + 2,
        "a file, and its rows while they are staged"
    );
    writer
}

/// All files with rows.
fn written(world: &World) -> Vec<PathBuf> {
    let table = world.lake().join("things");
    let staged = files::all_files(&table.join("_haulage/loads"));
    let staged = staged
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending != "json"));
    files::all_files(&table.join("data"))
        .into_iter()
        .chain(staged)
        .collect()
}

async fn more_rows_than_are_kept_become_several_files(world: &World) {
    let load = append("a");
    let mut writer = begun(world, &load, Attempt(1)).await;
    assert!(files::manifest(&world.lake(), "things").is_none());
    writer.write(&batch(&load, &[(-1, None, 1.5)])).await.expect("taken");
    let committed = writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let rows = (BATCHES * BATCH + 1) as u64;
    assert!(committed.fresh && committed.marker.rows == rows);
    let expected = Expected { rows, segments: 1 };
    world.destination.verify(&load, expected).await.expect("verified");
    let asked = world
        .destination
        .ask(&load, expected, &"SELECT count(DISTINCT id) FROM staged".into())
        .await;
    assert_eq!(asked, Ok(vec![Some(rows.to_string())]));
    world.destination.publish(&load, expected).await.expect("published");
    world.destination.cleanup(&load).await.expect("cleaned");
    let files = files::files(&world.lake(), "things").expect("a table");
    let counts: Vec<_> = files.iter().map(|(_, said)| said["rows"].clone()).collect();
    assert_eq!(counts, [BATCHES * BATCH, 1]);
    let bytes: u64 = files.iter().filter_map(|(_, said)| said["bytes"].as_u64()).sum();
    assert_eq!(committed.bytes, bytes);
    assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
}

/// An attempt whose answer was lost is repeated: nothing is there twice, and what the second has written goes.
async fn a_segment_that_stands_is_not_there_twice(world: &World) {
    let load = append("a");
    let first = begun(world, &load, Attempt(1)).await;
    first.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let before = written(world);
    let second = begun(world, &load, Attempt(1)).await;
    let again = second.commit(marker(CHUNK, 0, Attempt(1))).await.expect("it stands");
    assert!(!again.fresh && again.bytes == 0 && again.marker.rows == (BATCHES * BATCH) as u64);
    assert_eq!(written(world), before);
}

async fn an_earlier_attempt_leaves_nothing(world: &World) {
    let load = append("a");
    let late = begun(world, &load, Attempt(1)).await;
    let mut later = begun(world, &load, Attempt(1)).await;
    world.destination.begin(&load, CHUNK, Attempt(2)).await.expect("begun");
    let refused = write_more(&mut later, &load, BATCHES).await.expect_err("fenced");
    assert_eq!(Failure::from(refused).class, Class::Fenced);
    assert_eq!(written(world).len(), 4, "it has written nothing more");
    drop(later);
    let refused = late.commit(marker(CHUNK, 0, Attempt(1))).await.expect_err("fenced");
    assert_eq!(Failure::from(refused).class, Class::Fenced);
    until_nothing_is_written(world).await;
}

async fn until_nothing_is_written(world: &World) {
    let gone = async {
        while !written(world).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
    assert!(gone.is_ok(), "left: {:?}", written(world));
}

async fn a_segment_that_is_given_up_leaves_nothing(world: &World) {
    let load = append("a");
    drop(begun(world, &load, Attempt(1)).await);
    until_nothing_is_written(world).await;
    // One whose commit is refused for a row of a later file.
    let load = of(load, FileFormat::Csv, &["name"]);
    let mut writer = world
        .destination
        .segment(&load, CHUNK, Attempt(1))
        .await
        .expect("a writer");
    let rows: Vec<TestRow> = (0..1 << 17).map(|id| (id, None, 0.5)).collect();
    for _ in 0..8 {
        writer.write(&batch(&load, &rows)).await.expect("taken");
    }
    assert_eq!(written(world).len(), 2);
    let rows = [(1, Some("fits"), 0.5), (2, Some(large()), 0.5)];
    writer.write(&batch(&load, &rows)).await.expect("it is looked at later");
    match writer.commit(marker(CHUNK, 0, Attempt(1))).await {
        Err(Refused::Row(bad)) => assert_eq!((bad.at, bad.column.as_deref()), ((1 << 20) + 1, Some("name"))),
        other => panic!("{other:?}"),
    }
    assert_eq!(written(world), Vec::<PathBuf>::new());
}

async fn a_segment_has_hundreds_of_partitions(world: &World) {
    let load = of(load("a", Mode::Append, &[]), FileFormat::Parquet, &["id"]);
    let rows: Vec<TestRow> = (0..1_200).map(|row| (row % 400, None, f64::from(row))).collect();
    let expected = world.stage(&load, &rows).await.expect("staged");
    world.destination.verify(&load, expected).await.expect("verified");
    world.destination.publish(&load, expected).await.expect("published");
    let found = files::files(&world.lake(), "things").expect("a table");
    // The first segment has 600 rows of 400 partitions, and so has the second.
    assert_eq!(found.len(), 800);
    for (path, said) in &found {
        let amounts: Vec<i32> =
            files::parquet(path)
                .iter()
                .flat_map(|batch| {
                    let amounts = batch.column_by_name("amount").expect("a column").clone();
                    let amounts =
                        datafusion::arrow::compute::cast(&amounts, &datafusion::arrow::datatypes::DataType::Int32);
                    let amounts = amounts.expect("whole numbers");
                    let amounts = datafusion::arrow::array::AsArray::as_primitive::<
                        datafusion::arrow::datatypes::Int32Type,
                    >(&amounts);
                    amounts.values().to_vec()
                })
                .collect();
        let id: i32 = said["partition"][0]
            .as_str()
            .and_then(|id| id.parse().ok())
            .expect("an id");
        assert!(!amounts.is_empty() && amounts.is_sorted(), "{said}");
        assert!(amounts.iter().all(|amount| amount % 400 == id), "{said}: {amounts:?}");
        assert!(path.display().to_string().contains(&format!("/id={id}/")));
    }
    let rows: u64 = found.iter().filter_map(|(_, said)| said["rows"].as_u64()).sum();
    assert_eq!(rows, 1_200);
}

async fn too_many_partitions_are_refused(world: &World) {
    let load = of(load("a", Mode::Append, &[]), FileFormat::Csv, &["id"]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let rows: Vec<TestRow> = (0..10_001).map(|id| (id, None, 0.5)).collect();
    let failure = world.segment(&load, 0, Attempt(1), &rows).await.expect_err("too many");
    assert_eq!(failure.class, Class::Permanent);
    for words in [
        "more than 10000 files",
        "fewer or coarser columns",
        "a lower `checkpoint_rows`",
    ] {
        assert!(failure.message.contains(words), "{failure}");
    }
    assert_eq!(written(world), Vec::<PathBuf>::new());
}

/// A version has a file with the columns, whatever its format and partitions; an append of nothing adds none.
async fn no_row_is_still_a_table(world: &World) {
    for (run, mode, format, by) in [
        ("a", Mode::Append, FileFormat::Parquet, &[][..]),
        ("b", Mode::Append, FileFormat::Parquet, &[]),
        ("c", Mode::Replace, FileFormat::Parquet, &["name"]),
        ("d", Mode::Replace, FileFormat::Csv, &[]),
        ("e", Mode::Replace, FileFormat::Jsonl, &["name"]),
    ] {
        let load = of(load(run, mode, &[]), format, by);
        let expected = world.stage(&load, &[]).await.expect("staged");
        world.destination.verify(&load, expected).await.expect("verified");
        world.destination.verify(&load, expected).await.expect("again");
        let question = "SELECT count(*) FROM staged".into();
        let asked = world.destination.ask(&load, expected, &question).await;
        assert_eq!(asked, Ok(vec![Some("0".to_owned())]));
        world.destination.publish(&load, expected).await.expect("published");
        world.destination.cleanup(&load).await.expect("cleaned");
        let found = files::files(&world.lake(), "things").expect("a table");
        assert_eq!(found.len(), 1, "{run}: {found:?}");
        let (path, said) = &found[0];
        assert_eq!(
            (said["rows"].as_u64(), said["run"] == *run),
            (Some(0), run != "b"),
            "{said}"
        );
        match format {
            FileFormat::Parquet => assert!(files::parquet(path).is_empty()),
            FileFormat::Csv => assert_eq!(std::fs::read(path).expect("a file"), b"id,name,amount\n"),
            FileFormat::Jsonl => assert_eq!(std::fs::read(path).expect("a file"), b""),
        }
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
}
