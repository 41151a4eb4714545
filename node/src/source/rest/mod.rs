//! REST APIs as sources: what an HTTP server gives as JSON, page by page.
//!
//! * Pages come one after the other, so a source is one chunk. A segment is whole pages, and a checkpoint says which comes
//!   next: by its number, or by the name that the server gave it. What was committed is not asked for again.
//! * A server may give other records in another moment. What is committed stands; what is not is read anew, and a segment
//!   that was committed at a part of its loads must come again as it was, or the run ends.
//! * A record is read as a line of a JSON lines file: its values by the same types, for the same reasons no row.
//! * The first page without records is the last one, or that without a name for the next; pages that come round again are
//!   an error. So are answers longer than `max_response`, also where they don't say so before.
//! * What may pass by itself (429, most of 5xx, a connection that breaks off, an answer that takes too long) is tried again
//!   within a bound, and when the server says; everything else ends the run with what the server said.
//! * Credentials come from the node's secrets and go to the origin of the pipeline's URL alone.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::definition::{Column, RestSource};
use tokio::sync::OnceCell;

use self::client::Api;
use self::pages::{Pages, unreadable};
use self::reader::{Reader, Way};
use self::secret::Credentials;
use super::json::{self, head, row};
use super::{Binding, KeptRow, Misdeclared, Reread, SegmentReader, Source};

mod body;
mod client;
mod link;
mod pages;
mod reader;
mod secret;
#[cfg(test)]
mod tests;
mod wait;

/// See the module.
pub(super) struct RestRows {
    name: String,
    way: Arc<Way>,
    binding: Binding,
    columns: OnceCell<Vec<Column>>,
}

impl RestRows {
    /// Touches nothing. Permanent failure if no request could be made.
    pub(super) fn new(name: &str, declared: &RestSource, binding: Binding) -> Result<Self, Failure> {
        Ok(Self {
            name: name.to_owned(),
            way: Arc::new(Way {
                api: Api::new(name, declared)?,
                pages: Pages::new(declared)?,
                declared: declared.clone(),
            }),
            binding,
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

    /// The keys of the first object of the first page; `None` if there are no records. Permanent failure if none of them
    /// is an object.
    async fn first(&self) -> Result<Option<Vec<String>>, Failure> {
        let (way, who) = (&self.way, self.credentials()?);
        let place = way.pages.place(way.pages.start(), None)?;
        let answer = way.page(&who, &place).await?;
        let records = way
            .records(&answer)
            .map_err(|wrong| unreadable(&way.api, &who, wrong, &answer, &self.declared().records))?;
        if records.is_empty() {
            return Ok(None);
        }
        let keys = records.iter().find_map(|record| row::keys(record.as_bytes()).ok());
        keys.map(Some).ok_or_else(|| {
            way.api
                .permanent("none of the records of the first page is an object; correct `records`")
        })
    }

    async fn resolved(&self) -> Result<&Vec<Column>, Failure> {
        let resolve = || async {
            if !self.declared().columns.is_empty() {
                return Ok(self.declared().columns.clone());
            }
            let keys = self.first().await?.ok_or_else(|| {
                self.way.api.permanent(
                    "the first page has no records, whose keys would be the columns; declare the source's columns",
                )
            })?;
            head::named(&format!("source {}: {}", self.name, self.declared().location), keys)
        };
        self.columns.get_or_try_init(resolve).await
    }

    async fn reader(&self, from: Position, cursor: Option<&str>) -> Result<Reader, Failure> {
        let columns = self.resolved().await?;
        Reader::new(
            Arc::clone(&self.way),
            self.credentials()?,
            columns,
            self.declared().columns.is_empty(),
            self.binding.checkpoint_rows.max(1),
            self.way.pages.place(from, cursor)?,
        )
    }
}

#[async_trait]
impl Source for RestRows {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.resolved().await.cloned()
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        if self.declared().columns.is_empty() {
            // Looks at the first page, if nobody has before.
            self.resolved().await?;
        } else {
            self.first().await?;
        }
        Ok(())
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        self.check().await?;
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
        json::read_objects(&self.columns().await?, self.declared().columns.is_empty(), rows)
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
