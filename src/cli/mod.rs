//! The command line: one file per verb, each with its arguments, its help and its `run`.
//!
//! Verbs print results through [`crate::output`] and return how the process ends; they decide nothing about a run.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::exit::{Exit, Usage};
use crate::output::{Format, Output};
use crate::telemetry::{LogFormat, Role};

pub(crate) mod cancel;
pub(crate) mod close;
pub(crate) mod coordinator;
pub(crate) mod deed;
pub(crate) mod drain;
pub(crate) mod infer;
pub(crate) mod node;
pub(crate) mod node_options;
pub(crate) mod nodes;
pub(crate) mod pipeline_options;
pub(crate) mod plan;
pub(crate) mod prune;
pub(crate) mod reach;
pub(crate) mod receipt;
pub(crate) mod rejects;
pub(crate) mod replay;
pub(crate) mod revert;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod saga;
pub(crate) mod show;
pub(crate) mod sources;
pub(crate) mod state;
pub(crate) mod submit;
pub(crate) mod validate;
pub(crate) mod verify;
pub(crate) mod watch;
pub(crate) mod who;
pub(crate) mod why;

const ABOUT: &str = "Moves data through pipelines and loads it exactly once";

const LONG_ABOUT: &str = "\
Moves data through pipelines and loads it exactly once.

A pipeline is one YAML file: where rows come from, the SQL that cleans and joins them, and the tables they go to.
`haulage run` works it off in this process. The same file runs unchanged on a cluster of one coordinator and any number
of nodes. Readers of a table see all of a run or nothing of it, and a run that fails leaves everything as it was.";

const AFTER_HELP: &str = "\
Start here:
  haulage infer 'data/*.csv'        the columns of a source, as a pipeline file declares them
  haulage validate pipeline.yaml    every mistake in the file, with line and column
  haulage plan pipeline.yaml        what a run would read, make and change; touches nothing
  haulage run pipeline.yaml         run it in this process; what it keeps is under .haulage/
  haulage rejects RUN               the rows that did not make it, with file, line and reason
  haulage verify RUN                whether its tables still have every row that it published
  haulage replay RUN pipeline.yaml  read them again by a corrected pipeline, and load what now passes

The same file on a cluster:
  haulage coordinator --ledger postgres://haulage@db/haulage
  haulage node --coordinator http://HOST:7400 --destination warehouse=postgres://loader@db/warehouse
  haulage submit pipeline.yaml --watch --coordinator http://HOST:7400

Exit codes: 0 done or already published, 1 failed, 2 wrong usage, 130 interrupted or cancelled.
Every option with [env: NAME] can be given by that environment variable. Traces go to where
OTEL_EXPORTER_OTLP_ENDPOINT says. `haulage help VERB` says more about each verb.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "haulage",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    max_term_width = 120,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// How results are printed: tables for people, JSON for programs (one object per line, or one document), and CSV for
    /// rejected rows
    #[arg(
        long,
        value_enum,
        global = true,
        default_value = "table",
        env = "HAULAGE_OUTPUT",
        help_heading = "Common"
    )]
    pub(crate) output: Format,
    /// The coordinator's address, http://HOST:PORT; several, separated by commas, are tried in turn
    #[arg(
        long,
        value_name = "URL",
        global = true,
        env = "HAULAGE_COORDINATOR",
        help_heading = "Common"
    )]
    pub(crate) coordinator: Option<String>,
    /// The folder in which `haulage run` keeps ledger, checkpoints and default warehouse
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        default_value = DEFAULT_HOME,
        env = "HAULAGE_HOME",
        help_heading = "Common"
    )]
    pub(crate) home: PathBuf,
    /// Say more on stderr; -vv and -vvv say even more (RUST_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Common")]
    pub(crate) verbose: u8,
    /// How log lines on stderr look
    #[arg(
        long,
        value_enum,
        global = true,
        default_value = "text",
        env = "HAULAGE_LOG_FORMAT",
        help_heading = "Common"
    )]
    pub(crate) log_format: LogFormat,
}

/// Where the home is unless told otherwise.
pub(crate) const DEFAULT_HOME: &str = ".haulage";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a pipeline in this process, or on a cluster with --coordinator, and show its progress
    Run(run::Args),
    /// Check a pipeline file: every mistake with line, column and a suggestion
    Validate(validate::Args),
    /// Show what a run would read, make and change, without touching anything
    Plan(plan::Args),
    /// Find the columns of a source with their types, as a pipeline file declares them
    Infer(infer::Args),
    /// Hand a pipeline to a coordinator
    Submit(submit::Args),
    /// Follow a run until it is at rest
    Watch(watch::Args),
    /// List runs, newest first
    Runs(runs::Args),
    /// Show one run: counts, stages, loads and everything that happened
    Show(show::Args),
    /// Ask a run to end, and undo what it has started
    Cancel(cancel::Args),
    /// Take back what a published run has made visible: every table is as it was before
    Revert(revert::Args),
    /// Decide about a run that can't be undone: try again, or leave a step as it is
    Saga(saga::Args),
    /// List the rows of a run that went to quarantine, with file, line, reason and raw text
    Rejects(rejects::Args),
    /// Show a run's receipt: what was read, left out and written, chunk by chunk, with checksums
    Receipt(receipt::Args),
    /// Compare a published run with its tables, row by row, and say what differs
    Verify(verify::Args),
    /// Say where a row of a table is from: run, source object and line
    Why(why::Args),
    /// Show how far incremental sources have been read, or set that by hand
    State(state::Args),
    /// Read the rejected rows of a run again by a corrected pipeline, and load what now passes
    Replay(replay::Args),
    /// Delete what old runs have left in the checkpoint store, their rejected rows among it
    Prune(prune::Args),
    /// List the nodes of a cluster
    Nodes(nodes::Args),
    /// Ask a node to leave: it hands its work back and ends
    Drain(drain::Args),
    /// Start a coordinator: it plans runs and hands out work
    Coordinator(coordinator::Args),
    /// Start a node: it reads, transforms and loads
    Node(node::Args),
}

impl Cli {
    /// What this process is, for logs and traces.
    pub(crate) fn role(&self) -> Role {
        match &self.verb {
            Verb::Run(_) | Verb::Replay(_) if self.globals.coordinator.is_none() => Role {
                name: "run",
                instance: None,
                daemon: false,
            },
            Verb::Coordinator(args) => Role {
                name: "coordinator",
                instance: args.instance(),
                daemon: true,
            },
            Verb::Node(args) => Role {
                name: "node",
                instance: Some(args.name()),
                daemon: true,
            },
            Verb::Run(_)
            | Verb::Replay(_)
            | Verb::Prune(_)
            | Verb::Validate(_)
            | Verb::Plan(_)
            | Verb::Infer(_)
            | Verb::Submit(_)
            | Verb::Watch(_)
            | Verb::Runs(_)
            | Verb::Show(_)
            | Verb::Cancel(_)
            | Verb::Revert(_)
            | Verb::Saga(_)
            | Verb::Rejects(_)
            | Verb::Receipt(_)
            | Verb::Verify(_)
            | Verb::Why(_)
            | Verb::State(_)
            | Verb::Nodes(_)
            | Verb::Drain(_) => Role {
                name: "client",
                instance: None,
                daemon: false,
            },
        }
    }

    /// Does what was asked for.
    pub(crate) async fn dispatch(self) -> Result<Exit> {
        let Self { globals, verb } = self;
        if globals.output == Format::Csv && !matches!(verb, Verb::Rejects(_)) {
            return Err(Usage("--output csv is for `haulage rejects` alone; use table or json".into()).into());
        }
        // Boxed: the largest verb would otherwise lie on the stack for all of them.
        match verb {
            Verb::Run(args) => Box::pin(run::run(args, &globals)).await,
            Verb::Validate(args) => Box::pin(validate::run(args, &globals)).await,
            Verb::Plan(args) => Box::pin(plan::run(args, &globals)).await,
            Verb::Infer(args) => Box::pin(infer::run(args, &globals)).await,
            Verb::Submit(args) => Box::pin(submit::run(args, &globals)).await,
            Verb::Watch(args) => Box::pin(watch::run(args, &globals)).await,
            Verb::Runs(args) => Box::pin(runs::run(args, &globals)).await,
            Verb::Show(args) => Box::pin(show::run(args, &globals)).await,
            Verb::Cancel(args) => Box::pin(cancel::run(args, &globals)).await,
            Verb::Revert(args) => Box::pin(revert::run(args, &globals)).await,
            Verb::Saga(args) => Box::pin(saga::run(args, &globals)).await,
            Verb::Rejects(args) => Box::pin(rejects::run(args, &globals)).await,
            Verb::Receipt(args) => Box::pin(receipt::run(args, &globals)).await,
            Verb::Verify(args) => Box::pin(verify::run(args, &globals)).await,
            Verb::Why(args) => Box::pin(why::run(args, &globals)).await,
            Verb::State(args) => Box::pin(state::run(args, &globals)).await,
            Verb::Prune(args) => Box::pin(prune::run(args, &globals)).await,
            Verb::Replay(args) => Box::pin(replay::run(args, &globals)).await,
            Verb::Nodes(args) => Box::pin(nodes::run(args, &globals)).await,
            Verb::Drain(args) => Box::pin(drain::run(args, &globals)).await,
            Verb::Coordinator(args) => Box::pin(coordinator::run(args, &globals)).await,
            Verb::Node(args) => Box::pin(node::run(args, &globals)).await,
        }
    }
}

impl Globals {
    /// Where results go.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.output)
    }

    /// A command for the user to type next, that finds the same coordinator or home as this one did.
    pub(crate) fn hint(&self, command: &str) -> String {
        let mut text = format!("haulage {command}");
        let from_environment = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match &self.coordinator {
            Some(url) if !from_environment("HAULAGE_COORDINATOR") => text.push_str(&format!(" --coordinator {url}")),
            Some(_) => {}
            None if self.home.as_os_str() != DEFAULT_HOME && !from_environment("HAULAGE_HOME") => {
                text.push_str(&format!(" --home {}", self.home.display()));
            }
            None => {}
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_that_may_hold_secrets_never_show_their_environment() {
        let command = Cli::command();
        for verb in command.get_subcommands() {
            for argument in verb.get_arguments() {
                let secret = ["ledger", "destination", "cookie"]
                    .iter()
                    .any(|word| argument.get_id().as_str() == *word);
                if secret && argument.get_env().is_some() {
                    assert!(
                        argument.is_hide_env_values_set(),
                        "{} {}",
                        verb.get_name(),
                        argument.get_id()
                    );
                }
            }
        }
    }

    #[test]
    fn every_verb_teaches_with_an_example() {
        for verb in Cli::command().get_subcommands() {
            let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                after.contains(&format!("haulage {}", verb.get_name())),
                "{} has no example",
                verb.get_name()
            );
        }
    }

    #[test]
    fn hints_repeat_where_to_look() {
        let parse = |arguments: &[&str]| Cli::try_parse_from(arguments).expect("valid").globals;
        let globals = parse(&["haulage", "runs", "--home", "/tmp/other"]);
        assert_eq!(globals.hint("rejects r"), "haulage rejects r --home /tmp/other");
        let globals = parse(&["haulage", "runs", "--coordinator", "http://c:7400"]);
        assert_eq!(
            globals.hint("rejects r"),
            "haulage rejects r --coordinator http://c:7400"
        );
    }
}
