//! The node's one remotable actor: what the coordinator can talk to. It decodes, holds the fence of the epoch, and
//! passes on; whoever it passes a call to answers it.
//!
//! It never waits for anything, so a coordinator that asks while the node is busy is answered all the same.

use std::sync::Arc;

use haulage_proto::link::actor::{AGENTS, AgentMessage};
use haulage_proto::link::message::{
    Assignment, AssignmentReply, Drop as DropRuns, Examine, Examined, FetchRejects, Hello, Leave, Prune, Pruned,
    Watermarks, WatermarksReply,
};
use haulage_proto::link::wire::{self, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::heartbeater::HeartbeaterMessage;
use super::shared::Shared;
use super::supervisor::SupervisorMessage;
use crate::receipt;
use crate::store::prune;
use crate::watermarks;
use crate::work::Toolbox;
use crate::work::listing;

/// See the module.
pub(crate) struct NodeAgent;

/// Whom the agent passes messages to.
pub(crate) struct Colleagues {
    pub(crate) shared: Arc<Shared>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
    pub(crate) heartbeater: ActorRef<HeartbeaterMessage>,
    pub(crate) tools: Arc<Toolbox>,
    pub(crate) data: Handle,
}

impl Actor for NodeAgent {
    type Msg = AgentMessage;
    type State = Colleagues;
    type Arguments = Colleagues;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, with: Colleagues) -> Result<Colleagues, ActorProcessingErr> {
        ractor::pg::join(AGENTS.to_owned(), vec![myself.get_cell()]);
        Ok(with)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: AgentMessage,
        with: &mut Colleagues,
    ) -> Result<(), ActorProcessingErr> {
        // A reply port that is dropped tells the caller that it won't be answered. That is right for what can't be
        // decoded or comes from a deposed leader: nothing that could be said here would help either of them.
        match message {
            AgentMessage::Hello(wire, reply) => {
                if let Some((_, hello)) =
                    open::<Hello>(&wire, "hello").filter(|(meta, _)| admitted(&with.shared, meta, "hello"))
                {
                    with.heartbeater.cast(HeartbeaterMessage::Greeted { hello, reply })?;
                }
            }
            AgentMessage::Assign(wire, reply) => {
                let Some((meta, assignment)) = open::<Assignment>(&wire, "assignment") else {
                    return Ok(());
                };
                if admitted(&with.shared, &meta, "assignment") {
                    let assignment = Box::new(assignment);
                    with.supervisor.cast(SupervisorMessage::Assign {
                        meta,
                        assignment,
                        reply,
                    })?;
                } else {
                    with.shared.answer(reply, &AssignmentReply::StaleEpoch);
                }
            }
            AgentMessage::Drop(wire, reply) => {
                if let Some((_, what)) =
                    open::<DropRuns>(&wire, "drop").filter(|(meta, _)| admitted(&with.shared, meta, "drop"))
                {
                    let DropRuns { attempts, runs } = what;
                    with.supervisor.cast(SupervisorMessage::Drop {
                        attempts,
                        runs,
                        reply: Some(reply),
                    })?;
                }
            }
            AgentMessage::Leave(wire, reply) => {
                if open::<Leave>(&wire, "leave")
                    .filter(|(meta, _)| admitted(&with.shared, meta, "leave"))
                    .is_some()
                {
                    with.shared.ask_to_leave();
                    with.shared.answer(reply, &());
                }
            }
            AgentMessage::Examine(wire, reply) => {
                let Some((_, question)) = open::<Examine>(&wire, "question about what is published") else {
                    return Ok(());
                };
                let (shared, tools) = (with.shared.clone(), with.tools.clone());
                with.data.spawn(async move {
                    let answer = receipt::examine(&tools, &question).await;
                    shared.answer(reply, &Examined { answer });
                });
            }
            AgentMessage::Watermarks(wire, reply) => {
                let Some((_, ask)) = open::<Watermarks>(&wire, "question about watermarks") else {
                    return Ok(());
                };
                let (shared, tools) = (with.shared.clone(), with.tools.clone());
                with.data.spawn(async move {
                    let marks = match ask {
                        Watermarks::List { pipeline } => watermarks::all(&tools, pipeline.as_deref()).await,
                        Watermarks::Set { mark, was } => {
                            let set = watermarks::one(&tools, &mark, was.as_deref()).await;
                            set.map(|()| vec![*mark])
                        }
                    };
                    shared.answer(reply, &WatermarksReply { marks });
                });
            }
            AgentMessage::Prune(wire, reply) => {
                let Some((_, what)) =
                    open::<Prune>(&wire, "prune").filter(|(meta, _)| admitted(&with.shared, meta, "prune"))
                else {
                    return Ok(());
                };
                let (shared, tools) = (with.shared.clone(), with.tools.clone());
                with.data.spawn(async move {
                    let part = async { prune::prune(tools.store().await?.as_ref(), what).await }.await;
                    shared.answer(reply, &Pruned { part });
                });
            }
            AgentMessage::FetchRejects(wire, reply) => {
                // Reading is harmless under any epoch.
                let Some((_, fetch)) = open::<FetchRejects>(&wire, "request for rejected rows") else {
                    return Ok(());
                };
                let (shared, tools) = (with.shared.clone(), with.tools.clone());
                with.data.spawn(async move {
                    shared.answer(reply, &listing::page(&tools, fetch).await);
                });
            }
        }
        Ok(())
    }
}

fn open<T: DeserializeOwned>(wire: &Wire, what: &str) -> Option<(wire::Meta, T)> {
    match wire::decode(wire) {
        Ok(opened) => Some(opened),
        Err(error) => {
            tracing::warn!("refused a message of the coordinator ({what}): {error}");
            None
        }
    }
}

fn admitted(shared: &Shared, meta: &wire::Meta, what: &str) -> bool {
    let admitted = shared.admit(meta.epoch);
    if !admitted {
        tracing::info!(
            theirs = meta.epoch.0,
            ours = shared.epoch().0,
            "refused a {what} of a deposed coordinator"
        );
    }
    admitted
}
