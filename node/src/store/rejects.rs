//! What a segment leaves in the checkpoint store: its manifest, and its quarantined rows as JSON lines under zstd.
//!
//! The key of both derives from run, chunk, attempt and segment, so that two attempts never meet in one object.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use haulage_core::checkpoint::Manifest;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::quarantine::Reject;

/// Refuses to unpack more than this from one object: a segment's raw rows are far smaller, so that would be no object
/// that Haulage wrote.
const MAX_UNPACKED: u64 = 1 << 30;

/// The compression that costs next to nothing and still takes repeated run, file and reason away.
const LEVEL: i32 = 1;

/// The key of a segment's manifest.
pub fn manifest_key(run: &RunId, chunk: ChunkId, attempt: Attempt, segment: u32) -> String {
    format!("{}.manifest.json", segment_key(run, chunk, attempt, segment))
}

/// The key of a segment's quarantined rows.
pub fn rejects_key(run: &RunId, chunk: ChunkId, attempt: Attempt, segment: u32) -> String {
    format!("{}.rejects.jsonl.zst", segment_key(run, chunk, attempt, segment))
}

fn segment_key(run: &RunId, chunk: ChunkId, attempt: Attempt, segment: u32) -> String {
    format!(
        "runs/{run}/chunks/{}-{}/a{attempt}/s{segment}",
        chunk.stage, chunk.index
    )
}

/// A manifest as it is stored.
pub fn encode_manifest(manifest: &Manifest) -> Result<Bytes, Failure> {
    serde_json::to_vec(manifest).map(Bytes::from).map_err(|error| {
        Failure::permanent(format!(
            "manifest of chunk {} can't be written: {error}",
            manifest.chunk
        ))
    })
}

/// A manifest as it was stored under `key`. Permanent failure naming the key if it is none.
pub fn decode_manifest(key: &str, data: &[u8]) -> Result<Manifest, Failure> {
    serde_json::from_slice(data).map_err(|error| Failure::permanent(format!("{key} is no manifest: {error}")))
}

/// Quarantined rows as they are stored, in their order.
pub fn encode(rejects: &[Reject]) -> Result<Bytes, Failure> {
    let write = || -> std::io::Result<Vec<u8>> {
        let mut packed = zstd::Encoder::new(Vec::new(), LEVEL)?;
        for reject in rejects {
            serde_json::to_writer(&mut packed, reject)?;
            packed.write_all(b"\n")?;
        }
        packed.finish()
    };
    write()
        .map(Bytes::from)
        .map_err(|error| Failure::permanent(format!("rejected rows can't be packed: {error}")))
}

/// Quarantined rows as they were stored under `key`. Permanent failure naming the key if they are damaged.
pub fn decode(key: &str, data: &[u8]) -> Result<Vec<Reject>, Failure> {
    let mut rejects = Vec::new();
    each(key, data, |reject| {
        rejects.push(reject);
        ControlFlow::Continue(())
    })?;
    Ok(rejects)
}

/// Hands out the quarantined rows that were stored under `key`, one by one, until one is enough.
pub fn each(key: &str, data: &[u8], mut take: impl FnMut(Reject) -> ControlFlow<()>) -> Result<(), Failure> {
    let damaged = |error: &dyn std::fmt::Display| Failure::permanent(format!("{key} holds no rejected rows: {error}"));
    let unpacked = zstd::Decoder::with_buffer(data).map_err(|error| damaged(&error))?;
    let mut lines = BufReader::new(unpacked.take(MAX_UNPACKED));
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).map_err(|error| damaged(&error))?;
        if read == 0 {
            return Ok(());
        }
        let reject = serde_json::from_slice(&line).map_err(|error| damaged(&error))?;
        if take(reject).is_break() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::{Counts, Position};
    use haulage_core::failure::Class;
    use haulage_core::ids::{Epoch, StageId};

    use super::*;

    fn reject(line: u64, raw: &str) -> Reject {
        Reject {
            pipeline: "flights".into(),
            run: RunId::new("flights-0011223344"),
            source: "raw".into(),
            file: "data/a.csv".into(),
            line,
            column: Some("dep_time".into()),
            step: None,
            reason: "bad_int".into(),
            detail: "expected int, found \"x\"".into(),
            raw: raw.into(),
            kept: None,
        }
    }

    #[test]
    fn rejected_rows_come_back_as_they_were() {
        let rows = vec![reject(2, "1,\"a\nb\",ü"), reject(7, "\\xff,\u{0}"), reject(9, "")];
        let packed = encode(&rows).unwrap();
        assert_eq!(decode("k", &packed).unwrap(), rows);
        assert_eq!(decode("k", &encode(&[]).unwrap()).unwrap(), vec![]);
    }

    #[test]
    fn damage_is_a_failure_that_names_the_key() {
        let packed = encode(&[reject(1, "abc"), reject(2, "def")]).unwrap();
        for end in 0..packed.len() {
            let failure = decode("runs/r/s0.rejects", &packed[..end]).expect_err("cut short");
            assert_eq!(failure.class, Class::Permanent);
            assert!(failure.message.starts_with("runs/r/s0.rejects"), "{failure}");
        }
        assert!(
            decode_manifest("m", b"{}")
                .unwrap_err()
                .message
                .starts_with("m is no manifest")
        );
    }

    #[test]
    fn keys_are_scoped_by_attempt() {
        let (run, chunk) = (
            RunId::new("flights-0011223344-2"),
            ChunkId {
                stage: StageId(1),
                index: 12,
            },
        );
        assert_eq!(
            manifest_key(&run, chunk, Attempt(3), 7),
            "runs/flights-0011223344-2/chunks/1-12/a3/s7.manifest.json"
        );
        assert_eq!(
            rejects_key(&run, chunk, Attempt(3), 7),
            "runs/flights-0011223344-2/chunks/1-12/a3/s7.rejects.jsonl.zst"
        );
        let manifest = Manifest {
            chunk,
            segment: 7,
            epoch: Epoch(2),
            attempt: Attempt(3),
            next: Position { offset: 10, line: 2 },
            cursor: Some("after-10".into()),
            digest: None,
            last: true,
            counts: Counts::default(),
            rejects: None,
        };
        let encoded = encode_manifest(&manifest).unwrap();
        assert_eq!(decode_manifest("m", &encoded).unwrap(), manifest);
        // As releases wrote it that knew nothing of cursors.
        let mut older: serde_json::Value = serde_json::from_slice(&encoded).unwrap();
        older.as_object_mut().unwrap().remove("cursor");
        let older = decode_manifest("m", older.to_string().as_bytes()).unwrap();
        assert_eq!(
            older,
            Manifest {
                cursor: None,
                ..manifest
            }
        );
    }
}
