//! `haulage plan`: what a run would read, make and change. Looks at sources and destinations, and touches neither.

use std::collections::BTreeMap;

use anyhow::Result;
use haulage_core::event::PlannedStage;
use haulage_core::watermark::Window;
use haulage_node::check::{self, LoadPreview, Preview};
use haulage_node::source::Drift;
use haulage_plan::render;
use serde_json::{Value, json};

use crate::cli::node_options::NodeOptions;
use crate::cli::pipeline_options::PipelineOptions;
use crate::cli::{Globals, validate};
use crate::config::Home;
use crate::embedded;
use crate::exit::Exit;
use crate::output::{Output, Tone, human, note};

const AFTER_HELP: &str = "\
Examples:
  haulage plan pipeline.yaml
  haulage plan pipeline.yaml --destination warehouse=postgres://loader@db/warehouse
  haulage plan pipeline.yaml --output json

Shows the graph of sources, steps and loads, the stages and the chunks that the sources are cut into now, the
statements that would make or widen each table, and what publishing would change. It looks from this machine and with
the destinations given here (or the home's own warehouse), also when a coordinator is named.
The exit code is 1 if a load doesn't fit its table, or a destination can't be reached.";

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pipeline: PipelineOptions,
    #[command(flatten)]
    node: NodeOptions,
}

/// Shows the plan.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let (document, params) = args.pipeline.load()?;
    // First, because its errors point into the file.
    let definition = validate::parse(&document, &params)?;
    args.node.check_names(&definition)?;
    let config = embedded::node_config(&Home::new(&globals.home)?, &args.node)?;
    let preview = check::plan(config, &document.text, &document.file, &document.base, &params).await?;
    let fits = preview
        .loads
        .iter()
        .all(|load| load.inspection.as_ref().is_ok_and(|found| found.misfits.is_empty()));
    if globals.coordinator.is_some() {
        note(
            "looked at from this machine: the nodes of the coordinator's cluster may have other destinations of these names",
        );
    }
    if output.is_json() {
        output.json(&document_of(&preview)?)?;
    } else {
        for line in text(&preview, output) {
            output.line(line)?;
        }
    }
    Ok(if fits { Exit::Success } else { Exit::Failed })
}

fn document_of(preview: &Preview) -> Result<Value> {
    let mut document = serde_json::to_value(render::plan(&preview.compiled))?;
    let stages: Vec<Value> = preview
        .stages
        .iter()
        .map(|stage| {
            let chunks: Vec<Value> = stage
                .chunks
                .iter()
                .map(|chunk| {
                    json!({
                        "index": chunk.chunk.index,
                        "object": chunk.object,
                        "start": chunk.start.offset,
                        "end": chunk.end,
                        "bytes": chunk.bytes,
                    })
                })
                .collect();
            json!({
                "stage": stage.stage,
                "source": stage.source,
                "steps": stage.steps,
                "loads": stage.loads,
                "chunks": chunks,
                "incremental": window_of(stage).map(|(window, watermark)| json!({
                    "column": window.column,
                    "watermark": watermark,
                    "after": window.after,
                    "up_to": window.up_to,
                })),
            })
        })
        .collect();
    let loads: Vec<Value> = preview.loads.iter().map(load_json).collect();
    if let Value::Object(fields) = &mut document {
        fields.insert("stages".into(), stages.into());
        fields.insert("destinations".into(), loads.into());
        fields.insert("drift".into(), drift_json(preview)?);
        fields.insert("warnings".into(), json!(preview.warnings));
    }
    Ok(document)
}

/// How each source differs from what it declares.
fn drift_json(preview: &Preview) -> Result<Value> {
    let mut all = Vec::new();
    for (source, drift) in &preview.drift {
        for drift in drift {
            let mut one = serde_json::to_value(drift)?;
            if let Value::Object(fields) = &mut one {
                fields.insert("source".into(), source.as_str().into());
            }
            all.push(one);
        }
    }
    Ok(all.into())
}

fn drift_text(source: &str, drift: &Drift) -> String {
    let Drift {
        object,
        objects,
        column,
        change,
        ..
    } = drift;
    let word = |found: &Option<String>| found.as_ref().map(|found| format!(" ({found})")).unwrap_or_default();
    let what = match *change {
        "widened" => format!(
            "column {column} is widened from {} to {}",
            drift.declared.as_deref().unwrap_or("?"),
            drift.found.as_deref().unwrap_or("?")
        ),
        "retyped" => format!(
            "column {column} is {} there, and declared as {}: rows whose value doesn't fit go to quarantine",
            drift.found.as_deref().unwrap_or("?"),
            drift.declared.as_deref().unwrap_or("?")
        ),
        "missing" => format!("column {column}{} is missing: no value", word(&drift.declared)),
        "added" => format!("column {column}{} is new: added", word(&drift.found)),
        "quarantined" => format!(
            "column {column}{} is new: its rows go to quarantine",
            word(&drift.found)
        ),
        other => format!("column {column}{} is new: {other}", word(&drift.found)),
    };
    let more = if *objects > 1 {
        format!(" and {} more", objects - 1)
    } else {
        String::new()
    };
    format!("source {source}: {what}, in {object}{more}")
}

fn load_json(load: &LoadPreview) -> Value {
    let mut value = json!({
        "load": load.load.load,
        "destination": load.destination,
        "place": load.place,
        "table": load.load.table,
        "mode": load.load.mode,
    });
    let found = match &load.inspection {
        Ok(found) => json!({
            "exists": found.exists,
            "rows": found.rows,
            "ddl": found.ddl,
            "changes": found.changes,
            "columns": found.columns,
            "misfits": found.misfits,
        }),
        Err(failure) => json!({"error": failure.message}),
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, found) {
        fields.extend(more);
    }
    value
}

fn text(preview: &Preview, output: Output) -> Vec<String> {
    let mut lines: Vec<String> = render::plan(&preview.compiled)
        .to_string()
        .trim_end()
        .lines()
        .map(Into::into)
        .collect();
    lines.push(String::new());
    for stage in &preview.stages {
        lines.extend(chunks(stage));
    }
    for (source, drift) in &preview.drift {
        lines.extend(drift.iter().map(|drift| drift_text(source, drift)));
    }
    let warning = |text| output.paint(Tone::Warn, &format!("warning: {text}"));
    lines.extend(preview.warnings.iter().map(warning));
    for load in &preview.loads {
        lines.push(String::new());
        lines.extend(load_text(load, output));
    }
    lines
}

/// A line for the stage, and one for each of its objects.
fn chunks(stage: &PlannedStage) -> Vec<String> {
    let mut objects: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for chunk in &stage.chunks {
        let (count, bytes) = objects.entry(&chunk.object).or_default();
        *count += 1;
        *bytes += chunk.bytes;
    }
    let total = stage.chunks.iter().map(|chunk| chunk.bytes).sum();
    let mut lines = vec![format!(
        "stage {} reads {} in {}, {}",
        stage.stage,
        stage.source,
        human::counted(stage.chunks.len() as u64, "chunk"),
        human::bytes(total)
    )];
    lines.extend(window_of(stage).map(|(window, watermark)| window_text(window, watermark)));
    for (object, (count, bytes)) in objects {
        lines.push(format!(
            "  {object}  {}, {}",
            human::counted(count, "chunk"),
            human::bytes(bytes)
        ));
    }
    lines
}

/// Which rows an incremental source gives, and the watermark that this follows from.
fn window_of(stage: &PlannedStage) -> Option<(&Window, Option<&str>)> {
    let window = stage.chunks.iter().find_map(|chunk| chunk.window.as_ref())?;
    let watermark = stage.advances.iter().find_map(|advance| advance.low.as_deref());
    Some((window, watermark))
}

/// `rows above the watermark 42 of id, less the lag: after 32, up to 99`.
fn window_text(window: &Window, watermark: Option<&str>) -> String {
    let column = &window.column;
    let from = match (&window.after, watermark) {
        (Some(after), Some(low)) if after == low => format!("rows after the watermark {low} of {column}"),
        (Some(after), Some(low)) => {
            format!("rows after {after}, which is the watermark {low} of {column} less the lag")
        }
        (Some(after), None) => format!("rows after {after} of {column}"),
        (None, _) => format!("every row, by {column}: no watermark to read on from"),
    };
    let to = match &window.up_to {
        _ if window.open => ", with those that come later".to_owned(),
        Some(up_to) => format!(", up to {up_to}"),
        None => String::new(),
    };
    format!("  {from}{to}")
}

fn load_text(preview: &LoadPreview, output: Output) -> Vec<String> {
    let LoadPreview {
        load,
        destination,
        place,
        inspection,
    } = preview;
    let at = place
        .as_ref()
        .map(|place| format!(", which is {place}"))
        .unwrap_or_default();
    let mut lines = vec![format!("load {} to {destination}{at}: table {}", load.load, load.table)];
    let found = match inspection {
        Ok(found) => found,
        Err(failure) => {
            lines.push(format!("  {}", output.paint(Tone::Bad, &format!("error: {failure}"))));
            return lines;
        }
    };
    lines.push(match (found.exists, found.rows) {
        (false, _) => "  the table is not there yet".to_owned(),
        (true, Some(rows)) => format!("  the table holds {} now", human::counted(rows, "row")),
        (true, None) => "  the table is there already".to_owned(),
    });
    lines.extend(found.changes.iter().map(|change| format!("  {change}")));
    lines.extend(found.columns.iter().map(|change| format!("  {change}")));
    for statement in &found.ddl {
        lines.extend(statement.lines().map(|line| format!("    {line}")));
    }
    for misfit in &found.misfits {
        lines.push(format!("  {}", output.paint(Tone::Bad, &format!("error: {misfit}"))));
    }
    lines
}
