//! REST APIs as sources: what an HTTP server gives as JSON, page by page.
//!
//! * Pages come one after the other, so a source is one chunk. A segment is whole pages, and a checkpoint says which comes
//!   next: by its number, or by the name that the server gave it. What was committed is not asked for again.
//! * A server may give other records in another moment. What is committed stands; what is not is read anew, and a segment
//!   that was committed at a part of its loads must come again as it was, or the run ends.
//! * A record is read as a line of a JSON lines file: its values by the same types, for the same reasons no row. A declared
//!   column that none of the first page's records has is an error, unless the contract lets it be.
//! * The first page without records is the last one, or that without a name for the next; pages that come round again are
//!   an error. So are answers longer than `max_response`, also where they don't say so before. What may be the end or a
//!   mistake in the pipeline file is an error: no records because of `null`, a first page that names no other.
//! * What may pass by itself (429, most of 5xx, a connection that breaks off, an answer that takes too long) is tried again
//!   within a bound, and when the server says; everything else ends the run with what the server said.
//! * Credentials come from the node's secrets and go to the origin of the pipeline's URL alone. Where a server echoes them,
//!   nobody is shown them ([`blot`]); what a node says of the run's work is looked through for them by `work`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::contract::{Contract, MissingColumn, NewColumn};
use haulage_plan::definition::{Column, Definition, RestSource, Source as Declared, SourceKind};
use tokio::sync::OnceCell;

pub(crate) use self::blot::Secrets;
use self::client::Api;
use self::pages::Pages;
use self::reader::{Reader, Way};
use self::secret::Credentials;
use super::contract::{Drift, Found, Own, Terms};
use super::database::Databases;
use super::json::{self, head, row};
use super::{Binding, KeptRow, Misdeclared, Reread, SegmentReader, Source};

mod blot;
mod body;
mod client;
mod link;
mod pages;
mod reader;
mod secret;
#[cfg(test)]
mod tests;
mod unpack;
mod wait;

/// Whoever only looks before a run doesn't wait longer than this for a server that asks for it: the run does.
const GLANCE: Duration = Duration::from_secs(10);

/// The secrets that a pipeline's APIs are told, and the names of those that are not known here.
pub(crate) fn secrets(definition: &Definition, known: &Databases) -> (Secrets, Vec<String>) {
    let (mut secrets, mut unknown) = (Secrets::default(), Vec::new());
    for source in definition.sources.values() {
        let SourceKind::Rest(rest) = &source.kind else { continue };
        match Credentials::resolve(rest.auth.as_ref(), known) {
            Ok(found) => secrets.extend(found.secrets()),
            Err(_) => unknown.extend(
                rest.auth
                    .iter()
                    .flat_map(|auth| auth.secrets())
                    .map(|name| name.0.clone()),
            ),
        }
    }
    (secrets, unknown)
}

/// See the module.
pub(super) struct RestRows {
    name: String,
    way: Arc<Way>,
    binding: Binding,
    contract: Contract,
    /// The columns that the run was planned with.
    planned: Option<Vec<Column>>,
    columns: OnceCell<Vec<Column>>,
}

/// What the first page has.
struct First {
    /// The keys of its first object; `None` if there is none among its records.
    keys: Option<Vec<String>>,
    /// The keys of all of them, in the order in which they appear.
    found: Vec<Found>,
    records: usize,
}

impl RestRows {
    /// Touches nothing. Permanent failure if no request could be made.
    pub(super) fn new(source: &Declared, declared: &RestSource, binding: Binding) -> Result<Self, Failure> {
        let name = &source.name;
        Ok(Self {
            name: name.clone(),
            way: Arc::new(Way {
                api: Api::new(name, declared)?,
                pages: Pages::new(declared)?,
                declared: declared.clone(),
            }),
            binding,
            contract: source.contract,
            planned: source.planned.clone(),
            columns: OnceCell::new(),
        })
    }

    fn declared(&self) -> &RestSource {
        &self.way.declared
    }

    fn credentials(&self) -> Result<Credentials, Failure> {
        let found = Credentials::resolve(self.declared().auth.as_ref(), &self.binding.databases);
        found.map_err(|failure| self.way.api.permanent(failure))
    }

    /// What the source declares, and what it says about change: by itself every declared column has to be there.
    fn terms(&self) -> Terms<'_> {
        let missing = self.contract.on_missing_column.unwrap_or(MissingColumn::Fail);
        Terms {
            declared: &self.declared().columns,
            contract: Contract {
                on_missing_column: Some(missing),
                ..self.contract
            },
            paths: &self.declared().paths,
            by_row: true,
        }
    }

    /// Looks at the first page, and whether it may lead to the next. Permanent failure if it has records and none of them is
    /// an object.
    async fn first(&self, patience: Duration) -> Result<First, Failure> {
        let (way, who) = (&self.way, self.credentials()?);
        let place = way.pages.place(way.pages.start(), None)?;
        let answer = way.page(&who, &place, patience).await?;
        let records = way.records(&who, &answer)?;
        way.fits(records.len(), self.declared().columns.len())?;
        way.pages.next(&way.api, &who, &answer, &place, records.len() as u64)?;
        let mut first = First {
            keys: None,
            found: Vec::new(),
            records: records.len(),
        };
        let mut seen = HashSet::new();
        let RestSource { columns, paths, .. } = self.declared();
        for keys in records
            .iter()
            .filter_map(|record| row::found(record, columns, paths).ok())
        {
            for key in &keys {
                if !seen.contains(key) {
                    seen.insert(key.clone());
                    first.found.push(Found::new(key, Own::Text));
                }
            }
            first.keys.get_or_insert(keys);
        }
        if first.keys.is_none() && !records.is_empty() {
            return Err(way
                .api
                .permanent("none of the records of the first page is an object; correct `records`"));
        }
        Ok(first)
    }

    async fn resolved(&self, patience: Duration) -> Result<&Vec<Column>, Failure> {
        let resolve = || async {
            let declared = &self.declared().columns;
            if let Some(planned) = &self.planned {
                return Ok(planned.clone());
            }
            if !declared.is_empty() && !self.contract.finds_columns() {
                return Ok(declared.clone());
            }
            let first = self.first(patience).await?;
            if !declared.is_empty() {
                return self.terms().settle(&[(self.declared().location.clone(), first.found)]);
            }
            let keys = first.keys.ok_or_else(|| {
                self.way.api.permanent(
                    "the first page has no records, whose keys would be the columns; declare the source's columns",
                )
            })?;
            head::named(&format!("source {}: {}", self.name, self.declared().location), keys)
        };
        self.columns.get_or_try_init(resolve).await
    }

    /// Whether a record with a key that is no column is rejected.
    fn is_strict(&self) -> bool {
        self.contract.on_new_column != NewColumn::Ignore
    }

    /// Looks whether the first page is what was declared.
    async fn look(&self, patience: Duration) -> Result<(), Misdeclared> {
        let columns = self.resolved(patience).await?;
        if self.declared().columns.is_empty() {
            // Whoever found them has looked.
            return Ok(());
        }
        let first = self.first(patience).await?;
        if first.records > 0 {
            let address = format!("source {}: {}", self.name, self.declared().location);
            self.terms().hold(columns, &first.found, &address)?;
        }
        Ok(())
    }

    async fn reader(&self, from: Position, cursor: Option<&str>) -> Result<Reader, Failure> {
        let columns = self.resolved(self.declared().max_wait).await?;
        Reader::new(
            Arc::clone(&self.way),
            self.credentials()?,
            columns,
            self.is_strict(),
            self.binding.checkpoint_rows.max(1),
            self.way.pages.place(from, cursor)?,
        )
    }
}

#[async_trait]
impl Source for RestRows {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.resolved(self.declared().max_wait).await.cloned()
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        self.look(GLANCE).await
    }

    async fn drift(&self) -> Result<Vec<Drift>, Failure> {
        if self.declared().columns.is_empty() {
            return Ok(Vec::new());
        }
        let columns = self.columns().await?;
        let first = self.first(GLANCE).await?;
        if first.records == 0 {
            return Ok(Vec::new());
        }
        let objects = [(self.declared().location.clone(), first.found)];
        Ok(self.terms().drifts(&columns, &objects))
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        self.look(self.declared().max_wait).await?;
        Ok(vec![ChunkSpec {
            chunk: ChunkId { stage, index: 0 },
            source: self.name.clone(),
            object: self.declared().location.clone(),
            // Nothing of an API stays as it is.
            version: String::new(),
            start: self.way.pages.start(),
            end: None,
            bytes: 0,
            window: None,
        }])
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        json::read_objects(&self.columns().await?, &self.declared().paths, self.is_strict(), rows)
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        self.open_at(chunk, from, None).await
    }

    async fn open_at(
        &self,
        _: &ChunkSpec,
        from: Position,
        cursor: Option<&str>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        Ok(Box::new(self.reader(from, cursor).await?))
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        let mut reader = self.reader(self.way.pages.start(), None).await?;
        let mut batches = Vec::new();
        while let Some(segment) = reader.next().await? {
            if let Some(first) = segment.unreadable.first() {
                let line = segment.raw.row(first.row).map_or(0, |(line, _)| line);
                let column = first.column.as_ref().map(|column| format!(", column {column}"));
                return Err(self.way.api.permanent(format!(
                    "record {line}{}: {}: {}; a lookup has to be read whole: correct the record, or declare the column as \
                     another type",
                    column.unwrap_or_default(),
                    first.reason,
                    first.detail
                )));
            }
            batches.extend(segment.batches);
        }
        Ok(batches)
    }
}
