//! `haulage show`: everything the ledger knows about one run.

use anyhow::{Result, anyhow};
use haulage_proto::v1::{GetRunRequest, GetRunResponse, Run, RunEvent};
use serde_json::Value;

use crate::api::{self, Explain as _};
use crate::cli::{Globals, reach};
use crate::clock;
use crate::exit::Exit;
use crate::output::table::{Align, one_line, render, visible};
use crate::output::{Output, Tone, human, json, summary};

const AFTER_HELP: &str = "\
Examples:
  haulage show flights-0a1b2c3d4e
  haulage show flights-0a1b2c3d4e --all            every event, not only the last and the remarkable ones
  haulage show flights-0a1b2c3d4e --output json    one document, with the events as the ledger keeps them";

/// So many of the last events are shown without `--all`.
const LAST: usize = 12;
/// Kinds of events that are always shown: they explain what is out of the ordinary.
const REMARKABLE: [&str; 13] = [
    "submitted",
    "planned",
    "attempt_failed",
    "restaged",
    "cancel_requested",
    "rollback_started",
    "stuck",
    "unstuck",
    "abandoned",
    "revert_requested",
    "revert_refused",
    "rejects_pruned",
    "finished",
];

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Show every event
    #[arg(long)]
    all: bool,
}

/// Shows a run.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let mut reach = reach::reader(globals).await?;
    let request = GetRunRequest {
        run_id: args.run.clone(),
    };
    let GetRunResponse { run, events } = reach.client.get_run(api::call(request)).await.explained()?.into_inner();
    let run = run.ok_or_else(|| anyhow!("the coordinator knows nothing about run {}", args.run))?;
    let now = clock::now_ms();
    if output.is_json() {
        let mut document = json::run(&run, now);
        if let Value::Object(fields) = &mut document {
            fields.insert("events".into(), events.iter().map(json::event).collect());
        }
        output.json(&document)?;
        return Ok(Exit::Success);
    }
    let rejects = globals.hint(&format!("rejects {}", run.run_id));
    for line in summary::lines(&run, now, output, &rejects) {
        output.line(line)?;
    }
    facts(&run, globals, output, now)?;
    stages(&run, output)?;
    checks(&run, output)?;
    log(&events, args.all, output)?;
    Ok(Exit::Success)
}

fn facts(run: &Run, globals: &Globals, output: Output, now: u64) -> std::io::Result<()> {
    let fact = |name: &str, value: &str| output.line(format!("  {name:<10} {value}"));
    fact(
        "submitted",
        &format!(
            "{} ({})",
            human::moment(run.submitted_at),
            human::ago(run.submitted_at, now)
        ),
    )?;
    if !run.replays.is_empty() {
        fact("replays", &format!("the rejected rows of {}", run.replays))?;
    }
    if !run.replayed_by.is_empty() {
        let left = globals.hint(&format!("rejects {}", run.replayed_by));
        fact("replayed", &format!("by {}; what is left: {left}", run.replayed_by))?;
    }
    for (name, value) in json::sorted(&run.params) {
        fact("param", &format!("{}={}", one_line(name), visible(value)))?;
    }
    if !run.error.is_empty() {
        output.line("")?;
        output.line(output.paint(Tone::Bad, &format!("error: {}", run.error)))?;
    }
    Ok(())
}

fn stages(run: &Run, output: Output) -> std::io::Result<()> {
    if run.stages.is_empty() {
        return Ok(());
    }
    let columns = [
        ("stage", Align::Left),
        ("chunks", Align::Right),
        ("running", Align::Right),
        ("rows read", Align::Right),
        ("bytes read", Align::Right),
        ("stored", Align::Right),
    ];
    let rows = run.stages.iter().map(|stage| {
        vec![
            stage.name.clone(),
            format!("{}/{}", stage.chunks_done, stage.chunks),
            stage.chunks_running.to_string(),
            human::count(stage.rows_read),
            human::bytes(stage.bytes_read),
            human::bytes(stage.bytes),
        ]
    });
    output.line("")?;
    output.line(render(&columns, rows.collect()))
}

fn checks(run: &Run, output: Output) -> std::io::Result<()> {
    let rows = run.loads.iter().flat_map(|load| {
        load.checks.iter().map(|check| {
            let word = match (check.holds, check.blocks, check.set_aside) {
                (true, _, _) => "holds".to_owned(),
                (false, true, _) => "FAILED".to_owned(),
                (false, false, 0) => "warning".to_owned(),
                (false, false, rows) => format!("{} set aside", human::count(rows)),
            };
            vec![
                load.name.clone(),
                one_line(&check.name).to_string(),
                word,
                visible(&check.found).to_string(),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let columns = [
        ("load", Align::Left),
        ("check", Align::Left),
        ("result", Align::Left),
        ("found", Align::Left),
    ];
    output.line("")?;
    output.line(render(&columns, rows))
}

fn log(events: &[RunEvent], all: bool, output: Output) -> std::io::Result<()> {
    output.line("")?;
    let mut left_out = 0;
    for (place, event) in events.iter().enumerate() {
        let kept = all || place + LAST >= events.len() || REMARKABLE.contains(&event.kind.as_str());
        if !kept {
            left_out += 1;
            continue;
        }
        gap(&mut left_out, output)?;
        let line = format!(
            "{:>5}  {}  {}",
            event.seq,
            human::time_of_day(event.at),
            visible(&event.text)
        );
        let tone = match event.kind.as_str() {
            "attempt_failed" | "restaged" | "cancel_requested" | "revert_requested" => Some(Tone::Warn),
            "rollback_started" | "stuck" | "revert_refused" => Some(Tone::Bad),
            _ => None,
        };
        output.line(tone.map_or_else(|| line.clone(), |tone| output.paint(tone, &line)))?;
    }
    gap(&mut left_out, output)
}

/// Says how many events are not shown here.
fn gap(left_out: &mut usize, output: Output) -> std::io::Result<()> {
    if *left_out > 0 {
        let text = format!(
            "       ... {} in between, see them with --all",
            human::counted(*left_out as u64, "event")
        );
        output.line(output.paint(Tone::Faint, &text))?;
        *left_out = 0;
    }
    Ok(())
}
