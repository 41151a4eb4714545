//! Objects of JSON on their way into batches, whatever they come in: lines of a file, or the answer of an API.

use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::Failure;

use super::column::ColumnBuilder;
use super::row::{Keys, Odd};
use crate::source::sift::Sift;
use crate::source::{EXCERPT, NEW_COLUMN, Unreadable, excerpt};

/// Rows of a batch.
pub(in crate::source) const BATCH_ROWS: usize = 8192;

/// The rows of the batch that is being filled, and those before it.
pub(in crate::source) struct Rows {
    address: String,
    pub(in crate::source) sift: Sift,
    /// Rows of the batch that can't be read.
    bad: Vec<Unreadable>,
    /// Rows of the batch.
    pub(in crate::source) count: usize,
}

impl Rows {
    /// `address` is for messages; `schema` is the columns' and the row column's.
    pub(in crate::source) fn new(address: &str, schema: SchemaRef) -> Self {
        Self {
            address: address.to_owned(),
            sift: Sift::new(schema),
            bad: Vec::new(),
            count: 0,
        }
    }

    /// Takes an object's text, or what is `odd` about it if that is known before. The builders get a value each.
    pub(in crate::source) fn take(
        &mut self,
        text: &[u8],
        odd: Option<Odd>,
        keys: &mut Keys,
        builders: &mut [ColumnBuilder],
    ) {
        // The first value that doesn't fit, by its column's place.
        let mut misfit = None;
        let mut note = |place: usize, fits: Result<(), (&'static str, String)>| {
            if let Err((reason, detail)) = fits {
                misfit.get_or_insert((place, reason, detail));
            }
        };
        let read = match odd {
            Some(odd) => Err(odd),
            None => keys.read(text, |place, json| note(place, builders[place].append(json))),
        };
        if read.is_ok() {
            for place in keys.absent() {
                note(place, builders[place].append_null());
            }
        }
        let row = self.count as u64;
        let new = if read.is_ok() { keys.new_key() } else { None };
        match (read, misfit) {
            // Before what doesn't fit: a key that was given another name explains that another one has no value.
            (Ok(()), _) if new.is_some() => self.bad.push(Unreadable {
                row,
                column: new.map(|key| excerpt(key.as_bytes(), EXCERPT)),
                reason: NEW_COLUMN,
                detail: "the object has this key, which nobody declared".to_owned(),
            }),
            (Err(Odd { reason, detail }), _) => self.bad.push(Unreadable {
                row,
                column: None,
                reason,
                detail,
            }),
            (Ok(()), _) if keys.blocked().is_some() => {
                let (place, detail) = keys.blocked().cloned().unwrap_or_default();
                self.bad.push(Unreadable {
                    row,
                    column: Some(keys.name(place).to_owned()),
                    reason: "not_an_object",
                    detail,
                });
            }
            (Ok(()), Some((place, reason, detail))) => self.bad.push(Unreadable {
                row,
                column: Some(keys.name(place).to_owned()),
                reason,
                detail,
            }),
            (Ok(()), None) => {}
        }
        self.count += 1;
        for builder in builders {
            if builder.rows() < self.count {
                builder.append_gap();
            }
        }
    }

    /// Makes a batch of the rows in the builders, without those that can't be read.
    pub(in crate::source) fn finish(&mut self, builders: &mut [ColumnBuilder]) -> Result<(), Failure> {
        if self.count == 0 {
            return Ok(());
        }
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let (count, bad) = (std::mem::take(&mut self.count), std::mem::take(&mut self.bad));
        self.sift.take(&self.address, count, arrays, bad)
    }
}
