//! The objects that a source reads: files on a disk that the node sees, and objects in S3.
//!
//! An object has an address, a size, and a version that changes whenever its bytes may have changed. Whoever reads it
//! later finds the same version or a permanent failure, never a mixture of two.

use std::ops::Range;

use haulage_core::failure::Failure;

use crate::store::S3Settings;

mod local;
mod pattern;
mod s3;

/// A pattern that matches more than this is a mistake, and the plan of such a run would not fit anywhere.
const MAX_OBJECTS: usize = 100_000;

/// Something that can be read by ranges.
#[derive(Clone)]
pub(super) struct Object {
    /// A local path, or `s3://bucket/key`.
    pub(super) address: String,
    /// In bytes.
    pub(super) size: u64,
    /// An ETag, or size and modification time.
    pub(super) version: String,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Local(local::LocalPlace),
    S3(s3::S3Place),
}

/// An object's bytes within a range, in order.
pub(super) enum Stream {
    /// From a file.
    Local(local::LocalStream),
    /// From S3, taken up again where a connection broke.
    S3(Box<s3::S3Stream>),
}

/// The objects that `path` names, sorted by address: one, or those that match its `*`, `**`, `?` and `[...]`. A relative
/// path is taken from `base`, a folder or an `s3://` prefix. Permanent failure naming the path if there is none.
pub(super) async fn list(path: &str, base: &str, s3: &S3Settings) -> Result<Vec<Object>, Failure> {
    let mut objects = match place_of(path, base) {
        PathKind::S3(address) => s3::list(&address, s3, MAX_OBJECTS).await?,
        PathKind::Local { literal, pattern } => local::list(literal, pattern, MAX_OBJECTS).await?,
    };
    objects.sort_by(|a, b| a.address.cmp(&b.address));
    Ok(objects)
}

/// Where a local path leads that is no pattern, relative to `base`; `None` if that is in S3.
pub(super) fn local_path(path: &str, base: &str) -> Option<String> {
    match place_of(path, base) {
        PathKind::S3(_) => None,
        PathKind::Local { literal, .. } => Some(literal),
    }
}

/// The names of folders in the address of an object that `path` names, as far as the path itself says them from its first
/// wildcard or `=` on: what lies above is where somebody keeps the data.
pub(super) fn named_by<'a>(path: &str, base: &str, address: &'a str) -> &'a str {
    let parts: Vec<&str> = path.split('/').collect();
    let (_, folders) = parts.split_last().unwrap_or((&"", &[]));
    let is_above = |part: &&&str| !is_pattern(part) && !part.contains('=');
    let above: Vec<&str> = folders.iter().take_while(is_above).copied().collect();
    let above = match path.starts_with('/') || path.starts_with("s3://") {
        true => above.join("/"),
        false => joined(base, &above.join("/")),
    };
    let is_name = |name: &&str| !matches!(*name, "" | ".");
    let mut rest = address;
    for _ in above.split('/').filter(is_name) {
        rest = rest.trim_start_matches("./").trim_start_matches('/');
        rest = rest.split_once('/').map_or("", |(_, rest)| rest);
    }
    rest
}

/// The object at an address that [`list`] gave. Permanent failure if it isn't there any more.
pub(super) async fn find(address: &str, s3: &S3Settings) -> Result<Object, Failure> {
    if address.starts_with("s3://") {
        return s3::find(address, s3).await;
    }
    local::find(address.to_owned()).await
}

impl Object {
    /// The bytes of `range`, which lies within the object.
    pub(super) async fn stream(&self, range: Range<u64>) -> Result<Stream, Failure> {
        Ok(match &self.place {
            Place::Local(place) => Stream::Local(local::LocalStream::open(self, place, range).await?),
            Place::S3(place) => Stream::S3(Box::new(s3::S3Stream::new(self, place, range))),
        })
    }
}

impl Stream {
    /// Appends bytes to `buffer`: at least one, and about `want` if they are there; 0 is the end of the range.
    /// Permanent failure if the object has changed or ends before its range.
    pub(super) async fn fill(&mut self, buffer: &mut Vec<u8>, want: usize) -> Result<usize, Failure> {
        match self {
            Self::Local(stream) => stream.fill(buffer, want).await,
            Self::S3(stream) => stream.fill(buffer, want).await,
        }
    }
}

enum PathKind {
    S3(String),
    /// `pattern` is `None` if there is nothing to match.
    Local {
        literal: String,
        pattern: Option<String>,
    },
}

fn place_of(path: &str, base: &str) -> PathKind {
    if path.starts_with("s3://") {
        return PathKind::S3(path.to_owned());
    }
    let absolute = path.starts_with('/');
    if base.starts_with("s3://") && !absolute {
        return PathKind::S3(joined(base, path));
    }
    let literal = if absolute { path.to_owned() } else { joined(base, path) };
    let pattern = is_pattern(path).then(|| {
        // Only what the user wrote is a pattern: brackets in the folder's own name are not.
        if absolute {
            path.to_owned()
        } else {
            joined(&glob::Pattern::escape(base), path)
        }
    });
    PathKind::Local { literal, pattern }
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// `path` below `base`, without `.` parts; `..` takes a part away, except where a link may stand before it.
fn joined(base: &str, path: &str) -> String {
    let mut whole = base.trim_end_matches('/').to_owned();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        let is_s3 = whole.starts_with("s3://");
        if part == ".." && is_s3 {
            let bucket_ends = whole["s3://".len()..].find('/').map(|place| place + "s3://".len());
            if let (Some(first), Some(last)) = (bucket_ends, whole.rfind('/')) {
                whole.truncate(last.max(first));
                continue;
            }
        }
        if !whole.is_empty() || base.starts_with('/') {
            whole.push('/');
        }
        whole.push_str(part);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_the_base() {
        let table = [
            ("data/a.csv", "/home/u", "/home/u/data/a.csv"),
            ("./data/a.csv", "/home/u/", "/home/u/data/a.csv"),
            ("../a.csv", "/home/u", "/home/u/../a.csv"),
            ("a.csv", "/", "/a.csv"),
            ("a.csv", "", "a.csv"),
            ("/x/a.csv", "s3://b/p", "/x/a.csv"),
            ("data/a.csv", "s3://b/p/", "s3://b/p/data/a.csv"),
            ("data/a.csv", "s3://b", "s3://b/data/a.csv"),
            ("../data/a.csv", "s3://b/p/q", "s3://b/p/data/a.csv"),
            ("s3://c/k.csv", "/home/u", "s3://c/k.csv"),
        ];
        for (path, base, expected) in table {
            match place_of(path, base) {
                PathKind::S3(address)
                | PathKind::Local {
                    literal: address,
                    pattern: None,
                } => {
                    assert_eq!(address, expected, "{path} from {base}");
                }
                PathKind::Local {
                    pattern: Some(pattern), ..
                } => panic!("{path} is no pattern: {pattern}"),
            }
        }
    }

    #[test]
    fn folders_above_those_that_a_path_names_are_passed_over() {
        for (path, base, address, expected) in [
            ("*.csv", "/srv/env=prod", "/srv/env=prod/a.csv", "a.csv"),
            ("a.csv", "/srv/env=prod/", "/srv/env=prod/a.csv", "a.csv"),
            ("./in/*/*.csv", "/x=1/y", "/x=1/y/in/day=1/a.csv", "day=1/a.csv"),
            ("in/**/*.csv", "/x=1/y", "/x=1/y/in/b=1/c=2/a.csv", "b=1/c=2/a.csv"),
            ("../env=a/*.csv", "/x=1/y", "/x=1/y/../env=a/a.csv", "env=a/a.csv"),
            ("env=a/in/*.csv", "/x=1", "/x=1/env=a/in/a.csv", "env=a/in/a.csv"),
            (
                "/srv//./env=a/*/*.csv",
                "/x=1",
                "/srv/env=a/b=1/a.csv",
                "env=a/b=1/a.csv",
            ),
            ("a-*.csv", "/x=[1]", "/x=[1]/a-1.csv", "a-1.csv"),
            ("a.csv", "", "a.csv", "a.csv"),
            ("in/*.csv", "s3://b/x=1", "s3://b/x=1/in/a.csv", "a.csv"),
            ("../in/d=*/*.csv", "s3://b/x=1", "s3://b/in/d=1/a.csv", "d=1/a.csv"),
            ("s3://b/ev/**/*.csv", "/x=1", "s3://b/ev/d=1/a.csv", "d=1/a.csv"),
            ("s3://b/*.csv", "/x=1", "s3://b/a.csv", "a.csv"),
        ] {
            assert_eq!(named_by(path, base, address), expected, "{path} from {base}");
        }
    }

    #[test]
    fn brackets_in_the_base_are_no_pattern() {
        match place_of("a-*.csv", "/home/[u]") {
            PathKind::Local {
                pattern: Some(pattern), ..
            } => assert_eq!(pattern, "/home/[[]u[]]/a-*.csv"),
            PathKind::Local { pattern: None, .. } | PathKind::S3(_) => panic!("a local pattern"),
        }
    }
}
