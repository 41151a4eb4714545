//! `haulage submit`: hands a pipeline to a coordinator. `haulage run` does the same with the coordinator it starts itself.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use haulage_proto::v1::submit_response::Disposition;
use haulage_proto::v1::{SubmitRequest, SubmitResponse};
use serde_json::json;
use tracing::Instrument as _;

use crate::api::{self, Client, Explain as _};
use crate::cli::pipeline_options::PipelineOptions;
use crate::cli::{Globals, close, reach};
use crate::exit::Exit;
use crate::follow::{self, OnSignal};
use crate::output::{Output, json as to_json, note};
use crate::pipeline::Document;
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage submit pipeline.yaml --coordinator http://coordinator:7400
  haulage submit pipeline.yaml --param day=2013-01-31 --base s3://landing/flights --watch

A submission is its pipeline, its parameters and its base: the same one again attaches to the run that is going on, or
says that it is published. --rerun runs it once more and replaces what that run published.
Source paths must mean the same on every node: use s3://, or a folder that all of them have.
Ctrl-C during --watch stops watching; the run goes on.";

/// Arguments of `submit`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pipeline: PipelineOptions,
    /// Run again although this submission is published, and replace what that run published
    #[arg(long)]
    rerun: bool,
    /// Follow the run until it is at rest
    #[arg(short, long)]
    watch: bool,
}

/// Submits, and follows if asked to.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let (document, params) = args.pipeline.load()?;
    let client = reach::required(
        globals,
        "; to run the pipeline in this process instead: haulage run FILE",
    )
    .await?;
    submit_to(&client, document, params, args.rerun, args.watch, globals).await
}

/// Submits to a coordinator of a cluster, whose runs outlive this process.
pub(crate) async fn submit_to(
    client: &Client,
    document: Document,
    params: BTreeMap<String, String>,
    rerun: bool,
    watch: bool,
    globals: &Globals,
) -> Result<Exit> {
    // Where destinations are is the business of whoever runs the nodes.
    let submitted = send(client, document, params, BTreeMap::new(), rerun).await?;
    announce(
        &submitted,
        globals.output(),
        &globals.hint(&format!("watch {}", submitted.run_id)),
        watch,
    )?;
    if submitted.disposition() == Disposition::AlreadyPublished {
        return published(client, &submitted.run_id, watch, globals).await;
    }
    if !watch {
        return Ok(Exit::Success);
    }
    let mut signals = Signals::listen()?;
    let followed = Box::pin(follow::follow(
        client,
        &submitted.run_id,
        OnSignal::Leave,
        &mut signals,
        globals.output(),
    ))
    .await?;
    Ok(close::close(&followed, &submitted.run_id, globals)?)
}

/// Sends the submission, inside the span that is the root of the run's trace.
pub(crate) async fn send(
    client: &Client,
    document: Document,
    params: BTreeMap<String, String>,
    places: BTreeMap<String, String>,
    rerun: bool,
) -> Result<SubmitResponse> {
    let span = tracing::info_span!(
        "submit",
        otel.kind = "client",
        file = document.file,
        rerun,
        run = tracing::field::Empty,
        disposition = tracing::field::Empty
    );
    crate::telemetry::continue_from_environment(&span);
    let request = SubmitRequest {
        definition: document.text,
        file: document.file,
        base: document.base,
        params: params.into_iter().collect(),
        rerun,
        destinations: places.into_iter().collect(),
    };
    let ask = || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.submit(api::call(request)).await }
    };
    let work = async {
        // The same submission meets the run that the first try may have started. A rerun that is over by then would be
        // run once more.
        let submitted = match rerun {
            true => ask().await.map(tonic::Response::into_inner),
            false => api::patiently(ask).await,
        };
        let submitted = submitted.explained()?;
        let span = tracing::Span::current();
        span.record("run", &submitted.run_id);
        span.record("disposition", word(submitted.disposition()));
        if submitted.disposition() == Disposition::Unspecified {
            return Err(anyhow!(
                "the coordinator's answer can't be understood; is it of a newer release?"
            ));
        }
        Ok(submitted)
    };
    work.instrument(span).await
}

/// Says which run answers for the submission.
pub(crate) fn announce(submitted: &SubmitResponse, output: Output, next: &str, watch: bool) -> std::io::Result<()> {
    let run = &submitted.run_id;
    if output.is_json() {
        let value = json!({"run_id": run, "disposition": word(submitted.disposition())});
        return output.json(&to_json::typed("submitted", value));
    }
    match submitted.disposition() {
        Disposition::Attached => note(format!(
            "the same submission is running already; this is its run: {run}"
        )),
        Disposition::Started if watch => note(format!("run {run}")),
        Disposition::Started => note(format!("run {run} is started; follow it with: {next}")),
        // Said together with what it published.
        Disposition::AlreadyPublished | Disposition::Unspecified => {}
    }
    // The one thing that a script wants to keep.
    if watch { Ok(()) } else { output.line(run) }
}

/// The end of a submission that is published already: when, what, and how to run it again.
/// The summary only where nobody keeps the id that `submit` prints.
pub(crate) async fn published(client: &Client, run_id: &str, watch: bool, globals: &Globals) -> Result<Exit> {
    let request = haulage_proto::v1::GetRunRequest {
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
            "already published at {}: nothing was run; to run it again and replace what it published, use --rerun",
            crate::output::human::moment(run.finished_at)
        ));
    }
    if watch || globals.output().is_json() {
        close::print(&run, globals)?;
    }
    Ok(Exit::Success)
}

fn word(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Started => "started",
        Disposition::Attached => "attached",
        Disposition::AlreadyPublished => "already_published",
        Disposition::Unspecified => "unknown",
    }
}
