//! What the tests of every crate stand on: PostgreSQL, MariaDB, S3 and HTTP servers of their own, a proxy that cuts what
//! passes through it, and waiting on a condition with a deadline.
//!
//! Real servers, because what is to be found out is how they behave. Deliberately not here: anything that knows Haulage.
//! This crate leans on none of ours, so that all of them may test with it, and none links it but into its tests.

mod daemon;
pub mod http;
pub mod mariadb;
pub mod postgres;
pub mod proxy;
pub mod s3;
mod s3_conditions;
mod wait;

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

pub use wait::{PATIENCE, until, wait_for};

/// The certificate of a CA that the servers' certificates are of. They are valid until 2126, and its key is gone.
pub const CA: &str = include_str!("../tls/ca.pem");
/// That of another one.
pub const OTHER_CA: &str = include_str!("../tls/other.pem");

/// A folder that goes away when it is dropped; `what` stands in its name, for whoever finds one after a crash.
pub fn folder(what: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("haulage-test-{what}-"))
        .tempdir()
        .with_context(|| format!("a temporary folder for {what}"))
}

/// Sends a signal (`INT`, `QUIT`) to a process. By the shell's own `kill`, because a small system has no program of that
/// name.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()])
        .status()
        .context("starting sh")?;
    ensure!(status.success(), "kill -s {name} {pid}: {status}");
    Ok(())
}

/// A port of loopback that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port of loopback")?;
    Ok(listener.local_addr()?.port())
}
