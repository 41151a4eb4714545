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
/// Likewise one that says it is larger than this once it is unpacked, for which so much memory would be taken at once.
const LARGEST_UNPACKED: u64 = 128 << 20;

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
            head: Head::default(),
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
    head: Head,
}

/// The start of a page's header, as it is read.
#[derive(Default)]
struct Head {
    bytes: [u8; Self::ENOUGH],
    length: usize,
    is_known: bool,
}

impl Head {
    /// Two fields, each an integer of 32 bits behind a byte that says so.
    const ENOUGH: usize = 12;

    /// Takes bytes that are read next. `Some` is the size that the page has unpacked, once it is known.
    fn read(&mut self, bytes: &[u8]) -> Option<u64> {
        if self.is_known || self.length == Self::ENOUGH {
            return None;
        }
        let room = &mut self.bytes[self.length..];
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
        let size = unpacked(&self.bytes[..self.length]);
        self.is_known = size.is_some();
        size
    }
}

/// The second field of a page's header, in the compact form of Thrift: the first is the page's kind, and both are there in
/// every header. `None` until there are enough bytes, and of other bytes, which are no header and are refused as that.
fn unpacked(header: &[u8]) -> Option<u64> {
    /// One field on, an integer of 32 bits.
    const NEXT_I32: u8 = 0x15;
    let rest = header.strip_prefix(&[NEXT_I32])?;
    let (_, rest) = varint(rest)?;
    let (size, _) = varint(rest.strip_prefix(&[NEXT_I32])?)?;
    // Zigzag; a size below zero is refused by the crate.
    let size = (size >> 1) as i64 ^ -((size & 1) as i64);
    Some(u64::try_from(size).unwrap_or_default())
}

/// Seven bits a byte, the lowest first.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
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
        if let Some(size) = self.head.read(&buffer[..want]).filter(|size| *size > LARGEST_UNPACKED) {
            let failure = Failure::permanent(format!(
                "{}: a page before byte {} says that it has {size} bytes unpacked, more than {} MiB; replace the file if it \
                 is damaged, else write it with smaller pages",
                self.fetch.0.object.address,
                self.at,
                LARGEST_UNPACKED >> 20
            ));
            return self.fetch.fail(failure).map_err(io::Error::other);
        }
        Ok(want)
    }
}

#[cfg(test)]
mod tests {
    use ::parquet::arrow::ArrowWriter;
    use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::DataType;
    use haulage_core::failure::Class;
    use haulage_plan::definition::{ParquetSource, SourceKind};

    use super::*;
    use crate::source::testing::{self, all_rows, column};

    #[tokio::test]
    async fn a_page_that_says_it_is_huge_is_refused_before_there_is_room_for_it() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        // Behind the magic bytes stands the header of the first page.
        assert_eq!(file[4..7], [0x15, 4, 0x15]);
        file[7..12].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0x0f]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.parquet"), file).unwrap();
        let declared = SourceKind::Parquet(ParquetSource {
            path: "a.parquet".to_owned(),
            columns: vec![column("n", DataType::Int64)],
            chunk_bytes: 1 << 20,
        });
        let failure = all_rows(&*testing::bound(folder.path(), declared, 10))
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(failure.class, Class::Permanent);
        for part in [
            "a.parquet: a page before byte",
            "2147483647 bytes unpacked, more than 128 MiB",
        ] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[test]
    fn the_unpacked_size_is_found_however_a_header_is_read() {
        for (header, size) in [
            // A dictionary page of 10 bytes, a data page of 2 GiB, one that says less than nothing.
            (&[0x15, 4, 0x15, 20, 0x15, 16][..], Some(10)),
            (
                &[0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f, 0x15, 16],
                Some(i32::MAX as u64),
            ),
            (&[0x15, 0, 0x15, 3, 0x15, 16], Some(0)),
            // No header, or less than one.
            (&[0x15, 0, 0x25, 20, 0x15, 16], None),
            (&[0x15, 0, 0x15, 0xfe, 0xff], None),
            (&[0xff; 30], None),
            (&[], None),
        ] {
            for step in 1..=header.len().max(1) {
                let mut head = Head::default();
                let found: Vec<u64> = header.chunks(step).filter_map(|bytes| head.read(bytes)).collect();
                assert_eq!(found, Vec::from_iter(size), "{header:?} in steps of {step}");
            }
        }
    }
}
