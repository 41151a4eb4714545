//! The target as PostgreSQL's catalogs describe it: columns, indexes, and what depends on it.
//!
//! The description decides how rows are staged (with the target's own types), whether a swap would break anything, and
//! whether the target is still what it was when staging was made (its shape).

use std::collections::BTreeMap;

use haulage_core::failure::Failure;
use sqlx::Row;

use super::bookkeeping::Area;
use super::connect::Lease;
use super::types::{Kind, kind};
use crate::sink::name::{TableName, quote};

/// The column that tells which run a row came with.
pub(super) const RUN_COLUMN: &str = "_haulage_run";

/// A column of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetColumn {
    pub(super) name: String,
    /// As SQL writes it: `numeric(10,2)`.
    pub(super) sql: String,
    pub(super) kind: Kind,
    pub(super) not_null: bool,
    /// Whether the server fills it in: a default, an identity, or a generated column.
    pub(super) filled: bool,
    pub(super) generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: refuses a value that is given.
    pub(super) identity_always: bool,
    /// What keeps its type from being changed: views, policies, triggers and generated columns that use it.
    pub(super) used_by: Vec<String>,
}

/// An index of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetIndex {
    pub(super) name: String,
    pub(super) unique: bool,
    /// Behind `CREATE [UNIQUE] INDEX name ON schema.table USING `; empty if it could not be taken apart.
    pub(super) method_and_columns: String,
    /// `p` or `u` and the constraint's name, if a constraint owns it.
    pub(super) constraint: Option<(String, String)>,
    /// Its columns, if it is unique over plain columns, without a condition, and checked at once.
    pub(super) plain_key: Option<Vec<String>>,
}

/// A table that exists.
#[derive(Debug, Clone)]
pub(super) struct Existing {
    pub(super) oid: i64,
    pub(super) relkind: String,
    pub(super) columns: Vec<TargetColumn>,
    pub(super) indexes: Vec<TargetIndex>,
    /// What a swap would break or lose, in words; empty if the table can be swapped.
    pub(super) ties: Vec<String>,
    /// Foreign keys of other tables that point here.
    pub(super) referenced_by: Vec<String>,
    /// A signature over columns, constraints, indexes and ties.
    pub(super) shape: String,
}

/// A target, resolved.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) schema: String,
    pub(super) table: String,
    /// Whether the schema exists.
    pub(super) schema_exists: bool,
    pub(super) existing: Option<Existing>,
}

impl Target {
    /// `"schema"."table"`.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// `schema.table`, for a person and as the key of the target's record.
    pub(super) fn text(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

impl Existing {
    pub(super) fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether rows can be matched by these columns.
    pub(super) fn has_unique(&self, key: &[String]) -> bool {
        let mut wanted: Vec<&str> = key.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        self.indexes
            .iter()
            .filter_map(|index| index.plain_key.as_ref())
            .any(|columns| {
                let mut columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                columns.sort_unstable();
                columns == wanted
            })
    }

    /// Columns that can be written, in order.
    pub(super) fn writable(&self) -> Vec<&str> {
        self.columns
            .iter()
            .filter(|column| !column.generated)
            .map(|column| column.name.as_str())
            .collect()
    }
}

/// Finds and describes the target. Touches nothing.
pub(super) async fn describe(lease: &mut Lease, table: &str) -> Result<Target, Failure> {
    let name = TableName::parse(table)?;
    match read(lease, &name).await {
        Ok(target) if matches!(target.schema.as_str(), "pg_catalog" | "information_schema" | "haulage") => {
            Err(Failure::permanent(format!(
                "{}: table {table} would be in schema {}, which is not for loads; name another schema",
                lease.place(),
                target.schema
            )))
        }
        Ok(target) => Ok(target),
        Err(error) => Err(lease.place().failure(&format!("looking at table {table}"), error)),
    }
}

/// Describes the target that a record names, as [`Target::text`] does; `table` is what the pipeline file calls it.
pub(super) async fn describe_recorded(lease: &mut Lease, table: &str, recorded: &str) -> Result<Target, Failure> {
    let mut name = TableName::parse(table)?;
    if let Some(schema) = recorded.strip_suffix(&format!(".{}", name.table)) {
        name.schema = Some(schema.to_owned());
    }
    let read = read(lease, &name).await;
    read.map_err(|error| lease.place().failure(&format!("looking at table {recorded}"), error))
}

/// The types of a table's columns without what limits them: `numeric` for `numeric(10,2)`, and of a domain what it is over.
pub(super) async fn base_types(lease: &mut Lease, oid: i64) -> Result<BTreeMap<String, String>, sqlx::Error> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT a.attname::text, format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, -1)
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped",
    )
    .bind(oid)
    .fetch_all(lease.connection())
    .await?;
    Ok(rows.into_iter().collect())
}

/// The columns of a staging table, which is in schema `haulage` as no target can be. Asked for every segment, so nothing
/// else of it is read.
pub(super) async fn describe_staging(lease: &mut Lease, area: &Area) -> Result<Target, Failure> {
    read_staging(lease, area)
        .await
        .map_err(|error| lease.place().failure("looking at the staging area", error))
}

async fn read_staging(lease: &mut Lease, area: &Area) -> Result<Target, sqlx::Error> {
    let oid: Option<i64> = sqlx::query_scalar("SELECT to_regclass($1)::oid::bigint")
        .bind(&area.stage)
        .fetch_one(lease.connection())
        .await?;
    let existing = match oid {
        Some(oid) => Some(Existing {
            oid,
            relkind: "r".to_owned(),
            columns: columns(lease, oid).await?,
            indexes: Vec::new(),
            ties: Vec::new(),
            referenced_by: Vec::new(),
            shape: String::new(),
        }),
        None => None,
    };
    Ok(Target {
        schema: "haulage".to_owned(),
        table: format!("stage_{}", area.id),
        schema_exists: true,
        existing,
    })
}

const RESOLVE: &str = "
SELECT coalesce(n.nspname, $1, current_schema(), 'public')::text,
       c.oid::bigint, c.relkind::text,
       EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = coalesce($1, current_schema(), 'public'))
FROM (SELECT to_regclass($2)::oid AS oid) found
LEFT JOIN pg_class c ON c.oid = found.oid
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace";

async fn read(lease: &mut Lease, name: &TableName) -> Result<Target, sqlx::Error> {
    let quoted = match &name.schema {
        Some(schema) => format!("{}.{}", quote(schema), quote(&name.table)),
        None => quote(&name.table),
    };
    let row = sqlx::query(RESOLVE)
        .bind(&name.schema)
        .bind(quoted)
        .fetch_one(lease.connection())
        .await?;
    let mut target = Target {
        schema: row.try_get(0)?,
        table: name.table.clone(),
        schema_exists: row.try_get(3)?,
        existing: None,
    };
    if let (Some(oid), Some(relkind)) = (row.try_get::<Option<i64>, _>(1)?, row.try_get::<Option<String>, _>(2)?) {
        let columns = columns(lease, oid).await?;
        let indexes = indexes(lease, oid).await?;
        let ties = strings(lease, TIES, oid).await?;
        let referenced_by = strings(lease, REFERENCED_BY, oid).await?;
        let shape = strings(lease, SHAPE, oid).await?.join("\n");
        target.schema_exists = true;
        target.existing = Some(Existing {
            oid,
            relkind,
            columns,
            indexes,
            ties,
            referenced_by,
            shape,
        });
    }
    Ok(target)
}

async fn strings(lease: &mut Lease, sql: &'static str, oid: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(sql).bind(oid).fetch_all(lease.connection()).await
}

const COLUMNS: &str = "
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), coalesce(b.typname, t.typname)::text,
       coalesce(b.typtype, t.typtype) = 'e',
       CASE WHEN b.oid IS NULL THEN a.atttypmod ELSE t.typtypmod END,
       a.attnotnull OR t.typnotnull,
       a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL, a.attgenerated <> '', a.attidentity = 'a',
       ARRAY(SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d
             LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
             WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
                 AND (d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass)
                      OR f.adnum <> a.attnum)
             ORDER BY 1)
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type b ON b.oid = t.typbasetype
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum";

async fn columns(lease: &mut Lease, oid: i64) -> Result<Vec<TargetColumn>, sqlx::Error> {
    let rows = sqlx::query(COLUMNS).bind(oid).fetch_all(lease.connection()).await?;
    rows.iter()
        .map(|row| {
            let base: String = row.try_get(2)?;
            Ok(TargetColumn {
                name: row.try_get(0)?,
                sql: row.try_get(1)?,
                kind: kind(&base, row.try_get(3)?, row.try_get(4)?),
                not_null: row.try_get(5)?,
                filled: row.try_get(6)?,
                generated: row.try_get(7)?,
                identity_always: row.try_get(8)?,
                used_by: row.try_get(9)?,
            })
        })
        .collect()
}

// The definition that the server prints has a fixed beginning, which is cut off by its length if it is really there.
const INDEXES: &str = "
SELECT x.relname::text, i.indisunique,
       CASE WHEN starts_with(d.def, d.head) THEN substr(d.def, length(d.head) + 1) ELSE '' END,
       k.contype::text, k.conname::text,
       CASE WHEN i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate AND i.indisvalid
            THEN ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(attnum, place)
                       JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
                       WHERE u.place <= i.indnkeyatts ORDER BY u.place) END
FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u')
CROSS JOIN LATERAL (SELECT pg_get_indexdef(i.indexrelid) AS def,
    'CREATE ' || CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || quote_ident(x.relname) || ' ON '
    || quote_ident(n.nspname) || '.' || quote_ident(t.relname) || ' USING ' AS head) d
WHERE i.indrelid = $1::oid
ORDER BY x.relname";

async fn indexes(lease: &mut Lease, oid: i64) -> Result<Vec<TargetIndex>, sqlx::Error> {
    let rows = sqlx::query(INDEXES).bind(oid).fetch_all(lease.connection()).await?;
    rows.iter()
        .map(|row| {
            let kind: Option<String> = row.try_get(3)?;
            let constraint: Option<String> = row.try_get(4)?;
            Ok(TargetIndex {
                name: row.try_get(0)?,
                unique: row.try_get(1)?,
                method_and_columns: row.try_get(2)?,
                constraint: kind.zip(constraint),
                plain_key: row.try_get(5)?,
            })
        })
        .collect()
}

/// What a swap would break (a view, a foreign key, a publication) or not carry over (an identity, a policy). Everything
/// in `pg_depend` counts unless it is listed here as carried over, so that what nobody thought of counts too.
/// `pg_attver` is a mark that a server (Debian's 15.20) puts on every column by itself.
const TIES: &str = "
SELECT DISTINCT reason FROM (
    SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS reason
    FROM pg_depend d
    LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
    LEFT JOIN pg_class x ON d.classid = 'pg_class'::regclass AND x.oid = d.objid
    LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid
      AND NOT (d.classid = 'pg_type'::regclass AND d.deptype = 'i')
      AND coalesce(f.adrelid, 0) <> $1::oid
      AND coalesce(x.relkind, '-') NOT IN ('i', 't')
      AND NOT (k.conrelid IS NOT NULL AND k.conrelid = $1::oid AND k.contype IN ('p', 'u', 'c', 'n')
               AND NOT k.condeferrable)
    UNION ALL
    SELECT pg_describe_object(d.classid, d.objid, d.objsubid)
    FROM pg_class c JOIN pg_type t ON t.oid = c.reltype
    JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray) AND d.deptype = 'n'
    WHERE c.oid = $1::oid
    UNION ALL
    SELECT 'parent table ' || inhparent::regclass FROM pg_inherits WHERE inhrelid = $1::oid
    UNION ALL
    SELECT 'publication ' || p.pubname FROM pg_publication_tables p
    JOIN pg_class c ON c.oid = $1::oid AND c.relname = p.tablename
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schemaname
    UNION ALL
    SELECT 'sequence behind column ' || a.attname FROM pg_attribute a
    WHERE a.attrelid = $1::oid AND a.attidentity <> '' AND NOT a.attisdropped
    UNION ALL
    SELECT 'settings of column ' || a.attname FROM pg_attribute a
    WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
      AND (a.attacl IS NOT NULL OR coalesce(a.attstattarget, -1) >= 0
           OR EXISTS (SELECT FROM unnest(a.attoptions) AS o(text) WHERE NOT starts_with(o.text, 'pg_attver=')))
    UNION ALL
    SELECT 'index ' || i.indexrelid::regclass || ' (not valid, clustered on, replica identity, or in a tablespace)'
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
    WHERE i.indrelid = $1::oid
      AND (NOT i.indisvalid OR i.indisclustered OR i.indisreplident OR x.reltablespace <> 0)
    UNION ALL
    SELECT unnest(array_remove(ARRAY[
        CASE WHEN c.relkind <> 'r' THEN 'it is no ordinary table' END,
        CASE WHEN c.relpersistence <> 'p' THEN 'it is unlogged' END,
        CASE WHEN c.relrowsecurity THEN 'row security' END,
        CASE WHEN c.relreplident <> 'd' THEN 'a replica identity' END,
        CASE WHEN c.reloftype <> 0 THEN 'it is a typed table' END,
        CASE WHEN c.reltablespace <> 0 THEN 'it is in a tablespace' END,
        CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN 'it belongs to ' || pg_get_userbyid(c.relowner) END,
        CASE WHEN NOT has_schema_privilege(c.relnamespace, 'CREATE') THEN 'nothing may be created in its schema' END
    ], NULL)) FROM pg_class c WHERE c.oid = $1::oid
) reasons WHERE reason IS NOT NULL ORDER BY reason";

const REFERENCED_BY: &str = "
SELECT 'foreign key ' || conname || ' of ' || conrelid::regclass FROM pg_constraint
WHERE contype = 'f' AND confrelid = $1::oid AND conrelid <> $1::oid ORDER BY 1";

const SHAPE: &str = "
SELECT line FROM (
    SELECT 1 AS kind, a.attnum::int AS place,
        concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attcollation, a.attnotnull, a.attgenerated,
                  pg_get_expr(f.adbin, f.adrelid)) AS line
    FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
    WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 2, 0, conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::oid
    UNION ALL
    SELECT 3, 0, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::oid
) lines ORDER BY kind, place, line";
