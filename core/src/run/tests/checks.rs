//! Checks of what is staged: what they mean for the run, once every load is verified.

use super::tables::{drive, fail};
use super::*;
use crate::event::{CheckResult, Outcome};
use crate::quarantine::{NOT_REPLAYABLE, SetAside};
use crate::submission::Replay;

fn result(name: &str, holds: bool, blocks: bool) -> CheckResult {
    CheckResult {
        name: name.to_owned(),
        holds,
        blocks,
        found: format!("{name} found"),
        ..CheckResult::default()
    }
}

/// Loads `a` and `b` are verified with these results.
fn verify(log: &mut Vec<Event>, of_a: Vec<CheckResult>, of_b: Vec<CheckResult>) {
    let mut state = drive(log, |state| state.phase() == Phase::Verifying);
    assert_eq!(state.phase(), Phase::Verifying);
    for (load, checks) in [("a", of_a), ("b", of_b)] {
        let step = StepId {
            kind: StepKind::Verify,
            load: LoadName::from(load),
        };
        let (work, node) = (Work::Step(step), NodeName::from("n1"));
        let grant = Input::Grant {
            work: work.clone(),
            node: node.clone(),
        };
        let mut give = |input: &Input| {
            assert_ne!(
                state.outstanding().first(),
                Some(&Effect::Settle),
                "the other is not verified"
            );
            for event in decide(&state, input, Millis(5)).expect("it is outstanding") {
                state.apply(&event);
                log.push(event);
            }
            state.in_flight().map(|(_, attempt, _)| attempt).next()
        };
        let attempt = give(&grant).expect("it is given to a node");
        let report = StepReport {
            checks,
            ..StepReport::default()
        };
        give(&Input::Done {
            work,
            attempt,
            node,
            result: Ok(Completion::Stepped(report)),
            restarts: 0,
            bytes_read_again: 0,
        });
    }
}

/// A run that is verified with these results, and goes on by itself.
fn run(of_a: Vec<CheckResult>, of_b: Vec<CheckResult>) -> (State, Vec<Event>) {
    let mut log = start(&["a", "b"]);
    verify(&mut log, of_a, of_b);
    let state = drive(&mut log, |_| false);
    (state, log)
}

/// What is staged again is other rows, perhaps: their checks count, although a publish has been tried.
#[test]
fn checks_count_again_after_what_was_staged_is_lost() {
    for (holds, outcome) in [(true, Outcome::Published), (false, Outcome::Failed)] {
        let mut log = start(&["a", "b"]);
        verify(&mut log, vec![result("one", true, true)], vec![]);
        let mut state = drive(&mut log, |state| {
            state.phase() == Phase::Publishing && state.in_flight().next().is_some()
        });
        fail(&mut state, &mut log, Class::StagingLost);
        verify(&mut log, vec![result("one", holds, true)], vec![]);
        let state = drive(&mut log, |_| false);
        assert_eq!(state.phase(), Phase::AtRest(outcome));
        assert_eq!(state.failure().is_some(), !holds);
    }
}

#[test]
fn a_check_that_fails_rolls_the_run_back_and_all_that_failed_are_named() {
    let published = |log: &[Event]| log.iter().any(|event| event.text().contains("publish a done"));
    for (of_a, of_b, reason) in [
        (vec![], vec![], None),
        (vec![result("one", true, true)], vec![result("two", false, false)], None),
        (
            vec![result("one", false, true)],
            vec![result("two", true, true)],
            Some("1 check failed, so nothing is published: load a: one: one found"),
        ),
        (
            vec![result("one", false, true), result("warned", false, false)],
            vec![result("two", false, true)],
            Some("2 checks failed, so nothing is published: load a: one: one found; load b: two: two found"),
        ),
    ] {
        let (state, log) = run(of_a.clone(), of_b);
        let outcome = if reason.is_some() {
            Outcome::Failed
        } else {
            Outcome::Published
        };
        assert_eq!(state.phase(), Phase::AtRest(outcome));
        assert_eq!(state.failure().map(|failure| failure.message.as_str()), reason);
        assert_eq!(published(&log), reason.is_none());
        // Also after the rollback, which takes the step's own report back.
        assert_eq!(state.checks(&LoadName::from("a")), of_a);
        // Whatever prefix a leader finds, it comes to the same end.
        for length in 1..log.len() {
            let mut prefix = log[..length].to_vec();
            let again = drive(&mut prefix, |_| false);
            if prefix[length..]
                .iter()
                .all(|event| !matches!(event, Event::StepDone { step, .. } if step.kind == StepKind::Verify))
            {
                assert_eq!(again.phase(), state.phase(), "from event {length} on");
            }
        }
    }
}

#[test]
fn more_than_a_few_are_counted() {
    let many = (0..8).map(|n| result(&n.to_string(), false, true)).collect();
    let (state, _) = run(many, vec![]);
    let message = &state.failure().expect("it failed").message;
    assert!(
        message.starts_with("8 checks failed") && message.ends_with("4: 4 found; and 3 more"),
        "{message}"
    );
}

#[test]
fn rows_that_are_set_aside_are_rejected_rows_of_the_run() {
    let mut log = start(&["a", "b"]);
    verify(&mut log, vec![], vec![]);
    let aside = SetAside {
        rows: 3,
        reasons: [("check:x".to_owned(), 2), ("check:y".to_owned(), 1)].into(),
        prefix: "runs/r/checks/a/".to_owned(),
        objects: 2,
        checksum: None,
    };
    for event in &mut log {
        if let Event::StepDone { step, report, .. } = event
            && step.load == LoadName::from("a")
        {
            report.set_aside = Some(Box::new(aside.clone()));
        }
    }
    let state = State::fold(&log);
    let mut before = start(&["a", "b"]);
    verify(&mut before, vec![], vec![]);
    let before = State::fold(&before).counts().rejected_total();
    assert_eq!(state.counts().rejected_total(), before + 3);
    assert_eq!(state.counts().rejected.get("check:x"), Some(&2));
    assert_eq!(
        state.reject_keys().collect::<Vec<_>>(),
        [
            "runs/r/checks/a/0.rejects.jsonl.zst",
            "runs/r/checks/a/1.rejects.jsonl.zst"
        ]
    );
    // Staged again, they are no longer set aside, until they are verified again.
    let stages = state.stages().iter().map(|stage| stage.stage).collect();
    log.push(Event::Restaged {
        loads: vec![LoadName::from("a")],
        stages,
        round: 1,
        at: Millis(0),
    });
    assert!(State::fold(&log).set_aside().is_empty());
    // A log of an earlier release says nothing of it.
    let text = r#"{"rows":3,"detail":""}"#;
    let report: StepReport = serde_json::from_str(text).expect("readable");
    assert_eq!(report.set_aside, None);
}

/// A log whose one staged chunk has read ten rows and rejected so many of them for `a` and `b`, and a row that could not be
/// read again, if there is one.
fn rejected(replay: Option<Replay>, of_a: u64, of_b: u64, stays: bool) -> State {
    let mut staged = report(&["a", "b"], 10);
    for (load, rejected) in [("a", of_a), ("b", of_b)] {
        let counts = staged.counts.loads.get_mut(load).expect("it is fed");
        counts.rejected = rejected;
    }
    if stays {
        staged.counts.rejected.insert(NOT_REPLAYABLE.to_owned(), 1);
    }
    let mut submission = submission(&["a", "b"]);
    submission.replay = replay;
    State::fold(&[
        submitted(RunId::from("r"), submission, None, Millis(1)),
        Event::ChunkStaged {
            work: Work::Chunk(chunk(0)),
            attempt: Attempt(1),
            report: staged,
            at: Millis(2),
        },
    ])
}

#[test]
fn a_replay_is_of_the_loads_that_rows_were_rejected_for() {
    let judged = |read, rejected| Judged { read, rejected };
    let loads = |loads: &[(&str, Judged)]| {
        let loads = loads.iter().map(|(name, judged)| (LoadName::from(*name), *judged));
        Some(loads.collect::<BTreeMap<_, _>>())
    };
    let replay = |loads| {
        Some(Replay {
            run: RunId::from("q"),
            origin: None,
            objects: BTreeMap::new(),
            parts: BTreeMap::new(),
            read: BTreeMap::new(),
            loads,
        })
    };
    assert_eq!(
        rejected(None, 0, 2, false).rejected_for(),
        loads(&[("b", judged(10, 0))])
    );
    // What the first run has read stays what it is, and so do loads that the file has lost meanwhile.
    let before = || loads(&[("b", judged(100, 3)), ("gone", judged(50, 0))]);
    let of_replay = |stays| rejected(replay(before()), 0, 2, stays).rejected_for();
    assert_eq!(of_replay(false), loads(&[("b", judged(100, 3))]));
    assert_eq!(of_replay(true), before());
    // An earlier release did not say.
    assert_eq!(
        rejected(replay(None), 0, 2, false).rejected_for(),
        loads(&[("b", judged(0, 0))])
    );
    assert_eq!(rejected(replay(None), 0, 2, true).rejected_for(), None);

    // Of the run's rows, and not of those that are read again.
    let b = LoadName::from("b");
    assert_eq!(rejected(None, 0, 2, false).judged(&b), judged(10, 2));
    assert_eq!(rejected(replay(before()), 0, 2, false).judged(&b), judged(100, 5));
    let unknown = loads(&[("b", judged(0, 0))]);
    assert_eq!(rejected(replay(unknown), 0, 2, false).judged(&b), judged(10, 2));
    assert_eq!(rejected(replay(None), 0, 2, false).judged(&b), judged(10, 2));
}
