//! How far the attempts of chunks have come, as heartbeats say it. A chunk that goes forward between its failures isn't
//! what is to blame for them: a long one may meet any number of nodes that are lost.

use std::collections::{BTreeMap, HashMap};

use haulage_core::ids::{Attempt, ChunkId, Work};

/// Attempts of a chunk that are remembered: the one that runs, and one to hold it against.
const KEPT: usize = 2;

/// Committed rows, by chunk and attempt. Forgotten with the leader; then the first attempt counts from 0.
#[derive(Debug, Default)]
pub(super) struct Reached(HashMap<ChunkId, BTreeMap<Attempt, u64>>);

impl Reached {
    /// An attempt has committed so many source rows of its chunk, those of earlier attempts included.
    pub(super) fn heard(&mut self, chunk: ChunkId, attempt: Attempt, rows: u64) {
        let attempts = self.0.entry(chunk).or_default();
        let reached = attempts.entry(attempt).or_default();
        *reached = rows.max(*reached);
        while attempts.len() > KEPT {
            attempts.pop_first();
        }
    }

    /// Whether an attempt came further than those before it.
    pub(super) fn went_forward(&self, work: &Work, attempt: Attempt) -> bool {
        let Work::Chunk(chunk) = work else { return false };
        let Some(attempts) = self.0.get(chunk) else {
            return false;
        };
        let before = attempts.range(..attempt).map(|(_, rows)| *rows).max();
        attempts.get(&attempt).copied().unwrap_or(0) > before.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::ids::StageId;

    use super::*;

    #[test]
    fn forward_is_what_no_attempt_had_reached_before() {
        let chunk = ChunkId {
            stage: StageId(0),
            index: 3,
        };
        let work = Work::Chunk(chunk);
        let mut reached = Reached::default();
        assert!(!reached.went_forward(&work, Attempt(1)), "nothing was heard");
        reached.heard(chunk, Attempt(1), 0);
        assert!(!reached.went_forward(&work, Attempt(1)), "nothing stands");
        reached.heard(chunk, Attempt(1), 800);
        assert!(reached.went_forward(&work, Attempt(1)));
        reached.heard(chunk, Attempt(2), 800);
        assert!(!reached.went_forward(&work, Attempt(2)), "it only found what stood");
        for attempt in 3..9 {
            reached.heard(chunk, Attempt(attempt), 800 * u64::from(attempt));
            assert!(reached.went_forward(&work, Attempt(attempt)));
        }
        reached.heard(chunk, Attempt(9), 6_400);
        assert!(!reached.went_forward(&work, Attempt(9)));
        assert!(!reached.went_forward(&Work::Discover, Attempt(1)));
    }
}
