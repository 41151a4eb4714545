//! `haulage rejects`: the quarantined rows of a run, through the coordinator, or from the home's own checkpoint folder.
//!
//! In a home nothing is started for it: the ledger is only read, so it also works while `haulage run` is at work there.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use haulage_core::event::Event;
use haulage_core::ids::{StepKind, Work};
use haulage_node::store;
use haulage_proto::convert;
use haulage_proto::v1::{GetRunRequest, GetRunResponse, ListRejectsRequest, Reject, Run, RunEvent};
use serde_json::Value;

use crate::api::{self, Client, Explain as _};
use crate::cli::{Globals, reach};
use crate::exit::Exit;
use crate::output::table::visible;
use crate::output::{Format, Output, Tone, human, json, note, summary};

const AFTER_HELP: &str = "\
Examples:
  haulage rejects flights-0a1b2c3d4e
  haulage rejects flights-0a1b2c3d4e --reason no_carrier --limit 20
  haulage rejects flights-0a1b2c3d4e --output json    one object a line, with file, line, column, reason and the row
  haulage rejects flights-0a1b2c3d4e --output csv     the same as a table with a header, for a spreadsheet
  haulage replay flights-0a1b2c3d4e pipeline.yaml     reads them again, once the pipeline is corrected

Reasons are the names of the pipeline's reject rules, and words like ragged, bad_int, bad_utf8 or null_in_required for
rows that could not be read. Rows that a check has set aside have the reason check:NAME; their text is the row of the load.

JSON and CSV have the row as it was: as `raw`, or if some of its bytes are no text, as `raw_hex`; of a database's row and a
load's also `values` (null is NULL) with their `columns`. `partly` says why not all of a row is kept.";

/// The header of CSV: the names that JSON has.
const COLUMNS: [&str; 14] = [
    "pipeline", "run_id", "source", "file", "line", "column", "step", "reason", "detail", "raw", "raw_hex", "columns",
    "values", "partly",
];

/// Arguments of `rejects`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Only rows with this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// At most so many rows [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Lists rejected rows.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut reach = reach::reader(globals).await?;
    let request = GetRunRequest {
        run_id: args.run.clone(),
    };
    let response = reach.client.get_run(api::call(request)).await.explained()?.into_inner();
    let mut printer = Printer {
        output: globals.output(),
        reason: args.reason.unwrap_or_default(),
        left: args.limit.unwrap_or(u64::MAX),
        shown: 0,
        headed: false,
    };
    if let Some(pruned) = response.run.as_ref().filter(|run| run.pruned_at > 0) {
        let by = if pruned.pruned_by.is_empty() {
            "somebody"
        } else {
            &pruned.pruned_by
        };
        bail!(
            "the rejected rows of run {} were pruned on {} by {by}",
            args.run,
            human::moment(pruned.pruned_at)
        );
    }
    if globals.coordinator.is_some() {
        through_coordinator(reach.client.clone(), &args.run, &mut printer).await?;
    } else {
        from_home(globals, &response, &mut printer).await?;
    }
    printer.header()?;
    printer.close(&response.run.unwrap_or_default());
    Ok(Exit::Success)
}

async fn through_coordinator(mut client: Client, run: &str, printer: &mut Printer) -> Result<()> {
    let request = ListRejectsRequest {
        run_id: run.to_owned(),
        reason: printer.reason.clone(),
    };
    let mut stream = client.list_rejects(request).await.explained()?.into_inner();
    while printer.left > 0
        && let Some(reject) = stream.message().await.explained()?
    {
        printer.print(&reject)?;
    }
    Ok(())
}

async fn from_home(globals: &Globals, response: &GetRunResponse, printer: &mut Printer) -> Result<()> {
    let folder = reach::existing_home(globals)?.checkpoints();
    if !folder.is_dir() {
        bail!("{} is gone, and the rejected rows with it", folder.display());
    }
    let Some(address) = folder.to_str() else {
        bail!("{} is not UTF-8; give --home", folder.display())
    };
    let store = store::open(address, &store::S3Settings::default()).await?;
    for key in keys(response)? {
        if printer.left == 0 {
            break;
        }
        let data = store.get(&key).await?;
        let mut rows = store::rejects::Rows::new(&key, &data[..])?;
        while printer.left > 0
            && let Some(reject) = rows.read()?
        {
            if printer.wants(&reject.reason) {
                printer.print(&convert::reject(reject))?;
            }
        }
    }
    Ok(())
}

/// The keys of the quarantine objects that the run's finished chunks reported, in the order of chunks, and behind them those
/// of the rows that checks have set aside.
fn keys(response: &GetRunResponse) -> Result<Vec<String>> {
    let mut chunks = Vec::new();
    let mut loads = BTreeMap::new();
    let tells = |event: &&RunEvent| matches!(event.kind.as_str(), "chunk_staged" | "step_done");
    for event in response.events.iter().filter(tells) {
        let parsed: Event = serde_json::from_str(&event.json)
            .with_context(|| format!("event {} of the ledger can't be read by this release", event.seq))?;
        if let Event::ChunkStaged {
            work: Work::Chunk(chunk),
            report,
            ..
        } = parsed
        {
            chunks.push((chunk, report.rejects));
        } else if let Event::StepDone { step, report, .. } = parsed
            && step.kind == StepKind::Verify
        {
            // One that was staged again is verified again.
            loads.insert(step.load, report.set_aside);
        }
    }
    chunks.sort_by_key(|(chunk, _)| *chunk);
    let of_chunks = chunks.into_iter().flat_map(|(_, keys)| keys);
    let of_loads = loads.into_values().flatten();
    Ok(of_chunks
        .chain(of_loads.flat_map(|aside| aside.keys().collect::<Vec<_>>()))
        .collect())
}

struct Printer {
    output: Output,
    reason: String,
    left: u64,
    shown: u64,
    headed: bool,
}

impl Printer {
    fn wants(&self, reason: &str) -> bool {
        self.left > 0 && (self.reason.is_empty() || self.reason == reason)
    }

    fn print(&mut self, reject: &Reject) -> Result<()> {
        if !self.wants(&reject.reason) {
            return Ok(());
        }
        self.header()?;
        self.left -= 1;
        self.shown += 1;
        if self.output.format == Format::Csv {
            let line = reject.line.to_string();
            // In one field each, as JSON has them.
            let object = json::reject(reject);
            let list = |name: &str| match &object[name] {
                Value::Null => String::new(),
                list => list.to_string(),
            };
            self.output.csv([
                reject.pipeline.as_str(),
                &reject.run_id,
                &reject.source,
                &reject.file,
                &line,
                &reject.column,
                &reject.step,
                &reject.reason,
                &reject.detail,
                &reject.raw,
                &reject.raw_hex,
                &list("columns"),
                &list("values"),
                &reject.partly,
            ])?;
        } else if self.output.is_json() {
            self.output.json(&json::reject(reject))?;
        } else {
            for line in lines(reject, self.output) {
                self.output.line(line)?;
            }
        }
        Ok(())
    }

    /// The header of CSV, before the first row and also where there is none.
    fn header(&mut self) -> Result<()> {
        if self.output.format == Format::Csv && !std::mem::replace(&mut self.headed, true) {
            self.output.csv(COLUMNS)?;
        }
        Ok(())
    }

    fn close(&self, run: &Run) {
        if self.output.is_json() {
            return;
        }
        let total = summary::rejected(run);
        match (self.shown, self.reason.as_str()) {
            (0, "") => note("no row of this run was rejected"),
            (0, reason) => note(format!(
                "no row was rejected for the reason {reason}; the whole run has {total}"
            )),
            (shown, _) => note(format!(
                "{} shown; the whole run has {total}",
                human::counted(shown, "row")
            )),
        }
    }
}

/// Two lines: where and why, and the row as it stood in the file.
fn lines(reject: &Reject, output: Output) -> [String; 2] {
    let mut why = output.paint(Tone::Warn, &reject.reason);
    if !reject.step.is_empty() && !reject.detail.contains(&format!("step {}", reject.step)) {
        why.push_str(&format!("  step {}", reject.step));
    }
    if !reject.column.is_empty() {
        why.push_str(&format!("  column {}", visible(&reject.column)));
    }
    if !reject.detail.is_empty() {
        why.push_str(&format!("  {}", visible(&reject.detail)));
    }
    let raw = output.paint(Tone::Faint, &visible(&reject.raw));
    let place = match reject.line {
        // Of a row of a load.
        0 => visible(&reject.file),
        line => format!("{}:{line}", visible(&reject.file)),
    };
    [format!("{place}  {why}"), format!("    {raw}")]
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::{ChunkReport, Counts};
    use haulage_core::ids::{Attempt, ChunkId, Millis, StageId};

    use super::*;

    #[test]
    fn keys_follow_the_order_of_chunks_and_not_of_events() {
        let staged = |index, key: &str| {
            let event = Event::ChunkStaged {
                work: Work::Chunk(ChunkId {
                    stage: StageId(0),
                    index,
                }),
                attempt: Attempt(1),
                report: ChunkReport {
                    counts: Counts::default(),
                    segments: 1,
                    resumed: 0,
                    rejects: vec![key.to_owned()],
                    restarts: 0,
                    continued: false,
                    bytes_read_again: 0,
                },
                at: Millis(0),
            };
            RunEvent {
                kind: "chunk_staged".into(),
                json: serde_json::to_string(&event).expect("plain data"),
                ..Default::default()
            }
        };
        let other = RunEvent {
            kind: "assigned".into(),
            json: "{}".into(),
            ..Default::default()
        };
        let response = GetRunResponse {
            run: None,
            events: vec![staged(2, "c"), other, staged(0, "a"), staged(1, "b")],
        };
        assert_eq!(keys(&response).expect("readable"), ["a", "b", "c"]);
    }

    #[test]
    fn a_row_from_a_file_cannot_steer_the_terminal() {
        let reject = Reject {
            file: "a.csv".into(),
            line: 7,
            reason: "ragged".into(),
            column: String::new(),
            detail: "3 fields, expected 4".into(),
            raw: "x\n\x1b[2Jy".into(),
            ..Default::default()
        };
        let [first, second] = lines(&reject, Output::new(Format::Json));
        assert_eq!(first, "a.csv:7  ragged  3 fields, expected 4");
        assert_eq!(second, "    x\\n\\u{1b}[2Jy");
    }
}
