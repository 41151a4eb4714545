//! PostgreSQL as a source: a table in chunks of pages, a view or a query in one.
//!
//! Rows of a table come by TID range scans, in the order in which they lie, and a checkpoint is the place after the last
//! one; in one snapshot rows don't move. Tables without pages of their own (partitioned and foreign ones), tables that
//! others inherit from, views and queries are one chunk of counted rows, see [`super::reader`].

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::checkpoint::{ChunkSpec, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, StageId};
use haulage_core::watermark::Window;
use haulage_plan::definition::{Column, DatabaseRows, DatabaseSource, Incremental, QueryPart};
use sqlx::{AssertSqlSafe, Executor, Row as _, SqlSafeStr as _, Statement as _};
use tokio::sync::OnceCell;

use self::rows::{PAGE, bound, column, form_of, literal, read, text, tid};
pub(super) use self::server::Server;
use self::server::Version;
use super::feed::Rows;
use super::form::Form;
use super::incremental;
use super::reader::{Order, Reader, Shape, read_rows};
use super::{choose, of_source, whole};
use crate::sink::name::{TableName, quote};
use crate::sink::postgres::connect::Lease;
use crate::source::{Binding, Increment, KeptRow, Misdeclared, Reread, SegmentReader, Source};

mod copied;
mod describe;
mod locks;
mod rows;
mod server;
mod window;

/// More chunks than this only cost.
const MAX_CHUNKS: u64 = 10_000;
/// The first version that reads a range of pages without looking at the others.
const TID_RANGE_SCANS: i32 = 140_000;

/// An index may give other rows first than those that lie first: that of a watermark column, or of what a policy of the
/// table asks for.
const NO_INDEX: &str = "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; \
                        SET LOCAL enable_bitmapscan = off";

/// A table, view or query of a PostgreSQL database.
pub(super) struct PostgresRows {
    name: String,
    declared: DatabaseSource,
    binding: Binding,
    /// The rows in SQL: a table's name, or the query in brackets.
    from: String,
    found: OnceCell<Vec<Column>>,
}

fn names(columns: &[Column]) -> String {
    let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
    names.join(", ")
}

/// A query as what is selected from. A comment at its end ends with its line.
fn in_brackets(query: &str) -> String {
    format!("(\n{query}\n) AS q")
}

/// Which rows a reader reads.
#[derive(Debug, Clone, Copy, Default)]
struct Part<'p> {
    /// Where rows with places start and end.
    range: Option<(Position, Option<u64>)>,
    window: Option<&'p Window>,
}

/// How a table lies.
struct Lie {
    pages: u64,
    page_bytes: u64,
    /// With what is stored beside the pages.
    bytes: u64,
    /// Whether all its rows are on its own pages.
    by_page: bool,
    /// Whether a range of pages can be read alone.
    in_ranges: bool,
}

impl PostgresRows {
    /// Permanent failure if the table's name is none.
    pub(super) fn new(name: &str, declared: &DatabaseSource, binding: Binding) -> Result<Self, Failure> {
        let from = match &declared.rows {
            DatabaseRows::Table(table) => {
                let table = TableName::parse(table).map_err(|failure| of_source(name, failure))?;
                let schema = table.schema.map(|schema| format!("{}.", quote(&schema)));
                format!("{}{}", schema.unwrap_or_default(), quote(&table.table))
            }
            DatabaseRows::Query(parts) => in_brackets(&text(parts)),
        };
        Ok(Self {
            name: name.to_owned(),
            declared: declared.clone(),
            binding,
            from,
            found: OnceCell::new(),
        })
    }

    fn server(&self) -> Result<Arc<Server>, Failure> {
        let server = self.binding.databases.postgres(&self.declared.at);
        server.map_err(|failure| of_source(&self.name, failure))
    }

    fn params(&self) -> &[QueryPart] {
        match &self.declared.rows {
            DatabaseRows::Query(parts) => parts,
            DatabaseRows::Table(_) => &[],
        }
    }

    fn is_table(&self) -> bool {
        matches!(self.declared.rows, DatabaseRows::Table(_))
    }

    /// The columns that are there.
    async fn found(&self, server: &Server) -> Result<&Vec<Column>, Failure> {
        let find = || async {
            let mut lease = server.connect().await?;
            if self.is_table() {
                server
                    .soon("looking at its columns", lease.run("BEGIN READ ONLY"))
                    .await?;
                server.lock(&mut lease, &self.from).await?;
            }
            let sql = format!("SELECT * FROM {}", self.from);
            let preparing = lease.connection().prepare(AssertSqlSafe(sql).into_sql_str());
            let statement = server.soon("looking at its columns", preparing).await?;
            Ok(statement.columns().iter().map(column).collect())
        };
        let found = self.found.get_or_try_init(find).await;
        found.map_err(|failure| of_source(&self.name, failure))
    }

    async fn columns_of(&self, server: &Server) -> Result<Vec<Column>, Misdeclared> {
        let found = self.found(server).await?;
        choose(&self.name, &self.declared.location, &self.declared.columns, found)
    }

    /// What the columns' values are asked for as, and how they stand in SQL then. They are asked of the transaction that
    /// reads: looking at the columns locks them there, so that none becomes one of another type in between.
    async fn values(
        &self,
        server: &Server,
        lease: &mut Lease,
        columns: &[Column],
    ) -> Result<(Arc<[Form]>, String), Failure> {
        let types: Vec<String> = columns
            .iter()
            .map(|column| format!("pg_typeof(q.{})::oid::bigint", quote(&column.name)))
            .collect();
        let sql = format!(
            "SELECT current_setting('integer_datetimes') = 'on', ARRAY[{}]
             FROM (SELECT) AS one LEFT JOIN (SELECT {} FROM {} LIMIT 0) AS q ON true",
            types.join(", "),
            names(columns),
            self.from
        );
        let asking = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), self.params());
        let doing = "looking at its columns";
        let row = server.soon(doing, asking.fetch_one(lease.connection())).await?;
        let read = || Ok((row.try_get::<bool, _>(0)?, row.try_get::<Vec<i64>, _>(1)?));
        let (whole, numbers) = read().map_err(|error| server.failure(doing, error))?;
        let form = |(column, number): (&Column, &i64)| {
            form_of(u32::try_from(*number).unwrap_or_default(), &column.data_type, whole)
        };
        let forms: Arc<[Form]> = columns.iter().zip(&numbers).map(form).collect();
        let value = |(column, form): (&Column, &Form)| match form {
            Form::Text => format!("{}::text", quote(&column.name)),
            _ => quote(&column.name),
        };
        let values: Vec<String> = columns.iter().zip(&*forms).map(value).collect();
        Ok((forms, values.join(", ")))
    }

    /// How the table lies, as the session sees it; `None` of a query.
    async fn lie(&self, server: &Server, lease: &mut Lease) -> Result<Option<Lie>, Failure> {
        if matches!(self.declared.rows, DatabaseRows::Query(_)) {
            return Ok(None);
        }
        let asking = sqlx::query(
            "SELECT c.relkind IN ('r', 'm') AND NOT c.relhassubclass AND coalesce(am.amname, 'heap') = 'heap',
                    pg_relation_size(c.oid), pg_table_size(c.oid), current_setting('block_size')::bigint,
                    current_setting('server_version_num')::int
             FROM pg_class c LEFT JOIN pg_am am ON am.oid = c.relam WHERE c.oid = to_regclass($1)",
        )
        .bind(&self.from)
        .fetch_one(lease.connection());
        let row = server.soon("looking at its size", asking).await?;
        let read = || {
            let page_bytes: i64 = row.try_get(3)?;
            let page_bytes = page_bytes.max(1);
            Ok(Lie {
                by_page: row.try_get(0)?,
                pages: row.try_get::<i64, _>(1)?.max(0).div_euclid(page_bytes) as u64,
                bytes: row.try_get::<i64, _>(2)?.max(0) as u64,
                page_bytes: page_bytes as u64,
                in_ranges: row.try_get::<i32, _>(4)? >= TID_RANGE_SCANS,
            })
        };
        read()
            .map(Some)
            .map_err(|error| server.failure("looking at its size", error))
    }

    /// A reader of all rows that the user sees, in a snapshot of its own.
    pub(super) async fn all(&self) -> Result<Reader, Failure> {
        self.all_with(None).await
    }

    /// The same; permanent failure if a policy hides some from the user, instead of rows that seem to be gone.
    pub(super) async fn all_or_none(&self) -> Result<Reader, Failure> {
        self.all_with(Some("SET LOCAL row_security = off")).await
    }

    async fn all_with(&self, setting: Option<&'static str>) -> Result<Reader, Failure> {
        let server = self.server()?;
        let named = |failure| of_source(&self.name, failure);
        let mut lease = server.connect().await.map_err(named)?;
        server.begin(&mut lease, None).await.map_err(named)?;
        if let Some(setting) = setting {
            let set = server.soon("beginning to read", lease.run(setting)).await;
            set.map_err(named)?;
        }
        let location = self.declared.location.clone();
        self.reader(
            server,
            lease,
            location,
            Part::default(),
            Position::default(),
            Arc::default(),
        )
        .await
    }

    /// A reader of rows in a transaction that has begun on `lease`. `held` is kept until the last row.
    async fn reader(
        &self,
        server: Arc<Server>,
        lease: Lease,
        object: String,
        Part { range, window }: Part<'_>,
        from: Position,
        held: Arc<()>,
    ) -> Result<Reader, Failure> {
        let columns = self.columns_of(&server).await?;
        // A little that is new is found by an index, and sorted; much is read in the order in which it lies.
        let is_sorted =
            range.is_some_and(|(_, end)| end.is_none()) && window.is_some_and(|window| window.after.is_some());
        let mut lease = lease;
        if range.is_some() && !is_sorted {
            server.soon("preparing to read", lease.run(NO_INDEX)).await?;
        }
        let named = |failure| of_source(&self.name, failure);
        let (forms, values) = self.values(&server, &mut lease, &columns).await.map_err(named)?;
        let from_rows = match &self.declared.rows {
            DatabaseRows::Table(_) => self.from.clone(),
            DatabaseRows::Query(parts) => in_brackets(&literal(parts)),
        };
        let place = if range.is_some() { "ctid, " } else { "" };
        let mut sql = format!("COPY (SELECT {place}{values} FROM {from_rows}");
        let mut conditions = Vec::new();
        if let Some((start, end)) = range {
            conditions.push(format!("ctid >= '{}'::tid", tid(start.offset)));
            conditions.extend(end.map(|end| format!("ctid < '{}'::tid", tid(end))));
        }
        if let Some(window) = window {
            let of = window::conditions(window, self.found(&server).await?);
            conditions.extend(of.map_err(named)?);
        }
        if !conditions.is_empty() {
            sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
        }
        if is_sorted {
            sql.push_str(" ORDER BY ctid");
        }
        sql.push_str(") TO STDOUT (FORMAT binary)");
        let shape = Shape {
            object: object.clone(),
            columns,
            forms: Arc::clone(&forms),
            checkpoint_rows: self.binding.checkpoint_rows.max(1),
            order: if range.is_some() { Order::Places } else { Order::Counted },
            line: None,
        };
        let (has_place, name, count) = (range.is_some(), self.name.clone(), forms.len());
        let rows = Rows::in_forms(&object, forms, move |feed| async move {
            let fed = read(server, lease, sql, has_place, count, feed).await;
            drop(held);
            fed.map_err(|failure| of_source(&name, failure))
        });
        Reader::open(shape, rows, from).await
    }

    /// Takes the snapshot, finds the window in it, and cuts.
    async fn cut(
        &self,
        stage: StageId,
        after: Option<(&Incremental, Option<&str>, bool)>,
    ) -> Result<Increment, Failure> {
        let server = self.server()?;
        let columns = self.columns_of(&server).await?;
        let named = |failure| of_source(&self.name, failure);
        let keeper = server.snapshot().await.map_err(named)?;
        let mut session = keeper.session().await;
        // An error ends the transaction, and a wait that is given up leaves it nobody knows where.
        let given_up = |failure| {
            keeper.give_up();
            failure
        };
        let named = |failure| named(given_up(failure));
        if self.is_table() {
            server.lock(&mut session, &self.from).await.map_err(named)?;
        }
        // A cursor that is declared has locked all that it would read, until the transaction ends.
        let sql = format!(
            "DECLARE haulage NO SCROLL CURSOR FOR SELECT {} FROM {}",
            names(&columns),
            self.from
        );
        let declaring = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), self.params());
        let doing = "preparing to read";
        let declared = server.soon(doing, declaring.execute(session.connection())).await;
        declared.map_err(named)?;
        server.soon(doing, session.run("CLOSE haulage")).await.map_err(named)?;
        let lie = self.lie(&server, &mut session).await.map_err(named)?;
        let new = match after {
            Some((how, low, open)) => self
                .window(&server, &mut session, how, (low, open))
                .await
                .map_err(named)?,
            None => incremental::Found::default(),
        };
        let window = new.window;
        let small = match (&window, &lie) {
            (Some(window), Some(lie)) if lie.by_page && lie.in_ranges => {
                Some(self.is_small(&server, &mut session, window, lie).await.map_err(named)?)
            }
            _ => None,
        };
        drop(session);

        let places = lie.as_ref().is_some_and(|lie| lie.by_page);
        let version = Version {
            id: keeper.id(),
            mark: keeper.mark(),
            places,
        };
        let version = version.to_string();
        let chunk = |index, object, start, end, bytes| ChunkSpec {
            chunk: ChunkId { stage, index },
            source: self.name.clone(),
            object,
            version: version.clone(),
            start: Position { offset: start, line: 1 },
            end,
            bytes,
            window: window.clone(),
        };
        let increment = |chunks| Increment {
            chunks,
            to: window.as_ref().and_then(|window| window.up_to.clone()),
            held_back: new.held_back,
            below: new.below.clone(),
        };
        let location = &self.declared.location;
        let Some(lie) = lie.filter(|lie| lie.by_page && lie.in_ranges && lie.pages > 0) else {
            return Ok(increment(vec![chunk(0, location.clone(), 0, None, 0)]));
        };
        let bytes = small.map_or(lie.bytes, |(_, bytes)| bytes);
        if small.is_some_and(|(is_small, _)| is_small) {
            return Ok(increment(vec![chunk(0, location.clone(), 0, None, bytes)]));
        }
        let parts = bytes.div_ceil(self.declared.chunk_bytes).clamp(1, MAX_CHUNKS);
        let step = lie.pages.div_ceil(parts).max(1);
        let starts: Vec<u64> = (0..lie.pages)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .collect();
        let one = |(index, start): (u32, &u64)| {
            let end = start + step;
            let last = end >= lie.pages;
            let pages = end.min(lie.pages) - start;
            let object = match starts.len() {
                1 => location.clone(),
                _ => format!("{location}, pages {start} to {}", end.min(lie.pages) - 1),
            };
            let bytes = match small {
                Some(_) => bytes / lie.pages.max(1) * pages,
                None => (pages * lie.page_bytes).max(lie.bytes / lie.pages * pages),
            };
            chunk(index, object, start * PAGE, (!last).then_some(end * PAGE), bytes)
        };
        Ok(increment((0..).zip(&starts).map(one).collect()))
    }
}

#[async_trait]
impl Source for PostgresRows {
    async fn columns(&self) -> Result<Vec<Column>, Failure> {
        if !self.declared.columns.is_empty() {
            return Ok(self.declared.columns.clone());
        }
        Ok(self.columns_of(&*self.server()?).await?)
    }

    async fn described(&self) -> Result<Vec<Column>, Failure> {
        let mut columns = self.columns().await?;
        if self.is_table() {
            describe::describe(&*self.server()?, &self.from, &mut columns)
                .await
                .map_err(|failure| of_source(&self.name, failure))?;
        }
        Ok(columns)
    }

    async fn check(&self) -> Result<(), Misdeclared> {
        self.columns_of(&*self.server()?).await.map(drop)
    }

    async fn discover(&self, stage: StageId) -> Result<Vec<ChunkSpec>, Failure> {
        self.cut(stage, None).await.map(|increment| increment.chunks)
    }

    async fn discover_after(&self, stage: StageId, low: Option<&str>, open: bool) -> Result<Increment, Failure> {
        let how = self
            .declared
            .incremental
            .as_ref()
            .ok_or_else(|| Failure::permanent(format!("source {}: it is not declared `incremental`", self.name)))?;
        self.cut(stage, Some((how, low, open))).await
    }

    async fn open(&self, chunk: &ChunkSpec, from: Position) -> Result<Box<dyn SegmentReader>, Failure> {
        let server = self.server()?;
        let named = |failure| of_source(&self.name, failure);
        incremental::guarded(self.declared.incremental.as_ref(), chunk.window.as_ref()).map_err(named)?;
        let version = Version::parse(&chunk.version).ok_or_else(|| {
            named(Failure::permanent(format!(
                "\"{}\" names no snapshot; run the same release on all nodes",
                chunk.version
            )))
        })?;
        let keeper = server.join(&version).await.map_err(named)?;
        let mut lease = server.connect().await.map_err(named)?;
        let mark = server.begin(&mut lease, Some(keeper.id())).await.map_err(named)?;
        if mark != version.mark {
            return Err(named(Failure::transient(format!(
                "{}: the snapshot {} is another one than that of the run",
                server.place(),
                keeper.id()
            ))));
        }
        if self.is_table() {
            server.lock(&mut lease, &self.from).await.map_err(named)?;
        }
        let range = version.places.then_some((from, chunk.end));
        let from = match version.places {
            false if from == chunk.start => Position::default(),
            _ => from,
        };
        Ok(Box::new(
            self.reader(
                server,
                lease,
                chunk.object.clone(),
                Part {
                    range,
                    window: chunk.window.as_ref(),
                },
                from,
                keeper.hold(),
            )
            .await?,
        ))
    }

    async fn reread(&self, rows: &[KeptRow<'_>]) -> Result<Reread, Failure> {
        read_rows(&self.columns().await?, rows)
    }

    async fn read_all(&self) -> Result<Vec<RecordBatch>, Failure> {
        whole(&self.name, &self.declared.location, self.all().await?).await
    }
}
