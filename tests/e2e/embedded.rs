//! `haulage run`: the main job in one process, as a newcomer meets it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::support::cluster::{check_state, run_of};
use super::support::flights;
use super::support::postgres::Postgres;
use super::support::process::{Output, Service, Verb, newest_rejects, newest_run, until};

async fn run(folder: &Path, more: &[&str]) -> Result<Output> {
    let args: [OsString; 2] = ["run".into(), flights::pipeline().into()];
    Verb::new(folder).args(args).args(more).output().await
}

/// A run that stays in the middle of its load, and its warehouse.
async fn loading(folder: &Path, slow_ms: u32) -> Result<(Service, PathBuf)> {
    let args: [OsString; 2] = ["run".into(), flights::pipeline().into()];
    let mut run = Verb::new(folder)
        .args(args)
        .env("HAULAGE_FAULT", format!("slow@segment:{slow_ms}ms"))
        .spawn("run")?;
    let warehouse = folder.join(".haulage/warehouse.db");
    until("the run has begun", Duration::from_secs(60), async || {
        Ok(warehouse.exists().then_some(()))
    })
    .await?;
    run.line_with("load").await?;
    Ok((run, warehouse))
}

/// The newest run in this folder's ledger.
async fn show_newest(folder: &Path) -> Result<serde_json::Value> {
    let id = newest_run(folder).await?;
    Verb::new(folder)
        .args(["show", &id, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flights_equal_the_oracle_and_a_second_run_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let postgres = Postgres::start().await?;
    let oracle = flights::oracle(&postgres, "postgres").await?;
    let pool = postgres.pool("postgres").await?;
    let warehouse = folder.path().join(".haulage/warehouse.db");

    let first = run(folder.path(), &[]).await?.success()?;
    flights::check_sqlite(&warehouse, &pool).await?;
    let shown = show_newest(folder.path()).await?;
    check_state(&shown, "published")?;
    flights::check_counts(run_of(&shown), &oracle)?;
    // The closing summary names what a person wants to know.
    let said = format!("{}{}", first.stdout, first.stderr);
    for part in [
        "51,955",
        "50,001",
        "1,782",
        "diverted",
        "no_arrival",
        "odd_delay",
        "haulage rejects",
    ] {
        ensure!(said.contains(part), "{part:?} is missing in the summary:\n{said}");
    }

    let before = std::fs::read(&warehouse)?;
    let second = run(folder.path(), &[]).await?.success()?;
    let said = format!("{}{}", second.stdout, second.stderr);
    ensure!(said.contains("already published"), "the second run says:\n{said}");
    ensure!(
        std::fs::read(&warehouse)? == before,
        "the second run changed the warehouse"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reject_is_listed_with_its_place_and_its_row() -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(folder.path(), &[]).await?.success()?;
    let (id, rejects) = newest_rejects(folder.path()).await?;

    let mut by_reason = BTreeMap::<String, u64>::new();
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for reject in rejects {
        let text = |name: &str| {
            reject[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{name}: {reject}"))
        };
        *by_reason.entry(text("reason")?).or_default() += 1;
        ensure!(text("pipeline")? == "flights" && text("run_id")? == id, "{reject}");
        ensure!(text("source")? == "raw" && text("step")? == "valid", "{reject}");
        let file = text("file")?;
        if !files.contains_key(&file) {
            let lines = std::fs::read_to_string(&file)?.lines().map(str::to_owned).collect();
            files.insert(file.clone(), lines);
        }
        let line = usize::try_from(reject["line"].as_u64().context("no line")?)?;
        let there = files[&file]
            .get(line - 1)
            .with_context(|| format!("{file} has no line {line}"))?;
        ensure!(
            text("raw")? == *there,
            "line {line} of {file} is {there:?}, not {reject}"
        );
    }
    let expected = [("diverted", 119), ("no_arrival", 45), ("odd_delay", 8)];
    ensure!(
        by_reason == expected.map(|(reason, rows)| (reason.to_owned(), rows)).into(),
        "{by_reason:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_is_a_typed_value() -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(folder.path(), &["--param", "max_delay=late"])
        .await?
        .failure(&["max_delay", "late", "int"])?;
    run(folder.path(), &["--param", "max_dealy=1"])
        .await?
        .failure(&["max_dealy", "max_delay"])?;
    ensure!(
        !folder.path().join(".haulage/warehouse.db").exists(),
        "a refused run made a warehouse"
    );
    run(folder.path(), &["--param", "max_delay=1500"]).await?.success()?;
    let shown = show_newest(folder.path()).await?;
    ensure!(
        // What stays is the one departure more than 30 minutes early.
        run_of(&shown)["counts"]["rejected_by_reason"]["odd_delay"] == 1,
        "{shown:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_cancels_and_the_next_run_succeeds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut interrupted, warehouse) = loading(folder.path(), 20_000).await?;
    interrupted.interrupt()?;
    ensure!(
        interrupted.wait().await? == 130,
        "the exit code of an interrupted run is 130"
    );
    let tables = flights::sqlite(
        &warehouse,
        "SELECT name FROM sqlite_master WHERE name = 'flights_clean'",
    )
    .await?;
    ensure!(tables.is_empty(), "a cancelled run left its target behind");

    run(folder.path(), &[]).await?.success()?;
    let rows = flights::sqlite(&warehouse, "SELECT CAST(count(*) AS text) FROM flights_clean").await?;
    ensure!(rows == ["50001"], "{rows:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plan_shows_what_would_happen_and_touches_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let args: [OsString; 2] = ["plan".into(), flights::pipeline().into()];
    let plan = Verb::new(folder.path()).args(args).output().await?.success()?;
    for part in [
        "raw",
        "clean",
        "valid",
        "enriched",
        "flights_clean",
        "flights-2013-01.csv",
        "CREATE TABLE",
    ] {
        ensure!(plan.stdout.contains(part), "{part:?} is missing in\n{}", plan.stdout);
    }
    ensure!(
        !folder.path().join(".haulage/warehouse.db").exists(),
        "plan made a warehouse"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_warehouse_is_another_submission_and_an_open_run_stays_with_its_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut killed, own) = loading(folder.path(), 20_000).await?;
    killed.kill().await?;
    let open = newest_run(folder.path()).await?;

    // The open run goes on with the process that is started next, but not into this other file.
    let other = folder.path().join("other.db");
    let elsewhere = format!("warehouse=sqlite:{}", other.display());
    let said = run(folder.path(), &["--destination", &elsewhere]).await?.success()?;
    ensure!(
        said.stderr.contains(&open) && said.stderr.contains("other.db"),
        "{}",
        said.stderr
    );
    ensure!(newest_run(folder.path()).await? != open, "it is the same submission");
    let count = "SELECT CAST(count(*) AS text) FROM flights_clean";
    ensure!(flights::sqlite(&other, count).await? == ["50001"]);
    let mine = "SELECT name FROM sqlite_master WHERE name = 'flights_clean'";
    ensure!(
        flights::sqlite(&own, mine).await?.is_empty(),
        "the open run went on elsewhere"
    );

    let said = run(folder.path(), &[]).await?.success()?;
    ensure!(said.stderr.contains("going on"), "{}", said.stderr);
    ensure!(flights::sqlite(&own, count).await? == ["50001"]);
    for again in [&[][..], &["--destination", &elsewhere]] {
        let said = run(folder.path(), again).await?.success()?;
        ensure!(said.stderr.contains("already published"), "{}", said.stderr);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_beside_a_running_one_follows_its_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut first, warehouse) = loading(folder.path(), 6_000).await?;
    let id = newest_run(folder.path()).await?;
    let mut left = Verb::new(folder.path()).args(["watch", &id]).spawn("watch")?;
    left.line_with("load").await?;
    left.interrupt()?;
    left.wait().await?;
    ensure!(
        left.log().contains("goes on in the process that works on it"),
        "{}",
        left.log()
    );
    let said = run(folder.path(), &[]).await?.success()?;
    ensure!(
        said.stderr.contains(&id) && said.stderr.contains("following"),
        "{}",
        said.stderr
    );
    ensure!(
        said.stdout.contains("published") && said.stdout.contains("50,001"),
        "{}",
        said.stdout
    );
    ensure!(first.wait().await? == 0, "the first one failed");
    ensure!(newest_run(folder.path()).await? == id, "there is another run");
    let rows = flights::sqlite(&warehouse, "SELECT CAST(count(*) AS text) FROM flights_clean").await?;
    ensure!(rows == ["50001"], "{rows:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_before_all_is_undone_costs_nothing_but_the_same_command() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let args: [OsString; 2] = ["run".into(), flights::pipeline().into()];
    let mut left = Verb::new(folder.path())
        .args(args)
        .env("HAULAGE_FAULT", "slow@segment:20000ms,slow@compensation:20000ms")
        .spawn("run")?;
    left.line_with("load").await?;
    left.interrupt()?;
    until("the run rolls back", Duration::from_secs(60), async || {
        let shown = show_newest(folder.path()).await?;
        Ok((run_of(&shown)["state"] == "rolling_back").then_some(()))
    })
    .await?;
    let first = newest_run(folder.path()).await?;
    left.interrupt()?;
    ensure!(left.wait().await? == 130, "the exit code of an interrupted run is 130");
    let said = run(folder.path(), &[]).await?.success()?;
    ensure!(said.stderr.contains("now it runs anew"), "{}", said.stderr);
    ensure!(
        newest_run(folder.path()).await? != first,
        "a cancelled run was published"
    );
    let warehouse = folder.path().join(".haulage/warehouse.db");
    let rows = flights::sqlite(&warehouse, "SELECT CAST(count(*) AS text) FROM flights_clean").await?;
    ensure!(rows == ["50001"], "{rows:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_not_cancelled_where_its_destination_is_elsewhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut killed, _) = loading(folder.path(), 20_000).await?;
    killed.kill().await?;
    let open = newest_run(folder.path()).await?;
    let listed = Verb::new(folder.path()).args(["runs"]).output().await?.success()?;
    ensure!(listed.stderr.contains("no process works here"), "{}", listed.stderr);

    let other = format!("warehouse=sqlite:{}", folder.path().join("other.db").display());
    let refused = Verb::new(folder.path())
        .args(["cancel", &open, "--destination", &other])
        .output()
        .await?
        .failure(&["`warehouse`", "warehouse.db", "other.db", "--destination warehouse="])?;
    ensure!(refused.code == 2, "{refused:?}");
    check_state(&show_newest(folder.path()).await?, "loading")?;

    Verb::new(folder.path())
        .args(["cancel", &open])
        .output()
        .await?
        .success()?;
    check_state(&show_newest(folder.path()).await?, "cancelled")?;
    Ok(())
}
