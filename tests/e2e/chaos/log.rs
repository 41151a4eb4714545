//! What a run's log in the ledger says about faults: when one was noticed, and when work went on.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::fault::{Injected, Kind};
use super::world::{World, name_of};

/// An event as it stands in the ledger.
pub(crate) struct Entry {
    pub(crate) epoch: i64,
    pub(crate) at: u64,
    pub(crate) kind: String,
    pub(crate) body: Value,
}

/// Whether an event is a step forward, and no sign of trouble.
fn forward(entry: &Entry) -> bool {
    matches!(
        entry.kind.as_str(),
        "planned" | "chunk_staged" | "step_done" | "compensated" | "finished"
    )
}

/// When a fault was noticed, and when the run went on after that; `None` where it met nothing.
pub(crate) fn signs(log: &[Entry], fault: &Injected) -> (Option<u64>, Option<u64>) {
    let later = || log.iter().filter(|entry| entry.at >= fault.at);
    let kind = fault.plan.kind;
    if kind.takes_a_node() {
        let name = name_of(fault.plan.node);
        let failed = later().find(|entry| entry.kind == "attempt_failed" && entry.body["node"] == name.as_str());
        let Some(failed) = failed else {
            return (None, None);
        };
        let again = later().find(|entry| {
            entry.at >= failed.at && entry.kind == "assigned" && entry.body["work"] == failed.body["work"]
        });
        return (Some(failed.at), again.map(|entry| entry.at));
    }
    if kind.takes_the_leader() {
        let Some((_, epoch)) = fault.leader else {
            return (None, None);
        };
        let next = later().find(|entry| entry.epoch > epoch).map(|entry| entry.at);
        let on = later().find(|entry| entry.epoch > epoch && forward(entry));
        return (next, on.map(|entry| entry.at));
    }
    if kind == Kind::LedgerCrashed || kind == Kind::LedgerCommitUnanswered {
        // Nothing can be written about it: what shows is that writing goes on.
        let on = log
            .iter()
            .find(|entry| entry.at >= fault.healed_at)
            .map(|entry| entry.at);
        return (None, on);
    }
    let trouble = |entry: &&Entry| matches!(entry.kind.as_str(), "attempt_failed" | "restaged" | "rollback_started");
    let Some(noticed) = later().find(trouble) else {
        return (None, None);
    };
    let on = later().find(|entry| entry.at > noticed.at && forward(entry));
    (Some(noticed.at), on.map(|entry| entry.at))
}

/// Reads a run's log. Fails if an earlier epoch wrote after a later one.
pub(crate) async fn log(world: &World, run: &str) -> Result<Vec<Entry>> {
    let pool = world.ledger.pool("ledger").await?;
    let rows: Vec<(i64, i64, String, String)> =
        sqlx::query_as("SELECT epoch, at, kind, body::text FROM haulage_ledger.events WHERE run = $1 ORDER BY seq")
            .bind(run)
            .fetch_all(&pool)
            .await?;
    pool.close().await;
    ensure!(
        rows.is_sorted_by_key(|row| row.0),
        "an earlier epoch wrote after a later one: {rows:#?}"
    );
    let entry = |(epoch, at, kind, body): (i64, i64, String, String)| {
        Ok(Entry {
            epoch,
            at: at.try_into()?,
            kind,
            body: serde_json::from_str(&body)?,
        })
    };
    rows.into_iter().map(entry).collect()
}
