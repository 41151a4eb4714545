//! Receipts: what `receipt` says is what was counted, and `verify` finds whatever is changed in a table by hand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool, SqliteConnection};

use super::support::cluster::{events, run_of};
use super::support::numbers::Numbers;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run, until};

/// Rows of the source; those with an id that 10 divides are filtered, and those that 7 divides go to quarantine.
const ROWS: i64 = 4_000;

const PIPELINE: &str = r#"pipeline: types
checkpoint_rows: 100
params: {shift: {type: int, default: 0}}
sources:
  raw:
    csv: raw.csv
    chunk_size: 70kB
    columns: {id: int!, small: smallint, big: bigint, f: float, d: double, yes: bool, day: date, at: timestamp, zoned: timestamptz, amount: "decimal(12,2)", note: text}
steps:
  some: SELECT *, to_timestamp_nanos(id) AS nano, id + $shift AS moved FROM raw WHERE id % 10 <> 0
  valid: {from: some, reject: {seven: id % 7 = 0}}
  doc: "SELECT id, note AS code, CAST('{\"b\": 1,  \"a\": ' || id || '}' AS text) AS doc, amount, day FROM valid"
loads:
  fresh: {from: valid, to: warehouse, table: fresh, mode: replace}
  added: {from: valid, to: warehouse, table: added, mode: append}
  keyed: {from: valid, to: warehouse, table: keyed, mode: append, key: [id]}
  merged: {from: valid, to: warehouse, table: merged, mode: merge, key: [id]}
  odd: {from: doc, to: warehouse, table: odd, mode: replace}
  old: {from: doc, to: warehouse, table: old, mode: merge, key: [id]}
  side: {from: valid, to: side, table: side, mode: replace}
  side_added: {from: valid, to: side, table: side_added, mode: append}
"#;

/// Tables that are there before: `keyed` has no column for the run, `odd` keeps values otherwise than they are written, `old`
/// has rows.
const WAREHOUSE: &str = "
    CREATE TABLE keyed (id integer PRIMARY KEY, small smallint, big bigint, f real, d double precision, yes boolean,
        day date, at timestamp, zoned timestamptz, amount numeric, note text, nano timestamp, moved bigint);
    INSERT INTO keyed (id) VALUES (-1);
    CREATE TABLE odd (id bigint, code character(40), doc jsonb, amount numeric(20, 6), day date);
    CREATE TABLE old (id integer PRIMARY KEY, code text, doc text, amount numeric(12, 2), day date);
    INSERT INTO old VALUES (-1, 'x', 'y', 1, NULL);";

pub(super) fn source(folder: &Path) -> Result<()> {
    let mut text = String::from("id,small,big,f,d,yes,day,at,zoned,amount,note\n");
    for id in 0..ROWS {
        let some = |value: String| if id % 13 == 0 { String::new() } else { value };
        let note = match id % 4 {
            0 => String::new(),
            1 => "\"\"".to_owned(),
            2 => format!("\"line\n, quote \"\" and ü {id}\""),
            _ => format!("note {id}"),
        };
        text.push_str(&format!(
            "{id},{},{},{},{},{},{},{},{},{},{note}\n",
            some((id % 300 - 150).to_string()),
            some((id * 1_000_000_007).to_string()),
            some(format!("{}", 1.0 / (id as f32 + 3.0))),
            some(match id % 5 {
                0 => "-0.0".to_owned(),
                1 => "NaN".to_owned(),
                _ => format!("{:e}", (id as f64).powi(7) / 3.0),
            }),
            some((id % 3 == 0).to_string()),
            some(format!("2013-{:02}-{:02}", id % 12 + 1, id % 28 + 1)),
            some(format!("1969-12-31 23:59:{:02}.{:06}", id % 60, id * 17 % 1_000_000)),
            some(format!("2013-03-31 01:{:02}:00+02:00", id % 60)),
            some(format!("{}.{:02}", id - 2000, id % 100)),
        ));
    }
    Ok(std::fs::write(folder.join("raw.csv"), text)?)
}

/// A home with a PostgreSQL warehouse and a SQLite side.
pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    _postgres: Postgres,
    pool: PgPool,
    pub(super) destinations: [String; 2],
}

impl World {
    pub(super) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let postgres = Postgres::start().await?;
        Ok(Self {
            pool: postgres.pool("postgres").await?,
            destinations: [
                format!("warehouse={}", postgres.url("postgres")),
                format!("side=sqlite:{}", folder.path().join("side.db").display()),
            ],
            _postgres: postgres,
            folder,
        })
    }

    pub(super) fn verb(&self, args: &[&str]) -> Verb {
        let mut verb = Verb::new(self.folder.path()).args(args.iter().copied());
        for destination in &self.destinations {
            verb = verb.args(["--destination", destination]);
        }
        verb
    }

    pub(super) async fn run(&self, more: &[&str]) -> Result<String> {
        let args = [&["run", "pipeline.yaml"][..], more].concat();
        self.verb(&args).output().await?.success()?;
        newest_run(self.folder.path()).await
    }

    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await?;
        Ok(())
    }

    async fn side(&self) -> Result<SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join("side.db"));
        Ok(options.connect().await?)
    }

    pub(super) async fn verify(&self, run: &str, load: &str) -> Result<Output> {
        self.verb(&["verify", run, "--load", load]).output().await
    }

    pub(super) async fn receipt(&self, run: &str) -> Result<Value> {
        receipt(Verb::new(self.folder.path()), run).await
    }
}

async fn receipt(verb: Verb, run: &str) -> Result<Value> {
    let said = verb.args(["receipt", run, "--output", "json"]).output().await?;
    said.success()?.json()
}

/// The receipt of a load.
fn load_of<'a>(receipt: &'a Value, load: &str) -> Result<&'a Value> {
    let loads = receipt["loads"].as_array().context("no loads")?;
    loads.iter().find(|found| found["load"] == load).context("no such load")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_adds_up_and_whatever_is_changed_by_hand_is_found() -> Result<()> {
    let world = World::start().await?;
    source(world.folder.path())?;
    std::fs::write(world.folder.path().join("pipeline.yaml"), PIPELINE)?;
    world.execute(WAREHOUSE).await?;
    let run = world.run(&[]).await?;

    let made = world.receipt(&run).await?;
    let shown = Verb::new(world.folder.path()).args(["show", &run, "--output", "json"]);
    let shown = shown.output().await?.success()?.json()?;
    for load in run_of(&shown)["loads"].as_array().context("no loads")? {
        let name = load["name"].as_str().context("no name")?;
        let mine = load_of(&made, name)?;
        let chunks = mine["chunks"].as_array().context("no chunks")?;
        ensure!(chunks.len() > 3, "{name}: {} chunks", chunks.len());
        for count in ["read", "passed", "filtered", "rejected", "staged"] {
            let sum: u64 = chunks.iter().filter_map(|chunk| chunk["rows"][count].as_u64()).sum();
            let counted = if count == "staged" {
                &load[count]
            } else {
                &load["counts"][count]
            };
            ensure!(
                mine["total"][count] == sum && *counted == sum && sum > 0,
                "{name} {count}: {sum} of {mine} and {load}"
            );
        }
        ensure!(mine["published"] == load["published"], "{name}: {mine}");
        let mut sum = 0_u128;
        for chunk in chunks {
            let text = chunk["rows"]["checksum"]["sum"].as_str().context("no sum")?;
            sum = sum.wrapping_add(u128::from_str_radix(text, 16)?);
        }
        ensure!(
            mine["total"]["checksum"]["sum"] == format!("{sum:032x}"),
            "{name}: {mine}"
        );
    }
    // The same rows are the same sum, wherever they went.
    let sum = |load: &str| Ok::<_, anyhow::Error>(load_of(&made, load)?["total"]["checksum"].clone());
    ensure!(sum("fresh")? == sum("side")? && sum("odd")? != sum("fresh")?, "{made}");

    for load in ["fresh", "added", "keyed", "merged", "odd", "side", "side_added"] {
        world
            .verify(&run, load)
            .await?
            .success()
            .with_context(|| load.to_owned())?;
    }
    let odd = world.verify(&run, "odd").await?.success()?;
    for part in [
        "column code is left out: character(40)",
        "column doc is left out: jsonb",
        "each by itself",
    ] {
        ensure!(odd.stdout.contains(part), "{part:?} is not in {}", odd.stdout);
    }
    // Into a table with rows, without provenance: honest about it.
    let old = world.verify(&run, "old").await?;
    old.failure(&["can't be told", "leave no trace", "provenance: true"])?;
    // All loads at once, of which one can't be told.
    let all = world.verb(&["verify", &run, "--output", "json"]).output().await?;
    let answers: Vec<Value> = all.json_lines()?.iter().map(|load| load["answer"].clone()).collect();
    ensure!(
        all.code == 1 && answers.iter().filter(|answer| *answer == "holds").count() == 7,
        "{answers:?}"
    );

    tampered(&world, &run).await?;
    tampered_side(&world, &run).await?;

    // A run of which nothing stands, and one that there never was.
    world
        .verb(&["verify", "nothing"])
        .output()
        .await?
        .failure(&["there is no run nothing"])?;
    world.verify(&run, "frsh").await?.failure(&["no such load", "fresh"])?;
    let again = world.run(&["--param", "shift=1"]).await?;
    world.verify(&again, "fresh").await?.success()?;
    let replaced = world.verify(&run, "fresh").await?;
    replaced.failure(&["can't be told", &again])?;
    // Rows that name their run are still there, beside others.
    world.verify(&run, "side_added").await?.success()?;
    Ok(())
}

async fn tampered(world: &World, run: &str) -> Result<()> {
    world.execute("CREATE TABLE kept AS SELECT * FROM fresh").await?;
    for (sql, parts) in [
        ("DELETE FROM fresh WHERE id = 1", vec!["1 row is missing"]),
        (
            "INSERT INTO fresh SELECT * FROM fresh WHERE id IN (1, 2)",
            vec!["2 rows are too many"],
        ),
        // As many as before.
        (
            "DELETE FROM fresh WHERE id = 1; INSERT INTO fresh SELECT * FROM fresh WHERE id = 2",
            vec!["column id: its values", "column note"],
        ),
        (
            "UPDATE fresh SET amount = amount + 0.01 WHERE id = 3",
            vec!["column amount: its values are not those that were published"],
        ),
        ("UPDATE fresh SET note = NULL WHERE id = 1", vec!["column note"]),
        (
            "UPDATE fresh SET at = at + '1 microsecond' WHERE id = 2",
            vec!["column at"],
        ),
        ("UPDATE fresh SET d = 1.5 WHERE id = 1", vec!["column d"]),
        ("UPDATE fresh SET yes = NOT yes WHERE id = 1", vec!["column yes"]),
        // Each column has the same values as before.
        (
            "UPDATE fresh SET note = CASE id WHEN 3 THEN 'note 11' ELSE 'note 3' END WHERE id IN (3, 11)",
            vec!["values have changed places"],
        ),
    ] {
        world.execute(sql).await?;
        let said = world.verify(run, "fresh").await?;
        said.failure(&[&["DIFFERS"][..], &parts[..]].concat())
            .with_context(|| sql.to_owned())?;
        world
            .execute("TRUNCATE fresh; INSERT INTO fresh SELECT * FROM kept")
            .await?;
        world.verify(run, "fresh").await?.success()?;
    }
    let said = |column: &str| -> Vec<String> { vec!["DIFFERS".into(), column.into()] };
    for (sql, parts) in [
        (
            "ALTER TABLE fresh ALTER COLUMN big TYPE text",
            said("column big: it is text now"),
        ),
        ("ALTER TABLE fresh DROP COLUMN big", said("column big: it is gone")),
        ("DROP TABLE fresh", said("table fresh is gone, and all rows with it")),
        // Among the rows of other runs, and by the keys.
        ("DELETE FROM added WHERE id = 2", said("1 row is missing")),
        ("UPDATE keyed SET moved = 7 WHERE id = 2", said("column moved")),
        ("DELETE FROM keyed WHERE id = 3", said("1 row is missing")),
        (
            "UPDATE odd SET amount = amount + 0.000001 WHERE id = 2",
            said("column amount"),
        ),
    ] {
        world.execute(sql).await?;
        let load = sql
            .split(' ')
            .find(|word| ["fresh", "added", "keyed", "odd"].contains(word));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let said = world.verify(run, load.context("no load")?).await?;
        said.failure(&parts).with_context(|| sql.to_owned())?;
    }
    world
        .execute("INSERT INTO added SELECT * FROM added WHERE id = 1")
        .await?;
    world
        .verify(run, "added")
        .await?
        .failure(&["column id"])
        .context("one row less, and one twice")?;
    world
        .execute("DROP TABLE added; CREATE TABLE added (id int, _haulage_run text)")
        .await?;
    world
        .verify(run, "added")
        .await?
        .failure(&["column note: it is gone"])?;
    world.execute("DROP TABLE added").await?;
    world.verify(run, "added").await?.failure(&["table added is gone"])?;
    // For the runs that come after.
    world.execute("DROP TABLE IF EXISTS keyed, odd").await?;
    world
        .execute(WAREHOUSE.split("CREATE TABLE old").next().unwrap_or_default())
        .await
}

async fn tampered_side(world: &World, run: &str) -> Result<()> {
    let mut side = world.side().await?;
    sqlx::raw_sql("CREATE TABLE kept AS SELECT * FROM side")
        .execute(&mut side)
        .await?;
    for (sql, part) in [
        ("DELETE FROM side WHERE id = 1", "1 row is missing"),
        ("INSERT INTO side SELECT * FROM side WHERE id = 1", "1 row is too many"),
        ("UPDATE side SET amount = '7.77' WHERE id = 3", "column amount"),
        ("UPDATE side SET d = 1.25 WHERE id = 2", "column d"),
        (
            "UPDATE side SET big = 'much' WHERE id = 3",
            "can't be read as what was published",
        ),
        (
            "UPDATE side SET note = CASE id WHEN 3 THEN 'note 11' ELSE 'note 3' END WHERE id IN (3, 11)",
            "values have changed places",
        ),
    ] {
        sqlx::raw_sql(sql).execute(&mut side).await?;
        world
            .verify(run, "side")
            .await?
            .failure(&["DIFFERS", part])
            .with_context(|| sql.to_owned())?;
        sqlx::raw_sql("DELETE FROM side; INSERT INTO side SELECT * FROM kept")
            .execute(&mut side)
            .await?;
        world.verify(run, "side").await?.success()?;
    }
    sqlx::raw_sql("DROP TABLE kept").execute(&mut side).await?;
    Ok(())
}

const SMALL: &str = r#"pipeline: small
sources: {raw: {csv: small.csv, columns: {id: int!, day: date, name: text}}}
loads:
  side: {from: raw, to: side, table: side, mode: append, provenance: true}
  here: {from: raw, to: warehouse, table: here, mode: append}
  kept: {from: raw, to: warehouse, table: kept, mode: replace}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_way_of_an_answer_is_said_and_is_no_difference() -> Result<()> {
    let world = World::start().await?;
    let folder = world.folder.path();
    std::fs::write(
        folder.join("small.csv"),
        "id,day,name\n1,2020-01-01,a\n2,2020-01-02,b\n",
    )?;
    std::fs::write(folder.join("pipeline.yaml"), SMALL)?;
    sqlx::raw_sql(
        "CREATE TABLE side (ID INTEGER, Day TEXT, NAME TEXT, _HAULAGE_RUN TEXT, _haulage_chunk TEXT, _haulage_line INTEGER)",
    )
    .execute(&mut SqliteConnectOptions::new().filename(folder.join("side.db")).create_if_missing(true).connect().await?)
    .await?;
    let run = world.run(&[]).await?;
    let row = world
        .verb(&["why", "side", "Id=2", "--output", "json"])
        .output()
        .await?;
    ensure!(row.success()?.json()?["rows"][0]["line"] == 3);
    // To whoever is told so, the bare name is that of another table.
    world
        .execute(
            "CREATE SCHEMA other; CREATE TABLE other.here (id int, _haulage_run text); CREATE TABLE other.kept (id int);
             ALTER ROLE CURRENT_USER SET search_path = other, public",
        )
        .await?;
    world.verb(&["verify", &run]).output().await?.success()?;
    // Under another name of its server it is the same.
    let named = world.destinations[0].replace("127.0.0.1", "localhost");
    ensure!(named != world.destinations[0], "{named}");
    let verify = async |destination: &str, load: &str| {
        let verb = Verb::new(folder).args(["verify", &run, "--load", load]);
        verb.args(["--destination", destination]).output().await
    };
    let said = verify(&named, "kept").await?.success()?;
    ensure!(said.stdout.contains("if that isn't the same"), "{}", said.stdout);
    world.execute("CREATE DATABASE elsewhere").await?;
    let (server, _) = named.rsplit_once('/').context("an address")?;
    let nowhere = format!("{server}/elsewhere");
    verify(&nowhere, "kept")
        .await?
        .failure(&["can't be told", "give the address of the former"])?;
    // The first load's destination isn't known; the others are answered all the same.
    let verb = Verb::new(folder).args([
        "verify",
        &run,
        "--output",
        "json",
        "--destination",
        &world.destinations[0],
    ]);
    let all = verb.output().await?;
    let answers: Vec<Value> = all.json_lines()?.iter().map(|load| load["answer"].clone()).collect();
    ensure!(
        all.code == 1 && answers == ["unknown", "holds", "holds"],
        "{answers:?}: {all:?}"
    );
    // A policy hides rows, which are not gone.
    world
        .execute(
            "CREATE ROLE reader LOGIN PASSWORD 'reader'; GRANT USAGE ON SCHEMA haulage TO reader;
             GRANT SELECT ON ALL TABLES IN SCHEMA haulage, public TO reader;
             ALTER TABLE kept ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON kept TO reader USING (id = 1)",
        )
        .await?;
    let (scheme, at) = world.destinations[0].split_once("://").context("no address")?;
    let at = at.split_once('@').map_or(at, |(_, at)| at);
    let reader = format!("{scheme}://reader:reader@{at}");
    verify(&reader, "kept")
        .await?
        .failure(&["can't be told", "row-level security"])?;
    // A time that no type here holds.
    world
        .execute("UPDATE public.kept SET day = '10000-01-01' WHERE id = 1")
        .await?;
    let said = world.verify(&run, "kept").await?;
    said.failure(&["can't be told", "column day: times before the year 1 and after 9999"])?;
    world.execute("UPDATE public.kept SET name = 'c' WHERE id = 1").await?;
    world.verify(&run, "kept").await?.failure(&["DIFFERS", "column name"])?;
    // What rows were told by is gone.
    world
        .execute("ALTER TABLE public.here DROP COLUMN _haulage_run")
        .await?;
    let said = world.verify(&run, "here").await?;
    said.failure(&["can't be told", "table here has no column _haulage_run any more"])?;
    let mut side = world.side().await?;
    sqlx::raw_sql("ALTER TABLE side DROP COLUMN _haulage_chunk")
        .execute(&mut side)
        .await?;
    let said = world.verify(&run, "side").await?;
    said.failure(&["DIFFERS", "column _haulage_chunk: it is gone"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_and_goes_on_comes_to_the_same_sum() -> Result<()> {
    let (killed, whole) = (World::start().await?, World::start().await?);
    for world in [&killed, &whole] {
        source(world.folder.path())?;
        std::fs::write(world.folder.path().join("pipeline.yaml"), PIPELINE)?;
        world.execute(WAREHOUSE).await?;
    }
    let mut process = killed
        .verb(&["run", "pipeline.yaml", "--slots", "2"])
        .env("HAULAGE_FAULT", "slow@segment:300ms")
        .spawn("run")?;
    until("some segments stand", Duration::from_secs(60), async || {
        let sql = "SELECT to_regclass('haulage.marks_' || area)::text FROM haulage.loads WHERE load = 'old'";
        // Until it is prepared there is nothing to ask.
        let area: Option<Option<String>> = sqlx::query_scalar(sql)
            .fetch_optional(&killed.pool)
            .await
            .unwrap_or_default();
        let Some(Some(area)) = area else {
            return Ok(None);
        };
        let marks: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {area}")))
            .fetch_one(&killed.pool)
            .await?;
        Ok((marks >= 3).then_some(()))
    })
    .await?;
    process.kill().await?;
    let run = killed.run(&[]).await?;
    let shown = Verb::new(killed.folder.path()).args(["show", &run, "--output", "json"]);
    let shown = shown.output().await?.success()?.json()?;
    let resumed: u64 = events(&shown, "chunk_staged")
        .iter()
        .filter_map(|event| event["event"]["report"]["resumed"].as_u64())
        .sum();
    ensure!(resumed > 0, "no segment was taken over: {shown}");
    let other = whole.run(&[]).await?;
    let (mine, theirs) = (killed.receipt(&run).await?, whole.receipt(&other).await?);
    for load in ["fresh", "added", "keyed", "merged", "odd", "old", "side", "side_added"] {
        let (mine, theirs) = (&load_of(&mine, load)?["total"], &load_of(&theirs, load)?["total"]);
        ensure!(
            mine == theirs && mine["checksum"]["rows"] == mine["staged"],
            "{load}: {mine} and {theirs}"
        );
        if load != "old" {
            killed
                .verify(&run, load)
                .await?
                .success()
                .with_context(|| load.to_owned())?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_answers_through_its_nodes() -> Result<()> {
    let numbers = Numbers::start(2, "", "", "").await?;
    let loads = [
        "added: {from: some, to: warehouse, table: added, mode: append, provenance: true}",
        "beside: {from: some, to: side, table: beside, mode: replace}",
    ];
    let run = numbers.submit(&loads, &[]).await?;
    numbers.cluster.watch(&run).await?.success()?;
    let verb = |args: &[&str]| numbers.cluster.client().args(args.iter().copied());
    let said = verb(&["verify", &run]).output().await?.success()?;
    ensure!(said.stdout.matches("holds").count() == 2, "{}", said.stdout);
    let made = receipt(numbers.cluster.client(), &run).await?;
    ensure!(load_of(&made, "added")?["total"]["staged"] == 12_000, "{made}");
    let said = verb(&["receipt", &run, "--load", "added"]).output().await?.success()?;
    ensure!(
        said.stdout.contains("numbers.csv") && said.stdout.contains("12,000"),
        "{}",
        said.stdout
    );
    let row = verb(&["why", "added", "id=7001", "--output", "json"])
        .output()
        .await?
        .success()?;
    ensure!(row.json()?["rows"][0]["line"] == 7003, "{}", row.stdout);
    sqlx::raw_sql("DELETE FROM added WHERE id BETWEEN 7 AND 8")
        .execute(&numbers.pool)
        .await?;
    let said = verb(&["verify", &run]).output().await?;
    said.failure(&["2 rows are missing", "chunk 0.0", "numbers.csv"])?;
    verb(&["verify", "no-run"])
        .output()
        .await?
        .failure(&["there is no run no-run"])?;
    verb(&["verify", &run, "--load", "x"])
        .output()
        .await?
        .failure(&["has no load x"])?;
    let said = verb(&["why", "added", "idd=7"]).output().await?;
    said.failure(&["has no column idd"])?;
    // A revert in a cluster is an answer too.
    let args = ["revert", &run, "--watch", "--reason", "wrong"];
    numbers.cluster.client().args(args).output().await?.success()?;
    verb(&["verify", &run]).output().await?.failure(&["is reverted"])?;
    Ok(())
}
