//! The header of a file, and how its columns match the declared ones.

use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::{Column, CsvSource};

use super::record::{Cursor, Dialect, any_record, is_line_end};
use crate::source::files::{or_null, suggestion};
use crate::source::input::{self, Input};
use crate::source::object::Object;
use crate::source::{EXCERPT, Misdeclared, excerpt};

/// The start of a file that is read to find its header, in plain or packed bytes. Another try with [`LONGEST`] follows.
const USUAL: u64 = 64 << 10;
/// A header longer than this is no header.
const LONGEST: u64 = 4 << 20;

/// The start of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The names in the header; `None` if the source has none.
    pub(super) names: Option<Vec<String>>,
    /// Where the first row starts.
    pub(super) start: Position,
}

impl Head {
    /// Of rows whose columns are those declared.
    pub(super) fn without_names() -> Self {
        Self {
            names: None,
            start: Position { offset: 0, line: 1 },
        }
    }

    /// Of rows whose columns have these names.
    pub(super) fn of_names(names: &[String]) -> Self {
        Self {
            names: Some(names.to_vec()),
            ..Self::without_names()
        }
    }
}

/// Where a file's fields go: how many a record has, and which of them is each declared column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Fields of a record.
    pub(super) fields: usize,
    /// For each declared column, its place in the file.
    pub(super) places: Vec<usize>,
}

/// Reads the start of a file. Permanent failure naming the file if there should be a header and is none.
pub(super) async fn read(object: &Object, source: &CsvSource, dialect: Dialect) -> Result<Head, Failure> {
    for most in [USUAL, LONGEST] {
        let mut input = Input::open(object, source.compression, 0, Some(most)).await?;
        let mut data = Vec::new();
        let mut ended = false;
        while (data.len() as u64) < most && !ended {
            let want = usize::try_from(most).unwrap_or(usize::MAX) - data.len();
            ended = input.fill(&mut data, want).await? == 0;
        }
        // A plain input also ends where its range does; only before that it is the end of the file.
        let whole = ended && (data.len() as u64) < most;
        if let Some(head) = parse(&data, whole, source.header, dialect, &object.address)? {
            return Ok(head);
        }
    }
    Err(Failure::permanent(format!(
        "{}: the header does not end within {LONGEST} bytes; a quote may be open, or the file is no CSV",
        object.address
    )))
}

/// `None` if more data is needed.
fn parse(data: &[u8], whole: bool, header: bool, dialect: Dialect, address: &str) -> Result<Option<Head>, Failure> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    let mut cursor = Cursor {
        at: if data.starts_with(BOM) { BOM.len() } else { 0 },
        lines: 0,
    };
    let start = |cursor: Cursor| Position {
        offset: cursor.at as u64,
        line: 1 + u64::from(cursor.lines),
    };
    input::refuse_packed(data, address)?;
    if !header {
        return Ok(Some(Head {
            names: None,
            start: start(cursor),
        }));
    }
    blank_lines(data, &mut cursor);
    if cursor.at == data.len() {
        return if whole {
            Err(Failure::permanent(format!(
                "{address} is empty: expected a header; write `header: false` if it has none, or remove the file"
            )))
        } else {
            Ok(None)
        };
    }
    let (mut scratch, mut spans) = (Vec::new(), Vec::new());
    let Some(record) = any_record(dialect, data, whole, cursor.at, &mut scratch, |_, span| {
        spans.push(span)
    }) else {
        return Ok(None);
    };
    let mut names = Vec::with_capacity(spans.len());
    for (place, span) in spans.iter().enumerate() {
        let name = span.of(data, &scratch);
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.contains('\0'))
            .ok_or_else(|| {
                Failure::permanent(format!(
                    "{address}: column {} of the header is no UTF-8 text: \"{}\"; convert the file to UTF-8",
                    place + 1,
                    excerpt(name, EXCERPT)
                ))
            })?;
        names.push(name.to_owned());
    }
    if record.unclosed.is_some() {
        return Err(Failure::permanent(format!(
            "{address}: a quote in the header is not closed"
        )));
    }
    name_all(&mut names);
    cursor.at = record.next;
    cursor.lines += record.lines;
    blank_lines(data, &mut cursor);
    Ok(Some(Head {
        names: Some(names),
        start: start(cursor),
    }))
}

fn blank_lines(data: &[u8], cursor: &mut Cursor) {
    while let Some(&byte) = data.get(cursor.at)
        && is_line_end(byte)
    {
        cursor.lines += u32::from(byte == b'\n');
        cursor.at += 1;
    }
}

/// Calls the columns without a name `column_N`, counted from 1: many programs write the names of rows into a first column
/// and call it nothing. Without that it could not be asked for, and no table can have it.
fn name_all(names: &mut [String]) {
    for place in 0..names.len() {
        if names[place].is_empty() {
            let mut name = format!("column_{}", place + 1);
            while names.contains(&name) {
                name.push('_');
            }
            names[place] = name;
        }
    }
}

/// Finds the declared columns in a file. Permanent failure naming file and column if one is missing or there twice.
pub(super) fn layout(head: &Head, columns: &[Column], address: &str) -> Result<Layout, Misdeclared> {
    let Some(names) = &head.names else {
        return Ok(Layout {
            fields: columns.len(),
            places: (0..columns.len()).collect(),
        });
    };
    let mut places = Vec::with_capacity(columns.len());
    for column in columns {
        let wrong = |message: String| Misdeclared {
            failure: Failure::permanent(message),
            column: Some(column.name.clone()),
        };
        let mut found = names
            .iter()
            .enumerate()
            .filter(|(_, name)| **name == column.name)
            .map(|(place, _)| place);
        match (found.next(), found.next()) {
            (Some(place), None) => places.push(place),
            (Some(one), Some(two)) => {
                return Err(wrong(format!(
                    "{address}: the header has column {} twice, as columns {} and {}; rename one of them",
                    excerpt(column.name.as_bytes(), EXCERPT),
                    one + 1,
                    two + 1
                )));
            }
            (None, _) => {
                return Err(wrong(format!(
                    "{address}: the header has no column {}; {}{}",
                    excerpt(column.name.as_bytes(), EXCERPT),
                    suggestion(&column.name, names),
                    or_null(column)
                )));
            }
        }
    }
    Ok(Layout {
        fields: names.len(),
        places,
    })
}

/// The columns of a source that declares none: the header's, as text that may be missing.
pub(super) fn columns(head: &Head, address: &str) -> Result<Vec<Column>, Failure> {
    let Some(names) = &head.names else {
        return Err(Failure::permanent(format!(
            "{address} has no header; declare the source's columns"
        )));
    };
    let mut columns: Vec<Column> = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let wrong = |what: &str| {
            Failure::permanent(format!(
                "{address}: column {} of the header {what}; declare the columns that you need",
                place + 1
            ))
        };
        if name == ROW_COLUMN {
            return Err(wrong(&format!(
                "is called {ROW_COLUMN}, a name that Haulage uses itself"
            )));
        }
        if columns.iter().any(|column| column.name == *name) {
            return Err(wrong(&format!(
                "is called {} as another one is",
                excerpt(name.as_bytes(), EXCERPT)
            )));
        }
        columns.push(Column {
            name: name.clone(),
            data_type: DataType::Utf8,
            required: false,
        });
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        delimiter: b',',
        quote: b'"',
        quoted_newlines: true,
    };

    fn head(data: &[u8]) -> Result<Option<Head>, Failure> {
        parse(data, true, true, DIALECT, "a.csv")
    }

    fn column(name: &str) -> Column {
        Column {
            name: name.to_owned(),
            data_type: DataType::Utf8,
            required: false,
        }
    }

    #[test]
    fn a_header_is_read_with_its_marks_and_blank_lines() {
        type Case<'a> = (&'a [u8], &'a [&'a str], (u64, u64));
        let table: &[Case<'_>] = &[
            (b"a,b\n1,2\n", &["a", "b"], (4, 2)),
            (b"\xef\xbb\xbfa,b\r\n1,2\r\n", &["a", "b"], (8, 2)),
            (b"\n\n\"a\nx\",\"b\"\"\"\n\n1,2", &["a\nx", "b\""], (15, 6)),
            (b"a,b", &["a", "b"], (3, 1)),
            (b"a,b\r1,2\r", &["a", "b"], (4, 1)),
        ];
        for (data, names, (offset, line)) in table {
            let head = head(data).unwrap().unwrap();
            assert_eq!(
                head.names.as_deref(),
                Some(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..])
            );
            assert_eq!(
                head.start,
                Position {
                    offset: *offset,
                    line: *line
                },
                "{data:?}"
            );
        }
        assert_eq!(parse(b"a,b", false, true, DIALECT, "a.csv"), Ok(None));
        for (data, part) in [
            (&b""[..], "a.csv is empty"),
            (b"\xef\xbb\xbf\n", "a.csv is empty"),
            (b"a,\xff\n", "column 2 of the header is no UTF-8 text: \"\\xff\""),
            (
                b"a,\x1b]0;x\x07\xff\n",
                "column 2 of the header is no UTF-8 text: \"\\u{1b}]0;x\\u{7}\\xff\"",
            ),
            (b"a,\"b\n", "not closed"),
            (
                b"\x1f\x8b\x08\0\0",
                "a.csv is gzip data without saying so: write `compression: gzip`",
            ),
            (b"\x28\xb5\x2f\xfd$", "let its name end with .zst"),
        ] {
            let failure = head(data).unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[test]
    fn declared_columns_are_found_by_name() {
        let head = head(b"year,dep_time,year,carrier\n").unwrap().unwrap();
        let found = layout(&head, &[column("carrier"), column("dep_time")], "a.csv").unwrap();
        assert_eq!(
            found,
            Layout {
                fields: 4,
                places: vec![3, 1]
            }
        );
        for (name, part) in [
            ("year", "a.csv: the header has column year twice, as columns 1 and 3"),
            (
                "dep_tiem",
                "a.csv: the header has no column dep_tiem; did you mean \"dep_time\"?",
            ),
            ("Carrier", "did you mean \"carrier\"?"),
            ("weather", "it has year, dep_time, year, carrier"),
        ] {
            let wrong = layout(&head, &[column(name)], "a.csv").unwrap_err();
            assert_eq!(wrong.column.as_deref(), Some(name));
            let failure = wrong.failure;
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[test]
    fn names_in_errors_are_short_and_steer_no_terminal() {
        let mut data = b"\x1b[31mred,".to_vec();
        data.extend([b'x'; 5_000]);
        data.extend(b"\xff\n");
        let failure = head(&data).unwrap_err();
        assert!(failure.message.len() < 200, "{failure}");
        let good = head(b"\x1b[31mred,b\n").unwrap().unwrap();
        let failure = layout(&good, &[column("weather")], "a.csv").unwrap_err().failure;
        assert!(!failure.message.contains('\u{1b}'), "{failure:?}");
        assert!(failure.message.contains("\\u{1b}[31mred, b"), "{failure}");
    }

    #[test]
    fn undeclared_columns_are_nullable_text() {
        let found = columns(&head(b"a,b c\n").unwrap().unwrap(), "a.csv").unwrap();
        assert_eq!(found, [column("a"), column("b c")]);
        for (data, names) in [
            (&b"\"\",a\n"[..], &["column_1", "a"][..]),
            (b"column_3,a,,\n", &["column_3", "a", "column_3_", "column_4"]),
        ] {
            let found = columns(&head(data).unwrap().unwrap(), "a.csv").unwrap();
            assert_eq!(found, names.iter().map(|name| column(name)).collect::<Vec<_>>());
        }
        for (data, part) in [(&b"a,a\n"[..], "column 2"), (b"__haulage_row\n", "uses itself")] {
            let failure = columns(&head(data).unwrap().unwrap(), "a.csv").unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
