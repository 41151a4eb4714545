//! A TCP proxy in front of a server on loopback, for what no test can time or arrange otherwise: a connection that is
//! cut or falls silent, an answer that ends in the middle, and the moments around a COMMIT of PostgreSQL's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// How a COMMIT that stands at the end of a statement's text looks on the wire.
const COMMIT: &[u8] = b"COMMIT\0";
/// An answer of any length passes.
const WHOLE: u64 = u64::MAX;

/// What happens at the next COMMIT; the one after that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Commit {
    /// Nothing.
    Passes = 0,
    /// The connection is cut before the server hears it.
    IsLost = 1,
    /// The server commits, the client learns nothing.
    LosesItsAnswer = 2,
    /// The client's COMMIT is held back until [`Proxy::thaw`].
    Freezes = 3,
}

/// What becomes of every connection, those that stand and those that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Everything passes.
    Passes,
    /// Connections are taken and kept, and nothing passes in either direction until the link passes again: half open,
    /// as behind a firewall that forgot them.
    Silent,
    /// Everything passes, each piece this many milliseconds late.
    Late(u16),
    /// Connections end at once.
    Cut,
}

/// A running proxy; it ends when this is dropped.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

struct State {
    commit: AtomicU8,
    frozen: Notify,
    thawed: Notify,
    link: watch::Sender<Link>,
    /// Connections of an earlier generation are forgotten.
    generation: watch::Sender<u64>,
    answer: AtomicU64,
    cuts: AtomicUsize,
}

impl Proxy {
    /// Starts one in front of a loopback port.
    pub async fn start(server: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port for the proxy")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            commit: AtomicU8::new(Commit::Passes as u8),
            frozen: Notify::new(),
            thawed: Notify::new(),
            link: watch::Sender::new(Link::Passes),
            generation: watch::Sender::new(0),
            answer: AtomicU64::new(WHOLE),
            cuts: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, Arc::clone(&shared)));
            }
        });
        Ok(Self { port, state, listening })
    }

    /// The proxy's loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Says what becomes of connections from now on.
    pub fn link(&self, link: Link) {
        self.state.link.send_replace(link);
    }

    /// Forgets every connection that stands, as a firewall does: nothing passes over it any more, in either direction, and
    /// neither side is told. New connections pass.
    pub fn forget(&self) {
        self.state.generation.send_modify(|generation| *generation += 1);
    }

    /// Cuts each connection after so many bytes of answers.
    pub fn cut_answers_after(&self, bytes: u64) {
        self.state.answer.store(bytes, Ordering::SeqCst);
    }

    /// How many answers were cut.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Says what happens at the next COMMIT.
    pub fn next_commit(&self, commit: Commit) {
        self.state.commit.store(commit as u8, Ordering::SeqCst);
    }

    /// Whether the next COMMIT would pass, so what was said has happened.
    pub fn has_happened(&self) -> bool {
        self.state.commit.load(Ordering::SeqCst) == Commit::Passes as u8
    }

    /// Waits until a COMMIT is held back.
    pub async fn frozen(&self) {
        self.state.frozen.notified().await;
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.state.thawed.notify_one();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.state.link.send_replace(Link::Cut);
    }
}

/// One connection from its beginning to its end. Both sockets are dropped, and so closed, together.
async fn carry(client: TcpStream, port: u16, state: Arc<State>) {
    let mut link = state.link.subscribe();
    tokio::select! {
        biased;
        _ = link.wait_for(|link| *link == Link::Cut) => {}
        () = exchange(client, port, &state) => {}
    }
}

async fn exchange(client: TcpStream, port: u16, state: &State) {
    let generation = *state.generation.borrow();
    state.passing(generation).await;
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = Notify::new();
    // Each closes its direction when it ends, and the other one follows when its own side has closed, too.
    tokio::join!(
        pass_requests(from_client, to_server, state, generation, &cut),
        pass_answers(from_server, to_client, state, generation, &cut)
    );
}

async fn pass_requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    state: &State,
    generation: u64,
    cut: &Notify,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let bytes = &buffer[..length];
        state.passing(generation).await;
        if bytes.windows(COMMIT.len()).any(|part| part == COMMIT) {
            let next = state.commit.swap(Commit::Passes as u8, Ordering::SeqCst);
            if next == Commit::IsLost as u8 {
                return;
            } else if next == Commit::LosesItsAnswer as u8 {
                // First no answer may pass any more, then the server may commit.
                cut.notify_one();
            } else if next == Commit::Freezes as u8 {
                state.frozen.notify_one();
                state.thawed.notified().await;
            }
        }
        if server.write_all(bytes).await.is_err() {
            return;
        }
    }
}

async fn pass_answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    state: &State,
    generation: u64,
    cut: &Notify,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = state.answer.load(Ordering::SeqCst);
    loop {
        tokio::select! {
            biased;
            () = cut.notified() => {
                // The answer is the proof that the server has committed; it ends here.
                server.readable().await.ok();
                return;
            }
            read = server.read(&mut buffer) => {
                let Ok(length @ 1..) = read else { return };
                state.passing(generation).await;
                let passes = left.min(length as u64);
                if client.write_all(&buffer[..passes as usize]).await.is_err() {
                    return;
                }
                left -= passes;
                if left == 0 {
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        }
    }
}

impl State {
    /// Returns when the link lets something of this generation pass.
    async fn passing(&self, generation: u64) {
        let mut link = self.link.subscribe();
        // The sender is this very state: it can't be gone.
        let open = |link: &Link| matches!(link, Link::Passes | Link::Late(_));
        let found = link.wait_for(open).await.map(|link| *link);
        if *self.generation.borrow() != generation {
            std::future::pending::<()>().await;
        }
        if let Ok(Link::Late(ms)) = found {
            tokio::time::sleep(Duration::from_millis(ms.into())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its number").port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        port
    }

    /// The answer to a byte; `None` if the connection has ended.
    async fn ask(connection: &mut TcpStream, byte: u8) -> Option<u8> {
        connection.write_all(&[byte]).await.ok()?;
        connection.read_u8().await.ok()
    }

    #[tokio::test]
    async fn a_link_passes_falls_silent_and_is_cut() {
        let proxy = Proxy::start(echo().await).await.expect("a proxy");
        let through = async || TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("taken");
        let mut old = through().await;
        assert_eq!(ask(&mut old, 1).await, Some(1));

        proxy.link(Link::Silent);
        let mut new = through().await;
        for connection in [&mut old, &mut new] {
            let early = timeout(Duration::from_millis(100), ask(connection, 2)).await;
            assert!(early.is_err(), "nothing passes, and nothing ends: {early:?}");
        }
        proxy.link(Link::Passes);
        assert_eq!(old.read_u8().await.ok(), Some(2), "what was held back comes in the end");
        assert_eq!(new.read_u8().await.ok(), Some(2));

        proxy.forget();
        let mut newest = through().await;
        assert_eq!(ask(&mut newest, 6).await, Some(6), "new connections pass");
        let early = timeout(Duration::from_millis(100), ask(&mut new, 6)).await;
        assert!(
            early.is_err(),
            "a forgotten connection says nothing, and does not end: {early:?}"
        );
        let mut old = newest;

        proxy.link(Link::Late(50));
        let asked = Instant::now();
        assert_eq!(ask(&mut old, 5).await, Some(5));
        assert!(
            asked.elapsed() >= Duration::from_millis(100),
            "late there and late back"
        );

        proxy.link(Link::Cut);
        assert_eq!(
            (ask(&mut old, 3).await, ask(&mut through().await, 3).await),
            (None, None)
        );
        proxy.link(Link::Passes);
        assert_eq!(ask(&mut through().await, 4).await, Some(4));
    }

    #[tokio::test]
    async fn an_answer_is_cut_where_it_was_said() {
        let proxy = Proxy::start(echo().await).await.expect("a proxy");
        proxy.cut_answers_after(2);
        let mut connection = TcpStream::connect(("127.0.0.1", proxy.port())).await.expect("taken");
        connection.write_all(b"four").await.expect("sent");
        let mut answer = [0; 4];
        assert!(connection.read_exact(&mut answer).await.is_err());
        assert_eq!((&answer[..2], proxy.cuts()), (b"fo".as_slice(), 1));
    }
}
