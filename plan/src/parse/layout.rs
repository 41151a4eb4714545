//! What a load says of its files: `format`, `partition_by` and `compression`, and a `table` that is a path.
//!
//! Whether the destination is one of files is known only where its address is; there, the others refuse all of this.

use super::fields::{self, Fields};
use crate::definition::{FileCompression, FileFormat, Layout, Place};
use crate::diagnostics::{Report, did_you_mean};

/// Folders in folders beyond this are nobody's intention.
const MAX_PARTITION_COLUMNS: usize = 8;
/// And so are tables this deep.
const MAX_DEPTH: usize = 16;

/// Reads the three keys; what is wrong is reported and left out.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>, what: &str) -> Layout {
    let format = fields.get("format").and_then(|node| {
        let (text, place) = fields::text(report, node, &format!("`format` of {what}"))?;
        match text {
            "parquet" => Some(FileFormat::Parquet),
            "csv" => Some(FileFormat::Csv),
            "jsonl" => Some(FileFormat::Jsonl),
            other => {
                let help = match other {
                    "json" | "ndjson" | "jsonlines" | "json_lines" => Some("write `jsonl`".to_owned()),
                    _ => did_you_mean(other, ["parquet", "csv", "jsonl"]),
                };
                report.maybe(place, format!("unknown format `{other}` of {what}"), help);
                None
            }
        }
    });
    let compression = fields.get("compression").and_then(|node| {
        let (text, place) = fields::text(report, node, &format!("`compression` of {what}"))?;
        match text {
            "none" => Some(FileCompression::None),
            "gzip" => Some(FileCompression::Gzip),
            "zstd" => Some(FileCompression::Zstd),
            "snappy" if matches!(format, Some(FileFormat::Csv | FileFormat::Jsonl)) => {
                let help = "write `gzip`, `zstd` or `none`";
                report.help(
                    place,
                    format!("`snappy` of {what} is a compression of Parquet only"),
                    help,
                );
                None
            }
            "snappy" => Some(FileCompression::Snappy),
            other => {
                let help = match other {
                    "gz" => Some("write `gzip`".to_owned()),
                    "zst" | "zstandard" => Some("write `zstd`".to_owned()),
                    "uncompressed" | "plain" => Some("write `none`".to_owned()),
                    _ => did_you_mean(other, ["none", "gzip", "snappy", "zstd"]),
                };
                report.maybe(place, format!("unknown compression `{other}` of {what}"), help);
                None
            }
        }
    });
    let columns = fields
        .get("partition_by")
        .and_then(|node| fields::texts(report, node, &format!("`partition_by` of {what}")));
    let mut partition_by: Vec<String> = Vec::new();
    for (column, place) in columns.unwrap_or_default() {
        if partition_by.contains(&column) {
            report.error(place, format!("`partition_by` of {what} names `{column}` twice"));
        } else if partition_by.len() == MAX_PARTITION_COLUMNS {
            let message = format!("`partition_by` of {what} has more than {MAX_PARTITION_COLUMNS} columns");
            report.help(
                place,
                message,
                "each is a folder in a folder; leave the finest ones out",
            );
            break;
        } else {
            partition_by.push(column);
        }
    }
    Layout {
        format,
        partition_by,
        compression,
    }
}

/// A path is relative, and none of its parts could lead out of the destination or into what Haulage keeps there.
pub(super) fn check_path(report: &mut Report, what: &str, table: &str, place: Place) {
    let parts: Vec<&str> = table.split('/').collect();
    let word = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
            && !part.starts_with("_haulage")
            && part.len() <= 63
    };
    let inside = parts.iter().skip(1).any(|part| *part == "data");
    if parts.len() > MAX_DEPTH || inside || !parts.iter().all(word) {
        let help = "write a path such as `sales/orders`, of letters, digits, `_` and `-`, at most 63 characters each; \
                    below a table's folder, `data` and names that begin with `_haulage` are kept for Haulage";
        report.help(place, format!("`{table}` of {what} is no path of a table"), help);
    }
}
