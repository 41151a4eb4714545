//! What a segment leaves in the checkpoint store: its manifest, and its quarantined rows as JSON lines under zstd.
//!
//! The key of both derives from run, chunk, attempt and segment, so that two attempts never meet in one object.
//!
//! Columns stand in a line of their own before the first row that has them, and hold until other ones come: a wide file's
//! are many times as long as a short row. Earlier releases wrote them into each row, and such objects are read as well.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use haulage_core::checkpoint::Manifest;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, RunId};
use haulage_core::quarantine::Reject;
use serde::{Deserialize, Serialize};

/// An object holds at most so many bytes, unpacked, unless one row alone has more.
pub const OBJECT_BYTES: usize = 64 << 20;
/// Refuses to read a longer line: the longest that is written holds the header of a file, which may be 16 MiB, of which each
/// byte may take six.
const LINE_BYTES: u64 = 128 << 20;

/// The compression that costs next to nothing and still takes repeated run, file and reason away.
const LEVEL: i32 = 1;

/// The key of a segment's manifest.
pub fn manifest_key(run: &RunId, chunk: ChunkId, attempt: Attempt, segment: u32) -> String {
    format!("{}.manifest.json", segment_key(run, chunk, attempt, segment))
}

/// The key of a segment's quarantined rows, or of a part of them, counted from 0.
pub fn rejects_key(run: &RunId, chunk: ChunkId, attempt: Attempt, segment: u32, part: u32) -> String {
    let segment = segment_key(run, chunk, attempt, segment);
    match part {
        0 => format!("{segment}.rejects.jsonl.zst"),
        part => format!("{segment}-{part}.rejects.jsonl.zst"),
    }
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

/// Packs quarantined rows into objects, row by row: at no time is more in memory than one row and what is packed of one object.
pub struct Packer {
    packed: zstd::Encoder<'static, Vec<u8>>,
    /// The columns of the rows that are written now.
    columns: Option<Arc<[String]>>,
    /// Room for a row's line.
    line: Vec<u8>,
    /// Of the object, unpacked.
    bytes: usize,
}

impl Packer {
    /// Permanent failure if there is no room for packing.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self {
            packed: zstd::Encoder::new(Vec::new(), LEVEL).map_err(unpackable)?,
            columns: None,
            line: Vec::new(),
            bytes: 0,
        })
    }

    /// Adds a row. The object before it, if this one begins another.
    pub fn add(&mut self, mut reject: Reject) -> Result<Option<Bytes>, Failure> {
        let columns = reject.kept.as_mut().map(|kept| kept.columns.take());
        // Apart from the object, which may end before it.
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        write_line(&mut line, &reject)?;
        let mut head = self.head(columns.as_ref())?;
        let mut full = None;
        if self.bytes > 0 && self.bytes + head.len() + line.len() > OBJECT_BYTES {
            full = self.finish()?;
            head = self.head(columns.as_ref())?;
        }
        if !head.is_empty() {
            self.columns = columns.flatten();
        }
        for text in [&head, &line] {
            self.packed.write_all(text).map_err(unpackable)?;
            self.bytes += text.len();
        }
        self.line = line;
        Ok(full)
    }

    /// The last object, if there is any; what is added then comes into another one.
    pub fn finish(&mut self) -> Result<Option<Bytes>, Failure> {
        let done = std::mem::replace(self, Self::new()?);
        match done.bytes {
            0 => Ok(None),
            _ => Ok(Some(done.packed.finish().map_err(unpackable)?.into())),
        }
    }

    /// What has to stand before a row with these columns: nothing if they are those of the row before.
    fn head(&self, columns: Option<&Option<Arc<[String]>>>) -> Result<Vec<u8>, Failure> {
        let mut head = Vec::new();
        let stand = |columns: &Option<Arc<[String]>>| match (columns, &self.columns) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        if let Some(columns) = columns.filter(|columns| !stand(columns)) {
            let columns = columns.as_deref();
            write_line(&mut head, &Head { columns })?;
        }
        Ok(head)
    }
}

/// The line before rows that have these columns.
#[derive(Serialize)]
struct Head<'h> {
    columns: Option<&'h [String]>,
}

/// The same as it is read.
#[derive(Deserialize)]
struct ReadHead {
    columns: Option<Vec<String>>,
}

/// How a head begins, and a row never does.
const HEAD: &[u8] = b"{\"columns\":";

fn write_line(line: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *line, value).map_err(unpackable)?;
    line.push(b'\n');
    Ok(())
}

fn unpackable(error: impl std::fmt::Display) -> Failure {
    Failure::permanent(format!("rejected rows can't be packed: {error}"))
}

/// The quarantined rows of an object, read one by one.
pub struct Rows<R: BufRead> {
    key: String,
    lines: BufReader<zstd::Decoder<'static, R>>,
    line: Vec<u8>,
    /// The columns that stand before these rows.
    columns: Option<Arc<[String]>>,
    /// Those that a row of an earlier release had by itself: the next one has most often the same.
    own: Option<Arc<[String]>>,
    at: u64,
}

impl<R: BufRead> Rows<R> {
    /// The rows of `data`, which was stored under `key`.
    pub fn new(key: &str, data: R) -> Result<Self, Failure> {
        let unpacked = zstd::Decoder::with_buffer(data).map_err(|error| damaged(key, &error))?;
        Ok(Self {
            key: key.to_owned(),
            lines: BufReader::new(unpacked),
            line: Vec::new(),
            columns: None,
            own: None,
            at: 0,
        })
    }

    /// How many rows lie behind.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next row. Permanent failure naming the key if it is damaged.
    pub fn read(&mut self) -> Result<Option<Reject>, Failure> {
        if !self.next_row()? {
            return Ok(None);
        }
        let mut reject: Reject = serde_json::from_slice(&self.line).map_err(|error| damaged(&self.key, &error))?;
        if let Some(kept) = &mut reject.kept {
            match &kept.columns {
                None => kept.columns.clone_from(&self.columns),
                own if *own == self.own => kept.columns.clone_from(&self.own),
                own => self.own.clone_from(own),
            }
        }
        self.at += 1;
        Ok(Some(reject))
    }

    /// Leaves out so many rows, or those that are left if there are fewer.
    pub fn pass_over(&mut self, rows: u64) -> Result<(), Failure> {
        for _ in 0..rows {
            if !self.next_row()? {
                break;
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Reads the line of the next row; `false` if there is none.
    fn next_row(&mut self) -> Result<bool, Failure> {
        while self.next_line()? {
            if !self.line.starts_with(HEAD) {
                return Ok(true);
            }
            let head: ReadHead = serde_json::from_slice(&self.line).map_err(|error| damaged(&self.key, &error))?;
            self.columns = head.columns.map(Arc::from);
        }
        Ok(false)
    }

    fn next_line(&mut self) -> Result<bool, Failure> {
        self.line.clear();
        let mut lines = (&mut self.lines).take(LINE_BYTES);
        let read = lines.read_until(b'\n', &mut self.line);
        read.map_err(|error| damaged(&self.key, &error))?;
        match self.line.last() {
            None => Ok(false),
            Some(b'\n') => Ok(true),
            Some(_) => Err(damaged(&self.key, &"a line has no end")),
        }
    }
}

fn damaged(key: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(format!("{key} holds no rejected rows: {error}"))
}

/// Hands out the quarantined rows that were stored under `key`, one by one, until one is enough. Permanent failure naming
/// the key if they are damaged.
pub fn each(key: &str, data: &[u8], mut take: impl FnMut(Reject) -> ControlFlow<()>) -> Result<(), Failure> {
    let mut rows = Rows::new(key, data)?;
    while let Some(reject) = rows.read()? {
        if take(reject).is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::{Counts, Position};
    use haulage_core::failure::Class;
    use haulage_core::ids::{Epoch, StageId};
    use haulage_core::quarantine::{Form, Kept};

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

    /// With columns of these names, or with those that nobody knows.
    fn with(line: u64, columns: Option<&[&str]>) -> Reject {
        let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Reject {
            kept: Some(Kept {
                loads: Vec::new(),
                reached: Vec::new(),
                columns,
                tabbed: false,
                form: Form::Raw,
            }),
            ..reject(line, "x")
        }
    }

    fn encode(rows: &[Reject]) -> Bytes {
        let mut packer = Packer::new().unwrap();
        for row in rows {
            assert_eq!(packer.add(row.clone()).unwrap(), None);
        }
        packer.finish().unwrap().unwrap_or_default()
    }

    fn decode(key: &str, data: &[u8]) -> Result<Vec<Reject>, Failure> {
        let mut rows = Vec::new();
        each(key, data, |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    #[test]
    fn rejected_rows_come_back_as_they_were() {
        let rows = vec![reject(2, "1,\"a\nb\",ü"), reject(7, "\\xff,\u{0}"), reject(9, "")];
        let packed = encode(&rows);
        assert_eq!(decode("k", &packed).unwrap(), rows);
        assert_eq!(Packer::new().unwrap().finish().unwrap(), None);
    }

    #[test]
    fn columns_are_written_where_they_change_and_come_back_with_every_row() {
        let (one, other): (&[&str], &[&str]) = (&["id", "\"name\""], &["id"]);
        let rows = [
            with(1, None),
            with(2, Some(one)),
            with(3, Some(one)),
            reject(4, "of an earlier release"),
            with(5, Some(one)),
            with(6, Some(other)),
            with(7, None),
            with(8, Some(&[])),
        ];
        let packed = encode(&rows);
        assert_eq!(decode("k", &packed).unwrap(), rows);
        let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
        assert_eq!(
            (text.lines().count(), text.matches("name").count()),
            (rows.len() + 4, 1)
        );
        let mut read = Rows::new("k", &packed[..]).unwrap();
        read.pass_over(4).unwrap();
        assert_eq!((read.at(), read.read().unwrap().as_ref()), (4, Some(&rows[4])));
        read.pass_over(100).unwrap();
        assert_eq!((read.at(), read.read().unwrap()), (8, None));
    }

    #[test]
    fn rows_that_have_their_columns_by_themselves_are_read() {
        let rows = [
            with(1, Some(&["a", "b"])),
            with(2, Some(&["a", "b"])),
            with(3, None),
            reject(4, ""),
        ];
        let text: String = rows
            .iter()
            .map(|row| serde_json::to_string(row).unwrap() + "\n")
            .collect();
        let packed = zstd::encode_all(text.as_bytes(), LEVEL).unwrap();
        let read = decode("k", &packed).unwrap();
        assert_eq!(read, rows);
        let columns = |row: &Reject| row.kept.clone().unwrap().columns.unwrap();
        assert!(Arc::ptr_eq(&columns(&read[0]), &columns(&read[1])), "in memory once");
    }

    #[test]
    fn damage_is_a_failure_that_names_the_key() {
        let packed = encode(&[reject(1, "abc"), reject(2, "def")]);
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
            [0, 2].map(|part| rejects_key(&run, chunk, Attempt(3), 7, part)),
            [
                "runs/flights-0011223344-2/chunks/1-12/a3/s7.rejects.jsonl.zst",
                "runs/flights-0011223344-2/chunks/1-12/a3/s7-2.rejects.jsonl.zst"
            ]
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
            rejects: Vec::new(),
        };
        let encoded = encode_manifest(&manifest).unwrap();
        assert_eq!(decode_manifest("m", &encoded).unwrap(), manifest);
        // One key is what earlier releases know, and many are what they refuse.
        for (keys, written) in [
            (vec![], serde_json::Value::Null),
            (vec!["k0"], "k0".into()),
            (vec!["k0", "k1"], ["k0", "k1"].as_slice().into()),
        ] {
            let rejects = keys.into_iter().map(str::to_owned).collect();
            let manifest = Manifest {
                rejects,
                ..manifest.clone()
            };
            let encoded = encode_manifest(&manifest).unwrap();
            let plain: serde_json::Value = serde_json::from_slice(&encoded).unwrap();
            assert_eq!(
                (&plain["rejects"], decode_manifest("m", &encoded).unwrap()),
                (&written, manifest)
            );
        }
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
