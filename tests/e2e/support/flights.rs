//! The flights example and what has to come out of it, by an oracle that knows nothing of Haulage: `oracle.sql`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::Value;
use sqlx::postgres::PgPool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::postgres::Postgres;

/// The table that the example loads.
pub(crate) const TABLE: &str = "flights_clean";

/// The columns of that table, in order, as SQL that yields the same text in PostgreSQL and in SQLite.
const COLUMNS: [&str; 28] = [
    "flight_date",
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
    "late",
    "airline",
    "plane_year",
    "manufacturer",
    "model",
    "seats",
    "origin_name",
    "dest_name",
];

/// The repository's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The example's pipeline file.
pub(crate) fn pipeline() -> PathBuf {
    root().join("examples/flights/pipeline.yaml")
}

/// The example's data files.
pub(crate) fn data() -> PathBuf {
    root().join("examples/flights/data")
}

/// What the oracle counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Source rows.
    pub(crate) read: u64,
    /// Rows of the target.
    pub(crate) loaded: u64,
    /// Cancelled flights.
    pub(crate) filtered: u64,
    /// Rows in quarantine, by reason.
    pub(crate) rejected: BTreeMap<String, u64>,
}

/// Runs the oracle in a database; it leaves schema `oracle` there.
pub(crate) async fn oracle(cluster: &Postgres, database: &str) -> Result<Counts> {
    let script = root().join("examples/flights/oracle.sql");
    cluster.psql(database, &data(), &script).await?;
    let pool = cluster.pool(database).await?;
    let (read, loaded, filtered): (i64, i64, i64) = sqlx::query_as("SELECT read, loaded, filtered FROM oracle.counts")
        .fetch_one(&pool)
        .await?;
    let reasons: Vec<(String, i64)> = sqlx::query_as("SELECT reason, rows FROM oracle.rejects")
        .fetch_all(&pool)
        .await?;
    let number = |rows: i64| rows.unsigned_abs();
    Ok(Counts {
        read: number(read),
        loaded: number(loaded),
        filtered: number(filtered),
        rejected: reasons
            .into_iter()
            .map(|(reason, rows)| (reason, number(rows)))
            .collect(),
    })
}

/// Holds what a run says it counted (`show --output json`) against the oracle.
pub(crate) fn check_counts(run: &Value, oracle: &Counts) -> Result<()> {
    let counts = &run["counts"];
    let number = |name: &str| counts[name].as_u64().unwrap_or(u64::MAX);
    let mut rejected = BTreeMap::new();
    for (reason, rows) in counts["rejected_by_reason"].as_object().into_iter().flatten() {
        rejected.insert(reason.clone(), rows.as_u64().unwrap_or(u64::MAX));
    }
    let said = Counts {
        read: number("read"),
        loaded: number("loaded"),
        filtered: number("filtered"),
        rejected,
    };
    ensure!(said == *oracle, "the run says {said:?}, the oracle {oracle:?}");
    Ok(())
}

/// The target in PostgreSQL is the oracle's table, as multisets. Both are in the same database.
pub(crate) async fn check_postgres(pool: &PgPool) -> Result<()> {
    let columns = COLUMNS.join(", ");
    for (left, right) in [(TABLE, "oracle.flights_clean"), ("oracle.flights_clean", TABLE)] {
        let query = format!(
            "SELECT count(*), coalesce(min(r::text), '') FROM (SELECT {columns} FROM {left} EXCEPT ALL SELECT {columns} \
             FROM {right}) r"
        );
        let (rows, example): (i64, String) = sqlx::query_as(sqlx::AssertSqlSafe(query)).fetch_one(pool).await?;
        ensure!(
            rows == 0,
            "{rows} rows of {left} are not in {right}, for example {example}"
        );
    }
    Ok(())
}

/// The target in a SQLite file is the oracle's table in PostgreSQL, as multisets.
pub(crate) async fn check_sqlite(file: &Path, pool: &PgPool) -> Result<()> {
    let mine = rows_of_sqlite(file).await?;
    let query = format!(
        "SELECT {} FROM oracle.flights_clean",
        texts(|column| match column {
            "time_hour" => "to_char(time_hour AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')".to_owned(),
            other => format!("{other}::text"),
        })
    );
    let mut theirs: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(pool).await?;
    theirs.sort_unstable();
    ensure!(
        mine.len() == theirs.len(),
        "{} rows in SQLite, {} by the oracle",
        mine.len(),
        theirs.len()
    );
    for (mine, theirs) in mine.iter().zip(&theirs) {
        ensure!(mine == theirs, "SQLite has  {mine}\nthe oracle  {theirs}");
    }
    Ok(())
}

/// Every row of the target in a SQLite file as one text, sorted.
pub(crate) async fn rows_of_sqlite(file: &Path) -> Result<Vec<String>> {
    let query = format!(
        "SELECT {} FROM {TABLE}",
        texts(|column| match column {
            "time_hour" => "strftime('%Y-%m-%dT%H:%M:%SZ', time_hour)".to_owned(),
            "late" => "CASE late WHEN 1 THEN 'true' WHEN 0 THEN 'false' END".to_owned(),
            other => format!("CAST({other} AS text)"),
        })
    );
    sqlite(file, &query).await
}

/// The first column of a query on a SQLite file, sorted.
pub(crate) async fn sqlite(file: &Path, query: &str) -> Result<Vec<String>> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let pool = SqlitePool::connect_with(options).await?;
    let mut rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()))
        .fetch_all(&pool)
        .await?;
    pool.close().await;
    rows.sort_unstable();
    Ok(rows)
}

/// All columns as one text, `NULL` for an absent value.
fn texts(column: impl Fn(&str) -> String) -> String {
    COLUMNS
        .map(|name| format!("coalesce({}, 'NULL')", column(name)))
        .join(" || '|' || ")
}
