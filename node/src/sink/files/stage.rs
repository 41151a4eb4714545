//! The staging area of files: a record, and a document for each chunk that has begun.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::Marker;
use haulage_core::event::StepReport;
use haulage_core::failure::{Class, Failure};
use haulage_core::ids::{Attempt, ChunkId};

use super::Files;
use super::objects::{AT_ONCE, Sight};
use super::place::{Area, TablePlace};
use super::state::{Chunk, File, State, ended, must_be_staged};
use super::target::{fit, misfit};
use crate::sink::LoadContext;
use crate::sink::fence::too_late;

/// Loads that are kept in mind.
const LOADS: usize = 64;

/// Of loads, by table and area: how the state looked in which each was last found to take chunks, and its round there.
pub(super) type Found = HashMap<(String, String), (Sight, u32)>;

impl Files {
    pub(super) async fn make_staging(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let area = Area::of(load);
        let read = self.table(&place).await?;
        let opens = read.value.record(load).is_some_and(|record| {
            load.round > record.round && matches!(record.state, State::Staged | State::Sealing | State::Sealed)
        });
        if opens {
            // Before the area is open: markers of which a file is gone are of no use to who begins there.
            self.drop_lost(&place, &area).await?;
        }
        self.change(&place, |table| {
            let head = table.head.clone();
            let fresh = table.record(load).is_none();
            let record = table.claim(load, "prepare", State::Staged)?;
            if matches!(record.state, State::Reverted | State::Discarded) {
                return Err(ended(load, record.state.word()));
            }
            if load.round > record.round && record.state != State::Published {
                record.round = load.round;
                record.state = State::Staged;
                record.part = None;
                record.set_aside = None;
            }
            if fresh {
                fit(load, head.as_ref()).map_err(|misfits| misfit(load, &misfits))?;
            }
            Ok(())
        })
        .await?;
        Ok(StepReport {
            rows: 0,
            detail: format!("staging in {} for {}", area.data().trim_end_matches('/'), load.table),
            ..StepReport::default()
        })
    }

    /// The documents of the chunks that have begun. What is being written beside them has another ending.
    pub(super) async fn chunks(&self, place: &TablePlace, area: &Area) -> Result<Vec<String>, Failure> {
        let mut keys = self.objects.list(&place.key(&area.chunks())).await?;
        keys.retain(|key| key.ends_with(".json"));
        Ok(keys)
    }

    /// Drops all markers of a chunk of which a file is not what it was.
    async fn drop_lost(&self, place: &TablePlace, area: &Area) -> Result<(), Failure> {
        for key in self.chunks(place, area).await? {
            let chunk: Chunk = self.document(&key).await?.value;
            let files: Vec<File> = chunk
                .segments
                .iter()
                .flat_map(|segment| segment.files.clone())
                .collect();
            if self.lost(place, &files).await?.is_some() {
                self.change_chunk(&key, |chunk| {
                    chunk.segments.clear();
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }

    /// One of these files that isn't there as it was written, if there is one.
    pub(super) async fn lost(&self, place: &TablePlace, files: &[File]) -> Result<Option<String>, Failure> {
        let twins = files.iter().filter_map(|file| file.twin.as_ref());
        let twins = twins.map(|twin| (place.key(&twin.path), twin.bytes));
        let all: Vec<(String, u64)> = files
            .iter()
            .map(|file| (place.key(&file.path), file.bytes))
            .chain(twins)
            .collect();
        let looks: Vec<_> = all
            .iter()
            .map(|(key, bytes)| async move {
                let found = self.objects.size(key).await?;
                Ok::<_, Failure>((found != Some(*bytes)).then(|| self.objects.address(key)))
            })
            .collect();
        let found: Vec<Option<String>> = stream::iter(looks).buffer_unordered(2 * AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().min())
    }

    pub(super) async fn begin_chunk(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Vec<Marker>, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let key = place.key(&Area::of(load).chunk(chunk));
        let round = self.staged_round(load, &place).await?;
        let markers = self
            .change_chunk(&key, |document| {
                if document.epoch > load.epoch.0 || document.attempt > attempt.0 {
                    return Err(too_late(load, chunk, attempt));
                }
                match document.sealed {
                    Some(sealed) if sealed >= round => return Err(ended(load, State::Sealed.word())),
                    Some(_) | None => {}
                }
                let segments = std::mem::take(&mut document.segments);
                *document = Chunk {
                    epoch: load.epoch.0,
                    attempt: attempt.0,
                    segments,
                    ..Chunk::of(chunk)
                };
                Ok(document.markers(chunk))
            })
            .await?;
        // Whoever seals or discards changes the record first and looks for chunks then: of two that meet here, one sees
        // the other.
        if let Err(failure) = self.staged_round(load, &place).await {
            if failure.class == Class::Fenced {
                self.forget_chunk(&key, load, &self.table(&place).await?.value).await;
            }
            return Err(failure);
        }
        Ok(markers)
    }

    /// The round of a load that takes chunks. `Fenced` if it takes none.
    ///
    /// Every segment asks this of a state that grows with the table's runs. It is read again only if it has changed since the
    /// load was last found in it: rounds and states of a record only go forward, so what was true of a state that looks the
    /// same before and after is true of it now.
    pub(super) async fn staged_round(&self, load: &LoadContext, place: &TablePlace) -> Result<u32, Failure> {
        let sight = self.objects.sight(&place.state()).await?;
        let area = (place.folder.clone(), Area::of(load).id);
        if let Some(sight) = &sight
            && let Some((known, round)) = self.found().get(&area)
            && known == sight
        {
            return Ok(*round);
        }
        let round = must_be_staged(load, &self.table(place).await?.value)?.round;
        if let Some(sight) = sight {
            let mut found = self.found();
            if found.len() >= LOADS {
                found.clear();
            }
            found.insert(area, (sight, round));
        }
        Ok(round)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away a chunk's document that has come after the discard.
    async fn forget_chunk(&self, key: &str, load: &LoadContext, table: &super::state::Table) {
        let gone = table.record(load).is_none_or(|record| record.state == State::Discarded);
        if gone && let Err(failure) = self.objects.remove(key).await {
            tracing::debug!(load = %load.load, %failure, "a chunk's document is left after a discard");
        }
    }
}
