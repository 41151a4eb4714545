//! `haulage cancel`: asks a run to end. In a home, where nobody else would, it also does the undoing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use haulage_proto::v1::GetRunRequest;
use serde_json::{Value, json};

use crate::api::{self, Client, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, close, reach};
use crate::embedded::{self, Embedded};
use crate::exit::{Exit, Usage};
use crate::follow::{self, OnSignal};
use crate::output::{json as to_json, note};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage cancel flights-0a1b2c3d4e --reason \"wrong day\" --coordinator http://coordinator:7400
  haulage cancel flights-0a1b2c3d4e    a run that an earlier `haulage run` left behind in .haulage/

A cancelled run leaves every destination as it was before. Once publishing has begun, a run can't be cancelled any more.
To cancel a `haulage run` that is at work, press Ctrl-C there.";

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Why, for whoever looks at the run later
    #[arg(long, value_name = "TEXT", default_value = "cancelled by the user")]
    reason: String,
    #[command(flatten)]
    node: NodeOptions,
}

/// Cancels.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    if let Some(addresses) = &globals.coordinator {
        let client = reach::coordinator(addresses).await?;
        cancel(&client, &args).await?;
        if globals.output().is_json() {
            globals
                .output()
                .json(&to_json::typed("cancel_requested", json!({"run_id": args.run})))?;
        } else {
            let watch = globals.hint(&format!("watch {}", args.run));
            note(format!("{} is being undone; follow it with: {watch}", args.run));
        }
        return Ok(Exit::Success);
    }
    let mut signals = Signals::listen()?;
    let home = reach::existing_home(globals)?;
    let lock = home
        .lock()
        .context("only the process that works on a run can cancel it: press Ctrl-C there")?;
    let here = embedded::node_config(&home, &args.node)?.places();
    let embedded = Embedded::start(&home, lock, &args.node).await?;
    let exit = match elsewhere(&embedded.client(), &args, &here, globals).await {
        Ok(()) => in_home(&embedded.client(), &args, &mut signals, globals).await,
        Err(error) => Err(error),
    };
    embedded.stop().await;
    exit
}

/// Refuses to undo a run whose destinations are not where this process has them: it would wait for ever for one that
/// has them there.
async fn elsewhere(client: &Client, args: &Args, here: &BTreeMap<String, String>, globals: &Globals) -> Result<()> {
    let request = GetRunRequest {
        run_id: args.run.clone(),
    };
    let events = client
        .clone()
        .get_run(api::call(request))
        .await
        .explained()?
        .into_inner()
        .events;
    let submitted: Value = events
        .first()
        .and_then(|event| serde_json::from_str(&event.json).ok())
        .unwrap_or_default();
    let places = submitted["submission"]["places"].as_object();
    for (name, place) in places.into_iter().flatten() {
        let (Some(place), Some(other)) = (place.as_str(), here.get(name)) else {
            continue;
        };
        if place != other {
            return Err(Usage(format!(
                "the run began with the destination `{name}` at {place}, and here it is {other}; nothing was done. Cancel \
                 it with: {} --destination {name}=ADDRESS-THERE",
                globals.hint(&format!("cancel {}", args.run))
            ))
            .into());
        }
    }
    Ok(())
}

async fn in_home(client: &Client, args: &Args, signals: &mut Signals, globals: &Globals) -> Result<Exit> {
    cancel(client, args).await?;
    let followed = Box::pin(follow::follow(
        client,
        &args.run,
        OnSignal::Leave,
        signals,
        globals.output(),
    ))
    .await?;
    let exit = close::close(&followed, &args.run, globals)?;
    // Here a cancelled run is what was asked for.
    let cancelled = followed
        .run
        .is_some_and(|run| run.state() == haulage_proto::v1::RunState::Cancelled);
    Ok(if cancelled { Exit::Success } else { exit })
}

async fn cancel(client: &Client, args: &Args) -> Result<()> {
    api::cancel(client, &args.run, &args.reason).await.explained()
}
