//! Which appends may stand, and which run answers for a submission: facts in, decision out. No database here, so that
//! both databases decide alike, and the simulation with them. Without promises to anybody else.

use std::collections::{BTreeMap, HashMap};

use haulage_core::event::{Event, Outcome};
use haulage_core::ids::{Epoch, Millis, RunId, Seq};

use super::{Append, Appended, Disposition, Error, Submitted};

/// Where a run's log ends, as read under the run's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The place of its last event.
    pub last: Seq,
    /// If that is `finished`: how.
    pub at_rest: Option<Outcome>,
}

/// An append with its events as they will stand in the database.
pub struct Encoded<'a> {
    /// The append itself.
    pub append: &'a Append,
    /// The events in JSON, in their order.
    bodies: Vec<String>,
}

/// An event as it stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub seq: Seq,
    pub epoch: Epoch,
    pub body: String,
}

/// An event to insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewEvent<'a> {
    pub run: &'a RunId,
    pub seq: Seq,
    pub at: Millis,
    pub kind: &'static str,
    pub body: &'a str,
}

/// Where a run's log ends after the appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    pub last: Seq,
    pub finished: Option<(Millis, Outcome)>,
}

/// What may stand. `answers` has a conflict for whatever is not admitted; whether that stands already is asked later.
pub struct Admission<'a> {
    pub answers: Vec<Appended>,
    pub events: Vec<NewEvent<'a>>,
    /// By run, so that rows are always written in one order.
    pub advances: BTreeMap<&'a RunId, Advance>,
}

/// Encodes an append's events, before any lock is held.
pub fn encode(append: &Append) -> Result<Encoded<'_>, Error> {
    let mut bodies = Vec::with_capacity(append.events.len());
    for event in &append.events {
        bodies.push(encode_event(&append.run, event)?);
    }
    Ok(Encoded { append, bodies })
}

/// Encodes one event.
pub fn encode_event(run: &RunId, event: &Event) -> Result<String, Error> {
    serde_json::to_string(event).map_err(|source| Error::Unwritable {
        run: run.clone(),
        source,
    })
}

/// Judges the appends one after the other. A run without a head doesn't exist.
pub fn admit<'a>(appends: &'a [Encoded<'a>], mut heads: HashMap<RunId, Head>) -> Admission<'a> {
    let mut admission = Admission {
        answers: Vec::with_capacity(appends.len()),
        events: Vec::new(),
        advances: BTreeMap::new(),
    };
    for encoded in appends {
        let Append { run, expected, events } = encoded.append;
        let head = match heads.get_mut(run) {
            Some(head) if head.last == *expected && goes_on(head, events) => head,
            Some(_) | None => {
                admission.answers.push(Appended::Conflict);
                continue;
            }
        };
        let mut finished = None;
        for (event, body) in events.iter().zip(&encoded.bodies) {
            head.last = head.last.next();
            if let Event::Finished { outcome, at } = event {
                finished = Some((*at, *outcome));
            }
            admission.events.push(NewEvent {
                run,
                seq: head.last,
                at: event.at(),
                kind: event.kind(),
                body,
            });
        }
        head.at_rest = if events.is_empty() {
            head.at_rest
        } else {
            finished.map(|(_, outcome)| outcome)
        };
        admission.answers.push(Appended::At(head.last));
        if !events.is_empty() {
            admission.advances.insert(
                run,
                Advance {
                    last: head.last,
                    finished,
                },
            );
        }
    }
    admission
}

/// Whether a log may go on with these events. One that has ended does so in two ways only: a published run is reverted, or
/// its rejected rows are pruned, which ends it again as it was.
fn goes_on(head: &Head, events: &[Event]) -> bool {
    match head.at_rest {
        None => true,
        Some(outcome) if matches!(events.first(), Some(Event::RejectsPruned { .. })) => {
            matches!(events, [_, Event::Finished { outcome: again, .. }] if *again == outcome)
        }
        Some(Outcome::Published) => matches!(events.first(), Some(Event::RevertRequested { .. })),
        Some(Outcome::Failed | Outcome::Cancelled | Outcome::Reverted) => false,
    }
}

/// Whether a refused append is one that was already written by this leader and whose answer was lost. `stored` is what
/// stands from the place after `expected` on, at most as many events as the append has.
///
/// Content and epoch must be equal: what another leader wrote was decided on another state, however alike it looks.
pub fn stands(refused: &Encoded<'_>, epoch: Epoch, stored: &[Stored]) -> bool {
    let mut place = refused.append.expected;
    !refused.bodies.is_empty()
        && stored.len() == refused.bodies.len()
        && stored.iter().zip(&refused.bodies).all(|(event, body)| {
            place = place.next();
            event.seq == place && event.epoch == epoch && event.body == *body
        })
}

/// A replay that stands, or may yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaying {
    /// Its run.
    pub run: RunId,
    /// Its submission.
    pub key: String,
    /// Whether it is published; else it isn't over.
    pub published: bool,
}

/// Why the rejected rows of a run can't be replayed now, or what stands on a run because they were. The first run named is
/// the one that was asked about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreplayable {
    /// There is no such run.
    #[error("there is no run {0}")]
    Unknown(RunId),
    /// Nothing of it stands, so there is nothing to add rows to.
    #[error("run {0} {how}: only the rejected rows of a published run can be replayed", how = standing(.1))]
    NotPublished(RunId, Option<Outcome>),
    /// It was run again, and that stands, or may yet.
    #[error("run {0} was run again as {1}, which takes its place; replay the rejected rows of that one")]
    Replaced(RunId, RunId),
    /// Another replay reads them.
    #[error("the rejected rows of run {0} are being replayed by {1}; wait for it to end, or cancel it")]
    Running(RunId, RunId),
    /// They have been replayed by now.
    #[error("the rejected rows of run {0} were replayed by {1} at the same moment; ask again")]
    Moved(RunId, RunId),
    /// They are gone.
    #[error("the rejected rows of run {0} were pruned; `haulage show {0}` says when")]
    Pruned(RunId),
    /// What it published is built on.
    #[error("{1} has replayed the rejected rows of run {0}, which it would load once more; revert {1} first")]
    BuiltOn(RunId, RunId),
}

fn standing(outcome: &Option<Outcome>) -> &'static str {
    match outcome {
        None => "is not over",
        Some(Outcome::Published) => "is published",
        Some(Outcome::Failed) => "has failed",
        Some(Outcome::Cancelled) => "was cancelled",
        Some(Outcome::Reverted) => "was reverted",
    }
}

/// Whether a submission with this key may replay a run, as the ledger has it under its locks. `rerun` is the run that was
/// started to replace this one, and is published or not over: it takes the place of this one's rows, and rejects the same
/// rows by itself. A run of the same submission that has read on from this one stands beside it, and is nothing to this.
/// What a replay that stands has loaded must not be loaded again, so there is at most one; what it rejected is what is left
/// to replay, and a replay of that one.
pub fn may_replay(
    run: &RunId,
    head: Option<Head>,
    rerun: Option<&RunId>,
    replaying: Option<&Replaying>,
    key: &str,
) -> Result<(), Unreplayable> {
    let Some(head) = head else {
        return Err(Unreplayable::Unknown(run.clone()));
    };
    if head.at_rest != Some(Outcome::Published) {
        return Err(Unreplayable::NotPublished(run.clone(), head.at_rest));
    }
    if let Some(rerun) = rerun {
        return Err(Unreplayable::Replaced(run.clone(), rerun.clone()));
    }
    match replaying {
        Some(other) if other.key != key && other.published => Err(Unreplayable::Moved(run.clone(), other.run.clone())),
        Some(other) if other.key != key => Err(Unreplayable::Running(run.clone(), other.run.clone())),
        // The same one: who answers for it is found by its key.
        Some(_) | None => Ok(()),
    }
}

/// What the ledger knows of a submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prior {
    /// Its newest run: id, number, and how it ended.
    pub newest: Option<(RunId, u32, Option<Outcome>)>,
    /// Its newest published run.
    pub published: Option<RunId>,
}

/// Who answers for a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A run that exists.
    Existing(Submitted),
    /// A new run with this number, or the next one that is free.
    Start { number: u32, replaces: Option<RunId> },
}

/// Finds out who answers; the rules are [`super::Ledger::submit`]'s. An `incremental` submission that is published is
/// no answer to the next one, which reads what is new.
pub fn answer(prior: Prior, rerun: bool, incremental: bool) -> Answer {
    let (newest, number, outcome) = match prior.newest {
        None => {
            return Answer::Start {
                number: 1,
                replaces: None,
            };
        }
        Some(newest) => newest,
    };
    if outcome.is_none() {
        return Answer::Existing(Submitted {
            run: newest,
            disposition: Disposition::Attached,
        });
    }
    match prior.published {
        Some(_) if incremental && !rerun => Answer::Start {
            number: number.saturating_add(1),
            replaces: None,
        },
        Some(run) if !rerun => Answer::Existing(Submitted {
            run,
            disposition: Disposition::AlreadyPublished,
        }),
        replaces => Answer::Start {
            number: number.saturating_add(1),
            replaces,
        },
    }
}
