//! From one database to another, through the binary.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use super::support::cluster::{Cluster, Settings, check_state, events, run_of};
use super::support::postgres::{PASSWORD, Postgres};
use super::support::process::{PATIENCE, Verb, newest_rejects, newest_run, until};

/// Rows of the table that is copied.
const ROWS: i64 = 12_000;

const ORDERS: &str = "CREATE SCHEMA shop;
    CREATE TABLE shop.orders (id bigint PRIMARY KEY, at timestamptz NOT NULL, day date, amount numeric(12, 2),
        weight double precision, note text, paid bool, tags text[], kind text);
    INSERT INTO shop.orders SELECT id, '2013-01-01'::timestamptz + id * interval '1 second 1 microsecond',
        CASE WHEN id % 11 > 0 THEN '2013-01-01'::date + (id % 400)::int END, (id * 7 % 100000) / 100.0,
        1.0 / (id + 1), CASE id % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE E'tab\\t\"quote\" line\\nü ' || id END,
        id % 3 = 0, ARRAY['a', id::text], CASE id % 5 WHEN 0 THEN 'bad' ELSE 'good' END
        FROM generate_series(1, 12000) id;
    DELETE FROM shop.orders WHERE id % 10 = 7;
    UPDATE shop.orders SET note = 'moved' WHERE id % 10 = 3;
    INSERT INTO shop.orders SELECT id + 20000, now(), now(), 1, 1, 'late', true, '{}', 'good'
        FROM generate_series(1, 1200) id;
    GRANT USAGE ON SCHEMA shop TO locked; GRANT SELECT ON shop.orders TO locked;";

const PIPELINE: &str = r#"pipeline: copy
checkpoint_rows: 400
params: {least: bigint}
sources:
  orders:
    postgres: crm
    table: shop.orders
    chunk_size: 256KiB
    columns: {id: bigint!, at: timestamptz, day: date, amount: "decimal(12,2)", weight: double, note: text, paid: bool, tags: text, kind: text}
  few: {postgres: crm, query: "SELECT id, note FROM shop.orders WHERE id < $least", columns: {id: bigint, note: text}}
  kinds: {sqlite: kinds.db, table: kinds, lookup: true}
steps:
  valid: {from: orders, reject: {bad_kind: kind = 'bad'}}
  named: SELECT v.*, k.rank FROM valid v LEFT JOIN kinds k ON k.kind = v.kind
loads:
  orders: {from: named, to: warehouse, table: orders, mode: replace}
  few: {from: few, to: warehouse, table: few, mode: merge, key: [id]}
"#;

async fn kinds(path: &Path) -> Result<()> {
    use sqlx::ConnectOptions as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = options.connect().await?;
    sqlx::raw_sql("CREATE TABLE kinds (kind TEXT, rank INT); INSERT INTO kinds VALUES ('good', 1), ('bad', 2)")
        .execute(&mut connection)
        .await?;
    Ok(())
}

/// What a query says, in one text.
async fn told(pool: &PgPool, sql: &str) -> Result<String> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(pool)
        .await?)
}

async fn show(folder: &Path) -> Result<Value> {
    let run = newest_run(folder).await?;
    let shown = Verb::new(folder)
        .args(["show", &run, "--output", "json"])
        .output()
        .await?;
    shown.success()?.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_copied_exactly_though_a_chunk_crashes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (crm, warehouse) = tokio::try_join!(Postgres::start(), Postgres::start())?;
    crm.execute("postgres", ORDERS).await?;
    std::fs::write(folder.path().join("copy.yaml"), PIPELINE)?;
    kinds(&folder.path().join("kinds.db")).await?;
    let address = crm.url_with_password(&PASSWORD.replace(' ', "%20"));
    let run = Verb::new(folder.path())
        .args(["run", "copy.yaml", "--param", "least=50"])
        .args(["--destination", &format!("warehouse={}", warehouse.url("postgres"))])
        .env("HAULAGE_SOURCE_CRM", &address)
        .env("HAULAGE_FAULT", "panic@chunk:0.1:segment:1");
    let said = run.output().await?.success()?;

    let (there, here) = (crm.pool("postgres").await?, warehouse.pool("postgres").await?);
    let columns = "id, at, day, amount, weight, note, paid, tags::text, kind";
    let sum = format!("md5(string_agg(({columns})::text, ';' ORDER BY id)) || count(*)");
    let expected = told(&there, &format!("SELECT {sum} FROM shop.orders WHERE kind = 'good'")).await?;
    ensure!(
        told(&here, &format!("SELECT {sum} FROM orders")).await? == expected,
        "the copy is another"
    );
    ensure!(
        told(&here, "SELECT count(*)::text FROM orders WHERE rank = 1").await?
            == told(&here, "SELECT count(*)::text FROM orders").await?
    );
    let few = "md5(string_agg((id, note)::text, ';' ORDER BY id)) || count(*)";
    let expected = told(&there, &format!("SELECT {few} FROM shop.orders WHERE id < 50")).await?;
    ensure!(
        told(&here, &format!("SELECT {few} FROM few")).await? == expected,
        "the query's rows are others"
    );

    let shown = show(folder.path()).await?;
    check_state(&shown, "published")?;
    let counts = run_of(&shown);
    let rows = ROWS + 44;
    ensure!(counts["counts"]["read"] == rows, "read: {counts}");
    ensure!(
        counts["restarts"].as_u64() > Some(0),
        "no chunk was restarted: {counts}"
    );
    // Every row is in one place or the other.
    let (_, rejects) = newest_rejects(folder.path()).await?;
    let bad: i64 = told(&there, "SELECT count(*)::text FROM shop.orders WHERE kind = 'bad'")
        .await?
        .parse()?;
    ensure!(rejects.len() as i64 == bad, "{} rejects of {bad}", rejects.len());
    let first = &rejects[0];
    let raw = first["raw"].as_str().context("no text")?;
    let file = first["file"].as_str().context("no place")?;
    ensure!(
        raw.ends_with("\tbad") && file.starts_with("crm: shop.orders, pages "),
        "{first}"
    );

    // No session is left, and nobody has written the password down.
    let left = "SELECT count(*)::text FROM pg_stat_activity WHERE usename = 'locked'";
    ensure!(told(&there, left).await? == "0", "sessions are left");
    let mut files = vec![folder.path().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path)?
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>>>()?,
            );
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            ensure!(
                !text.contains(PASSWORD) && !text.contains("right%20one"),
                "the password is in {}",
                path.display()
            );
        }
    }
    ensure!(
        !said.stderr.contains("right") && !said.stdout.contains("right"),
        "{}",
        said.stderr
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_can_not_be_read_is_named_before_a_run_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let crm = Postgres::start().await?;
    crm.execute("postgres", ORDERS).await?;
    std::fs::write(folder.path().join("copy.yaml"), PIPELINE)?;
    kinds(&folder.path().join("kinds.db")).await?;
    let run = |source: Option<String>| {
        let run = Verb::new(folder.path()).args(["run", "copy.yaml", "--param", "least=50"]);
        match source {
            Some(address) => run.args(["--source", &format!("crm={address}")]),
            None => run,
        }
    };
    run(None)
        .output()
        .await?
        .failure(&["copy.yaml:5:", "has no source crm", "HAULAGE_SOURCE_CRM"])?;
    let wrong = crm.url_with_password("hunter2");
    let refused = run(Some(wrong))
        .output()
        .await?
        .failure(&["copy.yaml:5:", "wrong password"])?;
    ensure!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
    let other = run(None)
        .args(["--source", "crn=postgres://u:hunter2@h/d"])
        .output()
        .await?;
    ensure!(!other.stderr.contains("hunter2"), "{}", other.stderr);
    other.failure(&[
        "no source of the pipeline reads from a connection `crn`",
        "did you mean `crm`",
    ])?;
    crm.execute("postgres", "ALTER TABLE shop.orders DROP COLUMN weight")
        .await?;
    run(Some(crm.url("postgres")))
        .output()
        .await?
        .failure(&["copy.yaml:9:", "it has no column `weight`"])?;
    // Without a server too: the file alone is sound.
    Verb::new(folder.path())
        .args(["validate", "copy.yaml"])
        .output()
        .await?
        .success()?;
    ensure!(!folder.path().join(".haulage").exists(), "a run was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_outlives_the_node_that_took_its_snapshot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (crm, warehouse) = tokio::try_join!(Postgres::start(), Postgres::start())?;
    crm.execute("postgres", ORDERS).await?;
    let there = crm.pool("postgres").await?;
    let sum = "md5(string_agg((id, at, note)::text, ';' ORDER BY id)) || count(*)";
    let expected = told(&there, &format!("SELECT {sum} FROM shop.orders")).await?;
    let file = folder.path().join("copy.yaml");
    std::fs::write(
        &file,
        "pipeline: copy\ncheckpoint_rows: 400\nsources: {orders: {postgres: crm, table: shop.orders, chunk_size: \
         128KiB, columns: {id: bigint!, at: timestamptz, note: text}}}\nsteps: {all: SELECT * FROM orders}\nloads: \
         {orders: {from: all, to: warehouse, table: orders, mode: replace}}\n",
    )?;
    let settings = Settings {
        ledger: format!("sqlite:{}", folder.path().join("ledger.db").display()),
        warehouse: warehouse.url("postgres"),
        store: folder.path().join("store").display().to_string(),
        nodes: 3,
        envs: vec![("HAULAGE_SOURCE_CRM".to_owned(), crm.url("postgres"))],
        faults: Some("slow@segment:300ms".to_owned()),
    };
    let mut cluster = Cluster::start(folder.path(), settings).await?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    let staged = |shown: &Value| !events(shown, "chunk_staged").is_empty();
    let shown = cluster.until_run(&run, "a chunk is staged", PATIENCE, staged).await?;
    check_state(&shown, "loading")?;
    let discovers = |event: &&&Value| event["event"]["work"] == "discover";
    let assigned = events(&shown, "assigned");
    let discovery = assigned
        .iter()
        .find(discovers)
        .with_context(|| format!("{assigned:#?}"))?;
    let victim = discovery["event"]["node"].as_str().context("a node")?.to_owned();
    cluster.kill(&victim).await?;
    // From now on the rows are others, and each is somewhere else.
    crm.execute("postgres", "UPDATE shop.orders SET note = 'changed', id = -id")
        .await?;
    cluster.watch(&run).await?.success()?;
    check_state(&cluster.show(&run).await?, "published")?;
    let here = warehouse.pool("postgres").await?;
    ensure!(
        told(&here, &format!("SELECT {sum} FROM orders")).await? == expected,
        "the copy is another"
    );
    // The run is at rest, and the nodes have let go.
    let left = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'haulage%'";
    until("all sessions to end", PATIENCE, async || {
        Ok((told(&there, left).await? == "0").then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_looked_at_and_one_that_is_not_trusted_ends_the_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let crm = Postgres::start().await?;
    crm.offer_tls().await?;
    crm.execute("postgres", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
        .await?;
    let (ca, other) = (folder.path().join("ca.pem"), folder.path().join("other.pem"));
    std::fs::write(&ca, haulage_test_support::CA)?;
    std::fs::write(&other, haulage_test_support::OTHER_CA)?;
    std::fs::write(
        folder.path().join("copy.yaml"),
        "pipeline: copy\nsources: {t: {postgres: crm, table: t}}\nsteps: {all: SELECT * FROM t}\nloads: {t: {from: all, to: \
         warehouse, table: copied, mode: append}}\n",
    )?;
    let trusted = format!("{}?sslmode=verify-ca&sslrootcert={}", crm.url("postgres"), ca.display());
    let run = |mode: &str, ca: &Path| {
        let address = format!("{}?sslmode={mode}&sslrootcert={}", crm.url("postgres"), ca.display());
        Verb::new(folder.path())
            .args(["run", "copy.yaml", "--rerun"])
            .env("HAULAGE_SOURCE_CRM", address)
            .env("HAULAGE_DESTINATION_WAREHOUSE", &trusted)
    };
    // The certificate is for another host, which only one of the two minds.
    run("verify-ca", &ca).output().await?.success()?;
    for (mode, ca, words) in [
        ("verify-full", &ca, "no TLS connection"),
        ("verify-ca", &other, "sslrootcert"),
        (
            "verify-ca",
            &folder.path().join("gone.pem"),
            "check the paths of sslrootcert",
        ),
    ] {
        let refused = run(mode, ca).output().await?.failure(&["crm", words])?;
        ensure!(!refused.stderr.contains("crashed"), "{}", refused.stderr);
    }
    let here = crm.pool("postgres").await?;
    ensure!(told(&here, "SELECT count(*)::text FROM copied").await? == "10");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_publishes_to_the_table_that_it_has_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let crm = Postgres::start().await?;
    crm.execute(
        "postgres",
        "CREATE TABLE t AS SELECT id::bigint AS id FROM generate_series(1, 5000) id",
    )
    .await?;
    std::fs::write(
        folder.path().join("copy.yaml"),
        "pipeline: copy\nsources: {t: {postgres: crm, table: t, chunk_size: 64KiB}}\nsteps: {all: \"SELECT id + 1 AS id FROM \
         t\"}\nloads: {t: {from: all, to: warehouse, table: t, mode: replace}}\n",
    )?;
    let settings = Settings {
        ledger: format!("sqlite:{}", folder.path().join("ledger.db").display()),
        warehouse: crm.url("postgres"),
        store: folder.path().join("store").display().to_string(),
        nodes: 2,
        envs: vec![("HAULAGE_SOURCE_CRM".to_owned(), crm.url("postgres"))],
        faults: None,
    };
    let cluster = Cluster::start(folder.path(), settings).await?;
    let (run, _) = cluster.submit(&folder.path().join("copy.yaml"), &[]).await?;
    cluster.watch(&run).await?.success()?;
    let shown = cluster.show(&run).await?;
    check_state(&shown, "published")?;
    // In its first try: the snapshots of both nodes were gone before anybody waited for them.
    let failed = events(&shown, "attempt_failed");
    ensure!(failed.is_empty(), "{failed:#?}");
    let here = crm.pool("postgres").await?;
    ensure!(told(&here, "SELECT min(id) || '-' || max(id) FROM t").await? == "2-5001");
    Ok(())
}

/// How many digits a `numeric` has is a part of its type, which a contract is about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_digits_than_declared_are_a_wider_type() -> Result<()> {
    let postgres = Postgres::start().await?;
    let here = postgres.create("warehouse").await?;
    let sql = "CREATE TABLE amounts (id bigint PRIMARY KEY, v numeric(20,6)); INSERT INTO amounts VALUES (1, 1.5), (2, 2.123456)";
    postgres.execute("postgres", sql).await?;
    let folder = tempfile::tempdir()?;
    for wider in ["fail", "widen"] {
        let text = format!(
            "pipeline: p\nsources:\n  amounts: {{postgres: crm, table: amounts, on_wider_type: {wider}, columns: {{id: bigint!, v: \
             \"decimal(10,2)\"}}}}\nloads:\n  a: {{from: amounts, to: warehouse, table: amounts, mode: merge, key: [id]}}\n"
        );
        std::fs::write(folder.path().join("p.yaml"), text)?;
        let verb = Verb::new(folder.path())
            .args(["run", "p.yaml"])
            .env("HAULAGE_SOURCE_CRM", postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", postgres.url("warehouse"));
        let output = verb.output().await?;
        if wider == "fail" {
            output.failure(&["decimal(10,2)", "decimal(20,6)"])?;
            continue;
        }
        output.success()?;
        let found: Vec<String> = sqlx::query_scalar("SELECT v::text FROM amounts ORDER BY id")
            .fetch_all(&here)
            .await?;
        ensure!(found == ["1.500000", "2.123456"], "{found:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_with_a_zone_are_told_with_it_and_asked_for_as_in_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Postgres::start().await?;
    let here = server.create("warehouse").await?;
    let make = "CREATE TABLE orders (id int, at timestamptz); INSERT INTO orders VALUES (1, '2024-01-31 23:30:00-01'),
        (2, '2024-02-01 00:30:00.5Z'), (3, '2023-01-01Z')";
    server.execute("postgres", make).await?;
    let write = |file: &str, rule: &str| {
        let text = format!(
            "pipeline: zones\nparams: {{since: timestamptz}}\nsources:\n  orders: {{postgres: crm, query: \"SELECT id, at FROM orders \
             WHERE at > $since\", columns: {{id: int!, at: timestamptz}}}}\nsteps:\n  sound:\n    sql: SELECT * FROM orders\n    \
             reject: {{late: \"{rule}\"}}\nloads:\n  orders: {{from: sound, to: warehouse, table: orders, mode: merge, key: [id], \
             provenance: true}}\nchecks:\n  - {{range: {{at: [\"2024/01/31\", \"2024-02-01 02:00:00 Europe/Berlin\"]}}}}\n"
        );
        std::fs::write(folder.path().join(file), text)
    };
    write("zones.yaml", "id = 2")?;
    write("mended.yaml", "id = 9")?;
    let verb = |args: &[&str]| {
        Verb::new(folder.path())
            .args(args.iter().copied())
            .env("HAULAGE_SOURCE_CRM", server.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", server.url("warehouse"))
    };
    for since in ["2024-01-01 00:00:00+5", "yesterday"] {
        let run = ["run", "zones.yaml", "--param", &format!("since={since}")];
        verb(&run).output().await?.failure(&["without one it is UTC"])?;
    }
    let run = ["run", "zones.yaml", "--param", "since=2024-02-01 00:00:00+00"];
    verb(&run).output().await?.success()?;
    let run = newest_run(folder.path()).await?;
    let (_, rejects) = newest_rejects(folder.path()).await?;
    ensure!(
        rejects.len() == 1 && rejects[0]["values"] == serde_json::json!(["2", "2024-02-01 00:30:00.5+00"]),
        "{rejects:?}"
    );
    // Nothing is exported, so there is no trace to look for.
    let why = verb(&["why", "orders", "1", "--output", "json"])
        .output()
        .await?
        .success()?
        .json()?;
    ensure!(
        why["rows"][0]["run_id"] == *run && why["rows"][0]["trace_id"].is_null(),
        "{why}"
    );
    let receipt = verb(&["receipt", &run, "--output", "json"])
        .output()
        .await?
        .success()?
        .json()?;
    ensure!(receipt["trace_id"].is_null(), "{receipt}");

    let replay = ["replay", &run, "mended.yaml", "--param", "since=2024-02-01"];
    verb(&replay).output().await?.success()?;
    let sql = "SELECT string_agg(id || ' ' || (at AT TIME ZONE 'UTC')::text, ', ' ORDER BY id) FROM orders";
    let expected = "1 2024-02-01 00:30:00, 2 2024-02-01 00:30:00.5";
    ensure!(told(&here, sql).await? == expected, "{}", told(&here, sql).await?);
    Ok(())
}
