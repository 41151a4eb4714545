//! Plays many seeds, or one with its trace.
//!
//! ```text
//! haulage-simulation --seeds 100000 [--from N] [--bug NAME]     progress, a table; exit code 1 on a violation
//! haulage-simulation --seed N [--trace] [--bug NAME]            one history
//! ```
#![expect(clippy::print_stdout, reason = "this is a command for people")]

use std::process::ExitCode;

use haulage_simulation::{Bug, Options, Tally, replay, simulate};

/// What was asked for.
#[derive(Debug)]
struct Asked {
    from: u64,
    seeds: u64,
    trace: bool,
    bug: Option<Bug>,
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(complaint) => {
            eprintln!(
                "{complaint}\nusage: haulage-simulation [--seeds N] [--from N] [--seed N] [--trace] [--bug NAME]"
            );
            return ExitCode::from(2);
        }
    };
    let (mut faults, mut outcomes, mut broken) = (Tally::new(), Tally::new(), Tally::new());
    let (mut steps, mut virtual_ms) = (0, 0);
    for seed in asked.from..asked.from.saturating_add(asked.seeds) {
        let options = Options {
            seed,
            bug: asked.bug,
            trace: asked.trace,
        };
        let report = simulate(&options);
        steps += report.steps;
        virtual_ms += report.virtual_ms;
        add(&mut faults, &report.faults);
        add(&mut outcomes, &report.outcomes);
        report.trace.iter().for_each(|line| println!("{line}"));
        if asked.seeds == 1 {
            println!("seed {seed}: hash {:016x}", report.hash);
        }
        if let Some(violation) = report.violation {
            println!("seed {seed}: {violation}\n  {}", replay(seed, asked.bug));
            *broken.entry(name(violation.invariant)).or_default() += 1;
        }
        let played = seed - asked.from + 1;
        if played % 1_000 == 0 {
            eprintln!(
                "{played} of {} seeds, {} violations",
                asked.seeds,
                broken.values().sum::<u64>()
            );
        }
    }
    println!("\n| injected | times |\n|---|---:|");
    table(&faults);
    println!("\n| runs | times |\n|---|---:|");
    table(&outcomes);
    println!("\n| invariant | violations |\n|---|---:|");
    (1..=10).for_each(|number| println!("| {} | {} |", name(number), broken.get(name(number)).unwrap_or(&0)));
    println!(
        "\n{} seeds from {}, {steps} steps, {} s of virtual time, {} violations",
        asked.seeds,
        asked.from,
        virtual_ms / 1_000,
        broken.values().sum::<u64>()
    );
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked {
        from: 0,
        seeds: 1_000,
        trace: false,
        bug: None,
    };
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().unwrap_or_default();
            value
                .parse::<u64>()
                .map_err(|_| format!("{word} takes a number, not `{value}`"))
        };
        match word.as_str() {
            "--seeds" => asked.seeds = number()?,
            "--from" => asked.from = number()?,
            "--seed" => (asked.from, asked.seeds) = (number()?, 1),
            "--trace" => asked.trace = true,
            "--bug" => {
                let name = words.next().unwrap_or_default();
                let known = Bug::ALL.into_iter().find(|bug| bug.name() == name);
                asked.bug = Some(known.ok_or_else(|| format!("there is no bug `{name}`"))?);
            }
            other => return Err(format!("unknown: {other}")),
        }
    }
    Ok(asked)
}

fn add(to: &mut Tally, from: &Tally) {
    for (kind, times) in from {
        *to.entry(kind).or_default() += times;
    }
}

fn table(tally: &Tally) {
    for (kind, times) in tally {
        println!("| {kind} | {times} |");
    }
}

fn name(invariant: u8) -> &'static str {
    match invariant {
        1 => "I1 a chunk's rows stand once",
        2 => "I2 nothing is published twice",
        3 => "I3 nothing is published before everything is staged and verified",
        4 => "I4 readers never see a part",
        5 => "I5 compensated exactly when the run rolls back",
        6 => "I6 a stale epoch or attempt has no effect",
        7 => "I7 every run comes to rest once faults stop",
        8 => "I8 logs have no gap, and a leader's memory is their fold",
        9 => "I9 intent before effect",
        10 => "I10 rejects are replayed once, and none is lost",
        _ => "(unknown)",
    }
}
