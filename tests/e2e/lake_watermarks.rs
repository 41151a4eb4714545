//! Incremental sources into files: PostgreSQL is read on into a lake, nothing twice and nothing never, through a kill, a
//! failure, a replacement and reverts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::support::cluster::run_of;
use super::support::files::of_file;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run, until};
use super::support::s3::S3;

/// A table in PostgreSQL, and a lake in S3 or in a folder.
struct Shop {
    home: tempfile::TempDir,
    postgres: Postgres,
    s3: Option<S3>,
}

impl Shop {
    async fn open(in_s3: bool) -> Result<Self> {
        let postgres = Postgres::start().await?;
        let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text);
            CREATE INDEX ON orders (at);
            INSERT INTO orders SELECT id, '2024-01-01 00:00:00Z'::timestamptz + id * interval '1 minute', 'first'
                FROM generate_series(1, 3000) id";
        postgres.execute("postgres", sql).await?;
        let home = tempfile::tempdir()?;
        std::fs::create_dir(home.path().join("lake"))?;
        let s3 = match in_s3 {
            true => Some(S3::start(&["lake"]).await?),
            false => None,
        };
        Ok(Self { home, postgres, s3 })
    }

    fn lake(&self) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.folder("lake"),
            None => self.home.path().join("lake"),
        }
    }

    /// Writes the pipeline: every format reads on by itself.
    fn write(&self, load: &str, more: &str) -> Result<()> {
        let text = format!(
            "pipeline: shop\ncheckpoint_rows: 200\nsources:\n  orders: {{postgres: crm, table: orders, chunk_size: 64KiB, \
             incremental: at, columns: {{id: bigint!, at: timestamptz, note: text}}}}\nsteps:\n  all: SELECT * FROM orders\nloads:\n  \
             orders: {{from: all, to: lake, table: sales/orders, keep_previous: 5, {load}}}\n{more}"
        );
        Ok(std::fs::write(self.home.path().join("shop.yaml"), text)?)
    }

    fn verb(&self, args: &[&str]) -> Verb {
        let lake = match &self.s3 {
            Some(_) => "s3://lake".to_owned(),
            None => format!("file://{}", self.lake().display()),
        };
        let envs = self.s3.as_ref().map(S3::envs).unwrap_or_default();
        Verb::new(self.home.path())
            .args(args.iter().copied())
            .envs(&envs)
            .env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_LAKE", lake)
    }

    async fn run(&self) -> Result<String> {
        self.verb(&["run", "shop.yaml"]).output().await?.success()?;
        newest_run(self.home.path()).await
    }

    async fn revert(&self, run: &str) -> Result<Output> {
        self.verb(&["revert", run]).output().await
    }

    /// New rows, from their ids on, a minute each.
    async fn insert(&self, ids: std::ops::Range<u32>) -> Result<()> {
        let sql = format!(
            "INSERT INTO orders SELECT id, '2024-01-01 00:00:00Z'::timestamptz + id * interval '1 minute', 'more'
                 FROM generate_series({}, {}) id",
            ids.start,
            ids.end - 1
        );
        self.postgres.execute("postgres", &sql).await
    }

    /// Rows in the lake: how many, and how many different ones.
    fn rows(&self) -> Result<(usize, usize)> {
        let table = self.lake().join("sales/orders");
        let Ok(state) = std::fs::read(table.join("_haulage/table.json")) else {
            return Ok((0, 0));
        };
        let state: Value = serde_json::from_slice(&state)?;
        let Some(manifest) = state["head"]["manifest"].as_str() else {
            return Ok((0, 0));
        };
        let manifest: Value = serde_json::from_slice(&std::fs::read(table.join(manifest))?)?;
        let mut ids = Vec::new();
        for file in manifest["files"].as_array().context("no files")? {
            for row in of_file(&table.join(file["path"].as_str().context("no path")?))? {
                ids.push(row["id"].clone());
            }
        }
        Ok((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()))
    }

    async fn check(&self, value: Option<&str>, rows: usize) -> Result<()> {
        let state = self
            .verb(&["state", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()?;
        ensure!(
            state.len() == 1
                && state[0]["value"] == json!(value)
                && state[0]["column"] == "at"
                && state[0]["table"] == "sales/orders"
                && state[0]["destination"] == "lake",
            "not at {value:?}: {state:?}"
        );
        let there = self.rows()?;
        ensure!(there == (rows, rows), "{there:?} rows, and not {rows}");
        Ok(())
    }

    async fn read_by(&self, run: &str) -> Result<u64> {
        let shown = self
            .verb(&["show", run, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()?;
        run_of(&shown)["counts"]["read"].as_u64().context("rows read")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_read_on_into_parquet_in_s3_through_a_kill_and_reverts() -> Result<()> {
    let shop = Shop::open(true).await?;
    shop.write("mode: append, partition_by: [note]", "")?;
    let first = shop.run().await?;
    shop.check(Some("2024-01-03 02:00:00+00"), 3000).await?;

    // Killed before its publish: nothing has moved.
    shop.insert(4000..6000).await?;
    let slow = shop
        .verb(&["run", "shop.yaml"])
        .env("HAULAGE_FAULT", "slow@segment:400ms");
    let mut slow = slow.spawn("run")?;
    let data = shop.lake().join("sales/orders/data");
    until("a second run has written files", Duration::from_secs(60), async || {
        let areas = std::fs::read_dir(&data).into_iter().flatten().count();
        Ok((areas == 2).then_some(()))
    })
    .await?;
    slow.kill().await?;
    shop.check(Some("2024-01-03 02:00:00+00"), 3000).await?;
    // Its snapshot of PostgreSQL has died with it, so it ends, and the next one reads what it would have.
    let ended = shop.verb(&["run", "shop.yaml"]).output().await?;
    ended.failure(&["the snapshot that this run reads in is gone"])?;
    shop.check(Some("2024-01-03 02:00:00+00"), 3000).await?;
    let second = shop.run().await?;
    ensure!(second != first && shop.read_by(&second).await? == 2000);
    shop.check(Some("2024-01-05 03:59:00+00"), 5000).await?;

    // The third, of nothing but two rows, is taken back and read again.
    shop.insert(7000..7002).await?;
    let third = shop.run().await?;
    ensure!(shop.read_by(&third).await? == 2);
    shop.check(Some("2024-01-05 20:41:00+00"), 5002).await?;
    shop.revert(&second)
        .await?
        .failure(&[&third, "has read on from where it stopped"])?;
    shop.check(Some("2024-01-05 20:41:00+00"), 5002).await?;
    shop.revert(&third).await?.success()?;
    shop.check(Some("2024-01-05 03:59:00+00"), 5000).await?;
    shop.revert(&second).await?.success()?;
    shop.check(Some("2024-01-03 02:00:00+00"), 3000).await?;
    let again = shop.run().await?;
    ensure!(shop.read_by(&again).await? == 2002);
    shop.check(Some("2024-01-05 20:41:00+00"), 5002).await?;
    for run in [&first, &again] {
        shop.verb(&["verify", run]).output().await?.success()?;
    }
    let people = shop.verb(&["state"]).output().await?.success()?;
    for part in ["shop", "sales/orders", "2024-01-05 20:41:00", &again] {
        ensure!(people.stdout.contains(part), "{part}: {}", people.stdout);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_of_files_outlive_failures_and_replacements_and_are_set_by_hand() -> Result<()> {
    for (in_s3, format) in [(false, "csv"), (true, "jsonl")] {
        let shop = Shop::open(in_s3).await?;
        let append = format!("mode: append, format: {format}");
        shop.write(&append, "checks:\n  - {row_count: \"<= 3000\"}\n")?;
        shop.run().await?;
        let start = Some("2024-01-03 02:00:00+00");
        shop.check(start, 3000).await?;
        // A run that fails moves nothing.
        shop.insert(4000..8000).await?;
        shop.verb(&["run", "shop.yaml"]).output().await?.failure(&["check"])?;
        shop.check(start, 3000).await?;
        shop.write(&append, "")?;
        let run = shop.run().await?;
        ensure!(shop.read_by(&run).await? == 4000);
        shop.check(Some("2024-01-06 13:19:00+00"), 7000).await?;
        // A replacement reads everything and leaves it at its end; taken back, it leaves it where it was.
        shop.insert(9000..9001).await?;
        shop.write(&format!("mode: replace, format: {format}"), "")?;
        let all = shop.run().await?;
        ensure!(shop.read_by(&all).await? == 7001);
        shop.check(Some("2024-01-07 06:00:00+00"), 7001).await?;
        shop.revert(&all).await?.success()?;
        shop.check(Some("2024-01-06 13:19:00+00"), 7000).await?;
        shop.write(&append, "")?;
        let run = shop.run().await?;
        ensure!(shop.read_by(&run).await? == 1);
        shop.check(Some("2024-01-07 06:00:00+00"), 7001).await?;
        // By hand, under the table's short name: what comes after it comes a second time.
        let set = [
            "state",
            "set",
            "shop",
            "orders",
            "orders",
            "2024-01-07 05:59:00",
            "--by",
            "ann",
        ];
        shop.verb(&set).output().await?.success()?;
        shop.check(Some("2024-01-07 05:59:00"), 7001).await?;
        let run = shop.run().await?;
        ensure!(shop.read_by(&run).await? == 1 && shop.rows()? == (7002, 7001));
        shop.verb(&["state", "forget", "shop", "orders", "sales/orders"])
            .output()
            .await?
            .success()?;
        let state = shop
            .verb(&["state", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()?;
        ensure!(state.len() == 1 && state[0]["value"].is_null(), "{state:?}");
        // A pipeline that replaces the table without the source leaves its watermark void.
        let set = ["state", "set", "shop", "orders", "orders", "2024-01-07 06:00:00"];
        shop.verb(&set).output().await?.success()?;
        let other = "pipeline: other\nsources:\n  orders: {postgres: crm, table: orders, columns: {id: bigint!, at: timestamptz, note: \
                     text}}\nsteps:\n  all: SELECT * FROM orders\nloads:\n  orders: {from: all, to: lake, table: sales/orders, mode: \
                     replace, format: FORMAT}\n";
        std::fs::write(shop.home.path().join("other.yaml"), other.replace("FORMAT", format))?;
        shop.verb(&["run", "other.yaml"]).output().await?.success()?;
        let other = newest_run(shop.home.path()).await?;
        let state = shop
            .verb(&["state", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()?;
        ensure!(state[0]["replaced_by"] == *other, "{state:?}");
        let refused = shop.verb(&["run", "shop.yaml"]).output().await?;
        refused.failure(&[
            &format!("run {other} has replaced sales/orders since"),
            "haulage state set shop orders sales/orders",
        ])?;
        // Without its folder the table has no watermark, and begins anew.
        std::fs::remove_dir_all(shop.lake().join("sales/orders"))?;
        let state = shop.verb(&["state", "--output", "json"]).output().await?.success()?;
        ensure!(state.stdout.is_empty(), "{}", state.stdout);
        let run = shop.run().await?;
        ensure!(shop.read_by(&run).await? == 7001);
        shop.check(Some("2024-01-07 06:00:00+00"), 7001).await?;
    }
    Ok(())
}
