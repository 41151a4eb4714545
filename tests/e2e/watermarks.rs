//! Incremental sources: each run reads what is new, nothing twice and nothing never, whatever becomes of the runs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::support::cluster::{Cluster, Settings, run_of};
use super::support::mariadb::Mariadb;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run};

/// A table with rows, a pipeline that reads what is new of it, and a warehouse in the same server.
struct Shop {
    folder: tempfile::TempDir,
    postgres: Postgres,
    here: PgPool,
}

impl Shop {
    async fn open() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let here = postgres.create("warehouse").await?;
        let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text);
            CREATE INDEX ON orders (at);
            INSERT INTO orders SELECT id, '2024-01-01 00:00:00Z'::timestamptz + id * interval '1 minute', 'first'
                FROM generate_series(1, 5000) id";
        postgres.execute("postgres", sql).await?;
        Ok(Self {
            folder: tempfile::tempdir()?,
            postgres,
            here,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, source: &str, load: &str, more: &str) -> Result<()> {
        let text = format!(
            "pipeline: shop\ncheckpoint_rows: 500\nsources:\n  orders: {{postgres: crm, {source}, columns: {{id: bigint!, \
             at: timestamptz, note: text}}}}\nsteps:\n  all: SELECT * FROM orders\nloads:\n  orders: {{from: all, to: warehouse, \
             table: orders, {load}}}\n{more}"
        );
        Ok(std::fs::write(self.path().join("shop.yaml"), text)?)
    }

    fn verb(&self, args: &[&str]) -> Verb {
        Verb::new(self.path())
            .args(args.iter().copied())
            .env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", self.postgres.url("warehouse"))
    }

    async fn run(&self) -> Result<String> {
        self.verb(&["run", "shop.yaml"]).output().await?.success()?;
        newest_run(self.path()).await
    }

    async fn revert(&self, run: &str) -> Result<Output> {
        self.verb(&["revert", run]).output().await
    }

    async fn insert(&self, sql: &str) -> Result<()> {
        self.postgres.execute("postgres", sql).await
    }

    /// Rows in the warehouse: how many, and how many different ones.
    async fn rows(&self) -> Result<(i64, i64)> {
        let sql = "SELECT count(*), count(DISTINCT id) FROM orders";
        Ok(sqlx::query_as(sql).fetch_one(&self.here).await?)
    }

    async fn state(&self) -> Result<Vec<Value>> {
        self.verb(&["state", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()
    }

    async fn check_state(&self, value: Option<&str>) -> Result<()> {
        let state = self.state().await?;
        ensure!(
            state.len() == 1 && state[0]["value"] == json!(value) && state[0]["column"] == "at",
            "not at {value:?}: {state:?}"
        );
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

const INCREMENTAL: &str = "table: orders, chunk_size: 64KiB, incremental: at";
const APPEND: &str = "mode: append";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_run_reads_what_is_new_and_a_revert_gives_it_back() -> Result<()> {
    let shop = Shop::open().await?;
    shop.write(INCREMENTAL, APPEND, "")?;
    let planned = shop.verb(&["plan", "shop.yaml"]).output().await?.success()?;
    ensure!(planned.stdout.contains("orders"), "{}", planned.stdout);
    let first = shop.run().await?;
    ensure!(shop.rows().await? == (5000, 5000));
    shop.check_state(Some("2024-01-04 11:20:00+00")).await?;

    // Nothing is new: a run all the same, of nothing.
    let second = shop.run().await?;
    ensure!(second != first && shop.read_by(&second).await? == 0 && shop.rows().await? == (5000, 5000));
    shop.check_state(Some("2024-01-04 11:20:00+00")).await?;

    // A little is new: found by the index, read once. An old row that has changed without its time is nobody's business.
    shop.insert(
        "INSERT INTO orders VALUES (6000, '2024-02-01Z', 'second'), (6001, '2024-02-02 00:00:00.000001Z', 'second');
                 UPDATE orders SET note = 'changed' WHERE id = 17",
    )
    .await?;
    let third = shop.run().await?;
    ensure!(shop.read_by(&third).await? == 2 && shop.rows().await? == (5002, 5002));
    shop.check_state(Some("2024-02-02 00:00:00.000001+00")).await?;
    let people = shop.verb(&["state"]).output().await?.success()?;
    for part in ["shop", "public.orders", "2024-02-02 00:00:00.000001", &third] {
        ensure!(people.stdout.contains(part), "{part}: {}", people.stdout);
    }

    // Much is new, in several chunks.
    shop.insert(
        "INSERT INTO orders SELECT id, '2024-03-01Z'::timestamptz + id * interval '1 second', repeat('x', 100)
                 FROM generate_series(10001, 15000) id",
    )
    .await?;
    let fourth = shop.run().await?;
    ensure!(shop.read_by(&fourth).await? == 5000 && shop.rows().await? == (10002, 10002));

    // What lies in the future waits for its time, and the run says so; what comes late, below it, is read.
    shop.insert("INSERT INTO orders VALUES (30000, now() + interval '1 hour', 'early')")
        .await?;
    let waits = shop.run().await?;
    ensure!(shop.read_by(&waits).await? == 0);
    let shown = shop.verb(&["show", &waits]).output().await?.success()?;
    let said = "1 row of orders lies in the future by `at` and waits for a later run";
    ensure!(shown.stdout.contains(said), "{}", shown.stdout);
    shop.insert("DELETE FROM orders WHERE id = 30000").await?;
    shop.revert(&waits).await?.success()?;

    // What later runs have read on from goes after them.
    shop.revert(&third).await?.failure(&[&fourth])?;
    ensure!(shop.rows().await? == (10002, 10002));
    shop.revert(&fourth).await?.success()?;
    shop.check_state(Some("2024-02-02 00:00:00.000001+00")).await?;
    shop.revert(&third).await?.success()?;
    shop.check_state(Some("2024-01-04 11:20:00+00")).await?;
    ensure!(shop.rows().await? == (5000, 5000));
    let again = shop.run().await?;
    ensure!(shop.read_by(&again).await? == 5002 && shop.rows().await? == (10002, 10002));

    // Run again on purpose, it reads what it has read before and replaces it.
    shop.insert(
        "INSERT INTO orders VALUES (20000, '2024-05-01Z', 'new'); UPDATE orders SET note = 'mended' WHERE id = 6000",
    )
    .await?;
    shop.verb(&["run", "shop.yaml", "--rerun"]).output().await?.success()?;
    ensure!(shop.rows().await? == (10003, 10003));
    let notes: Vec<String> = sqlx::query_scalar("SELECT note FROM orders WHERE id IN (17, 6000, 20000) ORDER BY id")
        .fetch_all(&shop.here)
        .await?;
    ensure!(notes == ["first", "mended", "new"], "{notes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_run_reads_again_and_a_replacement_reads_everything() -> Result<()> {
    let shop = Shop::open().await?;
    shop.write(
        INCREMENTAL,
        "mode: merge, key: [id]",
        "checks:\n  - {row_count: \"<= 5000\"}\n",
    )?;
    shop.run().await?;
    shop.check_state(Some("2024-01-04 11:20:00+00")).await?;
    shop.insert(
        "INSERT INTO orders SELECT id, '2024-03-01Z'::timestamptz + id * interval '1 second', 'many'
                 FROM generate_series(10001, 16000) id",
    )
    .await?;
    shop.verb(&["run", "shop.yaml"]).output().await?.failure(&["check"])?;
    shop.check_state(Some("2024-01-04 11:20:00+00")).await?;
    ensure!(shop.rows().await? == (5000, 5000));
    // Another file, and the same pipeline: it reads on. A lag reads a little again, and merges it.
    shop.write(
        "table: orders, incremental: {column: at, lag: 30m}",
        "mode: merge, key: [id]",
        "",
    )?;
    shop.insert("UPDATE orders SET note = 'late' WHERE id IN (4971, 4970)")
        .await?;
    let run = shop.run().await?;
    ensure!(shop.read_by(&run).await? == 6030, "{}", shop.read_by(&run).await?);
    let late: Vec<String> = sqlx::query_scalar("SELECT note FROM orders WHERE id IN (4970, 4971) ORDER BY id")
        .fetch_all(&shop.here)
        .await?;
    ensure!(late == ["first", "late"], "{late:?}");
    // A replacement holds everything, and the next run reads on from there.
    shop.write(INCREMENTAL, "mode: replace", "")?;
    let all = shop.run().await?;
    ensure!(shop.read_by(&all).await? == 11_000 && shop.rows().await? == (11_000, 11_000));
    shop.insert("INSERT INTO orders VALUES (20000, '2024-05-01Z', 'new')")
        .await?;
    shop.write(INCREMENTAL, "mode: append, key: [id]", "")?;
    let run = shop.run().await?;
    ensure!(shop.read_by(&run).await? == 1 && shop.rows().await? == (11_001, 11_001));
    // The table is gone, and with it what was read: that is not found out by a gap.
    sqlx::query("DROP TABLE orders").execute(&shop.here).await?;
    shop.verb(&["run", "shop.yaml"]).output().await?.failure(&[
        "read up to 2024-05-01 00:00:00",
        "haulage state forget shop orders orders",
    ])?;
    shop.verb(&["state", "forget", "shop", "orders", "orders"])
        .output()
        .await?
        .success()?;
    shop.run().await?;
    ensure!(shop.rows().await? == (11_001, 11_001));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_read_so_is_refused() -> Result<()> {
    let shop = Shop::open().await?;
    for (source, load, parts) in [
        (
            "table: orders, incremental: note",
            APPEND,
            &["`note`", "no integer, date or time"] as &[&str],
        ),
        ("table: orders, incremental: att", APPEND, &["no column `att`", "`at`"]),
        (
            "table: orders, incremental: {column: id, lag: 10m}",
            "mode: merge, key: [id]",
            &["shop.yaml:", "`id` of source `orders` is an integer", "lag: 1000"],
        ),
        (
            "table: orders, incremental: {column: at, lag: 10}",
            "mode: merge, key: [id]",
            &["shop.yaml:", "`at` of source `orders` is a date or a time", "lag: 10m"],
        ),
        (
            "table: orders, incremental: {column: at, lag: soon}",
            APPEND,
            &["shop.yaml:4:", "`soon` is no lag"],
        ),
        (
            "table: orders, incremental: {lag: 10m}",
            APPEND,
            &["shop.yaml:4:", "names no column"],
        ),
        (
            "table: orders, incremental: {column: at, lag: 10m}",
            APPEND,
            &["source `orders` has a `lag`, which reads rows a second time, and load `orders` appends"],
        ),
        (
            "query: \"SELECT id, at, note, at::date AS day FROM orders\", incremental: day",
            "mode: merge, key: [id]",
            &["`day` is a date", "lag: 1day"],
        ),
        (
            "table: orders, lookup: true, incremental: at",
            APPEND,
            &["shop.yaml:4:", "is a lookup"],
        ),
    ] {
        shop.write(source, load, "")?;
        shop.verb(&["run", "shop.yaml"]).output().await?.failure(parts)?;
    }
    // A row without a value, and one after which nothing comes.
    shop.write("table: orders, incremental: at", APPEND, "")?;
    shop.insert("ALTER TABLE orders ALTER at DROP NOT NULL; INSERT INTO orders VALUES (7000, NULL, 'never')")
        .await?;
    shop.verb(&["run", "shop.yaml"])
        .output()
        .await?
        .failure(&["without a value in `at`"])?;
    shop.insert("UPDATE orders SET at = 'infinity' WHERE id = 7000").await?;
    shop.verb(&["run", "shop.yaml"])
        .output()
        .await?
        .failure(&["is infinity"])?;
    shop.insert("DELETE FROM orders WHERE id = 7000").await?;
    // A query reads on, too; its parameters are values.
    shop.write(
        "query: \"SELECT * FROM orders WHERE note <> 'x'\", incremental: id",
        APPEND,
        "",
    )?;
    let run = shop.run().await?;
    ensure!(shop.read_by(&run).await? == 5000);
    shop.insert("INSERT INTO orders VALUES (7000, now(), 'new')").await?;
    let run = shop.run().await?;
    ensure!(shop.read_by(&run).await? == 1 && shop.rows().await? == (5001, 5001));
    // The watermark of one column, or query, says nothing about another.
    for (other, part) in [
        ("table: orders, incremental: at", "read up to 7000 of column `id`"),
        (
            "table: orders, incremental: id",
            "read up to 7000 from another connection, table or query",
        ),
    ] {
        shop.write(other, APPEND, "")?;
        let refused = shop.verb(&["run", "shop.yaml"]).output().await?;
        refused.failure(&[part, "haulage state forget shop orders orders"])?;
    }
    // Whoever says from where on knows what is read.
    let set = ["state", "set", "shop", "orders", "orders", "6999"];
    shop.verb(&set).output().await?.success()?;
    shop.write("table: orders, incremental: id", APPEND, "")?;
    let run = shop.run().await?;
    ensure!(shop.read_by(&run).await? == 1);
    // A second load that appends would get rows twice, or the first some never.
    let two = format!("  more: {{from: all, to: warehouse, table: more, {APPEND}}}\n");
    shop.write("table: orders, incremental: id", APPEND, &two)?;
    shop.verb(&["run", "shop.yaml"])
        .output()
        .await?
        .failure(&["go on from different places", "more from the first row"])?;
    let set = shop
        .verb(&["state", "set", "shop", "orders", "orders", "x' OR '1"])
        .output()
        .await?;
    set.failure(&["can't be a watermark"])?;
    let odd = shop.verb(&["state", "set", "shop", "orders", "orders", "2026-13-45"]);
    odd.output().await?.failure(&["can't be a watermark"])?;
    // A value of another kind is found when it is used, and nothing is read by it.
    shop.write("table: orders, incremental: id", APPEND, "")?;
    let set = ["state", "set", "shop", "orders", "orders", "2013-01-31"];
    shop.verb(&set).output().await?.success()?;
    shop.verb(&["run", "shop.yaml"])
        .output()
        .await?
        .failure(&["`2013-01-31` can't be the watermark of column `id`, which is an integer"])?;
    let file = shop.verb(&["state", "shop.yaml"]).output().await?;
    file.failure(&["no pipeline is called shop.yaml", "`pipeline:`"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_shows_and_sets_watermarks() -> Result<()> {
    let shop = Shop::open().await?;
    shop.write(INCREMENTAL, APPEND, "")?;
    let settings = Settings {
        ledger: format!("sqlite:{}", shop.path().join("ledger.db").display()),
        warehouse: shop.postgres.url("warehouse"),
        store: shop.path().join("store").display().to_string(),
        nodes: 2,
        envs: vec![("HAULAGE_SOURCE_CRM".to_owned(), shop.postgres.url("postgres"))],
        faults: Some("panic@chunk:0.1:segment:1".to_owned()),
    };
    let cluster = Cluster::start(shop.path(), settings).await?;
    let file = shop.path().join("shop.yaml");
    let (first, _) = cluster.submit(&file, &[]).await?;
    cluster.until_rest(&first).await?;
    ensure!(shop.rows().await? == (5000, 5000));
    let state = || async {
        cluster
            .client()
            .args(["state", "shop", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()
    };
    let marks = state().await?;
    ensure!(
        marks.len() == 1 && marks[0]["run_id"] == first.as_str() && marks[0]["destination"] == "warehouse",
        "{marks:?}"
    );
    let set = cluster.client().args([
        "state",
        "set",
        "shop",
        "orders",
        "orders",
        "2024-01-04 11:10:00",
        "--by",
        "ann",
    ]);
    set.output().await?.success()?;
    let marks = state().await?;
    ensure!(
        marks[0]["value"] == "2024-01-04 11:10:00" && marks[0]["by"] == "ann" && marks[0]["run_id"].is_null(),
        "{marks:?}"
    );
    let (second, _) = cluster.submit(&file, &[]).await?;
    ensure!(second != first);
    cluster.until_rest(&second).await?;
    ensure!(
        shop.rows().await? == (5010, 5000),
        "ten of them a second time, as was asked for"
    );
    let missing = cluster
        .client()
        .args(["state", "forget", "shop", "ordres", "orders"])
        .output()
        .await?;
    missing.failure(&["no watermark of source ordres", "orders public.orders"])?;
    let sql = "SELECT count(*) FROM haulage.watermarks";
    let kept: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&shop.here).await?;
    ensure!(kept == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_read_on_too() -> Result<()> {
    let (mariadb, folder) = (Mariadb::start().await?, tempfile::tempdir()?);
    let database = mariadb.database().await?;
    let insert = "INSERT INTO orders SELECT seq, timestamp('2024-01-01') + INTERVAL seq SECOND, 'n' FROM seq_";
    mariadb
        .execute(
            &database,
            &format!(
                "CREATE TABLE orders (id bigint PRIMARY KEY, at datetime(6), note text, KEY (at)); {insert}1_to_4000"
            ),
        )
        .await?;
    let file = "pipeline: shop\nsources:\n  orders: {mysql: erp, table: orders, chunk_size: 64KiB, incremental: {column: at, lag: \
                1m}}\nsteps:\n  all: SELECT * FROM orders\nloads:\n  orders: {from: all, to: warehouse, table: orders, mode: \
                merge, key: [id]}\n";
    std::fs::write(folder.path().join("shop.yaml"), file)?;
    let verb = |args: &[&str]| {
        let verb = Verb::new(folder.path()).args(args.iter().copied());
        verb.env("HAULAGE_SOURCE_ERP", mariadb.url(&database))
    };
    let read = async || -> Result<u64> {
        verb(&["run", "shop.yaml"]).output().await?.success()?;
        let run = newest_run(folder.path()).await?;
        let shown = verb(&["show", &run, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()?;
        run_of(&shown)["counts"]["read"].as_u64().context("rows read")
    };
    let value = async || -> Result<Value> {
        let marks = verb(&["state", "--output", "json"])
            .output()
            .await?
            .success()?
            .json_lines()?;
        Ok(marks[0]["value"].clone())
    };
    ensure!(read().await? == 4000 && value().await? == "2024-01-01 01:06:40.000000");
    // The last minute comes again and is merged, and what lies in the future comes early: the watermark stays below it.
    mariadb.execute(&database, &format!("{insert}5001_to_5100")).await?;
    mariadb
        .execute(&database, "INSERT INTO orders VALUES (9000, '2999-01-01', 'later')")
        .await?;
    let again = read().await?;
    ensure!(
        again == 161 && value().await? == "2024-01-01 01:25:00.000000",
        "{again}"
    );
    mariadb
        .execute(&database, "INSERT INTO orders VALUES (9001, NULL, 'never')")
        .await?;
    verb(&["run", "shop.yaml"])
        .output()
        .await?
        .failure(&["without a value in `at`"])?;
    Ok(())
}

/// A table that was appended whole has no watermark, and what begins at the first row would append it once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_were_appended_whole_are_not_appended_again() -> Result<()> {
    let shop = Shop::open().await?;
    shop.write("table: orders", APPEND, "")?;
    let whole = shop.run().await?;
    shop.write(INCREMENTAL, APPEND, "")?;
    let refused = shop.verb(&["run", "shop.yaml"]).output().await?;
    refused.failure(&[
        &whole,
        "haulage state set shop orders orders VALUE --to warehouse --column at",
    ])?;
    ensure!(shop.rows().await? == (5000, 5000));

    let mark = [
        "shop",
        "orders",
        "orders",
        "2024-01-04 11:20:00",
        "--to",
        "warehouse",
        "--column",
        "at",
    ];
    let set = [&["state", "set"][..], &mark].concat();
    shop.verb(&set).output().await?.success()?;
    shop.insert("INSERT INTO orders VALUES (6000, '2024-02-01Z', 'second')")
        .await?;
    shop.run().await?;
    ensure!(shop.rows().await? == (5001, 5001));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_emptied_and_filled_again_below_its_watermark_is_no_silence() -> Result<()> {
    let shop = Shop::open().await?;
    shop.write("table: orders, incremental: id", APPEND, "")?;
    let planned = shop.verb(&["plan", "shop.yaml"]).output().await?.success()?;
    let all = "every row, by id: no watermark to read on from, up to 5000";
    ensure!(planned.stdout.contains(all), "{}", planned.stdout);
    shop.run().await?;

    // Nothing is new, or nothing is there: no reason to warn.
    for sql in ["SELECT 1", "TRUNCATE orders"] {
        shop.insert(sql).await?;
        let planned = shop.verb(&["plan", "shop.yaml"]).output().await?.success()?;
        let on = "rows after the watermark 5000 of id, up to 5000";
        ensure!(
            planned.stdout.contains(on) && !planned.stdout.contains("warning"),
            "{sql}: {}",
            planned.stdout
        );
        let run = shop.run().await?;
        let shown = shop.verb(&["show", &run]).output().await?.success()?;
        ensure!(!shown.stdout.contains("warning"), "{sql}: {}", shown.stdout);
    }

    shop.insert("INSERT INTO orders SELECT id, '2024-06-01Z', 'again' FROM generate_series(1, 3) id")
        .await?;
    let said = "its highest `id` is 3, below the watermark 5000";
    let forget = "haulage state forget shop orders orders --to warehouse --column id";
    let planned = shop.verb(&["plan", "shop.yaml"]).output().await?.success()?;
    let plan = shop.verb(&["plan", "shop.yaml", "--output", "json"]).output().await?;
    let plan = plan.success()?.json()?;
    let new = &plan["stages"][0]["incremental"];
    ensure!(
        *new == json!({"column": "id", "watermark": "5000", "after": "5000", "up_to": "5000"}),
        "{plan}"
    );
    let run = shop.verb(&["run", "shop.yaml"]).output().await?.success()?;
    let id = newest_run(shop.path()).await?;
    let shown = shop.verb(&["show", &id]).output().await?.success()?;
    let warning = plan["warnings"][0].as_str().unwrap_or_default().to_owned();
    let everywhere = format!("{}{}", run.stdout, run.stderr);
    for text in [&planned.stdout, &warning, &everywhere, &shown.stdout] {
        ensure!(text.contains(said) && text.contains(forget), "{text}");
    }
    let json = shop.verb(&["show", &id, "--output", "json"]).output().await?;
    let json = json.success()?.json()?;
    ensure!(run_of(&json)["warnings"] == json!([warning]), "{json}");
    ensure!(shop.read_by(&id).await? == 0);

    // What it says to do helps.
    let args: Vec<&str> = forget.split(' ').skip(1).collect();
    shop.verb(&args).output().await?.success()?;
    let id = shop.run().await?;
    ensure!(shop.read_by(&id).await? == 3 && shop.rows().await? == (5003, 5000));
    Ok(())
}
