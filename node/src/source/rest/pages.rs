//! From one page to the next: which URL it has, which page was the last, and when the server only goes round in circles.
//!
//! A page's place is a number, and a name where the server gives one: a cursor or a URL. Both are kept with a checkpoint,
//! so a name that holds a secret is refused, and so is a URL of another server, to which credentials would go.

use haulage_core::checkpoint::Position;
use haulage_core::failure::Failure;
use haulage_plan::definition::{Counted, NameEnd, PageEnd, Pagination, RestSource};
use sha2::{Digest as _, Sha256};
use url::Url;

use super::body::{Body, Wrong};
use super::client::{Answer, Api, origin};
use super::link;
use super::secret::Credentials;
use crate::source::{EXCERPT, excerpt};

/// A longer name of a page is an error: it is kept with every checkpoint.
const MAX_CURSOR: usize = 8 << 10;

/// Relations of `Link` headers that show that a server names its pages there.
const RELATIONS: [&str; 5] = ["first", "prev", "previous", "self", "last"];

/// Pages without records in a row, at most: some servers filter after they have cut.
const MAX_EMPTY: u32 = 10_000;

/// Where a page is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// What the query says, if pages or records are counted there; else how many pages were before.
    pub(super) number: u64,
    /// Records before it, and one.
    pub(super) line: u64,
    /// The name of the page, of all but the first, where the server gives names. Where the last page comes again and again,
    /// what the page before it holds.
    pub(super) cursor: Option<String>,
}

/// What an answer says of the next page.
enum Named {
    /// Where it is.
    Page(String),
    /// That there is none.
    End,
    /// Nothing.
    Absent,
}

impl Place {
    pub(super) fn position(&self) -> Position {
        Position {
            offset: self.number,
            line: self.line,
        }
    }
}

/// The pages of a source.
pub(super) struct Pages {
    declared: RestSource,
    /// The URL with the query of the pipeline file.
    base: Url,
}

impl Pages {
    /// Touches nothing. Permanent failure if there is no URL.
    pub(super) fn new(declared: &RestSource) -> Result<Self, Failure> {
        let mut base = Url::parse(&declared.url)
            .map_err(|error| Failure::permanent(format!("{} is no URL: {error}", declared.location)))?;
        if !declared.query.is_empty() {
            base.query_pairs_mut().extend_pairs(&declared.query);
        }
        Ok(Self {
            declared: declared.clone(),
            base,
        })
    }

    /// Where the first page is.
    pub(super) fn start(&self) -> Position {
        let offset = match &self.declared.pagination {
            Pagination::Page(counted) | Pagination::Offset(counted) => counted.start,
            Pagination::None | Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => 0,
        };
        Position { offset, line: 1 }
    }

    /// The place of a checkpoint. Permanent failure if it is none of this source.
    pub(super) fn place(&self, from: Position, cursor: Option<&str>) -> Result<Place, Failure> {
        let has_names = match &self.declared.pagination {
            Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => true,
            Pagination::Page(counted) | Pagination::Offset(counted) => counted.end == PageEnd::Same,
            Pagination::None => false,
        };
        if cursor.is_some() != (has_names && from != self.start()) {
            return Err(Failure::permanent(format!(
                "{}: the checkpoint doesn't say which page comes next; run the same release on all nodes",
                self.declared.location
            )));
        }
        Ok(Place {
            number: from.offset,
            line: from.line,
            cursor: cursor.map(str::to_owned),
        })
    }

    /// What to ask for.
    pub(super) fn url(&self, api: &Api, place: &Place) -> Result<Url, Failure> {
        let mut url = self.base.clone();
        match (&self.declared.pagination, &place.cursor) {
            (Pagination::Cursor { param, .. }, Some(cursor)) => {
                url.query_pairs_mut().append_pair(param, cursor);
            }
            (
                Pagination::Cursor {
                    param,
                    start: Some(start),
                    ..
                },
                None,
            ) => {
                url.query_pairs_mut().append_pair(param, start);
            }
            (Pagination::Next { .. } | Pagination::Link { .. }, Some(cursor)) => {
                // A checkpoint is no more to be trusted than the server.
                url = self.inside(api, &self.base, cursor, &Credentials::default())?;
            }
            (Pagination::Page(counted) | Pagination::Offset(counted), _) => {
                let mut pairs = url.query_pairs_mut();
                pairs.append_pair(&counted.param, &place.number.to_string());
                if let (Some(param), Some(size)) = (&counted.size_param, counted.page_size) {
                    pairs.append_pair(param, &size.to_string());
                }
            }
            (Pagination::None, _)
            | (Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. }, None) => {}
        }
        Ok(url)
    }

    /// Whether an answer that there is no such page (404) means that the one before was the last.
    pub(super) fn may_miss(&self, place: &Place) -> bool {
        match &self.declared.pagination {
            Pagination::Page(counted) | Pagination::Offset(counted) => {
                counted.end == PageEnd::Missing && place.number > counted.start
            }
            Pagination::None | Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => false,
        }
    }

    /// The page after one that held `records`; `None` if it was the last.
    pub(super) fn next(
        &self,
        api: &Api,
        who: &Credentials,
        answer: &Answer,
        place: &Place,
        records: u64,
    ) -> Result<Option<Place>, Failure> {
        let line = place.line + records;
        let counted = |counted: &Counted, step: u64| {
            let short = counted.end == PageEnd::Short && counted.page_size.is_some_and(|size| records < size);
            (records > 0 && !short).then(|| Place {
                number: place.number.saturating_add(step),
                line,
                cursor: None,
            })
        };
        let named = match &self.declared.pagination {
            Pagination::None => return Ok(None),
            Pagination::Page(page) => return Ok(counted(page, 1)),
            // By what came and not by what was asked for: a server may give fewer than that.
            Pagination::Offset(offset) => return Ok(counted(offset, records)),
            Pagination::Cursor { path, .. } | Pagination::Next { path, .. } => self.named(api, who, answer, path)?,
            Pagination::Link { rel, .. } => linked(answer, rel),
        };
        let cursor = match (named, &self.declared.pagination) {
            (Named::Page(target), Pagination::Next { .. } | Pagination::Link { .. }) => {
                Some(self.inside(api, &answer.url, &target, who)?.into())
            }
            (Named::Page(cursor), _) => Some(cursor),
            (Named::End, _) => None,
            (Named::Absent, _) => {
                // What has led to a page leads to no other. What never has may be written wrongly.
                if place.position() == self.start() && records > 0 {
                    self.is_alone(api, who, answer)?;
                }
                None
            }
        };
        // Some servers name the last page again and again.
        let before = match (&place.cursor, &self.declared.pagination) {
            (None, Pagination::Cursor { start, .. }) => start.as_ref(),
            (before, _) => before.as_ref(),
        };
        if records == 0 && cursor.is_some() && cursor.as_ref() == before {
            return Ok(None);
        }
        let Some(cursor) = cursor else { return Ok(None) };
        if cursor.len() > MAX_CURSOR {
            return Err(api.permanent(format!(
                "the next page has a name of {} bytes, more than {} KiB",
                cursor.len(),
                MAX_CURSOR >> 10
            )));
        }
        if let Some(secret) = who.found_in(cursor.as_bytes()) {
            return Err(api.permanent(format!(
                "what leads to the next page holds a secret (secret://{secret}), and would be kept with checkpoints; use \
                 another kind of pagination, such as a page number"
            )));
        }
        Ok(Some(Place {
            number: place.number.saturating_add(1),
            line,
            cursor: Some(cursor),
        }))
    }

    /// Permanent failure unless a first page that has records and names no other may be the only one.
    fn is_alone(&self, api: &Api, who: &Credentials, answer: &Answer) -> Result<(), Failure> {
        let (what, key, end) = match &self.declared.pagination {
            Pagination::Cursor { path, end, .. } => (format!("`{}`", path.join(".")), "cursor", end),
            Pagination::Next { path, end } => (format!("`{}`", path.join(".")), "next", end),
            Pagination::Link { rel, end } => (format!("`Link` to `{rel}`"), "link", end),
            Pagination::None | Pagination::Page(_) | Pagination::Offset(_) => return Ok(()),
        };
        if *end == NameEnd::Absent {
            return Ok(());
        }
        Err(api.permanent(format!(
            "the first page has records and no {what}, which would say where the next one is or that there is none; correct \
             `{key}`, or, if the API leaves it out on the last page, write `end: absent` in `pagination`; the answer starts: {}",
            beginning(who, answer)
        )))
    }

    /// What the body says of the next page: a text or a number. `null`, `false` or an empty text is the end.
    fn named(&self, api: &Api, who: &Credentials, answer: &Answer, path: &[String]) -> Result<Named, Failure> {
        let Some(body) = &answer.body else {
            return Ok(Named::End);
        };
        let body = Body::new(body).map_err(|wrong| unreadable(api, who, wrong, answer, path))?;
        let found = body
            .at(path)
            .map_err(|wrong| unreadable(api, who, wrong, answer, path))?;
        let Some(json) = found else { return Ok(Named::Absent) };
        match json.as_bytes().first() {
            Some(b'n' | b'f') | None => Ok(Named::End),
            Some(b'"') => {
                let text: String = serde_json::from_str(json)
                    .map_err(|_| api.permanent(format!("`{}` holds an escape that is no character", path.join("."))))?;
                Ok(if text.is_empty() { Named::End } else { Named::Page(text) })
            }
            Some(b't' | b'{' | b'[') => Err(api.permanent(format!(
                "`{}` is no name of a page: {}",
                path.join("."),
                excerpt(who.blot(json).as_bytes(), EXCERPT)
            ))),
            Some(_) => Ok(Named::Page(json.to_owned())),
        }
    }

    /// A URL that the server gives. Permanent failure if it leads to another server.
    fn inside(&self, api: &Api, from: &Url, target: &str, who: &Credentials) -> Result<Url, Failure> {
        let mut url = from.join(target.trim()).map_err(|error| {
            let shown = excerpt(who.blot(target).as_bytes(), EXCERPT);
            api.permanent(format!("the next page has no sound URL: {shown}: {error}"))
        })?;
        url.set_fragment(None);
        if url.origin() != self.base.origin() {
            return Err(api.permanent(format!(
                "the next page is on another server, {}, which is not followed: credentials go to {} alone; if that is \
                 where the API is, correct the URL",
                who.blot(&origin(&url)),
                origin(&self.base)
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(api.permanent("the URL of the next page holds a user or a password"));
        }
        Ok(url)
    }
}

/// What the `Link` headers say of the next page. That there is none, if it is the usual relation and there are others of
/// its kind.
fn linked(answer: &Answer, rel: &str) -> Named {
    let target = |rel: &str| link::target(answer.links.iter().map(String::as_str), rel);
    match target(rel) {
        Some(target) => Named::Page(target),
        None if rel.eq_ignore_ascii_case("next") && RELATIONS.iter().any(|rel| target(rel).is_some()) => Named::End,
        None => Named::Absent,
    }
}

/// How an answer begins, for a person.
fn beginning(who: &Credentials, answer: &Answer) -> String {
    let body = answer.body.as_deref().unwrap_or_default();
    let start = String::from_utf8_lossy(&body[..body.len().min(16 << 10)]).into_owned();
    excerpt(who.blot(&start).trim().as_bytes(), EXCERPT)
}

/// Characters that are shown of what a server says went wrong.
const SAID: usize = 500;

/// What is wrong with a body.
pub(super) fn unreadable(api: &Api, who: &Credentials, wrong: Wrong, answer: &Answer, path: &[String]) -> Failure {
    let body = answer.body.as_deref().unwrap_or_default();
    let start = beginning(who, answer);
    match wrong {
        Wrong::CutOff => api.transient(format!("the answer ends in its middle, after {} bytes", body.len())),
        Wrong::NoJson(why) => api.permanent(format!("the answer is no JSON: {why}; it starts: {start}")),
        Wrong::NoRecords(found) => {
            let place = if path.is_empty() {
                "the answer".to_owned()
            } else {
                format!("`{}` of the answer", path.join("."))
            };
            let path = path.join(".");
            let advice = match found {
                "nothing" | "null" if !path.is_empty() => {
                    format!(
                        ", or, if the API writes an empty list so, write `records: {{path: {path}, optional: true}}`"
                    )
                }
                _ => String::new(),
            };
            api.permanent(format!(
                "expected an array of records as {place}, found {found}; correct `records`{advice}; the answer starts: {start}"
            ))
        }
        Wrong::Error(place, said) => {
            let said = excerpt(who.blot(&said).as_bytes(), SAID);
            api.permanent(format!("the answer is an error, by its `{place}`: {said}"))
        }
        Wrong::TooMany => api.permanent("a page has more than a million records; ask for smaller pages"),
    }
}

/// Notices that pages come round again. Of names it is told each, of counted pages what they hold.
///
/// A name that was there before will lead to the same again, so each is compared with the one before, and with one that is
/// kept, which is changed for the newest after 1, 2, 4, 8, ... pages (Brent): no circle escapes that, however long, and no
/// more than two names are in memory. A server that doesn't know the number in the query gives the same page for each.
#[derive(Default)]
pub(super) struct Guard {
    /// What the last counted page held.
    pub(super) held: Option<String>,
    last: Option<[u8; 32]>,
    kept: Option<[u8; 32]>,
    steps: u64,
    limit: u64,
    /// Pages without records, in a row.
    empty: u32,
}

impl Guard {
    /// Permanent failure if there have been so many pages without records that more of them lead nowhere.
    pub(super) fn empty(&mut self, api: &Api, is_empty: bool) -> Result<(), Failure> {
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        if self.empty > MAX_EMPTY {
            return Err(api.permanent(format!(
                "{MAX_EMPTY} pages in a row have no records, and each names another one"
            )));
        }
        Ok(())
    }

    /// Permanent failure if the page with this name was there before.
    pub(super) fn name(&mut self, api: &Api, place: &Place) -> Result<(), Failure> {
        let Some(cursor) = &place.cursor else { return Ok(()) };
        let digest: [u8; 32] = Sha256::digest(cursor.as_bytes()).into();
        if self.last == Some(digest) || self.kept == Some(digest) {
            return Err(api.permanent(format!(
                "its pages go round in a circle: page {} leads to one that was there before",
                place.number
            )));
        }
        self.last = Some(digest);
        self.steps += 1;
        if self.steps > self.limit {
            (self.kept, self.steps, self.limit) = (Some(digest), 0, (self.limit * 2).max(1));
        }
        Ok(())
    }

    /// Whether a counted page holds the same as the one before, and that is the end. Permanent failure if that is no end,
    /// or may be none.
    pub(super) fn is_again(
        &mut self,
        api: &Api,
        place: &Place,
        counted: &Counted,
        records: &[&[u8]],
    ) -> Result<bool, Failure> {
        if records.is_empty() {
            return Ok(false);
        }
        let mut hash = Sha256::new();
        for record in records {
            hash.update((record.len() as u64).to_le_bytes());
            hash.update(record);
        }
        let held: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if self.held.as_ref() != Some(&held) {
            self.held = Some(held);
            return Ok(false);
        }
        let (param, number, count) = (&counted.param, place.number, records.len());
        let same = format!("for {param}={number} it gives the same {count} records as for the page before");
        if counted.end != PageEnd::Same {
            return Err(api.permanent(format!(
                "{same}: it seems not to know `{param}`; if it gives its last page again and again, write `end: same` with the \
                 `page_size`"
            )));
        }
        let is_second = place.line == count as u64 + 1;
        if is_second && counted.page_size.is_some_and(|size| count as u64 >= size) {
            return Err(api.permanent(format!(
                "{same}, and that was the first, and full: it seems not to know `{param}`; if there are no more than these, \
                 raise `page_size`"
            )));
        }
        Ok(true)
    }
}
