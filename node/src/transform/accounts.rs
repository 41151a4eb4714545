//! Accounts for every source row of a segment: which reached a load, which were rejected, which a step left out.

use datafusion::arrow::array::{Array, RecordBatch, UInt64Array};
use haulage_core::checkpoint::LoadCounts;
use haulage_core::failure::Failure;

use super::Rejected;

/// Which rows of a segment reached a load, by the row column of its batches. One bit for each source row.
#[derive(Debug, Clone)]
pub struct RowTally {
    seen: Vec<u64>,
    source_rows: u64,
    output_rows: u64,
}

impl RowTally {
    /// For a segment of so many source rows, readable or not.
    pub fn new(source_rows: u64) -> Self {
        let words = usize::try_from(source_rows.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            seen: vec![0; words],
            source_rows,
            output_rows: 0,
        }
    }

    /// Marks the rows of a batch of the load. Permanent failure if its last column is no row column of this segment.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let rows = batch
            .columns()
            .last()
            .and_then(|column| column.as_any().downcast_ref::<UInt64Array>());
        let Some(rows) = rows.filter(|rows| rows.null_count() == 0) else {
            return Err(Failure::permanent(
                "a load's rows came without their places in the segment; this is a bug",
            ));
        };
        for row in rows.values() {
            self.set(*row)?;
        }
        self.output_rows += rows.len() as u64;
        Ok(())
    }

    fn set(&mut self, row: u64) -> Result<(), Failure> {
        match self.seen.get_mut(usize::try_from(row / 64).unwrap_or(usize::MAX)) {
            Some(word) if row < self.source_rows => {
                *word |= 1 << (row % 64);
                Ok(())
            }
            _ => Err(Failure::permanent(format!(
                "a load's row says it is row {row} of a segment of {}; this is a bug",
                self.source_rows
            ))),
        }
    }

    /// Whether a row was marked.
    pub fn has(&self, row: u64) -> bool {
        let word = self.seen.get(usize::try_from(row / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word & (1 << (row % 64)) != 0)
    }

    /// Rows that the load's batches held so far.
    pub fn output_rows(&self) -> u64 {
        self.output_rows
    }

    /// The account of the load, once its stream has ended. `unreadable` rows never came in, `rejects` are those of the
    /// pass, `loaded` and `bytes` are what the destination says. A row that is among the rejects counts as rejected,
    /// even if a join made several of it and others of them passed: those are then among the multiplied.
    pub fn finish(mut self, unreadable: u64, rejects: &[Rejected], loaded: u64, bytes: u64) -> LoadCounts {
        let mut rejected = 0;
        let mut last = None;
        for reject in rejects {
            if last != Some(reject.row) {
                rejected += 1;
                last = Some(reject.row);
            }
            if let Some(word) = self
                .seen
                .get_mut(usize::try_from(reject.row / 64).unwrap_or(usize::MAX))
            {
                *word &= !(1 << (reject.row % 64));
            }
        }
        let passed: u64 = self.seen.iter().map(|word| u64::from(word.count_ones())).sum();
        let rejected = rejected + unreadable;
        LoadCounts {
            loaded,
            filtered: self.source_rows.saturating_sub(passed + rejected),
            passed,
            rejected,
            multiplied: self.output_rows.saturating_sub(passed),
            bytes,
        }
    }
}
