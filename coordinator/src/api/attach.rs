//! Cluster.Attach: a node's session comes in as a gRPC stream and is handed to ractor_cluster. The session itself asks
//! for the cookie before it carries anything. A coordinator that doesn't lead says who does.

use std::pin::Pin;

use futures::Stream;
use haulage_proto::link::transport;
use haulage_proto::v1::Frame;
use haulage_proto::v1::cluster_server::Cluster;
use ractor::ActorRef;
use ractor_cluster::NodeServerMessage;
use tonic::{Request, Response, Status, Streaming};

use super::role::Role;
use super::{Api, status};

/// See the module.
pub(crate) struct Attach {
    pub(crate) api: Api,
}

#[tonic::async_trait]
impl Cluster for Attach {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        let session = self.session()?;
        let peer = request
            .remote_addr()
            .map_or_else(|| "in-process".to_owned(), |address| address.to_string());
        match transport::accept(&session, request.into_inner(), peer) {
            Ok(outbound) => Ok(Response::new(outbound)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

impl Attach {
    /// Where a node's session goes. Only a leader that may speak takes nodes: with anybody else a node would wait for
    /// work while the leader waits for the node.
    #[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
    fn session(&self) -> Result<ActorRef<NodeServerMessage>, Status> {
        let led = match self.api.leader() {
            Some(leader) if leader.shared.leadership.holds() => match leader.session {
                Some(session) => return Ok(session),
                None => None,
            },
            Some(_) => None,
            None => match &*self.api.role().borrow() {
                Role::Standby(led) => led.clone(),
                Role::Leading(_) | Role::Reading => None,
            },
        };
        Err(status::standby(led.as_ref()))
    }
}
