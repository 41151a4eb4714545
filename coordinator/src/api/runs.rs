//! GetRun and ListRuns: what the ledger has, and what running chunks have counted since.

use haulage_core::ids::{RunId, Seq};
use haulage_proto::convert::{self, Live};
use haulage_proto::v1::{GetRunRequest, GetRunResponse, ListRunsRequest, ListRunsResponse, Run};
use tonic::Status;

use super::{Api, status};
use crate::ledger::RunRow;

/// Runs in a list when the client names no limit.
const DEFAULT_LIMIT: u32 = 50;
/// Runs in a list at most: each costs a fold of its log.
const MAX_LIMIT: u32 = 500;

pub(super) async fn get(api: &Api, request: GetRunRequest) -> Result<GetRunResponse, Status> {
    let run = RunId::new(request.run_id);
    let log = api.read(&run).await?;
    let replaying = api.ledger.replaying(&run).await;
    let replaying = replaying.map_err(|error| status::ledger(&error))?;
    let run = Run {
        replayed_by: replaying.map(|replay| replay.run.0).unwrap_or_default(),
        ..convert::run(&log.state, log.seq, &live(api, &run, log.seq))
    };
    let events = log
        .events
        .iter()
        .map(|(seq, event)| convert::event(*seq, event))
        .collect();
    Ok(GetRunResponse { run: Some(run), events })
}

pub(super) async fn list(api: &Api, request: ListRunsRequest) -> Result<ListRunsResponse, Status> {
    let limit = match request.limit {
        0 => DEFAULT_LIMIT,
        limit => limit.min(MAX_LIMIT),
    };
    let pipeline = Some(request.pipeline.as_str()).filter(|pipeline| !pipeline.is_empty());
    let rows = api
        .ledger
        .list(pipeline, limit)
        .await
        .map_err(|error| status::ledger(&error))?;
    let mut runs = Vec::with_capacity(rows.len());
    for row in rows {
        runs.push(one(api, row).await?);
    }
    Ok(ListRunsResponse { runs })
}

/// A run of the list. One that can't be read is listed with the reason, and hides no other.
async fn one(api: &Api, row: RunRow) -> Result<Run, Status> {
    match api.read(&row.run).await {
        Ok(log) => Ok(convert::run(&log.state, log.seq, &live(api, &row.run, log.seq))),
        Err(status) if status.code() == tonic::Code::Unavailable => Err(status),
        Err(status) => Ok(convert::unreadable_run(
            row.run.as_str(),
            &row.pipeline,
            row.submitted_at,
            row.finished,
            status.message().to_owned(),
        )),
    }
}

/// What running chunks have counted, if this process leads the run and is not far behind the log.
fn live(api: &Api, run: &RunId, seq: Seq) -> Live {
    let view = api.leader().and_then(|leader| leader.shared.table.view(run));
    match view {
        // An older snapshot may count a chunk as running that has ended since, and it would count twice.
        Some(view) if view.borrow().seq == seq => view.borrow().live.clone(),
        Some(_) | None => Live::new(),
    }
}
