//! Patterns of paths: `*`, `?` and `[...]` within a name, and `**` for folders however deep. Matched name by name, so that
//! files on a disk and objects in S3 are found by the same rules.
//!
//! What programs put beside data is passed over where only a wildcard matches it: a folder whose name begins with `_` or `.`,
//! which to Spark and Hive is hidden and in which our own tables keep their manifests, and a file whose name begins with `.`.
//! A part of the pattern that begins with the same sign reads it. Files such as `_orders.csv` are data.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, PatternError};

/// What an error says where nothing matches.
pub(super) const PASSED_OVER: &str =
    "a wildcard passes over folders that begin with _ or ., and files that begin with .";

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// A pattern, by what stands between its slashes.
#[derive(Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// `**`
    Folders,
    Name(glob::Pattern),
}

/// What keeps a folder from being looked into.
#[derive(Debug)]
pub(super) enum Unfound {
    /// There are more files than that.
    TooMany,
    /// It can't be read.
    Unreadable(PathBuf, io::Error),
}

impl Part {
    /// Whether it matches the name of a folder, or else of a file.
    fn takes(&self, name: &str, is_folder: bool) -> bool {
        let hidden = name
            .chars()
            .next()
            .filter(|first| *first == '.' || is_folder && *first == '_');
        match self {
            Self::Folders => is_folder && hidden.is_none(),
            Self::Name(pattern) => {
                hidden.is_none_or(|sign| pattern.as_str().starts_with(sign)) && pattern.matches_with(name, OPTIONS)
            }
        }
    }
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, PatternError> {
        // By the whole text an error says the place in it.
        glob::Pattern::new(text)?;
        let parts = text.split('/').map(|part| match part {
            "**" => Ok(Part::Folders),
            _ => glob::Pattern::new(part).map(Part::Name),
        });
        Ok(Self {
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// Whether an object's key matches.
    pub(super) fn matches(&self, key: &str) -> bool {
        let names: Vec<&str> = key.split('/').collect();
        matches(&self.parts, &names)
    }

    /// The files below `root` that match, and whatever else but folders has such a name: sorted, each once, at most `most`.
    pub(super) fn files(&self, root: &Path, most: usize) -> Result<BTreeSet<PathBuf>, Unfound> {
        // `a//b` and `a/./b` are `a/b` on a disk.
        let is_step = |part: &&Part| !matches!(part, Part::Name(name) if matches!(name.as_str(), "" | "."));
        let parts: Vec<&Part> = self.parts.iter().filter(is_step).collect();
        let mut found = BTreeSet::new();
        walk(root, &parts, most, &mut found)?;
        Ok(found)
    }
}

fn matches(parts: &[Part], names: &[&str]) -> bool {
    let (Some((part, rest)), Some((name, more))) = (parts.split_first(), names.split_first()) else {
        return parts.is_empty() && names.is_empty();
    };
    let takes = part.takes(name, !more.is_empty());
    match part {
        Part::Folders => matches(rest, names) || takes && matches(parts, more),
        Part::Name(_) => takes && matches(rest, more),
    }
}

fn walk(path: &Path, parts: &[&Part], most: usize, found: &mut BTreeSet<PathBuf>) -> Result<(), Unfound> {
    let Some((part, rest)) = parts.split_first() else {
        if !path.is_dir() {
            found.insert(path.to_owned());
        }
        return if found.len() > most {
            Err(Unfound::TooMany)
        } else {
            Ok(())
        };
    };
    match part {
        Part::Name(name) if !super::is_pattern(name.as_str()) => {
            // Without a look into the folder, which not everybody may read who may enter it.
            let next = path.join(name.as_str());
            return match next.symlink_metadata() {
                Ok(_) => walk(&next, rest, most, found),
                Err(_) => Ok(()),
            };
        }
        // A folder is none of the files that `**` ends with.
        Part::Folders if rest.is_empty() => return Ok(()),
        Part::Folders => walk(path, rest, most, found)?,
        Part::Name(_) => {}
    }
    if !path.is_dir() {
        return Ok(());
    }
    let unreadable = |error| Unfound::Unreadable(path.to_owned(), error);
    let folder = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let next = path.join(&name);
        let is_folder = next.is_dir();
        // A name that is no UTF-8 is for whoever reads it to refuse.
        if !part.takes(&name.to_string_lossy(), is_folder) {
            continue;
        }
        match part {
            Part::Folders => walk(&next, parts, most, found)?,
            Part::Name(_) if is_folder || rest.is_empty() => walk(&next, rest, most, found)?,
            Part::Name(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All files that there are.
    const FILES: [&str; 16] = [
        ".hidden/a.json",
        "_haulage/table.json",
        "_orders.json",
        "ev/.hidden.json",
        "ev/.x/y/a.json",
        "ev/_SUCCESS",
        "ev/_orders.json",
        "ev/_temporary/0/dt=1/x.json",
        "ev/_temporary/_tmp/x.json",
        "ev/a[1].json",
        "ev/dt=1/.part.json",
        "ev/dt=1/_tmp/p.json",
        "ev/dt=1/a.json",
        "ev/dt=1/dt=1/b.json",
        "ev/dt=2/a.json",
        "top.json",
    ];

    #[test]
    fn a_disk_and_keys_are_matched_alike_and_nothing_hidden_by_a_wildcard() {
        let folder = tempfile::tempdir().unwrap();
        for file in FILES {
            let place = folder.path().join(file);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, file).unwrap();
        }
        for (pattern, expected) in [
            ("*", &["_orders.json", "top.json"][..]),
            (
                "**/*.json",
                &[
                    "_orders.json",
                    "ev/_orders.json",
                    "ev/a[1].json",
                    "ev/dt=1/a.json",
                    "ev/dt=1/dt=1/b.json",
                    "ev/dt=2/a.json",
                    "top.json",
                ],
            ),
            ("ev/*/*.json", &["ev/dt=1/a.json", "ev/dt=2/a.json"]),
            ("ev/**/dt=1/**/*.json", &["ev/dt=1/a.json", "ev/dt=1/dt=1/b.json"]),
            ("ev/?temporary/**/x.json", &[]),
            ("ev/[_]temporary/**/x.json", &[]),
            ("ev/_temporary/**/x.json", &["ev/_temporary/0/dt=1/x.json"]),
            ("ev/_*/**/x.json", &["ev/_temporary/0/dt=1/x.json"]),
            ("ev/**/_tmp/*.json", &["ev/dt=1/_tmp/p.json"]),
            ("ev/_temporary/_t*/*", &["ev/_temporary/_tmp/x.json"]),
            ("*/.h*", &["ev/.hidden.json"]),
            ("**/.*", &["ev/.hidden.json", "ev/dt=1/.part.json"]),
            (".*/*.json", &[".hidden/a.json"]),
            ("ev/.x/*/*.json", &["ev/.x/y/a.json"]),
            ("ev/.x/**/*", &["ev/.x/y/a.json"]),
            ("ev/.*/*/*", &["ev/.x/y/a.json"]),
            ("ev/?hidden.json", &[]),
            ("*/a[[]1[]].json", &["ev/a[1].json"]),
            ("ev/dt=[12]/a.json", &["ev/dt=1/a.json", "ev/dt=2/a.json"]),
            ("ev/_*", &["ev/_SUCCESS", "ev/_orders.json"]),
            ("ev/**", &[]),
            ("none/*", &[]),
        ] {
            let matched = Pattern::new(pattern).unwrap();
            let keys: Vec<&str> = FILES.into_iter().filter(|file| matched.matches(file)).collect();
            assert_eq!(keys, expected, "{pattern} of keys");
            let files = matched.files(folder.path(), 100).unwrap();
            let below = |file: &PathBuf| file.strip_prefix(folder.path()).unwrap().display().to_string();
            let files: Vec<String> = files.iter().map(below).collect();
            assert_eq!(files, expected, "{pattern} of files");
        }
        let all = Pattern::new("**/*").unwrap();
        assert!(matches!(all.files(folder.path(), 3), Err(Unfound::TooMany)));
        for wrong in ["a**/b", "a/***", "[a/b]"] {
            assert!(Pattern::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_that_lead_nowhere_are_none_on_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/x.csv"), "").unwrap();
        for pattern in ["a//*.csv", "a/./*.csv", "./a/*", "a/../a/*.csv"] {
            let files = Pattern::new(pattern).unwrap().files(folder.path(), 9).unwrap();
            assert_eq!(files.len(), 1, "{pattern}: {files:?}");
        }
    }
}
