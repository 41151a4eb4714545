//! Whether a load's rows fit its target, how each column is written, and the statements that make what is missing.
//!
//! Pure: from a description of the target to a [`Fit`], or to misfits in words.

use datafusion::arrow::datatypes::{DataType, Field};
use haulage_plan::contract::WiderType;
use haulage_plan::definition::Mode;
use haulage_plan::{PROVENANCE, types};

use super::bookkeeping::Method;
use super::encode::Column;
use super::evolve::wider;
use super::rights::impossible;
use super::target::{Existing, RUN_COLUMN, Target, TargetColumn};
use super::types::{Encoding, Kind, column_type, encoding, kind};
use crate::sink::name::{quote, quote_all};
use crate::sink::{Change, ColumnChange, LoadContext};

/// How a load goes into its target.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    /// How each column of the load is written, in the load's order.
    pub(super) columns: Vec<Column>,
    /// The SQL type and NOT NULL of each, in the staging table.
    pub(super) types: Vec<(String, bool)>,
    /// How it will be published, as things are now.
    pub(super) method: Method,
    /// Why replacing is not a swap; empty if it is one.
    pub(super) ties: Vec<String>,
    /// What has to become of the target's columns first.
    pub(super) evolve: Vec<ColumnChange>,
}

impl Fit {
    /// The load's column names.
    pub(super) fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|column| column.name.as_str()).collect()
    }

    /// Column definitions of the staging table, or of a new target.
    pub(super) fn definitions(&self) -> String {
        let definitions = self.columns.iter().zip(&self.types).map(|(column, (sql, not_null))| {
            format!(
                "{} {sql}{}",
                quote(&column.name),
                if *not_null { " NOT NULL" } else { "" }
            )
        });
        definitions.collect::<Vec<_>>().join(", ")
    }
}

/// Holds the load against its target. `Err` has a line for everything that doesn't fit.
pub(super) fn fit(load: &LoadContext, target: &Target) -> Result<Fit, Vec<String>> {
    let mut misfits = load.only_for_files();
    if load.schema.fields().is_empty() {
        misfits.push(format!("load {} has no columns", load.load));
    }
    for key in &load.key {
        if load.schema.field_with_name(key).is_err() {
            misfits.push(format!(
                "key column {key} is not among the load's columns; add it to its step, or correct `key`"
            ));
        }
    }
    if load.mode == Mode::Append && !load.provenance && load.schema.field_with_name(RUN_COLUMN).is_ok() {
        misfits.push(format!(
            "column {RUN_COLUMN} is Haulage's own; give the load's column another name"
        ));
    }
    if load.mode == Mode::Merge && load.key.is_empty() {
        misfits.push("merge needs a key; add `key: [...]` to the load".to_owned());
    }
    let fit = match &target.existing {
        None => fit_new(load, target, &mut misfits),
        Some(existing) => fit_existing(load, target, existing, &mut misfits),
    };
    if misfits.is_empty() { Ok(fit) } else { Err(misfits) }
}

fn fit_new(load: &LoadContext, target: &Target, misfits: &mut Vec<String>) -> Fit {
    if !target.schema_exists {
        misfits.push(format!(
            "schema {0} does not exist; create it with CREATE SCHEMA {1}",
            target.schema,
            quote(&target.schema)
        ));
    }
    let mut columns = Vec::new();
    let mut types = Vec::new();
    for field in load.schema.fields() {
        misfits.extend(impossible(field.name()));
        let sql = column_type(field.data_type());
        let how = sql
            .as_deref()
            .and_then(|sql| encoding(field.data_type(), kind_of_new(sql, field.data_type())));
        let (Some(sql), Some(encoding)) = (sql, how) else {
            misfits.push(format!(
                "column {}: PostgreSQL has no type for {}; CAST it in the step's SQL",
                field.name(),
                types::name(field.data_type())
            ));
            continue;
        };
        columns.push(Column {
            name: field.name().clone(),
            encoding,
        });
        // A key without a value is no key: the new table's primary key says so.
        types.push((sql, !field.is_nullable() || load.key.contains(field.name())));
    }
    let method = match load.mode {
        Mode::Replace => Method::Swap,
        Mode::Append => Method::Append,
        Mode::Merge => Method::Merge,
    };
    Fit {
        columns,
        types,
        method,
        ties: Vec::new(),
        evolve: Vec::new(),
    }
}

/// The kind of a type that [`column_type`] names, for the Arrow type it was made from.
pub(super) fn kind_of_new(sql: &str, arrow: &DataType) -> super::types::Kind {
    match (sql, arrow) {
        ("boolean", _) => kind("bool", false, -1),
        ("smallint", _) => kind("int2", false, -1),
        ("integer", _) => kind("int4", false, -1),
        ("bigint", _) => kind("int8", false, -1),
        ("real", _) => kind("float4", false, -1),
        ("double precision", _) => kind("float8", false, -1),
        ("timestamp with time zone", _) => kind("timestamptz", false, -1),
        (numeric, _) if numeric.starts_with("numeric") => kind("numeric", false, -1),
        (same, _) => kind(same, false, -1),
    }
}

fn fit_existing(load: &LoadContext, target: &Target, existing: &Existing, misfits: &mut Vec<String>) -> Fit {
    let before = misfits.len();
    let fit = fit_columns(load, target, existing, misfits);
    let what = match existing.relkind.as_str() {
        "r" | "p" => return fit,
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        _ => "something else",
    };
    // What its columns lack doesn't matter then.
    misfits.truncate(before);
    misfits.push(format!(
        "{} is {what}, not a table; load into a table, or drop it",
        target.text()
    ));
    fit
}

fn fit_columns(load: &LoadContext, target: &Target, existing: &Existing, misfits: &mut Vec<String>) -> Fit {
    let table = target.text();
    let mut columns = Vec::new();
    let mut types = Vec::new();
    let mut evolve = Vec::new();
    for field in load.schema.fields() {
        let (column, fitted) = match existing.column(field.name()) {
            Some(column) => (Some(column), one_column(load, target, field, column)),
            None => {
                misfits.extend(impossible(field.name()));
                (None, new_column(load, target, field))
            }
        };
        match fitted {
            Ok((encoding, sql, change)) => {
                columns.push(Column {
                    name: field.name().clone(),
                    encoding,
                });
                let not_null = column.is_some_and(|column| column.not_null);
                types.push((sql, not_null || load.key.contains(field.name())));
                evolve.extend(change);
            }
            Err(misfit) => misfits.push(misfit),
        }
    }
    for column in &existing.columns {
        let supplied = load.schema.field_with_name(&column.name).is_ok();
        let ours = column.name == RUN_COLUMN && load.mode == Mode::Append;
        if column.not_null && !column.filled && !supplied && !ours {
            misfits.push(format!(
                "column {0} ({1}) of {table} is NOT NULL without a default, and the load has none; add it to the step's \
                 SQL, or ALTER TABLE {2} ALTER COLUMN {3} SET DEFAULT ...",
                column.name,
                column.sql,
                target.sql(),
                quote(&column.name),
            ));
        }
    }
    let method = method(load, target, existing, misfits);
    Fit {
        columns,
        types,
        method,
        ties: existing.ties.clone(),
        evolve,
    }
}

/// How a column is written, the type that it is written to, and what becomes of it first; or why it doesn't fit.
type Fitted = Result<(Encoding, String, Option<ColumnChange>), String>;

fn new_column(load: &LoadContext, target: &Target, field: &Field) -> Fitted {
    let arrow = field.data_type();
    let sql = column_type(arrow);
    let how = sql
        .as_deref()
        .and_then(|sql| encoding(arrow, kind_of_new(sql, arrow)))
        .filter(|_| load.evolution.adds_columns);
    match (sql, how) {
        (Some(sql), Some(encoding)) => {
            let change = ColumnChange {
                column: field.name().clone(),
                change: Change::Added,
                from: None,
                to: Some(sql.clone()),
            };
            Ok((encoding, sql, Some(change)))
        }
        (sql, _) => Err(format!(
            "column {0} ({1}) is not in {2}; ALTER TABLE {3} ADD COLUMN {4} {5}, or {7}, or write `on_new_column: add` \
             for load {6}",
            field.name(),
            types::name(arrow),
            target.text(),
            target.sql(),
            quote(field.name()),
            sql.unwrap_or_else(|| "text".to_owned()),
            load.load,
            match load.provenance && PROVENANCE.contains(&field.name().as_str()) {
                true => "leave `provenance` out",
                false => "leave it out in the step's SQL",
            },
        )),
    }
}

fn one_column(load: &LoadContext, target: &Target, field: &Field, column: &TargetColumn) -> Fitted {
    let (arrow, table) = (field.data_type(), target.text());
    if column.generated || column.identity_always {
        return Err(format!(
            "column {} of {table} is generated; leave it out in the step's SQL",
            column.name
        ));
    }
    let wider = wider(arrow, column);
    if let (Some(wider), Some(WiderType::Widen)) = (&wider, load.evolution.on_wider_type)
        && let Some(encoding) = encoding(arrow, wider.1)
    {
        if !column.used_by.is_empty() && !can_swap(load, target) {
            return Err(format!(
                "column {} of {table} would be widened from {} to {}, which can't be done while it is used by {}; drop \
                 that first, or CAST the column in the step's SQL",
                column.name,
                column.sql,
                wider.0,
                column.used_by.join(", ")
            ));
        }
        let change = ColumnChange {
            column: field.name().clone(),
            change: Change::Widened,
            from: Some(column.sql.clone()),
            to: Some(wider.0.clone()),
        };
        return Ok((encoding, wider.0.clone(), Some(change)));
    }
    let refused = wider.is_some() && load.evolution.on_wider_type == Some(WiderType::Fail);
    match encoding(arrow, column.kind).filter(|_| !refused) {
        Some(encoding) => Ok((encoding, column.sql.clone(), None)),
        None if column.kind == Kind::Input => Err(format!(
            "column {0} is {1} in the load and {2} in {table}; write CAST({4} AS text) AS {4} in the step's SQL, in the form \
             that {2} is read from, or ALTER TABLE {3} ALTER COLUMN {4} TYPE {5}",
            field.name(),
            types::name(arrow),
            column.sql,
            target.sql(),
            quote(field.name()),
            column_type(arrow).unwrap_or_else(|| "text".to_owned()),
        )),
        None if is_text(arrow) && would_round(column.kind) => Err(format!(
            "column {0} is text in the load and {1} in {table}, which may round or cut it without a word; ALTER TABLE {2} ALTER \
             COLUMN {3} TYPE {4}, which takes all of it",
            field.name(),
            column.sql,
            target.sql(),
            quote(field.name()),
            whole(&column.sql),
        )),
        None => Err(format!(
            "column {0} is {1} in the load and {2} in {table}; CAST it in the step's SQL, or ALTER TABLE {3} ALTER \
             COLUMN {4} TYPE {5}{6}",
            field.name(),
            types::name(arrow),
            column.sql,
            target.sql(),
            quote(field.name()),
            column_type(arrow).unwrap_or_else(|| "text".to_owned()),
            if wider.is_some() {
                format!(", or write `on_wider_type: widen` for load {}", load.load)
            } else {
                String::new()
            },
        )),
    }
}

/// Whether a column rounds or cuts a text that it reads, and no step can CAST to what it keeps.
fn would_round(kind: Kind) -> bool {
    match kind {
        Kind::Other | Kind::Time(_) => true,
        Kind::Numeric(Some((precision, scale))) => precision > 38 || scale < 0,
        _ => false,
    }
}

fn is_text(arrow: &DataType) -> bool {
    matches!(arrow, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The type without what it rounds or cuts to: `time without time zone` of `time(0) without time zone`.
fn whole(sql: &str) -> String {
    match (sql, sql.split_once('('), sql.rsplit_once(')')) {
        ("name" | "\"char\"", _, _) => "text".to_owned(),
        (_, Some((before, _)), Some((_, behind))) => format!("{before}{behind}"),
        // `interval day to hour` and its like.
        _ if sql.starts_with("interval") => "interval".to_owned(),
        _ => "text".to_owned(),
    }
}

/// Whether the target stays as it is, and another table takes its place.
fn can_swap(load: &LoadContext, target: &Target) -> bool {
    let ties = target.existing.as_ref().map(|existing| &existing.ties);
    load.mode == Mode::Replace && ties.is_some_and(Vec::is_empty)
}

fn method(load: &LoadContext, target: &Target, existing: &Existing, misfits: &mut Vec<String>) -> Method {
    let table = target.text();
    match load.mode {
        Mode::Replace => {
            if !existing.referenced_by.is_empty() {
                misfits.push(format!(
                    "{table} is referenced by {}, so its rows can't be replaced; use mode merge",
                    existing.referenced_by.join(", ")
                ));
            }
            let whole = existing
                .indexes
                .iter()
                .all(|index| !index.method_and_columns.is_empty());
            if existing.ties.is_empty() && whole {
                Method::Swap
            } else {
                Method::Rewrite
            }
        }
        Mode::Merge => {
            if !load.key.is_empty() && !existing.has_unique(&load.key) {
                misfits.push(format!(
                    "{table} has no unique index on its key ({}), which merge needs; CREATE UNIQUE INDEX ON {} ({})",
                    load.key.join(", "),
                    target.sql(),
                    quote_all(&load.key),
                ));
            }
            Method::Merge
        }
        Mode::Append => append_method(load, target, existing, misfits),
    }
}

fn append_method(load: &LoadContext, target: &Target, existing: &Existing, misfits: &mut Vec<String>) -> Method {
    let advice = format!("ALTER TABLE {} ADD COLUMN {RUN_COLUMN} text", target.sql());
    match existing.column(RUN_COLUMN) {
        Some(column) if !column.kind.is_text() => {
            misfits.push(format!(
                "column {RUN_COLUMN} of {} is {}, and Haulage keeps the run's name there; make it text",
                target.text(),
                column.sql
            ));
            Method::Append
        }
        Some(_) => Method::Append,
        None if load.key.is_empty() => {
            misfits.push(format!(
                "appended rows of {} could not be found again: it has no column {RUN_COLUMN}, and the load no key; {advice}",
                target.text()
            ));
            Method::Append
        }
        None => {
            if let Some(replaced) = &load.replaces {
                misfits.push(format!(
                    "the rows of run {replaced} can't be told from others in {}, so they can't be replaced; {advice} \
                     before the first run",
                    target.text()
                ));
            }
            Method::AppendByKey
        }
    }
}

/// The statement that makes the target, and its primary key.
pub(super) fn create_table(load: &LoadContext, table: &str, fit: &Fit) -> String {
    let mut parts = vec![fit.definitions()];
    if load.mode == Mode::Append && !load.provenance {
        parts.push(format!("{RUN_COLUMN} text"));
    }
    if !load.key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", quote_all(&load.key)));
    }
    format!("CREATE TABLE {table} ({})", parts.join(", "))
}
