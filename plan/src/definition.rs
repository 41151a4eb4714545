//! The pipeline file, parsed and bound to its parameters: what the rest of Haulage works with.
//!
//! Places in the file ([`Place`]) stay beside whatever an error may have to point at.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use haulage_core::ids::LoadName;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::checks::Check;
use crate::contract::{Contract, Evolution};

pub use crate::rest::{Counted, NameEnd, PageEnd, Pagination, RestAuth, RestSource, RestUser, SecretName};

/// A place in the pipeline file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// What publishing a load does to the rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Adds the run's rows.
    Append,
    /// The target holds the run's rows and no others.
    Replace,
    /// Rows with the same key are updated, others inserted.
    Merge,
}

/// A column of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name in the header, and in SQL.
    pub name: String,
    /// `text` is Utf8, `int` Int32, `bigint` Int64, `smallint` Int16, `float` Float32, `double` Float64, `bool` Boolean,
    /// `date` Date32, `timestamp` microseconds without a zone, `timestamptz` microseconds in UTC, `decimal(p,s)` Decimal128.
    pub data_type: DataType,
    /// Written with a `!`: a row without a value is rejected (`null_in_required`).
    pub required: bool,
}

/// Of the columns that don't stand at their own name in an object: the keys that lead to each, the outermost first.
pub type Paths = BTreeMap<String, Vec<String>>;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// By the name's ending: `.gz`, `.zst`, else plain.
    #[default]
    Auto,
    /// Plain bytes.
    None,
    /// gzip, also of several members.
    Gzip,
    /// Zstandard, also of several frames.
    Zstd,
}

/// CSV files, local or in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvSource {
    /// A path or glob, relative to the submission's base, absolute, or `s3://bucket/key*`. Parameters are filled in.
    pub path: String,
    /// The declared columns; empty if the file doesn't declare them: then they are the header's, nullable text.
    /// With a header, declared columns are found by name, in any order, and others are left out.
    pub columns: Vec<Column>,
    /// Field texts that mean "no value"; the empty field always does, unless it is quoted text.
    pub null: Vec<String>,
    /// Between fields.
    pub delimiter: u8,
    /// Around fields.
    pub quote: u8,
    /// Whether the first record names the columns.
    pub header: bool,
    /// Compression of the files.
    pub compression: Compression,
    /// Aim for chunks of so many bytes.
    pub chunk_bytes: u64,
    /// Whether a quoted field may hold a line end (then a cut looks at every byte before it; correct by default).
    pub quoted_newlines: bool,
}

/// Files of JSON lines, local or in S3: one object a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonSource {
    /// A path or glob, as of a [`CsvSource`].
    pub path: String,
    /// The declared columns, which are the keys of the objects; others are left out, and an absent key is no value.
    /// Empty if the file doesn't declare them: then they are the first object's keys, nullable text of whatever is there.
    pub columns: Vec<Column>,
    /// Where those of them stand that are deeper in an object, or at another key.
    pub paths: Paths,
    /// Compression of the files.
    pub compression: Compression,
    /// Aim for chunks of so many bytes.
    pub chunk_bytes: u64,
}

/// Parquet files, local or in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParquetSource {
    /// A path or glob, as of a [`CsvSource`].
    pub path: String,
    /// The declared columns, which are found by name; the file's types have to fit into theirs without loss. Empty if the
    /// file doesn't declare them: then they are the file's own.
    pub columns: Vec<Column>,
    /// Take row groups together to chunks of at most so many bytes, as they are packed.
    pub chunk_bytes: u64,
}

/// A kind of database that rows are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    /// A PostgreSQL server, by the name of a connection.
    Postgres,
    /// A MySQL or MariaDB server, by the name of a connection.
    Mysql,
    /// A SQLite file.
    Sqlite,
}

/// A table, view or query of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSource {
    /// What it is.
    pub kind: DatabaseKind,
    /// The name of a connection that nodes know the address of; of SQLite a path, relative to the submission's base or
    /// absolute, with parameters filled in.
    pub at: String,
    /// Which rows.
    pub rows: DatabaseRows,
    /// The declared columns; empty if the file doesn't declare them: then they are those that the database says.
    /// Declared columns are found by name, in any order, and others are left out.
    pub columns: Vec<Column>,
    /// Aim for chunks of so many bytes.
    pub chunk_bytes: u64,
    /// Where its rows are, for a person: `crm: public.orders`.
    pub location: String,
    /// Of these, only what is new since the last published run.
    pub incremental: Option<Incremental>,
}

/// Reads only what is new since the last published run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incremental {
    /// The column whose values only grow: an integer, a date or a time.
    pub column: String,
    /// How far below the watermark a run reads again, for rows that are committed late.
    pub lag: Lag,
    /// Where it is declared.
    pub place: Place,
}

/// How far below a watermark is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// Not at all.
    None,
    /// So much of an integer column.
    Count(u64),
    /// So many seconds of a date or time column.
    Seconds(u64),
}

/// Which rows of a database a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseRows {
    /// All of a table or view: `table` or `schema.table`, a part with a dot in double quotes.
    Table(String),
    /// Those of a SELECT in the database's own SQL, in pieces; put together they are the whole text.
    Query(Vec<QueryPart>),
}

/// A piece of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryPart {
    /// SQL.
    Text(String),
    /// A parameter, which is bound and never becomes SQL.
    Param {
        /// Its name.
        name: String,
        /// Its type, one of those that a pipeline file can name.
        data_type: DataType,
        /// Its value as the pipeline file would write it: `2013-01-31`, `true`, `12.50`.
        value: String,
    },
}

/// Where a source's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// CSV files.
    Csv(CsvSource),
    /// Files of JSON lines.
    Json(JsonSource),
    /// Parquet files.
    Parquet(ParquetSource),
    /// A table, view or query of a database.
    Database(DatabaseSource),
    /// Records that an HTTP server gives as JSON.
    Rest(Box<RestSource>),
}

impl SourceKind {
    /// The word by which the pipeline file calls it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Csv(_) => "csv",
            Self::Json(_) => "json",
            Self::Parquet(_) => "parquet",
            Self::Database(database) => match database.kind {
                DatabaseKind::Postgres => "postgres",
                DatabaseKind::Mysql => "mysql",
                DatabaseKind::Sqlite => "sqlite",
            },
            Self::Rest(_) => "rest",
        }
    }

    /// Where its rows are, for a person.
    pub fn location(&self) -> &str {
        match self {
            Self::Csv(csv) => &csv.path,
            Self::Json(json) => &json.path,
            Self::Parquet(parquet) => &parquet.path,
            Self::Database(database) => &database.location,
            Self::Rest(rest) => &rest.location,
        }
    }

    /// The declared columns; empty if the file declares none.
    pub fn columns(&self) -> &[Column] {
        match self {
            Self::Csv(csv) => &csv.columns,
            Self::Json(json) => &json.columns,
            Self::Parquet(parquet) => &parquet.columns,
            Self::Database(database) => &database.columns,
            Self::Rest(rest) => &rest.columns,
        }
    }

    /// How it reads only what is new, if it does.
    pub fn incremental(&self) -> Option<&Incremental> {
        match self {
            Self::Database(database) => database.incremental.as_ref(),
            Self::Csv(_) | Self::Json(_) | Self::Parquet(_) | Self::Rest(_) => None,
        }
    }

    /// The name of the connection that a node needs for it, if it needs one.
    pub fn connection(&self) -> Option<&str> {
        match self {
            Self::Database(database) if database.kind != DatabaseKind::Sqlite => Some(&database.at),
            Self::Csv(_) | Self::Json(_) | Self::Parquet(_) | Self::Database(_) | Self::Rest(_) => None,
        }
    }

    /// Whether it is on this machine, so that looking at it costs nothing: relative to `base`, which may be elsewhere.
    pub fn is_local(&self, base: &str) -> bool {
        let path = match self {
            Self::Csv(csv) => &csv.path,
            Self::Json(json) => &json.path,
            Self::Parquet(parquet) => &parquet.path,
            Self::Database(database) if database.kind == DatabaseKind::Sqlite => &database.at,
            Self::Database(_) | Self::Rest(_) => return false,
        };
        !path.starts_with("s3://") && (path.starts_with('/') || !base.starts_with("s3://"))
    }
}

/// A source, by its key in `sources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its key.
    pub name: String,
    /// Read whole on every node and joined to every chunk, instead of being cut into chunks.
    pub lookup: bool,
    /// What it is.
    pub kind: SourceKind,
    /// Columns behind those of its files, whose values stand in the names of the files' folders: `day=2024-01-31`.
    pub partitions: Vec<Column>,
    /// What becomes of what isn't as its columns say.
    pub contract: Contract,
    /// The columns that the run was planned with, where the contract lets them be others than the declared ones. The file
    /// says nothing of them.
    pub planned: Option<Vec<Column>>,
    /// Where it is declared.
    pub place: Place,
}

impl Source {
    /// The columns that the pipeline file declares; empty if it declares none of what is in the files or the table.
    pub fn columns(&self) -> Vec<Column> {
        match self.kind.columns() {
            [] => Vec::new(),
            columns => columns.iter().chain(&self.partitions).cloned().collect(),
        }
    }
}

/// A text of SQL, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    /// The text.
    pub text: String,
    /// Where its first character stands.
    pub place: Place,
}

/// A step, by its key in `steps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its key; the name under which later steps and loads refer to it.
    pub name: String,
    /// One SELECT over sources and earlier steps. `from: x` alone is `SELECT * FROM x`.
    pub query: Sql,
    /// Rules over the step's own columns, in order; a row that one names goes to quarantine with the rule's name as the
    /// reason. The first rule that is true counts; false and NULL let the row pass.
    pub reject: IndexMap<String, Sql>,
    /// Where it is declared.
    pub place: Place,
}

/// The format of the files that a load leaves at a destination of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// Apache Parquet.
    #[default]
    Parquet,
    /// CSV with a header; no value is an empty field, an empty text is `""`.
    Csv,
    /// JSON lines: one object a line.
    Jsonl,
}

/// How such a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileCompression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy, inside Parquet only.
    Snappy,
    /// Zstandard.
    Zstd,
}

/// What a load says of its files; only a destination of files takes any of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Their format; Parquet if it isn't said.
    pub format: Option<FileFormat>,
    /// Columns by whose values rows are divided into folders; empty if they aren't.
    pub partition_by: Vec<String>,
    /// Their compression; Zstandard for Parquet, none for others, if it isn't said.
    pub compression: Option<FileCompression>,
}

impl Layout {
    /// The keys of a load that are there.
    pub fn said(&self) -> Vec<&'static str> {
        let mut said = Vec::new();
        if self.format.is_some() {
            said.push("format");
        }
        if !self.partition_by.is_empty() {
            said.push("partition_by");
        }
        if self.compression.is_some() {
            said.push("compression");
        }
        said
    }
}

/// A load, by its key in `loads`. Loads publish in the order in which they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Its key.
    pub name: LoadName,
    /// The step or source whose rows it takes.
    pub from: String,
    /// The destination's name, bound to an address by the node's configuration.
    pub to: String,
    /// The table there, optionally with a schema; at a destination of files the table's folder, `sales/orders`.
    pub table: String,
    /// What publishing does to the rows that are there.
    pub mode: Mode,
    /// Key columns: unique in the target. Required by `merge`.
    pub key: Vec<String>,
    /// Of two rows with one key, that with the higher value in this column stands, whichever comes first.
    pub newest: Option<String>,
    /// Of how many published runs of the table, the newest, what it held before is kept, so that they can be reverted.
    pub keep_previous: u32,
    /// Whether its rows say which run, chunk and line of the source they are from, in columns of their own.
    pub provenance: bool,
    /// What it may do to the columns of the target.
    pub evolution: Evolution,
    /// What it says of its files.
    pub layout: Layout,
    /// Where it is declared.
    pub place: Place,
}

/// A pipeline file with its parameters bound: everything is typed, every path filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The pipeline's name: `[a-z][a-z0-9_-]*`, at most 48 characters.
    pub pipeline: String,
    /// What to call the file in errors.
    pub file: String,
    /// The file's text, from which errors show the line they are about.
    pub text: Arc<str>,
    /// Parameters with their typed values, for `$name` in SQL.
    pub params: BTreeMap<String, datafusion::scalar::ScalarValue>,
    /// Sources in file order.
    pub sources: IndexMap<String, Source>,
    /// Steps in file order.
    pub steps: IndexMap<String, Step>,
    /// Loads in file order.
    pub loads: IndexMap<LoadName, Load>,
    /// Checks in file order.
    pub checks: Vec<Check>,
    /// Source rows between two checkpoints of a chunk.
    pub checkpoint_rows: u64,
}

impl Definition {
    /// Whether a source reads only what is new since the last published run.
    pub fn is_incremental(&self) -> bool {
        self.sources.values().any(|source| source.kind.incremental().is_some())
    }

    /// Where a source names a column among its own, or else the source.
    pub fn place_in_source(&self, source: &Source, column: Option<&str>) -> Place {
        let column = column.and_then(|column| self.place_of_column(&source.name, column));
        column.unwrap_or(source.place)
    }

    /// Where a source declares a column.
    pub fn place_of_column(&self, source: &str, column: &str) -> Option<Place> {
        crate::yaml::locate_key(&self.text, &["sources", source, "columns"], column)
    }
}
