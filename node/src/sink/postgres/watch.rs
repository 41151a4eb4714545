//! Waiting for a server's answer, but not for one that can't come any more.
//!
//! A connection may be half open: a firewall has forgotten it, or the machine behind it is gone, and nobody says so. The
//! driver waits on it for ever, and the node, which is well, keeps its lease. What takes a moment has a deadline. What may
//! take as long as it takes (counting, publishing, reverting) is looked at from a second connection: its own sessions have
//! a name in `pg_stat_activity`, and while none of them is at work, or the server can't be asked, no answer is coming.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use haulage_core::failure::Failure;
use tokio::time::{sleep, timeout};

use super::Postgres;
use super::connect::Lease;
use crate::sink::LoadContext;

/// Longest that anything may take which a server does in a moment; longer than it lets anybody wait for a lock.
pub(super) const MOMENT: Duration = Duration::from_secs(60);
/// Between two looks at what may take long.
const LOOK: Duration = Duration::from_secs(12);
/// Looks that find nobody at work before it is believed. A single one may fall between two statements, or into the pause
/// before a table's lock is asked for again.
const BELIEVED: u32 = 3;
/// Bytes that PostgreSQL keeps of a session's name.
const NAME: usize = 63;

impl Postgres {
    /// A connection for what this value does.
    pub(super) async fn lease(&self) -> Result<Lease, Failure> {
        match &self.acting {
            Some(name) => self.connections.lease_as(name).await,
            None => self.connections.lease().await,
        }
    }

    /// Waits for what is done in a moment. Transient failure if it isn't.
    pub(super) async fn soon<T, E: From<Failure>>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match timeout(MOMENT, work).await {
            Ok(done) => done,
            Err(_) => Err(Failure::transient(format!(
                "{}: no answer within {} s while {doing}; the connection is given up",
                self.connections.place(),
                MOMENT.as_secs()
            ))
            .into()),
        }
    }

    /// Waits for what may take long, for as long as the server is at work on it. Transient failure if it isn't any more.
    pub(super) async fn at_length<T, F>(&self, load: &LoadContext, work: impl FnOnce(Self) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut name = format!("{} {} {}", self.connections.session_name(), load.run, load.load);
        name.truncate(name.floor_char_boundary(NAME));
        let acting = Self {
            acting: Some(Arc::from(name.as_str())),
            ..self.clone()
        };
        let mut work = pin!(work(acting));
        let mut idle = 0;
        while idle < BELIEVED {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(LOOK) => {}
            }
            idle = if self.is_at_work(&name).await { 0 } else { idle + 1 };
        }
        Err(Failure::transient(format!(
            "{}: the server is not at work on load {} of run {}, and its answer has not come; the connection is given up",
            self.connections.place(),
            load.load,
            load.run
        )))
    }

    /// Whether a session of this name does something else than waiting for its client.
    async fn is_at_work(&self, name: &str) -> bool {
        let asked = async {
            let mut lease = self.connections.lease().await.ok()?;
            let at_work: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                 WHERE application_name = $1 AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client')",
            )
            .bind(name)
            .fetch_one(lease.connection())
            .await
            .ok()?;
            lease.give_back();
            Some(at_work)
        };
        timeout(LOOK, asked).await.ok().flatten().unwrap_or(false)
    }
}
