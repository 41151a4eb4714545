//! A segment's rows while they come in: batches of those that can be read, and the reasons of the others.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::filter;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::Failure;

use super::Unreadable;

/// See the module.
pub(super) struct Sift {
    schema: SchemaRef,
    /// Rows so far, readable or not.
    pub(super) rows: u64,
    /// The rows that can be read, with the row column.
    pub(super) batches: Vec<RecordBatch>,
    /// The others.
    pub(super) unreadable: Vec<Unreadable>,
}

impl Sift {
    /// `schema` is the columns' and the row column's.
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            rows: 0,
            batches: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Takes `rows` rows, which are a value of every array each. `bad` are those that can't be read, in order and each
    /// once, their rows counted from the first of these. `address` is for messages.
    pub(super) fn take(
        &mut self,
        address: &str,
        rows: usize,
        mut arrays: Vec<ArrayRef>,
        bad: Vec<Unreadable>,
    ) -> Result<(), Failure> {
        let wrong =
            |error: &dyn std::fmt::Display| Failure::permanent(format!("{address}: a batch can't be made: {error}"));
        let before = self.rows;
        arrays.push(Arc::new(UInt64Array::from_iter_values(
            (0..rows).map(|place| before + place as u64),
        )));
        if !bad.is_empty() {
            let mut kept = vec![true; rows];
            for unreadable in bad {
                if let Some(kept) = usize::try_from(unreadable.row).ok().and_then(|row| kept.get_mut(row)) {
                    *kept = false;
                }
                self.unreadable.push(Unreadable {
                    row: before + unreadable.row,
                    ..unreadable
                });
            }
            let kept = BooleanArray::from(kept);
            for array in &mut arrays {
                *array = filter(array, &kept).map_err(|error| wrong(&error))?;
            }
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(|error| wrong(&error))?;
        if batch.num_rows() > 0 {
            self.batches.push(batch);
        }
        self.rows += rows as u64;
        Ok(())
    }
}
