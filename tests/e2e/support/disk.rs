//! A disk that is full: a small tmpfs where the test may mount one, otherwise a limit on the size of a file.
//!
//! The first says ENOSPC, as a real disk does; the second, for those who are not root, EFBIG. Both are errors in the
//! middle of a write.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// A small file system; unmounted on drop.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts `mib` MiB at a folder, which is made; `None` where this user may not mount.
    pub(crate) fn mount(path: &Path, mib: u64) -> Result<Option<Self>> {
        std::fs::create_dir_all(path)?;
        let size = format!("size={mib}m,mode=0777");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "haulage-test"])
            .arg(path)
            .output()?;
        if output.status.success() {
            return Ok(Some(Self { path: path.to_owned() }));
        }
        eprintln!(
            "no tmpfs ({}): a limit on file sizes instead",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(None)
    }

    /// Gives it `mib` MiB, keeping what is there.
    pub(crate) fn grow(&self, mib: u64) -> Result<()> {
        let size = format!("remount,size={mib}m");
        let output = Command::new("mount").args(["-o", &size]).arg(&self.path).output()?;
        ensure!(
            output.status.success(),
            "mount -o {size}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that is being stopped may still have files open there.
        if let Err(error) = Command::new("umount").arg("-l").arg(&self.path).status() {
            eprintln!("{} was not unmounted: {error}", self.path.display());
        }
    }
}
