//! Rows on their way back from where they were published, where the destination itself reads them.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::failure::Failure;

/// Reads the rows of [`Rows::InFiles`](super::Rows::InFiles), in no order. One pass; memory is bounded.
#[async_trait]
pub trait ReadBack: Send {
    /// The next rows; `None` after the last. What is wrong with where they are is no failure, but said at the end.
    async fn next(&mut self) -> Result<Option<BackRows>, Failure>;

    /// What was seen on the way.
    fn seen(self: Box<Self>) -> Seen;
}

/// Some of the rows.
#[derive(Debug)]
pub struct BackRows {
    /// Those that could be read, with the columns that were asked for.
    pub batch: RecordBatch,
    /// How many could not.
    pub unreadable: u64,
    /// What is wrong with the first of these.
    pub first: Option<String>,
}

/// What is to be said of the places of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// What is not as it was published, a line each.
    pub findings: Vec<String>,
    /// What somebody has touched, a line each. If the rows are what they were, nothing else differs.
    pub touched: Vec<String>,
    /// What could not be looked at, a line each.
    pub notes: Vec<String>,
}
