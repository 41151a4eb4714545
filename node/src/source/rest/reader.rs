//! Segments of an API's records. A segment is whole pages, so that the next attempt begins with a page: it ends with the
//! page that brings it to `checkpoint_rows` records, to [`SEGMENT_BYTES`] or to [`SEGMENT_PAGES`]. In memory are the records of a segment, and
//! one page.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use haulage_core::failure::{Class, Failure};
use haulage_plan::definition::{Column, PageEnd, Pagination, RestSource};
use sha2::{Digest as _, Sha256};

use super::body::{Body, Wrong};
use super::client::{Answer, Api, Ask};
use super::pages::{Guard, Pages, Place, unreadable};
use super::secret::Credentials;
use crate::source::json::MAX_LINE;
use crate::source::json::column::ColumnBuilder;
use crate::source::json::row::{Keys, Odd};
use crate::source::json::rows::{BATCH_ROWS, Rows};
use crate::source::{RawRows, Segment, SegmentReader, schema};

/// Bytes of answers after which a segment ends.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Pages after which a segment ends, however little they hold: what was asked for once need not be asked for again.
const SEGMENT_PAGES: u32 = 1_000;

/// What all that read a source share.
pub(super) struct Way {
    pub(super) api: Api,
    pub(super) pages: Pages,
    pub(super) declared: RestSource,
}

impl Way {
    /// The page at a place, whose records were found.
    pub(super) async fn page(&self, who: &Credentials, place: &Place) -> Result<Answer, Failure> {
        let ask = Ask {
            url: self.pages.url(&self.api, place)?,
            may_miss: self.pages.may_miss(place),
        };
        let page = self.api.get(&ask, who, |answer| match self.records(&answer).map(drop) {
            Ok(()) => Ok(answer),
            Err(wrong) => Err(unreadable(&self.api, who, wrong, &answer, &self.declared.records)),
        });
        page.await.map_err(|failure| self.at(place, failure))
    }

    /// The texts of a page's records.
    pub(super) fn records<'a>(&self, answer: &'a Answer) -> Result<Vec<&'a str>, Wrong> {
        match &answer.body {
            Some(body) => Body::new(body)?.records(&self.declared.records),
            None => Ok(Vec::new()),
        }
    }

    /// Says at which page it was, if that is not the first.
    fn at(&self, place: &Place, failure: Failure) -> Failure {
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
                if place.number > counted.start
                    && failure.class == Class::Permanent
                    && counted.end != PageEnd::Missing =>
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
    /// `any_text` is whether text takes every value. Permanent failure for a type that JSON can't hold.
    pub(super) fn new(
        way: Arc<Way>,
        who: Credentials,
        columns: &[Column],
        any_text: bool,
        checkpoint_rows: u64,
        from: Place,
    ) -> Result<Self, Failure> {
        let builder = |column| ColumnBuilder::new(column, any_text, BATCH_ROWS.min(1024));
        let mut guard = Guard::default();
        guard.name(&way.api, &from)?;
        Ok(Self {
            schema: schema(columns),
            keys: Keys::new(columns, false),
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
        let answer = way.page(&self.who, place).await?;
        let records = way
            .records(&answer)
            .map_err(|wrong| unreadable(&way.api, &self.who, wrong, &answer, &way.declared.records))?;
        self.guard.empty(&way.api, records.is_empty())?;
        if let Pagination::Page(counted) | Pagination::Offset(counted) = &way.declared.pagination {
            self.guard.records(&way.api, place, counted, &records)?;
        }
        // An echo in a record is data, and goes where the pipeline sends it; what people are shown of a row has none.
        let body = answer.body.as_deref().unwrap_or_default();
        let echoes = self.who.found_in(body).is_some();
        for record in &records {
            let odd = (record.len() > MAX_LINE).then(|| too_long(record.len()));
            rows.take(record.as_bytes(), odd, &mut self.keys, &mut self.builders);
            if rows.count == BATCH_ROWS {
                rows.finish(&mut self.builders)?;
            }
            match echoes {
                true => raw.push(&self.who.blot(record)),
                false => raw.push(record),
            }
        }
        raw.bytes += body.len() as u64;
        let next = way
            .pages
            .next(&way.api, &self.who, &answer, place, records.len() as u64)?;
        if let Some(next) = &next {
            self.guard.name(&way.api, next)?;
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
            let is_full = raw.ends.len() as u64 >= self.checkpoint_rows || raw.bytes >= SEGMENT_BYTES;
            if is_full || pages >= SEGMENT_PAGES {
                break false;
            }
        };
        rows.finish(&mut self.builders)?;
        self.next = (!last).then(|| at.clone());
        let mut sift = rows.sift;
        for unreadable in &mut sift.unreadable {
            unreadable.detail = self.who.blot(&unreadable.detail);
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
    /// The number of the first record.
    line: u64,
    /// Bytes of the answers.
    bytes: u64,
}

impl Raw {
    fn push(&mut self, record: &str) {
        self.data.extend_from_slice(record.as_bytes());
        self.ends.push(self.data.len());
    }
}

impl RawRows for Raw {
    fn row(&self, row: u64) -> Option<(u64, &[u8])> {
        let at = usize::try_from(row).ok()?;
        let end = *self.ends.get(at)?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((self.line + row, self.data.get(start..end)?))
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
