//! The actor of one attempt: a chunk actor, a step actor or a discover actor, by what its order says.
//!
//! Its data work runs as a task on the data runtime; the actor owns that task and dies with it. A panic in the task is
//! a crash of this actor, which its supervisor hears of like of any other; an ordinary failure is a result. When the
//! actor is stopped or killed, the task is cancelled at its next await, and what it had not committed rolls back.

use std::sync::Arc;

use haulage_core::failure::Failure;
use haulage_proto::link::message::Outcome;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::shared::Progress;
use super::supervisor::SupervisorMessage;
use crate::work::{self, Order, Toolbox};

/// See the module.
pub(crate) struct Worker;

/// What a worker is started with.
pub(crate) struct Job {
    pub(crate) order: Arc<Order>,
    /// Which worker of the node this is.
    pub(crate) serial: u64,
    pub(crate) progress: Arc<Progress>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tools: Arc<Toolbox>,
    pub(crate) data: Handle,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
}

/// What a worker is told.
#[derive(ractor_cluster::RactorMessage)]
pub(crate) enum WorkerMessage {
    /// Its task has ended, one way or another.
    Returned(Result<Result<Outcome, Failure>, JoinError>),
}

/// What it remembers.
pub(crate) struct State {
    order: Arc<Order>,
    serial: u64,
    supervisor: ActorRef<SupervisorMessage>,
    /// Cancels the task when this actor is gone, however it went.
    _task: DropGuard,
}

impl Actor for Worker {
    type Msg = WorkerMessage;
    type State = State;
    type Arguments = Job;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, job: Job) -> Result<State, ActorProcessingErr> {
        // Of this worker alone: the attempt's own token must survive a restart.
        let cancel = job.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let Job {
            order,
            serial,
            progress,
            tools,
            data,
            supervisor,
            ..
        } = job;
        let ordered = order.clone();
        let task = data.spawn(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Failure::transient("cancelled")),
                result = Box::pin(work::perform(&tools, &ordered, &progress)) => result,
            }
        });
        tokio::spawn(async move {
            // An error means that the actor is gone already, and nobody wants the result.
            drop(myself.cast(WorkerMessage::Returned(task.await)));
        });
        Ok(State {
            order,
            serial,
            supervisor,
            _task: guard,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        WorkerMessage::Returned(returned): WorkerMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let result = match returned {
            Ok(result) => result,
            Err(error) if error.is_panic() => return Err(panic_text(error).into()),
            Err(_) => Err(Failure::transient("the node is shutting down")),
        };
        let key = state.order.assignment.key.clone();
        state.supervisor.cast(SupervisorMessage::Ended {
            key,
            serial: state.serial,
            result,
        })?;
        myself.stop(None);
        Ok(())
    }
}

fn panic_text(error: JoinError) -> String {
    let payload = error.into_panic();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
