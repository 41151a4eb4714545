//! Whether this coordinator still leads. One bit for the whole process, because losing the epoch ends everything that
//! it does and is never retried.
//!
//! Writers find out by being refused; [`Leadership::watch`] finds out for a leader that has nothing to write.

use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::Epoch;
use tokio::sync::watch;

use crate::ledger::{Error, Ledger};

/// How often an idle leader compares its epoch with the ledger's.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The term of this coordinator, and whether it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Leadership {
    epoch: Epoch,
    ended: watch::Sender<Option<String>>,
}

impl Leadership {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            ended: watch::Sender::new(None),
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
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

    /// Looks again and again until it has ended.
    pub(crate) async fn watch(self, ledger: Arc<dyn Ledger>) {
        while self.ended().is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(ledger.as_ref()).await;
        }
    }
}
