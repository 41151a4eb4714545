//! What several actors of a node look at without asking each other: who the node is, the highest epoch it has seen, and
//! which attempts it holds with what they have counted. A heartbeat reads all of it without waiting for anybody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Epoch, NodeName};
use haulage_core::lease::{HEARTBEAT_MS, LEASE_MS};
use haulage_proto::link::message::AttemptKey;
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::RpcReplyPort;
use serde::Serialize;
use tokio::sync::watch;

use crate::trace::Carrier;

/// What an attempt has counted so far, and where it began. Written once per segment.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    counts: Mutex<Counts>,
    continued: AtomicBool,
}

impl Progress {
    pub(crate) fn set(&self, counts: &Counts) {
        // A panic while this was held can only have left a complete value behind.
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(counts);
    }

    pub(crate) fn get(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Segments of an earlier attempt stood when this one began.
    pub(crate) fn continues(&self) {
        self.continued.store(true, Ordering::SeqCst);
    }

    pub(crate) fn continued(&self) -> bool {
        self.continued.load(Ordering::SeqCst)
    }
}

/// How often a coordinator that was heard wants to hear from this node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    pub(crate) heartbeat_ms: u64,
    pub(crate) lease_ms: u64,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self {
            heartbeat_ms: HEARTBEAT_MS,
            lease_ms: LEASE_MS,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: NodeName,
    /// Changes with every start of the process.
    pub(crate) boot: String,
    pub(crate) slots: u32,
    /// Where its destinations are, by name, without credentials.
    pub(crate) places: BTreeMap<String, String>,
    epoch: AtomicU64,
    refused: AtomicBool,
    heard: watch::Sender<Rhythm>,
    held: Mutex<BTreeMap<AttemptKey, Arc<Progress>>>,
}

impl Shared {
    pub(crate) fn new(name: NodeName, boot: String, slots: u32, places: BTreeMap<String, String>) -> Self {
        Self {
            name,
            boot,
            slots,
            places,
            epoch: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            heard: watch::Sender::default(),
            held: Mutex::default(),
        }
    }

    /// The fence of the leader's term: false for an epoch lower than one that was seen before.
    pub(crate) fn admit(&self, epoch: Epoch) -> bool {
        self.epoch.fetch_max(epoch.0, Ordering::SeqCst) <= epoch.0
    }

    /// The highest epoch seen.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::SeqCst))
    }

    /// Notes that a coordinator has refused this node because another process has its name.
    pub(crate) fn refuse(&self) {
        self.refused.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }

    /// A leader greeted this node, or answered its heartbeat.
    pub(crate) fn hear(&self, rhythm: Rhythm) {
        self.heard.send_replace(rhythm);
    }

    /// Changes whenever a leader is heard.
    pub(crate) fn heard(&self) -> watch::Receiver<Rhythm> {
        self.heard.subscribe()
    }

    /// The envelope of what this node says.
    pub(crate) fn meta(&self, trace: &Carrier) -> Meta {
        Meta {
            epoch: self.epoch(),
            trace: trace.clone(),
        }
    }

    pub(crate) fn hold(&self, key: AttemptKey, progress: Arc<Progress>) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, progress);
    }

    pub(crate) fn release(&self, key: &AttemptKey) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Every attempt that is held, running or finished and not yet acknowledged.
    pub(crate) fn held(&self) -> Vec<(AttemptKey, Counts)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .map(|(key, progress)| (key.clone(), progress.get()))
            .collect()
    }

    /// Answers a call of the link.
    pub(crate) fn answer<T: Serialize>(&self, reply: RpcReplyPort<Wire>, body: &T) {
        match wire::encode(&self.meta(&Carrier::new()), body) {
            // An error means that the caller no longer waits; it will ask again.
            Ok(answer) => drop(reply.send(answer)),
            Err(error) => tracing::error!("an answer to the coordinator could not be encoded: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_refused_for_ever() {
        let shared = Shared::new("n".into(), "b".into(), 1, BTreeMap::new());
        for (epoch, admitted) in [(1, true), (1, true), (3, true), (2, false), (3, true)] {
            assert_eq!(shared.admit(Epoch(epoch)), admitted, "{epoch}");
        }
        assert_eq!(shared.epoch(), Epoch(3));
    }
}
