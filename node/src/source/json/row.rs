//! One line: an object, whose values go to their columns as they come, or the reason why it is no row.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use haulage_plan::definition::Column;
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_DEPTH;
use crate::source::{EXCERPT, excerpt};

/// Why a line is no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Odd {
    /// A short stable word.
    pub(in crate::source) reason: &'static str,
    /// What exactly is wrong.
    pub(in crate::source) detail: String,
}

/// The declared columns by key.
pub(in crate::source) struct Keys {
    places: HashMap<String, usize>,
    names: Vec<String>,
    /// Which columns the line has had.
    had: Vec<bool>,
    /// The keys of the line that are no column, by their hash: a line has too many to keep them.
    others: HashSet<u64>,
    /// Whether the first of them is kept.
    strict: bool,
    new: Option<String>,
}

impl Keys {
    pub(in crate::source) fn new(columns: &[Column], strict: bool) -> Self {
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        Self {
            places: names.iter().cloned().zip(0..).collect(),
            had: vec![false; names.len()],
            names,
            others: HashSet::new(),
            strict,
            new: None,
        }
    }

    /// The first key of the last line that is no column, where that matters.
    pub(super) fn new_key(&self) -> Option<&str> {
        self.new.as_deref()
    }

    /// Reads a line and hands the JSON text of each value that is a column to `take`, with the column's place. An error
    /// may come after some of them.
    pub(super) fn read(&mut self, line: &[u8], mut take: impl FnMut(usize, &str)) -> Result<(), Odd> {
        self.had.fill(false);
        self.others.clear();
        self.new = None;
        let mut wrong = None;
        let object = Object {
            keys: self,
            take: &mut take,
            wrong: &mut wrong,
        };
        let read = parse(line, object);
        match wrong {
            Some(odd) => Err(odd),
            None => read,
        }
    }

    /// The name of the column at a place.
    pub(super) fn name(&self, place: usize) -> &str {
        &self.names[place]
    }

    /// The columns that the last line did not have.
    pub(super) fn absent(&self) -> impl Iterator<Item = usize> {
        self.had
            .iter()
            .enumerate()
            .filter(|(_, had)| !**had)
            .map(|(place, _)| place)
    }
}

/// The keys of a line's object, in their order.
pub(in crate::source) fn keys(line: &[u8]) -> Result<Vec<String>, Odd> {
    let mut keys = Vec::new();
    parse(line, Names(&mut keys))?;
    let mut seen = HashSet::new();
    match keys.iter().find(|key| !seen.insert(key.as_str())) {
        Some(twice) => Err(duplicate(twice)),
        None => Ok(keys),
    }
}

fn duplicate(key: &str) -> Odd {
    Odd {
        reason: "duplicate_key",
        detail: format!(
            "the key \"{}\" stands twice in the object",
            excerpt(key.as_bytes(), EXCERPT)
        ),
    }
}

fn parse<'de>(line: &'de [u8], visitor: impl Visitor<'de, Value = ()>) -> Result<(), Odd> {
    let text = std::str::from_utf8(line).map_err(|error| Odd {
        reason: "bad_utf8",
        detail: format!("the bytes from {} on are no UTF-8", error.valid_up_to() + 1),
    })?;
    let bad_json = |error: &serde_json::Error| {
        let said = error.to_string();
        let said = said.split(" at line ").next().unwrap_or_default();
        Odd {
            reason: "bad_json",
            detail: format!("no JSON: {said}, at byte {} of the line", error.column()),
        }
    };
    let kind = match text.trim_ascii_start().bytes().next() {
        Some(b'{') => {
            let mut json = serde_json::Deserializer::from_str(text);
            let read = json.deserialize_map(visitor).and_then(|()| json.end());
            return read.map_err(|error| bad_json(&error));
        }
        Some(b'[') => "an array",
        Some(b'"') => "a text",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    };
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Err(Odd {
            reason: "not_an_object",
            detail: format!("expected an object, found {kind}"),
        }),
        Err(error) => Err(bad_json(&error)),
    }
}

struct Object<'k, 'w, F> {
    keys: &'k mut Keys,
    take: &'k mut F,
    wrong: &'w mut Option<Odd>,
}

impl<'de, F: FnMut(usize, &str)> Visitor<'de> for Object<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KeyOf(self.keys))? {
            let key = match key {
                Ok(key) => key,
                Err(twice) => {
                    *self.wrong = Some(duplicate(&twice));
                    return Err(A::Error::custom("duplicate key"));
                }
            };
            let value = map.next_value::<&'de RawValue>()?.get();
            if depth(value) >= MAX_DEPTH {
                *self.wrong = Some(Odd {
                    reason: "too_deep",
                    detail: format!("objects and arrays nest deeper than {MAX_DEPTH} levels"),
                });
                return Err(A::Error::custom("too deep"));
            }
            if let Some(place) = key {
                (self.take)(place, value);
            }
        }
        Ok(())
    }
}

/// Reads a key: the place of its column, if it is one; the key itself if the line has had it before.
struct KeyOf<'k>(&'k mut Keys);

impl<'de> DeserializeSeed<'de> for KeyOf<'_> {
    type Value = Result<Option<usize>, String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf<'_> {
    type Value = Result<Option<usize>, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let Some(&place) = self.0.places.get(key) else {
            if self.0.strict && self.0.new.is_none() {
                self.0.new = Some(key.to_owned());
            }
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            let is_new = self.0.others.insert(hasher.finish());
            return Ok(if is_new { Ok(None) } else { Err(key.to_owned()) });
        };
        let had = std::mem::replace(&mut self.0.had[place], true);
        Ok(if had {
            Err(self.0.names[place].clone())
        } else {
            Ok(Some(place))
        })
    }
}

/// Notes the keys of an object.
struct Names<'k>(&'k mut Vec<String>);

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
            self.0.push(key);
        }
        Ok(())
    }
}

/// How deep objects and arrays nest in a JSON text.
fn depth(json: &str) -> usize {
    if !json.starts_with(['{', '[']) {
        return 0;
    }
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                // To the end of the string; what follows a backslash is never its end.
                while let Some(inside) = bytes.next() {
                    match inside {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}
