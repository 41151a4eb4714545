//! Whether a publish can be undone now: asked before a revert on purpose, and again by every revert. The rules are those of
//! the PostgreSQL destination.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;

use super::Sqlite;
use super::bookkeeping::{Area, Method, Record, begin, read};
use super::file::Writer;
use super::stage::exists;
use super::target::table_name;
use crate::sink::LoadContext;

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
        let record = read(&mut writer, load).await;
        let record = record.map_err(|error| writer.failure(&doing, error))?;
        let detail = match record.filter(|record| record.state == "published") {
            Some(record) => {
                may_undo(&mut writer, load, &table, &record, &doing).await?;
                format!("{table} can be put back")
            }
            None => "nothing is published".to_owned(),
        };
        writer.must(&doing, "ROLLBACK").await?;
        writer.keep();
        Ok(StepReport { rows: 0, detail })
    }
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
         WHERE target = $1 AND state = 'published' AND replaces = $2 ORDER BY sequence DESC)",
    )
    .bind(table)
    .bind(load.run.as_str())
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    if let Some(runs) = replacing {
        return Err(refused(load, &format!("run {runs} has replaced it in {table}")));
    }
    let later: Option<String> = sqlx::query_scalar(
        "SELECT group_concat(run, ', ') FROM (SELECT run FROM _haulage_loads
         WHERE target = $1 AND state = 'published' AND sequence > $2
             AND NOT ($3 AND method IN ('append', 'append_by_key')) ORDER BY sequence DESC)",
    )
    .bind(table)
    .bind(record.sequence)
    .bind(by_run)
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    let newest: bool = sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT 1 FROM _haulage_loads WHERE target = $1 AND state = 'published' AND sequence > $2)",
    )
    .bind(table)
    .bind(record.sequence)
    .fetch_one(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
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
