//! A small pipeline of many small chunks, on a cluster of its own with two destinations: `warehouse` in PostgreSQL, `side`
//! in a SQLite file. For tests that look at every row, column and index before and after.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sqlx::{AssertSqlSafe, Connection, PgPool, Row, SqliteConnection};

use super::cluster::{Cluster, Settings};
use super::postgres::Postgres;

/// Rows of the source, by default.
pub(crate) const ROWS: i64 = 12_000;

/// See the module.
pub(crate) struct Numbers {
    pub(crate) cluster: Cluster,
    pub(crate) pool: PgPool,
    pub(crate) postgres: Postgres,
    pub(crate) side: PathBuf,
    // Last, since everything else has files in it.
    pub(crate) folder: tempfile::TempDir,
}

/// A pipeline with these loads over `numbers.csv`, which has columns id and name.
pub(crate) fn pipeline(loads: &[&str]) -> String {
    let mut text = String::from(
        "pipeline: numbers\ncheckpoint_rows: 800\nparams: {first: {type: int, default: 0}}\nsources:\n  raw: {csv: \
         numbers.csv, chunk_size: 70kB, columns: {id: int!, name: text}}\nsteps:\n  some: {sql: \"SELECT id, name FROM raw \
         WHERE id >= $first\"}\nloads:\n",
    );
    for load in loads {
        text.push_str(&format!("  {load}\n"));
    }
    text
}

impl Numbers {
    /// Starts servers and a cluster of so many nodes with these faults; `warehouse` and `side` hold what the statements
    /// make.
    pub(crate) async fn start(nodes: usize, faults: &str, warehouse: &str, side: &str) -> Result<Self> {
        Self::start_as("postgres", nodes, faults, warehouse, side).await
    }

    /// The same with coordinators of these names, over a ledger in PostgreSQL.
    pub(crate) async fn start_led_by(
        coordinators: &[&str],
        nodes: usize,
        faults: &str,
        warehouse: &str,
        side: &str,
    ) -> Result<Self> {
        Self::start_any(coordinators, "postgres", nodes, faults, warehouse, side).await
    }

    /// The same with nodes that work in the warehouse under this role, which the statements make.
    pub(crate) async fn start_as(role: &str, nodes: usize, faults: &str, warehouse: &str, side: &str) -> Result<Self> {
        Self::start_any(&["c1"], role, nodes, faults, warehouse, side).await
    }

    async fn start_any(
        coordinators: &[&str],
        role: &str,
        nodes: usize,
        faults: &str,
        warehouse: &str,
        side: &str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let postgres = Postgres::start().await?;
        postgres.create("warehouse").await?.close().await;
        postgres.execute("warehouse", warehouse).await?;
        let file = folder.path().join("side.db");
        let mut connection = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", file.display())).await?;
        sqlx::raw_sql(AssertSqlSafe(side.to_owned()))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        let settings = Settings {
            ledger: if coordinators.len() > 1 {
                postgres.create("ledger").await?.close().await;
                postgres.url("ledger")
            } else {
                format!("sqlite:{}", folder.path().join("ledger.db").display())
            },
            warehouse: postgres.url_as(role, "warehouse"),
            store: folder.path().join("store").display().to_string(),
            nodes,
            envs: vec![(
                "HAULAGE_DESTINATION_SIDE".to_owned(),
                format!("sqlite:{}", file.display()),
            )],
            faults: Some(faults.to_owned()).filter(|faults| !faults.is_empty()),
        };
        let cluster = Cluster::start_with(folder.path(), settings, coordinators).await?;
        let numbers = Self {
            pool: postgres.pool("warehouse").await?,
            cluster,
            postgres,
            side: file,
            folder,
        };
        numbers.source(ROWS)?;
        Ok(numbers)
    }

    /// Writes the source.
    pub(crate) fn source(&self, rows: i64) -> Result<()> {
        let mut text = String::from("id,name\n");
        for id in 0..rows {
            text.push_str(&format!("{id},somebody with number {id}\n"));
        }
        Ok(std::fs::write(self.folder.path().join("numbers.csv"), text)?)
    }

    /// Submits a pipeline with these loads.
    pub(crate) async fn submit(&self, loads: &[&str], more: &[&str]) -> Result<String> {
        let file = self.folder.path().join("numbers.yaml");
        std::fs::write(&file, pipeline(loads))?;
        let (run, disposition) = self.cluster.submit(&file, more).await?;
        ensure!(disposition == "started", "{run} {disposition}");
        Ok(run)
    }

    /// Everything that a reader of either destination can see, by what it is: rows as a multiset, columns, indexes.
    pub(crate) async fn contents(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut all = BTreeMap::new();
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
        )
        .fetch_all(&self.pool)
        .await?;
        for table in tables {
            for (what, sql) in [
                ("rows", format!("SELECT {table}::text FROM {table} ORDER BY 1")),
                (
                    "columns",
                    format!(
                        "SELECT format('%s %s %s %s', attnum, attname, format_type(atttypid, atttypmod), attnotnull)
                         FROM pg_attribute WHERE attrelid = 'public.{table}'::regclass AND attnum > 0 ORDER BY 1"
                    ),
                ),
                (
                    "indexes",
                    format!(
                        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = '{table}' ORDER BY 1"
                    ),
                ),
            ] {
                let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&self.pool).await?;
                all.insert(format!("warehouse {table} {what}"), found);
            }
        }
        let mut side = SqliteConnection::connect(&format!("sqlite:{}", self.side.display())).await?;
        let schema: Vec<(String, String, Option<String>)> = sqlx::query_as(
            "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name NOT LIKE '\\_haulage\\_%' ESCAPE '\\'",
        )
        .fetch_all(&mut side)
        .await?;
        for (kind, name, sql) in schema {
            if kind == "table" {
                let found = sqlx::query(AssertSqlSafe(format!("SELECT * FROM {name}")))
                    .fetch_all(&mut side)
                    .await?;
                let mut rows = Vec::new();
                for row in found {
                    let mut texts = Vec::new();
                    for at in 0..row.len() {
                        texts.push(format!("{:?}", row.try_get_unchecked::<Option<String>, _>(at)?));
                    }
                    rows.push(texts.join(" "));
                }
                rows.sort();
                all.insert(format!("side {name} rows"), rows);
            }
            all.insert(format!("side {kind} {name}"), sql.into_iter().collect());
        }
        side.close().await?;
        Ok(all)
    }

    /// Fails unless nothing of any run is left but its records: no staging, no before-images.
    pub(crate) async fn check_nothing_left(&self) -> Result<()> {
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'haulage'::regnamespace
             AND relname NOT IN ('loads', 'fences', 'targets', 'watermarks')",
        )
        .fetch_all(&self.pool)
        .await
        .context("looking into schema haulage")?;
        ensure!(left.is_empty(), "left behind in the warehouse: {left:?}");
        let mut side = SqliteConnection::connect(&format!("sqlite:{}", self.side.display())).await?;
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE '\\_haulage\\_%' ESCAPE '\\'
             AND name NOT IN ('_haulage_loads', '_haulage_fences', '_haulage_markers', '_haulage_watermarks')",
        )
        .fetch_all(&mut side)
        .await?;
        side.close().await?;
        ensure!(left.is_empty(), "left behind in the file: {left:?}");
        Ok(())
    }

    /// Fails unless both are equal; says where they are not.
    pub(crate) async fn check_contents(&self, before: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let now = self.contents().await?;
        let changed: Vec<&String> = before
            .keys()
            .chain(now.keys())
            .filter(|what| before.get(*what) != now.get(*what))
            .collect();
        ensure!(changed.is_empty(), "not as it was before: {changed:?}");
        Ok(())
    }
}
