//! `haulage watch`: follows a run that somebody else started.

use anyhow::Result;

use crate::cli::{Globals, close, reach};
use crate::exit::Exit;
use crate::follow::{self, OnSignal};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage watch flights-0a1b2c3d4e --coordinator http://coordinator:7400
  haulage watch flights-0a1b2c3d4e --output json    every event as a line of JSON, then a summary

Ctrl-C stops watching; the run goes on. The exit code is that of the run: 0 published, 1 failed, 130 cancelled.";

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
}

/// Follows until the run is at rest.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut signals = Signals::listen()?;
    let reach = reach::reader(globals).await?;
    let followed = Box::pin(follow::follow(
        &reach.client,
        &args.run,
        OnSignal::Leave,
        &mut signals,
        globals.output(),
    ))
    .await?;
    Ok(close::close(&followed, &args.run, globals)?)
}
