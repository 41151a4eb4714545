//! A disk that is full while rows are staged: a clear error, nothing of the run is left, and with more room the same run
//! succeeds.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sqlx::AssertSqlSafe;

use super::bad_input::{run, sound, tables, verb};
use super::support::disk::SmallDisk;
use super::support::flights;
use super::support::postgres::Postgres;
use super::support::process::Output;

/// Rows that need more room than the small disks of these tests have.
fn many_orders() -> String {
    let mut text = String::from("id,name,amount\n");
    for id in 0..200_000 {
        text.push_str(&format!("{id},somebody with a long name {id},1.5\n"));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_sqlite_is_named_and_undone() -> Result<()> {
    let folder = sound()?;
    std::fs::write(folder.path().join("data/orders-1.csv"), many_orders())?;
    let small = folder.path().join("small");
    let url = format!("sqlite:{}", small.join("warehouse.db").display());
    let disk = SmallDisk::mount(&small, 4)?;
    let failed = match &disk {
        Some(_) => run(folder.path(), Some(&url)).await?,
        None => verb(folder.path(), Some(&url)).output_with_file_limit(4096).await?,
    };
    failed.failure(&["warehouse", "full"])?;
    if small.join("warehouse.db").exists() {
        let query = "SELECT name FROM sqlite_master WHERE name = 'orders'";
        ensure!(
            flights::sqlite(&small.join("warehouse.db"), query).await?.is_empty(),
            "a part was published"
        );
    }
    if let Some(disk) = &disk {
        disk.grow(200)?;
    }
    run(folder.path(), Some(&url))
        .await?
        .success()
        .context("the next run")?;
    let rows = flights::sqlite(&small.join("warehouse.db"), "SELECT CAST(count(*) AS text) FROM orders").await?;
    ensure!(rows == ["200000"], "{rows:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_postgres_is_named_and_undone() -> Result<()> {
    let postgres = Postgres::start().await?;
    let pool = postgres.create("warehouse").await?;
    let url = postgres.url("warehouse");
    let folder = sound()?;
    run(folder.path(), Some(&url)).await?.success()?;
    let before = tables(&pool).await?;

    std::fs::write(folder.path().join("data/orders-1.csv"), many_orders())?;
    let small = folder.path().join("small");
    let Some(disk) = SmallDisk::mount(&small, 4)? else {
        // A user who may not mount can't fill a disk of the server either; the SQLite test covers the node's side.
        return under_a_quota_of_postgres(&postgres, folder.path()).await;
    };
    // The server's user has to be let through to the mount.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let space = small.join("tablespace");
    std::fs::create_dir(&space)?;
    postgres.give(&space)?;
    let admin = postgres.pool("postgres").await?;
    let make = format!("CREATE TABLESPACE small LOCATION '{}'", space.display());
    sqlx::query(AssertSqlSafe(make)).execute(&admin).await?;
    sqlx::query("ALTER DATABASE warehouse SET default_tablespace = small")
        .execute(&admin)
        .await?;

    rerun(folder.path(), &url).await?.failure(&["warehouse", "space"])?;
    ensure!(
        tables(&pool).await? == before,
        "a failed run left {:?} behind",
        tables(&pool).await?
    );
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&pool)
        .await?;
    ensure!(rows == 3, "a failed run changed the target: {rows} rows");
    disk.grow(400)?;
    rerun(folder.path(), &url).await?.success().context("the next run")?;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&pool)
        .await?;
    ensure!(rows == 200_000, "{rows}");
    // The server goes before the disk that it stands on.
    drop(postgres);
    drop(disk);
    Ok(())
}

/// The same by a limit on the size of the server's files.
async fn under_a_quota_of_postgres(first: &Postgres, folder: &Path) -> Result<()> {
    let limited = Postgres::start_with_file_limit(6144).await?;
    let url = limited.url("postgres");
    rerun(folder, &url).await?.failure(&["warehouse"])?;
    let left: Vec<String> = tables(&limited.pool("postgres").await?).await?;
    ensure!(
        !left.iter().any(|name| name == "public.orders"),
        "a part was published: {left:?}"
    );
    rerun(folder, &first.url("warehouse"))
        .await?
        .success()
        .context("the next run")?;
    Ok(())
}

/// The file has other rows than the first run published, and the pipeline file is the same: run again on purpose.
async fn rerun(folder: &Path, warehouse: &str) -> Result<Output> {
    verb(folder, Some(warehouse)).args(["--rerun"]).output().await
}
