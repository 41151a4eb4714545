//! Leases: when a node is suspect, when it is lost, and when it has to fence itself.
//!
//! Both sides count from the same heartbeat, each on its own clock. The node counts from when it *sent* the heartbeat
//! that was answered; the leader from when it *received* it, which is never earlier. So when the leader declares the
//! node lost, the node's own lease ran out before that, and it has cancelled its work, if it lives at all.
//!
//! ```text
//!   alive ──3 s without a heartbeat──► suspect ──4.8 s──► lost
//!     ▲──────────a heartbeat──────────────┘
//! ```

use crate::ids::Millis;

/// How long a lease lasts, from the heartbeat that was answered. With the leader's tick of up to 100 ms, a node that dies
/// right after a heartbeat is declared lost within 5 s.
pub const LEASE_MS: u64 = 4_800;
/// How often a node sends a heartbeat.
pub const HEARTBEAT_MS: u64 = 1_000;
/// After how long a silence a node gets no new work.
pub const SUSPECT_MS: u64 = 3_000;

/// The three durations, so that tests and operators can choose smaller or larger ones together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// See [`LEASE_MS`].
    pub lease_ms: u64,
    /// See [`HEARTBEAT_MS`].
    pub heartbeat_ms: u64,
    /// See [`SUSPECT_MS`].
    pub suspect_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: LEASE_MS,
            heartbeat_ms: HEARTBEAT_MS,
            suspect_ms: SUSPECT_MS,
        }
    }
}

/// What the leader thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Heartbeats come.
    Alive,
    /// Silent for a while: it keeps its work and gets no new.
    Suspect,
    /// Silent for longer than its lease: it has fenced itself or is gone, and its work may run elsewhere.
    Lost,
}

/// The leader's side of a node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLease {
    last_heartbeat: Millis,
}

impl NodeLease {
    /// A lease that begins with a heartbeat received at `now`.
    pub fn new(now: Millis) -> Self {
        Self { last_heartbeat: now }
    }

    /// A heartbeat was received. A clock that stepped back doesn't shorten the lease.
    pub fn renew(&mut self, now: Millis) {
        self.last_heartbeat = self.last_heartbeat.max(now);
    }

    /// When the last heartbeat was received.
    pub fn last_heartbeat(&self) -> Millis {
        self.last_heartbeat
    }

    /// Milliseconds of silence at `now`.
    pub fn silence_ms(&self, now: Millis) -> u64 {
        now.since(self.last_heartbeat)
    }

    /// What to think of the node at `now`.
    pub fn standing(&self, now: Millis, settings: &Settings) -> Standing {
        let silence = self.silence_ms(now);
        if silence >= settings.lease_ms {
            Standing::Lost
        } else if silence >= settings.suspect_ms {
            Standing::Suspect
        } else {
            Standing::Alive
        }
    }
}

/// The node's side: may it still have effects? Counts on the node's monotonic clock, in milliseconds since any origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SelfFence {
    holds_until: Option<u64>,
}

impl SelfFence {
    /// A heartbeat sent at `sent` was answered with a lease of `lease_ms`. Answers that arrive out of order don't
    /// shorten the lease.
    pub fn granted(&mut self, sent: u64, lease_ms: u64) {
        let until = sent.saturating_add(lease_ms);
        self.holds_until = Some(self.holds_until.map_or(until, |held| held.max(until)));
    }

    /// Whether the node has to cancel its work at `now`. A node that was never granted a lease has none to lose.
    pub fn expired(&self, now: u64) -> bool {
        self.holds_until.is_some_and(|until| now >= until)
    }

    /// After the node cancelled its work: it waits to be greeted again.
    pub fn clear(&mut self) {
        self.holds_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_follows_silence() {
        let settings = Settings::default();
        let mut lease = NodeLease::new(Millis(10_000));
        for (now, expected) in [
            (9_000, Standing::Alive),
            (12_999, Standing::Alive),
            (13_000, Standing::Suspect),
            (14_799, Standing::Suspect),
            (14_800, Standing::Lost),
        ] {
            assert_eq!(lease.standing(Millis(now), &settings), expected, "at {now}");
        }
        lease.renew(Millis(14_000));
        lease.renew(Millis(13_000));
        assert_eq!(lease.standing(Millis(16_999), &settings), Standing::Alive);
    }

    #[test]
    fn the_node_gives_up_before_the_leader_reassigns() {
        // Sent at 100 on the node, received at the leader's 100 + delay: for every delay the fence comes first.
        for delay in [0, 1, 500, 4_000] {
            let mut fence = SelfFence::default();
            fence.granted(100, LEASE_MS);
            let lease = NodeLease::new(Millis(100 + delay));
            let lost_at = (0..20_000).find(|now| lease.standing(Millis(*now), &Settings::default()) == Standing::Lost);
            let fenced_at = (0..20_000).find(|now| fence.expired(*now));
            assert!(fenced_at <= lost_at, "delay {delay}: {fenced_at:?} after {lost_at:?}");
        }
    }

    #[test]
    fn late_answers_do_not_shorten_a_lease() {
        let mut fence = SelfFence::default();
        assert!(!fence.expired(1_000_000));
        fence.granted(2_000, 5_000);
        fence.granted(1_000, 5_000);
        assert!(!fence.expired(6_999));
        assert!(fence.expired(7_000));
        fence.clear();
        assert!(!fence.expired(7_000));
    }
}
