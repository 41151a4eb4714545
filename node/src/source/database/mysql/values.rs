//! Values of MySQL's binary protocol as text, and rows of a statement on their way into a feed.
//!
//! The server sends numbers and times in binary form to a statement with parameters. They become text here and not there: a
//! cast on the server cuts a float's digits, and makes NULL of a text that is larger than the server's packets.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use futures::TryStreamExt as _;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, QueryPart};
use sqlx::mysql::{MySql, MySqlArguments, MySqlColumn, MySqlRow, MySqlTypeInfo};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column as _, Decode, Row as _, Type, TypeInfo as _};

use super::server::{Server, Session};
use crate::source::database::feed::Feed;

/// A value that is bound to a statement, and never a part of its text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bind {
    Null,
    Text(String),
    Int(i64),
    Unsigned(u64),
    Double(f64),
}

/// What a column's values look like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Text as it is: also decimals, which the server sends as such.
    Text,
    Bytes,
    Signed,
    Unsigned,
    Float,
    Double,
    Date,
    Datetime,
    Time,
    Bit,
    /// Points and shapes, which have no text.
    Geometry,
}

/// A statement that reads rows.
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) binds: Vec<Bind>,
    /// Whether the first column is the place of a row, which is an integer.
    pub(super) has_place: bool,
    /// How many of the first columns are what the row is found by: the texts of its key's values, and whether each of them
    /// is the value again when it is put back.
    pub(super) keys: usize,
    /// Which of the columns are values, in order; the place isn't.
    pub(super) picked: Vec<usize>,
}

/// Puts all rows of a statement into the feed.
pub(super) async fn read(
    server: &Server,
    mut session: Session,
    statement: Statement,
    mut feed: Feed,
) -> Result<Feed, Failure> {
    let Statement {
        sql,
        binds,
        has_place,
        keys,
        picked,
    } = statement;
    let id = session.id;
    // Not kept: a statement of one chunk is no use to another.
    let query = bound(sqlx::query(AssertSqlSafe(sql)).persistent(false), &binds);
    let mut rows = query.fetch(&mut session.connection);
    let mut forms = Vec::new();
    let mut text = Vec::new();
    while let Some(row) = server.patiently(id, "reading rows", rows.try_next()).await? {
        if forms.is_empty() {
            forms = row.columns().iter().map(|column| form(column.type_info())).collect();
        }
        let wrong = |what: &str| Failure::transient(format!("{}: a row makes no sense: {what}", server.place()));
        let mut place = 0;
        if has_place {
            let (bytes, form) = (raw(&row, 0), forms.first().copied());
            place = bytes
                .zip(form)
                .and_then(|(bytes, form)| place_of(bytes, form))
                .ok_or_else(|| wrong("its key is no integer"))?;
        }
        feed.begin(place);
        if keys > 0 {
            feed.key(key_of(&row, &forms, keys));
        }
        for at in &picked {
            let form = forms.get(*at).ok_or_else(|| wrong("it has too few columns"))?;
            match raw(&row, *at) {
                None => feed.value(None)?,
                Some(bytes) if *form == Form::Text => feed.value(Some(bytes))?,
                Some(bytes) => {
                    text.clear();
                    write(bytes, *form, &mut text).ok_or_else(|| wrong("a value is too short for its type"))?;
                    feed.value(Some(&text))?;
                }
            }
        }
        feed.end().await?;
    }
    drop(rows);
    Ok(feed)
}

/// What a row is found by, from its first columns; empty if its key can't be put back.
fn key_of(row: &MySqlRow, forms: &[Form], keys: usize) -> String {
    let text = |at: usize| {
        let mut text = Vec::new();
        write(raw(row, at)?, *forms.get(at)?, &mut text)?;
        String::from_utf8(text).ok()
    };
    let values: Option<Vec<String>> = (0..keys).map(text).collect();
    match values.as_deref() {
        Some([values @ .., same]) if same == "1" => serde_json::to_string(values).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The values of a row as text, by the names of their columns in lower case.
pub(super) fn named(row: &MySqlRow) -> Vec<(String, Option<String>)> {
    let value = |column: &MySqlColumn| {
        let form = form(column.type_info());
        let text = raw(row, column.ordinal()).and_then(|bytes| {
            let mut text = Vec::new();
            write(bytes, form, &mut text)?;
            Some(String::from_utf8_lossy(&text).into_owned())
        });
        (column.name().to_lowercase(), text)
    };
    row.columns().iter().map(value).collect()
}

/// A value's bytes; `None` is NULL. A zero date has bytes, though the driver takes it for NULL.
fn raw(row: &MySqlRow, at: usize) -> Option<&[u8]> {
    let value = row.try_get_raw(at).ok()?;
    <&[u8] as Decode<MySql>>::decode(value).ok()
}

/// By the type that the server says; the driver's names of types tell numbers, and its collations text from bytes.
pub(super) fn form(info: &MySqlTypeInfo) -> Form {
    let name = info.name();
    match name {
        "DECIMAL" | "JSON" | "ENUM" | "SET" | "NULL" => return Form::Text,
        "FLOAT" => return Form::Float,
        "DOUBLE" => return Form::Double,
        "DATE" => return Form::Date,
        "DATETIME" | "TIMESTAMP" => return Form::Datetime,
        "TIME" => return Form::Time,
        "YEAR" => return Form::Unsigned,
        "BIT" => return Form::Bit,
        "GEOMETRY" => return Form::Geometry,
        _ => {}
    }
    let is_integer = name == "BOOLEAN" || name.split(' ').next().is_some_and(|word| word.ends_with("INT"));
    if is_integer {
        let is_unsigned = <u64 as Type<MySql>>::compatible(info);
        return if is_unsigned { Form::Unsigned } else { Form::Signed };
    }
    if <str as Type<MySql>>::compatible(info) {
        Form::Text
    } else {
        Form::Bytes
    }
}

/// Appends a value's text; `None` if its bytes are too few.
fn write(bytes: &[u8], form: Form, to: &mut Vec<u8>) -> Option<()> {
    let text = match form {
        Form::Text => {
            to.extend_from_slice(bytes);
            return Some(());
        }
        Form::Bytes | Form::Geometry => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            to.reserve(2 + 2 * bytes.len());
            to.extend_from_slice(b"\\x");
            for byte in bytes {
                to.push(DIGITS[usize::from(byte >> 4)]);
                to.push(DIGITS[usize::from(byte & 15)]);
            }
            return Some(());
        }
        Form::Signed => signed(bytes)?.to_string(),
        Form::Unsigned => unsigned(bytes)?.to_string(),
        // The shortest text that reads back as the same number.
        Form::Float => format!("{:?}", f32::from_le_bytes(bytes.try_into().ok()?)),
        Form::Double => format!("{:?}", f64::from_le_bytes(bytes.try_into().ok()?)),
        Form::Bit => {
            let value = bytes.iter().try_fold(0u64, |value, byte| {
                value.checked_mul(256)?.checked_add(u64::from(*byte))
            });
            value?.to_string()
        }
        Form::Date => {
            let (year, month, day, ..) = moment(bytes)?;
            format!("{year:04}-{month:02}-{day:02}")
        }
        Form::Datetime => {
            let (year, month, day, hour, minute, second, micros) = moment(bytes)?;
            let text = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
            text + &fraction(micros)
        }
        Form::Time => duration(bytes)?,
    };
    to.extend_from_slice(text.as_bytes());
    Some(())
}

/// Year, month, day, hour, minute, second, microsecond; what isn't sent is 0. The first byte is a length.
type Moment = (u16, u8, u8, u8, u8, u8, u32);

fn moment(bytes: &[u8]) -> Option<Moment> {
    let (length, rest) = bytes.split_first()?;
    let mut whole = [0; 11];
    whole
        .get_mut(..usize::from(*length))?
        .copy_from_slice(rest.get(..usize::from(*length))?);
    let [y0, y1, month, day, hour, minute, second, micros @ ..] = whole;
    let year = u16::from_le_bytes([y0, y1]);
    Some((year, month, day, hour, minute, second, u32::from_le_bytes(micros)))
}

/// A time of day, or a span: `-838:59:59`.
fn duration(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first()?;
    let mut whole = [0; 12];
    whole
        .get_mut(..usize::from(*length))?
        .copy_from_slice(rest.get(..usize::from(*length))?);
    let [negative, d0, d1, d2, d3, hour, minute, second, micros @ ..] = whole;
    let hours = u64::from(u32::from_le_bytes([d0, d1, d2, d3])) * 24 + u64::from(hour);
    let sign = if negative == 0 { "" } else { "-" };
    let fraction = fraction(u32::from_le_bytes(micros));
    Some(format!("{sign}{hours:02}:{minute:02}:{second:02}{fraction}"))
}

fn fraction(micros: u32) -> String {
    match micros {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    }
}

fn signed(bytes: &[u8]) -> Option<i64> {
    Some(match bytes {
        [byte] => i64::from(i8::from_le_bytes([*byte])),
        [a, b] => i64::from(i16::from_le_bytes([*a, *b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([*a, *b, *c, *d])),
        bytes => i64::from_le_bytes(bytes.try_into().ok()?),
    })
}

fn unsigned(bytes: &[u8]) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

/// Signed keys as places: in the same order, from 0.
const LOWEST: u64 = 1 << 63;

fn place_of(bytes: &[u8], form: Form) -> Option<u64> {
    match form {
        Form::Signed => Some(place_of_signed(signed(bytes)?)),
        Form::Unsigned => unsigned(bytes),
        _ => None,
    }
}

/// The place of a signed key.
pub(super) fn place_of_signed(key: i64) -> u64 {
    key as u64 ^ LOWEST
}

/// The signed key of a place.
pub(super) fn signed_of(place: u64) -> i64 {
    (place ^ LOWEST) as i64
}

/// The text of a query with `?` for its parameters, and what they are. The server reads each as a value of its type; texts
/// and numbers are bare, so that they take the collation of what they are compared with, and stand in a LIMIT.
pub(super) fn query(parts: &[QueryPart]) -> (String, Vec<Bind>) {
    let (mut sql, mut binds) = (String::new(), Vec::new());
    for part in parts {
        match part {
            QueryPart::Text(text) => sql.push_str(text),
            QueryPart::Param { data_type, value, .. } => {
                let (text, bind) = parameter(data_type, value);
                sql.push_str(&text);
                binds.push(bind);
            }
        }
    }
    (sql, binds)
}

fn parameter(data_type: &DataType, value: &str) -> (String, Bind) {
    let text = || Bind::Text(value.to_owned());
    let bare = "?".to_owned();
    match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 => (bare, value.parse().map_or(Bind::Null, Bind::Int)),
        DataType::Float32 | DataType::Float64 => (bare, value.parse().map_or(Bind::Null, Bind::Double)),
        DataType::Boolean => (bare, Bind::Int(i64::from(value == "true"))),
        DataType::Date32 => ("CAST(? AS DATE)".to_owned(), text()),
        // As MySQL writes a time; sessions are in UTC.
        DataType::Timestamp(_, _) => (
            "CAST(? AS DATETIME(6))".to_owned(),
            Bind::Text(value.replace('T', " ").replace('Z', "")),
        ),
        DataType::Decimal128(precision, scale) => (format!("CAST(? AS DECIMAL({precision},{scale}))"), text()),
        _ => (bare, text()),
    }
}

/// Binds values.
pub(super) fn bound<'q>(
    mut query: Query<'q, MySql, MySqlArguments>,
    binds: &[Bind],
) -> Query<'q, MySql, MySqlArguments> {
    for bind in binds {
        query = match bind {
            Bind::Null => query.bind(None::<String>),
            Bind::Text(text) => query.bind(text.clone()),
            Bind::Int(value) => query.bind(*value),
            Bind::Unsigned(value) => query.bind(*value),
            Bind::Double(value) => query.bind(*value),
        };
    }
    query
}

/// A column by the type that its values have here; what isn't one of the pipeline file's types is text.
pub(super) fn column(column: &MySqlColumn) -> Column {
    Column {
        name: column.name().to_owned(),
        data_type: match column.type_info().name() {
            "BOOLEAN" => DataType::Boolean,
            "TINYINT" | "TINYINT UNSIGNED" | "SMALLINT" | "YEAR" => DataType::Int16,
            "SMALLINT UNSIGNED" | "MEDIUMINT" | "MEDIUMINT UNSIGNED" | "INT" => DataType::Int32,
            "INT UNSIGNED" | "BIGINT" => DataType::Int64,
            // No integer here holds all of them.
            "BIGINT UNSIGNED" => DataType::Decimal128(20, 0),
            "FLOAT" => DataType::Float32,
            "DOUBLE" => DataType::Float64,
            "DATE" => DataType::Date32,
            "DATETIME" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "TIMESTAMP" => haulage_plan::types::timestamptz(),
            _ => DataType::Utf8,
        },
        required: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], form: Form) -> Option<String> {
        let mut text = Vec::new();
        write(bytes, form, &mut text)?;
        Some(String::from_utf8(text).unwrap())
    }

    #[test]
    fn values_are_written_as_the_server_writes_them() {
        for (bytes, form, expected) in [
            (&[0xff][..], Form::Signed, Some("-1")),
            (&[0xff], Form::Unsigned, Some("255")),
            (&[0, 0x80], Form::Signed, Some("-32768")),
            (&[0xff; 8], Form::Unsigned, Some("18446744073709551615")),
            (&[0xff; 8], Form::Signed, Some("-1")),
            (&[1, 2, 3], Form::Signed, None),
            (&[0], Form::Date, Some("0000-00-00")),
            (&[4, 0xdd, 7, 1, 31], Form::Date, Some("2013-01-31")),
            (&[0], Form::Datetime, Some("0000-00-00 00:00:00")),
            (&[4, 0xdd, 7, 0, 0], Form::Datetime, Some("2013-00-00 00:00:00")),
            (
                &[7, 0xdd, 7, 1, 31, 5, 6, 7],
                Form::Datetime,
                Some("2013-01-31 05:06:07"),
            ),
            (
                &[11, 0xdd, 7, 1, 31, 5, 6, 7, 1, 0, 0, 0],
                Form::Datetime,
                Some("2013-01-31 05:06:07.000001"),
            ),
            (&[4, 0xdd, 7, 1], Form::Date, None),
            (&[12, 0, 0], Form::Datetime, None),
            (&[0], Form::Time, Some("00:00:00")),
            (&[8, 1, 34, 0, 0, 0, 22, 59, 59], Form::Time, Some("-838:59:59")),
            (
                &[12, 0, 0, 0, 0, 0, 1, 2, 3, 0x3f, 0x42, 0x0f, 0],
                Form::Time,
                Some("01:02:03.999999"),
            ),
            (&[1, 0], Form::Bit, Some("256")),
            (&[0, 0xab], Form::Bytes, Some("\\x00ab")),
            (&[], Form::Bytes, Some("\\x")),
            (&0.1f32.to_le_bytes(), Form::Float, Some("0.1")),
            (&5e-324f64.to_le_bytes(), Form::Double, Some("5e-324")),
        ] {
            assert_eq!(text(bytes, form).as_deref(), expected, "{bytes:?} as {form:?}");
        }
    }

    #[test]
    fn places_keep_the_order_of_signed_keys() {
        let keys = [i64::MIN, -2, -1, 0, 1, i64::MAX];
        let places: Vec<u64> = keys.iter().map(|key| place_of_signed(*key)).collect();
        assert!(places.is_sorted() && places[0] == 0);
        assert!(keys.iter().zip(places).all(|(key, place)| signed_of(place) == *key));
    }

    #[test]
    fn parameters_are_placeholders() {
        let param = |data_type, value: &str| QueryPart::Param {
            name: "p".into(),
            data_type,
            value: value.into(),
        };
        let (sql, binds) = query(&[
            QueryPart::Text("SELECT * FROM t WHERE a = ".into()),
            param(DataType::Utf8, "' OR 1=1 -- "),
            QueryPart::Text(" AND b > ".into()),
            param(haulage_plan::types::timestamptz(), "2013-01-31T05:00:00Z"),
            QueryPart::Text(" LIMIT ".into()),
            param(DataType::Int64, "5"),
        ]);
        assert_eq!(
            sql,
            "SELECT * FROM t WHERE a = ? AND b > CAST(? AS DATETIME(6)) LIMIT ?"
        );
        assert_eq!(
            binds,
            [
                Bind::Text("' OR 1=1 -- ".into()),
                Bind::Text("2013-01-31 05:00:00".into()),
                Bind::Int(5)
            ]
        );
    }
}
