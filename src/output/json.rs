//! Runs, events, nodes and rejects as JSON: field names as in the public interface, numbers raw, absent things `null`.

use haulage_proto::v1::{Check, ListNodesResponse, Node, Reject, Run, RunEvent, RunState};
use serde_json::{Value, json};

use super::human;

/// Rows that the run made visible; what it only staged isn't loaded.
pub(crate) fn loaded(run: &Run) -> u64 {
    let staged = run
        .counts
        .as_ref()
        .map_or(0, |counts| counts.loaded - counts.set_aside.min(counts.loaded));
    if run.state() == RunState::Published { staged } else { 0 }
}

/// A state's word, as in the interface, in lower case: `published`, `rolling_back`.
pub(crate) fn state(run: &Run) -> String {
    match run.state() {
        RunState::Unspecified => "unknown".to_owned(),
        state => state.as_str_name().to_ascii_lowercase(),
    }
}

/// A run with its stages and loads.
pub(crate) fn run(run: &Run, now: u64) -> Value {
    let counts = run.counts.clone().unwrap_or_default();
    let elapsed = elapsed_ms(run, now);
    let mut reasons = serde_json::Map::new();
    for (reason, rows) in sorted(&counts.rejected_by_reason) {
        reasons.insert(reason.clone(), json!(rows));
    }
    let stages: Vec<Value> = run
        .stages
        .iter()
        .map(|stage| {
            json!({
                "name": stage.name,
                "chunks": stage.chunks,
                "chunks_done": stage.chunks_done,
                "chunks_running": stage.chunks_running,
                "bytes": stage.bytes,
                "rows_read": stage.rows_read,
                "bytes_read": stage.bytes_read,
            })
        })
        .collect();
    let loads: Vec<Value> = run
        .loads
        .iter()
        .map(|load| {
            json!({
                "name": load.name,
                "destination": load.destination,
                "table": load.table,
                "staged": load.staged,
                "published": load.published,
                "detail": load.detail,
                "counts": {
                    "read": load.read,
                    "passed": load.passed,
                    "filtered": load.filtered,
                    "rejected": load.rejected,
                    "multiplied": load.multiplied,
                },
                "set_aside": load.set_aside,
                "checks": load.checks.iter().map(check).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "run_id": run.run_id,
        "pipeline": run.pipeline,
        "state": state(run),
        "submitted_at": run.submitted_at,
        "finished_at": some(run.finished_at),
        "elapsed_ms": elapsed,
        "error": text(&run.error),
        "counts": {
            "read": counts.read,
            "loaded": loaded(run),
            "staged": counts.loaded,
            "set_aside": counts.set_aside,
            "rejected": counts.rejected,
            "filtered": counts.filtered,
            "multiplied": counts.multiplied,
            "bytes": counts.bytes,
            "rejected_by_reason": reasons,
        },
        "rows_per_second": human::rate(counts.read, elapsed),
        "stages": stages,
        "loads": loads,
        "retries": run.retries,
        "restarts": run.restarts,
        "bytes_read_again": run.bytes_read_again,
        "undoing": text(&run.undoing),
        "replays": text(&run.replays),
        "replayed_by": text(&run.replayed_by),
        "warnings": run.warnings,
        "pruned_at": some(run.pruned_at),
        "trace_id": text(&run.trace_id),
        "params": sorted(&run.params).into_iter().map(|(k, v)| (k.clone(), json!(v))).collect::<serde_json::Map<_, _>>(),
        "seq": run.seq,
    })
}

fn check(check: &Check) -> Value {
    json!({
        "name": check.name,
        "holds": check.holds,
        "blocks": check.blocks,
        "found": check.found,
        "set_aside": check.set_aside,
    })
}

/// An event; the ledger's own form under `event`, where it can be read.
pub(crate) fn event(event: &RunEvent) -> Value {
    json!({
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "text": event.text,
        "event": serde_json::from_str::<Value>(&event.json).ok(),
    })
}

/// Who leads, and who was asked.
pub(crate) fn leader(response: &ListNodesResponse) -> Value {
    typed(
        "leader",
        json!({
            "name": response.leader,
            "address": response.leader_address,
            "since": response.leader_since,
            "epoch": response.epoch,
            "answered_by": response.answered_by,
        }),
    )
}

/// A node.
pub(crate) fn node(node: &Node) -> Value {
    json!({
        "name": node.name,
        "state": node.state,
        "slots": node.slots,
        "running": node.running,
        "version": node.version,
        "last_heartbeat": node.last_heartbeat,
        "work": node.work,
        "destinations": node.destinations,
        "heartbeats": node.heartbeats.as_ref().map(|beats| json!({
            "count": beats.count,
            "p99_ms": beats.p99_ms,
            "max_ms": beats.max_ms,
        })),
    })
}

/// A quarantined row. Columns and values go together.
pub(crate) fn reject(reject: &Reject) -> Value {
    let values = || reject.values.iter().map(|value| &value.text).collect::<Vec<_>>();
    let has_values = !reject.values.is_empty();
    json!({
        "pipeline": reject.pipeline,
        "run_id": reject.run_id,
        "source": reject.source,
        "file": reject.file,
        "line": reject.line,
        "column": text(&reject.column),
        "step": text(&reject.step),
        "reason": reject.reason,
        "detail": reject.detail,
        "raw": reject.raw,
        "raw_hex": text(&reject.raw_hex),
        "columns": has_values.then_some(&reject.columns),
        "values": has_values.then(values),
        "partly": text(&reject.partly),
    })
}

/// The object with `"type": kind` added, for streams in which lines of several kinds follow each other.
pub(crate) fn typed(kind: &str, value: Value) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("type".to_owned(), json!(kind));
    match value {
        Value::Object(fields) => object.extend(fields),
        other => {
            object.insert("value".to_owned(), other);
        }
    }
    Value::Object(object)
}

/// How long a run took, or has taken until `now`, in milliseconds.
pub(crate) fn elapsed_ms(run: &Run, now: u64) -> u64 {
    let end = if run.finished_at == 0 { now } else { run.finished_at };
    end.saturating_sub(run.submitted_at)
}

/// The entries of a map in the order of their keys.
pub(crate) fn sorted<V>(map: &std::collections::HashMap<String, V>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    entries
}

fn some(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use haulage_proto::v1::Counts;

    use super::*;

    #[test]
    fn a_run_is_raw_numbers_and_nulls() {
        let mut sample = Run {
            run_id: "flights-1".into(),
            submitted_at: 1_000,
            ..Default::default()
        };
        sample.set_state(RunState::RollingBack);
        sample.counts = Some(Counts {
            read: 3_000,
            ..Default::default()
        });
        let value = run(&sample, 3_000);
        assert_eq!(value["state"], "rolling_back");
        assert_eq!(value["finished_at"], Value::Null);
        assert_eq!(value["error"], Value::Null);
        assert_eq!(value["elapsed_ms"], 2_000);
        assert_eq!(value["rows_per_second"], 1_500);
        assert_eq!(value["counts"]["read"], 3_000);
    }

    #[test]
    fn a_stream_line_says_what_it_is() {
        let value = typed("event", json!({"seq": 1}));
        assert_eq!(value, json!({"type": "event", "seq": 1}));
    }
}
