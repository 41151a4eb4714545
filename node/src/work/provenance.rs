//! Where each row of a load is from, as columns of its own: `_haulage_run`, `_haulage_chunk`, `_haulage_line`.
//!
//! They are added behind the load's columns when a batch is about to be written, and for the destination they are columns
//! like any other: what merges, replaces and reverts rows takes them along, so they stay true. They are no data, and no part
//! of a checksum.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, RunId};
use haulage_plan::PROVENANCE;

use crate::source::RawRows;

/// The load's columns, and those behind them.
pub(super) fn with_columns(schema: &Schema) -> SchemaRef {
    let [run, chunk, line] = PROVENANCE;
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    // Nullable: a table that is there already has rows without them.
    fields.push(Arc::new(Field::new(run, DataType::Utf8, true)));
    fields.push(Arc::new(Field::new(chunk, DataType::Utf8, true)));
    fields.push(Arc::new(Field::new(line, DataType::Int64, true)));
    Arc::new(Schema::new(fields))
}

/// `shown`, with where its rows are from. The last column of `whole` is each row's place in the segment.
pub(super) fn add(
    shown: &RecordBatch,
    whole: &RecordBatch,
    run: &RunId,
    chunk: ChunkId,
    raw: &dyn RawRows,
) -> Result<RecordBatch, Failure> {
    let places = whole.columns().last();
    let places = places.and_then(|places| places.as_any().downcast_ref::<UInt64Array>());
    let Some(places) = places else {
        return Err(Failure::permanent("a batch lacks the column that counts its rows"));
    };
    let rows = shown.num_rows();
    let lines: Int64Array = places
        .values()
        .iter()
        .map(|place| raw.line(*place).and_then(|line| i64::try_from(line).ok()))
        .collect();
    let same = |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows))) };
    let mut columns = shown.columns().to_vec();
    columns.push(same(run.as_str()));
    columns.push(same(&chunk.to_string()));
    columns.push(Arc::new(lines));
    RecordBatch::try_new(with_columns(shown.schema_ref()), columns)
        .map_err(|error| Failure::permanent(format!("a row's origin can't be added: {error}")))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray as _;
    use datafusion::arrow::datatypes::Int64Type;
    use haulage_core::ids::StageId;

    use super::*;

    struct Lines;

    impl RawRows for Lines {
        fn row(&self, row: u64) -> Option<(u64, &[u8])> {
            (row < 9).then_some((row + 2, b""))
        }
    }

    #[test]
    fn every_row_says_its_line_in_whatever_order_rows_come_out() {
        let shown = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![7, 8, 8])) as ArrayRef)]).unwrap();
        let whole = RecordBatch::try_from_iter([
            ("a", shown.column(0).clone()),
            ("row", Arc::new(UInt64Array::from(vec![5, 0, 9])) as ArrayRef),
        ])
        .unwrap();
        let chunk = ChunkId {
            stage: StageId(1),
            index: 3,
        };
        let rows = add(&shown, &whole, &RunId::from("r"), chunk, &Lines).unwrap();
        assert_eq!(rows.schema(), with_columns(shown.schema_ref()));
        assert_eq!(rows.column(1).as_string::<i32>().value(2), "r");
        assert_eq!(rows.column(2).as_string::<i32>().value(0), "1.3");
        let lines: Vec<_> = rows.column(3).as_primitive::<Int64Type>().iter().collect();
        assert_eq!(lines, [Some(7), Some(2), None]);
    }
}
