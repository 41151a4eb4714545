//! The coordinator: decides what happens next in every run, and says so to nodes and clients.
//!
//! It never opens a source or a destination and never holds a credential for one. Decisions are `haulage_core::run`'s;
//! this crate writes them down ([`ledger`]), carries them out (`actors`), and tells people about them (`api`).

mod actors;
mod api;
mod clock;
mod complaints;
mod config;
mod error;
mod leadership;
pub mod ledger;
mod trace;

use std::future::Future;
use std::sync::Arc;

pub use config::CoordinatorConfig;
pub use error::Error;
use haulage_core::ids::Epoch;
use haulage_proto::link::transport;
use ractor::{Actor, ActorCell, ActorRef};
use ractor_cluster::NodeServerMessage;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use actors::Shared;
use actors::cluster::Cluster;
use actors::gateway::ClusterGateway;
use actors::runs::{Runs, RunsArguments};
use actors::table::RunTable;
use api::attach::Attach;
use api::door::Door;
use api::{Api, Leader, server};
use complaints::Complaints;
use leadership::Leadership;
use ledger::group;

/// A coordinator that leads. Dropping it stops its actors; its runs stay in the ledger, and the next one goes on with
/// them.
pub struct Coordinator {
    leader: Leader,
    api: Api,
    session: Option<ActorRef<NodeServerMessage>>,
    actors: Vec<ActorCell>,
    tasks: Vec<JoinHandle<()>>,
}

/// Opens the ledger, takes the epoch, and goes on with every run that isn't at rest. A run that can't be recovered is
/// said so in the log and set aside. An earlier leader of the same ledger is deposed by this.
pub async fn start(config: CoordinatorConfig) -> Result<Coordinator, Error> {
    let ledger = ledger::open(&config.ledger).await?;
    let epoch = ledger.claim(&config.name, clock::wall()).await?;
    let open = ledger.open_runs().await?;
    tracing::info!(
        epoch = epoch.0,
        open_runs = open.len(),
        name = config.name,
        "this coordinator leads"
    );

    let leadership = Leadership::new(epoch);
    let (writer, written) = group::Writer::spawn(Arc::clone(&ledger), epoch);
    let shared = Arc::new(Shared {
        ledger: Arc::clone(&ledger),
        writer,
        leadership: leadership.clone(),
        settings: config.lease,
        table: RunTable::default(),
        complaints: Complaints::default(),
        alive: watch::Sender::new(0),
        misplaced: watch::Sender::default(),
    });
    let session = match config.cluster {
        true => Some(
            transport::session(&config.name, &config.cookie)
                .await
                .map_err(session_error)?,
        ),
        false => None,
    };
    let (cluster, _) = spawn("cluster", Cluster, Arc::clone(&shared)).await?;
    let arguments = RunsArguments {
        shared: Arc::clone(&shared),
        cluster: cluster.clone(),
        open,
    };
    let (runs, _) = spawn("runs", Runs, arguments).await?;
    let (gateway, _) = spawn("gateway", ClusterGateway, (Arc::clone(&shared), cluster.clone())).await?;

    // In the order in which they are stopped: first nothing more comes in.
    let mut actors = vec![gateway.get_cell(), runs.get_cell(), cluster.get_cell()];
    actors.extend(session.as_ref().map(ActorRef::get_cell));
    let leader = Leader { shared, cluster, runs };
    let tasks = vec![
        tokio::spawn(leadership.clone().watch(ledger)),
        tokio::spawn(heed_writer(leadership.clone(), written)),
        tokio::spawn(stop_when_deposed(leadership, actors.clone())),
    ];
    Ok(Coordinator {
        api: Api::leading(leader.clone()),
        leader,
        session,
        actors,
        tasks,
    })
}

impl Coordinator {
    /// The term of this coordinator.
    pub fn epoch(&self) -> Epoch {
        self.leader.shared.epoch()
    }

    /// Serves everything on one port until `shutdown`, or until another coordinator leads ([`Error::Deposed`]).
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let leadership = self.leader.shared.leadership.clone();
        let shared = &self.leader.shared;
        let session = self.session.clone();
        let attach = session.map(|session| Attach::new(session, Arc::clone(shared)));
        let door = Door::new(listener, Arc::clone(shared));
        let session = self.session.clone();
        let shutdown = async {
            tokio::select! {
                () = shutdown => {}
                _ = leadership.wait() => {}
            }
            // They would hold up the end of the port: nodes dial again, and their leases outlast a quick restart.
            if let Some(session) = session {
                session.stop(Some("the coordinator stops".to_owned()));
            }
        };
        server::serve(self.api.clone(), attach, door, shutdown).await?;
        match leadership.ended() {
            Some(reason) => Err(Error::Deposed(reason)),
            None => Ok(()),
        }
    }

    /// A client of this coordinator in the same process, without a port.
    pub fn channel(&self) -> Channel {
        server::channel(self.api.clone())
    }

    /// Waits until another coordinator leads, and returns what to tell the user.
    pub async fn deposed(&self) -> String {
        self.leader.shared.leadership.wait().await
    }

    /// Stops every actor and waits until they have ended. Runs stay in the ledger as they are.
    pub async fn stop(mut self) {
        self.api.close();
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
        }
        for actor in std::mem::take(&mut self.actors) {
            // An error means that it has ended already.
            drop(
                actor
                    .stop_and_wait(Some("the coordinator stops".to_owned()), None)
                    .await,
            );
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.api.close();
        for task in &self.tasks {
            task.abort();
        }
        for actor in &self.actors {
            actor.stop(Some("the coordinator is gone".to_owned()));
        }
    }
}

/// What the ledger holds, for somebody who doesn't lead: runs, their events, and quarantined rows if a node of this
/// process reads them. Everything else is refused.
pub struct Reader {
    api: Api,
}

/// Opens a ledger for reading only. The leader, if there is one, isn't disturbed.
pub async fn open_readonly(ledger: &str) -> Result<Reader, Error> {
    Ok(Reader {
        api: Api::reading(ledger::open_read_only(ledger).await?),
    })
}

impl Reader {
    /// A client of the same interface that a coordinator serves.
    pub fn channel(&self) -> Channel {
        server::channel(self.api.clone())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.api.close();
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

fn session_error(error: transport::Error) -> Error {
    Error::Session(error.to_string())
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
