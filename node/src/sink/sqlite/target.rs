//! The target in a SQLite file, and whether a load's rows fit it.
//!
//! SQLite stores whatever it is given, converted by the column's affinity. A load fits a column only if that conversion
//! changes no value: text in a NUMERIC column would turn `007` into 7.

use datafusion::arrow::datatypes::{DataType, Field};
use haulage_core::failure::Failure;
use haulage_core::words::counted;
use haulage_plan::contract::WiderType;
use haulage_plan::definition::Mode;
use haulage_plan::{PROVENANCE, types};
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::Sqlite;
use super::bookkeeping::Method;
use crate::sink::name::{TableName, quote, quote_all};
use crate::sink::{Change, ColumnChange, Identity, Inspection, LoadContext};

/// The column that tells which run a row came with.
pub(super) const RUN_COLUMN: &str = "_haulage_run";
/// Files up to this size have their target counted.
const COUNTED_BYTES: u64 = 512 << 20;

/// What a value becomes in SQLite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Null,
    /// Of at most 32 bits, or of 64.
    Integer {
        wide: bool,
    },
    Real,
    Text,
    /// A date or time: text that no affinity takes for a number.
    Moment,
    /// Digits as text.
    Decimal,
    Blob,
}

/// A column of the target.
#[derive(Debug, Clone)]
pub(super) struct TargetColumn {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) not_null: bool,
    pub(super) filled: bool,
    pub(super) generated: bool,
}

/// A table that exists.
#[derive(Debug, Clone)]
pub(super) struct Existing {
    pub(super) is_table: bool,
    pub(super) columns: Vec<TargetColumn>,
    /// Column sets that are unique.
    pub(super) unique: Vec<Vec<String>>,
}

/// A target, resolved.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) table: String,
    pub(super) existing: Option<Existing>,
}

/// How a load goes into its target.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    /// Column definitions of the staging table.
    pub(super) definitions: String,
    pub(super) method: Method,
    /// What has to become of the target's columns first.
    pub(super) evolve: Vec<ColumnChange>,
}

impl Existing {
    /// A column by its name, which SQLite compares without regard to ASCII case.
    pub(super) fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Whether rows can be matched by these columns.
    pub(super) fn has_unique(&self, key: &[String]) -> bool {
        self.unique.iter().any(|columns| {
            columns.len() == key.len()
                && key
                    .iter()
                    .all(|name| columns.iter().any(|column| column.eq_ignore_ascii_case(name)))
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

/// The table's name: `main.` and, so that one pipeline file serves both databases, `public.` say nothing here.
pub(super) fn table_name(table: &str) -> Result<String, Failure> {
    let name = TableName::parse(table)?;
    match name.schema.as_deref() {
        None | Some("main" | "public")
            if !name.table.starts_with("_haulage_") && !name.table.starts_with("sqlite_") =>
        {
            Ok(name.table)
        }
        None | Some("main" | "public") => Err(Failure::permanent(format!(
            "table {table} has a reserved name; name the table otherwise"
        ))),
        Some(schema) => Err(Failure::permanent(format!(
            "table {table}: SQLite has no schema {schema}; write {} alone",
            name.table
        ))),
    }
}

/// Finds and describes the target.
pub(super) async fn describe(connection: &mut SqliteConnection, table: &str) -> Result<Target, sqlx::Error> {
    let kind: Option<String> = sqlx::query_scalar(
        "SELECT type FROM sqlite_schema WHERE name = $1 COLLATE NOCASE AND type IN ('table', 'view')",
    )
    .bind(table)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(kind) = kind else {
        return Ok(Target {
            table: table.to_owned(),
            existing: None,
        });
    };
    let rows =
        sqlx::query("SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo($1)")
            .bind(table)
            .fetch_all(&mut *connection)
            .await?;
    let mut columns = Vec::new();
    let mut primary = Vec::new();
    for row in &rows {
        let name: String = row.try_get(0)?;
        let declared: String = row.try_get(1)?;
        if row.try_get::<i64, _>(4)? > 0 {
            primary.push(name.clone());
        }
        columns.push(TargetColumn {
            name,
            declared,
            not_null: row.try_get::<i64, _>(2)? != 0,
            filled: row.try_get(3)?,
            generated: row.try_get::<i64, _>(5)? > 1,
        });
    }
    if let [only] = primary.as_slice() {
        // A single INTEGER PRIMARY KEY is the row's id, which SQLite fills in.
        for column in columns.iter_mut().filter(|column| column.name == *only) {
            column.filled |= column.declared.eq_ignore_ascii_case("INTEGER");
        }
    }
    let mut unique = if primary.is_empty() { Vec::new() } else { vec![primary] };
    let indexes: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_index_list($1) WHERE \"unique\" = 1 AND partial = 0")
            .bind(table)
            .fetch_all(&mut *connection)
            .await?;
    for index in indexes {
        let names: Vec<Option<String>> = sqlx::query_scalar("SELECT name FROM pragma_index_info($1)")
            .bind(index)
            .fetch_all(&mut *connection)
            .await?;
        unique.extend(names.into_iter().collect::<Option<Vec<String>>>());
    }
    Ok(Target {
        table: table.to_owned(),
        existing: Some(Existing {
            is_table: kind == "table",
            columns,
            unique,
        }),
    })
}

/// What a value of an Arrow type becomes. `None` if SQLite has no place for it.
pub(super) fn class(arrow: &DataType) -> Option<Class> {
    Some(match arrow {
        DataType::Null => Class::Null,
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => Class::Integer { wide: false },
        DataType::Int64 | DataType::UInt64 => Class::Integer { wide: true },
        DataType::Float32 | DataType::Float64 => Class::Real,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Class::Text,
        DataType::Date32 | DataType::Time32(_) | DataType::Time64(_) | DataType::Timestamp(_, _) => Class::Moment,
        DataType::Decimal32(_, _) | DataType::Decimal64(_, _) | DataType::Decimal128(_, _) => Class::Decimal,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Class::Blob,
        DataType::Dictionary(_, values) => return class(values),
        _ => return None,
    })
}

fn declared(class: Class) -> &'static str {
    match class {
        Class::Integer { .. } => "INTEGER",
        Class::Real => "REAL",
        Class::Text | Class::Moment | Class::Decimal | Class::Null => "TEXT",
        Class::Blob => "BLOB",
    }
}

/// Whether a column that is declared so keeps such values as they are. The rules are SQLite's, in its order.
pub(super) fn keeps(class: Class, declared: &str) -> bool {
    let declared = declared.to_ascii_uppercase();
    let has = |part: &str| declared.contains(part);
    if has("INT") {
        matches!(class, Class::Integer { .. } | Class::Null)
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        matches!(class, Class::Text | Class::Moment | Class::Decimal | Class::Null)
    } else if has("BLOB") || declared.is_empty() || declared == "ANY" {
        true
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        matches!(class, Class::Real | Class::Integer { wide: false } | Class::Null)
    } else {
        match class {
            Class::Integer { .. } | Class::Real | Class::Null => true,
            Class::Moment => has("DATE") || has("TIME"),
            Class::Text | Class::Decimal | Class::Blob => false,
        }
    }
}

/// Holds the load against its target. `Err` has a line for everything that doesn't fit.
pub(super) fn fit(load: &LoadContext, target: &Target) -> Result<Fit, Vec<String>> {
    let mut misfits = load.only_for_files();
    for key in &load.key {
        if load.schema.field_with_name(key).is_err() {
            misfits.push(format!(
                "key column {key} is not among the load's columns; add it to its step, or correct `key`"
            ));
        }
    }
    if load.mode == Mode::Merge && load.key.is_empty() {
        misfits.push("merge needs a key; add `key: [...]` to the load".to_owned());
    }
    if load.mode == Mode::Append && !load.provenance && load.schema.field_with_name(RUN_COLUMN).is_ok() {
        misfits.push(format!(
            "column {RUN_COLUMN} is Haulage's own; give the load's column another name"
        ));
    }
    if load.schema.fields().is_empty() {
        misfits.push(format!("load {} has no columns", load.load));
    }
    let mut definitions = Vec::new();
    let mut evolve = Vec::new();
    for field in load.schema.fields() {
        let Some(class) = class(field.data_type()) else {
            misfits.push(format!(
                "column {}: SQLite has no place for {}; CAST it in the step's SQL",
                field.name(),
                types::name(field.data_type())
            ));
            continue;
        };
        let required = !field.is_nullable() || load.key.contains(field.name());
        match &target.existing {
            None => definitions.push(definition(field.name(), declared(class), required)),
            Some(existing) if load.evolution.adds_columns && existing.column(field.name()).is_none() => {
                definitions.push(definition(field.name(), declared(class), required));
                evolve.push(ColumnChange {
                    column: field.name().clone(),
                    change: Change::Added,
                    from: None,
                    to: Some(declared(class).to_owned()),
                });
            }
            Some(existing) => match existing_column(load, field, class, target, existing) {
                Ok(column) => {
                    definitions.push(definition(field.name(), &column.declared, required || column.not_null));
                }
                Err(misfit) => misfits.push(misfit),
            },
        }
    }
    let method = match &target.existing {
        None => match load.mode {
            Mode::Replace => Method::Rename,
            Mode::Append => Method::Append,
            Mode::Merge => Method::Merge,
        },
        Some(existing) => existing_method(load, target, existing, &mut misfits),
    };
    if misfits.is_empty() {
        Ok(Fit {
            definitions: definitions.join(", "),
            method,
            evolve,
        })
    } else {
        Err(misfits)
    }
}

fn definition(name: &str, declared: &str, required: bool) -> String {
    format!("{} {declared}{}", quote(name), if required { " NOT NULL" } else { "" })
}

fn existing_column<'a>(
    load: &LoadContext,
    field: &Field,
    class: Class,
    target: &Target,
    existing: &'a Existing,
) -> Result<&'a TargetColumn, String> {
    let (table, name) = (&target.table, field.name());
    let typed = types::name(field.data_type());
    let Some(column) = existing.column(name) else {
        let otherwise = match load.provenance && PROVENANCE.contains(&name.as_str()) {
            true => "leave `provenance` out",
            false => "leave it out in the step's SQL",
        };
        return Err(format!(
            "column {name} ({typed}) is not in {table}; ALTER TABLE {} ADD COLUMN {} {}, or {otherwise}, or write \
             `on_new_column: add` for load {}",
            quote(table),
            quote(name),
            declared(class),
            load.load
        ));
    };
    if column.generated {
        return Err(format!(
            "column {name} of {table} is generated; leave it out in the step's SQL"
        ));
    }
    if !keeps(class, &column.declared) {
        return Err(format!(
            "column {name} is {typed} in the load and {} in {table}, which would change its values; CAST it in the \
             step's SQL, or make the column {}{}",
            column.declared,
            declared(class),
            match load.evolution.on_wider_type {
                Some(WiderType::Widen) => ", since SQLite can't change a column's type",
                Some(WiderType::Fail) | None => "",
            }
        ));
    }
    Ok(column)
}

fn existing_method(load: &LoadContext, target: &Target, existing: &Existing, misfits: &mut Vec<String>) -> Method {
    let table = &target.table;
    if !existing.is_table {
        misfits.push(format!("{table} is no table; load into a table, or drop it"));
    }
    for column in &existing.columns {
        let supplied = load
            .schema
            .fields()
            .iter()
            .any(|field| field.name().eq_ignore_ascii_case(&column.name));
        let ours = column.name == RUN_COLUMN && load.mode == Mode::Append;
        if column.not_null && !column.filled && !column.generated && !supplied && !ours {
            misfits.push(format!(
                "column {} ({}) of {table} is NOT NULL without a default, and the load has none; add it to the step's SQL",
                column.name, column.declared
            ));
        }
    }
    match load.mode {
        Mode::Replace => Method::Rewrite,
        Mode::Merge => {
            if !load.key.is_empty() && !existing.has_unique(&load.key) {
                misfits.push(format!(
                    "{table} has no unique index on its key ({}), which merge needs; CREATE UNIQUE INDEX ... ON {} ({})",
                    load.key.join(", "),
                    quote(table),
                    quote_all(&load.key),
                ));
            }
            Method::Merge
        }
        Mode::Append if existing.column(RUN_COLUMN).is_some() => Method::Append,
        Mode::Append => {
            let advice = format!("ALTER TABLE {} ADD COLUMN {RUN_COLUMN} TEXT", quote(table));
            if load.key.is_empty() {
                misfits.push(format!(
                    "appended rows of {table} could not be found again: it has no column {RUN_COLUMN}, and the load no \
                     key; {advice}"
                ));
            } else if let Some(replaced) = &load.replaces {
                misfits.push(format!(
                    "the rows of run {replaced} can't be told from others in {table}, so they can't be replaced; {advice} \
                     before the first run"
                ));
            }
            Method::AppendByKey
        }
    }
}

/// Permanent failure that lists what doesn't fit.
pub(super) fn misfit(load: &LoadContext, target: &Target, misfits: &[String]) -> Failure {
    Failure::permanent(format!(
        "load {} does not fit {}: {}",
        load.load,
        target.table,
        misfits.join("; ")
    ))
}

/// The statements that make a missing target with its key.
pub(super) fn create_table(load: &LoadContext, table: &str, fit: &Fit, index: &str) -> Vec<String> {
    let run = if load.mode == Mode::Append && !load.provenance {
        format!(", {RUN_COLUMN} TEXT")
    } else {
        String::new()
    };
    let mut steps = vec![format!("CREATE TABLE {} ({}{run})", quote(table), fit.definitions)];
    if !load.key.is_empty() {
        steps.push(create_index(load, table, index));
    }
    steps
}

/// The statements that change the columns of a table.
pub(super) fn evolve(table: &str, changes: &[ColumnChange]) -> Vec<String> {
    let added = changes.iter().filter(|change| change.change == Change::Added);
    added
        .filter_map(|change| {
            let (column, to) = (quote(&change.column), change.to.as_deref()?);
            Some(format!("ALTER TABLE {} ADD COLUMN {column} {to}", quote(table)))
        })
        .collect()
}

/// Columns of the target that the load has nothing for.
fn unfilled(load: &LoadContext, target: &Target) -> Vec<ColumnChange> {
    let columns = target.existing.iter().flat_map(|existing| &existing.columns);
    let ours = |name: &str| name == RUN_COLUMN && load.mode != Mode::Replace;
    let supplied = |name: &str| {
        load.schema
            .fields()
            .iter()
            .any(|field| field.name().eq_ignore_ascii_case(name))
    };
    columns
        .filter(|column| !column.generated && !ours(&column.name) && !supplied(&column.name))
        .map(|column| ColumnChange {
            column: column.name.clone(),
            change: Change::Unfilled,
            from: Some(column.declared.clone()),
            to: None,
        })
        .collect()
}

/// The statement that makes the key unique.
pub(super) fn create_index(load: &LoadContext, table: &str, index: &str) -> String {
    format!(
        "CREATE UNIQUE INDEX {} ON {} ({})",
        quote(index),
        quote(table),
        quote_all(&load.key)
    )
}

impl Sqlite {
    pub(super) async fn look(&self, load: &LoadContext) -> Result<Inspection, Failure> {
        let table = table_name(&load.table)?;
        let doing = format!("looking at table {table}");
        self.file.check().await?;
        let mut target = Target {
            table: table.clone(),
            existing: None,
        };
        let mut rows = None;
        if let Some(mut connection) = self.file.reader().await? {
            target = describe(&mut connection, &table)
                .await
                .map_err(|error| self.file.failure(&doing, error))?;
            let size = tokio::fs::metadata(self.file.path())
                .await
                .map_or(0, |metadata| metadata.len());
            if target.existing.as_ref().is_some_and(|existing| existing.is_table) && size <= COUNTED_BYTES {
                let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {}", quote(&table)));
                let counted = sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await;
                rows = Some(counted.map_err(|error| self.file.failure(&doing, error))? as u64);
            }
        }
        // SQLite compares names without regard to ASCII case.
        let identity = format!("sqlite {} {:?}", self.file.identity().await, table.to_ascii_lowercase());
        let mut inspection = Inspection {
            identity: Identity::new(identity),
            exists: target.existing.is_some(),
            rows,
            ddl: Vec::new(),
            changes: Vec::new(),
            columns: Vec::new(),
            misfits: Vec::new(),
        };
        match fit(load, &target) {
            Ok(fit) => {
                if target.existing.is_none() {
                    inspection.ddl = create_table(load, &table, &fit, &format!("{table}_key"));
                }
                inspection.ddl.extend(evolve(&table, &fit.evolve));
                inspection.changes.push(change(load, &target, rows));
                inspection.columns = fit.evolve;
                inspection.columns.extend(unfilled(load, &target));
            }
            Err(misfits) => inspection.misfits = misfits,
        }
        Ok(inspection)
    }
}

fn change(load: &LoadContext, target: &Target, rows: Option<u64>) -> String {
    let table = &target.table;
    let there = rows.map_or("the rows".to_owned(), |rows| format!("the {}", counted(rows, "row")));
    match (&target.existing, load.mode) {
        (None, _) => format!("creates {table} with the run's rows"),
        (Some(_), Mode::Replace) => format!("replaces {there} of {table} in one transaction"),
        (Some(_), Mode::Append) => format!("adds rows to {there} of {table}"),
        (Some(_), Mode::Merge) => format!(
            "updates rows of {table} that have the same {}, and adds the others, to {there} there",
            load.key.join(", ")
        ),
    }
}
