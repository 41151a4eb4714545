//! Newtypes for everything that has an identity, so that a chunk index is never passed where an attempt is meant.
//!
//! Ids derive from the run, the stage and the chunk: a repeated effect meets its own trace instead of making a new one.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// Wraps a text; no check is made.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

text_id! {
    /// A run: pipeline name, the ledger's mark, ten hex digits of the submission's hash, and a number from the second run
    /// on.
    RunId
}
text_id! {
    /// A node as its operator named it. Unique in a cluster; survives a restart of the process.
    NodeName
}
text_id! {
    /// A load of a pipeline, as its key in the pipeline file.
    LoadName
}
number_id! {
    /// The leader's term. Grows with every claim of the ledger; a lower one has no effect anywhere.
    Epoch, u64
}
number_id! {
    /// The try of one assignment, from 1. A higher attempt fences a lower one at every destination.
    Attempt, u32
}
number_id! {
    /// Place of an event in its run's log: 1, 2, 3, ... without a gap. 0 is the empty log.
    Seq, u64
}
number_id! {
    /// A stage of a run's plan, from 0.
    StageId, u32
}
number_id! {
    /// Milliseconds since the Unix epoch. Always an argument, never read here.
    Millis, u64
}

impl Attempt {
    /// The attempt after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Seq {
    /// The place after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Millis {
    /// This moment and `milliseconds` more.
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds since `earlier`, 0 if that lies in the future.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A chunk of a stage: the unit of dispatch, of checkpoints and of fencing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId {
    /// The stage it belongs to.
    pub stage: StageId,
    /// Its place in the stage, from 0.
    pub index: u32,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stage, self.index)
    }
}

/// What a saga step does to a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Makes the staging area. Compensated by dropping it, and with it every chunk.
    Prepare,
    /// Compares what is staged with what the chunks reported, and builds what publishing needs.
    Verify,
    /// Makes the load visible, in one transaction: the pivot. Compensated by reverting it.
    Publish,
    /// Drops what a published run no longer needs. Not compensated.
    Cleanup,
    /// Before a published run is reverted: asks whether the load can be taken back. Changes nothing.
    Recall,
}

/// One step of the saga of a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepId {
    /// What is done.
    pub kind: StepKind,
    /// To which load.
    pub load: LoadName,
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            StepKind::Prepare => "prepare",
            StepKind::Verify => "verify",
            StepKind::Publish => "publish",
            StepKind::Cleanup => "cleanup",
            StepKind::Recall => "recall",
        };
        write!(f, "{kind} {}", self.load)
    }
}

/// Whatever has an effect outside the ledger: one lease, one attempt number, one fence, one trace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// List what the sources hold, cut it into chunks, and check the plan against it.
    Discover,
    /// Read, transform and stage one chunk.
    Chunk(ChunkId),
    /// Do one step of the saga.
    Step(StepId),
    /// Undo one step of the saga.
    Compensate(StepId),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover => f.write_str("discover"),
            Self::Chunk(chunk) => write!(f, "chunk {chunk}"),
            Self::Step(step) => write!(f, "{step}"),
            Self::Compensate(step) => write!(f, "compensate {step}"),
        }
    }
}
