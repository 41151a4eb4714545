//! Replacing a table by swap: the old table moves to `haulage.prev_...`, staging moves to its place, with its names,
//! owner, grants, comment and settings. No row is written a second time. One transaction, so nobody sees a moment
//! without the table; and back again for a revert.
//!
//! Only called when [`TIES`](super::target) found nothing that a swap would break.

use haulage_core::failure::Failure;
use sqlx::{AssertSqlSafe, Row};

use super::bookkeeping::{Area, Record};
use super::connect::Lease;
use super::publish::Trouble;
use super::target::{Existing, Target};
use super::verify::{staged_index, staged_key};
use crate::sink::LoadContext;
use crate::sink::name::{quote, with_suffix};

/// Longest name that PostgreSQL keeps.
pub(super) const NAME_LIMIT: usize = 63;

/// What a table wears besides its columns.
struct Dress {
    owner: Option<String>,
    comment: Option<String>,
    options: Vec<String>,
}

/// Puts staging in place of the target, inside the caller's transaction. Returns the names of the old indexes, in order.
pub(super) async fn swap_in(
    lease: &mut Lease,
    load: &LoadContext,
    area: &Area,
    target: &Target,
) -> Result<Vec<String>, Trouble> {
    let Some(existing) = &target.existing else {
        return move_in_new(lease, load, area, target)
            .await
            .map(|()| Vec::new())
            .map_err(Trouble::from);
    };
    let schema = quote(&target.schema);
    let sql = target.sql();
    let dress = dress(lease, existing.oid).await?;
    let mut steps = Vec::new();
    for (n, index) in existing.indexes.iter().enumerate() {
        steps.push(format!(
            "ALTER INDEX {schema}.{} RENAME TO {}",
            quote(&index.name),
            old_index(area, n)
        ));
    }
    steps.push(format!("ALTER TABLE {sql} RENAME TO prev_{}", area.id));
    steps.push(format!("ALTER TABLE {schema}.prev_{} SET SCHEMA haulage", area.id));
    steps.push(format!("ALTER TABLE {} SET SCHEMA {schema}", area.stage));
    steps.push(format!(
        "ALTER TABLE {schema}.stage_{} RENAME TO {}",
        area.id,
        quote(&target.table)
    ));
    for (n, index) in existing.indexes.iter().enumerate() {
        let staged = staged_index(area, n);
        steps.push(match &index.constraint {
            Some((kind, name)) => format!(
                "ALTER TABLE {sql} ADD CONSTRAINT {} {} USING INDEX {staged}",
                quote(name),
                if kind == "p" { "PRIMARY KEY" } else { "UNIQUE" },
            ),
            None => format!("ALTER INDEX {schema}.{staged} RENAME TO {}", quote(&index.name)),
        });
    }
    steps.extend(undress(&sql));
    steps.extend(dress.statements(&sql));
    lease.run(steps.join(";\n")).await?;
    copy_grants(lease, &sql, existing.oid).await?;
    Ok(existing.indexes.iter().map(|index| index.name.clone()).collect())
}

async fn move_in_new(lease: &mut Lease, load: &LoadContext, area: &Area, target: &Target) -> Result<(), sqlx::Error> {
    let schema = quote(&target.schema);
    let sql = target.sql();
    let mut steps = vec![
        format!("ALTER TABLE {} SET SCHEMA {schema}", area.stage),
        format!(
            "ALTER TABLE {schema}.stage_{} RENAME TO {}",
            area.id,
            quote(&target.table)
        ),
    ];
    if !load.key.is_empty() {
        let name = free_name(lease, target).await?;
        steps.push(format!(
            "ALTER TABLE {sql} ADD CONSTRAINT {} PRIMARY KEY USING INDEX {}",
            quote(&name),
            staged_key(area)
        ));
    }
    steps.extend(undress(&sql));
    lease.run(steps.join(";\n")).await?;
    Ok(())
}

/// A name for the primary key that nothing in the schema has.
async fn free_name(lease: &mut Lease, target: &Target) -> Result<String, sqlx::Error> {
    for n in 0..100 {
        let suffix = if n == 0 {
            "_pkey".to_owned()
        } else {
            format!("_pkey{n}")
        };
        let name = with_suffix(&target.table, &suffix, NAME_LIMIT);
        let taken: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(format!("{}.{}", quote(&target.schema), quote(&name)))
            .fetch_one(lease.connection())
            .await?;
        if !taken {
            return Ok(name);
        }
    }
    Ok(with_suffix(&target.table, "_pkey", NAME_LIMIT))
}

/// Takes off what only staging needed.
fn undress(sql: &str) -> [String; 2] {
    [
        format!("ALTER TABLE {sql} RESET (autovacuum_enabled)"),
        format!("COMMENT ON TABLE {sql} IS NULL"),
    ]
}

fn old_index(area: &Area, n: usize) -> String {
    format!("prev_{}_{n}", area.id)
}

impl Dress {
    fn statements(&self, sql: &str) -> Vec<String> {
        let mut steps = Vec::new();
        for option in &self.options {
            if let Some((name, value)) = option.split_once('=') {
                steps.push(format!("ALTER TABLE {sql} SET ({} = {})", quote(name), literal(value)));
            }
        }
        if let Some(comment) = &self.comment {
            steps.push(format!("COMMENT ON TABLE {sql} IS {}", literal(comment)));
        }
        // Last: the rest needs the rights of an owner.
        if let Some(owner) = &self.owner {
            steps.push(format!("ALTER TABLE {sql} OWNER TO {}", quote(owner)));
        }
        steps
    }
}

/// A text as an SQL literal, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

async fn dress(lease: &mut Lease, oid: i64) -> Result<Dress, sqlx::Error> {
    let row = sqlx::query(
        "SELECT CASE WHEN pg_get_userbyid(relowner) <> current_user THEN pg_get_userbyid(relowner)::text END,
                obj_description(oid, 'pg_class'), coalesce(reloptions, '{}')
         FROM pg_class WHERE oid = $1::oid",
    )
    .bind(oid)
    .fetch_one(lease.connection())
    .await?;
    Ok(Dress {
        owner: row.try_get(0)?,
        comment: row.try_get(1)?,
        options: row.try_get(2)?,
    })
}

/// Gives the new table exactly the grants of the old one. Default privileges may have given it others when it was made.
async fn copy_grants(lease: &mut Lease, sql: &str, old: i64) -> Result<(), sqlx::Error> {
    const STATEMENTS: &str = "
        WITH old AS (SELECT relacl, relowner FROM pg_class WHERE oid = $1::oid),
             new AS (SELECT relacl, relowner FROM pg_class WHERE oid = $2::regclass)
        SELECT statement FROM (
            SELECT 1 AS place, format('REVOKE ALL ON %s FROM %s', $2,
                CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END) AS statement
            FROM (SELECT DISTINCT a.grantee FROM new,
                  aclexplode(coalesce(new.relacl, acldefault('r', new.relowner))) a) has
            UNION ALL
            SELECT 2, format('GRANT %s ON %s TO %s%s', a.privilege_type, $2,
                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                CASE WHEN a.is_grantable AND a.grantee <> old.relowner THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM old, aclexplode(coalesce(old.relacl, acldefault('r', old.relowner))) a
        ) statements, old, new
        WHERE old.relacl IS NOT NULL OR new.relacl IS NOT NULL
        ORDER BY place, statement";
    let steps: Vec<String> = sqlx::query_scalar(STATEMENTS)
        .bind(old)
        .bind(sql)
        .fetch_all(lease.connection())
        .await?;
    if !steps.is_empty() {
        lease.run(steps.join(";\n")).await?;
    }
    Ok(())
}

/// Undoes [`swap_in`], inside the caller's transaction: drops the new table and moves the old one back.
pub(super) async fn swap_out(lease: &mut Lease, area: &Area, target: &Target, record: &Record) -> Result<(), Trouble> {
    let sql = target.sql();
    let schema = quote(&target.schema);
    let mut steps = vec![format!("DROP TABLE IF EXISTS {sql}")];
    if !record.created {
        let kept: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(&area.prev)
            .fetch_one(lease.connection())
            .await?;
        if !kept {
            return Err(Trouble::Failed(Failure::permanent(format!(
                "{}: {}, which holds {} as it was, is gone; restore the table from a backup, then abandon this step",
                lease.place(),
                area.prev,
                target.text()
            ))));
        }
        steps.push(format!("ALTER TABLE {} SET SCHEMA {schema}", area.prev));
        steps.push(format!(
            "ALTER TABLE {schema}.prev_{} RENAME TO {}",
            area.id,
            quote(&target.table)
        ));
        for (n, name) in record.names.iter().enumerate() {
            steps.push(format!(
                "ALTER INDEX {schema}.{} RENAME TO {}",
                old_index(area, n),
                quote(name)
            ));
        }
    }
    lease.run(steps.join(";\n")).await?;
    Ok(())
}

/// Whether the target is still as it was described, under the lock that the caller holds.
pub(super) async fn unchanged(lease: &mut Lease, existing: &Existing, target: &Target) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT to_regclass($1)::oid::bigint = {}", existing.oid);
    let same: Option<bool> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(target.sql())
        .fetch_one(lease.connection())
        .await?;
    Ok(same.unwrap_or(false))
}
