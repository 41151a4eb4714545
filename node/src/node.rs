//! A running node: its actors, its data runtime, and its end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::NodeName;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::protocol::Unsuited;
use haulage_proto::link::transport;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorRef};
use ractor_cluster::NodeServerMessage;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::actors::agent::{self, NodeAgent};
use crate::actors::heartbeater::{self, Heartbeater, HeartbeaterMessage};
use crate::actors::shared::{Refusal, Shared};
use crate::actors::supervisor::{Setup, Supervisor, SupervisorMessage};
use crate::attach::{self, AddressError};
use crate::chance;
use crate::config::NodeConfig;
use crate::work::Toolbox;

/// DataFusion plans and runs recursively; a deep CASE of a user must not end the process.
const DATA_STACK: usize = 8 * 1024 * 1024;

/// Why a node could not start, or has ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// A coordinator's address makes no sense.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The operating system refused threads.
    #[error("the threads for data work could not start: {0}")]
    Runtime(#[from] std::io::Error),
    /// The link could not start.
    #[error(transparent)]
    Link(#[from] transport::Error),
    /// An actor could not start, which is a mistake in Haulage.
    #[error("an actor of the node could not start: {0}")]
    Actor(String),
    /// Another process has its name and lives.
    #[error("another process runs under the name {0}; give this one another with --name")]
    NameTaken(NodeName),
    /// A coordinator of another release, with which it has no protocol in common.
    #[error(transparent)]
    Unsuited(Unsuited),
    /// A part of the node crashed, which is a mistake in Haulage; its work runs elsewhere once its lease is out.
    #[error("the node has stopped because a part of it crashed; start it again")]
    Crashed,
}

/// A running node. Dropping it ends it without waiting for anything.
pub struct Node {
    shared: Arc<Shared>,
    agent: ActorRef<AgentMessage>,
    supervisor: ActorRef<SupervisorMessage>,
    heartbeater: ActorRef<HeartbeaterMessage>,
    ended: JoinHandle<()>,
    // In this order: no new sessions, then no sessions, then no data work.
    dialer: Option<AbortOnDropHandle<()>>,
    session: Option<ActorRef<NodeServerMessage>>,
    _data: DataRuntime,
}

/// Starts a node. With coordinators in its settings it attaches to them, and goes on trying for as long as it runs;
/// without, it is the embedded node of the coordinator in this process. Touches no source and no destination yet.
pub async fn start(config: NodeConfig) -> Result<Node, Error> {
    if config.slots == 0 {
        return Err(Error::Config(
            "a node needs at least one slot; set --slots to 1 or more".to_owned(),
        ));
    }
    let endpoints = attach::endpoints(&config.coordinators)?;
    let data = DataRuntime::start(config.slots)?;
    let shared = Arc::new(Shared::new(
        config.name.clone(),
        chance::boot(),
        config.slots,
        config.places(),
    ));
    let session = match endpoints.is_empty() {
        true => None,
        false => Some(transport::session(config.name.as_str(), &config.cookie).await?),
    };
    let tools = Arc::new(Toolbox::new(config));
    let failed = |error: ractor::SpawnErr| Error::Actor(error.to_string());

    let setup = Setup {
        shared: shared.clone(),
        tools: tools.clone(),
        data: data.handle(),
    };
    let (supervisor, ended) = Actor::spawn(None, Supervisor, setup).await.map_err(failed)?;
    // Linked to the supervisor: a node that lost its heartbeat or its ear is no node, and ends as a whole.
    let with = heartbeater::Colleagues {
        shared: shared.clone(),
        supervisor: supervisor.clone(),
    };
    let (heartbeater, _) = Actor::spawn_linked(None, Heartbeater, with, supervisor.get_cell())
        .await
        .map_err(failed)?;
    let with = agent::Colleagues {
        shared: shared.clone(),
        supervisor: supervisor.clone(),
        heartbeater: heartbeater.clone(),
        tools,
        data: data.handle(),
    };
    let (agent, _) = Actor::spawn_linked(None, NodeAgent, with, supervisor.get_cell())
        .await
        .map_err(failed)?;

    let dialer = session.clone().map(|session| {
        let dialing = attach::keep_attached(session, endpoints, shared.heard());
        AbortOnDropHandle::new(tokio::spawn(dialing))
    });
    Ok(Node {
        shared,
        agent,
        supervisor,
        heartbeater,
        ended,
        dialer,
        session,
        _data: data,
    })
}

impl Node {
    /// The node's ear, for a coordinator in the same process. Others find it through its process group.
    pub fn agent(&self) -> ActorRef<AgentMessage> {
        self.agent.clone()
    }

    /// Returns only when the node has ended by itself: a part of it has crashed, its name is another's, or its coordinator
    /// is of a release with which it can't work.
    pub async fn crashed(&mut self) -> Error {
        // An error means that the supervisor's task was torn down, which is the same news.
        drop((&mut self.ended).await);
        match self.shared.refusal() {
            Some(Refusal::NameTaken) => Error::NameTaken(self.shared.name.clone()),
            Some(Refusal::Unsuited(unsuited)) => Error::Unsuited(unsuited.clone()),
            None => Error::Crashed,
        }
    }

    /// Returns once a user has asked the coordinator to let this node drain and end.
    pub fn asked_to_leave(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = self.shared.clone();
        async move { shared.asked_to_leave().await }
    }

    /// Takes no new work, and waits until what it holds has ended or is handed back, and the coordinator lets it go, at
    /// most so long. Returns whether it came to that. Chunks have two fifths of the time to end; then they commit the
    /// segment they work on and hand the rest back. After four fifths whatever still runs is cut off.
    pub async fn drain(&self, at_most: Duration) -> bool {
        self.shared.drain();
        // An error in either means that the node is ending anyway.
        drop(self.heartbeater.cast(HeartbeaterMessage::Now));
        let message = |reply| SupervisorMessage::Drain {
            finish: at_most * 2 / 5,
            cut: at_most * 4 / 5,
            reply,
        };
        let drained = self.supervisor.call(message, Some(at_most)).await;
        matches!(drained, Ok(CallResult::Success(())))
    }

    /// Cancels what is running and ends the node. What was committed stands; the rest runs elsewhere.
    pub async fn shutdown(mut self) {
        drop(self.dialer.take());
        // Its children (agent, heartbeater, reporter, workers) end with it.
        self.supervisor.stop(Some("shutdown".to_owned()));
        drop((&mut self.ended).await);
        if let Some(session) = self.session.take() {
            // An error means that it has ended already.
            drop(
                session
                    .stop_and_wait(Some("shutdown".to_owned()), Some(Duration::from_secs(2)))
                    .await,
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.supervisor.stop(Some("dropped".to_owned()));
        if let Some(session) = &self.session {
            session.stop(Some("dropped".to_owned()));
        }
    }
}

/// The runtime of data work. It ends without waiting: what it runs is transactions that roll back.
struct DataRuntime(Option<Runtime>);

impl DataRuntime {
    fn start(slots: u32) -> Result<Self, std::io::Error> {
        let threads = usize::try_from(slots).unwrap_or(1).saturating_add(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("haulage-data")
            .thread_stack_size(DATA_STACK)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("taken only when dropped").handle().clone()
    }
}

impl Drop for DataRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A runtime that is dropped inside another one's task would panic.
            runtime.shutdown_background();
        }
    }
}
