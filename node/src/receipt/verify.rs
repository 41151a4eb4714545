//! A receipt held against its target: the run's rows are read back and summed up, in one pass, and what comes out is
//! compared with what was summed up when they were staged.
//!
//! What can't be told is said, and is never an answer. Whether others publish meanwhile is seen by asking the destination
//! before and after.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use haulage_core::checksum::Checksum;
use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, Epoch, Millis};
use haulage_core::receipt::{Answer, Looked, Publisher, Verdict};
use haulage_core::words::counted;
use haulage_plan::PROVENANCE;
use haulage_plan::definition::Column;
use haulage_proto::link::message::{Examination, Examine, LookUp, VerifyLoad};

use super::{Back, Digest, type_of};
use crate::config::NodeConfig;
use crate::sink::{LoadContext, Publication, ReadBack, Rows, Seen, Standing};
use crate::source::{SegmentReader, database};
use crate::work::Toolbox;
use crate::work::run::{Request, RunContext, bare, mode};

/// Chunks that differ are named up to so many.
const NAMED: usize = 10;

/// Answers a question with a node's destinations.
pub(crate) async fn examine(tools: &Toolbox, question: &Examine) -> Result<Examination, Failure> {
    match question {
        Examine::Verify(asked) => Ok(Examination::Verified(Box::pin(compare(tools, asked)).await?)),
        Examine::LookUp(asked) => Ok(Examination::Found(find(tools, asked).await?)),
    }
}

/// Holds a published load against its target, from here. Permanent failure if the destination isn't known here, or is
/// elsewhere and knows nothing of the run.
pub async fn verify(config: NodeConfig, asked: &VerifyLoad) -> Result<Verdict, Failure> {
    Box::pin(compare(&Toolbox::new(config), asked)).await
}

/// Finds rows by their key, from here.
pub async fn look_up(config: NodeConfig, asked: &LookUp) -> Result<Looked, Failure> {
    find(&Toolbox::new(config), asked).await
}

async fn find(tools: &Toolbox, asked: &LookUp) -> Result<Looked, Failure> {
    // Says so if it isn't known here.
    tools.config().destination(&asked.destination)?;
    if let Some(elsewhere) = elsewhere(tools.config(), &asked.destination, asked.place.as_deref()) {
        return Err(Failure::permanent(elsewhere));
    }
    let destination = tools.destination_named(&asked.destination).await?;
    destination.look_up(&asked.table, &asked.key, asked.limit).await
}

/// Where a destination of that name is here, if that is elsewhere.
fn elsewhere(config: &NodeConfig, destination: &str, place: Option<&str>) -> Option<String> {
    let (wanted, here) = (place?, config.places().remove(destination)?);
    (wanted != here).then(|| {
        format!(
            "the run has published to {wanted}, and destination {destination} is {here} here; if that isn't the same, give \
             the address of the former, with --destination {destination}=ADDRESS"
        )
    })
}

async fn compare(tools: &Toolbox, asked: &VerifyLoad) -> Result<Verdict, Failure> {
    let mut verdict = Verdict {
        answer: Answer::Unknown,
        findings: Vec::new(),
        notes: Vec::new(),
        published: asked.rows,
        found: None,
        checksum: None,
        columns: Vec::new(),
    };
    let (load, to) = load_of(asked)?;
    let destination = tools.destination_named(&to).await?;
    let before = destination.standing(&load).await?;
    if let Some(elsewhere) = elsewhere(
        tools.config(),
        &to,
        asked.submission.places.get(&to).map(String::as_str),
    ) {
        // A server may have several names, and a copy can be verified: the run's record is what counts. It stands there.
        match &before.publication {
            Publication::Unknown => return Err(Failure::permanent(elsewhere)),
            Publication::Not(_) | Publication::Stands => verdict.notes.push(elsewhere),
        }
    }
    let Some(which) = told(&load, &before, &mut verdict) else {
        return Ok(verdict);
    };
    let (mut columns, mut left_out) = columns_of(&before, &mut verdict);
    let Some(published) = &asked.checksum else {
        verdict.findings.push(
            "some of its rows were staged by a release that made no checksums, so their values can't be compared"
                .to_owned(),
        );
        return Ok(verdict);
    };
    let mut beyond = Vec::new();
    let turn = tools.reading_back.acquire().await;
    let (read, seen) = loop {
        if columns.is_empty() {
            if !verdict.findings.is_empty() {
                verdict.answer = Answer::Differs;
            } else if beyond.is_empty() {
                verdict.findings.push("none of its columns can be compared".to_owned());
            }
            verdict.findings.extend(beyond);
            return Ok(verdict);
        }
        let by_chunk = load.provenance && left_out == 0 && !asked.chunks.is_empty();
        let wanted = with_chunks(&columns, by_chunk);
        let mut reader = match &before.rows {
            Rows::Of { query, .. } => Reader::Query(database::read_back(tools.config(), &to, query, wanted).await?),
            Rows::InFiles { .. } | Rows::Untold(_) => Reader::Files(destination.read_back(&load, &wanted).await?),
        };
        let read = read(&mut reader, &columns, by_chunk).await?;
        let Some((name, detail)) = &read.beyond else {
            break (read, reader.seen());
        };
        // The others are read again without it.
        columns.retain(|column| column.name != *name);
        left_out += 1;
        beyond.push(format!(
            "column {name}: times before the year 1 and after 9999 can't be read back, so whether its values are those that \
             were published can't be told ({detail})"
        ));
    };
    drop(turn);
    verdict.notes.push(format!("compared: {which}"));
    let after = destination.standing(&load).await?;
    if after != before {
        verdict.findings = vec![format!(
            "{} was published to, or altered, while its rows were read; verify again",
            load.table
        )];
        verdict.notes.clear();
        return Ok(verdict);
    }
    verdict.findings.extend(seen.findings);
    verdict.notes.extend(seen.notes);
    judge(&mut verdict, published, read, &columns, left_out > 0, asked);
    if !beyond.is_empty() {
        if verdict.answer == Answer::Holds {
            verdict.answer = Answer::Unknown;
        }
        verdict.findings.extend(beyond);
    }
    if verdict.answer == Answer::Holds {
        let again = |touched| format!("{touched}; the rows are those that were published");
        verdict.notes.extend(seen.touched.into_iter().map(again));
    } else {
        verdict.findings.extend(seen.touched);
    }
    Ok(verdict)
}

/// From where rows come back.
enum Reader {
    Query(Box<dyn SegmentReader>),
    Files(Box<dyn ReadBack>),
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Rest>, Failure> {
        Ok(match self {
            Self::Query(reader) => reader.next().await?.map(|segment| Rest {
                first: segment.unreadable.first().map(|first| {
                    let column = first.column.as_deref().unwrap_or_default();
                    format!("column {column}: {}", first.detail)
                }),
                unreadable: segment.unreadable.len() as u64,
                misfits: segment
                    .unreadable
                    .into_iter()
                    .filter_map(|row| Some((row.column?, row.detail)))
                    .collect(),
                batches: segment.batches,
            }),
            Self::Files(reader) => reader.next().await?.map(|rows| Rest {
                batches: vec![rows.batch],
                unreadable: rows.unreadable,
                misfits: Vec::new(),
                first: rows.first,
            }),
        })
    }

    /// What it has seen beside the rows.
    fn seen(self) -> Seen {
        match self {
            Self::Query(_) => Seen::default(),
            Self::Files(reader) => reader.seen(),
        }
    }
}

/// Rows that have come back.
struct Rest {
    batches: Vec<RecordBatch>,
    unreadable: u64,
    first: Option<String>,
    /// Columns that have something of another type, and what.
    misfits: Vec<(String, String)>,
}

/// The load as its destination knows it, with the columns of the publish, and its destination's name.
fn load_of(asked: &VerifyLoad) -> Result<(LoadContext, String), Failure> {
    let submission = &asked.submission;
    let definition = RunContext::parse(Request {
        definition: &submission.definition,
        file: &submission.file,
        base: &submission.base,
        params: &submission.params,
        started: Millis(0),
        columns: None,
        replay: None,
        only: None,
    })?;
    let by = (Epoch(0), Attempt(0));
    let mut load = bare(&definition, &asked.load, &asked.run, by, asked.replaces.clone())?;
    load.mode = mode(&load, submission.replay.is_some());
    let mut fields = Vec::new();
    for (name, text) in &asked.columns {
        let data_type = type_of(text).ok_or_else(|| {
            Failure::permanent(format!(
                "column {name} was published as `{text}`, a type that this release doesn't know; verify with the release \
                 that ran it"
            ))
        })?;
        fields.push(Field::new(name, data_type, true));
    }
    load.schema = Arc::new(Schema::new(fields));
    let to = definition.loads.get(&asked.load).map(|load| load.to.clone());
    Ok((load, to.unwrap_or_default()))
}

/// Which rows are the run's; `None` if that can't be told, with the reason in the verdict.
fn told(load: &LoadContext, standing: &Standing, verdict: &mut Verdict) -> Option<String> {
    match &standing.publication {
        Publication::Stands => {}
        Publication::Unknown => {
            verdict.findings.push(
                "the destination knows nothing of this run; is it the one that the run has published to?".to_owned(),
            );
            return None;
        }
        Publication::Not(state) => {
            verdict
                .findings
                .push(format!("the run's rows are not there: the load is {state}"));
            return None;
        }
    }
    if !standing.later.is_empty() {
        let runs: Vec<String> = standing.later.iter().map(said).collect();
        verdict
            .notes
            .push(format!("published to {} since: {}", load.table, runs.join(", ")));
    }
    if standing.columns.is_none() {
        verdict.answer = Answer::Differs;
        verdict
            .findings
            .push(format!("table {} is gone, and all rows with it", load.table));
        return None;
    }
    match &standing.rows {
        Rows::Of { which, .. } | Rows::InFiles { which, .. } => Some(which.clone()),
        Rows::Untold(why) => {
            verdict
                .findings
                .push(format!("which rows are the run's can't be told: {why}"));
            None
        }
    }
}

fn said(publisher: &Publisher) -> String {
    format!("run {} ({}, {})", publisher.run, publisher.mode, publisher.at)
}

/// The columns to be read, and how many of the load's are not.
fn columns_of(standing: &Standing, verdict: &mut Verdict) -> (Vec<Column>, usize) {
    let mut columns = Vec::new();
    let mut left_out = 0;
    for (name, back) in standing.columns.iter().flatten() {
        match back {
            Back::As(data_type) => columns.push(Column {
                name: name.clone(),
                data_type: data_type.clone(),
                required: false,
            }),
            Back::LeftOut(why) => {
                left_out += 1;
                verdict.notes.push(format!("column {name} is left out: {why}"));
            }
            Back::Changed(now) => {
                left_out += 1;
                verdict.columns.push(name.clone());
                verdict.findings.push(format!("column {name}: {now}"));
            }
        }
    }
    (columns, left_out)
}

/// What was read back.
struct Read {
    checksum: Checksum,
    /// Rows that could not be read as their columns' types, and what is wrong with the first.
    unreadable: u64,
    first: Option<String>,
    /// A column with a time that has no room in a file's types, and what it is.
    beyond: Option<(String, String)>,
    chunks: BTreeMap<String, Checksum>,
}

/// Whether a time that can't be read is one all the same: of a year with more than four digits, before the first, or
/// infinite.
fn is_beyond(data_type: &DataType, detail: &str) -> bool {
    let text = detail.split('"').nth(1).unwrap_or_default();
    let year = text
        .trim_start_matches(['+', '-'])
        .split('-')
        .next()
        .unwrap_or_default();
    let is_long = year.len() > 4 && year.bytes().all(|byte| byte.is_ascii_digit());
    matches!(data_type, DataType::Date32 | DataType::Timestamp(..))
        && (is_long || year == "infinity" || year.len() == 4 && (text.ends_with(" BC") || text.starts_with('-')))
}

/// The columns, and the one that names each row's chunk, if it is wanted.
fn with_chunks(columns: &[Column], by_chunk: bool) -> Vec<Column> {
    let mut wanted = columns.to_vec();
    if by_chunk {
        wanted.push(Column {
            name: PROVENANCE[1].to_owned(),
            data_type: DataType::Utf8,
            required: false,
        });
    }
    wanted
}

async fn read(reader: &mut Reader, columns: &[Column], by_chunk: bool) -> Result<Read, Failure> {
    let data: Vec<usize> = (0..columns.len()).collect();
    let mut digest = Digest::default();
    let mut read = Read {
        checksum: Checksum::default(),
        unreadable: 0,
        first: None,
        beyond: None,
        chunks: BTreeMap::new(),
    };
    while let Some(rest) = reader.next().await? {
        read.unreadable += rest.unreadable;
        for (name, detail) in rest.misfits {
            let column = columns.iter().find(|column| column.name == name);
            if column.is_some_and(|column| is_beyond(&column.data_type, &detail)) {
                read.beyond = Some((name, detail));
                return Ok(read);
            }
        }
        read.first = read.first.take().or(rest.first);
        for batch in &rest.batches {
            let shown = batch
                .project(&data)
                .map_err(|error| Failure::permanent(error.to_string()))?;
            digest.add(&shown)?;
            if by_chunk {
                add_by_chunk(&mut read.chunks, batch, columns.len(), digest.last());
            }
        }
    }
    read.checksum = digest.finish();
    Ok(read)
}

fn add_by_chunk(chunks: &mut BTreeMap<String, Checksum>, batch: &RecordBatch, at: usize, rows: &[u64]) {
    let names = batch.column(at).as_string::<i32>();
    for (row, hash) in rows.iter().enumerate() {
        let name = if names.is_null(row) { "" } else { names.value(row) };
        let sum = match chunks.get_mut(name) {
            Some(sum) => sum,
            None => chunks.entry(name.to_owned()).or_default(),
        };
        sum.rows += 1;
        sum.sum = sum.sum.wrapping_add(u128::from(*hash));
    }
}

fn judge(
    verdict: &mut Verdict,
    published: &Checksum,
    read: Read,
    columns: &[Column],
    in_part: bool,
    asked: &VerifyLoad,
) {
    let found = read.checksum.rows + read.unreadable;
    let rows = |rows: u64| counted(rows, "row");
    if found < asked.rows {
        verdict.findings.push(format!(
            "{} missing: {found} of {} are there",
            are(asked.rows - found),
            asked.rows
        ));
    } else if found > asked.rows {
        verdict.findings.push(format!(
            "{} too many: {found} are there, and {} were published",
            are(found - asked.rows),
            asked.rows
        ));
    }
    if let Some(first) = &read.first {
        verdict.findings.push(format!(
            "{} can't be read as what was published, the first because of {first}",
            rows(read.unreadable)
        ));
    }
    // An empty batch has told no columns; there is nothing to compare then either.
    if found == asked.rows && read.unreadable == 0 && found > 0 {
        let differ = |column: &&Column| published.columns.get(&column.name) != read.checksum.columns.get(&column.name);
        let differing: Vec<String> = columns
            .iter()
            .filter(differ)
            .map(|column| column.name.clone())
            .collect();
        for column in &differing {
            verdict
                .findings
                .push(format!("column {column}: its values are not those that were published"));
        }
        if in_part {
            verdict.notes.push(
                "columns were compared each by itself, so values that have changed places between rows are not seen"
                    .to_owned(),
            );
        } else if differing.is_empty() && published.sum != read.checksum.sum {
            verdict.findings.push(
                "every column has the values that were published, but not in the same rows: values have changed places"
                    .to_owned(),
            );
        }
        verdict.columns.extend(differing);
    }
    if !read.chunks.is_empty() {
        verdict.findings.extend(chunks_that_differ(&read.chunks, asked));
    }
    verdict.answer = if verdict.findings.is_empty() {
        Answer::Holds
    } else {
        Answer::Differs
    };
    verdict.found = Some(found);
    verdict.checksum = Some(read.checksum);
}

fn are(rows: u64) -> String {
    let verb = if rows == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(rows, "row"))
}

/// Which chunks' rows are not what they were.
fn chunks_that_differ(found: &BTreeMap<String, Checksum>, asked: &VerifyLoad) -> Vec<String> {
    let mut findings = Vec::new();
    let nothing = Checksum::default();
    for (chunk, (object, published)) in &asked.chunks {
        let there = found.get(chunk).unwrap_or(&nothing);
        if (there.rows, there.sum) == (published.rows, published.sum) {
            continue;
        }
        let what = match there.rows == published.rows {
            true => "other values".to_owned(),
            false => format!("{} of {}", there.rows, counted(published.rows, "row")),
        };
        findings.push(format!("chunk {chunk} ({object}): {what}"));
    }
    for (chunk, there) in found.iter().filter(|(chunk, _)| !asked.chunks.contains_key(*chunk)) {
        findings.push(format!(
            "chunk \"{chunk}\", which the run doesn't have: {}",
            counted(there.rows, "row")
        ));
    }
    let all = findings.len();
    findings.truncate(NAMED);
    if all > NAMED {
        findings.push(format!("and {} more", counted((all - NAMED) as u64, "chunk")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use haulage_plan::types::timestamptz;

    use super::*;

    #[test]
    fn only_a_time_that_is_one_is_beyond_what_can_be_read() {
        for (text, beyond) in [
            ("10000-01-01", true),
            ("+10000-01-01 00:00:00", true),
            ("0044-03-15 BC", true),
            ("-0044-03-15", true),
            ("infinity", true),
            ("-infinity", true),
            ("much", false),
            ("2013-13-01", false),
            ("", false),
        ] {
            let detail = format!("expected date, found \"{text}\"");
            assert_eq!(is_beyond(&DataType::Date32, &detail), beyond, "{text}");
            assert_eq!(is_beyond(&timestamptz(), &detail), beyond, "{text}");
            assert!(!is_beyond(&DataType::Int64, &detail), "{text}");
        }
    }
}
