//! Replays of rows that a pipeline makes several rows of.

use anyhow::{Result, ensure};

use super::{Stage, newest_rejects};

/// Load `t` gets each row twice, once past a rule, and load `v` once, past the same rule.
fn pipeline(rule: &str, other: &str) -> String {
    format!(
        "pipeline: rows\nsources:\n  raw: {{csv: rows.csv, columns: {{id: int!, name: text, much: int}}}}\nsteps:\n  \
         a: {{sql: 'SELECT id, name, much FROM raw'{other}}}\n  b: {{sql: 'SELECT id, name, much FROM raw', reject: {{big: {rule}}}}}\n  \
         both: SELECT id, name, much FROM a UNION ALL SELECT id, name, much FROM b\nloads:\n  \
         t: {{from: both, to: warehouse, table: t, mode: append}}\n  v: {{from: b, to: warehouse, table: v, mode: append}}\n"
    )
}

async fn begun(text: &str) -> Result<(Stage, String)> {
    let stage = Stage::new()?;
    std::fs::write(stage.path().join("rows.csv"), "id,name,much\n1,x,5\n2,y,200\n")?;
    let first = stage.run(text).await?;
    Ok((stage, first))
}

/// The newest run's rejects: reason and detail.
async fn rejects(stage: &Stage) -> Result<Vec<(String, String)>> {
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rejects
        .iter()
        .map(|row| (text(&row["reason"]), text(&row["detail"])))
        .collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_goes_to_the_loads_that_have_nothing_of_it() -> Result<()> {
    let (stage, first) = begun(&pipeline("much > 100", "")).await?;
    let twice = ["1|x|5", "1|x|5", "2|y|200"];
    ensure!(stage.rows("t").await? == twice && stage.rows("v").await? == ["1|x|5"]);

    // Still too much for `v`: then it is rejected for each of the two by itself.
    stage.replay(&first, &pipeline("much > 150", "")).await?;
    ensure!(stage.rows("t").await? == twice && stage.rows("v").await? == ["1|x|5"]);
    let left = rejects(&stage).await?;
    let reasons: Vec<&str> = left.iter().map(|(reason, _)| reason.as_str()).collect();
    ensure!(reasons == ["not_replayable", "big"], "{left:?}");
    ensure!(
        left[0]
            .1
            .contains("a join or UNION ALL made several rows of it, and load t has others of them"),
        "{left:?}"
    );

    for rule in ["much > 1000", "much > 2000"] {
        stage.replay(&first, &pipeline(rule, "")).await?;
        ensure!(
            stage.rows("t").await? == twice && stage.rows("v").await? == ["1|x|5", "2|y|200"],
            "{rule}: {:?} and {:?}",
            stage.rows("t").await?,
            stage.rows("v").await?
        );
        let left = rejects(&stage).await?;
        ensure!(
            left.len() == 1 && left[0].0 == "not_replayable" && left[0].1.contains("load t"),
            "{left:?}"
        );
    }

    // At once, and then a replay of nothing but what `t` can't have.
    let (stage, first) = begun(&pipeline("much > 100", "")).await?;
    stage.replay(&first, &pipeline("much > 1000", "")).await?;
    ensure!(stage.counts().await? == (1, 1, "published".to_owned()));
    ensure!(stage.rows("t").await? == twice && stage.rows("v").await? == ["1|x|5", "2|y|200"]);
    stage.replay(&first, &pipeline("much > 2000", "")).await?;
    ensure!(stage.rows("t").await? == twice && stage.rows("v").await? == ["1|x|5", "2|y|200"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_two_steps_reject_is_read_again_once() -> Result<()> {
    let (stage, first) = begun(&pipeline("much > 100", ", reject: {large: much > 110}")).await?;
    ensure!(stage.rows("t").await? == ["1|x|5", "1|x|5"] && stage.rows("v").await? == ["1|x|5"]);
    let fixed = pipeline("much > 1000", ", reject: {large: much > 1000}");
    stage.replay(&first, &fixed).await?;
    let (ideal, _) = begun(&fixed).await?;
    for table in ["t", "v"] {
        ensure!(
            stage.rows(table).await? == ideal.rows(table).await?,
            "{table}: {:?}",
            stage.rows(table).await?
        );
    }
    ensure!(rejects(&stage).await?.is_empty());
    Ok(())
}
