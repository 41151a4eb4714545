//! From MariaDB to PostgreSQL through the binary: exactly once though a node is killed and rows are written meanwhile, and
//! never two loads of one run from different rows.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::mariadb::{Mariadb, PASSWORD};
use super::support::postgres::Postgres;
use super::support::process::{PATIENCE, Verb};

/// Rows of the table that is copied.
const ROWS: usize = 12_000;

/// Keys have gaps, and other rows come into them.
const ORDERS: &str =
    "CREATE TABLE orders (id INT UNSIGNED PRIMARY KEY, at DATETIME(6) NOT NULL, day DATE, amount DECIMAL(12,2),
        note VARCHAR(200), paid BOOL, kind ENUM('good', 'bad'));
    INSERT INTO orders SELECT seq * 10, '2013-01-01' + INTERVAL seq * 1000001 MICROSECOND,
        IF(seq % 11 > 0, '2013-01-01' + INTERVAL seq % 400 DAY, NULL), (seq * 7 % 100000) / 100,
        CASE seq % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE CONCAT('tab\\t\"quote\" line\\nü 😀 ', seq) END,
        seq % 3 = 0, IF(seq % 5 = 0, 'bad', 'good') FROM seq_1_to_12000;
    ANALYZE TABLE orders; GRANT SELECT ON shop.orders TO locked@'%';";

const PIPELINE: &str = r#"pipeline: copy
checkpoint_rows: 400
params: {least: bigint}
sources:
  orders: {mysql: shop, table: orders, chunk_size: 256KiB}
  few: {mysql: shop, query: "SELECT id, note FROM orders WHERE id < $least ORDER BY id", columns: {id: bigint!, note: text}}
steps:
  valid: {from: orders, reject: {bad_kind: kind = 'bad'}}
loads:
  orders: {from: valid, to: warehouse, table: orders, mode: append}
  few: {from: few, to: warehouse, table: few, mode: merge, key: [id]}
"#;

/// A cluster between a MariaDB and a PostgreSQL, with a second destination in a SQLite file.
struct World {
    cluster: Cluster,
    shop: Mariadb,
    warehouse: Postgres,
    // Last, since everything else has files in it.
    folder: TempDir,
}

impl World {
    async fn start(nodes: usize, faults: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (shop, warehouse) = tokio::try_join!(Mariadb::start(), Postgres::start())?;
        shop.execute("shop", ORDERS).await?;
        let settings = Settings {
            ledger: format!("sqlite:{}", folder.path().join("ledger.db").display()),
            warehouse: warehouse.url("postgres"),
            store: folder.path().join("store").display().to_string(),
            nodes,
            envs: vec![
                (
                    "HAULAGE_SOURCE_SHOP".to_owned(),
                    shop.url_with_password(PASSWORD, "shop"),
                ),
                (
                    "HAULAGE_DESTINATION_SIDE".to_owned(),
                    format!("sqlite:{}", folder.path().join("side.db").display()),
                ),
            ],
            faults: Some(faults.to_owned()),
        };
        let cluster = Cluster::start(folder.path(), settings).await?;
        Ok(Self {
            cluster,
            shop,
            warehouse,
            folder,
        })
    }

    /// Submits a pipeline, and waits until so many chunks are staged.
    async fn submit(&self, pipeline: &str, more: &[&str], chunks: usize) -> Result<(String, Value)> {
        let file = self.folder.path().join("copy.yaml");
        std::fs::write(&file, pipeline)?;
        let (run, _) = self.cluster.submit(&file, more).await?;
        let staged = |shown: &Value| events(shown, "chunk_staged").len() >= chunks;
        let shown = self
            .cluster
            .until_run(&run, "chunks are staged", PATIENCE, staged)
            .await?;
        check_state(&shown, "loading")?;
        Ok((run, shown))
    }

    /// Texts that a query of MariaDB finds.
    async fn there(&self, sql: &str) -> Result<Vec<String>> {
        let pool = self.shop.pool("shop").await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&pool)
            .await?)
    }

    /// And one of PostgreSQL.
    async fn here(&self, sql: &str) -> Result<Vec<String>> {
        let pool = self.warehouse.pool("postgres").await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&pool)
            .await?)
    }
}

const THERE: &str = "SELECT CONCAT_WS('|', id, at, COALESCE(day, '~'), amount, COALESCE(note, '~'), paid, kind) FROM orders \
                     WHERE kind = 'good' AND id % 10 = 0";
const HERE: &str = "SELECT concat_ws('|', id, to_char(at, 'YYYY-MM-DD HH24:MI:SS.US'), coalesce(day::text, '~'), amount, \
                    coalesce(note, '~'), paid::int, kind) FROM orders WHERE id % 10 = 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_copied_exactly_though_a_node_is_killed_and_rows_come_meanwhile() -> Result<()> {
    let mut world = World::start(3, "slow@segment:300ms").await?;
    let expected: BTreeSet<String> = world.there(THERE).await?.into_iter().collect();
    ensure!(expected.len() == ROWS / 5 * 4);
    let (run, shown) = world.submit(PIPELINE, &["--param", "least=500"], 1).await?;
    let chunks = run_of(&shown)["chunks"]["total"].as_u64().unwrap_or(0);
    let busy = events(&shown, "assigned");
    let busy = busy
        .iter()
        .rfind(|event| event["event"]["work"]["chunk"].is_object())
        .with_context(|| format!("no chunk is assigned: {shown:#}"))?;
    let victim = busy["event"]["node"].as_str().context("a node")?.to_owned();
    world.cluster.kill(&victim).await?;
    let more = "INSERT INTO orders SELECT seq * 10 + 5, NOW(6), NULL, 1, 'late', 1, 'good' FROM seq_1_to_12000";
    world.shop.execute("shop", more).await?;

    world.cluster.watch(&run).await?.success()?;
    let shown = world.cluster.show(&run).await?;
    check_state(&shown, "published")?;
    let again = |event: &&Value| event["event"]["work"]["chunk"].is_object() && event["event"]["attempt"] != 1;
    ensure!(
        events(&shown, "assigned").iter().any(again),
        "no chunk went on elsewhere: {shown:#}"
    );
    let found = world.here(HERE).await?;
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    ensure!(
        distinct == expected && found.len() == distinct.len(),
        "{chunks} chunks: {} rows, {} different ones, of {}",
        found.len(),
        distinct.len(),
        expected.len()
    );
    // Of the rows that came meanwhile some are there and some aren't, and none is there twice.
    let late = world.here("SELECT id::text FROM orders WHERE id % 10 = 5").await?;
    let distinct: BTreeSet<&String> = late.iter().collect();
    ensure!(
        late.len() == distinct.len() && late.len() < ROWS,
        "{} late rows",
        late.len()
    );
    let few = "SELECT CONCAT_WS('|', id, COALESCE(note, '~')) FROM orders WHERE id < 500 AND id % 10 = 0 ORDER BY id";
    let found = world
        .here("SELECT concat_ws('|', id, coalesce(note, '~')) FROM few WHERE id % 10 = 0 ORDER BY id")
        .await?;
    ensure!(found == world.there(few).await?, "{found:?}");
    no_password_in(world.folder.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_of_one_run_are_of_the_same_rows_or_of_none() -> Result<()> {
    let world = World::start(2, "slow@segment:300ms").await?;
    let pipeline = PIPELINE.replace(
        "few: {from: few, to: warehouse, table: few, mode: merge, key: [id]}",
        "beside: {from: valid, to: side, table: beside, mode: append}",
    );
    let pipeline: String = pipeline
        .lines()
        .filter(|line| !line.starts_with("  few:") && !line.starts_with("params"))
        .map(|line| format!("{line}\n"))
        .collect();
    let (run, _) = world.submit(&pipeline, &[], 2).await?;
    // What is staged in PostgreSQL is gone, and what is staged beside it isn't; the rows of both have changed.
    world.shop.execute("shop", "UPDATE orders SET note = 'changed'").await?;
    world.warehouse.stop();
    world.warehouse.start_again().await?;
    let shown = world.cluster.until_rest(&run).await?;
    check_state(&shown, "failed")?;
    let said = run_of(&shown)["error"].to_string();
    ensure!(
        said.contains("has changed since it was read for load beside") && said.contains("run again"),
        "{said}"
    );
    ensure!(world.here(HERE).await.is_err(), "a table was made");

    // Again, it is of the rows of now, in both.
    let (run, _) = world
        .cluster
        .submit(&world.folder.path().join("copy.yaml"), &["--rerun"])
        .await?;
    world.cluster.watch(&run).await?.success()?;
    let changed = world.here("SELECT id::text FROM orders WHERE note = 'changed'").await?;
    ensure!(changed.len() == ROWS / 5 * 4, "{} rows", changed.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_inferred_planned_and_named_where_it_is_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Mariadb::start().await?;
    shop.execute("shop", ORDERS).await?;
    std::fs::write(folder.path().join("copy.yaml"), PIPELINE)?;
    let verb = |args: &[&str], source: Option<String>| {
        let verb = Verb::new(folder.path()).args(args.iter().copied());
        match source {
            Some(address) => verb.args(["--source", &format!("shop={address}")]),
            None => verb,
        }
    };
    let address = shop.url_with_password(PASSWORD, "shop");
    let inferred = verb(
        &["infer", "mysql:shop/orders"],
        Some(address.replace("mysql://", "mariadb://")),
    );
    let inferred = inferred.output().await?.success()?.stdout;
    for line in [
        "    mysql: \"shop\"",
        "    table: \"orders\"",
        "      id: bigint!",
        "      at: timestamp!",
        "      day: date",
        "      amount: \"decimal(12,2)\"",
        "      paid: bool",
        "      kind: text",
    ] {
        ensure!(inferred.lines().any(|found| found == line), "no {line:?} in {inferred}");
    }
    let run = ["run", "copy.yaml", "--param", "least=50"];
    let plan = ["plan", "copy.yaml", "--param", "least=50"];
    verb(&["validate", "copy.yaml"], None).output().await?.success()?;
    let planned = verb(&plan, Some(address)).output().await?.success()?.stdout;
    ensure!(planned.contains("shop: orders"), "{planned}");
    verb(&run, None)
        .output()
        .await?
        .failure(&["copy.yaml:5:", "has no source shop", "HAULAGE_SOURCE_SHOP"])?;
    let refused = verb(&run, Some(shop.url_with_password("hunter2", "shop")))
        .output()
        .await?
        .failure(&["copy.yaml:5:", "wrong password"])?;
    ensure!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    let file = PIPELINE.replace(
        "table: orders, chunk",
        "table: orders, columns: {weight: int, kind: text}, chunk",
    );
    std::fs::write(folder.path().join("copy.yaml"), file)?;
    verb(&run, Some(shop.url("shop")))
        .output()
        .await?
        .failure(&["copy.yaml:5:", "it has no column `weight`"])?;
    ensure!(!folder.path().join(".haulage").exists(), "a run was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_says_which_part_of_a_table_a_row_is_from() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (shop, warehouse) = tokio::try_join!(Mariadb::start(), Postgres::start())?;
    let tables = "CREATE TABLE orders (id INT PRIMARY KEY, pad TEXT); INSERT INTO orders SELECT seq, REPEAT('x', 200) FROM seq_1_to_3000;
        CREATE TABLE names (name VARCHAR(20) CHARACTER SET utf8mb4 PRIMARY KEY, pad TEXT);
        INSERT INTO names SELECT CONCAT('n', 10000 + seq), REPEAT('x', 200) FROM seq_1_to_3000; ANALYZE TABLE orders, names";
    shop.execute("shop", tables).await?;
    let text = "pipeline: copy\nsources:\n  orders: {mysql: shop, table: orders, chunk_size: 64KiB}\n  names: {mysql: shop, table: names, \
                chunk_size: 64KiB}\nloads:\n  orders: {from: orders, to: warehouse, table: orders, mode: merge, key: [id], \
                provenance: true}\n  names: {from: names, to: warehouse, table: names, mode: merge, key: [name], provenance: true}\n";
    std::fs::write(folder.path().join("copy.yaml"), text)?;
    let verb = |args: &[&str]| {
        Verb::new(folder.path())
            .args(args.iter().copied())
            .env("HAULAGE_SOURCE_SHOP", shop.url("shop"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", warehouse.url("postgres"))
    };
    verb(&["run", "copy.yaml"]).output().await?.success()?;
    for (table, key, words) in [
        ("orders", "id=2999", "by the key (id)"),
        ("names", "name=n12999", "by the key (name), name from \"n1"),
    ] {
        let why = verb(&["why", table, key]).output().await?.success()?.stdout;
        let json = verb(&["why", table, key, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()?;
        let version = json["rows"][0]["version"].as_str().unwrap_or_default();
        for said in [&why, version] {
            ensure!(said.contains(words) && !said.contains('{'), "{said}");
        }
    }
    Ok(())
}

/// Nobody has written the password down.
fn no_password_in(folder: &Path) -> Result<()> {
    let mut files = vec![folder.to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path)?;
            files.extend(entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        ensure!(
            !text.contains(PASSWORD) && !text.contains("right%20one"),
            "the password is in {}",
            path.display()
        );
    }
    Ok(())
}
