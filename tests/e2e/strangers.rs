//! What strangers, and peers that are out of their mind, do to the cluster's port while a run goes through: the
//! coordinator lives on and serves, within a bound of memory, and says what was wrong in a few lines.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use haulage_proto::link::transport;
use haulage_proto::v1::Frame;
use haulage_proto::v1::cluster_client::ClusterClient;
use haulage_test_support::until;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::figures::Numbers;
use super::support::peer::Peer;

const MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;
/// Idle connections, one after the other and all held open.
const IDLE: usize = 2_000;
/// What all of it together may cost the coordinator. Most of it is the idle connections', and what is on its way.
const MEMORY: u64 = 96 * MIB;
/// Warnings that may be written about all of it.
const LINES: usize = 60;

/// Sends these bytes and reads until the other end closes the connection.
async fn says(address: &str, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // An error means that it was closed before all of them were sent.
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    tokio::time::timeout(MINUTE, stream.read_to_end(&mut answer))
        .await
        .context("the connection is not closed")
        .map(drop)
}

async fn channel(url: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?.connect().await?)
}

/// Opens a session, sends frames, and returns how the stream ends.
async fn sends(url: &str, frames: Vec<Vec<u8>>) -> Result<Option<Code>> {
    let (sender, outbound) = mpsc::channel(4);
    let opened = ClusterClient::new(channel(url).await?)
        .attach(ReceiverStream::new(outbound))
        .await;
    let mut inbound = match opened {
        Ok(opened) => opened.into_inner(),
        Err(status) => return Ok(Some(status.code())),
    };
    for data in frames {
        if sender.send(Frame { data }).await.is_err() {
            break;
        }
    }
    let end = async {
        loop {
            match inbound.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    };
    tokio::time::timeout(MINUTE, end)
        .await
        .context("the session is not ended")
}

/// Bytes without a meaning, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// A message of a session, as long as it says it is.
fn framed(length: u64, body: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], body].concat()
}

async fn foreign_protocols(address: &str) -> Result<()> {
    says(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await?;
    says(address, b"GET / HTTP/1.1\r\nHost: haulage\r\n\r\n").await?;
    says(address, &noise(4_096)).await?;
    for length in 0..40 {
        says(address, &noise(1 + length * 97)).await?;
    }
    // It begins as HTTP/2 and isn't.
    says(
        address,
        &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &noise(100_000)].concat(),
    )
    .await
}

async fn sessions_without_the_cookie(url: &str) -> Result<()> {
    // A wrong cookie, said well.
    let session = transport::session("node-1", "another secret").await?;
    let mut dialed = transport::dial(&session, channel(url).await?, "the coordinator").await?;
    tokio::time::timeout(MINUTE, dialed.closed())
        .await
        .context("a wrong cookie is let in")?;
    session.stop(None);
    // One gRPC message above every limit, and one session message that claims to be.
    let end = sends(url, vec![noise(17 * MIB as usize)]).await?;
    ensure!(end != Some(Code::Ok), "{end:?}");
    sends(url, vec![framed(1 << 40, b"")]).await?;
    // Messages before the handshake: noise, and more than a handshake needs.
    sends(url, vec![framed(100, &noise(100))]).await?;
    sends(url, (0..8).map(|_| framed(3 * MIB, &noise(60_000))).collect()).await?;
    for _ in 0..20 {
        sends(url, vec![framed(50, &noise(50))]).await?;
    }
    Ok(())
}

/// Sessions that are opened and never say anything: past a few dozens they are refused.
async fn silent_sessions(url: &str) -> Result<()> {
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let (sender, outbound) = mpsc::channel(1);
        match ClusterClient::new(channel(url).await?)
            .attach(ReceiverStream::new(outbound))
            .await
        {
            Ok(opened) => held.push((sender, opened)),
            Err(status) => {
                ensure!(status.code() == Code::ResourceExhausted, "{status}");
                refused += 1;
            }
        }
    }
    ensure!(refused >= 20, "{refused} of 100 silent sessions were refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_at_the_port_cost_little_memory_few_lines_and_no_run() -> Result<()> {
    let numbers = Numbers::new(20_000, 65_536, 500, "SELECT * FROM raw")?;
    let settings = Settings {
        faults: Some("slow@segment:1000ms".into()),
        ..numbers.settings(2)
    };
    let cluster = Cluster::start(numbers.folder(), settings).await?;
    let (run, _) = cluster.submit(&numbers.pipeline(), &[]).await?;
    let loading = |shown: &serde_json::Value| !events(shown, "chunk_staged").is_empty();
    cluster.until_run(&run, "a chunk is staged", MINUTE, loading).await?;
    let (before, url) = (cluster.coordinator.memory()?.1, cluster.address.clone());
    let address = url.trim_start_matches("http://");

    foreign_protocols(address).await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(address).await?);
    }
    // Everybody who speaks is served meanwhile.
    let shown = cluster.show(&run).await?;
    ensure!(
        run_of(&shown)["finished_at"].is_null(),
        "the run was over too soon to tell"
    );
    sessions_without_the_cookie(&url).await?;
    silent_sessions(&url).await?;

    // With the cookie: the name of a node that lives, and messages that mean nothing.
    let reply = json!({"node": "node-1", "boot": "1", "version": "0", "slots": 99, "running": [],
        "speaks": {"protocol": 2, "oldest": 2, "release": "0"}});
    let peer = Peer::attach(&url, "double", cluster.cookie(), reply).await?;
    peer.hello().await?;
    peer.talk_nonsense(100).await?;

    let shown = cluster.show(&run).await?;
    let was_running = run_of(&shown)["finished_at"].is_null();
    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    numbers.check_exact().await?;
    let failed = events(&shown, "attempt_failed");
    ensure!(failed.is_empty(), "the run was disturbed: {failed:#?}");
    drop((idle, peer));

    let said = until("every complaint is in the log", MINUTE, async || {
        let log = cluster.coordinator.log();
        let parts = [
            "it speaks TLS",
            "it speaks HTTP/1",
            "no HTTP/2",
            "did not show the right cookie",
            "sessions are open that haven't shown the cookie",
            "can't be read",
        ];
        Ok(parts.iter().all(|part| log.contains(part)).then_some(log))
    })
    .await?;
    let lines = said
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .count();
    let peak = cluster.coordinator.memory()?.1;
    println!(
        "strangers at the port (the run {} them): peak memory {} MiB before, {} MiB after; {lines} lines of warning",
        if was_running { "outlasted" } else { "ended during" },
        before / MIB,
        peak / MIB
    );
    ensure!(lines <= LINES, "{lines} lines of warning:\n{said}");
    ensure!(peak - before < MEMORY, "{} MiB more than before", (peak - before) / MIB);
    Ok(())
}
