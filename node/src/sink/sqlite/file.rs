//! One SQLite file: its only writing connection in this process, and what its errors mean.
//!
//! SQLite lets one connection write at a time. Within a process all writers of a file queue on a mutex, which is fair and
//! costs nothing; against other processes stands the busy timeout.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tokio::sync::OwnedMutexGuard;

/// Longest wait for a writer in another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

type Slot = tokio::sync::Mutex<Option<SqliteConnection>>;

/// The connection of each file that this process has open, by absolute path: two destinations may name the same file.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Slot>>>> = LazyLock::new(Mutex::default);

/// A SQLite file as a destination names it.
pub(super) struct File {
    destination: String,
    path: PathBuf,
    /// Whether its folder is the one that is made when it is missing.
    at_home: bool,
    slot: Arc<Slot>,
}

impl File {
    /// `home` is the only folder that is made if the file is to be in it: any other that is missing is a mistake.
    pub(super) fn new(destination: &str, path: PathBuf, home: Option<&Path>) -> Self {
        let path = std::path::absolute(&path).unwrap_or(path);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, slot| slot.strong_count() > 0);
        let slot = match open.get(&path).and_then(Weak::upgrade) {
            Some(slot) => slot,
            None => {
                let slot = Arc::new(Slot::default());
                open.insert(path.clone(), Arc::downgrade(&slot));
                slot
            }
        };
        drop(open);
        Self {
            destination: destination.to_owned(),
            at_home: home.is_some_and(|home| std::path::absolute(home).ok().as_deref() == path.parent()),
            path,
            slot,
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The writing connection, alone. Makes the file.
    pub(super) async fn writer(&self) -> Result<Writer<'_>, Failure> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        // A file that was removed meanwhile would be written to without a name.
        let kept = slot.take().filter(|_| self.path.exists());
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(Writer {
            file: self,
            slot,
            connection,
        })
    }

    /// The writing connection for an undoing, which leaves a record against late writers. `None` if there is no file and
    /// none can be made: then nothing was ever written to it, or it is gone with all that was. A file that is there and
    /// can't be opened holds what is to be undone.
    pub(super) async fn writer_to_undo(&self) -> Result<Option<Writer<'_>>, Failure> {
        match self.writer().await {
            Ok(writer) => Ok(Some(writer)),
            Err(failure) if failure.class == Class::Permanent && self.is_absent().await => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether there is no such file for sure. One that can't be looked at may be there.
    async fn is_absent(&self) -> bool {
        let looked = tokio::fs::metadata(&self.path).await;
        looked.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    }

    async fn connect(&self) -> Result<SqliteConnection, Failure> {
        if self.at_home
            && let Some(home) = self.path.parent()
        {
            let made = tokio::fs::create_dir_all(home).await;
            made.map_err(|error| self.says(&format!("its folder can't be made: {error}; check the path")))?;
        }
        self.folder().await?;
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A publish that was acknowledged survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // A rename of staging must not rewrite, or stumble over, the views that name the target.
            .pragma("legacy_alter_table", "ON")
            .disable_statement_logging();
        options
            .connect()
            .await
            .map_err(|error| self.failure("opening it", error))
    }

    /// A connection that can't write; `None` if there is no file.
    pub(super) async fn reader(&self) -> Result<Option<SqliteConnection>, Failure> {
        if !self.path.exists() {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        options
            .connect()
            .await
            .map(Some)
            .map_err(|error| self.failure("opening it", error))
    }

    /// Refuses a path at which no file can be written, before anything is. Leaves nothing there.
    pub(super) async fn check(&self) -> Result<(), Failure> {
        let Some(folder) = self.folder().await? else {
            return Ok(());
        };
        let path = self.path.clone();
        let tried = tokio::task::spawn_blocking(move || {
            match std::fs::metadata(&path) {
                Ok(there) if !there.is_file() => return Err("the file can't be opened: it is no file".to_owned()),
                // Asked, not opened: closing a file drops every lock that this process has on it, also those of its
                // SQLite connections, and then another process takes the write-ahead log away from under them.
                Ok(_) => {
                    let may = rustix::fs::access(&path, rustix::fs::Access::WRITE_OK);
                    may.map_err(|error| format!("the file can't be written: {error}"))?;
                }
                Err(_) => {}
            }
            // Also beside a file that is there: SQLite writes its log beside it. This one has no name, or not for long.
            let made = tempfile::tempfile_in(&folder);
            made.map_err(|error| format!("no file can be made in folder {}: {error}", folder.display()))
        });
        match tried.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => Err(self.says(&format!("{why}; check its path and rights"))),
            Err(_) => Err(Failure::transient(format!(
                "{}: it could not be looked at",
                self.words()
            ))),
        }
    }

    /// The folder it is in; `None` if that is still to be made by us. Permanent failure if it is missing otherwise.
    async fn folder(&self) -> Result<Option<PathBuf>, Failure> {
        // The root has no parent, and is no file.
        let folder = self.path.parent().unwrap_or(&self.path);
        match tokio::fs::metadata(folder).await {
            Ok(there) if there.is_dir() => Ok(Some(folder.to_owned())),
            Ok(_) => Err(self.says(&format!("{} is no folder; check the path", folder.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound && self.at_home => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.says(&format!(
                "there is no folder {}; make it, or correct the path",
                folder.display()
            ))),
            Err(error) => Err(self.says(&format!(
                "folder {} can't be looked at: {error}; check the path",
                folder.display()
            ))),
        }
    }

    /// Which file it is, whatever it is called: two names may lead to one, also before it is made.
    pub(super) async fn identity(&self) -> String {
        #[cfg(unix)]
        if let Ok(there) = tokio::fs::metadata(&self.path).await {
            use std::os::unix::fs::MetadataExt;
            return format!("{}:{}", there.dev(), there.ino());
        }
        let path = match (self.path.parent(), self.path.file_name()) {
            (Some(folder), Some(name)) => tokio::fs::canonicalize(folder).await.map(|folder| folder.join(name)),
            _ => Ok(self.path.clone()),
        };
        format!("{:?}", path.unwrap_or_else(|_| self.path.clone()))
    }

    fn says(&self, what: &str) -> Failure {
        Failure::permanent(format!("{}: {what}", self.words()))
    }

    fn words(&self) -> String {
        format!("destination {} (SQLite file {})", self.destination, self.path.display())
    }

    /// Turns an error into a failure. `doing` completes "while ...".
    pub(super) fn failure(&self, doing: &str, error: sqlx::Error) -> Failure {
        let place = self.words();
        let sqlx::Error::Database(said) = &error else {
            return match error {
                sqlx::Error::WorkerCrashed => Failure::transient(format!("{place}: its worker ended while {doing}")),
                error => Failure::permanent(format!("{place}: {error} while {doing}")),
            };
        };
        let message = said.message();
        // The low byte of an extended result code is the primary one.
        match primary(&error) {
            Some(5 | 6) => Failure::transient(format!("{place}: locked by another process while {doing}")),
            Some(8 | 3) => Failure::permanent(format!("{place}: permission denied while {doing}: {message}")),
            Some(10) => Failure::transient(format!("{place}: the disk failed while {doing}: {message}")),
            Some(13) => Failure::permanent(format!("{place}: the disk is full while {doing}; free space there")),
            Some(14) => Failure::permanent(format!("{place}: the file can't be opened; check its path and rights")),
            Some(26) => Failure::permanent(format!("{place}: the file is no SQLite database; name another path")),
            Some(11) => Failure::permanent(format!(
                "{place}: the file is damaged ({message}); restore it from a backup"
            )),
            Some(_) | None => Failure::permanent(format!("{place}: {message} while {doing}")),
        }
    }
}

/// SQLite's primary result code.
fn primary(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(said) = error else {
        return None;
    };
    said.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}

/// The writing connection, for one use. Dropping it closes the connection, and so rolls back; [`Writer::keep`] keeps it.
pub(super) struct Writer<'a> {
    file: &'a File,
    slot: OwnedMutexGuard<Option<SqliteConnection>>,
    connection: SqliteConnection,
}

impl Writer<'_> {
    /// The connection, for a query.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Runs statements, and returns the rows that they affected.
    pub(super) async fn run(&mut self, sql: impl Into<String>) -> Result<u64, sqlx::Error> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.into()))
            .execute(&mut self.connection)
            .await?;
        Ok(done.rows_affected())
    }

    /// Runs statements; an error becomes a failure "while `doing`".
    pub(super) async fn must(&mut self, doing: &str, sql: impl Into<String>) -> Result<u64, Failure> {
        let done = self.run(sql).await;
        done.map_err(|error| self.file.failure(doing, error))
    }

    /// Turns an error into a failure.
    pub(super) fn failure(&self, doing: &str, error: sqlx::Error) -> Failure {
        self.file.failure(doing, error)
    }

    /// Keeps the connection for the next use. Only when no transaction is open on it.
    pub(super) fn keep(self) {
        let Self {
            mut slot, connection, ..
        } = self;
        *slot = Some(connection);
    }
}
