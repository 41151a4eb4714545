//! Rows of a merge that are older than what stands under their keys, taken out of the staging area in the transaction that
//! publishes the others. See [`crate::sink::older`].

use sqlx::{AssertSqlSafe, Row};

use super::bookkeeping::Area;
use super::connect::Lease;
use super::insert::some_key;
use super::publish::Trouble;
use super::target::{RUN_COLUMN, Target};
use crate::sink::LoadContext;
use crate::sink::name::{quote, same_key};
use crate::sink::older::{Judge, Later, judge, undecided};

/// Who has published to target `$1` after run `$2`, and is of no replay of it. A replay is of the time of its origin. Of a
/// run that has published nothing there nobody knows when it was.
const LATER: &str = "
    WITH published AS (
        SELECT run, origin, sequence, mode, replaces, provenance OR coalesce(method, '') = 'append' AS names_rows,
            (SELECT max(first.sequence) FROM haulage.loads first
             WHERE first.target = $1 AND first.state = 'published' AND first.run = loads.origin) AS in_its_time
        FROM haulage.loads loads WHERE target = $1 AND state = 'published'
    ), mine AS (SELECT max(sequence) AS sequence FROM published WHERE run = $2)
    SELECT published.run, published.names_rows,
        (published.mode = 'replace' OR published.replaces IS NOT DISTINCT FROM $2) AND mine.sequence IS NOT NULL
    FROM published, mine
    WHERE published.run <> $2 AND published.origin IS DISTINCT FROM $2
        AND coalesce(published.in_its_time, published.sequence) > coalesce(mine.sequence, 0)
    ORDER BY published.sequence DESC";

/// How this load's older rows are found. Permanent failure if what is replayed has been replaced meanwhile.
pub(super) async fn judged(lease: &mut Lease, load: &LoadContext, target: &Target) -> Result<Judge, Trouble> {
    let mut later = Vec::new();
    if let Some(origin) = &load.origin {
        let rows = sqlx::query(LATER)
            .bind(target.text())
            .bind(origin.as_str())
            .fetch_all(lease.connection())
            .await?;
        for row in &rows {
            later.push(Later {
                run: row.try_get(0)?,
                names_rows: row.try_get(1)?,
                replaced: row.try_get(2)?,
            });
        }
    }
    Ok(judge(load, later)?)
}

/// Takes the older rows out of the staging area; how many. The target exists, and its lock is held.
pub(super) async fn take_out(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    judge: &Judge,
) -> Result<u64, Trouble> {
    let same = same_key("t", "s", &load.key);
    let delete = format!("DELETE FROM {} s USING {} t WHERE {same}", area.stage, target.sql());
    match judge {
        Judge::Nobody => Ok(0),
        Judge::Column(column) => {
            let column = quote(column);
            let newer = format!("t.{column} IS NOT NULL AND (s.{column} IS NULL OR t.{column} > s.{column})");
            Ok(lease.run(format!("{delete} AND {newer}")).await?)
        }
        Judge::Runs(runs) => {
            let done = sqlx::query(AssertSqlSafe(format!("{delete} AND t.{RUN_COLUMN} = ANY($1)")))
                .persistent(false)
                .bind(runs)
                .execute(lease.connection())
                .await?;
            Ok(done.rows_affected())
        }
        Judge::Unknown(runs) => match some_key(lease, load, area, target).await? {
            Some(key) => Err(undecided(load, runs, &key).into()),
            None => Ok(0),
        },
    }
}
