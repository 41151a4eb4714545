//! The ledger in PostgreSQL, for a cluster: schema `haulage_ledger`, next to whatever else the database holds.
//!
//! Locks, always in this order: the leader row (`FOR KEY SHARE`; see `leader` for what a campaign takes), then heads of
//! runs in the order of their ids, or the submission's advisory lock. READ COMMITTED is enough, since nothing is judged
//! that isn't locked.
//!
//! A leader that freezes inside a transaction would hold its lock, and with it every campaign, for as long as its
//! connection lives. The server ends such a session ([`LIMITS`]), and whatever the leader says when it wakes up is refused.

mod leader;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use haulage_core::event::Event;
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::submission::Submission;
use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Transaction};

use super::admit::{Advance, Head, NewEvent, Prior, Replaying, Stored};
use super::leader::{Campaign, Candidate, Led};
use super::rows::{self, signed, unsigned};
use super::write::{self, NewRun, Session};
use super::{Access, Append, Appended, Error, Ledger, RunRow, Submitted, Unpruned, address, schema};

/// One for the group writer, the others for submissions and for people who look.
const CONNECTIONS: u32 = 8;
/// Beside them, for the leader's row alone: a renewal never waits because people look. More than one, so that one that is
/// cut off and not yet given up doesn't cost the lease.
const LEADER_CONNECTIONS: u32 = 3;
/// How long to wait for a connection before saying that the database can't be reached.
const ACQUIRE: Duration = Duration::from_secs(10);
/// How long a connection that was kept may take to show that it lives. One that is half open would take all of the above,
/// one after the other, while nobody is the wiser: the leader renews over others, and can write nothing.
const ALIVE: Duration = Duration::from_millis(500);
/// How long reading may take; a run's log is read whole.
const READ: Duration = Duration::from_secs(30);
/// What the server does about sessions that stop in the middle. An idle transaction ends before a leader's lease does, so
/// that one which froze in the middle of an append holds up no campaign; and waiting for a lock lasts longer than both.
const LIMITS: &str =
    "SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '10s'; SET statement_timeout = '60s'";
/// Migrations may wait for another process that migrates, and may take long themselves.
const MIGRATION_LIMITS: &str = "SET lock_timeout = '60s'";
const SCHEMA: &str = "haulage_ledger";

/// The replay of a run that stands, or may yet.
const REPLAYING: &str = "SELECT run, submission_key, outcome FROM haulage_ledger.runs
    WHERE replays = $1 AND (outcome IS NULL OR outcome = 'published') ORDER BY ordinal DESC LIMIT 1";

/// Runs at rest with something in the checkpoint store. By an index of just those.
const UNPRUNED: &str = "SELECT run, finished_at, ordinal FROM haulage_ledger.runs
    WHERE finished_at <= $1 AND NOT emptied AND (finished_at, ordinal) > ($2, $3)
    ORDER BY finished_at, ordinal LIMIT $4";

/// The run that replaces another and stands, or may yet.
const RERUN: &str = "SELECT run FROM haulage_ledger.runs
    WHERE replaces = $1 AND (outcome IS NULL OR outcome = 'published') ORDER BY ordinal DESC LIMIT 1";

/// A ledger in PostgreSQL.
pub(super) struct Postgres {
    pool: PgPool,
    leader: PgPool,
}

impl Postgres {
    pub(super) async fn open(options: PgConnectOptions, access: Access) -> Result<Self, Error> {
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("haulage ledger"),
        };
        let place = address::place(&options);
        let failed = |source| Error::Open {
            place: place.clone(),
            source,
        };
        let mut connection = tokio::time::timeout(ACQUIRE, options.connect())
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map_err(failed)?;
        let migrator = migrator();
        match (schema::compare(&applied(&mut connection).await?, &migrator)?, access) {
            (schema::Standing::Current, Access::Read | Access::Write) => {}
            (schema::Standing::Behind(0), Access::Read) => return Err(Error::Absent { place }),
            (schema::Standing::Behind(found), Access::Read) => {
                return Err(Error::Schema {
                    found,
                    known: schema::newest(&migrator),
                });
            }
            (schema::Standing::Behind(_), Access::Write) => {
                connection.execute(MIGRATION_LIMITS).await.map_err(failed)?;
                // Not `run`: through `Acquire`, the future of whoever opens a ledger would not be `Send`.
                migrator.run_direct(None, &mut connection, false).await?;
            }
        }
        connection.close().await.map_err(failed)?;
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE)
                .test_before_acquire(false)
                .before_acquire(|connection, _| {
                    Box::pin(async move {
                        let alive = tokio::time::timeout(ALIVE, connection.ping()).await;
                        // An error closes it without asking the other side, which may not answer.
                        alive.unwrap_or_else(|_| Err(silent())).map(|()| true)
                    })
                })
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        connection.execute(LIMITS).await?;
                        if access == Access::Read {
                            connection.execute("SET default_transaction_read_only = on").await?;
                        }
                        Ok(())
                    })
                })
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            pool: pool(CONNECTIONS),
            leader: pool(LEADER_CONNECTIONS),
        })
    }

    /// Waits for what is read, but not for ever.
    async fn in_time<T>(&self, reading: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
        let read = tokio::time::timeout(READ, reading).await;
        Ok(read.unwrap_or_else(|_| Err(silent()))?)
    }

    async fn begin(&self) -> Result<Box<dyn Session>, Error> {
        Ok(Box::new(PostgresSession {
            transaction: self.pool.begin().await?,
        }))
    }
}

/// A connection that says nothing.
fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "the connection says nothing any more",
    ))
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("migrations/postgres");
    migrator.create_schema(SCHEMA);
    migrator.dangerous_set_table_name(format!("{SCHEMA}.{}", schema::TABLE));
    migrator
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<sqlx::migrate::AppliedMigration>, Error> {
    let table = format!("{SCHEMA}.{}", schema::TABLE);
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    Ok(connection.list_applied_migrations(&table).await?)
}

#[async_trait]
impl Ledger for Postgres {
    fn is_leased(&self) -> bool {
        true
    }

    async fn campaign(&self, candidate: &Candidate<'_>, at: Millis) -> Result<Campaign, Error> {
        leader::campaign(&self.leader, candidate, at).await
    }

    async fn renew(&self, epoch: Epoch, lease: Duration) -> Result<(), Error> {
        leader::renew(&self.leader, epoch, lease).await
    }

    async fn resign(&self, epoch: Epoch) -> Result<(), Error> {
        leader::resign(&self.leader, epoch).await
    }

    async fn leader(&self) -> Result<Option<Led>, Error> {
        leader::led(&self.leader).await
    }

    async fn mark(&self) -> Result<String, Error> {
        let query = sqlx::query_scalar("SELECT mark FROM haulage_ledger.leader");
        self.in_time(query.fetch_one(&self.pool)).await
    }

    async fn epoch(&self) -> Result<Epoch, Error> {
        let query = sqlx::query_scalar("SELECT epoch FROM haulage_ledger.leader");
        let epoch: i64 = self.in_time(query.fetch_one(&self.pool)).await?;
        Ok(Epoch(unsigned(epoch)))
    }

    async fn submit(&self, epoch: Epoch, submission: &Submission, rerun: bool, at: Millis) -> Result<Submitted, Error> {
        write::submit(self.begin(), epoch, submission, rerun, at).await
    }

    async fn append(&self, epoch: Epoch, appends: &[Append]) -> Result<Vec<Appended>, Error> {
        write::append(self.begin(), epoch, appends).await
    }

    async fn replaying(&self, run: &RunId) -> Result<Option<Replaying>, Error> {
        let query = sqlx::query_as(REPLAYING).bind(run.as_str());
        let replaying = self.in_time(query.fetch_optional(&self.pool)).await?;
        Ok(replaying.map(rows::replaying))
    }

    async fn read(&self, run: &RunId, after: Seq) -> Result<Vec<(Seq, Event)>, Error> {
        let query = sqlx::query_as(
            "SELECT seq, body::text FROM haulage_ledger.events WHERE run = $1 AND seq > $2 ORDER BY seq",
        );
        let query = query.bind(run.as_str()).bind(signed(after.0));
        let stored: Vec<(i64, String)> = self.in_time(query.fetch_all(&self.pool)).await?;
        rows::events(run, after, stored)
    }

    async fn unpruned(&self, until: Millis, after: Option<(Millis, u64)>, limit: u32) -> Result<Vec<Unpruned>, Error> {
        let (at, ordinal) = after.unwrap_or_default();
        let query = sqlx::query_as(UNPRUNED)
            .bind(signed(until.0))
            .bind(signed(at.0))
            .bind(signed(ordinal))
            .bind(i64::from(limit));
        let found = self.in_time(query.fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(rows::unpruned).collect())
    }

    async fn emptied(&self, epoch: Epoch, run: &RunId) -> Result<(), Error> {
        write::emptied(self.begin(), epoch, run).await
    }

    async fn open_runs(&self) -> Result<Vec<RunId>, Error> {
        let query =
            sqlx::query_scalar("SELECT run FROM haulage_ledger.runs WHERE finished_at IS NULL ORDER BY ordinal");
        let runs: Vec<String> = self.in_time(query.fetch_all(&self.pool)).await?;
        Ok(runs.into_iter().map(RunId).collect())
    }

    async fn list(&self, pipeline: Option<&str>, limit: u32) -> Result<Vec<RunRow>, Error> {
        let query = sqlx::query_as(
            "SELECT run, pipeline, submitted_at, finished_at, outcome FROM haulage_ledger.runs
             WHERE $1::text IS NULL OR pipeline = $1 ORDER BY ordinal DESC LIMIT $2",
        );
        let query = query.bind(pipeline).bind(i64::from(limit));
        let listed: Vec<rows::Listed> = self.in_time(query.fetch_all(&self.pool)).await?;
        listed.into_iter().map(rows::run_row).collect()
    }
}

struct PostgresSession {
    transaction: Transaction<'static, sqlx::Postgres>,
}

#[async_trait]
impl Session for PostgresSession {
    async fn mark(&mut self) -> Result<String, Error> {
        Ok(sqlx::query_scalar("SELECT mark FROM haulage_ledger.leader")
            .fetch_one(&mut *self.transaction)
            .await?)
    }

    async fn epoch(&mut self) -> Result<Epoch, Error> {
        let epoch: i64 = sqlx::query_scalar("SELECT epoch FROM haulage_ledger.leader FOR KEY SHARE")
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(Epoch(unsigned(epoch)))
    }

    async fn heads(&mut self, runs: &[&RunId]) -> Result<HashMap<RunId, Head>, Error> {
        let names: Vec<&str> = runs.iter().map(|run| run.as_str()).collect();
        let heads: Vec<(String, i64, Option<String>)> = sqlx::query_as(
            "SELECT run, last_seq, outcome FROM haulage_ledger.runs
             WHERE run = ANY($1) ORDER BY run FOR NO KEY UPDATE",
        )
        .bind(names)
        .fetch_all(&mut *self.transaction)
        .await?;
        heads.into_iter().map(rows::head).collect()
    }

    async fn insert(&mut self, epoch: Epoch, events: &[NewEvent<'_>]) -> Result<(), Error> {
        let runs: Vec<&str> = events.iter().map(|event| event.run.as_str()).collect();
        let seqs: Vec<i64> = events.iter().map(|event| signed(event.seq.0)).collect();
        let times: Vec<i64> = events.iter().map(|event| signed(event.at.0)).collect();
        let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
        let bodies: Vec<&str> = events.iter().map(|event| event.body).collect();
        sqlx::query(
            "INSERT INTO haulage_ledger.events (run, seq, epoch, at, kind, body)
             SELECT new.run, new.seq, $6, new.at, new.kind, new.body::json
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])
                  AS new (run, seq, at, kind, body)",
        )
        .bind(runs)
        .bind(seqs)
        .bind(times)
        .bind(kinds)
        .bind(bodies)
        .bind(signed(epoch.0))
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    async fn advance(&mut self, advances: &BTreeMap<&RunId, Advance>) -> Result<(), Error> {
        let runs: Vec<&str> = advances.keys().map(|run| run.as_str()).collect();
        let lasts: Vec<i64> = advances.values().map(|advance| signed(advance.last.0)).collect();
        let times: Vec<Option<i64>> = advances
            .values()
            .map(|advance| advance.finished.map(|(at, _)| signed(at.0)))
            .collect();
        let outcomes: Vec<Option<&str>> = advances
            .values()
            .map(|advance| advance.finished.map(|(_, how)| rows::outcome_text(how)))
            .collect();
        sqlx::query(
            "UPDATE haulage_ledger.runs AS runs
             SET last_seq = new.last_seq, finished_at = new.finished_at, outcome = new.outcome
             FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[])
                  AS new (run, last_seq, finished_at, outcome)
             WHERE runs.run = new.run",
        )
        .bind(runs)
        .bind(lasts)
        .bind(times)
        .bind(outcomes)
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    async fn stored(&mut self, run: &RunId, after: Seq, limit: usize) -> Result<Vec<Stored>, Error> {
        let stored: Vec<(i64, i64, String)> = sqlx::query_as(
            "SELECT seq, epoch, body::text FROM haulage_ledger.events
             WHERE run = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(run.as_str())
        .bind(signed(after.0))
        .bind(signed(limit as u64))
        .fetch_all(&mut *self.transaction)
        .await?;
        Ok(stored.into_iter().map(rows::stored).collect())
    }

    async fn lock_key(&mut self, key: &str) -> Result<(), Error> {
        // Not a row: the submission may have none yet.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('haulage submission ' || $1, 0))")
            .bind(key)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    async fn prior(&mut self, key: &str) -> Result<Prior, Error> {
        let newest: Option<(String, i64, Option<String>)> = sqlx::query_as(
            "SELECT run, number, outcome FROM haulage_ledger.runs
             WHERE submission_key = $1 ORDER BY number DESC LIMIT 1",
        )
        .bind(key)
        .fetch_optional(&mut *self.transaction)
        .await?;
        let published: Option<String> = sqlx::query_scalar(
            "SELECT run FROM haulage_ledger.runs
             WHERE submission_key = $1 AND outcome = 'published' ORDER BY number DESC LIMIT 1",
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
        let sql = "SELECT EXISTS (SELECT 1 FROM haulage_ledger.events WHERE run = $1 AND kind = 'rejects_pruned')";
        Ok(sqlx::query_scalar(sql)
            .bind(run.as_str())
            .fetch_one(&mut *self.transaction)
            .await?)
    }

    async fn key_of(&mut self, run: &RunId) -> Result<Option<String>, Error> {
        Ok(
            sqlx::query_scalar("SELECT submission_key FROM haulage_ledger.runs WHERE run = $1")
                .bind(run.as_str())
                .fetch_optional(&mut *self.transaction)
                .await?,
        )
    }

    async fn start(&mut self, new: NewRun<'_>) -> Result<bool, Error> {
        let started = sqlx::query(
            "INSERT INTO haulage_ledger.runs (run, submission_key, number, pipeline, submitted_at, last_seq, replays, replaces)
             VALUES ($1, $2, $3, $4, $5, 1, $6, $7) ON CONFLICT (run) DO NOTHING",
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
        sqlx::query("UPDATE haulage_ledger.runs SET emptied = true WHERE run = $1 AND finished_at IS NOT NULL")
            .bind(run.as_str())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<(), Error> {
        Ok(self.transaction.commit().await?)
    }
}
