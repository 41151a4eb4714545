//! A switch for tests only: faults that a node inflicts on itself, off unless the environment variable `HAULAGE_FAULT`
//! is set. End-to-end tests use it to crash a chunk actor at a known place and to make small data last long enough to
//! kill a node in the middle of it.
//!
//! `HAULAGE_FAULT` holds faults separated by commas:
//! - `panic@chunk:0.1:segment:1` panics once per process, when that segment of that chunk has been staged and before
//!   it is committed: the worst moment, since everything is done and nothing stands.
//! - `slow@segment:200ms` waits that long in every segment.
//! - `abort@chunk:0.1` takes the whole process down, at the same moment in any segment of that chunk: poison.
//! - `abort@aside` takes the whole process down when rows have been set aside, before anybody hears of it.
//! - `slow@compensation:200ms` waits that long before every compensation.
//! - `again@compensation` loses the answer to every compensation once, after it has taken effect: it is done again.
//! - `deaf@lease` lets work go on that was cancelled, because its lease has run out or for another reason: what is left is
//!   that destinations refuse it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use haulage_core::failure::Failure;
use haulage_core::ids::{ChunkId, RunId, StageId, StepId};

/// The variable that holds the faults.
pub const VARIABLE: &str = "HAULAGE_FAULT";

/// A text that names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "HAULAGE_FAULT: {0:?} is no fault; expected panic@chunk:STAGE.INDEX:segment:N, slow@segment:MILLISECONDSms, \
     abort@chunk:STAGE.INDEX, abort@aside, slow@compensation:MILLISECONDSms, again@compensation or deaf@lease"
)]
pub struct Error(String);

/// The faults to inflict; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    panic: Option<(ChunkId, u32)>,
    panicked: Arc<AtomicBool>,
    slow: Option<Duration>,
    abort: Vec<ChunkId>,
    abort_aside: bool,
    slow_compensation: Option<Duration>,
    again: bool,
    deaf: bool,
    answered: Arc<Mutex<BTreeSet<(RunId, StepId)>>>,
}

impl Fault {
    /// Reads [`VARIABLE`]; none if it isn't set.
    pub fn from_env() -> Result<Self, Error> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Reads a list of faults.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut fault = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || Error(part.to_owned());
            if let Some(place) = part.strip_prefix("panic@chunk:") {
                fault.panic = Some(place_of(place).ok_or_else(wrong)?);
            } else if let Some(time) = part.strip_prefix("slow@segment:") {
                fault.slow = Some(duration_of(time).ok_or_else(wrong)?);
            } else if let Some(chunk) = part.strip_prefix("abort@chunk:") {
                fault.abort.push(chunk_of(chunk).ok_or_else(wrong)?);
            } else if let Some(time) = part.strip_prefix("slow@compensation:") {
                fault.slow_compensation = Some(duration_of(time).ok_or_else(wrong)?);
            } else if part == "abort@aside" {
                fault.abort_aside = true;
            } else if part == "again@compensation" {
                fault.again = true;
            } else if part == "deaf@lease" {
                fault.deaf = true;
            } else {
                return Err(wrong());
            }
        }
        Ok(fault)
    }

    /// Called when a segment has been staged and is about to be committed.
    pub(crate) async fn before_commit(&self, chunk: ChunkId, segment: u32) {
        if let Some(slow) = self.slow {
            tokio::time::sleep(slow).await;
        }
        if self.abort.contains(&chunk) {
            std::process::abort();
        }
        if self.panic == Some((chunk, segment)) && !self.panicked.swap(true, Ordering::SeqCst) {
            panic!("the fault that {VARIABLE} asked for, at segment {segment} of chunk {chunk}");
        }
    }

    /// Called when rows have been set aside from a load, and not before they stand in its record.
    pub(crate) fn after_set_aside(&self) {
        if self.abort_aside {
            std::process::abort();
        }
    }

    /// Asked when work is to be cancelled: whether it goes on all the same.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Called when a compensation is about to begin.
    pub(crate) async fn before_compensation(&self) {
        if let Some(slow) = self.slow_compensation {
            tokio::time::sleep(slow).await;
        }
    }

    /// Called when a compensation has taken effect; an error is what comes of its answer.
    pub(crate) fn after_compensation(&self, run: &RunId, step: &StepId) -> Result<(), Failure> {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if self.again && answered.insert((run.clone(), step.clone())) {
            return Err(Failure::transient(format!(
                "the fault that {VARIABLE} asked for: the answer to undoing {step} is lost"
            )));
        }
        Ok(())
    }
}

/// `STAGE.INDEX:segment:N`.
fn place_of(text: &str) -> Option<(ChunkId, u32)> {
    let (chunk, segment) = text.split_once(":segment:")?;
    Some((chunk_of(chunk)?, segment.parse().ok()?))
}

/// `STAGE.INDEX`.
fn chunk_of(text: &str) -> Option<ChunkId> {
    let (stage, index) = text.split_once('.')?;
    Some(ChunkId {
        stage: StageId(stage.parse().ok()?),
        index: index.parse().ok()?,
    })
}

/// `200ms`.
fn duration_of(text: &str) -> Option<Duration> {
    text.strip_suffix("ms")?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_refused() {
        let fault = Fault::parse("panic@chunk:0.1:segment:2, slow@segment:200ms").expect("two faults");
        assert_eq!(
            fault.panic,
            Some((
                ChunkId {
                    stage: StageId(0),
                    index: 1
                },
                2
            ))
        );
        assert_eq!(fault.slow, Some(Duration::from_millis(200)));
        assert!(Fault::parse("").expect("none").panic.is_none());
        for wrong in [
            "panic",
            "panic@chunk:0:segment:1",
            "slow@segment:2s",
            "panic@chunk:0.1",
            "abort@chunk:1",
            "slow@compensation",
        ] {
            assert!(Fault::parse(wrong).is_err(), "{wrong}");
        }
    }
}
