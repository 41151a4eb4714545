//! What a node asks of a destination's model, what it is answered, and what that has changed there.

use haulage_core::event::StepReport;
use haulage_core::ids::{Attempt, ChunkId, Epoch};
use haulage_core::run::Expected;

use crate::workload::Row;

/// Which load of which run, by number.
pub(crate) type LoadKey = (usize, usize);

/// What a node asks for.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Prepare,
    Begin(ChunkId, Attempt),
    Commit(ChunkId, u32, Attempt, Vec<Row>),
    Verify(Expected),
    Publish(Expected),
    /// For the nth revert that was asked for.
    Recall(u32),
    Release(u32),
    Revert,
    Discard,
    Cleanup,
}

/// A call, and who makes it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) load: LoadKey,
    pub(crate) target: usize,
    pub(crate) epoch: Epoch,
    pub(crate) attempt: Attempt,
    pub(crate) call: Call,
    /// How often the run has staged again what was lost.
    pub(crate) round: u32,
    /// Publishing this load fails for good.
    pub(crate) unpublishable: bool,
    /// Reverting it fails for good, as often.
    pub(crate) stubborn: u32,
}

/// What it is answered.
#[derive(Debug, Clone)]
pub(crate) enum Done {
    Markers(Vec<u32>),
    Committed,
    Stepped(StepReport),
    /// The target is kept for another run: to be asked again.
    Kept,
}

/// A change of what the destination holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Prepared,
    Begun(ChunkId, Attempt),
    Committed(ChunkId, Attempt),
    Sealed,
    Published,
    /// The first part of a publish; there are parts only with a bug.
    PublishedInPart,
    Recalled,
    Released,
    Reverted,
    Discarded,
    Cleaned,
}

impl Call {
    /// What the record calls it. A chunk's calls have fences of their own.
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Begin(..) | Self::Commit(..) => "chunk",
            Self::Prepare => "prepare",
            Self::Verify(_) => "verify",
            Self::Publish(_) => "publish",
            Self::Recall(_) => "recall",
            Self::Release(_) => "release",
            Self::Revert => "revert",
            Self::Discard => "discard",
            Self::Cleanup => "cleanup",
        }
    }
}
