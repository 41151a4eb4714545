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
const TOLD: [&str; 7] = [
    "waiting",
    "attempt_failed",
    "cancel_requested",
    "rollback_started",
    "stuck",
    "unstuck",
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

/// How the run is shown.
pub(crate) enum Progress {
    /// On a terminal.
    Bars(Box<bars::Bars>),
    /// In a log.
    Lines(lines::Lines),
    /// For a program.
    Stream(stream::Stream),
}

impl Progress {
    /// What fits where the output goes.
    pub(crate) fn new(output: Output, now: Instant) -> Self {
        if output.is_json() {
            Self::Stream(stream::Stream::new(output))
        } else if stderr_is_terminal() {
            let screen = SCREEN.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
            Self::Bars(Box::new(bars::Bars::new(screen.clone(), now)))
        } else {
            Self::Lines(lines::Lines::new(now))
        }
    }

    /// The run as it is now, and what has happened since the last call.
    pub(crate) fn update(&mut self, run: &Run, events: &[RunEvent], now: Instant) -> io::Result<()> {
        match self {
            Self::Bars(bars) => {
                tell(events);
                bars.update(run, now);
            }
            Self::Lines(lines) => {
                tell(events);
                if let Some(line) = lines.update(run, now) {
                    output::note(line);
                }
            }
            Self::Stream(stream) => stream.update(run, events, now)?,
        }
        Ok(())
    }

    /// Nothing more will come: the screen is free for the summary.
    pub(crate) fn finish(&mut self) {
        match self {
            Self::Bars(bars) => bars.finish(),
            Self::Lines(_) | Self::Stream(_) => {}
        }
    }
}

fn tell(events: &[RunEvent]) {
    for event in events.iter().filter(|event| TOLD.contains(&event.kind.as_str())) {
        output::note(format!(
            "{}  {}",
            output::human::time_of_day(event.at),
            output::table::visible(&event.text)
        ));
    }
}

/// At least this long between two lines in a log, unless the state changes.
const LINE_EVERY: Duration = Duration::from_secs(5);
