//! `haulage revert`: takes back what a published run has made visible. In a home, where nobody else would, it also does it.

use anyhow::Result;
use haulage_proto::v1::{RevertRequest, RunState};
use serde_json::json;

use crate::api::{self, Client, Explain as _};
use crate::cli::deed::Deed;
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, reach, who};
use crate::exit::Exit;
use crate::output::{json as to_json, note};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage revert flights-0a1b2c3d4e --reason \"the wrong month\"
  haulage revert flights-0a1b2c3d4e --watch --coordinator http://coordinator:7400

Every table that the run has loaded is as it was before: the rows that `append` added go, rows that `merge` changed get
their old values, `replace` brings back the table that it replaced, and a table that the run made goes. What others have
written to a table that the run made or replaced goes with it.

What a revert needs is kept for the newest published run of a table (`keep_previous` of the load says of how many). A run
on which later ones have built is not reverted before them; the refusal names them, and nothing is undone then. Of `append`
only the run's own rows go, from among what later runs have appended. Meanwhile other runs wait with publishing to its
tables. A run that is reverted may be submitted again, and runs anew.";

/// Arguments of `revert`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Why, for whoever looks at the run later
    #[arg(long, value_name = "TEXT", default_value = "reverted by the user")]
    reason: String,
    /// Who asks, as the log keeps it
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "", value_parser = who::asks)]
    by: String,
    /// Follow the run until it is at rest
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    node: NodeOptions,
}

/// Reverts.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let request = RevertRequest {
        run_id: args.run,
        reason: args.reason,
        by: args.by,
    };
    let deed = Deed {
        run: &request.run_id,
        command: format!("revert {}", request.run_id),
        busy: "another process works in this home; revert the run when that is done",
        exit,
    };
    let mut signals = Signals::listen()?;
    if let Some(addresses) = &globals.coordinator {
        args.node.refuse_destinations()?;
        let client = reach::coordinator(addresses).await?;
        let asked = api::revert(&client, &request).await.explained()?;
        if args.watch {
            return deed.to_the_end(&client, asked, &mut signals, globals).await;
        }
        if globals.output().is_json() {
            let fields = json!({"run_id": request.run_id, "reason": request.reason});
            globals.output().json(&to_json::typed("revert_requested", fields))?;
        } else {
            let watch = globals.hint(&format!("watch {}", request.run_id));
            note(format!(
                "{} is being reverted, if it can be; follow it with: {watch}",
                request.run_id
            ));
        }
        return Ok(Exit::Success);
    }
    let ask = async |client: &Client| api::revert(client, &request).await;
    deed.in_home(ask, &args.node, &mut signals, globals).await
}

/// A run that is reverted is what was asked for, and one that stays published is not.
fn exit(state: RunState) -> Option<Exit> {
    match state {
        RunState::Reverted => Some(Exit::Success),
        RunState::Published => Some(Exit::Failed),
        RunState::Unspecified
        | RunState::Discovering
        | RunState::Loading
        | RunState::Verifying
        | RunState::Publishing
        | RunState::RollingBack
        | RunState::Stuck
        | RunState::Failed
        | RunState::Cancelled
        | RunState::Reverting => None,
    }
}
