//! `haulage replay`: the rejected rows of a published run are read again, by a definition that has been corrected since.
//!
//! It is a run like any other. In a home it happens in this process, as `haulage run` does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use haulage_core::event::Event;
use haulage_core::submission::Submission;
use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{GetRunRequest, ReplayRequest, ReplayResponse, SubmitRequest};
use serde_json::json;

use crate::api::{self, Client, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, close, reach, submit, validate};
use crate::config::{self, Home};
use crate::embedded::{self, Embedded};
use crate::exit::Exit;
use crate::follow::{self, OnSignal};
use crate::output::{human, json as to_json, note};
use crate::pipeline::Document;
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage rejects flights-0a1b2c3d4e                        what was rejected, and why
  haulage replay flights-0a1b2c3d4e pipeline.yaml           read it again by the corrected file
  haulage replay flights-0a1b2c3d4e --param strict=false    by the run's own definition with another parameter
  haulage replay flights-0a1b2c3d4e --again                 once more, because a lookup has changed

The rows of the quarantine take the place of the sources that they came from; lookups are read as they are now. What
passes is added to what the run published: by key where the load has one, else appended, also where the load replaces.
A row goes only to the loads that it was rejected for; others have no part in a replay, nor have their checks.

An older increment of an incremental source can be replayed like the newest; its watermark stays. With merge, a row never
overwrites one that a later run has published: which is newer is found by `newest` of the load, or by the run that rows name
where it has `provenance`. Where neither says, a key that stands already ends the replay, and nothing has changed.

What one replay has loaded, the next one doesn't read: it reads what that one rejected. So a run is replayed as often as
there is something to correct, always under the first run's id, and every row is loaded once. `haulage revert REPLAY`
takes back what a replay has added, and its rows are rejected rows of the first run again.";

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run whose rejected rows are read again
    #[arg(value_name = "RUN")]
    run: String,
    /// The corrected pipeline file (YAML) [default: the definition that the run was submitted with]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The value of a parameter; may be given several times [default without FILE: as the run was submitted]
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = config::parse_param)]
    params: Vec<(String, String)>,
    /// What relative source paths are relative to: a folder or s3://bucket/prefix [default: the file's folder, or the run's]
    #[arg(long, value_name = "FOLDER")]
    base: Option<String>,
    /// Replay what is left although the last replay was by the same definition
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    node: NodeOptions,
}

/// Replays.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let (document, params) = load(&args, globals).await?;
    let mut wish = Wish {
        run: args.run.clone(),
        document,
        params,
        places: BTreeMap::new(),
        again: args.again,
    };
    let mut signals = Signals::listen()?;
    if let Some(addresses) = &globals.coordinator {
        args.node.refuse_destinations()?;
        let client = reach::coordinator(addresses).await?;
        return drive(&client, &wish, OnSignal::Leave, &mut signals, globals).await;
    }
    let definition = validate::parse(&wish.document, &wish.params)?;
    args.node.check_names(&definition)?;
    let home = Home::new(&globals.home)?;
    wish.places = embedded::node_config(&home, &args.node)?.places();
    let lock = home.lock()?;
    let mut embedded = tokio::select! {
        embedded = Embedded::start(&home, lock, &args.node) => embedded?,
        _ = signals.next() => return Ok(Exit::Interrupted),
    };
    let client = embedded.client();
    let exit = tokio::select! {
        exit = drive(&client, &wish, OnSignal::Cancel, &mut signals, globals) => exit,
        failed = embedded.failed() => failed.map(|never| match never {}),
    };
    embedded.stop().await;
    exit
}

/// What is asked for.
struct Wish {
    run: String,
    document: Document,
    params: BTreeMap<String, String>,
    places: BTreeMap<String, String>,
    again: bool,
}

/// The definition and its parameters: of the file, or of the run.
async fn load(args: &Args, globals: &Globals) -> Result<(Document, BTreeMap<String, String>)> {
    let given = config::params(&args.params)?;
    // Also with a file: a run that isn't there is said before anything is started.
    let submission = submission(&args.run, globals).await?;
    if let Some(file) = &args.file {
        return Ok((Document::load(file, args.base.as_deref())?, given));
    }
    let base = match &args.base {
        Some(base) => crate::pipeline::resolve_base(base)?,
        None => submission.base,
    };
    let document = Document {
        text: submission.definition,
        file: submission.file,
        base,
    };
    let mut params = submission.params;
    params.extend(given);
    Ok((document, params))
}

/// What the run was submitted with: its log's first event.
async fn submission(run: &str, globals: &Globals) -> Result<Submission> {
    let mut reach = reach::reader(globals).await?;
    let request = GetRunRequest { run_id: run.to_owned() };
    let response = reach.client.get_run(api::call(request)).await.explained()?.into_inner();
    let first = response
        .events
        .first()
        .with_context(|| format!("the log of run {run} is empty"))?;
    let event = serde_json::from_str(&first.json)
        .with_context(|| format!("event {} of the ledger can't be read by this release", first.seq))?;
    match event {
        Event::Submitted { submission, .. } => Ok(*submission),
        _ => Err(anyhow!("the log of run {run} does not begin with its submission")),
    }
}

async fn drive(
    client: &Client,
    wish: &Wish,
    on_signal: OnSignal,
    signals: &mut Signals,
    globals: &Globals,
) -> Result<Exit> {
    let response = tokio::select! {
        response = send(client, wish) => response?,
        _ = signals.next() => return Ok(Exit::Interrupted),
    };
    let output = globals.output();
    let replayed = &response.replayed;
    if response.left > 0 {
        note(format!(
            "{} that checks have set aside stay rejected: they are rows of a load, and no source gives them; `haulage rejects \
             {replayed}` shows them (reasons check:...)",
            human::counted(response.left, "row")
        ));
    }
    let Some(submitted) = response.submitted else {
        if output.is_json() {
            let value =
                json!({"run_id": null, "replayed": replayed, "disposition": "nothing_left", "left": response.left});
            output.json(&to_json::typed("submitted", value))?;
        } else if response.left == 0 {
            note(format!("nothing to replay: run {replayed} has no rejected rows"));
        } else {
            note(format!(
                "nothing else to replay: run {replayed} has no other rejected rows"
            ));
        }
        return Ok(Exit::Success);
    };
    if submitted.disposition() == Disposition::AlreadyPublished {
        return said_before(client, &submitted.run_id, globals).await;
    }
    if !output.is_json() && *replayed != wish.run {
        note(format!(
            "the rejected rows of {} have been replayed; what is left are those of {replayed}",
            wish.run
        ));
    }
    submit::announce(&submitted, output, "", true)?;
    let followed = Box::pin(follow::follow(client, &submitted.run_id, on_signal, signals, output)).await?;
    Ok(close::close(&followed, &submitted.run_id, globals)?)
}

async fn send(client: &Client, wish: &Wish) -> Result<ReplayResponse> {
    let request = ReplayRequest {
        run_id: wish.run.clone(),
        submit: Some(SubmitRequest {
            definition: wish.document.text.clone(),
            file: wish.document.file.clone(),
            base: wish.document.base.clone(),
            params: wish.params.clone().into_iter().collect(),
            rerun: wish.again,
            destinations: wish.places.clone().into_iter().collect(),
        }),
    };
    // The same replay meets the run that the first try may have started.
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.replay(api::call(request)).await }
    };
    api::patiently(ask).await.explained()
}

/// The last replay was this one.
async fn said_before(client: &Client, run_id: &str, globals: &Globals) -> Result<Exit> {
    let request = GetRunRequest {
        run_id: run_id.to_owned(),
    };
    let response = client
        .clone()
        .get_run(api::call(request))
        .await
        .explained()?
        .into_inner();
    let run = response
        .run
        .ok_or_else(|| anyhow!("the coordinator knows nothing about run {run_id}"))?;
    if !globals.output().is_json() {
        note(format!(
            "replayed already, by the same definition, at {}: nothing was run; correct the definition, or use --again if a \
             lookup has changed",
            crate::output::human::moment(run.finished_at)
        ));
    }
    close::print(&run, globals)?;
    Ok(Exit::Success)
}
