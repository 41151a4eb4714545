//! What users bring along: files that aren't there, rows that aren't rows, warehouses that don't answer or don't fit.
//!
//! Each is a clear error that names what and where, with an exit code other than 0; nothing partial is left; and the next
//! correct run succeeds. A row that can't be read is not an error of the run: it goes to quarantine with its place.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sqlx::PgPool;

use super::support::flights;
use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, free_port, newest_run};

const PIPELINE: &str = "\
pipeline: orders
sources:
  raw:
    csv: data/orders-*.csv
    columns: {id: int!, name: text, amount: double}
  names:
    csv: data/names.csv
    lookup: true
    columns: {name: text!, country: text}
steps:
  joined: SELECT r.*, n.country FROM raw r LEFT JOIN names n ON n.name = r.name
loads:
  orders: {from: joined, to: warehouse, table: orders, mode: replace, key: [id]}
";

const ORDERS: &str = "id,name,amount\n1,ann,1.5\n2,bob,\n3,eve,2.25\n";
const NAMES: &str = "name,country\nann,NO\nbob,PT\n";

/// A folder with a pipeline and data that are fine.
pub(crate) fn sound() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("data"))?;
    std::fs::write(folder.path().join("orders.yaml"), PIPELINE)?;
    std::fs::write(folder.path().join("data/orders-1.csv"), ORDERS)?;
    std::fs::write(folder.path().join("data/names.csv"), NAMES)?;
    Ok(folder)
}

pub(crate) async fn run(folder: &Path, warehouse: Option<&str>) -> Result<Output> {
    verb(folder, warehouse).output().await
}

pub(crate) fn verb(folder: &Path, warehouse: Option<&str>) -> Verb {
    let verb = Verb::new(folder).args(["run", "orders.yaml"]);
    match warehouse {
        Some(url) => verb.env("HAULAGE_DESTINATION_WAREHOUSE", url),
        None => verb,
    }
}

/// The ids in the SQLite warehouse; none if there is no table.
async fn ids(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(".haulage/warehouse.db");
    if !path.exists()
        || flights::sqlite(&path, "SELECT name FROM sqlite_master WHERE name = 'orders'")
            .await?
            .is_empty()
    {
        return Ok(Vec::new());
    }
    flights::sqlite(&path, "SELECT CAST(id AS text) FROM orders").await
}

/// How many runs the ledger of a folder knows.
async fn runs(folder: &Path) -> Result<usize> {
    if !folder.join(".haulage/ledger.db").exists() {
        return Ok(0);
    }
    let listed = Verb::new(folder).args(["runs", "--output", "json"]).output().await?;
    Ok(listed.success()?.json_lines()?.len())
}

/// Every table, with what it is, except the system's.
pub(crate) async fn tables(pool: &PgPool) -> Result<Vec<String>> {
    let query = "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'i', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
                 ORDER BY 1";
    Ok(sqlx::query_scalar(query).fetch_all(pool).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_files_is_named_and_leaves_nothing_partial() -> Result<()> {
    // A file, what is in it (None removes it), and what the error has to name. What is found before there is a run has
    // the source's place in the pipeline file.
    type Case = (&'static str, Option<&'static [u8]>, &'static [&'static str]);
    let cases: [Case; 10] = [
        (
            "data/orders-1.csv",
            None,
            &["orders.yaml:3:3: error", "raw", "data/orders-*.csv"],
        ),
        (
            "data/names.csv",
            None,
            &["orders.yaml:6:3: error", "names", "data/names.csv"],
        ),
        (
            "data/orders-1.csv",
            Some(b"id,nmae,amount\n1,ann,1.5\n"),
            &["orders.yaml:5:25: error", "orders-1.csv", "name", "nmae"],
        ),
        (
            "data/orders-1.csv",
            Some(b""),
            &["orders.yaml:3:3: error", "orders-1.csv", "is empty"],
        ),
        (
            "data/names.csv",
            Some(b""),
            &["orders.yaml:6:3: error", "names.csv", "is empty"],
        ),
        (
            "data/names.csv",
            Some(b"name,contry\n"),
            &["orders.yaml:9:28: error", "names.csv", "country"],
        ),
        // In a lookup nothing may be missing: a row that can't be read is an error with its place.
        (
            "data/names.csv",
            Some(b"name,country\nann,NO\nbob\n"),
            &["names.csv", "3"],
        ),
        (
            "data/names.csv",
            Some(b"name,country\nann,NO\nb\xffb,PT\n"),
            &["names.csv", "3", "name"],
        ),
        (
            "data/names.csv",
            Some(b"name,country\nann,N\0O\n"),
            &["names.csv", "2", "country"],
        ),
        (
            "data/names.csv",
            Some(b"name,country\n,NO\n"),
            &["names.csv", "2", "name"],
        ),
    ];
    for (file, content, parts) in cases {
        let folder = sound()?;
        let path = folder.path().join(file);
        let good = std::fs::read(&path)?;
        match content {
            Some(bytes) => std::fs::write(&path, bytes)?,
            None => std::fs::remove_file(&path)?,
        }
        let failed = run(folder.path(), None).await?;
        failed
            .failure(parts)
            .map_err(|error| error.context(format!("{file} is {content:?}")))?;
        let found_early = parts.iter().any(|part| part.contains("orders.yaml"));
        let runs = runs(folder.path()).await?;
        ensure!(
            runs == usize::from(!found_early),
            "{file} is {content:?}: {runs} runs in the ledger"
        );
        ensure!(
            ids(folder.path()).await?.is_empty(),
            "{file}: a failed run left rows behind"
        );
        std::fs::write(&path, good)?;
        run(folder.path(), None).await?.success().context("the next run")?;
        ensure!(
            ids(folder.path()).await? == ["1", "2", "3"],
            "{:?}",
            ids(folder.path()).await?
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_columns_that_only_the_header_knows_is_found_before_a_run() -> Result<()> {
    let folder = sound()?;
    let undeclared = PIPELINE.replace("    columns: {id: int!, name: text, amount: double}\n", "");
    let typo = undeclared.replace("SELECT r.*, n.country", "SELECT r.idd, n.country");
    std::fs::write(folder.path().join("orders.yaml"), typo)?;
    run(folder.path(), None).await?.failure(&[
        "orders.yaml:10:18: error",
        "unknown column `idd`",
        "did you mean `id`?",
    ])?;
    ensure!(!folder.path().join(".haulage/ledger.db").exists(), "a ledger was made");
    // Nothing of it is in the way of a later one, in a home where there are runs already.
    std::fs::write(folder.path().join("orders.yaml"), undeclared)?;
    run(folder.path(), None).await?.success()?;
    std::fs::write(folder.path().join("data/orders-2.csv"), "id\n1\n")?;
    let rerun = verb(folder.path(), None).args(["--rerun"]).output().await?;
    rerun.failure(&["orders.yaml:3:3: error", "orders-2.csv"])?;
    ensure!(runs(folder.path()).await? == 1, "a run that can't be was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_files_that_are_gone_does_not_matter_to_what_is_published() -> Result<()> {
    let folder = sound()?;
    run(folder.path(), None).await?.success()?;
    std::fs::remove_file(folder.path().join("data/orders-1.csv"))?;
    let again = run(folder.path(), None).await?.success()?;
    ensure!(
        again.stderr.contains("already published"),
        "said {:?}, {:?}",
        again.stdout,
        again.stderr
    );
    // Another submission of the same pipeline has nothing that answers for it.
    let text = format!("{PIPELINE}# another text\n");
    std::fs::write(folder.path().join("orders.yaml"), text)?;
    run(folder.path(), None).await?.failure(&["orders.yaml:3:3: error"])?;
    ensure!(runs(folder.path()).await? == 1, "a run that can't be was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_rows_goes_to_quarantine_with_its_place() -> Result<()> {
    let folder = sound()?;
    let bad =
        b"id,name,amount\n1,ann,1.5\n2,bob\n3,eve,1,2\n4,b\xffb,1\n5,a\0b,1\nsix,ann,1\n7,ann,much\n,ann,1\n9,ann,1\n";
    std::fs::write(folder.path().join("data/orders-1.csv"), bad)?;
    let done = run(folder.path(), None).await?.success()?;
    let said = format!("{}{}", done.stdout, done.stderr);
    ensure!(
        said.contains("7 rows") && said.contains("ragged"),
        "the summary doesn't speak of the rejects:\n{said}"
    );
    ensure!(
        ids(folder.path()).await? == ["1", "9"],
        "{:?}",
        ids(folder.path()).await?
    );

    let id = newest_run(folder.path()).await?;
    let listed = Verb::new(folder.path())
        .args(["rejects", &id, "--output", "json"])
        .output()
        .await?
        .success()?;
    let mut found = Vec::new();
    for reject in listed.json_lines()? {
        let text = |name: &str| reject[name].as_str().unwrap_or_default().to_owned();
        ensure!(text("file").ends_with("data/orders-1.csv"), "{reject}");
        found.push((
            reject["line"].as_u64().unwrap_or(0),
            text("reason"),
            text("column"),
            text("raw"),
        ));
    }
    let of = |line: u64, reason: &str, column: &str, raw: &str| (line, reason.into(), column.into(), raw.into());
    let expected: Vec<(u64, String, String, String)> = vec![
        of(3, "ragged", "", "2,bob"),
        of(4, "ragged", "", "3,eve,1,2"),
        of(5, "bad_utf8", "name", "4,b\\xffb,1"),
        of(6, "nul_byte", "name", "5,a\\x00b,1"),
        of(7, "bad_int", "id", "six,ann,1"),
        of(8, "bad_float", "amount", "7,ann,much"),
        of(9, "null_in_required", "id", ",ann,1"),
    ];
    found.sort();
    ensure!(found == expected, "quarantine holds {found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_warehouse_that_does_not_answer_names_it_and_keeps_the_password() -> Result<()> {
    let postgres = Postgres::start().await?;
    let folder = sound()?;
    let nobody = format!("postgres://app:hunter2@127.0.0.1:{}/db", free_port()?);
    let wrong = postgres.url_with_password("hunter2");
    let missing = format!("{}_not_there", postgres.url("db"));
    for (url, parts) in [
        (&nobody, ["warehouse", "127.0.0.1"].as_slice()),
        (&wrong, &["warehouse", "password", "locked"]),
        (&missing, &["warehouse", "db_not_there"]),
    ] {
        let failed = run(folder.path(), Some(url)).await?.failure(parts)?;
        ensure!(
            !format!("{failed:?}").contains("hunter2"),
            "a password was shown: {failed:?}"
        );
        let kept = std::fs::read(folder.path().join(".haulage/ledger.db"))?;
        ensure!(
            !kept.windows(7).any(|bytes| bytes == b"hunter2"),
            "a password was written to the ledger"
        );
    }
    // The role `locked` with its right password may not make anything in schema public: also named.
    let right = postgres.url_with_password("the%20right%20one");
    run(folder.path(), Some(&right)).await?.failure(&[
        "warehouse",
        "may not make schema haulage",
        "GRANT CREATE ON DATABASE",
    ])?;
    let fine = postgres.url("postgres");
    run(folder.path(), Some(&fine))
        .await?
        .success()
        .context("the next run")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_table_whose_columns_do_not_fit_names_the_column_and_both_types() -> Result<()> {
    let postgres = Postgres::start().await?;
    let pool = postgres.create("warehouse").await?;
    let url = postgres.url("warehouse");
    // Bookkeeping is made by a run that is fine, so that whatever is new afterwards is a leftover.
    let other = sound()?;
    let text = PIPELINE
        .replace("pipeline: orders", "pipeline: other")
        .replace("table: orders", "table: other");
    std::fs::write(other.path().join("orders.yaml"), text)?;
    run(other.path(), Some(&url)).await?.success()?;

    let cases = [
        (
            "CREATE TABLE orders (id text, name text, amount double precision, country text)",
            ["id", "text", "int"].as_slice(),
        ),
        (
            "CREATE TABLE orders (id int, name text, amount date, country text)",
            &["amount", "date", "double"],
        ),
        (
            "CREATE TABLE orders (id int, name text, amount double precision, country text, due date NOT NULL)",
            &["due"],
        ),
        ("CREATE VIEW orders AS SELECT 1 AS id", &["orders", "view"]),
    ];
    for (make, parts) in cases {
        sqlx::query(make).execute(&pool).await?;
        let before = tables(&pool).await?;
        let folder = sound()?;
        let said = run(folder.path(), Some(&url)).await?.failure(&["orders"]);
        said.and_then(|output| output.failure(parts))
            .map_err(|error| error.context(make))?;
        ensure!(
            tables(&pool).await? == before,
            "{make}: left behind {:?}",
            tables(&pool).await?
        );
        let drop = if make.contains("VIEW") {
            "DROP VIEW orders"
        } else {
            "DROP TABLE orders"
        };
        sqlx::query(drop).execute(&pool).await?;
        run(folder.path(), Some(&url))
            .await?
            .success()
            .context("the next run")?;
        sqlx::query("DROP TABLE orders").execute(&pool).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_key_that_is_not_unique_names_the_key() -> Result<()> {
    let folder = sound()?;
    std::fs::write(folder.path().join("data/orders-2.csv"), "id,name,amount\n3,ann,1\n")?;
    run(folder.path(), None).await?.failure(&["orders", "id", "3"])?;
    ensure!(
        ids(folder.path()).await?.is_empty(),
        "rows that break the key were published"
    );
    std::fs::remove_file(folder.path().join("data/orders-2.csv"))?;
    run(folder.path(), None).await?.success().context("the next run")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_destination_that_the_pipeline_does_not_have_sends_no_row_elsewhere() -> Result<()> {
    let folder = sound()?;
    for verb in ["run", "plan"] {
        let said = Verb::new(folder.path())
            .args([
                verb,
                "orders.yaml",
                "--destination",
                "wharehouse=postgres://u:hunter2@127.0.0.1/d",
            ])
            .output()
            .await?
            .failure(&["wharehouse", "did you mean `warehouse`?"])?;
        ensure!(said.code == 2 && !said.stderr.contains("hunter2"), "{said:?}");
    }
    // A cluster's nodes know where destinations are: the address would be dropped, and the rows go elsewhere.
    let said = Verb::new(folder.path())
        .args(["run", "orders.yaml", "--coordinator", "http://127.0.0.1:1"])
        .args(["--destination", "warehouse=postgres://u:hunter2@127.0.0.1/d"])
        .output()
        .await?
        .failure(&["warehouse", "no effect with --coordinator"])?;
    ensure!(said.code == 2 && !said.stderr.contains("hunter2"), "{said:?}");
    ensure!(
        !folder.path().join(".haulage").exists(),
        "something was made all the same"
    );
    Ok(())
}
