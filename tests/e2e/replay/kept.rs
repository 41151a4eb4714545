//! How rejected rows are kept: all of them, in objects of a bounded size, byte for byte.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use super::super::support::process::{Verb, newest_rejects, newest_run};
use super::{APPEND, FIRST, Stage, pipeline};

/// What an object of rejected rows may hold, unpacked.
const OBJECT_BYTES: usize = 64 << 20;

/// Reads every line of `rows.csv` as text.
fn as_lines(source: &str) -> String {
    format!(
        "pipeline: rows\nsources:\n  raw: {{csv: {source}, delimiter: '|', header: false, columns: {{line: text}}}}\nloads:\n  \
         out: {{from: raw, to: warehouse, table: lines, mode: append}}\n"
    )
}

/// The objects of rejected rows below a folder, with what is in them.
fn objects(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rejects.jsonl.zst") {
                found.push((name, zstd::decode_all(std::fs::File::open(&path)?)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Every rejected row of a run is listed once, and none twice.
async fn check_listed(stage: &Stage, run: &str, rows: u64) -> Result<()> {
    let listed = stage
        .verb(&["rejects", run, "--output", "json"])
        .await?
        .success()?
        .stdout;
    let mut next = 2;
    for line in listed.lines() {
        ensure!(line.contains(&format!("\"line\":{next},")), "line {next} is not {line}");
        next += 1;
    }
    ensure!(next == rows + 2, "{} rows are listed of {rows}", next - 2);
    Ok(())
}

/// How many rows of text there are in the table, and how many different ones.
async fn lines(stage: &Stage) -> Result<(i64, i64)> {
    let file = SqliteConnectOptions::new().filename(stage.path().join(".haulage/warehouse.db"));
    let mut connection = SqliteConnection::connect_with(&file).await?;
    let counts = sqlx::query_as("SELECT count(*), count(DISTINCT line) FROM lines");
    let counts = counts.fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_rows_of_a_wide_file_are_all_kept_listed_and_replayed() -> Result<()> {
    const ROWS: u64 = 100_000;
    let stage = Stage::new()?;
    let names: Vec<String> = (0..450)
        .map(|number| format!("a_column_of_the_file_{number:03}"))
        .collect();
    let rows: String = (0..ROWS).map(|number| format!("{number},x\n")).collect();
    let text = format!("{}\n{rows}", names.join(","));
    std::fs::write(stage.path().join("rows.csv"), text)?;
    let definition = format!(
        "pipeline: rows\nsources:\n  raw: {{csv: rows.csv, columns: {{{}: text, {}: text}}}}\nloads:\n  out: {{from: raw, to: \
         warehouse, table: out, mode: append}}\n",
        names[0], names[449]
    );
    let first = stage.run(&definition).await?;
    ensure!(stage.counts().await? == (ROWS, ROWS, "published".to_owned()));

    // What is written doesn't grow with the header: it stands in each object once.
    let found = objects(&stage.path().join(".haulage/checkpoints"))?;
    let all: usize = found.iter().map(|(_, unpacked)| unpacked.len()).sum();
    ensure!(
        all < ROWS as usize * 600,
        "{all} bytes for {ROWS} short rows in {} objects",
        found.len()
    );
    for (name, unpacked) in &found {
        ensure!(unpacked.len() <= OBJECT_BYTES, "{name} holds {}", unpacked.len());
        let headers = String::from_utf8_lossy(unpacked).matches(&names[7]).count();
        ensure!(headers == 1, "{name} holds {headers} headers");
    }

    let one = stage
        .verb(&["rejects", &first, "--limit", "1", "--output", "json"])
        .await?;
    ensure!(one.success()?.json()?["raw"] == "0,x");
    check_listed(&stage, &first, ROWS).await?;
    // By their own header they are as short as before, and stay what they are.
    stage
        .replay(&first, &definition.replace("table: out", "table: again"))
        .await?;
    ensure!(stage.counts().await? == (ROWS, ROWS, "published".to_owned()));
    stage.replay(&first, &as_lines("rows.csv")).await?;
    ensure!(stage.counts().await? == (ROWS, 0, "published".to_owned()));
    ensure!(lines(&stage).await? == (ROWS as i64, ROWS as i64));
    Ok(())
}

/// The name of a file is in each of its rows; one of 2,000 characters makes a segment's rows too large for an object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_too_many_for_an_object_are_kept_in_several() -> Result<()> {
    const ROWS: u64 = 40_000;
    let stage = Stage::new()?;
    let folders = ["f".repeat(200)]
        .into_iter()
        .cycle()
        .take(9)
        .collect::<Vec<_>>()
        .join("/");
    std::fs::create_dir_all(stage.path().join(&folders))?;
    let rows: String = (0..ROWS).map(|number| format!("x,{number}\n")).collect();
    std::fs::write(stage.path().join(&folders).join("rows.csv"), format!("id,n\n{rows}"))?;
    let source = format!("{folders}/rows.csv");
    let first = stage
        .run(&format!(
            "pipeline: rows\nsources:\n  raw: {{csv: {source}, columns: {{id: int, n: int}}}}\nloads:\n  out: {{from: raw, to: \
             warehouse, table: out, mode: append}}\n"
        ))
        .await?;
    ensure!(stage.counts().await? == (ROWS, ROWS, "published".to_owned()));
    let found = objects(&stage.path().join(".haulage/checkpoints"))?;
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(names == ["s0-1.rejects.jsonl.zst", "s0.rejects.jsonl.zst"], "{names:?}");
    let sizes: Vec<usize> = found.iter().map(|(_, unpacked)| unpacked.len()).collect();
    ensure!(sizes.iter().all(|size| *size <= OBJECT_BYTES), "{sizes:?}");
    drop(found);
    check_listed(&stage, &first, ROWS).await?;
    stage.replay(&first, &as_lines(&source)).await?;
    ensure!(stage.counts().await? == (ROWS, 0, "published".to_owned()));
    ensure!(lines(&stage).await? == (ROWS as i64, ROWS as i64));
    // What is pruned is all of them.
    stage.verb(&["prune", "--older-than", "0s"]).await?.success()?;
    ensure!(objects(&stage.path().join(".haulage/checkpoints"))?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text_are_listed_as_what_they_are() -> Result<()> {
    let stage = Stage::new()?;
    let mut rows = b"id,name,much\n2,caf\xe9,6\n3,caf\\xe9,900\n4,".to_vec();
    rows.extend_from_slice("y".repeat(200 << 10).as_bytes());
    rows.extend_from_slice(b",700\n");
    std::fs::write(stage.path().join("rows.csv"), rows)?;
    let run = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    let (_, rejects) = newest_rejects(stage.path()).await?;
    ensure!(rejects.len() == 3, "{rejects:?}");
    // The texts are the same, and the rows are not.
    ensure!(rejects[0]["raw"] == "2,caf\\xe9,6" && rejects[1]["raw"] == "3,caf\\xe9,900");
    ensure!(
        rejects[0]["raw_hex"] == "322c636166e92c36" && rejects[1]["raw_hex"].is_null(),
        "{rejects:?}"
    );
    let partly = rejects[2]["partly"].as_str().context("a word on what is missing")?;
    ensure!(partly.contains("131072 of its"), "{partly}");
    for row in &rejects {
        ensure!(
            row["values"].is_null() && row["columns"].is_null(),
            "a file's text says it all"
        );
    }
    ensure!(rejects[0]["partly"].is_null());
    let csv = stage
        .verb(&["rejects", &run, "--output", "csv"])
        .await?
        .success()?
        .stdout;
    ensure!(csv.contains(",322c636166e92c36,"), "no hex in CSV");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_a_database_are_listed_as_what_they_are() -> Result<()> {
    let stage = Stage::new()?;
    let file = SqliteConnectOptions::new().filename(stage.path().join("rows.db"));
    let mut connection = SqliteConnection::connect_with(&file.create_if_missing(true)).await?;
    sqlx::raw_sql(
        "CREATE TABLE things (id integer PRIMARY KEY, name text, much integer);
         INSERT INTO things VALUES (1, 'ann', 500), (2, NULL, 500), (3, '\\N', 500), (4, 'a' || char(9) || 'b', 500)",
    )
    .execute(&mut connection)
    .await?;
    connection.close().await?;
    let source = "sqlite: rows.db\n    table: things";
    let run = stage.run(&pipeline(source, "much > 100", APPEND)).await?;
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let expected = [json!("ann"), Value::Null, json!("\\N"), json!("a\tb")];
    ensure!(rejects.len() == expected.len(), "{rejects:?}");
    for (number, (row, name)) in (1..).zip(rejects.iter().zip(expected)) {
        let (id, columns) = (format!("{number}"), json!(["id", "name", "much"]));
        ensure!(
            row["values"] == json!([id, name, "500"]) && row["columns"] == columns,
            "{row}"
        );
        ensure!(row["raw_hex"].is_null() && row["partly"].is_null(), "{row}");
    }
    let csv = stage
        .verb(&["rejects", &run, "--output", "csv"])
        .await?
        .success()?
        .stdout;
    ensure!(csv.contains(r#""[""2"",null,""500""]""#), "{csv}");
    // Rejected again, they are what they were.
    stage.replay(&run, &pipeline(source, "much > 200", APPEND)).await?;
    let (_, again) = newest_rejects(stage.path()).await?;
    for (row, before) in again.iter().zip(&rejects) {
        ensure!(
            row["values"] == before["values"] && row["columns"] == before["columns"],
            "{row}"
        );
    }
    ensure!(again.len() == rejects.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_prunes_without_a_name_is_known_by_number_and_host() -> Result<()> {
    let stage = Stage::new()?;
    let run = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    let prune = Verb::new(stage.path())
        .args(["prune", "--older-than", "0s"])
        .env("USER", "");
    prune.output().await?.success()?;
    let said = stage
        .verb(&["rejects", &run])
        .await?
        .failure(&["were pruned on 20", " by uid "])?;
    ensure!(!said.stderr.contains("somebody"), "{}", said.stderr);
    ensure!(newest_run(stage.path()).await? == run);
    Ok(())
}
