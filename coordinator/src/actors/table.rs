//! Which runs are live in this process, for whoever has something to say to one: the gateway, the API, watchers.
//!
//! A run's place here outlives a restart of its actor, so a watcher never notices one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use haulage_core::ids::{RunId, Seq};
use haulage_core::run::State;
use haulage_proto::convert::Live;
use ractor::ActorRef;
use tokio::sync::watch;

use super::run::RunMessage;

/// A run as it stood at `seq`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) state: Arc<State>,
    pub(crate) seq: Seq,
    pub(crate) live: Live,
}

/// Where snapshots of one run appear. Only the newest is kept: who is slow misses some, and holds up nobody.
pub(crate) type View = watch::Sender<Arc<Snapshot>>;

/// What is known about a run that isn't at rest.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Its actor runs.
    Live(ActorRef<RunMessage>),
    /// Its actor is being started again.
    Starting,
    /// It can't be recovered; why.
    SetAside(String),
}

#[derive(Debug)]
struct Entry {
    place: Place,
    view: View,
}

/// All runs that aren't at rest. Whether it is complete is known once every open run has been looked at.
#[derive(Debug, Default)]
pub(crate) struct RunTable {
    entries: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: HashMap<RunId, Entry>,
    complete: bool,
}

impl RunTable {
    // A panic under this lock can't leave half a change behind, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a run in its place, and returns where its snapshots appear.
    pub(crate) fn put(&self, run: &RunId, place: Place) -> View {
        let mut inner = self.lock();
        if let Some(entry) = inner.runs.get_mut(run) {
            entry.place = place;
            return entry.view.clone();
        }
        let view = View::new(Arc::new(Snapshot::default()));
        inner.runs.insert(
            run.clone(),
            Entry {
                place,
                view: view.clone(),
            },
        );
        view
    }

    /// Forgets a run that is at rest.
    pub(crate) fn remove(&self, run: &RunId) {
        self.lock().runs.remove(run);
    }

    pub(crate) fn place(&self, run: &RunId) -> Option<Place> {
        self.lock().runs.get(run).map(|entry| entry.place.clone())
    }

    /// The run's actor, while it runs.
    pub(crate) fn actor(&self, run: &RunId) -> Option<ActorRef<RunMessage>> {
        match self.place(run)? {
            Place::Live(actor) => Some(actor),
            Place::Starting | Place::SetAside(_) => None,
        }
    }

    /// Snapshots of a run, now and from now on.
    pub(crate) fn view(&self, run: &RunId) -> Option<watch::Receiver<Arc<Snapshot>>> {
        self.lock().runs.get(run).map(|entry| entry.view.subscribe())
    }

    /// Every open run has been looked at: a run that isn't here is at rest, or doesn't exist.
    pub(crate) fn set_complete(&self) {
        self.lock().complete = true;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.lock().complete
    }
}
