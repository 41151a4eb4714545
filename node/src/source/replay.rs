//! Rejected rows as a source: what a run has put into quarantine is read again, in the place of the source that it came
//! from and by the declaration that this source has now.
//!
//! A chunk is one object of the quarantine, and a position in it is a row's number, from 0. An object is never written
//! twice; that it is the one which was discovered is seen by its bytes.
//!
//! A row goes only to the loads that it was rejected for: others have it. One that can't be read again as it was is rejected
//! again ([`NOT_REPLAYABLE`]), with everything that is known of it. So is one for the loads that have other rows which were
//! made of it, while it goes to the others. No row is lost here, and none altered.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::{Array, BooleanArray, RecordBatch, UInt64Array};
use datafusion::arrow::compute::filter_record_batch;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, LoadName, StageId};
use haulage_core::quarantine::{Form, Reject};
use haulage_plan::Compiled;
use haulage_plan::contract::{Contract, NewColumn};
use haulage_plan::definition::Column;
use sha2::{Digest as _, Sha256};

use super::{
    KeptRow, Misdeclared, NEW_COLUMN, NOT_REPLAYABLE, RawRows, Reread, Segment, SegmentReader, Source, Unreadable,
};
use crate::store::{Store, rejects};

/// Objects that are looked at in parallel.
const PARALLEL: usize = 4;
/// Rows of a segment, at most: each is in memory with its file, reason and text.
const SEGMENT_ROWS: u64 = 8192;
/// Bytes of rows after which a segment ends.
const SEGMENT_BYTES: usize = 8 << 20;

/// The rejected rows of a source.
pub(crate) struct Replayed {
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    routes: Arc<Routes>,
    checkpoint_rows: u64,
    /// Whether a row with a column that nobody has declared goes to quarantine.
    holds_new: bool,
}

/// Which loads a row may go to.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Those that the source feeds.
    loads: BTreeSet<LoadName>,
    /// Of the steps with rules on the way to them: which.
    steps: BTreeMap<String, Vec<LoadName>>,
}

impl Routes {
    /// From a source to its loads.
    pub(crate) fn of(compiled: &Compiled, source: &str) -> Self {
        let mut routes = Self::default();
        for stage in compiled.stages.iter().filter(|stage| stage.source == source) {
            for name in &stage.loads {
                routes.loads.insert(name.clone());
                for step in compiled.loads.get(name).into_iter().flat_map(|load| &load.rejects) {
                    routes.steps.entry(step.clone()).or_default().push(name.clone());
                }
            }
        }
        routes
    }

    /// The loads that a row goes to, `None` if that is all of them; or why it goes to none, for a person.
    fn find(&self, reject: &Reject) -> Result<Route, String> {
        let Some(kept) = &reject.kept else {
            // An earlier release did not say. A row that could not be read has reached none.
            let Some(step) = &reject.step else {
                return Ok(Route::default());
            };
            return match self.steps.get(step) {
                Some(loads) => Ok(Route {
                    loads: Some(loads.clone()),
                    held_back: Vec::new(),
                }),
                None => Err(format!(
                    "the pipeline has no step {step} with rules any more, so it isn't known which loads have it"
                )),
            };
        };
        let (held_back, loads): (Vec<_>, Vec<_>) =
            kept.loads.iter().cloned().partition(|load| kept.reached.contains(load));
        if loads.is_empty() && !held_back.is_empty() {
            return Err(reached(&held_back));
        }
        match loads.iter().find(|load| !self.loads.contains(*load)) {
            Some(load) => Err(format!(
                "it was rejected for the load {load}, which this source doesn't feed any more"
            )),
            None => Ok(Route {
                loads: Some(loads),
                held_back,
            }),
        }
    }
}

/// Where a row goes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Route {
    /// The loads that get it; `None` is all.
    loads: Option<Vec<LoadName>>,
    /// Those for which it stays rejected, since other rows that were made of it have reached them.
    held_back: Vec<LoadName>,
}

/// Why loads don't get a row, for a person.
fn reached(loads: &[LoadName]) -> String {
    let named: Vec<&str> = loads.iter().map(LoadName::as_str).collect();
    format!(
        "a join or UNION ALL made several rows of it, and load {} has others of them, which it would get twice",
        named.join(", ")
    )
}

impl Replayed {
    /// The rows in `store` that `source` gave.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        routes: Routes,
        checkpoint_rows: u64,
        contract: Contract,
    ) -> Self {
        Self {
            source,
            store,
            routes: Arc::new(routes),
            checkpoint_rows: checkpoint_rows.clamp(1, SEGMENT_ROWS),
            holds_new: contract.on_new_column == NewColumn::Quarantine,
        }
    }
}

/// The chunks of a stage that reads these objects: one for each.
pub(crate) async fn chunks(
    store: &dyn Store,
    stage: StageId,
    source: &str,
    objects: &[String],
) -> Result<Vec<ChunkSpec>, Failure> {
    let looks: Vec<_> = (0..)
        .zip(objects)
        .map(|(index, key)| look(store, ChunkId { stage, index }, source, key))
        .collect();
    stream::iter(looks).buffered(PARALLEL).try_collect().await
}

async fn look(store: &dyn Store, chunk: ChunkId, source: &str, key: &str) -> Result<ChunkSpec, Failure> {
    let data = store.get(key).await?;
    let mut rows = 0;
    rejects::each(key, &data, |_| {
        rows += 1;
        ControlFlow::Continue(())
    })?;
    Ok(ChunkSpec {
        chunk,
        source: source.to_owned(),
        object: key.to_owned(),
        version: version(&data),
        start: position(0),
        end: Some(rows),
        bytes: data.len() as u64,
        window: None,
    })
}

fn version(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn position(row: u64) -> Position {
    Position {
        offset: row,
        line: row + 1,
    }
}

#[async_trait]
impl Source for Replayed {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        self.source.columns().await
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        Ok(())
    }

    async fn discover(&self, _: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        // What there is to read stands in the submission.
        Ok(Vec::new())
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let data = self.store.get(&chunk.object).await?;
        if version(&data) != chunk.version {
            return Err(Failure::permanent(format!(
                "the rejected rows in {} are not those that were there when the replay began; leave the checkpoint store \
                 alone while a run reads it, and run the replay again",
                chunk.object
            )));
        }
        let mut rows = rejects::Rows::new(&chunk.object, Cursor::new(data))?;
        rows.pass_over(from.offset)?;
        Ok(Box::new(ReplayReader {
            source: Arc::clone(&self.source),
            routes: Arc::clone(&self.routes),
            checkpoint_rows: self.checkpoint_rows,
            holds_new: self.holds_new,
            rows,
            ahead: None,
            at: from.offset,
            done: false,
        }))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        self.source.reread(rows).await
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        self.source.read_all().await
    }
}

struct ReplayReader {
    source: Arc<dyn Source>,
    routes: Arc<Routes>,
    checkpoint_rows: u64,
    holds_new: bool,
    rows: rejects::Rows<Cursor<Bytes>>,
    /// The first row of the next segment, which had to be read to know that there is one.
    ahead: Option<Reject>,
    /// The number of that row.
    at: u64,
    done: bool,
}

impl ReplayReader {
    /// The rows of the next segment, and whether they are the last.
    fn rows(&mut self) -> Result<(Vec<Row>, bool), Failure> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        loop {
            let next = match self.ahead.take() {
                None => self.rows.read()?,
                ahead => ahead,
            };
            let Some(reject) = next else { return Ok((rows, true)) };
            if rows.len() as u64 == self.checkpoint_rows || bytes >= SEGMENT_BYTES {
                self.ahead = Some(reject);
                return Ok((rows, false));
            }
            let row = Row::new(reject, &self.routes);
            bytes += row.bytes().len();
            rows.push(row);
        }
    }
}

#[async_trait]
impl SegmentReader for ReplayReader {
    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        if self.done {
            return Ok(None);
        }
        let (mut rows, last) = self.rows()?;
        let mut unreadable = Vec::new();
        let (mut sound, mut places) = (Vec::new(), Vec::new());
        let declared = self.source.columns().await?;
        let is_new = |reject: &Reject| {
            let column = reject.column.as_ref();
            let is_declared = declared.iter().any(|declared| Some(&declared.name) == column);
            self.holds_new && reject.reason == NEW_COLUMN && !is_declared
        };
        for (place, row) in (0..).zip(&rows) {
            match &row.lost {
                Some(why) => unreadable.push(lost(place, &row.reject, why)),
                None if is_new(&row.reject) => unreadable.push(Unreadable {
                    row: place,
                    column: row.reject.column.clone(),
                    reason: NEW_COLUMN,
                    detail: row.reject.detail.clone(),
                }),
                None => {
                    sound.push(row.kept());
                    places.push(place);
                }
            }
        }
        let Reread {
            batches,
            unreadable: again,
        } = self.source.reread(&sound).await?;
        // Read by themselves, the sound rows were counted without the others.
        let place = |row: u64| usize::try_from(row).ok().and_then(|row| places.get(row).copied());
        let mut renumbered = Vec::with_capacity(batches.len());
        for batch in &batches {
            renumbered.push(self::renumbered(batch, |row| place(row).unwrap_or(u64::MAX))?);
        }
        for row in again {
            let Some(place) = place(row.row) else { continue };
            unreadable.push(match (row.reason, rows.get_mut(place as usize)) {
                (NOT_REPLAYABLE, Some(before)) => {
                    before.hold_back_all();
                    lost(place, &before.reject, &row.detail)
                }
                _ => Unreadable { row: place, ..row },
            });
        }
        for (place, row) in (0..).zip(&rows) {
            if !row.held_back.is_empty() {
                unreadable.push(lost(place, &row.reject, &reached(&row.held_back)));
            }
        }
        unreadable.sort_by_key(|unreadable| unreadable.row);
        self.at += rows.len() as u64;
        self.done = last;
        Ok(Some(Segment {
            batches: renumbered,
            unreadable,
            rows: rows.len() as u64,
            bytes: rows.iter().map(|row| row.bytes().len() as u64).sum(),
            next: position(self.at),
            cursor: None,
            last,
            raw: Box::new(Raw(rows)),
        }))
    }
}

/// A row that stays rejected, since it can't be read again.
fn lost(row: u64, reject: &Reject, why: &str) -> Unreadable {
    let detail = match reject.reason.as_str() {
        // As it was said the first time, and not once more around that.
        NOT_REPLAYABLE => reject.detail.clone(),
        reason => format!("it can't be replayed: {why}; it was {reason}: {}", reject.detail),
    };
    Unreadable {
        row,
        column: reject.column.clone(),
        reason: NOT_REPLAYABLE,
        detail,
    }
}

/// A row of a segment.
struct Row {
    reject: Reject,
    /// Its bytes, if they are not those of the text.
    bytes: Option<Vec<u8>>,
    /// `None` is all.
    loads: Option<Vec<LoadName>>,
    /// Of one that can be read again: for which loads it stays rejected.
    held_back: Vec<LoadName>,
    /// Why it can't be read again.
    lost: Option<String>,
}

impl Row {
    fn new(reject: Reject, routes: &Routes) -> Self {
        let (bytes, broken) = match reject.kept.as_ref().map(|kept| &kept.form) {
            Some(Form::Raw | Form::Values(_)) => (None, None),
            Some(Form::Hex(hex)) => match Form::bytes_of(hex) {
                Some(bytes) => (Some(bytes), None),
                None => (None, Some("its bytes are damaged".to_owned())),
            },
            Some(Form::Partly(why)) => (None, Some(why.clone())),
            None => (None, broken(&reject)),
        };
        let (route, unknown) = match routes.find(&reject) {
            Ok(route) => (route, None),
            Err(why) => (Route::default(), Some(why)),
        };
        let mut row = Self {
            reject,
            bytes,
            loads: route.loads,
            held_back: route.held_back,
            lost: broken.or(unknown),
        };
        if row.lost.is_some() {
            row.hold_back_all();
        }
        row
    }

    /// It can't be read again, for any load: it stays rejected as it is.
    fn hold_back_all(&mut self) {
        self.held_back.clear();
        if let Some(kept) = &self.reject.kept {
            self.loads = Some(kept.loads.clone());
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.reject.raw.as_bytes())
    }

    fn kept(&self) -> KeptRow<'_> {
        let kept = self.reject.kept.as_ref();
        KeptRow {
            file: &self.reject.file,
            line: self.reject.line,
            columns: kept.and_then(|kept| kept.columns.as_deref()),
            bytes: self.bytes(),
            values: kept.and_then(|kept| match &kept.form {
                Form::Values(values) => Some(values.as_slice()),
                Form::Raw | Form::Hex(_) | Form::Partly(_) => None,
            }),
        }
    }
}

/// What an earlier release did not keep of a row, if that can be seen. It kept the text alone.
fn broken(reject: &Reject) -> Option<String> {
    if reject.detail.ends_with("bytes of the row are kept)") {
        return Some("not all of it was kept".to_owned());
    }
    let shown = reject.raw.match_indices("\\x").any(|(at, _)| {
        let digits = reject.raw.as_bytes().get(at + 2..at + 4);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    shown.then(|| "an earlier release kept its text, which may show bytes that are none as \\xNN".to_owned())
}

/// The rows of a segment, as they were rejected.
struct Raw(Vec<Row>);

impl Raw {
    fn at(&self, row: u64) -> Option<&Row> {
        self.0.get(usize::try_from(row).ok()?)
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        self.at(row).map(|row| (row.reject.line, row.bytes()))
    }

    fn rejected(&self, row: u64) -> Option<&Reject> {
        self.at(row).map(|row| &row.reject)
    }

    fn loads(&self, row: u64) -> Option<&[LoadName]> {
        self.at(row)?.loads.as_deref()
    }

    fn held_back(&self, row: u64) -> Option<&[LoadName]> {
        let loads = self.at(row)?.held_back.as_slice();
        (!loads.is_empty()).then_some(loads)
    }
}

/// The batch with other numbers in its row column.
pub(super) fn renumbered(batch: &RecordBatch, number: impl Fn(u64) -> u64) -> Result<RecordBatch, Failure> {
    let rows = UInt64Array::from_iter_values(rows_of(batch)?.values().iter().map(|row| number(*row)));
    let mut columns = batch.columns().to_vec();
    if let Some(last) = columns.last_mut() {
        *last = Arc::new(rows);
    }
    RecordBatch::try_new(batch.schema(), columns).map_err(wrong)
}

/// The rows of a batch that are wanted by their place in the segment.
pub(crate) fn only(batch: &RecordBatch, wanted: impl Fn(u64) -> bool) -> Result<RecordBatch, Failure> {
    let wanted: BooleanArray = rows_of(batch)?.values().iter().map(|row| Some(wanted(*row))).collect();
    if wanted.true_count() == wanted.len() {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, &wanted).map_err(wrong)
}

fn rows_of(batch: &RecordBatch) -> Result<&UInt64Array, Failure> {
    let rows = batch.columns().last();
    rows.and_then(|rows| rows.as_any().downcast_ref())
        .ok_or_else(|| Failure::permanent("rows came without their places in the segment; this is a bug"))
}

fn wrong(error: datafusion::arrow::error::ArrowError) -> Failure {
    Failure::permanent(format!("a batch of rejected rows can't be made: {error}"))
}
