//! An object's bytes as its reader wants them: a range of a plain object, or the whole of a compressed one, unpacked as
//! it streams. Damaged or cut-off compressed data is a permanent failure naming the file, never a silent short read.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use haulage_core::failure::Failure;
use haulage_plan::definition::Compression;
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation};
use zstd::zstd_safe::{InBuffer, OutBuffer};

use super::object::{Object, Stream};

/// Packed bytes that are fetched at a time. A larger block makes fewer system calls and uses more memory.
const PACKED_BLOCK: usize = 256 << 10;

/// A stream of unpacked bytes.
pub(super) struct Input {
    address: String,
    stream: Stream,
    unpacker: Option<Unpacker>,
    packed: Vec<u8>,
    /// Bytes of `packed` that are used up.
    used: usize,
    /// Whether the object has no more bytes.
    ended: bool,
    /// Where the bytes handed out so far end.
    offset: u64,
    /// Whether the first bytes have still to be looked at.
    unproven: bool,
    /// Unpacked bytes that were thrown away to get to where it was opened.
    pub(super) passed_over: u64,
}

fn damaged(address: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(format!(
        "{address} can't be unpacked: {error}; replace the damaged file"
    ))
}

fn not_packed(address: &str, kind: &str) -> Failure {
    Failure::permanent(format!(
        "{address} is no {kind} data: it doesn't start as {kind} files do; if it is plain text, write \
         `compression: none` or take the ending off its name, else replace the file"
    ))
}

/// How this object is packed: what is declared, or what its name ends with.
pub(super) fn resolve(compression: Compression, address: &str) -> Compression {
    let ends = |ending: &str| address.len() > ending.len() && address.to_ascii_lowercase().ends_with(ending);
    match compression {
        Compression::Auto if ends(".gz") => Compression::Gzip,
        Compression::Auto if ends(".zst") => Compression::Zstd,
        Compression::Auto => Compression::None,
        declared => declared,
    }
}

/// Permanent failure if bytes that should be text start as packed data does.
pub(super) fn refuse_packed(start: &[u8], address: &str) -> Result<(), Failure> {
    let (kind, ending) = if start.starts_with(b"\x1f\x8b\x08") {
        ("gzip", ".gz")
    } else if start.starts_with(b"\x28\xb5\x2f\xfd") {
        ("zstd", ".zst")
    } else {
        return Ok(());
    };
    Err(Failure::permanent(format!(
        "{address} is {kind} data without saying so: write `compression: {kind}`, or let its name end with {ending}"
    )))
}

impl Input {
    /// The unpacked bytes from `start` to `end` (`None` is the end of the object). A packed object is always unpacked
    /// from its first byte, and what lies before `start` is thrown away.
    pub(super) async fn open(
        object: &Object,
        compression: Compression,
        start: u64,
        end: Option<u64>,
    ) -> Result<Self, Failure> {
        let unpacker = match resolve(compression, &object.address) {
            Compression::Gzip => Some(Unpacker::gzip()),
            Compression::Zstd => Some(Unpacker::zstd(&object.address)?),
            Compression::None | Compression::Auto => None,
        };
        let plain = unpacker.is_none();
        let last = if plain {
            end.unwrap_or(object.size).min(object.size)
        } else {
            object.size
        };
        let first = if plain { start.min(last) } else { 0 };
        let mut input = Self {
            address: object.address.clone(),
            stream: object.stream(first..last).await?,
            unpacker,
            packed: Vec::new(),
            used: 0,
            ended: false,
            offset: first,
            unproven: true,
            passed_over: 0,
        };
        if !plain {
            input.skip_to(start).await?;
            input.passed_over = start;
        }
        Ok(input)
    }

    /// Appends about `want` bytes to `buffer`, at least one; 0 is the end.
    pub(super) async fn fill(&mut self, buffer: &mut Vec<u8>, want: usize) -> Result<usize, Failure> {
        buffer.reserve(want);
        let added = match self.unpacker {
            None => self.stream.fill(buffer, want).await?,
            Some(_) => self.unpack(buffer, want).await?,
        };
        self.offset += added as u64;
        Ok(added)
    }

    async fn skip_to(&mut self, start: u64) -> Result<(), Failure> {
        let mut thrown_away = Vec::new();
        while self.offset < start {
            thrown_away.clear();
            let want = usize::try_from(start - self.offset)
                .unwrap_or(usize::MAX)
                .min(PACKED_BLOCK);
            if self.fill(&mut thrown_away, want).await? == 0 {
                return Err(Failure::permanent(format!(
                    "{} ends at byte {} of its unpacked data, before the checkpoint at {start}; \
                     leave sources alone while a run reads them, and run again",
                    self.address, self.offset
                )));
            }
        }
        Ok(())
    }

    async fn unpack(&mut self, buffer: &mut Vec<u8>, want: usize) -> Result<usize, Failure> {
        let begin = buffer.len();
        while buffer.len() - begin < want {
            if self.used == self.packed.len() && !self.ended {
                self.packed.clear();
                self.used = 0;
                self.ended = self.stream.fill(&mut self.packed, PACKED_BLOCK).await? == 0;
            }
            let Some(unpacker) = &mut self.unpacker else { break };
            let packed = &self.packed[self.used..];
            if packed.is_empty() && unpacker.is_at_rest() {
                break;
            }
            let (before, left) = (buffer.len(), want - (buffer.len() - begin));
            if self.unproven && !packed.is_empty() {
                self.unproven = false;
                if let Some(kind) = unpacker.denies(packed) {
                    return Err(not_packed(&self.address, kind));
                }
            }
            // Without input too: a decoder may hold output that did not fit the last time.
            let used = unpacker
                .unpack(packed, buffer, left)
                .map_err(|error| damaged(&self.address, &error))?;
            if used == 0 && buffer.len() == before {
                let what = if packed.is_empty() {
                    "is cut off at the end of the file"
                } else {
                    "makes no sense"
                };
                return Err(damaged(&self.address, &format!("the compressed data {what}")));
            }
            self.used += used;
        }
        Ok(buffer.len() - begin)
    }
}

/// Packed data is a row of parts, gzip's members or Zstandard's frames. Between two of them is the only place to end.
struct Unpacker {
    codec: Codec,
    /// Whether a part has begun and not ended. True at first: an empty file is no compressed data.
    inside: bool,
}

enum Codec {
    Gzip(Decompress),
    Zstd(ZstdDecoder<'static>),
}

/// The largest window that gzip knows, as a power of two.
const GZIP_WINDOW: u8 = 15;

impl Unpacker {
    fn gzip() -> Self {
        Self {
            codec: Codec::Gzip(Decompress::new_gzip(GZIP_WINDOW)),
            inside: true,
        }
    }

    fn zstd(address: &str) -> Result<Self, Failure> {
        let decoder = ZstdDecoder::new()
            .map_err(|error| Failure::transient(format!("{address}: no decoder could be made: {error}")))?;
        Ok(Self {
            codec: Codec::Zstd(decoder),
            inside: true,
        })
    }

    /// How the data should be packed, if its first bytes say that it isn't. A file shorter than that is a damaged one.
    fn denies(&self, start: &[u8]) -> Option<&'static str> {
        // Zstandard has skippable frames too, of which the first byte is one of sixteen.
        let (kind, fits) = match &self.codec {
            Codec::Gzip(_) => ("gzip", b"\x1f\x8b".iter().zip(start).all(|(want, got)| want == got)),
            Codec::Zstd(_) => {
                let frame = b"\x28\xb5\x2f\xfd".iter().zip(start).all(|(want, got)| want == got);
                let skipped = start.len() > 1 && start[0] & 0xf0 == 0x50 && start[1] == 0x2a;
                ("zstd", frame || skipped)
            }
        };
        (!fits).then_some(kind)
    }

    fn is_at_rest(&self) -> bool {
        !self.inside
    }

    /// Unpacks some of `packed`, at most `most` bytes of output, and returns how much of it is used up.
    fn unpack(&mut self, packed: &[u8], buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let begin = buffer.len();
        // Safe Rust has no way to write into spare capacity from here; zeroing is cheap beside unpacking.
        buffer.resize(begin + most, 0);
        let output = &mut buffer[begin..];
        let (used, made) = match &mut self.codec {
            Codec::Gzip(inflate) => {
                if !self.inside {
                    *inflate = Decompress::new_gzip(GZIP_WINDOW);
                }
                let (in_before, out_before) = (inflate.total_in(), inflate.total_out());
                let status = inflate
                    .decompress(packed, output, FlushDecompress::None)
                    .map_err(|error| {
                        io::Error::other(error.message().unwrap_or("not gzip data, or damaged").to_owned())
                    })?;
                self.inside = !matches!(status, Status::StreamEnd);
                let used = usize::try_from(inflate.total_in() - in_before).unwrap_or(packed.len());
                let made = usize::try_from(inflate.total_out() - out_before).unwrap_or(most);
                (used, made)
            }
            Codec::Zstd(decoder) => {
                let (mut source, mut target) = (InBuffer::around(packed), OutBuffer::around(output));
                let hint = decoder.run(&mut source, &mut target)?;
                self.inside = hint != 0;
                (source.pos(), target.pos())
            }
        };
        buffer.truncate(begin + made);
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use haulage_core::failure::Class;

    use super::*;
    use crate::source::object;
    use crate::store::S3Settings;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(data).unwrap();
        packer.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    async fn read(name: &str, packed: &[u8], start: u64) -> Result<Vec<u8>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, packed).unwrap();
        let object = object::find(path.to_str().unwrap(), &S3Settings::default()).await?;
        let mut input = Input::open(&object, Compression::Auto, start, None).await?;
        let mut all = Vec::new();
        while input.fill(&mut all, 1000).await? > 0 {}
        Ok(all)
    }

    fn text() -> Vec<u8> {
        (0..20_000u32)
            .flat_map(|number| format!("{number},{}\n", number.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }

    #[tokio::test]
    async fn several_members_and_frames_are_one_stream() {
        let text = text();
        let (one, two) = text.split_at(77_777);
        for (name, packed) in [
            ("a.gz", [gzip(one), gzip(b""), gzip(two)].concat()),
            ("a.ZST", [zstd(one), zstd(b""), zstd(two)].concat()),
        ] {
            assert_eq!(read(name, &packed, 0).await.unwrap(), text, "{name}");
            assert_eq!(read(name, &packed, 100_001).await.unwrap(), text[100_001..], "{name}");
        }
        assert_eq!(read("plain.csv", &text, 5).await.unwrap(), text[5..]);
    }

    #[tokio::test]
    async fn a_cut_at_any_place_is_a_failure_that_names_the_file() {
        for (name, packed) in [("a.gz", gzip(b"1,2\n3,4\n")), ("a.zst", zstd(b"1,2\n3,4\n"))] {
            for end in 0..packed.len() {
                let failure = read(name, &packed[..end], 0).await.expect_err("cut off");
                assert_eq!(failure.class, Class::Permanent, "{name} cut at {end}");
                assert!(failure.message.contains(name), "{failure}");
            }
        }
    }

    #[tokio::test]
    async fn damage_is_a_failure_and_never_other_rows() {
        let text = text();
        // zstd writes a checksum only if asked to, as its command line tool does.
        let mut packer = zstd::Encoder::new(Vec::new(), 1).unwrap();
        packer.include_checksum(true).unwrap();
        packer.write_all(&text).unwrap();
        for (name, packed) in [("a.gz", gzip(&text)), ("a.zst", packer.finish().unwrap())] {
            let mut flipped = packed.clone();
            flipped[packed.len() / 2] ^= 0x10;
            let more = [&packed[..], b"x"].concat();
            for damaged in [flipped, more, b"year,month\n".to_vec()] {
                let failure = read(name, &damaged, 0).await.expect_err("damaged");
                assert_eq!(failure.class, Class::Permanent, "{failure}");
                assert!(failure.message.contains(name), "{failure}");
            }
        }
        for (name, kind) in [("a.gz", "gzip"), ("a.zst", "zstd")] {
            let plain = read(name, b"year,month\n", 0).await.unwrap_err();
            assert!(
                plain.message.contains(&format!("{name} is no {kind} data"))
                    && plain.message.contains("`compression: none`"),
                "{plain}"
            );
        }
        let beyond = read("a.gz", &gzip(b"1\n"), 50).await.unwrap_err();
        assert!(beyond.message.contains("before the checkpoint at 50"), "{beyond}");
    }
}
