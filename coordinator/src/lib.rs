//! The coordinator: decides what happens next in every run, and says so to nodes and clients.
//!
//! It never opens a source or a destination and never holds a credential for one. Decisions are `haulage_core::run`'s;
//! this crate decides about nodes ([`deciding`]), writes down ([`ledger`]), carries out (`actors`), and tells people
//! (`api`).
//!
//! Several coordinators may share a PostgreSQL ledger: one leads, the others stand by and take over (`terms`). What
//! leads is a `term`; the port and the interface are there all the time.

mod actors;
mod api;
mod clock;
mod complaints;
mod config;
pub mod deciding;
mod error;
mod leadership;
pub mod ledger;
mod retention;
mod term;
mod terms;
mod trace;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use config::CoordinatorConfig;
pub use error::Error;
use haulage_core::ids::Epoch;
use tokio::net::TcpListener;
use tonic::transport::Channel;

use api::door::Door;
use api::role::Role;
use api::{Api, server};
use terms::Terms;

/// A coordinator: it leads, or stands by. Dropping it stops its actors; its runs stay in the ledger, and the next leader
/// goes on with them.
pub struct Coordinator {
    api: Api,
    // Taken when it is served to its end or stopped.
    terms: tokio::sync::Mutex<Terms>,
    ended: tokio::sync::watch::Receiver<Option<String>>,
    cluster: bool,
}

/// What a coordinator is at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It leads, in this term.
    Leads(Epoch),
    /// It stands by; who leads, if somebody does.
    Stands(Option<ledger::Led>),
}

/// Opens the ledger and campaigns. Whoever wins goes on with every run that isn't at rest; a run that can't be recovered
/// is said so in the log and set aside. Whoever loses stands by, and campaigns again when nobody's lease runs. In a ledger
/// without leases (SQLite) the campaign is always won, and an earlier leader is deposed by it.
pub async fn start(config: CoordinatorConfig) -> Result<Coordinator, Error> {
    let ledger = ledger::open(&config.ledger).await?;
    let api = Api::coordinating(Arc::clone(&ledger), &config.name);
    let cluster = config.cluster;
    let complaints = Arc::clone(api.complaints());
    let terms = Terms::begin(ledger, config, api.role().clone(), complaints).await?;
    Ok(Coordinator {
        api,
        ended: terms.ended(),
        terms: tokio::sync::Mutex::new(terms),
        cluster,
    })
}

impl Coordinator {
    /// Whether it leads.
    pub fn standing(&self) -> Standing {
        match &*self.api.role().borrow() {
            Role::Leading(leader) => Standing::Leads(leader.shared.epoch()),
            Role::Standby(led) => Standing::Stands(led.clone()),
            Role::Reading => Standing::Stands(None),
        }
    }

    /// The term of this coordinator, while it leads.
    pub fn epoch(&self) -> Option<Epoch> {
        match self.standing() {
            Standing::Leads(epoch) => Some(epoch),
            Standing::Stands(_) => None,
        }
    }

    /// Serves everything on one port until `shutdown`; then it gives the lead away before it closes the port. Also ends
    /// ([`Error::Deposed`]) when another process has taken a ledger that has no leases.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let door = Door::new(listener, Arc::clone(self.api.complaints()));
        let shutdown = async {
            tokio::select! {
                () = shutdown => {}
                _ = self.deposed() => {}
            }
            // Nodes' sessions end with it, or they would hold up the end of the port: nodes dial again, and their leases
            // outlast a quick restart.
            self.terms.lock().await.stop().await;
        };
        server::serve(self.api.clone(), self.cluster, door, shutdown).await?;
        match self.ended.borrow().clone() {
            Some(reason) => Err(Error::Deposed(reason)),
            None => Ok(()),
        }
    }

    /// A client of this coordinator in the same process, without a port.
    pub fn channel(&self) -> Channel {
        server::channel(self.api.clone())
    }

    /// Prunes, now, the rejected rows of runs that have been at rest for so long, as the retention of a coordinator does that
    /// goes on; of how many runs. Nothing if it doesn't lead, or has no node. `Err` says what kept it from going on.
    pub async fn retain(&self, keep: Duration) -> Result<u64, String> {
        let leader = match &*self.api.role().borrow() {
            Role::Leading(leader) => leader.clone(),
            Role::Standby(_) | Role::Reading => return Ok(0),
        };
        let pruned = retention::all(&leader, keep).await;
        pruned.map_err(|status| status.message().to_owned())
    }

    /// Waits until another process has taken a ledger that has no leases, and returns what to tell the user. Where there
    /// are leases this never comes: the coordinator stands by then.
    pub async fn deposed(&self) -> String {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await;
        match reason.ok().and_then(|reason| reason.clone()) {
            Some(reason) => reason,
            // It was stopped, which is no such news.
            None => std::future::pending().await,
        }
    }

    /// Stops every actor, waits until they have ended, and gives the lead away. Runs stay in the ledger as they are.
    pub async fn stop(self) {
        self.api.close();
        self.terms.lock().await.stop().await;
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.api.close();
    }
}

/// What the ledger holds, for somebody who doesn't lead: runs, their events, and quarantined rows if a node of this
/// process reads them. Everything else is refused.
pub struct Reader {
    api: Api,
}

/// Opens a ledger for reading only. The leader, if there is one, isn't disturbed.
pub async fn open_readonly(ledger: &str) -> Result<Reader, Error> {
    Ok(Reader {
        api: Api::reading(ledger::open_read_only(ledger).await?),
    })
}

impl Reader {
    /// A client of the same interface that a coordinator serves.
    pub fn channel(&self) -> Channel {
        server::channel(self.api.clone())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.api.close();
    }
}
