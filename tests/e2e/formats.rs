//! The flights example with its data as JSON lines and as Parquet: the same rows come out as of CSV.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::csv::ReaderBuilder;
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::arrow::json::LineDelimitedWriter;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use super::support::cluster::{check_state, run_of};
use super::support::flights;
use super::support::process::{Verb, newest_rejects, newest_run};

/// The example's data files without their ending, and their columns that are no text.
const FILES: [(&str, &[&str]); 5] = [
    ("flights-2013-01", &FLIGHTS),
    ("flights-2013-02", &FLIGHTS),
    ("airlines", &[]),
    ("planes", &["year", "engines", "seats", "speed"]),
    ("airports", &["alt", "tz"]),
];

/// The whole numbers of a flight.
const FLIGHTS: [&str; 14] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "flight",
    "air_time",
    "distance",
    "hour",
    "minute",
];

/// A data file of the example, typed.
fn table(name: &str, numbers: &[&str]) -> Result<RecordBatch> {
    let path = flights::data().join(format!("{name}.csv"));
    let header = std::fs::read_to_string(&path)?;
    let header = header.lines().next().context("no header")?;
    let names: Vec<&str> = header.split(',').collect();
    let texts = names
        .iter()
        .map(|name| Field::new(*name, DataType::Utf8, true))
        .collect::<Vec<_>>();
    let reader = ReaderBuilder::new(Arc::new(Schema::new(texts)))
        .with_header(true)
        .with_batch_size(1 << 20)
        .build(BufReader::new(File::open(path)?))?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let [batch] = &batches[..] else {
        anyhow::bail!("{name} is larger than a batch")
    };
    let mut columns = Vec::new();
    for (name, column) in names.into_iter().zip(batch.columns()) {
        let column = column.as_any().downcast_ref::<StringArray>().context("text")?;
        let texts: ArrayRef = Arc::new(
            column
                .iter()
                .map(|text| text.filter(|text| *text != "NA"))
                .collect::<StringArray>(),
        );
        // Larger and smaller than what the pipeline declares is no matter for JSON; Parquet's have to fit.
        let data_type = match name {
            "flight" | "distance" => DataType::Int32,
            "time_hour" => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            name if numbers.contains(&name) => DataType::Int16,
            _ => DataType::Utf8,
        };
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        columns.push((name.to_owned(), cast_with_options(&texts, &data_type, &strict)?, true));
    }
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

fn write_json(file: File, table: &RecordBatch) -> Result<()> {
    let mut writer = LineDelimitedWriter::new(BufWriter::new(file));
    writer.write(table)?;
    Ok(writer.finish()?)
}

fn write_parquet(file: File, table: &RecordBatch) -> Result<()> {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(5_000))
        .build();
    let mut writer = ArrowWriter::try_new(file, table.schema(), Some(properties))?;
    writer.write(table)?;
    writer.close()?;
    Ok(())
}

/// Runs the pipeline in a folder and returns what `show` says of the run.
async fn run(folder: &Path, pipeline: &Path) -> Result<Value> {
    Verb::new(folder)
        .args(["run".as_ref(), pipeline.as_os_str()])
        .output()
        .await?
        .success()?;
    let id = newest_run(folder).await?;
    let shown = Verb::new(folder)
        .args(["show", &id, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()?;
    check_state(&shown, "published")?;
    Ok(shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flights_as_json_lines_and_as_parquet_load_what_csv_loads() -> Result<()> {
    let original = tempfile::tempdir()?;
    let by_csv = run(original.path(), &flights::pipeline()).await?;
    let expected = flights::rows_of_sqlite(&original.path().join(".haulage/warehouse.db")).await?;
    ensure!(expected.len() == 50_001, "{} rows", expected.len());
    let (_, rejects_of_csv) = newest_rejects(original.path()).await?;

    let text = std::fs::read_to_string(flights::pipeline())?;
    type Write = fn(File, &RecordBatch) -> Result<()>;
    let formats: [(&str, &str, &str, Write); 2] = [
        ("json", "jsonl", "1MiB", write_json),
        ("parquet", "parquet", "64KiB", write_parquet),
    ];
    for (word, ending, chunk_size, write) in formats {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("data"))?;
        for (name, numbers) in FILES {
            let file = File::create(folder.path().join(format!("data/{name}.{ending}")))?;
            write(file, &table(name, numbers)?)?;
        }
        // Several chunks a file: Parquet's are much smaller.
        let mine = text
            .replace(
                "csv: data/flights-*.csv",
                &format!("{word}: data/flights-*.{ending}\n    chunk_size: {chunk_size}"),
            )
            .replace("csv: data/", &format!("{word}: data/"))
            .replace(".csv\n", &format!(".{ending}\n"))
            .replace("    null: [\"NA\"]\n", "");
        ensure!(!mine.contains("csv:"), "{mine}");
        let pipeline = folder.path().join("pipeline.yaml");
        std::fs::write(&pipeline, mine)?;
        Verb::new(folder.path())
            .args(["validate", "pipeline.yaml"])
            .output()
            .await?
            .success()?;

        let shown = run(folder.path(), &pipeline).await?;
        let rows = flights::rows_of_sqlite(&folder.path().join(".haulage/warehouse.db")).await?;
        ensure!(rows == expected, "{word}: {} rows, and not those of CSV", rows.len());
        for count in ["read", "loaded", "filtered", "rejected_by_reason"] {
            let (mine, theirs) = (&run_of(&shown)["counts"][count], &run_of(&by_csv)["counts"][count]);
            ensure!(mine == theirs, "{word}: {count} is {mine}, of CSV {theirs}");
        }

        // The same rows are in quarantine, as JSON, with their place: CSV has one line more, its header.
        let (_, rejects) = newest_rejects(folder.path()).await?;
        let place = |reject: &Value, header: u64| {
            let file = reject["file"].as_str().unwrap_or_default();
            let month = file
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .split('.')
                .next()
                .unwrap_or_default();
            (month.to_owned(), reject["line"].as_u64().unwrap_or_default() - header)
        };
        let mut mine: Vec<_> = rejects.iter().map(|reject| place(reject, 0)).collect();
        let mut theirs: Vec<_> = rejects_of_csv.iter().map(|reject| place(reject, 1)).collect();
        mine.sort_unstable();
        theirs.sort_unstable();
        ensure!(mine.len() == 172 && mine == theirs, "{word}: {} rejects", mine.len());
        for reject in &rejects {
            let raw: Value = serde_json::from_str(reject["raw"].as_str().context("raw text")?)?;
            ensure!(raw["year"] == 2013 && raw["carrier"].is_string(), "{word}: {reject}");
        }
    }
    Ok(())
}
