//! A body as it comes in: unpacked where the server has packed it, and no longer than it may be, whatever its packed length
//! is.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

/// With what a gzip stream begins, and no JSON.
const GZIP: u8 = 0x1f;

/// Why there is no body.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is longer than it may be.
    TooLong,
    /// It is no gzip stream, or not a whole one; why.
    Damaged(String),
}

/// Whether a server says that it has packed the body. Error with the word for a way that nobody asked for; a word that is
/// none, such as `utf-8`, says nothing.
pub(super) fn is_packed(headers: &HeaderMap) -> Result<bool, String> {
    let mut is_packed = false;
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        for word in value.split(',').map(str::trim) {
            match word {
                "gzip" | "x-gzip" if !is_packed => is_packed = true,
                "gzip" | "x-gzip" => return Err(value),
                "br" | "zstd" | "deflate" | "compress" | "x-compress" | "dcb" | "dcz" | "exi" | "aes128gcm"
                | "pack200-gzip" => return Err(value),
                _ => {}
            }
        }
    }
    Ok(is_packed)
}

/// A body that is coming in.
pub(super) enum Incoming {
    /// It may be packed: its first byte tells.
    Packed(Bounded),
    Plain(Bounded),
    Unpacking(Box<MultiGzDecoder<Bounded>>),
}

impl Incoming {
    /// It may have `most` bytes, unpacked.
    pub(super) fn new(most: u64, is_packed: bool) -> Self {
        let room = Bounded {
            data: Vec::new(),
            most: usize::try_from(most).unwrap_or(usize::MAX),
            is_over: false,
        };
        match is_packed {
            true => Self::Packed(room),
            false => Self::Plain(room),
        }
    }

    /// Takes the next bytes of it.
    pub(super) fn take(self, part: &[u8]) -> Result<Self, (Self, Wrong)> {
        let mut incoming = match (self, part.first()) {
            (Self::Packed(room), Some(&GZIP)) => Self::Unpacking(Box::new(MultiGzDecoder::new(room))),
            // Some proxies unpack a body and leave the header.
            (Self::Packed(room), Some(_)) => Self::Plain(room),
            (other, _) => other,
        };
        let (taken, is_over) = match &mut incoming {
            Self::Packed(_) => return Ok(incoming),
            Self::Plain(room) => (room.write_all(part), room.is_over),
            Self::Unpacking(unpacking) => {
                let taken = unpacking.write_all(part);
                (taken, unpacking.get_ref().is_over)
            }
        };
        match taken {
            Ok(()) => Ok(incoming),
            Err(_) if is_over => Err((incoming, Wrong::TooLong)),
            Err(error) => Err((incoming, Wrong::Damaged(error.to_string()))),
        }
    }

    /// The body, when all of it has come.
    pub(super) fn end(self) -> Result<Vec<u8>, Wrong> {
        match self {
            Self::Packed(room) | Self::Plain(room) => Ok(room.data),
            Self::Unpacking(mut unpacking) => {
                let ended = unpacking.try_finish();
                let room = unpacking.get_mut();
                match ended {
                    Ok(()) => Ok(std::mem::take(&mut room.data)),
                    Err(_) if room.is_over => Err(Wrong::TooLong),
                    Err(error) => Err(Wrong::Damaged(error.to_string())),
                }
            }
        }
    }

    /// What has come of it.
    pub(super) fn so_far(self) -> Vec<u8> {
        match self {
            Self::Packed(room) | Self::Plain(room) => room.data,
            Self::Unpacking(mut unpacking) => {
                // An error means that there is no more, which is all that there is to know.
                drop(unpacking.try_finish());
                std::mem::take(&mut unpacking.get_mut().data)
            }
        }
    }
}

/// Bytes up to a number of them.
pub(super) struct Bounded {
    data: Vec<u8>,
    most: usize,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.most - self.data.len();
        if bytes.len() > room {
            self.data.extend_from_slice(&bytes[..room]);
            self.is_over = true;
            return Err(io::Error::other("it is too long"));
        }
        self.data.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;
    use crate::source::testing::gzip;

    fn read(data: &[u8], most: u64, is_packed: bool, step: usize) -> Result<Vec<u8>, Wrong> {
        let mut incoming = Incoming::new(most, is_packed);
        for part in data.chunks(step) {
            incoming = incoming.take(part).map_err(|(_, wrong)| wrong)?;
        }
        incoming.end()
    }

    #[test]
    fn a_body_is_unpacked_up_to_its_bound() {
        let text: Vec<u8> = (0..50_000u32)
            .flat_map(|number| number.to_string().into_bytes())
            .collect();
        let length = text.len() as u64;
        let mut packed = gzip(&text[..1000]);
        packed.extend(gzip(&text[1000..]));
        for step in [1, 7, 1 << 20] {
            assert_eq!(read(&text, length, false, step).unwrap(), text);
            assert_eq!(read(&text, length, true, step).unwrap(), text, "unpacked already");
            assert_eq!(read(&packed, length, true, step).unwrap(), text);
            assert!(matches!(read(&packed, length - 1, true, step), Err(Wrong::TooLong)));
            assert!(matches!(read(&text, length - 1, false, step), Err(Wrong::TooLong)));
            let cut = &packed[..packed.len() - 9];
            assert!(matches!(read(cut, length, true, step), Err(Wrong::Damaged(_))));
        }
        let mut damaged = packed.clone();
        damaged[100] ^= 0xff;
        assert!(matches!(read(&damaged, length, true, 50), Err(Wrong::Damaged(_))));
        let incoming = Incoming::new(10, true).take(&packed).map(drop);
        let (incoming, _) = incoming.unwrap_err();
        assert_eq!(incoming.so_far(), text[..10]);
        assert!(read(b"", 1, true, 1).unwrap().is_empty());
    }

    #[test]
    fn words_that_are_no_way_to_pack_say_nothing() {
        for (value, expected) in [
            ("gzip", Ok(true)),
            ("X-GZIP", Ok(true)),
            ("identity, gzip", Ok(true)),
            ("", Ok(false)),
            ("utf-8", Ok(false)),
            ("br", Err("br".to_owned())),
            ("gzip, gzip", Err("gzip, gzip".to_owned())),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(is_packed(&headers), expected, "{value}");
        }
        assert_eq!(is_packed(&HeaderMap::new()), Ok(false));
    }
}
