//! Buffers of segments that are done, for the segments to come. A buffer of a segment is some MiB, and a fresh one costs
//! the system a fault and a cleared page for every 4 KiB of it, which is more than reading the bytes costs.
//!
//! Shared by the readers of one source that are at work at the same time, and gone with the last of them: a run that
//! rests keeps none.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Buffers kept at most; more of them would only help more chunks at once than a node usually works on.
const KEPT: usize = 4;

/// See the module.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// An empty buffer with at least this room.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_default();
        buffer.reserve(room);
        buffer
    }

    /// Keeps the buffer, and nothing of what is in it.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

/// Finds the buffers of a source for as long as one of its readers holds them.
#[derive(Default)]
pub(super) struct Shared(Mutex<Weak<Spare>>);

impl Shared {
    /// Those of the readers at work, or new ones.
    pub(super) fn get(&self) -> Arc<Spare> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *shared = Arc::downgrade(&new);
            new
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_goes_with_the_last_reader() {
        let shared = Shared::default();
        let (one, other) = (shared.get(), shared.get());
        let mut buffer = one.take(1000);
        buffer.extend_from_slice(b"id,word");
        one.give(buffer);
        let again = other.take(0);
        assert!(again.is_empty() && again.capacity() >= 1000);
        for _ in 0..2 * KEPT {
            other.give(Vec::with_capacity(10));
        }
        assert_eq!(one.0.lock().expect("sound").len(), KEPT);
        drop((one, other));
        assert_eq!(shared.get().take(0).capacity(), 0);
    }
}
