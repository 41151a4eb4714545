//! A switch for tests only: faults that a node inflicts on itself, off unless the environment variable `HAULAGE_FAULT`
//! is set. End-to-end tests use it to crash a chunk actor at a known place and to make small data last long enough to
//! kill a node in the middle of it.
//!
//! `HAULAGE_FAULT` holds faults separated by commas:
//! - `panic@chunk:0.1:segment:1` panics once per process, when that segment of that chunk has been staged and before
//!   it is committed: the worst moment, since everything is done and nothing stands.
//! - `slow@segment:200ms` waits that long in every segment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haulage_core::ids::{ChunkId, StageId};

/// The variable that holds the faults.
pub const VARIABLE: &str = "HAULAGE_FAULT";

/// A text that names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HAULAGE_FAULT: {0:?} is no fault; expected panic@chunk:STAGE.INDEX:segment:N or slow@segment:MILLISECONDSms")]
pub struct Error(String);

/// The faults to inflict; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    panic: Option<(ChunkId, u32)>,
    panicked: Arc<AtomicBool>,
    slow: Option<Duration>,
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
                let ms = time
                    .strip_suffix("ms")
                    .and_then(|ms| ms.parse().ok())
                    .ok_or_else(wrong)?;
                fault.slow = Some(Duration::from_millis(ms));
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
        if self.panic == Some((chunk, segment)) && !self.panicked.swap(true, Ordering::SeqCst) {
            panic!("the fault that {VARIABLE} asked for, at segment {segment} of chunk {chunk}");
        }
    }
}

/// `STAGE.INDEX:segment:N`.
fn place_of(text: &str) -> Option<(ChunkId, u32)> {
    let (chunk, segment) = text.split_once(":segment:")?;
    let (stage, index) = chunk.split_once('.')?;
    let chunk = ChunkId {
        stage: StageId(stage.parse().ok()?),
        index: index.parse().ok()?,
    };
    Some((chunk, segment.parse().ok()?))
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
        for wrong in ["panic", "panic@chunk:0:segment:1", "slow@segment:2s", "panic@chunk:0.1"] {
            assert!(Fault::parse(wrong).is_err(), "{wrong}");
        }
    }
}
