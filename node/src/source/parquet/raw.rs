//! The rows of a segment for quarantine: a Parquet file has no text of a row, so it is the row as JSON, made when somebody
//! asks for it.

use std::sync::{Arc, OnceLock};

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::array_value_to_string;

use crate::source::{RawRows, printable};

/// See the module.
pub(super) struct Raw {
    /// The number of the segment's first row in its file, from 1.
    first: u64,
    /// The columns of the file, read or not.
    names: Arc<[String]>,
    pieces: Vec<Piece>,
}

/// Rows that follow each other as they stand in the file.
struct Piece {
    /// The place of its first row in the segment.
    start: u64,
    rows: RecordBatch,
    texts: OnceLock<Vec<OnceLock<Vec<u8>>>>,
}

impl Raw {
    /// The pieces in their order, each with the place of its first row in the segment; between them are rows that weren't
    /// read.
    pub(super) fn new(first: u64, names: Arc<[String]>, pieces: Vec<(u64, RecordBatch)>) -> Self {
        let piece = |(start, rows)| Piece {
            start,
            rows,
            texts: OnceLock::new(),
        };
        Self {
            first,
            names,
            pieces: pieces.into_iter().map(piece).collect(),
        }
    }

    /// The piece that a row stands in, and its place there.
    fn find(&self, row: u64) -> Option<(&Piece, usize)> {
        let after = self.pieces.partition_point(|piece| piece.start <= row);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        let place = usize::try_from(row - piece.start).ok()?;
        (place < piece.rows.num_rows()).then_some((piece, place))
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let (piece, place) = self.find(row)?;
        let all = || std::iter::repeat_with(OnceLock::new).take(piece.rows.num_rows());
        let texts = piece.texts.get_or_init(|| all().collect());
        let text = texts.get(place)?.get_or_init(|| json(&piece.rows, place).into_bytes());
        Some((self.first + row, text))
    }

    fn line(&self, row: u64) -> Option<u64> {
        Some(self.first + row)
    }

    fn columns(&self) -> &[String] {
        &self.names
    }

    fn is_whole(&self, row: u64) -> bool {
        let whole = |(piece, place): (&Piece, usize)| piece.rows.columns().iter().all(|array| is_text(array, place));
        self.find(row).is_some_and(whole)
    }
}

/// Whether the value stands in the row's JSON as it is.
fn is_text(array: &dyn Array, row: usize) -> bool {
    if array.is_null(row) || !matches!(array.data_type(), DataType::BinaryView) {
        return true;
    }
    let bytes = array.as_binary_view().value(row);
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'))
}

fn json(batch: &RecordBatch, row: usize) -> String {
    let mut text = String::from("{");
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&quoted(field.name()));
        text.push(':');
        text.push_str(&value(array, row));
    }
    text.push('}');
    text
}

fn value(array: &dyn Array, row: usize) -> String {
    if array.is_null(row) {
        return "null".to_owned();
    }
    if let DataType::BinaryView = array.data_type() {
        return quoted(&printable(array.as_binary_view().value(row)));
    }
    let shown = array_value_to_string(array, row).unwrap_or_default();
    let is_number = array.data_type().is_numeric() && !matches!(shown.as_str(), "NaN" | "inf" | "-inf");
    if is_number || *array.data_type() == DataType::Boolean {
        shown
    } else {
        quoted(&shown)
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
