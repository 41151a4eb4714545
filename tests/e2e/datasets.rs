//! Public data sets from the package index, loaded with what `haulage infer` prints of them and not a word more, and held
//! against DuckDB: every row of every file, in SQLite and in PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::support::cluster::{check_state, run_of};
use super::support::flights::root;
use super::support::postgres::Postgres;
use super::support::process::{PATIENCE, Verb, newest_rejects, newest_run};

/// Rows of a segment: so few that most files are several.
const CHECKPOINT_ROWS: u64 = 3_000;

/// What `tests/datasets/oracle.py` prints; fails with what it says if it fails.
async fn oracle(args: &[&str]) -> Result<String> {
    let made = root().join("target/test-tools/python/bin/python");
    let program = std::env::var_os("HAULAGE_TEST_PYTHON").map_or(made, PathBuf::from);
    ensure!(program.exists(), "{} is missing; tests/run makes it", program.display());
    let mut command = tokio::process::Command::new(program);
    command.arg(root().join("tests/datasets/oracle.py")).args(args);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .context("the oracle hangs")??;
    ensure!(
        output.status.success(),
        "the oracle says:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// What `infer` prints of a file as a part of a pipeline file; as JSON it goes to `NAME.infer.json`.
async fn inferred(folder: &Path, name: &str, file: &str) -> Result<String> {
    let infer = Verb::new(folder).args(["infer", file, "--name", name]);
    let document = infer.clone().args(["--output", "json"]).output().await?.success()?;
    std::fs::write(folder.join(format!("{name}.infer.json")), document.stdout)?;
    let printed = infer.output().await?.success()?.stdout;
    let (_, source) = printed.split_once("sources:\n").context("no sources")?;
    Ok(source.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_what_duckdb_reads_with_no_more_than_what_infer_says() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let at = path.to_str().context("a path that isn't UTF-8")?;
    let files: Value = serde_json::from_str(&oracle(&["make", at]).await?)?;
    let files = files.as_array().context("no list of files")?;
    let mut names = Vec::new();
    let (mut sources, mut loads) = (String::new(), String::new());
    for file in files {
        let text = |key: &str| file[key].as_str().context("no text");
        let (name, file) = (text("name")?, text("file")?);
        sources += &inferred(path, name, file).await?;
        for to in ["lake", "warehouse"] {
            loads += &format!("  {name}_{to}: {{from: {name}, to: {to}, table: {name}, mode: append}}\n");
        }
        names.push(name.to_owned());
    }
    let pipeline =
        format!("pipeline: datasets\ncheckpoint_rows: {CHECKPOINT_ROWS}\nsources:\n{sources}loads:\n{loads}");
    std::fs::write(path.join("pipeline.yaml"), &pipeline)?;

    let postgres = Postgres::start().await?;
    Verb::new(path)
        .args(["run", "pipeline.yaml"])
        .args([
            "--destination",
            &format!("lake=sqlite:{}", path.join("warehouse.db").display()),
        ])
        .args(["--destination", &format!("warehouse={}", postgres.url("postgres"))])
        .output()
        .await?
        .success()
        .context(pipeline)?;

    // What is read is loaded or in quarantine, and the oracle is told what is there.
    let run = newest_run(path).await?;
    let shown = Verb::new(path).args(["show", &run, "--output", "json"]);
    let shown = shown.output().await?.success()?.json()?;
    check_state(&shown, "published")?;
    let (_, rejects) = newest_rejects(path).await?;
    let lines: Vec<String> = rejects.iter().map(Value::to_string).collect();
    std::fs::write(path.join("rejects.jsonl"), lines.join("\n"))?;
    let pool = postgres.pool("postgres").await?;
    let mut loaded = 0;
    for name in &names {
        let query = AssertSqlSafe(format!("SELECT row_to_json(t)::text FROM {name} t"));
        let rows: Vec<String> = sqlx::query_scalar(query).fetch_all(&pool).await?;
        loaded += rows.len();
        std::fs::write(path.join(format!("{name}.postgres")), rows.join("\n"))?;
    }
    let counts = &run_of(&shown)["counts"];
    ensure!(
        counts["read"] == loaded + rejects.len() && counts["loaded"] == 2 * loaded,
        "{loaded} rows in PostgreSQL, {} in quarantine, and {counts}",
        rejects.len()
    );

    let found: Value = serde_json::from_str(&oracle(&["compare", at]).await?)?;
    println!("{found}");
    ensure!(
        found["files"] == names.len() && found["packages"].as_u64() >= Some(8) && found["rows"] == loaded,
        "{loaded} rows were loaded of {} files, and the oracle looked at {found}",
        names.len()
    );
    Ok(())
}
