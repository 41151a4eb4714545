//! The public gRPC interface, one concern a file. It turns requests into inputs of the actors and reads of the ledger,
//! and what comes back into generated types; it decides nothing.
//!
//! What it can do depends on its [`Role`]. A leader answers everything. A standby reads the ledger and passes the rest on
//! to the leader ([`forward`]). Without a coordinator ([`Api::reading`]) it only reads.

mod ask;
pub(crate) mod attach;
mod cancel;
pub(crate) mod door;
mod forward;
mod nodes;
mod parts;
pub(crate) mod prune;
mod receipts;
mod rejects;
mod replay;
mod resolve;
mod revert;
pub(crate) mod role;
mod runs;
pub(crate) mod server;
mod status;
mod submit;
mod watch;
mod watermarks;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use haulage_core::ids::{RunId, Seq};
use haulage_core::run::State;
use haulage_proto::v1;
use haulage_proto::v1::haulage_server::Haulage;
use tokio::sync::watch::Sender;
use tonic::{Request, Response, Status};

use crate::complaints::Complaints;
use crate::ledger::Ledger;
use forward::{Forward, Route};
use role::{Leader, Role};

/// A server stream of the interface.
type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    ledger: Arc<dyn Ledger>,
    /// The coordinator's name; empty for a reader.
    name: String,
    role: Sender<Role>,
    forward: Arc<Forward>,
    /// What is wrong with peers of the port, through every term.
    complaints: Arc<Complaints>,
    /// True once the process is going down: streams end instead of holding it up.
    closing: Sender<bool>,
}

impl Api {
    /// The interface of a coordinator. It stands by until its role says something else.
    pub(crate) fn coordinating(ledger: Arc<dyn Ledger>, name: &str) -> Self {
        Self::new(ledger, name, Role::Standby(None))
    }

    /// The interface of somebody who only reads.
    pub(crate) fn reading(ledger: Arc<dyn Ledger>) -> Self {
        Self::new(ledger, "", Role::Reading)
    }

    fn new(ledger: Arc<dyn Ledger>, name: &str, role: Role) -> Self {
        Self {
            ledger,
            name: name.to_owned(),
            role: Sender::new(role),
            forward: Arc::default(),
            complaints: Arc::default(),
            closing: Sender::new(false),
        }
    }

    /// What this process is, for whoever changes it and whoever waits for a change.
    pub(crate) fn role(&self) -> &Sender<Role> {
        &self.role
    }

    /// Where this process says what is wrong with its peers.
    pub(crate) fn complaints(&self) -> &Arc<Complaints> {
        &self.complaints
    }

    /// Ends every stream that would otherwise go on.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// The leader's actors, if this process leads.
    fn leader(&self) -> Option<Leader> {
        match &*self.role.borrow() {
            Role::Leading(leader) if leader.shared.leadership.ended().is_none() => Some(leader.clone()),
            Role::Leading(_) | Role::Standby(_) | Role::Reading => None,
        }
    }

    /// A run's log and its fold. NOT_FOUND if there is no such run.
    async fn read(&self, run: &RunId) -> Result<Log, Status> {
        let log = Log::read(self.ledger.as_ref(), run).await;
        log.map_err(|error| status::ledger(&error))?
            .ok_or_else(|| Status::not_found(format!("there is no run {run}; `haulage runs` lists those that are")))
    }
}

/// A run as the ledger has it.
struct Log {
    seq: Seq,
    state: State,
    events: Vec<(Seq, haulage_core::event::Event)>,
}

impl Log {
    /// Reads and folds it. `None` if there is no such run.
    async fn read(ledger: &dyn Ledger, run: &RunId) -> Result<Option<Self>, crate::ledger::Error> {
        let events = ledger.read(run, Seq(0)).await?;
        Ok(events.last().map(|(seq, _)| *seq).map(|seq| Self {
            seq,
            state: State::fold(events.iter().map(|(_, event)| event)),
            events,
        }))
    }
}

#[tonic::async_trait]
impl Haulage for Api {
    type WatchStream = Outgoing<v1::WatchResponse>;
    type ListRejectsStream = Outgoing<v1::Reject>;
    type VerifyRunStream = Outgoing<v1::LoadVerdict>;
    type PruneStream = Outgoing<v1::PrunedRun>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => submit::submit(&leader, request).await.map(Response::new),
            Route::There(mut client) => forward::answered(client.submit(forward::passed_on(request)).await),
        }
    }

    async fn replay(&self, request: Request<v1::ReplayRequest>) -> Result<Response<v1::ReplayResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => replay::replay(self, &leader, request).await.map(Response::new),
            Route::There(mut client) => forward::answered(client.replay(forward::passed_on(request)).await),
        }
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
        match self.route(request.metadata())? {
            Route::Here(leader) => cancel::cancel(self, &leader, request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => forward::answered(client.cancel(forward::passed_on(request)).await),
        }
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => resolve::resolve(self, &leader, request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => forward::answered(client.resolve(forward::passed_on(request)).await),
        }
    }

    async fn revert(&self, request: Request<v1::RevertRequest>) -> Result<Response<v1::RevertResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => revert::revert(self, &leader, request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => forward::answered(client.revert(forward::passed_on(request)).await),
        }
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let mut response = match self.route(request.metadata())? {
            Route::Here(leader) => nodes::list(&leader).await.map(Response::new)?,
            Route::There(mut client) => forward::answered(client.list_nodes(forward::passed_on(request)).await)?,
        };
        response.get_mut().answered_by.clone_from(&self.name);
        Ok(response)
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => nodes::drain(&leader, &request.into_inner().node)
                .await
                .map(Response::new),
            Route::There(mut client) => forward::answered(client.drain_node(forward::passed_on(request)).await),
        }
    }

    async fn get_receipt(&self, request: Request<v1::GetReceiptRequest>) -> Result<Response<v1::Receipt>, Status> {
        receipts::get(self, request.into_inner()).await.map(Response::new)
    }

    async fn verify_run(
        &self,
        request: Request<v1::VerifyRunRequest>,
    ) -> Result<Response<Self::VerifyRunStream>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => receipts::verify(self, &leader, request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => {
                let loads = forward::answered(client.verify_run(forward::passed_on(request)).await)?.into_inner();
                Ok(Response::new(Box::pin(loads)))
            }
        }
    }

    async fn list_watermarks(
        &self,
        request: Request<v1::ListWatermarksRequest>,
    ) -> Result<Response<v1::ListWatermarksResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => watermarks::list(&leader, request.into_inner()).await.map(Response::new),
            Route::There(mut client) => forward::answered(client.list_watermarks(forward::passed_on(request)).await),
        }
    }

    async fn set_watermark(
        &self,
        request: Request<v1::SetWatermarkRequest>,
    ) -> Result<Response<v1::SetWatermarkResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => watermarks::set(&leader, request.into_inner()).await.map(Response::new),
            Route::There(mut client) => forward::answered(client.set_watermark(forward::passed_on(request)).await),
        }
    }

    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => prune::prune(&leader, request.into_inner()).await.map(Response::new),
            Route::There(mut client) => {
                let runs = forward::answered(client.prune(forward::passed_on(request)).await)?.into_inner();
                Ok(Response::new(Box::pin(runs)))
            }
        }
    }

    async fn look_up(&self, request: Request<v1::LookUpRequest>) -> Result<Response<v1::LookUpResponse>, Status> {
        match self.route(request.metadata())? {
            Route::Here(leader) => receipts::look_up(&leader, request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => forward::answered(client.look_up(forward::passed_on(request)).await),
        }
    }

    async fn list_rejects(
        &self,
        request: Request<v1::ListRejectsRequest>,
    ) -> Result<Response<Self::ListRejectsStream>, Status> {
        // Whoever only reads has the nodes of its own process, if any.
        if matches!(&*self.role.borrow(), Role::Reading) {
            return rejects::list(self, None, request.into_inner()).await.map(Response::new);
        }
        match self.route(request.metadata())? {
            Route::Here(leader) => rejects::list(self, Some(&leader), request.into_inner())
                .await
                .map(Response::new),
            Route::There(mut client) => {
                let rows = forward::answered(client.list_rejects(forward::passed_on(request)).await)?.into_inner();
                Ok(Response::new(Box::pin(rows)))
            }
        }
    }
}
