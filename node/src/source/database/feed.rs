//! Rows on their way from a connection to the reader of segments, as text, in small packets.
//!
//! A task of its own owns the connection and stops when the reader doesn't keep up, so what is in between has a bound
//! whatever the rows are: three packets, and the row that the driver is reading.

use std::future::Future;

use haulage_core::failure::Failure;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// A packet is sent when it holds so many bytes.
const PACKET_BYTES: usize = 128 << 10;
/// Packets under way, beside the one that is filled and the one that is read.
const PACKETS: usize = 1;
/// A longer row is an error: two segments of a chunk have to fit into a node's memory.
const MAX_ROW: usize = 16 << 20;

/// A value's place in its packet's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) is_null: bool,
}

/// A row of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Where it lies in its table; 0 if rows of the source have no place.
    pub(super) place: u64,
    /// Its bytes: the values with a tab between, and `\N` for none.
    pub(super) start: u32,
    pub(super) end: u32,
    /// The first of its cells.
    first: u32,
}

/// Rows in a row.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) data: Vec<u8>,
    pub(super) rows: Vec<Row>,
    cells: Vec<Cell>,
    /// Where each row is to be found again, of rows that are found by a key; empty of one that isn't.
    keys: Vec<String>,
}

impl Packet {
    /// The values of a row.
    pub(super) fn cells(&self, row: &Row, columns: usize) -> &[Cell] {
        &self.cells[row.first as usize..row.first as usize + columns]
    }

    /// What the row's key is, if it is found by one.
    pub(super) fn key(&self, row: usize) -> Option<&str> {
        self.keys.get(row).map(String::as_str).filter(|key| !key.is_empty())
    }
}

/// `None` is the end of the rows: a channel that only closes has lost its task.
type Sent = Result<Option<Packet>, Failure>;

/// Where a connection's task puts rows.
pub(super) struct Feed {
    packet: Packet,
    /// What errors call the rows.
    object: String,
    to: mpsc::Sender<Sent>,
}

impl Feed {
    /// Begins a row.
    pub(super) fn begin(&mut self, place: u64) {
        let at = self.packet.data.len() as u32;
        self.packet.rows.push(Row {
            place,
            start: at,
            end: at,
            first: self.packet.cells.len() as u32,
        });
    }

    /// What the row that has begun is found by; every row has one then, and an empty one is none.
    pub(super) fn key(&mut self, key: String) {
        self.packet.keys.push(key);
    }

    /// Adds a value to the row that has begun; `None` is NULL. Permanent failure if the row is too long.
    pub(super) fn value(&mut self, text: Option<&[u8]>) -> Result<(), Failure> {
        let Packet { data, rows, cells, .. } = &mut self.packet;
        let row = rows.last().map_or(0, |row| row.start);
        let first = rows.last().map_or(0, |row| row.first);
        if cells.len() as u32 > first {
            data.push(b'\t');
        }
        let start = data.len() as u32;
        let text_or_mark = text.unwrap_or(b"\\N");
        if data.len() - row as usize + text_or_mark.len() > MAX_ROW {
            return Err(Failure::permanent(format!(
                "{}: a row is longer than {} MiB; leave the large column out with `columns`",
                self.object,
                MAX_ROW >> 20
            )));
        }
        data.extend_from_slice(text_or_mark);
        cells.push(Cell {
            start,
            end: data.len() as u32,
            is_null: text.is_none(),
        });
        Ok(())
    }

    /// Ends the row. Waits while the reader is behind; a failure if it is gone.
    pub(super) async fn end(&mut self) -> Result<(), Failure> {
        let length = self.packet.data.len();
        if let Some(row) = self.packet.rows.last_mut() {
            row.end = length as u32;
        }
        if length >= PACKET_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        let packet = std::mem::take(&mut self.packet);
        let sent = self.to.send(Ok(Some(packet))).await;
        sent.map_err(|_| Failure::transient("nobody reads on"))
    }
}

/// The rows that a task puts into a [`Feed`]. Dropping it ends the task.
pub(super) struct Rows {
    from: mpsc::Receiver<Sent>,
    _task: AbortOnDropHandle<()>,
    ended: bool,
    object: String,
}

impl Rows {
    /// Starts a task that puts rows into the feed, and hands it back after the last.
    pub(super) fn from_task<F>(object: &str, task: impl FnOnce(Feed) -> F) -> Self
    where
        F: Future<Output = Result<Feed, Failure>> + Send + 'static,
    {
        let (to, from) = mpsc::channel(PACKETS);
        let feed = Feed {
            packet: Packet::default(),
            object: object.to_owned(),
            to: to.clone(),
        };
        let work = task(feed);
        let all = async move {
            let done = match work.await {
                Ok(mut feed) => match feed.flush().await {
                    Ok(()) => Ok(None),
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            };
            // An error means that nobody wants to know.
            drop(to.send(done).await);
        };
        Self {
            from,
            _task: AbortOnDropHandle::new(tokio::spawn(all.in_current_span())),
            ended: false,
            object: object.to_owned(),
        }
    }

    /// The next rows; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Packet>, Failure> {
        while !self.ended {
            match self.from.recv().await {
                Some(Ok(Some(packet))) if packet.rows.is_empty() => {}
                Some(Ok(Some(packet))) => return Ok(Some(packet)),
                Some(Ok(None)) => self.ended = true,
                Some(Err(failure)) => return Err(failure),
                None => {
                    return Err(Failure::transient(format!(
                        "{}: the reading ended before the last row",
                        self.object
                    )));
                }
            }
        }
        Ok(None)
    }
}
