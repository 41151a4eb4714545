//! What columns a source has, with their types: found by reading it, for `haulage infer`.
//!
//! Of CSV the texts are looked at, of JSON lines and APIs the values as they are written, since a string of digits is no number
//! there. Parquet files and databases say themselves what their columns are.

mod guess;
mod union;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use haulage_core::failure::Failure;
use haulage_core::ids::StageId;
use haulage_plan::contract::{Contract, MissingColumn, NewColumn, WiderType};
use haulage_plan::definition::{Column, CsvSource, JsonSource, ParquetSource, Source as Declared, SourceKind};
use indexmap::IndexMap;
use serde_json::value::RawValue;

use self::guess::Guess;
use super::database::Databases;
use super::folders::{self, Said};
use super::json::column::text;
use super::json::row;
use super::{Binding, EXCERPT, Segment, Unreadable, bind, excerpt, object, parquet};
use crate::config::NodeConfig;
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::DataType;

/// Rows of a segment while a source is looked at.
const ROWS: u64 = 20_000;
/// Different keys of JSON objects, at most: as many columns as a source may have.
const KEYS: usize = 4_000;
/// Keys of an object that are kept, for one of which a column is proposed.
const PLAIN_KEYS: usize = 100;
/// Stands for a value that can only be text.
const TEXT: &str = "\u{1}text";

/// What was found.
#[derive(Debug, Clone)]
pub struct Inferred {
    /// The columns, in the order of the file.
    pub columns: Vec<InferredColumn>,
    /// Texts that mean "no value", beside the empty field; of CSV alone.
    pub nulls: Vec<String>,
    /// Rows that were looked at; 0 where the source itself says what its columns are.
    pub rows: u64,
    /// Of them, rows that can't be read.
    pub unreadable: u64,
    /// The first of those, for a person.
    pub first_unreadable: Option<String>,
    /// Whether there are more rows than those.
    pub is_sample: bool,
    /// Whether some of its files lack some of the columns.
    pub lacking: bool,
    /// What the names of the files' folders say, as `day=2024-01-31`.
    pub partitions: Vec<Column>,
    /// Columns that are there and can't be read.
    pub left_out: Vec<LeftOut>,
}

/// A column that can't be read.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Why, and what to do to have it, in words that follow its name.
    pub why: String,
}

/// A column.
#[derive(Debug, Clone)]
pub struct InferredColumn {
    /// Its name and type; required if every row was looked at and has a value, or its table takes no row without one.
    pub column: Column,
    /// Rows without a value.
    pub empty: u64,
    /// What to know about it: words that may mean "no value" and stand in a text.
    pub note: Option<String>,
}

/// Looks at a source that declares no columns, at no more than `most` rows. Permanent failure if it can't be read.
pub async fn infer(config: &NodeConfig, declared: &Declared, base: &str, most: u64) -> Result<Inferred, Failure> {
    let binding = Binding {
        base: base.to_owned(),
        s3: config.s3.clone(),
        checkpoint_rows: ROWS.min(most.max(1)),
        databases: Databases::of(config),
    };
    let mut source = bind(declared, binding.clone())?;
    let (mut columns, mut left_out) = match &declared.kind {
        SourceKind::Parquet(of) => {
            let files = parquet::files(&declared.name, of, binding.clone());
            union::of(&files.each().await?)
        }
        SourceKind::Csv(_) | SourceKind::Json(_) | SourceKind::Database(_) | SourceKind::Rest(_) => {
            (source.described().await?, Vec::new())
        }
    };
    if let (true, Some(LeftOut { name, why })) = (columns.is_empty(), left_out.first()) {
        return Err(Failure::permanent(format!(
            "no column can be read: \"{}\" {why}",
            excerpt(name.as_bytes(), EXCERPT)
        )));
    }
    let mut lacking = false;
    if let Some(all) = of_all_files(declared, &columns) {
        // The first file may lack what others have.
        source = bind(&all, binding)?;
        columns = source.described().await?;
        lacking = source
            .drift()
            .await?
            .iter()
            .any(|drift| matches!(drift.change, "added" | "missing"));
    }
    let chunks = match &declared.kind {
        // A table says all by itself.
        SourceKind::Database(_) => Vec::new(),
        SourceKind::Csv(_) | SourceKind::Json(_) | SourceKind::Parquet(_) | SourceKind::Rest(_) => {
            source.discover(StageId(0)).await?
        }
    };
    let (partitions, unreadable) = match &declared.kind {
        SourceKind::Csv(CsvSource { path, .. })
        | SourceKind::Json(JsonSource { path, .. })
        | SourceKind::Parquet(ParquetSource { path, .. }) => {
            let objects: BTreeSet<&str> = chunks.iter().map(|chunk| chunk.object.as_str()).collect();
            let folders = objects.iter().map(|address| object::named_by(path, base, address));
            partitions(folders.map(folders::said).collect(), &columns)
        }
        SourceKind::Database(_) | SourceKind::Rest(_) => (Vec::new(), Vec::new()),
    };
    left_out.extend(unreadable);
    if matches!(declared.kind, SourceKind::Parquet(_) | SourceKind::Database(_)) {
        let as_they_are = |column| InferredColumn {
            column,
            empty: 0,
            note: None,
        };
        return Ok(Inferred {
            columns: columns.into_iter().map(as_they_are).collect(),
            nulls: Vec::new(),
            rows: 0,
            unreadable: 0,
            first_unreadable: None,
            is_sample: false,
            lacking,
            partitions,
            left_out,
        });
    }
    let mut look = Look::default();
    for column in &columns {
        look.guesses.entry(column.name.clone()).or_default();
    }
    let json = matches!(declared.kind, SourceKind::Json(_) | SourceKind::Rest(_));
    'chunks: for (place, chunk) in chunks.iter().enumerate() {
        let mut reader = source.open(chunk, chunk.start).await?;
        while let Some(segment) = reader.next().await? {
            let more = if json {
                look.json(&segment)?
            } else {
                look.texts(&segment);
                Vec::new()
            };
            look.unreadable(&segment, more, &chunk.object);
            look.rows += segment.rows;
            if look.rows >= most {
                look.is_sample = !(segment.last && place + 1 == chunks.len());
                break 'chunks;
            }
        }
    }
    // Of an API one page is looked at, whatever follows it.
    look.is_sample |= matches!(declared.kind, SourceKind::Rest(_));
    let named = partitions.iter().map(|column| column.name.clone()).collect();
    Ok(Inferred {
        lacking,
        partitions,
        left_out,
        ..look.found(named)
    })
}

/// The columns that stand in the names of folders of every file and aren't in the files as well, and those of them that have
/// a value which can't be read.
fn partitions(objects: Vec<BTreeMap<String, Said>>, columns: &[Column]) -> (Vec<Column>, Vec<LeftOut>) {
    let count = objects.len();
    let mut guesses: BTreeMap<String, (Guess, usize, bool)> = BTreeMap::new();
    let mut unreadable: BTreeMap<String, String> = BTreeMap::new();
    for (name, said) in objects.into_iter().flatten() {
        if name.is_empty() || columns.iter().any(|column| column.name == name) {
            continue;
        }
        let (guess, times, full) = guesses.entry(name.clone()).or_insert((Guess::default(), 0, true));
        *times += 1;
        match said {
            Said::Nothing => *full = false,
            Said::Text(text) => guess.look(&text),
            Said::Bytes(escaped) => {
                let why = format!(
                    "is \"{}\" in the name of a folder, which is no UTF-8; rename the folder to have it among `partitions`",
                    excerpt(escaped.as_bytes(), EXCERPT)
                );
                unreadable.entry(name).or_insert(why);
            }
        }
    }
    let is_one = |name: &String, times| times == count && !unreadable.contains_key(name);
    let found = guesses.into_iter().filter(|(name, (_, times, _))| is_one(name, *times));
    let found = found.map(|(name, (guess, _, full))| {
        let guessed = guess.guessed();
        Column {
            name,
            required: full && guess.is_full(&guessed),
            data_type: guessed.data_type,
        }
    });
    let found = found.collect();
    let left_out = unreadable.into_iter().map(|(name, why)| LeftOut { name, why });
    (found, left_out.collect())
}

/// The source as it has to be read so that all columns of all its files are found, with types that hold those of each;
/// `None` of a kind whose objects don't say what columns they have, one by one.
fn of_all_files(declared: &Declared, columns: &[Column]) -> Option<Declared> {
    let mut all = declared.clone();
    match &mut all.kind {
        SourceKind::Csv(csv) if csv.header => csv.columns = columns.to_vec(),
        SourceKind::Parquet(parquet) => parquet.columns = columns.to_vec(),
        SourceKind::Csv(_) | SourceKind::Json(_) | SourceKind::Database(_) | SourceKind::Rest(_) => return None,
    }
    let is_parquet = matches!(all.kind, SourceKind::Parquet(_));
    all.contract = Contract {
        // Of Parquet files it is known already, and what is left out isn't declared.
        on_new_column: if is_parquet { NewColumn::Ignore } else { NewColumn::Add },
        on_missing_column: Some(MissingColumn::Null),
        on_wider_type: is_parquet.then_some(WiderType::Widen),
        ..Contract::default()
    };
    Some(all)
}

/// How often a key of JSON had a value.
#[derive(Default)]
struct Kinds {
    there: u64,
    /// A number or a truth, which a column of dates doesn't take.
    bare: u64,
    /// Plain keys of an object.
    inner: Vec<String>,
}

#[derive(Default)]
struct Look {
    guesses: IndexMap<String, Guess>,
    /// Of JSON: what stood under each key.
    kinds: IndexMap<String, Kinds>,
    rows: u64,
    unreadable: u64,
    first_unreadable: Option<String>,
    is_sample: bool,
}

impl Look {
    /// Counts rows that can't be read: those that the source says, and `more`.
    fn unreadable(&mut self, segment: &Segment, more: Vec<Unreadable>, object: &str) {
        self.unreadable += (segment.unreadable.len() + more.len()) as u64;
        let first = segment.unreadable.iter().chain(&more).min_by_key(|bad| bad.row);
        if let (None, Some(first)) = (&self.first_unreadable, first) {
            let line = segment.raw.row(first.row).map_or(0, |(line, _)| line);
            self.first_unreadable = Some(format!("{object}, line {line}: {}: {}", first.reason, first.detail));
        }
    }

    /// Fields of CSV.
    fn texts(&mut self, segment: &Segment) {
        for batch in &segment.batches {
            for (place, guess) in self.guesses.values_mut().enumerate() {
                let Some(values) = batch.columns().get(place) else {
                    continue;
                };
                let mut look = |text: Option<&str>| guess.look(text.unwrap_or_default());
                match values.data_type() {
                    DataType::Utf8View => values.as_string_view().iter().for_each(&mut look),
                    DataType::LargeUtf8 => values.as_string::<i64>().iter().for_each(&mut look),
                    _ => values.as_string::<i32>().iter().for_each(&mut look),
                }
            }
        }
    }

    /// Objects of JSON, as they are written: a number that is printed again is another text. What can't be read is counted
    /// elsewhere; returned is what the source can't know yet: rows with a text that no column can hold, under a key that the
    /// first object doesn't have. Permanent failure if there is no end of keys.
    fn json(&mut self, segment: &Segment) -> Result<Vec<Unreadable>, Failure> {
        let known: HashSet<u64> = segment.unreadable.iter().map(|bad| bad.row).collect();
        let mut unreadable = Vec::new();
        for row in 0..segment.rows {
            let mut is_told = known.contains(&row);
            let Some((_, raw)) = segment.raw.row(row) else { continue };
            let Ok(fields) = serde_json::from_slice::<IndexMap<String, &RawValue>>(raw) else {
                continue;
            };
            for (key, value) in fields {
                let value = value.get();
                let kind = value.bytes().next().unwrap_or_default();
                let guess = self.guesses.entry(key.clone()).or_default();
                if kind == b'n' {
                    continue;
                }
                let kinds = self.kinds.entry(key.clone()).or_default();
                kinds.there += 1;
                match kind {
                    b'"' => {
                        // A string is text, a date or a time, whatever digits it has.
                        let text = text(value).unwrap_or_else(|(reason, detail)| {
                            let column = Some(key);
                            if !std::mem::replace(&mut is_told, true) {
                                unreadable.push(Unreadable {
                                    row,
                                    column,
                                    reason,
                                    detail,
                                });
                            }
                            TEXT.into()
                        });
                        let dated = text.len() >= 10 && text.as_bytes().get(4) == Some(&b'-');
                        guess.look(if dated { &text } else { TEXT });
                    }
                    b'[' => guess.look(TEXT),
                    b'{' => {
                        guess.look(TEXT);
                        if kinds.inner.is_empty() {
                            kinds.inner = plain_keys(value);
                        }
                    }
                    _ => {
                        guess.look(value);
                        kinds.bare += 1;
                    }
                }
            }
        }
        if self.guesses.len() > KEYS {
            return Err(Failure::permanent(format!(
                "the objects have more than {KEYS} different keys: they are data and no columns; declare those that are"
            )));
        }
        Ok(unreadable)
    }

    /// What that tells, of a source which has columns with these names beside them.
    fn found(self, others: HashSet<String>) -> Inferred {
        let mut taken: HashSet<String> = self.guesses.keys().cloned().chain(others).collect();
        let mut nulls: Vec<&'static str> = Vec::new();
        for guess in self.guesses.values() {
            if guess.guessed().takes_nulls {
                nulls.extend(
                    guess
                        .nulls
                        .keys()
                        .filter(|word| !nulls.contains(word))
                        .collect::<Vec<_>>(),
                );
            }
        }
        let columns = self.guesses.iter().map(|(name, guess)| {
            let guessed = guess.guessed();
            let missing = match self.kinds.get(name) {
                // Keys that were absent or null.
                Some(kinds) => self.rows.saturating_sub(self.unreadable).saturating_sub(kinds.there),
                None => guess.empty,
            };
            let bare = self.kinds.get(name).map_or(0, |kinds| kinds.bare);
            let mixed = bare > 0 && !guessed.data_type.is_numeric() && guessed.data_type != DataType::Boolean;
            let swallowed: Vec<String> = guess
                .nulls
                .iter()
                .filter(|(word, _)| nulls.contains(word) && !guessed.takes_nulls)
                .map(|(word, times)| format!("{word} ({times} times)"))
                .collect();
            let mut notes: Vec<String> = Vec::new();
            if !swallowed.is_empty() {
                notes.push(format!("{} is no value here either", swallowed.join(", ")));
            }
            if mixed && guessed.data_type != DataType::Utf8 {
                notes.push(format!("{bare} times a number or a truth, which goes to quarantine"));
            }
            let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let inner = self.kinds.get(name).map_or(&[][..], |kinds| &kinds.inner);
            if plain(name)
                && let Some(inner) = inner.iter().find(|inner| !taken.contains(&format!("{name}_{inner}")))
            {
                taken.insert(format!("{name}_{inner}"));
                notes.push(format!(
                    "objects; of what is in them, {name}_{inner}: {{type: text, path: {name}.{inner}}} is a column"
                ));
            }
            let counted = |(word, times): (&&str, &u64)| nulls.contains(word).then_some(*times);
            let empty = missing + guess.nulls.iter().filter_map(counted).sum::<u64>();
            InferredColumn {
                column: Column {
                    name: name.clone(),
                    required: !self.is_sample && self.unreadable == 0 && empty == 0 && guess.is_full(&guessed),
                    data_type: guessed.data_type,
                },
                empty,
                note: (!notes.is_empty()).then(|| notes.join("; ")),
            }
        });
        Inferred {
            columns: columns.collect(),
            nulls: nulls.into_iter().map(str::to_owned).collect(),
            rows: self.rows,
            unreadable: self.unreadable,
            first_unreadable: self.first_unreadable,
            is_sample: self.is_sample,
            lacking: false,
            partitions: Vec::new(),
            left_out: Vec::new(),
        }
    }
}

/// The first keys of an object that can stand in a path as they are.
fn plain_keys(json: &str) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let keys = row::keys(json.as_bytes()).unwrap_or_default().into_iter();
    let keys = keys.filter(|key| !key.is_empty() && key.chars().all(plain));
    keys.take(PLAIN_KEYS).collect()
}

#[cfg(test)]
mod tests {
    use haulage_plan::definition::{Compression, JsonSource};

    use super::*;

    /// What is found of a file of JSON lines with these.
    async fn of_json(lines: &[&str]) -> Inferred {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.jsonl"), lines.join("\n")).unwrap();
        let base = folder.path().display().to_string();
        let declared = Declared {
            name: "raw".to_owned(),
            lookup: false,
            kind: SourceKind::Json(JsonSource {
                path: "a.jsonl".to_owned(),
                compression: Compression::None,
                paths: Default::default(),
                columns: Vec::new(),
                chunk_bytes: u64::MAX,
            }),
            place: Default::default(),
            contract: Default::default(),
            partitions: Vec::new(),
            planned: None,
        };
        infer(&NodeConfig::new("n", "nowhere"), &declared, &base, u64::MAX)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn how_to_get_at_what_is_in_objects_is_told() {
        let found = of_json(&[
            r#"{"a": 1, "b": {"x.y": 1, "z": {}}}"#,
            r#"{"b": {"q": 0}, "c": [{"d": 1}]}"#,
        ])
        .await;
        let notes: Vec<_> = found.columns.iter().map(|column| column.note.as_deref()).collect();
        let told = "objects; of what is in them, b_z: {type: text, path: b.z} is a column";
        assert_eq!(notes, [None, Some(told), None]);
    }

    #[tokio::test]
    async fn no_column_is_proposed_that_is_there() {
        let found = of_json(&[
            r#"{"user": {"id": 1, "name": "x"}, "user_id": 1, "a": {"b_c": 1}, "a_b": {"c": 1, "d": 2}, "o": {"x": 1}}"#,
            r#"{"o_x": 2}"#,
        ])
        .await;
        let notes = found.columns.iter().filter_map(|column| column.note.as_deref());
        let told = |note: &str| note.split(['{', ',']).nth(1).unwrap_or_default().trim().to_owned();
        assert_eq!(notes.map(told).collect::<Vec<_>>(), ["user_name:", "a_b_c:", "a_b_d:"]);
    }

    #[tokio::test]
    async fn a_text_that_no_column_can_hold_is_told_under_a_later_key_too() {
        let sound = of_json(&[r#"{"a": 1}"#, r#"{"a": 2, "b": "x", "c": ["\u0000"]}"#]).await;
        assert_eq!((sound.rows, sound.unreadable), (2, 0));
        let lines = [
            r#"{"a": 1}"#,
            r#"{"a": 2, "b": "x\u0000", "c": "\ud800"}"#,
            "[]",
            r#"{"a": "\u0000", "b": "\u0000"}"#,
            r#"{"a": 4, "b": "\ud800"}"#,
        ];
        let found = of_json(&lines).await;
        assert_eq!((found.rows, found.unreadable), (5, 4));
        let first = found.first_unreadable.unwrap();
        assert!(first.contains("a.jsonl, line 2: nul_byte: found \"x\\x00\""), "{first}");
        assert!(found.columns.iter().all(|column| !column.column.required));
    }
}
