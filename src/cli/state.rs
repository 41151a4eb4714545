//! `haulage state`: how far incremental sources have been read, and setting that by hand.

use anyhow::Result;
use clap::Subcommand;
use haulage_core::watermark::{self, Watermark};
use haulage_node::watermarks;
use haulage_proto::convert;
use haulage_proto::v1::{self, ListWatermarksRequest, SetWatermarkRequest};
use serde_json::{Value, json};

use crate::api::{self, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, reach, who};
use crate::embedded;
use crate::exit::{Exit, Usage};
use crate::output::note;
use crate::output::table::{Align, render};

const AFTER_HELP: &str = "\
Examples:
  haulage state                                              every watermark, one a line
  haulage state orders --output json
  haulage state set orders crm public.orders 2013-01-31      read on from there
  haulage state forget orders crm public.orders              read everything again
  haulage state set orders crm public.orders 42 --to warehouse --column id    rows up to there have come in another way

A source with `incremental: COLUMN` is read from its watermark on. The watermark stands at the destination of the load: it
moves in the transaction that publishes the rows, and back with a revert; a run that fails doesn't move it. To set it by
hand is only needed after somebody has changed a source or a table behind the pipeline's back: what is below it is not
read again, and what is above it is read a second time, which a load with `append` adds a second time.";

/// Arguments of `state`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Only this pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: Option<String>,
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    node: NodeOptions,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Set a watermark: the next run reads what comes after it
    Set {
        #[command(flatten)]
        which: Which,
        /// A number, a date or a time in UTC: 42, 2013-01-31, "2013-01-31 05:17:00"
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        value: String,
    },
    /// Forget a watermark: the next run reads everything
    Forget {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The pipeline's name
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// The source's key in the pipeline file
    #[arg(value_name = "SOURCE")]
    source_key: String,
    /// The table of the load
    #[arg(value_name = "TABLE")]
    table: String,
    /// The destination, where several have such a watermark, or to make one
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// The watermark column, to make a watermark that no run has made
    #[arg(long, value_name = "COLUMN")]
    column: Option<String>,
    /// Who sets it, as it is kept beside the value
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "", value_parser = who::asks)]
    by: String,
    #[command(flatten)]
    node: NodeOptions,
}

/// Lists or changes watermarks.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    match args.change {
        None => {
            let marks = all(&args.node, args.pipeline.clone(), globals).await?;
            let file = args
                .pipeline
                .filter(|name| name.ends_with(".yaml") || name.ends_with(".yml"));
            if let (Some(file), true) = (file, marks.is_empty()) {
                return Err(Usage(format!(
                    "no pipeline is called {file}; write the name that stands in it behind `pipeline:`, and not the file's"
                ))
                .into());
            }
            show(&marks, globals)
        }
        Some(Change::Set { which, value }) => {
            if watermark::Form::of(&value).is_none() {
                return Err(Usage(format!(
                    "\"{value}\" can't be a watermark: write a number, a date or a time in UTC, as in 42, 2013-01-31 or \
                     \"2013-01-31 05:17:00\""
                ))
                .into());
            }
            change(which, Some(value), globals).await
        }
        Some(Change::Forget { which }) => change(which, None, globals).await,
    }
}

async fn all(options: &NodeOptions, pipeline: Option<String>, globals: &Globals) -> Result<Vec<v1::Watermark>> {
    if let Some(addresses) = &globals.coordinator {
        options.refuse_destinations()?;
        let client = reach::coordinator(addresses).await?;
        let request = ListWatermarksRequest {
            pipeline: pipeline.unwrap_or_default(),
        };
        let ask = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.list_watermarks(api::call(request)).await }
        };
        return Ok(api::patiently(ask).await.explained()?.watermarks);
    }
    let node = embedded::node_config(&reach::existing_home(globals)?, options)?;
    let marks = watermarks::list(node, pipeline.as_deref()).await?;
    Ok(marks.into_iter().map(convert::watermark).collect())
}

async fn change(which: Which, value: Option<String>, globals: &Globals) -> Result<Exit> {
    let marks = all(&which.node, Some(which.pipeline.clone()), globals).await?;
    let fits = |mark: &&v1::Watermark| {
        mark.source == which.source_key
            && is_table(&mark.table, &which.table)
            && which.to.as_ref().is_none_or(|to| *to == mark.destination)
    };
    let fitting: Vec<&v1::Watermark> = marks.iter().filter(fits).collect();
    let made;
    let mark = match (fitting.as_slice(), &which.column, &which.to) {
        ([mark], _, _) => *mark,
        ([], Some(column), Some(to)) => {
            made = v1::Watermark {
                destination: to.clone(),
                pipeline: which.pipeline.clone(),
                source: which.source_key.clone(),
                table: which.table.clone(),
                column: column.clone(),
                ..v1::Watermark::default()
            };
            &made
        }
        ([], _, _) => {
            let known: Vec<String> = marks
                .iter()
                .map(|mark| format!("{} {}", mark.source, mark.table))
                .collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            return Err(Usage(format!(
                "pipeline {} has no watermark of source {} for table {} (it has: {known}); --to DESTINATION and --column \
                 COLUMN make one",
                which.pipeline, which.source_key, which.table
            ))
            .into());
        }
        (several, _, _) => {
            let names: Vec<String> = several
                .iter()
                .map(|mark| format!("{} in {}", mark.table, mark.destination))
                .collect();
            return Err(Usage(format!(
                "several tables have it ({}); write the table with its schema, or add --to",
                names.join(", ")
            ))
            .into());
        }
    };
    if let Some(addresses) = &globals.coordinator {
        let request = SetWatermarkRequest {
            destination: mark.destination.clone(),
            pipeline: mark.pipeline.clone(),
            source: mark.source.clone(),
            table: mark.table.clone(),
            value: value.clone(),
            by: which.by,
            was: mark.value.clone(),
            column: which.column.unwrap_or_default(),
        };
        let client = reach::coordinator(addresses).await?;
        let ask = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.set_watermark(api::call(request)).await }
        };
        api::patiently(ask).await.explained()?;
    } else {
        let node = embedded::node_config(&reach::existing_home(globals)?, &which.node)?;
        let set = Watermark {
            destination: mark.destination.clone(),
            pipeline: mark.pipeline.clone(),
            source: mark.source.clone(),
            table: mark.table.clone(),
            column: which.column.unwrap_or_default(),
            value: value.clone(),
            run: String::new(),
            by: which.by,
            at: String::new(),
            of: String::new(),
            replaced_by: String::new(),
        };
        watermarks::set(node, &set, mark.value.as_deref()).await?;
    }
    if globals.output().is_json() {
        let changed = v1::Watermark { value, ..mark.clone() };
        globals.output().json(&as_json(&changed))?;
    } else {
        let before = mark.value.as_deref().unwrap_or("nothing");
        note(match &value {
            Some(value) => format!("{} is read on from {value}; it was {before}", mark.source),
            None => format!("{} is read from its first row on; it was {before}", mark.source),
        });
    }
    Ok(Exit::Success)
}

/// Whether a table's full name is meant by this one.
fn is_table(full: &str, named: &str) -> bool {
    full == named || full.rsplit_once(['.', '/']).is_some_and(|(_, table)| table == named)
}

fn show(marks: &[v1::Watermark], globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    if output.is_json() {
        for mark in marks {
            output.json(&as_json(mark))?;
        }
        return Ok(Exit::Success);
    }
    if marks.is_empty() {
        note("there are no watermarks; a source with `incremental: COLUMN` has one once a run is published");
        return Ok(Exit::Success);
    }
    let columns = [
        "pipeline",
        "source",
        "table",
        "destination",
        "column",
        "watermark",
        "by",
        "since",
    ];
    let columns = columns.map(|column| (column, Align::Left));
    let row = |mark: &v1::Watermark| {
        let by = if mark.run_id.is_empty() { &mark.by } else { &mark.run_id };
        vec![
            mark.pipeline.clone(),
            mark.source.clone(),
            mark.table.clone(),
            mark.destination.clone(),
            mark.column.clone(),
            match (&mark.value, mark.replaced_by.as_str()) {
                (None, _) => "-".to_owned(),
                (Some(value), "") => value.clone(),
                (Some(value), run) => format!("{value} (replaced by {run})"),
            },
            by.clone(),
            mark.at.clone(),
        ]
    };
    output.line(render(&columns, marks.iter().map(row).collect()))?;
    Ok(Exit::Success)
}

fn as_json(mark: &v1::Watermark) -> Value {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    json!({
        "pipeline": mark.pipeline,
        "source": mark.source,
        "table": mark.table,
        "destination": mark.destination,
        "column": mark.column,
        "value": mark.value,
        "run_id": text(&mark.run_id),
        "by": text(&mark.by),
        "at": text(&mark.at),
        "replaced_by": text(&mark.replaced_by),
    })
}
