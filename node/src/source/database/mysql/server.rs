//! Sessions of one MySQL or MariaDB server, each in a transaction that reads in one snapshot of its own.
//!
//! Sessions can't share a snapshot there, as they can in PostgreSQL: what one session reads is of one moment, and what two
//! read is of two. So each statement that reads rows has a session for itself, and nothing is kept when it ends.

use std::pin::pin;
use std::str::FromStr as _;
use std::time::Duration;

use haulage_core::failure::Failure;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use tokio::time::{sleep, timeout};

use super::failure::Place;

/// Longest wait for the server to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for what a server does in a moment.
const MOMENT: Duration = Duration::from_secs(60);
/// Between two looks at a server that sends nothing.
const LOOK: Duration = Duration::from_secs(12);
/// Looks that find it idle before it is believed.
const BELIEVED: u32 = 3;

/// Settings of each session, and its snapshot. Text is sent and kept in one way whatever the server is set to, no limit cuts
/// rows off, and no lock is waited for longer than 30 s. A reader may stand still for an hour, while its destination is slow,
/// before the server gives it up. Comments with a `!` are read by the servers that know what is in them: MariaDB, and MySQL
/// from 8.0.3 on.
///
/// The SQL mode is the server's, in which whoever wrote a query has tried it: quotes, `||` and backslashes mean there what
/// they mean here, and what this module writes means the same in all modes. Only what makes values of rows others, or errors
/// of them, is taken out: zero dates are values, and nothing is filled up with spaces.
const BEGIN: &str = "SET SESSION sql_mode = TRIM(BOTH ',' FROM \
    REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(CONCAT(',', @@SESSION.sql_mode, ','), ',TRADITIONAL,', ','), \
    ',STRICT_TRANS_TABLES,', ','), ',STRICT_ALL_TABLES,', ','), ',NO_ZERO_DATE,', ','), ',NO_ZERO_IN_DATE,', ','), \
    ',PAD_CHAR_TO_FULL_LENGTH,', ',')), \
    time_zone = '+00:00', net_write_timeout = 3600, lock_wait_timeout = 30, sql_select_limit = 18446744073709551615 \
    /*M! , max_statement_time = 0 */ /*!80003 , max_execution_time = 0, information_schema_stats_expiry = 0 */; \
    SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
    START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// See the module.
pub(in crate::source::database) struct Server {
    options: MySqlConnectOptions,
    place: Place,
}

/// A connection in its transaction. It ends when this is dropped.
pub(super) struct Session {
    pub(super) connection: MySqlConnection,
    /// What the server calls it.
    pub(super) id: u64,
}

impl Server {
    /// Reads the address; connects to nothing. Permanent failure, without the address, if it can't be read.
    pub(in crate::source::database) fn new(connection: &str, address: &str) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            Failure::permanent(format!(
                "connection {connection}: its address {what}; write mysql://user:password@host:port/database, special \
                 characters as %XX"
            ))
        };
        if !address.starts_with("mysql://") && !address.starts_with("mariadb://") {
            return Err(wrong("is none of a MySQL or MariaDB"));
        }
        let options = MySqlConnectOptions::from_str(address).map_err(|_| wrong("can't be read"))?;
        let place = Place {
            connection: connection.to_owned(),
            host: match options.get_socket() {
                Some(socket) => socket.display().to_string(),
                None => options.get_host().to_owned(),
            },
            port: options.get_port(),
            database: options.get_database().map(str::to_owned),
            user: options.get_username().to_owned(),
        };
        let options = options
            .disable_statement_logging()
            .charset("utf8mb4")
            .timezone("+00:00".to_owned())
            // The server's own, which are set in the session: `||` is what it is there.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .statement_cache_capacity(0);
        Ok(Self { options, place })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// A session that has begun to read. Transient failure if the server can't be reached, or has none left.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        let mut connection = self.connect().await?;
        let doing = "beginning to read";
        let beginning = sqlx::raw_sql(BEGIN).execute(&mut connection);
        self.soon(doing, beginning).await?;
        let asking = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS UNSIGNED)").fetch_one(&mut connection);
        let id = self.soon(doing, asking).await?;
        Ok(Session { connection, id })
    }

    async fn connect(&self) -> Result<MySqlConnection, Failure> {
        match timeout(CONNECT_TIMEOUT, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.place.failure("connecting", &error)),
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s; check the host, the port and the network between",
                self.place,
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Waits for what a server does in a moment; transient failure if it doesn't.
    pub(super) async fn soon<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        match timeout(MOMENT, work).await {
            Ok(done) => done.map_err(|error| self.place.failure(doing, &error)),
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s while {doing}; the connection is given up",
                self.place,
                MOMENT.as_secs()
            ))),
        }
    }

    /// Waits for what may take long, in the session of this id; transient failure if the server isn't at it any more: the
    /// connection may be half open, and then nothing ever comes.
    pub(super) async fn patiently<T>(
        &self,
        id: u64,
        doing: &str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        let mut work = pin!(work);
        let mut idle = 0;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done.map_err(|error| self.place.failure(doing, &error)),
                () = sleep(LOOK) => {
                    idle = if self.is_at_work(id).await { 0 } else { idle + 1 };
                    if idle >= BELIEVED {
                        return Err(Failure::transient(format!(
                            "{}: the server is not at work, and nothing comes while {doing}; the connection is given up",
                            self.place
                        )));
                    }
                }
            }
        }
    }

    /// Whether a session does something else than waiting for its client. Users see their own sessions.
    async fn is_at_work(&self, id: u64) -> bool {
        let asked = async {
            let mut connection = self.connect().await.ok()?;
            let sql =
                "SELECT count(*) FROM information_schema.PROCESSLIST WHERE ID = ? AND COMMAND IN ('Query', 'Execute')
                       AND (STATE IS NULL OR STATE NOT IN ('Writing to net', 'Sending to client'))";
            let asking = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).bind(id);
            asking.fetch_one(&mut connection).await.ok()
        };
        timeout(MOMENT, asked).await.ok().flatten().unwrap_or(0) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_never_shown() {
        for (address, place) in [
            (
                "mysql://reader:hunter2@db/shop",
                "connection c (MySQL at db:3306, database shop, user reader)",
            ),
            (
                "mariadb://r%40d:hunter2@10.0.0.7:3307/a%2Db?ssl-mode=REQUIRED",
                "connection c (MySQL at 10.0.0.7:3307, database a-b, user r@d)",
            ),
            ("mysql://reader@db", "connection c (MySQL at db:3306, user reader)"),
        ] {
            let server = Server::new("c", address).unwrap();
            assert_eq!(server.place().to_string(), place);
        }
        for wrong in [
            "postgres://u:hunter2@db/shop",
            "mysql://u:hunter2@db:port/shop",
            "mysql://u:hunter2@db/shop?ssl-mode=hunter2",
            "hunter2",
        ] {
            let failure = Server::new("c", wrong).err().expect("no address");
            assert!(
                failure.message.contains("write mysql://") && !failure.message.contains("hunter2"),
                "{failure}"
            );
        }
    }
}
