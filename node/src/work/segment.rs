//! One segment: through the stage's SQL once per load, into the load's staging area, and committed.
//!
//! The order is what makes a crash at any point harmless. Rows are staged in open transactions; the quarantined rows
//! and the manifest are put into the checkpoint store; then every load commits its rows together with a marker that
//! names the manifest. Before the commit nothing stands, and the objects are garbage that nothing names. Between two
//! loads' commits one load holds the segment and another doesn't: the next try finds the marker, and writes only the
//! other. Every row read is accounted for at every load before anything is committed, and what it writes is summed up for
//! the run's receipt. Rows that a load holds already are compared: of a database that keeps no snapshot they may have
//! changed since.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, UInt64Array};
use haulage_core::checkpoint::{ChunkSpec, Counts, Manifest, Marker};
use haulage_core::checksum::Checksum;
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;
use haulage_plan::definition::Definition;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::blame::{Fault, Seen};
use super::quarantine::{self, Cause, Origin};
use super::resume::Standing;
use super::{Order, Toolbox, provenance};
use crate::receipt::Digest;
use crate::sink::{Destination, LoadContext, SegmentWriter};
use crate::source::{NOT_REPLAYABLE, Segment, Unreadable, replay};
use crate::store::{Store, rejects};
use crate::transform::{Rejected, RowTally, StagePass};

/// A load of the chunk's stage.
pub(crate) struct Target {
    pub(crate) load: LoadContext,
    pub(crate) destination: Arc<dyn Destination>,
    /// The destination's name.
    pub(crate) to: String,
    /// The segments that it already holds.
    pub(crate) standing: Standing,
}

impl Target {
    pub(crate) fn name(&self) -> &str {
        self.load.load.as_str()
    }

    /// Whether the segment has still to be written here.
    fn lacks(&self, segment: u32) -> bool {
        !self.standing.contains_key(&segment)
    }
}

/// Everything that the segments of one chunk are worked on with.
pub(crate) struct Bench<'a> {
    pub(crate) tools: &'a Toolbox,
    pub(crate) definition: &'a Definition,
    pub(crate) order: &'a Order,
    pub(crate) spec: &'a ChunkSpec,
    pub(crate) store: &'a dyn Store,
    pub(crate) pass: &'a StagePass,
    pub(crate) targets: Vec<Target>,
}

/// What a segment left behind.
pub(crate) struct Staged {
    pub(crate) counts: Counts,
    /// The keys of its quarantined rows.
    pub(crate) rejects: Vec<String>,
}

/// A segment at one load, before the commit.
struct Written {
    /// None if the load holds the segment already.
    writer: Option<Box<dyn SegmentWriter>>,
    tally: RowTally,
    rejects: Vec<Rejected>,
    rows: SourceRows,
    /// Over the rows that came out, whether they were written or stand already: without the columns that provenance adds.
    sum: Checksum,
}

/// Which source row each row that was written comes from: the hidden column of its batches, as they were. 8 bytes a row,
/// for the errors of a destination, which may come as late as the commit.
#[derive(Default)]
struct SourceRows(Vec<UInt64Array>);

impl SourceRows {
    fn add(&mut self, batch: &RecordBatch) {
        let rows = batch.columns().last();
        let rows = rows.and_then(|rows| rows.as_any().downcast_ref::<UInt64Array>());
        self.0.extend(rows.cloned());
    }

    /// The source row of the row that was written as number `at`, from 0.
    fn at(&self, at: u64) -> Option<u64> {
        let mut left = usize::try_from(at).ok()?;
        for rows in &self.0 {
            match rows.values().get(left) {
                Some(row) => return Some(*row),
                None => left -= rows.values().len(),
            }
        }
        None
    }
}

impl Bench<'_> {
    /// Takes the segment all the way.
    pub(crate) async fn stage(&self, number: u32, mut segment: Segment) -> Result<Staged, Fault> {
        let transform = info_span!("transform", segment = number, rows = Empty);
        let stage = info_span!("stage", segment = number, rows = Empty);
        let room = self.reserve(number).instrument(stage.clone()).await?;
        let mut written = Vec::new();
        for (place, target) in self.targets.iter().enumerate() {
            // The last load takes the rows, so that they are freed while they are worked off.
            let last = place + 1 == self.targets.len();
            let batches = if last {
                std::mem::take(&mut segment.batches)
            } else {
                segment.batches.clone()
            };
            let batches = routed(&target.load.load, &segment, batches)?;
            let mut writer = None;
            if let Some(room) = room.get(target.to.as_str()).filter(|_| target.lacks(number)) {
                let attempt = self.order.assignment.key.attempt;
                let opening = room.segment(&target.load, self.spec.chunk, attempt);
                writer = Some(opening.instrument(stage.clone()).await?);
            }
            written.push(
                self.through(target, writer, &segment, batches, &transform, &stage)
                    .await?,
            );
        }
        transform.record("rows", segment.rows);
        stage.record(
            "rows",
            written.iter().map(|written| written.tally.output_rows()).sum::<u64>(),
        );
        drop(transform);
        self.commit(number, segment, written).instrument(stage).await
    }

    /// Each destination with room for the loads there that don't hold the segment yet. Destinations are asked in the order
    /// of their names, so that chunks of different pipelines don't wait for each other in a circle either.
    async fn reserve(&self, number: u32) -> Result<BTreeMap<&str, Arc<dyn Destination>>, Failure> {
        let mut wanted: BTreeMap<&str, (&dyn Destination, usize)> = BTreeMap::new();
        for target in self.targets.iter().filter(|target| target.lacks(number)) {
            let (_, segments) = wanted.entry(&target.to).or_insert((target.destination.as_ref(), 0));
            *segments += 1;
        }
        let mut room = BTreeMap::new();
        for (name, (destination, segments)) in wanted {
            room.insert(name, destination.reserve(segments).await?);
        }
        Ok(room)
    }

    /// Runs the stage's SQL for one load and writes what comes out. Transforming and writing take turns, batch by
    /// batch, so a slow destination holds the transform back; each has its own span, entered while it is busy.
    async fn through(
        &self,
        target: &Target,
        mut writer: Option<Box<dyn SegmentWriter>>,
        segment: &Segment,
        batches: Vec<RecordBatch>,
        transform: &Span,
        stage: &Span,
    ) -> Result<Written, Fault> {
        let mut tally = RowTally::new(segment.rows);
        let mut rows = SourceRows::default();
        let mut digest = Digest::default();
        let mut run = self
            .pass
            .run(&target.load.load, batches)
            .instrument(transform.clone())
            .await?;
        while let Some(batch) = run.next().instrument(transform.clone()).await {
            let batch = batch?;
            tally.add(&batch)?;
            let visible: Vec<usize> = (0..batch.num_columns() - 1).collect();
            let shown = batch
                .project(&visible)
                .map_err(|error| Failure::permanent(error.to_string()))?;
            stage.in_scope(|| digest.add(&shown))?;
            if let Some(writer) = &mut writer {
                rows.add(&batch);
                let batch = if target.load.provenance {
                    let (run, chunk) = (&target.load.run, self.spec.chunk);
                    provenance::add(&shown, &batch, run, chunk, segment.raw.as_ref())?
                } else {
                    shown
                };
                let written = writer.write(&batch).instrument(stage.clone()).await;
                written.map_err(|refused| Fault::refused(&target.load.load, refused, |at| rows.at(at)))?;
            }
        }
        Ok(Written {
            writer,
            tally,
            rejects: run.rejects(),
            rows,
            sum: digest.finish(),
        })
    }

    async fn commit(&self, number: u32, segment: Segment, written: Vec<Written>) -> Result<Staged, Fault> {
        let key = &self.order.assignment.key;
        let causes = self.causes(&segment, &written);
        let counts = self.counts(&segment, &written, &causes);
        counts.balance().map_err(|numbers| self.unbalanced(number, &numbers))?;

        self.is_what_stands(number, &segment).await?;

        let manifest = Manifest {
            chunk: self.spec.chunk,
            segment: number,
            epoch: self.order.epoch,
            attempt: key.attempt,
            next: segment.next,
            cursor: segment.cursor.clone(),
            digest: segment.raw.digest(),
            last: segment.last,
            counts,
            rejects: self.quarantine(number, &segment, causes).await?,
        };
        drop(segment);
        let at = rejects::manifest_key(&key.run, self.spec.chunk, key.attempt, number);
        self.store.put(&at, rejects::encode_manifest(&manifest)?).await?;
        self.tools.config().fault.before_commit(self.spec.chunk, number).await;

        let mut counts = manifest.counts;
        for (target, written) in self.targets.iter().zip(written) {
            let held = target.standing.get(&number).map_or(0, |marker| marker.rows);
            let (rows, bytes) = match written.writer {
                Some(writer) => {
                    let rows = written.tally.output_rows();
                    let (chunk, attempt, manifest) = (self.spec.chunk, key.attempt, at.clone());
                    let marker = Marker {
                        chunk,
                        segment: number,
                        attempt,
                        rows,
                        manifest,
                    };
                    let committed = writer.commit(marker).await;
                    let name = &target.load.load;
                    let committed =
                        committed.map_err(|refused| Fault::refused(name, refused, |at| written.rows.at(at)))?;
                    (committed.marker.rows, committed.bytes)
                }
                None => (held, 0),
            };
            if let Some(load) = counts.loads.get_mut(target.name()) {
                (load.loaded, load.bytes) = (rows, bytes);
            }
        }
        // Again, with what the destinations say they hold.
        counts.balance().map_err(|numbers| self.unbalanced(number, &numbers))?;
        Ok(Staged {
            counts,
            rejects: manifest.rejects,
        })
    }

    /// Permanent failure if a load holds the segment with other rows, or up to another place: the loads would differ, and go
    /// on at one place from two, so that rows were lost or came twice. A database without a snapshot and an API may give
    /// others than before.
    async fn is_what_stands(&self, number: u32, segment: &Segment) -> Result<(), Failure> {
        for target in &self.targets {
            let Some(marker) = target.standing.get(&number) else {
                continue;
            };
            let stands = rejects::decode_manifest(&marker.manifest, &self.store.get(&marker.manifest).await?)?;
            if Seen::from(&stands) != Seen::of(segment) {
                return Err(Failure::permanent(format!(
                    "segment {number} of chunk {} ({}) has changed since it was read for load {}: the loads of a run are of \
                     the same rows; run again",
                    self.spec.chunk,
                    self.spec.object,
                    target.name()
                )));
            }
        }
        Ok(())
    }

    /// Puts the rejected rows away; the keys, if there are any.
    async fn quarantine(&self, number: u32, segment: &Segment, causes: Vec<Cause>) -> Result<Vec<String>, Failure> {
        if causes.is_empty() {
            return Ok(Vec::new());
        }
        let key = &self.order.assignment.key;
        let origin = Origin {
            pipeline: &self.definition.pipeline,
            run: &key.run,
            source: &self.spec.source,
            file: &self.spec.object,
            raw: segment.raw.as_ref(),
            columns: segment.raw.columns().into(),
        };
        let at = |part| rejects::rejects_key(&key.run, self.spec.chunk, key.attempt, number, part);
        let rows = causes.into_iter().map(|cause| origin.reject(cause));
        quarantine::keep(self.store, at, rows).await
    }

    fn counts(&self, segment: &Segment, written: &[Written], causes: &[Cause]) -> Counts {
        let mut counts = Counts {
            read: segment.rows,
            bytes: segment.bytes,
            ..Counts::default()
        };
        for (target, written) in self.targets.iter().zip(written) {
            let unreadable = segment.unreadable.iter();
            let unreadable = unreadable
                .filter(|unreadable| match held_back(segment, unreadable) {
                    Some(loads) => loads.contains(&target.load.load),
                    None => may_reach(segment, unreadable.row, &target.load.load),
                })
                .count() as u64;
            let out = written.tally.output_rows();
            let account = written.tally.clone().finish(unreadable, &written.rejects, out, 0);
            counts.loads.insert(target.name().to_owned(), account);
            counts.sums.insert(target.name().to_owned(), written.sum.clone());
        }
        for cause in causes {
            *counts.rejected.entry(cause.reason.clone()).or_default() += 1;
        }
        counts
    }

    /// Why each row of the segment is rejected, in the order of the file. Several loads may share a step and reject the
    /// same row there; that counts once.
    fn causes(&self, segment: &Segment, written: &[Written]) -> Vec<Cause> {
        let all = || self.targets.iter().map(|target| target.load.load.clone()).collect();
        let mut causes: Vec<Cause> = segment
            .unreadable
            .iter()
            .map(|unreadable| Cause {
                row: unreadable.row,
                column: unreadable.column.clone(),
                step: None,
                reason: unreadable.reason.to_owned(),
                detail: unreadable.detail.clone(),
                loads: held_back(segment, unreadable)
                    .or_else(|| segment.raw.loads(unreadable.row))
                    .map_or_else(all, <[LoadName]>::to_vec),
                reached: held_back(segment, unreadable).unwrap_or_default().to_vec(),
            })
            .collect();
        let mut seen: HashMap<(u64, &str), usize> = HashMap::new();
        for (target, written) in self.targets.iter().zip(written) {
            for reject in &written.rejects {
                let at = *seen.entry((reject.row, &*reject.step)).or_insert_with(|| {
                    causes.push(Cause {
                        row: reject.row,
                        column: None,
                        step: Some(reject.step.to_string()),
                        reason: reject.reason.to_string(),
                        detail: format!("rule {} of step {}", reject.reason, reject.step),
                        loads: Vec::new(),
                        reached: Vec::new(),
                    });
                    causes.len() - 1
                });
                let load = &target.load.load;
                causes[at].loads.push(load.clone());
                if written.tally.has(reject.row) {
                    causes[at].reached.push(load.clone());
                }
            }
        }
        causes.sort_by_key(|cause| cause.row);
        causes
    }

    fn unbalanced(&self, number: u32, numbers: &str) -> Failure {
        Failure::permanent(format!(
            "segment {number} of chunk {} ({}) doesn't add up: {numbers}; nothing of this run is published",
            self.spec.chunk, self.spec.object
        ))
    }
}

/// The loads that it is rejected for, if the row goes to others.
fn held_back<'s>(segment: &'s Segment, unreadable: &Unreadable) -> Option<&'s [LoadName]> {
    let is_not_replayable = unreadable.reason == NOT_REPLAYABLE;
    segment.raw.held_back(unreadable.row).filter(|_| is_not_replayable)
}

/// Whether a row of the segment may go to a load.
fn may_reach(segment: &Segment, row: u64, load: &LoadName) -> bool {
    segment.raw.loads(row).is_none_or(|loads| loads.contains(load))
}

/// The rows that may go to a load.
fn routed(load: &LoadName, segment: &Segment, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>, Failure> {
    let mut routed = Vec::with_capacity(batches.len());
    for batch in batches {
        routed.push(replay::only(&batch, |row| may_reach(segment, row, load))?);
    }
    Ok(routed)
}
