//! ListNodes: the nodes that the leader knows, and which of them can be asked for something.

use std::time::Duration;

use haulage_core::ids::NodeName;
use haulage_core::lease::Standing;
use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::v1::{DrainNodeResponse, Heartbeats, ListNodesResponse, Node};
use ractor::ActorRef;
use tonic::Status;

use super::role::Leader;
use super::status;
use crate::actors::cluster::ClusterMessage;
use crate::deciding::{DrainError, NodeView};

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

/// Asks a node to leave.
pub(super) async fn drain(leader: &Leader, name: &str) -> Result<DrainNodeResponse, Status> {
    let node = NodeName::new(name);
    let answer = leader
        .cluster
        .call(|port| ClusterMessage::Drain(node, port), Some(TIMEOUT))
        .await;
    let Err(error) = status::answered(answer)? else {
        return Ok(DrainNodeResponse {});
    };
    Err(match error {
        DrainError::Unknown(known) => Status::not_found(unknown(name, &known)),
        DrainError::Unreachable(standing) => Status::failed_precondition(format!(
            "node {name} is {} and can't be reached; end its process where it runs",
            word(standing)
        )),
        DrainError::TooOld(release) => Status::failed_precondition(format!(
            "node {name} runs release {release}, which can't be asked to leave; send it a SIGTERM where it runs"
        )),
        DrainError::Leaderless => Status::unavailable("this coordinator doesn't hold the lead now; try again"),
        DrainError::Silent => Status::unavailable(format!("node {name} did not answer; try again")),
    })
}

/// There is no such node: which there are, and which was probably meant.
fn unknown(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return format!("there is no node {name}, nor any other");
    }
    let likeness = |other: &&String| strsim::damerau_levenshtein(name, other);
    let meant = known
        .iter()
        .min_by_key(likeness)
        .filter(|other| likeness(other) <= name.len() / 3 + 1);
    let hint = meant
        .map(|other| format!("; did you mean {other}?"))
        .unwrap_or_default();
    format!("there is no node {name} (known are: {}){hint}", known.join(", "))
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
    // One that falls silent while it drains is looked for like any other.
    let state = match view.standing {
        Standing::Alive if view.draining => "draining",
        standing @ (Standing::Alive | Standing::Suspect | Standing::Lost) => word(standing),
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
        heartbeats: Some(Heartbeats {
            count: view.rhythm.count,
            p99_ms: view.rhythm.p99_ms,
            max_ms: view.rhythm.max_ms,
        }),
    }
}

fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Alive => "alive",
        Standing::Suspect => "suspect",
        Standing::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_node_is_told_which_there_are() {
        let known = ["node-1".to_owned(), "node-2".to_owned()];
        assert_eq!(
            unknown("nod-2", &known),
            "there is no node nod-2 (known are: node-1, node-2); did you mean node-2?"
        );
        assert_eq!(
            unknown("zebra", &known),
            "there is no node zebra (known are: node-1, node-2)"
        );
        assert_eq!(unknown("x", &[]), "there is no node x, nor any other");
    }
}
