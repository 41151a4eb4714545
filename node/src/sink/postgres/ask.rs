//! Questions about what is staged, for checks.

use haulage_core::failure::Failure;
use sqlx::{AssertSqlSafe, Row};

use super::Postgres;
use super::aside::bound;
use super::bookkeeping::{Area, Lock, State, ended, record};
use super::connect::BEGIN_BRIEFLY;
use super::verify::marked;
use crate::sink::question::Question;
use crate::sink::{Expected, LoadContext, staged_as};

impl Postgres {
    /// In a transaction that can't write, whatever the question holds, and on a connection that nobody uses after it.
    pub(super) async fn ask_load(
        &self,
        load: &LoadContext,
        expected: Expected,
        question: &Question,
    ) -> Result<Vec<Option<String>>, Failure> {
        let mut lease = self.lease().await?;
        let doing = format!("checking load {}", load.load);
        let area = Area::of(load);
        lease.must(&doing, BEGIN_BRIEFLY).await?;
        lease.must(&doing, "SET TRANSACTION READ ONLY").await?;
        let found = record(&mut lease, load, Lock::None).await;
        match found.map_err(|error| lease.place().failure(&doing, error))? {
            Some(record) if record.state == State::Sealed => {}
            Some(_) | None => return Err(ended(load, "no longer sealed")),
        }
        // A crash of the server may have emptied it since it was verified, and no rows are easily all in order.
        marked(&mut lease, load, &area, expected, &doing).await?;
        let query = sqlx::query(AssertSqlSafe(staged_as(load, &area.stage, &question.sql))).persistent(false);
        let row = bound(query, &question.values).fetch_one(lease.connection()).await;
        let values = row.and_then(|row| (0..row.len()).map(|at| row.try_get(at)).collect());
        values.map_err(|error| lease.place().failure(&doing, error))
    }
}
