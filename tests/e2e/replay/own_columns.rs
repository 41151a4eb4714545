//! Replays of rows whose files had other columns than those that are there now.

use anyhow::{Result, ensure};

use super::{Stage, newest_rejects};

/// Each file's rejects are read by the columns that this file had, whatever files there are now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_files_with_other_columns_are_read_by_their_own() -> Result<()> {
    let stage = Stage::new()?;
    let write = |name: &str, text: &str| std::fs::write(stage.path().join(name), text);
    write("a1.csv", "id,name\nx,ann\n2,bob\n")?;
    write("a2.csv", "id,name,much\n3,cat,3\ny,dan,4\n")?;
    let text = |id: &str, settings: &str| {
        format!(
            "pipeline: rows\nsources:\n  raw: {{csv: 'a*.csv', columns: {{id: {id}, name: text, much: int}}, {settings}}}\n\
             loads:\n  out: {{from: raw, to: warehouse, table: out, mode: append}}\n"
        )
    };
    let lacking = "on_missing_column: 'null'";
    let first = stage.run(&text("int", lacking)).await?;
    ensure!(stage.counts().await? == (4, 2, "published".to_owned()));
    // As text they can be read; the table takes no such number, so the step has to say what becomes of them.
    let fixed = text("text", lacking).replace(
        "loads:",
        "steps:\n  s: SELECT 90 + length(id) AS id, name, much FROM raw\nloads:",
    );
    stage.replay(&first, &fixed.replace("from: raw", "from: s")).await?;
    ensure!(
        stage.counts().await? == (2, 0, "published".to_owned()),
        "{:?}",
        stage.counts().await?
    );
    ensure!(
        stage.rows("out").await? == ["2|bob|-", "3|cat|3", "91|ann|-", "91|dan|4"],
        "{:?}",
        stage.rows("out").await?
    );
    Ok(())
}

/// A value in a column that nobody had declared is not lost because the file that had it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_column_that_no_file_has_any_more_stays_in_quarantine() -> Result<()> {
    let stage = Stage::new()?;
    let text = |columns: &str, setting: &str| {
        format!(
            "pipeline: rows\nsources:\n  raw: {{csv: 'a*.csv', columns: {{{columns}}}, on_new_column: {setting}}}\n\
             loads:\n  out: {{from: raw, to: warehouse, table: out, mode: append, on_new_column: add}}\n"
        )
    };
    let (one, other) = (stage.path().join("a1.csv"), stage.path().join("a2.csv"));
    std::fs::write(&one, "id,name,much\n4,dan,44\n")?;
    let two = "id: int!, name: text";
    let first = stage.run(&text(two, "quarantine")).await?;
    std::fs::remove_file(&one)?;
    std::fs::write(&other, "id,name\n5,eve\n")?;
    let second = stage.replay(&first, &text(two, "add")).await?;
    ensure!(
        stage.counts().await? == (1, 1, "published".to_owned()),
        "{:?}",
        stage.counts().await?
    );
    let (_, rejects) = newest_rejects(stage.path()).await?;
    ensure!(
        rejects[0]["reason"] == "new_column" && rejects[0]["raw"] == "4,dan,44",
        "{rejects:?}"
    );
    // Declared, it goes in.
    stage
        .replay(
            &second,
            &text("id: int!, name: text, much: int", "add, on_missing_column: 'null'"),
        )
        .await?;
    ensure!(
        stage.rows("out").await? == ["4|dan|44"],
        "{:?}",
        stage.rows("out").await?
    );
    Ok(())
}
