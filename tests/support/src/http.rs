//! An HTTP/1.1 server whose answers a test writes, with all that servers do wrong: it answers late, byte by byte, half, with
//! a wrong length, without end, in any bytes, or not at all. Written by hand, since no library lets a server misbehave
//! like that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Longer heads of requests are no requests.
const MAX_HEAD: usize = 64 << 10;

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, ...
    pub method: String,
    /// Path and query as they were sent.
    pub target: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The first value of this name in the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .find(|(found, _)| decoded(found) == name)
            .map(|(_, value)| decoded(value))
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// As it should.
    Whole,
    /// The connection is closed after so many bytes of the body, while the head says that all of it comes.
    CutAfter(usize),
    /// The body comes byte by byte, with a pause between.
    Drips(Duration),
    /// The head says nothing of a length, and the body comes again and again for as long as somebody reads.
    Never,
    /// No answer comes at all, and the connection stays.
    Silent,
    /// The connection is closed without a word.
    Closed,
    /// What is sent is the body and nothing else, head and all, and the connection is closed.
    AsWritten,
}

/// An answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200, ...
    pub status: u16,
    /// Beside those that say how long the body is.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How it ends.
    pub ends: Ends,
}

impl Answer {
    /// A whole answer with this body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            ends: Ends::Whole,
        }
    }

    /// The same with another header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The same with another end.
    #[must_use]
    pub fn ends(mut self, ends: Ends) -> Self {
        self.ends = ends;
        self
    }
}

type Script = dyn Fn(&Request, usize) -> Answer + Send + Sync;

/// A running server; it ends when this is dropped.
pub struct Http {
    port: u16,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    script: Box<Script>,
    log: Mutex<Vec<Request>>,
    open: AtomicUsize,
}

impl Http {
    /// Starts a server on a free port of loopback. `script` answers each request, and is told how many came before it.
    pub async fn start(script: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("a free port of loopback")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            log: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                tokio::spawn(async move {
                    shared.open.fetch_add(1, Ordering::SeqCst);
                    // A client that goes away in the middle is its own business.
                    drop(serve(connection, &shared).await);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self {
            port,
            shared,
            listening,
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Answers the requests of one connection.
async fn serve(mut connection: TcpStream, shared: &Shared) -> std::io::Result<()> {
    // Else a body waits until the client has acknowledged its head.
    connection.set_nodelay(true)?;
    let mut data = Vec::new();
    loop {
        let Some(request) = request(&mut connection, &mut data).await? else {
            return Ok(());
        };
        let answer = {
            let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(request.clone());
            let before = log.len() - 1;
            drop(log);
            (shared.script)(&request, before)
        };
        if !send(&mut connection, &answer).await? {
            return Ok(());
        }
    }
}

/// The next request; `None` if the client has closed. What comes behind it stays in `data`.
async fn request(connection: &mut TcpStream, data: &mut Vec<u8>) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if data.len() > MAX_HEAD || connection.read_buf(data).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&data[..end]).into_owned();
    data.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    });
    Ok(Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: headers.collect(),
    }))
}

/// Sends an answer, and says whether the connection goes on.
async fn send(connection: &mut TcpStream, answer: &Answer) -> std::io::Result<bool> {
    let Answer {
        status,
        headers,
        body,
        ends,
    } = answer;
    if *ends == Ends::Closed {
        return Ok(false);
    }
    if *ends == Ends::Silent {
        // Until the client gives up.
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).await?;
        return Ok(false);
    }
    if *ends == Ends::AsWritten {
        connection.write_all(body).await?;
        connection.shutdown().await?;
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {status} said\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if *ends != Ends::Never && *status != 204 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    connection.write_all(head.as_bytes()).await?;
    match ends {
        Ends::Whole => connection.write_all(body).await?,
        Ends::CutAfter(bytes) => connection.write_all(&body[..(*bytes).min(body.len())]).await?,
        Ends::Drips(pause) => {
            for byte in body {
                connection.write_all(&[*byte]).await?;
                connection.flush().await?;
                tokio::time::sleep(*pause).await;
            }
        }
        Ends::Never => loop {
            connection.write_all(body).await?;
        },
        Ends::Silent | Ends::Closed | Ends::AsWritten => {}
    }
    connection.flush().await?;
    Ok(matches!(ends, Ends::Whole | Ends::Drips(_)))
}

/// A part of a query as it was meant.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits).into_owned();
                bytes.extend(u8::from_str_radix(&digits, 16));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_told_and_answers_end_as_they_were_written() {
        let server = Http::start(|request, before| match request.path() {
            "/whole" => Answer::new(200, format!("{before}")).header("X-Is", "there"),
            "/cut" => Answer::new(200, "0123456789").ends(Ends::CutAfter(3)),
            _ => Answer::new(500, "").ends(Ends::Closed),
        })
        .await
        .expect("a server");
        let mut connection = TcpStream::connect(("127.0.0.1", server.port)).await.expect("taken");
        connection
            .write_all(b"GET /whole?a=%C3%BC+b&c HTTP/1.1\r\nHost: h\r\n\r\nGET /cut HTTP/1.1\r\n\r\n")
            .await
            .expect("sent");
        let mut all = Vec::new();
        connection.read_to_end(&mut all).await.expect("an answer");
        let all = String::from_utf8(all).expect("text");
        assert!(
            all.starts_with("HTTP/1.1 200") && all.contains("X-Is: there\r\ncontent-length: 1\r\n\r\n0HTTP"),
            "{all}"
        );
        assert!(all.ends_with("content-length: 10\r\n\r\n012"), "{all}");
        let requests = server.requests();
        assert_eq!(requests[0].query("a").as_deref(), Some("ü b"));
        assert_eq!(
            (requests[0].query("c").as_deref(), requests[0].header("HOST")),
            (Some(""), Some("h"))
        );
        assert_eq!(requests[1].path(), "/cut");
    }
}
