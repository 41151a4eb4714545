//! The conformance suite of sources: what every kind has to keep, files on this machine and in S3, tables and APIs. A new
//! kind is an entry in `sources/kinds.rs` or `sources/stands.rs`, and a word at the end of this file.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

#[path = "sources/drift.rs"]
mod drift;
#[path = "support/inside.rs"]
mod inside;
#[path = "sources/kinds.rs"]
mod kinds;
#[path = "sources/place.rs"]
mod place;
#[path = "sources/served.rs"]
mod served;
#[path = "sources/stands.rs"]
mod stands;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use futures::{FutureExt, poll};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::{Segment, Source};
use haulage_test_support::wait_for;

use self::drift::columns_are_held_to_the_contract;
use self::kinds::{Kind, Record};
use self::place::Place;

/// A row as it comes out of a source: its line, its text, and what it holds or why it can't be read.
type Row = (u64, Vec<u8>, Result<Record, String>);

/// What a segment is told by: its rows, and where it ends.
type Told = (Vec<Row>, Position, u64, bool);

/// Rows of which every 97th can't be read, and some have no word.
fn records(from: i64, rows: i64) -> Vec<Record> {
    let record = |n: i64| Record {
        id: (n % 97 != 50).then_some(n),
        word: (n % 7 != 3).then(|| format!("word number {n}, ü")),
        amount: n as f64 / 4.0,
        at: 1_357_016_400 + 60 * n,
    };
    (from..from + rows).map(record).collect()
}

/// What has to come of these rows.
fn expected(records: &[Record]) -> Vec<Result<Record, String>> {
    let read = |record: &Record| match record.id {
        Some(_) => Ok(record.clone()),
        None => Err("null_in_required".to_owned()),
    };
    records.iter().map(read).collect()
}

/// The rows of a segment, each once and in order.
fn rows(segment: &Segment) -> Vec<Row> {
    let mut rows: Vec<Option<Result<Record, String>>> = vec![None; segment.rows as usize];
    for batch in &segment.batches {
        let places = batch.column(4).as_primitive::<UInt64Type>();
        for at in 0..batch.num_rows() {
            let place = &mut rows[places.value(at) as usize];
            assert!(place.is_none(), "a row is there twice");
            *place = Some(Ok(record(batch, at)));
        }
    }
    for bad in &segment.unreadable {
        let place = &mut rows[bad.row as usize];
        assert!(place.is_none(), "a row is there twice");
        *place = Some(Err(bad.reason.to_owned()));
    }
    let rows: Vec<_> = (0..)
        .zip(rows)
        .map(|(row, read)| {
            let (line, raw) = segment.raw.row(row).expect("every row has its text");
            (line, raw.to_vec(), read.expect("every row is read or not"))
        })
        .collect();
    assert!(segment.raw.row(segment.rows).is_none());
    assert!(rows.is_sorted_by(|one, other| one.0 < other.0), "lines are in order");
    rows
}

fn record(batch: &RecordBatch, at: usize) -> Record {
    let words = batch.column(1).as_string::<i32>();
    let micros = batch.column(3).as_primitive::<TimestampMicrosecondType>().value(at);
    assert!(batch.column(0).is_valid(at));
    Record {
        id: Some(batch.column(0).as_primitive::<Int64Type>().value(at)),
        word: words.is_valid(at).then(|| words.value(at).to_owned()),
        amount: batch.column(2).as_primitive::<Float64Type>().value(at),
        at: micros / 1_000_000,
    }
}

/// The segments of a chunk from a position on; each is let go before the next is read.
async fn told(source: &dyn Source, chunk: &ChunkSpec, from: Position) -> Result<Vec<Told>, Failure> {
    let mut reader = source.open(chunk, from).await?;
    let mut all = Vec::new();
    while let Some(segment) = reader.next().await? {
        assert!(
            all.last().is_none_or(|(_, _, _, last)| !last),
            "nothing comes after the last"
        );
        all.push((rows(&segment), segment.next, segment.bytes, segment.last));
    }
    assert!(
        all.last().is_some_and(|(_, _, _, last)| *last),
        "a chunk has a last segment"
    );
    Ok(all)
}

async fn all_told(source: &dyn Source) -> Result<Vec<Vec<Told>>, Failure> {
    let mut all = Vec::new();
    for chunk in source.discover(StageId(0)).await? {
        all.push(told(source, &chunk, chunk.start).await?);
    }
    Ok(all)
}

fn flat(chunks: &[Vec<Told>]) -> Vec<&Row> {
    chunks.iter().flatten().flat_map(|(rows, _, _, _)| rows).collect()
}

async fn every_row_is_in_one_chunk_once(kind: &Kind, place: &Place) {
    let all = records(0, 9_000);
    for (number, part) in all.chunks(3_000).enumerate() {
        place.write(&format!("part-{number}.{}", kind.ending), &(kind.file)(part));
    }
    place.write(&format!("other.{}", kind.ending), &(kind.file)(&records(0, 10)));
    let path = format!("part-*.{}", kind.ending);
    let source = place.source(kind, &path, 70_000, 500);
    source.check().await.unwrap();
    assert_eq!(source.columns().await.unwrap(), kinds::columns());
    let chunks = source.discover(StageId(7)).await.unwrap();
    assert_eq!(source.discover(StageId(7)).await.unwrap(), chunks, "in a stable order");
    for (index, chunk) in (0..).zip(&chunks) {
        assert_eq!((chunk.chunk.stage, chunk.chunk.index), (StageId(7), index));
        assert!(chunk.object.starts_with(&place.base) && chunk.bytes > 0, "{chunk:?}");
    }
    assert_eq!(chunks.len() > 3, kind.splits, "{} chunks", chunks.len());
    let cut = all_told(&*source).await.unwrap();
    let read: Vec<_> = flat(&cut).into_iter().map(|(_, _, read)| read.clone()).collect();
    assert_eq!(read, expected(&all));
    for (rows, _, _, last) in cut.iter().flatten() {
        assert!(rows.len() == 500 || *last && rows.len() < 500, "{} rows", rows.len());
    }
    // Lines and texts are the same however a file is cut.
    let whole = all_told(&*place.source(kind, &path, u64::MAX, 1 << 40)).await.unwrap();
    assert_eq!(flat(&cut), flat(&whole));

    let batches = place.source(kind, &path, 70_000, 500).read_all().await.unwrap_err();
    assert_eq!(batches.class, Class::Permanent);
    assert!(batches.message.contains("part-0") && batches.message.contains("column id: null_in_required"));
    let readable: Vec<_> = all.into_iter().filter(|record| record.id.is_some()).collect();
    place.write(&format!("lookup.{}", kind.ending), &(kind.file)(&readable));
    let lookup = place.source(kind, &format!("lookup.{}", kind.ending), 70_000, 500);
    let rows = lookup
        .read_all()
        .await
        .unwrap()
        .iter()
        .map(RecordBatch::num_rows)
        .sum::<usize>();
    assert_eq!(rows, readable.len());
}

async fn every_checkpoint_leads_to_exactly_the_rest(kind: &Kind, place: &Place) {
    place.write(&format!("a.{}", kind.ending), &(kind.file)(&records(0, 3_000)));
    let source = place.source(kind, &format!("a.{}", kind.ending), 100_000, 149);
    let again = place.source(kind, &format!("a.{}", kind.ending), 100_000, 149);
    for chunk in source.discover(StageId(0)).await.unwrap() {
        let straight = told(&*source, &chunk, chunk.start).await.unwrap();
        assert!(straight.len() > 3, "{} segments", straight.len());
        assert_eq!(
            told(&*again, &chunk, chunk.start).await.unwrap(),
            straight,
            "in two attempts"
        );
        for (number, (_, next, _, last)) in straight.iter().enumerate() {
            if !last {
                let rest = told(&*again, &chunk, *next).await.unwrap();
                assert_eq!(rest.len(), straight.len() - number - 1);
                for (mine, theirs) in rest.iter().zip(&straight[number + 1..]) {
                    assert_eq!((mine.1, mine.2, mine.3), (theirs.1, theirs.2, theirs.3));
                    for (mine, theirs) in mine.0.iter().zip(&theirs.0) {
                        assert_eq!(mine, theirs, "after segment {number} of {chunk:?}");
                    }
                    assert_eq!(mine.0.len(), theirs.0.len());
                }
            }
        }
    }
}

async fn an_object_that_changed_is_named(kind: &Kind, place: &Place) {
    let name = format!("a.{}", kind.ending);
    place.write(&name, &(kind.file)(&records(0, 100)));
    let source = place.source(kind, &name, 1 << 20, 10);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let mut reader = source.open(&chunk, chunk.start).await.unwrap();
    assert!(reader.next().await.unwrap().is_some());
    let next = reader.next().await.unwrap().unwrap().next;
    place.write(&name, &(kind.file)(&records(1, 101)));
    for from in [chunk.start, next] {
        let failure = source.open(&chunk, from).await.map(drop).unwrap_err();
        assert_eq!(failure.class, Class::Permanent);
        assert!(
            failure
                .message
                .contains(&format!("{name} has changed since it was discovered")),
            "{failure}"
        );
    }
    place.remove(&name);
    let failure = source.open(&chunk, chunk.start).await.map(drop).unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(failure.message.contains(&format!("{name} does not exist")), "{failure}");
}

async fn a_reader_that_is_dropped_leaves_nothing_running(kind: &Kind, place: &Place) {
    let name = format!("a.{}", kind.ending);
    place.write(&name, &(kind.file)(&records(0, 3_000)));
    let source = place.source(kind, &name, u64::MAX, 100);
    let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for begun in 0..3 {
        let mut reader = source.open(&chunk, chunk.start).await.unwrap();
        for _ in 0..begun {
            assert!(reader.next().await.unwrap().is_some());
        }
        let mut next = reader.next().boxed();
        // It may be done at once, with what was read before.
        drop(poll!(&mut next));
        drop(next);
        drop(reader);
    }
    // In S3, it is the server that has the file open for as long as somebody reads.
    wait_for("the file is let go and no task is left", || {
        // Connections to S3 are kept for the next request, and have a task each.
        (place.open_files(&name) == 0 && (place.is_s3() || tasks() <= before)).then_some(())
    })
    .await;
}

async fn memory_is_bounded(kind: &Kind, place: &Place) {
    let wide = |n: i64| Record {
        id: Some(n),
        word: Some(format!("{n:09}").repeat(7_000)),
        amount: 0.0,
        at: n,
    };
    let name = format!("a.{}", kind.ending);
    place.write(&name, &(kind.file)(&(0..200).map(wide).collect::<Vec<_>>()));
    let source = place.source(kind, &name, u64::MAX, 1 << 40);
    assert_eq!(in_bounds(source.as_ref()).await, 200);
}

/// The rows of a source, each of whose segments has to stay within the bound of its bytes.
pub(crate) async fn in_bounds(source: &dyn Source) -> u64 {
    const MIB: u64 = 1 << 20;
    let mut rows = 0;
    for chunk in source.discover(StageId(0)).await.unwrap() {
        let mut reader = source.open(&chunk, chunk.start).await.unwrap();
        while let Some(segment) = reader.next().await.unwrap() {
            let arrays: usize = segment.batches.iter().map(RecordBatch::get_array_memory_size).sum();
            assert!(segment.bytes <= 9 * MIB, "{} bytes", segment.bytes);
            // Arrays may have grown to twice of what is in them.
            assert!(arrays as u64 <= 18 * MIB, "{arrays} bytes of arrays");
            rows += segment.rows;
        }
    }
    rows
}

async fn what_is_wrong_with_a_file_is_said_by_name(kind: &Kind, place: &Place) {
    let ending = kind.ending;
    let whole = (kind.file)(&records(0, 2_000));
    let cases = [
        ("foreign", kind.foreign.0.to_vec(), Some(kind.foreign.1)),
        ("empty", Vec::new(), kind.empty),
        ("cut", whole[..whole.len() - whole.len() / 3].to_vec(), kind.cut_off),
    ];
    for (what, data, part) in cases {
        let name = format!("{what}.{ending}");
        place.write(&name, &data);
        let read = all_told(&*place.source(kind, &name, u64::MAX, 100)).await;
        match (read, part) {
            (Err(failure), Some(part)) => {
                assert_eq!(failure.class, Class::Permanent, "{failure}");
                assert!(
                    failure.message.contains(&name) && failure.message.contains(part),
                    "{what}: {failure}"
                );
            }
            (Ok(read), None) => assert!(what == "cut" || flat(&read).is_empty(), "{what}"),
            (read, part) => panic!("{what}: expected {part:?}, found {:?}", read.map(drop)),
        }
    }
    for (path, part) in [
        (format!("none-*.{ending}"), " matches"),
        (format!("none.{ending}"), "does not exist"),
    ] {
        let source = place.source(kind, &path, u64::MAX, 100);
        for failure in [
            source.discover(StageId(0)).await.unwrap_err(),
            source.check().await.unwrap_err().failure,
        ] {
            assert_eq!(failure.class, Class::Permanent);
            assert!(
                failure.message.contains(&path) && failure.message.contains(part),
                "{failure}"
            );
        }
    }
}

/// Runs the suite for a kind.
macro_rules! suite {
    ($($module:ident: $kind:ident),+ $(,)?) => {
        $(mod $module {
            use super::*;

            suite!(@local $kind: every_row_is_in_one_chunk_once, every_checkpoint_leads_to_exactly_the_rest,
                an_object_that_changed_is_named, a_reader_that_is_dropped_leaves_nothing_running, memory_is_bounded,
                what_is_wrong_with_a_file_is_said_by_name, columns_are_held_to_the_contract);
        })+
    };
    (@local $kind:ident: $($test:ident),+) => {
        $(#[test]
        fn $test() {
            inside::run(async { super::$test(&kinds::$kind, &Place::local()).await });
        })+

        #[test]
        fn in_s3() {
            // The first part of the path is the crate.
            let (_, module) = module_path!().split_once("::").unwrap();
            if inside::is_inside(&format!("{module}::in_s3"), haulage_test_support::s3::SECRET_KEY) {
                inside::run(async {
                    $(super::$test(&kinds::$kind, &Place::s3().await).await;)+
                });
            }
        }
    };
}

suite!(csv: CSV, csv_gzip: CSV_GZIP, json: JSON, json_gzip: JSON_GZIP, json_zstd: JSON_ZSTD, parquet: PARQUET);

/// Runs the suite for a kind that is no file.
macro_rules! served_suite {
    ($($module:ident: $kind:ident),+ $(,)?) => {
        $(mod $module {
            use super::*;

            served_suite!(@each $kind: every_row_is_in_one_chunk_once, every_checkpoint_leads_to_exactly_the_rest,
                memory_is_bounded, a_reader_that_is_dropped_leaves_nothing_running, what_is_wrong_is_said_by_name);
        })+
    };
    (@each $kind:ident: $($test:ident),+) => {
        $(#[test]
        fn $test() {
            inside::run(served::$test(stands::Served::$kind));
        })+
    };
}

served_suite!(rest: Rest, postgres: Postgres, mariadb: Mariadb, sqlite: Sqlite);
