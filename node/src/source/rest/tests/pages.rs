//! APIs that keep their word: every record once, from every checkpoint on, within the bounds.

use futures::{FutureExt as _, poll};
use haulage_core::failure::Class;
use haulage_test_support::http::Ends;
use haulage_test_support::wait_for;
use tokio::time::Instant;

use super::*;
use crate::source::testing::segments;

#[tokio::test]
async fn every_record_comes_once_and_every_checkpoint_leads_to_the_rest() {
    let server = Http::start(|request, _| orders(request, 95)).await.unwrap();
    for (kind, declared, requests) in kinds(&server) {
        // Two pages and a half: segments are whole pages.
        let source = source(declared, 25);
        let chunk = chunk(&*source).await;
        assert_eq!(
            (chunk.chunk.stage, chunk.object.ends_with("/orders")),
            (StageId(3), true),
            "{kind}"
        );
        let before = server.requests().len();
        let straight = segments(&*source, &chunk, chunk.start).await.unwrap();
        assert_eq!(flat(&straight), expected(0..95), "{kind}");
        assert_eq!(server.requests().len() - before, requests, "{kind}");
        let sizes: Vec<u64> = straight.iter().map(|segment| segment.rows).collect();
        assert_eq!(sizes, [30, 30, 30, 5], "{kind}");
        for (number, segment) in straight.iter().enumerate().filter(|(_, segment)| !segment.last) {
            let before = server.requests().len();
            let mut reader = source
                .open_at(&chunk, segment.next, segment.cursor.as_deref())
                .await
                .unwrap();
            let mut rest = Vec::new();
            while let Some(next) = reader.next().await.unwrap() {
                let same = &straight[number + 1 + rest.len()];
                assert_eq!(
                    (next.next, &next.cursor, next.raw.digest()),
                    (same.next, &same.cursor, same.raw.digest())
                );
                rest.push(next);
            }
            assert_eq!(flat(&rest), expected(30 * (number as u64 + 1)..95), "{kind}");
            // What was read before is not asked for again.
            let asked = server.requests().len() - before;
            assert_eq!(asked, requests - 3 * (number + 1), "{kind} after segment {number}");
        }
        let first = server.requests().swap_remove(before);
        assert_eq!(first.query("since").as_deref(), Some("a&b=ü c"), "{kind}");
        assert_eq!(first.header("x-plain"), Some("yes"));
        assert_eq!(
            (first.header("accept"), first.header("accept-encoding")),
            (Some("application/json"), Some("gzip"))
        );
        assert!(
            first
                .header("user-agent")
                .is_some_and(|agent| agent.starts_with("haulage/"))
        );
        if matches!(kind, "cursor" | "next" | "link") {
            let lost = source.open(&chunk, straight[0].next).await.map(drop).unwrap_err();
            assert!(lost.message.contains("doesn't say which page comes next"), "{lost}");
        }
    }
}

#[tokio::test]
async fn an_api_without_records_has_an_empty_segment_and_404_may_be_the_end() {
    let empty = Http::start(|request, _| orders(request, 0)).await.unwrap();
    for (kind, declared, _) in kinds(&empty) {
        let source = source(declared, 25);
        let chunk = chunk(&*source).await;
        let all = segments(&*source, &chunk, chunk.start).await.unwrap();
        assert_eq!((all.len(), all[0].rows, all[0].last), (1, 0, true), "{kind}");
    }
    let strict = |request: &Request, _| match number(request, "page") {
        page if page <= 2 => orders(request, 20),
        3 => Answer::new(404, "{\"detail\": \"Invalid page.\"}"),
        _ => Answer::new(204, ""),
    };
    let strict = Http::start(strict).await.unwrap();
    let mut declared = declared(&strict);
    declared.pagination = Pagination::Page(counted("page", 1, Some("limit"), Some(10), PageEnd::Missing));
    let missing = source(declared.clone(), 1000);
    let chunk = chunk(&*missing).await;
    assert_eq!(
        flat(&segments(&*missing, &chunk, chunk.start).await.unwrap()),
        expected(0..20)
    );
    declared.pagination = Pagination::Page(counted("page", 1, Some("limit"), Some(10), PageEnd::Short));
    let short = source(declared, 1000);
    let failure = segments(&*short, &chunk, chunk.start).await.map(drop).unwrap_err();
    assert_eq!(failure.class, Class::Permanent);
    assert!(
        failure.message.contains("Invalid page.")
            && failure.message.contains("page=3, after 20 records")
            && failure.message.contains("write `end: missing`"),
        "{failure}"
    );
}

#[tokio::test]
async fn columns_come_from_the_first_record_and_others_are_rejected_by_themselves() {
    let text = r#"[1, {"id": 1, "word": "a\u00e4", "x": {"b": [1, 2]}}, {"id": "2"}, {"id": 3, "id": 4}, null, {"word": "w"}]"#;
    let server = Http::start(move |_, _| Answer::new(200, text)).await.unwrap();
    let mut rest = declared(&server);
    rest.records = Vec::new();
    let typed = source(rest.clone(), 10);
    typed.check().await.unwrap();
    let all = segments(&*typed, &spec(), spec().start).await.unwrap();
    let reasons: Vec<_> = rows(&all[0])
        .into_iter()
        .map(|(line, _, read)| (line, read.err()))
        .collect();
    let id = Some("id".to_owned());
    assert_eq!(
        reasons,
        [
            (1, Some((None, "not_an_object"))),
            (2, None),
            (3, Some((id.clone(), "bad_int"))),
            (4, Some((None, "duplicate_key"))),
            (5, Some((None, "not_an_object"))),
            (6, Some((id, "null_in_required"))),
        ]
    );
    let failure = typed.read_all().await.unwrap_err();
    assert!(
        failure.message.contains("record 1: not_an_object") && failure.message.contains("lookup"),
        "{failure}"
    );
    rest.columns = Vec::new();
    let open = source(rest, 10);
    let names: Vec<String> = open
        .columns()
        .await
        .unwrap()
        .into_iter()
        .map(|column| column.name)
        .collect();
    assert_eq!(names, ["id", "word", "x"]);
    let all = segments(&*open, &spec(), spec().start).await.unwrap();
    let second = rows(&all[0]).swap_remove(1).2;
    assert_eq!(second, Ok(vec!["1".into(), "aä".into(), "{\"b\": [1, 2]}".into()]));

    for (text, part) in [
        ("[]", "has no records"),
        ("[1, 2]", "is an object"),
        ("[{}]", "has no keys"),
    ] {
        let server = Http::start(move |_, _| Answer::new(200, text)).await.unwrap();
        let mut rest = declared(&server);
        (rest.records, rest.columns) = (Vec::new(), Vec::new());
        let failure = source(rest, 10).columns().await.unwrap_err();
        assert!(failure.message.contains(part), "{failure}");
    }
}

#[tokio::test]
async fn segments_have_a_bound_of_bytes_and_a_dropped_reader_lets_its_connection_go() {
    let wide = |request: &Request, _| {
        let at = number(request, "after");
        let words = json!({"id": at, "word": "w".repeat(900_000)});
        page(&[words], if at < 29 { json!(at + 1) } else { Value::Null })
    };
    let server = Http::start(wide).await.unwrap();
    let (_, declared, _) = kinds(&server).remove(0);
    let wide = source(declared.clone(), 1 << 40);
    let mut reader = wide.open(&spec(), spec().start).await.unwrap();
    let (mut rows, mut segments) = (0, 0);
    while let Some(segment) = reader.next().await.unwrap() {
        assert!(segment.bytes <= (9 << 20) + (1 << 20), "{} bytes", segment.bytes);
        (rows, segments) = (rows + segment.rows, segments + 1);
    }
    assert_eq!((rows, segments), (30, 3));
    drop((reader, wide));
    wait_for("the connection is closed", || (server.connections() == 0).then_some(())).await;

    let silent = Http::start(|_, _| Answer::new(200, "").ends(Ends::Silent))
        .await
        .unwrap();
    let source = source(
        RestSource {
            url: format!("{}/orders", silent.address()),
            ..declared
        },
        10,
    );
    let mut reader = source.open(&spec(), spec().start).await.unwrap();
    let mut next = reader.next().boxed();
    wait_for("the server is asked", || {
        drop(poll_once(&mut next));
        (silent.requests().len() == 1).then_some(())
    })
    .await;
    drop(next);
    wait_for("the request is given up", || (silent.connections() == 0).then_some(())).await;
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    async { poll!(future) }.now_or_never().and_then(|polled| match polled {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    })
}

#[tokio::test]
async fn a_page_that_has_changed_sums_up_to_something_else() {
    let server = Http::start(|_, before| page(&[json!({"id": before / 2, "word": "same length"})], Value::Null))
        .await
        .unwrap();
    let source = source(declared(&server), 10);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let all = segments(&*source, &spec(), spec().start).await.unwrap();
        seen.push((all[0].bytes, all[0].raw.digest().unwrap()));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1].0, seen[2].0);
    assert_ne!(seen[1].1, seen[2].1);
}

#[tokio::test]
async fn requests_keep_to_the_rate() {
    let server = Http::start(|request, _| orders(request, 95)).await.unwrap();
    let (_, mut declared, _) = kinds(&server).remove(0);
    declared.pause = Duration::from_millis(50);
    let source = source(declared, 1000);
    let begin = Instant::now();
    segments(&*source, &spec(), spec().start).await.unwrap();
    assert!(
        begin.elapsed() >= Duration::from_millis(9 * 50),
        "{:?}",
        begin.elapsed()
    );
}
