//! Cutting a plain file into chunks on record boundaries, and the line on which each starts.
//!
//! Whether a line end is one of the file or of a quoted field depends on every byte before it. By default the file is
//! therefore streamed once from its start and only the quotes are looked at: outside of quotes, a quote opens a field
//! exactly if a delimiter, a line end or the file's start stands before it, which is how [`super::record`] reads. Where
//! quoted fields hold no line ends, the pieces of a file are looked at in parallel, by [`crate::source::lines`].

use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Compression;
use memchr::{memchr, memchr2};

use super::record::{Dialect, is_line_end};
use crate::source::input::Input;
use crate::source::lines;
use crate::source::object::Object;

/// Bytes that are fetched at a time; so few in tests that quotes and line ends fall on every boundary.
const BLOCK: usize = if cfg!(test) { 29 } else { 1 << 20 };

/// Where the chunks of a plain file start, its first row included, for chunks of about `chunk_bytes`.
pub(super) async fn places(
    object: &Object,
    dialect: Dialect,
    start: Position,
    chunk_bytes: u64,
) -> Result<Vec<Position>, Failure> {
    let targets = lines::targets(start.offset, object.size, chunk_bytes);
    let mut places = vec![start];
    if targets.is_empty() {
        return Ok(places);
    }
    if dialect.quoted_newlines {
        let mut cutter = Cutter::new(dialect, start, targets);
        let mut input = Input::open(object, Compression::None, start.offset, None).await?;
        let mut block = Vec::with_capacity(BLOCK);
        while !cutter.is_done() && input.fill(&mut block, BLOCK).await? > 0 {
            cutter.feed(&block);
            block.clear();
        }
        places.extend(cutter.places);
    } else {
        places.extend(lines::places(object, start, &targets, |data| memchr2(b'\n', b'\r', data)).await?);
    }
    // A chunk after the last line end would have no rows.
    places.retain(|place| *place == start || place.offset < object.size);
    Ok(places)
}

enum Inside {
    /// In no quoted field.
    No,
    /// In one.
    Quotes,
    /// After a quote in one, which either closes it or is the first of two.
    Quote,
}

/// Finds the first line end outside of quotes at or after each target.
struct Cutter {
    dialect: Dialect,
    targets: std::vec::IntoIter<u64>,
    target: Option<u64>,
    inside: Inside,
    /// The byte before the next one, if that is in no quoted field.
    previous: u8,
    /// The next byte, and the line it is on.
    at: Position,
    places: Vec<Position>,
}

impl Cutter {
    fn new(dialect: Dialect, start: Position, targets: Vec<u64>) -> Self {
        let mut targets = targets.into_iter();
        let target = targets.next();
        // The first field starts as if after a line end.
        Self {
            dialect,
            targets,
            target,
            inside: Inside::No,
            previous: b'\n',
            at: start,
            places: Vec::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.target.is_none()
    }

    fn feed(&mut self, data: &[u8]) {
        let base = self.at.offset;
        // Lines are counted up to each cut, and to the end.
        let mut counted = 0;
        let mut at = 0;
        while at < data.len() {
            match self.inside {
                Inside::No => {
                    let quote = memchr(self.dialect.quote, &data[at..]).map_or(data.len(), |found| at + found);
                    self.cut(data, (at, quote), base, &mut counted);
                    if quote == data.len() {
                        break;
                    }
                    let previous = if quote == 0 { self.previous } else { data[quote - 1] };
                    // Right after a quoted field its closing quote stands there, which opens nothing.
                    if previous == self.dialect.delimiter || is_line_end(previous) {
                        self.inside = Inside::Quotes;
                    }
                    at = quote + 1;
                }
                Inside::Quotes => match memchr(self.dialect.quote, &data[at..]) {
                    Some(found) => {
                        self.inside = Inside::Quote;
                        at += found + 1;
                    }
                    None => break,
                },
                Inside::Quote if data[at] == self.dialect.quote => {
                    self.inside = Inside::Quotes;
                    at += 1;
                }
                Inside::Quote => self.inside = Inside::No,
            }
        }
        if let Some(&last) = data.last() {
            self.previous = last;
        }
        self.at.line += lines::count(&data[counted..]);
        self.at.offset += data.len() as u64;
    }

    /// Cuts within `data[from..to]`, which is in no quoted field.
    fn cut(&mut self, data: &[u8], (from, to): (usize, usize), base: u64, counted: &mut usize) {
        let mut from = from;
        while let Some(target) = self.target {
            let Ok(first) = usize::try_from(target.saturating_sub(base)) else {
                return;
            };
            let first = first.max(from);
            if first >= to {
                return;
            }
            let Some(found) = memchr2(b'\n', b'\r', &data[first..to]) else {
                return;
            };
            let place = first + found + 1;
            self.at.line += lines::count(&data[*counted..place]);
            *counted = place;
            let cut = Position {
                offset: base + place as u64,
                line: self.at.line,
            };
            self.places.push(cut);
            self.target = self.targets.by_ref().find(|target| *target >= cut.offset);
            from = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        delimiter: b',',
        quote: b'"',
        quoted_newlines: true,
    };

    #[test]
    fn a_line_end_in_quotes_is_no_place_to_cut() {
        let data = b"1,\"a\n\"\"b\n\",x\n2,a\"b\nc\"d,\"\"\n\"q\"\"\n\"\n";
        for block in 1..=data.len() {
            let mut cutter = Cutter::new(
                DIALECT,
                Position { offset: 0, line: 1 },
                (0..data.len() as u64).collect(),
            );
            data.chunks(block).for_each(|part| cutter.feed(part));
            let found: Vec<_> = cutter.places.iter().map(|place| (place.offset, place.line)).collect();
            assert_eq!(found, [(13, 4), (19, 5), (26, 6), (33, 8)], "blocks of {block}");
        }
    }
}
