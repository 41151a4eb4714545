//! What stands of a publish in a SQLite file, and where rows are from. Touches nothing.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::receipt::{FoundRow, Looked, Publisher};
use haulage_plan::{PROVENANCE, types};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Row};

use super::Sqlite;
use super::asked::{self, Form};
use super::bookkeeping::{Area, Method};
use super::target::{TargetColumn, class, describe, keeps, table_name};
use crate::receipt::{Back, read_as_text};
use crate::sink::LoadContext;
use crate::sink::name::quote;
use crate::sink::standing::{Facts, Publication, Rows, Standing, Way, columns_of, origin_gone, origin_in_sql, rows_of};

/// Publishers of a table that are named at most.
const NAMED: i64 = 20;

const PUBLISHERS: &str = "SELECT run, load, mode, replaces, coalesce(published_at || ' UTC', ''), coalesce(method, '')
    FROM _haulage_loads WHERE target = $1 COLLATE NOCASE AND state = 'published' AND coalesce(sequence, 0) > $2 ";

/// Of these, who has changed anything: a merge of no rows has not.
const CHANGED: &str = "AND NOT (method = 'merge' AND rows = 0)";

impl Sqlite {
    pub(super) async fn stand(&self, load: &LoadContext) -> Result<Standing, Failure> {
        let doing = format!("looking for what load {} has published", load.load);
        let nothing = Standing {
            publication: Publication::Unknown,
            later: Vec::new(),
            columns: None,
            rows: Rows::Untold("the destination knows nothing of the run".to_owned()),
        };
        let table = table_name(&load.table)?;
        let Some(mut reader) = self.file.reader().await? else {
            return Ok(nothing);
        };
        let found = stand(&mut reader, load, &table, nothing).await;
        let found = found.map_err(|error| self.file.failure(&doing, error))?;
        // An error means that it is closed already.
        drop(reader.close().await);
        Ok(found)
    }

    /// The rows of a table with these values.
    pub(super) async fn find(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        let doing = format!("looking for rows of {table}");
        let table = table_name(table)?;
        let missing = || Failure::permanent(format!("{}: there is no table {table}", self.file.path().display()));
        let Some(mut reader) = self.file.reader().await? else {
            return Err(missing());
        };
        let failed = |error| self.file.failure(&doing, error);
        let target = describe(&mut reader, &table).await.map_err(failed)?;
        let existing = target.existing.ok_or_else(missing)?;
        let there: Vec<&str> = existing.columns.iter().map(|column| column.name.as_str()).collect();
        // SQLite takes a name in any case, and so do we.
        let there_as = |name: &str| there.iter().copied().find(|there| there.eq_ignore_ascii_case(name));
        let key: Vec<(String, String)> = key
            .iter()
            .map(|(name, value)| (there_as(name).unwrap_or(name).to_owned(), value.clone()))
            .collect();
        let asked = columns_of(&table, &key, &there, &existing.unique).map_err(Failure::permanent)?;
        let mut forms = Vec::new();
        for (name, value) in &asked {
            let declared = existing.column(name).map_or("", |column| column.declared.as_str());
            let of_column = asked::forms(declared, value).map_err(|why| {
                Failure::permanent(format!(
                    "table {table}: a value doesn't fit its column: {why}, and {name} is {declared}"
                ))
            });
            forms.push(of_column?);
        }
        let there: Vec<&str> = there
            .iter()
            .map(|name| {
                PROVENANCE
                    .iter()
                    .find(|own| own.eq_ignore_ascii_case(name))
                    .unwrap_or(name)
            })
            .copied()
            .collect();
        let (provenance, origin) = origin_in_sql(&there, |name| format!("CAST({name} AS TEXT)"));
        let shown: Vec<String> = asked
            .iter()
            .map(|(name, _)| format!("CAST({} AS TEXT)", quote(name)))
            .collect();
        let mut rows = Vec::new();
        // As it was asked first, and only then in other forms: a text may look like a number and be none.
        for most in [1, usize::MAX] {
            let conditions: Vec<String> = asked
                .iter()
                .zip(&forms)
                .map(|((name, _), forms)| {
                    let places = vec!["?"; forms.len().min(most)];
                    format!("{} IN ({})", quote(name), places.join(", "))
                })
                .collect();
            let sql = format!(
                "SELECT {}, {} FROM {} WHERE {} LIMIT {}",
                origin.join(", "),
                shown.join(", "),
                quote(&table),
                conditions.join(" AND "),
                u64::from(limit) + 1
            );
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for form in forms.iter().flat_map(|forms| forms.iter().take(most)) {
                query = match form {
                    Form::Integer(value) => query.bind(*value),
                    Form::Real(value) => query.bind(*value),
                    Form::Text(value) => query.bind(value.as_str()),
                };
            }
            rows = query.fetch_all(&mut reader).await.map_err(failed)?;
            if !rows.is_empty() {
                break;
            }
        }
        let names: Vec<String> = asked.iter().map(|(name, _)| name.clone()).collect();
        let found: Result<Vec<FoundRow>, sqlx::Error> =
            rows.iter().take(limit as usize).map(|row| found(row, &names)).collect();
        let found = found.map_err(failed)?;
        let publishers = publishers(&mut reader, &table).await.map_err(failed)?;
        drop(reader.close().await);
        Ok(Looked {
            table: table.clone(),
            provenance,
            more: rows.len() > limit as usize,
            rows: found,
            publishers,
        })
    }
}

async fn stand(
    reader: &mut SqliteConnection,
    load: &LoadContext,
    table: &str,
    mut standing: Standing,
) -> Result<Standing, sqlx::Error> {
    if !exists(reader, "_haulage_loads").await? {
        return Ok(standing);
    }
    let record: Option<(String, Option<String>, bool, i64, bool)> = sqlx::query_as(
        "SELECT state, method, created, coalesce(sequence, 0), cleaned_at IS NOT NULL
         FROM _haulage_loads WHERE run = $1 AND load = $2",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .fetch_optional(&mut *reader)
    .await?;
    let Some((state, method, created, sequence, cleaned)) = record else {
        return Ok(standing);
    };
    standing.publication = match state.as_str() {
        "published" => Publication::Stands,
        "staged" | "sealed" => Publication::Not("staged and not published".to_owned()),
        other => Publication::Not(other.to_owned()),
    };
    // A release that had no such column wrote every row.
    let counts = "SELECT count(*) > 0 FROM pragma_table_info('_haulage_loads') WHERE name = 'older'";
    let counts: bool = sqlx::query_scalar(counts).fetch_one(&mut *reader).await?;
    let older: i64 = match counts {
        true => {
            sqlx::query_scalar("SELECT older FROM _haulage_loads WHERE run = $1 AND load = $2")
                .bind(load.run.as_str())
                .bind(load.load.as_str())
                .fetch_one(&mut *reader)
                .await?
        }
        false => 0,
    };
    let rows = sqlx::query(AssertSqlSafe(format!("{PUBLISHERS} {CHANGED} ORDER BY sequence")))
        .bind(table)
        .bind(sequence)
        .fetch_all(&mut *reader)
        .await?;
    let later = rows.iter().map(publisher).collect::<Result<Vec<_>, _>>()?;
    let area = Area::of(load);
    let keys = exists(reader, &area.keys).await? && !cleaned;
    let target = describe(reader, table).await?;
    // Of a table that is gone nothing more need be said.
    let has = |name: &str| {
        target
            .existing
            .as_ref()
            .is_none_or(|there| there.column(name).is_some())
    };
    let facts = Facts {
        way: way(method.as_deref().and_then(Method::parse)),
        created,
        table: quote(table),
        keys: keys.then(|| quote(&area.keys)),
        later: &later,
        has: &has,
        older: older as u64,
    };
    standing.rows = rows_of(load, &facts);
    standing.columns = target.existing.as_ref().map(|existing| {
        let fields = load.schema.fields().iter();
        fields
            .filter(|field| !(load.provenance && PROVENANCE.contains(&field.name().as_str())))
            .map(|field| {
                let back = match existing.column(field.name()) {
                    Some(column) => back(field.data_type(), column),
                    None => Back::Changed("it is gone".to_owned()),
                };
                (field.name().clone(), back)
            })
            .chain(origin_gone(load, has))
            .collect()
    });
    standing.later = later.into_iter().map(|(publisher, _)| publisher).collect();
    Ok(standing)
}

async fn exists(reader: &mut SqliteConnection, table: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = $1)")
        .bind(table)
        .fetch_one(reader)
        .await
}

async fn publishers(reader: &mut SqliteConnection, table: &str) -> Result<Vec<Publisher>, sqlx::Error> {
    if !exists(reader, "_haulage_loads").await? {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "{PUBLISHERS} ORDER BY sequence DESC LIMIT {NAMED}"
    )))
    .bind(table)
    .bind(-1_i64)
    .fetch_all(reader)
    .await?;
    rows.iter().map(|row| Ok(publisher(row)?.0)).collect()
}

fn publisher(row: &SqliteRow) -> Result<(Publisher, Way), sqlx::Error> {
    let method: String = row.try_get(5)?;
    let publisher = Publisher {
        run: RunId::new(row.try_get::<String, _>(0)?),
        load: LoadName::new(row.try_get::<String, _>(1)?),
        mode: row.try_get(2)?,
        replaces: row.try_get::<Option<String>, _>(3)?.map(RunId::new),
        at: row.try_get(4)?,
    };
    Ok((publisher, way(Method::parse(&method))))
}

fn found(row: &SqliteRow, names: &[String]) -> Result<FoundRow, sqlx::Error> {
    let line: Option<String> = row.try_get_unchecked(2)?;
    let mut key = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let value: Option<String> = row.try_get_unchecked(3 + place)?;
        key.push((name.clone(), value.unwrap_or_default()));
    }
    Ok(FoundRow {
        key,
        run: row.try_get_unchecked::<Option<String>, _>(0)?.map(RunId::new),
        chunk: row.try_get_unchecked(1)?,
        line: line.and_then(|line| line.parse().ok()),
    })
}

pub(super) fn way(method: Option<Method>) -> Way {
    match method {
        Some(Method::Rename | Method::Rewrite) | None => Way::Whole,
        Some(Method::Append) => Way::Append,
        Some(Method::AppendByKey) => Way::AppendByKey,
        Some(Method::Merge) => Way::Merge,
    }
}

/// How values of an Arrow type come back from a column, as it is now.
fn back(arrow: &DataType, column: &TargetColumn) -> Back {
    let fits = class(arrow).is_some_and(|class| keeps(class, &column.declared));
    if !fits {
        return Back::Changed(format!(
            "it is {} now, where a load puts no {}",
            column.declared,
            types::name(arrow)
        ));
    }
    match read_as_text(arrow) {
        // Its reals are doubles.
        Some(DataType::Float32) => Back::As(DataType::Float64),
        Some(plain) => Back::As(plain),
        None => Back::LeftOut(format!("{} is not read back", types::name(arrow))),
    }
}
