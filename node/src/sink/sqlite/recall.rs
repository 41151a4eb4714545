//! Whether a publish can be undone now: asked before a revert on purpose, and again by every revert. The rules, and for whom
//! a target is kept, are those of the PostgreSQL destination.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_plan::definition::Mode;

use super::Sqlite;
use super::bookkeeping::{Area, Method, Record, begin, hold};
use super::file::Writer;
use super::stage::exists;
use super::target::table_name;
use super::watermarks::built_on;
use crate::sink::LoadContext;
use crate::sink::kept::late;

/// How much of the target a revert may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The target is as the run left it, and becomes what it was before; one that the run made goes.
    Whole,
    /// Others have published since: only the rows that carry the run.
    OwnRows,
}

impl Sqlite {
    pub(super) async fn recall_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("asking whether load {} can be reverted", load.load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let record = hold(&mut writer, load, "recall", &doing).await?;
        let detail = match record.filter(|record| record.state == "published") {
            Some(record) => {
                may_undo(&mut writer, load, &table, &record, &doing).await?;
                let recalled = sqlx::query(
                    "UPDATE _haulage_loads SET recalled = max(coalesce(recalled, 0), $3)
                     WHERE run = $1 AND load = $2 AND let_go < $3",
                )
                .bind(load.run.as_str())
                .bind(load.load.as_str())
                .bind(load.round)
                .execute(writer.connection())
                .await;
                let kept = recalled.map_err(|error| writer.failure(&doing, error))?;
                if kept.rows_affected() == 0 {
                    return Err(late(load));
                }
                format!("{table} can be put back")
            }
            None => "nothing is published".to_owned(),
        };
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(StepReport {
            rows: 0,
            detail,
            ..StepReport::default()
        })
    }

    pub(super) async fn release_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let doing = format!("letting go of load {}", load.load);
        if let Some(mut writer) = self.file.writer_to_undo().await? {
            begin(&mut writer, &doing).await?;
            if hold(&mut writer, load, "release", &doing).await?.is_some() {
                free(&mut writer, load, load.round, &doing).await?;
            }
            writer.must(&doing, "COMMIT").await?;
            writer.keep();
        }
        Ok(StepReport {
            rows: 0,
            detail: "nothing is kept for a revert".to_owned(),
            ..StepReport::default()
        })
    }
}

/// Of this record nothing will be taken back any more, for which it was recalled up to this round.
pub(super) async fn free(writer: &mut Writer<'_>, load: &LoadContext, round: u32, doing: &str) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE _haulage_loads SET settled_at = coalesce(settled_at, CURRENT_TIMESTAMP), let_go = max(let_go, $3),
             recalled = CASE WHEN recalled > $3 THEN recalled END
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(round)
    .execute(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    Ok(())
}

/// The runs for which the target is kept against this one's publish, if any.
pub(super) async fn kept_for(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT group_concat(run, ', ') FROM (SELECT run FROM _haulage_loads
         WHERE target = $1 COLLATE NOCASE AND state = 'published' AND run <> $2
             AND (recalled IS NOT NULL
                 OR settled_at IS NULL AND published_at > datetime('now', '-1 hour'))
             AND NOT ($3 AND method = 'append' AND run IS NOT $4
                 AND NOT ($5 AND pipeline = $6 AND advances <> '[]')) ORDER BY sequence DESC)",
    )
    .bind(table)
    .bind(load.run.as_str())
    .bind(load.mode == Mode::Append)
    .bind(load.replaces.as_ref().map(|run| run.as_str()))
    .bind(!load.advances.is_empty())
    .bind(&load.pipeline)
    .fetch_one(writer.connection())
    .await
}

/// Refuses with what has to be reverted first, or with what is no longer kept.
pub(super) async fn may_undo(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    record: &Record,
    doing: &str,
) -> Result<Reach, Failure> {
    let by_run = record.method == Some(Method::Append);
    let replacing: Option<String> = sqlx::query_scalar(
        "SELECT group_concat(run, ', ') FROM (SELECT run FROM _haulage_loads
         WHERE target = $1 COLLATE NOCASE AND state = 'published' AND replaces = $2 ORDER BY sequence DESC)",
    )
    .bind(table)
    .bind(load.run.as_str())
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    if let Some(runs) = replacing {
        return Err(refused(load, &format!("run {runs} has replaced it in {table}")));
    }
    let (later, newest): (Option<String>, bool) = sqlx::query_as(
        "SELECT group_concat(run, ', ') FILTER (WHERE NOT ($3 AND method IN ('append', 'append_by_key'))), count(*) = 0
         FROM (SELECT run, method FROM _haulage_loads
         WHERE target = $1 COLLATE NOCASE AND state = 'published' AND sequence > $2 ORDER BY sequence DESC)",
    )
    .bind(table)
    .bind(record.sequence)
    .bind(by_run)
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    if let Some(runs) = built_on(writer, load, record.sequence, table, doing).await? {
        return Err(refused(load, &format!("run {runs} has read on from where it stopped")));
    }
    let reach = match later {
        None if newest => Reach::Whole,
        None => Reach::OwnRows,
        Some(runs) => return Err(refused(load, &format!("run {runs} has published to {table} since"))),
    };
    let area = Area::of(load);
    let needs: &[&String] = match record.method {
        _ if record.created => &[],
        Some(Method::Rewrite) => &[&area.before],
        Some(Method::Merge) => &[&area.before, &area.keys],
        Some(Method::AppendByKey) => &[&area.keys],
        Some(Method::Append) if load.replaces.is_some() => &[&area.before],
        Some(Method::Append | Method::Rename) | None => &[],
    };
    for kept in needs {
        if record.cleaned || !exists(writer, kept, doing).await? {
            return Err(Failure::permanent(format!(
                "load {} of run {} can't be reverted: what {table} held before it is no longer kept (`keep_previous` says \
                 of how many runs it is)",
                load.load, load.run
            )));
        }
    }
    Ok(reach)
}

fn refused(load: &LoadContext, why: &str) -> Failure {
    Failure::permanent(format!(
        "load {} of run {} can't be reverted while what came after it stands: {why}; revert that first, the one that is \
         named first before the others",
        load.load, load.run
    ))
}
