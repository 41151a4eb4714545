//! Cluster.Attach: a node's session comes in as a gRPC stream and is handed to ractor_cluster. The session itself asks
//! for the cookie before it carries anything; until it has seen it, this module bounds what a stranger can have: sessions,
//! time and bytes. The session itself bounds none of them. A coordinator that doesn't lead says who does.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use haulage_proto::link::transport;
use haulage_proto::v1::Frame;
use haulage_proto::v1::cluster_server::Cluster;
use ractor::{ActorId, ActorRef};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeServerMessage};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Request, Response, Status, Streaming};

use super::role::Role;
use super::{Api, status};
use crate::complaints::{Complaints, Kind};

/// Sessions at once: more than any cluster has nodes.
const SESSIONS: usize = 1024;
/// Of them, those that haven't shown the cookie.
const STRANGERS: usize = 64;
/// How long a session may take to show it. Three messages in each direction.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What it may send until then.
const HANDSHAKE_BYTES: usize = 64 * 1024;

/// See the module.
pub(crate) struct Attach {
    api: Api,
    lobby: Arc<Lobby>,
    // The session of the last term that a node came to: its events go to the lobby.
    heeded: Mutex<Option<ActorId>>,
}

/// Every session that is open.
#[derive(Debug, Default)]
struct Lobby {
    visitors: Mutex<HashMap<String, Arc<AtomicBool>>>,
    numbers: AtomicU64,
}

impl Attach {
    pub(crate) fn new(api: Api) -> Self {
        Self {
            api,
            lobby: Arc::default(),
            heeded: Mutex::default(),
        }
    }

    /// Lets the lobby hear who shows the cookie. Every term has a session of its own. Before a stream is given to it, so
    /// that nothing is missed.
    fn heed(&self, session: &ActorRef<NodeServerMessage>) {
        let mut heeded = self.heeded.lock().unwrap_or_else(PoisonError::into_inner);
        if heeded.replace(session.get_id()) == Some(session.get_id()) {
            return;
        }
        let subscription = Box::new(Known(Arc::clone(&self.lobby)));
        let id = "haulage.attach".to_owned();
        // An error means that the session has ended, and nobody comes in any more.
        drop(session.cast(NodeServerMessage::SubscribeToEvents { id, subscription }));
    }

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

#[tonic::async_trait]
impl Cluster for Attach {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        let session = self.session()?;
        let peer = request
            .remote_addr()
            .map_or_else(|| "in-process".to_owned(), |address| address.to_string());
        let visitor = self
            .lobby
            .enter(&peer, Arc::clone(self.api.complaints()))
            .map_err(|full| {
                self.api.complaints().about(Kind::Crowd, &peer, &full);
                Status::resource_exhausted(full)
            })?;
        let label = visitor.label.clone();
        let guarded = Guarded {
            inbound: request.into_inner(),
            deadline: Box::pin(sleep_until(Instant::now() + HANDSHAKE)),
            bytes: 0,
            visitor,
        };
        self.heed(&session);
        match transport::accept(&session, guarded, label) {
            Ok(outbound) => Ok(Response::new(outbound)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

impl Lobby {
    // A panic under this lock can't leave half a change behind.
    fn visitors(&self) -> MutexGuard<'_, HashMap<String, Arc<AtomicBool>>> {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, peer: &str, complaints: Arc<Complaints>) -> Result<Visitor, String> {
        let mut visitors = self.visitors();
        if visitors.len() >= SESSIONS {
            return Err(format!("there are {SESSIONS} sessions of nodes already"));
        }
        let strangers = visitors.values().filter(|known| !known.load(Ordering::SeqCst)).count();
        if strangers >= STRANGERS {
            return Err(format!("{STRANGERS} sessions are open that haven't shown the cookie"));
        }
        // One connection may carry several sessions, so its address alone is no name.
        let label = format!("{peer}#{}", self.numbers.fetch_add(1, Ordering::SeqCst));
        let known = Arc::new(AtomicBool::new(false));
        visitors.insert(label.clone(), Arc::clone(&known));
        Ok(Visitor {
            label,
            known,
            why: "it did not show the right cookie; nodes and coordinators need the same",
            lobby: Arc::clone(self),
            complaints,
        })
    }
}

/// A session's place in the lobby, given back when the session lets go of its stream.
struct Visitor {
    label: String,
    known: Arc<AtomicBool>,
    /// Why it was sent away, if it was.
    why: &'static str,
    lobby: Arc<Lobby>,
    complaints: Arc<Complaints>,
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.lobby.visitors().remove(&self.label);
        if !self.known.load(Ordering::SeqCst) {
            let what = format!("a session was refused: {}", self.why);
            self.complaints.about(Kind::Session, &self.label, &what);
        }
    }
}

/// What comes in, for as long as its sender is in order.
struct Guarded {
    inbound: Streaming<Frame>,
    deadline: Pin<Box<Sleep>>,
    bytes: usize,
    visitor: Visitor,
}

impl Guarded {
    fn sent_away(&mut self, why: &'static str) -> Status {
        self.visitor.why = why;
        Status::unauthenticated(why)
    }
}

impl Stream for Guarded {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let known = self.visitor.known.load(Ordering::SeqCst);
        // Also wakes up who never sends anything.
        if !known && self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(self.sent_away("it did not show the cookie within 10 s"))));
        }
        let frame = ready!(Pin::new(&mut self.inbound).poll_next(cx));
        match &frame {
            Some(Ok(frame)) if !known => {
                self.bytes += frame.data.len();
                if self.bytes > HANDSHAKE_BYTES {
                    let why = "it sent more than a handshake needs before it showed the cookie";
                    return Poll::Ready(Some(Err(self.sent_away(why))));
                }
            }
            Some(Err(status)) if !known && status.code() == tonic::Code::OutOfRange => {
                self.visitor.why = "it sent a frame that is too large";
            }
            Some(Ok(_) | Err(_)) | None => {}
        }
        Poll::Ready(frame)
    }
}

/// Notes which sessions have shown the cookie.
struct Known(Arc<Lobby>);

impl NodeEventSubscription for Known {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {}

    fn node_session_authenticated(&self, session: NodeServerSessionInformation) {
        if let Some(known) = self.0.visitors().get(&session.peer_addr) {
            known.store(true, Ordering::SeqCst);
        }
    }
}
