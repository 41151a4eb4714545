//! The closing summary of a run: what came in, what went where, what did not, and where to look next.

use haulage_proto::v1::{Check, Load, Run, RunState};

use super::json::{elapsed_ms, loaded, sorted, state};
use super::table::{one_line, visible};
use super::{Output, Tone, human};

/// Why a node rejects a row that covers so many lines that it must have swallowed others.
const SWALLOWED_LINES: &str = "swallowed_lines";

/// The tone of a run's state.
pub(crate) fn tone(run: &Run) -> Tone {
    match run.state() {
        RunState::Published => Tone::Good,
        RunState::Failed | RunState::Stuck => Tone::Bad,
        RunState::Cancelled | RunState::RollingBack | RunState::Reverting | RunState::Reverted => Tone::Warn,
        RunState::Unspecified
        | RunState::Discovering
        | RunState::Loading
        | RunState::Verifying
        | RunState::Publishing => Tone::Faint,
    }
}

/// The lines of the summary. `rejects` is the command that lists quarantined rows of this run.
pub(crate) fn lines(run: &Run, now: u64, output: Output, rejects: &str) -> Vec<String> {
    let counts = run.counts.clone().unwrap_or_default();
    let elapsed = elapsed_ms(run, now);
    let state_word = state(run).replace('_', " ");
    let verb = if run.finished_at == 0 { "for" } else { "after" };
    let mut lines = vec![format!(
        "run {}  {}  {verb} {}",
        run.run_id,
        output.paint(tone(run), &state_word),
        human::duration(elapsed)
    )];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));

    let in_all = if run.loads.len() > 1 {
        " in all loads together"
    } else {
        ""
    };
    let rate = human::rate(counts.read, elapsed).map(|rate| format!(", {} rows/s", human::count(rate)));
    row(
        "read",
        format!(
            "{} ({}{})",
            human::counted(counts.read, "row"),
            human::bytes(counts.bytes),
            rate.unwrap_or_default()
        ),
    );
    if run.state() == RunState::Published {
        row("loaded", format!("{}{in_all}", human::counted(loaded(run), "row")));
    } else {
        row(
            "staged",
            format!("{}{in_all}, none of them visible", human::counted(counts.loaded, "row")),
        );
    }
    row("rejected", rejected(run));
    // With several loads one row has several fates: each load has an account of its own below.
    if run.loads.len() < 2 {
        row("filtered", human::counted(counts.filtered, "row"));
        if counts.multiplied > 0 {
            row("multiplied", multiplied(counts.multiplied));
        }
    }
    if run.retries > 0 || run.restarts > 0 || run.bytes_read_again > 0 {
        row(
            "repeated",
            format!(
                "{} made again, {} from a checkpoint, {} read again",
                human::counted(run.retries.into(), "attempt"),
                human::counted(run.restarts.into(), "restart"),
                human::bytes(run.bytes_read_again)
            ),
        );
    }
    for load in &run.loads {
        row("load", load_line(load, run.state()));
        if run.loads.len() > 1 && load.read > 0 {
            row("", account(load));
        }
        for check in load.checks.iter().filter(|check| !check.holds) {
            let tone = if check.blocks { Tone::Bad } else { Tone::Warn };
            row("check", output.paint(tone, &check_line(check)));
        }
    }
    let checks = || run.loads.iter().flat_map(|load| &load.checks);
    let hold = checks().filter(|check| check.holds).count() as u64;
    if hold > 0 {
        row(
            "checks",
            format!(
                "{} {}",
                human::counted(hold, "check"),
                if hold == 1 { "holds" } else { "hold" }
            ),
        );
    }
    for warning in &run.warnings {
        row("warning", output.paint(Tone::Warn, &visible(warning)));
    }
    if let Some(rows) = counts.rejected_by_reason.get(SWALLOWED_LINES) {
        let (these, verb) = if *rows == 1 { ("it", "holds") } else { ("each", "hold") };
        let text = format!(
            "{} that can't be read {verb} more than 100 lines of a file, lost with {these}: look for a quote that is \
             not closed",
            human::counted(*rows, "row")
        );
        row("warning", output.paint(Tone::Warn, &text));
    }
    if counts.rejected > 0 && run.pruned_at > 0 {
        row(
            "pruned",
            format!("the rejected rows, on {}", human::moment(run.pruned_at)),
        );
    } else if counts.rejected > 0 {
        row("look", rejects.to_owned());
    }
    if !run.trace_id.is_empty() {
        row("trace", run.trace_id.clone());
    }
    lines
}

/// What a check that doesn't hold has found.
fn check_line(check: &Check) -> String {
    let word = match (check.blocks, check.set_aside) {
        (true, _) => "failed",
        (false, 0) => "warning",
        (false, _) => "set aside",
    };
    format!("{word}: {}: {}", one_line(&check.name), visible(&check.found))
}

fn multiplied(rows: u64) -> String {
    format!("{} more, made by joins or UNION ALL", human::counted(rows, "row"))
}

/// What became of the rows that a load is fed from: `of 10 rows read 7 passed, 2 filtered, 1 rejected`.
fn account(load: &Load) -> String {
    let mut text = format!(
        "of {} read {} passed, {} filtered, {} rejected",
        human::counted(load.read, "row"),
        human::count(load.passed),
        human::count(load.filtered),
        human::count(load.rejected)
    );
    if load.multiplied > 0 {
        text.push_str(&format!("; {}", multiplied(load.multiplied)));
    }
    if load.set_aside > 0 {
        let rows = human::counted(load.set_aside, "row");
        text.push_str(&format!("; {rows} of the staged set aside by checks"));
    }
    text
}

/// `120 rows: no_carrier 100, odd_delay 20`.
pub(crate) fn rejected(run: &Run) -> String {
    let Some(counts) = &run.counts else {
        return human::counted(0, "row");
    };
    let mut reasons = sorted(&counts.rejected_by_reason);
    // The most frequent first: that is the one to look at.
    reasons.sort_by(|(_, a), (_, b)| b.cmp(a));
    let parts: Vec<String> = reasons
        .iter()
        .map(|(reason, rows)| format!("{} {}", one_line(reason), human::count(**rows)))
        .collect();
    let total = human::counted(counts.rejected, "row");
    if parts.is_empty() {
        total
    } else {
        format!("{total}: {}", parts.join(", "))
    }
}

fn load_line(load: &Load, state: RunState) -> String {
    let target = format!("{} -> {} {}", load.name, load.destination, load.table);
    let what = match state {
        RunState::Published => format!("{} published", human::counted(load.published, "row")),
        RunState::Failed | RunState::Cancelled => "nothing published, as it was before".to_owned(),
        RunState::Reverted => "taken back, as it was before".to_owned(),
        RunState::Reverting => "published, to be taken back".to_owned(),
        RunState::RollingBack | RunState::Stuck => "being undone".to_owned(),
        RunState::Unspecified
        | RunState::Discovering
        | RunState::Loading
        | RunState::Verifying
        | RunState::Publishing => format!("{} staged", human::counted(load.staged, "row")),
    };
    match (state, load.detail.as_str()) {
        // The destination's own words: they say also what became of the rows that were there.
        (RunState::Published, detail) if !detail.is_empty() => format!("{target}: {}", visible(detail)),
        _ => format!("{target}: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use haulage_proto::v1::Counts;

    use super::*;
    use crate::output::Format;

    fn sample(state: RunState) -> Run {
        let mut run = Run {
            run_id: "flights-0a1b2c3d4e".into(),
            pipeline: "flights".into(),
            submitted_at: 1_000,
            finished_at: 3_000,
            ..Default::default()
        };
        run.set_state(state);
        run.loads = vec![Load {
            name: "clean".into(),
            destination: "warehouse".into(),
            table: "flights_clean".into(),
            staged: 900,
            published: 900,
            ..Default::default()
        }];
        run.counts = Some(Counts {
            read: 1_000,
            loaded: 900,
            rejected: 60,
            filtered: 40,
            bytes: 2048,
            rejected_by_reason: [("ragged".to_owned(), 10), ("no_carrier".to_owned(), 50)].into(),
            ..Default::default()
        });
        run
    }

    #[test]
    fn a_published_run_says_where_and_how_to_look() {
        let lines = lines(
            &sample(RunState::Published),
            9_000,
            Output::new(Format::Json),
            "haulage rejects X",
        );
        let text = lines.join("\n");
        for part in [
            "run flights-0a1b2c3d4e  published  after 2.0 s",
            "1,000 rows (2.00 KiB, 500 rows/s)",
            "60 rows: no_carrier 50, ragged 10",
            "clean -> warehouse flights_clean: 900 rows published",
            "haulage rejects X",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("repeated") && !text.contains("trace"), "{text}");
    }

    #[test]
    fn several_loads_have_an_account_each() {
        let mut run = sample(RunState::Published);
        let load = |name: &str, passed: u64, multiplied: u64| Load {
            name: name.into(),
            published: passed + multiplied,
            read: 1_000,
            passed,
            filtered: 1_000 - passed - 60,
            rejected: 60,
            multiplied,
            ..Default::default()
        };
        run.loads = vec![load("clean", 900, 0), load("both", 940, 940)];
        let text = lines(&run, 9_000, Output::new(Format::Json), "").join("\n");
        for part in [
            "in all loads together",
            "of 1,000 rows read 900 passed, 40 filtered, 60 rejected\n",
            "of 1,000 rows read 940 passed, 0 filtered, 60 rejected; 940 rows more, made by joins or UNION ALL",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("\n  filtered"), "{text}");
    }

    #[test]
    fn what_was_repeated_is_named_for_what_it_is() {
        let mut run = sample(RunState::Published);
        (run.retries, run.restarts, run.bytes_read_again) = (2, 1, 2_048);
        let text = lines(&run, 9_000, Output::new(Format::Json), "").join("\n");
        assert!(
            text.contains("2 attempts made again, 1 restart from a checkpoint, 2.00 KiB read again"),
            "{text}"
        );
    }

    #[test]
    fn a_row_that_swallowed_others_makes_a_person_look() {
        let mut run = sample(RunState::Published);
        let before = lines(&run, 9_000, Output::new(Format::Json), "").join("\n");
        assert!(!before.contains("warning"), "{before}");
        if let Some(counts) = &mut run.counts {
            counts.rejected_by_reason.insert("swallowed_lines".to_owned(), 1);
        }
        let text = lines(&run, 9_000, Output::new(Format::Json), "").join("\n");
        assert!(
            text.contains("warning    1 row that can't be read holds more than 100 lines of a file"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_run_never_claims_to_have_published() {
        let text = lines(&sample(RunState::Failed), 9_000, Output::new(Format::Json), "").join("\n");
        assert!(
            text.contains("nothing published") && !text.contains("900 rows published"),
            "{text}"
        );
    }
}
