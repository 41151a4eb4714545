//! A TCP proxy that cuts a connection at its COMMIT: before the server hears it, or after the server has answered and
//! before the client hears that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PASS: u8 = 0;
const BEFORE: u8 = 1;
const AFTER: u8 = 2;

/// A proxy in front of a PostgreSQL on loopback.
pub(crate) struct Cut {
    port: u16,
    mode: Arc<AtomicU8>,
}

impl Cut {
    pub(crate) async fn in_front_of(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let armed = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.expect("the server");
                tokio::spawn(carry(client, server, Arc::clone(&armed)));
            }
        });
        Self { port, mode }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next COMMIT is lost on its way.
    pub(crate) fn before_next_commit(&self) {
        self.mode.store(BEFORE, Ordering::SeqCst);
    }

    /// The answer to the next COMMIT is lost.
    pub(crate) fn after_next_commit(&self) {
        self.mode.store(AFTER, Ordering::SeqCst);
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, mode: Arc<AtomicU8>) {
    let mut up = vec![0; 1 << 16];
    let mut down = vec![0; 1 << 16];
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let commits = up[..read].windows(7).any(|part| part == b"COMMIT\0");
                let cut = if commits { mode.swap(PASS, Ordering::SeqCst) } else { PASS };
                if cut == BEFORE || server.write_all(&up[..read]).await.is_err() {
                    return;
                }
                if cut == AFTER {
                    // Whatever the answer was, nobody hears it.
                    assert!(server.read(&mut down).await.is_ok_and(|read| read > 0));
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
