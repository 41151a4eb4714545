//! One PostgreSQL server as the sources of a run see it: in one snapshot, for all of them and on all nodes.
//!
//! Discovery takes the snapshot in a session that stays open for as long as the node keeps the run, and exports it. Every
//! node that reads a chunk imports it into a session of its own, which stays open likewise and exports it again, so the
//! snapshot outlives the node that took it: whoever comes later finds one of these sessions by its name in
//! `pg_stat_activity`. When all of them are gone the snapshot is, and what has not been read never can be: that is a
//! permanent failure, and never a read in another snapshot. What a chunk reads in is compared with what was discovered
//! by its transaction numbers, so that another snapshot with the same name doesn't pass for it either.
//!
//! The session that takes the snapshot locks what is read against ALTER, TRUNCATE and VACUUM FULL, which no snapshot
//! protects from; rows may be written all the while. This is what pg_dump does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haulage_core::failure::{Class, Failure};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::locks::ADVISORY;
use crate::sink::postgres::connect::{Connections, Lease};
use crate::sink::postgres::failure::{Place, code};

/// Longest wait for what a server does in a moment.
pub(super) const MOMENT: Duration = Duration::from_secs(60);
/// Between two looks at a server that sends nothing.
pub(super) const LOOK: Duration = Duration::from_secs(12);
/// Looks that find it idle before it is believed.
pub(super) const BELIEVED: u32 = 3;
/// Between two signs of life of a session that only keeps a snapshot, for firewalls and for us.
const PULSE: Duration = Duration::from_secs(30);
/// Pulses after which a session that nobody has read by ends: 6 hours. It holds up the server's VACUUM, and a node that was
/// cut off while its run came to an end was never told.
const PULSES: u32 = 720;
/// What such sessions are called in `pg_stat_activity`, before the snapshot's mark and its name there.
pub(super) const KEEPER: &str = "haulage snapshot";

/// Settings of each reading transaction, as far as the server knows them: values are written in one way, rows come in the
/// order in which they lie, and nothing ends a transaction that takes long. A session whose node is gone is noticed.
const SETTINGS: &str = "SELECT set_config(v.name, v.setting, true) FROM (VALUES
    ('client_encoding', 'UTF8'), ('datestyle', 'ISO, YMD'), ('intervalstyle', 'postgres'), ('timezone', 'UTC'),
    ('bytea_output', 'hex'), ('extra_float_digits', '3'), ('synchronize_seqscans', 'off'),
    ('max_parallel_workers_per_gather', '0'), ('statement_timeout', '0'), ('lock_timeout', '30s'),
    ('idle_in_transaction_session_timeout', '0'), ('transaction_timeout', '0'),
    ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3')
    ) AS v (name, setting) WHERE EXISTS (SELECT FROM pg_settings s WHERE lower(s.name) = v.name)";

/// See the module.
pub(in crate::source::database) struct Server {
    connections: Connections,
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// A number of the run, by which its sessions that keep a snapshot are known to all nodes.
    run: i32,
}

/// A session that keeps a snapshot.
pub(super) struct Keeper {
    /// What the snapshot is called on the server, as this session has exported it.
    id: String,
    /// What it is, whoever has exported it: its transaction numbers, summed up.
    mark: String,
    lease: Arc<Mutex<Lease>>,
    lost: Arc<AtomicBool>,
    /// Held by the session's pulse, by this, and by everybody who reads in the snapshot here.
    users: Arc<()>,
    _pulse: AbortOnDropHandle<()>,
}

impl Server {
    /// Reads the address; connects to nothing. Permanent failure, without the address, if it can't be read.
    pub(in crate::source::database) fn new(connection: &str, address: &str, run: i32) -> Result<Self, Failure> {
        let what = format!("connection {connection}");
        if !address.starts_with("postgres://") && !address.starts_with("postgresql://") {
            return Err(Failure::permanent(format!(
                "{what}: its address is none of a PostgreSQL; write postgres://user:password@host:port/database"
            )));
        }
        Ok(Self {
            connections: Connections::open(&what, address, 1)?,
            keeper: Mutex::default(),
            run,
        })
    }

    pub(super) fn run(&self) -> i32 {
        self.run
    }

    /// The session that keeps the snapshot here, if there is one; nobody finds it here any more.
    pub(super) async fn take_keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.lock().await.take()
    }

    pub(super) fn place(&self) -> &Place {
        self.connections.place()
    }

    /// A connection for one use.
    pub(super) async fn connect(&self) -> Result<Lease, Failure> {
        self.connections.lease_as(self.connections.session_name()).await
    }

    /// The snapshot that this run reads in on this node; taken now, if there is none yet.
    pub(super) async fn snapshot(&self) -> Result<Arc<Keeper>, Failure> {
        let mut kept = self.keeper.lock().await;
        if let Some(keeper) = kept.as_ref().filter(|keeper| !keeper.is_lost()) {
            return Ok(Arc::clone(keeper));
        }
        let keeper = Arc::new(self.keep(self.connect().await?, None).await?);
        *kept = Some(Arc::clone(&keeper));
        Ok(keeper)
    }

    /// The snapshot that was discovered, kept by this node too. Permanent failure if it is gone.
    pub(super) async fn join(&self, version: &Version<'_>) -> Result<Arc<Keeper>, Failure> {
        let mut kept = self.keeper.lock().await;
        if let Some(keeper) = kept
            .as_ref()
            .filter(|keeper| keeper.mark == version.mark && !keeper.is_lost())
        {
            return Ok(Arc::clone(keeper));
        }
        let mut names = vec![version.id.to_owned()];
        let mut looked = false;
        while let Some(name) = names.pop() {
            let lease = self.connect().await?;
            match self.keep(lease, Some(&name)).await {
                Ok(keeper) if keeper.mark == version.mark => {
                    let keeper = Arc::new(keeper);
                    *kept = Some(Arc::clone(&keeper));
                    return Ok(keeper);
                }
                // Another snapshot by the same name, or none.
                Ok(_) => {}
                Err(failure) if failure.class != Class::Permanent => return Err(failure),
                Err(failure) => {
                    tracing::debug!(%failure, "a snapshot can't be imported");
                }
            }
            if names.is_empty() && !looked {
                looked = true;
                names = self.kept_elsewhere(version.mark).await?;
            }
        }
        Err(Failure::permanent(format!(
            "{}: the snapshot that this run reads in is gone: every node that kept it has left or lost its connection, or \
             the server was started again; rows of another snapshot don't belong to those read before, so run again",
            self.place()
        )))
    }

    /// The names under which other sessions have exported this snapshot.
    async fn kept_elsewhere(&self, mark: &str) -> Result<Vec<String>, Failure> {
        let mut lease = self.connect().await?;
        let prefix = format!("{KEEPER} {mark} ");
        let asked = sqlx::query_scalar::<_, String>(
            "SELECT application_name FROM pg_stat_activity
             WHERE datname = current_database() AND starts_with(application_name, $1)",
        )
        .bind(&prefix)
        .fetch_all(lease.connection());
        let found = self.soon("looking for the run's snapshot", asked).await?;
        Ok(found
            .iter()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect())
    }

    /// Opens a session that keeps a snapshot: that of this name, or a new one.
    async fn keep(&self, mut lease: Lease, import: Option<&str>) -> Result<Keeper, Failure> {
        let mark = self.begin(&mut lease, import).await?;
        let exporting = sqlx::query_scalar::<_, String>("SELECT pg_export_snapshot()").fetch_one(lease.connection());
        let id = self.soon("exporting a snapshot", exporting).await?;
        let naming = lease.run(format!(
            "SELECT pg_advisory_xact_lock_shared({ADVISORY}, {}); SET LOCAL application_name = '{KEEPER} {mark} {id}'",
            self.run
        ));
        self.soon("naming a session", naming).await?;
        let (lease, lost) = (Arc::new(Mutex::new(lease)), Arc::new(AtomicBool::new(false)));
        let users = Arc::default();
        let pulse = pulse(
            Arc::clone(&lease),
            Arc::clone(&lost),
            Arc::clone(&users),
            self.place().to_string(),
        );
        let pulse = tokio::spawn(pulse);
        Ok(Keeper {
            id,
            mark,
            lease,
            lost,
            users,
            _pulse: AbortOnDropHandle::new(pulse),
        })
    }

    /// Begins a transaction that only reads, in one snapshot: that of this name, or its own. Returns the snapshot's mark.
    pub(super) async fn begin(&self, lease: &mut Lease, import: Option<&str>) -> Result<String, Failure> {
        let mut sql = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ".to_owned();
        if let Some(id) = import {
            let sound = |letter: char| letter.is_ascii_hexdigit() || letter == '-';
            if id.is_empty() || !id.chars().all(sound) {
                return Err(Failure::permanent(format!("{}: \"{id}\" is no snapshot", self.place())));
            }
            sql.push_str(&format!("SET TRANSACTION SNAPSHOT '{id}'; "));
        }
        sql.push_str(SETTINGS);
        let doing = "beginning to read";
        self.soon(doing, lease.run(sql)).await?;
        // The name is as old as PostgreSQL's 64 bits for it; later versions know it too.
        let numbers =
            sqlx::query_scalar::<_, String>("SELECT txid_current_snapshot()::text").fetch_one(lease.connection());
        let numbers = self.soon(doing, numbers).await?;
        let sum = Sha256::digest(numbers.as_bytes());
        Ok(sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Waits for what a server does in a moment; transient failure if it doesn't.
    pub(super) async fn soon<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        match timeout(MOMENT, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.failure(doing, error)),
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s while {doing}; the connection is given up",
                self.place(),
                MOMENT.as_secs()
            ))),
        }
    }

    /// The number of a session's process on the server.
    pub(super) async fn pid(&self, lease: &mut Lease) -> Result<i32, Failure> {
        let asking = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(lease.connection());
        self.soon("asking for its process", asking).await
    }

    /// Waits for what a server may do for long, for as long as its process `pid` is at it.
    pub(super) async fn patiently<T>(
        &self,
        doing: &str,
        pid: i32,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        let mut idle = 0;
        while idle < BELIEVED {
            tokio::select! {
                biased;
                done = &mut work => return done.map_err(|error| self.failure(doing, error)),
                () = sleep(LOOK) => idle = if self.is_at_work(pid).await { 0 } else { idle + 1 },
            }
        }
        Err(Failure::transient(format!(
            "{}: the server is not at work while {doing}, and no answer comes; the connection is given up",
            self.place()
        )))
    }

    /// What an error means, with what to do about a mistake in the source.
    pub(super) fn failure(&self, doing: &str, error: sqlx::Error) -> Failure {
        let advice = match code(&error) {
            Some("42P01" | "3F000") => "; correct the `table` or the `query` of the source",
            Some("42703" | "42601" | "42804" | "42883") => "; correct the `columns` or the `query` of the source",
            _ => "",
        };
        let mut failure = self.place().failure(doing, error);
        failure.message.push_str(advice);
        failure
    }

    /// Whether a session does something else than waiting for its client.
    pub(super) async fn is_at_work(&self, pid: i32) -> bool {
        let asked = async {
            let mut lease = self.connect().await.ok()?;
            let row = sqlx::query(AssertSqlSafe(
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE pid = $1 AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client')",
            ))
            .bind(pid)
            .fetch_one(lease.connection())
            .await
            .ok()?;
            row.try_get::<bool, _>(0).ok()
        };
        timeout(MOMENT, asked).await.ok().flatten().unwrap_or(false)
    }
}

impl Keeper {
    /// The snapshot's name, to be imported.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What the snapshot is.
    pub(super) fn mark(&self) -> &str {
        &self.mark
    }

    /// Keeps the session for as long as somebody reads.
    pub(super) fn hold(&self) -> Arc<()> {
        Arc::clone(&self.users)
    }

    /// The session itself, in the snapshot's transaction.
    pub(super) async fn session(&self) -> tokio::sync::MutexGuard<'_, Lease> {
        self.lease.lock().await
    }

    /// The session is of no use any more; the next to ask for a snapshot gets another.
    pub(super) fn give_up(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Ends the session's transaction; the session goes with its last user.
    pub(super) async fn end(&self) {
        self.give_up();
        // An error means that it has ended already.
        drop(timeout(MOMENT, self.session().await.run("ROLLBACK")).await);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn pulse(lease: Arc<Mutex<Lease>>, lost: Arc<AtomicBool>, users: Arc<()>, place: String) {
    let mut idle = 0;
    while idle < PULSES {
        sleep(PULSE).await;
        let mut lease = lease.lock().await;
        let sign = timeout(MOMENT, lease.run("SELECT 1")).await;
        if let Ok(Err(error)) = &sign
            && code(error) == Some("57P01")
        {
            tracing::debug!("{place}: the session that kept a run's snapshot here was ended");
            break;
        }
        if !matches!(sign, Ok(Ok(_))) {
            tracing::warn!("{place}: the session that keeps a run's snapshot here is lost");
            break;
        }
        idle = if Arc::strong_count(&users) > 2 { 0 } else { idle + 1 };
    }
    lost.store(true, Ordering::Relaxed);
    // An error means that it has ended already.
    drop(lease.lock().await.run("ROLLBACK").await);
}

/// What a chunk's version says: the snapshot, and what its positions are.
pub(super) struct Version<'a> {
    pub(super) id: &'a str,
    pub(super) mark: &'a str,
    /// Whether positions are places of rows; else rows are counted.
    pub(super) places: bool,
}

impl<'a> Version<'a> {
    /// `ID MARK ctid` or `ID MARK rows`.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let (id, mark, order) = (words.next()?, words.next()?, words.next()?);
        let places = match order {
            "ctid" => true,
            "rows" => false,
            _ => return None,
        };
        words.next().is_none().then_some(Self { id, mark, places })
    }
}

impl std::fmt::Display for Version<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = if self.places { "ctid" } else { "rows" };
        write!(f, "{} {} {order}", self.id, self.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_what_it_said() {
        let version = Version {
            id: "0000-1",
            mark: "ab",
            places: true,
        };
        assert!(Version::parse(&version.to_string()).is_some_and(|read| read.places && read.mark == "ab"));
        for wrong in ["", "a b", "a b c", "a b ctid d"] {
            assert!(Version::parse(wrong).is_none(), "{wrong}");
        }
    }
}
