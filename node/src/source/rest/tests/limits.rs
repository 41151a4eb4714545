//! What a server asks to wait, and what of it fits into memory.

use haulage_core::failure::Class;
use haulage_test_support::http::Ends;

use super::*;
use crate::source::testing::{gzip, segments};

#[tokio::test]
async fn a_rate_limit_is_waited_for_and_is_no_matter_of_secrets() {
    type Limit = fn(Answer) -> Answer;
    let limits: [Limit; 3] = [
        |answer| answer.header("Retry-After", "0"),
        |answer| answer.header("X-RateLimit-Remaining", "0"),
        |answer| {
            answer
                .header("X-RateLimit-Remaining", "0")
                .header("Date", "Sun, 09 Sep 2001 01:46:40 GMT")
                .header("X-RateLimit-Reset", "1000000000")
        },
    ];
    for limit in limits {
        let server = Http::start(move |request, before| match before {
            0 => limit(Answer::new(403, "API rate limit exceeded")),
            _ => orders(request, 5),
        })
        .await
        .unwrap();
        let mut rest = declared(&server);
        rest.query.push(("limit".into(), "10".into()));
        let source = source(rest, 100);
        let all = segments(&*source, &spec(), spec().start).await.unwrap();
        assert_eq!((flat(&all), server.requests().len()), (expected(0..5), 2));
    }
    let server = Http::start(|_, _| Answer::new(403, "no").header("X-RateLimit-Remaining", "17"))
        .await
        .unwrap();
    let failure = refused(declared(&server)).await;
    assert_eq!((failure.class, server.requests().len()), (Class::Permanent, 1));
}

#[tokio::test]
async fn a_longer_wait_than_there_may_be_is_one_request_and_says_what_to_do() {
    let away = Http::start(|_, _| Answer::new(429, "quota").header("Retry-After", "3600"))
        .await
        .unwrap();
    let failure = refused(declared(&away)).await;
    assert_eq!((failure.class, away.requests().len()), (Class::Permanent, 1));
    for part in [
        "quota",
        "a wait of 3600 s",
        "`max_wait` (60 s)",
        "run again after that, or raise it",
    ] {
        assert!(failure.message.contains(part), "{failure}");
    }
    // Who looks before the run leaves it to the run, which has the time.
    let mut rest = declared(&away);
    rest.max_wait = Duration::from_secs(7200);
    let looked = source(rest, 10).check().await.unwrap_err().failure;
    assert_eq!((looked.class, away.requests().len()), (Class::Transient, 2));
    assert!(looked.message.contains("a wait of 3600 s"), "{looked}");
}

#[tokio::test]
async fn a_status_counts_although_its_body_never_comes() {
    let server = Http::start(|_, _| Answer::new(401, "w".repeat(1000)).ends(Ends::Drips(Duration::from_millis(20))))
        .await
        .unwrap();
    let mut rest = declared(&server);
    rest.timeout = Duration::from_millis(200);
    let failure = refused(rest).await;
    assert_eq!((failure.class, server.requests().len()), (Class::Permanent, 1));
    assert!(failure.message.contains("it answers 401"), "{failure}");
}

#[tokio::test]
async fn the_values_of_a_page_and_of_a_segment_are_bounded() {
    let server = Http::start(|request, _| {
        let (page, records) = (number(request, "page"), number(request, "records") as usize);
        let records = if page > 3 { 0 } else { records };
        let items = vec![format!("{{\"n\":{page}}}"); records].join(",");
        Answer::new(200, format!("[{items}]"))
    })
    .await
    .unwrap();
    let with = |records: u64| {
        let mut rest = declared(&server);
        rest.records = Vec::new();
        rest.query.push(("records".into(), records.to_string()));
        rest.pagination = Pagination::Page(counted("page", 1, None, None, PageEnd::Empty));
        let names = (0..200).map(|number| format!("c{number}"));
        rest.columns = names.map(|name| column(&name, DataType::Int64)).collect();
        rest
    };
    let failure = refused(with(60_000)).await;
    assert_eq!(failure.class, Class::Permanent);
    let part =
        "a page has 60000 records, which with 200 columns are more than 10 million values; ask for smaller pages";
    assert!(failure.message.contains(part), "{failure}");
    let looked = source(with(60_000), 10).check().await.unwrap_err();
    assert!(looked.failure.message.contains(part), "{looked}");
    let wide = source(with(20_000), u64::MAX);
    let mut reader = wide.open(&spec(), Position { offset: 1, line: 1 }).await.unwrap();
    let mut rows = Vec::new();
    while let Some(segment) = reader.next().await.unwrap() {
        rows.push(segment.rows);
    }
    assert_eq!(rows, [20_000, 20_000, 20_000, 0]);
}

#[tokio::test]
async fn packed_answers_are_unpacked_and_bounded_as_they_are_then() {
    let server = Http::start(|request, _| {
        let packed = |status, body: &str| Answer::new(status, gzip(body.as_bytes())).header("Content-Encoding", "gzip");
        let body = json!({"data": {"items": [record(0)]}, "meta": {"next": null}}).to_string();
        match request.query("case").as_deref() {
            Some("gzip") => packed(200, &body),
            Some("word") => Answer::new(200, body).header("Content-Encoding", "utf-8"),
            Some("long") => packed(200, &" ".repeat(2 << 20)),
            Some("wrong") => packed(400, "no such field"),
            Some("cut") => {
                let mut answer = packed(200, &body);
                answer.body.truncate(40);
                answer
            }
            _ => Answer::new(200, "x").header("Content-Encoding", "br"),
        }
    })
    .await
    .unwrap();
    let with = |case: &str| {
        let mut rest = declared(&server);
        rest.query.push(("case".into(), case.into()));
        rest
    };
    for case in ["gzip", "word"] {
        let all = segments(&*source(with(case), 10), &spec(), spec().start).await.unwrap();
        assert_eq!(flat(&all), expected(0..1), "{case}");
    }
    for (case, class, part) in [
        ("long", Class::Permanent, "longer than `max_response` (1048576 bytes)"),
        ("wrong", Class::Permanent, "400 Bad Request: no such field"),
        ("cut", Class::Transient, "can't be unpacked"),
        ("brotli", Class::Permanent, "packed (br), and gzip alone"),
    ] {
        let failure = refused(with(case)).await;
        assert_eq!(failure.class, class, "{failure}");
        assert!(failure.message.contains(part), "{case}: {failure}");
    }
    assert_eq!(server.requests()[0].header("accept-encoding"), Some("gzip"));
}
