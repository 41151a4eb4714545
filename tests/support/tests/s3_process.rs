//! What the S3 server of the tests keeps when it is killed: everything that it has acknowledged.

use std::path::Path;

use anyhow::{Result, ensure};
use haulage_test_support::s3::S3Process;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status line that a request without a signature is answered with: enough to see that somebody serves.
async fn asked(port: &str) -> Result<String> {
    let mut connection = TcpStream::connect(format!("127.0.0.1:{port}")).await?;
    connection
        .write_all(b"GET /lake/a.csv HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_killed_server_comes_back_with_its_objects() -> Result<()> {
    let mut server = S3Process::start(Path::new(env!("CARGO_BIN_EXE_haulage-test-s3")), &["lake"]).await?;
    let object = server.folder("lake").join("a.csv");
    std::fs::write(&object, "id\n1\n")?;
    let envs = server.envs();
    let endpoint = &envs
        .iter()
        .find(|(name, _)| name == "AWS_ENDPOINT_URL")
        .expect("named")
        .1;
    let port = endpoint.rsplit(':').next().expect("a port");
    ensure!(
        asked(port).await?.starts_with("HTTP/1.1 403"),
        "nobody is let in without a key"
    );
    server.kill()?;
    ensure!(asked(port).await.is_err(), "a killed server answers");
    server.start_again().await?;
    ensure!(asked(port).await?.starts_with("HTTP/1.1 403"), "it is the same one");
    ensure!(std::fs::read_to_string(&object)? == "id\n1\n");
    Ok(())
}
