//! Planted bugs: one for each invariant at least, each of a kind that was made somewhere before. They stand in the ports
//! and shells of the simulation, never in production code, and only a test (or `--bug`) switches one on.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A segment's rows and its marker commit one after the other, and a lost answer comes between.
    MarkerApart,
    /// A publish doesn't look whether it has been published.
    PublishBlindly,
    /// Verify and publish don't hold what is staged against what the chunks reported.
    PublishUnverified,
    /// A publish commits its rows in two transactions.
    PublishInParts,
    /// A node says that it has reverted a publish, and hasn't.
    RevertForgotten,
    /// A commit doesn't look at the fence.
    NoFence,
    /// A compensation that finds nothing to undo leaves nothing behind that refuses who comes late.
    NoTombstone,
    /// The ledger doesn't look at the epoch of an append.
    LedgerWithoutEpoch,
    /// A node doesn't look at the epoch of an assignment.
    NodeWithoutEpoch,
    /// A node says once how an attempt ended, and keeps it for ever if nobody acknowledges.
    DoneOnce,
    /// The ledger answers before it has committed.
    LedgerForgets,
    /// A node that restarts a chunk gives it the next attempt number itself.
    OwnAttempt,
    /// A publish doesn't look whether its target is kept for a run that may still take back what it published there.
    KeptForNobody,
    /// A recall doesn't look whether the revert that it belongs to is over.
    RecallAnyTime,
    /// The ledger doesn't look whether another replay of the same run stands.
    ReplayBlindly,
    /// The ledger doesn't look whether a replay stands on a run that is to be reverted.
    RevertBlindly,
}

impl Bug {
    /// Every one.
    pub const ALL: [Self; 16] = [
        Self::MarkerApart,
        Self::PublishBlindly,
        Self::PublishUnverified,
        Self::PublishInParts,
        Self::RevertForgotten,
        Self::NoFence,
        Self::NoTombstone,
        Self::LedgerWithoutEpoch,
        Self::NodeWithoutEpoch,
        Self::DoneOnce,
        Self::LedgerForgets,
        Self::OwnAttempt,
        Self::KeptForNobody,
        Self::RecallAnyTime,
        Self::ReplayBlindly,
        Self::RevertBlindly,
    ];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MarkerApart => "marker-apart",
            Self::PublishBlindly => "publish-blindly",
            Self::PublishUnverified => "publish-unverified",
            Self::PublishInParts => "publish-in-parts",
            Self::RevertForgotten => "revert-forgotten",
            Self::NoFence => "no-fence",
            Self::NoTombstone => "no-tombstone",
            Self::LedgerWithoutEpoch => "ledger-without-epoch",
            Self::NodeWithoutEpoch => "node-without-epoch",
            Self::DoneOnce => "done-once",
            Self::LedgerForgets => "ledger-forgets",
            Self::OwnAttempt => "own-attempt",
            Self::KeptForNobody => "kept-for-nobody",
            Self::RecallAnyTime => "recall-any-time",
            Self::ReplayBlindly => "replay-blindly",
            Self::RevertBlindly => "revert-blindly",
        }
    }

    /// The invariant that has to catch it.
    pub fn breaks(self) -> u8 {
        match self {
            Self::MarkerApart => 1,
            Self::PublishBlindly => 2,
            Self::PublishUnverified => 3,
            Self::PublishInParts => 4,
            Self::RevertForgotten | Self::NoTombstone | Self::RecallAnyTime => 5,
            Self::NoFence | Self::LedgerWithoutEpoch | Self::NodeWithoutEpoch => 6,
            Self::DoneOnce | Self::KeptForNobody => 7,
            Self::LedgerForgets => 8,
            Self::OwnAttempt => 9,
            Self::ReplayBlindly | Self::RevertBlindly => 10,
        }
    }
}
