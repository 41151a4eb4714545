//! Virtual time: what happens when. Nothing passes but by taking the next event, and what is due at the same moment comes
//! in the order in which it was put here, so a seed has one history only.

use std::collections::BTreeMap;

/// Events by their moment, in milliseconds.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    events: BTreeMap<(u64, u64), E>,
    serial: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            events: BTreeMap::new(),
            serial: 0,
        }
    }
}

impl<E> Queue<E> {
    pub(crate) fn push(&mut self, at: u64, event: E) {
        self.serial += 1;
        self.events.insert((at, self.serial), event);
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        let ((at, _), event) = self.events.pop_first()?;
        Some((at, event))
    }
}
