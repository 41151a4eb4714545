//! What the process behind the interface is at the moment: it leads, it stands by, or it only reads. The interface is
//! there all the time; the role changes under it.

use std::sync::Arc;

use haulage_core::ids::Millis;
use ractor::ActorRef;
use ractor_cluster::NodeServerMessage;

use crate::actors::Shared;
use crate::actors::cluster::ClusterMessage;
use crate::actors::runs::RunsMessage;
use crate::ledger::Led;

/// See the module.
#[derive(Clone)]
pub(crate) enum Role {
    /// The actors of this process lead.
    Leading(Leader),
    /// Another coordinator leads, or for the moment none.
    Standby(Option<Led>),
    /// It reads a ledger and is no coordinator at all.
    Reading,
}

/// The actors that a leader's API talks to.
#[derive(Clone)]
pub(crate) struct Leader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster: ActorRef<ClusterMessage>,
    pub(crate) runs: ActorRef<RunsMessage>,
    /// Where nodes' sessions go; `None` in the embedded mode.
    pub(crate) session: Option<ActorRef<NodeServerMessage>>,
    pub(crate) about: About,
}

/// Who this leader is, for people.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) since: Millis,
}
