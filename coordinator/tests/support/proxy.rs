//! A proxy in front of PostgreSQL that makes the two moments happen which no test can time: the connection that is cut
//! after COMMIT has reached the server and before its answer has come back, and the client that freezes just before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What happens at the next COMMIT; the one after that passes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Commit {
    Passes = 0,
    /// The server commits, the client learns nothing.
    LosesItsAnswer = 1,
    /// The client's COMMIT is held back until [`Proxy::thaw`].
    Freezes = 2,
}

/// A running proxy.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    next: AtomicU8,
    frozen: Notify,
    thawed: Notify,
}

impl Proxy {
    /// Starts one in front of a loopback port.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port for the proxy");
        let port = listener.local_addr().expect("its number").port();
        let state = Arc::new(State {
            next: AtomicU8::new(0),
            frozen: Notify::new(),
            thawed: Notify::new(),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, Arc::clone(&shared)));
            }
        });
        Self { port, state }
    }

    /// The proxy's loopback port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Says what happens at the next COMMIT.
    pub(crate) fn next_commit(&self, commit: Commit) {
        self.state.next.store(commit as u8, Ordering::SeqCst);
    }

    /// Whether the next COMMIT would pass, so what was said has happened.
    pub(crate) fn has_happened(&self) -> bool {
        self.state.next.load(Ordering::SeqCst) == Commit::Passes as u8
    }

    /// Waits until a COMMIT is held back.
    pub(crate) async fn frozen(&self) {
        self.state.frozen.notified().await;
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.state.thawed.notify_one();
    }
}

async fn carry(client: TcpStream, port: u16, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = Arc::new(Notify::new());
    let answers = tokio::spawn(pass_answers(from_server, to_client, Arc::clone(&cut)));
    pass_requests(from_client, to_server, &state, &cut).await;
    answers.await.ok();
}

async fn pass_requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, state: &State, cut: &Notify) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let bytes = &buffer[..length];
        if bytes.windows(6).any(|word| word == b"COMMIT") {
            let next = state.next.swap(Commit::Passes as u8, Ordering::SeqCst);
            if next == Commit::LosesItsAnswer as u8 {
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

async fn pass_answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, cut: Arc<Notify>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            biased;
            () = cut.notified() => {
                // The answer is the proof that the server has committed; it ends here.
                server.readable().await.ok();
                return;
            }
            read = server.read(&mut buffer) => match read {
                Ok(length @ 1..) if client.write_all(&buffer[..length]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}
