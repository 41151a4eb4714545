//! The `sources` of a pipeline file.

use datafusion::arrow::datatypes::DataType;
use indexmap::IndexMap;

use super::draft::Gaps;
use super::fields::{self, Fields};
use super::params::Params;
use crate::ROW_COLUMN;
use crate::definition::{Column, Compression, CsvSource, Place, Source, SourceKind};
use crate::diagnostics::{Report, did_you_mean};
use crate::types;
use crate::yaml::{Key, Node, Value};

/// Chunks are about this large unless the file says otherwise.
const CHUNK_BYTES: u64 = 16 << 20;
/// A chunk costs a lease, a marker and a transaction: cutting finer than this only costs.
const MIN_CHUNK_BYTES: u64 = 64 << 10;

const KEYS: [&str; 10] = [
    "csv",
    "columns",
    "null",
    "delimiter",
    "quote",
    "header",
    "compression",
    "chunk_size",
    "quoted_newlines",
    "lookup",
];

pub(super) fn read(report: &mut Report, node: &Node, params: &Params, gaps: &mut Gaps) -> IndexMap<String, Source> {
    let mut sources = IndexMap::new();
    for (key, node) in fields::entries(report, node, "sources").unwrap_or_default() {
        let before = report.len();
        fields::name(report, "source's name", &key.text, key.place, 63, false);
        if let Some(source) = one(report, key, node, params, gaps) {
            sources.insert(key.text.clone(), source);
        }
        if report.len() > before {
            gaps.broken.insert(key.text.clone());
        }
    }
    sources
}

fn one(report: &mut Report, key: &Key, node: &Node, params: &Params, gaps: &mut Gaps) -> Option<Source> {
    let what = format!("source `{}`", key.text);
    let fields = Fields::read(report, node, &what, &KEYS)?;
    let Some(path) = fields.get("csv") else {
        report.help(
            key.place,
            format!("{what} doesn't say where its rows are"),
            "write `csv: \"data/*.csv\"`",
        );
        return None;
    };
    let path = fields::text(report, path, &format!("the path of {what}"));
    let path = path.map(|(text, place)| params.fill(report, text, place));
    if path.as_ref().is_some_and(|path| !path.whole) {
        gaps.pathless.insert(key.text.clone());
    }
    let mut csv = CsvSource {
        path: path.map(|path| path.text).unwrap_or_default(),
        columns: Vec::new(),
        null: Vec::new(),
        delimiter: b',',
        quote: b'"',
        header: true,
        compression: Compression::Auto,
        chunk_bytes: CHUNK_BYTES,
        quoted_newlines: true,
    };
    if let Some(node) = fields.get("columns") {
        csv.columns = columns(report, node, &what);
    }
    if let Some(node) = fields.get("null") {
        let texts = fields::texts(report, node, &format!("`null` of {what}")).unwrap_or_default();
        csv.null = texts.into_iter().map(|(text, _)| text).collect();
    }
    options(report, &fields, &what, &mut csv);
    if !csv.header && csv.columns.is_empty() {
        let place = fields.key("header").map_or(key.place, |key| key.place);
        let help = "declare them in the order of the file: `columns: {year: int, carrier: text}`";
        report.help(place, format!("{what} has no header and declares no columns"), help);
    }
    let lookup = fields
        .get("lookup")
        .and_then(|node| fields::boolean(report, node, "`lookup`"))
        .unwrap_or(false);
    Some(Source {
        name: key.text.clone(),
        lookup,
        kind: SourceKind::Csv(csv),
        place: key.place,
    })
}

fn options(report: &mut Report, fields: &Fields<'_>, what: &str, csv: &mut CsvSource) {
    let of = |option: &str| format!("`{option}` of {what}");
    if let Some(node) = fields.get("delimiter") {
        csv.delimiter = fields::character(report, node, &of("delimiter")).unwrap_or(csv.delimiter);
    }
    if let Some(node) = fields.get("quote") {
        csv.quote = fields::character(report, node, &of("quote")).unwrap_or(csv.quote);
    }
    if csv.quote == csv.delimiter {
        let place = fields
            .get("delimiter")
            .or(fields.get("quote"))
            .map(|node| node.place)
            .unwrap_or_default();
        report.error(
            place,
            format!("{what} has the same character as delimiter and as quote"),
        );
    }
    if let Some(node) = fields.get("header") {
        csv.header = fields::boolean(report, node, &of("header")).unwrap_or(true);
    }
    if let Some(node) = fields.get("quoted_newlines") {
        csv.quoted_newlines = fields::boolean(report, node, &of("quoted_newlines")).unwrap_or(true);
    }
    if let Some(node) = fields.get("compression")
        && let Some((text, place)) = fields::text(report, node, &of("compression"))
    {
        match text {
            "auto" => csv.compression = Compression::Auto,
            "none" => csv.compression = Compression::None,
            "gzip" => csv.compression = Compression::Gzip,
            "zstd" => csv.compression = Compression::Zstd,
            other => {
                let help = match other {
                    "gz" => Some("write `gzip`".to_owned()),
                    "zst" => Some("write `zstd`".to_owned()),
                    _ => did_you_mean(other, ["auto", "none", "gzip", "zstd"]),
                };
                report.maybe(place, format!("unknown compression `{other}` of {what}"), help);
            }
        }
    }
    if let Some(node) = fields.get("chunk_size")
        && let Some(size) = fields::bytes(report, node, &of("chunk_size"))
    {
        if size < MIN_CHUNK_BYTES {
            report.help(
                node.place,
                format!("chunks of {size} bytes are too small"),
                "64KiB is the least; 16MiB is usual",
            );
        }
        csv.chunk_bytes = size.max(MIN_CHUNK_BYTES);
    }
}

fn columns(report: &mut Report, node: &Node, what: &str) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    let entries = fields::entries(report, node, &format!("the columns of {what}")).unwrap_or_default();
    if entries.is_empty() && matches!(node.value, Value::Map(_)) {
        report.help(
            node.place,
            format!("{what} declares no columns"),
            "leave `columns` out to take the header's as text",
        );
    }
    for (key, node) in entries {
        if node.is_null() && key.text.ends_with(')') {
            continue; // The second half of an unquoted `decimal(10,2)`; the first half is reported.
        }
        check_name(report, &key.text, key.place, what);
        if let Some(column) = column(report, key, node) {
            columns.push(column);
        }
    }
    columns
}

fn check_name(report: &mut Report, name: &str, place: Place, what: &str) {
    if name == ROW_COLUMN {
        report.help(
            place,
            format!("`{name}` is a name that Haulage keeps for itself"),
            "rename the column in the file",
        );
    } else if name.is_empty() || name.contains('\0') {
        report.error(place, format!("{what} has a column without a usable name"));
    }
}

fn column(report: &mut Report, key: &Key, node: &Node) -> Option<Column> {
    let (text, place) = fields::text(report, node, &format!("the type of column `{}`", key.text))?;
    let (type_name, required) = match text.trim().strip_suffix('!') {
        Some(type_name) => (type_name, true),
        None => (text.trim(), false),
    };
    let data_type = match types::parse(type_name) {
        Ok(data_type) => data_type,
        Err(unknown) => {
            report.help(
                place,
                format!("{} of column `{}`", unknown.message, key.text),
                unknown.suggestion,
            );
            // The column stays, so that SQL which names it isn't reported as well.
            DataType::Utf8
        }
    };
    Some(Column {
        name: key.text.clone(),
        data_type,
        required,
    })
}
