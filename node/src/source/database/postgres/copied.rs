//! The bytes of `COPY ... TO STDOUT (FORMAT binary)`, cut into rows and values.
//!
//! ```text
//! "PGCOPY\n\xff\r\n\0" | flags u32 | length i32, of what a later version may add | rows ... | -1 i16
//! row:   number of values i16 | each: length i32, -1 for NULL | its bytes
//! ```
//!
//! They may come in any pieces. A length is believed only once as many bytes are there, and a row that is longer than rows
//! may be is refused by its lengths, before its bytes have come.

use std::ops::Range;

use crate::source::database::feed::MAX_ROW;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Flags that nobody may pass over.
const CRITICAL: u32 = 0xffff_0000;
/// What a later version may add in front of the rows is no longer than this.
const MAX_EXTENSION: usize = 64 << 10;

/// What keeps the bytes from being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A row is longer than rows may be.
    Long,
    /// They are not what a server sends.
    Odd(&'static str),
}

/// The rows of a COPY, as far as its bytes have come.
pub(super) struct Copied {
    /// Values of a row.
    columns: usize,
    /// What has come, and is not used up from `at` on.
    held: Vec<u8>,
    at: usize,
    begun: bool,
    ended: bool,
    /// The places of the values of the last row.
    values: Vec<Option<Range<usize>>>,
}

impl Copied {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            columns,
            held: Vec::new(),
            at: 0,
            begun: false,
            ended: false,
            values: Vec::with_capacity(columns),
        }
    }

    /// Adds what has come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.held.drain(..self.at);
        self.at = 0;
        self.held.extend_from_slice(bytes);
    }

    /// The values of the next row; `None` until more has come, and after the last.
    pub(super) fn next(&mut self) -> Result<Option<impl Iterator<Item = Option<&[u8]>>>, Wrong> {
        let row = self.advance()?;
        let held = &self.held;
        let values = self.values.iter();
        Ok(row.then(|| values.map(|value| value.clone().map(|place| &held[place]))))
    }

    /// Whether there is a row, whose values are in `values` then.
    fn advance(&mut self) -> Result<bool, Wrong> {
        if !self.begun && !self.head()? {
            return Ok(false);
        }
        if self.ended {
            return match self.at == self.held.len() {
                true => Ok(false),
                false => Err(Wrong::Odd("bytes come behind the last row")),
            };
        }
        let mut at = self.at;
        let Some(count) = take(&self.held, &mut at) else {
            return Ok(false);
        };
        match usize::try_from(i16::from_be_bytes(count)) {
            Ok(count) if count == self.columns => {}
            Ok(_) => return Err(Wrong::Odd("a row has another number of values")),
            Err(_) if count == [0xff; 2] => {
                (self.at, self.ended) = (at, true);
                return self.advance();
            }
            Err(_) => return Err(Wrong::Odd("a row has a negative number of values")),
        }
        self.values.clear();
        let mut length_of_row = 0;
        let mut is_whole = true;
        for _ in 0..self.columns {
            let Some(length) = take(&self.held, &mut at) else {
                is_whole = false;
                break;
            };
            let length = match i32::from_be_bytes(length) {
                -1 => {
                    self.values.push(None);
                    continue;
                }
                length => usize::try_from(length).map_err(|_| Wrong::Odd("a value has a negative length"))?,
            };
            length_of_row += length;
            if length_of_row > MAX_ROW {
                return Err(Wrong::Long);
            }
            let end = at + length;
            is_whole &= end <= self.held.len();
            self.values.push(Some(at..end));
            at = end;
        }
        if is_whole {
            self.at = at;
        }
        Ok(is_whole)
    }

    /// Passes over what stands in front of the rows; whether it is there.
    fn head(&mut self) -> Result<bool, Wrong> {
        let known = self.held.len().min(SIGNATURE.len());
        if self.held[..known] != SIGNATURE[..known] {
            return Err(Wrong::Odd("they don't begin as they should"));
        }
        let mut at = SIGNATURE.len();
        let (Some(flags), Some(length)) = (take(&self.held, &mut at), take(&self.held, &mut at)) else {
            return Ok(false);
        };
        if u32::from_be_bytes(flags) & CRITICAL != 0 {
            return Err(Wrong::Odd("they have a flag that this release doesn't know"));
        }
        let length = usize::try_from(i32::from_be_bytes(length))
            .ok()
            .filter(|length| *length <= MAX_EXTENSION);
        let length = length.ok_or(Wrong::Odd("what stands in front of the rows has no possible length"))?;
        if self.held.len() < at + length {
            return Ok(false);
        }
        (self.at, self.begun) = (at + length, true);
        Ok(true)
    }

    /// To be asked when nothing more comes: an error if the end has not come.
    pub(super) fn finish(&self) -> Result<(), Wrong> {
        match self.ended && self.at == self.held.len() {
            true => Ok(()),
            false => Err(Wrong::Odd("they end before the last row")),
        }
    }
}

/// The next bytes, if they are there; goes on behind them either way.
fn take<const N: usize>(bytes: &[u8], at: &mut usize) -> Option<[u8; N]> {
    let found = bytes.get(*at..)?.first_chunk::<N>().copied();
    *at += N;
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<Vec<Option<Vec<u8>>>>;

    fn head(flags: u32, length: i32) -> Vec<u8> {
        [SIGNATURE.as_slice(), &flags.to_be_bytes(), &length.to_be_bytes()].concat()
    }

    fn bytes(rows: &Rows) -> Vec<u8> {
        let mut all = head(0, 0);
        for row in rows {
            all.extend_from_slice(&(row.len() as i16).to_be_bytes());
            for value in row {
                let length = value.as_ref().map_or(-1, |value| value.len() as i32);
                all.extend_from_slice(&length.to_be_bytes());
                all.extend_from_slice(value.as_deref().unwrap_or_default());
            }
        }
        all.extend_from_slice(&[0xff; 2]);
        all
    }

    /// The rows of the pieces, and how it ended.
    fn read<'p>(columns: usize, pieces: impl Iterator<Item = &'p [u8]>) -> (Rows, Result<(), Wrong>) {
        let (mut copied, mut rows) = (Copied::new(columns), Rows::new());
        for piece in pieces {
            copied.push(piece);
            loop {
                match copied.next() {
                    Ok(Some(row)) => rows.push(row.map(|value| value.map(<[u8]>::to_vec)).collect()),
                    Ok(None) => break,
                    Err(wrong) => return (rows, Err(wrong)),
                }
            }
        }
        (rows, copied.finish())
    }

    fn whole(columns: usize, bytes: &[u8]) -> (Rows, Result<(), Wrong>) {
        read(columns, std::iter::once(bytes))
    }

    #[test]
    fn lengths_are_not_believed() {
        let row = |lengths: &[i32]| {
            let lengths = lengths.iter().flat_map(|length| length.to_be_bytes());
            let row: Vec<u8> = (lengths.clone().count() as i16 / 4)
                .to_be_bytes()
                .into_iter()
                .chain(lengths)
                .collect();
            [head(0, 0), row].concat()
        };
        for (columns, bytes, wrong) in [
            (1, row(&[-2]), Wrong::Odd("a value has a negative length")),
            (1, row(&[i32::MIN]), Wrong::Odd("a value has a negative length")),
            (1, row(&[i32::MAX]), Wrong::Long),
            (1, row(&[MAX_ROW as i32 + 1]), Wrong::Long),
            (1, row(&[MAX_ROW as i32]), Wrong::Odd("they end before the last row")),
            (2, row(&[-1]), Wrong::Odd("a row has another number of values")),
            (1, row(&[-1, -1]), Wrong::Odd("a row has another number of values")),
            (
                1,
                [head(0, 0), vec![0xff, 0xfe]].concat(),
                Wrong::Odd("a row has a negative number of values"),
            ),
            (
                1,
                [bytes(&Rows::new()), vec![0]].concat(),
                Wrong::Odd("bytes come behind the last row"),
            ),
            (
                1,
                head(1 << 16, 0),
                Wrong::Odd("they have a flag that this release doesn't know"),
            ),
            (
                1,
                head(0, -1),
                Wrong::Odd("what stands in front of the rows has no possible length"),
            ),
            (
                1,
                head(0, i32::MAX),
                Wrong::Odd("what stands in front of the rows has no possible length"),
            ),
            (1, b"PGCOPX".to_vec(), Wrong::Odd("they don't begin as they should")),
            (1, Vec::new(), Wrong::Odd("they end before the last row")),
        ] {
            assert_eq!(whole(columns, &bytes), (Rows::new(), Err(wrong)));
        }
        let later = [&head(1, 3), &b"abc"[..], &bytes(&vec![vec![None]])[head(0, 0).len()..]].concat();
        assert_eq!(whole(1, &later), (vec![vec![None]], Ok(())));
    }

    fn rows() -> impl Strategy<Value = (usize, Rows)> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..12));
        (0..4usize).prop_flat_map(move |columns| {
            let row = prop::collection::vec(value.clone(), columns);
            (Just(columns), prop::collection::vec(row, 0..5))
        })
    }

    proptest! {
        #[test]
        fn rows_are_the_same_however_they_come((columns, rows) in rows(), size in 1..40usize) {
            let bytes = bytes(&rows);
            prop_assert_eq!(read(columns, bytes.chunks(size)), (rows, Ok(())));
        }

        #[test]
        fn a_cut_anywhere_is_told((columns, rows) in rows()) {
            let bytes = bytes(&rows);
            for end in 0..bytes.len() {
                let (read, ended) = whole(columns, &bytes[..end]);
                prop_assert!(rows.starts_with(&read));
                prop_assert_eq!(ended, Err(Wrong::Odd("they end before the last row")));
            }
        }

        #[test]
        fn damage_is_an_error_or_other_rows((columns, rows) in rows(), at: prop::sample::Index, to: u8, size in 1..40usize) {
            let mut bytes = bytes(&rows);
            let at = at.index(bytes.len());
            bytes[at] = to;
            prop_assert_eq!(read(columns, bytes.chunks(size)), whole(columns, &bytes));
        }
    }
}
