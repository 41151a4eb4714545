//! `csv:` sources.

use super::Declared;
use crate::definition::{Compression, CsvSource, SourceKind};
use crate::diagnostics::{Report, did_you_mean};
use crate::parse::draft::Gaps;
use crate::parse::fields::{self, Fields};

/// Chunks are about this large unless the file says otherwise.
const CHUNK_BYTES: u64 = 16 << 20;
/// A chunk costs a lease, a marker and a transaction: cutting finer than this only costs.
const MIN_CHUNK_BYTES: u64 = 64 << 10;

/// The keys of such a source, beside those that every source has.
pub(super) const KEYS: &[&str] = &[
    "csv",
    "null",
    "delimiter",
    "quote",
    "header",
    "compression",
    "chunk_size",
    "quoted_newlines",
];

pub(super) fn read(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let path = declared.filled(report, gaps, "csv", "the path");
    let Declared {
        key,
        what,
        fields,
        columns,
        ..
    } = &declared;
    let mut csv = CsvSource {
        path: path.unwrap_or_default(),
        columns: columns.clone(),
        null: Vec::new(),
        delimiter: b',',
        quote: b'"',
        header: true,
        compression: Compression::Auto,
        chunk_bytes: CHUNK_BYTES,
        quoted_newlines: true,
    };
    if let Some(node) = fields.get("null") {
        let texts = fields::texts(report, node, &format!("`null` of {what}")).unwrap_or_default();
        csv.null = texts.into_iter().map(|(text, _)| text).collect();
    }
    options(report, fields, what, &mut csv);
    if !csv.header && csv.columns.is_empty() {
        let place = fields.key("header").map_or(key.place, |key| key.place);
        let help = "declare them in the order of the file: `columns: {year: int, carrier: text}`";
        report.help(place, format!("{what} has no header and declares no columns"), help);
    }
    SourceKind::Csv(csv)
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
