//! A failure on account of a row, told as a person can use it: the file, the line, the step, the column and the value.
//!
//! What fails knows a row at most by its place in the segment, and the segment's text may be gone by then. So the segment
//! is read again, which gives the same rows in every attempt; a run that succeeds keeps nothing for this. An API may give
//! others: then no row is named, since it could be the wrong one.

use datafusion::arrow::array::{RecordBatch, UInt64Array};
use datafusion::arrow::util::display::array_value_to_string;
use haulage_core::checkpoint::{ChunkSpec, Manifest, Position};
use haulage_core::failure::Failure;
use haulage_core::ids::LoadName;

use super::run::RunContext;
use crate::sink::{BadRow, Refused};
use crate::source::{EXCERPT, Segment, excerpt};
use crate::transform::{Blame, Part, PassError, SqlError, StagePass};

/// Why a segment was not staged.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No row is to blame.
    Other(Failure),
    /// A load's SQL failed on its rows.
    Sql(SqlError),
    /// A destination doesn't take a row.
    Row {
        load: LoadName,
        /// The place of the source row in the segment.
        row: u64,
        bad: BadRow,
    },
}

impl Fault {
    /// Of what a destination said, which counts the rows that were written to it: `rows` are the source rows of these.
    pub(crate) fn refused(load: &LoadName, refused: Refused, row: impl FnOnce(u64) -> Option<u64>) -> Self {
        match refused {
            Refused::Whole(failure) => Self::Other(failure),
            Refused::Row(bad) => match row(bad.at) {
                Some(row) => Self::Row {
                    load: load.clone(),
                    row,
                    bad,
                },
                None => Self::Other(bad.into()),
            },
        }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl From<PassError> for Fault {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Rows(error) => Self::Sql(error),
            PassError::Other(failure) => Self::Other(failure),
        }
    }
}

/// What is remembered of a segment, to know it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) rows: u64,
    pub(crate) next: Position,
    pub(crate) cursor: Option<String>,
    pub(crate) digest: Option<String>,
}

impl Seen {
    pub(crate) fn of(segment: &Segment) -> Self {
        Self {
            rows: segment.rows,
            next: segment.next,
            cursor: segment.cursor.clone(),
            digest: segment.raw.digest(),
        }
    }
}

impl From<&Manifest> for Seen {
    fn from(manifest: &Manifest) -> Self {
        Self {
            rows: manifest.counts.read,
            next: manifest.next,
            cursor: manifest.cursor.clone(),
            digest: manifest.digest.clone(),
        }
    }
}

/// Where a segment is read from, and what its rows go through.
pub(crate) struct Scene<'s> {
    pub(crate) context: &'s RunContext,
    pub(crate) pass: &'s StagePass,
    pub(crate) spec: &'s ChunkSpec,
    /// Where the segment starts.
    pub(crate) from: Position,
    /// The name of that place, if it has one.
    pub(crate) cursor: Option<&'s str>,
    /// The segment that failed.
    pub(crate) seen: &'s Seen,
}

impl Scene<'_> {
    /// The failure, with the place of the row that is to blame as far as it can be found.
    pub(crate) async fn failure(&self, fault: Fault) -> Failure {
        match fault {
            Fault::Other(failure) => failure,
            Fault::Sql(error) => match self.sql(&error).await {
                Ok(Some(failure)) => failure,
                Ok(None) => PassError::Rows(error).into(),
                Err(why) => self.nameless(PassError::Rows(error).into(), &why),
            },
            Fault::Row { load, row, bad } => match self.row(&load, row, &bad).await {
                Ok(failure) => failure,
                Err(why) => self.nameless(bad.into(), &why),
            },
        }
    }

    /// The failure alone, and why its row is not named.
    fn nameless(&self, failure: Failure, why: &Failure) -> Failure {
        Failure {
            message: format!(
                "{}; which row of {} it was is not known: {}",
                failure.message, self.spec.object, why.message
            ),
            ..failure
        }
    }

    async fn segment(&self) -> Result<Segment, Failure> {
        let source = self.context.source(&self.spec.source)?;
        let mut reader = source.open_at(self.spec, self.from, self.cursor).await?;
        if let Some(wanted) = self.pass.wanted() {
            reader.only(wanted)?;
        }
        let segment = reader.next().await?;
        let segment = segment.ok_or_else(|| Failure::permanent(format!("{} ends early", self.spec.object)))?;
        if Seen::of(&segment) != *self.seen {
            return Err(Failure::permanent("it gives other rows when it is read again"));
        }
        Ok(segment)
    }

    async fn sql(&self, error: &SqlError) -> Result<Option<Failure>, Failure> {
        let segment = self.segment().await?;
        let lookups = self.context.lookups().await?;
        let blaming = self
            .pass
            .blame(self.context.compiled(), lookups, &error.load, segment.batches.clone());
        let Some(blame) = Box::pin(blaming).await? else {
            return Ok(None);
        };
        let Blame {
            first,
            last,
            step,
            part,
            error,
        } = blame;
        let mut message = self.place(&segment, first, last);
        message.push_str(&format!(": load {}", error.load));
        if let Some(step) = step {
            message.push_str(&format!(", step {step}"));
        }
        match part {
            Some(Part::Column(column)) => message.push_str(&format!(", column {column}")),
            Some(Part::Rule(rule)) => message.push_str(&format!(", rule {rule}")),
            None => {}
        }
        message.push_str(&format!(": its SQL failed: {}; {}", error.cause, error.advice));
        if first == last {
            message.push_str(&reads(&segment, first));
        }
        Ok(Some(Failure::permanent(message)))
    }

    async fn row(&self, load: &LoadName, row: u64, bad: &BadRow) -> Result<Failure, Failure> {
        let segment = self.segment().await?;
        let mut message = self.place(&segment, row, row);
        message.push_str(&format!(": load {load}"));
        if let Some(column) = &bad.column {
            message.push_str(&format!(", column {column}"));
            if !bad.says_value
                && let Some(value) = self.value(&segment, load, row, column).await
            {
                message.push_str(&format!(", value {value}"));
            }
        }
        message.push_str(&format!(": {}", bad.why));
        message.push_str(&reads(&segment, row));
        Ok(Failure::permanent(message))
    }

    /// What the row holds in a column when it reaches the load, if one row comes of it.
    async fn value(&self, segment: &Segment, load: &LoadName, row: u64, column: &str) -> Option<String> {
        let alone = only(&segment.batches, row)?;
        let mut run = self.pass.run(load, vec![alone]).await.ok()?;
        let mut value = None;
        while let Some(batch) = run.next().await {
            let batch = batch.ok()?;
            let column = batch.column_by_name(column)?;
            for at in 0..batch.num_rows() {
                if value.is_some() {
                    return None;
                }
                if column.is_null(at) {
                    return None;
                }
                let text = array_value_to_string(column, at).ok()?;
                value = Some(format!("\"{}\"", excerpt(text.as_bytes(), EXCERPT)));
            }
        }
        value
    }

    fn place(&self, segment: &Segment, first: u64, last: u64) -> String {
        let line = |row: u64| segment.raw.row(row).map(|(line, _)| line);
        // Of a replayed row, where it stood before.
        let object = segment
            .raw
            .rejected(first)
            .map_or(&self.spec.object, |reject| &reject.file);
        match (line(first), line(last)) {
            (Some(one), Some(other)) if one != other => format!("{object} lines {one} to {other}, together"),
            (Some(line), _) => format!("{object} line {line}"),
            (None, _) => object.clone(),
        }
    }
}

/// The row's own text.
fn reads(segment: &Segment, row: u64) -> String {
    match segment.raw.row(row) {
        Some((_, raw)) => format!("; the row reads: {}", excerpt(raw, EXCERPT)),
        None => String::new(),
    }
}

/// The row with this place in the segment, alone.
fn only(batches: &[RecordBatch], row: u64) -> Option<RecordBatch> {
    for batch in batches {
        let rows = batch.columns().last()?.as_any().downcast_ref::<UInt64Array>()?;
        if let Ok(at) = rows.values().binary_search(&row) {
            return Some(batch.slice(at, 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use haulage_core::checkpoint::Counts;
    use haulage_core::ids::{Attempt, ChunkId, Epoch, StageId};

    use super::*;

    #[test]
    fn a_segment_is_known_again_by_all_that_its_manifest_says() {
        let manifest = |read, offset, cursor: &str, digest: &str| Manifest {
            chunk: ChunkId {
                stage: StageId(0),
                index: 0,
            },
            segment: 3,
            epoch: Epoch(1),
            attempt: Attempt(1),
            next: Position { offset, line: 1 },
            cursor: Some(cursor.to_owned()),
            digest: Some(digest.to_owned()),
            last: false,
            counts: Counts {
                read,
                ..Counts::default()
            },
            rejects: Vec::new(),
        };
        let seen = Seen::from(&manifest(7, 10, "p2", "a"));
        assert_eq!(seen, Seen::from(&manifest(7, 10, "p2", "a")));
        for other in [
            manifest(8, 10, "p2", "a"),
            manifest(7, 11, "p2", "a"),
            manifest(7, 10, "p3", "a"),
            manifest(7, 10, "p2", "b"),
        ] {
            assert_ne!(seen, Seen::from(&other), "{other:?}");
        }
    }
}
