//! Going back: revert undoes a publish, discard drops a staging area, cleanup drops staging and what only the reverts of
//! older runs would have needed.
//!
//! All three can be repeated and tolerate that there is nothing to do. Revert and discard leave a tombstone even then, so
//! that a publish or a chunk which arrives late is fenced instead of starting over.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use tokio::time::sleep;

use super::Postgres;
use super::bookkeeping::{self, Area, Method, Record, State, claim, ended, hold, queue_on, set_state};
use super::connect::{BEGIN, BEGIN_BRIEFLY, Lease};
use super::evolve;
use super::insert::restore;
use super::publish::{LOCK_PAUSE, LOCK_TIMEOUT, LOCK_TRIES, Trouble, lock};
use super::recall::{Reach, free, may_undo};
use super::stage::{alone, exists};
use super::swap::swap_out;
use super::target::describe;
use super::watermarks::put_back;
use crate::sink::LoadContext;

fn nothing_to_undo() -> StepReport {
    StepReport {
        rows: 0,
        detail: "nothing was prepared".to_owned(),
        ..StepReport::default()
    }
}

impl Postgres {
    pub(super) async fn revert_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let doing = format!("reverting load {} of {}", load.load, load.table);
        for _ in 0..LOCK_TRIES {
            let mut lease = self.lease().await?;
            if !bookkeeping::ensure_to_undo(&mut lease, &self.schema_known).await? {
                return Ok(nothing_to_undo());
            }
            bookkeeping::enter(&mut lease, load, "revert").await?;
            match revert(&mut lease, load).await {
                Ok(report) => {
                    lease.give_back();
                    return Ok(report);
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

    pub(super) async fn discard_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("discarding the staging area of load {}", load.load);
        if !bookkeeping::ensure_to_undo(&mut lease, &self.schema_known).await? {
            return Ok(nothing_to_undo());
        }
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        let record = claim(&mut lease, load, "discard", &load.table, State::Discarded).await?;
        let published = record.state == State::Published;
        if published {
            // Somebody has abandoned its revert: nothing of it will be taken back any more.
            let freed = free(&mut lease, load, u32::MAX).await;
            freed.map_err(|error| lease.place().failure(&doing, error))?;
        } else if record.state != State::Discarded {
            set_state(&mut lease, load, State::Discarded).await?;
        }
        lease.must(&doing, "COMMIT").await?;
        // From here on every late commit finds the tombstone.
        let area = Area::of(load);
        let mut tables = vec![area.stage.as_str(), area.marks.as_str()];
        if !published {
            tables.extend([
                area.aside.as_str(),
                area.prev.as_str(),
                area.before.as_str(),
                area.keys.as_str(),
            ]);
        }
        drop_tables(&mut lease, load, &tables, &doing).await?;
        lease.give_back();
        let detail = if published {
            "staging dropped; the load stays published"
        } else {
            "staging dropped"
        };
        Ok(StepReport {
            rows: 0,
            detail: detail.to_owned(),
            ..StepReport::default()
        })
    }

    pub(super) async fn clean_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("cleaning up after load {}", load.load);
        bookkeeping::ensure(&mut lease, &self.schema_known).await?;
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        let found = hold(&mut lease, load, "cleanup").await?;
        if found.is_none_or(|record| record.state != State::Published) {
            lease.must(&doing, "COMMIT").await?;
            lease.give_back();
            return Ok(StepReport {
                rows: 0,
                detail: "nothing is published, so nothing was dropped".to_owned(),
                ..StepReport::default()
            });
        }
        let area = Area::of(load);
        let marked = sqlx::query(
            "UPDATE haulage.loads SET settled_at = coalesce(settled_at, now()) WHERE run = $1 AND load = $2",
        )
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .execute(lease.connection())
        .await;
        marked.map_err(|error| lease.place().failure(&doing, error))?;
        lease.must(&doing, "COMMIT").await?;
        drop_tables(&mut lease, load, &[&area.stage, &area.marks], &doing).await?;
        let dropped = forget_older(&mut lease, load, &doing).await?;
        lease.give_back();
        Ok(StepReport {
            rows: 0,
            detail: format!("staging dropped, and what {dropped} run(s) had replaced or changed"),
            ..StepReport::default()
        })
    }
}

/// Of published runs that newer ones have left behind, what only their reverts would need is dropped. A run that isn't
/// settled may still fail and revert by itself, and one that is recalled is about to be. Returns of how many.
async fn forget_older(lease: &mut Lease, load: &LoadContext, doing: &str) -> Result<usize, Failure> {
    let older: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT run, load, area FROM (
             SELECT run, load, area, cleaned_at, recalled, row_number() OVER (ORDER BY sequence DESC) AS place FROM haulage.loads
             WHERE state = 'published' AND settled_at IS NOT NULL
               AND target = (SELECT target FROM haulage.loads WHERE run = $1 AND load = $2)
         ) published WHERE place > $3 AND cleaned_at IS NULL AND recalled IS NULL",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(i64::from(load.keep_previous))
    .fetch_all(lease.connection())
    .await
    .map_err(|error| lease.place().failure(doing, error))?;
    let mut dropped = 0;
    for (run, name, id) in &older {
        let area = Area::named(id.clone());
        let sql = format!("DROP TABLE IF EXISTS {}, {}, {}", area.prev, area.before, area.keys);
        alone(lease, &area, &sql, doing).await?;
        // Whoever recalls it holds its record, and finds there what has come of it.
        let cleaned = sqlx::query(
            "UPDATE haulage.loads SET cleaned_at = now()
             WHERE run = $1 AND load = $2 AND recalled IS NULL AND cleaned_at IS NULL",
        )
        .bind(run)
        .bind(name)
        .execute(lease.connection())
        .await;
        let cleaned = cleaned
            .map_err(|error| lease.place().failure(doing, error))?
            .rows_affected()
            > 0;
        lease.must(doing, if cleaned { "COMMIT" } else { "ROLLBACK" }).await?;
        dropped += usize::from(cleaned);
    }
    Ok(dropped)
}

async fn drop_tables(lease: &mut Lease, load: &LoadContext, tables: &[&str], doing: &str) -> Result<(), Failure> {
    let sql = format!("DROP TABLE IF EXISTS {}", tables.join(", "));
    alone(lease, &Area::of(load), &sql, doing).await?;
    sqlx::query("DELETE FROM haulage.fences WHERE run = $1 AND load = $2")
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .execute(lease.connection())
        .await
        .map_err(|error| lease.place().failure(doing, error))?;
    lease.must(doing, "COMMIT").await?;
    Ok(())
}

async fn revert(lease: &mut Lease, load: &LoadContext) -> Result<StepReport, Trouble> {
    lease
        .run(format!("{BEGIN}; SET LOCAL client_min_messages = warning"))
        .await?;
    let name = describe(lease, &load.table).await?.text();
    queue_on(lease, &name).await?;
    let record = claim(lease, load, "revert", &name, State::Reverted).await?;
    let report = |detail: String| StepReport {
        rows: record.rows as u64,
        detail,
        ..StepReport::default()
    };
    match (record.state, record.method) {
        (State::Published, Some(method)) => {
            let stays = undo(lease, load, &record, method).await?;
            put_back(lease, load, &name).await?;
            set_state(lease, load, State::Reverted).await?;
            lease.run("COMMIT").await?;
            Ok(report(match stays.is_empty() {
                true => format!("{name} is as it was"),
                false => format!("the rows of {name} are as they were; {}", stays.join("; ")),
            }))
        }
        (State::Published, None) => Err(ended(load, "published in a way that this version does not know").into()),
        (State::Staged | State::Sealed, _) => {
            // Whatever still publishes this load waits for this record, and is fenced.
            set_state(lease, load, State::Reverted).await?;
            lease.run("COMMIT").await?;
            Ok(report(format!("nothing was published to {name}")))
        }
        (State::Reverted | State::Discarded, _) => {
            lease.run("COMMIT").await?;
            Ok(report(format!("nothing is published to {name}")))
        }
    }
}

/// Returns what stays of what the run has made of the target's columns, in words.
async fn undo(lease: &mut Lease, load: &LoadContext, record: &Record, method: Method) -> Result<Vec<String>, Trouble> {
    let area = Area::of(load);
    let target = describe(lease, &load.table).await?;
    let reach = may_undo(lease, load, record, &target).await?;
    let drops = record.created && reach == Reach::Whole;
    // What others have appended since may be in those columns.
    let evolved = match reach {
        Reach::Whole => record.evolved.as_slice(),
        Reach::OwnRows => &[],
    };
    lease.run(LOCK_TIMEOUT).await?;
    if target.existing.is_some() {
        lock(lease, &target, method == Method::Swap || drops || !evolved.is_empty()).await?;
    }
    // Described again under the lock.
    let target = describe(lease, &load.table).await?;
    let mut stays = Vec::new();
    match (&target.existing, method) {
        (_, Method::Swap) => swap_out(lease, &area, &target, record).await?,
        (Some(_), _) if drops => {
            lease.run(format!("DROP TABLE {}", target.sql())).await?;
        }
        (Some(existing), method) => {
            restore(lease, load, &area, &target, existing, method).await?;
            stays = evolve::take_back(lease, &target, evolved).await?;
        }
        // Somebody dropped the table: there is nothing to take rows out of.
        (None, _) => {}
    }
    for table in [&area.before, &area.keys] {
        if exists(lease, table).await? {
            lease.run(format!("DROP TABLE {table}")).await?;
        }
    }
    Ok(stays)
}
