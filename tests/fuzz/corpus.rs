//! What inputs begin with: files of the kind, whole lines of them, and what mutation makes of those.

use std::path::Path;

use anyhow::{Context, Result};

use crate::random::Random;

/// Bytes of a file that are kept: cases are small, so that there are many.
const KEPT: usize = 256 << 10;
/// Bytes of an input, apart from the few that are meant to be large.
const USUAL: usize = 6 << 10;

/// Inputs of one kind.
pub(crate) struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    /// Those that come with the program, and the files with one of these endings under `folders`.
    pub(crate) fn new(own: &[&str], folders: &[&Path], endings: &[&str]) -> Result<Self> {
        let mut inputs: Vec<Vec<u8>> = own.iter().map(|text| text.as_bytes().to_vec()).collect();
        let mut folders: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
        while let Some(folder) = folders.pop() {
            let mut entries = std::fs::read_dir(&folder)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| folder.display().to_string())?;
            // The same order everywhere: a seed has to mean the same.
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if endings.iter().any(|ending| name.ends_with(ending)) {
                    let mut data = std::fs::read(&path).with_context(|| path.display().to_string())?;
                    data.truncate(KEPT);
                    inputs.push(data);
                }
            }
        }
        Ok(Self(inputs))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// One of them, whole.
    pub(crate) fn whole(&self, random: &mut Random) -> &[u8] {
        &self.0[random.below(self.0.len())]
    }

    /// The first line of one and some of its other lines.
    pub(crate) fn lines(&self, random: &mut Random) -> Vec<u8> {
        let whole = self.whole(random);
        let head = whole
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(whole.len(), |end| end + 1);
        let most = random.below(USUAL);
        let from = head + random.below(whole.len() - head);
        let to = (from + most).min(whole.len());
        [&whole[..head.min(USUAL)], &whole[from.min(to)..to]].concat()
    }
}

/// Changes some bytes; `special` are pieces that mean something in this kind of input.
pub(crate) fn mutate(data: &mut Vec<u8>, random: &mut Random, special: &[&[u8]], other: &[u8]) {
    for _ in 0..random.within(1, 6) {
        let at = random.below(data.len() + 1);
        let length = random.below(40).min(data.len() - at);
        match random.below(8) {
            0 => drop(data.splice(at..at + length, [])),
            1 => {
                let copy = data[at..at + length].to_vec();
                let to = random.below(data.len() + 1);
                drop(data.splice(to..to, copy));
            }
            2 if !data.is_empty() => {
                let at = random.below(data.len());
                data[at] = u8::try_from(random.below(256)).unwrap_or(0);
            }
            3 if !other.is_empty() => {
                let from = random.below(other.len());
                let to = (from + random.below(200)).min(other.len());
                drop(data.splice(at..at, other[from..to].iter().copied()));
            }
            4 => data.truncate(at),
            _ => {
                let piece = random.pick(special);
                let over = if random.once_in(2) {
                    piece.len().min(data.len() - at)
                } else {
                    0
                };
                drop(data.splice(at..at + over, piece.iter().copied()));
            }
        }
    }
}
