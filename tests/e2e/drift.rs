//! A source changes between two runs: columns are added, removed, reordered, renamed, widened, narrowed and changed in
//! type. Each does what the pipeline says, `haulage plan` said so before, and nothing loads half.
//!
//! A first run loads a table for every case. Then each case has a source of its own that has drifted, is planned, and run:
//! what became of the table is held against what is expected, and against what the plan foretold.

mod cases;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use datafusion::arrow::array::{ArrayRef, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool, Row as _};

use self::cases::{Case, Format, Outcome, Values, WITH_EXTRA, cases, id, n, note};
use super::support::cluster::{Cluster, Settings, check_state, events};
use super::support::postgres::Postgres;
use super::support::process::{PATIENCE, Verb, newest_rejects, newest_run};

/// A place that rows go to, looked at in another way than Haulage's.
enum Target {
    Postgres(PgPool, String),
    Sqlite(std::path::PathBuf),
}

/// A table: its columns with their types, and its rows, sorted, as `column=value` but for what is Haulage's own.
type Seen = (Vec<(String, String)>, Vec<String>);

impl Target {
    fn address(&self) -> String {
        match self {
            Self::Postgres(_, url) => format!("warehouse={url}"),
            Self::Sqlite(path) => format!("warehouse=sqlite:{}", path.display()),
        }
    }

    async fn pairs(&self, sql: &str) -> Result<Vec<(String, String)>> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool, _) => {
                let rows = sqlx::raw_sql(sql).fetch_all(pool).await?;
                rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
            }
            Self::Sqlite(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let mut connection = options.connect().await?;
                let rows = sqlx::query(sql).fetch_all(&mut connection).await?;
                let pairs = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect();
                connection.close().await?;
                pairs
            }
        }
    }

    async fn see(&self, table: &str) -> Result<Seen> {
        let columns = self
            .pairs(&match self {
                Self::Postgres(..) => format!(
                    "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
                     WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
                ),
                Self::Sqlite(_) => format!("SELECT name, type FROM pragma_table_info('{table}')"),
            })
            .await?;
        let parts: Vec<String> = columns
            .iter()
            .map(|(name, _)| format!("'{name}=' || coalesce(CAST({name} AS TEXT), '~')"))
            .collect();
        let sql = format!("SELECT {}, '' FROM {table} ORDER BY id", parts.join(" || ' ' || "));
        let rows = self.pairs(&sql).await?.into_iter().map(|(row, _)| row).collect();
        Ok((columns, rows))
    }
}

/// The source as the pipeline declares it, after its rows are written.
async fn write(format: Format, folder: &Path, crm: &PgPool, name: &str, columns: &[Values]) -> Result<String> {
    let row = |place: usize| columns.iter().map(move |column| (column, &column.values[place]));
    match format {
        Format::Csv => {
            let mut text = columns.iter().map(|column| column.name).collect::<Vec<_>>().join(",") + "\n";
            for place in 0..3 {
                let fields: Vec<String> = row(place)
                    .map(|(_, value)| match value {
                        Value::Null => String::new(),
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    })
                    .collect();
                text.push_str(&(fields.join(",") + "\n"));
            }
            std::fs::write(folder.join(format!("{name}.csv")), text)?;
            Ok(format!("csv: {name}.csv"))
        }
        Format::Json => {
            let mut text = String::new();
            for place in 0..3 {
                let object: Map<String, Value> = row(place)
                    .map(|(column, value)| (column.name.to_owned(), value.clone()))
                    .collect();
                text.push_str(&format!("{}\n", Value::Object(object)));
            }
            std::fs::write(folder.join(format!("{name}.jsonl")), text)?;
            Ok(format!("json: {name}.jsonl"))
        }
        Format::Parquet => {
            let numbers = |column: &Values| column.values.iter().map(Value::as_i64).collect::<Vec<_>>();
            let arrays = columns.iter().map(|column| {
                let array: ArrayRef = match column.type_name {
                    "smallint" => Arc::new(
                        numbers(column)
                            .into_iter()
                            .map(|n| n.map(|n| n as i16))
                            .collect::<Int16Array>(),
                    ),
                    "int" => Arc::new(
                        numbers(column)
                            .into_iter()
                            .map(|n| n.map(|n| n as i32))
                            .collect::<Int32Array>(),
                    ),
                    "bigint" => Arc::new(Int64Array::from(numbers(column))),
                    _ => Arc::new(column.values.iter().map(Value::as_str).collect::<StringArray>()),
                };
                (column.name, array, true)
            });
            let batch = RecordBatch::try_from_iter_with_nullable(arrays)?;
            let file = std::fs::File::create(folder.join(format!("{name}.parquet")))?;
            let mut writer = ArrowWriter::try_new(file, batch.schema(), None)?;
            writer.write(&batch)?;
            writer.close()?;
            Ok(format!("parquet: {name}.parquet"))
        }
        Format::Postgres => {
            let definitions: Vec<String> = columns
                .iter()
                .map(|column| format!("{} {}", column.name, column.type_name))
                .collect();
            let rows: Vec<String> = (0..3)
                .map(|place| {
                    let values: Vec<String> = row(place)
                        .map(|(_, value)| match value {
                            Value::Null => "NULL".to_owned(),
                            Value::String(text) => format!("'{text}'"),
                            other => other.to_string(),
                        })
                        .collect();
                    format!("({})", values.join(", "))
                })
                .collect();
            let sql = format!(
                "CREATE TABLE src_{name} ({}); INSERT INTO src_{name} VALUES {}",
                definitions.join(", "),
                rows.join(", ")
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(crm).await?;
            Ok(format!("postgres: crm\n    table: src_{name}"))
        }
    }
}

/// A pipeline of which source `raw` stands in line 3, and its columns from line 7 on.
fn pipeline(name: &str, source: &str, settings: &str, loads: &str) -> String {
    let second = if source.contains('\n') {
        ""
    } else {
        "\n    # of one line"
    };
    let settings: String = settings
        .split(", ")
        .filter(|setting| !setting.is_empty())
        .map(|setting| format!("    {setting}\n"))
        .collect();
    format!(
        "pipeline: {name}\nsources:\n  raw:\n    {source}{second}\n    columns:\n      id: int!\n      n: int\n      \
         note: text\n{settings}loads:\n{loads}"
    )
}

async fn try_all(format: Format, to_postgres: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Postgres::start().await?;
    let crm = server.create("crm").await?;
    let warehouse = server.create("warehouse").await?;
    let target = if to_postgres {
        Target::Postgres(warehouse, server.url("warehouse"))
    } else {
        Target::Sqlite(folder.path().join("warehouse.db"))
    };
    let call = |verb: &str, file: &str| {
        let address = target.address();
        Verb::new(folder.path())
            .args([verb, file, "--destination", &address])
            .env("HAULAGE_SOURCE_CRM", server.url("crm"))
    };

    let cases = cases();
    let load = |case: &Case| {
        format!(
            "  {0}: {{from: raw, to: warehouse, table: {0}, mode: merge, key: [id]}}\n",
            case.name
        )
    };
    let loads: String = cases.iter().map(load).collect();
    let source = write(format, folder.path(), &crm, "base", &[id(1), n(), note()]).await?;
    std::fs::write(folder.path().join("base.yaml"), pipeline("base", &source, "", &loads))?;
    call("run", "base.yaml").output().await?.success()?;

    for case in &cases {
        let expected = (case.outcome)(format, to_postgres);
        let said = try_one(format, folder.path(), &crm, &target, case, &expected, &call).await;
        said.with_context(|| format!("{format:?} {} to postgres: {to_postgres}", case.name))?;
    }
    Ok(())
}

async fn try_one(
    format: Format,
    folder: &Path,
    crm: &PgPool,
    target: &Target,
    case: &Case,
    expected: &Outcome,
    call: &impl Fn(&str, &str) -> Verb,
) -> Result<()> {
    let name = case.name;
    let source = write(format, folder, crm, name, &case.source).await?;
    let load = format!(
        "  drifted: {{from: raw, to: warehouse, table: {name}, mode: merge, key: [id]{}{}}}\n",
        if case.settings.1.is_empty() { "" } else { ", " },
        case.settings.1
    );
    let file = format!("{name}.yaml");
    std::fs::write(folder.join(&file), pipeline(name, &source, case.settings.0, &load))?;
    let before = target.see(name).await?;
    let planned = call("plan", &file).args(["--output", "json"]).output().await?;
    ensure!(target.see(name).await? == before, "planning changed the table");
    let ran = call("run", &file).output().await?;
    let after = target.see(name).await?;
    match expected {
        Outcome::Unsayable => {
            planned.failure(&["says nothing"])?;
            ran.failure(&["says nothing"])?;
            ensure!(after == before);
        }
        Outcome::Refused(parts) => {
            planned.failure(parts).context("plan")?;
            ran.failure(parts).context("run")?;
            ensure!(after == before, "{after:?} was {before:?}");
        }
        Outcome::Fails(parts) => {
            planned.success().context("plan")?;
            ran.failure(parts).context("run")?;
            ensure!(after == before, "{after:?} was {before:?}");
        }
        Outcome::Loaded(rows, rejected, reason) => {
            let plan = planned.success().context("plan")?.json()?;
            ran.success().context("run")?;
            check_columns(&plan, &before, &after)?;
            // The rows of the first run have no value in a column that was added.
            let more: String = after.0[before.0.len()..]
                .iter()
                .map(|(name, _)| format!(" {name}=~"))
                .collect();
            let mut all: Vec<String> = before.1.iter().map(|row| format!("{row}{more}")).collect();
            all.extend(rows.iter().map(|row| (*row).to_owned()));
            ensure!(after.1 == all, "{:#?}\nand not {all:#?}", after.1);
            check_rejects(folder, &plan, *rejected, reason).await?;
            if *reason == "new_column" {
                let declared = pipeline(name, &source, case.settings.0, &load);
                let declared = declared
                    .replace("note: text\n", "note: text\n      extra: text\n")
                    .replace("key: [id]", "key: [id], on_new_column: add");
                replayed(folder, target, case, &declared, call).await?;
            }
        }
    }
    Ok(())
}

/// Rows that are in quarantine for their new column are loaded with its values once it is declared; before, they stay there.
async fn replayed(
    folder: &Path,
    target: &Target,
    case: &Case,
    declared: &str,
    call: &impl Fn(&str, &str) -> Verb,
) -> Result<()> {
    let run = newest_run(folder).await?;
    let undeclared = format!("{}.yaml", case.name);
    call("replay", &run).args([&undeclared]).output().await?.success()?;
    let again = newest_run(folder).await?;
    let (_, rejects) = newest_rejects(folder).await?;
    ensure!(rejects.len() == 3, "{rejects:?}");
    call("revert", &again).output().await?.success()?;

    std::fs::write(folder.join("declared.yaml"), declared)?;
    call("replay", &run).args(["declared.yaml"]).output().await?.success()?;
    let (_, rows) = target.see(case.name).await?;
    let loaded: Vec<&String> = rows.iter().skip(rows.len() - 3).collect();
    ensure!(loaded == WITH_EXTRA, "{rows:?}");
    Ok(())
}

/// The columns of the table have become what the plan said, and no others.
fn check_columns(plan: &Value, before: &Seen, after: &Seen) -> Result<()> {
    let there = &plan["destinations"][0];
    let mut foretold = before.0.clone();
    let mut statements = 0;
    for change in there["columns"].as_array().context("columns")? {
        let word = |key: &str| change[key].as_str().unwrap_or_default().to_owned();
        match word("change").as_str() {
            "added" => foretold.push((word("column"), word("to"))),
            "widened" => {
                let column = foretold.iter_mut().find(|(name, _)| *name == word("column"));
                let column = column.context("a column that isn't there is widened")?;
                ensure!(column.1 == word("from"), "{change} of {column:?}");
                column.1 = word("to");
            }
            "unfilled" => continue,
            other => bail!("{other} is no change"),
        }
        statements += 1;
    }
    ensure!(foretold == after.0, "foretold {foretold:?}, found {:?}", after.0);
    let ddl = there["ddl"].as_array().context("ddl")?;
    ensure!(ddl.len() == statements, "{ddl:?} for {statements} changes");
    Ok(())
}

async fn check_rejects(folder: &Path, plan: &Value, rejected: usize, reason: &str) -> Result<()> {
    let (_, rejects) = newest_rejects(folder).await?;
    let reasons: Vec<&str> = rejects.iter().filter_map(|row| row["reason"].as_str()).collect();
    ensure!(reasons == vec![reason; rejected], "{reasons:?}");
    let foretold = plan["drift"].as_array().context("drift")?;
    let sets_aside = foretold.iter().any(|drift| drift["change"] == "quarantined");
    ensure!(sets_aside == (reason == "new_column"), "{foretold:?}");
    Ok(())
}

macro_rules! drift {
    ($($test:ident: $format:ident, $to_postgres:literal;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() -> Result<()> {
            try_all(Format::$format, $to_postgres).await
        })+
    };
}

drift! {
    of_csv_into_postgres: Csv, true;
    of_csv_into_sqlite: Csv, false;
    of_json_into_postgres: Json, true;
    of_json_into_sqlite: Json, false;
    of_parquet_into_postgres: Parquet, true;
    of_parquet_into_sqlite: Parquet, false;
    of_postgres_into_postgres: Postgres, true;
    of_postgres_into_sqlite: Postgres, false;
}

/// Of a source of several objects the columns of all of them are the run's, on whichever node a chunk is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_columns_of_all_files_are_those_of_the_run_and_a_late_key_is_set_aside() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    std::fs::write(path.join("a.csv"), "id,x\n1,p\n")?;
    std::fs::write(path.join("b.csv"), "y,id\nq,2\n")?;
    // More lines without the key than are looked at before the run.
    let many: String = (10..9_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    std::fs::write(path.join("c.jsonl"), format!("{many}{{\"id\":3,\"late\":1}}\n"))?;
    std::fs::write(
        path.join("pipeline.yaml"),
        "pipeline: several\nsources:\n  \
         files: {csv: \"*.csv\", columns: {id: int!}, on_new_column: add}\n  \
         keys: {json: c.jsonl, columns: {id: int!}, on_new_column: add}\nloads:\n  \
         files: {from: files, to: warehouse, table: files, mode: replace}\n  \
         keys: {from: keys, to: warehouse, table: keys, mode: replace}\n",
    )?;
    let target = Target::Sqlite(path.join("warehouse.db"));
    let run = Verb::new(path).args(["run", "pipeline.yaml", "--destination", &target.address()]);
    run.output().await?.success()?;
    let (columns, rows) = target.see("files").await?;
    ensure!(
        columns.len() == 3 && rows == ["id=1 x=p y=~", "id=2 x=~ y=q"],
        "{columns:?} {rows:?}"
    );
    let (columns, rows) = target.see("keys").await?;
    ensure!(
        columns.len() == 1 && rows.len() == 8_990,
        "{columns:?}, {} rows",
        rows.len()
    );
    let (_, rejects) = newest_rejects(path).await?;
    ensure!(
        rejects.len() == 1 && rejects[0]["reason"] == "new_column" && rejects[0]["column"] == "late",
        "{rejects:?}"
    );
    ensure!(rejects[0]["line"] == 8_991, "{rejects:?}");

    // The same key ends the run where it is said to, and nothing is loaded.
    let text = std::fs::read_to_string(path.join("pipeline.yaml"))?;
    let text = text.replace(
        "id: int!}, on_new_column: add}\nloads",
        "id: int!}, on_new_column: fail}\nloads",
    );
    std::fs::write(path.join("pipeline.yaml"), text)?;
    let before = (target.see("files").await?, target.see("keys").await?);
    let parts = [
        "c.jsonl line 8991, column late: new_column",
        "`on_new_column: fail` ends the run",
        ":4:3: error",
    ];
    run.output().await?.failure(&parts)?;
    ensure!(
        (target.see("files").await?, target.see("keys").await?) == before,
        "a part of it was loaded"
    );
    Ok(())
}

/// A node that comes later plans the run by the columns that discovery has put down, whatever has appeared since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_appears_in_the_middle_changes_no_column_of_the_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    for number in 0..4 {
        let rows: String = (0..40).map(|row| format!("{},{row}\n", number * 40 + row)).collect();
        std::fs::write(path.join(format!("in-{number}.csv")), format!("id,x\n{rows}"))?;
    }
    let file = path.join("pipeline.yaml");
    std::fs::write(
        &file,
        "pipeline: landing\ncheckpoint_rows: 20\nsources:\n  raw: {csv: \"in-*.csv\", columns: {id: int!}, \
         on_new_column: add}\nloads:\n  landed: {from: raw, to: warehouse, table: landed, mode: append}\n",
    )?;
    let target = Target::Sqlite(path.join("warehouse.db"));
    let settings = Settings {
        ledger: format!("sqlite:{}", path.join("ledger.db").display()),
        warehouse: format!("sqlite:{}", path.join("warehouse.db").display()),
        store: path.join("store").display().to_string(),
        nodes: 1,
        envs: Vec::new(),
        faults: Some("slow@segment:1000ms".to_owned()),
    };
    let mut cluster = Cluster::start(path, settings).await?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    let loading = |shown: &Value| !events(shown, "chunk_staged").is_empty();
    cluster.until_run(&run, "a chunk is staged", PATIENCE, loading).await?;
    std::fs::write(path.join("in-0-late.csv"), "z,id\nlate,1000\n")?;
    // It has forgotten what it knew of the run.
    cluster.restart_node("node-1").await?;
    let shown = cluster.until_rest(&run).await?;
    check_state(&shown, "published")?;
    let (columns, rows) = target.see("landed").await?;
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        names == ["id", "x", "_haulage_run"] && rows.len() == 160,
        "{names:?}, {} rows",
        rows.len()
    );
    Ok(())
}
