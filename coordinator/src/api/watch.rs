//! Watch: the run as it is, and again whenever it changes, until it is at rest.
//!
//! Snapshots come from the run's actor through a channel that keeps only the newest; events come from the ledger, so
//! none is missing, however slow the client is. A slow client holds up its own stream and nothing else.
//!
//! Where this process doesn't lead, the ledger is looked at instead. A stream goes from one to the other and back as the
//! lead does: it ends with its run, or with this process, and not because another coordinator leads now.

use std::sync::Arc;
use std::time::Duration;

use haulage_core::event::Event;
use haulage_core::ids::{RunId, Seq};
use haulage_core::run::{Effect, Phase, State};
use haulage_proto::convert::{self, Live};
use haulage_proto::v1;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::role::{Leader, Role};
use super::{Api, Outgoing, status};
use crate::actors::table::{Place, Snapshot};
use crate::clock;

/// Messages that may wait for a slow client.
const AHEAD: usize = 2;
/// At most so often is a client told.
const PAUSE: Duration = Duration::from_millis(250);
/// How often the ledger is looked at for a run that this process doesn't lead.
const LOOK: Duration = Duration::from_millis(500);
/// After how long without an event such a run is said to be led by nobody.
const QUIET: Duration = Duration::from_secs(5);
/// Events in one message, in encoded bytes: one larger event still goes, alone.
const MESSAGE_BYTES: usize = 1024 * 1024;

const NO_NODE: &str = "waiting for a node: start one with `haulage node`";
const NO_LEADER: &str = "no coordinator has moved this run on for a while; start one, and it goes on";

pub(super) async fn watch(api: &Api, request: v1::WatchRequest) -> Result<Outgoing<v1::WatchResponse>, Status> {
    let run = RunId::new(request.run_id);
    if let Some(leader) = api.leader()
        && let Some(Place::SetAside(reason)) = leader.shared.table.place(&run)
    {
        return Err(Status::data_loss(format!("run {run} can't be recovered: {reason}")));
    }
    // NOT_FOUND is the answer to the call itself, and not the end of a stream that began well.
    drop(api.read(&run).await?);
    let (sender, receiver) = mpsc::channel(AHEAD);
    let watcher = Watcher {
        api: api.clone(),
        run,
        sent: Seq(request.after_seq),
        sender,
    };
    tokio::spawn(watcher.run());
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

struct Watcher {
    api: Api,
    run: RunId,
    // The place of the last event that was sent, or that the client already has.
    sent: Seq,
    sender: mpsc::Sender<Result<v1::WatchResponse, Status>>,
}

/// How to follow a run from here on.
enum Next {
    /// Not at all: it is at rest, and the client has been told.
    AtRest,
    Ledger,
    Actor(Leader, watch::Receiver<Arc<Snapshot>>),
}

/// Why a stream ends before its run is at rest.
enum End {
    /// The client has gone.
    Gone,
    Status(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Watcher {
    async fn run(mut self) {
        match self.follow().await {
            Ok(()) | Err(End::Gone) => {}
            // A client that has gone meanwhile needs no error.
            Err(End::Status(status)) => drop(self.sender.send(Err(status)).await),
        }
    }

    async fn follow(&mut self) -> Result<(), End> {
        let mut next = match self.view() {
            Some((leader, view)) => Next::Actor(leader, view),
            None => Next::Ledger,
        };
        loop {
            next = match next {
                Next::AtRest => return Ok(()),
                Next::Ledger => self.follow_ledger().await?,
                Next::Actor(leader, view) => self.follow_actor(&leader, view).await?,
            };
        }
    }

    /// Where snapshots of the run appear, if this process leads it.
    fn view(&self) -> Option<(Leader, watch::Receiver<Arc<Snapshot>>)> {
        let leader = self.api.leader()?;
        let view = leader.shared.table.view(&self.run)?;
        Some((leader, view))
    }

    /// A run that this process leads.
    async fn follow_actor(&mut self, leader: &Leader, mut view: watch::Receiver<Arc<Snapshot>>) -> Result<Next, End> {
        let mut alive = leader.shared.alive.subscribe();
        let mut misplaced = leader.shared.misplaced.subscribe();
        let mut closing = self.api.closing.subscribe();
        let mut shown: Option<Arc<Snapshot>> = None;
        let mut told: Option<String> = None;
        loop {
            let snapshot = Arc::clone(&view.borrow_and_update());
            let elsewhere = misplaced.borrow_and_update().get(&self.run).cloned();
            let waits = match *alive.borrow_and_update() {
                0 => waits_for_node(&snapshot.state).then(|| NO_NODE.to_owned()),
                _ => elsewhere,
            };
            let news = waits.is_some() && waits != told;
            let changed = !shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &snapshot));
            if snapshot.seq > Seq(0) && (changed || news) {
                let notice = waits.as_deref().filter(|_| news);
                let events = self.events(snapshot.seq).await?;
                self.send(&snapshot.state, snapshot.seq, &snapshot.live, events, notice)
                    .await?;
                told = waits;
                if is_at_rest(&snapshot.state) {
                    return Ok(Next::AtRest);
                }
                shown = Some(snapshot);
                // On a copy: what comes during the pause still counts as news afterwards.
                let mut ahead = view.clone();
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    // The end isn't held back.
                    () = at_rest(&mut ahead) => {}
                }
            }
            tokio::select! {
                // The actor is gone for good, as after the end of a run that was shown already.
                news = view.changed() => if news.is_err() { return Ok(Next::Ledger) },
                _ = alive.changed() => {}
                _ = misplaced.changed() => {}
                reason = leader.shared.leadership.wait() => {
                    // Where another one may lead, this process stands by and goes on reading.
                    return match self.api.ledger.is_leased() {
                        true => Ok(Next::Ledger),
                        false => Err(status::deposed(&reason).into()),
                    };
                }
                () = closed(&mut closing) => return Err(status::closing().into()),
                () = self.sender.closed() => return Err(End::Gone),
            }
        }
    }

    /// A run at rest, or one that another process leads.
    async fn follow_ledger(&mut self) -> Result<Next, End> {
        let mut closing = self.api.closing.subscribe();
        let log = self.api.read(&self.run).await?;
        let (mut state, mut seq) = (log.state, log.seq);
        let after = self.sent;
        let mut new: Vec<(Seq, Event)> = log.events.into_iter().filter(|(place, _)| *place > after).collect();
        let mut first = true;
        let mut quiet = Duration::ZERO;
        loop {
            if first || !new.is_empty() {
                first = false;
                quiet = Duration::ZERO;
                self.send(&state, seq, &Live::new(), std::mem::take(&mut new), None)
                    .await?;
            }
            if is_at_rest(&state) {
                return Ok(Next::AtRest);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => quiet += LOOK,
                () = closed(&mut closing) => return Err(status::closing().into()),
                () = self.sender.closed() => return Err(End::Gone),
            }
            // This process has come to lead: it knows more than the ledger does.
            if let Some((leader, view)) = self.view()
                && leader.shared.table.actor(&self.run).is_some()
            {
                return Ok(Next::Actor(leader, view));
            }
            if quiet == QUIET && !self.is_led() {
                self.send(&state, seq, &Live::new(), Vec::new(), Some(NO_LEADER))
                    .await?;
            }
            new = self
                .api
                .ledger
                .read(&self.run, seq)
                .await
                .map_err(|error| status::ledger(&error))?;
            for (place, event) in &new {
                state.apply(event);
                seq = *place;
            }
        }
    }

    /// Whether some coordinator is known to lead.
    fn is_led(&self) -> bool {
        matches!(&*self.api.role().borrow(), Role::Leading(_) | Role::Standby(Some(_)))
    }

    /// The events between what was sent and `upto`.
    async fn events(&self, upto: Seq) -> Result<Vec<(Seq, Event)>, Status> {
        if self.sent >= upto {
            return Ok(Vec::new());
        }
        let events = self
            .api
            .ledger
            .read(&self.run, self.sent)
            .await
            .map_err(|error| status::ledger(&error))?;
        Ok(events.into_iter().take_while(|(seq, _)| *seq <= upto).collect())
    }

    /// Sends a snapshot with what happened since the last one, in as many messages as the events need.
    async fn send(
        &mut self,
        state: &State,
        seq: Seq,
        live: &Live,
        events: Vec<(Seq, Event)>,
        notice: Option<&str>,
    ) -> Result<(), End> {
        let run = convert::run(state, seq, live);
        let mut message = v1::WatchResponse {
            run: Some(run.clone()),
            events: Vec::new(),
        };
        let mut bytes = 0;
        for (place, event) in &events {
            let event = convert::event(*place, event);
            let size = event.encoded_len();
            if bytes > 0 && bytes + size > MESSAGE_BYTES {
                let next = v1::WatchResponse {
                    run: Some(run.clone()),
                    events: Vec::new(),
                };
                self.give(std::mem::replace(&mut message, next)).await?;
                bytes = 0;
            }
            bytes += size;
            message.events.push(event);
        }
        if let Some(text) = notice {
            message
                .events
                .push(convert::notice(seq, clock::wall(), "waiting", text));
        }
        self.give(message).await?;
        self.sent = self.sent.max(seq);
        Ok(())
    }

    async fn give(&self, message: v1::WatchResponse) -> Result<(), End> {
        self.sender.send(Ok(message)).await.map_err(|_| End::Gone)
    }
}

// Both let go of the channel's lock before anything else is awaited.
async fn at_rest(view: &mut watch::Receiver<Arc<Snapshot>>) {
    drop(view.wait_for(|snapshot| is_at_rest(&snapshot.state)).await);
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}

fn is_at_rest(state: &State) -> bool {
    matches!(state.phase(), Phase::AtRest(_))
}

fn waits_for_node(state: &State) -> bool {
    state
        .outstanding_within(1, clock::wall())
        .iter()
        .any(|effect| !matches!(effect, Effect::Settle))
}
