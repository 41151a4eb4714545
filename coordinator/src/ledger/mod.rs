//! The ledger: the only durable truth about runs. PostgreSQL for a cluster, SQLite for one process.
//!
//! An append is conditional on the expected place in the run's log and on the epoch of the leader, and many runs'
//! appends commit in one transaction. A conflict of one run refuses that run's append alone; a lost epoch ends
//! everything ([`Error::Deposed`]), and is never retried.
//!
//! Reading needs no epoch: [`open_read_only`] serves whoever only looks. Writing goes through [`group::Writer`], which
//! gathers the appends of all runs. The writing transactions (`write`), what may stand (`admit`) and what rows mean
//! (`rows`) exist once for both databases; `postgres` and `sqlite` hold their connections and their SQL.
//!
//! Only this module touches the ledger's tables. It does not fold events and does not know what they mean, but for four:
//! `submitted` opens a run's log and `finished` closes it, and nothing stands after that, but that `revert_requested`
//! opens the log of a published run once more, and `rejects_pruned` any that is closed, to be closed again at once.

mod address;
pub mod admit;
pub mod group;
mod leader;
mod postgres;
mod rows;
mod schema;
mod sqlite;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::submission::Submission;

pub use leader::{Campaign, Candidate, Led};

/// Why the ledger refused, or could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another coordinator has claimed the ledger since. Ends this leader's work.
    #[error("another coordinator has claimed the ledger (its epoch is {theirs}, ours {ours}); this one stops leading")]
    Deposed {
        /// The epoch in the ledger.
        theirs: Epoch,
        /// The epoch of the caller.
        ours: Epoch,
    },
    /// The database could not be reached or answered with an error. May pass by itself.
    #[error("ledger: {0}")]
    Database(#[from] sqlx::Error),
    /// The database could not be opened at all.
    #[error("can't open the ledger at {place}: {source}")]
    Open {
        /// The file, or host, port and database; never a user or a password.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The folder of a SQLite ledger could not be made.
    #[error("can't make the folder {} for the ledger: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing to read: reading never makes a ledger.
    #[error("there is no ledger at {place}; submit a run first, or name another ledger")]
    Absent {
        /// As in [`Error::Open`].
        place: String,
    },
    /// The database holds a schema that this release can't work with.
    #[error(
        "the ledger has schema version {found}, this release works with {known}; {}",
        if found > known { "run the release that wrote it" } else { "let a coordinator of this release open it once" }
    )]
    Schema {
        /// The version in the database.
        found: i64,
        /// The version this release makes.
        known: i64,
    },
    /// The schema could not be brought up to date.
    #[error("ledger schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row that can't be read back. Concerns one run, never the others.
    #[error("run {run} has an unreadable event {seq}: {source}")]
    Unreadable {
        /// The run.
        run: RunId,
        /// The place in its log.
        seq: Seq,
        /// Why.
        source: serde_json::Error,
    },
    /// An event that can't be written. Concerns one run, never the others.
    #[error("an event of run {run} can't be written to the ledger: {source}")]
    Unwritable {
        /// The run.
        run: RunId,
        /// Why.
        source: serde_json::Error,
    },
    /// A replay that can't be started now, or what stands in the way of a run because one was.
    #[error(transparent)]
    Unreplayable(#[from] admit::Unreplayable),
    /// The address names no ledger this release knows. Holds no part of the address that could be a password.
    #[error("ledger address: {0}")]
    Address(String),
}

impl Error {
    /// The database has not said anything for as long as the caller would wait.
    pub(crate) fn silent() -> Self {
        Self::Database(sqlx::Error::PoolTimedOut)
    }

    /// Whether the same call may succeed a moment later. The outcome of the failed call may be unknown; repeating an
    /// append or a submission is harmless ([`Ledger::append`], [`Ledger::submit`]).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(source) | Self::Open { source, .. } => transient(source),
            Self::Deposed { .. }
            | Self::Folder { .. }
            | Self::Absent { .. }
            | Self::Schema { .. }
            | Self::Migrate(_)
            | Self::Unreadable { .. }
            | Self::Unwritable { .. }
            | Self::Unreplayable(_)
            | Self::Address(_) => false,
        }
    }
}

/// Cut connections, a busy or restarting server, lock waits that ended, a full disk that somebody may empty.
fn transient(error: &sqlx::Error) -> bool {
    let refusal = match error {
        sqlx::Error::Database(refusal) => refusal,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => return true,
        _ => return false,
    };
    let code = refusal.code().unwrap_or_default();
    if refusal.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        // 25006: a server that was demoted to a standby under us. 25P03: we were too slow and lost the transaction.
        return ["08", "40", "53", "57", "58", "55P03", "25006", "25P03"]
            .iter()
            .any(|class| code.starts_with(class));
    }
    // SQLite's extended codes keep the primary one in the low byte: busy, locked, I/O error, full.
    code.parse::<u32>()
        .is_ok_and(|code| [5, 6, 10, 13].contains(&(code & 0xff)))
}

/// Opens a ledger to write to: makes it where it is missing and brings its schema up to date, safely also when several
/// processes do so at once. `url` is `postgres://...` or `sqlite:PATH`. The epoch is taken separately
/// ([`Ledger::campaign`]).
pub async fn open(url: &str) -> Result<Arc<dyn Ledger>, Error> {
    connect(url, Access::Write).await
}

/// Opens a ledger to read from. Makes nothing and changes nothing: [`Error::Absent`] where there is none,
/// [`Error::Schema`] where its schema is another. Every writing method then fails with [`Error::Database`].
pub async fn open_read_only(url: &str) -> Result<Arc<dyn Ledger>, Error> {
    connect(url, Access::Read).await
}

/// What a ledger was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

async fn connect(url: &str, access: Access) -> Result<Arc<dyn Ledger>, Error> {
    match address::Address::parse(url)? {
        address::Address::Postgres(options) => Ok(Arc::new(postgres::Postgres::open(*options, access).await?)),
        address::Address::Sqlite(path) => Ok(Arc::new(sqlite::Sqlite::open(&path, access).await?)),
    }
}

/// New events for one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The run.
    pub run: RunId,
    /// The place of the last event that the writer has folded.
    pub expected: Seq,
    /// What comes after it.
    pub events: Vec<Event>,
}

/// What became of one run's append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It stands; the place of its last event.
    At(Seq),
    /// The log is elsewhere: somebody else has written. Fold again from the ledger.
    Conflict,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The run that now answers for it.
    pub run: RunId,
    /// Whether it is new.
    pub disposition: Disposition,
}

/// How a submission relates to the run that answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// A new run, with its `submitted` event as seq 1.
    Started,
    /// The same submission is not at rest; this is its run.
    Attached,
    /// The same submission is published, and wasn't to be run again.
    AlreadyPublished,
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Its id.
    pub run: RunId,
    /// Its pipeline.
    pub pipeline: String,
    /// When it was submitted.
    pub submitted_at: Millis,
    /// When it came to rest, and how.
    pub finished: Option<(Millis, Outcome)>,
}

/// A run at rest that may still have something in the checkpoint store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpruned {
    /// Its id.
    pub run: RunId,
    /// Its place among those: when it came to rest, and its number in this ledger.
    pub place: (Millis, u64),
}

/// The ledger. One value is shared by every actor of a coordinator.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Whether leaders hold leases here, so that several coordinators may share this ledger. Without leases every
    /// campaign is won, which is right for one process and its successors.
    fn is_leased(&self) -> bool;

    /// Raises the epoch and takes it, unless another leader's lease runs. A refused campaign changes nothing.
    async fn campaign(&self, candidate: &Candidate<'_>, at: Millis) -> Result<Campaign, Error>;

    /// Extends the lease of an epoch, from now on. [`Error::Deposed`] if the epoch was raised since; a lease that has
    /// run out without that is extended like any other, since nobody else has led meanwhile.
    async fn renew(&self, epoch: Epoch, lease: Duration) -> Result<(), Error>;

    /// Ends the lease of an epoch at once, so that the next leader need not wait. The epoch stays until it is raised.
    async fn resign(&self, epoch: Epoch) -> Result<(), Error>;

    /// Who leads now: whose lease runs, or without leases whoever took the epoch last.
    async fn leader(&self) -> Result<Option<Led>, Error>;

    /// Six hex digits that tell this ledger from others; part of every run's id.
    async fn mark(&self) -> Result<String, Error>;

    /// The epoch that stands now; 0 if nobody has led yet.
    async fn epoch(&self) -> Result<Epoch, Error>;

    /// Starts a run, or finds the one that answers for the same submission (by [`Submission::key`]): the newest if it is
    /// not at rest, else the newest published one if `rerun` is false (also when a later rerun failed: its rollback
    /// left that one standing). Else the next number starts, and its `submitted` event names the newest published run
    /// of the submission in `replaces`. Two callers at once get the same run, and a caller that lost the answer can
    /// ask again.
    ///
    /// A submission that replays a run starts only while that run is published, was not run again on purpose, and has no
    /// other replay that stands; else [`Error::Unreplayable`], as for a rerun of a run that was replayed.
    async fn submit(&self, epoch: Epoch, submission: &Submission, rerun: bool, at: Millis) -> Result<Submitted, Error>;

    /// Appends for many runs in one transaction. The answers are in the order of `appends`; several appends of one run
    /// are judged one after the other.
    ///
    /// Repeating an append whose answer was lost is a success: events that already stand at exactly the expected places,
    /// written in the same epoch with the same content, are answered with [`Appended::At`], not with a conflict.
    /// An append to a run that has finished, or that doesn't exist, is a conflict; but for one that begins with
    /// `revert_requested`, to a run that has finished as published and has no replay that stands: that one is open again;
    /// and for `rejects_pruned` with the same `finished` again, while no replay reads the run's rejected rows.
    async fn append(&self, epoch: Epoch, appends: &[Append]) -> Result<Vec<Appended>, Error>;

    /// The replay of a run's rejected rows that is published, or not over.
    async fn replaying(&self, run: &RunId) -> Result<Option<admit::Replaying>, Error>;

    /// A run's events after a place, in order and without a gap. Empty if the run doesn't exist.
    async fn read(&self, run: &RunId, after: Seq) -> Result<Vec<(Seq, Event)>, Error>;

    /// Runs that came to rest at that time or before and may still have something in the checkpoint store, those behind a
    /// place, oldest first, at most `limit`. Reads these rows and no others.
    async fn unpruned(&self, until: Millis, after: Option<(Millis, u64)>, limit: u32) -> Result<Vec<Unpruned>, Error>;

    /// Notes that a run at rest has nothing in the checkpoint store any more: [`Ledger::unpruned`] is done with it.
    async fn emptied(&self, epoch: Epoch, run: &RunId) -> Result<(), Error>;

    /// Runs that are not at rest, oldest first.
    async fn open_runs(&self) -> Result<Vec<RunId>, Error>;

    /// Runs, newest first, at most `limit`.
    async fn list(&self, pipeline: Option<&str>, limit: u32) -> Result<Vec<RunRow>, Error>;
}
