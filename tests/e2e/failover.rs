//! Several coordinators over one ledger: the leader is killed, stands still, or is asked to end, and the run goes on under
//! the next one without losing or repeating a row.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::postgres::Postgres;
use super::support::process::{Output, until};

/// Chunks of several segments, so that nodes are in the middle of something most of the time.
const PIPELINE: &str = "\
pipeline: numbers
checkpoint_rows: 800
sources:
  raw: {csv: numbers.csv, chunk_size: 70kB, columns: {id: int!, name: text}}
loads:
  kept: {from: raw, to: warehouse, table: kept, mode: append}
";
const ROWS: i64 = 32_000;
/// Every segment takes so long.
const SLOW: &str = "slow@segment:400ms";

/// From the end of a leader to work that goes on.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(10);
/// The same when the leader gives the lead away: it takes no lease to run out.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(5);
/// Longest that anything else may take.
const MINUTE: Duration = Duration::from_secs(60);

/// Two coordinators, two nodes, and a run in its middle.
struct Stage {
    cluster: Cluster,
    run: String,
    ledger: PgPool,
    warehouse: PgPool,
    pipeline: PathBuf,
    _postgres: Postgres,
    // Last, since everything else has files in it.
    folder: tempfile::TempDir,
}

impl Stage {
    /// The run is submitted through the standby.
    async fn start() -> Result<Self> {
        Self::start_with(SLOW, Vec::new()).await
    }

    async fn start_with(slow: &str, envs: Vec<(String, String)>) -> Result<Self> {
        let postgres = Postgres::start().await?;
        let ledger = postgres.create("ledger").await?;
        let warehouse = postgres.create("warehouse").await?;
        let folder = tempfile::tempdir()?;
        let rows: String = (1..=ROWS).map(|id| format!("{id},number {id}\n")).collect();
        std::fs::write(folder.path().join("numbers.csv"), format!("id,name\n{rows}"))?;
        let pipeline = folder.path().join("pipeline.yaml");
        std::fs::write(&pipeline, PIPELINE)?;
        let settings = Settings {
            ledger: postgres.url("ledger"),
            warehouse: postgres.url("warehouse"),
            store: folder.path().join("store").display().to_string(),
            nodes: 2,
            envs,
            faults: Some(slow.to_owned()),
        };
        let cluster = Cluster::start_with(folder.path(), settings, &["c1", "c2"]).await?;
        let (run, disposition) = Cluster::submit_as(cluster.client_of(1)?, &pipeline, &[]).await?;
        ensure!(disposition == "started", "{disposition}");
        let stage = Self {
            cluster,
            run,
            ledger,
            warehouse,
            pipeline,
            _postgres: postgres,
            folder,
        };
        let staged = |shown: &Value| !events(shown, "chunk_staged").is_empty();
        let run = stage.run.clone();
        stage
            .cluster
            .until_run(&run, "a chunk is staged", MINUTE, staged)
            .await?;
        Ok(stage)
    }

    /// Who leads and who was asked, in the words of one coordinator.
    async fn leader_by(&self, place: usize) -> Result<Option<(String, String)>> {
        let nodes = self.cluster.client_of(place)?.args(["nodes", "--output", "json"]);
        let listed = nodes.output().await?;
        let first = listed.json_lines()?.into_iter().next();
        Ok(first.and_then(|said| {
            let text = |name: &str| said[name].as_str().map(str::to_owned);
            Some((text("name")?, text("answered_by")?))
        }))
    }

    async fn until_led(&self, place: usize, leader: &str, asked: &str) -> Result<()> {
        until(&format!("{asked} says that {leader} leads"), MINUTE, async || {
            let said = self.leader_by(place).await?;
            Ok(said
                .is_some_and(|(name, by)| name == leader && by == asked)
                .then_some(()))
        })
        .await
    }

    /// Waits until a leader of this epoch has written to the run's log: work goes on.
    async fn until_epoch_writes(&self, epoch: i64) -> Result<()> {
        let query = "SELECT count(*) FROM haulage_ledger.events WHERE run = $1 AND epoch = $2";
        until(&format!("epoch {epoch} writes"), MINUTE, async || {
            let written: i64 = sqlx::query_scalar(query)
                .bind(&self.run)
                .bind(epoch)
                .fetch_one(&self.ledger)
                .await?;
            Ok((written > 0).then_some(()))
        })
        .await
    }

    /// Follows the run in a process of its own.
    fn watch(&self, address: &str) -> JoinHandle<Result<Output>> {
        let verb = self.cluster.client().env("HAULAGE_COORDINATOR", address);
        let verb = verb.args(["watch", &self.run, "--output", "json"]);
        tokio::spawn(async move { verb.output().await })
    }

    /// Fails unless the run is published, each row is there once, and no epoch wrote after a later one.
    async fn check_exact(&self) -> Result<Value> {
        let shown = self.cluster.show(&self.run).await?;
        check_state(&shown, "published")?;
        let (rows, different, sum): (i64, i64, i64) =
            sqlx::query_as("SELECT count(*), count(DISTINCT id), sum(id)::bigint FROM kept")
                .fetch_one(&self.warehouse)
                .await?;
        ensure!(
            (rows, different, sum) == (ROWS, ROWS, ROWS * (ROWS + 1) / 2),
            "{rows} rows, {different} different ones, sum {sum}"
        );
        let epochs: Vec<i64> =
            sqlx::query_scalar("SELECT epoch FROM haulage_ledger.events WHERE run = $1 ORDER BY seq")
                .bind(&self.run)
                .fetch_all(&self.ledger)
                .await?;
        ensure!(
            epochs.is_sorted(),
            "an earlier epoch wrote after a later one: {epochs:?}"
        );
        Ok(shown)
    }

    /// Of a node that kept its lease over the change of leaders nothing may have been given up. A machine that is too busy
    /// to be in time has a node fence itself, which is as it should be and shows in its log.
    fn check_adopted(&self, shown: &Value) -> Result<()> {
        let kept = |name: &Value| {
            let mut nodes = self.cluster.nodes.iter();
            nodes.any(|(node, process)| name == node.as_str() && !process.log().contains("this node cancels its work"))
        };
        let mut failed = events(shown, "attempt_failed");
        failed.retain(|event| kept(&event["event"]["node"]));
        ensure!(
            failed.is_empty(),
            "what nodes were running was not adopted: {failed:#?}"
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_when_the_leader_is_killed() -> Result<()> {
    let mut stage = Stage::start().await?;
    stage.until_led(1, "c1", "c2").await?;
    let through_standby = stage.watch(stage.cluster.address_of(1)?);
    let through_both = stage.watch(&stage.cluster.address);

    let since = Instant::now();
    stage.cluster.coordinator.kill().await?;
    stage.until_epoch_writes(2).await?;
    let taken = since.elapsed();
    ensure!(taken <= TAKEN_OVER_WITHIN, "work went on after {taken:?}");
    stage.until_led(1, "c2", "c2").await?;

    for watch in [through_standby, through_both] {
        let output = watch.await??.success()?;
        let last = output.json_lines()?.pop().context("watch said nothing")?;
        ensure!(last["state"] == "published", "{last}");
    }
    let shown = stage.check_exact().await?;
    stage.check_adopted(&shown)?;
    eprintln!("killed: work went on after {taken:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_is_deposed_and_stands_by() -> Result<()> {
    let mut stage = Stage::start().await?;
    let since = Instant::now();
    stage.cluster.coordinator.signal("STOP")?;
    stage.until_epoch_writes(2).await?;
    let taken = since.elapsed();
    ensure!(taken <= TAKEN_OVER_WITHIN, "work went on after {taken:?}");
    // It wakes up in the middle of what it was about to say.
    stage.cluster.coordinator.signal("CONT")?;
    stage.until_led(0, "c2", "c1").await?;
    stage.cluster.until_rest(&stage.run).await?;
    let shown = stage.check_exact().await?;
    stage.check_adopted(&shown)?;

    // And back again, in the process that was deposed: the leader is asked to end while a run is going on.
    let pipeline = stage.folder.path().join("again.yaml");
    std::fs::write(
        &pipeline,
        std::fs::read_to_string(&stage.pipeline)?.replace("numbers\n", "again\n"),
    )?;
    sqlx::query("TRUNCATE kept").execute(&stage.warehouse).await?;
    (stage.run, _) = stage.cluster.submit(&pipeline, &[]).await?;
    let staged = |shown: &Value| !events(shown, "chunk_staged").is_empty();
    let run = stage.run.clone();
    stage
        .cluster
        .until_run(&run, "a chunk is staged", MINUTE, staged)
        .await?;
    let second = stage.cluster.standbys.first_mut().context("there is a standby")?;
    let asked = Instant::now();
    second.signal("TERM")?;
    stage.until_epoch_writes(3).await?;
    let handed = asked.elapsed();
    ensure!(handed <= HANDED_OVER_WITHIN, "work went on after {handed:?}");
    let second = stage.cluster.standbys.first_mut().context("there is a standby")?;
    ensure!(second.wait().await? == 0, "it was asked to end, and that is no failure");
    let watched = stage.watch(stage.cluster.address_of(0)?).await??;
    watched.success()?;
    stage.check_exact().await?;
    eprintln!("stopped: work went on after {taken:?}; asked to end: after {handed:?}");
    Ok(())
}

/// As an upgrade does it: one process after the other is asked to end and started again, while a run goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_coordinator_and_every_node_are_restarted_under_load_and_nothing_fails() -> Result<()> {
    let envs = vec![("HAULAGE_DRAIN_TIMEOUT".to_owned(), "10".to_owned())];
    let mut stage = Stage::start_with("slow@segment:2500ms", envs).await?;
    let watches = [
        stage.watch(stage.cluster.address_of(1)?),
        stage.watch(&stage.cluster.address),
    ];
    for (place, node) in ["node-1", "node-2"].into_iter().enumerate() {
        let coordinator = stage.cluster.coordinator_at(place)?;
        coordinator.signal("TERM")?;
        ensure!(
            coordinator.wait().await? == 0,
            "it was asked to end: {}",
            coordinator.log()
        );
        // The other one leads, and this one stands by.
        stage.until_epoch_writes(place as i64 + 2).await?;
        stage.cluster.revive_coordinator(place).await?;
        let leader = ["c2", "c1"][place];
        stage.until_led(place, leader, ["c1", "c2"][place]).await?;
        stage.cluster.restart_node(node).await?;
        stage.cluster.until_alive(2).await?;
    }
    let shown = stage.cluster.show(&stage.run).await?;
    ensure!(
        run_of(&shown)["finished_at"].is_null(),
        "the run was over before everything was restarted"
    );
    for watch in watches {
        watch.await??.success()?;
    }
    let shown = stage.check_exact().await?;
    stage.check_adopted(&shown)?;
    let handed_back = events(&shown, "handed_back");
    ensure!(!handed_back.is_empty(), "no chunk was handed back: {shown:#}");
    Ok(())
}
