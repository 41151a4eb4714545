//! Submit: a pipeline is parsed, bound to its parameters, compiled as far as it can be without looking at a source, and
//! becomes a run; or attaches to the run that the same submission has.
//!
//! Here the run's trace begins: under the client's span if it sent one, else with a span of its own.

use std::collections::{BTreeMap, HashMap};

use haulage_core::event::StuckDecision;
use haulage_core::run::Input;
use haulage_core::submission::{LoadOutline, Submission};
use haulage_plan::definition::Definition;
use haulage_plan::{Diagnostics, Draft};
use haulage_proto::v1::submit_response::Disposition as Answer;
use haulage_proto::v1::{SubmitRequest, SubmitResponse};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use tracing::Span;

use super::role::Leader;
use super::status;
use crate::actors::run::RunMessage;
use crate::actors::runs::RunsMessage;
use crate::actors::table::Place;
use crate::actors::tell;
use crate::clock;
use crate::deciding::Carrier;
use crate::ledger::Disposition;
use crate::trace;

/// What a file without a name is called in errors.
const UNNAMED: &str = "pipeline.yaml";

/// The text of a status, as it is encoded: clients take headers of 16 KiB in all.
const STATUS_BYTES: usize = 12 * 1024;

pub(super) async fn submit(leader: &Leader, request: Request<SubmitRequest>) -> Result<SubmitResponse, Status> {
    let (span, traceparent) = root(&carrier(request.metadata()));
    let rerun = request.get_ref().rerun;
    let (submission, _) = checked(request.into_inner(), span, traceparent).await?;
    enter(leader, &submission, rerun).await
}

/// A sound submission and its definition, or everything that is wrong with it.
pub(super) async fn checked(
    request: SubmitRequest,
    span: Span,
    traceparent: String,
) -> Result<(Submission, Definition), Status> {
    // Planning SQL is work for a processor, and this task shares its thread with heartbeats.
    let checking = tokio::task::spawn_blocking(move || span.in_scope(|| check(request, traceparent)));
    checking
        .await
        .map_err(|error| Status::internal(format!("the pipeline's check failed: {error}")))?
}

/// The run that answers for the submission, which is started if it is new.
pub(super) async fn enter(leader: &Leader, submission: &Submission, rerun: bool) -> Result<SubmitResponse, Status> {
    let shared = &leader.shared;
    let submitted = shared
        .ledger
        .submit(shared.epoch(), submission, rerun, clock::wall())
        .await
        .map_err(|error| {
            shared.leadership.heed(&error);
            status::ledger(&error)
        })?;
    let run = submitted.run;
    let disposition = match submitted.disposition {
        Disposition::Started => Answer::Started,
        Disposition::Attached => Answer::Attached,
        Disposition::AlreadyPublished => Answer::AlreadyPublished,
    };
    match submitted.disposition {
        Disposition::Started | Disposition::Attached => {
            if let Some(Place::SetAside(reason)) = shared.table.place(&run) {
                return Err(Status::data_loss(format!(
                    "the same submission already has run {run}, which can't be recovered: {reason}"
                )));
            }
            // Also for a run that is attached to: harmless if it runs, and it does.
            tell(&leader.runs, RunsMessage::Start(run.clone()));
            // Whoever submits a stuck run again has seen to what kept it from being undone. Refused if it isn't stuck.
            if let (Disposition::Attached, Some(Place::Live(actor))) = (submitted.disposition, shared.table.place(&run))
            {
                tell(
                    &actor,
                    RunMessage::Input(Input::Decide {
                        decision: StuckDecision::Retry,
                        step: None,
                        reason: "submitted again".to_owned(),
                        by: String::new(),
                    }),
                );
            }
        }
        Disposition::AlreadyPublished => {}
    }
    tracing::info!(%run, disposition = ?submitted.disposition, "submitted");
    Ok(SubmitResponse {
        run_id: run.0,
        disposition: disposition.into(),
    })
}

/// The span of this submission and the context that the run's log keeps.
pub(super) fn root(client: &Carrier) -> (Span, String) {
    if let Some(traceparent) = client.get("traceparent") {
        let span = tracing::info_span!(parent: None, "plan");
        trace::follow(&span, client);
        return (span, traceparent.clone());
    }
    // A client that doesn't trace: the run's trace begins here.
    let submit = tracing::info_span!(parent: None, "submit");
    let traceparent = trace::context(&submit, "").remove("traceparent").unwrap_or_default();
    (tracing::info_span!(parent: &submit, "plan"), traceparent)
}

pub(super) fn carrier(metadata: &MetadataMap) -> Carrier {
    let take = |name: &str| {
        metadata
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let traceparent = take("traceparent");
    // Kept for ever in the log and sent to every node: only what is a context.
    if haulage_proto::convert::trace_id(&traceparent).is_empty() {
        return Carrier::new();
    }
    Carrier::from([
        ("traceparent".to_owned(), traceparent),
        ("tracestate".to_owned(), take("tracestate")),
    ])
}

#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
fn check(request: SubmitRequest, traceparent: String) -> Result<(Submission, Definition), Status> {
    if request.base.is_empty() {
        return Err(Status::invalid_argument(
            "`base` is empty: say what relative source paths are relative to, a folder on the nodes or s3://bucket/prefix",
        ));
    }
    let file = if request.file.is_empty() {
        UNNAMED.to_owned()
    } else {
        request.file
    };
    let params = request.params.into_iter().collect();
    let draft = Draft::of(&request.definition, &file, &params).require_values();
    // Only nodes look into sources: columns that are not declared are unknown here.
    let definition = draft.check(&BTreeMap::new()).map_err(unsound)?.definition;
    let loads = haulage_plan::outline(&definition);
    let submission = Submission {
        pipeline: definition.pipeline.clone(),
        places: places(request.destinations, &loads)?,
        loads,
        definition: request.definition,
        file,
        base: request.base,
        params,
        incremental: definition.is_incremental(),
        traceparent,
        replay: None,
    };
    Ok((submission, definition))
}

/// Of the destinations that the client names, those that the pipeline loads: others don't make it another submission.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
fn places(named: HashMap<String, String>, loads: &[LoadOutline]) -> Result<BTreeMap<String, String>, Status> {
    let mut places = BTreeMap::new();
    for (name, place) in named {
        // It is kept for ever and shown to everybody who may see the run.
        if place.starts_with("postgres") && place.contains('@') {
            return Err(Status::invalid_argument(format!(
                "`destinations`: {name} holds an `@`; give the place alone, as in postgres://host:5432/database, without \
                 user and password"
            )));
        }
        if loads.iter().any(|load| load.destination == name) {
            places.insert(name, place);
        }
    }
    Ok(places)
}

fn unsound(diagnostics: Diagnostics) -> Status {
    Status::invalid_argument(fitting(diagnostics.to_string()))
}

/// As much of a text as fits into a status. It travels as a header, in which most signs take three bytes, and a client
/// that is sent a larger one sees a broken connection instead of what is wrong.
fn fitting(mut text: String) -> String {
    let mut encoded = 0;
    let end = text.char_indices().find_map(|(at, sign)| {
        encoded += if sign.is_ascii_alphanumeric() {
            1
        } else {
            3 * sign.len_utf8()
        };
        (encoded > STATUS_BYTES).then_some(at)
    });
    if let Some(end) = end {
        text.truncate(end);
        text.push_str("\n... and more; `haulage validate` shows it all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_fits_into_a_header() {
        assert_eq!(fitting("p.yaml:1:1: error".into()), "p.yaml:1:1: error");
        let long = fitting("ü ".repeat(50_000));
        assert!(
            long.len() < STATUS_BYTES && long.ends_with("shows it all"),
            "{}",
            long.len()
        );
    }
}
