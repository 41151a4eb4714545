//! The formats of files: every type there and back, rows divided into folders, CSV and JSON lines.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, NullArray, RecordBatch, StringArray, StringViewArray, Time64MicrosecondArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
};
use datafusion::arrow::compute::{cast, concat_batches};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::ids::Attempt;
use haulage_node::sink::{Destination, Expected, LoadContext, Refused};
use haulage_plan::definition::{FileCompression, FileFormat, Layout, Mode};

use super::files;
use super::load::{CHUNK, load, marker};
use super::world::World;

crate::on_files!(
    every_type_keeps_its_values,
    rows_are_divided_into_folders,
    csv_and_json_lines
);

fn of(run: &str, batch: &RecordBatch, layout: Layout) -> LoadContext {
    LoadContext {
        schema: batch.schema(),
        layout,
        ..load(run, Mode::Replace, &[])
    }
}

async fn publish(destination: &Arc<dyn Destination>, load: &LoadContext, batch: &RecordBatch) -> Expected {
    destination.prepare(load).await.expect("prepared");
    destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = destination.segment(load, CHUNK, Attempt(1)).await.expect("a writer");
    writer.write(batch).await.expect("written");
    let committed = writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let expected = Expected {
        rows: committed.marker.rows,
        segments: 1,
    };
    destination.verify(load, expected).await.expect("verified");
    destination.publish(load, expected).await.expect("published");
    destination.cleanup(load).await.expect("cleaned");
    expected
}

fn every_type() -> RecordBatch {
    let decimal = Decimal128Array::from(vec![Some(-12_345), Some(10i128.pow(18)), None]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
        Arc::new(Int8Array::from(vec![Some(i8::MIN), Some(i8::MAX), None])),
        Arc::new(Int16Array::from(vec![Some(i16::MIN), Some(i16::MAX), None])),
        Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None])),
        Arc::new(UInt64Array::from(vec![Some(0), Some(u64::MAX), None])),
        Arc::new(Float32Array::from(vec![Some(0.1), Some(f32::MAX), None])),
        Arc::new(Float64Array::from(vec![
            Some(f64::MIN_POSITIVE),
            Some(f64::INFINITY),
            None,
        ])),
        Arc::new(StringArray::from(vec![Some("ü, \"\n"), Some(""), None])),
        Arc::new(StringViewArray::from(vec![
            Some("日本語 and more than twelve bytes"),
            Some("x"),
            None,
        ])),
        Arc::new(Date32Array::from(vec![Some(-25_509), Some(15_706), None])),
        Arc::new(TimestampMicrosecondArray::from(vec![
            Some(-1),
            Some(946_684_800_500_000),
            None,
        ])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), Some(0), None]).with_timezone("UTC")),
        Arc::new(TimestampSecondArray::from(vec![
            Some(-86_400),
            Some(1_357_034_400),
            None,
        ])),
        Arc::new(TimestampNanosecondArray::from(vec![Some(1_999), Some(0), None])),
        Arc::new(Time64MicrosecondArray::from(vec![Some(0), Some(5_400_000_000), None])),
        Arc::new(decimal.with_precision_and_scale(20, 2).expect("a decimal")),
        Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None])),
        Arc::new(NullArray::new(3)),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(n, column)| Field::new(format!("c{n}"), column.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

async fn every_type_keeps_its_values(world: &World) {
    let batch = every_type();
    for (n, compression) in [
        None,
        Some(FileCompression::None),
        Some(FileCompression::Snappy),
        Some(FileCompression::Gzip),
    ]
    .into_iter()
    .enumerate()
    {
        let layout = Layout {
            compression,
            ..Layout::default()
        };
        publish(&world.destination, &of(&format!("r{n}"), &batch, layout), &batch).await;
        let found = files::files(&world.lake(), "things").expect("a table");
        let [(path, _)] = found.as_slice() else {
            panic!("one segment is one file: {found:?}");
        };
        let batches = files::parquet(path);
        let back = concat_batches(&batches[0].schema(), &batches).expect("one batch");
        for (n, column) in batch.columns().iter().enumerate() {
            let there = cast(back.column(n), column.data_type()).unwrap_or_else(|_| back.column(n).clone());
            if column.data_type() == &DataType::Null {
                assert_eq!(there.logical_null_count(), 3);
            } else {
                assert_eq!(&there, column, "{:?}", column.data_type());
            }
        }
    }
}

async fn rows_are_divided_into_folders(world: &World) {
    let batch = RecordBatch::try_from_iter_with_nullable([
        (
            "day",
            Arc::new(Date32Array::from(vec![Some(0), Some(1), Some(0), None])) as ArrayRef,
            true,
        ),
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3, 4])) as ArrayRef, false),
        (
            "region",
            Arc::new(StringArray::from(vec![Some("a/b"), Some("ü"), Some("a/b"), None])) as ArrayRef,
            true,
        ),
    ])
    .expect("a batch");
    let layout = Layout {
        partition_by: vec!["day".into(), "region".into()],
        ..Layout::default()
    };
    let load = of("a", &batch, layout.clone());
    publish(&world.destination, &load, &batch).await;
    let mut found = Vec::new();
    for (path, said) in files::files(&world.lake(), "things").expect("a table") {
        let batches = files::parquet(&path);
        let names: Vec<String> = batches[0]
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect();
        assert_eq!(names, ["id"], "partition columns are in the path alone");
        let path = said["path"].as_str().expect("a path");
        let mut parts = path.split('/');
        assert_eq!((parts.next(), parts.clone().count()), (Some("data"), 4), "{path}");
        let folders: Vec<&str> = parts.skip(1).take(2).collect();
        found.push(format!("{} {} {}", folders.join("/"), said["rows"], said["partition"]));
    }
    found.sort();
    assert_eq!(
        found,
        [
            "day=1970-01-01/region=a%2Fb 2 [\"1970-01-01\",\"a/b\"]",
            "day=1970-01-02/region=%C3%BC 1 [\"1970-01-02\",\"ü\"]",
            "day=__HIVE_DEFAULT_PARTITION__/region=__HIVE_DEFAULT_PARTITION__ 1 [null,null]",
        ]
    );
    // A key may be among the partition columns, which come back from the path.
    let keyed = LoadContext {
        key: vec!["day".into(), "region".into()],
        ..of("b", &batch.slice(0, 3), layout)
    };
    let destination = &world.destination;
    destination.prepare(&keyed).await.expect("prepared");
    destination.begin(&keyed, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = destination.segment(&keyed, CHUNK, Attempt(1)).await.expect("a writer");
    writer.write(&batch.slice(0, 3)).await.expect("written");
    writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let expected = Expected { rows: 3, segments: 1 };
    let double = destination.verify(&keyed, expected).await.expect_err("a double key");
    assert!(double.message.contains("(day, region)=(1970-01-01, a/b)"), "{double}");
    destination.discard(&keyed).await.expect("discarded");

    let long = RecordBatch::try_from_iter([
        (
            "k",
            Arc::new(StringArray::from(vec!["x".to_owned(), "y".repeat(300)])) as ArrayRef,
        ),
        ("v", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
    ])
    .expect("a batch");
    let layout = Layout {
        partition_by: vec!["k".into()],
        ..Layout::default()
    };
    let load = LoadContext {
        table: "long".into(),
        ..of("c", &long, layout)
    };
    destination.prepare(&load).await.expect("prepared");
    destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = destination.segment(&load, CHUNK, Attempt(1)).await.expect("a writer");
    writer.write(&long).await.expect("taken");
    match writer
        .commit(marker(CHUNK, 0, Attempt(1)))
        .await
        .expect_err("a long name")
    {
        Refused::Row(bad) => assert_eq!((bad.at, bad.column.as_deref()), (1, Some("k")), "{bad}"),
        Refused::Whole(failure) => panic!("no row is named: {failure}"),
    }
}

async fn csv_and_json_lines(world: &World) {
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef, false),
        (
            "name",
            Arc::new(StringArray::from(vec![Some("a,\"b\""), Some(""), None])) as ArrayRef,
            true,
        ),
        ("day", Arc::new(Date32Array::from(vec![0, 0, 1])) as ArrayRef, false),
    ])
    .expect("a batch");
    for (format, compression, expected) in [
        (
            FileFormat::Csv,
            None,
            &["id,name\n1,\"a,\"\"b\"\"\"\n2,\"\"\n", "id,name\n3,\n"][..],
        ),
        (
            FileFormat::Jsonl,
            None,
            &[
                "{\"id\":1,\"name\":\"a,\\\"b\\\"\"}\n{\"id\":2,\"name\":\"\"}\n",
                "{\"id\":3,\"name\":null}\n",
            ],
        ),
        (
            FileFormat::Csv,
            Some(FileCompression::Zstd),
            &["id,name\n1,\"a,\"\"b\"\"\"\n2,\"\"\n", "id,name\n3,\n"],
        ),
    ] {
        let layout = Layout {
            format: Some(format),
            compression,
            partition_by: vec!["day".into()],
        };
        // A key is proven over the staged rows, whatever the files are.
        let load = LoadContext {
            key: vec!["id".into()],
            ..of(&format!("{format:?}{compression:?}"), &batch, layout)
        };
        let count = publish(&world.destination, &load, &batch).await;
        assert_eq!(count.rows, 3);
        let mut found: Vec<String> = files::files(&world.lake(), "things")
            .expect("a table")
            .iter()
            .map(|(path, said)| {
                let data = std::fs::read(path).expect("a file");
                assert_eq!(said["bytes"], data.len());
                let data = match compression {
                    Some(_) => zstd::decode_all(data.as_slice()).expect("Zstandard"),
                    None => data,
                };
                String::from_utf8(data).expect("UTF-8")
            })
            .collect();
        found.sort_by_key(|text| std::cmp::Reverse(text.len()));
        assert_eq!(found, expected, "{format:?}");
        assert!(world.left_over().await.is_empty(), "{:?}", world.left_over().await);
    }
}
