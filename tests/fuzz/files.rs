//! What has to hold of every kind of file: a row is read or has its reason, and neither cuts nor checkpoints nor packing
//! change which rows there are.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{Array, AsArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, TimeUnit, UInt64Type};
use datafusion::arrow::util::display::array_value_to_string;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::StageId;
use haulage_node::config::NodeConfig;
use haulage_node::source::infer::{self, Inferred};
use haulage_node::source::{Binding, Segment, Source, bind};
use haulage_plan::contract::{Contract, MissingColumn};
use haulage_plan::definition::{Column, Source as Declared, SourceKind};
use haulage_plan::types;

use crate::random::Random;

/// So large that nothing is cut.
pub(crate) const UNCUT: u64 = 1 << 40;
/// Checkpoints of a chunk that are resumed from, at most.
const RESUMED: usize = 4;

/// The values of a row, or the column and the reason why it has none.
pub(crate) type Values = Result<Vec<Option<String>>, (Option<String>, &'static str)>;

/// A row: its line, its text, its values.
pub(crate) type Row = (u64, Vec<u8>, Values);

fn declared(kind: SourceKind) -> Declared {
    // An API of random records may have none with a key on its first page.
    let on_missing_column = matches!(kind, SourceKind::Rest(_)).then_some(MissingColumn::Null);
    Declared {
        name: "raw".to_owned(),
        lookup: false,
        kind,
        place: Default::default(),
        contract: Contract {
            on_missing_column,
            ..Contract::default()
        },
        partitions: Vec::new(),
        planned: None,
    }
}

/// The source over the files in a folder.
pub(crate) fn bound(folder: &Path, kind: SourceKind, checkpoint_rows: u64) -> Result<Box<dyn Source>, Failure> {
    let binding = Binding {
        base: folder.display().to_string(),
        s3: Default::default(),
        checkpoint_rows,
        databases: Default::default(),
    };
    bind(&declared(kind), binding)
}

/// What `haulage infer` finds.
pub(crate) async fn inferred(folder: &Path, kind: SourceKind) -> Result<Inferred, Failure> {
    let config = NodeConfig::new("fuzz", folder.display().to_string());
    infer::infer(&config, &declared(kind), &folder.display().to_string(), u64::MAX).await
}

/// A type of a column.
pub(crate) fn any_type(random: &mut Random) -> DataType {
    match random.below(14) {
        0 => DataType::Int16,
        1 => DataType::Int32,
        2 => DataType::Int64,
        3 => DataType::Float32,
        4 => DataType::Float64,
        5 => DataType::Boolean,
        6 => DataType::Date32,
        7 => DataType::Timestamp(TimeUnit::Microsecond, None),
        8 => types::timestamptz(),
        9 => DataType::Decimal128(18, 2),
        _ => DataType::Utf8,
    }
}

/// The rows of a segment, after a look whether each is read or not, once, and in order.
pub(crate) fn rows(segment: &Segment) -> Result<Vec<Row>> {
    let count = usize::try_from(segment.rows)?;
    let mut found: Vec<Option<Row>> = vec![None; count];
    let mut put = |row: u64, values: Values| {
        let (line, raw) = segment.raw.row(row).with_context(|| format!("row {row} has no text"))?;
        let place = found
            .get_mut(usize::try_from(row)?)
            .with_context(|| format!("row {row} of {count}"))?;
        ensure!(place.is_none(), "row {row} is there twice");
        *place = Some((line, raw.to_vec(), values));
        Ok(())
    };
    let mut last = None;
    for batch in &segment.batches {
        let (places, columns) = batch.columns().split_last().context("a batch without columns")?;
        let places: &UInt64Array = places.as_primitive::<UInt64Type>();
        for (index, row) in places.values().iter().enumerate() {
            ensure!(last < Some(*row), "rows are out of order");
            last = Some(*row);
            let mut values = Vec::with_capacity(columns.len());
            for column in columns {
                let value = (!column.is_null(index)).then(|| array_value_to_string(column, index));
                values.push(value.transpose()?);
            }
            put(*row, Ok(values))?;
        }
    }
    for bad in &segment.unreadable {
        put(bad.row, Err((bad.column.clone(), bad.reason)))?;
    }
    ensure!(
        segment.raw.row(segment.rows).is_none(),
        "there is a text behind the last row"
    );
    found
        .into_iter()
        .collect::<Option<_>>()
        .context("a row is lost: neither read nor unreadable")
}

async fn segments(source: &dyn Source, chunk: &ChunkSpec, from: Position) -> Result<Result<Vec<Segment>, Failure>> {
    let mut reader = match source.open(chunk, from).await {
        Ok(reader) => reader,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut segments: Vec<Segment> = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(segment)) => {
                ensure!(
                    segments.last().is_none_or(|last| !last.last),
                    "a segment behind the last one"
                );
                segments.push(segment);
            }
            Ok(None) => break,
            Err(failure) => return Ok(Err(failure)),
        }
    }
    ensure!(
        segments.last().is_some_and(|last| last.last),
        "no segment is the last one"
    );
    Ok(Ok(segments))
}

/// All rows of a source, chunk by chunk, or why it can't be read.
pub(crate) async fn all_rows(source: &dyn Source) -> Result<Result<Vec<Row>, Failure>> {
    let chunks = match source.discover(StageId(0)).await {
        Ok(chunks) => chunks,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut all = Vec::new();
    for chunk in chunks {
        match segments(source, &chunk, chunk.start).await? {
            Ok(segments) => {
                for segment in &segments {
                    all.extend(rows(segment)?);
                }
            }
            Err(failure) => return Ok(Err(failure)),
        }
    }
    Ok(Ok(all))
}

/// Fails unless a failure is for good and says of which file it is.
pub(crate) fn check_failure(failure: &Failure, file: &str) -> Result<()> {
    ensure!(
        failure.class == Class::Permanent && failure.message.contains(file),
        "a failure that says not enough: {failure:?}"
    );
    Ok(())
}

/// Fails unless both are the same rows.
pub(crate) fn check_same(what: &str, rows: &[Row], expected: &[Row]) -> Result<()> {
    for (number, (mine, theirs)) in rows.iter().zip(expected).enumerate() {
        ensure!(mine == theirs, "{what}: row {number} is {mine:?}, and was {theirs:?}");
    }
    ensure!(
        rows.len() == expected.len(),
        "{what}: {} rows of {}",
        rows.len(),
        expected.len()
    );
    Ok(())
}

/// Fails unless a source has these rows, also if it goes on from any of its checkpoints.
pub(crate) async fn check_cut(what: &str, source: &dyn Source, expected: &[Row], random: &mut Random) -> Result<()> {
    let mut all = Vec::new();
    for chunk in source.discover(StageId(0)).await? {
        let straight = segments(source, &chunk, chunk.start).await??;
        let starts: Vec<usize> = straight
            .iter()
            .scan(all.len(), |at, segment| {
                *at += segment.rows as usize;
                Some(*at)
            })
            .collect();
        for segment in &straight {
            all.extend(rows(segment)?);
        }
        for _ in 0..RESUMED.min(straight.len() - 1) {
            let done = random.below(straight.len() - 1);
            let resumed = segments(source, &chunk, straight[done].next).await??;
            let mut again = Vec::new();
            for segment in &resumed {
                again.extend(rows(segment)?);
            }
            check_same(
                &format!("{what}, from checkpoint {done} on"),
                &again,
                &all[starts[done]..],
            )?;
            let ends = |segments: &[Segment]| segments.iter().map(|segment| segment.next).collect::<Vec<_>>();
            ensure!(
                ends(&resumed) == ends(&straight[done + 1..]),
                "{what}: other segments from checkpoint {done} on"
            );
        }
    }
    check_same(what, &all, expected)
}

/// Fails unless what `infer` found of a file loads every row but those that it said can't be read.
pub(crate) async fn check_inferred(
    folder: &Path,
    kind: SourceKind,
    file: &str,
    with: impl FnOnce(Vec<Column>, Vec<String>) -> SourceKind,
) -> Result<()> {
    let found = match inferred(folder, kind).await {
        Ok(found) => found,
        Err(failure) => return check_failure(&failure, file),
    };
    // Of a column of texts and numbers it says which of them are rejected.
    let told = |column: &infer::InferredColumn| {
        column
            .note
            .as_ref()
            .is_some_and(|note| note.contains("goes to quarantine"))
    };
    let told: Vec<String> = found
        .columns
        .iter()
        .filter(|column| told(column))
        .map(|found| found.column.name.clone())
        .collect();
    let columns: Vec<Column> = found.columns.into_iter().map(|found| found.column).collect();
    if columns.is_empty() {
        return Ok(());
    }
    let source = bound(folder, with(columns.clone(), found.nulls), 1_000)?;
    let rows = all_rows(&*source).await??;
    let unexpected = |row: &&Row| match &row.2 {
        Ok(_) => false,
        Err((column, _)) => !column.as_ref().is_some_and(|column| told.contains(column)),
    };
    let bad: Vec<&Row> = rows.iter().filter(unexpected).collect();
    let all = rows.iter().filter(|(_, _, values)| values.is_err()).count() as u64;
    ensure!(
        rows.len() as u64 == found.rows && bad.len() as u64 <= found.unreadable && found.unreadable <= all,
        "infer saw {} rows, {} of them unreadable; with its columns {columns:?} there are {}, and {} unreadable, like {:?}",
        found.rows,
        found.unreadable,
        rows.len(),
        bad.len(),
        bad.last()
    );
    Ok(())
}
