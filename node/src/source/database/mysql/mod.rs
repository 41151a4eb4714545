//! MySQL and MariaDB as a source: a table in ranges of its key, a view or a query in one chunk.
//!
//! Each chunk reads in one snapshot, but no two of them in the same: the server shares none between sessions. Rows of a
//! table come in the order of its key, and a checkpoint is the key behind which to go on ([`keyset`]), and what the rows
//! before it sum up to. Rows without such a key are counted, and a resumed chunk passes over as many, which must be the same,
//! see [`super::reader`]. So a row is read once, as long as its key stays what it is, whatever is written meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_core::watermark::Window;
use haulage_plan::definition::{Column, DatabaseRows, DatabaseSource, Incremental};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Column as _, Either, Executor as _, SqlSafeStr as _, Statement as _};
use tokio::sync::OnceCell;

use self::keyset::Keyset;
pub(super) use self::server::Server;
use self::server::Session;
use self::table::{Cut, Key, Kind, Table, bounds};
use self::values::{Bind, Form, Statement, column, form, named, place_of_signed, query, read, signed_of};
pub(in crate::source) use self::words::in_words;
use super::feed::Rows;
use super::incremental;
use super::reader::{Order, Reader, Shape, read_rows};
use super::{choose, of_source, whole};
use crate::sink::name::TableName;
use crate::source::{Binding, Increment, KeptRow, Misdeclared, Reread, SegmentReader, Source};

mod failure;
mod keyset;
mod server;
mod table;
mod values;
mod window;
mod words;

/// More chunks than this only cost.
const MAX_CHUNKS: u64 = 10_000;
/// Keys for each row from which on ranges of equal width are not taken for ranges of as many rows: one key far from all
/// others would make the rest of the table one chunk.
const SPARSE: u64 = 8;

/// A table, view or query of a MySQL or MariaDB database.
pub(super) struct MysqlRows {
    name: String,
    declared: DatabaseSource,
    binding: Binding,
    /// `None` of a query.
    table: Option<TableName>,
    /// The table's name in SQL, or the query.
    sql: String,
    binds: Vec<Bind>,
    found: OnceCell<Found>,
}

/// What is there.
struct Found {
    columns: Vec<Column>,
    /// Those that have no text.
    shapes: Vec<String>,
    /// Of a query: nothing.
    table: Table,
}

/// What a chunk's version says: by which key the table is cut, and where the chunk lies between values of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    /// The key's columns in order; none of a view, a query and a table without a key.
    key: Vec<String>,
    cut: Cut,
    /// Where a range begins; it is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// Where it ends; it is no part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<String>,
}

/// A name as MySQL quotes it.
fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

impl MysqlRows {
    /// Permanent failure if the table's name is none.
    pub(super) fn new(name: &str, declared: &DatabaseSource, binding: Binding) -> Result<Self, Failure> {
        let (table, sql, binds) = match &declared.rows {
            DatabaseRows::Table(table) => {
                let table = TableName::parse(table).map_err(|failure| of_source(name, failure))?;
                let schema = table.schema.as_deref().map(|schema| format!("{}.", quote(schema)));
                let sql = format!("{}{}", schema.unwrap_or_default(), quote(&table.table));
                (Some(table), sql, Vec::new())
            }
            DatabaseRows::Query(parts) => {
                let (sql, binds) = query(parts);
                (None, sql, binds)
            }
        };
        Ok(Self {
            name: name.to_owned(),
            declared: declared.clone(),
            binding,
            table,
            sql,
            binds,
            found: OnceCell::new(),
        })
    }

    fn server(&self) -> Result<Arc<Server>, Failure> {
        let server = self.binding.databases.mysql(&self.declared.at);
        server.map_err(|failure| self.named(failure))
    }

    fn named(&self, failure: Failure) -> Failure {
        of_source(&self.name, failure)
    }

    async fn found(&self, server: &Server) -> Result<&Found, Failure> {
        let find = || async { self.find(server, &mut server.session().await?).await };
        let found = self.found.get_or_try_init(find).await;
        found.map_err(|failure| self.named(failure))
    }

    async fn find(&self, server: &Server, session: &mut Session) -> Result<Found, Failure> {
        let sql = match &self.table {
            Some(_) => format!("SELECT * FROM {}", self.sql),
            None => self.sql.clone(),
        };
        let preparing = (&mut session.connection).prepare(AssertSqlSafe(sql).into_sql_str());
        let statement = server.soon("looking at its columns", preparing).await?;
        if let Some(Either::Right(asked)) = statement.parameters()
            && asked != self.binds.len()
        {
            return Err(Failure::permanent(format!(
                "{}: the query has {asked} placeholders for {} parameters; name each as $name, outside of quotes, and \
                 write no `?` of its own",
                server.place(),
                self.binds.len()
            )));
        }
        let mut table = Table::default();
        if let Some(name) = &self.table {
            table = Table::describe(server, session, name.schema.as_deref(), &name.table).await?;
        }
        let mut columns = Vec::new();
        let mut shapes = Vec::new();
        for found in statement.columns() {
            if form(found.type_info()) == Form::Geometry {
                shapes.push(found.name().to_owned());
            }
            let mut column = column(found);
            let described = table.columns.iter().find(|described| described.name == column.name);
            if let Some(described) = described {
                match (described.data_type.as_str(), described.precision, described.scale) {
                    ("decimal", Some(precision @ 1..=38), Some(scale @ 0..=38)) => {
                        column.data_type = DataType::Decimal128(precision, scale as i8);
                    }
                    ("bit", ..) if described.column_type == "bit(1)" => column.data_type = DataType::Boolean,
                    _ => {}
                }
            }
            columns.push(column);
        }
        Ok(Found { columns, shapes, table })
    }

    /// The columns to read.
    fn choose(&self, found: &Found) -> Result<Vec<Column>, Misdeclared> {
        let location = &self.declared.location;
        let chosen = choose(&self.name, location, &self.declared.columns, &found.columns)?;
        match chosen.iter().find(|column| found.shapes.contains(&column.name)) {
            None => Ok(chosen),
            Some(shape) => Err(Misdeclared {
                failure: Failure::permanent(format!(
                    "source {} ({location}): column `{}` is a geometry, which has no text here; leave it out with \
                     `columns`, or write ST_AsText in a `query`",
                    self.name, shape.name
                )),
                column: Some(shape.name.clone()),
            }),
        }
    }

    /// The table in SQL, read along its key.
    fn along(&self, key: &Key) -> String {
        format!("{} FORCE INDEX ({})", self.sql, quote(&key.index))
    }

    /// What reads a chunk's rows, from a place on where rows have one.
    fn statement(
        &self,
        found: &Found,
        chosen: &[Column],
        version: &Version,
        range: (u64, Option<u64>),
        (window, cursor): (Option<&Window>, Option<&str>),
    ) -> Result<Statement, Failure> {
        let within = window.map(|window| window::conditions(window, &found.columns));
        let within = within.transpose()?.unwrap_or_default();
        if self.table.is_none() {
            let place = |column: &Column| found.columns.iter().position(|found| found.name == column.name);
            return Ok(Statement {
                sql: match within.is_empty() {
                    true => self.sql.clone(),
                    false => format!("SELECT * FROM (\n{}\n) AS q WHERE {}", self.sql, within.join(" AND ")),
                },
                binds: self.binds.clone(),
                has_place: false,
                keys: 0,
                picked: chosen.iter().filter_map(place).collect(),
            });
        }
        let key = found.table.key.as_ref();
        let (mut names, mut binds, mut which) = (Vec::new(), Vec::new(), Vec::new());
        let first = key.and_then(|key| key.columns.first()).map(|column| quote(column));
        let first = first.unwrap_or_default();
        let mut has_place = false;
        match &version.cut {
            Cut::Whole => {}
            Cut::Places { unsigned } => {
                let value = |place| match unsigned {
                    true => Bind::Unsigned(place),
                    false => Bind::Int(signed_of(place)),
                };
                has_place = true;
                names.push(first.clone());
                which.push(format!("{first} >= ?"));
                binds.push(value(range.0));
                if let Some(end) = range.1 {
                    which.push(format!("{first} < ?"));
                    binds.push(value(end));
                }
            }
            Cut::Ranges(kind) => {
                for (sign, bound) in [(">=", &version.from), ("<", &version.to)] {
                    if let Some(bound) = bound {
                        which.push(format!("{first} {sign} {}", kind.put_back("?")));
                        binds.push(Bind::Text(bound.clone()));
                    }
                }
            }
        }
        let keyset = Keyset::of(&found.table).filter(|_| !has_place);
        let selected = keyset.as_ref().map(Keyset::selected).unwrap_or_default();
        let keys = selected.len();
        names.extend(selected);
        if let Some(cursor) = cursor {
            let behind = keyset.as_ref().and_then(|keyset| keyset.behind(cursor));
            let (behind, more) = behind.ok_or_else(|| {
                Failure::permanent("the checkpoint is one of another key; the table was altered, so run again")
            })?;
            which.push(behind);
            binds.extend(more);
        }
        names.extend(chosen.iter().map(|column| quote(&column.name)));
        which.extend(within);
        // A little that is new is better found by another index, and sorted.
        let along = key.filter(|_| window.is_none_or(|window| window.after.is_none()));
        let from = along.map_or_else(|| self.sql.clone(), |key| self.along(key));
        let mut sql = format!("SELECT {} FROM {from}", names.join(", "));
        if !which.is_empty() {
            sql.push_str(&format!(" WHERE {}", which.join(" AND ")));
        }
        if let Some(key) = key {
            let order: Vec<String> = key.columns.iter().map(|column| quote(column)).collect();
            sql.push_str(&format!(" ORDER BY {}", order.join(", ")));
        }
        let before = usize::from(has_place) + keys;
        Ok(Statement {
            sql,
            binds,
            has_place,
            keys,
            picked: (before..before + chosen.len()).collect(),
        })
    }

    async fn reader(
        &self,
        server: Arc<Server>,
        object: String,
        version: &Version,
        (from, end): (Position, Option<u64>),
        (window, cursor): (Option<&Window>, Option<&str>),
    ) -> Result<Reader, Failure> {
        let found = self.found(&server).await?;
        let chosen = self.choose(found)?;
        let statement = self.statement(found, &chosen, version, (from.offset, end), (window, cursor));
        let statement = statement.map_err(|failure| self.named(failure))?;
        let line: Option<fn(u64) -> u64> = match version.cut {
            Cut::Places { unsigned: true } => Some(|place| place),
            // There is no line below 0.
            Cut::Places { unsigned: false } => Some(|place| u64::try_from(signed_of(place)).unwrap_or(0)),
            Cut::Whole | Cut::Ranges(_) => None,
        };
        let shape = Shape {
            object: object.clone(),
            columns: chosen,
            forms: Arc::default(),
            checkpoint_rows: self.binding.checkpoint_rows.max(1),
            order: match cursor {
                _ if statement.has_place => Order::Keys,
                Some(_) => Order::Behind,
                None => Order::Counted,
            },
            line,
        };
        let session = server.session().await.map_err(|failure| self.named(failure))?;
        let name = self.name.clone();
        let rows = Rows::from_task(&object, move |feed| async move {
            let fed = read(&server, session, statement, feed).await;
            fed.map_err(|failure| of_source(&name, failure))
        });
        Reader::open(shape, rows, from).await
    }

    /// Where chunks begin, by places: ranges of equal width from the least key to the greatest, or of as many rows where most
    /// keys have none.
    async fn places(
        &self,
        server: &Server,
        session: &mut Session,
        key: &Key,
        unsigned: bool,
        (rows, parts): (u64, u64),
    ) -> Result<Vec<u64>, Failure> {
        let column = key.columns.first().map(|column| quote(column)).unwrap_or_default();
        let sql = format!("SELECT min({column}), max({column}) FROM {}", self.sql);
        let asking = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        let asking = asking.fetch_one(&mut session.connection);
        let row = server.patiently(session.id, "looking for its keys", asking).await?;
        let place = |text: &str| match unsigned {
            true => text.parse().ok(),
            false => text.parse().ok().map(place_of_signed),
        };
        let ends = named(&row).into_iter();
        let ends: Vec<u64> = ends.filter_map(|(_, text)| place(&text?)).collect();
        let mut starts = vec![0];
        if let [least, most] = ends.as_slice() {
            let keys = (most - least).saturating_add(1);
            if parts > 1 && rows > 0 && keys / rows > SPARSE {
                let kind = if unsigned { Kind::Unsigned } else { Kind::Signed };
                let found = bounds(server, session, &self.along(key), &column, &kind, (rows, parts)).await?;
                starts.extend(found.iter().filter_map(|bound| place(bound)));
                return Ok(starts);
            }
            let parts = parts.clamp(1, MAX_CHUNKS).min(keys);
            let step = (keys / parts).max(1);
            // The first begins at the lowest key there can be and the last ends nowhere: nothing is outside.
            starts.extend((1..parts).map(|part| least + part * step));
        }
        Ok(starts)
    }

    /// What errors call a chunk between two places.
    fn object(&self, key: &Key, unsigned: bool, (start, end): (u64, Option<u64>)) -> String {
        let shown = |place: u64| match unsigned {
            true => place.to_string(),
            false => signed_of(place).to_string(),
        };
        let mut object = self.declared.location.clone();
        if start > 0 || end.is_some() {
            object.push_str(&format!(", {}", key.columns.join(", ")));
        }
        if start > 0 {
            object.push_str(&format!(" from {}", shown(start)));
        }
        if let Some(end) = end {
            object.push_str(&format!(" to {}", shown(end - 1)));
        }
        object
    }

    /// Finds the window, and cuts.
    async fn cut(
        &self,
        stage: StageId,
        after: Option<(&Incremental, Option<&str>, bool)>,
    ) -> Result<Increment, Failure> {
        let server = self.server()?;
        let mut session = server.session().await.map_err(|failure| self.named(failure))?;
        let found = self.find(&server, &mut session).await;
        let found = found.map_err(|failure| self.named(failure))?;
        self.choose(&found)?;
        let new = match after {
            Some((how, low, open)) => {
                let columns = &found.columns;
                let new = self.window(&server, &mut session, columns, how, (low, open)).await;
                new.map_err(|failure| self.named(failure))?
            }
            None => incremental::Found::default(),
        };
        let window = new.window;
        let table = &found.table;
        let parts = table.bytes.div_ceil(self.declared.chunk_bytes);
        let mut version = found.version();
        let location = &self.declared.location;
        let mut chunks: Vec<(String, Version, u64, Option<u64>)> = Vec::new();
        match (&table.key, version.cut.clone()) {
            (Some(key), Cut::Places { unsigned }) => {
                let starts = self
                    .places(&server, &mut session, key, unsigned, (table.rows, parts))
                    .await;
                let starts = starts.map_err(|failure| self.named(failure))?;
                let ends = starts.iter().skip(1).copied().map(Some).chain([None]);
                for (start, end) in starts.iter().copied().zip(ends) {
                    let object = self.object(key, unsigned, (start, end));
                    chunks.push((object, version.clone(), start, end));
                }
            }
            (Some(key), Cut::Ranges(kind)) => {
                let column = key.columns.first().map(|column| quote(column)).unwrap_or_default();
                let sizes = (table.rows, parts);
                let bounds = bounds(&server, &mut session, &self.along(key), &column, &kind, sizes).await;
                let bounds = bounds.map_err(|failure| self.named(failure))?;
                let of = bounds.len() + 1;
                for (number, bound) in (1..).zip(bounds) {
                    version.to = Some(bound.clone());
                    chunks.push((format!("{location}, part {number} of {of}"), version.clone(), 0, None));
                    (version.from, version.to) = (Some(bound), None);
                }
                let object = match of {
                    1 => location.clone(),
                    _ => format!("{location}, part {of} of {of}"),
                };
                chunks.push((object, version, 0, None));
            }
            (_, Cut::Places { .. } | Cut::Ranges(_) | Cut::Whole) => chunks.push((location.clone(), version, 0, None)),
        }
        let bytes = table.bytes / chunks.len() as u64;
        let chunk = |(index, (object, version, start, end)): (u32, (String, Version, u64, Option<u64>))| ChunkSpec {
            chunk: ChunkId { stage, index },
            source: self.name.clone(),
            object,
            version: version.to_string(),
            start: Position { offset: start, line: 1 },
            end,
            bytes,
            window: window.clone(),
        };
        Ok(Increment {
            chunks: (0..).zip(chunks).map(chunk).collect(),
            to: window.as_ref().and_then(|window| window.up_to.clone()),
            held_back: new.held_back,
            below: new.below,
        })
    }
}

#[async_trait]
impl Source for MysqlRows {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        if !self.declared.columns.is_empty() {
            return Ok(self.declared.columns.clone());
        }
        Ok(self.choose(self.found(&*self.server()?).await?)?)
    }

    async fn described(&self) -> Result<Vec<Column>, Failure> {
        let server = self.server()?;
        let table = &self.found(&server).await?.table;
        let mut columns = self.columns().await?;
        for column in &mut columns {
            let there = table.columns.iter().find(|there| there.name == column.name);
            column.required = table.is_base && there.is_some_and(|there| !there.nullable);
        }
        Ok(columns)
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        self.choose(self.found(&*self.server()?).await?).map(drop)
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        self.cut(stage, None).await.map(|increment| increment.chunks)
    }

    async fn discover_after(&self, stage: StageId, low: Option<&str>, open: bool) -> Result<Increment, Failure> {
        let how = self.declared.incremental.as_ref();
        let how = how.ok_or_else(|| self.named(Failure::permanent("it is not declared `incremental`")))?;
        self.cut(stage, Some((how, low, open))).await
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        self.open_at(chunk, from, None).await
    }

    async fn open_at(
        &self,
        chunk: &ChunkSpec,
        from: Position,
        cursor: Option<&str>,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        let server = self.server()?;
        let guarded = incremental::guarded(self.declared.incremental.as_ref(), chunk.window.as_ref());
        guarded.map_err(|failure| self.named(failure))?;
        let version: Version = serde_json::from_str(&chunk.version).map_err(|_| {
            self.named(Failure::permanent(format!(
                "\"{}\" is no range of a key; run the same release on all nodes",
                chunk.version
            )))
        })?;
        let now = self.found(&server).await?.version();
        if (&now.key, &now.cut) != (&version.key, &version.cut) {
            return Err(self.named(Failure::permanent(format!(
                "{}: the table's key is another one than when it was cut into chunks; run again",
                chunk.object
            ))));
        }
        let from = match version.cut {
            Cut::Places { .. } => from,
            Cut::Whole | Cut::Ranges(_) if from == chunk.start => Position::default(),
            Cut::Whole | Cut::Ranges(_) => from,
        };
        let range = (from, chunk.end);
        Ok(Box::new(
            self.reader(
                server,
                chunk.object.clone(),
                &version,
                range,
                (chunk.window.as_ref(), cursor),
            )
            .await?,
        ))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        read_rows(&self.columns().await?, rows)
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        let server = self.server()?;
        let version = Version {
            cut: Cut::Whole,
            ..self.found(&server).await?.version()
        };
        let location = self.declared.location.clone();
        let reader = self.reader(
            server,
            location.clone(),
            &version,
            (Position::default(), None),
            (None, None),
        );
        whole(&self.name, &location, reader.await?).await
    }
}

impl Found {
    /// That of a chunk of everything.
    fn version(&self) -> Version {
        let key = self.table.key.as_ref();
        Version {
            key: key.map(|key| key.columns.clone()).unwrap_or_default(),
            cut: key.map_or(Cut::Whole, |key| key.cut.clone()),
            from: None,
            to: None,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}
