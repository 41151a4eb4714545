//! One bar per stage, and a line below that says what the run is at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use haulage_proto::v1::{Run, RunState, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::measure::{Speed, doing, fraction};
use crate::output::human;

/// A bar counts in thousandths: stages are measured in different units.
const WHOLE: u64 = 1000;
const TICK: Duration = Duration::from_millis(120);

/// The bars of one run.
pub(crate) struct Bars {
    screen: MultiProgress,
    /// What the run is at, always the lowest line.
    status: ProgressBar,
    stages: HashMap<String, Bar>,
    started: Instant,
}

struct Bar {
    bar: ProgressBar,
    speed: Speed,
    best: f64,
}

impl Bars {
    pub(super) fn new(screen: MultiProgress, now: Instant) -> Self {
        let status = screen.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}")));
        status.set_message("waiting for the coordinator");
        status.enable_steady_tick(TICK);
        Self {
            screen,
            status,
            stages: HashMap::new(),
            started: now,
        }
    }

    pub(super) fn update(&mut self, run: &Run, now: Instant) {
        let width = run
            .stages
            .iter()
            .map(|stage| stage.name.chars().count())
            .max()
            .unwrap_or(0)
            .min(32);
        for stage in &run.stages {
            let bar = self.stages.entry(stage.name.clone()).or_insert_with(|| {
                let bar =
                    ProgressBar::new(WHOLE).with_style(style("{prefix} [{bar:20}] {wide_msg}").progress_chars("=> "));
                Bar {
                    bar: self.screen.insert_before(&self.status, bar),
                    speed: Speed::default(),
                    best: 0.0,
                }
            });
            bar.bar.set_prefix(format!("{:<width$}", stage.name));
            bar.update(stage, now);
        }
        let elapsed = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.status
            .set_message(format!("{} ({})", status(run), human::duration(elapsed)));
    }

    pub(super) fn finish(&mut self) {
        // All of them go: the summary that follows says the same, and starts on a clean line.
        for bar in self.stages.values() {
            bar.bar.finish_and_clear();
        }
        self.status.finish_and_clear();
    }
}

impl Bar {
    fn update(&mut self, stage: &Stage, now: Instant) {
        // Never back: when bytes stop being a measure, chunks may say less.
        self.best = self.best.max(fraction(stage));
        self.speed.sample(now, stage.rows_read, self.best);
        self.bar.set_position((self.best * WHOLE as f64) as u64);
        self.bar.set_message(message(stage, self.best, &self.speed));
    }
}

/// What matters most comes first: a narrow terminal shows only as much as fits.
fn message(stage: &Stage, fraction: f64, speed: &Speed) -> String {
    let mut text = format!(
        "{:>3}%  {}",
        (fraction * 100.0) as u64,
        human::counted(stage.rows_read, "row")
    );
    if stage.chunks_done < stage.chunks {
        if let Some(rate) = speed.rows_per_second().filter(|_| stage.rows_read > 0) {
            text.push_str(&format!("  {} rows/s", human::count(rate)));
        }
        if let Some(seconds) = speed.seconds_left() {
            text.push_str(&format!("  ETA {}", human::estimate(seconds)));
        }
    }
    let bytes = human::bytes(stage.bytes_read);
    text.push_str(&format!("  {}/{} chunks  {bytes}", stage.chunks_done, stage.chunks));
    text
}

fn status(run: &Run) -> String {
    let running: u32 = run.stages.iter().map(|stage| stage.chunks_running).sum();
    match run.state() {
        RunState::Loading if running > 0 => format!("loading, {} at work", human::counted(running.into(), "chunk")),
        _ => doing(run).to_owned(),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is one of this file's literals")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid_and_bars_survive_any_run() {
        let now = crate::clock::instant();
        let screen = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut bars = Bars::new(screen, now);
        let mut run = Run::default();
        bars.update(&run, now);
        run.stages = vec![Stage {
            name: "flights".into(),
            chunks: 2,
            rows_read: 10,
            ..Default::default()
        }];
        bars.update(&run, now + Duration::from_secs(1));
        run.stages[0].rows_read = 0;
        bars.update(&run, now);
        bars.finish();
    }

    #[test]
    fn a_finished_stage_has_no_estimate() {
        let stage = Stage {
            chunks: 2,
            chunks_done: 2,
            rows_read: 1_500,
            bytes_read: 2048,
            ..Default::default()
        };
        assert_eq!(
            message(&stage, 1.0, &Speed::default()),
            "100%  1,500 rows  2/2 chunks  2.00 KiB"
        );
    }
}
