//! A table whose columns change with its appends: what becomes of each column, and which columns the table has then.
//!
//! Files are never written again for it. Each part keeps its own columns, and those of the table follow from the parts that
//! make it up: their columns by name, in the order in which they came, each with the type that holds all of theirs. So an
//! append adds and widens, a revert takes back in whatever order, and nothing has to be remembered for it.
//!
//! A part without columns of its own has the table's: it is from a time when all had the same.

use datafusion::arrow::datatypes::DataType;
use haulage_plan::contract::WiderType;
use haulage_plan::definition::Mode;
use haulage_plan::{PROVENANCE, types};

use super::decode::type_of;
use super::state::{Column, Head, Part, Shape, State, Table};
use crate::sink::wider::{Held, wider};
use crate::sink::{Change, ColumnChange, LoadContext};

/// Digits of the largest decimal that files hold.
const MAX_DIGITS: i32 = 38;

/// What an append does to the columns that are there; a line in `misfits` for everything that it may not do.
pub(super) fn changes(load: &LoadContext, head: &Head, misfits: &mut Vec<String>) -> Vec<ColumnChange> {
    let (ours, there) = (Shape::of(load), &head.shape);
    let mut changes = Vec::new();
    // A table of which everything was taken back has no columns to keep to.
    if head.parts.is_empty() {
        return changes;
    }
    let before = misfits.len();
    for column in &ours.columns {
        let fitted = match there.columns.iter().find(|other| other.name == column.name) {
            None => new_column(load, there, column).map(Some),
            Some(other) => one_column(load, there, column, other),
        };
        match fitted {
            Ok(change) => changes.extend(change),
            Err(misfit) => misfits.push(misfit),
        }
    }
    for other in &there.columns {
        if ours.columns.iter().any(|column| column.name == other.name) {
            continue;
        }
        if there.partition_by.contains(&other.name) {
            misfits.push(format!(
                "column {} ({}) of {} is not among the load's columns, and the table is partitioned by it; add it to the \
                 load's step",
                other.name, other.type_name, load.table
            ));
        } else if load.evolution.adds_columns {
            changes.push(ColumnChange {
                column: other.name.clone(),
                change: Change::Unfilled,
                from: Some(other.type_name.clone()),
                to: None,
            });
        } else {
            misfits.push(format!(
                "column {} ({}) of {} is not among the load's columns; add it to its step, or write `on_new_column: add` for \
                 load {}, whose rows then have no value there",
                other.name, other.type_name, load.table, load.load
            ));
        }
    }
    let names = |columns: &[Column]| columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
    if misfits.len() == before && !load.evolution.adds_columns && names(&ours.columns) != names(&there.columns) {
        misfits.push(format!(
            "the columns of {} are in another order: {}; SELECT them in that order, or write `on_new_column: add` for load {}, \
             with which files are read by name",
            load.table,
            names(&there.columns).join(", "),
            load.load
        ));
    }
    changes
}

fn new_column(load: &LoadContext, there: &Shape, column: &Column) -> Result<ColumnChange, String> {
    let table = &load.table;
    if load.layout.partition_by.contains(&column.name) {
        return Err(format!(
            "column {} ({}) is not in {table}, and `partition_by` names it; a table's partitions stay as they are until it is \
             replaced",
            column.name, column.type_name
        ));
    }
    if !load.evolution.adds_columns {
        return Err(format!(
            "column {} ({}) is not in {table}; leave {} out, or write `on_new_column: add` for load {}, or replace the \
             table once",
            column.name,
            column.type_name,
            match load.provenance && PROVENANCE.contains(&column.name.as_str()) {
                true => "`provenance`",
                false => "it",
            },
            load.load
        ));
    }
    let is_alike = |other: &&Column| other.name.to_lowercase() == column.name.to_lowercase();
    if let Some(other) = there.columns.iter().find(is_alike) {
        return Err(format!(
            "column {} is not in {table}, which has {}; readers of files take the two for one, so give it that name, or \
             another one, in the step's SQL",
            column.name, other.name
        ));
    }
    Ok(ColumnChange {
        column: column.name.clone(),
        change: Change::Added,
        from: None,
        to: Some(column.type_name.clone()),
    })
}

fn one_column(
    load: &LoadContext,
    there: &Shape,
    column: &Column,
    other: &Column,
) -> Result<Option<ColumnChange>, String> {
    if column.type_name == other.type_name {
        return Ok(None);
    }
    let table = &load.table;
    let differs = format!(
        "column {} is {} in the load and {} in {table}",
        column.name, column.type_name, other.type_name
    );
    if there.partition_by.contains(&column.name) {
        return Err(format!(
            "{differs}, which is partitioned by it, so its type stays; CAST it in the step's SQL"
        ));
    }
    match joined(&other.type_name, &column.type_name) {
        Some(both) if both == other.type_name => Ok(None),
        Some(both) => match load.evolution.on_wider_type {
            Some(WiderType::Widen) => Ok(Some(ColumnChange {
                column: column.name.clone(),
                change: Change::Widened,
                from: Some(other.type_name.clone()),
                to: Some(both),
            })),
            // Unless it is said, databases try values one by one: a column of files is of one type, whatever is in it.
            Some(WiderType::Fail) | None => Err(format!(
                "{differs}; CAST it in the step's SQL, or write `on_wider_type: widen` for load {}",
                load.load
            )),
        },
        None => Err(format!("{differs}; CAST it in the step's SQL")),
    }
}

/// The type that holds all values of both, if there is one.
fn joined(there: &str, ours: &str) -> Option<String> {
    if there == ours {
        return Some(there.to_owned());
    }
    let (there, ours) = (type_of(there)?, type_of(ours)?);
    let both = match (&there, &ours) {
        // Readers take a moment without a zone for one in theirs.
        (DataType::Timestamp(..), DataType::Timestamp(..)) => return None,
        _ if types::holds(&there, &ours) => there,
        _ => data_type(wider(held(&there)?, &ours)?)?,
    };
    Some(types::name(&both))
}

fn held(data_type: &DataType) -> Option<Held> {
    Some(match data_type {
        DataType::Int16 => Held::Small,
        DataType::Int32 => Held::Int,
        DataType::Int64 => Held::Big,
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            Held::Digits(i32::from(*precision) - i32::from(*scale), i32::from(*scale))
        }
        DataType::Float32 => Held::Float,
        DataType::Float64 => Held::Double,
        DataType::Date32 => Held::Date,
        _ => return None,
    })
}

fn data_type(held: Held) -> Option<DataType> {
    Some(match held {
        Held::Small => DataType::Int16,
        Held::Int => DataType::Int32,
        Held::Big => DataType::Int64,
        Held::Digits(whole, fraction) if whole + fraction <= MAX_DIGITS => {
            DataType::Decimal128(u8::try_from(whole + fraction).ok()?, i8::try_from(fraction).ok()?)
        }
        Held::Digits(..) => return None,
        Held::Float => DataType::Float32,
        Held::Double => DataType::Float64,
        Held::Date => DataType::Date32,
        Held::Timestamp => types::named("timestamp")?,
    })
}

/// What a publish does to the table's columns, to be said of it: not what it leaves without a value.
pub(super) fn made(changes: Vec<ColumnChange>) -> Vec<ColumnChange> {
    let stays = |change: &ColumnChange| match change.change {
        Change::Added | Change::Widened => true,
        Change::Unfilled => false,
    };
    changes.into_iter().filter(stays).collect()
}

/// The columns of a table with these changes: they hold everything that is there.
pub(super) fn changed(there: &[Column], changes: &[ColumnChange]) -> Vec<Column> {
    let mut columns = there.to_vec();
    for change in changes {
        let Some(to) = &change.to else { continue };
        match columns.iter_mut().find(|column| column.name == change.column) {
            Some(column) => column.type_name.clone_from(to),
            None => columns.push(Column {
                name: change.column.clone(),
                type_name: to.clone(),
            }),
        }
    }
    columns
}

impl Head {
    /// The columns of the files of a part.
    pub(super) fn columns_of<'h>(&'h self, part: &'h Part) -> &'h [Column] {
        part.columns.as_deref().unwrap_or(&self.shape.columns)
    }

    /// What the files of an area have in common.
    pub(super) fn shape_of(&self, area: &str) -> Shape {
        let part = self.parts.iter().find(|part| part.area == area);
        Shape {
            columns: part
                .map_or(self.shape.columns.as_slice(), |part| self.columns_of(part))
                .to_vec(),
            ..self.shape.clone()
        }
    }
}

/// The columns of these parts. `was` hold the values of all of them; they are those of parts that say none, and of no part
/// at all. Where all parts have the same they say so no more: releases that know nothing of it read the state again.
pub(super) fn settle(parts: &mut [Part], was: &[Column]) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for part in parts.iter_mut() {
        for own in part.columns.get_or_insert_with(|| was.to_vec()) {
            let Some(column) = columns.iter_mut().find(|column| column.name == own.name) else {
                columns.push(own.clone());
                continue;
            };
            // What holds each of two needn't be what `wider` finds for them: a third one may have brought it.
            let wide = was.iter().find(|was| was.name == own.name);
            if let Some(both) = joined(&column.type_name, &own.type_name).or(wide.map(|wide| wide.type_name.clone())) {
                column.type_name = both;
            }
        }
    }
    if parts.is_empty() {
        columns = was.to_vec();
    }
    if parts
        .iter()
        .all(|part| part.columns.as_ref().is_none_or(|own| *own == columns))
    {
        parts.iter_mut().for_each(|part| part.columns = None);
    }
    columns
}

/// Before a part with other columns comes to a table: those that are there, and those that may come back to it, say what
/// theirs are. Those that were there before the last replace come back with the version that it replaced.
pub(super) fn tell_apart(table: &mut Table) {
    let Some(head) = &mut table.head else { return };
    let columns = head.shape.columns.clone();
    let fill = |part: &mut Part| {
        part.columns.get_or_insert_with(|| columns.clone());
    };
    head.parts.iter_mut().for_each(fill);
    let published = |state: State| state == State::Published;
    let replaced = table
        .records
        .iter()
        .filter(|record| published(record.state) && record.mode == Mode::Replace);
    let replaced = replaced.map(|record| record.sequence).max().unwrap_or_default();
    for record in &mut table.records {
        if published(record.state) && record.sequence > replaced {
            record.taken.iter_mut().for_each(fill);
        }
    }
}

/// Whether files of this load would lie among others than its own.
pub(super) fn differs(load: &LoadContext, head: &Head) -> bool {
    head.shape.columns != Shape::of(load).columns || head.parts.iter().any(|part| part.columns.is_some())
}

/// Puts a part back to where it was among those that are there, by the order of the publishes.
pub(super) fn put_back(table: &Table, parts: &mut Vec<Part>, back: Part) {
    let sequence = |part: &Part| {
        let record = table.records.iter().find(|record| record.area == part.area);
        record.map_or(0, |record| record.sequence)
    };
    let own = sequence(&back);
    let place = parts
        .iter()
        .position(|part| sequence(part) > own)
        .unwrap_or(parts.len());
    parts.insert(place, back);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &str) -> Vec<Column> {
        let column = |text: &str| {
            let (name, type_name) = text.split_once(' ').expect("a name and a type");
            Column {
                name: name.to_owned(),
                type_name: type_name.to_owned(),
            }
        };
        text.split("; ").filter(|text| !text.is_empty()).map(column).collect()
    }

    fn part(own: Option<&str>) -> Part {
        Part {
            run: String::new(),
            area: own.unwrap_or_default().to_owned(),
            list: String::new(),
            rows: 1,
            segments: 1,
            columns: own.map(columns),
        }
    }

    #[test]
    fn a_type_that_holds_both() {
        for (there, ours, both) in [
            ("int", "bigint", Some("bigint")),
            ("bigint", "int", Some("bigint")),
            ("int", "double", Some("double")),
            ("double", "int", Some("double")),
            ("double", "bigint", None),
            ("bigint", "double", None),
            ("float", "double", Some("double")),
            ("int", "decimal(10,2)", Some("decimal(12,2)")),
            ("decimal(10,2)", "decimal(10,4)", Some("decimal(12,4)")),
            ("decimal(12,2)", "int", Some("decimal(12,2)")),
            ("decimal(38,0)", "decimal(10,4)", None),
            ("date", "timestamp", Some("timestamp")),
            ("timestamp", "date", Some("timestamp")),
            ("timestamp", "timestamptz", None),
            ("timestamptz", "timestamp", None),
            // A type that a pipeline can't name goes only to its own.
            ("uint8", "uint8", Some("uint8")),
            ("smallint", "uint16", None),
            ("bigint", "uint64", None),
            ("text", "int", None),
            ("int", "text", None),
            ("int", "of a later release", None),
        ] {
            assert_eq!(joined(there, ours).as_deref(), both, "{ours} into {there}");
        }
    }

    #[test]
    fn columns_follow_from_the_parts_that_are_there() {
        let was = columns("id bigint; x double; y text");
        for (parts, expected, plain) in [
            (
                &[Some("id int; x int"), Some("id bigint; y text")][..],
                "id bigint; x int; y text",
                false,
            ),
            (
                &[Some("id bigint; y text"), Some("id int; x int")],
                "id bigint; y text; x int",
                false,
            ),
            (&[Some("id int; x int"), Some("id int; x int")], "id int; x int", true),
            (
                &[Some("id int; x smallint"), Some("x int"), Some("x float")],
                "id int; x double",
                false,
            ),
            (&[None, None], "id bigint; x double; y text", true),
            (&[], "id bigint; x double; y text", true),
        ] {
            let mut parts: Vec<Part> = parts.iter().map(|own| part(*own)).collect();
            assert_eq!(settle(&mut parts, &was), columns(expected));
            assert_eq!(parts.iter().all(|part| part.columns.is_none()), plain, "{expected}");
        }
    }
}
