//! Group commit: one task writes for everybody.
//!
//! While one transaction commits, the appends of all runs gather in a bounded queue; the next transaction takes whatever
//! is there. So the cost of a commit is shared exactly when there is load, and nobody waits for others to come.
//!
//! What may pass by itself is tried again (`PAUSES`). After a cut connection nobody knows whether the COMMIT happened;
//! the same appends are simply made again, and the ledger answers those that stand as it would have the first time. A
//! refusal that won't pass (an event that the database doesn't take) is narrowed down by writing each append on its own,
//! so that one run's trouble stays that run's. A lost epoch is told to everybody and ends the task.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use haulage_core::ids::Epoch;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Append, Appended, Ledger};

/// Appends in one transaction, at most: bounds what a lost connection makes everybody repeat.
const GROUP: usize = 512;
/// Appends waiting for the next transaction, at most; whoever comes then waits before queueing.
const QUEUE: usize = 2048;
/// Longer than the ledger waits for a connection or a lock, so that a server which says nothing at all doesn't stop us for
/// ever. What it did all the same is found by the next try.
const ATTEMPT: Duration = Duration::from_secs(12);
/// Before the second try, the third, ...: 6 s together, enough for a restarted server.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
];

/// Why an append has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another coordinator leads, and the writer has ended. The append doesn't stand, unless it committed before that
    /// and its answer was lost on the way; the new leader reads which.
    #[error("another coordinator has claimed the ledger (its epoch is {theirs}, ours {ours}); this one stops leading")]
    Deposed {
        /// The epoch in the ledger.
        theirs: Epoch,
        /// The epoch of this writer.
        ours: Epoch,
    },
    /// The ledger failed, also when tried again. Whether the events stand is unknown: make the same append again, or
    /// fold from the ledger.
    #[error(transparent)]
    Ledger(Arc<super::Error>),
    /// The writer is gone without having lost its epoch: the process is stopping.
    #[error("the ledger's writer has stopped")]
    Stopped,
}

/// How the writer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every [`Writer`] was dropped, and everything queued is written.
    Closed,
    /// The epoch was lost. The coordinator must stop leading.
    Deposed {
        /// The epoch in the ledger.
        theirs: Epoch,
        /// The epoch of this writer.
        ours: Epoch,
    },
}

/// Queues appends for the task that writes them. Cheap to clone, one clone for each actor.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    /// Set before the queue closes, so that whoever finds it closed knows why.
    deposed: Arc<OnceLock<(Epoch, Epoch)>>,
}

#[derive(Debug)]
struct Request {
    append: Append,
    answer: oneshot::Sender<Result<Appended, Error>>,
}

impl Writer {
    /// Starts the task. Its handle tells how it ended.
    pub fn spawn(ledger: Arc<dyn Ledger>, epoch: Epoch) -> (Self, JoinHandle<Ended>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let deposed = Arc::new(OnceLock::new());
        let task = Task {
            ledger,
            epoch,
            deposed: Arc::clone(&deposed),
        };
        (Self { queue, deposed }, tokio::spawn(task.run(requests)))
    }

    /// Appends, together with whatever else is waiting. Dropping the future doesn't take the append back.
    pub async fn append(&self, append: Append) -> Result<Appended, Error> {
        let (answer, answered) = oneshot::channel();
        if self.queue.send(Request { append, answer }).await.is_err() {
            return Err(self.gone());
        }
        answered.await.unwrap_or_else(|_| Err(self.gone()))
    }

    fn gone(&self) -> Error {
        match self.deposed.get() {
            Some(&(theirs, ours)) => Error::Deposed { theirs, ours },
            None => Error::Stopped,
        }
    }
}

struct Task {
    ledger: Arc<dyn Ledger>,
    epoch: Epoch,
    deposed: Arc<OnceLock<(Epoch, Epoch)>>,
}

impl Task {
    async fn run(self, mut requests: mpsc::Receiver<Request>) -> Ended {
        let mut gathered = Vec::with_capacity(GROUP);
        while requests.recv_many(&mut gathered, GROUP).await > 0 {
            let (appends, callers): (Vec<_>, Vec<_>) = gathered
                .drain(..)
                .map(|request| (request.append, request.answer))
                .unzip();
            let answers = self.write(&appends).await;
            if let Some(&(theirs, ours)) = self.deposed.get() {
                // Callers of this group, and those who still queue, find their answer's sender dropped.
                return Ended::Deposed { theirs, ours };
            }
            for (caller, answer) in callers.into_iter().zip(answers) {
                // A caller that has gone away needs no answer; its events stand all the same.
                caller.send(answer).ok();
            }
        }
        Ended::Closed
    }

    /// One answer for each append, or `deposed` is set.
    async fn write(&self, appends: &[Append]) -> Vec<Result<Appended, Error>> {
        match self.commit(appends).await {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) if appends.len() == 1 || error.is_transient() || self.deposed.get().is_some() => {
                let error = Arc::new(error);
                appends.iter().map(|_| Err(Error::Ledger(Arc::clone(&error)))).collect()
            }
            Err(_) => {
                let mut answers = Vec::with_capacity(appends.len());
                for append in appends {
                    let one = self.commit(std::slice::from_ref(append)).await;
                    answers.push(match one {
                        Ok(answer) => answer.first().copied().ok_or(Error::Stopped),
                        Err(error) => Err(Error::Ledger(Arc::new(error))),
                    });
                    if self.deposed.get().is_some() {
                        break;
                    }
                }
                answers
            }
        }
    }

    /// One transaction, tried again while its error may pass.
    async fn commit(&self, appends: &[Append]) -> Result<Vec<Appended>, super::Error> {
        let mut pauses = PAUSES.iter();
        loop {
            let attempt = match timeout(ATTEMPT, self.ledger.append(self.epoch, appends)).await {
                Ok(attempt) => attempt,
                Err(_) => Err(super::Error::silent()),
            };
            let error = match attempt {
                Err(error) if error.is_transient() => error,
                Err(super::Error::Deposed { theirs, ours }) => {
                    // Set once: this is the only task, and it ends here.
                    self.deposed.get_or_init(|| (theirs, ours));
                    return Err(super::Error::Deposed { theirs, ours });
                }
                settled => return settled,
            };
            let Some(pause) = pauses.next() else {
                return Err(error);
            };
            tracing::warn!(%error, appends = appends.len(), "the ledger did not answer an append; trying again");
            sleep(*pause).await;
        }
    }
}
