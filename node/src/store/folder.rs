//! The checkpoint store in a folder.
//!
//! An object is written to a temporary file beside its place, synced, and renamed: a crash leaves the old object, the
//! new one, or a temporary file that nothing names, never half an object. Temporary files of crashed processes are not
//! collected here; they go with the run's folder.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use haulage_core::failure::Failure;

use super::{OBJECTS_AT_A_TIME, RUNS_AT_A_TIME, Store, check_key};

/// Objects as files below a root.
pub(super) struct FolderStore {
    root: PathBuf,
}

/// Tells the temporary files of this process apart; the process id tells processes apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl FolderStore {
    /// Makes the folder when it is missing.
    pub(super) async fn open(root: &str) -> Result<Self, Failure> {
        let root = PathBuf::from(root);
        let made = root.clone();
        blocking(move || std::fs::create_dir_all(&made).map_err(|error| failure("make", &made, &error))).await?;
        Ok(Self { root })
    }
}

#[async_trait]
impl Store for FolderStore {
    async fn put(&self, key: &str, data: Bytes) -> Result<(), Failure> {
        check_key(key)?;
        let path = self.root.join(key);
        blocking(move || write(&path, &data).map_err(|error| failure("write", &path, &error))).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, Failure> {
        check_key(key)?;
        let path = self.root.join(key);
        blocking(move || {
            std::fs::read(&path)
                .map(Bytes::from)
                .map_err(|error| failure("read", &path, &error))
        })
        .await
    }

    async fn runs(&self, after: &str) -> Result<Vec<String>, Failure> {
        let (path, after) = (self.root.join("runs"), format!("{after}/"));
        blocking(move || {
            let read = || {
                let mut runs = Vec::new();
                for entry in std::fs::read_dir(&path)? {
                    runs.extend(entry?.file_name().into_string());
                }
                Ok(runs)
            };
            let mut runs: Vec<String> = there(read()).map_err(|error| failure("list", &path, &error))?;
            // As keys sort, which go on with a `/`.
            runs.sort_by_key(|run| format!("{run}/"));
            runs.retain(|run| after == "/" || format!("{run}/") > after);
            runs.truncate(RUNS_AT_A_TIME);
            Ok(runs)
        })
        .await
    }

    async fn list(&self, folder: &str, after: &str) -> Result<Vec<(String, u64)>, Failure> {
        check_key(folder)?;
        let (root, folder, after) = (self.root.clone(), folder.to_owned(), after.to_owned());
        blocking(move || {
            let path = root.join(&folder);
            let mut found = Vec::new();
            there(walk(&path, &folder, &mut found)).map_err(|error| failure("list", &path, &error))?;
            found.retain(|(key, _)| *key > after);
            found.sort_unstable();
            found.truncate(OBJECTS_AT_A_TIME);
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        check_key(key)?;
        let (path, top) = (self.root.join(key), self.root.join("runs"));
        blocking(move || {
            there(std::fs::remove_file(&path)).map_err(|error| failure("delete", &path, &error))?;
            // A folder that holds something else stays: that it can't be removed is no error.
            for folder in path
                .ancestors()
                .skip(1)
                .take_while(|folder| folder.starts_with(&top) && *folder != top)
            {
                match std::fs::remove_dir(folder) {
                    Ok(()) => {}
                    // Somebody else was faster, and may have found the next one still full.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(_) => break,
                }
            }
            Ok(())
        })
        .await
    }
}

/// What isn't there is nothing.
fn there<T: Default>(result: std::io::Result<T>) -> std::io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        result => result,
    }
}

/// Every file below a folder, also temporary ones, by its key.
fn walk(folder: &Path, key: &str, found: &mut Vec<(String, u64)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let key = format!("{key}/{name}");
        let about = entry.metadata()?;
        if about.is_dir() {
            there(walk(&entry.path(), &key, found))?;
        } else {
            found.push((key, about.len()));
        }
    }
    Ok(())
}

fn write(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".tmp-{}-{number}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(data)?;
        // Before the rename: a marker must never name an object that a power cut empties.
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // What can't be removed is garbage that nothing names; the error that led here is the one to report.
        drop(std::fs::remove_file(&temporary));
        return written;
    }
    // The name itself has to be durable too.
    std::fs::File::open(folder)?.sync_all()
}

fn failure(verb: &str, path: &Path, error: &std::io::Error) -> Failure {
    let place = path.display();
    match error.kind() {
        ErrorKind::NotFound => Failure::permanent(format!(
            "checkpoint store: {place} does not exist; every node needs the same checkpoint folder, \
             or an s3:// address that all of them reach"
        )),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Failure::permanent(format!(
            "checkpoint store: can't {verb} {place}: {error}; give the node's user the right to write there"
        )),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Failure::permanent(format!(
            "checkpoint store: can't {verb} {place}: {error}; free some space there, or choose another folder"
        )),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Failure::permanent(format!(
            "checkpoint store: can't {verb} {place}: {error}; choose a folder that nothing else uses"
        )),
        _ => Failure::transient(format!("checkpoint store: can't {verb} {place}: {error}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::transient(
            "checkpoint store: the write was abandoned because the node is stopping",
        )),
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;

    use super::*;

    #[tokio::test]
    async fn an_object_is_there_whole_and_overwritten_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path().join("a/b").to_str().unwrap())
            .await
            .unwrap();
        store
            .put("run/x/one", Bytes::from_static(b"first, and longer"))
            .await
            .unwrap();
        store.put("run/x/one", Bytes::from_static(b"second")).await.unwrap();
        assert_eq!(store.get("run/x/one").await.unwrap(), Bytes::from_static(b"second"));
        let left: Vec<_> = std::fs::read_dir(folder.path().join("a/b/run/x")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
    }

    #[tokio::test]
    async fn errors_name_the_place_and_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path().to_str().unwrap()).await.unwrap();
        let missing = store.get("run/none").await.unwrap_err();
        assert_eq!(missing.class, Class::Permanent);
        assert!(missing.message.contains("run/none does not exist"), "{missing}");

        std::fs::write(folder.path().join("file"), b"").unwrap();
        let blocked = store.put("file/below", Bytes::new()).await.unwrap_err();
        assert_eq!(blocked.class, Class::Permanent, "{blocked}");
        assert!(store.put("../outside", Bytes::new()).await.is_err());
    }
}
