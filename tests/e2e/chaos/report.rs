//! What all rounds together have shown: a table by kind of fault, and the three numbers that have to be 0.

use std::collections::BTreeMap;
use std::fmt;

use super::fault::Kind;

/// What came of the faults of one kind.
#[derive(Debug, Clone, Default)]
struct Line {
    injected: u64,
    /// While a run was open.
    met: u64,
    /// Milliseconds from the fault to the first sign of it in the ledger.
    noticed: Vec<u64>,
    /// Milliseconds from the fault to the first step forward after that.
    went_on: Vec<u64>,
}

/// Tally of rounds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    lines: BTreeMap<Kind, Line>,
    pub(crate) rounds: u64,
    pub(crate) published: u64,
    pub(crate) rolled_back: u64,
    pub(crate) reverted: u64,
    pub(crate) reads: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) partial: u64,
    /// Times that a chunk went on from a checkpoint after a failure.
    pub(crate) restarts: u64,
    /// Rows that were held against the model.
    pub(crate) compared: u64,
}

impl Report {
    /// Kinds of faults that have met an open run.
    pub(crate) fn kinds_met(&self) -> usize {
        self.lines.values().filter(|line| line.met > 0).count()
    }

    /// Counts a fault.
    pub(crate) fn count(&mut self, kind: Kind, met: bool, noticed: Option<u64>, went_on: Option<u64>) {
        let line = self.lines.entry(kind).or_default();
        line.injected += 1;
        line.met += u64::from(met);
        line.noticed.extend(noticed);
        line.went_on.extend(went_on);
    }
}

/// Median and maximum, in seconds.
pub(crate) fn p50_and_max(times: &[u64]) -> (String, String) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let seconds = |ms: Option<&u64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.2} s", *ms as f64 / 1000.0));
    let middle = times.len().checked_sub(1).map(|last| last / 2);
    (seconds(middle.and_then(|at| times.get(at))), seconds(times.last()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | injected | during a run | noticed | p50 | max | went on | p50 | max |"
        )?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        for (kind, line) in &self.lines {
            let (noticed, latest) = p50_and_max(&line.noticed);
            let (went_on, last) = p50_and_max(&line.went_on);
            writeln!(
                f,
                "| {} | {} | {} | {} | {noticed} | {latest} | {} | {went_on} | {last} |",
                kind.words(),
                line.injected,
                line.met,
                line.noticed.len(),
                line.went_on.len()
            )?;
        }
        let injected: u64 = self.lines.values().map(|line| line.injected).sum();
        writeln!(
            f,
            "\n{} rounds, {injected} faults; {} runs published, {} rolled back, {} reverted, {} restarts from checkpoints; {} reads, \
             {} rows compared.",
            self.rounds, self.published, self.rolled_back, self.reverted, self.restarts, self.reads, self.compared
        )?;
        write!(
            f,
            "Rows lost: {}. Rows duplicated: {}. Partial reads: {}.",
            self.lost, self.duplicated, self.partial
        )
    }
}
