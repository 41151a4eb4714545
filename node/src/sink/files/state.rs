//! What a table's state holds, and how it changes: it is read, changed by a decision that touches nothing else, and written
//! on condition that it is still what was read. Otherwise the decision is made again, over what is there now.
//!
//! That one write is to files what a transaction is to a database: record and visible rows change together. The states of a
//! load are those of the other destinations (staged, sealed, published, reverted, discarded), and `sealing` while verify
//! works, which takes several objects here.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId};
use haulage_core::watermark::Advance;
use haulage_plan::definition::{FileFormat, Mode};
use haulage_plan::types;
use serde::{Deserialize, Serialize};

use super::place::Area;
use super::watermarks::Mark;
use crate::sink::fence::Dealt;
use crate::sink::{Aside, LoadContext};

/// The newest format of states that this release reads. A state is written in the first that holds what is in it: 2 has
/// watermarks, and 3 parts with columns of their own, which earlier releases would drop without a word.
pub(super) const FORMAT: u32 = EVOLVED;
const PLAIN: u32 = 1;
const WITH_WATERMARKS: u32 = 2;
const EVOLVED: u32 = 3;
/// Records of ended runs that nothing needs any more are kept for who asks late; beyond so many, the oldest go.
const TOMBSTONES: usize = 256;

/// A table's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) format: u32,
    /// Publishes and reverts so far.
    pub(super) version: u64,
    /// What the table holds; none if there is no table.
    pub(super) head: Option<Head>,
    /// Loads of runs, in the order in which they came.
    pub(super) records: Vec<Record>,
    /// Areas whose files nobody needs any more, until they are removed.
    #[serde(default)]
    pub(super) garbage: Vec<String>,
    /// How far incremental sources have been read for this table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) watermarks: Vec<Mark>,
}

/// What a version holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Its manifest, relative to the table.
    pub(super) manifest: String,
    pub(super) shape: Shape,
    /// What it is made of.
    pub(super) parts: Vec<Part>,
    /// Columns whose values are there once, as the load said that brought all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) key: Vec<String>,
}

/// What all files of a version have in common; of its columns, files may lack some, and have others narrower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) format: FileFormat,
    pub(super) columns: Vec<Column>,
    pub(super) partition_by: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) type_name: String,
}

/// The files that one load of one run has brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) run: String,
    pub(super) area: String,
    /// The list of its files, relative to the table.
    pub(super) list: String,
    pub(super) rows: u64,
    pub(super) segments: u64,
    /// The columns of its files, if not all parts of the table have those of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<Vec<Column>>,
}

/// Where a load stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Staged,
    Sealing,
    Sealed,
    Published,
    Reverted,
    Discarded,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Sealing => "being verified",
            Self::Sealed => "sealed",
            Self::Published => "published",
            Self::Reverted => "reverted",
            Self::Discarded => "discarded",
        }
    }
}

/// The record of a load of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) run: String,
    pub(super) load: String,
    pub(super) pipeline: String,
    pub(super) mode: Mode,
    pub(super) state: State,
    epoch: u64,
    attempts: serde_json::Value,
    pub(super) area: String,
    pub(super) replaces: Option<String>,
    /// Of a replay: the run that has read its rows first.
    #[serde(default)]
    pub(super) origin: Option<String>,
    #[serde(default)]
    pub(super) round: u32,
    /// What verify has sealed.
    pub(super) part: Option<Part>,
    /// When it was published among the others; 0 before.
    #[serde(default)]
    pub(super) sequence: u64,
    #[serde(default)]
    pub(super) detail: String,
    /// Whether there was no table before.
    #[serde(default)]
    pub(super) created: bool,
    /// Of a replace: what was there before it.
    pub(super) before: Option<Head>,
    /// Of an append: what it took away, of the run that it replaces.
    pub(super) taken: Option<Part>,
    pub(super) published_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(super) settled: bool,
    #[serde(default)]
    pub(super) cleaned: bool,
    pub(super) recalled: Option<u32>,
    #[serde(default)]
    pub(super) let_go: u32,
    /// What checks have set aside of the staged rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) set_aside: Option<Aside>,
    /// What its publish has made of watermarks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) advances: Vec<Advance>,
}

impl Record {
    pub(super) fn is_of(&self, load: &LoadContext) -> bool {
        self.run == load.run.as_str() && self.load == load.load.as_str()
    }

    /// Whether it keeps the table for its run: that may still take back what it has published.
    pub(super) fn keeps(&self, now: DateTime<Utc>) -> bool {
        let young = self.published_at.is_some_and(|at| now - at < TimeDelta::hours(1));
        self.state == State::Published && (self.recalled.is_some() || !self.settled && young)
    }

    /// The areas whose files a revert of it needs.
    fn needs(&self) -> impl Iterator<Item = &Part> {
        let before = self.before.iter().flat_map(|head| &head.parts);
        before.chain(&self.taken)
    }
}

impl Table {
    /// The record of a load, if it has one, with the caller's epoch and its attempt of this step entered. `Fenced` if a
    /// later leader, or a later attempt of the step, has already dealt with this load.
    pub(super) fn hold(&mut self, load: &LoadContext, step: &str) -> Result<Option<&mut Record>, Failure> {
        let Some(record) = self.records.iter_mut().find(|record| record.is_of(load)) else {
            return Ok(None);
        };
        let mut dealt = Dealt::read(record.epoch as i64, &record.attempts.to_string()).map_err(|error| {
            Failure::permanent(format!(
                "the record of load {} of run {} can't be read: {error}",
                load.load, load.run
            ))
        })?;
        if dealt.deal(load, step)? {
            record.epoch = dealt.epoch() as u64;
            record.attempts = serde_json::from_str(&dealt.attempts()).unwrap_or_default();
        }
        Ok(Some(record))
    }

    /// Makes the record in state `fresh` if there is none, and [holds](Self::hold) it.
    pub(super) fn claim(&mut self, load: &LoadContext, step: &str, fresh: State) -> Result<&mut Record, Failure> {
        if !self.records.iter().any(|record| record.is_of(load)) {
            self.records.push(Record {
                run: load.run.as_str().to_owned(),
                load: load.load.as_str().to_owned(),
                pipeline: load.pipeline.clone(),
                mode: load.mode,
                state: fresh,
                epoch: 0,
                attempts: serde_json::Value::Object(serde_json::Map::new()),
                area: Area::of(load).id,
                replaces: load.replaces.as_ref().map(|run| run.as_str().to_owned()),
                round: 0,
                part: None,
                sequence: 0,
                detail: String::new(),
                created: false,
                origin: load.origin.as_ref().map(|run| run.as_str().to_owned()),
                before: None,
                taken: None,
                published_at: None,
                settled: false,
                cleaned: false,
                recalled: None,
                let_go: 0,
                set_aside: None,
                advances: Vec::new(),
            });
        }
        match self.hold(load, step)? {
            Some(record) => Ok(record),
            None => Err(Failure::transient(format!("the record of load {} vanished", load.load))),
        }
    }

    /// The record, without dealing with it.
    pub(super) fn record(&self, load: &LoadContext) -> Option<&Record> {
        self.records.iter().find(|record| record.is_of(load))
    }

    /// Whether the table, or a revert that is still possible, needs the files of an area.
    pub(super) fn needs(&self, area: &str) -> bool {
        let live = self.head.iter().flat_map(|head| &head.parts);
        let kept = self.records.iter().flat_map(Record::needs);
        live.chain(kept).any(|part| part.area == area)
    }

    /// The manifests that the table, or a revert that is still possible, needs.
    pub(super) fn manifests(&self) -> HashSet<String> {
        let kept = self.records.iter().filter_map(|record| record.before.as_ref());
        self.head.iter().chain(kept).map(|head| head.manifest.clone()).collect()
    }

    /// The format in which it is written.
    pub(super) fn written_as(&self) -> u32 {
        let heads = self.records.iter().filter_map(|record| record.before.as_ref());
        let parts = self.head.iter().chain(heads).flat_map(|head| &head.parts);
        let taken = self.records.iter().filter_map(|record| record.taken.as_ref());
        if parts.chain(taken).any(|part| part.columns.is_some()) {
            return EVOLVED;
        }
        if self.watermarks.is_empty() {
            PLAIN
        } else {
            WITH_WATERMARKS
        }
    }

    /// The oldest records go that nobody needs: ended ones, and published ones of which nothing is left.
    pub(super) fn forget(&mut self) {
        let over: Vec<bool> = self
            .records
            .iter()
            .map(|record| match record.state {
                State::Reverted | State::Discarded => true,
                State::Published => record.cleaned && record.recalled.is_none() && !self.needs(&record.area),
                State::Staged | State::Sealing | State::Sealed => false,
            })
            .collect();
        let mut spare = over.iter().filter(|over| **over).count().saturating_sub(TOMBSTONES);
        let mut over = over.into_iter();
        self.records.retain(|_| {
            let goes = over.next() == Some(true) && spare > 0;
            spare -= usize::from(goes);
            !goes
        });
    }
}

impl Shape {
    /// Of the load's rows.
    pub(super) fn of(load: &LoadContext) -> Self {
        let column = |name: &str, data_type: &DataType| Column {
            name: name.to_owned(),
            type_name: types::name(data_type),
        };
        let fields = super::rows::stored(&load.schema);
        Self {
            format: load.layout.format.unwrap_or_default(),
            columns: fields
                .fields()
                .iter()
                .map(|field| column(field.name(), field.data_type()))
                .collect(),
            partition_by: load.layout.partition_by.clone(),
        }
    }
}

/// Fence and markers of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Chunk {
    pub(super) stage: u32,
    pub(super) index: u32,
    pub(super) epoch: u64,
    pub(super) attempt: u32,
    /// The round whose verify takes no more of it.
    pub(super) sealed: Option<u32>,
    pub(super) segments: Vec<Segment>,
}

/// A segment's marker, and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) segment: u32,
    pub(super) attempt: u32,
    pub(super) rows: u64,
    pub(super) manifest: String,
    pub(super) files: Vec<File>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Relative to the table.
    pub(super) path: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// A digest of its bytes, in hex; empty where an earlier release has written it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) sum: String,
    /// Values of the partition columns, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) partition: Vec<Option<String>>,
    /// The same rows as Parquet with all columns, while they are staged, if the file is another format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) twin: Option<Twin>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Twin {
    pub(super) path: String,
    pub(super) bytes: u64,
}

impl Chunk {
    pub(super) fn of(chunk: ChunkId) -> Self {
        Self {
            stage: chunk.stage.0,
            index: chunk.index,
            ..Self::default()
        }
    }

    /// Who began last, if anybody has.
    pub(super) fn begun(&self) -> Option<(i64, i64)> {
        (self.attempt > 0).then_some((self.epoch as i64, i64::from(self.attempt)))
    }

    /// Its markers, by segment.
    pub(super) fn markers(&self, chunk: ChunkId) -> Vec<haulage_core::checkpoint::Marker> {
        let mut markers: Vec<_> = self.segments.iter().map(|segment| segment.marker(chunk)).collect();
        markers.sort_by_key(|marker| marker.segment);
        markers
    }
}

impl Segment {
    pub(super) fn marker(&self, chunk: ChunkId) -> haulage_core::checkpoint::Marker {
        haulage_core::checkpoint::Marker {
            chunk,
            segment: self.segment,
            attempt: Attempt(self.attempt),
            rows: self.rows,
            manifest: self.manifest.clone(),
        }
    }
}

/// The wall clock, for how long a table is kept for a run.
#[expect(
    clippy::disallowed_methods,
    reason = "what other nodes wrote down is held against it, and only by the hour"
)]
pub(super) fn now() -> DateTime<Utc> {
    Utc::now()
}

/// What a chunk or step of a load that has ended is told.
pub(super) fn ended(load: &LoadContext, state: &str) -> Failure {
    Failure::fenced(format!(
        "load {} of run {} is {state}; its staging area is gone",
        load.load, load.run
    ))
}

/// Refuses, as `Fenced`, a step of an earlier round: what it was to verify or publish is being staged again.
pub(super) fn same_round(load: &LoadContext, record: &Record) -> Result<(), Failure> {
    if record.round > load.round {
        return Err(Failure::fenced(format!(
            "load {} of run {} has been opened again for round {}, this is round {}",
            load.load, load.run, record.round, load.round
        )));
    }
    Ok(())
}

/// The record of a load that takes chunks. `Fenced` if it takes none.
pub(super) fn must_be_staged<'a>(load: &LoadContext, table: &'a Table) -> Result<&'a Record, Failure> {
    match table.record(load) {
        Some(record) if record.state == State::Staged => Ok(record),
        Some(record) => Err(ended(load, record.state.word())),
        None => Err(ended(load, "not prepared")),
    }
}
