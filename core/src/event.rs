//! The events of a run's log. Additive: an event kind or field, once written to a ledger, is never given another meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{ChunkReport, ChunkSpec};
use crate::failure::Failure;
use crate::ids::{Attempt, LoadName, Millis, NodeName, RunId, StageId, StepId, Work};
use crate::quarantine::SetAside;
use crate::submission::Submission;
use crate::watermark::Advance;
use crate::words::counted;

/// Something that happened to a run. `at` is always the leader's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The run exists. Always the first event, and only the first.
    Submitted {
        /// Its id.
        run: RunId,
        /// What was asked for.
        submission: Box<Submission>,
        /// The run of the same submission whose publish this one replaces, when run again on purpose.
        replaces: Option<RunId>,
        /// When.
        at: Millis,
    },
    /// An attempt was given to a node. Written before the node hears of it.
    Assigned {
        /// What is to be done.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// By whom.
        node: NodeName,
        /// When.
        at: Millis,
    },
    /// Discovery is done: the stages and their chunks.
    Planned {
        /// The attempt of `discover` that found them.
        attempt: Attempt,
        /// Every stage of the run.
        stages: Vec<PlannedStage>,
        /// When.
        at: Millis,
    },
    /// A chunk's rows stand in the staging areas.
    ChunkStaged {
        /// The chunk, as `Work::Chunk`.
        work: Work,
        /// The try that ended it.
        attempt: Attempt,
        /// What it did.
        report: ChunkReport,
        /// When.
        at: Millis,
    },
    /// A step of the saga is done.
    StepDone {
        /// The step.
        step: StepId,
        /// The try that ended it.
        attempt: Attempt,
        /// What it did.
        report: StepReport,
        /// When.
        at: Millis,
    },
    /// A compensation is done.
    Compensated {
        /// The step that is undone.
        step: StepId,
        /// The try that ended it.
        attempt: Attempt,
        /// A line for a person: what was undone, and what had to stay. Empty in the logs of earlier releases.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
        /// When.
        at: Millis,
    },
    /// An attempt ended without success.
    AttemptFailed {
        /// What was tried.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// On which node.
        node: NodeName,
        /// Why it failed.
        failure: Failure,
        /// Whether the node was lost with it, and after how many milliseconds of silence.
        node_lost_after_ms: Option<u64>,
        /// How often its work had gone on from a checkpoint, by a restart on its node or because it began where an
        /// earlier attempt had stopped; 0 if the node can't be asked any more.
        #[serde(default)]
        restarts: u32,
        /// Bytes of the source that it had read and not committed, so that they are read again; of a lost node as its last
        /// heartbeat said.
        #[serde(default)]
        bytes_read_again: u64,
        /// Whether it had committed more of its chunk than any attempt before it. Then earlier failures don't count against
        /// the chunk any more.
        #[serde(default)]
        went_forward: bool,
        /// No next attempt before this moment.
        not_before: Millis,
        /// When.
        at: Millis,
    },
    /// What some loads had staged is gone: the stages that feed them are worked off again.
    Restaged {
        /// Whose staging area holds less than the chunks reported.
        loads: Vec<LoadName>,
        /// The stages whose chunks are open again.
        stages: Vec<StageId>,
        /// How often this has happened to the run, from 1.
        round: u32,
        /// When.
        at: Millis,
    },
    /// A node that leaves gave an attempt back before its end. That is no failure: the work goes on elsewhere, a chunk
    /// from its last checkpoint.
    HandedBack {
        /// What was worked on.
        work: Work,
        /// The try.
        attempt: Attempt,
        /// The node that leaves.
        node: NodeName,
        /// As of a failed attempt.
        #[serde(default)]
        restarts: u32,
        /// As of a failed attempt.
        #[serde(default)]
        bytes_read_again: u64,
        /// When.
        at: Millis,
    },
    /// Somebody asked for the run to end. Refused once the first publish has been assigned.
    CancelRequested {
        /// Why, in the user's words.
        reason: String,
        /// When.
        at: Millis,
    },
    /// The run can't succeed: everything started is undone from here on.
    RollbackStarted {
        /// Why.
        failure: Failure,
        /// When.
        at: Millis,
    },
    /// A compensation keeps failing; an operator has to decide.
    Stuck {
        /// The step that can't be undone.
        step: StepId,
        /// Why.
        failure: Failure,
        /// When.
        at: Millis,
    },
    /// An operator decided about a stuck run.
    Unstuck {
        /// Try the compensation again, or leave it as it is.
        decision: StuckDecision,
        /// Why, in the operator's words.
        reason: String,
        /// Who says so, as their client names them; empty if nobody was named.
        #[serde(default)]
        by: String,
        /// When.
        at: Millis,
    },
    /// An operator leaves a step as it is although undoing it is still tried: as a rule its destination is gone for good.
    Abandoned {
        /// The step.
        step: StepId,
        /// Why, in the operator's words.
        reason: String,
        /// Who says so, as their client names them; empty if nobody was named.
        by: String,
        /// When.
        at: Millis,
    },
    /// Somebody asked for what the run has published to be taken back. Only ever after `finished` as published.
    RevertRequested {
        /// Why, in the user's words.
        reason: String,
        /// Who says so, as their client names them; empty if nobody was named.
        by: String,
        /// When.
        at: Millis,
    },
    /// A load can't be taken back, so none is; the run stays published.
    RevertRefused {
        /// Why, and what to revert first.
        failure: Failure,
        /// When.
        at: Millis,
    },
    /// The rejected rows of a run at rest were deleted, or are about to be. Followed by `finished`, as it stood before.
    RejectsPruned {
        /// Who asked for it, as their client names them; empty if nobody was named.
        by: String,
        /// When.
        at: Millis,
    },
    /// The run is at rest. The last event, but for a revert of a published run, and for `rejects_pruned`.
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// When.
        at: Millis,
    },
}

/// What an operator says about a stuck compensation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckDecision {
    /// Try again.
    Retry,
    /// Leave the step as it is and go on with the others.
    Abandon,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every load is published.
    Published,
    /// Rolled back after a failure: every destination is as it was.
    Failed,
    /// Rolled back because somebody asked for it.
    Cancelled,
    /// Published, and later taken back because somebody asked for it.
    Reverted,
}

/// A stage as discovery planned it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Its number.
    pub stage: StageId,
    /// The chunked source it reads.
    pub source: String,
    /// The steps it runs in one pass, in order.
    pub steps: Vec<String>,
    /// The loads it feeds.
    pub loads: Vec<LoadName>,
    /// Its chunks, in order.
    pub chunks: Vec<ChunkSpec>,
    /// Of an incremental source: what becomes of the watermark of each load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advances: Vec<Advance>,
    /// Of the sources it reads, also as lookups, the columns of those that may have others than their pipeline declares:
    /// every node works with these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Vec<SourceColumn>>,
}

/// A column of a source, as discovery found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceColumn {
    /// Its name.
    pub name: String,
    /// Its type, as a pipeline file calls it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Whether a row without a value is rejected.
    pub required: bool,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepReport {
    /// Rows verified or published, where the step has rows.
    pub rows: u64,
    /// A line for a person: what was made, verified or published, and where.
    pub detail: String,
    /// Of a verified load: what its checks found, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
    /// Of a published load: its columns with their types, in order, so that its rows can be read again without its sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<(String, String)>,
    /// Of a verified load: the staged rows that its checks have set aside, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<Box<SetAside>>,
}

/// What a check of the staged rows found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckResult {
    /// Its name, or its rule in words.
    pub name: String,
    /// Whether it holds.
    pub holds: bool,
    /// Whether the run fails if it doesn't.
    pub blocks: bool,
    /// What was found, for a person.
    pub found: String,
    /// Rows that it has named to be set aside. One that several checks name counts for each.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub set_aside: u64,
}

fn is_zero(rows: &u64) -> bool {
    *rows == 0
}

impl Event {
    /// The kind, as it stands in the ledger.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::Assigned { .. } => "assigned",
            Self::Planned { .. } => "planned",
            Self::ChunkStaged { .. } => "chunk_staged",
            Self::StepDone { .. } => "step_done",
            Self::Compensated { .. } => "compensated",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::Restaged { .. } => "restaged",
            Self::HandedBack { .. } => "handed_back",
            Self::CancelRequested { .. } => "cancel_requested",
            Self::RollbackStarted { .. } => "rollback_started",
            Self::Stuck { .. } => "stuck",
            Self::Unstuck { .. } => "unstuck",
            Self::Abandoned { .. } => "abandoned",
            Self::RevertRequested { .. } => "revert_requested",
            Self::RevertRefused { .. } => "revert_refused",
            Self::RejectsPruned { .. } => "rejects_pruned",
            Self::Finished { .. } => "finished",
        }
    }

    /// When it was written down, by the leader's clock.
    pub fn at(&self) -> Millis {
        match self {
            Self::Submitted { at, .. }
            | Self::Assigned { at, .. }
            | Self::Planned { at, .. }
            | Self::ChunkStaged { at, .. }
            | Self::StepDone { at, .. }
            | Self::Compensated { at, .. }
            | Self::AttemptFailed { at, .. }
            | Self::Restaged { at, .. }
            | Self::HandedBack { at, .. }
            | Self::CancelRequested { at, .. }
            | Self::RollbackStarted { at, .. }
            | Self::Stuck { at, .. }
            | Self::Unstuck { at, .. }
            | Self::Abandoned { at, .. }
            | Self::RevertRequested { at, .. }
            | Self::RevertRefused { at, .. }
            | Self::RejectsPruned { at, .. }
            | Self::Finished { at, .. } => *at,
        }
    }

    /// One line for a person.
    pub fn text(&self) -> String {
        match self {
            Self::Submitted {
                submission, replaces, ..
            } => match replaces {
                _ if submission.replay.is_some() => format!(
                    "submitted {} to replay the rejected rows of {}",
                    submission.file,
                    submission.replay.as_ref().map_or("", |replay| replay.run.as_str())
                ),
                Some(replaced) => format!("submitted {} to replace {replaced}", submission.file),
                None => format!("submitted {}", submission.file),
            },
            Self::Assigned {
                work, attempt, node, ..
            } => format!("{work}, attempt {attempt}, given to node {node}"),
            Self::Planned { stages, .. } => {
                let chunks: usize = stages.iter().map(|stage| stage.chunks.len()).sum();
                let bytes: u64 = stages
                    .iter()
                    .flat_map(|stage| &stage.chunks)
                    .map(|chunk| chunk.bytes)
                    .sum();
                format!(
                    "planned {} with {}, {}",
                    counted(stages.len() as u64, "stage"),
                    counted(chunks as u64, "chunk"),
                    counted(bytes, "byte")
                )
            }
            Self::ChunkStaged { work, report, .. } => {
                let counts = &report.counts;
                let loaded: u64 = counts.loads.values().map(|load| load.loaded).sum();
                let mut text = format!(
                    "{work} staged: {} read, {loaded} staged, {} rejected",
                    counted(counts.read, "row"),
                    counts.rejected_total()
                );
                if report.resumed > 0 {
                    text.push_str(&format!(
                        ", {} of {} stood already",
                        report.resumed,
                        counted(report.segments.into(), "segment")
                    ));
                }
                if report.restarts > 0 {
                    text.push_str(&format!(
                        ", actor restarted {}",
                        counted(report.restarts.into(), "time")
                    ));
                }
                text
            }
            Self::StepDone { step, report, .. } => {
                let mut text = format!("{step} done");
                if !report.detail.is_empty() {
                    text.push_str(&format!(": {}", report.detail));
                }
                let failed: Vec<&CheckResult> = report.checks.iter().filter(|check| !check.holds).collect();
                if !report.checks.is_empty() {
                    let checks = counted(report.checks.len() as u64, "check");
                    text.push_str(&format!("; {checks} made, {} failed", failed.len()));
                }
                for check in failed {
                    text.push_str(&format!("; {}: {}", check.name, check.found));
                }
                text
            }
            Self::Compensated { step, detail, .. } if detail.is_empty() => format!("{step} undone"),
            Self::Compensated { step, detail, .. } => format!("{step} undone: {detail}"),
            Self::AttemptFailed {
                work,
                attempt,
                node,
                failure,
                node_lost_after_ms,
                ..
            } => match node_lost_after_ms {
                Some(silence) => format!(
                    "node {node} lost after {silence} ms of silence; {work}, attempt {attempt}, is given to another"
                ),
                None => format!("{work}, attempt {attempt}, failed on node {node}: {failure}"),
            },
            Self::Restaged {
                loads, stages, round, ..
            } => {
                let names: Vec<&str> = loads.iter().map(LoadName::as_str).collect();
                format!(
                    "what was staged for {} is gone; {} stage(s) are staged again, for the {round}. time",
                    names.join(", "),
                    stages.len()
                )
            }
            Self::HandedBack {
                work, attempt, node, ..
            } => format!("node {node} leaves and hands back {work}, attempt {attempt}"),
            Self::CancelRequested { reason, .. } => format!("cancel requested: {reason}"),
            Self::RollbackStarted { failure, .. } => format!("rolling back: {failure}"),
            Self::Stuck { step, failure, .. } => format!("stuck: {step} can't be undone: {failure}"),
            Self::Unstuck {
                decision, reason, by, ..
            } => {
                let by = if by.is_empty() { "operator" } else { by };
                match decision {
                    StuckDecision::Retry => format!("{by} says retry: {reason}"),
                    StuckDecision::Abandon => format!("{by} says abandon: {reason}"),
                }
            }
            Self::Abandoned { step, reason, by, .. } => {
                let by = if by.is_empty() { "operator" } else { by };
                format!("{by} abandons {step}, which is not undone: {reason}")
            }
            Self::RevertRequested { reason, by, .. } if by.is_empty() => format!("revert requested: {reason}"),
            Self::RevertRequested { reason, by, .. } => format!("{by} says revert: {reason}"),
            Self::RevertRefused { failure, .. } => format!("not reverted, the run stays published: {failure}"),
            Self::RejectsPruned { by, .. } if by.is_empty() => "the rejected rows were pruned".to_owned(),
            Self::RejectsPruned { by, .. } => format!("{by} pruned the rejected rows"),
            Self::Finished { outcome, .. } => outcome.word().to_owned(),
        }
    }
}

impl Outcome {
    /// `published`, `failed`, `cancelled` or `reverted`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Reverted => "reverted",
        }
    }
}
