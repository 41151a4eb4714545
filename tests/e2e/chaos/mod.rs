//! Chaos with real processes. Rounds of a seed: in each, a run is submitted to a cluster of processes, some faults happen
//! to it, and in the end every target must be what a model of the pipeline says, row by row; meanwhile readers look at the
//! targets and may only ever see the state before the run or the one after it.
//!
//!     tests/run -- chaos                  ten rounds of each workload
//!     tests/soak                          rounds of every workload for ten minutes, and a table
//!
//! The simulation knows more orders of events than any number of rounds will show; here is what it only models: servers,
//! sockets, disks and signals.

pub(crate) mod fault;
pub(crate) mod log;
mod reader;
pub(crate) mod report;
pub(crate) mod round;
#[cfg(test)]
mod tests;
pub(crate) mod workload;
pub(crate) mod world;

use anyhow::Result;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::fault::Deck;
use self::reader::Readers;
use self::report::Report;
use self::round::Story;
use self::workload::Model;
use self::world::World;

/// Every segment takes so long, in ms.
const SLOW: u64 = 150;

impl Story {
    pub(crate) async fn begin(seed: u64, report: Report) -> Result<Self> {
        let world = World::start(1, SLOW, "").await?;
        Ok(Self {
            readers: Readers::start(&world, report.reads),
            world,
            model: Model::default(),
            deck: Deck::default(),
            rng: StdRng::seed_from_u64(seed),
            report,
        })
    }
}
