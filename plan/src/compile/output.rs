//! What a load's rows look like, and whether a table can hold them.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Projection, cast};

use super::carry::row_of;
use crate::definition::{Definition, Load, Place};
use crate::diagnostics::{Report, did_you_mean};
use crate::{types, yaml};

/// PostgreSQL's limit for the name of a column.
const MAX_NAME: usize = 63;

/// Checks the columns of a load and gives the schema that its rows will have, without the row column.
pub(crate) fn check(report: &mut Report, definition: &Definition, load: &Load, schema: &Schema) -> Option<SchemaRef> {
    let before = report.len();
    let name = load.name.as_str();
    let at = |path: &[&str]| {
        let mut full = vec!["loads", name];
        full.extend_from_slice(path);
        yaml::locate(&definition.text, &full).unwrap_or(load.place)
    };
    let from = at(&["from"]);
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut fields = Vec::new();
    for field in schema.fields() {
        if let Some(other) = seen.insert(field.name().to_lowercase(), field.name()) {
            let message = format!(
                "load `{name}` has the columns `{other}` and `{}`, which a table can't tell apart",
                field.name()
            );
            report.help(
                from,
                message,
                format!("rename one in `{}`: `AS {}_2`", load.from, field.name().to_lowercase()),
            );
        }
        check_name(report, load, field.name(), from);
        match stored_type(field.data_type()) {
            Ok(data_type) => fields.push(Field::new(field.name(), data_type, field.is_nullable())),
            Err(advice) => {
                let type_name = types::name(field.data_type());
                let message = format!(
                    "load `{name}` has the column `{}` of type {type_name}, which can't be loaded",
                    field.name()
                );
                report.help(
                    from,
                    message,
                    format!("in `{}`, {}", load.from, advice.replace("{}", field.name())),
                );
            }
        }
    }
    for (index, column) in load.key.iter().enumerate() {
        if schema.field_with_name(column).is_err() {
            let index = index.to_string();
            let list = at(&["key", &index]);
            let place = if list == load.place { at(&["key"]) } else { list };
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let message = format!(
                "the key of load `{name}` names `{column}`, which `{}` doesn't have",
                load.from
            );
            report.maybe(place, message, did_you_mean(column, names));
        }
    }
    if let Some(column) = &load.newest {
        check_newest(report, load, column, schema, at(&["newest"]));
    }
    for (index, column) in load.layout.partition_by.iter().enumerate() {
        let index = index.to_string();
        let list = at(&["partition_by", &index]);
        let place = if list == load.place {
            at(&["partition_by"])
        } else {
            list
        };
        let Ok(field) = schema.field_with_name(column) else {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let message = format!(
                "`partition_by` of load `{name}` names `{column}`, which `{}` doesn't have",
                load.from
            );
            report.maybe(place, message, did_you_mean(column, names));
            continue;
        };
        if !parts_rows(field.data_type()) {
            let message = format!(
                "load `{name}` is divided by `{column}`, which is {}",
                types::name(field.data_type())
            );
            let help = "a text, a whole number, a date or a bool makes a folder's name: CAST another type in a step";
            report.help(place, message, help);
        }
    }
    if !fields.is_empty() && load.layout.partition_by.len() >= fields.len() {
        let message = format!("load `{name}` is divided by all of its columns, which leaves none for the files");
        report.help(at(&["partition_by"]), message, "leave one out");
    }
    (report.len() == before).then(|| Arc::new(Schema::new(fields)))
}

/// Whether two rows can be put in order by a column, in every destination alike.
fn check_newest(report: &mut Report, load: &Load, column: &str, schema: &Schema, place: Place) {
    let name = &load.name;
    let Ok(field) = schema.field_with_name(column) else {
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let message = format!(
            "`newest` of load `{name}` names `{column}`, which `{}` doesn't have",
            load.from
        );
        report.maybe(place, message, did_you_mean(column, names));
        return;
    };
    let data_type = field.data_type();
    if !data_type.is_integer() && !matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _)) {
        let message = format!(
            "load `{name}` goes by `{column}` to find the newer of two rows, which is {}",
            types::name(data_type)
        );
        report.help(
            place,
            message,
            "name an integer, a date or a time whose values only grow",
        );
    }
}

/// Whether a value of this type can name a folder, and be read back from its name.
fn parts_rows(data_type: &DataType) -> bool {
    data_type.is_integer()
        || matches!(
            data_type,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean | DataType::Date32
        )
}

fn check_name(report: &mut Report, load: &Load, column: &str, place: Place) {
    let message = if column.len() > MAX_NAME {
        format!(
            "load `{}` has a column whose name is longer than {MAX_NAME} bytes: `{column}`",
            load.name
        )
    } else if column.to_lowercase().starts_with("__haulage") {
        format!(
            "load `{}` has the column `{column}`; names that start with `__haulage` are kept for Haulage",
            load.name
        )
    } else if column.is_empty() || column.contains(['\0', '"']) {
        format!(
            "load `{}` has a column whose name no table can have: {column:?}",
            load.name
        )
    } else {
        return;
    };
    report.help(
        place,
        message,
        format!("give it another name in a step: `\"{column}\" AS name`"),
    );
}

/// The type in which a column reaches a destination; `Err` says what to write instead.
fn stored_type(data_type: &DataType) -> Result<DataType, &'static str> {
    match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Decimal128(_, _) => Ok(data_type.clone()),
        // Whatever unit and zone a function has given them.
        DataType::Timestamp(_, None) => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        DataType::Timestamp(_, Some(_)) => Ok(types::timestamptz()),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(DataType::Utf8),
        DataType::Null => Err("say which type its NULL has: `CAST(NULL AS text) AS {}`"),
        DataType::Date64 => Err("write `CAST({} AS date) AS {}`"),
        DataType::Decimal32(_, _) | DataType::Decimal64(_, _) | DataType::Decimal256(_, _) => {
            Err("write `CAST({} AS decimal(38,9)) AS {}`")
        }
        DataType::Float16 => Err("write `CAST({} AS double) AS {}`"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Err("write it as text: `encode({}, 'hex') AS {}`")
        }
        DataType::Interval(_) | DataType::Duration(_) => {
            Err("take its seconds: `CAST(date_part('epoch', {}) AS bigint) AS {}`")
        }
        DataType::Union(_, _) => {
            Err("take its text with `->>` in place of the last `->`, or its JSON with `json_get_json`")
        }
        _ => Err("write `CAST({} AS text) AS {}`, or take single values out of it"),
    }
}

/// The plan whose rows are the load's: its columns in the stored types, then the row column.
pub(crate) fn plan(from: LogicalPlan, schema: &Schema) -> Result<LogicalPlan> {
    let mut exprs = Vec::new();
    let df_schema = Arc::clone(from.schema());
    let columns = df_schema.iter().filter(|(_, field)| field.name() != crate::ROW_COLUMN);
    for ((qualifier, field), stored) in columns.zip(schema.fields()) {
        let column = Expr::Column(Column::from((qualifier, field.as_ref())));
        let typed = if column.get_type(&df_schema)? == *stored.data_type() {
            column
        } else {
            cast(column, stored.data_type().clone())
        };
        exprs.push(typed.alias(stored.name()));
    }
    exprs.extend(row_of(&df_schema).map(|row| Expr::Column(row).alias(crate::ROW_COLUMN)));
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(from))?))
}
