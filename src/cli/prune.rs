//! `haulage prune`: what runs at rest have left in the checkpoint store is deleted, by a node, or in a home by this process.

use std::time::Duration;

use anyhow::{Context as _, Result};
use haulage_proto::v1::PruneRequest;
use serde_json::json;

use crate::api::{Client, Explain as _};
use crate::cli::node_options::NodeOptions;
use crate::cli::{Globals, reach, who};
use crate::embedded::Embedded;
use crate::exit::Exit;
use crate::output::{Output, human, json as to_json};

const AFTER_HELP: &str = "\
Examples:
  haulage prune --older-than 30d --dry-run    what would go, run by run
  haulage prune --older-than 30d
  haulage prune --older-than 12h --coordinator http://coordinator:7400

A run keeps manifests of its segments and its rejected rows in the checkpoint store. Manifests are of no use once the run
is at rest, and go then. Rejected rows go with runs that have been at rest for as long as --older-than says, and can neither
be listed nor replayed after that; `haulage show RUN` says when they went and by whom. Runs that are not over, and rejected
rows that a replay is reading, are left alone. Without this command nothing is deleted but what is older than --keep-rejects
of the coordinator, or of `haulage run`, if that was given.";

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Rejected rows go with runs that came to rest so long ago: 30d, 12h, 90m or 0s
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: u64,
    /// Only say what there is to delete
    #[arg(long)]
    dry_run: bool,
    /// Who asks; kept in the runs' logs [default: $USER, or the user's number and the host]
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true, default_value = "", value_parser = who::asks)]
    by: String,
    #[command(flatten)]
    node: NodeOptions,
}

/// A retention: a number with s, m, h or d.
pub(crate) fn keep(text: &str) -> Result<Duration, String> {
    age(text).map(Duration::from_millis)
}

/// Milliseconds of a number with s, m, h or d.
fn age(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number with s, m, h or d, such as 30d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds * 1_000).ok_or_else(wrong)
}

/// Prunes.
pub(crate) async fn run(args: Args, globals: &Globals) -> Result<Exit> {
    let request = PruneRequest {
        older_than_ms: args.older_than,
        dry_run: args.dry_run,
        by: args.by,
    };
    if let Some(addresses) = &globals.coordinator {
        args.node.refuse_destinations()?;
        let client = reach::coordinator(addresses).await?;
        return prune(client, request, globals.output()).await;
    }
    let home = reach::existing_home(globals)?;
    let lock = home
        .lock()
        .context("another process works in this home; prune when that is done")?;
    let embedded = Embedded::start(&home, lock, &args.node).await?;
    let exit = prune(embedded.client(), request, globals.output()).await;
    embedded.stop().await;
    exit
}

async fn prune(mut client: Client, request: PruneRequest, output: Output) -> Result<Exit> {
    let dry_run = request.dry_run;
    let mut stream = client.prune(request).await.explained()?.into_inner();
    let (mut runs, mut objects, mut bytes, mut rejected) = (0, 0, 0, 0);
    while let Some(pruned) = stream.message().await.explained()? {
        runs += 1;
        objects += pruned.objects;
        bytes += pruned.bytes;
        rejected += pruned.rejected;
        if output.is_json() {
            let value = json!({
                "run_id": pruned.run_id,
                "objects": pruned.objects,
                "bytes": pruned.bytes,
                "rejected": pruned.rejected,
                "dry_run": dry_run,
            });
            output.json(&to_json::typed("pruned", value))?;
        } else {
            output.line(format!(
                "{}  {}, {}, {}",
                pruned.run_id,
                human::counted(pruned.objects, "object"),
                human::bytes(pruned.bytes),
                human::counted(pruned.rejected, "rejected row")
            ))?;
        }
    }
    if !output.is_json() {
        output.line(format!(
            "{} {} of {}: {}, with {}",
            if dry_run { "would delete" } else { "deleted" },
            human::counted(objects, "object"),
            human::counted(runs, "run"),
            human::bytes(bytes),
            human::counted(rejected, "rejected row")
        ))?;
    }
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_numbers_with_a_unit() {
        for (text, expected) in [("0s", Some(0)), ("90m", Some(5_400_000)), ("30d", Some(2_592_000_000))] {
            assert_eq!(age(text).ok(), expected, "{text}");
        }
        for wrong in [
            "",
            "d",
            "30",
            "3 d",
            "-1d",
            "3é",
            "99999999999999999999d",
            "999999999999999999d",
        ] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
