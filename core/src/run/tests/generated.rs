//! Properties over generated logs: a seeded world of nodes that succeed, fail, vanish and repeat themselves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::event::CheckResult;

const LOADS: [&str; 3] = ["a", "b", "c"];
const CHUNKS: u32 = 4;

/// One choice of the world, read from the case's bytes; the same bytes make the same log.
struct World<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl World<'_> {
    fn choose(&mut self, among: usize) -> usize {
        self.bytes.next().map_or(0, |byte| usize::from(*byte)) % among.max(1)
    }

    fn exhausted(&self) -> bool {
        self.bytes.len() == 0
    }

    fn outcome(&mut self, work: &Work) -> Result<Completion, Failure> {
        match self.choose(12) {
            0 => Err(Failure::permanent("it will never work")),
            1 | 2 => Err(Failure::transient("it may work later")),
            3 => Err(Failure::fenced("somebody newer is here")),
            4 => Err(Failure::staging_lost("the server crashed")),
            5 if self.choose(4) == 0 => Err(Failure::poison("it ate the memory")),
            6 => Ok(Completion::HandedBack),
            7 if self.choose(2) == 0 && is_verify(work) => Ok(Completion::Stepped(StepReport {
                checks: vec![CheckResult {
                    holds: self.choose(4) == 0,
                    blocks: self.choose(4) > 0,
                    ..CheckResult::default()
                }],
                ..StepReport::default()
            })),
            _ => Ok(completion(work, &LOADS, CHUNKS)),
        }
    }

    fn input(&mut self, state: &State) -> Input {
        let effects = state.outstanding();
        match self.choose(20) {
            0 => {
                return Input::NodeLost {
                    node: node(self.choose(3)),
                    silent_ms: 5_000,
                };
            }
            1 if self.choose(8) == 0 => {
                return Input::Cancel {
                    reason: "a user".into(),
                };
            }
            2 => {
                return Input::Decide {
                    decision: StuckDecision::Abandon,
                    step: None,
                    reason: "an operator".into(),
                    by: String::new(),
                };
            }
            3 => {
                let work = Work::Chunk(chunk(self.choose(4) as u32));
                let result = self.outcome(&work);
                let attempt = Attempt(self.choose(4) as u32);
                return Input::Done {
                    work,
                    attempt,
                    node: node(0),
                    result,
                    restarts: 0,
                    bytes_read_again: 0,
                };
            }
            _ => {}
        }
        if effects.is_empty() {
            return Input::Decide {
                decision: StuckDecision::Retry,
                step: None,
                reason: "an operator".into(),
                by: String::new(),
            };
        }
        match effects[self.choose(effects.len())].clone() {
            Effect::Dispatch { work, .. } => Input::Grant {
                work,
                node: node(self.choose(3)),
            },
            Effect::Await { work, attempt, node } => {
                let result = self.outcome(&work);
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
        }
    }
}

fn is_verify(work: &Work) -> bool {
    matches!(work, Work::Step(step) if step.kind == StepKind::Verify)
}

fn node(number: usize) -> NodeName {
    NodeName(format!("n{number}"))
}

/// A log as a leader would write it in the world that the bytes describe. Once they are used up, all goes well.
fn log_of(bytes: &[u8]) -> Vec<Event> {
    let mut world = World { bytes: bytes.iter() };
    let mut log = start(&LOADS);
    let mut state = State::fold(&log);
    let mut now = 10;
    for _ in 0..4_000 {
        let published = state.phase() == Phase::AtRest(Outcome::Published);
        let again = published && !world.exhausted() && world.choose(2) == 0;
        if matches!(state.phase(), Phase::AtRest(_)) && !again {
            break;
        }
        now += 100;
        let input = if again {
            Input::Revert {
                reason: "the wrong month".into(),
                by: "ops".into(),
            }
        } else if world.exhausted() {
            well(&state)
        } else {
            world.input(&state)
        };
        for event in decide(&state, &input, Millis(now)).unwrap_or_default() {
            state.apply(&event);
            log.push(event);
        }
    }
    log
}

/// The next input of a world without faults.
fn well(state: &State) -> Input {
    match state.outstanding().into_iter().next() {
        Some(Effect::Dispatch { work, .. }) => Input::Grant { work, node: node(0) },
        Some(Effect::Await { work, attempt, node }) => {
            let result = Ok(completion(&work, &LOADS, CHUNKS));
            Input::Done {
                work,
                attempt,
                node,
                result,
                restarts: 0,
                bytes_read_again: 0,
            }
        }
        Some(Effect::Drop { work, attempt, node }) => Input::Dropped { work, attempt, node },
        Some(Effect::Settle) => Input::Settle,
        None => Input::Decide {
            decision: StuckDecision::Retry,
            step: None,
            reason: "an operator".into(),
            by: String::new(),
        },
    }
}

fn rests(state: &State) -> bool {
    matches!(state.phase(), Phase::Empty | Phase::AtRest(_) | Phase::Stuck)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_owes_something_or_rests(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let log = log_of(&bytes);
        let mut state = State::default();
        for event in &log {
            state.apply(event);
            prop_assert_eq!(state.outstanding().is_empty(), rests(&state), "after {:?}", event);
            for effect in state.outstanding() {
                let (work, waits) = match effect {
                    Effect::Dispatch { work, .. } => (work, true),
                    Effect::Await { work, .. } | Effect::Drop { work, .. } => (work, false),
                    Effect::Settle => continue,
                };
                prop_assert_eq!(state.is_waiting(&work), waits, "{} after {:?}", work, event);
            }
            // What needs nobody else must move the log: a leader that recovers here can't spin in place.
            if state.outstanding().contains(&Effect::Settle) {
                let moves = decide(&state, &Input::Settle, Millis(0)).expect("settle is never refused");
                prop_assert!(!moves.is_empty(), "nothing settles after {:?}", event);
            }
        }
        prop_assert!(matches!(state.phase(), Phase::AtRest(_)), "never came to rest: {:?}", state.phase());
    }

    #[test]
    fn indexes_and_windows_agree_with_a_look_at_everything(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut state = State::default();
        for event in &log_of(&bytes) {
            state.apply(event);
            let scan = |held: fn(&Tries) -> bool| -> BTreeSet<Work> {
                state.tries.iter().filter(|(_, tries)| held(tries)).map(|(work, _)| work.clone()).collect()
            };
            prop_assert_eq!(&state.running, &scan(|tries| tries.running_on.is_some()), "after {:?}", event);
            prop_assert_eq!(&state.given_up, &scan(|tries| tries.given_up.is_some()), "after {:?}", event);
            let planned = state.stages.iter().flat_map(|stage| &stage.chunks).map(|spec| spec.chunk);
            let open: BTreeSet<ChunkId> = planned.filter(|chunk| !state.reports.contains_key(chunk)).collect();
            prop_assert_eq!(&state.open, &open, "after {:?}", event);

            let now = Millis(400);
            let all = state.outstanding();
            let is_ready = |effect: &&Effect| matches!(effect, Effect::Dispatch { not_before, .. } if *not_before <= now);
            let few = state.outstanding_within(1, now);
            prop_assert_eq!(all.is_empty(), few.is_empty());
            prop_assert_eq!(all.contains(&Effect::Settle), few.contains(&Effect::Settle));
            prop_assert_eq!(all.iter().find(is_ready), few.iter().find(is_ready), "the first that can go out does");
            prop_assert!(few.iter().filter(is_ready).count() <= 1);
            prop_assert!(few.iter().all(|effect| all.contains(effect)));
        }
    }

    #[test]
    fn recovery_from_any_prefix_comes_to_rest(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        let log = log_of(&bytes);
        let mut state = State::fold(&log[..=cut.index(log.len())]);
        for _ in 0..500 {
            if matches!(state.phase(), Phase::AtRest(_)) {
                break;
            }
            for event in decide(&state, &well(&state), Millis(1)).expect("what is owed is never refused") {
                state.apply(&event);
            }
        }
        prop_assert!(matches!(state.phase(), Phase::AtRest(_)), "stays in {:?}", state.phase());
    }

    #[test]
    fn a_log_keeps_the_promises_of_the_saga(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let log = log_of(&bytes);
        let mut staged = BTreeSet::new();
        let mut started: Vec<StepId> = Vec::new();
        let mut done = BTreeSet::new();
        let mut undone = Vec::new();
        let mut wrong = BTreeSet::new();
        let mut attempts: BTreeMap<Work, Attempt> = BTreeMap::new();
        let (mut rolling_back, mut reverting) = (false, false);
        let (mut abandoned, mut failed, mut stuck) = (BTreeSet::new(), BTreeSet::new(), None);
        // Loads that are kept for the revert.
        let mut asked: BTreeSet<StepId> = BTreeSet::new();
        for event in &log {
            match event {
                Event::Assigned { work, attempt, .. } => {
                    let last = attempts.insert(work.clone(), *attempt).unwrap_or_default();
                    prop_assert_eq!(*attempt, last.next(), "attempts count up by one");
                    prop_assert!(!rolling_back || matches!(work, Work::Compensate(_)), "{} starts in a rollback", work);
                    if let Work::Step(step) = work {
                        if step.kind == StepKind::Recall {
                            asked.insert(step.clone());
                        }
                        if step.kind == StepKind::Publish {
                            prop_assert_eq!(staged.len() as u32, CHUNKS, "published before every chunk was staged");
                            for load in LOADS {
                                let verify = StepId { kind: StepKind::Verify, load: load.into() };
                                prop_assert!(done.contains(&verify), "published before {}", verify);
                            }
                            prop_assert!(wrong.is_empty(), "published although checks failed: {:?}", wrong);
                        }
                        if !started.contains(step) {
                            started.push(step.clone());
                        }
                    }
                }
                Event::ChunkStaged { work, .. } => prop_assert!(staged.insert(work.clone()), "{} staged twice", work),
                Event::StepDone { step, report, .. } => {
                    wrong.remove(step);
                    if report.checks.iter().any(|check| check.blocks && !check.holds) {
                        wrong.insert(step.clone());
                    }
                    prop_assert!(done.insert(step.clone()), "{} done twice", step);
                }
                Event::Compensated { step, .. } if step.kind == StepKind::Recall => {
                    prop_assert!(reverting && !rolling_back, "{} is let go", step);
                    asked.remove(step);
                }
                Event::Compensated { step, .. } => {
                    // Abandoned while a node was at it, which did it all the same.
                    abandoned.remove(step);
                    undone.push(step.clone());
                }
                Event::AttemptFailed { work: Work::Compensate(step), .. } => {
                    failed.insert(step.clone());
                }
                Event::RollbackStarted { .. } => {
                    prop_assert!(!rolling_back, "rolls back once");
                    rolling_back = true;
                }
                Event::Stuck { step, .. } => stuck = Some(step.clone()),
                Event::Unstuck { decision: StuckDecision::Abandon, .. } => abandoned.extend(stuck.take()),
                Event::Abandoned { step, .. } if step.kind == StepKind::Recall => {
                    prop_assert!(reverting && !rolling_back && failed.contains(step) && asked.remove(step));
                }
                Event::Abandoned { step, .. } => {
                    prop_assert!(rolling_back && failed.contains(step), "abandoned without a failure: {}", step);
                    abandoned.insert(step.clone());
                }
                Event::Restaged { .. } => {
                    prop_assert!(!rolling_back && !started.iter().any(|step| step.kind == StepKind::Publish && done.contains(step)));
                    staged.clear();
                    done.retain(|step: &StepId| !matches!(step.kind, StepKind::Prepare | StepKind::Verify));
                }
                Event::RevertRequested { .. } => {
                    prop_assert!(!rolling_back && !reverting);
                    reverting = true;
                    asked.clear();
                    done.retain(|step: &StepId| step.kind != StepKind::Recall);
                }
                Event::RevertRefused { .. } => {
                    prop_assert!(asked.is_empty(), "kept for a revert that is refused: {:?}", asked);
                    reverting = false;
                }
                Event::Finished { outcome, .. } => {
                    prop_assert_eq!(*outcome == Outcome::Published, !rolling_back);
                    prop_assert_eq!(*outcome == Outcome::Reverted, reverting);
                }
                Event::Submitted { .. } | Event::Planned { .. } | Event::AttemptFailed { .. }
                | Event::HandedBack { .. }
                | Event::CancelRequested { .. }
                | Event::Unstuck { .. }
                | Event::RejectsPruned { .. } => {}
            }
        }
        if rolling_back {
            let mut owed: Vec<StepId> = started.clone();
            owed.retain(|step| matches!(step.kind, StepKind::Prepare | StepKind::Publish));
            owed.reverse();
            prop_assert_eq!(undone.len() + abandoned.len(), owed.len(), "every started step is undone or abandoned");
            let in_order: Vec<StepId> = owed.into_iter().filter(|step| undone.contains(step)).collect();
            prop_assert_eq!(undone, in_order, "in reverse order of the start");
        } else {
            prop_assert!(undone.is_empty());
        }
    }

    #[test]
    fn any_sequence_of_events_folds(bytes in proptest::collection::vec(any::<u8>(), 0..200), order in proptest::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let log = log_of(&bytes);
        let mut state = State::default();
        for index in order {
            state.apply(&log[index.index(log.len())]);
            let _effects = state.outstanding();
            let _phase = state.phase();
            prop_assert!(decide(&state, &Input::Settle, Millis(1)).is_ok());
        }
    }
}

#[test]
fn the_ledgers_form_of_an_event_reads_back() {
    for event in log_of(&[7, 0, 3, 1, 2, 200, 90, 4, 4, 4, 12, 19, 0, 0, 1]) {
        let text = serde_json::to_string(&event).expect("events are plain data");
        assert_eq!(serde_json::from_str::<Event>(&text).expect("and read back"), event);
    }
}
