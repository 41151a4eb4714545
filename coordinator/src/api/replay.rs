//! Replay: the rejected rows of a published run become the source of another one.
//!
//! What a replay has loaded must not be loaded again. So each run has at most one replay that stands, and what is left of
//! its rejected rows is what that replay rejected: this follows the replays of a run to the last one. Whether a replay may
//! start is decided by the ledger, under its locks.

use std::collections::BTreeMap;

use haulage_core::event::Outcome;
use haulage_core::ids::{ChunkId, LoadName, RunId};
use haulage_core::run::{Judged, Phase, State};
use haulage_core::submission::{LoadOutline, Parts, Replay, Submission};
use haulage_plan::definition::{Definition, SourceKind};
use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{ReplayRequest, ReplayResponse, SubmitResponse};
use tonic::{Request, Status};

use super::role::Leader;
use super::{Api, Log, parts, prune, status, submit};
use crate::ledger::Ledger;

/// Objects of rejected rows that one replay takes: the log of its run holds them, and each becomes a chunk.
const OBJECTS: usize = 100_000;

pub(super) async fn replay(
    api: &Api,
    leader: &Leader,
    request: Request<ReplayRequest>,
) -> Result<ReplayResponse, Status> {
    let (span, traceparent) = submit::root(&submit::carrier(request.metadata()));
    let request = request.into_inner();
    let asked = RunId::new(request.run_id);
    let Some(form) = request.submit else {
        return Err(Status::invalid_argument(
            "`submit` is missing: send the definition by which the rows are read again",
        ));
    };
    let again = form.rerun;
    let (mut submission, definition) = submit::checked(form, span, traceparent).await?;
    let end = follow(leader.shared.ledger.as_ref(), &asked).await?;
    if let (Some(last), false) = (&end.last, again)
        && is_alike(&mut submission, last)
    {
        return Ok(ReplayResponse {
            submitted: Some(SubmitResponse {
                run_id: end.run.0,
                disposition: Disposition::AlreadyPublished.into(),
            }),
            replayed: last.replayed.0.clone(),
            left: 0,
        });
    }
    let log = api.read(&end.run).await?;
    prune::refuse_pruned(&end.run, &log)?;
    let objects = objects(&log.state);
    let left = log.state.set_aside().values().map(|aside| aside.rows).sum();
    if objects.is_empty() && log.state.phase() == Phase::AtRest(Outcome::Published) {
        return Ok(ReplayResponse {
            submitted: None,
            replayed: end.run.0,
            left,
        });
    }
    fits(&end.run, &objects, &definition)?;
    let loads = log.state.rejected_for().filter(|loads| !loads.is_empty());
    if let Some(loads) = &loads {
        submission.loads = only(&end.run, submission.loads, loads, &definition)?;
    }
    // What is new is no business of rows that were read once.
    submission.incremental = false;
    let (parts, read) = parts::of(&end.run, &log.state, &objects, |source| {
        let declared = definition.sources.get(source);
        declared.is_some_and(|declared| !matches!(declared.kind, SourceKind::Database(_)))
    });
    submission.replay = Some(Replay {
        run: end.run.clone(),
        origin: origin(api, &log).await?,
        objects,
        parts,
        read,
        loads,
    });
    Ok(ReplayResponse {
        submitted: Some(submit::enter(leader, &submission, false).await?),
        replayed: end.run.0,
        left,
    })
}

/// The last of the replays of a run that stand.
struct End {
    run: RunId,
    /// How it came to be, unless that is the run itself.
    last: Option<Link>,
}

/// A published replay.
struct Link {
    replayed: RunId,
    key: String,
}

async fn follow(ledger: &dyn Ledger, asked: &RunId) -> Result<End, Status> {
    let mut end = End {
        run: asked.clone(),
        last: None,
    };
    while let Some(next) = ledger
        .replaying(&end.run)
        .await
        .map_err(|error| status::ledger(&error))?
        .filter(|next| next.published)
    {
        end.last = Some(Link {
            replayed: std::mem::replace(&mut end.run, next.run),
            key: next.key,
        });
    }
    Ok(end)
}

/// Who has read the rows first that this run rejected, if that was another one, which it then has replayed.
async fn origin(api: &Api, log: &Log) -> Result<Option<RunId>, Status> {
    let replay_of = |log: &Log| log.state.submission().and_then(|submission| submission.replay.clone());
    let mut replay = replay_of(log);
    let mut origin = None;
    while let Some(earlier) = replay {
        origin = Some(earlier.origin().clone());
        replay = match earlier.origin {
            Some(_) => None,
            // An earlier release did not say.
            None => replay_of(&api.read(&earlier.run).await?),
        };
    }
    Ok(origin)
}

/// Whether the replay is the same submission, read from the same run.
fn is_alike(submission: &mut Submission, last: &Link) -> bool {
    // What is new is no business of rows that were read once.
    submission.incremental = false;
    submission.replay = Some(Replay {
        run: last.replayed.clone(),
        origin: None,
        objects: BTreeMap::new(),
        parts: BTreeMap::new(),
        read: Parts::new(),
        loads: None,
    });
    submission.key() == last.key
}

/// Where the rejected rows of a run are, by source, in the order of chunks.
fn objects(state: &State) -> BTreeMap<String, Vec<String>> {
    let specs = state.stages().iter().flat_map(|stage| &stage.chunks);
    let sources: BTreeMap<ChunkId, &str> = specs.map(|spec| (spec.chunk, spec.source.as_str())).collect();
    let mut objects: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (chunk, report) in state.chunk_reports() {
        if let (Some(source), false) = (sources.get(&chunk), report.rejects.is_empty()) {
            objects
                .entry((*source).to_owned())
                .or_default()
                .extend(report.rejects.iter().cloned());
        }
    }
    objects
}

/// Of the definition's loads those that the rows were rejected for: the others have all of theirs, and are none of a replay's
/// business.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
fn only(
    run: &RunId,
    mut outlines: Vec<LoadOutline>,
    loads: &BTreeMap<LoadName, Judged>,
    definition: &Definition,
) -> Result<Vec<LoadOutline>, Status> {
    outlines.retain(|outline| loads.contains_key(&outline.name));
    if outlines.is_empty() {
        let names: Vec<&str> = loads.keys().map(LoadName::as_str).collect();
        return Err(Status::failed_precondition(format!(
            "run {run} rejected its rows for the load {}, which {} doesn't have; keep the names of loads in a pipeline whose \
             rejected rows are to be replayed",
            names.join(", "),
            definition.file
        )));
    }
    Ok(outlines)
}

/// Whether the definition can read the rows at all.
#[allow(clippy::result_large_err, reason = "a Status is what the caller sends")]
fn fits(run: &RunId, objects: &BTreeMap<String, Vec<String>>, definition: &Definition) -> Result<(), Status> {
    for name in objects.keys() {
        let what = match definition.sources.get(name) {
            Some(source) if !source.lookup => continue,
            Some(_) => "is a lookup in",
            None => "is not in",
        };
        return Err(Status::failed_precondition(format!(
            "run {run} rejected rows of the source `{name}`, which {what} {}; keep the names of sources in a pipeline whose \
             rejected rows are to be replayed",
            definition.file
        )));
    }
    let number: usize = objects.values().map(Vec::len).sum();
    if number > OBJECTS {
        return Err(Status::failed_precondition(format!(
            "the rejected rows of run {run} lie in {number} objects, and a replay takes {OBJECTS} at most; correct the \
             pipeline and run it again"
        )));
    }
    Ok(())
}
