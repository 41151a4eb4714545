//! JSON lines: every line that isn't blank is a row or has its reason, by what serde_json says of it.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};
use haulage_plan::definition::{Column, Compression, JsonSource, Paths, SourceKind};
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::corpus::{Corpus, mutate};
use crate::files::{self, Row, UNCUT};
use crate::pack;
use crate::random::Random;

const OWN: [&str; 10] = [
    "{\"a\":1,\"b\":\"x\"}\n{\"a\":2}\n",
    "\u{feff}{\"a\":1}\r\n\r\n{\"a\":null}\r\n",
    "{\"a\":{\"b\":[1,2,{\"c\":\"}\"}]},\"d\":\"\\u00e9\\ud83d\\ude00\"}\n",
    "{\"a\":1,\"a\":2}\n{\"a\":1.0}\n{\"a\":1e400}\n{\"a\":-0}\n",
    "{\"at\":\"2013-01-31T05:00:00Z\"}\n{\"at\":\"2013-01-31\"}\n{\"at\":20130131}\n",
    "{\"a\":\"\\u0000\"}\n{\"a\":\"\\ud800\"}\n{\"\":1}\n",
    "{\"a\":true}\n{\"a\":\"true\"}\n[1]\n1\nnull\n\"x\"\n{}\n",
    "{\"a\":9223372036854775807}\n{\"a\":9223372036854775808}\n{\"a\":12345678901234567890123456789012345678901}\n",
    "{\"a\" : [ ] , \"b\" : { } }\n{\"a\":[],}\n{\"a\"}\n{a:1}\n{'a':1}\n",
    "{\"a\":1}{\"a\":2}\n{\"a\":1} x\n{\"a\":NaN}\n",
];
const SPECIAL: [&[u8]; 28] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\n",
    b"\r\n",
    b"\\",
    b"\\u0000",
    b"\\ud83d",
    b"\0",
    b"\xff",
    b"\xc3",
    b"null",
    b"true",
    b"1e999",
    b"-",
    b"0.1",
    b"{\"a\":",
    b"\"a\":1,",
    b"}\n{",
    b"\xef\xbb\xbf",
    b" ",
    b"\t",
    b"99999999999",
    b"\"2013-01-31\"",
];
/// Far below the depth at which a line is refused.
const SHALLOW: usize = 100;

pub(crate) fn corpus(folders: &[&Path]) -> Result<Corpus> {
    Corpus::new(&OWN, folders, &[".jsonl", ".ndjson"])
}

fn any_value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth > 4 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => Value::Bool(random.once_in(2)),
        2 => Value::from(random.next() as i64 >> random.below(60)),
        3 => Value::from(random.next() as i32 as f64 / 1_000.0),
        4 => Value::from(*random.pick(&[&"2013-01-31", &"2013-01-31T05:00:00Z", &"12", &"true", &"12.50"])),
        5 => {
            let pieces = ["a", "é", "\"", "\\", "\n", "\u{1}", "😀", "{", "\u{2028}"];
            Value::from(
                (0..random.below(6))
                    .map(|_| pieces[random.below(9)])
                    .collect::<String>(),
            )
        }
        6 => (0..random.below(4)).map(|_| any_value(random, depth + 1)).collect(),
        _ => any_object(random, depth + 1),
    }
}

pub(crate) fn any_object(random: &mut Random, depth: usize) -> Value {
    let mut object = serde_json::Map::new();
    for _ in 0..random.below(6) {
        let key = *random.pick(&[&"a", &"b", &"c", &"at", &"é", &"a b", &"__proto__"]);
        object.insert(key.to_owned(), any_value(random, depth));
    }
    Value::Object(object)
}

fn input(random: &mut Random, corpus: &Corpus) -> Vec<u8> {
    let mut data = if random.once_in(2) {
        let mut data = Vec::new();
        for _ in 0..random.below(30) {
            data.extend(any_object(random, 0).to_string().into_bytes());
            data.extend(*random.pick(&[
                &&b"\n"[..],
                &&b"\n"[..],
                &&b"\n"[..],
                &&b"\r\n"[..],
                &&b"\n\n"[..],
                &&b""[..],
            ]));
        }
        data
    } else {
        corpus.lines(random)
    };
    if random.once_in(400) {
        let more = data.repeat((2_300 << 10) / data.len().max(1));
        data.extend(more);
    }
    if random.once_in(60) {
        let deep = random.within(1, 60_000);
        let at = random.below(data.len() + 1);
        drop(data.splice(at..at, random.pick(&[&b"["[..], b"{\"a\":", b"[{\"b\":"]).repeat(deep)));
    }
    if !random.once_in(4) {
        let other = corpus.whole(random);
        mutate(&mut data, random, &SPECIAL, other);
    }
    data
}

pub(crate) async fn case(random: &mut Random, corpus: &Corpus, folder: &Path) -> Result<usize> {
    let data = input(random, corpus);
    std::fs::write(folder.join("a.jsonl"), &data)?;
    let mut base = JsonSource {
        path: "a.jsonl".to_owned(),
        paths: Paths::new(),
        columns: Vec::new(),
        compression: Compression::Auto,
        chunk_bytes: UNCUT,
    };
    let mut columns = Vec::new();
    if !random.once_in(3) {
        for name in ["a", "b", "at", "é"] {
            columns.push(Column {
                name: name.to_owned(),
                data_type: files::any_type(random),
                required: random.once_in(6),
            });
        }
    }
    // Some stand deeper, or at another's key.
    for column in &columns {
        if random.once_in(4) {
            let keys = (0..random.within(1, 4)).map(|_| random.pick(&["a", "b", "at", "é"]).to_owned());
            base.paths.insert(column.name.clone(), keys.collect());
        }
    }
    let source = |path: &str, chunk_bytes: u64| {
        SourceKind::Json(JsonSource {
            path: path.to_owned(),
            columns: columns.clone(),
            chunk_bytes,
            ..base.clone()
        })
    };
    let whole = match files::all_rows(&*files::bound(folder, source("a.jsonl", UNCUT), UNCUT)?).await? {
        Ok(whole) => whole,
        Err(failure) => {
            files::check_failure(&failure, "a.jsonl")?;
            return Ok(data.len());
        }
    };
    check_oracle(&data, columns.is_empty(), &whole)?;
    let large = data.len() > 100 << 10;
    let chunk = if large {
        random.within(500 << 10, data.len().max(500 << 10))
    } else {
        random.within(1, data.len() + 2)
    };
    let rows = if large {
        random.within(5_000, 30_000)
    } else {
        random.within(1, 40)
    };
    files::check_cut(
        "cut",
        &*files::bound(folder, source("a.jsonl", chunk as u64), rows as u64)?,
        &whole,
        random,
    )
    .await?;
    if random.once_in(3) {
        let packed = pack(folder, "a.jsonl", &data, random)?;
        files::check_cut(
            "packed",
            &*files::bound(folder, source(&packed, UNCUT), rows as u64)?,
            &whole,
            random,
        )
        .await?;
    }
    if random.once_in(3) {
        base.paths.clear();
        let with = |columns, _| {
            SourceKind::Json(JsonSource {
                columns,
                ..base.clone()
            })
        };
        files::check_inferred(folder, SourceKind::Json(base.clone()), "a.jsonl", with).await?;
    }
    Ok(data.len())
}

/// Fails unless the rows are the lines, unreadable where serde_json sees no object, and readable as texts where it does.
fn check_oracle(data: &[u8], texts: bool, rows: &[Row]) -> Result<()> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let lines = data.split(|byte| *byte == b'\n').zip(1u64..);
    let lines: Vec<_> = lines.filter(|(line, _)| !line.trim_ascii().is_empty()).collect();
    ensure!(
        rows.len() == lines.len(),
        "{} rows of {} lines",
        rows.len(),
        lines.len()
    );
    for ((at, raw, values), (line, number)) in rows.iter().zip(lines) {
        let said = || {
            format!(
                "line {number}: {values:?} of {:?}",
                String::from_utf8_lossy(&line[..line.len().min(300)])
            )
        };
        ensure!(
            *at == number && raw == line.trim_ascii(),
            "another line {at}: {}",
            said()
        );
        let text = std::str::from_utf8(line);
        let object = text.ok().and_then(|text| serde_json::from_str::<Shape>(text).ok());
        ensure!(object.is_some() || values.is_err(), "no object: {}", said());
        // What stands under a key is looked at where the key is a column.
        let sound = text.is_ok_and(|text| serde_json::from_str::<Value>(text).is_ok());
        let Some(object) = object.filter(|_| sound) else {
            continue;
        };
        let depth = line.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
        let nul = line.windows(6).any(|six| six == b"\\u0000") || line.contains(&0);
        if texts && !object.doubled && depth < SHALLOW && !nul {
            ensure!(values.is_ok(), "an object, and no row: {}", said());
        }
    }
    Ok(())
}

/// An object, by whether one of its own keys is there twice.
struct Shape {
    doubled: bool,
}

impl<'de> serde::Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> serde::de::Visitor<'de> for Keys {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let (mut keys, mut doubled) = (HashSet::new(), false);
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    doubled |= !keys.insert(key);
                }
                Ok(Shape { doubled })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
