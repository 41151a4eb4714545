//! What the tests share: an API that knows every kind of pagination, and sources that read it.

mod ends;
mod limits;
mod pages;
mod records;
mod tls;
mod trouble;

use std::time::Duration;

use datafusion::arrow::datatypes::DataType;
use haulage_core::checkpoint::ChunkSpec;
use haulage_plan::definition::{Counted, NameEnd, PageEnd, Pagination, SecretName, Source as Declared, SourceKind};
use haulage_test_support::http::{Answer, Http, Request};
use serde_json::{Value, json};

use super::*;
use crate::config::NodeConfig;
use crate::source::database::Databases;
use crate::source::testing::{Row, column, required, rows};
use crate::source::{Binding, Segment, bind};
use crate::store::S3Settings;

pub(super) const SECRET: &str = "hunter2+/ =";

/// A source that reads `/orders` of a server.
pub(super) fn declared(server: &Http) -> RestSource {
    RestSource {
        url: format!("{}/orders?fixed=1", server.address()),
        query: vec![("since".into(), "a&b=ü c".into())],
        headers: vec![("X-Plain".into(), "yes".into())],
        auth: None,
        records: vec!["data".into(), "items".into()],
        records_optional: false,
        error: Vec::new(),
        pagination: Pagination::None,
        pause: Duration::ZERO,
        timeout: Duration::from_secs(20),
        max_wait: Duration::from_secs(60),
        max_response: 1 << 20,
        paths: Default::default(),
        columns: vec![required("id", DataType::Int64), column("word", DataType::Utf8)],
        location: format!("{}/orders", server.address()),
    }
}

/// The source, on a node that knows the secret `key`.
pub(super) fn source(declared: RestSource, checkpoint_rows: u64) -> Box<dyn Source> {
    under(declared, checkpoint_rows, Contract::default())
}

/// The same with a contract.
pub(super) fn under(declared: RestSource, checkpoint_rows: u64, contract: Contract) -> Box<dyn Source> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), SECRET).unwrap();
    let mut config = NodeConfig::new("n", "store");
    config.secrets_dir = Some(folder.keep());
    let binding = Binding {
        base: "/".into(),
        s3: S3Settings::default(),
        checkpoint_rows,
        databases: Databases::of(&config),
    };
    let source = Declared {
        name: "raw".into(),
        lookup: false,
        kind: SourceKind::Rest(Box::new(declared)),
        contract,
        partitions: Vec::new(),
        planned: None,
        place: Default::default(),
    };
    bind(&source, binding).unwrap()
}

pub(super) fn key() -> SecretName {
    SecretName("key".into())
}

pub(super) fn counted(
    param: &str,
    start: u64,
    size_param: Option<&str>,
    page_size: Option<u64>,
    end: PageEnd,
) -> Counted {
    Counted {
        param: param.into(),
        start,
        size_param: size_param.map(str::to_owned),
        page_size,
        end,
    }
}

/// By the URL under `meta.next`.
pub(super) fn next() -> Pagination {
    Pagination::Next {
        path: vec!["meta".into(), "next".into()],
        end: NameEnd::Said,
    }
}

pub(super) fn link(rel: &str, end: NameEnd) -> Pagination {
    Pagination::Link { rel: rel.into(), end }
}

pub(super) fn record(id: u64) -> Value {
    json!({"id": id, "word": format!("word {id}"), "more": [id]})
}

/// Records from one on, in a page.
pub(super) fn items(from: u64, records: u64, last: u64) -> Vec<Value> {
    (from..last.min(from + records)).map(record).collect()
}

pub(super) fn page(items: &[Value], next: Value) -> Answer {
    Answer::new(
        200,
        json!({"data": {"items": items}, "meta": {"next": next}}).to_string(),
    )
}

pub(super) fn number(request: &Request, name: &str) -> u64 {
    request.query(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// An API with `last` records and pages of ten, that knows every kind of pagination.
pub(super) fn orders(request: &Request, last: u64) -> Answer {
    if request.path() != "/orders" || request.query("fixed").as_deref() != Some("1") && request.query("at").is_none() {
        return Answer::new(404, "no such thing");
    }
    let size = number(request, "limit").clamp(1, 10);
    let from = match () {
        () if request.query("page").is_some() => (number(request, "page") - 1) * size,
        () if request.query("after").is_some() => number(request, "after"),
        () if request.query("at").is_some() => number(request, "at"),
        () => number(request, "offset"),
    };
    let from = from.min(last);
    let items = items(from, size, last);
    let to = from + items.len() as u64;
    if to >= last {
        return page(&items, Value::Null);
    }
    let next = match request.query("kind").as_deref() {
        Some("url") => json!(format!("/orders?kind=url&limit={size}&at={to}")),
        _ => json!(to),
    };
    page(&items, next).header(
        "Link",
        format!("</orders?limit={size}&at=0>; rel=\"first\", </orders?limit={size}&at={to}>; rel=\"next\""),
    )
}

/// Every kind, and how many requests it takes to read 95 records ten by ten.
pub(super) fn kinds(server: &Http) -> Vec<(&'static str, RestSource, usize)> {
    let with = |pagination: Pagination, more: &[(&str, &str)]| {
        let mut rest = declared(server);
        rest.query
            .extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        rest.pagination = pagination;
        rest
    };
    let path = || vec!["meta".to_owned(), "next".to_owned()];
    let cursor = Pagination::Cursor {
        path: path(),
        param: "after".into(),
        start: None,
        end: NameEnd::Said,
    };
    let pages = |end| Pagination::Page(counted("page", 1, Some("limit"), Some(10), end));
    let offsets = |size| Pagination::Offset(counted("offset", 0, Some("limit"), Some(size), PageEnd::Empty));
    let ten = [("limit", "10")];
    vec![
        ("cursor", with(cursor, &ten), 10),
        ("next", with(next(), &[("limit", "10"), ("kind", "url")]), 10),
        ("link", with(link("next", NameEnd::Said), &ten), 10),
        ("page", with(pages(PageEnd::Empty), &[]), 11),
        ("short", with(pages(PageEnd::Short), &[]), 10),
        ("same", with(pages(PageEnd::Same), &[]), 11),
        // The server gives ten where it was asked for fifty.
        ("offset", with(offsets(50), &[]), 11),
    ]
}

pub(super) async fn chunk(source: &dyn Source) -> ChunkSpec {
    let mut chunks = source.discover(StageId(3)).await.unwrap();
    assert_eq!(chunks.len(), 1);
    chunks.remove(0)
}

pub(super) fn flat(segments: &[Segment]) -> Vec<Row> {
    segments.iter().flat_map(rows).collect()
}

pub(super) fn expected(ids: impl Iterator<Item = u64>) -> Vec<Row> {
    ids.map(|id| {
        let raw = record(id).to_string().into_bytes();
        (id + 1, raw, Ok(vec![id.to_string(), format!("word {id}")]))
    })
    .collect()
}

/// The failure of reading a source to its end.
pub(super) async fn refused(declared: RestSource) -> Failure {
    let offset = match &declared.pagination {
        Pagination::Page(counted) | Pagination::Offset(counted) => counted.start,
        Pagination::None | Pagination::Cursor { .. } | Pagination::Next { .. } | Pagination::Link { .. } => 0,
    };
    let source = source(declared, 1000);
    let mut reader = source.open(&spec(), Position { offset, line: 1 }).await.unwrap();
    loop {
        match reader.next().await {
            Ok(Some(segment)) if !segment.last => {}
            Ok(_) => panic!("it was read"),
            Err(failure) => return failure,
        }
    }
}

pub(super) fn spec() -> ChunkSpec {
    ChunkSpec {
        chunk: ChunkId {
            stage: StageId(0),
            index: 0,
        },
        source: "raw".into(),
        object: "api".into(),
        version: String::new(),
        start: Position { offset: 0, line: 1 },
        end: None,
        bytes: 0,
        window: None,
    }
}
