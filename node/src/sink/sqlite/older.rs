//! Rows of a merge that are older than what stands under their keys, by the rules of the PostgreSQL destination. See
//! [`crate::sink::older`].

use haulage_core::failure::Failure;

use super::bookkeeping::Area;
use super::file::Writer;
use super::publish::{literal, some_key};
use super::target::RUN_COLUMN;
use crate::sink::LoadContext;
use crate::sink::name::{quote, same_key};
use crate::sink::older::{Judge, Later, judge, undecided};

const LATER: &str = "
    WITH published AS (
        SELECT run, origin, sequence, mode, replaces, provenance OR coalesce(method, '') = 'append' AS names_rows,
            (SELECT max(first.sequence) FROM _haulage_loads first
             WHERE first.target = $1 COLLATE NOCASE AND first.state = 'published' AND first.run = loads.origin) AS in_its_time
        FROM _haulage_loads loads WHERE target = $1 COLLATE NOCASE AND state = 'published'
    ), mine AS (SELECT max(sequence) AS sequence FROM published WHERE run = $2)
    SELECT published.run, published.names_rows,
        (published.mode = 'replace' OR published.replaces IS $2) AND mine.sequence IS NOT NULL
    FROM published, mine
    WHERE published.run <> $2 AND published.origin IS NOT $2
        AND coalesce(published.in_its_time, published.sequence) > coalesce(mine.sequence, 0)
    ORDER BY published.sequence DESC";

/// How this load's older rows are found. Permanent failure if what is replayed has been replaced meanwhile.
pub(super) async fn judged(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    doing: &str,
) -> Result<Judge, Failure> {
    let mut later = Vec::new();
    if let Some(origin) = &load.origin {
        let rows: Vec<(String, bool, bool)> = sqlx::query_as(LATER)
            .bind(table)
            .bind(origin.as_str())
            .fetch_all(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
        later.extend(rows.into_iter().map(|(run, names_rows, replaced)| Later {
            run,
            replaced,
            names_rows,
        }));
    }
    judge(load, later)
}

/// Takes the older rows out of the staging area; how many. The target exists.
pub(super) async fn take_out(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    table: &str,
    judge: &Judge,
    doing: &str,
) -> Result<u64, Failure> {
    let newer = match judge {
        Judge::Nobody => return Ok(0),
        Judge::Column(column) => {
            let column = quote(column);
            format!("t.{column} IS NOT NULL AND (s.{column} IS NULL OR t.{column} > s.{column})")
        }
        Judge::Runs(runs) => {
            let runs: Vec<String> = runs.iter().map(|run| literal(run)).collect();
            format!("t.{RUN_COLUMN} IN ({})", runs.join(", "))
        }
        Judge::Unknown(runs) => {
            let key = some_key(writer, load, area, table, "").await;
            return match key.map_err(|error| writer.failure(doing, error))? {
                Some(key) => Err(undecided(load, runs, &key)),
                None => Ok(0),
            };
        }
    };
    let delete = format!(
        "DELETE FROM {0} WHERE rowid IN (SELECT s.rowid FROM {0} s JOIN {1} t ON {2} WHERE {newer})",
        area.stage,
        quote(table),
        same_key("t", "s", &load.key)
    );
    writer.must(doing, delete).await
}
