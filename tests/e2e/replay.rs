//! Replay: rejected rows are read again by a corrected pipeline, and each is loaded once, whatever happens in between.

mod kept;
mod lost_node;
mod one_key;
mod only;
mod own_columns;
mod several_rows;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tempfile::TempDir;

use super::support::cluster::run_of;
use super::support::process::{Output, Verb, newest_rejects, newest_run};

/// Rejected by the first definition: 2 (no number), 3 (rule; a record of two lines), 5 (out of range), 6 (rule), 7 (ragged).
const ROWS: &str =
    "id,name,much\n1,ann,5\n2,bob,many\n3,\"c,\n\"\"d\"\"\",500\n4,,7\n5,eve,9000000000\n6,fay,800\n7,gus\n8,hal,8\n";

/// A pipeline that differs in what is read and in what is rejected.
fn pipeline(source: &str, rule: &str, loads: &str) -> String {
    format!(
        "pipeline: rows\ncheckpoint_rows: 2\nsources:\n  raw:\n    {source}\n\
         steps:\n  kept:\n    sql: SELECT id, name, CAST(much AS bigint) AS much FROM raw\n    reject: {{too_much: {rule}}}\n\
         loads:\n{loads}"
    )
}

const FIRST: &str = "csv: rows.csv\n    columns: {id: int!, name: text, much: int}";
const WIDER: &str = "csv: rows.csv\n    columns: {id: int!, name: text, much: bigint}";
const TOLERANT: &str = "csv: rows.csv\n    columns: {id: int!, name: text, much: bigint}\n    null: [many]";
const APPEND: &str = "  out: {from: kept, to: warehouse, table: out, mode: append}\n";

struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("rows.csv"), ROWS)?;
        Ok(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn verb(&self, args: &[&str]) -> Result<Output> {
        Verb::new(self.path()).args(args).output().await
    }

    /// When a run came to rest, in milliseconds.
    async fn finished_at(&self, run: &str) -> Result<i64> {
        let shown = self.verb(&["show", run, "--output", "json"]).await?.success()?;
        let lines = shown.json_lines()?;
        lines[0]["finished_at"].as_i64().context("the run is over")
    }

    /// Runs a definition; its run.
    async fn run(&self, text: &str) -> Result<String> {
        std::fs::write(self.path().join("rows.yaml"), text)?;
        self.verb(&["run", "rows.yaml"]).await?.success()?;
        newest_run(self.path()).await
    }

    /// Replays a run by a definition; the run of the replay.
    async fn replay(&self, run: &str, text: &str) -> Result<String> {
        self.try_replay(run, text).await?.success()?;
        newest_run(self.path()).await
    }

    async fn try_replay(&self, run: &str, text: &str) -> Result<Output> {
        std::fs::write(self.path().join("fixed.yaml"), text)?;
        self.verb(&["replay", run, "fixed.yaml"]).await
    }

    /// The newest run: read, rejected, state.
    async fn counts(&self) -> Result<(u64, u64, String)> {
        let run = newest_run(self.path()).await?;
        let shown = self
            .verb(&["show", &run, "--output", "json"])
            .await?
            .success()?
            .json()?;
        let run = run_of(&shown);
        let count = |name: &str| run["counts"][name].as_u64().unwrap_or(u64::MAX);
        let state = run["state"].as_str().unwrap_or_default().to_owned();
        Ok((count("read"), count("rejected"), state))
    }

    /// The rows of a table, as text, in their order.
    async fn rows(&self, table: &str) -> Result<Vec<String>> {
        let file = SqliteConnectOptions::new().filename(self.path().join(".haulage/warehouse.db"));
        let mut connection = SqliteConnection::connect_with(&file).await?;
        let sql = format!(
            "SELECT id || '|' || coalesce(name, '-') || '|' || coalesce(CAST(much AS text), '-') FROM {table} ORDER BY 1"
        );
        let rows = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&mut connection)
            .await?;
        connection.close().await?;
        Ok(rows)
    }
}

/// What a run over the whole file by this definition loads.
async fn ideal(text: &str) -> Result<Vec<String>> {
    let stage = Stage::new()?;
    stage.run(text).await?;
    stage.rows("out").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_by_a_corrected_definition_is_loaded_once_over_a_chain_of_replays() -> Result<()> {
    let stage = Stage::new()?;
    let first = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    ensure!(stage.rows("out").await? == ["1|ann|5", "4|-|7", "8|hal|8"]);

    // One fix: 500 passes, and 9000000000 can be read but not pass.
    let wider = pipeline(WIDER, "much > 600", APPEND);
    let second = stage.replay(&first, &wider).await?;
    ensure!(
        stage.counts().await? == (5, 4, "published".to_owned()),
        "{:?}",
        stage.counts().await?
    );
    ensure!(stage.rows("out").await? == ["1|ann|5", "3|c,\n\"d\"|500", "4|-|7", "8|hal|8"]);
    // A row that fails again is still one of its file.
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let places: Vec<_> = rejects
        .iter()
        .map(|row| {
            (
                row["line"].as_u64().unwrap_or(0),
                row["reason"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    ensure!(
        places == [(3, "bad_int"), (7, "too_much"), (8, "too_much"), (9, "ragged")],
        "{places:?}"
    );
    ensure!(
        rejects
            .iter()
            .all(|row| row["file"].as_str().unwrap_or_default().ends_with("rows.csv")
                && row["run_id"] == second.as_str())
    );
    let page = stage.verb(&["show", &second]).await?.success()?.stdout;
    ensure!(page.contains(&format!("the rejected rows of {first}")), "{page}");

    // Once more the same: nothing.
    let said = stage.try_replay(&first, &wider).await?.success()?;
    ensure!(format!("{}{}", said.stdout, said.stderr).contains("replayed already"));
    let before = stage.rows("out").await?;
    let again = stage
        .verb(&["replay", &first, "fixed.yaml", "--again"])
        .await?
        .success()?;
    ensure!(again.stderr.contains("what is left are those of"), "{}", again.stderr);
    ensure!(stage.rows("out").await? == before);

    // Another fix, for what is left: named by the first run all the same.
    let tolerant = pipeline(TOLERANT, "much > 10000000000", APPEND);
    stage.replay(&first, &tolerant).await?;
    ensure!(
        stage.counts().await? == (4, 1, "published".to_owned()),
        "{:?}",
        stage.counts().await?
    );
    let expected = ideal(&tolerant).await?;
    ensure!(stage.rows("out").await? == expected, "{:?}", stage.rows("out").await?);
    ensure!(expected.len() == 7);

    // The ragged row too is kept as it was; and then there is nothing left.
    let short = "csv: rows.csv\n    delimiter: ';'\n    header: false\n    columns: {line: text}";
    let short = format!(
        "pipeline: rows\nsources:\n  raw:\n    {short}\nsteps:\n  kept: SELECT CAST(7 AS int) AS id, line AS name, CAST(NULL AS bigint) AS much FROM raw\nloads:\n{APPEND}"
    );
    stage.replay(&first, &short).await?;
    ensure!(stage.rows("out").await?.contains(&"7|7,gus|-".to_owned()));
    let said = stage.try_replay(&first, &tolerant).await?.success()?;
    ensure!(said.stderr.contains("nothing to replay"), "{}", said.stderr);
    ensure!(stage.rows("out").await?.len() == 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_goes_only_to_the_loads_that_it_was_rejected_for() -> Result<()> {
    // A rule keeps rows from `out` alone; what can't be read is missing from both.
    let loads = format!("{APPEND}  all: {{from: raw, to: warehouse, table: everything, mode: append}}\n");
    let stage = Stage::new()?;
    let first = stage.run(&pipeline(FIRST, "much > 100", &loads)).await?;
    let fixed = pipeline(TOLERANT, "much > 10000000000", &loads);
    ensure!(stage.rows("everything").await?.len() == 5);
    stage.replay(&first, &fixed).await?;
    let other = Stage::new()?;
    other.run(&fixed).await?;
    for table in ["out", "everything"] {
        let (rows, expected) = (stage.rows(table).await?, other.rows(table).await?);
        ensure!(
            rows == expected && rows.len() == 7,
            "{table}: {rows:?}, not {expected:?}"
        );
    }
    // A load that a row was rejected for can't be left out.
    let rejected = pipeline(FIRST, "much > 100", &loads);
    let other = Stage::new()?;
    let first = other.run(&rejected).await?;
    other
        .replay(&first, &pipeline(TOLERANT, "much > 10000000000", APPEND))
        .await?;
    let (_, rejects) = newest_rejects(other.path()).await?;
    let lost: Vec<_> = rejects.iter().filter(|row| row["reason"] == "not_replayable").collect();
    ensure!(lost.len() == 3, "{rejects:?}");
    ensure!(
        lost[0]["detail"].as_str().unwrap_or_default().contains("the load all")
            && lost[0]["detail"]
                .as_str()
                .unwrap_or_default()
                .contains("it was bad_int"),
        "{lost:?}"
    );
    other.replay(&first, &fixed).await?;
    for table in ["out", "everything"] {
        ensure!(other.rows(table).await? == stage.rows(table).await?, "{table}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_killed_goes_on_and_loads_every_row_once() -> Result<()> {
    let stage = Stage::new()?;
    let first = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    let fixed = pipeline(TOLERANT, "much > 10000000000", APPEND);
    std::fs::write(stage.path().join("fixed.yaml"), &fixed)?;
    let killed = Verb::new(stage.path())
        .args(["replay", &first, "fixed.yaml"])
        .env("HAULAGE_FAULT", "abort@chunk:0.2")
        .output()
        .await?;
    ensure!(killed.code == -1, "{killed:?}");
    ensure!(stage.rows("out").await?.len() == 3);
    let (run, state) = (newest_run(stage.path()).await?, stage.counts().await?.2);
    ensure!(run != first && state == "loading", "{state}");
    // Another replay may not begin beside it, and the run may not be taken from under it. Slow, since a process in the
    // home goes on with what it finds open there.
    let slow = |args: &[&str]| {
        let verb = Verb::new(stage.path()).args(args);
        verb.env("HAULAGE_FAULT", "slow@segment:20000ms")
    };
    slow(&["revert", &first]).output().await?.failure(&[&run])?;
    std::fs::write(
        stage.path().join("other.yaml"),
        pipeline(TOLERANT, "much > 600", APPEND),
    )?;
    slow(&["replay", &first, "other.yaml"])
        .output()
        .await?
        .failure(&["are being replayed by", &run])?;
    stage.try_replay(&first, &fixed).await?.success()?;
    ensure!(newest_run(stage.path()).await? == run, "it is the same run");
    ensure!(stage.rows("out").await? == ideal(&fixed).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reverted_replay_gives_its_rows_back() -> Result<()> {
    let stage = Stage::new()?;
    let text = pipeline(FIRST, "much > 100", APPEND);
    let first = stage.run(&text).await?;
    let before = stage.rows("out").await?;
    let fixed = pipeline(TOLERANT, "much > 10000000000", APPEND);
    let replay = stage.replay(&first, &fixed).await?;
    stage
        .verb(&["revert", &first])
        .await?
        .failure(&["its rejected rows were given to", &replay])?;
    std::fs::write(stage.path().join("rows.yaml"), &text)?;
    stage
        .verb(&["run", "rows.yaml", "--rerun"])
        .await?
        .failure(&["has replayed the rejected rows", &replay])?;
    stage.verb(&["revert", &replay]).await?.success()?;
    ensure!(stage.rows("out").await? == before);
    stage.replay(&first, &fixed).await?;
    ensure!(stage.rows("out").await? == ideal(&fixed).await?);

    // What isn't published has nothing to add to.
    let third = newest_run(stage.path()).await?;
    stage.verb(&["revert", &third]).await?.success()?;
    stage.verb(&["revert", &first]).await?.success()?;
    stage.try_replay(&first, &fixed).await?.failure(&["was reverted"])?;
    stage.try_replay("nowhere", &fixed).await?.failure(&["nowhere"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replayed_rows_are_added_to_what_a_load_replaces_or_merges() -> Result<()> {
    for mode in ["replace", "merge"] {
        let stage = Stage::new()?;
        let loads = format!("  out: {{from: kept, to: warehouse, table: out, mode: {mode}, key: [id]}}\n");
        let first = stage.run(&pipeline(FIRST, "much > 100", &loads)).await?;
        let fixed = pipeline(TOLERANT, "much > 10000000000", &loads);
        stage.replay(&first, &fixed).await?;
        ensure!(stage.rows("out").await? == ideal(&fixed).await?, "{mode}");
    }
    Ok(())
}

/// A source of some kind with the rows, and what to declare of it before and after it is corrected.
fn sources(folder: &Path) -> Result<[(&'static str, &'static str, &'static str); 3]> {
    let lines = [
        "{\"id\": 1, \"name\": \"ann\", \"much\": 5, \"more\": [1]}",
        "{\"id\": 2, \"name\": \"tab\\there\", \"much\": 500}",
        "{\"id\": 3, \"name\": \"\\\\N\", \"much\": 700}",
        "{\"id\": 4, \"much\": 800}",
        "{\"id\": 5, \"name\": \"eve\", \"much\": 9000000000}",
    ];
    std::fs::write(folder.join("rows.jsonl"), lines.join("\n"))?;
    let names = [Some("ann"), Some("tab\there"), Some("\\N"), None, Some("eve")];
    let much = [5, 500, 700, 800, 9_000_000_000];
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(1..=5)) as ArrayRef),
        ("name", Arc::new(StringArray::from_iter(names)) as ArrayRef),
        ("much", Arc::new(Int64Array::from_iter_values(much)) as ArrayRef),
    ])?;
    let mut writer = ArrowWriter::try_new(File::create(folder.join("rows.parquet"))?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok([
        (
            "json",
            "json: rows.jsonl\n    columns: {id: bigint!, name: text, much: int}",
            "json: rows.jsonl\n    columns: {id: bigint!, name: text, much: bigint}",
        ),
        (
            "parquet",
            "parquet: rows.parquet",
            "parquet: rows.parquet\n    columns: {id: bigint!, name: text, much: bigint}",
        ),
        (
            "sqlite",
            "sqlite: rows.db\n    table: things\n    columns: {id: bigint!, name: text, much: int}",
            "sqlite: rows.db\n    table: things\n    columns: {much: bigint, id: bigint!, name: text}",
        ),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_every_kind_of_source_are_read_again_as_they_were() -> Result<()> {
    let stage = Stage::new()?;
    let file = SqliteConnectOptions::new()
        .filename(stage.path().join("rows.db"))
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&file).await?;
    sqlx::raw_sql(
        "CREATE TABLE things (id integer, name text, much integer, more text);
         INSERT INTO things (id, name, much) VALUES (1, 'ann', 5), (2, 'tab' || char(9) || 'here', 500), (3, '\\N', 700), (4, NULL, 800), \
         (5, 'eve', 9000000000)",
    )
    .execute(&mut connection)
    .await?;
    connection.close().await?;
    for (kind, before, after) in sources(stage.path())? {
        let loads = format!("  out: {{from: kept, to: warehouse, table: {kind}, mode: append}}\n");
        let first = stage.run(&pipeline(before, "much > 100", &loads)).await?;
        ensure!(
            stage.rows(kind).await? == ["1|ann|5"],
            "{kind}: {:?}",
            stage.rows(kind).await?
        );
        stage
            .replay(&first, &pipeline(after, "much > 10000000000", &loads))
            .await?;
        let rows = stage.rows(kind).await?;
        ensure!(
            rows == ["1|ann|5", "2|tab\there|500", "3|\\N|700", "4|-|800", "5|eve|9000000000"],
            "{kind}: {rows:?}"
        );
    }
    // A column that was not read then can't be had now.
    let loads = "  out: {from: kept, to: warehouse, table: sqlite, mode: append}\n";
    let columns = |more: &str| {
        format!("sqlite: rows.db\n    table: things\n    columns: {{id: bigint!, name: text, much: int{more}}}")
    };
    let first = stage.run(&pipeline(&columns(""), "much > 200", loads)).await?;
    stage
        .try_replay(&first, &pipeline(&columns(", more: text"), "much > 200", loads))
        .await?
        .failure(&["without the column more"])?;
    ensure!(stage.rows("sqlite").await?.len() == 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text_are_kept_and_rows_that_are_too_long_stay_rejected() -> Result<()> {
    let stage = Stage::new()?;
    let mut rows = b"id,name,much\n1,ann,5\n2,b\xffb,6\n3,".to_vec();
    rows.extend_from_slice("x".repeat(200 << 10).as_bytes());
    rows.extend_from_slice(b",700\n4,\\xff,800\n");
    std::fs::write(stage.path().join("rows.csv"), rows)?;
    let first = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    let nameless = "  kept:\n    sql: SELECT id, CAST(NULL AS text) AS name, CAST(much AS bigint) AS much FROM raw\n";
    let fixed = pipeline(FIRST, "much > 1000", APPEND);
    stage.replay(&first, &fixed).await?;
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let reasons: Vec<_> = rejects
        .iter()
        .map(|row| row["reason"].as_str().unwrap_or_default())
        .collect();
    ensure!(reasons == ["bad_utf8", "not_replayable"], "{reasons:?}");
    ensure!(stage.rows("out").await? == ["1|ann|5", "4|\\xff|800"]);
    // Without the column the row can be read: the other fields are what they were.
    let text = format!(
        "pipeline: rows\nsources:\n  raw:\n    csv: rows.csv\n    columns: {{id: int!, much: int}}\nsteps:\n{nameless}loads:\n{APPEND}"
    );
    stage.replay(&first, &text).await?;
    ensure!(stage.rows("out").await? == ["1|ann|5", "2|-|6", "4|\\xff|800"]);
    let (_, rejects) = newest_rejects(stage.path()).await?;
    ensure!(rejects.len() == 1 && rejects[0]["line"] == 4, "{}", rejects.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_rows_as_csv_are_all_there() -> Result<()> {
    let stage = Stage::new()?;
    let first = stage.run(&pipeline(FIRST, "much > 100", APPEND)).await?;
    let said = stage
        .verb(&["rejects", &first, "--output", "csv"])
        .await?
        .success()?
        .stdout;
    let script =
        "import csv, io, json, sys\nprint(json.dumps(list(csv.DictReader(io.StringIO(sys.stdin.read(), newline='')))))";
    let mut python = tokio::process::Command::new("python3")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut input = python.stdin.take().context("a pipe")?;
    tokio::io::AsyncWriteExt::write_all(&mut input, said.as_bytes()).await?;
    drop(input);
    let parsed: serde_json::Value = serde_json::from_slice(&python.wait_with_output().await?.stdout)?;
    let parsed = parsed.as_array().context("rows")?.clone();
    let (_, rejects) = newest_rejects(stage.path()).await?;
    ensure!(parsed.len() == 5 && rejects.len() == 5, "{said}");
    for (csv, json) in parsed.iter().zip(&rejects) {
        for name in ["file", "reason", "detail", "raw", "source", "run_id"] {
            ensure!(csv[name] == json[name], "{name}: {csv} and {json}");
        }
        ensure!(csv["line"] == json["line"].to_string().as_str());
    }
    ensure!(parsed[1]["raw"] == "3,\"c,\n\"\"d\"\"\",500", "{}", parsed[1]);
    stage
        .verb(&["runs", "--output", "csv"])
        .await?
        .failure(&["haulage rejects"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pruned_is_gone_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    let text = pipeline(FIRST, "much > 100", APPEND);
    let first = stage.run(&text).await?;
    let fixed = pipeline(TOLERANT, "much > 10000000000", APPEND);
    let folder = stage.path().join(".haulage/checkpoints/runs");
    let (manifests, rejects) = files(&folder)?;
    ensure!(manifests == 4 && rejects == 4, "{manifests} and {rejects}");

    // A young run keeps its rejected rows, and what it has is only counted by a dry run.
    let said = stage
        .verb(&["prune", "--older-than", "1d", "--dry-run"])
        .await?
        .success()?
        .stdout;
    ensure!(said.contains("would delete 4 objects of 1 run"), "{said}");
    ensure!(files(&folder)? == (4, 4));
    stage.verb(&["prune", "--older-than", "1d"]).await?.success()?;
    ensure!(files(&folder)? == (0, 4));
    let said = stage
        .verb(&["prune", "--older-than", "1d", "--output", "json"])
        .await?
        .success()?;
    ensure!(said.stdout.is_empty(), "there is nothing left: {}", said.stdout);

    // A replay that isn't over keeps what it reads, and what it has itself.
    std::fs::write(stage.path().join("fixed.yaml"), &fixed)?;
    let slow = |args: &[&str]| {
        let verb = Verb::new(stage.path()).args(args);
        verb.env("HAULAGE_FAULT", "abort@chunk:0.2,slow@segment:1ms")
    };
    let killed = slow(&["replay", &first, "fixed.yaml"]).output().await?;
    ensure!(killed.code == -1, "{killed:?}");
    let before = files(&folder)?;
    Verb::new(stage.path())
        .args(["prune", "--older-than", "0s"])
        .env("HAULAGE_FAULT", "slow@segment:20000ms")
        .output()
        .await?
        .success()?;
    ensure!(files(&folder)?.1 >= 4, "{before:?}, {:?}", files(&folder)?);
    stage.try_replay(&first, &fixed).await?.success()?;
    ensure!(stage.rows("out").await? == ideal(&fixed).await?);

    // One that is over, but not for as long as the run, may be reverted: then they are rejected rows again.
    let replay = newest_run(stage.path()).await?;
    let [first_end, replay_end] = [stage.finished_at(&first).await?, stage.finished_at(&replay).await?];
    let now = || std::time::UNIX_EPOCH.elapsed().map(|since| since.as_millis() as i64);
    let older = (now()? - first_end) / 1000;
    let said = stage.verb(&["prune", "--older-than", &format!("{older}s")]).await?;
    let is_young = now()? - replay_end < older * 1000;
    ensure!(is_young, "{older} s is too little to tell: the prune took as long");
    said.success()?;
    ensure!(files(&folder)?.1 >= 4, "{:?}", files(&folder)?);
    let page = stage.verb(&["show", &first]).await?.success()?.stdout;
    ensure!(
        page.contains(&format!("by {replay}; what is left: haulage rejects {replay}")),
        "{page}"
    );

    // Then everything goes, the runs say so, and what they were stays what it was.
    let said = stage
        .verb(&["prune", "--older-than", "0s", "--by", "ann"])
        .await?
        .success()?
        .stdout;
    ensure!(said.contains("of 2 runs") && said.contains("6 rejected rows"), "{said}");
    ensure!(files(&folder)? == (0, 0));
    ensure!(std::fs::read_dir(&folder)?.next().is_none(), "empty folders stay");
    stage
        .verb(&["rejects", &first])
        .await?
        .failure(&["were pruned on 20", "by ann"])?;
    stage
        .try_replay(&first, &pipeline(TOLERANT, "much > 600", APPEND))
        .await?
        .failure(&["were pruned by ann", &replay])?;
    ensure!(stage.counts().await? == (5, 1, "published".to_owned()));
    let page = stage.verb(&["show", &first]).await?.success()?.stdout;
    ensure!(page.contains("ann pruned the rejected rows"), "{page}");
    ensure!(page.contains("pruned     the rejected rows, on 20"), "{page}");
    stage.verb(&["prune", "--older-than", "0s"]).await?.success()?;
    // A run is reverted as before.
    stage.verb(&["revert", &replay]).await?.success()?;
    stage.verb(&["revert", &first]).await?.success()?;
    Ok(())
}

/// How many manifests and objects of rejected rows lie below a folder.
fn files(folder: &Path) -> Result<(usize, usize)> {
    let mut found = (0, 0);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(found);
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let (manifests, rejects) = files(&path)?;
            found = (found.0 + manifests, found.1 + rejects);
        } else if name.ends_with(".manifest.json") {
            found.0 += 1;
        } else if !name.starts_with(".tmp-") {
            // What a process that was killed was writing is deleted too, but can't be counted on.
            ensure!(name.ends_with(".rejects.jsonl.zst"), "{name}");
            found.1 += 1;
        }
    }
    Ok(found)
}
