//! Rows of a table of files, found by their values: file after file, those that partitions leave out aside.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, Scalar, StringArray};
use datafusion::arrow::compute::kernels::cmp::eq;
use datafusion::arrow::compute::{and, cast, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::arrow::error::ArrowError;
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use haulage_core::receipt::{FoundRow, Looked};
use haulage_plan::PROVENANCE;

use super::Files;
use super::back::{is_sound, is_too_large};
use super::decode::{Wanted, parsed, type_of};
use super::place::TablePlace;
use super::publish::{Entry, Manifest};
use super::standing::publisher;
use super::state::{Head, Record, Shape, State};
use crate::sink::standing::columns_of;
use crate::source::folders::of_path;

/// Publishers of a table that are named at most.
const NAMED: usize = 20;

/// A column that is asked by.
struct Asked {
    name: String,
    value: ArrayRef,
}

/// What is looked for.
struct Question {
    asked: Vec<Asked>,
    /// Whether rows say where they are from.
    provenance: bool,
    /// What is read of a file, with types of the table.
    columns: Vec<(String, DataType)>,
}

impl Files {
    /// The rows of a table with these values.
    pub(super) async fn find(&self, table: &str, key: &[(String, String)], limit: u32) -> Result<Looked, Failure> {
        let place = TablePlace::parse(table)?;
        let state = self.table(&place).await?.value;
        let Some(head) = &state.head else {
            return Err(Failure::permanent(format!(
                "destination {}: there is no table {table}",
                self.name
            )));
        };
        let question = question(table, head, key)?;
        let manifest_key = place.key(&head.manifest);
        let Some(manifest) = self.fixed::<Manifest>(&manifest_key).await? else {
            return Err(Failure::permanent(format!(
                "destination {}: {}, which lists the files of {table}, is gone; put back a copy of it",
                self.name,
                self.objects.address(&manifest_key)
            )));
        };
        let most = limit as usize + 1;
        let mut rows = Vec::new();
        let mut shapes: BTreeMap<String, (Shape, Arc<Wanted>)> = BTreeMap::new();
        for entry in manifest.files {
            if rows.len() >= most {
                break;
            }
            let (shape, wanted) = shapes.entry(entry.area.clone()).or_insert_with(|| {
                let shape = head.shape_of(&entry.area);
                let wanted = Arc::new(Wanted::new(&shape, &question.columns));
                (shape, wanted)
            });
            if question.may_be_in(&entry, shape) {
                self.find_in(&place, &question, wanted, &entry, most, &mut rows).await?;
            }
        }
        let mut publishers: Vec<&Record> = state
            .records
            .iter()
            .filter(|record| record.state == State::Published)
            .collect();
        publishers.sort_by_key(|record| std::cmp::Reverse(record.sequence));
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        Ok(Looked {
            table: table.to_owned(),
            provenance: question.provenance,
            rows,
            more,
            publishers: publishers.into_iter().take(NAMED).map(publisher).collect(),
        })
    }

    async fn find_in(
        &self,
        place: &TablePlace,
        question: &Question,
        wanted: &Arc<Wanted>,
        entry: &Entry,
        most: usize,
        rows: &mut Vec<FoundRow>,
    ) -> Result<(), Failure> {
        let key = place.key(&entry.path);
        let address = self.objects.address(&key);
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::permanent(format!(
                "destination {}: {address} can't be read: {why}; `haulage verify {}` looks at all files of its run",
                self.name, entry.run
            ))
        };
        if !is_sound(&entry.path) {
            return Err(wrong(&"it can be no file of the table, and its manifest names it"));
        }
        if self
            .objects
            .size(&key)
            .await?
            .is_some_and(|size| is_too_large(size, entry.bytes))
        {
            return Err(wrong(&"it is far larger than what was written"));
        }
        let Some((data, _)) = self.objects.get(&key).await? else {
            return Err(wrong(&"it is gone"));
        };
        let mut batches = wanted.read(&entry.path, data, of_path(&entry.path));
        while let Some(read) = batches.recv().await {
            let read = read.map_err(|why| wrong(&why))?;
            if let Some(first) = read.first {
                return Err(wrong(&first));
            }
            let found = question.select(&read.batch).map_err(|error| wrong(&error))?;
            rows.extend(question.shown(&found, entry, wanted).map_err(|error| wrong(&error))?);
            if rows.len() >= most {
                break;
            }
        }
        Ok(())
    }
}

fn question(table: &str, head: &Head, key: &[(String, String)]) -> Result<Question, Failure> {
    let there: Vec<&str> = head.shape.columns.iter().map(|column| column.name.as_str()).collect();
    let keys: Vec<Vec<String>> = [head.key.clone()].into_iter().filter(|key| !key.is_empty()).collect();
    let mut asked = Vec::new();
    let mut columns = Vec::new();
    for (name, text) in columns_of(table, key, &there, &keys).map_err(Failure::permanent)? {
        let column = head.shape.columns.iter().find(|column| column.name == name);
        let type_name = column.map_or("", |column| column.type_name.as_str());
        let misfit = || {
            Failure::permanent(format!(
                "`{text}` doesn't fit its column: {name} of {table} is {type_name}"
            ))
        };
        let data_type = type_of(type_name).ok_or_else(misfit)?;
        let value = parsed(&StringArray::from(vec![text]), &data_type).map_err(|_| misfit())?;
        if !value.unfit.is_empty() {
            return Err(misfit());
        }
        columns.push((name.clone(), data_type));
        asked.push(Asked {
            name,
            value: value.array,
        });
    }
    let provenance = PROVENANCE.iter().all(|name| there.contains(name));
    if provenance {
        let types = [DataType::Utf8, DataType::Utf8, DataType::Int64];
        for (name, data_type) in PROVENANCE.iter().zip(types) {
            if !columns.iter().any(|(asked, _)| asked == name) {
                columns.push(((*name).to_owned(), data_type));
            }
        }
    }
    Ok(Question {
        asked,
        provenance,
        columns,
    })
}

impl Question {
    /// Whether neither a file's columns nor its partition leave it out.
    fn may_be_in(&self, entry: &Entry, shape: &Shape) -> bool {
        let has = |asked: &Asked| shape.columns.iter().any(|column| column.name == asked.name);
        if !self.asked.iter().all(has) {
            return false;
        }
        let of_path = of_path(&entry.path);
        for asked in self
            .asked
            .iter()
            .filter(|asked| shape.partition_by.contains(&asked.name))
        {
            let value = of_path.get(&asked.name).and_then(Option::as_deref);
            let there = parsed(&StringArray::from(vec![value]), asked.value.data_type());
            // What the path doesn't tell is said by whoever reads the file.
            let Ok(there) = there else { continue };
            if there.unfit.is_empty() && !is_equal(&there.array, &asked.value).is_ok_and(|same| same.value(0)) {
                return false;
            }
        }
        true
    }

    fn select(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let mut chosen = BooleanArray::from(vec![true; batch.num_rows()]);
        for (place, asked) in self.asked.iter().enumerate() {
            chosen = and(&chosen, &is_equal(batch.column(place), &asked.value)?)?;
        }
        filter_record_batch(batch, &chosen)
    }

    fn shown(&self, batch: &RecordBatch, entry: &Entry, wanted: &Wanted) -> Result<Vec<FoundRow>, ArrowError> {
        let mut keys = Vec::new();
        for (place, asked) in self.asked.iter().enumerate() {
            keys.push((&asked.name, cast(batch.column(place), &DataType::Utf8)?));
        }
        let text = |array: &ArrayRef, row: usize| {
            let texts = array.as_string::<i32>();
            texts.is_valid(row).then(|| texts.value(row).to_owned())
        };
        let origin = |place: usize| batch.column_by_name(PROVENANCE[place]).filter(|_| self.provenance);
        // Rows of a run without provenance may lie beside those of one with it.
        let in_file = wanted.has(PROVENANCE[0]);
        let row = |row: usize| FoundRow {
            key: keys
                .iter()
                .map(|(name, values)| ((*name).clone(), text(values, row).unwrap_or_default()))
                .collect(),
            // A file's run is known from the manifest, too.
            run: match origin(0) {
                Some(runs) if in_file => text(runs, row).map(RunId::new),
                Some(_) | None => Some(RunId::new(entry.run.clone())),
            },
            chunk: origin(1).and_then(|chunks| text(chunks, row)),
            line: origin(2).and_then(|lines| {
                let lines = lines.as_primitive::<Int64Type>();
                lines
                    .is_valid(row)
                    .then(|| lines.value(row))
                    .and_then(|line| u64::try_from(line).ok())
            }),
        };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

/// Where a column has a value; nowhere where it has none.
fn is_equal(column: &ArrayRef, value: &ArrayRef) -> Result<BooleanArray, ArrowError> {
    let same = eq(column, &Scalar::new(Arc::clone(value)))?;
    Ok(same.iter().map(|same| Some(same == Some(true))).collect())
}
