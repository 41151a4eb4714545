//! Watermarks of a table of files: they stand in its state, and so move in the one write that publishes or reverts. The
//! rules are those of the databases.
//!
//! Where the tables with watermarks are is known from notes, one for each table, in the destination's own folder. A note is
//! written before a watermark first is, and may lead to a table that has none, or is gone.

use chrono::{DateTime, Utc};
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::watermark::{Advance, Watermark};
use haulage_plan::definition::Mode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Files;
use super::documents::json;
use super::place::{NOTES, TablePlace};
use super::state::{State, Table, now};
use crate::sink::watermark::{Found, goes_on, stands_elsewhere, unknown_watermark};
use crate::sink::{LoadContext, runs_of};

/// A watermark of the table in whose state it stands. What its parts say is in [`Watermark`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) pipeline: String,
    pub(super) source: String,
    column: String,
    value: Option<String>,
    #[serde(default)]
    of: String,
    #[serde(default)]
    replaced_by: String,
    #[serde(default)]
    run: String,
    #[serde(default)]
    by: String,
    at: DateTime<Utc>,
}

/// Which table it is that has watermarks.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    table: String,
}

impl Mark {
    fn shown(&self, table: &str) -> Watermark {
        Watermark {
            destination: String::new(),
            pipeline: self.pipeline.clone(),
            source: self.source.clone(),
            table: table.to_owned(),
            column: self.column.clone(),
            value: self.value.clone(),
            of: self.of.clone(),
            replaced_by: self.replaced_by.clone(),
            run: self.run.clone(),
            by: self.by.clone(),
            at: self.at.format("%F %T").to_string(),
        }
    }
}

impl Table {
    fn mark(&mut self, pipeline: &str, source: &str) -> Option<&mut Mark> {
        let is_it = |mark: &&mut Mark| mark.pipeline == pipeline && mark.source == source;
        self.watermarks.iter_mut().find(is_it)
    }

    /// Moves the load's watermarks in the write that publishes it; other watermarks of a table that it replaces say nothing
    /// any more. Permanent failure if one stands elsewhere than the run found it, or the table has to be made anew.
    pub(super) fn advance(&mut self, load: &LoadContext, created: bool) -> Result<(), Failure> {
        for advance in &load.advances {
            let mark = self.mark(&load.pipeline, &advance.source);
            let found = mark.as_ref().map_or_else(Found::default, |mark| Found {
                value: mark.value.clone(),
                run: mark.run.clone(),
                by: mark.by.clone(),
            });
            goes_on(load, advance, &found, created)?;
            let moved = Mark {
                pipeline: load.pipeline.clone(),
                source: advance.source.clone(),
                column: advance.column.clone(),
                value: advance.to.clone(),
                of: advance.of.clone(),
                replaced_by: String::new(),
                run: load.run.as_str().to_owned(),
                by: String::new(),
                at: now(),
            };
            match mark {
                Some(mark) => *mark = moved,
                None => self.watermarks.push(moved),
            }
        }
        if load.mode == Mode::Replace {
            let own = |mark: &Mark| {
                mark.pipeline == load.pipeline && load.advances.iter().any(|advance| advance.source == mark.source)
            };
            for mark in self.watermarks.iter_mut().filter(|mark| !own(mark)) {
                if mark.value.is_some() && mark.replaced_by.is_empty() {
                    load.run.as_str().clone_into(&mut mark.replaced_by);
                }
            }
        }
        if let Some(record) = self.records.iter_mut().find(|record| record.is_of(load)) {
            record.advances.clone_from(&load.advances);
        }
        Ok(())
    }

    /// Puts the watermarks back that the load's publish has moved, in the write that undoes it: also one that somebody has
    /// set since, or the rows that go would never be read again.
    pub(super) fn put_back(&mut self, load: &LoadContext) {
        let made = self.record(load).map(|record| record.advances.clone());
        for advance in made.unwrap_or_default() {
            if let Some(mark) = self.mark(&load.pipeline, &advance.source) {
                mark.value = advance.found;
                mark.run.clear();
                mark.by = format!("revert of {}", load.run);
                mark.at = now();
            }
        }
        for mark in &mut self.watermarks {
            if mark.replaced_by == load.run.as_str() {
                mark.replaced_by.clear();
            }
        }
    }

    /// Sets a watermark that stands at `was`, or makes one that has a column.
    fn set(&mut self, wanted: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        let made = match self.mark(&wanted.pipeline, &wanted.source) {
            Some(mark) if mark.value.as_deref() != was => return Err(stands_elsewhere(wanted)),
            None if wanted.column.is_empty() => return Err(unknown_watermark(wanted)),
            Some(mark) => {
                mark.value.clone_from(&wanted.value);
                if !wanted.column.is_empty() {
                    mark.column.clone_from(&wanted.column);
                }
                mark.run.clear();
                mark.of.clear();
                mark.replaced_by.clear();
                mark.by.clone_from(&wanted.by);
                mark.at = now();
                return Ok(());
            }
            None => Mark {
                pipeline: wanted.pipeline.clone(),
                source: wanted.source.clone(),
                column: wanted.column.clone(),
                value: wanted.value.clone(),
                of: String::new(),
                replaced_by: String::new(),
                run: String::new(),
                by: wanted.by.clone(),
                at: now(),
            },
        };
        self.watermarks.push(made);
        Ok(())
    }

    /// Whether it stands as somebody wants to set it.
    fn is_set(&mut self, wanted: &Watermark) -> bool {
        let mark = self.mark(&wanted.pipeline, &wanted.source);
        mark.is_some_and(|mark| mark.value == wanted.value && mark.by == wanted.by && mark.run.is_empty())
    }
}

impl Files {
    /// Those of the load's pipeline and table.
    pub(super) async fn marks_of(&self, load: &LoadContext) -> Result<Vec<Watermark>, Failure> {
        let place = TablePlace::parse(&load.table)?;
        self.marks(&place, Some(&load.pipeline)).await
    }

    /// See [`crate::sink::Destination::published_before`].
    pub(super) async fn read_publisher(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        if !self.objects.exists().await? {
            return Ok(None);
        }
        let table = self.table(&TablePlace::parse(&load.table)?).await?.value;
        let runs = runs_of(load);
        let mut parts = table.head.iter().flat_map(|head| head.parts.iter().rev());
        Ok(parts
            .find(|part| part.run.starts_with(&runs))
            .map(|part| part.run.clone()))
    }

    async fn marks(&self, place: &TablePlace, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        if !self.objects.exists().await? {
            return Ok(Vec::new());
        }
        let table = self.table(place).await?.value;
        let marks = table.watermarks.iter();
        let wanted = marks.filter(|mark| pipeline.is_none_or(|pipeline| mark.pipeline == pipeline));
        Ok(wanted.map(|mark| mark.shown(&place.folder)).collect())
    }

    /// Every watermark here, of one pipeline or of all.
    pub(super) async fn all_marks(&self, pipeline: Option<&str>) -> Result<Vec<Watermark>, Failure> {
        let mut marks = Vec::new();
        if !self.objects.exists().await? {
            return Ok(marks);
        }
        for key in self.objects.list(NOTES).await? {
            if !key.ends_with(".json") {
                continue;
            }
            let Some(note) = self.fixed::<Note>(&key).await? else {
                continue;
            };
            marks.extend(self.marks(&TablePlace::parse(&note.table)?, pipeline).await?);
        }
        marks.sort_by(|a, b| (&a.pipeline, &a.table, &a.source).cmp(&(&b.pipeline, &b.table, &b.source)));
        Ok(marks)
    }

    /// Before a table has its first watermark, so that none is ever overlooked.
    pub(super) async fn note(&self, place: &TablePlace) -> Result<(), Failure> {
        let hash = Sha256::digest(place.folder.as_bytes());
        let name: String = hash.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
        let note = Note {
            table: place.folder.clone(),
        };
        self.objects.put(&format!("{NOTES}{name}.json"), json(&note)?).await
    }

    pub(super) async fn read_advances(&self, run: &RunId, load: &LoadContext) -> Result<Vec<Advance>, Failure> {
        let place = TablePlace::parse(&load.table)?;
        if !self.objects.exists().await? {
            return Ok(Vec::new());
        }
        let records = self.table(&place).await?.value.records;
        let made = records.into_iter().find(|record| {
            record.run == run.as_str() && record.load == load.load.as_str() && record.state == State::Published
        });
        Ok(made.map(|record| record.advances).unwrap_or_default())
    }

    pub(super) async fn write_watermark(&self, mark: &Watermark, was: Option<&str>) -> Result<(), Failure> {
        let place = TablePlace::parse(&mark.table)?;
        if !mark.column.is_empty() {
            self.note(&place).await?;
        }
        let mut tried = false;
        self.change(&place, |table| {
            // After a lost answer the next look finds one's own.
            if std::mem::replace(&mut tried, true) && table.is_set(mark) {
                return Ok(());
            }
            table.set(mark, was)
        })
        .await
    }
}
