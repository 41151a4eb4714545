//! What the tests of all kinds of files share.

use std::io::Write as _;
use std::path::Path;

use datafusion::arrow::array::{ArrayRef, AsArray, UInt64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::array_value_to_string;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_plan::contract::Contract;
use haulage_plan::definition::{Column, Source as Declared, SourceKind};

use super::{Binding, Segment, Source, bind};
use crate::store::S3Settings;

pub(super) fn column(name: &str, data_type: DataType) -> Column {
    Column {
        name: name.to_owned(),
        data_type,
        required: false,
    }
}

pub(super) fn required(name: &str, data_type: DataType) -> Column {
    Column {
        required: true,
        ..column(name, data_type)
    }
}

pub(super) fn bound(folder: &Path, kind: SourceKind, checkpoint_rows: u64) -> Box<dyn Source> {
    under(folder, kind, Contract::default(), checkpoint_rows)
}

pub(super) fn under(folder: &Path, kind: SourceKind, contract: Contract, checkpoint_rows: u64) -> Box<dyn Source> {
    let declared = Declared {
        name: "raw".to_owned(),
        lookup: false,
        kind,
        contract,
        partitions: Vec::new(),
        planned: None,
        place: Default::default(),
    };
    let base = folder.to_str().unwrap().to_owned();
    bind(
        &declared,
        Binding {
            base,
            s3: S3Settings::default(),
            checkpoint_rows,
            databases: Default::default(),
        },
    )
    .unwrap()
}

/// A row as a test compares it: its line, its text, and its values or why it has none.
pub(super) type Row = (u64, Vec<u8>, Result<Vec<String>, (Option<String>, &'static str)>);

/// All rows of a segment, after checking that each is either read or not, and in order.
pub(super) fn rows(segment: &Segment) -> Vec<Row> {
    let mut rows: Vec<Option<Row>> = vec![None; segment.rows as usize];
    let mut put = |row: u64, values: Result<_, _>| {
        let (line, raw) = segment.raw.row(row).expect("every row has its text");
        let place = &mut rows[row as usize];
        assert!(place.is_none(), "row {row} is there twice");
        *place = Some((line, raw.to_vec(), values));
    };
    let mut last = None;
    for batch in &segment.batches {
        let places: &UInt64Array = batch.columns().last().unwrap().as_primitive();
        assert!(batch.num_rows() > 0);
        for (index, row) in places.values().iter().enumerate() {
            assert!(last < Some(*row), "in order");
            last = Some(*row);
            let text = |column: &ArrayRef| array_value_to_string(column, index).unwrap();
            put(
                *row,
                Ok(batch.columns()[..batch.num_columns() - 1].iter().map(text).collect()),
            );
        }
    }
    for bad in &segment.unreadable {
        put(bad.row, Err((bad.column.clone(), bad.reason)));
    }
    assert!(segment.raw.row(segment.rows).is_none());
    rows.into_iter()
        .map(|row| row.expect("every row is read or not"))
        .collect()
}

pub(super) async fn segments(source: &dyn Source, chunk: &ChunkSpec, from: Position) -> Result<Vec<Segment>, Failure> {
    let mut reader = source.open(chunk, from).await?;
    let mut segments = Vec::new();
    while let Some(segment) = reader.next().await? {
        segments.push(segment);
    }
    assert!(segments.iter().rev().skip(1).all(|segment| !segment.last));
    assert!(segments.last().is_some_and(|segment| segment.last));
    Ok(segments)
}

/// All rows of a source, chunk by chunk.
pub(super) async fn all_rows(source: &dyn Source) -> Result<Vec<Row>, Failure> {
    let mut all = Vec::new();
    for chunk in source.discover(StageId(0)).await? {
        for segment in segments(source, &chunk, chunk.start).await? {
            all.extend(rows(&segment));
        }
    }
    Ok(all)
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(data).unwrap();
    packer.finish().unwrap()
}
