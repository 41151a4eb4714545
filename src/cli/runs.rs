//! `haulage runs`: the runs that the ledger knows, newest first.

use anyhow::Result;
use haulage_proto::v1::{ListRunsRequest, Run};

use crate::api::{self, Explain as _};
use crate::cli::{Globals, reach};
use crate::clock;
use crate::config::Home;
use crate::exit::Exit;
use crate::output::table::{Align, render};
use crate::output::{human, json, note};

const AFTER_HELP: &str = "\
Examples:
  haulage runs
  haulage runs --pipeline flights --limit 5
  haulage runs --output json    one object a line";

/// Arguments of `runs`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Lists runs.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let mut reach = reach::reader(globals).await?;
    let request = ListRunsRequest {
        pipeline: args.pipeline.unwrap_or_default(),
        limit: args.limit,
    };
    let runs = reach
        .client
        .list_runs(api::call(request))
        .await
        .explained()?
        .into_inner()
        .runs;
    let now = clock::now_ms();
    if output.is_json() {
        for run in &runs {
            output.json(&json::run(run, now))?;
        }
        return Ok(Exit::Success);
    }
    if runs.is_empty() {
        note("no runs yet; start one with: haulage run FILE");
        return Ok(Exit::Success);
    }
    let columns = [
        ("run", Align::Left),
        ("state", Align::Left),
        ("submitted", Align::Left),
        ("took", Align::Right),
        ("read", Align::Right),
        ("loaded", Align::Right),
        ("rejected", Align::Right),
    ];
    output.line(render(&columns, runs.iter().map(|run| row(run, now)).collect()))?;
    let left = runs.iter().filter(|run| run.finished_at == 0).count() as u64;
    let alone = globals.coordinator.is_none() && !Home::new(&globals.home)?.is_busy_elsewhere();
    if left > 0 && alone {
        note(format!(
            "{} not at rest, and no process works here: the same `haulage run` goes on with a run, `{}` undoes it",
            human::counted(left, "run"),
            globals.hint("cancel RUN")
        ));
    }
    Ok(Exit::Success)
}

fn row(run: &Run, now: u64) -> Vec<String> {
    let counts = run.counts.clone().unwrap_or_default();
    vec![
        run.run_id.clone(),
        json::state(run).replace('_', " "),
        human::moment(run.submitted_at),
        human::duration(json::elapsed_ms(run, now)),
        human::count(counts.read),
        human::count(json::loaded(run)),
        human::count(counts.rejected),
    ]
}
