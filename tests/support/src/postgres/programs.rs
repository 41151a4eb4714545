//! PostgreSQL's programs on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::Account;

/// Where distributions keep the programs of each version, next to each other.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The programs of one version.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    folder: PathBuf,
    account: Account,
}

impl Programs {
    /// The newest version that the distribution has, else whatever is in the path.
    pub(super) fn find() -> Result<Self> {
        let mut versions = Vec::new();
        for version in std::fs::read_dir(VERSIONS).into_iter().flatten().flatten() {
            let number: u32 = version.file_name().to_string_lossy().parse().unwrap_or(0);
            versions.push((number, version.path().join("bin")));
        }
        versions.sort();
        let newest_first = versions.into_iter().rev().map(|(_, folder)| folder);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folder = newest_first
            .chain(std::env::split_paths(&path))
            .find(|folder| folder.join("initdb").exists() && folder.join("psql").exists())
            .with_context(|| {
                format!("PostgreSQL's initdb is neither under {VERSIONS} nor in PATH; tests/run installs it")
            })?;
        Ok(Self {
            folder,
            account: Account::of("postgres")?,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command as the server's user.
    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = self.account.command();
        command.arg(self.path(name));
        command
    }

    /// A server that is told to quit when the thread that started it ends. No file of it can grow beyond `limit` KiB.
    pub(super) fn server(&self, name: &str, limit: Option<u64>) -> Command {
        let mut command = self.account.server("QUIT");
        if let Some(kib) = limit {
            let script = format!("ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
            command.args(["sh", "-c", &script]);
        }
        command.arg(self.path(name));
        command
    }

    /// Makes a folder the server's own.
    pub(super) fn give(&self, folder: &Path) -> Result<()> {
        self.account.give(folder)
    }
}
