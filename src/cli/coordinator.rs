//! `haulage coordinator`: plans runs, writes them down, hands out work, and answers clients. Touches no data.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use haulage_coordinator::{Coordinator, CoordinatorConfig};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::cli::Globals;
use crate::config::{self, Home};
use crate::exit::Exit;
use crate::output::{Output, json as to_json};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage coordinator                                                  SQLite ledger in .haulage/, for trying it out
  haulage coordinator --listen 0.0.0.0:7400 --ledger postgres://haulage@db/haulage

Nodes and coordinators share a secret, the cookie: HAULAGE_COOKIE, or the file that --cookie-file names. Without either
it is made in .haulage/cookie, where nodes of the same machine find it.
When it is ready it prints one line with its address on stdout (port 0 takes a free port); logs go to stderr.
SIGTERM and Ctrl-C stop it gently: runs go on when it, or another one with the same ledger, starts. A second signal
stops it at once.";

/// Arguments of `coordinator`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The address to listen on, for clients and nodes alike
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "HAULAGE_LISTEN",
        default_value = "127.0.0.1:7400"
    )]
    listen: String,
    /// Where the ledger is: postgres://... or sqlite:PATH [default: sqlite, in the home folder]
    #[arg(long, value_name = "URL", env = "HAULAGE_LEDGER", hide_env_values = true)]
    ledger: Option<String>,
    /// This coordinator's name, for people who look at the ledger [default: the host's name]
    #[arg(long, value_name = "NAME", env = "HAULAGE_COORDINATOR_NAME")]
    name: Option<String>,
    #[command(flatten)]
    daemon: DaemonOptions,
}

/// What coordinators and nodes have in common.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DaemonOptions {
    /// The file with the secret that nodes and coordinators share; the variable HAULAGE_COOKIE comes first
    /// [default: the file `cookie` in the home folder]
    #[arg(long, value_name = "FILE", env = "HAULAGE_COOKIE_FILE")]
    pub(crate) cookie_file: Option<PathBuf>,
    /// Write what the first line on stdout says into this file as well, once this process is up
    #[arg(long, value_name = "FILE", env = "HAULAGE_READY_FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

impl Args {
    /// The name by which traces know this process.
    pub(crate) fn instance(&self) -> Option<String> {
        self.name.clone()
    }
}

/// Serves until a signal comes or leadership is lost.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut signals = Signals::listen()?;
    let home = Home::new(&globals.home)?;
    // A ledger in the home has one writer, also when that writer is a `haulage run`.
    let (ledger, _lock) = match args.ledger {
        Some(ledger) => (ledger, None),
        None => {
            let lock = home.lock()?;
            (config::sqlite_url(&home.ledger()), Some(lock))
        }
    };
    let cookie = match args.daemon.cookie()? {
        Some(cookie) => cookie,
        None => {
            home.create()?;
            config::read_or_make_cookie(&home.cookie())?
        }
    };
    let listener = TcpListener::bind(&args.listen)
        .await
        .with_context(|| format!("can't listen on {}", args.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let coordinator = haulage_coordinator::start(CoordinatorConfig {
        ledger,
        name: args.name.unwrap_or_else(host),
        cookie,
        lease: haulage_core::lease::Settings::default(),
        cluster: true,
    })
    .await?;
    ready("coordinator", &url(address), &args.daemon, globals.output())?;
    let exit = serve(&coordinator, listener, &mut signals).await;
    if matches!(exit, Ok(Exit::Success)) {
        coordinator.stop().await;
    }
    exit
}

/// Serves until a signal; success if everything was told to end and did.
async fn serve(coordinator: &Coordinator, listener: TcpListener, signals: &mut Signals) -> Result<Exit> {
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = coordinator.serve(listener, async move {
        // An error means that the sender is gone, and with it the reason to serve.
        drop(stopped.await);
    });
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served.map(|()| Exit::Success).map_err(Into::into),
        signal = signals.next() => tracing::info!("{}: stopping; once more to stop at once", signal.name()),
    }
    drop(stop);
    tokio::select! {
        served = &mut serving => served.map(|()| Exit::Success).map_err(Into::into),
        _ = signals.next() => Ok(Exit::Interrupted),
    }
}

impl DaemonOptions {
    /// The cookie that was given, if one was.
    pub(crate) fn cookie(&self) -> Result<Option<String>> {
        if let Ok(cookie) = std::env::var("HAULAGE_COOKIE")
            && !cookie.trim().is_empty()
        {
            return Ok(Some(cookie.trim().to_owned()));
        }
        self.cookie_file.as_deref().map(config::read_cookie).transpose()
    }
}

/// Says that the daemon can be used, on stdout and in the ready file.
pub(crate) fn ready(role: &str, what: &str, options: &DaemonOptions, output: Output) -> Result<()> {
    if let Some(file) = &options.ready_file {
        write_whole(file, &format!("{what}\n"))
            .with_context(|| format!("can't write the ready file {}", file.display()))?;
    }
    if output.is_json() {
        output.json(&to_json::typed(
            "ready",
            json!({"role": role, "address": what, "pid": std::process::id()}),
        ))?;
    } else {
        output.line(up(role, what))?;
    }
    Ok(())
}

/// The line on stdout. A node that is up may still be refused by its coordinator, so it isn't called ready.
fn up(role: &str, what: &str) -> String {
    match role {
        "node" => format!("haulage node {what}"),
        _ => format!("haulage {role} ready: {what}"),
    }
}

/// Whoever waits for the file must never see half of it.
fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = file.with_file_name(name);
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

/// The host's name.
pub(crate) fn host() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// An address to dial: a listener on every interface is dialled through the loopback.
fn url(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("http://127.0.0.1:{}", address.port());
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_can_be_dialled() {
        let cases = [
            ("127.0.0.1:7400", "http://127.0.0.1:7400"),
            ("0.0.0.0:7400", "http://127.0.0.1:7400"),
            ("[::1]:7400", "http://[::1]:7400"),
        ];
        for (address, expected) in cases {
            assert_eq!(url(address.parse().expect("an address")), expected);
        }
    }

    #[test]
    fn a_node_that_is_up_does_not_claim_to_be_attached() {
        assert_eq!(up("coordinator", "http://x:1"), "haulage coordinator ready: http://x:1");
        let node = up("node", "n1 is up with 2 slots; connecting to http://x:1");
        assert_eq!(node, "haulage node n1 is up with 2 slots; connecting to http://x:1");
    }

    #[test]
    fn the_ready_file_appears_whole_and_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("ready");
        write_whole(&file, "http://127.0.0.1:1\n").expect("written");
        assert_eq!(
            std::fs::read_to_string(&file).expect("readable"),
            "http://127.0.0.1:1\n"
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}
