//! Where an API ends, and what looks like an end and may be a mistake.

use haulage_core::failure::Class;

use super::*;
use crate::source::testing::segments;

async fn ids(declared: RestSource) -> Result<Vec<u64>, Failure> {
    let source = source(declared, 1000);
    let start = source.discover(StageId(0)).await?.remove(0).start;
    let all = segments(&*source, &spec(), start).await?;
    let rows = flat(&all).into_iter();
    Ok(rows.map(|(_, _, read)| read.unwrap()[0].parse().unwrap()).collect())
}

fn by_cursor(start: Option<&str>, end: NameEnd) -> Pagination {
    Pagination::Cursor {
        path: vec!["meta".into(), "next".into()],
        param: "after".into(),
        start: start.map(str::to_owned),
        end,
    }
}

#[tokio::test]
async fn a_first_page_that_names_no_other_has_to_say_so() {
    let cases = [
        ("null", json!({"meta": {"next": null}}), true),
        ("empty", json!({"meta": {"next": ""}}), true),
        ("false", json!({"meta": {"next": false}}), true),
        ("other", json!({"meta": {"nexxt": "/orders?at=2"}}), false),
        ("nothing", json!({"meta": null}), false),
        ("bare", json!({}), false),
    ];
    for (case, rest, is_end) in cases {
        let said = rest.clone();
        let server = Http::start(move |request, _| {
            let mut body = said.clone();
            let count = u64::from(request.query("case").as_deref() != Some("none"));
            body["data"] = json!({"items": items(7, count, 8)});
            Answer::new(200, body.to_string())
        })
        .await
        .unwrap();
        let next = |end| Pagination::Next {
            path: vec!["meta".into(), "next".into()],
            end,
        };
        for with in [|end| by_cursor(None, end), next as fn(NameEnd) -> Pagination] {
            let mut rest = declared(&server);
            rest.pagination = with(NameEnd::Said);
            match (ids(rest.clone()).await, is_end) {
                (Ok(ids), true) => assert_eq!(ids, [7], "{case}"),
                (Err(failure), false) => {
                    assert_eq!(failure.class, Class::Permanent);
                    for part in ["records and no `meta.next`", "`end: absent`", "the answer starts: {"] {
                        assert!(failure.message.contains(part), "{case}: {failure}");
                    }
                    let looked = source(rest.clone(), 10).check().await.unwrap_err();
                    assert_eq!(looked.failure, failure, "it is said before a run exists");
                    refused(rest.clone()).await;
                }
                (read, _) => panic!("{case}: {read:?}"),
            }
            rest.query.push(("case".into(), "none".into()));
            assert_eq!(
                ids(rest.clone()).await.unwrap(),
                [0u64; 0],
                "{case}: nothing is lost of no records"
            );
            rest.query.pop();
            rest.pagination = with(NameEnd::Absent);
            assert_eq!(ids(rest).await.unwrap(), [7], "{case}");
        }
    }
    // What has led to a page is written as it should be.
    let later = Http::start(|request, _| match number(request, "after") {
        0 => page(&[record(1)], json!(1)),
        _ => Answer::new(200, json!({"data": {"items": [record(2)]}}).to_string()),
    })
    .await
    .unwrap();
    let mut rest = declared(&later);
    rest.pagination = by_cursor(None, NameEnd::Said);
    assert_eq!(ids(rest).await.unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_link_that_is_not_there_is_the_end_if_others_are() {
    for (header, wanted, expected) in [
        (Some("</orders>; rel=\"first\", </orders>; rel=\"last\""), "next", true),
        (Some("</orders>; rel=\"self\""), "NEXT", true),
        (Some("</style.css>; rel=\"stylesheet\""), "next", false),
        (None, "next", false),
        (Some("</orders?at=10>; rel=\"next\""), "nextt", false),
    ] {
        let server = Http::start(move |_, _| {
            let answer = page(&[record(7)], Value::Null);
            match header {
                Some(header) => answer.header("Link", header),
                None => answer,
            }
        })
        .await
        .unwrap();
        let mut rest = declared(&server);
        rest.pagination = link(wanted, NameEnd::Said);
        let read = ids(rest.clone()).await;
        assert_eq!(read.is_ok(), expected, "{header:?}: {read:?}");
        if let Err(failure) = read {
            let part = format!("no `Link` to `{wanted}`");
            assert!(
                failure.message.contains(&part) && failure.message.contains("end: absent"),
                "{failure}"
            );
        }
        rest.pagination = link(wanted, NameEnd::Absent);
        assert_eq!(ids(rest).await.unwrap(), [7], "{header:?}");
    }
}

#[tokio::test]
async fn records_may_be_missing_only_if_that_is_said() {
    for body in [
        "{\"data\": {\"items\": null}}",
        "{\"data\": null}",
        "{\"error\": \"x\"}",
    ] {
        let server = Http::start(move |request, _| match number(request, "page") {
            1 => page(&items(0, 10, 10), Value::Null),
            _ => Answer::new(200, body),
        })
        .await
        .unwrap();
        for pages in [1, 2] {
            let mut rest = declared(&server);
            rest.pagination = Pagination::Page(counted("page", 3 - pages, None, None, PageEnd::Empty));
            let failure = refused(rest.clone()).await;
            assert_eq!(failure.class, Class::Permanent);
            for part in [
                "expected an array of records",
                "{path: data.items, optional: true}",
                body,
            ] {
                assert!(failure.message.contains(part), "{failure}");
            }
            rest.records_optional = true;
            assert_eq!(ids(rest).await.unwrap().len() as u64, 10 * (pages - 1), "{body}");
        }
    }
}

#[tokio::test]
async fn a_cursor_may_have_a_start_and_end_with_itself() {
    let deep = |request: &Request, _: usize| match request.query("after").as_deref() {
        Some("*") => page(&[record(1)], json!("a+/=")),
        Some("a+/=") => page(&[record(2)], json!("b")),
        Some("b") => page(&[], json!("b")),
        other => Answer::new(400, format!("what is {other:?}")),
    };
    let server = Http::start(deep).await.unwrap();
    let mut rest = declared(&server);
    rest.pagination = by_cursor(Some("*"), NameEnd::Said);
    let start = server.requests().len();
    assert_eq!(ids(rest.clone()).await.unwrap(), [1, 2]);
    let asked: Vec<_> = server.requests().split_off(start);
    let asked: Vec<_> = asked.iter().filter_map(|request| request.query("after")).collect();
    assert_eq!(asked, ["*", "*", "a+/=", "b"], "looked at, and read");
    // From the checkpoint before the end, too.
    let source = source(rest, 2);
    let all = segments(&*source, &spec(), spec().start).await.unwrap();
    assert_eq!((all.len(), all[0].cursor.as_deref()), (2, Some("b")));
    let mut reader = source.open_at(&spec(), all[0].next, Some("b")).await.unwrap();
    let last = reader.next().await.unwrap().unwrap();
    assert_eq!((last.rows, last.last), (0, true));
}

#[tokio::test]
async fn a_last_page_that_comes_again_is_the_end_if_that_is_said() {
    // Pages of ten, of which the last is given for every larger number.
    let again = |request: &Request, _: usize| {
        let last = number(request, "of");
        let from = (number(request, "page") - 1).min((last - 1) / 10) * 10;
        page(&items(from, 10, last), Value::Null)
    };
    let server = Http::start(again).await.unwrap();
    let with = |end, of: u64, size| {
        let mut rest = declared(&server);
        rest.query.push(("of".into(), of.to_string()));
        rest.pagination = Pagination::Page(counted("page", 1, None, Some(size), end));
        rest
    };
    for of in [3, 20, 25] {
        let read = ids(with(PageEnd::Same, of, 10)).await.unwrap();
        assert_eq!(read, (0..of).collect::<Vec<_>>(), "{of}");
    }
    let failure = refused(with(PageEnd::Short, 20, 10)).await;
    assert!(failure.message.contains("write `end: same`"), "{failure}");
    let failure = refused(with(PageEnd::Same, 10, 10)).await;
    assert!(failure.message.contains("raise `page_size`"), "{failure}");
    assert_eq!(ids(with(PageEnd::Same, 10, 11)).await.unwrap().len(), 10);
    // A checkpoint knows the page before it.
    let source = source(with(PageEnd::Same, 20, 10), 20);
    let all = segments(&*source, &spec(), Position { offset: 1, line: 1 })
        .await
        .unwrap();
    assert_eq!(all.iter().map(|segment| segment.rows).collect::<Vec<_>>(), [20, 0]);
    let cursor = all[0].cursor.as_deref();
    let mut reader = source.open_at(&spec(), all[0].next, cursor).await.unwrap();
    let last = reader.next().await.unwrap().unwrap();
    assert_eq!((last.rows, last.last), (0, true), "no row comes twice");
}

#[tokio::test]
async fn an_answer_that_says_it_is_an_error_is_one_whatever_its_status() {
    for (error, is_error) in [
        (json!("quota exceeded for key s3cr3t"), true),
        (json!({"code": 5}), true),
        (json!(["no"]), true),
        (json!(true), true),
        (json!(0), true),
        (json!(""), false),
        (json!(null), false),
        (json!(false), false),
        (json!([]), false),
        (json!({}), false),
    ] {
        let body = json!({"data": {"items": []}, "error": {"message": error}}).to_string();
        let server = Http::start(move |request, _| match number(request, "page") {
            1 => page(&items(0, 10, 10), Value::Null),
            _ => Answer::new(200, body.clone()),
        })
        .await
        .unwrap();
        let mut rest = declared(&server);
        rest.pagination = Pagination::Page(counted("page", 1, None, None, PageEnd::Empty));
        assert_eq!(ids(rest.clone()).await.unwrap().len(), 10, "nobody has said where");
        rest.error = vec!["error".to_owned(), "message".to_owned()];
        match ids(rest).await {
            Err(failure) if is_error => {
                assert_eq!(failure.class, Class::Permanent);
                let said = "the answer is an error, by its `error.message`: ";
                assert!(failure.message.contains(said), "{failure}");
                assert!(failure.message.contains("after 10 records"), "{failure}");
            }
            Ok(found) if !is_error => assert_eq!(found.len(), 10),
            other => panic!("{error}: {other:?}"),
        }
    }
}
