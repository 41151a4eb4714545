//! Cutting a plain file where every line end is one of the file: its pieces are looked at in parallel. Their bytes are
//! all read once, since line numbers in quarantine have to be true.

use futures::stream::{self, StreamExt, TryStreamExt};
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::Compression;
use memchr::memchr_iter;

use super::input::Input;
use super::object::Object;

/// Bytes that are fetched at a time; so few in tests that line ends fall on every boundary.
const BLOCK: usize = if cfg!(test) { 29 } else { 1 << 20 };
/// Pieces that are looked at in parallel.
const PARALLEL: usize = 4;

/// Finds the first byte that ends a line.
pub(super) type FindEnd = fn(&[u8]) -> Option<usize>;

/// Near which bytes to cut, so that chunks are about equal and none is larger than asked for.
pub(super) fn targets(start: u64, size: u64, chunk_bytes: u64) -> Vec<u64> {
    let bytes = size.saturating_sub(start);
    let chunks = bytes.div_ceil(chunk_bytes.max(1)).max(1);
    let step = bytes.div_ceil(chunks).max(1);
    (1..chunks)
        .map(|chunk| start + chunk * step)
        .filter(|target| *target < size)
        .collect()
}

/// The lines that end in `data`: positions count them by their `\n`.
pub(super) fn count(data: &[u8]) -> u64 {
    memchr_iter(b'\n', data).count() as u64
}

/// What a piece of a file holds.
struct Piece {
    /// The place after its first line end, with the line ends before that.
    cut: Option<(u64, u64)>,
    /// All its line ends.
    lines: u64,
}

/// The places after the first line end at or after each target.
pub(super) async fn places(
    object: &Object,
    start: Position,
    targets: &[u64],
    find: FindEnd,
) -> Result<Vec<Position>, Failure> {
    let begins = std::iter::once(start.offset).chain(targets.iter().copied());
    let ends = targets.iter().copied().chain([object.size]);
    let looks: Vec<_> = begins
        .zip(ends)
        .map(|(begin, end)| piece(object, begin, end, find))
        .collect();
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

async fn piece(object: &Object, begin: u64, end: u64, find: FindEnd) -> Result<Piece, Failure> {
    let mut input = Input::open(object, Compression::None, begin, Some(end)).await?;
    let mut piece = Piece { cut: None, lines: 0 };
    let (mut block, mut at) = (Vec::with_capacity(BLOCK), begin);
    while input.fill(&mut block, BLOCK).await? > 0 {
        if piece.cut.is_none()
            && let Some(found) = find(&block)
        {
            piece.cut = Some((at + found as u64 + 1, piece.lines + count(&block[..=found])));
        }
        piece.lines += count(&block);
        at += block.len() as u64;
        block.clear();
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_about_equal_and_no_larger_than_asked_for() {
        assert_eq!(targets(10, 110, 100), Vec::<u64>::new());
        assert_eq!(targets(10, 111, 100), vec![61]);
        assert_eq!(targets(0, 300, 100), vec![100, 200]);
        assert_eq!(targets(5, 5, 100), Vec::<u64>::new());
        assert_eq!(targets(0, 3, 0), vec![1, 2]);
    }
}
