//! Sets aside what checks name, see [`crate::sink::aside`]. Files of a sealed load never change, so a row is known by its number
//! in the order of their list. Which rows are named is a bit for each of them and each condition, in this process: who comes
//! after it names them again. Files that hold such rows are written again without them, under names of their own, and the
//! same exchange of the table's state makes the new list the load's and says so in its record. What is in no list goes when
//! the run is over.

use std::sync::{Arc, PoisonError};

use datafusion::arrow::array::{ArrayRef, AsArray as _, BooleanArray, BooleanBufferBuilder, RecordBatch, StringArray};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, UInt64Type};
use datafusion::arrow::error::ArrowError;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use haulage_core::failure::Failure;

use super::Files;
use super::ask::said;
use super::documents::json;
use super::place::{Area, TablePlace};
use super::rows::stored;
use super::state::{File, State, ended, same_round};
use super::verify::{List, staged};
use super::work::Work;
use crate::chance;
use crate::sink::aside::left;
use crate::sink::{Aside, Expected, LoadContext, Named, Question};

/// The column with a row's number.
const NUMBER: &str = "__haulage_id";
/// Loads whose named rows are kept in mind.
const LOADS: usize = 32;

/// Which rows of a load are named: a bit for each row, by condition.
pub(super) struct Marks {
    area: String,
    by: Vec<BooleanBuffer>,
}

impl Marks {
    /// Of these rows, those that are named.
    fn any(&self, from: usize, rows: usize) -> BooleanArray {
        let any = self.by.iter().map(|bits| bits.slice(from, rows));
        let any = any.reduce(|all, bits| &all | &bits);
        BooleanArray::new(any.unwrap_or_else(|| BooleanBuffer::new_unset(rows)), None)
    }

    /// The conditions that name a row, as `0,2`.
    fn why(&self, row: usize) -> String {
        let numbers = self.by.iter().enumerate().filter(|(_, bits)| bits.value(row));
        let numbers: Vec<String> = numbers.map(|(number, _)| number.to_string()).collect();
        numbers.join(",")
    }
}

impl Files {
    pub(super) async fn seal_load(&self, load: &LoadContext, expected: Expected) -> Result<Option<Aside>, Failure> {
        let place = TablePlace::parse(&load.table)?;
        let record = self.seal_record(load, &place).await?;
        if matches!(record.state, State::Staged | State::Sealing) {
            let files = self.sealed_files(load, &place, expected, record.round).await?;
            self.write_down(load, &place, files, expected).await?;
        }
        Ok(record.set_aside)
    }

    pub(super) async fn name_staged(
        &self,
        load: &LoadContext,
        expected: Expected,
        conditions: &[Question],
    ) -> Result<Vec<u64>, Failure> {
        let (place, files) = self.unchanged(load, expected).await?;
        let rows = usize::try_from(expected.rows).unwrap_or(usize::MAX);
        let mut marks = Marks {
            area: Area::of(load).id,
            by: Vec::new(),
        };
        for condition in conditions {
            let question = Question {
                sql: format!("SELECT {NUMBER} FROM staged WHERE {}", condition.sql),
                values: condition.values.clone(),
                ..Question::default()
            };
            let mut bits = BooleanBufferBuilder::new(rows);
            bits.append_n(rows, false);
            let mut found = self.asked(load, &place, &files, &question, Some(NUMBER)).await?;
            while let Some(batch) = found.next().await {
                let batch = batch.map_err(|error| said(load, &error))?;
                for number in batch.column(0).as_primitive::<UInt64Type>().values() {
                    bits.set_bit(*number as usize, true);
                }
            }
            marks.by.push(bits.finish());
        }
        let counts = marks.by.iter().map(|bits| bits.count_set_bits() as u64).collect();
        let mut all = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.area != marks.area);
        // What an attempt that came to nothing has left.
        if all.len() >= LOADS {
            all.remove(0);
        }
        all.push(Arc::new(marks));
        Ok(counts)
    }

    pub(super) async fn named_staged(
        &self,
        load: &LoadContext,
        expected: Expected,
        why: &str,
    ) -> Result<Named, Failure> {
        let marks = self.aside_marks(load)?;
        let (place, files) = self.unchanged(load, expected).await?;
        let schema = stored(&load.schema);
        let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        fields.push(Field::new(why, DataType::Utf8, false));
        let shown = Arc::new(Schema::new(fields));
        let (this, load) = (self.clone(), load.clone());
        let mut first = 0;
        let firsts: Vec<(File, usize)> = files
            .into_iter()
            .map(|file| {
                let start = first;
                first += file.rows as usize;
                (file, start)
            })
            .filter(|(file, start)| marks.any(*start, file.rows as usize).true_count() > 0)
            .collect();
        let batches = stream::iter(firsts).then(move |(file, start)| {
            let (this, place, load, schema) = (this.clone(), place.clone(), load.clone(), schema.clone());
            let (marks, shown) = (Arc::clone(&marks), shown.clone());
            async move {
                let rows = this.read(&place, &load, &schema, &file).await?;
                let mut start = start;
                let mut named = Vec::new();
                for batch in rows {
                    let mut columns = batch.columns().to_vec();
                    let why = (start..start + batch.num_rows()).map(|row| marks.why(row));
                    columns.push(Arc::new(StringArray::from_iter_values(why)) as ArrayRef);
                    let which = marks.any(start, batch.num_rows());
                    let batch = RecordBatch::try_new(shown.clone(), columns);
                    let batch = batch.and_then(|batch| filter_record_batch(&batch, &which));
                    named.push(batch.map_err(|error| wrong(&load, &error))?);
                    start += which.len();
                }
                Ok::<_, Failure>(stream::iter(named.into_iter().map(Ok)))
            }
        });
        Ok(Named::Batches(batches.try_flatten().boxed()))
    }

    pub(super) async fn set_rows_aside(
        &self,
        load: &LoadContext,
        expected: Expected,
        what: &Aside,
    ) -> Result<Aside, Failure> {
        let place = TablePlace::parse(&load.table)?;
        // Before anything is written: an earlier attempt may have done it.
        if let Some(done) = self.seal_record(load, &place).await?.set_aside {
            return Ok(done);
        }
        let marks = self.aside_marks(load)?;
        let (_, files) = self.unchanged(load, expected).await?;
        let mut kept = Vec::with_capacity(files.len());
        let (mut first, mut gone) = (0, 0);
        for (number, file) in files.into_iter().enumerate() {
            let rows = file.rows as usize;
            let named = marks.any(first, rows).true_count();
            match named {
                0 => kept.push(file),
                named if named == rows => {}
                _ => kept.extend(self.rewritten(load, &place, &file, &marks, first, number).await?),
            }
            (first, gone) = (first + rows, gone + named as u64);
        }
        let visible = left(expected, Some(what));
        if gone != what.set.rows || kept.iter().map(|file| file.rows).sum::<u64>() != visible.rows {
            return Err(Failure::transient(format!(
                "load {}: {} rows were to be set aside, and {gone} are there; they are named again",
                load.load, what.set.rows
            )));
        }
        let kept = self.with_columns(load, &place, kept).await?;
        let list = format!("{}{}.json", Area::of(load).lists(), chance::boot());
        self.objects
            .put(&place.key(&list), json(&List { files: kept })?)
            .await?;
        let done = self
            .change(&place, |table| {
                let Some(record) = table.hold(load, "verify")? else {
                    return Err(ended(load, "gone"));
                };
                same_round(load, record)?;
                if let Some(done) = &record.set_aside {
                    return Ok(done.clone());
                }
                match (record.state, &mut record.part) {
                    (State::Sealed, Some(part)) => {
                        part.list.clone_from(&list);
                        part.rows = visible.rows;
                        record.set_aside = Some(what.clone());
                        Ok(what.clone())
                    }
                    (state, _) => Err(ended(load, state.word())),
                }
            })
            .await?;
        let mut all = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.area != marks.area);
        Ok(done)
    }

    /// A file again, without the rows that are named.
    async fn rewritten(
        &self,
        load: &LoadContext,
        place: &TablePlace,
        file: &File,
        marks: &Marks,
        first: usize,
        number: usize,
    ) -> Result<Vec<File>, Failure> {
        let mut start = first;
        let mut left = Vec::new();
        for batch in self.read(place, load, &stored(&load.schema), file).await? {
            let named = marks.any(start, batch.num_rows());
            start += batch.num_rows();
            let stay = BooleanArray::new(!named.values(), None);
            left.push(filter_record_batch(&batch, &stay).map_err(|error| wrong(load, &error))?);
        }
        let work = Work {
            load: load.clone(),
            batches: left,
            name: format!("left-{number}-a{}-{}", load.attempt, chance::boot()),
            before: 0,
        };
        let mut files = Vec::new();
        let written = self.write_files(place, work, &mut files).await;
        written.map_err(Failure::from)?;
        Ok(files)
    }

    fn aside_marks(&self, load: &LoadContext) -> Result<Arc<Marks>, Failure> {
        let area = Area::of(load).id;
        let all = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|marks| marks.area == area).cloned();
        found.ok_or_else(|| Failure::transient(format!("load {}: its rows are to be named again", load.load)))
    }

    /// The files of a load that is sealed and of which nothing is set aside.
    async fn unchanged(&self, load: &LoadContext, expected: Expected) -> Result<(TablePlace, Vec<File>), Failure> {
        let place = TablePlace::parse(&load.table)?;
        let table = self.table(&place).await?.value;
        let record = table.record(load).ok_or_else(|| ended(load, "not prepared"))?;
        same_round(load, record)?;
        let part = match (record.state, &record.part, &record.set_aside) {
            (State::Sealed, Some(part), None) => part,
            (State::Sealed, ..) => return Err(ended(load, "already without its rows")),
            (state, ..) => return Err(ended(load, state.word())),
        };
        let files = self.files_of(load, &place, part, expected).await?;
        staged(load, expected).counted(files.iter().map(|file| file.rows).sum())?;
        Ok((place, files))
    }
}

fn wrong(load: &LoadContext, error: &ArrowError) -> Failure {
    Failure::permanent(format!("load {}: staged rows can't be divided: {error}", load.load))
}
