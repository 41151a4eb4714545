//! What a run goes through beside the straight way: chunks that are set aside, staging that is lost, and a revert.

use super::tables::{LOADS, drive, fail, kinds, running};
use super::*;

pub(super) fn give(state: &mut State, log: &mut Vec<Event>, input: &Input) {
    for event in decide(state, input, Millis(9)).expect("not refused") {
        state.apply(&event);
        log.push(event);
    }
}

/// Loses the node on which this chunk runs, and grants it again, until it is given up.
fn poison(state: &mut State, log: &mut Vec<Event>, index: u32) {
    for _ in 0..MAX_LOST {
        let work = Work::Chunk(chunk(index));
        if !state.in_flight().any(|(held, ..)| *held == work) {
            let node = NodeName::from("victim");
            give(state, log, &Input::Grant { work, node });
        }
        let (_, _, node) = state.in_flight().next().expect("it runs");
        let (node, silent_ms) = (node.clone(), 5_000);
        give(state, log, &Input::NodeLost { node, silent_ms });
    }
}

fn step(kind: StepKind, load: &str) -> StepId {
    StepId {
        kind,
        load: load.into(),
    }
}

fn loading(chunks: u32) -> (State, Vec<Event>) {
    let mut log = start(&LOADS);
    let mut state = drive(&mut log, |state| {
        state.in_flight().any(|(work, ..)| *work == Work::Discover)
    });
    let input = Input::Done {
        work: Work::Discover,
        attempt: Attempt(1),
        node: "n1".into(),
        result: Ok(Completion::Discovered(plan(&LOADS, chunks))),
        restarts: 0,
        bytes_read_again: 0,
    };
    give(&mut state, &mut log, &input);
    let state = drive(&mut log, |state| {
        state.phase() == Phase::Loading && state.saga.all_done(StepKind::Prepare)
    });
    (state, log)
}

#[test]
fn poison_is_set_aside_until_the_rest_is_staged_and_every_chunk_of_it_is_named() {
    let (mut state, mut log) = loading(4);
    for index in [1, 3] {
        poison(&mut state, &mut log, index);
        assert_eq!(state.failure(), None, "the rest goes on");
        assert!(!state.outstanding().contains(&Effect::Settle));
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
    let staged = log.iter().filter(|event| matches!(event, Event::ChunkStaged { .. }));
    assert_eq!(staged.count(), 2, "the others were staged meanwhile");
    let failure = state.failure().expect("it failed");
    assert_eq!(failure.class, Class::Poison);
    for part in [
        "2 chunks were set aside: chunk 0.1 took down 3 nodes",
        "(raw.csv, from line 1 at byte 10 to its end); chunk 0.3 took down",
        "from line 1 at byte 30",
    ] {
        assert!(failure.message.contains(part), "{part:?} is not in {failure}");
    }
    assert_eq!(
        &kinds(&log)[kinds(&log).len() - 3..],
        ["undo prepare b", "undo prepare a", "failed"]
    );
}

#[test]
fn another_failure_or_too_much_poison_ends_the_wait() {
    let (mut state, mut log) = loading(4);
    poison(&mut state, &mut log, 0);
    let node = NodeName::from("n1");
    let work = Work::Chunk(chunk(2));
    give(&mut state, &mut log, &Input::Grant { work, node });
    fail(&mut state, &mut log, Class::Permanent);
    assert!(state.outstanding().contains(&Effect::Settle));
    give(&mut state, &mut log, &Input::Settle);
    assert_eq!(state.failure().map(|failure| failure.message.as_str()), Some("no"));

    let many = MAX_SET_ASIDE as u32;
    let (mut state, mut log) = loading(many + 5);
    for index in 0..many {
        assert!(!state.outstanding().contains(&Effect::Settle), "{index}");
        poison(&mut state, &mut log, index);
    }
    give(&mut state, &mut log, &Input::Settle);
    assert_eq!(state.phase(), Phase::RollingBack);
}

#[test]
fn lost_staging_is_staged_again_once_all_loads_have_answered() {
    for kind in [StepKind::Verify, StepKind::Publish] {
        let mut log = start(&LOADS);
        let mut state = drive(&mut log, running(kind, "a"));
        let other = Work::Step(step(StepKind::Verify, "b"));
        if kind == StepKind::Verify {
            let node = NodeName::from("n2");
            give(
                &mut state,
                &mut log,
                &Input::Grant {
                    work: other.clone(),
                    node,
                },
            );
        }
        fail(&mut state, &mut log, Class::StagingLost);
        if kind == StepKind::Verify {
            assert!(
                matches!(&state.outstanding()[..], [Effect::Await { work, .. }] if *work == other),
                "the other one answers first: {:?}",
                state.outstanding()
            );
            fail(&mut state, &mut log, Class::StagingLost);
        }
        assert_eq!(state.outstanding(), [Effect::Settle]);
        give(&mut state, &mut log, &Input::Settle);
        let both = |loads: &[LoadName]| loads.len() == if kind == StepKind::Verify { 2 } else { 1 };
        assert!(
            matches!(log.last(), Some(Event::Restaged { loads, stages, round: 1, .. })
                if both(loads) && *stages == [StageId(0)]),
            "{:?}",
            log.last()
        );
        assert_eq!((state.phase(), state.round()), (Phase::Loading, 1));
        assert_eq!(
            state.expected(&"a".into()),
            Expected::default(),
            "nothing counts as staged"
        );
        let again = log.len();
        let state = drive(&mut log, |_| false);
        assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
        assert_eq!(
            kinds(&log[again..])[..4],
            ["prepare a", "prepare b", "verify a", "verify b"]
        );
        assert_eq!(state.expected(&"a".into()), Expected { rows: 14, segments: 2 });
    }
}

#[test]
fn staging_that_is_lost_again_and_again_or_after_a_publish_ends_the_run() {
    let mut log = start(&LOADS);
    for round in 0..=MAX_RESTAGED {
        let mut state = drive(&mut log, running(StepKind::Verify, "a"));
        assert_eq!(state.round(), round);
        fail(&mut state, &mut log, Class::StagingLost);
    }
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
    let failure = state.failure().expect("it failed");
    assert!(failure.message.contains("4 times"), "{failure}");

    let mut log = start(&LOADS);
    let mut state = drive(&mut log, running(StepKind::Publish, "b"));
    fail(&mut state, &mut log, Class::StagingLost);
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Failed));
    assert_eq!(state.round(), 0);
    assert!(kinds(&log).contains(&"undo publish a".to_owned()));
}

fn revert() -> Input {
    Input::Revert {
        reason: "the wrong month".into(),
        by: "ops".into(),
    }
}

fn published() -> (State, Vec<Event>) {
    let mut log = start(&LOADS);
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
    (state, log)
}

#[test]
fn a_revert_asks_every_load_first_and_then_undoes_all_in_reverse() {
    let (mut state, mut log) = published();
    let before = log.len();
    give(&mut state, &mut log, &revert());
    assert_eq!(state.phase(), Phase::Recalling);
    assert_eq!(decide(&state, &revert(), Millis(9)), Ok(Vec::new()), "asked twice");
    let cancel = Input::Cancel { reason: "no".into() };
    assert_eq!(decide(&state, &cancel, Millis(9)), Err(Refused::BeingReverted));
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Reverted));
    assert_eq!(
        kinds(&log[before..]),
        [
            "recall a",
            "recall b",
            "undo publish b",
            "undo publish a",
            "undo prepare b",
            "undo prepare a",
            "reverted"
        ]
    );
    assert_eq!(
        state.failure().map(|failure| failure.message.as_str()),
        Some("reverted: the wrong month")
    );
    assert_eq!(decide(&state, &revert(), Millis(9)), Ok(Vec::new()), "and once more");
}

#[test]
fn a_refused_revert_leaves_the_run_published_and_can_be_asked_for_again() {
    let (mut state, mut log) = published();
    for _ in 0..2 {
        let before = log.len();
        give(&mut state, &mut log, &revert());
        state = drive(&mut log, running(StepKind::Recall, "b"));
        fail(&mut state, &mut log, Class::Permanent);
        state = drive(&mut log, |_| false);
        assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
        assert_eq!(
            kinds(&log[before..]),
            ["recall a", "undo recall a", "undo recall b", "published"],
            "nothing was undone, and nothing is kept for the revert any more"
        );
        let failure = state.failure().expect("it says why");
        assert_eq!(failure.message, "can't be reverted: no");
    }
    give(&mut state, &mut log, &revert());
    assert_eq!(state.failure(), None);
    assert_eq!(drive(&mut log, |_| false).phase(), Phase::AtRest(Outcome::Reverted));
}

/// The destination of the first is away by then, or no longer permits it: the other is let go all the same, and this one is
/// waited for until it can be, or until somebody gives it up.
#[test]
fn a_refused_revert_ends_when_every_load_is_let_go_or_given_up() {
    let (mut state, mut log) = published();
    give(&mut state, &mut log, &revert());
    let mut state = drive(&mut log, running(StepKind::Recall, "b"));
    fail(&mut state, &mut log, Class::Permanent);
    let first = Work::Compensate(step(StepKind::Recall, "a"));
    let mut state = drive(&mut log, |state| state.in_flight().any(|(work, ..)| *work == first));
    let abandon = Input::Decide {
        decision: StuckDecision::Abandon,
        step: Some("recall a".to_owned()),
        reason: "the server is gone".into(),
        by: "ops".into(),
    };
    assert_eq!(decide(&state, &abandon, Millis(9)), Err(Refused::NotYetFailed));
    for time in 0..2 * MAX_FAILURES {
        let class = if time % 2 == 0 {
            Class::Transient
        } else {
            Class::Permanent
        };
        fail(&mut state, &mut log, class);
        assert_eq!(
            state.phase(),
            Phase::Recalling,
            "it waits until the destination is back"
        );
        let node = NodeName::from("n2");
        let (first, second) = (first.clone(), Work::Compensate(step(StepKind::Recall, "b")));
        if time == 0 {
            give(
                &mut state,
                &mut log,
                &Input::Grant {
                    work: second.clone(),
                    node: node.clone(),
                },
            );
            let done = Input::Done {
                work: second,
                attempt: Attempt(1),
                node: node.clone(),
                result: Ok(Completion::Stepped(StepReport::default())),
                restarts: 0,
                bytes_read_again: 0,
            };
            give(&mut state, &mut log, &done);
        }
        assert_eq!(
            state.undoing_waits().map(|(waits, _)| waits),
            Some(&step(StepKind::Recall, "a"))
        );
        give(&mut state, &mut log, &Input::Grant { work: first, node });
    }
    let mut left = (state.clone(), log.clone());
    give(&mut left.0, &mut left.1, &abandon);
    let state_left = drive(&mut left.1, |_| false);
    assert_eq!(state_left.phase(), Phase::AtRest(Outcome::Published));
    assert_eq!(state_left.abandoned().count(), 1);

    let mut state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Published));
    assert_eq!(state.undoing_waits(), None);
    let again = log.len();
    give(&mut state, &mut log, &revert());
    let state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::AtRest(Outcome::Reverted));
    assert_eq!(kinds(&log[again..])[..3], ["recall a", "recall b", "undo publish b"]);
}

#[test]
fn only_what_is_published_is_reverted_and_a_stuck_revert_waits_for_an_operator() {
    for until in [Phase::Discovering, Phase::Loading, Phase::Publishing] {
        let mut log = start(&LOADS);
        let state = drive(&mut log, |state| state.phase() == until);
        assert_eq!(
            decide(&state, &revert(), Millis(9)),
            Err(Refused::NotPublished),
            "{until:?}"
        );
    }
    let (mut state, mut log) = published();
    give(&mut state, &mut log, &revert());
    let mut state = drive(&mut log, |state| {
        state.in_flight().any(|(work, ..)| matches!(work, Work::Compensate(_)))
    });
    fail(&mut state, &mut log, Class::Permanent);
    let mut state = drive(&mut log, |_| false);
    assert_eq!(state.phase(), Phase::Stuck);
    let retry = Input::Decide {
        decision: StuckDecision::Retry,
        step: None,
        reason: "seen to".into(),
        by: "ops".into(),
    };
    give(&mut state, &mut log, &retry);
    assert_eq!(drive(&mut log, |_| false).phase(), Phase::AtRest(Outcome::Reverted));
}
