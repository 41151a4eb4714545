//! The public gRPC interface, one concern a file. It turns requests into inputs of the actors and reads of the ledger,
//! and what comes back into generated types; it decides nothing.
//!
//! The same service answers without a leader ([`Api::reading`]): then it only reads what the ledger holds.

pub(crate) mod attach;
mod cancel;
pub(crate) mod door;
mod nodes;
mod rejects;
mod runs;
pub(crate) mod server;
mod status;
mod submit;
mod watch;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use haulage_core::ids::{RunId, Seq};
use haulage_core::run::State;
use haulage_proto::v1;
use haulage_proto::v1::haulage_server::Haulage;
use ractor::ActorRef;
use tokio::sync::watch::Sender;
use tonic::{Request, Response, Status};

use crate::actors::Shared;
use crate::actors::cluster::ClusterMessage;
use crate::actors::runs::RunsMessage;
use crate::ledger::Ledger;

/// A server stream of the interface.
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The actors that a leader's API talks to.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster: ActorRef<ClusterMessage>,
    pub(crate) runs: ActorRef<RunsMessage>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    ledger: Arc<dyn Ledger>,
    leader: Option<Leader>,
    /// True once the process is going down: streams end instead of holding it up.
    closing: Sender<bool>,
}

impl Api {
    /// The interface of a leader.
    pub(crate) fn leading(leader: Leader) -> Self {
        Self {
            ledger: Arc::clone(&leader.shared.ledger),
            leader: Some(leader),
            closing: Sender::new(false),
        }
    }

    /// The interface of somebody who only reads.
    pub(crate) fn reading(ledger: Arc<dyn Ledger>) -> Self {
        Self {
            ledger,
            leader: None,
            closing: Sender::new(false),
        }
    }

    /// Ends every stream that would otherwise go on.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// The leader's actors, if this leads.
    fn leader(&self) -> Result<&Leader, Status> {
        let leader = self.leader.as_ref().ok_or_else(|| {
            Status::failed_precondition("this only reads the ledger; ask a coordinator, or use `haulage run`")
        })?;
        match leader.shared.leadership.ended() {
            Some(reason) => Err(status::deposed(&reason)),
            None => Ok(leader),
        }
    }

    /// A run's log and its fold. NOT_FOUND if there is no such run.
    async fn read(&self, run: &RunId) -> Result<Log, Status> {
        let events = self
            .ledger
            .read(run, Seq(0))
            .await
            .map_err(|error| status::ledger(&error))?;
        let Some((seq, _)) = events.last() else {
            return Err(Status::not_found(format!(
                "there is no run {run}; `haulage runs` lists those that are"
            )));
        };
        Ok(Log {
            seq: *seq,
            state: State::fold(events.iter().map(|(_, event)| event)),
            events,
        })
    }
}

/// A run as the ledger has it.
struct Log {
    seq: Seq,
    state: State,
    events: Vec<(Seq, haulage_core::event::Event)>,
}

#[tonic::async_trait]
impl Haulage for Api {
    type WatchStream = Outgoing<v1::WatchResponse>;
    type ListRejectsStream = Outgoing<v1::Reject>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        submit::submit(self, request).await.map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        watch::watch(self, request.into_inner()).await.map(Response::new)
    }

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::GetRunResponse>, Status> {
        runs::get(self, request.into_inner()).await.map(Response::new)
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsResponse>, Status> {
        runs::list(self, request.into_inner()).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        cancel::cancel(self, request.into_inner()).await.map(Response::new)
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        nodes::list(self).await.map(Response::new)
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        nodes::drain(self, &request.into_inner().node).await.map(Response::new)
    }

    async fn list_rejects(
        &self,
        request: Request<v1::ListRejectsRequest>,
    ) -> Result<Response<Self::ListRejectsStream>, Status> {
        rejects::list(self, request.into_inner()).await.map(Response::new)
    }
}
