//! Of the staged rows that share a key, the one that is newest by the column that the load names: the others leave the staging
//! area when it is verified. See [`crate::sink::older`].

use haulage_core::failure::Failure;
use sqlx::AssertSqlSafe;

use super::bookkeeping::{Area, Record};
use super::connect::Lease;
use super::insert::{key_in, key_text};
use crate::sink::LoadContext;
use crate::sink::name::{quote, quote_all, quote_all_of, same_key};
use crate::sink::older::{chooses, content, doubled, tied};

/// Leaves one row of each key, inside the caller's transaction, which has the staging area to itself. How many have left it
/// by now. Permanent failure if several are the newest and differ.
pub(super) async fn choose(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    record: &Record,
    doing: &str,
) -> Result<u64, Failure> {
    let Some(newest) = chooses(load) else { return Ok(0) };
    let (stage, keys, column) = (&area.stage, quote_all(&load.key), quote(newest));
    let doubled = doubled(load, stage);
    let any = sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 {doubled})")));
    let any: Result<bool, _> = any.persistent(false).fetch_one(lease.connection()).await;
    if !any.map_err(|error| lease.place().failure(doing, error))? {
        return Ok(record.older);
    }
    let same = same_key("d", "s", &load.key);
    let beaten = format!(
        "DELETE FROM {stage} s USING (SELECT {keys}, max({column}) AS __haulage_top {doubled}) d
         WHERE {same} AND d.__haulage_top IS NOT NULL AND (s.{column} IS NULL OR s.{column} < d.__haulage_top)"
    );
    let mut older = record.older + lease.must(doing, beaten).await?;
    // Those that are left under one key have the same value, or none.
    let pairs = format!("FROM {stage} s JOIN (SELECT {keys} {doubled}) d ON {same}");
    let differ = format!(
        "SELECT {} {pairs} GROUP BY {} HAVING count(DISTINCT ROW({})::text) > 1 LIMIT 1",
        key_text(load),
        quote_all_of("s", &load.key),
        quote_all_of("s", &content(load))
    );
    let differ = sqlx::query(AssertSqlSafe(differ)).persistent(false);
    let found = differ.fetch_optional(lease.connection()).await;
    let key = found.and_then(|row| row.map(|row| key_in(load, &row)).transpose());
    if let Some(key) = key.map_err(|error| lease.place().failure(doing, error))? {
        return Err(tied(load, newest, &key));
    }
    let again = format!(
        "DELETE FROM {stage} WHERE ctid = ANY(ARRAY(SELECT ctid FROM (SELECT s.ctid, row_number() OVER (PARTITION BY {} ORDER \
         BY s.ctid) AS nth {pairs}) n WHERE nth > 1))",
        quote_all_of("s", &load.key)
    );
    older += lease.must(doing, again).await?;
    let noted = sqlx::query("UPDATE haulage.loads SET older = $3 WHERE run = $1 AND load = $2")
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .bind(older as i64)
        .execute(lease.connection())
        .await;
    noted.map_err(|error| lease.place().failure(doing, error))?;
    Ok(older)
}
