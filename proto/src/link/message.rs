//! The bodies of the link's messages.

use std::collections::BTreeMap;

use haulage_core::checkpoint::{ChunkReport, ChunkSpec, Counts};
use haulage_core::checksum::Checksum;
use haulage_core::event::{PlannedStage, SourceColumn, StepReport};
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, LoadName, Millis, NodeName, RunId, Work};
use haulage_core::quarantine::Reject;
use haulage_core::receipt::{LoadReceipt, Looked, Receipt, Verdict};
use haulage_core::run::Judged;
use haulage_core::submission::Submission;
use haulage_core::watermark::{Advance, Watermark};
use serde::{Deserialize, Serialize};

use super::protocol::Speaks;

/// One attempt of one piece of work of one run: what is leased, dispatched, reported and fenced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The run.
    pub run: RunId,
    /// The work.
    pub work: Work,
    /// The try.
    pub attempt: Attempt,
}

/// Coordinator to node, first thing: who are you, and what are you running?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// How long a lease lasts, from the moment the node sent the heartbeat that was answered.
    pub lease_ms: u64,
    /// How often a heartbeat is expected.
    pub heartbeat_ms: u64,
    /// Which protocols the coordinator speaks.
    #[serde(default)]
    pub speaks: Speaks,
}

/// The node's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HelloReply {
    /// Its name.
    pub node: NodeName,
    /// Changes with every start of the process.
    pub boot: String,
    /// Of the binary.
    pub version: String,
    /// How many chunks it works on at once.
    pub slots: u32,
    /// Where its destinations are, by name, without credentials. One that can't be told (its secret is missing, say) is
    /// left out.
    #[serde(default)]
    pub places: BTreeMap<String, String>,
    /// Every attempt it holds, running or finished and not yet acknowledged.
    pub running: Vec<AttemptKey>,
    /// Which protocols the node speaks. One that has none in common with the coordinator's ends by itself.
    #[serde(default)]
    pub speaks: Speaks,
    /// It is about to leave and takes nothing new.
    #[serde(default)]
    pub draining: bool,
}

/// Node to coordinator, every `heartbeat_ms`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub node: NodeName,
    /// Which start of it.
    pub boot: String,
    /// Every attempt it holds, with what it has counted so far.
    pub progress: Vec<(AttemptKey, Counts)>,
    /// Of each of `progress`, in its order: bytes of the source that it has read and not committed. What a lost node had
    /// read again and again is known by this alone. Empty where an earlier release beats.
    #[serde(default)]
    pub ahead: Vec<u64>,
    /// It is about to leave and takes nothing new.
    #[serde(default)]
    pub draining: bool,
}

/// The lease: the node may go on for `lease_ms` from when it sent the heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// Milliseconds.
    pub lease_ms: u64,
    /// Attempts that the leader no longer wants: the node drops them.
    pub unwanted: Vec<AttemptKey>,
    /// Whether the leader doesn't know this node or boot (it was lost): the node drops all and is greeted anew.
    pub unknown: bool,
    /// Another process has the node's name and is alive: this one is not wanted, and ends.
    #[serde(default)]
    pub name_taken: bool,
    /// The leader knows that the node is about to leave, awaits nothing of it any more and gives it nothing new.
    #[serde(default)]
    pub may_leave: bool,
}

/// Coordinator to node: do this. Accepted or refused at once; the outcome comes as [`Done`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Assignment {
    /// Which attempt of what.
    pub key: AttemptKey,
    /// What was submitted; nodes keep it per run.
    pub submission: Submission,
    /// When: what `now()` means in the SQL of every attempt on every node, so that a repeated chunk makes the same rows.
    pub submitted_at: Millis,
    /// The run that this one replaces, when it was run again on purpose.
    pub replaces: Option<RunId>,
    /// The columns by which the run was planned, by source, of sources that may have others than the pipeline declares.
    /// Empty before discovery, and from a leader of an earlier release.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Vec<SourceColumn>>,
    /// The details.
    pub task: Task,
}

/// What an assignment needs beside its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Task {
    /// List and cut the sources, check the plan.
    Discover,
    /// Work off one chunk.
    Chunk {
        /// Which rows.
        spec: ChunkSpec,
    },
    /// Do, or undo (by the key's `Work`), a step of the saga.
    Step {
        /// Rows that the chunks reported as staged for this load, in total.
        expected_rows: u64,
        /// Segments that the chunks reported as standing for this load, in total.
        expected_segments: u64,
        /// Source rows that the chunks which feed it have read, and those of them that went to quarantine on the way to this
        /// load. `None` from a leader of an earlier release, which knows nothing of checks.
        #[serde(default)]
        judged: Option<Judged>,
        /// What a publish of the load makes of the watermarks of its incremental sources.
        #[serde(default)]
        advances: Vec<Advance>,
        /// The load.
        load: LoadName,
        /// How often the run has staged again what was lost; of a recall, how often it was asked to be reverted. A step of an
        /// earlier round has no effect.
        #[serde(default)]
        round: u32,
    },
}

/// What the node says to an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentReply {
    /// It runs, or already ran: a repeated assignment meets its own trace.
    Accepted,
    /// No free slot.
    Full,
    /// It is about to leave. From protocol 2 on; before that it is full.
    Leaving,
    /// The epoch is older than one this node has seen.
    StaleEpoch,
}

/// Node to coordinator, repeated until acknowledged: an attempt has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Who.
    pub node: NodeName,
    /// Which attempt of what.
    pub key: AttemptKey,
    /// How it ended.
    pub result: Result<Outcome, Failure>,
    /// Of one that failed or was handed back: how often its work went on from a checkpoint, by a restart on this node or
    /// because it began where an earlier attempt had stopped. A successful chunk says so in its report.
    #[serde(default)]
    pub restarts: u32,
    /// Of the same: bytes of the source that it read and did not commit, so that they are read again.
    #[serde(default)]
    pub bytes_read_again: u64,
}

/// What an attempt reports that didn't fail.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Of `discover`.
    Discovered {
        /// The plan.
        stages: Vec<PlannedStage>,
    },
    /// Of `chunk`.
    Staged {
        /// What it did.
        report: ChunkReport,
    },
    /// Of a step or a compensation.
    Stepped {
        /// What it did.
        report: StepReport,
    },
    /// Of any work, when the node leaves before its end. What is committed stands. From protocol 2 on; before that it
    /// counts as a failure.
    HandedBack,
}

/// Coordinator to node: a page of a quarantine object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FetchRejects {
    /// The object's key in the checkpoint store.
    pub key: String,
    /// How many rows to leave out from its start.
    pub skip: u64,
    /// Only rows that were rejected for this reason; empty for all. Earlier releases don't know it.
    #[serde(default)]
    pub reason: String,
}

/// Some rows, until they come to 1 MiB or a node has looked at many. What is of use for a replay alone is left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RejectsPage {
    /// The rows, or why they can't be read.
    pub rows: Result<Vec<Reject>, Failure>,
    /// How many rows of the object lie before the next page. `None` from a release that knows no reasons: its page holds all
    /// rows, and an empty one is the end.
    #[serde(default)]
    pub next: Option<u64>,
    /// Whether there is no next page.
    #[serde(default)]
    pub last: bool,
}

/// Coordinator to node, from protocol 4 on: a question about what is published. Reading, so harmless under any epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "examine", rename_all = "snake_case")]
pub enum Examine {
    /// Hold a load's receipt against its target.
    Verify(Box<VerifyLoad>),
    /// Find rows by their key.
    LookUp(LookUp),
}

/// A published load to be compared with its target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyLoad {
    /// The run.
    pub run: RunId,
    /// The run that it replaces.
    pub replaces: Option<RunId>,
    /// What was submitted.
    pub submission: Submission,
    /// The load.
    pub load: LoadName,
    /// Its columns with their types, as the publish reported them.
    pub columns: Vec<(String, String)>,
    /// Rows that were published.
    pub rows: u64,
    /// Over all of them; `None` if no release has summed them up.
    pub checksum: Option<Checksum>,
    /// By chunk: its object, and the sum over its rows (without columns). Empty unless rows say which chunk they are from,
    /// and where checks have set some aside.
    pub chunks: BTreeMap<String, (String, Checksum)>,
}

impl VerifyLoad {
    /// The question about a load of a receipt.
    pub fn of(receipt: &Receipt, load: &LoadReceipt) -> Self {
        let published = load.published.as_ref();
        // Of rows that were set aside only the load knows what they come to.
        let chunks = load.chunks.iter().filter(|_| load.set_aside == 0);
        let chunks = chunks.filter_map(|chunk| {
            let sum = Checksum {
                columns: BTreeMap::new(),
                ..chunk.entry.checksum.clone()?
            };
            Some((chunk.spec.chunk.to_string(), (chunk.spec.object.clone(), sum)))
        });
        Self {
            run: receipt.run.clone(),
            replaces: receipt.replaces.clone(),
            submission: receipt.submission.clone(),
            load: load.outline.name.clone(),
            columns: published.map(|published| published.columns.clone()).unwrap_or_default(),
            rows: published.map_or(0, |published| published.rows),
            checksum: load.total.checksum.clone(),
            chunks: chunks.collect(),
        }
    }
}

/// Rows to be found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LookUp {
    /// The destination's name.
    pub destination: String,
    /// Where it is, without credentials, if that is known: another one of this name won't do.
    pub place: Option<String>,
    /// The table.
    pub table: String,
    /// Column and value; without a name, the parts of the table's key in order.
    pub key: Vec<(String, String)>,
    /// Rows at most.
    pub limit: u32,
}

/// What comes of a question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Examined {
    /// The answer, or why there is none.
    pub answer: Result<Examination, Failure>,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "examined", rename_all = "snake_case")]
pub enum Examination {
    /// Of [`Examine::Verify`].
    Verified(Verdict),
    /// Of [`Examine::LookUp`].
    Found(Looked),
}

/// Coordinator to node: about the watermarks at its destinations.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Watermarks {
    /// Those that are there, of one pipeline or of all.
    List {
        /// The pipeline.
        pipeline: Option<String>,
    },
    /// Set one to another value, or forget it.
    Set {
        /// Which, and what it becomes.
        mark: Box<Watermark>,
        /// Where it stands, as whoever sets it has seen.
        was: Option<String>,
    },
}

/// The node's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatermarksReply {
    /// Those that were asked for, or the one that was set; or why not.
    pub marks: Result<Vec<Watermark>, Failure>,
}

/// Coordinator to node: look into the checkpoint store for what runs have left there, or delete what one has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prune {
    /// Which runs have objects.
    Runs {
        /// Those after this one, in the order of the store; empty for the first.
        after: String,
    },
    /// Delete what a run has, which is at rest.
    Run {
        /// Which.
        run: RunId,
        /// Its rejected rows too; else only what is of use while it isn't at rest.
        rejects: bool,
        /// Only say what there is.
        dry: bool,
        /// Go on after this key; empty for the first.
        after: String,
    },
}

/// What came of a [`Prune`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedPart {
    /// Of `runs`: the next of them, none after the last.
    pub runs: Vec<RunId>,
    /// Of `run`: objects that were deleted, or would be.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of `run`: where to go on, unless that was all.
    pub next: Option<String>,
}

/// The answer to [`Prune`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    /// What was done, or why it can't be.
    pub part: Result<PrunedPart, Failure>,
}

/// Acknowledges a [`Done`]: it is in the ledger, or the leader doesn't want it. The node may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneReply {
    /// False asks the node to say it again later (the ledger could not be written).
    pub acknowledged: bool,
}

/// Coordinator to node: drain and end, as after a SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {}

/// Coordinator to node: these runs are over or cancelled; drop their attempts and what is kept for them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drop {
    /// Attempts to drop.
    pub attempts: Vec<AttemptKey>,
    /// Runs at rest.
    pub runs: Vec<RunId>,
}

/// Parameter values by name, as submitted.
pub type Params = BTreeMap<String, String>;
