//! `haulage run`: coordinator and node in this process, spoken to through the same interface as a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{Run, RunState};

use crate::api::Client;
use crate::cli::node_options::NodeOptions;
use crate::cli::pipeline_options::PipelineOptions;
use crate::cli::sources::Checked;
use crate::cli::{Globals, close, prune, reach, submit, validate};
use crate::config::Home;
use crate::embedded::{self, Embedded};
use crate::exit::Exit;
use crate::follow::{self, OnSignal};
use crate::output::{human, note};
use crate::pipeline::Document;
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage run pipeline.yaml
  haulage run pipeline.yaml --param day=2013-01-31
  haulage run pipeline.yaml --destination warehouse=postgres://loader@localhost/warehouse
  haulage run pipeline.yaml --rerun                run it again and replace what it published
  haulage run pipeline.yaml --output json          events and progress as lines of JSON, then a summary

Without --coordinator everything happens in this process, and what it keeps is under .haulage/ (--home): the ledger, the
checkpoints, and warehouse.db, a SQLite file that is the destination `warehouse` unless --destination says otherwise.
With --coordinator (or HAULAGE_COORDINATOR) it is `haulage submit --watch`.

Ctrl-C cancels the run and undoes what it has started. A second Ctrl-C leaves at once; the same command again goes on
with the run. The same pipeline, parameters, base and destinations are one submission, and one submission is published
once.";

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pipeline: PipelineOptions,
    /// Run again although this submission is published, and replace what that run published
    #[arg(long)]
    rerun: bool,
    /// How long this home keeps rejected rows after their run came to rest, such as 90d or 12h: when the run is over, older
    /// ones are deleted, as by `haulage prune` [default: until somebody prunes]. A coordinator has its own setting
    #[arg(long, value_name = "TIME", env = "HAULAGE_KEEP_REJECTS", value_parser = prune::keep)]
    keep_rejects: Option<Duration>,
    #[command(flatten)]
    node: NodeOptions,
}

/// Runs.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let (document, params) = args.pipeline.load()?;
    if let Some(addresses) = &globals.coordinator {
        args.node.refuse_destinations()?;
        note(format!("submitting to the coordinator at {addresses}"));
        let client = reach::coordinator(addresses).await?;
        return submit::submit_to(&client, document, params, args.rerun, true, globals).await;
    }
    // Before anything is made on disk: a mistake in the file should leave no folder behind.
    let definition = validate::parse(&document, &params)?;
    args.node.check_names(&definition)?;
    let mut signals = Signals::listen()?;
    let home = Home::new(&globals.home)?;
    let config = embedded::node_config(&home, &args.node)?;
    let ledger = home.ledger();
    let checked = tokio::select! {
        checked = Checked::new(&config, definition, &document, &ledger, args.rerun) => checked?,
        _ = signals.next() => return Ok(Exit::Interrupted),
    };
    // In one process part of what is submitted: the same pipeline goes to another warehouse when it is told to.
    let places = config.places();
    let lock = match home.lock() {
        Ok(lock) => lock,
        Err(busy) => {
            // Without a ledger to look into there is only this to say.
            let Ok(reach) = reach::reader(globals).await else {
                return Err(busy);
            };
            let earlier = checked.earlier(&reach.client, &document, &params, &places).await?;
            let Some(earlier) = earlier else { return Err(busy) };
            return attach(&reach.client, &earlier, args.rerun, busy, &mut signals, globals).await;
        }
    };
    let mut embedded = tokio::select! {
        embedded = Embedded::start(&home, lock, &args.node) => embedded?,
        _ = signals.next() => return Ok(Exit::Interrupted),
    };
    let client = embedded.client();
    if let Err(wrong) = checked.unless_answered(&client, &document, &params, &places).await {
        embedded.stop().await;
        return Err(wrong);
    }
    let exit = tokio::select! {
        exit = drive(&client, document, params, places, args.rerun, &mut signals, globals) => exit,
        failed = embedded.failed() => failed.map(|never| match never {}),
    };
    if let Some(keep) = args.keep_rejects {
        tokio::select! {
            () = retain(&embedded, keep, globals) => {}
            _ = signals.next() => {}
        }
    }
    embedded.stop().await;
    if matches!(exit, Ok(Exit::Success)) && !globals.output().is_json() {
        say_where(&args.node, globals)?;
    }
    exit
}

/// Whatever becomes of it, the run is what it is.
async fn retain(embedded: &Embedded, keep: Duration, globals: &Globals) {
    match embedded.retain(keep).await {
        Ok(0) => {}
        Ok(runs) if globals.output().is_json() => tracing::info!(runs, "rejected rows were kept for long enough"),
        Ok(runs) => note(format!(
            "deleted the rejected rows of {}, which were kept for long enough",
            human::counted(runs, "run")
        )),
        Err(error) => tracing::warn!("{error:#}"),
    }
}

/// Another process works in the home, on this very submission: follows its run as `haulage watch` does.
async fn attach(
    client: &Client,
    earlier: &Run,
    rerun: bool,
    busy: anyhow::Error,
    signals: &mut Signals,
    globals: &Globals,
) -> Result<Exit> {
    let run_id = &earlier.run_id;
    if earlier.state() == RunState::Published {
        if rerun {
            return Err(busy);
        }
        return submit::published(client, run_id, true, globals).await;
    }
    if !globals.output().is_json() {
        note(format!(
            "the same submission is running in another process; following its run {run_id}"
        ));
    }
    let followed = Box::pin(follow::follow(
        client,
        run_id,
        OnSignal::Leave,
        signals,
        globals.output(),
    ))
    .await?;
    Ok(close::close(&followed, run_id, globals)?)
}

/// Nobody has named the default warehouse, so nobody can know where it is.
fn say_where(node: &NodeOptions, globals: &Globals) -> Result<()> {
    let file = globals.home.join("warehouse.db");
    if !node.names("warehouse")? && file.exists() {
        globals
            .output()
            .line(format!("  where      warehouse is the SQLite file {}", file.display()))?;
    }
    Ok(())
}

async fn drive(
    client: &Client,
    document: Document,
    params: BTreeMap<String, String>,
    places: BTreeMap<String, String>,
    rerun: bool,
    signals: &mut Signals,
    globals: &Globals,
) -> Result<Exit> {
    loop {
        let submitted = tokio::select! {
            submitted = submit::send(client, document.clone(), params.clone(), places.clone(), rerun) => submitted?,
            _ = signals.next() => return Ok(Exit::Interrupted),
        };
        let run_id = &submitted.run_id;
        let attached = submitted.disposition() == Disposition::Attached;
        if attached && !globals.output().is_json() {
            note(format!("going on with the run {run_id}, which was not at rest"));
        } else {
            submit::announce(&submitted, globals.output(), "", true)?;
        }
        if submitted.disposition() == Disposition::AlreadyPublished {
            return submit::published(client, run_id, true, globals).await;
        }
        let followed = Box::pin(follow::follow(
            client,
            run_id,
            OnSignal::Cancel,
            signals,
            globals.output(),
        ))
        .await?;
        let cancelled = followed.run.as_ref().map(Run::state) == Some(RunState::Cancelled);
        // Cancelled by a process before this one, which left before all was undone: now it is, and nobody here has
        // asked for anything but the run.
        if !(attached && cancelled && !followed.interrupted) {
            return Ok(close::close(&followed, run_id, globals)?);
        }
        if !globals.output().is_json() {
            note(format!(
                "{run_id} had been cancelled before and is undone; now it runs anew"
            ));
        }
    }
}
