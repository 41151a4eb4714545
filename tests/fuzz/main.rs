//! Fuzzing for as long as it is told to: nearly sound CSV, JSON lines, Parquet files, pipeline files and answers
//! of APIs, each held against what has to be true of it. No test of every day; `tests/fuzz/run` runs it, and what it finds becomes a test of its own.
//!
//! A worker process runs case after case and says which one it is at; this process watches it. So an input that ends the
//! process (a stack that overflows, memory without end) or never ends is a finding like any other. A case is made from
//! its seed, its number and the corpus alone.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

mod api;
mod corpus;
mod csv;
mod files;
mod frames;
mod json;
mod parquet;
mod pipeline;
mod random;
mod rest;

use std::io::{BufRead as _, BufReader, Write as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::time::{Duration, Instant};

use corpus::Corpus;
use random::Random;

/// The most of a processor that a case may take; even a debug build needs a small part of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that a case may take, also one that waits: a busy machine leaves it little of a processor.
const WAIT: Duration = Duration::from_secs(600);
/// Between two looks at a case that hasn't ended.
const LOOK: Duration = Duration::from_secs(5);
/// Address space of a worker, in KiB: an input that takes more is a finding.
const MEMORY_KIB: u64 = 4 << 20;
/// After so many findings it is over.
const FINDINGS: usize = 20;

/// Nearly sound inputs for the readers and the parser of pipeline files, for as long as you like. Every case is held
/// against what has to be true of it; what isn't is printed with its seed and number.
#[derive(Parser)]
#[command(name = "tests/fuzz/run")]
struct Args {
    /// How long, for each target.
    #[arg(long, value_name = "N", default_value_t = 10)]
    minutes: u64,
    /// The same seed makes the same cases.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What to fuzz; all of them in turn unless it is given.
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// More files to begin with, by their endings.
    #[arg(long, value_name = "FOLDER")]
    corpus: Vec<PathBuf>,
    /// Only this case, with its input left in a folder that is printed.
    #[arg(long, value_name = "N", requires = "target")]
    case: Option<u64>,
    /// For its own worker: run cases from this one on.
    #[arg(long, hide = true, requires = "folder")]
    worker_from: Option<u64>,
    /// For its own worker: where inputs are put.
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

/// What is fuzzed. A reader of something else is one more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Csv,
    Json,
    Parquet,
    Pipeline,
    Rest,
}

impl Target {
    fn corpus(self, more: &[PathBuf]) -> Result<Corpus> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench");
        let mut folders = vec![examples.as_path(), bench.as_path()];
        folders.extend(more.iter().map(PathBuf::as_path));
        match self {
            Self::Csv => csv::corpus(&folders),
            Self::Json => json::corpus(&folders),
            Self::Parquet => parquet::corpus(&folders),
            Self::Pipeline => pipeline::corpus(&folders),
            // What APIs give is made up.
            Self::Rest => Corpus::new(&[], &[], &[]),
        }
    }

    /// One case; the bytes of its input, or what isn't as it has to be.
    async fn case(self, random: &mut Random, corpus: &Corpus, folder: &Path) -> Result<usize> {
        match self {
            Self::Csv => csv::case(random, corpus, folder).await,
            Self::Json => json::case(random, corpus, folder).await,
            Self::Parquet => parquet::case(random, corpus, folder).await,
            Self::Pipeline => pipeline::case(random, corpus, folder),
            Self::Rest => rest::case(random).await,
        }
    }

    /// Whether a panic that the product catches itself is none: the crate that reads Parquet panics at some damage, and
    /// its caller makes a failure of it.
    fn catches_panics(self) -> bool {
        self == Self::Parquet
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Writes packed data; the name of the file.
fn pack(folder: &Path, name: &str, data: &[u8], random: &mut Random) -> Result<String> {
    if random.once_in(2) {
        let name = format!("{name}.zst");
        std::fs::write(folder.join(&name), zstd::encode_all(data, 1)?)?;
        return Ok(name);
    }
    let name = format!("{name}.gz");
    let mut packer =
        flate2::write::GzEncoder::new(std::fs::File::create(folder.join(&name))?, flate2::Compression::fast());
    packer.write_all(data)?;
    packer.finish()?;
    Ok(name)
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let (Some(from), Some(target), Some(folder)) = (args.worker_from, args.target, &args.folder) {
        work(&args, target, from, folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(case), Some(target)) = (args.case, args.target) {
        return one(&args, target, case);
    }
    let mut found = 0;
    for target in args
        .target
        .map_or(Target::value_variants().to_vec(), |target| vec![target])
    {
        found += watch(&args, target)?;
    }
    Ok(if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where inputs are put: in memory, if the system has such a folder.
fn folder() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("haulage-fuzz-");
    let made = if memory.is_dir() {
        builder.tempdir_in(memory)
    } else {
        builder.tempdir()
    };
    made.context("a folder for inputs")
}

/// Panics since the last look, with their places.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn runtime() -> Result<tokio::runtime::Runtime> {
    std::panic::set_hook(Box::new(|panic| {
        PANICS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(panic.to_string());
    }));
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Runs one case; what is wrong is a text.
fn run(
    target: Target,
    runtime: &tokio::runtime::Runtime,
    seed: u64,
    case: u64,
    corpus: &Corpus,
    folder: &Path,
) -> Result<usize, String> {
    let mut random = Random::new(seed, case);
    let work = || runtime.block_on(target.case(&mut random, corpus, folder));
    let ended = std::panic::catch_unwind(AssertUnwindSafe(work));
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    match ended {
        Err(_) => Err(format!("a panic gets out: {}", panics.join("; "))),
        Ok(Err(wrong)) => Err(format!("{wrong:#}")),
        Ok(Ok(_)) if !panics.is_empty() && !target.catches_panics() => Err(format!("a panic: {}", panics.join("; "))),
        Ok(Ok(bytes)) => Ok(bytes),
    }
}

/// The worker: runs cases until it is killed.
fn work(args: &Args, target: Target, from: u64, folder: &Path) -> Result<()> {
    let corpus = target.corpus(&args.corpus)?;
    let runtime = runtime()?;
    let mut out = std::io::stdout().lock();
    for case in from.. {
        writeln!(out, "case {case}")?;
        out.flush()?;
        match run(target, &runtime, args.seed, case, &corpus, folder) {
            Ok(bytes) => writeln!(out, "bytes {bytes}")?,
            Err(wrong) => writeln!(out, "wrong {}", wrong.replace('\n', " "))?,
        }
    }
    Ok(())
}

/// One case again, with its input kept.
fn one(args: &Args, target: Target, case: u64) -> Result<ExitCode> {
    let corpus = target.corpus(&args.corpus)?;
    let folder = folder()?.keep();
    println!("its files are in {}", folder.display());
    match run(target, &runtime()?, args.seed, case, &corpus, &folder) {
        Ok(bytes) => println!("fine, {bytes} bytes"),
        Err(wrong) => {
            println!("{wrong}");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a target has come to.
#[derive(Default)]
struct Tally {
    cases: u64,
    bytes: u64,
    slowest: Duration,
    findings: Vec<String>,
}

/// Has a worker run cases until the time is up; how many findings there were.
fn watch(args: &Args, target: Target) -> Result<usize> {
    let began = Instant::now();
    let ends = began + Duration::from_secs(args.minutes * 60);
    let mut tally = Tally::default();
    let mut next = 0;
    while Instant::now() < ends && tally.findings.len() < FINDINGS {
        next = one_worker(args, target, next, ends, &mut tally)?;
    }
    let name = target.name();
    println!(
        "{name}: {} cases of seed {}, {} MiB of input, in {:.1} minutes; the slowest took {:.1} s; {} findings",
        tally.cases,
        args.seed,
        tally.bytes >> 20,
        began.elapsed().as_secs_f64() / 60.0,
        tally.slowest.as_secs_f64(),
        tally.findings.len()
    );
    Ok(tally.findings.len())
}

/// What a process has used of a processor; nothing where the system has no `/proc`.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // In user and system mode, in hundredths of a second.
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// One worker, until it ends, hangs, or the time is up; the case to go on with.
fn one_worker(args: &Args, target: Target, from: u64, ends: Instant, tally: &mut Tally) -> Result<u64> {
    let name = target.name();
    let folder = folder()?;
    // The limit is the shell's to set; the worker is the shell's process after that.
    let script = format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(std::env::current_exe()?);
    command.args([
        "--target",
        &name,
        "--seed",
        &args.seed.to_string(),
        "--worker-from",
        &from.to_string(),
    ]);
    command.arg("--folder").arg(folder.path());
    for folder in &args.corpus {
        command.arg("--corpus").arg(folder);
    }
    let mut worker = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a worker")?;
    let output = worker.stdout.take().context("a worker without an output")?;
    let (said, heard) = sync_channel(64);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                break;
            }
        }
    });
    let finding = |case: u64, what: &str, tally: &mut Tally| {
        let mut again = format!("tests/fuzz/run --target {name} --seed {} --case {case}", args.seed);
        for folder in &args.corpus {
            again += &format!(" --corpus {}", folder.display());
        }
        println!("FINDING in {name} case {case}: {what}\n    {again}");
        tally.findings.push(what.to_owned());
    };
    let (mut at, mut since, mut used) = (None, Instant::now(), Duration::ZERO);
    let next = loop {
        if Instant::now() >= ends || tally.findings.len() >= FINDINGS {
            break at.map_or(from, |case| case + 1);
        }
        match heard.recv_timeout(LOOK) {
            Ok(line) => match (line.split_once(' '), at) {
                (Some(("case", number)), _) => {
                    (at, since, used) = (Some(number.parse::<u64>()?), Instant::now(), cpu(worker.id()));
                }
                (Some(("bytes", bytes)), Some(_)) => {
                    tally.cases += 1;
                    tally.bytes += bytes.parse::<u64>()?;
                    tally.slowest = tally.slowest.max(since.elapsed());
                }
                (Some(("wrong", what)), Some(case)) => {
                    tally.cases += 1;
                    finding(case, what, tally);
                }
                _ => bail!("a worker says {line:?}"),
            },
            Err(RecvTimeoutError::Timeout) => {
                let spent = cpu(worker.id()).saturating_sub(used);
                if spent < PATIENCE && since.elapsed() < WAIT {
                    continue;
                }
                let case = at.context("a worker doesn't begin")?;
                let took = since.elapsed();
                finding(
                    case,
                    &format!("it hasn't ended after {took:.0?}, {spent:.0?} of a processor"),
                    tally,
                );
                break case + 1;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = worker.wait()?;
                let case = at.with_context(|| format!("a worker doesn't begin: {status}"))?;
                finding(case, &format!("it ends the process: {status}"), tally);
                break case + 1;
            }
        }
    };
    // Whether it has ended by itself is known by now.
    worker.kill().ok();
    worker.wait()?;
    drop(heard);
    reader.join().ok();
    Ok(next)
}
