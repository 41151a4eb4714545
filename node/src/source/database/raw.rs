//! The rows of a segment as a person reads them: the values with a tab between. Of rows that came in forms the text is
//! made when it is asked for, which is of those that are rejected.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use haulage_plan::definition::Column;
use memchr::memchr;

use super::feed::{NONE, values_in};
use super::form::Form;
use crate::source::RawRows;

/// The bytes of a segment's rows: where each starts, and its line.
#[derive(Default)]
pub(super) struct Raw {
    pub(super) data: Vec<u8>,
    pub(super) rows: Vec<(u32, u64)>,
    /// The columns, in the order of the values.
    names: Arc<[String]>,
    /// What the values are; empty if all of them are text.
    forms: Arc<[Form]>,
    /// The values of rows whose text doesn't tell where one ends, or whether there is one.
    odd: HashMap<u64, Vec<Option<Vec<u8>>>>,
    /// The texts of rows that came in forms, as far as somebody has asked for them.
    written: OnceLock<Vec<OnceLock<Written>>>,
}

/// A row's text, and its values if that doesn't tell them.
struct Written {
    text: Vec<u8>,
    odd: Option<Vec<Option<Vec<u8>>>>,
}

impl Raw {
    pub(super) fn new(columns: &[Column], forms: &Arc<[Form]>) -> Self {
        Self {
            names: columns.iter().map(|column| column.name.clone()).collect(),
            forms: Arc::clone(forms),
            ..Self::default()
        }
    }

    /// Adds a row: its bytes, and the values in them.
    pub(super) fn push<'v>(&mut self, bytes: &[u8], line: u64, values: impl Iterator<Item = Option<&'v [u8]>> + Clone) {
        self.rows.push((self.data.len() as u32, line));
        self.data.extend_from_slice(bytes);
        if self.forms.is_empty() && values.clone().any(is_odd) {
            let values = values.map(|value| value.map(<[u8]>::to_vec)).collect();
            self.odd.insert(self.rows.len() as u64 - 1, values);
        }
    }

    fn bytes(&self, row: usize) -> Option<&[u8]> {
        let (start, _) = *self.rows.get(row)?;
        let end = self
            .rows
            .get(row + 1)
            .map_or(self.data.len(), |(start, _)| *start as usize);
        self.data.get(start as usize..end)
    }

    fn written(&self, row: usize) -> Option<&Written> {
        let all = self
            .written
            .get_or_init(|| self.rows.iter().map(|_| OnceLock::new()).collect());
        let bytes = self.bytes(row)?;
        Some(all.get(row)?.get_or_init(|| write(bytes, &self.forms)))
    }
}

/// Whether a value keeps the text of its row from telling it.
fn is_odd(value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| value == NONE || memchr(b'\t', value).is_some())
}

fn write(bytes: &[u8], forms: &[Form]) -> Written {
    let (mut text, mut ends) = (Vec::new(), Vec::new());
    for (place, (value, form)) in values_in(bytes).zip(forms).enumerate() {
        if place > 0 {
            text.push(b'\t');
        }
        let start = text.len();
        match value {
            None => text.extend_from_slice(NONE),
            // One whose bytes are none of its form has ended the segment before.
            Some(value) => form.write(value, &mut text).unwrap_or_default(),
        }
        ends.push((value.is_some(), start..text.len()));
    }
    let value = |(is_there, place): &(bool, std::ops::Range<usize>)| is_there.then(|| &text[place.clone()]);
    let odd = ends.iter().map(value).any(is_odd);
    let values = || {
        let values = ends.iter().map(value);
        values.map(|value| value.map(<[u8]>::to_vec)).collect()
    };
    Written {
        odd: odd.then(values),
        text,
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let line = self.line(row)?;
        let row = usize::try_from(row).ok()?;
        match self.forms.is_empty() {
            true => Some((line, self.bytes(row)?)),
            false => Some((line, &self.written(row)?.text)),
        }
    }

    fn line(&self, row: u64) -> Option<u64> {
        let (_, line) = self.rows.get(usize::try_from(row).ok()?)?;
        Some(*line)
    }

    fn columns(&self) -> &[String] {
        &self.names
    }

    fn is_tabbed(&self) -> bool {
        true
    }

    fn values(&self, row: u64) -> Option<Vec<Option<&[u8]>>> {
        let values = match self.forms.is_empty() {
            true => self.odd.get(&row)?,
            false => self.written(usize::try_from(row).ok()?)?.odd.as_ref()?,
        };
        Some(values.iter().map(|value| value.as_deref()).collect())
    }
}
