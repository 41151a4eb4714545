//! ListNodes: the nodes that the leader knows, and which of them can be asked for something.

use std::time::Duration;

use haulage_core::lease::Standing;
use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::v1::{ListNodesResponse, Node};
use ractor::ActorRef;
use tonic::Status;

use super::role::Leader;
use super::status;
use crate::actors::cluster::ClusterMessage;
use crate::deciding::NodeView;

/// The cluster actor never waits for anything.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn list(leader: &Leader) -> Result<ListNodesResponse, Status> {
    let nodes = status::answered(leader.cluster.call(ClusterMessage::List, Some(TIMEOUT)).await)?;
    Ok(ListNodesResponse {
        nodes: nodes.into_iter().map(node).collect(),
        epoch: leader.shared.epoch().0,
        leader: leader.about.name.clone(),
        leader_address: leader.about.address.clone(),
        leader_since: leader.about.since.0,
        answered_by: String::new(),
    })
}

/// Agents of nodes that are alive; without a leader, those of this process.
pub(super) async fn agents(leader: Option<&Leader>) -> Result<Vec<ActorRef<AgentMessage>>, Status> {
    match leader {
        Some(leader) => status::answered(leader.cluster.call(ClusterMessage::Agents, Some(TIMEOUT)).await),
        None => Ok(ractor::pg::get_members(&AGENTS.to_owned())
            .into_iter()
            .map(ActorRef::from)
            .collect()),
    }
}

fn node(view: NodeView) -> Node {
    let state = match view.standing {
        Standing::Alive => "alive",
        Standing::Suspect => "suspect",
        Standing::Lost => "lost",
    };
    Node {
        name: view.name.0,
        state: state.to_owned(),
        slots: view.slots,
        running: u32::try_from(view.work.len()).unwrap_or(u32::MAX),
        version: view.version,
        last_heartbeat: view.last_heartbeat.0,
        work: view.work,
        destinations: view.places.into_iter().collect(),
    }
}
