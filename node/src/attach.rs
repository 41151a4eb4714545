//! Keeps the node attached to a coordinator: dials the addresses in turn, gives each stream to the session, and dials
//! again, with growing and jittered waits, when it has ended.
//!
//! A lost connection is no reason to stop anything: the node works on until its lease runs out, and a coordinator that
//! is reached before that greets it and takes its work over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haulage_proto::link::transport;
use ractor::ActorRef;
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeServerMessage};
use tonic::transport::Endpoint;

use crate::chance::Backoff;

/// How long a coordinator has to take the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// HTTP/2 pings, and how long an answer may take: together how long a silent connection lives.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// The first and the longest wait before the next round over the addresses.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// An address that can't be dialed.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is no address of a coordinator; expected host:port or http://host:port")]
pub struct AddressError {
    address: String,
}

/// Reads the addresses of coordinators.
pub(crate) fn endpoints(addresses: &[String]) -> Result<Vec<(String, Endpoint)>, AddressError> {
    let read = |address: &String| {
        let wrong = || AddressError {
            address: address.clone(),
        };
        let full = if address.contains("://") {
            address.clone()
        } else {
            format!("http://{address}")
        };
        let endpoint = Endpoint::from_shared(full).map_err(|_| wrong())?;
        // A userinfo would be a secret in a label.
        let uri = endpoint.uri();
        let (Some(host), Some(port), Some("http")) = (uri.host(), uri.port_u16(), uri.scheme_str()) else {
            return Err(wrong());
        };
        let label = format!("{host}:{port}");
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok((label, endpoint))
    };
    addresses.iter().map(read).collect()
}

/// Runs for as long as the node does.
pub(crate) async fn keep_attached(session: ActorRef<NodeServerMessage>, endpoints: Vec<(String, Endpoint)>) {
    let ready = Arc::new(AtomicBool::new(false));
    let subscription = Box::new(Readiness(ready.clone()));
    let id = "haulage.attach".to_owned();
    if session
        .cast(NodeServerMessage::SubscribeToEvents { id, subscription })
        .is_err()
    {
        return;
    }
    let mut backoff = Backoff::new(WAIT.0, WAIT.1);
    let mut quiet = false;
    loop {
        for (label, endpoint) in &endpoints {
            ready.store(false, Ordering::SeqCst);
            let ended = attach(&session, label, endpoint).await;
            if ready.load(Ordering::SeqCst) {
                tracing::warn!(coordinator = %label, "the connection to the coordinator has ended; connecting again");
                backoff.reset();
                quiet = false;
            } else if !quiet {
                let reason =
                    ended.unwrap_or_else(|| "the handshake failed; is the cookie the same on both?".to_owned());
                tracing::warn!(coordinator = %label, "could not attach: {reason}");
            }
        }
        // Said once per outage and address; a coordinator that is away for a night shouldn't fill the log.
        quiet = true;
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// One connection, until it has ended; the reason if it could not begin.
async fn attach(session: &ActorRef<NodeServerMessage>, label: &str, endpoint: &Endpoint) -> Option<String> {
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return Some(chain(&error)),
    };
    match transport::dial(session, channel, label).await {
        Ok(dialed) => {
            dialed.closed().await;
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

/// tonic's transport errors say what happened only in their sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Notes that a session got through its handshake.
struct Readiness(Arc<AtomicBool>);

impl NodeEventSubscription for Readiness {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {}

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        tracing::info!(coordinator = %session.peer_addr, "attached to the coordinator");
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let read = |address: &str| endpoints(&[address.to_owned()]).map(|read| read[0].0.clone());
        assert_eq!(read("coordinator:7411").expect("sound"), "coordinator:7411");
        assert_eq!(read("http://10.0.0.1:7411").expect("sound"), "10.0.0.1:7411");
        for wrong in ["", "coordinator", "https://coordinator:7411", "ftp://x:1", "http://"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
