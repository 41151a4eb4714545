//! The tests' S3 server as a process: `haulage-test-s3 FOLDER PORT`, buckets are the folder's folders. It ends with the
//! process that started it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let folder = PathBuf::from(args.next().context("usage: haulage-test-s3 FOLDER PORT")?);
    let port = args.next().context("usage: haulage-test-s3 FOLDER PORT")?;
    let port: u16 = port.to_string_lossy().parse().context("the port")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let serving = haulage_test_support::s3::serve(&folder, listener)?;
    // The folder goes with whoever made it: also when that one was killed, nobody needs this server any more.
    let mut look = tokio::time::interval(std::time::Duration::from_secs(1));
    while folder.exists() && std::os::unix::process::parent_id() != 1 {
        look.tick().await;
    }
    serving.abort();
    Ok(())
}
