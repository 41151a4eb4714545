//! Where loads lead: two of one run to one table, under whatever names, and to files that can't be.
//!
//! Both are found before a row has moved, by `plan` and by the run's discover, and leave nothing behind.

use std::path::Path;

use anyhow::{Result, ensure};

use super::bad_input::tables;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb};

/// Two loads with other texts for their targets; what they have in common is for their destinations to say.
fn write(folder: &Path, one: [&str; 3], two: [&str; 3]) -> Result<()> {
    let load =
        |[to, table, mode]: [&str; 3]| format!("{{from: raw, to: {to}, table: {table}, mode: {mode}, key: [id]}}");
    let text = format!(
        "pipeline: twice\nsources:\n  raw: {{csv: raw.csv, columns: {{id: int!}}}}\nloads:\n  one: {}\n  two: {}\n",
        load(one),
        load(two)
    );
    std::fs::write(folder.join("pipeline.yaml"), text)?;
    std::fs::write(folder.join("raw.csv"), "id\n1\n2\n")?;
    Ok(())
}

async fn call(folder: &Path, verb: &str, destinations: &[(&str, &str)]) -> Result<Output> {
    let mut call = Verb::new(folder).args([verb, "pipeline.yaml"]);
    for (name, url) in destinations {
        call = call.args(["--destination", &format!("{name}={url}")]);
    }
    call.output().await
}

/// The state of the newest run.
async fn state(folder: &Path) -> Result<String> {
    let listed = Verb::new(folder).args(["runs", "--output", "json"]).output().await?;
    let run = listed.success()?.json_lines()?.into_iter().next().unwrap_or_default();
    Ok(run["state"].as_str().unwrap_or_default().to_owned())
}

/// `plan` and `run` both refuse, with the second load's place.
async fn refused(folder: &Path, destinations: &[(&str, &str)]) -> Result<()> {
    let parts = [
        "pipeline.yaml:6:3: error",
        "the loads `one` and `two` publish to the same table",
    ];
    for verb in ["plan", "run"] {
        call(folder, verb, destinations).await?.failure(&parts)?;
    }
    ensure!(state(folder).await? == "failed", "{}", state(folder).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_loads_are_one_table_of_postgres() -> Result<()> {
    let postgres = Postgres::start().await?;
    let pool = postgres.create("warehouse").await?;
    let near = postgres.url("warehouse");
    let far = near.replace("127.0.0.1", "localhost");
    ensure!(near != far, "the server is called otherwise");
    for exists in [false, true] {
        if exists {
            sqlx::raw_sql("CREATE TABLE tx1 (id integer PRIMARY KEY); INSERT INTO tx1 VALUES (7)")
                .execute(&pool)
                .await?;
        }
        let before = tables(&pool).await?;
        for (one, two) in [
            (["near", "public.tx1", "replace"], ["near", "tx1", "replace"]),
            (["near", "tx1", "merge"], ["near", "public.tx1", "replace"]),
            (["near", "tx1", "replace"], ["far", "tx1", "replace"]),
        ] {
            let folder = tempfile::tempdir()?;
            write(folder.path(), one, two)?;
            let both = [("near", near.as_str()), ("far", &far)];
            let used = if two[0] == "far" { &both[..] } else { &both[..1] };
            refused(folder.path(), used).await?;
            ensure!(
                tables(&pool).await? == before,
                "left behind: {:?}",
                tables(&pool).await?
            );
        }
    }
    // Two tables of one name.
    sqlx::raw_sql("CREATE SCHEMA other").execute(&pool).await?;
    let folder = tempfile::tempdir()?;
    write(
        folder.path(),
        ["near", "tx1", "replace"],
        ["near", "other.tx1", "replace"],
    )?;
    for verb in ["plan", "run"] {
        call(folder.path(), verb, &[("near", &near)]).await?.success()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_loads_are_one_table_of_sqlite() -> Result<()> {
    for (one, two) in [
        (["warehouse", "x", "replace"], ["warehouse", "main.x", "replace"]),
        (["warehouse", "public.x", "merge"], ["warehouse", "X", "replace"]),
        (["warehouse", "x", "replace"], ["lake", "x", "replace"]),
    ] {
        let folder = tempfile::tempdir()?;
        write(folder.path(), one, two)?;
        // The home's own warehouse under another name, before there is a home.
        let lake = format!("sqlite:{}", folder.path().join(".haulage/warehouse.db").display());
        let other = [("lake", lake.as_str())];
        let used = if two[0] == "lake" { &other[..] } else { &[] };
        refused(folder.path(), used).await?;
        ensure!(!folder.path().join(".haulage/warehouse.db").exists(), "a file was made");
        write(folder.path(), one, ["warehouse", "y", "replace"])?;
        call(folder.path(), "run", &[]).await?.success()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_can_not_be_files_are_found_before_anything_is_done() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing");
    write(folder.path(), ["one", "x", "replace"], ["one", "y", "replace"])?;
    for (url, part) in [
        (
            format!("sqlite:{}", missing.join("x.db").display()),
            format!("there is no folder {}", missing.display()),
        ),
        #[cfg(target_os = "linux")]
        (
            "sqlite:/proc/x.db".to_owned(),
            "no file can be made in folder /proc".to_owned(),
        ),
    ] {
        for verb in ["plan", "run"] {
            call(folder.path(), verb, &[("one", &url)]).await?.failure(&[&part])?;
            ensure!(!missing.exists(), "{verb} made the folder");
        }
        ensure!(
            state(folder.path()).await? == "failed",
            "{}",
            state(folder.path()).await?
        );
    }
    std::fs::create_dir(&missing)?;
    let url = format!("sqlite:{}", missing.join("x.db").display());
    call(folder.path(), "run", &[("one", &url)]).await?.success()?;
    Ok(())
}
