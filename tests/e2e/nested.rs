//! Objects in rows: columns that stand deeper in JSON, of files and of an API, and JSON texts that SQL takes apart.

use std::path::Path;

use anyhow::{Result, ensure};
use haulage_test_support::http::{Answer, Http};
use sqlx::{AssertSqlSafe, PgPool};

use super::support::postgres::Postgres;
use super::support::process::{Output, Verb, newest_rejects, newest_run};

const ORDERS: &str = r#"{"id": 1, "customer": {"name": "Ada", "address": {"city": "Z\u00fcrich", "zip": 8001}}, "total": 12.50, "lines": [{"sku": "a", "n": 2}, {"sku": "b", "n": 1}]}
{"id": 2, "customer": {"name": "Bo", "address": null}, "total": 1e2, "lines": []}
{"id": 3, "customer": {"name": 7}, "total": 3, "lines": null}
{"id": 4, "customer": "Cy", "total": 4}
{"id": 5, "customer": {"name": "Di", "address": {"city": "Bern", "zip": "3000"}}, "total": 5}
"#;

fn pipeline(api: &str, zip: &str) -> String {
    format!(
        "pipeline: nested
sources:
  orders:
    json: orders.jsonl
    columns:
      id: bigint!
      name: {{type: text!, path: customer.name}}
      city: {{type: text, path: customer.address.city}}
      zip: {{type: {zip}, path: customer.address.zip}}
      total: \"decimal(9,2)\"
      lines: text
      customer: text
      whole: {{type: text, path: []}}
  events:
    rest: \"{api}/events\"
    records: data
    columns: {{id: bigint!, who: {{type: text, path: [user, \"e.mail\"]}}, at: {{type: timestamptz, path: meta.at}}}}
  texts: {{csv: texts.csv, columns: {{id: int!, payload: text}}}}
  documents: {{postgres: crm, table: documents, columns: {{id: int!, body: text}}}}
steps:
  firsts: |
    SELECT id, name, city, CAST(zip AS int) AS zip, total, json_length(lines) AS line_count, lines->0->>'sku' AS first_sku,
      json_get_int(lines, 0, 'n') AS first_n, whole->>'id' = id::text AS same
    FROM orders WHERE lines->0->>'sku' IS DISTINCT FROM 'z' AND customer->>'name' || '!' <> 'Zed!'
  items: |
    WITH RECURSIVE n AS (SELECT 0 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 999)
    SELECT id, i AS line, json_get_json(lines, i) AS item FROM orders JOIN n ON i < json_length(lines)
  skus: SELECT id, line, item->>'sku' AS sku, json_get_int(item, 'n') AS n FROM items
  parts:
    sql: |
      SELECT id, payload->>'name' AS name, (payload->'size'->>'cm')::double AS cm,
        CAST(payload->>'at' AS timestamptz) AS at
      FROM texts
    reject: {{no_name: name IS NULL}}
  bodies: SELECT id, body->>'kind' AS kind, json_get_json(body, 'tags') AS tags FROM documents
loads:
  firsts: {{from: firsts, to: warehouse, table: firsts, mode: merge, key: [id]}}
  skus: {{from: skus, to: warehouse, table: skus, mode: merge, key: [id, line]}}
  events: {{from: events, to: warehouse, table: events, mode: replace, key: [id]}}
  parts: {{from: parts, to: warehouse, table: parts, mode: merge, key: [id]}}
  bodies: {{from: bodies, to: warehouse, table: bodies, mode: replace, key: [id]}}
"
    )
}

async fn rows(pool: &PgPool, query: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT q::text FROM ({query}) AS q");
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await?)
}

struct Stage {
    folder: tempfile::TempDir,
    postgres: Postgres,
}

impl Stage {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn verb(&self, args: &[&str]) -> Result<Output> {
        let verb = Verb::new(self.path())
            .args(args.iter().copied())
            .env("HAULAGE_SOURCE_CRM", self.postgres.url("postgres"))
            .env("HAULAGE_DESTINATION_WAREHOUSE", self.postgres.url("warehouse"));
        verb.output().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_taken_apart_by_paths_and_in_sql() -> Result<()> {
    let api = Http::start(|_, _| {
        let records = r#"{"data": [{"id": 1, "user": {"e.mail": "a@x.org"}, "meta": {"at": "2024-01-31T12:00:00+01:00"}},
            {"id": 2, "user": null}, {"id": 3, "user": {"e.mail": null}, "meta": {"at": 5}}]}"#;
        Answer::new(200, records)
    })
    .await?;
    let stage = Stage {
        folder: tempfile::tempdir()?,
        postgres: Postgres::start().await?,
    };
    let warehouse = stage.postgres.create("warehouse").await?;
    let documents = "CREATE TABLE documents (id int PRIMARY KEY, body jsonb);
        INSERT INTO documents VALUES (1, '{\"kind\": \"note\", \"tags\": [\"x\", 1.50]}'), (2, '{}'), (3, NULL)";
    stage.postgres.execute("postgres", documents).await?;
    let texts = "id,payload\n1,\"{\"\"name\"\": \"\"é\\n\"\", \"\"size\"\": {\"\"cm\"\": 1.5e1}, \"\"at\"\": \"\"2024-01-31T12:00:00+01:00\"\"}\"\n\
                 2,\"{\"\"size\"\": {}}\"\n3,no json\n";
    std::fs::write(stage.path().join("texts.csv"), texts)?;
    std::fs::write(stage.path().join("orders.jsonl"), ORDERS)?;
    std::fs::write(stage.path().join("nested.yaml"), pipeline(&api.address(), "int"))?;
    stage.verb(&["run", "nested.yaml"]).await?.success()?;

    let firsts = rows(&warehouse, "SELECT * FROM firsts ORDER BY id").await?;
    ensure!(
        firsts
            == [
                "(1,Ada,Zürich,8001,12.50,2,a,2,t)",
                "(2,Bo,,,100.00,0,,,t)",
                "(3,7,,,3.00,,,,t)"
            ],
        "{firsts:?}"
    );
    let skus = rows(&warehouse, "SELECT * FROM skus ORDER BY id, line").await?;
    ensure!(skus == ["(1,0,a,2)", "(1,1,b,1)"], "{skus:?}");
    let events = rows(
        &warehouse,
        "SELECT id, who, at AT TIME ZONE 'UTC' FROM events ORDER BY id",
    )
    .await?;
    ensure!(events == ["(1,a@x.org,\"2024-01-31 11:00:00\")", "(2,,)"], "{events:?}");
    let parts = rows(
        &warehouse,
        "SELECT id, name = E'é\\n', cm, at AT TIME ZONE 'UTC' FROM parts",
    )
    .await?;
    ensure!(parts == ["(1,t,15,\"2024-01-31 11:00:00\")"], "{parts:?}");
    let typed = "SELECT data_type FROM information_schema.columns WHERE table_name = 'parts' AND column_name = 'at'";
    ensure!(rows(&warehouse, typed).await? == ["(\"timestamp with time zone\")"]);
    let bodies = rows(&warehouse, "SELECT id, kind, tags FROM bodies ORDER BY id").await?;
    ensure!(
        bodies == ["(1,note,\"[\"\"x\"\", 1.50]\")", "(2,,)", "(3,,)"],
        "{bodies:?}"
    );
    let run = newest_run(stage.path()).await?;
    stage.verb(&["verify", &run]).await?.success()?;

    let (_, rejects) = newest_rejects(stage.path()).await?;
    let mut told: Vec<_> = rejects
        .iter()
        .map(|row| format!("{} {} {}", row["line"], row["column"], row["reason"]))
        .collect();
    told.sort();
    let expected = [
        "3 \"at\" \"bad_timestamp\"",
        "3 null \"no_name\"",
        "4 \"name\" \"not_an_object\"",
        "4 null \"no_name\"",
        "5 \"zip\" \"bad_int\"",
    ];
    ensure!(told == expected, "{told:?}");

    // The row is kept whole, so a definition that takes the text finds it at the same path.
    std::fs::write(stage.path().join("nested.yaml"), pipeline(&api.address(), "text"))?;
    stage.verb(&["replay", &run, "nested.yaml"]).await?.success()?;
    let replayed = rows(&warehouse, "SELECT id, city, zip FROM firsts WHERE id = 5").await;
    ensure!(replayed.is_ok_and(|rows| rows == ["(5,Bern,3000)"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_without_a_value_is_said_before_a_run_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("orders.jsonl"), ORDERS)?;
    let file = |columns: &str, rest: &str| {
        format!(
            "pipeline: p\nsources:\n  orders: {{json: orders.jsonl, columns: {{{columns}}}{rest}}}\nloads:\n  \
             l: {{from: orders, to: warehouse, table: t, mode: replace}}\n"
        )
    };
    for (text, parts) in [
        (
            file("customer.name: text", ""),
            &["nested.yaml:3:", "customer_name: {type: \"text\", path: customer.name}"][..],
        ),
        (
            file(
                "id: int, x: {type: text, path: customer.nam}",
                ", on_missing_column: fail",
            ),
            &[
                "nested.yaml:3:",
                "column \"x\" is in none of its first objects at customer.nam",
            ],
        ),
        (
            file("id: int, x: {type: text, path: customer.name}", ", on_new_column: fail"),
            &["\"lines\"", "\"total\"", "not declared"],
        ),
    ] {
        std::fs::write(folder.path().join("nested.yaml"), &text)?;
        let said = Verb::new(folder.path()).args(["run", "nested.yaml"]).output().await?;
        said.failure(parts)?;
    }
    // A value of any kind is no column.
    let sql = "steps: {s: \"SELECT id, customer->'name' AS name FROM orders\"}";
    let text = file("id: int, customer: text", "")
        .replace("loads:", &format!("{sql}\nloads:"))
        .replace("from: orders", "from: s");
    std::fs::write(folder.path().join("nested.yaml"), text)?;
    let said = Verb::new(folder.path())
        .args(["validate", "nested.yaml"])
        .output()
        .await?;
    said.failure(&["nested.yaml:6:", "JSON value", "`->>`"])?;
    Ok(())
}
