//! `haulage node`: does the work that a coordinator hands out. The only part that opens sources and destinations.

use std::time::Duration;

use anyhow::Result;
use haulage_node::config::NodeConfig;

use crate::cli::Globals;
use crate::cli::coordinator::{DaemonOptions, host, ready};
use crate::cli::node_options::NodeOptions;
use crate::config::{self, Home};
use crate::exit::{Exit, Usage};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage node --coordinator http://127.0.0.1:7400 --destination warehouse=sqlite:warehouse.db
  haulage node --coordinator http://coordinator:7400 --name node-1 --store s3://bucket/checkpoints \\
      --destination warehouse=secret://WAREHOUSE --slots 4 --memory 512MiB

Destinations are known to nodes alone: a pipeline says `to: warehouse`, and each node says where that is. With
secret://NAME the address is in the variable HAULAGE_SECRET_NAME, or in the file NAME under --secrets-dir.
All nodes of a cluster need the same --store, and sources that mean the same everywhere: s3://, or a shared folder.
With several coordinators, name all of them, separated by commas: the node finds the one that leads.
The first line on stdout, and the ready file, say that the node is up and connects; `attached` in its log, and `haulage
nodes`, say that a coordinator has taken it.
S3 follows the standard AWS variables (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, ...).
SIGTERM, Ctrl-C and `haulage drain` stop it gently: it takes no new work, finishes its chunks or commits what it has of
them and hands the rest to other nodes, and leaves. A second signal stops it at once; its work runs on other nodes when
its lease is over.";

/// Arguments of `node`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// This node's name, unique in the cluster and the same after a restart [default: the host's name]
    #[arg(long, value_name = "NAME", env = "HAULAGE_NODE_NAME")]
    name: Option<String>,
    /// Where checkpoints and rejected rows are kept: a folder that all nodes share, or s3://bucket/prefix
    /// [default: checkpoints in the home folder]
    #[arg(long, value_name = "URL", env = "HAULAGE_STORE")]
    store: Option<String>,
    /// How long leaving may take. Container runtimes often kill after 30 s
    #[arg(long, value_name = "SECONDS", env = "HAULAGE_DRAIN_TIMEOUT", default_value_t = 25)]
    drain_timeout: u32,
    #[command(flatten)]
    node: NodeOptions,
    #[command(flatten)]
    daemon: DaemonOptions,
}

impl Args {
    /// The node's name.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(host)
    }
}

/// Works until a signal comes.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut signals = Signals::listen()?;
    let config = node_config(&args, globals)?;
    // Nothing about being attached: whether a coordinator takes this node (the cookie may be wrong) shows later.
    let what = format!(
        "{} is up with {} slots; connecting to {}",
        config.name,
        config.slots,
        config.coordinators.join(", ")
    );
    let mut node = haulage_node::start(config).await?;
    ready("node", &what, None, &args.daemon, globals.output())?;
    let asked = node.asked_to_leave();
    tokio::select! {
        error = node.crashed() => return Err(error.into()),
        signal = signals.next() => tracing::info!(
            "{}: leaving, after what is running is finished or handed back; once more to stop at once",
            signal.name()
        ),
        () = asked => tracing::info!("asked to leave: what is running is finished or handed back first"),
    }
    let at_most = Duration::from_secs(args.drain_timeout.into());
    let drained = tokio::select! {
        drained = node.drain(at_most) => drained,
        _ = signals.next() => return Ok(Exit::Interrupted),
    };
    if drained {
        tracing::info!("nothing is left to do here");
    } else {
        tracing::warn!(
            "not everything could be handed back within {} s; the rest runs on other nodes when its lease is over",
            at_most.as_secs()
        );
    }
    node.shutdown().await;
    Ok(Exit::Success)
}

fn node_config(args: &Args, globals: &Globals) -> Result<NodeConfig> {
    let coordinators: Vec<String> = globals
        .coordinator
        .iter()
        .flat_map(|addresses| addresses.split(','))
        .map(|address| address.trim().trim_end_matches('/').to_owned())
        .filter(|address| !address.is_empty())
        .collect();
    if coordinators.is_empty() {
        return Err(Usage(
            "a node needs a coordinator; give --coordinator URL or set HAULAGE_COORDINATOR (start one with: haulage \
             coordinator)"
                .into(),
        )
        .into());
    }
    let home = Home::new(&globals.home)?;
    let store = match &args.store {
        Some(store) => store.clone(),
        None => {
            home.create()?;
            home.checkpoints().display().to_string()
        }
    };
    let mut config = NodeConfig::new(args.name(), store);
    config.home = Some(home.root().to_owned());
    args.node.apply(&mut config, None)?;
    config.coordinators = coordinators;
    config.cookie = match args.daemon.cookie()? {
        Some(cookie) => cookie,
        None if home.cookie().is_file() => config::read_cookie(&home.cookie())?,
        None => {
            return Err(Usage(format!(
                "a node needs the coordinator's cookie: set HAULAGE_COOKIE, or give --cookie-file (the coordinator \
                 makes one in its home folder; there is none in {})",
                home.root().display()
            ))
            .into());
        }
    };
    Ok(config)
}
