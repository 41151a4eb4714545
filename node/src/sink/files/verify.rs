//! Verify: takes no more chunks, counts what is there, and proves that the key is a key.
//!
//! The record changes first, then the chunks: a commit that is under way meets a sealed chunk, or is counted. What was
//! found is written down as a list, and only that is ever published.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use serde::{Deserialize, Serialize};

use super::Files;
use super::documents::json;
use super::objects::AT_ONCE;
use super::place::{Area, TablePlace};
use super::state::{Chunk, File, Part, Record, Segment, State, ended, same_round};
use crate::chance;
use crate::sink::aside::{left, words};
use crate::sink::name::quote;
use crate::sink::staged::Staged;
use crate::sink::{Expected, LoadContext};

/// The files of a load that is verified. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct List {
    pub(super) files: Vec<File>,
}

impl Files {
    pub(super) async fn verify_load(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let record = self.seal_record(load, &place).await?;
        if record.state == State::Published {
            return Ok(StepReport {
                rows: record.part.map_or(0, |part| part.rows),
                detail: "already published".to_owned(),
                ..StepReport::default()
            });
        }
        let mut files = self.sealed_files(load, &place, expected, record.round).await?;
        if let (Some(_), Some(part)) = (&record.set_aside, &record.part) {
            files = self.files_of(load, &place, part, expected).await?;
            if let Some(lost) = self.lost(&place, &files).await? {
                return Err(staged(load, expected).gone(&lost, "rows were staged"));
            }
        }
        let left = left(expected, record.set_aside.as_ref());
        let rows = files.iter().map(|file| file.rows).sum();
        staged(load, left).counted(rows)?;
        self.prove_key(load, &place, &files, left).await?;
        if record.state != State::Sealed {
            self.write_down(load, &place, files, expected).await?;
        }
        Ok(StepReport {
            rows,
            detail: format!(
                "{} staged for {}{}",
                counted(rows, "row"),
                load.table,
                words(record.set_aside.as_ref())
            ),
            ..StepReport::default()
        })
    }

    /// Moves the record on, so that it takes no more chunks. What it is then.
    pub(super) async fn seal_record(&self, load: &LoadContext, place: &TablePlace) -> Result<Record, Failure> {
        self.change(place, |table| {
            let Some(record) = table.hold(load, "verify")? else {
                return Err(ended(load, "not prepared"));
            };
            same_round(load, record)?;
            match record.state {
                State::Staged => record.state = State::Sealing,
                State::Sealing | State::Sealed | State::Published => {}
                State::Reverted | State::Discarded => return Err(ended(load, record.state.word())),
            }
            Ok(record.clone())
        })
        .await
    }

    /// The files that chunks have staged, all of them, held against what was reported.
    pub(super) async fn sealed_files(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        expected: Expected,
        round: u32,
    ) -> Result<Vec<File>, Failure> {
        let segments = self.seal(place, &Area::of(load), round).await?;
        let staged = staged(load, expected);
        staged.marked(Expected {
            rows: segments.iter().map(|segment| segment.rows).sum(),
            segments: segments.len() as u64,
        })?;
        let files: Vec<File> = segments.into_iter().flat_map(|segment| segment.files).collect();
        if let Some(lost) = self.lost(place, &files).await? {
            return Err(staged.gone(&lost, "rows were staged"));
        }
        staged.counted(files.iter().map(|file| file.rows).sum())?;
        Ok(files)
    }

    /// Seals every chunk that has begun; returns their segments, in order.
    async fn seal(&self, place: &TablePlace, area: &Area, round: u32) -> Result<Vec<Segment>, Failure> {
        let keys = self.chunks(place, area).await?;
        let seals: Vec<_> = keys
            .iter()
            .map(|key| {
                self.change_chunk(key, move |chunk| {
                    // One that a discard has removed meanwhile is not made again.
                    if chunk.begun().is_some() {
                        chunk.sealed = Some(chunk.sealed.map_or(round, |sealed| sealed.max(round)));
                    }
                    Ok(chunk.clone())
                })
            })
            .collect();
        let mut chunks: Vec<Chunk> = stream::iter(seals).buffer_unordered(AT_ONCE).try_collect().await?;
        chunks.sort_by_key(|chunk| (chunk.stage, chunk.index));
        let mut segments = Vec::new();
        for chunk in &mut chunks {
            chunk.segments.sort_by_key(|segment| segment.segment);
            segments.append(&mut chunk.segments);
        }
        Ok(segments)
    }

    /// Writes down what is sealed: only that is ever published.
    pub(super) async fn write_down(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        files: Vec<File>,
        expected: Expected,
    ) -> Result<(), Failure> {
        let area = Area::of(load);
        let files = self.with_columns(load, place, files).await?;
        let list = format!("{}{}.json", area.lists(), chance::boot());
        self.objects.put(&place.key(&list), json(&List { files })?).await?;
        let part = Part {
            run: load.run.as_str().to_owned(),
            area: area.id,
            list,
            rows: expected.rows,
            segments: expected.segments,
            // Known when it comes among others.
            columns: None,
        };
        self.change(place, |table| {
            let Some(record) = table.hold(load, "verify")? else {
                return Err(ended(load, "gone"));
            };
            same_round(load, record)?;
            match record.state {
                State::Sealing => {
                    record.part = Some(part.clone());
                    record.state = State::Sealed;
                    Ok(())
                }
                State::Sealed | State::Published => Ok(()),
                State::Staged | State::Reverted | State::Discarded => Err(ended(load, record.state.word())),
            }
        })
        .await
    }

    async fn prove_key(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        files: &[File],
        expected: Expected,
    ) -> Result<(), Failure> {
        if load.key.is_empty() || expected.rows == 0 {
            return Ok(());
        }
        let values: Vec<String> = load
            .key
            .iter()
            .map(|key| format!("CAST({} AS text)", quote(key)))
            .collect();
        let names: Vec<String> = load.key.iter().map(|key| quote(key)).collect();
        let question = format!(
            "SELECT {} FROM staged GROUP BY {} HAVING count(*) > 1 LIMIT 1",
            values.join(", "),
            names.join(", ")
        );
        let Some(double) = self.question(load, place, files, &question.into()).await? else {
            return Ok(());
        };
        let values: Vec<String> = double
            .into_iter()
            .map(|value| value.unwrap_or_else(|| "NULL".to_owned()))
            .collect();
        Err(Failure::permanent(format!(
            "load {}: key ({})=({}) is there more than once among the run's rows; make it unique in the step, or reject what is \
             double",
            load.load,
            load.key.join(", "),
            values.join(", ")
        )))
    }

    /// The files of a part, from its list. `StagingLost` if that is gone.
    pub(super) async fn files_of(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        part: &Part,
        expected: Expected,
    ) -> Result<Vec<File>, Failure> {
        let key = place.key(&part.list);
        match self.fixed::<List>(&key).await? {
            Some(list) => Ok(list.files),
            None => Err(staged(load, expected).gone(&self.objects.address(&key), "files are listed")),
        }
    }
}

/// What is sealed, held against what the chunks reported.
pub(super) fn sealed<'a>(load: &LoadContext, record: &'a Record, expected: Expected) -> Result<&'a Part, Failure> {
    let Some(part) = &record.part else {
        return Err(Failure::permanent(format!(
            "load {} is not verified; verify it before publishing",
            load.load
        )));
    };
    staged(load, left(expected, record.set_aside.as_ref())).marked(Expected {
        rows: part.rows,
        segments: part.segments,
    })?;
    Ok(part)
}

pub(super) fn staged(load: &LoadContext, expected: Expected) -> Staged<'_> {
    Staged {
        load,
        expected,
        lost_by: "",
    }
}

/// Paths, to tell apart which files somebody knows.
pub(super) fn paths(files: &[File]) -> BTreeSet<&str> {
    files.iter().map(|file| file.path.as_str()).collect()
}
