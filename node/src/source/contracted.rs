//! A source of one object, such as a table or a query, under a contract: it is read by the columns that it has of the
//! run's, and the others have no value. What it has, it says itself when no columns are declared.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_plan::contract::Contract;
use haulage_plan::definition::Column;
use tokio::sync::OnceCell;

use super::contract::{Drift, Found, NO_PATHS, Own, Terms};
use super::held::Held;
use super::{Increment, KeptRow, Misdeclared, Reread, SegmentReader, Source, schema};

/// Binds the source to some of its columns; to all that are there if there are none.
type Bind = Box<dyn Fn(&[Column]) -> Result<Box<dyn Source>, Failure> + Send + Sync>;

/// See the module.
pub(super) struct Contracted {
    /// What errors call it.
    location: String,
    declared: Vec<Column>,
    contract: Contract,
    /// The columns that the run was planned with.
    planned: Option<Vec<Column>>,
    bind: Bind,
    found: OnceCell<Vec<Found>>,
    bound: OnceCell<(Vec<Column>, Held, Box<dyn Source>)>,
}

impl Contracted {
    pub(super) fn new(
        location: String,
        declared: &[Column],
        contract: Contract,
        planned: Option<Vec<Column>>,
        bind: Bind,
    ) -> Self {
        Self {
            location,
            declared: declared.to_vec(),
            contract,
            planned,
            bind,
            found: OnceCell::new(),
            bound: OnceCell::new(),
        }
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            declared: &self.declared,
            contract: self.contract,
            paths: &NO_PATHS,
            by_row: false,
        }
    }

    /// Whether the source's kind does all that the contract says.
    fn is_plain(&self) -> bool {
        self.contract.is_plain() && self.planned.is_none()
    }

    async fn found(&self) -> Result<&Vec<Found>, Failure> {
        let find = || async {
            let own = |column: &Column| match &column.data_type {
                DataType::Utf8 => Own::Text,
                typed => Own::Typed(typed.clone()),
            };
            let columns = (self.bind)(&[])?.described().await?;
            Ok(columns
                .iter()
                .map(|column| Found::new(&column.name, own(column)))
                .collect())
        };
        self.found.get_or_try_init(find).await
    }

    async fn settled(&self) -> Result<Vec<Column>, Failure> {
        if let Some(planned) = &self.planned {
            return Ok(planned.clone());
        }
        if !self.contract.finds_columns() {
            return Ok(self.declared.clone());
        }
        let found = self.found().await?.clone();
        self.terms().settle(&[(self.location.clone(), found)])
    }

    async fn bound(&self) -> Result<&(Vec<Column>, Held, Box<dyn Source>), Misdeclared> {
        let bind = || async {
            let columns = self.settled().await?;
            let held = if self.is_plain() {
                Held::whole(&columns)
            } else {
                self.terms()
                    .hold(&columns, self.found().await?, &self.location)?
                    .keeping()
            };
            let inner = (self.bind)(&held.present)?;
            Ok((columns, held, inner))
        };
        self.bound.get_or_try_init(bind).await
    }
}

#[async_trait]
impl Source for Contracted {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.settled().await
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        self.bound().await?.2.check().await
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        self.bound().await?.2.discover(stage).await
    }

    async fn discover_after(&self, stage: StageId, low: Option<&str>, open: bool) -> Result<Increment, Failure> {
        self.bound().await?.2.discover_after(stage, low, open).await
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let (columns, held, inner) = self.bound().await?;
        let reader = inner.open(chunk, from).await?;
        Ok(held.clone().reader(reader, columns))
    }

    async fn open_at(
        &self,
        chunk: &ChunkSpec,
        from: Position,
        cursor: Option<&str>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let (columns, held, inner) = self.bound().await?;
        let reader = inner.open_at(chunk, from, cursor).await?;
        Ok(held.clone().reader(reader, columns))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        let (columns, held, inner) = self.bound().await?;
        match held.rejected(rows.len() as u64) {
            Some(rejected) => Ok(rejected),
            None => held.reread(inner.reread(rows).await?, &schema(columns)),
        }
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        let (columns, held, inner) = self.bound().await?;
        let schema = schema(columns);
        let batches = inner.read_all().await?;
        batches.iter().map(|batch| held.fit(batch, &schema)).collect()
    }

    async fn drift(&self) -> Result<Vec<Drift>, Failure> {
        let columns = self.settled().await?;
        let found = match self.found().await {
            Ok(found) => found.clone(),
            // All that is there may be more than can be read, and nobody asked for more than is declared.
            Err(_) if self.is_plain() => return Ok(Vec::new()),
            Err(failure) => return Err(failure),
        };
        Ok(self.terms().drifts(&columns, &[(self.location.clone(), found)]))
    }
}
