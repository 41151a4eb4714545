//! `haulage coordinator`: plans runs, writes them down, hands out work, and answers clients. Touches no data.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use haulage_coordinator::{Coordinator, CoordinatorConfig, Standing};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::cli::{Globals, prune};
use crate::config::{self, Home};
use crate::exit::{Exit, Usage};
use crate::output::{Output, json as to_json};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage coordinator                                                  SQLite ledger in .haulage/, for trying it out
  haulage coordinator --listen 0.0.0.0:7400 --ledger postgres://haulage@db/haulage
  haulage coordinator --listen 0.0.0.0:7400 --advertise c2.internal:7400 --ledger postgres://haulage@db/haulage

Several coordinators with one PostgreSQL ledger: one leads, the others stand by, answer clients all the same, and take over
within seconds when it ends. Give nodes and clients all the addresses. A SQLite ledger has one coordinator.
Nodes and coordinators share a secret, the cookie: HAULAGE_COOKIE, or the file that --cookie-file names. Without either
it is made in .haulage/cookie, where nodes of the same machine find it.
When it is ready it prints one line with its address on stdout (port 0 takes a free port); logs go to stderr.
SIGTERM and Ctrl-C stop it gently: a standby takes over at once, and without one runs go on when a coordinator with the same
ledger starts. A second signal stops it at once.";

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
    /// Where nodes, clients and other coordinators reach this one [default: the address it listens on, with the host's name
    /// if that is every interface]
    #[arg(long, value_name = "HOST:PORT", env = "HAULAGE_ADVERTISE")]
    advertise: Option<String>,
    /// Where the ledger is: postgres://... or sqlite:PATH [default: sqlite, in the home folder]
    #[arg(long, value_name = "URL", env = "HAULAGE_LEDGER", hide_env_values = true)]
    ledger: Option<String>,
    /// This coordinator's name, for people who look at the ledger [default: the host's name]
    #[arg(long, value_name = "NAME", env = "HAULAGE_COORDINATOR_NAME")]
    name: Option<String>,
    /// How long rejected rows are kept after their run came to rest, such as 90d or 12h; then they are deleted, as by
    /// `haulage prune` [default: until somebody prunes]
    #[arg(long, value_name = "TIME", env = "HAULAGE_KEEP_REJECTS", value_parser = prune::keep)]
    keep_rejects: Option<Duration>,
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

/// Serves until a signal comes, or until another process has taken a ledger that only one can have.
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
    let advertise = match &args.advertise {
        Some(advertise) => advertised(advertise)?,
        None => reachable(address),
    };
    let coordinator = haulage_coordinator::start(CoordinatorConfig {
        ledger,
        advertise,
        name: args.name.unwrap_or_else(host),
        cookie,
        lease: haulage_core::lease::Settings::default(),
        cluster: true,
        keep_rejects: args.keep_rejects,
    })
    .await?;
    let standing = coordinator.standing();
    ready(
        "coordinator",
        &url(address),
        stands(&standing),
        &args.daemon,
        globals.output(),
    )?;
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
pub(crate) fn ready(
    role: &str,
    what: &str,
    standby_of: Option<String>,
    options: &DaemonOptions,
    output: Output,
) -> Result<()> {
    if let Some(file) = &options.ready_file {
        write_whole(file, &format!("{what}\n"))
            .with_context(|| format!("can't write the ready file {}", file.display()))?;
    }
    if output.is_json() {
        let mut said = json!({"role": role, "address": what, "pid": std::process::id()});
        if let Some(leader) = standby_of {
            said["standby_of"] = leader.into();
        }
        output.json(&to_json::typed("ready", said))?;
    } else {
        let standby = standby_of.map(|leader| format!(" (stands by; {leader} leads)"));
        output.line(up(role, what) + &standby.unwrap_or_default())?;
    }
    Ok(())
}

/// Who leads, if this coordinator doesn't.
fn stands(standing: &Standing) -> Option<String> {
    match standing {
        Standing::Leads(_) => None,
        Standing::Stands(Some(led)) => Some(format!("{} at {}", led.name, led.address)),
        Standing::Stands(None) => Some("nobody".to_owned()),
    }
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

/// The address that others are told, from what the user gave.
fn advertised(given: &str) -> Result<String> {
    let address = given.trim().trim_end_matches('/').trim_start_matches("http://");
    let sound = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && !address.contains('/') && port.parse::<u16>().is_ok());
    if !sound {
        return Err(Usage(format!(
            "--advertise is HOST:PORT, as in c1.internal:7400, not {given:?}"
        ))
        .into());
    }
    Ok(format!("http://{address}"))
}

/// The address that others are told, from the one that is listened on.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("http://{}:{}", host(), address.port());
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
    fn others_are_told_an_address_that_is_not_every_interface() {
        for (given, expected) in [
            ("c1:7400", Some("http://c1:7400")),
            ("http://c1:7400/", Some("http://c1:7400")),
            ("[::1]:7400", Some("http://[::1]:7400")),
            ("c1", None),
            (":7400", None),
            ("https://c1:7400", None),
            ("c1:port", None),
        ] {
            assert_eq!(advertised(given).ok().as_deref(), expected, "{given}");
        }
        assert_eq!(
            reachable("10.0.0.1:7400".parse().expect("an address")),
            "http://10.0.0.1:7400"
        );
        let host = host();
        assert_eq!(
            reachable("0.0.0.0:7400".parse().expect("an address")),
            format!("http://{host}:7400")
        );
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
