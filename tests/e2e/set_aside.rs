//! Checks that set rows aside: which rows go, that the others are published, that everything counts up, and that it happens
//! once, whatever is lost in between.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::{ROWS, Stage};
use super::support::cluster::run_of;
use super::support::files::of_file;
use super::support::process::{Output, newest_rejects, newest_run};

const COLUMNS: &str = "{id: int!, name: text, v: double, price: \"decimal(10,2)\", kind: text, day: date, at: timestamp, x: \
                       int, f: float, w: double}";

/// A pipeline over `rows.csv` into `out`, with `kinds.csv` as a lookup.
fn pipeline(load: &str, checks: &[&str]) -> String {
    let checks: String = checks.iter().map(|check| format!("  - {check}\n")).collect();
    format!(
        "pipeline: p\nsources:\n  raw:\n    csv: rows.csv\n    columns: {COLUMNS}\n  \
         kinds: {{csv: kinds.csv, lookup: true, columns: {{kind: text}}}}\nloads:\n{load}checks:\n{checks}"
    )
}

fn load(mode: &str) -> String {
    format!("  out: {{from: raw, to: warehouse, table: out, mode: {mode}}}\n")
}

async fn run(stage: &Stage, text: &str) -> Result<Output> {
    std::fs::write(stage.path().join("kinds.csv"), "kind\na\nb\nc\n")?;
    std::fs::write(stage.path().join("pipeline.yaml"), text)?;
    stage.verb(&["run", "pipeline.yaml"]).output().await
}

/// The published ids.
async fn ids(stage: &Stage) -> Result<Vec<i64>> {
    if let Some(lake) = stage.lake() {
        return ids_of_files(&lake.join("out"));
    }
    let texts = stage.texts("SELECT CAST(id AS text) FROM out").await?;
    let ids = texts.iter().map(|text| text.parse::<i64>().context("an id"));
    let mut ids = ids.collect::<Result<Vec<_>>>()?;
    ids.sort_unstable();
    Ok(ids)
}

/// Those that the newest version's manifest leads to; no other file of rows is there.
fn ids_of_files(table: &Path) -> Result<Vec<i64>> {
    let json = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let state = json(&table.join("_haulage/table.json"))?;
    let Some(manifest) = state["head"]["manifest"].as_str() else {
        return Ok(Vec::new());
    };
    let manifest = json(&table.join(manifest))?;
    let mut ids = Vec::new();
    for file in manifest["files"].as_array().context("files")? {
        let rows = of_file(&table.join(file["path"].as_str().context("a path")?))?;
        ensure!(file["rows"] == rows.len(), "{file}: {} rows", rows.len());
        for row in rows {
            ids.push(row["id"].parse::<f64>()? as i64);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// The ids of the rows that were set aside, with their reasons.
async fn aside(stage: &Stage) -> Result<Vec<(i64, String)>> {
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let mut found = Vec::new();
    for reject in rejects
        .iter()
        .filter(|reject| reject["reason"].as_str().is_some_and(|why| why.starts_with("check:")))
    {
        let row: Value = serde_json::from_str(reject["raw"].as_str().unwrap_or_default())?;
        let id = row["id"].as_str().context("the row has an id")?.parse()?;
        found.push((id, reject["reason"].as_str().unwrap_or_default().to_owned()));
    }
    found.sort();
    Ok(found)
}

/// Every row that was read is accounted for, wherever that is shown, and what is published is what the receipt says.
async fn everything_adds_up(stage: &Stage, visible: u64, gone: u64) -> Result<()> {
    let shown = stage.shown().await?;
    let run = run_of(&shown);
    let count = |name: &str| run["counts"][name].as_u64().unwrap_or(u64::MAX);
    ensure!(run["state"] == "published", "{run}");
    ensure!(
        (count("loaded"), count("set_aside")) == (visible, gone),
        "{visible} rows and {gone}: {run}"
    );
    ensure!(
        count("read") == count("loaded") + count("filtered") + count("rejected"),
        "{run}"
    );
    let by_reason = run["counts"]["rejected_by_reason"].as_object().context("reasons")?;
    let checks = by_reason.iter().filter(|(reason, _)| reason.starts_with("check:"));
    ensure!(
        checks.filter_map(|(_, rows)| rows.as_u64()).sum::<u64>() == gone,
        "{run}"
    );
    let load = &run["loads"][0];
    let of = |name: &str| load["counts"][name].as_u64().unwrap_or(u64::MAX);
    ensure!(of("read") == of("passed") + of("filtered") + of("rejected"), "{load}");
    ensure!(
        load["staged"] == visible + gone && load["published"] == visible,
        "{load}"
    );
    ensure!(load["set_aside"] == gone, "{load}");

    let run = newest_run(stage.path()).await?;
    let (_, rejects) = newest_rejects(stage.path()).await?;
    ensure!(rejects.len() as u64 == count("rejected"), "{} rejects", rejects.len());
    let receipt = stage
        .verb(&["receipt", &run, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()?;
    let load = &receipt["loads"][0];
    ensure!(
        load["set_aside"] == gone && load["total"]["checksum"]["rows"] == visible,
        "{load}"
    );
    ensure!(load["total"]["staged"] == visible + gone, "{load}");
    ensure!(stage.staging().await?.is_empty(), "{:?}", stage.staging().await?);
    if stage.lake().is_some() {
        // They aren't read back.
        return Ok(());
    }
    let verified = stage.verb(&["verify", &run]).output().await?.success()?;
    ensure!(!verified.stdout.contains("differs"), "{}", verified.stdout);
    ensure!(stage.staging().await?.is_empty(), "{:?}", stage.staging().await?);
    Ok(())
}

/// A check by itself, and the ids of the rows that it sets aside.
const EACH: [(&str, &[i64]); 14] = [
    ("not_null: name", &[7]),
    ("not_null: [kind, id]", &[]),
    ("unique: name", &[5, 6]),
    ("unique: [name, kind]", &[5, 6]),
    ("unique: id", &[]),
    ("accepted: {kind: [a, b]}", &[8, 9, 10]),
    ("accepted: {price: [10.5]}", &[9, 10]),
    ("range: {v: [1.001, 999.999]}", &[1, 10]),
    ("range: {day: [null, 2024-01-09]}", &[10]),
    ("references: {kind: known.kind}", &[10]),
    ("references: {kind: kind}, lookup: kinds", &[10]),
    ("outliers: {column: v}", &[10]),
    ("outliers: {column: v, allowed: \"<= 1\"}", &[]),
    ("outliers: {column: w}", &[10]),
];

async fn each_check_sets_its_rows_aside(stage: &Stage, more: &str) -> Result<()> {
    let known = "CREATE TABLE known (kind text); INSERT INTO known VALUES ('a'), ('b'), ('c'), (NULL)";
    if stage.lake().is_none() {
        stage.execute(known).await?;
    }
    for (at, (check, gone)) in EACH.iter().enumerate() {
        if stage.lake().is_some() && check.contains("known.kind") {
            continue;
        }
        let name = format!("check {at}");
        let checks = [
            format!("{{{check}, on_fail: quarantine, name: {name}}}"),
            format!("{{row_count: \"= {}\"}}", 10 - gone.len()),
            format!("{{rejects: \"= {}\"}}", 1 + gone.len()),
        ];
        let said = run(
            stage,
            &pipeline(&load(&format!("replace{more}")), &checks.each_ref().map(String::as_str)),
        )
        .await?
        .success()?;
        let left: Vec<i64> = (1..=10).filter(|id| !gone.contains(id)).collect();
        ensure!(ids(stage).await? == left, "{check}: {:?}", ids(stage).await?);
        let expected: Vec<(i64, String)> = gone.iter().map(|id| (*id, format!("check:{name}"))).collect();
        ensure!(aside(stage).await? == expected, "{check}: {:?}", aside(stage).await?);
        everything_adds_up(stage, left.len() as u64, gone.len() as u64)
            .await
            .context(*check)?;
        let shown = stage.shown().await?;
        let found = &run_of(&shown)["loads"][0]["checks"][0];
        ensure!(
            found["blocks"] == false && found["holds"] == gone.is_empty() && found["set_aside"] == gone.len(),
            "{check}: {found}"
        );
        let words = format!("{}{}", said.stdout, said.stderr);
        ensure!(words.contains("set aside") != gone.is_empty(), "{check}: {words}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_sets_its_rows_aside_in_postgres() -> Result<()> {
    each_check_sets_its_rows_aside(&Stage::postgres().await?, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_sets_its_rows_aside_in_sqlite() -> Result<()> {
    each_check_sets_its_rows_aside(&Stage::sqlite()?, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_sets_its_rows_aside_over_parquet() -> Result<()> {
    each_check_sets_its_rows_aside(&Stage::files()?, "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_sets_its_rows_aside_over_divided_csv() -> Result<()> {
    each_check_sets_its_rows_aside(&Stage::files()?, ", format: csv, partition_by: [kind]").await
}

/// In every mode; a row that several checks name goes once, by the first of them, whatever their order; and a key may be
/// double as long as its rows are set aside.
async fn all_are_asked_of_the_same_rows(stage: &Stage) -> Result<()> {
    let twice = format!("{ROWS}10,kim,5,2.25,a,2024-01-10,2024-01-10T00:00:00,4,0.1,1\n");
    std::fs::write(stage.path().join("rows.csv"), &twice)?;
    let one = "{unique: id, on_fail: quarantine, name: keys}";
    let other = "{unique: name, on_fail: quarantine, name: names}";
    let third = "{range: {v: [null, 100]}, on_fail: quarantine, name: far}";
    for (mode, checks, reasons) in [
        (
            "merge, key: [id]",
            [one, other, third],
            ["names", "names", "keys", "keys"],
        ),
        (
            "replace, key: [id]",
            [third, other, one],
            ["names", "names", "names", "far"],
        ),
        (
            "append, key: [id]",
            [other, one, third],
            ["names", "names", "names", "names"],
        ),
        ("append", [other, third, one], ["names", "names", "names", "names"]),
    ] {
        if stage.lake().is_none() {
            stage.execute("DROP TABLE IF EXISTS out").await?;
        } else if mode.starts_with("merge") || mode.starts_with("append,") {
            // Files take no such load.
            continue;
        }
        let checks: Vec<&str> = checks.into_iter().chain(["{row_count: \"= 7\"}"]).collect();
        let text = pipeline(&load(mode), &checks);
        run(stage, &text).await?.success().context(mode)?;
        ensure!(
            ids(stage).await? == [1, 2, 3, 4, 7, 8, 9],
            "{mode}: {:?}",
            ids(stage).await?
        );
        let mut expected: Vec<(i64, String)> = [5, 6, 10, 10]
            .into_iter()
            .zip(reasons)
            .map(|(id, name)| (id, format!("check:{name}")))
            .collect();
        expected.sort();
        ensure!(aside(stage).await? == expected, "{mode}: {:?}", aside(stage).await?);
        everything_adds_up(stage, 7, 4).await.context(mode)?;
        let shown = stage.shown().await?;
        let named: Vec<(String, u64)> = run_of(&shown)["loads"][0]["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|check| check["blocks"] == false)
            .map(|check| {
                (
                    check["name"].as_str().unwrap_or_default().to_owned(),
                    check["set_aside"].as_u64().unwrap_or(0),
                )
            })
            .collect();
        for (name, rows) in [("keys", 2), ("names", 4), ("far", 1)] {
            ensure!(named.contains(&(name.to_owned(), rows)), "{mode}: {named:?}");
        }
        // And back again.
        let this = newest_run(stage.path()).await?;
        stage
            .verb(&["revert", &this, "--reason", "test"])
            .output()
            .await?
            .success()
            .context(mode)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_asked_of_the_same_rows_in_postgres() -> Result<()> {
    all_are_asked_of_the_same_rows(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_asked_of_the_same_rows_in_sqlite() -> Result<()> {
    all_are_asked_of_the_same_rows(&Stage::sqlite()?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_asked_of_the_same_rows_over_files() -> Result<()> {
    all_are_asked_of_the_same_rows(&Stage::files()?).await
}

/// The node ends after the rows are out of the staging area, and before anybody hears of it.
async fn a_lost_answer_sets_nothing_aside_twice(stage: &Stage) -> Result<()> {
    let checks = [
        "{unique: name, on_fail: quarantine}",
        "{outliers: {column: v}, on_fail: quarantine}",
        "{rejects: \"= 4\"}",
    ];
    let text = pipeline(&load("replace, key: [id]"), &checks);
    std::fs::write(stage.path().join("kinds.csv"), "kind\na\n")?;
    std::fs::write(stage.path().join("pipeline.yaml"), &text)?;
    let killed = stage
        .verb(&["run", "pipeline.yaml"])
        .env("HAULAGE_FAULT", "abort@aside")
        .output()
        .await?;
    ensure!(killed.success().is_err(), "the process was to end");
    let records = match (stage.lake(), stage.is_postgres()) {
        (Some(lake), _) => vec![std::fs::read_to_string(lake.join("out/_haulage/table.json"))?],
        (None, true) => stage.texts("SELECT set_aside FROM haulage.loads").await?,
        (None, false) => stage.texts("SELECT set_aside FROM _haulage_loads").await?,
    };
    let records: Vec<String> = records
        .iter()
        .map(|record| record.split_whitespace().collect())
        .collect();
    ensure!(
        records.len() == 1 && records[0].contains("\"set\":{\"rows\":3,"),
        "{records:?}"
    );
    // The same fault is still there, and finds nothing to do.
    let again = stage
        .verb(&["run", "pipeline.yaml"])
        .env("HAULAGE_FAULT", "abort@aside")
        .output()
        .await?;
    again.success()?;
    ensure!(ids(stage).await? == [1, 2, 3, 4, 7, 8, 9]);
    let expected = [(5, "unique name"), (6, "unique name"), (10, "outliers v mad 3.5")];
    let expected: Vec<(i64, String)> = expected
        .into_iter()
        .map(|(id, name)| (id, format!("check:{name}")))
        .collect();
    ensure!(aside(stage).await? == expected, "{:?}", aside(stage).await?);
    everything_adds_up(stage, 7, 3).await?;
    let shown = stage.shown().await?;
    let found = &run_of(&shown)["loads"][0]["checks"];
    ensure!(
        found[0]["set_aside"] == 2 && found[1]["set_aside"] == 1 && found[2]["holds"] == true,
        "{found}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_sets_nothing_aside_twice_in_postgres() -> Result<()> {
    a_lost_answer_sets_nothing_aside_twice(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_sets_nothing_aside_twice_in_sqlite() -> Result<()> {
    a_lost_answer_sets_nothing_aside_twice(&Stage::sqlite()?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_sets_nothing_aside_twice_over_files() -> Result<()> {
    a_lost_answer_sets_nothing_aside_twice(&Stage::files()?).await
}

/// One of two loads, with provenance; then all of its rows; then a check that blocks, and a replay.
async fn what_is_set_aside_stays_known(stage: &Stage) -> Result<()> {
    let loads = "  out: {from: raw, to: warehouse, table: out, mode: replace, provenance: true}\n  \
                 other: {from: raw, to: warehouse, table: other, mode: append}\n";
    let text = pipeline(loads, &["{load: out, not_null: name, on_fail: quarantine}"]);
    run(stage, &text).await?.success()?;
    ensure!(ids(stage).await? == [1, 2, 3, 4, 5, 6, 8, 9, 10]);
    ensure!(stage.texts("SELECT CAST(count(*) AS text) FROM other").await? == ["10"]);
    let (first, rejects) = newest_rejects(stage.path()).await?;
    let row = rejects
        .iter()
        .find(|row| row["reason"] == "check:not_null name")
        .context("it is a reject")?;
    ensure!(
        row["file"] == "load out" && row["line"] == 8 && row["column"] == "name",
        "{row}"
    );
    ensure!(
        row["source"] == "raw"
            && row["detail"]
                .as_str()
                .is_some_and(|said| said.ends_with("; from chunk 0.0")),
        "{row}"
    );
    let kept: Value = serde_json::from_str(row["raw"].as_str().unwrap_or_default())?;
    ensure!(
        kept["id"] == "7" && kept["name"].is_null() && kept["price"] == "10.50" && kept["day"] == "2024-01-07",
        "{kept}"
    );
    stage.verb(&["verify", &first]).output().await?.success()?;
    let table = stage
        .verb(&["rejects", &first, "--reason", "check:not_null name"])
        .output()
        .await?
        .success()?;
    ensure!(
        table.stdout.starts_with("load out:8  check:not_null name  column name"),
        "{}",
        table.stdout
    );
    ensure!(table.stdout.lines().count() == 2, "{}", table.stdout);
    let table = stage
        .verb(&["rejects", &first, "--output", "csv"])
        .output()
        .await?
        .success()?;
    ensure!(table.stdout.contains(",check:not_null name,"), "{}", table.stdout);

    // It is a row of a load, and no source gives it again.
    let fixed = text.replace("id: int!", "id: text!");
    std::fs::write(
        stage.path().join("fixed.yaml"),
        fixed
            .replace("table: out", "table: out2")
            .replace("table: other", "table: other2"),
    )?;
    let replayed = stage
        .verb(&["replay", &first, "fixed.yaml"])
        .output()
        .await?
        .success()?;
    let said = format!("{}{}", replayed.stdout, replayed.stderr);
    ensure!(
        said.contains("1 row that checks have set aside stay rejected"),
        "{said}"
    );

    let all = pipeline(
        &load("replace"),
        &[
            "{range: {id: [100, null]}, on_fail: quarantine}",
            "{row_count: \"= 0\"}",
        ],
    );
    stage.execute("DROP TABLE out").await?;
    let said = run(stage, &all).await?.success()?;
    ensure!(format!("{}{}", said.stdout, said.stderr).contains("10 rows out of range"));
    ensure!(ids(stage).await?.is_empty());
    everything_adds_up(stage, 0, 10).await?;

    let blocked = pipeline(
        &load("replace"),
        &["{not_null: name, on_fail: quarantine}", "{row_count: \"= 10\"}"],
    );
    run(stage, &blocked).await?.failure(&["row_count = 10: 9 rows"])?;
    ensure!(ids(stage).await?.is_empty(), "nothing is published");
    ensure!(stage.staging().await?.is_empty(), "{:?}", stage.staging().await?);
    ensure!(
        aside(stage).await? == [(7, "check:not_null name".to_owned())],
        "what was found is kept"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_aside_stays_known_in_postgres() -> Result<()> {
    what_is_set_aside_stays_known(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_aside_stays_known_in_sqlite() -> Result<()> {
    what_is_set_aside_stays_known(&Stage::sqlite()?).await
}
