//! Settings of whatever touches data, wherever it runs: in a node, in `haulage run`, in `haulage plan`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use haulage_node::config::NodeConfig;
use haulage_node::fault::Fault;
use haulage_plan::definition::Definition;

use crate::config::{self, AddressArg};
use crate::exit::Usage;

/// How a node reaches destinations and S3, and how much it may use.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeOptions {
    /// Where a destination of the pipeline is: postgres://..., sqlite:PATH, file:///FOLDER, s3://BUCKET/PREFIX or secret://NAME; may be given several times
    /// (or one variable `HAULAGE_DESTINATION_NAME` each)
    #[arg(long, value_name = "NAME=URL", value_parser = unchecked)]
    pub(crate) destination: Vec<AddressArg>,
    /// Where the database of a source is, by the name of its connection: postgres://..., mysql://... or secret://NAME; may
    /// be given several times (or one variable `HAULAGE_SOURCE_NAME` each)
    #[arg(long, value_name = "NAME=URL", value_parser = unchecked)]
    pub(crate) source: Vec<AddressArg>,
    /// A folder with one file per secret, for secret://NAME; the variable `HAULAGE_SECRET_NAME` comes first
    #[arg(long, value_name = "DIR", env = "HAULAGE_SECRETS_DIR")]
    pub(crate) secrets_dir: Option<PathBuf>,
    /// How many chunks are worked on at once [default: the number of cores]
    #[arg(long, value_name = "N", env = "HAULAGE_SLOTS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: Option<u32>,
    /// Memory for rows in flight, for example 256MiB or 2GiB [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "HAULAGE_MEMORY", value_parser = config::parse_size)]
    pub(crate) memory: Option<u64>,
    /// How many connections write to one destination at once; a chunk takes one for each load of its stage, and steps take
    /// a few beside them [default: 32]
    #[arg(long, value_name = "N", env = "HAULAGE_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max_connections: Option<u32>,
    /// Name S3 buckets in the path and not in the host name, as most servers other than AWS want it
    #[arg(long, env = "HAULAGE_S3_PATH_STYLE", value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) s3_path_style: bool,
}

/// The least that DataFusion can work with.
const MIN_MEMORY: u64 = 16 << 20;

// An argument parser that refuses prints what it was given, and that may be a password.
fn unchecked(text: &str) -> Result<AddressArg, std::convert::Infallible> {
    Ok(AddressArg::from(text.to_owned()))
}

impl NodeOptions {
    /// Whether somebody has said where a destination is.
    pub(crate) fn names(&self, destination: &str) -> Result<bool> {
        Ok(config::destinations(&self.destination, config::environment())?.contains_key(destination))
    }

    /// Refuses a `--destination` of a name that the pipeline doesn't load to: a slip there would send the rows to the
    /// default. Likewise a `--source` of a name that it doesn't read from. Variables of the environment may be meant for other pipelines.
    pub(crate) fn check_names(&self, definition: &Definition) -> Result<()> {
        let loads = haulage_plan::outline(definition);
        let known: BTreeSet<&str> = loads.iter().map(|load| load.destination.as_str()).collect();
        for given in config::destinations(&self.destination, std::iter::empty())?.keys() {
            if !known.contains(given.as_str()) {
                let help = haulage_plan::did_you_mean(given, known.iter().copied());
                let help = help.map(|help| format!("; {help}")).unwrap_or_default();
                return Err(Usage(format!(
                    "--destination {given}=...: no load of the pipeline goes to a destination `{given}`{help}"
                ))
                .into());
            }
        }
        let known: BTreeSet<&str> = definition
            .sources
            .values()
            .filter_map(|source| source.kind.connection())
            .collect();
        for given in config::sources(&self.source, std::iter::empty())?.keys() {
            if !known.contains(given.as_str()) {
                let help = haulage_plan::did_you_mean(given, known.iter().copied());
                let help = help.map(|help| format!("; {help}")).unwrap_or_default();
                return Err(Usage(format!(
                    "--source {given}=...: no source of the pipeline reads from a connection `{given}`{help}"
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Refuses a `--destination` or `--source` where a cluster does the work: its nodes know where these are, and to drop
    /// the address would send the rows elsewhere.
    pub(crate) fn refuse_destinations(&self) -> Result<()> {
        let destinations = config::destinations(&self.destination, std::iter::empty())?;
        let sources = config::sources(&self.source, std::iter::empty())?;
        let destinations = destinations.keys().map(|name| ("destination", name));
        let Some((what, name)) = destinations.chain(sources.keys().map(|name| ("source", name))).next() else {
            return Ok(());
        };
        let message = format!(
            "--{what} {name}=... has no effect with --coordinator: the cluster's nodes know where `{name}` is; leave \
             it out and start the nodes with it, or leave out --coordinator to run here"
        );
        Err(Usage(message).into())
    }

    /// Puts the settings into a node's configuration. `warehouse` is where the destination of that name is when nobody
    /// says otherwise.
    pub(crate) fn apply(&self, node: &mut NodeConfig, warehouse: Option<String>) -> Result<()> {
        node.destinations = config::destinations(&self.destination, config::environment())?;
        if let Some(url) = warehouse {
            node.destinations.entry("warehouse".to_owned()).or_insert(url);
        }
        node.sources = config::sources(&self.source, config::environment())?;
        node.secrets_dir.clone_from(&self.secrets_dir);
        if let Some(slots) = self.slots {
            node.slots = slots;
        }
        if let Some(memory) = self.memory {
            if memory < MIN_MEMORY {
                return Err(Usage("--memory must be at least 16MiB".into()).into());
            }
            node.memory_bytes = memory;
        }
        if let Some(connections) = self.max_connections {
            node.connections = connections;
        }
        node.s3.path_style = self.s3_path_style;
        node.fault = Fault::from_env()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Probe {
        #[command(flatten)]
        options: NodeOptions,
    }

    #[test]
    fn settings_reach_the_node_and_the_warehouse_has_a_default() {
        let probe = Probe::parse_from([
            "probe",
            "--slots",
            "3",
            "--memory",
            "64MiB",
            "--max-connections",
            "5",
            "--s3-path-style",
            "--destination",
            "lake=sqlite:lake.db",
        ]);
        let mut node = NodeConfig::new("n", "checkpoints");
        probe
            .options
            .apply(&mut node, Some("sqlite:home.db".into()))
            .expect("valid");
        assert_eq!((node.slots, node.memory_bytes, node.s3.path_style), (3, 64 << 20, true));
        assert_eq!(node.connections, 5);
        assert_eq!(node.destinations["lake"], "sqlite:lake.db");
        assert_eq!(node.destinations["warehouse"], "sqlite:home.db");

        let probe = Probe::parse_from(["probe", "--destination", "warehouse=sqlite:mine.db", "--memory", "1MiB"]);
        assert!(
            probe
                .options
                .apply(&mut node, None)
                .is_err_and(|error| error.is::<Usage>())
        );
        assert_eq!(node.destinations["warehouse"], "sqlite:mine.db");
        assert!(!probe.options.s3_path_style);
    }
}
