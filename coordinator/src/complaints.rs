//! What is wrong with peers of the port, said so that a person can read it: one line for each, and of many alike only
//! the first few. A stranger can make thousands of mistakes a second; a log that fills up with them hides what matters.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use haulage_core::ids::Millis;

use crate::clock;

/// Lines of one kind that are written at once.
const BURST: u64 = 5;
/// After how long one more may be.
const REFILL_MS: u64 = 10_000;

/// What a complaint is about. Each kind has lines of its own, so that a noisy one doesn't hide another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A connection that doesn't speak HTTP/2, or doesn't speak at all.
    Connection,
    /// More connections or sessions than there is room for.
    Crowd,
    /// A session without the cookie.
    Session,
    /// A message that can't be read.
    Message,
    /// Nodes that can't be greeted.
    Node,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    buckets: [Mutex<Bucket>; 5],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    left: u64,
    refilled: Millis,
    withheld: u64,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            left: BURST,
            refilled: Millis(0),
            withheld: 0,
        }
    }
}

impl Complaints {
    /// Writes a warning, unless there were many of its kind just now; the next one says how many were left out.
    pub(crate) fn about(&self, kind: Kind, peer: &dyn fmt::Display, what: &dyn fmt::Display) {
        let mut bucket = self.buckets[kind as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match bucket.take(clock::steady()) {
            None => {}
            Some(0) => tracing::warn!(%peer, "{what}"),
            Some(withheld) => tracing::warn!(%peer, withheld, "{what} (and others before: only some are logged)"),
        }
    }
}

impl Bucket {
    /// How many were withheld since the last one that was written; `None` if this one is, too.
    fn take(&mut self, now: Millis) -> Option<u64> {
        let refill = now.since(self.refilled) / REFILL_MS;
        if refill > 0 {
            self.left = self.left.saturating_add(refill).min(BURST);
            self.refilled = now;
        }
        if self.left == 0 {
            self.withheld += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_are_written_and_of_the_rest_one_now_and_then() {
        let mut bucket = Bucket::default();
        let mut written = Vec::new();
        for second in 0..60 {
            // A hundred a second.
            for _ in 0..100 {
                written.extend(bucket.take(Millis(1_000_000 + second * 1_000)));
            }
        }
        assert_eq!(written, [0, 0, 0, 0, 0, 995, 999, 999, 999, 999]);
    }
}
