//! A replay is of the loads that rows were rejected for, and its checks are of the run that it replays.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::checks::Stage as Warehouse;
use super::super::support::cluster::run_of;
use super::super::support::process::{Output, newest_run};

/// Twenty rows of which the first definition takes eighteen.
fn rows(more: &str) -> String {
    let rows: String = (1..=18).map(|id| format!("{id},{},ok\n", id % 4)).collect();
    format!("id,v,note\n{rows}{more}")
}

/// By this rule rows are rejected for `out` alone, with these checks.
fn pipeline(rule: &str, loads: &str, checks: &[&str]) -> String {
    let checks: String = checks.iter().map(|check| format!("  - {check}\n")).collect();
    format!(
        "pipeline: rows\nsources:\n  raw:\n    csv: rows.csv\n    columns: {{id: int!, v: int, note: text}}\n  other:\n    \
         csv: other.csv\n    columns: {{id: int!}}\nsteps:\n  kept:\n    sql: SELECT *, now() - INTERVAL '1 hour' AS seen FROM \
         raw\n    reject: {{bad: \"{rule}\"}}\n  old: SELECT id, v, note, now() - INTERVAL '9 days' AS seen FROM kept\n  good: SELECT * FROM \
         raw WHERE note = 'ok'\nloads:\n{loads}{}{checks}",
        match checks.is_empty() {
            true => "",
            false => "checks:\n",
        }
    )
}

const BAD: &str = "note LIKE 'bad%'";
const WORSE: &str = "note LIKE '%worse'";
const OUT: &str = "  out: {from: kept, to: warehouse, table: out, mode: append}\n";

async fn run(stage: &Warehouse, text: &str) -> Result<String> {
    std::fs::write(stage.path().join("rows.yaml"), text)?;
    stage.verb(&["run", "rows.yaml"]).output().await?.success()?;
    newest_run(stage.path()).await
}

async fn replay(stage: &Warehouse, run: &str, text: &str) -> Result<Output> {
    std::fs::write(stage.path().join("fixed.yaml"), text)?;
    stage.verb(&["replay", run, "fixed.yaml"]).output().await
}

/// What the checks of the newest run's load have found, in the order of the file.
async fn found(stage: &Warehouse) -> Result<Vec<String>> {
    let shown = stage.shown().await?;
    let loads = run_of(&shown)["loads"].as_array().context("loads")?;
    let checks = loads
        .iter()
        .flat_map(|load| load["checks"].as_array().into_iter().flatten());
    Ok(checks
        .map(|check| check["found"].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn loads(shown: &Value) -> Vec<&str> {
    let loads = run_of(shown)["loads"].as_array().into_iter().flatten();
    loads.filter_map(|load| load["name"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_without_rejected_rows_are_no_part_of_a_replay() -> Result<()> {
    for stage in [Warehouse::postgres().await?, Warehouse::sqlite()?] {
        std::fs::write(stage.path().join("rows.csv"), rows("19,1,bad\n20,1,bad worse\n"))?;
        std::fs::write(stage.path().join("other.csv"), "id\n1\n")?;
        // What is replaced without a key can't be added to, and no row of it is any time near.
        let all = format!(
            "  all: {{from: good, to: warehouse, table: everything, mode: replace}}\n{OUT}  others: {{from: other, to: \
             warehouse, table: others, mode: replace}}\n"
        );
        let checks = [
            "{row_count: \">= 18\", load: all}",
            "{unique: id, load: all}",
            "{row_count: \">= 1\", load: others}",
            "{row_count: \">= 10\", load: out}",
        ];
        let first = run(&stage, &pipeline(BAD, &all, &checks)).await?;
        let fixed = pipeline(WORSE, &all, &checks);
        replay(&stage, &first, &fixed).await?.success()?;
        ensure!(loads(&stage.shown().await?) == ["out"], "{:?}", stage.shown().await?);
        ensure!(
            found(&stage).await? == ["19 rows, 1 of them replayed"],
            "{:?}",
            found(&stage).await?
        );
        for (table, rows) in [("out", "19"), ("everything", "18"), ("others", "1")] {
            let there = stage
                .texts(&format!("SELECT CAST(count(*) AS text) FROM {table}"))
                .await?;
            ensure!(there == [rows], "{table}: {there:?}");
        }
        // Its receipt is of that load alone, which is reverted alone.
        let second = newest_run(stage.path()).await?;
        stage.verb(&["verify", &second]).output().await?.success()?;
        stage.verb(&["revert", &second]).output().await?.success()?;
        let there = stage.texts("SELECT CAST(count(*) AS text) FROM out").await?;
        ensure!(there == ["18"], "{there:?}");
        // The load has to be there by its name.
        let renamed = fixed
            .replace("  out: {", "  away: {")
            .replace("load: out", "load: away");
        let said = replay(&stage, &first, &renamed).await?;
        said.failure(&["rejected its rows for the load out, which", "fixed.yaml doesn't have"])?;
    }
    Ok(())
}

/// Checks that a run of eighteen rows passes, and what they find of a replay of one.
const HOLD: [(&str, &str); 5] = [
    ("{row_count: \">= 18\"}", "19 rows, 1 of them replayed"),
    (
        "{row_count: {within: 10%, of_last: 3}}",
        "19 rows, 1 of them replayed, and no earlier run",
    ),
    ("{rejects: \"<= 10%\"}", "1 of 20 rows rejected"),
    ("{fresh: {seen: 2 days}}", "the newest is 9days"),
    (
        "{sql: \"SELECT max(v) FROM staged\", expect: \">= 1\"}",
        "the query gave 1",
    ),
];

async fn checks_are_of_the_run(stage: &Warehouse, is_files: bool) -> Result<()> {
    std::fs::write(stage.path().join("rows.csv"), rows("19,1,bad\n20,1,bad worse\n"))?;
    std::fs::write(stage.path().join("other.csv"), "id\n1\n")?;
    let checks = HOLD.map(|(check, _)| check);
    let first = run(stage, &pipeline(BAD, OUT, &checks)).await?;
    // By its own definition no row passes: there is nothing to check.
    stage.verb(&["replay", &first]).output().await?.success()?;
    let idle = found(stage).await?;
    ensure!(
        idle.iter().all(|found| found.contains("no replayed row passes")),
        "{idle:?}"
    );

    // As old as it may be by now.
    let old = OUT.replace("from: kept", "from: old");
    for (check, words) in [
        ("{row_count: \"<= 18\"}", "19 rows, 1 of them replayed"),
        ("{rejects: \"= 0\"}", "1 of 20 rows rejected"),
    ] {
        let said = replay(stage, &first, &pipeline(WORSE, &old, &[check])).await?;
        said.failure(&[words])?;
    }
    replay(stage, &first, &pipeline(WORSE, &old, &checks))
        .await?
        .success()?;
    let found = found(stage).await?;
    ensure!(
        found.len() == HOLD.len() && found.iter().zip(HOLD).all(|(found, (_, words))| found.contains(words)),
        "{found:?}"
    );

    // Among the rows of the run: one that is there twice, and one that is far from them.
    for (row, check, refused) in [
        ("7,1,bad\n", "{unique: id}", Some("2 rows share 1 value, such as 7")),
        ("19,1,bad\n", "{unique: id}", None),
        ("19,900,bad\n", "{outliers: {column: v}}", Some("1 value of 19 outside")),
        ("19,3,bad\n", "{outliers: {column: v}}", None),
    ] {
        std::fs::write(stage.path().join("rows.csv"), rows(row))?;
        let table = format!("t{}", row.len() + check.len());
        let load = OUT.replace("table: out", &format!("table: {table}"));
        let text = pipeline(BAD, &load, &[check]);
        let first = run(stage, &format!("# {row:?}\n{text}")).await?;
        let said = replay(stage, &first, &pipeline(WORSE, &load, &[check])).await?;
        match refused {
            // Files can't be asked for the rows that are there.
            Some(words) if !is_files => said.failure(&[words])?,
            Some(_) | None => said.success()?,
        };
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_a_replay_are_of_its_run_in_postgres() -> Result<()> {
    checks_are_of_the_run(&Warehouse::postgres().await?, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_a_replay_are_of_its_run_in_sqlite() -> Result<()> {
    checks_are_of_the_run(&Warehouse::sqlite()?, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_a_replay_are_of_its_run_over_files() -> Result<()> {
    checks_are_of_the_run(&Warehouse::files()?, true).await
}
