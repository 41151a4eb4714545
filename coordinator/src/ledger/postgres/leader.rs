//! The leader's row in PostgreSQL: campaign, renew, resign.
//!
//! Three strengths of lock on the one row, so that only those wait who must. An append holds `FOR KEY SHARE`. A campaign
//! takes `FOR UPDATE`, which waits for every append and keeps later ones waiting until the new epoch stands. A renewal is
//! an update of columns that are no key, which neither waits for appends nor holds them up: however busy the ledger is,
//! a leader doesn't lose its lease by writing.

use std::time::Duration;

use haulage_core::ids::{Epoch, Millis};
use sqlx::postgres::{PgExecutor, PgPool};

use super::super::Error;
use super::super::leader::{Campaign, Candidate, Led};
use super::super::rows::{signed, unsigned};

/// Raises the epoch and takes the lease, unless somebody else's runs.
pub(super) async fn campaign(pool: &PgPool, candidate: &Candidate<'_>, at: Millis) -> Result<Campaign, Error> {
    // Without a lock first: a standby that looks must not hold up the leader's appends.
    if let Some(led) = led(pool).await? {
        return Ok(Campaign::Lost(led));
    }
    let mut transaction = pool.begin().await?;
    // A statement of its own: in one that also reads the clock, the clock would be read before the wait for the lock.
    sqlx::query("SELECT 1 FROM haulage_ledger.leader FOR UPDATE")
        .execute(&mut *transaction)
        .await?;
    if let Some(led) = led(&mut *transaction).await? {
        return Ok(Campaign::Lost(led));
    }
    let epoch: i64 = sqlx::query_scalar(
        "UPDATE haulage_ledger.leader
         SET epoch = epoch + 1, leader = $1, address = $2, claimed_at = $3,
             lease_until = clock_timestamp() + $4 * interval '1 ms'
         RETURNING epoch",
    )
    .bind(candidate.name)
    .bind(candidate.address)
    .bind(signed(at.0))
    .bind(millis(candidate.lease))
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Campaign::Won(Epoch(unsigned(epoch))))
}

/// Extends the lease of this epoch, also one that has run out: if the epoch is the same, nobody else has led since.
pub(super) async fn renew(pool: &PgPool, ours: Epoch, lease: Duration) -> Result<(), Error> {
    let renewed = sqlx::query(
        "UPDATE haulage_ledger.leader SET lease_until = clock_timestamp() + $2 * interval '1 ms' WHERE epoch = $1",
    )
    .bind(signed(ours.0))
    .bind(millis(lease))
    .execute(pool)
    .await?;
    match renewed.rows_affected() {
        0 => Err(deposed(pool, ours).await?),
        _ => Ok(()),
    }
}

/// Ends the lease of this epoch now. Without effect if the epoch is another by now.
pub(super) async fn resign(pool: &PgPool, ours: Epoch) -> Result<(), Error> {
    sqlx::query("UPDATE haulage_ledger.leader SET lease_until = NULL WHERE epoch = $1")
        .bind(signed(ours.0))
        .execute(pool)
        .await?;
    Ok(())
}

/// Whoever's lease runs.
pub(super) async fn led(executor: impl PgExecutor<'_>) -> Result<Option<Led>, Error> {
    let row: Option<(i64, String, String, i64, i64)> = sqlx::query_as(
        "SELECT epoch, leader, address, claimed_at,
                ceil(extract(epoch FROM lease_until - clock_timestamp()) * 1000)::bigint
         FROM haulage_ledger.leader WHERE lease_until > clock_timestamp()",
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|(epoch, name, address, since, left)| Led {
        epoch: Epoch(unsigned(epoch)),
        name,
        address,
        since: Millis(unsigned(since)),
        left: Some(Duration::from_millis(unsigned(left))),
    }))
}

async fn deposed(pool: &PgPool, ours: Epoch) -> Result<Error, Error> {
    let theirs: i64 = sqlx::query_scalar("SELECT epoch FROM haulage_ledger.leader")
        .fetch_one(pool)
        .await?;
    Ok(Error::Deposed {
        theirs: Epoch(unsigned(theirs)),
        ours,
    })
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
