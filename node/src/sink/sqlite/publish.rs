//! Publish into a SQLite file: one transaction, which is alone in the file, with what a revert needs written first.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::PROVENANCE;
use sqlx::error::ErrorKind;

use super::Sqlite;
use super::bookkeeping::{Area, Method, Record, begin, ended, hold, same_round};
use super::file::Writer;
use super::older;
use super::recall::kept_for;
use super::target::{Existing, Fit, RUN_COLUMN, Target, create_table, describe, evolve, fit, misfit, table_name};
use super::verify::{free_name, marked, one_key};
use super::watermarks;
use crate::sink::aside::left;
use crate::sink::kept::Publishing;
use crate::sink::name::{quote, quote_all, quote_all_of, same_key};
use crate::sink::{Expected, LoadContext, with_columns};

impl Sqlite {
    pub(super) async fn publish_load(&self, load: &LoadContext, expected: Expected) -> Result<Publishing, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("publishing load {} to {table}", load.load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let Some(record) = hold(&mut writer, load, "publish", &doing).await? else {
            return Err(ended(load, "not prepared"));
        };
        same_round(load, &record)?;
        let visible = left(expected, record.set_aside.as_ref());
        let detail = match record.state.as_str() {
            "sealed" => {
                let kept = kept_for(&mut writer, load, &table).await;
                if let Some(runs) = kept.map_err(|error| writer.failure(&doing, error))? {
                    // Who waits stands in the record: an earlier attempt that wakes up meanwhile is refused.
                    writer.must(&doing, "COMMIT").await?;
                    writer.keep();
                    return Ok(Publishing::Kept(runs));
                }
                marked(&mut writer, load, expected, &doing).await?;
                make_visible(&mut writer, load, &table, &record, visible, &doing).await?
            }
            "published" => record.detail,
            "staged" => {
                return Err(Failure::permanent(format!(
                    "load {} is not verified; verify it before publishing",
                    load.load
                )));
            }
            other => return Err(ended(load, other)),
        };
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(Publishing::Done(StepReport {
            rows: visible.rows,
            detail,
            ..StepReport::default()
        }))
    }
}

async fn make_visible(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    record: &Record,
    expected: Expected,
    doing: &str,
) -> Result<String, Failure> {
    let target = describe(writer.connection(), table)
        .await
        .map_err(|error| writer.failure(doing, error))?;
    let fit = match fit(load, &target) {
        Ok(fit) => fit,
        Err(misfits) => return Err(misfit(load, &target, &misfits)),
    };
    let area = Area::of(load);
    if target.existing.is_none() && fit.method != Method::Rename {
        let index = free_name(writer, table, doing).await?;
        for step in create_table(load, table, &fit, &index) {
            writer.must(doing, step).await?;
        }
    }
    for statement in evolve(table, &fit.evolve) {
        writer.must(doing, statement).await?;
    }
    if let Some(conflict) = conflict(writer, load, &area, &target, fit.method, doing).await? {
        return Err(twice(load, table, &conflict));
    }
    let judge = older::judged(writer, load, table, doing).await?;
    let mut older = record.older;
    if target.existing.is_some() {
        older += older::take_out(writer, load, &area, table, &judge, doing).await?;
    }
    let inserted = write(writer, load, &area, &target, fit.method).await;
    let inserted = inserted.map_err(|error| refused(writer, load, table, doing, error))?;
    if inserted.is_some_and(|inserted| inserted != expected.rows) {
        return Err(Failure::permanent(format!(
            "load {}: other rows went into {table} than the {} that the chunks staged; look for a trigger that swallows \
             rows",
            load.load, expected.rows
        )));
    }
    let words = match (fit.method, &target.existing) {
        (Method::Rename, _) | (_, None) => "in the new table",
        (Method::Rewrite, _) => "now in place of the old ones in",
        (Method::Append | Method::AppendByKey, _) => "appended to",
        (Method::Merge, _) => "merged by key into",
    };
    let rows = counted(expected.rows, "row");
    let detail = format!(
        "{rows} {words} {table}{}{}",
        crate::sink::older::words(older),
        with_columns(&fit.evolve)
    );
    let kept = Kept {
        created: target.existing.is_none(),
        older,
        detail: &detail,
    };
    keep(writer, load, &fit, expected, &kept)
        .await
        .map_err(|error| writer.failure(doing, error))?;
    watermarks::advance(writer, load, table, target.existing.is_none(), doing).await?;
    Ok(detail)
}

/// Writes the staged rows; `None` if their number is not a count of what was written.
async fn write(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    method: Method,
) -> Result<Option<u64>, sqlx::Error> {
    let table = quote(&target.table);
    let names: Vec<&str> = load.schema.fields().iter().map(|field| field.name().as_str()).collect();
    let columns = quote_all(&names);
    let insert = format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {}", area.stage);
    match method {
        Method::Rename => {
            writer
                .run(format!("ALTER TABLE {} RENAME TO {table}", area.stage))
                .await?;
            Ok(None)
        }
        Method::Rewrite => {
            writer
                .run(format!("CREATE TABLE {} AS SELECT * FROM {table}", area.before))
                .await?;
            writer.run(format!("DELETE FROM {table}")).await?;
            writer.run(insert).await.map(Some)
        }
        Method::Append => {
            if let Some(replaced) = &load.replaces {
                let theirs = format!("{RUN_COLUMN} = {}", literal(replaced.as_str()));
                writer
                    .run(format!(
                        "CREATE TABLE {} AS SELECT * FROM {table} WHERE {theirs}",
                        area.before
                    ))
                    .await?;
                writer.run(format!("DELETE FROM {table} WHERE {theirs}")).await?;
            }
            if load.provenance {
                // The staged rows name the run themselves.
                return writer.run(insert).await.map(Some);
            }
            let run = literal(load.run.as_str());
            writer
                .run(format!(
                    "INSERT INTO {table} ({columns}, {RUN_COLUMN}) SELECT {columns}, {run} FROM {}",
                    area.stage
                ))
                .await
                .map(Some)
        }
        Method::AppendByKey => {
            let keys = quote_all(&load.key);
            writer
                .run(format!(
                    "CREATE TABLE {} AS SELECT {keys} FROM {}",
                    area.keys, area.stage
                ))
                .await?;
            writer.run(insert).await.map(Some)
        }
        Method::Merge => {
            merge(writer, load, area, target, &names).await?;
            Ok(None)
        }
    }
}

async fn merge(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    names: &[&str],
) -> Result<(), sqlx::Error> {
    let table = quote(&target.table);
    let others: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !load.key.iter().any(|key| key == name))
        .collect();
    let differ = |a: &str, b: &str| {
        let each = others.iter().map(|name| format!("{a}.{0} IS NOT {b}.{0}", quote(name)));
        if others.is_empty() {
            "0".to_owned()
        } else {
            each.collect::<Vec<_>>().join(" OR ")
        }
    };
    let same = same_key("t", "s", &load.key);
    let origin = origin(load, target, names);
    let changed = match load.keeps_equal_rows() {
        true => "1".to_owned(),
        false => differ("t", "s"),
    };
    writer
        .run(format!(
            "CREATE TABLE {} AS SELECT t.* FROM {table} t JOIN {} s ON {same} WHERE {changed}",
            area.before, area.stage
        ))
        .await?;
    writer
        .run(format!(
            "CREATE TABLE {} AS SELECT {} FROM {} s WHERE NOT EXISTS (SELECT 1 FROM {table} t WHERE {same})",
            area.keys,
            quote_all_of("s", &load.key),
            area.stage
        ))
        .await?;
    let update = if others.is_empty() {
        "NOTHING".to_owned()
    } else {
        let own = others.iter().map(|name| format!("{0} = excluded.{0}", quote(name)));
        let set: Vec<String> = own
            .chain(origin.iter().map(|(name, value)| format!("{name} = {value}")))
            .collect();
        format!("UPDATE SET {} WHERE {}", set.join(", "), differ("t", "excluded"))
    };
    let columns = quote_all(names);
    let more: String = origin.iter().map(|(name, _)| format!(", {name}")).collect();
    let values: String = origin.iter().map(|(_, value)| format!(", {value}")).collect();
    // WHERE true keeps SQLite from reading ON CONFLICT as a join.
    writer
        .run(format!(
            "INSERT INTO {table} AS t ({columns}{more}) SELECT {columns}{values} FROM {} WHERE true ON CONFLICT ({}) DO \
             {update}",
            area.stage,
            quote_all(&load.key)
        ))
        .await?;
    Ok(())
}

/// What a merge without provenance says in the target's columns of origin: the run, and of chunk and line nothing. What
/// stood there is of the row as it was before. Each with its value, in SQL.
fn origin(load: &LoadContext, target: &Target, names: &[&str]) -> Vec<(String, String)> {
    let existing = target.existing.as_ref();
    let there = PROVENANCE.iter().filter_map(|name| existing?.column(name));
    let open = there.filter(|column| {
        let written = names.iter().any(|name| name.eq_ignore_ascii_case(&column.name));
        let is_run = column.name.eq_ignore_ascii_case(RUN_COLUMN);
        (is_run || !column.not_null) && !column.generated && !written
    });
    open.map(|column| {
        let value = match column.name.eq_ignore_ascii_case(RUN_COLUMN) {
            true => literal(load.run.as_str()),
            false => "NULL".to_owned(),
        };
        (quote(&column.name), value)
    })
    .collect()
}

/// A staged key that the target has already, where rows are added.
async fn conflict(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    method: Method,
    doing: &str,
) -> Result<Option<String>, Failure> {
    let adds = matches!(method, Method::Append | Method::AppendByKey);
    if !adds || load.key.is_empty() || target.existing.is_none() {
        return Ok(None);
    }
    // Rows of the run that is replaced go out first.
    let stay = match &load.replaces {
        Some(run) if method == Method::Append => format!(" AND t.{RUN_COLUMN} IS NOT {}", literal(run.as_str())),
        Some(_) | None => String::new(),
    };
    some_key(writer, load, area, &target.table, &stay)
        .await
        .map_err(|error| writer.failure(doing, error))
}

/// A staged key that is already in a table, among its rows `t` of which this is true, too.
pub(super) async fn some_key(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    table: &str,
    and: &str,
) -> Result<Option<String>, sqlx::Error> {
    let values = load
        .key
        .iter()
        .map(|key| format!("CAST(s.{} AS TEXT)", quote(key)))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = format!(
        "SELECT {values} FROM {} s WHERE EXISTS (SELECT 1 FROM {} t WHERE {}{and}) LIMIT 1",
        area.stage,
        quote(table),
        same_key("t", "s", &load.key)
    );
    one_key(writer, load, sql).await
}

fn refused(writer: &Writer<'_>, load: &LoadContext, table: &str, doing: &str, error: sqlx::Error) -> Failure {
    match &error {
        sqlx::Error::Database(said) if said.kind() == ErrorKind::UniqueViolation => {
            twice(load, table, &format!("a key ({})", said.message()))
        }
        _ => writer.failure(doing, error),
    }
}

fn twice(load: &LoadContext, table: &str, key: &str) -> Failure {
    Failure::permanent(format!(
        "load {}: {key} is already in {table}; use mode merge to update rows by key, or reject them in the step",
        load.load
    ))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What a publish leaves in its record.
struct Kept<'a> {
    created: bool,
    /// Rows that were not written, since newer ones stand.
    older: u64,
    detail: &'a str,
}

async fn keep(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    fit: &Fit,
    expected: Expected,
    kept: &Kept<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE _haulage_loads SET state = 'published', method = $3, created = $4, rows = $5, detail = $6, evolved = $7,
             provenance = $8, older = $9, sequence = (SELECT coalesce(max(sequence), 0) + 1 FROM _haulage_loads), published_at = CURRENT_TIMESTAMP
         WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(fit.method.text())
    .bind(kept.created)
    .bind(expected.rows as i64)
    .bind(kept.detail)
    .bind(serde_json::to_string(&fit.evolve).map_err(|error| sqlx::Error::Encode(error.into()))?)
    .bind(load.provenance)
    .bind(kept.older as i64)
    .execute(writer.connection())
    .await?;
    Ok(())
}

/// Undoes a publish into a target that was there before, inside the caller's transaction.
pub(super) async fn restore(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    target: &Target,
    existing: &Existing,
    record: &Record,
) -> Result<(), sqlx::Error> {
    let table = quote(&target.table);
    let columns = quote_all(&existing.writable());
    let put_back = format!(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM {} WHERE true",
        area.before
    );
    let same = same_key("t", "k", &load.key);
    let take_out = format!(
        "DELETE FROM {table} WHERE rowid IN (SELECT t.rowid FROM {table} t JOIN {} k ON {same})",
        area.keys
    );
    match record.method {
        Some(Method::Append) => {
            writer
                .run(format!(
                    "DELETE FROM {table} WHERE {RUN_COLUMN} = {}",
                    literal(load.run.as_str())
                ))
                .await?;
            if load.replaces.is_some() {
                writer.run(put_back).await?;
            }
        }
        Some(Method::AppendByKey) => {
            writer.run(take_out).await?;
        }
        Some(Method::Merge) => {
            writer.run(take_out).await?;
            let set = existing
                .writable()
                .into_iter()
                .filter(|name| !load.key.iter().any(|key| key.eq_ignore_ascii_case(name)))
                .map(|name| format!("{0} = excluded.{0}", quote(name)))
                .collect::<Vec<_>>();
            let update = if set.is_empty() {
                "NOTHING".to_owned()
            } else {
                format!("UPDATE SET {}", set.join(", "))
            };
            writer
                .run(format!("{put_back} ON CONFLICT ({}) DO {update}", quote_all(&load.key)))
                .await?;
        }
        Some(Method::Rewrite | Method::Rename) | None => {
            writer.run(format!("DELETE FROM {table}")).await?;
            writer.run(put_back).await?;
        }
    }
    Ok(())
}
