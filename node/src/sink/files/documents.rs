//! The documents of a destination of files: read, and written on condition that they are still what was read.
//!
//! A document that is damaged, of a later release or gone where others of its table stand is an error, and never an empty
//! one in its place.

use bytes::Bytes;
use haulage_core::failure::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Files;
use super::objects::Tag;
use super::place::TablePlace;
use super::state::{Chunk, FORMAT, Table};
use crate::chance::Backoff;

/// How often a decision is made again before the others have it.
const TRIES: u32 = 60;

/// A document as it was read.
#[derive(Debug, Clone)]
pub(super) struct Read<T> {
    pub(super) value: T,
    tag: Option<Tag>,
}

/// What every release says first of what it has written.
#[derive(Deserialize)]
struct Written {
    format: u32,
}

impl Files {
    /// A table's state; an empty one if there is none. Permanent failure if it is of a later release, damaged, or gone.
    pub(super) async fn table(&self, place: &TablePlace) -> Result<Read<Table>, Failure> {
        let key = place.state();
        let Some((data, tag)) = self.objects.get(&key).await? else {
            self.must_be_new(place).await?;
            return Ok(Read {
                value: Table::default(),
                tag: None,
            });
        };
        // Before anything else of it, which may be otherwise there.
        let written: Written = self.parsed(&key, &data)?;
        if written.format > FORMAT {
            return Err(Failure::permanent(format!(
                "destination {}: {} is of a later release of Haulage (its format is {}, and this release knows {FORMAT}); \
                 upgrade this node",
                self.name,
                self.objects.address(&key),
                written.format
            )));
        }
        Ok(Read {
            value: self.parsed(&key, &data)?,
            tag: Some(tag),
        })
    }

    /// Refuses to take a table for a new one of which only the state is gone.
    async fn must_be_new(&self, place: &TablePlace) -> Result<(), Failure> {
        let versions = self.objects.list(&place.versions()).await?;
        let Some(version) = versions.iter().max() else {
            return Ok(());
        };
        Err(Failure::permanent(format!(
            "destination {}: {} is gone, and {} is there, so the table was not dropped; put back a copy of the former, or \
             remove all of the table's folder if it is to begin anew",
            self.name,
            self.objects.address(&place.state()),
            self.objects.address(version)
        )))
    }

    /// A document; the default one if there is none.
    pub(super) async fn document<T: DeserializeOwned + Default>(&self, key: &str) -> Result<Read<T>, Failure> {
        match self.objects.get(key).await? {
            None => Ok(Read {
                value: T::default(),
                tag: None,
            }),
            Some((data, tag)) => Ok(Read {
                value: self.parsed(key, &data)?,
                tag: Some(tag),
            }),
        }
    }

    /// A document that never changes. None if it is gone.
    pub(super) async fn fixed<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Failure> {
        match self.objects.get(key).await? {
            None => Ok(None),
            Some((data, _)) => self.parsed(key, &data).map(Some),
        }
    }

    fn parsed<T: DeserializeOwned>(&self, key: &str, data: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(data).map_err(|error| {
            Failure::permanent(format!(
                "destination {}: {} is damaged ({error}); put back a copy of it, Haulage itself writes it whole or not at all",
                self.name,
                self.objects.address(key)
            ))
        })
    }

    /// Writes a document on condition that it is what was read.
    pub(super) async fn write<T: Serialize>(&self, key: &str, read: &Read<T>, value: &T) -> Result<bool, Failure> {
        self.objects.swap(key, read.tag.as_ref(), json(value)?).await
    }

    /// The same for a table's state.
    pub(super) async fn write_table(
        &self,
        place: &TablePlace,
        read: &Read<Table>,
        table: &mut Table,
    ) -> Result<bool, Failure> {
        table.format = table.written_as();
        self.write(&place.state(), read, table).await
    }

    /// Changes a table's state by a decision, which may be made several times. Where it changes nothing, nothing is
    /// written; where it fails, neither.
    pub(super) async fn change<R>(
        &self,
        place: &TablePlace,
        mut decide: impl FnMut(&mut Table) -> Result<R, Failure> + Send,
    ) -> Result<R, Failure> {
        let mut tries = Tries::new();
        loop {
            let read = self.table(place).await?;
            let mut table = read.value.clone();
            let decided = decide(&mut table)?;
            if table == read.value {
                return Ok(decided);
            }
            if self.write_table(place, &read, &mut table).await? {
                return Ok(decided);
            }
            tries.again(&self.objects.address(&place.state())).await?;
        }
    }

    /// The same for a chunk's document.
    pub(super) async fn change_chunk<R>(
        &self,
        key: &str,
        mut decide: impl FnMut(&mut Chunk) -> Result<R, Failure> + Send,
    ) -> Result<R, Failure> {
        let mut tries = Tries::new();
        loop {
            let read: Read<Chunk> = self.document(key).await?;
            let mut chunk = read.value.clone();
            let decided = decide(&mut chunk)?;
            if chunk == read.value || self.write(key, &read, &chunk).await? {
                return Ok(decided);
            }
            tries.again(&self.objects.address(key)).await?;
        }
    }
}

/// A document's text.
pub(super) fn json<T: Serialize>(value: &T) -> Result<Bytes, Failure> {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => Ok(text.into()),
        Err(error) => Err(Failure::permanent(format!(
            "a document can't be written as JSON: {error}"
        ))),
    }
}

/// How often somebody else was faster.
pub(super) struct Tries {
    left: u32,
    backoff: Backoff,
}

impl Tries {
    pub(super) fn new() -> Self {
        let (first, limit) = (
            std::time::Duration::from_millis(5),
            std::time::Duration::from_millis(500),
        );
        Self {
            left: TRIES,
            backoff: Backoff::new(first, limit),
        }
    }

    /// Waits before the next try. Transient failure if there have been too many.
    pub(super) async fn again(&mut self, address: &str) -> Result<(), Failure> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(Failure::transient(format!(
                "{address} was changed by others {TRIES} times before it could be written"
            )));
        };
        self.left = left;
        tokio::time::sleep(self.backoff.wait()).await;
        Ok(())
    }
}
