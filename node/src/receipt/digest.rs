//! The checksum over rows: what each value, row and column comes to.
//!
//! A value is hashed by XXH64 under a seed made from its column's name and its kind, so that equal values of two columns
//! differ, and no value of one kind passes for one of another: no value (NULL) is none of them, nor is it the empty text.
//! The hashes of a row's values are summed and the sum hashed again: that keeps together what belongs to one row. The
//! [`Checksum`] is the sum over all rows, and beside it over each column's values.
//!
//! Values are hashed as what they mean, and not as how they are held:
//!
//! | values | hashed |
//! |---|---|
//! | whole numbers of any width | 8 bytes, little-endian |
//! | decimals | a whole number as one; else digits and scale, without zeros at the end |
//! | floating point | the 8 bytes of a double; one NaN, one zero |
//! | text | its bytes in UTF-8 |
//! | dates | days since 1970 |
//! | timestamps | microseconds since 1970, in UTC if they have a zone; further digits are cut |
//! | times | microseconds |
//!
//! This never changes: sums stand in ledgers.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use haulage_core::checksum::Checksum;
use haulage_core::failure::Failure;
use twox_hash::XxHash64;

/// What a value is; part of the seed.
#[derive(Clone, Copy)]
enum Kind {
    Null = 0,
    Whole = 1,
    Decimal = 2,
    Float = 3,
    Text = 4,
    Bool = 5,
    Date = 6,
    Timestamp = 7,
    Time = 8,
    Bytes = 9,
}

/// Under which rows are hashed.
const ROW: u64 = 0x726f_7773;

/// Sums up batches of the same columns, in any order.
#[derive(Debug, Default)]
pub struct Digest {
    names: Vec<String>,
    /// One for each column.
    sums: Vec<u64>,
    rows: u64,
    sum: u128,
    /// The rows of the last batch: what each comes to.
    last: Vec<u64>,
}

impl Digest {
    /// Adds the rows of a batch. Permanent failure if a column's type has no place here, as it has none in a destination.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        if self.names.len() != batch.num_columns() {
            let fields = batch.schema_ref().fields().iter();
            self.names = fields.map(|field| field.name().clone()).collect();
            self.sums = vec![0; self.names.len()];
        }
        self.last.clear();
        self.last.resize(batch.num_rows(), 0);
        for ((name, sum), array) in self.names.iter().zip(&mut self.sums).zip(batch.columns()) {
            let mut column = Column {
                name,
                sum: 0,
                rows: &mut self.last,
            };
            column.add(array)?;
            *sum = sum.wrapping_add(column.sum);
        }
        for row in &mut self.last {
            *row = XxHash64::oneshot(ROW, &row.to_le_bytes());
            self.sum = self.sum.wrapping_add(u128::from(*row));
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// What each row of the last batch comes to.
    pub(crate) fn last(&self) -> &[u64] {
        &self.last
    }

    /// What all of them come to.
    pub fn finish(self) -> Checksum {
        Checksum {
            rows: self.rows,
            sum: self.sum,
            columns: self.names.into_iter().zip(self.sums).collect(),
        }
    }
}

/// A column of a batch while it is summed up.
struct Column<'a> {
    name: &'a str,
    sum: u64,
    rows: &'a mut [u64],
}

impl Column<'_> {
    fn seed(&self, kind: Kind) -> u64 {
        XxHash64::oneshot(kind as u64, self.name.as_bytes())
    }

    /// Adds values in the order of the rows.
    fn put(&mut self, hashes: impl Iterator<Item = u64>) {
        for (row, hash) in self.rows.iter_mut().zip(hashes) {
            *row = row.wrapping_add(hash);
            self.sum = self.sum.wrapping_add(hash);
        }
    }

    /// Adds values of 8 bytes.
    fn words(&mut self, kind: Kind, values: impl Iterator<Item = Option<u64>>) {
        let (seed, null) = (self.seed(kind), self.null());
        self.put(values.map(|value| value.map_or(null, |value| XxHash64::oneshot(seed, &value.to_le_bytes()))));
    }

    fn bytes<'v>(&mut self, kind: Kind, values: impl Iterator<Item = Option<&'v [u8]>>) {
        let (seed, null) = (self.seed(kind), self.null());
        self.put(values.map(|value| value.map_or(null, |value| XxHash64::oneshot(seed, value))));
    }

    /// What no value comes to.
    fn null(&self) -> u64 {
        XxHash64::oneshot(self.seed(Kind::Null), &[])
    }

    fn add(&mut self, array: &ArrayRef) -> Result<(), Failure> {
        macro_rules! whole {
            ($($arrow:ty),*) => {
                match array.data_type() {
                    $(data_type if *data_type == <$arrow as datafusion::arrow::datatypes::ArrowPrimitiveType>::DATA_TYPE => {
                        let values = array.as_primitive::<$arrow>().iter();
                        self.words(Kind::Whole, values.map(|value| value.map(|value| i64::from(value) as u64)));
                        return Ok(());
                    })*
                    _ => {}
                }
            };
        }
        whole!(
            Int64Type, Int32Type, Int16Type, Int8Type, UInt32Type, UInt16Type, UInt8Type
        );
        match array.data_type() {
            DataType::UInt64 => self.decimals(array.as_primitive::<UInt64Type>().iter().map(as_wide), 0),
            DataType::Decimal128(_, scale) => {
                let scale = *scale;
                self.decimals(array.as_primitive::<Decimal128Type>().iter(), scale);
            }
            DataType::Float64 => {
                let values = array.as_primitive::<Float64Type>().iter();
                self.words(Kind::Float, values.map(|value| value.map(float)));
            }
            DataType::Float32 => {
                let values = array.as_primitive::<Float32Type>().iter();
                self.words(Kind::Float, values.map(|value| value.map(|value| float(value.into()))));
            }
            DataType::Utf8 => self.bytes(Kind::Text, array.as_string::<i32>().iter().map(text)),
            DataType::LargeUtf8 => self.bytes(Kind::Text, array.as_string::<i64>().iter().map(text)),
            DataType::Utf8View => self.bytes(Kind::Text, array.as_string_view().iter().map(text)),
            DataType::Binary => self.bytes(Kind::Bytes, array.as_binary::<i32>().iter()),
            DataType::LargeBinary => self.bytes(Kind::Bytes, array.as_binary::<i64>().iter()),
            DataType::BinaryView => self.bytes(Kind::Bytes, array.as_binary_view().iter()),
            DataType::Boolean => {
                let values = array.as_boolean().iter();
                self.words(Kind::Bool, values.map(|value| value.map(u64::from)));
            }
            DataType::Date32 => {
                let values = array.as_primitive::<Date32Type>().iter();
                self.words(Kind::Date, values.map(|value| value.map(|days| i64::from(days) as u64)));
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let values = array.as_primitive::<TimestampMicrosecondType>().iter();
                self.words(Kind::Timestamp, values.map(|value| value.map(|micros| micros as u64)));
            }
            DataType::Null => {
                let null = self.null();
                self.put(std::iter::repeat_n(null, array.len()));
            }
            other => return self.add_as(array, other),
        }
        Ok(())
    }

    /// Types that are held otherwise: by the type that says the same.
    fn add_as(&mut self, array: &ArrayRef, held: &DataType) -> Result<(), Failure> {
        let wanted = match held {
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
                DataType::Decimal128(*precision, *scale)
            }
            // A zone is a label of the instant. The cast cuts, as the destinations' does.
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            DataType::Time32(_) | DataType::Time64(_) => {
                let micros = cast(array, &DataType::Time64(TimeUnit::Microsecond))
                    .and_then(|array| cast(&array, &DataType::Int64))
                    .map_err(|error| self.unfit(held, &error.to_string()))?;
                let values = micros.as_primitive::<Int64Type>().iter();
                self.words(Kind::Time, values.map(|value| value.map(|micros| micros as u64)));
                return Ok(());
            }
            other => return Err(self.unfit(other, "CAST it in the step's SQL")),
        };
        let array = cast(array, &wanted).map_err(|error| self.unfit(held, &error.to_string()))?;
        self.add(&array)
    }

    fn unfit(&self, held: &DataType, why: &str) -> Failure {
        Failure::permanent(format!("column {} ({held}) can't be summed up: {why}", self.name))
    }

    fn decimals(&mut self, values: impl Iterator<Item = Option<i128>>, scale: i8) {
        let (whole, decimal, null) = (self.seed(Kind::Whole), self.seed(Kind::Decimal), self.null());
        self.put(values.map(|value| {
            let Some(mut digits) = value else { return null };
            let mut scale = scale;
            while scale > 0 && digits % 10 == 0 {
                digits /= 10;
                scale -= 1;
            }
            match i64::try_from(digits) {
                Ok(number) if scale == 0 => XxHash64::oneshot(whole, &number.to_le_bytes()),
                _ => {
                    let mut bytes = [0; 17];
                    bytes[..16].copy_from_slice(&digits.to_le_bytes());
                    bytes[16] = scale as u8;
                    XxHash64::oneshot(decimal, &bytes)
                }
            }
        }));
    }
}

fn as_wide(value: Option<u64>) -> Option<i128> {
    value.map(i128::from)
}

fn text(value: Option<&str>) -> Option<&[u8]> {
    value.map(str::as_bytes)
}

/// One NaN and one zero, as most databases have them.
fn float(value: f64) -> u64 {
    if value.is_nan() {
        f64::NAN.to_bits() & !(1 << 63)
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    }
}

#[cfg(test)]
mod tests;
