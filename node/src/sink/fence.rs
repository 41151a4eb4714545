//! Fences: an effect says under which epoch and as which attempt it was begun, in its own transaction, and is refused
//! once anything newer has begun. Attempts count on over all leaders, so of the two numbers the attempt is as a rule the
//! one that decides; the epoch stops a leader that no longer leads, whatever it numbers.

use std::collections::BTreeMap;

use haulage_core::failure::Failure;
use haulage_core::ids::{Attempt, ChunkId, Epoch};

use super::LoadContext;

/// Who has dealt with a load's record: the newest epoch, and of each step its newest attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dealt {
    epoch: Epoch,
    attempts: BTreeMap<String, Attempt>,
}

impl Dealt {
    /// As the record has it; `attempts` is JSON.
    pub(super) fn read(epoch: i64, attempts: &str) -> Result<Self, sqlx::Error> {
        Ok(Self {
            epoch: Epoch(epoch as u64),
            attempts: serde_json::from_str(attempts).map_err(|error| sqlx::Error::Decode(error.into()))?,
        })
    }

    /// Deals with the record: the caller's epoch, and its attempt of this step. True if that is news to the record.
    /// `Fenced` if a later leader has dealt with it, or a later attempt of the step.
    pub(super) fn deal(&mut self, load: &LoadContext, step: &str) -> Result<bool, Failure> {
        let whose = || format!("load {} of run {} is in the hands of", load.load, load.run);
        if self.epoch > load.epoch {
            let (theirs, ours) = (self.epoch, load.epoch);
            return Err(Failure::fenced(format!(
                "{} epoch {theirs}, this is epoch {ours}",
                whose()
            )));
        }
        let newest = self.attempts.get(step).copied().unwrap_or_default();
        if newest > load.attempt {
            let ours = load.attempt;
            return Err(Failure::fenced(format!(
                "{} attempt {newest} of {step}, this is attempt {ours}",
                whose()
            )));
        }
        let news = self.epoch < load.epoch || newest < load.attempt;
        self.epoch = load.epoch;
        self.attempts.insert(step.to_owned(), load.attempt);
        Ok(news)
    }

    /// For the record.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch.0 as i64
    }

    /// For the record, as JSON.
    pub(super) fn attempts(&self) -> String {
        let attempts = self.attempts.iter();
        let attempts: serde_json::Map<String, serde_json::Value> = attempts
            .map(|(step, attempt)| (step.clone(), attempt.0.into()))
            .collect();
        serde_json::Value::Object(attempts).to_string()
    }
}

/// Holds a chunk's commit against its fence: the epoch and the attempt that began last, if any has. `Fenced` unless it is
/// this one.
pub(super) fn admit(
    load: &LoadContext,
    chunk: ChunkId,
    attempt: Attempt,
    begun: Option<(i64, i64)>,
) -> Result<(), Failure> {
    let ours = (load.epoch.0 as i64, i64::from(attempt.0));
    match begun {
        // A fence of a release that didn't write the epoch has 0 there.
        Some((epoch, begun)) if begun == ours.1 && epoch <= ours.0 => Ok(()),
        Some((epoch, begun)) => Err(Failure::fenced(format!(
            "chunk {chunk} of load {}: attempt {attempt} under epoch {} is fenced, attempt {begun} has begun under epoch {epoch}",
            load.load, load.epoch
        ))),
        None => Err(Failure::fenced(format!(
            "chunk {chunk} of load {}: attempt {attempt} has not begun here",
            load.load
        ))),
    }
}

/// What a chunk that begins is told when its fence could not be raised.
pub(super) fn too_late(load: &LoadContext, chunk: ChunkId, attempt: Attempt) -> Failure {
    Failure::fenced(format!(
        "chunk {chunk} of load {}: attempt {attempt} under epoch {} comes after a later one has begun",
        load.load, load.epoch
    ))
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;
    use haulage_core::ids::StageId;

    use super::*;
    use crate::sink::tests::load;

    fn caller(epoch: u64, attempt: u32) -> LoadContext {
        LoadContext {
            epoch: Epoch(epoch),
            attempt: Attempt(attempt),
            ..load()
        }
    }

    #[test]
    fn a_record_takes_no_earlier_epoch_and_no_earlier_attempt_of_a_step() {
        let mut dealt = Dealt::read(2, r#"{"publish":3}"#).expect("it is JSON");
        for (epoch, attempt, step, expected) in [
            (2, 3, "publish", Some(false)),
            (2, 2, "publish", None),
            (1, 9, "publish", None),
            (1, 1, "verify", None),
            (2, 1, "verify", Some(true)),
            (3, 2, "publish", None),
            (3, 3, "publish", Some(true)),
            (2, 4, "publish", None),
        ] {
            let found = dealt.deal(&caller(epoch, attempt), step);
            if let Err(failure) = &found {
                assert_eq!(failure.class, Class::Fenced);
            }
            assert_eq!(found.ok(), expected, "epoch {epoch}, attempt {attempt} of {step}");
        }
        assert_eq!(dealt.epoch(), 3);
        assert_eq!(dealt.attempts(), r#"{"publish":3,"verify":1}"#);
        assert!(Dealt::read(1, "[]").is_err());
    }

    #[test]
    fn a_commit_is_admitted_only_as_what_began_last() {
        let chunk = ChunkId {
            stage: StageId(0),
            index: 4,
        };
        for (begun, admitted) in [
            (Some((2, 3)), true),
            (Some((0, 3)), true),
            (Some((1, 3)), true),
            (Some((3, 3)), false),
            (Some((2, 4)), false),
            (Some((2, 2)), false),
            (None, false),
        ] {
            let found = admit(&caller(2, 1), chunk, Attempt(3), begun);
            assert_eq!(found.is_ok(), admitted, "{begun:?}: {found:?}");
        }
    }
}
