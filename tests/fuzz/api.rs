//! An API whose answers are nearly sound. It notes what each of them is worth, by an eye of its own: serde_json's, on the
//! bytes that a client may believe.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use datafusion::arrow::datatypes::DataType;
use haulage_plan::definition::{Column, Counted, NameEnd, PageEnd, Pagination, RestSource};
use haulage_test_support::http::{Answer, Ends, Request};
use serde_json::value::RawValue;

use crate::frames::{self, Sent};
use crate::json::any_object;
use crate::random::Random;

/// The records of a page, in bytes.
pub(crate) type Page = Vec<Vec<u8>>;

/// The longest answer that is read.
const MAX_RESPONSE: u64 = 64 << 10;
/// Requests that may meet something odd; those after them don't.
const ODD_REQUESTS: usize = 8;

/// One API, with all that it will do.
pub(crate) struct Api {
    /// All records, as they are written.
    pub(crate) records: Vec<String>,
    /// Records of a page, at most.
    size: usize,
    way: Way,
    end: PageEnd,
    path: Vec<String>,
    /// What is wrong with what the pages say of the next one.
    lie: Option<Lie>,
    /// Whether records are others each time.
    changes: bool,
    /// What happens to the first requests.
    odd: Vec<Option<Odd>>,
    random: Random,
    /// From now on nothing is odd.
    pub(crate) calm: AtomicBool,
    /// Of each answer: what was asked for, and its records, if it is a page.
    log: Mutex<Vec<(String, Option<Page>)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    Cursor,
    Next,
    Link,
    Page,
    Offset,
}

/// What a page may say of the next one, other than the truth.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// A page that was before.
    Back,
    /// Itself.
    Itself,
    /// Another server, or no URL.
    Elsewhere(&'static str),
    /// What is no name.
    Nameless(&'static str),
}

/// What happens to a request.
#[derive(Debug, Clone)]
enum Odd {
    Status(u16, Option<&'static str>),
    /// Another body, with these bytes instead of those at a place.
    Damaged(usize, &'static [u8]),
    /// The body again and again.
    Large,
    Framed,
    Redirect(&'static str),
    Closed,
    Silent,
    CutAfter(usize),
}

fn any_record(random: &mut Random, number: usize) -> String {
    match random.below(24) {
        0 => (*random.pick(&[&"[1]", &"null", &"1e999", &"\"x\"", &"true", &"{}", &"-0"])).to_owned(),
        1 => format!("{{\"id\":{number},\"id\":2}}"),
        2 => format!(
            "{{\"id\":{number},\"word\":\"{}\"}}",
            random.pick(&["\\u0000", "\\ud800", "\\ud83d\\ude00"])
        ),
        3 => {
            let depth = random.below(400);
            format!("{{\"id\":{number},\"x\":{}1{}}}", "[".repeat(depth), "]".repeat(depth))
        }
        4 => format!("{{\"id\":{number},\"word\":\"{}\"}}", "long ".repeat(random.below(600))),
        5..9 => any_object(random, 0).to_string(),
        _ => format!("{{\"id\": {number}, \"word\": \"number {number}\"}}"),
    }
}

pub(crate) fn any_api(random: &mut Random) -> Api {
    let count = match random.below(6) {
        0 => random.below(2),
        _ => random.below(60),
    };
    let records = (0..count).map(|number| any_record(random, number)).collect();
    let way = [Way::Whole, Way::Cursor, Way::Next, Way::Link, Way::Page, Way::Offset][random.below(6)];
    let lies = [
        Lie::Back,
        Lie::Itself,
        Lie::Elsewhere("http://127.0.0.2:1/orders?at=1"),
        Lie::Elsewhere("//[::1/"),
        Lie::Elsewhere("http://u:p@127.0.0.1/orders"),
        Lie::Nameless("{}"),
        Lie::Nameless("[1]"),
        Lie::Nameless("true"),
        Lie::Nameless("\"\\ud800\""),
        Lie::Nameless("1.5e3"),
    ];
    let is_odd = random.once_in(2);
    let mut odd: Vec<Option<Odd>> = Vec::new();
    for _ in 0..ODD_REQUESTS {
        // Few, since each is a wait.
        let more = is_odd && odd.iter().flatten().count() < 3 && random.once_in(3);
        odd.push(more.then(|| any_odd(random)));
    }
    if random.once_in(60) {
        odd.fill(Some(Odd::Status(503, Some("0"))));
    }
    Api {
        records,
        size: random.within(1, 12),
        way,
        end: match random.below(3) {
            0 => PageEnd::Short,
            1 => PageEnd::Missing,
            _ => PageEnd::Empty,
        },
        path: match random.below(3) {
            0 => Vec::new(),
            1 => vec!["data".to_owned()],
            _ => vec!["data".to_owned(), "items".to_owned()],
        },
        lie: random.once_in(6).then(|| lies[random.below(lies.len())]),
        changes: random.once_in(8),
        odd,
        random: random.clone(),
        calm: AtomicBool::new(false),
        log: Mutex::default(),
    }
}

fn any_odd(random: &mut Random) -> Odd {
    const PIECES: [&[u8]; 14] = [
        b"",
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"\xff",
        b"\0",
        b"null",
        b"\\",
        b"<html>",
        b"\xef\xbb\xbf",
        b" ",
    ];
    const AFTER: [&str; 8] = [
        "0",
        "1",
        "99999999999999",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "-1",
        "1e9",
        "",
        "soon",
    ];
    match random.below(12) {
        0 => Odd::Status(
            [500, 502, 503, 429, 408, 425][random.below(6)],
            Some(AFTER[random.below(8)]),
        ),
        1 => Odd::Status(
            [400, 401, 403, 404, 410, 304, 300, 501, 505, 999][random.below(10)],
            None,
        ),
        2 => Odd::Status([200, 201, 203, 204, 206][random.below(5)], Some("1")),
        3..5 => Odd::Damaged(random.next() as usize, PIECES[random.below(PIECES.len())]),
        5 => Odd::Large,
        6 => Odd::Redirect(random.pick(&["/orders?r=1", "http://127.0.0.2:1/", "//[", ""])),
        7 => Odd::Closed,
        8 if random.once_in(6) => Odd::Silent,
        9 => Odd::CutAfter(random.next() as usize),
        _ => Odd::Framed,
    }
}

impl Api {
    pub(crate) fn shown(&self) -> String {
        format!(
            "{} records in pages of {} by {:?} ({:?}) at {:?}, lie {:?}, changes {}, odd {:?}",
            self.records.len(),
            self.size,
            self.way,
            self.end,
            self.path,
            self.lie,
            self.changes,
            self.odd
        )
    }

    pub(crate) fn declared(&self, address: &str) -> RestSource {
        let next = || vec!["meta".to_owned(), "next".to_owned()];
        let counted = |param: &str, start| Counted {
            param: param.to_owned(),
            start,
            size_param: Some("limit".to_owned()),
            page_size: Some(self.size as u64),
            end: self.end,
        };
        let column = |name: &str, data_type, required| Column {
            name: name.to_owned(),
            data_type,
            required,
        };
        let is_silent = self.odd.iter().flatten().any(|odd| matches!(odd, Odd::Silent));
        RestSource {
            url: format!("{address}/orders"),
            query: Vec::new(),
            headers: Vec::new(),
            auth: None,
            records: self.path.clone(),
            records_optional: self.is_optional(),
            error: Vec::new(),
            pagination: match self.way {
                Way::Whole => Pagination::None,
                Way::Cursor => Pagination::Cursor {
                    path: next(),
                    param: "at".to_owned(),
                    start: None,
                    end: NameEnd::Absent,
                },
                Way::Next => Pagination::Next {
                    path: next(),
                    end: NameEnd::Absent,
                },
                Way::Link => Pagination::Link {
                    rel: "next".to_owned(),
                    end: NameEnd::Absent,
                },
                Way::Page => Pagination::Page(counted("at", 0)),
                Way::Offset => Pagination::Offset(counted("at", 0)),
            },
            pause: Duration::ZERO,
            timeout: Duration::from_secs(if is_silent { 1 } else { 30 }),
            max_wait: Duration::from_secs(600),
            max_response: MAX_RESPONSE,
            paths: Default::default(),
            columns: vec![
                column("id", DataType::Int64, true),
                column("word", DataType::Utf8, false),
            ],
            location: format!("{address}/orders"),
        }
    }

    /// The records of a page, by what stands in the query.
    fn page(&self, at: u64) -> &[String] {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let start = match self.way {
            Way::Whole => return &self.records,
            Way::Offset => at,
            Way::Cursor | Way::Next | Way::Link | Way::Page => at.saturating_mul(self.size),
        };
        let start = start.min(self.records.len());
        &self.records[start..self.records.len().min(start + self.size)]
    }

    /// What the page says of the one after it, as JSON.
    fn next(&self, at: u64, random: &mut Random) -> String {
        let is_number = random.once_in(2);
        let name = |at: u64| match self.way {
            Way::Cursor if is_number => at.to_string(),
            Way::Cursor => format!("\"{at}\""),
            _ => format!("\"/orders?at={at}\""),
        };
        let is_last = (at + 1) as usize * self.size >= self.records.len();
        match self.lie {
            Some(_) if self.calm.load(Ordering::SeqCst) || random.once_in(3) => {}
            Some(Lie::Back) => return name(at.saturating_sub(1)),
            Some(Lie::Itself) => return name(at),
            Some(Lie::Elsewhere(url)) => return format!("\"{url}\""),
            Some(Lie::Nameless(json)) => return json.to_owned(),
            None => {}
        }
        match is_last {
            true => (*random.pick(&[&"null", &"\"\"", &"false"])).to_owned(),
            false => name(at + 1),
        }
    }

    /// The body of a page.
    fn body(&self, at: u64, number: usize, random: &mut Random) -> String {
        let mut records = self.page(at).to_vec();
        if self.changes && !records.is_empty() {
            records.push(format!("{{\"id\":{number}}}"));
        }
        let space = |random: &mut Random| *random.pick(&[&"", &" ", &"\n\t"]);
        let mut list = format!("[{}", space(random));
        list += &records.join(&format!(",{}", space(random)));
        list += &format!("{}]", space(random));
        if records.is_empty() && self.is_optional() && random.once_in(4) {
            list = "null".to_owned();
        }
        let mut value = list;
        for (depth, key) in self.path.iter().enumerate().rev() {
            let decoy = if random.once_in(5) {
                format!("\"{key}\":[1],")
            } else {
                String::new()
            };
            let more = if depth == 0 {
                format!(",\"meta\":{{\"next\":{}}}", self.next(at, random))
            } else {
                String::new()
            };
            value = format!("{{{decoy}\"n\":-1.5e3,\"{key}\":{}{value}{more}}}", space(random));
        }
        format!("{}{value}{}", space(random), space(random))
    }

    pub(crate) fn answer(&self, request: &Request, number: usize) -> Answer {
        let mut random = Random::new(self.random.clone().next(), number as u64);
        let at = request.query("at").map_or(Some(0), |at| at.parse().ok());
        let Some(at) = at else {
            self.note(request, None);
            return Answer::new(404, "no such page");
        };
        let body = self.body(at, number, &mut random);
        let calm = self.calm.load(Ordering::SeqCst);
        let odd = self.odd.get(number).and_then(Option::as_ref).filter(|_| !calm);
        let mut headers = Vec::new();
        if self.way == Way::Link {
            headers.push(("Link".to_owned(), self.link(at, &mut random)));
        }
        let whole = |status: u16, body: &[u8]| Answer {
            status,
            headers: headers.clone(),
            body: body.to_vec(),
            ends: Ends::Whole,
        };
        let is_counted = matches!(self.way, Way::Page | Way::Offset);
        let Some(odd) = odd else {
            if self.page(at).is_empty() && at > 0 && is_counted && self.end == PageEnd::Missing {
                self.note(request, Some(Vec::new()));
                return Answer::new(404, "{\"detail\": \"no such page\"}");
            }
            self.note(request, self.worth(body.as_bytes()));
            return whole(200, body.as_bytes());
        };
        match odd {
            Odd::Status(status, after) => {
                let missing = *status == 404 && at > 0 && is_counted && self.end == PageEnd::Missing;
                let records = match status {
                    204 => Some(Vec::new()),
                    200..300 => self.worth(body.as_bytes()),
                    _ => missing.then(Vec::new),
                };
                self.note(request, records);
                let mut answer = whole(*status, body.as_bytes());
                answer
                    .headers
                    .extend(after.map(|after| ("Retry-After".to_owned(), after.to_owned())));
                answer
            }
            Odd::Damaged(place, piece) => {
                let mut bytes = body.into_bytes();
                let from = place % (bytes.len() + 1);
                let to = (from + place / 7 % 3).min(bytes.len());
                bytes.splice(from..to, piece.iter().copied());
                self.note(request, self.worth(&bytes));
                whole(200, &bytes)
            }
            Odd::Large => {
                self.note(request, None);
                let filler = " ".repeat(MAX_RESPONSE as usize);
                whole(200, (filler + &body).as_bytes())
            }
            Odd::Redirect(to) => {
                self.note(request, None);
                let to = match request.target.split_once('?') {
                    Some((_, query)) if to.starts_with("/orders") => format!("{to}&{query}"),
                    _ => (*to).to_owned(),
                };
                Answer::new(302, "").header("Location", to)
            }
            Odd::Closed | Odd::Silent => {
                self.note(request, None);
                whole(200, b"").ends(if matches!(odd, Odd::Closed) {
                    Ends::Closed
                } else {
                    Ends::Silent
                })
            }
            Odd::CutAfter(bytes) => {
                self.note(request, None);
                let cut = bytes % body.len().max(1);
                whole(200, body.as_bytes()).ends(Ends::CutAfter(cut))
            }
            Odd::Framed => {
                let Sent { bytes, believed } = frames::any(&headers, body.as_bytes(), &mut random);
                self.note(request, believed.and_then(|body| self.worth(&body)));
                Answer::new(200, bytes).ends(Ends::AsWritten)
            }
        }
    }

    fn link(&self, at: u64, random: &mut Random) -> String {
        let next = self.next(at, random);
        let next: Option<String> = serde_json::from_str(&next).ok();
        let link = next
            .filter(|url| !url.is_empty())
            .map(|url| format!("<{url}>; rel=\"next\""));
        let junk = *random.pick(&[
            &"</orders?at=0>; rel=first",
            &"nonsense",
            &"<a;b,c>; title=\"x, <y>; rel=next\"; rel=prev",
            &"",
        ]);
        match (link, random.once_in(2)) {
            (Some(link), true) => format!("{junk}, {link}"),
            (Some(link), false) => format!("{link}, {junk}"),
            (None, _) => junk.to_owned(),
        }
    }

    fn note(&self, request: &Request, records: Option<Page>) {
        // Where a redirect has led is the page that was asked for.
        let asked = request.target.replace("?r=1&", "?").replace("?r=1", "");
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((asked, records));
    }

    pub(crate) fn logged(&self) -> Vec<(String, Option<Page>)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a page without an array of records has none; without a path, there would be nothing left to tell it by.
    fn is_optional(&self) -> bool {
        !self.path.is_empty()
    }

    /// The records of a body, if it is a page.
    fn worth(&self, body: &[u8]) -> Option<Page> {
        if body.len() as u64 > MAX_RESPONSE {
            return None;
        }
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        // Bytes that are no text are wrong with the record that holds them, which is found around them.
        let mut text = String::new();
        for part in body.utf8_chunks() {
            text += part.valid();
            text.extend(part.invalid().iter().map(|_| '?'));
        }
        let mut value: &RawValue = serde_json::from_str(&text).ok()?;
        for key in &self.path {
            if !value.get().starts_with('{') {
                return self.is_optional().then(Vec::new);
            }
            let mut object: BTreeMap<String, &RawValue> = serde_json::from_str(value.get()).ok()?;
            match object.remove(key) {
                Some(found) => value = found,
                None => return self.is_optional().then(Vec::new),
            }
        }
        if value.get() == "null" && self.is_optional() {
            return Some(Vec::new());
        }
        let records: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        let bytes = |record: &&RawValue| {
            let start = record.get().as_ptr() as usize - text.as_ptr() as usize;
            body[start..start + record.get().len()].to_vec()
        };
        Some(records.iter().map(bytes).collect())
    }

    /// Whether all that is odd passes by itself, and gives the same pages then.
    pub(crate) fn is_honest(&self) -> bool {
        let passes = |odd: &Odd| match odd {
            Odd::Status(500 | 502 | 503 | 429 | 408 | 425, after) => *after != Some("99999999999999"),
            Odd::Status(status, _) => matches!(status, 200 | 201 | 203 | 206),
            Odd::Closed | Odd::CutAfter(_) => true,
            Odd::Damaged(..) | Odd::Large | Odd::Framed | Odd::Redirect(_) | Odd::Silent => false,
        };
        let odd: Vec<&Odd> = self.odd.iter().flatten().collect();
        let pages: Vec<&[String]> = self.records.chunks(self.size).collect();
        // What gives the same page for two numbers seems not to know the number.
        let differ = !matches!(self.way, Way::Page | Way::Offset) || pages.windows(2).all(|two| two[0] != two[1]);
        let is_small = self.records.iter().map(String::len).sum::<usize>() < MAX_RESPONSE as usize / 2;
        // So few leave tries.
        let pass = odd.len() <= 3 && odd.into_iter().all(passes);
        self.lie.is_none() && !self.changes && pass && differ && is_small && self.says_next()
    }

    /// Whether pages have a place where the next one is said.
    fn says_next(&self) -> bool {
        !self.path.is_empty() || !matches!(self.way, Way::Cursor | Way::Next)
    }
}
