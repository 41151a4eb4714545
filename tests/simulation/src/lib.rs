//! The simulation: the production's decisions (`haulage_core::run`, `haulage_coordinator::deciding`), unmodified, in a
//! world of virtual time, a bad network, processes that crash and stand still, and models of ledger, nodes and
//! destinations. One seed is one history, bit for bit; invariants are looked at after every step.
//!
//! ```text
//!   seed ─► workload, fault rates ─► queue of events ─► one step ─► invariants ─► next step
//!                                      ▲                  │
//!                                      └──── calls, timers, faults
//! ```
//!
//! What is real here and what is a model stands in README.md, with the invariants by number and the command for many
//! seeds.

mod bug;
mod call;
mod chance;
mod client;
mod coordinator;
mod destination;
mod explained;
mod faults;
mod invariants;
mod ledger;
mod network;
mod node;
mod queue;
mod replays;
mod runs;
mod story;
mod trace;
mod work;
mod workload;
mod world;

pub use bug::Bug;
pub use faults::Tally;
pub use invariants::Violation;

/// Which history.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// A planted bug, for tests of the simulation itself.
    pub bug: Option<Bug>,
    /// Whether to keep the lines of the trace.
    pub trace: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// A hash over the whole trace.
    pub hash: u64,
    /// Events that were taken.
    pub steps: u64,
    /// Virtual milliseconds that passed.
    pub virtual_ms: u64,
    /// Injected faults, by kind.
    pub faults: Tally,
    /// How the runs ended.
    pub outcomes: Tally,
    /// The invariant that was broken first.
    pub violation: Option<Violation>,
    /// The trace, if it was wanted.
    pub trace: Vec<String>,
}

/// Plays one history.
pub fn simulate(options: &Options) -> Report {
    world::World::new(options).run(options)
}

/// How to see a history again.
pub fn replay(seed: u64, bug: Option<Bug>) -> String {
    let bug = bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    format!("cargo run --release -p haulage-simulation -- --seed {seed} --trace{bug}")
}
