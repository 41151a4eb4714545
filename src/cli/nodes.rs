//! `haulage nodes`: who leads, and the nodes that the leader knows.

use anyhow::Result;
use haulage_proto::v1::{Heartbeats, ListNodesRequest, ListNodesResponse, Node};

use crate::api::{self, Explain as _};
use crate::cli::{Globals, reach};
use crate::clock;
use crate::exit::Exit;
use crate::output::table::{Align, render};
use crate::output::{human, json, note};

const AFTER_HELP: &str = "\
Examples:
  haulage nodes --coordinator http://coordinator:7400
  haulage nodes --output json    one object a line; the first says who leads

A node is suspect 3 s after its last heartbeat and lost after 5 s; then its work goes to others. One that is draining
gets nothing new, and is gone from the list when it has left. Under `p99` and `max`: how far apart its heartbeats came in
the last five minutes; a node sends one every second.";

/// Arguments of `nodes`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {}

/// Lists nodes.
pub(crate) async fn run(_args: Args, globals: &Globals) -> Result<Exit> {
    let output = globals.output();
    let client = reach::required(globals, "; `haulage run` works without nodes").await?;
    let response = api::patiently(|| {
        let mut client = client.clone();
        async move { client.list_nodes(api::call(ListNodesRequest {})).await }
    })
    .await
    .explained()?;
    if output.is_json() {
        output.json(&json::leader(&response))?;
        for node in &response.nodes {
            output.json(&json::node(node))?;
        }
        return Ok(Exit::Success);
    }
    note(leader(&response));
    if response.nodes.is_empty() {
        note("no node has attached yet; start one with: haulage node --coordinator URL");
        return Ok(Exit::Success);
    }
    let columns = [
        ("node", Align::Left),
        ("state", Align::Left),
        ("busy", Align::Right),
        ("heartbeat", Align::Left),
        ("p99", Align::Right),
        ("max", Align::Right),
        ("version", Align::Left),
        ("work", Align::Left),
    ];
    let now = clock::now_ms();
    output.line(render(
        &columns,
        response.nodes.iter().map(|node| row(node, now)).collect(),
    ))?;
    Ok(Exit::Success)
}

/// Who leads, and who was asked.
fn leader(response: &ListNodesResponse) -> String {
    let ListNodesResponse {
        leader, answered_by, ..
    } = response;
    let asked = if leader == answered_by {
        String::new()
    } else {
        format!("; asked through {answered_by}, which stands by")
    };
    format!(
        "{leader} leads at {} since {} (epoch {}){asked}",
        response.leader_address,
        human::moment(response.leader_since),
        response.epoch
    )
}

fn row(node: &Node, now: u64) -> Vec<String> {
    vec![
        node.name.clone(),
        node.state.clone(),
        format!("{}/{}", node.running, node.slots),
        human::ago(node.last_heartbeat, now),
        apart(node, |beats| beats.p99_ms),
        apart(node, |beats| beats.max_ms),
        node.version.clone(),
        node.work.join(", "),
    ]
}

/// How far apart its heartbeats came; nothing before the second one.
fn apart(node: &Node, which: fn(&Heartbeats) -> u32) -> String {
    let beats = node.heartbeats.as_ref().filter(|beats| beats.count > 0);
    beats.map(|beats| format!("{} ms", which(beats))).unwrap_or_default()
}
