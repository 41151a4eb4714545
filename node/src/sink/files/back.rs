//! The rows of a run, read back from its files as the table's manifest names them now, and what is to be said of the files.
//!
//! What was written of them is known from the list that verify has made before the publish, which nobody changes: the
//! manifest and every file are held against it. Whether the rows are those of the load is for whoever sums them up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use haulage_core::failure::{Class, Failure};
use haulage_core::words::counted;
use haulage_plan::definition::Column;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Receiver;

use super::Files;
use super::decode::{Rows, Wanted};
use super::encode::digest;
use super::place::TablePlace;
use super::publish::{Entry, Manifest};
use super::state::{File, Head, Part};
use super::verify::List;
use crate::sink::{BackRows, LoadContext, ReadBack, Seen};
use crate::source::folders::of_path;

/// Findings about files that are said one by one.
const NAMED: usize = 10;
/// A file that is larger by so much than what was written isn't read.
const MAX_GROWTH: u64 = 64 << 20;

/// See the module.
pub(super) struct RowsBack {
    files: Files,
    place: TablePlace,
    wanted: Arc<Wanted>,
    /// What is still to be read.
    left: VecDeque<Entry>,
    /// The files of the load as they were written, by path.
    written: BTreeMap<String, File>,
    current: Option<Current>,
    seen: Seen,
}

/// A file while it is read.
struct Current {
    path: String,
    rows: Receiver<Result<Rows, String>>,
    read: u64,
    expected: u64,
}

impl Files {
    pub(super) async fn rows_back(&self, load: &LoadContext, columns: &[Column]) -> Result<RowsBack, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let table = self.table(&place).await?.value;
        let part = table.record(load).and_then(|record| record.part.clone());
        let (Some(head), Some(part)) = (&table.head, part) else {
            return Err(Failure::permanent(format!("{} was changed meanwhile", load.table)));
        };
        let columns: Vec<_> = columns
            .iter()
            .map(|column| (column.name.clone(), column.data_type.clone()))
            .collect();
        let mut seen = Seen::default();
        let written: Option<List> = self.known(&place.key(&part.list), &mut seen.notes).await?;
        let written = written.map(|list| list.files.into_iter().map(|file| (file.path.clone(), file)).collect());
        let manifest: Option<Manifest> = self.known(&place.key(&head.manifest), &mut seen.findings).await?;
        let left = manifest.map_or_else(VecDeque::new, |manifest| {
            entries_of(&part, head, manifest, written.as_ref(), &mut seen.findings)
        });
        Ok(RowsBack {
            files: self.clone(),
            place,
            wanted: Arc::new(Wanted::new(&head.shape_of(&part.area), &columns)),
            left,
            written: written.unwrap_or_default(),
            current: None,
            seen,
        })
    }

    /// A document that never changes; that it is gone or damaged is said.
    async fn known<T: DeserializeOwned>(&self, key: &str, said: &mut Vec<String>) -> Result<Option<T>, Failure> {
        match self.fixed(key).await {
            Ok(Some(document)) => Ok(Some(document)),
            Ok(None) => {
                said.push(format!(
                    "{} is gone, which lists the run's files; put back a copy of it",
                    self.objects.address(key)
                ));
                Ok(None)
            }
            Err(failure) if failure.class == Class::Permanent => {
                said.push(failure.message);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// The files of the run that the manifest names, held against those that were written.
fn entries_of(
    part: &Part,
    head: &Head,
    manifest: Manifest,
    written: Option<&BTreeMap<String, File>>,
    findings: &mut Vec<String>,
) -> VecDeque<Entry> {
    let mut known: BTreeSet<&str> = head.parts.iter().map(|part| part.area.as_str()).collect();
    if known.insert(&part.area) {
        findings.push("the table's state no longer counts the run's files among those that make it up".to_owned());
    }
    let mut own = VecDeque::new();
    let mut there = BTreeSet::new();
    for entry in manifest.files {
        let path = &entry.path;
        if !known.contains(entry.area.as_str()) {
            findings.push(format!("file {path} is in the manifest, and no run has brought it"));
        }
        if entry.area != part.area {
            continue;
        }
        if !is_sound(path) {
            findings.push(format!(
                "file {path} is in the manifest, and can be no file of the table"
            ));
            continue;
        }
        if !there.insert(path.clone()) {
            findings.push(format!("file {path} is in the manifest twice"));
        }
        match written.map(|written| written.get(path)) {
            Some(None) => findings.push(format!(
                "file {path} is in the manifest as the run's, which has not written it"
            )),
            Some(Some(file)) if !is_same(&entry, file) => {
                findings.push(format!("what the manifest says of file {path} is not what was written"));
            }
            Some(Some(_)) | None => {}
        }
        let of_path = of_path(path);
        let told = entry.partition.iter().zip(&head.shape.partition_by);
        for (value, column) in told {
            if of_path.get(column) != Some(value) {
                findings.push(format!(
                    "file {path} has another {column} in its path than in the manifest, {}",
                    value.as_deref().unwrap_or("no value")
                ));
            }
        }
        own.push_back(entry);
    }
    for file in written.into_iter().flat_map(BTreeMap::values) {
        if !there.contains(&file.path) {
            findings.push(format!(
                "file {}, with {}, is no longer in the manifest",
                file.path,
                counted(file.rows, "row")
            ));
        }
    }
    own
}

fn is_same(entry: &Entry, file: &File) -> bool {
    // An earlier release that has written the manifest knew no sums.
    let same_sum = entry.sum == file.sum || entry.sum.is_empty();
    entry.rows == file.rows && entry.bytes == file.bytes && entry.partition == file.partition && same_sum
}

/// Whether a path of a manifest leads to a file of the table, and nowhere else.
pub(super) fn is_sound(path: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    path.starts_with("data/") && path.split('/').all(part)
}

/// Whether a file isn't read, since it would take a node's memory.
pub(super) fn is_too_large(size: u64, written: u64) -> bool {
    size > written.saturating_add(MAX_GROWTH)
}

impl RowsBack {
    /// Begins with a file, if it can be read.
    async fn open(&mut self, entry: Entry) -> Result<(), Failure> {
        let key = self.place.key(&entry.path);
        let path = entry.path;
        let written = self.written.get(&path);
        let (rows, bytes, sum) = match written {
            Some(file) => (file.rows, file.bytes, file.sum.clone()),
            None => (entry.rows, entry.bytes, entry.sum),
        };
        let gone = format!("file {path} is gone, with its {}", counted(rows, "row"));
        let Some(size) = self.files.objects.size(&key).await? else {
            self.seen.findings.push(gone);
            return Ok(());
        };
        if is_too_large(size, bytes) {
            self.seen.findings.push(format!(
                "file {path} has {size} bytes, and {bytes} were written: it is not read"
            ));
            return Ok(());
        }
        let Some((data, _)) = self.files.objects.get(&key).await? else {
            self.seen.findings.push(gone);
            return Ok(());
        };
        if data.len() as u64 != bytes {
            self.seen.touched.push(format!(
                "file {path} has {} bytes, and {bytes} were written",
                data.len()
            ));
        } else if !sum.is_empty() && sum != digest(&data) {
            self.seen
                .touched
                .push(format!("file {path} has other bytes than were written"));
        }
        self.current = Some(Current {
            rows: self.wanted.read(&path, data, of_path(&path)),
            path,
            read: 0,
            expected: rows,
        });
        Ok(())
    }
}

#[async_trait]
impl ReadBack for RowsBack {
    async fn next(&mut self) -> Result<Option<BackRows>, Failure> {
        loop {
            let Some(current) = &mut self.current else {
                let Some(entry) = self.left.pop_front() else {
                    return Ok(None);
                };
                self.open(entry).await?;
                continue;
            };
            match current.rows.recv().await {
                Some(Ok(rows)) => {
                    current.read += rows.batch.num_rows() as u64 + rows.unreadable;
                    let of_file = |why| format!("{why}, in file {}", current.path);
                    return Ok(Some(BackRows {
                        first: rows.first.map(of_file),
                        batch: rows.batch,
                        unreadable: rows.unreadable,
                    }));
                }
                Some(Err(why)) => {
                    let finding = format!(
                        "file {} can't be read behind {}: {why}",
                        current.path,
                        counted(current.read, "row")
                    );
                    self.seen.findings.push(finding);
                    self.current = None;
                }
                None => {
                    if current.read != current.expected {
                        let finding = format!(
                            "file {} has {}, and {} were written",
                            current.path,
                            counted(current.read, "row"),
                            current.expected
                        );
                        self.seen.findings.push(finding);
                    }
                    self.current = None;
                }
            }
        }
    }

    fn seen(self: Box<Self>) -> Seen {
        let mut seen = self.seen;
        for (said, what) in [(&mut seen.findings, "finding"), (&mut seen.touched, "file")] {
            let all = said.len();
            said.truncate(NAMED);
            if all > NAMED {
                said.push(format!("and {} more", counted((all - NAMED) as u64, what)));
            }
        }
        seen
    }
}
