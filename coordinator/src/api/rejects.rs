//! ListRejects: the quarantined rows of a run. They lie in the checkpoint store, which a coordinator has no access to,
//! so a node reads them, page by page.

use std::time::Duration;

use haulage_core::ids::{Epoch, RunId};
use haulage_core::quarantine::Reject;
use haulage_proto::convert;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::{FetchRejects, RejectsPage};
use haulage_proto::link::wire::Meta;
use haulage_proto::v1;
use ractor::ActorRef;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::role::Leader;
use super::{Api, Outgoing, nodes, prune, status};
use crate::actors::calls::call_within;

/// A node may have to fetch the object from far away.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that may wait for a slow client.
const AHEAD: usize = 64;

pub(super) async fn list(
    api: &Api,
    leader: Option<&Leader>,
    request: v1::ListRejectsRequest,
) -> Result<Outgoing<v1::Reject>, Status> {
    let run = RunId::new(request.run_id);
    let log = api.read(&run).await?;
    prune::refuse_pruned(&run, &log)?;
    let keys: Vec<String> = log.state.reject_keys().collect();
    if keys.is_empty() {
        return Ok(Box::pin(futures::stream::empty()));
    }
    let agents = nodes::agents(leader).await?;
    if agents.is_empty() {
        return Err(Status::unavailable(
            "quarantined rows are read by a node, and none is attached; start one with `haulage node`",
        ));
    }
    let epoch = match leader {
        Some(leader) => leader.shared.epoch(),
        None => api.ledger.epoch().await.map_err(|error| status::ledger(&error))?,
    };
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(send(agents, epoch, keys, request.reason, sender));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn send(
    agents: Vec<ActorRef<AgentMessage>>,
    epoch: Epoch,
    keys: Vec<String>,
    reason: String,
    sender: mpsc::Sender<Result<v1::Reject, Status>>,
) {
    let meta = Meta {
        epoch,
        ..Meta::default()
    };
    for key in keys {
        let mut skip = 0;
        loop {
            let rows = match page(&agents, &meta, &key, skip).await {
                Ok(rows) => rows,
                // A client that is gone needs no error.
                Err(status) => return drop(sender.send(Err(status)).await),
            };
            if rows.is_empty() {
                break;
            }
            skip += rows.len() as u64;
            for row in rows.into_iter().filter(|row| reason.is_empty() || row.reason == reason) {
                if sender.send(Ok(convert::reject(row))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One page, from the first node that can read it.
async fn page(agents: &[ActorRef<AgentMessage>], meta: &Meta, key: &str, skip: u64) -> Result<Vec<Reject>, Status> {
    let mut why = Status::unavailable("no node answered; try again");
    for agent in agents {
        let body = FetchRejects {
            key: key.to_owned(),
            skip,
        };
        match call_within::<_, RejectsPage>(PAGE_TIMEOUT, agent, meta, &body, AgentMessage::FetchRejects).await {
            Ok(RejectsPage { rows: Ok(rows) }) => return Ok(rows),
            Ok(RejectsPage { rows: Err(failure) }) => {
                why = Status::internal(format!("quarantined rows in {key} can't be read: {failure}"));
            }
            Err(error) => tracing::warn!(%error, "a node did not bring quarantined rows"),
        }
    }
    Err(why)
}
