//! How far apart the heartbeats of a node arrive: what tells a node that is merely busy from one that is in trouble.

use std::collections::VecDeque;

use haulage_core::ids::Millis;

/// Intervals that are kept: five minutes of one heartbeat a second.
const KEPT: usize = 300;

/// The last intervals between two heartbeats.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rhythm {
    last: Option<Millis>,
    intervals: VecDeque<u32>,
}

/// How far apart the last heartbeats of a node came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many intervals this is about.
    pub count: u32,
    /// Of a hundred intervals all but the longest are at most so long.
    pub p99_ms: u32,
    /// The longest.
    pub max_ms: u32,
}

impl Rhythm {
    /// A heartbeat has arrived.
    pub(crate) fn beat(&mut self, now: Millis) {
        if let Some(last) = self.last.replace(now) {
            if self.intervals.len() == KEPT {
                self.intervals.pop_front();
            }
            self.intervals
                .push_back(u32::try_from(now.since(last)).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut sorted: Vec<u32> = self.intervals.iter().copied().collect();
        sorted.sort_unstable();
        // The nearest rank: of fewer than a hundred it is the largest.
        let rank = (sorted.len() * 99).div_ceil(100);
        Summary {
            count: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
            p99_ms: rank
                .checked_sub(1)
                .and_then(|place| sorted.get(place))
                .copied()
                .unwrap_or(0),
            max_ms: sorted.last().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_late_heartbeat_in_a_hundred_is_the_largest_and_not_the_p99() {
        let mut rhythm = Rhythm::default();
        assert_eq!(rhythm.summary(), Summary::default());
        let mut now = Millis(5_000);
        rhythm.beat(now);
        for number in 0..100 {
            now = now.plus(if number == 50 { 2_500 } else { 1_000 });
            rhythm.beat(now);
        }
        let seen = |count, p99_ms, max_ms| Summary { count, p99_ms, max_ms };
        assert_eq!(rhythm.summary(), seen(100, 1_000, 2_500));
        for _ in 0..KEPT {
            now = now.plus(900);
            rhythm.beat(now);
        }
        assert_eq!(rhythm.summary(), seen(300, 900, 900), "the old ones are forgotten");
    }
}
