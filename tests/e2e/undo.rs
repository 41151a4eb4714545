//! Undoing a run when that isn't possible at once: a destination that is away is waited for, a permission that is missing
//! leaves the run stuck until somebody sees to it. Until then the run is not over, and afterwards nothing of it is left.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use haulage_test_support::PATIENCE;
use serde_json::Value;
use sqlx::PgPool;

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::postgres::Postgres;
use super::support::proxy::{Link, Proxy};

/// Two loads, so that undoing one is not undoing all; several chunks of several segments, so that there is a middle.
const PIPELINE: &str = "\
pipeline: numbers
checkpoint_rows: 800
sources:
  raw: {csv: numbers.csv, chunk_size: 70kB, columns: {id: int!, name: text}}
loads:
  kept: {from: raw, to: warehouse, table: kept, mode: replace, key: [id]}
  added: {from: raw, to: warehouse, table: added, mode: append}
";
const ROWS: i64 = 12_000;

/// Every segment takes so long: time to do something to a run in its middle.
const SLOW: &str = "slow@segment:600ms";

/// A cluster whose ledger and store don't lean on the warehouse, with a run that is loading.
struct Stage {
    cluster: Cluster,
    run: String,
    pool: PgPool,
    postgres: Postgres,
    pipeline: PathBuf,
    // Last, since everything else has files in it.
    _folder: tempfile::TempDir,
}

/// A server with database `warehouse`, whose table `kept` belongs to `owner` and holds one row.
async fn server(owner: &str) -> Result<Postgres> {
    let postgres = Postgres::start().await?;
    if owner != "postgres" {
        postgres
            .execute("postgres", &format!("CREATE ROLE {owner} LOGIN"))
            .await?;
    }
    postgres.create("warehouse").await?.close().await;
    let made = format!(
        "GRANT CREATE ON DATABASE warehouse TO {owner}; GRANT CREATE ON SCHEMA public TO {owner};
         CREATE TABLE kept (id integer PRIMARY KEY, name text); INSERT INTO kept VALUES (-1, 'old');
         ALTER TABLE kept OWNER TO {owner}"
    );
    postgres.execute("warehouse", &made).await?;
    Ok(postgres)
}

impl Stage {
    /// Starts a cluster that finds its warehouse at `warehouse`, submits, and waits for the middle of the load.
    async fn loading(postgres: Postgres, warehouse: String) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let pipeline = folder.path().join("numbers.yaml");
        std::fs::write(&pipeline, PIPELINE)?;
        let mut rows = String::from("id,name\n");
        for id in 0..ROWS {
            rows.push_str(&format!("{id},somebody with number {id}\n"));
        }
        std::fs::write(folder.path().join("numbers.csv"), rows)?;
        let settings = Settings {
            ledger: format!("sqlite:{}", folder.path().join("ledger.db").display()),
            warehouse,
            store: folder.path().join("store").display().to_string(),
            nodes: 2,
            envs: Vec::new(),
            faults: Some(SLOW.to_owned()),
        };
        let cluster = Cluster::start(folder.path(), settings).await?;
        let (run, disposition) = cluster.submit(&pipeline, &[]).await?;
        ensure!(disposition == "started", "{disposition}");
        let staged = |shown: &Value| !events(shown, "chunk_staged").is_empty();
        let shown = cluster.until_run(&run, "a chunk is staged", PATIENCE, staged).await?;
        check_state(&shown, "loading")?;
        let pool = postgres.pool("warehouse").await?;
        Ok(Self {
            cluster,
            run,
            pool,
            postgres,
            pipeline,
            _folder: folder,
        })
    }

    /// Waits until undoing has failed so often, and fails unless the run says that it is not over, and why.
    async fn until_it_waits(&self, failures: usize) -> Result<()> {
        let waits = |shown: &Value| failed_undoings(shown) >= failures;
        // A run gives up a chunk only after several attempts.
        let limit = Duration::from_secs(120);
        let shown = self
            .cluster
            .until_run(&self.run, "undoing has failed", limit, waits)
            .await?;
        check_state(&shown, "rolling_back")?;
        ensure!(run_of(&shown)["finished_at"].is_null(), "{shown:#}");
        let said = self.cluster.show_to_people(&self.run).await?;
        ensure!(
            said.contains("rolling back")
                && said.contains("waits and is tried again: destination warehouse (PostgreSQL"),
            "nothing tells a person what the run waits for:\n{said}"
        );
        Ok(())
    }

    /// Fails unless the warehouse is as if the run had never been, but for the tombstones of its loads.
    async fn check_undone(&self) -> Result<()> {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND (
                 relnamespace = 'haulage'::regnamespace AND relname NOT IN ('loads', 'fences', 'targets', 'watermarks')
                 OR relname = 'added')",
        )
        .fetch_all(&self.pool)
        .await?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        let fences: i64 = sqlx::query_scalar("SELECT count(*) FROM haulage.fences")
            .fetch_one(&self.pool)
            .await?;
        ensure!(fences == 0, "{fences} fences of chunks are left behind");
        let states: Vec<String> = sqlx::query_scalar("SELECT load || ' ' || state FROM haulage.loads ORDER BY 1")
            .fetch_all(&self.pool)
            .await?;
        ensure!(states == ["added discarded", "kept discarded"], "{states:?}");
        self.check_target_untouched().await
    }

    async fn check_target_untouched(&self) -> Result<()> {
        let kept: Vec<String> = sqlx::query_scalar("SELECT id || ' ' || name FROM kept")
            .fetch_all(&self.pool)
            .await?;
        ensure!(kept == ["-1 old"], "an undone run changed its target: {kept:?}");
        Ok(())
    }

    /// The same again is a new run now, and succeeds.
    async fn check_next_run(&self) -> Result<()> {
        let (next, disposition) = self.cluster.submit(&self.pipeline, &[]).await?;
        ensure!(disposition == "started" && next != self.run, "{next} {disposition}");
        self.cluster.watch(&next).await?.success()?;
        let counts: (i64, i64) = sqlx::query_as("SELECT (SELECT count(*) FROM kept), (SELECT count(*) FROM added)")
            .fetch_one(&self.pool)
            .await?;
        ensure!(counts == (ROWS, ROWS), "the next run published {counts:?} rows");
        Ok(())
    }

    /// Makes this role the owner of what the run has staged, and of the schema, whose owner may drop what is in it.
    async fn give_staging_to(&self, role: &str) -> Result<()> {
        let give = format!(
            "ALTER SCHEMA haulage OWNER TO {role}; GRANT USAGE ON SCHEMA haulage TO loader;
             DO $$ DECLARE staging regclass; BEGIN
                 FOR staging IN SELECT oid FROM pg_class
                     WHERE relnamespace = 'haulage'::regnamespace AND relkind = 'r' AND relname LIKE 'stage\\_%'
                 LOOP EXECUTE format('ALTER TABLE %s OWNER TO {role}', staging); END LOOP;
             END $$"
        );
        self.postgres.execute("warehouse", &give).await
    }

    /// Waits until the run has been stuck so often.
    async fn until_stuck(&self, times: usize) -> Result<Value> {
        let stuck = |shown: &Value| events(shown, "stuck").len() >= times;
        let shown = self
            .cluster
            .until_run(&self.run, "the run is stuck", PATIENCE, stuck)
            .await?;
        check_state(&shown, "stuck")?;
        Ok(shown)
    }
}

/// How often undoing a step failed.
fn failed_undoings(shown: &Value) -> usize {
    let failed = events(shown, "attempt_failed");
    let undoing = failed
        .iter()
        .filter(|event| event["event"]["work"]["compensate"].is_object());
    undoing.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cancelled_run_waits_for_a_destination_that_is_away() -> Result<()> {
    let postgres = server("postgres").await?;
    let proxy = Proxy::start(postgres.port()).await?;
    let far = postgres
        .url("warehouse")
        .replace(&format!(":{}/", postgres.port()), &format!(":{}/", proxy.port()));
    let stage = Stage::loading(postgres, far).await?;

    proxy.link(Link::Cut);
    let cancel = ["cancel", &stage.run, "--reason", "the wrong month"];
    stage.cluster.client().args(cancel).output().await?.success()?;
    stage.until_it_waits(2).await?;

    proxy.link(Link::Passes);
    let shown = stage.cluster.until_rest(&stage.run).await?;
    check_state(&shown, "cancelled")?;
    let error = run_of(&shown)["error"].as_str().unwrap_or_default();
    ensure!(
        error == "cancelled: the wrong month",
        "what it waited for is over: {error}"
    );
    stage.check_undone().await?;
    stage.check_next_run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_failed_run_goes_on_after_the_coordinator_died_while_it_waited() -> Result<()> {
    let postgres = server("postgres").await?;
    let url = postgres.url("warehouse");
    let mut stage = Stage::loading(postgres, url).await?;

    // The chunks fail until the run gives up; then there is nobody to undo with, either.
    stage.postgres.stop();
    stage.until_it_waits(1).await?;
    let before = failed_undoings(&stage.cluster.show(&stage.run).await?);
    stage.cluster.restart_coordinator().await?;
    stage.until_it_waits(before + 1).await?;

    stage.postgres.start_again().await?;
    let shown = stage.cluster.until_rest(&stage.run).await?;
    check_state(&shown, "failed")?;
    stage.check_undone().await?;
    stage.check_next_run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_is_refused_leaves_the_run_stuck_until_it_is_submitted_again() -> Result<()> {
    let postgres = server("loader").await?;
    let url = postgres.url_as("loader", "warehouse");
    let stage = Stage::loading(postgres, url).await?;

    // The next segment is refused, so the run fails for good; and so is dropping what is staged.
    stage.give_staging_to("postgres").await?;
    let shown = stage.until_stuck(1).await?;
    ensure!(
        run_of(&shown)["finished_at"].is_null(),
        "a stuck run is not over: {shown:#}"
    );
    let said = stage.cluster.show_to_people(&stage.run).await?;
    for part in [
        "stuck",
        "can't be undone",
        "permission denied",
        "user loader",
        "haulage saga retry",
        "haulage saga abandon",
    ] {
        ensure!(
            said.contains(part),
            "{part:?} is missing in what is shown of a stuck run:\n{said}"
        );
    }
    let listed = stage.cluster.client().args(["runs"]).output().await?.success()?.stdout;
    let line = listed
        .lines()
        .find(|line| line.contains(&stage.run))
        .unwrap_or_default();
    ensure!(line.contains("stuck"), "{listed}");
    stage
        .cluster
        .watch(&stage.run)
        .await?
        .failure(&["stuck", "haulage saga retry"])?;
    stage.check_target_untouched().await?;

    // Submitted again it tries again, in vain; so does an operator; and with the permission given back it is undone.
    let (same, disposition) = stage.cluster.submit(&stage.pipeline, &[]).await?;
    ensure!(same == stage.run && disposition == "attached", "{same} {disposition}");
    stage.until_stuck(2).await?;
    let retry = ["saga", "retry", &stage.run, "--by", "ops", "--reason"];
    let tried = stage
        .cluster
        .client()
        .args(retry)
        .args(["as it is", "--watch"])
        .output()
        .await?;
    tried.failure(&["stuck", "haulage saga abandon"])?;
    stage.until_stuck(3).await?;
    stage.give_staging_to("loader").await?;
    let tried = stage
        .cluster
        .client()
        .args(retry)
        .args(["rights are back", "--watch"])
        .output()
        .await?;
    tried.success()?;
    let said = stage.cluster.show_to_people(&stage.run).await?;
    ensure!(said.contains("ops says retry: rights are back"), "{said}");
    let again = stage.cluster.client().args(retry).args(["once more"]).output().await?;
    again.failure(&["is at rest: there is nothing to decide"])?;
    let nobody = stage
        .cluster
        .client()
        .args(["saga", "retry", "nobody"])
        .output()
        .await?;
    nobody.failure(&["there is no run nobody"])?;
    let shown = stage.cluster.until_rest(&stage.run).await?;
    check_state(&shown, "failed")?;
    stage.check_undone().await?;
    stage.check_next_run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_is_refused_is_abandoned_step_by_step_by_an_operator() -> Result<()> {
    let postgres = server("loader").await?;
    let url = postgres.url_as("loader", "warehouse");
    let stage = Stage::loading(postgres, url).await?;
    let early = ["saga", "abandon", &stage.run, "--reason", "too early"];
    let early = stage.cluster.client().args(early).output().await?;
    early.failure(&["the run isn't stuck"])?;
    stage.give_staging_to("postgres").await?;
    stage.until_stuck(1).await?;
    let unreasoned = stage
        .cluster
        .client()
        .args(["saga", "abandon", &stage.run])
        .output()
        .await?;
    ensure!(unreasoned.code == 2, "a reason is needed: {}", unreasoned.stderr);
    for times in 1..=2 {
        stage.until_stuck(times).await?;
        let abandon = [
            "saga",
            "abandon",
            &stage.run,
            "--by",
            "ops",
            "--reason",
            "the dba drops it",
        ];
        let said = stage
            .cluster
            .client()
            .args(abandon)
            .args(["--output", "json"])
            .output()
            .await?
            .success()?;
        let said = said.json_lines()?;
        ensure!(
            said[0]["decision"] == "abandon" && said[0]["run_id"] == stage.run.as_str(),
            "{said:?}"
        );
    }
    let shown = stage.cluster.until_rest(&stage.run).await?;
    check_state(&shown, "failed")?;
    let decided = events(&shown, "unstuck");
    ensure!(
        decided.len() == 2 && decided.iter().all(|event| event["event"]["by"] == "ops"),
        "{decided:?}"
    );
    stage.check_target_untouched().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_run_whose_warehouse_is_gone_for_good_is_abandoned_step_by_step() -> Result<()> {
    let postgres = server("postgres").await?;
    let url = postgres.url("warehouse");
    let stage = Stage::loading(postgres, url).await?;
    stage.postgres.stop();
    let cancel = ["cancel", &stage.run, "--reason", "the server burnt down"];
    stage.cluster.client().args(cancel).output().await?.success()?;
    stage.until_it_waits(1).await?;
    let said = stage.cluster.show_to_people(&stage.run).await?;
    ensure!(said.contains(&format!("haulage saga abandon {}", stage.run)), "{said}");
    let retry = ["saga", "retry", &stage.run];
    let retry = stage.cluster.client().args(retry).output().await?;
    retry.failure(&["the run isn't stuck"])?;

    for abandoned in 0..2 {
        let waits = |shown: &Value| {
            let error = run_of(shown)["error"].as_str().unwrap_or_default();
            events(shown, "abandoned").len() == abandoned && error.contains("waits and is tried again")
        };
        stage
            .cluster
            .until_run(&stage.run, "the next step waits", PATIENCE, waits)
            .await?;
        let abandon = [
            "saga",
            "abandon",
            &stage.run,
            "--by",
            "ops",
            "--reason",
            "no backup, either",
        ];
        stage.cluster.client().args(abandon).output().await?.success()?;
    }
    let shown = stage.cluster.until_rest(&stage.run).await?;
    check_state(&shown, "cancelled")?;
    let error = run_of(&shown)["error"].as_str().unwrap_or_default();
    ensure!(
        error == "cancelled: the server burnt down; abandoned, and not undone: prepare kept, prepare added"
            || error == "cancelled: the server burnt down; abandoned, and not undone: prepare added, prepare kept",
        "{error}"
    );
    let said = stage.cluster.show_to_people(&stage.run).await?;
    for step in ["prepare kept", "prepare added"] {
        let line = format!("ops abandons {step}, which is not undone: no backup, either");
        ensure!(said.contains(&line), "{line:?} is missing in what is shown:\n{said}");
    }
    let late = ["saga", "abandon", &stage.run, "--reason", "once more"];
    let late = stage.cluster.client().args(late).output().await?;
    late.failure(&["is at rest: there is nothing to decide"])?;
    Ok(())
}
