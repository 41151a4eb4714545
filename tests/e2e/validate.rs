//! `haulage validate` finds every mistake before anything runs, and says file, line, column and what to do.

use anyhow::{Result, ensure};

use super::support::flights;
use super::support::process::{Output, Verb};

/// A sound pipeline; each case breaks one line of it.
const SOUND: &str = "\
pipeline: orders
params:
  day: {type: date, default: 2024-01-31}
sources:
  raw:
    csv: data/*.csv
    columns: {id: int!, customer: int, amount: double, placed: date}
  customers:
    csv: customers.csv
    lookup: true
    columns: {customer: int!, name: text}
  more:
    csv: more.csv
    columns: {id: int!, customer: int}
steps:
  clean: SELECT id, customer, amount FROM raw WHERE placed <= $day
  valid:
    from: clean
    reject:
      no_amount: amount IS NULL
  named: SELECT v.*, c.name FROM valid v LEFT JOIN customers c ON c.customer = v.customer
loads:
  orders: {from: named, to: warehouse, table: orders, mode: merge, key: [id]}
";

async fn validate(text: &str, more: &[&str]) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("orders.yaml"), text)?;
    let output = Verb::new(folder.path())
        .args(["validate", "orders.yaml"])
        .args(more)
        .output()
        .await?;
    let left: Vec<_> = std::fs::read_dir(folder.path())?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(left == ["orders.yaml"], "validate left {left:?} behind");
    Ok(output)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_files_pass() -> Result<()> {
    validate(SOUND, &[]).await?.success()?;
    let folder = tempfile::tempdir()?;
    let args = ["validate".into(), flights::pipeline().into_os_string()];
    Verb::new(folder.path()).args(args).output().await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_is_named_with_its_place() -> Result<()> {
    // What is replaced, by what, and what the error has to say.
    let cases: [(&str, &str, &[&str]); 15] = [
        ("sources:", "sorces:", &["orders.yaml:4:1", "sorces", "sources"]),
        ("lookup: true", "lokup: true", &["orders.yaml:10:5", "lokup", "lookup"]),
        (
            "amount: double",
            "amount: duoble",
            &["orders.yaml:7:", "duoble", "double"],
        ),
        ("mode: merge", "mode: upsert", &["orders.yaml:23:", "upsert", "merge"]),
        ("key: [id]", "key: [identity]", &["orders.yaml:23:", "identity"]),
        ("from: clean", "from: claen", &["orders.yaml:18:11", "claen", "clean"]),
        ("FROM raw WHERE", "FROM rwa WHERE", &["orders.yaml:16:", "rwa", "raw"]),
        (
            "SELECT id, customer, amount",
            "SELECT id, customer, amuont",
            &["orders.yaml:16:", "amuont", "amount"],
        ),
        (
            "SELECT id, customer, amount",
            "SELEC id, customer, amount",
            &["orders.yaml:16:"],
        ),
        ("amount IS NULL", "amount LIKE id", &["orders.yaml:20:", "no_amount"]),
        ("placed <= $day", "placed <= $dya", &["orders.yaml:16:", "dya", "day"]),
        (
            "default: 2024-01-31",
            "default: yesterday",
            &["orders.yaml:3:", "yesterday", "date"],
        ),
        (
            "FROM raw WHERE placed <= $day",
            "FROM named",
            &["orders.yaml:", "clean", "named"],
        ),
        ("to: warehouse", "to: postgres://u:hunter2@h/db", &["orders.yaml:23:"]),
        (
            "FROM raw WHERE",
            "FROM raw GROUP BY id, customer, amount HAVING",
            &["orders.yaml:16:", "clean", "GROUP BY"],
        ),
    ];
    for (sound, broken, parts) in cases {
        ensure!(SOUND.contains(sound), "{sound:?} is no longer in the sound file");
        let output = validate(&SOUND.replacen(sound, broken, 1), &[]).await?;
        output
            .failure(parts)
            .map_err(|error| error.context(format!("with {broken:?}")))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_that_one_chunk_cannot_answer_is_refused_with_the_step_and_the_reason() -> Result<()> {
    let cases = [
        (
            "SELECT customer, count(*) AS n, max(id) AS id FROM raw GROUP BY customer",
            "GROUP BY",
        ),
        ("SELECT DISTINCT id, customer, amount FROM raw", "DISTINCT"),
        (
            "SELECT id, customer, row_number() OVER (ORDER BY id) AS amount FROM raw",
            "window",
        ),
        ("SELECT id, customer, amount FROM raw ORDER BY amount LIMIT 10", "LIMIT"),
        (
            "SELECT r.id, r.customer, r.amount FROM raw r JOIN more m ON m.id = r.id",
            "more",
        ),
    ];
    for (sql, reason) in cases {
        let text = SOUND.replacen("SELECT id, customer, amount FROM raw WHERE placed <= $day", sql, 1);
        let output = validate(&text, &[]).await?;
        output
            .failure(&["orders.yaml:16:", "clean", reason])
            .map_err(|error| error.context(sql))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mistakes_are_found_in_one_round_and_no_address_is_repeated() -> Result<()> {
    let text = SOUND
        .replacen("lookup: true", "lokup: true", 1)
        .replacen("amount: double", "amount: duoble", 1)
        .replacen("to: warehouse", "to: postgres://u:hunter2@h/db", 1);
    let output = validate(&text, &[])
        .await?
        .failure(&["orders.yaml:10:", "orders.yaml:7:", "orders.yaml:23:"])?;
    ensure!(
        !format!("{output:?}").contains("hunter2"),
        "a password was repeated: {output:?}"
    );
    validate("", &[]).await?.failure(&["orders.yaml"])?;
    validate("pipeline: [", &[]).await?.failure(&["orders.yaml:"])?;
    validate(SOUND, &["--param", "day=2024-02-30"])
        .await?
        .failure(&["day", "2024-02-30"])?;
    Ok(())
}
