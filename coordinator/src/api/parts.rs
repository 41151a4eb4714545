//! Which parts of the sources' objects the rows of a replay are of, and the rows that the runs before it have loaded. A
//! destination that finds a row with the same key, of the same run or a replay of it, has to know which of the two is the
//! later one; there rows say the run, the chunk and the line. Pure.

use std::collections::{BTreeMap, BTreeSet};

use haulage_core::checkpoint::ChunkSpec;
use haulage_core::ids::{ChunkId, RunId};
use haulage_core::run::State;
use haulage_core::submission::{Part, Parts};

/// Of each object of rejected rows of this run the part, and what its chunks have read and those of the runs that it replays:
/// of objects with rejected rows alone. `ordered` is whether the rows of a source have an order.
pub(super) fn of(
    run: &RunId,
    state: &State,
    objects: &BTreeMap<String, Vec<String>>,
    ordered: impl Fn(&str) -> bool,
) -> (BTreeMap<String, Vec<Option<Part>>>, Parts) {
    let chunks = state.stages().iter().flat_map(|stage| &stage.chunks);
    let chunks = chunks.filter(|spec| ordered(&spec.source));
    let mut read = match state.submission().and_then(|submission| submission.replay.as_ref()) {
        Some(replay) => replay.read_with(run, chunks),
        None => Parts::from([(run.clone(), first(chunks))]),
    };
    let of_chunks: BTreeMap<ChunkId, Part> = read.get(run).into_iter().flatten().copied().collect();
    let mut of_keys: BTreeMap<&str, Part> = BTreeMap::new();
    for (chunk, report) in state.chunk_reports() {
        if let Some(part) = of_chunks.get(&chunk) {
            of_keys.extend(report.rejects.iter().map(|key| (key.as_str(), *part)));
        }
    }
    let mut parts = BTreeMap::new();
    for (source, keys) in objects {
        let of_source = keys.iter().map(|key| of_keys.get(key.as_str()).copied());
        parts.insert(source.clone(), of_source.collect::<Vec<_>>());
    }
    let wanted: BTreeSet<u32> = parts.values().flatten().flatten().map(|part| part.object).collect();
    for chunks in read.values_mut() {
        chunks.retain(|(_, part)| wanted.contains(&part.object));
    }
    (parts, read)
}

/// What the chunks of a run have read that is no replay.
fn first<'c>(chunks: impl Iterator<Item = &'c ChunkSpec>) -> Vec<(ChunkId, Part)> {
    let mut numbers: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut parts = Vec::new();
    for spec in chunks {
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let object = *numbers.entry((&spec.source, &spec.object)).or_insert(next);
        let start = spec.start.offset;
        parts.push((spec.chunk, Part { object, start }));
    }
    parts
}
