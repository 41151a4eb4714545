//! Locks on what a run reads, and the end of its snapshot.
//!
//! The session that keeps a snapshot holds off ALTER, TRUNCATE and the like. Whoever asks for one of them waits for it, and
//! everybody who comes later waits behind that one: also the run's own readers, for as long as the run lasts. So a reader
//! asks for its lock without waiting, as pg_dump's workers do, and a run whose readers are shut out ends.
//!
//! Once all rows are staged nobody needs the snapshot any more, and the run itself may be who wants such a lock: it may read
//! the tables that it publishes to. Then each node's sessions end, wherever they are known by a lock that they share.

use std::time::Duration;

use haulage_core::failure::Failure;
use sqlx::Row as _;
use tokio::time::{sleep, timeout};

use super::server::{KEEPER, MOMENT, Server};
use crate::sink::postgres::connect::Lease;
use crate::sink::postgres::failure::code;
use crate::source::excerpt;

/// Tries to get a lock, so that a short ALTER passes unseen.
const TRIES: u32 = 8;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(250);
/// The advisory locks that sessions which keep a snapshot share, each beside the number of its run.
pub(super) const ADVISORY: i32 = 0x6861_756c;

/// Who waits for a lock that readers are shut out by, and what it is that holds it up.
const WAITING: &str = "SELECT a.pid, coalesce(a.usename::text, ''), coalesce(a.query, ''),
        EXISTS (SELECT FROM pg_stat_activity k
            WHERE k.pid = ANY (pg_blocking_pids(a.pid)) AND starts_with(k.application_name, $2))
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = to_regclass($1) AND l.mode = 'AccessExclusiveLock'
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY l.granted, a.query_start LIMIT 1";

/// Ends other sessions that keep a snapshot of this run.
const END: &str = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_locks
    WHERE locktype = 'advisory' AND classid = $1::bigint::oid AND objid = $2::bigint::oid AND objsubid = 2 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()";

impl Server {
    /// Locks a table or view, as reading it does, in the transaction that is open on `lease`: now, or not at all. What can't
    /// be locked so (a foreign table, or one of which the user may read some columns) is locked when it is read. Permanent
    /// failure if somebody waits for the run to end who shuts its readers out; transient if it is somebody else's matter.
    pub(super) async fn lock(&self, lease: &mut Lease, table: &str) -> Result<(), Failure> {
        let doing = "locking what is read";
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            let locking = lease.run(format!(
                "SAVEPOINT haulage; LOCK TABLE {table} IN ACCESS SHARE MODE NOWAIT; RELEASE SAVEPOINT haulage"
            ));
            let error = match timeout(MOMENT, locking).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(Failure::transient(format!(
                        "{}: no answer within {} s while {doing}; the connection is given up",
                        self.place(),
                        MOMENT.as_secs()
                    )));
                }
            };
            let Some(code) = code(&error).map(str::to_owned) else {
                return Err(self.failure(doing, error));
            };
            let back = lease.run("ROLLBACK TO SAVEPOINT haulage; RELEASE SAVEPOINT haulage");
            self.soon(doing, back).await?;
            if code != "55P03" {
                return Ok(());
            }
        }
        let asking = sqlx::query(WAITING)
            .bind(table)
            .bind(KEEPER)
            .fetch_optional(lease.connection());
        let row = self.soon("looking who waits for a lock", asking).await?;
        let Some(row) = row else {
            return Err(Failure::transient(format!("{}: {table} is locked", self.place())));
        };
        let wrong = |error| self.failure("looking who waits for a lock", error);
        let (pid, user): (i32, String) = (row.try_get(0).map_err(wrong)?, row.try_get(1).map_err(wrong)?);
        let (query, ours): (String, bool) = (row.try_get(2).map_err(wrong)?, row.try_get(3).map_err(wrong)?);
        // What comes behind may hold values.
        let words: Vec<&str> = query.split_whitespace().take(2).collect();
        let what = excerpt(words.join(" ").as_bytes(), 40);
        let who = format!(
            "{}: {table} can't be read: session {pid} of user {user} ({what})",
            self.place()
        );
        Err(match ours {
            true => Failure::permanent(format!(
                "{who} waits for the end of a run that reads it, and keeps everybody else from reading it; this run ends so \
                 that it can go on: run again when it is done"
            )),
            false => Failure::transient(format!("{who} has locked it, or waits for that")),
        })
    }

    /// Ends the sessions that keep the run's snapshot, on this node and on others, since no row is left to be read. What can't
    /// be ended ends with the run.
    pub(in crate::source::database) async fn end_snapshot(&self) {
        if let Some(keeper) = self.take_keeper().await {
            keeper.end().await;
        }
        let ended = async {
            let mut lease = self.connect().await?;
            let asking = sqlx::query_scalar::<_, i64>(END)
                .bind(i64::from(ADVISORY))
                .bind(i64::from(self.run()))
                .fetch_one(lease.connection());
            self.soon("ending the run's snapshot", asking).await
        };
        match ended.await {
            Ok(sessions) => tracing::debug!(sessions, "the run's snapshot has ended on other nodes"),
            Err(failure) => tracing::info!(%failure, "the run's snapshot lasts until the run has ended"),
        }
    }
}
