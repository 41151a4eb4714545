//! Servers of tests as processes: the user that they run as, and that they end with the test.
//!
//! Database servers refuse to run as root, so root runs each as the user that its packages make. A server is told to end
//! when whoever started it does, also when that is killed.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

use super::signal;

/// The user that a kind of server runs as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    user: &'static str,
    /// Whether commands have to switch to it.
    switch: bool,
}

impl Account {
    /// `user` for root, and whoever we are for others.
    pub(crate) fn of(user: &'static str) -> Result<Self> {
        let switch = id(&["-u"])? == 0;
        Ok(Self { user, switch })
    }

    /// A command of this user: the program and its arguments are still to come.
    pub(crate) fn command(&self) -> Command {
        self.switched(None)
    }

    /// The same, and it gets this signal when the thread that starts it ends.
    pub(crate) fn server(&self, signal: &str) -> Command {
        self.switched(Some(signal))
    }

    /// Makes a folder the user's own.
    pub(crate) fn give(&self, folder: &Path) -> Result<()> {
        if self.switch {
            chown(folder, Some(id(&["-u", self.user])?), Some(id(&["-g", self.user])?))?;
        }
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700))?;
        Ok(())
    }

    fn switched(&self, signal_with_us: Option<&str>) -> Command {
        // Only Linux has setpriv, and the signal that it asks for.
        let linux = cfg!(target_os = "linux");
        let mut command = Command::new(if linux { "setpriv" } else { "env" });
        if linux && self.switch {
            let user = self.user;
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups"]);
        }
        if let (true, Some(signal)) = (linux, signal_with_us) {
            command.args(["--pdeathsig", signal]);
        }
        // The folder that we are in may be closed to the server's user.
        command.current_dir("/").env("LC_ALL", "C");
        command
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(args).output().context("starting id")?;
    ensure!(
        output.status.success(),
        "id {args:?}: {}; root runs a database server as the user that its package makes",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// A server's process; ended on drop.
pub(crate) struct Daemon {
    /// What it is, for errors.
    what: &'static str,
    /// The signal that ends it.
    end: &'static str,
    pid: u32,
    watcher: Option<JoinHandle<()>>,
}

impl Daemon {
    /// The server dies with us, also when a test is killed. That signal comes when the *thread* that started it ends, so
    /// one thread starts it and stays.
    pub(crate) fn spawn(what: &'static str, end: &'static str, mut command: Command) -> Result<Self> {
        let (started, pid) = mpsc::sync_channel(1);
        let watcher = std::thread::spawn(move || match command.spawn() {
            Ok(mut child) => {
                started.send(Ok(child.id())).ok();
                child.wait().ok();
            }
            Err(error) => {
                started.send(Err(error)).ok();
            }
        });
        let pid = pid
            .recv()
            .with_context(|| format!("the thread that starts {what}"))?
            .with_context(|| format!("starting {what}"))?;
        Ok(Self {
            what,
            end,
            pid,
            watcher: Some(watcher),
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.watcher.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A process that has ended was waited for, and its id may be somebody else's.
        if !self.has_ended() {
            // Without the signal the watcher would wait for ever, and with it the test.
            if let Err(error) = signal(self.pid, self.end) {
                eprintln!("{} is left running: {error:#}", self.what);
                return;
            }
        }
        if let Some(watcher) = self.watcher.take() {
            watcher.join().ok();
        }
    }
}

/// Runs a command to its end; what it said is the error.
pub(crate) async fn run(command: Command) -> Result<()> {
    let called = format!("{command:?}");
    let output = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("starting {called}"))?;
    ensure!(
        output.status.success(),
        "{called} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
