//! What destinations say about watermarks: the same in all of them.

use haulage_core::failure::Failure;
use haulage_core::watermark::{Advance, Watermark};

use super::LoadContext;

/// A watermark stands elsewhere than where the run found it.
pub(super) fn moved_on(load: &LoadContext, advance: &Advance, value: Option<&str>, run: &str) -> Failure {
    let found = advance.found.as_deref().unwrap_or("the first row");
    let who = match run {
        "" => "somebody has set it".to_owned(),
        run => format!("run {run} has published"),
    };
    Failure::permanent(format!(
        "load {}: source {} was read from {found} on, and its watermark for {} is {} by now, since {who} meanwhile; nothing \
         of this run is published: submit it again to read on from there",
        load.load,
        advance.source,
        load.table,
        value.unwrap_or("not there")
    ))
}

/// Nobody has published by it.
pub(super) fn unknown_watermark(mark: &Watermark) -> Failure {
    Failure::permanent(format!(
        "destination {} has no watermark of pipeline {}, source {} and table {}; a first run makes it",
        mark.destination, mark.pipeline, mark.source, mark.table
    ))
}

/// What a publish has made of watermarks can't be read back.
pub(super) fn unreadable_advances(error: serde_json::Error) -> sqlx::Error {
    sqlx::Error::Decode(format!("the record of watermarks can't be read by this release: {error}").into())
}
