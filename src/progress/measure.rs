//! How far a stage has come, and how fast it goes. Pure: the present moment is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use haulage_proto::v1::{Run, RunState, Stage};

/// Speed is that of this last while: long enough to be steady, short enough to show that something has stalled.
const WINDOW: Duration = Duration::from_secs(10);
/// No estimate before so much is done: it would be a guess.
const ENOUGH: f64 = 0.02;

/// The part of a stage that is done, from 0 to 1.
///
/// By bytes while they can be trusted. `bytes` is what the objects hold as stored, `bytes_read` counts after
/// decompression: once more has been read than is stored, the objects are compressed and only whole chunks count.
pub(crate) fn fraction(stage: &Stage) -> f64 {
    if stage.chunks == 0 {
        return 0.0;
    }
    if stage.chunks_done >= stage.chunks {
        return 1.0;
    }
    let chunks = f64::from(stage.chunks_done) / f64::from(stage.chunks);
    if stage.bytes == 0 || stage.bytes_read > stage.bytes {
        return chunks;
    }
    // A chunk is done when its last segment stands: until then the last percent is not.
    (stage.bytes_read as f64 / stage.bytes as f64).max(chunks).min(0.99)
}

/// Rows and fraction over the last while.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    samples: VecDeque<(Instant, u64, f64)>,
}

impl Speed {
    /// Takes a sample. Rows that go back (a chunk is tried again) start the measurement anew.
    pub(crate) fn sample(&mut self, now: Instant, rows: u64, fraction: f64) {
        if self.samples.back().is_some_and(|(_, last, _)| rows < *last) {
            self.samples.clear();
        }
        self.samples.push_back((now, rows, fraction));
        // One sample older than the window stays: the window is measured from there.
        while self.samples.len() > 2 && now.saturating_duration_since(self.samples[1].0) > WINDOW {
            self.samples.pop_front();
        }
    }

    /// Rows per second; `None` before there are two samples a moment apart.
    pub(crate) fn rows_per_second(&self) -> Option<u64> {
        let (seconds, rows, _) = self.covered()?;
        Some((rows as f64 / seconds) as u64)
    }

    /// Seconds until the fraction is 1; `None` while that would be a guess.
    pub(crate) fn seconds_left(&self) -> Option<u64> {
        let (seconds, _, done) = self.covered()?;
        let (_, _, fraction) = self.samples.back()?;
        if done <= 0.0 || *fraction < ENOUGH || *fraction >= 1.0 {
            return None;
        }
        Some(((1.0 - fraction) / (done / seconds)).round() as u64)
    }

    fn covered(&self) -> Option<(f64, u64, f64)> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.saturating_duration_since(first.0).as_secs_f64();
        (seconds >= 0.2).then_some((seconds, last.1.saturating_sub(first.1), last.2 - first.2))
    }
}

/// What a run is at, in words.
pub(crate) fn doing(run: &Run) -> &'static str {
    match run.state() {
        RunState::Discovering => "listing the sources and cutting them into chunks",
        RunState::Loading => "loading",
        RunState::Verifying => "comparing what is staged with what was read",
        RunState::Publishing => "publishing",
        RunState::RollingBack => "rolling back what was started",
        RunState::Stuck => "stuck: the rollback keeps failing",
        RunState::Published => "published",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
        RunState::Reverting => "asking every destination whether the run can be taken back",
        RunState::Reverted => "reverted",
        RunState::Unspecified => "waiting",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(chunks: (u32, u32), bytes: (u64, u64)) -> Stage {
        Stage {
            chunks_done: chunks.0,
            chunks: chunks.1,
            bytes_read: bytes.0,
            bytes: bytes.1,
            ..Default::default()
        }
    }

    #[test]
    fn fractions_follow_bytes_until_compression_shows() {
        let cases = [
            (stage((0, 0), (0, 0)), 0.0),
            (stage((0, 4), (50, 100)), 0.5),
            (stage((3, 4), (50, 100)), 0.75),
            (stage((3, 4), (100, 100)), 0.99),
            (stage((1, 4), (300, 100)), 0.25),
            (stage((4, 4), (300, 100)), 1.0),
            (stage((1, 2), (0, 0)), 0.5),
        ];
        for (stage, expected) in cases {
            assert!(
                (fraction(&stage) - expected).abs() < 1e-9,
                "{stage:?}: {}",
                fraction(&stage)
            );
        }
    }

    #[test]
    fn speed_is_that_of_the_last_while() {
        let start = crate::clock::instant();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut speed = Speed::default();
        speed.sample(at(0), 0, 0.0);
        assert_eq!((speed.rows_per_second(), speed.seconds_left()), (None, None));
        speed.sample(at(10), 1_000, 0.1);
        assert_eq!((speed.rows_per_second(), speed.seconds_left()), (Some(100), Some(90)));
        // Twice as fast from here on: the slow start is forgotten.
        for second in 11..=40 {
            speed.sample(
                at(second),
                1_000 + (second - 10) * 200,
                0.1 + 0.02 * (second - 10) as f64,
            );
        }
        assert_eq!(speed.rows_per_second(), Some(200));
        assert_eq!(speed.seconds_left(), Some(15));
    }

    #[test]
    fn rows_that_go_back_give_no_negative_speed() {
        let start = crate::clock::instant();
        let mut speed = Speed::default();
        speed.sample(start, 1_000, 0.5);
        speed.sample(start + Duration::from_secs(5), 600, 0.3);
        assert_eq!((speed.rows_per_second(), speed.seconds_left()), (None, None));
    }
}
