//! Tables for single decisions, and properties over generated logs and every prefix of them.

mod checks;
mod generated;
mod later;
mod tables;
mod undoing;

use std::collections::BTreeMap;

use super::*;
use crate::checkpoint::{ChunkSpec, LoadCounts, Position};
use crate::ids::StageId;
use crate::submission::LoadOutline;

pub(super) fn submission(loads: &[&str]) -> Submission {
    Submission {
        pipeline: "flights".to_owned(),
        definition: "pipeline: flights".to_owned(),
        file: "pipeline.yaml".to_owned(),
        base: "/data".to_owned(),
        params: BTreeMap::new(),
        loads: loads
            .iter()
            .map(|name| LoadOutline {
                name: LoadName::from(*name),
                destination: "warehouse".to_owned(),
                table: (*name).to_owned(),
            })
            .collect(),
        places: BTreeMap::new(),
        incremental: false,
        traceparent: String::new(),
        replay: None,
    }
}

pub(super) fn chunk(index: u32) -> ChunkId {
    ChunkId {
        stage: StageId(0),
        index,
    }
}

pub(super) fn plan(loads: &[&str], chunks: u32) -> Vec<PlannedStage> {
    let spec = |index| ChunkSpec {
        chunk: chunk(index),
        source: "raw".to_owned(),
        object: "raw.csv".to_owned(),
        version: "1".to_owned(),
        start: Position {
            offset: u64::from(index) * 10,
            line: 1,
        },
        end: None,
        bytes: 10,
        window: None,
    };
    vec![PlannedStage {
        stage: StageId(0),
        source: "raw".to_owned(),
        steps: vec!["clean".to_owned()],
        loads: loads.iter().map(|load| LoadName::from(*load)).collect(),
        chunks: (0..chunks).map(spec).collect(),
        advances: Vec::new(),
        columns: Default::default(),
    }]
}

pub(super) fn report(loads: &[&str], rows: u64) -> ChunkReport {
    let load = LoadCounts {
        loaded: rows,
        passed: rows,
        ..LoadCounts::default()
    };
    ChunkReport {
        counts: Counts {
            read: rows,
            loads: loads.iter().map(|name| ((*name).to_owned(), load)).collect(),
            ..Counts::default()
        },
        segments: 1,
        resumed: 0,
        rejects: Vec::new(),
        restarts: 0,
        continued: false,
        bytes_read_again: 0,
    }
}

pub(super) fn start(loads: &[&str]) -> Vec<Event> {
    let submission = submission(loads);
    vec![submitted(submission.run_id("1ed9e4", 1), submission, None, Millis(1))]
}

/// What a node that succeeds would say about work.
pub(super) fn completion(work: &Work, loads: &[&str], chunks: u32) -> Completion {
    match work {
        Work::Discover => Completion::Discovered(plan(loads, chunks)),
        Work::Chunk(_) => Completion::Staged(report(loads, 7)),
        Work::Step(_) | Work::Compensate(_) => Completion::Stepped(StepReport::default()),
    }
}
