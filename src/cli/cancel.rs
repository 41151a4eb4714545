//! `haulage cancel`: asks a run to end. In a home, where nobody else would, it also does the undoing.

use anyhow::Result;
use haulage_proto::v1::RunState;
use serde_json::json;

use crate::api::{self, Client, Explain as _};
use crate::cli::deed::Deed;
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, reach};
use crate::exit::Exit;
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
        api::cancel(&client, &args.run, &args.reason).await.explained()?;
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
    let deed = Deed {
        run: &args.run,
        command: format!("cancel {}", args.run),
        busy: "only the process that works on a run can cancel it: press Ctrl-C there",
        exit: |state| (state == RunState::Cancelled).then_some(Exit::Success),
    };
    let mut signals = Signals::listen()?;
    // A run that is cancelled has no end to mistake for the one to come.
    let ask = async |client: &Client| api::cancel(client, &args.run, &args.reason).await.map(|()| 0);
    deed.in_home(ask, &args.node, &mut signals, globals).await
}
