//! One line: an object, whose values go to their columns as they come, or the reason why it is no row.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use haulage_plan::definition::{Column, Paths};
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_DEPTH;
use super::column::what;
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
    /// The keys that matter, of the line's object and of those in it. The first is no key, but the line itself.
    known: Vec<Known>,
    names: Vec<String>,
    /// Of each column, its key's place among those.
    keys: Vec<usize>,
    /// Which keys the line has had.
    had: Vec<bool>,
    /// The keys of the line that are no column, by their hash: a line has too many to keep them.
    others: HashSet<u64>,
    /// Whether the first of them is kept.
    strict: bool,
    new: Option<String>,
    /// The column that has no value since what its path leads through is no object, and what that is.
    blocked: Option<(usize, String)>,
}

/// A key that is a column, or leads to some.
#[derive(Default)]
struct Known {
    name: String,
    columns: Vec<usize>,
    /// Keys of the object that is its value, by their places among all.
    inner: HashMap<String, usize>,
}

impl Keys {
    pub(in crate::source) fn new(columns: &[Column], paths: &Paths, strict: bool) -> Self {
        let mut known = vec![Known::default()];
        let mut keys = Vec::new();
        for (place, column) in columns.iter().enumerate() {
            let own = std::slice::from_ref(&column.name);
            let mut at = 0;
            for name in paths.get(&column.name).map_or(own, Vec::as_slice) {
                let new = known.len();
                at = *known[at].inner.entry(name.clone()).or_insert(new);
                if at == new {
                    known.push(Known {
                        name: name.clone(),
                        ..Known::default()
                    });
                }
            }
            known[at].columns.push(place);
            keys.push(at);
        }
        Self {
            had: vec![false; known.len()],
            // A column that takes the whole object knows all its keys.
            strict: strict && known[0].columns.is_empty(),
            known,
            names: columns.iter().map(|column| column.name.clone()).collect(),
            keys,
            others: HashSet::new(),
            new: None,
            blocked: None,
        }
    }

    /// The first column of the last line whose path led to no object, and what stood there.
    pub(super) fn blocked(&self) -> Option<&(usize, String)> {
        self.blocked.as_ref()
    }

    /// A column at a key, or deeper.
    fn beneath(&self, at: usize) -> Option<usize> {
        let known = &self.known[at];
        let inner = known.inner.values().filter_map(|inner| self.beneath(*inner));
        known.columns.iter().copied().chain(inner).min()
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
        self.blocked = None;
        if let (false, Ok(text)) = (self.known[0].columns.is_empty(), std::str::from_utf8(line)) {
            self.had[0] = true;
            for place in &self.known[0].columns {
                take(*place, text.trim_ascii());
            }
        }
        let mut wrong = None;
        let object = Object {
            keys: self,
            at: 0,
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
        let has = |place: &usize| !self.had[self.keys[*place]];
        (0..self.names.len()).filter(has)
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

/// The columns that a line's object has, by name, and its keys that are none and lead to none.
pub(in crate::source) fn found(line: &[u8], columns: &[Column], paths: &Paths) -> Result<Vec<String>, Odd> {
    let mut found = keys(line)?;
    if paths.is_empty() {
        return Ok(found);
    }
    let is_own = |name: &String| columns.iter().any(|column| column.name == *name) && !paths.contains_key(name);
    let leads = |name: &String| paths.values().any(|path| path.first() == Some(name));
    // A column that takes the whole object knows all its keys.
    let knows_all = paths.values().any(Vec::is_empty);
    found.retain(|key| is_own(key) || !(knows_all || leads(key) || paths.contains_key(key)));
    // What can't be read so is told when the line is read.
    let object: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    let has = |path: &[String]| path.iter().try_fold(&object, |object, key| object.get(key)).is_some();
    found.extend(paths.iter().filter(|(_, path)| has(path)).map(|(name, _)| name.clone()));
    Ok(found)
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
    /// The key whose value it is.
    at: usize,
    take: &'k mut F,
    wrong: &'w mut Option<Odd>,
}

impl<'de, F: FnMut(usize, &str)> Visitor<'de> for Object<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KeyOf(self.keys, self.at))? {
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
            let Some(key) = key else { continue };
            for place in &self.keys.known[key].columns {
                (self.take)(*place, value);
            }
            if self.keys.known[key].inner.is_empty() {
                continue;
            }
            match value.bytes().next() {
                Some(b'{') => {
                    let inside = Object {
                        keys: &mut *self.keys,
                        at: key,
                        take: &mut *self.take,
                        wrong: &mut *self.wrong,
                    };
                    let mut json = serde_json::Deserializer::from_str(value);
                    json.deserialize_map(inside).map_err(A::Error::custom)?;
                }
                Some(b'n') => {}
                _ => {
                    let column = self.keys.known[key]
                        .inner
                        .values()
                        .filter_map(|inner| self.keys.beneath(*inner));
                    if let (Some(place), None) = (column.min(), &self.keys.blocked) {
                        let name = excerpt(self.keys.known[key].name.as_bytes(), EXCERPT);
                        let detail = format!("expected an object at the key \"{name}\", found {}", what(value));
                        self.keys.blocked = Some((place, detail));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads a key of the object at another: its place among the known ones, if it is one; the key itself if the object has had
/// it before.
struct KeyOf<'k>(&'k mut Keys, usize);

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
        let Self(keys, at) = self;
        let Some(&place) = keys.known[at].inner.get(key) else {
            if at > 0 {
                return Ok(Ok(None));
            }
            if keys.strict && keys.new.is_none() {
                keys.new = Some(key.to_owned());
            }
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            let is_new = keys.others.insert(hasher.finish());
            return Ok(if is_new { Ok(None) } else { Err(key.to_owned()) });
        };
        let had = std::mem::replace(&mut keys.had[place], true);
        Ok(if had { Err(key.to_owned()) } else { Ok(Some(place)) })
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
