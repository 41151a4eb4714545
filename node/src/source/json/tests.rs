//! JSON lines as a source, through real files: what is a row and what its values are, against serde_json; cuts and
//! checkpoints against the uninterrupted reading; and the reason of every kind of row that can't be read.

use std::path::Path;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_plan::definition::SourceKind;
use proptest::prelude::*;
use serde_json::Value;

use super::row::Keys;
use super::*;
use crate::source::Source;
use crate::source::testing::{self, all_rows, column, gzip, required, rows, segments};

fn json(path: &str, columns: Vec<Column>) -> JsonSource {
    JsonSource {
        path: path.to_owned(),
        paths: Default::default(),
        columns,
        compression: Compression::Auto,
        chunk_bytes: 1 << 30,
    }
}

fn bound(folder: &Path, source: JsonSource, checkpoint_rows: u64) -> Box<dyn Source> {
    testing::bound(folder, SourceKind::Json(source), checkpoint_rows)
}

fn every_type() -> Vec<Column> {
    vec![
        column("t", DataType::Utf8),
        column("i", DataType::Int32),
        column("s", DataType::Int16),
        column("n", DataType::Int64),
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
    let good = r#"{"r":1,"other":[{"r":2}],"t":"a\u00fc\n","i":-7,"s":0,"n":9007199254740993,"f":5e-1,"b":true,"d":"2013-01-31","ts":"2013-01-31T05:06","tz":"2013-01-31 05:06:07-05:00","dec":12.5}"#;
    // A value, or none, in place of the good one; or a whole line.
    let table: &[(&str, &[u8], &str, &str)] = &[
        ("r", b"null", "r", "null_in_required"),
        ("r", b"", "r", "null_in_required"),
        ("r", b"40000", "r", "out_of_range"),
        ("r", b"\"1\"", "r", "bad_int"),
        ("i", b"1.0", "i", "bad_int"),
        ("i", b"1e3", "i", "bad_int"),
        ("i", b"true", "i", "bad_int"),
        ("n", b"9223372036854775808", "n", "out_of_range"),
        ("f", b"\"0.5\"", "f", "bad_float"),
        ("f", b"1e999", "f", "out_of_range"),
        ("b", b"1", "b", "bad_bool"),
        ("b", b"\"true\"", "b", "bad_bool"),
        ("d", b"20130131", "d", "bad_date"),
        ("d", b"\"31.01.2013\"", "d", "bad_date"),
        ("ts", b"\"2013-01-31T05:06:07-05:00\"", "ts", "bad_timestamp"),
        ("tz", b"{}", "tz", "bad_timestamp"),
        ("dec", b"1.234", "dec", "bad_decimal"),
        ("dec", b"123456", "dec", "out_of_range"),
        ("dec", b"\"1\"", "dec", "bad_decimal"),
        ("f", b"-1e-400", "f", "out_of_range"),
        ("t", b"\"a\\u0000b\"", "t", "nul_byte"),
        ("t", b"\"\\ud800\"", "t", "bad_text"),
        ("t", b"\"\xff\"", "", "bad_utf8"),
        ("other", b"\"\xff\"", "", "bad_utf8"),
        ("other", b"[1,]", "", "bad_json"),
        ("other", b"NaN", "", "bad_json"),
        ("other", b"01", "", "bad_json"),
        ("other", b"\"a\tb\"", "", "bad_json"),
        ("other", b"1,\"t\":\"x\"", "", "duplicate_key"),
        ("other", b"1,\"oth\\u0065r\":2", "", "duplicate_key"),
        ("", b"[1]", "", "not_an_object"),
        ("", b"\"r\"", "", "not_an_object"),
        ("", b"1", "", "not_an_object"),
        ("", b"null", "", "not_an_object"),
        ("", b"{\"r\":1} {\"r\":2}", "", "bad_json"),
        ("", b"{\"r\":1},", "", "bad_json"),
        ("", b"{\"r\":1", "", "bad_json"),
        ("", b"\xef\xbb\xbf{\"r\":1}", "", "bad_json"),
        ("", b"r,t", "", "bad_json"),
    ];
    let lines: Vec<Vec<u8>> = table
        .iter()
        .map(|(key, text, _, _)| {
            if key.is_empty() {
                return text.to_vec();
            }
            let at = good.find(&format!("\"{key}\":")).unwrap();
            let value = at + key.len() + 3;
            let fields = [("other", 9), ("t", 11), ("r", 1)];
            let long = fields.iter().find(|(name, _)| name == key).map(|(_, long)| *long);
            let end = long.map_or_else(|| value + good[value..].find([',', '}']).unwrap(), |long| value + long);
            if text.is_empty() {
                return [&good.as_bytes()[..at], &good.as_bytes()[end + 1..]].concat();
            }
            [&good.as_bytes()[..value], text, &good.as_bytes()[end..]].concat()
        })
        .collect();
    let mut data = format!("\u{feff} {good}\r\n\r\n").into_bytes();
    for line in &lines {
        data.extend(line);
        // A good row between them, so that what is filtered out is seen to be the right one.
        data.extend(b"\r\n \t\n");
        data.extend(good.as_bytes());
        data.push(b'\n');
    }
    // No value is one by any other way, nested values are text, and the last line has no end.
    let nested = r#"{"t": {"a": [1, "x"]}, "i": null, "r": 2}"#;
    let plain = r#"{"t": 1.50, "dec": 5e-1, "r": 2}"#;
    data.extend([nested, plain].join("\n").as_bytes());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jsonl"), &data).unwrap();

    let found = all_rows(&*bound(folder.path(), json("*.jsonl", every_type()), 100))
        .await
        .unwrap();
    let values = [
        "aü\n",
        "-7",
        "0",
        "9007199254740993",
        "0.5",
        "true",
        "2013-01-31",
        "2013-01-31T05:06:00",
        "2013-01-31T10:06:07Z",
        "12.50",
        "1",
    ];
    let read = Ok(values.map(str::to_owned).to_vec());
    assert_eq!(found[0], (1, good.as_bytes().to_vec(), read.clone()));
    for (number, ((_, text, column, reason), line)) in table.iter().zip(&lines).enumerate() {
        let (bad, next) = (&found[1 + 2 * number], &found[2 + 2 * number]);
        let column = (!column.is_empty()).then(|| (*column).to_owned());
        let at = 3 + 3 * number as u64;
        assert_eq!(
            *bad,
            (at, line.clone(), Err((column, *reason))),
            "{}",
            String::from_utf8_lossy(text)
        );
        assert_eq!(*next, (at + 2, good.as_bytes().to_vec(), read.clone()));
    }
    let tail = &found[1 + 2 * table.len()..];
    let mut nulls = vec![String::new(); values.len()];
    (nulls[0], nulls[10]) = (r#"{"a": [1, "x"]}"#.to_owned(), "2".to_owned());
    let last = 3 + 3 * table.len() as u64;
    assert_eq!(tail[0], (last, nested.as_bytes().to_vec(), Ok(nulls.clone())));
    (nulls[0], nulls[9]) = ("1.50".to_owned(), "0.50".to_owned());
    assert_eq!(tail[1..], [(last + 1, plain.as_bytes().to_vec(), Ok(nulls))]);
}

#[tokio::test]
async fn a_column_may_stand_deeper_than_in_its_row() {
    let columns = vec![
        column("id", DataType::Int64),
        required("city", DataType::Utf8),
        column("zip", DataType::Int32),
        column("address", DataType::Utf8),
        column("total", DataType::Decimal128(7, 2)),
        column("dotted", DataType::Boolean),
    ];
    let of = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let paths = Paths::from([
        ("city".to_owned(), of(&["address", "city", "name"])),
        ("zip".to_owned(), of(&["address", "zip"])),
        // Another name for a key.
        ("total".to_owned(), of(&["sum"])),
        ("dotted".to_owned(), of(&["flags", "a.b"])),
    ]);
    let lines = [
        r#"{"id": 1, "address": {"zip": 8001, "street": {"city": 0}, "city": {"x": [], "name": "Z\u00fcrich"}}, "sum": 1e1, "flags": {"a.b": true}}"#,
        r#"{"id": 2, "total": "no", "address": {"city": {"name": 7}, "zip": null}, "flags": null}"#,
        // What a required column's path doesn't lead to.
        r#"{"id": 3}"#,
        r#"{"id": 4, "address": {"city": null}}"#,
        // No objects on the way.
        r#"{"id": 5, "address": {"city": "Bern"}}"#,
        r#"{"id": 6, "address": []}"#,
        r#"{"id": 7, "address": {"city": {"name": "x"}}, "flags": "a.b"}"#,
        r#"{"id": 8, "address": {"city": {"name": "x", "n\u0061me": "y"}}}"#,
        r#"{"id": 9, "address": {"city": {"name": "x"}, "city": {}}}"#,
        r#"{"id": 10, "address": {"city": {"name": "x"}, "zip": "8001"}}"#,
        r#"{"id": 11, "address": {"city": {"name": "x"}}, "new": 1}"#,
    ];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jsonl"), lines.join("\n")).unwrap();
    let source = |strict| {
        let kind = SourceKind::Json(JsonSource {
            paths: paths.clone(),
            ..json("a.jsonl", columns.clone())
        });
        let on_new_column = if strict {
            NewColumn::Quarantine
        } else {
            NewColumn::Ignore
        };
        let contract = Contract {
            on_new_column,
            ..Contract::default()
        };
        testing::under(folder.path(), kind, contract, 3)
    };
    let values = |values: [&str; 6]| Ok(values.map(str::to_owned).to_vec());
    let bad = |column: Option<&str>, reason| Err((column.map(str::to_owned), reason));
    let address = r#"{"zip": 8001, "street": {"city": 0}, "city": {"x": [], "name": "Z\u00fcrich"}}"#;
    let expected = [
        values(["1", "Zürich", "8001", address, "10.00", "true"]),
        values(["2", "7", "", r#"{"city": {"name": 7}, "zip": null}"#, "", ""]),
        bad(Some("city"), "null_in_required"),
        bad(Some("city"), "null_in_required"),
        bad(Some("city"), "not_an_object"),
        bad(Some("city"), "not_an_object"),
        bad(Some("dotted"), "not_an_object"),
        bad(None, "duplicate_key"),
        bad(None, "duplicate_key"),
        bad(Some("zip"), "bad_int"),
    ];
    for strict in [false, true] {
        let source = source(strict);
        source.check().await.unwrap();
        let found = all_rows(&*source).await.unwrap();
        let mut read: Vec<_> = found.into_iter().map(|row| row.2).collect();
        if strict {
            // A key that has the name of a column which stands elsewhere is nobody's.
            assert_eq!(read[1], bad(Some("total"), "new_column"));
            read[1].clone_from(&expected[1]);
        }
        assert_eq!(read[..10], expected, "{strict}");
        match strict {
            // The address and the flags lead to columns.
            true => assert_eq!(read[10], bad(Some("new"), "new_column")),
            false => assert!(read[10].is_ok()),
        }
    }
}

#[tokio::test]
async fn a_name_with_a_point_is_a_name_and_who_meant_a_path_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.jsonl"),
        "{\"a.b\": 1, \"cust\": {\"name\": \"x\"}}\n",
    )
    .unwrap();
    let columns = vec![column("a.b", DataType::Int32)];
    let found = all_rows(&*bound(folder.path(), json("a.jsonl", columns), 100))
        .await
        .unwrap();
    assert_eq!(found[0].2, Ok(vec!["1".to_owned()]));
    let columns = vec![column("a.b", DataType::Int32), required("cust.name", DataType::Utf8)];
    let source = bound(folder.path(), json("a.jsonl", columns), 100);
    let told = source.check().await.unwrap_err();
    assert_eq!(told.column.as_deref(), Some("cust.name"));
    let help = "write cust_name: {type: \"text!\", path: cust.name}";
    assert!(told.failure.message.contains(help), "{}", told.failure.message);
    let told = source.discover(StageId(0)).await.unwrap_err();
    assert!(told.message.contains(help), "{}", told.message);
}

#[tokio::test]
async fn what_is_no_number_in_json_has_a_name_where_numbers_have_a_point() {
    let folder = tempfile::tempdir().unwrap();
    let data = "{\"f\":\"NaN\",\"g\":\"-Infinity\"}\n{\"f\":\"Infinity\",\"g\":1}\n{\"f\":\"inf\"}\n{\"i\":\"NaN\"}\n";
    std::fs::write(folder.path().join("a.jsonl"), data).unwrap();
    let columns = vec![
        column("f", DataType::Float64),
        column("g", DataType::Float32),
        column("i", DataType::Int32),
    ];
    let found = all_rows(&*bound(folder.path(), json("a.jsonl", columns), 100))
        .await
        .unwrap();
    let read: Vec<_> = found.into_iter().map(|row| row.2).collect();
    let values = |f: &str, g: &str| Ok(vec![f.to_owned(), g.to_owned(), String::new()]);
    let bad = |column: &str, reason| Err((Some(column.to_owned()), reason));
    assert_eq!(
        read,
        [
            values("NaN", "-inf"),
            values("inf", "1.0"),
            bad("f", "bad_float"),
            bad("i", "bad_int")
        ]
    );
}

#[tokio::test]
async fn undeclared_columns_are_the_first_objects_keys_and_take_everything() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("0.jsonl"), "\n").unwrap();
    let data = "nonsense\n{\"b\":1.50,\"a\":\"x\"}\n{\"a\":{\"k\":true},\"c\":0}\n{\"b\":false}\n";
    std::fs::write(folder.path().join("1.jsonl"), data).unwrap();
    let source = bound(folder.path(), json("?.jsonl", Vec::new()), 100);
    let columns = [column("b", DataType::Utf8), column("a", DataType::Utf8)];
    assert_eq!(source.columns().await.unwrap(), columns);
    source.check().await.unwrap();
    let read: Vec<_> = all_rows(&*source).await.unwrap().into_iter().map(|row| row.2).collect();
    let values = |b: &str, a: &str| Ok(vec![b.to_owned(), a.to_owned()]);
    assert_eq!(
        read,
        [
            Err((None, "bad_json")),
            values("1.50", "x"),
            values("", "{\"k\":true}"),
            values("false", "")
        ]
    );
}

#[tokio::test]
async fn what_is_no_json_lines_says_so_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let good = "{\"a\":\"1\"}\n";
    let a = || vec![column("a", DataType::Utf8)];
    let table: Vec<(Vec<u8>, Vec<Column>, &str)> = vec![
        (
            b"a,b\n1,2\n".to_vec(),
            a(),
            "the first one starts: a,b; write one object a line",
        ),
        (b"[{\"a\":1},\n{\"a\":2}]\n".to_vec(), a(), "it seems to be one array"),
        (b"{\n  \"a\": 1\n}\n".to_vec(), a(), "every object on a line of its own"),
        (b"\x1b[2J\n".to_vec(), a(), "starts: \\u{1b}[2J;"),
        (gzip(good.as_bytes()), a(), "write `compression: gzip`"),
        (b"{\"a\":1".to_vec(), a(), "none of its first lines is an object"),
        (b"".to_vec(), vec![], "x.jsonl is empty: expected an object"),
        (b" \n\n".to_vec(), vec![], "x.jsonl is empty"),
        (
            b"{\"\":1}".to_vec(),
            vec![],
            "the key \"\" of the first object is empty",
        ),
        (b"{\"__haulage_row\":1}".to_vec(), vec![], "uses itself"),
        (b"{}".to_vec(), vec![], "has no keys"),
    ];
    for (data, columns, part) in table {
        std::fs::write(folder.path().join("x.jsonl"), &data).unwrap();
        let source = bound(folder.path(), json("x.jsonl", columns), 10);
        let checked = source.check().await.unwrap_err().failure;
        let discovered = source.discover(StageId(0)).await.unwrap_err();
        for failure in [checked, discovered] {
            assert_eq!(failure.class, Class::Permanent);
            assert!(
                failure.message.contains("x.jsonl") && failure.message.contains(part),
                "{data:?}: {failure}"
            );
        }
    }
    // No rows are no mistake where the columns are declared.
    for data in ["", "\u{feff}", "\n \n"] {
        std::fs::write(folder.path().join("x.jsonl"), data).unwrap();
        let source = bound(folder.path(), json("x.jsonl", a()), 10);
        source.check().await.unwrap();
        assert_eq!(all_rows(&*source).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_is_one_reject_wherever_it_stands() {
    let long = [b"{\"n\":\"".as_slice(), &vec![b'x'; MAX_LINE], b"\"}"].concat();
    let folder = tempfile::tempdir().unwrap();
    let row = |n: u32| format!("{{\"n\":{n}}}\n").into_bytes();
    let far_right = [vec![b' '; MAX_LINE / 8 + 1], b"{\"n\":4}".to_vec()].concat();
    let data = [
        row(1),
        long.clone(),
        b"\n".to_vec(),
        row(2),
        row(3),
        far_right,
        b"\n".to_vec(),
        row(5),
        long,
    ]
    .concat();
    std::fs::write(folder.path().join("a.jsonl"), &data).unwrap();
    for checkpoint_rows in [1, 3, 100] {
        let source = bound(
            folder.path(),
            json("a.jsonl", vec![column("n", DataType::Int32)]),
            checkpoint_rows,
        );
        let chunk = &source.discover(StageId(0)).await.unwrap()[0];
        let straight = segments(&*source, chunk, chunk.start).await.unwrap();
        assert_eq!(
            straight.iter().map(|segment| segment.bytes).sum::<u64>(),
            data.len() as u64
        );
        let kinds: Vec<_> = straight
            .iter()
            .flat_map(rows)
            .map(|(line, _, read)| (line, read))
            .collect();
        let value = |n: u32| Ok(vec![n.to_string()]);
        let too_long = || Err((None, "too_long"));
        assert_eq!(
            kinds,
            [
                (1, value(1)),
                (2, too_long()),
                (3, value(2)),
                (4, value(3)),
                (5, value(4)),
                (6, value(5)),
                (7, too_long())
            ]
        );
        let said = &straight
            .iter()
            .flat_map(|segment| &segment.unreadable)
            .next()
            .unwrap()
            .detail;
        assert_eq!(*said, format!("the line has {} bytes, more than 16 MiB", MAX_LINE + 8));
        for (done, segment) in straight.iter().enumerate() {
            if segment.last || checkpoint_rows == 1 {
                continue;
            }
            let rest = segments(&*source, chunk, segment.next).await.unwrap();
            let lines = |of: &[crate::source::Segment]| of.iter().flat_map(rows).collect::<Vec<_>>();
            assert!(lines(&rest) == lines(&straight[done + 1..]), "after segment {done}");
        }
    }
}

#[test]
fn nesting_has_a_bound() {
    let mut keys = Keys::new(&[column("a", DataType::Utf8)], &Paths::new(), false);
    let nested = |levels: usize, key: &str| format!("{{\"{key}\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    for key in ["a", "other"] {
        let mut taken = 0;
        assert_eq!(
            keys.read(nested(MAX_DEPTH - 1, key).as_bytes(), |_, _| taken += 1),
            Ok(())
        );
        let odd = keys.read(nested(MAX_DEPTH, key).as_bytes(), |_, _| {}).unwrap_err();
        assert_eq!(odd.reason, "too_deep");
        assert_eq!(taken, usize::from(key == "a"));
        // Deep enough for a stack to overflow, were it read by recursion.
        let odd = keys.read(nested(1_000_000, key).as_bytes(), |_, _| {}).unwrap_err();
        assert_eq!(odd.reason, "too_deep");
    }
    let brackets = "[".repeat(1000);
    assert_eq!(
        keys.read(format!("{{\"a\":[\"\\\\\\\"{brackets}\"]}}").as_bytes(), |_, _| {}),
        Ok(())
    );
    assert_eq!(
        keys.read(brackets.repeat(1000).as_bytes(), |_, _| {})
            .unwrap_err()
            .reason,
        "bad_json"
    );
}

/// Lines that are rows, nearly rows, and none.
fn json_ish() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => (0..300i32, "[a-zé\\\\\"\n]{0,6}").prop_map(|(a, b)| serde_json::json!({"a": a, "b": b}).to_string().into_bytes()),
        1 => Just(b"{\"a\":1,\"b\":[\"}\\\"\"]}".to_vec()),
        1 => Just(b"{\"b\":null}".to_vec()),
        1 => Just(b"{\"a\":1,\"a\":2}".to_vec()),
        1 => Just(b"{\"a\":".to_vec()),
        1 => Just(b" \t".to_vec()),
        1 => Just(b"\xff".to_vec()),
    ];
    let end = prop_oneof![6 => Just(&b"\n"[..]), 1 => Just(&b"\r\n"[..]), 1 => Just(&b"\n\n"[..]), 1 => Just(&b""[..])];
    proptest::collection::vec((piece, end), 0..40).prop_map(|lines| {
        lines
            .into_iter()
            .flat_map(|(line, end)| [&line[..], end].concat())
            .collect()
    })
}

/// What a line has to become, by serde_json's own values.
fn oracle(line: &[u8]) -> Result<Vec<String>, ()> {
    let text = std::str::from_utf8(line).map_err(|_| ())?;
    let Ok(Value::Object(object)) = serde_json::from_str(text) else {
        return Err(());
    };
    if text.matches("\"a\":").count() > 1 {
        return Err(());
    }
    let a = match &object.get("a") {
        None | Some(Value::Null) => String::new(),
        Some(Value::Number(number)) => i16::try_from(number.as_i64().ok_or(())?).map_err(|_| ())?.to_string(),
        Some(_) => return Err(()),
    };
    let b = match &object.get("b") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(nested) => nested.to_string(),
    };
    Ok(vec![a, b])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_and_checkpoints_change_nothing(data in json_ish(), chunk_bytes in 1..60u64, checkpoint_rows in 1..6u64) {
        let data = [&b"{\"a\":1}\n"[..], &data].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.jsonl"), &data).unwrap();
            std::fs::write(folder.path().join("b.jsonl.gz"), gzip(&data)).unwrap();
            std::fs::write(folder.path().join("c.jsonl.zst"), zstd::encode_all(&data[..], 1).unwrap()).unwrap();
            let source = |path: &str, chunk_bytes, rows| {
                let columns = vec![column("a", DataType::Int16), column("b", DataType::Utf8)];
                bound(folder.path(), JsonSource { chunk_bytes, ..json(path, columns) }, rows)
            };
            let whole = all_rows(&*source("a.jsonl", 1 << 30, 1 << 30)).await.unwrap();
            let lines = data.split(|byte| *byte == b'\n').enumerate();
            let lines: Vec<_> = lines.filter(|(_, line)| !line.trim_ascii().is_empty()).collect();
            prop_assert_eq!(whole.len(), lines.len());
            for ((line, raw, read), (number, text)) in whole.iter().zip(lines) {
                prop_assert_eq!((*line, &raw[..]), (number as u64 + 1, text.trim_ascii()));
                prop_assert_eq!(read.clone().map_err(drop), oracle(text));
            }
            let cut = source("a.jsonl", chunk_bytes, checkpoint_rows);
            prop_assert_eq!(&all_rows(&*cut).await.unwrap(), &whole);
            for packed in ["b.jsonl.gz", "c.jsonl.zst"] {
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

    #[test]
    fn no_line_panics(line in "[\\[\\]{}\":,0-9eE.+\\-truefalsn\\\\ u\u{0}é]{0,60}") {
        let mut keys = Keys::new(&[column("a", DataType::Utf8)], &Paths::new(), false);
        let columns = [DataType::Utf8, DataType::Int32, DataType::Float64, DataType::Decimal128(38, 10), DataType::Date32];
        for data_type in columns {
            let mut builder = column::ColumnBuilder::new(&column("a", data_type), 1).unwrap();
            drop(keys.read(format!("{{\"a\":{line}}}").as_bytes(), |_, json| drop(builder.append(json))));
        }
    }
}

#[tokio::test]
async fn a_lookup_is_read_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1.jsonl"), "{\"n\":1}\n").unwrap();
    std::fs::write(folder.path().join("2.jsonl"), "{\"n\":2}\n\n{\"n\":3}").unwrap();
    let source = bound(folder.path(), json("?.jsonl", vec![column("n", DataType::Int16)]), 1);
    let rows = source
        .read_all()
        .await
        .unwrap()
        .iter()
        .map(|batch| batch.num_rows())
        .sum::<usize>();
    assert_eq!(rows, 3);
    std::fs::write(folder.path().join("2.jsonl"), "{\"n\":2}\n\n{\"n\":\"z\"}").unwrap();
    let failure = source.read_all().await.unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    let part = "2.jsonl line 3, column n: bad_int: expected smallint, found the text \"z\"";
    assert!(failure.message.contains(part), "{failure}");
}
