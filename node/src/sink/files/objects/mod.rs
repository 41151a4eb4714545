//! What a destination of files needs of the place where they are: objects that are written whole, and one kind of write
//! that only happens if the object is still what its writer has read.
//!
//! Everything exactly-once stands on that conditional write. Of two writers who have read the same, one succeeds and the
//! other is told so: S3's `If-Match` and `If-None-Match`, or a lock on a local disk. A server that takes such a request and
//! ignores its condition would lose rows without a word, so each process asks it first, see [`s3`].

mod local;
mod s3;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::failure::Failure;

pub(super) use local::Local;
pub(super) use s3::S3;

/// Requests at once where many objects are written, looked at or removed.
pub(super) const AT_ONCE: usize = 8;

/// What an object was when it was read; equal for equal contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag(String);

/// What an object looks like without being read. If it looks the same again, nobody has written it in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sight(String);

/// Objects below a root, by keys of `/`-separated parts.
#[async_trait]
pub(super) trait Objects: Send + Sync {
    /// An object with what a conditional write needs; `None` if there is none.
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Tag)>, Failure>;

    /// An object's size in bytes; `None` if there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>, Failure>;

    /// What an object looks like. None if there is none, or if it was written so recently that another write might not show.
    async fn sight(&self, key: &str) -> Result<Option<Sight>, Failure>;

    /// Writes an object that nobody else writes, whole or not at all. Durable when it returns.
    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure>;

    /// Writes an object if it is what `read` says, or if there is none and that is `None`. False if it isn't: nothing is
    /// written then. After a lost answer it may say false of its own write.
    async fn swap(&self, key: &str, read: Option<&Tag>, data: Bytes) -> Result<bool, Failure>;

    /// Removes an object; that it isn't there is no failure.
    async fn remove(&self, key: &str) -> Result<(), Failure>;

    /// The keys that begin with a folder, which ends with `/`.
    async fn list(&self, folder: &str) -> Result<Vec<String>, Failure>;

    /// What a folder leaves behind when its last object is gone, if the place has such a thing.
    async fn forget_folder(&self, folder: &str) -> Result<(), Failure>;

    /// Removes what writers that have died long ago had begun in a folder, if the place has such a thing.
    async fn forget_unfinished(&self, folder: &str) -> Result<(), Failure>;

    /// A failure if the place itself can't be used.
    async fn check(&self) -> Result<(), Failure>;

    /// Whether there is such a place at all: where there is none, nothing has to be undone.
    async fn exists(&self) -> Result<bool, Failure>;

    /// What tells this place from others, under all its names.
    async fn identity(&self) -> String;

    /// An object as a person finds it.
    fn address(&self, key: &str) -> String;
}

/// Removes objects, several at once.
pub(super) async fn remove_all(objects: &dyn Objects, keys: Vec<String>) -> Result<(), Failure> {
    let removals: Vec<_> = keys.iter().map(|key| objects.remove(key)).collect();
    stream::iter(removals).buffer_unordered(AT_ONCE).try_collect().await
}

/// Removes everything in a folder, which ends with `/`.
pub(super) async fn remove_folder(objects: &dyn Objects, folder: &str) -> Result<(), Failure> {
    remove_all(objects, objects.list(folder).await?).await?;
    objects.forget_folder(folder).await
}
