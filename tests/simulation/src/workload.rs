//! What is asked for: a few runs whose rows are known beforehand, so that an oracle can say at any time what every target
//! has to hold.

use std::collections::BTreeMap;

use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::event::PlannedStage;
use haulage_core::ids::{ChunkId, LoadName, RunId, StageId};
use haulage_core::submission::{LoadOutline, Replay, Submission};

use crate::chance::Chance;

/// What publishing does to the rows that are there. Each target has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Append,
    Merge,
    Replace,
}

/// The targets of every destination.
pub(crate) const MODES: [Mode; 3] = [Mode::Append, Mode::Merge, Mode::Replace];
/// A server that truncates unlogged staging when it crashes, and a file that doesn't.
pub(crate) const DESTINATIONS: usize = 2;

/// A row: its key, and the run that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) key: u32,
    pub(crate) run: u32,
}

/// Rows that stand in every target before the first run.
pub(crate) fn initial() -> Vec<Row> {
    [0, 1, 110, 9_000].map(|key| Row { key, run: u32::MAX }).to_vec()
}

#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) name: LoadName,
    pub(crate) destination: usize,
    pub(crate) target: usize,
    /// Publishing it fails for good.
    pub(crate) unpublishable: bool,
    /// Reverting it fails for good as often.
    pub(crate) stubborn: u32,
}

#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) id: ChunkId,
    pub(crate) segments: u32,
    /// Takes every node down that works on it.
    pub(crate) poison: bool,
    /// Fails for good.
    pub(crate) bad: bool,
}

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) loads: Vec<usize>,
    pub(crate) chunks: Vec<Chunk>,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) submit_at: u64,
    pub(crate) cancel_at: Option<u64>,
    /// When somebody wants it taken back; until then it may not even be published.
    pub(crate) revert_at: Vec<u64>,
    pub(crate) loads: Vec<Load>,
    pub(crate) stages: Vec<Stage>,
    /// Of a replay: the run whose rejected rows it reads.
    pub(crate) replays: Option<usize>,
}

impl Run {
    pub(crate) fn submission(&self) -> Submission {
        let outline = |load: &Load| LoadOutline {
            name: load.name.clone(),
            destination: format!("d{}", load.destination),
            table: format!("t{}", load.target),
        };
        Submission {
            pipeline: "p".to_owned(),
            // Two replays of one run are by different files.
            definition: self.replays.map(|_| self.id.to_string()).unwrap_or_default(),
            file: String::new(),
            base: String::new(),
            params: BTreeMap::new(),
            loads: self.loads.iter().map(outline).collect(),
            places: BTreeMap::new(),
            incremental: false,
            traceparent: String::new(),
            replay: self.replays.map(|of| Replay {
                run: id(of),
                origin: None,
                objects: BTreeMap::new(),
                parts: BTreeMap::new(),
                read: BTreeMap::new(),
                loads: None,
            }),
        }
    }

    /// What discovery finds.
    pub(crate) fn planned(&self) -> Vec<PlannedStage> {
        let spec = |chunk: &Chunk| ChunkSpec {
            chunk: chunk.id,
            source: "s".to_owned(),
            object: "o".to_owned(),
            version: "1".to_owned(),
            start: Position::default(),
            end: None,
            bytes: 1,
            window: None,
        };
        let stages = self.stages.iter().enumerate();
        stages
            .map(|(number, stage)| PlannedStage {
                stage: StageId(u32::try_from(number).unwrap_or(u32::MAX)),
                source: "s".to_owned(),
                steps: Vec::new(),
                loads: stage.loads.iter().map(|load| self.loads[*load].name.clone()).collect(),
                chunks: stage.chunks.iter().map(spec).collect(),
                advances: Vec::new(),
                columns: Default::default(),
            })
            .collect()
    }

    pub(crate) fn load(&self, name: &LoadName) -> Option<usize> {
        self.loads.iter().position(|load| load.name == *name)
    }

    pub(crate) fn chunk(&self, id: ChunkId) -> Option<(&Stage, &Chunk)> {
        let stage = self.stages.get(id.stage.0 as usize)?;
        Some((stage, stage.chunks.get(id.index as usize)?))
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.stages.iter().flat_map(|stage| &stage.chunks)
    }

    /// Every row of a load, of all its stages.
    pub(crate) fn rows_of_load(&self, number: usize, load: usize) -> Vec<Row> {
        let stages = self.stages.iter().filter(|stage| stage.loads.contains(&load));
        let mut rows: Vec<Row> = stages
            .flat_map(|stage| &stage.chunks)
            .flat_map(|chunk| (0..chunk.segments).flat_map(move |segment| rows(number, chunk.id, segment)))
            .collect();
        rows.sort_unstable();
        rows
    }
}

/// The rows of a segment: the same in every attempt. Segments have different numbers of them.
pub(crate) fn rows(run: usize, chunk: ChunkId, segment: u32) -> Vec<Row> {
    let first = chunk.stage.0 * 1_000 + chunk.index * 100 + segment * 10;
    let count = 1 + (chunk.index + segment) % 3;
    let run = u32::try_from(run).unwrap_or(u32::MAX);
    (first..first + count).map(|key| Row { key, run }).collect()
}

/// A few runs, of which most could succeed.
pub(crate) fn runs(chance: &mut Chance) -> Vec<Run> {
    let count = chance.between(1, 3);
    // Runs of one pipeline meet in all their targets, and one that is to be reverted finds later ones in its way.
    let shared = chance.permille(300).then(|| places(chance));
    let mut runs = Vec::new();
    for number in 0..count {
        let places = shared.clone().unwrap_or_else(|| places(chance));
        runs.push(run(chance, number, &places));
    }
    runs
}

/// Destination and target of one to three loads.
fn places(chance: &mut Chance) -> Vec<(usize, usize)> {
    let count = chance.between(1, 3);
    (0..count)
        .map(|_| (chance.place(DESTINATIONS), chance.place(MODES.len())))
        .collect()
}

fn run(chance: &mut Chance, number: u64, places: &[(usize, usize)]) -> Run {
    let mut loads: Vec<Load> = Vec::new();
    for (place, (destination, target)) in places.iter().copied().enumerate() {
        if loads
            .iter()
            .any(|load| (load.destination, load.target) == (destination, target))
        {
            continue;
        }
        loads.push(Load {
            name: LoadName::new(format!("l{place}")),
            destination,
            target,
            unpublishable: place > 0 && chance.permille(150),
            stubborn: if chance.permille(60) { 2 } else { 0 },
        });
    }
    let mut stages = vec![stage(chance, 0, (0..loads.len()).collect())];
    if chance.permille(250) {
        stages.push(stage(chance, 1, vec![0]));
    }
    Run {
        id: id(usize::try_from(number).unwrap_or(usize::MAX)),
        submit_at: chance.below(3_000),
        cancel_at: chance.permille(150).then(|| chance.between(500, 9_000)),
        revert_at: (0..chance.below(4)).map(|_| chance.between(2_000, 14_000)).collect(),
        loads,
        stages,
        replays: None,
    }
}

fn id(number: usize) -> RunId {
    RunId::new(format!("r{number}"))
}

/// How many of a thousand histories have replays.
const REPLAYED: u64 = 300;

/// Two people replay the rejected rows of one run, each by a file of their own, into the targets that take more rows. From
/// a chance of its own: the other runs of a seed are what they are without replays.
pub(crate) fn replays(chance: &mut Chance, runs: &mut Vec<Run>) {
    if !chance.permille(REPLAYED) {
        return;
    }
    let of = chance.place(runs.len());
    for _ in 0..2 {
        let adds = |load: &&Load| MODES[load.target] != Mode::Replace;
        let loads: Vec<Load> = runs[of].loads.iter().filter(adds).map(again).collect();
        if loads.is_empty() {
            return;
        }
        runs.push(Run {
            id: id(runs.len()),
            submit_at: chance.between(2_000, 9_000),
            cancel_at: None,
            revert_at: (0..chance.below(3)).map(|_| chance.between(4_000, 16_000)).collect(),
            stages: vec![stage(chance, 0, (0..loads.len()).collect())],
            loads,
            replays: Some(of),
        });
    }
}

fn again(load: &Load) -> Load {
    Load {
        name: load.name.clone(),
        destination: load.destination,
        target: load.target,
        unpublishable: false,
        stubborn: 0,
    }
}

fn stage(chance: &mut Chance, number: u32, loads: Vec<usize>) -> Stage {
    let count = chance.between(1, 3);
    let chunk = |chance: &mut Chance, index| Chunk {
        id: ChunkId {
            stage: StageId(number),
            index,
        },
        segments: 1 + u32::try_from(chance.below(3)).unwrap_or(0),
        poison: chance.permille(20),
        bad: chance.permille(20),
    };
    let mut chunks = Vec::new();
    for index in 0..u32::try_from(count).unwrap_or(1) {
        chunks.push(chunk(chance, index));
    }
    Stage { loads, chunks }
}
