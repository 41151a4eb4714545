//! What a column may hold according to a lookup: the values of the lookup's column, in the type of the column that refers to it.
//!
//! A lookup is in a node's memory for joins anyway. Its values go to the destination with the question, bound, and the rows
//! stay where they are: so the same condition counts the rows that fail, shows some of them, and sets them aside.

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::kernels::cmp::eq;
use datafusion::arrow::compute::{cast, concat, filter, is_not_null};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use haulage_core::failure::Failure;

use super::questions::Asker;

/// As which number a text is read before it is one of fewer digits.
const WIDE: DataType = DataType::Decimal128(38, 10);

/// The values of column `to` of a lookup, as `column` of the load has them. A value that is none of that type is left out,
/// since no row can have it; so is NULL.
pub(super) async fn of(asker: &Asker<'_>, lookup: &str, to: &str, column: &str) -> Result<ArrayRef, Failure> {
    let lookups = asker.context.lookups().await?;
    let rows = lookups.get(lookup).map(Vec::as_slice).unwrap_or_default();
    let kind = asker.type_of(column).cloned().unwrap_or(DataType::Utf8);
    values(rows, to, &kind).map_err(|error| Failure::permanent(format!("column {to} of lookup {lookup}: {error}")))
}

fn values(rows: &[RecordBatch], to: &str, kind: &DataType) -> Result<ArrayRef, ArrowError> {
    let mut parts = vec![datafusion::arrow::array::new_empty_array(kind)];
    for batch in rows {
        let Some(there) = batch.column_by_name(to) else {
            return Err(ArrowError::SchemaError("it isn't there".to_owned()));
        };
        parts.push(as_kind(there, kind)?);
    }
    let parts: Vec<&dyn datafusion::arrow::array::Array> = parts.iter().map(AsRef::as_ref).collect();
    concat(&parts)
}

/// Only what is the same value in both types: a number with more digits than the column has is none of its values.
fn as_kind(there: &ArrayRef, kind: &DataType) -> Result<ArrayRef, ArrowError> {
    let is_text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let there = match (is_text(there.data_type()), kind) {
        (true, DataType::Decimal128(..)) => cast(there, &WIDE)?,
        _ => there.clone(),
    };
    let here = cast(&there, kind)?;
    let keep = match is_text(there.data_type()) || is_text(kind) {
        true => is_not_null(&here)?,
        false => eq(&cast(&here, there.data_type())?, &there)?,
    };
    filter(&here, &keep)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray};
    use datafusion::arrow::util::display::array_value_to_string;

    use super::*;

    #[test]
    fn values_are_those_of_the_column() {
        let check = |there: ArrayRef, kind: DataType, expected: &[&str]| {
            let batch = RecordBatch::try_from_iter_with_nullable([("k", there, true)]).unwrap();
            let found = values(&[batch.clone(), batch.slice(0, 0)], "k", &kind).unwrap();
            let texts: Vec<String> = (0..found.len())
                .map(|at| array_value_to_string(&found, at).unwrap())
                .collect();
            assert_eq!(texts, expected, "{kind}");
        };
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(5_000_000_000)]));
        check(numbers.clone(), DataType::Utf8, &["1", "5000000000"]);
        check(numbers, DataType::Int32, &["1"]);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![
            Some("1"),
            Some("x"),
            None,
            Some("2.505"),
            Some(""),
        ]));
        check(texts.clone(), DataType::Int32, &["1"]);
        check(texts.clone(), DataType::Decimal128(10, 2), &["1.00"]);
        check(texts, DataType::Utf8, &["1", "x", "2.505", ""]);
        let exact = Decimal128Array::from(vec![Some(10_5000), Some(10_5049), None]);
        let exact: ArrayRef = Arc::new(exact.with_precision_and_scale(12, 4).unwrap());
        check(exact, DataType::Decimal128(10, 2), &["10.50"]);
        check(Arc::new(Float64Array::from(vec![1.0, 1.5])), DataType::Int64, &["1"]);
        let days: ArrayRef = Arc::new(Date32Array::from(vec![Some(0), None]));
        check(days.clone(), DataType::Date32, &["1970-01-01"]);
        check(days, DataType::Utf8, &["1970-01-01"]);
        check(
            Arc::new(StringArray::from(vec!["1970-01-02", "soon"])),
            DataType::Date32,
            &["1970-01-02"],
        );
        assert!(
            values(
                &[RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap()],
                "j",
                &DataType::Int64
            )
            .is_err()
        );
        assert_eq!(values(&[], "k", &DataType::Int64).unwrap().len(), 0);
    }
}
