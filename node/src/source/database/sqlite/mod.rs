//! SQLite files as sources.
//!
//! The file has to stay as it was at discovery: its size and time of change, and those of its write-ahead log, are looked
//! at inside the transaction that reads a chunk, so either the chunk's rows are those of the file that was discovered, or
//! the chunk fails for good. A table with row ids is cut by ranges of them; others, views and queries are one chunk.
//!
//! SQLite doesn't hold a column to its type. Columns that aren't declared are `bigint`, `double` or `bool` where the table
//! says so, and text otherwise; dates and times are text unless they are declared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_plan::definition::{Column, DatabaseRows, DatabaseSource};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions, Executor, SqlSafeStr as _, Statement as _, TypeInfo as _};

use self::rows::{Stopped, line_of, place_of, query, read, row_id_of};
use super::feed::Rows;
use super::reader::{Order, Reader, Shape, read_rows};
use super::{choose, of_source, whole};
use crate::sink::name::{quote, quote_all};
use crate::source::{Binding, KeptRow, Misdeclared, Reread, SegmentReader, Source, object};
use crate::store::s3_client::changed;

mod rows;

/// Longest wait for somebody who writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that the driver may have read before they are asked for.
const ROWS_AHEAD: usize = 8;
/// More chunks than this only cost.
const MAX_CHUNKS: u64 = 10_000;

/// A table, view or query of a SQLite file.
pub(super) struct SqliteRows {
    name: String,
    declared: DatabaseSource,
    path: PathBuf,
    checkpoint_rows: u64,
}

/// What a table is like.
struct Found {
    columns: Vec<Column>,
    /// What its row ids are called; `None` if it has none.
    row_id: Option<&'static str>,
}

impl SqliteRows {
    /// Permanent failure if no path on a disk is named.
    pub(super) fn new(name: &str, declared: &DatabaseSource, binding: Binding) -> Result<Self, Failure> {
        let path = object::local_path(&declared.at, &binding.base).ok_or_else(|| {
            Failure::permanent(format!(
                "source {name}: {} is in S3, where SQLite can't read it; give an absolute path on the nodes' disks",
                declared.at
            ))
        })?;
        Ok(Self {
            name: name.to_owned(),
            declared: declared.clone(),
            path: PathBuf::from(path),
            checkpoint_rows: binding.checkpoint_rows.max(1),
        })
    }

    fn object(&self) -> String {
        let what = match &self.declared.rows {
            DatabaseRows::Table(table) => table.as_str(),
            DatabaseRows::Query(_) => "query",
        };
        format!("{}: {what}", self.path.display())
    }

    fn failure(&self, doing: &str, error: sqlx::Error) -> Failure {
        failure(&self.name, &self.path, doing, &error)
    }

    /// A connection in a transaction that sees one state of the file, and the version of that state.
    async fn connect(&self) -> Result<(SqliteConnection, String), Failure> {
        match tokio::fs::metadata(&self.path).await {
            Ok(there) if there.is_file() => {}
            Ok(_) => return Err(self.wrong("it is no file; correct the path")),
            Err(error) => return Err(self.wrong(&format!("it can't be read: {error}; correct the path"))),
        }
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            // Rows may be large, and each of these is held whole.
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        let opening = async {
            let mut connection = options.connect().await?;
            // The first statement that reads takes the lock, or the snapshot of the write-ahead log.
            sqlx::raw_sql("BEGIN; SELECT count(*) FROM sqlite_schema")
                .execute(&mut connection)
                .await?;
            let encoding: String = sqlx::query_scalar("PRAGMA encoding").fetch_one(&mut connection).await?;
            Ok((connection, encoding))
        };
        let (connection, encoding) = opening.await.map_err(|error| self.failure("opening it", error))?;
        if encoding != "UTF-8" {
            return Err(self.wrong(&format!(
                "its text is {encoding}, and only UTF-8 can be read; convert it"
            )));
        }
        // After the lock: who has written since the snapshot makes the version another one, never the same.
        let version = version(&self.path)
            .await
            .map_err(|error| self.wrong(&format!("it can't be looked at: {error}")))?;
        Ok((connection, version))
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::permanent(format!("source {}: {}: {what}", self.name, self.path.display()))
    }

    /// The rows in SQL: a table's name, or the query in brackets.
    fn from(&self) -> String {
        match &self.declared.rows {
            DatabaseRows::Table(table) => quote(table),
            DatabaseRows::Query(parts) => format!("(\n{}\n)", query(parts)),
        }
    }

    async fn find(&self, connection: &mut SqliteConnection) -> Result<Found, Failure> {
        let doing = "looking at its columns";
        let sql = format!("SELECT * FROM {}", self.from());
        let statement = (&mut *connection).prepare(AssertSqlSafe(sql).into_sql_str()).await;
        let mut statement = statement.map_err(|error| self.failure(doing, error))?;
        if let DatabaseRows::Query(parts) = &self.declared.rows {
            // In brackets SQLite gives columns of one name different ones, behind the back of whoever wrote the query.
            let preparing = (&mut *connection).prepare(AssertSqlSafe(query(parts)).into_sql_str());
            statement = preparing.await.map_err(|error| self.failure(doing, error))?;
        }
        let column = |column: &sqlx::sqlite::SqliteColumn| Column {
            name: column.name().to_owned(),
            data_type: match column.type_info().name() {
                "INTEGER" => DataType::Int64,
                "REAL" => DataType::Float64,
                "BOOLEAN" => DataType::Boolean,
                _ => DataType::Utf8,
            },
            required: false,
        };
        let columns: Vec<Column> = statement.columns().iter().map(column).collect();
        let mut row_id = None;
        if let DatabaseRows::Table(table) = &self.declared.rows {
            let plain: Option<bool> = sqlx::query_scalar(
                "SELECT type = 'table' AND NOT wr FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE AND schema = 'main'",
            )
            .bind(table)
            .fetch_optional(&mut *connection)
            .await
            .map_err(|error| self.failure(doing, error))?;
            let free = |name: &&str| !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            if plain == Some(true) {
                row_id = ["rowid", "_rowid_", "oid"].into_iter().find(free);
            }
        }
        Ok(Found { columns, row_id })
    }

    fn choose(&self, found: &Found) -> Result<Vec<Column>, Misdeclared> {
        choose(&self.name, &self.object(), &self.declared.columns, &found.columns)
    }

    /// A reader of all rows, of one state of the file.
    pub(super) async fn all(&self) -> Result<Reader, Failure> {
        let (mut connection, _) = self.connect().await?;
        let mut found = self.find(&mut connection).await?;
        // A load writes a column whatever the case of its name there.
        for column in &mut found.columns {
            let mut declared = self.declared.columns.iter().map(|declared| &declared.name);
            if let Some(name) = declared.find(|name| name.eq_ignore_ascii_case(&column.name)) {
                column.name.clone_from(name);
            }
        }
        let columns = self.choose(&found)?;
        let shape = Shape {
            object: self.object(),
            columns: columns.clone(),
            forms: Arc::default(),
            checkpoint_rows: self.checkpoint_rows,
            order: Order::Counted,
            line: None,
        };
        let rows = self.rows(connection, &columns, None);
        Reader::open(shape, rows, Position::default()).await
    }

    /// Lets a task read rows from `from` to `end`, in a transaction that is open on `connection`.
    fn rows(&self, connection: SqliteConnection, columns: &[Column], range: Option<(&str, u64, Option<u64>)>) -> Rows {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let (mut sql, mut bounds) = (String::from("SELECT "), Vec::new());
        if let Some((row_id, from, end)) = range {
            sql.push_str(&format!(
                "{row_id}, {} FROM {} WHERE {row_id} >= ?1",
                quote_all(&names),
                self.from()
            ));
            bounds.push(row_id_of(from));
            if let Some(end) = end {
                sql.push_str(&format!(" AND {row_id} < ?2"));
                bounds.push(row_id_of(end));
            }
            sql.push_str(&format!(" ORDER BY {row_id}"));
        } else {
            sql.push_str(&format!("{} FROM {}", quote_all(&names), self.from()));
        }
        let params = match &self.declared.rows {
            DatabaseRows::Query(parts) => parts.clone(),
            DatabaseRows::Table(_) => Vec::new(),
        };
        let (name, path, has_place) = (self.name.clone(), self.path.clone(), range.is_some());
        Rows::from_task(&self.object(), move |feed| async move {
            let fed = read(connection, sql, &bounds, &params, has_place, feed).await;
            fed.map_err(|error| match error {
                Stopped::Failure(failure) => failure,
                Stopped::Sqlite(error) => failure(&name, &path, "reading rows", &error),
            })
        })
    }
}

/// What changes when the file's rows may have.
async fn version(path: &Path) -> std::io::Result<String> {
    let stamp = |there: std::fs::Metadata| {
        let changed = there
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        format!("{}-{}", there.len(), changed.unwrap_or_default().as_nanos())
    };
    let mut version = stamp(tokio::fs::metadata(path).await?);
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if let Ok(there) = tokio::fs::metadata(log).await
        && there.len() > 0
    {
        version.push_str(&format!("+{}", stamp(there)));
    }
    Ok(version)
}

fn failure(source: &str, path: &Path, doing: &str, error: &sqlx::Error) -> Failure {
    let place = format!("source {source}: {}", path.display());
    let sqlx::Error::Database(said) = error else {
        return match error {
            sqlx::Error::WorkerCrashed => Failure::transient(format!("{place}: its worker ended while {doing}")),
            error => Failure::permanent(format!("{place}: {error} while {doing}")),
        };
    };
    let message = said.message();
    // The low byte of an extended result code is the primary one.
    match said
        .code()
        .and_then(|code| code.parse::<i32>().ok())
        .map(|code| code & 0xff)
    {
        Some(5 | 6) => Failure::transient(format!("{place}: locked by another process while {doing}")),
        Some(10) => Failure::transient(format!("{place}: the disk failed while {doing}: {message}")),
        Some(14) => Failure::permanent(format!(
            "{place}: the file can't be opened; check its path and rights, and those of its folder if the file has a \
             write-ahead log"
        )),
        Some(26) => Failure::permanent(format!("{place}: the file is no SQLite database; name another path")),
        Some(11) => Failure::permanent(format!(
            "{place}: the file is damaged ({message}); restore it from a backup"
        )),
        Some(_) | None => Failure::permanent(format!(
            "{place}: {message} while {doing}; correct the table, the columns or the query of the source"
        )),
    }
}

#[async_trait]
impl Source for SqliteRows {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        if !self.declared.columns.is_empty() {
            return Ok(self.declared.columns.clone());
        }
        let (mut connection, _) = self.connect().await?;
        Ok(self.choose(&self.find(&mut connection).await?)?)
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        let (mut connection, _) = self.connect().await?;
        self.choose(&self.find(&mut connection).await?).map(drop)
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        let (mut connection, version) = self.connect().await?;
        let found = self.find(&mut connection).await?;
        self.choose(&found)?;
        let size = tokio::fs::metadata(&self.path).await.map_or(0, |there| there.len());
        let mut starts = vec![0];
        if let Some(row_id) = found.row_id {
            let sql = format!("SELECT min({row_id}), max({row_id}) FROM {}", self.from());
            let ends: (Option<i64>, Option<i64>) = sqlx::query_as(AssertSqlSafe(sql))
                .fetch_one(&mut connection)
                .await
                .map_err(|error| self.failure("looking for its row ids", error))?;
            if let (Some(least), Some(most)) = ends {
                let (least, most) = (place_of(least), place_of(most));
                let ids = (most - least).saturating_add(1);
                let parts = size.div_ceil(self.declared.chunk_bytes).clamp(1, MAX_CHUNKS).min(ids);
                let step = (ids / parts).max(1);
                // The first begins at the lowest id there can be and the last ends nowhere: nothing is outside.
                starts.extend((1..parts).map(|part| least + part * step));
            }
        }
        let parts = starts.len() as u64;
        let ends = starts.iter().skip(1).copied().map(Some).chain([None]);
        let chunk = |(index, (start, end))| ChunkSpec {
            chunk: ChunkId { stage, index },
            source: self.name.clone(),
            object: self.object(),
            version: version.clone(),
            start: Position { offset: start, line: 1 },
            end,
            bytes: size / parts,
            window: None,
        };
        Ok((0..).zip(starts.iter().copied().zip(ends)).map(chunk).collect())
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let (mut connection, version) = self.connect().await?;
        if version != chunk.version {
            return Err(of_source(&self.name, changed(&chunk.object)));
        }
        let found = self.find(&mut connection).await?;
        let columns = self.choose(&found)?;
        let shape = |order, line| Shape {
            object: chunk.object.clone(),
            columns: columns.clone(),
            forms: Arc::default(),
            checkpoint_rows: self.checkpoint_rows,
            order,
            line,
        };
        Ok(Box::new(match found.row_id {
            Some(row_id) => {
                let rows = self.rows(connection, &columns, Some((row_id, from.offset, chunk.end)));
                Reader::open(shape(Order::Places, Some(line_of)), rows, from).await?
            }
            None => {
                let rows = self.rows(connection, &columns, None);
                let from = if from == chunk.start { Position::default() } else { from };
                Reader::open(shape(Order::Counted, None), rows, from).await?
            }
        }))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        read_rows(&self.columns().await?, rows)
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        whole(&self.name, &self.object(), self.all().await?).await
    }
}
