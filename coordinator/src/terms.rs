//! Term after term: a coordinator leads while it can, stands by while another one does, and campaigns when nobody's
//! lease runs.
//!
//! ```text
//!   standby ──nobody's lease runs, and the campaign is won──► leading
//!      ▲──────────the epoch is another's: actors stopped────────┘
//! ```
//!
//! Where there are no leases (SQLite) the first campaign is won, and a lost epoch is the end: two processes that both
//! win every campaign would depose each other for ever.

use std::sync::Arc;
use std::time::Duration;

use haulage_core::ids::{Epoch, Millis};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::role::Role;
use crate::clock;
use crate::complaints::Complaints;
use crate::config::CoordinatorConfig;
use crate::error::Error;
use crate::leadership::{LEASE, Leadership};
use crate::ledger::{Campaign, Candidate, Led, Ledger};
use crate::term::Term;

/// How often a standby looks whether somebody leads. It looks as well when the lease it has seen runs out.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at least, also when a lease is just about to run out.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A ledger that says nothing for so long is asked again, over another connection: this one may be half open. Longer than
/// the server lets a frozen leader hold its lock.
const ANSWER: Duration = Duration::from_secs(4);
/// Campaigns without an answer that are remembered.
const UNANSWERED: usize = 8;
/// How long giving the lease back may take: a ledger that is away must not hold up the end of a process.
const RESIGN: Duration = Duration::from_secs(2);

/// The task that leads and stands by, until it is told to stop.
pub(crate) struct Terms {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    ended: watch::Receiver<Option<String>>,
}

/// A campaign whose answer has not come. It may have been won all the same: then the ledger says that this process leads,
/// since the moment that it named.
#[derive(Clone, Copy)]
struct Asked {
    wall: Millis,
    steady: Millis,
}

struct Task {
    ledger: Arc<dyn Ledger>,
    config: CoordinatorConfig,
    role: watch::Sender<Role>,
    ended: watch::Sender<Option<String>>,
    complaints: Arc<Complaints>,
}

impl Terms {
    /// Campaigns once, and begins the first term if that is won; from there on it goes by itself. What is wrong at the
    /// very beginning is an error; what is wrong later is logged and tried again.
    pub(crate) async fn begin(
        ledger: Arc<dyn Ledger>,
        config: CoordinatorConfig,
        role: watch::Sender<Role>,
        complaints: Arc<Complaints>,
    ) -> Result<Self, Error> {
        let (ended, has_ended) = watch::channel(None);
        let task = Task {
            ledger,
            config,
            role,
            ended,
            complaints,
        };
        let first = match task.campaign(&mut Vec::new()).await? {
            Won::Leads(leadership) => Some(task.lead(leadership).await?),
            Won::Stands(led) => {
                task.stand_by(Some(led));
                None
            }
        };
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            stop: Some(stop),
            task: tokio::spawn(task.run(first, stopped)),
            ended: has_ended,
        })
    }

    /// Why this process can't lead any more, once it can't. Where there are leases that never happens.
    pub(crate) fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.clone()
    }

    /// Stops leading: ends the term and gives the lease back, so that a standby takes over at once.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        if !self.task.is_finished() {
            // An error means that the task has crashed; then there is nothing left to stop.
            drop((&mut self.task).await);
        }
    }
}

impl Drop for Terms {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a campaign means to this process.
enum Won {
    Leads(Leadership),
    Stands(Led),
}

impl Task {
    async fn run(self, first: Option<Term>, mut stopped: oneshot::Receiver<()>) {
        let mut term = first;
        loop {
            if let Some(leading) = term.take() {
                let leadership = leading.leader().shared.leadership.clone();
                let deposed = tokio::select! {
                    reason = leadership.wait() => Some(reason),
                    _ = &mut stopped => None,
                };
                if deposed.is_none() {
                    leading.hand_over().await;
                }
                self.stand_by(None);
                let epoch = leading.epoch();
                leading.end().await;
                let Some(reason) = deposed else {
                    return self.resign(epoch).await;
                };
                if !self.ledger.is_leased() {
                    self.ended.send_replace(Some(reason));
                    return;
                }
            }
            term = tokio::select! {
                term = self.until_won() => Some(term),
                _ = &mut stopped => return,
            };
        }
    }

    /// Stands by until this process leads.
    async fn until_won(&self) -> Term {
        let mut wait = Duration::ZERO;
        let mut told = false;
        let mut unanswered = Vec::new();
        loop {
            tokio::time::sleep(wait).await;
            wait = LOOK_EVERY;
            let campaign = match tokio::time::timeout(ANSWER, self.campaign(&mut unanswered)).await {
                Ok(campaign) => campaign,
                Err(_) => continue,
            };
            match campaign {
                Ok(Won::Leads(leadership)) => match self.lead(leadership.clone()).await {
                    Ok(term) => return term,
                    Err(error) => {
                        tracing::error!(%error, "this coordinator won the lead and could not begin; it stands by");
                        self.resign(leadership.epoch()).await;
                    }
                },
                Ok(Won::Stands(led)) => {
                    let left = led.left.unwrap_or(LOOK_EVERY);
                    wait = left.clamp(LOOK_AGAIN, LOOK_EVERY);
                    told = false;
                    self.stand_by(Some(led));
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "a standby can't look at the ledger; trying again");
                    }
                    // Whoever led may lead no more, for all this process knows.
                    self.stand_by(None);
                }
            }
        }
    }

    async fn campaign(&self, unanswered: &mut Vec<Asked>) -> Result<Won, Error> {
        let candidate = Candidate {
            name: &self.config.name,
            address: &self.config.advertise,
            lease: LEASE,
        };
        // Before the call: our lease counts from here, and the database's from later.
        let asked = Asked {
            wall: clock::wall(),
            steady: clock::steady(),
        };
        if unanswered.len() == UNANSWERED {
            unanswered.remove(0);
        }
        unanswered.push(asked);
        let campaign = self.ledger.campaign(&candidate, asked.wall).await?;
        let ours = |led: &Led| led.name == candidate.name && led.address == candidate.address;
        let won_before = |led: &Led| unanswered.iter().find(|asked| asked.wall == led.since).copied();
        let won = match campaign {
            Campaign::Won(epoch) if self.ledger.is_leased() => Won::Leads(Leadership::leased(epoch, asked.steady)),
            Campaign::Won(epoch) => Won::Leads(Leadership::new(epoch)),
            Campaign::Lost(led) => match won_before(&led).filter(|_| ours(&led)) {
                Some(asked) => Won::Leads(Leadership::leased(led.epoch, asked.steady)),
                None => Won::Stands(led),
            },
        };
        unanswered.clear();
        Ok(won)
    }

    async fn lead(&self, leadership: Leadership) -> Result<Term, Error> {
        let (ledger, complaints) = (Arc::clone(&self.ledger), Arc::clone(&self.complaints));
        let term = Term::begin(ledger, leadership, &self.config, complaints).await?;
        self.role.send_replace(Role::Leading(term.leader().clone()));
        Ok(term)
    }

    fn stand_by(&self, led: Option<Led>) {
        let news = match &*self.role.borrow() {
            Role::Standby(Some(before)) => led.as_ref().is_some_and(|led| led.epoch != before.epoch),
            Role::Standby(None) | Role::Leading(_) | Role::Reading => led.is_some(),
        };
        if news && let Some(led) = &led {
            tracing::info!(
                epoch = led.epoch.0,
                leader = led.name,
                address = led.address,
                "another coordinator leads; this one stands by"
            );
        }
        self.role.send_replace(Role::Standby(led));
    }

    /// Best effort: a lease that isn't given back runs out.
    async fn resign(&self, epoch: Epoch) {
        match tokio::time::timeout(RESIGN, self.ledger.resign(epoch)).await {
            Ok(Ok(())) => tracing::info!(epoch = epoch.0, "this coordinator has stopped leading"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back; it runs out by itself"),
            Err(_) => tracing::warn!("the ledger does not answer; the lease runs out by itself"),
        }
    }
}
