//! A line every few seconds and whenever the run's state changes, for logs and CI.

use std::time::Instant;

use haulage_proto::v1::{Run, RunState};

use super::LINE_EVERY;
use super::measure::{Speed, doing, fraction};
use crate::output::human;

/// The lines of one run.
pub(crate) struct Lines {
    last: Option<(Instant, RunState)>,
    speed: Speed,
    started: Instant,
}

impl Lines {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: None,
            speed: Speed::default(),
            started: now,
        }
    }

    /// The line to print now, if one is due.
    pub(super) fn update(&mut self, run: &Run, now: Instant) -> Option<String> {
        let rows = run.stages.iter().map(|stage| stage.rows_read).sum();
        let done = overall(run);
        self.speed.sample(now, rows, done);
        let state = run.state();
        let due = match self.last {
            None => true,
            Some((at, last)) => last != state || now.saturating_duration_since(at) >= LINE_EVERY,
        };
        // The end is the summary's to tell.
        if !due || run.finished_at != 0 {
            return None;
        }
        self.last = Some((now, state));
        let elapsed = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        let mut line = format!("{:>8}  {}", human::duration(elapsed), doing(run));
        if state == RunState::Loading && !run.stages.is_empty() {
            let chunks: u32 = run.stages.iter().map(|stage| stage.chunks).sum();
            let chunks_done: u32 = run.stages.iter().map(|stage| stage.chunks_done).sum();
            line.push_str(&format!(
                "  {}%  {chunks_done}/{chunks} chunks  {}",
                (done * 100.0) as u64,
                human::counted(rows, "row")
            ));
            if let Some(rate) = self.speed.rows_per_second().filter(|_| rows > 0) {
                line.push_str(&format!("  {} rows/s", human::count(rate)));
            }
            if let Some(seconds) = self.speed.seconds_left() {
                line.push_str(&format!("  ETA {}", human::estimate(seconds)));
            }
        }
        Some(line)
    }
}

/// Over all stages, each by the bytes that it holds.
fn overall(run: &Run) -> f64 {
    let weight = |bytes: u64| bytes.max(1) as f64;
    let all: f64 = run.stages.iter().map(|stage| weight(stage.bytes)).sum();
    let done: f64 = run
        .stages
        .iter()
        .map(|stage| weight(stage.bytes) * fraction(stage))
        .sum();
    if all == 0.0 { 0.0 } else { done / all }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use haulage_proto::v1::Stage;

    use super::*;

    #[test]
    fn lines_come_at_changes_and_every_few_seconds() {
        let start = crate::clock::instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines::new(start);
        let mut run = Run::default();
        run.set_state(RunState::Discovering);
        assert!(lines.update(&run, at(0)).is_some());
        assert!(lines.update(&run, at(1)).is_none());
        run.set_state(RunState::Loading);
        run.stages = vec![Stage {
            name: "f".into(),
            chunks: 4,
            bytes: 100,
            bytes_read: 50,
            rows_read: 10,
            ..Default::default()
        }];
        let line = lines.update(&run, at(2)).expect("the state changed");
        assert!(line.contains("50%  0/4 chunks  10 rows"), "{line}");
        assert!(lines.update(&run, at(3)).is_none());
        assert!(lines.update(&run, at(8)).is_some());
        run.set_state(RunState::Published);
        run.finished_at = 1;
        assert!(lines.update(&run, at(9)).is_none());
    }
}
