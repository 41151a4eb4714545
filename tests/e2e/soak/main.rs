//! Chaos for as long as it is told to, and trials of how long a dead process is missed: each prints a table. No test of
//! every day, so it is a program of its own that the tests of every day don't build. `tests/soak` runs it.

#![expect(clippy::print_stdout, reason = "tables are what it is for")]

#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
#[path = "../chaos/mod.rs"]
mod chaos;
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
#[path = "../support/mod.rs"]
mod support;
mod trials;

use anyhow::Result;
use clap::Parser;
use tokio::time::{Duration, Instant};

use chaos::report::Report;
use chaos::round::Story;
use chaos::workload::Workload;

/// A soak starts everything anew after so many rounds: tables that only grow would end it.
const CHAPTER: u64 = 24;
/// In turn.
const ALL: [Workload; 4] = [
    Workload::Append,
    Workload::Merge,
    Workload::Replace,
    Workload::TwoDestinations,
];

/// Chaos with real processes, for as long as you like: every workload in turn, seeded faults, readers all the while, and a
/// table in the end. Whatever is lost, doubled or half visible ends it with the seed, the faults and the logs.
///
/// A full disk is only tried as root, who may mount a tmpfs.
#[derive(Parser)]
#[command(name = "tests/soak")]
struct Args {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// The first seed: the same one makes the same faults and the same sources.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Instead: how long a dead node, leader and chunk actor are missed, each so many times.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    trials: Option<usize>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    match args.trials {
        Some(wanted) => trials::run(wanted, args.seed).await,
        None => soak(Duration::from_secs(args.minutes * 60), args.seed).await,
    }
}

async fn soak(time: Duration, seed: u64) -> Result<()> {
    let ends = Instant::now() + time;
    let mut report = Report::default();
    for chapter in seed.. {
        if Instant::now() >= ends {
            break;
        }
        let mut story = Story::begin(chapter, report).await?;
        let first = story.report.rounds;
        while story.report.rounds < first + CHAPTER && Instant::now() < ends {
            let workload = ALL[(story.report.rounds % 4) as usize];
            let played = story.round(workload).await;
            if let Err(error) = played {
                println!("{}", story.report);
                return Err(error.context(format!("seed {chapter}, from its first round on")));
            }
        }
        report = std::mem::take(&mut story.report);
        println!("{report}\n");
    }
    Ok(())
}
