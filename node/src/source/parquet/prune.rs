//! Row groups that hold no row that is needed, as far as their footer tells: the smallest and largest value of each column.
//!
//! What isn't certain is read. Floats are left out, because writers leave NaN out of their bounds, and SQL sorts it above
//! all; and so are the bounds of old writers, which compared texts as they liked. A group that may hold a row without a
//! value in a required column is read, since that row has to be rejected; other faults of a row that no load needs are not
//! looked for.

use std::collections::HashSet;
use std::sync::Arc;

use ::parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use ::parquet::file::metadata::RowGroupMetaData;
use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, UInt64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column as Named, ScalarValue};
use haulage_plan::definition::Column;

use super::footer::Footer;
use crate::source::Wanted;

/// A larger row group is read in any case: its rows are counted in memory, a bit for each.
pub(super) const MOST_ROWS: u64 = 1 << 26;

/// The row groups that can be passed over, by their number. `columns` are those that are read.
pub(super) fn needless(footer: &Footer, columns: &[Column], wanted: &Wanted) -> Vec<bool> {
    let groups = Groups { footer, wanted };
    let Ok(needed) = wanted.parts(&groups) else {
        return Vec::new();
    };
    let mut needless: Vec<bool> = needed.iter().map(|needed| !needed).collect();
    for (needless, rows) in needless.iter_mut().zip(footer.rows()) {
        *needless &= rows <= MOST_ROWS;
    }
    for column in columns.iter().filter(|column| column.required) {
        let nulls = groups.nulls(&column.name);
        for (group, needless) in needless.iter_mut().enumerate() {
            let none = nulls
                .as_ref()
                .filter(|nulls| nulls.is_valid(group) && nulls.value(group) == 0);
            *needless &= none.is_some();
        }
    }
    needless
}

struct Groups<'g> {
    footer: &'g Footer,
    wanted: &'g Wanted,
}

impl Groups<'_> {
    fn converter(&self, column: &str) -> Option<StatisticsConverter<'_>> {
        let descriptor = self.footer.metadata.file_metadata().schema_descr();
        let found = StatisticsConverter::try_new(column, &self.footer.schema, descriptor).ok()?;
        found.parquet_column_index()?;
        Some(found.with_missing_null_counts_as_zero(false))
    }

    fn nulls(&self, column: &str) -> Option<UInt64Array> {
        let groups = self.footer.metadata.row_groups();
        self.converter(column)?.row_group_null_counts(groups).ok()
    }

    /// A bound of each group, in the declared type: whatever grows stays in its order when it is taken over.
    fn bound(&self, column: &Named, largest: bool) -> Option<ArrayRef> {
        let declared = self.wanted.columns().field_with_name(&column.name).ok()?.data_type();
        let converter = self.converter(&column.name)?;
        let groups = self.footer.metadata.row_groups();
        let place = converter.parquet_column_index()?;
        let old = |group: &RowGroupMetaData| {
            let found = group.column(place).statistics();
            found.is_some_and(|found| found.is_min_max_deprecated() && found.min_bytes_opt().is_some())
        };
        if is_float(declared) || is_float(converter.arrow_field().data_type()) || groups.iter().any(old) {
            return None;
        }
        let bounds = if largest {
            converter.row_group_maxes(groups)
        } else {
            converter.row_group_mins(groups)
        };
        cast(&bounds.ok()?, declared).ok()
    }
}

fn is_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_float(values),
        other => other.is_floating(),
    }
}

impl PruningStatistics for Groups<'_> {
    fn min_values(&self, column: &Named) -> Option<ArrayRef> {
        self.bound(column, false)
    }

    fn max_values(&self, column: &Named) -> Option<ArrayRef> {
        self.bound(column, true)
    }

    fn num_containers(&self) -> usize {
        self.footer.metadata.num_row_groups()
    }

    fn null_counts(&self, column: &Named) -> Option<ArrayRef> {
        Some(Arc::new(self.nulls(&column.name)?))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.footer.rows())))
    }

    fn contained(&self, _: &Named, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
