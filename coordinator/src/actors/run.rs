//! `RunActor`: the shell around one run's [`RunLog`]. It gathers what is in the mailbox, reads and writes the ledger, and
//! shows the run to watchers; what anything means is decided there.
//!
//! ```text
//!   mailbox ─► RunLog ─► append ──stands──► answer, post, show
//!                           │conflict, or the ledger fails
//!                           └──► read the log again, decide again
//! ```
//!
//! While an append is on its way no message is taken, so what gathers meanwhile is decided about together.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use haulage_core::checkpoint::Counts;
use haulage_core::ids::{Attempt, ChunkId, Millis, NodeName, RunId, Seq, Work};
use haulage_core::run::{Input, Phase, Refused, State};
use haulage_proto::link::message::{Done, DoneReply};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;

use super::cluster::ClusterMessage;
use super::runs::RunsMessage;
use super::table::{Snapshot, View};
use super::{Answer, Shared, tell};
use crate::clock;
use crate::deciding::{self, Heard, Next, RunAction, RunLog, Unreadable};
use crate::ledger::{Error as LedgerError, group};
use crate::trace;

/// Snapshots are at least this far apart, but for a change of phase.
const SHOW_EVERY_MS: u64 = 250;

/// See the module.
pub(crate) struct RunActor;

#[derive(RactorMessage)]
pub(crate) enum RunMessage {
    /// Something happened that nobody waits for an answer to.
    Input(Input),
    /// A node has a slot.
    Grant { number: u64, work: Work, node: NodeName },
    /// An attempt has ended; the node repeats it until it is acknowledged.
    Done(Done, Answer),
    /// Somebody wants something of the run, and waits to hear whether it stands.
    Ask {
        input: Input,
        port: RpcReplyPort<Result<Seq, AskError>>,
    },
    /// What running attempts have counted so far.
    Progress(Vec<Heard>),
    /// Work off what has gathered. Sent by the actor to itself, so that it comes after whatever is in the mailbox.
    Flush,
    /// Show the run to watchers.
    Show,
    /// Look whether the log holds what this actor has not heard of.
    Doubt,
}

/// Why the run does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("the ledger can't be written at the moment; ask again")]
    Ledger,
}

/// What a run's actor is started with.
pub(crate) struct RunArguments {
    pub(crate) run: RunId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster: ActorRef<ClusterMessage>,
    pub(crate) supervisor: ActorRef<RunsMessage>,
    pub(crate) view: View,
}

/// Who waits for what becomes of an input.
enum Waiting {
    Done(Answer),
    Ask(RpcReplyPort<Result<Seq, AskError>>),
}

pub(crate) struct RunState {
    myself: ActorRef<RunMessage>,
    args: RunArguments,
    log: RunLog<Waiting>,
    flush_asked: bool,
    live: BTreeMap<ChunkId, (Attempt, Counts)>,
    shown: Option<(Millis, Phase)>,
    show_asked: bool,
    // The run's span, open as long as this actor leads the run.
    span: Option<tracing::Span>,
}

impl Actor for RunActor {
    type Msg = RunMessage;
    type State = RunState;
    type Arguments = RunArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut state = RunState {
            log: RunLog::new(args.run.clone(), myself.get_id().pid()),
            myself,
            args,
            flush_asked: false,
            live: BTreeMap::new(),
            shown: None,
            show_asked: false,
            span: None,
        };
        // The log is read by the first flush and not here: a slow ledger must not hold up the supervisor.
        state.ask_flush(Duration::ZERO);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunMessage::Input(input) => state.log.take(input),
            RunMessage::Grant { number, work, node } => state.log.grant(number, work, node),
            RunMessage::Done(done, answer) => state.log.ask(deciding::input(done), Waiting::Done(answer)),
            RunMessage::Ask { input, port } => state.log.ask(input, Waiting::Ask(port)),
            RunMessage::Doubt => {
                if !state.is_behind().await {
                    return Ok(());
                }
                state.log.forget();
            }
            RunMessage::Progress(progress) => {
                state.progress(progress);
                return Ok(());
            }
            RunMessage::Flush => {
                state.flush().await?;
                return Ok(());
            }
            RunMessage::Show => {
                state.show_asked = false;
                state.show();
                return Ok(());
            }
        }
        state.ask_flush(Duration::ZERO);
        Ok(())
    }
}

impl RunState {
    fn ask_flush(&mut self, after: Duration) {
        if self.flush_asked {
            return;
        }
        self.flush_asked = true;
        if after.is_zero() {
            tell(&self.myself, RunMessage::Flush);
        } else {
            drop(self.myself.send_after(after, || RunMessage::Flush));
        }
    }

    /// Works off what has gathered: see the picture above.
    async fn flush(&mut self) -> Result<(), Unreadable> {
        self.flush_asked = false;
        if self.log.is_forgotten()
            && let Err(error) = self.read().await
        {
            return match error {
                LogError::Unreadable(error) => Err(error),
                LogError::Ledger(error @ LedgerError::Unreadable { .. }) => Err(Unreadable(error.to_string())),
                LogError::Ledger(error) => {
                    self.wait_for_ledger(&error);
                    Ok(())
                }
            };
        }
        let actions = match self.log.decide(clock::wall()) {
            Next::Act(actions) => actions,
            Next::Append(append) => match self.args.shared.writer.append(append).await {
                Ok(answer) => match self.log.appended(answer, clock::wall()) {
                    Some(actions) => actions,
                    None => {
                        tracing::warn!(run = %self.args.run, "somebody else wrote to the run's log; folding it again");
                        self.ask_flush(Duration::ZERO);
                        return Ok(());
                    }
                },
                Err(error) => {
                    self.append_failed(&error);
                    return Ok(());
                }
            },
        };
        self.carry_out(actions);
        Ok(())
    }

    /// Whether a run that is stuck has gone on without this actor. What somebody decided about it may have been written for
    /// one that failed before it heard of that, after this one had read the log; and who has nothing to write never finds
    /// out. Any other run has.
    async fn is_behind(&self) -> bool {
        let Some((_, seq)) = self.log.state().filter(|(state, _)| state.phase() == Phase::Stuck) else {
            return false;
        };
        let more = self.args.shared.ledger.read(&self.args.run, seq).await;
        more.is_ok_and(|more| !more.is_empty())
    }

    /// Reads the log and folds it.
    async fn read(&mut self) -> Result<(), LogError> {
        let run = &self.args.run;
        let rows = self.args.shared.ledger.read(run, Seq(0)).await?;
        self.log.read(&rows)?;
        if self.span.is_none()
            && let Some((state, _)) = self.log.state()
        {
            let state = Arc::clone(state);
            self.open_span(&state);
            tell(&self.args.supervisor, RunsMessage::Ready(self.args.run.clone()));
        }
        Ok(())
    }

    fn open_span(&mut self, state: &State) {
        let submission = state.submission();
        let traceparent = submission
            .map(|submission| submission.traceparent.as_str())
            .unwrap_or_default();
        let pipeline = submission
            .map(|submission| submission.pipeline.as_str())
            .unwrap_or_default();
        let span = tracing::info_span!(parent: None, "run", run = %self.args.run, pipeline);
        trace::follow(&span, &trace::carrier(traceparent));
        self.log.set_trace(Arc::new(trace::context(&span, traceparent)));
        self.span = Some(span);
    }

    fn append_failed(&mut self, error: &group::Error) {
        match error {
            group::Error::Deposed { .. } => {
                self.args.shared.leadership.end(error.to_string());
                self.myself.stop(Some("deposed".to_owned()));
            }
            group::Error::Stopped => self.myself.stop(Some("stopping".to_owned())),
            group::Error::Ledger(error) => self.wait_for_ledger(error),
        }
    }

    /// The ledger doesn't answer: comes back later.
    fn wait_for_ledger(&mut self, error: &LedgerError) {
        self.args.shared.leadership.heed(error);
        let waits = self.log.failed();
        tracing::warn!(run = %self.args.run, %error, wait_ms = waits.wait_ms, "the run waits for the ledger");
        self.carry_out(waits.actions);
        self.ask_flush(Duration::from_millis(waits.wait_ms));
    }

    fn carry_out(&mut self, actions: Vec<RunAction<Waiting>>) {
        let seq = self.log.state().map_or(Seq(0), |(_, seq)| seq);
        for action in actions {
            match action {
                RunAction::Answer { to, answer } => to.answer(answer, seq),
                RunAction::Post(post) => {
                    tell(&self.args.cluster, ClusterMessage::Post(post));
                    self.show_in_time();
                }
                RunAction::AtRest(outcome) => {
                    self.show();
                    tracing::info!(run = %self.args.run, ?outcome, "the run is at rest");
                    tell(&self.args.cluster, ClusterMessage::AtRest(self.args.run.clone()));
                    self.myself.stop(Some("at rest".to_owned()));
                }
            }
        }
    }

    fn show_in_time(&mut self) {
        let Some((state, _)) = self.log.state() else { return };
        let (now, phase) = (clock::steady(), state.phase());
        match self.shown {
            Some((at, before)) if before == phase && now.since(at) < SHOW_EVERY_MS => {
                self.ask_show(SHOW_EVERY_MS - now.since(at));
            }
            Some(_) | None => self.show(),
        }
    }

    fn progress(&mut self, progress: Vec<Heard>) {
        for heard in progress {
            if let Work::Chunk(chunk) = heard.work {
                self.log.heard(&heard);
                self.live.insert(chunk, (heard.attempt, heard.counts));
            }
        }
        let since = self.shown.map_or(SHOW_EVERY_MS, |(at, _)| clock::steady().since(at));
        self.ask_show(SHOW_EVERY_MS.saturating_sub(since));
    }

    fn ask_show(&mut self, after_ms: u64) {
        if !self.show_asked {
            self.show_asked = true;
            drop(
                self.myself
                    .send_after(Duration::from_millis(after_ms), || RunMessage::Show),
            );
        }
    }

    fn show(&mut self) {
        let Some((state, seq)) = self.log.state() else { return };
        let in_flight: HashSet<(&Work, Attempt)> =
            state.in_flight().map(|(work, attempt, _)| (work, attempt)).collect();
        self.live
            .retain(|chunk, (attempt, _)| in_flight.contains(&(&Work::Chunk(*chunk), *attempt)));
        let live = self
            .live
            .iter()
            .map(|(chunk, (_, counts))| (*chunk, counts.clone()))
            .collect();
        self.shown = Some((clock::steady(), state.phase()));
        self.args.view.send_replace(Arc::new(Snapshot {
            state: Arc::clone(state),
            seq,
            live,
        }));
    }
}

impl Waiting {
    /// `seq` is up to where the log stands.
    fn answer(self, answer: deciding::Answer, seq: Seq) {
        match (self, answer) {
            // A refused or stale outcome is acknowledged too: nobody will ever want it.
            (Self::Done(to), deciding::Answer::Stands | deciding::Answer::Refused(_)) => {
                to.send(&DoneReply { acknowledged: true });
            }
            (Self::Done(to), deciding::Answer::NotNow) => to.send(&DoneReply { acknowledged: false }),
            (Self::Ask(port), deciding::Answer::Stands) => drop(port.send(Ok(seq))),
            (Self::Ask(port), deciding::Answer::Refused(refused)) => drop(port.send(Err(refused.into()))),
            (Self::Ask(port), deciding::Answer::NotNow) => drop(port.send(Err(AskError::Ledger))),
        }
    }
}

/// Why a log could not be folded.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}
