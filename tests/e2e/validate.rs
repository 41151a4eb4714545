//! `haulage validate` finds every mistake before anything runs, and says file, line, column and what to do.

use anyhow::{Result, ensure};

use super::support::cluster::{Cluster, Settings};
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

/// A parameter without a value and a file that can't be read hide no mistake elsewhere: one round names all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_known_yet_hides_no_mistake() -> Result<()> {
    let open = SOUND.replacen("day: {type: date, default: 2024-01-31}", "day: date", 1);
    let sound = validate(&open, &["--output", "json"]).await?.success()?.json()?;
    ensure!(
        sound["valid"] == true && sound["params_without_value"][0] == "day",
        "{sound}"
    );
    let sound = validate(&open, &[]).await?.success()?;
    ensure!(
        sound.stdout.contains("without a value") && sound.stdout.contains("day"),
        "{sound:?}"
    );

    let broken = open.replacen("SELECT id, customer, amount", "SELECT id, customer, amuont", 1);
    let wrong = validate(&broken, &["--output", "json"]).await?;
    let errors = wrong.json()?["errors"].clone();
    ensure!(errors.as_array().is_some_and(|all| all.len() == 1), "{errors}");
    ensure!(errors[0]["line"] == 16, "{errors}");
    // A run wants the value, and says the rest in the same round.
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("orders.yaml"), &broken)?;
    let run = Verb::new(folder.path()).args(["run", "orders.yaml"]).output().await?;
    run.failure(&["orders.yaml:3:", "`day` has no value", "orders.yaml:16:", "amuont"])?;
    ensure!(
        !folder.path().join(".haulage").exists(),
        "a home was made for a wrong file"
    );

    // Without declared columns the header says them; a file that isn't there hides nothing about the other sources.
    let headless = broken.replacen("    columns: {customer: int!, name: text}\n", "", 1);
    validate(&headless, &[])
        .await?
        .failure(&["orders.yaml:8:", "customers.csv", "orders.yaml:15:", "amuont"])?;
    Ok(())
}

/// SQL that is too deep to be planned, with what is said of it.
fn too_deep() -> [(String, &'static str); 4] {
    let chain = |part: &str, with: &str, times: usize| vec![part; times].join(with);
    [
        (
            format!("SELECT {} AS id, customer, amount FROM raw", chain("id", " + ", 5_000)),
            "operators in a row",
        ),
        (
            format!(
                "SELECT id, customer, amount FROM raw WHERE {}",
                chain("id = 1", " OR ", 10_000)
            ),
            "IN (a, b, ...)",
        ),
        (
            format!(
                "SELECT {}id{} AS id, customer, amount FROM raw",
                "(".repeat(20_000),
                ")".repeat(20_000)
            ),
            "nested too deep",
        ),
        (
            chain("SELECT id, customer, amount FROM raw", " UNION ALL ", 2_000),
            "put together with UNION",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_that_is_too_deep_is_refused_with_its_place() -> Result<()> {
    for (sql, reason) in too_deep() {
        let text = SOUND.replacen("SELECT id, customer, amount FROM raw WHERE placed <= $day", &sql, 1);
        let output = validate(&text, &[]).await?.failure(&["orders.yaml:16:", reason])?;
        ensure!(output.code == 1, "exit code {}", output.code);
    }
    Ok(())
}

/// A hostile pipeline for the coordinator, and one whose columns only a node knows: neither goes down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_submission_takes_nothing_down() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |file: &str| folder.path().join(file).display().to_string();
    let settings = Settings {
        ledger: format!("sqlite:{}", at("ledger.db")),
        warehouse: format!("sqlite:{}", at("warehouse.db")),
        store: at("checkpoints"),
        nodes: 1,
        envs: Vec::new(),
        faults: None,
    };
    let cluster = Cluster::start(folder.path(), settings).await?;
    let file = folder.path().join("orders.yaml");
    for (sql, reason) in too_deep() {
        let text = SOUND.replacen("SELECT id, customer, amount FROM raw WHERE placed <= $day", &sql, 1);
        std::fs::write(&file, text)?;
        let refused = cluster.client().args(["submit", "orders.yaml"]).output().await?;
        refused.failure(&["orders.yaml:16:", reason])?;
    }
    // Thousands of errors still reach the client as what they are.
    let columns: Vec<String> = (0..3_000).map(|number| format!("id + {number}")).collect();
    let many = format!("SELECT {} FROM raw", columns.join(", "));
    std::fs::write(
        &file,
        SOUND.replacen("SELECT id, customer, amount FROM raw WHERE placed <= $day", &many, 1),
    )?;
    let refused = cluster.client().args(["submit", "orders.yaml"]).output().await?;
    refused.failure(&["orders.yaml:16:", "has no name", "shows it all"])?;

    std::fs::write(folder.path().join("a.csv"), "id\n1\n2\n")?;
    let doubling = |steps: usize| {
        let mut text = "pipeline: doubling\nsources: {raw: {csv: a.csv}}\nsteps:\n  s0: SELECT CAST(id AS bigint) AS id FROM raw\n".to_owned();
        for number in 1..steps {
            text += &format!("  s{number}: SELECT id + id AS id FROM s{}\n", number - 1);
        }
        text + &format!(
            "  last: SELECT id FROM s{} WHERE id > 0\nloads: {{l: {{from: last, to: warehouse, table: l, mode: append}}}}\n",
            steps - 1
        )
    };
    std::fs::write(&file, doubling(40))?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    cluster.watch(&run).await?.failure(&["terms", "orders.yaml:"])?;

    std::fs::write(&file, doubling(5))?;
    let (run, _) = cluster.submit(&file, &[]).await?;
    cluster.watch(&run).await?.success()?;
    let rows = flights::sqlite(&folder.path().join("warehouse.db"), "SELECT CAST(id AS text) FROM l").await?;
    ensure!(rows == ["16", "32"], "{rows:?}");
    Ok(())
}

/// What is let through is planned and run, at the limits and in a build that needs most stack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_nearly_too_deep_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("a.csv"), "id\n1\n2\n")?;
    let sum = vec!["id"; 190].join(" + ");
    let or: Vec<String> = (0..98).map(|number| format!("id = {number} OR id > 5")).collect();
    let or = or[..90].join(" OR ");
    let unions = ["SELECT id FROM sums"; 4].join(" UNION ALL ");
    let mut text = format!(
        "pipeline: deep\nsources: {{raw: {{csv: a.csv, columns: {{id: bigint!}}}}}}\nsteps:\n  sums:\n    sql: SELECT {sum} AS id FROM \
         raw\n    reject: {{zero: id = 0}}\n  unions: {unions}\n  few: SELECT u.id FROM unions AS u WHERE {or}\n  s0: SELECT id FROM few\n"
    );
    for number in 1..60 {
        text += &format!("  s{number}: SELECT id + 1 AS id FROM s{} WHERE id > 1\n", number - 1);
    }
    text += "loads: {l: {from: s59, to: warehouse, table: l, mode: append}}\n";
    std::fs::write(folder.path().join("deep.yaml"), text)?;
    Verb::new(folder.path())
        .args(["run", "deep.yaml"])
        .output()
        .await?
        .success()?;
    let warehouse = folder.path().join(".haulage/warehouse.db");
    let rows = flights::sqlite(&warehouse, "SELECT count(*) || ' ' || min(id) || ' ' || max(id) FROM l").await?;
    ensure!(rows == ["8 249 439"], "{rows:?}");
    Ok(())
}
