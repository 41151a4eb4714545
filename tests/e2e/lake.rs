//! Loads into files, in a folder and in S3: what a reader finds through the manifest is what was in the source, in every
//! format, after appends, replaces, reverts, failures and a kill.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

use super::support::cluster::{check_state, run_of};
use super::support::files::{of_file, unescaped};
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run, until};
use super::support::s3::S3;

/// A folder with a source, and a lake beside it.
struct Stage {
    folder: tempfile::TempDir,
    s3: Option<S3>,
    submissions: AtomicU32,
}

const ROWS: usize = 3_000;
const DAYS: [&str; 4] = ["2024-01-01", "2024-01-02", "2024-02-29", ""];

/// Of a row: id, day, region, amount, note. Nothing is `~`.
type Row = [String; 5];

fn row(id: usize) -> Row {
    let day = DAYS[id % DAYS.len()];
    let region = ["north", "a/b=c", "ü"][id % 3];
    let note = match id % 5 {
        0 => String::new(),
        1 => "two words".to_owned(),
        2 => "with \"quotes\", and a comma".to_owned(),
        3 => "a line\nand another".to_owned(),
        _ => format!("note {id}"),
    };
    [
        id.to_string(),
        day.to_owned(),
        region.to_owned(),
        format!("{}", id as f64 / 8.0),
        note,
    ]
}

/// As a reader finds it: an empty field of the source is no value.
fn expected(ids: std::ops::Range<usize>) -> Vec<Row> {
    let mut rows: Vec<Row> = ids
        .map(|id| row(id).map(|value| if value.is_empty() { "~".to_owned() } else { value }))
        .collect();
    rows.sort();
    rows
}

impl Stage {
    async fn new(in_s3: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("lake"))?;
        let s3 = match in_s3 {
            true => Some(S3::start(&["lake"]).await?),
            false => None,
        };
        let stage = Self {
            folder,
            s3,
            submissions: AtomicU32::new(0),
        };
        stage.source(0..ROWS)?;
        Ok(stage)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The lake's folder, which is a bucket if there is a server.
    fn lake(&self) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.folder("lake").join("deep"),
            None => self.path().join("lake"),
        }
    }

    fn source(&self, ids: std::ops::Range<usize>) -> Result<()> {
        let mut text = "id,day,region,amount,note\n".to_owned();
        for id in ids {
            let [id, day, region, amount, note] = row(id);
            let note = if note.contains(['"', ',', '\n']) {
                format!("\"{}\"", note.replace('"', "\"\""))
            } else {
                note
            };
            text.push_str(&format!("{id},{day},{region},{amount},{note}\n"));
        }
        Ok(std::fs::write(self.path().join("rows.csv"), text)?)
    }

    fn verb(&self, args: &[&str]) -> Verb {
        let lake = match &self.s3 {
            Some(_) => "s3://lake/deep".to_owned(),
            None => format!("file://{}", self.lake().display()),
        };
        let envs = self.s3.as_ref().map(S3::envs).unwrap_or_default();
        Verb::new(self.path())
            .args(args.iter().copied())
            .envs(&envs)
            .env("HAULAGE_DESTINATION_LAKE", lake)
    }

    /// Writes the pipeline with these loads, and checks.
    fn pipeline(&self, loads: &[&str], checks: &[&str]) -> Result<()> {
        let list = |head: &str, items: &[&str]| items.iter().map(|item| format!("{head}{item}\n")).collect::<String>();
        let checks = match checks {
            [] => String::new(),
            some => format!("checks:\n{}", list("  - ", some)),
        };
        // Every text is another submission, so that each call is another run.
        let submission = self.submissions.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "# {submission}\npipeline: p\ncheckpoint_rows: 500\nsources:\n  raw:\n    csv: rows.csv\n    chunk_size: 64KiB\n    columns: {{id: int!, \
             day: date, region: text, amount: double, note: text}}\nloads:\n{}{checks}",
            list("  ", loads)
        );
        Ok(std::fs::write(self.path().join("pipeline.yaml"), text)?)
    }

    async fn run(&self, loads: &[&str], checks: &[&str]) -> Result<Output> {
        self.pipeline(loads, checks)?;
        self.verb(&["run", "pipeline.yaml"]).output().await
    }

    /// The rows of a table as its newest version's manifest leads to them, sorted; none if there is no table.
    fn rows(&self, table: &str) -> Result<Option<Vec<Row>>> {
        let folder = self.lake().join(table);
        let Ok(state) = std::fs::read(folder.join("_haulage/table.json")) else {
            return Ok(None);
        };
        let state: Value = serde_json::from_slice(&state)?;
        let Some(manifest) = state["head"]["manifest"].as_str() else {
            return Ok(None);
        };
        let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join(manifest))?)?;
        let by: Vec<&str> = manifest["partition_by"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut rows = Vec::new();
        for file in manifest["files"].as_array().context("no files")? {
            let path = file["path"].as_str().context("no path")?;
            ensure!(file["bytes"] == std::fs::metadata(folder.join(path))?.len(), "{file}");
            let mut found = of_file(&folder.join(path))?;
            ensure!(file["rows"] == found.len(), "{file}: {} rows", found.len());
            // What is in the path is in no file.
            let of_path: BTreeMap<&str, String> = path
                .split('/')
                .filter_map(|part| part.split_once('='))
                .map(|(name, value)| (name, unescaped(value)))
                .collect();
            ensure!(
                of_path
                    .keys()
                    .copied()
                    .eq(by.iter().copied().collect::<std::collections::BTreeSet<_>>()),
                "{path}"
            );
            for row in &mut found {
                for (name, value) in &of_path {
                    ensure!(
                        row.insert((*name).to_owned(), value.clone()).is_none(),
                        "{name} is in {path}"
                    );
                }
            }
            for row in found {
                let value = |name: &str| row.get(name).cloned().with_context(|| format!("no {name} in {path}"));
                rows.push([
                    value("id")?,
                    value("day")?,
                    value("region")?,
                    value("amount")?,
                    value("note")?,
                ]);
            }
        }
        ensure!(manifest["rows"] == rows.len(), "{manifest}");
        rows.sort();
        Ok(Some(rows))
    }

    /// Nothing of a run is left that is over, but what a revert needs.
    fn check_no_staging(&self, table: &str) -> Result<()> {
        let loads = self.lake().join(table).join("_haulage/loads");
        let mut left = Vec::new();
        let mut folders = vec![loads];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    left.push(entry.path());
                }
            }
        }
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
}

async fn every_format(in_s3: bool) -> Result<()> {
    let stage = Stage::new(in_s3).await?;
    let loads = [
        "plain: {from: raw, to: lake, table: sales/plain, mode: replace, key: [id]}",
        "divided: {from: raw, to: lake, table: sales/divided, mode: append, partition_by: [day, region], compression: snappy}",
        "csv: {from: raw, to: lake, table: sales/csv, mode: append, format: csv}",
        "lines: {from: raw, to: lake, table: sales/lines, mode: replace, format: jsonl, compression: gzip, partition_by: region}",
    ];
    let said = stage.run(&loads, &[]).await?.success()?;
    ensure!(said.stdout.contains("12,000 rows in all loads"), "{}", said.stdout);
    for table in ["plain", "divided", "csv", "lines"] {
        let table = format!("sales/{table}");
        let rows = stage.rows(&table)?.with_context(|| format!("no table {table}"))?;
        ensure!(rows == expected(0..ROWS), "{table}: {} rows", rows.len());
        stage.check_no_staging(&table)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_in_a_folder_equals_its_source() -> Result<()> {
    every_format(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_in_s3_equals_its_source() -> Result<()> {
    every_format(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_add_up_a_replace_replaces_and_reverts_go_back() -> Result<()> {
    for in_s3 in [false, true] {
        let stage = Stage::new(in_s3).await?;
        let append = ["l: {from: raw, to: lake, table: t, mode: append, keep_previous: 3, partition_by: [day]}"];
        let mut runs = Vec::new();
        for ids in [0..1_000, 1_000..2_000] {
            stage.source(ids)?;
            stage.run(&append, &[]).await?.success()?;
            runs.push(newest_run(stage.path()).await?);
        }
        ensure!(runs[0] != runs[1]);
        ensure!(stage.rows("t")? == Some(expected(0..2_000)), "two appends");
        stage.source(2_000..2_500)?;
        let replace = ["l: {from: raw, to: lake, table: t, mode: replace, keep_previous: 3, format: csv}"];
        stage.run(&replace, &[]).await?.success()?;
        runs.push(newest_run(stage.path()).await?);
        ensure!(stage.rows("t")? == Some(expected(2_000..2_500)), "a replace");
        // The first can't go while the last stands on it.
        let args = ["revert", &runs[0], "--watch", "--reason", "wrong"];
        stage
            .verb(&args)
            .output()
            .await?
            .failure(&["has published to t since"])?;
        for (run, left) in [
            (&runs[2], Some(expected(0..2_000))),
            (&runs[0], Some(expected(1_000..2_000))),
            (&runs[1], Some(Vec::new())),
        ] {
            stage
                .verb(&["revert", run, "--watch", "--reason", "wrong"])
                .output()
                .await?
                .success()?;
            ensure!(stage.rows("t")? == left, "after the revert of {run}");
        }
        stage.check_no_staging("t")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_are_made_of_the_staged_files_and_block() -> Result<()> {
    let stage = Stage::new(false).await?;
    for format in ["parquet", "csv"] {
        let table = format!("t_{format}");
        let load = format!(
            "l: {{from: raw, to: lake, table: {table}, mode: replace, format: {format}, partition_by: [region]}}"
        );
        let hold = [
            "{unique: id}",
            "{not_null: [id, region]}",
            "{row_count: \">= 3000\"}",
            "{rejects: \"< 1%\"}",
            "{accepted: {region: [north, a/b=c, ü]}}",
            "{range: {amount: [0, 374.875]}}",
            "{range: {day: [2024-01-01, 2024-02-29]}}",
            "{outliers: {column: amount, method: mad, beyond: 3.5}}",
            "{outliers: {column: id, method: iqr, beyond: 1.5}}",
            "{row_count: {within: 20%, of_last: 5}}",
            "{sql: \"SELECT count(*) FROM staged WHERE amount < 0\", expect: \"= 0\"}",
        ];
        let said = stage.run(&[&load], &hold).await?.success()?;
        let shown = shown(&stage).await?;
        check_state(&shown, "published").with_context(|| said.stderr.clone())?;
        ensure!(stage.rows(&table)? == Some(expected(0..ROWS)));
        for (check, words) in [
            ("{unique: region}", "rows share 3 values"),
            ("{not_null: [day]}", "750 rows without a value"),
            (
                "{accepted: {region: [north, ü]}}",
                "1000 rows with another value: a/b=c",
            ),
            ("{range: {amount: [null, 374.5]}}", "3 rows out of range"),
            (
                "{range: {day: [2024-01-02, null]}}",
                "750 rows out of range: 2024-01-01",
            ),
            ("{row_count: \"< 3000\"}", "3000 rows"),
            (
                "{sql: \"SELECT max(id) FROM staged\", expect: \"< 2999\"}",
                "the query gave 2999",
            ),
            ("{outliers: {column: amount, method: zscore, beyond: 1}}", "outside"),
            ("{fresh: {day: 1h}}", "old"),
        ] {
            let other = load.replace("mode: replace", "mode: replace, keep_previous: 2");
            let said = stage.run(&[&other], &[check]).await?;
            ensure!(said.code != 0, "{check} holds: {}", said.stderr);
            let text = said.stderr.replace(',', "");
            ensure!(
                text.contains(&words.replace(',', "")),
                "{check}: {words}: {}",
                said.stderr
            );
            ensure!(
                stage.rows(&table)? == Some(expected(0..ROWS)),
                "{check} has changed something"
            );
            stage.check_no_staging(&table)?;
        }
    }
    Ok(())
}

async fn shown(stage: &Stage) -> Result<Value> {
    let run = newest_run(stage.path()).await?;
    stage
        .verb(&["show", &run, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_two_loads_is_taken_back_whole_whichever_fails() -> Result<()> {
    let stage = Stage::new(false).await?;
    let postgres = Postgres::start().await?;
    let pool = postgres.create("warehouse").await?;
    let warehouse = format!("warehouse={}", postgres.url("warehouse"));
    let side = stage.path().join("side.db");
    let side_is = format!("side=sqlite:{}", side.display());

    // PostgreSQL, then files: something else is where their manifest has to go.
    sqlx::raw_sql("CREATE TABLE t (id integer PRIMARY KEY, day date, region text, amount double precision, note text)")
        .execute(&pool)
        .await?;
    std::fs::create_dir_all(stage.lake().join("broken/_haulage"))?;
    std::fs::write(
        stage.lake().join("broken/_haulage/versions"),
        "a file where a folder has to be",
    )?;
    stage.pipeline(
        &[
            "first: {from: raw, to: warehouse, table: t, mode: merge, key: [id]}",
            "second: {from: raw, to: lake, table: broken, mode: append}",
        ],
        &[],
    )?;
    let said = stage
        .verb(&["run", "pipeline.yaml", "--destination", &warehouse])
        .output()
        .await?;
    said.failure(&["something else is in the table's place"])?;
    let shown_now = shown(&stage).await?;
    check_state(&shown_now, "failed")?;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&pool).await?;
    ensure!(rows == 0, "{rows} rows stay in PostgreSQL");
    ensure!(stage.rows("broken")?.is_none());
    stage.check_no_staging("broken")?;

    // Files, then SQLite, where a trigger refuses the rows.
    let good = ["first: {from: raw, to: lake, table: t, mode: append}"];
    stage.source(0..100)?;
    stage.run(&good, &[]).await?.success()?;
    let mut connection = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", side.display())).await?;
    sqlx::raw_sql(
        "CREATE TABLE last (id INTEGER, day TEXT, region TEXT, amount REAL, note TEXT, _haulage_run TEXT);
         CREATE TRIGGER no_more BEFORE INSERT ON last WHEN NEW.id = 150
         BEGIN SELECT RAISE(ABORT, 'number 150 is not wanted here'); END;",
    )
    .execute(&mut connection)
    .await?;
    connection.close().await?;
    stage.source(100..200)?;
    stage.pipeline(
        &[
            "first: {from: raw, to: lake, table: t, mode: append}",
            "second: {from: raw, to: side, table: last, mode: append}",
        ],
        &[],
    )?;
    let said = stage
        .verb(&["run", "pipeline.yaml", "--destination", &side_is])
        .output()
        .await?;
    said.failure(&["number 150 is not wanted here"])?;
    ensure!(stage.rows("t")? == Some(expected(0..100)), "the append is taken back");
    let error = run_of(&shown(&stage).await?)["error"].to_string();
    ensure!(error.contains("number 150"), "{error}");
    stage.check_no_staging("t")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_in_the_middle_leaves_no_row_twice() -> Result<()> {
    for in_s3 in [false, true] {
        let stage = Stage::new(in_s3).await?;
        stage.pipeline(&["l: {from: raw, to: lake, table: t, mode: append, format: csv}"], &[])?;
        let slow = stage
            .verb(&["run", "pipeline.yaml"])
            .env("HAULAGE_FAULT", "slow@segment:300ms");
        let mut run = slow.spawn("run")?;
        let data = stage.lake().join("t/data");
        until("some segments are written", Duration::from_secs(60), async || {
            let files = std::fs::read_dir(&data).into_iter().flatten().flatten();
            let count = files
                .flat_map(|area| std::fs::read_dir(area.path()).into_iter().flatten())
                .count();
            Ok((count >= 2).then_some(()))
        })
        .await?;
        run.kill().await?;
        ensure!(stage.rows("t")?.is_none(), "nothing is published yet");
        stage.verb(&["run", "pipeline.yaml"]).output().await?.success()?;
        ensure!(stage.rows("t")? == Some(expected(0..ROWS)));
        stage.check_no_staging("t")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_said_before_a_row_moves() -> Result<()> {
    let stage = Stage::new(false).await?;
    for (load, words) in [
        (
            "l: {from: raw, to: lake, table: a/b, mode: merge, key: [id]}",
            &["pipeline.yaml:10", "which only files have", "mode: append"][..],
        ),
        (
            "l: {from: raw, to: lake, table: t, mode: merge, key: [id]}",
            &["can't be merged into"],
        ),
        (
            "l: {from: raw, to: lake, table: ../t, mode: append}",
            &["pipeline.yaml:10", "is no path of a table"],
        ),
        (
            "l: {from: raw, to: lake, table: t, mode: append, partition_by: [amount]}",
            &["pipeline.yaml:10", "divided by `amount`, which is double"],
        ),
        (
            "l: {from: raw, to: lake, table: t, mode: append, partition_by: [dya]}",
            &["pipeline.yaml:10", "names `dya`", "day"],
        ),
        (
            "l: {from: raw, to: warehouse, table: t, mode: append, format: csv}",
            &["`format` is for files"],
        ),
    ] {
        stage.run(&[load], &[]).await?.failure(words)?;
        ensure!(
            std::fs::read_dir(stage.lake())?.next().is_none(),
            "something is made: {load}"
        );
    }
    let references = stage.run(
        &["l: {from: raw, to: lake, table: t, mode: append}"],
        &["{references: {region: regions.name}}"],
    );
    references
        .await?
        .failure(&["pipeline.yaml:12", "`references` can't be made of load l"])?;
    Ok(())
}
