//! What stands of a publish among files: whether it counts, who has come after it, and in which files its rows are.
//!
//! Files know whose they are, so it is always known which rows are a run's. A run that another one has replaced has none.

use datafusion::arrow::datatypes::DataType;
use haulage_core::failure::Failure;
use haulage_core::ids::{LoadName, RunId};
use haulage_core::receipt::Publisher;
use haulage_plan::definition::{FileFormat, Mode};
use haulage_plan::{PROVENANCE, types};

use super::Files;
use super::place::TablePlace;
use super::rows::stored_type;
use super::state::{Record, Shape, State, Table};
use crate::receipt::Back;
use crate::sink::LoadContext;
use crate::sink::standing::{Publication, Rows, Standing};

impl Files {
    pub(super) async fn stand(&self, load: &LoadContext) -> Result<Standing, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let table = match self.objects.exists().await? {
            true => self.table(&place).await?.value,
            false => Table::default(),
        };
        Ok(stand(load, &table))
    }
}

fn stand(load: &LoadContext, table: &Table) -> Standing {
    let record = table.record(load);
    let publication = match record.map(|record| record.state) {
        None => Publication::Unknown,
        Some(State::Published) => Publication::Stands,
        Some(State::Staged | State::Sealing | State::Sealed) => Publication::Not("staged and not published".to_owned()),
        Some(ended @ (State::Reverted | State::Discarded)) => Publication::Not(ended.word().to_owned()),
    };
    let since = record.map_or(u64::MAX, |record| record.sequence);
    let is_later = |other: &&Record| other.state == State::Published && other.sequence > since;
    let mut later: Vec<&Record> = table.records.iter().filter(is_later).collect();
    later.sort_by_key(|record| record.sequence);
    let later: Vec<Publisher> = later.into_iter().map(publisher).collect();
    let area = record.and_then(|record| record.part.as_ref()).map(|part| &part.area);
    let is_there = |area: &String| {
        table
            .head
            .iter()
            .flat_map(|head| &head.parts)
            .any(|part| part.area == *area)
    };
    let replaced = later
        .iter()
        .find(|other| other.mode == "replace" || other.replaces.as_ref() == Some(&load.run));
    let publication = match (publication, replaced) {
        (Publication::Stands, Some(other)) if !area.is_some_and(is_there) => {
            Publication::Not(format!("replaced by run {} ({}, {})", other.run, other.mode, other.at))
        }
        (publication, _) => publication,
    };
    let columns = table.head.as_ref().map(|head| {
        // As its own files have them, whatever the table has become since.
        let shape = head.shape_of(area.map_or("", String::as_str));
        let fields = load.schema.fields().iter();
        let data = fields.filter(|field| !(load.provenance && PROVENANCE.contains(&field.name().as_str())));
        data.map(|field| (field.name().clone(), back(field.name(), field.data_type(), &shape)))
            .collect()
    });
    let rows = match &table.head {
        None => Rows::Untold("there is no such table".to_owned()),
        Some(head) => Rows::InFiles {
            manifest: head.manifest.clone(),
            which: "the rows of the run's files, as the table's manifest names them".to_owned(),
        },
    };
    Standing {
        publication,
        later,
        columns,
        rows,
    }
}

/// How a column is read back from files of this shape.
fn back(name: &str, data_type: &DataType, shape: &Shape) -> Back {
    let Some(there) = shape.columns.iter().find(|column| column.name == name) else {
        return Back::Changed("it is gone".to_owned());
    };
    let Some(stored) = stored_type(data_type) else {
        return Back::LeftOut(format!("files have no place for {data_type}"));
    };
    if there.type_name != types::name(&stored) {
        return Back::Changed(format!("it is {} now", there.type_name));
    }
    let in_file = |other: &str| !shape.partition_by.iter().any(|by| by == other);
    let others = shape
        .columns
        .iter()
        .any(|other| other.name != name && in_file(&other.name));
    if shape.format == FileFormat::Csv
        && matches!(stored, DataType::Utf8 | DataType::Binary)
        && in_file(name)
        && !others
    {
        return Back::LeftOut(
            "a CSV file with nothing else in it has one text, \"\", for no value and for the empty text".to_owned(),
        );
    }
    Back::As(stored)
}

pub(super) fn publisher(record: &Record) -> Publisher {
    let mode = match record.mode {
        Mode::Append => "append",
        Mode::Replace => "replace",
        Mode::Merge => "merge",
    };
    Publisher {
        run: RunId::new(record.run.clone()),
        load: LoadName::new(record.load.clone()),
        mode: mode.to_owned(),
        replaces: record.replaces.clone().map(RunId::new),
        at: record
            .published_at
            .map_or_else(String::new, |at| at.format("%F %T UTC").to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::{Field, Schema};

    use super::super::place::Area;
    use super::super::state::{Head, Part};
    use super::*;
    use crate::sink::tests::load;

    fn part(load: &LoadContext) -> Part {
        let area = Area::of(load);
        Part {
            run: load.run.as_str().to_owned(),
            list: String::new(),
            area: area.id,
            rows: 1,
            segments: 1,
            columns: None,
        }
    }

    /// As a publish leaves the table.
    fn publish(table: &mut Table, load: &LoadContext) {
        let sequence = table
            .records
            .iter()
            .map(|record| record.sequence)
            .max()
            .unwrap_or_default()
            + 1;
        let record = table.claim(load, "publish", State::Staged).expect("not fenced");
        (record.state, record.sequence) = (State::Published, sequence);
        record.part = Some(part(load));
        let mut parts = table.head.take().map(|head| head.parts).unwrap_or_default();
        if load.mode == Mode::Replace {
            parts.clear();
        }
        parts.push(part(load));
        table.head = Some(Head {
            manifest: format!("v{sequence}"),
            shape: Shape::of(load),
            parts,
            key: Vec::new(),
        });
    }

    #[test]
    fn a_publish_is_known_with_its_rows_until_another_one_replaces_it() {
        let first = LoadContext {
            mode: Mode::Append,
            ..load()
        };
        let second = LoadContext {
            run: RunId::from("second"),
            ..first.clone()
        };
        let mut table = Table::default();
        assert_eq!(stand(&first, &table).publication, Publication::Unknown);
        table.claim(&first, "prepare", State::Staged).expect("not fenced");
        let standing = stand(&first, &table);
        assert_eq!(
            standing.publication,
            Publication::Not("staged and not published".to_owned())
        );
        assert_eq!(standing.columns, None);
        publish(&mut table, &first);
        publish(&mut table, &second);
        let standing = stand(&first, &table);
        assert_eq!(standing.publication, Publication::Stands);
        let later: Vec<&str> = standing.later.iter().map(|publisher| publisher.run.as_str()).collect();
        assert_eq!(later, ["second"]);
        assert!(matches!(standing.rows, Rows::InFiles { manifest, .. } if manifest == "v2"));
        assert!(stand(&second, &table).later.is_empty());
        let third = LoadContext {
            run: RunId::from("third"),
            mode: Mode::Replace,
            ..first.clone()
        };
        publish(&mut table, &third);
        for load in [&first, &second] {
            let publication = stand(load, &table).publication;
            assert!(
                matches!(&publication, Publication::Not(why) if why.starts_with("replaced by run third (replace")),
                "{publication:?}"
            );
        }
        table.claim(&first, "revert", State::Staged).expect("not fenced").state = State::Reverted;
        assert_eq!(
            stand(&first, &table).publication,
            Publication::Not("reverted".to_owned())
        );
    }

    #[test]
    fn a_column_is_read_as_it_was_stored_if_it_is_there() {
        let schema = |fields: &[(&str, DataType)]| {
            let field = |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), true);
            Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
        };
        let mut load = load();
        load.schema = schema(&[
            ("a", DataType::Utf8View),
            ("b", DataType::Int32),
            ("c", DataType::Int32),
        ]);
        let mut shape = Shape::of(&load);
        shape.columns.pop();
        "text".clone_into(&mut shape.columns[1].type_name);
        assert_eq!(back("a", &DataType::Utf8View, &shape), Back::As(DataType::Utf8));
        assert_eq!(
            back("b", &DataType::Int32, &shape),
            Back::Changed("it is text now".to_owned())
        );
        assert_eq!(
            back("c", &DataType::Int32, &shape),
            Back::Changed("it is gone".to_owned())
        );
        // In a file by itself.
        shape.partition_by = vec!["b".to_owned()];
        shape.format = FileFormat::Csv;
        assert!(matches!(back("a", &DataType::Utf8View, &shape), Back::LeftOut(_)));
        shape.format = FileFormat::Jsonl;
        assert_eq!(back("a", &DataType::Utf8View, &shape), Back::As(DataType::Utf8));
    }
}
