//! Cutting a plain file into chunks on record boundaries, and the line on which each starts.
//!
//! Whether a line end is one of the file or of a quoted field depends on every byte before it. By default the file is
//! therefore streamed once from its start and only the quotes are looked at: outside of quotes, a quote opens a field
//! exactly if a delimiter, a line end or the file's start stands before it, which is how [`super::record`] reads. Where
//! quoted fields hold no line ends, the pieces of a file are looked at in parallel. Their bytes are still all read
//! once: line numbers in quarantine are true in either case.

use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Compression;
use memchr::{memchr, memchr_iter, memchr2};

use super::record::{Dialect, is_line_end};
use crate::source::input::Input;
use crate::source::object::Object;

/// Bytes that are fetched at a time; so few in tests that quotes and line ends fall on every boundary.
const BLOCK: usize = if cfg!(test) { 29 } else { 1 << 20 };
/// Pieces that are looked at in parallel.
const PARALLEL: usize = 4;

/// Where the chunks of a plain file start, its first row included, for chunks of about `chunk_bytes`.
pub(super) async fn places(
    object: &Object,
    dialect: Dialect,
    start: Position,
    chunk_bytes: u64,
) -> Result<Vec<Position>, Failure> {
    let targets = targets(start.offset, object.size, chunk_bytes);
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
        places.extend(in_parallel(object, start, &targets).await?);
    }
    // A chunk after the last line end would have no rows.
    places.retain(|place| *place == start || place.offset < object.size);
    Ok(places)
}

/// Near which bytes to cut, so that chunks are about equal and none is larger than asked for.
fn targets(start: u64, size: u64, chunk_bytes: u64) -> Vec<u64> {
    let bytes = size.saturating_sub(start);
    let chunks = bytes.div_ceil(chunk_bytes.max(1)).max(1);
    let step = bytes.div_ceil(chunks).max(1);
    (1..chunks)
        .map(|chunk| start + chunk * step)
        .filter(|target| *target < size)
        .collect()
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
        self.at.line += lines(&data[counted..]);
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
            self.at.line += lines(&data[*counted..place]);
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

fn lines(data: &[u8]) -> u64 {
    memchr_iter(b'\n', data).count() as u64
}

/// What a piece of a file holds, where every line end is one of the file.
struct Piece {
    /// The place after its first line end, with the line ends before that.
    cut: Option<(u64, u64)>,
    /// All its line ends.
    lines: u64,
}

async fn in_parallel(object: &Object, start: Position, targets: &[u64]) -> Result<Vec<Position>, Failure> {
    let begins = std::iter::once(start.offset).chain(targets.iter().copied());
    let ends = targets.iter().copied().chain([object.size]);
    let looks: Vec<_> = begins.zip(ends).map(|(begin, end)| piece(object, begin, end)).collect();
    let pieces: Vec<_> = stream::iter(looks).buffered(PARALLEL).try_collect().await?;
    let (mut line, mut places) = (start.line, Vec::new());
    for (number, piece) in pieces.into_iter().enumerate() {
        if let (Some((offset, before)), true) = (piece.cut, number > 0) {
            places.push(Position {
                offset,
                line: line + before,
            });
        }
        line += piece.lines;
    }
    Ok(places)
}

async fn piece(object: &Object, begin: u64, end: u64) -> Result<Piece, Failure> {
    let mut input = Input::open(object, Compression::None, begin, Some(end)).await?;
    let mut piece = Piece { cut: None, lines: 0 };
    let (mut block, mut at) = (Vec::with_capacity(BLOCK), begin);
    while input.fill(&mut block, BLOCK).await? > 0 {
        if piece.cut.is_none()
            && let Some(found) = memchr2(b'\n', b'\r', &block)
        {
            piece.cut = Some((at + found as u64 + 1, piece.lines + lines(&block[..=found])));
        }
        piece.lines += lines(&block);
        at += block.len() as u64;
        block.clear();
    }
    Ok(piece)
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
    fn chunks_are_about_equal_and_no_larger_than_asked_for() {
        assert_eq!(targets(10, 110, 100), Vec::<u64>::new());
        assert_eq!(targets(10, 111, 100), vec![61]);
        assert_eq!(targets(0, 300, 100), vec![100, 200]);
        assert_eq!(targets(5, 5, 100), Vec::<u64>::new());
        assert_eq!(targets(0, 3, 0), vec![1, 2]);
    }

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
