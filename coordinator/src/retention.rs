//! Retention: rejected rows are deleted by themselves when their run has been at rest for as long as they are kept.
//!
//! The leader looks every now and then. Which runs are due stands in the ledger, behind an index of just those that may
//! still have something in the checkpoint store; so a look costs as much as there is to do, whatever the ledger holds and
//! without listing the store. What is done to a run is what `prune` does ([`Pruner`]): its log says that the rows are gone,
//! a node deletes them, and then the ledger notes that nothing is left. A leader or a node that goes in between leaves a
//! run that is still due, for whoever leads next.
//!
//! It deliberately does not wait for a run that can't be pruned now (a replay reads its rows): that one's turn comes again
//! with the next round. What a late attempt writes behind a run's end stays until somebody prunes by hand.

use std::time::Duration;

use haulage_core::ids::Millis;
use tonic::Status;

use crate::api::prune::Pruner;
use crate::api::role::Leader;
use crate::clock;

/// Runs of one look.
const RUNS: u32 = 100;
/// Between two looks: a part of the time for which rows are kept, within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How often within the time for which rows are kept.
const PART: u32 = 20;

/// Prunes what is due, until the term ends.
pub(crate) async fn watch(leader: Leader, keep: Duration) {
    let mut round = Round::new(keep);
    let mut told = false;
    loop {
        tokio::time::sleep((keep / PART).clamp(SHORTEST, LONGEST)).await;
        if !leader.shared.leadership.holds() {
            continue;
        }
        match round.look(&leader).await {
            Ok(_) => told = false,
            // Said once, and not with every look.
            Err(status) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(
                    error = status.message(),
                    "rejected rows that are due were not pruned; trying again"
                );
            }
            Err(_) => {}
        }
    }
}

/// Prunes everything that is due now; of how many runs something was deleted.
pub(crate) async fn all(leader: &Leader, keep: Duration) -> Result<u64, Status> {
    let mut round = Round::new(keep);
    let mut pruned = 0;
    loop {
        pruned += round.look(leader).await?;
        if round.after.is_none() {
            return Ok(pruned);
        }
    }
}

/// Goes through the runs that are due, from the oldest to the newest, and begins again.
struct Round {
    keep: Duration,
    after: Option<(Millis, u64)>,
}

impl Round {
    fn new(keep: Duration) -> Self {
        Self { keep, after: None }
    }

    /// Does the next of them; of how many something was deleted. Without a node nothing happens.
    async fn look(&mut self, leader: &Leader) -> Result<u64, Status> {
        let keep_ms = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let until = Millis(clock::wall().0.saturating_sub(keep_ms));
        let due = leader.shared.ledger.unpruned(until, self.after, RUNS).await;
        let due = due.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut pruned = 0;
        if !due.is_empty() {
            let by = format!("the retention of {}", words(self.keep));
            let Some(pruner) = Pruner::new(leader, by, keep_ms, false).await? else {
                return Ok(0);
            };
            for due in &due {
                // Behind it even if it fails: one that always does must not keep the others waiting.
                self.after = Some(due.place);
                if let Some(done) = pruner.one(due.run.clone()).await? {
                    tracing::info!(run = %due.run, objects = done.objects, rejected = done.rejected, "pruned by the retention");
                    pruned += 1;
                }
            }
        }
        if due.len() < RUNS as usize {
            self.after = None;
        }
        Ok(pruned)
    }
}

/// A time as it is given: 90d, 36h, 90m, 45s.
fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    for (unit, word) in [(86_400, 'd'), (3_600, 'h'), (60, 'm')] {
        if seconds > 0 && seconds.is_multiple_of(unit) {
            return format!("{}{word}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_said_as_it_is_given() {
        for (seconds, said) in [
            (0, "0s"),
            (1, "1s"),
            (90, "90s"),
            (5_400, "90m"),
            (129_600, "36h"),
            (7_776_000, "90d"),
        ] {
            assert_eq!(words(Duration::from_secs(seconds)), said);
        }
    }
}
