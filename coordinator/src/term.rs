//! One term of leadership: the actors that lead, from the epoch that was won until it is lost or given back. A process
//! may have several, one after the other, and between them it is a standby.

use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::Epoch;
use haulage_proto::link::transport;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::actors::Shared;
use crate::actors::cluster::{Cluster, ClusterMessage};
use crate::actors::gateway::ClusterGateway;
use crate::actors::runs::{Runs, RunsArguments};
use crate::actors::table::RunTable;
use crate::api::role::{About, Leader};
use crate::clock;
use crate::complaints::Complaints;
use crate::config::CoordinatorConfig;
use crate::error::Error;
use crate::leadership::Leadership;
use crate::ledger::{self, Ledger, group};
use crate::retention;

/// How long handing over may take. Shorter than the leader's lease, and than a node's.
const HAND_OVER: Duration = Duration::from_secs(2);

/// See the module. Dropping it stops its actors without waiting for them.
pub(crate) struct Term {
    leader: Leader,
    parts: Parts,
}

impl Term {
    /// Goes on with every run that isn't at rest. A run that can't be recovered is said so in the log and set aside.
    pub(crate) async fn begin(
        ledger: Arc<dyn Ledger>,
        leadership: Leadership,
        config: &CoordinatorConfig,
        complaints: Arc<Complaints>,
    ) -> Result<Self, Error> {
        let epoch = leadership.epoch();
        let mut parts = Parts::default();
        // First of all: reading the ledger may take longer than a lease lasts.
        parts.task(leadership.clone().watch(Arc::clone(&ledger)));
        let since = clock::wall();
        let open = ledger.open_runs().await?;
        tracing::info!(
            epoch = epoch.0,
            open_runs = open.len(),
            name = config.name,
            "this coordinator leads"
        );
        let (writer, written) = group::Writer::spawn(Arc::clone(&ledger), epoch);
        let shared = Arc::new(Shared {
            ledger,
            writer,
            leadership: leadership.clone(),
            settings: config.lease,
            table: RunTable::default(),
            complaints,
            alive: watch::Sender::new(0),
            misplaced: watch::Sender::default(),
        });
        let mut session = None;
        if config.cluster {
            let started = transport::session(&config.name, &config.cookie).await;
            let started = started.map_err(|error| Error::Session(error.to_string()))?;
            parts.actor(started.get_cell());
            session = Some(started);
        }
        let (cluster, _) = spawn("cluster", Cluster, Arc::clone(&shared)).await?;
        parts.actor(cluster.get_cell());
        let arguments = RunsArguments {
            shared: Arc::clone(&shared),
            cluster: cluster.clone(),
            open,
        };
        let (runs, _) = spawn("runs", Runs, arguments).await?;
        parts.actor(runs.get_cell());
        let (gateway, _) = spawn("gateway", ClusterGateway, (Arc::clone(&shared), cluster.clone())).await?;
        parts.actor(gateway.get_cell());
        parts.task(heed_writer(leadership.clone(), written));
        parts.task(stop_when_deposed(leadership, parts.actors.clone()));
        let about = About {
            name: config.name.clone(),
            address: config.advertise.clone(),
            since,
        };
        let leader = Leader {
            shared,
            cluster,
            runs,
            session,
            about,
        };
        if let Some(keep) = config.keep_rejects {
            parts.task(retention::watch(leader.clone(), keep));
        }
        Ok(Self { leader, parts })
    }

    /// What the API talks to.
    pub(crate) fn leader(&self) -> &Leader {
        &self.leader
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.leader.shared.epoch()
    }

    /// Gives nothing more away, and waits until what was given away has reached its node: the next leader finds every
    /// attempt of the ledger at its node. Not for long: a node that doesn't answer must not hold up the end of a process.
    pub(crate) async fn hand_over(&self) {
        let settled = self.leader.cluster.call(ClusterMessage::HandOver, Some(HAND_OVER));
        if !matches!(settled.await, Ok(CallResult::Success(()))) {
            tracing::info!("some attempts have not reached their nodes; the next leader gives them out again");
        }
    }

    /// Stops every actor and waits until they have ended. Runs stay in the ledger as they are.
    pub(crate) async fn end(mut self) {
        for task in std::mem::take(&mut self.parts.tasks) {
            task.abort();
        }
        for actor in std::mem::take(&mut self.parts.actors) {
            // An error means that it has ended already.
            drop(
                actor
                    .stop_and_wait(Some("the coordinator no longer leads".to_owned()), None)
                    .await,
            );
        }
    }
}

/// What has to be stopped, also when a term could not begin.
#[derive(Default)]
struct Parts {
    /// In the order in which they are stopped, the youngest first: so that first nothing more comes in.
    actors: Vec<ActorCell>,
    tasks: Vec<JoinHandle<()>>,
}

impl Parts {
    fn actor(&mut self, actor: ActorCell) {
        self.actors.insert(0, actor);
    }

    fn task(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for actor in &self.actors {
            actor.stop(Some("the coordinator is gone".to_owned()));
        }
    }
}

async fn spawn<A: Actor>(
    name: &'static str,
    actor: A,
    arguments: A::Arguments,
) -> Result<(ActorRef<A::Msg>, JoinHandle<()>), Error> {
    Actor::spawn(None, actor, arguments)
        .await
        .map_err(|source| Error::Spawn { actor: name, source })
}

/// The writer of the ledger is the first to learn that the epoch is lost.
async fn heed_writer(leadership: Leadership, written: JoinHandle<group::Ended>) {
    if let Ok(group::Ended::Deposed { theirs, ours }) = written.await {
        leadership.heed(&ledger::Error::Deposed { theirs, ours });
    }
}

async fn stop_when_deposed(leadership: Leadership, actors: Vec<ActorCell>) {
    drop(leadership.wait().await);
    for actor in actors {
        actor.stop(Some("deposed".to_owned()));
    }
}
