//! Where a destination of files is, and where in it things are.
//!
//! | below the table's folder            | what                                                                    |
//! |-------------------------------------|-------------------------------------------------------------------------|
//! | `data/AREA/day=2024-01-01/...`      | files of one load of one run, from when they are staged                 |
//! | `_haulage/table.json`               | the table's state: records of loads, and the newest version's manifest  |
//! | `_haulage/versions/N-....json`      | a version's manifest: all files with rows, bytes and run                |
//! | `_haulage/lists/AREA-....json`      | the files that a load's verify has found                                |
//! | `_haulage/loads/AREA/chunks/S-I.json` | fence and markers of a chunk, until the run is over                   |
//! | `_haulage/loads/AREA/rows/...`      | staged rows as Parquet, where the files are CSV or JSON lines           |
//!
//! `_haulage/watermarks/....json` below the destination itself name the tables that have watermarks.

use std::path::PathBuf;

use haulage_core::failure::Failure;
use haulage_core::ids::ChunkId;

use crate::sink::LoadContext;
use crate::sink::name::area;

/// The folder of an address of files: `file:///srv/lake`, `file:/srv/lake`, `folder:/srv/lake` or `/srv/lake`. None if it
/// is of another kind.
pub(crate) fn folder(address: &str) -> Option<PathBuf> {
    let path = match address.split_once(':') {
        Some(("file" | "folder", path)) => path.strip_prefix("//").unwrap_or(path),
        _ => address,
    };
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The notes of which tables have watermarks, as a folder. No table can be there.
pub(super) const NOTES: &str = "_haulage/watermarks/";

/// The keys of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TablePlace {
    /// Its folder, without a slash at the end.
    pub(super) folder: String,
}

impl TablePlace {
    /// From the `table` of a load. Permanent failure if it could lead out of the destination.
    pub(super) fn parse(table: &str) -> Result<Self, Failure> {
        let parts: Vec<&str> = table.split('/').collect();
        let sound = |part: &&str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.starts_with("_haulage")
                && part.len() <= 200
                && !part
                    .chars()
                    .any(|letter| letter.is_control() || matches!(letter, '\\' | ':'))
        };
        if !parts.iter().all(sound) || parts.iter().skip(1).any(|part| *part == "data") {
            return Err(Failure::permanent(format!(
                "table `{table}` is no path of a table; write one such as `sales/orders`, relative to the destination, without \
                 `..`, and without `data` or `_haulage` below the table's folder"
            )));
        }
        Ok(Self {
            folder: table.to_owned(),
        })
    }

    /// A key from one that is relative to the table.
    pub(super) fn key(&self, relative: &str) -> String {
        format!("{}/{relative}", self.folder)
    }

    /// The state.
    pub(super) fn state(&self) -> String {
        self.key("_haulage/table.json")
    }

    /// The manifests, as a folder.
    pub(super) fn versions(&self) -> String {
        self.key("_haulage/versions/")
    }
}

/// The folders of one load of one run, relative to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    /// 20 hex digits.
    pub(super) id: String,
}

impl Area {
    pub(super) fn of(load: &LoadContext) -> Self {
        Self {
            id: area(&load.run, &load.load),
        }
    }

    /// Its files.
    pub(super) fn data(&self) -> String {
        format!("data/{}/", self.id)
    }

    /// Everything that is gone when the run is over.
    pub(super) fn staging(&self) -> String {
        format!("_haulage/loads/{}/", self.id)
    }

    pub(super) fn chunks(&self) -> String {
        format!("{}chunks/", self.staging())
    }

    pub(super) fn chunk(&self, chunk: ChunkId) -> String {
        format!("{}{}-{}.json", self.chunks(), chunk.stage.0, chunk.index)
    }

    /// How the names of its lists begin.
    pub(super) fn lists(&self) -> String {
        format!("_haulage/lists/{}-", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_folders() {
        for (address, path) in [
            ("file:///srv/lake", Some("/srv/lake")),
            ("file:/srv/lake", Some("/srv/lake")),
            ("folder:/srv/lake", Some("/srv/lake")),
            ("/srv/lake", Some("/srv/lake")),
            ("file://host/srv", None),
            ("file:lake", None),
            ("lake", None),
            ("s3://b/p", None),
        ] {
            assert_eq!(folder(address), path.map(PathBuf::from), "{address}");
        }
    }

    #[test]
    fn a_table_never_leads_out_of_its_destination() {
        for good in ["orders", "sales/orders", "public.orders", "data", "data/orders"] {
            assert!(TablePlace::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            ".hidden",
            "_haulage",
            "a/_haulage/b",
            "a/data/b",
            "a\\b",
            "a\nb",
        ] {
            assert!(TablePlace::parse(bad).is_err(), "{bad:?}");
        }
    }
}
