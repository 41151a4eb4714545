//! PostgreSQL as a destination: binary COPY into a staging table, and a publish in one transaction.
//!
//! | mode    | staged in                                  | published by                                   | reverted from |
//! |---------|--------------------------------------------|------------------------------------------------|---------------|
//! | replace | a logged table like the target             | swap: the old table moves away, staging moves in | `prev_`     |
//! | replace, if a swap would break something | unlogged  | DELETE and INSERT                              | `before_`     |
//! | append  | unlogged                                   | INSERT, with the run in `_haulage_run`          | that column, or `keys_` |
//! | merge   | unlogged                                   | INSERT ... ON CONFLICT DO UPDATE                | `before_`, `keys_` |
//!
//! Readers: a statement that runs while the swap commits waits for it, finds the new table by name, and sees all of it. A
//! transaction whose snapshot is from the middle of the load would see only what was committed by then: while there is
//! one, nothing is swapped (see [`snapshots`]), and DELETE and INSERT leave it with the rows that it has. A table that
//! did not exist is empty to it.

mod aside;
mod ask;
mod bookkeeping;
pub(crate) mod connect;
mod copy_text;
mod encode;
mod evolve;
pub(crate) mod failure;
mod fit;
mod insert;
mod inspect;
mod newest;
mod numeric;
mod older;
mod publish;
mod recall;
mod revert;
mod rights;
mod segment;
mod snapshots;
mod stage;
mod standing;
mod swap;
mod target;
mod types;
mod verify;
mod watch;
mod watermarks;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::receipt::Looked;
use haulage_core::watermark::{Advance, Watermark};

use self::connect::{Connections, Room};
pub(crate) use self::types::column_type;
use super::kept::{patience, patiently};
use super::{Aside, Destination, Dialect, Expected, Inspection, LoadContext, Named, Question, SegmentWriter, Standing};

/// A PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Postgres {
    connections: Arc<Connections>,
    schema_known: Arc<AtomicBool>,
    /// The name of the sessions that it opens, while they are watched.
    acting: Option<Arc<str>>,
    /// What [`Destination::reserve`] took; a segment holds a clone of this value for as long as its connection.
    _room: Option<Arc<Room>>,
}

impl Postgres {
    /// Reads the address; connects to nothing. At most `writers` connections are open for segments at once.
    pub(super) fn open(name: &str, url: &str, writers: u32) -> Result<Self, Failure> {
        Ok(Self {
            connections: Arc::new(Connections::open(&format!("destination {name}"), url, writers)?),
            schema_known: Arc::default(),
            acting: None,
            _room: None,
        })
    }
}

#[async_trait]
impl Destination for Postgres {
    async fn inspect(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        self.soon("looking at its tables", self.look(load)).await
    }

    async fn prepare(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let doing = format!("preparing load {}", load.load);
        self.soon(&doing, self.make_staging(load)).await
    }

    async fn begin(&self, load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Result<Vec<Marker>, Failure> {
        let doing = format!("beginning chunk {chunk} of load {}", load.load);
        self.soon(&doing, self.begin_chunk(load, chunk, attempt)).await
    }

    async fn reserve(&self, segments: usize) -> Result<Arc<dyn Destination>, Failure> {
        let room = self.connections.room(segments).await;
        Ok(Arc::new(Self {
            _room: Some(Arc::new(room)),
            ..self.clone()
        }))
    }

    async fn segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        let doing = format!("staging chunk {chunk} of load {}", load.load);
        self.soon(&doing, self.open_segment(load, chunk, attempt)).await
    }

    async fn verify(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        self.at_length(load, |this| async move { this.verify_load(load, expected).await })
            .await
    }

    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn ask(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        self.at_length(
            load,
            |this| async move { this.ask_load(load, expected, question).await },
        )
        .await
    }

    async fn seal(&self, load: &LoadContext, _: Expected) -> Result<Option<Aside>, Failure> {
        self.soon("sealing a load", self.seal_load(load)).await
    }

    async fn name_rows(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        self.at_length(load, |this| async move {
            this.name_staged(load, expected, conditions).await
        })
        .await
    }

    async fn named_rows(&self, load: &LoadContext, _: Expected, why: &str) -> Result<Named, Failure> {
        Ok(Named::Query(aside::named_rows(load, why)))
    }

    async fn set_aside(&self, load: &LoadContext, expected: Expected, what: &Aside) -> Result<Aside, Failure> {
        self.at_length(
            load,
            |this| async move { this.set_rows_aside(load, expected, what).await },
        )
        .await
    }

    async fn publish(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        let publish = || self.at_length(load, |this| async move { this.publish_load(load, expected).await });
        patiently(load, patience(&load.run), publish).await
    }

    async fn watermarks_of(&self, load: &LoadContext) -> Result<Option<Vec<Watermark>>, Failure> {
        let reading = self.read_watermarks(Some(&load.pipeline), Some(&load.table));
        self.soon("reading watermarks", reading).await.map(Some)
    }

    async fn published_before(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        self.soon("looking who has published", self.read_publisher(load)).await
    }

    async fn advanced_by(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        self.soon("reading watermarks", self.read_advances(run, load)).await
    }

    async fn watermarks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        self.soon("reading watermarks", self.read_watermarks(pipeline, None))
            .await
    }

    async fn set_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        self.soon("setting a watermark", self.write_watermark(mark, was)).await
    }

    async fn recall(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.at_length(load, |this| async move { this.recall_load(load).await })
            .await
    }

    async fn release(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.soon("letting go of a load", self.release_load(load)).await
    }

    async fn revert(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.at_length(load, |this| async move { this.revert_load(load).await })
            .await
    }

    async fn discard(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.at_length(load, |this| async move { this.discard_load(load).await })
            .await
    }

    async fn cleanup(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.at_length(load, |this| async move { this.clean_load(load).await })
            .await
    }

    async fn standing(&self, load: &LoadContext) -> Result<Standing, Failure> {
        self.soon("looking for what a run has published", self.stand(load))
            .await
    }

    async fn look_up(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        self.soon("looking for rows", self.find(table, key, limit)).await
    }
}
