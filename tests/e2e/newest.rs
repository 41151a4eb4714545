//! `newest` of a merge: of several rows that a run has of one key, one stands, whichever comes first.

use anyhow::{Result, ensure};

use super::checks::Stage;
use super::support::cluster::run_of;
use super::support::process::{Output, newest_rejects, newest_run};

/// One key of each kind: the newest last, first, without a value, without any, the same twice, and beaten twice alike.
const ROWS: &str = "\
id,part,at,note
1,a,2024-01-01T00:00:00,old
1,a,2024-01-02T00:00:00,mid
1,a,2024-01-03T00:00:00.5,new
1,b,2024-01-01T00:00:00,part
2,a,2024-01-02T00:00:00,new
2,a,2024-01-01T00:00:00,old
3,a,,none
3,a,2024-01-01T00:00:00,new
4,a,,none
5,a,2024-01-01T00:00:00,same
5,a,2024-01-01T00:00:00,same
5,a,2024-01-01T00:00:00,same
6,a,2024-01-01T00:00:00,old
6,a,2024-01-01T00:00:00,older
6,a,2024-01-02T00:00:00,new
";

const NEW: [&str; 7] = [
    "1 a new", "1 b part", "2 a new", "3 a new", "4 a none", "5 a same", "6 a new",
];

fn pipeline(more: &str, rule: &str, checks: &[&str]) -> String {
    let checks: String = checks.iter().map(|check| format!("  - {check}\n")).collect();
    format!(
        "pipeline: p\ncheckpoint_rows: 2\nsources:\n  raw:\n    csv: rows.csv\n    columns: {{id: int!, \
         part: text!, at: timestamp, note: text}}\nsteps:\n  good:\n    from: raw\n    reject: {{bad: \"{rule}\"}}\nloads:\n  out: \
         {{from: good, to: warehouse, table: out, mode: merge, key: [id, part], newest: at, keep_previous: 9{more}}}\n{}{checks}",
        match checks.is_empty() {
            true => "",
            false => "checks:\n",
        }
    )
}

const RULE: &str = "note LIKE 'bad%'";

async fn run(stage: &Stage, rows: &str, text: &str) -> Result<Output> {
    std::fs::write(stage.path().join("rows.csv"), rows)?;
    std::fs::write(stage.path().join("pipeline.yaml"), format!("# {rows:?}\n{text}"))?;
    stage.verb(&["run", "pipeline.yaml"]).output().await
}

async fn check(stage: &Stage, expected: &[&str]) -> Result<()> {
    let sql = "SELECT id || ' ' || part || ' ' || coalesce(note, '-') FROM out ORDER BY id, part";
    let rows = stage.texts(sql).await?;
    ensure!(rows == expected, "{rows:?}, not {expected:?}");
    Ok(())
}

fn rows(rows: &[&str]) -> String {
    format!("id,part,at,note\n{}\n", rows.join("\n"))
}

async fn the_newest_of_a_run_stands(stage: &Stage, provenance: bool) -> Result<()> {
    let more = if provenance { ", provenance: true" } else { "" };
    // What is checked are the rows that are left; as many were brought as by the run before.
    let checks = [
        "{unique: [id, part]}",
        "{row_count: \"= 7\"}",
        "{row_count: {within: 0%, of_last: 1}}",
        "{sql: \"SELECT count(*) FROM staged WHERE note LIKE 'old%'\", expect: \"= 0\"}",
        "{unique: [id, part], on_fail: quarantine, name: apart}",
    ];
    let text = pipeline(more, RULE, &checks);
    run(stage, ROWS, &text).await?.success()?;
    let first = newest_run(stage.path()).await?;
    check(stage, &NEW).await?;
    let shown = stage.shown().await?;
    ensure!(run_of(&shown)["counts"]["rejected"] == 0, "{shown}");
    let page = stage.verb(&["show", &first]).output().await?.success()?.stdout;
    ensure!(page.contains("8 rows of them older than what stands there"), "{page}");
    let page = stage.verb(&["receipt", &first]).output().await?.success()?.stdout;
    ensure!(
        page.contains("15 rows") && page.contains("8 rows of them older"),
        "{page}"
    );
    let said = stage.verb(&["verify", &first]).output().await?;
    ensure!(
        format!("{}{}", said.stdout, said.stderr).contains("8 of its rows were older"),
        "{said:?}"
    );
    if provenance {
        // The header is line 1.
        let said = stage
            .verb(&["why", "out", "id=1", "part=a"])
            .output()
            .await?
            .success()?;
        ensure!(
            said.stdout.contains(&first) && said.stdout.contains("line 4"),
            "{said:?}"
        );
    }
    // The same again: with `verify`, which counts and compares, and without a row that is newer.
    run(stage, &format!("{ROWS}\n"), &text).await?.success()?;
    check(stage, &NEW).await?;
    stage
        .verb(&["revert", &newest_run(stage.path()).await?])
        .output()
        .await?
        .success()?;

    // Beaten by rows of the run, and by those that stand.
    let later = rows(&[
        "1,a,2024-01-04T00:00:00,newer",
        "1,a,2024-01-03T12:00:00,between",
        "2,a,2024-01-01T12:00:00,late",
        "2,a,2024-01-01T00:00:00,later",
        "7,a,2024-01-01T00:00:00,old",
        "7,a,2024-01-01T00:00:01,added",
    ]);
    run(stage, &later, &pipeline(more, RULE, &[])).await?.success()?;
    let second = newest_run(stage.path()).await?;
    let mut after = NEW.to_vec();
    after[0] = "1 a newer";
    after.push("7 a added");
    check(stage, &after).await?;
    let page = stage.verb(&["show", &second]).output().await?.success()?.stdout;
    ensure!(
        page.contains("6 rows merged") && page.contains("4 rows of them older"),
        "{page}"
    );
    stage.verb(&["revert", &second]).output().await?.success()?;
    check(stage, &NEW).await?;

    // Rows that are the newest together have to be the same.
    for (tied, key) in [
        (
            ["8,a,2024-01-01T00:00:00,one", "8,a,2024-01-01T00:00:00,two"],
            "key (id, part)=(8, a)",
        ),
        (["9,b,,one", "9,b,,"], "key (id, part)=(9, b)"),
    ] {
        let said = run(stage, &rows(&tied), &pipeline(more, RULE, &[])).await?;
        said.failure(&[key, "differ and have the same `at`", "name a finer column in `newest`"])?;
        check(stage, &NEW).await?;
    }
    stage.verb(&["revert", &first]).output().await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_of_a_run_stands_in_postgres() -> Result<()> {
    let stage = Stage::postgres().await?;
    the_newest_of_a_run_stands(&stage, false).await?;
    the_newest_of_a_run_stands(&stage, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_of_a_run_stands_in_sqlite() -> Result<()> {
    the_newest_of_a_run_stands(&Stage::sqlite()?, false).await?;
    the_newest_of_a_run_stands(&Stage::sqlite()?, true).await
}

/// Of a key whose newest row is set aside the next one stands, as if it had come in a run of its own.
async fn rows_are_set_aside_before(stage: &Stage) -> Result<()> {
    let some = rows(&[
        "1,a,2024-01-01T00:00:00,fine",
        "1,a,2024-01-02T00:00:00,",
        "2,a,2024-01-01T00:00:00,twice",
        "2,a,2024-01-02T00:00:00,twice",
        "3,a,2024-01-01T00:00:00,taken",
        "3,a,2024-01-02T00:00:00,other",
        "4,a,2024-01-01T00:00:00,taken",
        "5,a,2024-01-01T00:00:00,both",
        "6,a,2024-01-01T00:00:00,both",
    ]);
    let checks = [
        "{not_null: note, on_fail: quarantine}",
        "{unique: note, on_fail: quarantine, name: apart}",
        "{unique: note}",
        "{row_count: \"= 4\"}",
    ];
    run(stage, &some, &pipeline("", RULE, &checks)).await?.success()?;
    check(stage, &["1 a fine", "2 a twice", "3 a other", "4 a taken"]).await?;
    let (_, rejects) = newest_rejects(stage.path()).await?;
    let reasons: Vec<_> = rejects.iter().filter_map(|row| row["reason"].as_str()).collect();
    ensure!(
        reasons.len() == 3 && reasons.iter().filter(|why| why.contains("apart")).count() == 2,
        "{rejects:?}"
    );
    let shown = stage.shown().await?;
    let load = &run_of(&shown)["loads"][0];
    ensure!(load["set_aside"] == 3, "{load}");
    let detail = load.to_string();
    ensure!(detail.contains("2 rows of them older"), "{detail}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_set_aside_before_the_newest_is_chosen() -> Result<()> {
    rows_are_set_aside_before(&Stage::postgres().await?).await?;
    rows_are_set_aside_before(&Stage::sqlite()?).await
}

/// Rejected rows of one key are replayed together, and beside one that stands.
async fn rejected_rows_of_one_key(stage: &Stage) -> Result<()> {
    let some = rows(&[
        "1,a,2024-01-01T00:00:00,bad old",
        "1,a,2024-01-03T00:00:00,bad new",
        "1,a,2024-01-02T00:00:00,stands",
        "2,a,2024-01-05T00:00:00,stands",
        "2,a,2024-01-04T00:00:00,bad new",
        "2,a,2024-01-03T00:00:00,bad old",
    ]);
    run(stage, &some, &pipeline("", RULE, &[])).await?.success()?;
    let first = newest_run(stage.path()).await?;
    check(stage, &["1 a stands", "2 a stands"]).await?;
    std::fs::write(
        stage.path().join("fixed.yaml"),
        pipeline("", "note = 'never'", &["{unique: [id, part]}"]),
    )?;
    stage
        .verb(&["replay", &first, "fixed.yaml"])
        .output()
        .await?
        .success()?;
    check(stage, &["1 a bad new", "2 a stands"]).await?;
    let replay = newest_run(stage.path()).await?;
    let page = stage.verb(&["show", &replay]).output().await?.success()?.stdout;
    ensure!(
        page.contains("4 rows merged") && page.contains("3 rows of them older"),
        "{page}"
    );
    stage.verb(&["revert", &replay]).output().await?.success()?;
    check(stage, &["1 a stands", "2 a stands"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_rows_of_one_key_are_replayed_together() -> Result<()> {
    rejected_rows_of_one_key(&Stage::postgres().await?).await?;
    rejected_rows_of_one_key(&Stage::sqlite()?).await
}
