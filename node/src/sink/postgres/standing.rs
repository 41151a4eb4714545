//! What stands of a publish, and where rows are from. Touches nothing.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::receipt::{FoundRow, Looked, Publisher};
use haulage_plan::{PROVENANCE, types};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::Postgres;
use super::bookkeeping::{self, Area, Lock, Method, State};
use super::connect::{BEGIN_BRIEFLY, Lease};
use super::failure::code;
use super::stage::exists;
use super::target::{Target, TargetColumn, base_types, describe, describe_recorded};
use super::types::{Kind, Wire, encoding};
use crate::receipt::{Back, read_as_text};
use crate::sink::LoadContext;
use crate::sink::name::quote;
use crate::sink::standing::{Facts, Publication, Rows, Standing, Way, columns_of, origin_gone, origin_in_sql, rows_of};

/// Publishers of a table that are named at most.
const NAMED: i64 = 20;

const PUBLISHERS: &str = "SELECT run, load, mode, replaces,
    to_char(published_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC', coalesce(method, '')
    FROM haulage.loads WHERE target = $1 AND state = 'published' AND coalesce(sequence, 0) > $2 ";

/// Of these, who has changed anything: a merge of no rows has not.
const CHANGED: &str = "AND NOT (method = 'merge' AND rows = 0)";

impl Postgres {
    pub(super) async fn stand(&self, load: &LoadContext) -> Result<Standing, Failure> {
        let mut lease = self.lease().await?;
        let standing = self.stand_with(&mut lease, load).await?;
        lease.give_back();
        Ok(standing)
    }

    async fn stand_with(&self, lease: &mut Lease, load: &LoadContext) -> Result<Standing, Failure> {
        let doing = format!("looking for what load {} has published", load.load);
        let mut standing = Standing {
            publication: Publication::Unknown,
            later: Vec::new(),
            columns: None,
            rows: Rows::Untold("the destination knows nothing of the run".to_owned()),
        };
        if !bookkeeping::is_there(lease).await? {
            return Ok(standing);
        }
        bookkeeping::ensure(lease, &self.schema_known).await?;
        let failed = |lease: &Lease, error| lease.place().failure(&doing, error);
        let record = bookkeeping::record(lease, load, Lock::None).await;
        let Some(record) = record.map_err(|error| failed(lease, error))? else {
            return Ok(standing);
        };
        standing.publication = match record.state {
            State::Published => Publication::Stands,
            State::Staged | State::Sealed => Publication::Not("staged and not published".to_owned()),
            State::Reverted => Publication::Not("reverted".to_owned()),
            State::Discarded => Publication::Not("discarded".to_owned()),
        };
        // Where it was published to, whatever the name alone means to who is asking.
        let target: Result<String, _> =
            sqlx::query_scalar("SELECT target FROM haulage.loads WHERE run = $1 AND load = $2")
                .bind(load.run.as_str())
                .bind(load.load.as_str())
                .fetch_one(lease.connection())
                .await;
        let target = describe_recorded(lease, &load.table, &target.map_err(|error| failed(lease, error))?).await?;
        let rows = sqlx::query(AssertSqlSafe(format!("{PUBLISHERS} {CHANGED} ORDER BY sequence")))
            .bind(target.text())
            .bind(record.sequence.unwrap_or(0))
            .fetch_all(lease.connection())
            .await;
        let rows = rows.map_err(|error| failed(lease, error))?;
        let later: Result<Vec<_>, _> = rows.iter().map(publisher).collect();
        let later = later.map_err(|error| failed(lease, error))?;
        let area = Area::of(load);
        let keys = exists(lease, &area.keys).await.map_err(|error| failed(lease, error))?;
        // Of a table that is gone nothing more need be said.
        let has = |name: &str| {
            target
                .existing
                .as_ref()
                .is_none_or(|there| there.column(name).is_some())
        };
        let facts = Facts {
            way: way(record.method),
            created: record.created,
            table: target.sql(),
            keys: (keys && !record.cleaned).then(|| area.keys.clone()),
            later: &later,
            has: &has,
            older: record.older,
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

    /// The rows of a table with these values.
    pub(super) async fn find(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("looking for rows of {table}");
        let target = describe(&mut lease, table).await?;
        let Some(existing) = &target.existing else {
            return Err(Failure::permanent(format!(
                "{}: there is no table {}",
                lease.place(),
                target.text()
            )));
        };
        let there: Vec<&str> = existing.columns.iter().map(|column| column.name.as_str()).collect();
        let primary = existing
            .indexes
            .iter()
            .filter(|index| matches!(&index.constraint, Some((kind, _)) if kind == "p"));
        let mut keys: Vec<Vec<String>> = primary.filter_map(|index| index.plain_key.clone()).collect();
        if keys.is_empty() {
            keys = existing
                .indexes
                .iter()
                .filter_map(|index| index.plain_key.clone())
                .collect();
        }
        let asked = columns_of(&target.text(), key, &there, &keys).map_err(Failure::permanent)?;
        let (provenance, origin) = origin_in_sql(&there, |name| format!("{name}::text"));
        let mut conditions = Vec::new();
        let mut shown = Vec::new();
        // A cast to numeric(10,2) would round the question, and find another row.
        let types = base_types(&mut lease, existing.oid).await;
        let types = types.map_err(|error| lease.place().failure(&doing, error))?;
        for (place, (name, _)) in asked.iter().enumerate() {
            let sql = types.get(name).map_or("text", String::as_str);
            conditions.push(format!("{} = (${}::text::{sql})", quote(name), place + 1));
            shown.push(format!("{}::text", quote(name)));
        }
        let sql = format!(
            "SELECT {}, {} FROM {} WHERE {} LIMIT {}",
            origin.join(", "),
            shown.join(", "),
            target.sql(),
            conditions.join(" AND "),
            u64::from(limit) + 1
        );
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        lease.must(&doing, "SET TRANSACTION READ ONLY").await?;
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for (_, value) in &asked {
            query = query.bind(*value);
        }
        let rows = query
            .fetch_all(lease.connection())
            .await
            .map_err(|error| match code(&error) {
                // What PostgreSQL says of a text that is no value of the type.
                Some("22P02" | "22003" | "22007" | "22008" | "42846") => Failure::permanent(format!(
                    "table {}: a value doesn't fit its column: {error}",
                    target.text()
                )),
                _ => lease.place().failure(&doing, error),
            })?;
        let names: Vec<String> = asked.iter().map(|(name, _)| name.clone()).collect();
        let found: Result<Vec<FoundRow>, sqlx::Error> =
            rows.iter().take(limit as usize).map(|row| found(row, &names)).collect();
        let found = found.map_err(|error| lease.place().failure(&doing, error))?;
        lease.must(&doing, "COMMIT").await?;
        let publishers = publishers(&mut lease, &target)
            .await
            .map_err(|error| lease.place().failure(&doing, error))?;
        lease.give_back();
        Ok(Looked {
            table: target.text(),
            provenance,
            more: rows.len() > limit as usize,
            rows: found,
            publishers,
        })
    }
}

async fn publishers(lease: &mut Lease, target: &Target) -> Result<Vec<Publisher>, sqlx::Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('haulage.loads') IS NOT NULL")
        .fetch_one(lease.connection())
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "{PUBLISHERS} ORDER BY sequence DESC LIMIT {NAMED}"
    )))
    .bind(target.text())
    .bind(-1_i64)
    .fetch_all(lease.connection())
    .await?;
    rows.iter().map(|row| Ok(publisher(row)?.0)).collect()
}

fn publisher(row: &PgRow) -> Result<(Publisher, Way), sqlx::Error> {
    let method: String = row.try_get(5)?;
    let publisher = Publisher {
        run: RunId::new(row.try_get::<String, _>(0)?),
        load: LoadName::new(row.try_get::<String, _>(1)?),
        mode: row.try_get(2)?,
        replaces: row.try_get::<Option<String>, _>(3)?.map(RunId::new),
        at: row.try_get::<Option<String>, _>(4)?.unwrap_or_default(),
    };
    Ok((publisher, way(Method::parse(&method))))
}

fn found(row: &PgRow, names: &[String]) -> Result<FoundRow, sqlx::Error> {
    let line: Option<String> = row.try_get(2)?;
    let mut key = Vec::new();
    for (place, name) in names.iter().enumerate() {
        key.push((
            name.clone(),
            row.try_get::<Option<String>, _>(3 + place)?.unwrap_or_default(),
        ));
    }
    Ok(FoundRow {
        key,
        run: row.try_get::<Option<String>, _>(0)?.map(RunId::new),
        chunk: row.try_get(1)?,
        line: line.and_then(|line| line.parse().ok()),
    })
}

pub(super) fn way(method: Option<Method>) -> Way {
    match method {
        Some(Method::Swap | Method::Rewrite) | None => Way::Whole,
        Some(Method::Append) => Way::Append,
        Some(Method::AppendByKey) => Way::AppendByKey,
        Some(Method::Merge) => Way::Merge,
    }
}

/// How values of an Arrow type come back from a column, as it is now.
fn back(arrow: &DataType, column: &TargetColumn) -> Back {
    let Some(how) = encoding(arrow, column.kind) else {
        return Back::Changed(format!(
            "it is {} now, where a load puts no {}",
            column.sql,
            types::name(arrow)
        ));
    };
    if how.wire == Wire::Input {
        return Back::LeftOut(format!("{} keeps a text otherwise than it was written", column.sql));
    }
    let Some(plain) = read_as_text(arrow) else {
        return Back::LeftOut(format!("{} is not read back", column.sql));
    };
    let is_float = matches!(plain, DataType::Float32 | DataType::Float64);
    match column.kind {
        Kind::Jsonb => Back::LeftOut("jsonb keeps a document otherwise than it was written".to_owned()),
        Kind::Uuid => Back::LeftOut("uuid keeps a value otherwise than it was written".to_owned()),
        Kind::Text if column.sql == "character" || column.sql.starts_with("character(") => {
            Back::LeftOut(format!("{} fills up with blanks", column.sql))
        }
        Kind::Float4 | Kind::Float8 if !is_float => {
            Back::LeftOut(format!("{} keeps whole numbers as others", column.sql))
        }
        Kind::Float8 => Back::As(DataType::Float64),
        Kind::Numeric(Some((_, scale))) => match i8::try_from(scale) {
            Ok(scale @ 0..=38) => Back::As(DataType::Decimal128(38, scale)),
            Ok(_) | Err(_) => Back::LeftOut(format!("{} has digits that can't be read back", column.sql)),
        },
        Kind::Timestamp(_) if plain == DataType::Date32 => Back::LeftOut("timestamp keeps dates as moments".to_owned()),
        Kind::Bool
        | Kind::Int2
        | Kind::Int4
        | Kind::Int8
        | Kind::Float4
        | Kind::Numeric(None)
        | Kind::Text
        | Kind::Varchar(_)
        | Kind::Json
        | Kind::Bytea
        | Kind::Date
        | Kind::Time(_)
        | Kind::Timestamp(_)
        | Kind::Timestamptz(_)
        | Kind::Input
        | Kind::Other => Back::As(plain),
    }
}
