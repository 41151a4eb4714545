//! Connections to one PostgreSQL, opened when they are needed and kept while they are in a known state.
//!
//! Not sqlx's pool: that one retries a refused connection until its own deadline and then only says that it timed out.
//! Here the first refusal is the answer, in words, and retrying is the coordinator's decision. A connection that is
//! dropped in the middle of anything is closed, so the server rolls back: only [`Lease::give_back`] keeps it.
//!
//! Only the connections of segments are limited, which are one for each load of each chunk that is worked on, and a chunk
//! takes the [`Room`] for all of them at once. Everything else takes one connection, for itself: the few steps that a node
//! does at once never queue behind segments, and a commit whose answer was lost can always ask for it.

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haulage_core::failure::Failure;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::failure::Place;

/// Longest wait for the server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Begins a transaction that the server rolls back when nothing is said in it for 10 s. A node that is stopped, or cut
/// off, in the middle of one holds its locks until then: longer than it takes to be declared lost, and short enough for
/// whoever goes on with its work. A COPY that waits for rows isn't silent in this sense; `end_stragglers` ends those.
pub(crate) const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'";
/// The same, and waits for no lock longer than 30 s. A chunk with several loads has a transaction open for each: waiting
/// in one holds the locks of the others, and whoever waits for those may hold what is waited for. The server sees no
/// deadlock in that, because half of it is here. Who gives up is tried again from its checkpoint.
pub(crate) const BEGIN_BRIEFLY: &str =
    "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '30s'";
/// Connections kept open while nobody uses them.
const KEPT: usize = 8;

/// The connections to one server: a destination, or the database of sources.
pub(crate) struct Connections {
    options: PgConnectOptions,
    place: Arc<Place>,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    /// How many segments may be open at once.
    writers: u32,
    room: Arc<Semaphore>,
}

/// Room for some open segments.
pub(crate) struct Room {
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// Reads the address; connects to nothing. `what` is what errors call it: `destination warehouse`. Permanent failure, without the address, if it can't be read.
    pub(crate) fn open(what: &str, url: &str, writers: u32) -> Result<Self, Failure> {
        let options = PgConnectOptions::from_str(url).map_err(|_| {
            Failure::permanent(format!(
                "{what}: its address can't be read; write \
                 postgres://user:password@host:port/database, special characters as %XX"
            ))
        })?;
        let mut options = options.disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("haulage");
        }
        let place = Place {
            what: what.to_owned(),
            host: match options.get_socket() {
                Some(socket) => socket.display().to_string(),
                None => options.get_host().to_owned(),
            },
            port: options.get_port(),
            database: options.get_database().unwrap_or(options.get_username()).to_owned(),
            user: options.get_username().to_owned(),
        };
        Ok(Self {
            options,
            place: Arc::new(place),
            idle: Arc::default(),
            writers: writers.max(1),
            room: Arc::new(Semaphore::new(writers.max(1) as usize)),
        })
    }

    /// Waits for the room for so many segments, first come, first served. Whoever asks for more than there is gets all
    /// of it, and is then alone: a stage with more loads than connections is slow, and not stuck. There is no deadline,
    /// because everybody who holds room holds all that it needs, and so comes to an end.
    pub(crate) async fn room(&self, segments: usize) -> Room {
        let wanted = u32::try_from(segments).unwrap_or(u32::MAX).clamp(1, self.writers);
        let permit = Arc::clone(&self.room).acquire_many_owned(wanted).await;
        Room {
            _permit: permit.expect("nobody closes the semaphore"),
        }
    }

    /// A connection that works now. Transient failure if the server can't be reached, or has none left.
    pub(crate) async fn lease(&self) -> Result<Lease, Failure> {
        // One that the server closed meanwhile (a restart, a firewall) is found by asking, and passed over.
        while let Some(mut kept) = self.take_idle() {
            if matches!(timeout(CONNECT_TIMEOUT, kept.ping()).await, Ok(Ok(()))) {
                return Ok(self.leased(kept));
            }
        }
        self.connect(&self.options).await
    }

    async fn connect(&self, options: &PgConnectOptions) -> Result<Lease, Failure> {
        match timeout(CONNECT_TIMEOUT, options.connect()).await {
            Ok(Ok(connection)) => Ok(self.leased(connection)),
            Ok(Err(error)) => Err(self.place.failure("connecting", error)),
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s; check the host, the port and the network between",
                self.place,
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// A new connection whose sessions show under this name in `pg_stat_activity`; it is for one use.
    pub(crate) async fn lease_as(&self, name: &str) -> Result<Lease, Failure> {
        let lease = self.connect(&self.options.clone().application_name(name)).await?;
        Ok(Lease { idle: None, ..lease })
    }

    /// The name that sessions have, unless they are given another.
    pub(crate) fn session_name(&self) -> &str {
        self.options.get_application_name().unwrap_or("haulage")
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn take_idle(&self) -> Option<PgConnection> {
        self.idle.lock().map_or(None, |mut idle| idle.pop())
    }

    fn leased(&self, connection: PgConnection) -> Lease {
        Lease {
            connection,
            place: Arc::clone(&self.place),
            idle: Some(Arc::clone(&self.idle)),
        }
    }
}

/// One connection, for one use.
pub(crate) struct Lease {
    connection: PgConnection,
    place: Arc<Place>,
    /// Where it is kept for others after its use.
    idle: Option<Arc<Mutex<Vec<PgConnection>>>>,
}

impl Lease {
    /// The connection, for a query.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Where it leads.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Runs statements, and returns the rows that they affected.
    pub(crate) async fn run(&mut self, sql: impl Into<String>) -> Result<u64, sqlx::Error> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.into()))
            .execute(&mut self.connection)
            .await?;
        Ok(done.rows_affected())
    }

    /// Runs statements; an error becomes a failure "while `doing`".
    pub(crate) async fn must(&mut self, doing: &str, sql: impl Into<String>) -> Result<u64, Failure> {
        match self.run(sql).await {
            Ok(rows) => Ok(rows),
            Err(error) => Err(self.place.failure(doing, error)),
        }
    }

    /// Keeps the connection for the next use. Only when no transaction is open on it.
    pub(crate) fn give_back(self) {
        if let Some(idle) = &self.idle
            && let Ok(mut idle) = idle.lock()
            && idle.len() < KEPT
        {
            idle.push(self.connection);
        }
    }
}
