//! The node's one source of randomness: jitter between tries, and a name for this start of the process. Nothing about
//! a run is ever decided by it.

use std::time::Duration;

/// Waits between tries: each about twice the one before, up to a limit, and spread so that many who failed together
/// don't try again together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    first: Duration,
    limit: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, limit: Duration) -> Self {
        Self {
            next: first,
            first,
            limit,
        }
    }

    /// How long to wait now: between half and all of the next step.
    pub(crate) fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.limit);
        step.mul_f64(0.5 + unit() / 2.0)
    }

    /// After a success: starts over.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A word that no other start of any node has.
#[expect(clippy::disallowed_methods, reason = "the one adapter of randomness")]
pub(crate) fn boot() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// In 0.0..1.0.
#[expect(clippy::disallowed_methods, reason = "the one adapter of randomness")]
fn unit() -> f64 {
    rand::random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_limit_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for most in [100, 200, 400, 400] {
            let wait = backoff.wait();
            assert!(
                wait >= Duration::from_millis(most / 2) && wait <= Duration::from_millis(most),
                "{wait:?} of {most}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }
}
