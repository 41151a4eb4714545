//! The columns of a file, as a pipeline's types: what they are by themselves, and whether they fit what is declared.

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use haulage_core::failure::Failure;
use haulage_plan::ROW_COLUMN;
use haulage_plan::definition::Column;
use haulage_plan::types::holds;

use crate::source::files::{or_null, suggestion};
use crate::source::misfit::word;
use crate::source::{EXCERPT, Misdeclared, excerpt};

/// Decimal digits of the largest integer without a sign.
const UINT64_DIGITS: u8 = 20;

/// The type that a column has if nobody declares it; `Err` says of one that a pipeline has no type for what it is, and what
/// can be done to have it.
pub(super) fn own(data_type: &DataType) -> Result<DataType, String> {
    let unheld = |what: &str| Err(format!("is {what}, which no type holds"));
    Ok(match data_type {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => DataType::Int16,
        DataType::Int32 | DataType::UInt16 => DataType::Int32,
        DataType::Int64 | DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(UINT64_DIGITS, 0),
        DataType::Float16 | DataType::Float32 => DataType::Float32,
        DataType::Float64 => DataType::Float64,
        DataType::Boolean => DataType::Boolean,
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => haulage_plan::types::timestamptz(),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => {
            if *precision > 38 || *scale < 0 || scale.unsigned_abs() > *precision {
                return Err(format!(
                    "is decimal({precision},{scale}), which no type holds; write it with at most 38 digits"
                ));
            }
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, values) => return own(values),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            return Err("holds bytes; declare it as text if they are UTF-8".to_owned());
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) | DataType::Map(_, _) => {
            return unheld("a list");
        }
        DataType::Struct(_) => return unheld("a group of fields"),
        other => return unheld(&other.to_string().to_lowercase()),
    })
}

/// What [`own`] says, and how to do without the column.
fn or_without(what: String) -> String {
    let joined = if what.contains(';') { ", or" } else { ";" };
    format!("{what}{joined} declare the columns that you need")
}

/// Whether values of the file's type can become the declared one without losing anything; `Err` says why not.
fn fits(file: &DataType, declared: &DataType) -> Result<(), String> {
    if is_bytes(file) && *declared == DataType::Utf8 {
        return Ok(());
    }
    let file = own(file).map_err(or_without)?;
    if holds(declared, &file) {
        return Ok(());
    }
    let widen = if holds(&file, declared) {
        ", or write `on_wider_type: widen` for the source"
    } else {
        ""
    };
    Err(format!(
        "is {} in the file, which {} can't hold without loss; declare it {}, and cast it in a step{widen}",
        word(&file),
        word(declared),
        word(&file)
    ))
}

fn is_bytes(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_bytes(values),
        _ => false,
    }
}

/// The columns of a source that declares none: the file's.
pub(super) fn columns(schema: &Schema, address: &str) -> Result<Vec<Column>, Failure> {
    let mut columns: Vec<Column> = Vec::new();
    for field in schema.fields() {
        let shown = excerpt(field.name().as_bytes(), EXCERPT);
        let wrong = |what: &str| Failure::permanent(format!("{address}: column \"{shown}\" {what}"));
        if field.name().is_empty() || field.name().contains('\0') || field.name() == ROW_COLUMN {
            return Err(wrong(
                "has a name that can't be used; declare the columns that you need",
            ));
        }
        if columns.iter().any(|column| column.name == *field.name()) {
            return Err(wrong("is there twice; write the file with a name for each"));
        }
        columns.push(Column {
            name: field.name().clone(),
            data_type: own(field.data_type()).map_err(|what| wrong(&or_without(what)))?,
            required: false,
        });
    }
    if columns.is_empty() {
        return Err(Failure::permanent(format!(
            "{address} has no columns; replace the file"
        )));
    }
    Ok(columns)
}

/// Finds the declared columns in a file: the place of each. Permanent failure naming file and column if one is missing,
/// there twice, or of a type that doesn't fit.
pub(super) fn places(schema: &Schema, columns: &[Column], address: &str) -> Result<Vec<usize>, Misdeclared> {
    let mut places = Vec::with_capacity(columns.len());
    for column in columns {
        let shown = excerpt(column.name.as_bytes(), EXCERPT);
        let wrong = |message: String| Misdeclared {
            failure: Failure::permanent(message),
            column: Some(column.name.clone()),
        };
        let mut found = schema
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| *field.name() == column.name);
        match (found.next(), found.next()) {
            (Some((place, field)), None) => {
                fits(field.data_type(), &column.data_type)
                    .map_err(|what| wrong(format!("{address}: column \"{shown}\" {what}")))?;
                places.push(place);
            }
            (Some(_), Some(_)) => {
                return Err(wrong(format!(
                    "{address}: column \"{shown}\" is there twice; write the file with a name for each"
                )));
            }
            (None, _) => {
                let names: Vec<_> = schema.fields().iter().map(|field| field.name().clone()).collect();
                return Err(wrong(format!(
                    "{address} has no column {shown}; {}{}",
                    suggestion(&column.name, &names),
                    or_null(column)
                )));
            }
        }
    }
    Ok(places)
}

/// The first difference between the columns of two files, which have to be the same where none are declared.
pub(super) fn difference(first: &[Column], other: &[Column]) -> Option<String> {
    let type_in = |columns: &[Column], name: &str| {
        let found = columns.iter().find(|column| column.name == name);
        found.map_or("none".to_owned(), |column| word(&column.data_type))
    };
    let names = first.iter().chain(other).map(|column| &column.name);
    for name in names {
        let (one, two) = (type_in(first, name), type_in(other, name));
        if one != two {
            let shown = excerpt(name.as_bytes(), EXCERPT);
            return Some(format!("column \"{shown}\" is {two} here, and {one} there"));
        }
    }
    None
}

/// The schema by which a file is read: texts and bytes are only pointed at, and not copied, until a segment takes them.
pub(super) fn viewed(schema: &Schema) -> SchemaRef {
    fn view(data_type: &DataType) -> DataType {
        match data_type {
            DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
            DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
            DataType::Dictionary(_, values) => view(values),
            other => other.clone(),
        }
    }
    let field = |field: &Field| field.clone().with_data_type(view(field.data_type()));
    let fields: Vec<_> = schema.fields().iter().map(|found| field(found)).collect();
    SchemaRef::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}
