//! The ledger in a SQLite file, for one process and its readers.
//!
//! Writes take SQLite's write lock when they begin (`BEGIN IMMEDIATE`), on the one connection of this process that
//! writes: so nothing is ever judged that another writer changes meanwhile, and no lock is upgraded, which SQLite would
//! refuse without waiting. There is no lease, and a campaign is always won: a file belongs to one process, whose lock
//! on the home keeps others away, and one that comes back must not wait for itself. Readers have connections of their own and, thanks to WAL, never wait for a writer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use haulage_core::event::Event;
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::submission::Submission;
use sqlx::migrate::{AppliedMigration, Migrate as _, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{QueryBuilder, SqliteConnection, Transaction};

use super::admit::{Advance, Head, NewEvent, Prior, Replaying, Stored};
use super::leader::{Campaign, Candidate, Led};
use super::rows::{self, signed, unsigned};
use super::write::{self, NewRun, Session};
use super::{Access, Append, Appended, Error, Ledger, RunRow, Submitted, Unpruned, schema};

/// How long a write waits for another process's write.
const BUSY: Duration = Duration::from_secs(10);
/// Of two connections that make a new file a WAL one at once, SQLite now and then tells one "locked" without letting it
/// wait for [`BUSY`], lest they wait for each other: tried this often, [`BUSY_PAUSE`] apart.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(25);
/// People who look while runs go on.
const READERS: u32 = 4;
/// Six values a row; SQLite takes 32,766 values a statement.
const ROWS_PER_INSERT: usize = 1000;

/// The replay of a run that stands, or may yet.
const REPLAYING: &str = "SELECT run, submission_key, outcome FROM runs
    WHERE replays = ? AND (outcome IS NULL OR outcome = 'published') ORDER BY ordinal DESC LIMIT 1";

/// Runs at rest with something in the checkpoint store. By an index of just those.
const UNPRUNED: &str = "SELECT run, finished_at, ordinal FROM runs
    WHERE finished_at <= ?1 AND NOT emptied AND (finished_at, ordinal) > (?2, ?3)
    ORDER BY finished_at, ordinal LIMIT ?4";

/// The run that replaces another and stands, or may yet.
const RERUN: &str = "SELECT run FROM runs
    WHERE replaces = ? AND (outcome IS NULL OR outcome = 'published') ORDER BY ordinal DESC LIMIT 1";

/// A ledger in a SQLite file.
pub(super) struct Sqlite {
    readers: SqlitePool,
    /// Has one connection.
    writer: SqlitePool,
}

impl Sqlite {
    pub(super) async fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let place = path.display().to_string();
        let read = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY);
        // Idle connections stay: when the last one goes, SQLite folds the WAL away and the next one begins anew.
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .idle_timeout(None)
                .max_lifetime(None)
                .acquire_timeout(BUSY)
        };
        let readers = pool(READERS).connect_lazy_with(read);
        let migrator = sqlx::migrate!("migrations/sqlite");
        if access == Access::Read {
            if !tokio::fs::try_exists(path).await.unwrap_or(true) {
                return Err(Error::Absent { place });
            }
            let mut connection = acquire(&readers, &place).await?;
            return match schema::compare(&applied(&mut connection).await?, &migrator)? {
                schema::Standing::Current => Ok(Self {
                    writer: readers.clone(),
                    readers,
                }),
                schema::Standing::Behind(0) => Err(Error::Absent { place }),
                schema::Standing::Behind(found) => Err(Error::Schema {
                    found,
                    known: schema::newest(&migrator),
                }),
            };
        }
        make_folder(path).await?;
        let write = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An append that was answered survives a power cut, which WAL alone doesn't promise.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let writer = pool(1).connect_lazy_with(write);
        drop(acquire(&writer, &place).await?);
        migrate(&writer, &migrator).await?;
        Ok(Self { readers, writer })
    }

    async fn begin(&self) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(SqliteSession {
            transaction: self.writer.begin_with("BEGIN IMMEDIATE").await?,
        }))
    }
}

/// Makes the folder that the file is in.
async fn make_folder(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            tokio::fs::create_dir_all(folder).await.map_err(|source| Error::Folder {
                path: folder.to_owned(),
                source,
            })
        }
        Some(_) | None => Ok(()),
    }
}

/// The first connection of a pool; the one that finds out that the file can't be opened.
async fn acquire(pool: &SqlitePool, place: &str) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, Error> {
    let mut tries = 1;
    loop {
        match pool.acquire().await.map_err(|source| Error::Open {
            place: place.to_owned(),
            source,
        }) {
            Err(error) if error.is_transient() && tries < BUSY_TRIES => tries += 1,
            connection => return connection,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

/// Brings the schema up to date under the write lock: sqlx's migrator has no lock of its own for SQLite.
async fn migrate(writer: &SqlitePool, migrator: &Migrator) -> Result<(), Error> {
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    match schema::compare(&applied(&mut transaction).await?, migrator)? {
        schema::Standing::Current => {}
        // Not `run`: through `Acquire`, the future of whoever opens a ledger would not be `Send`.
        schema::Standing::Behind(_) => migrator.run_direct(None, &mut *transaction, false).await?,
    }
    Ok(transaction.commit().await?)
}

async fn applied(connection: &mut SqliteConnection) -> Result<Vec<AppliedMigration>, Error> {
    let exists: bool = sqlx::query_scalar("SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?")
        .bind(schema::TABLE)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    Ok(connection.list_applied_migrations(schema::TABLE).await?)
}

#[async_trait]
impl Ledger for Sqlite {
    fn is_leased(&self) -> bool {
        false
    }

    async fn campaign(&self, candidate: &Candidate<'_>, at: Millis) -> Result<Campaign, Error> {
        let epoch: i64 =
            sqlx::query_scalar("UPDATE leader SET epoch = epoch + 1, leader = ?, claimed_at = ? RETURNING epoch")
                .bind(candidate.name)
                .bind(signed(at.0))
                .fetch_one(&self.writer)
                .await?;
        Ok(Campaign::Won(Epoch(unsigned(epoch))))
    }

    async fn renew(&self, epoch: Epoch, _: Duration) -> Result<(), Error> {
        let theirs = self.epoch().await?;
        match theirs == epoch {
            true => Ok(()),
            false => Err(Error::Deposed { theirs, ours: epoch }),
        }
    }

    async fn resign(&self, _: Epoch) -> Result<(), Error> {
        // There is nothing that the next one would have to wait for.
        Ok(())
    }

    async fn leader(&self) -> Result<Option<Led>, Error> {
        let (epoch, name, since): (i64, String, i64) = sqlx::query_as("SELECT epoch, leader, claimed_at FROM leader")
            .fetch_one(&self.readers)
            .await?;
        Ok((epoch > 0).then(|| Led {
            epoch: Epoch(unsigned(epoch)),
            name,
            address: String::new(),
            since: Millis(unsigned(since)),
            left: None,
        }))
    }

    async fn mark(&self) -> Result<String, Error> {
        Ok(sqlx::query_scalar("SELECT mark FROM leader")
            .fetch_one(&self.readers)
            .await?)
    }

    async fn epoch(&self) -> Result<Epoch, Error> {
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM leader")
            .fetch_one(&self.readers)
            .await?;
        Ok(Epoch(unsigned(epoch)))
    }

    async fn submit(&self, epoch: Epoch, submission: &Submission, rerun: bool, at: Millis) -> Result<Submitted, Error> {
        write::submit(self.begin(), epoch, submission, rerun, at).await
    }

    async fn append(&self, epoch: Epoch, appends: &[Append]) -> Result<Vec<Appended>, Error> {
        write::append(self.begin(), epoch, appends).await
    }

    async fn replaying(&self, run: &RunId) -> Result<Option<Replaying>, Error> {
        let replaying = sqlx::query_as(REPLAYING)
            .bind(run.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(replaying.map(rows::replaying))
    }

    async fn read(&self, run: &RunId, after: Seq) -> Result<Vec<(Seq, Event)>, Error> {
        let stored: Vec<(i64, String)> =
            sqlx::query_as("SELECT seq, body FROM events WHERE run = ? AND seq > ? ORDER BY seq")
                .bind(run.as_str())
                .bind(signed(after.0))
                .fetch_all(&self.readers)
                .await?;
        rows::events(run, after, stored)
    }

    async fn unpruned(&self, until: Millis, after: Option<(Millis, u64)>, limit: u32) -> Result<Vec<Unpruned>, Error> {
        let (at, ordinal) = after.unwrap_or_default();
        let found = sqlx::query_as(UNPRUNED)
            .bind(signed(until.0))
            .bind(signed(at.0))
            .bind(signed(ordinal))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        Ok(found.into_iter().map(rows::unpruned).collect())
    }

    async fn emptied(&self, epoch: Epoch, run: &RunId) -> Result<(), Error> {
        write::emptied(self.begin(), epoch, run).await
    }

    async fn open_runs(&self) -> Result<Vec<RunId>, Error> {
        let runs: Vec<String> = sqlx::query_scalar("SELECT run FROM runs WHERE finished_at IS NULL ORDER BY ordinal")
            .fetch_all(&self.readers)
            .await?;
        Ok(runs.into_iter().map(RunId).collect())
    }

    async fn list(&self, pipeline: Option<&str>, limit: u32) -> Result<Vec<RunRow>, Error> {
        let listed: Vec<rows::Listed> = sqlx::query_as(
            "SELECT run, pipeline, submitted_at, finished_at, outcome FROM runs
             WHERE ?1 IS NULL OR pipeline = ?1 ORDER BY ordinal DESC LIMIT ?2",
        )
        .bind(pipeline)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        listed.into_iter().map(rows::run_row).collect()
    }
}

struct SqliteSession {
    transaction: Transaction<'static, sqlx::Sqlite>,
}

#[async_trait]
impl Session for SqliteSession {
    async fn mark(&mut self) -> Result<String, Error> {
        Ok(sqlx::query_scalar("SELECT mark FROM leader")
            .fetch_one(&mut *self.transaction)
            .await?)
    }

    async fn epoch(&mut self) -> Result<Epoch, Error> {
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM leader")
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(Epoch(unsigned(epoch)))
    }

    async fn heads(&mut self, runs: &[&RunId]) -> Result<HashMap<RunId, Head>, Error> {
        let mut heads = HashMap::with_capacity(runs.len());
        for run in runs {
            let head: Option<(String, i64, Option<String>)> =
                sqlx::query_as("SELECT run, last_seq, outcome FROM runs WHERE run = ?")
                    .bind(run.as_str())
                    .fetch_optional(&mut *self.transaction)
                    .await?;
            heads.extend(head.map(rows::head).transpose()?);
        }
        Ok(heads)
    }

    async fn insert(&mut self, epoch: Epoch, events: &[NewEvent<'_>]) -> Result<(), Error> {
        for some in events.chunks(ROWS_PER_INSERT) {
            let mut insert = QueryBuilder::new("INSERT INTO events (run, seq, epoch, at, kind, body) ");
            insert.push_values(some, |mut row, event| {
                row.push_bind(event.run.as_str())
                    .push_bind(signed(event.seq.0))
                    .push_bind(signed(epoch.0))
                    .push_bind(signed(event.at.0))
                    .push_bind(event.kind)
                    .push_bind(event.body);
            });
            // Every number of rows is another statement; keeping them would push the others out of the cache.
            insert.build().persistent(false).execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    async fn advance(&mut self, advances: &BTreeMap<&RunId, Advance>) -> Result<(), Error> {
        for (run, advance) in advances {
            sqlx::query("UPDATE runs SET last_seq = ?, finished_at = ?, outcome = ? WHERE run = ?")
                .bind(signed(advance.last.0))
                .bind(advance.finished.map(|(at, _)| signed(at.0)))
                .bind(advance.finished.map(|(_, how)| rows::outcome_text(how)))
                .bind(run.as_str())
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    async fn stored(&mut self, run: &RunId, after: Seq, limit: usize) -> Result<Vec<Stored>, Error> {
        let stored: Vec<(i64, i64, String)> =
            sqlx::query_as("SELECT seq, epoch, body FROM events WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?")
                .bind(run.as_str())
                .bind(signed(after.0))
                .bind(signed(limit as u64))
                .fetch_all(&mut *self.transaction)
                .await?;
        Ok(stored.into_iter().map(rows::stored).collect())
    }

    async fn lock_key(&mut self, _key: &str) -> Result<(), Error> {
        // The write lock keeps everybody waiting.
        Ok(())
    }

    async fn prior(&mut self, key: &str) -> Result<Prior, Error> {
        let newest: Option<(String, i64, Option<String>)> = sqlx::query_as(
            "SELECT run, number, outcome FROM runs WHERE submission_key = ? ORDER BY number DESC LIMIT 1",
        )
        .bind(key)
        .fetch_optional(&mut *self.transaction)
        .await?;
        let published: Option<String> = sqlx::query_scalar(
            "SELECT run FROM runs WHERE submission_key = ? AND outcome = 'published' ORDER BY number DESC LIMIT 1",
        )
        .bind(key)
        .fetch_optional(&mut *self.transaction)
        .await?;
        rows::prior(newest, published)
    }

    async fn replaying(&mut self, run: &RunId) -> Result<Option<Replaying>, Error> {
        let replaying = sqlx::query_as(REPLAYING)
            .bind(run.as_str())
            .fetch_optional(&mut *self.transaction)
            .await?;
        Ok(replaying.map(rows::replaying))
    }

    async fn rerun(&mut self, run: &RunId) -> Result<Option<RunId>, Error> {
        let rerun: Option<String> = sqlx::query_scalar(RERUN)
            .bind(run.as_str())
            .fetch_optional(&mut *self.transaction)
            .await?;
        Ok(rerun.map(RunId))
    }

    async fn pruned(&mut self, run: &RunId) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM events WHERE run = ? AND kind = 'rejects_pruned')";
        Ok(sqlx::query_scalar(sql)
            .bind(run.as_str())
            .fetch_one(&mut *self.transaction)
            .await?)
    }

    async fn key_of(&mut self, run: &RunId) -> Result<Option<String>, Error> {
        Ok(sqlx::query_scalar("SELECT submission_key FROM runs WHERE run = ?")
            .bind(run.as_str())
            .fetch_optional(&mut *self.transaction)
            .await?)
    }

    async fn start(&mut self, new: NewRun<'_>) -> Result<bool, Error> {
        let started = sqlx::query(
            "INSERT INTO runs (run, submission_key, number, pipeline, submitted_at, last_seq, replays, replaces)
             VALUES (?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT (run) DO NOTHING",
        )
        .bind(new.run.as_str())
        .bind(new.key)
        .bind(i64::from(new.number))
        .bind(new.pipeline)
        .bind(signed(new.submitted_at.0))
        .bind(new.replays.map(RunId::as_str))
        .bind(new.replaces.map(RunId::as_str))
        .execute(&mut *self.transaction)
        .await?;
        Ok(started.rows_affected() == 1)
    }

    async fn empty(&mut self, run: &RunId) -> Result<(), Error> {
        sqlx::query("UPDATE runs SET emptied = TRUE WHERE run = ? AND finished_at IS NOT NULL")
            .bind(run.as_str())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<(), Error> {
        Ok(self.transaction.commit().await?)
    }
}
