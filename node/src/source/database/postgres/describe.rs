//! What a table says of its columns beyond their types: which of them take no NULL, and how many digits a `numeric` has.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;

use super::server::Server;

/// Digits of the largest decimal here.
const DIGITS: u8 = 38;

/// Columns of a plain or partitioned table by name: whether each takes no NULL, and its type with its digits.
const COLUMNS: &str = "SELECT attname::text, attnotnull, format_type(atttypid, atttypmod) FROM pg_attribute
    JOIN pg_class c ON c.oid = attrelid
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND c.relkind IN ('r', 'p')";

/// Makes columns required that always have a value, and decimals of those that are text for want of digits.
pub(super) async fn describe(server: &Server, table: &str, columns: &mut [Column]) -> Result<(), Failure> {
    let mut lease = server.connect().await?;
    let asking = sqlx::query_as::<_, (String, bool, String)>(COLUMNS);
    let asking = asking.bind(table).fetch_all(lease.connection());
    for (name, required, data_type) in server.soon("looking at its columns", asking).await? {
        let Some(column) = columns.iter_mut().find(|column| column.name == name) else {
            continue;
        };
        column.required = required;
        if let (DataType::Utf8, Some(decimal)) = (&column.data_type, decimal(&data_type)) {
            column.data_type = decimal;
        }
    }
    Ok(())
}

/// `numeric(10,2)`, as far as there is such a decimal here.
fn decimal(data_type: &str) -> Option<DataType> {
    let (precision, scale) = data_type.strip_prefix("numeric(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale) = (precision.parse::<u8>().ok()?, scale.parse::<i8>().ok()?);
    let fits = (1..=DIGITS).contains(&precision) && u8::try_from(scale).is_ok_and(|scale| scale <= precision);
    fits.then_some(DataType::Decimal128(precision, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_far_as_they_fit() {
        for (text, expected) in [
            ("numeric(10,2)", Some(DataType::Decimal128(10, 2))),
            ("numeric(38,38)", Some(DataType::Decimal128(38, 38))),
            ("numeric(39,0)", None),
            ("numeric(3,5)", None),
            ("numeric(10,-2)", None),
            ("numeric", None),
            ("numeric(10,2)[]", None),
            ("text", None),
        ] {
            assert_eq!(decimal(text), expected, "{text}");
        }
    }
}
