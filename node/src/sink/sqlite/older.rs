//! Rows of a merge that are older than what stands under their keys, by the rules of the PostgreSQL destination. See
//! [`crate::sink::older`].

use haulage_core::failure::Failure;
use haulage_plan::PROVENANCE;

use super::bookkeeping::{Area, Method};
use super::file::Writer;
use super::publish::{literal, some_key};
use super::standing::way;
use super::target::RUN_COLUMN;
use super::verify::one_key;
use crate::sink::LoadContext;
use crate::sink::name::{quote, same_key};
use crate::sink::older::{
    IS_KNOWN, IS_OLDER, Judge, Later, Own, Sibling, Wrote, judge, read, undecided, undecided_among, written,
};

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

/// Run `$2` and its replays, but for `$3`, as far as they have published to target `$1`.
const SIBLINGS: &str = "
    SELECT run, provenance, coalesce(method, ''), created, cleaned_at IS NOT NULL, area
    FROM _haulage_loads WHERE target = $1 COLLATE NOCASE AND state = 'published' AND (run = $2 OR origin = $2) AND run <> $3
    ORDER BY sequence";

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
    let own = siblings(writer, load, table).await;
    judge(load, later, own.map_err(|error| writer.failure(doing, error))?)
}

async fn siblings(writer: &mut Writer<'_>, load: &LoadContext, table: &str) -> Result<Vec<Sibling>, sqlx::Error> {
    let Some(origin) = &load.origin else {
        return Ok(Vec::new());
    };
    let rows: Vec<(String, bool, String, bool, bool, String)> = sqlx::query_as(SIBLINGS)
        .bind(table)
        .bind(origin.as_str())
        .bind(load.run.as_str())
        .fetch_all(writer.connection())
        .await?;
    let mut siblings = Vec::with_capacity(rows.len());
    for (run, names_rows, method, created, cleaned, area) in rows {
        let area = Area::named(&area);
        let (mut before, mut added) = (None, None);
        if !cleaned {
            before = has_key(writer, load, &area.before).await?.then_some(area.before);
            added = has_key(writer, load, &area.keys).await?.then_some(area.keys);
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
async fn has_key(writer: &mut Writer<'_>, load: &LoadContext, table: &str) -> Result<bool, sqlx::Error> {
    let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
        .bind(table)
        .fetch_all(writer.connection())
        .await?;
    let has = |key: &String| columns.iter().any(|column| column.eq_ignore_ascii_case(key));
    Ok(load.key.iter().all(has))
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
    let delete = format!(
        "DELETE FROM {0} WHERE rowid IN (SELECT s.rowid FROM {0} s JOIN {1} t ON {2}",
        area.stage,
        quote(table),
        same_key("t", "s", &load.key)
    );
    match judge {
        Judge::Nobody => Ok(0),
        Judge::Column(column) => {
            let column = quote(column);
            let newer = format!("t.{column} IS NOT NULL AND (s.{column} IS NULL OR t.{column} > s.{column})");
            writer.must(doing, format!("{delete} WHERE {newer})")).await
        }
        Judge::Runs { later, own } => {
            let mut older = 0;
            if !later.is_empty() {
                let newer = format!("t.{RUN_COLUMN} IN ({})", literals(later));
                older = writer.must(doing, format!("{delete} WHERE {newer})")).await?;
            }
            let among = match own {
                Own::Told(runs) => among_told(writer, load, area, table, runs).await,
                Own::Untold(wrote) => among_untold(writer, load, area, table, wrote).await,
            };
            match among.map_err(|error| writer.failure(doing, error))? {
                Ok(more) => Ok(older + more),
                Err(key) => Err(undecided_among(load, &key, matches!(own, Own::Told(_)))),
            }
        }
        Judge::Unknown(runs) => {
            let key = some_key(writer, load, area, table, "").await;
            match key.map_err(|error| writer.failure(doing, error))? {
                Some(key) => Err(undecided(load, runs, &key)),
                None => Ok(0),
            }
        }
    }
}

fn literals(runs: &[String]) -> String {
    let runs: Vec<String> = runs.iter().map(|run| literal(run)).collect();
    runs.join(", ")
}

/// Takes out the rows that stood before the one of these runs which has their key; how many, or a key of which that isn't
/// known.
async fn among_told(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    table: &str,
    runs: &[String],
) -> Result<Result<u64, String>, sqlx::Error> {
    let parts = format!(
        "WITH parts AS MATERIALIZED (SELECT json_extract(value, '$.run') AS run, json_extract(value, '$.chunk') AS chunk, \
         json_extract(value, '$.object') AS object, json_extract(value, '$.start') AS start FROM json_each({}))",
        literal(&read(load))
    );
    let [_, chunk, _] = PROVENANCE;
    let pairs = format!(
        "{} s JOIN {} t ON {} LEFT JOIN parts mine ON mine.run = s.{RUN_COLUMN} AND mine.chunk = s.{chunk} \
         LEFT JOIN parts there ON there.run = t.{RUN_COLUMN} AND there.chunk = t.{chunk} WHERE t.{RUN_COLUMN} IN ({})",
        area.stage,
        quote(table),
        same_key("t", "s", &load.key),
        literals(runs)
    );
    let key: Vec<String> = load
        .key
        .iter()
        .map(|key| format!("CAST(s.{} AS TEXT)", quote(key)))
        .collect();
    let unknown = format!(
        "{parts} SELECT {} FROM {pairs} AND NOT coalesce({IS_KNOWN}, false) LIMIT 1",
        key.join(", ")
    );
    if let Some(key) = one_key(writer, load, unknown).await? {
        return Ok(Err(key));
    }
    let delete = format!(
        "{parts} DELETE FROM {} WHERE rowid IN (SELECT s.rowid FROM {pairs} AND {IS_OLDER})",
        area.stage
    );
    writer.run(delete).await.map(Ok)
}

/// A key that one of the runs has written, perhaps; no row is taken out.
async fn among_untold(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    table: &str,
    wrote: &[Wrote],
) -> Result<Result<u64, String>, sqlx::Error> {
    for wrote in wrote {
        let and = match wrote {
            Wrote::Any => String::new(),
            Wrote::Keys(tables) => written(tables, &load.key),
        };
        if let Some(key) = some_key(writer, load, area, table, &and).await? {
            return Ok(Err(key));
        }
    }
    Ok(Ok(0))
}
