//! CSV and JSON lines as `encode` writes them: every column's values as texts, a batch of rows at a time.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};

use bytes::{Buf, Bytes};
use datafusion::arrow::array::{StringArray, StringBuilder};
use haulage_plan::definition::FileFormat;
use serde_json::value::RawValue;

/// No row of a segment comes near it; what does is not ours.
const MAX_RECORD: u64 = 64 << 20;

/// A file while it is read.
pub(super) struct Texts {
    format: FileFormat,
    lines: Box<dyn BufRead + Send>,
    columns: Vec<String>,
    /// The record in hand.
    record: Vec<u8>,
}

/// What came of some records: the texts of each column, how many rows, and what is wrong with those that are none.
pub(super) type Found = (Vec<StringArray>, usize, Vec<String>);

impl Texts {
    /// Compressed as the path's ending says. An error if it doesn't have these columns.
    pub(super) fn open(format: FileFormat, path: &str, data: Bytes, columns: &[String]) -> Result<Self, String> {
        let plain = data.reader();
        let lines: Box<dyn BufRead + Send> = if path.ends_with(".gz") {
            Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(plain)))
        } else if path.ends_with(".zst") {
            let decoder = zstd::Decoder::new(plain).map_err(|error| format!("it is no sound zstd ({error})"))?;
            Box::new(BufReader::new(decoder))
        } else {
            Box::new(plain)
        };
        let mut texts = Self {
            format,
            lines,
            columns: columns.to_vec(),
            record: Vec::new(),
        };
        if format == FileFormat::Csv {
            let header = match texts.advance()? {
                true => fields(&texts.record)?,
                false => return Err("it is empty".to_owned()),
            };
            let names: Vec<String> = header.into_iter().map(Option::unwrap_or_default).collect();
            if names != texts.columns {
                return Err(format!(
                    "its columns are {}, and {} were written",
                    names.join(", "),
                    texts.columns.join(", ")
                ));
            }
        }
        Ok(texts)
    }

    /// Records up to so many, or so many bytes. Nothing at the end.
    pub(super) fn next(&mut self, most: usize, most_bytes: usize) -> Result<Found, String> {
        let mut builders: Vec<StringBuilder> = self.columns.iter().map(|_| StringBuilder::new()).collect();
        let (mut rows, mut bytes, mut odd) = (0, 0, Vec::new());
        while rows < most && bytes < most_bytes && odd.len() < most && self.advance()? {
            bytes += self.record.len();
            let values = match self.format {
                FileFormat::Csv => fields(&self.record).and_then(|values| self.as_many(values)),
                FileFormat::Jsonl | FileFormat::Parquet => self.object(),
            };
            match values {
                Ok(values) => {
                    for (builder, value) in builders.iter_mut().zip(values) {
                        builder.append_option(value);
                    }
                    rows += 1;
                }
                Err(why) => odd.push(why),
            }
        }
        let columns = builders.iter_mut().map(StringBuilder::finish).collect();
        Ok((columns, rows, odd))
    }

    /// Takes the next record in hand, without its line end. False at the end of the file.
    fn advance(&mut self) -> Result<bool, String> {
        self.record.clear();
        let mut quotes = 0;
        loop {
            let before = self.record.len();
            let room = MAX_RECORD.saturating_sub(before as u64);
            let read = (&mut self.lines).take(room).read_until(b'\n', &mut self.record);
            let read = read.map_err(|error| format!("it can't be read to its end ({error})"))?;
            if read == 0 || !self.record.ends_with(b"\n") {
                return match self.record.len() {
                    0 => Ok(false),
                    len if len as u64 >= MAX_RECORD => Err("it has a record of more than 64 MiB".to_owned()),
                    _ => Err("it ends in the middle of a record".to_owned()),
                };
            }
            quotes += self.record[before..].iter().filter(|byte| **byte == b'"').count();
            // Inside of quotes a line end is one of the text. JSON has none there.
            if self.format != FileFormat::Csv || quotes % 2 == 0 {
                self.record.pop();
                return Ok(true);
            }
        }
    }

    fn as_many(&self, values: Vec<Option<String>>) -> Result<Vec<Option<String>>, String> {
        if values.len() == self.columns.len() {
            return Ok(values);
        }
        Err(format!(
            "a record has {} fields instead of {}",
            values.len(),
            self.columns.len()
        ))
    }

    /// The values of an object in the order of the columns.
    fn object(&self) -> Result<Vec<Option<String>>, String> {
        let text = std::str::from_utf8(&self.record).map_err(|_| "a line is no UTF-8".to_owned())?;
        let mut object: HashMap<String, &RawValue> =
            serde_json::from_str(text).map_err(|error| format!("a line is no JSON object ({error})"))?;
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let Some(json) = object.remove(column) else {
                return Err(format!("a line has no {column}"));
            };
            values.push(match json.get() {
                "null" => None,
                json if json.starts_with('"') => {
                    let text = serde_json::from_str(json);
                    Some(text.map_err(|error| format!("column {column} is no text ({error})"))?)
                }
                json => Some(json.to_owned()),
            });
        }
        match object.keys().min() {
            None => Ok(values),
            Some(other) => Err(format!("a line has {other}, which was not written")),
        }
    }
}

/// The fields of a CSV record; nothing between two commas is no value, and `""` an empty text.
fn fields(record: &[u8]) -> Result<Vec<Option<String>>, String> {
    let text = std::str::from_utf8(record).map_err(|_| "a record is no UTF-8".to_owned())?;
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) = unquoted(quoted)?;
                (Some(field), after)
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                ((!field.is_empty()).then(|| field.to_owned()), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None if after.is_empty() => return Ok(fields),
            None => return Err("text follows a closing quote".to_owned()),
        }
    }
}

/// The text up to the closing quote, and what is behind it.
fn unquoted(quoted: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let Some((text, after)) = rest.split_once('"') else {
            return Err("a quote is not closed".to_owned());
        };
        field.push_str(text);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, after)),
        }
    }
}
