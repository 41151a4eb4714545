//! Replays of rows whose key the same run has loaded, or rejected, from another row.

use anyhow::{Context, Result, ensure};

use super::{Stage, newest_rejects};

/// Rows 5 are rejected before the good one, rows 6 behind it.
const ROWS: &str = "id,name,much\n5,old,many\n5,mid,few\n5,new,7\n6,first,1\n6,last,many\n1,a,1\n";

fn pipeline(files: &str, null: &str, more: &str) -> String {
    format!(
        "pipeline: rows\nsources:\n  raw: {{csv: '{files}', columns: {{id: int!, name: text, much: int}}, null: [{null}]}}\n\
         loads:\n  out: {{from: raw, to: warehouse, table: out, mode: merge, key: [id]{more}}}\n"
    )
}

const PROVENANCE: &str = ", provenance: true";
const KEPT: &str = ", keep_previous: 9";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rows_of_one_file_the_later_stands() -> Result<()> {
    let stage = Stage::new()?;
    std::fs::write(stage.path().join("rows.csv"), ROWS)?;
    let text = |null: &str| pipeline("rows.csv", null, PROVENANCE);
    let first = stage.run(&text("")).await?;
    ensure!(stage.rows("out").await? == ["1|a|1", "5|new|7", "6|first|1"]);

    // Read in its time, it would have been overwritten.
    let second = stage.replay(&first, &text("few")).await?;
    ensure!(stage.rows("out").await? == ["1|a|1", "5|new|7", "6|first|1"]);
    let page = stage.verb(&["show", &second]).await?.success()?.stdout;
    ensure!(
        page.contains("1 row merged by key into out, 1 row of them older than what stands there, which stays"),
        "{page}"
    );
    ensure!(stage.counts().await? == (3, 2, "published".to_owned()));

    // A replay of the replay: what is behind the row of the first run overwrites it, and what is before it doesn't.
    let third = stage.replay(&first, &text("many")).await?;
    ensure!(
        stage.rows("out").await? == ["1|a|1", "5|new|7", "6|last|-"],
        "{:?}",
        stage.rows("out").await?
    );
    let page = stage.verb(&["show", &third]).await?.success()?.stdout;
    ensure!(
        page.contains("2 rows merged by key into out, 1 row of them older"),
        "{page}"
    );
    ensure!(stage.counts().await? == (2, 0, "published".to_owned()));
    stage.verb(&["revert", &third]).await?.success()?;
    ensure!(stage.rows("out").await? == ["1|a|1", "5|new|7", "6|first|1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rejected_rows_with_one_key_are_refused_as_a_run_refuses_them() -> Result<()> {
    let stage = Stage::new()?;
    std::fs::write(stage.path().join("rows.csv"), ROWS)?;
    let first = stage.run(&pipeline("rows.csv", "", PROVENANCE)).await?;
    let both = pipeline("rows.csv", "few, many", PROVENANCE);
    stage
        .try_replay(&first, &both)
        .await?
        .failure(&["key (id)=(5) is duplicated among the staged rows"])?;
    ensure!(stage.rows("out").await? == ["1|a|1", "5|new|7", "6|first|1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_stood_already_is_one_of_the_run_too() -> Result<()> {
    let stage = Stage::new()?;
    std::fs::write(stage.path().join("rows.csv"), "id,name,much\n5,new,7\n6,first,1\n")?;
    stage.run(&pipeline("rows.csv", "", KEPT)).await?;
    // The good row of 5 changes nothing, and comes behind the other one; 6 has no other.
    std::fs::write(
        stage.path().join("more.csv"),
        "id,name,much\n5,old,many\n5,new,7\n6,last,few\n1,a,1\n",
    )?;
    let first = stage.run(&pipeline("more.csv", "", KEPT)).await?;
    let before = ["1|a|1", "5|new|7", "6|first|1"];
    ensure!(stage.rows("out").await? == before);
    let refused = stage.try_replay(&first, &pipeline("more.csv", "many", KEPT)).await?;
    refused.failure(&["key (id)=(5)", "already in out", "`provenance: true`"])?;
    ensure!(stage.rows("out").await? == before, "{:?}", stage.rows("out").await?);
    stage.replay(&first, &pipeline("more.csv", "few", KEPT)).await?;
    ensure!(stage.rows("out").await? == ["1|a|1", "5|new|7", "6|last|-"]);
    let replay = super::newest_run(stage.path()).await?;
    stage.verb(&["revert", &replay]).await?.success()?;
    stage.verb(&["revert", &first]).await?.success()?;
    ensure!(stage.rows("out").await? == ["5|new|7", "6|first|1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_says_which_row_is_later_none_is_overwritten() -> Result<()> {
    // Without provenance; and of two files, in which no line is behind another.
    let two = [
        ("a1.csv", "id,name,much\n5,old,many\n7,b,many\n"),
        ("a2.csv", "id,name,much\n5,new,7\n1,a,1\n"),
    ];
    let one = [("a1.csv", ROWS)];
    for (files, more, null, part) in [
        (&one as &[_], "", "few", "`provenance: true`"),
        (&two, PROVENANCE, "many", "of one object"),
    ] {
        let stage = Stage::new()?;
        for (name, rows) in files {
            std::fs::write(stage.path().join(name), rows)?;
        }
        let first = stage.run(&pipeline("a*.csv", "", more)).await?;
        let before = stage.rows("out").await?;
        let fixed = pipeline("a*.csv", null, more);
        stage.try_replay(&first, &fixed).await?.failure(&[
            "key (id)=(5)",
            "already in out",
            &first,
            "`newest:",
            part,
        ])?;
        ensure!(stage.rows("out").await? == before, "{:?}", stage.rows("out").await?);
        // As the error says: a rule keeps the row, and the others are loaded.
        let ruled = fixed.replace(
            "loads:\n  out: {from: raw",
            "steps:\n  kept: {sql: SELECT * FROM raw, reject: {again: id = 5}}\nloads:\n  out: {from: kept",
        );
        stage.replay(&first, &ruled).await?;
        let (_, rejects) = newest_rejects(stage.path()).await?;
        let again = rejects
            .iter()
            .find(|row| row["reason"] == "again")
            .context("it stays")?;
        ensure!(
            again["raw"].as_str().is_some_and(|raw| raw.starts_with("5,")),
            "{again}"
        );
        ensure!(stage.rows("out").await?.contains(&"5|new|7".to_owned()));
    }
    Ok(())
}
