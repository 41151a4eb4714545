//! The one port: the public interface, the nodes' sessions, server reflection (both versions, since older clients know
//! only the first) and the standard health service (a standby serves; only the leader serves [`LEADER`]). And the same over a pipe in this process, for the command line of
//! the embedded mode.

use std::future::Future;
use std::time::Duration;

use haulage_proto::link::transport;
use haulage_proto::v1;
use haulage_proto::v1::cluster_server::ClusterServer;
use haulage_proto::v1::haulage_server::HaulageServer;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Api;
use super::attach::Attach;
use super::door::Door;
use super::role::Role;
use crate::error::Error;

/// A connection on which nothing comes back for so long is asked, and closed after as long again.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A request at most: a pipeline file and its parameters.
pub(super) const REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// An answer at most: a run with all its events.
pub(super) const RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// A frame of a node's session at most, with room for the framing. Refused by its length, before it is read.
const FRAME_BYTES: usize = 2 * transport::FRAME_BYTES;
/// Calls at once on one connection: a client makes a few, a node one session.
const STREAMS: u32 = 128;
/// Headers of a call at most; ours are a trace context and a name.
const HEADER_BYTES: u32 = 16 * 1024;
/// Calls that a peer has opened and cancelled before they were looked at, at most; then its connection is closed.
const CANCELLED: usize = 32;
/// Bytes that may be on their way in one call and on one connection before whoever sends has to wait.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What the health service calls the lead: SERVING on the coordinator that leads, and on no other. A load balancer that
/// asks for it sends nodes and clients where they are answered first-hand.
const LEADER: &str = "haulage.v1.Leader";
/// How long open calls may take to end once the process is going down.
const GRACE: Duration = Duration::from_secs(3);
/// Bytes that may wait in a pipe of this process, in each direction.
const PIPE_BYTES: usize = 256 * 1024;
/// Pipes that may wait to be accepted.
const PIPES: usize = 4;

/// Serves a port until `shutdown`; then open streams are told, and what hasn't ended after [`GRACE`] is cut off.
pub(crate) async fn serve(
    api: Api,
    cluster: bool,
    door: Door,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<HaulageServer<Api>>().await;
    let _led = AbortOnDrop(tokio::spawn(show_leader(health.clone(), api.role().subscribe())));
    let attach = cluster.then(|| Attach::new(api.clone()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = router(api.clone(), attach)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(health_service);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = router.serve_with_incoming_shutdown(door, async {
        // An error means that the sender is gone, which is a reason to stop too.
        drop(stopped.await);
    });
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        () = shutdown => {}
    }
    health.set_not_serving::<HaulageServer<Api>>().await;
    api.close();
    drop(stop);
    match tokio::time::timeout(GRACE, serving).await {
        Ok(served) => Ok(served?),
        // Sessions of nodes never end by themselves.
        Err(_) => Ok(()),
    }
}

/// Keeps the health of [`LEADER`] true.
async fn show_leader(health: HealthReporter, mut role: watch::Receiver<Role>) {
    loop {
        let status = match &*role.borrow_and_update() {
            Role::Leading(_) => ServingStatus::Serving,
            Role::Standby(_) | Role::Reading => ServingStatus::NotServing,
        };
        health.set_service_status(LEADER, status).await;
        if role.changed().await.is_err() {
            return;
        }
    }
}

/// A task that ends with what it belongs to.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A client of this process's own interface, without a port.
pub(crate) fn channel(api: Api) -> Channel {
    let (pipes, accepted) = mpsc::channel::<DuplexStream>(PIPES);
    tokio::spawn(async move {
        let incoming = ReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
        // Ends when the last client is dropped.
        if let Err(error) = router(api, None).serve_with_incoming(incoming).await {
            tracing::error!(%error, "the in-process interface failed");
        }
    });
    Endpoint::from_static("http://in.process").connect_with_connector_lazy(tower::service_fn(move |_| {
        let pipes = pipes.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let gone = |_| std::io::Error::new(std::io::ErrorKind::NotConnected, "the coordinator has stopped");
            pipes.send(theirs).await.map_err(gone)?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    }))
}

fn router(api: Api, attach: Option<Attach>) -> Router {
    let haulage = HaulageServer::new(api)
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(RESPONSE_BYTES);
    let cluster = attach.map(|attach| ClusterServer::new(attach).max_decoding_message_size(FRAME_BYTES));
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(CANCELLED))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(haulage)
        .add_optional_service(cluster)
}
