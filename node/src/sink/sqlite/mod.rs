//! SQLite as a destination: a file beside the node, for the embedded mode and for small warehouses.
//!
//! The contract is PostgreSQL's. Staging is a table in the same file, and one writer at a time holds the file, so a
//! segment gathers its batches and writes them in one transaction with its marker. Replace renames staging into place
//! when the target is missing; a target that exists keeps its indexes, triggers and views, and its rows are replaced.
//!
//! SQLite has five storage classes, and values keep what they mean:
//!
//! | Arrow                  | declared | stored as                                                              |
//! |------------------------|----------|------------------------------------------------------------------------|
//! | integers, Boolean      | INTEGER  | integer; a UInt64 above 2^63-1 is refused; true is 1                   |
//! | Float32, Float64       | REAL     | real; SQLite has no NaN, so it becomes the text `NaN`                  |
//! | Decimal                | TEXT     | its digits: REAL would round                                           |
//! | Date                   | TEXT     | `2013-01-31`                                                           |
//! | Timestamp              | TEXT     | `2013-01-31 23:59:59`, a fraction if it has one, `+00:00` with a zone; sorts as time |
//! | Time                   | TEXT     | `23:59:59`                                                             |
//! | text                   | TEXT     | text                                                                   |
//! | Binary                 | BLOB     | blob                                                                   |

mod aside;
mod ask;
mod asked;
mod bookkeeping;
mod file;
mod newest;
mod older;
mod publish;
mod recall;
mod revert;
mod rows;
mod segment;
mod stage;
mod standing;
mod target;
mod verify;
mod watermarks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::receipt::Looked;
use haulage_core::watermark::{Advance, Watermark};

use self::file::File;
pub(crate) use self::rows::moment;
use super::kept::{patience, patiently};
use super::{Aside, Destination, Dialect, Expected, Inspection, LoadContext, Named, Question, SegmentWriter, Standing};

/// A SQLite file. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sqlite {
    file: Arc<File>,
}

impl Sqlite {
    /// Opens nothing; the file is made by the first write, and its folder too if that is `home`.
    pub(super) fn open(name: &str, path: PathBuf, home: Option<&Path>) -> Self {
        Self {
            file: Arc::new(File::new(name, path, home)),
        }
    }
}

#[async_trait]
impl Destination for Sqlite {
    async fn inspect(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        self.look(load).await
    }

    async fn prepare(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        self.make_staging(load).await
    }

    async fn begin(&self, load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Result<Vec<Marker>, Failure> {
        self.begin_chunk(load, chunk, attempt).await
    }

    /// One writer at a time holds the file anyway, and a segment waits for it only when it has all its rows.
    async fn reserve(&self, _: usize) -> Result<Arc<dyn Destination>, Failure> {
        Ok(Arc::new(self.clone()))
    }

    async fn segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        self.open_segment(load, chunk, attempt).await
    }

    async fn verify(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        self.verify_load(load, expected).await
    }

    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn ask(&self, load: &LoadContext, _: Expected, question: &Question) -> Result<Vec<Option<String>>, Failure> {
        self.ask_load(load, question).await
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

    async fn named_rows(&self, load: &LoadContext, _: Expected, why: &str) -> Result<Named, Failure> {
        Ok(Named::Query(aside::named_rows(load, why)?))
    }

    async fn set_aside(&self, load: &LoadContext, expected: Expected, what: &Aside) -> Result<Aside, Failure> {
        self.set_rows_aside(load, expected, what).await
    }

    async fn publish(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        patiently(load, patience(&load.run), || self.publish_load(load, expected)).await
    }

    async fn watermarks_of(&self, load: &LoadContext) -> Result<Option<Vec<Watermark>>, Failure> {
        let reading = self.read_watermarks(Some(&load.pipeline), Some(&load.table));
        reading.await.map(Some)
    }

    async fn published_before(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        self.read_publisher(load).await
    }

    async fn advanced_by(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        self.read_advances(run, load).await
    }

    async fn watermarks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        self.read_watermarks(pipeline, None).await
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

    async fn look_up(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        self.find(table, key, limit).await
    }
}
