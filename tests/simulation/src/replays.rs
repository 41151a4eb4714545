//! The invariant of replays: the rejected rows of a run are given to one replay, which adds to what the run published.
//! Judged by what stands at destinations and by runs' stories, not by what the ledger has made of it.

use std::collections::BTreeMap;

use haulage_core::event::Outcome;
use haulage_core::ids::{RunId, StepId, StepKind};

use crate::call::Effect;
use crate::destination::Standing;
use crate::invariants::{Violation, broken};
use crate::story::Story;
use crate::world::World;

type Stories = BTreeMap<RunId, Story>;

/// Nothing of two replays of one run stands at once, so no rejected row is loaded twice; and what a run has published isn't
/// taken back from under its replay. What an operator has left as it is may stand for ever, and is no replay any more.
pub(crate) fn i10_rejects_are_given_once(
    world: &World,
    stories: &Stories,
    number: usize,
    effect: Effect,
) -> Result<(), Violation> {
    let of = match (effect, world.runs[number].replays) {
        (Effect::Published | Effect::PublishedInPart, Some(of)) => of,
        (Effect::Reverted, None) => number,
        _ => return Ok(()),
    };
    let others = (0..world.runs.len()).filter(|other| *other != number && world.runs[*other].replays == Some(of));
    for other in others {
        if stands(world, stories, other) {
            return broken(
                10,
                match effect {
                    Effect::Reverted => format!("run {number} is reverted under its replay {other}"),
                    _ => format!("the rejected rows of run {of} are loaded by {number}, and by {other}"),
                },
            );
        }
    }
    Ok(())
}

/// No rejected row is lost: who may not replay a run is told so because another replay has its rows, or because nothing of
/// the run stands.
pub(crate) fn i10_refused_for_a_reason(world: &World, stories: &Stories, number: usize) -> Result<(), Violation> {
    let Some(of) = world.runs[number].replays else {
        return broken(10, format!("run {number} is refused, and is no replay"));
    };
    let story = |number: usize| stories.get(&world.runs[number].id);
    let is_published = story(of).is_some_and(|story| story.finished == Some(Outcome::Published));
    let others = (0..world.runs.len()).filter(|other| *other != number && world.runs[*other].replays == Some(of));
    let has_them = |other: usize| {
        let there = world.ledger.runs.contains_key(&world.runs[other].id);
        let ended = story(other).and_then(|story| story.finished);
        there && matches!(ended, None | Some(Outcome::Published))
    };
    match !is_published || others.into_iter().any(has_them) {
        true => Ok(()),
        false => broken(
            10,
            format!("replay {number} is refused, though run {of} is published and nobody else replays it"),
        ),
    }
}

/// Whether something that a run has published stands, and was not left behind.
fn stands(world: &World, stories: &Stories, number: usize) -> bool {
    let run = &world.runs[number];
    let story = stories.get(&run.id);
    run.loads.iter().enumerate().any(|(load, planned)| {
        let step = StepId {
            kind: StepKind::Publish,
            load: planned.name.clone(),
        };
        let left = story.is_some_and(|story| story.left.contains(&step) || story.abandoned.contains(&step));
        let record = world.destinations[planned.destination].records.get(&(number, load));
        !left && record.is_some_and(|record| record.standing == Standing::Published)
    })
}
