//! Checks of an increment in which there is nothing new: they hold, but for freshness, which is asked of what is there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::support::cluster::run_of;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Postgres,
    Sqlite,
    Files,
}

struct Shop {
    folder: tempfile::TempDir,
    postgres: Postgres,
    to: To,
}

const CHECKS: [&str; 8] = [
    "{row_count: {within: 20%, of_last: 2}}",
    "{not_null: [id, at]}",
    "{unique: id}",
    "{rejects: \"< 1%\"}",
    "{range: {id: [1, 1000]}}",
    "{outliers: {column: id}}",
    "{sql: \"SELECT sum(id) FROM staged\", expect: \"> 0\"}",
    "{accepted: {note: [a, b]}, on_fail: warn}",
];

impl Shop {
    async fn open(to: To) -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create("warehouse").await?;
        let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text)";
        postgres.execute("postgres", sql).await?;
        let shop = Self {
            folder: tempfile::tempdir()?,
            postgres,
            to,
        };
        std::fs::create_dir(shop.lake())?;
        Ok(shop)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn lake(&self) -> PathBuf {
        self.path().join("lake")
    }

    /// Ten rows of as many days ago.
    async fn insert(&self, from: u32, days: u32) -> Result<()> {
        let sql = format!(
            "INSERT INTO orders SELECT id, now() - interval '{days} days' - interval '1 hour', 'a' FROM \
             generate_series({from}, {from} + 9) id"
        );
        self.postgres.execute("postgres", &sql).await
    }

    fn warehouse(&self) -> String {
        match self.to {
            To::Postgres => self.postgres.url("warehouse"),
            To::Sqlite => format!("sqlite:{}", self.path().join("warehouse.db").display()),
            To::Files => format!("file://{}", self.lake().display()),
        }
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        if self.to == To::Postgres {
            return self.postgres.execute("warehouse", sql).await;
        }
        let mut connection = SqliteConnection::connect(&self.warehouse()).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    async fn run(&self, load: &str, checks: &[&str]) -> Result<Output> {
        let checks: String = checks.iter().map(|check| format!("  - {check}\n")).collect();
        let text = format!(
            "pipeline: shop\nsources:\n  orders: {{postgres: crm, table: orders, incremental: at, columns: {{id: bigint!, at: \
             timestamptz, note: text}}}}\nsteps:\n  all: SELECT * FROM orders\nloads:\n  orders: {{from: all, to: warehouse, \
             table: orders, {load}}}\nchecks:\n{checks}"
        );
        std::fs::write(self.path().join("shop.yaml"), text)?;
        let verb = Verb::new(self.path()).args(["run", "shop.yaml"]);
        verb.env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", self.warehouse())
            .output()
            .await
    }

    /// What the checks of the newest run have found, and how many rows it read.
    async fn found(&self) -> Result<(u64, Vec<String>)> {
        let run = newest_run(self.path()).await?;
        let shown = Verb::new(self.path()).args(["show", &run, "--output", "json"]);
        let shown: Value = shown.output().await?.success()?.json()?;
        let run = run_of(&shown);
        let checks = run["loads"][0]["checks"].as_array().context("checks")?;
        let found = checks.iter().filter_map(|check| check["found"].as_str());
        Ok((
            run["counts"]["read"].as_u64().context("rows read")?,
            found.map(ToOwned::to_owned).collect(),
        ))
    }
}

async fn checks_hold(to: To) -> Result<()> {
    let loads: &[&str] = match to {
        To::Postgres | To::Sqlite => &["mode: append", "mode: merge, key: [id], newest: at"],
        To::Files => &["mode: append"],
    };
    for load in loads {
        let shop = Shop::open(to).await?;
        let fresh = |days: u32| format!("{{fresh: {{at: {days} days}}}}");
        // No value anywhere is no fresh one.
        shop.run(load, &[&fresh(5)]).await?.failure(&["there is no value"])?;
        shop.insert(1, 3).await?;
        let mut checks = CHECKS.to_vec();
        let five = fresh(5);
        checks.push(&five);
        shop.run(load, &checks).await?.success()?;
        // Twice, so that what nothing came of is no measure of what comes next.
        for _ in 0..2 {
            shop.run(load, &checks).await?.success()?;
            let (read, found) = shop.found().await?;
            ensure!(read == 0, "{found:?}");
            ensure!(found[0] == "nothing new was read", "{found:?}");
            ensure!(found[6] == "the query gave NULL, and nothing new was read", "{found:?}");
            ensure!(found[8].contains("no new value, and the newest is 3days"), "{found:?}");
        }
        // It is old by a stricter measure.
        let said = shop.run(load, &[&fresh(2)]).await?;
        said.failure(&["no new value, and the newest is 3days"])?;
        if to != To::Files {
            shop.execute(match to {
                To::Postgres => "UPDATE orders SET at = at - interval '4 days'",
                To::Sqlite | To::Files => "UPDATE orders SET at = datetime(at, '-4 days')",
            })
            .await?;
            let said = shop.run(load, &[&five]).await?;
            said.failure(&["no new value, and the newest is 7days"])?;
        }
        // As many as the last that had any; and new ones are what counts.
        shop.insert(11, 0).await?;
        shop.run(load, &checks).await?.success()?;
        let (_, found) = shop.found().await?;
        ensure!(
            found[0] == "10 rows beside 10.0 in the mean of 1 earlier run",
            "{found:?}"
        );
        ensure!(found[8].starts_with("the newest is 1h"), "{found:?}");
        // Whoever asks for rows is told that there are none.
        shop.run(load, &["{row_count: \">= 1\"}"]).await?.failure(&["0 rows"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_hold_of_nothing_new_in_postgres() -> Result<()> {
    checks_hold(To::Postgres).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_hold_of_nothing_new_in_sqlite() -> Result<()> {
    checks_hold(To::Sqlite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_hold_of_nothing_new_over_files() -> Result<()> {
    checks_hold(To::Files).await
}

/// A replacement has no other rows than its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_is_as_fresh_as_its_rows() -> Result<()> {
    let shop = Shop::open(To::Sqlite).await?;
    shop.insert(1, 1).await?;
    let checks = ["{fresh: {at: 2 days}}"];
    shop.run("mode: replace", &checks).await?.success()?;
    shop.postgres.execute("postgres", "DELETE FROM orders").await?;
    shop.run("mode: replace", &checks)
        .await?
        .failure(&["there is no value"])?;
    Ok(())
}
