//! Listing quarantined rows for a coordinator, page by page. Between two pages the object stays open where the first one
//! ended, so that a whole listing fetches and unpacks it once. Whoever asks for another place (a node before was lost, a page is
//! asked for again) has it opened anew and passed over up to there.

use std::io::{self, Cursor, Write};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use haulage_core::failure::Failure;
use haulage_core::quarantine::Reject;
use haulage_proto::link::message::{FetchRejects, RejectsPage};

use super::Toolbox;
use crate::store::rejects::Rows;

/// A page ends with the row that reaches so many bytes, as JSON.
const PAGE_BYTES: usize = 1024 * 1024;
/// Rows after which a page ends although few of them have the reason: an answer must not be waited for without end.
const PAGE_ROWS: u64 = 100_000;
/// Objects that stay open. Each holds what is packed in it, some MiB.
const OPEN: usize = 4;

/// The objects that stay open, the one that was used last at the end.
#[derive(Default)]
pub(crate) struct Listings(Mutex<Vec<Listing>>);

struct Listing {
    key: String,
    rows: Rows<Cursor<Bytes>>,
}

impl Listings {
    /// The object, if it is open at that row.
    fn take(&self, key: &str, at: u64) -> Option<Listing> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = open
            .iter()
            .position(|listing| listing.key == key && listing.rows.at() == at)?;
        Some(open.remove(place))
    }

    fn put(&self, listing: Listing) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN {
            open.remove(0);
        }
        open.push(listing);
    }
}

/// A page of an object.
pub(crate) async fn page(tools: &Toolbox, fetch: FetchRejects) -> RejectsPage {
    match read(tools, fetch).await {
        Ok(page) => page,
        Err(failure) => RejectsPage {
            rows: Err(failure),
            next: None,
            last: false,
        },
    }
}

async fn read(tools: &Toolbox, fetch: FetchRejects) -> Result<RejectsPage, Failure> {
    let FetchRejects { key, skip, reason } = fetch;
    let mut listing = match tools.listings.take(&key, skip) {
        Some(listing) => listing,
        None => {
            let data = tools.store().await?.get(&key).await?;
            let rows = Rows::new(&key, Cursor::new(data))?;
            Listing { key, rows }
        }
    };
    let work = move || {
        listing.rows.pass_over(skip.saturating_sub(listing.rows.at()))?;
        let page = listing.page(skip, &reason)?;
        Ok::<_, Failure>((listing, page))
    };
    let read = tokio::task::spawn_blocking(work).await;
    let (listing, page) =
        read.map_err(|error| Failure::transient(format!("reading rejected rows did not end: {error}")))??;
    if !page.last {
        tools.listings.put(listing);
    }
    Ok(page)
}

impl Listing {
    fn page(&mut self, from: u64, reason: &str) -> Result<RejectsPage, Failure> {
        let (mut rows, mut bytes, mut last) = (Vec::new(), 0, false);
        while bytes < PAGE_BYTES && self.rows.at() - from.min(self.rows.at()) < PAGE_ROWS {
            let Some(mut reject) = self.rows.read()? else {
                last = true;
                break;
            };
            if !reason.is_empty() && reject.reason != reason {
                continue;
            }
            for_display(&mut reject);
            bytes += size(&reject);
            rows.push(reject);
        }
        Ok(RejectsPage {
            rows: Ok(rows),
            next: Some(self.rows.at()),
            last,
        })
    }
}

/// Takes away what is only for whoever reads the row again, and not for who looks at it.
fn for_display(reject: &mut Reject) {
    let has_values = reject.values().is_some();
    if let Some(kept) = &mut reject.kept {
        kept.loads.clear();
        kept.reached.clear();
        if !has_values {
            kept.columns = None;
        }
    }
}

fn size(reject: &Reject) -> usize {
    let mut counted = Counted(0);
    // What can't be written here can't be sent either, which says so then.
    serde_json::to_writer(&mut counted, reject).unwrap_or_default();
    counted.0
}

/// Counts what is written to it.
struct Counted(usize);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::ids::{LoadName, RunId};
    use haulage_core::quarantine::{Form, Kept};

    use super::*;
    use crate::config::NodeConfig;
    use crate::work::quarantine::keep;

    fn row(line: u64, raw: String) -> Reject {
        Reject {
            pipeline: "p".into(),
            run: RunId::from("r"),
            source: "s".into(),
            file: "a.csv".into(),
            line,
            column: None,
            step: None,
            reason: if line.is_multiple_of(3) { "third" } else { "other" }.into(),
            detail: String::new(),
            raw,
            kept: Some(Kept {
                loads: vec![LoadName::from("l")],
                reached: Vec::new(),
                columns: Some(vec!["a".to_owned(), "b".to_owned()].into()),
                tabbed: line.is_multiple_of(2),
                form: Form::Raw,
            }),
        }
    }

    async fn kept(rows: impl Iterator<Item = Reject>) -> (tempfile::TempDir, Toolbox) {
        let folder = tempfile::tempdir().unwrap();
        let tools = Toolbox::new(NodeConfig::new("n", folder.path().to_str().unwrap()));
        let store = tools.store().await.unwrap();
        keep(store.as_ref(), |part| format!("k{part}"), rows).await.unwrap();
        (folder, tools)
    }

    fn fetch(skip: u64, reason: &str) -> FetchRejects {
        FetchRejects {
            key: "k0".into(),
            skip,
            reason: reason.into(),
        }
    }

    #[tokio::test]
    async fn pages_hold_every_row_once_and_unpack_the_object_once() {
        let (folder, tools) = kept((1..=40).map(|line| row(line, format!("{}\\N", "x\t".repeat(50_000))))).await;
        let (mut lines, mut pages, mut skip) = (Vec::new(), 0, 0);
        loop {
            let page = page(&tools, fetch(skip, "")).await;
            pages += 1;
            if pages == 1 {
                // Whatever comes now is read from what was fetched.
                std::fs::remove_file(folder.path().join("k0")).unwrap();
            }
            for row in page.rows.unwrap() {
                let values = row.values().map(|values| (values.len(), values[50_000].clone()));
                let kept = row.kept.unwrap();
                // Columns only where there are values without names.
                assert_eq!(values, (row.line.is_multiple_of(2)).then_some((50_001, None)));
                assert_eq!((kept.columns.is_some(), kept.loads.len()), (values.is_some(), 0));
                lines.push(row.line);
            }
            skip = page.next.unwrap();
            if page.last {
                break;
            }
        }
        assert_eq!(lines, (1..=40).collect::<Vec<_>>());
        assert!(pages > 1);
        assert!(tools.listings.0.lock().unwrap().is_empty(), "what ended is closed");
        let gone = page(&tools, fetch(0, "")).await;
        assert!(gone.rows.is_err(), "and the object is gone");
    }

    #[tokio::test]
    async fn a_reason_is_looked_for_here_and_any_place_can_be_asked_for() {
        let (_folder, tools) = kept((1..=9).map(|line| row(line, "x".into()))).await;
        let lines = |page: RejectsPage| -> Vec<u64> { page.rows.unwrap().iter().map(|row| row.line).collect() };
        assert_eq!(lines(page(&tools, fetch(0, "third")).await), [3, 6, 9]);
        assert_eq!(lines(page(&tools, fetch(5, "third")).await), [6, 9]);
        assert_eq!(lines(page(&tools, fetch(7, "")).await), [8, 9]);
        let behind = page(&tools, fetch(70, "")).await;
        assert!(behind.last && lines(behind).is_empty());
    }

    #[test]
    fn what_is_left_open_is_bounded() {
        let listings = Listings::default();
        for number in 0..=OPEN {
            let rows = Rows::new("k", Cursor::new(Bytes::new())).unwrap();
            listings.put(Listing {
                key: format!("k{number}"),
                rows,
            });
        }
        assert_eq!(listings.0.lock().unwrap().len(), OPEN);
        assert!(listings.take("k0", 0).is_none() && listings.take("k1", 1).is_none());
        assert!(listings.take("k1", 0).is_some() && listings.take("k1", 0).is_none());
    }
}
