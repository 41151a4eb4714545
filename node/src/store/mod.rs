//! The checkpoint store: manifests and quarantined rows, in a folder or under an S3 prefix.
//!
//! Keys are attempt-scoped, so two attempts never write the same object; what no committed marker names is garbage.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use haulage_core::failure::Failure;

mod folder;
pub(crate) mod prune;
pub mod rejects;
mod s3;
pub mod s3_client;

pub use s3_client::S3Settings;

/// A flat store of small objects.
#[async_trait]
pub trait Store: Send + Sync {
    /// Writes an object whole, or not at all.
    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure>;

    /// Reads an object. Permanent failure naming the key if it isn't there.
    async fn get(&self, key: &str) -> Result<Bytes, Failure>;

    /// The folders below `runs/` that hold anything, in the order of their keys, after one of them; some at a time, none
    /// after the last.
    async fn runs(&self, after: &str) -> Result<Vec<String>, Failure>;

    /// Objects below `folder/` with their sizes, in the order of their keys, after one of them; some at a time, none after
    /// the last.
    async fn list(&self, folder: &str, after: &str) -> Result<Vec<(String, u64)>, Failure>;

    /// Deletes an object. That it isn't there is what was wanted.
    async fn delete(&self, key: &str) -> Result<(), Failure>;
}

/// Runs that are listed at a time.
const RUNS_AT_A_TIME: usize = 100;
/// Objects that are listed at a time.
const OBJECTS_AT_A_TIME: usize = 1000;

/// Opens the store at `address`: a folder (made when missing), or `s3://bucket/prefix` (looked at when first used).
/// Permanent failure if the address is malformed or the folder can't be made.
pub async fn open(address: &str, s3: &S3Settings) -> Result<Arc<dyn Store>, Failure> {
    if address.starts_with("s3://") {
        return Ok(Arc::new(s3::S3Store::open(address, s3).await?));
    }
    Ok(Arc::new(folder::FolderStore::open(address).await?))
}

/// Refuses a key that could leave the store: keys are relative, of `/`-separated parts, none of them empty, `.` or `..`.
fn check_key(key: &str) -> Result<(), Failure> {
    let sound = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 255
            && !part
                .chars()
                .any(|letter| letter.is_control() || matches!(letter, '\\' | ':'))
    };
    if key.len() > 1024 || !key.split('/').all(sound) {
        return Err(Failure::permanent(format!(
            "checkpoint key {key:?} is not sound: expected at most 1024 characters in `/`-separated parts, \
             none empty, `.` or `..`, without `\\`, `:` or control characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_the_store_are_refused() {
        for good in [
            "a",
            "runs/flights-0011223344-2/chunks/0-12/a3/s7.manifest.json",
            "a b/ü.zst",
        ] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        let long = "x/".repeat(600);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            ".",
            "a/./b",
            "a\\b",
            "c:a",
            "a\0",
            "a\nb",
            long.as_str(),
        ] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
    }
}
