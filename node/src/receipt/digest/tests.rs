//! Checksums as properties: what must not change them, and what always must.

use std::sync::Arc;

use datafusion::arrow::array::{
    BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array, Int64Array, StringArray,
    StringViewArray, TimestampMicrosecondArray, TimestampNanosecondArray, UInt64Array,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

type TestRow = (Option<i64>, Option<String>, Option<String>, Option<f64>);

fn batch(rows: &[TestRow]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([
        (
            "n",
            Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()) as ArrayRef,
            true,
        ),
        (
            "a",
            Arc::new(rows.iter().map(|row| row.1.as_deref()).collect::<StringArray>()) as ArrayRef,
            true,
        ),
        (
            "b",
            Arc::new(rows.iter().map(|row| row.2.as_deref()).collect::<StringArray>()) as ArrayRef,
            true,
        ),
        (
            "f",
            Arc::new(rows.iter().map(|row| row.3).collect::<Float64Array>()) as ArrayRef,
            true,
        ),
    ])
    .unwrap()
}

fn of(rows: &[TestRow]) -> Checksum {
    let mut digest = Digest::default();
    digest.add(&batch(rows)).unwrap();
    digest.finish()
}

fn row() -> impl Strategy<Value = TestRow> {
    (
        option::of(-3_i64..3),
        option::of("[ab]{0,2}"),
        option::of("[ab]{0,2}"),
        option::of(prop_oneof![Just(0.0), Just(-0.0), Just(f64::NAN), -2.0..2.0]),
    )
}

/// Rows that can be compared: one NaN, one zero.
fn sorted(rows: &[TestRow]) -> Vec<String> {
    let mut texts: Vec<String> = rows
        .iter()
        .map(|(n, a, b, f)| format!("{:?}", (n, a, b, f.map(|f| if f == 0.0 { 0.0 } else { f }))))
        .collect();
    texts.sort();
    texts
}

proptest! {
    #[test]
    fn neither_order_nor_cuts_matter(rows in vec(row(), 0..30), cut in 0_usize..30, turn in 0_usize..30) {
        let mut turned = rows.clone();
        turned.rotate_left(turn % rows.len().max(1));
        turned.reverse();
        prop_assert_eq!(of(&rows), of(&turned));

        let (first, second) = rows.split_at(cut.min(rows.len()));
        let mut merged = of(first);
        merged += &of(second);
        prop_assert_eq!(&merged, &of(&rows));
        let mut batches = Digest::default();
        batches.add(&batch(first)).unwrap();
        batches.add(&batch(second)).unwrap();
        prop_assert_eq!(batches.finish(), merged);
    }

    /// Two lists of rows come to the same sum only if they are the same rows.
    #[test]
    fn other_rows_are_another_sum(rows in vec(row(), 0..6), others in vec(row(), 0..6)) {
        prop_assert_eq!(sorted(&rows) == sorted(&others), of(&rows).sum == of(&others).sum);
    }

    #[test]
    fn one_changed_value_changes_its_column_alone(rows in vec(row(), 1..20), at in any::<prop::sample::Index>()) {
        let at = at.index(rows.len());
        let mut changed = rows.clone();
        changed[at].1 = Some("zzz".into());
        let (before, after) = (of(&rows), of(&changed));
        prop_assert_ne!(before.sum, after.sum);
        prop_assert_eq!(before.columns_that_differ(&after), ["a"]);
    }

    #[test]
    fn a_row_twice_or_not_at_all_is_seen(rows in vec(row(), 1..20), at in any::<prop::sample::Index>()) {
        let at = at.index(rows.len());
        let mut twice = rows.clone();
        twice.push(rows[at].clone());
        let mut thrice = twice.clone();
        thrice.push(rows[at].clone());
        // A pair cancels out of an XOR.
        prop_assert_ne!(of(&rows).sum, of(&thrice).sum);
        prop_assert_ne!(of(&rows).sum, of(&twice).sum);
        twice.swap_remove(at);
        prop_assert_eq!(of(&rows), of(&twice));
    }

    #[test]
    fn values_that_change_places_between_rows_change_only_the_sum_of_rows(mut rows in vec(row(), 2..10)) {
        rows[0].0 = Some(100);
        rows[1].0 = Some(200);
        rows[0].1 = Some("x".into());
        rows[1].1 = Some("y".into());
        let before = of(&rows);
        (rows[0].1, rows[1].1) = (rows[1].1.take(), rows[0].1.take());
        let after = of(&rows);
        prop_assert_ne!(before.sum, after.sum);
        prop_assert!(before.columns_that_differ(&after).is_empty());
    }

    #[test]
    fn values_that_change_columns_are_seen(mut rows in vec(row(), 1..10)) {
        rows[0].1 = Some("x".into());
        rows[0].2 = Some("y".into());
        let before = of(&rows);
        (rows[0].1, rows[0].2) = (rows[0].2.take(), rows[0].1.take());
        let after = of(&rows);
        prop_assert_eq!(before.columns_that_differ(&after), ["a", "b"]);
    }
}

fn one(array: ArrayRef) -> u64 {
    let mut digest = Digest::default();
    digest
        .add(&RecordBatch::try_from_iter_with_nullable([("c", array, true)]).unwrap())
        .unwrap();
    digest.finish().columns["c"]
}

/// Columns with one value each, and whether the values mean the same.
fn check(same: bool, arrays: Vec<ArrayRef>) {
    let sums: Vec<u64> = arrays.into_iter().map(one).collect();
    for (place, sum) in sums.iter().enumerate() {
        for other in &sums[place + 1..] {
            assert_eq!(sum == other, same, "{sums:x?}");
        }
    }
}

#[test]
fn what_means_the_same_is_the_same_however_it_is_held() {
    let decimal = |digits, scale| -> ArrayRef {
        let array = Decimal128Array::from(vec![digits]);
        Arc::new(array.with_precision_and_scale(38, scale).unwrap())
    };
    check(
        true,
        vec![
            Arc::new(Int16Array::from(vec![12])),
            Arc::new(Int64Array::from(vec![12])),
            Arc::new(UInt64Array::from(vec![12])),
            decimal(12, 0),
            decimal(1200, 2),
        ],
    );
    check(true, vec![decimal(125, 2), decimal(12500, 4)]);
    check(
        true,
        vec![Arc::new(UInt64Array::from(vec![u64::MAX])), decimal(u64::MAX.into(), 0)],
    );
    check(
        true,
        vec![
            Arc::new(Float64Array::from(vec![0.0])),
            Arc::new(Float64Array::from(vec![-0.0])),
            Arc::new(Float32Array::from(vec![-0.0])),
        ],
    );
    check(
        true,
        vec![
            Arc::new(Float64Array::from(vec![f64::NAN])),
            Arc::new(Float64Array::from(vec![-f64::NAN])),
            Arc::new(Float32Array::from(vec![f32::NAN])),
        ],
    );
    check(
        true,
        vec![
            Arc::new(StringArray::from(vec!["ü"])),
            Arc::new(StringViewArray::from(vec!["ü"])),
        ],
    );
    let micros = TimestampMicrosecondArray::from(vec![-1_500_000]);
    check(
        true,
        vec![
            Arc::new(micros.clone()),
            Arc::new(micros.clone().with_timezone("UTC")),
            Arc::new(micros.with_timezone("+02:00")),
            Arc::new(TimestampNanosecondArray::from(vec![-1_500_000_999])),
        ],
    );
    check(
        true,
        vec![
            Arc::new(Int64Array::from(vec![None::<i64>])),
            Arc::new(StringArray::from(vec![None::<&str>])),
            Arc::new(datafusion::arrow::array::NullArray::new(1)),
        ],
    );
}

#[test]
fn what_means_something_else_is_something_else() {
    check(
        false,
        vec![
            Arc::new(StringArray::from(vec![None::<&str>])),
            Arc::new(StringArray::from(vec![""])),
            Arc::new(StringArray::from(vec!["1"])),
            Arc::new(Int64Array::from(vec![1])),
            Arc::new(Int64Array::from(vec![-1])),
            Arc::new(Float64Array::from(vec![1.0])),
            Arc::new(BooleanArray::from(vec![true])),
            Arc::new(Date32Array::from(vec![1])),
            Arc::new(TimestampMicrosecondArray::from(vec![1])),
        ],
    );
}

/// The numbers were computed by another implementation of XXH64, from what the module says.
#[test]
fn sums_stay_what_they_are_in_ledgers() {
    let sum = of(&[
        (Some(1), Some("a".into()), None, Some(0.5)),
        (Some(-7), None, Some("ü".into()), None),
    ]);
    assert_eq!(sum.text(), "00000000000000010883de8c8b3b3a7f");
    assert_eq!(format!("{:016x}", sum.columns["a"]), "146b4d1b53f43dd7");
}
