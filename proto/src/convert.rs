//! From core's types to the public interface's. One direction only: a request is turned into core's types by the API
//! that answers it.
//!
//! Everything here is a total function of what it is given. No decision is made on a generated type.

use std::collections::BTreeMap;

use haulage_core::checkpoint::Counts;
use haulage_core::event::{CheckResult, Event, Outcome, PlannedStage};
use haulage_core::ids::{ChunkId, Millis, Seq, StepKind, Work};
use haulage_core::quarantine::{Form, Reject};
use haulage_core::run::{Phase, State};
use haulage_core::submission::{LoadOutline, Submission};
use haulage_core::watermark::Advance;

use crate::v1;

/// What chunks that are running have counted so far, by chunk.
pub type Live = BTreeMap<ChunkId, Counts>;

/// A run as it stands at `seq`. `live` adds what running chunks have counted to what finished ones reported.
pub fn run(state: &State, seq: Seq, live: &Live) -> v1::Run {
    let mut total = state.counts();
    for counts in live.values() {
        total += counts;
    }
    let submission = state.submission();
    v1::Run {
        run_id: state.run().map(ToString::to_string).unwrap_or_default(),
        pipeline: submission
            .map(|submission| submission.pipeline.clone())
            .unwrap_or_default(),
        state: run_state(state.phase()).into(),
        submitted_at: state.submitted_at().0,
        finished_at: state.finished().map_or(0, |(_, at)| at.0),
        error: error(state),
        stages: state
            .stages()
            .iter()
            .map(|planned| stage(state, planned, live))
            .collect(),
        loads: submission
            .map(|submission| loads(state, submission, &total))
            .unwrap_or_default(),
        counts: Some(v1::Counts {
            set_aside: state.set_aside().values().map(|aside| aside.rows).sum(),
            ..counts(&total)
        }),
        retries: state.retries(),
        trace_id: submission
            .map(|submission| trace_id(&submission.traceparent))
            .unwrap_or_default(),
        params: submission
            .map(|submission| submission.params.clone().into_iter().collect())
            .unwrap_or_default(),
        seq: seq.0,
        restarts: state.restarts(),
        bytes_read_again: state.bytes_read_again(),
        pruned_at: state.pruned().map_or(0, |(_, at)| at.0),
        pruned_by: state.pruned().map(|(by, _)| by.to_owned()).unwrap_or_default(),
        replays: submission
            .and_then(|submission| submission.replay.as_ref())
            .map(|replay| replay.run.0.clone())
            .unwrap_or_default(),
        warnings: submission
            .map(|submission| warnings(state, submission))
            .unwrap_or_default(),
        // The ledger knows.
        replayed_by: String::new(),
        undoing: match state.stuck().or(state.undoing_waits()) {
            Some((step, _)) => step.to_string(),
            None => String::new(),
        },
    }
}

fn warnings(state: &State, submission: &Submission) -> Vec<String> {
    let advances = state.stages().iter().flat_map(|stage| &stage.advances);
    let said = |advance: &Advance| {
        let load = submission.loads.iter().find(|load| load.name == advance.load)?;
        advance.warning(&submission.pipeline, &load.table, &load.destination)
    };
    advances.filter_map(said).collect()
}

/// A run of which only the list's row is known, because its log can't be read: `error` says why.
pub fn unreadable_run(
    run: &str,
    pipeline: &str,
    submitted_at: Millis,
    finished: Option<(Millis, Outcome)>,
    error: String,
) -> v1::Run {
    let state = finished.map_or(v1::RunState::Unspecified, |(_, outcome)| {
        run_state(Phase::AtRest(outcome))
    });
    v1::Run {
        run_id: run.to_owned(),
        pipeline: pipeline.to_owned(),
        state: state.into(),
        submitted_at: submitted_at.0,
        finished_at: finished.map_or(0, |(at, _)| at.0),
        error,
        ..v1::Run::default()
    }
}

/// Where a run is, as clients see it. Cleaning counts as publishing: the run isn't at rest yet.
pub fn run_state(phase: Phase) -> v1::RunState {
    match phase {
        Phase::Empty => v1::RunState::Unspecified,
        Phase::Discovering => v1::RunState::Discovering,
        Phase::Loading => v1::RunState::Loading,
        Phase::Verifying => v1::RunState::Verifying,
        Phase::Publishing | Phase::Cleaning => v1::RunState::Publishing,
        Phase::Recalling => v1::RunState::Reverting,
        Phase::RollingBack => v1::RunState::RollingBack,
        Phase::Stuck => v1::RunState::Stuck,
        Phase::AtRest(Outcome::Published) => v1::RunState::Published,
        Phase::AtRest(Outcome::Failed) => v1::RunState::Failed,
        Phase::AtRest(Outcome::Cancelled) => v1::RunState::Cancelled,
        Phase::AtRest(Outcome::Reverted) => v1::RunState::Reverted,
    }
}

/// Counts of a run or a stage. Rows loaded, filtered and multiplied are summed over loads; read rows and rejected ones
/// count once, however many loads they feed.
pub fn counts(counts: &Counts) -> v1::Counts {
    let sum = |take: fn(&haulage_core::checkpoint::LoadCounts) -> u64| counts.loads.values().map(take).sum();
    v1::Counts {
        read: counts.read,
        loaded: sum(|load| load.loaded),
        rejected: counts.rejected_total(),
        filtered: sum(|load| load.filtered),
        bytes: counts.bytes,
        rejected_by_reason: counts.rejected.clone().into_iter().collect(),
        multiplied: sum(|load| load.multiplied),
        set_aside: 0,
    }
}

/// An event with its place in the log.
pub fn event(seq: Seq, event: &Event) -> v1::RunEvent {
    v1::RunEvent {
        seq: seq.0,
        at: event.at().0,
        kind: event.kind().to_owned(),
        text: event.text(),
        // Events are plain data with text keys: serde_json has no reason to refuse one.
        json: serde_json::to_string(event).unwrap_or_default(),
    }
}

/// A line about a run that isn't in its log, such as what it waits for. It carries the place of the last event, so
/// that a client that remembers places loses nothing.
pub fn notice(seq: Seq, at: Millis, kind: &str, text: &str) -> v1::RunEvent {
    v1::RunEvent {
        seq: seq.0,
        at: at.0,
        kind: kind.to_owned(),
        text: text.to_owned(),
        json: String::new(),
    }
}

/// A watermark as it stands at a destination.
pub fn watermark(mark: haulage_core::watermark::Watermark) -> v1::Watermark {
    v1::Watermark {
        destination: mark.destination,
        pipeline: mark.pipeline,
        source: mark.source,
        table: mark.table,
        column: mark.column,
        value: mark.value,
        run_id: mark.run,
        by: mark.by,
        at: mark.at,
        replaced_by: mark.replaced_by,
    }
}

/// A quarantined row.
pub fn reject(reject: Reject) -> v1::Reject {
    let values = reject.values();
    let (columns, form) = reject.kept.map(|kept| (kept.columns, kept.form)).unzip();
    let columns = columns.flatten().filter(|_| values.is_some());
    let (mut raw_hex, mut partly) = (String::new(), String::new());
    match form {
        Some(Form::Hex(hex)) => raw_hex = hex,
        Some(Form::Partly(why)) => partly = why,
        Some(Form::Raw | Form::Values(_)) | None => {}
    }
    let value = |text| v1::reject::Value { text };
    v1::Reject {
        raw_hex,
        columns: columns.map(|columns| columns.to_vec()).unwrap_or_default(),
        values: values.into_iter().flatten().map(value).collect(),
        partly,
        pipeline: reject.pipeline,
        run_id: reject.run.0,
        source: reject.source,
        file: reject.file,
        line: reject.line,
        column: reject.column.unwrap_or_default(),
        step: reject.step.unwrap_or_default(),
        reason: reject.reason,
        detail: reject.detail,
        raw: reject.raw,
    }
}

/// The trace id of a W3C `traceparent`, or nothing if it has none.
pub fn trace_id(traceparent: &str) -> String {
    let mut parts = traceparent.split('-');
    match (parts.next(), parts.next()) {
        (Some(version), Some(id)) if version.len() == 2 && id.len() == 32 && id.bytes().any(|digit| digit != b'0') => {
            id.to_owned()
        }
        _ => String::new(),
    }
}

fn error(state: &State) -> String {
    let run = state.run().map(ToString::to_string).unwrap_or_default();
    let mut text = match (state.stuck(), state.undoing_waits(), state.failure()) {
        (Some((step, failure)), _, _) => {
            format!(
                "{step} can't be undone: {failure}; put that right and have it undone (`haulage saga retry {run}`, or submit \
                 it again), or leave it as it is (`haulage saga abandon {run} --reason TEXT`)"
            )
        }
        (None, Some((step, away)), Some(failure)) => {
            format!(
                "{failure}; undoing {step} waits and is tried again: {away}; if that is gone for good, leave the step as it \
                 is (`haulage saga abandon {run} --reason TEXT`)"
            )
        }
        (None, Some((step, away)), None) => {
            format!(
                "it can't be reverted, and letting go of load {} waits and is tried again: {away}; if that is gone for good, \
                 give it up (`haulage saga abandon {run} --reason TEXT`)",
                step.load
            )
        }
        (None, _, Some(failure)) => failure.message.clone(),
        (None, _, None) => String::new(),
    };
    let left: Vec<String> = state.abandoned().map(ToString::to_string).collect();
    if !left.is_empty() {
        text.push_str(&format!("; abandoned, and not undone: {}", left.join(", ")));
    }
    text
}

fn stage(state: &State, planned: &PlannedStage, live: &Live) -> v1::Stage {
    let mut stage = v1::Stage {
        name: planned.source.clone(),
        chunks: u32::try_from(planned.chunks.len()).unwrap_or(u32::MAX),
        bytes: planned.chunks.iter().map(|spec| spec.bytes).sum(),
        ..v1::Stage::default()
    };
    for spec in &planned.chunks {
        if let Some(report) = state.chunk_report(spec.chunk) {
            stage.chunks_done += 1;
            stage.rows_read += report.counts.read;
            stage.bytes_read += report.counts.bytes;
        } else if let Some(counts) = live.get(&spec.chunk) {
            stage.rows_read += counts.read;
            stage.bytes_read += counts.bytes;
        }
    }
    let running = state
        .in_flight()
        .filter(|(work, _, _)| matches!(work, Work::Chunk(id) if id.stage == planned.stage));
    stage.chunks_running = u32::try_from(running.count()).unwrap_or(u32::MAX);
    stage
}

fn check(result: &CheckResult) -> v1::Check {
    v1::Check {
        name: result.name.clone(),
        holds: result.holds,
        blocks: result.blocks,
        found: result.found.clone(),
        set_aside: result.set_aside,
    }
}

fn loads(state: &State, submission: &Submission, total: &Counts) -> Vec<v1::Load> {
    let load = |outline: &LoadOutline| {
        let published = state.step_report(StepKind::Publish, &outline.name);
        let counts = total.loads.get(outline.name.as_str()).copied().unwrap_or_default();
        v1::Load {
            name: outline.name.to_string(),
            destination: outline.destination.clone(),
            table: outline.table.clone(),
            staged: counts.loaded,
            published: published.map_or(0, |report| report.rows),
            detail: published.map(|report| report.detail.clone()).unwrap_or_default(),
            read: counts.passed + counts.filtered + counts.rejected,
            passed: counts.passed,
            filtered: counts.filtered,
            rejected: counts.rejected,
            multiplied: counts.multiplied,
            checks: state.checks(&outline.name).iter().map(check).collect(),
            set_aside: state.set_aside().get(&outline.name).map_or(0, |aside| aside.rows),
        }
    };
    submission.loads.iter().map(load).collect()
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::{ChunkReport, ChunkSpec, LoadCounts, Position};
    use haulage_core::event::StepReport;
    use haulage_core::ids::{Attempt, LoadName, NodeName, RunId, StageId, StepId};

    use super::*;

    fn counts_of(read: u64) -> Counts {
        let loads = BTreeMap::from([(
            "l".to_owned(),
            LoadCounts {
                loaded: read,
                passed: read,
                ..LoadCounts::default()
            },
        )]);
        Counts {
            read,
            bytes: read * 10,
            loads,
            ..Counts::default()
        }
    }

    fn spec(index: u32) -> ChunkSpec {
        ChunkSpec {
            chunk: ChunkId {
                stage: StageId(0),
                index,
            },
            source: "raw".into(),
            object: "a.csv".into(),
            version: "1".into(),
            start: Position::default(),
            end: None,
            bytes: 100,
            window: None,
        }
    }

    fn log() -> Vec<Event> {
        let submission = Submission {
            pipeline: "p".into(),
            definition: String::new(),
            file: "p.yaml".into(),
            base: "/".into(),
            params: BTreeMap::from([("day".into(), "1".into())]),
            loads: vec![LoadOutline {
                name: LoadName::from("l"),
                destination: "w".into(),
                table: "t".into(),
            }],
            places: BTreeMap::new(),
            incremental: false,
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            replay: None,
        };
        let at = Millis(5);
        let chunk = Work::Chunk(spec(0).chunk);
        let assigned = |work: &Work| Event::Assigned {
            work: work.clone(),
            attempt: Attempt(1),
            node: NodeName::from("n"),
            at,
        };
        let stage = PlannedStage {
            stage: StageId(0),
            source: "raw".into(),
            steps: vec![],
            loads: vec![LoadName::from("l")],
            chunks: vec![spec(0), spec(1)],
            advances: Vec::new(),
            columns: Default::default(),
        };
        let report = ChunkReport {
            counts: counts_of(7),
            segments: 1,
            resumed: 0,
            rejects: vec![],
            restarts: 2,
            continued: false,
            bytes_read_again: 0,
        };
        vec![
            haulage_core::run::submitted(RunId::from("p-1"), submission, None, at),
            assigned(&Work::Discover),
            Event::Planned {
                attempt: Attempt(1),
                stages: vec![stage],
                at,
            },
            assigned(&chunk),
            Event::ChunkStaged {
                work: chunk,
                attempt: Attempt(1),
                report,
                at,
            },
            assigned(&Work::Chunk(spec(1).chunk)),
        ]
    }

    #[test]
    fn progress_adds_to_what_finished_chunks_reported() {
        let state = State::fold(&log());
        let live = BTreeMap::from([(spec(1).chunk, counts_of(3)), (spec(0).chunk, counts_of(0))]);
        let run = run(&state, Seq(6), &live);
        let stage = &run.stages[0];
        assert_eq!((stage.chunks, stage.chunks_done, stage.chunks_running), (2, 1, 1));
        assert_eq!((stage.rows_read, stage.bytes_read, stage.bytes), (10, 100, 200));
        assert_eq!(
            run.counts.as_ref().map(|counts| (counts.read, counts.loaded)),
            Some((10, 10))
        );
        assert_eq!((run.loads[0].staged, run.loads[0].published), (10, 0));
        assert_eq!((run.seq, run.restarts, run.finished_at), (6, 2, 0));
        assert_eq!(run.trace_id, "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_reverted_publish_counts_no_rows() {
        let mut state = State::fold(&log());
        let step = StepId {
            kind: StepKind::Publish,
            load: LoadName::from("l"),
        };
        let report = StepReport {
            rows: 9,
            detail: "9 rows in t".into(),
            ..StepReport::default()
        };
        state.apply(&Event::StepDone {
            step: step.clone(),
            attempt: Attempt(1),
            report,
            at: Millis(6),
        });
        assert_eq!(run(&state, Seq(7), &Live::new()).loads[0].published, 9);
        state.apply(&Event::Compensated {
            step,
            attempt: Attempt(1),
            detail: String::new(),
            at: Millis(7),
        });
        assert_eq!(run(&state, Seq(8), &Live::new()).loads[0].published, 0);
    }

    #[test]
    fn only_a_real_traceparent_has_a_trace_id() {
        for (text, expected) in [
            ("", ""),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", ""),
            ("00-short-b7ad6b7169203331-01", ""),
            (
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "0af7651916cd43dd8448eb211c80319c",
            ),
        ] {
            assert_eq!(trace_id(text), expected, "{text:?}");
        }
    }
}
