//! Single decisions: one log, one input, the events that come of it.

use super::*;

pub(super) const LOADS: [&str; 2] = ["a", "b"];

/// Carries out what is outstanding until `stop` says so or the run is at rest; every attempt succeeds.
pub(super) fn drive(log: &mut Vec<Event>, stop: impl Fn(&State) -> bool) -> State {
    let mut state = State::fold(log.iter());
    for _ in 0..200 {
        if stop(&state) {
            break;
        }
        let Some(effect) = state.outstanding().into_iter().next() else {
            break;
        };
        let input = match effect {
            Effect::Dispatch { work, .. } => Input::Grant {
                work,
                node: "n1".into(),
            },
            Effect::Await { work, attempt, node } => {
                let result = Ok(completion(&work, &LOADS, 2));
                Input::Done {
                    work,
                    attempt,
                    node,
                    result,
                    restarts: 0,
                    bytes_read_again: 0,
                }
            }
            Effect::Drop { work, attempt, node } => Input::Dropped { work, attempt, node },
            Effect::Settle => Input::Settle,
        };
        for event in decide(&state, &input, Millis(5)).expect("outstanding work is never refused") {
            state.apply(&event);
            log.push(event);
        }
    }
    state
}

pub(super) fn fail(state: &mut State, log: &mut Vec<Event>, class: Class) {
    let (work, attempt, node) = {
        let (work, attempt, node) = state.in_flight().next().expect("something is in flight");
        (work.clone(), attempt, node.clone())
    };
    let failure = Failure {
        class,
        message: "no".to_owned(),
    };
    let input = Input::Done {
        work,
        attempt,
        node,
        result: Err(failure),
        restarts: 0,
        bytes_read_again: 0,
    };
    for event in decide(state, &input, Millis(5)).expect("a result is never refused") {
        state.apply(&event);
        log.push(event);
    }
}

pub(super) fn running(kind: StepKind, load: &'static str) -> impl Fn(&State) -> bool {
    move |state| {
        state.in_flight().any(|(work, _, _)| {
            *work
                == Work::Step(StepId {
                    kind,
                    load: load.into(),
                })
        })
    }
}

pub(super) fn kinds(log: &[Event]) -> Vec<String> {
    log.iter()
        .filter_map(|event| match event {
            Event::StepDone { step, .. } => Some(step.to_string()),
            Event::Compensated { step, .. } => Some(format!("undo {step}")),
            Event::Finished { outcome, .. } => Some(outcome.word().to_owned()),
            Event::Submitted { .. }
            | Event::Assigned { .. }
            | Event::Planned { .. }
            | Event::ChunkStaged { .. }
            | Event::AttemptFailed { .. }
            | Event::Restaged { .. }
            | Event::HandedBack { .. }
            | Event::CancelRequested { .. }
            | Event::RevertRequested { .. }
            | Event::RevertRefused { .. }
            | Event::RejectsPruned { .. }
            | Event::RollbackStarted { .. }
            | Event::Stuck { .. }
            | Event::Unstuck { .. }
            | Event::Abandoned { .. } => None,
        })
        .collect()
}

#[test]
fn a_run_without_faults_goes_through_every_step_in_order() {
    let mut log = start(&LOADS);
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
    assert_eq!(
        kinds(&log),
        [
            "prepare a",
            "prepare b",
            "verify a",
            "verify b",
            "publish a",
            "publish b",
            "cleanup a",
            "cleanup b",
            "published"
        ]
    );
    assert_eq!(state.expected(&"a".into()), Expected { rows: 14, segments: 2 });
    assert_eq!(state.outstanding(), []);
}

#[test]
fn a_failed_publish_reverts_the_earlier_one_and_drops_all_staging() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Publish, "b"));
    fail(&mut state, &mut log, Class::Permanent);
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
    assert_eq!(
        kinds(&log)[5..],
        [
            "undo publish b",
            "undo publish a",
            "undo prepare b",
            "undo prepare a",
            "failed"
        ]
    );
}

#[test]
fn a_transient_failure_is_tried_again_elsewhere_with_backoff_until_the_budget_is_gone() {
    type Is = fn(&Work) -> bool;
    let rounds: [(Is, u32); 2] = [
        (|work| matches!(work, Work::Discover), MAX_DISCOVER_FAILURES),
        // A minute: as long as a warehouse may take to be started again.
        (|work| matches!(work, Work::Step(_)), MAX_FAILURES),
    ];
    for (is, most) in rounds {
        let mut log = start(&["a"]);
        let runs = |state: &State| state.in_flight().any(|(work, _, _)| is(work));
        let mut state = drive(&mut log, runs);
        let mut waits = Vec::new();
        for _ in 0..most {
            fail(&mut state, &mut log, Class::Transient);
            if let Some(Effect::Dispatch { not_before, avoid, .. }) = state.outstanding().first() {
                assert_eq!(avoid.as_ref(), Some(&NodeName::from("n1")));
                waits.push(not_before.since(Millis(5)));
                state = drive(&mut log, runs);
            }
        }
        assert_eq!(waits.len() as u32, most - 1);
        for (nth, wait) in waits.iter().enumerate() {
            let full = (500 << nth).min(30_000);
            assert!((full * 3 / 4..=full * 5 / 4).contains(wait), "wait {nth} is {wait} ms");
        }
        assert_eq!(drive(&mut log, |_| false).phase(), Phase::AtRest(Outcome::Failed));
    }
}

#[test]
fn a_lost_node_gives_its_work_to_others_at_once_and_is_on_record() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| {
        state.stages().len() == 1 && state.in_flight().count() == 1
    });
    let input = Input::NodeLost {
        node: "n1".into(),
        silent_ms: 4_900,
    };
    let events = decide(&state, &input, Millis(9)).expect("never refused");
    assert!(
        matches!(
            &events[..],
            [Event::AttemptFailed {
                node_lost_after_ms: Some(4_900),
                not_before: Millis(9),
                ..
            }]
        ),
        "{events:?}"
    );
    state.apply(&events[0]);
    assert_eq!(state.retries(), 1);
    assert!(matches!(
        state.outstanding().first(),
        Some(Effect::Dispatch {
            not_before: Millis(9),
            ..
        })
    ));
}

#[test]
fn work_that_keeps_taking_nodes_down_is_poison() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| state.in_flight().next().is_some());
    for _ in 0..MAX_LOST {
        for event in decide(
            &state,
            &Input::NodeLost {
                node: "n1".into(),
                silent_ms: 5_000,
            },
            Millis(5),
        )
        .expect("ok")
        {
            state.apply(&event);
            log.push(event);
        }
        state = drive(&mut log, |state| state.in_flight().next().is_some());
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.failure().map(|failure| failure.class), Some(Class::Poison));
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
}

#[test]
fn what_goes_forward_between_losses_is_no_poison() {
    let mut log = start(&LOADS);
    let in_chunk = |state: &State| state.in_flight().any(|(work, ..)| matches!(work, Work::Chunk(_)));
    let mut state = drive(&mut log, in_chunk);
    let lost = Input::NodeLost {
        node: "n1".into(),
        silent_ms: 5_000,
    };
    for round in 0..3 * MAX_LOST {
        for mut event in decide(&state, &lost, Millis(5)).expect("ok") {
            if let Event::AttemptFailed { went_forward, .. } = &mut event {
                // Every second time.
                *went_forward = round % 2 == 0;
            }
            state.apply(&event);
            log.push(event);
        }
        assert_eq!(state.failure(), None, "given up after {round} losses");
        state = drive(&mut log, in_chunk);
    }
}

#[test]
fn a_wait_by_a_clock_that_was_ahead_is_bounded() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| state.in_flight().next().is_some());
    let lost = Input::NodeLost {
        node: "n1".into(),
        silent_ms: 5_000,
    };
    let hour = 3_600_000;
    for event in decide(&state, &lost, Millis(hour)).expect("ok") {
        state.apply(&event);
    }
    let waits = |state: &State| match state.outstanding().first() {
        Some(Effect::Dispatch { not_before, .. }) => *not_before,
        other => panic!("{other:?}"),
    };
    assert_eq!(waits(&state), Millis(hour));
    state.bound_waits(Millis(1_000));
    assert_eq!(waits(&state), Millis(1_000 + 37_500));
}

#[test]
fn a_stale_or_repeated_result_changes_nothing() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| state.in_flight().next().is_some());
    fail(&mut state, &mut log, Class::Transient);
    let state = drive(&mut log, |state| state.in_flight().next().is_some());
    let late = Input::Done {
        work: Work::Discover,
        attempt: Attempt(1),
        node: "n1".into(),
        result: Ok(completion(&Work::Discover, &LOADS, 2)),
        restarts: 0,
        bytes_read_again: 0,
    };
    assert_eq!(decide(&state, &late, Millis(7)), Ok(Vec::new()));
}

#[test]
fn cancel_rolls_back_before_publishing_and_is_refused_after() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Verify, "a"));
    for event in decide(
        &state,
        &Input::Cancel {
            reason: "enough".into(),
        },
        Millis(6),
    )
    .expect("not published yet")
    {
        state.apply(&event);
        log.push(event);
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Cancelled));
    assert_eq!(
        state.failure().map(|failure| failure.message.as_str()),
        Some("cancelled: enough")
    );

    let mut log = start(&LOADS);
    let state = drive(&mut log, running(StepKind::Publish, "a"));
    let refused = decide(&state, &Input::Cancel { reason: "late".into() }, Millis(6));
    assert_eq!(refused, Err(Refused::PublishBegun));
}

#[test]
fn compensation_waits_until_running_chunks_are_dropped() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| {
        state.in_flight().any(|(work, _, _)| matches!(work, Work::Chunk(_)))
    });
    for event in decide(&state, &Input::Cancel { reason: "x".into() }, Millis(6)).expect("ok") {
        state.apply(&event);
        log.push(event);
    }
    for event in decide(&state, &Input::Settle, Millis(6)).expect("ok") {
        state.apply(&event);
        log.push(event);
    }
    assert!(
        matches!(
            &state.outstanding()[..],
            [Effect::Drop {
                work: Work::Chunk(_),
                ..
            }]
        ),
        "{:?}",
        state.outstanding()
    );
    assert_eq!(drive(&mut log, |_| false).phase(), Phase::AtRest(Outcome::Cancelled));
}

#[test]
fn a_cleanup_that_fails_leaves_the_run_published() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Cleanup, "a"));
    fail(&mut state, &mut log, Class::Permanent);
    assert_eq!(drive(&mut log, |_| false).phase(), Phase::AtRest(Outcome::Published));
}

#[test]
fn a_result_of_the_wrong_kind_fails_the_run_instead_of_the_process() {
    let mut log = start(&LOADS);
    let state = drive(&mut log, |state| state.in_flight().next().is_some());
    let input = Input::Done {
        work: Work::Discover,
        attempt: Attempt(1),
        node: "n1".into(),
        result: Ok(Completion::Stepped(StepReport::default())),
        restarts: 0,
        bytes_read_again: 0,
    };
    let events = decide(&state, &input, Millis(6)).expect("never refused");
    assert!(matches!(&events[..], [Event::AttemptFailed { failure, .. }] if failure.class == Class::Permanent));
}

#[test]
fn every_time_that_work_went_on_from_a_checkpoint_is_counted_once() {
    let mut log = start(&LOADS);
    let chunk = |state: &State| {
        let mut running = state.in_flight().filter(|(work, ..)| matches!(work, Work::Chunk(_)));
        running
            .next()
            .map(|(work, attempt, node)| (work.clone(), attempt, node.clone()))
    };
    let mut told = Vec::new();
    // An attempt that was escalated after three restarts, and one that found its segments and was restarted once more.
    for restarts in [3, 2] {
        let state = drive(&mut log, |state| chunk(state).is_some());
        let (work, attempt, node) = chunk(&state).expect("a chunk is running");
        let result = if told.is_empty() {
            Err(Failure::transient("no"))
        } else {
            let mut report = report(&LOADS, 1);
            (report.restarts, report.continued) = (restarts - 1, true);
            Ok(Completion::Staged(report))
        };
        let input = Input::Done {
            work,
            attempt,
            node,
            result,
            restarts: if told.is_empty() { restarts } else { 0 },
            bytes_read_again: 0,
        };
        log.extend(decide(&state, &input, Millis(5)).expect("a result is never refused"));
        told.push(State::fold(&log).restarts());
        // Said again, it is stale.
        let state = State::fold(&log);
        assert_eq!(decide(&state, &input, Millis(6)), Ok(Vec::new()));
    }
    assert_eq!(told, [3, 5]);
    let state = drive(&mut log, |_| false);
    assert_eq!((state.retries(), state.restarts()), (1, 5));
}

#[test]
fn a_failure_of_an_older_release_counts_no_restarts() {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| state.in_flight().next().is_some());
    fail(&mut state, &mut log, Class::Transient);
    let mut old = serde_json::to_value(log.last().expect("it failed")).expect("an event");
    assert_eq!(
        old.as_object_mut().and_then(|event| event.remove("restarts")),
        Some(0.into())
    );
    assert_eq!(serde_json::from_value::<Event>(old).ok().as_ref(), log.last());
}

/// What a leaving node gives back, or doesn't take, is nobody's failure: it goes on elsewhere at once, however often.
#[test]
fn what_is_handed_back_counts_as_no_failure() {
    let mut log = start(&LOADS);
    let is_chunk = |state: &State| state.in_flight().any(|(work, ..)| matches!(work, Work::Chunk(_)));
    for turn in 0..MAX_FAILURES + MAX_LOST {
        let state = drive(&mut log, is_chunk);
        let (work, attempt, node) = state.in_flight().next().expect("a chunk is running");
        let (work, node) = (work.clone(), node.clone());
        let input = match turn % 2 {
            0 => Input::Declined { work, attempt, node },
            _ => Input::Done {
                work,
                attempt,
                node,
                result: Ok(Completion::HandedBack),
                restarts: 1,
                bytes_read_again: 10,
            },
        };
        log.extend(decide(&state, &input, Millis(5)).expect("never refused"));
        let state = State::fold(&log);
        // Said again, it is stale.
        assert_eq!(decide(&state, &input, Millis(6)), Ok(Vec::new()));
        let now = Effect::Dispatch {
            work: Work::Chunk(chunk(0)),
            not_before: Millis(0),
            avoid: Some("n1".into()),
        };
        assert!(state.outstanding().contains(&now), "{:?}", state.outstanding());
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
    assert_eq!(
        (state.retries(), state.restarts(), state.bytes_read_again()),
        (0, 5, 50)
    );
}
