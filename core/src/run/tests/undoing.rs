//! Undoing that fails: what waits by itself, what waits for an operator, and what an operator may leave as it is.

use super::later::give;
use super::tables::{LOADS, drive, fail, kinds, running};
use super::*;

fn abandon() -> Input {
    Input::Decide {
        decision: StuckDecision::Abandon,
        step: None,
        reason: "the server is gone for good".into(),
        by: "ops".into(),
    }
}

fn undoing(state: &State) -> bool {
    let mut held = state.in_flight();
    held.any(|(work, _, _)| matches!(work, Work::Compensate(_)))
}

/// A run whose publish has failed for good, and so has undoing it.
fn stuck() -> (State, Vec<Event>) {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Publish, "a"));
    fail(&mut state, &mut log, Class::Permanent);
    let mut state = drive(&mut log, undoing);
    fail(&mut state, &mut log, Class::Permanent);
    let state = drive(&mut log, |_| false);
    (state, log)
}

#[test]
fn a_compensation_that_keeps_failing_waits_for_an_operator() {
    let (mut state, log) = stuck();
    assert_eq!(state.phase(), Phase::Stuck);
    for decision in [StuckDecision::Retry, StuckDecision::Abandon] {
        let mut state = state.clone();
        let mut log = log.clone();
        for event in decide(
            &state,
            &Input::Decide {
                decision,
                step: None,
                reason: "seen to".into(),
                by: "ops".into(),
            },
            Millis(8),
        )
        .expect("stuck")
        {
            state.apply(&event);
            log.push(event);
        }
        assert_eq!(
            drive(&mut log, |_| false).phase(),
            Phase::AtRest(Outcome::Failed),
            "{decision:?}"
        );
        let undone = kinds(&log).contains(&"undo publish a".to_owned());
        assert_eq!(undone, decision == StuckDecision::Retry);
    }
    fail_if_in_flight(&mut state);
}

#[test]
fn a_decision_about_another_step_is_refused() {
    let (mut state, mut log) = stuck();
    for decision in [StuckDecision::Retry, StuckDecision::Abandon] {
        let about = |step: &str| Input::Decide {
            decision,
            step: Some(step.to_owned()),
            reason: "seen to".into(),
            by: "ops".into(),
        };
        assert_eq!(
            decide(&state, &about("publish b"), Millis(9)),
            Err(Refused::AnotherStep)
        );
        assert!(decide(&state, &about("publish a"), Millis(9)).is_ok());
    }
    let input = Input::Decide {
        decision: StuckDecision::Abandon,
        step: Some("publish a".to_owned()),
        reason: "seen to".into(),
        by: "ops".into(),
    };
    give(&mut state, &mut log, &input);
    // Said again, since the answer was lost, it is not about the next one.
    let state = drive(&mut log, undoing);
    assert!(decide(&state, &input, Millis(9)).is_err());
}

#[test]
fn a_compensation_whose_destination_is_away_waits_as_long_as_it_takes() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Publish, "a"));
    fail(&mut state, &mut log, Class::Permanent);
    for _ in 0..=MAX_FAILURES {
        let mut state = drive(&mut log, undoing);
        fail(&mut state, &mut log, Class::Transient);
        assert_eq!(state.phase(), Phase::RollingBack);
        let (step, failure) = state.undoing_waits().expect("it says what it waits for");
        assert_eq!(
            (step.to_string(), failure.message.as_str()),
            ("publish a".to_owned(), "no")
        );
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(
        (state.phase(), state.undoing_waits()),
        (Phase::AtRest(Outcome::Failed), None)
    );
}

#[test]
fn undoing_is_abandoned_once_it_has_failed_and_step_by_step() {
    let mut log = start(&LOADS);
    let state = drive(&mut log, running(StepKind::Publish, "a"));
    assert_eq!(decide(&state, &abandon(), Millis(8)), Err(Refused::NotStuck));
    let mut state = drive(&mut log, running(StepKind::Publish, "a"));
    fail(&mut state, &mut log, Class::Permanent);
    for step in ["publish a", "prepare b", "prepare a"] {
        let mut state = drive(&mut log, undoing);
        assert_eq!(state.phase(), Phase::RollingBack);
        assert_eq!(decide(&state, &abandon(), Millis(8)), Err(Refused::NotYetFailed));
        fail(&mut state, &mut log, Class::Transient);
        let retry = Input::Decide {
            decision: StuckDecision::Retry,
            step: None,
            reason: String::new(),
            by: String::new(),
        };
        assert_eq!(
            decide(&state, &retry, Millis(8)),
            Err(Refused::NotStuck),
            "it is tried again"
        );
        give(&mut state, &mut log, &abandon());
        assert!(
            matches!(log.last(), Some(Event::Abandoned { step: abandoned, reason, by, .. })
                if abandoned.to_string() == step && reason == "the server is gone for good" && by == "ops"),
            "{:?}",
            log.last()
        );
        assert_eq!(state.undoing_waits(), None);
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
    let left: Vec<String> = state.abandoned().map(ToString::to_string).collect();
    assert_eq!(left, ["prepare a", "prepare b", "publish a"]);
    assert_eq!(decide(&state, &abandon(), Millis(9)), Err(Refused::NotStuck));
}

/// What a node has of an abandoned step is dropped before the next one is undone, and how that ends is no news of it.
#[test]
fn an_abandoned_step_that_a_node_is_at_is_dropped_first() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Publish, "a"));
    fail(&mut state, &mut log, Class::Permanent);
    let mut state = drive(&mut log, undoing);
    fail(&mut state, &mut log, Class::Transient);
    let mut state = drive(&mut log, undoing);
    let before = state.retries();
    give(&mut state, &mut log, &abandon());
    let Effect::Drop { work, attempt, node } = state.outstanding().remove(0) else {
        panic!("{:?}", state.outstanding())
    };
    assert_eq!(
        (work.to_string(), state.outstanding().len()),
        ("compensate publish a".to_owned(), 1)
    );
    let ended = |result| Input::Done {
        work: work.clone(),
        attempt,
        node: node.clone(),
        result,
        restarts: 0,
        bytes_read_again: 0,
    };
    let dropped = Input::Dropped {
        work: work.clone(),
        attempt,
        node: node.clone(),
    };
    for (input, left) in [
        (dropped, vec!["publish a"]),
        (ended(Err(Failure::transient("it is still away"))), vec!["publish a"]),
        (ended(Err(Failure::permanent("it never will be"))), vec!["publish a"]),
        // It came back in that very moment: so nothing is left of it.
        (ended(Ok(Completion::Stepped(StepReport::default()))), vec![]),
    ] {
        let (mut state, mut log) = (state.clone(), log.clone());
        give(&mut state, &mut log, &input);
        assert_eq!(
            (state.phase(), state.undoing_waits()),
            (Phase::RollingBack, None),
            "{input:?}"
        );
        assert_eq!(state.retries(), before, "nothing of it is tried again");
        let state = drive(&mut log, |_| false);
        assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed), "{input:?}");
        let found: Vec<String> = state.abandoned().map(ToString::to_string).collect();
        assert_eq!(found, left, "{input:?}");
    }
}

fn fail_if_in_flight(state: &mut State) {
    assert_eq!(state.in_flight().count(), 0, "a stuck run has nothing in flight");
}
