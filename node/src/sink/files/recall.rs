//! Whether a publish can be undone now: asked before a revert on purpose, and again by every revert. The rules, and for whom
//! a table is kept, are those of the other destinations.

use chrono::{DateTime, Utc};
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_plan::definition::Mode;

use super::Files;
use super::place::TablePlace;
use super::state::{Record, State, Table};
use crate::sink::LoadContext;
use crate::sink::kept::late;

/// How much of the table a revert may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The table is as the run left it, and becomes what it was before; one that the run made goes.
    Whole,
    /// Others have published since: only the files that the run has brought.
    OwnFiles,
}

impl Files {
    pub(super) async fn recall_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let detail = self
            .change(&place, |table| {
                if !table
                    .hold(load, "recall")?
                    .is_some_and(|record| record.state == State::Published)
                {
                    return Ok("nothing is published".to_owned());
                }
                if let Some(record) = table.record(load) {
                    may_undo(load, table, record)?;
                }
                if let Some(record) = table.hold(load, "recall")? {
                    if record.let_go >= load.round {
                        return Err(late(load));
                    }
                    record.recalled = record.recalled.max(Some(load.round));
                }
                Ok(format!("{} can be put back", load.table))
            })
            .await?;
        Ok(report(detail))
    }

    pub(super) async fn release_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        if self.objects.exists().await? {
            self.change(&place, |table| {
                if let Some(record) = table.hold(load, "release")? {
                    free(record, load.round);
                }
                Ok(())
            })
            .await?;
        }
        Ok(report("nothing is kept for a revert".to_owned()))
    }
}

pub(super) fn report(detail: String) -> StepReport {
    StepReport {
        rows: 0,
        detail,
        ..StepReport::default()
    }
}

/// Of this record nothing will be taken back any more, for which it was recalled up to this round.
pub(super) fn free(record: &mut Record, round: u32) {
    record.settled = true;
    record.let_go = record.let_go.max(round);
    record.recalled = record.recalled.filter(|recalled| *recalled > round);
}

/// The runs for which the table is kept against this one's publish, if any.
pub(super) fn kept_for(table: &Table, load: &LoadContext, now: DateTime<Utc>) -> Option<String> {
    let replaces = load.replaces.as_ref().map(|run| run.as_str());
    let reads_on =
        |record: &Record| !load.advances.is_empty() && record.pipeline == load.pipeline && !record.advances.is_empty();
    let passes = |record: &Record| {
        load.mode == Mode::Append
            && record.mode == Mode::Append
            && replaces != Some(record.run.as_str())
            && !reads_on(record)
    };
    names(table, |record| {
        record.run != load.run.as_str() && record.keeps(now) && !passes(record)
    })
}

/// The runs of such records, the newest first.
fn names(table: &Table, which: impl Fn(&Record) -> bool) -> Option<String> {
    let mut found: Vec<&Record> = table.records.iter().filter(|record| which(record)).collect();
    found.sort_by_key(|record| std::cmp::Reverse(record.sequence));
    let runs: Vec<&str> = found.iter().map(|record| record.run.as_str()).collect();
    (!runs.is_empty()).then(|| runs.join(", "))
}

/// Refuses with what has to be reverted first, or with what is no longer kept.
pub(super) fn may_undo(load: &LoadContext, table: &Table, record: &Record) -> Result<Reach, Failure> {
    let published = |other: &Record| other.state == State::Published;
    let replacing = names(table, |other| {
        published(other) && other.replaces.as_deref() == Some(load.run.as_str())
    });
    if let Some(runs) = replacing {
        return Err(refused(load, &format!("run {runs} has replaced it in {}", load.table)));
    }
    let later = |other: &Record| published(other) && other.sequence > record.sequence;
    let reads_on = |other: &Record| other.pipeline == record.pipeline && !other.advances.is_empty();
    if let Some(runs) = names(table, |other| {
        !record.advances.is_empty() && later(other) && reads_on(other)
    }) {
        return Err(refused(load, &format!("run {runs} has read on from where it stopped")));
    }
    let appends = |other: &Record| record.mode == Mode::Append && other.mode == Mode::Append;
    if let Some(runs) = names(table, |other| later(other) && !appends(other)) {
        return Err(refused(
            load,
            &format!("run {runs} has published to {} since", load.table),
        ));
    }
    let lost = match record.mode {
        _ if record.created => false,
        Mode::Replace | Mode::Merge => record.before.is_none(),
        // A run that it replaced without finding anything of it is no loss; one whose files are cleaned away is.
        Mode::Append => record.replaces.is_some() && record.cleaned,
    };
    if lost {
        return Err(Failure::permanent(format!(
            "load {} of run {} can't be reverted: what {} held before it is no longer kept (`keep_previous` says of how many runs \
             it is)",
            load.load, load.run, load.table
        )));
    }
    Ok(match table.records.iter().any(later) {
        true => Reach::OwnFiles,
        false => Reach::Whole,
    })
}

fn refused(load: &LoadContext, why: &str) -> Failure {
    Failure::permanent(format!(
        "load {} of run {} can't be reverted while what came after it stands: {why}; revert that first, the one that is \
         named first before the others",
        load.load, load.run
    ))
}
