//! Going back: revert, discard and cleanup. All three can be repeated, tolerate that there is nothing to do, and leave a
//! tombstone that fences whatever comes late.
//!
//! Files are removed only after the state says that nobody needs them. A crash between the two leaves them in the state's
//! list of garbage, and the next cleanup removes them.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::definition::Mode;

use super::Files;
use super::documents::Tries;
use super::evolve;
use super::objects::{remove_all, remove_folder};
use super::place::{Area, NOTES, TablePlace};
use super::recall::{Reach, free, may_undo, report};
use super::state::{Head, Part, State, Table};
use super::verify::paths;
use crate::sink::{Expected, LoadContext};

/// Manifests of so many newest versions stay, for readers that have just looked which is the newest.
const MANIFESTS: u64 = 8;

fn nothing_to_undo() -> StepReport {
    report("there is no such place, so there is nothing to undo".to_owned())
}

impl Files {
    pub(super) async fn revert_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        if !self.objects.exists().await? {
            return Ok(nothing_to_undo());
        }
        let mut tries = Tries::new();
        loop {
            let read = self.table(&place).await?;
            let mut table = read.value.clone();
            let record = table.claim(load, "revert", State::Reverted)?;
            let rows = record.part.as_ref().map_or(0, |part| part.rows);
            let detail = match record.state {
                State::Published => {
                    let record = record.clone();
                    let reach = may_undo(load, &table, &record)?;
                    if record.taken.as_ref().is_some_and(|part| part.columns.is_some()) {
                        evolve::tell_apart(&mut table);
                    }
                    let head = match (&table.head, record.mode) {
                        _ if record.created && reach == Reach::Whole => None,
                        (_, Mode::Replace | Mode::Merge) => record.before.clone(),
                        (None, Mode::Append) => None,
                        (Some(head), Mode::Append) => Some(
                            self.taken_out(&place, &table, head, record.part.as_ref(), record.taken.as_ref())
                                .await?,
                        ),
                    };
                    table.head = head;
                    table.version += 1;
                    table.put_back(load);
                    if let Some(record) = table.hold(load, "revert")? {
                        record.state = State::Reverted;
                        record.before = None;
                        record.taken = None;
                    }
                    format!("{} is as it was", load.table)
                }
                State::Staged | State::Sealing | State::Sealed => {
                    record.state = State::Reverted;
                    format!("nothing was published to {}", load.table)
                }
                State::Reverted | State::Discarded => format!("nothing is published to {}", load.table),
            };
            if table == read.value || self.write_table(&place, &read, &mut table).await? {
                return Ok(StepReport { rows, ..report(detail) });
            }
            tries.again(&self.objects.address(&place.state())).await?;
        }
    }

    /// The version without a part, and with one that it had replaced.
    async fn taken_out(
        &self,
        place: &TablePlace,
        table: &Table,
        head: &Head,
        part: Option<&Part>,
        back: Option<&Part>,
    ) -> Result<Head, Failure> {
        let (mut entries, mut parts) = self.without(place, head, part).await?;
        if let Some(back) = back {
            entries.extend(self.entries_of(place, back).await?);
            evolve::put_back(table, &mut parts, back.clone());
        }
        let mut shape = head.shape.clone();
        shape.columns = evolve::settle(&mut parts, &head.shape.columns);
        self.manifest(place, table.version + 1, shape, entries, parts).await
    }

    pub(super) async fn discard_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let Ok(place) = TablePlace::parse(&load.table) else {
            return Ok(nothing_to_undo());
        };
        if !self.objects.exists().await? {
            return Ok(nothing_to_undo());
        }
        let area = Area::of(load);
        let published = self
            .change(&place, |table| {
                let record = table.claim(load, "discard", State::Discarded)?;
                let published = record.state == State::Published;
                if published {
                    // Somebody has abandoned its revert: nothing of it will be taken back any more.
                    free(record, u32::MAX);
                } else {
                    record.state = State::Discarded;
                    record.part = None;
                }
                Ok(published)
            })
            .await?;
        self.remove_staging(&place, &area).await?;
        if !published {
            self.remove_area(&place, &area.id).await?;
        }
        Ok(report(
            if published {
                "staging dropped; the load stays published"
            } else {
                "staging dropped"
            }
            .to_owned(),
        ))
    }

    pub(super) async fn clean_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let cleaned = self
            .change(&place, |table| {
                let Some(record) = table.hold(load, "cleanup")? else {
                    return Ok(None);
                };
                if record.state != State::Published {
                    return Ok(None);
                }
                record.settled = true;
                let part = record.part.clone();
                let dropped = forget_older(table, load);
                table.forget();
                Ok(Some((part, dropped, table.clone())))
            })
            .await?;
        let Some((part, dropped, table)) = cleaned else {
            return Ok(report("nothing is published, so nothing was dropped".to_owned()));
        };
        let area = Area::of(load);
        self.remove_staging(&place, &area).await?;
        if let Some(part) = &part {
            self.remove_orphans(load, &place, part).await?;
        }
        self.remove_garbage(&place, &table).await?;
        for folder in [&place.key("_haulage/"), NOTES] {
            self.objects.forget_unfinished(folder).await?;
        }
        Ok(report(format!(
            "staging dropped, and what {} had replaced or changed",
            counted(dropped as u64, "run")
        )))
    }

    async fn remove_staging(&self, place: &TablePlace, area: &Area) -> Result<(), Failure> {
        remove_folder(self.objects.as_ref(), &place.key(&area.staging())).await
    }

    async fn remove_area(&self, place: &TablePlace, area: &str) -> Result<(), Failure> {
        let area = Area { id: area.to_owned() };
        remove_folder(self.objects.as_ref(), &place.key(&area.data())).await?;
        let begins = place.key(&area.lists());
        let lists = self.objects.list(&place.key("_haulage/lists/")).await?;
        let lists = lists.into_iter().filter(|key| key.starts_with(&begins)).collect();
        remove_all(self.objects.as_ref(), lists).await
    }

    /// Files of attempts that came to nothing, which no marker names.
    async fn remove_orphans(&self, load: &LoadContext, place: &TablePlace, part: &Part) -> Result<(), Failure> {
        let expected = Expected {
            rows: part.rows,
            segments: part.segments,
        };
        let area = Area { id: part.area.clone() };
        let there = self.objects.list(&place.key(&area.data())).await?;
        if there.is_empty() {
            return Ok(());
        }
        let files = self.files_of(load, place, part, expected).await?;
        let known = paths(&files);
        let relative = |key: &String| {
            key.strip_prefix(&place.folder)
                .map(|key| key.trim_start_matches('/').to_owned())
        };
        let orphans = there
            .into_iter()
            .filter(|key| relative(key).is_none_or(|path| !known.contains(path.as_str())));
        remove_all(self.objects.as_ref(), orphans.collect()).await
    }

    async fn remove_garbage(&self, place: &TablePlace, table: &Table) -> Result<(), Failure> {
        for area in &table.garbage {
            self.remove_area(place, area).await?;
        }
        if !table.garbage.is_empty() {
            self.change(place, |now| {
                now.garbage.retain(|area| !table.garbage.contains(area));
                Ok(())
            })
            .await?;
        }
        // One of a version that isn't there yet may be about to be named; of those that are past, only named ones count.
        let named = table.manifests();
        let past = |key: &str| {
            let name = key.strip_prefix(&place.versions());
            let number = name.and_then(|name| name.split('-').next()?.parse::<u64>().ok());
            number.is_some_and(|number| number + MANIFESTS <= table.version)
        };
        let keys = self.objects.list(&place.versions()).await?;
        let old = keys
            .into_iter()
            .filter(|key| past(key) && !named.iter().any(|name| place.key(name) == *key));
        remove_all(self.objects.as_ref(), old.collect()).await
    }
}

/// Of published runs that newer ones have left behind, what only their reverts would need is dropped. A run that isn't
/// settled may still fail and revert by itself, and one that is recalled is about to be. Returns of how many.
fn forget_older(table: &mut Table, load: &LoadContext) -> usize {
    let mut published: Vec<usize> = (0..table.records.len())
        .filter(|place| {
            let record = &table.records[*place];
            record.state == State::Published && record.settled
        })
        .collect();
    published.sort_by_key(|place| std::cmp::Reverse(table.records[*place].sequence));
    let kept = usize::try_from(load.keep_previous).unwrap_or(usize::MAX);
    let mut dropped = 0;
    let mut spare: Vec<String> = Vec::new();
    for place in published.into_iter().skip(kept) {
        let record = &mut table.records[place];
        if record.cleaned || record.recalled.is_some() {
            continue;
        }
        record.cleaned = true;
        let before = record.before.take().into_iter().flat_map(|head| head.parts);
        spare.extend(before.chain(record.taken.take()).map(|part| part.area));
        dropped += 1;
    }
    for area in spare {
        if !table.needs(&area) && !table.garbage.contains(&area) {
            table.garbage.push(area);
        }
    }
    dropped
}
