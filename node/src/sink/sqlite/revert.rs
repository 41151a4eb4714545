//! Going back in a SQLite file: revert, discard and cleanup. All three can be repeated, tolerate that there is nothing to
//! do, and leave a tombstone that fences whatever comes late.

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use sqlx::AssertSqlSafe;

use super::Sqlite;
use super::bookkeeping::{Area, Record, begin, claim, hold, set_state};
use super::file::Writer;
use super::publish::restore;
use super::recall::{Reach, free, may_undo};
use super::target::{describe, table_name};
use super::watermarks::put_back;
use crate::sink::name::quote;
use crate::sink::{Change, LoadContext};

fn nothing_to_undo() -> StepReport {
    StepReport {
        rows: 0,
        detail: "there is no file, so there is nothing to undo".to_owned(),
        ..StepReport::default()
    }
}

impl Sqlite {
    pub(super) async fn revert_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("reverting load {} of {table}", load.load);
        let Some(mut writer) = self.file.writer_to_undo().await? else {
            return Ok(nothing_to_undo());
        };
        begin(&mut writer, &doing).await?;
        let record = claim(&mut writer, load, "revert", &table, "reverted", &doing).await?;
        let detail = match record.state.as_str() {
            "published" => {
                let stays = undo(&mut writer, load, &table, &record, &doing).await?;
                put_back(&mut writer, load, &table, &doing).await?;
                set_state(&mut writer, load, "reverted", &doing).await?;
                if stays.is_empty() {
                    format!("{table} is as it was")
                } else {
                    format!("the rows of {table} are as they were; {}", stays.join("; "))
                }
            }
            "staged" | "sealed" => {
                set_state(&mut writer, load, "reverted", &doing).await?;
                format!("nothing was published to {table}")
            }
            _ => format!("nothing is published to {table}"),
        };
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(StepReport {
            rows: record.rows,
            detail,
            ..StepReport::default()
        })
    }

    pub(super) async fn discard_load(&self, load: &LoadContext) -> Result<StepReport, Failure> {
        let table = table_name(&load.table).unwrap_or_else(|_| load.table.clone());
        let doing = format!("discarding the staging area of load {}", load.load);
        let area = Area::of(load);
        let Some(mut writer) = self.file.writer_to_undo().await? else {
            return Ok(nothing_to_undo());
        };
        begin(&mut writer, &doing).await?;
        let record = claim(&mut writer, load, "discard", &table, "discarded", &doing).await?;
        let published = record.state == "published";
        if published {
            // Somebody has abandoned its revert: nothing of it will be taken back any more.
            free(&mut writer, load, u32::MAX, &doing).await?;
            drop_tables(&mut writer, load, &[&area.stage], &doing).await?;
        } else {
            set_state(&mut writer, load, "discarded", &doing).await?;
            let tables = [&area.stage, &area.aside, &area.before, &area.keys].map(String::as_str);
            drop_tables(&mut writer, load, &tables, &doing).await?;
        }
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
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
        let doing = format!("cleaning up after load {}", load.load);
        let area = Area::of(load);
        let mut writer = self.file.writer().await?;
        begin(&mut writer, &doing).await?;
        let record = hold(&mut writer, load, "cleanup", &doing).await?;
        if record.is_none_or(|record| record.state != "published") {
            writer.must(&doing, "COMMIT").await?;
            writer.keep();
            return Ok(StepReport {
                rows: 0,
                detail: "nothing is published, so nothing was dropped".to_owned(),
                ..StepReport::default()
            });
        }
        drop_tables(&mut writer, load, &[&area.stage], &doing).await?;
        let sql = "UPDATE _haulage_loads SET settled_at = coalesce(settled_at, CURRENT_TIMESTAMP)
             WHERE run = $1 AND load = $2";
        sqlx::query(sql)
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(&doing, error))?;
        let dropped = forget_older(&mut writer, load, &doing).await?;
        writer.must(&doing, "COMMIT").await?;
        writer.keep();
        Ok(StepReport {
            rows: 0,
            detail: format!("staging dropped, and what {dropped} run(s) had replaced or changed"),
            ..StepReport::default()
        })
    }
}

/// Of published runs that newer ones have left behind, what only their reverts would need is dropped. A run that isn't
/// settled may still fail and revert by itself, and one that is recalled is about to be. Returns of how many.
async fn forget_older(writer: &mut Writer<'_>, load: &LoadContext, doing: &str) -> Result<usize, Failure> {
    let older: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT run, load, area FROM (
             SELECT run, load, area, cleaned_at, recalled, row_number() OVER (ORDER BY sequence DESC) AS place FROM _haulage_loads
             WHERE state = 'published' AND settled_at IS NOT NULL
               AND target = (SELECT target FROM _haulage_loads WHERE run = $1 AND load = $2) COLLATE NOCASE
         ) WHERE place > $3 AND cleaned_at IS NULL AND recalled IS NULL",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .bind(i64::from(load.keep_previous))
    .fetch_all(writer.connection())
    .await
    .map_err(|error| writer.failure(doing, error))?;
    for (run, name, id) in &older {
        let area = Area::named(id);
        for table in [&area.before, &area.keys] {
            writer.must(doing, format!("DROP TABLE IF EXISTS {table}")).await?;
        }
        sqlx::query("UPDATE _haulage_loads SET cleaned_at = CURRENT_TIMESTAMP WHERE run = $1 AND load = $2")
            .bind(run)
            .bind(name)
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(older.len())
}

async fn drop_tables(writer: &mut Writer<'_>, load: &LoadContext, tables: &[&str], doing: &str) -> Result<(), Failure> {
    for table in tables {
        writer.must(doing, format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    for sql in [
        "DELETE FROM _haulage_markers WHERE run = $1 AND load = $2",
        "DELETE FROM _haulage_fences WHERE run = $1 AND load = $2",
    ] {
        sqlx::query(sql)
            .bind(load.run.as_str())
            .bind(load.load.as_str())
            .execute(writer.connection())
            .await
            .map_err(|error| writer.failure(doing, error))?;
    }
    Ok(())
}

/// Returns what stays of what the run has made of the target's columns, in words.
async fn undo(
    writer: &mut Writer<'_>,
    load: &LoadContext,
    table: &str,
    record: &Record,
    doing: &str,
) -> Result<Vec<String>, Failure> {
    let mut stays = Vec::new();
    let reach = may_undo(writer, load, table, record, doing).await?;
    let area = Area::of(load);
    let target = describe(writer.connection(), table)
        .await
        .map_err(|error| writer.failure(doing, error))?;
    if record.created && reach == Reach::Whole {
        writer
            .must(doing, format!("DROP TABLE IF EXISTS {}", quote(table)))
            .await?;
    } else if let Some(existing) = &target.existing {
        restore(writer, load, &area, &target, existing, record)
            .await
            .map_err(|error| writer.failure(doing, error))?;
        if reach == Reach::Whole {
            stays = take_back(writer, table, record, doing).await?;
        }
    }
    for table in [&area.before, &area.keys] {
        writer.must(doing, format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    Ok(stays)
}

/// Drops the columns that the run has added, if nothing would be lost by it.
async fn take_back(writer: &mut Writer<'_>, name: &str, record: &Record, doing: &str) -> Result<Vec<String>, Failure> {
    let mut stays = Vec::new();
    for change in record.evolved.iter().filter(|change| change.change == Change::Added) {
        let (column, table) = (quote(&change.column), quote(name));
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} IS NOT NULL)");
        let used = sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_one(writer.connection())
            .await;
        match used {
            Ok(false) => {}
            Ok(true) => {
                stays.push(format!(
                    "column {} stays, since it holds values of others",
                    change.column
                ));
                continue;
            }
            Err(error) => return Err(writer.failure(doing, error)),
        }
        // What a trigger sets isn't looked at when a column is dropped.
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger'
            AND instr(lower(sql), lower($1)) AND instr(lower(sql), lower($2)) LIMIT 1";
        let trigger = sqlx::query_scalar::<_, String>(sql)
            .bind(&change.column)
            .bind(name)
            .fetch_optional(writer.connection())
            .await;
        match trigger {
            Ok(None) => {}
            Ok(Some(trigger)) => {
                stays.push(format!(
                    "column {} stays, since trigger {trigger} names it",
                    change.column
                ));
                continue;
            }
            Err(error) => return Err(writer.failure(doing, error)),
        }
        // An error, on account of an index, a view or a trigger, leaves the transaction as it was before the statement. Under
        // the legacy rules, by which staging is renamed, views and triggers would not be looked at.
        writer.must(doing, "PRAGMA legacy_alter_table = OFF".to_owned()).await?;
        let dropped = writer.run(format!("ALTER TABLE {table} DROP COLUMN {column}")).await;
        writer.must(doing, "PRAGMA legacy_alter_table = ON".to_owned()).await?;
        if let Err(error) = dropped {
            stays.push(format!("column {} stays: {error}", change.column));
        }
    }
    Ok(stays)
}
