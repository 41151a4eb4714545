//! How much memory a node needs for how many rows: generated Parquet files through SQL into PostgreSQL, and the node's
//! resident memory all the while. It has to stay below what a node is allowed, and must not grow with what has passed
//! through. No test of every day; `tests/bench/memory` runs it. Of time it asks nothing, and prints it.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

mod rows;
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};

use rows::Made;
use support::cluster::{Cluster, Settings, check_state, run_of};
use support::postgres::Postgres;
use support::process::Service;

/// What a node's process may have in memory.
const ALLOWED_MIB: u64 = 512;
/// How much more the second half of a run may have at its peak than the first: 5 MiB in 100 are chance.
const GROWTH: f64 = 1.05;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(50);
/// Parts of the run whose peaks are printed.
const PARTS: usize = 10;

/// Generates Parquet files, loads them through SQL into a PostgreSQL of its own with one coordinator and one node, each a
/// process, and prints rows per second and the node's memory over time. Fails if the node has more than 512 MiB, if the
/// second half of the run needs more than the first, or if PostgreSQL has other rows than were generated.
#[derive(Parser)]
#[command(name = "tests/bench/memory")]
struct Args {
    /// How many rows: 500k, 50m
    #[arg(long, value_name = "N", default_value = "50m", value_parser = number)]
    rows: u64,
    /// In how many files.
    #[arg(long, value_name = "N", default_value_t = 8)]
    files: u64,
    /// The same seed makes the same rows.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The node's --memory: what its SQL may use.
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    memory: String,
    /// Chunks that the node works on at once.
    #[arg(long, value_name = "N", default_value_t = 2)]
    slots: usize,
    /// Where the files are put, 40 bytes a row; PostgreSQL's go where temporary files go
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

fn number(text: &str) -> Result<u64> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => text
            .strip_suffix(['m', 'M'])
            .map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let rows = digits.parse::<u64>()?.checked_mul(unit).context("too many")?;
    ensure!(rows > 0, "at least one row");
    Ok(rows)
}

const PIPELINE: &str = "pipeline: memory
sources:
  raw: {parquet: 'rows-*.parquet'}
  kinds: {csv: kinds.csv, lookup: true, columns: {kind: text!, label: text!, weight: double!}}
steps:
  clean: |
    SELECT id, at, customer, kind, amount, quantity, upper(note) AS note, date_trunc('day', at) AS day
    FROM raw
    WHERE quantity IS NOT NULL
  named: |
    SELECT c.*, k.label, c.quantity * k.weight AS weight
    FROM clean c LEFT JOIN kinds k ON k.kind = c.kind
loads:
  rows: {from: named, to: warehouse, table: rows, mode: append}
";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.context("a folder for the files")?;
    let path = folder.path();
    let began = Instant::now();
    let made = rows::write(path, args.seed, args.rows, args.files)?;
    println!(
        "{} rows in {} files, {} MiB of Parquet, written in {:.0} s",
        made.rows,
        args.files,
        made.bytes >> 20,
        began.elapsed().as_secs_f64()
    );
    std::fs::write(path.join("memory.yaml"), PIPELINE)?;
    let postgres = Postgres::start().await?;
    let settings = Settings {
        ledger: format!("sqlite:{}", path.join("ledger.db").display()),
        warehouse: postgres.url("postgres"),
        store: path.join("store").display().to_string(),
        nodes: 0,
        envs: vec![("HAULAGE_MEMORY".to_owned(), args.memory.clone())],
        faults: None,
    };
    let mut cluster = Cluster::start(path, settings).await?;
    cluster.add_node_with_slots("node", args.slots)?;
    cluster.until_alive(1).await?;
    let (run, _) = cluster.submit(&path.join("memory.yaml"), &[]).await?;
    let began = Instant::now();
    let watch = cluster.client().args(["watch", &run]).spawn("watch")?;
    let samples = sample(watch, cluster.node("node")?).await?;
    let seconds = began.elapsed().as_secs_f64();
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    check(&postgres, &made).await?;
    ensure!(
        run_of(&shown)["counts"]["read"] == made.rows,
        "{}",
        run_of(&shown)["counts"]
    );
    report(&args, &made, seconds, &samples, cluster.node("node")?.memory()?.1)
}

/// A look at the node's memory: when, and its resident bytes.
type Sample = (Duration, u64);

/// Looks at the memory of a node until the watch of its run has ended.
async fn sample(mut watch: Service, node: &Service) -> Result<Vec<Sample>> {
    let began = Instant::now();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples = Vec::new();
    while !watch.has_ended()? {
        ticks.tick().await;
        samples.push((began.elapsed(), node.memory()?.0));
    }
    Ok(samples)
}

/// Fails unless PostgreSQL has the rows that were generated, by their number and sums.
async fn check(postgres: &Postgres, made: &Made) -> Result<()> {
    let sums = "SELECT count(*)::text || ' ' || sum(id)::text || ' ' || sum(amount)::text || ' ' || count(note)::text \
                || ' ' || count(label)::text FROM rows";
    let found: String = sqlx::query_scalar(sums)
        .fetch_one(&postgres.pool("postgres").await?)
        .await?;
    let expected = made.sums();
    ensure!(found == expected, "PostgreSQL has {found}, generated were {expected}");
    Ok(())
}

fn report(args: &Args, made: &Made, seconds: f64, samples: &[Sample], peak: u64) -> Result<()> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let all = samples.last().context("no look at the memory")?.0;
    let mut parts = [0u64; PARTS];
    for (at, bytes) in samples {
        let part = (at.as_secs_f64() / all.as_secs_f64() * PARTS as f64) as usize;
        let part = &mut parts[part.min(PARTS - 1)];
        *part = (*part).max(*bytes);
    }
    let curve: Vec<String> = parts.iter().map(|bytes| format!("{:.0}", mib(*bytes))).collect();
    println!(
        "read {} rows, loaded {} in {seconds:.0} s: {:.0} rows/s with {} slots, --memory {}, {}",
        made.rows,
        made.loaded,
        made.rows as f64 / seconds,
        args.slots,
        args.memory,
        if cfg!(debug_assertions) {
            "a debug build"
        } else {
            "optimised"
        }
    );
    println!("the node's peak: {:.0} MiB of {ALLOWED_MIB}", mib(peak));
    println!("its peak in each tenth of the run, MiB: {}", curve.join(" "));
    ensure!(peak < ALLOWED_MIB << 20, "the node has had more than {ALLOWED_MIB} MiB");
    let most = |parts: &[u64]| parts.iter().copied().max().unwrap_or_default();
    let (first, second) = parts.split_at(PARTS / 2);
    ensure!(
        mib(most(second)) <= mib(most(first)) * GROWTH,
        "the curve isn't flat: {:.0} MiB in the first half, {:.0} MiB in the second",
        mib(most(first)),
        mib(most(second))
    );
    println!("the curve is flat");
    Ok(())
}

impl Made {
    fn sums(&self) -> String {
        let (whole, cents) = (self.cents / 100, self.cents % 100);
        format!(
            "{} {} {whole}.{cents:02} {} {}",
            self.loaded, self.ids, self.notes, self.loaded
        )
    }
}

/// Where the lookup of kinds is.
fn kinds(folder: &Path) -> PathBuf {
    folder.join("kinds.csv")
}
