//! Reads a chunk one segment ahead of whoever works on it: the next segment is read and parsed while the current one is
//! transformed and staged. At most two segments of a chunk are in memory, the one in work and the one ahead.

use std::sync::Arc;

use haulage_core::failure::Failure;
use tokio_util::task::AbortOnDropHandle;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::actors::shared::Progress;
use crate::source::{Segment, SegmentReader};

type Read = (Box<dyn SegmentReader>, Result<Option<Segment>, Failure>);

/// See the module. Dropping it ends the reading.
pub(crate) struct ReadAhead {
    ahead: Option<AbortOnDropHandle<Read>>,
    number: u32,
    /// Told how much is read, whatever becomes of it.
    progress: Arc<Progress>,
    chunk: Span,
}

impl ReadAhead {
    /// Begins to read segment `number`. The spans of reading belong under `chunk`.
    pub(crate) fn new(reader: Box<dyn SegmentReader>, number: u32, progress: Arc<Progress>, chunk: Span) -> Self {
        let mut new = Self {
            ahead: None,
            number,
            progress,
            chunk,
        };
        new.begin(reader);
        new
    }

    /// The next segment with its number, while the one after it is begun; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<(u32, Segment)>, Failure> {
        let Some(ahead) = self.ahead.take() else {
            return Ok(None);
        };
        let (reader, read) = match ahead.await {
            Ok(read) => read,
            // A crash of the reader is a crash of the chunk, and not an error of the source.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(Failure::transient("the node is shutting down")),
        };
        let Some(segment) = read? else { return Ok(None) };
        let number = self.number;
        if !segment.last {
            self.number += 1;
            self.begin(reader);
        }
        Ok(Some((number, segment)))
    }

    fn begin(&mut self, mut reader: Box<dyn SegmentReader>) {
        let span = info_span!(parent: &self.chunk, "read", segment = self.number, rows = Empty, bytes = Empty);
        let progress = Arc::clone(&self.progress);
        let read = async move {
            let read = reader.next().await;
            if let Ok(Some(segment)) = &read {
                progress.has_read(segment.bytes);
                Span::current()
                    .record("rows", segment.rows)
                    .record("bytes", segment.bytes);
            }
            (reader, read)
        };
        self.ahead = Some(AbortOnDropHandle::new(tokio::spawn(read.instrument(span))));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use haulage_core::checkpoint::Position;

    use super::*;
    use crate::source::RawRows;

    struct NoRows;

    impl RawRows for NoRows {
        fn row(&self, _: u64) -> Option<(u64, &[u8])> {
            None
        }
    }

    struct Scripted(VecDeque<Result<bool, Failure>>, Arc<AtomicU32>);

    #[async_trait]
    impl SegmentReader for Scripted {
        async fn next(&mut self) -> Result<Option<Segment>, Failure> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let Some(last) = self.0.pop_front() else {
                return Ok(None);
            };
            Ok(Some(Segment {
                batches: Vec::new(),
                unreadable: Vec::new(),
                rows: 1,
                bytes: 1,
                next: Position::default(),
                cursor: None,
                last: last?,
                raw: Box::new(NoRows),
            }))
        }
    }

    fn ahead(script: Vec<Result<bool, Failure>>) -> (ReadAhead, Arc<AtomicU32>) {
        let reads = Arc::new(AtomicU32::new(0));
        (
            ReadAhead::new(
                Box::new(Scripted(script.into(), reads.clone())),
                3,
                Arc::default(),
                Span::none(),
            ),
            reads,
        )
    }

    #[tokio::test]
    async fn one_segment_is_read_ahead_and_none_after_the_last() {
        let (mut ahead, reads) = ahead(vec![Ok(false), Ok(false), Ok(true)]);
        let mut numbers = Vec::new();
        while let Some((number, _)) = ahead.next().await.unwrap() {
            // Let the reader run as far as it may: one further than what was handed out.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            numbers.push((number, reads.load(Ordering::SeqCst)));
        }
        assert_eq!(numbers, [(3, 2), (4, 3), (5, 3)]);
    }

    #[tokio::test]
    async fn an_error_comes_in_its_place() {
        let (mut ahead, _) = ahead(vec![Ok(false), Err(Failure::transient("cut"))]);
        assert!(ahead.next().await.unwrap().is_some());
        assert_eq!(ahead.next().await.map(|_| ()).unwrap_err().message, "cut");
        assert!(ahead.next().await.unwrap().is_none());
    }
}
