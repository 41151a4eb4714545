//! `haulage why`: where a row of a table is from. The destination says run, chunk and line, if the load has `provenance`;
//! the run's receipt says the rest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use haulage_node::receipt;
use haulage_proto::link::message::LookUp;
use haulage_proto::v1::{
    ChunkReceipt, FoundRow, GetReceiptRequest, KeyPart, ListRunsRequest, LookUpRequest, LookUpResponse, Receipt, Run,
};
use serde_json::{Value, json};

use crate::api::{self, Client, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::receipt::{range, version, word};
use crate::cli::{Globals, reach};
use crate::embedded;
use crate::exit::{Exit, Usage};
use crate::output::table::{one_line, visible};
use crate::output::{Output, human, note};

const AFTER_HELP: &str = "\
Examples:
  haulage why public.flights flight_id=1234
  haulage why public.flights 1234                  the parts of the table's key, in order
  haulage why public.orders day=2013-01-31 id=7 --to warehouse --output json

Says the run that wrote the row last, its source, the object and the line there, the version of the pipeline file, and the
trace. Rows say so themselves if their load has `provenance: true`, which adds the columns _haulage_run, _haulage_chunk and
_haulage_line; without it only the runs that have published to the table are named.
Several rows may match: up to --limit of them are shown. The exit code is 1 if there is none, or if it can't be told.";

/// Runs that are looked through for the table.
const RUNS: u32 = 500;

/// Arguments of `why`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The table, as the pipeline file names it
    #[arg(value_name = "TABLE")]
    table: String,
    /// Which row: COLUMN=VALUE, or the values of the table's key in order (one that holds a = as =VALUE)
    #[arg(value_name = "KEY", required = true)]
    key: Vec<String>,
    /// The destination, where several have such a table
    #[arg(long, value_name = "DESTINATION")]
    to: Option<String>,
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    node: NodeOptions,
}

/// A row with the receipt of its run.
struct Origin<'a> {
    row: &'a FoundRow,
    receipt: Option<&'a Receipt>,
    /// The chunk of its source that it was read in; of a replayed row that of the run which had rejected it first. `None`
    /// if no receipt knows it.
    read_in: Option<ChunkReceipt>,
}

/// Says where rows are from.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let mut reach = reach::reader(globals).await?;
    let request = ListRunsRequest {
        limit: RUNS,
        ..ListRunsRequest::default()
    };
    let runs = reach
        .client
        .list_runs(api::call(request))
        .await
        .explained()?
        .into_inner()
        .runs;
    let (destination, table) = target(&args, &runs)?;
    let key: Vec<(String, String)> = args.key.iter().map(|text| part(text)).collect();
    let found = if globals.coordinator.is_some() {
        args.node.refuse_destinations()?;
        let parts = key.into_iter().map(|(column, value)| KeyPart { column, value });
        let request = LookUpRequest {
            destination: destination.clone(),
            table: table.clone(),
            key: parts.collect(),
            limit: args.limit,
        };
        reach.client.look_up(request).await.explained()?.into_inner()
    } else {
        let config = embedded::node_config(&reach::existing_home(globals)?, &args.node)?;
        let asked = LookUp {
            destination: destination.clone(),
            place: None,
            table: table.clone(),
            key,
            limit: args.limit,
        };
        haulage_proto::receipt::looked(receipt::look_up(config, &asked).await?)
    };
    let receipts = receipts(&mut reach.client, &found).await?;
    let mut origins = Vec::with_capacity(found.rows.len());
    let mut rejecting = receipts.clone();
    for row in &found.rows {
        origins.push(Origin {
            row,
            receipt: receipts.get(&row.run_id),
            read_in: read_in(&mut reach.client, &mut rejecting, &row.run_id, &row.chunk).await?,
        });
    }
    let known = !origins.is_empty() && origins.iter().all(|origin| origin.row.line.is_some());
    if output.is_json() {
        output.json(&document(&found, &destination, &origins))?;
    } else {
        for origin in &origins {
            show(origin, &found, output)?;
        }
        close(&args, &found, &origins, output)?;
    }
    Ok(if known { Exit::Success } else { Exit::Failed })
}

/// `COLUMN=VALUE`, or a value alone.
fn part(text: &str) -> (String, String) {
    match text.split_once('=') {
        Some((column, value)) => (column.to_owned(), value.to_owned()),
        None => (String::new(), text.to_owned()),
    }
}

/// The destination and the table there, from what runs have loaded.
fn target(args: &Args, runs: &[Run]) -> Result<(String, String)> {
    let plain = |table: &str| {
        let table = table
            .strip_prefix("public.")
            .or_else(|| table.strip_prefix("main."))
            .unwrap_or(table);
        table.to_owned()
    };
    let mut places: BTreeSet<(String, String)> = BTreeSet::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for load in runs.iter().flat_map(|run| &run.loads) {
        known.insert(&load.table);
        if load.table == args.table || plain(&load.table) == plain(&args.table) {
            places.insert((load.destination.clone(), load.table.clone()));
        }
    }
    if let Some(to) = &args.to {
        let there = places.into_iter().find(|(destination, _)| destination == to);
        return Ok(there.unwrap_or_else(|| (to.clone(), args.table.clone())));
    }
    let destinations: BTreeSet<&str> = places.iter().map(|(destination, _)| destination.as_str()).collect();
    match destinations.len() {
        0 => {
            let help = haulage_plan::did_you_mean(&args.table, known.iter().copied());
            let help = help.unwrap_or_else(|| match known.len() {
                0 => "no run has loaded any table".to_owned(),
                _ => format!("runs have loaded: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
            });
            Err(Usage(format!(
                "no run here has loaded a table {}; {help}; or name its destination with --to",
                args.table
            ))
            .into())
        }
        1 => Ok(places.into_iter().next().unwrap_or_default()),
        _ => {
            let names: Vec<&str> = destinations.into_iter().collect();
            Err(Usage(format!(
                "several destinations have a table {}: {}; say which with --to",
                args.table,
                names.join(", ")
            ))
            .into())
        }
    }
}

/// The receipts of the runs that the rows name, as far as this ledger knows them.
async fn receipts(client: &mut Client, found: &LookUpResponse) -> Result<BTreeMap<String, Receipt>> {
    let mut receipts = BTreeMap::new();
    let names: BTreeSet<&str> = found.rows.iter().map(|row| row.run_id.as_str()).collect();
    for run in names.into_iter().filter(|run| !run.is_empty()) {
        if let Some(receipt) = receipt_of(client, run).await? {
            receipts.insert(run.to_owned(), receipt);
        }
    }
    Ok(receipts)
}

/// `None` if the run is of another ledger: the row names it all the same.
async fn receipt_of(client: &mut Client, run: &str) -> Result<Option<Receipt>> {
    let request = GetReceiptRequest { run_id: run.to_owned() };
    match client.get_receipt(api::call(request)).await {
        Ok(receipt) => Ok(Some(receipt.into_inner())),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(api::explain(&status)),
    }
}

/// The chunk of a source that a run's chunk is from. A replay has read what another run had rejected, and the name of that
/// says run and chunk; the other may have been a replay, too.
async fn read_in(
    client: &mut Client,
    receipts: &mut BTreeMap<String, Receipt>,
    run: &str,
    chunk: &str,
) -> Result<Option<ChunkReceipt>> {
    let (mut run, mut chunk) = (run.to_owned(), chunk.to_owned());
    // Each is of a run that was there before.
    let mut passed = BTreeSet::new();
    while passed.insert(run.clone()) {
        if !receipts.contains_key(&run) {
            let Some(receipt) = receipt_of(client, &run).await? else {
                return Ok(None);
            };
            receipts.insert(run.clone(), receipt);
        }
        let Some(receipt) = receipts.get(&run) else {
            return Ok(None);
        };
        let mut chunks = receipt.loads.iter().flat_map(|load| &load.chunks);
        let Some(found) = chunks.find(|found| found.chunk == chunk) else {
            return Ok(None);
        };
        if receipt.replays.is_empty() {
            return Ok(Some(found.clone()));
        }
        let Some(rejecting) = rejected_in(&found.object) else {
            return Ok(None);
        };
        (run, chunk) = rejecting;
    }
    Ok(None)
}

/// The run and its chunk that have put rows under a name of the quarantine: `runs/RUN/chunks/STAGE-INDEX/...`.
fn rejected_in(object: &str) -> Option<(String, String)> {
    let (run, rest) = object.strip_prefix("runs/")?.split_once("/chunks/")?;
    let (stage, index) = rest.split('/').next()?.split_once('-')?;
    Some((run.to_owned(), format!("{stage}.{index}")))
}

fn key_of(row: &FoundRow) -> String {
    let parts = row.key.iter().map(|part| format!("{}={}", part.column, part.value));
    visible(&parts.collect::<Vec<_>>().join(" "))
}

fn show(origin: &Origin<'_>, found: &LookUpResponse, output: Output) -> Result<()> {
    let fact = |name: &str, value: &str| output.line(format!("  {name:<11} {}", visible(value)));
    output.line(format!("{}  {}", one_line(&found.table), key_of(origin.row)))?;
    if origin.row.run_id.is_empty() {
        fact("run", "unknown: the row says nothing of it")?;
        return Ok(());
    }
    let Some(receipt) = origin.receipt else {
        fact("run", &format!("{}, which this ledger doesn't know", origin.row.run_id))?;
        fact("chunk", &origin.row.chunk)?;
        return Ok(());
    };
    let chunk = chunk_of(origin);
    let published = chunk.map_or(0, |(published, _)| published);
    let mut run = format!("{}, {}", receipt.run_id, word(receipt));
    if published > 0 {
        run.push_str(&format!(" {}", human::moment(published)));
    }
    fact("run", &run)?;
    if let Some((_, chunk)) = chunk {
        let line = origin.row.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let source = match &origin.read_in {
            Some(read) => format!("{}: {}{line}", read.source, read.object),
            // The line is that of the file, which the rejected row names.
            None => format!("{}{line} of the object that the rejected row names", chunk.source),
        };
        fact("source", &source)?;
        if !receipt.replays.is_empty() {
            let rejected = format!("a rejected row of run {} in {}", receipt.replays, chunk.object);
            fact("replayed", &rejected)?;
        }
        let part = match haulage_node::source::version_in_words(&chunk.version) {
            Some(words) => words,
            None => format!("{}, version {}", range(chunk), chunk.version),
        };
        fact("chunk", &format!("{}, {part}", chunk.chunk))?;
    }
    fact("definition", &format!("{} ({})", receipt.definition, receipt.file))?;
    if !receipt.trace_id.is_empty() {
        fact("trace", &receipt.trace_id)?;
    }
    Ok(())
}

/// When the row's load was published, and the chunk that the row is from.
fn chunk_of<'a>(origin: &Origin<'a>) -> Option<(u64, &'a haulage_proto::v1::ChunkReceipt)> {
    let loads = origin.receipt?.loads.iter();
    let mut chunks = loads.flat_map(|load| load.chunks.iter().map(|chunk| (load.published_at, chunk)));
    chunks.find(|(_, chunk)| chunk.chunk == origin.row.chunk)
}

fn close(args: &Args, found: &LookUpResponse, origins: &[Origin<'_>], output: Output) -> Result<()> {
    if origins.is_empty() {
        note(format!("no row of {} has {}", found.table, args.key.join(" ")));
    }
    if found.more {
        note(format!("there are more rows; --limit shows more than {}", args.limit));
    }
    if found.provenance && !origins.is_empty() {
        return Ok(());
    }
    if !found.provenance {
        note(format!(
            "rows of {} don't say where they are from; `provenance: true` on the load adds that to the rows of later runs",
            found.table
        ));
    }
    for publisher in &found.publishers {
        output.line(format!(
            "  published by run {} (load {}, {}, {})",
            publisher.run_id, publisher.load, publisher.mode, publisher.at
        ))?;
    }
    Ok(())
}

fn document(found: &LookUpResponse, destination: &str, origins: &[Origin<'_>]) -> Value {
    let row = |origin: &Origin<'_>| {
        let row = origin.row;
        let key: serde_json::Map<String, Value> = row
            .key
            .iter()
            .map(|part| (part.column.clone(), Value::from(part.value.clone())))
            .collect();
        let chunk = chunk_of(origin);
        let read = origin.read_in.as_ref();
        let is_replay = origin.receipt.is_some_and(|receipt| !receipt.replays.is_empty());
        json!({
            "key": key,
            "run_id": (!row.run_id.is_empty()).then_some(&row.run_id),
            "chunk": (!row.chunk.is_empty()).then_some(&row.chunk),
            "line": row.line,
            "source": read.or(chunk.map(|(_, chunk)| chunk)).map(|chunk| &chunk.source),
            "object": read.map(|chunk| &chunk.object),
            "version": read.map(version),
            "rejected_in": chunk.filter(|_| is_replay).map(|(_, chunk)| &chunk.object),
            "replays": origin.receipt.map(|receipt| &receipt.replays).filter(|run| !run.is_empty()),
            "state": origin.receipt.map(word),
            "published_at": chunk.map(|(published, _)| published),
            "pipeline": origin.receipt.map(|receipt| &receipt.pipeline),
            "definition": origin.receipt.map(|receipt| &receipt.definition),
            "file": origin.receipt.map(|receipt| &receipt.file),
            "trace_id": origin.receipt.map(|receipt| &receipt.trace_id).filter(|id| !id.is_empty()),
        })
    };
    let publishers: Vec<Value> = found
        .publishers
        .iter()
        .map(|publisher| {
            json!({
                "run_id": publisher.run_id,
                "load": publisher.load,
                "mode": publisher.mode,
                "at": publisher.at,
            })
        })
        .collect();
    json!({
        "table": found.table,
        "destination": destination,
        "provenance": found.provenance,
        "rows": origins.iter().map(row).collect::<Vec<_>>(),
        "more": found.more,
        "publishers": publishers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_quarantine_says_run_and_chunk() {
        let pair = Some(("flights-0011223344-2".to_owned(), "1.12".to_owned()));
        let key = "runs/flights-0011223344-2/chunks/1-12/a3/s7.rejects.jsonl.zst";
        assert_eq!(rejected_in(key), pair);
        assert_eq!(rejected_in("/srv/runs/a/chunks/1-2"), None);
        assert_eq!(rejected_in("runs/a/b"), None);
    }

    #[test]
    fn a_key_is_a_column_with_its_value_or_a_value_alone() {
        for (text, column, value) in [
            ("id=7", "id", "7"),
            ("7", "", "7"),
            ("=a=b", "", "a=b"),
            ("name=a=b", "name", "a=b"),
            ("id=", "id", ""),
        ] {
            assert_eq!(part(text), (column.to_owned(), value.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_table_is_found_by_its_name_and_a_slip_is_told() {
        let run = |loads: &[(&str, &str)]| Run {
            loads: loads
                .iter()
                .map(|(to, table)| haulage_proto::v1::Load {
                    destination: (*to).into(),
                    table: (*table).into(),
                    ..Default::default()
                })
                .collect(),
            ..Run::default()
        };
        #[derive(clap::Parser)]
        struct Probe {
            #[command(flatten)]
            args: Args,
        }
        let args = |table: &str, more: &[&str]| {
            let line = ["why", table, "1"].into_iter().chain(more.iter().copied());
            <Probe as clap::Parser>::parse_from(line).args
        };
        let runs = [
            run(&[("w", "public.flights")]),
            run(&[("w", "orders"), ("side", "orders")]),
        ];
        let found = |table: &str, more: &[&str]| target(&args(table, more), &runs).map_err(|error| error.to_string());
        let pair = |to: &str, table: &str| Ok((to.to_owned(), table.to_owned()));
        assert_eq!(found("flights", &[]), pair("w", "public.flights"));
        assert_eq!(found("public.flights", &[]), pair("w", "public.flights"));
        assert_eq!(found("orders", &["--to", "side"]), pair("side", "orders"));
        assert!(found("orders", &[]).is_err_and(|error| error.contains("side, w; say which with --to")));
        assert!(found("public.flight", &[]).is_err_and(|error| error.contains("public.flights")));
    }
}
