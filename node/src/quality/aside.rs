//! Sets aside the staged rows that checks with `on_fail: quarantine` name: they become rejected rows of the run, and the others
//! are published.
//!
//! 1. The load is sealed, so that its rows stay what they are. If its record says that rows were set aside already, an earlier
//!    attempt has done it, and what it found is the answer.
//! 2. All of these checks are asked of the same rows. Those that don't hold name rows by a condition, which the destination
//!    notes by number: what is compared, counted and taken out are then the same rows, whatever else changes meanwhile.
//! 3. The noted rows are read, as any query of a database is, and written to the checkpoint store, some at a time.
//! 4. One transaction takes them out of the staging area and writes into the record how many there were and where they are.
//!
//! Of `unique` all rows that share their values go: nobody knows which of them is right. A row that several checks name goes
//! once, with the reason of the first of them in the file.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{Array as _, ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::array_value_to_string;
use futures::StreamExt as _;
use haulage_core::event::CheckResult;
use haulage_core::failure::Failure;
use haulage_core::quarantine::{Form, Kept, Reject, SetAside};
use haulage_core::run::Judged;
use haulage_plan::PROVENANCE;
use haulage_plan::checks::{Check, OnFail};
use haulage_plan::definition::Column;

use super::{Checking, of, one};
use crate::receipt::{Digest, read_as_text};
use crate::sink::{Aside, Named, Question};
use crate::source::database;
use crate::source::{RawRows, printable};
use crate::store::rejects::Packer;
use crate::work::Toolbox;
use crate::work::quarantine::RAW_BYTES;

/// The column with the numbers of the conditions that name a row.
const WHY: &str = "__haulage_why";
/// Rows of an object, and bytes of their text after which it ends.
const OBJECT_ROWS: usize = 20_000;
const OBJECT_BYTES: usize = 8 << 20;

/// Sets aside what checks of the load name. `None` if it has no such checks.
pub(crate) async fn set(tools: &Toolbox, checking: &Checking<'_>) -> Result<Option<Aside>, Failure> {
    let checks = checking.checks().into_iter();
    let checks: Vec<&Check> = checks.filter(|check| check.on_fail == OnFail::Quarantine).collect();
    if checks.is_empty() {
        return Ok(None);
    }
    let (destination, load, expected) = (checking.destination, checking.load, checking.expected);
    if let Some(done) = destination.seal(load, expected).await? {
        return Ok(Some(done));
    }
    let mut asker = checking.asker(expected.rows);
    asker.before_newest = true;
    let mut aside = Aside::default();
    let (mut conditions, mut naming) = (Vec::<Question>::new(), Vec::new());
    for (at, check) in checks.iter().enumerate() {
        let found = one(&asker, check, Judged::default()).await;
        let found = found.map_err(|failure| of(check, failure))?;
        if let (false, Some(rows)) = (found.holds, found.rows) {
            conditions.push(rows);
            naming.push(at);
        }
        aside.checks.push(CheckResult {
            name: check.name.clone(),
            holds: found.holds,
            blocks: false,
            found: found.words,
            set_aside: 0,
        });
    }
    if conditions.is_empty() {
        return Ok(Some(aside));
    }
    let named = destination.name_rows(load, expected, &conditions).await?;
    for (at, rows) in naming.iter().zip(named) {
        aside.checks[*at].set_aside = rows;
    }
    let names: Vec<&Check> = naming.iter().map(|at| checks[*at]).collect();
    aside.set = Writer::new(checking, &names)?.write(tools).await?;
    let done = destination.set_aside(load, expected, &aside).await?;
    tools.config().fault.after_set_aside();
    Ok(Some(done))
}

/// Writes the noted rows to the checkpoint store.
struct Writer<'a> {
    checking: &'a Checking<'a>,
    /// By the number of their condition.
    checks: &'a [&'a Check],
    /// The load's.
    columns: Vec<Column>,
    /// Those of them that are summed up.
    summed: Vec<usize>,
    /// Of the source that feeds it.
    source: String,
    set: SetAside,
    packer: Packer,
    /// Their names.
    names: Arc<[String]>,
    /// Rows of the object that is being written, and bytes of their text.
    rows: usize,
    bytes: usize,
}

impl<'a> Writer<'a> {
    fn new(checking: &'a Checking<'a>, checks: &'a [&'a Check]) -> Result<Self, Failure> {
        let load = checking.load;
        let mut columns = Vec::new();
        let mut summed = Vec::new();
        for (at, field) in load.schema.fields().iter().enumerate() {
            let kind = read_as_text(field.data_type());
            let says_where = load.provenance && PROVENANCE.contains(&field.name().as_str());
            if kind.is_some() && !says_where {
                summed.push(at);
            }
            columns.push(Column {
                name: field.name().clone(),
                data_type: kind.filter(|_| !says_where).unwrap_or(DataType::Utf8),
                required: false,
            });
        }
        let stages = checking.context.stages().iter();
        let feeds = stages.filter(|stage| stage.loads.contains(&load.load));
        let sources: Vec<&str> = feeds.map(|stage| stage.source.as_str()).collect();
        let area = crate::sink::name::area(&load.run, &load.load);
        let prefix = format!(
            "runs/{}/checks/{area}/r{}-e{}-a{}/",
            load.run, load.round, load.epoch, load.attempt
        );
        Ok(Self {
            checking,
            checks,
            names: columns.iter().map(|column| column.name.clone()).collect(),
            columns,
            summed,
            source: sources.join(", "),
            set: SetAside {
                prefix,
                ..SetAside::default()
            },
            packer: Packer::new()?,
            rows: 0,
            bytes: 0,
        })
    }

    async fn write(mut self, tools: &Toolbox) -> Result<SetAside, Failure> {
        let (load, expected) = (self.checking.load, self.checking.expected);
        let mut digest = Digest::default();
        let is_whole = match self.checking.destination.named_rows(load, expected, WHY).await? {
            Named::Query(query) => self.read(tools, &query, &mut digest).await?,
            Named::Batches(mut batches) => {
                while let Some(batch) = batches.next().await {
                    let batch = batch?;
                    self.add(&batch, &mut digest)?;
                    for row in 0..batch.num_rows() {
                        let texts = batch.columns().iter().map(|column| text(column, row));
                        self.take(tools, texts.collect()).await?;
                    }
                }
                true
            }
        };
        self.flush(tools).await?;
        self.set.checksum = is_whole.then(|| digest.finish());
        Ok(self.set)
    }

    /// Reads them with a query. Says whether all of them could be read as what they are.
    async fn read(&mut self, tools: &Toolbox, query: &str, digest: &mut Digest) -> Result<bool, Failure> {
        let loads = &self.checking.context.definition().loads;
        let to = loads.get(&self.checking.load.load).map(|load| load.to.as_str());
        let mut columns = self.columns.clone();
        columns.push(Column {
            name: WHY.to_owned(),
            data_type: DataType::Utf8,
            required: false,
        });
        let mut reader = database::read_back(tools.config(), to.unwrap_or_default(), query, columns).await?;
        let mut is_whole = true;
        while let Some(segment) = reader.next().await? {
            is_whole &= segment.unreadable.is_empty();
            for batch in &segment.batches {
                self.add(batch, digest)?;
            }
            for row in 0..segment.rows {
                self.take(tools, values(segment.raw.as_ref(), row)).await?;
            }
        }
        Ok(is_whole)
    }

    fn add(&self, batch: &RecordBatch, digest: &mut Digest) -> Result<(), Failure> {
        let shown = batch.project(&self.summed);
        digest.add(&shown.map_err(|error| Failure::permanent(error.to_string()))?)
    }

    async fn take(&mut self, tools: &Toolbox, values: Vec<Option<String>>) -> Result<(), Failure> {
        let reject = self.reject(values)?;
        *self.set.reasons.entry(reject.reason.clone()).or_default() += 1;
        self.set.rows += 1;
        self.bytes += reject.raw.len();
        self.rows += 1;
        let full = self.packer.add(reject)?;
        self.put(tools, full).await?;
        if self.rows >= OBJECT_ROWS || self.bytes >= OBJECT_BYTES {
            self.flush(tools).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, tools: &Toolbox) -> Result<(), Failure> {
        (self.rows, self.bytes) = (0, 0);
        let last = self.packer.finish()?;
        self.put(tools, last).await
    }

    async fn put(&mut self, tools: &Toolbox, object: Option<Bytes>) -> Result<(), Failure> {
        let Some(object) = object else { return Ok(()) };
        let key = SetAside::key(&self.set.prefix, self.set.objects);
        tools.store().await?.put(&key, object).await?;
        self.set.objects += 1;
        Ok(())
    }

    /// A row as it is kept, from its values and the numbers of what names it.
    fn reject(&self, mut values: Vec<Option<String>>) -> Result<Reject, Failure> {
        let load = self.checking.load;
        let why = values.pop().flatten().unwrap_or_default();
        let named: Vec<&Check> = why
            .split(',')
            .filter_map(|number| self.checks.get(number.parse::<usize>().ok()?).copied())
            .collect();
        let (Some((first, others)), true) = (named.split_first(), values.len() == self.columns.len()) else {
            return Err(Failure::permanent(format!(
                "load {}: a row to be set aside has come back without what names it; this is a bug",
                load.load
            )));
        };
        let value = |name: &str| {
            let at = self
                .columns
                .iter()
                .position(|column| load.provenance && column.name == name)?;
            values.get(at).cloned().flatten()
        };
        let (chunk, line) = (value(PROVENANCE[1]), value(PROVENANCE[2]));
        let mut detail = format!("a row of load {} that `{}` names", load.load, first.name);
        for other in others {
            detail.push_str(&format!(", and `{}`", other.name));
        }
        if let Some(chunk) = chunk {
            detail.push_str(&format!("; from chunk {chunk}"));
        }
        let text = object(&self.names, &values);
        let kept = cut(&text, RAW_BYTES);
        if kept.len() < text.len() {
            detail.push_str(&format!(
                " (the first {RAW_BYTES} of {} bytes of the row are kept)",
                text.len()
            ));
        }
        Ok(Reject {
            pipeline: load.pipeline.clone(),
            run: load.run.clone(),
            source: self.source.clone(),
            file: format!("load {}", load.load),
            line: line.and_then(|line| line.parse().ok()).unwrap_or_default(),
            column: match first.rule.columns() {
                [column] => Some(column.clone()),
                _ => None,
            },
            step: None,
            reason: first.reason(),
            detail,
            raw: kept.to_owned(),
            kept: Some(Kept {
                loads: vec![load.load.clone()],
                reached: Vec::new(),
                form: match kept.len() == text.len() {
                    true => Form::Values(values),
                    false => Form::Partly(format!(
                        "only the first {RAW_BYTES} of its {} bytes are kept",
                        text.len()
                    )),
                },
                columns: Some(Arc::clone(&self.names)),
                tabbed: false,
            }),
        })
    }
}

/// A row's values as texts; its bytes have a tab between them, and `\N` for none, unless that would be ambiguous.
fn values(raw: &dyn RawRows, row: u64) -> Vec<Option<String>> {
    if let Some(values) = raw.values(row) {
        return values.into_iter().map(|value| value.map(printable)).collect();
    }
    let (_, bytes) = raw.row(row).unwrap_or((0, b""));
    let value = |value: &[u8]| (value != b"\\N").then(|| printable(value));
    bytes.split(|byte| *byte == b'\t').map(value).collect()
}

/// A value as text.
fn text(column: &ArrayRef, row: usize) -> Option<String> {
    let shown = || array_value_to_string(column, row).ok();
    if column.is_null(row) { None } else { shown() }
}

/// A row as an object of JSON, in the order of its columns.
fn object(names: &[String], values: &[Option<String>]) -> String {
    let fields = names.iter().zip(values).map(|(name, value)| {
        let (name, value) = (
            serde_json::Value::from(name.as_str()),
            serde_json::Value::from(value.clone()),
        );
        format!("{name}:{value}")
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// The beginning of a text, in so many bytes at most.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
