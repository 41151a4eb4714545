//! Whoever reads the target while runs publish to it sees the old state or the whole new one, never a part.
//!
//! A reader polls during two runs that follow each other, in every mode and on every destination. It asks for the number
//! of rows and for a sum, in one statement, and each answer must be one of the states that a run published.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;

use super::support::cluster::Cluster;
use super::support::figures::Numbers;
use super::support::postgres::Postgres;
use super::support::process::Verb;

/// What a reader saw: rows and sum; `None` while there is no table.
type Seen = BTreeSet<Option<(i64, i64)>>;

const READ: &str = "SELECT count(*), CAST(coalesce(sum(id), 0) AS bigint) FROM numbers";

/// Rows of the two files: ids 0..FIRST, and SECOND_FROM..SECOND_TO.
const FIRST: i64 = 20_000;
const SECOND_FROM: i64 = 10_000;
const SECOND_TO: i64 = 40_000;

fn sum(from: i64, to: i64) -> i64 {
    (from..to).sum()
}

/// The states after the first and the second run.
fn states(mode: &str) -> [(i64, i64); 2] {
    let first = (FIRST, sum(0, FIRST));
    let second = match mode {
        "replace" => (SECOND_TO - SECOND_FROM, sum(SECOND_FROM, SECOND_TO)),
        "merge" => (SECOND_TO, sum(0, SECOND_TO)),
        _ => (first.0 + SECOND_TO - SECOND_FROM, first.1 + sum(SECOND_FROM, SECOND_TO)),
    };
    [first, second]
}

/// A pipeline over `FILE.csv`, in this mode, with several chunks and segments.
fn write(folder: &Path, mode: &str) -> Result<()> {
    for (file, from, to) in [("first", 0, FIRST), ("second", SECOND_FROM, SECOND_TO)] {
        let mut text = String::from("id,name\n");
        for id in from..to {
            text.push_str(&format!("{id},{file} {id}\n"));
        }
        std::fs::write(folder.join(format!("{file}.csv")), text)?;
    }
    let key = if mode == "append" { "" } else { ", key: [id]" };
    let text = format!(
        "pipeline: numbers\ncheckpoint_rows: 2000\nparams:\n  file: text\nsources:\n  raw:\n    csv: \"{{{{ file }}}}.csv\"\n    \
         chunk_size: 100kB\n    columns: {{id: bigint!, name: text}}\n\
         loads:\n  numbers: {{from: raw, to: warehouse, table: numbers, mode: {mode}{key}}}\n"
    );
    std::fs::write(folder.join("pipeline.yaml"), text)?;
    Ok(())
}

async fn run(folder: &Path, file: &str, warehouse: &str) -> Result<()> {
    Verb::new(folder)
        .args(["run", "pipeline.yaml", "--param", &format!("file={file}")])
        .env("HAULAGE_DESTINATION_WAREHOUSE", warehouse)
        .output()
        .await?
        .success()?;
    Ok(())
}

/// Reads again and again until told to stop.
fn poll<F>(stop: Arc<AtomicBool>, read: impl Fn() -> F + Send + 'static) -> JoinHandle<Result<(Seen, u64)>>
where
    F: Future<Output = Result<Option<(i64, i64)>>> + Send,
{
    tokio::spawn(async move {
        let (mut seen, mut reads) = (Seen::new(), 0);
        while !stop.load(Ordering::Relaxed) {
            seen.insert(read().await?);
            reads += 1;
        }
        Ok((seen, reads))
    })
}

async fn check(mode: &str, seen: JoinHandle<Result<(Seen, u64)>>, last: Option<(i64, i64)>) -> Result<()> {
    let (seen, reads) = seen.await??;
    let [first, second] = states(mode);
    let allowed: Seen = [None, Some((0, 0)), Some(first), Some(second)].into();
    ensure!(
        seen.is_subset(&allowed),
        "{mode}: a reader saw {seen:?}, which no run published"
    );
    // The table is made by the run that fills it: an empty one is a part of a run.
    ensure!(
        !seen.contains(&Some((0, 0))),
        "{mode}: a reader saw the target before its rows"
    );
    ensure!(
        seen.contains(&Some(first)),
        "{mode}: no reader saw the first state, in {reads} reads"
    );
    ensure!(
        last == Some(second),
        "{mode}: in the end the target holds {last:?}, not {second:?}"
    );
    Ok(())
}

async fn read_postgres(pool: &PgPool) -> Result<Option<(i64, i64)>> {
    match sqlx::query_as(AssertSqlSafe(READ)).fetch_one(pool).await {
        Ok(row) => Ok(Some(row)),
        // 42P01: there is no such table.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(None),
        Err(error) => Err(error).context("a reader of the target was refused"),
    }
}

async fn read_sqlite(path: &Path) -> Result<Option<(i64, i64)>> {
    if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let pool = SqlitePool::connect_with(options).await?;
    let answer = sqlx::query_as(AssertSqlSafe(READ)).fetch_one(&pool).await;
    pool.close().await;
    match answer {
        Ok(row) => Ok(Some(row)),
        Err(sqlx::Error::Database(error)) if error.message().contains("no such table") => Ok(None),
        Err(error) => bail!("a reader of the target was refused: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_postgres_see_all_of_a_run_or_nothing() -> Result<()> {
    let postgres = Postgres::start().await?;
    for mode in ["append", "replace", "merge"] {
        let folder = tempfile::tempdir()?;
        write(folder.path(), mode)?;
        let pool = postgres.create(mode).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = pool.clone();
        let seen = poll(stop.clone(), move || {
            let pool = reader.clone();
            async move { read_postgres(&pool).await }
        });
        let url = postgres.url(mode);
        run(folder.path(), "first", &url).await?;
        run(folder.path(), "second", &url).await?;
        stop.store(true, Ordering::Relaxed);
        check(mode, seen, read_postgres(&pool).await?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sqlite_see_all_of_a_run_or_nothing() -> Result<()> {
    for mode in ["append", "replace", "merge"] {
        let folder = tempfile::tempdir()?;
        write(folder.path(), mode)?;
        let path = folder.path().join("warehouse.db");
        let stop = Arc::new(AtomicBool::new(false));
        let reader = path.clone();
        let seen = poll(stop.clone(), move || {
            let path = reader.clone();
            async move { read_sqlite(&path).await }
        });
        let url = format!("sqlite:{}", path.display());
        run(folder.path(), "first", &url).await?;
        run(folder.path(), "second", &url).await?;
        stop.store(true, Ordering::Relaxed);
        check(mode, seen, read_sqlite(&path).await?).await?;
    }
    Ok(())
}

/// The node keeps the file open from run to run, and others open and close it in between, as a dashboard does. What they
/// take with them when they go must be nothing of the node's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_and_goes_between_runs_takes_nothing_away() -> Result<()> {
    let numbers = Numbers::new(0, 70_000, 800, "SELECT id, name FROM raw")?;
    let cluster = Cluster::start(numbers.folder(), numbers.settings(1)).await?;
    for run in 1..=5 {
        let rows: String = (0..run * 900).map(|id| format!("{id},of run {run}\n")).collect();
        std::fs::write(numbers.folder().join("numbers.csv"), format!("id,name\n{rows}"))?;
        let (id, _) = cluster.submit(&numbers.pipeline(), &["--rerun"]).await?;
        cluster.watch(&id).await?.success()?;
        let seen = looked_at_by_another_process(&numbers.warehouse())?;
        ensure!(
            seen == format!("of run {run} {}", run * 900),
            "run {run} is published, and others see {seen:?}"
        );
    }
    Ok(())
}

/// Opens the file, reads and closes it, as SQLite's own library does it in whatever program.
fn looked_at_by_another_process(file: &Path) -> Result<String> {
    let script = "import sqlite3, sys\nfile = sqlite3.connect(sys.argv[1])\n\
                  print(*file.execute('SELECT max(name), count(*) FROM out').fetchone())\nfile.close()";
    let looked = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(file)
        .output()?;
    ensure!(looked.status.success(), "{}", String::from_utf8_lossy(&looked.stderr));
    Ok(String::from_utf8(looked.stdout)?.trim_end().to_owned())
}
