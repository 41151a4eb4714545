//! What a publish would do, from the catalogs alone: nothing is made, not even schema `haulage`.

use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::definition::Mode;
use sqlx::{AssertSqlSafe, Row};

use super::Postgres;
use super::bookkeeping::Method;
use super::connect::Lease;
use super::evolve;
use super::fit::{Fit, create_table, fit};
use super::rights::lacking;
use super::swap::NAME_LIMIT;
use super::target::{RUN_COLUMN, Target, describe};
use crate::sink::name::with_suffix;
use crate::sink::{Change, ColumnChange, Identity, Inspection, LoadContext};

/// Tables up to this size are counted; of larger ones the catalog's estimate is not called a count.
const COUNTED_BYTES: i64 = 256 << 20;

impl Postgres {
    pub(super) async fn look(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        let mut lease = self.lease().await?;
        let target = describe(&mut lease, &load.table).await?;
        let identity = identity(&mut lease, &target).await;
        let mut inspection = Inspection {
            identity: identity.map_err(|error| lease.place().failure("asking which server it is", error))?,
            exists: target.existing.is_some(),
            rows: None,
            ddl: Vec::new(),
            changes: Vec::new(),
            columns: Vec::new(),
            misfits: Vec::new(),
        };
        if let Some(existing) = &target.existing
            && matches!(existing.relkind.as_str(), "r" | "p")
        {
            let counted = count(&mut lease, &target, existing.oid).await;
            inspection.rows =
                counted.map_err(|error| lease.place().failure(&format!("counting {}", load.table), error))?;
        }
        let fit = fit(load, &target);
        if let Ok(fit) = &fit {
            let lacking = lacking(&mut lease, &target, fit).await;
            inspection.misfits =
                lacking.map_err(|error| lease.place().failure("asking what the role may do", error))?;
        }
        lease.give_back();
        match fit {
            Ok(fit) => {
                if target.existing.is_none() {
                    inspection.ddl.push(create_table(load, &target.sql(), &fit));
                }
                inspection.ddl.extend(evolve::statements(&target.sql(), &fit.evolve));
                inspection.changes = changes(load, &target, &fit, inspection.rows);
                inspection.columns = fit.evolve;
                inspection.columns.extend(unfilled(load, &target));
            }
            Err(misfits) => inspection.misfits = misfits,
        }
        Ok(inspection)
    }
}

/// Columns of the target that the load has nothing for.
fn unfilled(load: &LoadContext, target: &Target) -> Vec<ColumnChange> {
    let columns = target.existing.iter().flat_map(|existing| &existing.columns);
    let ours = |name: &str| name == RUN_COLUMN && load.mode != Mode::Replace;
    columns
        .filter(|column| !column.generated && !ours(&column.name))
        .filter(|column| load.schema.field_with_name(&column.name).is_err())
        .map(|column| ColumnChange {
            column: column.name.clone(),
            change: Change::Unfilled,
            from: Some(column.sql.clone()),
            to: None,
        })
        .collect()
}

/// Two servers that were started in the same microsecond, on the same port, would be one. (The identifier in their control
/// files is not for every role to read.)
async fn identity(lease: &mut Lease, target: &Target) -> Result<Identity, sqlx::Error> {
    let server: String = sqlx::query_scalar(
        "SELECT concat_ws(' ', (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
                          current_setting('port'), oid)
         FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(lease.connection())
    .await?;
    // The server cuts a name that is longer.
    let name = |name: &str| with_suffix(name, "", NAME_LIMIT);
    let (schema, table) = (name(&target.schema), name(&target.table));
    Ok(Identity::new(format!("postgres {server} {schema:?} {table:?}")))
}

async fn count(lease: &mut Lease, target: &Target, oid: i64) -> Result<Option<u64>, sqlx::Error> {
    let row = sqlx::query("SELECT pg_relation_size($1::oid::regclass)")
        .bind(oid)
        .fetch_one(lease.connection())
        .await?;
    if row.try_get::<i64, _>(0)? > COUNTED_BYTES {
        return Ok(None);
    }
    let sql = format!("SELECT count(*) FROM {}", target.sql());
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(lease.connection())
        .await?;
    Ok(Some(rows as u64))
}

fn changes(load: &LoadContext, target: &Target, fit: &Fit, rows: Option<u64>) -> Vec<String> {
    let table = target.text();
    if target.existing.is_none() {
        return vec![format!("creates {table} with the run's rows")];
    }
    let there = rows.map_or("the rows".to_owned(), |rows| format!("the {}", counted(rows, "row")));
    let line = match (load.mode, fit.method) {
        (Mode::Replace, Method::Swap) => {
            format!("replaces {there} of {table}: a new table takes its place")
        }
        (Mode::Replace, _) => {
            let why = if fit.ties.is_empty() {
                "its indexes".to_owned()
            } else {
                fit.ties.join(", ")
            };
            format!("replaces {there} of {table} by DELETE and INSERT, because a new table would break: {why}")
        }
        (Mode::Append, _) => format!("adds rows to {there} of {table}"),
        (Mode::Merge, _) => format!(
            "updates rows of {table} that have the same {}, and adds the others, to {there} there",
            load.key.join(", ")
        ),
    };
    let mut lines = vec![line];
    if let Some(replaced) = &load.replaces {
        lines.push(match load.mode {
            Mode::Append => format!("takes out the rows that run {replaced} added"),
            Mode::Merge => format!("goes over the rows that run {replaced} merged"),
            Mode::Replace => format!("takes the place of what run {replaced} published"),
        });
    }
    lines
}
