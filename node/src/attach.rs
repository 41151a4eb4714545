//! Keeps the node attached to the coordinator that leads: dials the addresses in turn, gives each stream to the session,
//! and dials again when it has ended.
//!
//! A lost connection is no reason to stop anything: the node works on until its lease runs out, and a leader that is
//! reached before that greets it and takes its work over. So there is a race to win after a leader's end, and an outage
//! that is young is met with short waits. A coordinator that doesn't lead refuses and says who does; that one is next if
//! it is among the addresses. A leader that says nothing any more (its process stands still, its machine is cut off) is
//! given up long before HTTP/2 would find out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haulage_proto::link::transport::{self, Dialed, LEADER};
use ractor::ActorRef;
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeServerMessage};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::actors::shared::Rhythm;
use crate::chance::Backoff;

/// How long a coordinator has to take the connection, and to answer on it.
const CONNECT: Duration = Duration::from_secs(2);
const DIAL: Duration = Duration::from_secs(1);
/// HTTP/2 pings, and how long an answer may take: together how long a silent connection lives.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// The first and the longest wait before the next round over the addresses, while an outage is young. A standby takes
/// over within about three seconds, and what a node is running is adopted if it is there a second later.
const SOON: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(300));
/// Rounds for which an outage is young: about 15 s.
const YOUNG: u32 = 60;
/// And after that.
const LATER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// A coordinator that fell silent isn't dialed for so long if there are others: it would take the connection and say
/// nothing, and a standby that doesn't know better yet would send us back to it.
const SHUN: Duration = Duration::from_secs(3);
/// How long a session that was given up may take to end.
const HANG_UP: Duration = Duration::from_secs(2);

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

/// Runs for as long as the node does. `heard` changes whenever a leader is heard.
pub(crate) async fn keep_attached(
    session: ActorRef<NodeServerMessage>,
    endpoints: Vec<(String, Endpoint)>,
    heard: watch::Receiver<Rhythm>,
) {
    let ready = Arc::new(AtomicBool::new(false));
    let subscription = Box::new(Readiness(ready.clone()));
    let id = "haulage.attach".to_owned();
    if session
        .cast(NodeServerMessage::SubscribeToEvents { id, subscription })
        .is_err()
    {
        return;
    }
    let has_others = endpoints.len() > 1;
    let mut order = Order::new(endpoints.len());
    // Said once per outage and address; a coordinator that is away for a night shouldn't fill the log.
    let mut quiet = false;
    loop {
        let Some(place) = order.next(Instant::now()) else {
            quiet = true;
            tokio::time::sleep(order.rest()).await;
            continue;
        };
        let (label, endpoint) = &endpoints[place];
        ready.store(false, Ordering::SeqCst);
        let ended = attach(&session, label, endpoint, heard.clone(), has_others).await;
        if let Ended::Silent | Ended::Unanswered = ended {
            order.shun(place, Instant::now());
        }
        if ready.load(Ordering::SeqCst) {
            let why = match ended {
                Ended::Silent => "the coordinator says nothing any more",
                Ended::Closed | Ended::Unanswered | Ended::Refused { .. } => {
                    "the connection to the coordinator has ended"
                }
            };
            tracing::warn!(coordinator = %label, "{why}; connecting again");
            order.begin_anew();
            quiet = false;
            continue;
        }
        let (reason, leader) = match ended {
            Ended::Refused { reason, leader } => (reason, leader),
            Ended::Unanswered => (format!("no answer within {} ms", DIAL.as_millis()), None),
            Ended::Silent | Ended::Closed => ("the handshake failed; is the cookie the same on both?".to_owned(), None),
        };
        if !quiet {
            tracing::warn!(coordinator = %label, "could not attach: {reason}");
        }
        if let Some(place) = leader.and_then(|leader| endpoints.iter().position(|(label, _)| *label == leader)) {
            order.prefer(place);
        }
    }
}

/// Whose turn it is: every address once a round, with a rest between rounds.
struct Order {
    addresses: usize,
    turn: usize,
    /// Tries of this round.
    tried: usize,
    silent: Option<(usize, Instant)>,
    waits: Waits,
}

impl Order {
    fn new(addresses: usize) -> Self {
        Self {
            addresses,
            turn: 0,
            tried: 0,
            silent: None,
            waits: Waits::new(),
        }
    }

    /// The address to dial; `None` at the end of a round.
    fn next(&mut self, now: Instant) -> Option<usize> {
        while self.tried < self.addresses {
            let place = self.turn;
            self.turn = (place + 1) % self.addresses;
            self.tried += 1;
            let shunned = |(silent, since): (usize, Instant)| silent == place && now.duration_since(since) < SHUN;
            if !self.silent.is_some_and(shunned) {
                return Some(place);
            }
        }
        None
    }

    /// After a round: how long to wait before the next.
    fn rest(&mut self) -> Duration {
        self.tried = 0;
        self.waits.next()
    }

    /// This one is said to be the leader.
    fn prefer(&mut self, place: usize) {
        self.turn = place;
    }

    /// This one has fallen silent.
    fn shun(&mut self, place: usize, now: Instant) {
        if self.addresses > 1 {
            self.silent = Some((place, now));
        }
    }

    /// A session that stood has ended: the next outage is young, and the next address the first.
    fn begin_anew(&mut self) {
        self.tried = 0;
        self.waits.reset();
    }
}

/// Waits between rounds: short while an outage is young, then longer and longer.
struct Waits {
    rounds: u32,
    soon: Backoff,
    later: Backoff,
}

impl Waits {
    fn new() -> Self {
        Self {
            rounds: 0,
            soon: Backoff::new(SOON.0, SOON.1),
            later: Backoff::new(LATER.0, LATER.1),
        }
    }

    fn reset(&mut self) {
        self.rounds = 0;
        self.soon.reset();
        self.later.reset();
    }

    fn next(&mut self) -> Duration {
        self.rounds = self.rounds.saturating_add(1);
        match self.rounds <= YOUNG {
            true => self.soon.wait(),
            false => self.later.wait(),
        }
    }
}

/// How a connection ended, or why it didn't begin.
enum Ended {
    Closed,
    /// Nothing was heard for too long.
    Silent,
    /// The connection was taken, and nothing came on it.
    Unanswered,
    /// It couldn't begin; `leader` is the `host:port` of who leads, if the coordinator said so.
    Refused {
        reason: String,
        leader: Option<String>,
    },
}

/// One connection, until it has ended.
async fn attach(
    session: &ActorRef<NodeServerMessage>,
    label: &str,
    endpoint: &Endpoint,
    mut heard: watch::Receiver<Rhythm>,
    has_others: bool,
) -> Ended {
    let refused = |reason: String| Ended::Refused { reason, leader: None };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return refused(chain(&error)),
    };
    let mut dialed = match tokio::time::timeout(DIAL, transport::dial(session, channel, label)).await {
        Ok(Ok(dialed)) => dialed,
        Ok(Err(error)) => {
            return Ended::Refused {
                leader: leader(&error),
                reason: error.to_string(),
            };
        }
        Err(_) => return Ended::Unanswered,
    };
    tokio::select! {
        () = dialed.closed() => Ended::Closed,
        () = silence(&mut heard, has_others) => {
            hang_up(dialed).await;
            Ended::Silent
        }
    }
}

async fn hang_up(mut dialed: Dialed) {
    dialed.hang_up();
    // An error means that the session hangs on; the next one doesn't need its end.
    drop(tokio::time::timeout(HANG_UP, dialed.closed()).await);
}

/// Returns once the leader has been silent for too long: a lease before it is heard for the first time, or if there is
/// nobody else to ask; else two heartbeats and a half, when the next one has had its time to be answered too.
async fn silence(heard: &mut watch::Receiver<Rhythm>, has_others: bool) {
    heard.mark_unchanged();
    let mut wait = patience(*heard.borrow(), false);
    while let Ok(Ok(())) = tokio::time::timeout(wait, heard.changed()).await {
        wait = patience(*heard.borrow_and_update(), has_others);
    }
}

fn patience(rhythm: Rhythm, has_others: bool) -> Duration {
    let Rhythm { heartbeat_ms, lease_ms } = rhythm;
    Duration::from_millis(match has_others {
        true => lease_ms.min(heartbeat_ms.saturating_mul(5) / 2),
        false => lease_ms,
    })
}

/// Who leads, in the words of our own labels.
fn leader(error: &transport::Error) -> Option<String> {
    let transport::Error::Refused(status) = error else {
        return None;
    };
    let address = status.metadata().get(LEADER)?.to_str().ok()?;
    let (label, _) = endpoints(&[address.to_owned()]).ok()?.pop()?;
    Some(label)
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
    fn a_silent_leader_is_given_up_before_the_lease_if_there_are_others() {
        let rhythm = |heartbeat_ms, lease_ms| Rhythm { heartbeat_ms, lease_ms };
        for (rhythm, has_others, expected) in [
            (rhythm(1_000, 4_800), true, 2_500),
            (rhythm(1_000, 4_800), false, 4_800),
            (rhythm(1_000, 1_500), true, 1_500),
        ] {
            assert_eq!(
                patience(rhythm, has_others),
                Duration::from_millis(expected),
                "{rhythm:?}"
            );
        }
    }

    #[test]
    fn every_address_has_its_turn_and_a_silent_one_is_left_alone_for_a_while() {
        let now = Instant::now();
        let round = |order: &mut Order, now| {
            let dialed: Vec<usize> = std::iter::from_fn(|| order.next(now)).collect();
            order.rest();
            dialed
        };
        let mut order = Order::new(3);
        assert_eq!(round(&mut order, now), [0, 1, 2]);
        order.prefer(2);
        assert_eq!(round(&mut order, now), [2, 0, 1]);
        order.shun(0, now);
        assert_eq!(round(&mut order, now), [2, 1]);
        assert_eq!(round(&mut order, now + SHUN), [2, 0, 1]);
        // There is nobody else to ask.
        let mut order = Order::new(1);
        order.shun(0, now);
        assert_eq!(round(&mut order, now), [0]);
    }

    #[test]
    fn a_refusal_says_who_leads() {
        let mut status = tonic::Status::unavailable("standby");
        status
            .metadata_mut()
            .insert(LEADER, "http://c2:7400".parse().expect("text"));
        let refused = transport::Error::Refused(Box::new(status));
        assert_eq!(leader(&refused).as_deref(), Some("c2:7400"));
        let silent = transport::Error::Refused(Box::new(tonic::Status::unavailable("nobody leads")));
        assert_eq!(leader(&silent), None);
    }

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
