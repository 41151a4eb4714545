//! Who leads, and who wants to: the words of a campaign for a ledger.
//!
//! Where several processes share a ledger, a leader holds a *lease* in it, by the database's clock. While the lease runs
//! nobody else wins; when it has run out, the next candidate raises the epoch, and from that commit on whatever an
//! earlier epoch writes is refused. The lease only keeps leaders from taking turns too soon: what is safe, the epoch
//! makes safe.

use std::time::Duration;

use haulage_core::ids::{Epoch, Millis};

/// Who wants to lead.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Kept for people to read.
    pub name: &'a str,
    /// Where others reach it once it leads: `http://host:port`.
    pub address: &'a str,
    /// For how long it leads unless it renews. Without meaning where a ledger belongs to one process.
    pub lease: Duration,
}

/// What a campaign came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Campaign {
    /// The candidate leads, in this term.
    Won(Epoch),
    /// Somebody else's lease runs.
    Lost(Led),
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// Its term.
    pub epoch: Epoch,
    /// Its name.
    pub name: String,
    /// Where it is reached; empty if it didn't say.
    pub address: String,
    /// Since when, by its own clock.
    pub since: Millis,
    /// How long its lease still runs; `None` where there are no leases.
    pub left: Option<Duration>,
}
