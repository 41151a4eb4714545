//! Arrow batches to the binary COPY format, straight into a buffer that is used again; to the text format, where a column's
//! type has to read texts itself.
//!
//! ```text
//! header: "PGCOPY\n\xff\r\n\0", flags i32 = 0, extension i32 = 0
//! row:    columns i16, then for each: length i32 (-1 is NULL), bytes
//! end:    i16 = -1
//! ```
//!
//! Columns are cast and downcast once for each batch; a value costs a match and a copy, and no allocation.

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, LargeStringArray, PrimitiveArray,
    RecordBatch, StringArray, StringViewArray,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};

use super::copy_text;
use super::numeric;
use super::types::{Encoding, Wire};
use crate::source::{EXCERPT, excerpt};

/// What stands in front of the first row.
const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands behind the last row.
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();

/// The format of a COPY, which is one for all of its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Binary,
    Text,
}

impl Format {
    pub(super) fn of(columns: &[Column]) -> Self {
        match columns.iter().any(|column| column.encoding.wire == Wire::Input) {
            true => Self::Text,
            false => Self::Binary,
        }
    }

    /// Its name in SQL.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Text => "text",
        }
    }

    /// What stands in front of the first row, and behind the last.
    pub(super) fn around(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Binary => (&HEADER, &TRAILER),
            Self::Text => (&[], &[]),
        }
    }
}

/// Days from 1970 to 2000, where PostgreSQL starts to count.
const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
const NULL: [u8; 4] = (-1i32).to_be_bytes();

/// A value that has no place in its column: names the column, the value and the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {cause}")]
pub(super) struct Error {
    pub(super) column: String,
    pub(super) cause: String,
    /// The row of the batch, if it is one.
    pub(super) row: Option<usize>,
}

/// A column of the load: its name, and how its values are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) encoding: Encoding,
}

/// A batch, ready to be written row by row.
pub(super) struct Rows<'a> {
    columns: &'a [Column],
    format: Format,
    values: Vec<Values>,
    rows: usize,
    next: usize,
}

pub(super) enum Values {
    Null,
    Bool(BooleanArray),
    Int2(PrimitiveArray<Int16Type>),
    Int4(PrimitiveArray<Int32Type>),
    Int8(PrimitiveArray<Int64Type>),
    Float4(PrimitiveArray<Float32Type>),
    Float8(PrimitiveArray<Float64Type>),
    Numeric(Decimal128Array, u8),
    Text(StringArray),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    Jsonb(LargeStringArray),
    Uuid(LargeStringArray),
    Bytea(BinaryArray),
    Date(PrimitiveArray<Date32Type>),
    Time(PrimitiveArray<Time64MicrosecondType>),
    Timestamp(PrimitiveArray<TimestampMicrosecondType>),
}

impl<'a> Rows<'a> {
    /// Casts and downcasts the batch. Error if its columns are not the load's, or a value doesn't fit.
    pub(super) fn new(columns: &'a [Column], batch: &RecordBatch) -> Result<Self, Error> {
        if batch.num_columns() != columns.len() {
            return Err(Error {
                row: None,
                column: "*".into(),
                cause: format!(
                    "the batch has {} columns, the load {}",
                    batch.num_columns(),
                    columns.len()
                ),
            });
        }
        let mut values = Vec::with_capacity(columns.len());
        for (column, array) in columns.iter().zip(batch.columns()) {
            let cast = Values::new(&column.encoding, array).map_err(|cause| {
                // A column is cast as a whole; which of its values it was is looked for only now.
                let row = (0..array.len()).find(|row| Values::new(&column.encoding, &array.slice(*row, 1)).is_err());
                column.error(cause, row)
            })?;
            values.push(cast);
        }
        Ok(Self {
            columns,
            format: Format::of(columns),
            values,
            rows: batch.num_rows(),
            next: 0,
        })
    }

    /// Appends rows until the buffer holds `enough` bytes. False once all rows are written.
    pub(super) fn fill(&mut self, buffer: &mut Vec<u8>, enough: usize) -> Result<bool, Error> {
        let count = (self.columns.len() as i16).to_be_bytes();
        while self.next < self.rows {
            if buffer.len() >= enough {
                return Ok(true);
            }
            if self.format == Format::Binary {
                buffer.extend_from_slice(&count);
            }
            for (at, values) in self.values.iter().enumerate() {
                let put = match self.format {
                    Format::Binary => values.put(self.next, buffer),
                    Format::Text => {
                        let last = at + 1 == self.values.len();
                        copy_text::put(values, self.next, buffer)
                            .map(|()| buffer.push(if last { b'\n' } else { b'\t' }))
                    }
                };
                if let Err(cause) = put {
                    return Err(self.columns[at].error(cause, Some(self.next)));
                }
            }
            self.next += 1;
        }
        Ok(false)
    }
}

impl Column {
    fn error(&self, cause: String, row: Option<usize>) -> Error {
        Error {
            row,
            column: self.name.clone(),
            cause,
        }
    }
}

impl Values {
    fn new(encoding: &Encoding, array: &ArrayRef) -> Result<Self, String> {
        if encoding.wire == Wire::Null {
            return Ok(Self::Null);
        }
        // Parsed values look at their text as one type; the cast of a whole column is cheap beside the parsing.
        let wanted = match encoding.wire {
            Wire::Jsonb | Wire::Uuid => &DataType::LargeUtf8,
            _ => &encoding.arrow,
        };
        let cast;
        let array = if array.data_type() == wanted {
            array
        } else {
            let options = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            cast = cast_with_options(array, wanted, &options)
                .map_err(|error| format!("a value of type {} does not fit: {error}", array.data_type()))?;
            &cast
        };
        let unexpected = || format!("{} can't be written as {:?}", array.data_type(), encoding.wire);
        Ok(match (encoding.wire, array.data_type()) {
            (Wire::Bool, DataType::Boolean) => Self::Bool(array.as_boolean().clone()),
            (Wire::Int2, DataType::Int16) => Self::Int2(array.as_primitive().clone()),
            (Wire::Int4, DataType::Int32) => Self::Int4(array.as_primitive().clone()),
            (Wire::Int8, DataType::Int64) => Self::Int8(array.as_primitive().clone()),
            (Wire::Float4, DataType::Float32) => Self::Float4(array.as_primitive().clone()),
            (Wire::Float8, DataType::Float64) => Self::Float8(array.as_primitive().clone()),
            (Wire::Numeric, DataType::Decimal128(_, scale)) => {
                let scale = u8::try_from(*scale).map_err(|_| unexpected())?;
                Self::Numeric(array.as_primitive::<Decimal128Type>().clone(), scale)
            }
            (Wire::Text | Wire::Input | Wire::Varchar(_), DataType::Utf8) => {
                let texts: &StringArray = array.as_string();
                not_cut(encoding.wire, texts.iter())?;
                Self::Text(texts.clone())
            }
            (Wire::Text | Wire::Input | Wire::Varchar(_), DataType::LargeUtf8) => {
                let texts: &LargeStringArray = array.as_string();
                not_cut(encoding.wire, texts.iter())?;
                Self::LargeText(texts.clone())
            }
            (Wire::Text | Wire::Input | Wire::Varchar(_), DataType::Utf8View) => {
                let texts = array.as_string_view();
                not_cut(encoding.wire, texts.iter())?;
                Self::TextView(texts.clone())
            }
            (Wire::Jsonb, DataType::LargeUtf8) => Self::Jsonb(array.as_string().clone()),
            (Wire::Uuid, DataType::LargeUtf8) => Self::Uuid(array.as_string().clone()),
            (Wire::Bytea, DataType::Binary) => Self::Bytea(array.as_binary().clone()),
            (Wire::Date, DataType::Date32) => Self::Date(array.as_primitive().clone()),
            (Wire::Time, DataType::Time64(_)) => Self::Time(array.as_primitive().clone()),
            (Wire::Timestamp, DataType::Timestamp(_, _)) => Self::Timestamp(array.as_primitive().clone()),
            _ => return Err(unexpected()),
        })
    }

    fn put(&self, row: usize, buffer: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Null => buffer.extend_from_slice(&NULL),
            Self::Bool(array) if array.is_valid(row) => {
                buffer.extend_from_slice(&[0, 0, 0, 1, u8::from(array.value(row))]);
            }
            Self::Int2(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Int4(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Int8(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Float4(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Float8(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Numeric(array, scale) if array.is_valid(row) => numeric::put(array.value(row), *scale, buffer),
            Self::Text(array) if array.is_valid(row) => bytes(buffer, array.value(row).as_bytes())?,
            Self::LargeText(array) if array.is_valid(row) => bytes(buffer, array.value(row).as_bytes())?,
            Self::TextView(array) if array.is_valid(row) => bytes(buffer, array.value(row).as_bytes())?,
            Self::Jsonb(array) if array.is_valid(row) => jsonb(buffer, array.value(row))?,
            Self::Uuid(array) if array.is_valid(row) => fixed(buffer, uuid(array.value(row))?),
            Self::Bytea(array) if array.is_valid(row) => bytes(buffer, array.value(row))?,
            Self::Date(array) if array.is_valid(row) => fixed(buffer, date(array.value(row))?),
            Self::Time(array) if array.is_valid(row) => fixed(buffer, array.value(row).to_be_bytes()),
            Self::Timestamp(array) if array.is_valid(row) => fixed(buffer, timestamp(array.value(row))?),
            // Every guard above failed, so the value is NULL.
            _ => buffer.extend_from_slice(&NULL),
        }
        Ok(())
    }
}

/// Refuses a text whose last blanks PostgreSQL would cut without a word. It says itself what is too long otherwise.
fn not_cut<'a>(wire: Wire, texts: impl Iterator<Item = Option<&'a str>>) -> Result<(), String> {
    let Wire::Varchar(most) = wire else { return Ok(()) };
    let most = most as usize;
    for text in texts.flatten().filter(|text| text.len() > most && text.ends_with(' ')) {
        let mut behind = text.chars().skip(most).peekable();
        if behind.peek().is_some() && behind.all(|char| char == ' ') {
            return Err(format!(
                "\"{}\" is longer than {most} characters, and PostgreSQL would cut the blanks at its end; rtrim it in the \
                 step's SQL",
                excerpt(text.as_bytes(), EXCERPT)
            ));
        }
    }
    Ok(())
}

#[inline]
fn fixed<const N: usize>(buffer: &mut Vec<u8>, value: [u8; N]) {
    buffer.extend_from_slice(&(N as i32).to_be_bytes());
    buffer.extend_from_slice(&value);
}

#[inline]
fn bytes(buffer: &mut Vec<u8>, value: &[u8]) -> Result<(), String> {
    buffer.extend_from_slice(&length(value.len())?);
    buffer.extend_from_slice(value);
    Ok(())
}

fn jsonb(buffer: &mut Vec<u8>, value: &str) -> Result<(), String> {
    buffer.extend_from_slice(&length(value.len() + 1)?);
    // The version of the format.
    buffer.push(1);
    buffer.extend_from_slice(value.as_bytes());
    Ok(())
}

#[inline]
fn length(bytes: usize) -> Result<[u8; 4], String> {
    // A field of PostgreSQL ends at 1 GiB.
    if bytes >= 1 << 30 {
        return Err(format!("a value of {bytes} bytes is longer than PostgreSQL's 1 GiB"));
    }
    Ok((bytes as i32).to_be_bytes())
}

fn date(days: i32) -> Result<[u8; 4], String> {
    // The smallest number means minus infinity there.
    match days.checked_sub(EPOCH_DAYS).filter(|days| *days != i32::MIN) {
        Some(days) => Ok(days.to_be_bytes()),
        None => Err(format!("the date {days} days from 1970 is out of PostgreSQL's range")),
    }
}

fn timestamp(microseconds: i64) -> Result<[u8; 8], String> {
    match microseconds
        .checked_sub(EPOCH_MICROSECONDS)
        .filter(|microseconds| *microseconds != i64::MIN)
    {
        Some(microseconds) => Ok(microseconds.to_be_bytes()),
        None => Err(format!(
            "the time {microseconds} microseconds from 1970 is out of PostgreSQL's range"
        )),
    }
}

pub(super) fn uuid(text: &str) -> Result<[u8; 16], String> {
    let mut value = 0u128;
    let mut digits = 0;
    for byte in text.bytes() {
        match (byte as char).to_digit(16) {
            Some(digit) => {
                value = value << 4 | u128::from(digit);
                digits += 1;
            }
            None if matches!(byte, b'-' | b'{' | b'}') => {}
            None => digits = usize::MAX / 2,
        }
    }
    if digits != 32 {
        return Err(format!("\"{}\" is no uuid", excerpt(text.as_bytes(), EXCERPT)));
    }
    Ok(value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{Int32Array, Int64Array, StringViewArray};
    use datafusion::arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::sink::postgres::types::{Kind, encoding};

    fn column(name: &str, arrow: &DataType, kind: Kind) -> Column {
        Column {
            name: name.into(),
            encoding: encoding(arrow, kind).expect("a listed conversion"),
        }
    }

    #[test]
    fn rows_are_columns_then_values_and_stop_when_the_buffer_is_full() {
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("b", DataType::Utf8View, true),
        ]);
        let batch = RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(Int32Array::from(vec![Some(-2), None])),
                Arc::new(StringViewArray::from(vec![Some("é"), Some("")])),
            ],
        )
        .expect("a batch");
        let columns = [
            column("a", &DataType::Int32, Kind::Int8),
            column("b", &DataType::Utf8View, Kind::Text),
        ];
        let mut rows = Rows::new(&columns, &batch).expect("it fits");
        let mut buffer = Vec::new();
        assert_eq!(rows.fill(&mut buffer, 1), Ok(true));
        let mut first = vec![0, 2, 0, 0, 0, 8];
        first.extend((-2i64).to_be_bytes());
        first.extend([0, 0, 0, 2, 0xc3, 0xa9]);
        assert_eq!(buffer, first);
        buffer.clear();
        assert_eq!(rows.fill(&mut buffer, 1), Ok(false));
        assert_eq!(buffer, [0, 2, 255, 255, 255, 255, 0, 0, 0, 0]);
    }

    #[test]
    fn a_number_that_does_not_fit_is_named() {
        let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        let batch =
            RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(vec![70_000]))]).expect("a batch");
        let columns = [column("n", &DataType::Int64, Kind::Int2)];
        let error = Rows::new(&columns, &batch)
            .err()
            .expect("70000 is no smallint")
            .to_string();
        assert!(error.contains("column n") && error.contains("70000"), "{error}");
    }

    #[test]
    fn blanks_are_not_cut_from_a_text() {
        for (text, fits) in [
            ("ab ", true),
            ("äbc", true),
            ("abc ", false),
            ("äb  ", false),
            ("abcd ", true),
        ] {
            // The last one is too long without its blank, and refused by the server.
            let texts = [Some("a"), None, Some(text)];
            assert_eq!(not_cut(Wire::Varchar(3), texts.into_iter()).is_ok(), fits, "{text:?}");
        }
    }

    #[test]
    fn the_ends_of_time() {
        assert_eq!(date(0), Ok((-10_957i32).to_be_bytes()));
        assert!(date(i32::MIN + 5).is_err());
        assert_eq!(timestamp(EPOCH_MICROSECONDS), Ok([0; 8]));
        assert!(timestamp(i64::MIN + 1).is_err());
        assert_eq!(uuid("00000000-0000-0000-0000-0000000000ff"), Ok(255u128.to_be_bytes()));
        assert!(uuid("xyz").is_err());
    }
}
