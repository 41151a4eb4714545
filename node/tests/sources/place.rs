//! Where the files of a test are: a folder of this machine, or a bucket of an S3 server.

use std::path::{Path, PathBuf};

use haulage_node::source::{Binding, Source, bind};
use haulage_node::store::S3Settings;
use haulage_plan::contract::Contract;
use haulage_plan::definition::{Column, Source as Declared, SourceKind};
use haulage_test_support::s3::S3;
use tempfile::TempDir;

use crate::inside;
use crate::kinds::{self, Kind};

pub(crate) struct Place {
    /// What paths are relative to.
    pub(crate) base: String,
    /// Where the files are in either case.
    folder: PathBuf,
    settings: S3Settings,
    _keep: Keep,
}

enum Keep {
    Folder(#[expect(dead_code, reason = "held, so that the folder stays")] TempDir),
    Server(#[expect(dead_code, reason = "held, so that the server runs")] S3),
}

impl Place {
    pub(crate) fn local() -> Self {
        let folder = haulage_test_support::folder("sources").unwrap();
        Self {
            base: folder.path().to_str().unwrap().to_owned(),
            folder: folder.path().to_owned(),
            settings: S3Settings::default(),
            _keep: Keep::Folder(folder),
        }
    }

    pub(crate) async fn s3() -> Self {
        let server = S3::start(&["data"]).await.unwrap();
        Self {
            base: "s3://data".to_owned(),
            folder: server.folder("data"),
            settings: inside::settings(&server.endpoint()),
            _keep: Keep::Server(server),
        }
    }

    pub(crate) fn is_s3(&self) -> bool {
        matches!(self._keep, Keep::Server(_))
    }

    pub(crate) fn write(&self, name: &str, data: &[u8]) {
        std::fs::write(self.folder.join(name), data).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.join(name)).unwrap();
    }

    /// How often this process has the file open. Only Linux tells.
    pub(crate) fn open_files(&self, name: &str) -> usize {
        let file = self.folder.join(name);
        let Ok(open) = std::fs::read_dir(Path::new("/proc/self/fd")) else {
            return 0;
        };
        open.flatten()
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == file))
            .count()
    }

    /// The source at this path, with the columns of the records.
    pub(crate) fn source(&self, kind: &Kind, path: &str, chunk_bytes: u64, checkpoint_rows: u64) -> Box<dyn Source> {
        let declared = (kind.declare)(path.to_owned(), kinds::columns(), chunk_bytes);
        self.bound(declared, Contract::default(), None, checkpoint_rows)
    }

    /// The source at this path with these columns and under this contract, as a run was planned that has `planned`.
    pub(crate) fn under(
        &self,
        kind: &Kind,
        path: &str,
        columns: Vec<Column>,
        contract: Contract,
        planned: Option<Vec<Column>>,
    ) -> Box<dyn Source> {
        self.bound((kind.declare)(path.to_owned(), columns, 70_000), contract, planned, 500)
    }

    fn bound(
        &self,
        kind: SourceKind,
        contract: Contract,
        planned: Option<Vec<Column>>,
        checkpoint_rows: u64,
    ) -> Box<dyn Source> {
        let declared = Declared {
            name: "raw".to_owned(),
            lookup: false,
            kind,
            partitions: Vec::new(),
            contract,
            planned,
            place: Default::default(),
        };
        let binding = Binding {
            base: self.base.clone(),
            s3: self.settings.clone(),
            checkpoint_rows,
            databases: Default::default(),
        };
        bind(&declared, binding).unwrap()
    }
}
