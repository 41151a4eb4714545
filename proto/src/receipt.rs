//! Receipts and what comes of them, as the public interface says it.

use haulage_core::checksum::Checksum;
use haulage_core::ids::RunId;
use haulage_core::receipt::{Answer, ChunkReceipt, Entry, FoundRow, LoadReceipt, Looked, Publisher, Receipt, Verdict};

use crate::{convert, v1};

/// A receipt. `state` is where its run is.
pub fn receipt(receipt: &Receipt, state: v1::RunState, submitted_at: u64) -> v1::Receipt {
    v1::Receipt {
        run_id: receipt.run.to_string(),
        pipeline: receipt.submission.pipeline.clone(),
        file: receipt.submission.file.clone(),
        definition: receipt.submission.definition_id(),
        trace_id: convert::trace_id(&receipt.submission.traceparent),
        state: state.into(),
        submitted_at,
        finished_at: receipt.finished.map_or(0, |(_, at)| at.0),
        loads: receipt.loads.iter().map(load).collect(),
        replays: receipt
            .submission
            .replay
            .as_ref()
            .map(|replay| replay.run.to_string())
            .unwrap_or_default(),
    }
}

fn load(load: &LoadReceipt) -> v1::LoadReceipt {
    let published = load.published.as_ref();
    v1::LoadReceipt {
        name: load.outline.name.to_string(),
        destination: load.outline.destination.clone(),
        table: load.outline.table.clone(),
        chunks: load.chunks.iter().map(chunk).collect(),
        total: Some(entry(&load.total)),
        published: published.map_or(0, |published| published.rows),
        published_at: published.map_or(0, |published| published.at.0),
        set_aside: load.set_aside,
        detail: published.map(|published| published.detail.clone()).unwrap_or_default(),
    }
}

fn chunk(chunk: &ChunkReceipt) -> v1::ChunkReceipt {
    v1::ChunkReceipt {
        chunk: chunk.spec.chunk.to_string(),
        source: chunk.spec.source.clone(),
        object: chunk.spec.object.clone(),
        version: chunk.spec.version.clone(),
        start: chunk.spec.start.offset,
        start_line: chunk.spec.start.line,
        end: chunk.spec.end,
        attempt: chunk.attempt.0,
        entry: Some(entry(&chunk.entry)),
    }
}

fn entry(entry: &Entry) -> v1::Entry {
    v1::Entry {
        read: entry.read,
        passed: entry.counts.passed,
        filtered: entry.counts.filtered,
        rejected: entry.counts.rejected,
        multiplied: entry.counts.multiplied,
        staged: entry.counts.loaded,
        checksum: entry.checksum.as_ref().map(checksum),
    }
}

/// A checksum, in hex.
pub fn checksum(sum: &Checksum) -> v1::Checksum {
    let columns = sum.columns.iter();
    v1::Checksum {
        rows: sum.rows,
        sum: sum.text(),
        columns: columns
            .map(|(name, sum)| (name.clone(), format!("{sum:016x}")))
            .collect(),
    }
}

/// A load's receipt held against its target.
pub fn verdict(load: &LoadReceipt, verdict: &Verdict) -> v1::LoadVerdict {
    v1::LoadVerdict {
        load: load.outline.name.to_string(),
        destination: load.outline.destination.clone(),
        table: load.outline.table.clone(),
        answer: match verdict.answer {
            Answer::Holds => v1::load_verdict::Answer::Holds,
            Answer::Differs => v1::load_verdict::Answer::Differs,
            Answer::Unknown => v1::load_verdict::Answer::Unknown,
        }
        .into(),
        findings: verdict.findings.clone(),
        notes: verdict.notes.clone(),
        published: verdict.published,
        found: verdict.found,
        columns: verdict.columns.clone(),
        expected: load.total.checksum.as_ref().map(checksum),
        actual: verdict.checksum.as_ref().map(checksum),
    }
}

/// Rows that were found by their key.
pub fn looked(looked: Looked) -> v1::LookUpResponse {
    v1::LookUpResponse {
        table: looked.table,
        provenance: looked.provenance,
        rows: looked.rows.into_iter().map(row).collect(),
        more: looked.more,
        publishers: looked.publishers.into_iter().map(publisher).collect(),
    }
}

fn row(row: FoundRow) -> v1::FoundRow {
    let part = |(column, value)| v1::KeyPart { column, value };
    v1::FoundRow {
        key: row.key.into_iter().map(part).collect(),
        run_id: row.run.unwrap_or_else(|| RunId::from("")).0,
        chunk: row.chunk.unwrap_or_default(),
        line: row.line,
    }
}

fn publisher(publisher: Publisher) -> v1::Publisher {
    v1::Publisher {
        run_id: publisher.run.0,
        load: publisher.load.to_string(),
        mode: publisher.mode,
        at: publisher.at,
    }
}
