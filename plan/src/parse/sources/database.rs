//! Sources that are a table or a query of a database: `postgres:`, `mysql:` and `sqlite:`.

use super::{Declared, incremental, query};
use crate::definition::{DatabaseKind, DatabaseRows, DatabaseSource, SourceKind};
use crate::diagnostics::Report;
use crate::parse::draft::Gaps;
use crate::parse::fields;

/// Chunks are about this large unless the file says otherwise.
const CHUNK_BYTES: u64 = 16 << 20;
/// A chunk costs a lease, a marker and a transaction: cutting finer than this only costs.
const MIN_CHUNK_BYTES: u64 = 64 << 10;

/// The keys of a PostgreSQL source, beside those that every source has.
pub(super) const POSTGRES_KEYS: &[&str] = &["postgres", "table", "query", "chunk_size", "incremental"];
/// The keys of a MySQL or MariaDB source, beside those that every source has.
pub(super) const MYSQL_KEYS: &[&str] = &["mysql", "table", "query", "chunk_size", "incremental"];
/// The keys of a SQLite source, beside those that every source has.
pub(super) const SQLITE_KEYS: &[&str] = &["sqlite", "table", "query", "chunk_size"];

pub(super) fn postgres(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let at = connection(report, &declared, "postgres");
    read(report, DatabaseKind::Postgres, at, &declared, gaps)
}

pub(super) fn mysql(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let at = connection(report, &declared, "mysql");
    read(report, DatabaseKind::Mysql, at, &declared, gaps)
}

/// The name of the connection that `key` says; empty if it says none.
fn connection(report: &mut Report, declared: &Declared<'_>, key: &str) -> String {
    let what = &declared.what;
    let Some((name, place)) = declared
        .fields
        .get(key)
        .and_then(|node| fields::text(report, node, &format!("`{key}` of {what}")))
    else {
        return String::new();
    };
    // What would be an address doesn't belong into a file that others read.
    if name.contains("://") {
        report.help(
            place,
            format!("`{key}` of {what} is the name of a connection, not its address"),
            format!("write `{key}: crm`, and start nodes with `--source crm={key}://...`"),
        );
        return String::new();
    }
    fields::name(report, "connection's name", name, place, 63, false);
    name.to_owned()
}

pub(super) fn sqlite(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let path = declared.filled(report, gaps, "sqlite", "the path").unwrap_or_default();
    if path.starts_with("s3://") {
        let place = declared.fields.get("sqlite").map(|node| node.place).unwrap_or_default();
        report.help(
            place,
            format!("{} is in S3, where SQLite can't read it", declared.what),
            "name a file that nodes have on their disk",
        );
    }
    read(report, DatabaseKind::Sqlite, path, &declared, gaps)
}

fn read(report: &mut Report, kind: DatabaseKind, at: String, declared: &Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let Declared { key, what, fields, .. } = declared;
    let (table, text) = (fields.get("table"), fields.get("query"));
    let rows = match (table, text) {
        (Some(node), None) => {
            let table = fields::text(report, node, &format!("`table` of {what}"));
            DatabaseRows::Table(table.map(|(table, _)| table.to_owned()).unwrap_or_default())
        }
        (None, Some(node)) => {
            let text = fields::text(report, node, &format!("`query` of {what}"));
            let parts = text.map(|(text, place)| query::parts(report, kind, text, place, declared, gaps));
            DatabaseRows::Query(parts.unwrap_or_default())
        }
        (Some(_), Some(node)) => {
            let help = "keep one of the two";
            report.help(node.place, format!("{what} has a `table` and a `query`"), help);
            DatabaseRows::Table(String::new())
        }
        (None, None) => {
            let help = "write `table: orders`, or `query: \"SELECT ...\"`";
            report.help(key.place, format!("{what} doesn't say which rows it reads"), help);
            DatabaseRows::Table(String::new())
        }
    };
    let mut chunk_bytes = CHUNK_BYTES;
    if let Some(node) = fields.get("chunk_size")
        && let Some(size) = fields::bytes(report, node, &format!("`chunk_size` of {what}"))
    {
        if size < MIN_CHUNK_BYTES {
            report.help(
                node.place,
                format!("chunks of {size} bytes are too small"),
                "64KiB is the least; 16MiB is usual",
            );
        }
        chunk_bytes = size.max(MIN_CHUNK_BYTES);
    }
    let location = match &rows {
        DatabaseRows::Table(table) => format!("{at}: {table}"),
        DatabaseRows::Query(_) => format!("{at}: query"),
    };
    SourceKind::Database(DatabaseSource {
        kind,
        at,
        rows,
        columns: declared.columns.clone(),
        chunk_bytes,
        location,
        incremental: fields
            .get("incremental")
            .and_then(|node| incremental::read(report, node, declared)),
    })
}
