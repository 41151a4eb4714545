//! JSON lines: every event of the run's log as it happens, and the run as it is about once a second.
//!
//! Each line has a `type`: `event`, `progress`, and from the verb itself `submitted` and `summary`.

use std::io;
use std::time::{Duration, Instant};

use haulage_proto::v1::{Run, RunEvent};

use crate::output::{Output, json};

const EVERY: Duration = Duration::from_secs(1);

/// The lines of one run.
pub(crate) struct Stream {
    output: Output,
    last: Option<Instant>,
}

impl Stream {
    pub(super) fn new(output: Output) -> Self {
        Self { output, last: None }
    }

    pub(super) fn update(&mut self, run: &Run, events: &[RunEvent], now: Instant) -> io::Result<()> {
        for event in events {
            self.output.json(&json::typed("event", json::event(event)))?;
        }
        let due = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= EVERY);
        if due && run.finished_at == 0 {
            self.last = Some(now);
            self.output
                .json(&json::typed("progress", json::run(run, crate::clock::now_ms())))?;
        }
        Ok(())
    }
}
