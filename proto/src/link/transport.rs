//! How the bytes of a session travel: a tonic bidirectional stream of [`Frame`]s as ractor_cluster's own seam for
//! foreign transports, [`ClusterBidiStream`]. The node dials, the coordinator accepts, and from there on both ends are
//! equal: an ordered stream of bytes in each direction, cut into frames of at most [`FRAME_BYTES`].
//!
//! What has to be known about ractor_cluster 0.16 here:
//! - Its TCP listener can't be turned off. It is bound to loopback on a port of the system's choice, where nobody knows
//!   it, and a stranger who finds it fails at the cookie.
//! - The mode is `Isolated`, said explicitly: the transitive mode would dial the peers of peers in plaintext.
//! - A peer's name has to be unique and new with every start of a process: a stale half-open session under the same
//!   name would win over that of the restarted node.
//! - Its own queue before the writer is unbounded. What bounds it are the protocol (every message is a call, and credit
//!   bounds the calls) and the few frames that wait here.
//! - It never reconnects and never notices a silent peer: HTTP/2 keepalive ends a dead connection, [`Dialed::closed`]
//!   says so, and the caller dials again.
//!
//! - It waits for a peer's cookie without end, and counts neither its sessions nor what they send. The accepting end does
//!   that, in the stream that it gives to [`accept`].
//!
//! Deliberately not here: when to dial, whom, and how long to wait before the next try.

use std::future::Future as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt};
use ractor::{Actor, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream, IncomingEncryptionMode, NodeServer, NodeServerMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::Status;
use tonic::transport::Channel;

use crate::v1::Frame;
use crate::v1::cluster_client::ClusterClient;

/// The most bytes in one frame that this end sends. The accepting end takes frames of twice as much at most.
pub const FRAME_BYTES: usize = 64 * 1024;
/// The largest message of a session. Messages carry references, never rows; the largest is a plan with its chunks.
pub const MESSAGE_BYTES: u64 = 4 * 1024 * 1024;
/// Frames that may wait for the connection, in each direction, before the writer has to wait.
const FRAMES_IN_FLIGHT: usize = 16;

/// In the metadata of a refusal by a coordinator that doesn't lead: the leader's address, if there is one.
pub const LEADER: &str = "haulage-leader";

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process could not start its end.
    #[error("the cluster session could not start: {0}")]
    Start(String),
    /// The peer refused the stream, or could not be reached.
    #[error("the coordinator refused the link: {}", .0.message())]
    Refused(Box<Status>),
    /// This process is shutting down.
    #[error("the cluster session has ended")]
    Ended,
}

/// The outbound half of an accepted stream, as tonic wants it for a response.
pub type Outbound = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

/// A stream that was dialed, while its session lives.
#[derive(Debug)]
pub struct Dialed {
    closed: oneshot::Receiver<()>,
    hang_up: Option<oneshot::Sender<()>>,
}

impl Dialed {
    /// Returns once the session has let go of the stream, for whatever reason.
    pub async fn closed(&mut self) {
        // An error means that the other half was dropped, which is the news.
        let _gone = (&mut self.closed).await;
    }

    /// Ends the session as if the peer had closed the stream: for a peer that says nothing any more.
    pub fn hang_up(&mut self) {
        if let Some(hang_up) = self.hang_up.take() {
            // An error means that the session has ended already.
            hang_up.send(()).ok();
        }
    }
}

/// Starts this process's end of all its sessions. `name` is for people to read; what a peer sees is made unique per
/// start of the process. `cookie` is the secret that both ends have to know.
pub async fn session(name: &str, cookie: &str) -> Result<ActorRef<NodeServerMessage>, Error> {
    let boot = boot();
    // Never `NodeServer`'s Debug: it holds the cookie.
    let server = NodeServer::new(
        0,
        cookie.to_owned(),
        format!("{name}.{boot}"),
        format!("{name}.{boot}.haulage"),
        Some(IncomingEncryptionMode::Raw),
        Some(NodeConnectionMode::Isolated),
    )
    .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
    .with_max_inbound_frame_size(MESSAGE_BYTES);
    let (actor, _task) = Actor::spawn(None, server, ())
        .await
        .map_err(|error| Error::Start(error.to_string()))?;
    Ok(actor)
}

/// The accepting end: gives a stream that a node opened to the session, and returns what goes back on it.
/// `peer` is a label for logs and for the session's events. The session lets go of `inbound` when it ends.
pub fn accept<S>(
    node_server: &ActorRef<NodeServerMessage>,
    inbound: S,
    peer: impl Into<String>,
) -> Result<Outbound, Error>
where
    S: Stream<Item = Result<Frame, Status>> + Send + Unpin + 'static,
{
    let (stream, outbound, _dialed) = FrameStream::new(inbound, peer.into());
    node_server
        .cast(NodeServerMessage::ConnectionOpenedExternal {
            stream: Box::new(stream),
            is_server: true,
        })
        .map_err(|_| Error::Ended)?;
    Ok(Box::pin(ReceiverStream::new(outbound).map(Ok)))
}

/// The dialing end: opens a stream over `channel` and gives it to the session. The handshake goes on by itself; a wrong
/// cookie shows as a stream that closes soon. `peer` is a label for logs.
pub async fn dial(
    node_server: &ActorRef<NodeServerMessage>,
    channel: Channel,
    peer: impl Into<String>,
) -> Result<Dialed, Error> {
    let (sender, outbound) = mpsc::channel(FRAMES_IN_FLIGHT);
    let response = ClusterClient::new(channel)
        .attach(ReceiverStream::new(outbound))
        .await
        .map_err(|status| Error::Refused(Box::new(status)))?;
    let (stream, dialed) = FrameStream::over(response.into_inner(), sender, peer.into());
    node_server
        .cast(NodeServerMessage::ConnectionOpenedExternal {
            stream: Box::new(stream),
            is_server: false,
        })
        .map_err(|_| Error::Ended)?;
    Ok(dialed)
}

/// Differs for every start of a process, also on one machine within one clock tick of the system.
#[expect(
    clippy::disallowed_methods,
    reason = "not a time but a name: nothing is ever decided by it"
)]
fn boot() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since_epoch.as_nanos(), std::process::id())
}

/// Both directions of a stream, before the session splits them.
struct FrameStream<S> {
    reader: FrameReader<S>,
    writer: FrameWriter,
    peer: String,
}

impl<S> FrameStream<S> {
    fn new(inbound: S, peer: String) -> (Self, mpsc::Receiver<Frame>, Dialed) {
        let (sender, outbound) = mpsc::channel(FRAMES_IN_FLIGHT);
        let (stream, dialed) = Self::over(inbound, sender, peer);
        (stream, outbound, dialed)
    }

    fn over(inbound: S, sender: mpsc::Sender<Frame>, peer: String) -> (Self, Dialed) {
        let (alive, closed) = oneshot::channel();
        let (hang_up, hung_up) = oneshot::channel();
        let reader = FrameReader {
            inbound,
            frame: Vec::new(),
            read: 0,
            line: Line::Up(hung_up),
            _alive: alive,
        };
        let writer = FrameWriter {
            sender: PollSender::new(sender),
            pending: Vec::new(),
        };
        let dialed = Dialed {
            closed,
            hang_up: Some(hang_up),
        };
        (Self { reader, writer, peer }, dialed)
    }
}

impl<S> ClusterBidiStream for FrameStream<S>
where
    S: Stream<Item = Result<Frame, Status>> + Send + Unpin + 'static,
{
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(self.reader), Box::new(self.writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.peer.clone())
    }
}

/// The inbound frames as bytes.
struct FrameReader<S> {
    inbound: S,
    frame: Vec<u8>,
    read: usize,
    line: Line,
    // Dropped with the reader, which is how the dialer learns that the session is over.
    _alive: oneshot::Sender<()>,
}

/// Whether the dialer still wants the stream.
enum Line {
    Up(oneshot::Receiver<()>),
    /// There is nobody who could hang up.
    Kept,
    HungUp,
}

impl<S> AsyncRead for FrameReader<S>
where
    S: Stream<Item = Result<Frame, Status>> + Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Line::Up(hung_up) = &mut self.line
            && let Poll::Ready(said) = Pin::new(hung_up).poll(cx)
        {
            self.line = if said.is_ok() { Line::HungUp } else { Line::Kept };
        }
        if let Line::HungUp = self.line {
            return Poll::Ready(Ok(()));
        }
        // An empty frame is no end of the stream, so it is skipped.
        while self.read == self.frame.len() {
            match ready!(self.inbound.poll_next_unpin(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => {
                    self.frame = frame.data;
                    self.read = 0;
                }
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status.message().to_owned()))),
            }
        }
        let rest = &self.frame[self.read..];
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..taken]);
        self.read += taken;
        Poll::Ready(Ok(()))
    }
}

/// Bytes as outbound frames. What is written gathers until a frame is full or the writer flushes; the session flushes
/// once per batch of messages, so small messages share a frame.
struct FrameWriter {
    sender: PollSender<Frame>,
    pending: Vec<u8>,
}

impl FrameWriter {
    /// Hands the gathered bytes over, waiting while the connection is behind.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the link");
        ready!(self.sender.poll_reserve(cx)).map_err(|_| closed())?;
        let data = std::mem::take(&mut self.pending);
        Poll::Ready(self.sender.send_item(Frame { data }).map_err(|_| closed()))
    }
}

impl AsyncWrite for FrameWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.pending.len() >= FRAME_BYTES {
            ready!(self.poll_send(cx))?;
        }
        let taken = buf.len().min(FRAME_BYTES - self.pending.len());
        self.pending.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.sender.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    type Inbound = ReceiverStream<Result<Frame, Status>>;

    fn pair() -> (
        mpsc::Sender<Result<Frame, Status>>,
        FrameStream<Inbound>,
        mpsc::Receiver<Frame>,
    ) {
        let (feed, inbound) = mpsc::channel(8);
        let (stream, outbound, _dialed) = FrameStream::new(ReceiverStream::new(inbound), "peer".to_owned());
        (feed, stream, outbound)
    }

    fn frame(data: &[u8]) -> Result<Frame, Status> {
        Ok(Frame { data: data.to_vec() })
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_whatever_the_cut() {
        let (feed, stream, _outbound) = pair();
        for part in [&b"he"[..], b"", b"llo wor", b"", b"ld"] {
            feed.send(frame(part)).await.expect("the reader lives");
        }
        drop(feed);
        let (mut reader, _writer) = Box::new(stream).split();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.expect("no error before the end");
        assert_eq!(text, "hello world");
    }

    #[tokio::test]
    async fn a_failed_stream_is_an_error_and_not_an_end() {
        let (feed, stream, _outbound) = pair();
        feed.send(frame(b"abc")).await.expect("the reader lives");
        feed.send(Err(Status::unavailable("gone")))
            .await
            .expect("the reader lives");
        let (mut reader, _writer) = Box::new(stream).split();
        let mut all = Vec::new();
        let error = reader.read_to_end(&mut all).await.expect_err("the stream failed");
        assert_eq!((all.as_slice(), error.to_string().as_str()), (&b"abc"[..], "gone"));
    }

    #[tokio::test]
    async fn small_writes_share_a_frame_and_large_ones_are_cut() {
        let (_feed, stream, mut outbound) = pair();
        let (_reader, mut writer) = Box::new(stream).split();
        writer.write_all(b"one").await.expect("open");
        writer.write_all(b"two").await.expect("open");
        writer.flush().await.expect("open");
        assert_eq!(outbound.recv().await.map(|frame| frame.data), Some(b"onetwo".to_vec()));

        let large: Vec<u8> = (0..FRAME_BYTES * 2 + 10).map(|place| (place % 251) as u8).collect();
        writer.write_all(&large).await.expect("open");
        writer.flush().await.expect("open");
        let mut got = Vec::new();
        while got.len() < large.len() {
            let part = outbound.recv().await.expect("all of it was flushed").data;
            assert!(part.len() <= FRAME_BYTES, "a frame of {} bytes", part.len());
            got.extend(part);
        }
        assert!(got == large, "the bytes differ");
    }

    #[tokio::test]
    async fn a_slow_peer_holds_the_writer_back() {
        let (_feed, stream, mut outbound) = pair();
        let (_reader, mut writer) = Box::new(stream).split();
        let total = FRAME_BYTES * (FRAMES_IN_FLIGHT + 4);
        let writing = tokio::spawn(async move {
            writer.write_all(&vec![7; total]).await.expect("open");
            writer.flush().await.expect("open");
        });
        // All frames that may wait do, and the writer is not through: the rest is still with it.
        while outbound.len() < FRAMES_IN_FLIGHT {
            tokio::task::yield_now().await;
        }
        assert!(!writing.is_finished());
        let mut got = 0;
        while got < total {
            got += outbound.recv().await.expect("the writer goes on").data.len();
        }
        writing.await.expect("the writer ends");
    }

    #[tokio::test]
    async fn a_gone_peer_breaks_the_pipe_and_a_gone_reader_tells_the_dialer() {
        let (_feed, inbound) = mpsc::channel(1);
        let (stream, outbound, mut dialed) =
            FrameStream::<Inbound>::new(ReceiverStream::new(inbound), "peer".to_owned());
        let (reader, mut writer) = Box::new(stream).split();
        drop(outbound);
        writer.write_all(b"x").await.expect("gathered");
        assert_eq!(
            writer.flush().await.expect_err("nobody listens").kind(),
            io::ErrorKind::BrokenPipe
        );
        drop(reader);
        timeout(Duration::from_secs(5), dialed.closed())
            .await
            .expect("told at once");
    }

    #[tokio::test]
    async fn who_hangs_up_ends_the_stream_also_of_a_silent_peer() {
        let (_feed, inbound) = mpsc::channel(1);
        let (stream, _outbound, mut dialed) =
            FrameStream::<Inbound>::new(ReceiverStream::new(inbound), "peer".to_owned());
        let (mut reader, _writer) = Box::new(stream).split();
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.map(|read| (read, all))
        });
        dialed.hang_up();
        let (read, all) = timeout(Duration::from_secs(5), reading)
            .await
            .expect("it ends")
            .expect("no panic")
            .expect("an end, not an error");
        assert_eq!((read, all), (0, Vec::new()));
        timeout(Duration::from_secs(5), dialed.closed())
            .await
            .expect("told at once");
    }
}
