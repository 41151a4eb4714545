//! `rest:` sources: what is read of them, and every complaint with its line and column.

use std::time::Duration;

use super::parse_and_bind;
use super::tests::{check, params};
use crate::definition::{
    Counted, NameEnd, PageEnd, Pagination, RestAuth, RestSource, RestUser, SecretName, SourceKind,
};

fn of(declared: &str) -> RestSource {
    let text = format!(
        "pipeline: p\nparams: {{day: {{type: date, default: 2013-01-31}}, at: {{type: timestamptz, default: \
         \"2013-01-31T05:00:00Z\"}}, name: {{type: text, default: \"a/b c&d=ü\"}}}}\nsources:\n  raw: {declared}\nsteps: \
         {{s: SELECT * FROM raw}}\nloads: {{l: {{from: s, to: w, table: t, mode: append}}}}\n"
    );
    let definition = parse_and_bind(&text, "p.yaml", &params(&[])).unwrap_or_else(|wrong| panic!("{wrong}"));
    match definition.sources["raw"].kind.clone() {
        SourceKind::Rest(rest) => *rest,
        other => panic!("{other:?}"),
    }
}

fn pagination(declared: &str) -> Pagination {
    of(&format!("{{rest: \"https://h/a\", pagination: {declared}}}")).pagination
}

#[test]
fn an_error_has_a_path() {
    assert_eq!(
        of("{rest: \"https://h/a\", error: error.message}").error,
        ["error", "message"]
    );
    assert!(of("{rest: \"https://h/a\"}").error.is_empty());
}

#[test]
fn a_source_is_read_with_its_parameters() {
    let rest = of(
        "{rest: \"https://api.example.com/v1/{{ name }}/orders?fixed={{ day }}\", query: {since: \"{{ at }}\", of: \"{{ name \
         }}\", ids: [1, 2], all: true}, headers: {X-Day: \"on {{ day }}\", Accept: text/json}, auth: {bearer: \
         secret://api.key}, records: data.items, rate: 300/min, timeout: 5s, max_wait: 2h, max_response: 1MiB, columns: {id: bigint!}}",
    );
    assert_eq!(
        rest.url,
        "https://api.example.com/v1/a%2Fb%20c%26d%3D%C3%BC/orders?fixed=2013-01-31"
    );
    assert_eq!(
        rest.location,
        "https://api.example.com/v1/a%2Fb%20c%26d%3D%C3%BC/orders"
    );
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(
        rest.query,
        pairs(&[
            ("since", "2013-01-31T05:00:00Z"),
            ("of", "a/b c&d=ü"),
            ("ids", "1"),
            ("ids", "2"),
            ("all", "true")
        ])
    );
    assert_eq!(
        rest.headers,
        pairs(&[("X-Day", "on 2013-01-31"), ("Accept", "text/json")])
    );
    assert_eq!(rest.auth, Some(RestAuth::Bearer(SecretName("api.key".into()))));
    assert_eq!(
        (rest.records, rest.records_optional),
        (vec!["data".into(), "items".into()], false)
    );
    assert_eq!(
        (rest.pause, rest.timeout),
        (Duration::from_millis(200), Duration::from_secs(5))
    );
    assert_eq!((rest.max_response, rest.columns.len()), (1 << 20, 1));
    assert_eq!(rest.max_wait, Duration::from_secs(7200));
    let optional = of("{rest: \"https://h/a\", records: {path: data.items, optional: true}}");
    assert_eq!(
        (optional.records, optional.records_optional),
        (vec!["data".into(), "items".into()], true)
    );
    let contract = "{rest: \"https://h/a\", columns: {id: int}, on_missing_column: null, on_new_column: quarantine}";
    assert_eq!(of(contract).columns.len(), 1);

    let bare = of("{rest: \"http://localhost:8080/a\", lookup: true}");
    assert_eq!((bare.records.len(), &bare.pagination), (0, &Pagination::None));
    assert_eq!(
        (bare.pause, bare.timeout, bare.max_response),
        (Duration::ZERO, Duration::from_secs(30), 16 << 20)
    );
    assert_eq!(bare.max_wait, Duration::from_secs(3600));
    let kind = SourceKind::Rest(Box::new(bare));
    assert_eq!((kind.word(), kind.location()), ("rest", "http://localhost:8080/a"));
    assert!(kind.connection().is_none() && !kind.is_local(".") && kind.columns().is_empty());
    assert_eq!(
        of("{rest: \"http://h/a\", records: [\"a.b\", c]}").records,
        ["a.b", "c"]
    );
}

#[test]
fn every_kind_of_pagination_and_of_auth() {
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let counted = |param: &str, start, size_param: Option<&str>, page_size, end| Counted {
        param: param.to_owned(),
        start,
        size_param: size_param.map(str::to_owned),
        page_size,
        end,
    };
    for (declared, expected) in [
        (
            "{cursor: meta.next, param: after}",
            Pagination::Cursor {
                path: keys(&["meta", "next"]),
                param: "after".into(),
                start: None,
                end: NameEnd::Said,
            },
        ),
        (
            "{cursor: meta.next, param: after, start: \"*\", end: absent}",
            Pagination::Cursor {
                path: keys(&["meta", "next"]),
                param: "after".into(),
                start: Some("*".into()),
                end: NameEnd::Absent,
            },
        ),
        (
            "{next: links.next, end: absent}",
            Pagination::Next {
                path: keys(&["links", "next"]),
                end: NameEnd::Absent,
            },
        ),
        (
            "{link: next}",
            Pagination::Link {
                rel: "next".into(),
                end: NameEnd::Said,
            },
        ),
        (
            "{page: p}",
            Pagination::Page(counted("p", 1, None, None, PageEnd::Empty)),
        ),
        (
            "{page: page, start: 0, size: per_page, page_size: 100, end: short}",
            Pagination::Page(counted("page", 0, Some("per_page"), Some(100), PageEnd::Short)),
        ),
        (
            "{page: page, page_size: 10, end: same}",
            Pagination::Page(counted("page", 1, None, Some(10), PageEnd::Same)),
        ),
        (
            "{page: page, end: missing}",
            Pagination::Page(counted("page", 1, None, None, PageEnd::Missing)),
        ),
        (
            "{offset: offset, limit: limit, page_size: 50}",
            Pagination::Offset(counted("offset", 0, Some("limit"), Some(50), PageEnd::Empty)),
        ),
    ] {
        assert_eq!(pagination(declared), expected, "{declared}");
    }
    let secret = |name: &str| SecretName(name.to_owned());
    for (declared, expected) in [
        (
            "{basic: {user: me, password: secret://pw}}",
            RestAuth::Basic {
                user: RestUser::Text("me".into()),
                password: secret("pw"),
            },
        ),
        (
            "{basic: {user: secret://who, password: secret://pw}}",
            RestAuth::Basic {
                user: RestUser::Secret(secret("who")),
                password: secret("pw"),
            },
        ),
        (
            "{header: X-Api-Key, value: secret://key}",
            RestAuth::Header {
                name: "X-Api-Key".into(),
                value: secret("key"),
            },
        ),
    ] {
        let auth = of(&format!("{{rest: \"https://h/a\", auth: {declared}}}")).auth;
        assert_eq!(auth, Some(expected), "{declared}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let kinds = "write one of {cursor: meta.next, param: cursor}, {next: links.next}, {link: next}, {page: page, size: \
                 per_page, page_size: 100} and {offset: offset, limit: limit, page_size: 100}";
    let whole = [
        (
            "{rest: api}",
            "3:15 source `raw` has no http:// or https:// URL | write `rest: https://api.example.com/v1/orders`",
        ),
        (
            "{rest: \"ftp://h/a\"}",
            "3:16 source `raw` has no http:// or https:// URL | write `rest: https://api.example.com/v1/orders`",
        ),
        (
            "{rest: \"https://u:hunter2@h/a\"}",
            "3:16 the URL of source `raw` holds a user or a password | write `auth: {basic: {user: NAME, password: \
             secret://NAME}}`",
        ),
        (
            "{rest: \"https://h/a#b\"}",
            "3:16 the URL of source `raw` has a fragment, which no server gets | leave out what follows the `#`, or write \
             it as `%23`",
        ),
        (
            "{rest: \"https://h/a?key=secret://k\"}",
            "3:16 the URL of source `raw` can't hold a secret | write it into `auth`: what stands in a URL is logged by \
             servers and proxies",
        ),
        (
            "{rest: \"https://h/{{ x }}\"}",
            "3:26 the URL names an unknown parameter `x` | declare it: `params: {x: {type: text}}`",
        ),
    ];
    for (source, expected) in whole {
        check("b", &format!("sources:\n  raw: {source}"), &[expected]);
    }
    for (more, expected) in [
        (
            "error: \"a..b\"",
            "4:17 `error` of source `raw` must be a path of keys | write the keys that lead there: data.items, or [data, \
             \"with.dot\"]",
        ),
        (
            "delimiter: x",
            "4:10 unknown key `delimiter` in source `raw` | there is: rest, query, headers, auth, records, error, \
             pagination, rate, timeout, max_wait, max_response, columns, and 5 more",
        ),
        (
            "query: {key: \"secret://k\"}",
            "4:24 `key` in `query` of source `raw` can't be a secret | write it into `auth`: what stands in a URL is \
             logged by servers and proxies",
        ),
        (
            "headers: {X-Key: \"secret://k\"}",
            "4:28 `X-Key` in `headers` of source `raw` can't be a secret | write `auth: {header: X-Key, value: \
             secret://NAME}`",
        ),
        (
            "headers: {authorization: Bearer abc}",
            "4:20 the header `authorization` of source `raw` is a secret | write `auth: {bearer: secret://NAME}`, `auth: \
             {basic: ...}` or `auth: {header: ..., value: ...}`",
        ),
        (
            "headers: {Accept-Encoding: gzip}",
            "4:20 the header `Accept-Encoding` of source `raw` is set by Haulage itself | leave it out",
        ),
        (
            "headers: {\"a b\": c}",
            "4:20 `a b` can't be the name of a header of source `raw` | write letters, digits and `-`",
        ),
        (
            "headers: {a: ü}",
            "4:20 the header `a` of source `raw` may only hold printable ASCII characters",
        ),
        (
            "auth: {bearer: hunter2}",
            "4:25 `bearer` of `auth` of source `raw` must name a secret | write secret://NAME, of letters, digits, `_`, `-` \
             and `.`, and give nodes its value in HAULAGE_SECRET_NAME",
        ),
        (
            "auth: {}",
            "4:16 `auth` of source `raw` must be of one kind | write one of {bearer: secret://NAME}, {basic: {user: NAME, \
             password: secret://NAME}} and {header: X-Api-Key, value: secret://NAME}",
        ),
        (
            "auth: {basic: {user: me}}",
            "4:24 `basic` of `auth` of source `raw` needs a `user` and a `password` | write {user: NAME, password: \
             secret://NAME}",
        ),
        (
            "auth: {header: X-Key}",
            "4:16 `auth` of source `raw` has no `value` | write {header: X-Key, value: secret://NAME}",
        ),
        (
            "records: data..items",
            "4:19 `records` of source `raw` must be a path of keys | write the keys that lead there: data.items, or [data, \
             \"with.dot\"]",
        ),
        (
            "records: {optional: true}",
            "4:19 `records` of source `raw` has no `path` | write {path: data.items, optional: true}",
        ),
        (
            "pagination: {link: next, end: short}",
            "4:40 unknown `end` of `pagination` of source `raw`: `short` | write absent, if the API names no next page on \
             the only one; else leave it out",
        ),
        (
            "pagination: next",
            "4:22 `pagination` of source `raw` must be a mapping of names to values, not a single value",
        ),
        (
            "pagination: {}",
            &format!("4:22 `pagination` of source `raw` must be of one kind | {kinds}"),
        ),
        (
            "pagination: {link: next, page: p}",
            &format!("4:22 `pagination` of source `raw` must be of one kind | {kinds}"),
        ),
        (
            "pagination: {cursor: next}",
            "4:22 `pagination` of source `raw` has no `param` | write {cursor: meta.next, param: cursor}: the name in the \
             query under which it goes back",
        ),
        (
            "pagination: {page: page, limit: n}",
            "4:35 unknown key `limit` in `pagination` of source `raw` | there is: page, start, size, page_size, end",
        ),
        (
            "pagination: {page: page, size: n}",
            "4:35 `size` of `pagination` of source `raw` needs a `page_size` | write `page_size: 100`",
        ),
        (
            "pagination: {page: page, end: short}",
            "4:35 `end` of `pagination` of source `raw` needs a `page_size` | write `page_size: 100`",
        ),
        (
            "pagination: {page: page, end: same}",
            "4:35 `end` of `pagination` of source `raw` needs a `page_size` | write `page_size: 100`",
        ),
        (
            "pagination: {page: page, page_size: 0}",
            "4:46 `page_size` of `pagination` of source `raw` must be 1 to 100000",
        ),
        (
            "pagination: {page: page, end: shrt}",
            "4:40 unknown `end` of `pagination` of source `raw`: `shrt` | did you mean `short`?",
        ),
        (
            "query: {page: 3}, pagination: {page: page}",
            "4:40 `page` stands both in the query and in `pagination` of source `raw` | leave it out of the query: \
             `pagination` sets it, from `start` on",
        ),
        (
            "rate: 5",
            "4:16 `rate` of source `raw` must be a number of requests in a time, not `5` | write 5/s, 300/min or 1000/h",
        ),
        (
            "rate: 0/s",
            "4:16 `rate` of source `raw` must be a number of requests in a time, not `0/s` | write 5/s, 300/min or 1000/h",
        ),
        (
            "timeout: 1h",
            "4:19 the `timeout` of source `raw` is too long | 10min is the most; 30s is usual",
        ),
        (
            "max_wait: 2 days",
            "4:20 the `max_wait` of source `raw` is too long | 24h is the most; 1h is usual",
        ),
        (
            "max_response: 1GiB",
            "4:24 `max_response` of source `raw` can't be 1073741824 bytes | write 1KiB to 64MiB: a page is held in memory \
             whole; 16MiB is usual",
        ),
    ] {
        // The line of `more` begins in column 10, behind its indentation.
        check(
            "b",
            &format!("sources:\n  raw: {{rest: \"https://h/a\",\n         {more}}}"),
            &[expected],
        );
    }
}

#[test]
fn a_parameter_leads_to_no_other_path_and_may_have_no_value() {
    let text = |given: &str| {
        format!(
            "pipeline: p\nparams: {{what: {given}}}\nsources:\n  raw: {{rest: \"https://h/v1/{{{{ what }}}}/orders\", query: \
             {{a: \"{{{{ what }}}}\"}}, columns: {{id: int}}}}\nloads: {{l: {{from: raw, to: w, table: t, mode: append}}}}\n"
        )
    };
    for sound in ["a", "a.b", "...", "..a", "%2e%2e", "ü/ä"] {
        let given = params(&[("what", sound)]);
        assert!(parse_and_bind(&text("text"), "p.yaml", &given).is_ok(), "{sound}");
    }
    for wrong in ["..", "."] {
        let given = params(&[("what", wrong)]);
        let said = parse_and_bind(&text("text"), "p.yaml", &given)
            .expect_err(wrong)
            .to_string();
        assert!(said.contains("leads to another path"), "{said}");
    }
    let draft = super::Draft::of(&text("text"), "p.yaml", &params(&[]));
    assert_eq!(draft.sources().count(), 0, "nobody can look for it");
    let sound = draft.check(&std::collections::BTreeMap::new()).expect("sound");
    assert_eq!(sound.open, ["what"]);
}
