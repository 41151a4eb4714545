//! Rows on their way from a connection to the reader of segments, in small packets: as text, or each value in its
//! [`Form`].
//!
//! A task of its own owns the connection and stops when the reader doesn't keep up, so what is in between has a bound
//! whatever the rows are: three packets, and the row that the driver is reading.

use std::future::Future;
use std::sync::Arc;

use haulage_core::failure::Failure;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::form::Form;

/// A packet is sent when it holds so many bytes.
const PACKET_BYTES: usize = 128 << 10;
/// Packets under way, beside the one that is filled and the one that is read.
const PACKETS: usize = 1;
/// A longer row is an error: two segments of a chunk have to fit into a node's memory.
pub(super) const MAX_ROW: usize = 16 << 20;

/// How the text of a row says that there is no value.
pub(super) const NONE: &[u8] = b"\\N";
/// Bytes of the length in front of a value that has a form.
const LENGTH: usize = 4;

/// The values of a row that is kept in forms, in order.
pub(super) fn values_in(mut row: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let (length, rest) = row.split_first_chunk::<LENGTH>()?;
        let Ok(length) = usize::try_from(i32::from_le_bytes(*length)) else {
            row = rest;
            return Some(None);
        };
        let (value, rest) = rest.split_at_checked(length)?;
        row = rest;
        Some(Some(value))
    })
}

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
    /// Its bytes. As text: the values with a tab between, and `\N` for none. In forms: each value behind its length, 4
    /// bytes, which is -1 for none.
    pub(super) start: u32,
    pub(super) end: u32,
    /// What it takes of a segment's bound: its bytes, or its text where that is longer.
    pub(super) weight: u32,
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
    /// What the values of a row are; empty if all of them are text.
    forms: Arc<[Form]>,
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
            weight: 0,
            first: self.packet.cells.len() as u32,
        });
    }

    /// What the row that has begun is found by; every row has one then, and an empty one is none.
    pub(super) fn key(&mut self, key: String) {
        self.packet.keys.push(key);
    }

    /// Adds a value to the row that has begun, in its form; `None` is NULL. Permanent failure if the row is too long.
    pub(super) fn value(&mut self, value: Option<&[u8]>) -> Result<(), Failure> {
        let Packet { data, rows, cells, .. } = &mut self.packet;
        let Some(row) = rows.last_mut() else { return Ok(()) };
        let place = cells.len() - row.first as usize;
        let form = self.forms.get(place).copied();
        let bytes = match form {
            None => value.unwrap_or(NONE),
            Some(_) => value.unwrap_or_default(),
        };
        let between = match form {
            None => usize::from(place > 0),
            Some(_) => LENGTH,
        };
        let weight = row.weight as usize + between + form.map_or(bytes.len(), |form| form.weighs(bytes));
        if weight > MAX_ROW {
            return Err(self.too_long());
        }
        row.weight = weight as u32;
        match form {
            None if place > 0 => data.push(b'\t'),
            None => {}
            Some(_) => {
                let length = value.map_or(-1, |value| value.len() as i32);
                data.extend_from_slice(&length.to_le_bytes());
            }
        }
        let start = data.len() as u32;
        data.extend_from_slice(bytes);
        cells.push(Cell {
            start,
            end: data.len() as u32,
            is_null: value.is_none(),
        });
        Ok(())
    }

    /// What to say of a row that is longer than [`MAX_ROW`].
    pub(super) fn too_long(&self) -> Failure {
        Failure::permanent(format!(
            "{}: a row is longer than {} MiB; leave the large column out with `columns`",
            self.object,
            MAX_ROW >> 20
        ))
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
    /// Starts a task that puts rows into the feed, as text, and hands it back after the last.
    pub(super) fn from_task<F>(object: &str, task: impl FnOnce(Feed) -> F) -> Self
    where
        F: Future<Output = Result<Feed, Failure>> + Send + 'static,
    {
        Self::in_forms(object, Arc::default(), task)
    }

    /// The same, of rows whose values have these forms.
    pub(super) fn in_forms<F>(object: &str, forms: Arc<[Form]>, task: impl FnOnce(Feed) -> F) -> Self
    where
        F: Future<Output = Result<Feed, Failure>> + Send + 'static,
    {
        let (to, from) = mpsc::channel(PACKETS);
        let feed = Feed {
            packet: Packet::default(),
            forms,
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
