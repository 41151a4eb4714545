//! `json:` sources: files of JSON lines.

use super::{Declared, files};
use crate::definition::{JsonSource, SourceKind};
use crate::diagnostics::Report;
use crate::parse::draft::Gaps;

/// The keys of such a source, beside those that every source has.
pub(super) const KEYS: &[&str] = &["json", "compression", "chunk_size"];

pub(super) fn read(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let path = declared.filled(report, gaps, "json", "the path");
    let Declared {
        what,
        fields,
        columns,
        paths,
        ..
    } = declared;
    SourceKind::Json(JsonSource {
        path: path.unwrap_or_default(),
        columns,
        paths,
        compression: files::compression(report, &fields, &what),
        chunk_bytes: files::chunk_bytes(report, &fields, &what),
    })
}
