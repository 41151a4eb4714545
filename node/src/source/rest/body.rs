//! The body of an answer: where its records are, and where its next page is said. It is looked at as text; a record is
//! read by whoever reads JSON lines, who also judges its bytes: one that is no text spoils its record and not the page.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::Value;
use serde_json::value::RawValue;

/// A page of more records than this is an error: each costs memory beside its text.
pub(super) const MAX_RECORDS: usize = 1_000_000;

/// Why a body is no page.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It ends in its middle.
    CutOff,
    /// It is no JSON, and why.
    NoJson(String),
    /// There is something else, or nothing, where the records should be.
    NoRecords(&'static str),
    /// There are more than [`MAX_RECORDS`].
    TooMany,
    /// It says itself that it is an error: where, and how.
    Error(String, String),
}

impl From<serde_json::Error> for Wrong {
    fn from(error: serde_json::Error) -> Self {
        if error.is_eof() {
            return Self::CutOff;
        }
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        Self::NoJson(format!("{said}, at line {}, column {}", error.line(), error.column()))
    }
}

/// A whole text of JSON.
#[derive(Debug, Clone)]
pub(super) struct Body<'b> {
    bytes: &'b [u8],
    /// The same, of the same length, with a `?` for each byte that is no UTF-8. All that has a meaning is ASCII.
    text: Cow<'b, str>,
    /// Where the value stands.
    value: Range<usize>,
}

impl<'b> Body<'b> {
    /// Looks whether it is one value of JSON, to its end.
    pub(super) fn new(bytes: &'b [u8]) -> Result<Self, Wrong> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = readable(bytes);
        let value = match serde_json::from_str::<&RawValue>(&text) {
            Ok(value) => place(&text, value.get()),
            // A number that ends too early is called a wrong one.
            Err(error) if text.ends_with(['-', '+', '.', 'e', 'E']) && is_at_end(&error, &text) => {
                return Err(Wrong::CutOff);
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { bytes, text, value })
    }

    /// The text of the value to which these keys lead. Error if it holds bytes that are no text.
    pub(super) fn at(&self, path: &[String]) -> Result<Option<&str>, Wrong> {
        let Some(found) = self.find(path)? else { return Ok(None) };
        match std::str::from_utf8(&self.bytes[place(&self.text, found)]) {
            Ok(_) => Ok(Some(found)),
            Err(_) => Err(Wrong::NoJson(format!(
                "`{}` holds bytes that are no UTF-8",
                path.join(".")
            ))),
        }
    }

    /// Error if there is anything at the value to which these keys lead: neither nothing, `null` and `false`, nor empty.
    pub(super) fn is_no_error(&self, path: &[String]) -> Result<(), Wrong> {
        let Some(said) = self.find(path)? else { return Ok(()) };
        let is_empty = match serde_json::from_str::<Value>(said) {
            Ok(Value::Null | Value::Bool(false)) => true,
            Ok(Value::String(text)) => text.is_empty(),
            Ok(Value::Array(items)) => items.is_empty(),
            Ok(Value::Object(fields)) => fields.is_empty(),
            // It is nested deeper than can be looked at.
            Ok(Value::Bool(true) | Value::Number(_)) | Err(_) => false,
        };
        match is_empty {
            true => Ok(()),
            false => Err(Wrong::Error(path.join("."), said.to_owned())),
        }
    }

    fn find(&self, path: &[String]) -> Result<Option<&str>, Wrong> {
        let mut value = &self.text[self.value.clone()];
        for key in path {
            if !value.starts_with('{') {
                return Ok(None);
            }
            let mut json = serde_json::Deserializer::from_str(value);
            // What comes last counts, as it does in most readers of JSON.
            match json.deserialize_map(Under(key))? {
                Some(found) => value = found,
                None => return Ok(None),
            }
        }
        Ok(Some(value))
    }

    /// The bytes of the records, as an array to which these keys lead. If it is `optional`, nothing and `null` are none.
    pub(super) fn records(&self, path: &[String], optional: bool) -> Result<Vec<&'b [u8]>, Wrong> {
        let array = self.find(path)?.unwrap_or_default();
        let found = match array.as_bytes().first() {
            Some(b'[') => {
                let mut json = serde_json::Deserializer::from_str(array);
                let items = json.deserialize_seq(Items)?;
                if items.len() > MAX_RECORDS {
                    return Err(Wrong::TooMany);
                }
                let bytes = |item| &self.bytes[place(&self.text, item)];
                return Ok(items.into_iter().map(bytes).collect());
            }
            None | Some(b'n') if optional => return Ok(Vec::new()),
            None => "nothing",
            Some(b'n') => "null",
            Some(b'{') => "an object",
            Some(b'"') => "a text",
            Some(b't' | b'f') => "true or false",
            _ => "a number",
        };
        Err(Wrong::NoRecords(found))
    }
}

/// Where a part of a text stands in it.
fn place(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// The bytes as text, with a `?` for each that is none.
fn readable(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        text.push_str(part.valid());
        text.extend(part.invalid().iter().map(|_| '?'));
    }
    Cow::Owned(text)
}

/// Whether the error is a number without an end, in the last byte.
fn is_at_end(error: &serde_json::Error, text: &str) -> bool {
    let last = text.split('\n').count();
    let column = text.rsplit('\n').next().map_or(0, str::len);
    error.to_string().starts_with("invalid number") && (error.line(), error.column()) >= (last, column)
}

/// The text of the value under a key.
struct Under<'k>(&'k str);

impl<'de> Visitor<'de> for Under<'_> {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Key>()? {
            if key.0 == self.0 {
                found = Some(map.next_value::<&'de RawValue>()?.get());
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[derive(Deserialize)]
struct Key(String);

/// The texts of an array's values. One more than is allowed ends it.
struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = array.next_element::<&'de RawValue>()? {
            items.push(item.get());
            if items.len() > MAX_RECORDS {
                while array.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('.')
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn records_are_found_where_they_are_said_to_be() {
        let body =
            "\u{feff} {\"a\": [0], \"data\": {\"items\": [ {\"id\": 1.50} , 2,\"x\",[],null ]}, \"none\": null}\n";
        let body = Body::new(body.as_bytes()).unwrap();
        let records: [&[u8]; 5] = [b"{\"id\": 1.50}", b"2", b"\"x\"", b"[]", b"null"];
        assert_eq!(body.records(&path("data.items"), false).unwrap(), records);
        assert_eq!(body.records(&path("a"), false).unwrap(), [b"0"]);
        for at in ["none", "data.item", "none.x", "nowhere"] {
            assert!(body.records(&path(at), true).unwrap().is_empty(), "{at}");
        }
        assert!(matches!(
            body.records(&path("data"), true),
            Err(Wrong::NoRecords("an object"))
        ));
        assert_eq!(Body::new(b"[{},{}]").unwrap().records(&[], false).unwrap().len(), 2);
        for (at, found) in [
            ("", "an object"),
            ("data", "an object"),
            ("data.item", "nothing"),
            ("a.b", "nothing"),
            ("none.x", "nothing"),
            ("none", "null"),
        ] {
            let wrong = body.records(&path(at), false).unwrap_err();
            assert!(matches!(wrong, Wrong::NoRecords(is) if is == found), "{at}: {wrong:?}");
        }
        // The last of a key that comes twice.
        let twice = Body::new(br#"{"k": 1, "k": "\u0061"}"#).unwrap();
        assert_eq!(twice.at(&path("k")).unwrap(), Some(r#""\u0061""#));
        assert_eq!(
            Body::new(br#"{"\u006b": 1}"#).unwrap().at(&path("k")).unwrap(),
            Some("1")
        );
    }

    #[test]
    fn a_byte_that_is_no_text_spoils_its_value_alone() {
        let body =
            b"{\"data\": [{\"a\": \"\xc3\xbc\"}, {\"a\": \"M\xfc\xe2\x82\"}, 3], \"next\": \"\xff\", \"n\": \"p\"}";
        let body = Body::new(body).unwrap();
        let records: [&[u8]; 3] = [b"{\"a\": \"\xc3\xbc\"}", b"{\"a\": \"M\xfc\xe2\x82\"}", b"3"];
        assert_eq!(body.records(&path("data"), false).unwrap(), records);
        assert_eq!(body.at(&path("n")).unwrap(), Some("\"p\""));
        assert!(matches!(body.at(&path("next")), Err(Wrong::NoJson(_))));
        assert!(matches!(Body::new(b"{\xff\"a\": 1}"), Err(Wrong::NoJson(_))));
        assert!(matches!(Body::new(b"{\"a\": \"\xc3"), Err(Wrong::CutOff)));
    }

    #[test]
    fn what_is_cut_off_is_told_from_what_is_no_json() {
        let whole = b"{\"data\": [{\"a\": \"b\\\"\\u00e4}\"}, true],\n\"more\": -1.5e-3}";
        for end in 0..whole.len() {
            let cut = Body::new(&whole[..end]);
            assert!(matches!(cut, Err(Wrong::CutOff)), "{end}: {cut:?}");
        }
        for text in [
            &b"<html>"[..],
            b"{\"a\": 1} x",
            b"{'a': 1}",
            b"\xff",
            b"nul!",
            b"[1}",
            b"[-]e",
            b"[1]\n-",
        ] {
            assert!(matches!(Body::new(text), Err(Wrong::NoJson(_))), "{text:?}");
        }
    }

    #[test]
    fn depth_and_numbers_of_records_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
        let deep = Body::new(deep.as_bytes()).unwrap();
        assert_eq!(deep.records(&[], false).unwrap().len(), 1);
        let many = format!("[0{}]", ",0".repeat(MAX_RECORDS));
        let many = Body::new(many.as_bytes()).unwrap();
        assert!(matches!(many.records(&[], false), Err(Wrong::TooMany)));
    }
}
