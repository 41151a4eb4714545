//! How a verb that followed a run ends: the summary, the failure if there was one, and the exit code.

use std::io;

use crate::cli::Globals;
use crate::clock;
use crate::config::Home;
use crate::exit::Exit;
use crate::follow::{Ended, Followed};
use crate::output::{json, note, summary};
use haulage_proto::v1::{Run, RunState};

/// Prints what became of the run, and says how the process ends.
pub(crate) fn close(followed: &Followed, run_id: &str, globals: &Globals) -> io::Result<Exit> {
    if followed.ended == Ended::Left {
        note(left(globals, run_id));
        return Ok(Exit::Interrupted);
    }
    let Some(run) = &followed.run else {
        return Ok(Exit::Failed);
    };
    print(run, globals)?;
    match run.state() {
        RunState::Stuck => note(format!(
            "error: the run is stuck, because undoing what it has started keeps failing: {}",
            reason(run)
        )),
        RunState::Failed => note(format!("error: {}", reason(run))),
        RunState::Cancelled | RunState::Reverted => note(reason(run)),
        // It was to be reverted, and can't be.
        RunState::Published if !run.error.is_empty() => note(format!("error: {}", run.error)),
        RunState::Unspecified
        | RunState::Discovering
        | RunState::Loading
        | RunState::Verifying
        | RunState::Publishing
        | RunState::RollingBack
        | RunState::Reverting
        | RunState::Published => {}
    }
    Ok(Exit::of_state(run.state()))
}

/// The summary of a run: lines for people, one object for programs.
pub(crate) fn print(run: &Run, globals: &Globals) -> io::Result<()> {
    let output = globals.output();
    let now = clock::now_ms();
    if output.is_json() {
        return output.json(&json::typed("summary", json::run(run, now)));
    }
    let rejects = globals.hint(&format!("rejects {}", run.run_id));
    for line in summary::lines(run, now, output, &rejects) {
        output.line(line)?;
    }
    Ok(())
}

fn left(globals: &Globals, run_id: &str) -> String {
    if globals.coordinator.is_some() {
        format!(
            "stopped watching; the run goes on\n  follow it again  {}\n  end it           {}",
            globals.hint(&format!("watch {run_id}")),
            globals.hint(&format!("cancel {run_id}"))
        )
    } else if Home::new(&globals.home).is_ok_and(|home| home.is_busy_elsewhere()) {
        format!(
            "stopped watching; the run goes on in the process that works on it\n  follow it again  {}\n  end it           \
             Ctrl-C there",
            globals.hint(&format!("watch {run_id}"))
        )
    } else {
        format!(
            "left before the run {run_id} was at rest; nothing of it is published in part\n  run it  the same `haulage \
             run` again: it goes on, or finishes the undoing first\n  end it  {}",
            globals.hint(&format!("cancel {run_id}"))
        )
    }
}

fn reason(run: &Run) -> &str {
    if run.error.is_empty() {
        "no reason was given"
    } else {
        &run.error
    }
}
