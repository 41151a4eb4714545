//! `pagination` of `rest:` sources: how one page leads to the next, and which is the last.

use url::Url;

use super::rest::path;
use crate::definition::{Counted, NameEnd, PageEnd, Pagination, RestSource};
use crate::diagnostics::{Report, did_you_mean};
use crate::parse::fields::{self, Fields};
use crate::yaml::{Node, Value};

/// Records of a page.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 1..=100_000;

/// The keys of each kind of pagination; the first names the kind.
const PAGINATIONS: &[&[&str]] = &[
    &["cursor", "param", "start", "end"],
    &["next", "end"],
    &["link", "end"],
    &["page", "start", "size", "page_size", "end"],
    &["offset", "start", "limit", "page_size", "end"],
];

pub(super) fn read(report: &mut Report, node: &Node, what: &str) -> Option<Pagination> {
    let here = format!("`pagination` of {what}");
    let given = PAGINATIONS
        .iter()
        .filter(|keys| keys.first().is_some_and(|kind| node.at(&[kind]).is_some()));
    let given: Vec<_> = given.collect();
    let [keys] = given.as_slice() else {
        if !matches!(node.value, Value::Map(_)) {
            fields::entries(report, node, &here);
            return None;
        }
        let help = "write one of {cursor: meta.next, param: cursor}, {next: links.next}, {link: next}, \
                    {page: page, size: per_page, page_size: 100} and {offset: offset, limit: limit, page_size: 100}";
        report.help(node.place, format!("{here} must be of one kind"), help);
        return None;
    };
    let fields = Fields::read(report, node, &here, keys)?;
    let text = |report: &mut Report, key: &str| {
        let (text, _) = fields::text(report, fields.get(key)?, &format!("`{key}` of {here}"))?;
        Some(text.to_owned())
    };
    match keys.first().copied()? {
        "cursor" => {
            let path = path(report, fields.get("cursor")?, &format!("`cursor` of {here}"))?;
            let Some(_) = fields.get("param") else {
                let help = "write {cursor: meta.next, param: cursor}: the name in the query under which it goes back";
                report.help(node.place, format!("{here} has no `param`"), help);
                return None;
            };
            let param = text(report, "param")?;
            let start = match fields.get("start") {
                Some(_) => Some(text(report, "start")?),
                None => None,
            };
            let end = name_end(report, &fields, &here)?;
            Some(Pagination::Cursor {
                path,
                param,
                start,
                end,
            })
        }
        "next" => {
            let path = path(report, fields.get("next")?, &format!("`next` of {here}"))?;
            let end = name_end(report, &fields, &here)?;
            Some(Pagination::Next { path, end })
        }
        "link" => {
            let rel = text(report, "link")?;
            let end = name_end(report, &fields, &here)?;
            Some(Pagination::Link { rel, end })
        }
        kind => {
            let is_page = kind == "page";
            let size_key = if is_page { "size" } else { "limit" };
            let counted = Counted {
                param: text(report, kind)?,
                start: match fields.get("start") {
                    Some(node) => fields::count(report, node, &format!("`start` of {here}"))?,
                    None => u64::from(is_page),
                },
                size_param: match fields.get(size_key) {
                    Some(_) => Some(text(report, size_key)?),
                    None => None,
                },
                page_size: page_size(report, &fields, &here, size_key)?,
                end: page_end(report, &fields, &here)?,
            };
            Some(if is_page {
                Pagination::Page(counted)
            } else {
                Pagination::Offset(counted)
            })
        }
    }
}

/// The size of a page, if the file says it; an error if it has to.
fn page_size(report: &mut Report, fields: &Fields<'_>, here: &str, size_key: &str) -> Option<Option<u64>> {
    let Some(node) = fields.get("page_size") else {
        let short = matches!(
            fields.get("end").map(|node| &node.value),
            Some(Value::Scalar { text, .. }) if text == "short" || text == "same"
        );
        let end = fields.key("end").filter(|_| short);
        if let Some(key) = fields.key(size_key).or(end) {
            let help = "write `page_size: 100`";
            report.help(key.place, format!("`{}` of {here} needs a `page_size`", key.text), help);
            return None;
        }
        return Some(None);
    };
    let size = fields::count(report, node, &format!("`page_size` of {here}"))?;
    if !PAGE_SIZES.contains(&size) {
        report.error(node.place, format!("`page_size` of {here} must be 1 to 100000"));
        return None;
    }
    Some(Some(size))
}

fn page_end(report: &mut Report, fields: &Fields<'_>, here: &str) -> Option<PageEnd> {
    let Some(node) = fields.get("end") else {
        return Some(PageEnd::Empty);
    };
    let (text, place) = fields::text(report, node, &format!("`end` of {here}"))?;
    match text {
        "empty" => Some(PageEnd::Empty),
        "short" => Some(PageEnd::Short),
        "missing" => Some(PageEnd::Missing),
        "same" => Some(PageEnd::Same),
        other => {
            let help = did_you_mean(other, ["empty", "short", "missing", "same"]).unwrap_or_else(|| {
                "write empty (the page before one without records), short (one of fewer than `page_size`), missing (the page \
                 before a 404) or same (the page that comes again)"
                    .to_owned()
            });
            report.help(place, format!("unknown `end` of {here}: `{other}`"), help);
            None
        }
    }
}

/// What the only page looks like.
fn name_end(report: &mut Report, fields: &Fields<'_>, here: &str) -> Option<NameEnd> {
    let Some(node) = fields.get("end") else {
        return Some(NameEnd::Said);
    };
    let (text, place) = fields::text(report, node, &format!("`end` of {here}"))?;
    if text == "absent" {
        return Some(NameEnd::Absent);
    }
    let help = "write absent, if the API names no next page on the only one; else leave it out";
    report.help(place, format!("unknown `end` of {here}: `{text}`"), help);
    None
}

/// Reports names in the query that stand there already.
pub(super) fn taken(report: &mut Report, node: &Node, what: &str, rest: &RestSource) {
    let names: Vec<&str> = match &rest.pagination {
        Pagination::None | Pagination::Next { .. } | Pagination::Link { .. } => Vec::new(),
        Pagination::Cursor { param, .. } => vec![param],
        Pagination::Page(counted) | Pagination::Offset(counted) => {
            let size = counted.size_param.as_deref();
            std::iter::once(counted.param.as_str()).chain(size).collect()
        }
    };
    let url = Url::parse(&rest.url).ok();
    let in_url = |name: &str| {
        url.as_ref()
            .is_some_and(|url| url.query_pairs().any(|(found, _)| found == name))
    };
    for name in names {
        if rest.query.iter().any(|(found, _)| found == name) || in_url(name) {
            report.help(
                node.place,
                format!("`{name}` stands both in the query and in `pagination` of {what}"),
                "leave it out of the query: `pagination` sets it, from `start` on",
            );
        }
    }
}
