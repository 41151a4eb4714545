//! `haulage saga`: an operator decides about a run that is stuck, because undoing what it started keeps failing, or that
//! waits for a destination which won't come back. In a home, where nobody else would, it also does the undoing.

use anyhow::Result;
use clap::Subcommand;
use haulage_proto::v1::resolve_request::Decision;
use haulage_proto::v1::{ResolveRequest, RunState};
use serde_json::json;
use tonic::Status;

use crate::api::{self, Client, Explain as _};
use crate::cli::deed::Deed;
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, reach, who};
use crate::exit::Exit;
use crate::output::{json as to_json, note};
use crate::signals::Signals;

const AFTER_HELP: &str = "\
Examples:
  haulage show flights-0a1b2c3d4e                what can't be undone, and why
  haulage saga retry flights-0a1b2c3d4e          the permission is back, the table is there again: undo it now
  haulage saga abandon flights-0a1b2c3d4e --reason \"table restored from the backup by hand\"
  haulage saga abandon flights-0a1b2c3d4e --reason \"that server is gone for good\"

A run that fails undoes whatever it has started, last things first. A step that can't be undone leaves the run stuck:
nothing more happens to it until somebody decides. `retry` undoes the step again, and `abandon` leaves this one step as it is
and goes on undoing the others; if another one can't be undone, the run is stuck again. Who said what, and why, stands in
the run's log.

A destination that is away is waited for, however long it takes, and that is not stuck: the step is tried again by itself.
Once that has failed, `abandon` leaves it too. What is left of the run is named when it is over, and in `haulage show`.";

/// Arguments of `saga`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    decision: Decide,
}

/// What is decided.
#[derive(Debug, Subcommand)]
enum Decide {
    /// Undo the step again: what kept it from being undone has been seen to
    #[command(after_help = AFTER_HELP)]
    Retry(Retry),
    /// Leave the step that can't be undone, or waits to be, as it is, and go on undoing the others
    #[command(after_help = AFTER_HELP)]
    Abandon(Abandon),
}

/// Arguments of `saga retry`.
#[derive(Debug, clap::Args)]
struct Retry {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Why, for whoever looks at the run later
    #[arg(long, value_name = "TEXT", default_value = "seen to")]
    reason: String,
    #[command(flatten)]
    how: How,
}

/// Arguments of `saga abandon`.
#[derive(Debug, clap::Args)]
struct Abandon {
    /// The run's id
    #[arg(value_name = "RUN")]
    run: String,
    /// Why: something of the run stays, and somebody will find it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    how: How,
}

/// How the decision is carried out.
#[derive(Debug, clap::Args)]
struct How {
    /// The step that is meant, as `haulage show` names it: "publish orders". Refused if it is another one's turn by now;
    /// without it, the one is meant that can't be undone when the command begins
    #[arg(long, value_name = "STEP", default_value = "")]
    step: String,
    /// Who decides, as the log keeps it
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "", value_parser = who::asks)]
    by: String,
    /// Follow the run until it is at rest, or stuck again
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    node: NodeOptions,
}

/// Decides.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let (run_id, decision, reason, how) = match args.decision {
        Decide::Retry(retry) => (retry.run, Decision::Retry, retry.reason, retry.how),
        Decide::Abandon(abandon) => (abandon.run, Decision::Abandon, abandon.reason, abandon.how),
    };
    let command = match decision {
        Decision::Abandon => format!("saga abandon {run_id} --reason TEXT"),
        Decision::Retry | Decision::Unspecified => format!("saga retry {run_id}"),
    };
    let request = ResolveRequest {
        run_id,
        decision: decision.into(),
        reason,
        by: how.by,
        step: how.step,
    };
    let deed = Deed {
        run: &request.run_id,
        command,
        busy: "another process works in this home, and only it can decide about a run there",
        // A run that is undone is what was asked for.
        exit: |state| {
            matches!(state, RunState::Failed | RunState::Cancelled | RunState::Reverted).then_some(Exit::Success)
        },
    };
    let mut signals = Signals::listen()?;
    if let Some(addresses) = &globals.coordinator {
        how.node.refuse_destinations()?;
        let client = reach::coordinator(addresses).await?;
        let asked = decide(&client, &request).await.explained()?;
        said(&request, how.watch, globals)?;
        if !how.watch {
            return Ok(Exit::Success);
        }
        return deed.to_the_end(&client, asked, &mut signals, globals).await;
    }
    let ask = async |client: &Client| decide(client, &request).await;
    deed.in_home(ask, &how.node, &mut signals, globals).await
}

/// Asks about the step that stands in the way now, and about no other when the answer is lost and it asks again.
async fn decide(client: &Client, request: &ResolveRequest) -> Result<u64, Status> {
    let mut request = request.clone();
    if request.step.is_empty() {
        request.step = api::undoing(client, &request.run_id).await?;
    }
    api::resolve(client, &request).await
}

fn said(request: &ResolveRequest, watched: bool, globals: &Globals) -> std::io::Result<()> {
    let word = match request.decision() {
        Decision::Abandon => "abandon",
        Decision::Retry | Decision::Unspecified => "retry",
    };
    if globals.output().is_json() {
        let fields = json!({"run_id": request.run_id, "decision": word, "reason": request.reason});
        globals.output().json(&to_json::typed("resolved", fields))?;
    } else if !watched {
        let watch = globals.hint(&format!("watch {}", request.run_id));
        note(format!("undoing {} goes on; follow it with: {watch}", request.run_id));
    }
    Ok(())
}
