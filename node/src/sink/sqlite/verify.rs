//! Verify: seals the staging area, counts it, and proves that the key is a key.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use sqlx::{AssertSqlSafe, Row};

use super::Sqlite;
use super::bookkeeping::{Area, Method, begin, ended, hold, same_round, set_state};
use super::file::Writer;
use super::newest;
use super::stage::exists;
use super::target::{create_index, describe, fit, misfit, table_name};
use crate::sink::aside::{left, words};
use crate::sink::name::{quote, quote_all};
use crate::sink::older::left_out;
use crate::sink::staged::Staged;
use crate::sink::{Expected, LoadContext};

impl Sqlite {
    pub(super) async fn verify_load(&self, load: &LoadContext, expected: Expected) -> Result<StepReport, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("verifying load {}", load.load);
        let area = Area::of(load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let Some(record) = hold(&mut writer, load, "verify", &doing).await? else {
            return Err(ended(load, "not prepared"));
        };
        same_round(load, &record)?;
        match record.state.as_str() {
            "staged" | "sealed" => {}
            "published" => {
                writer.must(&doing, "COMMIT").await?;
                writer.keep();
                return Ok(StepReport {
                    rows: record.rows,
                    detail: "already published".to_owned(),
                    ..StepReport::default()
                });
            }
            other => return Err(ended(load, other)),
        }
        marked(&mut writer, load, expected, &doing).await?;
        let mut left = left(expected, record.set_aside.as_ref());
        if !exists(&mut writer, &area.stage, &doing).await? {
            return Err(staged(load, left).gone(&area.stage, "rows were staged"));
        }
        let older = newest::choose(&mut writer, load, &area, &record, &doing).await?;
        left.rows = left.rows.saturating_sub(older);
        let staged = staged(load, left);
        let rows = count(&mut writer, &area.stage, &doing).await?;
        staged.counted(rows)?;
        prove_key(&mut writer, load, &area, &table, &doing).await?;
        set_state(&mut writer, load, "sealed", &doing).await?;
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(StepReport {
            rows,
            detail: format!(
                "{} staged for {table}{}{}",
                counted(rows, "row"),
                words(record.set_aside.as_ref()),
                left_out(older)
            ),
            ..StepReport::default()
        })
    }
}

/// Holds the markers against what the chunks reported.
pub(super) async fn marked(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    expected: Expected,
    doing: &str,
) -> Result<(), Failure> {
    let found = standing(writer, load, doing).await?;
    staged(load, expected).marked(found)
}

/// A file loses nothing in a crash.
pub(super) fn staged(load: &LoadContext, expected: Expected) -> Staged<'_> {
    Staged {
        load,
        expected,
        lost_by: "",
    }
}

/// What the markers say is staged.
pub(super) async fn standing(writer: &mut Writer<'_>, load: &LoadContext, doing: &str) -> Result<Expected, Failure> {
    let sql = "SELECT count(*), coalesce(sum(rows), 0) FROM _haulage_markers WHERE run = $1 AND load = $2";
    let marked = sqlx::query(sql)
        .bind(load.run.as_str())
        .bind(load.load.as_str())
        .fetch_one(writer.connection())
        .await
        .and_then(|row| {
            Ok(Expected {
                segments: row.try_get::<i64, _>(0)? as u64,
                rows: row.try_get::<i64, _>(1)? as u64,
            })
        });
    marked.map_err(|error| writer.failure(doing, error))
}

pub(super) async fn count(writer: &mut Writer<'_>, table: &str, doing: &str) -> Result<u64, Failure> {
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {}", quote(table))))
        .persistent(false)
        .fetch_one(writer.connection())
        .await
        .map_err(|error| writer.failure(doing, error))?;
    Ok(rows as u64)
}

async fn prove_key(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    area: &Area,
    table: &str,
    doing: &str,
) -> Result<(), Failure> {
    if load.key.is_empty() {
        return Ok(());
    }
    let target = describe(writer.connection(), table)
        .await
        .map_err(|error| writer.failure(doing, error))?;
    let fit = match fit(load, &target) {
        Ok(fit) => fit,
        Err(misfits) => return Err(misfit(load, &target, &misfits)),
    };
    let values = load
        .key
        .iter()
        .map(|key| format!("CAST({} AS TEXT)", quote(key)))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = format!(
        "SELECT {values} FROM {} GROUP BY {} HAVING count(*) > 1 LIMIT 1",
        area.stage,
        quote_all(&load.key)
    );
    if let Some(key) = one_key(writer, load, sql)
        .await
        .map_err(|error| writer.failure(doing, error))?
    {
        return Err(Failure::permanent(format!(
            "load {}: {key} is duplicated among the staged rows; make the step's rows unique by key, or reject what is \
             double",
            load.load
        )));
    }
    if fit.method == Method::Rename {
        let staged = describe(writer.connection(), &area.stage)
            .await
            .map_err(|error| writer.failure(doing, error))?;
        if !staged.existing.is_some_and(|existing| existing.has_unique(&load.key)) {
            let name = free_name(writer, table, doing).await?;
            writer.must(doing, create_index(load, &area.stage, &name)).await?;
        }
    }
    Ok(())
}

/// The first row of a query over the key columns as text, in words.
pub(super) async fn one_key(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    sql: String,
) -> Result<Option<String>, sqlx::Error> {
    let row = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_optional(writer.connection())
        .await?;
    row.map(|row| {
        let values: Result<Vec<Option<String>>, _> = (0..row.len()).map(|at| row.try_get(at)).collect();
        let values: Vec<String> = values?
            .into_iter()
            .map(|value| value.unwrap_or_else(|| "NULL".to_owned()))
            .collect();
        Ok(format!("key ({})=({})", load.key.join(", "), values.join(", ")))
    })
    .transpose()
}

/// A name for the key's index that nothing in the file has.
pub(super) async fn free_name(writer: &mut Writer<'_>, table: &str, doing: &str) -> Result<String, Failure> {
    for n in 1..100 {
        let name = if n == 1 {
            format!("{table}_key")
        } else {
            format!("{table}_key{n}")
        };
        let taken: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = $1 COLLATE NOCASE)")
                .bind(&name)
                .fetch_one(writer.connection())
                .await
                .map_err(|error| writer.failure(doing, error))?;
        if !taken {
            return Ok(name);
        }
    }
    Ok(format!("{table}_key"))
}
