//! ListWatermarks and SetWatermark: watermarks stand at destinations, which a coordinator has no access to, so nodes look
//! at them and set them.

use std::collections::BTreeMap;
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use haulage_core::watermark::{Form, Watermark};
use haulage_proto::convert;
use haulage_proto::link::actor::AgentMessage;
use haulage_proto::link::message::{Watermarks, WatermarksReply};
use haulage_proto::link::wire::Meta;
use haulage_proto::v1;
use ractor::ActorRef;
use tonic::Status;

use super::nodes;
use super::role::Leader;
use crate::actors::calls::call_within;

/// A destination may be slow to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What a name in such a request may be long.
const NAME_BYTES: usize = 256;

pub(super) async fn list(
    leader: &Leader,
    request: v1::ListWatermarksRequest,
) -> Result<v1::ListWatermarksResponse, Status> {
    let pipeline = Some(request.pipeline).filter(|pipeline| !pipeline.is_empty());
    let ask = Watermarks::List { pipeline };
    // Nodes may know different destinations. What several of them know is listed once.
    let mut marks = BTreeMap::new();
    let mut why = None;
    let mut answered = false;
    for agent in attached(leader).await? {
        match say(leader, &agent, &ask).await {
            Ok(found) => {
                answered = true;
                for mark in found {
                    let key = (
                        mark.pipeline.clone(),
                        mark.destination.clone(),
                        mark.table.clone(),
                        mark.source.clone(),
                    );
                    marks.insert(key, mark);
                }
            }
            Err(status) => why = Some(status),
        }
    }
    match why {
        Some(status) if !answered => Err(status),
        _ => Ok(v1::ListWatermarksResponse {
            watermarks: marks.into_values().map(convert::watermark).collect(),
        }),
    }
}

pub(super) async fn set(leader: &Leader, request: v1::SetWatermarkRequest) -> Result<v1::SetWatermarkResponse, Status> {
    let names = [
        &request.destination,
        &request.pipeline,
        &request.source,
        &request.table,
        &request.by,
        &request.column,
    ];
    if names.iter().any(|name| name.len() > NAME_BYTES) {
        return Err(Status::invalid_argument(format!(
            "a name is longer than {NAME_BYTES} bytes"
        )));
    }
    if let Some(value) = request.value.as_deref().filter(|value| Form::of(value).is_none()) {
        return Err(Status::invalid_argument(format!(
            "{value:?} can't be a watermark: write a number, a date or a time, as in 42 or 2013-01-31"
        )));
    }
    let ask = Watermarks::Set {
        mark: Box::new(Watermark {
            destination: request.destination,
            pipeline: request.pipeline,
            source: request.source,
            table: request.table,
            column: request.column,
            value: request.value,
            run: String::new(),
            by: request.by,
            at: String::new(),
            of: String::new(),
            replaced_by: String::new(),
        }),
        was: request.was,
    };
    let mut why = Status::unavailable("no node answered; try again");
    for agent in attached(leader).await? {
        match say(leader, &agent, &ask).await {
            Ok(_) => return Ok(v1::SetWatermarkResponse {}),
            Err(status) => why = status,
        }
    }
    Err(why)
}

async fn attached(leader: &Leader) -> Result<Vec<ActorRef<AgentMessage>>, Status> {
    let agents = nodes::agents(Some(leader)).await?;
    if agents.is_empty() {
        return Err(Status::unavailable(
            "watermarks stand at destinations, which nodes look at, and none is attached; start one with `haulage node`",
        ));
    }
    Ok(agents)
}

async fn say(leader: &Leader, agent: &ActorRef<AgentMessage>, ask: &Watermarks) -> Result<Vec<Watermark>, Status> {
    let meta = Meta {
        epoch: leader.shared.epoch(),
        ..Meta::default()
    };
    match call_within::<_, WatermarksReply>(TIMEOUT, agent, &meta, ask, AgentMessage::Watermarks).await {
        Ok(WatermarksReply { marks }) => marks.map_err(|failure| refused(&failure)),
        Err(error) => {
            tracing::warn!(%error, "a node did not answer about watermarks");
            Err(Status::unavailable(
                "a node did not answer about watermarks: it is of an earlier release, or busy; try again",
            ))
        }
    }
}

fn refused(failure: &Failure) -> Status {
    match failure.class {
        Class::Transient => Status::unavailable(failure.message.clone()),
        _ => Status::failed_precondition(failure.message.clone()),
    }
}
