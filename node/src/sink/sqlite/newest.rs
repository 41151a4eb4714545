//! Of the staged rows that share a key, the one that is newest by the column that the load names: the others leave the staging
//! area when it is verified. See [`crate::sink::older`].

use haulage_core::failure::Failure;

use super::bookkeeping::{Area, Record};
use super::file::Writer;
use super::verify::one_key;
use crate::sink::LoadContext;
use crate::sink::name::{quote, quote_all, quote_all_of, same_key};
use crate::sink::older::{chooses, content, doubled, tied};

/// Leaves one row of each key, inside the caller's transaction. How many have left it by now. Permanent failure if several
/// are the newest and differ.
pub(super) async fn choose(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    record: &Record,
    doing: &str,
) -> Result<u64, Failure> {
    let Some(newest) = chooses(load) else { return Ok(0) };
    let (stage, keys, column) = (&area.stage, quote_all(&load.key), quote(newest));
    let doubled = doubled(load, stage);
    let same = same_key("d", "s", &load.key);
    let beaten = format!(
        "DELETE FROM {stage} WHERE rowid IN (SELECT s.rowid FROM {stage} s JOIN (SELECT {keys}, max({column}) AS __haulage_top \
         {doubled}) d ON {same} WHERE d.__haulage_top IS NOT NULL AND (s.{column} IS NULL OR s.{column} < d.__haulage_top))"
    );
    let mut older = record.older + writer.must(doing, beaten).await?;
    // Those that are left under one key have the same value, or none.
    let pairs = format!("FROM {stage} s JOIN (SELECT {keys} {doubled}) d ON {same}");
    let texts: Vec<String> = load
        .key
        .iter()
        .map(|key| format!("CAST(s.{} AS TEXT)", quote(key)))
        .collect();
    let all: Vec<String> = content(load)
        .iter()
        .map(|name| format!("quote(s.{})", quote(name)))
        .collect();
    let differ = format!(
        "SELECT {} {pairs} GROUP BY {} HAVING count(DISTINCT {}) > 1 LIMIT 1",
        texts.join(", "),
        quote_all_of("s", &load.key),
        all.join(" || ',' || ")
    );
    let key = one_key(writer, load, differ).await;
    if let Some(key) = key.map_err(|error| writer.failure(doing, error))? {
        return Err(tied(load, newest, &key));
    }
    let again = format!(
        "DELETE FROM {stage} WHERE rowid IN (SELECT id FROM (SELECT s.rowid AS id, row_number() OVER (PARTITION BY {} ORDER BY \
         s.rowid) AS nth {pairs}) n WHERE nth > 1)",
        quote_all_of("s", &load.key)
    );
    older += writer.must(doing, again).await?;
    if older > record.older {
        let noted = sqlx::query("UPDATE _haulage_loads SET older = $3 WHERE run = $1 AND load = $2")
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .bind(older as i64)
            .execute(writer.connection())
            .await;
        noted.map_err(|error| writer.failure(doing, error))?;
    }
    Ok(older)
}
