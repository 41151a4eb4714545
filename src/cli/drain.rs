//! `haulage drain`: a node is asked to leave, from outside.

use std::time::Duration;

use anyhow::{Result, bail};
use haulage_proto::v1::{DrainNodeRequest, ListNodesRequest};

use crate::api::{self, Client, Explain as _};
use crate::cli::{Globals, reach};
use crate::exit::Exit;
use crate::output::note;

/// How often it is looked whether the node has left.
const LOOK: Duration = Duration::from_millis(250);

const AFTER_HELP: &str = "\
Examples:
  haulage drain node-1 --coordinator http://coordinator:7400
  haulage drain node-1 --wait    returns when the node has left

The node takes nothing new, finishes its chunks or commits what it has of them and hands the rest to other nodes, and its
process ends with exit code 0. The same happens on a SIGTERM to it. `haulage nodes` shows it as draining until then.";

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The node's name, as `haulage nodes` lists it
    #[arg(value_name = "NODE")]
    node: String,
    /// Wait until it has left
    #[arg(long)]
    wait: bool,
}

/// Asks, and waits if that is wanted.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let mut client = reach::required(globals, "; `haulage run` works without nodes").await?;
    let request = DrainNodeRequest {
        node: args.node.clone(),
    };
    client.drain_node(api::call(request)).await.explained()?;
    let mut left = false;
    if args.wait {
        note(format!("node {} is draining", args.node));
        until_left(&mut client, &args.node).await?;
        left = true;
    }
    let output = globals.output();
    if output.is_json() {
        output.json(&serde_json::json!({"node": args.node, "state": if left { "left" } else { "draining" }}))?;
    } else if left {
        output.line(format!("node {} has left", args.node))?;
    } else {
        output.line(format!(
            "node {} is draining; {} shows it until it has left",
            args.node,
            globals.hint("nodes")
        ))?;
    }
    Ok(Exit::Success)
}

/// Returns when the node is gone from the list, or another process has its name.
async fn until_left(client: &mut Client, name: &str) -> Result<()> {
    loop {
        let listed = client.list_nodes(api::call(ListNodesRequest {})).await;
        let nodes = match listed {
            Ok(listed) => listed.into_inner().nodes,
            // The coordinator may be restarted meanwhile.
            Err(status) if api::may_pass(&status) => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(status) => return Err(api::explain(&status)),
        };
        match nodes
            .iter()
            .find(|node| node.name == name)
            .map(|node| node.state.as_str())
        {
            None | Some("alive") => return Ok(()),
            Some("lost") => bail!("node {name} was lost before it had handed everything back; its work runs elsewhere"),
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
