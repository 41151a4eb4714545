//! Prune: what runs at rest have left in the checkpoint store is deleted. A coordinator has no access to that, so a node
//! does it, piece by piece; which runs are at rest, and since when, stands in the ledger.
//!
//! A run's log says that its rejected rows are gone before they are: of a prune that breaks off nobody is surprised, and
//! the next one deletes what is left. Runs that this ledger doesn't know are another one's, and stay.
//!
//! Somebody asks for it, and then the store is listed; or a time has passed, and then the ledger knows which runs
//! ([`crate::retention`]). What becomes of a run is the same.

use std::sync::Arc;
use std::time::Duration;

use haulage_core::event::Event;
use haulage_core::ids::{Millis, RunId};
use haulage_core::run::Phase;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::{Prune, Pruned, PrunedPart};
use haulage_proto::v1;
use ractor::ActorRef;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::role::Leader;
use super::{Log, Outgoing, ask, nodes, status};
use crate::actors::Shared;
use crate::actors::calls::call_within;
use crate::clock;
use crate::ledger::{Append, Appended, Error};

/// How long a node may take for a piece: a thousand objects far away.
const PIECE_TIMEOUT: Duration = Duration::from_secs(120);
/// Runs that may wait for a slow client.
const AHEAD: usize = 64;

pub(super) async fn prune(leader: &Leader, request: v1::PruneRequest) -> Result<Outgoing<v1::PrunedRun>, Status> {
    let by = ask::words("by", &request.by)?;
    let pruner = Pruner::new(leader, by, request.older_than_ms, request.dry_run).await?;
    let Some(pruner) = pruner else {
        return Err(Status::unavailable(
            "objects are deleted by a node, and none is attached; start one with `haulage node`",
        ));
    };
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        if let Err(status) = pruner.all(&sender).await {
            // A client that is gone needs no error.
            drop(sender.send(Err(status)).await);
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Prunes runs, one at a time.
pub(crate) struct Pruner {
    shared: Arc<Shared>,
    agents: Vec<ActorRef<AgentMessage>>,
    by: String,
    older_than_ms: u64,
    dry_run: bool,
}

impl Pruner {
    /// With the nodes that are alive; `None` if there are none.
    pub(crate) async fn new(
        leader: &Leader,
        by: String,
        older_than_ms: u64,
        dry_run: bool,
    ) -> Result<Option<Self>, Status> {
        let agents = nodes::agents(Some(leader)).await?;
        Ok((!agents.is_empty()).then(|| Self {
            shared: Arc::clone(&leader.shared),
            agents,
            by,
            older_than_ms,
            dry_run,
        }))
    }

    async fn all(&self, sender: &mpsc::Sender<Result<v1::PrunedRun, Status>>) -> Result<(), Status> {
        let mut after = String::new();
        loop {
            let runs = self.node(&Prune::Runs { after }).await?.runs;
            let Some(last) = runs.last() else { return Ok(()) };
            after = last.0.clone();
            for run in runs {
                if let Some(pruned) = self.one(run).await?
                    && sender.send(Ok(pruned)).await.is_err()
                {
                    return Ok(());
                }
            }
        }
    }

    /// What was deleted of a run, if anything was.
    pub(crate) async fn one(&self, run: RunId) -> Result<Option<v1::PrunedRun>, Status> {
        let log = match Log::read(self.shared.ledger.as_ref(), &run).await {
            Ok(Some(log)) => log,
            // One that can't be read keeps what it has.
            Ok(None) | Err(Error::Unreadable { .. }) => return Ok(None),
            Err(error) => return Err(status::ledger(&error)),
        };
        let (Phase::AtRest(_), Some((_, since))) = (log.state.phase(), log.state.finished()) else {
            return Ok(None);
        };
        let is_old = clock::wall().since(since) >= self.older_than_ms;
        let rejects = is_old && self.mark(&run, &log).await?;
        let mut pruned = v1::PrunedRun {
            run_id: run.0.clone(),
            rejected: match rejects && log.state.pruned().is_none() {
                true => log.state.counts().rejected_total(),
                false => 0,
            },
            ..v1::PrunedRun::default()
        };
        let mut after = String::new();
        loop {
            let piece = Prune::Run {
                run: run.clone(),
                rejects,
                dry: self.dry_run,
                after,
            };
            let part = self.node(&piece).await?;
            pruned.objects += part.objects;
            pruned.bytes += part.bytes;
            match part.next {
                Some(next) => after = next,
                None => break,
            }
        }
        if rejects && !self.dry_run {
            let emptied = self.shared.ledger.emptied(self.shared.epoch(), &run).await;
            emptied.map_err(|error| self.refused(&error))?;
        }
        Ok((pruned.objects > 0).then_some(pruned))
    }

    fn refused(&self, error: &Error) -> Status {
        self.shared.leadership.heed(error);
        status::ledger(error)
    }

    /// Whether a run is at rest for as long as rows are kept.
    async fn is_old(&self, run: &RunId) -> Result<bool, Status> {
        let log = Log::read(self.shared.ledger.as_ref(), run).await;
        let log = log.map_err(|error| status::ledger(&error))?;
        let finished = log.and_then(|log| log.state.finished());
        Ok(finished.is_some_and(|(_, since)| clock::wall().since(since) >= self.older_than_ms))
    }

    /// Has the log say that the rejected rows are gone; false if they must stay, since a replay reads them, or has read
    /// them so lately that it may yet be reverted: they are rejected rows again then.
    async fn mark(&self, run: &RunId, log: &Log) -> Result<bool, Status> {
        let replaying = self
            .shared
            .ledger
            .replaying(run)
            .await
            .map_err(|error| status::ledger(&error))?;
        if let Some(replay) = replaying
            && !(replay.published && self.is_old(&replay.run).await?)
        {
            return Ok(false);
        }
        let has_rejects = log.state.reject_keys().next().is_some();
        let Some((outcome, since)) = log.state.finished() else {
            return Ok(false);
        };
        if self.dry_run || !has_rejects || log.state.pruned().is_some() {
            return Ok(true);
        }
        let at: Millis = clock::wall();
        let by = self.by.clone();
        let append = Append {
            run: run.clone(),
            expected: log.seq,
            events: vec![Event::RejectsPruned { by, at }, Event::Finished { outcome, at: since }],
        };
        let answers = self.shared.ledger.append(self.shared.epoch(), &[append]).await;
        let answers = answers.map_err(|error| self.refused(&error))?;
        // A conflict: it is being reverted, or a replay has begun. Another time.
        Ok(matches!(answers.first(), Some(Appended::At(_))))
    }

    /// Has a node do a piece, the first that can.
    async fn node(&self, piece: &Prune) -> Result<PrunedPart, Status> {
        let meta = self.shared.meta();
        let mut why = Status::unavailable("no node answered; try again");
        for agent in &self.agents {
            match call_within::<_, Pruned>(PIECE_TIMEOUT, agent, &meta, piece, AgentMessage::Prune).await {
                Ok(Pruned { part: Ok(part) }) => return Ok(part),
                Ok(Pruned { part: Err(failure) }) => why = Status::internal(failure.to_string()),
                Err(error) => tracing::warn!(%error, "a node did not prune"),
            }
        }
        Err(why)
    }
}

/// Refuses to read rejected rows that were deleted.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
pub(super) fn refuse_pruned(run: &RunId, log: &Log) -> Result<(), Status> {
    match log.state.pruned() {
        None => Ok(()),
        Some((by, _)) => {
            let by = if by.is_empty() {
                String::new()
            } else {
                format!(" by {by}")
            };
            Err(Status::failed_precondition(format!(
                "the rejected rows of run {run} were pruned{by}; `haulage show {run}` says when"
            )))
        }
    }
}
