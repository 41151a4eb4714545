//! Segments of an API's records. A segment is whole pages, so that the next attempt begins with a page: it ends with the
//! page that brings it to `checkpoint_rows` records, to [`SEGMENT_BYTES`], to [`SEGMENT_VALUES`] or to [`SEGMENT_PAGES`]. In
//! memory are the records of a segment, and one page, which is no longer than `max_response` and has no more values than
//! [`PAGE_VALUES`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Column, PageEnd, Pagination, RestSource};
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};

use super::body::{Body, Wrong};
use super::client::{Answer, Api, Ask, Missed};
use super::pages::{Guard, Pages, Place, unreadable};
use super::secret::Credentials;
use crate::source::json::MAX_LINE;
use crate::source::json::column::ColumnBuilder;
use crate::source::json::row::{Keys, Odd};
use crate::source::json::rows::{BATCH_ROWS, Rows};
use crate::source::{RawRows, Segment, SegmentReader, schema};

/// Bytes of answers after which a segment ends.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Values after which a segment ends: records times columns. Also a record of two bytes has one for each column.
const SEGMENT_VALUES: u64 = 4_000_000;
/// More values of one page are an error.
const PAGE_VALUES: u64 = 10_000_000;
/// Pages after which a segment ends, however little they hold: what was asked for once need not be asked for again.
const SEGMENT_PAGES: u32 = 1_000;

/// What all that read a source share.
pub(super) struct Way {
    pub(super) api: Api,
    pub(super) pages: Pages,
    pub(super) declared: RestSource,
}

impl Way {
    /// The page at a place, whose records were found. `patience` is the longest wait that a server may ask for.
    pub(super) async fn page(&self, who: &Credentials, place: &Place, patience: Duration) -> Result<Answer, Failure> {
        let ask = Ask {
            url: self.pages.url(&self.api, place)?,
            may_miss: self.pages.may_miss(place),
        };
        let page = self.api.get(&ask, who, patience, |answer| {
            let found = self.records(who, &answer).map(drop);
            found.map(|()| answer)
        });
        page.await.map_err(|missed| self.at(place, missed))
    }

    /// The texts of a page's records.
    pub(super) fn records<'a>(&self, who: &Credentials, answer: &'a Answer) -> Result<Vec<&'a [u8]>, Failure> {
        let Some(body) = &answer.body else {
            return Ok(Vec::new());
        };
        let (path, optional) = (&self.declared.records, self.declared.records_optional);
        let records = Body::new(body).and_then(|body| {
            if !self.declared.error.is_empty() {
                body.is_no_error(&self.declared.error)?;
            }
            body.records(path, optional)
        });
        records.map_err(|wrong: Wrong| unreadable(&self.api, who, wrong, answer, path))
    }

    /// Permanent failure if so many records take too much memory.
    pub(super) fn fits(&self, records: usize, columns: usize) -> Result<(), Failure> {
        if records as u64 * columns as u64 > PAGE_VALUES {
            return Err(self.api.permanent(format!(
                "a page has {records} records, which with {columns} columns are more than {} million values; ask for smaller \
                 pages",
                PAGE_VALUES / 1_000_000
            )));
        }
        Ok(())
    }

    /// Says at which page it was, if that is not the first.
    fn at(&self, place: &Place, missed: Missed) -> Failure {
        let (failure, status) = (missed.failure, missed.status);
        if place.position() == self.pages.start() {
            return failure;
        }
        let what = match &self.declared.pagination {
            Pagination::None => return failure,
            Pagination::Page(counted) | Pagination::Offset(counted) => format!("{}={}", counted.param, place.number),
            Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => {
                format!("page {}", place.number + 1)
            }
        };
        let advice = match &self.declared.pagination {
            Pagination::Page(counted) | Pagination::Offset(counted)
                if status == Some(StatusCode::NOT_FOUND) && counted.end != PageEnd::Missing =>
            {
                "; if the API answers 404 after its last page, write `end: missing`"
            }
            _ => "",
        };
        Failure {
            message: format!(
                "{} (at {what}, after {} records){advice}",
                failure.message,
                place.line - 1
            ),
            ..failure
        }
    }
}

/// The segments of a source, or of what is left of it.
pub(super) struct Reader {
    way: Arc<Way>,
    who: Credentials,
    schema: SchemaRef,
    keys: Keys,
    builders: Vec<ColumnBuilder>,
    checkpoint_rows: u64,
    guard: Guard,
    /// The next page; `None` after the last.
    next: Option<Place>,
}

impl Reader {
    /// `strict` is whether a record with a key that is no column is rejected. Permanent failure for a type that JSON can't
    /// hold.
    pub(super) fn new(
        way: Arc<Way>,
        who: Credentials,
        columns: &[Column],
        strict: bool,
        checkpoint_rows: u64,
        from: Place,
    ) -> Result<Self, Failure> {
        let builder = |column| ColumnBuilder::new(column, BATCH_ROWS.min(1024));
        let mut guard = Guard::default();
        match &way.declared.pagination {
            Pagination::Page(_) | Pagination::Offset(_) => guard.held.clone_from(&from.cursor),
            _ => guard.name(&way.api, &from)?,
        }
        Ok(Self {
            schema: schema(columns),
            keys: Keys::new(columns, &way.declared.paths, strict),
            builders: columns.iter().map(builder).collect::<Result<_, _>>()?,
            way,
            who,
            checkpoint_rows,
            guard,
            next: Some(from),
        })
    }

    /// Reads the page at a place into the segment, and returns the place of the next one.
    async fn page(&mut self, place: &Place, rows: &mut Rows, raw: &mut Raw) -> Result<Option<Place>, Failure> {
        let way = Arc::clone(&self.way);
        let answer = way.page(&self.who, place, way.declared.max_wait).await?;
        let records = way.records(&self.who, &answer)?;
        way.fits(records.len(), self.builders.len())?;
        self.guard.empty(&way.api, records.is_empty())?;
        let counted = match &way.declared.pagination {
            Pagination::Page(counted) | Pagination::Offset(counted) => Some(counted),
            Pagination::None | Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => None,
        };
        if let Some(counted) = counted
            && self.guard.is_again(&way.api, place, counted, &records)?
        {
            return Ok(None);
        }
        // An echo in a record is data, and goes where the pipeline sends it; what people are shown of a row has none.
        let body = answer.body.as_deref().unwrap_or_default();
        let may_echo = self.who.secrets().may_hold(body);
        for record in &records {
            let odd = (record.len() > MAX_LINE).then(|| too_long(record.len()));
            rows.take(record, odd, &mut self.keys, &mut self.builders);
            if rows.count == BATCH_ROWS {
                rows.finish(&mut self.builders)?;
            }
            match may_echo && self.who.found_in(record).is_some() {
                true => raw.push_blotted(&self.who.blot(&String::from_utf8_lossy(record))),
                false => raw.push(record),
            }
        }
        raw.bytes += body.len() as u64;
        let mut next = way
            .pages
            .next(&way.api, &self.who, &answer, place, records.len() as u64)?;
        match (counted, &mut next) {
            (Some(counted), Some(next)) if counted.end == PageEnd::Same => next.cursor.clone_from(&self.guard.held),
            (None, Some(next)) => self.guard.name(&way.api, next)?,
            _ => {}
        }
        Ok(next)
    }
}

fn too_long(bytes: usize) -> Odd {
    Odd {
        reason: "too_long",
        detail: format!("the record has {bytes} bytes, more than {} MiB", MAX_LINE >> 20),
    }
}

#[async_trait]
impl SegmentReader for Reader {
    async fn next(&mut self) -> Result<Option<Segment>, Failure> {
        let Some(first) = self.next.clone() else {
            return Ok(None);
        };
        let mut rows = Rows::new(&self.way.declared.location, Arc::clone(&self.schema));
        let mut raw = Raw {
            line: first.line,
            ..Raw::default()
        };
        let (mut at, mut pages) = (first, 0);
        let last = loop {
            match self.page(&at, &mut rows, &mut raw).await? {
                None => break true,
                Some(next) => at = next,
            }
            pages += 1;
            let count = raw.ends.len() as u64;
            let values = count * self.builders.len() as u64;
            let is_full = count >= self.checkpoint_rows || raw.bytes >= SEGMENT_BYTES || values >= SEGMENT_VALUES;
            if is_full || pages >= SEGMENT_PAGES {
                break false;
            }
        };
        rows.finish(&mut self.builders)?;
        self.next = (!last).then(|| at.clone());
        let mut sift = rows.sift;
        for unreadable in &mut sift.unreadable {
            unreadable.detail = self.who.blot(&unreadable.detail);
            unreadable.column = unreadable.column.take().map(|column| self.who.blot(&column));
        }
        Ok(Some(Segment {
            batches: sift.batches,
            unreadable: sift.unreadable,
            rows: raw.ends.len() as u64,
            bytes: raw.bytes,
            next: at.position(),
            cursor: if last { None } else { at.cursor },
            last,
            raw: Box::new(raw),
        }))
    }
}

/// The texts of a segment's records, one behind the other.
#[derive(Default)]
struct Raw {
    data: Vec<u8>,
    ends: Vec<usize>,
    /// The records that are not as they came.
    blotted: BTreeSet<u64>,
    /// The number of the first record.
    line: u64,
    /// Bytes of the answers.
    bytes: u64,
}

impl Raw {
    fn push(&mut self, record: &[u8]) {
        self.data.extend_from_slice(record);
        self.ends.push(self.data.len());
    }

    fn push_blotted(&mut self, record: &str) {
        self.blotted.insert(self.ends.len() as u64);
        self.push(record.as_bytes());
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let at = usize::try_from(row).ok()?;
        let end = *self.ends.get(at)?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((self.line + row, self.data.get(start..end)?))
    }

    fn is_whole(&self, row: u64) -> bool {
        !self.blotted.contains(&row)
    }

    fn gap(&self) -> &'static str {
        "a secret that stood in it was blotted out"
    }

    fn digest(&self) -> Option<String> {
        let mut hash = Sha256::new();
        for end in &self.ends {
            hash.update((*end as u64).to_le_bytes());
        }
        hash.update(&self.data);
        Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
