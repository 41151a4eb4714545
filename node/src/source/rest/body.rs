//! The body of an answer: where its records are, and where its next page is said. It is looked at as text; a record is
//! read by whoever reads JSON lines.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::value::RawValue;

/// A page of more records than this is an error: each costs memory beside its text.
const MAX_RECORDS: usize = 1_000_000;

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'b>(&'b str);

impl<'b> Body<'b> {
    /// Looks whether it is one value of JSON, to its end.
    pub(super) fn new(text: &'b [u8]) -> Result<Self, Wrong> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let text = std::str::from_utf8(text)
            .map_err(|error| Wrong::NoJson(format!("the bytes from {} on are no UTF-8", error.valid_up_to() + 1)))?;
        match serde_json::from_str::<&RawValue>(text) {
            Ok(value) => Ok(Self(value.get())),
            // A number that ends too early is called a wrong one.
            Err(error) if text.ends_with(['-', '+', '.', 'e', 'E']) && is_at_end(&error, text) => Err(Wrong::CutOff),
            Err(error) => Err(error.into()),
        }
    }

    /// The text of the value to which these keys lead.
    pub(super) fn at(self, path: &[String]) -> Result<Option<&'b str>, Wrong> {
        let mut value = self.0;
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

    /// The texts of the records, as an array to which these keys lead. `null` is none: so some servers write an empty list.
    pub(super) fn records(self, path: &[String]) -> Result<Vec<&'b str>, Wrong> {
        let Some(array) = self.at(path)? else {
            return Err(Wrong::NoRecords("nothing"));
        };
        let found = match array.as_bytes().first() {
            Some(b'[') => {
                let mut json = serde_json::Deserializer::from_str(array);
                let items = json.deserialize_seq(Items)?;
                return if items.len() > MAX_RECORDS {
                    Err(Wrong::TooMany)
                } else {
                    Ok(items)
                };
            }
            Some(b'n') => return Ok(Vec::new()),
            Some(b'{') => "an object",
            Some(b'"') => "a text",
            Some(b't' | b'f') => "true or false",
            _ => "a number",
        };
        Err(Wrong::NoRecords(found))
    }
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
        assert_eq!(
            body.records(&path("data.items")).unwrap(),
            ["{\"id\": 1.50}", "2", "\"x\"", "[]", "null"]
        );
        assert_eq!(body.records(&path("a")).unwrap(), ["0"]);
        assert!(body.records(&path("none")).unwrap().is_empty());
        assert_eq!(Body::new(b"[{},{}]").unwrap().records(&[]).unwrap().len(), 2);
        for (at, found) in [
            ("", "an object"),
            ("data", "an object"),
            ("data.item", "nothing"),
            ("a.b", "nothing"),
            ("none.x", "nothing"),
        ] {
            let wrong = body.records(&path(at)).unwrap_err();
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
        assert_eq!(deep.records(&[]).unwrap().len(), 1);
        let many = format!("[0{}]", ",0".repeat(MAX_RECORDS));
        let many = Body::new(many.as_bytes()).unwrap();
        assert!(matches!(many.records(&[]), Err(Wrong::TooMany)));
    }
}
