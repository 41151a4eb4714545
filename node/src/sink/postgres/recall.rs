//! Whether a publish can be undone now: asked before a revert on purpose, and again by every revert under its locks.
//!
//! Undoing restores what the target held before the run. That would also undo what later runs have built on it, so they
//! have to be reverted first, the last one first; only rows that carry their run are taken out from among later ones.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;

use super::Postgres;
use super::bookkeeping::{self, Area, Lock, Method, Record, State, record};
use super::connect::Lease;
use super::publish::Trouble;
use super::stage::exists;
use super::target::{Target, describe};
use crate::sink::LoadContext;

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
        let report = |detail: String| StepReport { rows: 0, detail };
        if !bookkeeping::ensure_to_undo(&mut lease, &self.schema_known).await? {
            return Ok(report("nothing was prepared".to_owned()));
        }
        let found = record(&mut lease, load, Lock::None).await;
        let found = found.map_err(|error| lease.place().failure(&doing, error))?;
        let Some(record) = found.filter(|record| record.state == State::Published) else {
            lease.give_back();
            return Ok(report("nothing is published".to_owned()));
        };
        let target = describe(&mut lease, &load.table).await?;
        match may_undo(&mut lease, load, &record, &target).await {
            Ok(_) => {
                lease.give_back();
                Ok(report(format!("{} can be put back", target.text())))
            }
            Err(trouble) => Err(trouble
                .into_failure(lease.place(), &doing)
                .unwrap_or_else(|| Failure::transient(format!("{doing}: {} is in use", target.text())))),
        }
    }
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
    let later: Option<String> = sqlx::query_scalar(
        "SELECT string_agg(run, ', ' ORDER BY sequence DESC) FROM haulage.loads
         WHERE target = $1 AND state = 'published' AND sequence > $2
             AND NOT ($3 AND method IN ('append', 'append_by_key'))",
    )
    .bind(target.text())
    .bind(record.sequence)
    .bind(by_run)
    .fetch_one(lease.connection())
    .await?;
    let newest: bool = sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT FROM haulage.loads WHERE target = $1 AND state = 'published' AND sequence > $2)",
    )
    .bind(target.text())
    .bind(record.sequence)
    .fetch_one(lease.connection())
    .await?;
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
