//! Questions to a destination about what is staged: SQL, and the values that are bound to it. A value never becomes SQL.

use datafusion::arrow::array::{Array as _, ArrayRef};
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::scalar::ScalarValue;

/// SQL with values for its placeholders, which databases know as `$1`, `$2` in the order of `values`.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The SQL.
    pub sql: String,
    /// The values.
    pub values: Vec<Value>,
    /// Whether decimals of `staged` are numbers, also where a database keeps them as texts: for SQL that users write.
    pub as_numbers: bool,
}

/// A value of a question.
#[derive(Debug, Clone)]
pub enum Value {
    /// A parameter of the pipeline, by its name.
    Param(String, ScalarValue),
    /// What a column may hold, in that column's type. Files know them as the table [`KEYS`] with a column `k`.
    Keys(ArrayRef),
}

/// The table of a question's [`Value::Keys`] over files.
pub(crate) const KEYS: &str = "_haulage_keys";

impl From<String> for Question {
    fn from(sql: String) -> Self {
        Self { sql, ..Self::default() }
    }
}

impl From<&str> for Question {
    fn from(sql: &str) -> Self {
        sql.to_owned().into()
    }
}

/// A value as databases read it: a time as `2013-01-31T05:00:00`, with `Z` where it is UTC. `None` is no value.
pub(super) fn written(value: &ScalarValue) -> Option<String> {
    if value.is_null() {
        return None;
    }
    array_value_to_string(&value.to_array().ok()?, 0).ok()
}

/// Values likewise.
pub(super) fn texts(values: &ArrayRef) -> Vec<Option<String>> {
    let text = |at| match values.is_null(at) {
        true => None,
        false => array_value_to_string(values, at).ok(),
    };
    (0..values.len()).map(text).collect()
}
