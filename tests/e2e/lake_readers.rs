//! Tables of files as DuckDB reads them, with the commands of README: no value, texts that look like none, texts that look
//! like numbers, many partitions, and no row at all.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::support::flights::root;
use super::support::process::{Output, PATIENCE, Verb, newest_run};

/// The statement of README that begins with this, as it stands there.
fn of_readme(words: &str) -> Result<String> {
    let text = std::fs::read_to_string(root().join("README.md"))?;
    let mut blocks = text.split("duckdb -c \"").skip(1);
    let block = blocks.find(|block| block.split('"').next().is_some_and(|sql| sql.contains(words)));
    let sql = block.and_then(|block| block.split('"').next());
    Ok(sql
        .with_context(|| format!("README has no statement with {words}"))?
        .to_owned())
}

/// What DuckDB answers about a table: columns with their types, and rows.
async fn duckdb(table: &Path, sql: &str) -> Result<Value> {
    let made = root().join("target/test-tools/python/bin/python");
    let program = std::env::var_os("HAULAGE_TEST_PYTHON").map_or(made, PathBuf::from);
    ensure!(program.exists(), "{} is missing; tests/run makes it", program.display());
    let mut command = tokio::process::Command::new(program);
    command.arg(root().join("tests/datasets/lake.py")).arg(table).arg(sql);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .context("DuckDB hangs")??;
    ensure!(
        output.status.success(),
        "{sql}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

struct Lake(tempfile::TempDir);

impl Lake {
    fn new(source: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("lake"))?;
        std::fs::write(folder.path().join("rows.csv"), source)?;
        Ok(Self(folder))
    }

    fn table(&self, table: &str) -> PathBuf {
        self.0.path().join("lake").join(table)
    }

    fn verb(&self, args: &[&str]) -> Verb {
        let lake = format!("file://{}", self.table("").display());
        let verb = Verb::new(self.0.path()).args(args.iter().copied());
        verb.env("HAULAGE_DESTINATION_LAKE", lake)
    }

    fn pipeline(&self, columns: &str, rest: &str) -> Result<()> {
        let text = format!(
            "pipeline: p\nsources:\n  raw: {{csv: rows.csv, columns: {{{columns}}}}}\nsteps:\n  none: SELECT * FROM raw WHERE \
             false\nloads:\n{rest}"
        );
        Ok(std::fs::write(self.0.path().join("pipeline.yaml"), text)?)
    }

    async fn run(&self) -> Result<Output> {
        self.verb(&["run", "pipeline.yaml"]).output().await?.success()
    }
}

const COLUMNS: &str = "id: int!, day: date, region: text, note: text";
const ROWS: &str = "id,day,region,note\n1,2024-01-01,north,\"\"\n2,,NULL,\n3,2024-02-29,null,007\n4,,,NULL\n\
                    5,2024-01-01,007,x\n6,2024-01-01,\"\",y\n7,,a/b=c'%,z\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duckdb_reads_every_value_with_the_commands_of_readme() -> Result<()> {
    let lake = Lake::new(ROWS)?;
    lake.pipeline(
        COLUMNS,
        "  parquet: {from: raw, to: lake, table: parquet, mode: append, partition_by: [day, region]}\n  \
         csv: {from: raw, to: lake, table: csv, mode: append, format: csv, partition_by: [day, region]}\n",
    )?;
    lake.run().await?;
    let rows = json!([
        [1, "", "2024-01-01", "north"],
        [2, null, null, "NULL"],
        [3, "007", "2024-02-29", "null"],
        [4, "NULL", null, null],
        [5, "x", "2024-01-01", "007"],
        [6, "y", "2024-01-01", ""],
        [7, "z", null, "a/b=c'%"],
    ]);
    for (table, words) in [("parquet", "read_parquet"), ("csv", "read_csv")] {
        let found = duckdb(&lake.table(table), &format!("{} ORDER BY id", of_readme(words)?)).await?;
        ensure!(found["rows"] == rows, "{table}: {found}");
        ensure!(found["columns"][2] == json!(["day", "DATE"]), "{table}: {found}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_goes_into_as_many_partitions_as_its_rows_have() -> Result<()> {
    let mut source = "id,g\n".to_owned();
    for id in 0..2_000 {
        source.push_str(&format!("{id},{}\n", id % 300));
    }
    let lake = Lake::new(&source)?;
    lake.pipeline(
        "id: int!, g: int",
        "  l: {from: raw, to: lake, table: t, mode: append, partition_by: [g], compression: gzip}\n",
    )?;
    let planned = lake.verb(&["plan", "pipeline.yaml"]).output().await?.success()?;
    ensure!(
        planned
            .stdout
            .contains("creates t with the run's rows, as parquet files (gzip) in folders by g"),
        "{planned:?}"
    );
    lake.run().await?;
    let sql = "SELECT count(*), count(DISTINCT id), count(DISTINCT g), count(DISTINCT filename), \
               count(*) FILTER (id % 300 = g) FROM read_parquet([$files], hive_partitioning = true, filename = true)";
    let found = duckdb(&lake.table("t"), sql).await?;
    ensure!(found["rows"] == json!([[2_000, 2_000, 300, 300, 2_000]]), "{found}");
    let run = newest_run(lake.0.path()).await?;
    lake.verb(&["verify", &run]).output().await?.success()?;
    Ok(())
}

/// A table without a row has its columns all the same, a receipt that holds, and a reader who finds nothing in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_row_can_be_read() -> Result<()> {
    let lake = Lake::new(ROWS)?;
    let loads: String = [
        ("parquet", "format: parquet"),
        ("divided", "format: parquet, partition_by: [day, region]"),
        ("csv", "format: csv, compression: gzip, partition_by: [day, region]"),
        ("lines", "format: jsonl, compression: zstd"),
    ]
    .iter()
    .map(|(name, more)| format!("  {name}: {{from: SOURCE, to: lake, table: {name}, mode: replace, {more}}}\n"))
    .collect();
    for (n, source) in ["none", "raw", "none"].into_iter().enumerate() {
        // Every text is another submission, so that each is another run.
        lake.pipeline(COLUMNS, &format!("{}# {n}\n", loads.replace("SOURCE", source)))?;
        lake.run().await?;
    }
    let run = newest_run(lake.0.path()).await?;
    lake.verb(&["verify", &run]).output().await?.success()?;
    for table in ["parquet", "divided", "csv", "lines"] {
        let said = lake.verb(&["why", table, "id=1", "--to", "lake"]).output().await?;
        said.failure(&[&format!("no row of {table} has id=1")])?;
    }
    for (table, sql) in [
        ("divided", of_readme("read_parquet")?),
        ("csv", of_readme("read_csv")?),
        ("parquet", "SELECT * FROM read_parquet([$files])".to_owned()),
    ] {
        let found = duckdb(&lake.table(table), &sql).await?;
        let mut names: Vec<&str> = found["columns"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|column| column[0].as_str())
            .collect();
        names.sort_unstable();
        ensure!(names == ["day", "id", "note", "region"], "{table}: {found}");
        ensure!(found["rows"] == json!([]), "{table}: {found}");
    }
    Ok(())
}
