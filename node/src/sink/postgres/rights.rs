//! What the role may not do that a load needs: asked before a run, so that it isn't found out when the rows are staged.

use sqlx::Row as _;

use super::connect::Lease;
use super::fit::Fit;
use super::target::Target;
use crate::sink::name::quote;

/// Names that every table has columns of already.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

const RIGHTS: &str = "
SELECT current_user::text, current_database()::text,
       coalesce(has_schema_privilege(h.oid, 'USAGE') AND has_schema_privilege(h.oid, 'CREATE'),
                has_database_privilege(current_database(), 'CREATE')),
       h.oid IS NOT NULL,
       coalesce(has_schema_privilege(s.oid, 'CREATE'), true),
       coalesce(pg_has_role(c.relowner, 'USAGE'), true),
       coalesce(pg_get_userbyid(c.relowner)::text, '')
FROM (SELECT 1) one
LEFT JOIN pg_namespace h ON h.nspname = 'haulage'
LEFT JOIN pg_namespace s ON s.nspname = $1
LEFT JOIN pg_class c ON c.oid = $2::bigint::oid";

/// A line for everything that the role lacks, and what to do about it.
pub(super) async fn lacking(lease: &mut Lease, target: &Target, fit: &Fit) -> sqlx::Result<Vec<String>> {
    let row = sqlx::query(RIGHTS)
        .bind(&target.schema)
        .bind(target.existing.as_ref().map(|existing| existing.oid))
        .fetch_one(lease.connection())
        .await?;
    let (user, database): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let role = quote(&user);
    let mut lacking = Vec::new();
    if !row.try_get::<bool, _>(2)? {
        lacking.push(if row.try_get(3)? {
            format!(
                "role {user} may not work in schema haulage, where loads are staged; GRANT USAGE, CREATE ON SCHEMA haulage TO \
                 {role}"
            )
        } else {
            format!(
                "role {user} may not make schema haulage, where loads are staged; GRANT CREATE ON DATABASE {} TO {role}, or \
                 CREATE SCHEMA haulage AUTHORIZATION {role}",
                quote(&database)
            )
        });
    }
    // A table that is replaced by a new one is the role's own, see `fit`.
    if target.existing.is_none() && !row.try_get::<bool, _>(4)? {
        lacking.push(format!(
            "role {user} may not make a table in schema {}; GRANT CREATE ON SCHEMA {} TO {role}",
            target.schema,
            quote(&target.schema)
        ));
    }
    let (owns, owner): (bool, String) = (row.try_get(5)?, row.try_get(6)?);
    if !owns && let Some(change) = fit.evolve.first() {
        lacking.push(format!(
            "{} belongs to role {owner}, and only its owner may alter it (the load {change}); GRANT {} TO {role}, or let its \
             owner alter it",
            target.text(),
            quote(&owner)
        ));
    }
    Ok(lacking)
}

/// A line for a column that PostgreSQL can't have.
pub(super) fn impossible(column: &str) -> Option<String> {
    SYSTEM_COLUMNS.contains(&column).then(|| {
        format!("column {column} is a name that PostgreSQL keeps for itself; give it another in the step's SQL")
    })
}
