//! Why a run may fail: what was planted in it, or what the faults of its history may have brought about. A failure that
//! neither explains is a fault of the code under test.

use crate::destination::{LESS_STAGED, UNPUBLISHABLE};
use crate::work::{BAD_ROW, KEPT};
use crate::workload::Run;
use crate::world::World;

/// Whether a run has a reason to fail that was planted, or faults that may have brought it about.
pub(crate) fn explained(world: &World, number: usize, message: &str) -> bool {
    let run = &world.runs[number];
    let faults = |kinds: &[&str]| -> u64 {
        let of_kind = |name: &&str| kinds.iter().any(|kind| name.contains(kind));
        world
            .tally
            .iter()
            .filter(|(name, _)| of_kind(name))
            .map(|(_, times)| times)
            .sum()
    };
    let any = faults(&[
        "crash",
        "pause",
        "lost",
        "late",
        "away",
        "cut",
        "partition",
        "deposed",
        "failed",
    ]);
    message.starts_with("cancelled: ") && run.cancel_at.is_some()
        || message.starts_with("reverted: ") && !run.revert_at.is_empty()
        || message == UNPUBLISHABLE && run.loads.iter().any(|load| load.unpublishable)
        || message == BAD_ROW && run.chunks().any(|chunk| chunk.bad)
        || message.contains("took down 3 nodes")
            && (run.chunks().any(|chunk| chunk.poison) || faults(&["node", "partition", "cut", "message"]) >= 3)
        || message.starts_with(LESS_STAGED) && faults(&["destination crash"]) > 0
        // With backoff between them: from one fault may come several failures, but not that many.
        || message.contains(" failed ") && message.contains(" times, the last with: ") && any >= 3
        // Two runs may wait for each other, and a revert for an operator.
        || message.ends_with(KEPT) && is_kept_from(world, number)
}

/// Whether another run that is not over, or was not a little while ago, publishes to a target of this one.
fn is_kept_from(world: &World, number: usize) -> bool {
    let targets =
        |run: &Run| -> Vec<(usize, usize)> { run.loads.iter().map(|load| (load.destination, load.target)).collect() };
    let ours = targets(&world.runs[number]);
    let others = world.runs.iter().enumerate().filter(|(other, _)| *other != number);
    others.into_iter().any(|(_, other)| {
        let log = world.ledger.runs.get(&other.id);
        let open = log.is_some_and(|log| match log.state.finished() {
            None => true,
            Some((_, at)) => at.0 + 60_000 > world.wall(0).0,
        });
        open && targets(other).iter().any(|target| ours.contains(target))
    })
}
