//! Checkpoints: how far a chunk has come, and what was counted on the way.
//!
//! A chunk is worked off in segments of `checkpoint_rows` source rows. The cut is deterministic: segment `n` of a chunk
//! holds the same rows in every attempt. A segment's rows and its [`Marker`] commit in one transaction of the
//! destination, so a marker that stands means its rows stand, and a restarted chunk continues after the last marker.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;
use crate::ids::{Attempt, ChunkId, Epoch};
use crate::watermark::Window;

/// A place in a source object from which reading can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// Bytes from the start of the object, after decompression; of a Parquet file, rows; of an API, pages, or what its
    /// query counts by.
    pub offset: u64,
    /// The line there, from 1; of a Parquet file, the row; of an API, the record.
    pub line: u64,
}

/// A contiguous part of one source object, on row boundaries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSpec {
    /// Which chunk this is.
    pub chunk: ChunkId,
    /// The source it is read from, as its key in the pipeline file.
    pub source: String,
    /// The object: a local path or an `s3://` address.
    pub object: String,
    /// What the object was when it was discovered (an ETag, or size and modification time); a changed object is an error.
    pub version: String,
    /// Where the first row starts.
    pub start: Position,
    /// One past the last byte, after decompression, or of a Parquet file the last row; `None` is the end of the object.
    pub end: Option<u64>,
    /// Compressed or plain size in bytes, for progress and planning.
    pub bytes: u64,
    /// Of an incremental source: which rows of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// What was counted while rows moved. Sums over segments, chunks and runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Source rows read, also those that could not be parsed.
    pub read: u64,
    /// Bytes of the source, after decompression.
    pub bytes: u64,
    /// Rows in quarantine, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Per load.
    pub loads: BTreeMap<String, LoadCounts>,
    /// Per load: over the rows that were written to it, in the order of nothing. Empty where an earlier release wrote.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sums: BTreeMap<String, Checksum>,
}

/// What one load made of the rows that were read: `read = passed + filtered + rejected`, and
/// `loaded = passed + multiplied`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadCounts {
    /// Rows that the destination says it staged.
    pub loaded: u64,
    /// Source rows that a WHERE or a join of the steps left out.
    pub filtered: u64,
    /// Source rows that reached the load.
    pub passed: u64,
    /// Source rows that a reject rule on the way to this load, or the parser, put into quarantine.
    pub rejected: u64,
    /// Rows beyond the first that a join made from one source row.
    pub multiplied: u64,
    /// Bytes sent to the destination.
    pub bytes: u64,
}

impl Counts {
    /// The counts alone, for whoever shows how far work has come.
    pub fn without_sums(&self) -> Self {
        Self {
            read: self.read,
            bytes: self.bytes,
            rejected: self.rejected.clone(),
            loads: self.loads.clone(),
            sums: BTreeMap::new(),
        }
    }

    /// All rows in quarantine.
    pub fn rejected_total(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Whether every row read is accounted for in every load; `Err` names the load and the numbers.
    pub fn balance(&self) -> Result<(), String> {
        for (load, counts) in &self.loads {
            let accounted = counts.passed + counts.filtered + counts.rejected;
            if accounted != self.read || counts.loaded != counts.passed + counts.multiplied {
                return Err(format!(
                    "load {load}: read {} rows, but passed {} + filtered {} + rejected {} = {accounted}, \
                     and staged {} of {} rows",
                    self.read,
                    counts.passed,
                    counts.filtered,
                    counts.rejected,
                    counts.loaded,
                    counts.passed + counts.multiplied,
                ));
            }
        }
        Ok(())
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.read += other.read;
        self.bytes += other.bytes;
        for (reason, rows) in &other.rejected {
            *self.rejected.entry(reason.clone()).or_default() += rows;
        }
        for (load, counts) in &other.loads {
            *self.loads.entry(load.clone()).or_default() += counts;
        }
        for (load, sum) in &other.sums {
            *self.sums.entry(load.clone()).or_default() += sum;
        }
    }
}

impl AddAssign<&LoadCounts> for LoadCounts {
    fn add_assign(&mut self, other: &LoadCounts) {
        self.loaded += other.loaded;
        self.filtered += other.filtered;
        self.passed += other.passed;
        self.rejected += other.rejected;
        self.multiplied += other.multiplied;
        self.bytes += other.bytes;
    }
}

/// The manifest of one committed segment, kept in the checkpoint store under an attempt-scoped key and named by the
/// marker that commits with the rows. What no marker names does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The chunk.
    pub chunk: ChunkId,
    /// Which segment of the chunk, from 0.
    pub segment: u32,
    /// The leader's term in which that attempt was given out; 0 where an earlier release wrote it.
    #[serde(default)]
    pub epoch: Epoch,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// Where the next segment starts.
    pub next: Position,
    /// The name of that place, where a position alone doesn't find it: what an API calls its next page. No secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// What the segment's rows sum up to, where reading them again may give others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether this is the chunk's last segment.
    pub last: bool,
    /// What this segment counted.
    pub counts: Counts,
    /// The keys in the checkpoint store of this segment's quarantined rows, in order; most often one, or none.
    #[serde(default, with = "keys")]
    pub rejects: Vec<String>,
}

/// One key is written as the text that earlier releases read and wrote, and none as `null`. They refuse a list, and with it
/// to go on behind rows that they wouldn't report.
mod keys {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Keys {
        One(String),
        All(Vec<String>),
    }

    pub(super) fn serialize<S: Serializer>(keys: &[String], into: S) -> Result<S::Ok, S::Error> {
        match keys {
            [] => into.serialize_none(),
            [one] => one.serialize(into),
            all => all.serialize(into),
        }
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<String>, D::Error> {
        Ok(match Option::deserialize(from)? {
            None => Vec::new(),
            Some(Keys::One(key)) => vec![key],
            Some(Keys::All(keys)) => keys,
        })
    }
}

/// What a destination holds in the same transaction as the rows of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The chunk.
    pub chunk: ChunkId,
    /// Which segment of the chunk, from 0.
    pub segment: u32,
    /// The attempt that wrote it.
    pub attempt: Attempt,
    /// Rows of this segment in the staging area.
    pub rows: u64,
    /// The key of the segment's [`Manifest`] in the checkpoint store.
    pub manifest: String,
}

/// What a finished chunk reports: enough for totals, for verification and for finding its quarantined rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkReport {
    /// The sum over its segments.
    pub counts: Counts,
    /// Segments that stand.
    pub segments: u32,
    /// Segments that stood when the reporting actor began (of an earlier attempt, or from before a restart): it neither
    /// read nor wrote them again.
    pub resumed: u32,
    /// Keys of quarantined rows in the checkpoint store, in order.
    pub rejects: Vec<String>,
    /// Restarts of the chunk actor on its node within this attempt.
    pub restarts: u32,
    /// Whether segments of an earlier attempt stood when this one began, so that it went on from a checkpoint.
    #[serde(default)]
    pub continued: bool,
    /// Bytes of the source that this attempt read more than once because its actor was restarted.
    #[serde(default)]
    pub bytes_read_again: u64,
}

impl ChunkReport {
    /// How often this attempt's work went on from a checkpoint: its restarts, and its own beginning if that was one.
    pub fn restarted(&self) -> u32 {
        self.restarts.saturating_add(u32::from(self.continued))
    }
}
