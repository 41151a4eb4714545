//! Provenance: `why` names the line that a row is from, whatever kind of source that is and whoever has published since.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{ArrayRef, AsArray as _, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::receipts::World;
use super::support::process::{Verb, newest_run};

const ORIGINS: &str = r#"pipeline: origins
checkpoint_rows: 50
params: {from: {type: int, default: 0}}
sources:
  csv: {csv: c.csv, chunk_size: 70kB, columns: {id: int!, name: text}}
  json: {json: j.jsonl, columns: {id: int!, name: text}}
  parquet: {parquet: p.parquet, columns: {id: int!, name: text}}
  table: {postgres: crm, table: t, columns: {id: int!, name: text}}
steps:
  c: SELECT * FROM csv WHERE id >= $from
loads:
  c: {from: c, to: warehouse, table: c, mode: merge, key: [id], provenance: true}
  j: {from: json, to: warehouse, table: j, mode: append, provenance: true}
  p: {from: parquet, to: warehouse, table: p, mode: replace, provenance: true}
  t: {from: table, to: warehouse, table: t2, mode: merge, key: [id], provenance: true}
  side: {from: c, to: side, table: c, mode: merge, key: [id], provenance: true}
  plain: {from: c, to: side, table: plain, mode: append}
"#;

/// 300 rows of each kind; a name of the CSV has a line end, so lines and rows differ there.
fn origins(folder: &Path) -> Result<BTreeMap<i32, u64>> {
    let mut lines = BTreeMap::new();
    let (mut csv, mut json, mut line) = (String::from("id,name\n"), String::new(), 2);
    for id in 0..300 {
        lines.insert(id, line);
        let name = if id % 9 == 4 { "two\nlines" } else { "one" };
        // For some chunks.
        let name = format!("\"{name:_<600}\"");
        line += if id % 9 == 4 { 2 } else { 1 };
        csv.push_str(&format!("{id},{name}\n"));
        json.push_str(&format!("{{\"id\": {id}, \"name\": \"j{id}\"}}\n"));
    }
    std::fs::write(folder.join("c.csv"), csv)?;
    std::fs::write(folder.join("j.jsonl"), json)?;
    let ids: ArrayRef = Arc::new((0..300).collect::<Int32Array>());
    let names: ArrayRef = Arc::new((0..300).map(|id| Some(format!("p{id}"))).collect::<StringArray>());
    let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)])?;
    let mut writer = ArrowWriter::try_new(File::create(folder.join("p.parquet"))?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_says_which_line_it_is_from_also_after_another_run() -> Result<()> {
    let world = World::start().await?;
    let folder = world.folder.path();
    let lines = origins(folder)?;
    std::fs::write(folder.join("pipeline.yaml"), ORIGINS)?;
    world
        .execute("CREATE TABLE t AS SELECT id, 't' || id AS name FROM generate_series(0, 299) id")
        .await?;
    let crm = format!("crm={}", world.destinations[0].split_once('=').context("no address")?.1);
    let first = world.run(&["--source", &crm]).await?;
    let why = async |table: &str, key: &str, to: &str| -> Result<Value> {
        let said = world
            .verb(&["why", table, key, "--to", to, "--output", "json"])
            .output()
            .await?;
        let said = said.success()?.json()?;
        ensure!(said["rows"].as_array().is_some_and(|rows| rows.len() == 1), "{said}");
        Ok(said["rows"][0].clone())
    };
    let made = world.receipt(&first).await?;
    for id in [0, 5, 123, 299] {
        for (table, key, to, object, line) in [
            ("c", format!("id={id}"), "warehouse", "c.csv", lines[&id]),
            ("c", id.to_string(), "warehouse", "c.csv", lines[&id]),
            ("public.c", id.to_string(), "side", "c.csv", lines[&id]),
            ("j", format!("name=j{id}"), "warehouse", "j.jsonl", id as u64 + 1),
            ("p", format!("id={id}"), "warehouse", "p.parquet", id as u64 + 1),
            ("t2", id.to_string(), "warehouse", "crm: t", id as u64 + 1),
        ] {
            let row = why(table, &key, to).await?;
            let there = row["object"].as_str().unwrap_or_default();
            ensure!(
                row["run_id"] == first && row["line"] == line && there.contains(object),
                "{table} {key}: {row}, and not line {line}"
            );
            ensure!(
                row["definition"] == made["definition"] && row["state"] == "published",
                "{row}"
            );
        }
    }
    for load in ["c", "j", "p", "t", "side", "plain"] {
        world
            .verify(&first, load)
            .await?
            .success()
            .with_context(|| load.to_owned())?;
    }

    // A row that is changed is found, with its chunk.
    world.execute("UPDATE c SET name = name || 'x' WHERE id = 123").await?;
    let said = world.verify(&first, "c").await?;
    said.failure(&["column name: its values", "c.csv): other values"])?;
    world
        .execute("UPDATE c SET name = left(name, -1) WHERE id = 123")
        .await?;
    world.verify(&first, "c").await?.success()?;

    // Another run merges a part of them.
    let second = world.run(&["--source", &crm, "--param", "from=200"]).await?;
    for (id, run) in [(123, &first), (250, &second)] {
        for to in ["warehouse", "side"] {
            let row = why("c", &id.to_string(), to).await?;
            ensure!(row["run_id"] == **run && row["line"] == lines[&id], "{id}: {row}");
        }
    }
    world.verify(&second, "c").await?.success()?;
    world.verify(&second, "side").await?.success()?;
    let said = world.verify(&first, "c").await?;
    said.failure(&["can't be told", &second, "merge"])?;
    world.verify(&first, "j").await?.success()?;

    // What can't be answered says what to do.
    let asked = |args: &'static [&'static str]| {
        let verb = world.verb(&[&["why"][..], args].concat());
        async move { verb.output().await }
    };
    let said = asked(&["plain", "id=250"]).await?;
    said.failure(&["don't say where they are from", "provenance: true", &first, &second])?;
    asked(&["plian", "id=1"])
        .await?
        .failure(&["no run here has loaded a table plian", "plain"])?;
    asked(&["c", "id=1"])
        .await?
        .failure(&["several destinations", "--to"])?;
    asked(&["j", "7"]).await?.failure(&["has no key", "COLUMN=VALUE"])?;
    asked(&["p", "idd=7"]).await?.failure(&["no column idd", "id"])?;
    asked(&["p", "id=seven"])
        .await?
        .failure(&["doesn't fit its column", "integer"])?;
    asked(&["p", "id=7777"])
        .await?
        .failure(&["no row of public.p has id=7777"])?;
    let many = asked(&["j", "id=250", "--limit", "1"]).await?.success()?;
    ensure!(
        many.stderr.contains("there are more rows") && many.stdout.contains("j.jsonl, line 251"),
        "{many:?}"
    );

    // Taken back, the rows that the second run had changed are the first's again, and say so.
    let reverted = world.verb(&["revert", &second, "--reason", "a part"]).output().await?;
    reverted.success()?;
    let row = why("c", "250", "warehouse").await?;
    ensure!(row["run_id"] == first && row["line"] == lines[&250], "{row}");
    world.verify(&first, "c").await?.success()?;
    let said = world.verify(&second, "c").await?;
    said.failure(&["is not published"])?;
    merged_without_provenance(&world, &first, &lines).await
}

/// What rows say of their origin is of what they hold: whoever changes them without saying where from is named, and no line.
async fn merged_without_provenance(world: &World, first: &str, lines: &BTreeMap<i32, u64>) -> Result<()> {
    let folder = world.folder.path();
    std::fs::write(folder.join("d.csv"), "id,name\n5,changed\n1000,new\n")?;
    let text = "pipeline: plain\nsources: {csv: {csv: d.csv, columns: {id: int!, name: text}}}\nloads:\n  c: {from: csv, to: \
                warehouse, table: c, mode: merge, key: [id]}\n  side: {from: csv, to: side, table: c, mode: merge, key: \
                [id]}\n";
    std::fs::write(folder.join("plain.yaml"), text)?;
    world.verb(&["run", "plain.yaml"]).output().await?.success()?;
    let plain = newest_run(folder).await?;
    let check = async |id: i32, run: &str, line: Option<u64>| -> Result<()> {
        for to in ["warehouse", "side"] {
            let said = world.verb(&["why", "c", &id.to_string(), "--to", to, "--output", "json"]);
            let said = said.output().await?.json()?;
            let row = &said["rows"][0];
            ensure!(
                row["run_id"] == run && row["line"].as_u64() == line,
                "{to} {id}: {said}"
            );
            ensure!(row["chunk"].is_null() == line.is_none(), "{to} {id}: {said}");
        }
        Ok(())
    };
    check(5, &plain, None).await?;
    check(1000, &plain, None).await?;
    check(123, first, Some(lines[&123])).await?;
    world
        .verb(&["revert", &plain, "--reason", "plain"])
        .output()
        .await?
        .success()?;
    check(5, first, Some(lines[&5])).await
}

const ASKED: &str = r#"pipeline: asked
sources: {raw: {csv: raw.csv, columns: {id: int!, b: bool, n: "decimal(8,2)", f: double, s: float, d: date, at: timestamp, tz: timestamptz, t: text}}}
loads:
  side: {from: raw, to: side, table: asked, mode: append, provenance: true}
  there: {from: raw, to: warehouse, table: asked, mode: append, provenance: true}
"#;

/// A value is found however it is written, and only if it is the one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_found_by_what_its_columns_hold() -> Result<()> {
    let world = World::start().await?;
    let folder = world.folder.path();
    std::fs::write(
        folder.join("raw.csv"),
        "id,b,n,f,s,d,at,tz,t\n\
         1,true,1.10,Infinity,0.1,2020-01-01,2020-01-01T10:00:00.5,2020-05-31T22:00:00Z,abc\n\
         2,false,0.00,1.5,0.5,2020-01-02,2020-01-02T10:00:00,2020-06-01T22:00:00Z,1.5\n",
    )?;
    std::fs::write(folder.join("pipeline.yaml"), ASKED)?;
    world
        .execute(
            "CREATE TABLE asked (id int, b bool, n numeric(10,2), f float8, s real, d date, at timestamp, tz timestamptz,
                 t varchar(3), _haulage_run text, _haulage_chunk text, _haulage_line bigint)",
        )
        .await?;
    world.run(&[]).await?;
    let why = async |to: &str, key: &str| world.verb(&["why", "asked", key, "--to", to]).output().await;
    for to in ["side", "warehouse"] {
        for (key, line) in [
            ("b=true", 2),
            ("n=1.1", 2),
            ("n=01.100", 2),
            ("n=0", 3),
            ("f=Infinity", 2),
            ("f=1.50", 3),
            ("s=0.1", 2),
            ("d=2020-1-1", 2),
            ("at=2020-01-01 10:00:00.50", 2),
            ("at=2020-01-02T10:00:00", 3),
            ("tz=2020-06-01 00:00:00+02:00", 2),
            ("tz=2020-06-01T22:00:00Z", 3),
            ("t=1.5", 3),
        ] {
            let said = why(to, key).await?.success().with_context(|| format!("{to} {key}"))?;
            ensure!(
                said.stdout.contains(&format!("raw.csv, line {line}\n")),
                "{to} {key}: {}",
                said.stdout
            );
        }
        // No other row answers for one that isn't there.
        for key in ["n=1.104", "t=abcd", "t=1", "id=3", "f=1.51"] {
            why(to, key)
                .await?
                .failure(&["no row of", key])
                .with_context(|| format!("{to} {key}"))?;
        }
        for key in ["f=abc", "id=seven"] {
            why(to, key)
                .await?
                .failure(&["doesn't fit its column"])
                .with_context(|| format!("{to} {key}"))?;
        }
    }
    Ok(())
}

const REPLAYED: &str = r#"pipeline: replayed
sources:
  raw: {csv: raw.csv, columns: {id: int!, much: LIMIT}}
loads:
  kept: {from: raw, to: warehouse, table: kept, mode: replace, provenance: true}
  files: {from: raw, to: lake, table: kept, mode: append, provenance: true}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_row_says_the_line_of_its_file_and_rows_in_files_say_theirs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let verb = |args: &[&str]| {
        let verb = Verb::new(folder.path()).args(args.iter().copied());
        verb.args([
            "--destination",
            &format!("lake=file://{}", folder.path().join("lake").display()),
        ])
    };
    std::fs::create_dir(folder.path().join("lake"))?;
    std::fs::write(
        folder.path().join("raw.csv"),
        "id,much\n1,5\n2,9000000000\n3,7\n4,8000000000\n5,90000000000000000000\n",
    )?;
    std::fs::write(folder.path().join("pipeline.yaml"), REPLAYED.replace("LIMIT", "int"))?;
    verb(&["run", "pipeline.yaml"]).output().await?.success()?;
    let first = newest_run(folder.path()).await?;
    // The wider type takes a table of its own.
    let wider = REPLAYED
        .replace("LIMIT", "bigint")
        .replace("table: kept", "table: kept2");
    std::fs::write(folder.path().join("wider.yaml"), wider)?;
    verb(&["replay", &first, "wider.yaml"]).output().await?.success()?;
    let replay = newest_run(folder.path()).await?;
    let why = async |table: &str, id: &str| -> Result<Value> {
        let said = verb(&["why", table, id, "--to", "warehouse", "--output", "json"]);
        let said = said.output().await?.success()?.json()?;
        Ok(said["rows"][0].clone())
    };
    let row = why("kept", "id=3").await?;
    ensure!(
        row["run_id"] == first && row["line"] == 4 && row["replays"].is_null(),
        "{row}"
    );
    let row = why("kept2", "id=4").await?;
    ensure!(
        row["run_id"] == replay
            && row["line"] == 5
            && row["replays"] == *first
            && row["object"].as_str().is_some_and(|object| object.ends_with("raw.csv")),
        "{row}"
    );
    let said = verb(&["why", "kept2", "id=4", "--to", "warehouse"])
        .output()
        .await?
        .success()?;
    ensure!(
        said.stdout.contains("raw.csv, line 5") && said.stdout.contains(&format!("a rejected row of run {first} in ")),
        "{}",
        said.stdout
    );
    verb(&["verify", &replay, "--load", "kept"]).output().await?.success()?;
    // What a replay rejects is replayed under the first run's id, and is from the same file; the rejected rows need not be
    // there any more.
    let again = std::fs::read_to_string(folder.path().join("wider.yaml"))?;
    let again = again.replace("much: bigint", "much: text").replace("kept2", "kept3");
    std::fs::write(folder.path().join("again.yaml"), again)?;
    verb(&["replay", &first, "again.yaml"]).output().await?.success()?;
    let third = newest_run(folder.path()).await?;
    verb(&["prune", "--older-than", "0s"]).output().await?.success()?;
    let row = why("kept3", "id=5").await?;
    ensure!(
        row["run_id"] == third
            && row["line"] == 6
            && row["object"].as_str().is_some_and(|object| object.ends_with("raw.csv"))
            && row["rejected_in"]
                .as_str()
                .is_some_and(|key| key.starts_with(&format!("runs/{replay}/"))),
        "{row}"
    );

    // Files have the columns, and say where rows are from, also to whoever else reads them.
    for run in [&first, &replay] {
        verb(&["verify", run, "--load", "files"]).output().await?.success()?;
    }
    let said = verb(&["why", "kept", "id=3", "--to", "lake", "--output", "json"]);
    let said = said.output().await?.success()?.json()?;
    ensure!(
        said["rows"][0]["line"] == 4 && said["rows"][0]["run_id"] == *first,
        "{said}"
    );
    let rows = rows(&folder.path().join("lake/kept"))?;
    let expected: Vec<_> = [(1, 2), (3, 4)].map(|(id, line)| (id, first.clone(), line)).into();
    ensure!(rows == expected, "{rows:?}");
    Ok(())
}

/// Id, run and line of each row in the table's files.
fn rows(table: &Path) -> Result<Vec<(i32, String, i64)>> {
    let state: Value = serde_json::from_slice(&std::fs::read(table.join("_haulage/table.json"))?)?;
    let manifest = state["head"]["manifest"].as_str().context("no table")?;
    let manifest: Value = serde_json::from_slice(&std::fs::read(table.join(manifest))?)?;
    let mut rows = Vec::new();
    for file in manifest["files"].as_array().context("no files")? {
        let file = File::open(table.join(file["path"].as_str().context("no path")?))?;
        for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).with_context(|| format!("no column {name}"));
            let (ids, runs, lines) = (column("id")?, column("_haulage_run")?, column("_haulage_line")?);
            for row in 0..batch.num_rows() {
                rows.push((
                    ids.as_primitive::<Int32Type>().value(row),
                    runs.as_string::<i32>().value(row).to_owned(),
                    lines.as_primitive::<Int64Type>().value(row),
                ));
            }
        }
    }
    rows.sort();
    Ok(rows)
}
