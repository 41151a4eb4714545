//! Every type there and back: nulls, extremes, what is not a number, dates before 1970, text in other scripts.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, LargeStringArray, NullArray, RecordBatch, StringArray, Time64MicrosecondArray,
    TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array, UInt16Array, UInt32Array,
    UInt64Array,
};
use datafusion::arrow::datatypes::{Field, Schema};
use haulage_core::ids::Attempt;
use haulage_node::sink::{Expected, LoadContext, Refused};
use haulage_plan::definition::Mode;

use super::load::{CHUNK, load, marker};
use super::world::World;

crate::on_all!(
    every_type_keeps_its_values,
    a_value_that_does_not_fit_is_named,
    a_column_that_would_change_a_value_is_refused,
    wider_and_narrower_columns
);

/// A column of two values and a NULL, and what PostgreSQL and SQLite show of the values.
struct Case {
    array: ArrayRef,
    postgres: [&'static str; 2],
    sqlite: [&'static str; 2],
}

fn case(array: impl datafusion::arrow::array::Array + 'static, postgres: [&'static str; 2]) -> Case {
    Case {
        array: Arc::new(array),
        postgres,
        sqlite: postgres,
    }
}

impl Case {
    fn sqlite(self, sqlite: [&'static str; 2]) -> Self {
        Self { sqlite, ..self }
    }
}

fn cases() -> Vec<Case> {
    let minutes = 60_000_000i64;
    vec![
        case(
            BooleanArray::from(vec![Some(true), Some(false), None]),
            ["true", "false"],
        )
        .sqlite(["1", "0"]),
        case(
            Int8Array::from(vec![Some(i8::MIN), Some(i8::MAX), None]),
            ["-128", "127"],
        ),
        case(
            Int16Array::from(vec![Some(i16::MIN), Some(i16::MAX), None]),
            ["-32768", "32767"],
        ),
        case(
            Int32Array::from(vec![Some(i32::MIN), Some(i32::MAX), None]),
            ["-2147483648", "2147483647"],
        ),
        case(
            Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None]),
            ["-9223372036854775808", "9223372036854775807"],
        ),
        case(UInt8Array::from(vec![Some(0), Some(u8::MAX), None]), ["0", "255"]),
        case(UInt16Array::from(vec![Some(0), Some(u16::MAX), None]), ["0", "65535"]),
        case(
            UInt32Array::from(vec![Some(0), Some(u32::MAX), None]),
            ["0", "4294967295"],
        ),
        case(
            UInt64Array::from(vec![Some(0), Some(i64::MAX as u64), None]),
            ["0", "9223372036854775807"],
        ),
        case(
            Float32Array::from(vec![Some(-0.5), Some(f32::INFINITY), None]),
            ["-0.5", "Infinity"],
        )
        .sqlite(["-0.5", "Inf"]),
        case(
            Float64Array::from(vec![Some(f64::NAN), Some(-1.25e-300), None]),
            ["NaN", "-1.25e-300"],
        ),
        case(
            StringArray::from(vec![Some(""), Some("Zoë 東京 🚚 '\\\"\t\n"), None]),
            ["", "Zoë 東京 🚚 '\\\"\t\n"],
        ),
        case(
            LargeStringArray::from(vec![Some("NULL"), Some("\\N"), None]),
            ["NULL", "\\N"],
        ),
        case(
            Date32Array::from(vec![Some(-25_509), Some(15_706), None]),
            ["1900-02-28", "2013-01-01"],
        ),
        case(
            TimestampMicrosecondArray::from(vec![Some(-1), Some(946_684_800_500_000), None]),
            ["1969-12-31 23:59:59.999999", "2000-01-01 00:00:00.5"],
        )
        .sqlite(["1969-12-31 23:59:59.999999", "2000-01-01 00:00:00.500"]),
        case(
            TimestampSecondArray::from(vec![Some(-86_400), Some(1_357_034_400), None]).with_timezone("+05:00"),
            ["1969-12-31 00:00:00+00", "2013-01-01 10:00:00+00"],
        )
        .sqlite(["1969-12-31 00:00:00+00:00", "2013-01-01 10:00:00+00:00"]),
        case(
            TimestampNanosecondArray::from(vec![Some(1_999), Some(0), None]),
            ["1970-01-01 00:00:00.000001", "1970-01-01 00:00:00"],
        ),
        case(
            Time64MicrosecondArray::from(vec![Some(0), Some(90 * minutes), None]),
            ["00:00:00", "01:30:00"],
        ),
        case(
            Decimal128Array::from(vec![Some(-12_345), Some(10), None])
                .with_precision_and_scale(7, 2)
                .expect("a decimal"),
            ["-123.45", "0.10"],
        ),
        case(
            Decimal128Array::from(vec![Some(10i128.pow(38) - 1), Some(-1), None])
                .with_precision_and_scale(38, 10)
                .expect("a decimal"),
            ["9999999999999999999999999999.9999999999", "-0.0000000001"],
        ),
        case(
            BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None]),
            ["\\x00ff", "\\x"],
        )
        .sqlite(["\\x00ff", "\\x"]),
    ]
}

async fn every_type_keeps_its_values(world: &World) {
    let cases = cases();
    let mut fields: Vec<Field> = cases
        .iter()
        .enumerate()
        .map(|(n, case)| Field::new(format!("c{n}"), case.array.data_type().clone(), true))
        .collect();
    let mut arrays: Vec<ArrayRef> = cases.iter().map(|case| case.array.clone()).collect();
    fields.push(Field::new(
        "nothing",
        datafusion::arrow::datatypes::DataType::Null,
        true,
    ));
    arrays.push(Arc::new(NullArray::new(3)));
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), arrays).expect("a batch");
    for (run, mode) in [("a", Mode::Replace), ("b", Mode::Append)] {
        let load = LoadContext {
            schema: schema.clone(),
            table: format!("t{run}"),
            ..load(run, mode, &[])
        };
        publish(world, &load, &batch).await;
        for (n, case) in cases.iter().enumerate() {
            let (shown, expected) = if world.is_postgres() {
                (format!("c{n}::text"), case.postgres)
            } else {
                (
                    format!("CASE typeof(c{n}) WHEN 'blob' THEN '\\x' || lower(hex(c{n})) ELSE CAST(c{n} AS TEXT) END"),
                    case.sqlite,
                )
            };
            let sql = format!("SELECT coalesce({shown}, '~null~') FROM {}", load.table);
            let mut expected = vec![expected[0], expected[1], "~null~"];
            expected.sort_unstable();
            let found = world.texts(&sql).await.expect("a table");
            assert_eq!(found, expected, "{:?} as {mode:?}", case.array.data_type());
        }
    }
}

async fn publish(world: &World, load: &LoadContext, batch: &RecordBatch) {
    world.destination.prepare(load).await.expect("prepared");
    world.destination.begin(load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = world
        .destination
        .segment(load, CHUNK, Attempt(1))
        .await
        .expect("a writer");
    writer.write(batch).await.expect("written");
    let committed = writer.commit(marker(CHUNK, 0, Attempt(1))).await.expect("committed");
    let expected = Expected {
        rows: committed.marker.rows,
        segments: 1,
    };
    world.destination.verify(load, expected).await.expect("verified");
    world.destination.publish(load, expected).await.expect("published");
    world.destination.cleanup(load).await.expect("its run is over");
}

async fn a_value_that_does_not_fit_is_named(world: &World) {
    let array: ArrayRef = Arc::new(UInt64Array::from(vec![1, u64::MAX]));
    let schema = Arc::new(Schema::new(vec![Field::new("n", array.data_type().clone(), false)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).expect("a batch");
    let load = LoadContext {
        schema,
        ..load("a", Mode::Replace, &[])
    };
    // PostgreSQL makes a numeric(20,0) for it, so give it a bigint.
    world.run("CREATE TABLE things (n bigint)").await;
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let mut writer = world
        .destination
        .segment(&load, CHUNK, Attempt(1))
        .await
        .expect("a writer");
    let failure = match writer.write(&batch).await {
        Ok(()) => writer
            .commit(marker(CHUNK, 0, Attempt(1)))
            .await
            .expect_err("it is too large"),
        Err(failure) => failure,
    };
    let Refused::Row(bad) = failure else {
        panic!("no row is named: {failure}");
    };
    assert_eq!((bad.at, bad.column.as_deref()), (1, Some("n")), "{bad}");
    assert!(bad.why.contains("18446744073709551615"), "{bad}");
}

/// What PostgreSQL would round or cut without a word.
async fn a_column_that_would_change_a_value_is_refused(world: &World) {
    if !world.is_postgres() {
        return;
    }
    let of = |run: &str, columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).expect("a batch");
        let load = LoadContext {
            schema: batch.schema(),
            ..load(run, Mode::Append, &[])
        };
        (load, batch)
    };
    world
        .run("CREATE TABLE things (n numeric(5,-1), at timestamp(0), v varchar(3), _haulage_run text)")
        .await;
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let moments: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 500_000]));
    let (load, _) = of("a", vec![("n", numbers), ("at", moments)]);
    let found = world.destination.inspect(&load).await.expect("it is there");
    let [number, moment] = &found.misfits[..] else {
        panic!("{:?}", found.misfits);
    };
    assert!(
        number.contains("column n is bigint") && number.contains("numeric(5,-1)"),
        "{number}"
    );
    assert!(
        moment.contains("column at is timestamp") && moment.contains("timestamp(0)"),
        "{moment}"
    );
    // Whole seconds are kept, and so is what is no longer than it may be.
    let seconds: ArrayRef = Arc::new(TimestampSecondArray::from(vec![0, 1]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["ab ", "äbc"]));
    let (load, batch) = of("b", vec![("at", seconds.clone()), ("v", texts)]);
    publish(world, &load, &batch).await;
    let kept = world.texts("SELECT at::text || v FROM things").await.expect("a table");
    assert_eq!(kept, ["1970-01-01 00:00:00ab ", "1970-01-01 00:00:01äbc"]);
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["abc", "abc "]));
    let (load, batch) = of("c", vec![("at", seconds), ("v", texts)]);
    world.destination.prepare(&load).await.expect("prepared");
    world.destination.begin(&load, CHUNK, Attempt(1)).await.expect("begun");
    let writer = world.destination.segment(&load, CHUNK, Attempt(1)).await;
    let refused = writer
        .expect("a writer")
        .write(&batch)
        .await
        .expect_err("its blank would go");
    let Refused::Row(bad) = refused else {
        panic!("no row is named: {refused}");
    };
    assert_eq!((bad.at, bad.column.as_deref()), (1, Some("v")), "{bad}");
}

async fn wider_and_narrower_columns(world: &World) {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![7])),
        Arc::new(Int64Array::from(vec![8])),
        Arc::new(Float32Array::from(vec![0.5])),
        Arc::new(StringArray::from(vec!["{\"a\": 1}"])),
        Arc::new(Date32Array::from(vec![0])),
    ];
    let fields: Vec<Field> = arrays
        .iter()
        .enumerate()
        .map(|(n, array)| Field::new(format!("c{n}"), array.data_type().clone(), true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), arrays).expect("a batch");
    let types = if world.is_postgres() {
        "c0 bigint, c1 smallint, c2 double precision, c3 jsonb, c4 timestamp"
    } else {
        "c0 BIGINT, c1 SMALLINT, c2 DOUBLE, c3 VARCHAR(20), c4 DATETIME"
    };
    world.run(&format!("CREATE TABLE things ({types})")).await;
    for (run, mode) in [("a", Mode::Replace), ("b", Mode::Replace)] {
        publish(
            world,
            &LoadContext {
                schema: schema.clone(),
                ..load(run, mode, &[])
            },
            &batch,
        )
        .await;
        let shown = world
            .texts("SELECT CAST(c0 AS TEXT) || ' ' || CAST(c1 AS TEXT) || ' ' || CAST(c2 AS TEXT) || ' ' || CAST(c3 AS TEXT) FROM things")
            .await
            .expect("a table");
        assert_eq!(shown, ["7 8 0.5 {\"a\": 1}"]);
    }
}
