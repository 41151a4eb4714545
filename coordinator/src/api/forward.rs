//! What only a leader can answer, asked of a standby: it is passed on to the leader, once.
//!
//! A request that was passed on carries a mark and is not passed on again: two coordinators that each take the other for
//! the leader would send it round for ever. Whoever gets such a request and doesn't lead says so, and the client asks
//! again, by when the standby knows better.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use haulage_proto::v1::haulage_client::HaulageClient;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::role::{Leader, Role};
use super::{Api, server, status};

/// The mark of a request that was passed on.
const PASSED_ON: &str = "haulage-passed-on";
/// How long the leader may take to take the connection, and to answer a call: longer than it gives itself.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(45);
/// A leader that is silent for twice this is not there any more.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// The connection to the leader, kept for as long as its address is the same.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    known: Mutex<Option<(String, Channel)>>,
}

/// Who answers a request.
pub(super) enum Route {
    /// The actors of this process.
    Here(Leader),
    /// The leader, in another process.
    There(HaulageClient<Channel>),
}

impl Api {
    /// Who answers what only a leader can.
    #[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
    pub(super) fn route(&self, metadata: &MetadataMap) -> Result<Route, Status> {
        if let Some(leader) = self.leader() {
            return Ok(Route::Here(leader));
        }
        let led = match &*self.role.borrow() {
            Role::Reading => {
                return Err(Status::failed_precondition(
                    "this only reads the ledger; ask a coordinator, or use `haulage run`",
                ));
            }
            Role::Standby(led) => led.clone(),
            Role::Leading(_) => None,
        };
        match led {
            Some(led) if !metadata.contains_key(PASSED_ON) => self.forward.to(&led.address).map(Route::There),
            led => Err(status::standby(led.as_ref())),
        }
    }
}

impl Forward {
    #[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
    fn to(&self, address: &str) -> Result<HaulageClient<Channel>, Status> {
        // Nothing is awaited under the lock, and a panic can't leave half a change behind.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match &*known {
            Some((before, channel)) if before == address => channel.clone(),
            Some(_) | None => {
                let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| {
                    Status::unavailable(format!(
                        "the leader says that it is at {address:?}, which is no address; give it one with --advertise"
                    ))
                })?;
                let channel = endpoint
                    .connect_timeout(CONNECT)
                    .timeout(ANSWER)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE)
                    .connect_lazy();
                *known = Some((address.to_owned(), channel.clone()));
                channel
            }
        };
        Ok(HaulageClient::new(channel)
            .max_decoding_message_size(server::RESPONSE_BYTES)
            .max_encoding_message_size(server::REQUEST_BYTES))
    }
}

/// The same request, marked. The client's trace context and its patience go with it.
pub(super) fn passed_on<T>(mut request: Request<T>) -> Request<T> {
    let metadata = request.metadata_mut();
    metadata.insert(PASSED_ON, MetadataValue::from_static("1"));
    request
}

/// What came of passing a request on. A leader that could not be reached is said in words that make a client ask again:
/// a connection that broke has many codes, and an answer of the leader has none of them and no source.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
pub(super) fn answered<T>(answer: Result<T, Status>) -> Result<T, Status> {
    answer.map_err(|status| {
        let broken = std::error::Error::source(&status).is_some() || status.code() == Code::Cancelled;
        if broken {
            return Status::unavailable(format!(
                "the leader does not answer ({}); another coordinator takes over within seconds, try again",
                status.message()
            ));
        }
        status
    })
}
