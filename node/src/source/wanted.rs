//! Which rows of a source its loads can need at all, for readers that can pass over others unread.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::common::pruning::PruningStatistics;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};

/// A condition over a source's columns. A row for which it isn't true reaches no load, and no reject rule sees it.
#[derive(Clone)]
pub struct Wanted {
    condition: Arc<PruningPredicate>,
}

impl Wanted {
    /// `columns` are the source's. `None` if the smallest and largest values of rows can never tell that it is true for none.
    pub(crate) fn new(condition: Arc<dyn PhysicalExpr>, columns: SchemaRef) -> Option<Self> {
        let builder = PruningPredicateBuilder::new().with_file_schema(columns);
        let condition = builder.try_build(condition).ok()?;
        (!condition.always_true()).then(|| Self {
            condition: Arc::new(condition),
        })
    }

    /// The source's columns.
    pub(super) fn columns(&self) -> &SchemaRef {
        self.condition.schema()
    }

    /// For each part of an object, whether it may hold a row that is needed.
    pub(super) fn parts(&self, statistics: &dyn PruningStatistics) -> Result<Vec<bool>> {
        self.condition.prune(statistics)
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.condition.orig_expr())
    }
}
