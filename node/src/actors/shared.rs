//! What several actors of a node look at without asking each other: who the node is, the highest epoch it has seen, and
//! which attempts it holds with what they have counted. A heartbeat reads all of it without waiting for anybody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Epoch, NodeName};
use haulage_core::lease::{HEARTBEAT_MS, LEASE_MS};
use haulage_proto::link::message::AttemptKey;
use haulage_proto::link::protocol::{PROTOCOL, Unsuited};
use haulage_proto::link::wire::{self, Meta, Wire};
use ractor::RpcReplyPort;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::trace::Carrier;

/// What an attempt has counted so far, where it began, and whether it is wanted back. Written once per segment.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    counts: Mutex<Counts>,
    continued: AtomicBool,
    /// Bytes of the source that its workers have read, and those of them that stand.
    read: AtomicU64,
    stands: AtomicU64,
    wanted_back: AtomicBool,
}

impl Progress {
    pub(crate) fn set(&self, counts: &Counts) {
        // A panic while this was held can only have left a complete value behind.
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            // Heartbeats carry it, and no one looks at sums before the end.
            .clone_from(&counts.without_sums());
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

    /// A worker has read so much.
    pub(crate) fn has_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::SeqCst);
    }

    /// So much of it is committed.
    pub(crate) fn has_committed(&self, bytes: u64) {
        self.stands.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Bytes that were read and don't stand: when the attempt ends here, what is read again.
    pub(crate) fn bytes_read_again(&self) -> u64 {
        let read = self.read.load(Ordering::SeqCst);
        read.saturating_sub(self.stands.load(Ordering::SeqCst))
    }

    /// The node leaves: the chunk ends after the segment that it works on.
    pub(crate) fn want_back(&self) {
        self.wanted_back.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_wanted_back(&self) -> bool {
        self.wanted_back.load(Ordering::SeqCst)
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
    heard: watch::Sender<Rhythm>,
    /// What was agreed with the coordinator.
    protocol: AtomicU32,
    refusal: OnceLock<Refusal>,
    draining: AtomicBool,
    asked_to_leave: Notify,
    held: Mutex<BTreeMap<AttemptKey, Arc<Progress>>>,
}

/// Why a coordinator and this node can't work together, so that it ends.
#[derive(Debug, Clone)]
pub(crate) enum Refusal {
    /// Another process has its name.
    NameTaken,
    /// They speak no common protocol.
    Unsuited(Unsuited),
}

impl Shared {
    pub(crate) fn new(name: NodeName, boot: String, slots: u32, places: BTreeMap<String, String>) -> Self {
        Self {
            name,
            boot,
            slots,
            places,
            epoch: AtomicU64::new(0),
            heard: watch::Sender::default(),
            protocol: AtomicU32::new(PROTOCOL),
            refusal: OnceLock::new(),
            draining: AtomicBool::new(false),
            asked_to_leave: Notify::new(),
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

    /// Notes why this node ends.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        // An error means that it ends for another reason already.
        drop(self.refusal.set(refusal));
    }

    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        self.refusal.get()
    }

    /// The protocol that the coordinator and this node speak.
    pub(crate) fn protocol(&self) -> u32 {
        self.protocol.load(Ordering::SeqCst)
    }

    pub(crate) fn agreed(&self, protocol: u32) {
        self.protocol.store(protocol, Ordering::SeqCst);
    }

    /// From here on the node takes nothing new, and says so.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Somebody wants this node to drain and end. Whoever runs the node hears of it.
    pub(crate) fn ask_to_leave(&self) {
        self.drain();
        self.asked_to_leave.notify_one();
    }

    /// Returns once the node is asked to leave.
    pub(crate) async fn asked_to_leave(&self) {
        self.asked_to_leave.notified().await;
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
    pub(crate) fn held(&self) -> Vec<(AttemptKey, Arc<Progress>)> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .map(|(key, progress)| (key.clone(), Arc::clone(progress)))
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
