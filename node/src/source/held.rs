//! What of a run's columns is read of one object, and its rows as those of the run: each column in its place, and nothing
//! where the object lacks one.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, new_null_array};
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use super::contract::NEW_COLUMN;
use super::{Reread, Segment, SegmentReader, Unreadable, Wanted};

/// What is read of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// The columns that it has.
    pub(super) present: Vec<Column>,
    /// For each of the run's columns, its place among those.
    pub(super) places: Vec<Option<usize>>,
    pub(super) new: Option<New>,
}

/// Columns for which every row of an object goes to quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct New {
    pub(super) column: String,
    pub(super) detail: String,
    /// Those that can be read.
    pub(super) columns: Vec<Column>,
}

impl Held {
    /// All of them, as they are.
    pub(super) fn whole(columns: &[Column]) -> Self {
        Self {
            present: columns.to_vec(),
            places: (0..columns.len()).map(Some).collect(),
            new: None,
        }
    }

    /// With the columns that nobody declared among those that are read: for a kind that keeps a rejected row by its values,
    /// so that a replay which declares them has them.
    pub(super) fn keeping(mut self) -> Self {
        if let Some(new) = &self.new {
            self.present.extend(new.columns.iter().cloned());
        }
        self
    }

    /// The reader of the object's own columns as one of the run's.
    pub(super) fn reader(self, inner: Box<dyn SegmentReader>, columns: &[Column]) -> Box<dyn SegmentReader> {
        if self.new.is_none() && self.places.iter().all(Option::is_some) {
            return inner;
        }
        Box::new(Fitted {
            inner,
            schema: super::schema(columns),
            held: self,
        })
    }

    /// A batch of the object's own columns, and the row column, as one of the run's.
    pub(super) fn fit(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.places.len() + 1);
        for (place, field) in self.places.iter().zip(schema.fields()) {
            arrays.push(match place {
                Some(place) => Arc::clone(batch.column(*place)),
                None => new_null_array(field.data_type(), batch.num_rows()),
            });
        }
        arrays.extend(batch.columns().last().cloned());
        RecordBatch::try_new(Arc::clone(schema), arrays)
            .map_err(|error| Failure::permanent(format!("a batch can't be made: {error}")))
    }

    /// The rows of an object that are to be read again, all `rows` of them, if it has columns that nobody declared: rejected
    /// once more.
    pub(super) fn rejected(&self, rows: u64) -> Option<Reread> {
        self.new.as_ref().map(|new| Reread {
            batches: Vec::new(),
            unreadable: new.rows(rows),
        })
    }

    /// Rows of the object that were read again, as the run's.
    pub(super) fn reread(&self, mut read: Reread, schema: &SchemaRef) -> Result<Reread, Failure> {
        for batch in &mut read.batches {
            *batch = self.fit(batch, schema)?;
        }
        Ok(read)
    }
}

impl New {
    fn rows(&self, rows: u64) -> Vec<Unreadable> {
        let row = |row| Unreadable {
            row,
            column: Some(self.column.clone()),
            reason: NEW_COLUMN,
            detail: self.detail.clone(),
        };
        (0..rows).map(row).collect()
    }
}

/// Segments of an object, with the columns of the run.
struct Fitted {
    inner: Box<dyn SegmentReader>,
    schema: SchemaRef,
    held: Held,
}

#[async_trait]
impl SegmentReader for Fitted {
    fn only(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        // Rows that are rejected for what is new in their object are needed, all of them.
        match self.held.new {
            Some(_) => Ok(()),
            None => self.inner.only(wanted),
        }
    }

    fn passed_over(&self) -> u64 {
        self.inner.passed_over()
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        let Some(mut segment) = self.inner.next().await? else {
            return Ok(None);
        };
        if let Some(new) = &self.held.new {
            segment.batches.clear();
            segment.unreadable = new.rows(segment.rows);
        }
        for batch in &mut segment.batches {
            *batch = self.held.fit(batch, &self.schema)?;
        }
        Ok(Some(segment))
    }
}
