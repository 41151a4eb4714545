//! GetReceipt, VerifyRun and LookUp. A receipt is the run's log in another order; what stands in a target only a node can
//! see, so one is asked that knows the destination.

use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::RunId;
use haulage_core::receipt::{LoadReceipt, Receipt, Verdict};
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::{Examination, Examine, Examined, LookUp, VerifyLoad};
use haulage_proto::link::wire::Meta;
use haulage_proto::{convert, receipt, v1};
use ractor::ActorRef;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::role::Leader;
use super::{Api, Outgoing, nodes};
use crate::actors::calls::call_within;

/// Reading a whole load back.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Finding some rows; a node gives itself a minute.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(75);
/// Rows when nobody says how many, and at most.
const ROWS: u32 = 20;
const MAX_ROWS: u32 = 1000;
/// Parts of a key.
const MAX_PARTS: usize = 100;

pub(super) async fn get(api: &Api, request: v1::GetReceiptRequest) -> Result<v1::Receipt, Status> {
    let run = RunId::new(request.run_id);
    let log = api.read(&run).await?;
    let made = of(&log, &run)?;
    let state = convert::run_state(log.state.phase());
    Ok(receipt::receipt(&made, state, log.state.submitted_at().0))
}

#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
fn of(log: &super::Log, run: &RunId) -> Result<Receipt, Status> {
    let events: Vec<_> = log.events.iter().map(|(_, event)| event).collect();
    Receipt::of(events).ok_or_else(|| Status::data_loss(format!("the log of run {run} has no beginning")))
}

pub(super) async fn verify(
    api: &Api,
    leader: &Leader,
    request: v1::VerifyRunRequest,
) -> Result<Outgoing<v1::LoadVerdict>, Status> {
    let run = RunId::new(request.run_id);
    let log = api.read(&run).await?;
    let made = of(&log, &run)?;
    let state = convert::run_state(log.state.phase());
    if !made.stands() {
        return Err(Status::failed_precondition(format!(
            "run {run} is {}, and only what is published can be verified",
            state.as_str_name().to_ascii_lowercase().replace('_', " ")
        )));
    }
    if !request.load.is_empty() && !made.loads.iter().any(|load| load.outline.name.as_str() == request.load) {
        let names: Vec<&str> = made.loads.iter().map(|load| load.outline.name.as_str()).collect();
        return Err(Status::not_found(format!(
            "run {run} has no load {}; it has: {}",
            request.load,
            names.join(", ")
        )));
    }
    let agents = agents(leader).await?;
    let epoch = leader.shared.epoch();
    let meta = Meta {
        epoch,
        ..Meta::default()
    };
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let wanted = |load: &&LoadReceipt| request.load.is_empty() || load.outline.name.as_str() == request.load;
        for load in made.loads.iter().filter(wanted) {
            let asked = VerifyLoad::of(&made, load);
            let published = asked.rows;
            let question = Examine::Verify(Box::new(asked));
            let answer = tokio::select! {
                answer = ask(&agents, &meta, &question, VERIFY_TIMEOUT) => answer,
                // A client that is gone needs no answer. The node reads to the end.
                () = sender.closed() => return,
            };
            // That one can't be read says nothing of the others.
            let verdict = match answer {
                Ok(Examination::Verified(verdict)) => verdict,
                Ok(Examination::Found(_)) => Verdict::unknown(published, "a node answered another question".to_owned()),
                Err(status) => Verdict::unknown(published, status.message().to_owned()),
            };
            if sender.send(Ok(receipt::verdict(load, &verdict))).await.is_err() {
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

pub(super) async fn look_up(leader: &Leader, request: v1::LookUpRequest) -> Result<v1::LookUpResponse, Status> {
    if request.key.is_empty() || request.key.len() > MAX_PARTS {
        return Err(Status::invalid_argument(format!(
            "say by which values to look, 1 to {MAX_PARTS}"
        )));
    }
    let question = Examine::LookUp(LookUp {
        destination: request.destination,
        place: None,
        table: request.table,
        key: request.key.into_iter().map(|part| (part.column, part.value)).collect(),
        limit: match request.limit {
            0 => ROWS,
            limit => limit.min(MAX_ROWS),
        },
    });
    let agents = agents(leader).await?;
    let meta = Meta {
        epoch: leader.shared.epoch(),
        ..Meta::default()
    };
    match ask(&agents, &meta, &question, LOOK_UP_TIMEOUT).await? {
        Examination::Found(found) => Ok(receipt::looked(found)),
        Examination::Verified(_) => Err(Status::internal("a node answered another question")),
    }
}

async fn agents(leader: &Leader) -> Result<Vec<ActorRef<AgentMessage>>, Status> {
    let agents = nodes::agents(Some(leader)).await?;
    if agents.is_empty() {
        return Err(Status::unavailable(
            "targets are read by a node, and none is attached; start one with `haulage node`",
        ));
    }
    Ok(agents)
}

/// The answer of the first node that has one: another may know the destination that this one doesn't.
async fn ask(
    agents: &[ActorRef<AgentMessage>],
    meta: &Meta,
    question: &Examine,
    timeout: Duration,
) -> Result<Examination, Status> {
    let mut why = Status::unavailable("no node answered; try again");
    for agent in agents {
        match call_within::<_, Examined>(timeout, agent, meta, question, AgentMessage::Examine).await {
            Ok(Examined { answer: Ok(answer) }) => return Ok(answer),
            Ok(Examined { answer: Err(failure) }) => why = refused(&failure),
            Err(error) => tracing::warn!(%error, "a node did not answer a question about what is published"),
        }
    }
    Err(why)
}

fn refused(failure: &Failure) -> Status {
    match failure.class {
        Class::Transient | Class::Fenced => Status::unavailable(failure.message.clone()),
        Class::Permanent | Class::Poison | Class::StagingLost => Status::failed_precondition(failure.message.clone()),
    }
}
