//! Files on a disk. Their version is size and modification time: an inode would tell replaced files apart a little more
//! surely, but differs between nodes that hold copies of the same data.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use haulage_core::failure::Failure;

use super::pattern::{PASSED_OVER, Pattern, Unfound};
use super::{Object, Place};
use crate::store::s3_client::changed;

/// Too many symbolic links; the standard library's name for it isn't stable yet.
const ELOOP: i32 = if cfg!(target_os = "linux") { 40 } else { 62 };

#[derive(Clone)]
pub(super) struct LocalPlace {
    path: PathBuf,
}

pub(super) async fn list(literal: String, pattern: Option<String>, most: usize) -> Result<Vec<Object>, Failure> {
    let Some(pattern) = pattern else {
        return Ok(vec![find(literal).await?]);
    };
    blocking(move || {
        // A file may be called `a[1].csv`.
        if Path::new(&literal)
            .symlink_metadata()
            .is_ok_and(|found| !found.is_dir())
        {
            return Ok(vec![object(literal)?]);
        }
        let wrong = |error: &dyn std::fmt::Display| Failure::permanent(format!("source path {pattern}: {error}"));
        let parsed = Pattern::new(&pattern).map_err(|error| wrong(&error))?;
        let root = Path::new(if pattern.starts_with('/') { "/" } else { "" });
        let found = parsed.files(root, most).map_err(|unfound| match unfound {
            Unfound::TooMany => wrong(&format!("matches more than {most} files; narrow it down")),
            Unfound::Unreadable(folder, error) => wrong(&format!(
                "the folder {} can't be read: {error}; give the node's user the right to read it, or narrow the path",
                folder.display()
            )),
        })?;
        let mut objects = Vec::new();
        for path in found {
            let Some(address) = path.to_str() else {
                return Err(wrong(&format!(
                    "the name of {} is not UTF-8; rename it",
                    path.display()
                )));
            };
            // What can't be read is an error.
            objects.push(object(address.to_owned())?);
        }
        if objects.is_empty() {
            return Err(Failure::permanent(format!(
                "no file matches {pattern}; check the path, which has to exist on every node, and --base; {PASSED_OVER}"
            )));
        }
        Ok(objects)
    })
    .await
}

pub(super) async fn find(address: String) -> Result<Object, Failure> {
    blocking(move || object(address)).await
}

fn object(address: String) -> Result<Object, Failure> {
    let path = PathBuf::from(&address);
    let metadata = std::fs::metadata(&path).map_err(|error| failure(&address, &error))?;
    if metadata.is_dir() {
        return Err(Failure::permanent(format!(
            "{address} is a folder; name its files, as in {address}/*.csv"
        )));
    }
    if !metadata.is_file() {
        return Err(Failure::permanent(irregular(&address)));
    }
    Ok(Object {
        size: metadata.len(),
        version: version(&metadata),
        address,
        place: Place::Local(LocalPlace { path }),
    })
}

/// A pipe, a socket or a device: it has no size, can be read only once, and may keep its reader waiting for ever.
fn irregular(address: &str) -> String {
    format!("{address} is no regular file (a pipe, a socket or a device?); write its data to a file, and name that")
}

fn version(metadata: &Metadata) -> String {
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{}-{}", metadata.len(), modified.unwrap_or_default().as_nanos())
}

pub(in super::super) struct LocalStream {
    address: String,
    version: String,
    file: Arc<File>,
    left: u64,
}

impl LocalStream {
    pub(super) async fn open(object: &Object, place: &LocalPlace, range: Range<u64>) -> Result<Self, Failure> {
        let (path, address, version) = (place.path.clone(), object.address.clone(), object.version.clone());
        blocking(move || {
            let failed = |error| failure(&address, &error);
            // Before it is opened: opening a pipe that took the file's place would wait for a writer.
            if !std::fs::metadata(&path).map_err(failed)?.is_file() {
                return Err(Failure::permanent(irregular(&address)));
            }
            let mut file = File::open(&path).map_err(failed)?;
            check(&file, &address, &version)?;
            file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
            let left = range.end.saturating_sub(range.start);
            Ok(Self {
                address,
                version,
                file: Arc::new(file),
                left,
            })
        })
        .await
    }

    pub(super) async fn fill(&mut self, buffer: &mut Vec<u8>, want: usize) -> Result<usize, Failure> {
        if self.left == 0 {
            return Ok(0);
        }
        let want = self.left.min(want as u64);
        let (file, address, version) = (Arc::clone(&self.file), self.address.clone(), self.version.clone());
        let mut mine = std::mem::take(buffer);
        let (mine, read) = blocking(move || {
            let read = (&*file)
                .take(want)
                .read_to_end(&mut mine)
                .map_err(|error| failure(&address, &error))?;
            // After the read: what was read of a file that is still the same is what discovery saw.
            check(&file, &address, &version)?;
            Ok((mine, read))
        })
        .await?;
        *buffer = mine;
        if read == 0 {
            return Err(changed(&self.address));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn check(file: &File, address: &str, expected: &str) -> Result<(), Failure> {
    let metadata = file.metadata().map_err(|error| failure(address, &error))?;
    if version(&metadata) == expected {
        Ok(())
    } else {
        Err(changed(address))
    }
}

fn failure(address: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Failure::permanent(format!(
            "{address} does not exist; check the path, which has to exist on every node, and --base"
        )),
        ErrorKind::PermissionDenied => Failure::permanent(format!(
            "{address} can't be read: {error}; give the node's user the right to read it"
        )),
        ErrorKind::IsADirectory | ErrorKind::InvalidInput | ErrorKind::InvalidFilename => {
            Failure::permanent(format!("{address} can't be read: {error}; name a file"))
        }
        _ if error.raw_os_error() == Some(ELOOP) => Failure::permanent(format!(
            "{address} can't be read: its symbolic links lead in a circle; name the file itself, or mend the link"
        )),
        _ => Failure::transient(format!("{address} can't be read: {error}")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::transient("reading was abandoned because the node is stopping")),
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;

    use super::*;

    #[tokio::test]
    async fn a_pattern_lists_files_and_a_missing_one_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for name in ["b-2.csv", "b-1.csv", ".b-0.csv", "c.txt", "b[1].csv"] {
            std::fs::write(place(name), name).unwrap();
        }
        std::fs::create_dir(place("b-3.csv")).unwrap();
        let list = |path: &str| {
            let (literal, pattern) = (place(path), path.contains(['*', '[']).then(|| place(path)));
            async move {
                list(literal, pattern, 2)
                    .await
                    .map(|found| found.into_iter().map(|object| object.address))
            }
        };
        assert_eq!(
            list("b-*.csv").await.unwrap().collect::<Vec<_>>(),
            [place("b-1.csv"), place("b-2.csv")]
        );
        assert_eq!(list("b[1].csv").await.unwrap().collect::<Vec<_>>(), [place("b[1].csv")]);
        for (path, part) in [
            ("none-*.csv", "no file matches"),
            ("none.csv", "does not exist"),
            ("b-3.csv", "is a folder"),
            ("b*.*", "more than 2 files"),
        ] {
            let failure = list(path).await.map(|_| ()).unwrap_err();
            assert_eq!(failure.class, Class::Permanent);
            assert!(
                failure.message.contains(part) && failure.message.contains(path),
                "{failure}"
            );
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_at_once_and_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(place("good.csv"), "1").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place("socket.csv")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(place("pipe.csv")).status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink(place("loop.csv"), place("loop.csv")).unwrap();
        for (name, pattern, part) in [
            ("pipe.csv", "p*.csv", "is no regular file"),
            ("socket.csv", "s*.csv", "is no regular file"),
            ("loop.csv", "l*.csv", "in a circle"),
        ] {
            let literal = list(place(name), None, 9).await.map(|_| ());
            let matched = list(place(pattern), Some(place(pattern)), 9).await.map(|_| ());
            // A listed file whose place something else took.
            let good = find(place("good.csv")).await.unwrap();
            let Place::Local(LocalPlace { path }) = &good.place else {
                panic!("a file on a disk")
            };
            let mut swapped = LocalPlace { path: path.clone() };
            swapped.path.set_file_name(name);
            let stated = Object {
                address: place(name),
                ..good.clone()
            };
            let opened = LocalStream::open(&stated, &swapped, 0..1).await.map(|_| ());
            for result in [literal, matched, opened] {
                let failure = result.expect_err(name);
                assert_eq!(failure.class, Class::Permanent, "{failure}");
                assert!(
                    failure.message.contains(part) && failure.message.contains(name),
                    "{failure}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_changes_is_a_permanent_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::fs::write(&path, "0123456789").unwrap();
        let object = find(path.to_str().unwrap().to_owned()).await.unwrap();
        let mut stream = object.stream(2..8).await.unwrap();
        let mut buffer = vec![b'x'];
        assert_eq!(stream.fill(&mut buffer, 4).await.unwrap(), 4);
        assert_eq!(buffer, b"x2345");

        // One byte more in place: the open stream and a new one both have to see it.
        std::fs::write(&path, "0123456789a").unwrap();
        for failure in [stream.fill(&mut buffer, 4).await.err(), object.stream(2..8).await.err()] {
            let failure = failure.expect("the change is seen");
            assert_eq!(failure.class, Class::Permanent);
            assert!(failure.message.contains("a.csv has changed"), "{failure}");
        }
    }
}
