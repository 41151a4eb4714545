//! A table of files whose source gains a column, loses one and gets a wider one: what the plan foretold is what becomes of
//! it, in every format; receipts of the runs before still hold, every row is found, and a revert takes the change back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::support::files::of_file;
use super::support::process::{Output, Verb, newest_run};

struct Lake(tempfile::TempDir);

impl Lake {
    fn verb(&self, args: &[&str]) -> Verb {
        let lake = format!("file://{}", self.0.path().join("lake").display());
        let verb = Verb::new(self.0.path()).args(args.iter().copied());
        verb.env("HAULAGE_DESTINATION_LAKE", lake)
    }

    /// A source of these columns and lines, loaded into a table for every format.
    fn pipeline(&self, columns: &str, lines: &str, settings: &str) -> Result<()> {
        let names: Vec<&str> = columns
            .split(", ")
            .filter_map(|column| column.split(':').next())
            .collect();
        std::fs::write(self.0.path().join("raw.csv"), format!("{}\n{lines}", names.join(",")))?;
        let load = |format: &str| {
            format!(
                "  {format}: {{from: raw, to: lake, table: {format}, mode: append, format: {format}, partition_by: [day], \
                 keep_previous: 9, provenance: true{settings}}}\n"
            )
        };
        let loads: String = FORMATS.iter().map(|format| load(format)).collect();
        let text = format!("pipeline: p\nsources:\n  raw: {{csv: raw.csv, columns: {{{columns}}}}}\nloads:\n{loads}");
        Ok(std::fs::write(self.0.path().join("pipeline.yaml"), text)?)
    }

    async fn call(&self, verb: &str) -> Result<Output> {
        self.verb(&[verb, "pipeline.yaml"]).output().await
    }

    /// The id of a run that was published.
    async fn run(&self) -> Result<String> {
        self.call("run").await?.success()?;
        newest_run(self.0.path()).await
    }

    async fn verify(&self, run: &str) -> Result<()> {
        for format in FORMATS {
            let said = self.verb(&["verify", run, "--load", format]).output().await?;
            said.success().with_context(|| format!("{run} into {format}"))?;
        }
        Ok(())
    }

    fn table(&self, format: &str) -> PathBuf {
        self.0.path().join("lake").join(format)
    }
}

const FORMATS: [&str; 3] = ["parquet", "csv", "jsonl"];
const ORIGIN: [&str; 3] = ["_haulage_run", "_haulage_chunk", "_haulage_line"];

/// A table's columns as its manifest has them, and its rows as a reader by name finds them; without what says where rows
/// are from, and what is in paths.
fn seen(table: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let state = read(table.join("_haulage/table.json"))?;
    let manifest = read(table.join(state["head"]["manifest"].as_str().context("no manifest")?))?;
    let own =
        |column: &&Value| !ORIGIN.contains(&column["name"].as_str().unwrap_or_default()) && column["name"] != "day";
    let columns: Vec<&Value> = manifest["columns"]
        .as_array()
        .context("no columns")?
        .iter()
        .filter(own)
        .collect();
    let name = |column: &Value| column["name"].as_str().unwrap_or_default().to_owned();
    let mut rows = Vec::new();
    for file in manifest["files"].as_array().context("no files")? {
        for row in of_file(&table.join(file["path"].as_str().context("no path")?))? {
            let value = |column: &&Value| row.get(&name(column)).map_or("~", String::as_str).to_owned();
            rows.push(columns.iter().map(value).collect::<Vec<_>>().join(" "));
        }
    }
    rows.sort();
    let typed = columns
        .iter()
        .map(|column| format!("{} {}", name(column), column["type"].as_str().unwrap_or_default()));
    Ok((typed.collect(), rows))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_files_changes_as_planned_and_back() -> Result<()> {
    let lake = Lake(tempfile::tempdir()?);
    std::fs::create_dir(lake.0.path().join("lake"))?;
    lake.pipeline(
        "id: int!, day: date, note: text",
        "1,2024-01-01,one\n2,2024-01-02,two\n",
        "",
    )?;
    let first = lake.run().await?;
    let tables: Vec<PathBuf> = FORMATS.iter().map(|format| lake.table(format)).collect();
    let before: Vec<_> = tables.iter().map(|table| seen(table)).collect::<Result<_>>()?;

    // Without leave, plan and run refuse it and say what would give it.
    let (columns, lines) = (
        "extra: text, id: bigint!, day: date",
        "x,3000000000,2024-01-01\n,4,2024-01-03\n",
    );
    lake.pipeline(columns, lines, "")?;
    let parts = [
        "column extra (text) is not in csv",
        "`on_new_column: add` for load csv",
        "column note (text) of jsonl is not among",
        "column id is bigint in the load and int in parquet",
        "`on_wider_type: widen` for load parquet",
    ];
    lake.call("plan").await?.failure(&parts)?;
    lake.call("run")
        .await?
        .failure(&["load parquet doesn't fit parquet: column extra (text) is not in parquet"])?;
    for (table, before) in tables.iter().zip(&before) {
        ensure!(seen(table)? == *before, "{}", table.display());
    }

    lake.pipeline(columns, lines, ", on_new_column: add, on_wider_type: widen")?;
    let planned = lake
        .verb(&["plan", "pipeline.yaml", "--output", "json"])
        .output()
        .await?
        .success()?;
    let foretold = [
        json!({"column": "extra", "change": "added", "to": "text"}),
        json!({"column": "id", "change": "widened", "from": "int", "to": "bigint"}),
        json!({"column": "note", "change": "unfilled", "from": "text"}),
    ];
    let planned = planned.json()?;
    for destination in planned["destinations"].as_array().context("no destinations")? {
        ensure!(destination["columns"] == json!(foretold), "{destination}");
    }
    let second = lake.run().await?;
    let shown = lake.verb(&["show", &second]).output().await?.success()?;
    for words in ["adds column extra text", "widens column id from int to bigint"] {
        ensure!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
    }
    for table in &tables {
        let (columns, rows) = seen(table)?;
        ensure!(columns == ["id bigint", "note text", "extra text"], "{columns:?}");
        ensure!(
            rows == ["1 one ~", "2 two ~", "3000000000 ~ x", "4 ~ ~"],
            "{}: {rows:?}",
            table.display()
        );
    }
    lake.verify(&first).await?;
    lake.verify(&second).await?;
    for format in FORMATS {
        for (key, run, line) in [
            ("id=1", &first, 2),
            ("id=3000000000", &second, 2),
            ("id=4", &second, 3),
            ("note=two", &first, 3),
            ("extra=x", &second, 2),
        ] {
            let args = ["why", format, key, "--to", "lake", "--output", "json"];
            let said = lake.verb(&args).output().await?.success()?;
            let rows = said.json()?["rows"].clone();
            ensure!(
                rows.as_array().is_some_and(|rows| rows.len() == 1) && rows[0]["line"] == line,
                "{format} {key}: {rows}"
            );
            ensure!(rows[0].to_string().contains(run.as_str()), "{format} {key}: {rows}");
        }
    }
    lake.verb(&["revert", &second, "--watch", "--reason", "wrong"])
        .output()
        .await?
        .success()?;
    for (table, before) in tables.iter().zip(&before) {
        ensure!(seen(table)? == *before, "{}", table.display());
    }
    lake.verify(&first).await
}
