//! How far the attempts of chunks have come, as heartbeats say it. A chunk that goes forward between its failures isn't
//! what is to blame for them: a long one may meet any number of nodes that are lost.

use std::collections::{BTreeMap, HashMap};

use haulage_core::ids::{Attempt, ChunkId, Work};

use super::Heard;

/// Attempts of a chunk that are remembered: the one that runs, and one to hold it against.
const KEPT: usize = 2;

/// How far attempts are, by chunk. Forgotten with the leader; then the first attempt counts from 0.
#[derive(Debug, Default)]
pub(super) struct Reached(HashMap<ChunkId, BTreeMap<Attempt, Far>>);

/// How far an attempt is.
#[derive(Debug, Clone, Copy, Default)]
struct Far {
    /// Committed source rows of its chunk, those of earlier attempts included.
    rows: u64,
    /// Bytes that it has read beyond them.
    ahead: u64,
}

impl Reached {
    /// As a heartbeat has just said.
    pub(super) fn heard(&mut self, heard: &Heard) {
        let Work::Chunk(chunk) = heard.work else { return };
        let attempts = self.0.entry(chunk).or_default();
        let far = attempts.entry(heard.attempt).or_default();
        far.rows = heard.counts.read.max(far.rows);
        far.ahead = heard.ahead;
        while attempts.len() > KEPT {
            attempts.pop_first();
        }
    }

    /// Bytes that an attempt had read and not committed when it was heard last.
    pub(super) fn ahead(&self, work: &Work, attempt: Attempt) -> u64 {
        let Work::Chunk(chunk) = work else { return 0 };
        let far = self.0.get(chunk).and_then(|attempts| attempts.get(&attempt));
        far.map_or(0, |far| far.ahead)
    }

    /// Whether an attempt came further than those before it.
    pub(super) fn went_forward(&self, work: &Work, attempt: Attempt) -> bool {
        let Work::Chunk(chunk) = work else { return false };
        let Some(attempts) = self.0.get(chunk) else {
            return false;
        };
        let before = attempts.range(..attempt).map(|(_, far)| far.rows).max();
        attempts.get(&attempt).map_or(0, |far| far.rows) > before.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::Counts;
    use haulage_core::ids::StageId;

    use super::*;

    fn heard(attempt: u32, rows: u64) -> Heard {
        let chunk = ChunkId {
            stage: StageId(0),
            index: 3,
        };
        Heard {
            work: Work::Chunk(chunk),
            attempt: Attempt(attempt),
            counts: Counts {
                read: rows,
                ..Counts::default()
            },
            ahead: 0,
        }
    }

    #[test]
    fn forward_is_what_no_attempt_had_reached_before() {
        let work = heard(1, 0).work;
        let mut reached = Reached::default();
        assert!(!reached.went_forward(&work, Attempt(1)), "nothing was heard");
        reached.heard(&heard(1, 0));
        assert!(!reached.went_forward(&work, Attempt(1)), "nothing stands");
        reached.heard(&heard(1, 800));
        assert!(reached.went_forward(&work, Attempt(1)));
        reached.heard(&heard(2, 800));
        assert!(!reached.went_forward(&work, Attempt(2)), "it only found what stood");
        for attempt in 3..9 {
            reached.heard(&heard(attempt, 800 * u64::from(attempt)));
            assert!(reached.went_forward(&work, Attempt(attempt)));
        }
        reached.heard(&heard(9, 6_400));
        assert!(!reached.went_forward(&work, Attempt(9)));
        assert!(!reached.went_forward(&Work::Discover, Attempt(1)));
    }

    #[test]
    fn what_was_read_ahead_is_what_the_last_heartbeat_said() {
        let mut reached = Reached::default();
        let work = heard(1, 0).work;
        assert_eq!(reached.ahead(&work, Attempt(1)), 0);
        for ahead in [700, 0, 300] {
            reached.heard(&Heard { ahead, ..heard(1, 800) });
            assert_eq!(reached.ahead(&work, Attempt(1)), ahead);
        }
        assert_eq!(reached.ahead(&work, Attempt(2)), 0);
        assert_eq!(reached.ahead(&Work::Discover, Attempt(1)), 0);
    }
}
