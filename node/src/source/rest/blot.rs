//! Secrets in texts, however these spell them: servers echo what they are sent, and errors quote what servers say.
//!
//! A text is searched as it is, and once more with every escape undone that writers of JSON, URLs and HTML have, in whatever
//! order they were put on each other: `\u0026`, `\/`, `%2f`, `&amp;`, and `+` for a space. The same is done to the secrets,
//! so that it doesn't matter which signs a writer escapes and which it leaves. Base64 is found at each of the three places
//! at which a secret may begin in it, in both alphabets, and goes with all of its token. An excerpt may have cut a secret
//! off: what stands before the dots of one, and begins a secret, goes as well.
//!
//! Only what is spelled like that is found. A server that wants to betray a secret can.

use std::ops::Range;

use memchr::memmem;

/// Stands where a secret stood.
pub(super) const BLOT: &str = "***";
/// Times that escapes are undone, at most: JSON in JSON in a URL takes three.
const PASSES: usize = 5;
/// Letters in a row that make it worth the while to look for a secret.
const MARK: usize = 4;
/// Letters of base64 that tell a secret from other texts.
const PACKED: usize = 5;
/// Letters of a secret before the dots of an excerpt.
const CUT: usize = 3;
/// How excerpts end.
const DOTS: [&str; 2] = ["...", "…"];

/// Texts that nobody may see.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// As they are sent.
    exact: Vec<Vec<u8>>,
    /// Without escapes.
    plain: Vec<Vec<u8>>,
    /// What base64 makes of them.
    packed: Vec<Vec<u8>>,
    /// A part of each that no writer escapes, if all have one: long texts are searched for these before all else.
    marks: Option<Vec<Vec<u8>>>,
}

impl Secrets {
    #[cfg(test)]
    pub(crate) fn of(texts: &[&str]) -> Self {
        let mut secrets = Self::default();
        for text in texts {
            secrets.add(text);
        }
        secrets
    }

    /// Adds a secret.
    pub(super) fn add(&mut self, secret: &str) {
        if secret.is_empty() {
            return;
        }
        let secret = secret.as_bytes();
        self.exact.push(secret.to_vec());
        self.plain.push(spaced(&Plain::of(secret).bytes));
        for shift in 0..3 {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(secret);
            // Without the letters that depend on what stands before it and after.
            let (from, to) = ((shift * 8).div_ceil(6), bytes.len() * 8 / 6);
            let packed = base64(&bytes);
            self.add_core(&packed[from..to]);
        }
        self.mark();
    }

    /// Adds a text of base64 that holds secrets.
    pub(super) fn add_packed(&mut self, packed: &str) {
        self.add_core(packed.trim_end_matches('='));
        self.mark();
    }

    /// Adds those that another has.
    pub(super) fn extend(&mut self, other: &Self) {
        self.exact.extend_from_slice(&other.exact);
        self.plain.extend_from_slice(&other.plain);
        self.packed.extend_from_slice(&other.packed);
        self.mark();
    }

    fn add_core(&mut self, core: &str) {
        if core.len() < PACKED {
            return;
        }
        let other = core.replace('+', "-").replace('/', "_");
        for core in [core.as_bytes(), other.as_bytes()] {
            if !self.packed.iter().any(|known| known == core) {
                self.packed.push(core.to_vec());
            }
        }
    }

    fn mark(&mut self) {
        let needles = self.exact.iter().chain(&self.packed);
        let marks: Option<Vec<Vec<u8>>> = needles.map(|needle| longest_run(needle)).collect();
        self.marks = marks.map(|mut marks| {
            marks.sort();
            marks.dedup();
            marks
        });
    }

    /// Whether a long text has to be looked at at all. It costs less than [`Secrets::holds`].
    pub(super) fn may_hold(&self, text: &[u8]) -> bool {
        match &self.marks {
            Some(marks) => marks.iter().any(|mark| memmem::find(text, mark).is_some()),
            None => !self.exact.is_empty(),
        }
    }

    /// Whether a text holds a secret.
    pub(super) fn holds(&self, text: &[u8]) -> bool {
        !self.exact.is_empty() && !self.places(text).is_empty()
    }

    /// The text without any secret.
    pub(crate) fn blot(&self, text: &str) -> String {
        if self.exact.is_empty() {
            return text.to_owned();
        }
        let mut places = self.places(text.as_bytes());
        places.sort_by_key(|place| (place.start, place.end));
        let mut shown = String::with_capacity(text.len());
        let mut at = 0;
        for place in places {
            let start = (0..=place.start)
                .rev()
                .find(|start| text.is_char_boundary(*start))
                .unwrap_or(0);
            let end = (place.end..text.len())
                .find(|end| text.is_char_boundary(*end))
                .unwrap_or(text.len());
            if start > at || at == 0 {
                shown.push_str(&text[at..start.max(at)]);
                shown.push_str(BLOT);
            }
            at = at.max(end);
        }
        shown.push_str(&text[at..]);
        shown
    }

    /// Where secrets stand in a text; these may overlap.
    fn places(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut places = Vec::new();
        for needle in &self.exact {
            places.extend(memmem::find_iter(text, needle).map(|at| at..at + needle.len()));
        }
        let plain = Plain::of(text);
        let spaced = spaced(&plain.bytes);
        for needle in &self.plain {
            let found = memmem::find_iter(&spaced, needle);
            places.extend(found.map(|at| plain.source(at..at + needle.len())));
        }
        for needle in &self.packed {
            let found = memmem::find_iter(&plain.bytes, needle);
            places.extend(found.map(|at| plain.source(token(&plain.bytes, at..at + needle.len()))));
        }
        for dots in DOTS {
            for at in memmem::find_iter(&spaced, dots) {
                let ends = [Some(at), before_half_an_escape(&plain.bytes[..at])];
                for end in ends.into_iter().flatten() {
                    if let Some(length) = begun(&self.plain, &spaced[..end], CUT) {
                        places.push(plain.source(end - length..at));
                    }
                    if let Some(length) = begun(&self.packed, &plain.bytes[..end], PACKED) {
                        places.push(plain.source(token(&plain.bytes, end - length..at)));
                    }
                }
            }
        }
        places
    }
}

/// How many bytes of a needle, the most of all, stand at the end of a text, if they are so many at least.
fn begun(needles: &[Vec<u8>], text: &[u8], least: usize) -> Option<usize> {
    let of_one = |needle: &Vec<u8>| {
        let most = needle.len().saturating_sub(1);
        (least..=most).rev().find(|length| text.ends_with(&needle[..*length]))
    };
    needles.iter().filter_map(of_one).max()
}

/// Where a text ends without the escape that was cut off at its end.
fn before_half_an_escape(text: &[u8]) -> Option<usize> {
    let from = text.len().saturating_sub(11);
    let at = text[from..]
        .iter()
        .rposition(|byte| matches!(byte, b'\\' | b'%' | b'&'))?
        + from;
    let rest = &text[at + 1..];
    let is_half = rest
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'#' | b'{'));
    is_half.then_some(at)
}

/// The longest part of letters and digits alone; `None` if that is too short to tell a text from others.
fn longest_run(needle: &[u8]) -> Option<Vec<u8>> {
    let runs = needle.split(|byte| !byte.is_ascii_alphanumeric());
    let longest = runs.max_by_key(|run| run.len())?;
    (longest.len() >= MARK).then(|| longest.to_vec())
}

/// The whole word of base64 around a place.
fn token(text: &[u8], place: Range<usize>) -> Range<usize> {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(byte);
    let before = text[..place.start]
        .iter()
        .rev()
        .take_while(|byte| is_letter(byte))
        .count();
    let after = text[place.end..].iter().take_while(|byte| is_letter(byte)).count();
    place.start - before..place.end + after
}

/// With `+` as a space, as the queries of URLs have it.
fn spaced(text: &[u8]) -> Vec<u8> {
    text.iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect()
}

/// A text without escapes, and where each of its bytes comes from.
struct Plain {
    bytes: Vec<u8>,
    /// The place in the source of each byte, and the source's end.
    at: Vec<usize>,
}

impl Plain {
    fn of(text: &[u8]) -> Self {
        let mut plain = Self {
            bytes: text.to_vec(),
            at: (0..=text.len()).collect(),
        };
        for _ in 0..PASSES {
            if !plain.pass() {
                break;
            }
        }
        plain
    }

    /// Undoes the escapes that are there now, and says whether there were any.
    fn pass(&mut self) -> bool {
        if memchr::memchr3(b'\\', b'%', b'&', &self.bytes).is_none() {
            return false;
        }
        let (mut bytes, mut at) = (Vec::with_capacity(self.bytes.len()), Vec::with_capacity(self.at.len()));
        let mut has_changed = false;
        let mut place = 0;
        while let Some(byte) = self.bytes.get(place) {
            let from = self.at[place];
            let used = match escape(&self.bytes[place..]) {
                Some((Sign::Byte(byte), used)) => {
                    bytes.push(byte);
                    used
                }
                Some((Sign::Letter(letter), used)) => {
                    bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                    used
                }
                None => {
                    bytes.push(*byte);
                    1
                }
            };
            has_changed |= used > 1;
            at.resize(bytes.len(), from);
            place += used;
        }
        at.extend(self.at.last());
        (self.bytes, self.at) = (bytes, at);
        has_changed
    }

    /// The place in the source of a part.
    fn source(&self, part: Range<usize>) -> Range<usize> {
        let last = part.end.checked_sub(1).map_or(0, |last| self.at[last]);
        // All bytes of an escape come from its beginning.
        let end = self.at[part.end..].iter().find(|at| **at > last);
        self.at[part.start]..end.or(self.at.last()).copied().unwrap_or(0)
    }
}

/// What an escape stands for.
enum Sign {
    Byte(u8),
    Letter(char),
}

/// The escape with which a text begins, and its length.
fn escape(text: &[u8]) -> Option<(Sign, usize)> {
    match text {
        [b'%', high, low, ..] => Some((Sign::Byte(hex(&[*high, *low])? as u8), 3)),
        [b'\\', b'x', high, low, ..] => Some((Sign::Byte(hex(&[*high, *low])? as u8), 4)),
        [b'\\', b'u', b'{', rest @ ..] => {
            let digits = rest.iter().take(7).position(|byte| *byte == b'}')?;
            Some((Sign::Letter(letter(hex(&rest[..digits])?)), digits + 4))
        }
        [b'\\', b'u', ..] => {
            let unit = hex(text.get(2..6)?)?;
            let low = match text.get(6..12) {
                Some([b'\\', b'u', digits @ ..]) => hex(digits).filter(|low| (0xdc00..0xe000).contains(low)),
                _ => None,
            };
            match low {
                Some(low) if (0xd800..0xdc00).contains(&unit) => {
                    let whole = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                    Some((Sign::Letter(letter(whole)), 12))
                }
                _ => Some((Sign::Letter(letter(unit)), 6)),
            }
        }
        [b'\\', sign, ..] => {
            let byte = match sign {
                b'"' | b'\\' | b'/' | b'\'' => *sign,
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                _ => return None,
            };
            Some((Sign::Byte(byte), 2))
        }
        [b'&', rest @ ..] => {
            let end = rest.iter().take(10).position(|byte| *byte == b';')?;
            let sign = match &rest[..end] {
                b"amp" => '&',
                b"lt" => '<',
                b"gt" => '>',
                b"quot" => '"',
                b"apos" => '\'',
                [b'#', b'x' | b'X', digits @ ..] => letter(hex(digits)?),
                [b'#', digits @ ..] => letter(std::str::from_utf8(digits).ok()?.parse().ok()?),
                _ => return None,
            };
            Some((Sign::Letter(sign), end + 2))
        }
        _ => None,
    }
}

fn letter(code: u32) -> char {
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn hex(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Base64 with padding, as basic authentication has it.
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let all = three.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            if place <= three.len() {
                text.push(char::from(LETTERS[(all >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_the_rfc_has_it() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
            ("\u{ff}\u{fe}?", "w7/Dvj8="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text, "{bytes}");
        }
    }

    /// Every byte as an escape.
    fn escaped(text: &str, write: impl Fn(u8) -> String) -> String {
        text.bytes().map(write).collect()
    }

    #[test]
    fn a_secret_is_found_in_every_spelling() {
        let secret = "s3cr/t<&>+'(x)!* ?";
        let secrets = Secrets::of(&[secret]);
        let percent = |sign: u8| match sign {
            b'a'..=b'z' | b'0'..=b'9' => char::from(sign).to_string(),
            sign => format!("%{sign:02x}"),
        };
        let lower = escaped(secret, percent);
        let component = "s3cr%2Ft%3C%26%3E%2B'(x)!*%20%3F";
        let go = "s3cr/t\\u003c\\u0026\\u003e+'(x)!* ?";
        let packed = |before: &str, after: &str| base64(format!("{before}{secret}{after}").as_bytes());
        let url_safe = |packed: String| {
            packed
                .replace('+', "-")
                .replace('/', "_")
                .trim_end_matches('=')
                .to_owned()
        };
        for spelling in [
            secret.to_owned(),
            lower.clone(),
            lower
                .to_uppercase()
                .replace("S3CR", "s3cr")
                .replace('T', "t")
                .replace('X', "x"),
            lower.replace("%20", "+"),
            component.to_owned(),
            go.to_owned(),
            secret.replace('/', "\\/"),
            "s3cr\\/t&lt;&amp;&gt;+&#39;(x)!* ?".to_owned(),
            "s3cr&#x2F;t&lt;&amp;&gt;+&#x27;(x)!* ?".to_owned(),
            // JSON in JSON, and that in a URL.
            go.replace('\\', "\\\\"),
            escaped(&go.replace('\\', "\\\\"), percent),
            escaped(secret, |sign| format!("\\u{sign:04X}")),
            escaped(secret, |sign| format!("%{sign:02X}")),
            packed("", ""),
            packed("a", "b"),
            packed("me:", ""),
            packed("{\"key\": \"", "\"}"),
            url_safe(packed("", "")),
            url_safe(packed("me", "?")),
            packed("me:", "").replace('=', "%3d"),
            packed("me:", "").replace('/', "\\/"),
        ] {
            for text in [spelling.clone(), format!("you sent: \"{spelling}\", didn't you")] {
                assert!(secrets.holds(text.as_bytes()), "{text}");
                let shown = secrets.blot(&text);
                assert!(shown.contains(BLOT), "{text}: {shown}");
                assert!(
                    !shown.contains("s3cr") && !secrets.holds(shown.as_bytes()),
                    "{text}: {shown}"
                );
                assert!(
                    !text.contains("you sent") || shown.starts_with("you sent: \"***"),
                    "{shown}"
                );
            }
            // All but those whose letters are escaped are found by a first look.
            let has_letters = !spelling.starts_with("\\u0") && !spelling.starts_with("%73");
            assert!(!has_letters || secrets.may_hold(spelling.as_bytes()), "{spelling}");
        }
        for text in [
            "nothing of it",
            "s3cr/u",
            "c3Ny",
            "%zz \\u12 &; \\",
            "\\u{110000} \\ud800 %",
        ] {
            assert!(!secrets.holds(text.as_bytes()), "{text}");
            assert_eq!(secrets.blot(text), text);
        }
    }

    #[test]
    fn a_secret_that_an_excerpt_has_cut_off_is_known_by_its_beginning() {
        let secrets = Secrets::of(&["hunter2-and-more", "geheimü"]);
        for (text, shown) in [
            ("value \"xxhunter2-a...\"", "value \"xx***...\""),
            ("value hun…", "value ***…"),
            ("value \"geheim\\u00...", "value \"***..."),
            ("value geheim%C3...", "value ***..."),
            ("a long ending hu...", "a long ending hu..."),
            ("aHVudGVyMi1h...", "***..."),
        ] {
            assert_eq!(secrets.blot(text), shown);
        }
    }

    #[test]
    fn texts_of_any_kind_are_blotted_at_the_borders_of_letters() {
        let secrets = Secrets::of(&["ü%C3", "ab", "b+c"]);
        for text in [
            "xü%C3ü",
            "aab+cabü",
            "%C3%BC%25C3",
            "ababab",
            "b%20c",
            "\u{fffd}ab\u{fffd}",
        ] {
            let shown = secrets.blot(text);
            assert!(shown.contains(BLOT) && !shown.contains("ab"), "{text}: {shown}");
        }
        assert_eq!(secrets.blot("xaby abc"), "x***y ***c");
        assert_eq!(Secrets::default().blot("ab"), "ab");
        assert!(!Secrets::default().may_hold(b"ab"));
    }
}
