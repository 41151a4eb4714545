//! Whether a publish can be undone now: asked before a revert on purpose, and again by every revert under its locks.
//!
//! Undoing restores what the target held before the run. That would also undo what later runs have built on it, so they
//! have to be reverted first, the last one first; only rows that carry their run are taken out from among later ones.
//! What can be undone stays so until it is, or is let go: the target is kept for it.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_plan::definition::Mode;

use super::Postgres;
use super::bookkeeping::{self, Area, Method, Record, State, hold, queue_on};
use super::connect::{BEGIN, BEGIN_BRIEFLY, Lease};
use super::publish::Trouble;
use super::stage::exists;
use super::target::{Target, describe};
use super::watermarks::built_on;
use crate::sink::LoadContext;
use crate::sink::kept::late;

/// How much of the target a revert may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The target is as the run left it, and becomes what it was before; one that the run made goes.
    Whole,
    /// Others have appended since: only the rows that carry the run. A later merge or replacement has built on them: it may
    /// have changed them, and keeps them for its own revert.
    OwnRows,
}

impl Postgres {
    pub(super) async fn recall_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("asking whether load {} can be reverted", load.load);
        let report = |detail: String| StepReport {
            rows: 0,
            detail,
            ..StepReport::default()
        };
        if !bookkeeping::ensure_to_undo(&mut lease, &self.schema_known).await? {
            return Ok(report("nothing was prepared".to_owned()));
        }
        match recall(&mut lease, load).await {
            Ok(detail) => {
                lease.give_back();
                Ok(report(detail))
            }
            Err(trouble) => Err(trouble
                .into_failure(lease.place(), &doing)
                .unwrap_or_else(|| Failure::transient(format!("{doing}: {} is in use", load.table)))),
        }
    }

    pub(super) async fn release_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("letting go of load {}", load.load);
        if bookkeeping::ensure_to_undo(&mut lease, &self.schema_known).await? {
            lease.must(&doing, BEGIN_BRIEFLY).await?;
            if hold(&mut lease, load, "release").await?.is_some() {
                let freed = free(&mut lease, load, load.round).await;
                freed.map_err(|error| lease.place().failure(&doing, error))?;
            }
            lease.must(&doing, "COMMIT").await?;
        }
        lease.give_back();
        Ok(StepReport {
            rows: 0,
            detail: "nothing is kept for a revert".to_owned(),
            ..StepReport::default()
        })
    }
}

/// Asks in the place that a publish would have in the queue on the target, so that none comes between.
async fn recall(lease: &mut Lease, load: &LoadContext) -> Result<String, Trouble> {
    lease.run(BEGIN).await?;
    let name = describe(lease, &load.table).await?.text();
    queue_on(lease, &name).await?;
    let Some(record) = hold(lease, load, "recall")
        .await?
        .filter(|record| record.state == State::Published)
    else {
        lease.run("COMMIT").await?;
        return Ok("nothing is published".to_owned());
    };
    let target = describe(lease, &load.table).await?;
    may_undo(lease, load, &record, &target).await?;
    let kept = sqlx::query(
        "UPDATE haulage.loads SET recalled = greatest(recalled, $3) WHERE run = $1 AND load = $2 AND let_go < $3",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(load.round as i32)
    .execute(lease.connection())
    .await?;
    if kept.rows_affected() == 0 {
        return Err(late(load).into());
    }
    lease.run("COMMIT").await?;
    Ok(format!("{} can be put back", target.text()))
}

/// Of a record that is held nothing will be taken back any more, for which it was recalled up to this round.
pub(super) async fn free(lease: &mut Lease, load: &LoadContext, round: u32) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE haulage.loads SET settled_at = coalesce(settled_at, now()), let_go = greatest(let_go, $3),
             recalled = CASE WHEN recalled > $3 THEN recalled END
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(i32::try_from(round).unwrap_or(i32::MAX))
    .execute(lease.connection())
    .await?;
    Ok(())
}

/// The runs for which the target is kept against this one's publish, if any.
pub(super) async fn kept_for(
    lease: &mut Lease,
    load: &LoadContext,
    target: &str,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT string_agg(run, ', ' ORDER BY sequence DESC) FROM haulage.loads
         WHERE target = $1 AND state = 'published' AND run <> $2
             AND (recalled IS NOT NULL
                 OR settled_at IS NULL AND published_at > now() - interval '1 hour')
             AND NOT ($3 AND method = 'append' AND run IS DISTINCT FROM $4
                 AND NOT ($5 AND pipeline = $6 AND advances <> '[]'))",
    )
    .bind(target)
    .bind(load.run.as_str())
    .bind(load.mode == Mode::Append)
    .bind(load.replaces.as_ref().map(|run| run.as_str()))
    .bind(!load.advances.is_empty())
    .bind(&load.pipeline)
    .fetch_one(lease.connection())
    .await
}

/// Refuses with what has to be reverted first, or with what is no longer kept.
pub(super) async fn may_undo(
    lease: &mut Lease,
    load: &LoadContext,
    record: &Record,
    target: &Target,
) -> Result<Reach, Trouble> {
    let by_run = record.method == Some(Method::Append);
    let replacing: Option<String> = sqlx::query_scalar(
        "SELECT string_agg(run, ', ' ORDER BY sequence DESC) FROM haulage.loads
         WHERE target = $1 AND state = 'published' AND replaces = $2",
    )
    .bind(target.text())
    .bind(load.run.as_str())
    .fetch_one(lease.connection())
    .await?;
    if let Some(runs) = replacing {
        return Err(refused(
            load,
            &format!("run {runs} has replaced it in {}", target.text()),
        ));
    }
    let (later, newest): (Option<String>, bool) = sqlx::query_as(
        "SELECT string_agg(run, ', ' ORDER BY sequence DESC)
                 FILTER (WHERE NOT ($3 AND method IN ('append', 'append_by_key'))), count(*) = 0
         FROM haulage.loads WHERE target = $1 AND state = 'published' AND sequence > $2",
    )
    .bind(target.text())
    .bind(record.sequence)
    .bind(by_run)
    .fetch_one(lease.connection())
    .await?;
    if let Some(runs) = built_on(lease, load, record.sequence, &target.text()).await? {
        return Err(refused(load, &format!("run {runs} has read on from where it stopped")));
    }
    let reach = match later {
        None if newest => Reach::Whole,
        None => Reach::OwnRows,
        Some(runs) => {
            return Err(refused(
                load,
                &format!("run {runs} has published to {} since", target.text()),
            ));
        }
    };
    let area = Area::of(load);
    let needs: &[&String] = match record.method {
        _ if record.created => &[],
        Some(Method::Swap) => &[&area.prev],
        Some(Method::Rewrite) => &[&area.before],
        Some(Method::Merge) => &[&area.before, &area.keys],
        Some(Method::AppendByKey) => &[&area.keys],
        Some(Method::Append) if load.replaces.is_some() => &[&area.before],
        Some(Method::Append) | None => &[],
    };
    for table in needs {
        if record.cleaned || !exists(lease, table).await? {
            return Err(Trouble::Failed(Failure::permanent(format!(
                "load {} of run {} can't be reverted: what {} held before it is no longer kept (`keep_previous` says of \
                 how many runs it is)",
                load.load,
                load.run,
                target.text()
            ))));
        }
    }
    Ok(reach)
}

fn refused(load: &LoadContext, why: &str) -> Trouble {
    Trouble::Failed(Failure::permanent(format!(
        "load {} of run {} can't be reverted while what came after it stands: {why}; revert that first, the one that is \
         named first before the others",
        load.load, load.run
    )))
}
