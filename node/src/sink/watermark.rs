//! What destinations say about watermarks: the same in all of them.

use haulage_core::failure::Failure;
use haulage_core::watermark::{Advance, Watermark};

use haulage_plan::definition::Mode;

use super::LoadContext;

/// A watermark where a publish finds it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) value: Option<String>,
    /// The run that has published it.
    pub(super) run: String,
    /// Who has set it, if it was no run.
    pub(super) by: String,
}

/// Refuses a publish whose rows don't go on from where its watermark stands, or that has to make anew what was there.
pub(super) fn goes_on(load: &LoadContext, advance: &Advance, found: &Found, created: bool) -> Result<(), Failure> {
    if found.value == advance.found {
        return match (&found.value, created && load.mode != Mode::Replace) {
            (Some(value), true) => Err(Failure::permanent(format!(
                "load {}: {} is gone since this run was planned, and source {} was read up to {value}: what came before would \
                 be missing; to read everything again, forget it: haulage state forget {} {} {}",
                load.load, load.table, advance.source, load.pipeline, advance.source, load.table
            ))),
            (Some(_) | None, _) => Ok(()),
        };
    }
    if let (Some(value), None, "", "", true) = (
        &advance.found,
        &found.value,
        found.run.as_str(),
        found.by.as_str(),
        created,
    ) && load.mode != Mode::Replace
    {
        return Err(Failure::permanent(format!(
            "load {}: {} is gone since this run was planned, and its watermark with it: source {} was read from {value} on, and \
             what came before would be missing; submit it again to read everything",
            load.load, load.table, advance.source
        )));
    }
    let who = match (found.run.as_str(), found.by.as_str()) {
        ("", "") => "somebody has set it".to_owned(),
        ("", by) => format!("{by} has set it"),
        (run, _) => format!("run {run} has published"),
    };
    Err(Failure::permanent(format!(
        "load {}: source {} was read from {} on, and its watermark for {} is {} by now, since {who} meanwhile; nothing of this \
         run is published: submit it again to read on from there",
        load.load,
        advance.source,
        advance.found.as_deref().unwrap_or("the first row"),
        load.table,
        found.value.as_deref().unwrap_or("not there")
    )))
}

/// Somebody else was faster.
pub(super) fn stands_elsewhere(mark: &Watermark) -> Failure {
    Failure::permanent(format!(
        "the watermark of pipeline {}, source {} and table {} has moved meanwhile; look at it again with `haulage state {}`",
        mark.pipeline, mark.source, mark.table, mark.pipeline
    ))
}

/// Nobody has published by it.
pub(super) fn unknown_watermark(mark: &Watermark) -> Failure {
    Failure::permanent(format!(
        "destination {} has no watermark of pipeline {}, source {} and table {}; a first run makes it, or --to and --column \
         with `haulage state set`",
        mark.destination, mark.pipeline, mark.source, mark.table
    ))
}

/// What a publish has made of watermarks can't be read back.
pub(super) fn unreadable_advances(error: serde_json::Error) -> sqlx::Error {
    sqlx::Error::Decode(format!("the record of watermarks can't be read by this release: {error}").into())
}
