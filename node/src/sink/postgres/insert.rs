//! Publishing staged rows into a target that stays: append, merge, and replace where a swap would break something.
//!
//! What a revert needs is written first, in the same transaction and logged: `before_` holds rows as they were, `keys_`
//! the keys of rows that were not there.

use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::PROVENANCE;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column as _, Row, ValueRef};

use super::bookkeeping::{Area, Method};
use super::connect::Lease;
use super::failure::{code, column, detail};
use super::fit::{Fit, create_table};
use super::publish::Trouble;
use super::swap::literal;
use super::target::{Existing, RUN_COLUMN, Target};
use super::types::Kind;
use crate::sink::name::{quote, quote_all, quote_all_of, same_key};
use crate::sink::{Expected, LoadContext};

/// Inserts the staged rows, inside the caller's transaction and under its lock. Makes the target if it is missing.
pub(super) async fn publish(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    fit: &Fit,
    method: Method,
    expected: Expected,
) -> Result<(), Trouble> {
    let sql = target.sql();
    if target.existing.is_none() {
        lease.run(create_table(load, &sql, fit)).await?;
    }
    let existing = target.existing.as_ref();
    let inserted = match method {
        Method::Append => append(lease, load, area, target, fit).await,
        Method::AppendByKey => {
            lease
                .run(format!(
                    "CREATE TABLE {} AS SELECT {} FROM {}",
                    area.keys,
                    quote_all(&load.key),
                    area.stage
                ))
                .await?;
            no_key_twice(lease, load, area, target).await?;
            let columns = quote_all(&fit.names());
            lease
                .run(format!(
                    "INSERT INTO {sql} ({columns}) SELECT {columns} FROM {}",
                    area.stage
                ))
                .await
        }
        Method::Merge => merge(lease, load, area, &sql, fit, existing).await,
        Method::Rewrite | Method::Swap => {
            if existing.is_some() {
                lease
                    .run(format!("CREATE TABLE {} AS SELECT * FROM {sql}", area.before))
                    .await?;
                lease.run(format!("DELETE FROM {sql}")).await?;
            }
            let columns = quote_all(&fit.names());
            lease
                .run(format!(
                    "INSERT INTO {sql} ({columns}) SELECT {columns} FROM {}",
                    area.stage
                ))
                .await
        }
    };
    let inserted = inserted.map_err(|error| refused(load, target, error))?;
    // A merge writes only rows that differ.
    if method != Method::Merge && inserted != expected.rows {
        return Err(Trouble::Failed(Failure::permanent(format!(
            "load {}: {} went into {}, and the chunks staged {}; look for a rule or trigger that swallows rows",
            load.load,
            counted(inserted, "row"),
            target.text(),
            expected.rows
        ))));
    }
    Ok(())
}

async fn append(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    fit: &Fit,
) -> Result<u64, sqlx::Error> {
    let sql = target.sql();
    if let (Some(replaced), Some(_)) = (&load.replaces, &target.existing) {
        let theirs = format!("{RUN_COLUMN} = {}", literal(replaced.as_str()));
        lease
            .run(format!(
                "CREATE TABLE {} AS SELECT * FROM {sql} WHERE {theirs}",
                area.before
            ))
            .await?;
        lease.run(format!("DELETE FROM {sql} WHERE {theirs}")).await?;
    }
    if let Some(conflict) = conflict(lease, load, area, target).await? {
        return Err(sqlx::Error::Encode(conflict.into()));
    }
    let columns = quote_all(&fit.names());
    let run = literal(load.run.as_str());
    // With provenance the staged rows name the run themselves.
    let (more, run) = match load.provenance {
        true => (String::new(), String::new()),
        false => (format!(", {RUN_COLUMN}"), format!(", {run}")),
    };
    lease
        .run(format!(
            "INSERT INTO {sql} ({columns}{more}) SELECT {columns}{run} FROM {}",
            area.stage
        ))
        .await
}

async fn no_key_twice(lease: &mut Lease, load: &LoadContext, area: &Area, target: &Target) -> Result<(), Trouble> {
    match conflict(lease, load, area, target).await? {
        None => Ok(()),
        Some(conflict) => Err(Trouble::Failed(twice(load, target, &conflict))),
    }
}

/// A key that is already in the target, where no unique index of the target would say so.
async fn conflict(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
) -> Result<Option<String>, sqlx::Error> {
    match &target.existing {
        Some(existing) if !load.key.is_empty() && !existing.has_unique(&load.key) => {}
        Some(_) | None => return Ok(None),
    }
    some_key(lease, load, area, target, "").await
}

/// A staged key that is already in the target, which exists, of a row `s` of which this is true, too.
pub(super) async fn some_key(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    and: &str,
) -> Result<Option<String>, sqlx::Error> {
    let query = format!(
        "SELECT {} FROM {} s WHERE EXISTS (SELECT 1 FROM {} t WHERE {}){and} LIMIT 1",
        key_text(load),
        area.stage,
        target.sql(),
        same_key("t", "s", &load.key)
    );
    let row = sqlx::query(AssertSqlSafe(query))
        .persistent(false)
        .fetch_optional(lease.connection())
        .await?;
    row.map(|row| key_in(load, &row)).transpose()
}

/// The key of a staged row `s` as text, in SQL.
pub(super) fn key_text(load: &LoadContext) -> String {
    let values = load.key.iter().map(|key| format!("s.{}::text", quote(key)));
    values.collect::<Vec<_>>().join(", ")
}

/// The key in a row of its texts, in words.
pub(super) fn key_in(load: &LoadContext, row: &PgRow) -> Result<String, sqlx::Error> {
    let values: Result<Vec<String>, _> = (0..row.len()).map(|at| text(row, at)).collect();
    Ok(format!("key ({})=({})", load.key.join(", "), values?.join(", ")))
}

fn text(row: &PgRow, at: usize) -> Result<String, sqlx::Error> {
    debug_assert!(at < row.columns().len() && !row.columns()[at].name().is_empty());
    if row.try_get_raw(at)?.is_null() {
        Ok("NULL".to_owned())
    } else {
        row.try_get(at)
    }
}

async fn merge(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    sql: &str,
    fit: &Fit,
    existing: Option<&Existing>,
) -> Result<u64, sqlx::Error> {
    let names = fit.names();
    let others: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !load.key.iter().any(|key| key == name))
        .collect();
    // json has no equality of its own, nor have points; and equal intervals may read otherwise.
    let is_json = |name: &str| {
        existing
            .and_then(|e| e.column(name))
            .is_some_and(|column| matches!(column.kind, Kind::Json | Kind::Input))
    };
    let row = |alias: &str| {
        let columns = others.iter().map(|name| {
            let cast = if is_json(name) { "::text" } else { "" };
            format!("{alias}.{}{cast}", quote(name))
        });
        columns.collect::<Vec<_>>().join(", ")
    };
    let differ = |a: &str, b: &str| {
        if others.is_empty() {
            "false".to_owned()
        } else {
            format!("({}) IS DISTINCT FROM ({})", row(a), row(b))
        }
    };
    let same = same_key("t", "s", &load.key);
    let origin = origin(load, fit, existing);
    if existing.is_some() {
        let changed = match load.keeps_equal_rows() {
            true => "true".to_owned(),
            false => differ("t", "s"),
        };
        lease
            .run(format!(
                "CREATE TABLE {} AS SELECT t.* FROM {sql} t JOIN {} s ON {same} WHERE {changed}",
                area.before, area.stage
            ))
            .await?;
        lease
            .run(format!(
                "CREATE TABLE {} AS SELECT {} FROM {} s WHERE NOT EXISTS (SELECT 1 FROM {sql} t WHERE {same})",
                area.keys,
                quote_all_of("s", &load.key),
                area.stage
            ))
            .await?;
    }
    let update = if others.is_empty() {
        "NOTHING".to_owned()
    } else {
        let own = others.iter().map(|name| format!("{0} = EXCLUDED.{0}", quote(name)));
        let set: Vec<String> = own
            .chain(origin.iter().map(|(name, value)| format!("{name} = {value}")))
            .collect();
        format!("UPDATE SET {} WHERE {}", set.join(", "), differ("t", "EXCLUDED"))
    };
    let columns = quote_all(&names);
    let more: String = origin.iter().map(|(name, _)| format!(", {name}")).collect();
    let values: String = origin.iter().map(|(_, value)| format!(", {value}")).collect();
    lease
        .run(format!(
            "INSERT INTO {sql} AS t ({columns}{more}) SELECT {columns}{values} FROM {} ON CONFLICT ({}) DO {update}",
            area.stage,
            quote_all(&load.key)
        ))
        .await
}

/// What a merge without provenance says in the target's columns of origin: the run, and of chunk and line nothing. What
/// stood there is of the row as it was before. Each with its value, in SQL.
fn origin(load: &LoadContext, fit: &Fit, existing: Option<&Existing>) -> Vec<(String, String)> {
    let names = fit.names();
    let there = PROVENANCE.iter().filter_map(|name| existing?.column(name));
    let open = there.filter(|column| {
        let is_run = column.name == RUN_COLUMN;
        let takes = if is_run {
            column.kind.is_text()
        } else {
            !column.not_null
        };
        takes && !column.generated && !column.identity_always && !names.contains(&column.name.as_str())
    });
    open.map(|column| {
        let value = match column.name == RUN_COLUMN {
            true => literal(load.run.as_str()),
            false => "NULL".to_owned(),
        };
        (quote(&column.name), value)
    })
    .collect()
}

/// An error of the insert, in the words of the load.
fn refused(load: &LoadContext, target: &Target, error: sqlx::Error) -> Trouble {
    let table = target.text();
    match &error {
        sqlx::Error::Encode(conflict) => Trouble::Failed(twice(load, target, &conflict.to_string())),
        error if code(error) == Some("23505") => {
            let said = detail(error).unwrap_or_else(|| "a key already exists".to_owned());
            Trouble::Failed(twice(load, target, said.trim_end_matches(" already exists")))
        }
        error if code(error) == Some("23502") => {
            let column = column(error).unwrap_or("?");
            Trouble::Failed(Failure::permanent(format!(
                "load {}: column {column} of {table} needs a value, and a row has none; reject such rows in the step",
                load.load
            )))
        }
        _ => Trouble::from(error),
    }
}

fn twice(load: &LoadContext, target: &Target, key: &str) -> Failure {
    Failure::permanent(format!(
        "load {}: {key} is already in {}; use mode merge to update rows by key, or reject them in the step",
        load.load,
        target.text()
    ))
}

/// Undoes [`publish`], inside the caller's transaction: the target exists, and was there before.
pub(super) async fn restore(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    existing: &Existing,
    method: Method,
) -> Result<(), sqlx::Error> {
    let sql = target.sql();
    let columns = quote_all(&existing.writable());
    let put_back = format!(
        "INSERT INTO {sql} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {}",
        area.before
    );
    match method {
        Method::Append => {
            lease
                .run(format!(
                    "DELETE FROM {sql} WHERE {RUN_COLUMN} = {}",
                    literal(load.run.as_str())
                ))
                .await?;
            if super::stage::exists(lease, &area.before).await? {
                lease.run(put_back).await?;
            }
        }
        Method::AppendByKey => delete_added(lease, load, area, &sql).await?,
        Method::Merge => {
            delete_added(lease, load, area, &sql).await?;
            let set = existing
                .columns
                .iter()
                .filter(|column| !column.generated && !column.identity_always && !load.key.contains(&column.name))
                .map(|column| format!("{0} = EXCLUDED.{0}", quote(&column.name)))
                .collect::<Vec<_>>();
            let update = if set.is_empty() {
                "NOTHING".to_owned()
            } else {
                format!("UPDATE SET {}", set.join(", "))
            };
            lease
                .run(format!("{put_back} ON CONFLICT ({}) DO {update}", quote_all(&load.key)))
                .await?;
        }
        Method::Rewrite | Method::Swap => {
            lease.run(format!("DELETE FROM {sql}")).await?;
            lease.run(put_back).await?;
        }
    }
    Ok(())
}

async fn delete_added(lease: &mut Lease, load: &LoadContext, area: &Area, sql: &str) -> Result<(), sqlx::Error> {
    lease
        .run(format!(
            "DELETE FROM {sql} t USING {} s WHERE {}",
            area.keys,
            same_key("t", "s", &load.key)
        ))
        .await?;
    Ok(())
}
