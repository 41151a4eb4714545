//! Readers that look at the targets through everything that happens. Whatever they see has to be a state that is allowed:
//! the one before the run, or the one after it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::task::JoinHandle;

use super::workload::{Sight, TARGETS, Target, says_no_table, sight_sql};
use super::world::World;

/// Between two looks of a reader.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a snapshot is kept before it is read again.
const HOLD: Duration = Duration::from_millis(150);
/// A server that is away is asked again after this.
const AWAY: Duration = Duration::from_millis(100);

/// What readers share with the rounds.
#[derive(Default)]
struct Shared {
    allowed: Mutex<BTreeMap<Target, Vec<Sight>>>,
    stop: AtomicBool,
    reads: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// The readers of a world, one for each target.
pub(crate) struct Readers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts them; nothing but an absent table is allowed yet. They go on counting from `reads`.
    pub(crate) fn start(world: &World, reads: u64) -> Self {
        let shared = Arc::new(Shared {
            reads: reads.into(),
            ..Shared::default()
        });
        for target in TARGETS {
            shared.allow(target, vec![None]);
        }
        let url = world.warehouse.url("warehouse");
        let read = |target| {
            let shared = Arc::clone(&shared);
            match target {
                Target::Side => tokio::spawn(shared.read_sqlite(world.side())),
                _ => tokio::spawn(shared.read_postgres(url.clone(), target)),
            }
        };
        let tasks = TARGETS.into_iter().map(read).collect();
        Self { shared, tasks }
    }

    /// Says what may be seen of a target from now on.
    pub(crate) fn allow(&self, target: Target, sights: Vec<Sight>) {
        self.shared.allow(target, sights);
    }

    /// How often anybody has looked.
    pub(crate) fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// What was seen and not allowed, since the last time this was asked.
    pub(crate) fn wrong(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.wrong.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn allow(&self, target: Target, sights: Vec<Sight>) {
        self.allowed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(target, sights);
    }

    fn allowed(&self, target: Target) -> Vec<Sight> {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.get(&target).cloned().unwrap_or_default()
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// A look that began when `before` was allowed and has ended now.
    fn seen(&self, target: Target, before: &[Sight], sight: Sight) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let now = self.allowed(target);
        if !before.contains(&sight) && !now.contains(&sight) {
            self.wrong(format!("{}: {sight:?}, and only {now:?} are allowed", target.table()));
        }
    }

    /// Reads again and again: once by itself, then twice in one snapshot.
    async fn read_postgres(self: Arc<Self>, url: String, target: Target) {
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.look_at_postgres(&mut connection, &url, target).await {
                connection = None;
                if refuses(&error) {
                    self.wrong(format!("{}: a reader was refused: {error:#}", target.table()));
                }
                tokio::time::sleep(AWAY).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look_at_postgres(&self, kept: &mut Option<PgConnection>, url: &str, target: Target) -> Result<()> {
        if kept.is_none() {
            *kept = Some(PgConnection::connect(url).await?);
        }
        let connection = kept.as_mut().context("just made")?;
        let before = self.allowed(target);
        let sight = sight_of(connection, target).await?;
        self.seen(target, &before, sight);

        let before = self.allowed(target);
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *connection)
            .await?;
        let first = sight_of(connection, target).await?;
        if first.is_some() {
            tokio::time::sleep(HOLD).await;
            let second = sight_of(connection, target).await?;
            if first != second {
                self.wrong(format!(
                    "{}: one snapshot held {first:?} and then {second:?}",
                    target.table()
                ));
            }
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        self.seen(target, &before, first);
        Ok(())
    }

    async fn read_sqlite(self: Arc<Self>, path: PathBuf) {
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            if path.exists()
                && let Err(error) = self.look_at_sqlite(&mut connection, &path).await
            {
                connection = None;
                self.wrong(format!("side: a reader was refused: {error:#}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look_at_sqlite(&self, kept: &mut Option<SqliteConnection>, path: &std::path::Path) -> Result<()> {
        if kept.is_none() {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .busy_timeout(Duration::from_secs(20));
            *kept = Some(options.connect().await?);
        }
        let connection = kept.as_mut().context("just made")?;
        let before = self.allowed(Target::Side);
        let found = sqlx::query_as(AssertSqlSafe(sight_sql(Target::Side)))
            .fetch_one(connection)
            .await;
        self.seen(Target::Side, &before, or_no_table(found)?);
        Ok(())
    }
}

async fn sight_of(connection: &mut PgConnection, target: Target) -> Result<Sight, sqlx::Error> {
    // Not prepared: a plan from before a swap isn't what this is about.
    let found = sqlx::query_as(AssertSqlSafe(sight_sql(target)))
        .persistent(false)
        .fetch_one(connection)
        .await;
    or_no_table(found)
}

fn or_no_table(found: Result<(i64, i64, i64), sqlx::Error>) -> Result<Sight, sqlx::Error> {
    match found {
        Ok(sight) => Ok(Some(sight)),
        Err(sqlx::Error::Database(error)) if says_no_table(&*error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a server that is there refuses a reader, by something else than going away or coming back.
fn refuses(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => !error
            .code()
            .is_some_and(|code| code.starts_with("57P") || code == "53100"),
        _ => false,
    }
}
