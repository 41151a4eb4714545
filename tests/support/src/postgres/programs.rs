//! PostgreSQL's programs on this machine, and the user that they run as: PostgreSQL refuses to run as root, so root runs
//! it as the user `postgres`, which every package of it makes.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where distributions keep the programs of each version, next to each other.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The programs of one version.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    folder: PathBuf,
    /// Whether commands have to switch to the user `postgres`.
    switch: bool,
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
            switch: id(&["-u"])? == 0,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command as the server's user.
    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = self.switched(None);
        command.arg(self.path(name));
        command
    }

    /// A server that is told to quit when the thread that started it ends. No file of it can grow beyond `limit` KiB.
    pub(super) fn server(&self, name: &str, limit: Option<u64>) -> Command {
        let mut command = self.switched(Some("QUIT"));
        if let Some(kib) = limit {
            let script = format!("ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
            command.args(["sh", "-c", &script]);
        }
        command.arg(self.path(name));
        command
    }

    /// Makes a folder the server's own.
    pub(super) fn give(&self, folder: &Path) -> Result<()> {
        if self.switch {
            chown(folder, Some(id(&["-u", "postgres"])?), Some(id(&["-g", "postgres"])?))?;
        }
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700))?;
        Ok(())
    }

    /// What comes before a program and its arguments.
    fn switched(&self, signal_with_us: Option<&str>) -> Command {
        // Only Linux has setpriv, and the signal that it asks for.
        let linux = cfg!(target_os = "linux");
        let mut command = Command::new(if linux { "setpriv" } else { "env" });
        if linux && self.switch {
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        }
        if let (true, Some(signal)) = (linux, signal_with_us) {
            command.args(["--pdeathsig", signal]);
        }
        // The folder that we are in may be closed to the server's user.
        command.current_dir("/").env("LC_ALL", "C");
        command
    }
}

fn id(args: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(args).output().context("starting id")?;
    ensure!(
        output.status.success(),
        "id {args:?}: {}; root runs PostgreSQL as the user `postgres`",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
