//! Says how an attempt ended, again and again until a coordinator acknowledges it: delivery is at most once, and a
//! result that is lost would be work done twice.
//!
//! Bounded by the supervisor, which holds few unacknowledged results and takes no new work while there are too many.
//! A result that nobody wants any more is forgotten when the supervisor says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use haulage_core::failure::Failure;
use haulage_proto::link::actor::GatewayMessage;
use haulage_proto::link::message::{AttemptKey, Done, DoneReply, Outcome};
use haulage_proto::link::wire::{self, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio_util::task::AbortOnDropHandle;

use super::gateway;
use super::shared::Shared;
use super::supervisor::SupervisorMessage;
use crate::chance::Backoff;
use crate::trace::Carrier;

/// How long one coordinator has for an answer: it writes to its ledger first.
const ANSWER: Duration = Duration::from_secs(5);
/// The first and the longest wait between two tries.
const WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// See the module.
pub(crate) struct Reporter;

/// What the reporter is told.
#[derive(ractor_cluster::RactorMessage)]
pub(crate) enum ReporterMessage {
    /// An attempt has ended.
    Report {
        key: AttemptKey,
        result: Result<Outcome, Failure>,
        /// Of one that didn't succeed: how often its work went on from a checkpoint, and bytes that are read again.
        restarts: u32,
        bytes_read_again: u64,
        trace: Carrier,
    },
    /// Nobody wants to hear about it any more.
    Forget { key: AttemptKey },
    /// A coordinator has it.
    Acknowledged { key: AttemptKey },
}

/// What it remembers.
pub(crate) struct State {
    shared: Arc<Shared>,
    supervisor: ActorRef<SupervisorMessage>,
    /// Dropping one ends its tries.
    reports: HashMap<AttemptKey, AbortOnDropHandle<()>>,
}

impl Actor for Reporter {
    type Msg = ReporterMessage;
    type State = State;
    type Arguments = (Arc<Shared>, ActorRef<SupervisorMessage>);

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (shared, supervisor): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            shared,
            supervisor,
            reports: HashMap::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ReporterMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReporterMessage::Report {
                key,
                result,
                restarts,
                bytes_read_again,
                trace,
            } => {
                let done = Done {
                    node: state.shared.name.clone(),
                    key: key.clone(),
                    result,
                    restarts,
                    bytes_read_again,
                };
                let shared = state.shared.clone();
                let report = tokio::spawn(async move {
                    report(&shared, &done, &trace).await;
                    // An error means that this node is shutting down.
                    drop(myself.cast(ReporterMessage::Acknowledged { key: done.key }));
                });
                state.reports.insert(key, AbortOnDropHandle::new(report));
            }
            ReporterMessage::Forget { key } => drop(state.reports.remove(&key)),
            ReporterMessage::Acknowledged { key } => {
                // Not there: it was forgotten in the meantime, and the key may even be held anew.
                if state.reports.remove(&key).is_some() {
                    state.supervisor.cast(SupervisorMessage::Acknowledged { key })?;
                }
            }
        }
        Ok(())
    }
}

/// Returns once a coordinator has acknowledged it.
async fn report(shared: &Shared, done: &Done, trace: &Carrier) {
    let mut backoff = Backoff::new(WAIT.0, WAIT.1);
    loop {
        // Encoded for every try: the epoch may have grown.
        match wire::encode(&shared.meta(trace), done) {
            Ok(message) => {
                if acknowledged(&message, done).await {
                    return;
                }
            }
            Err(error) => tracing::error!("the result of {} could not be encoded: {error}", done.key.work),
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

async fn acknowledged(message: &Wire, done: &Done) -> bool {
    for gateway in gateway::gateways() {
        match gateway::ask::<DoneReply>(&gateway, GatewayMessage::Done, message.clone(), ANSWER).await {
            Ok((_, reply)) if reply.acknowledged => return true,
            Ok(_) => {}
            Err(reason) => {
                tracing::debug!(run = %done.key.run, "the result of {} was not taken: {reason}", done.key.work);
            }
        }
    }
    false
}
