//! Publish: a new version of the table. Its manifest is written first, under a name of its own, and counts from when the
//! table's state names it; that same write moves the record. Two who publish at once have read one state, and of them one
//! writes: the other begins again over what is there then.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::words::counted;
use haulage_plan::definition::Mode;
use serde::{Deserialize, Serialize};

use super::Files;
use super::documents::{Tries, json};
use super::evolve;
use super::place::TablePlace;
use super::recall::kept_for;
use super::state::{File, Head, Part, Record, Shape, State, Table, ended, now, same_round};
use super::target::{fit, misfit};
use super::verify::{List, sealed};
use crate::chance;
use crate::sink::aside::left;
use crate::sink::kept::Publishing;
use crate::sink::older::{Later, judge};
use crate::sink::{ColumnChange, Expected, LoadContext, with_columns};

/// A version of a table, for readers: exactly these files. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) version: u64,
    pub(super) table: String,
    #[serde(flatten)]
    pub(super) shape: Shape,
    pub(super) rows: u64,
    pub(super) files: Vec<Entry>,
}

/// A file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative to the table's folder.
    pub(super) path: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// The run that has brought it.
    pub(super) run: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) partition: Vec<Option<String>>,
    pub(super) area: String,
    /// As in [`File`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) sum: String,
}

impl Entry {
    fn new(part: &Part, file: File) -> Self {
        Self {
            path: file.path,
            rows: file.rows,
            bytes: file.bytes,
            run: part.run.clone(),
            partition: file.partition,
            area: part.area.clone(),
            sum: file.sum,
        }
    }
}

impl Files {
    pub(super) async fn publish_load(&self, load: &LoadContext, expected: Expected) -> Result<Publishing, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let mut tries = Tries::new();
        loop {
            let read = self.table(&place).await?;
            let mut table = read.value.clone();
            let Some(record) = table.hold(load, "publish")? else {
                return Err(ended(load, "not prepared"));
            };
            same_round(load, record)?;
            let visible = left(expected, record.set_aside.as_ref());
            match record.state {
                State::Sealed => {}
                State::Published => {
                    let detail = record.detail.clone();
                    if table == read.value || self.write_table(&place, &read, &mut table).await? {
                        return Ok(done(visible, detail));
                    }
                    tries.again(&self.objects.address(&place.state())).await?;
                    continue;
                }
                State::Staged | State::Sealing => {
                    return Err(Failure::permanent(format!(
                        "load {} is not verified; verify it before publishing",
                        load.load
                    )));
                }
                State::Reverted | State::Discarded => return Err(ended(load, record.state.word())),
            }
            let part = sealed(load, record, expected)?.clone();
            if let Some(runs) = kept_for(&table, load, now()) {
                // Who waits stands in the record: an earlier attempt that wakes up meanwhile is refused.
                if table == read.value || self.write_table(&place, &read, &mut table).await? {
                    return Ok(Publishing::Kept(runs));
                }
                tries.again(&self.objects.address(&place.state())).await?;
                continue;
            }
            judge(load, later(load, &table), Vec::new())?;
            // Over what is there now: others may have added the same column meanwhile, or one that this load lacks.
            let changes = fit(load, table.head.as_ref()).map_err(|misfits| misfit(load, &misfits))?;
            let created = table.head.is_none();
            table.advance(load, created)?;
            if !load.advances.is_empty() {
                self.note(&place).await?;
            }
            let own = self.files_of(load, &place, &part, expected).await?;
            let own = own.into_iter().map(|file| Entry::new(&part, file)).collect();
            if load.mode == Mode::Append && table.head.as_ref().is_some_and(|head| evolve::differs(load, head)) {
                evolve::tell_apart(&mut table);
            }
            let taken = taken(load, &table);
            let (shape, entries, parts) = match (&table.head, load.mode) {
                (Some(head), Mode::Append) => {
                    let (entries, mut parts) = self.without(&place, head, taken.as_ref()).await?;
                    let mut shape = head.shape.clone();
                    parts.push(Part {
                        columns: Some(Shape::of(load).columns),
                        ..part.clone()
                    });
                    shape.columns = evolve::settle(&mut parts, &evolve::changed(&shape.columns, &changes));
                    (shape, [entries, own].concat(), parts)
                }
                (_, Mode::Append | Mode::Replace | Mode::Merge) => (Shape::of(load), own, vec![part.clone()]),
            };
            let mut head = self.manifest(&place, table.version + 1, shape, entries, parts).await?;
            // What is added to may have the same values.
            if created || load.mode == Mode::Replace {
                head.key.clone_from(&load.key);
            }
            let manifest = head.manifest.clone();
            let detail = make_visible(load, &mut table, head, taken, visible, &evolve::made(changes));
            if self.write_table(&place, &read, &mut table).await? {
                return Ok(done(visible, detail));
            }
            // If that was our own write, whose answer was lost, the manifest counts: the next look says so.
            let now_there = self.table(&place).await?.value;
            if !now_there.manifests().contains(&manifest) {
                self.objects.remove(&place.key(&manifest)).await?;
            }
            tries.again(&self.objects.address(&place.state())).await?;
        }
    }

    /// The files and parts of a version without those of one part.
    pub(super) async fn without(
        &self,
        place: &TablePlace,
        head: &Head,
        part: Option<&Part>,
    ) -> Result<(Vec<Entry>, Vec<Part>), Failure> {
        let key = place.key(&head.manifest);
        let Some(manifest) = self.fixed::<Manifest>(&key).await? else {
            return Err(Failure::permanent(format!(
                "destination {}: {}, which lists the files of {}, is gone; put back a copy of it",
                self.name,
                self.objects.address(&key),
                place.folder
            )));
        };
        let other = |area: &str| part.is_none_or(|part| part.area != area);
        let entries = manifest.files.into_iter().filter(|entry| other(&entry.area)).collect();
        let parts = head.parts.iter().filter(|part| other(&part.area)).cloned().collect();
        Ok((entries, parts))
    }

    /// The files of a part that comes back.
    pub(super) async fn entries_of(&self, place: &TablePlace, part: &Part) -> Result<Vec<Entry>, Failure> {
        let key = place.key(&part.list);
        match self.fixed::<List>(&key).await? {
            Some(list) => Ok(list.files.into_iter().map(|file| Entry::new(part, file)).collect()),
            None => Err(Failure::permanent(format!(
                "destination {}: {}, which lists files of run {}, is gone; put back a copy of it",
                self.name,
                self.objects.address(&key),
                part.run
            ))),
        }
    }

    /// Writes the manifest of a version that is to be.
    pub(super) async fn manifest(
        &self,
        place: &TablePlace,
        version: u64,
        shape: Shape,
        files: Vec<Entry>,
        parts: Vec<Part>,
    ) -> Result<Head, Failure> {
        let manifest = Manifest {
            version,
            table: place.folder.clone(),
            shape: shape.clone(),
            rows: files.iter().map(|file| file.rows).sum(),
            files,
        };
        let name = format!("_haulage/versions/{version:010}-{}.json", chance::boot());
        self.objects.put(&place.key(&name), json(&manifest)?).await?;
        Ok(Head {
            manifest: name,
            shape,
            parts,
            key: Vec::new(),
        })
    }
}

/// Who has published since the run whose rows this one replays. Its own replays append.
fn later(load: &LoadContext, table: &Table) -> Vec<Later> {
    let published = |record: &&Record| record.state == State::Published;
    let published: Vec<&Record> = table.records.iter().filter(published).collect();
    let is_mine = |record: &&&Record| load.origin.as_ref().is_some_and(|origin| record.run == origin.as_str());
    let Some(mine) = published.iter().filter(is_mine).map(|record| record.sequence).max() else {
        return Vec::new();
    };
    let later = published.into_iter().filter(|record| record.sequence > mine);
    later
        .map(|record| Later {
            run: record.run.clone(),
            replaced: record.mode == Mode::Replace
                || record.replaces.as_deref() == load.origin.as_ref().map(RunId::as_str),
            names_rows: true,
        })
        .collect()
}

/// What a rerun takes away of the run that it replaces.
fn taken(load: &LoadContext, table: &Table) -> Option<Part> {
    let replaced = load.replaces.as_ref().filter(|_| load.mode == Mode::Append)?;
    let parts = table.head.iter().flat_map(|head| &head.parts);
    let theirs: Vec<&Part> = parts.filter(|part| part.run == replaced.as_str()).collect();
    // A run has one load of a table.
    theirs.first().map(|part| (*part).clone())
}

fn make_visible(
    load: &LoadContext,
    table: &mut Table,
    head: Head,
    taken: Option<Part>,
    expected: Expected,
    changes: &[ColumnChange],
) -> String {
    let sequence = table
        .records
        .iter()
        .map(|record| record.sequence)
        .max()
        .unwrap_or_default()
        + 1;
    let before = table.head.replace(head);
    let words = match (&before, load.mode) {
        (None, _) => "in the new table",
        (Some(_), Mode::Replace) => "now in place of the old ones in",
        (Some(_), Mode::Append | Mode::Merge) => "appended to",
    };
    table.version += 1;
    let detail = format!(
        "{} {words} {}{}, version {}",
        counted(expected.rows, "row"),
        load.table,
        with_columns(changes),
        table.version
    );
    if let Some(record) = table.records.iter_mut().find(|record| record.is_of(load)) {
        record.state = State::Published;
        record.sequence = sequence;
        record.created = before.is_none();
        record.before = before.filter(|_| load.mode == Mode::Replace);
        record.taken = taken;
        record.detail.clone_from(&detail);
        record.published_at = Some(now());
    }
    detail
}

fn done(expected: Expected, detail: String) -> Publishing {
    Publishing::Done(StepReport {
        rows: expected.rows,
        detail,
        ..StepReport::default()
    })
}
