//! The ledger's model: what `coordinator/src/ledger/write.rs` does in one transaction, with the production's own
//! admission. Whether an answer reaches its caller is the world's matter, not the ledger's.

use std::collections::{BTreeMap, HashMap};

use haulage_coordinator::ledger::admit::{self, Head, Replaying, Stored};
use haulage_coordinator::ledger::{Append, Appended};
use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::run::{self, State};
use haulage_core::submission::Submission;

use crate::bug::Bug;

/// What a coordinator asks.
#[derive(Debug, Clone)]
pub(crate) enum LedgerCall {
    Claim,
    OpenRuns,
    Epoch,
    Read(RunId),
    Append(Epoch, Vec<Append>),
    Submit(Epoch, RunId, Box<Submission>, Millis),
}

/// What it is answered.
#[derive(Debug, Clone)]
pub(crate) enum LedgerAnswer {
    Epoch(Epoch),
    Runs(Vec<RunId>),
    Log(Vec<(Seq, Event)>),
    Appended(Vec<Appended>),
    Submitted,
    /// A replay that can't be started now.
    Unreplayable,
}

/// Why it isn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LedgerError {
    Away,
    Deposed,
}

/// An event as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) stored: Stored,
    pub(crate) event: Event,
    /// The epoch of the leader when it was written.
    pub(crate) leader: Epoch,
}

/// One run's log, and its fold.
#[derive(Debug, Default)]
pub(crate) struct RunLog {
    pub(crate) events: Vec<Standing>,
    pub(crate) state: State,
    at_rest: Option<Outcome>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) epoch: Epoch,
    pub(crate) runs: BTreeMap<RunId, RunLog>,
    /// Runs that were written to since somebody looked.
    pub(crate) written: Vec<RunId>,
}

impl Ledger {
    pub(crate) fn execute(&mut self, call: LedgerCall, bug: Option<Bug>) -> Result<LedgerAnswer, LedgerError> {
        Ok(match call {
            LedgerCall::Claim => {
                self.epoch = Epoch(self.epoch.0 + 1);
                LedgerAnswer::Epoch(self.epoch)
            }
            LedgerCall::Epoch => LedgerAnswer::Epoch(self.epoch),
            LedgerCall::OpenRuns => {
                let open = self.runs.iter().filter(|(_, log)| log.at_rest.is_none());
                LedgerAnswer::Runs(open.map(|(run, _)| run.clone()).collect())
            }
            LedgerCall::Read(run) => {
                let events = self.runs.get(&run).map(|log| log.events.as_slice()).unwrap_or_default();
                LedgerAnswer::Log(events.iter().map(|s| (s.stored.seq, s.event.clone())).collect())
            }
            LedgerCall::Append(epoch, appends) => {
                self.check(epoch, bug)?;
                LedgerAnswer::Appended(self.append(epoch, &appends, bug))
            }
            LedgerCall::Submit(epoch, run, submission, at) => {
                self.check(epoch, bug)?;
                if !self.runs.contains_key(&run) {
                    if !self.may_replay(&submission, bug) {
                        return Ok(LedgerAnswer::Unreplayable);
                    }
                    let event = run::submitted(run.clone(), *submission, None, at);
                    self.push(epoch, &run, event, String::new());
                }
                LedgerAnswer::Submitted
            }
        })
    }

    fn check(&self, epoch: Epoch, bug: Option<Bug>) -> Result<(), LedgerError> {
        match epoch == self.epoch || bug == Some(Bug::LedgerWithoutEpoch) {
            true => Ok(()),
            false => Err(LedgerError::Deposed),
        }
    }

    /// Whether a submission is no replay, or one that may start. A run has one submission here, and is never run again.
    fn may_replay(&self, submission: &Submission, bug: Option<Bug>) -> bool {
        let Some(replay) = &submission.replay else { return true };
        let head = self.heads().remove(&replay.run);
        let replaying = self.replaying(&replay.run).filter(|_| bug != Some(Bug::ReplayBlindly));
        admit::may_replay(&replay.run, head, None, replaying.as_ref(), &submission.key()).is_ok()
    }

    /// The replay of a run that stands, or may yet.
    fn replaying(&self, of: &RunId) -> Option<Replaying> {
        self.runs.iter().find_map(|(run, log)| {
            let submission = log.state.submission()?;
            let reads = submission.replay.as_ref().is_some_and(|replay| replay.run == *of);
            let stands = matches!(log.at_rest, None | Some(Outcome::Published));
            (reads && stands).then(|| Replaying {
                run: run.clone(),
                key: submission.key(),
                published: log.at_rest.is_some(),
            })
        })
    }

    /// What an append would be answered with, without writing it: for a ledger that forgets.
    pub(crate) fn pretend(&self, appends: &[Append]) -> Vec<Appended> {
        let encoded: Vec<_> = appends.iter().filter_map(|append| admit::encode(append).ok()).collect();
        admit::admit(&encoded, self.heads()).answers
    }

    fn heads(&self) -> HashMap<RunId, Head> {
        let head = |log: &RunLog| Head {
            last: Seq(log.events.len() as u64),
            at_rest: log.at_rest,
        };
        self.runs.iter().map(|(run, log)| (run.clone(), head(log))).collect()
    }

    fn append(&mut self, epoch: Epoch, appends: &[Append], bug: Option<Bug>) -> Vec<Appended> {
        let encoded: Vec<_> = appends.iter().filter_map(|append| admit::encode(append).ok()).collect();
        let mut heads = self.heads();
        for Append { run, events, .. } in appends {
            let reverts = matches!(events.first(), Some(Event::RevertRequested { .. }));
            if reverts && bug != Some(Bug::RevertBlindly) && self.replaying(run).is_some() {
                heads.remove(run);
            }
        }
        let admission = admit::admit(&encoded, heads);
        let admitted = admission.answers.iter().zip(appends);
        let events = admitted
            .filter(|(answer, _)| **answer != Appended::Conflict)
            .flat_map(|(_, append)| append.events.iter().cloned());
        let bodies = admission
            .events
            .iter()
            .map(|new| (new.run.clone(), new.body.to_owned()));
        let new: Vec<_> = bodies.zip(events).collect();
        for ((run, body), event) in new {
            self.push(epoch, &run, event, body);
        }
        let mut answers = admission.answers;
        for (answer, refused) in answers.iter_mut().zip(&encoded) {
            if *answer != Appended::Conflict {
                continue;
            }
            let Append { run, expected, events } = refused.append;
            let standing = self.runs.get(run).map(|log| log.events.as_slice()).unwrap_or_default();
            let after = standing.iter().skip(expected.0 as usize).take(events.len());
            let stored: Vec<Stored> = after.map(|standing| standing.stored.clone()).collect();
            if admit::stands(refused, epoch, &stored) {
                *answer = Appended::At(Seq(expected.0 + events.len() as u64));
            }
        }
        answers
    }

    fn push(&mut self, epoch: Epoch, run: &RunId, event: Event, body: String) {
        let leader = self.epoch;
        let log = self.runs.entry(run.clone()).or_default();
        log.state.apply(&event);
        log.at_rest = match event {
            Event::Finished { outcome, .. } => Some(outcome),
            _ => None,
        };
        let seq = Seq(log.events.len() as u64 + 1);
        log.events.push(Standing {
            stored: Stored { seq, epoch, body },
            event,
            leader,
        });
        self.written.push(run.clone());
    }
}
