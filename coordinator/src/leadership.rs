//! Whether this coordinator still leads. One value for a whole term, because losing the epoch ends everything that it
//! does and is never retried.
//!
//! Two questions, with two answers:
//!
//! ```text
//!   ended   somebody else has the epoch: for good, known from the ledger alone
//!   holds   our lease runs: until then nobody else can have it. Counted on the monotonic clock from when the renewal
//!           was *sent*, which is earlier than the database counts from
//! ```
//!
//! A leader that doesn't hold its lease (its ledger is away, or it was stopped for a while and wakes up) still leads for
//! all it knows; but it hands out nothing and answers no heartbeat until a renewal succeeds. So no node's lease is
//! extended by a leader that another one may have followed, and the next leader need not wait for more than one lease
//! of a node. The clock is asked at the moment of acting and not by a timer: who was stopped finds out before the first
//! thing it says. (A machine that is suspended as a whole may stop that clock too; then nodes, which refuse a lower
//! epoch, and destinations, which refuse a lower attempt, are what is left.) What it writes needs no such check, since
//! every append is conditional on the epoch.
//!
//! Writers find out by being refused; [`Leadership::watch`] finds out for a leader that has nothing to write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use haulage_core::ids::{Epoch, Millis};
use tokio::sync::watch;

use crate::clock;
use crate::ledger::{Error, Ledger};

/// How long a leader leads without renewing. Two renewals may fail; and together with what a node needs to find the next
/// leader it is less than a node's own lease, so that what nodes are running is adopted instead of started again.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// How often the lease is renewed, and where there are none, how often an idle leader compares its epoch.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How soon after a renewal that failed the next one is made.
const RENEW_AGAIN: Duration = Duration::from_millis(250);
/// A ledger that says nothing for so long is asked again over another connection.
const ANSWER: Duration = Duration::from_secs(2);

/// The term of this coordinator, and whether it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    epoch: Epoch,
    ended: watch::Sender<Option<String>>,
    /// On the steady clock; `None` where there are no leases.
    holds_until: Option<Arc<AtomicU64>>,
}

impl Leadership {
    /// A term without a lease: it holds until it has ended.
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            ended: watch::Sender::new(None),
            holds_until: None,
        }
    }

    /// A term whose lease was asked for at `sent`.
    pub(crate) fn leased(epoch: Epoch, sent: Millis) -> Self {
        let leadership = Self {
            holds_until: Some(Arc::default()),
            ..Self::new(epoch)
        };
        leadership.renewed(sent);
        leadership
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether nobody else can lead at this moment.
    pub(crate) fn holds(&self) -> bool {
        self.ended.borrow().is_none() && self.holds_at(clock::steady())
    }

    fn holds_at(&self, now: Millis) -> bool {
        let until = self.holds_until.as_ref();
        until.is_none_or(|until| now.0 < until.load(Ordering::SeqCst))
    }

    fn renewed(&self, sent: Millis) {
        if let Some(until) = &self.holds_until {
            let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
            until.fetch_max(sent.plus(lease).0, Ordering::SeqCst);
        }
    }

    /// Why it has ended, if it has.
    pub(crate) fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits until it has ended.
    pub(crate) async fn wait(&self) -> String {
        let mut ended = self.ended.subscribe();
        let reason = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // `self` holds the sender, so the channel can't be closed while this waits.
            None => std::future::pending().await,
        }
    }

    /// Ends it. Only the first call says so in the log.
    pub(crate) fn end(&self, reason: String) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason.clone());
            }
            first
        });
        if first {
            tracing::error!(epoch = self.epoch.0, "{reason}");
        }
    }

    /// Ends it if the ledger's answer says that somebody else leads.
    pub(crate) fn heed(&self, error: &Error) {
        if let Error::Deposed { .. } = error {
            self.end(error.to_string());
        }
    }

    /// Ends it if the ledger knows a higher epoch. A ledger that can't be read says nothing either way.
    pub(crate) async fn look(&self, ledger: &dyn Ledger) {
        if let Ok(theirs) = ledger.epoch().await
            && theirs > self.epoch
        {
            self.heed(&Error::Deposed {
                theirs,
                ours: self.epoch,
            });
        }
    }

    /// Renews the lease again and again until the term has ended; where there is none, looks at the epoch.
    pub(crate) async fn watch(self, ledger: Arc<dyn Ledger>) {
        let mut failing = false;
        while self.ended().is_none() {
            tokio::time::sleep(if failing { RENEW_AGAIN } else { RENEW_EVERY }).await;
            let sent = clock::steady();
            let renewed = match tokio::time::timeout(ANSWER, ledger.renew(self.epoch, LEASE)).await {
                Ok(renewed) => renewed,
                Err(_) => Err(Error::silent()),
            };
            match renewed {
                Ok(()) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!(
                            epoch = self.epoch.0,
                            "the ledger answers again, and this coordinator leads on"
                        );
                    }
                    self.renewed(sent);
                }
                Err(error @ Error::Deposed { .. }) => self.heed(&error),
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            epoch = self.epoch.0,
                            %error,
                            "the lease could not be renewed; no work is handed out once it has run out"
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_from_when_it_was_asked_for() {
        let leadership = Leadership::leased(Epoch(1), Millis(10_000));
        for (now, holds) in [(10_000, true), (12_999, true), (13_000, false), (60_000, false)] {
            assert_eq!(leadership.holds_at(Millis(now)), holds, "at {now}");
        }
        // Answers that come out of order don't shorten it.
        leadership.renewed(Millis(12_000));
        leadership.renewed(Millis(11_000));
        assert!(leadership.holds_at(Millis(14_999)));
        assert!(!leadership.holds_at(Millis(15_000)));
    }

    #[test]
    fn without_leases_only_the_epoch_ends_a_term() {
        let leadership = Leadership::new(Epoch(1));
        assert!(leadership.holds_at(Millis(u64::MAX)));
        leadership.end("somebody else leads".to_owned());
        assert!(!leadership.holds());
    }
}
