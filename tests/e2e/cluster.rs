//! The same pipeline file, unchanged, on a cluster: PostgreSQL for ledger and warehouse, S3 for source and checkpoints.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::flights;
use super::support::postgres::Postgres;
use super::support::s3::S3;

/// A PostgreSQL with the oracle in database `warehouse`, an S3 server that holds the data, and settings for both.
pub(crate) struct World {
    /// Where the processes keep their files.
    pub(crate) folder: tempfile::TempDir,
    /// Ledger and warehouse.
    pub(crate) postgres: Postgres,
    /// Source and checkpoints.
    pub(crate) s3: S3,
}

/// Where the data is, for `--base`.
pub(crate) const BASE: &str = "s3://lake/flights";

impl World {
    pub(crate) async fn new() -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create("ledger").await?.close().await;
        postgres.create("warehouse").await?.close().await;
        let s3 = S3::start(&["lake", "checkpoints"]).await?;
        s3.upload(&flights::data(), "lake", "flights/data")?;
        Ok(Self {
            folder: tempfile::tempdir()?,
            postgres,
            s3,
        })
    }

    pub(crate) fn settings(&self, nodes: usize) -> Settings {
        Settings {
            ledger: self.postgres.url("ledger"),
            warehouse: self.postgres.url("warehouse"),
            store: "s3://checkpoints/test".into(),
            nodes,
            envs: self.s3.envs(),
            faults: None,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_equal_the_oracle_and_submitting_twice_changes_nothing() -> Result<()> {
    let world = World::new().await?;
    let oracle = flights::oracle(&world.postgres, "warehouse").await?;
    let pool = world.postgres.pool("warehouse").await?;
    let cluster = Cluster::start(world.folder.path(), world.settings(3)).await?;
    let pipeline = flights::pipeline();

    let (run, disposition) = cluster.submit(&pipeline, &["--base", BASE]).await?;
    ensure!(disposition == "started", "{disposition}");
    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    flights::check_counts(run_of(&shown), &oracle)?;
    flights::check_postgres(&pool).await?;

    let unchanged = "SELECT (SELECT oid::text FROM pg_class WHERE oid = 'flights_clean'::regclass) || ' ' || \
                     (SELECT max(xmin::text::bigint)::text FROM flights_clean)";
    let before: String = sqlx::query_scalar(unchanged).fetch_one(&pool).await?;
    let (again, disposition) = cluster.submit(&pipeline, &["--base", BASE]).await?;
    ensure!(
        again == run && disposition == "already_published",
        "{again} {disposition}"
    );
    let after: String = sqlx::query_scalar(unchanged).fetch_one(&pool).await?;
    ensure!(before == after, "submitting again touched the target");
    let seq = run_of(&cluster.show(&run).await?)["seq"].clone();
    ensure!(seq == run_of(&shown)["seq"], "submitting again wrote to the run's log");

    // On purpose it runs again, under the next number, and replaces what was published.
    let (rerun, disposition) = cluster.submit(&pipeline, &["--base", BASE, "--rerun"]).await?;
    ensure!(
        rerun == format!("{run}-2") && disposition == "started",
        "{rerun} {disposition}"
    );
    cluster.watch(&rerun).await?.success()?;
    flights::check_postgres(&pool).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submitting_while_it_runs_attaches_and_cancel_rolls_back() -> Result<()> {
    let world = World::new().await?;
    let pool = world.postgres.pool("warehouse").await?;
    let settings = Settings {
        faults: Some("slow@segment:20000ms".into()),
        ..world.settings(2)
    };
    let cluster = Cluster::start(world.folder.path(), settings).await?;
    let pipeline = flights::pipeline();

    let (run, _) = cluster.submit(&pipeline, &["--base", BASE]).await?;
    let loading = Duration::from_secs(60);
    cluster
        .until_run(&run, "the run is loading", loading, |shown| {
            run_of(shown)["state"] == "loading"
        })
        .await?;
    let (again, disposition) = cluster.submit(&pipeline, &["--base", BASE]).await?;
    ensure!(again == run && disposition == "attached", "{again} {disposition}");

    let cancel = cluster
        .client()
        .args(["cancel", &run, "--reason", "the wrong month"])
        .output()
        .await?;
    cancel.success()?;
    let watched = cluster.watch(&run).await?;
    ensure!(
        watched.code == 130,
        "watching a run that ends cancelled exits with {}",
        watched.code
    );
    let shown = cluster.show(&run).await?;
    check_state(&shown, "cancelled")?;
    ensure!(shown.to_string().contains("the wrong month"), "{shown:#}");
    ensure!(
        !events(&shown, "compensated").is_empty(),
        "nothing was compensated: {shown:#}"
    );
    let left: Vec<String> = sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND (c.relname LIKE '%flights_clean%' OR c.relpersistence = 'u')",
    )
    .fetch_all(&pool)
    .await?;
    ensure!(left.is_empty(), "a cancelled run left {left:?} behind");

    cluster
        .client()
        .args(["cancel", &run, "--reason", "again"])
        .output()
        .await?
        .failure(&[&run])
        .map(|_| ())
}
