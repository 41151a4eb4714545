//! Files as a destination: Parquet, CSV or JSON lines in a folder or below an S3 prefix, with a manifest that says which of
//! them are the table.
//!
//! The contract is the databases'. What a transaction is there is one conditional write here:
//!
//! - A chunk's document holds its fence and its markers. A segment writes its files first, under names of its own, and then
//!   exchanges the document for one with its marker, if the fence is still its own: rows and marker count together.
//! - The table's state holds the records of all loads and names the newest version's manifest. Publish writes a manifest and
//!   exchanges the state for one that names it and has the load published: a reader sees all of a run or nothing.
//!
//! Both are in `state.rs`; what a place has to be able to do is in `objects`. Who reads the table reads the manifest. A glob
//! over the folder also finds files that are staged, or kept for a revert (`keep_previous`).
//!
//! A segment leaves one file a partition, and more where its rows are too many to be kept in memory. Nothing merges them: a
//! reader that wants large files wants a large `checkpoint_rows`.

mod aside;
mod ask;
mod back;
mod decode;
mod documents;
mod encode;
mod evolve;
mod find;
mod objects;
mod place;
mod publish;
mod recall;
mod revert;
mod rows;
mod segment;
mod stage;
mod standing;
mod state;
mod target;
mod verify;
mod watermarks;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::receipt::Looked;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::Column;

pub(crate) use self::ask::RECORDS;
use self::objects::{Local, Objects, S3};
pub(crate) use self::place::folder;
use super::kept::{patience, patiently};
use super::{
    Aside, Destination, Dialect, Expected, Inspection, LoadContext, Named, Question, ReadBack, SegmentWriter, Standing,
};
use crate::store::S3Settings;

/// What questions about staged rows may take of memory, all at once.
const QUESTION_BYTES: usize = 256 << 20;

/// A place of files. Cheap to clone.
#[derive(Clone)]
pub(super) struct Files {
    name: Arc<str>,
    objects: Arc<dyn Objects>,
    runtime: Arc<RuntimeEnv>,
    /// Of loads that are being verified, the rows that are to be set aside.
    marks: Arc<Mutex<Vec<Arc<aside::Marks>>>>,
    found: Arc<Mutex<stage::Found>>,
}

impl Files {
    /// In a folder. Touches nothing.
    pub(super) fn in_folder(name: &str, root: PathBuf) -> Result<Self, Failure> {
        Self::over(name, Arc::new(Local::new(name, root)))
    }

    /// Below `s3://bucket/prefix`. Touches nothing.
    pub(super) fn in_s3(name: &str, address: &str, settings: &S3Settings) -> Result<Self, Failure> {
        Self::over(name, Arc::new(S3::new(name, address, settings)?))
    }

    fn over(name: &str, objects: Arc<dyn Objects>) -> Result<Self, Failure> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(QUESTION_BYTES, 1.0)
            .build_arc();
        let runtime = runtime.map_err(|error| Failure::permanent(format!("destination {name}: {error}")))?;
        Ok(Self {
            name: name.into(),
            objects,
            runtime,
            marks: Arc::default(),
            found: Arc::default(),
        })
    }
}

#[async_trait]
impl Destination for Files {
    async fn inspect(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        self.look(load).await
    }

    async fn prepare(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.make_staging(load).await
    }

    async fn begin(&self, load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Result<Vec<Marker>, Failure> {
        self.begin_chunk(load, chunk, attempt).await
    }

    /// An open segment holds nothing at the place, and of its rows only the last few in memory.
    async fn reserve(&self, _: usize) -> Result<Arc<dyn Destination>, Failure> {
        Ok(Arc::new(self.clone()))
    }

    async fn segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        self.open_segment(load, chunk, attempt)
    }

    async fn verify(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        self.verify_load(load, expected).await
    }

    fn dialect(&self) -> Dialect {
        Dialect::DataFusion
    }

    async fn ask(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        self.ask_load(load, expected, question).await
    }

    async fn seal(&self, load: &LoadContext, expected: Expected) -> Result<Option<Aside>, Failure> {
        self.seal_load(load, expected).await
    }

    async fn name_rows(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        self.name_staged(load, expected, conditions).await
    }

    async fn named_rows(&self, load: &LoadContext, expected: Expected, why: &str) -> Result<Named, Failure> {
        self.named_staged(load, expected, why).await
    }

    async fn set_aside(&self, load: &LoadContext, expected: Expected, what: &Aside) -> Result<Aside, Failure> {
        self.set_rows_aside(load, expected, what).await
    }

    async fn publish(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        patiently(load, patience(&load.run), || self.publish_load(load, expected)).await
    }

    async fn watermarks_of(&self, load: &LoadContext) -> Result<Option<Vec<Watermark>>, Failure> {
        self.marks_of(load).await.map(Some)
    }

    async fn published_before(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        self.read_publisher(load).await
    }

    async fn advanced_by(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        self.read_advances(run, load).await
    }

    async fn watermarks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        self.all_marks(pipeline).await
    }

    async fn set_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        self.write_watermark(mark, was).await
    }

    async fn recall(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.recall_load(load).await
    }

    async fn release(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.release_load(load).await
    }

    async fn revert(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.revert_load(load).await
    }

    async fn discard(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.discard_load(load).await
    }

    async fn cleanup(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.clean_load(load).await
    }

    async fn standing(&self, load: &LoadContext) -> Result<Standing, Failure> {
        self.stand(load).await
    }

    async fn read_back(&self, load: &LoadContext, columns: &[Column]) -> Result<Box<dyn ReadBack>, Failure> {
        Ok(Box::new(self.rows_back(load, columns).await?))
    }

    async fn look_up(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        self.find(table, key, limit).await
    }
}
