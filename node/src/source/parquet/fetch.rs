//! An object's bytes as the parquet crate asks for them: by ranges, from a thread that may wait. What is fetched is what
//! is read of the columns, a window at a time and never a whole object, so that memory has a bound.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;
use haulage_core::failure::Failure;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::source::object::Object;

/// Bytes of all windows of a reader together.
const WINDOWS: usize = 16 << 20;
/// The smallest window: each costs a request at S3.
const LEAST: usize = 64 << 10;
/// The largest window.
const MOST: usize = 4 << 20;
/// A page larger than this, packed, is refused.
const LARGEST_PAGE: usize = 64 << 20;

/// The bytes of a column of a row group, in the file.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    /// Where they are.
    pub(super) bytes: Range<u64>,
    /// Which of the columns that are read it is.
    pub(super) column: usize,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Fetch(Arc<Inner>);

struct Inner {
    object: Object,
    handle: Handle,
    stop: CancellationToken,
    /// What is read, in the order of the file.
    stretches: Vec<Stretch>,
    /// What is held of each column: where it starts, and the bytes.
    windows: Vec<Mutex<(u64, Bytes)>>,
    window: usize,
    /// What kept a fetch from its bytes, which the crate can only pass on as a text.
    failure: Mutex<Option<Failure>>,
}

impl Fetch {
    /// For reading these stretches of so many columns. Fetches end when `stop` is cancelled. Has to be called on a runtime.
    pub(super) fn new(object: Object, mut stretches: Vec<Stretch>, columns: usize, stop: CancellationToken) -> Self {
        stretches.sort_by_key(|stretch| stretch.bytes.start);
        Self(Arc::new(Inner {
            object,
            handle: Handle::current(),
            stop,
            stretches,
            windows: (0..columns).map(|_| Mutex::default()).collect(),
            window: (WINDOWS / columns.max(1)).clamp(LEAST, MOST),
            failure: Mutex::new(None),
        }))
    }

    /// What an error of the crate is about: the failed fetch, if one failed.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let inner = &self.0;
        let end = start.saturating_add(length as u64);
        if length > LARGEST_PAGE {
            return self.fail(Failure::permanent(format!(
                "{}: a page at byte {start} has {length} bytes, more than {} MiB; write the file with smaller pages",
                inner.object.address,
                LARGEST_PAGE >> 20
            )));
        }
        if end > inner.object.size {
            return Err(ParquetError::EOF(format!("byte {end} is beyond the end of the file")));
        }
        let after = inner.stretches.partition_point(|stretch| stretch.bytes.start <= start);
        let stretch = after.checked_sub(1).and_then(|place| inner.stretches.get(place));
        let Some((stretch, window)) = stretch
            .filter(|stretch| end <= stretch.bytes.end)
            .and_then(|stretch| Some((stretch, inner.windows.get(stretch.column)?)))
        else {
            return self.fetch(start..end);
        };
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let held = window.0..window.0 + window.1.len() as u64;
        if start < held.start || end > held.end {
            let until = end.max(start + inner.window as u64).min(stretch.bytes.end);
            *window = (start, self.fetch(start..until)?);
        }
        let from = (start - window.0) as usize;
        Ok(window.1.slice(from..from + length))
    }

    /// Where the window or the stretch ends that holds this place.
    fn readable(&self, start: u64) -> u64 {
        let after = self.0.stretches.partition_point(|stretch| stretch.bytes.start <= start);
        let stretch = after.checked_sub(1).and_then(|place| self.0.stretches.get(place));
        stretch.map_or(self.0.object.size, |stretch| stretch.bytes.end.max(start))
    }

    fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let inner = &self.0;
        let fetched = inner.stop.run_until_cancelled(whole(&inner.object, range));
        match inner.handle.block_on(fetched) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(failure)) => self.fail(failure),
            None => self.fail(Failure::transient("reading was given up")),
        }
    }

    fn fail<T>(&self, failure: Failure) -> Result<T> {
        let error = ParquetError::External(Box::new(failure.clone()));
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        Err(error)
    }
}

/// The bytes of a range.
pub(super) async fn whole(object: &Object, range: Range<u64>) -> std::result::Result<Bytes, Failure> {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut buffer = Vec::with_capacity(length);
    let mut stream = object.stream(range).await?;
    while buffer.len() < length && stream.fill(&mut buffer, length).await? > 0 {}
    if buffer.len() == length {
        Ok(Bytes::from(buffer))
    } else {
        Err(crate::store::s3_client::changed(&object.address))
    }
}

impl Length for Fetch {
    fn len(&self) -> u64 {
        self.0.object.size
    }
}

impl ChunkReader for Fetch {
    type T = From;

    fn get_read(&self, start: u64) -> Result<From> {
        Ok(From {
            fetch: self.clone(),
            at: start,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.bytes(start, length)
    }
}

/// Reads on from a place; the headers of pages are read so, byte by byte.
pub(super) struct From {
    fetch: Fetch,
    at: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.fetch.readable(self.at).saturating_sub(self.at);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let bytes = self.fetch.bytes(self.at, want).map_err(io::Error::other)?;
        buffer[..want].copy_from_slice(&bytes);
        self.at += want as u64;
        Ok(want)
    }
}
