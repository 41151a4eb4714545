//! Parquet as a source, through real files: what becomes of every type, what fits what, which rows are rejected, what is
//! damaged, and what is read of a file at all.

use std::path::Path;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Date64Array, Decimal128Array, Decimal256Array, DictionaryArray,
    FixedSizeBinaryArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, LargeStringArray,
    ListArray, RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit, i256};
use haulage_core::failure::Class;
use haulage_core::ids::StageId;
use haulage_plan::definition::SourceKind;
use haulage_plan::types;
use proptest::prelude::*;

use super::*;
use crate::source::Source;
use crate::source::testing::{self, all_rows, column, required, segments};

type Named = (&'static str, ArrayRef);

fn file(columns: Vec<Named>, properties: Option<WriterProperties>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)));
    let batch = batch.unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), properties).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file
}

fn bound(folder: &Path, path: &str, columns: Vec<Column>, checkpoint_rows: u64) -> Box<dyn Source> {
    let source = ParquetSource {
        path: path.to_owned(),
        columns,
        chunk_bytes: 1 << 20,
    };
    testing::bound(folder, SourceKind::Parquet(source), checkpoint_rows)
}

fn micros(zone: bool) -> DataType {
    if zone {
        types::timestamptz()
    } else {
        DataType::Timestamp(TimeUnit::Microsecond, None)
    }
}

#[tokio::test]
async fn every_type_has_one_of_its_own() {
    let utc = |array: TimestampMillisecondArray| Arc::new(array.with_timezone("+02:00")) as ArrayRef;
    let dictionary: DictionaryArray<Int32Type> = vec![Some("x"), None].into_iter().collect();
    let decimal = Decimal128Array::from(vec![Some(1250), None]);
    let large = Decimal256Array::from(vec![Some(i256::from(-5)), None]);
    let columns: Vec<(Named, DataType, &str)> = vec![
        (
            ("i8", Arc::new(Int8Array::from(vec![Some(-8), None]))),
            DataType::Int16,
            "-8",
        ),
        (
            ("i16", Arc::new(Int16Array::from(vec![Some(-16), None]))),
            DataType::Int16,
            "-16",
        ),
        (
            ("i32", Arc::new(Int32Array::from(vec![Some(-32), None]))),
            DataType::Int32,
            "-32",
        ),
        (
            ("i64", Arc::new(Int64Array::from(vec![Some(-64), None]))),
            DataType::Int64,
            "-64",
        ),
        (
            ("u8", Arc::new(UInt8Array::from(vec![Some(255), None]))),
            DataType::Int16,
            "255",
        ),
        (
            ("u16", Arc::new(UInt16Array::from(vec![Some(65_535), None]))),
            DataType::Int32,
            "65535",
        ),
        (
            ("u32", Arc::new(UInt32Array::from(vec![Some(u32::MAX), None]))),
            DataType::Int64,
            "4294967295",
        ),
        (
            ("u64", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
            DataType::Decimal128(20, 0),
            "18446744073709551615",
        ),
        (
            ("f32", Arc::new(Float32Array::from(vec![Some(0.5), None]))),
            DataType::Float32,
            "0.5",
        ),
        (
            ("f64", Arc::new(Float64Array::from(vec![Some(1e300), None]))),
            DataType::Float64,
            "1e300",
        ),
        (
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
            DataType::Boolean,
            "true",
        ),
        (
            ("d32", Arc::new(Date32Array::from(vec![Some(15_736), None]))),
            DataType::Date32,
            "2013-01-31",
        ),
        (
            (
                "d64",
                Arc::new(Date64Array::from(vec![Some(15_736 * 86_400_000), None])),
            ),
            DataType::Date32,
            "2013-01-31",
        ),
        (
            ("s", Arc::new(TimestampSecondArray::from(vec![Some(1), None]))),
            micros(false),
            "1970-01-01T00:00:01",
        ),
        (
            ("ms", utc(vec![Some(1), None].into())),
            micros(true),
            "1970-01-01T00:00:00.001Z",
        ),
        (
            ("us", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None]))),
            micros(false),
            "1970-01-01T00:00:00.000001",
        ),
        (
            ("ns", Arc::new(TimestampNanosecondArray::from(vec![Some(1_999), None]))),
            micros(false),
            "1970-01-01T00:00:00.000001",
        ),
        (
            ("dec", Arc::new(decimal.with_precision_and_scale(7, 2).unwrap())),
            DataType::Decimal128(7, 2),
            "12.50",
        ),
        (
            ("dec256", Arc::new(large.with_precision_and_scale(38, 1).unwrap())),
            DataType::Decimal128(38, 1),
            "-0.5",
        ),
        (
            ("t", Arc::new(StringArray::from(vec![Some("a\"ü"), None]))),
            DataType::Utf8,
            "a\"ü",
        ),
        (
            ("large", Arc::new(LargeStringArray::from(vec![Some("l"), None]))),
            DataType::Utf8,
            "l",
        ),
        (
            ("view", Arc::new(StringViewArray::from(vec![Some("v"), None]))),
            DataType::Utf8,
            "v",
        ),
        (("dict", Arc::new(dictionary)), DataType::Utf8, "x"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let arrays = columns.iter().map(|(named, _, _)| named.clone()).collect();
    std::fs::write(folder.path().join("a.parquet"), file(arrays, None)).unwrap();
    let source = bound(folder.path(), "a.parquet", Vec::new(), 10);
    let own: Vec<_> = columns
        .iter()
        .map(|((name, _), own, _)| column(name, own.clone()))
        .collect();
    assert_eq!(source.columns().await.unwrap(), own);
    let read = all_rows(&*source).await.unwrap();
    let values = columns.iter().map(|(_, _, value)| (*value).to_owned()).collect();
    assert_eq!(read[0].2, Ok(values));
    assert_eq!(read[1].2, Ok(vec![String::new(); columns.len()]));
    // The text of a row is JSON, which a Parquet file has none of.
    assert_eq!((read[0].0, read[1].0), (1, 2));
    let raw: serde_json::Value = serde_json::from_slice(&read[0].1).unwrap();
    assert_eq!(
        (&raw["i8"], &raw["t"], &raw["b"]),
        (&(-8).into(), &"a\"ü".into(), &true.into())
    );
    assert_eq!(raw["us"], "1970-01-01T00:00:00.000001");
    assert!(read[1].1.starts_with(b"{\"i8\":null,\"i16\":null,"));

    // Fewer columns, in another order, some of them wider.
    let declared = vec![
        column("t", DataType::Utf8),
        required("i16", DataType::Int64),
        column("i32", DataType::Decimal128(12, 2)),
        column("us", micros(true)),
    ];
    let read = all_rows(&*bound(folder.path(), "a.parquet", declared, 10))
        .await
        .unwrap();
    let wider = ["a\"ü", "-16", "-32.00", "1970-01-01T00:00:00.000001Z"];
    assert_eq!(read[0].2, Ok(wider.map(str::to_owned).to_vec()));
    assert_eq!(read[1].2, Err((Some("i16".to_owned()), "null_in_required")));
    assert_eq!(
        read[1].1,
        b"{\"i16\":null,\"i32\":null,\"us\":null,\"t\":null}".to_vec()
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_what_to_declare() {
    let folder = tempfile::tempdir().unwrap();
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)])]);
    let bytes = FixedSizeBinaryArray::try_from_iter([[0u8; 4]].into_iter()).unwrap();
    let columns: Vec<Named> = vec![
        ("n", Arc::new(Int64Array::from(vec![1]))),
        ("f", Arc::new(Float64Array::from(vec![1.0]))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")),
        ),
        ("t", Arc::new(StringArray::from(vec!["1"]))),
        (
            "dec",
            Arc::new(Decimal128Array::from(vec![1]).with_precision_and_scale(10, 2).unwrap()),
        ),
        ("list", Arc::new(list)),
        ("bytes", Arc::new(BinaryArray::from(vec![&b"x"[..]]))),
        ("four", Arc::new(bytes)),
    ];
    std::fs::write(folder.path().join("a.parquet"), file(columns.clone(), None)).unwrap();
    for (name, declared, part) in [
        (
            "n",
            DataType::Int32,
            "column \"n\" is bigint in the file, which int can't hold without loss; declare it bigint",
        ),
        ("n", DataType::Float64, "is bigint in the file, which double can't hold"),
        ("n", DataType::Utf8, "is bigint in the file, which text can't hold"),
        ("n", DataType::Decimal128(20, 2), "which decimal(20,2) can't hold"),
        ("f", DataType::Float32, "is double in the file, which float can't hold"),
        (
            "at",
            micros(false),
            "is timestamptz in the file, which timestamp can't hold",
        ),
        ("t", DataType::Int32, "is text in the file, which int can't hold"),
        (
            "dec",
            DataType::Decimal128(10, 1),
            "is decimal(10,2) in the file, which decimal(10,1) can't hold",
        ),
        ("dec", DataType::Decimal128(10, 3), "which decimal(10,3) can't hold"),
        ("list", DataType::Utf8, "column \"list\" is a list, which no type holds"),
        (
            "bytes",
            DataType::Int32,
            "column \"bytes\" holds bytes; declare it as text if they are UTF-8",
        ),
        (
            "four",
            DataType::Utf8,
            "column \"four\" is fixedsizebinary(4), which no type holds",
        ),
        ("nn", DataType::Int64, "a.parquet has no column nn; did you mean \"n\"?"),
    ] {
        let source = bound(folder.path(), "a.parquet", vec![column(name, declared)], 10);
        let wrong = source.check().await.unwrap_err();
        assert_eq!(wrong.column.as_deref(), Some(name));
        let found = source.discover(StageId(0)).await.unwrap_err();
        for failure in [wrong.failure, found] {
            assert_eq!(failure.class, Class::Permanent);
            assert!(
                failure.message.contains("a.parquet") && failure.message.contains(part),
                "{failure}"
            );
        }
    }
    let undeclared = bound(folder.path(), "a.parquet", Vec::new(), 10)
        .columns()
        .await
        .unwrap_err();
    assert!(undeclared.message.contains("column \"list\" is a list"), "{undeclared}");
    let fitting = vec![
        column("n", DataType::Decimal128(21, 2)),
        column("dec", DataType::Decimal128(12, 3)),
    ];
    bound(folder.path(), "a.parquet", fitting, 10).check().await.unwrap();

    // Without a declaration, the files have to be alike.
    let plain = || columns[..2].to_vec();
    std::fs::write(folder.path().join("b1.parquet"), file(plain(), None)).unwrap();
    let other: Named = ("f", Arc::new(Float32Array::from(vec![1.0])));
    for (changed, part) in [
        (
            vec![plain()[0].clone(), other],
            "column \"f\" is float here, and double there",
        ),
        (plain()[..1].to_vec(), "column \"f\" is none here, and double there"),
        (
            columns[..3].to_vec(),
            "column \"at\" is timestamptz here, and none there",
        ),
    ] {
        std::fs::write(folder.path().join("b2.parquet"), file(changed, None)).unwrap();
        let source = bound(folder.path(), "b*.parquet", Vec::new(), 10);
        let failure = source.discover(StageId(0)).await.unwrap_err();
        let names =
            failure.message.contains("b1.parquet") && failure.message.contains("b2.parquet has not the columns");
        assert!(names && failure.message.contains(part), "{failure}");
        bound(folder.path(), "b*.parquet", vec![column("n", DataType::Int64)], 10)
            .check()
            .await
            .unwrap();
    }
    // In another order they are alike, and read by name.
    let turned = vec![plain()[1].clone(), plain()[0].clone()];
    std::fs::write(folder.path().join("b2.parquet"), file(turned, None)).unwrap();
    let rows = all_rows(&*bound(folder.path(), "b*.parquet", Vec::new(), 10))
        .await
        .unwrap();
    assert_eq!(rows[0].2, rows[1].2);
}

#[tokio::test]
async fn a_value_that_cannot_be_taken_over_rejects_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let columns: Vec<Named> = vec![
        (
            "t",
            Arc::new(StringArray::from(vec!["good", "a\0b", "good", "good", "good"])),
        ),
        ("at", Arc::new(TimestampSecondArray::from(vec![1, 1, i64::MAX, 1, 1]))),
        (
            "bytes",
            Arc::new(BinaryArray::from(vec![&b"x"[..], b"x", b"x", b"\xff", b"\xc3\xbc"])),
        ),
    ];
    std::fs::write(folder.path().join("a.parquet"), file(columns, None)).unwrap();
    let declared = vec![
        column("bytes", DataType::Utf8),
        column("t", DataType::Utf8),
        column("at", micros(false)),
    ];
    let rows = all_rows(&*bound(folder.path(), "a.parquet", declared, 2))
        .await
        .unwrap();
    let read: Vec<_> = rows.iter().map(|row| row.2.clone()).collect();
    let good = |bytes: &str| {
        Ok(vec![
            bytes.to_owned(),
            "good".to_owned(),
            "1970-01-01T00:00:01".to_owned(),
        ])
    };
    let bad = |column: &str, reason| Err((Some(column.to_owned()), reason));
    assert_eq!(
        read,
        [
            good("x"),
            bad("t", "nul_byte"),
            bad("at", "out_of_range"),
            bad("bytes", "bad_utf8"),
            good("ü")
        ]
    );
    assert!(
        rows[3].1.ends_with(b"\"bytes\":\"\\\\xff\"}"),
        "{}",
        String::from_utf8_lossy(&rows[3].1)
    );
}

/// Three row groups of 400 rows in pages of 50, one column of which is large.
fn grouped(compression: Compression) -> Vec<u8> {
    let rows = 0..1_200;
    let columns: Vec<Named> = vec![
        ("n", Arc::new(Int32Array::from_iter_values(rows.clone()))),
        (
            "large",
            Arc::new(StringArray::from_iter_values(
                rows.clone().map(|row| format!("{row:0500}")),
            )),
        ),
        (
            "t",
            Arc::new(StringArray::from_iter(
                rows.map(|row| (row % 3 > 0).then(|| format!("text {}", row % 40))),
            )),
        ),
    ];
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(400))
        .set_data_page_row_count_limit(50)
        .set_write_batch_size(10)
        .set_compression(compression);
    file(columns, Some(properties.build()))
}

#[tokio::test]
async fn every_compression_is_read_and_row_groups_are_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let gzip = Compression::GZIP(Default::default());
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        gzip,
        zstd,
        Compression::LZ4_RAW,
    ] {
        std::fs::write(folder.path().join("a.parquet"), grouped(compression)).unwrap();
        all.push(
            all_rows(&*bound(folder.path(), "a.parquet", Vec::new(), 70))
                .await
                .unwrap(),
        );
    }
    assert_eq!(all[0].len(), 1_200);
    assert!(all.iter().all(|rows| *rows == all[0]));

    std::fs::write(folder.path().join("a.parquet"), grouped(Compression::UNCOMPRESSED)).unwrap();
    let chunks = async |chunk_bytes, columns| {
        let path = "a.parquet".to_owned();
        let source = SourceKind::Parquet(ParquetSource {
            path,
            columns,
            chunk_bytes,
        });
        let chunks = testing::bound(folder.path(), source, 10)
            .discover(StageId(0))
            .await
            .unwrap();
        chunks
            .iter()
            .map(|chunk| (chunk.start.offset, chunk.end))
            .collect::<Vec<_>>()
    };
    let each = [(0, Some(400)), (400, Some(800)), (800, Some(1_200))];
    assert_eq!(chunks(1, vec![]).await, each);
    assert_eq!(chunks(450_000, vec![]).await, [(0, Some(800)), (800, Some(1_200))]);
    // What is not read doesn't count.
    assert_eq!(
        chunks(64 << 10, vec![column("n", DataType::Int32)]).await,
        [(0, Some(1_200))]
    );
}

#[tokio::test]
async fn only_the_columns_of_the_source_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = grouped(Compression::SNAPPY);
    std::fs::write(folder.path().join("a.parquet"), &data).unwrap();
    let path = folder.path().join("a.parquet");
    let settings = crate::store::S3Settings::default();
    let object = crate::source::object::find(path.to_str().unwrap(), &settings)
        .await
        .unwrap();
    let footer = Footer::read(&object).await.unwrap();
    for group in footer.metadata.row_groups() {
        let (start, length) = group.column(1).byte_range();
        data[start as usize..(start + length) as usize].fill(0xff);
    }
    std::fs::write(folder.path().join("a.parquet"), &data).unwrap();
    let two = vec![column("t", DataType::Utf8), column("n", DataType::Int32)];
    let rows = all_rows(&*bound(folder.path(), "a.parquet", two, 100)).await.unwrap();
    assert_eq!(
        (rows.len(), &rows[1_001].2),
        (1_200, &Ok(vec!["text 1".to_owned(), "1001".to_owned()]))
    );
    let failure = all_rows(&*bound(folder.path(), "a.parquet", Vec::new(), 100))
        .await
        .unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(failure.message.contains("a.parquet can't be read"), "{failure}");
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut data = grouped(Compression::SNAPPY);
    // The codec of a column stands in the footer, as the only field of its kind: snappy is 1, Brotli 4, doubled.
    let footer = data.len() - 2_500;
    let codecs: Vec<usize> = (footer..data.len() - 4)
        .filter(|at| data[*at..].starts_with(b"\x15\x02\x16\xa0\x06"))
        .collect();
    assert_eq!(codecs.len(), 9);
    data[codecs[1] + 1] = 8;
    std::fs::write(folder.path().join("a.parquet"), &data).unwrap();
    let failure = bound(folder.path(), "a.parquet", Vec::new(), 10)
        .check()
        .await
        .unwrap_err()
        .failure;
    assert!(
        failure
            .message
            .contains("a.parquet: column \"large\" is packed with BROTLI"),
        "{failure}"
    );
    // Not where the column isn't read.
    bound(folder.path(), "a.parquet", vec![column("n", DataType::Int32)], 10)
        .check()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_file_without_rows_is_one_chunk_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.parquet"),
        file(vec![("n", Arc::new(Int32Array::from_iter_values([])))], None),
    )
    .unwrap();
    let source = bound(folder.path(), "a.parquet", Vec::new(), 10);
    let chunks = source.discover(StageId(0)).await.unwrap();
    assert_eq!((chunks.len(), chunks[0].end), (1, Some(0)));
    let segments = segments(&*source, &chunks[0], chunks[0].start).await.unwrap();
    assert_eq!((segments.len(), segments[0].rows, segments[0].last), (1, 0, true));
}

#[tokio::test]
async fn a_row_that_is_too_large_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["a".to_owned(), "x".repeat(17 << 20)];
    let columns: Vec<Named> = vec![("t", Arc::new(StringArray::from_iter_values(texts)))];
    std::fs::write(folder.path().join("a.parquet"), file(columns, None)).unwrap();
    let failure = all_rows(&*bound(folder.path(), "a.parquet", Vec::new(), 10))
        .await
        .unwrap_err();
    assert!(
        failure
            .message
            .contains("a.parquet row 2: the row takes 17825792 bytes"),
        "{failure}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Damage is a failure or other values, as there is no checksum; never a panic that ends the process, a hang, or a row
    /// more or less.
    #[test]
    fn damage_never_costs_a_row(place in 0..1_000usize, byte: u8, cut: bool, compressed: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut data = grouped(if compressed { Compression::SNAPPY } else { Compression::UNCOMPRESSED });
            // Half of the tries are for the footer.
            let footer = data.len() - 2_500;
            let at = if place % 2 == 0 { place * footer / 1_000 } else { footer + place * 2_500 / 1_000 };
            if cut {
                data.truncate(at);
            } else {
                data[at] = byte;
            }
            std::fs::write(folder.path().join("a.parquet"), &data).unwrap();
            match all_rows(&*bound(folder.path(), "a.parquet", Vec::new(), 100)).await {
                Ok(rows) => prop_assert!(!cut && rows.len() == 1_200),
                Err(failure) => {
                    prop_assert_eq!(failure.class, Class::Permanent);
                    prop_assert!(failure.message.contains("a.parquet"), "{}", failure);
                }
            }
            Ok(())
        })?;
    }
}

#[test]
fn views_keep_what_a_schema_says() {
    let field = Field::new(
        "t",
        DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::LargeUtf8)),
        true,
    );
    let schema = Schema::new(vec![field.with_metadata([("k".to_owned(), "v".to_owned())].into())]);
    let viewed = schema::viewed(&schema);
    assert_eq!(viewed.field(0).data_type(), &DataType::Utf8View);
    assert_eq!(viewed.field(0).metadata().get("k").map(String::as_str), Some("v"));
}
