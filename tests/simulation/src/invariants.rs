//! The invariants, each a function, looked at after every step. What a step did not touch still holds, so each looks at
//! what the step has touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use haulage_core::event::{Event, Outcome};
use haulage_core::failure::Class;
use haulage_core::ids::{Attempt, ChunkId, Epoch, RunId, Seq, StepId, StepKind};
use haulage_core::run::State;

use crate::call::{Effect, LoadKey, Request};
use crate::destination::{STUBBORN, Standing, apply};
use crate::explained::explained;
use crate::faults::Tally;
use crate::replays::{i10_refused_for_a_reason, i10_rejects_are_given_once};
use crate::story::Story;
use crate::work::PortCall;
use crate::workload::{MODES, Row, Run, initial, rows};
use crate::world::{Process, Role, World};

/// Something that a step did and an invariant may mind.
#[derive(Debug)]
pub(crate) enum Happened {
    /// A destination holds something else.
    Effect {
        by: Process,
        call: Box<PortCall>,
        effect: Effect,
    },
    /// Unlogged staging is empty.
    Truncated,
    /// A run's log grew.
    Written(RunId),
    /// A leader took this for what stands.
    Remembered {
        run: RunId,
        state: Arc<State>,
        seq: Seq,
        epoch: Option<Epoch>,
    },
    /// The ledger refused a replay.
    Unreplayable(usize),
    /// A leader could not fold a log.
    Unreadable(String),
    /// A message of a coordinator has reached a node.
    Heard { by: Process, epoch: Epoch },
    /// A node took an assignment.
    Accepted { by: Process, epoch: Epoch },
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its number, as in the README.
    pub invariant: u8,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}: {}", self.invariant, self.what)
    }
}

pub(crate) fn broken(invariant: u8, what: impl Into<String>) -> Result<(), Violation> {
    Err(Violation {
        invariant,
        what: what.into(),
    })
}

/// A step has no effect once a later attempt of it has dealt with the load, even if that one had none: it may wait.
fn i6_no_step_after_a_later_attempt(
    world: &World,
    at: (usize, LoadKey),
    request: &Request,
    effect: Effect,
) -> Result<(), Violation> {
    let record = world.destinations[at.0].records.get(&at.1);
    match record.map(|record| record.newest(&request.call)) {
        Some(newest) if newest > request.attempt => broken(
            6,
            format!(
                "{effect:?} of {at:?} by attempt {}, after attempt {newest} began",
                request.attempt
            ),
        ),
        Some(_) | None => Ok(()),
    }
}

/// What the invariants remember.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    stories: BTreeMap<RunId, Story>,
    published: BTreeMap<(usize, LoadKey), u32>,
    begun: BTreeMap<(usize, LoadKey, ChunkId), (Epoch, Attempt)>,
    dealt: BTreeMap<(usize, LoadKey), Epoch>,
    heard: BTreeMap<Process, Epoch>,
}

impl Checks {
    pub(crate) fn new(runs: &[Run]) -> Self {
        Self {
            stories: runs.iter().map(|run| (run.id.clone(), Story::default())).collect(),
            ..Self::default()
        }
    }

    /// How the runs ended.
    pub(crate) fn outcomes(&self) -> Tally {
        let mut outcomes = Tally::new();
        for story in self.stories.values() {
            let outcome = match story.finished {
                // A replay that was refused as often as somebody asked for it.
                None if story.seen == 0 => "never started",
                None => "open",
                Some(outcome) => outcome.word(),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }

    pub(crate) fn after_step(&mut self, world: &World, happened: &[Happened]) -> Result<(), Violation> {
        for one in happened {
            match one {
                Happened::Effect { by, call, effect } => {
                    let Some((destination, request)) = &call.request else {
                        continue;
                    };
                    let at = (*destination, request.load);
                    i1_rows_stand_once(world, at)?;
                    self.i2_nothing_is_published_twice(at, *effect)?;
                    self.i3_published_is_staged_and_verified(world, at, *effect)?;
                    i4_readers_see_whole_states(world, *destination, request.target)?;
                    self.i5_undone_stays_undone(world, at, *effect)?;
                    self.i6_stale_effects(at, request.epoch, *effect)?;
                    i6_no_step_after_a_later_attempt(world, at, request, *effect)?;
                    self.i9_intent_before_effect(world, *by, call)?;
                    i10_rejects_are_given_once(world, &self.stories, request.load.0, *effect)?;
                }
                Happened::Unreplayable(number) => i10_refused_for_a_reason(world, &self.stories, *number)?,
                Happened::Truncated | Happened::Unreadable(_) => {}
                Happened::Written(run) => {
                    self.i6_stale_appends(world, run)?;
                    self.i8_logs_have_no_gap(world, run)?;
                    self.i7_stuck_only_where_undoing_fails_for_good(world, run)?;
                    self.i5_i6_logs_tell_a_sound_story(world, run)?;
                }
                Happened::Remembered { .. } => {}
                Happened::Heard { .. } | Happened::Accepted { .. } => self.i6_stale_assignments(one)?,
            }
            i8_memory_is_the_fold(world, one)?;
        }
        Ok(())
    }

    fn i2_nothing_is_published_twice(&mut self, at: (usize, LoadKey), effect: Effect) -> Result<(), Violation> {
        if effect != Effect::Published {
            return Ok(());
        }
        let times = self.published.entry(at).or_default();
        *times += 1;
        match *times {
            1 => Ok(()),
            times => broken(2, format!("load {at:?} was published {times} times")),
        }
    }

    fn i3_published_is_staged_and_verified(
        &self,
        world: &World,
        (destination, load): (usize, LoadKey),
        effect: Effect,
    ) -> Result<(), Violation> {
        if effect != Effect::Published {
            return Ok(());
        }
        let run = &world.runs[load.0];
        let Some(story) = self.stories.get(&run.id) else {
            return Ok(());
        };
        if let Some(chunk) = run.chunks().find(|chunk| !story.staged.contains(&chunk.id)) {
            return broken(
                3,
                format!("{} is published before chunk {} is staged", run.id, chunk.id),
            );
        }
        let verified = |load: &crate::workload::Load| {
            story.done.contains(&StepId {
                kind: StepKind::Verify,
                load: load.name.clone(),
            })
        };
        if !run.loads.iter().all(verified) {
            return broken(3, format!("{} is published before everything is verified", run.id));
        }
        let mut staged = staged(world, (destination, load));
        staged.sort_unstable();
        match staged == run.rows_of_load(load.0, load.1) {
            true => Ok(()),
            false => broken(3, format!("{} publishes {} rows, not its own", run.id, staged.len())),
        }
    }

    /// After a compensation nothing forward has an effect, and after a success nothing backward.
    fn i5_undone_stays_undone(&self, world: &World, at: (usize, LoadKey), effect: Effect) -> Result<(), Violation> {
        let run = &world.runs[at.1.0];
        let Some(story) = self.stories.get(&run.id) else {
            return Ok(());
        };
        let step = |kind| StepId {
            kind,
            load: run.loads[at.1.1].name.clone(),
        };
        match effect {
            Effect::Published | Effect::PublishedInPart if story.undone.contains(&step(StepKind::Publish)) => {
                broken(5, format!("{} is published after it was reverted", run.id))
            }
            Effect::Prepared | Effect::Begun(..) | Effect::Committed(..) | Effect::Sealed
                if story.undone.contains(&step(StepKind::Prepare)) =>
            {
                broken(5, format!("{effect:?} of {} after its staging was discarded", run.id))
            }
            Effect::Reverted | Effect::Discarded if !story.rolls_back => {
                broken(5, format!("{effect:?} of {}, which doesn't roll back", run.id))
            }
            Effect::Recalled if !story.reverting => {
                broken(5, format!("{} is kept for a revert that nobody asks for", run.id))
            }
            Effect::Released if !story.reverting || story.rolls_back => {
                broken(5, format!("{} is let go in the middle of its revert", run.id))
            }
            Effect::Published
            | Effect::PublishedInPart
            | Effect::Prepared
            | Effect::Begun(..)
            | Effect::Committed(..)
            | Effect::Sealed
            | Effect::Recalled
            | Effect::Released
            | Effect::Reverted
            | Effect::Discarded
            | Effect::Cleaned => Ok(()),
        }
    }

    /// Attempts count one after the other, compensations come exactly when the run rolls back, and destinations are left
    /// as the outcome says.
    fn i5_i6_logs_tell_a_sound_story(&mut self, world: &World, run: &RunId) -> Result<(), Violation> {
        let (Some(story), Some(log)) = (self.stories.get_mut(run), world.ledger.runs.get(run)) else {
            return Ok(());
        };
        for standing in log.events.iter().skip(story.seen) {
            if let Err(what) = story.attempt(&standing.event) {
                return broken(6, format!("{run}: {what}"));
            }
            if let Err(what) = story.fold(&standing.event) {
                return broken(5, format!("{run}: {what}"));
            }
        }
        let number = world.number(run);
        match story.finished {
            None => Ok(()),
            Some(Outcome::Published) => {
                i5_nothing_is_kept(world, number, &story.left)?;
                i5_ended(world, number, |_| &[Standing::Published])
            }
            Some(Outcome::Failed | Outcome::Cancelled | Outcome::Reverted) => {
                let among = |steps: &BTreeSet<StepId>, kind: StepKind, load: usize| {
                    let load = world.runs[number].loads[load].name.clone();
                    steps.contains(&StepId { kind, load })
                };
                use Standing::{Discarded, Published, Reverted, Sealed, Staged};
                i5_ended(world, number, |load| {
                    if among(&story.left, StepKind::Publish, load) {
                        &[Published, Reverted, Discarded, Staged, Sealed]
                    } else if among(&story.abandoned, StepKind::Publish, load) {
                        // What a client had given up may have been carried out after somebody left it as it is.
                        &[Published, Reverted, Discarded]
                    } else if among(&story.left, StepKind::Prepare, load) {
                        &[Reverted, Discarded, Staged, Sealed]
                    } else {
                        &[Discarded]
                    }
                })
            }
        }
    }

    fn i6_stale_effects(&mut self, at: (usize, LoadKey), epoch: Epoch, effect: Effect) -> Result<(), Violation> {
        let (chunk, attempt, begins) = match effect {
            Effect::Begun(chunk, attempt) => (chunk, attempt, true),
            Effect::Committed(chunk, attempt) => (chunk, attempt, false),
            Effect::Prepared
            | Effect::Sealed
            | Effect::Published
            | Effect::PublishedInPart
            | Effect::Recalled
            | Effect::Released
            | Effect::Reverted
            | Effect::Discarded
            | Effect::Cleaned => {
                let dealt = self.dealt.entry(at).or_default();
                if epoch < *dealt {
                    return broken(6, format!("{effect:?} of {at:?} by epoch {epoch}, after epoch {dealt}"));
                }
                *dealt = epoch;
                return Ok(());
            }
        };
        let begun = self.begun.entry((at.0, at.1, chunk)).or_default();
        if attempt < begun.1 || epoch < begun.0 {
            return broken(
                6,
                format!(
                    "attempt {attempt} of chunk {chunk} by epoch {epoch} has an effect after attempt {} by epoch {} began",
                    begun.1, begun.0
                ),
            );
        }
        if begins {
            *begun = (epoch, attempt);
        }
        Ok(())
    }

    fn i6_stale_appends(&self, world: &World, run: &RunId) -> Result<(), Violation> {
        let seen = self.stories.get(run).map_or(0, |story| story.seen);
        let Some(log) = world.ledger.runs.get(run) else {
            return Ok(());
        };
        let stale = log
            .events
            .iter()
            .skip(seen)
            .find(|standing| standing.stored.epoch != standing.leader);
        match stale {
            None => Ok(()),
            Some(stale) => broken(
                6,
                format!("epoch {} wrote to {run} while {} led", stale.stored.epoch, stale.leader),
            ),
        }
    }

    fn i6_stale_assignments(&mut self, happened: &Happened) -> Result<(), Violation> {
        match happened {
            Happened::Heard { by, epoch } => {
                let heard = self.heard.entry(*by).or_default();
                *heard = (*heard).max(*epoch);
                Ok(())
            }
            Happened::Accepted { by, epoch } => match self.heard.get(by) {
                Some(heard) if epoch < heard => {
                    broken(6, format!("{by} takes work of epoch {epoch} after it heard of {heard}"))
                }
                Some(_) | None => Ok(()),
            },
            Happened::Effect { .. }
            | Happened::Truncated
            | Happened::Written(_)
            | Happened::Remembered { .. }
            | Happened::Unreplayable(_)
            | Happened::Unreadable(_) => Ok(()),
        }
    }

    fn i8_logs_have_no_gap(&self, world: &World, run: &RunId) -> Result<(), Violation> {
        let seen = self.stories.get(run).map_or(0, |story| story.seen);
        let Some(log) = world.ledger.runs.get(run) else {
            return Ok(());
        };
        for (place, standing) in log.events.iter().enumerate().skip(seen) {
            let first = matches!(standing.event, Event::Submitted { .. });
            if standing.stored.seq != Seq(place as u64 + 1) || first != (place == 0) {
                return broken(
                    8,
                    format!("{run} has event {} at place {}", standing.stored.seq, place + 1),
                );
            }
        }
        Ok(())
    }

    fn i7_stuck_only_where_undoing_fails_for_good(&self, world: &World, run: &RunId) -> Result<(), Violation> {
        let seen = self.stories.get(run).map_or(0, |story| story.seen);
        let Some(log) = world.ledger.runs.get(run) else {
            return Ok(());
        };
        for standing in log.events.iter().skip(seen) {
            if let Event::Stuck { failure, .. } = &standing.event
                && (failure.class != Class::Permanent || failure.message != STUBBORN)
            {
                return broken(
                    7,
                    format!("{run} is stuck over what may pass or was not to be: {failure}"),
                );
            }
            if let Event::RollbackStarted { failure, .. } = &standing.event
                && !explained(world, world.number(run), &failure.message)
            {
                return broken(7, format!("{run} fails, and nothing explains it: {failure}"));
            }
        }
        Ok(())
    }

    /// An attempt is in the ledger before anything of it happens, and given to the node that does it.
    fn i9_intent_before_effect(&self, world: &World, by: Process, call: &PortCall) -> Result<(), Violation> {
        let Role::Node(node) = by.role else { return Ok(()) };
        let run = &world.runs[call.run].id;
        let intent = self
            .stories
            .get(run)
            .and_then(|story| story.assigned.get(&(call.key.work.clone(), call.attempt)));
        match intent {
            Some(given) if given.as_str() == format!("n{node}") => Ok(()),
            Some(_) | None => broken(
                9,
                format!(
                    "{by} did {} of {run}, attempt {}, which nobody gave it",
                    call.key.work, call.attempt
                ),
            ),
        }
    }
}

impl Violation {
    /// Called when time is up.
    pub(crate) fn i7_every_run_comes_to_rest(world: &World) -> Self {
        let wanted = world.runs.iter().enumerate();
        let wanted = wanted.filter(|(number, _)| !world.given_up.contains(number));
        let open = wanted.filter_map(|(_, run)| {
            let log = world.ledger.runs.get(&run.id);
            let open = log.is_none_or(|log| log.state.finished().is_none());
            open.then(|| format!("{} is {:?}", run.id, log.map(|log| log.state.phase())))
        });
        Self {
            invariant: 7,
            what: format!("time is up: {}", open.collect::<Vec<_>>().join(", ")),
        }
    }
}

/// What a staging area holds is the rows of the segments that are marked, each once; and no target has a row twice.
fn i1_rows_stand_once(world: &World, (destination, load): (usize, LoadKey)) -> Result<(), Violation> {
    let Some(record) = world.destinations[destination].records.get(&load) else {
        return Ok(());
    };
    let mut staged = staged(world, (destination, load));
    staged.sort_unstable();
    if staged.windows(2).any(|pair| pair[0] == pair[1]) {
        return broken(1, format!("the staging of load {load:?} has a row twice"));
    }
    let markers = record.area.iter().flat_map(|area| area.markers.keys());
    let mut marked: Vec<Row> = markers
        .flat_map(|(chunk, segment)| rows(load.0, *chunk, *segment))
        .collect();
    marked.sort_unstable();
    let unmarked = record.area.is_some() && marked != staged;
    if unmarked {
        return broken(
            1,
            format!("the staging of load {load:?} has other rows than its markers say"),
        );
    }
    let mut target = world.destinations[destination].targets[record.target].clone();
    target.sort_unstable();
    match target.windows(2).any(|pair| pair[0] == pair[1]) {
        true => broken(
            1,
            format!("target {} of destination {destination} has a row twice", record.target),
        ),
        false => Ok(()),
    }
}

/// Readers look at any moment: a target always holds what whole publishes make of it, one after the other.
fn i4_readers_see_whole_states(world: &World, destination: usize, target: usize) -> Result<(), Violation> {
    let here = &world.destinations[destination];
    let mut published: Vec<_> = here
        .records
        .iter()
        .filter(|(_, record)| record.target == target && record.standing == Standing::Published)
        .collect();
    published.sort_by_key(|(_, record)| record.sequence);
    let mut expected = initial();
    for (load, _) in published {
        apply(
            MODES[target],
            &mut expected,
            &world.runs[load.0].rows_of_load(load.0, load.1),
        );
    }
    let mut found = here.targets[target].clone();
    expected.sort_unstable();
    found.sort_unstable();
    match expected == found {
        true => Ok(()),
        false => broken(
            4,
            format!("target {target} of destination {destination} holds {found:?}, whole states make {expected:?}"),
        ),
    }
}

/// Nothing is kept for the revert of a run that stays published.
fn i5_nothing_is_kept(world: &World, number: usize, left: &BTreeSet<StepId>) -> Result<(), Violation> {
    for (load, planned) in world.runs[number].loads.iter().enumerate() {
        let record = world.destinations[planned.destination].records.get(&(number, load));
        let left = left
            .iter()
            .any(|step| step.kind == StepKind::Recall && step.load == planned.name);
        if !left && record.is_some_and(|record| record.recalled.is_some()) {
            return broken(
                5,
                format!("run {number} stays published, and load {load} is kept for its revert"),
            );
        }
    }
    Ok(())
}

/// A load stands where it may at the end of its run.
fn i5_ended(world: &World, number: usize, expected: impl Fn(usize) -> &'static [Standing]) -> Result<(), Violation> {
    for (load, planned) in world.runs[number].loads.iter().enumerate() {
        let record = world.destinations[planned.destination].records.get(&(number, load));
        let expected = expected(load);
        let wrong = record.map_or(expected == [Standing::Published], |record| {
            !expected.contains(&record.standing)
        });
        if wrong {
            let found = record.map(|record| record.standing);
            return broken(
                5,
                format!("run {number} is over, and load {load} is {found:?} and not one of {expected:?}"),
            );
        }
        if let Some(record) = record
            && record.area.is_some()
            && expected == [Standing::Discarded]
        {
            return broken(
                5,
                format!("run {number} is over, and the staging of load {load} is left"),
            );
        }
    }
    Ok(())
}

/// What a leader that leads takes for the state of a run is the fold of its log.
fn i8_memory_is_the_fold(world: &World, happened: &Happened) -> Result<(), Violation> {
    if let Happened::Unreadable(what) = happened {
        return broken(8, what.clone());
    }
    let Happened::Remembered { run, state, seq, epoch } = happened else {
        return Ok(());
    };
    let log = world.ledger.runs.get(run);
    let length = log.map_or(0, |log| log.events.len() as u64);
    if length < seq.0 {
        return broken(
            8,
            format!("a leader remembers {seq} events of {run}, and {length} stand"),
        );
    }
    let Some(log) = log.filter(|_| length == seq.0 && *epoch == Some(world.ledger.epoch)) else {
        return Ok(());
    };
    let same = log.state.phase() == state.phase()
        && log.state.outstanding() == state.outstanding()
        && log.state.counts() == state.counts();
    match same {
        true => Ok(()),
        false => broken(
            8,
            format!("a leader's memory of {run} is not the fold of its {seq} events"),
        ),
    }
}

fn staged(world: &World, (destination, load): (usize, LoadKey)) -> Vec<Row> {
    let record = world.destinations[destination].records.get(&load);
    record
        .and_then(|record| record.area.as_ref())
        .map(|area| area.rows.clone())
        .unwrap_or_default()
}
