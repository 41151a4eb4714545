//! Columns whose values stand in the names of an object's folders, as Hive has them: `day=2024-01-31/region=north/a.parquet`.
//! What a folder's name may not have is `%`-escaped there, and no value is `__HIVE_DEFAULT_PARTITION__`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::scalar::ScalarValue;
use haulage_core::failure::Failure;
use haulage_plan::definition::Column;
use haulage_plan::types;
use percent_encoding::percent_decode_str;

use super::{EXCERPT, Segment, SegmentReader, Wanted, excerpt, schema};

/// What stands for no value.
pub(crate) const NO_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// The columns that a source takes from folders.
#[derive(Debug, Clone, Default)]
pub(super) struct Folders {
    columns: Vec<Column>,
}

/// What the name of a folder says about a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// That there is no value.
    Nothing,
    Text(String),
    /// Bytes that are no UTF-8, as they are escaped there.
    Bytes(String),
}

/// What the names of an object's folders say, by column; of two with one name the innermost, as other readers do. A name that
/// is no UTF-8 is no column's.
pub(super) fn said(address: &str) -> BTreeMap<String, Said> {
    let (folders, _) = address.rsplit_once('/').unwrap_or_default();
    let text = |text| percent_decode_str(text).decode_utf8().ok();
    let pairs = folders.split('/').filter_map(|folder| folder.split_once('='));
    pairs
        .filter_map(|(name, value)| {
            let said = match text(value) {
                _ if value == NO_VALUE => Said::Nothing,
                Some(text) => Said::Text(text.into_owned()),
                None => Said::Bytes(value.to_owned()),
            };
            Some((text(name)?.into_owned(), said))
        })
        .collect()
}

/// The values that the folders of a file of our own name, in which every text is UTF-8. A byte that others have put there is
/// U+FFFD, which is no value of its row.
pub(crate) fn of_path(address: &str) -> BTreeMap<String, Option<String>> {
    let value = |said| match said {
        Said::Nothing => None,
        Said::Text(text) => Some(text),
        Said::Bytes(escaped) => Some(percent_decode_str(&escaped).decode_utf8_lossy().into_owned()),
    };
    let said = said(address).into_iter();
    said.map(|(name, said)| (name, value(said))).collect()
}

impl Folders {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
        }
    }

    /// These columns and, behind them, its own.
    pub(super) fn with(&self, columns: &[Column]) -> Vec<Column> {
        columns.iter().chain(&self.columns).cloned().collect()
    }

    /// The columns that are none of its own.
    pub(super) fn without(&self, columns: &[Column]) -> Vec<Column> {
        let others = columns.iter().filter(|column| !self.has(&column.name));
        others.cloned().collect()
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name == name)
    }

    /// Permanent failure if what is at `path` has one of the columns, too.
    pub(super) fn check<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        path: &str,
        is_declared: bool,
    ) -> Result<(), Failure> {
        match self.clash(names, is_declared) {
            None => Ok(()),
            Some(clash) => Err(Failure::permanent(format!("{path} {clash}"))),
        }
    }

    /// What to say, behind its path, of a file that has one of the columns, too, and whose own the source declares or not.
    pub(super) fn clash<'n>(&self, mut names: impl Iterator<Item = &'n str>, is_declared: bool) -> Option<String> {
        let name = excerpt(names.find(|name| self.has(name))?.as_bytes(), EXCERPT);
        let other = match is_declared {
            true => "write `on_new_column: ignore` for the source, to have it from the folders alone",
            false => "declare the `columns` of the files without it",
        };
        Some(format!(
            "has the column \"{name}\", which `partitions` takes from the folders; leave {name} out of `partitions`, or {other}"
        ))
    }

    /// The values of an object's rows. Permanent failure naming the object if a folder is missing or says no such value.
    pub(super) fn values(&self, address: &str) -> Result<Vec<ScalarValue>, Failure> {
        let named = match self.columns.is_empty() {
            true => BTreeMap::new(),
            false => said(address),
        };
        let value = |column: &Column| {
            let name = excerpt(column.name.as_bytes(), EXCERPT);
            let wrong = |what: String| Failure::permanent(format!("{address}: {what}"));
            let text = match named.get(&column.name) {
                None => {
                    return Err(wrong(format!(
                        "it is in no folder `{name}=...`, which `partitions` names; narrow the source's path, or leave {name} \
                         out"
                    )));
                }
                Some(Said::Nothing) if column.required => {
                    return Err(wrong(format!(
                        "its folder has no value for {name}, which is declared with a `!`"
                    )));
                }
                Some(Said::Nothing) => {
                    return ScalarValue::try_from(&column.data_type).map_err(|error| wrong(error.to_string()));
                }
                Some(Said::Bytes(escaped)) => {
                    return Err(wrong(format!(
                        "its folder says \"{}\" for {name}, which is no UTF-8; rename the folder, narrow the source's path, or \
                         leave {name} out of `partitions`",
                        excerpt(escaped.as_bytes(), EXCERPT)
                    )));
                }
                Some(Said::Text(text)) => text,
            };
            types::value(&column.data_type, text).map_err(|help| {
                wrong(format!(
                    "its folder says \"{}\" for {name}, which is no {}: {help}; or declare it as another type",
                    excerpt(text.as_bytes(), EXCERPT),
                    types::name(&column.data_type)
                ))
            })
        };
        self.columns.iter().map(value).collect()
    }

    /// The reader of an object with these columns, with its own behind them.
    pub(super) fn reader(
        &self,
        inner: Box<dyn SegmentReader>,
        columns: &[Column],
        address: &str,
    ) -> Result<Box<dyn SegmentReader>, Failure> {
        if self.columns.is_empty() {
            return Ok(inner);
        }
        Ok(Box::new(InFolders {
            inner,
            schema: schema(&self.with(columns)),
            values: self.values(address)?,
        }))
    }
}

/// A batch with values behind its own columns, before the row column. Permanent failure if they don't fit.
pub(super) fn beside(batch: &RecordBatch, values: &[ScalarValue], schema: &SchemaRef) -> Result<RecordBatch, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::permanent(format!("a batch can't be made: {error}"));
    let mut arrays = batch.columns().to_vec();
    let row = arrays.pop();
    for value in values {
        let array = value.to_array_of_size(batch.num_rows());
        arrays.push(array.map_err(|error| wrong(&error))?);
    }
    arrays.extend(row);
    RecordBatch::try_new(Arc::clone(schema), arrays).map_err(|error| wrong(&error))
}

struct InFolders {
    inner: Box<dyn SegmentReader>,
    schema: SchemaRef,
    values: Vec<ScalarValue>,
}

#[async_trait]
impl SegmentReader for InFolders {
    fn only(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        self.inner.only(wanted)
    }

    fn passed_over(&self) -> u64 {
        self.inner.passed_over()
    }

    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        let Some(mut segment) = self.inner.next().await? else {
            return Ok(None);
        };
        for batch in &mut segment.batches {
            *batch = beside(batch, &self.values, &self.schema)?;
        }
        Ok(Some(segment))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::DataType;

    use super::*;
    use crate::source::testing::{column, required};

    #[test]
    fn folders_are_read_as_they_are_written() {
        let address = "s3://b/x=1/the region=north%2Feast/x=2/day=__HIVE_DEFAULT_PARTITION__/a=b.csv";
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            ("x".to_owned(), text("2")),
            ("the region".to_owned(), text("north/east")),
            ("day".to_owned(), None),
        ];
        assert_eq!(of_path(address), BTreeMap::from(expected));
        let folders = Folders::new(&[
            column("x", DataType::Int32),
            column("the region", DataType::Utf8),
            column("day", DataType::Date32),
        ]);
        assert_eq!(
            folders.values(address).unwrap(),
            [
                ScalarValue::Int32(Some(2)),
                ScalarValue::from("north/east"),
                ScalarValue::Date32(None)
            ]
        );
        let bytes = "b/reg=%FF/%FE=1/day=%C3%A9/a.csv";
        let expected = [
            ("day".to_owned(), Said::Text("é".to_owned())),
            ("reg".to_owned(), Said::Bytes("%FF".to_owned())),
        ];
        assert_eq!(said(bytes), BTreeMap::from(expected));
        let failure = Folders::new(&[column("reg", DataType::Utf8)])
            .values(bytes)
            .unwrap_err();
        let told = "b/reg=%FF/%FE=1/day=%C3%A9/a.csv: its folder says \"%FF\" for reg, which is no UTF-8; rename";
        assert!(failure.message.contains(told), "{}", failure.message);
        for (wrong, part) in [
            (required("day", DataType::Date32), "no value for day"),
            (column("a", DataType::Utf8), "in no folder `a=...`"),
            (
                column("the region", DataType::Int64),
                "says \"north/east\" for the region, which is no bigint",
            ),
        ] {
            let failure = Folders::new(&[wrong]).values(address).unwrap_err();
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }
}
