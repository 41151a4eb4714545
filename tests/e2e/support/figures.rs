//! A pipeline that needs no server: numbers in a file, loaded into SQLite by a cluster whose ledger and checkpoints are
//! files, too.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::cluster::Settings;
use super::flights::sqlite;

/// The folder of a test, and what is in it.
pub(crate) struct Numbers {
    folder: tempfile::TempDir,
    pub(crate) rows: usize,
}

impl Numbers {
    /// `rows` rows of about 30 bytes, in chunks of `chunk` bytes and segments of `segment` rows; `sql` makes the load.
    pub(crate) fn new(rows: usize, chunk: usize, segment: usize, sql: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let pipeline = format!(
            "pipeline: numbers\n\
             checkpoint_rows: {segment}\n\
             sources:\n  raw: {{csv: numbers.csv, chunk_size: {chunk}, columns: {{id: int!, name: text}}}}\n\
             steps:\n  made: {sql}\n\
             loads:\n  out: {{from: made, to: warehouse, table: out, mode: replace, key: [id]}}\n"
        );
        std::fs::write(folder.path().join("numbers.yaml"), pipeline)?;
        let lines = (0..rows).map(|id| format!("{id},somebody with number {id}\n"));
        let text: String = std::iter::once("id,name\n".to_owned()).chain(lines).collect();
        std::fs::write(folder.path().join("numbers.csv"), text)?;
        Ok(Self { folder, rows })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn pipeline(&self) -> PathBuf {
        self.folder().join("numbers.yaml")
    }

    pub(crate) fn warehouse(&self) -> PathBuf {
        self.folder().join("warehouse.db")
    }

    pub(crate) fn settings(&self, nodes: usize) -> Settings {
        Settings {
            ledger: format!("sqlite:{}", self.folder().join("ledger.db").display()),
            warehouse: format!("sqlite:{}", self.warehouse().display()),
            store: self.folder().join("store").display().to_string(),
            nodes,
            envs: Vec::new(),
            faults: None,
        }
    }

    /// Fails unless every row is there once.
    pub(crate) async fn check_exact(&self) -> Result<()> {
        let query = "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || min(id) || ' ' || max(id) FROM out";
        let found = sqlite(&self.warehouse(), query).await?;
        let rows = self.rows;
        ensure!(
            found == [format!("{rows} {rows} 0 {}", rows - 1)],
            "the target holds {found:?}"
        );
        Ok(())
    }
}
