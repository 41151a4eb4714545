//! What the checks of the staged rows found, and that a run whose rows are not as they must be publishes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::State;
use crate::event::CheckResult;
use crate::failure::Failure;
use crate::ids::{LoadName, StepKind};
use crate::quarantine::{NOT_REPLAYABLE, SetAside};
use crate::watermark::Advance;
use crate::words::counted;

/// Failed checks that the reason for a rollback names; the rest are counted.
const NAMED: usize = 5;

/// How many source rows there were on the way to a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Judged {
    /// That the chunks which feed it have read.
    pub read: u64,
    /// Those of them that went to quarantine.
    pub rejected: u64,
}

impl State {
    /// Of a load's source rows, those that were read and those that were rejected. Of a replay: of all rows that the run has
    /// read whose rejected rows it reads, those that are rejected still.
    pub fn judged(&self, load: &LoadName) -> Judged {
        let judged = self.judged_here(load);
        let replay = self
            .submission
            .as_ref()
            .and_then(|submission| submission.replay.as_ref());
        let before = replay.and_then(|replay| replay.loads.as_ref()?.get(load));
        match before.filter(|before| before.read > 0) {
            Some(before) => Judged {
                read: before.read,
                rejected: before.rejected + judged.rejected,
            },
            None => judged,
        }
    }

    /// The loads that the run's rejected rows are for, as [`Replay::loads`](crate::submission::Replay::loads) of a replay has
    /// them; `None` if that isn't known.
    pub fn rejected_for(&self) -> Option<BTreeMap<LoadName, Judged>> {
        let counts = self.counts();
        let replay = self.submission.as_ref()?.replay.as_ref();
        let before = replay.and_then(|replay| replay.loads.as_ref());
        // Such a row is for the loads that it was for before; here they aren't counted if the file has lost them.
        let stays = counts.rejected.contains_key(NOT_REPLAYABLE);
        if stays && before.is_none() {
            return None;
        }
        let of_before = before.into_iter().flatten().filter(|_| stays);
        let counted = counts.loads.iter().filter(|(_, counts)| counts.rejected > 0);
        let names = counted.map(|(name, _)| LoadName::from(name.as_str()));
        let names = names.chain(of_before.map(|(load, _)| load.clone()));
        let judged = |load: LoadName| {
            let mut judged = match replay {
                Some(_) => before.and_then(|before| before.get(&load)).copied().unwrap_or_default(),
                None => Judged {
                    rejected: 0,
                    ..self.judged_here(&load)
                },
            };
            judged.rejected += self.set_aside.get(&load).map_or(0, |aside| aside.rows);
            (load, judged)
        };
        Some(names.map(judged).collect())
    }

    fn judged_here(&self, load: &LoadName) -> Judged {
        let mut judged = Judged::default();
        for report in self.reports.values() {
            if let Some(counts) = report.counts.loads.get(load.as_str()) {
                judged.read += report.counts.read;
                judged.rejected += counts.rejected;
            }
        }
        judged
    }

    /// What a publish of this load makes of the watermarks of its incremental sources.
    pub fn advances(&self, load: &LoadName) -> Vec<Advance> {
        let all = self.stages().iter().flat_map(|stage| &stage.advances);
        all.filter(|advance| advance.load == *load).cloned().collect()
    }

    /// What the checks of a load found, in the order of the file; also once the run has failed on account of them.
    pub fn checks(&self, load: &LoadName) -> &[CheckResult] {
        self.checks.get(load).map_or(&[], Vec::as_slice)
    }

    /// The rows that checks have set aside, by load.
    pub fn set_aside(&self) -> &BTreeMap<LoadName, SetAside> {
        &self.set_aside
    }

    /// Where the run's rejected rows are in the checkpoint store: those of the chunks in their order, then those that
    /// checks have set aside.
    pub fn reject_keys(&self) -> impl Iterator<Item = String> {
        let of_chunks = self.reports.values().flat_map(|report| report.rejects.iter().cloned());
        of_chunks.chain(self.set_aside.values().flat_map(SetAside::keys))
    }

    /// Why nothing may be published, once every load is verified, so that one run finds everything.
    pub(super) fn failed_checks(&self) -> Option<Failure> {
        // Also after a publish that found its staging area lost, and verified rows that were staged again.
        let published = |load: &LoadName| self.step_report(StepKind::Publish, load).is_some();
        if self.saga.loads().iter().any(published) || !self.saga.all_done(StepKind::Verify) {
            return None;
        }
        let failed = self.checks.iter().flat_map(|(load, checks)| {
            let failed = checks.iter().filter(|check| check.blocks && !check.holds);
            failed.map(move |check| format!("load {load}: {}: {}", check.name, check.found))
        });
        let failed: Vec<String> = failed.collect();
        if failed.is_empty() {
            return None;
        }
        let more = match failed.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let named = failed
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ");
        Some(Failure::permanent(format!(
            "{} failed, so nothing is published: {named}{more}",
            counted(failed.len() as u64, "check")
        )))
    }
}
