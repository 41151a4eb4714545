//! How an answer is put on the wire: with a length, in chunks, to the end of the connection; and with all that may be wrong
//! with each.

use std::io::Write as _;

use crate::random::Random;

/// An answer on the wire.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    /// The body that a client may take for the whole one; `None` if it has to refuse the answer, or to ask again.
    pub(crate) believed: Option<Vec<u8>>,
}

/// An answer with status 200 that is nearly as it should be.
pub(crate) fn any(headers: &[(String, String)], body: &[u8], random: &mut Random) -> Sent {
    let mut more: Vec<(String, Vec<u8>)> = headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
        .collect();
    more.push(("Connection".to_owned(), b"close".to_vec()));
    let head = |first: &str, last: &[(&str, String)]| {
        let mut head = format!("{first}\r\n").into_bytes();
        let last = last
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone().into_bytes()));
        for (name, value) in more.iter().cloned().chain(last) {
            head.extend_from_slice(format!("{name}: ").as_bytes());
            head.extend_from_slice(&value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    };
    let sent = |head: Vec<u8>, body: &[u8], believed: Option<&[u8]>| Sent {
        bytes: [&head, body].concat(),
        believed: believed.map(<[u8]>::to_vec),
    };
    const OK: &str = "HTTP/1.1 200 OK";
    let length = |length: String| [("Content-Length", length)];
    let all = body.len();
    let chunked = [("Transfer-Encoding", "chunked".to_owned())];
    match random.below(20) {
        0 => {
            let said = all - random.below(all + 1);
            sent(head(OK, &length(said.to_string())), body, Some(&body[..said]))
        }
        1 => {
            let said = all + 1 + random.below(100);
            sent(head(OK, &length(said.to_string())), body, None)
        }
        2 => {
            let wrong = *random.pick(&[&"-1", &"1e3", &"0x10", &"99999999999999999999999", &"12 13"]);
            sent(head(OK, &length(wrong.to_owned())), body, None)
        }
        3 => {
            let two = [
                ("Content-Length", all.to_string()),
                ("content-length", (all + 1).to_string()),
            ];
            sent(head(OK, &two), body, None)
        }
        4 => sent(head(OK, &[]), body, Some(body)),
        5 => sent(head("HTTP/1.0 200 OK", &[]), body, Some(body)),
        6..10 => sent(head(OK, &chunked), &chunks(body, random), Some(body)),
        10..12 => {
            let pieces = chunks(body, random);
            // The end mark has five bytes.
            let cut = random.below(pieces.len() - 4);
            sent(head(OK, &chunked), &pieces[..cut], None)
        }
        12 => {
            let wrong = *random.pick(&[&"zz", &"-1", &"ffffffffffffffffff", &"", &"0x5"]);
            let pieces = [wrong.as_bytes(), b"\r\n", body, b"\r\n0\r\n\r\n"].concat();
            sent(head(OK, &chunked), &pieces, None)
        }
        13 => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            let mut packed = packer
                .write_all(body)
                .and_then(|()| packer.finish())
                .unwrap_or_default();
            let is_whole = random.once_in(2);
            if !is_whole {
                packed.truncate(random.below(packed.len()));
            }
            let headers = [
                ("Content-Encoding", "gzip".to_owned()),
                ("Content-Length", packed.len().to_string()),
            ];
            sent(head(OK, &headers), &packed, is_whole.then_some(body))
        }
        14 => {
            let headers = [
                ("Content-Encoding", "identity".to_owned()),
                ("Content-Length", all.to_string()),
            ];
            sent(head(OK, &headers), body, Some(body))
        }
        15 => {
            let early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=\"next\"\r\n\r\n".to_vec();
            let rest = head(OK, &length(all.to_string()));
            sent([early, rest].concat(), body, Some(body))
        }
        16 => {
            let wrong = *random.pick(&[
                &"HTTP/2.0 200 OK",
                &"HTTP/1.1 20 OK",
                &"HTTP/1.1",
                &"200 OK",
                &"HTTP/1.1 99999 no",
            ]);
            sent(head(wrong, &length(all.to_string())), body, None)
        }
        17 => {
            let many = random.within(150, 400);
            let many: Vec<(&str, String)> = (0..many)
                .map(|_| ("X-More", "y".to_owned()))
                .chain(length(all.to_string()))
                .collect();
            // Too many for some clients.
            sent(head(OK, &many), body, Some(body))
        }
        18 => {
            more.push((
                "X-Odd".to_owned(),
                random.pick(&[&b"\xff\xfe"[..], &b"\x7f"[..], &b"a\tb"[..]]).to_vec(),
            ));
            let mut bytes = format!("{OK}\r\n").into_bytes();
            for (name, value) in &more {
                bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
            }
            bytes.extend_from_slice(format!("Content-Length: {all}\r\n\r\n").as_bytes());
            sent(bytes, body, Some(body))
        }
        _ => {
            // The head ends in its middle.
            let whole = head(OK, &length(all.to_string()));
            let cut = random.below(whole.len() - 3);
            sent(whole[..cut].to_vec(), b"", None)
        }
    }
}

fn chunks(body: &[u8], random: &mut Random) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(random.within(1, rest.len().min(200)));
        let extension = *random.pick(&[&"", &"", &";a=b", &";x"]);
        all.extend_from_slice(format!("{:x}{extension}\r\n", piece.len()).as_bytes());
        all.extend_from_slice(piece);
        all.extend_from_slice(b"\r\n");
        rest = left;
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}
