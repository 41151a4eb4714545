//! CSV as a source, through real files: the reading against csv-core, cuts and checkpoints against the uninterrupted
//! reading, and the reason of every kind of row that can't be read.

use std::fmt::Write as _;
use std::path::Path;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::arrow::util::display::array_value_to_string;
use haulage_core::failure::Class;
use haulage_plan::definition::{Source as Declared, SourceKind};
use proptest::prelude::*;

use super::record::{Cursor, Records, Stop, any_record, read_records};
use super::*;
use crate::source::{Segment, bind};
use crate::store::S3Settings;

const DIALECT: Dialect = Dialect {
    delimiter: b',',
    quote: b'"',
    quoted_newlines: true,
};

fn column(name: &str, data_type: DataType) -> Column {
    Column {
        name: name.to_owned(),
        data_type,
        required: false,
    }
}

fn required(name: &str, data_type: DataType) -> Column {
    Column {
        required: true,
        ..column(name, data_type)
    }
}

fn csv(path: &str, columns: Vec<Column>) -> CsvSource {
    CsvSource {
        path: path.to_owned(),
        columns,
        null: vec!["NA".to_owned()],
        delimiter: b',',
        quote: b'"',
        header: true,
        compression: Compression::Auto,
        chunk_bytes: 1 << 30,
        quoted_newlines: true,
    }
}

fn bound(folder: &Path, source: CsvSource, checkpoint_rows: u64) -> Box<dyn Source> {
    let declared = Declared {
        name: "raw".to_owned(),
        lookup: false,
        kind: SourceKind::Csv(source),
        place: Default::default(),
    };
    let base = folder.to_str().unwrap().to_owned();
    bind(
        &declared,
        Binding {
            base,
            s3: S3Settings::default(),
            checkpoint_rows,
            databases: Default::default(),
        },
    )
    .unwrap()
}

/// A row as a test compares it: its line, its text, and its values or why it has none.
type Row = (u64, Vec<u8>, Result<Vec<String>, (Option<String>, &'static str)>);

/// All rows of a segment, after checking that each is either read or not, and in order.
fn rows(segment: &Segment) -> Vec<Row> {
    let mut rows: Vec<Option<Row>> = vec![None; segment.rows as usize];
    let mut put = |row: u64, values: Result<_, _>| {
        let (line, raw) = segment.raw.row(row).expect("every row has its text");
        let place = &mut rows[row as usize];
        assert!(place.is_none(), "row {row} is there twice");
        *place = Some((line, raw.to_vec(), values));
    };
    let mut last = None;
    for batch in &segment.batches {
        let places: &UInt64Array = batch.columns().last().unwrap().as_primitive();
        assert!(batch.num_rows() > 0);
        for (index, row) in places.values().iter().enumerate() {
            assert!(last < Some(*row), "in order");
            last = Some(*row);
            let text = |column: &ArrayRef| array_value_to_string(column, index).unwrap();
            put(
                *row,
                Ok(batch.columns()[..batch.num_columns() - 1].iter().map(text).collect()),
            );
        }
    }
    for bad in &segment.unreadable {
        put(bad.row, Err((bad.column.clone(), bad.reason)));
    }
    assert!(segment.raw.row(segment.rows).is_none());
    rows.into_iter()
        .map(|row| row.expect("every row is read or not"))
        .collect()
}

async fn segments(source: &dyn Source, chunk: &ChunkSpec, from: Position) -> Result<Vec<Segment>, Failure> {
    let mut reader = source.open(chunk, from).await?;
    let mut segments = Vec::new();
    while let Some(segment) = reader.next().await? {
        segments.push(segment);
    }
    assert!(segments.iter().rev().skip(1).all(|segment| !segment.last));
    assert!(segments.last().is_some_and(|segment| segment.last));
    Ok(segments)
}

/// All rows of a source, chunk by chunk.
async fn all_rows(source: &dyn Source) -> Result<Vec<Row>, Failure> {
    let mut all = Vec::new();
    for chunk in source.discover(StageId(0)).await? {
        for segment in segments(source, &chunk, chunk.start).await? {
            all.extend(rows(&segment));
        }
    }
    Ok(all)
}

/// The records of `data` as csv-core reads them.
fn oracle(mut data: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut reader = csv_core::Reader::new();
    let (mut records, mut text, mut ends) = (Vec::new(), vec![0; data.len() + 1], vec![0; data.len() + 2]);
    let (mut texts, mut fields) = (0, 0);
    loop {
        let (result, read, wrote, ended) = reader.read_record(data, &mut text[texts..], &mut ends[fields..]);
        (data, texts, fields) = (&data[read..], texts + wrote, fields + ended);
        match result {
            csv_core::ReadRecordResult::InputEmpty => {}
            csv_core::ReadRecordResult::Record => {
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let record = starts
                    .zip(&ends[..fields])
                    .map(|(start, end)| text[start..*end].to_vec());
                records.push(record.collect());
                (texts, fields) = (0, 0);
            }
            csv_core::ReadRecordResult::End => return records,
            full => panic!("the buffers are large enough: {full:?}"),
        }
    }
}

/// Bytes that matter to CSV, and such that don't.
fn csv_ish() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => Just(&b"\""[..]),
        3 => Just(&b","[..]),
        2 => Just(&b"\n"[..]),
        1 => Just(&b"\r"[..]),
        1 => Just(&b"\r\n"[..]),
        1 => Just(&b"\"\""[..]),
        2 => Just(&b"12"[..]),
        2 => Just(&b"a"[..]),
        1 => Just("é€".as_bytes()),
        1 => Just(&b"\xff"[..]),
        1 => Just(&b"NA"[..]),
        1 => Just(&b"x,1\n"[..]),
        1 => Just(&b"\"y\n\",2\n"[..]),
    ];
    proptest::collection::vec(piece, 0..120).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn records_read_as_csv_core_reads_them(data in csv_ish()) {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            while data.get(at).is_some_and(|byte| is_line_end(*byte)) {
                at += 1;
            }
            if at == data.len() {
                break;
            }
            let (mut scratch, mut spans) = (Vec::new(), Vec::new());
            let record = any_record(DIALECT, &data, true, at, &mut scratch, |_, span| spans.push(span)).unwrap();
            found.push(spans.iter().map(|span| span.of(&data, &scratch).to_vec()).collect::<Vec<_>>());
            at = record.next;
        }
        prop_assert_eq!(found, oracle(&data));
    }

    #[test]
    fn the_fast_way_reads_the_same_in_any_blocks(data in csv_ish(), fields in 1..4usize, block in 1..80usize, most in 1..9usize) {
        let (mut found, mut fed) = (Vec::new(), block.min(data.len()));
        let (mut cursor, mut records, mut places) = (Cursor::default(), Records::new(fields), Vec::new());
        loop {
            let (known, ended) = (&data[..fed], fed == data.len());
            records.clear();
            let stop = read_records(DIALECT, known, ended, (most, usize::MAX), &mut cursor, &mut records, &mut places);
            for row in 0..records.count {
                let spans = &records.spans[row * fields..(row + 1) * fields];
                found.push(spans.iter().map(|span| span.of(known, &records.scratch).to_vec()).collect::<Vec<_>>());
            }
            match stop {
                Stop::Full => {}
                Stop::Hungry => fed = (fed + block).min(data.len()),
                Stop::Ended => break,
                Stop::TooLong => panic!("no record is so long"),
            }
        }
        let expected = oracle(&data);
        prop_assert_eq!(found.len(), expected.len());
        prop_assert_eq!(found.len(), places.len());
        for ((found, expected), place) in found.into_iter().zip(expected).zip(places) {
            let before = &data[..place.start as usize];
            prop_assert_eq!(u64::from(place.line), before.iter().filter(|byte| **byte == b'\n').count() as u64);
            if expected.len() == fields {
                prop_assert_eq!(found, expected);
            }
        }
    }
}

fn pair(path: &str) -> CsvSource {
    let columns = vec![column("a", DataType::Utf8), column("b", DataType::Int16)];
    CsvSource {
        header: false,
        ..csv(path, columns)
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(data).unwrap();
    packer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_and_checkpoints_change_nothing(
        data in csv_ish(), chunk_bytes in 1..60u64, checkpoint_rows in 1..6u64, quoted_newlines: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.csv"), &data).unwrap();
            std::fs::write(folder.path().join("b.csv.gz"), gzip(&data)).unwrap();
            std::fs::write(folder.path().join("c.csv.zst"), zstd::encode_all(&data[..], 1).unwrap()).unwrap();
            let source = |path: &str, chunk_bytes, rows| {
                bound(folder.path(), CsvSource { chunk_bytes, quoted_newlines, ..pair(path) }, rows)
            };
            let whole = all_rows(&*source("a.csv", 1 << 30, 1 << 30)).await.unwrap();
            if quoted_newlines {
                prop_assert_eq!(whole.len(), oracle(&data).len());
            }
            let cut = source("a.csv", chunk_bytes, checkpoint_rows);
            prop_assert_eq!(&all_rows(&*cut).await.unwrap(), &whole);
            for packed in ["b.csv.gz", "c.csv.zst"] {
                prop_assert_eq!(&all_rows(&*source(packed, chunk_bytes, checkpoint_rows)).await.unwrap(), &whole);
            }

            for chunk in cut.discover(StageId(0)).await.unwrap() {
                let straight = segments(&*cut, &chunk, chunk.start).await.unwrap();
                prop_assert_eq!(straight.iter().map(|segment| segment.bytes).sum::<u64>(), chunk.bytes);
                for done in 0..straight.len() - 1 {
                    let resumed = segments(&*cut, &chunk, straight[done].next).await.unwrap();
                    prop_assert_eq!(resumed.len(), straight.len() - done - 1);
                    for (mine, theirs) in resumed.iter().zip(&straight[done + 1..]) {
                        prop_assert_eq!(rows(mine), rows(theirs));
                        prop_assert_eq!((mine.next, mine.bytes, mine.last), (theirs.next, theirs.bytes, theirs.last));
                    }
                }
            }
            Ok(())
        })?;
    }
}

fn every_type() -> Vec<Column> {
    vec![
        column("t", DataType::Utf8),
        column("i", DataType::Int32),
        column("f", DataType::Float64),
        column("b", DataType::Boolean),
        column("d", DataType::Date32),
        column("ts", DataType::Timestamp(TimeUnit::Microsecond, None)),
        column("tz", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        column("dec", DataType::Decimal128(7, 2)),
        required("r", DataType::Int16),
    ]
}

#[tokio::test]
async fn every_type_is_read_and_every_misfit_has_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let header = "r,unused,t,i,f,b,d,ts,tz,dec";
    let good = "1,\u{1},text,-7,0.5,yes,2013-01-31,2013-01-31T05:06:07,2013-01-31 05:06:07-05:00,12.5";
    let with = |field: usize, text: &[u8]| {
        let mut fields: Vec<&[u8]> = good.as_bytes().split(|byte| *byte == b',').collect();
        fields[field] = text;
        fields.join(&b","[..])
    };
    let table: &[(usize, &[u8], &str, &str)] = &[
        (0, b"", "r", "null_in_required"),
        (0, b"NA", "r", "null_in_required"),
        (0, b"40000", "r", "out_of_range"),
        (2, b"a\xff", "t", "bad_utf8"),
        (2, b"a\0b", "t", "nul_byte"),
        (2, "é".as_bytes().split_at(1).0, "t", "bad_utf8"),
        (3, b"1.0", "i", "bad_int"),
        (3, b" 1", "i", "bad_int"),
        (3, b"\xff", "i", "bad_utf8"),
        (3, b"1\0", "i", "nul_byte"),
        (4, b"0,5x", "", "ragged"),
        (4, b"half", "f", "bad_float"),
        (5, b"maybe", "b", "bad_bool"),
        (6, b"31.01.2013", "d", "bad_date"),
        (7, b"2013-01-31T05:06:07-05:00", "ts", "bad_timestamp"),
        (8, b"yesterday", "tz", "bad_timestamp"),
        (9, b"1.234", "dec", "bad_decimal"),
        (9, b"123456", "dec", "out_of_range"),
    ];
    let mut data = format!("{header}\n{good}\n").into_bytes();
    for (field, text, _, _) in table {
        data.extend(with(*field, text));
        data.extend(b"\r\n\r\n");
        // A good row between them, so that what is filtered out is seen to be the right one.
        data.extend(good.as_bytes());
        data.push(b'\n');
    }
    // Two reasons: the first column in the file is to blame. And a quote that is still open at the end.
    data.extend(b"x,,\xff,y,,,,,,\n1,\"open,,,,,,,,");
    std::fs::write(folder.path().join("a.csv"), &data).unwrap();

    let source = bound(folder.path(), csv("*.csv", every_type()), 100);
    let found = all_rows(&*source).await.unwrap();
    let values = [
        "text",
        "-7",
        "0.5",
        "true",
        "2013-01-31",
        "2013-01-31T05:06:07",
        "2013-01-31T10:06:07Z",
        "12.50",
        "1",
    ];
    let read = Ok(values.map(str::to_owned).to_vec());
    assert_eq!(found[0], (2, good.as_bytes().to_vec(), read.clone()));
    for (number, (field, text, column, reason)) in table.iter().enumerate() {
        let (bad, next) = (&found[1 + 2 * number], &found[2 + 2 * number]);
        let column = (!column.is_empty()).then(|| (*column).to_owned());
        let line = 3 + 3 * number as u64;
        assert_eq!(
            *bad,
            (line, with(*field, text), Err((column, *reason))),
            "{text:?} in field {field}"
        );
        assert_eq!(*next, (line + 2, good.as_bytes().to_vec(), read.clone()));
    }
    let tail = &found[1 + 2 * table.len()..];
    assert_eq!(tail[0].2, Err((Some("r".to_owned()), "bad_int")));
    assert_eq!(tail[1].2, Err((None, "unclosed_quote")));
    assert_eq!(tail.len(), 2);
}

#[tokio::test]
async fn an_open_quote_says_where_it_opens_and_what_it_swallows() {
    // What is after the header, and the reject's line, reason and detail.
    let many: String = (0..150).map(|n| format!("{n},x\n")).collect();
    let table = [
        (
            "1,a\n2,\"b\n3,c\n".to_owned(),
            (
                3,
                "unclosed_quote",
                "the quote that opens at line 3 is never closed; 2 lines of the file, from line 3 on,",
            ),
        ),
        (
            "\"1\n\",\"b\n3,c".to_owned(),
            (
                2,
                "unclosed_quote",
                "the quote that opens at line 3 is never closed; 3 lines of the file, from line 2 on,",
            ),
        ),
        (
            "1,\"b".to_owned(),
            (2, "unclosed_quote", "the quote that opens at line 2 is never closed"),
        ),
        (
            format!("1,\"b\n{many}"),
            (
                2,
                "swallowed_lines",
                "the quote that opens at line 2 is never closed; 151 lines of the file, from line 2 on,",
            ),
        ),
        (
            format!("1,\"b\n{many}\",2,3\n4,d\n"),
            (
                2,
                "swallowed_lines",
                "expected 2 fields, found 4; 152 lines of the file, from line 2 on,",
            ),
        ),
        (
            "1,\"a\nb\",3\n".to_owned(),
            (2, "ragged", "expected 2 fields, found 3; 2 lines of the file"),
        ),
    ];
    for (rows, (line, reason, detail)) in table {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.csv"), format!("a,b\n{rows}")).unwrap();
        let source = bound(folder.path(), csv("a.csv", Vec::new()), 1000);
        let chunks = source.discover(StageId(0)).await.unwrap();
        let mut reader = source.open(&chunks[0], chunks[0].start).await.unwrap();
        let segment = reader.next().await.unwrap().unwrap();
        let [odd] = &segment.unreadable[..] else {
            panic!("{rows:?}: {:?}", segment.unreadable)
        };
        let at = segment.raw.row(odd.row).map(|(line, _)| line);
        assert_eq!((at, odd.reason), (Some(line), reason), "{rows:?}");
        assert!(odd.detail.starts_with(detail), "{rows:?}: {}", odd.detail);
    }
}

#[tokio::test]
async fn quotes_tell_text_from_no_value() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.csv"),
        "t,i\n,\n\"\",\"\"\nNA,NA\n\"NA\",\"NA\"\n\" a\"\"b\"c,\"7\"\n",
    )
    .unwrap();
    let columns = vec![column("t", DataType::Utf8), column("i", DataType::Int32)];
    let source = bound(folder.path(), csv("a.csv", columns), 100);
    let chunk = &source.discover(StageId(0)).await.unwrap()[0];
    let segments = segments(&*source, chunk, chunk.start).await.unwrap();
    let batch = &segments[0].batches[0];
    let (texts, ints) = (batch.column(0).as_string::<i32>(), batch.column(1));
    assert_eq!(
        texts.iter().collect::<Vec<_>>(),
        [None, Some(""), None, Some("NA"), Some(" a\"bc")]
    );
    let valid: Vec<_> = (0..5).map(|row| ints.is_valid(row)).collect();
    assert_eq!(valid, [false, false, false, false, true]);
    assert_eq!(batch.schema(), crate::source::schema(&source.columns().await.unwrap()));
}

#[tokio::test]
async fn segments_and_batches_have_their_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = "n\n".to_owned();
    for row in 0..20_000 {
        writeln!(
            data,
            "{}",
            if row % 10_000 == 77 {
                "x".to_owned()
            } else {
                row.to_string()
            }
        )
        .unwrap();
    }
    std::fs::write(folder.path().join("a.csv"), data).unwrap();
    let source = bound(folder.path(), csv("a.csv", vec![required("n", DataType::Int32)]), 9_000);
    let chunk = &source.discover(StageId(0)).await.unwrap()[0];
    let segments = segments(&*source, chunk, chunk.start).await.unwrap();
    assert_eq!(
        segments.iter().map(|segment| segment.rows).collect::<Vec<_>>(),
        [9_000, 9_000, 2_000]
    );
    let sizes: Vec<Vec<_>> = segments
        .iter()
        .map(|segment| segment.batches.iter().map(RecordBatch::num_rows).collect())
        .collect();
    assert_eq!(sizes, [vec![8191, 808], vec![8191, 808], vec![2000]]);
    assert_eq!(
        segments[1].unreadable.iter().map(|bad| bad.row).collect::<Vec<_>>(),
        [1_077]
    );
    assert_eq!(segments[1].unreadable[0].detail, "expected int, found \"x\"");
    assert_eq!(
        segments[1].next,
        Position {
            offset: segments[0].bytes + segments[1].bytes + 2,
            line: 18_002
        }
    );
}

#[tokio::test]
async fn a_record_without_end_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = b"a,b\n1,2\n3,\"".to_vec();
    data.resize(data.len() + record::MAX_RECORD, b'\n');
    std::fs::write(folder.path().join("a.csv"), data).unwrap();
    let failure = all_rows(&*bound(
        folder.path(),
        csv("a.csv", vec![column("a", DataType::Utf8)]),
        10,
    ))
    .await
    .unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure
            .message
            .contains("a.csv line 3: the record that starts here is longer than 16 MiB"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_source_that_cannot_be_read_says_so_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (name, data) in [("good.csv", "a,b\n1,2\n"), ("less.csv", "b\n2\n"), ("empty.csv", "")] {
        std::fs::write(folder.path().join(name), data).unwrap();
    }
    let discover = async |path: &str, columns: Vec<Column>| {
        bound(folder.path(), csv(path, columns), 10).discover(StageId(0)).await
    };
    let a = || vec![column("a", DataType::Utf8)];
    for (path, columns, part) in [
        ("none-*.csv", a(), "source raw: no file matches"),
        ("none.csv", vec![], "none.csv does not exist"),
        ("empty.csv", a(), "empty.csv is empty: expected a header"),
        ("*[d-s].csv", a(), "less.csv: the header has no column a"),
        ("*[d-s].csv", vec![], "less.csv: the header has no column a"),
    ] {
        let failure = discover(path, columns).await.unwrap_err();
        assert_eq!(failure.class, Class::Permanent);
        assert!(failure.message.contains(part), "{path}: {failure}");
    }
    let chunks = discover("*[d-s].csv", vec![column("b", DataType::Int16)])
        .await
        .unwrap();
    let found: Vec<_> = chunks
        .iter()
        .map(|chunk| (chunk.chunk.index, chunk.start.offset, chunk.bytes))
        .collect();
    assert_eq!(found, [(0, 4, 4), (1, 2, 2)]);
}

#[tokio::test]
async fn a_file_that_changed_after_discovery_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.csv"), "a\n1\n").unwrap();
    let source = bound(folder.path(), csv("a.csv", vec![]), 10);
    let chunk = &source.discover(StageId(0)).await.unwrap()[0];
    std::fs::write(folder.path().join("a.csv"), "a\n1\n2\n").unwrap();
    let failure = source.open(chunk, chunk.start).await.map(|_| ()).unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure.message.contains("a.csv has changed since it was discovered"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_lookup_is_read_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1.csv"), "a,n\nx,1\n").unwrap();
    std::fs::write(folder.path().join("2.csv"), "n,a\n2,y\n").unwrap();
    let columns = vec![column("n", DataType::Int16), column("a", DataType::Utf8)];
    let source = bound(folder.path(), csv("?.csv", columns), 1);
    assert_eq!(
        source
            .read_all()
            .await
            .unwrap()
            .iter()
            .map(RecordBatch::num_rows)
            .sum::<usize>(),
        2
    );
    std::fs::write(folder.path().join("2.csv"), "n,a\n2,y\n\"z\nz\",w\n").unwrap();
    let failure = source.read_all().await.unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    let part = "2.csv line 3, column n: bad_int: expected smallint, found \"z\\nz\"";
    assert!(failure.message.contains(part), "{failure}");
}
