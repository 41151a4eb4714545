//! Checks with values from elsewhere: parameters in their queries, and what a column may hold from a lookup. Values are bound,
//! compare as the column's type does, and never become SQL. On databases and on files.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checks::Stage;
use super::support::cluster::run_of;
use super::support::process::{Output, Verb, newest_run};

const ROWS: &str = "\
id,name,price,day,at,tz
1,ann,10.50,2024-01-01,2024-01-01T00:00:00,2024-01-01T00:00:00Z
2,o'neil; DROP TABLE keep,2.25,2024-02-29,2024-02-29T12:30:00.25,2024-02-29T12:30:00Z
,,,,,
";

/// Where the rows go.
enum To {
    Database(Stage),
    Files(tempfile::TempDir),
}

impl To {
    fn path(&self) -> &std::path::Path {
        match self {
            Self::Database(stage) => stage.path(),
            Self::Files(folder) => folder.path(),
        }
    }

    fn files() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("lake"))?;
        Ok(Self::Files(folder))
    }

    fn verb(&self, args: &[&str]) -> Verb {
        match self {
            Self::Database(stage) => stage.verb(args),
            Self::Files(folder) => {
                let lake = format!("file://{}", folder.path().join("lake").display());
                Verb::new(folder.path())
                    .args(args.iter().copied())
                    .env("HAULAGE_DESTINATION_WAREHOUSE", lake)
            }
        }
    }

    async fn run(&self, params: &str, lookup: &str, checks: &[String]) -> Result<Output> {
        let checks: String = checks.iter().map(|check| format!("  - {check}\n")).collect();
        let text = format!(
            "pipeline: p\nparams:\n{params}sources:\n  raw:\n    csv: rows.csv\n    columns: {{id: int, name: text, price: \
             \"decimal(10,2)\", day: date, at: timestamp, tz: timestamptz}}\n  known:\n    csv: known.csv\n    lookup: true\n    \
             columns: {lookup}\nloads:\n  out: {{from: raw, to: warehouse, table: out, mode: append}}\nchecks:\n{checks}"
        );
        std::fs::write(self.path().join("rows.csv"), ROWS)?;
        std::fs::write(self.path().join("pipeline.yaml"), text)?;
        self.verb(&["run", "pipeline.yaml"]).output().await
    }

    /// What the checks of the newest run found.
    async fn found(&self) -> Result<Vec<Value>> {
        let run = newest_run(self.path()).await?;
        let shown = self
            .verb(&["show", &run, "--output", "json"])
            .output()
            .await?
            .success()?
            .json()?;
        let checks = run_of(&shown)["loads"][0]["checks"].as_array().cloned();
        checks.context("checks are shown")
    }
}

async fn parameters_are_bound(to: &To) -> Result<()> {
    let hostile = "o'neil; DROP TABLE keep";
    std::fs::write(to.path().join("known.csv"), "k\n")?;
    let params = format!(
        "  who: {{type: text, default: \"{hostile}\"}}\n  evil: {{type: text, default: \"' OR '1'='1\"}}\n  \
         dash: {{type: text, default: \"1) -- \"}}\n  most: {{type: int, default: 2}}\n  share: {{type: double, default: 0.5}}\n  \
         sum: {{type: \"decimal(10,2)\", default: 2.25}}\n  day: {{type: date, default: 2024-02-29}}\n  \
         at: {{type: timestamp, default: \"2024-02-29T12:30:00.25\"}}\n  truth: {{type: bool, default: true}}\n"
    );
    let count = "SELECT count(*) FROM staged WHERE";
    let queries = [
        (format!("{count} name = $who"), 1),
        (format!("{count} name = $evil"), 0),
        (format!("{count} name = $dash OR name = $evil"), 0),
        (format!("{count} name = $who AND name = $who AND id = $most"), 1),
        (format!("{count} name = '$who'"), 0),
        (format!("{count} id > $most - 1"), 1),
        (format!("{count} id * $share > 0.75"), 1),
        (format!("{count} price = $sum"), 1),
        // Of texts, 10.50 would be neither.
        (format!("{count} price > 9.5"), 1),
        (format!("{count} price < 9.5"), 1),
        (format!("{count} day = $day"), 1),
        (format!("{count} day < $day"), 1),
        (format!("{count} at = $at"), 1),
        (format!("{count} at < $at AND $truth"), 1),
    ];
    let checks: Vec<String> = queries
        .iter()
        .enumerate()
        .map(|(at, (query, rows))| {
            format!("{{sql: \"{query}\", expect: \"= {rows}\", name: query {at}, on_fail: warn}}")
        })
        .collect();
    to.run(&params, "{k: text}", &checks).await?.success()?;
    let found = to.found().await?;
    ensure!(found.len() == queries.len());
    for ((query, rows), found) in queries.iter().zip(&found) {
        ensure!(found["holds"] == true, "{query}: {found}, and not {rows}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_bound_in_postgres() -> Result<()> {
    parameters_are_bound(&To::Database(Stage::postgres().await?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_bound_in_sqlite() -> Result<()> {
    parameters_are_bound(&To::Database(Stage::sqlite()?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_bound_over_files() -> Result<()> {
    parameters_are_bound(&To::files()?).await
}

/// A lookup's column of another type, what stands in it, the load's column, and what is said of its two values.
const LOOKUPS: [(&str, &str, &str, &str); 14] = [
    ("int", "1\n2\n\n", "id", "0 rows"),
    ("int", "1\n", "id", "1 row whose value isn't there: 2"),
    // In a column of integers `02` is 2, and what is no integer is none of its values.
    ("text", "1\n02\nx\n", "id", "0 rows"),
    ("text", "1\n2.5\nx\n", "id", "1 row whose value isn't there: 2"),
    ("bigint", "1\n5000000000\n2\n", "id", "0 rows"),
    ("text", "ann\n\"o'neil; DROP TABLE keep\"\n", "name", "0 rows"),
    (
        "text",
        "Ann\n\"o'neil; DROP TABLE keep\"\n",
        "name",
        "1 row whose value isn't there: ann",
    ),
    ("int", "7\n", "name", "2 rows whose value isn't there: ann, o'neil"),
    (
        "\"decimal(12,4)\"",
        "10.5000\n2.2549\n",
        "price",
        "1 row whose value isn't there: 2.25",
    ),
    ("\"decimal(12,4)\"", "10.5\n2.25\n", "price", "0 rows"),
    ("date", "2024-01-01\n2024-02-29\n", "day", "0 rows"),
    (
        "text",
        "2024-02-29\n",
        "day",
        "1 row whose value isn't there: 2024-01-01",
    ),
    (
        "timestamp",
        "2024-01-01T00:00:00\n2024-02-29 12:30:00.25\n",
        "at",
        "0 rows",
    ),
    (
        "timestamptz",
        "2024-01-01T01:00:00+01:00\n",
        "tz",
        "1 row whose value isn't there: 2024-02-29",
    ),
];

async fn a_lookup_says_what_may_be_there(to: &To) -> Result<()> {
    for (at, (kind, rows, column, words)) in LOOKUPS.iter().enumerate() {
        std::fs::write(to.path().join("known.csv"), format!("k\n{rows}"))?;
        let check = format!("{{references: {{{column}: k}}, lookup: known, name: check {at}, on_fail: warn}}");
        let params = format!("  n: {{type: int, default: {at}}}\n");
        to.run(&params, &format!("{{k: {kind}}}"), &[check]).await?.success()?;
        let found = to.found().await?;
        let said = found[0]["found"].as_str().unwrap_or_default();
        ensure!(
            said.starts_with(words) && found[0]["holds"] == words.starts_with('0'),
            "{column} in {kind} {rows:?}: {found:?}"
        );
    }
    // Of an empty lookup there is no value, and NULL passes all the same. The check blocks.
    std::fs::write(to.path().join("known.csv"), "k\n")?;
    let check = "{references: {id: k}, lookup: known}".to_owned();
    let failed = to.run("  n: {type: int, default: 99}\n", "{k: int}", &[check]).await?;
    failed.failure(&["references id in lookup known.k: 2 rows whose value isn't there: 1, 2"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_says_what_may_be_there_in_postgres() -> Result<()> {
    a_lookup_says_what_may_be_there(&To::Database(Stage::postgres().await?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_says_what_may_be_there_in_sqlite() -> Result<()> {
    a_lookup_says_what_may_be_there(&To::Database(Stage::sqlite()?)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_says_what_may_be_there_over_files() -> Result<()> {
    a_lookup_says_what_may_be_there(&To::files()?).await
}
