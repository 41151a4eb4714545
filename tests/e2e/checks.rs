//! Checks before the publish: each one at its edge, on both kinds of destination; what fails for them, and what doesn't.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgPool, SqliteConnection};

use super::support::cluster::run_of;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run};

/// A folder with data, and the warehouse that its runs publish to.
pub(super) struct Stage {
    folder: tempfile::TempDir,
    warehouse: Warehouse,
    submissions: AtomicU32,
}

pub(super) enum Warehouse {
    Postgres(Postgres, PgPool),
    Sqlite(PathBuf),
    Files(PathBuf),
}

/// Ten rows that are read and one that is rejected. `price` has two values apart, `v` one that is far from the rest.
pub(super) const ROWS: &str = "\
id,name,v,price,kind,day,at,x,f,w
1,ann,1,10.50,a,2024-01-01,2024-01-01T00:00:00,5,0.1,1
2,bob,2,10.50,a,2024-01-02,2024-01-02T00:00:00,5,0.1,1
3,cid,3,10.50,a,2024-01-03,2024-01-03T00:00:00,5,0.1,1
4,dan,4,10.50,b,2024-01-04,2024-01-04T00:00:00,5,0.1,1
5,eve,5,10.50,b,2024-01-05,2024-01-05T00:00:00,5,0.1,1
6,eve,6,10.50,b,2024-01-06,2024-01-06T00:00:00,5,0.1,1
7,,7,10.50,b,2024-01-07,2024-01-07T00:00:00,5,0.1,1
8,ida,8,10.50,c,2024-01-08,2024-01-08T12:30:00.25,5,0.1,1
9,jan,9,2.25,c,2024-01-09,2024-01-09T00:00:00,6,0.1,1
10,kim,1000,2.25,\"it's\",2024-01-10,2024-01-10T00:00:00,4,0.1,inf
eleven,,,,,,,,,
";

/// Values at the ends of arithmetic: whole numbers that doubles don't tell apart, signs, NaN, what squares overflow or
/// underflow with, and a time ahead.
const MORE: &str = "CAST(9007199254740992 + id AS decimal(20,0)) AS big, CAST(6 - id AS decimal(12,2)) AS around, \
    CASE WHEN id = 3 THEN CAST('NaN' AS double) ELSE id END AS nan, \
    CASE id WHEN 9 THEN 1e-200 WHEN 10 THEN 1e200 ELSE id END AS huge, now() + INTERVAL '3 days' AS ahead";

impl Stage {
    pub(super) async fn postgres() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let pool = postgres.create("warehouse").await?;
        Self::on(Warehouse::Postgres(postgres, pool))
    }

    pub(super) fn sqlite() -> Result<Self> {
        let stage = Self::on(Warehouse::Sqlite(PathBuf::new()))?;
        let warehouse = Warehouse::Sqlite(stage.folder.path().join("warehouse.db"));
        Ok(Self { warehouse, ..stage })
    }

    fn url(&self) -> String {
        match &self.warehouse {
            Warehouse::Postgres(postgres, _) => postgres.url("warehouse"),
            Warehouse::Sqlite(path) => format!("sqlite:{}", path.display()),
            Warehouse::Files(lake) => format!("file://{}", lake.display()),
        }
    }

    /// Files in a folder.
    pub(super) fn files() -> Result<Self> {
        let stage = Self::on(Warehouse::Files(PathBuf::new()))?;
        let lake = stage.folder.path().join("lake");
        std::fs::create_dir(&lake)?;
        let warehouse = Warehouse::Files(lake);
        Ok(Self { warehouse, ..stage })
    }

    /// The folder of its tables, if they are files.
    pub(super) fn lake(&self) -> Option<&Path> {
        match &self.warehouse {
            Warehouse::Postgres(..) | Warehouse::Sqlite(_) => None,
            Warehouse::Files(lake) => Some(lake),
        }
    }

    fn on(warehouse: Warehouse) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("rows.csv"), ROWS)?;
        Ok(Self {
            folder,
            warehouse,
            submissions: AtomicU32::new(0),
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the pipeline with these checks, one a line of the file, and these loads beside `out`.
    async fn run(&self, mode: &str, checks: &[&str], loads: &[&str]) -> Result<Output> {
        let list = |head: &str, items: &[&str]| items.iter().map(|item| format!("{head}{item}\n")).collect::<String>();
        // Every text is another submission, so that each call is another run.
        let submission = self.submissions.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "# {submission}\npipeline: p\nsources:\n  raw:\n    csv: rows.csv\n    columns: {{id: int!, name: text, v: double, \
             price: \"decimal(10,2)\", kind: text, day: date, at: timestamp, x: int, f: float, w: double}}\nsteps:\n  fresh: SELECT *, \
             now() - INTERVAL '1 hour' AS seen, {MORE} FROM raw\nloads:\n  out: {{from: fresh, to: warehouse, table: out, \
             mode: {mode}, key: [id]}}\n{}checks:\n{}",
            list("  ", loads),
            list("  - ", checks)
        );
        std::fs::write(self.path().join("pipeline.yaml"), text)?;
        self.verb(&["run", "pipeline.yaml"]).output().await
    }

    /// A call that knows the warehouse.
    pub(super) fn verb(&self, args: &[&str]) -> Verb {
        let url = self.url();
        Verb::new(self.path())
            .args(args.iter().copied())
            .env("HAULAGE_DESTINATION_WAREHOUSE", url)
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.warehouse, Warehouse::Postgres(..))
    }

    /// The newest run, as `show` has it.
    pub(super) async fn shown(&self) -> Result<Value> {
        let run = newest_run(self.path()).await?;
        let shown = Verb::new(self.path()).args(["show", &run, "--output", "json"]);
        shown.output().await?.success()?.json()
    }

    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        match &self.warehouse {
            Warehouse::Postgres(_, pool) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await?;
            }
            Warehouse::Sqlite(path) => {
                let mut connection = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await?;
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
                connection.close().await?;
            }
            Warehouse::Files(_) => anyhow::bail!("files know no SQL"),
        }
        Ok(())
    }

    /// The texts that a query gives.
    pub(super) async fn texts(&self, sql: &str) -> Result<Vec<String>> {
        let query = sqlx::query_scalar(AssertSqlSafe(sql));
        Ok(match &self.warehouse {
            Warehouse::Postgres(_, pool) => query.fetch_all(pool).await?,
            Warehouse::Sqlite(path) => {
                let mut connection = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await?;
                let query = sqlx::query_scalar(AssertSqlSafe(sql));
                let texts = query.fetch_all(&mut connection).await?;
                connection.close().await?;
                texts
            }
            Warehouse::Files(_) => anyhow::bail!("files know no SQL"),
        })
    }

    /// The tables of staging areas, or their files.
    pub(super) async fn staging(&self) -> Result<Vec<String>> {
        let query = match &self.warehouse {
            Warehouse::Postgres(..) => {
                "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND (relname LIKE 'stage_%' OR relname LIKE 'marks_%' \
                 OR relname LIKE 'aside_%')"
            }
            Warehouse::Sqlite(_) => {
                "SELECT name FROM sqlite_schema WHERE name LIKE '_haulage_stage_%' OR name LIKE '_haulage_aside_%'"
            }
            Warehouse::Files(lake) => {
                let loads = std::fs::read_dir(lake.join("out/_haulage/loads"));
                let left = loads
                    .into_iter()
                    .flatten()
                    .map(|entry| Ok(entry?.path().display().to_string()));
                return left.collect();
            }
        };
        self.texts(query).await
    }
}

/// A check, whether it holds, and what it has to say.
const EDGES: [(&str, bool, &str); 68] = [
    ("{accepted: {f: [0.1]}}", true, "0 rows"),
    ("{range: {f: [0.1, 0.1]}, name: one value}", true, "0 rows"),
    (
        "{outliers: {column: w, method: zscore}}",
        false,
        "1 value of 10 outside 1.0000..1.0000: ",
    ),
    (
        "{outliers: {column: w, allowed: \"<= 10%\"}, name: an infinite one is fine}",
        true,
        "1 value of 10 outside 1.0000..1.0000: ",
    ),
    (
        "{outliers: {column: huge, method: zscore, beyond: 2.8}}",
        false,
        "1 value of 10 outside",
    ),
    (
        "{outliers: {column: huge, method: mad, allowed: \"<= 1\"}}",
        true,
        "1 value of 10 outside",
    ),
    (
        "{outliers: {column: huge, method: iqr}}",
        false,
        "1 value of 10 outside",
    ),
    (
        "{accepted: {big: [9007199254740992]}}",
        false,
        "10 rows with another value: 9007199254740993, ",
    ),
    ("{range: {big: [9007199254740993, 9007199254741002]}}", true, "0 rows"),
    (
        "{range: {big: [9007199254740994, null]}}",
        false,
        "1 row out of range: 9007199254740993",
    ),
    (
        "{range: {big: [null, 9007199254741001]}}",
        false,
        "1 row out of range: 9007199254741002",
    ),
    (
        "{accepted: {around: [5, 4, 3, 2, 1, 0, -1, -2.0, -3, -4]}}",
        true,
        "0 rows",
    ),
    ("{range: {around: [-4, 5]}}", true, "0 rows"),
    ("{range: {around: [-3.99, null]}}", false, "1 row out of range: -4"),
    ("{range: {around: [null, 4.99]}}", false, "1 row out of range: 5"),
    ("{range: {around: [null, -1]}}", false, "6 rows out of range"),
    ("{range: {around: [0.01, null]}}", false, "5 rows out of range"),
    ("{range: {nan: [1, null]}}", false, "1 row out of range: NaN"),
    ("{range: {nan: [null, 10]}}", false, "1 row out of range: NaN"),
    ("{fresh: {ahead: 10 days}}", false, "the newest lies 2days 23h"),
    ("{references: {id: kinds.nope}}", false, "it can't be made"),
    ("{references: {id: nowhere.id}}", false, "it can't be made"),
    (
        "{sql: SELECT count(*) FROM staged GROUP BY kind}",
        false,
        "it can't be made",
    ),
    ("{outliers: {column: f}}", true, "0 values of 10 outside"),
    ("{not_null: id}", true, "0 rows"),
    ("{not_null: [id, name]}", false, "1 row without a value there"),
    ("{unique: id}", true, "no value is there twice"),
    ("{unique: [kind, id]}", true, "no value is there twice"),
    ("{unique: name}", false, "2 rows share 1 value, such as eve"),
    ("{unique: [name, kind]}", false, "2 rows share 1 value, such as eve, b"),
    ("{row_count: \">= 10\"}", true, "10 rows"),
    ("{row_count: \"> 10\"}", false, "10 rows"),
    ("{row_count: \"= 10\"}", true, "10 rows"),
    ("{row_count: \"< 10\"}", false, "10 rows"),
    ("{row_count: {within: 0%, of_last: 3}}", true, "no earlier run"),
    ("{rejects: \"<= 1\"}", true, "1 of 11 rows rejected"),
    ("{rejects: \"< 1\"}", false, "1 of 11 rows rejected"),
    ("{rejects: \"<= 9.1%\"}", true, "1 of 11 rows rejected"),
    ("{rejects: \"<= 9%\"}", false, "1 of 11 rows rejected"),
    ("{accepted: {kind: [a, b, c, \"it's\"]}}", true, "0 rows"),
    (
        "{accepted: {kind: [a, b]}}",
        false,
        "3 rows with another value: c, it's",
    ),
    ("{accepted: {price: [10.5, 2.25]}}", true, "0 rows"),
    (
        "{accepted: {day: [2024-01-01]}}",
        false,
        "9 rows with another value: 2024-01-02, ",
    ),
    ("{range: {v: [1, 1000]}}", true, "0 rows"),
    ("{range: {v: [1.001, 999.999]}}", false, "2 rows out of range: 1"),
    ("{range: {id: [null, 10]}}", true, "0 rows"),
    ("{range: {id: [2, null]}}", false, "1 row out of range: 1"),
    ("{range: {price: [2.25, 10.5]}}", true, "0 rows"),
    ("{range: {price: [2.26, null]}}", false, "2 rows out of range: 2.25"),
    ("{range: {day: [2024-01-01, 2024-01-10]}}", true, "0 rows"),
    (
        "{range: {day: [null, 2024-01-09]}}",
        false,
        "1 row out of range: 2024-01-10",
    ),
    (
        "{range: {at: [2024-01-01T00:00:00, \"2024-01-10 00:00:00\"]}}",
        true,
        "0 rows",
    ),
    (
        "{range: {at: [2024-01-08T12:30:00.26, null]}}",
        false,
        "8 rows out of range: 2024-01-01 00:00:00",
    ),
    ("{fresh: {seen: 2h}}", true, "the newest is 1h"),
    ("{fresh: {seen: 59 minutes}}", false, "the newest is 1h"),
    ("{fresh: {day: 2 days}}", false, "the newest is"),
    (
        "{references: {kind: public.kinds.kind}}",
        false,
        "1 row whose value isn't there: it's",
    ),
    ("{references: {id: kinds.id}}", true, "0 rows"),
    ("{outliers: {column: v}}", false, "1 value of 10 outside"),
    (
        "{outliers: {column: v, allowed: \"<= 1\"}, name: one is fine}",
        true,
        "1 value of 10 outside",
    ),
    (
        "{outliers: {column: v, allowed: \"< 10%\"}, name: not a tenth}",
        false,
        "1 value of 10 outside",
    ),
    (
        "{outliers: {column: v, method: zscore}}",
        true,
        "0 values of 10 outside",
    ),
    (
        "{outliers: {column: v, method: zscore, beyond: 2.8}}",
        false,
        "1 value of 10 outside",
    ),
    (
        "{outliers: {column: v, method: iqr}}",
        false,
        "1 value of 10 outside -3.5000..14.5000: 1000",
    ),
    (
        "{outliers: {column: x, method: mad, beyond: 4}}",
        true,
        "0 values of 10 outside",
    ),
    (
        "{sql: \"SELECT count(*) FROM staged WHERE v > 1000\"}",
        true,
        "the query gave 0",
    ),
    (
        "{sql: \"SELECT max(v) - min(id) FROM staged -- the end\", expect: \"= 999\"}",
        true,
        "the query gave 999",
    ),
    (
        "{sql: \"SELECT NULL\", name: null is nothing}",
        false,
        "the query gave NULL",
    ),
];

async fn each_check_holds_or_fails_at_its_edge(stage: &Stage) -> Result<()> {
    stage
        .execute(
            "CREATE TABLE kinds (id integer, kind text);
             INSERT INTO kinds VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'a'), (5, 'a'), (6, 'a'), (7, 'a'), (8, 'a'), \
             (9, 'a'), (10, NULL)",
        )
        .await?;
    let warn: Vec<String> = EDGES
        .iter()
        .enumerate()
        .map(|(n, (check, _, _))| {
            let name = if check.contains("name:") {
                String::new()
            } else {
                format!(", name: check {n}")
            };
            format!("{}{name}, on_fail: warn}}", &check[..check.len() - 1])
        })
        .collect();
    let warn: Vec<&str> = warn.iter().map(String::as_str).collect();
    let said = stage.run("merge", &warn, &[]).await?.success()?;
    let shown = stage.shown().await?;
    let run = run_of(&shown);
    ensure!(run["state"] == "published", "{run}");
    let checks = run["loads"][0]["checks"].as_array().context("checks are shown")?;
    ensure!(checks.len() == EDGES.len(), "{} checks", checks.len());
    for ((check, holds, words), found) in EDGES.iter().zip(checks) {
        let words_found = found["found"].as_str().unwrap_or_default();
        ensure!(
            found["holds"] == *holds && found["blocks"] == false && words_found.contains(words),
            "{check}: {found}"
        );
    }
    // A person is told, too.
    let failing = EDGES.iter().filter(|(_, holds, _)| !holds).count();
    let warnings = said.stdout.matches("warning: ").count() + said.stderr.matches("warning: ").count();
    ensure!(
        warnings >= failing,
        "{warnings} warnings\n{}\n{}",
        said.stdout,
        said.stderr
    );
    let run = newest_run(stage.path()).await?;
    let page = Verb::new(stage.path())
        .args(["show", &run])
        .output()
        .await?
        .success()?
        .stdout;
    ensure!(page.contains("check 10") && page.contains("such as eve"), "{page}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_holds_or_fails_at_its_edge_in_postgres() -> Result<()> {
    each_check_holds_or_fails_at_its_edge(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_holds_or_fails_at_its_edge_in_sqlite() -> Result<()> {
    each_check_holds_or_fails_at_its_edge(&Stage::sqlite()?).await
}

/// Of two loads neither is published, though only one has a check, and every failing check is named at once.
async fn a_check_that_fails_publishes_nothing(stage: &Stage) -> Result<()> {
    let other = "other: {from: raw, to: warehouse, table: other, mode: replace}";
    stage
        .run("merge", &["{load: out, row_count: \"= 10\"}"], &[other])
        .await?
        .success()?;
    let target = "SELECT CAST(id AS text) || coalesce(name, '-') || CAST(v AS text) FROM out ORDER BY id";
    let before = stage.texts(target).await?;
    ensure!(before.len() == 10);
    std::fs::write(stage.path().join("rows.csv"), ROWS.replace("1,ann,1,", "1,ann,77,"))?;
    let checks = [
        "{load: out, unique: name}",
        "{load: out, row_count: \"> 10\", name: enough rows}",
        "{load: out, range: {v: [0, 2000]}}",
        "{load: other, not_null: kind, on_fail: warn}",
    ];
    let said = stage.run("merge", &checks, &[other]).await?;
    said.failure(&[
        "2 checks failed, so nothing is published",
        "load out: unique name: 2 rows share 1 value, such as eve",
        "load out: enough rows: 10 rows",
    ])?;
    let shown = stage.shown().await?;
    let run = run_of(&shown);
    ensure!(run["state"] == "failed", "{run}");
    let holds: Vec<&Value> = run["loads"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|load| load["checks"].as_array().into_iter().flatten())
        .map(|check| &check["holds"])
        .collect();
    ensure!(holds == [false, false, true, true], "what they found is kept: {run}");
    ensure!(stage.texts(target).await? == before, "something was published");
    ensure!(stage.staging().await?.is_empty(), "{:?}", stage.staging().await?);

    let said = stage
        .run("merge", &["{load: out, range: {v: [0, 2000]}}"], &[other])
        .await?
        .success()?;
    ensure!(format!("{}{}", said.stdout, said.stderr).contains("1 check holds"));
    ensure!(stage.texts(target).await?[0] != before[0], "the next run publishes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_publishes_nothing_in_postgres() -> Result<()> {
    a_check_that_fails_publishes_nothing(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_publishes_nothing_in_sqlite() -> Result<()> {
    a_check_that_fails_publishes_nothing(&Stage::sqlite()?).await
}

/// Runs that failed don't count, and of the others only the last two.
async fn rows_are_held_against_earlier_runs(stage: &Stage) -> Result<()> {
    let check = ["{row_count: {within: 20%, of_last: 2}}"];
    for (rows, refused) in [
        (10, None),
        (12, None),
        (14, Some("14 rows beside 11.0 in the mean of 2 earlier runs")),
        (13, None),
        (10, None),
        (9, Some("9 rows beside 11.5 in the mean of 2 earlier runs")),
    ] {
        let first = ROWS.lines().take(1 + rows.min(10)).map(|line| format!("{line}\n"));
        let more = (11..=rows).map(|id| format!("{id},more,1,1,a,2024-01-01,2024-01-01T00:00:00,5,0.1,1\n"));
        std::fs::write(stage.path().join("rows.csv"), first.chain(more).collect::<String>())?;
        let said = stage.run("replace", &check, &[]).await?;
        match refused {
            None => said.success()?,
            Some(words) => said.failure(&[words])?,
        };
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_held_against_earlier_runs_in_postgres() -> Result<()> {
    rows_are_held_against_earlier_runs(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_held_against_earlier_runs_in_sqlite() -> Result<()> {
    rows_are_held_against_earlier_runs(&Stage::sqlite()?).await
}

/// A replay has a few rows of a run, and its publish says nothing about how many there should be.
async fn a_replay_is_no_earlier_run(stage: &Stage) -> Result<()> {
    let rows: String = (1..=11).map(|id| format!("{id}\n")).collect();
    std::fs::write(stage.path().join("few.csv"), format!("id\n{rows}"))?;
    let url = stage.url();
    let go = async |late: u32, args: &[&str]| -> Result<()> {
        let text = format!(
            "pipeline: few\nsources: {{raw: {{csv: few.csv, columns: {{id: int!}}}}}}\nsteps: {{valid: {{from: raw, reject: \
             {{late: id > {late}}}}}}}\nloads: {{few: {{from: valid, to: warehouse, table: few, mode: merge, key: [id]}}}}\n{}",
            match args.contains(&"replay") {
                true => "",
                false => "checks:\n  - {row_count: {within: 20%, of_last: 2}}\n",
            }
        );
        std::fs::write(stage.path().join("few.yaml"), text)?;
        let verb = Verb::new(stage.path()).args(args.iter().copied()).args(["few.yaml"]);
        verb.env("HAULAGE_DESTINATION_WAREHOUSE", &url)
            .output()
            .await?
            .success()?;
        Ok(())
    };
    go(10, &["run"]).await?;
    let first = newest_run(stage.path()).await?;
    go(11, &["replay", &first]).await?;
    go(9, &["run"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_no_earlier_run_in_postgres() -> Result<()> {
    a_replay_is_no_earlier_run(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_no_earlier_run_in_sqlite() -> Result<()> {
    a_replay_is_no_earlier_run(&Stage::sqlite()?).await
}

/// A query that writes, whether by itself or by closing the bracket around it, and one that is no number.
async fn a_query_changes_nothing(stage: &Stage) -> Result<()> {
    stage
        .execute("CREATE TABLE keep (id integer); INSERT INTO keep VALUES (1)")
        .await?;
    for (query, words) in [
        (
            "WITH gone AS (DELETE FROM keep RETURNING id) SELECT count(*) FROM gone",
            "the check `hostile` can't be made",
        ),
        ("SELECT 1)); DELETE FROM keep; SELECT ((1", "closes a bracket"),
        ("SELECT 1; DROP TABLE keep", "more than one statement"),
        ("SELECT nothing FROM staged", "the check `hostile` can't be made"),
        (
            "SELECT name FROM staged WHERE id = 1",
            "the check `hostile` can't be made: its query gave `ann`, which is no number",
        ),
    ] {
        let check = format!("{{sql: \"{query}\", name: hostile}}");
        let said = stage.run("replace", &[&check], &[]).await?;
        said.failure(&[words])?;
        let kept = stage.texts("SELECT CAST(count(*) AS text) FROM keep").await?;
        ensure!(kept == ["1"], "{query}: {kept:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_changes_nothing_in_postgres() -> Result<()> {
    a_query_changes_nothing(&Stage::postgres().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_changes_nothing_in_sqlite() -> Result<()> {
    a_query_changes_nothing(&Stage::sqlite()?).await
}
