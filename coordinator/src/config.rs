//! What a coordinator has to be told before it starts.

use std::fmt;
use std::time::Duration;

use haulage_core::lease;

/// Settings of a coordinator.
#[derive(Clone)]
pub struct CoordinatorConfig {
    /// Where the ledger is: `postgres://...` or `sqlite:PATH`. May hold a password, and is never shown.
    pub ledger: String,
    /// The coordinator's name: kept in the ledger beside the epoch, and the name of its cluster session.
    pub name: String,
    /// Where nodes, clients and other coordinators reach this one: `http://host:port`.
    pub advertise: String,
    /// What nodes must know to attach. Never shown.
    pub cookie: String,
    /// How long a node may be silent.
    pub lease: lease::Settings,
    /// Whether nodes attach over the network. Without it only a node in the same process is found (embedded mode).
    pub cluster: bool,
    /// How long rejected rows are kept after their run came to rest; `None` is until somebody prunes.
    pub keep_rejects: Option<Duration>,
}

// By hand: a derived one would show the password in the ledger's address, and the cookie.
impl fmt::Debug for CoordinatorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorConfig")
            .field("name", &self.name)
            .field("advertise", &self.advertise)
            .field("lease", &self.lease)
            .field("cluster", &self.cluster)
            .field("keep_rejects", &self.keep_rejects)
            .finish_non_exhaustive()
    }
}
