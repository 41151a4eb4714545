//! Texts into columns of PostgreSQL whose types no step can CAST to: arrays, intervals, networks, plain numbers, ... The
//! server reads them, before anything is published, and what is none is refused with its row.

use std::path::Path;

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, PgPool};

use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_run};

const TYPES: &str = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN address AS inet CHECK (family(value) = 4); CREATE TYPE pair AS (a int, b text);";

const COLUMNS: &str = "id bigint PRIMARY KEY, tags text[], grid int[][], span interval, ip inet, net cidr, mac macaddr,
    clock time, zoned timetz, raw bytea, exact numeric, mood mood, host address, doc json, docb jsonb, bits bit(3), more bit varying(5),
    price money, spot point, during tstzrange, search tsvector, u uuid, paired pair, short varchar(3)[], price2 numeric,
    at timestamptz, day date, ok bool, weight double precision, small real, n int, said text";

const ROWS: &str = r#"INSERT INTO t VALUES
    (1, '{a,"b c","d,\\e\"",NULL}', '{{1,2},{3,4}}', '1 year -2 days +03:04:05.000006', '10.1.2.3/8', '10.0.0.0/8', '08:00:2b:01:02:03',
     '23:59:59.123456', '05:00:00+02', '\x00ff5c0a', 12345678901234567890123456789012345678901234567890.0987654321, 'glad',
     '1.2.3.4', '{"a":  1, "a": "x\ty"}', '{"b": [1, null]}', '101', '10011', '1234.56', '(1.5,-2)',
     '[2024-01-01 00:00:00+00,)', 'a b''c', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '(1,"x,y")', '{abc}', 12.50,
     '2024-02-29 23:59:59.999999+00', '1900-02-28', true, 0.1, 0.3, -7, E'tab\t line\n back\\slash \b\f\r \\N \\.' || chr(11)),
    (2, '{}', '{}', '24:00:00', '::1', '::/0', '08:00:2b:01:02:04', '24:00:00', '00:00:00-12:59', '', 'NaN', 'sad', '0.0.0.0', '[]', '[]',
     '000', '', '0', '(0,0)', 'empty', '', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', '(,)', '{}', 0.00, '0001-01-01Z', '9999-12-31', false,
     'NaN', '-Infinity', 2147483647, ''),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"#;

struct Shop {
    folder: tempfile::TempDir,
    postgres: Postgres,
    there: PgPool,
    here: PgPool,
}

impl Shop {
    /// A table of every type, and an empty one like it.
    async fn open() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let here = postgres.create("warehouse").await?;
        let make = format!("{TYPES} CREATE TABLE t ({COLUMNS})");
        postgres.execute("warehouse", &make).await?;
        postgres.execute("postgres", &format!("{make}; {ROWS}")).await?;
        // What a role has set for its own sessions is no matter.
        let odd = "ALTER DATABASE warehouse SET intervalstyle = 'sql_standard'; ALTER DATABASE warehouse SET bytea_output = 'escape'";
        postgres.execute("postgres", odd).await?;
        Ok(Self {
            folder: tempfile::tempdir()?,
            there: postgres.pool("postgres").await?,
            here,
            postgres,
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, select: &str, load: &str) -> Result<()> {
        let text = format!(
            "pipeline: types\nsources:\n  t: {{postgres: crm, table: t, columns: {{{}, price2: \"decimal(12,2)\", at: timestamptz, day: \
             date, ok: bool, weight: double, small: float, n: int, said: text}}}}\nsteps:\n  all: SELECT {select} FROM t\n\
             loads:\n  t: {{from: all, to: warehouse, table: t, {load}}}\n",
            "id: bigint!, tags: text, grid: text, span: text, ip: text, net: text, mac: text, clock: text, zoned: text, raw: text, \
             exact: text, mood: text, host: text, doc: text, docb: text, bits: text, more: text, price: text, spot: text, \
             during: text, search: text, u: text, paired: text, short: text"
        );
        Ok(std::fs::write(self.path().join("types.yaml"), text)?)
    }

    async fn verb(&self, args: &[&str]) -> Result<Output> {
        let verb = Verb::new(self.path()).args(args.iter().copied());
        verb.env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", self.postgres.url("warehouse"))
            .output()
            .await
    }

    async fn run(&self) -> Result<String> {
        self.verb(&["run", "types.yaml", "--rerun"]).await?.success()?;
        newest_run(self.path()).await
    }
}

/// All rows with all values.
async fn rows(pool: &PgPool) -> Result<Vec<String>> {
    let columns: Vec<String> = COLUMNS
        .split(",\n")
        .flat_map(|line| line.split(", "))
        .filter_map(|column| column.trim().split(' ').next().map(|name| format!("t.{name}::text")))
        .collect();
    let sql = format!("SELECT ({})::text FROM t ORDER BY t.id", columns.join(", "));
    let mut connection = pool.acquire().await?;
    sqlx::raw_sql("SET intervalstyle = 'postgres'; SET bytea_output = 'hex'; SET timezone = 'UTC'")
        .execute(&mut *connection)
        .await?;
    let rows = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&mut *connection)
        .await?;
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_values_of_every_type_and_back() -> Result<()> {
    let shop = Shop::open().await?;
    let wanted = rows(&shop.there).await?;
    ensure!(wanted.len() == 3 && wanted[0].contains("12345678901234567890123456789012345678901234567890.0987654321"));
    for load in ["mode: replace", "mode: merge, key: [id]", "mode: append, key: [id]"] {
        shop.postgres.execute("warehouse", "TRUNCATE t").await?;
        shop.write("*", load)?;
        shop.verb(&["plan", "types.yaml"]).await?.success()?;
        let run = shop.run().await?;
        let found = rows(&shop.here).await?;
        ensure!(found == wanted, "{load}: {found:#?}\n{wanted:#?}");
        if !load.starts_with("mode: merge") {
            // What no step can compare is left out and said; the rest holds.
            let verified = shop.verb(&["verify", &run]).await?.success()?;
            for column in ["span", "tags", "exact", "clock", "ip", "raw"] {
                ensure!(verified.stdout.contains(column), "{column}: {}", verified.stdout);
            }
            shop.postgres
                .execute("warehouse", "UPDATE t SET n = 8 WHERE id = 1")
                .await?;
            let verified = shop.verb(&["verify", &run]).await?;
            verified.failure(&["column n: its values"])?;
            shop.postgres
                .execute("warehouse", "UPDATE t SET n = -7 WHERE id = 1")
                .await?;
        }
        shop.verb(&["revert", &run]).await?.success()?;
        ensure!(rows(&shop.here).await?.is_empty(), "{load}: rows are left");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_changes_what_differs_and_a_revert_brings_it_back() -> Result<()> {
    let shop = Shop::open().await?;
    let origin = "ALTER TABLE t ADD _haulage_run text, ADD _haulage_chunk text, ADD _haulage_line bigint";
    shop.postgres.execute("warehouse", origin).await?;
    shop.write("*", "mode: merge, key: [id], provenance: true, keep_previous: 9")?;
    shop.run().await?;
    let first = rows(&shop.here).await?;
    // Equal to the database, and not the same.
    let sql = "UPDATE t SET span = '1 day', exact = 1.50, spot = '(9,9)', doc = '{}', tags = '{z}' WHERE id = 2";
    shop.postgres.execute("postgres", sql).await?;
    let second = shop.run().await?;
    ensure!(rows(&shop.here).await? == rows(&shop.there).await? && rows(&shop.here).await? != first);
    let why = shop.verb(&["why", "t", "id=2"]).await?.success()?;
    ensure!(why.stdout.contains(&second), "{}", why.stdout);
    let why = shop.verb(&["why", "t", "ip=10.1.2.3/8"]).await?.success()?;
    ensure!(why.stdout.contains(&second), "{}", why.stdout);
    shop.verb(&["revert", &second]).await?.success()?;
    ensure!(rows(&shop.here).await? == first);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_is_none_of_its_type_is_named_before_anything_is_published() -> Result<()> {
    let shop = Shop::open().await?;
    for (column, text, words) in [
        ("ip", "1.2.3.999", "invalid input syntax for type inet"),
        ("tags", "{open", "malformed array literal"),
        ("mood", "cross", "invalid input value for enum mood"),
        ("host", "::1", "address"),
        ("bits", "11", "bit string length 2"),
        ("exact", "twelve", "invalid input syntax for type numeric"),
        ("short", "{abcd}", "too long"),
    ] {
        let select = format!("* REPLACE (CASE WHEN id = 2 THEN '{text}' ELSE {column} END AS {column})");
        shop.write(&select, "mode: replace")?;
        let failed = shop.verb(&["run", "types.yaml"]).await?;
        failed.failure(&[words, text, &format!("column {column}"), "t line 2"])?;
        ensure!(rows(&shop.here).await?.is_empty());
    }

    // What would be rounded without a word is refused, and the help leads on.
    let sql = "ALTER TABLE t ALTER span TYPE interval(0), ALTER clock TYPE time(3), ALTER exact TYPE numeric(60,2)";
    shop.postgres.execute("warehouse", sql).await?;
    shop.write("*", "mode: replace")?;
    let refused = shop.verb(&["plan", "types.yaml"]).await?;
    refused.failure(&[
        "column span is text in the load and interval(0)",
        "ALTER COLUMN \"span\" TYPE interval,",
        "ALTER COLUMN \"clock\" TYPE time without time zone,",
        "ALTER COLUMN \"exact\" TYPE numeric,",
    ])?;
    let mend = r#"ALTER TABLE t ALTER COLUMN "span" TYPE interval, ALTER COLUMN "clock" TYPE time without time zone,
        ALTER COLUMN "exact" TYPE numeric"#;
    shop.postgres.execute("warehouse", mend).await?;
    // Other types go by a text.
    shop.write("* REPLACE (id AS price)", "mode: replace")?;
    let refused = shop.verb(&["plan", "types.yaml"]).await?;
    let help = "CAST(\"price\" AS text) AS \"price\"";
    refused.failure(&[help])?;
    shop.write("* REPLACE (CAST(id AS text) AS price)", "mode: replace")?;
    shop.run().await?;
    let prices: i64 = sqlx::query_scalar("SELECT count(*) FROM t WHERE price = id::int::money")
        .fetch_one(&shop.here)
        .await?;
    ensure!(prices == 3);
    Ok(())
}
