//! What fails in the middle of a run, and the result that is exact all the same.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;

use super::cluster::{BASE, World};
use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::flights::{self, Counts};
use super::support::process::until;

/// The longest silence after which a node must be known to be lost, and what the detection itself may take.
const LOST_WITHIN_MS: u64 = 5_000;
const SLACK_MS: u64 = 500;

/// Source rows between two checkpoints.
const SEGMENT_ROWS: u64 = 2_000;

/// Longest that anything may take to happen in the middle of a run.
const MINUTE: Duration = Duration::from_secs(60);

/// The example, running in small steps on a cluster whose nodes have faults.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) run: String,
    oracle: Counts,
    pool: PgPool,
    reader: JoinHandle<Result<BTreeSet<Option<i64>>>>,
    stop: Arc<AtomicBool>,
    // Last, since everything else stands in it.
    _world: World,
}

impl Stage {
    async fn start(nodes: usize, faults: &str) -> Result<Self> {
        Self::start_with(nodes, faults, Vec::new()).await
    }

    /// The same with more in the environment of every process.
    pub(crate) async fn start_with(nodes: usize, faults: &str, envs: Vec<(String, String)>) -> Result<Self> {
        let world = World::new().await?;
        let oracle = flights::oracle(&world.postgres, "warehouse").await?;
        let pool = world.postgres.pool("warehouse").await?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(read_until(Arc::clone(&stop), pool.clone()));
        let mut settings = Settings {
            faults: Some(faults.into()),
            ..world.settings(nodes)
        };
        settings.envs.extend(envs);
        let cluster = Cluster::start(world.folder.path(), settings).await?;
        let (run, _) = cluster.submit(&small_steps(&world)?, &["--base", BASE]).await?;
        Ok(Self {
            cluster,
            run,
            oracle,
            pool,
            reader,
            stop,
            _world: world,
        })
    }

    /// Waits for the middle: something is staged already, and much is not.
    async fn until_staged(&self) -> Result<Value> {
        let staged = |shown: &Value| !events(shown, "chunk_staged").is_empty();
        self.cluster
            .until_run(&self.run, "a chunk is staged", MINUTE, staged)
            .await
    }

    /// Fails unless the run is published, the result exact, and no reader ever saw a part of it. What `show` says of it.
    pub(crate) async fn check_exact(&mut self) -> Result<Value> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = (&mut self.reader).await??;
        let rows = i64::try_from(self.oracle.loaded)?;
        ensure!(
            seen.is_subset(&[None, Some(rows)].into()) && seen.contains(&None),
            "a reader saw these numbers of rows: {seen:?}"
        );
        let shown = self.cluster.show(&self.run).await?;
        check_state(&shown, "published")?;
        flights::check_counts(run_of(&shown), &self.oracle)?;
        flights::check_postgres(&self.pool).await?;
        Ok(shown)
    }
}

/// Polls the target through all that happens: what numbers of rows it held, `None` while there is no table.
async fn read_until(stop: Arc<AtomicBool>, pool: PgPool) -> Result<BTreeSet<Option<i64>>> {
    let query = format!("SELECT count(*) FROM {}", flights::TABLE);
    let mut seen = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let rows = sqlx::query_scalar(AssertSqlSafe(query.clone())).fetch_one(&pool).await;
        seen.insert(match rows {
            Ok(rows) => Some(rows),
            // 42P01: there is no such table.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => None,
            Err(error) => return Err(error).context("a reader of the target was refused"),
        });
    }
    Ok(seen)
}

/// The example with small chunks and frequent checkpoints, so that there is a middle to fail in.
fn small_steps(world: &World) -> Result<PathBuf> {
    let text = std::fs::read_to_string(flights::pipeline())?;
    let text = text
        .replacen(
            "pipeline: flights\n",
            &format!("pipeline: flights\ncheckpoint_rows: {SEGMENT_ROWS}\n"),
            1,
        )
        .replacen(
            "    csv: data/flights-*.csv\n",
            "    csv: data/flights-*.csv\n    chunk_size: 800kB\n",
            1,
        );
    ensure!(
        text.contains("checkpoint_rows") && text.contains("chunk_size"),
        "the example has changed its shape"
    );
    let path = world.folder.path().join("pipeline.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// The node that works on a chunk, in the run's own log.
fn working_node(shown: &Value) -> Option<String> {
    let assigned = events(shown, "assigned");
    let chunk = assigned
        .iter()
        .rev()
        .find(|event| event["event"]["work"]["chunk"].is_object())?;
    chunk["event"]["node"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_the_middle_changes_nothing_about_the_result() -> Result<()> {
    let mut stage = Stage::start(3, "slow@segment:300ms").await?;
    let shown = stage.until_staged().await?;
    check_state(&shown, "loading")?;
    let victim = working_node(&shown).context("no chunk is assigned")?;
    stage.cluster.kill(&victim).await?;
    stage.cluster.watch(&stage.run).await?.success()?;

    let shown = stage.check_exact().await?;
    let failed = events(&shown, "attempt_failed");
    let lost: Vec<u64> = failed
        .iter()
        .filter(|event| event["event"]["node"] == victim.as_str())
        .filter_map(|event| event["event"]["node_lost_after_ms"].as_u64())
        .collect();
    ensure!(
        !lost.is_empty(),
        "the loss of {victim} is not in the run's log: {failed:#?}"
    );
    for silent in lost {
        ensure!(
            silent <= LOST_WITHIN_MS + SLACK_MS,
            "{victim} was noticed after {silent} ms"
        );
    }
    // `haulage show` says it to a person, too.
    let said = stage.cluster.show_to_people(&stage.run).await?;
    ensure!(said.contains(&victim) && said.contains("lost"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_past_its_lease_has_no_effect_when_it_wakes_up() -> Result<()> {
    let mut stage = Stage::start(3, "slow@segment:300ms").await?;
    let shown = stage.until_staged().await?;
    let victim = working_node(&shown).context("no chunk is assigned")?;
    stage.cluster.node(&victim)?.signal("STOP")?;
    let lost = |shown: &Value| {
        let failed = events(shown, "attempt_failed");
        failed
            .iter()
            .any(|event| event["event"]["node"] == victim.as_str() && event["event"]["node_lost_after_ms"].is_u64())
    };
    let run = stage.run.clone();
    stage.cluster.until_run(&run, "the node is lost", MINUTE, lost).await?;
    // In the middle of a segment that somebody else works on by now.
    stage.cluster.node(&victim)?.signal("CONT")?;
    stage.cluster.watch(&run).await?.success()?;
    stage.check_exact().await?;
    // It is told that it was given up, drops what it had, and takes work again.
    stage.cluster.until_alive(3).await
}

/// What the node does about it by itself is switched off: then the destination refuses the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_a_node_that_stood_still_and_does_not_know_is_refused() -> Result<()> {
    let mut stage = Stage::start(3, "slow@segment:1500ms,deaf@lease").await?;
    let busy = |shown: &Value| working_node(shown).is_some();
    let shown = stage
        .cluster
        .until_run(&stage.run, "a chunk is assigned", MINUTE, busy)
        .await?;
    let victim = working_node(&shown).context("no chunk is assigned")?;
    let pool = stage.pool.clone();
    let begun = async |attempt: i64, chunks: i64| -> Result<Option<()>> {
        let begun: i64 = sqlx::query_scalar("SELECT count(*) FROM haulage.fences WHERE attempt >= $1")
            .bind(attempt)
            .fetch_one(&pool)
            .await?;
        Ok((begun >= chunks).then_some(()))
    };
    // A node has one slot: then each is on its way to a commit.
    until("three chunks have begun", MINUTE, async || begun(1, 3).await).await?;
    stage.cluster.node(&victim)?.signal("STOP")?;
    until("the victim's has begun elsewhere", MINUTE, async || begun(2, 1).await).await?;
    let node = stage.cluster.node(&victim)?;
    node.signal("CONT")?;
    let refused = node.line_with("is fenced, attempt").await?;
    ensure!(refused.contains("that was cancelled has ended"), "{refused}");
    let run = stage.run.clone();
    stage.cluster.watch(&run).await?.success()?;
    stage.check_exact().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_actor_that_panics_is_restarted_from_its_checkpoint() -> Result<()> {
    let mut stage = Stage::start(2, "panic@chunk:0.1:segment:1").await?;
    stage.cluster.watch(&stage.run).await?.success()?;
    let shown = stage.check_exact().await?;
    ensure!(
        run_of(&shown)["restarts"].as_u64() >= Some(1),
        "no restart is shown: {shown:#}"
    );
    let resumed = events(&shown, "chunk_staged")
        .iter()
        .any(|event| event["event"]["report"]["resumed"].as_u64() >= Some(1));
    ensure!(resumed, "the restarted actor read its first segment again: {shown:#}");
    // Read again is the segment in work, and the one ahead if it was there already: nothing that stands.
    let number = |value: &Value| value.as_u64().context("a number");
    let counts = &run_of(&shown)["counts"];
    let segment = number(&counts["bytes"])? * SEGMENT_ROWS / number(&counts["read"])?;
    let again = number(&run_of(&shown)["bytes_read_again"])?;
    println!("{again} bytes were read again; a segment has about {segment}");
    ensure!(
        again > 0 && again <= segment * 5 / 2,
        "{again} bytes were read again, segments have {segment}"
    );
    let said = stage.cluster.show_to_people(&stage.run).await?;
    ensure!(said.contains("read again"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_dies_finds_its_run_again() -> Result<()> {
    let mut stage = Stage::start(2, "slow@segment:300ms").await?;
    stage.until_staged().await?;
    stage.cluster.restart_coordinator().await?;
    stage.cluster.until_rest(&stage.run).await?;
    stage.check_exact().await?;
    Ok(())
}
