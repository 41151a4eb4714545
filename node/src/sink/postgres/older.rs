//! Rows of a merge that are older than what stands under their keys, taken out of the staging area in the transaction that
//! publishes the others. See [`crate::sink::older`].

use haulage_plan::PROVENANCE;
use sqlx::{AssertSqlSafe, Row};

use super::bookkeeping::{Area, Method};
use super::connect::Lease;
use super::insert::{key_in, key_text, some_key};
use super::publish::Trouble;
use super::standing::way;
use super::target::{RUN_COLUMN, Target};
use crate::sink::LoadContext;
use crate::sink::name::{quote, same_key};
use crate::sink::older::{
    IS_KNOWN, IS_OLDER, Judge, Later, Own, Sibling, Wrote, judge, read, undecided, undecided_among, written,
};

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

/// Run `$2` and its replays, but for `$3`, as far as they have published to target `$1`.
const SIBLINGS: &str = "
    SELECT run, provenance, coalesce(method, ''), created, cleaned_at IS NOT NULL, area
    FROM haulage.loads WHERE target = $1 AND state = 'published' AND (run = $2 OR origin = $2) AND run <> $3
    ORDER BY sequence";

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
    let own = siblings(lease, load, target).await?;
    Ok(judge(load, later, own)?)
}

async fn siblings(lease: &mut Lease, load: &LoadContext, target: &Target) -> Result<Vec<Sibling>, sqlx::Error> {
    let Some(origin) = &load.origin else {
        return Ok(Vec::new());
    };
    let rows: Vec<(String, bool, String, bool, bool, String)> = sqlx::query_as(SIBLINGS)
        .bind(target.text())
        .bind(origin.as_str())
        .bind(load.run.as_str())
        .fetch_all(lease.connection())
        .await?;
    let mut siblings = Vec::with_capacity(rows.len());
    for (run, names_rows, method, created, cleaned, area) in rows {
        let area = Area::named(area);
        let (mut before, mut added) = (None, None);
        if !cleaned {
            before = has_key(lease, load, &area.before).await?.then_some(area.before);
            added = has_key(lease, load, &area.keys).await?.then_some(area.keys);
        }
        siblings.push(Sibling {
            run,
            names_rows,
            wrote: Wrote::of(way(Method::parse(&method)), created, before, added),
        });
    }
    Ok(siblings)
}

/// Whether there is such a table and it has the load's key.
async fn has_key(lease: &mut Lease, load: &LoadContext, table: &str) -> Result<bool, sqlx::Error> {
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table)
    .fetch_all(lease.connection())
    .await?;
    Ok(load.key.iter().all(|key| columns.contains(key)))
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
        Judge::Runs { later, own } => {
            let mut older = 0;
            if !later.is_empty() {
                let done = sqlx::query(AssertSqlSafe(format!("{delete} AND t.{RUN_COLUMN} = ANY($1)")))
                    .persistent(false)
                    .bind(later)
                    .execute(lease.connection())
                    .await?;
                older = done.rows_affected();
            }
            let among = match own {
                Own::Told(runs) => among_told(lease, load, area, target, runs).await?,
                Own::Untold(wrote) => among_untold(lease, load, area, target, wrote).await?,
            };
            match among {
                Ok(more) => Ok(older + more),
                Err(key) => Err(undecided_among(load, &key, matches!(own, Own::Told(_))).into()),
            }
        }
        Judge::Unknown(runs) => match some_key(lease, load, area, target, "").await? {
            Some(key) => Err(undecided(load, runs, &key).into()),
            None => Ok(0),
        },
    }
}

/// Takes out the rows that stood before the one of these runs which has their key; how many, or a key of which that isn't
/// known.
async fn among_told(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    runs: &[String],
) -> Result<Result<u64, String>, sqlx::Error> {
    let parts = "WITH parts AS (SELECT * FROM jsonb_to_recordset($1::text::jsonb) AS p(run text, chunk text, object bigint, \
                 start bigint))";
    let [_, chunk, _] = PROVENANCE;
    let pairs = format!(
        "{} s JOIN {} t ON {} LEFT JOIN parts mine ON mine.run = s.{RUN_COLUMN} AND mine.chunk = s.{chunk} \
         LEFT JOIN parts there ON there.run = t.{RUN_COLUMN} AND there.chunk = t.{chunk} WHERE t.{RUN_COLUMN} = ANY($2)",
        area.stage,
        target.sql(),
        same_key("t", "s", &load.key)
    );
    let read = read(load);
    let unknown = format!(
        "{parts} SELECT {} FROM {pairs} AND NOT coalesce({IS_KNOWN}, false) LIMIT 1",
        key_text(load)
    );
    let unknown = sqlx::query(AssertSqlSafe(unknown))
        .persistent(false)
        .bind(&read)
        .bind(runs)
        .fetch_optional(lease.connection())
        .await?;
    if let Some(row) = unknown {
        return key_in(load, &row).map(Err);
    }
    let delete = format!(
        "{parts} DELETE FROM {} WHERE ctid = ANY(ARRAY(SELECT s.ctid FROM {pairs} AND {IS_OLDER}))",
        area.stage
    );
    let done = sqlx::query(AssertSqlSafe(delete))
        .persistent(false)
        .bind(&read)
        .bind(runs)
        .execute(lease.connection())
        .await?;
    Ok(Ok(done.rows_affected()))
}

/// A key that one of the runs has written, perhaps; no row is taken out.
async fn among_untold(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    wrote: &[Wrote],
) -> Result<Result<u64, String>, sqlx::Error> {
    for wrote in wrote {
        let and = match wrote {
            Wrote::Any => String::new(),
            Wrote::Keys(tables) => written(tables, &load.key),
        };
        if let Some(key) = some_key(lease, load, area, target, &and).await? {
            return Ok(Err(key));
        }
    }
    Ok(Ok(0))
}
