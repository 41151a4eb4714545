//! `haulage verify`: a run's receipt held against its tables, by a node of the cluster, or from here when there is none.

use anyhow::{Context as _, Result, bail};
use haulage_core::event::Event;
use haulage_core::receipt::{Receipt, Verdict};
use haulage_node::receipt;
use haulage_proto::link::message::VerifyLoad;
use haulage_proto::v1::load_verdict::Answer;
use haulage_proto::v1::{GetRunRequest, LoadVerdict, VerifyRunRequest};
use serde_json::{Value, json};

use crate::api::{self, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::receipt::checksum;
use crate::cli::{Globals, reach};
use crate::embedded;
use crate::exit::{Exit, Usage};
use crate::output::table::{one_line, visible};
use crate::output::{Output, Tone, human};

const AFTER_HELP: &str = "\
Examples:
  haulage verify flights-0a1b2c3d4e
  haulage verify flights-0a1b2c3d4e --load flights --output json
  haulage verify flights-0a1b2c3d4e --destination warehouse=postgres://loader@db/warehouse    without a coordinator

Reads the run's rows back from each table, sums them up again and compares with the receipt: rows that are missing or too
many, columns whose values differ, values that have changed places between rows, and files that are gone, cut off, or not
those that the table's manifest should name. Nothing is written.

Which rows are the run's is known in files, where rows carry _haulage_run (mode append, or `provenance: true` on the load),
where nobody has published to the table since, and where appended keys are still kept. Where it isn't known, verify says so.
The exit code is 0 if every load holds, and 1 if one differs or can't be told.";

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Only this load
    #[arg(long, value_name = "LOAD")]
    load: Option<String>,
    #[command(flatten)]
    node: NodeOptions,
}

/// Compares, load by load.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut printer = Printer {
        output: globals.output(),
        all_hold: true,
    };
    if globals.coordinator.is_some() {
        args.node.refuse_destinations()?;
        let mut reach = reach::reader(globals).await?;
        let request = VerifyRunRequest {
            run_id: args.run,
            load: args.load.unwrap_or_default(),
        };
        let mut stream = reach.client.verify_run(request).await.explained()?.into_inner();
        while let Some(verdict) = stream.message().await.explained()? {
            printer.print(&verdict)?;
        }
    } else {
        from_home(&args, globals, &mut printer).await?;
    }
    Ok(if printer.all_hold { Exit::Success } else { Exit::Failed })
}

async fn from_home(args: &Args, globals: &Globals, printer: &mut Printer) -> Result<()> {
    let receipt = receipt_of(&args.run, globals).await?;
    if !receipt.stands() {
        bail!(
            "run {} is not published (`{}` says what became of it), and only what is published can be verified",
            receipt.run,
            globals.hint(&format!("show {}", receipt.run))
        );
    }
    let config = embedded::node_config(&reach::existing_home(globals)?, &args.node)?;
    let mut verified = 0;
    for load in &receipt.loads {
        if args.load.as_ref().is_some_and(|wanted| *wanted != load.outline.name.0) {
            continue;
        }
        verified += 1;
        let asked = VerifyLoad::of(&receipt, load);
        // That one can't be read says nothing of the others.
        let verdict = receipt::verify(config.clone(), &asked).await;
        let verdict = verdict.unwrap_or_else(|failure| Verdict::unknown(asked.rows, failure.message));
        printer.print(&haulage_proto::receipt::verdict(load, &verdict))?;
    }
    if verified == 0 {
        let names: Vec<&str> = receipt.loads.iter().map(|load| load.outline.name.as_str()).collect();
        return Err(Usage(format!("the run has no such load; it has: {}", names.join(", "))).into());
    }
    Ok(())
}

/// The receipt as core has it, from the log.
async fn receipt_of(run: &str, globals: &Globals) -> Result<Receipt> {
    let mut reach = reach::reader(globals).await?;
    let request = GetRunRequest { run_id: run.to_owned() };
    let response = reach.client.get_run(api::call(request)).await.explained()?.into_inner();
    let mut events: Vec<Event> = Vec::with_capacity(response.events.len());
    for event in &response.events {
        let parsed = serde_json::from_str(&event.json)
            .with_context(|| format!("event {} of the ledger can't be read by this release", event.seq))?;
        events.push(parsed);
    }
    Receipt::of(&events).with_context(|| format!("the log of run {run} has no beginning"))
}

struct Printer {
    output: Output,
    all_hold: bool,
}

impl Printer {
    fn print(&mut self, verdict: &LoadVerdict) -> Result<()> {
        self.all_hold &= verdict.answer() == Answer::Holds;
        if self.output.is_json() {
            self.output.json(&document(verdict))?;
            return Ok(());
        }
        let place = format!(
            "load {} in {} of {}",
            verdict.load,
            one_line(&verdict.table),
            verdict.destination
        );
        let (word, tone) = match verdict.answer() {
            Answer::Holds => ("holds", Tone::Good),
            Answer::Differs => ("DIFFERS", Tone::Bad),
            Answer::Unknown | Answer::Unspecified => ("can't be told", Tone::Warn),
        };
        let rows = match verdict.found {
            Some(found) => format!(
                ", {} of {} published",
                human::count(found),
                human::counted(verdict.published, "row")
            ),
            None => format!(", {} published", human::counted(verdict.published, "row")),
        };
        self.output
            .line(format!("{place}: {}{rows}", self.output.paint(tone, word)))?;
        for finding in &verdict.findings {
            self.output
                .line(format!("    {}", self.output.paint(tone, &visible(finding))))?;
        }
        for note in &verdict.notes {
            self.output
                .line(format!("    {}", self.output.paint(Tone::Faint, &visible(note))))?;
        }
        Ok(())
    }
}

fn document(verdict: &LoadVerdict) -> Value {
    json!({
        "load": verdict.load,
        "destination": verdict.destination,
        "table": verdict.table,
        "answer": verdict.answer().as_str_name().to_ascii_lowercase(),
        "findings": verdict.findings,
        "notes": verdict.notes,
        "published": verdict.published,
        "found": verdict.found,
        "columns": verdict.columns,
        "expected": verdict.expected.as_ref().map(checksum),
        "actual": verdict.actual.as_ref().map(checksum),
    })
}
