//! The rows of a segment for quarantine: a Parquet file has no text of a row, so it is the row as JSON, made when somebody
//! asks for it.

use std::sync::OnceLock;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::array_value_to_string;

use crate::source::{RawRows, printable};

/// See the module.
pub(super) struct Raw {
    /// The number of the segment's first row in its file, from 1.
    first: u64,
    /// The rows as they stand in the file.
    batches: Vec<RecordBatch>,
    texts: OnceLock<Vec<OnceLock<Vec<u8>>>>,
}

impl Raw {
    pub(super) fn new(first: u64, batches: Vec<RecordBatch>) -> Self {
        Self {
            first,
            batches,
            texts: OnceLock::new(),
        }
    }

    fn texts(&self) -> &[OnceLock<Vec<u8>>] {
        self.texts.get_or_init(|| {
            let rows = self.batches.iter().map(RecordBatch::num_rows).sum();
            std::iter::repeat_with(OnceLock::new).take(rows).collect()
        })
    }

    fn json(&self, row: usize) -> Vec<u8> {
        let mut row = row;
        for batch in &self.batches {
            if row < batch.num_rows() {
                return json(batch, row).into_bytes();
            }
            row -= batch.num_rows();
        }
        Vec::new()
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let place = usize::try_from(row).ok()?;
        let text = self.texts().get(place)?.get_or_init(|| self.json(place));
        Some((self.first + row, text))
    }

    fn line(&self, row: u64) -> Option<u64> {
        Some(self.first + row)
    }

    fn is_whole(&self, row: u64) -> bool {
        let mut row = usize::try_from(row).unwrap_or(usize::MAX);
        for batch in &self.batches {
            if row < batch.num_rows() {
                return batch.columns().iter().all(|array| is_text(array, row));
            }
            row -= batch.num_rows();
        }
        false
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
