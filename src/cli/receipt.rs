//! `haulage receipt`: what a run has read, left out and written, chunk by chunk, from its log.

use anyhow::Result;
use haulage_proto::v1::{ChunkReceipt, Entry, GetReceiptRequest, LoadReceipt, Receipt};
use serde_json::{Value, json};

use crate::api::{self, Explain as _};
use crate::cli::{Globals, reach};
use crate::exit::{Exit, Usage};
use crate::output::table::{Align, one_line, render, visible};
use crate::output::{Output, human, json as common};

const AFTER_HELP: &str = "\
Examples:
  haulage receipt flights-0a1b2c3d4e
  haulage receipt flights-0a1b2c3d4e --load flights
  haulage receipt flights-0a1b2c3d4e --output json    one document, with versions, checksums and a sum for each column

For each chunk: the object and the part of it, rows read, filtered, rejected and staged, and a checksum over the staged
rows. Checksums hang neither on the order of rows nor on how they were cut: those of chunks add up to the load's. They
are made as rows are written, and those of rows that checks set aside are taken off the load's; `haulage verify RUN` makes them again from the table.";

/// Arguments of `receipt`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Only this load
    #[arg(long, value_name = "LOAD")]
    load: Option<String>,
}

/// Shows the receipt.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let mut reach = reach::reader(globals).await?;
    let request = GetReceiptRequest { run_id: args.run };
    let mut receipt = reach
        .client
        .get_receipt(api::call(request))
        .await
        .explained()?
        .into_inner();
    if let Some(wanted) = &args.load {
        let names: Vec<String> = receipt.loads.iter().map(|load| load.name.clone()).collect();
        receipt.loads.retain(|load| load.name == *wanted);
        if receipt.loads.is_empty() {
            return Err(Usage(format!("the run has no load {wanted}; it has: {}", names.join(", "))).into());
        }
    }
    if output.is_json() {
        output.json(&document(&receipt))?;
        return Ok(Exit::Success);
    }
    output.line(format!(
        "{}: {}, {} (definition {})",
        receipt.run_id,
        word(&receipt),
        one_line(&receipt.file),
        receipt.definition
    ))?;
    if !receipt.replays.is_empty() {
        output.line(format!("replays rejected rows of {}", receipt.replays))?;
    }
    if !receipt.trace_id.is_empty() {
        output.line(format!("trace {}", receipt.trace_id))?;
    }
    for load in &receipt.loads {
        show(load, output)?;
    }
    Ok(Exit::Success)
}

/// The state in a word.
pub(super) fn word(receipt: &Receipt) -> String {
    receipt.state().as_str_name().to_ascii_lowercase().replace('_', " ")
}

/// Which part of its object a chunk is: `from..to`, in bytes, rows or places.
pub(super) fn range(chunk: &ChunkReceipt) -> String {
    let end = chunk.end.map(|end| end.to_string()).unwrap_or_default();
    format!("{}..{end}", chunk.start)
}

/// What is known of the object that the chunk is of: its version, or how its table is read.
pub(super) fn version(chunk: &ChunkReceipt) -> String {
    haulage_node::source::version_in_words(&chunk.version).unwrap_or_else(|| chunk.version.clone())
}

fn show(load: &LoadReceipt, output: Output) -> std::io::Result<()> {
    output.line("")?;
    output.line(format!(
        "load {} to {} of {}",
        load.name,
        one_line(&load.table),
        load.destination
    ))?;
    let columns = [
        ("chunk", Align::Left),
        ("object", Align::Left),
        ("part", Align::Left),
        ("read", Align::Right),
        ("filtered", Align::Right),
        ("rejected", Align::Right),
        ("staged", Align::Right),
        ("checksum", Align::Left),
    ];
    let line = |first: [String; 3], entry: &Entry| {
        let [chunk, object, part] = first;
        let numbers = [entry.read, entry.filtered, entry.rejected, entry.staged];
        let mut line = vec![chunk, object, part];
        line.extend(numbers.map(human::count));
        line.push(entry.checksum.as_ref().map_or("none".to_owned(), |sum| sum.sum.clone()));
        line
    };
    let mut rows = Vec::new();
    for chunk in &load.chunks {
        let first = [chunk.chunk.clone(), one_line(&chunk.object), range(chunk)];
        rows.push(line(first, chunk.entry.as_ref().unwrap_or(&Entry::default())));
    }
    let total = load.total.clone().unwrap_or_default();
    rows.push(line(["total".to_owned(), String::new(), String::new()], &total));
    output.line(render(&columns, rows))?;
    if load.set_aside > 0 {
        output.line(format!(
            "{} of the staged set aside by checks; the total's checksum is that of the others",
            human::counted(load.set_aside, "row")
        ))?;
    }
    if load.published_at > 0 {
        output.line(format!(
            "published {}: {}",
            human::moment(load.published_at),
            visible(&load.detail)
        ))?;
    }
    Ok(())
}

fn document(receipt: &Receipt) -> Value {
    let load = |load: &LoadReceipt| {
        json!({
            "load": load.name,
            "destination": load.destination,
            "table": load.table,
            "chunks": load.chunks.iter().map(chunk).collect::<Vec<_>>(),
            "total": load.total.as_ref().map(entry),
            "set_aside": load.set_aside,
            "published": load.published,
            "published_at": (load.published_at > 0).then_some(load.published_at),
            "detail": load.detail,
        })
    };
    json!({
        "run_id": receipt.run_id,
        "pipeline": receipt.pipeline,
        "file": receipt.file,
        "definition": receipt.definition,
        "trace_id": (!receipt.trace_id.is_empty()).then_some(&receipt.trace_id),
        "state": word(receipt),
        "submitted_at": receipt.submitted_at,
        "finished_at": (receipt.finished_at > 0).then_some(receipt.finished_at),
        "replays": (!receipt.replays.is_empty()).then_some(&receipt.replays),
        "loads": receipt.loads.iter().map(load).collect::<Vec<_>>(),
    })
}

fn chunk(chunk: &ChunkReceipt) -> Value {
    json!({
        "chunk": chunk.chunk,
        "source": chunk.source,
        "object": chunk.object,
        "version": version(chunk),
        "start": chunk.start,
        "start_line": chunk.start_line,
        "end": chunk.end,
        "attempt": chunk.attempt,
        "rows": chunk.entry.as_ref().map(entry),
    })
}

fn entry(entry: &Entry) -> Value {
    json!({
        "read": entry.read,
        "passed": entry.passed,
        "filtered": entry.filtered,
        "rejected": entry.rejected,
        "multiplied": entry.multiplied,
        "staged": entry.staged,
        "checksum": entry.checksum.as_ref().map(checksum),
    })
}

/// A checksum with a sum for each column, in the order of their names.
pub(super) fn checksum(sum: &haulage_proto::v1::Checksum) -> Value {
    let columns: serde_json::Map<String, Value> = common::sorted(&sum.columns)
        .into_iter()
        .map(|(name, sum)| (name.clone(), Value::from(sum.clone())))
        .collect();
    json!({"rows": sum.rows, "sum": sum.sum, "columns": columns})
}
