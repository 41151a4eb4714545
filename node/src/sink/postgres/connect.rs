//! Connections to one PostgreSQL, opened when they are needed and kept while they are in a known state.
//!
//! Not sqlx's pool: that one retries a refused connection until its own deadline and then only says that it timed out.
//! Here the first refusal is the answer, in words, and retrying is the coordinator's decision. A connection that is
//! dropped in the middle of anything is closed, so the server rolls back: only [`Lease::give_back`] keeps it.

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
/// Longest wait for one of our own connections to come free.
const FREE_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections kept open while nobody uses them.
const KEPT: usize = 8;

/// The connections of one destination.
pub(super) struct Connections {
    options: PgConnectOptions,
    place: Arc<Place>,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    limit: usize,
    permits: Arc<Semaphore>,
}

impl Connections {
    /// Reads the address; connects to nothing. Permanent failure, without the address, if it can't be read.
    pub(super) fn open(destination: &str, url: &str, limit: usize) -> Result<Self, Failure> {
        let options = PgConnectOptions::from_str(url).map_err(|_| {
            Failure::permanent(format!(
                "destination {destination}: its address can't be read; write \
                 postgres://user:password@host:port/database, special characters as %XX"
            ))
        })?;
        let mut options = options.disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("haulage");
        }
        let place = Place {
            destination: destination.to_owned(),
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
            limit,
            permits: Arc::new(Semaphore::new(limit)),
        })
    }

    /// A connection that works now. Transient failure if none comes free or the server can't be reached.
    pub(super) async fn lease(&self) -> Result<Lease, Failure> {
        let permit = match timeout(FREE_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                return Err(Failure::transient(format!(
                    "{}: all {} connections of this node are in use for {} s; give the node fewer slots",
                    self.place,
                    self.limit,
                    FREE_TIMEOUT.as_secs()
                )));
            }
        };
        // One that the server closed meanwhile (a restart, a firewall) is found by asking, and passed over.
        while let Some(mut kept) = self.take_idle() {
            if matches!(timeout(CONNECT_TIMEOUT, kept.ping()).await, Ok(Ok(()))) {
                return Ok(self.leased(kept, permit));
            }
        }
        match timeout(CONNECT_TIMEOUT, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(self.leased(connection, permit)),
            Ok(Err(error)) => Err(self.place.failure("connecting", error)),
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s; check the host, the port and the network between",
                self.place,
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    fn take_idle(&self) -> Option<PgConnection> {
        self.idle.lock().map_or(None, |mut idle| idle.pop())
    }

    fn leased(&self, connection: PgConnection, permit: OwnedSemaphorePermit) -> Lease {
        Lease {
            connection,
            place: Arc::clone(&self.place),
            idle: Arc::clone(&self.idle),
            _permit: permit,
        }
    }
}

/// One connection, for one use.
pub(super) struct Lease {
    connection: PgConnection,
    place: Arc<Place>,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// The connection, for a query.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Where it leads.
    pub(super) fn place(&self) -> &Place {
        &self.place
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
        match self.run(sql).await {
            Ok(rows) => Ok(rows),
            Err(error) => Err(self.place.failure(doing, error)),
        }
    }

    /// Keeps the connection for the next use. Only when no transaction is open on it.
    pub(super) fn give_back(self) {
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < KEPT
        {
            idle.push(self.connection);
        }
    }
}
