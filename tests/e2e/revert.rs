//! `haulage revert`: a published run is taken back later, and every table is as it was before.

use std::ffi::OsString;

use anyhow::{Result, ensure};

use super::support::cluster::{check_state, events, run_of};
use super::support::numbers::{Numbers, pipeline};
use super::support::process::{Output, Verb, newest_run};

const WAREHOUSE: &str = "
    CREATE TABLE swapped (id integer PRIMARY KEY, name text); CREATE INDEX by_name ON swapped (name);
    INSERT INTO swapped VALUES (-1, 'old'), (3, 'three');
    CREATE TABLE merged (id integer PRIMARY KEY, name text, note text DEFAULT 'n');
    INSERT INTO merged VALUES (-1, 'old', 'x'), (3, 'three', NULL);
    CREATE TABLE added (id integer, name text, _haulage_run text); INSERT INTO added VALUES (-1, 'old', NULL);";
const SIDE: &str = "
    CREATE TABLE swapped (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO swapped VALUES (-1, 'old'), (3, 'three');
    CREATE TABLE merged (id INTEGER PRIMARY KEY, name TEXT, note TEXT); INSERT INTO merged VALUES (3, 'three', 'z');
    CREATE TABLE added (id INTEGER, name TEXT, _haulage_run TEXT); INSERT INTO added VALUES (-1, 'old', NULL);";

/// Every mode, into tables that exist and into new ones, in both databases.
fn loads() -> Vec<String> {
    let mut loads = Vec::new();
    for to in ["warehouse", "side"] {
        for (table, mode) in [("swapped", "replace"), ("merged", "merge"), ("added", "append")] {
            let key = if mode == "append" { "" } else { ", key: [id]" };
            for name in [table.to_owned(), format!("{table}_new")] {
                loads.push(format!(
                    "{to}_{name}: {{from: some, to: {to}, table: {name}, mode: {mode}{key}}}"
                ));
            }
        }
    }
    loads
}

async fn revert(numbers: &Numbers, run: &str) -> Result<Output> {
    let args = ["revert", run, "--watch", "--by", "ops", "--reason", "the wrong month"];
    numbers.cluster.client().args(args).output().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_modes_in_both_databases_puts_everything_back_and_the_submission_runs_anew() -> Result<()> {
    let numbers = Numbers::start(2, "", WAREHOUSE, SIDE).await?;
    numbers.source(3_000)?;
    let before = numbers.contents().await?;
    let loads = loads();
    let loads: Vec<&str> = loads.iter().map(String::as_str).collect();
    let run = numbers.submit(&loads, &[]).await?;
    numbers.cluster.watch(&run).await?.success()?;
    let published = numbers.contents().await?;
    ensure!(published != before, "nothing was published");

    // Twice is harmless.
    for _ in 0..2 {
        revert(&numbers, &run).await?.success()?;
        numbers.check_contents(&before).await?;
        numbers.check_nothing_left().await?;
    }
    let shown = numbers.cluster.show(&run).await?;
    check_state(&shown, "reverted")?;
    let error = run_of(&shown)["error"].as_str().unwrap_or_default();
    ensure!(error == "reverted: the wrong month", "{error}");
    let asked = events(&shown, "revert_requested");
    ensure!(asked.len() == 1 && asked[0]["event"]["by"] == "ops", "{asked:?}");
    let said = numbers.cluster.show_to_people(&run).await?;
    ensure!(said.contains("reverted") && said.contains("taken back"), "{said}");

    let again = numbers.submit(&loads, &[]).await?;
    ensure!(again != run, "a run that was reverted runs anew");
    numbers.cluster.watch(&again).await?.success()?;
    let rows = |all: &std::collections::BTreeMap<String, Vec<String>>| {
        all.iter()
            .map(|(what, rows)| (what.clone(), rows.len()))
            .collect::<Vec<_>>()
    };
    ensure!(
        rows(&numbers.contents().await?) == rows(&published),
        "published once more"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_middle_survives_the_leader_and_a_lost_answer() -> Result<()> {
    let faults = "again@compensation,slow@compensation:400ms";
    let mut numbers = Numbers::start(2, faults, WAREHOUSE, SIDE).await?;
    numbers.source(3_000)?;
    let before = numbers.contents().await?;
    let loads = loads();
    let loads: Vec<&str> = loads.iter().step_by(2).map(String::as_str).take(4).collect();
    let run = numbers.submit(&loads, &[]).await?;
    numbers.cluster.watch(&run).await?.success()?;
    let args = ["revert", &run, "--reason", "the wrong month"];
    numbers.cluster.client().args(args).output().await?.success()?;
    let middle = |shown: &serde_json::Value| !events(shown, "compensated").is_empty();
    let limit = haulage_test_support::PATIENCE;
    numbers
        .cluster
        .until_run(&run, "a step is undone", limit, middle)
        .await?;
    numbers.cluster.restart_coordinator().await?;
    let shown = numbers.cluster.until_rest(&run).await?;
    check_state(&shown, "reverted")?;
    numbers.check_contents(&before).await?;
    numbers.check_nothing_left().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_run_on_which_later_ones_have_built_is_refused_and_names_them() -> Result<()> {
    let numbers = Numbers::start(1, "", WAREHOUSE, SIDE).await?;
    numbers.source(500)?;
    let start = numbers.contents().await?;
    let loads = [
        "m: {from: some, to: warehouse, table: merged, mode: merge, key: [id], keep_previous: 2}",
        "a: {from: some, to: side, table: added, mode: append}",
    ];
    let mut runs = Vec::new();
    let mut before = Vec::new();
    for first in ["first=100", "first=50", "first=0"] {
        before.push(numbers.contents().await?);
        let run = numbers.submit(&loads, &["--param", first]).await?;
        numbers.cluster.watch(&run).await?.success()?;
        runs.push(run);
    }
    let now = numbers.contents().await?;
    let later = format!("run {}, {} has published to", runs[2], runs[1]);
    revert(&numbers, &runs[0])
        .await?
        .failure(&["can't be reverted", &later])?;
    numbers.check_contents(&now).await?;
    check_state(&numbers.cluster.show(&runs[0]).await?, "published")?;

    for n in [2, 1] {
        revert(&numbers, &runs[n]).await?.success()?;
        numbers.check_contents(&before[n]).await?;
    }
    // Of two runs it was kept, and this was the third.
    revert(&numbers, &runs[0])
        .await?
        .failure(&["no longer kept", "keep_previous"])?;
    ensure!(start != numbers.contents().await?);
    let unknown = revert(&numbers, "nobody").await?;
    unknown.failure(&["there is no run nobody"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_home_is_refused_at_once_where_the_destination_is_elsewhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let verb = |args: &[&str]| Verb::new(folder.path()).args(args.iter().map(OsString::from));
    let file = folder.path().join("numbers.yaml").display().to_string();
    std::fs::write(
        &file,
        pipeline(&["a: {from: some, to: warehouse, table: added, mode: append}"]),
    )?;
    std::fs::write(folder.path().join("numbers.csv"), "id,name\n1,one\n")?;
    verb(&["run", &file]).output().await?.success()?;
    let run = newest_run(folder.path()).await?;
    let other = folder.path().join("other.db");
    let elsewhere = format!("warehouse=sqlite:{}", other.display());
    let refused = verb(&["revert", &run, "--destination", &elsewhere])
        .output()
        .await?
        .failure(&[
            "`warehouse`",
            "warehouse.db",
            "other.db",
            &format!("haulage revert {run} --destination warehouse="),
        ])?;
    ensure!(refused.code == 2, "{refused:?}");
    let shown = verb(&["show", &run, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()?;
    check_state(&shown, "published")?;
    ensure!(events(&shown, "revert_requested").is_empty(), "{shown:#}");
    ensure!(!other.exists(), "a refused revert made a warehouse");

    let own = format!(
        "warehouse=sqlite:{}",
        folder.path().join(".haulage/warehouse.db").display()
    );
    verb(&["revert", &run, "--destination", &own])
        .output()
        .await?
        .success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_rerun_in_a_home_brings_back_what_it_replaced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("numbers.yaml");
    std::fs::write(
        &file,
        pipeline(&["a: {from: some, to: warehouse, table: added, mode: append}"]),
    )?;
    std::fs::write(folder.path().join("numbers.csv"), "id,name\n1,one\n2,two\n")?;
    let verb = |args: &[&str]| Verb::new(folder.path()).args(args.iter().map(OsString::from));
    let file = file.display().to_string();
    let id = |output: &Output| -> Result<String> {
        let lines = output.json_lines()?;
        let run = lines
            .last()
            .and_then(|line| line["run_id"].as_str())
            .unwrap_or_default();
        Ok(run.to_owned())
    };
    let first = id(&verb(&["run", &file, "--output", "json"]).output().await?.success()?)?;
    std::fs::write(folder.path().join("numbers.csv"), "id,name\n1,one\n2,two\n3,three\n")?;
    let second = id(&verb(&["run", &file, "--rerun", "--output", "json"])
        .output()
        .await?
        .success()?)?;
    ensure!(first != second, "{first} {second}");
    let refused = verb(&["revert", &first]).output().await?;
    refused.failure(&["has replaced it"])?;
    verb(&["revert", &second, "--output", "json"])
        .output()
        .await?
        .success()?;
    let said = verb(&["run", &file]).output().await?.success()?;
    ensure!(
        format!("{}{}", said.stdout, said.stderr).contains("already published"),
        "what was replaced stands again: {}",
        said.stderr
    );
    verb(&["revert", &first]).output().await?.success()?;
    let third = id(&verb(&["run", &file, "--output", "json"]).output().await?.success()?)?;
    ensure!(third != first && third != second, "{third}");
    Ok(())
}

/// The nodes' role owns nothing that was there before.
const OTHERS: &str = "
    CREATE ROLE loader LOGIN; GRANT CREATE ON DATABASE warehouse TO loader; GRANT CREATE ON SCHEMA public TO loader;
    CREATE TABLE added (id integer, name text, _haulage_run text); INSERT INTO added VALUES (-1, 'old', NULL);
    GRANT SELECT, INSERT, UPDATE, DELETE ON added TO loader;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_is_no_longer_permitted_is_stuck_until_it_is_and_then_retried() -> Result<()> {
    let numbers = Numbers::start_as("loader", 2, "", OTHERS, SIDE).await?;
    numbers.source(500)?;
    let before = numbers.contents().await?;
    let loads = [
        "a: {from: some, to: warehouse, table: added, mode: append}",
        "n: {from: some, to: warehouse, table: fresh, mode: append}",
    ];
    let run = numbers.submit(&loads, &[]).await?;
    numbers.cluster.watch(&run).await?.success()?;

    // Nobody sees it when the destinations are asked: what may be deleted shows when it is.
    let revoke = "REVOKE DELETE ON added FROM loader";
    numbers.postgres.execute("warehouse", revoke).await?;
    let stuck = [
        "publish a can't be undone",
        "permission denied for table added",
        "user loader",
        &format!("haulage saga retry {run}"),
        &format!("haulage saga abandon {run}"),
    ];
    revert(&numbers, &run).await?.failure(&stuck)?;
    let shown = numbers.cluster.show(&run).await?;
    check_state(&shown, "stuck")?;
    ensure!(run_of(&shown)["finished_at"].is_null(), "a stuck run is not over");
    let undone = events(&shown, "compensated");
    ensure!(
        undone.len() == 1 && undone[0]["event"]["step"]["load"] == "n",
        "the last load is undone first: {undone:?}"
    );
    let said = numbers.cluster.show_to_people(&run).await?;
    for part in stuck {
        ensure!(said.contains(part), "{part:?} is missing in what is shown:\n{said}");
    }
    let cancel = numbers.cluster.client().args(["cancel", &run]).output().await?;
    cancel.failure(&["being reverted"])?;

    let retry = async |reason| {
        let args = ["saga", "retry", &run, "--watch", "--by", "ops", "--reason", reason];
        numbers.cluster.client().args(args).output().await
    };
    retry("in vain").await?.failure(&stuck)?;
    let grant = "GRANT DELETE ON added TO loader";
    numbers.postgres.execute("warehouse", grant).await?;
    retry("the right is back").await?.success()?;
    let shown = numbers.cluster.show(&run).await?;
    check_state(&shown, "reverted")?;
    let said = numbers.cluster.show_to_people(&run).await?;
    ensure!(said.contains("ops says retry: the right is back"), "{said}");
    numbers.check_contents(&before).await?;
    numbers.check_nothing_left().await?;
    // What was reverted runs anew.
    let again = numbers.submit(&loads, &[]).await?;
    numbers.cluster.watch(&again).await?.success()?;
    Ok(())
}

/// From the asking to the undoing nobody builds on what is about to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_before_what_another_run_wants_to_publish_meanwhile() -> Result<()> {
    let numbers = Numbers::start(2, "slow@compensation:5000ms", WAREHOUSE, SIDE).await?;
    numbers.source(500)?;
    let before = numbers.contents().await?;
    let loads = [
        "m: {from: some, to: warehouse, table: merged, mode: merge, key: [id], keep_previous: 2}",
        "s: {from: some, to: side, table: swapped, mode: replace, key: [id], keep_previous: 2}",
    ];
    let first = numbers.submit(&loads, &["--param", "first=100"]).await?;
    numbers.cluster.watch(&first).await?.success()?;
    let args = ["revert", &first, "--reason", "the wrong month"];
    numbers.cluster.client().args(args).output().await?.success()?;
    let undoing = |shown: &serde_json::Value| !events(shown, "rollback_started").is_empty();
    let limit = haulage_test_support::PATIENCE;
    let cluster = &numbers.cluster;
    cluster.until_run(&first, "both loads can go", limit, undoing).await?;

    let second = numbers.submit(&loads, &[]).await?;
    for run in [&first, &second] {
        cluster.watch(run).await?;
    }
    let (reverted, published) = (cluster.show(&first).await?, cluster.show(&second).await?);
    check_state(&reverted, "reverted")?;
    check_state(&published, "published")?;
    ensure!(
        events(&published, "attempt_failed").is_empty(),
        "it only waits: {published:#}"
    );
    let at = |shown: &serde_json::Value, kind: &str, step: &str, load: &str| {
        let found = events(shown, kind).into_iter().find(|event| {
            let of = &event["event"]["step"];
            of["kind"] == step && of["load"] == load
        });
        found.and_then(|event| event["event"]["at"].as_u64())
    };
    // That it had to wait, and for the load that is undone last.
    let verified = at(&published, "step_done", "verify", "s");
    let gone = at(&reverted, "compensated", "publish", "m");
    let done = at(&published, "step_done", "publish", "m");
    ensure!(
        verified.is_some() && verified < gone && gone < done,
        "verified at {verified:?}, the first run gone at {gone:?}, published at {done:?}"
    );
    revert(&numbers, &second).await?.success()?;
    numbers.check_contents(&before).await
}
