//! `csv:` sources.

use super::{Declared, files};
use crate::definition::{Compression, CsvSource, SourceKind};
use crate::diagnostics::Report;
use crate::parse::draft::Gaps;
use crate::parse::fields::{self, Fields};

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
        chunk_bytes: files::CHUNK_BYTES,
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
    csv.compression = files::compression(report, fields, what);
    csv.chunk_bytes = files::chunk_bytes(report, fields, what);
}
