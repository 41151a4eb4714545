//! Publish: one transaction that makes a load visible, under a lock on the target's record so that two runs publish to
//! one table one after the other.
//!
//! The table's own lock is only waited for briefly, again and again: a lock request that waits holds up every reader
//! that comes after it. A publish that is repeated finds its own record and says what it said before.

use std::time::Duration;

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use tokio::time::sleep;

use super::Postgres;
use super::bookkeeping::{self, Area, Method, Record, State, ended, hold, queue_on, same_round};
use super::connect::{BEGIN, Lease};
use super::evolve;
use super::failure::{Place, code};
use super::insert;
use super::older;
use super::recall::kept_for;
use super::stage::end_stragglers;
use super::swap::{swap_in, unchanged};
use super::target::{Target, describe};
use super::verify::{marked, plan};
use super::watermarks;
use crate::sink::aside::left;
use crate::sink::kept::Publishing;
use crate::sink::older::words;
use crate::sink::{ColumnChange, Expected, LoadContext, with_columns};

/// Longest wait for the table's lock in one try. Above the second after which the server cancels an autovacuum for us.
pub(super) const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '3s'";
/// Tries to get the table's lock, and the pause between them in which readers pass.
pub(super) const LOCK_TRIES: u32 = 20;
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Why a transaction on the target did not come through.
pub(super) enum Trouble {
    /// The table is in use; to be tried again after a pause.
    Busy,
    /// The server's answer.
    Said(sqlx::Error),
    /// It ends here.
    Failed(Failure),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        if code(&error) == Some("55P03") {
            Self::Busy
        } else {
            Self::Said(error)
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Trouble {
    /// As a failure, or `None` if it is worth another try.
    pub(super) fn into_failure(self, place: &Place, doing: &str) -> Option<Failure> {
        match self {
            Self::Busy => None,
            Self::Said(error) => Some(place.failure(doing, error)),
            Self::Failed(failure) => Some(failure),
        }
    }
}

impl Postgres {
    pub(super) async fn publish_load(&self, load: &LoadContext, expected: Expected) -> Result<Publishing, Failure> {
        let doing = format!("publishing load {} to {}", load.load, load.table);
        let mut lease = self.lease().await?;
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        bookkeeping::enter(&mut lease, load, "publish").await?;
        lease.give_back();
        let in_the_way = self.who_would_see_a_part(load).await?;
        for _ in 0..LOCK_TRIES {
            // A lease that is dropped after trouble closes its connection, and the server rolls back.
            let mut lease = self.lease().await?;
            match publish(&mut lease, load, expected, in_the_way.as_deref(), &doing).await {
                Ok(done) => {
                    lease.give_back();
                    return Ok(done);
                }
                Err(trouble) => {
                    if let Some(failure) = trouble.into_failure(lease.place(), &doing) {
                        return Err(failure);
                    }
                }
            }
            drop(lease);
            sleep(LOCK_PAUSE).await;
        }
        Err(self.in_use(load, &doing).await)
    }

    /// Names the sessions that hold the table.
    pub(super) async fn in_use(&self, load: &LoadContext, doing: &str) -> Failure {
        match self.holders(load).await {
            Ok((place, holders)) => Failure::transient(format!(
                "{place}: {} is in use while {doing}; end the transactions of process {holders} (pg_stat_activity shows \
                 what they do)",
                load.table
            )),
            Err(failure) => failure,
        }
    }

    async fn holders(&self, load: &LoadContext) -> Result<(Place, String), Failure> {
        let mut lease = self.lease().await?;
        let target = describe(&mut lease, &load.table).await?;
        let holders: Option<String> = sqlx::query_scalar(
            "SELECT string_agg(DISTINCT pid::text, ', ') FROM pg_locks
             WHERE locktype = 'relation' AND relation = to_regclass($1)::oid AND granted",
        )
        .bind(target.sql())
        .fetch_one(lease.connection())
        .await
        .map_err(|error| lease.place().failure("looking for locks", error))?;
        let place = lease.place().clone();
        lease.give_back();
        Ok((place, holders.unwrap_or_else(|| "(ended meanwhile)".to_owned())))
    }
}

async fn publish(
    lease: &mut Lease,
    load: &LoadContext,
    expected: Expected,
    in_the_way: Option<&str>,
    doing: &str,
) -> Result<Publishing, Trouble> {
    let area = Area::of(load);
    end_stragglers(lease, &area).await?;
    lease.run(BEGIN).await?;
    // The name is resolved before queueing, and what it stands for afterwards: the run ahead may have changed it.
    let target = describe(lease, &load.table).await?.text();
    queue_on(lease, &target).await?;
    let record = match hold(lease, load, "publish").await? {
        Some(record) => record,
        None => return Err(ended(load, "not prepared").into()),
    };
    same_round(load, &record)?;
    match record.state {
        State::Sealed => {}
        State::Published => {
            lease.run("COMMIT").await?;
            return Ok(Publishing::Done(StepReport {
                rows: record.rows as u64,
                detail: record.detail,
                ..StepReport::default()
            }));
        }
        State::Staged => {
            return Err(not_verified(load).into());
        }
        State::Reverted => return Err(ended(load, "reverted").into()),
        State::Discarded => return Err(ended(load, "discarded").into()),
    }
    if let Some(runs) = kept_for(lease, load, &target).await? {
        lease.run("ROLLBACK").await?;
        return Ok(Publishing::Kept(runs));
    }
    marked(lease, load, &area, expected, doing).await?;
    let expected = left(expected, record.set_aside.as_ref());
    lease.run(LOCK_TIMEOUT).await?;
    let done = make_visible(lease, load, &area, &record, expected, in_the_way).await?;
    let detail = format!(
        "{} {} {target}{}{}{}",
        counted(expected.rows, "row"),
        done.words,
        done.because,
        words(done.older),
        with_columns(&done.changes)
    );
    keep(lease, load, &done, expected, &detail).await?;
    watermarks::advance(lease, load, &target, done.created).await?;
    lease.run("COMMIT").await?;
    Ok(Publishing::Done(StepReport {
        rows: expected.rows,
        detail,
        ..StepReport::default()
    }))
}

/// Steps came in another order than they do.
pub(super) fn not_verified(load: &LoadContext) -> Failure {
    Failure::permanent(format!(
        "load {} is not verified; verify it before publishing",
        load.load
    ))
}

/// What a publish did.
struct Done {
    method: Method,
    created: bool,
    names: Vec<String>,
    words: &'static str,
    /// Why it was not done in the quicker way.
    because: String,
    /// What became of the target's columns.
    changes: Vec<ColumnChange>,
    /// Rows that were not written, since newer ones stand.
    older: u64,
}

impl Done {
    /// Of those changes, what a revert has to take back: another table takes its columns with it.
    fn evolved(&self) -> &[ColumnChange] {
        match self.method {
            Method::Swap => &[],
            Method::Rewrite | Method::Append | Method::AppendByKey | Method::Merge => &self.changes,
        }
    }
}

async fn make_visible(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    record: &Record,
    expected: Expected,
    in_the_way: Option<&str>,
) -> Result<Done, Trouble> {
    let (mut target, before, planned) = plan(lease, load, record).await?;
    let may_swap = planned == Method::Swap && in_the_way.is_none();
    let evolves = !before.evolve.is_empty();
    if let Some(existing) = &target.existing {
        lock(lease, &target, may_swap || evolves).await?;
        if !unchanged(lease, existing, &target).await? {
            // Somebody else replaced the table while its lock was waited for.
            return Err(Trouble::Busy);
        }
    }
    // Again, now that nothing can change it.
    let (locked, mut fit, mut method) = plan(lease, load, record).await?;
    if !fit.evolve.is_empty() && !evolves {
        // Its columns are others by now, and the lock is not the one that changing them takes.
        return Err(Trouble::Busy);
    }
    target = locked;
    let changes = std::mem::take(&mut fit.evolve);
    let created = target.existing.is_none();
    let mut because = String::new();
    if let (Method::Swap, false) = (method, may_swap) {
        method = Method::Rewrite;
        because = slower(in_the_way, created);
    }
    if method == Method::Swap {
        let names = swap_in(lease, load, area, &target).await?;
        let words = if created {
            "in the new table"
        } else {
            "now in place of the old ones, by a swap of tables, in"
        };
        return Ok(Done {
            method,
            created,
            names,
            words,
            because,
            changes,
            older: 0,
        });
    }
    if !changes.is_empty() {
        for statement in evolve::statements(&target.sql(), &changes) {
            lease
                .run(statement)
                .await
                .map_err(|error| refused(lease.place(), load, error))?;
        }
        // What the load does to its rows is decided by its columns as they are now.
        (target, fit, _) = plan(lease, load, record).await?;
    }
    let judge = older::judged(lease, load, &target).await?;
    let mut older = record.older;
    if !created {
        older += older::take_out(lease, load, area, &target, &judge).await?;
    }
    insert::publish(lease, load, area, &target, &fit, method, expected).await?;
    let words = match method {
        Method::Rewrite | Method::Swap if created => "in the new table",
        Method::Rewrite | Method::Swap => "now in place of the old ones in",
        Method::Append | Method::AppendByKey => "appended to",
        Method::Merge => "merged by key into",
    };
    Ok(Done {
        method,
        created,
        names: Vec::new(),
        words,
        because,
        changes,
        older,
    })
}

/// What the server says to a change of the target's columns. What is known to stand in the way is found before.
fn refused(place: &Place, load: &LoadContext, error: sqlx::Error) -> Trouble {
    match code(&error) {
        Some("0A000" | "2BP01" | "42501" | "42P16") => Trouble::Failed(Failure::permanent(format!(
            "{place}: the columns of {} can't be changed for load {}: {error}; change them yourself, or leave them out or \
             CAST them in the step's SQL",
            load.table, load.load
        ))),
        // Among them that the lock is waited for.
        _ => error.into(),
    }
}

/// Why rows were written a second time instead of swapping tables.
fn slower(in_the_way: Option<&str>, created: bool) -> String {
    let how = if created { "by INSERT" } else { "by DELETE and INSERT" };
    match in_the_way {
        Some(processes) => format!(
            ", {how}, because a swap would show a part of the run to process {processes} (pg_stat_activity shows what it \
             does): its snapshot is from before all rows were staged"
        ),
        // Described twice, and the table changed between.
        None => format!(", {how}, because the table changed meanwhile"),
    }
}

/// Keeps others from writing to the target until the commit; a swap also keeps readers out for its few milliseconds.
pub(super) async fn lock(lease: &mut Lease, target: &Target, swap: bool) -> Result<(), sqlx::Error> {
    let mode = if swap {
        "ACCESS EXCLUSIVE"
    } else {
        "SHARE ROW EXCLUSIVE"
    };
    lease.run(format!("LOCK TABLE {} IN {mode} MODE", target.sql())).await?;
    Ok(())
}

async fn keep(
    lease: &mut Lease,
    load: &LoadContext,
    done: &Done,
    expected: Expected,
    detail: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE haulage.loads SET state = 'published', method = $3, created = $4, names = $5, rows = $6, detail = $7, evolved = $8,
             provenance = $9, older = $10, sequence = nextval('haulage.published'), published_at = clock_timestamp()
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(done.method.text())
    .bind(done.created)
    .bind(&done.names)
    .bind(expected.rows as i64)
    .bind(detail)
    .bind(serde_json::to_string(done.evolved()).map_err(|error| sqlx::Error::Encode(error.into()))?)
    .bind(load.provenance)
    .bind(done.older as i64)
    .execute(lease.connection())
    .await?;
    Ok(())
}
