//! APIs that don't: what is tried again, what ends a run, and what never gets out.

use haulage_core::failure::Class;
use haulage_plan::definition::{RestAuth, RestUser};
use haulage_test_support::http::Ends;
use tokio::time::Instant;

use super::*;
use crate::source::testing::segments;

#[tokio::test]
async fn what_passes_by_itself_is_tried_again() {
    // Each page fails in its own way before it comes.
    let moody = |request: &Request, before: usize| {
        let ill = |status: u16| Answer::new(status, "ill");
        match before {
            0 => ill(500),
            1 => orders(request, 40).ends(Ends::CutAfter(20)),
            2 => ill(429).header("Retry-After", "1"),
            4 => ill(503)
                .header("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
                .header("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT"),
            6 => ill(502).ends(Ends::Closed),
            8 => Answer::new(200, "{\"data\": {\"items\": [{\"id\": 1"),
            9 => ill(408),
            _ => orders(request, 40),
        }
    };
    let server = Http::start(moody).await.unwrap();
    let (_, declared, _) = kinds(&server).remove(0);
    let source = source(declared, 1000);
    let begin = Instant::now();
    let all = segments(&*source, &spec(), spec().start).await.unwrap();
    assert_eq!(flat(&all), expected(0..40));
    assert_eq!(server.requests().len(), 11);
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "two of them asked for a second each"
    );
}

#[tokio::test]
async fn tries_are_bounded() {
    let ill = Http::start(|_, _| Answer::new(500, "the \u{1b}[31mdatabase is down"))
        .await
        .unwrap();
    let failure = refused(declared(&ill)).await;
    assert_eq!(failure.class, Class::Transient);
    assert!(
        failure.message.contains("500")
            && failure.message.contains("\\u{1b}[31mdatabase is down")
            && failure.message.ends_with("(6 tries)"),
        "{failure}"
    );
    assert_eq!(ill.requests().len(), 6);
}

#[tokio::test]
async fn what_does_not_pass_is_said_at_once() {
    for (answer, parts) in [
        (
            Answer::new(404, "nothing here"),
            &["404", "nothing here", "correct the URL"][..],
        ),
        (
            Answer::new(401, "who are you"),
            &["401", "who are you", "has no `auth`"],
        ),
        (Answer::new(501, ""), &["501"]),
        (Answer::new(200, "<html>log in</html>"), &["no JSON", "<html>log in"]),
        (
            Answer::new(200, "{\"error\": \"no\"}"),
            &["`data.items` of the answer, found nothing", "{\"error\": \"no\"}"],
        ),
        (
            Answer::new(200, "{\"data\": {\"items\": {}}}"),
            &["found an object", "correct `records`"],
        ),
        (
            Answer::new(200, "x").header("Content-Encoding", "gzip, br"),
            &["packed (gzip, br)"],
        ),
        (
            Answer::new(200, "x".repeat(2 << 20)),
            &["longer than `max_response` (1048576 bytes)"],
        ),
        (
            Answer::new(200, "x".repeat(64 << 10)).ends(Ends::Never),
            &["longer than `max_response` (1048576 bytes)"],
        ),
        (
            Answer::new(302, "").header("Location", "https://elsewhere.example/orders?x=1"),
            &["another server, https://elsewhere.example, which is not followed"],
        ),
        (
            Answer::new(302, "").header("Location", "/orders?fixed=1"),
            &["more than 5 times in a row"],
        ),
        (Answer::new(304, ""), &["redirects to nowhere"]),
    ] {
        let shown = format!("{answer:?}").chars().take(100).collect::<String>();
        let server = Http::start(move |_, _| answer.clone()).await.unwrap();
        let failure = refused(declared(&server)).await;
        assert_eq!(failure.class, Class::Permanent, "{failure}");
        for part in parts.iter().chain(&["source raw: http://127.0.0.1:"]) {
            assert!(failure.message.contains(part), "{shown}: {part:?} in {failure}");
        }
        assert!(!failure.message.contains("since="), "no query is shown: {failure}");
        assert!(server.requests().len() <= 6, "{shown}");
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    for ends in [Ends::Silent, Ends::Drips(Duration::from_millis(20))] {
        let server = Http::start(move |request, _| orders(request, 20).ends(ends))
            .await
            .unwrap();
        let mut declared = declared(&server);
        declared.timeout = Duration::from_millis(200);
        let failure = refused(declared).await;
        assert_eq!(failure.class, Class::Transient);
        assert!(failure.message.contains("no whole answer within 0.2 s"), "{failure}");
    }
}

#[tokio::test]
async fn pages_that_come_round_again_are_an_error() {
    // Names that lead back: to itself, to the first, and into a circle that begins later.
    for back in [0u64, 3, 7, 20] {
        let round = move |request: &Request, _| {
            let at = number(request, "after");
            page(&[record(at)], json!(if at >= 20 { 1 + back } else { at + 1 }))
        };
        let server = Http::start(round).await.unwrap();
        let (_, declared, _) = kinds(&server).remove(0);
        let failure = refused(declared).await;
        assert_eq!(failure.class, Class::Permanent);
        assert!(failure.message.contains("go round in a circle"), "{failure}");
        assert!(server.requests().len() < 100, "{} requests", server.requests().len());
    }
    // One that names ever new pages without records is followed for long, and not for ever.
    let endless = Http::start(|request, _| page(&[], json!(number(request, "after") + 1)))
        .await
        .unwrap();
    let (_, declared, _) = kinds(&endless).remove(0);
    let source = source(declared, 1000);
    let mut reader = source.open(&spec(), spec().start).await.unwrap();
    for _ in 0..2 {
        let segment = reader.next().await.unwrap().unwrap();
        assert_eq!((segment.rows, segment.last), (0, false), "it can be gone on from there");
    }
    drop((reader, endless));
    // A server that doesn't look at the number.
    let deaf = Http::start(|_, _| page(&items(0, 10, 10), Value::Null)).await.unwrap();
    for (kind, declared, _) in kinds(&deaf).split_off(3) {
        let before = deaf.requests().len();
        let failure = refused(RestSource { ..declared }).await;
        assert_eq!(failure.class, Class::Permanent);
        assert!(
            failure.message.contains("the same 10 records as for the page before"),
            "{kind}: {failure}"
        );
        assert_eq!(deaf.requests().len() - before, 2);
    }
}

#[tokio::test]
async fn credentials_go_to_the_api_alone_and_are_shown_nowhere() {
    let stranger = Http::start(|_, _| Answer::new(200, "{}")).await.unwrap();
    let elsewhere = stranger.address();
    let echo = move |request: &Request, _: usize| {
        let sent = request
            .header("authorization")
            .or(request.header("x-key"))
            .unwrap_or("")
            .to_owned();
        match request.query("case").as_deref() {
            Some("error") => Answer::new(403, format!("{{\"you sent\": {}}}", json!(sent))),
            Some("html") => Answer::new(200, format!("<html>{sent}")),
            Some("redirect") => Answer::new(302, "").header("Location", format!("{elsewhere}/?{sent}")),
            Some("inside") => Answer::new(307, "").header("Location", "/orders?fixed=1&case=fine"),
            Some("link") => page(&[record(1)], json!(format!("{elsewhere}/orders"))),
            Some("relative") => page(&[record(1)], json!("//elsewhere.example/orders")),
            Some("token") => page(&[record(1)], json!(format!("/orders?key={sent}"))),
            Some("long") => page(&[record(1)], json!("x".repeat(10_000))),
            Some("record") => page(&[json!({"id": sent}), json!(sent)], Value::Null),
            _ => page(&[json!({"id": 1, "word": sent})], Value::Null),
        }
    };
    let server = Http::start(echo).await.unwrap();
    let basic = RestAuth::Basic {
        user: RestUser::Text("me".into()),
        password: key(),
    };
    let header = RestAuth::Header {
        name: "X-Key".into(),
        value: key(),
    };
    for auth in [RestAuth::Bearer(key()), basic, header] {
        let with = |case: &str| {
            let mut rest = declared(&server);
            rest.auth = Some(auth.clone());
            rest.query = vec![("case".into(), case.into())];
            rest.pagination = next();
            rest
        };
        for (case, part) in [
            ("error", "check secret://key"),
            ("html", "no JSON"),
            ("redirect", "which is not followed"),
            ("link", "on another server"),
            ("relative", "on another server, http://elsewhere.example"),
            ("token", "holds a secret (secret://key)"),
            ("long", "has a name of"),
        ] {
            let failure = refused(with(case)).await;
            assert_eq!(failure.class, Class::Permanent, "{case}: {failure}");
            assert!(failure.message.contains(part), "{case}: {failure}");
            assert!(
                !failure.message.contains("hunter2") && !failure.message.contains("aHVudGVyMi"),
                "{case}: {failure}"
            );
        }
        for case in ["inside", "fine"] {
            let source = source(with(case), 10);
            let all = segments(&*source, &spec(), spec().start).await.unwrap();
            assert_eq!(all[0].rows, 1, "{case}: also within the origin of a redirect");
        }
        // Of rows that can't be read, what people are shown has none.
        let record = source(with("record"), 10);
        let all = segments(&*record, &spec(), spec().start).await.unwrap();
        assert_eq!(all[0].unreadable.len(), 2);
        for bad in &all[0].unreadable {
            let (_, raw) = all[0].raw.row(bad.row).unwrap();
            let shown = format!("{}{}", bad.detail, String::from_utf8_lossy(raw));
            assert!(shown.contains("***") && !shown.contains("hunter2"), "{shown}");
        }
    }
    assert!(stranger.requests().is_empty(), "nobody has asked the stranger");
}
