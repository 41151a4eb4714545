//! A target that changes with its loads: columns that are added, and types that become wider, inside the transaction that
//! publishes; and back again for a revert.
//!
//! Back is only gone as far as nothing is lost by it: a column in which somebody has put a value meanwhile stays, and so
//! does a type that a value needs, or a column that a view was made on. What stays is said.

use datafusion::arrow::datatypes::DataType;

use super::connect::Lease;
use super::failure::code;
use super::fit::kind_of_new;
use super::publish::Trouble;
use super::target::{Target, TargetColumn};
use super::types::{Kind, MICROSECONDS, encoding};
use crate::sink::name::quote;
use crate::sink::wider::{self, Held};
use crate::sink::{Change, ColumnChange};

/// The type that holds all that the column's does and all that the load's does, in SQL, with what it holds; `None` if the
/// column's own does already, or if there is none.
pub(super) fn wider(arrow: &DataType, column: &TargetColumn) -> Option<(String, Kind)> {
    if let DataType::Dictionary(_, values) = arrow {
        return wider(values, column);
    }
    let sql = match (column.kind, arrow) {
        (Kind::Varchar(_), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
            if column.sql.starts_with("character varying(") =>
        {
            "text".to_owned()
        }
        (Kind::Timestamp(_), DataType::Timestamp(_, None))
            if is_rounded(arrow, column) && column.sql.starts_with("timestamp(") =>
        {
            "timestamp without time zone".to_owned()
        }
        (Kind::Timestamptz(_), DataType::Timestamp(_, Some(_)))
            if is_rounded(arrow, column) && column.sql.starts_with("timestamp(") =>
        {
            "timestamp with time zone".to_owned()
        }
        _ => match wider::wider(held(column)?, arrow)? {
            Held::Small => "smallint".to_owned(),
            Held::Int => "integer".to_owned(),
            Held::Big => "bigint".to_owned(),
            Held::Digits(whole, fraction) => format!("numeric({},{fraction})", whole + fraction),
            Held::Float => "real".to_owned(),
            Held::Double => "double precision".to_owned(),
            Held::Date => "date".to_owned(),
            Held::Timestamp => "timestamp without time zone".to_owned(),
        },
    };
    let kind = match sql.as_str() {
        "text" => Kind::Text,
        "timestamp without time zone" => Kind::Timestamp(MICROSECONDS),
        numeric if numeric.starts_with("numeric") => Kind::Numeric(None),
        other => kind_of_new(other, arrow),
    };
    Some((sql, kind))
}

/// What the column holds, if it is of such a type itself and not of a domain over one.
fn held(column: &TargetColumn) -> Option<Held> {
    Some(match (column.kind, column.sql.as_str()) {
        (Kind::Int2, "smallint") => Held::Small,
        (Kind::Int4, "integer") => Held::Int,
        (Kind::Int8, "bigint") => Held::Big,
        (Kind::Numeric(Some((precision, scale))), sql) if scale >= 0 && sql.starts_with("numeric(") => {
            Held::Digits(precision - scale, scale)
        }
        (Kind::Float4, "real") => Held::Float,
        (Kind::Date, "date") => Held::Date,
        _ => return None,
    })
}

/// Whether the column keeps fewer digits of a second than the load has.
fn is_rounded(arrow: &DataType, column: &TargetColumn) -> bool {
    encoding(arrow, column.kind).is_none()
}

/// The statement that makes the change to a table; `None` if it takes none.
pub(super) fn statement(table: &str, change: &ColumnChange) -> Option<String> {
    let column = quote(&change.column);
    let to = change.to.as_deref()?;
    match change.change {
        Change::Added => Some(format!("ALTER TABLE {table} ADD COLUMN {column} {to}")),
        Change::Widened => Some(format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {to}")),
        Change::Unfilled => None,
    }
}

/// All of them.
pub(super) fn statements(table: &str, changes: &[ColumnChange]) -> Vec<String> {
    changes.iter().filter_map(|change| statement(table, change)).collect()
}

/// Takes the changes back, the last one first, inside the caller's transaction and under its lock. Returns those that
/// stay, in words.
pub(super) async fn take_back(
    lease: &mut Lease,
    target: &Target,
    changes: &[ColumnChange],
) -> Result<Vec<String>, Trouble> {
    let table = target.sql();
    let mut stays = Vec::new();
    for change in changes.iter().rev() {
        let column = quote(&change.column);
        let there = target
            .existing
            .as_ref()
            .and_then(|existing| existing.column(&change.column));
        lease.run("SAVEPOINT evolved").await?;
        let undone = match (change.change, &change.from, there) {
            (Change::Added, _, Some(_)) => drop_added(lease, &table, &change.column).await,
            // Somebody else has changed it since.
            (Change::Widened, Some(from), Some(there)) if Some(&there.sql) == change.to.as_ref() => {
                narrow(lease, &table, &column, from, &there.sql).await
            }
            (Change::Added | Change::Widened | Change::Unfilled, _, _) => Ok(None),
        };
        match undone {
            Ok(None) => {}
            Ok(Some(why)) => stays.push(format!("column {} {why}", change.column)),
            Err(error) if code(&error).is_some_and(stands_in_the_way) => {
                lease.run("ROLLBACK TO SAVEPOINT evolved").await?;
                stays.push(format!("column {} stays as it is: {error}", change.column));
            }
            Err(error) => return Err(error.into()),
        }
        lease.run("RELEASE SAVEPOINT evolved").await?;
    }
    Ok(stays)
}

/// Drops a column that the run has added; why it stays, if it does. The server would drop indexes and constraints of
/// others along with it.
async fn drop_added(lease: &mut Lease, table: &str, name: &str) -> sqlx::Result<Option<String>> {
    let column = quote(name);
    let used = asked(
        lease,
        format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} IS NOT NULL)"),
        &[],
    )
    .await?;
    if used {
        return Ok(Some("stays, since it holds values of others".to_owned()));
    }
    let needed = "SELECT EXISTS (
        SELECT 1 FROM pg_attribute a JOIN pg_depend d
            ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
        WHERE a.attrelid = to_regclass($1) AND a.attname = $2
          AND d.classid <> 'pg_attrdef'::regclass
          AND NOT (d.classid = 'pg_class'::regclass AND d.deptype = 'i'))";
    if asked(lease, needed.to_owned(), &[table, name]).await? {
        let why = "stays, since an index, a constraint or something else that others have made is about it";
        return Ok(Some(why.to_owned()));
    }
    lease.run(format!("ALTER TABLE {table} DROP COLUMN {column}")).await?;
    Ok(None)
}

/// Gives a column the narrower type back; why it stays, if it does. The server would round or cut many a value that is too
/// long for it.
async fn narrow(lease: &mut Lease, table: &str, column: &str, from: &str, to: &str) -> sqlx::Result<Option<String>> {
    let changed = format!(
        "SELECT EXISTS (SELECT 1 FROM {table} WHERE {column}::text IS DISTINCT FROM ({column}::{from}::{to})::text)"
    );
    if asked(lease, changed, &[]).await? {
        return Ok(Some(format!(
            "stays as it is, {to}, since it holds values that {from} would change"
        )));
    }
    lease
        .run(format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {from}"))
        .await?;
    Ok(None)
}

async fn asked(lease: &mut Lease, sql: String, values: &[&str]) -> sqlx::Result<bool> {
    let mut query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(false);
    for value in values {
        query = query.bind(*value);
    }
    query.fetch_one(lease.connection()).await
}

/// Whether the server refuses on account of what is in the table or was made on it: a value that is too large or too
/// long, a view, an object that depends on the column.
fn stands_in_the_way(code: &str) -> bool {
    matches!(code, "22001" | "22003" | "22008" | "0A000" | "2BP01")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::postgres::types::kind;

    fn column(sql: &str, base: &str, modifier: i32) -> TargetColumn {
        TargetColumn {
            name: "c".to_owned(),
            sql: sql.to_owned(),
            kind: kind(base, false, modifier),
            not_null: false,
            filled: false,
            generated: false,
            identity_always: false,
            used_by: Vec::new(),
        }
    }

    #[test]
    fn a_wider_type_holds_what_both_hold() {
        let numeric = |precision: i32, scale: i32| {
            let sql = format!("numeric({precision},{scale})");
            column(&sql, "numeric", ((precision << 16) | scale) + 4)
        };
        let int4 = column("integer", "int4", -1);
        let text = column("character varying(8)", "varchar", 12);
        for (arrow, column, expected) in [
            (DataType::Int64, &int4, Some("bigint")),
            (DataType::Int32, &int4, None),
            (DataType::Int16, &int4, None),
            (DataType::Float64, &int4, Some("double precision")),
            (DataType::Float32, &int4, None),
            (DataType::Decimal128(10, 2), &int4, Some("numeric(12,2)")),
            (DataType::UInt64, &int4, Some("numeric(20,0)")),
            (DataType::Utf8, &int4, None),
            (DataType::Int64, &column("bigint", "int8", -1), None),
            (DataType::Float64, &column("bigint", "int8", -1), None),
            (DataType::Int64, &column("counted", "int4", -1), None),
            (
                DataType::Float64,
                &column("real", "float4", -1),
                Some("double precision"),
            ),
            (DataType::Float32, &column("double precision", "float8", -1), None),
            (DataType::Decimal128(12, 2), &numeric(10, 2), Some("numeric(12,2)")),
            (DataType::Decimal128(10, 4), &numeric(10, 2), Some("numeric(12,4)")),
            (DataType::Decimal128(8, 2), &numeric(10, 2), None),
            (DataType::Int64, &numeric(10, 2), Some("numeric(21,2)")),
            (DataType::Int16, &numeric(10, 2), None),
            (DataType::Int64, &column("numeric", "numeric", -1), None),
            (DataType::Utf8View, &text, Some("text")),
            (DataType::Utf8, &column("text", "text", -1), None),
            (DataType::Int32, &text, None),
            (
                DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, None),
                &column("date", "date", -1),
                Some("timestamp without time zone"),
            ),
        ] {
            let found = wider(&arrow, column);
            assert_eq!(
                found.as_ref().map(|(sql, _)| sql.as_str()),
                expected,
                "{arrow} into {}",
                column.sql
            );
            if let Some((sql, kind)) = found {
                let fits = crate::sink::postgres::types::encoding(&arrow, kind);
                assert!(fits.is_some(), "{arrow} is written into {sql}");
            }
        }
    }
}
