//! CSV: the rows are those that csv-core sees, whatever is cut where, packed or resumed.

use std::path::Path;

use anyhow::{Result, ensure};
use datafusion::arrow::datatypes::DataType;
use haulage_plan::definition::{Column, Compression, CsvSource, SourceKind};

use crate::corpus::{Corpus, mutate};
use crate::files::{self, Row, UNCUT};
use crate::pack;
use crate::random::Random;

/// Nasty ones that mutation would take long to come to.
const OWN: [&str; 12] = [
    "a,b\n1,2\n3,4\n",
    "\u{feff}a,b\r\n1,2\r\n\r\n3,\"x\r\ny\"\r\n",
    "a,b\r1,2\r3,4",
    "\"a\",\"b \"\"c\"\"\"\n\"\",\"NA\"\nNA,\n",
    "\"\",\"x\"\n\"1\",2\n\"2\",3\n",
    "a;b\n1;2,5\n",
    "id,at\n1,2013-01-31T05:00:00Z\n2,2013-01-31 05:00:00 Europe/Berlin\n3,2013/01/31\n",
    "a,b\n\"open,1\n2,3\n4,5\n",
    "a,b\n\"x\"y,1\nz\"q\",2\n\"\"\"\",3\n",
    "n\n1\n-2\n+3\n1e5\n0x1\n01\n99999999999999999999\n.5\n5.\nnan\n",
    "d,t\n0000-01-01,9999-12-31 23:59:60\n2024-02-29,2023-02-29\n",
    "a,a,,b\n1,2,3,4\n",
];
const SPECIAL: [&[u8]; 24] = [
    b",",
    b"\"",
    b"\n",
    b"\r\n",
    b"\r",
    b"\"\"",
    b";",
    b"\t",
    b"'",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"NA",
    b"\"\n\"",
    b",,",
    b"\n\n",
    b"\"a\"b",
    b"9223372036854775808",
    b"2013-01-31",
    b"1e999",
    b"-",
    b"\xe2\x80\xa8",
    b"\x1a",
];

pub(crate) fn corpus(folders: &[&Path]) -> Result<Corpus> {
    Corpus::new(&OWN, folders, &[".csv", ".tsv", ".txt"])
}

/// Bytes that are nearly CSV.
fn input(random: &mut Random, corpus: &Corpus) -> Vec<u8> {
    if random.once_in(3) {
        let mut data = Vec::new();
        for _ in 0..random.below(200) {
            let piece: &[u8] = match random.below(6) {
                0 | 1 => random.pick(&[&b"12"[..], b"a", "é€".as_bytes(), b"x y", b"-1.5", b"true"]),
                2 => b",",
                3 => b"\n",
                _ => random.pick(&SPECIAL),
            };
            data.extend_from_slice(piece);
        }
        return data;
    }
    let mut data = corpus.lines(random);
    if random.once_in(400) {
        // Larger than what is fetched at once.
        let more = data.repeat((2_300 << 10) / data.len().max(1));
        data.extend(more);
    }
    if !random.once_in(8) {
        let other = corpus.whole(random);
        mutate(&mut data, random, &SPECIAL, other);
    }
    data
}

pub(crate) async fn case(random: &mut Random, corpus: &Corpus, folder: &Path) -> Result<usize> {
    let data = input(random, corpus);
    std::fs::write(folder.join("a.csv"), &data)?;
    let common = [b',', b';', b'\t', b'|'];
    let delimiter = match random.below(8) {
        0 => u8::try_from(random.below(128)).unwrap_or(b':'),
        at => common[[0, 0, 0, 0, 1, 2, 3][at - 1]],
    };
    let quote = if random.once_in(6) { b'\'' } else { b'"' };
    let line_end = |byte| byte == b'\n' || byte == b'\r';
    if delimiter == quote || line_end(delimiter) {
        return Ok(data.len());
    }
    let header = !random.once_in(4);
    let base = CsvSource {
        path: "a.csv".to_owned(),
        columns: Vec::new(),
        null: vec!["NA".to_owned()],
        delimiter,
        quote,
        header,
        compression: Compression::Auto,
        chunk_bytes: UNCUT,
        quoted_newlines: !random.once_in(4),
    };
    let mut columns = Vec::new();
    if header {
        match files::bound(folder, SourceKind::Csv(base.clone()), 1)?.columns().await {
            Ok(found) => columns = found,
            Err(failure) => {
                files::check_failure(&failure, "a.csv")?;
                return Ok(data.len());
            }
        }
    } else {
        let fields = data
            .split(|byte| line_end(*byte))
            .find(|line| !line.is_empty())
            .unwrap_or_default();
        let fields = 1 + fields.iter().filter(|byte| **byte == delimiter).count();
        for number in 0..fields.min(200) {
            columns.push(Column {
                name: format!("c{number}"),
                data_type: DataType::Utf8,
                required: false,
            });
        }
    }
    for column in &mut columns {
        column.data_type = files::any_type(random);
        column.required = random.once_in(6);
    }
    let source = |path: &str, chunk_bytes: u64| {
        SourceKind::Csv(CsvSource {
            path: path.to_owned(),
            columns: columns.clone(),
            chunk_bytes,
            ..base.clone()
        })
    };
    let whole = match files::all_rows(&*files::bound(folder, source("a.csv", UNCUT), UNCUT)?).await? {
        Ok(whole) => whole,
        Err(failure) => {
            files::check_failure(&failure, "a.csv")?;
            return Ok(data.len());
        }
    };
    if base.quoted_newlines {
        check_oracle(&data, &base, &columns, &whole)?;
    }
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
        &*files::bound(folder, source("a.csv", chunk as u64), rows as u64)?,
        &whole,
        random,
    )
    .await?;
    if random.once_in(3) {
        let packed = pack(folder, "a.csv", &data, random)?;
        files::check_cut(
            "packed",
            &*files::bound(folder, source(&packed, UNCUT), rows as u64)?,
            &whole,
            random,
        )
        .await?;
    }
    if header && random.once_in(3) {
        let with = |columns, null| {
            SourceKind::Csv(CsvSource {
                columns,
                null,
                ..base.clone()
            })
        };
        let kind = SourceKind::Csv(CsvSource {
            null: Vec::new(),
            ..base.clone()
        });
        files::check_inferred(folder, kind, "a.csv", with).await?;
    }
    Ok(data.len())
}

/// The records of `data` as csv-core reads them.
fn records(mut data: &[u8], delimiter: u8, quote: u8) -> Vec<Vec<Vec<u8>>> {
    let mut reader = csv_core::ReaderBuilder::new().delimiter(delimiter).quote(quote).build();
    let (mut records, mut text, mut ends) = (Vec::new(), vec![0; data.len() + 1], vec![0; data.len() + 2]);
    let (mut texts, mut fields) = (0, 0);
    loop {
        let (result, read, wrote, ended) = reader.read_record(data, &mut text[texts..], &mut ends[fields..]);
        (data, texts, fields) = (&data[read..], texts + wrote, fields + ended);
        match result {
            csv_core::ReadRecordResult::Record => {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let record = starts
                    .zip(&ends[..fields])
                    .map(|(start, end)| text[start..*end].to_vec());
                records.push(record.collect());
                (texts, fields) = (0, 0);
            }
            csv_core::ReadRecordResult::End => return records,
            // The buffers are large enough.
            _ => {}
        }
    }
}

/// Fails unless the rows are csv-core's records: as many, ragged where their fields are too few or too many, and with the
/// same texts.
fn check_oracle(data: &[u8], source: &CsvSource, columns: &[Column], rows: &[Row]) -> Result<()> {
    let mut records = records(data, source.delimiter, source.quote);
    let mut fields = columns.len();
    if source.header && !records.is_empty() {
        fields = records.remove(0).len();
    }
    ensure!(
        rows.len() == records.len(),
        "{} rows, {} records by csv-core",
        rows.len(),
        records.len()
    );
    for (number, ((line, _, values), record)) in rows.iter().zip(&records).enumerate() {
        let said = || format!("row {number}, line {line}: {values:?}, by csv-core {record:?}");
        match values {
            Err((_, "ragged")) => ensure!(record.len() != fields, "{}", said()),
            // A quote that is never closed is no row, whatever csv-core makes of it.
            Err((_, "unclosed_quote")) => ensure!(number + 1 == rows.len(), "{}", said()),
            // Either of the two, over many lines.
            Err((_, "swallowed_lines")) => {}
            Err(_) => ensure!(record.len() == fields, "{}", said()),
            Ok(values) => {
                ensure!(record.len() == fields, "{}", said());
                for ((value, field), column) in values.iter().zip(record).zip(columns) {
                    if column.data_type == DataType::Utf8 {
                        let same = match value {
                            Some(text) => text.as_bytes() == field,
                            None => field.is_empty() || field == b"NA",
                        };
                        ensure!(same, "{}", said());
                    }
                }
            }
        }
    }
    Ok(())
}
