//! `rest:` sources: what an HTTP server gives as JSON.
//!
//! A pipeline file is read by many, so no secret may stand in it: `auth` takes `secret://NAME` alone, and what looks like
//! a secret elsewhere is refused with where to write it.

use std::time::Duration;

use datafusion::scalar::ScalarValue;
use url::Url;

use super::pagination::{self, taken};
use super::{Declared, query};
use crate::definition::{Pagination, Place, RestAuth, RestSource, RestUser, SecretName, SourceKind};
use crate::diagnostics::Report;
use crate::parse::draft::Gaps;
use crate::parse::fields::{self, Fields};
use crate::yaml::{Key, Node, Value};

/// The keys of such a source, beside those that every source has.
pub(super) const KEYS: &[&str] = &[
    "rest",
    "query",
    "headers",
    "auth",
    "records",
    "error",
    "pagination",
    "rate",
    "timeout",
    "max_wait",
    "max_response",
];

/// How a secret is named.
const SECRET: &str = "secret://";
/// One request takes no longer than this, unless the file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// A server that asks for a longer wait ends the run, unless the file says otherwise: quotas are mostly of an hour.
const MAX_WAIT: Duration = Duration::from_secs(3600);
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// An answer has no more bytes than this, unless the file says otherwise.
const MAX_RESPONSE: u64 = 16 << 20;
/// A page is held in memory whole.
const RESPONSES: std::ops::RangeInclusive<u64> = 1 << 10..=64 << 20;
/// Headers that requests have by themselves, or that would change how an answer has to be read.
const OWN_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "accept-encoding",
    "te",
    "upgrade",
    "expect",
    "range",
];

pub(super) fn read(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let Declared {
        what,
        fields,
        columns,
        paths,
        ..
    } = &declared;
    let (url, location) = url(report, &declared, gaps);
    let mut rest = RestSource {
        url,
        query: pairs(report, &declared, gaps, "query"),
        headers: pairs(report, &declared, gaps, "headers"),
        auth: fields.get("auth").and_then(|node| auth(report, node, what)),
        records: Vec::new(),
        records_optional: false,
        error: Vec::new(),
        pagination: Pagination::None,
        pause: Duration::ZERO,
        timeout: TIMEOUT,
        max_wait: MAX_WAIT,
        max_response: MAX_RESPONSE,
        columns: columns.clone(),
        paths: paths.clone(),
        location,
    };
    if let Some(node) = fields.get("records") {
        (rest.records, rest.records_optional) = records(report, node, what);
    }
    if let Some(node) = fields.get("error") {
        rest.error = path(report, node, &format!("`error` of {what}")).unwrap_or_default();
    }
    if let Some(node) = fields.get("pagination") {
        rest.pagination = pagination::read(report, node, what).unwrap_or(Pagination::None);
        taken(report, node, what, &rest);
    }
    if let Some(node) = fields.get("rate") {
        rest.pause = rate(report, node, what).unwrap_or_default();
    }
    if let Some(node) = fields.get("timeout")
        && let Some(timeout) = fields::duration(report, node, &format!("`timeout` of {what}"))
    {
        if timeout > MAX_TIMEOUT {
            report.help(
                node.place,
                format!("the `timeout` of {what} is too long"),
                "10min is the most; 30s is usual",
            );
        }
        rest.timeout = timeout.min(MAX_TIMEOUT);
    }
    if let Some(node) = fields.get("max_wait")
        && let Some(wait) = fields::duration(report, node, &format!("`max_wait` of {what}"))
    {
        if wait > LONGEST_WAIT {
            report.help(
                node.place,
                format!("the `max_wait` of {what} is too long"),
                "24h is the most; 1h is usual",
            );
        }
        rest.max_wait = wait.min(LONGEST_WAIT);
    }
    if let Some(node) = fields.get("max_response")
        && let Some(size) = fields::bytes(report, node, &format!("`max_response` of {what}"))
    {
        if !RESPONSES.contains(&size) {
            report.help(
                node.place,
                format!("`max_response` of {what} can't be {size} bytes"),
                "write 1KiB to 64MiB: a page is held in memory whole; 16MiB is usual",
            );
        }
        rest.max_response = size.clamp(*RESPONSES.start(), *RESPONSES.end());
    }
    headers(report, fields, what, &rest);
    SourceKind::Rest(Box::new(rest))
}

/// The URL, and what to call it.
fn url(report: &mut Report, declared: &Declared<'_>, gaps: &mut Gaps) -> (String, String) {
    let what = &declared.what;
    let Some(node) = declared.fields.get("rest") else {
        return Default::default();
    };
    let Some((text, place)) = fields::text(report, node, &format!("the URL of {what}")) else {
        return Default::default();
    };
    if text.contains(SECRET) {
        let help = "write it into `auth`: what stands in a URL is logged by servers and proxies";
        report.help(place, format!("the URL of {what} can't hold a secret"), help);
    }
    let filled = declared.params.fill_as(report, "URL", text, place, encoded);
    if !filled.whole {
        gaps.pathless.insert(declared.key.text.clone());
        let location = text.split(['?', '#']).next().unwrap_or_default();
        return (text.to_owned(), location.to_owned());
    }
    let url = match Url::parse(filled.text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => url,
        Ok(_) | Err(_) => {
            let help = "write `rest: https://api.example.com/v1/orders`";
            report.help(place, format!("{what} has no http:// or https:// URL"), help);
            return Default::default();
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        report.help(
            place,
            format!("the URL of {what} holds a user or a password"),
            "write `auth: {basic: {user: NAME, password: secret://NAME}}`",
        );
        return Default::default();
    }
    if url.fragment().is_some() {
        report.help(
            place,
            format!("the URL of {what} has a fragment, which no server gets"),
            "leave out what follows the `#`, or write it as `%23`",
        );
    }
    // A parameter may hold no step to another path: `..` is one also when its dots are encoded.
    let steps = |text: &str| text.split(['?', '#']).next().unwrap_or_default().matches('/').count();
    if filled.text != text && steps(url.as_str()) < steps(filled.text.trim()) {
        report.help(
            place,
            format!("with these parameters the URL of {what} leads to another path"),
            "give them values other than `.` and `..`",
        );
    }
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    (url.into(), bare.into())
}

/// A parameter's value as a part of a URL: only what has no meaning there stays as it is.
fn encoded(value: &ScalarValue) -> String {
    let mut text = String::new();
    for byte in query::written(value).bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The pairs of `query` or `headers`, with parameters filled in. A list in `query` is a name that comes several times.
fn pairs(report: &mut Report, declared: &Declared<'_>, gaps: &mut Gaps, key: &str) -> Vec<(String, String)> {
    let Some(node) = declared.fields.get(key) else {
        return Vec::new();
    };
    let what = format!("`{key}` of {}", declared.what);
    let mut pairs = Vec::new();
    for (name, node) in fields::entries(report, node, &what).unwrap_or_default() {
        let one = format!("`{}` in {what}", name.text);
        let values = if key == "query" {
            fields::texts(report, node, &one).unwrap_or_default()
        } else {
            let value = fields::text(report, node, &one);
            value
                .into_iter()
                .map(|(text, place)| (text.to_owned(), place))
                .collect()
        };
        for (text, place) in values {
            if text.contains(SECRET) {
                report.help(place, format!("{one} can't be a secret"), instead(key, name));
            }
            let filled = declared.params.fill_as(report, key, &text, place, query::written);
            if !filled.whole {
                gaps.pathless.insert(declared.key.text.clone());
            }
            pairs.push((name.text.clone(), filled.text));
        }
    }
    pairs
}

fn instead(key: &str, name: &Key) -> String {
    if key == "query" {
        "write it into `auth`: what stands in a URL is logged by servers and proxies".to_owned()
    } else if name.text.eq_ignore_ascii_case("authorization") {
        "write `auth: {bearer: secret://NAME}`".to_owned()
    } else {
        format!("write `auth: {{header: {}, value: secret://NAME}}`", name.text)
    }
}

/// Whether the names and values of headers can be sent.
fn headers(report: &mut Report, fields: &Fields<'_>, what: &str, rest: &RestSource) {
    let secret = match &rest.auth {
        Some(RestAuth::Header { name, .. }) => Some(name.as_str()),
        Some(RestAuth::Bearer(_) | RestAuth::Basic { .. }) => Some("authorization"),
        None => None,
    };
    let place = |name: &str| {
        let Some(Value::Map(entries)) = fields.get("headers").map(|node| &node.value) else {
            return Place::default();
        };
        entries
            .iter()
            .find(|(key, _)| key.text == name)
            .map_or(Place::default(), |(key, _)| key.place)
    };
    for (name, value) in &rest.headers {
        if !header_name(report, name, place(name), what) {
            continue;
        }
        if secret.is_some_and(|secret| secret.eq_ignore_ascii_case(name)) {
            let help = "keep one of the two";
            report.help(
                place(name),
                format!("{what} has the header `{name}` twice, with `auth`"),
                help,
            );
        } else if ["authorization", "proxy-authorization", "cookie"]
            .iter()
            .any(|other| other.eq_ignore_ascii_case(name))
        {
            let help =
                "write `auth: {bearer: secret://NAME}`, `auth: {basic: ...}` or `auth: {header: ..., value: ...}`";
            report.help(place(name), format!("the header `{name}` of {what} is a secret"), help);
        }
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
            report.error(
                place(name),
                format!("the header `{name}` of {what} may only hold printable ASCII characters"),
            );
        }
    }
}

fn header_name(report: &mut Report, name: &str, place: Place, what: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(sound) {
        report.help(
            place,
            format!("`{name}` can't be the name of a header of {what}"),
            "write letters, digits and `-`",
        );
        return false;
    }
    if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        report.help(
            place,
            format!("the header `{name}` of {what} is set by Haulage itself"),
            "leave it out",
        );
        return false;
    }
    true
}

fn auth(report: &mut Report, node: &Node, what: &str) -> Option<RestAuth> {
    let here = format!("`auth` of {what}");
    let fields = Fields::read(report, node, &here, &["bearer", "basic", "header", "value"])?;
    let kinds = ["bearer", "basic", "header"];
    let given: Vec<&str> = kinds.into_iter().filter(|kind| fields.get(kind).is_some()).collect();
    let [kind] = given.as_slice() else {
        let help = "write one of {bearer: secret://NAME}, {basic: {user: NAME, password: secret://NAME}} and \
                    {header: X-Api-Key, value: secret://NAME}";
        report.help(node.place, format!("{here} must be of one kind"), help);
        return None;
    };
    if *kind != "header"
        && let Some(key) = fields.key("value")
    {
        report.error(key.place, format!("`value` of {here} belongs to `header`"));
    }
    match *kind {
        "bearer" => secret(report, fields.get("bearer")?, &format!("`bearer` of {here}")).map(RestAuth::Bearer),
        "basic" => {
            let node = fields.get("basic")?;
            let inner = format!("`basic` of {here}");
            let fields = Fields::read(report, node, &inner, &["user", "password"])?;
            let (Some(user), Some(password)) = (fields.get("user"), fields.get("password")) else {
                let help = "write {user: NAME, password: secret://NAME}";
                report.help(node.place, format!("{inner} needs a `user` and a `password`"), help);
                return None;
            };
            let (text, place) = fields::text(report, user, &format!("`user` of {inner}"))?;
            if text.contains(':') && !text.starts_with(SECRET) {
                report.error(place, format!("`user` of {inner} can't hold a `:`"));
            }
            let user = if text.starts_with(SECRET) {
                RestUser::Secret(secret(report, user, &format!("`user` of {inner}"))?)
            } else {
                RestUser::Text(text.to_owned())
            };
            let password = secret(report, password, &format!("`password` of {inner}"))?;
            Some(RestAuth::Basic { user, password })
        }
        _ => {
            let (name, place) = fields::text(report, fields.get("header")?, &format!("`header` of {here}"))?;
            let Some(value) = fields.get("value") else {
                let help = format!("write {{header: {name}, value: secret://NAME}}");
                report.help(node.place, format!("{here} has no `value`"), help);
                return None;
            };
            let sound = header_name(report, name, place, what);
            let value = secret(report, value, &format!("`value` of {here}"))?;
            sound.then(|| RestAuth::Header {
                name: name.to_owned(),
                value,
            })
        }
    }
}

/// `secret://NAME`. What stands there instead may be a secret, so it is not repeated.
fn secret(report: &mut Report, node: &Node, what: &str) -> Option<SecretName> {
    let (text, place) = fields::text(report, node, what)?;
    let sound = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
    match text.strip_prefix(SECRET) {
        Some(name) if !name.is_empty() && !name.starts_with('.') && name.chars().all(sound) => {
            Some(SecretName(name.to_owned()))
        }
        _ => {
            report.help(
                place,
                format!("{what} must name a secret"),
                "write secret://NAME, of letters, digits, `_`, `-` and `.`, and give nodes its value in HAULAGE_SECRET_NAME",
            );
            None
        }
    }
}

/// Keys that lead into an answer: `data.items`, or a list where a key holds a dot.
pub(super) fn path(report: &mut Report, node: &Node, what: &str) -> Option<Vec<String>> {
    let mut keys: Vec<String> = fields::texts(report, node, what)?
        .into_iter()
        .map(|(text, _)| text)
        .collect();
    if !matches!(node.value, Value::List(_)) {
        keys = keys
            .iter()
            .flat_map(|text| text.split('.'))
            .map(str::to_owned)
            .collect();
    }
    let is_text = !matches!(node.value, Value::List(_));
    if is_text && keys.first().is_some_and(|key| key == "$") {
        let help = format!("write {}: no `$` stands for the whole", keys[1..].join("."));
        report.help(node.place, format!("{what} must be a path of keys"), help);
        return None;
    }
    if keys.is_empty() || keys.iter().any(String::is_empty) {
        let help = "write the keys that lead there: data.items, or [data, \"with.dot\"]";
        report.help(node.place, format!("{what} must be a path of keys"), help);
        return None;
    }
    Some(keys)
}

/// Where the records are, and whether they may be missing: a path, or `{path: PATH, optional: true}`.
fn records(report: &mut Report, node: &Node, what: &str) -> (Vec<String>, bool) {
    let here = format!("`records` of {what}");
    if !matches!(node.value, Value::Map(_)) {
        return (path(report, node, &here).unwrap_or_default(), false);
    }
    let Some(fields) = Fields::read(report, node, &here, &["path", "optional"]) else {
        return Default::default();
    };
    let Some(at) = fields.get("path") else {
        let help = "write {path: data.items, optional: true}";
        report.help(node.place, format!("{here} has no `path`"), help);
        return Default::default();
    };
    let found = path(report, at, &format!("`path` of {here}")).unwrap_or_default();
    let optional = fields.get("optional");
    let optional = optional.and_then(|node| fields::boolean(report, node, &format!("`optional` of {here}")));
    (found, optional.unwrap_or(false))
}

/// The pause between two requests: `5/s`, `300/min`, `1000/h`.
fn rate(report: &mut Report, node: &Node, what: &str) -> Option<Duration> {
    let (text, place) = fields::text(report, node, &format!("`rate` of {what}"))?;
    let parsed = text.split_once('/').and_then(|(number, unit)| {
        let seconds = match unit.trim() {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        let number = number
            .trim()
            .parse::<u32>()
            .ok()
            .filter(|number| (1..=10_000).contains(number))?;
        Some(Duration::from_secs(seconds) / number)
    });
    if parsed.is_none() {
        report.help(
            place,
            format!("`rate` of {what} must be a number of requests in a time, not `{text}`"),
            "write 5/s, 300/min or 1000/h",
        );
    }
    parsed
}
