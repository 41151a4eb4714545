//! Columns in the names of folders: what one pipeline has divided, another reads back; of files that others have written, too.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::support::cluster::run_of;
use super::support::flights::sqlite;
use super::support::process::{Output, Verb, newest_rejects, newest_run};

const EVENTS: &str = "id,day,region,n\n1,2024-01-01,north,10\n2,2024-01-01,,20\n3,2024-01-02,a/b é,30\n4,,north,40\n5,2024-01-02,NULL,50\n";

async fn run(folder: &Path, text: &str, more: &[&str]) -> Result<Output> {
    std::fs::write(folder.join("p.yaml"), text)?;
    let verb = Verb::new(folder).args(["run", "p.yaml"]).args(more.iter().copied());
    verb.output().await
}

async fn counts(folder: &Path) -> Result<Value> {
    let run = newest_run(folder).await?;
    let shown = Verb::new(folder).args(["show", &run, "--output", "json"]);
    Ok(run_of(&shown.output().await?.success()?.json()?)["counts"].clone())
}

/// The rows of a table in the home's warehouse.
async fn rows(folder: &Path, query: &str) -> Result<Vec<String>> {
    sqlite(&folder.join(".haulage/warehouse.db"), query).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_load_has_divided_is_read_back_by_what_infer_prints() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake)?;
    std::fs::write(folder.path().join("events.csv"), EVENTS)?;
    let destination = format!("lake=file://{}", lake.display());
    for (format, path) in [("parquet", "*.parquet"), ("csv", "*.csv"), ("jsonl", "*.jsonl")] {
        let text = format!(
            "pipeline: out\nsources:\n  raw: {{csv: events.csv, columns: {{id: int!, day: date, region: text, n: int}}}}\nloads:\n  \
             l: {{from: raw, to: lake, table: {format}, mode: replace, partition_by: [day, region], format: {format}}}\n"
        );
        run(folder.path(), &text, &["--destination", &destination])
            .await?
            .success()?;
        let glob = format!("lake/{format}/data/**/{path}");
        let printed = Verb::new(folder.path())
            .args(["infer", &glob, "--name", "back"])
            .output()
            .await?;
        let printed = printed.success()?.stdout;
        ensure!(printed.contains("      day: date\n      region: text\n"), "{printed}");
        let text = format!(
            "pipeline: back_{format}\n{printed}steps: {{s: \"SELECT id, day, region, n FROM back WHERE region IS NULL OR id <> 1\"}}\n\
             loads:\n  l: {{from: s, to: warehouse, table: {format}, mode: replace}}\n"
        );
        run(folder.path(), &text, &[]).await?.success().context(text)?;
        let query = format!(
            "SELECT id || '|' || coalesce(day, '-') || '|' || coalesce(region, '-') || '|' || n FROM {format} ORDER BY id"
        );
        let found = rows(folder.path(), &query).await?;
        let expected = [
            "2|2024-01-01|-|20",
            "3|2024-01-02|a/b é|30",
            "4|-|north|40",
            "5|2024-01-02|NULL|50",
        ];
        ensure!(found == expected, "{format}: {found:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_row_has_the_values_of_its_folder_when_it_is_replayed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (day, data) in [("2024-01-01", "id,n\n1,1\n2,x\n"), ("2024-01-02", "id,n\n3,y\n4,4\n")] {
        let place = folder.path().join(format!("in/day={day}"));
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join("a.csv"), data)?;
    }
    let text = |n: &str| {
        format!(
            "pipeline: p\nsources:\n  raw: {{csv: \"in/*/*.csv\", columns: {{id: int!, n: {n}}}, partitions: {{day: date!}}}}\n  \
             days: {{csv: \"in/*/*.csv\", lookup: true, columns: {{id: int!}}, partitions: {{day: text}}}}\nsteps:\n  \
             s: SELECT raw.id, CAST(replace(replace(CAST(n AS text), 'x', '2'), 'y', '3') AS int) AS n, raw.day, days.day AS other \
             FROM raw JOIN days ON days.id = raw.id\nloads:\n  l: {{from: s, to: warehouse, table: t, mode: merge, key: [id]}}\n"
        )
    };
    run(folder.path(), &text("int"), &[]).await?.success()?;
    let (first, rejects) = newest_rejects(folder.path()).await?;
    ensure!(rejects.len() == 2, "{rejects:?}");
    std::fs::write(folder.path().join("p.yaml"), text("text"))?;
    let replayed = Verb::new(folder.path())
        .args(["replay", &first, "p.yaml"])
        .output()
        .await?;
    replayed.success()?;
    let query = "SELECT id || '|' || n || '|' || day || '|' || other FROM t ORDER BY id";
    let found = rows(folder.path(), query).await?;
    let expected = [
        "1|1|2024-01-01|2024-01-01",
        "2|2|2024-01-01|2024-01-01",
        "3|3|2024-01-02|2024-01-02",
        "4|4|2024-01-02|2024-01-02",
    ];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_such_a_value_is_an_error_before_a_run_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for place in [
        "in/day=2024-01-01",
        "in/day=January",
        "in/none",
        "in/day=__HIVE_DEFAULT_PARTITION__",
    ] {
        std::fs::create_dir_all(folder.path().join(place))?;
        std::fs::write(folder.path().join(place).join("a.csv"), "id,n,day\n1,1,x\n")?;
    }
    for (path, columns, partitions, parts) in [
        (
            "in/*/*.csv",
            "columns: {id: int}, ",
            "day: date",
            &["day=January/a.csv", "\"January\"", "no date"][..],
        ),
        (
            "in/none/*.csv",
            "columns: {id: int}, ",
            "day: date",
            &["in/none/a.csv", "in no folder `day=...`"],
        ),
        (
            "in/day=__*/*.csv",
            "columns: {id: int}, ",
            "day: date!",
            &["no value for day"],
        ),
        (
            "in/day=2024*/*.csv",
            "",
            "day: date",
            &["has the column \"day\"", "leave day out"],
        ),
        (
            "in/day=2024*/*.csv",
            "columns: {id: int, day: text}, ",
            "day: date",
            &["p.yaml:3:", "`day` twice"],
        ),
    ] {
        let text = format!(
            "pipeline: p\nsources:\n  raw: {{csv: \"{path}\", {columns}partitions: {{{partitions}}}}}\nloads:\n  \
             l: {{from: raw, to: warehouse, table: t, mode: replace}}\n"
        );
        run(folder.path(), &text, &[]).await?.failure(parts).context(text)?;
    }
    // Those that have it are read; the column of that name in the file isn't declared.
    let text = "pipeline: p\nsources:\n  raw: {csv: \"in/day=2024*/*.csv\", columns: {id: int}, partitions: {day: date}}\nloads:\n  \
                l: {from: raw, to: warehouse, table: t, mode: replace}\n";
    run(folder.path(), text, &[]).await?.success()?;
    let read = counts(folder.path()).await?;
    ensure!(read["read"] == 1, "{read}");
    ensure!(rows(folder.path(), "SELECT day FROM t").await? == ["2024-01-01"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_with_a_value_that_is_no_text_is_an_error_before_a_run_exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for place in ["in/a=1/reg=%FF", "in/a=1/reg=%C3%A9"] {
        std::fs::create_dir_all(folder.path().join(place))?;
        std::fs::write(folder.path().join(place).join("a.csv"), "id\n1\n")?;
    }
    let text = |path: &str, partitions: &str| {
        let table = partitions.replace([':', ' '], "");
        format!(
            "pipeline: p\nsources:\n  raw: {{csv: \"{path}\", columns: {{id: int}}, partitions: {{{partitions}}}}}\nloads:\n  \
             l: {{from: raw, to: warehouse, table: {table}, mode: replace}}\n"
        )
    };
    let parts = [
        "reg=%FF/a.csv",
        "says \"%FF\" for reg, which is no UTF-8",
        "rename the folder",
    ];
    run(folder.path(), &text("in/*/*/*.csv", "reg: text"), &[])
        .await?
        .failure(&parts)?;
    run(folder.path(), &text("in/*/*/*.csv", "a: int"), &[])
        .await?
        .success()?;
    ensure!(rows(folder.path(), "SELECT CAST(a AS text) FROM aint").await? == ["1", "1"]);
    let one = text("in/*/reg=%C3*/*.csv", "reg: text");
    run(folder.path(), &one, &[]).await?.success()?;
    ensure!(rows(folder.path(), "SELECT reg FROM regtext").await? == ["é"]);
    // What infer prints leaves it out.
    let printed = Verb::new(folder.path())
        .args(["infer", "in/*/*/*.csv"])
        .output()
        .await?;
    let printed = printed.success()?.stdout;
    let comment = "      # reg: is \"%FF\" in the name of a folder, which is no UTF-8; rename";
    ensure!(
        printed.contains("      a: int!\n    columns:\n") && printed.contains(comment),
        "{printed}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_files_have_the_column_of_the_folders_too_the_advice_helps() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir_all(folder.path().join("in/day=2024-01-01"))?;
    let place = folder.path().join("in/day=2024-01-01");
    std::fs::write(place.join("a.csv"), "id,day\n1,2024-01-01\n")?;
    std::fs::write(place.join("a.jsonl"), "{\"id\": 1, \"day\": \"2024-01-01\"}\n")?;
    for kind in ["csv: \"in/*/*.csv\"", "json: \"in/*/*.jsonl\""] {
        let text = |more: &str| {
            format!(
                "pipeline: p\nsources:\n  raw: {{{kind}, columns: {{id: int}}{more}}}\nloads:\n  \
                 l: {{from: raw, to: warehouse, table: t, mode: replace}}\n"
            )
        };
        let declared = "has the column \"day\", which `partitions` takes from the folders";
        let advice = [
            "leave day out of `partitions`",
            "write `on_new_column: ignore`",
            declared,
        ];
        for contract in ["add", "fail"] {
            let text = text(&format!(", partitions: {{day: date}}, on_new_column: {contract}"));
            let failed = run(folder.path(), &text, &[]).await?.failure(&advice).context(text)?;
            ensure!(!failed.stderr.contains("without it"), "{}", failed.stderr);
        }
        let rejecting = text(", partitions: {day: date}, on_new_column: quarantine");
        run(folder.path(), &rejecting, &[]).await?;
        let (_, rejects) = newest_rejects(folder.path()).await?;
        let detail = rejects.first().map(Value::to_string).unwrap_or_default();
        ensure!(detail.contains("new_column"), "{detail}");
        if kind.starts_with("csv") {
            ensure!(
                advice.iter().all(|part| detail.contains(&part.replace('"', "\\\""))),
                "{detail}"
            );
        }
        let ignored = text(", partitions: {day: date}, on_new_column: ignore");
        run(folder.path(), &ignored, &[]).await?.success()?;
        let found = rows(folder.path(), "SELECT id || '|' || day FROM t").await?;
        ensure!(found == ["1|2024-01-01"], "{found:?}");
        run(folder.path(), &text(", on_new_column: add"), &[])
            .await?
            .success()?;
        let found = rows(folder.path(), "SELECT id || '|' || day FROM t").await?;
        ensure!(found == ["1|2024-01-01"], "{found:?}");
    }
    Ok(())
}
