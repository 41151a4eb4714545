//! How bytes become records and fields: the one reading of CSV that cutting and reading share.
//!
//! A quote opens a quoted field only as the field's first byte; inside, a doubled quote is a quote; whatever follows the
//! closing quote up to the delimiter belongs to the field. `\n`, `\r\n` and a lone `\r` end a record, and blank lines are
//! no records. This is csv-core's reading, and a property test holds the two against each other. csv-core itself is not
//! used: it copies every byte and forgets which fields were quoted. Here, records without a quote, which is most data,
//! are only pointed at: the special bytes of 64 bytes at a time become one bit mask.
//!
//! Where the pipeline says that quoted fields hold no line ends, a line end closes an open quote too, so that any line
//! end is a place to cut; such a record is marked, as is one whose quote is still open at the end of the file.

use memchr::{memchr, memchr_iter, memchr3};

/// A record longer than this is an unclosed quote or no CSV, and memory has a bound.
pub(super) const MAX_RECORD: usize = 16 << 20;

/// What makes up a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    /// Between fields.
    pub(super) delimiter: u8,
    /// Around fields.
    pub(super) quote: u8,
    /// Whether a quoted field may hold a line end.
    pub(super) quoted_newlines: bool,
}

/// A field: a place in the data, or in the scratch buffer if its quotes had to be taken out.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::source) struct Span {
    /// The two highest bits are flags. A segment's data and a record's length are bounded far below.
    start: u32,
    end: u32,
}

/// The flag of a field that stood in quotes.
pub(in crate::source) const QUOTED: u32 = 1 << 31;
const SCRATCH: u32 = 1 << 30;

impl Span {
    pub(in crate::source) fn new(start: usize, end: usize, flags: u32) -> Self {
        Self {
            start: start as u32 | flags,
            end: end as u32,
        }
    }

    /// Whether the field stood in quotes.
    #[inline]
    pub(super) fn is_quoted(self) -> bool {
        self.start & QUOTED != 0
    }

    /// The field's bytes, without quotes.
    #[inline]
    pub(super) fn of<'a>(self, data: &'a [u8], scratch: &'a [u8]) -> &'a [u8] {
        let from = if self.start & SCRATCH == 0 { data } else { scratch };
        &from[(self.start & !(QUOTED | SCRATCH)) as usize..self.end as usize]
    }
}

/// Where a record stands in its segment's data.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPlace {
    /// Its first byte.
    pub(super) start: u32,
    /// One past its last byte, without the line end.
    pub(super) end: u32,
    /// Lines before it in the segment.
    pub(super) line: u32,
}

/// A record that is none of the source's rows: too few or too many fields, or an open quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) struct Odd {
    /// Its place among the records of this pass.
    pub(super) row: usize,
    /// Fields it has.
    pub(super) fields: usize,
    /// If a quote was not closed: the lines of the record in front of it.
    pub(super) unclosed: Option<u32>,
    /// Lines that the record covers, at least 1.
    pub(super) lines: u32,
}

/// The records of one pass: `fields` spans each, whatever their own number of fields.
pub(in crate::source) struct Records {
    /// Fields that a record should have.
    pub(in crate::source) fields: usize,
    /// Records found.
    pub(in crate::source) count: usize,
    /// `count * fields` spans, record by record.
    pub(in crate::source) spans: Vec<Span>,
    /// Fields whose quotes had to be taken out.
    pub(in crate::source) scratch: Vec<u8>,
    /// Records that don't fit, in order.
    pub(in crate::source) odd: Vec<Odd>,
}

impl Records {
    pub(in crate::source) fn new(fields: usize) -> Self {
        Self {
            fields,
            count: 0,
            spans: Vec::new(),
            scratch: Vec::new(),
            odd: Vec::new(),
        }
    }

    pub(in crate::source) fn clear(&mut self) {
        self.count = 0;
        self.scratch.clear();
        self.odd.clear();
    }
}

/// How far a segment's data has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Where the next record starts, or a blank line before it.
    pub(super) at: usize,
    /// Lines before it in the segment.
    pub(super) lines: u32,
}

/// Why reading records stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// As many records as were asked for, and another one begins at the cursor.
    Full,
    /// More data is needed to go on.
    Hungry,
    /// The data has ended.
    Ended,
    /// The record at the cursor is longer than [`MAX_RECORD`].
    TooLong,
}

/// Reads records of `data` from the cursor on until `records` holds `most` of them, or one starts at `bound` or beyond.
/// `ended` says that nothing follows `data`.
pub(super) fn read_records(
    dialect: Dialect,
    data: &[u8],
    ended: bool,
    (most, bound): (usize, usize),
    cursor: &mut Cursor,
    records: &mut Records,
    places: &mut Vec<RowPlace>,
) -> Stop {
    let fields = records.fields;
    if records.spans.len() < most * fields {
        records.spans.resize(most * fields, Span::default());
    }
    let mut marks = Marks::at(dialect, data, cursor.at);
    loop {
        while let Some(&byte) = data.get(cursor.at)
            && is_line_end(byte)
        {
            cursor.lines += u32::from(byte == b'\n');
            cursor.at += 1;
            marks.next();
        }
        if cursor.at == data.len() {
            return if ended { Stop::Ended } else { Stop::Hungry };
        }
        if records.count == most || cursor.at >= bound {
            return Stop::Full;
        }
        let start = cursor.at;
        let (first, rest) = (records.count * fields, &mut records.spans);
        let spans = &mut rest[first..first + fields];
        let record = match plain_record(dialect, data, ended, start, &mut marks, spans) {
            Plain::Record(record) => record,
            Plain::Cut => return hungry(data.len() - start),
            Plain::Quote => {
                let Records { scratch, .. } = records;
                let take = |number: usize, span| {
                    if let Some(place) = spans.get_mut(number) {
                        *place = span;
                    }
                };
                let Some(record) = any_record(dialect, data, ended, start, scratch, take) else {
                    return hungry(data.len() - start);
                };
                marks = Marks::at(dialect, data, record.next);
                record
            }
        };
        if record.end - start > MAX_RECORD {
            return Stop::TooLong;
        }
        if record.fields != fields || record.unclosed.is_some() {
            spans[record.fields.min(fields)..].fill(Span::default());
            let lines = |to: usize| memchr_iter(b'\n', &data[start..to]).count() as u32;
            records.odd.push(Odd {
                row: records.count,
                fields: record.fields,
                unclosed: record.unclosed.map(lines),
                // The line end that closes the record, or an open quote, is none within it; the file's last one is.
                lines: 1 + lines(record.end) - u32::from(record.end == data.len() && data.ends_with(b"\n")),
            });
        }
        records.count += 1;
        places.push(RowPlace {
            start: start as u32,
            end: record.end as u32,
            line: cursor.lines,
        });
        cursor.at = record.next;
        cursor.lines += record.lines;
    }
}

fn hungry(begun: usize) -> Stop {
    if begun > MAX_RECORD {
        Stop::TooLong
    } else {
        Stop::Hungry
    }
}

/// One record, as it was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Its fields.
    pub(super) fields: usize,
    /// One past its last byte, without the line end.
    pub(super) end: usize,
    /// Past one byte of line end.
    pub(super) next: usize,
    /// `\n` in it, and in that byte.
    pub(super) lines: u32,
    /// Where the quote stands that was still open, if one was.
    pub(super) unclosed: Option<usize>,
}

enum Plain {
    Record(Record),
    /// There is a quote in it: read it again with [`any_record`].
    Quote,
    /// It goes on after the data.
    Cut,
}

#[inline]
fn plain_record(
    dialect: Dialect,
    data: &[u8],
    ended: bool,
    start: usize,
    marks: &mut Marks<'_>,
    spans: &mut [Span],
) -> Plain {
    let (mut fields, mut field) = (0, start);
    let (end, line_end) = loop {
        let Some(mark) = marks.next() else {
            if !ended {
                return Plain::Cut;
            }
            break (data.len(), 0);
        };
        let byte = data[mark];
        if byte == dialect.delimiter {
            if let Some(span) = spans.get_mut(fields) {
                *span = Span::new(field, mark, 0);
            }
            fields += 1;
            field = mark + 1;
        } else if byte == dialect.quote {
            return Plain::Quote;
        } else {
            break (mark, byte);
        }
    };
    if let Some(span) = spans.get_mut(fields) {
        *span = Span::new(field, end, 0);
    }
    let next = (end + 1).min(data.len());
    Plain::Record(Record {
        fields: fields + 1,
        end,
        next,
        lines: u32::from(line_end == b'\n'),
        unclosed: None,
    })
}

/// Reads the record at `start`, which is neither blank nor the end of the data, whatever is in it, and hands each field
/// to `take` with its number. `None`: it goes on after the data.
pub(super) fn any_record(
    dialect: Dialect,
    data: &[u8],
    ended: bool,
    start: usize,
    scratch: &mut Vec<u8>,
    mut take: impl FnMut(usize, Span),
) -> Option<Record> {
    let (mut fields, mut at) = (0, start);
    loop {
        let begin = at;
        let field = if data.get(at) == Some(&dialect.quote) {
            quoted_field(dialect, data, ended, at + 1, scratch)?
        } else {
            let end = plain_end(dialect, data, ended, at)?;
            Field {
                span: Span::new(at, end, 0),
                next: end,
                unclosed: false,
            }
        };
        take(fields, field.span);
        fields += 1;
        at = field.next;
        match data.get(at) {
            Some(&byte) if byte == dialect.delimiter && !field.unclosed => at += 1,
            None if !ended => return None,
            byte => {
                let next = if byte.is_some() { at + 1 } else { at };
                let lines = memchr_iter(b'\n', &data[start..next]).count() as u32;
                return Some(Record {
                    fields,
                    end: at,
                    next,
                    lines,
                    unclosed: field.unclosed.then_some(begin),
                });
            }
        }
    }
}

struct Field {
    span: Span,
    /// The delimiter or line end after it, or the end of the data.
    next: usize,
    unclosed: bool,
}

/// Reads a field whose opening quote stands before `start`.
fn quoted_field(dialect: Dialect, data: &[u8], ended: bool, start: usize, scratch: &mut Vec<u8>) -> Option<Field> {
    let Dialect {
        delimiter,
        quote,
        quoted_newlines,
    } = dialect;
    let kept = scratch.len();
    // What is before `piece` and after the opening quote is in the scratch buffer, if anything had to be taken out.
    let (mut piece, mut at) = (start, start);
    let (end, mut next, unclosed) = loop {
        let rest = data.get(at..).unwrap_or_default();
        let found = if quoted_newlines {
            memchr(quote, rest)
        } else {
            memchr3(quote, b'\r', b'\n', rest)
        };
        let Some(place) = found.map(|found| at + found) else {
            if !ended {
                return None;
            }
            break (data.len(), data.len(), true);
        };
        if data[place] != quote {
            break (place, place, true);
        }
        match data.get(place + 1) {
            Some(&byte) if byte == quote => {
                scratch.extend_from_slice(&data[piece..=place]);
                at = place + 2;
                piece = at;
            }
            None if !ended => return None,
            _ => break (place, place + 1, false),
        }
    };
    let follows = |byte: &u8| *byte != delimiter && !is_line_end(*byte);
    if !unclosed && data.get(next).is_some_and(follows) {
        let junk = plain_end(dialect, data, ended, next)?;
        scratch.extend_from_slice(&data[piece..end]);
        scratch.extend_from_slice(&data[next..junk]);
        next = junk;
    } else if piece != start {
        scratch.extend_from_slice(&data[piece..end]);
    } else {
        return Some(Field {
            span: Span::new(start, end, QUOTED),
            next,
            unclosed,
        });
    }
    Some(Field {
        span: Span::new(kept, scratch.len(), QUOTED | SCRATCH),
        next,
        unclosed,
    })
}

/// Where a field without quotes ends.
fn plain_end(dialect: Dialect, data: &[u8], ended: bool, start: usize) -> Option<usize> {
    match memchr3(dialect.delimiter, b'\r', b'\n', &data[start..]) {
        Some(found) => Some(start + found),
        None if ended => Some(data.len()),
        None => None,
    }
}

/// Whether the byte ends a record outside of quotes.
#[inline]
pub(super) fn is_line_end(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

/// The places of delimiters, quotes and line ends, in order.
struct Marks<'a> {
    data: &'a [u8],
    dialect: Dialect,
    /// Where the block of `mask` starts, a multiple of 64.
    block: usize,
    /// A bit for each place of the block that is still to come.
    mask: u64,
}

impl<'a> Marks<'a> {
    fn at(dialect: Dialect, data: &'a [u8], place: usize) -> Self {
        let block = place & !63;
        let mut marks = Self {
            data,
            dialect,
            block,
            mask: 0,
        };
        marks.mask = marks.look() & (u64::MAX << (place - block));
        marks
    }

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.mask == 0 {
            if self.block + 64 >= self.data.len() {
                return None;
            }
            self.block += 64;
            self.mask = self.look();
        }
        let place = self.block + self.mask.trailing_zeros() as usize;
        self.mask &= self.mask - 1;
        Some(place)
    }

    #[inline]
    fn look(&self) -> u64 {
        let rest = self.data.get(self.block..).unwrap_or_default();
        if let Some(block) = rest.first_chunk::<64>() {
            return self.mask_of(block);
        }
        let mut padded = [0; 64];
        padded[..rest.len()].copy_from_slice(rest);
        // A delimiter may be what the padding is made of.
        self.mask_of(&padded) & !(u64::MAX << rest.len())
    }

    /// Written so that the compiler makes vector instructions of it: 64 comparisons, then eight bits from each eight
    /// bytes by one multiplication.
    #[inline]
    fn mask_of(&self, block: &[u8; 64]) -> u64 {
        let Dialect { delimiter, quote, .. } = self.dialect;
        let mut hits = [0u8; 64];
        for (hit, &byte) in hits.iter_mut().zip(block) {
            *hit = u8::from((byte == delimiter) | (byte == quote) | (byte == b'\n') | (byte == b'\r'));
        }
        let mut mask = 0;
        for (number, eight) in hits.as_chunks::<8>().0.iter().enumerate() {
            let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            mask |= gathered << (number * 8);
        }
        mask
    }
}
