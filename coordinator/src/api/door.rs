//! The door of the port: who may come in, and how long somebody may stand in it without a word.
//!
//! ```text
//!   accepted ─► silent ──the HTTP/2 preface──► inside ──► closed
//!                 │                  a full house: turned away at once
//!                 └── other bytes, SILENCE is over, or too many are silent and it is the oldest: closed, said once
//! ```
//!
//! HTTP/2 has no word for "I won't wait for you for ever": hyper waits for the preface without end, and its keepalive
//! begins only after it. So a crowd of idle connections would stay. Here it is bounded in number and in time, and what
//! isn't HTTP/2 is known by its first bytes, before anything is parsed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::complaints::{Complaints, Kind};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to say it.
const SILENCE: Duration = Duration::from_secs(10);
/// Connections that may be silent at once. One more closes the oldest: who speaks HTTP/2 does so within milliseconds.
const SILENT: usize = 128;
/// Connections at once.
const CONNECTIONS: usize = 1024;
/// Connections that may wait for a task of the server.
const WAITING: usize = 16;
/// How long to wait after the system refused a connection, as when this process has too many files open.
const PAUSE: Duration = Duration::from_millis(200);

/// The connections that come in. Dropping it closes the listener, and leaves those that are inside.
pub(crate) struct Door {
    guests: ReceiverStream<Guest>,
    _accepting: AbortOnDropHandle<()>,
}

/// A connection.
pub(crate) struct Guest {
    stream: TcpStream,
    /// While it hasn't proved that it speaks HTTP/2.
    proof: Option<Proof>,
    place: Place,
}

struct Proof {
    seen: usize,
    failed: bool,
    /// Ends when it has to go.
    end: Pin<Box<dyn Future<Output = &'static str> + Send>>,
}

/// Its place among the others, given back when it is dropped.
struct Place {
    number: u64,
    peer: SocketAddr,
    house: Arc<House>,
}

struct House {
    complaints: Arc<Complaints>,
    crowd: Mutex<Crowd>,
}

#[derive(Default)]
struct Crowd {
    inside: usize,
    // By number, so the first is the oldest.
    silent: BTreeMap<u64, CancellationToken>,
}

impl Door {
    pub(crate) fn new(listener: TcpListener, complaints: Arc<Complaints>) -> Self {
        let house = Arc::new(House {
            complaints,
            crowd: Mutex::default(),
        });
        let (sender, guests) = mpsc::channel(WAITING);
        Self {
            guests: ReceiverStream::new(guests),
            _accepting: AbortOnDropHandle::new(tokio::spawn(accept(listener, house, sender))),
        }
    }
}

impl Stream for Door {
    type Item = Result<Guest, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.guests).poll_next(cx).map(|guest| guest.map(Ok))
    }
}

async fn accept(listener: TcpListener, house: Arc<House>, sender: mpsc::Sender<Guest>) {
    for number in 0.. {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                let what = format!("a connection could not be accepted: {error}");
                house.complaints.about(Kind::Crowd, &"none", &what);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(guest) = house.enter(number, stream, peer) else {
            let what = format!("turned away: there are {CONNECTIONS} connections already");
            house.complaints.about(Kind::Crowd, &peer, &what);
            continue;
        };
        if sender.send(guest).await.is_err() {
            return;
        }
    }
}

impl House {
    // A panic under this lock can't leave half a change behind.
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, number: u64, stream: TcpStream, peer: SocketAddr) -> Option<Guest> {
        // An error means that the connection is gone already, which shows soon.
        drop(stream.set_nodelay(true));
        let evicted = CancellationToken::new();
        let mut crowd = self.crowd();
        if crowd.inside >= CONNECTIONS {
            return None;
        }
        crowd.inside += 1;
        crowd.silent.insert(number, evicted.clone());
        if crowd.silent.len() > SILENT
            && let Some((_, oldest)) = crowd.silent.pop_first()
        {
            oldest.cancel();
        }
        let end = async move {
            tokio::select! {
                () = tokio::time::sleep(SILENCE) => "closed: it said nothing for 10 s",
                () = evicted.cancelled() => "closed: it said nothing, and too many others are waiting",
            }
        };
        Some(Guest {
            stream,
            proof: Some(Proof {
                seen: 0,
                failed: false,
                end: Box::pin(end),
            }),
            place: Place {
                number,
                peer,
                house: Arc::clone(self),
            },
        })
    }
}

impl Place {
    fn proven(&self) {
        self.house.crowd().silent.remove(&self.number);
    }

    fn turned_away(&self, what: &str) -> io::Error {
        self.house.complaints.about(Kind::Connection, &self.peer, &what);
        io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut crowd = self.house.crowd();
        crowd.inside -= 1;
        crowd.silent.remove(&self.number);
    }
}

impl AsyncRead for Guest {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guest = &mut *self;
        let Some(proof) = &mut guest.proof else {
            return Pin::new(&mut guest.stream).poll_read(cx, buf);
        };
        if proof.failed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(why) = proof.end.as_mut().poll(cx) {
            proof.failed = true;
            return Poll::Ready(Err(guest.place.turned_away(why)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut guest.stream).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        let expected = &PREFACE[proof.seen..];
        let compared = new.len().min(expected.len());
        if new[..compared] != expected[..compared] {
            proof.failed = true;
            return Poll::Ready(Err(guest.place.turned_away(stranger(new))));
        }
        proof.seen += compared;
        if proof.seen == PREFACE.len() {
            guest.proof = None;
            guest.place.proven();
        }
        Poll::Ready(Ok(()))
    }
}

/// What somebody speaks who doesn't speak HTTP/2, by the first bytes.
fn stranger(bytes: &[u8]) -> &'static str {
    let method = [&b"GET "[..], b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"CONNECT "];
    if bytes.starts_with(&[0x16, 0x03]) {
        "closed: it speaks TLS, and this port speaks HTTP/2 without it; use http:// addresses"
    } else if method.iter().any(|method| bytes.starts_with(method)) {
        "closed: it speaks HTTP/1, and this port speaks gRPC, which is HTTP/2"
    } else {
        "closed: what it sent is no HTTP/2"
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Guest {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}
