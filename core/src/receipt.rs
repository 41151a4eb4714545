//! Receipts: what a run has read, left out and written, chunk by chunk, for each of its loads. Derived from the run's log,
//! which has it all; there is no second book.
//!
//! Also what comes of comparing a receipt with the target afterwards, which only a node can: a [`Verdict`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{ChunkSpec, LoadCounts};
use crate::checksum::Checksum;
use crate::event::{Event, Outcome};
use crate::ids::{Attempt, ChunkId, LoadName, Millis, RunId, StepKind, Work};
use crate::run::State;
use crate::submission::{LoadOutline, Submission};

/// The receipt of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The run.
    pub run: RunId,
    /// What was asked for.
    pub submission: Submission,
    /// The run that this one replaces.
    pub replaces: Option<RunId>,
    /// How and when it came to rest.
    pub finished: Option<(Outcome, Millis)>,
    /// One for each load, in the order in which they publish.
    pub loads: Vec<LoadReceipt>,
}

/// The receipt of one load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReceipt {
    /// Which load, and where it goes.
    pub outline: LoadOutline,
    /// The staged chunks that feed it, in order.
    pub chunks: Vec<ChunkReceipt>,
    /// The sum over them. Its checksum is that of the rows that were not set aside: those to be visible.
    pub total: Entry,
    /// Staged rows that checks have set aside.
    pub set_aside: u64,
    /// The publish, if it is done.
    pub published: Option<Published>,
}

/// What was read, and what became of it on the way to one load: `read = passed + filtered + rejected`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Source rows.
    pub read: u64,
    /// What became of them.
    pub counts: LoadCounts,
    /// Over the rows that were staged; `None` if a part of them was staged by a release that made no checksums.
    pub checksum: Option<Checksum>,
}

/// One chunk of a load's receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkReceipt {
    /// Which part of which object.
    pub spec: ChunkSpec,
    /// The attempt that ended it.
    pub attempt: Attempt,
    /// Its rows.
    pub entry: Entry,
}

/// What was made visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Rows.
    pub rows: u64,
    /// Where and how, for a person.
    pub detail: String,
    /// When it was written down.
    pub at: Millis,
    /// The columns with their types, as the load wrote them. Empty where an earlier release published.
    pub columns: Vec<(String, String)>,
}

impl Receipt {
    /// From a run's log; `None` if that is empty.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event> + Clone) -> Option<Self> {
        let state = State::fold(events.clone());
        let mut attempts: BTreeMap<ChunkId, Attempt> = BTreeMap::new();
        let mut moments: BTreeMap<LoadName, Millis> = BTreeMap::new();
        for event in events {
            if let Event::ChunkStaged {
                work: Work::Chunk(chunk),
                attempt,
                ..
            } = event
            {
                attempts.insert(*chunk, *attempt);
            }
            if let Event::StepDone { step, at, .. } = event
                && step.kind == StepKind::Publish
            {
                moments.insert(step.load.clone(), *at);
            }
        }
        let submission = state.submission()?.clone();
        let loads = submission.loads.iter();
        let loads = loads
            .map(|outline| load(&state, outline, &attempts, moments.get(&outline.name).copied()))
            .collect();
        Some(Self {
            run: state.run()?.clone(),
            submission,
            replaces: state.replaces().cloned(),
            finished: state.finished(),
            loads,
        })
    }

    /// Whether what it published still counts: it is published, and not taken back.
    pub fn stands(&self) -> bool {
        matches!(self.finished, Some((Outcome::Published, _)))
    }
}

fn load(
    state: &State,
    outline: &LoadOutline,
    attempts: &BTreeMap<ChunkId, Attempt>,
    published_at: Option<Millis>,
) -> LoadReceipt {
    let mut chunks = Vec::new();
    let mut total = Entry {
        checksum: Some(Checksum::default()),
        ..Entry::default()
    };
    for stage in state
        .stages()
        .iter()
        .filter(|stage| stage.loads.contains(&outline.name))
    {
        for spec in &stage.chunks {
            let Some(report) = state.chunk_report(spec.chunk) else {
                continue;
            };
            let name = outline.name.as_str();
            let counts = report.counts.loads.get(name).copied().unwrap_or_default();
            let checksum = match report.counts.sums.get(name) {
                Some(sum) if sum.rows == counts.loaded => Some(sum.clone()),
                None if counts.loaded == 0 => Some(Checksum::default()),
                // Segments of an earlier release stand among the others.
                Some(_) | None => None,
            };
            let entry = Entry {
                read: report.counts.read,
                counts,
                checksum,
            };
            total.add(&entry);
            chunks.push(ChunkReceipt {
                spec: spec.clone(),
                attempt: attempts.get(&spec.chunk).copied().unwrap_or_default(),
                entry,
            });
        }
    }
    let aside = state.set_aside().get(&outline.name);
    if let Some(aside) = aside {
        total.checksum = match (total.checksum.take(), &aside.checksum) {
            (Some(mut all), Some(gone)) => {
                all -= gone;
                Some(all)
            }
            _ => None,
        };
    }
    let published = state.step_report(StepKind::Publish, &outline.name);
    LoadReceipt {
        outline: outline.clone(),
        chunks,
        total,
        set_aside: aside.map_or(0, |aside| aside.rows),
        published: published.map(|report| Published {
            rows: report.rows,
            detail: report.detail.clone(),
            at: published_at.unwrap_or_default(),
            columns: report.columns.clone(),
        }),
    }
}

impl Entry {
    fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.counts += &other.counts;
        self.checksum = match (self.checksum.take(), &other.checksum) {
            (Some(mut mine), Some(theirs)) => {
                mine += theirs;
                Some(mine)
            }
            _ => None,
        };
    }
}

/// What a target says about a load's receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The rows are there as they were published, every one and no other.
    Holds,
    /// They are not.
    Differs,
    /// It can't be told.
    Unknown,
}

/// A receipt held against its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it holds.
    pub answer: Answer,
    /// What differs, or why it can't be told, a line each, for a person.
    pub findings: Vec<String>,
    /// What was compared and what was left out, a line each, for a person.
    pub notes: Vec<String>,
    /// Rows that the run published.
    pub published: u64,
    /// Rows of the run that are there, if they can be told from others.
    pub found: Option<u64>,
    /// What they come to.
    pub checksum: Option<Checksum>,
    /// Columns whose sums differ.
    pub columns: Vec<String>,
}

impl Verdict {
    /// Nothing can be told, and why; so many rows were published.
    pub fn unknown(published: u64, why: String) -> Self {
        Self {
            answer: Answer::Unknown,
            findings: vec![why],
            notes: Vec::new(),
            published,
            found: None,
            checksum: None,
            columns: Vec::new(),
        }
    }
}

/// Somebody who has published to a table, as its destination knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// The run.
    pub run: RunId,
    /// Its load.
    pub load: LoadName,
    /// append, replace or merge.
    pub mode: String,
    /// The run whose rows it replaced, when it was run again on purpose.
    pub replaces: Option<RunId>,
    /// When, by the destination's clock, as it writes it.
    pub at: String,
}

/// A row that was asked for by its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundRow {
    /// The values of the columns that were asked by.
    pub key: Vec<(String, String)>,
    /// The run that wrote it last, if the table says so.
    pub run: Option<RunId>,
    /// The chunk, likewise.
    pub chunk: Option<String>,
    /// Its line or row number in the chunk's object.
    pub line: Option<u64>,
}

/// What a destination knows about rows by their key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// The table, as the destination resolves its name.
    pub table: String,
    /// Whether its rows say which run, chunk and line they are from.
    pub provenance: bool,
    /// The rows, as many as were asked for at most.
    pub rows: Vec<FoundRow>,
    /// Whether there are more.
    pub more: bool,
    /// Who has published there, newest first.
    pub publishers: Vec<Publisher>,
}
