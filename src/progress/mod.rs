//! What is seen while a run goes on: bars on a terminal, plain lines in a log, JSON lines for a program.
//!
//! A [`Progress`] is told the run as the coordinator describes it and what has happened since; it decides nothing and
//! asks nobody. All but JSON goes to stderr, so that stdout holds results alone.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use haulage_proto::v1::{Run, RunEvent};
use indicatif::{MultiProgress, ProgressDrawTarget};

use crate::output::{self, Output};

mod bars;
mod lines;
mod measure;
mod stream;

/// Every writer to stderr shares this one, so that a log line is put above the bars and not through them.
static SCREEN: OnceLock<MultiProgress> = OnceLock::new();

/// Kinds of events that a person wants to hear of although the bars show the rest.
const TOLD: [&str; 8] = [
    "waiting",
    "attempt_failed",
    "cancel_requested",
    "rollback_started",
    "stuck",
    "unstuck",
    "abandoned",
    "compensated",
];

/// Writes to stderr, above the bars. A stderr that nobody reads is no reason to fail.
pub(crate) fn stderr(bytes: &[u8]) {
    let write = || {
        let mut stderr = io::stderr().lock();
        drop(stderr.write_all(bytes).and_then(|()| stderr.flush()));
    };
    match SCREEN.get() {
        Some(screen) if stderr_is_terminal() => screen.suspend(write),
        _ => write(),
    }
}

/// Whether a person sees stderr, on something that can move its cursor.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A run's progress, and the remarkable events between.
pub(crate) struct Progress {
    view: View,
    rolling_back: bool,
}

enum View {
    Bars(Box<bars::Bars>),
    Lines(lines::Lines),
    Stream(stream::Stream),
}

impl Progress {
    /// What fits where the output goes.
    pub(crate) fn new(output: Output, now: Instant) -> Self {
        let view = if output.is_json() {
            View::Stream(stream::Stream::new(output))
        } else if stderr_is_terminal() {
            let screen = SCREEN.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
            View::Bars(Box::new(bars::Bars::new(screen.clone(), now)))
        } else {
            View::Lines(lines::Lines::new(now))
        };
        Self {
            view,
            rolling_back: false,
        }
    }

    /// The run as it is now, and what has happened since the last call.
    pub(crate) fn update(&mut self, run: &Run, events: &[RunEvent], now: Instant) -> io::Result<()> {
        if let View::Stream(stream) = &mut self.view {
            return stream.update(run, events, now);
        }
        for event in events.iter().filter(|event| remarkable(event, &mut self.rolling_back)) {
            let text = output::table::visible(&event.text);
            output::note(format!("{}  {text}", output::human::time_of_day(event.at)));
        }
        match &mut self.view {
            View::Bars(bars) => bars.update(run, now),
            View::Lines(lines) => {
                if let Some(line) = lines.update(run, now) {
                    output::note(line);
                }
            }
            View::Stream(_) => {}
        }
        Ok(())
    }

    /// Nothing more will come: the screen is free for the summary.
    pub(crate) fn finish(&mut self) {
        match &mut self.view {
            View::Bars(bars) => bars.finish(),
            View::Lines(_) | View::Stream(_) => {}
        }
    }
}

/// Whether a person wants to hear of it. Once a run is rolled back, its chunks are dropped on purpose: that they have
/// failed says nothing any more, but that undoing has failed does.
fn remarkable(event: &RunEvent, rolling_back: &mut bool) -> bool {
    *rolling_back |= event.kind == "rollback_started";
    let dropped = *rolling_back && event.kind == "attempt_failed" && !event.text.starts_with("compensate ");
    TOLD.contains(&event.kind.as_str()) && !dropped
}

/// At least this long between two lines in a log, unless the state changes.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_that_are_dropped_on_purpose_are_no_news() {
        let mut rolling_back = false;
        let mut check = |kind: &str, text: &str, expected: bool| {
            let event = RunEvent {
                kind: kind.into(),
                text: text.into(),
                ..Default::default()
            };
            assert_eq!(remarkable(&event, &mut rolling_back), expected, "{kind} {text}");
        };
        check("assigned", "chunk 0.1, attempt 1, given to node local", false);
        check("attempt_failed", "chunk 0.1, attempt 1, failed", true);
        check("rollback_started", "rolling back", true);
        check("attempt_failed", "chunk 0.2, attempt 1, failed", false);
        check("attempt_failed", "compensate prepare flights, attempt 1, failed", true);
    }
}
