//! A destination's model: what the sinks of `node/src/sink` do, one transaction a call. Rows and marker commit together
//! under the fence; steps hold the load's record and raise its epoch; publishing finds itself; compensations tolerate
//! that there is nothing to undo. Whether an answer reaches its caller is the world's matter.

use std::collections::BTreeMap;

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, Epoch};
use haulage_core::run::Expected;

use crate::bug::Bug;
use crate::call::{Call, Done, Effect, LoadKey, Request};
use crate::workload::{MODES, Mode, Row, initial};

/// Why a load can't be published.
pub(crate) const UNPUBLISHABLE: &str = "its key is already in the target";

/// Why one can't be reverted.
pub(crate) const STUBBORN: &str = "somebody holds the target";

/// What a crash of a server leaves.
pub(crate) const LESS_STAGED: &str = "less is staged than the chunks reported";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Staged,
    Sealed,
    Published,
    Reverted,
    Discarded,
}

/// Staged rows and their markers.
#[derive(Debug, Default)]
pub(crate) struct Area {
    pub(crate) rows: Vec<Row>,
    pub(crate) markers: BTreeMap<(ChunkId, u32), u64>,
}

/// The newest epoch that has dealt with a record, and of each step the newest attempt.
#[derive(Debug, Clone, Default)]
struct Dealt {
    epoch: Epoch,
    attempts: BTreeMap<&'static str, Attempt>,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) standing: Standing,
    dealt: Dealt,
    pub(crate) target: usize,
    round: u32,
    pub(crate) area: Option<Area>,
    fences: BTreeMap<ChunkId, (Epoch, Attempt)>,
    /// The target's rows before the publish; of a merge those that it changed.
    before: Option<Vec<Row>>,
    pub(crate) sequence: u64,
    pub(crate) published_rows: u64,
    reverts: u32,
    /// Its run is over, and published.
    settled: bool,
    /// The revert for which the target is kept.
    pub(crate) recalled: Option<u32>,
    let_go: u32,
}

#[derive(Debug)]
pub(crate) struct Destination {
    /// A server that truncates unlogged staging when it crashes.
    unlogged: bool,
    pub(crate) down_until: u64,
    pub(crate) records: BTreeMap<LoadKey, Record>,
    pub(crate) targets: Vec<Vec<Row>>,
    sequence: u64,
    bug: Option<Bug>,
}

impl Destination {
    pub(crate) fn new(unlogged: bool, bug: Option<Bug>) -> Self {
        Self {
            unlogged,
            down_until: 0,
            records: BTreeMap::new(),
            targets: MODES.iter().map(|_| initial()).collect(),
            sequence: 0,
            bug,
        }
    }

    /// The server goes down and comes back: what was unlogged is empty.
    pub(crate) fn crash(&mut self) {
        for record in self.records.values_mut().filter(|_| self.unlogged) {
            if let Some(area) = &mut record.area
                && MODES[record.target] != Mode::Replace
            {
                area.rows.clear();
                area.markers.clear();
            }
        }
    }

    /// Carries a call out. `answered` is false when the answer will be lost on the way: only a bug makes a difference.
    pub(crate) fn execute(&mut self, request: &Request, answered: bool) -> (Result<Done, Failure>, Vec<Effect>) {
        let mut effects = Vec::new();
        let dealt = self.records.get(&request.load).map(|record| record.dealt.clone());
        let done = match &request.call {
            Call::Prepare => self.prepare(request, &mut effects),
            Call::Begin(chunk, attempt) => self.begin(request, *chunk, *attempt, &mut effects),
            Call::Commit(chunk, segment, attempt, rows) => {
                self.commit(request, (*chunk, *segment), *attempt, rows, answered, &mut effects)
            }
            Call::Verify(expected) => self.verify(request, *expected, &mut effects),
            Call::Publish(expected) => self.publish(request, *expected, answered, &mut effects),
            Call::Recall(nth) => self.recall(request, *nth, &mut effects),
            Call::Release(nth) => self.release(request, *nth, &mut effects),
            Call::Revert => self.revert(request, &mut effects),
            Call::Discard => self.discard(request, &mut effects),
            Call::Cleanup => self.cleanup(request, &mut effects),
        };
        // A refused transaction leaves nothing behind; a server has sealed what it verifies in one of its own before.
        if done.is_err()
            && effects.is_empty()
            && let (Some(record), Some(dealt)) = (self.records.get_mut(&request.load), dealt)
        {
            record.dealt = dealt;
        }
        (done, effects)
    }

    fn prepare(&mut self, request: &Request, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        let (record, _) = claim(&mut self.records, request, Standing::Staged)?;
        let again = request.round > record.round;
        if again && matches!(record.standing, Standing::Staged | Standing::Sealed) {
            record.round = request.round;
            record.standing = Standing::Staged;
            // Where markers and rows don't agree, neither is of any use.
            let agree = |area: &Area| area.rows.len() as u64 == area.markers.values().sum::<u64>();
            if !record.area.as_ref().is_some_and(agree) {
                record.area = None;
            }
            effects.push(Effect::Prepared);
        }
        match record.standing {
            Standing::Staged if record.area.is_none() => {
                record.area = Some(Area::default());
                effects.push(Effect::Prepared);
            }
            Standing::Staged | Standing::Sealed | Standing::Published => {}
            Standing::Reverted | Standing::Discarded => return Err(ended("undone")),
        }
        Ok(stepped(0))
    }

    /// The record and staging area, if the load takes chunks.
    fn staged(&mut self, request: &Request) -> Result<&mut Record, Failure> {
        let record = self.records.get_mut(&request.load);
        record
            .filter(|record| record.standing == Standing::Staged && record.area.is_some())
            .ok_or_else(|| ended("not staged"))
    }

    fn begin(
        &mut self,
        request: &Request,
        chunk: ChunkId,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) -> Result<Done, Failure> {
        let record = self.staged(request)?;
        let fence = record.fences.entry(chunk).or_default();
        if fence.0 > request.epoch || fence.1 > attempt {
            return Err(Failure::fenced("a later attempt has begun"));
        }
        if *fence != (request.epoch, attempt) {
            *fence = (request.epoch, attempt);
            effects.push(Effect::Begun(chunk, attempt));
        }
        let area = record.area.iter().flat_map(|area| area.markers.keys());
        let standing = area.filter(|(of, _)| *of == chunk).map(|(_, segment)| *segment);
        Ok(Done::Markers(standing.collect()))
    }

    fn commit(
        &mut self,
        request: &Request,
        place: (ChunkId, u32),
        attempt: Attempt,
        rows: &[Row],
        answered: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<Done, Failure> {
        let bug = self.bug;
        let record = self.staged(request)?;
        if record.fences.get(&place.0) != Some(&(request.epoch, attempt)) && bug != Some(Bug::NoFence) {
            return Err(Failure::fenced("another attempt has begun"));
        }
        let Some(area) = &mut record.area else {
            return Err(ended("not staged"));
        };
        if area.markers.contains_key(&place) {
            return Ok(Done::Committed);
        }
        area.rows.extend_from_slice(rows);
        if answered || bug != Some(Bug::MarkerApart) {
            area.markers.insert(place, rows.len() as u64);
        }
        effects.push(Effect::Committed(place.0, attempt));
        Ok(Done::Committed)
    }

    fn verify(&mut self, request: &Request, expected: Expected, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        let careless = self.bug == Some(Bug::PublishUnverified);
        let seals_first = self.unlogged;
        let record = hold(&mut self.records, request)?;
        same_round(record, request)?;
        match record.standing {
            Standing::Staged | Standing::Sealed => {}
            Standing::Published => return Ok(stepped(record.published_rows)),
            Standing::Reverted | Standing::Discarded => return Err(ended("undone")),
        }
        let mut seal = |record: &mut Record| {
            if std::mem::replace(&mut record.standing, Standing::Sealed) == Standing::Staged {
                effects.push(Effect::Sealed);
            }
        };
        if seals_first {
            seal(record);
        }
        if !careless {
            marked(record, expected)?;
        }
        seal(record);
        Ok(stepped(expected.rows))
    }

    fn publish(
        &mut self,
        request: &Request,
        expected: Expected,
        answered: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<Done, Failure> {
        let bug = self.bug;
        let kept = self.is_kept_from(request) && bug != Some(Bug::KeptForNobody);
        let record = hold(&mut self.records, request)?;
        same_round(record, request)?;
        match record.standing {
            Standing::Sealed if kept => return Ok(Done::Kept),
            Standing::Sealed => {}
            Standing::Published if bug == Some(Bug::PublishBlindly) => {}
            Standing::Published => return Ok(stepped(record.published_rows)),
            Standing::Staged => return Err(Failure::permanent("not verified")),
            Standing::Reverted | Standing::Discarded => return Err(ended("undone")),
        }
        if bug != Some(Bug::PublishUnverified) {
            marked(record, expected)?;
        }
        if request.unpublishable {
            return Err(Failure::permanent(UNPUBLISHABLE));
        }
        let rows = record.area.as_ref().map(|area| area.rows.clone()).unwrap_or_default();
        let target = &mut self.targets[record.target];
        let mode = MODES[record.target];
        if bug == Some(Bug::PublishInParts) && !answered {
            apply(mode, target, &rows[..rows.len() / 2]);
            effects.push(Effect::PublishedInPart);
            return Err(Failure::transient("the connection was cut"));
        }
        record.before = Some(match mode {
            Mode::Append => Vec::new(),
            Mode::Replace => target.clone(),
            Mode::Merge => target
                .iter()
                .filter(|old| rows.iter().any(|new| new.key == old.key))
                .copied()
                .collect(),
        });
        apply(mode, target, &rows);
        self.sequence += 1;
        record.standing = Standing::Published;
        record.sequence = self.sequence;
        record.published_rows = expected.rows;
        effects.push(Effect::Published);
        Ok(stepped(expected.rows))
    }

    /// Whether another run may still take back what it has published to the target. Appends don't stand in each other's way.
    fn is_kept_from(&self, request: &Request) -> bool {
        let mut others = self.records.iter().filter(|(load, record)| {
            load.0 != request.load.0 && record.target == request.target && record.standing == Standing::Published
        });
        MODES[request.target] != Mode::Append && others.any(|(_, record)| record.recalled.is_some() || !record.settled)
    }

    fn recall(&mut self, request: &Request, nth: u32, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        let latest = self.latest(request.target);
        let late = self.bug != Some(Bug::RecallAnyTime);
        if !self.records.contains_key(&request.load) {
            return Ok(stepped(0));
        }
        let record = hold(&mut self.records, request)?;
        if record.standing != Standing::Published {
            return Ok(stepped(0));
        }
        may_undo(record, latest)?;
        if late && record.let_go >= nth {
            return Err(Failure::fenced("that revert is over"));
        }
        if record.recalled < Some(nth) {
            record.recalled = Some(nth);
            effects.push(Effect::Recalled);
        }
        Ok(stepped(0))
    }

    fn release(&mut self, request: &Request, nth: u32, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        if self.records.contains_key(&request.load) {
            let record = hold(&mut self.records, request)?;
            let before = record.recalled;
            record.let_go = record.let_go.max(nth);
            record.recalled = record.recalled.filter(|recalled| *recalled > nth);
            record.settled = true;
            if before != record.recalled {
                effects.push(Effect::Released);
            }
        }
        Ok(stepped(0))
    }

    /// The last publish to a target that stands.
    fn latest(&self, target: usize) -> u64 {
        let published = self
            .records
            .values()
            .filter(|record| record.target == target && record.standing == Standing::Published);
        published.map(|record| record.sequence).max().unwrap_or(0)
    }

    fn revert(&mut self, request: &Request, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        if self.bug == Some(Bug::RevertForgotten) {
            return Ok(stepped(0));
        }
        let forgetful = self.bug == Some(Bug::NoTombstone);
        let latest = self.latest(request.target);
        let (record, made) = claim(&mut self.records, request, Standing::Reverted)?;
        match record.standing {
            Standing::Published => {
                record.reverts += 1;
                if record.reverts <= request.stubborn {
                    return Err(Failure::permanent(STUBBORN));
                }
                let (mode, run) = (MODES[record.target], u32::try_from(request.load.0).unwrap_or(u32::MAX));
                may_undo(record, latest)?;
                let Some(before) = record.before.take() else {
                    return Err(Failure::permanent("what was there before is no longer kept"));
                };
                record.standing = Standing::Reverted;
                let target = &mut self.targets[record.target];
                if mode == Mode::Replace {
                    *target = before;
                } else {
                    target.retain(|row| row.run != run);
                    target.extend(before);
                }
                effects.push(Effect::Reverted);
            }
            Standing::Staged | Standing::Sealed if forgetful => {}
            Standing::Staged | Standing::Sealed => {
                record.standing = Standing::Reverted;
                effects.push(Effect::Reverted);
            }
            Standing::Reverted if made => effects.push(Effect::Reverted),
            Standing::Reverted | Standing::Discarded => {}
        }
        Ok(stepped(0))
    }

    fn discard(&mut self, request: &Request, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        let (record, made) = claim(&mut self.records, request, Standing::Discarded)?;
        let changed =
            made || record.area.is_some() || !matches!(record.standing, Standing::Discarded | Standing::Published);
        record.area = None;
        record.fences.clear();
        if record.standing == Standing::Published {
            (record.settled, record.recalled, record.let_go) = (true, None, u32::MAX);
        } else {
            record.standing = Standing::Discarded;
            record.before = None;
        }
        if changed {
            effects.push(Effect::Discarded);
        }
        if self.bug == Some(Bug::NoTombstone) && record.standing == Standing::Discarded {
            self.records.remove(&request.load);
        }
        Ok(stepped(0))
    }

    /// Only the newest of the runs that are over keeps what undoing it needs, and one that is about to be undone.
    fn forget_older(&mut self, target: usize) {
        let latest = self.latest(target);
        let older = self.records.values_mut().filter(|record| {
            record.target == target && record.standing == Standing::Published && record.sequence < latest
        });
        for record in older.filter(|record| record.settled && record.recalled.is_none()) {
            record.before = None;
        }
    }

    fn cleanup(&mut self, request: &Request, effects: &mut Vec<Effect>) -> Result<Done, Failure> {
        let Ok(record) = hold(&mut self.records, request) else {
            return match self.records.contains_key(&request.load) {
                true => Err(Failure::fenced("in the hands of a later epoch")),
                false => Ok(stepped(0)),
            };
        };
        if record.standing == Standing::Published && (record.area.is_some() || !record.settled) {
            record.area = None;
            record.settled = true;
            record.fences.clear();
            effects.push(Effect::Cleaned);
            self.forget_older(request.target);
        }
        Ok(stepped(0))
    }
}

/// Refuses if a later publish stands on this one, or if what was there before is gone.
fn may_undo(record: &Record, latest: u64) -> Result<(), Failure> {
    if MODES[record.target] != Mode::Append && record.sequence < latest {
        return Err(Failure::permanent("another run has published since"));
    }
    match record.before {
        Some(_) => Ok(()),
        None => Err(Failure::permanent("what was there before is no longer kept")),
    }
}

/// Makes the record if there is none, and holds it; true if it is new.
fn claim<'a>(
    records: &'a mut BTreeMap<LoadKey, Record>,
    request: &Request,
    fresh: Standing,
) -> Result<(&'a mut Record, bool), Failure> {
    let made = !records.contains_key(&request.load);
    records.entry(request.load).or_insert_with(|| Record {
        standing: fresh,
        dealt: Dealt::default(),
        target: request.target,
        round: 0,
        area: None,
        fences: BTreeMap::new(),
        before: None,
        sequence: 0,
        published_rows: 0,
        reverts: 0,
        settled: false,
        recalled: None,
        let_go: 0,
    });
    Ok((hold(records, request)?, made))
}

impl Record {
    /// The newest attempt of the step of a call that has dealt with the load.
    pub(crate) fn newest(&self, call: &Call) -> Attempt {
        self.dealt.attempts.get(call.step()).copied().unwrap_or_default()
    }
}

/// The record, in the hands of the caller; fenced if a later epoch, or a later attempt of the step, has dealt with it.
fn hold<'a>(records: &'a mut BTreeMap<LoadKey, Record>, request: &Request) -> Result<&'a mut Record, Failure> {
    let Some(record) = records.get_mut(&request.load) else {
        return Err(ended("not prepared"));
    };
    let newest = record.dealt.attempts.entry(request.call.step()).or_default();
    if record.dealt.epoch > request.epoch || *newest > request.attempt {
        return Err(Failure::fenced("in the hands of a later epoch or attempt"));
    }
    *newest = request.attempt;
    record.dealt.epoch = request.epoch;
    Ok(record)
}

/// What a mode makes of a target.
pub(crate) fn apply(mode: Mode, target: &mut Vec<Row>, rows: &[Row]) {
    match mode {
        Mode::Append => {}
        Mode::Replace => target.clear(),
        Mode::Merge => target.retain(|old| !rows.iter().any(|new| new.key == old.key)),
    }
    target.extend_from_slice(rows);
}

fn marked(record: &Record, expected: Expected) -> Result<(), Failure> {
    let area = record.area.as_ref();
    let segments = area.map_or(0, |area| area.markers.len() as u64);
    let marked: u64 = area.map_or(0, |area| area.markers.values().sum());
    let rows = area.map_or(0, |area| area.rows.len() as u64);
    if (segments, marked, rows) == (expected.segments, expected.rows, expected.rows) {
        return Ok(());
    }
    if segments <= expected.segments && marked <= expected.rows && rows <= expected.rows {
        return Err(Failure::staging_lost(LESS_STAGED));
    }
    Err(Failure::permanent("more is staged than the chunks reported"))
}

/// Refuses a step of an earlier round: what it was to verify or publish is being staged again.
fn same_round(record: &Record, request: &Request) -> Result<(), Failure> {
    match record.round > request.round {
        true => Err(Failure::fenced("opened again for a later round")),
        false => Ok(()),
    }
}

fn ended(state: &str) -> Failure {
    Failure::fenced(format!("the load is {state}; its staging area is gone"))
}

fn stepped(rows: u64) -> Done {
    Done::Stepped(StepReport {
        rows,
        ..StepReport::default()
    })
}
