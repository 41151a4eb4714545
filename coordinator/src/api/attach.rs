//! Cluster.Attach: a node's session comes in as a gRPC stream and is handed to ractor_cluster. The session itself asks
//! for the cookie before it carries anything.

use std::pin::Pin;

use futures::Stream;
use haulage_proto::link::transport;
use haulage_proto::v1::Frame;
use haulage_proto::v1::cluster_server::Cluster;
use ractor::ActorRef;
use ractor_cluster::NodeServerMessage;
use tonic::{Request, Response, Status, Streaming};

use super::status;
use crate::leadership::Leadership;

/// See the module.
pub(crate) struct Attach {
    pub(crate) session: ActorRef<NodeServerMessage>,
    pub(crate) leadership: Leadership,
}

#[tonic::async_trait]
impl Cluster for Attach {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        if let Some(reason) = self.leadership.ended() {
            return Err(status::deposed(&reason));
        }
        let peer = request
            .remote_addr()
            .map_or_else(|| "in-process".to_owned(), |address| address.to_string());
        match transport::accept(&self.session, request.into_inner(), peer) {
            Ok(outbound) => Ok(Response::new(outbound)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
