//! A submission: what a user asked for, and the identity that makes asking twice harmless.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::ChunkSpec;
use crate::ids::{ChunkId, LoadName, RunId};
use crate::run::Judged;

/// What a user asked for. Parameters are kept as the text the user gave; the plan types them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file's whole text.
    pub definition: String,
    /// Where the text came from, for error messages.
    pub file: String,
    /// What relative source paths are relative to: a folder or an `s3://bucket/prefix`.
    pub base: String,
    /// Parameter values by name.
    pub params: BTreeMap<String, String>,
    /// The loads in the order in which they publish, with the destination of each.
    pub loads: Vec<LoadOutline>,
    /// Where destinations of the loads are, by name, if the client knows it: `postgres://host:port/database` or
    /// `sqlite:/path`, never with a credential. Nodes whose destination of that name is elsewhere get none of the work.
    #[serde(default)]
    pub places: BTreeMap<String, String>,
    /// Whether a source is incremental. Asked for again after it is published, it is another run, which reads what is new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incremental: bool,
    /// The W3C `traceparent` of the client's span, empty if it had none.
    pub traceparent: String,
    /// What is read instead of the chunked sources, if this is a replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

/// A replay: the rejected rows of a run are read again, in the place of the sources that they came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The run whose rejected rows are read. Each run has at most one replay that stands; its own rejected rows are what
    /// is left, and the next replay reads those.
    pub run: RunId,
    /// The run that has read the rows first, which the first replay of a chain replays: in the order of what a table was
    /// given, they are of its time. `None` if that is `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<RunId>,
    /// Their objects in the checkpoint store, by source, in the order of its chunks. Only discovery needs them: what goes
    /// to nodes for other work has none.
    #[serde(default)]
    pub objects: BTreeMap<String, Vec<String>>,
    /// Of which part of a source's object the rows in each of `objects` are, in the same order; nothing where rows have no
    /// order, as in a database, or where an earlier release did not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Vec<Option<Part>>>,
    /// What the chunks of the origin, and of its replays up to `run`, have read of the objects that `parts` names. Only a
    /// publish needs it, and there it says the same of this run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub read: Parts,
    /// The loads that the rows were rejected for. Of each, how many source rows the origin has read on the way there (0 if that
    /// isn't known), and how many of them are rejected for good: checks have set them aside. `None` where an earlier release
    /// did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loads: Option<BTreeMap<LoadName, Judged>>,
}

/// A part of a source's object: of two rows of one object, that of the later part comes later, and within a part that of the
/// later line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The object's number among those that the origin has read.
    pub object: u32,
    /// Where in the object the part begins.
    pub start: u64,
}

/// By run, which part each of its chunks has read.
pub type Parts = BTreeMap<RunId, Vec<(ChunkId, Part)>>;

/// The part of a load that decisions need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOutline {
    /// The load's name.
    pub name: LoadName,
    /// The destination's name.
    pub destination: String,
    /// The table or path there.
    pub table: String,
}

impl Replay {
    /// The run that has read the rows first.
    pub fn origin(&self) -> &RunId {
        self.origin.as_ref().unwrap_or(&self.run)
    }

    /// `read`, and what the chunks of the replay itself read, which is `run`.
    pub fn read_with<'c>(&self, run: &RunId, chunks: impl Iterator<Item = &'c ChunkSpec>) -> Parts {
        let mut known: BTreeMap<(&str, &str), Part> = BTreeMap::new();
        for (source, keys) in &self.objects {
            let parts = self.parts.get(source).into_iter().flatten();
            for (key, part) in keys.iter().zip(parts) {
                known.extend(part.map(|part| ((source.as_str(), key.as_str()), part)));
            }
        }
        let part = |spec: &ChunkSpec| known.get(&(spec.source.as_str(), spec.object.as_str())).copied();
        let own = chunks.filter_map(|spec| Some((spec.chunk, part(spec)?)));
        let mut read = self.read.clone();
        read.insert(run.clone(), own.collect());
        read
    }
}

impl Submission {
    /// SHA-256 over pipeline, definition, base, parameters, places and what is replayed, in hex. Equal for equal requests.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        // Lengths go in front, so that no two different submissions run together into the same bytes.
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        add(&self.pipeline);
        add(&self.definition);
        add(&self.base);
        for (name, value) in &self.params {
            add(name);
            add(value);
        }
        for (name, place) in &self.places {
            // No parameter has an empty name, so none passes for a place.
            add("");
            add(name);
            add(place);
        }
        if let Some(replay) = &self.replay {
            // Neither a parameter nor a place has an empty name and an empty value.
            add("");
            add("");
            add(replay.run.as_str());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Names the version of the pipeline file: the beginning of the SHA-256 of its text, in hex.
    pub fn definition_id(&self) -> String {
        let hash = Sha256::digest(self.definition.as_bytes());
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same for work other than discovery: without the objects of a replay, of which there may be many.
    pub fn without_objects(&self) -> Self {
        let replay = self.replay.as_ref().map(|replay| Replay {
            run: replay.run.clone(),
            origin: replay.origin.clone(),
            objects: BTreeMap::new(),
            parts: BTreeMap::new(),
            read: Parts::new(),
            loads: replay.loads.clone(),
        });
        Self {
            pipeline: self.pipeline.clone(),
            definition: self.definition.clone(),
            file: self.file.clone(),
            base: self.base.clone(),
            params: self.params.clone(),
            loads: self.loads.clone(),
            places: self.places.clone(),
            incremental: self.incremental,
            traceparent: self.traceparent.clone(),
            replay,
        }
    }

    /// The same for a publish, which has to know of two rows which one was read later.
    pub fn to_publish<'c>(&self, run: &RunId, chunks: impl Iterator<Item = &'c ChunkSpec>) -> Self {
        let mut plain = self.without_objects();
        if let (Some(replay), Some(own)) = (&self.replay, &mut plain.replay) {
            own.read = replay.read_with(run, chunks);
        }
        plain
    }

    /// The id of the `number`-th run of this submission, from 1, in the ledger with this mark. Without the mark, two
    /// ledgers that publish to one warehouse (or a new one after the old was lost) would take each other's runs for
    /// their own there.
    pub fn run_id(&self, ledger: &str, number: u32) -> RunId {
        let short = &self.key()[..10];
        match number {
            0 | 1 => RunId(format!("{}-{ledger}-{short}", self.pipeline)),
            more => RunId(format!("{}-{ledger}-{short}-{more}", self.pipeline)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Position;
    use crate::ids::StageId;

    fn submission() -> Submission {
        Submission {
            pipeline: "p".into(),
            definition: "pipeline: p\n".into(),
            file: "p.yaml".into(),
            base: "/data".into(),
            params: BTreeMap::from([("day".to_owned(), "1".to_owned())]),
            loads: Vec::new(),
            places: BTreeMap::from([("warehouse".to_owned(), "sqlite:/w".to_owned())]),
            incremental: false,
            traceparent: String::new(),
            replay: None,
        }
    }

    #[test]
    fn a_replay_is_another_submission_and_its_objects_are_not_part_of_it() {
        let plain = submission();
        let replay = |run: &str, objects: &[&str]| Submission {
            replay: Some(Replay {
                run: RunId::from(run),
                origin: None,
                objects: BTreeMap::from([("raw".to_owned(), objects.iter().map(ToString::to_string).collect())]),
                parts: BTreeMap::new(),
                read: Parts::new(),
                loads: None,
            }),
            ..submission()
        };
        assert_ne!(plain.key(), replay("r", &[]).key());
        assert_ne!(replay("r", &[]).key(), replay("s", &[]).key());
        assert_eq!(replay("r", &["a"]).key(), replay("r", &["b"]).key());
        let mut of_another = replay("r", &["a"]);
        if let Some(replay) = &mut of_another.replay {
            assert_eq!(replay.origin(), &RunId::from("r"));
            replay.origin = Some(RunId::from("q"));
            assert_eq!(replay.origin(), &RunId::from("q"));
        }
        assert_eq!(of_another.key(), replay("r", &[]).key());
        let bare = replay("r", &["a"]).without_objects();
        assert_eq!(bare.key(), replay("r", &["a"]).key());
        assert!(bare.replay.expect("a replay").objects.is_empty());
        let json = serde_json::to_string(&plain).expect("plain data");
        assert!(!json.contains("replay"), "as earlier releases wrote it: {json}");
    }

    #[test]
    fn a_publish_knows_what_the_chunks_of_a_replay_have_read() {
        let chunk = |index| ChunkId {
            stage: StageId(0),
            index,
        };
        let part = |start| Part { object: 3, start };
        let mut replay = submission();
        replay.replay = Some(Replay {
            run: RunId::from("q"),
            origin: None,
            objects: BTreeMap::from([("raw".to_owned(), vec!["a".to_owned(), "b".to_owned(), "c".to_owned()])]),
            parts: BTreeMap::from([("raw".to_owned(), vec![Some(part(7)), None, Some(part(9))])]),
            read: Parts::from([(RunId::from("q"), vec![(chunk(5), part(7))])]),
            loads: Some(BTreeMap::from([(LoadName::from("l"), Judged { read: 5, rejected: 1 })])),
        });
        let spec = |index, object: &str| ChunkSpec {
            chunk: chunk(index),
            source: "raw".into(),
            object: object.into(),
            version: "1".into(),
            start: Position::default(),
            end: None,
            bytes: 1,
            window: None,
        };
        let chunks = [spec(0, "c"), spec(1, "b"), spec(2, "a"), spec(3, "other")];
        let published = replay
            .to_publish(&RunId::from("r"), chunks.iter())
            .replay
            .expect("a replay");
        assert!(published.objects.is_empty() && published.parts.is_empty());
        let expected = [
            ("q", vec![(chunk(5), part(7))]),
            ("r", vec![(chunk(0), part(9)), (chunk(2), part(7))]),
        ];
        let expected: Parts = expected.map(|(run, chunks)| (RunId::from(run), chunks)).into();
        assert_eq!(published.read, expected);
        let json = serde_json::to_string(&published).expect("plain data");
        assert_eq!(serde_json::from_str::<Replay>(&json).expect("readable"), published);
        assert!(replay.without_objects().replay.expect("a replay").read.is_empty());
        assert_eq!(submission().to_publish(&RunId::from("r"), chunks.iter()), submission());
    }
}
