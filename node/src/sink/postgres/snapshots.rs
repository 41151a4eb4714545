//! Whether a swap would show a part of a run to somebody, because of a snapshot from the middle of its load.
//!
//! Staged rows are committed segment by segment, and a renamed table is found by every transaction, also by one whose
//! snapshot (REPEATABLE READ, SERIALIZABLE, or one long statement) sees only the first segments. So verify notes the
//! first transaction id after those of all staged rows, once no more rows can come, and before a swap nobody in the
//! database may hold a snapshot that is older than that: with an xmin from that id on, or taken after verify looked, it
//! sees every staged row.
//!
//! One look that finds nobody is enough, for ever: whoever takes a snapshot afterwards, while the publish waits for its
//! lock or commits, takes it after every segment was committed. An old one can only be handed on (`SET TRANSACTION
//! SNAPSHOT`) by a transaction that holds it, and nobody held one. So this needs no lock, and readers pass while it waits.
//!
//! It errs on the side of the slower way: a transaction that was writing during the load, in any database of the server,
//! keeps the xmin of everybody who reads meanwhile below the mark. What it can't see: readers on a standby server. There,
//! a transaction that began in mid load can see a part.

use std::time::Duration;

use haulage_core::failure::Failure;
use haulage_plan::definition::Mode;
use tokio::time::sleep;

use super::Postgres;
use super::bookkeeping::{Lock, Method, State, record};
use super::connect::Lease;
use super::failure::code;
use super::publish::not_verified;
use crate::sink::LoadContext;

/// Looks at who reads, and the pause between two: a statement that was under way when verify looked may take 5 s more.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Processes that hold a snapshot, and its xmin: every role may read both of every other's. A VACUUM holds one for hours,
/// and can't be part of a transaction that reads the target. Prepared transactions hold none.
const SNAPSHOTS: &str = "
SELECT pid, backend_xmin::text::bigint FROM pg_stat_activity
WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
  AND pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum WHERE pid IS NOT NULL)
ORDER BY pid";

/// Notes, in verify's transaction and when no more rows can come, the first transaction id after those of the staged
/// rows: whatever is committed now is below the xmax of a snapshot that is taken now. A repeated verify finds the same rows.
pub(super) async fn note(lease: &mut Lease, load: &LoadContext, doing: &str) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE haulage.loads SET staged_until = txid_snapshot_xmax(txid_current_snapshot())
         WHERE run = $1 AND load = $2 AND staged_until IS NULL",
    )
    .bind(load.run.as_str())
    .bind(load.load.as_str())
    .execute(lease.connection())
    .await
    .map_err(|error| lease.place().failure(doing, error))?;
    Ok(())
}

impl Postgres {
    /// Waits a little for those who would see a part of the run after a swap. `None` if there is nobody left, or the load
    /// isn't published by a swap anyway; otherwise who is there, in words.
    pub(super) async fn who_would_see_a_part(&self, load: &LoadContext) -> Result<Option<String>, Failure> {
        if load.mode != Mode::Replace {
            return Ok(None);
        }
        let mut lease = self.lease().await?;
        let mut there = Vec::new();
        if let Some(mark) = mark(&mut lease, load).await? {
            for look in 0..LOOKS {
                if look > 0 {
                    sleep(PAUSE).await;
                }
                there = older(&mut lease, mark).await?;
                if there.is_empty() {
                    break;
                }
            }
        }
        lease.give_back();
        let words = there.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Ok((!there.is_empty()).then_some(words))
    }
}

/// What [`note`] wrote, if the load is about to be published by a swap.
async fn mark(lease: &mut Lease, load: &LoadContext) -> Result<Option<i64>, Failure> {
    match record(lease, load, Lock::None).await {
        Ok(Some(record)) if record.state == State::Sealed && record.method == Some(Method::Swap) => {
            match record.staged_until {
                Some(mark) => Ok(Some(mark)),
                None => Err(not_verified(load)),
            }
        }
        Ok(_) => Ok(None),
        // Nobody has prepared anything in this database; the publish says so.
        Err(error) if code(&error) == Some("42P01") => Ok(None),
        Err(error) => Err(lease.place().failure("looking at the load's record", error)),
    }
}

/// Processes with a snapshot that may not see every staged row.
async fn older(lease: &mut Lease, mark: i64) -> Result<Vec<i32>, Failure> {
    // Outside of a transaction: within one, the server answers from what it read first.
    let held: Result<Vec<(i32, i64)>, _> = sqlx::query_as(SNAPSHOTS).fetch_all(lease.connection()).await;
    let held = held.map_err(|error| lease.place().failure("looking for older snapshots", error))?;
    Ok(held
        .into_iter()
        .filter(|(_, xmin)| is_before(*xmin as u32, mark))
        .map(|(pid, _)| pid)
        .collect())
}

/// Whether a transaction id of 32 bits is before one of 64. The server keeps all that are in use within 2^31 of each
/// other, so their difference has a sign also where the 32 bits have wrapped round between them.
fn is_before(xmin: u32, mark: i64) -> bool {
    xmin.wrapping_sub(mark as u32).cast_signed() < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_wrap_round() {
        const ROUND: i64 = 1 << 32;
        for (xmin, mark, before) in [
            (99, 100, true),
            (100, 100, false),
            (101, 100, false),
            (u32::MAX, ROUND + 3, true),
            (3, ROUND + 3, false),
            (4, ROUND + 3, false),
            (3, ROUND - 1, false),
            (u32::MAX - 1, ROUND - 1, true),
            (700, 5 * ROUND + 800, true),
            (800, 5 * ROUND + 700, false),
        ] {
            assert_eq!(is_before(xmin, mark), before, "{xmin} {mark}");
        }
    }
}
