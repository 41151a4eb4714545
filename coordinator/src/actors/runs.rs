//! `Runs`: supervises the actor of every run that isn't at rest. A failed one is started again from the ledger, with
//! backoff; one that can't be recovered is set aside, said so once, and never holds up another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::{Millis, RunId};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::cluster::ClusterMessage;
use super::run::{RunActor, RunArguments, RunMessage};
use super::table::Place;
use super::{Shared, tell};
use crate::clock;
use crate::deciding::Unreadable;

/// First wait before a failed actor is started again; doubles with each failure.
const BACKOFF: Duration = Duration::from_millis(200);
/// Failures in a row after which a run is set aside.
const MAX_FAILURES: u32 = 8;
/// How often open runs are looked for that nobody works on.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// An actor that lived so long has forgiven the failures before it.
const FORGIVEN_MS: u64 = 60_000;

/// See the module.
pub(crate) struct Runs;

#[derive(RactorMessage)]
pub(crate) enum RunsMessage {
    /// A run has begun, or its actor has to be started again. Harmless if it runs.
    Start(RunId),
    /// Open runs in the ledger are to be looked for that nobody works on, or that somebody has decided about unheard.
    Look,
    /// A run's log is folded: it has said, or is about to say, what it has outstanding.
    Ready(RunId),
}

/// What the supervisor is started with.
pub(crate) struct RunsArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster: ActorRef<ClusterMessage>,
    /// Runs that an earlier leader left open.
    pub(crate) open: Vec<RunId>,
}

pub(crate) struct RunsState {
    myself: ActorRef<RunsMessage>,
    shared: Arc<Shared>,
    cluster: ActorRef<ClusterMessage>,
    children: HashMap<ActorId, (RunId, Millis)>,
    failures: HashMap<RunId, u32>,
    // Open runs of an earlier leader that nothing is known about yet.
    recovering: HashSet<RunId>,
}

impl Actor for Runs {
    type Msg = RunsMessage;
    type State = RunsState;
    type Arguments = RunsArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        for run in &args.open {
            args.shared.table.put(run, Place::Starting);
            tell(&myself, RunsMessage::Start(run.clone()));
        }
        myself.send_interval(LOOK_EVERY, || RunsMessage::Look);
        if args.open.is_empty() {
            tell(&args.cluster, ClusterMessage::Recovered);
        }
        Ok(RunsState {
            myself,
            shared: args.shared,
            cluster: args.cluster,
            children: HashMap::new(),
            failures: HashMap::new(),
            recovering: args.open.into_iter().collect(),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunsMessage::Start(run) => state.start(run).await,
            RunsMessage::Ready(run) => state.known(&run),
            RunsMessage::Look => state.look(),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                if let Some((run, _)) = state.children.remove(&cell.get_id()) {
                    state.failures.remove(&run);
                    state.shared.table.remove(&run);
                    state.known(&run);
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                if let Some((run, since)) = state.children.remove(&cell.get_id()) {
                    state.failed(run, since, &error);
                }
            }
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

impl RunsState {
    async fn start(&mut self, run: RunId) {
        if let Some(Place::Live(_) | Place::SetAside(_)) = self.shared.table.place(&run) {
            return;
        }
        let args = RunArguments {
            run: run.clone(),
            shared: Arc::clone(&self.shared),
            cluster: self.cluster.clone(),
            supervisor: self.myself.clone(),
            view: self.shared.table.put(&run, Place::Starting),
        };
        match Actor::spawn_linked(None, RunActor, args, self.myself.get_cell()).await {
            Ok((actor, _)) => {
                self.children.insert(actor.get_id(), (run.clone(), clock::steady()));
                self.shared.table.put(&run, Place::Live(actor));
            }
            Err(error) => self.failed(run, clock::steady(), &ActorProcessingErr::from(error)),
        }
    }

    /// Who opens a run in the ledger says so, but may be gone before: a client that hung up, an answer that was lost.
    fn look(&self) {
        let (shared, myself) = (Arc::clone(&self.shared), self.myself.clone());
        tokio::spawn(async move {
            // A ledger that can't be read is complained about by whoever needs it.
            for run in shared.ledger.open_runs().await.unwrap_or_default() {
                match shared.table.place(&run) {
                    None => {
                        tracing::debug!(%run, "open, and nobody works on it");
                        tell(&myself, RunsMessage::Start(run));
                    }
                    Some(Place::Live(actor)) => tell(&actor, RunMessage::Doubt),
                    Some(Place::Starting | Place::SetAside(_)) => {}
                }
            }
        });
    }

    fn failed(&mut self, run: RunId, since: Millis, error: &ActorProcessingErr) {
        if let Some(Unreadable(reason)) = error.downcast_ref::<Unreadable>() {
            return self.set_aside(run, reason.clone());
        }
        let lived = clock::steady().since(since);
        let failures = self.failures.entry(run.clone()).or_default();
        *failures = if lived >= FORGIVEN_MS { 1 } else { *failures + 1 };
        if *failures >= MAX_FAILURES {
            return self.set_aside(
                run,
                format!("its actor failed {MAX_FAILURES} times in a row, last with: {error}"),
            );
        }
        let wait = BACKOFF * 2_u32.pow(*failures - 1);
        tracing::warn!(%run, %error, wait_ms = wait.as_millis(), "a run's actor failed and is started again");
        self.shared.table.put(&run, Place::Starting);
        drop(self.myself.send_after(wait, move || RunsMessage::Start(run)));
    }

    fn set_aside(&mut self, run: RunId, reason: String) {
        tracing::error!(%run, "the run can't be recovered and is set aside: {reason}");
        self.failures.remove(&run);
        self.shared.table.put(&run, Place::SetAside(reason));
        tell(&self.cluster, ClusterMessage::Forget(run.clone()));
        self.known(&run);
    }

    /// One run of an earlier leader less that nothing is known about.
    fn known(&mut self, run: &RunId) {
        if self.recovering.remove(run) && self.recovering.is_empty() {
            tell(&self.cluster, ClusterMessage::Recovered);
        }
    }
}
