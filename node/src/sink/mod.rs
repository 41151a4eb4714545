//! Destinations: where a load's rows are staged, verified and published.
//!
//! Exactly once, in five sentences. Rows reach a staging area of the run, and a segment's rows commit together with
//! its marker, so a marker that stands means that its rows stand and are never written again. A commit first checks
//! the fence: epoch and attempt of that chunk which began last, and any earlier one is refused. Verify counts what is
//! staged against what the chunks reported, because a crash of the database may truncate unlogged staging. Publish is
//! one transaction: rows, load record, additive DDL and the (run, epoch) marker under a lock on the target, and it
//! finds its own marker when it is repeated. Revert, discard and cleanup tolerate absence and can be repeated.
//!
//! What a publish replaces or changes is kept, as a table or as before-images, until newer runs have published to the
//! target: a run is reverted while it fails, and on purpose later, by the same call. Nobody else may build on what may
//! still be taken back: other runs' publishes wait, see `kept.rs`.
//!
//! A new destination is one file here and one line in [`registry`]; the conformance suite in `tests/sink.rs` runs on all.

mod aside;
mod fence;
pub(crate) mod files;
mod kept;
pub(crate) mod name;
mod older;
pub(crate) mod postgres;
pub(crate) mod question;
mod read_back;
pub mod registry;
pub(crate) mod sqlite;
mod staged;
pub(crate) mod standing;
mod watermark;
mod wider;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream::BoxStream;
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, Epoch, LoadName, RunId};
use haulage_core::receipt::Looked;
use haulage_core::submission::Parts;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::contract::Evolution;
use haulage_plan::definition::{Column, Layout, Mode};
use serde::{Deserialize, Serialize};

pub use self::aside::Aside;
pub use self::question::Question;
pub use self::read_back::{BackRows, ReadBack, Seen};
pub use self::standing::{Publication, Rows, Standing};

/// Everything a destination has to know about one load of one run.
#[derive(Debug, Clone)]
pub struct LoadContext {
    /// The pipeline's name.
    pub pipeline: String,
    /// The run.
    pub run: RunId,
    /// The leader's term in which the work was given out.
    pub epoch: Epoch,
    /// The try of the step in hand. A chunk's comes with its calls.
    pub attempt: Attempt,
    /// The load.
    pub load: LoadName,
    /// The target as the pipeline file names it: `table`, or `schema.table`.
    pub table: String,
    /// What publishing does to the rows that are there.
    pub mode: Mode,
    /// Key columns; empty if the load has none. Unique in the target.
    pub key: Vec<String>,
    /// The columns that the load's rows have, in order, with Arrow types and nullability.
    pub schema: SchemaRef,
    /// The published run that this one replaces, when it was run again on purpose.
    pub replaces: Option<RunId>,
    /// Of how many published runs of the target, the newest, a cleanup keeps what a revert needs.
    pub keep_previous: u32,
    /// Whether the last three of its columns say where each row is from, see [`haulage_plan::PROVENANCE`].
    pub provenance: bool,
    /// What it may do to the columns of the target.
    pub evolution: Evolution,
    /// What the load says of its files; only a destination of files takes any of it.
    pub layout: Layout,
    /// How often the run has staged again what was lost; for recall and release, how often it was asked to be reverted.
    /// Steps of an earlier round are fenced.
    pub round: u32,
    /// What its publish makes of watermarks.
    pub advances: Vec<Advance>,
    /// Of two rows with one key, that with the higher value in this column stands.
    pub newest: Option<String>,
    /// Of a replay: the run that has read its rows first. In the order of publishes they are of that one's time.
    pub origin: Option<RunId>,
    /// Of the publish of a replay: what the chunks of the origin and of its replays have read, this one's too.
    pub read: Arc<Parts>,
    /// Of a publish: whether rows on the way to the load were rejected, so that a replay of them may come.
    pub rejects: bool,
}

impl LoadContext {
    /// Whether a merge keeps also those rows as they were that it finds just as they are to be. A replay may bring another row
    /// of such a key, and nothing else says that the run has had one, too.
    pub(crate) fn keeps_equal_rows(&self) -> bool {
        self.rejects && !self.provenance && self.newest.is_none()
    }

    /// A row has NULL in a column that takes none. A key column never can: there, only the rows can be mended.
    pub(crate) fn without_value(&self, column: &str, at: u64) -> BadRow {
        let why = if self.key.iter().any(|key| key == column) {
            format!(
                "it has no value, and a key column of {} may not be NULL; reject or filter such rows in the step",
                self.table
            )
        } else {
            format!(
                "it has no value, and {} needs one there; reject such rows in the step, or make the column nullable",
                self.table
            )
        };
        BadRow {
            says_value: true,
            ..self.bad_row(at, Some(column), why)
        }
    }

    /// Why a database can't take the load, where it says something that only files have.
    pub(crate) fn only_for_files(&self) -> Vec<String> {
        let mut misfits = Vec::new();
        if let Some(key) = self.layout.said().first() {
            misfits.push(format!(
                "`{key}` is for files, and the destination is a database; leave it out, or load into a destination of files"
            ));
        }
        if self.table.contains('/') && !self.table.contains('"') {
            misfits.push(format!(
                "table {} is a path, and the destination is a database; write `table` or `schema.table`",
                self.table
            ));
        }
        misfits
    }

    /// A row that is not taken.
    pub(crate) fn bad_row(&self, at: u64, column: Option<&str>, why: String) -> BadRow {
        BadRow {
            load: self.load.clone(),
            at,
            column: column.map(str::to_owned),
            why,
            says_value: false,
        }
    }
}

/// Why a segment is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not on account of a row.
    #[error(transparent)]
    Whole(#[from] Failure),
    /// A row of it has no place there.
    #[error(transparent)]
    Row(#[from] BadRow),
}

/// A row that a destination doesn't take. Permanent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// The load.
    pub load: LoadName,
    /// Its place among the rows that were written to the segment, from 0.
    pub at: u64,
    /// The column, if one is to blame.
    pub column: Option<String>,
    /// What is wrong with it and what to do.
    pub why: String,
    /// Whether that names the value.
    pub says_value: bool,
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "load {}", self.load)?;
        if let Some(column) = &self.column {
            write!(f, ", column {column}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for BadRow {}

impl From<BadRow> for Failure {
    fn from(bad: BadRow) -> Self {
        Failure::permanent(bad.to_string())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Whole(failure) => failure,
            Refused::Row(bad) => bad.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::Schema;

    use super::*;

    /// A load `l` by key `id`.
    pub(super) fn load() -> LoadContext {
        LoadContext {
            pipeline: "p".into(),
            run: RunId::from("r"),
            epoch: Epoch(1),
            attempt: Attempt(1),
            load: LoadName::from("l"),
            table: "t".into(),
            mode: Mode::Merge,
            key: vec!["id".into()],
            schema: Arc::new(Schema::empty()),
            replaces: None,
            keep_previous: 1,
            provenance: false,
            evolution: Evolution::default(),
            layout: Layout::default(),
            round: 0,
            advances: Vec::new(),
            newest: None,
            origin: None,
            read: Arc::default(),
            rejects: false,
        }
    }

    #[test]
    fn a_key_column_is_never_to_be_made_nullable() {
        let load = load();
        let key = load.without_value("id", 7).to_string();
        assert!(
            key.contains("load l, column id: ") && key.contains("key column of t may not be NULL; reject or filter"),
            "{key}"
        );
        assert!(!key.contains("nullable"), "{key}");
        assert!(load.without_value("name", 7).why.contains("nullable"));
    }
}

/// Which table it is that a target's name stands for at its destination: equal for all names and all addresses that lead
/// to the same one, whether it exists or not. Only to be compared, and only within a short time: a server that is started
/// again may be another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity(String);

impl Identity {
    /// From everything that tells one table from another, beginning with the kind of destination.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What a publish does to a column of its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnChange {
    /// The column.
    pub column: String,
    /// What.
    pub change: Change,
    /// The column's type before, as the destination calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its type afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// See [`ColumnChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The target has it from now on.
    Added,
    /// Its type holds more than it did.
    Widened,
    /// The load has nothing for it: new rows have its default, or no value.
    Unfilled,
}

impl std::fmt::Display for ColumnChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (column, from, to) = (&self.column, self.from.as_deref(), self.to.as_deref());
        let (from, to) = (from.unwrap_or("?"), to.unwrap_or("?"));
        match self.change {
            Change::Added => write!(f, "adds column {column} {to}"),
            Change::Widened => write!(f, "widens column {column} from {from} to {to}"),
            Change::Unfilled => write!(f, "has nothing for column {column} {from}"),
        }
    }
}

/// What a publish did to its target's columns, behind what it says of the rows.
fn with_columns(changes: &[ColumnChange]) -> String {
    changes.iter().map(|change| format!(", {change}")).collect()
}

/// What a destination would do, found without touching anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Which table it is about.
    pub identity: Identity,
    /// Whether the target exists.
    pub exists: bool,
    /// Rows there now, if it exists and counting is cheap enough.
    pub rows: Option<u64>,
    /// Statements that prepare and publish would run to make or widen the target.
    pub ddl: Vec<String>,
    /// What would change, a line each, for a person.
    pub changes: Vec<String>,
    /// Where the columns of the load and of a target that exists differ, and what becomes of it.
    pub columns: Vec<ColumnChange>,
    /// Why the load can't fit: each names column, both types, and what to do. Empty if it fits.
    pub misfits: Vec<String>,
}

/// What the chunks reported for this load, which verify and publish hold the staging area against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Rows.
    pub rows: u64,
    /// Markers.
    pub segments: u64,
}

/// How the SQL of destinations differs, where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL's.
    Postgres,
    /// SQLite's.
    Sqlite,
    /// DataFusion's, over files.
    DataFusion,
}

/// A question over `staged`, for a database: the load's columns of a staging table.
fn staged_as(load: &LoadContext, table: &str, question: &str) -> String {
    let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
    format!(
        "WITH staged AS (SELECT {} FROM {table}) {question}",
        name::quote_all(&names)
    )
}

/// How the ids of the runs of a load's pipeline begin.
fn runs_of(load: &LoadContext) -> String {
    format!("{}-", load.pipeline)
}

/// Rows that were noted to be set aside.
pub enum Named {
    /// What a query of the destination gives.
    Query(String),
    /// These.
    Batches(BoxStream<'static, Result<RecordBatch, Failure>>),
}

/// What a destination says that knows nothing of it.
fn sets_nothing_aside(load: &LoadContext) -> Failure {
    Failure::permanent(format!(
        "load {}: its destination can't set rows aside; write `on_fail: fail` or `warn`",
        load.load
    ))
}

/// A place that rows are published to. One value serves every load of every run on this node.
#[async_trait]
pub trait Destination: Send + Sync {
    /// What publishing this load would do. Touches nothing. A failure if the destination can't be used at all.
    async fn inspect(&self, load: &LoadContext) -> Result<Inspection, Failure>;

    /// Makes the staging area. Repeatable; permanent failure if the target's columns can't take the load's rows. In a
    /// higher round than before it opens a verified area again, and makes it anew if rows and markers there don't agree.
    async fn prepare(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// Raises the chunk's fence to the load's epoch and `attempt`, and returns the markers that stand, by segment.
    /// `Fenced` if a later one has begun or the staging area is gone.
    async fn begin(&self, load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Result<Vec<Marker>, Failure>;

    /// This destination, with room for so many open segments; whoever opens segments opens them on what this returns.
    /// The room is taken at once when all of it is free: a chunk that holds some never waits for more, so chunks don't
    /// wait for each other in a circle. It is free again when the value and every segment opened on it are gone.
    async fn reserve(&self, segments: usize) -> Result<Arc<dyn Destination>, Failure>;

    /// Starts one segment of a chunk that has begun.
    async fn segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure>;

    /// Holds the staging area against what the chunks reported, and builds what publishing needs (indexes).
    /// Permanent failure naming the key if the load's key isn't unique among the staged rows; `StagingLost` if less is
    /// there than was staged.
    async fn verify(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure>;

    /// How its SQL differs from others'.
    fn dialect(&self) -> Dialect;

    /// The one row that a SELECT gives over `staged`, the rows of a verified load; all its values have to be texts. Can't
    /// write, whatever the question holds. Permanent failure if it can't be answered; `StagingLost` as of verify.
    async fn ask(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure>;

    /// Takes no more chunks from here on, as verify does at its beginning. What was set aside from the load, if anything
    /// was: it isn't done twice.
    async fn seal(&self, load: &LoadContext, expected: Expected) -> Result<Option<Aside>, Failure> {
        let _ = expected;
        Err(sets_nothing_aside(load))
    }

    /// Notes which rows of a sealed load each condition over `staged` names; how many those are, for each. What was noted
    /// before is forgotten. `StagingLost` as of verify.
    async fn name_rows(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        let _ = (expected, conditions);
        Err(sets_nothing_aside(load))
    }

    /// Where the rows that were noted can be read, each once, with the numbers of the conditions that name it as text in a
    /// last column called `why`: `0,2`.
    async fn named_rows(&self, load: &LoadContext, expected: Expected, why: &str) -> Result<Named, Failure> {
        let _ = (expected, why);
        Err(sets_nothing_aside(load))
    }

    /// Takes the rows that were noted out of the staging area, and writes into the record what they were, in one transaction.
    /// What the record says then: an earlier attempt may have done it. Transient failure if it isn't so many rows.
    async fn set_aside(&self, load: &LoadContext, expected: Expected, what: &Aside) -> Result<Aside, Failure> {
        let _ = (expected, what);
        Err(sets_nothing_aside(load))
    }

    /// Makes the load visible in one transaction; says so again when it already is. Waits while the target is kept for
    /// another run that may take back what it published there; transient failure that names it if that takes long.
    async fn publish(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure>;

    /// How far the incremental sources of a pipeline have been read for this load's target: what publishes to it have
    /// written. `None` if this kind of destination keeps no watermarks.
    async fn watermarks_of(&self, load: &LoadContext) -> Result<Option<Vec<Watermark>>, Failure> {
        let _ = load;
        Ok(None)
    }

    /// The newest run of the load's pipeline whose rows stand in the load's target, by whatever it read.
    async fn published_before(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        let _ = load;
        Ok(None)
    }

    /// What the publish of this load by `run` has made of watermarks; empty if there is none.
    async fn advanced_by(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        let _ = (run, load);
        Ok(Vec::new())
    }

    /// Every watermark here, of one pipeline or of all.
    async fn watermarks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        let _ = pipeline;
        Ok(Vec::new())
    }

    /// Sets a watermark that stands at `was`, or forgets it (`None`); makes it, if it has a column. Permanent failure if there
    /// is none, or it stands elsewhere by now.
    async fn set_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        let _ = was;
        Err(Failure::permanent(format!(
            "destination {} keeps no watermarks",
            mark.destination
        )))
    }

    /// Whether the publish of this run, if it happened, could be undone now. If so, the target is kept until it is, or is
    /// released: no other run publishes there what would stand in the way. Repeatable; permanent failure with what to do
    /// first; `Fenced` if this round's or a later one's recall has been released.
    async fn recall(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// The publish of this run will not be undone after all: others may publish there again. Repeatable, tolerates absence.
    async fn release(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// Undoes the publish of this run, if it happened: the target is as it was before. Repeatable.
    async fn revert(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// Drops the staging area of this run, and fences whatever still writes to it. Repeatable, tolerates absence.
    async fn discard(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// After the whole run is published: drops staging, and what reverts need of all but the newest `keep_previous`
    /// published runs of the target. Repeatable.
    async fn cleanup(&self, load: &LoadContext) -> Result<StepReport, Failure>;

    /// What stands of the load's publish now, and which rows of the target are the run's. The load's columns may be those
    /// of the time of the publish. Touches no rows.
    async fn standing(&self, load: &LoadContext) -> Result<Standing, Failure>;

    /// Reads the rows back that [`standing`](Self::standing) has told as [`Rows::InFiles`]: these columns of them, with their
    /// types.
    async fn read_back(&self, load: &LoadContext, columns: &[Column]) -> Result<Box<dyn ReadBack>, Failure> {
        let _ = columns;
        Err(Failure::permanent(format!(
            "load {}: only rows in files are read back by their destination",
            load.load
        )))
    }

    /// The rows of a table, `limit` at most, whose columns have these values (name, or empty for the parts of the table's
    /// key in order; text), with where they are from. Permanent failure with what to do if the columns can't be found.
    async fn look_up(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure>;
}

/// Writes one segment; dropping it without `commit` leaves nothing behind.
#[async_trait]
pub trait SegmentWriter: Send {
    /// Takes a batch of the load's schema. Waits while the destination is slower than the source.
    async fn write(&mut self, batch: &RecordBatch) -> Result<(), Refused>;

    /// Commits rows and marker in one transaction under the fence. `marker.rows` is set by the destination to what it
    /// counted itself. If the segment's marker already stands, nothing is written and that marker is returned.
    async fn commit(self: Box<Self>, marker: Marker) -> Result<Committed, Refused>;
}

/// What a committed segment left at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The marker that stands.
    pub marker: Marker,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Whether this call wrote it; false if it stood already.
    pub fresh: bool,
}
