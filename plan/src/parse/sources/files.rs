//! The options that several kinds of files share.

use crate::definition::Compression;
use crate::diagnostics::{Report, did_you_mean};
use crate::parse::fields::{self, Fields};

/// Chunks are about this large unless the file says otherwise.
pub(super) const CHUNK_BYTES: u64 = 16 << 20;
/// A chunk costs a lease, a marker and a transaction: cutting finer than this only costs.
const MIN_CHUNK_BYTES: u64 = 64 << 10;

/// The option `compression`.
pub(super) fn compression(report: &mut Report, fields: &Fields<'_>, what: &str) -> Compression {
    let Some(node) = fields.get("compression") else {
        return Compression::Auto;
    };
    let Some((text, place)) = fields::text(report, node, &format!("`compression` of {what}")) else {
        return Compression::Auto;
    };
    match text {
        "auto" => Compression::Auto,
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        other => {
            let help = match other {
                "gz" => Some("write `gzip`".to_owned()),
                "zst" => Some("write `zstd`".to_owned()),
                _ => did_you_mean(other, ["auto", "none", "gzip", "zstd"]),
            };
            report.maybe(place, format!("unknown compression `{other}` of {what}"), help);
            Compression::Auto
        }
    }
}

/// The option `chunk_size`.
pub(super) fn chunk_bytes(report: &mut Report, fields: &Fields<'_>, what: &str) -> u64 {
    let Some(node) = fields.get("chunk_size") else {
        return CHUNK_BYTES;
    };
    let Some(size) = fields::bytes(report, node, &format!("`chunk_size` of {what}")) else {
        return CHUNK_BYTES;
    };
    if size < MIN_CHUNK_BYTES {
        report.help(
            node.place,
            format!("chunks of {size} bytes are too small"),
            "64KiB is the least; 16MiB is usual",
        );
    }
    size.max(MIN_CHUNK_BYTES)
}
