//! `parquet:` sources.

use super::{Declared, files};
use crate::definition::{ParquetSource, SourceKind};
use crate::diagnostics::Report;
use crate::parse::draft::Gaps;

/// The keys of such a source, beside those that every source has.
pub(super) const KEYS: &[&str] = &["parquet", "chunk_size"];

pub(super) fn read(report: &mut Report, declared: Declared<'_>, gaps: &mut Gaps) -> SourceKind {
    let path = declared.filled(report, gaps, "parquet", "the path");
    let Declared {
        what, fields, columns, ..
    } = declared;
    SourceKind::Parquet(ParquetSource {
        path: path.unwrap_or_default(),
        columns,
        chunk_bytes: files::chunk_bytes(report, &fields, &what),
    })
}
