//! Rows that SQL or a destination can't take: they end the run, and the error names the file and the line, the step, the
//! column and the value, and what to do. None of them says "chunk 0.0" or counts lines of a COPY.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_rejects};

/// Line 4 is the odd one, in the second segment. Rows in front of it are filtered away, so that a row's number among
/// those that are written is not its number in the file.
const ROWS: &str = "id,name,much\n1,drop,1\n2,two,7\n,abc,3000000000\n4,four,9\n";

fn folder(sql: &str, load: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let text = format!(
        "pipeline: rows\ncheckpoint_rows: 2\nsources:\n  raw: {{csv: rows.csv, columns: {{id: int, name: text, much: bigint}}}}\n\
         steps:\n  kept: SELECT * FROM raw WHERE name <> 'drop'\n  out: {sql}\nloads:\n  out: {{from: out, to: warehouse, table: things, {load}}}\n"
    );
    std::fs::write(folder.path().join("rows.yaml"), text)?;
    std::fs::write(folder.path().join("rows.csv"), ROWS)?;
    Ok(folder)
}

async fn run(folder: &Path, warehouse: Option<&str>) -> Result<Output> {
    let verb = Verb::new(folder).args(["run", "rows.yaml"]);
    match warehouse {
        Some(url) => verb.env("HAULAGE_DESTINATION_WAREHOUSE", url),
        None => verb,
    }
    .output()
    .await
}

fn check(failed: Output, parts: &[&str]) -> Result<()> {
    let failed = failed.failure(parts)?;
    let said = failed.stderr.lines().find(|line| line.starts_with("error: "));
    let said = said.context("no error was printed")?;
    for inner in ["chunk 0.0", "stage_", "of this chunk"] {
        ensure!(
            !said.contains(inner),
            "{inner:?} is nothing that a person knows:\n{said}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_sql_fails_on_are_named_with_file_line_step_and_column() -> Result<()> {
    for (sql, parts) in [
        (
            "SELECT id, CAST(replace(replace(name, 'two', '2'), 'four', '4') AS int) AS n FROM kept",
            &[
                "rows.csv line 4: load out, step out, column n: ",
                "'abc'",
                "TRY_CAST",
                "the row reads: ,abc,3000000000",
            ][..],
        ),
        (
            "SELECT id, 1 / (much - 3000000000) AS q FROM kept",
            &[
                "rows.csv line 4: load out, step out, column q: ",
                "divide by zero",
                "nullif",
            ],
        ),
        (
            "SELECT id, much * 4000000000 AS big FROM kept",
            &[
                "rows.csv line 4: load out, step out, column big: ",
                "overflow",
                "wider type",
            ],
        ),
    ] {
        let folder = folder(sql, "mode: replace")?;
        check(run(folder.path(), None).await?, parts).context(sql)?;
    }
    // What the advice says: TRY_CAST and a rule put the row into quarantine, and the run is published.
    let sql = "\n    sql: SELECT id, name, TRY_CAST(name AS int) AS n FROM kept\n    reject: {no_number: n IS NULL AND name = 'abc'}";
    let mended = folder(sql, "mode: replace")?;
    run(mended.path(), None).await?.success()?;
    let (_, rejects) = newest_rejects(mended.path()).await?;
    ensure!(
        rejects.len() == 1 && rejects[0]["line"] == 4 && rejects[0]["reason"] == "no_number",
        "{rejects:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_sqlite_file_does_not_take_are_named() -> Result<()> {
    let all = "SELECT id, name, much FROM kept";
    for (ddl, load, parts) in [
        (
            "CREATE TABLE things (id integer UNIQUE, name text, much integer)",
            "mode: merge, key: [id]",
            &[
                "rows.csv line 4: load out, column id: it has no value",
                "may not be NULL",
                "the row reads: ,abc",
            ][..],
        ),
        (
            "CREATE TABLE things (id integer NOT NULL, name text, much integer UNIQUE)",
            "mode: append, key: [much]",
            &["rows.csv line 4: load out, column id: it has no value", "nullable"],
        ),
    ] {
        let folder = folder(all, load)?;
        std::fs::create_dir(folder.path().join(".haulage"))?;
        let file = SqliteConnectOptions::new()
            .filename(folder.path().join(".haulage/warehouse.db"))
            .create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&file).await?;
        sqlx::raw_sql(ddl).execute(&mut connection).await?;
        connection.close().await?;
        check(run(folder.path(), None).await?, parts).context(ddl)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_postgres_does_not_take_are_named() -> Result<()> {
    let postgres = Postgres::start().await?;
    let pool = postgres.create("warehouse").await?;
    let url = postgres.url("warehouse");
    sqlx::query("CREATE DOMAIN short AS text CHECK (value <> 'abc')")
        .execute(&pool)
        .await?;
    for (columns, load, parts) in [
        (
            "id int UNIQUE, name text, much bigint",
            "mode: merge, key: [id]",
            &[
                "rows.csv line 4: load out, column id: it has no value",
                "may not be NULL",
            ][..],
        ),
        (
            "id int, name text, much int",
            "mode: replace",
            &[
                "rows.csv line 4: load out, column much: ",
                "3000000000",
                "CAST it in the step's SQL",
            ],
        ),
        (
            "id int, name short, much bigint",
            "mode: replace",
            &[
                "rows.csv line 4: load out",
                "short",
                "SQLSTATE 23514",
                "the row reads: ,abc",
            ],
        ),
        (
            "id int, name varchar(3), much bigint",
            "mode: replace",
            &[
                "rows.csv line 5: load out",
                "SQLSTATE 22001",
                "`reject` rule",
                "the row reads: 4,four,9",
            ],
        ),
    ] {
        let folder = folder("SELECT * FROM kept", load)?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "DROP TABLE IF EXISTS things; CREATE TABLE things ({columns})"
        )))
        .execute(&pool)
        .await?;
        check(run(folder.path(), Some(&url)).await?, parts).context(columns)?;
    }
    Ok(())
}
