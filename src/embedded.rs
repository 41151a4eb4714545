//! Coordinator and node in one process, with everything they keep under the home: the embedded mode.
//!
//! What differs from a cluster is only how the parts reach each other: the client speaks the same gRPC interface over a
//! channel in memory, and the node is found in this process. There is one at a time in a home, because of its lock.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use haulage_coordinator::{Coordinator, CoordinatorConfig};
use haulage_core::lease;
use haulage_node::{Node, NodeConfig};
use haulage_proto::v1::ListNodesRequest;

use crate::api::{self, Client};
use crate::cli::node_options::NodeOptions;
use crate::config::{self, Home, HomeLock};

/// What runs are told the node of the embedded mode is called.
const NAME: &str = "local";
/// How long the two parts may take to find each other, and how often is looked.
const GREETING: Duration = Duration::from_secs(5);
const GREETING_PAUSE: Duration = Duration::from_millis(5);

/// A running coordinator with its node. Dropping it ends both without waiting for anything.
pub(crate) struct Embedded {
    // In this order: the node ends before the coordinator, and the lock goes last.
    node: Node,
    coordinator: Coordinator,
    _lock: HomeLock,
}

impl Embedded {
    /// Starts both in a home that this process holds. Runs that were left open there go on at once.
    pub(crate) async fn start(home: &Home, lock: HomeLock, options: &NodeOptions) -> Result<Self> {
        let config = node_config(home, options)?;
        let node = haulage_node::start(config).await.context("can't start the node")?;
        let coordinator = haulage_coordinator::start(CoordinatorConfig {
            ledger: config::sqlite_url(&home.ledger()),
            name: NAME.to_owned(),
            // There is no port.
            advertise: String::new(),
            // Nobody can attach from outside, so nobody has to know it.
            cookie: crate::chance::secret(),
            lease: lease::Settings::default(),
            cluster: false,
            // A process that ends soon prunes when it is asked to.
            keep_rejects: None,
        })
        .await
        .with_context(|| format!("can't start on the ledger {}", home.ledger().display()))?;
        let embedded = Self {
            node,
            coordinator,
            _lock: lock,
        };
        embedded.until_greeted().await;
        Ok(embedded)
    }

    /// Waits for the moment in which the coordinator has found the node: a run that begins before is told to wait for
    /// one. Bounded, because a run that does have to wait says so itself.
    async fn until_greeted(&self) {
        let mut client = self.client();
        let greeted = async {
            loop {
                match client.list_nodes(api::call(ListNodesRequest {})).await {
                    Ok(response) if response.get_ref().nodes.is_empty() => tokio::time::sleep(GREETING_PAUSE).await,
                    Ok(_) | Err(_) => return,
                }
            }
        };
        // An error means that it took too long.
        drop(tokio::time::timeout(GREETING, greeted).await);
    }

    /// A client of this coordinator.
    pub(crate) fn client(&self) -> Client {
        api::over(self.coordinator.channel())
    }

    /// Deletes the rejected rows of runs that have been at rest for so long; of how many runs.
    pub(crate) async fn retain(&self, keep: Duration) -> Result<u64> {
        let pruned = self.coordinator.retain(keep).await;
        pruned.map_err(anyhow::Error::msg).context("can't prune rejected rows")
    }

    /// Returns only when a part has ended by itself, which it should not.
    pub(crate) async fn failed(&mut self) -> Result<Infallible> {
        tokio::select! {
            error = self.node.crashed() => Err(error.into()),
            reason = self.coordinator.deposed() => bail!(reason),
        }
    }

    /// Ends both. What is not at rest goes on with the next start.
    pub(crate) async fn stop(self) {
        // The coordinator first: it would take a node that ends before it for a lost one, and warn.
        self.coordinator.stop().await;
        self.node.shutdown().await;
    }
}

/// The settings of the embedded node, as `validate` and `plan` need them too.
pub(crate) fn node_config(home: &Home, options: &NodeOptions) -> Result<NodeConfig> {
    let checkpoints = home.checkpoints();
    let Some(store) = checkpoints.to_str() else {
        bail!(
            "the home folder {} is not UTF-8; give another one with --home",
            home.root().display()
        );
    };
    let mut node = NodeConfig::new(NAME, store);
    node.home = Some(home.root().to_owned());
    options.apply(&mut node, Some(config::sqlite_url(&home.warehouse())))?;
    Ok(node)
}
