//! The suite for sources that are no files: what every one has to keep, whatever serves its rows.

use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::source::Source;
use haulage_test_support::{PATIENCE, until};

use crate::kinds::{self, Record};
use crate::stands::Served;
use crate::{Row, expected, records, rows};

/// A segment: its rows, and where the next one is.
#[derive(Debug, PartialEq)]
struct Told {
    rows: Vec<Row>,
    next: Position,
    cursor: Option<String>,
    last: bool,
}

/// The segments of a chunk from a checkpoint on.
async fn told(
    source: &dyn Source,
    chunk: &ChunkSpec,
    from: Position,
    cursor: Option<&str>,
) -> Result<Vec<Told>, Failure> {
    let mut reader = source.open_at(chunk, from, cursor).await?;
    let mut all: Vec<Told> = Vec::new();
    while let Some(segment) = reader.next().await? {
        assert!(all.last().is_none_or(|told| !told.last), "nothing comes after the last");
        all.push(Told {
            rows: rows(&segment),
            next: segment.next,
            cursor: segment.cursor,
            last: segment.last,
        });
    }
    assert!(all.last().is_some_and(|told| told.last), "a chunk has a last segment");
    Ok(all)
}

pub(crate) async fn every_row_is_in_one_chunk_once(served: Served) {
    let stand = served.start().await;
    let all = records(0, 3_000);
    stand.fill(&all).await;
    let source = stand.source(64 << 10, 500);
    source.check().await.unwrap();
    assert_eq!(source.columns().await.unwrap(), kinds::columns());
    let chunks = source.discover(StageId(7)).await.unwrap();
    assert_eq!(source.discover(StageId(7)).await.unwrap(), chunks, "in a stable order");
    assert_eq!(chunks.len() > 1, served.splits(), "{} chunks", chunks.len());
    let mut read = Vec::new();
    for (index, chunk) in (0..).zip(&chunks) {
        assert_eq!((chunk.chunk.stage, chunk.chunk.index), (StageId(7), index));
        for told in told(&*source, chunk, chunk.start, None).await.unwrap() {
            assert!(
                told.rows.len() == 500 || told.last && told.rows.len() < 500,
                "{} rows",
                told.rows.len()
            );
            read.extend(told.rows.into_iter().map(|(_, _, read)| read));
        }
    }
    assert_eq!(read, expected(&all));
    let refused = source.read_all().await.unwrap_err();
    assert_eq!(refused.class, Class::Permanent);
    for part in [
        "source raw",
        "column id: null_in_required",
        "a lookup has to be read whole",
    ] {
        assert!(refused.message.contains(part), "{refused}");
    }

    let none = served.start().await;
    none.fill(&[]).await;
    let source = none.source(64 << 10, 500);
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert_eq!(chunks.len(), 1);
    let told = told(&*source, &chunks[0], chunks[0].start, None).await.unwrap();
    assert_eq!(
        (told.len(), told[0].rows.len()),
        (1, 0),
        "a chunk without rows has a segment"
    );
    assert!(
        source
            .read_all()
            .await
            .unwrap()
            .iter()
            .all(|batch| batch.num_rows() == 0)
    );
}

pub(crate) async fn every_checkpoint_leads_to_exactly_the_rest(served: Served) {
    let stand = served.start().await;
    stand.fill(&records(0, 1_000)).await;
    let (source, again) = (stand.source(u64::MAX, 70), stand.source(u64::MAX, 70));
    for chunk in source.discover(StageId(0)).await.unwrap() {
        let straight = told(&*source, &chunk, chunk.start, None).await.unwrap();
        assert!(straight.len() > 10, "{} segments", straight.len());
        assert_eq!(
            told(&*again, &chunk, chunk.start, None).await.unwrap(),
            straight,
            "in two attempts"
        );
        for (number, at) in straight.iter().enumerate().filter(|(_, told)| !told.last) {
            let rest = told(&*again, &chunk, at.next, at.cursor.as_deref()).await.unwrap();
            assert_eq!(rest, straight[number + 1..], "after segment {number}");
        }
    }
}

/// 200 rows of 63 KB.
fn wide() -> Vec<Record> {
    let record = |n: i64| Record {
        id: Some(n),
        word: Some(format!("{n:09}").repeat(7_000)),
        amount: 0.0,
        at: n,
    };
    (0..200).map(record).collect()
}

pub(crate) async fn memory_is_bounded(served: Served) {
    let stand = served.start().await;
    stand.fill(&wide()).await;
    let source = stand.source(u64::MAX, 1 << 40);
    assert_eq!(crate::in_bounds(source.as_ref()).await, 200);
}

pub(crate) async fn a_reader_that_is_dropped_leaves_nothing_running(served: Served) {
    let stand = served.start().await;
    stand.fill(&wide()).await;
    for begun in 0..3 {
        let source = stand.source(u64::MAX, 10);
        let chunk = source.discover(StageId(0)).await.unwrap().remove(0);
        let mut reader = source.open(&chunk, chunk.start).await.unwrap();
        for _ in 0..begun {
            assert!(!reader.next().await.unwrap().unwrap().last);
        }
        // The server has megabytes left, and nobody wants them.
        until("somebody reads", PATIENCE, async || {
            Ok((begun == 0 || stand.readers().await > 0).then_some(()))
        })
        .await
        .unwrap();
        drop((reader, source));
        until("nobody reads any more", PATIENCE, async || {
            Ok((stand.readers().await == 0).then_some(()))
        })
        .await
        .unwrap();
    }
}

pub(crate) async fn what_is_wrong_is_said_by_name(served: Served) {
    let stand = served.start().await;
    stand.fill(&records(0, 10)).await;
    let missing = stand.missing();
    for failure in [
        missing.check().await.unwrap_err().failure,
        missing.discover(StageId(0)).await.unwrap_err(),
    ] {
        assert_eq!(failure.class, Class::Permanent, "{failure}");
        for part in ["source raw", "gone", served.missing()] {
            assert!(failure.message.contains(part), "{part} is not in {failure}");
        }
    }
    let away = stand.away().discover(StageId(0)).await.unwrap_err();
    let (class, part) = match served {
        Served::Rest => (Class::Transient, "it can't be reached"),
        Served::Postgres | Served::Mariadb => (Class::Transient, "connection refused"),
        Served::Sqlite => (Class::Permanent, "away.db"),
    };
    assert_eq!(away.class, class, "{away}");
    assert!(
        away.message.contains("source raw") && away.message.contains(part),
        "{away}"
    );
}
