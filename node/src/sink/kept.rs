//! A target that is kept for a run: what it has published there may still have to be taken back, because the run is not over
//! (another load of it may fail), or because it is asked to be reverted. Whatever another run would publish there meanwhile
//! stands in the way of that, and would leave the one run visible in a part of its targets. So the others wait.
//!
//! Appends don't build on each other and pass. A run that isn't over keeps a target for an hour at most: it may be of an
//! installation that is gone, and nobody knows.

use std::future::Future;
use std::time::Duration;

use haulage_core::event::StepReport;
use haulage_core::failure::Failure;
use haulage_core::ids::RunId;
use tokio::time::{Instant, sleep};

use super::LoadContext;

/// How long one attempt waits at least. The run tries a few times, and a slot is not to be taken for long: the other run
/// may need it to come to its end.
const PATIENCE: Duration = Duration::from_secs(15);
/// What it waits beyond, at most: runs have different patience, so that of two which wait for each other one gives way.
const MORE_PATIENCE_MS: u64 = 30_000;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of a publish.
#[derive(Debug)]
pub(super) enum Publishing {
    /// The load is visible.
    Done(StepReport),
    /// Nothing has happened: the target is kept for these runs.
    Kept(String),
}

/// How long an attempt of this run waits. The same for each of them.
pub(super) fn patience(run: &RunId) -> Duration {
    let hash = run
        .as_str()
        .bytes()
        .fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    PATIENCE + Duration::from_millis(hash % MORE_PATIENCE_MS)
}

/// Publishes as soon as the target is kept for nobody else. Transient failure if that takes long.
pub(super) async fn patiently<F>(
    load: &LoadContext,
    patience: Duration,
    mut publish: impl FnMut() -> F,
) -> Result<StepReport, Failure>
where
    F: Future<Output = Result<Publishing, Failure>>,
{
    let until = Instant::now() + patience;
    let mut told = false;
    loop {
        let runs = match publish().await? {
            Publishing::Done(report) => return Ok(report),
            Publishing::Kept(runs) => runs,
        };
        if Instant::now() >= until {
            return Err(Failure::transient(format!(
                "load {} waits: {} is kept for run {runs}, which may still take back what it has published there; `haulage \
                 show` says what that run waits for, and `haulage saga` ends one that is stuck (of one that is gone for good \
                 the README says how to let go)",
                load.load, load.table
            )));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(load = %load.load, table = load.table, kept_for = runs, "waiting to publish");
        }
        sleep(PAUSE).await;
    }
}

/// What a recall is told that comes when its revert was refused already.
pub(super) fn late(load: &LoadContext) -> Failure {
    Failure::fenced(format!(
        "load {} of run {} is kept for no revert any more: this one, the {}. that was asked for, is over",
        load.load, load.run, load.round
    ))
}

#[cfg(test)]
mod tests {
    use haulage_core::failure::Class;

    use super::super::tests::load;
    use super::*;

    #[tokio::test]
    async fn who_waits_for_too_long_is_told_for_whom() {
        let mut looks = 0;
        let failure = patiently(&load(), PAUSE, || {
            looks += 1;
            async { Ok(Publishing::Kept("x, y".to_owned())) }
        })
        .await
        .expect_err("it never ends");
        assert_eq!((failure.class, looks), (Class::Transient, 2));
        assert!(
            failure.message.contains("load l waits: t is kept for run x, y"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn who_waits_publishes_as_soon_as_may_be() {
        let mut kept = true;
        let load = load();
        let done = patiently(&load, patience(&load.run), || {
            let kept = std::mem::take(&mut kept);
            async move {
                Ok(match kept {
                    true => Publishing::Kept("x".to_owned()),
                    false => Publishing::Done(StepReport::default()),
                })
            }
        });
        assert_eq!(done.await, Ok(StepReport::default()));
    }
}
