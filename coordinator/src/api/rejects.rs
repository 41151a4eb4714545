//! ListRejects: the quarantined rows of a run. They lie in the checkpoint store, which a coordinator has no access to,
//! so a node reads them, page by page. All pages come from the same node while it answers, since it has the object open;
//! if it is lost, another one goes on at the row where it ended.

use std::collections::VecDeque;
use std::time::Duration;

use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
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
/// How often nodes are asked for a page of which none has answered, and how long a round waits for another one: a node that
/// was lost is most often started again.
const ROUNDS: u32 = 30;
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);
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
        return Err(no_node());
    }
    let epoch = match leader {
        Some(leader) => leader.shared.epoch(),
        None => api.ledger.epoch().await.map_err(|error| status::ledger(&error))?,
    };
    let (sender, receiver) = mpsc::channel(AHEAD);
    let reader = Reader {
        leader: leader.cloned(),
        agents: agents.into(),
        meta: Meta {
            epoch,
            ..Meta::default()
        },
        reason: request.reason,
    };
    tokio::spawn(reader.send(keys, sender));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn no_node() -> Status {
    Status::unavailable("quarantined rows are read by a node, and none is attached; start one with `haulage node`")
}

/// Whoever reads for one client.
struct Reader {
    leader: Option<Leader>,
    /// The one to ask first in front.
    agents: VecDeque<ActorRef<AgentMessage>>,
    meta: Meta,
    /// Empty for all.
    reason: String,
}

/// Some rows of an object, and how many of it lie before the next; `None` if there are no more.
struct Page {
    rows: Vec<Reject>,
    next: Option<u64>,
}

impl Reader {
    async fn send(mut self, keys: Vec<String>, sender: mpsc::Sender<Result<v1::Reject, Status>>) {
        for key in keys {
            let mut skip = Some(0);
            while let Some(from) = skip {
                let page = tokio::select! {
                    page = self.page(&key, from) => page,
                    // A client that is gone needs no rows, and no error.
                    () = sender.closed() => return,
                };
                let page = match page {
                    Ok(page) => page,
                    Err(status) => return drop(sender.send(Err(status)).await),
                };
                skip = page.next;
                for row in page.rows {
                    if sender.send(Ok(convert::reject(row))).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// A page, from the first node that can read it.
    async fn page(&mut self, key: &str, skip: u64) -> Result<Page, Status> {
        let mut why = Status::unavailable("no node answered; try again");
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(BETWEEN_ROUNDS).await;
                self.agents = nodes::agents(self.leader.as_ref()).await?.into();
            }
            let mut is_silent = self.agents.is_empty();
            if is_silent {
                why = no_node();
            }
            for _ in 0..self.agents.len() {
                match self.ask(key, skip).await {
                    Some(Ok(page)) => return Ok(page),
                    Some(Err(failure)) => {
                        why = Status::internal(format!("quarantined rows in {key} can't be read: {failure}"));
                    }
                    None => is_silent = true,
                }
                // The next page is asked of another one first.
                self.agents.rotate_left(1);
            }
            // Those that have answered would say the same again.
            if !is_silent {
                break;
            }
        }
        Err(why)
    }

    /// Asks the node in front; `None` if it doesn't answer.
    async fn ask(&self, key: &str, skip: u64) -> Option<Result<Page, Failure>> {
        let body = FetchRejects {
            key: key.to_owned(),
            skip,
            reason: self.reason.clone(),
        };
        let agent = self.agents.front()?;
        let asked = call_within(PAGE_TIMEOUT, agent, &self.meta, &body, AgentMessage::FetchRejects).await;
        match asked {
            Ok(page) => Some(self.read(page, skip)),
            Err(error) => {
                tracing::warn!(%error, "a node did not bring quarantined rows");
                None
            }
        }
    }

    fn read(&self, page: RejectsPage, skip: u64) -> Result<Page, Failure> {
        let mut rows = page.rows?;
        let next = match page.next {
            Some(next) => Some(next).filter(|_| !page.last),
            // Of an earlier release.
            None => Some(skip + rows.len() as u64).filter(|_| !rows.is_empty()),
        };
        rows.retain(|row| self.reason.is_empty() || row.reason == self.reason);
        Ok(Page { rows, next })
    }
}
