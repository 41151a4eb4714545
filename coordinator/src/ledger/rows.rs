//! From columns to values, alike for both databases. Whatever a row holds, the answer is a value or an error.

use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use serde::de::Error as _;

use super::admit::{Head, Prior, Replaying, Stored};
use super::{Error, RunRow, Unpruned};

/// Run, pipeline, submitted at, finished at, outcome.
pub(super) type Listed = (String, String, i64, Option<i64>, Option<String>);

/// A run's log, read on from the place after `after`. A hole is an error like an event that can't be read: what was
/// folded over a hole would be another run.
pub(super) fn events(run: &RunId, after: Seq, stored: Vec<(i64, String)>) -> Result<Vec<(Seq, Event)>, Error> {
    let unreadable = |seq, source| Error::Unreadable {
        run: run.clone(),
        seq,
        source,
    };
    let mut events = Vec::with_capacity(stored.len());
    let mut expected = after;
    for (seq, body) in stored {
        expected = expected.next();
        if unsigned(seq) != expected.0 {
            return Err(unreadable(
                expected,
                serde_json::Error::custom("it is missing from the ledger"),
            ));
        }
        let event = serde_json::from_str(&body).map_err(|source| unreadable(expected, source))?;
        events.push((expected, event));
    }
    Ok(events)
}

/// A row of a list.
pub(super) fn run_row((run, pipeline, submitted_at, finished_at, how): Listed) -> Result<RunRow, Error> {
    let finished = match (finished_at, how) {
        (Some(at), Some(how)) => Some((Millis(unsigned(at)), outcome(&how)?)),
        (None, _) | (_, None) => None,
    };
    Ok(RunRow {
        run: RunId(run),
        pipeline,
        submitted_at: Millis(unsigned(submitted_at)),
        finished,
    })
}

/// Run, when it came to rest, its number.
pub(super) fn unpruned((run, finished_at, ordinal): (String, i64, i64)) -> Unpruned {
    Unpruned {
        run: RunId(run),
        place: (Millis(unsigned(finished_at)), unsigned(ordinal)),
    }
}

/// Run, place of its last event, how it has finished.
pub(super) fn head((run, last, how): (String, i64, Option<String>)) -> Result<(RunId, Head), Error> {
    let head = Head {
        last: Seq(unsigned(last)),
        at_rest: how.as_deref().map(outcome).transpose()?,
    };
    Ok((RunId(run), head))
}

/// Place, epoch, body.
pub(super) fn stored((seq, epoch, body): (i64, i64, String)) -> Stored {
    Stored {
        seq: Seq(unsigned(seq)),
        epoch: Epoch(unsigned(epoch)),
        body,
    }
}

/// The newest run (id, number, outcome) and the newest published one.
pub(super) fn prior(newest: Option<(String, i64, Option<String>)>, published: Option<String>) -> Result<Prior, Error> {
    let newest = match newest {
        None => None,
        Some((run, number, how)) => {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            Some((RunId(run), number, how.as_deref().map(outcome).transpose()?))
        }
    };
    Ok(Prior {
        newest,
        published: published.map(RunId),
    })
}

/// Run, key, and how it has finished, of a replay that stands or may yet.
pub(super) fn replaying((run, key, how): (String, String, Option<String>)) -> Replaying {
    Replaying {
        run: RunId(run),
        key,
        published: how.is_some(),
    }
}

/// An outcome as the `outcome` column has it.
pub(super) fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Published => "published",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
        Outcome::Reverted => "reverted",
    }
}

fn outcome(text: &str) -> Result<Outcome, Error> {
    match text {
        "published" => Ok(Outcome::Published),
        "failed" => Ok(Outcome::Failed),
        "cancelled" => Ok(Outcome::Cancelled),
        "reverted" => Ok(Outcome::Reverted),
        other => Err(Error::Database(sqlx::Error::Decode(
            format!("unknown outcome {other:?} of a run").into(),
        ))),
    }
}

/// A number for a column: the databases know signed ones only.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number from a column; a negative one, which nobody writes, is 0.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
