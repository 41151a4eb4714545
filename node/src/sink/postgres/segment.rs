//! One segment of a chunk: rows stream through COPY into the staging table, and commit with their marker.
//!
//! ```text
//! writer (encodes) --pieces, at most 4--> sender (owns the connection): BEGIN, COPY ... , marker, COMMIT
//!        ^------------- empty buffers ----------/
//! ```
//!
//! The sender is a task of its own, so encoding and sending overlap, and so that a COPY which borrows its connection can
//! live as long as the segment. When the writer is dropped, the channel closes, and the sender closes its connection: the
//! server rolls back. The commit checks, in the same transaction, that the load still takes chunks and that no higher
//! attempt has begun; both are read under a lock, so a fence that is raised later waits for this commit.

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use haulage_core::checkpoint::Marker;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId};
use sqlx::{AssertSqlSafe, Row};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Postgres;
use super::bookkeeping::{Area, Lock};
use super::connect::{BEGIN_BRIEFLY, Lease};
use super::encode::{Column, Format, Rows};
use super::failure::{Place, outcome_unknown, row_of_copy};
use super::stage::{staged, writing};
use crate::sink::fence::admit;
use crate::sink::name::quote_all;
use crate::sink::{BadRow, Committed, LoadContext, Refused, SegmentWriter};
use crate::source::{EXCERPT, excerpt};

/// A piece is sent when it holds so many bytes: large enough that a system call costs nothing, small enough to overlap.
const PIECE: usize = 128 * 1024;
/// Pieces between the encoder and the connection.
const QUEUE: usize = 4;

impl Postgres {
    pub(super) async fn open_segment(
        &self,
        load: &LoadContext,
        chunk: ChunkId,
        attempt: Attempt,
    ) -> Result<Box<dyn SegmentWriter>, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("staging chunk {chunk} of load {}", load.load);
        // Also checked at the commit, under a lock; here it only saves the way.
        staged(&mut lease, load, &doing, Lock::None).await?;
        let columns = writing(&mut lease, load).await?.columns;
        let (pieces, incoming) = mpsc::channel(QUEUE);
        let (recycle, empty) = mpsc::channel(QUEUE);
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let area = Area::of(load);
        let format = Format::of(&columns);
        let copy = format!(
            "COPY {} ({}) FROM STDIN (FORMAT {})",
            area.stage,
            quote_all(&names),
            format.sql()
        );
        let sender = Sender {
            postgres: self.clone(),
            load: load.clone(),
            area,
            chunk,
            attempt,
            doing,
            format,
            copy,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(sender.run(lease, incoming, recycle)));
        let mut buffer = Vec::with_capacity(PIECE + PIECE / 4);
        buffer.extend_from_slice(format.around().0);
        Ok(Box::new(Writer {
            load: load.clone(),
            columns,
            rows: 0,
            buffer,
            bytes: 0,
            pieces,
            empty,
            task,
            postgres: self.clone(),
        }))
    }
}

enum Piece {
    Data(Vec<u8>),
    Commit(Marker),
}

struct Writer {
    load: LoadContext,
    columns: Vec<Column>,
    /// Rows of the batches that are written.
    rows: u64,
    buffer: Vec<u8>,
    bytes: u64,
    pieces: mpsc::Sender<Piece>,
    empty: mpsc::Receiver<Vec<u8>>,
    /// Aborted with the writer: a sender that waits for the server would not see that nobody wants it any more.
    task: AbortOnDropHandle<Result<Option<Committed>, Refused>>,
    postgres: Postgres,
}

#[async_trait]
impl SegmentWriter for Writer {
    async fn write(&mut self, batch: &RecordBatch) -> Result<(), Refused> {
        let columns = std::mem::take(&mut self.columns);
        let written = self.write_rows(&columns, batch).await;
        self.columns = columns;
        written
    }

    async fn commit(mut self: Box<Self>, marker: Marker) -> Result<Committed, Refused> {
        let (postgres, doing) = (self.postgres.clone(), self.doing());
        postgres.soon(&doing, self.finish(marker)).await
    }
}

impl Writer {
    fn doing(&self) -> String {
        format!("staging rows of load {}", self.load.load)
    }

    async fn finish(&mut self, marker: Marker) -> Result<Committed, Refused> {
        self.buffer.extend_from_slice(Format::of(&self.columns).around().1);
        self.send().await?;
        let bytes = self.bytes;
        if self.pieces.send(Piece::Commit(marker)).await.is_err() {
            return Err(self.reason().await);
        }
        match (&mut self.task).await {
            Ok(Ok(Some(committed))) => Ok(Committed { bytes, ..committed }),
            Ok(Ok(None)) => Err(Failure::transient(format!("load {}: the segment was dropped", self.load.load)).into()),
            Ok(Err(refused)) => Err(refused),
            Err(error) => Err(Failure::transient(format!(
                "load {}: the sender of a segment ended: {error}",
                self.load.load
            ))
            .into()),
        }
    }

    async fn write_rows(&mut self, columns: &[Column], batch: &RecordBatch) -> Result<(), Refused> {
        let mut rows = Rows::new(columns, batch).map_err(|error| self.unfit(error))?;
        while rows.fill(&mut self.buffer, PIECE).map_err(|error| self.unfit(error))? {
            self.send().await?;
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn unfit(&self, error: super::encode::Error) -> Refused {
        let Some(row) = error.row else {
            return Failure::permanent(format!(
                "load {}: {error}; CAST or filter it in the step's SQL",
                self.load.load
            ))
            .into();
        };
        let why = format!(
            "{}; CAST it in the step's SQL, or name such rows in a `reject` rule",
            error.cause
        );
        BadRow {
            says_value: true,
            ..self.load.bad_row(self.rows + row as u64, Some(&error.column), why)
        }
        .into()
    }

    async fn send(&mut self) -> Result<(), Refused> {
        let mut next = self
            .empty
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(PIECE + PIECE / 4));
        next.clear();
        let full = std::mem::replace(&mut self.buffer, next);
        self.bytes += full.len() as u64;
        let sent = async { Ok::<bool, Failure>(self.pieces.send(Piece::Data(full)).await.is_ok()) };
        if !self.postgres.soon(&self.doing(), sent).await? {
            return Err(self.reason().await);
        }
        Ok(())
    }

    /// Why the sender stopped listening.
    async fn reason(&mut self) -> Refused {
        match (&mut self.task).await {
            Ok(Err(refused)) => refused,
            Ok(Ok(_)) | Err(_) => {
                Failure::transient(format!("load {}: the sender of a segment ended", self.load.load)).into()
            }
        }
    }
}

/// Owns the connection of one segment.
struct Sender {
    postgres: Postgres,
    load: LoadContext,
    area: Area,
    chunk: ChunkId,
    attempt: Attempt,
    doing: String,
    format: Format,
    copy: String,
}

impl Sender {
    /// `None` if the writer was dropped before its commit.
    async fn run(
        self,
        mut lease: Lease,
        mut pieces: mpsc::Receiver<Piece>,
        recycle: mpsc::Sender<Vec<u8>>,
    ) -> Result<Option<Committed>, Refused> {
        lease.must(&self.doing, BEGIN_BRIEFLY).await?;
        if self.format == Format::Text {
            // By which intervals are read, whatever the role or the database has set.
            lease.must(&self.doing, "SET LOCAL intervalstyle = 'postgres'").await?;
        }
        let place = lease.place().clone();
        let copy = lease.connection().copy_in_raw(&self.copy).await;
        let mut copy = copy.map_err(|error| place.failure(&self.doing, error))?;
        let marker = loop {
            match pieces.recv().await {
                Some(Piece::Data(data)) => {
                    copy.send(data.as_slice())
                        .await
                        .map_err(|error| self.refused(&place, error))?;
                    // Full or closed: then the buffer is simply freed.
                    drop(recycle.try_send(data));
                }
                Some(Piece::Commit(marker)) => break marker,
                // Dropped: so is the connection, and the server rolls back.
                None => return Ok(None),
            }
        };
        let rows = copy.finish().await.map_err(|error| self.refused(&place, error))?;
        let marker = Marker {
            chunk: self.chunk,
            attempt: self.attempt,
            rows,
            ..marker
        };
        let fresh = self.mark(&mut lease, &marker).await?;
        let Some(fresh) = fresh else {
            let standing = self.standing(&mut lease, marker.segment).await?;
            lease.must(&self.doing, "ROLLBACK").await?;
            lease.give_back();
            return match standing {
                Some(marker) => Ok(Some(Committed {
                    marker,
                    bytes: 0,
                    fresh: false,
                })),
                None => Err(Failure::transient(format!(
                    "{}: segment {} of chunk {} was marked and is not any more",
                    place, marker.segment, self.chunk
                ))
                .into()),
            };
        };
        match lease.run("COMMIT").await {
            Ok(_) => {
                lease.give_back();
                Ok(Some(fresh))
            }
            Err(error) if outcome_unknown(&error) => {
                drop(lease);
                Ok(self.resolve(fresh, place.failure(&self.doing, error)).await?)
            }
            Err(error) => Err(place.failure(&self.doing, error).into()),
        }
    }

    /// Checks the fence and inserts the marker; `None` if one stands already.
    async fn mark(&self, lease: &mut Lease, marker: &Marker) -> Result<Option<Committed>, Failure> {
        staged(lease, &self.load, &self.doing, Lock::Share).await?;
        self.check_fence(lease).await?;
        let sql = format!(
            "INSERT INTO {} (stage, chunk, segment, attempt, rows, manifest) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
            self.area.marks
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(i64::from(self.chunk.stage.0))
            .bind(i64::from(self.chunk.index))
            .bind(i64::from(marker.segment))
            .bind(i64::from(self.attempt.0))
            .bind(marker.rows as i64)
            .bind(&marker.manifest)
            .execute(lease.connection())
            .await
            .map_err(|error| lease.place().failure(&self.doing, error))?;
        Ok((done.rows_affected() == 1).then(|| Committed {
            marker: marker.clone(),
            bytes: 0,
            fresh: true,
        }))
    }

    async fn check_fence(&self, lease: &mut Lease) -> Result<(), Failure> {
        let begun: Option<(i64, i64)> = sqlx::query_as(
            "SELECT epoch, attempt FROM haulage.fences WHERE run = $1 AND load = $2 AND stage = $3 AND chunk = $4 FOR UPDATE",
        )
        .bind(self.load.run.as_str())
        .bind(self.load.load.as_str())
        .bind(i64::from(self.chunk.stage.0))
        .bind(i64::from(self.chunk.index))
        .fetch_optional(lease.connection())
        .await
        .map_err(|error| lease.place().failure(&self.doing, error))?;
        admit(&self.load, self.chunk, self.attempt, begun)
    }

    async fn standing(&self, lease: &mut Lease, segment: u32) -> Result<Option<Marker>, Failure> {
        let sql = format!(
            "SELECT attempt, rows, manifest FROM {} WHERE stage = $1 AND chunk = $2 AND segment = $3",
            self.area.marks
        );
        let read = |row: sqlx::postgres::PgRow| {
            Ok(Marker {
                chunk: self.chunk,
                segment,
                attempt: Attempt(row.try_get::<i64, _>(0)? as u32),
                rows: row.try_get::<i64, _>(1)? as u64,
                manifest: row.try_get(2)?,
            })
        };
        let row = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(i64::from(self.chunk.stage.0))
            .bind(i64::from(self.chunk.index))
            .bind(i64::from(segment))
            .fetch_optional(lease.connection())
            .await;
        row.and_then(|row| row.map(read).transpose())
            .map_err(|error| lease.place().failure(&self.doing, error))
    }

    /// The answer to COMMIT was lost: the marker tells. The fence row is locked first, because the lost transaction holds
    /// it until it has ended one way or the other.
    async fn resolve(&self, fresh: Committed, lost: Failure) -> Result<Option<Committed>, Failure> {
        let mut lease = self.postgres.lease().await?;
        lease.must(&self.doing, BEGIN_BRIEFLY).await?;
        self.check_fence(&mut lease).await?;
        let standing = self.standing(&mut lease, fresh.marker.segment).await?;
        lease.must(&self.doing, "COMMIT").await?;
        lease.give_back();
        match standing {
            Some(marker) if marker == fresh.marker => Ok(Some(fresh)),
            Some(marker) => Ok(Some(Committed {
                marker,
                bytes: 0,
                fresh: false,
            })),
            None => Err(lost),
        }
    }

    /// What the server said of a COPY. It counts the rows of it as lines, from 1.
    fn refused(&self, place: &Place, error: sqlx::Error) -> Refused {
        let Some(row) = row_of_copy(&error) else {
            return place.failure(&self.doing, error).into();
        };
        let at = row.line - 1;
        if let ("23502", Some(column)) = (row.code, row.column) {
            return self.load.without_value(column, at).into();
        }
        // Where texts are read, the value may stand behind the column's name, or the whole row in its place.
        let column = row.column.and_then(|said| {
            let is_it = |name: &&str| {
                let rest = said.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
            };
            let names = self.load.schema.fields().iter().map(|field| field.name().as_str());
            names.filter(is_it).max_by_key(|name| name.len())
        });
        let why = format!(
            "{} doesn't take it: {} (SQLSTATE {}); name such rows in a `reject` rule of the step, or CAST the value there",
            self.load.table,
            excerpt(row.message.as_bytes(), 4 * EXCERPT),
            row.code
        );
        self.load.bad_row(at, column, why).into()
    }
}
