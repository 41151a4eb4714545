//! The two writing transactions, `append` and `submit`, once for both databases.
//!
//! Both check the epoch first, in the transaction that writes and under a lock that a campaign has to wait for. So
//! there are two orders only: the write commits and the new epoch comes after it, or the epoch commits and the write is
//! refused.
//!
//! A run's head is locked before it is judged. Whoever wrote before has committed by then, also a connection that was
//! cut in the middle of its COMMIT; that is why a refused append can be held against what stands.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use haulage_core::event::Event;
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::submission::Submission;

use super::admit::{self, Advance, Answer, Head, NewEvent, Prior, Replaying, Stored, Unreplayable};
use super::{Append, Appended, Disposition, Error, Submitted};

/// A run to insert; its log ends at its first event.
pub(super) struct NewRun<'a> {
    pub(super) run: &'a RunId,
    pub(super) key: &'a str,
    pub(super) number: u32,
    pub(super) pipeline: &'a str,
    pub(super) submitted_at: Millis,
    pub(super) replays: Option<&'a RunId>,
    pub(super) replaces: Option<&'a RunId>,
}

/// One open writing transaction of a database. Dropped without `commit`, it leaves nothing behind.
#[async_trait]
pub(super) trait Session: Send {
    /// The ledger's mark.
    async fn mark(&mut self) -> Result<String, Error>;

    /// The epoch that stands, under a lock that a campaign waits for.
    async fn epoch(&mut self) -> Result<Epoch, Error>;

    /// Locks the runs that exist of these (given in order, without repetition) and says where their logs end.
    async fn heads(&mut self, runs: &[&RunId]) -> Result<HashMap<RunId, Head>, Error>;

    /// Inserts events.
    async fn insert(&mut self, epoch: Epoch, events: &[NewEvent<'_>]) -> Result<(), Error>;

    /// Moves the heads of locked runs.
    async fn advance(&mut self, advances: &BTreeMap<&RunId, Advance>) -> Result<(), Error>;

    /// What stands in a run's log after a place, in order, at most `limit` events.
    async fn stored(&mut self, run: &RunId, after: Seq, limit: usize) -> Result<Vec<Stored>, Error>;

    /// Keeps other submissions with this key waiting until this transaction ends.
    async fn lock_key(&mut self, key: &str) -> Result<(), Error>;

    /// The runs of a submission.
    async fn prior(&mut self, key: &str) -> Result<Prior, Error>;

    /// The replay of a run's rejected rows that stands, or may yet.
    async fn replaying(&mut self, run: &RunId) -> Result<Option<Replaying>, Error>;

    /// The run that was started to replace this one, if it is published or not over.
    async fn rerun(&mut self, run: &RunId) -> Result<Option<RunId>, Error>;

    /// Whether a run's log says that its rejected rows are gone.
    async fn pruned(&mut self, run: &RunId) -> Result<bool, Error>;

    /// The key of the submission of a run.
    async fn key_of(&mut self, run: &RunId) -> Result<Option<String>, Error>;

    /// Inserts a run; false if its id is taken.
    async fn start(&mut self, run: NewRun<'_>) -> Result<bool, Error>;

    /// Notes that a run has nothing in the checkpoint store any more.
    async fn empty(&mut self, run: &RunId) -> Result<(), Error>;

    /// Makes it stand.
    async fn commit(self: Box<Self>) -> Result<(), Error>;
}

/// [`super::Ledger::append`] in the transaction that `begin` starts.
pub(super) async fn append(
    begin: impl Future<Output = Result<Box<dyn Session>, Error>> + Send,
    epoch: Epoch,
    appends: &[Append],
) -> Result<Vec<Appended>, Error> {
    // Encoded before any lock is held.
    let encoded = appends.iter().map(admit::encode).collect::<Result<Vec<_>, _>>()?;
    let mut session = begin.await?;
    check_epoch(&mut *session, epoch).await?;
    let mut runs: Vec<&RunId> = appends.iter().map(|append| &append.run).collect();
    // One order for everybody: two transactions that lock the same runs never wait for each other in a circle.
    runs.sort_unstable();
    runs.dedup();
    let mut heads = session.heads(&runs).await?;
    for Append { run, events, .. } in appends {
        // A replay takes the head of the run that it replays before it starts, so one of the two comes first.
        let stands = match events.first() {
            Some(Event::RevertRequested { .. }) => session.replaying(run).await?.is_some(),
            // One that reads them.
            Some(Event::RejectsPruned { .. }) => session.replaying(run).await?.is_some_and(|replay| !replay.published),
            _ => false,
        };
        if stands {
            heads.remove(run);
        }
    }
    let admission = admit::admit(&encoded, heads);
    if !admission.events.is_empty() {
        session.insert(epoch, &admission.events).await?;
        session.advance(&admission.advances).await?;
    }
    let mut answers = admission.answers;
    for (answer, refused) in answers.iter_mut().zip(&encoded) {
        if *answer != Appended::Conflict {
            continue;
        }
        let Append { run, expected, events } = refused.append;
        let stored = session.stored(run, *expected, events.len()).await?;
        if admit::stands(refused, epoch, &stored) {
            *answer = Appended::At(Seq(expected.0 + events.len() as u64));
        }
    }
    session.commit().await?;
    Ok(answers)
}

/// [`super::Ledger::submit`] in the transaction that `begin` starts.
pub(super) async fn submit(
    begin: impl Future<Output = Result<Box<dyn Session>, Error>> + Send,
    epoch: Epoch,
    submission: &Submission,
    rerun: bool,
    at: Millis,
) -> Result<Submitted, Error> {
    let key = submission.key();
    let mut session = begin.await?;
    check_epoch(&mut *session, epoch).await?;
    let replays = submission.replay.as_ref().map(|replay| &replay.run);
    if let Some(replayed) = replays {
        // Its submission first, so that it isn't run again meanwhile, then its head, so that it isn't reverted, then ours.
        let Some(theirs) = session.key_of(replayed).await? else {
            return Err(Unreplayable::Unknown(replayed.clone()).into());
        };
        session.lock_key(&theirs).await?;
        let head = session.heads(&[replayed]).await?.remove(replayed);
        let rerun = session.rerun(replayed).await?;
        let replaying = session.replaying(replayed).await?;
        admit::may_replay(replayed, head, rerun.as_ref(), replaying.as_ref(), &key)?;
        if replaying.is_none() && session.pruned(replayed).await? {
            return Err(Unreplayable::Pruned(replayed.clone()).into());
        }
    }
    session.lock_key(&key).await?;
    let (first, replaces) = match admit::answer(session.prior(&key).await?, rerun, submission.incremental) {
        Answer::Existing(submitted) => return Ok(submitted),
        Answer::Start { number, replaces } => (number, replaces),
    };
    if let Some(replaced) = &replaces
        && let Some(replaying) = session.replaying(replaced).await?
    {
        return Err(Unreplayable::BuiltOn(replaced.clone(), replaying.run).into());
    }
    let mark = session.mark().await?;
    // A run's id holds ten digits of the key only. Another submission may have taken it, then the next number is ours.
    for number in first..=u32::MAX {
        let run = submission.run_id(&mark, number);
        let new = NewRun {
            run: &run,
            key: &key,
            number,
            pipeline: &submission.pipeline,
            submitted_at: at,
            replays,
            replaces: replaces.as_ref(),
        };
        if !session.start(new).await? {
            continue;
        }
        let event = Event::Submitted {
            run: run.clone(),
            submission: Box::new(submission.clone()),
            replaces,
            at,
        };
        let body = admit::encode_event(&run, &event)?;
        let event = NewEvent {
            run: &run,
            seq: Seq(1),
            at,
            kind: event.kind(),
            body: &body,
        };
        session.insert(epoch, &[event]).await?;
        session.commit().await?;
        return Ok(Submitted {
            run,
            disposition: Disposition::Started,
        });
    }
    Err(Error::Database(sqlx::Error::InvalidArgument(
        "every run number of this submission is taken".to_owned(),
    )))
}

/// [`super::Ledger::emptied`] in the transaction that `begin` starts.
pub(super) async fn emptied(
    begin: impl Future<Output = Result<Box<dyn Session>, Error>> + Send,
    epoch: Epoch,
    run: &RunId,
) -> Result<(), Error> {
    let mut session = begin.await?;
    check_epoch(&mut *session, epoch).await?;
    session.empty(run).await?;
    session.commit().await
}

/// An epoch of 0 leads nothing: nobody has won it.
async fn check_epoch(session: &mut dyn Session, ours: Epoch) -> Result<(), Error> {
    let theirs = session.epoch().await?;
    if theirs != ours || ours == Epoch(0) {
        return Err(Error::Deposed { theirs, ours });
    }
    Ok(())
}
