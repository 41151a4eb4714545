//! The group commit writer: many runs in one transaction, trouble of one run kept to it, answers that were lost found
//! again, and a lost epoch told to everybody.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use haulage_coordinator::ledger::admit::Replaying;
use haulage_coordinator::ledger::group::{self, Ended, Writer};
use haulage_coordinator::ledger::{
    self, Append, Appended, Campaign, Candidate, Error, Led, Ledger, RunRow, Submitted, Unpruned,
};
use haulage_core::event::Event;
use haulage_core::ids::{Epoch, Millis, RunId, Seq};
use haulage_core::submission::Submission;
use haulage_test_support::proxy::{Commit, Proxy};
use haulage_test_support::{PATIENCE, wait_for};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Place, append, claim, event, log, start};

crate::over_both!(
    a_thousand_appends_of_many_runs,
    what_gathers_commits_together,
    a_refused_append_fails_alone,
    a_lost_answer_is_no_conflict,
    a_lost_epoch_ends_everything,
    closing_writes_what_is_queued,
);

/// A real ledger whose appends wait at a gate, are counted, and may lose their answers.
struct Gated {
    inner: Arc<dyn Ledger>,
    gate: Semaphore,
    groups: Mutex<Vec<usize>>,
    answers_to_lose: AtomicU32,
}

impl Gated {
    fn new(inner: Arc<dyn Ledger>, open: usize) -> Arc<Self> {
        let gate = Semaphore::new(open);
        Arc::new(Self {
            inner,
            gate,
            groups: Mutex::default(),
            answers_to_lose: AtomicU32::new(0),
        })
    }

    fn groups(&self) -> Vec<usize> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Ledger for Gated {
    async fn append(&self, epoch: Epoch, appends: &[Append]) -> Result<Vec<Appended>, Error> {
        self.groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(appends.len());
        self.gate.acquire().await.expect("a gate").forget();
        let answers = self.inner.append(epoch, appends).await?;
        let lose = self
            .answers_to_lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match lose {
            Ok(_) => Err(Error::Database(sqlx::Error::Io(
                std::io::ErrorKind::ConnectionReset.into(),
            ))),
            Err(_) => Ok(answers),
        }
    }

    fn is_leased(&self) -> bool {
        self.inner.is_leased()
    }

    async fn campaign(&self, candidate: &Candidate<'_>, at: Millis) -> Result<Campaign, Error> {
        self.inner.campaign(candidate, at).await
    }

    async fn renew(&self, epoch: Epoch, lease: Duration) -> Result<(), Error> {
        self.inner.renew(epoch, lease).await
    }

    async fn resign(&self, epoch: Epoch) -> Result<(), Error> {
        self.inner.resign(epoch).await
    }

    async fn leader(&self) -> Result<Option<Led>, Error> {
        self.inner.leader().await
    }

    async fn mark(&self) -> Result<String, Error> {
        self.inner.mark().await
    }

    async fn epoch(&self) -> Result<Epoch, Error> {
        self.inner.epoch().await
    }

    async fn submit(&self, epoch: Epoch, submission: &Submission, rerun: bool, at: Millis) -> Result<Submitted, Error> {
        self.inner.submit(epoch, submission, rerun, at).await
    }

    async fn replaying(&self, run: &RunId) -> Result<Option<Replaying>, Error> {
        self.inner.replaying(run).await
    }

    async fn read(&self, run: &RunId, after: Seq) -> Result<Vec<(Seq, Event)>, Error> {
        self.inner.read(run, after).await
    }

    async fn unpruned(&self, until: Millis, after: Option<(Millis, u64)>, limit: u32) -> Result<Vec<Unpruned>, Error> {
        self.inner.unpruned(until, after, limit).await
    }

    async fn emptied(&self, epoch: Epoch, run: &RunId) -> Result<(), Error> {
        self.inner.emptied(epoch, run).await
    }

    async fn open_runs(&self) -> Result<Vec<RunId>, Error> {
        self.inner.open_runs().await
    }

    async fn list(&self, pipeline: Option<&str>, limit: u32) -> Result<Vec<RunRow>, Error> {
        self.inner.list(pipeline, limit).await
    }
}

/// An append that queues when it is polled for the first time.
fn queue(writer: &Writer, append: Append) -> BoxFuture<'static, Result<Appended, group::Error>> {
    let writer = writer.clone();
    Box::pin(async move { writer.append(append).await })
}

/// How a writer's task ended.
async fn ended(task: JoinHandle<Ended>) -> Ended {
    let task = timeout(PATIENCE, task).await.expect("a writer that ends in time");
    task.expect("a writer that doesn't panic")
}

/// Two actors write to each run and disagree all the time: whoever meets a conflict reads where the log is, goes on.
async fn a_thousand_appends_of_many_runs(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let (writer, task) = Writer::spawn(ledger.clone(), epoch);
    let mut actors = Vec::new();
    let mut runs = Vec::new();
    for n in 0..40 {
        let run = start(&*ledger, epoch, n).await;
        for actor in 0..2 {
            actors.push(tokio::spawn(write_fifteen(
                ledger.clone(),
                writer.clone(),
                run.clone(),
                actor,
            )));
        }
        runs.push(run);
    }
    for actor in actors {
        actor.await.expect("an actor that ends");
    }
    for run in &runs {
        let events = log(&*ledger, run).await;
        for actor in 0..2 {
            let own: Vec<_> = (0..15).map(|n| event(actor * 100 + n)).collect();
            let found: Vec<_> = events.iter().filter(|event| own.contains(event)).cloned().collect();
            assert_eq!(found, own, "each event once, in its actor's order");
        }
        assert_eq!(events.len(), 31);
    }
    drop(writer);
    assert_eq!(ended(task).await, Ended::Closed);
}

async fn write_fifteen(ledger: Arc<dyn Ledger>, writer: Writer, run: RunId, actor: u32) {
    let mut last = 1;
    for n in 0..15 {
        loop {
            let answer = writer
                .append(append(&run, last, vec![event(actor * 100 + n)]))
                .await
                .expect("an answer");
            match answer {
                Appended::At(Seq(at)) => {
                    last = at;
                    break;
                }
                Appended::Conflict => last += ledger.read(&run, Seq(last)).await.expect("a log").len() as u64,
            }
        }
    }
}

async fn what_gathers_commits_together(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let gated = Gated::new(ledger.clone(), 0);
    let (writer, _task) = Writer::spawn(gated.clone(), epoch);
    let first = start(&*ledger, epoch, 0).await;
    let leading = tokio::spawn(queue(&writer, append(&first, 1, vec![event(1)])));
    wait_for("the first transaction", || (gated.groups() == [1]).then_some(())).await;

    let mut waiting = Vec::new();
    let mut runs = Vec::new();
    for n in 1..=100 {
        let run = start(&*ledger, epoch, n).await;
        let mut sending = queue(&writer, append(&run, 1, vec![event(n)]));
        // Polled once, so that it queues; its answer comes with the group.
        assert!(futures::poll!(&mut sending).is_pending());
        waiting.push(sending);
        runs.push(run);
    }
    gated.gate.add_permits(200);
    assert_eq!(
        leading.await.expect("a caller that ends").expect("an answer"),
        Appended::At(Seq(2))
    );
    for sending in waiting {
        assert_eq!(sending.await.expect("an answer"), Appended::At(Seq(2)));
    }
    assert_eq!(gated.groups(), [1, 100]);
    for run in &runs {
        assert_eq!(log(&*ledger, run).await.len(), 2);
    }
    if let Place::Postgres { .. } = place {
        // One transaction in the database's own view too.
        place
            .execute(
                "DO $$ BEGIN
                   ASSERT (SELECT count(DISTINCT xmin::text) FROM haulage_ledger.events WHERE seq = 2) = 2;
                 END $$"
                    .to_owned(),
            )
            .await;
    }
}

async fn a_refused_append_fails_alone(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let (good, bad) = (start(&*ledger, epoch, 1).await, start(&*ledger, epoch, 2).await);
    place
        .execute(match place {
            Place::Postgres { .. } => {
                format!(
                    "ALTER TABLE haulage_ledger.events ADD CONSTRAINT grudge CHECK (NOT (run = '{bad}' AND seq > 1))"
                )
            }
            Place::Sqlite { .. } => format!(
                "CREATE TRIGGER grudge BEFORE INSERT ON events WHEN new.run = '{bad}'
                 BEGIN SELECT RAISE(ABORT, 'grudge'); END"
            ),
        })
        .await;
    let gated = Gated::new(ledger.clone(), 0);
    let (writer, _task) = Writer::spawn(gated.clone(), epoch);
    let mut sending = Vec::new();
    for run in [&good, &bad, &good] {
        let expected = 1 + sending.len() as u64 / 2;
        let mut one = queue(&writer, append(run, expected, vec![event(1)]));
        assert!(futures::poll!(&mut one).is_pending());
        sending.push(one);
    }
    gated.gate.add_permits(1000);
    let answers = join_all(sending).await;
    assert!(matches!(answers[0], Ok(Appended::At(Seq(2)))), "{answers:?}");
    assert!(
        matches!(&answers[1], Err(group::Error::Ledger(error)) if !error.is_transient()),
        "{answers:?}"
    );
    assert!(matches!(answers[2], Ok(Appended::At(Seq(3)))), "{answers:?}");
    assert_eq!(
        (log(&*ledger, &good).await.len(), log(&*ledger, &bad).await.len()),
        (3, 1)
    );
}

async fn a_lost_answer_is_no_conflict(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let gated = Gated::new(ledger.clone(), 10);
    gated.answers_to_lose.store(2, Ordering::SeqCst);
    let (writer, _task) = Writer::spawn(gated.clone(), epoch);
    let answer = writer
        .append(append(&run, 1, vec![event(1), event(2)]))
        .await
        .expect("an answer");
    assert_eq!(answer, Appended::At(Seq(3)));
    assert_eq!(gated.groups(), [1, 1, 1]);
    assert_eq!(log(&*ledger, &run).await.len(), 3);
    // A conflict stays one.
    assert_eq!(
        writer.append(append(&run, 1, vec![event(9)])).await.expect("an answer"),
        Appended::Conflict
    );
}

async fn a_lost_epoch_ends_everything(place: Place) {
    let (ledger, other, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let gated = Gated::new(ledger.clone(), 0);
    let (writer, task) = Writer::spawn(gated.clone(), epoch);
    let mut sending = Vec::new();
    for _ in 0..3 {
        let mut one = queue(&writer, append(&run, 1, vec![event(1)]));
        assert!(futures::poll!(&mut one).is_pending());
        sending.push(one);
        wait_for("the first transaction", || (!gated.groups().is_empty()).then_some(())).await;
    }
    let theirs = claim(&*other, "another").await.expect("an epoch");
    gated.gate.add_permits(1000);
    // One in the transaction, two in the queue, one that comes later.
    sending.push(queue(&writer, append(&run, 1, vec![event(1)])));
    for answer in join_all(sending).await {
        assert!(
            matches!(answer, Err(group::Error::Deposed { theirs: t, ours }) if t == theirs && ours == epoch),
            "{answer:?}"
        );
    }
    assert_eq!(ended(task).await, Ended::Deposed { theirs, ours: epoch });
    assert_eq!(gated.groups(), [1], "a lost epoch is never tried again");
    let late = writer.append(append(&run, 1, vec![event(1)])).await;
    assert!(matches!(late, Err(group::Error::Deposed { .. })), "{late:?}");
    assert_eq!(log(&*other, &run).await.len(), 1);
}

async fn closing_writes_what_is_queued(place: Place) {
    let (ledger, _, epoch) = place.lead().await;
    let run = start(&*ledger, epoch, 1).await;
    let gated = Gated::new(ledger.clone(), 0);
    let (writer, task) = Writer::spawn(gated.clone(), epoch);
    {
        let mut gone = Box::pin(writer.append(append(&run, 1, vec![event(1)])));
        assert!(futures::poll!(&mut gone).is_pending());
    }
    drop(writer);
    gated.gate.add_permits(1);
    assert_eq!(ended(task).await, Ended::Closed);
    assert_eq!(log(&*ledger, &run).await.len(), 2);
}

/// A ledger behind a proxy, and the proxy.
async fn behind_a_proxy(place: &Place) -> (Arc<dyn Ledger>, Proxy) {
    let Place::Postgres { cluster, database } = place else {
        panic!("only PostgreSQL is reached through a network");
    };
    let proxy = Proxy::start(cluster.port()).await.expect("a proxy");
    let url = format!("postgres://postgres@127.0.0.1:{}/{database}", proxy.port());
    (ledger::open(&url).await.expect("a ledger behind a proxy"), proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_at_commit_neither_loses_nor_doubles() {
    let place = Place::postgres().await;
    let (direct, _, epoch) = place.lead().await;
    let run = start(&*direct, epoch, 1).await;
    let (ledger, proxy) = behind_a_proxy(&place).await;
    proxy.next_commit(Commit::LosesItsAnswer);
    let unknown = ledger
        .append(epoch, &[append(&run, 1, vec![event(1)])])
        .await
        .expect_err("no answer");
    assert!(unknown.is_transient() && proxy.has_happened(), "{unknown:?}");
    assert_eq!(log(&*direct, &run).await.len(), 2, "the server had committed");

    let (writer, _task) = Writer::spawn(ledger.clone(), epoch);
    proxy.next_commit(Commit::LosesItsAnswer);
    let answer = writer
        .append(append(&run, 2, vec![event(2), event(3)]))
        .await
        .expect("an answer");
    assert_eq!((answer, proxy.has_happened()), (Appended::At(Seq(4)), true));
    assert_eq!(log(&*direct, &run).await[1..], [event(1), event(2), event(3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_frozen_in_its_transaction_is_deposed_all_the_same() {
    let place = Place::postgres().await;
    let (ledger, proxy) = behind_a_proxy(&place).await;
    let old = claim(&*ledger, "frozen").await.expect("an epoch");
    let run = start(&*ledger, old, 1).await;
    let (writer, task) = Writer::spawn(ledger.clone(), old);
    proxy.next_commit(Commit::Freezes);
    let appended = tokio::spawn(queue(&writer, append(&run, 1, vec![event(1)])));
    proxy.frozen().await;

    let standby = place.open().await;
    let new = claim(&*standby, "standby")
        .await
        .expect("an epoch, once the server has ended the frozen session");
    assert!(new > old);
    proxy.thaw();
    let answer = appended.await.expect("a caller that ends");
    assert!(
        matches!(answer, Err(group::Error::Deposed { theirs, .. }) if theirs == new),
        "{answer:?}"
    );
    assert!(matches!(ended(task).await, Ended::Deposed { .. }));
    assert_eq!(log(&*standby, &run).await.len(), 1);
}
