//! What `encode` has written comes back: every type, every format, with the values at the edge, to the same checksum.

use datafusion::arrow::array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int64Type, Time32MillisecondType,
    Time64MicrosecondType, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, UInt64Type,
};
use datafusion::arrow::array::{BinaryArray, BooleanArray, PrimitiveArray};
use haulage_plan::definition::FileCompression;

use super::super::encode::Encoding;
use super::super::state::Column;
use super::*;
use crate::receipt::Digest;

/// Every stored type.
fn everything() -> RecordBatch {
    fn of<T: datafusion::arrow::datatypes::ArrowPrimitiveType>(
        values: [Option<T::Native>; 4],
        data_type: DataType,
    ) -> ArrayRef {
        Arc::new(
            values
                .into_iter()
                .collect::<PrimitiveArray<T>>()
                .with_data_type(data_type),
        )
    }
    let utc = Some(Arc::from("UTC"));
    let texts = [
        vec![Some("a,\"b\"\r\nc\nd"), Some(""), None, Some(" spaced\t")],
        vec![Some("null"), Some("NaN"), Some("\"\""), Some("ü\u{1F600}\u{1}\\")],
    ];
    let far: i64 = 253_402_300_800_000_000 + 7;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(StringArray::from(texts[0].clone()))),
        ("more, \"text\"", Arc::new(StringArray::from(texts[1].clone()))),
        ("none", Arc::new(StringArray::from(vec![None::<&str>; 4]))),
        (
            "bytes",
            Arc::new(BinaryArray::from(vec![
                Some(&b"\x00\xff"[..]),
                Some(b""),
                None,
                Some(b"\""),
            ])),
        ),
        (
            "yes",
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])),
        ),
        (
            "i8",
            of::<Int8Type>([Some(i8::MIN), Some(0), None, Some(i8::MAX)], DataType::Int8),
        ),
        (
            "i16",
            of::<Int16Type>([Some(-1), Some(0), None, Some(i16::MAX)], DataType::Int16),
        ),
        (
            "i64",
            of::<Int64Type>([Some(i64::MIN), Some(0), None, Some(i64::MAX)], DataType::Int64),
        ),
        (
            "u64",
            of::<UInt64Type>([Some(u64::MAX), Some(0), None, Some(1)], DataType::UInt64),
        ),
        (
            "f32",
            of::<Float32Type>(
                [Some(0.1), Some(f32::MIN_POSITIVE), None, Some(f32::NAN)],
                DataType::Float32,
            ),
        ),
        (
            "f64",
            of::<Float64Type>([Some(-0.0), Some(5e-324), None, Some(f64::MAX)], DataType::Float64),
        ),
        (
            "odd",
            of::<Float64Type>(
                [Some(f64::NAN), Some(f64::INFINITY), None, Some(f64::NEG_INFINITY)],
                DataType::Float64,
            ),
        ),
        (
            "decimal",
            of::<Decimal128Type>(
                [Some(-1), Some(10_i128.pow(38) - 1), None, Some(1_000)],
                DataType::Decimal128(38, 10),
            ),
        ),
        (
            "day",
            of::<Date32Type>([Some(-1), Some(2_932_897), None, Some(-800_000)], DataType::Date32),
        ),
        (
            "ms",
            of::<TimestampMillisecondType>(
                [Some(-1), Some(0), None, Some(far / 1_000)],
                DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Millisecond, None),
            ),
        ),
        (
            "us",
            of::<TimestampMicrosecondType>(
                [Some(-1), Some(1), None, Some(far)],
                DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, utc),
            ),
        ),
        (
            "ns",
            of::<TimestampNanosecondType>(
                [Some(-1), Some(1), None, Some(i64::MAX)],
                DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Nanosecond, None),
            ),
        ),
        (
            "t32",
            of::<Time32MillisecondType>(
                [Some(0), Some(86_399_999), None, Some(1)],
                DataType::Time32(datafusion::arrow::datatypes::TimeUnit::Millisecond),
            ),
        ),
        (
            "t64",
            of::<Time64MicrosecondType>(
                [Some(0), Some(86_399_999_999), None, Some(1)],
                DataType::Time64(datafusion::arrow::datatypes::TimeUnit::Microsecond),
            ),
        ),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn shape(format: FileFormat, batch: &RecordBatch) -> Shape {
    let fields = batch.schema_ref().fields().iter();
    Shape {
        format,
        columns: fields
            .map(|field| Column {
                name: field.name().clone(),
                type_name: haulage_plan::types::name(field.data_type()),
            })
            .collect(),
        partition_by: Vec::new(),
    }
}

fn wanted(format: FileFormat, batch: &RecordBatch) -> Wanted {
    let fields = batch.schema_ref().fields().iter();
    let columns: Vec<_> = fields
        .map(|field| (field.name().clone(), field.data_type().clone()))
        .collect();
    Wanted::new(&shape(format, batch), &columns)
}

/// All rows of a file, or what is wrong with it.
fn back(wanted: &Wanted, path: &str, data: Vec<u8>) -> Result<Vec<Rows>, String> {
    let mut all = Vec::new();
    wanted.decode(path, data.into(), &BTreeMap::new(), &mut |rows| {
        all.push(rows);
        true
    })?;
    Ok(all)
}

#[test]
fn every_value_comes_back_from_every_format() {
    let batch = everything();
    for (format, compression) in [
        (FileFormat::Parquet, FileCompression::Zstd),
        (FileFormat::Csv, FileCompression::None),
        (FileFormat::Csv, FileCompression::Gzip),
        (FileFormat::Jsonl, FileCompression::None),
        (FileFormat::Jsonl, FileCompression::Zstd),
    ] {
        let encoding = Encoding::new(Some(format), Some(compression));
        let data = encoding.encode(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
        let path = format!("x.{}", encoding.ending());
        let rows = back(&wanted(format, &batch), &path, data).unwrap();
        let [rows] = rows.as_slice() else {
            panic!("{path}: {} batches", rows.len());
        };
        assert_eq!((rows.unreadable, &rows.first), (0, &None), "{path}");
        for (field, (was, is)) in batch
            .schema()
            .fields()
            .iter()
            .zip(batch.columns().iter().zip(rows.batch.columns()))
        {
            let sum = |array: &ArrayRef| {
                let mut digest = Digest::default();
                let one = RecordBatch::try_from_iter_with_nullable([("c", Arc::clone(array), true)]).unwrap();
                digest.add(&one).unwrap();
                digest.finish()
            };
            assert_eq!(sum(is), sum(was), "{path}: {}: {was:?} {is:?}", field.name());
        }
    }
}

#[test]
fn what_was_not_written_is_said() {
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(StringArray::from(vec!["1"])) as ArrayRef, true),
        (
            "n",
            Arc::new(datafusion::arrow::array::Int32Array::from(vec![1])) as ArrayRef,
            true,
        ),
    ])
    .unwrap();
    let csv = wanted(FileFormat::Csv, &batch);
    let json = wanted(FileFormat::Jsonl, &batch);
    for (wanted, data, part) in [
        (&csv, "", "it is empty"),
        (&csv, "n,id\n", "its columns are n, id, and id, n were written"),
        (&csv, "id,n\na,1\nb", "ends in the middle of a record"),
        (&csv, "id,n\n\"a,1\n", "ends in the middle of a record"),
        (&json, "{\"id\": 1}", "ends in the middle of a record"),
    ] {
        let said = back(wanted, "f", data.into());
        assert!(said.as_ref().is_err_and(|why| why.contains(part)), "{data:?}: {said:?}");
    }
    for (wanted, data, part) in [
        (&csv, "id,n\na,1\nb\n", "1 fields instead of 2"),
        (&csv, "id,n\na,1\nb,x\n", "column n: `x` is no Int32"),
        (&csv, "id,n\n\"a\"b,1\na,2\n", "follows a closing quote"),
        (&json, "{\"id\": \"a\", \"n\": 1}\n{\"id\": \"b\"}\n", "a line has no n"),
        (
            &json,
            "{\"id\": \"a\", \"n\": 1, \"m\": 2}\n{\"id\": \"b\", \"n\": null}\n",
            "a line has m",
        ),
        (&json, "{\"id\": \"a\", \"n\": 1}\n[]\n", "no JSON object"),
        (
            &json,
            "{\"id\": \"a\", \"n\": 1.5}\n{\"id\": \"a\", \"n\": 1}\n",
            "`1.5` is no Int32",
        ),
    ] {
        let rows = back(wanted, "f", data.into()).unwrap();
        let first = rows[0].first.clone().unwrap_or_default();
        assert_eq!((rows[0].unreadable, rows[0].batch.num_rows()), (1, 1), "{data:?}");
        assert!(first.contains(part), "{data:?}: {first}");
    }
    let parquet = wanted(FileFormat::Parquet, &batch);
    let said = back(&parquet, "f", b"PAR1".to_vec()).unwrap_err();
    assert!(said.contains("no sound Parquet"), "{said}");
}

#[test]
fn files_that_are_narrower_than_their_table_are_read_as_its_types() {
    let batch = RecordBatch::try_from_iter_with_nullable([
        (
            "n",
            Arc::new(datafusion::arrow::array::Int32Array::from(vec![Some(7), None])) as ArrayRef,
            true,
        ),
        (
            "at",
            Arc::new(PrimitiveArray::<Date32Type>::from(vec![Some(19_782), Some(2_932_897)])) as ArrayRef,
            true,
        ),
    ])
    .unwrap();
    let at = DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, None);
    let columns = [
        ("more".to_owned(), DataType::Utf8),
        ("at".to_owned(), at),
        ("n".to_owned(), DataType::Decimal128(12, 2)),
    ];
    for format in [FileFormat::Parquet, FileFormat::Csv, FileFormat::Jsonl] {
        let encoding = Encoding::new(Some(format), None);
        let data = encoding.encode(&batch.schema(), std::slice::from_ref(&batch)).unwrap();
        let wanted = Wanted::new(&shape(format, &batch), &columns);
        let rows = back(&wanted, &format!("x.{}", encoding.ending()), data).unwrap();
        assert_eq!(rows[0].unreadable, 0, "{format:?}: {:?}", rows[0].first);
        let texts = |place: usize| {
            let texts = cast(rows[0].batch.column(place), &DataType::Utf8).unwrap();
            let texts: &StringArray = texts.as_any().downcast_ref().unwrap();
            texts
                .iter()
                .map(|text| text.unwrap_or("~").to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(0), ["~", "~"], "{format:?}");
        // The second is of the year 10000, whose text is no moment's.
        assert_eq!(texts(1)[0], "2024-02-29T00:00:00", "{format:?}");
        assert!(texts(1)[1].contains("10000-01-01"), "{format:?}: {:?}", texts(1));
        assert_eq!(texts(2), ["7.00", "~"], "{format:?}");
    }
}
