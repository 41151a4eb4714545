//! Tables, views and queries of databases as sources.
//!
//! * A chunk is a range of a table's rows by where they lie, or the whole of what can't be cut.
//! * A value comes as text, as the database writes it, and is read by the column's type like a field of a CSV file: what
//!   isn't plainly a value of it goes to quarantine. NULL is no value, and the empty text is a text. What PostgreSQL sends
//!   in a binary form (`form`) is read without its text and comes to the same, which a misfit and a rejected row show.
//! * What a chunk reads doesn't change under it: a PostgreSQL chunk reads in the snapshot that was taken at discovery, and
//!   a SQLite file that has changed since is a permanent failure. A chunk of MySQL reads in a snapshot of its own.
//! * Rows of a table come in the order of where they lie, or of their key, and a checkpoint names the place. Rows of a view
//!   or a query have no place: they are counted and summed up, and a resumed chunk passes over as many, which must come to
//!   the same sum.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::RecordBatch;
use haulage_core::failure::Failure;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::{
    Column, DatabaseKind, DatabaseRows, DatabaseSource, QueryPart, Source as Declared, SourceKind,
};

use super::contracted::Contracted;
use super::files::or_null;
use super::{Binding, Misdeclared, SegmentReader, Source};
use crate::config::NodeConfig;

pub(crate) use incremental::HELD_BACK;

mod feed;
mod form;
mod incremental;
mod mysql;
mod numeric;
mod postgres;
mod raw;
mod reader;
mod sqlite;
mod typed;

pub(super) use self::mysql::in_words;

/// Rows of a segment that is read back.
const READ_BACK_ROWS: u64 = 50_000;

/// The databases that a node knows, by the names of their connections, what the sources of one run share of them, and the
/// node's secrets.
#[derive(Clone, Default)]
pub struct Databases(Option<Arc<Known>>);

struct Known {
    config: NodeConfig,
    /// A number of the run that they are of.
    run: i32,
    servers: Mutex<HashMap<String, Arc<postgres::Server>>>,
}

impl Databases {
    /// Those that the node is configured with. Touches none.
    pub fn of(config: &NodeConfig) -> Self {
        Self::of_run(config, 0)
    }

    /// The same, of a run: `run` is the same number on all nodes.
    pub fn of_run(config: &NodeConfig, run: i32) -> Self {
        Self(Some(Arc::new(Known {
            config: config.clone(),
            run,
            servers: Mutex::default(),
        })))
    }

    fn known(&self, connection: &str) -> Result<&Known, Failure> {
        self.0.as_deref().ok_or_else(|| {
            Failure::permanent(format!(
                "the connection {connection} is not known here; start the node with --source {connection}=ADDRESS"
            ))
        })
    }

    /// The MySQL or MariaDB server behind a connection. Permanent failure if the node doesn't know it. Its sources share
    /// nothing of it.
    fn mysql(&self, connection: &str) -> Result<Arc<mysql::Server>, Failure> {
        let address = self.known(connection)?.config.source(connection)?;
        Ok(Arc::new(mysql::Server::new(connection, &address)?))
    }

    /// The value of a secret, looked up now. Permanent failure, without it, if the node doesn't know it.
    pub(super) fn secret(&self, name: &str) -> Result<String, Failure> {
        match &self.0 {
            Some(known) => known.config.secret(name).map_err(Failure::permanent),
            None => Err(Failure::permanent(format!("secret://{name} is not known here"))),
        }
    }

    /// The PostgreSQL server behind a connection. Permanent failure if the node doesn't know it.
    fn postgres(&self, connection: &str) -> Result<Arc<postgres::Server>, Failure> {
        let known = self.known(connection)?;
        let mut servers = known.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(connection) {
            return Ok(Arc::clone(server));
        }
        let server = postgres::Server::new(connection, &known.config.source(connection)?, known.run)?;
        let server = Arc::new(server);
        servers.insert(connection.to_owned(), Arc::clone(&server));
        Ok(server)
    }
}

/// Ends the snapshots in which the run has read these sources, on all nodes.
pub(crate) async fn end_snapshots(databases: &Databases, sources: impl Iterator<Item = &Declared>) {
    let mut ended = Vec::new();
    for source in sources.filter(|source| !source.lookup) {
        let SourceKind::Database(declared) = &source.kind else {
            continue;
        };
        if declared.kind != DatabaseKind::Postgres || ended.contains(&&declared.at) {
            continue;
        }
        ended.push(&declared.at);
        // A server that this node doesn't know keeps its snapshots until the run has ended.
        if let Ok(server) = databases.postgres(&declared.at) {
            server.end_snapshot().await;
        }
    }
}

// By hand: addresses may hold passwords.
impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Databases")
            .field(&self.0.as_ref().map(|known| &known.config))
            .finish()
    }
}

/// The source that a pipeline declares. Touches nothing.
pub(super) fn bind(source: &Declared, declared: &DatabaseSource, binding: Binding) -> Result<Box<dyn Source>, Failure> {
    if declared.columns.is_empty() {
        return bind_plain(&source.name, declared, binding);
    }
    // What is wrong with it by itself is found here.
    bind_plain(&source.name, declared, binding.clone())?;
    let (name, location) = (
        source.name.clone(),
        format!("source {} ({})", source.name, declared.location),
    );
    let of = declared.clone();
    let with = move |columns: &[Column]| {
        let declared = DatabaseSource {
            columns: columns.to_vec(),
            ..of.clone()
        };
        bind_plain(&name, &declared, binding.clone())
    };
    Ok(Box::new(Contracted::new(
        location,
        &declared.columns,
        source.contract,
        source.planned.clone(),
        Box::new(with),
    )))
}

fn bind_plain(name: &str, declared: &DatabaseSource, binding: Binding) -> Result<Box<dyn Source>, Failure> {
    Ok(match declared.kind {
        DatabaseKind::Postgres => Box::new(postgres::PostgresRows::new(name, declared, binding)?),
        DatabaseKind::Mysql => Box::new(mysql::MysqlRows::new(name, declared, binding)?),
        DatabaseKind::Sqlite => Box::new(sqlite::SqliteRows::new(name, declared, binding)?),
    })
}

/// Reads rows that a destination holds: those of a SELECT in its SQL, in no order, as these columns. One pass over one
/// snapshot; nothing is held but what is under way.
pub(crate) async fn read_back(
    config: &NodeConfig,
    destination: &str,
    query: &str,
    columns: Vec<Column>,
) -> Result<Box<dyn SegmentReader>, Failure> {
    let address = config.destination(destination)?;
    let file = address.strip_prefix("sqlite:").map(|path| {
        let path = path.strip_prefix("//").unwrap_or(path);
        std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
    });
    let is_file = file.is_some();
    let declared = DatabaseSource {
        kind: match is_file {
            true => DatabaseKind::Sqlite,
            false => DatabaseKind::Postgres,
        },
        at: file.unwrap_or_else(|| destination.to_owned()),
        rows: DatabaseRows::Query(vec![QueryPart::Text(query.to_owned())]),
        columns,
        chunk_bytes: u64::MAX,
        location: format!("destination {destination}"),
        incremental: None,
    };
    let mut config = config.clone();
    config.sources = [(destination.to_owned(), address)].into();
    let binding = Binding {
        base: String::new(),
        s3: config.s3.clone(),
        checkpoint_rows: READ_BACK_ROWS,
        databases: Databases::of(&config),
    };
    let reader = if is_file {
        let rows = sqlite::SqliteRows::new(destination, &declared, binding)?;
        rows.all().await?
    } else {
        let rows = postgres::PostgresRows::new(destination, &declared, binding)?;
        rows.all_or_none().await?
    };
    Ok(Box::new(reader))
}

/// Puts the name of the source before what is wrong with it.
fn of_source(name: &str, failure: Failure) -> Failure {
    Failure {
        message: format!("source {name}: {}", failure.message),
        ..failure
    }
}

/// The columns to read: those declared, each of which must be there, or all that are.
fn choose(source: &str, location: &str, declared: &[Column], found: &[Column]) -> Result<Vec<Column>, Misdeclared> {
    let chosen = if declared.is_empty() { found } else { declared };
    for column in chosen {
        let name = &column.name;
        let wrong = |what: String| Misdeclared {
            failure: Failure::permanent(format!("source {source} ({location}): {what}")),
            column: Some(name.clone()),
        };
        match found.iter().filter(|found| found.name == *name).count() {
            0 => {
                let known = found.iter().map(|found| found.name.as_str());
                let help = haulage_plan::did_you_mean(name, known)
                    .unwrap_or_else(|| "correct `columns`, or leave them out to take all that are there".to_owned());
                let or_null = or_null(column);
                return Err(wrong(format!("it has no column `{name}`; {help}{or_null}")));
            }
            1 => {}
            _ => {
                return Err(wrong(format!(
                    "it has several columns `{name}`; name them apart with AS"
                )));
            }
        }
        if name == ROW_COLUMN || name.is_empty() {
            return Err(wrong(format!(
                "`{name}` can't be the name of a column here; leave it out, or give it another with AS in a `query`"
            )));
        }
    }
    if chosen.is_empty() {
        return Err(Failure::permanent(format!("source {source} ({location}): it has no columns")).into());
    }
    Ok(chosen.to_vec())
}

/// Every row of a lookup. Permanent failure on the first that can't be read.
async fn whole(source: &str, location: &str, mut reader: reader::Reader) -> Result<Vec<RecordBatch>, Failure> {
    let mut batches = Vec::new();
    while let Some(segment) = reader.next().await? {
        if let Some(first) = segment.unreadable.first() {
            let line = segment.raw.row(first.row).map_or(0, |(line, _)| line);
            let column = first.column.as_deref().unwrap_or_default();
            return Err(Failure::permanent(format!(
                "source {source}: {location} row {line}, column {column}: {}: {}; a lookup has to be read whole: correct \
                 the row, or declare the column as another type",
                first.reason, first.detail
            )));
        }
        batches.extend(segment.batches);
    }
    Ok(batches)
}
