//! Objects as files in a folder of this machine.
//!
//! A file is written under a temporary name, synced and renamed, so that a crash leaves the old one or the new one. A
//! conditional write does that under a lock of the folder, which the system gives back when its holder dies. A holder that
//! stands still keeps it: others wait a while and fail as transient, and none of them overtakes it.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use haulage_core::failure::Failure;
use sha2::{Digest, Sha256};

use super::super::state::now;
use super::{Objects, Sight, Tag};
use crate::chance;

/// The file that is locked, in the destination's folder.
const LOCK: &str = ".haulage.lock";
/// How long a lock is waited for, and between two tries.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(4);
/// A write after so long has another time.
const SETTLED: TimeDelta = TimeDelta::seconds(3);
/// How the name of a file begins that is being written.
const TEMPORARY: &str = ".tmp-";
/// Nobody writes a file for longer.
const UNFINISHED: TimeDelta = TimeDelta::hours(1);

/// A folder.
pub(in super::super) struct Local {
    place: Arc<Place>,
}

struct Place {
    name: String,
    root: PathBuf,
}

impl Local {
    /// Touches nothing.
    pub(in super::super) fn new(name: &str, root: PathBuf) -> Self {
        let name = name.to_owned();
        Self {
            place: Arc::new(Place { name, root }),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = Arc::clone(&self.place);
        match tokio::task::spawn_blocking(move || work(&place)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::transient(
                "the write was abandoned because the node is stopping",
            )),
        }
    }
}

#[async_trait]
impl Objects for Local {
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Tag)>, Failure> {
        let key = key.to_owned();
        self.blocking(move |place| place.read(&key)).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, Failure> {
        let key = key.to_owned();
        self.blocking(move |place| match std::fs::metadata(place.root.join(&key)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(place.failure("look at", &key, &error)),
        })
        .await
    }

    async fn sight(&self, key: &str) -> Result<Option<Sight>, Failure> {
        let key = key.to_owned();
        // Opened, and not just asked for: a network file system answers the latter from what it knew some seconds ago.
        self.blocking(
            move |place| match File::open(place.root.join(&key)).and_then(|file| file.metadata()) {
                Ok(found) => Ok(looks(&found, now())),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(place.failure("look at", &key, &error)),
            },
        )
        .await
    }

    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure> {
        let key = key.to_owned();
        self.blocking(move |place| {
            place.must_exist()?;
            place.write(&key, &data)
        })
        .await
    }

    async fn swap(&self, key: &str, read: Option<&Tag>, data: Bytes) -> Result<bool, Failure> {
        let (key, read) = (key.to_owned(), read.cloned());
        self.blocking(move |place| {
            place.must_exist()?;
            // Given back when it goes out of scope.
            let _lock = place.lock()?;
            if place.read(&key)?.map(|(_, tag)| tag) != read {
                return Ok(false);
            }
            place.write(&key, &data)?;
            Ok(true)
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<(), Failure> {
        let key = key.to_owned();
        self.blocking(move |place| {
            // Not between another one's look at a document and its write, which would bring it back.
            let _lock = if key.ends_with(".json") && place.root.is_dir() {
                Some(place.lock()?)
            } else {
                None
            };
            match std::fs::remove_file(place.root.join(&key)) {
                Ok(()) => Ok(()),
                Err(error) if is_absent(&error) => Ok(()),
                Err(error) => Err(place.failure("remove", &key, &error)),
            }
        })
        .await
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>, Failure> {
        let folder = folder.to_owned();
        self.blocking(move |place| {
            let mut keys = Vec::new();
            let mut folders = vec![folder.trim_end_matches('/').to_owned()];
            while let Some(folder) = folders.pop() {
                let wrong = |error: &std::io::Error| place.failure("list", &folder, error);
                let entries = match std::fs::read_dir(place.root.join(&folder)) {
                    Ok(entries) => entries,
                    Err(error) if is_absent(&error) => continue,
                    Err(error) => return Err(wrong(&error)),
                };
                for entry in entries {
                    let entry = entry.map_err(|error| wrong(&error))?;
                    // What isn't UTF-8 is not ours.
                    let Ok(name) = entry.file_name().into_string() else {
                        continue;
                    };
                    let key = format!("{folder}/{name}");
                    if entry.file_type().map_err(|error| wrong(&error))?.is_dir() {
                        folders.push(key);
                    } else {
                        keys.push(key);
                    }
                }
            }
            keys.sort();
            Ok(keys)
        })
        .await
    }

    async fn forget_folder(&self, folder: &str) -> Result<(), Failure> {
        let folder = folder.trim_end_matches('/').to_owned();
        self.blocking(move |place| {
            // One that a late writer has put something into meanwhile stays.
            drop(remove_empty(&place.root.join(&folder)));
            Ok(())
        })
        .await
    }

    async fn forget_unfinished(&self, folder: &str) -> Result<(), Failure> {
        let folder = folder.trim_end_matches('/').to_owned();
        self.blocking(move |place| {
            let before = now() - UNFINISHED;
            // What can't be removed is no more of a burden than it was.
            drop(remove_unfinished(&place.root.join(&folder), before));
            Ok(())
        })
        .await
    }

    async fn check(&self) -> Result<(), Failure> {
        self.blocking(|place| {
            place.must_exist()?;
            tempfile::tempfile_in(&place.root)
                .map(drop)
                .map_err(|error| place.failure("write in", "", &error))
        })
        .await
    }

    async fn exists(&self) -> Result<bool, Failure> {
        self.blocking(|place| Ok(place.root.is_dir())).await
    }

    async fn identity(&self) -> String {
        let place = Arc::clone(&self.place);
        let found = tokio::task::spawn_blocking(move || place.root.canonicalize()).await;
        let root = found
            .ok()
            .and_then(Result::ok)
            .unwrap_or_else(|| self.place.root.clone());
        format!("folder {}", root.display())
    }

    fn address(&self, key: &str) -> String {
        self.place.root.join(key).display().to_string()
    }
}

impl Place {
    fn must_exist(&self) -> Result<(), Failure> {
        if self.root.is_dir() {
            return Ok(());
        }
        // It isn't made: where a disk is not mounted, everything would go to the wrong one.
        Err(Failure::permanent(format!(
            "destination {}: there is no folder {}; make it, or mount its disk, on every node",
            self.name,
            self.root.display()
        )))
    }

    fn read(&self, key: &str) -> Result<Option<(Bytes, Tag)>, Failure> {
        match std::fs::read(self.root.join(key)) {
            Ok(data) => {
                let tag = Tag(Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect());
                Ok(Some((data.into(), tag)))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failure("read", key, &error)),
        }
    }

    fn write(&self, key: &str, data: &[u8]) -> Result<(), Failure> {
        let path = self.root.join(key);
        let folder = path.parent().unwrap_or(&self.root);
        let temporary = folder.join(format!("{TEMPORARY}{}", chance::boot()));
        let written = (|| {
            make_folder(&self.root, folder)?;
            let mut file = File::create_new(&temporary)?;
            file.write_all(data)?;
            // Before the rename: a marker must never name a file that a power cut empties.
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            // The name itself has to be durable too.
            File::open(folder)?.sync_all()
        })();
        written.map_err(|error: std::io::Error| {
            // What can't be removed is garbage that nothing names; the error that led here is the one to report.
            drop(std::fs::remove_file(&temporary));
            self.failure("write", key, &error)
        })
    }

    fn lock(&self) -> Result<File, Failure> {
        let path = self.root.join(LOCK);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|error| self.failure("open", LOCK, &error))?;
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < until => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::transient(format!(
                        "destination {}: another process holds the lock {} for long",
                        self.name,
                        path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(self.failure("lock", LOCK, &error)),
            }
        }
    }

    fn failure(&self, verb: &str, key: &str, error: &std::io::Error) -> Failure {
        let at = format!(
            "destination {}: can't {verb} {}: {error}",
            self.name,
            self.root.join(key).display()
        );
        match error.kind() {
            ErrorKind::PermissionDenied => {
                Failure::permanent(format!("{at}; give the node's user the right to write there"))
            }
            ErrorKind::ReadOnlyFilesystem => Failure::permanent(format!(
                "{at}; nobody can write there: mount its disk writable, or load somewhere else"
            )),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Failure::permanent(format!("{at}; free some space there, or load somewhere else"))
            }
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
                Failure::permanent(format!("{at}; something else is in the table's place"))
            }
            _ => Failure::transient(at),
        }
    }
}

/// A file is absent, too, where a part of its path is a file.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A file's number comes again when it is free, and its times stand still for some milliseconds: only of one that was
/// written a while ago it is certain that the next write shows.
fn looks(found: &Metadata, now: DateTime<Utc>) -> Option<Sight> {
    let written = found.mtime().max(found.ctime());
    (written < (now - SETTLED).timestamp()).then(|| {
        Sight(format!(
            "{} {} {} {}.{} {}.{}",
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec()
        ))
    })
}

/// Makes a folder below the root, durably.
fn make_folder(root: &Path, folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|above| above.starts_with(root)) {
        make_folder(root, above)?;
    }
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => match folder.parent() {
            Some(above) => File::open(above)?.sync_all(),
            None => Ok(()),
        },
    }
}

/// Removes temporary files that nobody has touched since.
fn remove_unfinished(folder: &Path, since: DateTime<Utc>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            drop(remove_unfinished(&path, since));
        } else if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
            && let Ok(touched) = entry.metadata().and_then(|found| found.modified())
            && DateTime::<Utc>::from(touched) < since
        {
            drop(std::fs::remove_file(path));
        }
    }
    Ok(())
}

fn remove_empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            drop(remove_empty(&entry.path()));
        }
    }
    std::fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_who_have_read_the_same_one_writes() {
        let folder = tempfile::tempdir().unwrap();
        let place = Arc::new(Local::new("lake", folder.path().to_owned()));
        let mut read = None;
        for round in 0..5 {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let (place, read) = (Arc::clone(&place), read.clone());
                    let data = Bytes::from(format!("{round} {writer}"));
                    tokio::spawn(async move { place.swap("t/state.json", read.as_ref(), data).await })
                })
                .collect();
            let mut won = 0;
            for writer in writers {
                won += u32::from(writer.await.unwrap().unwrap());
            }
            assert_eq!(won, 1);
            read = place.get("t/state.json").await.unwrap().map(|(_, tag)| tag);
        }
        assert!(!place.swap("t/state.json", None, Bytes::new()).await.unwrap());
        assert_eq!(
            place.list("t/").await.unwrap(),
            ["t/state.json"],
            "no temporary file stays"
        );
    }

    #[tokio::test]
    async fn a_folder_that_is_missing_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("lake");
        let place = Local::new("lake", root.clone());
        for failure in [
            place.check().await.unwrap_err(),
            place.put("t/a", Bytes::new()).await.unwrap_err(),
            place.swap("t/a", None, Bytes::new()).await.unwrap_err(),
        ] {
            assert!(
                failure.message.contains("destination lake: there is no folder"),
                "{failure}"
            );
        }
        assert!(!root.exists() && !place.exists().await.unwrap());
        assert_eq!(place.get("t/a").await.unwrap(), None);
        place.remove("t/a").await.unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_process_was_writing_goes_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let place = Local::new("lake", folder.path().to_owned());
        place.put("t/_haulage/versions/1.json", Bytes::new()).await.unwrap();
        place.put("t/data/1.parquet", Bytes::new()).await.unwrap();
        let old = std::time::SystemTime::from(now() - TimeDelta::minutes(61));
        for (key, is_old) in [
            ("t/_haulage/.tmp-1", true),
            ("t/_haulage/versions/.tmp-2", true),
            ("t/_haulage/versions/1.json", true),
            ("t/_haulage/versions/.tmp-3", false),
            ("t/data/.tmp-4", true),
        ] {
            let file = File::options()
                .append(true)
                .create(true)
                .open(folder.path().join(key))
                .unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        place.forget_unfinished("t/_haulage/").await.unwrap();
        place.forget_unfinished("nothing/").await.unwrap();
        assert_eq!(
            place.list("t/").await.unwrap(),
            [
                "t/_haulage/versions/.tmp-3",
                "t/_haulage/versions/1.json",
                "t/data/.tmp-4",
                "t/data/1.parquet"
            ]
        );
    }

    #[tokio::test]
    async fn a_file_that_was_written_just_now_looks_like_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let place = Local::new("lake", folder.path().to_owned());
        assert_eq!(place.sight("t/state.json").await.unwrap(), None);
        place.put("t/state.json", Bytes::from_static(b"1")).await.unwrap();
        assert_eq!(place.sight("t/state.json").await.unwrap(), None);
        let found = |_| std::fs::metadata(folder.path().join("t/state.json")).unwrap();
        let later = now() + TimeDelta::seconds(5);
        let first = looks(&found(1), later).unwrap();
        assert_eq!(looks(&found(1), later), Some(first.clone()));
        // Of the same size, and with the same time of its contents.
        let written = found(1).modified().unwrap();
        place.put("t/state.json", Bytes::from_static(b"2")).await.unwrap();
        let file = File::options()
            .append(true)
            .open(folder.path().join("t/state.json"))
            .unwrap();
        file.set_modified(written).unwrap();
        assert_ne!(looks(&found(2), later), Some(first));
    }

    #[test]
    fn a_disk_that_is_mounted_read_only_is_no_matter_of_rights() {
        let place = Local::new("lake", PathBuf::from("/lake")).place;
        for (kind, words) in [
            (
                ErrorKind::PermissionDenied,
                "give the node's user the right to write there",
            ),
            (
                ErrorKind::ReadOnlyFilesystem,
                "mount its disk writable, or load somewhere else",
            ),
        ] {
            let failure = place.failure("write", "t/a", &kind.into());
            assert!(failure.message.ends_with(words), "{failure}");
        }
    }
}
